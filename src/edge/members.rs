//! The keys of partitions that must find them: those that make room by removing keys, and those that leave with them.
//!
//! In the order in which they were last written. Derived: what a listing lacks the background pass puts into it, and
//! what it has too much is found out when the key is looked at. Only such partitions pay for it, with about a hundred
//! bytes for each key.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use maos_core::partition::Place;
use maos_core::record::Record;
use maos_core::Stamp;

use super::ledger;

/// A key as it is listed: when it was last written, and where it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Member {
    /// The newest stamp in its record.
    pub stamp: Stamp,
    /// Its database.
    pub db: i32,
    /// Its name.
    pub key: Box<[u8]>,
}

struct MainThread(RefCell<Option<HashMap<Place, BTreeSet<Member>>>>);

// SAFETY: commands, timers, events and the callbacks of values that are loaded or unlinked come on the main thread
// only; `free`, which may run elsewhere, does not come here.
unsafe impl Sync for MainThread {}

static MEMBERS: MainThread = MainThread(RefCell::new(None));

/// A listing may lack keys: those that were loaded before it was known that it is wanted.
static LACKING: AtomicBool = AtomicBool::new(false);

/// Nothing of the server is called inside: keys go while others are looked at.
fn with<T>(then: impl FnOnce(&mut HashMap<Place, BTreeSet<Member>>) -> T) -> T {
    then(MEMBERS.0.borrow_mut().get_or_insert_default())
}

/// True if listings were found to lack keys.
pub fn is_lacking() -> bool {
    LACKING.load(Relaxed)
}

/// True once after listings were found to lack keys.
pub fn take_lacking() -> bool {
    LACKING.swap(false, Relaxed)
}

/// All keys are to be looked through.
pub fn lack() {
    LACKING.store(true, Relaxed);
}

/// A key is of a partition whose keys are listed.
#[cold]
pub fn add(place: Place, stamp: Stamp, db: i32, key: &[u8]) {
    let key = key.into();
    with(|all| {
        all.entry(place)
            .or_default()
            .insert(Member { stamp, db, key })
    });
}

/// A key is not of that partition any more, or was written.
#[cold]
pub fn remove(place: Place, stamp: Stamp, db: i32, key: &[u8]) {
    let key = key.into();
    with(|all| {
        if let Some(members) = all.get_mut(&place) {
            members.remove(&Member { stamp, db, key });
        }
    });
}

/// A record came to be held at a key.
pub fn entered(record: &Record, db: i32, key: &[u8]) {
    let place = record.member().place();
    if ledger::is_listed(place) {
        add(place, record.newest(), db, key);
    }
}

/// A record is held at a key no longer.
pub fn left(record: &Record, db: i32, key: &[u8]) {
    let place = record.member().place();
    if ledger::is_listed(place) {
        remove(place, record.newest(), db, key);
    }
}

/// Where in its listing a record was, if in any.
pub type Was = Option<(Place, Stamp)>;

/// Looks where a record is listed, before it changes.
#[inline]
pub fn before(record: &Record) -> Was {
    let place = record.member().place();
    ledger::is_listed(place).then(|| (place, record.newest()))
}

/// A record has changed.
#[inline]
pub fn after(was: Was, record: &Record, place: impl FnOnce() -> (i32, Box<[u8]>)) {
    let now = before(record);
    if was == now {
        return;
    }
    let (db, key) = place();
    if let Some((place, stamp)) = was {
        remove(place, stamp, db, &key);
    }
    if let Some((place, stamp)) = now {
        add(place, stamp, db, &key);
    }
}

/// Has a partition's keys listed from now on, or not any more.
pub fn list(place: Place, listed: bool) {
    if ledger::is_listed(place) == listed {
        return;
    }
    ledger::list(place, listed);
    with(|all| all.remove(&place));
    if listed {
        LACKING.store(true, Relaxed);
    }
}

/// Has the keys of a partition listed of which it is not known yet whether they have to be: while a data set is loaded
/// its definition may still come.
pub fn list_for_now(place: Place) {
    ledger::list(place, true);
}

/// Keys went, or changed places, without being named.
pub fn clear() {
    with(HashMap::clear);
    LACKING.store(true, Relaxed);
}

/// The keys of a partition from this one on, those first that were written longest ago, at most so many.
pub fn after_member(place: Place, from: Option<&Member>, most: usize) -> Vec<Member> {
    use std::ops::Bound::{Excluded, Unbounded};
    with(|all| {
        let Some(members) = all.get(&place) else {
            return vec![];
        };
        let from = from.map_or(Unbounded, Excluded);
        members
            .range((from, Unbounded))
            .take(most)
            .cloned()
            .collect()
    })
}
