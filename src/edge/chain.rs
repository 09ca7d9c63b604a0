//! A backup and those that it goes on from: an incremental one names the keys that did not change, and what they hold is
//! found in its parent, or in the parent of that. Runs in threads: nothing of the server is called.

use std::fs::File;
use std::hash::BuildHasher;
use std::io::{Seek, SeekFrom};

use foldhash::fast::RandomState;
use foldhash::{HashMap, HashMapExt};
use maos_core::codec::backup::{self, BackupError, Content, Entry, Head, Reader};
use maos_core::codec::v1;
use maos_core::keyring::Keyring;
use maos_core::record::Record;
use maos_core::wire::backup::{BackupId, VerifiedReply};
use maos_core::{Code, Interner, Refusal, Stamp};

use super::vault::{reply_of, Vault};

/// A chain has at most so many links.
const LINKS_MAX: usize = 1_000;

/// One backup of a chain.
struct Link {
    file: File,
    head: Head,
    key: Option<Box<str>>,
}

/// A backup, and all that it goes on from: the newest first.
pub struct Chain {
    links: Vec<Link>,
    ring: Option<Keyring>,
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

/// Where a key is, in its parents, and what of it is known: its version, and when it expires.
type Needed = HashMap<(u32, Box<[u8]>), (Stamp, Option<u64>)>;

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadBackup, why.into())
}

fn told(e: BackupError) -> String {
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
        ring: Option<Keyring>,
        may_be_plain: bool,
    ) -> Result<Chain, Refusal> {
        let mut chain = Chain {
            links: vec![],
            ring,
        };
        let files = vault.files();
        let mut next = Some((id, None::<Stamp>));
        while let Some((id, instant)) = next {
            let Some(path) = files.get(&id) else {
                return Err(match instant {
                    None => Refusal::new(
                        Code::NotFound,
                        format!("there is no backup {id} in maos.backup-dir; MAOS.BACKUP LIST shows all"),
                    ),
                    Some(_) => bad(format!("it goes on from the backup {id}, which is not there: without that it cannot be restored")),
                });
            };
            let file = vault.open(path).map_err(bad)?;
            let reader = Reader::open(&file, chain.ring.as_ref()).map_err(|e| bad(told(e)))?;
            if reader.key_id().is_none() && !may_be_plain {
                return Err(bad("the backup is not encrypted, so anybody may have made it: set maos.backup-plain yes to take it all the same"));
            }
            let (head, key) = (reader.head().clone(), reader.key_id().map(Box::from));
            drop(reader);
            if head.id != id.0 || instant.is_some_and(|at| at != head.instant) {
                return Err(bad(format!(
                    "the file of the backup {id} is that of another one"
                )));
            }
            // Instants fall: so a chain has an end.
            let later = |p: &backup::Parent| p.instant >= head.instant;
            if chain.links.len() >= LINKS_MAX || head.parent.as_ref().is_some_and(later) {
                return Err(bad(format!(
                    "the backups that {id} goes on from make no chain"
                )));
            }
            next = head.parent.map(|p| (BackupId(p.id), Some(p.instant)));
            chain.links.push(Link { file, head, key });
        }
        Ok(chain)
    }

    /// What the newest link says of itself.
    pub fn head(&self) -> &Head {
        &self.links[0].head
    }

    fn reader<'l>(&self, link: &'l Link) -> Result<Reader<&'l File>, String> {
        let mut file = &link.file;
        file.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
        Reader::open(&link.file, self.ring.as_ref()).map_err(told)
    }

    /// Has `then` called with every key as it is in the newest link, whichever link has it.
    ///
    /// # Errors
    /// What is wrong with one of the links; that one of them lacks a key; and the errors of `then`.
    pub fn each(
        &self,
        then: &mut dyn FnMut(&Entry<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mut needed, mut interner) = (Needed::new(), Interner::default());
        for (n, link) in self.links.iter().enumerate() {
            let mut reader = self.reader(link)?;
            while let Some(entry) = reader.next().map_err(told)? {
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
                        if current_of(bytes, &mut interner)? != stamp {
                            return Err("a link has another version of a key than the one that goes on from it says".into());
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
            n => Err(format!(
                "the backups that it goes on from lack {n} of its keys"
            )),
        }
    }

    /// Reads every link to its last byte, and decodes all that is in it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        for link in &self.links {
            backup::verify(&mut self.reader(link)?).map_err(told)?;
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

/// The current version of an encoded record.
fn current_of(bytes: &[u8], interner: &mut Interner) -> Result<Stamp, String> {
    let decoded = v1::decode_record(bytes, v1::Bounds::HARD, interner);
    decoded
        .map(|(record, _)| record.current().stamp())
        .map_err(|e| e.0.to_string())
}
