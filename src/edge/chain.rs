//! A backup and those that it goes on from, in the directory of the backups; what a chain is says `core/codec/chain.rs`. Runs
//! in threads: nothing of the server is called.

use std::fs::File;
use std::hash::BuildHasher;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use foldhash::fast::RandomState;
use foldhash::{HashMap, HashMapExt};
use maos_core::codec::backup::{self, Content, Entry, Head, Reader};
use maos_core::codec::chain::{self, of_link, ChainError, Heads};
use maos_core::codec::v1;
use maos_core::keyring::Keyring;
use maos_core::record::Record;
use maos_core::wire::backup::{BackupId, VerifiedReply};
use maos_core::{Code, Interner, Refusal, Stamp};

use super::vault::{reply_of, Vault};

/// One backup of a chain.
struct Link {
    file: File,
    key: Option<Box<str>>,
}

/// A backup, and all that it goes on from: the newest first.
pub struct Chain {
    heads: Heads,
    links: Vec<Link>,
    ring: Option<Arc<Keyring>>,
}

/// What the keys of a backup hold, in few bytes: enough to know whether that is what they hold now.
pub struct Known {
    hasher: RandomState,
    keys: HashMap<u64, u64>,
}

impl Known {
    fn place(&self, db: u32, key: &[u8]) -> u64 {
        self.hasher.hash_one((db, key))
    }

    /// Whether a key holds what it held then.
    pub fn has(&self, db: i32, key: &[u8], record: &Record) -> bool {
        let db = u32::try_from(db).unwrap_or(u32::MAX);
        self.keys.get(&self.place(db, key)) == Some(&record.fingerprint())
    }
}

/// Why a chain was not read to its end.
struct Stopped(String);

impl From<ChainError> for Stopped {
    fn from(e: ChainError) -> Stopped {
        Stopped(told(e))
    }
}

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadBackup, why.into())
}

fn told(e: ChainError) -> String {
    e.to_string()
}

impl Chain {
    /// Opens a backup and all that it goes on from.
    ///
    /// # Errors
    /// `NOTFOUND` where there is no such backup; `BADBACKUP` if its beginning is bad, a link is missing or another one than it
    /// should be, or is not sealed where it has to be.
    pub fn open(
        vault: &Vault,
        id: BackupId,
        ring: Option<Arc<Keyring>>,
        may_be_plain: bool,
    ) -> Result<Chain, Refusal> {
        let mut chain = Chain {
            heads: Heads::of(id),
            links: vec![],
            ring,
        };
        let files = vault.files();
        while let Some(id) = chain.heads.wanted() {
            let n = chain.links.len();
            let Some(path) = files.get(&id) else {
                return Err(match n {
                    0 => Refusal::new(
                        Code::NotFound,
                        format!("there is no backup {id} in maos.backup-dir; MAOS.BACKUP LIST shows all"),
                    ),
                    _ => bad(told(ChainError::Missing(id))),
                });
            };
            let file = vault.open(path).map_err(bad)?;
            let reader = Reader::open(&file, chain.ring.as_deref());
            let reader = reader.map_err(|why| bad(told(of_link(n, id, why))))?;
            if reader.key_id().is_none() && !may_be_plain {
                return Err(bad("the backup is not encrypted, so anybody may have made it: set maos.backup-plain yes to take it all the same"));
            }
            let (head, key) = (reader.head().clone(), reader.key_id().map(Box::from));
            drop(reader);
            chain.heads.take(head).map_err(|e| bad(told(e)))?;
            chain.links.push(Link { file, key });
        }
        Ok(chain)
    }

    /// What the newest link says of itself.
    pub fn head(&self) -> &Head {
        &self.heads.found()[0]
    }

    fn reader(&self, n: usize) -> Result<Reader<&File>, String> {
        let link = &self.links[n];
        let mut file = &link.file;
        file.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
        let id = BackupId(self.heads.found()[n].id);
        Reader::open(&link.file, self.ring.as_deref()).map_err(|why| told(of_link(n, id, why)))
    }

    /// Has `then` called with every key as it is in the newest link, whichever link has it.
    ///
    /// # Errors
    /// What is wrong with one of the links; that one of them lacks a key; and the errors of `then`.
    pub fn each(
        &self,
        then: &mut dyn FnMut(&Entry<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let open = |n| self.reader(n).map_err(Stopped);
        let mut then = |entry: &Entry<'_>| then(entry).map_err(Stopped);
        chain::each(self.links.len(), open, &mut then).map_err(|Stopped(why)| why)
    }

    /// Reads every link to its last byte, and decodes all that is in it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        for (n, head) in self.heads.found().iter().enumerate() {
            let verified = backup::verify(&mut self.reader(n)?);
            verified.map_err(|why| told(of_link(n, BackupId(head.id), why)))?;
        }
        Ok(())
    }

    /// What the whole of it comes to.
    ///
    /// # Errors
    /// What is wrong.
    pub fn verify(&self) -> Result<VerifiedReply<'static>, String> {
        self.check()?;
        let (mut interner, mut digest) = (Interner::default(), 0u128);
        let mut reply = VerifiedReply {
            backup: reply_of(self.head(), self.links[0].key.as_deref()),
            keys: 0,
            partitions: 0,
            bytes: 0,
            newest: Stamp::NONE,
            links: self.links.len() as u64,
            digest: BackupId([0; 16]),
        };
        self.each(&mut |entry| {
            let one = entry.digest(&mut interner).map_err(|e| e.0.to_string())?;
            digest = digest.wrapping_add(one);
            match entry.content {
                Content::Definition(bytes) => {
                    reply.partitions += 1;
                    reply.bytes += bytes.len() as u64;
                }
                Content::Record(bytes) => {
                    reply.keys += 1;
                    reply.bytes += bytes.len() as u64;
                    let newest = v1::newest_of(bytes).map_err(|e| e.0.to_string())?;
                    reply.newest = reply.newest.max(newest);
                }
                _ => reply.keys += 1,
            }
            Ok(())
        })?;
        reply.digest = BackupId(digest.to_be_bytes());
        Ok(reply)
    }

    /// What its keys hold, to go on from it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn known(&self) -> Result<Known, String> {
        let mut known = Known {
            hasher: RandomState::default(),
            keys: HashMap::new(),
        };
        let mut interner = Interner::default();
        self.each(&mut |entry| {
            if let Content::Record(bytes) = entry.content {
                let decoded = v1::decode_record(bytes, v1::Bounds::HARD, &mut interner);
                let (record, _) = decoded.map_err(|e| e.0.to_string())?;
                let place = known.place(entry.db, entry.key);
                known.keys.insert(place, record.fingerprint());
            }
            Ok(())
        })?;
        Ok(known)
    }
}
