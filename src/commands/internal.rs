//! What servers send to servers: decided changes, whole records. Refused from anyone else.

use std::sync::Arc;

use maos_core::codec::{v1, Damaged};
use maos_core::restored::Restored;
use maos_core::wire::watch::Mark;
#[cfg(debug_assertions)]
use maos_core::wire::{Decoded, Reply, Sink, Value};
use maos_core::{Code, Refusal};

use crate::edge::call::Call;
use crate::edge::keys::{Key, Mode, ShareKey};
use crate::edge::lineage::Note;
use crate::edge::metrics::METRICS;
use crate::edge::node::{node, now_us};
#[cfg(debug_assertions)]
use crate::edge::{bus, ledger};
use crate::edge::{failpoint, feed, guard, log, members, propagate};

fn only_obeyed(call: &Call<'_>) -> Result<(), Refusal> {
    if call.must_obey() {
        return Ok(());
    }
    Err(Refusal::fixed(
        Code::Err,
        "this command is for replicas and the AOF; write with MAOS.SET and its family",
    ))
}

/// What cannot be applied is said as loudly as can be: this node now differs from its master.
fn damaged(what: &str, Damaged(why): Damaged) -> Refusal {
    METRICS.damaged.one();
    log::warning(&format!(
        "{what} could not be applied, and this node differs from the one it came from: {why}"
    ));
    Refusal::new(Code::Err, format!("{what} could not be applied: {why}"))
}

/// MAOS.APPLY fact key value [key value ...]
pub fn apply(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey apply");
    let (fact, rest) = (call.args[0], &call.args[1..]);
    if rest.len() % 2 != 0 {
        return Err(damaged("a change", Damaged("a key without a value")));
    }
    let pairs = rest.chunks_exact(2).map(|p| (p[0], p[1]));
    let change = {
        let node = &mut *node();
        let decoded = v1::decode_fact(fact, pairs, &mut node.interner);
        let mut change = decoded.map_err(|e| damaged("a change", e))?;
        node.shares.bind(&mut change);
        change
    };
    let names = call.argv.iter().skip(1).step_by(2);
    let mut keys = names
        // SAFETY: the strings of this call; a change names each key once.
        .map(|name| unsafe { Key::open(call.ctx, *name, Mode::Write) })
        .collect::<Result<Vec<_>, _>>()?;
    for key in &keys {
        if key.record().is_some_and(|r| !change.overtakes(r)) {
            METRICS.damaged.one();
            log::warning("a change came for a key that holds a later version already: somebody wrote here besides the master. The key now holds what the master decided, without the history");
        }
    }
    guard::applying(|| {
        for (n, key) in keys.iter_mut().enumerate() {
            key.apply(&change, n);
        }
        node().obeyed(change.stamp, now_us());
        // SAFETY: the context of this call.
        unsafe { propagate::verbatim(call.ctx) };
    });
    call.reply_int(1);
    Ok(())
}

/// MAOS.LOAD key record
pub fn load(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey load");
    let node = &mut *node();
    let (mut record, share) = v1::decode_record(call.args[1], v1::Bounds::HARD, &mut node.interner)
        .map_err(|e| damaged("a record", e))?;
    node.join(&mut record, share, call.args[0].len());
    let newest = record.newest();
    // SAFETY: the strings of this call.
    let mut key = unsafe { Key::open(call.ctx, call.argv[0], Mode::Write) }?;
    members::entered(&record, call.db(), call.args[0]);
    guard::applying(|| {
        key.put(record);
        key.signal();
        node.obeyed(newest, now_us());
        // SAFETY: the context of this call.
        unsafe { propagate::verbatim(call.ctx) };
    });
    call.reply_int(1);
    Ok(())
}

/// MAOS.BROUGHT key record expires-at
pub fn brought(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey brought");
    let expires_ms = expiry(call.args[2], "a restored record")?;
    {
        let node = &mut *node();
        let (mut record, share) =
            v1::decode_record(call.args[1], v1::Bounds::HARD, &mut node.interner)
                .map_err(|e| damaged("a restored record", e))?;
        node.join(&mut record, share, call.args[0].len());
        let newest = record.newest();
        // SAFETY: the strings of this call.
        let mut key = unsafe { Key::open(call.ctx, call.argv[0], Mode::Write) }?;
        members::entered(&record, call.db(), call.args[0]);
        guard::applying(|| {
            key.bring(record, expires_ms);
            node.obeyed(newest, now_us());
            // SAFETY: the context of this call.
            unsafe { propagate::verbatim(call.ctx) };
        });
    }
    feed::brought(call.db(), call.args[0]);
    call.reply_int(1);
    Ok(())
}

/// When something expires, in milliseconds of unix time; 0: it does not.
fn expiry(text: &[u8], of: &str) -> Result<u64, Refusal> {
    let number = std::str::from_utf8(text).ok().and_then(|s| s.parse().ok());
    number.ok_or_else(|| damaged(of, Damaged("no expiry")))
}

/// MAOS.RESTORED key was now
pub fn restored(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey restored");
    let restored = Restored::from_args(call.args[1], call.args[2])
        .ok_or_else(|| damaged("a restored version", Damaged("no rising pair of stamps")))?;
    let node = &mut *node();
    node.note = Some(Note {
        db: call.db(),
        key: call.args[0].into(),
        restored,
    });
    node.obeyed(restored.now, now_us());
    // SAFETY: the context of this call.
    unsafe { propagate::verbatim(call.ctx) };
    call.reply_int(1);
    Ok(())
}

/// MAOS.DEFINE name definition expires-at
pub fn define(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey define");
    let definition = v1::decode_definition(call.args[1]).map_err(|e| damaged("a partition", e))?;
    let expires_ms = expiry(call.args[2], "a partition")?;
    let stamp = definition.stamp;
    // SAFETY: the strings of this call.
    let mut key = unsafe { ShareKey::open(call.ctx, call.argv[0], Mode::Write) }?;
    guard::applying(|| {
        key.put(Arc::new(definition));
        key.expire(expires_ms);
        node().obeyed(stamp, now_us());
        // SAFETY: the context of this call.
        unsafe { propagate::verbatim(call.ctx) };
    });
    call.reply_int(1);
    Ok(())
}

/// MAOS.REIGN cursor
pub fn reign(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey reign");
    let said = Mark::parse(call.args[0])
        .ok_or_else(|| damaged("the beginning of a reign", Damaged("no cursor")))?;
    feed::follow(said);
    // SAFETY: the context of this call.
    unsafe { propagate::verbatim(call.ctx) };
    call.reply_int(1);
    Ok(())
}

/// MAOS.LEAVES key
pub fn leaves(call: &Call<'_>) -> Result<(), Refusal> {
    only_obeyed(call)?;
    failpoint::hit("obey leaves");
    feed::leaves(call.db(), call.args[0]);
    // SAFETY: the context of this call.
    unsafe { propagate::verbatim(call.ctx) };
    call.reply_int(1);
    Ok(())
}

/// MAOS.FAIL point times: in debug builds, the next hits of a failpoint panic; the reply is how many hits
/// the one before has still been waiting for. Point `clock` moves the wall clock by so many milliseconds;
/// `list` lists the points.
#[cfg(debug_assertions)]
pub const FAIL: maos_core::wire::CommandSpec = maos_core::wire::CommandSpec {
    name: "MAOS.FAIL",
    summary: "Arms a failpoint; in debug builds only",
    arity: 3,
    flags: "readonly",
    acl: "dangerous admin",
    keys: maos_core::wire::Keys::Pairs(3, maos_core::wire::Access::Read),
    args: &[],
    ..maos_core::wire::state::LOAD
};

/// The reply to `MAOS.FAIL list`.
#[cfg(debug_assertions)]
struct Points;

#[cfg(debug_assertions)]
impl Reply for Points {
    fn emit(&self, to: &mut impl Sink) {
        to.array(failpoint::POINTS.len());
        failpoint::POINTS.iter().for_each(|p| to.bulk(p.as_bytes()));
    }

    fn decode(_: Value) -> Decoded<Points> {
        Ok(Points)
    }
}

#[cfg(debug_assertions)]
pub fn fail(call: &Call<'_>) -> Result<(), Refusal> {
    let text = |n: usize| std::str::from_utf8(call.args[n]).unwrap_or_default();
    let n = text(1).parse::<i64>().unwrap_or(0);
    match text(0) {
        "clock" => failpoint::set_clock((n != 0).then_some(n.saturating_mul(1000))),
        // So many bytes are added to the sum of the partition whose place is named by nobody: the first one.
        "spoil" => {
            let first = node().shares.entries().next().map(|(place, _)| place);
            ledger::spoil(first.unwrap_or_default(), n);
        }
        // Nonsense is told to the other nodes of the cluster, made from this number.
        "shout" => bus::shout(n.unsigned_abs()),
        "list" => {
            call.reply(&Points);
            return Ok(());
        }
        point => {
            let unknown = Refusal::fixed(Code::Err, "there is no such failpoint");
            let left = failpoint::arm(point, n.unsigned_abs()).ok_or(unknown)?;
            call.reply_int(i64::try_from(left).unwrap_or(i64::MAX));
            return Ok(());
        }
    }
    call.reply_int(1);
    Ok(())
}
