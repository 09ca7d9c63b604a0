//! Linearizability by trying: Wing and Gong's search, with memory of what has failed.

use std::collections::HashSet;

use super::{Did, Op};

/// Histories for which this many states do not suffice are not decided.
const MOST_STATES: usize = 3_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    /// The largest version known to have been given.
    last: i64,
    /// The live value, and its version if that is known.
    live: Option<(Option<i64>, u64)>,
}

impl State {
    /// The state after an operation; `None` if it cannot happen here.
    fn after(self, did: Did) -> Option<State> {
        match did {
            Did::Wrote {
                version,
                value,
                over,
            } => {
                let fits = version > self.last && self.allows(over);
                let deletes_nothing = value.is_none() && self.live.is_none();
                (fits && !deletes_nothing).then_some(State {
                    last: version,
                    live: value.map(|v| (Some(version), v)),
                })
            }
            Did::Maybe { value, over } => self.allows(over).then_some(State {
                last: self.last,
                live: value.map(|v| (None, v)),
            }),
            Did::Saw { what: None, not } => (self.live.is_none() && not != Some(0)).then_some(self),
            Did::Saw {
                what: Some((version, value)),
                not,
            } => {
                let (known, held) = self.live?;
                let fits = match known {
                    Some(known) => known == version,
                    None => version > self.last,
                };
                (fits && held == value && not != Some(version)).then_some(State {
                    last: version,
                    live: Some((Some(version), value)),
                })
            }
        }
    }

    fn allows(&self, over: Option<i64>) -> bool {
        match (over, self.live) {
            (None, _) | (Some(0), None) => true,
            (Some(over), Some((Some(version), _))) => over == version,
            // Nobody has seen its version, so nobody names it.
            _ => false,
        }
    }
}

struct Search<'a> {
    ops: &'a [Op],
    done: Vec<u64>,
    failed: HashSet<(Box<[u64]>, State)>,
}

/// Whether some order of the operations, in which none moves before one that had returned, is the work
/// of one register.
pub fn linearizable(ops: &[Op]) -> bool {
    let mut ops = ops.to_vec();
    ops.sort_unstable_by_key(|op| op.call);
    let mut search = Search {
        ops: &ops,
        done: vec![0; ops.len().div_ceil(64)],
        failed: HashSet::new(),
    };
    search.from(State {
        last: 0,
        live: None,
    })
}

impl Search<'_> {
    fn from(&mut self, state: State) -> bool {
        let open = |done: &[u64], n: usize| done[n / 64] >> (n % 64) & 1 == 0;
        let left = (0..self.ops.len()).filter(|n| open(&self.done, *n));
        let must = left
            .clone()
            .filter(|n| !matches!(self.ops[*n].did, Did::Maybe { .. }));
        // Nothing goes before what has returned earlier.
        let Some(first) = must.map(|n| self.ops[n].ret).min() else {
            return true;
        };
        let next: Vec<usize> = left
            .clone()
            .take_while(|n| self.ops[*n].call <= first)
            .collect();
        if !self.failed.insert((self.done.clone().into(), state)) {
            return false;
        }
        assert!(self.failed.len() < MOST_STATES, "not decided");
        // A read that changes nothing, and can happen now, may happen now.
        let still = |n: &usize| {
            let did = self.ops[*n].did;
            matches!(did, Did::Saw { .. }) && state.after(did) == Some(state)
        };
        let next = match next.iter().copied().find(still) {
            Some(n) => vec![n],
            None => next,
        };
        // Versions rise, so of the writes that have one only that with the smallest can come next.
        let versions = left.filter_map(|n| match self.ops[n].did {
            Did::Wrote { version, .. } => Some(version),
            _ => None,
        });
        let smallest = versions.min();
        for n in next {
            if matches!(self.ops[n].did, Did::Wrote { version, .. } if Some(version) > smallest) {
                continue;
            }
            let Some(after) = state.after(self.ops[n].did) else {
                continue;
            };
            self.done[n / 64] |= 1 << (n % 64);
            if self.from(after) {
                return true;
            }
            self.done[n / 64] &= !(1 << (n % 64));
        }
        false
    }
}
