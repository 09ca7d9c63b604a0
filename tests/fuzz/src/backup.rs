//! Backups: any bytes as a file, plain or with a key; any bytes as the stream of entries in a file whose tags are right; and
//! a file that was written and then altered in one place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maos_core::codec::backup::{
    rewrap, sum, verify, Content, Entry, Head, Manifest, Parent, Reader, Sealer, Writer, CHUNK,
    MAGIC, REWRAP_RANDOM, SEAL_RANDOM,
};
use maos_core::keyring::Keyring;
use maos_core::Stamp;
use sha2::{Digest, Sha256};

const RANDOM: [u8; SEAL_RANDOM] = [9; SEAL_RANDOM];

fn ring() -> Keyring {
    let text = format!("golden {}", "0f".repeat(32));
    Keyring::parse(text.as_bytes()).expect("a key")
}

/// A head that lets every entry be: of an incremental backup, with native keys.
fn head() -> Vec<u8> {
    [&[7; 16][..], b"\x01n\0\x02\0\x01", &[6; 16], b"\x01\x01\0"].concat()
}

/// A plain file by the description of its format, with the stream in chunks of this size, and this manifest.
fn file(stream: &[u8], size: usize, numbers: [u64; 6]) -> Vec<u8> {
    let mut file = b"MAOSBKP\x01".to_vec();
    file.extend((head().len() as u32).to_le_bytes());
    file.extend(head());
    let bound = Sha256::digest(&file);
    file.extend([1, 0, 0, 0, 0]);
    let (mut tags, mut place) = (Sha256::new(), 0u64);
    let mut chunk = |last: bool, raw: &[u8], tags: &mut Sha256| {
        let body = [&[0], raw].concat();
        let word = (u32::from(last) << 31 | (body.len() + 16) as u32).to_le_bytes();
        let hash = Sha256::new_with_prefix(b"maos backup 1 plain")
            .chain_update(bound)
            .chain_update(word)
            .chain_update(place.to_le_bytes())
            .chain_update(&body)
            .finalize();
        place += 1;
        tags.update(&hash[..16]);
        [&word[..], &body, &hash[..16]].concat()
    };
    for raw in stream.chunks(size) {
        file.extend(chunk(false, raw, &mut tags));
    }
    let mut manifest = vec![];
    for n in numbers {
        manifest.push(253);
        manifest.extend(n.to_le_bytes());
    }
    manifest.extend(tags.clone().finalize());
    file.extend(chunk(true, &manifest, &mut tags));
    file
}

/// Reads as far as there are entries. What is read is written again, sealed, and read back the same.
fn read(file: &[u8], ring: Option<&Keyring>) -> Option<Manifest> {
    let mut reader = Reader::open(file, ring).ok()?;
    let own = self::ring();
    let mut writer = Writer::create(
        vec![],
        reader.head().clone(),
        Sealer::with_key(own.active(), &RANDOM),
    )
    .expect("a head that was read can be written");
    writer.set_chunk(50);
    let whole = loop {
        match reader.next() {
            Ok(Some(entry)) => writer
                .entry(&entry)
                .expect("an entry that was read can be written"),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert_eq!(reader.manifest().is_some(), whole);
    assert!(
        whole || reader.next().is_err(),
        "after an error nothing more is read"
    );
    let (again, written) = writer.finish().expect("memory takes all");
    let verified =
        verify(&mut Reader::open(&again[..], Some(&own)).expect("it was sealed with this key"));
    let total =
        sum(&mut Reader::open(&again[..], Some(&own)).expect("it was sealed with this key"));
    // A record may not decode, and then neither does.
    assert_eq!(
        verified.as_ref().ok(),
        total.as_ref().ok().map(|(manifest, _)| manifest)
    );
    assert!(verified.is_err() || verified.is_ok_and(|manifest| manifest == written));
    if let (true, Ok((_, total))) = (whole, total) {
        let (_, first) = sum(&mut Reader::open(file, ring).expect("as before")).expect("as before");
        assert_eq!(first, total);
    }
    Some(written)
}

/// The numbers of the manifest that this stream should have: its length is its own, for a number may be written in more bytes
/// than it takes.
fn numbers(stream: &[u8], read: &Manifest) -> [u64; 6] {
    let bytes = stream.len() as u64;
    [
        read.records,
        read.unchanged,
        read.definitions,
        read.natives,
        bytes,
        read.newest.0,
    ]
}

fuzz_target!(|data: &[u8]| {
    let ring = ring();
    if data.starts_with(MAGIC) {
        read(data, None);
        read(data, Some(&ring));
        if let Ok((front, from)) = rewrap(data, &ring, ring.active(), &[5; REWRAP_RANDOM]) {
            let moved = [&front[..], &data[from as usize..]].concat();
            assert_eq!(read(&moved, Some(&ring)), read(data, Some(&ring)));
        }
        return;
    }
    let Some(([how, size], bytes)) = data.split_first_chunk() else {
        return;
    };
    match how % 4 {
        // As the stream.
        0..3 => {
            let size = usize::from(*size) + 1;
            let Some(found) = read(&file(bytes, size, [0; 6]), None) else {
                panic!("the file is right so far");
            };
            // If all of the stream is entries, with the right manifest it is a backup; and if not, it never is.
            let right = file(bytes, size, numbers(bytes, &found));
            let mut reader = Reader::open(&right[..], None).expect("as before");
            let mut entries = 0;
            let refused = loop {
                match reader.next() {
                    Ok(Some(_)) => entries += 1,
                    Ok(None) => break None,
                    Err(e) => break Some(e.to_string()),
                }
            };
            assert_eq!(entries, found.entries());
            let lies = |e: String| e.contains("as many as it says") || e.contains("closed with");
            assert!(!refused.is_some_and(lies), "the manifest is right");
        }
        // As keys, in a file of which one bit changes.
        _ => {
            let head = Head {
                id: [7; 16],
                name: "n".into(),
                node: Box::default(),
                instant: Stamp(1),
                prefixes: vec![],
                parent: Some(Parent {
                    id: [6; 16],
                    instant: Stamp(1),
                }),
                natives: true,
                made_with: "".into(),
            };
            let mut writer = Writer::create(vec![], head, Sealer::with_key(ring.active(), &RANDOM))
                .expect("a head within its bounds");
            writer.set_chunk(1 + usize::from(*size) * CHUNK / 4096);
            for key in bytes.chunks(40) {
                let entry = Entry {
                    db: 0,
                    key,
                    expires_ms: None,
                    content: Content::Unchanged(Stamp(key.len() as u64)),
                };
                writer.entry(&entry).expect("an entry within its bounds");
            }
            let (mut file, _) = writer.finish().expect("memory takes all");
            let all = |file: &[u8]| {
                Reader::open(file, Some(&ring))
                    .and_then(|mut reader| verify(&mut reader))
                    .is_ok()
            };
            assert!(all(&file));
            let place = bytes.iter().fold(usize::from(*size), |sum, b| {
                sum * 31 % 1_000_003 + usize::from(*b)
            });
            let at = place % file.len();
            file[at] ^= 1 << (place % 8);
            assert!(!all(&file), "byte {at} makes no difference");
        }
    }
});
