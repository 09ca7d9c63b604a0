//! Whether anything can hear what this node changes: an append-only file, a replica, or the backlog
//! to which a replica may come back.
//!
//! A change is told with a command of its own, and building that costs as much as the write. Where
//! nothing listens the server throws it away, so there it is not built. To be wrong here is to lose
//! data: whatever is not known counts as listening, and only the server's own word that it has no
//! append-only file, no replica and no backlog (what its `shouldPropagate` asks) says otherwise.
//!
//! From there on, nothing begins to listen without one of the events of [`events`](super::events), and
//! each of them comes before the next command runs. A first replica or an append-only file that is switched on starts
//! with what a forked child writes down, and what is changed before that fork is in what it writes.

use std::ffi::{c_int, CStr};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::api::{api, raw};
use super::call::flags;
use super::failpoint;
use super::metrics::METRICS;

static MAY_LISTEN: AtomicBool = AtomicBool::new(true);

/// Whether the server tells of all that is said above.
static TOLD: AtomicBool = AtomicBool::new(false);

/// True unless it is certain that nothing listens.
#[inline]
pub fn any() -> bool {
    MAY_LISTEN.load(Relaxed)
}

/// `told`: the server tells of forks, replicas, changed settings. Where it does not, something always
/// listens.
pub fn start(told: bool) {
    TOLD.store(told, Relaxed);
}

/// From now on something may listen.
pub fn may_have_come() {
    MAY_LISTEN.store(true, Relaxed);
}

/// Looks whether nothing listens any more. Called from time to time, not while a command runs.
pub fn look(ctx: *mut raw::RedisModuleCtx) {
    failpoint::hit("listeners");
    let may = raw::REDISMODULE_CTX_FLAGS_LOADING
        | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING
        | raw::REDISMODULE_CTX_FLAGS_CLUSTER
        | raw::REDISMODULE_CTX_FLAGS_AOF;
    let now = flags(ptr::null_mut());
    let quiet = TOLD.load(Relaxed)
        && now & may == 0
        && now & raw::REDISMODULE_CTX_FLAGS_MASTER != 0
        && all_zero(ctx, c"persistence", &[c"aof_enabled"])
        && all_zero(
            ctx,
            c"replication",
            &[c"connected_slaves", c"repl_backlog_active"],
        );
    MAY_LISTEN.store(!quiet, Relaxed);
    METRICS.listener_checks.one();
}

/// True if the server says 0 of each of these. What it does not say is not 0.
fn all_zero(ctx: *mut raw::RedisModuleCtx, section: &CStr, fields: &[&CStr]) -> bool {
    // SAFETY: the information lives until it is freed.
    unsafe {
        let info = api!(RedisModule_GetServerInfo)(ctx, section.as_ptr());
        let zero = |field: &&CStr| {
            let mut wrong = 0;
            let get = api!(RedisModule_ServerInfoGetFieldUnsigned);
            let n = get(info, field.as_ptr(), &raw mut wrong);
            wrong == raw::REDISMODULE_OK as c_int && n == 0
        };
        let all = fields.iter().all(zero);
        api!(RedisModule_FreeServerInfo)(ctx, info);
        all
    }
}
