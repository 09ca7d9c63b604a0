//! Merges and transactions: who wins, what is kept, and that it is all or nothing.

use maos_core::digest::Digest;
use maos_core::model::Model;
use maos_core::state::Question;
use maos_core::wire::Value;
use maos_core::{Code, Refusal};
use proptest::prelude::*;

const START_US: u64 = 1_790_000_000_000_000;

/// Runs a line of words; `'...'` is one word.
fn ask(m: &mut Model, line: &str) -> Result<Value, Refusal> {
    m.now_us += 1_000;
    let words = maos_core::transcript::split(line).expect("words");
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    m.run(&words)
}

fn int(value: &Value) -> i64 {
    match value {
        Value::Int(n) => *n,
        Value::Array(items) => int(&items[usize::from(items.len() > 1)]),
        other => panic!("{other:?} is no number"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

fn get(m: &mut Model, line: &str) -> String {
    text(&ask(m, &format!("MAOS.GET {line}")).unwrap())
}

fn how(reply: &Value) -> String {
    match reply {
        Value::Array(items) if items[0] == Value::Int(1) => text(&items[2]),
        other => format!("{other:?}"),
    }
}

/// What was sent makes the same of an empty store, which knows no functions.
fn replays(m: &Model) {
    let mut replica = Model::at(m.now_us);
    for message in &m.sent {
        replica.receive(message).unwrap();
    }
    assert_eq!(replica.keys(), m.keys());
}

#[test]
fn the_later_time_wins_whenever_it_arrives() {
    let m = &mut Model::at(START_US);
    let base = int(&ask(m, "MAOS.SET k base").unwrap());
    ask(m, "MAOS.SET k first").unwrap();
    let ms = START_US / 1000;
    m.now_us += 10_000_000;
    let merge = |m: &mut Model, value: &str, ts: u64| {
        let line = format!("MAOS.MERGE k {base} {value} STRATEGY LWW TS {ts} BY {value}");
        ask(m, &line).unwrap()
    };
    assert_eq!(how(&merge(m, "at3", ms + 3000)), "replaced");
    // Made before it, heard of after it: kept in the history, with its author.
    let kept = merge(m, "at2", ms + 2000);
    assert_eq!(how(&kept), "kept");
    assert_eq!(get(m, "k"), "at3");
    assert_eq!(get(m, "k VERSION -1"), "at2");
    let history = ask(m, "MAOS.HISTORY k VALUES").unwrap();
    let Value::Array(entries) = history else {
        panic!("no history")
    };
    let agents: Vec<String> = entries
        .iter()
        .map(|e| text(&e.clone().fields().unwrap().take("agent")))
        .collect();
    assert_eq!(agents, ["Null", "Null", "at3", "at2", "at3"]);
    // The version rises, and the time of what stands is still that of its writer: one who wrote after it
    // wins, though it is heard of long after.
    assert!(int(&kept) > int(&ask(m, "MAOS.GET k WITHVERSION VERSION -1").unwrap()));
    assert_eq!(how(&merge(m, "at4", ms + 4000)), "replaced");
    assert_eq!(how(&merge(m, "again3", ms + 3500)), "kept");
    assert_eq!(get(m, "k"), "at4");
    // Who says no time writes now.
    let now = ask(m, &format!("MAOS.MERGE k {base} now STRATEGY LWW")).unwrap();
    assert_eq!(how(&now), "replaced");
    // A plain write has the time of its stamp.
    ask(m, "MAOS.SET k plain").unwrap();
    assert_eq!(how(&merge(m, "late", ms + 5000)), "kept");
    assert_eq!(get(m, "k"), "plain");
    // A deletion too, and it stands.
    ask(m, "MAOS.DEL k").unwrap();
    assert_eq!(how(&merge(m, "later", ms + 6000)), "kept");
    assert_eq!(get(m, "k"), "Null");
    assert_eq!(get(m, "k VERSION -1"), "later");
    assert!(m.keys()[&b"k"[..]].expires_ms.is_some());
    let now_ms = m.now_us / 1000;
    assert_eq!(how(&merge(m, "new", now_ms + 10)), "replaced");
    let far = now_ms + m.limits.drift_us / 1000 + 1000;
    let line = format!("MAOS.MERGE k {base} never STRATEGY LWW TS {far}");
    assert_eq!(ask(m, &line).unwrap_err().code, Code::Limit);
    replays(m);
}

/// All that a digest is told.
#[derive(Default, PartialEq, Debug)]
struct Told(Vec<Vec<u8>>);

impl Digest for Told {
    fn number(&mut self, n: u64) {
        self.0.push(n.to_le_bytes().to_vec());
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.push(bytes.to_vec());
    }
    fn end(&mut self) {}
}

#[test]
fn the_time_that_a_writer_gave_is_part_of_what_it_wrote() {
    let with = |ts: u64| {
        let m = &mut Model::at(START_US);
        ask(m, "MAOS.SET k base").unwrap();
        let line = format!("MAOS.MERGE k 5 v STRATEGY LWW TS {ts}");
        ask(m, &line).unwrap();
        m.keys()[&b"k"[..]].record.clone()
    };
    let (one, other) = (with(START_US / 1000 + 5), with(START_US / 1000 + 6));
    assert_eq!(one, with(START_US / 1000 + 5));
    assert_ne!(one, other);
    let told = |record| {
        let mut told = Told::default();
        maos_core::digest::show(record, None, &mut told);
        told
    };
    assert_ne!(told(&one), told(&other));
}

#[test]
fn a_loser_is_kept_within_the_limits_of_the_history() {
    let m = &mut Model::at(START_US);
    for versions in 1..5 {
        m.limits.history_versions = versions;
        let base = int(&ask(m, "MAOS.SET k base").unwrap());
        ask(m, "MAOS.SET k stands").unwrap();
        let line = format!("MAOS.MERGE k {base} lost STRATEGY LWW TS 1");
        assert_eq!(how(&ask(m, &line).unwrap()), "kept");
        assert_eq!(get(m, "k"), "stands");
        let record = &m.keys()[&b"k"[..]].record;
        assert!(record.len() <= versions, "{} versions", record.len());
        replays(m);
    }
}

#[test]
fn a_retry_is_told_what_was_done() {
    let m = &mut Model::at(START_US);
    let base = int(&ask(m, r#"MAOS.SET k '{"a":1,"b":1}'"#).unwrap());
    for (strategy, value, word) in [
        ("MERGE", r#"{"a":2,"b":1}"#, "fast-forward"),
        ("MERGE", r#"{"a":1,"b":2}"#, "merged"),
        ("LWW", r#"{"x":1}"#, "replaced"),
        ("LWW TS 1", r#"{"y":1}"#, "kept"),
    ] {
        let line = format!("MAOS.MERGE k {base} '{value}' STRATEGY {strategy} REQID '{value}'");
        let first = ask(m, &line).unwrap();
        assert_eq!(how(&first), word);
        let sent = m.sent.len();
        assert_eq!(ask(m, &line).unwrap(), first, "{line}");
        assert_eq!(m.sent.len(), sent);
    }
    let line =
        r#"MAOS.TXN 2 k n THEN SET k '{"z":1}' THEN INCRBY n 5 THEN GET k THEN DEL n REQID t"#;
    let line = line.replace(" THEN DEL n", "");
    let first = ask(m, &line).unwrap();
    ask(m, "MAOS.SET k later").unwrap();
    ask(m, "MAOS.INCRBY n 1").unwrap();
    assert_eq!(ask(m, &line).unwrap(), first);
    let writes = ask(m, "MAOS.TXN 1 k THEN GET k ELSE SET k 1 REQID t2");
    assert_eq!(writes.unwrap_err().code, Code::Err);
}

fn joined(question: &Question<'_>) -> Result<Vec<u8>, Refusal> {
    let [base, theirs, mine] = [0, 1, 2].map(|n| String::from_utf8_lossy(&question.values[n]));
    match &*question.function {
        b"join" => Ok(format!("[{base},{theirs},{mine}]").into_bytes()),
        b"text" => Ok(b"no json".to_vec()),
        b"theirs" => Ok(question.values[1].clone()),
        b"long" => Ok(format!("\"{}\"", "x".repeat(1000)).into_bytes()),
        _ => Err(Refusal::fixed(Code::Err, "it failed")),
    }
}

#[test]
fn what_a_function_makes_is_what_travels() {
    let m = &mut Model::at(START_US);
    m.functions = Some(joined);
    m.limits.value_max = 500;
    ask(m, "MAOS.SET k 1").unwrap();
    let base = int(&ask(m, "MAOS.SET k 2").unwrap());
    let merge = |m: &mut Model, base: i64, value: &str, name: &str| {
        let line = format!("MAOS.MERGE k {base} {value} STRATEGY FUNCTION {name}");
        ask(m, &line)
    };
    assert_eq!(how(&merge(m, base, "3", "join").unwrap()), "fast-forward");
    assert_eq!(how(&merge(m, base, "4", "join").unwrap()), "merged");
    assert_eq!(get(m, "k"), "[2,3,4]");
    // Where there was nothing to begin with.
    assert_eq!(how(&merge(m, 0, "5", "join").unwrap()), "merged");
    assert_eq!(get(m, "k"), "[null,[2,3,4],5]");
    assert_eq!(how(&merge(m, base, "6", "theirs").unwrap()), "kept");
    let before = m.keys().clone();
    for (base, value, name, code) in [
        (base, "6", "fails", Code::Err),
        (base, "6", "text", Code::NotJson),
        (base, "6", "long", Code::TooBig),
        (base, "nojson", "join", Code::NotJson),
        (17, "6", "join", Code::BaseGone),
    ] {
        assert_eq!(
            merge(m, base, value, name).unwrap_err().code,
            code,
            "{name}"
        );
        assert_eq!(m.keys(), &before);
    }
    ask(m, "MAOS.SET k text").unwrap();
    assert_eq!(merge(m, base, "6", "join").unwrap_err().code, Code::NotJson);
    replays(m);
}

/// Operations that are done, by number, on the keys a to d.
fn operation(n: u8) -> String {
    let key = ["a", "b", "c", "d"][usize::from(n) % 4];
    match n / 4 % 6 {
        0 => format!("SET {key} '{{\"n\":{n}}}' PX 5000"),
        1 => format!("SET {key} '{{\"n\":{n}}}'"),
        2 => format!("PATCH {key} '{{\"p{n}\":{n}}}'"),
        3 => format!("INCRBY {key} {n} PATH /n MAX 100000"),
        4 => format!("DEL {key}"),
        _ => format!("GET {key}"),
    }
}

/// Operations that are refused, each for its own reason, wherever they stand.
const REFUSED: &[(&str, Code)] = &[
    ("SET locked 1", Code::Locked),
    ("DEL locked", Code::Locked),
    ("PATCH locked '{}'", Code::Locked),
    ("INCRBY locked 1", Code::Locked),
    ("PATCH text '{\"a\":1}'", Code::NotJson),
    ("PATCH a 'no patch'", Code::NotJson),
    ("INCRBY text 1", Code::NotJson),
    ("INCRBY budget -11 MIN 0", Code::Limit),
    ("INCRBY budget 9223372036854775807", Code::Limit),
    ("SET a BIG", Code::TooBig),
    ("PATCH a 'BIGJSON'", Code::TooBig),
    ("SET a 1 PXAT 9223372036854775807", Code::Err),
    ("INCRBY a x", Code::Err),
];

const KEYS: &str = "7 a b c d locked text budget";

fn world() -> Model {
    let mut m = Model::at(START_US);
    m.limits.value_max = 600;
    for line in [
        r#"MAOS.SET a '{"n":1}'"#,
        r#"MAOS.SET b '{"n":2}' PX 60000"#,
        "MAOS.SET text 'no json'",
        "MAOS.SET budget 10",
        "MAOS.SET locked '{}'",
        "MAOS.LOCK locked holder 600000",
        "MAOS.SET c '{}'",
        "MAOS.DEL c",
    ] {
        ask(&mut m, line).unwrap();
    }
    m
}

fn line(operations: &[String], word: &str) -> String {
    let all: Vec<String> = operations.iter().map(|o| format!("{word} {o}")).collect();
    let then = if word == "ELSE" {
        "IF a ABSENT THEN GET a "
    } else {
        ""
    };
    let big = "x".repeat(601);
    format!("MAOS.TXN {KEYS} {then}{}", all.join(" "))
        .replace("BIGJSON", &format!("{{\"{big}\":1}}"))
        .replace("BIG", &big)
}

proptest! {
    /// One operation that is refused, at every place among others that are not: nothing changes, nothing is
    /// sent, and it is named.
    #[test]
    fn a_refusal_at_any_place_leaves_every_key_as_it_was(
        done in prop::collection::vec(any::<u8>(), 1..12), refused in 0..REFUSED.len(), otherwise in any::<bool>(),
    ) {
        let word = if otherwise { "ELSE" } else { "THEN" };
        let done: Vec<String> = done.into_iter().map(operation).collect();
        let (bad, code) = REFUSED[refused];
        let m = &mut world();
        for place in 0..=done.len() {
            let mut operations = done.clone();
            operations.insert(place, bad.to_owned());
            let (before, sent, clock) = (m.keys().clone(), m.sent.len(), m.clock.last());
            let refusal = ask(m, &line(&operations, word)).unwrap_err();
            prop_assert_eq!(refusal.code, code, "{}", refusal);
            prop_assert!(refusal.text.starts_with(&format!("{word} {} (", place + 1)), "{}", refusal);
            prop_assert_eq!(m.keys(), &before);
            prop_assert_eq!((m.sent.len(), m.clock.last()), (sent, clock));
        }
    }

    /// What is done has one version, and is what the commands by themselves make one after the other.
    #[test]
    fn a_transaction_is_its_operations_in_one_step(done in prop::collection::vec(any::<u8>(), 1..12)) {
        let done: Vec<String> = done.into_iter().map(operation).collect();
        let (mut whole, mut steps) = (world(), world());
        let reply = ask(&mut whole, &line(&done, "THEN")).unwrap();
        let Value::Array(reply) = reply else { panic!("no reply") };
        let Value::Array(replies) = &reply[2] else { panic!("no replies") };
        let version = int(&reply[1]);
        for (operation, reply) in done.iter().zip(replies) {
            let alone = ask(&mut steps, &format!("MAOS.{operation}")).unwrap();
            match (reply, &alone) {
                (Value::Int(0), alone) => prop_assert_eq!(alone, &Value::Int(0)),
                (Value::Int(v), Value::Int(_)) => prop_assert_eq!(*v, version),
                (Value::Array(pair), Value::Array(alone)) => {
                    prop_assert_eq!(int(&pair[0]), version);
                    prop_assert_eq!(&pair[1], &alone[1]);
                }
                (value, alone) => prop_assert_eq!(value, alone),
            }
        }
        for key in ["a", "b", "c", "d"] {
            let (one, many) = (whole.keys().get(key.as_bytes()), steps.keys().get(key.as_bytes()));
            let value = |held: Option<&maos_core::model::Held>| {
                held.and_then(|h| h.record.live()).and_then(|v| v.value()).map(|v| v.into_owned())
            };
            prop_assert_eq!(value(one), value(many), "{}", key);
            let expires = |held: Option<&maos_core::model::Held>| held.is_some_and(|h| h.expires_ms.is_some());
            prop_assert_eq!(expires(one), expires(many), "{}", key);
            let before = world().keys().get(key.as_bytes()).map_or(0, |h| h.record.len());
            let after = one.map_or(0, |h| h.record.len());
            prop_assert!(after <= before + 1, "{} has {} versions more", key, after - before);
            if after > before {
                prop_assert_eq!(one.unwrap().record.current().stamp().as_i64(), version);
            }
        }
        replays(&whole);
    }
}

#[test]
fn conditions_decide_which_way_it_goes() {
    let m = &mut world();
    let a = int(&ask(m, "MAOS.GET a WITHVERSION").unwrap());
    let token = int(&ask(m, "MAOS.LOCK a me 600000").unwrap().items().unwrap()[0]);
    for (condition, holds) in [
        (format!("a VERSION {a}"), true),
        (format!("a VERSION {}", a - 1), false),
        ("d VERSION 0".into(), true),
        ("c VERSION 0".into(), true),
        ("a VERSION 0".into(), false),
        ("a EXISTS".into(), true),
        ("c EXISTS".into(), false),
        ("d ABSENT".into(), true),
        ("a ABSENT".into(), false),
        ("text VALUE 'no json'".into(), true),
        ("text VALUE 'no jso'".into(), false),
        ("d VALUE ''".into(), false),
        (format!("a TOKEN {token}"), true),
        (format!("a TOKEN {}", token - 1), false),
        (format!("b TOKEN {token}"), false),
    ] {
        let line =
            format!("MAOS.TXN {KEYS} IF text EXISTS IF {condition} THEN GET text ELSE GET budget");
        let reply = ask(m, &line).unwrap();
        let (held, value) = match holds {
            true => (1, "no json"),
            false => (0, "10"),
        };
        let expected = Value::Array(vec![
            Value::Int(held),
            Value::Int(0),
            Value::Array(vec![Value::Bulk(value.into())]),
        ]);
        assert_eq!(reply, expected, "{condition}");
    }
    // A token that a condition shows lets its key be written, and no other.
    let with = format!("MAOS.TXN {KEYS} IF a TOKEN {token} THEN SET a 1");
    assert_eq!(int(&ask(m, &with).unwrap().items().unwrap()[0]), 1);
    let refusal = ask(m, &format!("{with} THEN SET locked 1")).unwrap_err();
    assert_eq!(refusal.code, Code::Fenced, "{refusal}");
    assert_eq!(
        ask(m, &format!("MAOS.TXN {KEYS} THEN SET a 1"))
            .unwrap_err()
            .code,
        Code::Locked
    );
    let reads = format!("MAOS.TXN {KEYS} THEN GET locked THEN SET b 1");
    assert_eq!(int(&ask(m, &reads).unwrap().items().unwrap()[0]), 1);
    let lost = format!("MAOS.TXN {KEYS} THEN SET b 1 TOKEN {}", token - 1);
    assert_eq!(ask(m, &lost).unwrap_err().code, Code::Fenced);
}

#[test]
fn a_transaction_has_bounds() {
    let m = &mut Model::at(START_US);
    let many = |n: usize, what: &str| vec![what; n].join(" ");
    let keys: Vec<String> = (0..1025).map(|n| format!("k{n}")).collect();
    let limit = |m: &mut Model, line: &str| ask(m, line).map_err(|r| r.code);
    assert!(limit(m, &format!("MAOS.TXN 1 k {}", many(128, "THEN SET k 1"))).is_ok());
    for line in [
        format!("MAOS.TXN 1 k {}", many(129, "THEN SET k 1")),
        format!("MAOS.TXN 1 k THEN GET k {}", many(128, "ELSE GET k")),
        format!("MAOS.TXN 1 k {} THEN GET k", many(1025, "IF k ABSENT")),
        format!("MAOS.TXN 1025 {} THEN GET k0", keys.join(" ")),
    ] {
        assert_eq!(limit(m, &line), Err(Code::Limit));
    }
    assert!(limit(
        m,
        &format!("MAOS.TXN 1024 {} THEN GET k0", keys[..1024].join(" "))
    )
    .is_ok());
    // What is read and taken apart in one step has one together.
    let big = "x".repeat(m.limits.value_max);
    ask(m, &format!("MAOS.SET k {big}")).unwrap();
    assert!(limit(m, &format!("MAOS.TXN 1 k {}", many(8, "THEN GET k"))).is_ok());
    assert_eq!(
        limit(m, &format!("MAOS.TXN 1 k {}", many(9, "THEN GET k"))),
        Err(Code::Limit)
    );
    for line in [
        "MAOS.TXN 1 k IF k ABSENT ELSE GET k",
        "MAOS.TXN 1 k THEN GET j",
        "MAOS.TXN 2 k k THEN GET k",
        "MAOS.TXN 1 k THEN LOCK k",
        "MAOS.TXN 1 k IF k OLDER 1 THEN GET k",
        "MAOS.TXN 1 k THEN GET k EX 5",
        "MAOS.TXN 1 k THEN INCRBY k 1 MIN 0 MIN 1",
        "MAOS.TXN 1 k THEN SET k 1 EX 5 PX 5",
    ] {
        assert_eq!(limit(m, line), Err(Code::Err), "{line}");
    }
}
