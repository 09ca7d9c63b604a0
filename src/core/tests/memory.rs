//! What a refusal takes: a request, or a backup, that is too much is refused before memory is taken for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use maos_core::codec::backup::{Content, Entry, Head, Reader, Sealer, Writer, CHUNK, HEAD_MAX};
use maos_core::codec::v1::encode_record;
use maos_core::model::Model;
use maos_core::wire::Value;
use maos_core::{Code, Stamp};
use sha2::{Digest, Sha256};

/// Counts what is allocated, and the most there was. A test is alone with it.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: by the caller.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most that was allocated while this ran, above what was before.
fn most(of: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    of();
    MOST.load(Relaxed) - before
}

#[test]
fn a_refusal_takes_less_than_twice_its_input_and_a_mebibyte() {
    const SIZE: usize = 4 << 20;
    let _alone = alone();
    let mut model = Model::at(1_790_000_000_000_000);
    let long = format!(r#"{{"list":[{}1],"n":1}}"#, "1,".repeat(200_000));
    model.run(&[b"MAOS.SET", b"doc", long.as_bytes()]).unwrap();
    let deep = "[".repeat(SIZE);
    let closed = ["[".repeat(SIZE / 2), "]".repeat(SIZE / 2)].concat();
    let many = format!("[{}1]", "1,".repeat(SIZE / 2));
    let members = format!("{{{}\"z\":1}}", "\"a\":1,".repeat(SIZE / 6));
    let open = format!(r#"{{"a":"{}"#, "x".repeat(SIZE));
    let bad = format!(r#"{{"a":[{}01]}}"#, "1,".repeat(200_000));
    let pointer = "/a".repeat(SIZE / 2);
    let number = "9".repeat(SIZE);
    let one: &[u8] = b"1";
    let Ok(Value::Int(base)) = model.run(&[b"MAOS.SET", b"m", b"{}"]) else {
        panic!("it is written");
    };
    model.run(&[b"MAOS.SET", b"m", b"{\"theirs\":1}"]).unwrap();
    let base = base.to_string();
    let merging = |value| {
        let base = base.as_bytes();
        vec![&b"MAOS.MERGE"[..], b"m", base, value, b"STRATEGY", b"MERGE"]
    };
    for (code, words) in [
        (Code::Limit, vec![&b"MAOS.PATCH"[..], b"k", deep.as_bytes()]),
        (Code::Limit, vec![b"MAOS.PATCH", b"k", closed.as_bytes()]),
        (Code::Limit, vec![b"MAOS.PATCH", b"k", many.as_bytes()]),
        (Code::Limit, vec![b"MAOS.PATCH", b"k", members.as_bytes()]),
        (Code::NotJson, vec![b"MAOS.PATCH", b"k", open.as_bytes()]),
        (Code::NotJson, vec![b"MAOS.PATCH", b"k", bad.as_bytes()]),
        (
            Code::Limit,
            vec![b"MAOS.PATCH", b"doc", many.as_bytes(), b"JSONPATCH"],
        ),
        (
            Code::Limit,
            vec![b"MAOS.INCRBY", b"doc", one, b"PATH", pointer.as_bytes()],
        ),
        (Code::Err, vec![b"MAOS.INCRBY", b"k", number.as_bytes()]),
        (Code::Limit, merging(deep.as_bytes())),
        (Code::Limit, merging(many.as_bytes())),
        (Code::Limit, merging(members.as_bytes())),
        (Code::NotJson, merging(open.as_bytes())),
        (
            Code::Limit,
            vec![
                b"MAOS.TXN",
                b"1",
                b"k",
                b"THEN",
                b"SET",
                b"k",
                one,
                b"THEN",
                b"PATCH",
                b"k",
                deep.as_bytes(),
            ],
        ),
    ] {
        let input: usize = words.iter().map(|w| w.len()).sum();
        let mut refused = None;
        let most = most(|| refused = model.run(&words).err());
        let refused = refused.expect("a refusal");
        let what = format!("{} {}", String::from_utf8_lossy(words[0]), refused);
        assert_eq!(refused.code, code, "{what}");
        assert!(
            most <= 2 * input + (1 << 20),
            "{most} bytes for {input}: {what}"
        );
    }
}

/// A plain backup, by the description of its format, of chunks with right tags: these bodies.
fn backup(bodies: &[Vec<u8>]) -> Vec<u8> {
    let head = [&[7; 16][..], b"\x01n\0\x01\0\0\0\0"].concat();
    let mut file = b"MAOSBKP\x01".to_vec();
    file.extend((head.len() as u32).to_le_bytes());
    file.extend(head);
    let bound = Sha256::digest(&file);
    file.extend([1, 0, 0, 0, 0]);
    for (place, body) in bodies.iter().enumerate() {
        let word = (body.len() as u32 + 16).to_le_bytes();
        let tag = Sha256::new_with_prefix(b"maos backup 1 plain")
            .chain_update(bound)
            .chain_update(word)
            .chain_update((place as u64).to_le_bytes())
            .chain_update(body)
            .finalize();
        file.extend(word);
        file.extend(body);
        file.extend(&tag[..16]);
    }
    file
}

#[test]
fn a_backup_takes_memory_for_what_has_arrived_and_not_for_what_it_says() {
    let _alone = alone();
    let number = |n: u64| [&b"\xfd"[..], &n.to_le_bytes()].concat();
    let raw = |parts: &[&[u8]]| vec![[&b"\0"[..], &parts.concat()].concat()];
    let packed = |len: u32| vec![[&b"\x01"[..], &len.to_le_bytes(), b"\0"].concat()];
    let long = |len: u32| [&b"MAOSBKP\x01"[..], &len.to_le_bytes(), b"abc"].concat();
    let four_gib = number(1 << 32);
    for file in [
        long(HEAD_MAX as u32),
        long(HEAD_MAX as u32 + 1),
        long(u32::MAX),
        [&backup(&[])[..], &u32::MAX.to_le_bytes(), b"abc"].concat(),
        [&backup(&[])[..], &(CHUNK as u32).to_le_bytes(), b"abc"].concat(),
        backup(&packed(CHUNK as u32)),
        backup(&packed(u32::MAX)),
        // An entry of 4 GiB that never comes, and one whose key, record and elements are as long as that.
        backup(&raw(&[b"\x01", &four_gib, b"\0\x01k\0"])),
        backup(&raw(&[b"\x01", &number(u64::MAX)])),
        backup(&raw(&[b"\x01\x0a\0", &four_gib])),
        backup(&raw(&[b"\x01\x0d\0\x01k\0", &four_gib])),
        backup(&raw(&[
            b"\x01\x15\0\x01k\0\x10\x01\x01\x01",
            &four_gib,
            b"1234",
        ])),
        backup(&raw(&[b"\x04\x0f\0\x01k\0\0\x01", &four_gib])),
    ] {
        let mut refused = None;
        let most = most(|| {
            refused = match Reader::open(&file[..], None) {
                Ok(mut reader) => reader.next().map(|_| ()).err(),
                Err(e) => Some(e),
            };
        });
        let refused = refused.expect("a refusal");
        // What a chunk takes, as it is stored and unpacked.
        assert!(most <= 4 * CHUNK, "{most} bytes: {refused}");
    }

    // An entry takes what it is long, and the place that it had while it grew; then it is let go.
    let mut model = Model::at(1_790_000_000_000_000);
    model.limits.value_max = 64 << 20;
    let value = vec![b'x'; 32 << 20];
    model.run(&[b"MAOS.SET", b"long", &value]).unwrap();
    model.run(&[b"MAOS.SET", b"short", b"v"]).unwrap();
    let head = Head {
        id: [7; 16],
        name: "n".into(),
        node: Box::default(),
        instant: Stamp(1),
        prefixes: vec![],
        parent: None,
        natives: false,
        made_with: "".into(),
    };
    let mut records = [&b"long"[..], b"short"].map(|key| {
        let mut record = vec![];
        encode_record(&model.keys()[key].record, None, &mut record);
        (key, record)
    });
    let mut file = Vec::with_capacity(value.len() / 4);
    let written = most(|| {
        let mut writer = Writer::create(&mut file, head, Sealer::plain()).unwrap();
        for (key, record) in &records {
            let entry = Entry {
                db: 0,
                key,
                expires_ms: None,
                content: Content::Record(record),
            };
            for _ in 0..if record.len() > CHUNK { 1 } else { 10_000 } {
                writer.entry(&entry).unwrap();
            }
        }
        writer.finish().unwrap();
    });
    assert!(written <= 4 * CHUNK, "{written} bytes to write it");
    let len = records[0].1.len();
    records[0].1 = vec![];
    let mut reader = Reader::open(&file[..], None).unwrap();
    let taken = most(|| assert!(reader.next().unwrap().is_some()));
    assert!((len..4 * len).contains(&taken), "{taken} bytes for {len}");
    let before = NOW.load(Relaxed);
    while reader.next().unwrap().is_some() {}
    let after = NOW.load(Relaxed);
    assert!(after + len <= before, "{after} after {before}");
}
