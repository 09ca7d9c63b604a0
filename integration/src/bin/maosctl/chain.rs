//! The file of a backup, and those that it goes on from: found by their ids in the directory that it lies in, under the names
//! that the server gives them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use maos_client::BackupId;
use maos_core::codec::backup::{peek, verify, Entry, Head, Manifest, Reader};
use maos_core::codec::chain::{self, of_link, ChainError, Heads};
use maos_core::keyring::Keyring;
use maos_core::wire::backup::id_in_file_name;

use crate::file::{cannot, open, progress, reader, Source};
use crate::Failure;

/// One file.
pub struct Link {
    pub path: PathBuf,
    pub file: File,
    /// How long it is, in bytes.
    pub size: u64,
    /// The id of the key that sealed it.
    pub key: Option<String>,
}

/// A backup and all that it goes on from, the newest first.
pub struct Chain {
    heads: Heads,
    links: Vec<Link>,
    ring: Option<Keyring>,
}

/// The files beside one.
fn files_beside(path: &Path) -> Result<HashMap<BackupId, PathBuf>, Failure> {
    files_in(path.parent().unwrap_or(Path::new("/")))
}

/// The files that are called as backups are, by the ids in their names. Of two of one id the first by its name.
pub fn files_in(dir: &Path) -> Result<HashMap<BackupId, PathBuf>, Failure> {
    let mut found = HashMap::new();
    for one in fs::read_dir(dir).map_err(cannot("read", dir))? {
        let path = one.map_err(cannot("read", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(id) = name.and_then(id_in_file_name) else {
            continue;
        };
        // As the server has it: what a link leads to is no backup.
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
            continue;
        }
        let known = found.entry(id).or_insert_with(|| path.clone());
        if path < *known {
            *known = path;
        }
    }
    Ok(found)
}

/// What is known of the parent of a backup by the beginning of its file alone.
pub enum Parent {
    /// It is there.
    There(PathBuf),
    /// It is not, or is not what it should be.
    Not(ChainError),
}

/// Looks for the parent of a backup. `None`: it has none.
pub fn parent_of(path: &Path, head: &Head) -> Result<Option<Parent>, Failure> {
    let mut heads = Heads::of(BackupId(head.id));
    if let Err(error) = heads.take(head.clone()) {
        return Ok(Some(Parent::Not(error)));
    }
    let Some(id) = heads.wanted() else {
        return Ok(None);
    };
    // Of a link it is what that leads to.
    let path = fs::canonicalize(path).map_err(cannot("read", path))?;
    let Some(found) = files_beside(&path)?.remove(&id) else {
        return Ok(Some(Parent::Not(ChainError::Missing(id))));
    };
    let (file, _) = open(&found)?;
    let taken = match peek(BufReader::new(file)) {
        Ok((head, _)) => heads.take(head),
        Err(why) => Err(of_link(1, id, why)),
    };
    Ok(Some(match taken {
        Ok(()) => Parent::There(found),
        Err(error) => Parent::Not(error),
    }))
}

impl Chain {
    /// Opens a backup, and all that it goes on from.
    ///
    /// # Errors
    /// If a file cannot be opened, or its beginning is bad; if a link is missing, or another one than it should be.
    pub fn open(path: &Path, ring: Option<Keyring>) -> Result<Chain, Failure> {
        let (first, found) = open(path)?;
        let read = Reader::open(BufReader::new(&first), ring.as_ref())?;
        let mut heads = Heads::of(BackupId(read.head().id));
        let (head, key) = (read.head().clone(), read.key_id().map(str::to_owned));
        drop(read);
        heads.take(head)?;
        // Of a link it is what that leads to.
        let path = fs::canonicalize(path).map_err(cannot("read", path))?;
        let mut links = vec![Link {
            path: path.clone(),
            file: first,
            size: found.len(),
            key,
        }];
        let mut files = HashMap::new();
        while let Some(id) = heads.wanted() {
            if links.len() == 1 {
                files = files_beside(&path)?;
            }
            let path = files.remove(&id).ok_or(ChainError::Missing(id))?;
            let (file, found) = open(&path)?;
            let read = Reader::open(BufReader::new(&file), ring.as_ref());
            let read = read.map_err(|why| of_link(links.len(), id, why))?;
            let (head, key) = (read.head().clone(), read.key_id().map(str::to_owned));
            drop(read);
            heads.take(head)?;
            links.push(Link {
                path,
                file,
                size: found.len(),
                key,
            });
        }
        Ok(Chain { heads, links, ring })
    }

    /// What the newest link says of itself.
    pub fn head(&self) -> &Head {
        &self.heads.found()[0]
    }

    /// What each link says of itself, the newest first.
    pub fn heads(&self) -> &[Head] {
        self.heads.found()
    }

    /// Its files, the newest first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// How long all files are together, in bytes.
    pub fn size(&self) -> u64 {
        let sizes = self.links.iter().map(|link| link.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// For how far so many readings of all files have come.
    pub fn progress(&self, readings: u64) -> ProgressBar {
        progress(self.size().saturating_mul(readings))
    }

    fn id(&self, n: usize) -> BackupId {
        BackupId(self.heads.found()[n].id)
    }

    /// Begins to read a link, the newest being 0.
    ///
    /// # Errors
    /// What is wrong with its beginning.
    pub fn reader(&self, n: usize, bar: &ProgressBar) -> Result<Source<'_>, Failure> {
        let link = &self.links[n];
        let mut file = &link.file;
        file.seek(SeekFrom::Start(0))
            .map_err(cannot("read", &link.path))?;
        let read = reader(&link.file, bar, self.ring.as_ref());
        Ok(read.map_err(|why| of_link(n, self.id(n), why))?)
    }

    /// Reads every link to its last byte, and decodes all that is in it. Gives what each says to hold, the newest first.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, bar: &ProgressBar) -> Result<Vec<Manifest>, Failure> {
        let links = 0..self.links.len();
        let one = |n| {
            let read = verify(&mut self.reader(n, bar)?);
            Ok(read.map_err(|why| of_link(n, self.id(n), why))?)
        };
        links.map(one).collect()
    }

    /// Has `then` called with every key as it was at the instant of the newest link, whichever link has it.
    ///
    /// # Errors
    /// What is wrong with one of the links; that one of them lacks a key; and the errors of `then`.
    pub fn each(
        &self,
        bar: &ProgressBar,
        then: &mut dyn FnMut(&Entry<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        chain::each(self.links.len(), |n| self.reader(n, bar), then)
    }
}
