//! A backup and those that it goes on from: an incremental one names the keys that did not change, and what they hold is
//! found in its parent, or in the parent of that.
//!
//! ```text
//!   newest link: a: record   b: unchanged, version 7   d: record        c was removed: it is not named
//!   its parent:  a: record   b: unchanged, version 7   c: record        whatever the newest has, or does not name, is passed over
//!   its parent:  a: record   b: record, version 7      c: record        here is b
//! ```
//!
//! The server and whoever reads files without one go by the same rules: which link is wanted, which one is another than it
//! should be, and what the keys of the newest one hold.

use std::fmt;
use std::io::Read;

use foldhash::{HashMap, HashMapExt};

use super::backup::{BackupError, Content, Entry, Head, Reader};
use super::v1;
use crate::wire::backup::BackupId;
use crate::{Interner, Stamp};

/// A chain has at most so many links.
pub const LINKS_MAX: usize = 1_000;

/// Why a chain cannot be read.
#[derive(Debug)]
pub enum ChainError {
    /// A link that is there is bad.
    Link {
        /// Its id, unless it is the newest.
        parent: Option<BackupId>,
        /// What is wrong with it.
        why: BackupError,
    },
    /// A link is not there.
    Missing(BackupId),
    /// What is there as a link is another backup than the one that goes on from it says.
    Foreign {
        /// The id of the link.
        id: BackupId,
        /// What is not as it says.
        what: &'static str,
    },
    /// Going on from one to the next does not come to an end.
    NoChain(BackupId),
    /// A link has another version of a key than the one that goes on from it says.
    OtherVersion,
    /// No link has what so many keys hold.
    Lacks(u64),
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainError::Link { parent: None, why } => why.fmt(f),
            ChainError::Link {
                parent: Some(id),
                why,
            } => write!(f, "it goes on from the backup {id}, of which: {why}"),
            ChainError::Missing(id) => write!(
                f,
                "it goes on from the backup {id}, which is not there: without that it cannot be restored"
            ),
            ChainError::Foreign { id, what } => write!(
                f,
                "the file of the backup {id} is that of another one: it has another {what} than it should have"
            ),
            ChainError::NoChain(id) => {
                write!(f, "the backups that {id} goes on from make no chain")
            }
            ChainError::OtherVersion => f.write_str(
                "a link has another version of a key than the one that goes on from it says",
            ),
            ChainError::Lacks(keys) => {
                write!(f, "the backups that it goes on from lack {keys} of its keys")
            }
        }
    }
}

impl std::error::Error for ChainError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ChainError::Link { why, .. } => Some(why),
            _ => None,
        }
    }
}

/// The heads of the links that were found so far, the newest first. Each says which one is wanted next.
#[derive(Clone, Debug)]
pub struct Heads {
    first: BackupId,
    found: Vec<Head>,
}

impl Heads {
    /// None yet of the chain of this backup.
    pub fn of(id: BackupId) -> Heads {
        Heads {
            first: id,
            found: vec![],
        }
    }

    /// The link that is wanted next; `None`: the chain is whole.
    pub fn wanted(&self) -> Option<BackupId> {
        match self.found.last() {
            None => Some(self.first),
            Some(last) => last.parent.map(|parent| BackupId(parent.id)),
        }
    }

    /// Takes the head of the link that was wanted.
    ///
    /// # Errors
    /// [`ChainError::Foreign`] if it is that of another backup, [`ChainError::NoChain`] if there would be no end.
    pub fn take(&mut self, head: Head) -> Result<(), ChainError> {
        let id = self.wanted().unwrap_or(self.first);
        let foreign = |what| Err(ChainError::Foreign { id, what });
        if head.id != id.0 {
            return foreign("id");
        }
        if let Some(child) = self.found.last() {
            if child
                .parent
                .is_some_and(|says| says.instant != head.instant)
            {
                return foreign("instant");
            }
            // A key that the child says to have not changed would be of no prefix of this one, or the other way round.
            if child.prefixes != head.prefixes {
                return foreign("choice of prefixes");
            }
        }
        // Instants fall: so a chain has an end.
        let later = head.parent.is_some_and(|says| says.instant >= head.instant);
        if later || self.found.len() >= LINKS_MAX {
            return Err(ChainError::NoChain(id));
        }
        self.found.push(head);
        Ok(())
    }

    /// Those that were found.
    pub fn found(&self) -> &[Head] {
        &self.found
    }
}

/// What went wrong with the `n`-th link, the newest being 0.
pub fn of_link(n: usize, id: BackupId, why: BackupError) -> ChainError {
    ChainError::Link {
        parent: (n > 0).then_some(id),
        why,
    }
}

/// Where a key is, in the parents, and what of it is known: its version, and when it expires.
type Needed = HashMap<(u32, Box<[u8]>), (Stamp, Option<u64>)>;

/// Has `then` called with every key as it is in the newest of so many links, whichever link has it. `open` begins to read
/// the `n`-th, the newest being 0. A link is read as far as something is needed of it: that it is whole is to be known before.
///
/// # Errors
/// What is wrong with one of the links; that one of them lacks a key; and the errors of `open` and `then`.
pub fn each<R: Read, E: From<ChainError>>(
    links: usize,
    mut open: impl FnMut(usize) -> Result<Reader<R>, E>,
    then: &mut dyn FnMut(&Entry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (mut needed, mut interner) = (Needed::new(), Interner::default());
    for n in 0..links {
        let mut reader = open(n)?;
        let id = BackupId(reader.head().id);
        while let Some(entry) = reader.next().map_err(|why| of_link(n, id, why))? {
            let place = |entry: &Entry<'_>| (entry.db, Box::from(entry.key));
            match (entry.content, n) {
                (Content::Unchanged(stamp), 0) => {
                    needed.insert(place(&entry), (stamp, entry.expires_ms));
                }
                (_, 0) => then(&entry)?,
                (Content::Record(bytes), _) if !needed.is_empty() => {
                    let Some((stamp, expires_ms)) = needed.remove(&place(&entry)) else {
                        continue;
                    };
                    if current_of(bytes, &mut interner).is_none_or(|has| has != stamp) {
                        return Err(ChainError::OtherVersion.into());
                    }
                    then(&Entry {
                        expires_ms,
                        ..entry
                    })?;
                }
                _ => {}
            }
        }
        if needed.is_empty() {
            return Ok(());
        }
    }
    match needed.len() {
        0 => Ok(()),
        n => Err(ChainError::Lacks(n as u64).into()),
    }
}

/// The current version of an encoded record; none if it does not decode.
fn current_of(bytes: &[u8], interner: &mut Interner) -> Option<Stamp> {
    let decoded = v1::decode_record(bytes, v1::Bounds::HARD, interner);
    decoded.ok().map(|(record, _)| record.current().stamp())
}
