//! Files of backups, without a server: shown, checked, taken apart, given to another key.
//!
//! Nothing here shows a key, or what may be one: of a key file an error says what is wrong, never what stands there, nor
//! how it is called. What a backup holds goes to the output alone.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use maos_client::{BackupId, Version};
use maos_core::codec::backup::{
    peek, rewrap, BackupError, Content, Entry, Reader, FORMAT, LEAD_MAX, REWRAP_RANDOM,
};
use maos_core::codec::v1::{self, Bounds};
use maos_core::codec::Damaged;
use maos_core::keyring::{Keyring, KEYRING_MAX};
use maos_core::Interner;
use serde_json::{json, Value};
use zeroize::Zeroizing;

use crate::backup::About;
use crate::chain::{parent_of, Chain, Parent};
use crate::cli::{Backup, KeyArgs};
use crate::line::{Defined, Parts};
use crate::lock::fields;
use crate::partition::{counted, exactly, printable};
use crate::show::Show;
use crate::transfer::Output;
use crate::{End, Failure};

/// The variable that may hold the keys.
pub const KEYS: &str = "MAOS_BACKUP_ENCRYPTION_KEY";
/// So much of a file is read at once.
const AHEAD: usize = 1 << 20;

/// Does what needs no server. `None`: it does.
pub fn run(show: Show, what: &Backup) -> Result<Option<End>, Failure> {
    match what {
        Backup::Show { file } => head(show, file)?,
        Backup::Verify { what, keys } if id_of(what).is_none() => check(show, what, keys)?,
        Backup::Verify { keys, .. } if keys.key_file.is_some() => {
            let text = "--key-file goes with a file: a server has keys of its own";
            return Err(Failure::Input(text.to_owned()));
        }
        Backup::Export {
            file,
            output,
            history,
            keys,
        } => export(show, file, output, *history, keys)?,
        Backup::Rewrap { file, keys } => give(show, file, keys)?,
        _ => return Ok(None),
    }
    Ok(Some(End::Done))
}

/// The id that an argument is, if it is one.
pub fn id_of(what: &Path) -> Option<BackupId> {
    BackupId::parse(what.as_os_str().as_encoded_bytes())
}

// ---------------------------------------------------------------------------------------------
// Keys and files
// ---------------------------------------------------------------------------------------------

/// The keys that were given; `None`: none were.
pub fn keys_of(given: &KeyArgs) -> Result<Option<Keyring>, Failure> {
    let Some(path) = &given.key_file else {
        let Some(text) = env::var_os(KEYS) else {
            return Ok(None);
        };
        let text = Zeroizing::new(text.into_encoded_bytes());
        let ring = Keyring::from_env_text(&text);
        return ring
            .map(Some)
            .map_err(|e| Failure::Input(format!("{KEYS}: {e}")));
    };
    // What stands in the place of a path may be a key by mistake: it is not repeated.
    let bad = |why: String| Failure::Input(format!("--key-file: {why}"));
    let file = File::open(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let found = file.metadata().map_err(|e| bad(e.to_string()))?;
    if let Some(mode) = open_to_others(&found) {
        return Err(bad(format!(
            "others than its owner may use it, its mode is {mode:04o}: make that 0600, and think of new keys"
        )));
    }
    // As long as it can become, so that nothing is left behind where it grows.
    let mut text = Zeroizing::new(Vec::with_capacity(KEYRING_MAX + 1));
    let read = file.take(KEYRING_MAX as u64 + 1).read_to_end(&mut text);
    read.map_err(|e| bad(format!("cannot be read: {e}")))?;
    let ring = Keyring::parse(&text);
    ring.map(Some).map_err(|e| bad(e.to_string()))
}

/// The mode of a file that its group, or everybody, may read or write.
#[cfg(unix)]
fn open_to_others(found: &fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let mode = found.mode() & 0o7777;
    (mode & 0o077 != 0).then_some(mode)
}

#[cfg(not(unix))]
fn open_to_others(_found: &fs::Metadata) -> Option<u32> {
    None
}

/// Makes a file that nobody else may read. One that is there goes.
pub fn make_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    new_and_private(path)
}

fn new_and_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Gives a new file the owner and the mode of an old one.
#[cfg(unix)]
fn like(new: &File, old: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{fchown, MetadataExt};
    let made = new.metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        fchown(new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(old.permissions())
}

#[cfg(not(unix))]
fn like(new: &File, old: &fs::Metadata) -> io::Result<()> {
    new.set_permissions(old.permissions())
}

pub fn cannot(what: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    let text = format!("cannot {what} {}", path.display());
    move |e| Failure::Input(format!("{text}: {e}"))
}

/// Opens a file; and how long it is.
pub fn open(path: &Path) -> Result<(File, fs::Metadata), Failure> {
    let file = File::open(path).map_err(cannot("read", path))?;
    let found = file.metadata().map_err(cannot("read", path))?;
    if found.is_dir() {
        return Err(Failure::Input(format!("{} is a directory", path.display())));
    }
    Ok((file, found))
}

/// How far a file has been read, on standard error; nothing where that is not a terminal.
pub fn progress(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{bar:30} {binary_bytes} of {binary_total_bytes}, {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("##."));
    }
    bar
}

/// What a file is read through.
pub type Source<'f> = Reader<BufReader<indicatif::ProgressBarIter<&'f File>>>;

/// Begins to read a backup.
pub fn reader<'f>(
    file: &'f File,
    bar: &ProgressBar,
    ring: Option<&Keyring>,
) -> Result<Source<'f>, BackupError> {
    let source = BufReader::with_capacity(AHEAD, bar.wrap_read(file));
    Reader::open(source, ring)
}

// ---------------------------------------------------------------------------------------------
// Shown and checked
// ---------------------------------------------------------------------------------------------

fn hex(id: [u8; 16]) -> String {
    BackupId(id).to_string()
}

fn head(show: Show, path: &Path) -> Result<(), Failure> {
    let (file, found) = open(path)?;
    let (head, key) = peek(BufReader::new(file))?;
    let about = About::of(&head, key.as_deref());
    let parent = parent_of(path, &head)?;
    if show.json {
        let (there, fault) = match &parent {
            None => (None, None),
            Some(Parent::There(path)) => (path.file_name(), None),
            Some(Parent::Not(error)) => (None, Some(error.to_string())),
        };
        let mut all = about.fields(show);
        all.extend(fields([
            ("format", json!(FORMAT)),
            ("made_with", json!(head.made_with)),
            ("natives", json!(head.natives)),
            ("parent_instant", json!(head.parent.map(|p| p.instant.0))),
            (
                "parent_file",
                json!(there.map(|name| name.to_string_lossy())),
            ),
            ("parent_fault", json!(fault)),
            ("size", json!(found.len())),
        ]));
        return Ok(show.object(all)?);
    }
    let mut out = io::stdout().lock();
    about.lines(&mut out, show)?;
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
    match &parent {
        None => {}
        Some(Parent::There(path)) => {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            let of = head.parent.map(|p| show.time(p.instant));
            let text = format!("{}, of {}", printable(name), of.unwrap_or_default());
            line("parent", text)?;
        }
        Some(Parent::Not(error)) => line("parent", error.to_string())?,
    }
    line("format", FORMAT.to_string())?;
    line("made with", head.made_with.to_string())?;
    Ok(line("size", exactly(found.len()))?)
}

fn check(show: Show, path: &Path, keys: &KeyArgs) -> Result<(), Failure> {
    let chain = Chain::open(path, keys_of(keys)?)?;
    let bar = chain.progress(2);
    let all = chain.check(&bar)?;
    let (mut digest, mut interner) = (0u128, Interner::default());
    chain.each(&bar, &mut |entry| {
        // All of it has been decoded once.
        let one = entry.digest(&mut interner).map_err(damaged)?;
        digest = digest.wrapping_add(one);
        Ok(())
    })?;
    bar.finish_and_clear();
    let (newest, links) = (&all[0], chain.links());
    let about = About::of(chain.head(), links[0].key.as_deref());
    let digest = format!("{digest:032x}");
    let holds = Holds {
        keys: newest.entries().saturating_sub(newest.definitions),
        partitions: newest.definitions,
        bytes: all.iter().map(|m| m.bytes).fold(0, u64::saturating_add),
        newest: newest.newest,
    };
    if show.json {
        let mut object = about.fields(show);
        object.extend(fields([
            ("keys", json!(holds.keys)),
            ("partitions", json!(holds.partitions)),
            ("bytes", json!(holds.bytes)),
            ("newest", json!(holds.newest.0)),
            ("links", json!(links.len())),
            ("digest", json!(digest)),
            ("natives", json!(newest.natives)),
            ("unchanged", json!(newest.unchanged)),
            ("size", json!(links[0].size)),
        ]));
        return Ok(show.object(object)?);
    }
    let mut out = io::stdout().lock();
    about.lines(&mut out, show)?;
    holds.lines(&mut out, show)?;
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
    if newest.natives > 0 {
        let what = "of the server's own types";
        line(
            "natives",
            format!("{}, {what}", counted(newest.natives, "key")),
        )?;
    }
    if links.len() > 1 {
        let what = "that did not change, and that those hold which it goes on from";
        line(
            "unchanged",
            format!("{}, {what}", counted(newest.unchanged, "key")),
        )?;
        let text = "together with those that it goes on from";
        line("read", format!("{} files, {text}", links.len()))?;
    }
    line("size", exactly(links[0].size))?;
    Ok(line("digest", digest)?)
}

/// What was counted in a backup.
pub struct Holds {
    pub keys: u64,
    pub partitions: u64,
    pub bytes: u64,
    pub newest: Version,
}

impl Holds {
    /// For people.
    pub fn lines(&self, out: &mut impl Write, show: Show) -> io::Result<()> {
        let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
        line("holds", counted(self.keys, "key"))?;
        line("partitions", self.partitions.to_string())?;
        line(
            "bytes",
            format!("{} before compression", exactly(self.bytes)),
        )?;
        match self.newest {
            Version::NONE => Ok(()),
            newest => line("newest", format!("{newest}  ({})", show.time(newest))),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Taken apart
// ---------------------------------------------------------------------------------------------

/// What was written, and what a line cannot say.
#[derive(Default)]
struct Exported {
    lines: u64,
    /// Keys that are only locked.
    bare: u64,
    natives: u64,
}

fn export(
    show: Show,
    path: &Path,
    output: &Path,
    history: bool,
    keys: &KeyArgs,
) -> Result<(), Failure> {
    let chain = Chain::open(path, keys_of(keys)?)?;
    // Whoever reads what is written would take a part for all of it.
    let is_long = chain.links().len() > 1;
    let bar = chain.progress(2 + u64::from(is_long));
    chain.check(&bar)?;
    if is_long {
        // Each link is whole; that no key is lacking is known only now.
        chain.each(&bar, &mut |_| Ok(()))?;
    }
    let mut out = Output::open(output, true)?;
    let mut done = Exported::default();
    let mut interner = Interner::default();
    chain.each(&bar, &mut |entry| {
        lines_of(entry, history, &mut interner, &mut out, &mut done)
    })?;
    out.finish()?;
    bar.finish_and_clear();
    // The lines themselves are the output; the count goes beside it.
    if !(output == Path::new("-") && show.json) {
        eprintln!("{}", counted(done.lines, "line"));
    }
    for (count, what) in [
        (done.bare, "that held no more than a lock"),
        (done.natives, "of another type"),
    ] {
        if count > 0 {
            eprintln!("left out: {} {what}", counted(count, "key"));
        }
    }
    Ok(())
}

fn damaged(Damaged(what): Damaged) -> BackupError {
    BackupError::Damaged(what, 0)
}

fn lines_of(
    entry: &Entry<'_>,
    history: bool,
    interner: &mut Interner,
    out: &mut Output,
    done: &mut Exported,
) -> Result<(), Failure> {
    // All of it has been decoded once.
    let unfit = |_| BackupError::Damaged("metadata that is no JSON", 0);
    match entry.content {
        Content::Native(_) => done.natives += 1,
        // What stands for it was found in another link.
        Content::Unchanged(_) => {}
        Content::Definition(bytes) => {
            let defined = Defined {
                name: entry.key.to_vec(),
                definition: v1::decode_definition(bytes).map_err(damaged)?,
                expires_at_ms: entry.expires_ms,
            };
            out.line(&defined.line(entry.db).map_err(unfit)?)?;
            done.lines += 1;
        }
        Content::Record(bytes) => {
            let (record, share) =
                v1::decode_record(bytes, Bounds::HARD, interner).map_err(damaged)?;
            if record.is_bare() {
                done.bare += 1;
            }
            let current = record.current().stamp();
            let kept = record.iter();
            for version in kept.filter(|v| history || v.stamp() == current) {
                let is_current = version.stamp() == current;
                let value = version.value();
                let parts = Parts {
                    key: entry.key,
                    value: value.as_deref(),
                    author: Some(&version.who().author),
                    agent: version.who().agent.as_deref(),
                    metadata: version.meta(),
                    // It is the key that expires, whichever version it had.
                    expires_at_ms: entry.expires_ms.filter(|_| is_current),
                    partition: share.map(|share| share.name).filter(|_| is_current),
                    db: entry.db,
                    version: version.stamp().0,
                };
                out.line(&parts.line().map_err(unfit)?)?;
                done.lines += 1;
            }
        }
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------
// Given to another key
// ---------------------------------------------------------------------------------------------

fn give(show: Show, path: &Path, keys: &KeyArgs) -> Result<(), Failure> {
    let no_keys = || {
        let text = format!("say which keys: --key-file, or the variable {KEYS}");
        Failure::Input(text)
    };
    let ring = keys_of(keys)?.ok_or_else(no_keys)?;
    // Not the link in the place of what it leads to.
    let path = &fs::canonicalize(path).map_err(cannot("read", path))?;
    let (file, found) = open(path)?;
    let reader = Reader::open(BufReader::new(&file), Some(&ring))?;
    let before = reader.key_id().map(str::to_owned);
    let (id, active) = (hex(reader.head().id), ring.active().id());
    drop(reader);
    let rewrapped = before.as_deref() != Some(active);
    if rewrapped {
        rewrite(path, &file, &found, &ring)?;
    }
    if show.json {
        let before = before.map_or(Value::Null, |key| json!(key));
        return Ok(show.object(fields([
            ("id", json!(id)),
            ("key", json!(active)),
            ("key_before", before),
            ("rewrapped", json!(rewrapped)),
        ]))?);
    }
    match rewrapped {
        true => println!(
            "{id} is sealed with {active}, and no longer with {}",
            before.unwrap_or_default()
        ),
        false => println!("{id} was sealed with {active} already"),
    }
    Ok(())
}

/// A file that goes unless it is kept.
struct Draft(PathBuf, bool);

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.1 {
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Writes the backup beside itself, with another envelope, and puts that in its place.
fn rewrite(path: &Path, old: &File, found: &fs::Metadata, ring: &Keyring) -> Result<(), Failure> {
    let (mut lead, mut from) = (Vec::new(), old);
    let start = SeekFrom::Start(0);
    from.seek(start).map_err(cannot("read", path))?;
    let read = from.take(LEAD_MAX as u64).read_to_end(&mut lead);
    read.map_err(cannot("read", path))?;
    let mut random = [0; REWRAP_RANDOM];
    let drawn = getrandom::fill(&mut random);
    drawn.map_err(|e| Failure::Input(format!("the system gives no random bytes: {e}")))?;
    let (front, chunks) = rewrap(&lead, ring, ring.active(), &random)?;

    let mut beside: OsString = path.into();
    beside.push(".rewrap");
    let beside = PathBuf::from(beside);
    let new = new_and_private(&beside).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Failure::Input(format!(
            "{} is there already: another rewrap goes on, or was cut short; then remove it",
            beside.display()
        )),
        _ => cannot("write", &beside)(e),
    })?;
    let mut draft = Draft(beside, false);
    let beside = &draft.0;
    copy(&front, (old, found, chunks), &new).map_err(cannot("write", beside))?;
    // What cannot be opened does not take the place of what can.
    (&new).seek(start).map_err(cannot("read", beside))?;
    let made = Reader::open(BufReader::new(&new), Some(ring))?;
    if made.key_id() != Some(ring.active().id()) {
        let what = "it is not sealed with the key that it was given";
        return Err(BackupError::Damaged(what, 0).into());
    }
    fs::rename(beside, path).map_err(cannot("write", path))?;
    draft.1 = true;
    settle(path).map_err(cannot("write", path))
}

/// Writes how a backup begins, then the chunks of the old one as they are, and has all of it on disk.
fn copy(
    front: &[u8],
    (mut old, found, chunks): (&File, &fs::Metadata, u64),
    mut new: &File,
) -> io::Result<()> {
    let bar = progress(found.len().saturating_sub(chunks));
    old.seek(SeekFrom::Start(chunks))?;
    new.write_all(front)?;
    let copied = io::copy(&mut bar.wrap_read(old), &mut new)?;
    bar.finish_and_clear();
    if chunks.saturating_add(copied) != found.len() {
        return Err(io::Error::other("the file has changed meanwhile"));
    }
    like(new, found)?;
    new.sync_all()
}

/// Has the name of a file on disk.
fn settle(path: &Path) -> io::Result<()> {
    match path.parent() {
        #[cfg(unix)]
        Some(dir) => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
