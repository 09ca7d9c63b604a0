//! Who waits for which lock: queues in the order of arrival, and the cycles that waiting would close.
//!
//! A place is a key in a database. Whoever waits stands in the queue of every place it wants, behind all
//! that came before; nobody overtakes, or a writer would starve behind readers. So a waiter waits for the
//! holders of a place where it is the first, and for the one before it where it is not.
//!
//! Derived state: waiters are connections, and end with them.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::refusal::Quoted;
use crate::{Code, Refusal};

/// At most so many wait for one key.
pub const WAITERS_MAX: usize = 256;
/// At most so many wait on one node.
pub const NODE_WAITERS_MAX: usize = 10_000;

/// A key in a database.
pub type Place = (i32, Box<[u8]>);

type Owner = Box<[u8]>;

/// One that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiter {
    /// Who wants the locks.
    pub owner: Box<[u8]>,
    /// Where.
    pub places: Vec<Place>,
    /// Together with others who want it shared.
    pub shared: bool,
    /// Since when, in milliseconds of unix time.
    pub since_ms: u64,
}

/// All that wait on a node.
#[derive(Debug, Default)]
pub struct Waits {
    last: u64,
    waiters: HashMap<u64, Waiter>,
    queues: HashMap<Place, VecDeque<u64>>,
    owners: HashMap<Owner, Vec<u64>>,
}

impl Waits {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// True if nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Whether one who holds nothing of a place has to stand behind others there.
    pub fn has_queue(&self, place: &Place) -> bool {
        // Nearly always nobody waits anywhere.
        !self.queues.is_empty() && self.queues.contains_key(place)
    }

    /// The waiters of a place, in their order.
    pub fn queue(&self, place: &Place) -> impl Iterator<Item = (u64, &Waiter)> {
        let ids = self.queues.get(place).into_iter().flatten();
        ids.map(|id| (*id, &self.waiters[id]))
    }

    /// Every place for which somebody waits.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.queues.keys()
    }

    /// True if nobody stands before this waiter, wherever it waits.
    pub fn is_next(&self, id: u64) -> bool {
        let places = self.waiters.get(&id).map_or(&[][..], |w| &w.places);
        let first = |place| self.queues.get(place).and_then(|q| q.front()) == Some(&id);
        places.iter().all(first)
    }

    /// Puts a waiter at the end of its queues. Its number.
    ///
    /// # Errors
    /// `LIMIT` if too many wait already; `DEADLOCK` if it would wait for itself: for an owner who waits, be
    /// it over several others, for its own. `holders` gives those who hold a place.
    pub fn enter(
        &mut self,
        waiter: Waiter,
        holders: &mut dyn FnMut(&Place) -> Vec<Owner>,
    ) -> Result<u64, Refusal> {
        let longest = waiter.places.iter().filter_map(|p| self.queues.get(p));
        let longest = longest.map(VecDeque::len).max().unwrap_or(0);
        if longest >= WAITERS_MAX || self.len() >= NODE_WAITERS_MAX {
            let text = format!(
                "{longest} wait for the lock (at most {WAITERS_MAX}), {} on this node (at most {NODE_WAITERS_MAX}); try again later",
                self.len()
            );
            return Err(Refusal::new(Code::Limit, text));
        }
        self.last += 1;
        let id = self.last;
        for place in &waiter.places {
            self.queues.entry(place.clone()).or_default().push_back(id);
        }
        self.owners
            .entry(waiter.owner.clone())
            .or_default()
            .push(id);
        self.waiters.insert(id, waiter);
        match self.cycle(id, holders) {
            None => Ok(id),
            Some(refusal) => {
                self.leave(id);
                Err(refusal)
            }
        }
    }

    /// Takes a waiter out of its queues.
    pub fn leave(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&id)?;
        for place in &waiter.places {
            if let Some(queue) = self.queues.get_mut(place) {
                queue.retain(|other| *other != id);
                if queue.is_empty() {
                    self.queues.remove(place);
                }
            }
        }
        if let Some(ids) = self.owners.get_mut(&waiter.owner) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.owners.remove(&waiter.owner);
            }
        }
        Some(waiter)
    }

    /// The cycle that this waiter closes. A search in breadth over those who wait, each looked at once, as is
    /// each stretch of a queue: who waits at a place waits for all before it there, and for its holders.
    fn cycle(&self, id: u64, holders: &mut dyn FnMut(&Place) -> Vec<Owner>) -> Option<Refusal> {
        let waiter = &self.waiters[&id];
        let start = &waiter.owner;
        let mut search = Search {
            all: self,
            reached: vec![],
            seen: HashSet::from([id]),
        };
        // The waiter itself, which is the last everywhere. Itself before or below it is no cycle of others.
        let waits_once = self.owners[start].len() == 1;
        for place in &waiter.places {
            let holders = holders(place);
            // Nearly always everybody waits for this one place only, and for nobody that is not before this
            // waiter too.
            let alone = waits_once && !holders.contains(start);
            for other in self.before(place, id) {
                let only_here = || other.places.len() == 1 && self.owners[&other.owner].len() == 1;
                if !(alone && only_here()) && other.owner != *start {
                    search.reach(&other.owner, None, place);
                }
            }
            for holder in holders.iter().filter(|holder| *holder != start) {
                search.reach(holder, None, place);
            }
        }
        let mut looked_at: HashMap<&Place, usize> = HashMap::new();
        let mut next = 0;
        while let Some(&Reached { id, .. }) = search.reached.get(next) {
            for place in &self.waiters[&id].places {
                let known = looked_at.get(place).copied();
                let mut at = 0;
                for other in self.before(place, id) {
                    at += 1;
                    if at > known.unwrap_or(0) {
                        if other.owner == *start {
                            return Some(search.told(start, next, place));
                        }
                        search.reach(&other.owner, Some(next), place);
                    }
                }
                if known.is_none() {
                    for holder in holders(place) {
                        if holder == *start {
                            return Some(search.told(start, next, place));
                        }
                        search.reach(&holder, Some(next), place);
                    }
                }
                looked_at.insert(place, at.max(known.unwrap_or(0)));
            }
            next += 1;
        }
        None
    }

    /// Who stands before a waiter at a place.
    fn before(&self, place: &Place, id: u64) -> impl Iterator<Item = &Waiter> {
        let ids = self.queues.get(place).into_iter().flatten();
        let before = ids.take_while(move |other| **other != id);
        before.map(|other| &self.waiters[other])
    }
}

/// The search for a cycle.
struct Search<'w> {
    all: &'w Waits,
    reached: Vec<Reached<'w>>,
    seen: HashSet<u64>,
}

/// A waiter that was reached: from which other (none: from the one that begins), and over which place.
struct Reached<'w> {
    id: u64,
    from: Option<usize>,
    place: &'w Place,
}

impl<'w> Search<'w> {
    /// An owner is waited for: whatever it waits for itself is to be looked at.
    fn reach(&mut self, owner: &Owner, from: Option<usize>, place: &'w Place) {
        for id in self.all.owners.get(owner).into_iter().flatten() {
            if self.seen.insert(*id) {
                let id = *id;
                self.reached.push(Reached { id, from, place });
            }
        }
    }

    /// `a -> b -> a (keys 'x', 'y')`; the last that was reached waits for the first at a place.
    fn told(&self, start: &Owner, last: usize, place: &Place) -> Refusal {
        const SHOWN: usize = 8;
        let mut owners = vec![Quoted(start).to_string()];
        let mut keys = vec![Quoted(&place.1).to_string()];
        let mut at = Some(last);
        while let Some(reached) = at.and_then(|at| self.reached.get(at)) {
            let owner = &self.all.waiters[&reached.id].owner;
            owners.push(Quoted(owner).to_string());
            keys.push(Quoted(&reached.place.1).to_string());
            at = reached.from;
        }
        owners.push(Quoted(start).to_string());
        owners.reverse();
        keys.reverse();
        let more = owners.len().saturating_sub(SHOWN);
        if more > 0 {
            owners.splice(SHOWN / 2..SHOWN / 2 + more, [format!("({more} more)")]);
            keys.truncate(SHOWN);
        }
        let text = format!(
            "{} (keys {}): waiting would never end; give a lock back first",
            owners.join(" -> "),
            keys.join(", ")
        );
        Refusal::new(Code::Deadlock, text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(n: usize) -> Place {
        (0, format!("k{n}").into_bytes().into())
    }

    fn owner(n: usize) -> Box<[u8]> {
        format!("o{n}").into_bytes().into()
    }

    /// The naive detector: who waits for whom, all of it, and whether anybody can reach itself. Where one
    /// stands in a queue it waits for all before it and for all who hold the place.
    fn has_cycle(held: &[Vec<usize>], queues: &[Vec<usize>]) -> bool {
        let mut edges = HashSet::new();
        for (holders, queue) in held.iter().zip(queues) {
            for (at, waiter) in queue.iter().enumerate() {
                let before = queue[..at].iter().chain(holders);
                edges.extend(before.filter(|o| *o != waiter).map(|o| (*waiter, *o)));
            }
        }
        loop {
            let more: Vec<_> = edges
                .iter()
                .flat_map(|(a, b)| {
                    edges
                        .iter()
                        .filter(move |(c, _)| b == c)
                        .map(|(_, d)| (*a, *d))
                })
                .filter(|e| !edges.contains(e))
                .collect();
            if more.is_empty() {
                return edges.iter().any(|(a, b)| a == b);
            }
            edges.extend(more);
        }
    }

    proptest! {
        /// A waiter is refused if and only if it would close a cycle.
        #[test]
        fn exactly_the_cycles_are_refused(
            held in prop::collection::vec(prop::collection::vec(0usize..8, 0..3), 6),
            wants in prop::collection::vec((0usize..8, prop::collection::hash_set(0usize..6, 1..3)), 1..20),
        ) {
            let mut waits = Waits::default();
            let mut queues: Vec<Vec<usize>> = vec![vec![]; 6];
            // Also those who wait twice, and those who hold, together with others, what they wait for.
            for (who, places) in wants {
                let places: Vec<usize> = places.into_iter().collect();
                let mut then = queues.clone();
                places.iter().for_each(|p| then[*p].push(who));
                let waiter = Waiter {
                    owner: owner(who),
                    places: places.iter().map(|p| place(*p)).collect(),
                    shared: false,
                    since_ms: 0,
                };
                let mut holders = |p: &Place| {
                    let n = (0..6).find(|n| place(*n) == *p).expect("one of them");
                    held[n].iter().map(|o| owner(*o)).collect()
                };
                let entered = waits.enter(waiter, &mut holders);
                prop_assert_eq!(entered.is_err(), has_cycle(&held, &then), "{:?} {:?}", held, then);
                match entered {
                    Ok(_) => queues = then,
                    Err(refusal) => prop_assert_eq!(refusal.code, Code::Deadlock),
                }
            }
        }
    }

    #[test]
    fn a_cycle_is_spelled_out() {
        let mut waits = Waits::default();
        let wait = |o: usize, p: usize| Waiter {
            owner: owner(o),
            places: vec![place(p)],
            shared: false,
            since_ms: 0,
        };
        // Each holds the place of its number.
        let mut holders = |p: &Place| {
            let n = (0..20).find(|n| place(*n) == *p).expect("one of them");
            vec![owner(n)]
        };
        waits.enter(wait(1, 2), &mut holders).unwrap();
        waits.enter(wait(2, 3), &mut holders).unwrap();
        let refusal = waits.enter(wait(3, 1), &mut holders).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "DEADLOCK 'o3' -> 'o1' -> 'o2' -> 'o3' (keys 'k1', 'k2', 'k3'): waiting would never end; give a lock back first"
        );
        assert_eq!(waits.len(), 2);
    }

    #[test]
    fn queues_are_bounded_and_leave_nothing_behind() {
        let mut waits = Waits::default();
        let wait = |n: usize| Waiter {
            owner: owner(n),
            places: vec![place(n / WAITERS_MAX), place(1000 + n)],
            shared: true,
            since_ms: 0,
        };
        let ids: Vec<u64> = (0..NODE_WAITERS_MAX)
            .map(|n| waits.enter(wait(n), &mut |_| vec![]).unwrap())
            .collect();
        let more = waits.enter(wait(999_999), &mut |_| vec![]).unwrap_err();
        assert_eq!(more.code, Code::Limit);
        assert!(waits.is_next(ids[0]) && !waits.is_next(ids[1]));
        assert!(waits.leave(ids[0]).is_some() && waits.leave(ids[0]).is_none());
        assert!(waits.is_next(ids[1]));
        for id in &ids[1..] {
            waits.leave(*id);
        }
        assert!(waits.is_empty() && waits.queues.is_empty() && waits.owners.is_empty());
    }
}
