//! Which backup a node makes next by itself, and which go: whatever lies in the directory.

use std::collections::BTreeSet;

use maos_core::config::{Limits, Schedule};
use maos_core::schedule::{cause, plan, Plan, NAME};
use maos_core::wire::backup::{BackupId, BackupReply};
use maos_core::Stamp;
use proptest::prelude::*;

const NODE: &[u8] = b"here";
const SECOND: u64 = 1_000_000;

fn id(n: u8) -> BackupId {
    BackupId([n; 16])
}

fn made(n: u8, at_s: u64, parent: Option<u8>) -> BackupReply<'static> {
    BackupReply {
        id: id(n),
        name: NAME.as_bytes().into(),
        instant: Stamp(at_s * SECOND),
        made_on: NODE.into(),
        key: None,
        parent: parent.map(id),
        prefixes: vec![],
    }
}

fn at(s: u64) -> Stamp {
    Stamp(s * SECOND)
}

fn every(s: u64) -> Schedule {
    Schedule {
        every_us: s * SECOND,
        full_every: 3,
        ..Schedule::default()
    }
}

#[test]
fn without_any_a_full_one_is_due() {
    assert_eq!(plan(at(9), &every(10), NODE, &[]), Plan::default());
    let defaults = Limits::default().schedule;
    assert_eq!((defaults.every_us, defaults.full_every), (0, 7));
    assert_eq!((defaults.keep, defaults.keep_us), (0, 0));
    assert!(!defaults.on_replicas);
}

#[test]
fn each_goes_on_from_the_one_before_and_every_nth_is_full() {
    let mut all = vec![];
    let mut kinds = vec![];
    for n in 0..8u8 {
        let now = at(100 + 10 * u64::from(n));
        let next = plan(now, &every(10), NODE, &all);
        assert_eq!(next.wait_us, 0);
        kinds.push(next.since);
        let mut one = made(n, 100 + 10 * u64::from(n), None);
        one.parent = next.since;
        all.push(one);
    }
    let ids = [
        None,
        Some(0),
        Some(1),
        None,
        Some(3),
        Some(4),
        None,
        Some(6),
    ];
    assert_eq!(kinds, ids.map(|n| n.map(id)));
    let full = Schedule {
        full_every: 1,
        ..every(10)
    };
    assert_eq!(plan(at(200), &full, NODE, &all).since, None);
    // It is counted from the last one.
    assert_eq!(plan(at(174), &every(10), NODE, &all).wait_us, 6 * SECOND);
}

#[test]
fn what_others_made_is_neither_gone_on_from_nor_counted() {
    let mut named = made(1, 50, None);
    named.name = b"mine".into();
    let mut elsewhere = made(2, 60, None);
    elsewhere.made_on = b"there".into();
    let mut part = made(3, 70, None);
    part.prefixes = vec![b"app:".into()];
    let others = [named, elsewhere, part];
    assert_eq!(plan(at(71), &every(10), NODE, &others), Plan::default());
}

#[test]
fn a_chain_that_is_torn_leads_to_a_full_one() {
    let all = [made(1, 10, None), made(2, 20, Some(1))];
    assert_eq!(plan(at(30), &every(5), NODE, &all).since, Some(id(2)));
    assert_eq!(plan(at(30), &every(5), NODE, &all[1..]).since, None);
    // A link that is not older than what goes on from it is none.
    let all = [made(1, 20, None), made(2, 20, Some(1))];
    assert_eq!(plan(at(30), &every(5), NODE, &all).since, None);
    let all = [made(1, 10, Some(2)), made(2, 20, Some(1))];
    assert_eq!(plan(at(30), &every(5), NODE, &all).since, None);
}

#[test]
fn what_lies_ahead_of_the_clock_is_left_alone() {
    let all = [made(1, 10, None), made(2, 90, Some(1))];
    let schedule = Schedule {
        keep: 1,
        keep_us: 1,
        ..every(5)
    };
    let now = plan(at(12), &schedule, NODE, &all);
    assert_eq!((now.since, now.wait_us), (Some(id(1)), 3 * SECOND));
    let all = [made(1, 10, None), made(3, 11, None), made(2, 90, None)];
    assert_eq!(plan(at(12), &schedule, NODE, &all).surplus, [id(1)]);
}

#[test]
fn what_is_kept_keeps_what_it_needs() {
    let all = [
        made(1, 10, None),
        made(2, 20, Some(1)),
        made(3, 30, Some(2)),
        made(4, 40, None),
        made(5, 50, Some(4)),
        made(6, 60, Some(5)),
    ];
    let surplus = |keep, keep_s, all: &[BackupReply<'_>]| {
        let schedule = Schedule {
            keep,
            keep_us: keep_s * SECOND,
            ..every(5)
        };
        plan(at(60), &schedule, NODE, all).surplus
    };
    let first = [id(3), id(2), id(1)];
    assert_eq!(surplus(0, 0, &all), []);
    for keep in 1..=3 {
        assert_eq!(surplus(keep, 0, &all), first, "{keep}");
    }
    assert_eq!(surplus(4, 0, &all), []);
    // By age; the newest one stays however old it is.
    assert_eq!(surplus(0, 30, &all), []);
    assert_eq!(surplus(0, 29, &all), first);
    assert_eq!(surplus(0, 1, &all[..4]), first);
    assert_eq!(surplus(0, 1, &all[..2]), []);
    // Only what both let go.
    assert_eq!(surplus(4, 1, &all), []);
    assert_eq!(surplus(1, 60, &all), []);
    assert_eq!(surplus(1, 1, &all), first);
    // A backup of somebody else that goes on from the second one.
    let mut other = made(9, 25, Some(2));
    other.name = b"mine".into();
    let with = [&all[..], &[other]].concat();
    assert_eq!(surplus(1, 0, &with), [id(3)]);
    // A copy of a file that is called otherwise is not the node's to remove, and needs its links as well.
    let mut copy = made(2, 20, Some(1));
    copy.name = b"copy".into();
    let with = [&all[..], &[copy]].concat();
    assert_eq!(surplus(1, 0, &with), [id(3)]);
}

#[test]
fn a_cause_is_what_is_said_without_ids() {
    let one = "the backup 0123456789abcdef0123456789abcdef is being made";
    let other = "the backup ffffffffffffffffffffffffffffffff is being made";
    assert_eq!(cause(one), cause(other));
    assert_eq!(cause(one), "the backup  is being made");
    assert_eq!(cause("no space left (28)"), "no space left (28)");
    assert_eq!(cause(""), "");
    assert_eq!(cause(&"a".repeat(33)), "a".repeat(33));
    assert_eq!(cause(&format!("x{}", "0".repeat(32))), "x");
}

fn backup() -> impl Strategy<Value = BackupReply<'static>> {
    let name = prop::sample::select(vec![NAME, NAME, NAME, NAME, "mine"]);
    let node = prop::sample::select(vec![NODE, NODE, NODE, NODE, b"there"]);
    let parent = prop::option::weighted(0.6, 0u8..24);
    let prefixed = prop::bool::weighted(0.1);
    (0u8..24, name, 0u64..60, node, parent, prefixed).prop_map(
        |(n, name, at_s, node, parent, prefixed)| BackupReply {
            name: name.as_bytes().into(),
            made_on: node.into(),
            prefixes: if prefixed { vec![b"p".into()] } else { vec![] },
            ..made(n, at_s, parent)
        },
    )
}

/// Anything in a directory, most of it as nodes leave it: each goes on from an older one that is there.
fn directory() -> impl Strategy<Value = Vec<BackupReply<'static>>> {
    let sane =
        prop::collection::vec((backup(), any::<prop::sample::Index>()), 0..24).prop_map(|all| {
            let mut out: Vec<BackupReply<'static>> = vec![];
            for (n, (mut one, which)) in all.into_iter().enumerate() {
                one.id = id(n as u8);
                one.instant = at(n as u64 * 2 + 1);
                one.parent = one
                    .parent
                    .filter(|_| !out.is_empty())
                    .map(|_| out[which.index(out.len())].id);
                out.push(one);
            }
            out
        });
    let any = prop::collection::vec(backup(), 0..24).prop_map(|mut all| {
        let mut seen = BTreeSet::new();
        all.retain(|b| seen.insert(b.id));
        all
    });
    prop_oneof![3 => sane, 1 => any]
}

fn schedule() -> impl Strategy<Value = Schedule> {
    (0usize..5, 0usize..6, 0u64..40).prop_map(|(full_every, keep, keep_s)| Schedule {
        full_every,
        keep,
        keep_us: keep_s * SECOND,
        ..every(10)
    })
}

/// All that a backup goes on from, as far as it is there.
fn ancestors(of: &BackupReply<'_>, all: &[BackupReply<'_>]) -> BTreeSet<BackupId> {
    let mut found = BTreeSet::new();
    let mut next: Vec<BackupId> = of.parent.into_iter().collect();
    while let Some(id) = next.pop() {
        if found.insert(id) {
            next.extend(all.iter().filter(|b| b.id == id).filter_map(|b| b.parent));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_that_is_needed_or_not_its_own_is_ever_removed(
        all in directory(), schedule in schedule(), now_s in 0u64..60, seed in any::<u64>(),
    ) {
        let now = at(now_s);
        let found = plan(now, &schedule, NODE, &all);
        let goes: BTreeSet<_> = found.surplus.iter().copied().collect();
        prop_assert_eq!(goes.len(), found.surplus.len(), "one goes twice");
        let (gone, kept): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|b| goes.contains(&b.id));
        // Of another name or node, of some keys, or ahead of the clock.
        for one in &gone {
            prop_assert_eq!(&*one.name, NAME.as_bytes());
            prop_assert_eq!(&*one.made_on, NODE);
            prop_assert!(one.prefixes.is_empty() && one.instant <= now);
        }
        for one in &kept {
            prop_assert!(ancestors(one, &all).is_disjoint(&goes), "a link of {} is gone", one.id);
        }
        // The newest stay, and whatever is young enough.
        let mut own: Vec<_> = all.iter().filter(|b| {
            *b.name == *NAME.as_bytes() && *b.made_on == *NODE && b.prefixes.is_empty() && b.instant <= now
        }).collect();
        own.sort_by_key(|b| std::cmp::Reverse((b.instant, b.id)));
        let newest: BTreeSet<_> = own.iter().take(schedule.keep.max(1)).map(|b| b.id).collect();
        prop_assert!(newest.is_disjoint(&goes));
        if schedule.keep == 0 && schedule.keep_us == 0 {
            prop_assert!(goes.is_empty());
        }
        if schedule.keep_us > 0 {
            prop_assert!(gone.iter().all(|b| now.0 - b.instant.0 > schedule.keep_us));
        }
        // And those that nobody needs go.
        for (rank, one) in own.iter().enumerate() {
            let beyond = rank > 0 && rank >= schedule.keep && (schedule.keep > 0 || schedule.keep_us > 0);
            let old = schedule.keep_us == 0 || now.0 - one.instant.0 > schedule.keep_us;
            let needed = kept.iter().any(|b| ancestors(b, &all).contains(&one.id));
            if beyond && old && !needed {
                prop_assert!(goes.contains(&one.id), "{} stays for nothing", one.id);
            }
        }
        // What is there at any moment while they are removed has its links, if it had them.
        let mut left = all.clone();
        for id in &found.surplus {
            left.retain(|b| b.id != *id);
            for one in &left {
                for link in ancestors(one, &all) {
                    let was = all.iter().any(|b| b.id == link);
                    let is_sane = all.iter().all(|b| b.id != link || b.instant < one.instant);
                    prop_assert!(!was || !is_sane || left.iter().any(|b| b.id == link), "torn at {}", one.id);
                }
            }
        }
        // Once it is done there is no more to do, and the next one is what it would have been.
        let again = plan(now, &schedule, NODE, &kept);
        prop_assert_eq!(again, Plan { surplus: vec![], ..found.clone() });
        // Whichever way the directory is read.
        let mut mixed = all.clone();
        let mut state = seed;
        for n in (1..mixed.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            mixed.swap(n, (state >> 33) as usize % (n + 1));
        }
        prop_assert_eq!(plan(now, &schedule, NODE, &mixed), found);
    }

    #[test]
    fn what_the_next_one_goes_on_from_is_whole_and_short_enough(
        all in directory(), schedule in schedule(), now_s in 0u64..60,
    ) {
        let now = at(now_s);
        let found = plan(now, &schedule, NODE, &all);
        prop_assert!(found.wait_us <= schedule.every_us);
        let Some(since) = found.since else { return Ok(()) };
        let mut one = all.iter().find(|b| b.id == since).unwrap();
        prop_assert_eq!((&*one.name, &*one.made_on), (NAME.as_bytes(), NODE));
        prop_assert!(one.instant <= now && one.prefixes.is_empty());
        let mut links = 1;
        while let Some(parent) = one.parent {
            let link = all.iter().find(|b| b.id == parent);
            prop_assert!(link.is_some_and(|l| l.instant < one.instant), "a link is missing");
            one = link.unwrap();
            links += 1;
        }
        prop_assert!(links < schedule.full_every);
    }
}
