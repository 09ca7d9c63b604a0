//! A record that a client RESTOREs over what is newer: it gets one more version on top, or an old
//! compare-and-set would fit again.
//!
//! What RESTORE was given travels as the client sent it, so the stamp that the master chose for the new
//! version goes ahead of it: `MAOS.RESTORED key was now`, numbers in decimal.

use crate::config::HARD_VERSIONS_MAX;
use crate::record::{Parts, Record};
use crate::Stamp;

/// What was decided about a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The current version in the payload.
    pub was: Stamp,
    /// The version that goes on top; the same if none does, and only the lock goes.
    pub now: Stamp,
}

impl Restored {
    /// The arguments after the key.
    pub fn args(&self) -> [String; 2] {
        [self.was.to_string(), self.now.to_string()]
    }

    /// From the arguments after the key; `None` if they are not what [`args`](Restored::args) gives.
    pub fn from_args(was: &[u8], now: &[u8]) -> Option<Restored> {
        let number = |bytes| std::str::from_utf8(bytes).ok()?.parse().ok().map(Stamp);
        let it = Restored {
            was: number(was)?,
            now: number(now)?,
        };
        (it.was <= it.now && it.now <= Stamp::MAX).then_some(it)
    }

    /// Puts the new version on top: value, author and metadata of the current one, which becomes
    /// history. Not its request id, which names the write that was made. A lock does not come back: its
    /// token may have been lost since. False, and nothing done, if this was decided about another record.
    pub fn apply(&self, record: &mut Record) -> bool {
        if self.now == self.was {
            let same = record.current().stamp() == self.was;
            if same {
                record.unlock();
            }
            return same;
        }
        let Some(live) = record.live().filter(|v| v.stamp() == self.was) else {
            return false;
        };
        // Owned: the record is about to change.
        let (who, value) = (live.who().clone(), live.value().map(|v| v.into_owned()));
        let meta = live.meta().map(<[u8]>::to_vec);
        let next = Parts {
            stamp: self.now,
            who: &who,
            value: value.as_deref(),
            meta: meta.as_deref(),
            reqid: None,
            time_ms: live.time_given(),
        };
        // The history's limits are looked at when it is next written or trimmed; what could not be
        // loaded again goes at once.
        let most = usize::try_from(HARD_VERSIONS_MAX).unwrap_or(usize::MAX);
        let drops = (record.len() + 1).saturating_sub(most);
        record.push(&next, drops);
        record.unlock();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Who;
    use std::sync::Arc;

    #[test]
    fn the_value_stays_and_the_version_rises() {
        let who = Arc::new(Who::new(b"default", Some(b"planner")));
        let first = Record::new(&Parts {
            stamp: Stamp(5),
            who: &who,
            value: Some(b"v"),
            meta: Some(b"{}"),
            reqid: Some(b"r1"),
            time_ms: Some(77),
        });
        let mut record = first.clone();
        let it = Restored {
            was: Stamp(5),
            now: Stamp(9),
        };
        let [was, now] = it.args();
        let it = Restored::from_args(was.as_bytes(), now.as_bytes()).unwrap();
        assert!(it.apply(&mut record));
        let top = record.current();
        assert_eq!(
            (top.stamp(), top.value().as_deref()),
            (it.now, Some(&b"v"[..]))
        );
        assert_eq!((top.meta(), top.who()), (Some(&b"{}"[..]), &who));
        assert_eq!(top.time_given(), Some(77));
        assert_eq!(top.reqid(), None);
        assert_eq!(record.written_by_request(b"r1"), Some(it.was));
        assert_eq!(record.nth(0), Some(first.current()));
        assert_eq!(record.created(), it.was);
        // Meant for another payload: nothing happens.
        let before = record.clone();
        assert!(!it.apply(&mut record));
        assert_eq!(record, before);
    }

    #[test]
    fn a_tombstone_stays_as_it_is() {
        let mut record = Record::new(&Parts {
            stamp: Stamp(5),
            who: &Arc::default(),
            value: None,
            meta: None,
            reqid: None,
            time_ms: None,
        });
        let it = Restored {
            was: Stamp(5),
            now: Stamp(9),
        };
        assert!(!it.apply(&mut record));
        assert_eq!(record.len(), 1);
    }

    #[test]
    fn nonsense_is_no_decision() {
        for (was, now) in [("9", "5"), ("x", "5"), ("1", "9007199254740992"), ("", "")] {
            assert_eq!(Restored::from_args(was.as_bytes(), now.as_bytes()), None);
        }
    }
}
