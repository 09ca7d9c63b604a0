//! Turns at a key that many change at once, among the tasks that share a client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::update::Seen;

/// For how long after a lost race a key counts as contended: a try in between costs others little.
const LASTS: Duration = Duration::from_millis(200);

/// So many keys are kept in mind before those are forgotten that nobody contends for any more.
const KEPT: usize = 64;

/// Races lost in one's turn, to other clients, before the store's queue is used.
const PATIENCE: u32 = 2;

/// Updates after which the store is looked at again.
const LOOK_EVERY: u32 = 16;

/// The keys that were contended lately.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<Vec<u8>, Arc<Line>>>);

/// Who stands in line for one key.
pub(crate) struct Line {
    until: Mutex<Instant>,
    seat: tokio::sync::Mutex<Seat>,
}

/// What passes from one to the next.
#[derive(Default)]
pub(crate) struct Seat {
    left: Option<Seen>,
    /// How often that was passed on without another look at the store.
    passed: u32,
    lost: u32,
    rivals_until: Option<Instant>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// The line for a key, if it is contended.
    pub(crate) fn contended(&self, key: &[u8]) -> Option<Arc<Line>> {
        let lines = locked(&self.0);
        let line = lines.get(key).filter(|line| line.is_contended())?;
        Some(line.clone())
    }

    /// A race for a key was lost: the line for it.
    pub(crate) fn contend(&self, key: &[u8]) -> Arc<Line> {
        let mut lines = locked(&self.0);
        if lines.len() >= KEPT {
            lines.retain(|_, line| line.is_contended());
        }
        let until = Instant::now() + LASTS;
        let new = || {
            Arc::new(Line {
                until: Mutex::new(until),
                seat: tokio::sync::Mutex::default(),
            })
        };
        let line = lines.entry(key.to_vec()).or_insert_with(new);
        *locked(&line.until) = until;
        line.clone()
    }
}

impl Line {
    /// Also as long as somebody stands in it.
    fn is_contended(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || *locked(&self.until) > Instant::now()
    }

    /// True if others stand in it too.
    pub(crate) fn has_others(self: &Arc<Self>) -> bool {
        // The map of lines has one, and who asks another.
        Arc::strong_count(self) > 2
    }

    /// Waits for one's turn.
    pub(crate) async fn take(&self) -> tokio::sync::MutexGuard<'_, Seat> {
        let mut seat = self.seat.lock().await;
        seat.lost = 0;
        seat
    }
}

impl Seat {
    /// What the one before wrote or saw, if that was after this moment. Not each time: others who wait
    /// for their turn are seen only in the store.
    pub(crate) fn left_since(&mut self, began: Instant) -> Option<Seen> {
        self.passed = (self.passed + 1) % LOOK_EVERY;
        let left = self.left.take().filter(|seen| seen.since >= began);
        left.filter(|_| self.passed != 0)
    }

    /// What the next one may begin with, if there is one.
    pub(crate) fn leave(&mut self, now: Option<Seen>) {
        self.left = now;
        if !self.has_rivals() {
            self.rivals_until = None;
        }
    }

    /// Other clients contend for the key too.
    pub(crate) fn meet_rivals(&mut self) {
        self.rivals_until = Some(Instant::now() + LASTS);
    }

    /// A race was lost to another client.
    pub(crate) fn lost(&mut self) {
        self.lost += 1;
        if self.lost >= PATIENCE || self.rivals_until.is_some() {
            self.meet_rivals();
        }
    }

    /// Whether other clients contend for the key too.
    pub(crate) fn has_rivals(&self) -> bool {
        self.rivals_until
            .is_some_and(|until| until > Instant::now())
    }
}
