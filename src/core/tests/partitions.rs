//! Partitions: what is charged, what is refused, what may always be done.

use maos_core::generate::Generator;
use maos_core::model::Model;
use maos_core::partition::{Ledger, Place, Usage};
use maos_core::record::Record;
use maos_core::wire::Value;
use maos_core::Code;

/// So much is held, of whatever partition.
struct Fixed(Usage);

impl Ledger for Fixed {
    fn usage(&self, _: Place) -> Usage {
        self.0
    }
}

const START_US: u64 = 1_790_000_000_000_000;

fn ask(m: &mut Model, line: &str) -> Result<Value, Code> {
    m.now_us += 1000;
    let words: Vec<Vec<u8>> = words(line);
    let line: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    m.run(&line).map_err(|refusal| refusal.code)
}

/// Words; `x*100` is a hundred x.
fn words(line: &str) -> Vec<Vec<u8>> {
    let word = |w: &str| match w.split_once('*') {
        Some((what, times)) if times.parse::<usize>().is_ok() => {
            what.repeat(times.parse().unwrap()).into_bytes()
        }
        _ => w.as_bytes().to_vec(),
    };
    line.split(' ').map(word).collect()
}

fn all(m: &mut Model, lines: &[&str]) {
    for line in lines {
        ask(m, line).unwrap_or_else(|code| panic!("{line}: {}", code.word()));
    }
}

fn used(m: &Model, name: &str) -> (u64, u64) {
    let usage = m.usage(name.as_bytes());
    (usage.bytes, usage.keys)
}

fn record<'m>(m: &'m Model, key: &str) -> &'m Record {
    &m.keys()[key.as_bytes()].record
}

fn partition_of(m: &Model, key: &str) -> Option<String> {
    let place = record(m, key).member().place();
    let name = m.partition(place).map(<[u8]>::to_vec)?;
    String::from_utf8(name).ok()
}

#[test]
fn what_is_charged_is_what_is_held_whatever_comes() {
    for seed in 0..if cfg!(debug_assertions) { 6 } else { 60 } {
        let mut generator = Generator::new(seed);
        let mut m = Model::at(START_US);
        m.limits.value_max = 4000;
        m.limits.history_versions = 20;
        let mut charged = 0;
        for n in 0..3000 {
            m.now_us += 1000;
            let request = generator.request(&m);
            let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
            let _ = m.run(&line);
            if n % 7 == 0 {
                let key = generator.keys[n % generator.keys.len()].clone();
                m.tend(&key);
            }
            for (key, held) in m.keys() {
                let member = held.record.member();
                if member.place().is_some() {
                    charged += 1;
                    assert_eq!(held.record.charge(), held.record.recount(key.len()), "{n}");
                    assert_eq!(member.key_len(), key.len());
                }
            }
            // Who was refused changed nothing, and nobody holds more than it may.
            for (name, defined) in m.defined() {
                let used = m.usage(name).bytes;
                let quota = defined.definition.quota;
                assert!(
                    used <= quota,
                    "{used} of {quota} at {n} of seed {seed}: {request:?}"
                );
            }
        }
        assert!(charged > 100, "seed {seed}: {charged}");
    }
}

#[test]
fn the_size_that_is_foretold_is_the_size_that_comes() {
    for seed in 100..if cfg!(debug_assertions) { 104 } else { 140 } {
        let mut generator = Generator::new(seed);
        let mut m = Model::at(START_US);
        m.limits.value_max = 3000;
        m.limits.history_versions = 6;
        let mut foretold = 0;
        for _ in 0..2000 {
            m.now_us += 1000;
            let request = generator.request(&m);
            let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
            let mut before = m.clone();
            let sent = m.sent.len();
            let _ = m.run(&line);
            for message in &m.sent[sent..] {
                let pairs = || message[1..].chunks_exact(2).map(|p| (&p[0][..], &p[1][..]));
                let mut interner = maos_core::Interner::default();
                let change = maos_core::codec::v1::decode_fact(&message[0], pairs(), &mut interner);
                let Ok(change) = change else { continue };
                for (n, write) in change.writes.iter().enumerate() {
                    let held = before.keys().get(write.key).map(|h| h.record.clone());
                    let said = change.charge_after(n, held.as_ref());
                    let mut after = held;
                    match &mut after {
                        Some(record) => drop(change.apply(n, Some(record))),
                        None => after = change.apply(n, None),
                    }
                    let after = after.filter(|r| !r.is_empty());
                    let came = after.map_or(0, |r| r.recount(write.key.len()));
                    let request = request.iter().map(|w| w.escape_ascii().to_string());
                    assert_eq!(said, came, "{:?}", request.collect::<Vec<_>>());
                    foretold += 1;
                }
                before.receive(message).unwrap();
            }
        }
        assert!(foretold > 200, "{foretold}");
    }
}

#[test]
fn a_write_for_which_there_is_no_room_changes_nothing() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE p BYTES 1000 PREFIX a",
            "MAOS.SET a1 x*500",
        ],
    );
    let (before, sent, clock) = (m.keys().clone(), m.sent.len(), m.clock.last());
    for line in [
        "MAOS.SET a2 x*500",
        "MAOS.MSET 2 b 1 a2 x*500",
        "MAOS.SET c x*900 PARTITION p",
        "MAOS.PATCH a3 {\"v\":\"TEXT\"}",
        "MAOS.TXN 2 a1 a2 THEN SET a1 1 THEN SET a2 x*900",
        "MAOS.LOCK a2 owner*40 60000 NOTE n*400",
        "MAOS.SET a1 x*501",
    ] {
        let line = line.replace("TEXT", &"x".repeat(900));
        assert_eq!(ask(m, &line), Err(Code::Quota), "{line}");
    }
    assert_eq!(m.keys(), &before);
    assert_eq!((m.sent.len(), m.clock.last()), (sent, clock));
    // The figures are told.
    let words = words("MAOS.SET a2 x*500");
    let line: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let said = m.run(&line).unwrap_err().to_string();
    let need = size_of::<Record>() + 8 + 500 + 2;
    assert!(
        said.contains(&format!("holds {need} of 1000 bytes")),
        "{said}"
    );
    assert!(said.contains(&format!("needs {need} more")), "{said}");
}

#[test]
fn what_shrinks_is_always_written() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE p BYTES 1000 PREFIX a",
            "MAOS.SET a1 x*700",
        ],
    );
    let (full, _) = used(m, "p");
    assert_eq!(ask(m, "MAOS.SET a2 x*300"), Err(Code::Quota));
    // The value that is replaced goes, for there is no room for it in the history.
    all(m, &["MAOS.SET a1 x*400"]);
    assert!(used(m, "p").0 < full);
    assert_eq!(record(m, "a1").len(), 1);
    // Deletions take no more than there was.
    all(m, &["MAOS.SET a2 x*200"]);
    let mut before = used(m, "p").0;
    for line in ["MAOS.DEL a2", "MAOS.DEL a1", "DEL a1", "DEL a2"] {
        all(m, &[line]);
        let now = used(m, "p").0;
        assert!(now <= 1000, "{line}: {now}");
        before = now;
    }
    assert_eq!(before, 0);
    // One byte is the smallest value there is: its deletion too.
    all(
        m,
        &[
            "MAOS.PARTITION CREATE q BYTES 51 PREFIX b",
            "MAOS.SET b1 x",
            "MAOS.DEL b1",
        ],
    );
    assert_eq!(record(m, "b1").len(), 1);
    assert!(record(m, "b1").live().is_none());
}

#[test]
fn no_more_history_gives_way_than_must() {
    let m = &mut Model::at(START_US);
    all(m, &["MAOS.PARTITION CREATE p BYTES 2000 PREFIX a"]);
    for _ in 0..5 {
        all(m, &["MAOS.SET a1 x*100"]);
    }
    let held = record(m, "a1").len();
    assert_eq!(held, 5);
    let (used_, _) = used(m, "p");
    all(m, &[&format!("MAOS.SET a2 x*{}", 2000 - used_ - 50 - 60)]);
    // Sixty bytes are left, a version takes 121: one goes.
    all(m, &["MAOS.SET a1 x*100"]);
    assert_eq!(record(m, "a1").len(), 5);
    assert!(used(m, "p").0 <= 2000);
    // A larger value is not given room so.
    assert_eq!(ask(m, "MAOS.SET a1 x*250"), Err(Code::Quota));
    assert_eq!(record(m, "a1").len(), 5);
}

#[test]
fn the_longest_prefix_wins_and_a_partition_that_is_named_goes_before() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE short BYTES 10000 PREFIX a PREFIX z",
            "MAOS.PARTITION CREATE long BYTES 10000 PREFIX ab:",
            "MAOS.PARTITION CREATE longer BYTES 10000 PREFIX ab:c:",
            "MAOS.SET ab v",
            "MAOS.SET ab:1 v",
            "MAOS.SET ab:c v",
            "MAOS.SET ab:c:1 v",
            "MAOS.SET ab:c:2 v PARTITION short",
            "MAOS.SET abx v",
            "MAOS.SET b v",
        ],
    );
    let of = |m: &Model, key: &str| partition_of(m, key).unwrap_or_default();
    let keys = ["ab", "ab:1", "ab:c", "ab:c:1", "ab:c:2", "abx", "b"];
    let homes = keys.map(|key| of(m, key));
    assert_eq!(
        homes,
        ["short", "long", "long", "longer", "short", "short", ""]
    );
    // What was named stays, and is named anew.
    all(
        m,
        &[
            "MAOS.SET ab:c:2 w",
            "MAOS.INCRBY n 1 PARTITION long",
            "MAOS.INCRBY n 1",
        ],
    );
    assert_eq!(of(m, "ab:c:2"), "short");
    assert_eq!(of(m, "n"), "long");
    let before = used(m, "short");
    all(m, &["MAOS.SET ab:c:2 w PARTITION longer"]);
    assert_eq!(of(m, "ab:c:2"), "longer");
    assert!(used(m, "short").0 < before.0 && used(m, "short").1 == before.1 - 1);
    assert_eq!(used(m, "longer").1, 2);
    assert_eq!(
        ask(m, "MAOS.SET ab:1 v PARTITION none"),
        Err(Code::NotFound)
    );
    // A prefix that comes or goes is followed when the key is next written.
    all(
        m,
        &["MAOS.PARTITION ALTER longer NOPREFIX", "MAOS.SET ab:c:1 w"],
    );
    assert_eq!(of(m, "ab:c:1"), "long");
    all(
        m,
        &[
            "MAOS.PARTITION DROP long FORCE",
            "MAOS.SET ab:c:1 w",
            "MAOS.SET n 1",
        ],
    );
    assert_eq!([of(m, "ab:c:1"), of(m, "n")], ["short", ""]);
}

#[test]
fn the_pool_is_not_given_twice() {
    let m = &mut Model::at(START_US);
    m.limits.pool = 1000;
    all(m, &["MAOS.PARTITION CREATE p BYTES 600"]);
    for (line, code) in [
        ("MAOS.PARTITION CREATE q BYTES 401", Code::PoolFull),
        (
            "MAOS.PARTITION CREATE q BYTES 9007199254740991",
            Code::PoolFull,
        ),
        ("MAOS.PARTITION CREATE q BYTES 0", Code::Err),
        ("MAOS.PARTITION CREATE q BYTES -1", Code::Err),
        ("MAOS.PARTITION CREATE q BYTES 9007199254740992", Code::Err),
        (
            "MAOS.PARTITION CREATE q BYTES 18446744073709551617",
            Code::Err,
        ),
        ("MAOS.PARTITION ALTER p BYTES 1001", Code::PoolFull),
        ("MAOS.PARTITION CREATE p BYTES 1", Code::Exists),
        ("MAOS.PARTITION CREATE q BYTES 1 TYPE temporary", Code::Err),
        (
            "MAOS.PARTITION CREATE q BYTES 1 TYPE temporary TTL 0",
            Code::Err,
        ),
        (
            "MAOS.PARTITION CREATE q BYTES 1 TYPE agent_dedicated",
            Code::Err,
        ),
        (
            "MAOS.PARTITION CREATE q BYTES 1 TYPE shared_pool AGENT a",
            Code::Err,
        ),
        ("MAOS.PARTITION CREATE q BYTES 1 TYPE other", Code::Err),
        ("MAOS.PARTITION CREATE q TYPE shared_pool", Code::Err),
    ] {
        assert_eq!(ask(m, line), Err(code), "{line}");
    }
    assert_eq!(m.directory().count(), 1);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE q BYTES 400",
            "MAOS.PARTITION ALTER p BYTES 500",
            "MAOS.PARTITION ALTER q BYTES 500",
            "MAOS.PARTITION DROP p",
            "MAOS.PARTITION ALTER q BYTES 1000",
        ],
    );
    // A pool that has become too small refuses what grows, and nothing else.
    m.limits.pool = 100;
    all(m, &["MAOS.PARTITION ALTER q BYTES 900 HISTORY 3"]);
    assert_eq!(
        ask(m, "MAOS.PARTITION ALTER q BYTES 901"),
        Err(Code::PoolFull)
    );
}

#[test]
fn definitions_that_clash_are_refused() {
    let m = &mut Model::at(START_US);
    m.foreign.insert(b"list".to_vec());
    all(
        m,
        &[
            "MAOS.SET state v",
            "MAOS.PARTITION CREATE p BYTES 1000 PREFIX a PREFIX b",
        ],
    );
    for (line, code) in [
        ("MAOS.PARTITION CREATE state BYTES 1", Code::WrongType),
        ("MAOS.PARTITION CREATE list BYTES 1", Code::WrongType),
        ("MAOS.PARTITION INFO state", Code::WrongType),
        (
            "MAOS.PARTITION CREATE q BYTES 1 PREFIX c PREFIX a",
            Code::Exists,
        ),
        (
            "MAOS.PARTITION CREATE q BYTES 1 PREFIX c PREFIX c",
            Code::Err,
        ),
        ("MAOS.PARTITION ALTER p PREFIX c NOPREFIX", Code::Err),
        ("MAOS.PARTITION ALTER p", Code::Err),
        ("MAOS.PARTITION DROP q", Code::NotFound),
        ("MAOS.PARTITION INFO q", Code::NotFound),
        ("MAOS.SET p v", Code::WrongType),
        ("MAOS.GET p", Code::WrongType),
    ] {
        assert_eq!(ask(m, line), Err(code), "{line}");
    }
    // Its own prefixes are no clash.
    all(
        m,
        &[
            "MAOS.PARTITION ALTER p PREFIX b PREFIX c",
            "MAOS.PARTITION CREATE q BYTES 1000 PREFIX a",
        ],
    );
    all(m, &["MAOS.SET a1 x*500"]);
    assert_eq!(ask(m, "MAOS.PARTITION ALTER q BYTES 500"), Err(Code::Quota));
    all(m, &["MAOS.PARTITION ALTER q BYTES 600"]);
}

#[test]
fn a_partition_has_policies_of_its_own() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE p BYTES 100000 PREFIX a HISTORY 3 MAXVALUE 10 TTL 5000 ONCONFLICT merge",
            "MAOS.SET b0 {\"n\":1}",
        ],
    );
    assert_eq!(ask(m, "MAOS.SET a1 x*11"), Err(Code::TooBig));
    assert_eq!(ask(m, "MAOS.MSET 2 b x*11 a1 x*11"), Err(Code::TooBig));
    assert_eq!(ask(m, "MAOS.SET b x*11 PARTITION p"), Err(Code::TooBig));
    for _ in 0..6 {
        all(m, &["MAOS.SET a1 {\"n\":1}", "MAOS.SET b1 {\"n\":1}"]);
    }
    assert_eq!([record(m, "a1").len(), record(m, "b1").len()], [3, 6]);
    let expires = |m: &Model, key: &str| m.keys()[key.as_bytes()].expires_ms;
    assert_eq!(expires(m, "a1"), Some(m.now_us / 1000 - 1 + 5000));
    assert_eq!(expires(m, "b1"), None);
    // What is said goes before it; what reads and changes leaves the expiry.
    all(
        m,
        &[
            "MAOS.SET a2 1 PX 90000",
            "MAOS.INCRBY a2 1",
            "MAOS.INCRBY a3 1",
        ],
    );
    assert_eq!(expires(m, "a2"), Some(m.now_us / 1000 - 2 + 90_000));
    assert_eq!(expires(m, "a3"), Some(m.now_us / 1000 + 5000));
    // Merges that name no strategy.
    for (key, merged) in [("a1", true), ("b1", false)] {
        let base = record(m, key).current().stamp();
        all(m, &[&format!("MAOS.SET {key} {{\"m\":1}}")]);
        let reply = ask(m, &format!("MAOS.MERGE {key} {base} {{\"n\":1}}")).unwrap();
        let Value::Array(items) = reply else { panic!() };
        assert_eq!(items[0], Value::Int(i64::from(merged)), "{key}");
    }
    // Age.
    all(m, &["MAOS.PARTITION ALTER p MAXAGE 10 HISTORY 0"]);
    m.now_us += 20_000;
    m.tend(b"a1");
    assert_eq!(record(m, "a1").len(), 1);
    m.tend(b"b1");
    assert!(record(m, "b1").len() > 5);
}

#[test]
fn who_may_write_is_said_by_the_partition() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE mine BYTES 10000 TYPE agent_dedicated AGENT a PREFIX m:",
            "MAOS.PARTITION CREATE ours BYTES 10000 PREFIX o:",
            "MAOS.SET m:1 v BY a",
            "MAOS.SET m:1 v",
            "MAOS.SET o:1 v BY b",
        ],
    );
    for line in [
        "MAOS.SET m:1 v BY b",
        "MAOS.DEL m:1 BY b",
        "MAOS.SET x v BY b PARTITION mine",
        "MAOS.MSET 2 x 1 m:2 2 BY b",
    ] {
        assert_eq!(ask(m, line), Err(Code::NoPerm), "{line}");
    }
    all(
        m,
        &["MAOS.PARTITION ALTER mine AGENT b", "MAOS.SET m:1 v BY b"],
    );
    assert_eq!(ask(m, "MAOS.SET m:1 v BY a"), Err(Code::NoPerm));
    all(
        m,
        &[
            "MAOS.PARTITION ALTER mine TYPE shared_pool",
            "MAOS.SET m:1 v BY a",
        ],
    );
    // One that is persistent is dropped with FORCE only; one that has keys too.
    all(m, &["MAOS.PARTITION CREATE kept BYTES 1 TYPE persistent"]);
    for name in ["kept", "ours"] {
        assert_eq!(
            ask(m, &format!("MAOS.PARTITION DROP {name}")),
            Err(Code::Exists)
        );
        let dropped = ask(m, &format!("MAOS.PARTITION DROP {name} FORCE"));
        assert_eq!(dropped, Ok(Value::Int(i64::from(name == "ours"))));
    }
    assert!(m.keys().contains_key(&b"o:1"[..]));
}

#[test]
fn nothing_grows_in_a_partition_that_has_yet_to_be_heard_of() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE p BYTES 10000",
            "MAOS.SET k v PARTITION p",
            "MAOS.SET free v",
        ],
    );
    m.set_complete(false);
    all(m, &["MAOS.PARTITION DROP p FORCE"]);
    let whole = |m: &Model, replaced: usize| {
        let none = Usage::default();
        let admitted = m
            .directory()
            .admit_whole(b"copy", record(m, "k"), replaced, &Fixed(none));
        admitted.map_err(|refusal| refusal.code)
    };
    assert_eq!(ask(m, "MAOS.SET k w*100"), Err(Code::NotFound));
    assert_eq!(whole(m, 0), Err(Code::NotFound));
    // What takes no more than it gives back needs no room.
    let charge = record(m, "k").charge();
    assert_eq!(whole(m, charge), Ok(()));
    all(m, &["MAOS.SET free w*100"]);
    assert_eq!(ask(m, "MAOS.GET k"), Ok(Value::Bulk(b"v".to_vec())));
    // Once there can be none, it is nobody's.
    m.set_complete(true);
    assert_eq!(whole(m, 0), Ok(()));
    all(m, &["MAOS.SET k w*100"]);
    assert_eq!(partition_of(m, "k"), None);
}

#[test]
fn a_temporary_partition_leaves_with_its_keys() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE run BYTES 100000 TYPE temporary TTL 60000 PREFIX r:",
            "MAOS.SET r:1 v",
            "MAOS.SET else v PARTITION run",
            "MAOS.SET r:2 v EX 1000000",
            "MAOS.SET other v",
        ],
    );
    assert!(record(m, "else").member().dies());
    m.now_us += 59_000_000;
    m.expire();
    assert_eq!(m.keys().len(), 4);
    m.now_us += 2_000_000;
    m.expire();
    assert_eq!(m.keys().len(), 1);
    assert!(m.directory().is_idle());
    // Whoever drops it drops its keys.
    all(
        m,
        &[
            "MAOS.PARTITION CREATE run BYTES 100000 TYPE temporary TTL 60000 PREFIX r:",
            "MAOS.SET r:1 v",
            "MAOS.PARTITION DROP run FORCE",
        ],
    );
    assert_eq!(m.keys().len(), 1);
    // It may be told to stay.
    all(
        m,
        &[
            "MAOS.PARTITION CREATE run BYTES 100000 TYPE temporary TTL 60000 PREFIX r:",
            "MAOS.SET r:1 v",
            "MAOS.PARTITION ALTER run TYPE shared_pool",
            "MAOS.SET r:1 w",
        ],
    );
    assert!(!record(m, "r:1").member().dies());
    m.now_us += 90_000_000;
    m.expire();
    assert_eq!((m.keys().len(), m.directory().count()), (2, 1));
}

#[test]
fn the_keys_written_longest_ago_make_room() {
    let m = &mut Model::at(START_US);
    all(
        m,
        &[
            "MAOS.PARTITION CREATE p BYTES 1000 PREFIX a ONFULL evict",
            "MAOS.SET other v",
        ],
    );
    for n in 0..8 {
        all(m, &[&format!("MAOS.SET a{n} x*50")]);
    }
    // 100 bytes each: a0 and a1 are read, a0 is written; a1 is then the oldest.
    all(m, &["MAOS.GET a1", "MAOS.SET a0 x*51 PX 100000000"]);
    let left = 1000 - used(m, "p").0;
    let before = m.keys().len();
    all(m, &[&format!("MAOS.SET b x*{} PARTITION p", left + 10)]);
    assert!(!m.keys().contains_key(&b"a1"[..]) && m.keys().contains_key(&b"a0"[..]));
    assert!(used(m, "p").0 <= 1000);
    let gone = before + 1 - m.keys().len();
    assert!((1..=2).contains(&gone), "{gone}");
    // One who holds a key keeps it; the key that is written does not make room for itself.
    all(
        m,
        &[
            "MAOS.PARTITION CREATE q BYTES 700 PREFIX l ONFULL evict",
            "MAOS.SET l1 x*100",
        ],
    );
    all(m, &["MAOS.LOCK l1 owner 60000", "MAOS.SET l2 x*100"]);
    assert_eq!(ask(m, "MAOS.SET l2 x*600"), Err(Code::Quota));
    assert_eq!(ask(m, "MAOS.SET l3 x*600"), Err(Code::Quota));
    assert_eq!(used(m, "q").1, 2);
    all(m, &["MAOS.SET l3 x*150"]);
    assert!(!m.keys().contains_key(&b"l2"[..]) && m.keys().contains_key(&b"l1"[..]));
    // What is larger than the partition moves nobody.
    let before = m.keys().len();
    assert_eq!(ask(m, "MAOS.SET a9 x*2000"), Err(Code::Quota));
    assert_eq!(m.keys().len(), before);
}

#[test]
fn a_replica_charges_what_the_master_charged() {
    for seed in 200..if cfg!(debug_assertions) { 203 } else { 230 } {
        let mut generator = Generator::new(seed);
        let mut m = Model::at(START_US);
        m.limits.value_max = 2000;
        let mut replica = Model::at(START_US);
        for _ in 0..2000 {
            m.now_us += 1000;
            let request = generator.request(&m);
            let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
            let _ = m.run(&line);
            // On a server a key that expires is deleted there, too.
            replica.now_us = m.now_us;
            replica.expire();
            for message in std::mem::take(&mut m.sent) {
                replica.receive(&message).unwrap();
            }
        }
        replica.now_us = m.now_us;
        replica.expire();
        m.expire();
        let names = |m: &Model| {
            let mut names: Vec<_> = m
                .keys()
                .keys()
                .map(|k| k.escape_ascii().to_string())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&replica), names(&m));
        for (key, held) in m.keys() {
            assert_eq!(&replica.keys()[key], held, "{}", key.escape_ascii());
        }
        let mut members = 0;
        for (key, held) in m.keys() {
            let told = &replica.keys()[key].record;
            assert_eq!(m.share(&held.record), replica.share(told));
            members += usize::from(m.share(&held.record).is_some());
        }
        assert!(members > 0);
    }
}
