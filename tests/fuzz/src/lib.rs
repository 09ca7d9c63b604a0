//! What must hold of whatever decodes, for all targets.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use maos_core::codec::v1::{
    decode_definition, decode_record, encode_definition, encode_record, Bounds, Share,
};
use maos_core::record::Record;
use maos_core::{Interner, Stamp};

/// The bounds of a client's RESTORE: small, so that they are met.
pub const CLIENT: Bounds = Bounds {
    value_max: 1000,
    newest: Stamp(1 << 52),
    unpacked_max: 4000,
};

/// Takes note of the largest allocation.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Watched = Watched;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        System.alloc(layout)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        System.dealloc(place, layout)
    }
}

/// Decodes, and holds what comes out to its bounds.
pub fn decode(bytes: &[u8], bounds: Bounds) -> Option<Record> {
    let interner = &mut Interner::default();
    LARGEST.store(0, Relaxed);
    // The smaller one of the two things that are written down.
    if let Ok(definition) = decode_definition(bytes) {
        let again = encode_definition(&definition);
        assert!(decode_definition(&again) == Ok(definition), "one definition, one meaning");
    }
    let record = decode_record(bytes, bounds, interner);
    // A lie about a length takes no memory: at most what LZ4 can make of the bytes that are there.
    let most = 255 * bytes.len() + (1 << 20);
    let largest = LARGEST.load(Relaxed);
    assert!(largest <= most, "{largest} bytes for {}", bytes.len());
    let (record, share) = record.ok()?;
    assert!(share.is_none_or(|s| !s.name.is_empty()));
    let mut unpacked = 0;
    for v in record.iter() {
        assert!(v.stamp() > Stamp::NONE && v.stamp() <= bounds.newest);
        let value = v.value();
        assert_eq!(value.is_none(), v.is_tombstone());
        let value = value.unwrap_or_default();
        assert!(value.len() <= bounds.value_max);
        assert_eq!(value.len(), v.value_len());
        unpacked += if v.is_packed() { value.len() } else { 0 };
    }
    assert!(unpacked <= bounds.unpacked_max);
    let stamps: Vec<_> = record.iter().map(|v| v.stamp()).collect();
    assert!(stamps.windows(2).all(|w| w[0] < w[1]), "versions rise");
    assert_eq!(stamps.len(), record.len());
    same_again_in(&record, share);
    Some(record)
}

/// What is held can be written down and read back.
pub fn same_again(record: &Record) {
    same_again_in(record, None);
}

/// The same of a record that names a partition.
pub fn same_again_in(record: &Record, share: Option<Share<'_>>) {
    let mut bytes = vec![];
    encode_record(record, share, &mut bytes);
    let back = decode_record(&bytes, Bounds::HARD, &mut Interner::default());
    let (back, named) = back.expect("what is held can be written down");
    assert!(back == *record && named == share, "what is read back is the same");
    let mut again = vec![];
    encode_record(&back, named, &mut again);
    assert_eq!(again, bytes, "one record, one encoding");
}
