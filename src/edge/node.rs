//! What the module holds besides keys: its clock, the writers' table, the settings. All derived or
//! configured; nothing here is a second truth.

use std::cell::{RefCell, RefMut};
use std::sync::OnceLock;
use std::time::Instant;

use maos_core::clock::Clock;
use maos_core::codec::v1::{self, Share};
use maos_core::config::Limits;
use maos_core::partition::{Directory, Member};
use maos_core::record::Record;
use maos_core::{Interner, Refusal, Stamp};

use super::api::raw;
use super::call::{flags, Users};
use super::lineage::{self, Note};
use super::metrics::METRICS;
use super::{config, feed, index, ledger, log, members, newcomers, partitions};

/// A buffer that had to grow larger for once is let go.
const SCRATCH_KEPT: usize = 1 << 20;

/// The node's own state.
#[derive(Default)]
pub struct Node {
    /// Makes stamps.
    pub clock: Clock,
    /// Shares writers.
    pub interner: Interner,
    /// The settings in force.
    pub limits: Limits,
    /// The partitions.
    pub shares: Directory,
    /// Which connections have a user.
    pub users: Users,
    /// A buffer for encodings, kept so that it need not grow each time.
    pub scratch: Vec<u8>,
    /// What was decided here about the RESTORE in progress, until it is sent.
    pub decided: Option<Note>,
    /// What a master decided about the RESTORE that comes next. At most one, and only between two
    /// commands that travel together.
    pub note: Option<Note>,
    warned_ahead: bool,
}

struct MainThread(RefCell<Option<Node>>);

// SAFETY: the server calls commands, data type callbacks other than `free`, timers and events on
// its main thread only, and a fork's child has a copy of its own; `free`, which may run in a
// thread, does not come here.
unsafe impl Sync for MainThread {}

static NODE: MainThread = MainThread(RefCell::new(None));

/// The node, for as long as the guard lives. On the main thread, and not twice at once: a second
/// borrow is a panic, which the entry's guard contains.
pub fn node() -> RefMut<'static, Node> {
    RefMut::map(NODE.0.borrow_mut(), |slot| {
        let node = slot.get_or_insert_with(|| Node {
            shares: Directory::complete(),
            ..Node::default()
        });
        if config::take_changed() {
            node.limits = config::limits();
            node.shares.set_limits(&node.limits);
            feed::set_max_bytes(node.limits.changes);
            index::switch(node.limits.index);
        }
        partitions::refresh(&mut node.shares);
        if node.scratch.capacity() > SCRATCH_KEPT {
            node.scratch = Vec::new();
        }
        node
    })
}

/// The wall clock, in microseconds of unix time.
pub fn now_us() -> u64 {
    #[cfg(debug_assertions)]
    if let Some(us) = super::failpoint::clock() {
        return us;
    }
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // A third of what `SystemTime` takes, on the way of every write.
    // SAFETY: the struct is ours; this clock exists everywhere, so the call does not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

/// A clock that never steps, in microseconds since the first look at it.
fn steady_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

impl Node {
    /// The partition that a record names.
    pub fn share(&self, record: &Record) -> Option<Share<'_>> {
        let entry = self.shares.get(record.member().place());
        Share::of(record, entry.map(|e| &*e.name))
    }

    /// The encoding of a record.
    pub fn encoded(&mut self, record: &Record) -> &[u8] {
        self.scratch.clear();
        let entry = self.shares.get(record.member().place());
        let share = Share::of(record, entry.map(|e| &*e.name));
        v1::encode_record(record, share, &mut self.scratch);
        &self.scratch
    }

    /// Has a record that was loaded belong to the partition that it names.
    pub fn join(&mut self, record: &mut Record, share: Option<Share<'_>>, key_len: usize) {
        if let Some(share) = share {
            let place = self.shares.place(share.name);
            if self.shares.definition(place).is_none() {
                members::list_for_now(place);
            }
            let member = Member::new(place, share.chosen, share.dies, key_len);
            record.set_member(member);
        }
    }

    /// Whether there is room for a whole record that the server brings to a key, where one of so many bytes goes.
    ///
    /// # Errors
    /// As [`Directory::admit_whole`].
    pub fn admit_whole(
        &self,
        db: i32,
        key: &[u8],
        record: &Record,
        replaced: usize,
    ) -> Result<(), Refusal> {
        let now = flags(std::ptr::null_mut());
        let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
        // What a master or the AOF says has been admitted once.
        let obeys = now & raw::REDISMODULE_CTX_FLAGS_MASTER == 0 || now & loading != 0;
        if obeys || self.shares.is_idle() {
            return Ok(());
        }
        self.shares
            .admit_whole(key, record, replaced, &ledger::Here)?;
        if self.shares.elsewhere(key, record).is_some() {
            newcomers::note(db, key);
        }
        Ok(())
    }

    /// The stamp that the next commit gets.
    pub fn next_stamp(&mut self, now_us: u64) -> Stamp {
        self.clock.peek(now_us, steady_us)
    }

    /// Takes a number that no version has: what is restored later is not older than any version that was given here
    /// because of it.
    pub fn took(&mut self, stamp: Stamp, now_us: u64) {
        self.clock.made(stamp, now_us, steady_us);
    }

    /// Takes note of a commit's stamp; `offered` is what [`next_stamp`](Node::next_stamp) gave for it.
    pub fn committed(&mut self, stamp: Stamp, offered: Stamp, now_us: u64) {
        lineage::raise(stamp);
        if stamp == offered {
            self.clock.made(stamp, now_us, steady_us);
        } else {
            // Over a version from too far ahead.
            self.observe(stamp, now_us);
        }
    }

    /// Takes note of a stamp that a master, the AOF or a data set brought.
    pub fn obeyed(&mut self, stamp: Stamp, now_us: u64) {
        lineage::raise(stamp);
        self.observe(stamp, now_us);
    }

    /// Takes note of a stamp loaded or replicated. One too far ahead is counted and said once.
    pub fn observe(&mut self, stamp: Stamp, now_us: u64) {
        let drift = self.limits.drift_us;
        if self.clock.observe(stamp, now_us, drift, steady_us) {
            return;
        }
        METRICS.stamps_ahead.one();
        if !self.warned_ahead {
            self.warned_ahead = true;
            log::warning(&format!(
                "a version with stamp {stamp} came in, {} seconds ahead of this node's wall clock and beyond maos.clock-max-drift-ms: it is kept as it is and does not move the clock. Check the clocks of the nodes. Later ones are counted in INFO maos, maos_stamps_ahead",
                (stamp.0 - now_us) / 1_000_000
            ));
        }
    }
}
