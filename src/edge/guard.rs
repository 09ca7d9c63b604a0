//! Every entry from the server: a panic in our code is an answer, not a crash.
//!
//! One exception: a panic while a decided change is being applied. The record may then be torn,
//! and a torn record is worse than a restart from the AOF or a replica: the process is ended.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::metrics::METRICS;
use super::{log, node};

static APPLYING: AtomicBool = AtomicBool::new(false);

/// A change has been applied since [`begin`].
static APPLIED: AtomicBool = AtomicBool::new(false);

/// Runs an entry. A panic in it is counted and logged, and gives `None`.
pub fn run<T>(entry: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(entry)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // Dropping it could panic again.
            std::mem::forget(payload);
            if APPLYING.load(Relaxed) {
                log::warning("panic while a change was being applied: the record may be torn, so the process ends; it restarts from its AOF or RDB");
                std::process::abort();
            }
            METRICS.panics.one();
            None
        }
    }
}

/// What a job or a client is told that met a panic.
pub const FAULT: &str = "a fault of its own; the server's log says where";

/// As [`run`], for what a thread of ours does. Changes are applied in the server's thread alone: whether one is at this
/// moment says nothing of a panic in another.
pub fn run_in_thread<T>(work: impl FnOnce() -> T) -> Option<T> {
    give_way();
    let done = catch_unwind(AssertUnwindSafe(work));
    done.map_err(|payload| {
        std::mem::forget(payload);
        METRICS.panics.one();
    })
    .ok()
}

/// This thread, when it wakes up, does not take the core of one that is at work: of the server's, which has woken it by
/// handing it something. Where the system knows no such thing it does.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        let usual = libc::sched_param { sched_priority: 0 };
        // SAFETY: of this thread; the parameter lives through the call. A system that refuses leaves it as it is.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const usual) };
    }
}

/// Runs what cannot fail: the application of a decided change.
#[inline(always)]
pub fn applying<T>(apply: impl FnOnce() -> T) -> T {
    APPLYING.store(true, Relaxed);
    let value = apply();
    APPLYING.store(false, Relaxed);
    APPLIED.store(true, Relaxed);
    value
}

/// A command begins.
pub fn begin() {
    APPLIED.store(false, Relaxed);
}

/// What a command that panicked has done.
pub fn what_was_done() -> &'static str {
    match APPLIED.load(Relaxed) {
        true => "made its change, which stays,",
        false => "changed nothing",
    }
}

/// Makes panics say where they were, in the server's log.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let what = payload
            .downcast_ref::<&str>()
            .copied()
            .or(payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        log::warning(&format!("panic at {place}: {what}"));
    }));
}

/// Panics within [`WINDOW_US`] after which a command is switched off.
pub const TOLERATED: u64 = 5;
/// How long they count, and how long the command stays off: 60 seconds.
pub const WINDOW_US: u64 = 60_000_000;

/// Switches a command off that panics again and again.
pub struct Breaker {
    since: AtomicU64,
    panics: AtomicU64,
    off_until: AtomicU64,
}

impl Breaker {
    /// A breaker that is closed.
    pub const fn new() -> Breaker {
        Breaker {
            since: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            off_until: AtomicU64::new(0),
        }
    }

    /// For how many more seconds the command is off, if it is.
    pub fn off_for(&self) -> Option<u64> {
        let until = self.off_until.load(Relaxed);
        if until == 0 {
            return None;
        }
        let left = until.saturating_sub(node::now_us());
        if left == 0 {
            self.off_until.store(0, Relaxed);
            return None;
        }
        Some(left.div_ceil(1_000_000))
    }

    /// Counts a panic of the command.
    pub fn tripped(&self, name: &str) {
        let now = node::now_us();
        if now.saturating_sub(self.since.load(Relaxed)) > WINDOW_US {
            self.since.store(now, Relaxed);
            self.panics.store(0, Relaxed);
        }
        if self.panics.fetch_add(1, Relaxed) + 1 >= TOLERATED {
            self.panics.store(0, Relaxed);
            self.off_until.store(now + WINDOW_US, Relaxed);
            log::warning(&format!(
                "{name} is switched off for {} seconds after {TOLERATED} panics",
                WINDOW_US / 1_000_000
            ));
        }
    }
}
