//! What was decided: the fact that the store applies and that replicas, the AOF and the change log
//! get. Times are absolute, numbers chosen, nothing is asked again.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::codec::v1;
use crate::lock::Turn;
use crate::partition::Home;
use crate::record::{Parts, Record};
use crate::{Stamp, Who};

/// What kind of change a commit is. The numbers travel and are frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A new value.
    Set = 1,
    /// A tombstone.
    Delete = 2,
    /// An old value again.
    Rollback = 3,
    /// No new version: the oldest ones go.
    Trim = 4,
    /// No new version: the lock has another holder, or none, or another lease.
    Lock = 5,
    /// No new version: another partition is charged with it, or none.
    Move = 6,
    /// A new value that settles two writes.
    Merge = 7,
}

/// What becomes of the key's expiry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiry {
    /// It stays as it is.
    Keep,
    /// The key no longer expires.
    Clear,
    /// It expires at this unix time in milliseconds.
    At(u64),
}

/// What one command changes, on however many keys.
#[derive(Clone, PartialEq, Debug)]
pub struct Change<'a> {
    /// What kind.
    pub kind: Kind,
    /// The commit's stamp; [`Stamp::NONE`] for a trim or a move.
    pub stamp: Stamp,
    /// Who made it.
    pub who: Arc<Who>,
    /// The metadata of the versions written.
    pub meta: Option<Cow<'a, [u8]>>,
    /// The request id of the versions written.
    pub reqid: Option<&'a [u8]>,
    /// When their writer says that they were made, in milliseconds of unix time.
    pub time_ms: Option<u64>,
    /// What becomes of the keys' expiry.
    pub expiry: Expiry,
    /// The fence that the keys have seen: its name and token.
    pub fence: Option<(&'a [u8], u64)>,
    /// One for each key.
    pub writes: SmallVec<[Write<'a>; 1]>,
}

/// What a change does to one key.
#[derive(Clone, PartialEq, Debug)]
pub struct Write<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The new value; empty where there is none.
    pub value: Cow<'a, [u8]>,
    /// How many of the oldest versions go.
    pub drops: usize,
    /// What becomes of the lock, where that is what changes.
    pub turn: Option<Box<Turn>>,
    /// Which partition is charged from now on, where that changes.
    pub home: Option<Box<Home>>,
}

impl Write<'_> {
    /// What travels beside the key: the new value, or the turn of the lock.
    pub fn carried(&self) -> Cow<'_, [u8]> {
        match &self.turn {
            None => Cow::Borrowed(&self.value),
            Some(turn) => Cow::Owned(v1::encode_turn(turn)),
        }
    }
}

impl<'a> Change<'a> {
    /// The change that lets the oldest `drops` versions of a key go.
    pub fn trim(key: &'a [u8], drops: usize) -> Change<'a> {
        Change {
            kind: Kind::Trim,
            stamp: Stamp::NONE,
            who: Default::default(),
            meta: None,
            reqid: None,
            time_ms: None,
            expiry: Expiry::Keep,
            fence: None,
            writes: smallvec::smallvec![Write {
                key,
                value: Cow::Borrowed(b""),
                drops,
                turn: None,
                home: None,
            }],
        }
    }

    /// The change that has another partition charged with a key.
    pub fn moved(key: &'a [u8], home: Home) -> Change<'a> {
        let mut change = Change::trim(key, 0);
        change.kind = Kind::Move;
        change.writes[0].home = Some(Box::new(home));
        change
    }

    /// True if the change fits on top of a record, as one decided over it does.
    pub fn overtakes(&self, record: &Record) -> bool {
        matches!(self.kind, Kind::Trim | Kind::Lock | Kind::Move)
            || self.stamp > record.current().stamp()
    }

    /// What becomes of the expiry of a key that held this record and holds it no longer as it was, and that
    /// expires then, in milliseconds of unix time.
    ///
    /// A key without a value goes when its last lease ends: a lock of which nobody hears again is not kept.
    /// One that has only a tombstone stays at least for so long.
    pub fn expiry_over(&self, record: &Record, expires_ms: impl FnOnce() -> Option<u64>) -> Expiry {
        if self.kind != Kind::Lock || record.live().is_some() {
            return self.expiry;
        }
        let until = record.leased_until_ms();
        if record.is_bare() || expires_ms().is_some_and(|at| at < until) {
            return Expiry::At(until);
        }
        Expiry::Keep
    }

    /// Applies the change to the record of its `n`-th key. Cannot fail: what can be refused was
    /// refused when the change was decided. `None` in and out: there is no record. A record that is
    /// [empty](Record::is_empty) afterwards is to go, and its key with it.
    #[inline]
    pub fn apply(&self, n: usize, mut record: Option<&mut Record>) -> Option<Record> {
        let mut made = self.apply_to(n, record.as_deref_mut());
        let write = &self.writes[n];
        if let Some(record) = made.as_mut().or(record) {
            match &write.home {
                Some(home) => record.set_member(home.member(write.key.len())),
                None => record.set_member(record.member().of_key(write.key.len())),
            }
        }
        made
    }

    #[inline(always)]
    fn apply_to(&self, n: usize, record: Option<&mut Record>) -> Option<Record> {
        let write = &self.writes[n];
        if let Kind::Trim | Kind::Move = self.kind {
            if let Some(r) = record {
                r.trim(write.drops);
            }
            return None;
        }
        if let Some(turn) = &write.turn {
            match record {
                Some(r) => r.turn(turn),
                None if turn.held.is_some() => {
                    let mut record = Record::bare(self.who.clone());
                    record.turn(turn);
                    return Some(record);
                }
                None => {}
            }
            return None;
        }
        let next = self.parts(write);
        let mut made = None;
        let record = match record {
            None => made.insert(Record::new(&next)),
            Some(r) if self.overtakes(r) => {
                r.push(&next, write.drops);
                r
            }
            // Somebody wrote here besides the one who decided. Versions rise in a record, or it could
            // not be loaded again: what was decided stands alone.
            Some(r) => {
                *r = Record::new(&next);
                r
            }
        };
        if let Some((name, token)) = self.fence {
            record.raise_fence(name, token);
        }
        made
    }

    /// The version that a write makes.
    fn parts<'s>(&'s self, write: &'s Write<'_>) -> Parts<'s> {
        Parts {
            stamp: self.stamp,
            who: &self.who,
            value: (self.kind != Kind::Delete).then_some(&write.value),
            meta: self.meta.as_deref(),
            reqid: self.reqid,
            time_ms: self.time_ms,
        }
    }

    /// How many bytes will hold the version of the `n`-th key.
    pub(crate) fn version_len(&self, n: usize) -> usize {
        self.parts(&self.writes[n]).blob_len()
    }

    /// What the record of the `n`-th key [will be charged](Record::charge) once the change is applied: to the
    /// byte, and 0 where none will be left.
    pub fn charge_after(&self, n: usize, record: Option<&Record>) -> usize {
        self.charge_if(n, record, self.writes[n].drops)
    }

    /// The same if no version made way for it: no less, and known without a look at these. They are the ones that
    /// have not been looked at for longest, and memory is slow.
    pub(crate) fn charge_at_most(&self, n: usize, record: Option<&Record>) -> usize {
        self.charge_if(n, record, 0)
    }

    #[inline(always)]
    fn charge_if(&self, n: usize, record: Option<&Record>, drops: usize) -> usize {
        let write = &self.writes[n];
        let key_len = write.key.len();
        if let Kind::Trim | Kind::Move = self.kind {
            return record.map_or(0, |r| {
                r.charge() - r.charge_of_oldest(drops) - r.member().key_len() + key_len
            });
        }
        if let Some(turn) = &write.turn {
            let mut guard = record.and_then(Record::guard).cloned().unwrap_or_default();
            guard.turn(turn);
            return Record::charge_guarded(record, &guard, key_len);
        }
        let raised;
        let mut guard = record.and_then(Record::guard);
        if let Some((name, token)) = self.fence {
            let mut with = guard.cloned().unwrap_or_default();
            with.raise(name, token);
            raised = with;
            guard = Some(&raised);
        }
        let record = record.filter(|r| self.overtakes(r));
        Record::charge_after(record, &self.parts(write), drops, guard, key_len)
    }
}
