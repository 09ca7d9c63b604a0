//! Slots that move: in which order the events of several logs are told.
//!
//! Each log is in order, and most keys stay where they are. A key whose slot moves has events in two logs, and the one
//! that has it now may be read sooner than the one that had it:
//!
//! ```text
//!   log of A:   a1   x7   x8 | the slot of x moves          a2
//!   log of B:        b1                       x8 (came)   x9   b2
//!                                             ^ waits until the log of A has been read to where it was after that
//! ```
//!
//! - The end of A's log is asked for after B has told of `x`, or after the cluster has said that the slot is B's: so all that
//!   A has made of `x` is before it. It has to be asked of A's master: a replica may not have heard of all yet.
//! - While B's events wait, A's pass.
//! - A slot that comes back to A before all that is done is *tangled*: of A's events some come before those of B and some
//!   after. Then all wait until every log in question has been read far enough, and the versions of each key, which rise
//!   wherever it is, say the order. So too where A tells of a key that came with a version that nobody
//!   has told of.
//! - That a key came with its slot is no event, if its version was told.
//!
//! Deliberately absent: an order between keys of different slots. The store has none either.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use maos_core::event::Event;
use redis::cluster_routing::Slot;

use crate::topology::{ShardId, SLOTS};
use crate::wire::Mark;
use crate::{KeyEvent, Version};

/// So many events are held back, before that is given up.
const HELD_MAX: usize = 100_000;
/// So many keys are remembered with the version that was told last.
const RECENT: usize = 10_000;

/// The slots that shards had, as ranges.
pub(crate) type Ranges = Vec<(u16, u16)>;

/// A slot of which there may be events in other logs that come first.
#[derive(Default)]
struct Hold {
    /// The shard whose events come before all that waits; none, if it is tangled.
    first: Option<ShardId>,
    awaits: Vec<Await>,
    waits: Vec<Waiting>,
}

struct Waiting {
    shard: ShardId,
    event: KeyEvent,
    /// Before it can be said that nobody has told of what comes here.
    awaits: Vec<Await>,
}

/// The log of this shard has to be read to where it was when it was asked for its end, by the number of the question.
#[derive(Clone, Copy)]
struct Await {
    shard: ShardId,
    asked: u64,
}

/// What is known of the log of a shard.
#[derive(Default)]
struct Log {
    /// It has been read up to here.
    read_to: Mark,
    /// Events of it that are held back, and where it had been read to before the first of them.
    held: usize,
    held_since: Option<Mark>,
    /// Questions for its end: the last that is wanted, the last that was asked, the last that was answered; one after
    /// the other.
    wanted: u64,
    asked: u64,
    answered: u64,
    /// Answers that it has not been read to yet, and the last question to whose answer it has.
    ends: VecDeque<(u64, Version)>,
    reached: u64,
}

impl Log {
    fn look(&mut self) {
        let read_to = self.read_to.at;
        while let Some((number, _)) = self.ends.front().filter(|(_, at)| *at <= read_to) {
            self.reached = self.reached.max(*number);
            self.ends.pop_front();
        }
    }
}

/// What was told last of a key.
#[derive(Clone, Copy)]
struct Told {
    version: Version,
    /// It went, and not to another shard.
    is_gone: bool,
}

/// What was told last of many keys.
#[derive(Default)]
struct Recent {
    keys: HashMap<Vec<u8>, Told>,
    order: VecDeque<Vec<u8>>,
}

impl Recent {
    fn note(&mut self, key: &[u8], told: Told) {
        if let Some(before) = self.keys.get_mut(key) {
            *before = told;
            return;
        }
        self.keys.insert(key.to_vec(), told);
        self.order.push_back(key.to_vec());
        if self.order.len() > RECENT {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }

    /// Whether a key that comes was there before: told of with this version, or with a later one.
    fn has(&self, key: &[u8], version: Version) -> bool {
        let told = self.keys.get(key);
        told.is_some_and(|told| told.version >= version && !told.is_gone)
    }
}

/// What becomes of an event that was read.
#[derive(PartialEq, Debug)]
pub(crate) enum Turn {
    /// It is told.
    Now(KeyEvent),
    /// It is told later, or is none.
    Later,
    /// As many are held back as may be. What is said of these shards does not come: to be told, before going on with
    /// [`give_up`](Order::give_up).
    Full(Vec<ShardId>),
}

/// Puts the events of all logs in order.
#[derive(Default)]
pub(crate) struct Order {
    logs: Vec<Log>,
    holds: HashMap<Slot, Hold>,
    held: usize,
    recent: Recent,
    /// What [`slots`](Order::slots) says may be another thing since it was looked at.
    has_changed: bool,
}

impl Order {
    /// One log more.
    pub(crate) fn follow(&mut self) {
        self.logs.push(Log::default());
    }

    /// How far the log of a shard has been read.
    pub(crate) fn read_to(&self, shard: ShardId) -> Mark {
        self.logs[shard].read_to
    }

    /// All up to here was told of a shard: but for what is held back it is where its log has been read to.
    pub(crate) fn seen(&self, shard: ShardId) -> Mark {
        let log = &self.logs[shard];
        log.held_since.unwrap_or(log.read_to)
    }

    /// The log of a shard has been read up to here.
    pub(crate) fn read(&mut self, shard: ShardId, to: Mark) {
        self.logs[shard].read_to = to;
        self.logs[shard].look();
    }

    /// A slot has another shard now than this one.
    pub(crate) fn moved(&mut self, slot: Slot, from: ShardId, to: ShardId) {
        self.has_changed = true;
        let end = self.ask(from);
        let new = || Hold {
            first: Some(from),
            ..Hold::default()
        };
        let hold = self.holds.entry(slot).or_insert_with(new);
        hold.first = hold.first.filter(|first| *first != to);
        hold.awaits.push(end);
    }

    /// A subscription goes on where it knew this shard as the one of a slot, or none for certain; meanwhile any other may
    /// have had it.
    pub(crate) fn may_have_moved(&mut self, slot: Slot, from: Option<ShardId>, now: ShardId) {
        let awaits = self.ask_others(now);
        let hold = self.holds.entry(slot).or_default();
        (hold.first, hold.awaits) = (from, awaits);
    }

    fn ask_others(&mut self, than: ShardId) -> Vec<Await> {
        let others = (0..self.logs.len()).filter(|shard| *shard != than);
        others.map(|shard| self.ask(shard)).collect()
    }

    /// Asks where the log of a shard ends now.
    fn ask(&mut self, shard: ShardId) -> Await {
        let log = &mut self.logs[shard];
        // One that is under way may have been answered already.
        let asked = log.asked + 1;
        log.wanted = asked;
        Await { shard, asked }
    }

    /// The shards whose ends are to be asked for now, with the numbers of the questions.
    pub(crate) fn take_questions(&mut self) -> Vec<(ShardId, u64)> {
        let mut questions = vec![];
        for (shard, log) in self.logs.iter_mut().enumerate() {
            if log.asked == log.answered && log.asked < log.wanted {
                log.asked = log.wanted;
                questions.push((shard, log.asked));
            }
        }
        questions
    }

    /// The answer to a question: the log of a shard is at least as long as this.
    pub(crate) fn ends(&mut self, shard: ShardId, number: u64, at: Version) {
        let log = &mut self.logs[shard];
        log.answered = number;
        log.ends.push_back((number, at));
        log.look();
    }

    /// An event of this shard's log, of a slot that is `owner`'s by what is known.
    pub(crate) fn take(&mut self, shard: ShardId, event: KeyEvent, owner: Option<ShardId>) -> Turn {
        let Some(key) = &event.key else {
            // All keys of a shard went: those that come again are news, whatever their versions.
            self.recent = Recent::default();
            return Turn::Now(event);
        };
        let slot = Slot::for_key(key);
        let comes_new = self.comes_new(&event);
        match self.holds.get_mut(&slot) {
            // It is on its way here.
            None => match owner {
                Some(owner) if owner != shard => self.moved(slot, owner, shard),
                _ if comes_new => drop(self.holds.entry(slot).or_default()),
                _ => {}
            },
            // It has been away.
            Some(hold) if comes_new => hold.first = hold.first.filter(|first| *first != shard),
            Some(_) => {}
        }
        let awaits = match comes_new {
            true => self.ask_others(shard),
            false => vec![],
        };
        let waiting = Waiting {
            shard,
            event,
            awaits,
        };
        match self.holds.get_mut(&slot) {
            Some(hold) if hold.first != Some(shard) => hold.waits.push(waiting),
            _ => return self.now(waiting.event).map_or(Turn::Later, Turn::Now),
        }
        self.has_changed |= comes_new;
        let log = &mut self.logs[shard];
        log.held_since.get_or_insert(log.read_to);
        log.held += 1;
        self.held += 1;
        if self.held <= HELD_MAX {
            return Turn::Later;
        }
        let hold = &self.holds[&slot];
        let of_events = hold.waits.iter().flat_map(|waiting| &waiting.awaits);
        let all = hold.awaits.iter().chain(of_events);
        let shards: BTreeSet<ShardId> = all.map(|one| one.shard).collect();
        Turn::Full(shards.into_iter().collect())
    }

    /// Whether a key comes with a version that nobody has told of: whoever made it may not have told yet.
    fn comes_new(&self, event: &KeyEvent) -> bool {
        let has = |key: &Vec<u8>| self.recent.has(key, event.version);
        event.event == Event::Restored && !event.key.as_ref().is_some_and(has)
    }

    /// Notes an event that is told. That a key went with its slot, and came with it, is no news.
    fn now(&mut self, event: KeyEvent) -> Option<KeyEvent> {
        let Some(key) = &event.key else {
            return Some(event);
        };
        let moves = matches!(event.event, Event::Left | Event::Restored);
        let known = moves && self.recent.has(key, lived_with(&event));
        let told = Told {
            version: lived_with(&event),
            is_gone: matches!(
                event.event,
                Event::Deleted | Event::Expired | Event::Evicted
            ),
        };
        if !known {
            self.recent.note(key, told);
        }
        (event.event != Event::Left && !known).then_some(event)
    }

    /// Nobody waits for these any more.
    pub(crate) fn give_up(&mut self, shards: &[ShardId]) {
        for shard in shards {
            let log = &mut self.logs[*shard];
            log.reached = log.wanted;
        }
    }

    /// The events that have waited long enough, and the shards of which more is [seen](Order::seen) with that.
    pub(crate) fn release(&mut self) -> (Vec<KeyEvent>, HashSet<ShardId>) {
        let (mut told, mut of) = (vec![], HashSet::new());
        if self.holds.is_empty() {
            return (told, of);
        }
        let logs = &self.logs;
        let mut over = vec![];
        for (slot, hold) in &mut self.holds {
            hold.awaits
                .retain(|one| logs[one.shard].reached < one.asked);
            if hold.awaits.is_empty() {
                over.push(*slot);
            }
        }
        self.has_changed |= !over.is_empty();
        for slot in over {
            let Some(hold) = self.holds.remove(&slot) else {
                continue;
            };
            let mut waits = untangled(hold.waits).into_iter();
            while let Some(mut next) = waits.next() {
                // Whether that is so is not certain yet.
                if self.comes_new(&next.event) {
                    let logs = &self.logs;
                    next.awaits
                        .retain(|one| logs[one.shard].reached < one.asked);
                    if !next.awaits.is_empty() {
                        let hold = Hold {
                            first: None,
                            awaits: next.awaits.clone(),
                            waits: std::iter::once(next).chain(waits).collect(),
                        };
                        self.holds.insert(slot, hold);
                        break;
                    }
                }
                let log = &mut self.logs[next.shard];
                log.held -= 1;
                if log.held == 0 {
                    log.held_since = None;
                    of.insert(next.shard);
                }
                self.held -= 1;
                told.extend(self.now(next.event));
            }
        }
        (told, of)
    }

    /// Whether [`slots`](Order::slots) has to be looked at again; once.
    pub(crate) fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// The slots of each shard, by the order in which their events were told up to now. One that is tangled is nobody's.
    pub(crate) fn slots(
        &self,
        owner: impl Fn(Slot) -> Option<ShardId>,
    ) -> BTreeMap<ShardId, Ranges> {
        let mut all: BTreeMap<ShardId, Ranges> = BTreeMap::new();
        for number in 0..SLOTS {
            let Some(slot) = Slot::new(number) else { break };
            let of = match self.holds.get(&slot) {
                Some(hold) => hold.first,
                None => owner(slot),
            };
            let Some(of) = of else { continue };
            let ranges = all.entry(of).or_default();
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        all
    }
}

/// The version by which an event has its place among those of its key.
fn lived_with(event: &KeyEvent) -> Version {
    let before = event.previous.unwrap_or(Version::NONE);
    match event.event {
        // The number of the event is of the log that the key has left.
        Event::Left => before,
        _ => event.version.max(before),
    }
}

/// Events of one slot in the order in which they happened: those of one log are, and those of several by their versions, key
/// by key.
fn untangled(waits: Vec<Waiting>) -> Vec<Waiting> {
    let is_one = waits.windows(2).all(|pair| pair[0].shard == pair[1].shard);
    if is_one {
        return waits;
    }
    let mut of_key: HashMap<Option<&[u8]>, Vec<usize>> = HashMap::new();
    for (n, waiting) in waits.iter().enumerate() {
        let key = waiting.event.key.as_deref();
        of_key.entry(key).or_default().push(n);
    }
    let moved = |waiting: &Waiting| {
        (
            waiting.shard,
            waiting.event.key.clone(),
            lived_with(&waiting.event),
        )
    };
    let came = waits.iter().filter(|w| w.event.event == Event::Restored);
    let came: HashSet<_> = came.map(moved).collect();
    // A key came with a version that another log has; and went after it came.
    let place = |n: &usize| {
        let waiting = &waits[*n];
        let of_version = match waiting.event.event {
            Event::Restored => 1,
            Event::Left if came.contains(&moved(waiting)) => 2,
            _ => 0,
        };
        (lived_with(&waiting.event), of_version)
    };
    let mut from: Vec<usize> = (0..waits.len()).collect();
    for places in of_key.into_values() {
        let mut sorted = places.clone();
        sorted.sort_by_key(place);
        for (to, of) in places.into_iter().zip(sorted) {
            from[to] = of;
        }
    }
    let mut waits: Vec<Option<Waiting>> = waits.into_iter().map(Some).collect();
    from.into_iter().filter_map(|n| waits[n].take()).collect()
}

#[cfg(test)]
mod tests {
    use maos_core::Stamp;

    use super::*;

    const A: ShardId = 0;
    const B: ShardId = 1;

    fn at(position: u64) -> Mark {
        Mark {
            at: Stamp(position),
            reign: Version::NONE,
        }
    }

    fn event(kind: Event, key: &str, version: u64) -> KeyEvent {
        KeyEvent {
            event: kind,
            key: Some(key.into()),
            version: Stamp(version),
            previous: None,
            author: None,
            agent: None,
            value: None,
            is_gone: false,
        }
    }

    fn updated(version: u64) -> KeyEvent {
        event(Event::Updated, "x", version)
    }

    fn order(shards: usize) -> Order {
        let mut order = Order::default();
        (0..shards).for_each(|_| order.follow());
        order
    }

    fn slot() -> Slot {
        Slot::for_key("x")
    }

    fn versions(released: (Vec<KeyEvent>, HashSet<ShardId>)) -> Vec<u64> {
        released.0.iter().map(|event| event.version.0).collect()
    }

    #[test]
    fn who_has_the_slot_now_waits_for_the_log_of_the_one_that_had_it() {
        let mut order = order(2);
        order.read(A, at(5));
        order.read(B, at(7));
        let came = event(Event::Restored, "x", 8);
        assert_eq!(order.take(B, came, Some(A)), Turn::Later);
        assert_eq!(order.take(B, updated(12), Some(A)), Turn::Later);
        order.read(B, at(14));
        // Whoever goes on from here hears of it again.
        assert_eq!((order.seen(B), order.read_to(B)), (at(7), at(14)));
        assert_eq!(order.take_questions(), [(A, 1)]);
        assert_eq!(order.take_questions(), []);
        order.ends(A, 1, Stamp(9));
        assert_eq!(versions(order.release()), [0; 0]);
        for version in [6, 8] {
            let turn = order.take(A, updated(version), Some(A));
            assert_eq!(turn, Turn::Now(updated(version)));
        }
        let mut left = event(Event::Left, "x", 9);
        left.previous = Some(Stamp(8));
        assert_eq!(order.take(A, left, Some(A)), Turn::Later);
        order.read(A, at(9));
        let (told, of) = order.release();
        assert_eq!((told, of), (vec![updated(12)], HashSet::from([B])));
        assert_eq!(order.seen(B), at(14));
        // It is known now.
        assert_eq!(order.take(B, updated(15), Some(B)), Turn::Now(updated(15)));
    }

    #[test]
    fn what_was_asked_before_does_not_count() {
        let mut order = order(2);
        order.moved(slot(), A, B);
        assert_eq!(order.take_questions(), [(A, 1)]);
        // The answer may be of before this.
        order.moved(Slot::for_key("y"), A, B);
        assert_eq!(order.take(B, updated(2), Some(B)), Turn::Later);
        let other = event(Event::Updated, "y", 3);
        assert_eq!(order.take(B, other, Some(B)), Turn::Later);
        assert_eq!(order.take_questions(), []);
        order.ends(A, 1, Version::NONE);
        assert_eq!(versions(order.release()), [2]);
        assert_eq!(order.take_questions(), [(A, 2)]);
        order.ends(A, 2, Version::NONE);
        assert_eq!(versions(order.release()), [3]);
        assert_eq!(order.take_questions(), []);
    }

    #[test]
    fn a_slot_that_was_away_and_is_back_is_told_by_its_versions() {
        let mut order = order(3);
        order.moved(slot(), A, B);
        assert_eq!(order.take(A, updated(1), Some(B)), Turn::Now(updated(1)));
        assert_eq!(order.take(B, updated(3), Some(B)), Turn::Later);
        assert_eq!(order.slots(|_| Some(B))[&A].len(), 1);
        order.moved(slot(), B, A);
        // Nobody's: whoever resumes here takes no shard's events for the first ones.
        let slots = &order.slots(|_| Some(A))[&A];
        let number: u16 = slots.iter().map(|(first, last)| last - first + 1).sum();
        assert_eq!(number, SLOTS - 1);
        assert_eq!(order.take(A, updated(6), Some(A)), Turn::Later);
        assert_eq!(order.take(B, updated(5), Some(A)), Turn::Later);
        let old = event(Event::Restored, "x", 5);
        assert_eq!(order.take(A, old, Some(A)), Turn::Later);
        assert_eq!(order.take(A, updated(2), Some(A)), Turn::Later);
        assert_eq!(order.take_questions(), [(A, 1), (B, 1), (2, 1)]);
        order.ends(A, 1, Version::NONE);
        assert_eq!(versions(order.release()), [0; 0]);
        order.ends(B, 1, Version::NONE);
        assert_eq!(versions(order.release()), [2, 3, 5, 6]);
    }

    #[test]
    fn a_key_that_comes_with_a_version_that_was_not_told_waits_for_all() {
        let mut order = order(3);
        let came = |version| event(Event::Restored, "x", version);
        assert_eq!(order.take(A, updated(4), Some(A)), Turn::Now(updated(4)));
        assert_eq!(order.take(A, came(4), Some(A)), Turn::Later);
        assert_eq!(order.take_questions(), []);
        assert_eq!(order.take(A, came(6), Some(A)), Turn::Later);
        assert_eq!(order.take(A, updated(7), Some(A)), Turn::Later);
        assert_eq!(order.take_questions(), [(1, 1), (2, 1)]);
        assert_eq!(order.take(B, updated(6), Some(A)), Turn::Later);
        order.ends(1, 1, Version::NONE);
        order.ends(2, 1, Version::NONE);
        assert_eq!(versions(order.release()), [6, 7]);
        // One of which nobody tells is news.
        let other = event(Event::Restored, "y", 3);
        assert_eq!(order.take(A, other, Some(A)), Turn::Later);
        order.take_questions();
        order.ends(1, 2, Version::NONE);
        order.ends(2, 2, Version::NONE);
        assert_eq!(versions(order.release()), [3]);
    }

    #[test]
    fn what_comes_again_after_a_flush_is_news() {
        let mut order = order(2);
        assert_eq!(order.take(A, updated(4), Some(A)), Turn::Now(updated(4)));
        let mut flushed = event(Event::Flushed, "", 5);
        flushed.key = None;
        assert_eq!(order.take(A, flushed.clone(), None), Turn::Now(flushed));
        let came = event(Event::Restored, "x", 4);
        assert_eq!(order.take(A, came.clone(), Some(A)), Turn::Later);
        assert_eq!(order.take_questions(), [(B, 1)]);
        order.ends(B, 1, Version::NONE);
        assert_eq!(order.release().0, [came]);
    }

    #[test]
    fn a_resumption_hears_first_of_the_shard_that_it_knew() {
        let mut order = order(3);
        order.may_have_moved(slot(), Some(A), 2);
        assert_eq!(order.take_questions(), [(A, 1), (B, 1)]);
        assert_eq!(order.take(2, updated(9), Some(2)), Turn::Later);
        assert_eq!(order.take(A, updated(3), Some(2)), Turn::Now(updated(3)));
        assert_eq!(order.take(B, updated(5), Some(2)), Turn::Later);
        order.ends(A, 1, Version::NONE);
        order.ends(B, 1, Version::NONE);
        assert_eq!(versions(order.release()), [5, 9]);
    }

    #[test]
    fn what_does_not_come_is_given_up() {
        let mut order = order(2);
        order.moved(slot(), A, B);
        for version in 0..HELD_MAX as u64 {
            assert_eq!(order.take(B, updated(version), Some(B)), Turn::Later);
        }
        assert_eq!(
            order.take(B, updated(u64::MAX), Some(B)),
            Turn::Full(vec![A])
        );
        order.give_up(&[A]);
        assert_eq!(order.release().0.len(), HELD_MAX + 1);
    }

    /// A cluster in which slots move while its logs are read as it comes: each at its own pace, and who has what is heard
    /// of late or never.
    struct World {
        random: fastrand::Rng,
        logs: Vec<Vec<KeyEvent>>,
        owners: [ShardId; KEYS.len()],
        last: [u64; KEYS.len()],
        version: u64,
        known: HashMap<Slot, ShardId>,
        read: Vec<usize>,
        questions: Vec<(ShardId, u64)>,
        order: Order,
        told: Vec<Vec<u64>>,
    }

    const SHARDS: usize = 3;
    const KEYS: [&str; 3] = ["x", "y", "z"];

    impl World {
        fn new(seed: u64) -> World {
            let slots = KEYS.map(Slot::for_key);
            World {
                random: fastrand::Rng::with_seed(seed),
                logs: vec![vec![]; SHARDS],
                owners: [A; KEYS.len()],
                last: [0; KEYS.len()],
                version: 0,
                known: slots.map(|slot| (slot, A)).into(),
                read: vec![0; SHARDS],
                questions: vec![],
                order: order(SHARDS),
                told: vec![vec![]; KEYS.len()],
            }
        }

        fn write(&mut self, key: usize) {
            self.version += 1;
            self.last[key] = self.version;
            let event = event(Event::Updated, KEYS[key], self.version);
            self.logs[self.owners[key]].push(event);
        }

        fn move_slot(&mut self, key: usize) {
            let from = self.owners[key];
            let to = (from + self.random.usize(1..SHARDS)) % SHARDS;
            self.owners[key] = to;
            self.version += 1;
            let mut left = event(Event::Left, KEYS[key], self.version);
            left.previous = Some(Stamp(self.last[key]));
            self.logs[from].push(left);
            // One that was never written is not there.
            if self.last[key] > 0 {
                let came = event(Event::Restored, KEYS[key], self.last[key]);
                self.logs[to].push(came);
            }
        }

        fn look(&mut self) {
            for (key, owner) in KEYS.iter().zip(self.owners) {
                let slot = Slot::for_key(key);
                match self.known.insert(slot, owner) {
                    Some(from) if from != owner => self.order.moved(slot, from, owner),
                    _ => {}
                }
            }
        }

        fn read(&mut self, shard: ShardId) {
            let end = self.logs[shard].len();
            let to = self.random.usize(self.read[shard]..=end);
            for n in self.read[shard]..to {
                let event = self.logs[shard][n].clone();
                let slot = Slot::for_key(event.key.as_ref().unwrap());
                let owner = self.known.get(&slot).copied();
                if let Turn::Now(event) = self.order.take(shard, event, owner) {
                    self.tell(event);
                }
            }
            self.read[shard] = to;
            self.order.read(shard, at(to as u64));
            self.release();
        }

        fn release(&mut self) {
            for event in self.order.release().0 {
                self.tell(event);
            }
            self.questions.extend(self.order.take_questions());
        }

        fn answer(&mut self) {
            if self.questions.is_empty() {
                return;
            }
            let n = self.random.usize(..self.questions.len());
            let (shard, number) = self.questions.swap_remove(n);
            let end = self.logs[shard].len() as u64;
            self.order.ends(shard, number, Stamp(end));
            self.release();
        }

        fn tell(&mut self, event: KeyEvent) {
            let key = event.key.as_deref().unwrap();
            let key = KEYS.iter().position(|k| k.as_bytes() == key).unwrap();
            assert_eq!(event.event, Event::Updated, "{event:?}");
            self.told[key].push(event.version.0);
        }

        fn step(&mut self) {
            let key = self.random.usize(..KEYS.len());
            match self.random.u8(0..16) {
                0 => self.move_slot(key),
                1 => self.look(),
                2..6 => {
                    let shard = self.random.usize(..SHARDS);
                    self.read(shard);
                }
                6..8 => self.answer(),
                _ => self.write(key),
            }
        }
    }

    /// All that happened to each key, once and in order, whoever had it when, and whatever was heard of that.
    #[test]
    fn wherever_slots_go_their_events_are_told_in_order() {
        for seed in 0..5_000 {
            let mut world = World::new(seed);
            (0..200).for_each(|_| world.step());
            world.look();
            let made: Vec<Vec<u64>> = KEYS
                .iter()
                .map(|key| {
                    let all = world.logs.iter().flatten();
                    let of = all.filter(|e| e.key.as_deref() == Some(key.as_bytes()));
                    let of = of.filter(|e| e.event == Event::Updated);
                    let mut made: Vec<u64> = of.map(|e| e.version.0).collect();
                    made.sort_unstable();
                    made
                })
                .collect();
            for _ in 0..200 {
                (0..SHARDS).for_each(|shard| world.read(shard));
                world.answer();
            }
            assert_eq!(world.told, made, "seed {seed}");
            assert_eq!(world.order.held, 0, "seed {seed}");
        }
    }
}
