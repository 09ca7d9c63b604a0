//! The hybrid clock: one a node.
//!
//! A hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) folded into one
//! number: the larger of the wall clock and the last stamp plus one.
//!
//! While the last stamp lies ahead of the wall clock (which stepped back, or a stamp from a node whose
//! clock is ahead came in), the clock does not merely count: it runs on at half speed until the wall
//! has caught up. So two nodes that have seen the same stamp make different ones afterwards, as they
//! do on the wall clock, and a failover in that time gives no number twice.

use crate::Stamp;

/// Makes stamps. Time is an argument: `now_us` is the wall clock, `steady` a clock that never steps,
/// both in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    last: Stamp,
    /// When `last` was taken over, by the steady clock; known while `last` is ahead of the wall.
    since: Option<u64>,
    beyond: Stamp,
}

impl Clock {
    /// The stamp that the next commit gets. No stamp is used up by asking: a refused write leaves no
    /// gap.
    pub fn peek(&mut self, now_us: u64, steady: impl FnOnce() -> u64) -> Stamp {
        if now_us > self.last.0 {
            return Stamp(now_us);
        }
        let steady = steady();
        let since = *self.since.get_or_insert(steady);
        Stamp(self.last.0 + (steady.saturating_sub(since) / 2).max(1))
    }

    /// Takes note of a stamp that this clock made.
    pub fn made(&mut self, stamp: Stamp, now_us: u64, steady: impl FnOnce() -> u64) {
        if stamp > self.last {
            self.last = stamp;
            self.since = (stamp.0 > now_us).then(steady);
        }
    }

    /// Takes note of a stamp that came from elsewhere, so that none below it is made again. False if
    /// it lies more than `drift_us` ahead of the wall clock: such a stamp does not move the clock, and
    /// is remembered in [`beyond`](Clock::beyond).
    #[must_use]
    pub fn observe(
        &mut self,
        seen: Stamp,
        now_us: u64,
        drift_us: u64,
        steady: impl FnOnce() -> u64,
    ) -> bool {
        // What does not go beyond the clock does not move it.
        if seen.0 > now_us.saturating_add(drift_us) && seen > self.last {
            self.beyond = self.beyond.max(seen);
            return false;
        }
        self.made(seen, now_us, steady);
        true
    }

    /// The last stamp made or seen.
    pub fn last(&self) -> Stamp {
        self.last
    }

    /// The largest stamp seen or made that was too far ahead to move the clock. A key that lies there
    /// goes on above it.
    pub fn beyond(&self) -> Stamp {
        self.beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000_000;

    fn still() -> u64 {
        0
    }

    #[test]
    fn a_clock_that_steps_back_is_absorbed() {
        let mut c = Clock::default();
        assert_eq!(c.peek(1_000, still), Stamp(1_000));
        c.made(Stamp(1_000), 1_000, still);
        assert_eq!(c.peek(500, still), Stamp(1_001));
        assert_eq!(c.peek(2_000, still), Stamp(2_000));
    }

    #[test]
    fn a_clock_that_steps_back_by_far_goes_on_rising() {
        let mut c = Clock::default();
        c.made(Stamp(10 * DAY), 10 * DAY, still);
        let mut before = c.last();
        for n in 0..100 {
            let s = c.peek(n, still);
            assert!(s > before);
            c.made(s, n, still);
            before = s;
        }
    }

    #[test]
    fn a_clock_that_is_ahead_runs_on_and_is_caught_up_with() {
        let mut c = Clock::default();
        assert!(c.observe(Stamp(10_000), 1_000, DAY, || 1_000));
        assert_eq!(c.peek(3_000, || 3_000), Stamp(11_000));
        c.made(Stamp(11_000), 3_000, || 3_000);
        assert_eq!(c.peek(3_000, || 3_000), Stamp(11_001));
        assert_eq!(c.peek(19_000, || 19_000), Stamp(19_000));
        // Two nodes that have seen the same stamp, asked at different times.
        let mut other = Clock::default();
        assert!(other.observe(Stamp(11_000), 3_500, DAY, || 77));
        assert_ne!(other.peek(4_000, || 577), c.peek(4_000, || 4_000));
    }

    #[test]
    fn a_stamp_far_ahead_does_not_drag_the_clock() {
        let mut c = Clock::default();
        assert!(!c.observe(Stamp(DAY + 1_001), 1_000, DAY, still));
        assert_eq!(c.peek(1_000, still), Stamp(1_000));
        assert_eq!(c.beyond(), Stamp(DAY + 1_001));
        assert!(c.observe(Stamp(DAY + 1_000), 1_000, DAY, still));
        assert_eq!(c.peek(1_000, still), Stamp(DAY + 1_001));
    }

    proptest! {
        #[test]
        fn stamps_rise_whatever_the_clocks_do(times in prop::collection::vec((0u64..1 << 50, 0u64..1 << 50), 1..200)) {
            let mut c = Clock::default();
            let mut before = Stamp::NONE;
            for (now, steady) in times {
                let s = c.peek(now, || steady);
                prop_assert!(s > before);
                prop_assert!(s.0 >= now);
                c.made(s, now, || steady);
                before = s;
            }
        }
    }
}
