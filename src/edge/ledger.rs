//! What the keys of this node hold: in all, and of each partition.
//!
//! Whatever changes a record says so here, before and after. Values are freed in threads of the server too, where
//! nothing is known but the value; so all of it is atomic, and a record knows its partition's place and the length
//! of its key's name.
//!
//! An *audit* counts anew. It goes over all keys in steps, while they change: each record bears the mark of the last
//! audit that counted it, so what changes meanwhile is put into its sums as well, if and only if it has been counted.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::OnceLock;

use maos_core::partition::{Ledger, Place, Usage};
use maos_core::record::Record;

use super::metrics::METRICS;

/// What is held of one partition.
#[derive(Default)]
struct Account {
    bytes: AtomicI64,
    keys: AtomicI64,
    /// The most bytes there were.
    most: AtomicI64,
    /// What the audit that is going on has counted.
    counted_bytes: AtomicI64,
    counted_keys: AtomicI64,
    /// Its keys are listed in [`members`](super::members).
    listed: AtomicBool,
}

const PAGE: usize = 512;
const PAGES: usize = 512;

static ACCOUNTS: [OnceLock<Box<[Account]>>; PAGES] = [const { OnceLock::new() }; PAGES];

/// The mark of the audit that is going on, or was the last.
static MARK: AtomicBool = AtomicBool::new(false);

#[inline]
fn account(place: Place) -> Option<&'static Account> {
    let at = place.index();
    let page = ACCOUNTS.get(at / PAGE)?;
    let page = page.get_or_init(|| (0..PAGE).map(|_| Account::default()).collect());
    page.get(at % PAGE)
}

impl Account {
    #[inline]
    fn add(&self, keys: i64, bytes: i64, counted: bool) {
        let now = self.bytes.fetch_add(bytes, Relaxed) + bytes;
        if keys != 0 {
            self.keys.fetch_add(keys, Relaxed);
        }
        if counted {
            self.counted_bytes.fetch_add(bytes, Relaxed);
            self.counted_keys.fetch_add(keys, Relaxed);
        }
        if now > self.most.load(Relaxed) {
            self.most.store(now, Relaxed);
        }
    }
}

/// What a record holds.
#[derive(Clone, Copy)]
pub struct Held {
    versions: i64,
    bytes: i64,
    place: Place,
    charge: i64,
    counted: bool,
}

impl Held {
    /// Measures a record.
    #[inline(always)]
    pub fn by(record: &Record) -> Held {
        let member = record.member();
        let place = member.place();
        Held {
            versions: record.len() as i64,
            bytes: record.bytes() as i64,
            place,
            charge: match place.is_some() {
                true => record.charge() as i64,
                false => 0,
            },
            counted: member.mark() == MARK.load(Relaxed),
        }
    }

    fn add(self, sign: i64) {
        METRICS.held(sign, sign * self.versions, sign * self.bytes);
        if let Some(account) = account(self.place).filter(|_| self.place.is_some()) {
            account.add(sign, sign * self.charge, self.counted);
        }
    }
}

/// A record comes to be held. One that is new counts as counted.
pub fn entered(record: &mut Record) {
    record.set_member(record.member().marked(MARK.load(Relaxed)));
    Held::by(record).add(1);
}

/// A record is held no longer.
pub fn left(record: &Record) {
    Held::by(record).add(-1);
}

/// A record that held this has changed.
#[inline(always)]
pub fn changed(before: Held, record: &mut Record) {
    let after = Held::by(record);
    METRICS.held(
        0,
        after.versions - before.versions,
        after.bytes - before.bytes,
    );
    if before.place.is_some() || after.place.is_some() {
        charged(before, after, record);
    }
}

fn charged(before: Held, mut after: Held, record: &mut Record) {
    // Whether it has been counted is not for the change to say. What had no partition had nothing to be counted.
    let counted = before.counted || !before.place.is_some();
    if counted != after.counted {
        let mark = MARK.load(Relaxed) == counted;
        record.set_member(record.member().marked(mark));
        after.counted = counted;
    }
    if before.place == after.place {
        if let Some(account) = account(after.place) {
            account.add(0, after.charge - before.charge, counted);
        }
        return;
    }
    if let Some(account) = account(before.place).filter(|_| before.place.is_some()) {
        account.add(-1, -before.charge, before.counted);
    }
    if let Some(account) = account(after.place).filter(|_| after.place.is_some()) {
        account.add(1, after.charge, counted);
    }
}

fn positive(sum: &AtomicI64) -> u64 {
    u64::try_from(sum.load(Relaxed)).unwrap_or(0)
}

fn shown(bytes: &AtomicI64, keys: &AtomicI64) -> Usage {
    Usage {
        bytes: positive(bytes),
        keys: positive(keys),
    }
}

/// The ledger of this node.
pub struct Here;

impl Ledger for Here {
    fn usage(&self, place: Place) -> Usage {
        account(place).map_or(Usage::default(), |a| shown(&a.bytes, &a.keys))
    }
}

/// The most bytes that were held of a partition.
pub fn high_water(place: Place) -> u64 {
    account(place).map_or(0, |a| positive(&a.most))
}

/// Whether a partition's keys are listed.
#[inline]
pub fn is_listed(place: Place) -> bool {
    place.is_some() && account(place).is_some_and(|a| a.listed.load(Relaxed))
}

/// Has the keys of a partition listed from now on, or not any more.
pub fn list(place: Place, listed: bool) {
    if let Some(account) = account(place) {
        account.listed.store(listed, Relaxed);
    }
}

/// A place may be another partition's from now on.
pub fn forget(place: Place) {
    if let Some(account) = account(place) {
        account.most.store(0, Relaxed);
        account.listed.store(false, Relaxed);
    }
}

/// An audit begins: nothing of these partitions has been counted.
pub fn begin_audit(places: impl Iterator<Item = Place>) {
    MARK.store(!MARK.load(Relaxed), Relaxed);
    for account in places.filter_map(account) {
        account.counted_bytes.store(0, Relaxed);
        account.counted_keys.store(0, Relaxed);
    }
}

/// The audit comes by a record, whose key's name has so many bytes.
pub fn count(record: &mut Record, key_len: usize) {
    let member = record.member();
    if !member.place().is_some() || member.mark() == MARK.load(Relaxed) {
        return;
    }
    if let Some(account) = account(member.place()) {
        // Version by version, and not by what the record says of itself.
        let bytes = record.recount(key_len) as i64;
        account.counted_bytes.fetch_add(bytes, Relaxed);
        account.counted_keys.fetch_add(1, Relaxed);
    }
    record.set_member(member.marked(MARK.load(Relaxed)));
}

/// What an audit has counted of a partition.
pub fn counted(place: Place) -> Usage {
    account(place).map_or(Usage::default(), |a| {
        shown(&a.counted_bytes, &a.counted_keys)
    })
}

/// How many bytes a partition's sum has too many, by what an audit has counted.
pub fn drift(place: Place) -> i64 {
    account(place).map_or(0, |a| a.bytes.load(Relaxed) - a.counted_bytes.load(Relaxed))
}

/// Sets the sums of a partition right, by what an audit has counted.
pub fn set_right(place: Place) {
    if let Some(a) = account(place) {
        a.bytes.fetch_sub(drift(place), Relaxed);
        let keys = a.keys.load(Relaxed) - a.counted_keys.load(Relaxed);
        a.keys.fetch_sub(keys, Relaxed);
    }
}

/// The bytes of a partition's sum are wrong by so many, so that an audit has something to find.
#[cfg(debug_assertions)]
pub fn spoil(place: Place, bytes: i64) {
    if let Some(a) = account(place) {
        a.bytes.fetch_add(bytes, Relaxed);
    }
}
