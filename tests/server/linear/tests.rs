//! The checkers, checked: histories that are right, and the same with one lie in each.

use super::check::{check, Wrong};
use super::search::linearizable;
use super::{Did, Op, Random, NEVER};

/// A history that is right: operations take place one after the other, and are sent some time before
/// and return some time after. `cut` of a hundred writes lose their replies.
fn history(seed: u64, len: u64, cut: u64) -> Vec<Op> {
    let random = &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut last, mut live) = (1_000, None);
    // What was seen, which is what is named.
    let mut known = vec![0];
    let mut ops = vec![];
    for n in 1..=len {
        let current = live.map_or(0, |(version, _)| version);
        let kind = random.below(100);
        let over = match kind {
            0..40 => None,
            40..70 => known.contains(&current).then_some(current),
            _ => Some(known[random.below(known.len() as u64) as usize]),
        };
        let value = (!kind.is_multiple_of(10)).then_some(n);
        let cut = random.below(100) < cut;
        let fails = over.is_some_and(|over| over != current);
        let reads = kind < 20 || (value.is_none() && live.is_none());
        let did = if cut && !reads {
            Did::Maybe { value, over }
        } else if fails || reads {
            known.push(current);
            let not = over.filter(|_| fails);
            Did::Saw { what: live, not }
        } else {
            Did::Wrote {
                version: last + 1,
                value,
                over,
            }
        };
        // Some of those whose reply is lost are never carried out.
        let dropped = cut && random.below(2) == 0;
        if !(fails || reads || dropped) {
            last += 1;
            live = value.map(|v| (last, v));
            if !cut && value.is_some() {
                known.push(last);
            }
        }
        let ret = match did {
            Did::Maybe { .. } => NEVER,
            _ => n * 10 + random.below(60),
        };
        let call = (n * 10).saturating_sub(random.below(60));
        ops.push(Op { call, ret, did });
    }
    ops
}

/// One lie in a history, if it has a place for it. Gives what the checker should call it.
fn lie(ops: &mut [Op], which: usize, random: &mut Random) -> Option<Wrong> {
    let writes: Vec<usize> = (0..ops.len())
        .filter(|n| matches!(ops[*n].did, Did::Wrote { .. }))
        .collect();
    let pick = |random: &mut Random, of: &[usize]| {
        (!of.is_empty()).then(|| of[random.below(of.len() as u64) as usize])
    };
    let version_of = |op: &Op| match op.did {
        Did::Wrote { version, .. } => version,
        _ => 0,
    };
    match which {
        // A version is given twice.
        0 => {
            let (a, b) = (pick(random, &writes)?, pick(random, &writes)?);
            if a == b {
                return None;
            }
            let again = version_of(&ops[a]);
            let Did::Wrote { version, .. } = &mut ops[b].did else {
                return None;
            };
            *version = again;
            Some(Wrong::Reused)
        }
        // A compare-and-set succeeds over another version.
        1 => {
            let cas: Vec<usize> = writes
                .iter()
                .copied()
                .filter(|n| matches!(ops[*n].did, Did::Wrote { over: Some(over), .. } if over > 0))
                .collect();
            let n = pick(random, &cas)?;
            let Did::Wrote {
                over: Some(over), ..
            } = &mut ops[n].did
            else {
                return None;
            };
            *over -= 1;
            Some(Wrong::LostUpdate)
        }
        // A read of what another write had replaced long ago.
        2 => {
            let n = pick(random, &writes)?;
            let (version, value) = match ops[n].did {
                Did::Wrote {
                    version,
                    value: Some(value),
                    ..
                } => (version, value),
                _ => return None,
            };
            let next = writes
                .iter()
                .filter(|m| version_of(&ops[**m]) > version)
                .min_by_key(|m| ops[**m].ret)?;
            let after = ops[*next].ret + 1;
            let saw = &mut ops[(0..ops.len())
                .find(|m| ops[*m].call > after && matches!(ops[*m].did, Did::Saw { .. }))?];
            saw.did = Did::Saw {
                what: Some((version, value)),
                not: None,
            };
            Some(Wrong::Stale)
        }
        // A value that nobody wrote.
        3 => {
            let reads: Vec<usize> = (0..ops.len())
                .filter(|n| matches!(ops[*n].did, Did::Saw { what: Some(_), .. }))
                .collect();
            let n = pick(random, &reads)?;
            let Did::Saw {
                what: Some((_, value)),
                ..
            } = &mut ops[n].did
            else {
                return None;
            };
            *value += 1_000_000;
            Some(Wrong::NeverWritten)
        }
        // A deletion that was answered and not made: what it deleted is still seen.
        4 => {
            let gone: Vec<usize> = writes
                .iter()
                .copied()
                .filter(|n| matches!(ops[*n].did, Did::Wrote { value: None, .. }))
                .collect();
            let n = pick(random, &gone)?;
            let before = writes
                .iter()
                .filter(|m| version_of(&ops[**m]) < version_of(&ops[n]))
                .max_by_key(|m| version_of(&ops[**m]))?;
            let Did::Wrote {
                version,
                value: Some(value),
                ..
            } = ops[*before].did
            else {
                return None;
            };
            let after = ops[n].ret + 1;
            let saw = &mut ops[(0..ops.len())
                .find(|m| ops[*m].call > after && matches!(ops[*m].did, Did::Saw { .. }))?];
            saw.did = Did::Saw {
                what: Some((version, value)),
                not: None,
            };
            Some(Wrong::Stale)
        }
        // Two writes, one after the other, with each other's versions.
        5 => {
            let a = pick(random, &writes)?;
            let b = *writes.iter().find(|m| ops[**m].call > ops[a].ret)?;
            let (va, vb) = (version_of(&ops[a]), version_of(&ops[b]));
            for op in ops.iter_mut() {
                if let Did::Wrote { version, .. } = &mut op.did {
                    *version = match *version {
                        v if v == va => vb,
                        v if v == vb => va,
                        v => v,
                    };
                }
            }
            // Whoever read them, or named them, may be the first to be found wrong.
            Some(Wrong::OutOfOrder)
        }
        // A write that was answered before it was made: it is seen to be missing after its answer.
        _ => {
            let n = pick(random, &writes)?;
            let Did::Wrote { version, .. } = ops[n].did else {
                return None;
            };
            let first = ops
                .iter()
                .filter(|op| matches!(op.did, Did::Wrote { version: v, .. } if v < version))
                .map(|op| op.call)
                .max()?;
            let op = &mut ops[n];
            if first < 20 {
                return None;
            }
            (op.call, op.ret) = (first.saturating_sub(20), first - 10);
            Some(Wrong::OutOfOrder)
        }
    }
}

const LIES: usize = 7;

#[test]
fn right_histories_are_right() {
    for seed in 0..300 {
        let cut = if seed % 2 == 0 { 0 } else { 3 };
        let ops = history(seed, 50 + seed * 3, cut);
        let verdict = check(&ops);
        assert!(verdict.is_ok(), "seed {seed}: {verdict:?}");
        assert!(linearizable(&ops), "seed {seed}");
    }
}

#[test]
fn every_lie_is_caught() {
    let mut tried = [0; LIES];
    for seed in 0..400 {
        for (which, tried) in tried.iter_mut().enumerate() {
            let mut ops = history(seed, 150, 0);
            let random = &mut Random(seed * 31 + which as u64 + 1);
            let Some(expected) = lie(&mut ops, which, random) else {
                continue;
            };
            *tried += 1;
            let Err((wrong, what)) = check(&ops) else {
                panic!("lie {which}, seed {seed}: {expected:?} was not seen");
            };
            if which < 4 && which != 0 && which != 2 {
                assert_eq!(wrong, expected, "lie {which}, seed {seed}: {what}");
            }
            assert!(
                !linearizable(&ops),
                "lie {which}, seed {seed}: {wrong:?} {what}"
            );
        }
    }
    assert!(tried.iter().all(|n| *n >= 50), "{tried:?}");
}

/// Any change of a history at random: the two agree on it, right or wrong.
#[test]
fn the_checker_agrees_with_the_search() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..3_000 {
        let cut = if seed % 3 == 0 { 4 } else { 0 };
        let mut ops = history(seed, 40, cut);
        let random = &mut Random(seed * 77 + 5);
        for _ in 0..1 + random.below(3) {
            let n = random.below(ops.len() as u64) as usize;
            let op = &mut ops[n];
            match random.below(4) {
                0 => op.call = op.call.saturating_sub(random.below(100)),
                1 if op.ret != NEVER => op.ret = op.call + random.below(30),
                2 => op.call = (op.call + random.below(40)).min(op.ret),
                _ => {
                    if let Did::Saw { what, .. } = &mut op.did {
                        *what = None;
                    }
                }
            }
        }
        let (quick, tried) = (check(&ops), linearizable(&ops));
        // Where replies are missing, the checker gives the benefit of the doubt.
        if cut == 0 || tried {
            assert_eq!(quick.is_ok(), tried, "seed {seed}: {quick:?}\n{ops:?}");
        }
        match tried {
            true => right += 1,
            false => wrong += 1,
        }
    }
    assert!(right > 300 && wrong > 300, "{right} right, {wrong} wrong");
}
