//! Reads and writes of state: parse, decide, apply, propagate, answer. What is decided, and why, is
//! in the core.

use std::sync::Arc;

use maos_core::change::{Change, Kind};
use maos_core::event::Event;
use maos_core::lock::{is_held_by, LockCommand};
use maos_core::partition::{Directory, Place};
use maos_core::record::Record;
use maos_core::refusal::Quoted;
use maos_core::state::{Decision, Env, Question, ReadCommand, View, WriteCommand};
use maos_core::wire::lock::WaiterReply;
use maos_core::wire::reference::COMMANDS;
use maos_core::wire::{Keys, Reply, Request};
use maos_core::{Code, Refusal, Stamp, Who};
use smallvec::SmallVec;

use crate::edge::call::Call;
use crate::edge::keys::{Key, Mode};
use crate::edge::metrics::METRICS;
use crate::edge::node::{node, now_us, Node};
use crate::edge::partitions::{self, Victims};
use crate::edge::{conflicts, failpoint, function, guard, pause, propagate, waiting};

type Opened<'c> = SmallVec<[Key<'c>; 1]>;

/// Opens the keys of a parsed request, whose places the table knows.
#[inline(always)]
fn open<'c>(call: &'c Call<'_>, keys: Keys, mode: Mode) -> Result<Opened<'c>, Refusal> {
    // SAFETY: the strings of this call. Of keys named twice one is refused before any is written, and
    // none is read after another was written.
    let open = |at: usize| unsafe { Key::open(call.ctx, call.argv[at], mode) };
    if let Keys::One(_) = keys {
        return Ok(Opened::from_buf([open(0)?]));
    }
    let places = keys.positions(call.args);
    let mut opened = Opened::with_capacity(places.size_hint().0);
    for at in places {
        opened.push(open(at)?);
    }
    Ok(opened)
}

#[inline(always)]
fn records<'k>(keys: &'k [Key<'_>]) -> SmallVec<[Option<&'k Record>; 1]> {
    match keys {
        [one] => SmallVec::from_buf([one.record()]),
        _ => keys.iter().map(Key::record).collect(),
    }
}

/// A command that reads.
pub fn read<'a, C: ReadCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    failpoint::hit("read");
    let keys = open(call, C::SPEC.keys, Mode::Read)?;
    if keys.len() > 1 {
        keys.iter().for_each(Key::fetch_to_read);
    }
    call.reply(&request.answer(&records(&keys), &Opens { call, keys: &keys })?);
    Ok(())
}

/// What a reader sees of open keys.
struct Opens<'k, 'c> {
    call: &'k Call<'c>,
    keys: &'k [Key<'c>],
}

impl View for Opens<'_, '_> {
    fn ttl_ms(&self, n: usize) -> i64 {
        self.keys[n].ttl_ms()
    }

    fn now_ms(&self) -> u64 {
        now_us() / 1000
    }

    fn waiters(&self, n: usize) -> Vec<WaiterReply> {
        waiting::queue(self.call.db(), self.keys[n].name())
    }

    fn partition(&self, place: Place) -> Option<Vec<u8>> {
        let node = node();
        let entry = node.shares.get(place).filter(|e| e.definition.is_some());
        Some(entry?.name.to_vec())
    }
}

/// A command that writes.
pub fn write<'a, C: WriteCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    let mut keys = open(call, C::SPEC.keys, Mode::Write)?;
    match decide(call, &request, &mut keys, false, None)? {
        Came::Asks(question) => {
            // A function may read: nothing of ours is open meanwhile.
            drop(keys);
            ask_and_write(call, &request, &question)
        }
        _ => Ok(()),
    }
}

/// Decides once more, with what a function made of the question.
#[cold]
fn ask_and_write<'a, C: WriteCommand<'a>>(
    call: &Call<'a>,
    request: &C,
    question: &Question<'_>,
) -> Result<(), Refusal> {
    let most_ms = node().limits.function_ms;
    let made = function::ask(call, question, most_ms)?;
    let mut keys = open(call, C::SPEC.keys, Mode::Write)?;
    let answer = Some((question.version, &made[..]));
    match decide(call, request, &mut keys, false, answer)? {
        Came::Asks(_) => Err(Refusal::fixed(
            Code::Busy,
            "the key changed while the function ran; try again",
        )),
        _ => Ok(()),
    }
}

/// A command that takes a lock, and may wait for it.
pub fn lock<'a, C: LockCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    let mut keys = open(call, C::SPEC.keys, Mode::Write)?;
    let wait_ms = match waiting::may_wait(call) {
        true => request.wait_ms(),
        false => 0,
    };
    let now_us = now_us();
    if !pause::is_certain(now_us) {
        pause::check(now_us)?;
    }
    // Who came before stands before.
    let behind = waiting::count() > 0 && {
        let now_ms = now_us / 1000;
        keys.iter().any(|key| {
            !is_held_by(key.record(), request.owner(), now_ms)
                && waiting::has_queue(call.db(), key.name())
        })
    };
    if behind && wait_ms == 0 {
        call.reply(&C::NOT_GRANTED);
        return Ok(());
    }
    if !behind {
        if let Came::Waits(who) = decide(call, &request, &mut keys, wait_ms > 0, None)? {
            drop(keys);
            return wait(call, &request, who, wait_ms);
        }
        return Ok(());
    }
    drop(keys);
    let who = {
        let node = &mut *node();
        let (users, interner) = (&mut node.users, &mut node.interner);
        call.with_user(users, |user| interner.get(user, request.by()).clone())
    };
    wait(call, &request, who, wait_ms)
}

fn wait<'a, C: LockCommand<'a>>(
    call: &Call<'a>,
    request: &C,
    who: Arc<Who>,
    wait_ms: u64,
) -> Result<(), Refusal> {
    let places = C::SPEC.keys.positions(call.args);
    let mut names: Vec<_> = places.map(|at| call.argv[at]).collect();
    waiting::enter(call, &mut names, request.want(), who, wait_ms)
}

/// What came of a decision.
enum Came<'a> {
    /// It is done, and the client has its answer.
    Done,
    /// Nothing changed and there is no answer yet: the writer waits.
    Waits(Arc<Who>),
    /// Nothing changed, and somebody is to be asked.
    Asks(Box<Question<'a>>),
}

/// Decides, applies, propagates, answers. Where nothing changes and `waits` says so there is no answer.
#[inline(always)]
fn decide<'a, C: WriteCommand<'a>>(
    call: &Call<'a>,
    request: &C,
    keys: &mut [Key<'_>],
    waits: bool,
    answer: Option<(Stamp, &[u8])>,
) -> Result<Came<'a>, Refusal> {
    let now_us = now_us();
    if !pause::is_certain(now_us) && request.is_conditional() {
        pause::check(now_us)?;
    }
    let node = &mut *node();
    let (stamp, beyond) = (node.next_stamp(now_us), node.clock.beyond());
    // Memory is slow: what is fetched here comes while the writer is looked up.
    keys.iter().for_each(Key::fetch_to_write);
    let by = request.by();
    let (users, interner) = (&mut node.users, &mut node.interner);
    let who = call.with_user(users, |user| interner.get(user, by));
    keys.iter().for_each(Key::fetch_history);
    let env = Env {
        now_us,
        stamp,
        beyond,
        who,
        limits: &node.limits,
        shares: &node.shares,
        answer,
    };
    failpoint::hit("decide");
    let mut victims = Victims::new();
    let decided = match request.decide(&records(keys), &env)? {
        Decision::Change(mut change) => {
            let named = request.partition();
            if !node.shares.is_idle() || named.is_some() {
                let records = records(keys);
                may_charge(call, named, &node.shares, &records)?;
                let one = std::slice::from_mut(&mut change);
                victims = partitions::admit(one, named, &records, &env)?;
            }
            Ok(change)
        }
        Decision::Answer(_) if waits => return Ok(Came::Waits(who.clone())),
        Decision::Answer(reply) => {
            let lost = reply.is_lost_race();
            if lost {
                count_conflict::<C>();
            }
            if lost || reply.is_resolved() {
                let merges = count_merge(call, request, &records(keys), &env, !lost);
                if let ([key], true, true) = (&*keys, merges, lost) {
                    key.note(Some(Event::Conflicted));
                }
            }
            call.reply(&reply);
            return Ok(Came::Done);
        }
        Decision::Commit(mut changes, reply) => {
            let named = request.partition();
            may_charge(call, named, &node.shares, &records(keys))?;
            victims = partitions::admit_all(&mut changes, named, keys, &env)?;
            failpoint::hit("decided");
            count_merge(call, request, &records(keys), &env, true);
            // It may show what is about to change, and what is decided cannot fail any more.
            call.reply(&reply);
            Err(changes)
        }
        Decision::Ask(question) => return Ok(Came::Asks(question)),
    };
    let change = match decided {
        Ok(change) => change,
        Err(changes) => {
            commit_all(call, keys, &changes, &victims, stamp, now_us, node);
            return Ok(Came::Done);
        }
    };
    failpoint::hit("decided");
    if !victims.is_empty() {
        partitions::evict(&victims, node);
    }
    guard::applying(|| {
        for (n, key) in keys.iter_mut().enumerate() {
            key.apply(&change, n);
        }
        node.committed(change.stamp, stamp, now_us);
        // SAFETY: the context and the strings of this call.
        unsafe { propagate::commit(call.ctx, call.known(), &change, &mut node.scratch) };
    });
    METRICS.writes.add(keys.len() as u64);
    for write in change.writes.iter().filter(|w| w.drops > 0) {
        METRICS.trimmed.add(write.drops as u64);
    }
    if change.kind == Kind::Lock && waiting::count() > 0 {
        let places = change.writes.iter().map(|w| w.key);
        places.for_each(|key| waiting::look_at(call.db(), key));
    }
    call.reply(&request.committed(&change));
    Ok(Came::Done)
}

/// Applies the changes of one commit and sends them in one transaction.
#[cold]
fn commit_all(
    call: &Call<'_>,
    keys: &mut [Key<'_>],
    changes: &[Change<'_>],
    victims: &Victims,
    offered: Stamp,
    now_us: u64,
    node: &mut Node,
) {
    // Made by this clock, unless a version that is replaced lies beyond.
    let own = changes.first().is_some_and(|c| c.stamp == offered);
    partitions::evict(victims, node);
    guard::applying(|| {
        for change in changes {
            for (n, write) in change.writes.iter().enumerate() {
                // A change names some of the keys.
                let key = keys.iter_mut().find(|key| key.name() == write.key);
                key.expect("the key of a request").apply(change, n);
            }
            let offered = if own { change.stamp } else { offered };
            node.committed(change.stamp, offered, now_us);
        }
        // SAFETY: the context and the strings of this call.
        unsafe { propagate::commit_all(call.ctx, call.known(), changes, &mut node.scratch) };
    });
    for write in changes.iter().flat_map(|c| &c.writes) {
        METRICS.writes.one();
        METRICS.trimmed.add(write.drops as u64);
    }
}

/// Counts how a merge ended; whether the request is one.
#[cold]
fn count_merge<'a, C: WriteCommand<'a>>(
    call: &Call<'a>,
    request: &C,
    records: &[Option<&Record>],
    env: &Env<'_>,
    resolved: bool,
) -> bool {
    let env = Env { ..*env };
    let strategy = request.strategy(records.first().copied().flatten(), &env);
    if let Some(strategy) = strategy {
        conflicts::count(strategy, call.args[0], resolved);
    }
    strategy.is_some()
}

/// Whether the user may have a partition charged: one that it may not even read is none of its business. What is
/// charged to it already may stay.
#[inline]
fn may_charge(
    call: &Call<'_>,
    named: Option<&[u8]>,
    shares: &Directory,
    records: &[Option<&Record>],
) -> Result<(), Refusal> {
    let Some(name) = named else { return Ok(()) };
    let place = shares.find(name);
    let stays = |r: &Option<&Record>| r.is_some_and(|r| Some(r.member().place()) == place);
    if records.iter().all(stays) || call.may_read(name) {
        return Ok(());
    }
    let text = format!(
        "the user may not read the key of the partition {}, and so not have it charged",
        Quoted(name)
    );
    Err(Refusal::new(Code::NoPerm, text))
}

fn count_conflict<'a, C: Request<'a>>() {
    let place = COMMANDS.iter().position(|s| s.name == C::SPEC.name);
    if let Some(counter) = place.and_then(|p| METRICS.conflicts.get(p)) {
        counter.one();
    }
}
