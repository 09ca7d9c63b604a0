//! Partitions: named shares of a pool of memory. What each is, which keys it is charged with, and whether a write
//! still has room.
//!
//! ```text
//! CREATE p BYTES 1000 PREFIX app:     p may hold 1000 bytes; every key that begins with app: is charged to it
//! SET app:1 v                         charged to p
//! SET x v PARTITION p                 charged to p from now on, whatever is written without the option
//! SET app:2 (900 bytes)               QUOTA: nothing is changed
//! DEL app:1                           is always done
//! ```
//!
//! The longest prefix that fits decides; a partition that was named by a write goes before any prefix. What a record
//! is charged for is said by [`Record::charge`].
//!
//! What may always be written: whatever leaves a partition with no more than it holds already, even where that is
//! too much. A write whose version is no larger than the one it replaces, and a deletion, are given the room that
//! they need by the key's own history, the oldest version first.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use foldhash::HashMap;
use smallvec::SmallVec;

use crate::change::{Change, Expiry, Kind};
use crate::config::{Limits, PARTITIONS_MAX};
use crate::record::Record;
use crate::refusal::Quoted;
use crate::state::Env;
use crate::wire::partition::*;
use crate::wire::update::Strategy;
use crate::wire::{reference, Reply, Request};
use crate::{Code, Refusal, Stamp};

/// The place of a partition in its node's [`Directory`]; none for a record that no partition is charged with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Place(u32);

impl Place {
    /// No partition.
    pub const NONE: Place = Place(0);

    /// True if it is a partition's.
    #[inline]
    pub fn is_some(self) -> bool {
        self.0 != 0
    }

    /// As an index: places are few, and used again.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a record knows of its partition, in eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Member {
    /// The place, and two flags on top.
    word: u32,
    /// The length of the key's name: where a value is freed, its name is not known any more.
    key_len: u32,
}

/// On top of the length: says nothing about the partition, and stands in records of none too.
const BACKED: u32 = 1 << 31;
const CHOSEN: u32 = 1 << 31;
const DIES: u32 = 1 << 30;
/// Says nothing about the partition: which audits have counted the record.
const COUNTED: u32 = 1 << 29;
const PLACE: u32 = COUNTED - 1;

impl Member {
    /// Of no partition.
    pub const NONE: Member = Member {
        word: 0,
        key_len: 0,
    };

    /// Of this partition: named by a write (`chosen`) or by a prefix; one that leaves with it (`dies`).
    pub fn new(place: Place, chosen: bool, dies: bool, key_len: usize) -> Member {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        match place.is_some() {
            false => Member::NONE,
            true => Member {
                word: place.0 | flag(chosen, CHOSEN) | flag(dies, DIES),
                key_len: bounded(key_len),
            },
        }
    }

    /// The partition.
    #[inline]
    pub fn place(self) -> Place {
        Place(self.word & PLACE)
    }

    /// Named by a write: no prefix changes that.
    pub fn is_chosen(self) -> bool {
        self.word & CHOSEN != 0
    }

    /// Of a temporary partition: leaves with it.
    pub fn dies(self) -> bool {
        self.word & DIES != 0
    }

    /// The bytes of the key's name that are charged.
    #[inline]
    pub fn key_len(self) -> usize {
        (self.key_len & !BACKED) as usize
    }

    /// The mark of the last backup that has the record, or that it came after.
    #[inline]
    pub fn is_backed(self) -> bool {
        self.key_len & BACKED != 0
    }

    /// The same with another mark.
    #[inline]
    pub fn backed(self, mark: bool) -> Member {
        let key_len = match mark {
            true => self.key_len | BACKED,
            false => self.key_len & !BACKED,
        };
        Member { key_len, ..self }
    }

    /// The same, of a key whose name has so many bytes.
    #[inline]
    pub fn of_key(self, key_len: usize) -> Member {
        match self.word {
            0 => self,
            word => Member {
                word,
                key_len: bounded(key_len) | self.key_len & BACKED,
            },
        }
    }

    /// The same partition in the same way, whatever the key.
    pub fn is_like(self, other: Member) -> bool {
        (self.word ^ other.word) & !COUNTED == 0
    }

    /// The mark of the last audit that counted it.
    #[inline]
    pub fn mark(self) -> bool {
        self.word & COUNTED != 0
    }

    /// The same with another mark.
    #[inline]
    pub fn marked(self, mark: bool) -> Member {
        let word = match mark && self.place().is_some() {
            true => self.word | COUNTED,
            false => self.word & !COUNTED,
        };
        Member { word, ..self }
    }
}

/// No key's name is longer.
fn bounded(key_len: usize) -> u32 {
    u32::try_from(key_len).map_or(!BACKED, |len| len.min(!BACKED))
}

/// Which partition is to be charged with a record, as it travels: by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Home {
    /// The partition; `None`: no partition.
    pub name: Option<Arc<[u8]>>,
    /// Its place here.
    pub place: Place,
    /// Named by a write.
    pub chosen: bool,
    /// Leaves with it.
    pub dies: bool,
}

impl Home {
    /// No partition.
    pub const NONE: Home = Home {
        name: None,
        place: Place::NONE,
        chosen: false,
        dies: false,
    };

    /// What the record of a key with a name of so many bytes keeps of it.
    pub fn member(&self, key_len: usize) -> Member {
        Member::new(self.place, self.chosen, self.dies, key_len)
    }
}

/// What a partition is: what CREATE and ALTER say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    /// When it was last said.
    pub stamp: Stamp,
    /// How many bytes it may hold.
    pub quota: u64,
    /// How it is meant.
    pub class: Class,
    /// Whose it is, where it is dedicated.
    pub agent: Option<Box<[u8]>>,
    /// The keys that belong to it begin with one of these.
    pub prefixes: Vec<Box<[u8]>>,
    /// What becomes of a write for which there is no room.
    pub on_full: OnFull,
    /// How a MAOS.MERGE that names no strategy goes.
    pub on_conflict: Option<Conflict>,
    /// Versions kept of each key; 0: as the server's settings say.
    pub history: u64,
    /// Milliseconds that a replaced version is kept; 0: as the settings say.
    pub max_age_ms: u64,
    /// The longest value; 0: as the settings say.
    pub max_value: u64,
    /// When a key expires that is written without a word about it; 0: it does not.
    pub key_ttl_ms: u64,
}

/// A [`Strategy`] that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Which one: its place among [`Strategy::WORDS`].
    pub place: usize,
    /// The name of the function, where it is one.
    pub function: Box<[u8]>,
}

impl Conflict {
    /// Keeps a strategy.
    pub fn new(strategy: Strategy<'_>) -> Conflict {
        let function = match strategy {
            Strategy::Function(name) => name.into(),
            _ => Box::default(),
        };
        Conflict {
            place: strategy.place(),
            function,
        }
    }

    /// The strategy.
    pub fn strategy(&self) -> Strategy<'_> {
        match self.place {
            1 => Strategy::Lww,
            2 => Strategy::Fww,
            3 => Strategy::Merge,
            4 => Strategy::Function(&self.function),
            _ => Strategy::Reject,
        }
    }
}

impl Definition {
    /// The limits of its keys, where the server's are these; `None`: the same.
    fn limits(&self, server: &Limits) -> Option<Box<Limits>> {
        if (
            self.history,
            self.max_age_ms,
            self.max_value,
            self.key_ttl_ms,
        ) == (0, 0, 0, 0)
        {
            return None;
        }
        let size = |n: u64, most: usize| match n {
            0 => most,
            n => usize::try_from(n).unwrap_or(usize::MAX).min(most),
        };
        let versions = match self.history {
            0 => server.history_versions,
            n => usize::try_from(n).unwrap_or(usize::MAX),
        };
        Some(Box::new(Limits {
            history_versions: versions,
            history_age_us: match self.max_age_ms {
                0 => server.history_age_us,
                ms => ms.saturating_mul(1000),
            },
            value_max: size(self.max_value, server.value_max),
            key_ttl_ms: self.key_ttl_ms,
            ..server.clone()
        }))
    }
}

/// What the keys of a node hold of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// The bytes that it is charged with.
    pub bytes: u64,
    /// How many keys.
    pub keys: u64,
}

/// Who knows what the keys of this node hold.
pub trait Ledger {
    /// Of one partition.
    fn usage(&self, place: Place) -> Usage;
}

/// What a node knows of one partition.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name: the key that defines it.
    pub name: Arc<[u8]>,
    /// What it is; `None`: records name it, and nobody has said what it is.
    pub definition: Option<Arc<Definition>>,
    /// What the other nodes hold of it.
    pub others: Usage,
    /// Bytes here that all of these have heard of.
    pub confirmed: u64,
    /// Writes that were refused for want of room.
    pub refused: Cell<u64>,
    /// Keys that were removed to make room.
    pub evicted: Cell<u64>,
    /// When it expires, in milliseconds of unix time, as far as that is known; 0: it does not.
    pub ends_ms: u64,
    /// Those of its keys, where they are not the server's.
    limits: Option<Box<Limits>>,
}

impl Entry {
    fn limits<'l>(&'l self, server: &'l Limits) -> &'l Limits {
        self.limits.as_deref().unwrap_or(server)
    }
}

struct Prefix {
    bytes: Box<[u8]>,
    place: Place,
    /// The longest other one that it begins with.
    shorter: Option<u32>,
    /// Others begin with it.
    has_longer: bool,
}

impl Clone for Prefix {
    fn clone(&self) -> Prefix {
        Prefix {
            bytes: self.bytes.clone(),
            ..*self
        }
    }
}

/// All partitions that a node knows. Derived: from the keys that define them, here and on other nodes, and from the
/// records that name them.
#[derive(Clone, Default)]
pub struct Directory {
    entries: Vec<Option<Entry>>,
    names: HashMap<Arc<[u8]>, Place>,
    vacant: Vec<Place>,
    /// In their order.
    prefixes: Vec<Prefix>,
    /// The one that was found last: a write asks for its key's twice, and others of the same partition follow it.
    found: Cell<usize>,
    server: Limits,
    /// How many have a definition, and the sum of their quotas.
    defined: (usize, u64),
    /// How many other nodes may write to the same partitions.
    pub peers: u64,
    /// A name that is not known is nobody's: all who could know it have been heard.
    pub complete: bool,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

fn prefixes_of(definition: Option<&Definition>) -> &[Box<[u8]>] {
    definition.map_or(&[], |d| &d.prefixes)
}

/// Room for so many partitions stays when there is none any more.
const KEPT_PLACES: usize = 64;

impl Directory {
    /// One of a node that is alone: what it does not know there is not.
    pub fn complete() -> Directory {
        Directory {
            complete: true,
            ..Directory::default()
        }
    }

    /// True if there is no partition, and no record names one.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.names.is_empty()
    }

    /// The server's own limits have changed.
    pub fn set_limits(&mut self, server: &Limits) {
        self.server = server.clone();
        for entry in self.entries.iter_mut().flatten() {
            if let Some(definition) = &entry.definition {
                entry.limits = definition.limits(server);
            }
        }
    }

    /// What is known of the partition at a place.
    #[inline]
    pub fn get(&self, place: Place) -> Option<&Entry> {
        self.entries.get(place.index().wrapping_sub(1))?.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.entries
            .get_mut(place.index().wrapping_sub(1))?
            .as_mut()
    }

    /// The place of a partition that is known by name.
    pub fn find(&self, name: &[u8]) -> Option<Place> {
        self.names.get(name).copied()
    }

    /// The definition of the partition at a place.
    #[inline]
    pub fn definition(&self, place: Place) -> Option<&Arc<Definition>> {
        self.get(place)?.definition.as_ref()
    }

    /// All that are known.
    pub fn entries(&self) -> impl Iterator<Item = (Place, &Entry)> {
        let places = (1..).map(Place).zip(&self.entries);
        places.filter_map(|(place, entry)| Some((place, entry.as_ref()?)))
    }

    /// The place of a partition, which is made if there is none.
    pub fn place(&mut self, name: &[u8]) -> Place {
        match self.find(name) {
            Some(place) => place,
            None => self.make_place(name.into()),
        }
    }

    fn make_place(&mut self, name: Arc<[u8]>) -> Place {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Place(self.entries.len() as u32)
        });
        self.entries[place.index() - 1] = Some(Entry {
            name: name.clone(),
            definition: None,
            others: Usage::default(),
            confirmed: 0,
            refused: Cell::new(0),
            evicted: Cell::new(0),
            ends_ms: 0,
            limits: None,
        });
        self.names.insert(name, place);
        place
    }

    /// Forgets a partition that nobody defines and no record names: its place may be another's then.
    pub fn forget(&mut self, place: Place) {
        let slot = place.index().checked_sub(1);
        let slot = slot.and_then(|at| self.entries.get_mut(at));
        let Some(slot) = slot else { return };
        let Some(entry) = slot.as_ref().filter(|e| e.definition.is_none()) else {
            return;
        };
        self.names.remove(&entry.name);
        *slot = None;
        self.vacant.push(place);
        // Nothing is left of many; of few the room is soon used again.
        if self.names.is_empty() && self.entries.len() > KEPT_PLACES {
            (self.entries, self.vacant) = (vec![], vec![]);
            self.names.shrink_to_fit();
        }
    }

    /// Says what a partition is, or that it is not any more.
    pub fn define(&mut self, name: Arc<[u8]>, definition: Option<Arc<Definition>>) -> Place {
        self.define_at(self.find(&name), name, definition)
    }

    /// The same of a name that has been looked for.
    pub fn define_at(
        &mut self,
        place: Option<Place>,
        name: Arc<[u8]>,
        definition: Option<Arc<Definition>>,
    ) -> Place {
        let place = match place {
            Some(place) => place,
            None if definition.is_none() => return Place::NONE,
            None => self.make_place(name),
        };
        let Some(entry) = &mut self.entries[place.index() - 1] else {
            return place;
        };
        let left = std::mem::replace(&mut entry.definition, definition);
        let (left, came) = (left.as_deref(), entry.definition.as_deref());
        let counts = |d: Option<&Definition>| d.map_or((0, 0), |d| (1, d.quota));
        entry.limits = came.and_then(|d| d.limits(&self.server));
        let (before, now) = (counts(left), counts(came));
        self.defined.0 = self.defined.0 + now.0 - before.0;
        self.defined.1 = self.defined.1 + now.1 - before.1;
        let (before, after) = (prefixes_of(left), prefixes_of(came));
        if before != after {
            let prefixes = after.to_vec();
            self.arrange_prefixes(place, prefixes);
        }
        place
    }

    fn arrange_prefixes(&mut self, place: Place, prefixes: Vec<Box<[u8]>>) {
        self.prefixes.retain(|p| p.place != place);
        self.prefixes
            .extend(prefixes.into_iter().map(|bytes| Prefix {
                bytes,
                place,
                shorter: None,
                has_longer: false,
            }));
        self.prefixes
            .sort_by(|a, b| (&a.bytes, a.place).cmp(&(&b.bytes, b.place)));
        // In their order, whatever a prefix begins with stands before it.
        let mut open: Vec<u32> = vec![];
        for n in 0..self.prefixes.len() {
            let begins = |p: &u32| {
                self.prefixes[n]
                    .bytes
                    .starts_with(&self.prefixes[*p as usize].bytes)
            };
            while open.last().is_some_and(|p| !begins(p)) {
                open.pop();
            }
            self.prefixes[n].shorter = open.last().copied();
            self.prefixes[n].has_longer = false;
            if let Some(shorter) = open.last() {
                self.prefixes[*shorter as usize].has_longer = true;
            }
            open.push(n as u32);
        }
    }

    /// The partition with the longest prefix that a key begins with.
    #[inline]
    pub fn by_prefix(&self, key: &[u8]) -> Place {
        match self.prefixes.get(self.found.get()) {
            Some(prefix) if !prefix.has_longer && key.starts_with(&prefix.bytes) => prefix.place,
            _ => self.search_prefix(key),
        }
    }

    fn search_prefix(&self, key: &[u8]) -> Place {
        let after = self.prefixes.partition_point(|p| *p.bytes <= *key);
        let mut at = after.checked_sub(1);
        while let Some((n, prefix)) = at.and_then(|at| Some((at, self.prefixes.get(at)?))) {
            if key.starts_with(&prefix.bytes) {
                self.found.set(n);
                return prefix.place;
            }
            at = prefix.shorter.map(|p| p as usize);
        }
        Place::NONE
    }

    /// The partition that has this prefix of another one's.
    pub fn prefix_of_another(&self, prefix: &[u8], than: Place) -> Option<&Entry> {
        let mut same = self.prefixes.iter().filter(|p| *p.bytes == *prefix);
        self.get(same.find(|p| p.place != than)?.place)
    }

    fn home_at(&self, place: Place, chosen: bool) -> Home {
        match self.get(place) {
            None => Home::NONE,
            Some(entry) => Home {
                name: Some(entry.name.clone()),
                place,
                chosen,
                dies: entry
                    .definition
                    .as_ref()
                    .is_some_and(|d| d.class == Class::Temporary),
            },
        }
    }

    /// The partition that a write of a key is charged to, and whether it was chosen by name.
    #[inline(always)]
    fn target(&self, key: &[u8], record: Option<&Record>, named: Option<&[u8]>) -> Target {
        if let Some(name) = named {
            let place = self.find(name).filter(|p| self.definition(*p).is_some());
            return place.map_or(Target::Unknown, |place| Target::Is(place, true));
        }
        if let Some(member) = record.map(Record::member).filter(|m| m.is_chosen()) {
            if self.definition(member.place()).is_some() {
                return Target::Is(member.place(), true);
            }
            if !self.complete {
                return Target::Lost(member.place());
            }
        }
        Target::Is(self.by_prefix(key), false)
    }

    /// The limits of a key: those of the partition that a write of it is charged to.
    pub fn limits(&self, key: &[u8], record: Option<&Record>, named: Option<&[u8]>) -> &Limits {
        match self.target(key, record, named) {
            Target::Is(place, _) | Target::Lost(place) => self
                .get(place)
                .map_or(&self.server, |e| e.limits(&self.server)),
            Target::Unknown => &self.server,
        }
    }

    /// The limits of a record as it lies there.
    pub fn limits_of(&self, record: &Record) -> &Limits {
        let entry = self.get(record.member().place());
        entry.map_or(&self.server, |e| e.limits(&self.server))
    }

    /// How a merge of a key goes that names no strategy.
    pub fn on_conflict(
        &self,
        key: &[u8],
        record: Option<&Record>,
        named: Option<&[u8]>,
    ) -> Strategy<'_> {
        let Target::Is(place, _) = self.target(key, record, named) else {
            return Strategy::Reject;
        };
        let definition = self.definition(place).map(|d| &**d);
        definition
            .and_then(|d| d.on_conflict.as_ref())
            .map_or(Strategy::Reject, Conflict::strategy)
    }

    /// Where a record belongs that nobody writes; `None` where it belongs where it is.
    pub fn elsewhere(&self, key: &[u8], record: &Record) -> Option<Home> {
        let member = record.member();
        let Target::Is(place, chosen) = self.target(key, Some(record), None) else {
            return None;
        };
        let home = self.home_at(place, chosen);
        (!home.member(key.len()).is_like(member)).then_some(home)
    }

    /// Puts the places of this node into a change that came from elsewhere.
    pub fn bind(&mut self, change: &mut Change<'_>) {
        for home in change.writes.iter_mut().filter_map(|w| w.home.as_mut()) {
            home.place = match &home.name {
                Some(name) => self.place(name),
                None => Place::NONE,
            };
        }
    }

    /// How many bytes the partitions may hold together.
    pub fn reserved(&self) -> u64 {
        self.defined.1
    }

    /// How many partitions there are.
    pub fn count(&self) -> usize {
        self.defined.0
    }
}

enum Target {
    /// This one, or none; chosen by name or not.
    Is(Place, bool),
    /// One was named that is not known.
    Unknown,
    /// The record is in one that is not known here at present.
    Lost(Place),
}

/// How many keys one write may have removed to make room.
pub const EVICTIONS_MAX: usize = 1000;

/// Finds keys of a partition to make room: those written longest ago that are worth so many bytes together, none of
/// the keys that are about to be written. False if there are not so many.
pub type Victims<'v> = dyn FnMut(Place, u64, &dyn Fn(&[u8]) -> bool) -> bool + 'v;

/// The records that a commit is about: by its place among the writes of a change, and by key.
pub type Records<'f, 'r> = dyn Fn(usize, &[u8]) -> Option<&'r Record> + 'f;

/// Which partition a write's record is in, what it is charged there, and which one it is going to be in.
#[derive(Clone, Copy, Default)]
struct Seat {
    from: Place,
    before: i64,
    to: Place,
}

/// What a write makes of the partition that its record was in, and of the one that it is in then: how many bytes
/// more. The first is never more than 0.
struct Charged {
    from: (Place, i64),
    to: (Place, i64),
}

impl Seat {
    #[inline(always)]
    fn charged(self, after: usize) -> Charged {
        let after = after as i64;
        match self.from == self.to {
            true => Charged {
                from: (Place::NONE, 0),
                to: (self.to, after - self.before),
            },
            false => Charged {
                from: (self.from, -self.before),
                to: (self.to, after),
            },
        }
    }
}

/// How a partition stands that is defined.
#[derive(Clone, Copy)]
struct Stand<'d> {
    entry: &'d Entry,
    definition: &'d Definition,
    /// What the keys of this node hold, and those of all.
    here: u64,
    used: u64,
}

impl Stand<'_> {
    fn room(&self) -> u64 {
        self.definition.quota.saturating_sub(self.used)
    }

    /// Whether there is room for so many bytes, and nobody has to be told before.
    #[inline]
    fn takes(&self, more: u64, peers: u64) -> bool {
        more <= self.room() && self.may_tell_later(peers, more)
    }

    /// Whether so many bytes may be written here before the other nodes have heard of them.
    ///
    /// What is left is as if parted among all who may write: each may take its part unheard, or one write, or
    /// 1/256 of the quota. So together they pass the quota by no more than that for each but one of them.
    fn may_tell_later(&self, peers: u64, more: u64) -> bool {
        let Stand { entry, here, .. } = *self;
        let quota = self.definition.quota;
        let unheard = here.saturating_sub(entry.confirmed);
        if peers == 0 || unheard == 0 {
            return true;
        }
        let left = quota.saturating_sub(entry.confirmed + entry.others.bytes);
        unheard + more <= (left / (peers + 1)).max(quota / 256)
    }
}

/// What a commit makes of the partitions: for each, how many bytes more.
#[derive(Default)]
struct Balance(SmallVec<[(Place, i64); 2]>);

impl Balance {
    fn add(&mut self, (place, bytes): (Place, i64)) {
        if !place.is_some() || bytes == 0 {
            return;
        }
        match self.0.iter_mut().find(|(p, _)| *p == place) {
            Some((_, sum)) => *sum += bytes,
            None => self.0.push((place, bytes)),
        }
    }
}

/// The record of a write, as the changes before it in the same commit leave it.
fn as_left(changes: &[Change<'_>], key: &[u8], record: Option<&Record>) -> Option<Option<Record>> {
    let mut left = None;
    for change in changes {
        for n in (0..change.writes.len()).filter(|n| change.writes[*n].key == key) {
            let record: &mut Option<Record> = left.get_or_insert_with(|| record.cloned());
            match record {
                Some(record) => drop(change.apply(n, Some(record))),
                None => *record = change.apply(n, None),
            }
        }
    }
    left
}

impl Directory {
    /// Decides whether what was decided may be done: says which partition is charged with each key, has keys' own
    /// histories give way where they must, and asks for keys to be removed. If it refuses nothing has changed,
    /// and what is decided is not to be applied.
    ///
    /// # Errors
    /// `QUOTA` if there is no room; `NOTFOUND` if a partition is named that is not known; `NOPERM` if it is
    /// dedicated to another agent; `BUSY` while other nodes have to hear first what was written here.
    pub fn admit(
        &self,
        changes: &mut [Change<'_>],
        named: Option<&[u8]>,
        records: &Records<'_, '_>,
        env: &Env<'_>,
        ledger: &dyn Ledger,
        victims: &mut Victims<'_>,
    ) -> Result<(), Refusal> {
        if let [change] = changes {
            if let [_] = change.writes[..] {
                let record = records(0, change.writes[0].key);
                let seat = self.seat(change, 0, named, record, env)?;
                // What it leaves, it leaves room in.
                if !seat.to.is_some() {
                    return Ok(());
                }
                let more = |after: usize| u64::try_from(seat.charged(after).to.1).unwrap_or(0);
                let stand = self.stand(seat.to, ledger);
                let at_most = more(change.charge_at_most(0, record));
                if stand.is_none_or(|stand| at_most == 0 || stand.takes(at_most, self.peers)) {
                    return Ok(());
                }
                return match more(change.charge_after(0, record)) {
                    0 => Ok(()),
                    more => self.make_room(seat.to, more, changes, records, ledger, victims),
                };
            }
        }
        self.admit_many(changes, named, records, env, ledger, victims)
    }

    /// The same for a commit of several writes: what one of them gives back others may take.
    #[inline(never)]
    fn admit_many(
        &self,
        changes: &mut [Change<'_>],
        named: Option<&[u8]>,
        records: &Records<'_, '_>,
        env: &Env<'_>,
        ledger: &dyn Ledger,
        victims: &mut Victims<'_>,
    ) -> Result<(), Refusal> {
        let mut balance = Balance::default();
        for c in 0..changes.len() {
            let (before, rest) = changes.split_at_mut(c);
            let change = &mut rest[0];
            for n in 0..change.writes.len() {
                let key = change.writes[n].key;
                let record = records(n, key);
                let left = match c {
                    0 => None,
                    _ => as_left(before, key, record),
                };
                let record = match &left {
                    Some(left) => left.as_ref(),
                    None => record,
                };
                let seat = self.seat(change, n, named, record, env)?;
                let charged = match seat.to.is_some() {
                    true => seat.charged(change.charge_after(n, record)),
                    false => seat.charged(0),
                };
                balance.add(charged.from);
                balance.add(charged.to);
            }
        }
        for at in 0..balance.0.len() {
            let (place, more) = balance.0[at];
            if let Ok(more) = u64::try_from(more) {
                self.make_room(place, more, changes, records, ledger, victims)?;
            }
        }
        Ok(())
    }

    /// Says which partition is charged with a write.
    #[inline(always)]
    fn seat(
        &self,
        change: &mut Change<'_>,
        n: usize,
        named: Option<&[u8]>,
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Seat, Refusal> {
        let key = change.writes[n].key;
        let member = record.map_or(Member::NONE, Record::member);
        let before = match record {
            Some(record) if member.place().is_some() => record.charge() as i64,
            _ => 0,
        };
        let place = match self.target(key, record, named) {
            Target::Unknown => return Err(unknown(named.unwrap_or_default())),
            Target::Lost(place) => {
                let after = change.charge_after(n, record) as i64;
                let Some(entry) = self.get(place).filter(|_| after > before) else {
                    return Ok(Seat::default());
                };
                return Err(unheard_of(entry));
            }
            Target::Is(place, chosen) => {
                let dies = self
                    .definition(place)
                    .is_some_and(|d| d.class == Class::Temporary);
                if !Member::new(place, chosen, dies, 0).is_like(member) {
                    change.writes[n].home = Some(Box::new(self.home_at(place, chosen)));
                }
                place
            }
        };
        if let (None, Some(definition)) = (&change.writes[n].turn, self.definition(place)) {
            self.check_agent(place, definition, env)?;
        }
        Ok(Seat {
            from: member.place(),
            before,
            to: place,
        })
    }

    #[inline]
    fn check_agent(
        &self,
        place: Place,
        definition: &Definition,
        env: &Env<'_>,
    ) -> Result<(), Refusal> {
        let (Some(owner), Some(writer)) = (&definition.agent, &env.who.agent) else {
            return Ok(());
        };
        if definition.class != Class::AgentDedicated || owner == writer {
            return Ok(());
        }
        let name = self.get(place).map_or(&[][..], |e| &e.name);
        let text = format!(
            "the partition {} is dedicated to the agent {}, and this write is BY {}",
            Quoted(name),
            Quoted(owner),
            Quoted(writer)
        );
        Err(Refusal::new(Code::NoPerm, text))
    }

    /// Whether there is room for a whole record that comes to a key by another way than a write, where one of so many
    /// bytes goes: in the partition that it names, or else in the one that it is going to belong to. Nothing makes
    /// room for it.
    ///
    /// # Errors
    /// `QUOTA` if there is none; `NOTFOUND` if the partition may not have been heard of yet; `BUSY` as
    /// [`admit`](Directory::admit).
    pub fn admit_whole(
        &self,
        key: &[u8],
        record: &Record,
        replaced: usize,
        ledger: &dyn Ledger,
    ) -> Result<(), Refusal> {
        let place = self.place_of(key, record);
        let key_len = match record.member().place().is_some() {
            true => 0,
            false => key.len(),
        };
        let more = (record.charge() + key_len).saturating_sub(replaced) as u64;
        if more == 0 || !place.is_some() {
            return Ok(());
        }
        if let Some(entry) = self.get(place).filter(|e| e.definition.is_none()) {
            return match self.complete {
                true => Ok(()),
                false => Err(unheard_of(entry)),
            };
        }
        let none: &Records<'_, '_> = &|_, _| None;
        self.make_room(place, more, &mut [], none, ledger, &mut |_, _, _| false)
    }

    /// The partition whose room a whole record takes that comes to a key.
    pub fn place_of(&self, key: &[u8], record: &Record) -> Place {
        let place = record.member().place();
        match place.is_some() {
            true => place,
            false => self.by_prefix(key),
        }
    }

    /// How a partition stands, if it is defined.
    #[inline]
    fn stand(&self, place: Place, ledger: &dyn Ledger) -> Option<Stand<'_>> {
        let entry = self.get(place)?;
        let definition = entry.definition.as_deref()?;
        let here = ledger.usage(place).bytes;
        Some(Stand {
            entry,
            definition,
            here,
            used: here.saturating_add(entry.others.bytes),
        })
    }

    /// Sees to it that a partition has room for so many bytes more.
    fn make_room(
        &self,
        place: Place,
        more: u64,
        changes: &mut [Change<'_>],
        records: &Records<'_, '_>,
        ledger: &dyn Ledger,
        victims: &mut Victims<'_>,
    ) -> Result<(), Refusal> {
        let Some(stand) = self.stand(place, ledger) else {
            return Ok(());
        };
        if stand.takes(more, self.peers) {
            return Ok(());
        }
        let (entry, definition, room) = (stand.entry, stand.definition, stand.room());
        if more <= room {
            return Err(unconfirmed(entry, definition.quota, stand.used));
        }
        if definition.on_full == OnFull::Evict {
            let written = |key: &[u8]| {
                changes
                    .iter()
                    .any(|c| c.writes.iter().any(|w| w.key == key))
            };
            if victims(place, more - room, &written) {
                return Ok(());
            }
        }
        let more = history_gives_way(place, more, room, changes, records);
        if more <= room {
            return Ok(());
        }
        entry.refused.set(entry.refused.get() + 1);
        Err(full(entry, definition, stand.used, more))
    }
}

/// Has the histories of the keys that are written give way, as far as a partition needs it and their writes are
/// no larger than what they replace. What is then still needed.
#[cold]
fn history_gives_way(
    place: Place,
    more: u64,
    room: u64,
    changes: &mut [Change<'_>],
    records: &Records<'_, '_>,
) -> u64 {
    let mut more = more;
    // Of a key that gets two versions at once the history stays.
    let [change] = changes else { return more };
    for n in 0..change.writes.len() {
        let record = records(n, change.writes[n].key);
        let Some(record) = record.filter(|r| r.member().place() == place && !r.is_bare()) else {
            continue;
        };
        if more <= room || change.writes[n].turn.is_some() || change.writes[n].home.is_some() {
            continue;
        }
        if change.kind != Kind::Delete && change.version_len(n) > record.current().blob_len() {
            continue;
        }
        let decided = change.writes[n].drops;
        let full = change.charge_after(n, Some(record)) as u64;
        let mut saved = |drops: usize| {
            change.writes[n].drops = drops;
            full.saturating_sub(change.charge_after(n, Some(record)) as u64)
        };
        // The fewest that suffice, or all.
        let (mut few, mut many) = (decided, record.len());
        while few < many {
            let drops = few + (many - few) / 2;
            match more.saturating_sub(saved(drops)) <= room {
                true => many = drops,
                false => few = drops + 1,
            }
        }
        more = more.saturating_sub(saved(many.max(decided)));
    }
    more
}

#[cold]
fn unknown(name: &[u8]) -> Refusal {
    let text = format!(
        "there is no partition {}; MAOS.PARTITION LIST shows those that there are",
        Quoted(name)
    );
    Refusal::new(Code::NotFound, text)
}

#[cold]
fn unheard_of(entry: &Entry) -> Refusal {
    let text = format!(
        "the key belongs to the partition {}, of which this node has not heard (yet): write with the PARTITION that it is to belong to, or try again",
        Quoted(&entry.name)
    );
    Refusal::new(Code::NotFound, text)
}

#[cold]
fn unconfirmed(entry: &Entry, quota: u64, used: u64) -> Refusal {
    let text = format!(
        "the partition {} is nearly full, with {used} of {quota} bytes, and the other nodes have not heard yet what was written here: try again",
        Quoted(&entry.name)
    );
    Refusal::new(Code::Busy, text)
}

#[cold]
fn full(entry: &Entry, definition: &Definition, used: u64, more: u64) -> Refusal {
    let elsewhere = match entry.others.bytes {
        0 => String::new(),
        bytes => format!(" ({bytes} of them on other nodes)"),
    };
    let evict = match definition.on_full {
        OnFull::Reject => String::new(),
        OnFull::Evict => {
            format!("; no {EVICTIONS_MAX} keys that may be removed make room for that")
        }
    };
    let text = format!(
        "the partition {} holds {used}{elsewhere} of {} bytes, and the write needs {more} more{evict}: delete keys of it, or raise BYTES with MAOS.PARTITION ALTER",
        Quoted(&entry.name),
        definition.quota
    );
    Refusal::new(Code::Quota, text)
}

// ---------------------------------------------------------------------------------------------
// What is said about partitions
// ---------------------------------------------------------------------------------------------

/// What a command makes of the key of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is this from now on, and the key expires so.
    Defined(Arc<Definition>, Expiry),
    /// It goes, and had so many keys.
    Dropped(u64),
}

/// A command that makes, changes or drops a partition.
pub trait DefineCommand<'a>: Request<'a> {
    /// Its reply.
    type Reply: Reply;

    /// The name of the partition.
    fn name(&self) -> &'a [u8];

    /// Decides, given what the key holds.
    ///
    /// # Errors
    /// A refusal; nothing has changed.
    fn decide(
        &self,
        held: Option<&Definition>,
        ledger: &dyn Ledger,
        env: &Env<'_>,
    ) -> Result<Fate, Refusal>;

    /// The reply once it is done.
    fn done(&self, fate: &Fate) -> Self::Reply;
}

/// What a command that looks at partitions may know.
pub trait Survey {
    /// All partitions that the node knows.
    fn directory(&self) -> &Directory;
    /// What the keys of this node hold.
    fn ledger(&self) -> &dyn Ledger;
    /// Bytes that all may be given.
    fn pool(&self) -> u64;
    /// The wall clock, in milliseconds of unix time.
    fn now_ms(&self) -> u64;
    /// The most bytes that this node held of a partition.
    fn high_water(&self, place: Place) -> u64;
    /// What came of the last audit of a partition; has one done if `ask` says so.
    fn audit(&self, place: Place, ask: bool) -> Option<AuditReply>;
    /// Whether the user may read the key of a partition.
    fn may_read(&self, name: &[u8]) -> bool;
}

/// A command that looks at partitions.
pub trait SurveyCommand<'a>: Request<'a> {
    /// Its reply.
    type Reply: Reply;

    /// Answers.
    ///
    /// # Errors
    /// A refusal.
    fn answer(&self, survey: &dyn Survey) -> Result<Self::Reply, Refusal>;
}

impl Definition {
    /// What is there before anything is said.
    fn blank(stamp: Stamp) -> Definition {
        Definition {
            stamp,
            quota: 0,
            class: Class::default(),
            agent: None,
            prefixes: vec![],
            on_full: OnFull::default(),
            on_conflict: None,
            history: 0,
            max_age_ms: 0,
            max_value: 0,
            key_ttl_ms: 0,
        }
    }

    /// What it is once this has been said of it, and what becomes of the expiry of its key.
    fn amended(
        self,
        what: &'static str,
        terms: &Terms<'_>,
        env: &Env<'_>,
    ) -> Result<(Arc<Definition>, Expiry), Refusal> {
        let bad = |text: &str| Refusal::new(Code::Err, format!("{what}: {text}"));
        let (was, mut made) = (self.class, self);
        made.stamp = env.stamp.max(Stamp(made.stamp.0 + 1));
        made.quota = terms.bytes.unwrap_or(made.quota);
        let class = match (terms.class, terms.agent) {
            (Some(class), _) => class,
            // Whose it is says how it is meant.
            (None, Some(_)) => Class::AgentDedicated,
            (None, None) => was,
        };
        let becomes = class != was;
        made.class = class;
        made.agent = match class {
            Class::AgentDedicated => terms.agent.map(Into::into).or(made.agent.take()),
            _ => None,
        };
        if class == Class::AgentDedicated && made.agent.is_none() {
            return Err(bad("a dedicated partition needs the AGENT that it is for"));
        }
        if class != Class::AgentDedicated && terms.agent.is_some() {
            return Err(bad("AGENT goes with TYPE agent_dedicated"));
        }
        if let Some(prefixes) = &terms.prefixes {
            made.prefixes = prefixes.iter().map(|p| (*p).into()).collect();
        }
        let mut expiry = Expiry::Keep;
        match (class, terms.ttl_ms) {
            (Class::Temporary, Some(1..)) | (Class::Temporary, None)
                if !becomes || terms.ttl_ms.is_some() =>
            {
                if let Some(ms) = terms.ttl_ms {
                    let at = env
                        .now_ms()
                        .checked_add(ms)
                        .filter(|at| *at <= i64::MAX as u64 / 2);
                    expiry = Expiry::At(
                        at.ok_or_else(|| bad("TTL lies beyond what the server can keep"))?,
                    );
                }
                made.key_ttl_ms = 0;
            }
            (Class::Temporary, _) => {
                return Err(bad(
                    "a temporary partition needs a TTL of at least 1 millisecond",
                ));
            }
            (_, ttl_ms) => {
                if was == Class::Temporary {
                    expiry = Expiry::Clear;
                }
                made.key_ttl_ms = ttl_ms.unwrap_or(made.key_ttl_ms);
            }
        }
        made.on_full = terms.on_full.unwrap_or(made.on_full);
        if let Some(strategy) = terms.on_conflict {
            made.on_conflict = Some(Conflict::new(strategy));
        }
        made.history = terms.history.unwrap_or(made.history);
        made.max_age_ms = terms.max_age_ms.unwrap_or(made.max_age_ms);
        made.max_value = terms.max_value.unwrap_or(made.max_value);
        Ok((Arc::new(made), expiry))
    }

    /// Whether the pool has room for it, and no other partition has a prefix of it.
    fn check(&self, name: &[u8], before: u64, env: &Env<'_>) -> Result<(), Refusal> {
        let (shares, pool) = (env.shares, env.limits.pool);
        let reserved = shares.reserved();
        let others = reserved.saturating_sub(before);
        if self.quota > before && self.quota > pool.saturating_sub(others) {
            let text = format!(
                "the pool has {pool} bytes (maos.pool-bytes), of which other partitions have {others}: {} are left, and {} were asked for",
                pool.saturating_sub(others),
                self.quota
            );
            return Err(Refusal::new(Code::PoolFull, text));
        }
        if self.prefixes.is_empty() {
            return Ok(());
        }
        let own = shares.find(name).unwrap_or_default();
        let clash = |prefix| Some((prefix, shares.prefix_of_another(prefix, own)?));
        if let Some((prefix, other)) = self.prefixes.iter().find_map(|p| clash(p)) {
            let text = format!(
                "the prefix {} is that of the partition {} already",
                Quoted(prefix),
                Quoted(&other.name)
            );
            return Err(Refusal::new(Code::Exists, text));
        }
        Ok(())
    }
}

fn absent(name: &[u8], shares: &Directory) -> Refusal {
    let known = shares.find(name).and_then(|p| shares.definition(p));
    let text = match known {
        Some(_) => format!(
            "the partition {} is not in this database; SELECT the one in which it was made",
            Quoted(name)
        ),
        None => return unknown(name),
    };
    Refusal::new(Code::NotFound, text)
}

impl<'a> DefineCommand<'a> for PartitionCreate<'a> {
    type Reply = DefinedReply;

    fn name(&self) -> &'a [u8] {
        self.name
    }

    fn decide(
        &self,
        held: Option<&Definition>,
        ledger: &dyn Ledger,
        env: &Env<'_>,
    ) -> Result<Fate, Refusal> {
        let shares = env.shares;
        let known = shares.find(self.name).and_then(|p| shares.definition(p));
        if held.is_some() || known.is_some() {
            let text = format!(
                "there is a partition {} already; MAOS.PARTITION ALTER changes it",
                Quoted(self.name)
            );
            return Err(Refusal::new(Code::Exists, text));
        }
        let count = shares.count();
        if count >= PARTITIONS_MAX {
            let text = format!("there are {count} partitions, and no more may be");
            return Err(Refusal::new(Code::Limit, text));
        }
        let blank = Definition::blank(Stamp(env.stamp.0 - 1));
        let (made, expiry) = blank.amended("MAOS.PARTITION CREATE", &self.terms, env)?;
        made.check(self.name, 0, env)?;
        // Of one of this name that was dropped, whose keys have not been let go yet.
        let used = shares.find(self.name).map(|p| ledger.usage(p).bytes);
        if let Some(used) = used.filter(|used| *used > made.quota) {
            let text = format!(
                "keys that belonged to a partition {} hold {used} bytes still, more than the {} of BYTES: give it more, or wait until they are let go",
                Quoted(self.name),
                made.quota
            );
            return Err(Refusal::new(Code::Quota, text));
        }
        Ok(Fate::Defined(made, expiry))
    }

    fn done(&self, fate: &Fate) -> DefinedReply {
        defined(fate)
    }
}

fn defined(fate: &Fate) -> DefinedReply {
    DefinedReply(match fate {
        Fate::Defined(made, _) => made.stamp,
        Fate::Dropped(_) => Stamp::NONE,
    })
}

impl<'a> DefineCommand<'a> for PartitionAlter<'a> {
    type Reply = DefinedReply;

    fn name(&self) -> &'a [u8] {
        self.name
    }

    fn decide(
        &self,
        held: Option<&Definition>,
        ledger: &dyn Ledger,
        env: &Env<'_>,
    ) -> Result<Fate, Refusal> {
        let held = held.ok_or_else(|| absent(self.name, env.shares))?;
        if self.terms == Terms::default() {
            let text = "MAOS.PARTITION ALTER: say what is to be changed";
            return Err(Refusal::fixed(Code::Err, text));
        }
        let (made, expiry) = held
            .clone()
            .amended("MAOS.PARTITION ALTER", &self.terms, env)?;
        made.check(self.name, held.quota, env)?;
        let used = usage_of(self.name, env.shares, ledger).bytes;
        if made.quota < held.quota && made.quota < used {
            let text = format!(
                "the partition {} holds {used} bytes, more than the {} asked for: delete keys of it first",
                Quoted(self.name),
                made.quota
            );
            return Err(Refusal::new(Code::Quota, text));
        }
        Ok(Fate::Defined(made, expiry))
    }

    fn done(&self, fate: &Fate) -> DefinedReply {
        defined(fate)
    }
}

/// What a partition holds on all nodes.
fn usage_of(name: &[u8], shares: &Directory, ledger: &dyn Ledger) -> Usage {
    let Some((place, entry)) = shares.find(name).and_then(|p| Some((p, shares.get(p)?))) else {
        return Usage::default();
    };
    let here = ledger.usage(place);
    Usage {
        bytes: here.bytes.saturating_add(entry.others.bytes),
        keys: here.keys.saturating_add(entry.others.keys),
    }
}

impl<'a> DefineCommand<'a> for PartitionDrop<'a> {
    type Reply = DroppedReply;

    fn name(&self) -> &'a [u8] {
        self.name
    }

    fn decide(
        &self,
        held: Option<&Definition>,
        ledger: &dyn Ledger,
        env: &Env<'_>,
    ) -> Result<Fate, Refusal> {
        let held = held.ok_or_else(|| absent(self.name, env.shares))?;
        let keys = usage_of(self.name, env.shares, ledger).keys;
        let why = match (held.class, keys) {
            _ if self.force => None,
            (Class::Persistent, _) => Some("is persistent".into()),
            (_, 0) => None,
            (_, 1) => Some("has a key".into()),
            (_, keys) => Some(format!("has {keys} keys")),
        };
        match why {
            None => Ok(Fate::Dropped(keys)),
            Some(why) => {
                let text = format!(
                    "the partition {} {why}; DROP it with FORCE",
                    Quoted(self.name)
                );
                Err(Refusal::new(Code::Exists, text))
            }
        }
    }

    fn done(&self, fate: &Fate) -> DroppedReply {
        DroppedReply(match fate {
            Fate::Dropped(keys) => *keys,
            Fate::Defined(..) => 0,
        })
    }
}

/// Everything about one partition.
fn shown(
    place: Place,
    entry: &Entry,
    ask: bool,
    survey: &dyn Survey,
) -> Option<PartitionReply<'static>> {
    let d = entry.definition.as_ref()?;
    let here = survey.ledger().usage(place);
    let owned = |bytes: &[u8]| Cow::Owned(bytes.to_vec());
    let conflict = |c: &Conflict| {
        let word = Strategy::WORDS[c.strategy().place()]
            .word()
            .to_ascii_lowercase();
        let mut text = word.into_bytes();
        if !c.function.is_empty() {
            text.push(b' ');
            text.extend_from_slice(&c.function);
        }
        Cow::Owned(text)
    };
    Some(PartitionReply {
        name: owned(&entry.name),
        class: d.class,
        agent: d.agent.as_deref().map(owned),
        quota: d.quota,
        used: here.bytes.saturating_add(entry.others.bytes),
        keys: here.keys.saturating_add(entry.others.keys),
        used_here: here.bytes,
        keys_here: here.keys,
        high_water: survey.high_water(place),
        refused: entry.refused.get(),
        evicted: entry.evicted.get(),
        prefixes: d.prefixes.iter().map(|p| owned(p)).collect(),
        on_full: d.on_full,
        on_conflict: d.on_conflict.as_ref().map(conflict),
        history: d.history,
        max_age_ms: d.max_age_ms,
        max_value: d.max_value,
        key_ttl_ms: d.key_ttl_ms,
        ttl_ms: match entry.ends_ms {
            0 => -1,
            at => i64::try_from(at.saturating_sub(survey.now_ms())).unwrap_or(i64::MAX),
        },
        version: d.stamp,
        audit: survey.audit(place, ask),
    })
}

impl<'a> SurveyCommand<'a> for PartitionInfo<'a> {
    type Reply = PartitionReply<'static>;

    fn answer(&self, survey: &dyn Survey) -> Result<PartitionReply<'static>, Refusal> {
        let shares = survey.directory();
        let found = shares
            .find(self.name)
            .and_then(|p| Some((p, shares.get(p)?)));
        let reply = found.and_then(|(place, entry)| shown(place, entry, self.audit, survey));
        reply.ok_or_else(|| unknown(self.name))
    }
}

impl<'a> SurveyCommand<'a> for PartitionList<'a> {
    type Reply = PartitionsReply<'static>;

    fn answer(&self, survey: &dyn Survey) -> Result<PartitionsReply<'static>, Refusal> {
        let entries = survey.directory().entries();
        let wanted = entries.filter(|(_, e)| {
            let agent = e.definition.as_ref().and_then(|d| d.agent.as_deref());
            (self.agent.is_none() || agent == self.agent) && survey.may_read(&e.name)
        });
        let mut replies: Vec<_> = wanted
            .filter_map(|(p, e)| shown(p, e, false, survey))
            .collect();
        replies.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(PartitionsReply(replies))
    }
}

impl<'a> SurveyCommand<'a> for PartitionPool<'a> {
    type Reply = PoolReply;

    fn answer(&self, survey: &dyn Survey) -> Result<PoolReply, Refusal> {
        let (shares, bytes) = (survey.directory(), survey.pool());
        let defined = shares.entries().filter(|(_, e)| e.definition.is_some());
        let used = defined.map(|(_, e)| usage_of(&e.name, shares, survey.ledger()));
        let used = used.fold(Usage::default(), |sum, u| Usage {
            bytes: sum.bytes.saturating_add(u.bytes),
            keys: sum.keys.saturating_add(u.keys),
        });
        let reserved = shares.reserved();
        Ok(PoolReply {
            bytes,
            reserved,
            free: bytes.saturating_sub(reserved),
            used: used.bytes,
            keys: used.keys,
            partitions: shares.count() as u64,
        })
    }
}

impl<'a> SurveyCommand<'a> for PartitionHelp<'a> {
    type Reply = HelpReply;

    fn answer(&self, _: &dyn Survey) -> Result<HelpReply, Refusal> {
        Ok(HelpReply(reference::help(Self::SPEC.names().0)))
    }
}
