//! Waiting for locks: clients blocked on keys, woken when what they wait for may be had, never by polling.
//!
//! Who is next is the core's to say ([`Waits`]). The server is asked to block a client on the keys, so that
//! it answers those whose slot moves away, whose node is demoted or whose wait is over. Whatever may end a
//! lock (a release, a lease, a key that goes) only says so ([`look_at`]); who can go on is looked at from a
//! timer, when the command or the script that caused it is done.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use maos_core::lock::{Granted, Want};
use maos_core::record::Record;
use maos_core::state::Env;
use maos_core::waits::{Place, Waiter, Waits};
use maos_core::wire::lock::WaiterReply;
use maos_core::{Refusal, Who};

use super::api::{api, raw};
use super::call::{flags, refuse, reply_to, Call};
use super::keys::{is_elsewhere, Key, Mode};
use super::lineage::{context, Name};
use super::metrics::METRICS;
use super::node::{node, now_us};
use super::partitions::{self, admit};
use super::{failpoint, guard, pause, propagate};

/// How long until something is looked at again that could not be dealt with: a key whose slot is on the move,
/// and may stay after all.
const AGAIN_MS: u64 = 100;

/// One client that waits.
struct Blocked {
    client: *mut raw::RedisModuleBlockedClient,
    want: Want,
    db: i32,
    who: Arc<Who>,
    /// What came of it, once it has been decided.
    answer: Option<Result<Granted, Refusal>>,
}

/// All that wait, and what may have changed for them.
#[derive(Default)]
struct Waiting {
    waits: Waits,
    blocked: HashMap<u64, Blocked>,
    /// Where a lock may be had now.
    due: HashSet<Place>,
    /// When the next lease ends of those that are waited for.
    leases: BTreeSet<(u64, Place)>,
    /// The moment of the next look that is arranged for, in milliseconds of unix time.
    armed_ms: Option<u64>,
}

struct MainThread(RefCell<Option<Waiting>>);

// SAFETY: commands, timers, events and the callbacks of blocked clients and of keys that go come on the main
// thread only.
unsafe impl Sync for MainThread {}

static WAITING: MainThread = MainThread(RefCell::new(None));

/// Apart from the node, for keys go while a command of ours holds it.
fn with<T>(then: impl FnOnce(&mut Waiting) -> T) -> T {
    then(WAITING.0.borrow_mut().get_or_insert_with(Waiting::default))
}

/// How many wait.
pub fn count() -> usize {
    with(|w| w.waits.len())
}

/// Whether somebody waits for one of these keys, so that an owner that does not hold it stands behind.
pub fn has_queue(db: i32, key: &[u8]) -> bool {
    with(|w| !w.waits.is_empty() && w.waits.has_queue(&(db, key.into())))
}

/// Who waits for the lock of a key.
pub fn queue(db: i32, key: &[u8]) -> Vec<WaiterReply> {
    let now_ms = now_us() / 1000;
    with(|w| {
        let waiters = w.waits.queue(&(db, key.into()));
        let shown = |(_, w): (u64, &Waiter)| WaiterReply {
            owner: w.owner.to_vec(),
            shared: w.shared,
            waited_ms: now_ms.saturating_sub(w.since_ms),
        };
        waiters.map(shown).collect()
    })
}

/// A key went while it was looked at who waits.
static MISSED: AtomicBool = AtomicBool::new(false);

/// A lock of this key may be had now, or differently. Says so only; cheap where nobody waits. To be called
/// at any time: a key goes when it is looked at and its time is over.
pub fn look_at(db: i32, key: &[u8]) {
    let Ok(mut waiting) = WAITING.0.try_borrow_mut() else {
        MISSED.store(true, Relaxed);
        return;
    };
    let due = waiting.as_mut().is_some_and(|w| {
        if w.waits.is_empty() {
            return false;
        }
        let place = (db, key.into());
        let waited = w.waits.has_queue(&place);
        if waited {
            w.due.insert(place);
        }
        waited
    });
    drop(waiting);
    if due {
        arm(0);
    }
}

/// Any lock may be had now: keys went without being named.
pub fn look_at_all() {
    let due = with(|w| {
        let places: Vec<Place> = w.waits.places().cloned().collect();
        w.due.extend(places);
        !w.due.is_empty()
    });
    if due {
        arm(0);
    }
}

/// Arranges for a look at this moment, in milliseconds of unix time, if none comes before.
fn arm(at_ms: u64) {
    let earlier = with(|w| {
        let earlier = w.armed_ms.is_none_or(|armed| at_ms < armed);
        if earlier {
            w.armed_ms = Some(at_ms);
        }
        earlier
    });
    if earlier {
        let in_ms = at_ms.saturating_sub(now_us() / 1000);
        let in_ms = i64::try_from(in_ms).unwrap_or(i64::MAX);
        // SAFETY: our own context; no data.
        unsafe {
            api!(RedisModule_CreateTimer)(context(0), in_ms, Some(look), std::ptr::null_mut())
        };
    }
}

/// Whether this call may wait: not inside MULTI or a script, nor where what is decided elsewhere is obeyed.
pub fn may_wait(call: &Call<'_>) -> bool {
    let now = raw::REDISMODULE_CTX_FLAGS_MULTI
        | raw::REDISMODULE_CTX_FLAGS_LUA
        | raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING;
    flags(call.ctx) & now == 0 && !call.must_obey()
}

/// Has the client wait. It is answered later.
///
/// # Errors
/// `LIMIT`, `DEADLOCK`; and an error if the server does not let it wait.
pub fn enter(
    call: &Call<'_>,
    names: &mut [*mut raw::RedisModuleString],
    want: Want,
    who: Arc<Who>,
    wait_ms: u64,
) -> Result<(), Refusal> {
    let (db, now_ms) = (call.db(), now_us() / 1000);
    let places: Vec<Place> = want.keys().iter().map(|k| (db, k.clone())).collect();
    let waiter = Waiter {
        owner: want.owner().into(),
        places: places.clone(),
        shared: want.is_shared(),
        since_ms: now_ms,
    };
    let id = with(|w| w.waits.enter(waiter, &mut |place| holders(place, now_ms)))?;
    // SAFETY: the context and the strings of this call; the number is handed back to the callbacks.
    let client = unsafe {
        api!(RedisModule_BlockClientOnKeys)(
            call.ctx,
            Some(ready),
            Some(over),
            Some(gone),
            i64::try_from(wait_ms).unwrap_or(i64::MAX),
            names.as_mut_ptr(),
            names.len() as c_int,
            id as *mut c_void,
        )
    };
    if client.is_null() {
        with(|w| w.waits.leave(id));
        return Err(Refusal::fixed(
            maos_core::Code::Err,
            "this server does not let the client wait here; ask without WAIT",
        ));
    }
    // SAFETY: just made.
    unsafe { api!(RedisModule_SetDisconnectCallback)(client, Some(disconnected)) };
    let blocked = Blocked {
        client,
        want,
        db,
        who,
        answer: None,
    };
    with(|w| w.blocked.insert(id, blocked));
    places.iter().for_each(|place| watch_lease(place, now_ms));
    Ok(())
}

/// Does something with the record at a place.
fn at<T>(place: &Place, then: impl FnOnce(Option<&Record>) -> T) -> T {
    let ctx = context(place.0);
    let name = Name::new(ctx, &place.1);
    // SAFETY: the context and the name outlive the key, of which nothing is changed meanwhile.
    let key = unsafe { Key::open(ctx, name.string, Mode::Look) };
    then(key.as_ref().ok().and_then(Key::record))
}

/// Who holds a place.
fn holders(place: &Place, now_ms: u64) -> Vec<Box<[u8]>> {
    at(place, |record| {
        let guard = record.and_then(Record::guard).into_iter();
        let present = guard.flat_map(|g| g.present(now_ms));
        present.map(|h| h.owner.clone()).collect()
    })
}

/// Arranges for a look when the first lease of a place ends.
fn watch_lease(place: &Place, now_ms: u64) {
    let first = at(place, |record| {
        let guard = record.and_then(Record::guard)?;
        guard.present(now_ms).map(|h| h.expires_ms).min()
    });
    if let Some(ends_ms) = first {
        with(|w| w.leases.insert((ends_ms, place.clone())));
        arm(ends_ms);
    }
}

/// The server thinks that a key is ready. That is for us to say.
unsafe extern "C" fn ready(
    _: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    raw::REDISMODULE_ERR as c_int
}

/// The wait is over: what was decided is answered, or that nothing was.
unsafe extern "C" fn over(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    guard::run(|| {
        // SAFETY: the context of this callback; the number that `enter` gave.
        let id = unsafe { api!(RedisModule_GetBlockedClientPrivateData)(ctx) } as u64;
        match with(|w| w.blocked.get_mut(&id).and_then(|b| b.answer.take())) {
            Some(Ok(Granted::One(reply))) => reply_to(ctx, &reply),
            Some(Ok(Granted::Many(reply))) => reply_to(ctx, &reply),
            Some(Err(refusal)) => refuse(ctx, &refusal),
            // SAFETY: the context of this callback.
            None => drop(unsafe { api!(RedisModule_ReplyWithNull)(ctx) }),
        }
        leave(id);
    });
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn disconnected(
    _: *mut raw::RedisModuleCtx,
    client: *mut raw::RedisModuleBlockedClient,
) {
    guard::run(|| {
        let id = with(|w| {
            let mut all = w.blocked.iter();
            all.find(|(_, b)| b.client == client).map(|(id, _)| *id)
        });
        if let Some(id) = id {
            leave(id);
        }
    });
}

/// The server is done with the client, however that came.
unsafe extern "C" fn gone(_: *mut raw::RedisModuleCtx, id: *mut c_void) {
    guard::run(|| leave(id as u64));
}

/// Nobody waits here any more; those behind may be next.
fn leave(id: u64) {
    let left = with(|w| {
        w.blocked.remove(&id);
        w.waits.leave(id)
    });
    for (db, key) in left.into_iter().flat_map(|w| w.places) {
        look_at(db, &key);
    }
}

/// Looks at every place where something may have changed.
unsafe extern "C" fn look(ctx: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let looked = guard::run(|| {
        let now_ms = now_us() / 1000;
        with(|w| {
            w.armed_ms = None;
            while w.leases.first().is_some_and(|(ends, _)| *ends <= now_ms) {
                if let Some((_, place)) = w.leases.pop_first() {
                    w.due.insert(place);
                }
            }
        });
        failpoint::hit("wake");
        // A replica decides nothing; its clients have been told so.
        if flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0 {
            while let Some(place) = with(|w| w.due.iter().next().cloned()) {
                with(|w| w.due.remove(&place));
                while serve(ctx, &place) {}
            }
        }
        let next = with(|w| {
            let waits = &w.waits;
            w.leases.retain(|(_, place)| waits.has_queue(place));
            w.leases.first().map(|(ends, _)| *ends)
        });
        if let Some(ends) = next {
            arm(ends);
        }
    });
    if looked.is_none() {
        // Who waits is not left waiting: all of it is looked at again, a little later.
        guard::run(|| {
            look_at_all();
            with(|w| w.armed_ms = None);
            arm(now_us() / 1000 + AGAIN_MS);
        });
    }
}

/// Grants to the first waiter of a place what it waits for, if it may be had. True if the next one is to be
/// looked at.
fn serve(ctx: *mut raw::RedisModuleCtx, place: &Place) -> bool {
    let first = with(|w| {
        let (id, _) = w.waits.queue(place).next()?;
        let blocked = w.blocked.get(&id)?;
        let next = w.waits.is_next(id);
        next.then(|| (id, blocked.want.clone(), blocked.db, blocked.who.clone()))
    });
    let Some((id, want, db, who)) = first else {
        return false;
    };
    // A key that is on its way to another node goes from here, and its lock with it, not to one who waits
    // here: the server tells the client once it has arrived.
    // While nothing may be sent nothing is granted, and a node that may have been replaced grants nothing before
    // it knows.
    let in_doubt = || {
        let now_us = now_us();
        !pause::is_certain(now_us) && pause::check(now_us).is_err()
    };
    let waits = !propagate::may_tell() || in_doubt();
    if waits || want.keys().iter().any(|key| is_elsewhere(db, key)) {
        let again_ms = now_us() / 1000 + AGAIN_MS;
        with(|w| w.leases.insert((again_ms, place.clone())));
        return false;
    }
    // SAFETY: the context of the timer.
    unsafe { api!(RedisModule_SelectDb)(ctx, db) };
    let answer = match decide(ctx, &want, &who) {
        Ok(Some(granted)) => Ok(granted),
        Ok(None) => {
            let now_ms = now_us() / 1000;
            for key in want.keys() {
                watch_lease(&(db, key.clone()), now_ms);
            }
            return false;
        }
        Err(refusal) => Err(refusal),
    };
    let client = with(|w| {
        w.waits.leave(id);
        for key in want.keys() {
            let place = (db, key.clone());
            if w.waits.has_queue(&place) {
                w.due.insert(place);
            }
        }
        let blocked = w.blocked.get_mut(&id)?;
        blocked.answer = Some(answer);
        Some(blocked.client)
    });
    if let Some(client) = client {
        // SAFETY: not yet unblocked: `gone` would have taken it out. It is answered by `over`.
        unsafe { api!(RedisModule_UnblockClient)(client, id as *mut c_void) };
    }
    true
}

/// Decides, applies and tells what a waiter wants; `None` if it cannot be had yet.
fn decide(
    ctx: *mut raw::RedisModuleCtx,
    want: &Want,
    who: &Arc<Who>,
) -> Result<Option<Granted>, Refusal> {
    let names: Vec<Name> = want.keys().iter().map(|k| Name::new(ctx, k)).collect();
    // SAFETY: the context and the names outlive the keys, which nobody else has open and no request names
    // twice.
    let open = |name: &Name| unsafe { Key::open(ctx, name.string, Mode::Write) };
    let mut keys: Vec<Key<'_>> = names.iter().map(open).collect::<Result<_, _>>()?;
    let node = &mut *node();
    let now_us = now_us();
    let stamp = node.next_stamp(now_us);
    let records: Vec<_> = keys.iter().map(Key::record).collect();
    let env = Env {
        now_us,
        stamp,
        beyond: node.clock.beyond(),
        who,
        limits: &node.limits,
        shares: &node.shares,
        answer: None,
    };
    let Some(mut change) = want.decide(&records, &env)? else {
        return Ok(None);
    };
    let one = std::slice::from_mut(&mut change);
    let victims = admit(one, None, &records, &env)?;
    guard::applying(|| {
        partitions::evict(&victims, node);
        for (n, key) in keys.iter_mut().enumerate() {
            key.apply(&change, n);
        }
        node.committed(change.stamp, stamp, now_us);
        let strings: Vec<_> = names.iter().map(|n| n.string).collect();
        let bytes: Vec<&[u8]> = want.keys().iter().map(|k| &**k).collect();
        let known = propagate::Known {
            strings: &strings,
            bytes: &bytes,
        };
        // SAFETY: the context of the timer and live strings.
        unsafe { propagate::change(ctx, known, &change, &mut node.scratch) };
    });
    METRICS.writes.add(keys.len() as u64);
    Ok(Some(want.granted(&change)))
}
