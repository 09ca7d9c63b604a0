//! Backups: begun, followed, looked at and brought back.

use std::ops::AddAssign;
use std::time::Duration;

use maos_core::wire::reply::{BadShape, Decoded, Sink, Value};
use maos_core::wire::Reply;
use tokio::time::sleep;

use crate::error::shown;
use crate::{wire, BackupId, Client, Error, Version};

/// What is to be in a backup: all state, unless it is said.
#[derive(Clone, Default, Debug)]
pub struct BackupOptions {
    prefixes: Vec<Vec<u8>>,
    since: Option<BackupId>,
    native: bool,
}

impl BackupOptions {
    /// All state.
    pub fn new() -> BackupOptions {
        BackupOptions::default()
    }

    /// Only keys that begin with this, or with another such prefix. 1 to 512 bytes; may be said of 1024.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> BackupOptions {
        self.prefixes.push(prefix.as_ref().to_vec());
        self
    }

    /// Only what has changed since this backup of the same node and the same prefixes, deletions included. It is restored
    /// together with that, and with those that that one goes on from.
    pub fn since(mut self, id: BackupId) -> BackupOptions {
        self.since = Some(id);
        self
    }

    /// Strings, lists, sets, hashes and sorted sets as well. They have no versions: each is as it was when the walk over the
    /// keys came by, not as of the instant.
    pub fn native(mut self) -> BackupOptions {
        self.native = true;
        self
    }
}

/// What of a backup is to come back, and where to: all of it, each key under its own name, if there is no such key.
///
/// ```
/// use maos_client::RestoreOptions;
///
/// // What the plans looked like, beside those of today.
/// let beside = RestoreOptions::new().prefix("app:plan:").into("old:plan:");
/// ```
#[derive(Clone, Default, Debug)]
pub struct RestoreOptions {
    prefixes: Vec<Vec<u8>>,
    into: Option<Vec<u8>>,
    dry_run: bool,
    replace: bool,
}

impl RestoreOptions {
    /// All keys, under their names; those that are there stay as they are.
    pub fn new() -> RestoreOptions {
        RestoreOptions::default()
    }

    /// Only keys that begin with this, or with another such prefix. 1 to 512 bytes; may be said of 1024.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> RestoreOptions {
        self.prefixes.push(prefix.as_ref().to_vec());
        self
    }

    /// The keys get this in the place of their prefix, of which there may be one; without one, in front of their names. 1 to
    /// 512 bytes.
    pub fn into(mut self, prefix: impl AsRef<[u8]>) -> RestoreOptions {
        self.into = Some(prefix.as_ref().to_vec());
        self
    }

    /// Nothing is changed; the job says what would be.
    pub fn dry_run(mut self) -> RestoreOptions {
        self.dry_run = true;
        self
    }

    /// Keys that are there are replaced, unless they are locked.
    pub fn replace(mut self) -> RestoreOptions {
        self.replace = true;
        self
    }
}

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BackupJobKind {
    /// It makes a backup.
    Create,
    /// It brings back what a backup holds.
    Restore,
    /// It brings the keys of a prefix back to an instant: see [`rollback_to`](crate::Client::rollback_to).
    Rollback,
}

impl BackupJobKind {
    /// The word for it: `create`, `restore` or `rollback`.
    pub fn word(self) -> &'static str {
        match self {
            BackupJobKind::Create => "create",
            BackupJobKind::Restore => "restore",
            BackupJobKind::Rollback => "rollback",
        }
    }
}

/// How a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BackupJobState {
    /// It goes on.
    Running,
    /// All that was asked for is done.
    Done,
    /// It could not be done; [`error`](BackupJob::error) says why.
    Failed,
    /// Somebody has ended it.
    Cancelled,
}

impl BackupJobState {
    /// The word for it: `running`, `done`, `failed` or `cancelled`.
    pub fn word(self) -> &'static str {
        match self {
            BackupJobState::Running => "running",
            BackupJobState::Done => "done",
            BackupJobState::Failed => "failed",
            BackupJobState::Cancelled => "cancelled",
        }
    }
}

/// How far a backup or a restore has come, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BackupJob {
    /// Which job.
    pub id: BackupId,
    /// The name of the backup.
    pub name: String,
    /// What it does.
    pub kind: BackupJobKind,
    /// How it stands.
    pub state: BackupJobState,
    /// How many keys it has written, or brought back.
    pub keys: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// Of when the backup is: it holds what was written until then, and nothing that was written later. [`Version::NONE`] as
    /// long as one that goes on from another one reads that.
    pub instant: Version,
    /// How long it took, or has taken so far, in whole milliseconds.
    pub took: Duration,
    /// Why it failed.
    pub error: Option<String>,
    /// How many keys of other types it was to hold and cannot: streams, those of other modules, those with too many elements.
    pub left_out: u64,
    /// What became of the keys that it has not brought back; `None` of a job that makes a backup.
    pub restore: Option<RestoreCounts>,
    /// What became of the keys of a roll-back; `None` of any other job.
    pub rollback: Option<RollbackCounts>,
}

/// What becomes of the keys of a [roll-back](crate::Client::rollback_to).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RollbackCounts {
    /// Those of the keys rolled back that had no value then, and so were deleted.
    pub deleted: u64,
    /// Keys that hold what they held then.
    pub same: u64,
    /// Keys that were made after it was begun, and stay.
    pub newer: u64,
    /// Keys of slots that another node has.
    pub elsewhere: u64,
    /// Keys that could not be rolled back.
    pub refused: u64,
    /// Why the first of these could not.
    pub reason: Option<String>,
    /// Keys whose history no longer reaches back to then; they stay as they are.
    pub beyond: u64,
    /// The first of their names.
    pub beyond_keys: Vec<Vec<u8>>,
}

/// What becomes of the keys of a restore, besides those that are brought back.
///
/// Those of several nodes are added up with `+=`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RestoreCounts {
    /// Keys that were there and stayed as they were.
    pub kept: u64,
    /// Keys that held the same already.
    pub same: u64,
    /// Keys whose time was over.
    pub expired: u64,
    /// Keys of slots that another node has.
    pub elsewhere: u64,
    /// Keys that could not be brought back.
    pub refused: u64,
    /// Why the first of these could not.
    pub reason: Option<String>,
    /// Keys that there are to look at; 0 as long as that is not known.
    pub total: u64,
}

impl AddAssign<&RestoreCounts> for RestoreCounts {
    fn add_assign(&mut self, other: &RestoreCounts) {
        for (sum, more) in [
            (&mut self.kept, other.kept),
            (&mut self.same, other.same),
            (&mut self.expired, other.expired),
            (&mut self.elsewhere, other.elsewhere),
            (&mut self.refused, other.refused),
            (&mut self.total, other.total),
        ] {
            *sum = sum.saturating_add(more);
        }
        if self.reason.is_none() {
            self.reason.clone_from(&other.reason);
        }
    }
}

impl RestoreCounts {
    /// How many keys have been looked at and not brought back.
    pub fn passed_over(&self) -> u64 {
        let all = [
            self.kept,
            self.same,
            self.expired,
            self.elsewhere,
            self.refused,
        ];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// What the beginning of a backup says.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BackupInfo {
    /// Which one.
    pub id: BackupId,
    /// How it is called.
    pub name: String,
    /// Of when it is: it holds what was written until then, and nothing that was written later.
    pub instant: Version,
    /// The node that made it: its id in the cluster; without one, the name of its machine.
    pub made_on: String,
    /// The id of the key that opens it; `None`: it is not encrypted, and anybody can read it, and make one.
    pub key: Option<String>,
    /// The backup that it goes on from, and cannot be restored without.
    pub parent: Option<BackupId>,
    /// What its keys begin with; none: it holds all keys.
    pub prefixes: Vec<Vec<u8>>,
}

/// A backup that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BackupFile {
    /// What its beginning says.
    pub info: BackupInfo,
    /// The name of its file, in the server's `maos.backup-dir`.
    pub file: String,
    /// How long the file is, in bytes.
    pub size: u64,
}

/// A backup that was read to its last byte.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct VerifiedBackup {
    /// What its beginning says.
    pub info: BackupInfo,
    /// How many keys are in it.
    pub keys: u64,
    /// How many definitions of partitions.
    pub partitions: u64,
    /// How long it is before compression, in bytes.
    pub bytes: u64,
    /// The newest version in it.
    pub newest: Version,
    /// How many backups it is made of: itself, and those that it goes on from. All of them were read.
    pub links: u64,
    /// What all of it comes to: the same for two backups of the same state, whatever keys they are sealed with. It is written in
    /// 32 hexadecimal digits.
    pub digest: u128,
}

impl BackupJob {
    fn of(reply: wire::StatusReply<'_>) -> BackupJob {
        let counts = |counts: wire::RestoreCounts<'_>| RestoreCounts {
            kept: counts.kept,
            same: counts.same,
            expired: counts.expired,
            elsewhere: counts.elsewhere,
            refused: counts.refused,
            reason: counts.reason.map(|why| shown(&why)),
            total: counts.total,
        };
        BackupJob {
            id: reply.id,
            name: shown(&reply.name),
            kind: match reply.kind {
                wire::JobKind::Create => BackupJobKind::Create,
                wire::JobKind::Restore => BackupJobKind::Restore,
                wire::JobKind::Rollback => BackupJobKind::Rollback,
            },
            state: match reply.state {
                wire::JobState::Running => BackupJobState::Running,
                wire::JobState::Done => BackupJobState::Done,
                wire::JobState::Failed => BackupJobState::Failed,
                wire::JobState::Cancelled => BackupJobState::Cancelled,
            },
            keys: reply.keys,
            bytes: reply.bytes,
            instant: reply.instant,
            took: Duration::from_millis(reply.millis),
            error: reply.error.map(|why| shown(&why)),
            left_out: reply.left_out,
            restore: reply.restore.map(counts),
            rollback: reply.rollback.map(|counts| RollbackCounts {
                deleted: counts.deleted,
                same: counts.same,
                newer: counts.newer,
                elsewhere: counts.elsewhere,
                refused: counts.refused,
                reason: counts.reason.map(|why| shown(&why)),
                beyond: counts.beyond,
                beyond_keys: counts
                    .beyond_keys
                    .into_iter()
                    .map(|k| k.into_owned())
                    .collect(),
            }),
        }
    }

    /// True as long as it goes on.
    pub fn is_running(&self) -> bool {
        self.state == BackupJobState::Running
    }
}

impl BackupInfo {
    fn of(reply: wire::BackupReply<'_>) -> BackupInfo {
        let prefixes = reply.prefixes.into_iter();
        BackupInfo {
            id: reply.id,
            name: shown(&reply.name),
            instant: reply.instant,
            made_on: shown(&reply.made_on),
            key: reply.key.map(|id| shown(&id)),
            parent: reply.parent,
            prefixes: prefixes.map(|p| p.into_owned()).collect(),
        }
    }
}

/// The reply of a command that has nothing more to say than that it is done: 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoneReply;

impl Reply for DoneReply {
    fn emit(&self, to: &mut impl Sink) {
        to.int(1);
    }

    fn decode(value: Value) -> Decoded<Self> {
        match value {
            Value::Int(1) => Ok(DoneReply),
            _ => Err(BadShape("1 was expected")),
        }
    }
}

/// Backups are about one server: its keys, its directory. In a cluster each of these asks a master, whichever answers; to
/// ask all of them, or a certain one, there is [`masters`](Client::masters):
///
/// ```no_run
/// # async fn doc(client: maos_client::Client) -> Result<(), maos_client::Error> {
/// use std::time::Duration;
/// use maos_client::{BackupJobState, BackupOptions, Client, Code, RestoreCounts, RestoreOptions};
///
/// // A backup of each master, one after the other.
/// let mut made = vec![];
/// for master in client.masters().await? {
///     let id = master.client().create_backup("nightly", &BackupOptions::new()).await?;
///     let job = master.client().wait_for_backup(id, Duration::from_millis(200)).await?;
///     assert_eq!(job.state, BackupJobState::Done, "{:?}", job.error);
///     made.push(id);
/// }
///
/// // And back: each master takes of each backup that it finds the keys of its own slots.
/// let mut counts = RestoreCounts::default();
/// for master in client.masters().await? {
///     for id in &made {
///         match master.client().restore_backup(*id, &RestoreOptions::new()).await {
///             Ok(job) => {
///                 let job = master.client().wait_for_backup(job, Duration::from_millis(200)).await?;
///                 counts += &job.restore.unwrap_or_default();
///             }
///             // It lies in the directory of another one.
///             Err(error) if error.code() == Some(Code::NotFound) => {}
///             Err(error) => return Err(error),
///         }
///     }
/// }
/// println!("{} keys were there already", counts.kept);
/// # Ok(())
/// # }
/// ```
impl Client {
    /// Begins a backup of all state of the server as it is at this instant, whatever is written while it is made, and gives
    /// its id. It goes on by itself; [`wait_for_backup`](Client::wait_for_backup) tells when it is done. The name has 1 to 64
    /// of `a-z`, `0-9`, `_` and `-`, and need not be new.
    ///
    /// # Errors
    /// `ERR` for another name, if the server has no directory for backups, or no key and may not do without; `NOTFOUND` or
    /// `BADBACKUP` if there is no backup to [go on from](BackupOptions::since), or it cannot be read; `BUSY` while one is being
    /// made; and as [`call`](Client::call). It is not repeated once it may have reached the server.
    pub async fn create_backup(
        &self,
        name: impl AsRef<str>,
        options: &BackupOptions,
    ) -> Result<BackupId, Error> {
        let request = wire::BackupCreate {
            name: name.as_ref().as_bytes(),
            prefixes: options.prefixes.iter().map(|p| &p[..]).collect(),
            since: options.since,
            native: options.native,
        };
        Ok(self.call(&request).await?.0)
    }

    /// How far a backup or a restore has come. The server remembers the last 64 of each until it is started again; of an older
    /// backup it looks at the file: then the bytes are those of the file, and how many keys it has is not known (0).
    ///
    /// # Errors
    /// `NOTFOUND` if it knows of none, `BADBACKUP` if the file cannot be read; and as [`call`](Client::call).
    pub async fn backup_job(&self, id: BackupId) -> Result<BackupJob, Error> {
        let reply = self.call(&wire::BackupStatus::new(id)).await?;
        Ok(BackupJob::of(reply))
    }

    /// Looks at a job every so often until it has ended, and gives what came of it: done, failed or cancelled. Without end,
    /// if the job has none; to drop the future harms nothing.
    ///
    /// # Errors
    /// As [`backup_job`](Client::backup_job): a server that was started again meanwhile does not know of the job any more.
    pub async fn wait_for_backup(&self, id: BackupId, every: Duration) -> Result<BackupJob, Error> {
        loop {
            let job = self.backup_job(id).await?;
            if !job.is_running() {
                return Ok(job);
            }
            sleep(every).await;
        }
    }

    /// The backups in the directory of the server, the newest first. What is none, or cannot be read, is left out. The call has a
    /// connection of its own.
    ///
    /// # Errors
    /// `ERR` if the server has no directory for backups; and as [`call`](Client::call).
    pub async fn backups(&self) -> Result<Vec<BackupFile>, Error> {
        let request = wire::BackupList::default();
        let reply = self.aside(async |lane| lane.call(&request).await).await?;
        let file = |one: wire::BackupFileReply<'_>| BackupFile {
            info: BackupInfo::of(one.backup),
            file: shown(&one.file),
            size: one.size,
        };
        Ok(reply.0.into_iter().map(file).collect())
    }

    /// Has the server read a backup to its last byte, and those that it goes on from, and tells what is in it. The call waits for
    /// that, with a connection of its own, an hour at most.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such backup, `BADBACKUP` if it is damaged, cut, altered, or sealed with a key that the server does
    /// not know; and as [`call`](Client::call).
    pub async fn verify_backup(&self, id: BackupId) -> Result<VerifiedBackup, Error> {
        let request = wire::BackupVerify::new(id);
        let reply = self.aside(async |lane| lane.call(&request).await).await?;
        Ok(VerifiedBackup {
            info: BackupInfo::of(reply.backup),
            keys: reply.keys,
            partitions: reply.partitions,
            bytes: reply.bytes,
            newest: reply.newest,
            links: reply.links,
            digest: u128::from_be_bytes(reply.digest.0),
        })
    }

    /// Begins to bring back what a backup holds, with histories, authors, metadata, expiries and partitions, and gives the id
    /// of the job. The backup is read to its last byte before a key is touched. In a cluster each node brings back the keys of
    /// its own slots.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such backup, `BADBACKUP` if it is sealed with a key that the server does not know, or not sealed
    /// though the server wants it to be, `BUSY` while another restore goes on, `ERR` for an [`into`](RestoreOptions::into) with
    /// more than one prefix; and as [`call`](Client::call). It is not repeated once it may have reached the server. That a
    /// backup is damaged is told by the job.
    pub async fn restore_backup(
        &self,
        id: BackupId,
        options: &RestoreOptions,
    ) -> Result<BackupId, Error> {
        let request = wire::BackupRestore {
            id,
            prefixes: options.prefixes.iter().map(|p| &p[..]).collect(),
            into: options.into.as_deref(),
            dry_run: options.dry_run,
            replace: options.replace,
        };
        Ok(self.call(&request).await?.0)
    }

    /// Ends a backup or a restore that is running. A backup then leaves no file; what a restore has brought back stays.
    ///
    /// # Errors
    /// `NOTFOUND` if no such job is running; and as [`call`](Client::call). It is not repeated once it may have reached the
    /// server.
    pub async fn cancel_backup(&self, id: BackupId) -> Result<(), Error> {
        self.call(&wire::BackupCancel::new(id)).await.map(drop)
    }

    /// Removes the file of a backup.
    ///
    /// # Errors
    /// `NOTFOUND` if there is no such backup, `BUSY` while it is being made, `ERR` if another one goes on from it; and as [`call`](Client::call). It is not repeated
    /// once it may have reached the server.
    pub async fn delete_backup(&self, id: BackupId) -> Result<(), Error> {
        let request = wire::BackupDelete::new(id);
        let done = self.aside(async |lane| lane.call(&request).await);
        done.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;

    #[test]
    fn what_begins_or_ends_something_is_sent_once() {
        let id = BackupId([7; 16]);
        let create = wire::BackupCreate {
            name: b"a",
            prefixes: vec![],
            since: None,
            native: false,
        };
        let restore = wire::BackupRestore {
            id,
            prefixes: vec![],
            into: None,
            dry_run: false,
            replace: false,
        };
        assert!(!create.is_repeatable() && !restore.is_repeatable());
        assert!(!wire::BackupCancel::new(id).is_repeatable());
        assert!(!wire::BackupDelete::new(id).is_repeatable());
        assert!(wire::BackupStatus::new(id).is_repeatable());
        assert!(wire::BackupVerify::new(id).is_repeatable());
        assert!(wire::BackupList::default().is_repeatable());
        assert!(wire::PartitionList { agent: None }.is_repeatable());
        let write = wire::Unlock {
            key: b"k",
            token: Version(1),
        };
        assert!(!write.is_repeatable());
    }

    #[test]
    fn the_counts_of_several_nodes_are_added_up() {
        let one = RestoreCounts {
            kept: 1,
            same: 2,
            expired: 3,
            elsewhere: 4,
            refused: 5,
            reason: Some("locked".into()),
            total: 20,
        };
        let mut sum = RestoreCounts::default();
        sum += &one;
        let other = RestoreCounts {
            reason: Some("quota".into()),
            total: u64::MAX,
            ..one.clone()
        };
        sum += &other;
        assert_eq!(sum.passed_over(), 2 * one.passed_over());
        assert_eq!((sum.kept, sum.same, sum.expired), (2, 4, 6));
        assert_eq!((sum.elsewhere, sum.refused), (8, 10));
        assert_eq!(
            (sum.reason.as_deref(), sum.total),
            (Some("locked"), u64::MAX)
        );
    }

    #[test]
    fn one_is_the_only_way_to_say_that_it_is_done() {
        assert_eq!(DoneReply::decode(Value::Int(1)), Ok(DoneReply));
        assert!(DoneReply::decode(Value::Int(0)).is_err());
        assert!(DoneReply::decode(Value::Null).is_err());
    }
}
