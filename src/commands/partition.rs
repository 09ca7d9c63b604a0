//! What makes, changes, drops and shows partitions. What is decided, and why, is in the core.

use maos_core::change::Expiry;
use maos_core::ids::Who;
use maos_core::partition::{DefineCommand, Fate, SurveyCommand};
use maos_core::state::Env;
use maos_core::Refusal;

use crate::edge::call::Call;
use crate::edge::keys::{Mode, ShareKey};
use crate::edge::node::{node, now_us};
use crate::edge::partitions::{self, Surveyed};
use crate::edge::{background, failpoint, guard, ledger, pause, propagate};

/// A command that makes, changes or drops a partition.
pub fn define<'a, C: DefineCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    failpoint::hit("define");
    // SAFETY: the strings of this call.
    let mut key = unsafe { ShareKey::open(call.ctx, call.argv[0], Mode::Write) }?;
    let now_us = now_us();
    if !pause::is_certain(now_us) {
        pause::check(now_us)?;
    }
    let (fate, stamp) = {
        let node = &mut *node();
        let stamp = node.next_stamp(now_us);
        let env = Env {
            now_us,
            stamp,
            beyond: node.clock.beyond(),
            who: Who::nobody(),
            limits: &node.limits,
            shares: &node.shares,
            answer: None,
        };
        (
            request.decide(key.definition(), &ledger::Here, &env)?,
            stamp,
        )
    };
    let (name, reply) = (request.name(), request.done(&fate));
    match fate {
        Fate::Defined(made, expiry) => {
            let expires_ms = match expiry {
                Expiry::Keep => key.expires_ms(),
                Expiry::Clear => 0,
                Expiry::At(ms) => ms,
            };
            partitions::define(call.ctx, name, &mut key, made, expires_ms, (stamp, now_us));
        }
        Fate::Dropped(_) => {
            guard::applying(|| {
                key.remove();
                propagate::dropped(call.ctx, name);
            });
            drop(key);
            // What goes with it goes at once, as far as that takes no time.
            if partitions::is_condemned(name) {
                partitions::sweep_one(name, |done| done < partitions::AT_ONCE);
            }
            // The directory says so from now on.
            drop(node());
        }
    }
    // Which of its keys are where is known from now on, if they are few.
    background::look_now(call.ctx);
    call.reply(&reply);
    Ok(())
}

/// A command that looks at partitions.
pub fn survey<'a, C: SurveyCommand<'a>>(call: &Call<'a>) -> Result<(), Refusal> {
    failpoint::hit("parse");
    let request = C::parse(call.args)?;
    failpoint::hit("survey");
    for at in C::SPEC.keys.positions(call.args) {
        // SAFETY: the strings of this call.
        drop(unsafe { ShareKey::open(call.ctx, call.argv[at], Mode::Read) }?);
    }
    let reply = {
        let node = &mut *node();
        partitions::look_at_ends_now(node);
        request.answer(&Surveyed { call, node })?
    };
    call.reply(&reply);
    Ok(())
}
