//! The hybrid clock: one a node.
//!
//! A hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) folded into one
//! number: the larger of the wall clock and the last stamp plus one. A wall clock that steps back
//! is absorbed; the clock then counts on by ones until the wall has caught up.

use crate::Stamp;

/// Makes stamps. Time is an argument.
#[derive(Debug, Default)]
pub struct Clock {
    last: Stamp,
}

impl Clock {
    /// The stamp that the next commit gets if the wall clock shows `now_us`. Changes nothing: a
    /// refused write uses no stamp up.
    pub fn peek(&self, now_us: u64) -> Stamp {
        Stamp(now_us.max(self.last.0 + 1))
    }

    /// Takes note of a stamp that was made, loaded or replicated, so that none below it is made
    /// again. False if it lies more than `drift_us` ahead of the wall clock: such a stamp does not
    /// move the clock.
    #[must_use]
    pub fn observe(&mut self, seen: Stamp, now_us: u64, drift_us: u64) -> bool {
        if seen.0 > now_us.saturating_add(drift_us) {
            return false;
        }
        self.last = self.last.max(seen);
        true
    }

    /// The last stamp made or seen.
    pub fn last(&self) -> Stamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000_000;

    #[test]
    fn a_clock_that_steps_back_is_absorbed() {
        let mut c = Clock::default();
        assert_eq!(c.peek(1_000), Stamp(1_000));
        assert!(c.observe(Stamp(1_000), 1_000, DAY));
        assert_eq!(c.peek(500), Stamp(1_001));
        assert_eq!(c.peek(2_000), Stamp(2_000));
    }

    #[test]
    fn a_stamp_far_ahead_does_not_drag_the_clock() {
        let mut c = Clock::default();
        assert!(!c.observe(Stamp(DAY + 1_001), 1_000, DAY));
        assert_eq!(c.peek(1_000), Stamp(1_000));
        assert!(c.observe(Stamp(DAY + 1_000), 1_000, DAY));
        assert_eq!(c.peek(1_000), Stamp(DAY + 1_001));
    }

    proptest! {
        #[test]
        fn stamps_rise_whatever_the_wall_clock_does(walls in prop::collection::vec(0u64..1 << 50, 1..200)) {
            let mut c = Clock::default();
            let mut before = Stamp::NONE;
            for now in walls {
                let s = c.peek(now);
                prop_assert!(s > before);
                prop_assert!(s.0 >= now);
                // Made here, so never refused: the drift bound is for what comes from outside.
                prop_assert!(c.observe(s, now, u64::MAX));
                before = s;
            }
        }
    }
}
