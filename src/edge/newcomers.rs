//! Keys that came by a command of the server's own, COPY or RESTORE, and are charged to another partition than they
//! belong to, or to none. What room they need is asked for when they come; which partition is charged is a fact of
//! its own, told to replicas right after: they need not know the same prefixes in the same moment to agree.

use std::cell::RefCell;
use std::ffi::c_void;

use super::api::{api, raw};
use super::background;
use super::call::flags;
use super::lineage::{context, Name};
use super::node::{node, now_us};
use super::{failpoint, guard, propagate};

/// So many may wait; the background pass finds the others.
const WAITING_MAX: usize = 10_000;
/// So many are looked at in one go, and how long others have then.
const AT_ONCE: usize = 64;
const AGAIN_MS: i64 = 1;

struct MainThread(RefCell<Vec<(i32, Box<[u8]>)>>);

// SAFETY: callbacks of values that are loaded or copied, and timers, come on the main thread only.
unsafe impl Sync for MainThread {}

static WAITING: MainThread = MainThread(RefCell::new(Vec::new()));

/// A key has come that may belong elsewhere.
pub fn note(db: i32, key: &[u8]) {
    let mut waiting = WAITING.0.borrow_mut();
    if waiting.len() < WAITING_MAX {
        waiting.push((db, key.into()));
        if waiting.len() == 1 {
            arm(0);
        }
    }
}

fn arm(after_ms: i64) {
    // SAFETY: our own context; no data.
    unsafe {
        let data = std::ptr::null_mut();
        api!(RedisModule_CreateTimer)(context(0), after_ms, Some(settle), data)
    };
}

unsafe extern "C" fn settle(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let some = {
        let mut waiting = WAITING.0.borrow_mut();
        let some = waiting.len().saturating_sub(AT_ONCE);
        waiting.split_off(some)
    };
    guard::run(|| {
        failpoint::hit("newcomers");
        let master = flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0;
        // Where the background pass changes nothing, or must not now, this does not either.
        if !master || !propagate::may_tell() || node().limits.background_us == 0 {
            return;
        }
        for (db, key) in some {
            let ctx = context(db);
            let name = Name::new(ctx, &key);
            background::trim(ctx, name.string, now_us());
        }
    });
    if !WAITING.0.borrow().is_empty() {
        arm(AGAIN_MS);
    }
}
