//! Reads and writes of state: parse, decide, apply, propagate, answer. What is decided, and why, is
//! in the core.

use maos_core::state::{Decision, Env, ReadCommand, WriteCommand};
use maos_core::wire::reference::COMMANDS;
use maos_core::wire::{Keys, Reply, Request};
use maos_core::Refusal;
use smallvec::SmallVec;

use crate::edge::call::Call;
use crate::edge::keys::{Key, Mode};
use crate::edge::metrics::METRICS;
use crate::edge::node::{node, now_us};
use crate::edge::{failpoint, guard, propagate};

type Opened<'c> = SmallVec<[Key<'c>; 1]>;

/// Opens the keys of a parsed request, whose places the table knows.
fn open<'c>(call: &'c Call<'_>, keys: Keys, mode: Mode) -> Result<Opened<'c>, Refusal> {
    keys.positions(&call.args)
        // SAFETY: the strings of this call. Of keys named twice one is refused before any is
        // written, and none is read after another was written.
        .map(|at| unsafe { Key::open(call.ctx, call.argv[at + 1], mode) })
        .collect()
}

/// A command that reads.
pub fn read<'a, C: ReadCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    let request = C::parse(&call.args)?;
    failpoint::hit("read");
    let keys = open(call, C::SPEC.keys, Mode::Read)?;
    let records: SmallVec<[_; 1]> = keys.iter().map(Key::record).collect();
    call.reply(&request.answer(&records, &|n| keys[n].ttl_ms())?);
    Ok(())
}

/// A command that writes.
pub fn write<'a, C: WriteCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    let request = C::parse(&call.args)?;
    let mut keys = open(call, C::SPEC.keys, Mode::Write)?;
    let node = &mut *node();
    let who = call.with_user(|user| node.interner.get(user, request.options().by));
    let now_us = now_us();
    let env = Env {
        now_us,
        stamp: node.next_stamp(now_us),
        beyond: node.clock.beyond(),
        who: &who,
        limits: &node.limits,
    };
    failpoint::hit("decide");
    let records: SmallVec<[_; 1]> = keys.iter().map(Key::record).collect();
    let change = match request.decide(&records, &env)? {
        Decision::Change(change) => change,
        Decision::Answer(reply) => {
            if reply.is_lost_race() {
                count_conflict::<C>();
            }
            call.reply(&reply);
            return Ok(());
        }
    };
    let offered = env.stamp;
    drop(records);
    failpoint::hit("decided");
    guard::applying(|| {
        for (n, key) in keys.iter_mut().enumerate() {
            key.apply(&change, n);
        }
        node.committed(change.stamp, offered, now_us);
        // SAFETY: the context and the strings of this call.
        unsafe { propagate::change(call.ctx, call.argv, &change, &mut node.scratch) };
    });
    METRICS.writes.add(keys.len() as u64);
    METRICS
        .trimmed
        .add(change.writes.iter().map(|w| w.drops as u64).sum());
    call.reply(&request.committed(change.stamp));
    Ok(())
}

fn count_conflict<'a, C: Request<'a>>() {
    let place = COMMANDS.iter().position(|s| s.name == C::SPEC.name);
    if let Some(counter) = place.and_then(|p| METRICS.conflicts.get(p)) {
        counter.one();
    }
}
