//! Counters. Derived state: a restart starts them anew, and the three that say what is held are
//! made again from the records as they are loaded.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use maos_core::wire::reference::COMMANDS;
use maos_core::Code;

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What the module counts. Values are freed in threads too, so all of it is atomic.
pub struct Metrics {
    /// Keys written by commands: versions, and locks that changed.
    pub writes: Counter,
    /// Lost races, by command.
    pub conflicts: [Counter; COMMANDS.len()],
    /// Refusals, by code.
    pub refusals: [Counter; Code::ALL.len()],
    /// Panics contained.
    pub panics: Counter,
    /// Versions trimmed away.
    pub trimmed: Counter,
    /// Versions compressed.
    pub compressed: Counter,
    /// Stamps too far ahead that came in by loading or replication.
    pub stamps_ahead: Counter,
    /// Changes and records that could not be applied or loaded.
    pub damaged: Counter,
    /// Times that the node slept longer than it may.
    pub pauses: Counter,
    /// Events that watchers were told.
    pub events_read: Counter,
    /// Looks at who listens to changes.
    pub listener_checks: Counter,
    /// Records whose value was removed by the server: DEL, expiry, overwriting and so on.
    pub unlinked: Counter,
    records: AtomicI64,
    versions: AtomicI64,
    bytes: AtomicI64,
}

/// The one set of counters.
pub static METRICS: Metrics = Metrics {
    writes: Counter::new(),
    conflicts: [const { Counter::new() }; COMMANDS.len()],
    refusals: [const { Counter::new() }; Code::ALL.len()],
    panics: Counter::new(),
    trimmed: Counter::new(),
    compressed: Counter::new(),
    stamps_ahead: Counter::new(),
    damaged: Counter::new(),
    pauses: Counter::new(),
    events_read: Counter::new(),
    listener_checks: Counter::new(),
    unlinked: Counter::new(),
    records: AtomicI64::new(0),
    versions: AtomicI64::new(0),
    bytes: AtomicI64::new(0),
};

impl Metrics {
    /// So many records more are held, so many versions, so many bytes.
    #[inline(always)]
    pub fn held(&self, records: i64, versions: i64, bytes: i64) {
        for (sum, more) in [
            (&self.records, records),
            (&self.versions, versions),
            (&self.bytes, bytes),
        ] {
            if more != 0 {
                sum.fetch_add(more, Relaxed);
            }
        }
    }

    /// Records, versions and bytes held now.
    pub fn totals(&self) -> [u64; 3] {
        [&self.records, &self.versions, &self.bytes]
            .map(|n| u64::try_from(n.load(Relaxed)).unwrap_or(0))
    }
}
