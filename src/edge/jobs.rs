//! Jobs that go on while others are answered (a backup, a restore, a roll-back): how they stand, and what came of the last
//! of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use maos_core::wire::backup::{BackupId, JobKind, JobState, StatusReply};
use maos_core::Stamp;

use super::log;

/// So many jobs of a kind are remembered.
const JOBS_MAX: usize = 64;

/// One that was asked for, and what is told of it beside.
pub struct Job<T> {
    /// Which.
    pub id: BackupId,
    /// What is told of this kind of job.
    pub of: T,
    kind: JobKind,
    state: JobState,
    began: Instant,
    took: Option<Duration>,
    error: Option<String>,
}

/// How one ends.
pub enum End {
    /// It was done.
    Done,
    /// It could not be done, for this reason.
    Failed(String),
    /// Somebody has ended it.
    Cancelled,
}

impl From<Result<(), String>> for End {
    fn from(how: Result<(), String>) -> End {
        how.map_or_else(End::Failed, |()| End::Done)
    }
}

/// The last of a kind, oldest first.
pub struct Jobs<T>(VecDeque<Job<T>>);

impl<T> Default for Jobs<T> {
    fn default() -> Self {
        Jobs(VecDeque::new())
    }
}

impl<T> Jobs<T> {
    /// One more has begun.
    pub fn begin(&mut self, kind: JobKind, id: BackupId, of: T) {
        while self.0.len() >= JOBS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Job {
            id,
            of,
            kind,
            state: JobState::Running,
            began: Instant::now(),
            took: None,
            error: None,
        });
    }

    /// The one with this id, if it is remembered.
    pub fn get(&self, id: BackupId) -> Option<&Job<T>> {
        self.0.iter().find(|job| job.id == id)
    }

    /// The one with this id, if it is remembered.
    pub fn get_mut(&mut self, id: BackupId) -> Option<&mut Job<T>> {
        self.0.iter_mut().find(|job| job.id == id)
    }

    /// The one with this id has ended. False, and nothing is done, if it had before.
    pub fn end(&mut self, id: BackupId, how: End) -> bool {
        let running = self.get_mut(id).filter(|job| job.is_running());
        let Some(job) = running else { return false };
        job.took = Some(job.began.elapsed());
        job.state = match how {
            End::Done => JobState::Done,
            End::Cancelled => JobState::Cancelled,
            End::Failed(why) => {
                job.error = Some(why);
                JobState::Failed
            }
        };
        true
    }
}

impl<T> Job<T> {
    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// Has the log say that it failed, if it has.
    pub fn log_failure(&self) {
        let what = match self.kind {
            JobKind::Create => "backup",
            JobKind::Restore => "restore",
            JobKind::Rollback => "roll-back",
        };
        if let Some(why) = &self.error {
            log::warning(&format!("the {what} {} has failed: {why}", self.id));
        }
    }

    /// What is told of any job. The rest is up to the kind.
    pub fn status(&self, name: &[u8], instant: Stamp) -> StatusReply<'static> {
        let took = self.took.unwrap_or_else(|| self.began.elapsed());
        let error = self.error.as_ref();
        StatusReply {
            id: self.id,
            name: name.to_vec().into(),
            kind: self.kind,
            state: self.state,
            keys: 0,
            bytes: 0,
            instant,
            millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error: error.map(|why| why.clone().into_bytes().into()),
            left_out: 0,
            restore: None,
            rollback: None,
        }
    }
}
