//! Waiting for a condition instead of for a while.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what should happen in milliseconds, on a machine that may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `happened` until it says yes. Panics, naming `what`, when the deadline has passed.
pub fn eventually(deadline: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !happened() {
        assert!(
            start.elapsed() < deadline,
            "waited {deadline:?} in vain: {what}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}
