//! The background pass: walks over the keys in small steps, lets versions go that have grown too
//! old and has records charged to the partitions they belong to (on masters, and as a change like any
//! other), and compresses older payloads (on replicas too: how a version is kept is nobody's business
//! but the node's). Where a partition is to be counted anew, or its keys to be found, it takes larger
//! steps until it has been everywhere.

use std::cell::Cell;
use std::ffi::{c_int, c_void, CStr};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maos_core::change::{Change, Kind};
use maos_core::lock::lapse;
use maos_core::partition::Home;
use maos_core::record::Record;
use maos_core::state::Env;

use super::api::{api, raw};
use super::call::{bytes_of, flags};
use super::keys::{Key, Mode};
use super::ledger::{self, Held};
use super::metrics::METRICS;
use super::node::{node, now_us, Node};
use super::{
    backup, bus, failpoint, guard, index, listeners, log, members, partitions, pause, propagate,
    schedule,
};
use crate::persist;

/// Milliseconds from one step to the next.
const PERIOD_MS: i64 = 100;
/// What a step may take for the pass is taken in pieces: whoever asks for something waits for one at most. How long each
/// takes, if that is enough, and milliseconds from one to the next.
const PIECE: Duration = Duration::from_micros(100);
const PIECE_MS: i64 = 10;
/// A pass over all keys begins no sooner than so many steps after the one before.
const PASS_STEPS: u64 = 10;
/// Steps between two looks at who listens.
const LISTENERS_EVERY: u64 = 10;
/// While something waits for the end of a pass: how long a step takes, and milliseconds from one to the next.
const HURRY: Duration = Duration::from_micros(2_000);
const HURRY_MS: i64 = 10;
/// Steps in which the sums of an audit may still come to agree: values are freed in other threads.
const SETTLE_STEPS: u64 = 20;
/// Bytes of values that are compressed at one key before the clock is looked at again.
const PACK_BYTES: usize = 256 << 10;

static EVICTS_STATE: AtomicBool = AtomicBool::new(false);
static POLICY_UNSEEN: AtomicBool = AtomicBool::new(false);

/// True if the server may evict keys that do not expire: state would vanish under its users.
pub fn evicts_state() -> bool {
    EVICTS_STATE.load(Relaxed)
}

/// A setting of the server has changed: the next step looks at the eviction policy.
pub fn look_at_policy() {
    POLICY_UNSEEN.store(true, Relaxed);
}

/// Starts the pass.
pub fn start(ctx: *mut raw::RedisModuleCtx) {
    watch_policy(ctx);
    pause::tick();
    // SAFETY: the cursor lives as long as the process.
    let cursor = unsafe { api!(RedisModule_ScanCursorCreate)() };
    let pass = Box::new(Pass {
        cursor,
        db: Cell::new(0),
        steps: Cell::new(0),
        began: Cell::new(1),
        hurries: Cell::new(false),
        left: Cell::new(Duration::ZERO),
        is_piecing: Cell::new(false),
        audit: Cell::new(Audit::None),
    });
    let pass = Box::into_raw(pass);
    PASS.store(pass, Relaxed);
    arm(ctx, pass);
}

static PASS: AtomicPtr<Pass> = AtomicPtr::new(ptr::null_mut());

/// Begins at once with what waits for a pass over all keys; where they are few it is done then. Called from a
/// command.
pub fn look_now(ctx: *mut raw::RedisModuleCtx) {
    let pass = PASS.load(Relaxed);
    // SAFETY: made by `start`, never freed, used on this thread only.
    let Some(pass) = (unsafe { pass.as_ref() }) else {
        return;
    };
    if members::is_lacking() || index::is_lacking() {
        // SAFETY: the context of the call in progress.
        let db = unsafe { api!(RedisModule_GetSelectedDb)(ctx) };
        pass.look_for_hurry(ctx);
        pass.walk(ctx, HURRY);
        // SAFETY: as above.
        unsafe { api!(RedisModule_SelectDb)(ctx, db) };
    }
}

struct Pass {
    cursor: *mut raw::RedisModuleScanCursor,
    db: Cell<c_int>,
    steps: Cell<u64>,
    /// The step in which the pass over all keys begins or began.
    began: Cell<u64>,
    /// Something waits for its end.
    hurries: Cell<bool>,
    /// What is left to this step.
    left: Cell<Duration>,
    /// The next piece is arranged for.
    is_piecing: Cell<bool>,
    audit: Cell<Audit>,
}

/// How far an audit has come.
#[derive(Clone, Copy, PartialEq)]
enum Audit {
    None,
    /// The pass counts.
    Counts,
    /// All has been counted; its sums are looked at up to this step.
    Settles(u64),
}

fn arm(ctx: *mut raw::RedisModuleCtx, pass: *mut Pass) {
    // SAFETY: a context of the server; the pass is never freed.
    unsafe { api!(RedisModule_CreateTimer)(ctx, PERIOD_MS, Some(tick), pass.cast()) };
}

unsafe extern "C" fn tick(ctx: *mut raw::RedisModuleCtx, pass: *mut c_void) {
    // SAFETY: made by `start`, never freed, used on this thread only.
    guard::run(|| unsafe { &*pass.cast::<Pass>() }.step(ctx));
    arm(ctx, pass.cast());
}

unsafe extern "C" fn piece(ctx: *mut raw::RedisModuleCtx, pass: *mut c_void) {
    // SAFETY: made by `start`, never freed, used on this thread only.
    let pass = unsafe { &*pass.cast::<Pass>() };
    pass.is_piecing.set(false);
    guard::run(|| pass.piece(ctx));
}

unsafe extern "C" fn hurry(ctx: *mut raw::RedisModuleCtx, pass: *mut c_void) {
    // SAFETY: made by `start`, never freed, used on this thread only.
    let pass = unsafe { &*pass.cast::<Pass>() };
    let more = guard::run(|| pass.walk(ctx, HURRY));
    if more.unwrap_or(true) {
        pass.hurry_on(ctx);
    }
}

/// What one callback of the scan needs, and what it found.
struct Step {
    db: c_int,
    compress_min: usize,
    now_us: u64,
    trims: bool,
    off: bool,
    counts: bool,
    /// The index lacks keys.
    fills: bool,
    found: Cell<Vec<*mut raw::RedisModuleString>>,
}

impl Pass {
    fn step(&self, ctx: *mut raw::RedisModuleCtx) {
        failpoint::hit("tick");
        self.steps.set(self.steps.get() + 1);
        pause::tick();
        if POLICY_UNSEEN.swap(false, Relaxed) {
            watch_policy(ctx);
        }
        if self.steps.get() % LISTENERS_EVERY == 1 {
            listeners::look(ctx);
        }
        bus::tick(self.steps.get());
        partitions::tick(self.steps.get());
        index::tidy();
        schedule::tick();
        self.look_for_hurry(ctx);
        let budget = Duration::from_micros(node().limits.background_us);
        // A backup that is made takes its own time out of the server's, and looks at all keys too: one at a time.
        let is_free = !self.hurries.get() && !backup::keeps();
        if is_free && !budget.is_zero() && self.steps.get() >= self.began.get() {
            self.left.set(budget);
            self.piece(ctx);
        }
    }

    /// Walks for a piece of what is left to the step, and arranges for the next.
    fn piece(&self, ctx: *mut raw::RedisModuleCtx) {
        let whole = Duration::from_micros(node().limits.background_us);
        let pieces = u32::try_from(PERIOD_MS / PIECE_MS).unwrap_or(1);
        let takes = self.left.get().min(PIECE.max(whole / pieces));
        self.left.set(self.left.get().saturating_sub(takes));
        if self.hurries.get() || backup::keeps() || takes.is_zero() || !self.walk(ctx, takes) {
            self.left.set(Duration::ZERO);
        } else if !self.left.get().is_zero() && !self.is_piecing.replace(true) {
            let data = ptr::from_ref(self).cast_mut().cast();
            // SAFETY: a context of the server; the pass is never freed.
            unsafe { api!(RedisModule_CreateTimer)(ctx, PIECE_MS, Some(piece), data) };
        }
    }

    /// Whether something waits for a pass over all keys, from the first one on.
    fn look_for_hurry(&self, ctx: *mut raw::RedisModuleCtx) {
        if let Audit::Settles(until) = self.audit.get() {
            if partitions::end_audit(self.steps.get() >= until) {
                self.audit.set(Audit::None);
            }
        }
        let audits = self.audit.get() == Audit::None && partitions::take_audit();
        if audits {
            partitions::begin_audit();
            self.audit.set(Audit::Counts);
        }
        // One that counts already is not begun anew: it would count nothing twice, but never end.
        let mut lacks = false;
        if self.audit.get() != Audit::Counts {
            lacks = members::take_lacking() | index::take_lacking();
        }
        if audits || lacks {
            self.db.set(0);
            // SAFETY: the cursor is ours.
            unsafe { api!(RedisModule_ScanCursorRestart)(self.cursor) };
            if !self.hurries.replace(true) {
                self.hurry_on(ctx);
            }
        }
    }

    fn hurry_on(&self, ctx: *mut raw::RedisModuleCtx) {
        let data = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: a context of the server; the pass is never freed.
        unsafe { api!(RedisModule_CreateTimer)(ctx, HURRY_MS, Some(hurry), data) };
    }

    /// Goes on for so long. False if that was the end of the pass.
    fn walk(&self, ctx: *mut raw::RedisModuleCtx, budget: Duration) -> bool {
        failpoint::hit("walk");
        let now = flags(ptr::null_mut());
        let idle = raw::REDISMODULE_CTX_FLAGS_LOADING
            | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING
            | raw::REDISMODULE_CTX_FLAGS_ACTIVE_CHILD;
        // While a child saves, every byte touched is copied: wait until it is done.
        if now & idle != 0 {
            return true;
        }
        let start = Instant::now();
        while start.elapsed() < budget {
            if !self.bucket(ctx, now & raw::REDISMODULE_CTX_FLAGS_MASTER != 0) {
                let next = self.began.get() + PASS_STEPS;
                self.began.set(next.max(self.steps.get() + 1));
                self.hurries.set(false);
                index::filled();
                if self.audit.get() == Audit::Counts {
                    self.audit
                        .set(Audit::Settles(self.steps.get() + SETTLE_STEPS));
                }
                return false;
            }
        }
        true
    }

    /// Looks at one bucket of the keyspace. False at the end of it all.
    fn bucket(&self, ctx: *mut raw::RedisModuleCtx, master: bool) -> bool {
        // SAFETY: the context of the timer.
        let selected = unsafe { api!(RedisModule_SelectDb)(ctx, self.db.get()) };
        // Where it is switched off, keys are looked for and counted, and nothing is changed.
        let off = node().limits.background_us == 0;
        let trims = master && !off && propagate::may_tell();
        if selected != raw::REDISMODULE_OK as c_int {
            self.db.set(0);
            return false;
        }
        let step = Step {
            db: self.db.get(),
            counts: self.audit.get() == Audit::Counts,
            fills: index::is_filling(),
            compress_min: if off { 0 } else { node().limits.compress_min },
            now_us: now_us(),
            trims,
            off,
            found: Cell::new(vec![]),
        };
        // SAFETY: `look` is given `step` back, which outlives the call.
        let more = unsafe {
            let data = (&raw const step).cast_mut().cast();
            api!(RedisModule_Scan)(ctx, self.cursor, Some(look), data)
        };
        for name in step.found.take() {
            trim(ctx, name, step.now_us);
            // SAFETY: made by `look`, and not used after this.
            unsafe { api!(RedisModule_FreeString)(ctx, name) };
        }
        if more == 0 {
            self.db.set(self.db.get() + 1);
            // SAFETY: the cursor is ours.
            unsafe { api!(RedisModule_ScanCursorRestart)(self.cursor) };
        }
        true
    }
}

unsafe extern "C" fn look(
    ctx: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    step: *mut c_void,
) {
    let looked = guard::run(|| {
        failpoint::hit("look");
        // SAFETY: `step` is what `bucket` gave; the key is open or null while this runs, and a
        // value of our type is what we put there, which nothing else looks at meanwhile. The name lives while
        // this runs.
        let (step, record, bytes) = unsafe {
            if key.is_null() {
                return;
            }
            let (step, bytes) = (&*step.cast::<Step>(), bytes_of(name));
            let kind = api!(RedisModule_ModuleTypeGetType)(key);
            if kind == persist::share_type() {
                let held = persist::held_share(api!(RedisModule_ModuleTypeGetValue)(key));
                if !partitions::knows(bytes, &held) {
                    partitions::held(step.db, bytes, Arc::clone(&held));
                }
                return;
            }
            if kind != persist::data_type() {
                return;
            }
            let record = api!(RedisModule_ModuleTypeGetValue)(key).cast::<Record>();
            (step, record.as_mut(), bytes)
        };
        let Some(record) = record else { return };
        if step.fills {
            index::found(step.db, bytes);
        }
        if record.may_pack(step.compress_min) {
            let before = Held::by(record);
            let packed = record.pack(step.compress_min, PACK_BYTES);
            METRICS.compressed.add(packed as u64);
            ledger::changed(before, record);
        }
        let member = record.member();
        if member.place().is_some() {
            // Whoever renamed it has said nothing.
            if member.key_len() != bytes.len() && (step.counts || !step.off) {
                let before = Held::by(record);
                record.set_member(member.of_key(bytes.len()));
                ledger::changed(before, record);
            }
            members::entered(record, step.db, bytes);
            if step.counts {
                ledger::count(record, bytes.len());
            }
        }
        let node = node();
        let due = record.surplus(node.shares.limits_of(record), step.now_us, false) > 0
            || record.has_late_holder(step.now_us / 1000)
            || moves(bytes, record, &node).is_some();
        drop(node);
        if step.trims && due {
            let mut found = step.found.take();
            // SAFETY: the bytes are copied.
            unsafe {
                let start = bytes.as_ptr().cast();
                found.push(api!(RedisModule_CreateString)(ctx, start, bytes.len()));
            }
            step.found.set(found);
        }
    });
    if looked.is_none() {
        index::lack();
    }
}

/// The partition that a record belongs to, where that is another one than it is charged to.
fn moves(key: &[u8], record: &Record, node: &Node) -> Option<Home> {
    if node.shares.is_idle() || partitions::is_orphan(record, node) {
        return None;
    }
    let place = record.member().place();
    // One that nobody defines may only not have been heard of.
    let lost = place.is_some() && node.shares.definition(place).is_none();
    if lost && !partitions::may_let_go(place) {
        return None;
    }
    node.shares.elsewhere(key, record)
}

/// Lets the oldest versions of a key go, and holders whose lease is over, and has it charged to the partition that
/// it belongs to, here and on replicas. Looked at anew: the scan's view of the key is over.
pub fn trim(ctx: *mut raw::RedisModuleCtx, name: *mut raw::RedisModuleString, now_us: u64) {
    failpoint::hit("trim");
    // SAFETY: the timer's context; the name is ours and lives through the call.
    let Ok(mut key) = (unsafe { Key::open(ctx, name, Mode::Write) }) else {
        return;
    };
    let node = &mut *node();
    // SAFETY: as above.
    let bytes = unsafe { bytes_of(name) };
    let known = propagate::Known {
        strings: &[name],
        bytes: &[bytes],
    };
    let Some(record) = key.record() else { return };
    let drops = record.surplus(node.shares.limits_of(record), now_us, false);
    let home = moves(bytes, record, node);
    let stamp = node.next_stamp(now_us);
    let env = Env {
        now_us,
        stamp,
        beyond: node.clock.beyond(),
        who: &Default::default(),
        limits: &node.limits,
        shares: &node.shares,
        answer: None,
    };
    let lapsed = lapse(bytes, record, &env);
    let trimmed = (drops > 0).then(|| Change::trim(bytes, drops));
    // Where there is no room for it it stays where it is.
    let moved = home
        .map(|home| Change::moved(bytes, home))
        .filter(|change| {
            let mut change = [change.clone()];
            // No write is refused by this.
            let place = change[0].writes[0].home.as_ref().map(|h| h.place);
            let entry = place.and_then(|place| node.shares.get(place));
            let refused = entry.map(|e| e.refused.get());
            let (ledger, record) = (&ledger::Here, |_: usize, _: &[u8]| Some(record));
            let admitted =
                node.shares
                    .admit(&mut change, None, &record, &env, ledger, &mut |_, _, _| {
                        false
                    });
            if let Some((entry, refused)) = entry.zip(refused) {
                entry.refused.set(refused);
            }
            admitted.is_ok()
        });
    for change in trimmed.iter().chain(&lapsed).chain(&moved) {
        guard::applying(|| {
            key.apply(change, 0);
            if change.kind == Kind::Lock {
                node.committed(change.stamp, stamp, now_us);
            }
            // SAFETY: as above.
            unsafe { propagate::change(ctx, known, change, &mut node.scratch) };
        });
    }
    METRICS.trimmed.add(drops as u64);
}

/// Warns when the server may evict state.
fn watch_policy(ctx: *mut raw::RedisModuleCtx) {
    failpoint::hit("policy");
    // SAFETY: the field's text lives until the information is freed.
    let evicts = unsafe {
        let info = api!(RedisModule_GetServerInfo)(ctx, c"memory".as_ptr());
        let policy = api!(RedisModule_ServerInfoGetFieldC)(info, c"maxmemory_policy".as_ptr());
        let evicts = !policy.is_null() && CStr::from_ptr(policy).to_bytes().starts_with(b"allkeys");
        api!(RedisModule_FreeServerInfo)(ctx, info);
        evicts
    };
    if evicts && !EVICTS_STATE.swap(evicts, Relaxed) {
        log::warning("maxmemory-policy is allkeys-*: the server may evict state keys, their history with them, without telling anybody. Set maxmemory-policy noeviction (or volatile-*)");
    }
    EVICTS_STATE.store(evicts, Relaxed);
}
