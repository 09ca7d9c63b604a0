//! The change log: whoever comes with a cursor gets all that happened after it, in order, or is told.

use std::rc::Rc;
use std::sync::Arc;

use maos_core::audience::Audience;
use maos_core::event::Event;
use maos_core::feed::{Feed, Gap, Tell};
use maos_core::glob::Glob;
use maos_core::wire::watch::{Mark, Watch};
use maos_core::{Stamp, Who};
use proptest::prelude::*;

fn tell<'t>(stamp: Option<u64>, key: &'t [u8], who: &'t Arc<Who>) -> Tell<'t> {
    Tell {
        stamp: stamp.map(Stamp),
        event: Event::Updated,
        db: 0,
        key,
        version: Stamp(stamp.unwrap_or(0)),
        previous: Stamp::NONE,
        who,
        unsure: false,
    }
}

fn mark(at: u64, reign: u64) -> Mark {
    let [at, reign] = [at, reign].map(Stamp);
    Mark { at, reign }
}

fn positions(feed: &Feed, since: Mark) -> Result<Vec<u64>, Gap> {
    Ok(feed.since(since)?.map(|t| t.position.0).collect())
}

/// A client reads out of a refusal what the log said.
#[test]
fn a_refusal_says_from_where_to_go_on() {
    let some = [mark(5, 3), mark(9_007_199_254_740_991, 1), mark(7, 0)];
    for (from, kept) in some.into_iter().zip(some.into_iter().cycle().skip(1)) {
        for gap in [
            Gap::Compacted(from),
            Gap::Diverged { kept: None, from },
            Gap::Diverged {
                kept: Some(kept),
                from,
            },
        ] {
            assert_eq!(Gap::of(&gap.refusal(mark(8, 2))), Some(gap));
        }
    }
    let other = maos_core::Refusal::fixed(maos_core::Code::Busy, "go on from 5");
    assert_eq!(Gap::of(&other), None);
}

/// The picture at the head of the module.
#[test]
fn every_cursor_has_its_answer() {
    let who = Arc::default();
    let mut feed = Feed::new(1 << 20);
    assert_eq!(feed.append(tell(None, b"k", &who)), None);
    feed.reign(Stamp(99));
    for stamp in [100, 105, 105, 207] {
        feed.append(tell(Some(stamp), b"k", &who));
    }
    feed.reign(Stamp(300));
    feed.append(tell(Some(311), b"k", &who));
    let all = [100, 105, 105, 207, 311];
    for (cursor, rest) in [
        (mark(99, 99), &all[..]),
        (mark(100, 99), &all[1..]),
        (mark(105, 99), &all[3..]),
        (mark(207, 99), &all[4..]),
        (mark(300, 300), &all[4..]),
        (mark(311, 300), &[]),
        // A number alone.
        (mark(105, 0), &all[3..]),
        (mark(106, 0), &all[3..]),
        (mark(207, 0), &all[4..]),
    ] {
        assert_eq!(positions(&feed, cursor), Ok(rest.to_vec()), "{cursor}");
    }
    let floor = mark(99, 99);
    let parted = |at: Mark| Gap::Diverged {
        kept: Some(at),
        from: at,
    };
    let unknown = Gap::Diverged {
        kept: None,
        from: floor,
    };
    for (cursor, lost) in [
        (mark(250, 99), parted(mark(207, 99))),
        (mark(305, 99), parted(mark(207, 99))),
        (mark(311, 99), parted(mark(207, 99))),
        (mark(50, 7), unknown),
        (mark(305, 7), unknown),
        (mark(50, 99), Gap::Compacted(floor)),
        (mark(250, 300), unknown),
        (mark(312, 300), parted(mark(311, 300))),
        (mark(250, 0), parted(mark(207, 99))),
        (mark(312, 0), parted(mark(311, 300))),
        (mark(50, 0), Gap::Compacted(floor)),
        (mark(0, 0), Gap::Compacted(floor)),
    ] {
        assert_eq!(positions(&feed, cursor), Err(lost), "{cursor}");
    }
}

/// What a node hears of the reign that it is in.
#[test]
fn a_log_that_begins_in_the_midst_is_told_where_it_is() {
    let who = Arc::default();
    let mut feed = Feed::new(1 << 20);
    feed.append(tell(Some(105), b"k", &who));
    feed.follow(mark(105, 99));
    assert_eq!(feed.mark(feed.last()), mark(105, 99));
    feed.append(tell(Some(107), b"k", &who));
    feed.follow(mark(107, 99));
    assert_eq!(positions(&feed, mark(105, 99)), Ok(vec![107]));
    assert_eq!(positions(&feed, mark(104, 99)), Ok(vec![105, 107]));
    assert_eq!(
        positions(&feed, mark(103, 99)),
        Err(Gap::Compacted(mark(104, 99)))
    );
    feed.follow(mark(200, 200));
    assert_eq!(
        positions(&feed, mark(108, 99)),
        Err(Gap::Diverged {
            kept: Some(mark(107, 99)),
            from: mark(107, 99)
        })
    );
    let mut late = Feed::new(1 << 20);
    late.follow(mark(107, 99));
    assert_eq!(late.append(tell(None, b"k", &who)), Some(Stamp(107)));
    assert_eq!(positions(&late, mark(107, 99)), Ok(vec![108]));
}

#[test]
fn what_has_no_stamp_takes_the_next_number() {
    let who = Arc::default();
    let mut feed = Feed::new(1 << 20);
    for (stamp, position) in [
        (Some(10), 10),
        (None, 11),
        (None, 12),
        (Some(12), 13),
        (Some(20), 20),
    ] {
        let before = feed.last();
        let heard = feed.append(tell(stamp, b"k", &who)).unwrap();
        assert_eq!(feed.last(), Stamp(position));
        assert!(position == 10 || heard == before);
    }
    assert_eq!(positions(&feed, mark(9, 0)), Ok(vec![10, 11, 12, 13, 20]));
}

#[test]
fn an_event_can_turn_out_to_be_another() {
    let who = Arc::default();
    let mut feed = Feed::new(1 << 20);
    feed.append(tell(Some(1), b"k", &who));
    let event = |feed: &Feed| feed.since(mark(0, 0)).unwrap().last().map(|t| t.event);
    feed.amend(0, b"other", Event::Updated, Event::Expired);
    feed.amend(1, b"k", Event::Updated, Event::Expired);
    feed.amend(0, b"k", Event::Deleted, Event::Expired);
    assert_eq!(event(&feed), Some(Event::Updated));
    feed.amend(0, b"k", Event::Updated, Event::Expired);
    assert_eq!(event(&feed), Some(Event::Expired));
}

#[test]
fn a_log_that_is_off_holds_nothing_and_begins_anew() {
    let who = Arc::default();
    let mut feed = Feed::new(1 << 20);
    feed.append(tell(Some(5), b"k", &who));
    feed.set_max_bytes(0);
    assert!(!feed.is_on() && feed.is_empty() && feed.bytes() == 0);
    assert_eq!(feed.append(tell(Some(6), b"k", &who)), None);
    feed.set_max_bytes(1 << 20);
    feed.append(tell(Some(7), b"k", &who));
    assert_eq!(
        positions(&feed, mark(5, 0)),
        Err(Gap::Compacted(mark(6, 0)))
    );
    assert_eq!(positions(&feed, mark(6, 0)), Ok(vec![7]));
}

/// What happens to a log.
#[derive(Clone, Debug)]
enum Step {
    /// A commit of so many events, its stamp so much above the last position, or below.
    Commit(i64, usize),
    /// An event without a stamp.
    Other,
    /// Another node takes over that has seen all but the last so many events, its clock so much further.
    Failover(usize, u64),
    /// The bound is set anew.
    Bound(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (-3i64..50, 1usize..4).prop_map(|(by, n)| Step::Commit(by, n)),
        2 => Just(Step::Other),
        1 => (0usize..6, 0u64..40).prop_map(|(lost, by)| Step::Failover(lost, by)),
        1 => (1usize..60).prop_map(|kib| Step::Bound(kib << 10)),
    ]
}

proptest! {
    /// Against a list of everything: from every cursor that was ever given out, by a node that still lives or one that was
    /// replaced, a watcher reads exactly what happened after it, or is told. And a replica, which has seen the
    /// same changes, says the same.
    #[test]
    fn from_every_cursor_all_that_followed_or_a_word(
        steps in prop::collection::vec(step(), 1..400),
        key_len in 0usize..300,
        small in any::<bool>(),
    ) {
        let who: Arc<Who> = Arc::default();
        let mut bound = if small { 8 << 10 } else { 1 << 20 };
        let mut feed = Feed::new(bound);
        feed.reign(Stamp(1000));
        // Present history: position and key. And every cursor there ever was, with how much of the history it had
        // seen, if that is history still.
        let mut history: Vec<(u64, Vec<u8>)> = vec![];
        // Beside it how much of the present history it surely has seen.
        // And which of the snapshots it is from.
        let mut cursors: Vec<(Mark, Option<usize>, usize, usize)> = vec![(mark(1000, 1000), Some(0), 0, 0)];
        // Nodes do not make the same stamps.
        let mut node = 0;
        let own = |n: u64, node: u64| (n << 14) | (node << 7);
        let mut before = 0;
        let mut snapshots: Vec<(Feed, usize)> = vec![(feed.clone(), 0)];
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Commit(by, events) => {
                    let stamp = own((feed.last().0 >> 14).saturating_add_signed(by).max(1), node);
                    // A commit after another has another stamp.
                    let stamp = if stamp == before { stamp + (1 << 14) } else { stamp };
                    before = stamp;
                    for event in 0..events {
                        let mut key = format!("{n}:{event}").into_bytes();
                        key.resize(key.len() + key_len, b'x');
                        feed.append(tell(Some(stamp), &key, &who));
                        history.push((feed.last().0, key));
                    }
                }
                Step::Other => {
                    feed.append(tell(None, b"gone", &who));
                    history.push((feed.last().0, b"gone".to_vec()));
                }
                Step::Failover(lost, by) => {
                    let at = snapshots.len().saturating_sub(1 + lost);
                    let (then, seen) = snapshots[at].clone();
                    // The old one may have gone on beyond the moment at which this one took over.
                    let clock = (then.last().0 >> 14) + 1 + by;
                    node += 1;
                    feed = then;
                    feed.set_max_bytes(bound);
                    history.truncate(seen);
                    snapshots.truncate(at + 1);
                    // With the last changes, or where the other one began without any.
                    let kept = feed.mark(feed.last());
                    for (cursor, seen_by, common, from) in &mut cursors {
                        if *cursor == kept {
                            *from = at.min(*from);
                        }
                        if *from > at {
                            *seen_by = None;
                        }
                        *common = seen.min(*common);
                    }
                    feed.reign(Stamp(own(clock, node)));
                }
                Step::Bound(bytes) => {
                    feed.set_max_bytes(bytes);
                    bound = bytes;
                }
            }
            cursors.push((feed.mark(feed.last()), Some(history.len()), history.len(), snapshots.len()));
            snapshots.push((feed.clone(), history.len()));
            // But for what one segment takes at least.
            prop_assert!(feed.bytes() <= bound.max(8 << 10), "{} of {}", feed.bytes(), bound);
        }
        for (cursor, seen, common, _) in cursors {
            match (feed.since(cursor), seen) {
                (Ok(told), Some(seen)) => {
                    let told: Vec<_> = told.map(|t| (t.position.0, t.key.to_vec())).collect();
                    prop_assert_eq!(&told[..], &history[seen..], "from {}", cursor);
                }
                (Ok(_), None) => prop_assert!(false, "{} was lost", cursor),
                (Err(Gap::Compacted(floor)), seen) => {
                    prop_assert!(seen.is_some(), "{} was lost, not let go", cursor);
                    prop_assert!(cursor.at < floor.at && feed.since(floor).is_ok());
                }
                (Err(Gap::Diverged { kept, from }), seen) => {
                    prop_assert!(seen.is_none(), "{} was not lost", cursor);
                    // From there on nothing is left out that it has not seen.
                    let rest = feed.since(from).map(|told| told.count());
                    let unseen = history.len() - common;
                    prop_assert!(rest.is_ok_and(|n| n >= unseen || from.at == feed.floor()));
                    // And what it is told to be kept was seen, and is history.
                    let surely = history.iter().take_while(|(at, _)| kept.is_some_and(|k| *at <= k.at.0));
                    prop_assert!(surely.count() <= common);
                }
            }
        }
    }

    /// The index says what trying every pattern says.
    #[test]
    fn whoever_has_a_fitting_pattern_hears_and_nobody_else(
        patterns in prop::collection::vec(prop::collection::vec("[ab]{0,4}(\\*|\\?|)[ab]{0,2}", 1..4), 0..12),
        gone in prop::collection::vec(any::<bool>(), 12),
        keys in prop::collection::vec("[ab]{0,7}", 1..12),
    ) {
        let mut audience = Audience::default();
        for (id, patterns) in patterns.iter().enumerate() {
            let globs = patterns.iter().map(|p| Glob::new(p.as_bytes()).unwrap().into_owned());
            audience.enter(id as u64, Rc::new(Watch::new(globs.collect())));
        }
        for id in (0..patterns.len()).filter(|id| gone[*id]) {
            audience.leave(id as u64);
        }
        for key in keys {
            let mut heard = vec![];
            audience.heard(key.as_bytes(), |id| heard.push(id));
            heard.sort_unstable();
            heard.dedup();
            let fits = |p: &String| Glob::new(p.as_bytes()).unwrap().fits(key.as_bytes());
            let all = patterns.iter().enumerate().filter(|(id, p)| !gone[*id] && p.iter().any(fits));
            let all: Vec<_> = all.map(|(id, _)| id as u64).collect();
            prop_assert_eq!(heard, all, "{}", key);
        }
    }
}
