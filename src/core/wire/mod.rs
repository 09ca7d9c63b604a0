//! The command language, once.
//!
//! Each command is an entry of the table ([`spec`]) beside its request and reply types ([`state`],
//! [`update`], [`txn`], [`lock`], [`partition`], [`watch`], [`range`], [`backup`], [`rollback`]).
//! Registration, arity, key specs, `COMMAND DOCS`, the README's reference, the client's methods and
//! the random requests of the tests all come from here.

pub mod backup;
pub mod cursor;
pub mod lock;
pub mod partition;
pub mod range;
pub mod reference;
pub mod reply;
pub mod rollback;
pub mod spec;
pub mod state;
pub mod txn;
pub mod update;
pub mod watch;

pub use cursor::Cursor;
pub use reply::{Decoded, Reply, Sink, Value};
pub use spec::{Access, Arg, ArgKind, CommandSpec, Keys, Rules, Tok};

use crate::Refusal;

/// Every public request, whatever room it is from.
pub mod requests {
    pub use super::backup::{
        BackupCancel, BackupCreate, BackupDelete, BackupHelp, BackupList, BackupRestore,
        BackupStatus, BackupVerify,
    };
    pub use super::lock::{Lock, Locks, MLock, Renew, Unlock};
    pub use super::partition::{
        PartitionAlter, PartitionCreate, PartitionDrop, PartitionHelp, PartitionInfo,
        PartitionList, PartitionPool,
    };
    pub use super::range::Range;
    pub use super::rollback::RollbackTo;
    pub use super::state::{Cas, Del, Diff, Get, History, MCas, MGet, MSet, Rollback, Set};
    pub use super::txn::Txn;
    pub use super::update::{IncrBy, Merge, Patch};
    pub use super::watch::Watch;
}

/// A request: arguments that have been understood, or are about to be sent.
pub trait Request<'a>: Sized {
    /// The table's entry.
    const SPEC: &'static CommandSpec;

    /// What its options may be.
    const RULES: &'static Rules = &Rules::of(Self::SPEC);

    /// Understands the arguments after the command's name.
    ///
    /// # Errors
    /// `ERR`, `LIMIT`, `TOOBIG` or `NOTJSON` where the arguments break the command's syntax or the
    /// fixed bounds of [`config`](crate::config).
    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal>;

    /// The arguments after the command's name, such that `parse` gives this request again.
    fn encode(&self) -> Vec<Vec<u8>>;
}

/// Calls `$then!{ Variant, … }` with every public command's request type, in the order of the table.
#[macro_export]
macro_rules! for_each_command {
    ($then:ident) => {
        $then! {
            write Set, write Cas, read Get, write Del, write MSet, write MCas, read MGet,
            read History, read Diff, write Rollback, write Patch, write IncrBy, write Merge, write Txn,
            lock Lock, lock MLock, write Unlock, write Renew, read Locks,
            define PartitionCreate, define PartitionAlter, define PartitionDrop,
            survey PartitionInfo, survey PartitionList, survey PartitionPool, survey PartitionHelp,
            watch Watch, range Range,
            backup BackupCreate, backup BackupStatus, backup BackupList, backup BackupVerify, backup BackupRestore,
            backup BackupCancel, backup BackupDelete, backup BackupHelp,
            rollback RollbackTo
        }
    };
}

pub(super) fn push_word(out: &mut Vec<Vec<u8>>, tok: Tok) {
    out.push(tok.word().into());
}

pub(super) fn push_bytes(out: &mut Vec<Vec<u8>>, tok: Tok, bytes: Option<&[u8]>) {
    if let Some(b) = bytes {
        push_word(out, tok);
        out.push(b.to_vec());
    }
}

pub(super) fn push_number(out: &mut Vec<Vec<u8>>, tok: Tok, n: Option<impl ToString>) {
    if let Some(n) = n {
        push_word(out, tok);
        out.push(n.to_string().into_bytes());
    }
}

pub(super) fn number(n: impl ToString) -> Vec<u8> {
    n.to_string().into_bytes()
}
