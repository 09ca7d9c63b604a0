//! Faults on purpose, in debug builds only: a panic at a named point, a wall clock that is wrong.
//! In a release build nothing of it exists.

/// Every point: one for each stage of a command, and one for each other place in which code of ours
/// runs for the server. A test goes through all of them.
#[cfg(debug_assertions)]
pub const POINTS: &[&str] = &[
    // Commands: called at all, asked for their keys, then what `commands` does in turn.
    "enter",
    "keys",
    "parse",
    "open",
    "user",
    "read",
    "decide",
    "decided",
    "apply",
    "reply",
    // What a master, the AOF or a slot's former node sends.
    "obey apply",
    "obey load",
    "obey restored",
    "obey reign",
    "obey leaves",
    "obey brought",
    // The data type.
    "save",
    "load",
    "rewrite",
    "digest",
    "copy",
    "free",
    "mem usage",
    "free effort",
    "unlink",
    "defrag",
    // RESTORE by a client, and of what was decided elsewhere.
    "restore decide",
    "restore obey",
    "restore event",
    "restore done",
    "restore forget",
    // Partitions.
    "define",
    "survey",
    "watch",
    "range",
    "backup",
    "offload",
    "backup tick",
    "backup look",
    "backup filter",
    "backup write",
    "backup finish",
    "schedule",
    "restoring",
    "bring",
    "rollback",
    "rolling",
    "rolling look",
    "roll",
    "admit",
    "victims",
    "sweep",
    "newcomers",
    "partitions",
    "walk",
    "bus",
    "obey define",
    "share save",
    "share load",
    "share rewrite",
    "share unlink",
    // The background pass.
    "tick",
    "policy",
    "listeners",
    "look",
    "trim",
    "wake",
    "pause",
    "message",
    // What the server tells and asks.
    "event",
    "notified",
    "tell",
    "config get",
    "config set",
    "info",
];

/// Panics if a test has armed this point, which must stand in [`POINTS`].
#[inline(always)]
pub fn hit(point: &str) {
    #[cfg(debug_assertions)]
    armed::hit(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
pub use armed::{arm, clock, set_clock};

#[cfg(debug_assertions)]
mod armed {
    use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst};

    use super::POINTS;

    // No lock: values are freed in threads, and a fork may come while one of them holds it.
    static ARMED: AtomicUsize = AtomicUsize::new(usize::MAX);
    static LEFT: AtomicU64 = AtomicU64::new(0);
    static CLOCK_US: AtomicI64 = AtomicI64::new(i64::MIN);

    fn place(point: &str) -> Option<usize> {
        POINTS.iter().position(|p| *p == point)
    }

    /// The next `times` hits of this point panic, and those of no other. How many hits the point that was
    /// armed before has still been waiting for; `None` if there is no such point.
    pub fn arm(point: &str, times: u64) -> Option<u64> {
        let place = place(point)?;
        let left = LEFT.swap(0, SeqCst);
        ARMED.store(place, SeqCst);
        LEFT.store(times, SeqCst);
        Some(left)
    }

    pub fn hit(point: &str) {
        let Some(place) = place(point) else {
            panic!("the failpoint {point} is not in the list");
        };
        if LEFT.load(SeqCst) == 0 || ARMED.load(SeqCst) != place {
            return;
        }
        let fewer = |left: u64| left.checked_sub(1);
        if LEFT.fetch_update(SeqCst, SeqCst, fewer).is_ok() {
            panic!("failpoint {point}");
        }
    }

    /// Moves the wall clock by this many microseconds; `None` sets it right again.
    pub fn set_clock(offset_us: Option<i64>) {
        CLOCK_US.store(offset_us.unwrap_or(i64::MIN), SeqCst);
    }

    /// The wall clock, if it is wrong on purpose.
    pub fn clock() -> Option<u64> {
        let offset = CLOCK_US.load(SeqCst);
        if offset == i64::MIN {
            return None;
        }
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .ok()?;
        u64::try_from(now.as_micros())
            .ok()?
            .checked_add_signed(offset)
    }
}
