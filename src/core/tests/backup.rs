//! Backups: what was written is what is read, or an error. Files that are cut, altered, spliced or made up; keys that
//! are wrong, missing or changed.

use std::io::{self, Read, Write};

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::Aes256Gcm;
use hkdf::Hkdf;
use maos_core::codec::backup::{
    rewrap, sum, verify, BackupError, Content, ElementsBuf, Entry, Head, Manifest, Native, Parent,
    Reader, Sealer, Type, Writer, CHUNK, LEAD_MAX, REWRAP_RANDOM, SEAL_RANDOM,
};
use maos_core::codec::v1::{decode_record, encode_definition, encode_record, newest_of, Bounds};
use maos_core::keyring::Keyring;
use maos_core::model::Model;
use maos_core::{Interner, Stamp};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const ONE: [u8; 32] = [0x11; 32];
const RANDOM: [u8; SEAL_RANDOM] = {
    let mut random = [0; SEAL_RANDOM];
    let mut n = 0;
    while n < SEAL_RANDOM {
        random[n] = n as u8 ^ 0x5a;
        n += 1;
    }
    random
};

/// A ring of keys: `id=b` has the id and 32 bytes b.
fn ring(keys: &str) -> Keyring {
    let line = |key: &str| {
        let (id, byte) = key.split_once('=').unwrap();
        format!("{id} {}\n", byte.repeat(32))
    };
    Keyring::parse(keys.split(' ').map(line).collect::<String>().as_bytes()).unwrap()
}

/// An entry that owns its parts.
#[derive(Clone, Debug)]
struct Item {
    db: u32,
    key: Vec<u8>,
    expires_ms: Option<u64>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Record(Vec<u8>),
    Unchanged(u64),
    Definition(Vec<u8>),
    Native(Type, u64, Vec<Vec<u8>>),
}

impl Item {
    fn record(key: &[u8], record: &[u8]) -> Item {
        Item {
            db: 0,
            key: key.into(),
            expires_ms: None,
            what: What::Record(record.into()),
        }
    }

    fn native(key: &[u8], kind: Type, elements: &[&[u8]]) -> Item {
        let elements = elements.iter().map(|e| e.to_vec()).collect();
        let what = What::Native(kind, 1_790_000_000_000, elements);
        Item {
            what,
            ..Item::record(key, b"")
        }
    }

    fn with<T>(&self, then: impl FnOnce(&Entry<'_>) -> T) -> T {
        let mut buf = ElementsBuf::default();
        let content = match &self.what {
            What::Record(bytes) => Content::Record(bytes),
            What::Unchanged(stamp) => Content::Unchanged(Stamp(*stamp)),
            What::Definition(bytes) => Content::Definition(bytes),
            What::Native(kind, read_ms, elements) => {
                elements.iter().for_each(|e| buf.push(e));
                Content::Native(Native {
                    kind: *kind,
                    read_ms: *read_ms,
                    elements: buf.elements(),
                })
            }
        };
        then(&Entry {
            db: self.db,
            key: &self.key,
            expires_ms: self.expires_ms,
            content,
        })
    }
}

/// Records of every shape: plain, with a history that is packed, locked, only locked, named by partitions; and definitions.
fn things() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut m = Model::at(1_790_000_000_000_000);
    let long = "a".repeat(600);
    for line in [
        "MAOS.PARTITION CREATE p BYTES 50000 PREFIX a: TYPE agent_dedicated AGENT planner",
        "MAOS.PARTITION CREATE q BYTES 50000 TYPE temporary TTL 90000000 ONCONFLICT function f",
        "MAOS.SET plain value",
        "MAOS.SET a:1 v BY planner",
        "MAOS.SET told {\"n\":1} BY planner META {\"why\":1} REQID r-1",
        "MAOS.SET told LONG BY worker",
        "MAOS.SET told third",
        "MAOS.DEL told BY janitor",
        "MAOS.LOCK bare a 60000 ADVISORY",
        "MAOS.LOCK told a 60000 NOTE nightly",
        "MAOS.LOCK shared a 60000 SHARED",
        "MAOS.LOCK shared b 60000 SHARED",
        "MAOS.SET fenced v FENCE zk 7",
    ] {
        m.now_us += 1_000_000;
        let line = line.replace("LONG", &long);
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        m.run(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    m.tend(b"told");
    let mut records: Vec<_> = m.keys().iter().collect();
    records.sort_by_key(|(key, _)| key.to_vec());
    let records = records.into_iter().map(|(_, held)| {
        let mut out = vec![];
        encode_record(&held.record, m.share(&held.record), &mut out);
        assert_eq!(newest_of(&out), Ok(held.record.newest()));
        out
    });
    let records = records.collect();
    let mut defined: Vec<_> = m.defined().values().collect();
    defined.sort_by_key(|d| d.definition.stamp);
    let definitions = defined.iter().map(|d| encode_definition(&d.definition));
    (records, definitions.collect())
}

/// A record whose value is this.
fn record_of(value: &[u8]) -> Vec<u8> {
    let mut m = Model::at(1_790_000_000_000_000);
    m.run(&[b"MAOS.SET", b"k", value]).unwrap();
    let mut out = vec![];
    encode_record(&m.keys()[&b"k"[..]].record, None, &mut out);
    out
}

/// Bytes that do not compress, the same each time.
fn noise(len: usize) -> Vec<u8> {
    let blocks = (0u64..).flat_map(|n| Sha256::digest(n.to_le_bytes()));
    blocks.take(len).collect()
}

fn head() -> Head {
    Head {
        id: [7; 16],
        name: "nightly".into(),
        node: (*b"node-1").into(),
        instant: Stamp(1_790_000_100_000_000),
        prefixes: vec![(*b"a:").into(), (*b"\xff").into()],
        parent: Some(Parent {
            id: [6; 16],
            instant: Stamp(1_790_000_000_000_000),
        }),
        natives: true,
        made_with: "0.1.0".into(),
    }
}

/// Some entries of every kind, at least so many bytes of them.
fn items(bytes: usize) -> Vec<Item> {
    let (records, definitions) = things();
    let mut items = vec![];
    for (n, record) in records.iter().enumerate() {
        items.push(Item::record(format!("key-{n}").as_bytes(), record));
    }
    for (n, definition) in definitions.iter().enumerate() {
        items.push(Item {
            what: What::Definition(definition.clone()),
            ..Item::record(format!("part-{n}").as_bytes(), b"")
        });
    }
    items.push(Item {
        db: 3,
        expires_ms: Some(1_800_000_000_000),
        what: What::Unchanged(1_790_000_000_000_000),
        ..Item::record(b"same", b"")
    });
    items.push(Item::native(b"s", Type::String, &[b"value"]));
    items.push(Item::native(b"l", Type::List, &[b"b", b"", b"b"]));
    items.push(Item::native(b"h", Type::Hash, &[b"f", b"1", b"g", b"2"]));
    items.push(Item::native(
        b"z",
        Type::ZSet,
        &[b"m", b"1.5", b"n", b"-inf"],
    ));
    items.push(Item::native(b"u", Type::Set, &[b"x", b"y"]));
    let pieces = noise(bytes);
    for (n, piece) in pieces.chunks(700).enumerate() {
        let key = format!("noise-{n}");
        items.push(Item::record(key.as_bytes(), &record_of(piece)));
    }
    items
}

fn write_with(head: Head, sealer: Sealer<'_>, chunk: usize, items: &[Item]) -> (Vec<u8>, Manifest) {
    let mut writer = Writer::create(vec![], head, sealer).unwrap();
    writer.set_chunk(chunk);
    for item in items {
        item.with(|entry| writer.entry(entry)).unwrap();
    }
    writer.finish().unwrap()
}

fn plain(chunk: usize, items: &[Item]) -> Vec<u8> {
    write_with(head(), Sealer::plain(), chunk, items).0
}

fn sealed(ring: &Keyring, chunk: usize, items: &[Item]) -> Vec<u8> {
    write_with(
        head(),
        Sealer::with_key(ring.active(), &RANDOM),
        chunk,
        items,
    )
    .0
}

/// Reads all of it; gives how many entries there were before the end, or the error.
fn read(file: &[u8], ring: Option<&Keyring>) -> Result<usize, BackupError> {
    let mut reader = Reader::open(file, ring)?;
    let mut n = 0;
    while reader.next()?.is_some() {
        n += 1;
    }
    assert!(reader.next()?.is_none() && reader.manifest().is_some());
    Ok(n)
}

/// What is wrong with a file that is damaged.
fn damage(file: &[u8], ring: Option<&Keyring>) -> &'static str {
    match read(file, ring) {
        Err(BackupError::Damaged(what, at)) => {
            assert!(at <= file.len() as u64, "{at} of {}", file.len());
            what
        }
        other => panic!("{other:?}"),
    }
}

/// The file as it is described: what comes before the chunks, and each chunk.
fn pieces(file: &[u8]) -> Vec<Vec<u8>> {
    let length = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let mut at = 8;
    at += 4 + length(at) as usize;
    at += 4 + length(at) as usize;
    let mut pieces = vec![file[..at].to_vec()];
    while at < file.len() {
        let end = at + 4 + (length(at) & !(1 << 31)) as usize;
        pieces.push(file[at..end].to_vec());
        at = end;
    }
    pieces
}

/// A backup made by hand, from the description alone, of chunks that need not make sense.
struct Book {
    out: Vec<u8>,
    bound: [u8; 32],
    cipher: Option<Aes256Gcm>,
    place: u64,
    tags: Sha256,
}

impl Book {
    fn new(head: &[u8], key: Option<&[u8; 32]>) -> Book {
        let mut out = b"MAOSBKP\x01".to_vec();
        out.extend((head.len() as u32).to_le_bytes());
        out.extend(head);
        let bound: [u8; 32] = Sha256::digest(&out).into();
        let mut envelope = vec![0];
        if let Some(key) = key {
            let (data_key, rest) = RANDOM.split_at(32);
            let (salt, nonce) = rest.split_at(32);
            let mut wrap = [0; 32];
            let derived = Hkdf::<Sha256>::new(Some(salt), key);
            derived.expand(b"maos backup 1 wrap", &mut wrap).unwrap();
            let mut wrapped = data_key.to_vec();
            let tag = Aes256Gcm::new(&wrap.into())
                .encrypt_in_place_detached(nonce.into(), &bound, &mut wrapped)
                .unwrap();
            envelope = b"\x01\x03one".to_vec();
            for part in [salt, nonce, &wrapped, &tag] {
                envelope.extend(part);
            }
        }
        out.extend((envelope.len() as u32).to_le_bytes());
        out.extend(envelope);
        Book {
            out,
            bound,
            cipher: key.map(|_| Aes256Gcm::new(RANDOM[..32].into())),
            place: 0,
            tags: Sha256::new(),
        }
    }

    /// A chunk with a right tag.
    fn chunk(mut self, last: bool, body: &[u8]) -> Book {
        let mut body = body.to_vec();
        let word = u32::from(last) << 31 | (body.len() + 16) as u32;
        let mut beside = self.bound.to_vec();
        beside.extend(word.to_le_bytes());
        beside.extend(self.place.to_le_bytes());
        let tag: Vec<u8> = match &self.cipher {
            Some(cipher) => {
                let mut nonce = [0; 12];
                nonce[4..].copy_from_slice(&self.place.to_le_bytes());
                let tag = cipher.encrypt_in_place_detached(&nonce.into(), &beside, &mut body);
                tag.unwrap().to_vec()
            }
            None => {
                let all = [b"maos backup 1 plain", &beside[..], &body].concat();
                Sha256::digest(all)[..16].to_vec()
            }
        };
        self.out.extend(word.to_le_bytes());
        self.out.extend(body);
        self.out.extend(&tag);
        self.tags.update(&tag);
        self.place += 1;
        self
    }

    fn raw(self, last: bool, raw: &[u8]) -> Book {
        self.chunk(last, &[b"\0", raw].concat())
    }

    /// The last chunk: these numbers, the tags of the chunks before, and something behind them.
    fn manifest(self, numbers: [u64; 6], behind: &[u8]) -> Vec<u8> {
        let mut manifest = numbers.into_iter().flat_map(number).collect::<Vec<_>>();
        manifest.extend(self.tags.clone().finalize());
        manifest.extend(behind);
        self.raw(true, &manifest).out
    }
}

/// A number as the encoding writes it.
fn number(n: u64) -> Vec<u8> {
    match n {
        0..251 => vec![n as u8],
        251..65_536 => vec![251, n as u8, (n >> 8) as u8],
        65_536..4_294_967_296 => [&[252][..], &(n as u32).to_le_bytes()].concat(),
        _ => [&[253][..], &n.to_le_bytes()].concat(),
    }
}

fn bytes(bytes: &[u8]) -> Vec<u8> {
    [&number(bytes.len() as u64), bytes].concat()
}

/// The head of [`head`], by the description.
fn head_by_hand() -> Vec<u8> {
    [
        &[7; 16][..],
        b"\x07nightly\x06node-1",
        &number(1_790_000_100_000_000),
        b"\x02\x02a:\x01\xff\x01",
        &[6; 16],
        &number(1_790_000_000_000_000),
        b"\x01\x050.1.0",
    ]
    .concat()
}

/// An entry by the description.
fn entry_by_hand(kind: u64, parts: &[&[u8]]) -> Vec<u8> {
    [number(kind), bytes(&parts.concat())].concat()
}

fn item() -> impl Strategy<Value = Item> {
    let (records, definitions) = things();
    let element = prop::collection::vec(any::<u8>(), 0..30);
    let long = prop_oneof![
        3 => 0usize..2000,
        // More than one chunk of the largest.
        1 => CHUNK..3 * CHUNK,
    ];
    let elements = prop::collection::vec((element.clone(), element.clone(), -1e9..1e9f64), 1..20);
    let what = prop_oneof![
        6 => prop::sample::select(records).prop_map(What::Record),
        1 => long.clone().prop_map(|len| What::Record(record_of(&noise(len)))),
        1 => long.prop_map(|len| What::Record(record_of(&vec![b'a'; len]))),
        3 => (0..=Stamp::MAX.0).prop_map(What::Unchanged),
        1 => prop::sample::select(definitions).prop_map(What::Definition),
        3 => (0usize..5, any::<u64>(), elements).prop_map(|(kind, read_ms, elements)| {
            let types = [Type::String, Type::List, Type::Set, Type::Hash, Type::ZSet];
            let elements = elements.into_iter().flat_map(|(one, two, score)| match kind {
                3 => vec![one, two],
                4 => vec![one, score.to_string().into_bytes()],
                _ => vec![one],
            });
            let most = if kind == 0 { 1 } else { usize::MAX };
            What::Native(types[kind], read_ms, elements.take(most).collect())
        }),
    ];
    let expires = prop::option::of(1u64..=1 << 62);
    (0..=i32::MAX as u32, element, expires, what).prop_map(|(db, key, expires_ms, what)| Item {
        db,
        key,
        expires_ms: expires_ms.filter(|ms| *ms <= i64::MAX as u64 / 2),
        what,
    })
}

/// What gives and takes a few bytes at a time, and is interrupted.
struct Slow<T>(T, usize);

impl<T: Read> Read for Slow<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        let some = into.len().min(1 + self.1 % 7);
        match self.1 % 5 {
            0 => Err(io::ErrorKind::Interrupted.into()),
            _ => self.0.read(&mut into[..some]),
        }
    }
}

/// A target with room for so many bytes, which fails once, and then has room again.
#[derive(Debug)]
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            self.0 = usize::MAX;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let some = bytes.len().min(self.0);
        self.0 -= some;
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever entries there are, wherever chunks end.
    #[test]
    fn what_was_written_is_read(
        items in prop::collection::vec(item(), 0..30),
        chunk in prop_oneof![1usize..40, 40usize..5000, Just(CHUNK)],
        with_key in any::<bool>(),
        slow in any::<bool>(),
    ) {
        // A chunk of some bytes is a file for each of them.
        let chunk = match items.iter().any(|i| matches!(&i.what, What::Record(r) if r.len() > CHUNK)) {
            true => chunk.max(1000),
            false => chunk,
        };
        let ring = ring("one=11");
        let sealer = match with_key {
            true => Sealer::with_key(ring.active(), &RANDOM),
            false => Sealer::plain(),
        };
        let (file, written) = write_with(head(), sealer, chunk, &items);
        let source: Box<dyn Read> = match slow && file.len() < 100_000 {
            true => Box::new(Slow(&file[..], 0)),
            false => Box::new(&file[..]),
        };
        let mut reader = Reader::open(source, Some(&ring)).unwrap();
        prop_assert_eq!(reader.head(), &head());
        prop_assert_eq!(reader.key_id(), with_key.then_some("one"));
        for item in &items {
            prop_assert!(reader.manifest().is_none());
            let entry = reader.next().unwrap();
            item.with(|written| assert_eq!(entry.as_ref(), Some(written)));
        }
        prop_assert!(reader.next().unwrap().is_none());
        prop_assert!(reader.next().unwrap().is_none());
        prop_assert_eq!(reader.manifest(), Some(&written));
        prop_assert_eq!(written.entries(), items.len() as u64);
        let verified = verify(&mut Reader::open(&file[..], Some(&ring)).unwrap());
        prop_assert_eq!(verified.unwrap(), written);
    }
}

#[test]
fn the_manifest_tells_how_much_there_is_and_the_newest_stamp() {
    let items = items(0);
    let (_, manifest) = write_with(head(), Sealer::plain(), CHUNK, &items);
    let kinds = (manifest.records, manifest.unchanged, manifest.definitions);
    assert_eq!((kinds, manifest.natives), ((6, 1, 2), 5));
    let mut newest = Stamp::NONE;
    for item in &items {
        if let What::Record(bytes) = &item.what {
            let (record, _) = decode_record(bytes, Bounds::HARD, &mut Interner::default()).unwrap();
            newest = newest.max(record.newest());
        }
    }
    assert_eq!(manifest.newest, newest);
    let (_, empty) = write_with(head(), Sealer::plain(), CHUNK, &[]);
    assert_eq!(
        (empty.entries(), empty.bytes, empty.newest),
        (0, 0, Stamp::NONE)
    );
}

#[test]
fn a_file_made_by_the_description_alone_is_what_the_writer_makes() {
    let record = record_of(b"v");
    let items = [Item::record(b"k", &record)];
    let stream = entry_by_hand(1, &[b"\0\x01k\0", &bytes(&record)]);
    let newest = newest_of(&record).unwrap().0;
    let ring = ring("one=11");
    for (key, written) in [
        (None, plain(40, &items)),
        (Some(&ONE), sealed(&ring, 40, &items)),
    ] {
        let mut book = Book::new(&head_by_hand(), key);
        for raw in stream.chunks(40) {
            book = book.raw(false, raw);
        }
        let file = book.manifest([1, 0, 0, 0, stream.len() as u64, newest], b"");
        assert_eq!(file, written);
        assert_eq!(read(&file, Some(&ring)).unwrap(), 1);
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let kib = std::env::var("MAOS_TEST_FLIPS").map_or(6, |kib| kib.parse().unwrap());
    let (items, ring) = (items(kib << 10), ring("one=11"));
    for (file, ring) in [
        (plain(kib << 8, &items), None),
        (sealed(&ring, kib << 8, &items), Some(&ring)),
    ] {
        assert!(
            file.len() > kib << 10 && pieces(&file).len() > 4,
            "{}",
            file.len()
        );
        assert_eq!(read(&file, ring).unwrap(), items.len());
        let mut flipped = file.clone();
        for at in 0..8 * file.len() {
            flipped[at / 8] ^= 1 << (at % 8);
            match read(&flipped, ring) {
                Err(BackupError::Io(e)) => panic!("bit {at}: {e}"),
                Err(_) => {}
                Ok(_) => panic!("bit {at} of {} makes no difference", file.len()),
            }
            flipped[at / 8] = file[at / 8];
        }
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let (items, ring) = (items(3000), ring("one=11"));
    for (file, ring) in [
        (plain(500, &items), None),
        (sealed(&ring, 500, &items), Some(&ring)),
    ] {
        for len in 0..file.len() {
            match read(&file[..len], ring) {
                Err(BackupError::NotABackup) => assert!(len < 8),
                Err(BackupError::Damaged("it ends before its end", at)) => {
                    assert!(len >= 8 && at <= len as u64, "{at} of {len}");
                }
                other => panic!("{len}: {other:?}"),
            }
        }
    }
}

#[test]
fn nothing_may_follow_the_end() {
    let (items, ring) = (items(0), ring("one=11"));
    for (file, ring) in [
        (plain(500, &items), None),
        (sealed(&ring, 500, &items), Some(&ring)),
    ] {
        for byte in 0..=255 {
            let longer = [&file[..], &[byte]].concat();
            assert_eq!(damage(&longer, ring), "something follows its end");
        }
        let twice = [&file[..], &file].concat();
        assert_eq!(damage(&twice, ring), "something follows its end");
    }
}

const WRONG_PLACE: &str = "a chunk is not what was written in its place";

#[test]
fn chunks_that_are_swapped_doubled_left_out_or_of_another_file_are_refused() {
    let (items, ring) = (items(3000), ring("one=11"));
    // The same entries and keys, another head; and sealed with the same key, which is another file all the same.
    let mut other_head = head();
    other_head.id = [8; 16];
    let mut other_random = RANDOM;
    other_random[0] ^= 1;
    let sealer = Sealer::with_key(ring.active(), &RANDOM);
    let other = Sealer::with_key(ring.active(), &other_random);
    for (file, others, ring) in [
        (
            plain(500, &items),
            vec![write_with(other_head.clone(), Sealer::plain(), 500, &items).0],
            None,
        ),
        (
            sealed(&ring, 500, &items),
            vec![
                write_with(other_head, sealer, 500, &items).0,
                write_with(head(), other, 500, &items).0,
            ],
            Some(&ring),
        ),
    ] {
        let whole = pieces(&file);
        assert_eq!(whole.concat(), file);
        let chunks = 1..whole.len();
        assert!(chunks.len() > 5);
        for at in chunks.clone() {
            let mut doubled = whole.clone();
            doubled.insert(at, whole[at].clone());
            let what = damage(&doubled.concat(), ring);
            match at + 1 == chunks.end {
                true => assert_eq!(what, "something follows its end"),
                false => assert_eq!(what, WRONG_PLACE),
            }
            let mut dropped = whole.clone();
            dropped.remove(at);
            match at + 1 == chunks.end {
                true => assert_eq!(damage(&dropped.concat(), ring), "it ends before its end"),
                false => assert_eq!(damage(&dropped.concat(), ring), WRONG_PLACE),
            }
            for to in at + 1..chunks.end {
                let mut swapped = whole.clone();
                swapped.swap(at, to);
                assert_eq!(
                    damage(&swapped.concat(), ring),
                    WRONG_PLACE,
                    "{at} and {to}"
                );
            }
            for other in &others {
                let mut spliced = whole.clone();
                spliced[at] = pieces(other)[at].clone();
                assert_eq!(damage(&spliced.concat(), ring), WRONG_PLACE, "{at}");
            }
        }
        // All of the chunks of one file behind the head of the other.
        for other in &others {
            let mut spliced = pieces(other);
            spliced[0] = whole[0].clone();
            assert_eq!(damage(&spliced.concat(), ring), WRONG_PLACE);
        }
    }
}

#[test]
fn chunks_of_two_files_with_one_head_are_not_mixed() {
    // A tag cannot tell them apart, where nothing is sealed: the manifest can.
    let value = |byte: u8| [Item::record(b"k", &record_of(&[byte; 60]))];
    let (one, two) = (plain(CHUNK, &value(b'a')), plain(CHUNK, &value(b'b')));
    let (mut mixed, other) = (pieces(&one), pieces(&two));
    mixed[1] = other[1].clone();
    assert_eq!(
        damage(&mixed.concat(), None),
        "its chunks are not those that it was closed with"
    );
}

#[test]
fn being_the_last_chunk_is_sealed_with_it() {
    let (items, ring) = (items(3000), ring("one=11"));
    for (file, ring) in [
        (plain(500, &items), None),
        (sealed(&ring, 500, &items), Some(&ring)),
    ] {
        let whole = pieces(&file);
        for at in 1..whole.len() {
            let mut flipped = whole.clone();
            flipped[at][3] ^= 0x80;
            assert_eq!(damage(&flipped.concat(), ring), WRONG_PLACE);
            assert_eq!(damage(&flipped[..=at].concat(), ring), WRONG_PLACE);
        }
    }
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let record = record_of(b"v");
    let newest = newest_of(&record).unwrap().0;
    let stream = entry_by_hand(1, &[b"\0\x01k\0", &bytes(&record)]);
    let right = [1, 0, 0, 0, stream.len() as u64, newest];
    for key in [None, Some(&ONE)] {
        let ring = ring("one=11");
        let book = || Book::new(&head_by_hand(), key).raw(false, &stream);
        assert_eq!(read(&book().manifest(right, b""), Some(&ring)).unwrap(), 1);
        for at in 0..right.len() {
            for by in [1, u64::MAX] {
                let mut wrong = right;
                wrong[at] = wrong[at].wrapping_add(by);
                assert_eq!(
                    damage(&book().manifest(wrong, b""), Some(&ring)),
                    "its entries are not as many as it says, or others",
                    "{at}"
                );
            }
        }
        let more = book().manifest(right, b"\0");
        assert_eq!(damage(&more, Some(&ring)), "bytes are left over");
        let mut other = book();
        other.tags.update(b"another chunk");
        assert_eq!(
            damage(&other.manifest(right, b""), Some(&ring)),
            "its chunks are not those that it was closed with"
        );
        let none = book().raw(true, b"\x01").out;
        assert!(read(&none, Some(&ring)).is_err());
    }
}

#[test]
fn a_stream_that_makes_no_sense_is_refused() {
    let record = record_of(b"v");
    let (k, longest) = (&b"\0\x01k\0"[..], number(u64::MAX));
    let late = number(i64::MAX as u64);
    let at = |stream: &[&[u8]]| [&b"\0\x01k\0\0"[..], &stream.concat()].concat();
    for (stream, what) in [
        (
            entry_by_hand(0, &[k]),
            "an entry of a kind that only a later version knows",
        ),
        (
            entry_by_hand(5, &[k]),
            "an entry of a kind that only a later version knows",
        ),
        (
            [&b"\x09"[..], &number(1 << 30)].concat(),
            "an entry of a kind that only a later version knows",
        ),
        (
            [&b"\x01"[..], &longest].concat(),
            "an entry longer than 4 GiB",
        ),
        (
            [&b"\x01"[..], &number((1 << 32) + 1)].concat(),
            "an entry longer than 4 GiB",
        ),
        (
            [&b"\x01\xff"[..], &[0; 20]].concat(),
            "an entry that does not say how long it is",
        ),
        (vec![1, 0xff], "the last entry is cut"),
        (
            [&b"\x01"[..], &number(1 << 32)].concat(),
            "the last entry is cut",
        ),
        (vec![1], "the last entry is cut"),
        (
            entry_by_hand(1, &[]),
            "the bytes end in the middle of a field",
        ),
        (
            entry_by_hand(1, &[b"\0\x01k\0", &longest]),
            "the bytes end in the middle of a field",
        ),
        (
            entry_by_hand(1, &[b"\0", &longest]),
            "the bytes end in the middle of a field",
        ),
        (
            entry_by_hand(1, &[k, &bytes(&record), b"\0"]),
            "bytes are left over",
        ),
        (
            entry_by_hand(1, &[k, &bytes(&record[..9])]),
            "the bytes end in the middle of a field",
        ),
        (
            entry_by_hand(1, &[k, &bytes(b"\x02")]),
            "the encoding is not 1",
        ),
        (
            entry_by_hand(1, &[&number(1 << 31), b"\x01k\0", &bytes(&record)]),
            "a database that there cannot be",
        ),
        (
            entry_by_hand(1, &[&number(1 << 32), b"\x01k\0", &bytes(&record)]),
            "a database that there cannot be",
        ),
        (
            entry_by_hand(1, &[b"\0\x01k", &late, &bytes(&record)]),
            "a time to expire that there cannot be",
        ),
        (
            entry_by_hand(2, &[b"\0\x01k", &number(1 << 53), b"\0"]),
            "a version too far in the future",
        ),
        (
            entry_by_hand(2, &[b"\0\x01k\x01\0\0"]),
            "bytes are left over",
        ),
        (
            entry_by_hand(3, &[k, &bytes(b"\x01\x09")]),
            "a type that only a later version knows",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x05\x01\x01v"])]),
            "a type that only a later version knows",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x00\x00"])]),
            "a native key with a number of elements that its type cannot have",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x00\x02\x01v\x01v"])]),
            "a native key with a number of elements that its type cannot have",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x02\x00"])]),
            "a native key with a number of elements that its type cannot have",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x03\x03\x01f\x01v\x01g"])]),
            "a native key with a number of elements that its type cannot have",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x04\x02\x01m\x01x"])]),
            "a score that is no number",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x04\x02\x01m\x03nan"])]),
            "a score that is no number",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x01", &longest])]),
            "a count is larger than what follows",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x01\x02\x01v\x09v"])]),
            "the bytes end in the middle of a field",
        ),
        (
            entry_by_hand(4, &[&at(&[b"\x01\x01\x01v\x01v"])]),
            "bytes are left over",
        ),
    ] {
        for size in [1, stream.len()] {
            let mut book = Book::new(&head_by_hand(), None);
            for raw in stream.chunks(size) {
                book = book.raw(false, raw);
            }
            let file = book.manifest([1, 0, 0, 0, stream.len() as u64, 0], b"");
            assert_eq!(damage(&file, None), what, "{stream:?}");
        }
    }
}

#[test]
fn a_chunk_that_makes_no_sense_is_refused() {
    let packed = |len: u32, packed: &[u8]| [&b"\x01"[..], &len.to_le_bytes(), packed].concat();
    for (body, what) in [
        (
            b"\x02x".to_vec(),
            "a chunk packed in a way that nobody knows here",
        ),
        (
            b"\x01x".to_vec(),
            "a chunk that does not say how long it was",
        ),
        (
            packed(0, b"\0"),
            "a chunk that unpacks to more than one can hold",
        ),
        (
            packed(CHUNK as u32 + 1, b"\0"),
            "a chunk that unpacks to more than one can hold",
        ),
        (
            packed(u32::MAX, b"\0"),
            "a chunk that unpacks to more than one can hold",
        ),
        // A run of four bytes, which are said to be three, or five; and one that refers to what never was.
        (packed(3, b"\x40abcd"), "a chunk that does not unpack"),
        (packed(5, b"\x40abcd"), "a chunk that does not unpack"),
        (packed(9, b"\x14a\xff\xff"), "a chunk that does not unpack"),
        (b"\0".to_vec(), "a chunk of a length that there cannot be"),
        (b"".to_vec(), "a chunk of a length that there cannot be"),
        (
            vec![0; CHUNK + 2],
            "a chunk of a length that there cannot be",
        ),
    ] {
        for key in [None, Some(&ONE)] {
            for last in [false, true] {
                let book = Book::new(&head_by_hand(), key).chunk(last, &body);
                assert_eq!(damage(&book.out, Some(&ring("one=11"))), what);
            }
        }
    }
}

#[test]
fn an_incremental_or_native_entry_needs_a_head_that_says_so() {
    let (full, plain_head) = (
        Head {
            parent: None,
            ..head()
        },
        Head {
            natives: false,
            ..head()
        },
    );
    let same = Item {
        what: What::Unchanged(5),
        ..Item::record(b"k", b"")
    };
    let native = Item::native(b"k", Type::String, &[b"v"]);
    for (head, item) in [(full, same), (plain_head, native)] {
        // What the other head lets be written does not become right with this one.
        let mut writer = Writer::create(vec![], head, Sealer::plain()).unwrap();
        let refused = item.with(|entry| writer.entry(entry));
        assert!(matches!(refused, Err(BackupError::Unfit(_))), "{refused:?}");
        let (file, manifest) = writer.finish().unwrap();
        assert_eq!(manifest.entries(), 0, "nothing of it was written");
        assert_eq!(read(&file, None).unwrap(), 0);
    }
    let flagless = [&[7; 16][..], b"\x07nightly\x00\x05\x00\x00\x00\x00"].concat();
    for entry in [
        entry_by_hand(2, &[b"\0\x01k\x05\0"]),
        entry_by_hand(4, &[b"\0\x01k\0\0\0\x01\x01v"]),
    ] {
        let book = Book::new(&flagless, None).raw(false, &entry);
        let what = damage(&book.manifest([0; 6], b""), None);
        assert!(what.contains("in a backup"), "{what}");
    }
}

#[test]
fn what_cannot_be_read_is_not_written() {
    let mut writer = Writer::create(vec![], head(), Sealer::plain()).unwrap();
    let fits = Item::record(b"k", &record_of(b"v"));
    for item in [
        Item {
            db: 1 << 31,
            ..fits.clone()
        },
        Item {
            expires_ms: Some(0),
            ..fits.clone()
        },
        Item {
            expires_ms: Some(u64::MAX),
            ..fits.clone()
        },
        Item::record(b"k", b"no record"),
        Item {
            what: What::Definition(b"none".to_vec()),
            ..fits.clone()
        },
        Item {
            what: What::Unchanged(1 << 53),
            ..fits.clone()
        },
        Item::native(b"k", Type::Set, &[]),
        Item::native(b"k", Type::Hash, &[b"f"]),
        Item::native(b"k", Type::ZSet, &[b"m", b"much"]),
    ] {
        let refused = item.with(|entry| writer.entry(entry));
        assert!(matches!(refused, Err(BackupError::Unfit(_))), "{item:?}");
    }
    fits.with(|entry| writer.entry(entry)).unwrap();
    let (file, _) = writer.finish().unwrap();
    assert_eq!(read(&file, None).unwrap(), 1);
}

#[test]
fn a_head_beyond_its_bounds_is_neither_written_nor_read() {
    let long: Box<[u8]> = [b'x'; 513].into();
    let with = |change: &dyn Fn(&mut Head)| {
        let mut head = head();
        change(&mut head);
        Writer::create(vec![], head, Sealer::plain()).map(|w| w.finish().unwrap().0)
    };
    for (n, change) in [
        &(|h: &mut Head| h.name = "".into()) as &dyn Fn(&mut Head),
        &|h| h.name = "x".repeat(65).into(),
        &|h| h.name = "Nightly".into(),
        &|h| h.name = "../up".into(),
        &|h| h.node = [0; 65].into(),
        &|h| h.instant = Stamp::NONE,
        &|h| h.instant = Stamp(1 << 53),
        &|h| {
            h.parent = Some(Parent {
                id: [6; 16],
                instant: Stamp::NONE,
            })
        },
        &|h| {
            h.parent = Some(Parent {
                id: h.id,
                instant: h.instant,
            })
        },
        &|h| h.prefixes = vec![long.clone()],
        &|h| h.prefixes.push((*b"").into()),
        &|h| h.prefixes = vec![(*b"x").into(); 1025],
        &|h| h.made_with = "x".repeat(33).into(),
        &|h| h.made_with = "0.1\n".into(),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(matches!(with(change), Err(BackupError::Unfit(_))), "{n}");
    }
    let most = with(&|h| {
        h.name = "x".repeat(64).into();
        h.node = [255; 64].into();
        h.prefixes = vec![[255; 512].into(); 1024];
        h.made_with = "x".repeat(32).into();
    });
    let most = most.unwrap();
    assert_eq!(read(&most, None).unwrap(), 0);
    assert!(pieces(&most)[0].len() < LEAD_MAX);
    let right = head_by_hand();
    assert_eq!(
        read(&Book::new(&right, None).manifest([0; 6], b""), None).unwrap(),
        0
    );
    for (at, byte) in [
        (17, b'N'),
        (17, 0),
        (31, 0xff),
        (40, 255),
        (46, 2),
        (72, 2),
        (72, 128),
        (74, b' '),
    ] {
        let mut wrong = right.clone();
        wrong[at] = byte;
        let file = Book::new(&wrong, None).manifest([0; 6], b"");
        assert!(read(&file, None).is_err(), "{at}");
    }
    for len in 0..right.len() {
        let file = Book::new(&right[..len], None).manifest([0; 6], b"");
        assert!(read(&file, None).is_err(), "{len}");
    }
    let more = [&right[..], b"\0"].concat();
    let file = Book::new(&more, None).manifest([0; 6], b"");
    assert_eq!(damage(&file, None), "bytes are left over");
}

#[test]
fn only_the_key_that_sealed_it_opens_a_backup() {
    let items = items(0);
    let file = sealed(&ring("one=11"), 500, &items);
    let missing = |refused| match refused {
        Err(BackupError::NoKey { id }) => assert_eq!(&*id, "one"),
        other => panic!("{other:?}"),
    };
    missing(read(&file, None));
    missing(read(&file, Some(&ring("two=11"))));
    match read(&file, Some(&ring("one=12"))) {
        Err(BackupError::WrongKey { id }) => assert_eq!(&*id, "one"),
        other => panic!("{other:?}"),
    }
    // One that seals no longer still opens.
    assert_eq!(
        read(&file, Some(&ring("two=22 one=11"))).unwrap(),
        items.len()
    );
    // A plain one opens with any ring, and says what it is.
    let file = plain(500, &items);
    let ring = ring("two=22");
    assert_eq!(Reader::open(&file[..], Some(&ring)).unwrap().key_id(), None);
    assert_eq!(read(&file, Some(&ring)).unwrap(), items.len());
}

#[test]
fn a_backup_is_given_to_another_key_and_its_payload_stays() {
    let items = items(3000);
    let (old, new) = (ring("one=11"), ring("new-key=22"));
    let file = sealed(&old, 500, &items);
    let random = [9; REWRAP_RANDOM];
    let (front, from) = rewrap(&file, &old, new.active(), &random).unwrap();
    let payload = &file[from as usize..];
    assert_eq!(pieces(&file)[0].len() as u64, from);
    let given = [&front[..], payload].concat();
    let mut reader = Reader::open(&given[..], Some(&new)).unwrap();
    assert_eq!((reader.head(), reader.key_id()), (&head(), Some("new-key")));
    assert_eq!(verify(&mut reader).unwrap().entries(), items.len() as u64);
    assert!(matches!(
        read(&given, Some(&old)),
        Err(BackupError::NoKey { .. })
    ));
    // No more of the file is needed than what comes before the chunks.
    let (same, _) = rewrap(&file[..from as usize], &old, new.active(), &random).unwrap();
    assert_eq!(same, front);
    for len in 0..from as usize {
        assert!(rewrap(&file[..len], &old, new.active(), &random).is_err());
    }
    assert!(matches!(
        rewrap(&file, &new, new.active(), &random),
        Err(BackupError::NoKey { .. })
    ));
    assert!(matches!(
        rewrap(&file, &ring("one=12"), new.active(), &random),
        Err(BackupError::WrongKey { .. })
    ));
    assert!(matches!(
        rewrap(&plain(500, &items), &old, new.active(), &random),
        Err(BackupError::Plain)
    ));
    // The head of another backup does not come in on the way.
    let mut other = file.clone();
    other[12] ^= 1;
    assert!(matches!(
        rewrap(&other, &old, new.active(), &random),
        Err(BackupError::WrongKey { .. })
    ));
}

#[test]
fn of_a_sealed_file_no_key_and_no_value_is_seen() {
    let canaries = [
        &b"canary-in-a-key"[..],
        b"canary-in-a-value",
        b"canary-in-an-element",
        b"canary-in-a-member",
    ];
    let (key, ring) = (canaries[0], ring("one=11"));
    let items = [
        Item::record(key, &record_of(canaries[1])),
        Item::native(key, Type::List, &[canaries[2]]),
        Item::native(key, Type::ZSet, &[canaries[3], b"1"]),
    ];
    let seen = |file: &[u8], canary: &[u8]| file.windows(canary.len()).any(|w| w == canary);
    for chunk in [100, CHUNK] {
        let (open, shut) = (plain(chunk, &items), sealed(&ring, chunk, &items));
        assert!(canaries[1].windows(8).any(|part| seen(&open, part)));
        for canary in canaries {
            // Not by a part either.
            assert!(canary.windows(8).all(|part| !seen(&shut, part)));
        }
        assert!(
            !seen(&shut, &ONE[..8]) && !seen(&shut, &RANDOM[..8]),
            "no key is in it"
        );
    }
}

#[test]
fn what_is_no_backup_and_what_is_newer_is_told_apart() {
    let file = plain(500, &items(0));
    for other in [
        &b""[..],
        b"MAOSBKP",
        b"REDIS0011",
        b"MAOSBKP\0",
        b"maosbkp\x01and so on",
        &[0; 4096],
    ] {
        assert!(matches!(read(other, None), Err(BackupError::NotABackup)));
    }
    for version in 2..=255 {
        let mut newer = file.clone();
        newer[7] = version;
        match read(&newer, None) {
            Err(BackupError::Newer { version: told }) => assert_eq!(told, version),
            other => panic!("{other:?}"),
        }
    }
    // A way of sealing that is not known, an envelope that holds too much, or too little.
    let at = pieces(&file)[0].len() - 1;
    let mut otherwise = file.clone();
    otherwise[at] = 2;
    assert_eq!(
        damage(&otherwise, None),
        "it is sealed in a way that nobody knows here"
    );
    let longer = [&file[..at - 4], &[2, 0, 0, 0, 0, 0], &file[at + 1..]].concat();
    assert_eq!(damage(&longer, None), "bytes are left over");
}

#[test]
fn two_backups_of_the_same_have_the_same_sum() {
    let sum_of = |file: &[u8]| sum(&mut Reader::open(file, None).unwrap()).unwrap().1;
    let items = items(3000);
    let one = sum_of(&plain(CHUNK, &items));
    let mut turned = items.clone();
    turned.reverse();
    assert_eq!(sum_of(&plain(77, &turned)), one, "in whatever order");
    for at in 0..items.len() {
        let mut less = items.clone();
        less.remove(at);
        assert_ne!(sum_of(&plain(CHUNK, &less)), one);
        for change in [
            &(|i: &mut Item| i.key.push(0)) as &dyn Fn(&mut Item),
            &|i| i.db += 1,
            &|i| i.expires_ms = Some(i.expires_ms.unwrap_or(0) + 1),
        ] {
            let mut other = items.clone();
            change(&mut other[at]);
            assert_ne!(sum_of(&plain(CHUNK, &other)), one);
        }
    }
    let same =
        |one: Item, other: Item| sum_of(&plain(CHUNK, &[one])) == sum_of(&plain(CHUNK, &[other]));
    // Compressed or not.
    let mut m = Model::at(1_790_000_000_000_000);
    for value in [&[b'a'; 900][..], b"now"] {
        m.now_us += 1;
        m.run(&[b"MAOS.SET", b"k", value]).unwrap();
    }
    let mut long = vec![];
    encode_record(&m.keys()[&b"k"[..]].record, None, &mut long);
    let (mut record, _) = decode_record(&long, Bounds::HARD, &mut Interner::default()).unwrap();
    record.pack(8, usize::MAX);
    let mut packed = vec![];
    encode_record(&record, None, &mut packed);
    assert!(packed.len() < long.len());
    assert!(same(Item::record(b"k", &long), Item::record(b"k", &packed)));
    // Order, where it says something.
    let native = |kind, elements: &[&[u8]]| Item::native(b"k", kind, elements);
    assert!(same(
        native(Type::Set, &[b"a", b"b"]),
        native(Type::Set, &[b"b", b"a"])
    ));
    assert!(same(
        native(Type::Hash, &[b"a", b"1", b"b", b"2"]),
        native(Type::Hash, &[b"b", b"2", b"a", b"1"])
    ));
    assert!(!same(
        native(Type::Hash, &[b"a", b"1", b"b", b"2"]),
        native(Type::Hash, &[b"a", b"2", b"b", b"1"])
    ));
    assert!(!same(
        native(Type::List, &[b"a", b"b"]),
        native(Type::List, &[b"b", b"a"])
    ));
    assert!(!same(
        native(Type::List, &[b"a", b"b"]),
        native(Type::Set, &[b"a", b"b"])
    ));
    assert!(!same(
        native(Type::List, &[b"ab", b"c"]),
        native(Type::List, &[b"a", b"bc"])
    ));
    let mut later = native(Type::String, &[b"v"]);
    later.what = What::Native(Type::String, 1, vec![b"v".to_vec()]);
    assert!(same(native(Type::String, &[b"v"]), later));
}

#[test]
fn a_record_that_does_not_decode_is_found_by_verify() {
    let mut bad = record_of(b"v");
    // A flag of its version that nobody knows.
    let at = bad.len() - 2;
    bad[at] |= 0x80;
    let file = plain(CHUNK, &[Item::record(b"k", &bad)]);
    assert_eq!(read(&file, None).unwrap(), 1);
    for refused in [
        verify(&mut Reader::open(&file[..], None).unwrap()).err(),
        sum(&mut Reader::open(&file[..], None).unwrap()).err(),
    ] {
        let told = matches!(
            refused,
            Some(BackupError::Damaged("a version that makes no sense", _))
        );
        assert!(told, "{refused:?}");
    }
}

#[test]
fn a_backup_whose_target_failed_is_never_finished() {
    let (items, whole) = (items(3000), plain(500, &items(3000)).len());
    for room in 0..whole {
        let written = Writer::create(Full(room), head(), Sealer::plain()).and_then(|mut writer| {
            writer.set_chunk(500);
            for item in &items {
                // Whoever does not look at the outcome of an entry is told at the end.
                let _ = item.with(|entry| writer.entry(entry));
            }
            writer.finish()
        });
        assert!(
            matches!(written, Err(BackupError::Io(_))),
            "{room} of {whole}"
        );
    }
}

#[test]
fn after_an_error_nothing_more_is_read() {
    // One chunk too many, which is nothing: without it the file is right.
    let mut whole = pieces(&plain(500, &items(3000)));
    whole.insert(3, whole[3].clone());
    whole[3][20] ^= 1;
    let file = whole.concat();
    let mut reader = Reader::open(&file[..], None).unwrap();
    let first = loop {
        match reader.next() {
            Ok(entry) => assert!(entry.is_some()),
            Err(e) => break e,
        }
    };
    assert!(
        matches!(first, BackupError::Damaged(WRONG_PLACE, _)),
        "{first}"
    );
    for _ in 0..3 {
        assert!(matches!(reader.next(), Err(BackupError::Damaged(..))));
        assert!(reader.manifest().is_none());
    }
}

#[test]
fn errors_are_one_printable_line() {
    for error in [
        BackupError::Damaged("the last entry is cut", 7),
        BackupError::WrongKey { id: "one".into() },
        BackupError::NoKey { id: "one".into() },
        BackupError::NotABackup,
        BackupError::Newer { version: 2 },
        BackupError::Plain,
        BackupError::Unfit("a score that is no number"),
        BackupError::Io(io::ErrorKind::StorageFull.into()),
    ] {
        let text = error.to_string();
        assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
        assert!(!text.contains("  ") && text.len() > 30, "{text}");
    }
    // An id that is no id is not shown.
    let file = sealed(&ring("one=11"), 500, &[]);
    let at = pieces(&file)[0].len() - 32 - 12 - 48 - 3;
    assert_eq!(&file[at..at + 3], b"one");
    let mut other = file;
    other[at] = b'\n';
    assert_eq!(damage(&other, None), "the id of its key cannot be one");
}
