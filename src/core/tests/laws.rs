//! The laws, over random conversations: a refusal changes nothing, replaying the changes rebuilds
//! the records, encoding and decoding are inverse, decoding any bytes returns, versions rise.

use std::collections::HashMap;

use maos_core::codec::v1::{decode_fact, decode_record, encode_record, newest_of, Bounds};
use maos_core::config::Limits;
use maos_core::model::Model;
use maos_core::record::Record;
use maos_core::wire::Value;
use maos_core::{Code, Interner, Stamp};
use proptest::prelude::*;

const START_US: u64 = 1_790_000_000_000_000;

/// One step of a conversation. Versions are chosen among those the key has had.
#[derive(Clone, Debug)]
enum Step {
    Set(u8, Vec<u8>, Vec<&'static [&'static str]>),
    Cas(u8, usize, Vec<u8>),
    Del(u8),
    MSet(Vec<(u8, Vec<u8>)>),
    MCas(Vec<(u8, usize, Vec<u8>)>),
    Rollback(u8, i64),
    Purge(u8),
    Clock(i64),
    Tend(u8),
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        // Compressible, and longer than the smallest that is compressed.
        (0u8..255, 30usize..200).prop_map(|(b, n)| vec![b; n]),
        // Longer than is taken.
        Just(vec![b'x'; 301]),
    ]
}

fn options() -> impl Strategy<Value = Vec<&'static [&'static str]>> {
    let one = prop::sample::select(vec![
        &["BY", "planner"] as &[&str],
        &["META", r#"{"why":"retry"}"#],
        &["META", "not json"],
        &["REQID", "r1"],
        &["REQID", "r2"],
        &["PX", "5000"],
        &["KEEPTTL"],
        &["IFVERSION", "0"],
    ]);
    prop::collection::vec(one, 0..3)
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0u8..4;
    prop_oneof![
        4 => (key.clone(), value(), options()).prop_map(|(k, v, o)| Step::Set(k, v, o)),
        4 => (key.clone(), 0usize..3, value()).prop_map(|(k, n, v)| Step::Cas(k, n, v)),
        2 => key.clone().prop_map(Step::Del),
        1 => prop::collection::vec((key.clone(), value()), 1..4).prop_map(Step::MSet),
        1 => prop::collection::vec((key.clone(), 0usize..2, value()), 1..4).prop_map(Step::MCas),
        2 => (key.clone(), -4i64..0).prop_map(|(k, n)| Step::Rollback(k, n)),
        1 => key.clone().prop_map(Step::Purge),
        1 => (-10_000_000i64..10_000_000).prop_map(Step::Clock),
        1 => key.prop_map(Step::Tend),
    ]
}

fn limits() -> Limits {
    Limits {
        history_versions: 5,
        history_bytes: 400,
        history_age_us: 20_000_000,
        compress_min: 32,
        value_max: 300,
        tombstone_ms: 8_000,
        ..Limits::default()
    }
}

/// The versions that a key has had, newest last.
type Seen = HashMap<u8, Vec<i64>>;

fn name(key: u8) -> Vec<u8> {
    format!("k{key}").into_bytes()
}

fn line(step: &Step, seen: &Seen) -> Option<Vec<Vec<u8>>> {
    let seen_at = |key: &u8, back: usize| -> Vec<u8> {
        let versions = seen.get(key).map_or(&[][..], |v| v);
        let n = versions.iter().rev().nth(back).copied().unwrap_or(0);
        n.to_string().into_bytes()
    };
    Some(match step {
        Step::Set(k, v, options) => {
            let mut line = vec![b"MAOS.SET".to_vec(), name(*k), v.clone()];
            line.extend(
                options
                    .iter()
                    .flat_map(|o| o.iter())
                    .map(|w| w.as_bytes().to_vec()),
            );
            line
        }
        Step::Cas(k, back, v) => {
            vec![b"MAOS.CAS".to_vec(), name(*k), seen_at(k, *back), v.clone()]
        }
        Step::Del(k) => vec![b"MAOS.DEL".to_vec(), name(*k)],
        Step::MSet(pairs) => {
            let n = pairs.len().to_string().into_bytes();
            let mut line = vec![b"MAOS.MSET".to_vec(), n];
            line.extend(pairs.iter().flat_map(|(k, v)| [name(*k), v.clone()]));
            line
        }
        Step::MCas(items) => {
            let n = items.len().to_string().into_bytes();
            let mut line = vec![b"MAOS.MCAS".to_vec(), n];
            line.extend(
                items
                    .iter()
                    .flat_map(|(k, back, v)| [name(*k), seen_at(k, *back), v.clone()]),
            );
            line
        }
        Step::Rollback(k, n) => vec![
            b"MAOS.ROLLBACK".to_vec(),
            name(*k),
            b"VERSION".to_vec(),
            n.to_string().into_bytes(),
        ],
        Step::Purge(_) | Step::Clock(_) | Step::Tend(_) => return None,
    })
}

/// Runs the steps, calling `after` with the outcome of each: a step that is no request has no words, and null for a
/// reply.
fn converse(
    model: &mut Model,
    steps: &[Step],
    mut after: impl FnMut(&Model, &[Vec<u8>], &Result<Value, maos_core::Refusal>),
) {
    let mut seen = Seen::new();
    for step in steps {
        model.now_us += 1_000;
        match step {
            Step::Purge(k) => {
                model.purge(&name(*k));
            }
            Step::Clock(us) => model.now_us = model.now_us.saturating_add_signed(*us),
            Step::Tend(k) => model.tend(&name(*k)),
            _ => {}
        }
        let line = line(step, &seen).unwrap_or_default();
        let args: Vec<&[u8]> = line.iter().map(Vec::as_slice).collect();
        let outcome = match args.is_empty() {
            true => Ok(Value::Null),
            false => model.run(&args),
        };
        after(model, &line, &outcome);
        for (key, held) in model.keys() {
            let key = key[1] - b'0';
            let versions = seen.entry(key).or_default();
            let now = held.record.current().stamp().as_i64();
            if versions.last() != Some(&now) {
                versions.push(now);
            }
        }
    }
}

fn model() -> Model {
    let mut m = Model::at(START_US);
    m.limits = limits();
    m
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_refusal_or_a_lost_race_changes_nothing(steps in prop::collection::vec(step(), 1..40)) {
        let mut before = HashMap::new();
        let mut sent = 0;
        converse(&mut model(), &steps, |model, line, outcome| {
            let unchanged = match outcome {
                Err(_) => true,
                Ok(Value::Array(items)) => items.first() == Some(&Value::Int(0)),
                Ok(_) => false,
            };
            if unchanged {
                // What expired in the meantime is gone on both sides.
                let now: HashMap<_, _> = model.keys().clone();
                before.retain(|k, _| now.contains_key(k));
                assert!(now == before, "{line:?} gave {outcome:?} and changed something");
                assert_eq!(model.sent.len(), sent, "{line:?} gave {outcome:?} and was replicated");
            }
            before = model.keys().clone();
            sent = model.sent.len();
        });
    }

    #[test]
    fn replaying_the_changes_rebuilds_the_records(steps in prop::collection::vec(step(), 1..40)) {
        let mut master = model();
        let steps: Vec<_> = steps.into_iter().filter(|s| !matches!(s, Step::Purge(_) | Step::Clock(_))).collect();
        converse(&mut master, &steps, |_, _, _| {});
        let mut replica = model();
        for message in &master.sent {
            replica.receive(message).unwrap();
        }
        for (key, held) in master.keys() {
            prop_assert_eq!(Some(held), replica.keys().get(key));
        }
        // Facts that travelled say what they said here.
        for message in &master.sent {
            let pairs = || message[1..].chunks_exact(2).map(|p| (&p[0][..], &p[1][..]));
            let mut interner = Interner::default();
            let change = decode_fact(&message[0], pairs(), &mut interner).unwrap();
            let mut again = vec![];
            maos_core::codec::v1::encode_fact(&change, &mut again);
            prop_assert_eq!(&again, &message[0]);
        }
    }

    #[test]
    fn whatever_is_applied_can_be_written_down_and_loaded(
        steps in prop::collection::vec(step(), 1..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut master = model();
        converse(&mut master, &steps, |_, _, _| {});
        // A node that was written to by others: changes come that do not fit on what is there.
        let mut replica = model();
        for at in order.iter().filter(|_| !master.sent.is_empty()) {
            replica.receive(&master.sent[at.index(master.sent.len())]).unwrap();
        }
        for held in replica.keys().values() {
            let back = decode(&encoded(&held.record));
            prop_assert_eq!(back.as_ref(), Some(&held.record));
        }
    }

    #[test]
    fn versions_rise_and_an_old_one_never_fits(steps in prop::collection::vec(step(), 1..60)) {
        let mut newest: HashMap<Vec<u8>, Stamp> = HashMap::new();
        converse(&mut model(), &steps, |model, line, outcome| {
            for (key, held) in model.keys() {
                let version = held.record.current().stamp();
                let before = newest.insert(key.clone(), version);
                assert!(before.is_none_or(|b| b <= version), "{line:?}: {before:?} then {version}");
            }
            // A compare-and-set that was applied named the version that was current.
            if line.first().is_some_and(|name| name == b"MAOS.CAS") {
                if let Ok(Value::Array(items)) = outcome {
                    if items[0] == Value::Int(1) {
                        let record = &model.keys()[&line[1]].record;
                        let replaced = record.len().checked_sub(2).and_then(|n| record.nth(n));
                        let named: u64 = String::from_utf8_lossy(&line[2]).parse().unwrap();
                        let fits = match replaced {
                            Some(v) if !v.is_tombstone() => v.stamp().0 == named,
                            Some(_) => named == 0,
                            // The version replaced has been trimmed at once.
                            None => true,
                        };
                        assert!(fits, "{line:?} replaced {replaced:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn the_limits_of_the_history_hold(steps in prop::collection::vec(step(), 1..60)) {
        let limits = limits();
        converse(&mut model(), &steps, |model, _, _| {
            for held in model.keys().values() {
                let r = &held.record;
                assert!(r.len() <= limits.history_versions);
                let replaced: usize = r.newest_first().skip(1).map(|v| v.blob_len()).sum();
                assert!(replaced <= limits.history_bytes, "{replaced} bytes of history");
                assert!(r.live().is_none_or(|v| v.value_len() <= limits.value_max));
            }
        });
    }

    #[test]
    fn encoding_and_decoding_are_inverse(steps in prop::collection::vec(step(), 1..40)) {
        let mut model = model();
        converse(&mut model, &steps, |_, _, _| {});
        for held in model.keys().values() {
            let bytes = encoded(&held.record);
            let back = decode(&bytes).expect("what was encoded decodes");
            prop_assert_eq!(&back, &held.record);
            prop_assert_eq!(encoded(&back), bytes);
        }
    }

    #[test]
    fn compressing_changes_nothing_a_reader_sees(steps in prop::collection::vec(step(), 1..40)) {
        let mut model = model();
        converse(&mut model, &steps, |_, _, _| {});
        for held in model.keys().values() {
            let mut packed = held.record.clone();
            packed.pack(1, usize::MAX);
            prop_assert_eq!(&packed, &held.record);
            prop_assert!(packed.bytes() <= held.record.bytes());
            prop_assert_eq!(decode(&encoded(&packed)).expect("decodes"), packed);
        }
    }

    #[test]
    fn decoding_any_bytes_returns(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
        let _ = decode_fact(&bytes, std::iter::empty(), &mut Interner::default());
        let pair = [(&b"k"[..], &bytes[..])];
        let _ = decode_fact(&bytes, pair.into_iter(), &mut Interner::default());
    }

    #[test]
    fn a_damaged_record_is_refused_or_keeps_every_bound(
        steps in prop::collection::vec(step(), 1..20),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut model = model();
        converse(&mut model, &steps, |_, _, _| {});
        for held in model.keys().values() {
            let whole = encoded(&held.record);
            prop_assert!(decode(&whole[..cut.index(whole.len())]).is_none(), "a cut record is refused");
            let mut bytes = whole;
            for (at, b) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *b;
            }
            if let Some(record) = decode(&bytes) {
                for v in record.iter() {
                    prop_assert!(v.stamp() > Stamp::NONE && v.stamp() <= Stamp::MAX);
                    prop_assert!(v.value().is_none_or(|value| value.len() <= 64 << 20));
                }
                prop_assert_eq!(decode(&encoded(&record)).expect("decodes"), record);
            }
        }
    }
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = vec![];
    encode_record(record, None, &mut bytes);
    assert_eq!(newest_of(&bytes), Ok(record.newest()));
    bytes
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let decoded = decode_record(bytes, Bounds::HARD, &mut Interner::default());
    Some(decoded.ok()?.0)
}

#[test]
fn a_record_with_one_version_is_40_bytes_and_one_allocation() {
    assert_eq!(size_of::<Record>(), 40);
}

#[test]
fn a_stamp_far_ahead_is_refused_where_it_is_bounded() {
    let mut m = Model::at(START_US);
    m.run(&[b"MAOS.SET", b"k", b"v"]).unwrap();
    let bytes = encoded(&m.keys()[&b"k"[..]].record);
    let bounds = |newest| Bounds {
        newest: Stamp(newest),
        ..Bounds::HARD
    };
    let mut i = Interner::default();
    assert!(decode_record(&bytes, bounds(START_US), &mut i).is_ok());
    assert!(decode_record(&bytes, bounds(START_US - 1), &mut i).is_err());
}

#[test]
fn a_key_from_far_ahead_goes_on_rising_and_leaves_the_clock_alone() {
    const YEAR_US: u64 = 365 * 86_400_000_000;
    let mut ahead = Model::at(START_US + YEAR_US);
    ahead.run(&[b"MAOS.SET", b"k", b"v"]).unwrap();
    let mut m = Model::at(START_US);
    m.receive(&ahead.sent[0]).unwrap();
    let version = |v: &Value| match v {
        Value::Int(n) => *n as u64,
        other => panic!("{other:?}"),
    };
    let k = version(&m.run(&[b"MAOS.SET", b"k", b"w"]).unwrap());
    assert_eq!(k, START_US + YEAR_US + 1);
    let other = version(&m.run(&[b"MAOS.SET", b"other", b"w"]).unwrap());
    assert_eq!(other, START_US);
    let both = m
        .run(&[b"MAOS.MSET", b"2", b"k", b"x", b"other", b"x"])
        .unwrap();
    assert_eq!(version(&both), k + 1);
}

#[test]
fn a_key_from_far_ahead_that_is_copied_back_gets_no_version_twice() {
    const YEAR_US: u64 = 365 * 86_400_000_000;
    let mut ahead = Model::at(START_US + YEAR_US);
    ahead.run(&[b"MAOS.SET", b"k", b"v"]).unwrap();
    let mut m = Model::at(START_US);
    let mut given = vec![];
    for _ in 0..3 {
        // As a COPY of the same far record over the key does.
        m.purge(b"k");
        m.receive(&ahead.sent[0]).unwrap();
        match m.run(&[b"MAOS.SET", b"k", b"w"]).unwrap() {
            Value::Int(n) => given.push(n),
            other => panic!("{other:?}"),
        }
    }
    assert!(given.windows(2).all(|w| w[0] < w[1]), "{given:?}");
}

#[test]
fn a_clock_that_steps_back_beyond_the_drift_gives_no_version_twice() {
    let mut m = Model::at(START_US);
    m.run(&[b"MAOS.SET", b"k", b"v"]).unwrap();
    m.now_us -= 2 * 86_400_000_000;
    let mut before = 0;
    for _ in 0..5 {
        m.purge(b"k");
        match m.run(&[b"MAOS.SET", b"k", b"w"]).unwrap() {
            Value::Int(n) => {
                assert!(n > before && n as u64 > START_US, "{n} after {before}");
                before = n;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_user_s_name_that_could_not_be_loaded_is_refused() {
    let mut m = Model::at(START_US);
    m.author = vec![b'u'; 65_536];
    m.run(&[b"MAOS.SET", b"k", b"v"]).unwrap();
    assert!(decode(&encoded(&m.keys()[&b"k"[..]].record)).is_some());
    m.author.push(b'u');
    let refusal = m.run(&[b"MAOS.SET", b"k", b"v"]).unwrap_err();
    assert_eq!(refusal.code, Code::TooBig);
    assert_eq!(
        m.run(&[b"MAOS.MSET", b"1", b"j", b"v"]).unwrap_err().code,
        Code::TooBig
    );
}

#[test]
fn compression_goes_on_where_it_stopped() {
    let mut m = Model::at(START_US);
    for n in 0..150 {
        m.now_us += 1;
        // Every third is too short, so that they lie between those that are compressed.
        let value = if n % 3 == 0 {
            vec![b'x'; 10]
        } else {
            vec![b'x'; 1000]
        };
        m.run(&[b"MAOS.SET", b"k", &value]).unwrap();
    }
    let mut record = m.keys()[&b"k"[..]].record.clone();
    let mut done = 0;
    let mut steps = 0;
    while record.may_pack(100) {
        done += record.pack(100, 3000);
        steps += 1;
    }
    assert!(steps > 5, "{steps} steps");
    assert_eq!(done, record.iter().filter(|v| v.is_packed()).count());
    assert_eq!(
        done,
        record
            .newest_first()
            .skip(1)
            .filter(|v| v.value_len() == 1000)
            .count()
    );
    assert_eq!(record, m.keys()[&b"k"[..]].record);
}

#[test]
fn created_is_that_of_the_version_s_own_life() {
    let mut m = Model::at(START_US);
    let mut run = |line: &[&[u8]]| {
        m.now_us += 10;
        m.run(line).unwrap()
    };
    run(&[b"MAOS.SET", b"k", b"1"]);
    run(&[b"MAOS.SET", b"k", b"2"]);
    run(&[b"MAOS.DEL", b"k"]);
    run(&[b"MAOS.SET", b"k", b"3"]);
    run(&[b"MAOS.SET", b"k", b"4"]);
    let mut created = |n: &str| {
        let line = [b"MAOS.GET", &b"k"[..], b"VERSION", n.as_bytes(), b"FULL"];
        let mut fields = run(&line).fields().unwrap();
        fields.take("created").int().unwrap() - START_US as i64
    };
    assert_eq!(["-1", "-3", "-4"].map(&mut created), [40, 10, 10]);
}

#[test]
fn a_reply_has_a_limit() {
    let mut m = Model::at(START_US);
    m.run(&[b"MAOS.SET", b"k", &vec![b'x'; 8 << 20]]).unwrap();
    let ask = |m: &mut Model, n: usize| {
        let count = n.to_string();
        let mut line: Vec<&[u8]> = vec![b"MAOS.MGET", count.as_bytes()];
        line.extend(std::iter::repeat_n(&b"k"[..], n));
        m.run(&line)
    };
    assert!(ask(&mut m, 8).is_ok());
    assert_eq!(ask(&mut m, 9).unwrap_err().code, Code::Limit);
}

#[test]
fn a_payload_that_unpacks_to_too_much_is_refused() {
    let mut m = Model::at(START_US);
    m.limits.history_bytes = 1 << 30;
    for _ in 0..4 {
        m.now_us += 1;
        m.run(&[b"MAOS.SET", b"k", &vec![0u8; 1 << 20]]).unwrap();
    }
    let mut record = m.keys()[&b"k"[..]].record.clone();
    record.pack(1, usize::MAX);
    let packed = record.iter().filter(|v| v.is_packed()).count();
    let bytes = encoded(&record);
    let bounds = |unpacked_max| Bounds {
        unpacked_max,
        ..Bounds::HARD
    };
    let mut i = Interner::default();
    assert!(decode_record(&bytes, bounds(packed << 20), &mut i).is_ok());
    assert!(packed > 0 && decode_record(&bytes, bounds((packed << 20) - 1), &mut i).is_err());
}

#[test]
fn the_largest_stamp_is_the_last() {
    let mut m = Model::at(Stamp::MAX.0);
    m.run(&[b"MAOS.SET", b"k", b"v"]).unwrap();
    let refusal = m.run(&[b"MAOS.SET", b"k", b"w"]).unwrap_err();
    assert_eq!(refusal.code, Code::Limit);
}

#[test]
fn history_is_trimmed_by_age_since_a_version_was_replaced() {
    let mut m = Model::at(START_US);
    m.limits.history_age_us = 10_000_000;
    let at = |m: &mut Model, ms: u64| {
        let text = ms.to_string();
        m.run(&[b"MAOS.GET", b"k", b"AT", text.as_bytes()])
    };
    m.run(&[b"MAOS.SET", b"k", b"old"]).unwrap();
    // Current for an hour: its age counts from when it was replaced.
    m.now_us += 3_600_000_000;
    m.run(&[b"MAOS.SET", b"k", b"new"]).unwrap();
    m.tend(b"k");
    let before = m.now_us / 1000 - 1;
    assert_eq!(at(&mut m, before).unwrap(), Value::Bulk(b"old".to_vec()));
    m.now_us += 10_000_001;
    m.tend(b"k");
    assert_eq!(at(&mut m, before).unwrap_err().code, Code::NoVersion);
    assert_eq!(m.keys()[&b"k"[..]].record.len(), 1);
}

#[test]
fn a_key_lives_through_the_millisecond_of_its_expiry() {
    let mut m = Model::at(START_US);
    let at = (START_US / 1000 + 5).to_string();
    m.run(&[b"MAOS.SET", b"k", b"v", b"PXAT", at.as_bytes()])
        .unwrap();
    for (us, there) in [(5_999, Value::Bulk(b"v".to_vec())), (6_000, Value::Null)] {
        m.now_us = START_US + us;
        assert_eq!(m.run(&[b"MAOS.GET", b"k"]).unwrap(), there, "after {us}");
    }
}

#[test]
fn a_change_whose_record_could_not_be_loaded_is_refused() {
    let fact = |agent: &[u8], meta: &[u8], reqid: &[u8]| {
        let mut fact = vec![1, 1, 0b111, 9, 1, b'u'];
        for part in [agent, meta, reqid] {
            fact.push(part.len() as u8);
            fact.extend_from_slice(part);
        }
        let pairs = [(&b"k"[..], &b"v"[..])];
        let decoded = decode_fact(&fact, pairs.into_iter(), &mut Interner::default());
        let taken = decoded.is_ok();
        drop(decoded);
        taken
    };
    assert!(fact(b"planner", b"{}", b"r1"));
    assert!(!fact(b"", b"{}", b"r1"));
    assert!(!fact(b"planner", b"[1]", b"r1"));
    assert!(!fact(b"planner", b"", b"r1"));
    assert!(!fact(b"planner", b"{}", b""));
}

#[test]
fn versions_that_contradict_each_other_are_no_record() {
    let mut model = Model::at(START_US);
    for value in [b"1", b"2", b"3"] {
        model.now_us += 10;
        model.run(&[b"MAOS.SET", b"k", value]).unwrap();
    }
    let record = &model.keys()[&b"k"[..]].record;
    let made = |created, floor, places: &[usize]| {
        let versions = places.iter().map(|n| Ok::<_, ()>(record.nth(*n).unwrap()));
        Record::from_parts(created, floor, versions)
            .unwrap()
            .is_some()
    };
    let [first, second, last] = [0, 1, 2].map(|n| record.nth(n).unwrap().stamp());
    assert!(made(first, Stamp::NONE, &[0, 1, 2]));
    assert!(made(first, first, &[1, 2]));
    for places in [&[][..], &[0, 0], &[1, 0], &[0, 2, 1]] {
        assert!(!made(first, Stamp::NONE, places), "{places:?}");
    }
    assert!(!made(first, second, &[1, 2]), "the floor is above it");
    assert!(!made(Stamp::NONE, Stamp::NONE, &[0, 1]), "never created");
    let later = Stamp(last.0 + 1);
    assert!(!made(later, Stamp::NONE, &[0, 1, 2]), "created later");
}

// --- locks -----------------------------------------------------------------------------------

/// One step of owners that lock, write and wait for leases to end.
#[derive(Clone, Debug)]
enum Turn {
    Lock(u8, u8, u64, &'static str),
    MLock(Vec<u8>, u8, u64),
    Unlock(u8, usize),
    Renew(u8, usize, u64),
    Write(u8, Option<usize>),
    Purge(u8),
    Wait(u64),
    Tend(u8),
}

fn turn() -> impl Strategy<Value = Turn> {
    let (key, owner, ttl) = (0u8..3, 0u8..3, 1u64..2000);
    let how = prop::sample::select(vec!["", "SHARED", "ADVISORY"]);
    let token = 0usize..4;
    prop_oneof![
        6 => (key.clone(), owner.clone(), ttl.clone(), how).prop_map(|(k, o, t, h)| Turn::Lock(k, o, t, h)),
        1 => (prop::collection::hash_set(key.clone(), 1..3), owner, ttl.clone())
            .prop_map(|(k, o, t)| Turn::MLock(k.into_iter().collect(), o, t)),
        3 => (key.clone(), token.clone()).prop_map(|(k, t)| Turn::Unlock(k, t)),
        2 => (key.clone(), token.clone(), ttl).prop_map(|(k, t, ms)| Turn::Renew(k, t, ms)),
        6 => (key.clone(), prop::option::of(token)).prop_map(|(k, t)| Turn::Write(k, t)),
        1 => key.prop_map(Turn::Purge),
        4 => (1u64..1500).prop_map(Turn::Wait),
        1 => (0u8..3).prop_map(Turn::Tend),
    ]
}

/// What a key's lock must be, written down as plainly as can be: who holds it, from when, until when.
#[derive(Default)]
struct Plain {
    held: Vec<(u8, u64, u64, bool, bool)>,
}

impl Plain {
    fn present(&mut self, now_ms: u64) -> &mut Vec<(u8, u64, u64, bool, bool)> {
        self.held.retain(|h| h.2 > now_ms);
        &mut self.held
    }
}

proptest! {
    /// Leases do not overlap unless shared, tokens rise, and no write passes an exclusive holder.
    #[test]
    fn a_lock_is_held_by_one_or_shared(turns in prop::collection::vec(turn(), 1..120)) {
        let mut m = Model::at(START_US);
        let mut replica = Model::at(START_US);
        let mut locks: HashMap<u8, Plain> = HashMap::new();
        // Every token ever given, newest last.
        let mut given: HashMap<u8, Vec<u64>> = HashMap::new();
        let key = |k: u8| format!("k{k}");
        let line = |m: &mut Model, text: &str| {
            m.now_us += 1;
            let words: Vec<&[u8]> = text.split_whitespace().map(str::as_bytes).collect();
            m.run(&words)
        };
        for turn in turns {
            let now_ms = (m.now_us + 1) / 1000;
            let token = |given: &HashMap<u8, Vec<u64>>, k: u8, back: usize| {
                let all = given.get(&k).map_or(&[][..], Vec::as_slice);
                all.iter().rev().nth(back).copied().unwrap_or(1)
            };
            match turn {
                Turn::Wait(ms) => m.now_us += ms * 1000,
                Turn::Tend(k) => {
                    m.expire();
                    m.tend(key(k).as_bytes());
                    let held = m.keys().get(key(k).as_bytes());
                    let late = held.is_some_and(|h| h.record.has_late_holder(m.now_us / 1000));
                    prop_assert!(!late);
                }
                Turn::Purge(k) => {
                    m.expire();
                    m.purge(key(k).as_bytes());
                    replica.purge(key(k).as_bytes());
                    locks.remove(&k);
                }
                Turn::Lock(k, owner, ttl, how) => {
                    let reply = line(&mut m, &format!("MAOS.LOCK {} o{owner} {ttl} {how}", key(k))).unwrap();
                    let held = locks.entry(k).or_default().present(now_ms);
                    let shared = how == "SHARED";
                    let others = held.iter().any(|h| h.0 != owner);
                    let free = !others || (shared && held.iter().all(|h| h.3));
                    prop_assert_eq!(reply != Value::Null, free, "{:?}", held);
                    let Value::Array(items) = reply else { continue };
                    let [Value::Int(got), Value::Int(ends)] = items[..] else { panic!("{items:?}") };
                    let (got, ends) = (got as u64, ends as u64);
                    if let Some(own) = held.iter_mut().find(|h| h.0 == owner) {
                        prop_assert_eq!(got, own.1);
                        prop_assert_eq!(ends, own.2.max(now_ms + ttl));
                        own.2 = ends;
                        own.3 &= shared;
                        own.4 &= how == "ADVISORY";
                    } else {
                        prop_assert!(got > token(&given, k, 0));
                        prop_assert_eq!(ends, now_ms + ttl);
                        given.entry(k).or_default().push(got);
                        held.push((owner, got, ends, shared, how == "ADVISORY"));
                    }
                }
                Turn::MLock(keys, owner, ttl) => {
                    let names: Vec<_> = keys.iter().map(|k| key(*k)).collect();
                    let text = format!("MAOS.MLOCK {} {} o{owner} {ttl}", keys.len(), names.join(" "));
                    let reply = line(&mut m, &text).unwrap();
                    let free = keys.iter().all(|k| {
                        locks.entry(*k).or_default().present(now_ms).iter().all(|h| h.0 == owner)
                    });
                    prop_assert_eq!(reply != Value::Null, free);
                    let Value::Array(items) = reply else { continue };
                    let Value::Array(tokens) = &items[0] else { panic!("{items:?}") };
                    for (k, got) in keys.iter().zip(tokens) {
                        let Value::Int(got) = got else { panic!("{got:?}") };
                        let held = locks.entry(*k).or_default().present(now_ms);
                        if let Some(own) = held.first_mut() {
                            prop_assert_eq!(*got as u64, own.1);
                            own.2 = own.2.max(now_ms + ttl);
                            own.3 = false;
                            own.4 = false;
                        } else {
                            prop_assert!(*got as u64 > token(&given, *k, 0));
                            given.entry(*k).or_default().push(*got as u64);
                            held.push((owner, *got as u64, now_ms + ttl, false, false));
                        }
                    }
                }
                Turn::Unlock(k, back) => {
                    let token = token(&given, k, back);
                    let reply = line(&mut m, &format!("MAOS.UNLOCK {} {token}", key(k)));
                    let held = locks.entry(k).or_default().present(now_ms);
                    let place = held.iter().position(|h| h.1 == token);
                    prop_assert_eq!(reply.is_ok(), place.is_some());
                    match (reply, place) {
                        (Ok(Value::Int(0)), Some(place)) => drop(held.remove(place)),
                        (Err(refusal), _) => prop_assert_eq!(refusal.code, Code::Fenced),
                        _ => {}
                    }
                }
                Turn::Renew(k, back, ttl) => {
                    let token = token(&given, k, back);
                    let reply = line(&mut m, &format!("MAOS.RENEW {} {token} {ttl}", key(k)));
                    let held = locks.entry(k).or_default().present(now_ms);
                    match held.iter_mut().find(|h| h.1 == token) {
                        Some(own) => {
                            own.2 = now_ms + ttl;
                            prop_assert_eq!(reply, Ok(Value::Int(own.2 as i64)));
                        }
                        None => prop_assert_eq!(reply.unwrap_err().code, Code::Fenced),
                    }
                }
                Turn::Write(k, back) => {
                    let shown = back.map(|back| token(&given, k, back));
                    let text = shown.map(|t| format!("TOKEN {t}")).unwrap_or_default();
                    let reply = line(&mut m, &format!("MAOS.SET {} v {text}", key(k)));
                    let held = locks.entry(k).or_default().present(now_ms);
                    let needs = held.iter().find(|h| !h.3 && !h.4).map(|h| h.1);
                    let refused = match (shown, needs) {
                        (None, Some(_)) => Some(Code::Locked),
                        (None, None) => None,
                        (Some(t), _) => (!held.iter().any(|h| h.1 == t)).then_some(Code::Fenced),
                    };
                    prop_assert_eq!(reply.err().map(|r| r.code), refused);
                }
            }
            // What replicas and the disk get is what is here. A replica judges no lease.
            for message in std::mem::take(&mut m.sent) {
                replica.receive(&message).unwrap();
            }
            // On a server a key that expires is deleted there, too.
            m.expire();
            replica.now_us = m.now_us;
            replica.expire();
            for held in m.keys().values() {
                let mut bytes = vec![];
                encode_record(&held.record, None, &mut bytes);
                let (back, _) = decode_record(&bytes, Bounds::HARD, &mut Interner::default()).unwrap();
                prop_assert_eq!(&back, &held.record);
                prop_assert_eq!(newest_of(&bytes), Ok(held.record.newest()));
                prop_assert!(!held.record.is_empty());
            }
        }
        m.expire();
        replica.now_us = m.now_us;
        replica.expire();
        prop_assert_eq!(replica.keys(), m.keys());
    }
}
