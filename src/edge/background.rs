//! The background pass: walks over the keys in small steps, lets versions go that have grown too
//! old (on masters, and as a change like any other), and compresses older payloads (on replicas
//! too: how a version is kept is nobody's business but the node's).

use std::cell::Cell;
use std::ffi::{c_int, c_void, CStr};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use maos_core::change::{Change, Kind};
use maos_core::lock::lapse;
use maos_core::record::Record;
use maos_core::state::Env;

use super::api::{api, raw};
use super::call::{bytes_of, flags};
use super::keys::{Key, Mode};
use super::metrics::{held, METRICS};
use super::node::{node, now_us};
use super::{failpoint, guard, listeners, log, pause, propagate};
use crate::persist;

/// Milliseconds from one step to the next.
const PERIOD_MS: i64 = 100;
/// A pass over all keys begins no sooner than so many steps after the one before.
const PASS_STEPS: u64 = 10;
/// Steps between two looks at who listens.
const LISTENERS_EVERY: u64 = 10;
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
    });
    arm(ctx, Box::into_raw(pass));
}

struct Pass {
    cursor: *mut raw::RedisModuleScanCursor,
    db: Cell<c_int>,
    steps: Cell<u64>,
    /// The step in which the pass over all keys begins or began.
    began: Cell<u64>,
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

/// What one callback of the scan needs, and what it found.
struct Step {
    compress_min: usize,
    now_us: u64,
    trims: bool,
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
        let budget = Duration::from_micros(node().limits.background_us);
        let now = flags(ptr::null_mut());
        let idle = raw::REDISMODULE_CTX_FLAGS_LOADING
            | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING
            | raw::REDISMODULE_CTX_FLAGS_ACTIVE_CHILD;
        // While a child saves, every byte touched is copied: wait until it is done.
        if budget.is_zero() || now & idle != 0 || self.steps.get() < self.began.get() {
            return;
        }
        let start = Instant::now();
        while start.elapsed() < budget {
            if !self.bucket(ctx, now & raw::REDISMODULE_CTX_FLAGS_MASTER != 0) {
                let next = self.began.get() + PASS_STEPS;
                self.began.set(next.max(self.steps.get() + 1));
                return;
            }
        }
    }

    /// Looks at one bucket of the keyspace. False at the end of it all.
    fn bucket(&self, ctx: *mut raw::RedisModuleCtx, master: bool) -> bool {
        // SAFETY: the context of the timer.
        let selected = unsafe { api!(RedisModule_SelectDb)(ctx, self.db.get()) };
        let trims = master && propagate::may_tell();
        if selected != raw::REDISMODULE_OK as c_int {
            self.db.set(0);
            return false;
        }
        let step = Step {
            compress_min: node().limits.compress_min,
            now_us: now_us(),
            trims,
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
    guard::run(|| {
        failpoint::hit("look");
        // SAFETY: `step` is what `bucket` gave; the key is open or null while this runs, and a
        // value of our type is a record, which nothing else looks at meanwhile.
        let (step, record) = unsafe {
            if key.is_null() || api!(RedisModule_ModuleTypeGetType)(key) != persist::data_type() {
                return;
            }
            let record = api!(RedisModule_ModuleTypeGetValue)(key).cast::<Record>();
            (&*step.cast::<Step>(), record.as_mut())
        };
        let Some(record) = record else { return };
        if record.may_pack(step.compress_min) {
            let before = held(record);
            let packed = record.pack(step.compress_min, PACK_BYTES);
            METRICS.compressed.add(packed as u64);
            METRICS.changed(before, held(record));
        }
        let due = record.surplus(&node().limits, step.now_us, false) > 0
            || record.has_late_holder(step.now_us / 1000);
        if step.trims && due {
            let mut found = step.found.take();
            // SAFETY: the name lives while this runs; it is copied.
            unsafe {
                let bytes = bytes_of(name);
                let start = bytes.as_ptr().cast();
                found.push(api!(RedisModule_CreateString)(ctx, start, bytes.len()));
            }
            step.found.set(found);
        }
    });
}

/// Lets the oldest versions of a key go, and holders whose lease is over, here and on replicas. Looked at anew: the scan's view of
/// the key is over.
fn trim(ctx: *mut raw::RedisModuleCtx, name: *mut raw::RedisModuleString, now_us: u64) {
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
    let drops = record.surplus(&node.limits, now_us, false);
    let stamp = node.next_stamp(now_us);
    let env = Env {
        now_us,
        stamp,
        beyond: node.clock.beyond(),
        who: &Default::default(),
        limits: &node.limits,
        answer: None,
    };
    let lapsed = lapse(bytes, record, &env);
    let trimmed = (drops > 0).then(|| Change::trim(bytes, drops));
    for change in trimmed.iter().chain(&lapsed) {
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
