//! Frozen bytes: what encoding 1 writes, byte for byte. A released encoding is never edited; if one
//! of these has to change, a new encoding is needed instead.

use std::path::PathBuf;

use maos_core::codec::backup::{
    verify, Content, ElementsBuf, Entry, Head, Manifest, Native, Parent, Reader, Sealer, Type,
    Writer, SEAL_RANDOM,
};
use maos_core::codec::v1::{
    decode_definition, decode_fact, decode_record, encode_definition, encode_record, Bounds,
};
use maos_core::keyring::Keyring;
use maos_core::model::{Defined, Model};
use maos_core::record::Record;
use maos_core::{Interner, Stamp};

fn sample() -> Model {
    let mut m = Model::at(1_790_000_000_000_000);
    let mut run = |line: &[&[u8]]| {
        m.now_us += 1_000_000;
        m.run(line).unwrap();
    };
    run(&[b"MAOS.SET", b"plain", b"value"]);
    run(&[b"MAOS.SET", b"empty", b""]);
    run(&[
        b"MAOS.SET",
        b"told",
        b"{\"n\":1}",
        b"BY",
        b"planner",
        b"META",
        b"{\"why\":\"start\"}",
        b"REQID",
        b"r-1",
        b"PX",
        b"60000",
    ]);
    run(&[b"MAOS.SET", b"told", &[b'a'; 600], b"BY", b"worker"]);
    run(&[b"MAOS.SET", b"told", b"third"]);
    run(&[
        b"MAOS.ROLLBACK",
        b"told",
        b"VERSION",
        b"-2",
        b"BY",
        b"planner",
    ]);
    run(&[b"MAOS.DEL", b"told", b"BY", b"janitor"]);
    run(&[b"MAOS.MSET", b"2", b"x", b"1", b"y", b"2"]);
    m.limits.history_versions = 4;
    m.now_us += 1;
    m.run(&[b"MAOS.SET", b"told", b"again"]).unwrap();
    m.tend(b"told");
    m
}

/// Keys that are locked and fenced.
fn locked() -> Model {
    let mut m = Model::at(1_790_000_000_000_000);
    let mut token = None;
    for line in [
        "MAOS.SET held v FENCE zk 7",
        "MAOS.LOCK held a 60000 NOTE nightly",
        "MAOS.LOCK held a 1000",
        "MAOS.LOCK bare a 60000 ADVISORY",
        "MAOS.LOCK shared a 60000 SHARED",
        "MAOS.LOCK shared b 60000 SHARED",
        "MAOS.MLOCK 2 x y a 60000",
        "MAOS.UNLOCK x TOKEN",
        "MAOS.RENEW y TOKEN 90000",
        "MAOS.SET fenced v FENCE zk 9223372036854775807",
    ] {
        m.now_us += 1_000_000;
        let last: String = format!("{}", token.unwrap_or(0));
        let line = line.replace("TOKEN", &last);
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        m.run(&words).unwrap();
        if line.starts_with("MAOS.MLOCK") {
            token = Some(m.clock.last().0);
        }
    }
    m
}

/// Values whose writers say when they were made.
fn timed() -> Model {
    let mut m = Model::at(1_790_000_000_000_000);
    m.run(&[b"MAOS.SET", b"late", b"first"]).unwrap();
    for (ts, options) in [
        ("1790000009000", &[][..]),
        (
            "1790000005000",
            &[&b"BY"[..], b"b", b"META", b"{\"why\":1}"][..],
        ),
        ("1790000012000", &[b"REQID", b"r"]),
        ("1790000001000", &[]),
    ] {
        m.now_us += 1_000_000;
        let line = [
            &b"MAOS.MERGE"[..],
            b"late",
            b"1",
            ts.as_bytes(),
            b"STRATEGY",
            b"LWW",
            b"TS",
            ts.as_bytes(),
        ];
        m.run(&[&line[..], options].concat()).unwrap();
    }
    m
}

/// Keys that partitions are charged with.
fn shared() -> Model {
    let mut m = Model::at(1_790_000_000_000_000);
    for line in [
        "MAOS.PARTITION CREATE p BYTES 5000 PREFIX a: TYPE agent_dedicated AGENT planner ONFULL evict",
        "MAOS.PARTITION CREATE q BYTES 5000 TYPE temporary TTL 90000000 ONCONFLICT function f HISTORY 3 MAXAGE 7 MAXVALUE 9",
        "MAOS.PARTITION CREATE r BYTES 5000 PREFIX b PREFIX b:c TYPE persistent TTL 3 ONCONFLICT merge",
        "MAOS.SET a:1 v BY planner",
        "MAOS.SET a:1 w",
        "MAOS.SET x v PARTITION q",
        "MAOS.LOCK b:c:d owner 60000",
        "MAOS.MSET 2 a:2 1 y 2",
        "MAOS.SET x w PARTITION p",
        "MAOS.SET a:1 v PARTITION q FENCE zk 7",
        "MAOS.PARTITION DROP p FORCE",
        "MAOS.SET a:2 3",
    ] {
        m.now_us += 1_000_000;
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        m.run(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    m
}

fn definitions(m: &Model) -> Vec<String> {
    let defined = m.defined().iter();
    let line = |(name, d): (&Vec<u8>, &Defined)| {
        format!(
            "{} {}",
            name.escape_ascii(),
            hex(&encode_definition(&d.definition))
        )
    };
    let mut lines: Vec<_> = defined.map(line).collect();
    lines.sort();
    lines
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn encoded(m: &Model, record: &Record) -> Vec<u8> {
    let mut out = vec![];
    encode_record(record, m.share(record), &mut out);
    out
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

/// Compares with the frozen file. It is written only where there is none yet: a released one stays.
fn frozen(name: &str, lines: &[String]) {
    let path = golden(name);
    let text = lines.join("\n") + "\n";
    if !path.exists() && std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(
        kept,
        text,
        "{} is frozen; make a new encoding instead",
        path.display()
    );
}

fn records(m: &Model) -> Vec<String> {
    let mut lines: Vec<_> = m
        .keys()
        .iter()
        .map(|(key, held)| format!("{} {}", key.escape_ascii(), hex(&encoded(m, &held.record))))
        .collect();
    lines.sort();
    lines
}

fn facts(m: &Model) -> Vec<String> {
    m.sent
        .iter()
        .map(|message| {
            let parts: Vec<_> = message.iter().map(|p| hex(p)).collect();
            parts.join(" ")
        })
        .collect()
}

#[test]
fn records_are_encoded_as_they_were() {
    frozen("record-v1.txt", &records(&sample()));
    frozen("record-v1-locks.txt", &records(&locked()));
    frozen("record-v1-times.txt", &records(&timed()));
    frozen("record-v1-shares.txt", &records(&shared()));
}

#[test]
fn facts_are_encoded_as_they_were() {
    frozen("fact-v1.txt", &facts(&sample()));
    frozen("fact-v1-locks.txt", &facts(&locked()));
    // Merges say that they are, and did not at first: those facts only load.
    frozen("fact-v1-merges.txt", &facts(&timed()));
    frozen("fact-v1-shares.txt", &facts(&shared()));
}

#[test]
fn definitions_are_encoded_as_they_were() {
    let m = shared();
    frozen("definition-v1.txt", &definitions(&m));
    let kept = std::fs::read_to_string(golden("definition-v1.txt")).unwrap();
    for line in kept.lines() {
        let (name, bytes) = line.split_once(' ').unwrap();
        let definition = decode_definition(&unhex(bytes)).unwrap();
        assert_eq!(definition, m.defined()[name.as_bytes()].definition);
        let bytes = unhex(bytes);
        for at in 0..bytes.len() {
            assert!(decode_definition(&bytes[..at]).is_err(), "cut at {at}");
        }
        for at in 0..4 {
            let mut later = bytes.clone();
            later[at] = 200;
            assert!(decode_definition(&later).is_err(), "{at}");
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap())
        .collect()
}

#[test]
fn frozen_records_and_facts_still_load() {
    still_load(&sample(), "record-v1.txt", "fact-v1.txt");
    still_load(&locked(), "record-v1-locks.txt", "fact-v1-locks.txt");
    still_load(&timed(), "record-v1-times.txt", "fact-v1-times.txt");
    still_load(&timed(), "record-v1-times.txt", "fact-v1-merges.txt");
    still_load(&shared(), "record-v1-shares.txt", "fact-v1-shares.txt");
}

fn still_load(m: &Model, records: &str, facts: &str) {
    let records = std::fs::read_to_string(golden(records)).unwrap();
    for line in records.lines() {
        let (key, bytes) = line.split_once(' ').unwrap();
        let bytes = unhex(bytes);
        let (record, share) =
            decode_record(&bytes, Bounds::HARD, &mut Interner::default()).unwrap();
        let kept = &m.keys()[key.as_bytes()].record;
        assert_eq!((&record, share), (kept, m.share(kept)), "{key}");
    }
    let mut replica = Model::at(0);
    let facts = std::fs::read_to_string(golden(facts)).unwrap();
    for line in facts.lines() {
        let message: Vec<_> = line.split(' ').map(unhex).collect();
        replica.receive(&message).unwrap();
    }
    for (key, held) in m.keys() {
        let told = &replica.keys()[key].record;
        assert_eq!(&held.record, told);
        assert_eq!(m.share(&held.record), replica.share(told));
    }
}

#[test]
fn what_a_later_version_writes_is_refused() {
    let mut i = Interner::default();
    let m = sample();
    let plain = encoded(&m, &m.keys()[&b"plain"[..]].record);
    for (at, b) in [(0, 2), (1, 2), (1, 4), (1, 8), (1, 16), (1, 128)] {
        let mut later = plain.clone();
        later[at] = b;
        assert!(
            decode_record(&later, Bounds::HARD, &mut i).is_err(),
            "{at} {b}"
        );
    }
    let mut fact = m.sent[0][0].clone();
    fact[1] = 9;
    assert!(decode_fact(&fact, std::iter::empty(), &mut i).is_err());
}

/// A backup: of what is shared, or what changed since then; with this key or none.
fn backup(incremental: bool, ring: Option<&Keyring>) -> (Vec<u8>, Manifest) {
    let (m, random) = (
        shared(),
        std::array::from_fn::<u8, SEAL_RANDOM, _>(|n| n as u8),
    );
    let parent = Parent {
        id: [1; 16],
        instant: Stamp(1_790_000_005_000_000),
    };
    let head = Head {
        id: if incremental { [2; 16] } else { [1; 16] },
        name: "nightly-1".into(),
        node: (*b"node").into(),
        instant: Stamp(1_790_000_020_000_000),
        prefixes: if incremental {
            vec![(*b"a:").into(), (*b"x").into()]
        } else {
            vec![]
        },
        parent: incremental.then_some(parent),
        natives: !incremental,
        made_with: "0.1.0".into(),
    };
    let sealer = match ring {
        None => Sealer::plain(),
        Some(ring) => Sealer::with_key(ring.active(), &random),
    };
    let mut writer = Writer::create(vec![], head, sealer).unwrap();
    writer.set_chunk(400);
    let mut put = |key: &[u8], expires_ms, content: Content<'_>| {
        let entry = Entry {
            db: 1,
            key,
            expires_ms,
            content,
        };
        writer.entry(&entry).unwrap();
    };
    let mut names: Vec<_> = m.keys().iter().collect();
    names.sort_by_key(|(key, _)| key.to_vec());
    for (key, held) in names {
        let (bytes, stamp) = (encoded(&m, &held.record), held.record.current().stamp());
        let content = match incremental && stamp < parent.instant {
            true => Content::Unchanged(stamp),
            false => Content::Record(&bytes),
        };
        put(key, held.expires_ms, content);
    }
    let mut names: Vec<_> = m.defined().iter().filter(|_| !incremental).collect();
    names.sort_by_key(|(name, _)| name.to_vec());
    for (name, defined) in names {
        let bytes = encode_definition(&defined.definition);
        put(name, defined.expires_ms, Content::Definition(&bytes));
    }
    let natives: [(_, _, &[&[u8]]); 6] = [
        (&b"string"[..], Type::String, &[b"value"]),
        (b"list", Type::List, &[b"b", b"", b"b"]),
        (b"set", Type::Set, &[b"x", b"y"]),
        (b"hash", Type::Hash, &[b"f", b"1", b"g", b""]),
        (b"zset", Type::ZSet, &[b"m", b"-1.5", b"n", b"inf"]),
        // Longer than a chunk, and smaller when it is packed.
        (b"long", Type::String, &[&[b'a'; 1000]]),
    ];
    for (key, kind, elements) in natives.into_iter().filter(|_| !incremental) {
        let mut buf = ElementsBuf::default();
        elements.iter().for_each(|element| buf.push(element));
        let native = Native {
            kind,
            read_ms: 1_790_000_020_000,
            elements: buf.elements(),
        };
        put(key, Some(1_800_000_000_000), Content::Native(native));
    }
    writer.finish().unwrap()
}

#[test]
fn backups_are_written_as_they_were_and_still_load() {
    let ring = Keyring::parse(format!("golden {}", "0f".repeat(32)).as_bytes()).unwrap();
    for (name, incremental, ring) in [
        ("backup-v1-plain.txt", false, None),
        ("backup-v1-encrypted.txt", false, Some(&ring)),
        ("backup-v1-incremental.txt", true, None),
    ] {
        let (file, manifest) = backup(incremental, ring);
        frozen(name, &[hex(&file)]);
        let kept = std::fs::read_to_string(golden(name)).unwrap();
        let kept = unhex(kept.trim_end());
        let mut reader = Reader::open(&kept[..], ring).unwrap();
        assert_eq!(reader.head().parent.is_some(), incremental);
        assert_eq!(verify(&mut reader).unwrap(), manifest, "{name}");
    }
}
