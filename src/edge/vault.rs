//! The directory of the backups, and the keys that seal them. Runs in threads as well: nothing of the server is called.
//!
//! A backup is written to `.NAME-ID.part`, which its writer holds locked, and gets its name, `NAME-ID.maosbackup`, when
//! all of it is on disk. So whatever ends in between, a kill, a full disk, leaves nothing that passes for a backup; and a
//! file that nobody holds is swept up when the next backup begins. Several nodes may share a directory.

use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::HashMap;
use maos_core::codec::backup::{peek, BackupError, Head};
use maos_core::keyring::{Keyring, KEYRING_MAX};
use maos_core::refusal::Quoted;
use maos_core::wire::backup::{
    id_in_file_name, id_in_name, BackupFileReply, BackupId, BackupReply, BACKUP_ENDING as ENDING,
};

use super::log;

const UNFINISHED: &str = ".part";
/// The note of a restore that goes on.
const RESTORING: &str = ".restoring";
/// The variable that may hold the keys.
const KEYS: &str = "MAOS_BACKUP_ENCRYPTION_KEY";
/// So many files of a directory are looked at.
const FILES_MAX: usize = 100_000;
/// A file that is unfinished and held by nobody may just have been made: younger ones stay.
const YOUNG: Duration = Duration::from_secs(10);

/// The directory.
#[derive(Clone, Debug)]
pub struct Vault(PathBuf);

/// A backup that is being written. Its file goes with it, unless it is [finished](Unfinished::finish).
pub struct Unfinished {
    /// Its file.
    pub file: File,
    at: PathBuf,
    to: PathBuf,
    is_named: bool,
}

fn told(what: &str, path: &Path, error: &io::Error) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = Quoted(name.as_encoded_bytes()).to_string();
    format!("{what} {name}: {error}")
}

/// Opens a file of ours: not what a link leads to.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    }
}

/// Holds a file until it is closed. False if somebody else does.
fn hold(file: &File) -> bool {
    // SAFETY: the descriptor is open.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

impl Vault {
    /// This directory.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(dir: &str) -> Result<Vault, String> {
        let path = PathBuf::from(dir);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(Vault(path)),
            Ok(_) => Err("maos.backup-dir is no directory".into()),
            Err(e) => Err(format!("maos.backup-dir cannot be used: {e}")),
        }
    }

    /// Makes the file of a new backup, for nobody else to read.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin(&self, name: &str, id: BackupId) -> Result<Unfinished, String> {
        self.sweep();
        let at = self.0.join(format!(".{name}-{id}{UNFINISHED}"));
        let to = self.0.join(format!("{name}-{id}{ENDING}"));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&at)
            .map_err(|e| told("cannot make", &at, &e))?;
        if !hold(&file) {
            return Err("somebody else holds the new file".into());
        }
        Ok(Unfinished {
            file,
            at,
            to,
            is_named: false,
        })
    }

    /// Unfinished files that nobody holds any more go.
    fn sweep(&self) {
        let unfinished = |path: &Path| {
            let name = path.file_name().and_then(|n| n.to_str());
            let name = name.and_then(|n| n.strip_prefix('.')?.strip_suffix(UNFINISHED));
            name.is_some_and(|n| id_in_name(n).is_some())
        };
        for path in self.paths().filter(|path| unfinished(path)) {
            let old = |file: &File| {
                let made = file.metadata().and_then(|found| found.modified());
                made.is_ok_and(|at| {
                    SystemTime::now().duration_since(at).unwrap_or_default() > YOUNG
                })
            };
            if open(&path).is_ok_and(|file| old(&file) && hold(&file)) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Leaves a note that what this backup holds is being brought back here: if the server is killed meanwhile, the next
    /// one finds it.
    ///
    /// # Errors
    /// What the system says.
    pub fn note_restore(&self, id: BackupId) -> Result<(), String> {
        let path = self.note_of(id);
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            file.write_all(id.to_string().as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| told("cannot write", &path, &e))?;
        self.settle()
    }

    /// It is over.
    pub fn forget_restore(&self, id: BackupId) {
        let _ = fs::remove_file(self.note_of(id));
    }

    /// The backups whose restore on this server was cut short.
    pub fn interrupted(&self) -> Vec<BackupId> {
        let id = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            let id = name.strip_prefix('.')?.get(..32)?;
            let id = BackupId::parse(id.as_bytes())?;
            (path == self.note_of(id)).then_some(id)
        };
        self.paths().filter_map(id).collect()
    }

    /// Several servers may share the directory: each has its notes, by where it keeps its data.
    fn note_of(&self, id: BackupId) -> PathBuf {
        let own = std::env::current_dir().unwrap_or_default();
        let state = foldhash::quality::FixedState::default();
        let own = state.hash_one(own.as_os_str().as_encoded_bytes());
        self.0.join(format!(".{id}-{own:016x}{RESTORING}"))
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let all = fs::read_dir(&self.0).into_iter().flatten().take(FILES_MAX);
        all.filter_map(|found| Some(found.ok()?.path()))
    }

    /// The files of all backups.
    pub fn files(&self) -> HashMap<BackupId, PathBuf> {
        let all = self.paths();
        all.filter_map(|path| Some((id_of(&path)?, path))).collect()
    }

    /// The file of a backup.
    pub fn find(&self, id: BackupId) -> Option<PathBuf> {
        self.paths().find(|path| id_of(path) == Some(id))
    }

    /// Opens the file of a backup.
    ///
    /// # Errors
    /// Why it could not be.
    pub fn open(&self, path: &Path) -> Result<File, String> {
        open(path).map_err(|e| told("cannot read", path, &e))
    }

    /// Removes the file of a backup.
    ///
    /// # Errors
    /// Why it could not be.
    pub fn remove(&self, path: &Path) -> Result<(), String> {
        fs::remove_file(path).map_err(|e| told("cannot remove", path, &e))?;
        self.settle()
    }

    /// Removes the backup with this name and this id, and no file that is called otherwise.
    ///
    /// # Errors
    /// Why it could not be. That it is gone already is none.
    pub fn remove_named(&self, name: &str, id: BackupId) -> Result<(), String> {
        let path = self.0.join(format!("{name}-{id}{ENDING}"));
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            _ => self.remove(&path),
        }
    }

    /// Has the directory itself on disk.
    fn settle(&self) -> Result<(), String> {
        let done = File::open(&self.0).and_then(|dir| dir.sync_all());
        done.map_err(|e| format!("maos.backup-dir could not be written down: {e}"))
    }

    /// All backups, the newest first.
    pub fn list(&self) -> Vec<BackupFileReply<'static>> {
        let mut all: Vec<_> = self.paths().filter_map(|path| self.one(&path)).collect();
        all.sort_by_key(|one| std::cmp::Reverse((one.backup.instant, one.backup.id)));
        all
    }

    /// All backups, in any order, and whether there may be others: why one could not be read that may be a good one.
    /// What is damaged is none.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn survey(&self) -> Result<(Vec<BackupReply<'static>>, Result<(), String>), String> {
        let bad = |e: io::Error| format!("maos.backup-dir cannot be read: {e}");
        let (mut found, mut whole) = (vec![], Ok(()));
        for (n, entry) in fs::read_dir(&self.0).map_err(bad)?.enumerate() {
            if n >= FILES_MAX {
                whole = Err(format!("maos.backup-dir has more than {FILES_MAX} files"));
                break;
            }
            let path = entry.map_err(bad)?.path();
            let Some(id) = id_of(&path) else { continue };
            // What a link leads to is not opened as a backup either.
            if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
                continue;
            }
            match begins(&path, id) {
                Ok((backup, _)) => found.push(backup),
                Err(Unread::Unknown(why)) => whole = Err(told("cannot read", &path, &why)),
                Err(Unread::Gone | Unread::Bad(_)) => {}
            }
        }
        Ok((found, whole))
    }

    fn one(&self, path: &Path) -> Option<BackupFileReply<'static>> {
        match begins(path, id_of(path)?) {
            Ok((backup, size)) => Some(BackupFileReply {
                backup,
                file: path.file_name()?.as_encoded_bytes().to_vec().into(),
                size,
            }),
            Err(why) => {
                let name = Quoted(path.file_name()?.as_encoded_bytes()).to_string();
                log::warning(&format!("the backup {name} cannot be read: {why}"));
                None
            }
        }
    }
}

/// Why the beginning of a file could not be read.
enum Unread {
    /// The file is not there any more.
    Gone,
    /// It is no backup that this version could ever restore from.
    Bad(String),
    /// It may be one.
    Unknown(io::Error),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unread::Gone => f.write_str("it is gone"),
            Unread::Bad(why) => f.write_str(why),
            Unread::Unknown(e) => e.fmt(f),
        }
    }
}

impl From<io::Error> for Unread {
    fn from(e: io::Error) -> Unread {
        match e.kind() {
            io::ErrorKind::NotFound => Unread::Gone,
            // It ends before its beginning does.
            io::ErrorKind::UnexpectedEof => Unread::Bad(e.to_string()),
            _ => Unread::Unknown(e),
        }
    }
}

/// What the file of a backup says of itself, and its size.
fn begins(path: &Path, id: BackupId) -> Result<(BackupReply<'static>, u64), Unread> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    let (head, key) = peek(&file).map_err(|e| match e {
        BackupError::Io(e) => Unread::from(e),
        // A later version may go on from what is here.
        BackupError::Newer { .. } => Unread::Unknown(io::Error::other(e.to_string())),
        e => Unread::Bad(e.to_string()),
    })?;
    let backup = reply_of(&head, key.as_deref());
    match backup.id == id {
        true => Ok((backup, size)),
        false => Err(Unread::Bad("its name is that of another".into())),
    }
}

/// What the beginning of a backup says, as a reply.
pub fn reply_of(head: &Head, key: Option<&str>) -> BackupReply<'static> {
    BackupReply {
        id: BackupId(head.id),
        name: head.name.as_bytes().to_vec().into(),
        instant: head.instant,
        made_on: head.node.to_vec().into(),
        key: key.map(|id| id.as_bytes().to_vec().into()),
        parent: head.parent.map(|p| BackupId(p.id)),
        prefixes: head.prefixes.iter().map(|p| p.to_vec().into()).collect(),
    }
}

fn id_of(path: &Path) -> Option<BackupId> {
    id_in_file_name(path.file_name()?.to_str()?)
}

impl Unfinished {
    /// All of it is written: it gets its name once it is on disk.
    ///
    /// # Errors
    /// What the system says; then there is no backup.
    pub fn finish(mut self, vault: &Vault) -> Result<(), String> {
        let done = self.file.sync_all();
        done.map_err(|e| told("cannot write down", &self.at, &e))?;
        fs::rename(&self.at, &self.to).map_err(|e| told("cannot name", &self.at, &e))?;
        self.is_named = true;
        vault.settle()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_named {
            let _ = fs::remove_file(&self.at);
        }
    }
}

/// The keys that seal backups; `None` where there are none.
///
/// # Errors
/// If there should be some, and they cannot be used.
pub fn keys(file: &str) -> Result<Option<Arc<Keyring>>, String> {
    if let Some(text) = std::env::var_os(KEYS) {
        let ring = Keyring::from_env_text(text.as_encoded_bytes());
        return ring
            .map(|ring| Some(Arc::new(ring)))
            .map_err(|e| format!("{KEYS}: {e}"));
    }
    if file.is_empty() {
        return Ok(None);
    }
    let bad = |why: String| format!("maos.backup-key-file cannot be used: {why}");
    let key_file = open(Path::new(file)).map_err(|e| bad(e.to_string()))?;
    let found = key_file.metadata().map_err(|e| bad(e.to_string()))?;
    // SAFETY: it cannot fail.
    let own = unsafe { libc::geteuid() };
    if found.uid() != own || found.mode() & 0o077 != 0 {
        return Err(bad(format!(
            "it must belong to the server's user and have mode 0600, it has {:04o}",
            found.mode() & 0o7777
        )));
    }
    let mut text = vec![];
    let most = KEYRING_MAX as u64 + 1;
    let read = (&key_file).take(most).read_to_end(&mut text);
    read.map_err(|e| bad(e.to_string()))?;
    let ring = Keyring::parse(&text).map_err(|e| bad(e.to_string()));
    text.fill(0);
    ring.map(|ring| Some(Arc::new(ring)))
}

/// Random bytes that nobody can foretell.
///
/// # Errors
/// If the system has none.
pub fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let done = getrandom::fill(&mut bytes);
    done.map_err(|e| format!("the system gives no random bytes: {e}"))?;
    Ok(bytes)
}

/// What this machine is called.
pub fn host() -> Vec<u8> {
    let mut name = [0u8; 64];
    // SAFETY: the buffer is as long as is said, and one byte longer than what is read of it.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let end = name.iter().position(|b| *b == 0).unwrap_or(0);
    name[..end].to_vec()
}
