//! Faults on purpose, in debug builds only: a panic at a named point, a wall clock that is wrong.
//! In a release build nothing of it exists.

/// Panics if a test has armed this point.
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
    use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
    use std::sync::Mutex;

    static ARMED: Mutex<Option<(String, u64)>> = Mutex::new(None);
    static CLOCK_US: AtomicI64 = AtomicI64::new(i64::MIN);

    /// The next `times` hits of this point panic.
    pub fn arm(point: &str, times: u64) {
        if let Ok(mut armed) = ARMED.lock() {
            *armed = Some((point.to_string(), times));
        }
    }

    pub fn hit(point: &str) {
        let Ok(mut armed) = ARMED.lock() else { return };
        let Some((name, left)) = armed.as_mut() else {
            return;
        };
        if name != point || *left == 0 {
            return;
        }
        *left -= 1;
        drop(armed);
        panic!("failpoint {point}");
    }

    /// Moves the wall clock by this many microseconds; `None` sets it right again.
    pub fn set_clock(offset_us: Option<i64>) {
        CLOCK_US.store(offset_us.unwrap_or(i64::MIN), Relaxed);
    }

    /// The wall clock, if it is wrong on purpose.
    pub fn clock() -> Option<u64> {
        let offset = CLOCK_US.load(Relaxed);
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
