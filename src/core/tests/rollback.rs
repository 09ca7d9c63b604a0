//! What a roll-back of a prefix makes of a key, compared with all that the key ever held.

use maos_core::generate::Rng;
use maos_core::model::Model;
use maos_core::rollback::{turn, Turn};
use maos_core::wire::{Request, Value};
use maos_core::Stamp;

const START_US: u64 = 1_790_000_000_000_000;
const KEY: &[u8] = b"app:k";

/// What the key held from each millisecond on, since it was last purged.
struct Truth(Vec<(u64, Option<Vec<u8>>)>);

impl Truth {
    fn at(&self, ms: u64) -> Option<&[u8]> {
        let before = self.0.iter().rev().find(|(from, _)| *from <= ms);
        before.and_then(|(_, value)| value.as_deref())
    }
}

fn value(model: &mut Model) -> Option<Vec<u8>> {
    match model.run(&[b"MAOS.GET", KEY]).expect("a reply") {
        Value::Bulk(value) => Some(value),
        Value::Null => None,
        other => panic!("{other:?}"),
    }
}

/// Carries a turn out, as a command; whether it is known what the key held.
fn carry_out(model: &mut Model, at_ms: u64, began: Stamp) -> bool {
    let Some(held) = model.keys().get(KEY) else {
        return true;
    };
    let record = held.record.clone();
    let (name, words) = match turn(KEY, &record, at_ms, began, Some(b"operator")) {
        Turn::Same => return true,
        Turn::Beyond | Turn::Newer => return false,
        Turn::Back(rollback) => ("MAOS.ROLLBACK", rollback.encode()),
        Turn::Gone(del) => ("MAOS.DEL", del.encode()),
    };
    let line = [vec![name.as_bytes().to_vec()], words].concat();
    let line: Vec<&[u8]> = line.iter().map(Vec::as_slice).collect();
    model.run(&line).expect("nothing forbids it");
    true
}

#[test]
fn a_key_comes_to_hold_what_it_held_or_it_is_said_that_nobody_knows() {
    let (mut known, mut unknown) = (0, 0);
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let mut model = Model::at(START_US);
        model.limits.history_versions = *rng.pick(&[1, 2, 3, 5, 100]);
        if rng.chance(30) {
            model.limits.history_age_us = 20_000;
        }
        let (mut truth, mut written) = (Truth(vec![]), 0);
        for _ in 0..rng.below(40) {
            model.now_us += 1000 * (1 + rng.below(6) as u64);
            let ms = model.now_us / 1000;
            let value = vec![b'a' + rng.below(3) as u8];
            match rng.below(12) {
                0 => {
                    model.run(&[b"DEL", KEY]).expect("it goes");
                    (truth.0, written) = (vec![], 0);
                }
                1..=3 => {
                    let done = model.run(&[b"MAOS.DEL", KEY]).expect("it goes");
                    written += usize::from(done != Value::Int(0));
                    truth.0.push((ms, None));
                }
                _ => {
                    model.run(&[b"MAOS.SET", KEY, &value]).expect("room");
                    written += 1;
                    truth.0.push((ms, Some(value)));
                }
            }
        }
        model.now_us += 1000;
        let end = model.now_us / 1000;
        for at_ms in START_US / 1000 - 1..end {
            let mut tried = model.clone();
            let record = model.keys().get(KEY).map(|held| held.record.clone());
            let what = format!("seed {seed} as of {at_ms}");
            if carry_out(&mut tried, at_ms, Stamp::MAX) {
                known += 1;
                let now = value(&mut tried);
                assert_eq!(now.as_deref(), truth.at(at_ms), "{what}");
                // Once more: it is the same already.
                if let Some(held) = tried.keys().get(KEY) {
                    let again = turn(KEY, &held.record, at_ms, Stamp::MAX, None);
                    assert!(
                        matches!(again, Turn::Same | Turn::Beyond),
                        "{what}: {again:?}"
                    );
                }
            } else {
                unknown += 1;
                let record = record.expect("a record of which that is said");
                assert!(record.len() < written, "{what}: nothing was trimmed");
                let oldest = record.nth(0).map_or(0, |v| v.stamp().millis());
                assert!(oldest > at_ms, "{what}: a version is kept from then");
                assert_eq!(value(&mut tried), value(&mut model), "{what}");
            }
        }
    }
    println!("{known} known, {unknown} not");
    assert!(known > 10_000 && unknown > 1000, "{known} {unknown}");
}

/// What the end of a life says of the time before it, though nothing else is kept from then.
#[test]
fn a_life_that_began_with_the_oldest_version_was_preceded_by_a_deletion() {
    let mut model = Model::at(START_US);
    model.limits.history_versions = 1;
    let mut run = |line: &[&[u8]]| {
        model.now_us += 1_000_000;
        model.run(line).expect("a reply");
        (
            model.now_us / 1000,
            model.keys().get(KEY).map(|h| h.record.clone()),
        )
    };
    let (set, _) = run(&[b"MAOS.SET", KEY, b"a"]);
    let (deleted, gone) = run(&[b"MAOS.DEL", KEY]);
    let (_, born) = run(&[b"MAOS.SET", KEY, b"b"]);
    let (gone, born) = (gone.expect("a tombstone"), born.expect("a record"));
    let of = |record, ms| turn(KEY, record, ms, Stamp::MAX, None);
    assert_eq!(of(&gone, set), Turn::Beyond);
    assert_eq!(of(&gone, deleted), Turn::Same);
    assert_eq!(of(&born, set), Turn::Beyond);
    assert!(matches!(of(&born, deleted), Turn::Gone(_)));
}

#[test]
fn what_was_made_after_it_began_is_left_alone() {
    let mut model = Model::at(START_US);
    let mut run = |line: &[&[u8]]| {
        model.now_us += 1_000_000;
        model.run(line).expect("a reply");
        model
            .keys()
            .get(KEY)
            .map(|h| h.record.clone())
            .expect("a record")
    };
    let first = run(&[b"MAOS.SET", KEY, b"a"]);
    let (then, began) = (first.current().stamp().millis(), first.current().stamp());
    let before = then - 1;
    // What was there is rolled back, whenever it was written last.
    let second = run(&[b"MAOS.SET", KEY, b"b"]);
    assert!(matches!(
        turn(KEY, &second, then, began, None),
        Turn::Back(_)
    ));
    assert!(matches!(
        turn(KEY, &second, before, began, None),
        Turn::Gone(_)
    ));
    let gone = run(&[b"MAOS.DEL", KEY]);
    assert!(matches!(turn(KEY, &gone, then, began, None), Turn::Back(_)));
    assert_eq!(turn(KEY, &gone, before, began, None), Turn::Same);
    // A life that began since is not ended, nor replaced.
    let born = run(&[b"MAOS.SET", KEY, b"c"]);
    assert_eq!(turn(KEY, &born, then, began, None), Turn::Newer);
    assert_eq!(turn(KEY, &born, before, began, None), Turn::Newer);
}
