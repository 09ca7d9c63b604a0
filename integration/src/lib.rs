//! An async client for the maos state store.
//!
//! Every write makes a new *version*: a number that is the instant of the write in microseconds, and
//! strictly increasing, so no version is ever given twice. Agents that change the same state name
//! the version they have seen; of all who name the same one, exactly one wins, and the others learn
//! at once what it wrote.
//!
//! ```no_run
//! use std::time::{Duration, SystemTime};
//! use maos_client::{Client, Config, HistoryOptions, Outcome, Past, SetOptions, StateKey};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Task {
//!     title: String,
//!     owner: Option<String>,
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), maos_client::Error> {
//!     // Addresses, user, password, TLS and timeouts from REDIS_STATE_URLS and its companions.
//!     let client = Client::connect(Config::from_env()?).await?;
//!     let key = StateKey::new("shop", "task", "ship v1.4");
//!
//!     // Write, saying who and for how long.
//!     let task = Task { title: "Ship v1.4".into(), owner: None };
//!     let planner = SetOptions::new().by("planner").ttl(Duration::from_secs(86_400));
//!     let first = client.set_json(&key, &task, planner).await?;
//!
//!     // Claim it, if nobody was faster. Losing a race is an outcome, not an error.
//!     let mine = serde_json::json!({"title": "Ship v1.4", "owner": "builder-7"}).to_string();
//!     match client.cas(&key, first, mine, SetOptions::new().by("builder-7")).await? {
//!         Outcome::Applied(version) => println!("mine, at {version}"),
//!         Outcome::Lost(now) => println!("{:?} was faster", now.agent),
//!     }
//!
//!     // Or say what shall change, and let the client do it again for as long as others come between.
//!     client
//!         .update(&key, |task: Option<Task>| {
//!             let mut task = task.expect("written above");
//!             task.owner = Some("reviewer-2".into());
//!             task
//!         })
//!         .await?;
//!
//!     // Look back, and go back.
//!     for revision in client.history(&key, HistoryOptions::new().newest_first()).await? {
//!         println!("{} by {:?}", revision.version, revision.agent);
//!     }
//!     let before = client.get_past(&key, Past::back(1)).await?;
//!     println!("before that: {:?}", before.and_then(|b| b.text().map(str::to_owned)));
//!     let minute_ago = SystemTime::now() - Duration::from_secs(60);
//!     client.rollback(&key, minute_ago, SetOptions::new().by("operator")).await?;
//!     Ok(())
//! }
//! ```
//!
//! | module's command | method |
//! | --- | --- |
//! | `MAOS.SET` | [`set`](Client::set), [`set_json`](Client::set_json) |
//! | `MAOS.CAS` | [`cas`](Client::cas), [`update`](Client::update) |
//! | `MAOS.GET` | [`get`](Client::get), [`get_json`](Client::get_json), [`get_past`](Client::get_past) |
//! | `MAOS.DEL` | [`del`](Client::del) |
//! | `MAOS.MSET`, `MAOS.MCAS`, `MAOS.MGET` | [`mset`](Client::mset), [`mcas`](Client::mcas), [`mget`](Client::mget) |
//! | `MAOS.HISTORY`, `MAOS.DIFF`, `MAOS.ROLLBACK` | [`history`](Client::history), [`diff`](Client::diff), [`rollback`](Client::rollback) |
//! | `MAOS.PATCH`, `MAOS.INCRBY` | [`patch`](Client::patch), [`json_patch`](Client::json_patch), [`increment`](Client::increment) |
//! | `MAOS.MERGE` | [`merge`](Client::merge), [`merge_or`](Client::merge_or) |
//! | `MAOS.TXN` | [`transact`](Client::transact) |
//! | `MAOS.LOCK`, `MAOS.MLOCK` | [`lock_guard`](Client::lock_guard), [`with_lock`](Client::with_lock), [`lock_many`](Client::lock_many), [`lock`](Client::lock), [`mlock`](Client::mlock) |
//! | `MAOS.RENEW`, `MAOS.UNLOCK`, `MAOS.LOCKS` | [`renew`](Client::renew), [`unlock`](Client::unlock), [`locks`](Client::locks) |
//! | `MAOS.PARTITION CREATE`, `ALTER`, `DROP`, `INFO` | [`partition`](Client::partition), [`allocate_memory_partition`](Client::allocate_memory_partition) |
//! | `MAOS.PARTITION LIST`, `POOL` | [`partitions`](Client::partitions), [`pool`](Client::pool) |
//! | `MAOS.WATCH`, on all masters | [`watch`](Client::watch), [`watch_from`](Client::watch_from), [`watch_from_snapshot`](Client::watch_from_snapshot) |
//! | `MAOS.WATCH`, at one server | [`changes`](Client::changes) |
//! | `MAOS.RANGE`, on all masters | [`list`](Client::list) |
//! | `MAOS.BACKUP CREATE`, `RESTORE` | [`create_backup`](Client::create_backup), [`restore_backup`](Client::restore_backup), and [`wait_for_backup`](Client::wait_for_backup) |
//! | `MAOS.BACKUP LIST`, `VERIFY`, `STATUS` | [`backups`](Client::backups), [`verify_backup`](Client::verify_backup), [`backup_job`](Client::backup_job) |
//! | `MAOS.BACKUP CANCEL`, `DELETE` | [`cancel_backup`](Client::cancel_backup), [`delete_backup`](Client::delete_backup) |
//! | those of backups, on each master of a cluster | [`masters`](Client::masters) |
//! | `MAOS.ROLLBACKTO` | [`rollback_to`](Client::rollback_to) |
//! | any of them, word for word | [`call`](Client::call) with a request of [`wire`] |
//!
//! What happens when a connection is lost stands at [`Client`]; how to set it up at [`Config`].
//! The crate logs with `tracing`. Its feature `tool`, which is on by default, is what the command-line tool needs; a program
//! that only talks to the store takes the crate without it.
#![forbid(unsafe_code)]

mod backup;
mod client;
mod config;
mod error;
mod guard;
mod key;
mod link;
mod list;
mod lock;
mod merge;
mod options;
mod order;
mod partition;
mod patch;
mod rollback;
mod stream;
mod topology;
mod transaction;
mod turns;
mod update;
mod value;
mod watch;

pub use backup::{
    BackupFile, BackupInfo, BackupJob, BackupJobKind, BackupJobState, BackupOptions, RestoreCounts,
    RestoreOptions, RollbackCounts, VerifiedBackup,
};
pub use client::{Client, Command, Master, Scan};
pub use config::{Config, Protocol, Tls, DEFAULT_URL};
pub use error::{Applied, Error};
pub use guard::{LockGuard, LockStatus};
pub use key::{BadKey, StateKey};
pub use list::{KeyState, ListedKey, Listing};
pub use lock::{Grant, LockHolder, LockMode, LockOptions, LockState, LockWaiter};
#[doc(inline)]
pub use maos_core::wire::backup::BackupId;
pub use maos_core::{Code, Refusal};
pub use merge::{Conflict, How, MergeOptions, Merged, Strategy};
pub use options::{Always, HistoryOptions, IfVersion, ManyOptions, Mode, Past, SetOptions, Which};
pub use partition::{
    OnFull, Partition, PartitionAudit, PartitionInfo, PartitionOptions, PartitionType, Pool,
};
pub use patch::{IncrementOptions, Incremented};
pub use rollback::RollbackToOptions;
pub use stream::{Checkpoint, Gap, GapCause, Subscription, WatchItem};
pub use transaction::{Operation, OperationReply, Transacted, Transaction};
pub use update::{Next, UpdateOptions, Updated};
/// The requests and replies of the command language.
pub mod wire {
    pub use crate::backup::DoneReply;
    pub use maos_core::wire::backup::{
        BackupCancel, BackupCreate, BackupDelete, BackupFileReply, BackupHelp, BackupList,
        BackupReply, BackupRestore, BackupStatus, BackupVerify, BackupsReply, BegunReply, JobKind,
        JobState, RestoreCounts, RollbackCounts, StatusReply, VerifiedReply,
    };
    pub use maos_core::wire::lock::*;
    pub use maos_core::wire::partition::{
        AuditReply, Class, DefinedReply, DroppedReply, HelpReply, OnFull, PartitionAlter,
        PartitionCreate, PartitionDrop, PartitionHelp, PartitionInfo, PartitionList, PartitionPool,
        PartitionReply, PartitionsReply, PoolReply, Terms,
    };
    pub use maos_core::wire::range::{Listed, ListedFull, Range, RangeReply};
    pub use maos_core::wire::rollback::RollbackTo;
    pub use maos_core::wire::state::*;
    pub use maos_core::wire::txn::{
        Action, Condition, Operation, Outcome as OperationOutcome, Test, Txn, TxnReply,
    };
    pub use maos_core::wire::update::*;
    pub use maos_core::wire::watch::{EventReply, Gap, Kept, Mark, Watch, WatchReply};
}
pub use value::{time_of, Current, ManyOutcome, Outcome, Revision, StateValue, Version};
pub use watch::{Changes, Cursor, Event, KeyEvent, WatchOptions};
