//! Who may want to hear of a key: watchers found by what their patterns begin with, not by trying each pattern on
//! each event.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;
use std::rc::Rc;

use foldhash::fast::FixedState;
use foldhash::HashMap;

use crate::wire::watch::Watch;

/// The watchers that wait, by number.
#[derive(Default, Debug)]
pub struct Audience {
    watchers: HashMap<u64, Rc<Watch<'static>>>,
    /// For each beginning the watchers with such a pattern, and which of their patterns it is.
    by_literal: BTreeMap<Box<[u8]>, Vec<(u64, usize)>>,
    /// How many of these patterns begin alike, as far as the shortest of them: what most keys do not begin with is known
    /// by one look.
    beginnings: HashMap<u64, usize>,
    shortest: usize,
}

fn hash(beginning: &[u8]) -> u64 {
    FixedState::default().hash_one(beginning)
}

impl Audience {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// Every watcher.
    pub fn all(&self) -> impl Iterator<Item = u64> + '_ {
        self.watchers.keys().copied()
    }

    /// A watcher comes, with its patterns.
    pub fn enter(&mut self, id: u64, watch: Rc<Watch<'static>>) {
        if self.watchers.is_empty() {
            self.shortest = usize::MAX;
        }
        let lengths = watch.patterns.iter().map(|glob| glob.literal().len());
        let shortest = lengths.min().unwrap_or(usize::MAX);
        if shortest < self.shortest {
            self.shorten(shortest);
        }
        for (n, glob) in watch.patterns.iter().enumerate() {
            let beginning = hash(&glob.literal()[..self.shortest]);
            *self.beginnings.entry(beginning).or_default() += 1;
            match self.by_literal.get_mut(glob.literal()) {
                Some(there) => there.push((id, n)),
                None => {
                    self.by_literal.insert(glob.literal().into(), vec![(id, n)]);
                }
            }
        }
        self.watchers.insert(id, watch);
    }

    /// A watcher goes.
    pub fn leave(&mut self, id: u64) {
        let watch = self.watchers.remove(&id);
        for glob in watch.iter().flat_map(|watch| &watch.patterns) {
            let beginning = hash(&glob.literal()[..self.shortest]);
            if let Some(count) = self.beginnings.get_mut(&beginning) {
                *count -= 1;
                if *count == 0 {
                    self.beginnings.remove(&beginning);
                }
            }
            if let Some(there) = self.by_literal.get_mut(glob.literal()) {
                there.retain(|(other, _)| *other != id);
                if there.is_empty() {
                    self.by_literal.remove(glob.literal());
                }
            }
        }
    }

    /// From now on only so many bytes of each pattern tell one beginning from another.
    fn shorten(&mut self, shortest: usize) {
        self.shortest = shortest;
        self.beginnings.clear();
        for (literal, there) in &self.by_literal {
            *self
                .beginnings
                .entry(hash(&literal[..shortest]))
                .or_default() += there.len();
        }
    }

    /// Has `hear` called with every watcher that has a pattern which the key fits; with some perhaps twice.
    ///
    /// What the key begins with is looked for from the longest to the shortest. Of all beginnings the largest that is
    /// not above the key is one of its own, or shares less with it than itself is long; then the next that may be one
    /// is not above what they share. So each step finds one or leaves some bytes of the key out.
    pub fn heard(&self, key: &[u8], mut hear: impl FnMut(u64)) {
        let beginning = key.get(..self.shortest).map(hash);
        if !beginning.is_some_and(|b| self.beginnings.contains_key(&b)) {
            return;
        }
        let mut rest = key;
        loop {
            let below = (Bound::Unbounded, Bound::Included(rest));
            let Some((literal, there)) = self.by_literal.range::<[u8], _>(below).next_back() else {
                return;
            };
            let alike = literal.iter().zip(rest).take_while(|(a, b)| a == b);
            let shared = alike.count();
            if shared < literal.len() {
                rest = &rest[..shared];
                continue;
            }
            for (id, n) in there {
                if self.watchers[id].patterns[*n].fits(key) {
                    hear(*id);
                }
            }
            let Some(shorter) = literal.len().checked_sub(1) else {
                return;
            };
            rest = &rest[..shorter];
        }
    }
}
