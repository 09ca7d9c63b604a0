//! The rules of maos, without a server.
//!
//! This crate does no I/O, reads no clock, draws no randomness and holds no global: time, identity
//! and limits are arguments. That is what makes a rule testable in milliseconds, replayable on a
//! replica, and usable as the oracle for a live server.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`wire`] | the command language: one table, requests, replies, the reference |
//! | [`refusal`] | the closed list of reasons to say no |
//! | [`config`] | the table of settings and the limits made from it |
//! | [`ids`] | stamps and writers |
//! | [`clock`] | the hybrid clock that makes stamps |
//! | [`record`] | what lives at a key: the current version and its history |
//! | `version`, `history` | how one version is kept, and how the replaced ones are |
//! | [`state`] | the decisions of the state commands |
//! | [`update`] | the decisions of patches and increments |
//! | [`merge`] | the decision of a merge |
//! | [`txn`] | the decision of a transaction |
//! | [`lock`] | who holds a key, until when, and which writes that lets pass |
//! | [`waits`] | who waits for which lock, in which order, and the cycles that would close |
//! | [`partition`] | shares of a pool of memory: who is charged, and what is refused |
//! | [`change`] | what was decided, and how it is applied |
//! | [`event`] | what those who listen are told of it |
//! | [`watch`] | what a watcher reads of the log |
//! | [`feed`] | the change log: every event in order, and what becomes of a cursor |
//! | [`glob`], [`audience`] | patterns over keys, and who is to hear of one |
//! | [`range`] | what a listing of keys in order shows |
//! | [`rollback`] | what a roll-back of a prefix makes of each key |
//! | [`json`] | bounded checks of JSON and the difference of two documents |
//! | [`digest`] | what a digest sees of a record |
//! | [`codec`] | the only bytes that outlive the process |
//! | [`keyring`] | the keys that backups are sealed with |
//! | [`schedule`] | which backup a node makes next by itself, and which go |
//! | [`model`] | the whole store in memory: the oracle |
//! | [`transcript`] | conversations as data, run against the model and a server |
//! | [`generate`] | random requests, made from the command table |
//!
//! A client needs [`wire`], [`refusal`] and [`ids`] only; the rest is behind the feature `engine`.
#![forbid(unsafe_code)]

#[cfg(feature = "engine")]
pub mod audience;
#[cfg(feature = "engine")]
pub mod change;
#[cfg(feature = "engine")]
pub mod clock;
#[cfg(feature = "engine")]
pub mod codec;
pub mod config;
#[cfg(feature = "engine")]
pub mod digest;
pub mod event;
#[cfg(feature = "engine")]
pub mod feed;
#[cfg(feature = "engine")]
pub mod generate;
pub mod glob;
#[cfg(feature = "engine")]
mod history;
pub mod ids;
#[cfg(feature = "engine")]
pub mod json;
#[cfg(feature = "engine")]
pub mod keyring;
#[cfg(feature = "engine")]
pub mod lock;
#[cfg(feature = "engine")]
pub mod merge;
#[cfg(feature = "engine")]
pub mod model;
#[cfg(feature = "engine")]
pub mod partition;
#[cfg(feature = "engine")]
pub mod range;
#[cfg(feature = "engine")]
pub mod record;
pub mod refusal;
#[cfg(feature = "engine")]
pub mod restored;
#[cfg(feature = "engine")]
pub mod rollback;
#[cfg(feature = "engine")]
pub mod schedule;
#[cfg(feature = "engine")]
pub mod state;
#[cfg(feature = "engine")]
pub mod transcript;
#[cfg(feature = "engine")]
pub mod txn;
#[cfg(feature = "engine")]
pub mod update;
#[cfg(feature = "engine")]
mod version;
#[cfg(feature = "engine")]
pub mod waits;
#[cfg(feature = "engine")]
pub mod watch;
pub mod wire;

pub use ids::{Interner, Stamp, Who};
pub use refusal::{Code, Refusal};
