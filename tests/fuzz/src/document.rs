//! Documents, patches, pointers and merges of any bytes: what is refused changes nothing, what is taken is JSON,
//! and the order of two who merge makes no difference to whether they conflict.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maos_core::json::{self, Node};
use maos_core::json::merge::{merge, Merged};
use maos_core::json::node::Work;
use maos_core::model::Model;
use maos_core::wire::Value;
use maos_fuzz::same_again;

/// Three documents, and whether they conflict.
fn conflicts(base: &[u8], one: &[u8], other: &[u8]) -> Option<bool> {
    let node = |bytes| Node::parse("a document", bytes).ok();
    let merged = merge(&node(base)?, node(one)?, node(other)?, &mut Work::default());
    Some(matches!(merged.ok()?, Merged::Conflicts(_)))
}

fuzz_target!(|data: &[u8]| {
    let parts: Vec<&[u8]> = data.splitn(4, |b| *b == 0).collect();
    let &[base, theirs, mine, path] = &parts[..] else {
        return;
    };
    if let (Some(a), Some(b)) = (conflicts(base, theirs, mine), conflicts(base, mine, theirs)) {
        assert_eq!(a, b, "whose it is decides");
    }
    let mut store = Model::at(1_790_000_000_000_000);
    let Ok(Value::Int(version)) = store.run(&[b"MAOS.SET", b"k", base]) else {
        return;
    };
    let version = version.to_string();
    let base_version = version.as_bytes();
    let lines: [&[&[u8]]; 7] = [
        &[b"MAOS.PATCH", b"k", theirs],
        &[b"MAOS.PATCH", b"k", mine, b"JSONPATCH"],
        &[b"MAOS.MERGE", b"k", base_version, mine, b"STRATEGY", b"MERGE"],
        &[b"MAOS.MERGE", b"k", base_version, mine, b"STRATEGY", b"LWW", b"TS", b"7"],
        &[b"MAOS.INCRBY", b"k", b"1.5", b"PATH", path],
        &[b"MAOS.INCRBY", b"k", path],
        &[b"MAOS.TXN", b"2", b"k", b"n", b"THEN", b"SET", b"n", b"1", b"THEN", b"PATCH", b"k", mine],
    ];
    for line in lines {
        store.now_us += 10;
        let before = store.keys().clone();
        match store.run(line) {
            Err(_) => assert_eq!(store.keys(), &before, "a refusal changed something"),
            Ok(_) => {
                let value = store.keys()[&b"k"[..]].record.current().value();
                let value = value.unwrap_or_default();
                let changed = before[&b"k"[..]].record != store.keys()[&b"k"[..]].record;
                // What is only put in the place of another is not looked into.
                let whole = line[0] == b"MAOS.MERGE" && (*value == *mine || line.len() > 6);
                assert!(!changed || whole || Node::parse("what was made", &value).is_ok());
            }
        }
    }
    for held in store.keys().values() {
        same_again(&held.record);
    }
    let _ = json::diff(base, theirs);
});
