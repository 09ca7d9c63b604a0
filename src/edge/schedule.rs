//! Backups that the node makes by itself. What is next, and which ones go, is decided in the core from what lies in the
//! directory; here it is done, step by step from the tick of the node:
//!
//! ```text
//!   waits -> reads the directory -> makes -> verifies -> removes -> waits
//! ```
//!
//! Whatever reads or writes files runs in a thread, and the tick asks whether it is done. Old backups are removed only after
//! a newer one has been found good, newest first, so that nothing is ever there without its links; and not where a
//! backup began meanwhile, which may go on from one of them, or where the directory could not be read as a whole. That a
//! node which shares the directory begins one in that moment which goes on from a backup of this node is not seen.

use std::cell::RefCell;
use std::ptr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use maos_core::config::Schedule;
use maos_core::schedule::{cause, plan, Plan, NAME};
use maos_core::wire::backup::{BackupCreate, BackupId, JobState};
use maos_core::{Code, Refusal, Stamp};

use super::api::raw;
use super::backup::{self, Prepared};
use super::call::flags;
use super::chain::Chain;
use super::guard::FAULT;
use super::node::{node, now_us};
use super::vault::{self, Vault};
use super::{config, failpoint, guard, log};

/// One that failed is tried again no later than after this.
const RETRY: Duration = Duration::from_secs(60);
/// So many bytes of an error are shown in INFO.
const ERROR_MAX: usize = 300;

/// What a thread needs to know.
struct Desk {
    vault: Vault,
    key_file: String,
    may_be_plain: bool,
    node: Vec<u8>,
    schedule: Schedule,
    now: Stamp,
}

/// What is to be done, and whether all that there is was seen: why not.
type Seen = (Plan, Result<(), String>);

/// The directory was read.
struct Ready {
    plan: Plan,
    /// The next one, if it is due, and whether it is full.
    next: Option<(Prepared, bool)>,
}

/// A backup was verified, and the directory was read after it was made.
struct Verdict {
    good: Result<(), String>,
    seen: Result<Seen, String>,
}

/// What goes on.
#[derive(Default)]
enum State {
    /// None is to be made here.
    #[default]
    Off,
    /// Until the next one is due.
    Waits(Instant),
    /// A thread reads the directory; and makes ready what is due.
    Reads {
        from: Receiver<Result<Ready, Refusal>>,
        since: Instant,
    },
    /// It is being made.
    Makes { id: BackupId, full: bool },
    /// A thread reads it.
    Verifies {
        from: Receiver<Verdict>,
        since: Instant,
        id: BackupId,
        begun: u64,
    },
    /// A thread removes these.
    Removes {
        from: Receiver<Result<(), String>>,
        ids: Vec<BackupId>,
        until: Instant,
    },
}

#[derive(Default)]
struct Scheduler {
    state: State,
    /// The settings that it goes by.
    schedule: Schedule,
    /// The next one is full, whatever there is to go on from.
    full: bool,
    /// What was said last of one that failed, and of what could not be removed: it is not said twice in a row.
    said: [Option<String>; 2],
    numbers: Numbers,
}

/// What INFO says of scheduled backups.
#[derive(Clone, Default)]
pub struct Numbers {
    /// Made since the start.
    pub made: u64,
    /// That could not be begun, or failed, since the start.
    pub failed: u64,
    /// Found good after they were made.
    pub verified: u64,
    /// Found damaged then.
    pub verify_failed: u64,
    /// What went wrong last, in printable ASCII; empty once one has been made and found good.
    pub last_error: String,
    /// Seconds until the next one; 0 while one is made, verified or due, -1 where none is to be made.
    pub next_in_s: i64,
}

struct MainThread(RefCell<Option<Scheduler>>);

// SAFETY: commands and timers come on the main thread only.
unsafe impl Sync for MainThread {}

static SCHEDULER: MainThread = MainThread(RefCell::new(None));

fn with<T>(then: impl FnOnce(&mut Scheduler) -> T) -> T {
    then(SCHEDULER.0.borrow_mut().get_or_insert_default())
}

/// What INFO says of scheduled backups.
pub fn numbers() -> Numbers {
    with(|s| Numbers {
        next_in_s: match &s.state {
            State::Off => -1,
            State::Waits(until) => {
                let left = until.saturating_duration_since(Instant::now());
                i64::try_from(left.as_micros().div_ceil(1_000_000)).unwrap_or(i64::MAX)
            }
            _ => 0,
        },
        ..s.numbers.clone()
    })
}

/// Whether a backup is being removed: nothing may go on from it any more.
pub fn is_removing(id: BackupId) -> bool {
    with(|s| matches!(&s.state, State::Removes { ids, .. } if ids.contains(&id)))
}

/// Goes a step on, where there is one to go. Called again and again.
pub fn tick() {
    // A fault of this is not to keep the other work of the tick from being done.
    guard::run(|| {
        failpoint::hit("schedule");
        let limits = {
            let node = node();
            (node.limits.schedule, node.limits.backup_plain)
        };
        with(|s| {
            // If this panics it begins anew, with a look at the directory.
            let state = std::mem::take(&mut s.state);
            s.state = s.step(state, limits.0, limits.1);
        });
    });
}

/// Whether this node makes any as things stand.
fn is_wanted(schedule: &Schedule) -> bool {
    let is_master = || flags(ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0;
    schedule.every_us > 0 && (schedule.on_replicas || is_master()) && !backup::is_loading()
}

/// What a thread has found; `Err` if it is gone, `None` if it is not done.
fn heard<T>(from: &Receiver<T>) -> Option<Result<T, String>> {
    match from.try_recv() {
        Ok(found) => Some(Ok(found)),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Disconnected) => Some(Err(FAULT.into())),
    }
}

/// Has this done in a thread.
fn errand<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Receiver<T>, String> {
    let (to, from) = mpsc::channel();
    let work = move || {
        if let Some(found) = guard::run_in_thread(work) {
            // Where nobody takes it nobody wants it any more.
            let _ = to.send(found);
        }
    };
    let thread = std::thread::Builder::new().name("maos-schedule".into());
    let begun = thread.spawn(work);
    begun.map_err(|e| format!("no thread for it: {e}"))?;
    Ok(from)
}

impl Scheduler {
    fn step(&mut self, state: State, schedule: Schedule, may_be_plain: bool) -> State {
        let wanted = is_wanted(&schedule);
        match state {
            State::Off | State::Waits(_) if !wanted => State::Off,
            State::Off => self.read(schedule, may_be_plain, false),
            State::Waits(_) if schedule != self.schedule => {
                self.read(schedule, may_be_plain, false)
            }
            State::Waits(until) if Instant::now() < until => State::Waits(until),
            State::Waits(_) => match backup::may_begin() {
                Ok(()) => self.read(schedule, may_be_plain, true),
                Err(refusal) => self.failed(&refusal.text),
            },
            State::Reads { from, since } => match heard(&from) {
                None => State::Reads { from, since },
                Some(Ok(Ok(ready))) => self.begin(ready, since, wanted),
                Some(Ok(Err(refusal))) => self.failed(&refusal.text),
                Some(Err(why)) => self.failed(&why),
            },
            State::Makes { id, full } => self.look(id, full, may_be_plain),
            State::Verifies {
                from,
                since,
                id,
                begun,
            } => match heard(&from) {
                None => State::Verifies {
                    from,
                    since,
                    id,
                    begun,
                },
                Some(Ok(verdict)) => self.verified(id, verdict, since, begun, may_be_plain),
                Some(Err(why)) => {
                    let verdict = Verdict {
                        good: Err(why.clone()),
                        seen: Err(why),
                    };
                    self.verified(id, verdict, since, begun, may_be_plain)
                }
            },
            State::Removes { from, ids, until } => match heard(&from) {
                None => State::Removes { from, ids, until },
                Some(Ok(Ok(()))) => {
                    log::notice(&format!(
                        "{} scheduled backups that are kept no longer were removed",
                        ids.len()
                    ));
                    State::Waits(until)
                }
                Some(Ok(Err(why)) | Err(why)) => {
                    self.not_removed(&why);
                    State::Waits(until)
                }
            },
        }
    }

    fn desk(&self, may_be_plain: bool) -> Result<Desk, Refusal> {
        Ok(Desk {
            vault: backup::vault()?,
            key_file: config::text(config::BACKUP_KEY_FILE),
            may_be_plain,
            node: backup::node_id(),
            schedule: self.schedule,
            now: node().next_stamp(now_us()),
        })
    }

    /// Has the directory read, and what is due made ready.
    fn read(&mut self, schedule: Schedule, may_be_plain: bool, due: bool) -> State {
        self.schedule = schedule;
        let (since, full) = (Instant::now(), self.full);
        let begun = self.desk(may_be_plain).and_then(|desk| {
            let from = errand(move || desk.read(due, full));
            from.map_err(|why| Refusal::new(Code::Err, why))
        });
        match begun {
            Ok(from) => State::Reads { from, since },
            Err(refusal) => self.failed(&refusal.text),
        }
    }

    /// The directory was read: begins what is due.
    fn begin(&mut self, ready: Ready, since: Instant, wanted: bool) -> State {
        let Some((prepared, full)) = ready.next else {
            return State::Waits(since + Duration::from_micros(ready.plan.wait_us));
        };
        if !wanted {
            return State::Off;
        }
        let request = BackupCreate {
            name: NAME.as_bytes(),
            prefixes: vec![],
            since: None,
            native: false,
        };
        match backup::start(&request, prepared, false) {
            Ok(id) => State::Makes { id, full },
            Err(refusal) => self.failed(&refusal.text),
        }
    }

    /// Whether it is made.
    fn look(&mut self, id: BackupId, full: bool, may_be_plain: bool) -> State {
        let Some(status) = backup::status(id) else {
            return self.failed("it is not known any more what came of it");
        };
        match status.state {
            JobState::Running => State::Makes { id, full },
            // Somebody did not want it. The next one comes in its time.
            JobState::Cancelled => {
                State::Waits(Instant::now() + Duration::from_micros(self.schedule.every_us))
            }
            JobState::Failed => {
                // It may have been for what it was to go on from.
                self.full |= !full;
                let why = status.error.unwrap_or_default();
                self.failed(&String::from_utf8_lossy(&why))
            }
            JobState::Done => {
                self.numbers.made += 1;
                self.full &= !full;
                let (since, begun) = (Instant::now(), backup::begun());
                let desk = self.desk(may_be_plain);
                let from = desk
                    .map_err(|refusal| refusal.text.into_owned())
                    .and_then(|desk| errand(move || desk.verify(id)));
                match from {
                    Ok(from) => State::Verifies {
                        from,
                        since,
                        id,
                        begun,
                    },
                    Err(why) => {
                        let verdict = Verdict {
                            good: Err(why.clone()),
                            seen: Err(why),
                        };
                        self.verified(id, verdict, since, begun, may_be_plain)
                    }
                }
            }
        }
    }

    /// It was verified: has what is kept no longer removed.
    fn verified(
        &mut self,
        id: BackupId,
        verdict: Verdict,
        since: Instant,
        begun: u64,
        may_be_plain: bool,
    ) -> State {
        let (wait_us, surplus, whole) = match verdict.seen {
            Ok((plan, whole)) => (plan.wait_us, plan.surplus, whole),
            Err(why) => (self.schedule.every_us, vec![], Err(why)),
        };
        let until = since + Duration::from_micros(wait_us);
        if let Err(why) = verdict.good {
            self.numbers.verify_failed += 1;
            self.full = true;
            let why = format!("the scheduled backup {id} was made, and is not good: {why}");
            log::warning(&format!(
                "{why}. The next one is full; none is removed until one is good"
            ));
            self.numbers.last_error = shown(&why);
            return State::Waits(until);
        }
        self.numbers.verified += 1;
        self.numbers.last_error.clear();
        self.said[0] = None;
        if let Err(why) = whole {
            self.not_removed(&why);
            return State::Waits(until);
        }
        self.said[1] = None;
        // One that began meanwhile may go on from one of them.
        if surplus.is_empty() || backup::begun() != begun {
            return State::Waits(until);
        }
        let ids = surplus.clone();
        let desk = self.desk(may_be_plain);
        let from = desk
            .map_err(|refusal| refusal.text.into_owned())
            .and_then(|desk| errand(move || desk.remove(&surplus)));
        match from {
            Ok(from) => State::Removes { from, ids, until },
            Err(why) => {
                self.not_removed(&why);
                State::Waits(until)
            }
        }
    }

    /// One could not be made: counts it, says it once, and waits for a while.
    fn failed(&mut self, why: &str) -> State {
        self.numbers.failed += 1;
        self.say(0, &format!("a scheduled backup was not made: {why}"));
        let every = Duration::from_micros(self.schedule.every_us);
        State::Waits(Instant::now() + every.min(RETRY))
    }

    fn not_removed(&mut self, why: &str) {
        self.say(1, &format!("no scheduled backups are removed: {why}"));
    }

    /// Tells what is wrong, and the log only if it is something else than the last time.
    fn say(&mut self, of: usize, why: &str) {
        let cause = cause(why);
        if self.said[of].as_ref() != Some(&cause) {
            log::warning(why);
            self.said[of] = Some(cause);
        }
        self.numbers.last_error = shown(why);
    }
}

/// As INFO can show it.
fn shown(why: &str) -> String {
    let bytes = why.as_bytes();
    bytes[..bytes.len().min(ERROR_MAX)]
        .escape_ascii()
        .to_string()
}

impl Desk {
    fn see(&self) -> Result<Seen, String> {
        let (all, whole) = self.vault.survey()?;
        Ok((plan(self.now, &self.schedule, &self.node, &all), whole))
    }

    /// Reads the directory, and makes the next one ready if it is due.
    fn read(self, due: bool, full: bool) -> Result<Ready, Refusal> {
        let fault = |why: String| Refusal::new(Code::Err, why);
        let (plan, _) = self.see().map_err(fault)?;
        if !due {
            return Ok(Ready { plan, next: None });
        }
        let keys = || vault::keys(&self.key_file).map_err(fault);
        let mut parent = None;
        if let Some(since) = plan.since.filter(|_| !full) {
            match Chain::open(&self.vault, since, keys()?, self.may_be_plain) {
                Ok(chain) => parent = Some(chain),
                Err(refusal) => log::warning(&format!(
                    "the next scheduled backup is full: the last one, {since}, cannot be gone on from: {}",
                    refusal.text
                )),
            }
        }
        let (ring, is_full) = (keys()?, parent.is_none());
        let prepared = Prepared::new(NAME, self.vault, ring, self.may_be_plain, parent)?;
        let next = Some((prepared, is_full));
        Ok(Ready { plan, next })
    }

    /// Reads a backup and all that it goes on from to the last byte; and the directory.
    fn verify(self, id: BackupId) -> Verdict {
        let verify = || {
            let ring = vault::keys(&self.key_file)?;
            let chain = Chain::open(&self.vault, id, ring, self.may_be_plain);
            chain.map_err(|refusal| refusal.text.into_owned())?.verify()
        };
        Verdict {
            good: verify().map(drop),
            seen: self.see(),
        }
    }

    /// Removes these, one after the other, and no more where one could not be: its links stay with it.
    fn remove(self, ids: &[BackupId]) -> Result<(), String> {
        let mut each = ids.iter();
        each.try_for_each(|id| self.vault.remove_named(NAME, *id))
    }
}
