//! Reads and writes of state: parse, decide, apply, propagate, answer. What is decided, and why, is
//! in the core.

use maos_core::record::Record;
use maos_core::state::{Decision, Env, ReadCommand, View, WriteCommand};
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
#[inline(always)]
fn open<'c>(call: &'c Call<'_>, keys: Keys, mode: Mode) -> Result<Opened<'c>, Refusal> {
    // SAFETY: the strings of this call. Of keys named twice one is refused before any is written, and
    // none is read after another was written.
    let open = |at: usize| unsafe { Key::open(call.ctx, call.argv[at + 1], mode) };
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
    call.reply(&request.answer(&records(&keys), &Opens(&keys))?);
    Ok(())
}

/// What a reader sees of open keys.
struct Opens<'k, 'c>(&'k [Key<'c>]);

impl View for Opens<'_, '_> {
    fn ttl_ms(&self, n: usize) -> i64 {
        self.0[n].ttl_ms()
    }

    fn now_ms(&self) -> u64 {
        now_us() / 1000
    }
}

/// A command that writes.
pub fn write<'a, C: WriteCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    let mut keys = open(call, C::SPEC.keys, Mode::Write)?;
    let node = &mut *node();
    let now_us = now_us();
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
    };
    failpoint::hit("decide");
    let change = match request.decide(&records(&keys), &env)? {
        Decision::Change(change) => change,
        Decision::Answer(reply) => {
            if reply.is_lost_race() {
                count_conflict::<C>();
            }
            call.reply(&reply);
            return Ok(());
        }
    };
    failpoint::hit("decided");
    guard::applying(|| {
        for (n, key) in keys.iter_mut().enumerate() {
            key.apply(&change, n);
        }
        node.committed(change.stamp, stamp, now_us);
        let known = propagate::Known {
            strings: &call.argv[1..],
            bytes: call.args,
        };
        // SAFETY: the context and the strings of this call.
        unsafe { propagate::commit(call.ctx, known, &change, &mut node.scratch) };
    });
    METRICS.writes.add(keys.len() as u64);
    for write in change.writes.iter().filter(|w| w.drops > 0) {
        METRICS.trimmed.add(write.drops as u64);
    }
    call.reply(&request.committed(&change));
    Ok(())
}

fn count_conflict<'a, C: Request<'a>>() {
    let place = COMMANDS.iter().position(|s| s.name == C::SPEC.name);
    if let Some(counter) = place.and_then(|p| METRICS.conflicts.get(p)) {
        counter.one();
    }
}
