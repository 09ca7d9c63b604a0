//! The whole store in memory: what a live server is compared with, and what tests state facts
//! about. It runs the same decisions and applies the same changes; only the keyspace is its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use crate::change::{Change, Expiry};
use crate::clock::Clock;
use crate::codec::{v1, Damaged};
use crate::config::Limits;
use crate::event::Event;
use crate::feed::{Feed, Tell};
use crate::partition::{
    DefineCommand, Definition, Directory, Fate, Ledger, Place, Survey, SurveyCommand, Usage,
    EVICTIONS_MAX,
};
use crate::range::{Keyspace, NO_INDEX};
use crate::record::{Record, Version};
use crate::refusal::{Quoted, WRONG_TYPE};
use crate::state::{Decision, Env, Question, ReadCommand, View, WriteCommand};
use crate::watch::{value_of, NO_LOG};
use crate::wire::backup::{BackupRequest, NO_BACKUPS};
use crate::wire::lock::WaiterReply;
use crate::wire::partition::AuditReply;
use crate::wire::{requests as cmd, CommandSpec, Keys, Request, Value};
use crate::{lock, Code, Interner, Refusal, Stamp, Who};

/// What answers a merge that a Redis Function decides.
pub type Function = fn(&Question<'_>) -> Result<Vec<u8>, Refusal>;

/// A store of state keys. Time is set by whoever drives it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The wall clock, in microseconds of unix time.
    pub now_us: u64,
    /// A clock that never steps, in microseconds.
    pub steady_us: u64,
    /// The ACL user of the connection.
    pub author: Vec<u8>,
    /// The settings.
    pub limits: Limits,
    /// The node's clock.
    pub clock: Clock,
    interner: Interner,
    keys: HashMap<Vec<u8>, Held>,
    defined: HashMap<Vec<u8>, Defined>,
    directory: Directory,
    high_water: HashMap<Place, u64>,
    feed: Feed,
    /// The Redis Functions there are.
    pub functions: Option<Function>,
    /// Keys that hold something else.
    pub foreign: HashSet<Vec<u8>>,
    /// The facts of the changes made, as they would travel: fact, then keys and values in turn; an empty fact
    /// and a key where that was removed.
    pub sent: Vec<Vec<Vec<u8>>>,
}

/// A record and its key's expiry in milliseconds of unix time.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The record.
    pub record: Record,
    /// When the key expires.
    pub expires_ms: Option<u64>,
}

/// The definition of a partition and its key's expiry in milliseconds of unix time.
#[derive(Debug, Clone, PartialEq)]
pub struct Defined {
    /// The definition.
    pub definition: Definition,
    /// When the key expires.
    pub expires_ms: Option<u64>,
}

/// As the server says it.
const NOT_COPIED: Refusal = Refusal::fixed(Code::Err, "module key failed to copy");

/// What the keys hold of each partition, counted.
struct Counted(HashMap<Place, Usage>);

impl Ledger for Counted {
    fn usage(&self, place: Place) -> Usage {
        self.0.get(&place).copied().unwrap_or_default()
    }
}

impl Model {
    /// An empty store on a connection of the user `default`, at this time.
    pub fn at(now_us: u64) -> Model {
        Model {
            now_us,
            author: b"default".to_vec(),
            directory: Directory::complete(),
            ..Model::default()
        }
    }

    /// Whether it has heard of all the partitions that there are.
    pub fn set_complete(&mut self, complete: bool) {
        self.directory.complete = complete;
    }

    /// The partitions.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The keys that define partitions.
    pub fn defined(&self) -> &HashMap<Vec<u8>, Defined> {
        &self.defined
    }

    /// The name of a partition.
    pub fn partition(&self, place: Place) -> Option<&[u8]> {
        Some(&*self.directory.get(place)?.name)
    }

    /// The partition that a record names.
    pub fn share(&self, record: &Record) -> Option<v1::Share<'_>> {
        v1::Share::of(record, self.partition(record.member().place()))
    }

    fn counted(&self) -> Counted {
        let mut usage: HashMap<Place, Usage> = HashMap::new();
        for held in self.keys.values() {
            let usage = usage.entry(held.record.member().place()).or_default();
            usage.bytes += held.record.charge() as u64;
            usage.keys += 1;
        }
        Counted(usage)
    }

    /// What the keys hold of a partition.
    pub fn usage(&self, name: &[u8]) -> Usage {
        let place = self.directory.find(name);
        place.map_or(Usage::default(), |p| self.counted().usage(p))
    }

    /// Takes note of what partitions hold, and forgets those that nothing names any more.
    fn settle(&mut self) {
        if self.directory.is_idle() {
            return;
        }
        let counted = self.counted();
        for (place, usage) in &counted.0 {
            let most = self.high_water.entry(*place).or_default();
            *most = usage.bytes.max(*most);
        }
        let places: Vec<_> = self.directory.entries().map(|(p, _)| p).collect();
        for place in places {
            if counted.usage(place).keys == 0 && self.directory.definition(place).is_none() {
                self.directory.forget(place);
                self.high_water.remove(&place);
            }
        }
    }

    /// The key of a partition goes; those of a temporary one go with it.
    fn undefine(&mut self, name: &[u8]) -> bool {
        let Some(gone) = self.defined.remove(name) else {
            return false;
        };
        let place = self.directory.define(name.into(), None);
        if gone.definition.class == crate::wire::partition::Class::Temporary {
            let keys = self.keys.iter();
            let leave = keys.filter(|(_, held)| held.record.member().place() == place);
            let leave: Vec<_> = leave.map(|(key, _)| key.clone()).collect();
            for key in leave {
                self.gone(Event::Expired, &key);
                self.sent.push(vec![vec![], key]);
            }
        }
        self.settle();
        true
    }

    /// What COPY and RESTORE make of all keys: nobody holds them, and those that were only locked are not
    /// there.
    pub fn unlock_all(&mut self) {
        self.keys.retain(|_, held| {
            held.record.unlock();
            !held.record.is_empty()
        });
    }

    /// What the keys hold.
    pub fn keys(&self) -> &HashMap<Vec<u8>, Held> {
        &self.keys
    }

    /// Plain DEL: the record goes at once.
    pub fn purge(&mut self, key: &[u8]) -> bool {
        self.gone(Event::Deleted, key)
    }

    /// A key goes, and whoever watches is told.
    fn gone(&mut self, event: Event, key: &[u8]) -> bool {
        let Some(held) = self.keys.remove(key) else {
            return false;
        };
        if let Some(live) = held.record.live() {
            self.feed.append(Tell {
                stamp: None,
                event,
                db: 0,
                key,
                version: Stamp::NONE,
                previous: live.stamp(),
                who: Who::nobody(),
                unsure: false,
            });
        }
        true
    }

    /// What happened to the keys, as far back as it is known.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Lets the keys go whose time is over.
    pub fn expire(&mut self) {
        let now_ms = self.now_us / 1000;
        // The server's rule: the millisecond itself still belongs to the key.
        let keys = self.keys.iter();
        let ended = keys.filter(|(_, held)| held.expires_ms.is_some_and(|at| at < now_ms));
        let ended: Vec<_> = ended.map(|(key, _)| key.clone()).collect();
        for key in ended {
            self.gone(Event::Expired, &key);
        }
        let over = |d: &Defined| d.expires_ms.is_some_and(|at| at < now_ms);
        let over: Vec<_> = self
            .defined
            .iter()
            .filter(|(_, d)| over(d))
            .map(|(n, _)| n.clone())
            .collect();
        for name in over {
            self.undefine(&name);
        }
        self.settle();
    }

    /// What the server's own commands do to state keys, as far as they stand here.
    fn plain(&mut self, line: &[&[u8]]) -> Option<Result<Value, Refusal>> {
        let yes = |done: bool| Value::Int(i64::from(done));
        Some(Ok(match *line {
            [b"DEL" | b"UNLINK", key] => yes(self.purge(key) || self.undefine(key)),
            [b"PERSIST", key] => {
                let held = self.keys.get_mut(key);
                yes(held.is_some_and(|h| h.expires_ms.take().is_some()))
            }
            [b"PEXPIREAT", key, ms] => {
                let ms = std::str::from_utf8(ms).ok()?.parse().ok()?;
                let held = self.keys.get_mut(key);
                yes(held.map(|h| h.expires_ms = Some(ms)).is_some())
            }
            // It would be a second partition with the same prefixes.
            [b"COPY", from, _, b"REPLACE"] if self.defined.contains_key(from) => {
                return Some(Err(NOT_COPIED));
            }
            [b"COPY", from, to, b"REPLACE"] if from != to => {
                let mut copy = self.keys.get(from).cloned();
                if let Some(held) = &mut copy {
                    held.record.unlock();
                    if held.record.is_empty() {
                        return Some(Err(NOT_COPIED));
                    }
                    let member = held.record.member();
                    held.record.set_member(member.of_key(to.len()));
                    let counted = self.counted();
                    let admitted = self.directory.admit_whole(to, &held.record, 0, &counted);
                    if admitted.is_err() {
                        return Some(Err(NOT_COPIED));
                    }
                }
                self.undefine(to);
                yes(copy
                    .map(|held| self.keys.insert(to.to_vec(), held))
                    .is_some())
            }
            [b"RENAME", from, to] => match self.keys.remove(from) {
                // Its partition hears of the new name when the key is next written.
                Some(held) => {
                    self.keys.insert(to.to_vec(), held);
                    Value::Bulk(b"OK".to_vec())
                }
                None => return Some(Err(Refusal::fixed(Code::Err, "no such key"))),
            },
            _ => return None,
        }))
    }

    /// The records of a request's keys.
    ///
    /// # Errors
    /// `WRONGTYPE` if one of them holds something else.
    fn held(&self, keys: Keys, args: &[&[u8]]) -> Result<Vec<Option<&Held>>, Refusal> {
        keys.positions(args)
            .map(|at| {
                match self.foreign.contains(args[at]) || self.defined.contains_key(args[at]) {
                    true => Err(WRONG_TYPE),
                    false => Ok(self.keys.get(args[at])),
                }
            })
            .collect()
    }

    /// Runs one command line.
    ///
    /// # Errors
    /// The refusal.
    pub fn run(&mut self, line: &[&[u8]]) -> Result<Value, Refusal> {
        self.directory.set_limits(&self.limits);
        self.feed.set_max_bytes(self.limits.changes);
        if !self.feed.has_begun() {
            self.feed.reign(Stamp(self.now_us));
        }
        self.expire();
        if let Some(answer) = self.plain(line) {
            return answer;
        }
        let name = line.first().ok_or_else(|| unknown(b""))?;
        macro_rules! dispatch {
            ($($kind:ident $name:ident),*) => {
                $(if let Some(args) = arguments(<cmd::$name<'_> as Request<'_>>::SPEC, line) {
                    return self.$kind::<cmd::$name<'_>>(args);
                })*
            };
        }
        crate::for_each_command!(dispatch);
        Err(unknown(name))
    }

    fn define<'a, C: DefineCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        check_arity(C::SPEC, args)?;
        let request = C::parse(args)?;
        let name = request.name();
        if self.foreign.contains(name) || self.keys.contains_key(name) {
            return Err(WRONG_TYPE);
        }
        let who = self.interner.get(&self.author, None).clone();
        let stamp = self.clock.peek(self.now_us, || self.steady_us);
        let env = Env {
            now_us: self.now_us,
            stamp,
            beyond: self.clock.beyond(),
            who: &who,
            limits: &self.limits,
            shares: &self.directory,
            answer: None,
        };
        let held = self.defined.get(name);
        let fate = request.decide(held.map(|h| &h.definition), &self.counted(), &env)?;
        let reply = Value::of(&request.done(&fate));
        match fate {
            Fate::Dropped(_) => {
                self.undefine(name);
            }
            Fate::Defined(made, expiry) => {
                let before = held.and_then(|h| h.expires_ms);
                let expires_ms = match expiry {
                    Expiry::Keep => before,
                    Expiry::Clear => None,
                    Expiry::At(ms) => Some(ms),
                };
                self.clock.made(made.stamp, self.now_us, || self.steady_us);
                let place = self.directory.define(name.into(), Some(made.clone()));
                if let Some(entry) = self.directory.get_mut(place) {
                    entry.ends_ms = expires_ms.unwrap_or(0);
                }
                let definition = (*made).clone();
                self.defined.insert(
                    name.to_vec(),
                    Defined {
                        definition,
                        expires_ms,
                    },
                );
            }
        }
        Ok(reply)
    }

    fn survey<'a, C: SurveyCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        check_arity(C::SPEC, args)?;
        let request = C::parse(args)?;
        self.held_of_state(C::SPEC.keys, args)?;
        Ok(Value::of(&request.answer(&Surveyed {
            model: self,
            counted: self.counted(),
        })?))
    }

    /// # Errors
    /// `WRONGTYPE` if a key that should define a partition holds something else.
    fn held_of_state(&self, keys: Keys, args: &[&[u8]]) -> Result<(), Refusal> {
        let other = |at: usize| self.foreign.contains(args[at]) || self.keys.contains_key(args[at]);
        match keys.positions(args).any(other) {
            true => Err(WRONG_TYPE),
            false => Ok(()),
        }
    }

    /// As one who does not wait.
    fn watch<'a, C>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal>
    where
        C: Request<'a> + Into<cmd::Watch<'a>>,
    {
        check_arity(C::SPEC, args)?;
        let watch: cmd::Watch<'_> = C::parse(args)?.into();
        if !self.feed.is_on() {
            return Err(NO_LOG);
        }
        let from = watch.since.unwrap_or(self.feed.mark(self.feed.last()));
        let found = watch.look(&self.feed, from, 0, |_| true);
        let found = found.map_err(|lost| lost.refusal(from))?;
        let record = |key: &[u8]| self.keys.get(key).map(|held| &held.record);
        Ok(Value::of(&found.fill(|key, v| value_of(record(key), v))))
    }

    /// As a node that has no directory for them.
    fn backup<'a, C>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal>
    where
        C: Request<'a> + Into<BackupRequest<'a>>,
    {
        check_arity(C::SPEC, args)?;
        match C::parse(args)?.into() {
            BackupRequest::Help(help) => Ok(Value::of(&help)),
            _ => Err(NO_BACKUPS),
        }
    }

    /// As a store that does nothing between two requests: none of its keys would ever have its turn.
    fn rollback<'a, C>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal>
    where
        C: Request<'a> + Into<cmd::RollbackTo<'a>>,
    {
        check_arity(C::SPEC, args)?;
        let _: cmd::RollbackTo<'_> = C::parse(args)?.into();
        let text = "a store in memory has no background in which keys could be rolled back";
        Err(Refusal::fixed(Code::Err, text))
    }

    fn range<'a, C>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal>
    where
        C: Request<'a> + Into<cmd::Range<'a>>,
    {
        check_arity(C::SPEC, args)?;
        let range: cmd::Range<'_> = C::parse(args)?.into();
        if !self.limits.index {
            return Err(NO_INDEX);
        }
        Ok(Value::of(&range.list(&mut InOrder(self))?))
    }

    fn read<'a, C: ReadCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        check_arity(C::SPEC, args)?;
        let request = C::parse(args)?;
        let held = self.held(C::SPEC.keys, args)?;
        let records: Vec<_> = held.iter().map(|h| h.map(|h| &h.record)).collect();
        let looks = Looks {
            held: &held,
            now_ms: self.now_us / 1000,
            directory: &self.directory,
        };
        Ok(Value::of(&request.answer(&records, &looks)?))
    }

    /// As one who does not wait.
    fn lock<'a, C: WriteCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        self.write::<C>(args)
    }

    fn write<'a, C: WriteCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        self.write_with::<C>(args, None)
    }

    fn write_with<'a, C: WriteCommand<'a>>(
        &mut self,
        args: &[&'a [u8]],
        answer: Option<(Stamp, Vec<u8>)>,
    ) -> Result<Value, Refusal> {
        check_arity(C::SPEC, args)?;
        let request = C::parse(args)?;
        let who = self.interner.get(&self.author, request.by()).clone();
        let stamp = self.clock.peek(self.now_us, || self.steady_us);
        let held = self.held(C::SPEC.keys, args)?;
        let records: Vec<_> = held.iter().map(|h| h.map(|h| &h.record)).collect();
        let env = Env {
            now_us: self.now_us,
            stamp,
            beyond: self.clock.beyond(),
            who: &who,
            limits: &self.limits,
            shares: &self.directory,
            answer: answer.as_ref().map(|(about, made)| (*about, &made[..])),
        };
        let decided = match request.decide(&records, &env)? {
            Decision::Answer(reply) => return Ok(Value::of(&reply)),
            Decision::Change(change) => {
                let reply = Value::of(&request.committed(&change));
                Ok((smallvec::smallvec![change], reply))
            }
            Decision::Commit(changes, reply) => Ok((changes, Value::of(&reply))),
            Decision::Ask(question) => Err(question),
        };
        let (mut changes, reply): (smallvec::SmallVec<[Change<'_>; 2]>, _) = match decided {
            Ok(commit) => commit,
            Err(_) if answer.is_some() => {
                return Err(Refusal::fixed(Code::Busy, "asked twice"));
            }
            Err(question) => {
                let none = Refusal::fixed(Code::NotFound, "there are no functions here");
                let made = self.functions.ok_or(none)?(&question)?;
                return self.write_with::<C>(args, Some((question.version, made)));
            }
        };
        let evicted = self.admit(&mut changes, request.partition(), &env)?;
        for key in evicted {
            self.gone(Event::Evicted, &key);
            self.sent.push(vec![vec![], key]);
        }
        // Made by this clock, unless a version it replaces lies beyond.
        let own = changes[0].stamp == stamp;
        for change in &changes {
            if own {
                self.clock
                    .made(change.stamp, self.now_us, || self.steady_us);
            }
            self.apply(change);
            self.sent.push(message(change));
        }
        self.settle();
        Ok(reply)
    }

    /// Whether the partitions have room for what was decided; the keys that go for it.
    fn admit(
        &self,
        changes: &mut [Change<'_>],
        named: Option<&[u8]>,
        env: &Env<'_>,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut evicted = vec![];
        if self.directory.is_idle() && named.is_none() {
            return Ok(evicted);
        }
        let now_ms = self.now_us / 1000;
        let mut victims = |place: Place, need: u64, written: &dyn Fn(&[u8]) -> bool| {
            let of = self.keys.iter().filter(|(key, held)| {
                let held_by_somebody = held.record.leased_until_ms() > now_ms;
                held.record.member().place() == place && !held_by_somebody && !written(key)
            });
            let mut of: Vec<_> = of.collect();
            of.sort_by_key(|(key, held)| (held.record.newest(), *key));
            let (mut room, before) = (0, evicted.len());
            for (key, held) in of.into_iter().take(EVICTIONS_MAX) {
                if room >= need {
                    break;
                }
                room += held.record.charge() as u64;
                evicted.push(key.clone());
            }
            if room < need {
                evicted.truncate(before);
            }
            room >= need
        };
        let record = |_: usize, key: &[u8]| self.keys.get(key).map(|h| &h.record);
        let counted = self.counted();
        self.directory
            .admit(changes, named, &record, env, &counted, &mut victims)?;
        for key in &evicted {
            let place = self.keys[key].record.member().place();
            if let Some(entry) = self.directory.get(place) {
                entry.evicted.set(entry.evicted.get() + 1);
            }
        }
        Ok(evicted)
    }

    /// Applies a change, as a replica does.
    pub fn apply(&mut self, change: &Change<'_>) {
        // A stamp too far ahead does not move the clock, here as on a server.
        let _ = self
            .clock
            .observe(change.stamp, self.now_us, self.limits.drift_us, || {
                self.steady_us
            });
        for (n, write) in change.writes.iter().enumerate() {
            let before = self.keys.get(write.key).map(|held| &held.record);
            let live = before.and_then(Record::live);
            let previous = live.map_or(Stamp::NONE, Version::stamp);
            if let Some(event) = change.event(n, before) {
                self.feed.append(Tell {
                    stamp: Some(change.stamp),
                    event,
                    db: 0,
                    key: write.key,
                    version: change.stamp,
                    previous,
                    who: &change.who,
                    unsure: false,
                });
            }
            let held = self.keys.get_mut(write.key);
            let made = match held {
                Some(held) => {
                    change.apply(n, Some(&mut held.record));
                    held
                }
                None => match change.apply(n, None) {
                    None => continue,
                    Some(record) => self.keys.entry(write.key.to_vec()).or_insert(Held {
                        record,
                        expires_ms: None,
                    }),
                },
            };
            match change.expiry_over(&made.record, || made.expires_ms) {
                Expiry::Keep => {}
                Expiry::Clear => made.expires_ms = None,
                Expiry::At(ms) => made.expires_ms = Some(ms),
            }
            if made.record.is_empty() {
                self.keys.remove(write.key);
            }
        }
    }

    /// Applies a change that travelled here.
    ///
    /// # Errors
    /// If the message is not one.
    pub fn receive(&mut self, message: &[Vec<u8>]) -> Result<(), Damaged> {
        let (fact, rest) = message.split_first().ok_or(Damaged("no fact"))?;
        if let ([], [key]) = (&fact[..], rest) {
            self.gone(Event::Deleted, key);
            return Ok(());
        }
        let pairs = rest.chunks_exact(2).map(|p| (&p[0][..], &p[1][..]));
        let mut change = v1::decode_fact(fact, pairs, &mut self.interner)?;
        self.directory.bind(&mut change);
        self.apply(&change);
        Ok(())
    }

    /// What the background pass does to one key: trims what has grown too old, compresses, lets leases go
    /// that are over.
    pub fn tend(&mut self, key: &[u8]) {
        self.lapse(key);
        let Some(held) = self.keys.get_mut(key) else {
            return;
        };
        self.directory.set_limits(&self.limits);
        let limits = self.directory.limits_of(&held.record);
        let drops = held.record.surplus(limits, self.now_us, false);
        held.record.pack(self.limits.compress_min, usize::MAX);
        if drops > 0 {
            let change = Change::trim(key, drops);
            self.sent.push(message(&change));
            self.apply(&change);
        }
    }

    fn lapse(&mut self, key: &[u8]) {
        let Some(held) = self.keys.get(key) else {
            return;
        };
        let stamp = self.clock.peek(self.now_us, || self.steady_us);
        let env = Env {
            now_us: self.now_us,
            stamp,
            beyond: self.clock.beyond(),
            who: &Default::default(),
            limits: &self.limits,
            shares: &self.directory,
            answer: None,
        };
        if let Some(change) = lock::lapse(key, &held.record, &env) {
            self.clock.made(stamp, self.now_us, || self.steady_us);
            self.sent.push(message(&change));
            self.apply(&change);
        }
    }
}

/// All keys, to one who may read them.
struct InOrder<'m>(&'m Model);

impl Keyspace for InOrder<'_> {
    fn names(&mut self, from: Bound<&[u8]>, most: usize) -> Vec<Box<[u8]>> {
        let in_order: BTreeSet<&[u8]> = self.0.keys.keys().map(Vec::as_slice).collect();
        let names = in_order.range::<[u8], _>((from, Bound::Unbounded));
        names.take(most).map(|name| (**name).into()).collect()
    }

    fn look(&mut self, name: &[u8], then: &mut dyn FnMut(&Record, i64)) {
        if let Some(held) = self.0.keys.get(name) {
            then(&held.record, ttl_ms(held, self.0.now_us / 1000));
        }
    }

    fn may_read(&self, _: &[u8]) -> bool {
        true
    }

    fn readable(&self) -> Vec<Vec<u8>> {
        vec![vec![]]
    }
}

/// In how many milliseconds a key expires; -1: it does not.
fn ttl_ms(held: &Held, now_ms: u64) -> i64 {
    let at = held.expires_ms;
    at.map_or(-1, |at| i64::try_from(at - now_ms).unwrap_or(i64::MAX))
}

/// What a reader sees of the keys of a request.
struct Looks<'h> {
    held: &'h [Option<&'h Held>],
    now_ms: u64,
    directory: &'h Directory,
}

/// What is seen of the partitions.
struct Surveyed<'m> {
    model: &'m Model,
    counted: Counted,
}

impl Survey for Surveyed<'_> {
    fn directory(&self) -> &Directory {
        &self.model.directory
    }

    fn ledger(&self) -> &dyn Ledger {
        &self.counted
    }

    fn pool(&self) -> u64 {
        self.model.limits.pool
    }

    fn now_ms(&self) -> u64 {
        self.model.now_us / 1000
    }

    fn high_water(&self, place: Place) -> u64 {
        self.model.high_water.get(&place).copied().unwrap_or(0)
    }

    /// Everything is counted each time.
    fn audit(&self, _: Place, _: bool) -> Option<AuditReply> {
        None
    }

    fn may_read(&self, _: &[u8]) -> bool {
        true
    }
}

impl View for Looks<'_> {
    fn ttl_ms(&self, n: usize) -> i64 {
        self.held[n].map_or(-1, |held| ttl_ms(held, self.now_ms))
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Nobody waits here: to wait takes a connection.
    fn waiters(&self, _: usize) -> Vec<WaiterReply> {
        vec![]
    }

    fn partition(&self, place: Place) -> Option<Vec<u8>> {
        let entry = self.directory.get(place)?;
        entry.definition.as_ref()?;
        Some(entry.name.to_vec())
    }
}

fn message(change: &Change<'_>) -> Vec<Vec<u8>> {
    let mut fact = Vec::new();
    v1::encode_fact(change, &mut fact);
    let pairs = change.writes.iter();
    let pairs = pairs.flat_map(|w| [w.key.to_vec(), w.carried().into_owned()]);
    std::iter::once(fact).chain(pairs).collect()
}

/// The arguments of a line that calls this command.
fn arguments<'l, 'a>(spec: &CommandSpec, line: &'l [&'a [u8]]) -> Option<&'l [&'a [u8]]> {
    let (command, own) = spec.names();
    let is = |at: usize, name: &str| {
        let word = line.get(at);
        word.is_some_and(|w| w.eq_ignore_ascii_case(name.as_bytes()))
    };
    match own {
        None => is(0, command).then(|| &line[1..]),
        Some(own) => (is(0, command) && is(1, own)).then(|| &line[2..]),
    }
}

fn check_arity(spec: &CommandSpec, args: &[&[u8]]) -> Result<(), Refusal> {
    let arity = spec.arity;
    let given = args.len() + 1 + usize::from(spec.names().1.is_some());
    let wanted = arity.unsigned_abs() as usize;
    if (arity >= 0 && given != wanted) || given < wanted {
        return Err(Refusal::fixed(Code::Err, "wrong number of arguments"));
    }
    Ok(())
}

fn unknown(name: &[u8]) -> Refusal {
    Refusal::new(Code::Err, format!("unknown command {}", Quoted(name)))
}

impl crate::transcript::Store for Model {
    fn ask(&mut self, request: &[Vec<u8>]) -> Result<Value, String> {
        // A microsecond at least goes by from one request to the next.
        self.now_us += 1;
        let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        self.run(&line).map_err(|refusal| refusal.to_string())
    }
}
