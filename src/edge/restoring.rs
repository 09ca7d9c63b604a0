//! Restores while they go on: what a backup holds is brought back, key by key, in slices.
//!
//! A thread reads the file to its last byte first, and decodes all that is in it; only then does it read it again and
//! hand over what is to be brought back. So a backup that is damaged, cut, altered or of another key is refused before a
//! key is touched. Each key is decided about by itself, by the same rules as a RESTORE that a client sends: no version
//! that may have been given here is given again. What came of each is counted; a restore that was cut short, by a kill
//! or by CANCEL, is begun again, and finds what it has brought back already.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maos_core::change::Expiry;
use maos_core::codec::backup::{self, BackupError, Content, Entry, Head};
use maos_core::codec::v1;
use maos_core::keyring::Keyring;
use maos_core::partition::{DefineCommand, Definition, Fate, Member};
use maos_core::record::Record;
use maos_core::restored::Restored;
use maos_core::state::Env;
use maos_core::wire::backup::{
    BackupId, BackupRestore, JobKind, JobState, RestoreCounts, StatusReply,
};
use maos_core::wire::partition::{Class, PartitionCreate, Terms};
use maos_core::{Code, Refusal, Stamp, Who};

use super::api::{api, raw};
use super::backup::{pack, unpack, vault, RECORD};
use super::call::flags;
use super::keys::{is_elsewhere, Key, Mode, ShareKey};
use super::lineage::{context, Name};
use super::node::{node, now_us};
use super::vault::Vault;
use super::{failpoint, feed, guard, ledger, log, members, partitions, propagate};
use crate::persist::may_have_seen;

/// How long one slice takes, and milliseconds from one to the next.
const SLICE: Duration = Duration::from_millis(3);
const SLICE_EVERY_MS: i64 = 1;
/// So many parcels wait at most, each of about so many bytes.
const PARCELS: usize = 8;
const PARCEL: usize = 256 << 10;
/// So many jobs are remembered.
const JOBS_MAX: usize = 64;

/// What the thread hands over.
enum Parcel {
    /// The backup is whole, and has so many keys that are wanted.
    Whole(u64),
    Entries(Vec<u8>),
    End,
    Failed(String),
}

/// What was asked for.
struct Request {
    prefixes: Vec<Box<[u8]>>,
    into: Option<Box<[u8]>>,
    dry_run: bool,
    replace: bool,
}

/// The restore that goes on.
struct Doing {
    id: BackupId,
    request: Request,
    from: Receiver<Parcel>,
    cancelled: Arc<AtomicBool>,
    parcel: Vec<u8>,
    /// How far the parcel has been gone through.
    at: usize,
}

/// One that was asked for, and what came of it.
struct Job {
    id: BackupId,
    name: Box<str>,
    instant: Stamp,
    state: JobState,
    began: Instant,
    took: Option<Duration>,
    error: Option<String>,
    keys: u64,
    bytes: u64,
    counts: RestoreCounts<'static>,
}

#[derive(Default)]
struct Restores {
    doing: Option<Doing>,
    jobs: VecDeque<Job>,
}

struct MainThread(RefCell<Option<Restores>>);

// SAFETY: commands, timers and events come on the main thread only.
unsafe impl Sync for MainThread {}

static RESTORES: MainThread = MainThread(RefCell::new(None));

/// Nothing of the server is called inside.
fn with<T>(then: impl FnOnce(&mut Restores) -> T) -> T {
    then(RESTORES.0.borrow_mut().get_or_insert_default())
}

/// Whether a restore goes on.
pub fn is_running() -> bool {
    with(|r| r.doing.is_some())
}

/// Begins to bring back what a backup holds.
///
/// # Errors
/// `BUSY` if a restore goes on, `NOTFOUND` where there is no such backup, `BADBACKUP` if its beginning is bad.
pub fn begin(request: &BackupRestore<'_>) -> Result<BackupId, Refusal> {
    let vault = vault()?;
    may_change()?;
    if is_running() {
        return Err(Refusal::fixed(
            Code::Busy,
            "a restore goes on: begin another one when it is done",
        ));
    }
    let ring = super::backup::keys()?;
    let (file, head) = open(&vault, request.id, ring.as_ref())?;
    let id = BackupId(*uuid::Uuid::new_v4().as_bytes());
    let job = Job {
        id,
        name: head.name.clone(),
        instant: head.instant,
        state: JobState::Running,
        began: Instant::now(),
        took: None,
        error: None,
        keys: 0,
        bytes: 0,
        counts: RestoreCounts::default(),
    };
    let (to, from) = mpsc::sync_channel(PARCELS);
    let cancelled = Arc::new(AtomicBool::new(false));
    let owned = Request {
        prefixes: request.prefixes.iter().map(|p| Box::from(*p)).collect(),
        into: request.into.map(Box::from),
        dry_run: request.dry_run,
        replace: request.replace,
    };
    let (prefixes, partitions_too) = (owned.prefixes.clone(), owned.into.is_none());
    let told = cancelled.clone();
    let read = move || {
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            read(&file, ring.as_ref(), &prefixes, partitions_too, &to, &told)
        }));
        let last = match read {
            Ok(Ok(())) => Parcel::End,
            Ok(Err(why)) => Parcel::Failed(why),
            Err(_) => Parcel::Failed("a fault of its own; the server's log says where".into()),
        };
        // Where nobody takes it nobody wants it.
        let _ = to.send(last);
    };
    let thread = std::thread::Builder::new().name("maos-restore".into());
    thread
        .spawn(read)
        .map_err(|e| Refusal::new(Code::Err, format!("no thread for it: {e}")))?;
    with(|r| {
        while r.jobs.len() >= JOBS_MAX {
            r.jobs.pop_front();
        }
        r.jobs.push_back(job);
        r.doing = Some(Doing {
            id,
            request: owned,
            from,
            cancelled,
            parcel: vec![],
            at: 0,
        });
    });
    arm();
    Ok(id)
}

/// Only a master brings back, and only into a data set that is there.
///
/// # Errors
/// `READONLY`, `BUSY`.
pub fn may_change() -> Result<(), Refusal> {
    let now = flags(ptr::null_mut());
    if now & raw::REDISMODULE_CTX_FLAGS_MASTER == 0 {
        return Err(Refusal::fixed(
            Code::ReadOnly,
            "this node is a replica: ask its master",
        ));
    }
    let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    match now & loading {
        0 => Ok(()),
        _ => Err(Refusal::fixed(Code::Busy, "the data set is being loaded")),
    }
}

/// The file of a backup, with its beginning read.
///
/// # Errors
/// `NOTFOUND`, `BADBACKUP`.
pub fn open(vault: &Vault, id: BackupId, ring: Option<&Keyring>) -> Result<(File, Head), Refusal> {
    let path = vault.find(id).ok_or_else(|| {
        let text =
            format!("there is no backup {id} in maos.backup-dir; MAOS.BACKUP LIST shows all");
        Refusal::new(Code::NotFound, text)
    })?;
    let bad = |e: BackupError| Refusal::new(Code::BadBackup, e.to_string());
    let file = vault.open(&path);
    let file = file.map_err(|why| Refusal::new(Code::BadBackup, why))?;
    let reader = backup::Reader::open(&file, ring).map_err(bad)?;
    if reader.key_id().is_none() && !node().limits.backup_plain {
        return Err(Refusal::fixed(
            Code::BadBackup,
            "the backup is not encrypted, so anybody may have made it: set maos.backup-plain yes to take it all the same",
        ));
    }
    if reader.head().id != id.0 {
        return Err(Refusal::fixed(
            Code::BadBackup,
            "the file has the name of this backup and is another one",
        ));
    }
    let head = reader.head().clone();
    Ok((file, head))
}

/// Reads a backup to its end, and then what is wanted of it. In a thread of its own.
fn read(
    file: &File,
    ring: Option<&Keyring>,
    prefixes: &[Box<[u8]>],
    partitions_too: bool,
    to: &SyncSender<Parcel>,
    cancelled: &AtomicBool,
) -> Result<(), String> {
    let again = || -> Result<_, String> {
        let mut file = file;
        file.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
        backup::Reader::open(file, ring).map_err(|e| e.to_string())
    };
    let gone = |_| "nobody wants it any more".to_string();
    let wanted = |entry: &Entry<'_>| match entry.content {
        Content::Record(_) => {
            prefixes.is_empty() || prefixes.iter().any(|p| entry.key.starts_with(p))
        }
        Content::Definition(_) => partitions_too,
        _ => false,
    };
    // Twice: once to know that all of it is good, and how much of it is wanted.
    let whole = backup::verify(&mut again()?).map_err(|e| e.to_string())?;
    if whole.unchanged > 0 {
        return Err("it goes on from another backup, without which it cannot be restored".into());
    }
    let mut total = 0;
    if prefixes.is_empty() {
        total = whole.records;
    } else {
        let mut reader = again()?;
        while let Some(entry) = reader.next().map_err(|e| e.to_string())? {
            let is_record = matches!(entry.content, Content::Record(_));
            total += u64::from(is_record && wanted(&entry));
        }
    }
    to.send(Parcel::Whole(total)).map_err(gone)?;
    let mut reader = again()?;
    let mut parcel = Vec::with_capacity(PARCEL + 4096);
    while let Some(entry) = reader.next().map_err(|e| e.to_string())? {
        if cancelled.load(Relaxed) {
            return Err("cancelled".into());
        }
        if !wanted(&entry) {
            continue;
        }
        let (bytes, kind) = match entry.content {
            Content::Record(bytes) => (bytes, RECORD),
            Content::Definition(bytes) => (bytes, super::backup::DEFINITION),
            _ => continue,
        };
        let db = i32::try_from(entry.db).unwrap_or(i32::MAX);
        pack(
            &mut parcel,
            db,
            entry.key,
            entry.expires_ms.unwrap_or(0),
            bytes,
            kind,
        );
        if parcel.len() >= PARCEL {
            let full = std::mem::replace(&mut parcel, Vec::with_capacity(PARCEL + 4096));
            to.send(Parcel::Entries(full)).map_err(gone)?;
        }
    }
    to.send(Parcel::Entries(parcel)).map_err(gone)
}

fn arm() {
    // SAFETY: our own context; no data.
    unsafe {
        api!(RedisModule_CreateTimer)(context(0), SLICE_EVERY_MS, Some(tick), ptr::null_mut())
    };
}

unsafe extern "C" fn tick(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let Some(mut doing) = with(|r| r.doing.take()) else {
        return;
    };
    let id = doing.id;
    let ended = guard::run(|| {
        failpoint::hit("restoring");
        doing.slice()
    });
    let ended = ended.unwrap_or(Some(Err(
        "a fault of its own; the server's log says where".into()
    )));
    match ended {
        None => {
            with(|r| r.doing = Some(doing));
            arm();
        }
        Some(how) => {
            doing.cancelled.store(true, Relaxed);
            end(id, how);
        }
    }
}

fn end(id: BackupId, how: Result<(), String>) {
    with(|r| {
        let Some(job) = r.jobs.iter_mut().find(|job| job.id == id) else {
            return;
        };
        job.took = Some(job.began.elapsed());
        match how {
            Ok(()) => job.state = JobState::Done,
            Err(why) => {
                log::warning(&format!("the restore {id} has failed: {why}"));
                job.state = JobState::Failed;
                job.error = Some(why);
            }
        }
    });
}

/// The data set is replaced, or its databases change places.
pub fn disturbed(why: &str) {
    let Some(doing) = with(|r| r.doing.take()) else {
        return;
    };
    doing.cancelled.store(true, Relaxed);
    end(doing.id, Err(why.into()));
}

/// Ends the restore with this id. False if it does not go on.
pub fn cancel(id: BackupId) -> bool {
    let Some(doing) = with(|r| match &r.doing {
        Some(doing) if doing.id == id => r.doing.take(),
        _ => None,
    }) else {
        return false;
    };
    doing.cancelled.store(true, Relaxed);
    with(|r| {
        if let Some(job) = r.jobs.iter_mut().find(|job| job.id == id) {
            job.took = Some(job.began.elapsed());
            job.state = JobState::Cancelled;
        }
    });
    true
}

/// How a restore stands that is remembered.
pub fn status(id: BackupId) -> Option<StatusReply<'static>> {
    with(|r| {
        let job = r.jobs.iter().find(|job| job.id == id)?;
        let took = job.took.unwrap_or_else(|| job.began.elapsed());
        Some(StatusReply {
            id,
            name: job.name.as_bytes().to_vec().into(),
            kind: JobKind::Restore,
            state: job.state,
            keys: job.keys,
            bytes: job.bytes,
            instant: job.instant,
            millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error: job
                .error
                .as_ref()
                .map(|why| why.clone().into_bytes().into()),
            restore: Some(job.counts.clone()),
            rollback: None,
        })
    })
}

/// What becomes of one key.
enum Became {
    Restored(usize),
    Kept,
    Same,
    Expired,
    Elsewhere,
    Refused(String),
}

impl Doing {
    /// Goes on for a moment. `Some`: that was the end.
    fn slice(&mut self) -> Option<Result<(), String>> {
        if let Err(refusal) = may_change() {
            return Some(Err(refusal.text.into_owned()));
        }
        // While nothing may be sent nothing is brought back.
        if !propagate::may_tell() {
            return None;
        }
        let start = Instant::now();
        while start.elapsed() < SLICE {
            if self.at >= self.parcel.len() {
                match self.from.try_recv() {
                    Ok(Parcel::Whole(total)) => self.count(|job| job.counts.total = total),
                    Ok(Parcel::Entries(bytes)) => (self.parcel, self.at) = (bytes, 0),
                    Ok(Parcel::End) => return Some(Ok(())),
                    Ok(Parcel::Failed(why)) => return Some(Err(why)),
                    Err(TryRecvError::Empty) => return None,
                    Err(TryRecvError::Disconnected) => {
                        return Some(Err("its thread is gone".into()));
                    }
                }
                continue;
            }
            let rest = &self.parcel[self.at..];
            let Some(entry) = unpack(rest).next() else {
                return Some(Err("a parcel that makes no sense".into()));
            };
            let len = packed_len(&entry);
            let is_record = matches!(entry.content, Content::Record(_));
            let became = self.request.bring(&entry);
            self.at += len;
            self.count(|job| job.note(became, is_record));
        }
        None
    }

    fn count(&self, then: impl FnOnce(&mut Job)) {
        with(|r| {
            if let Some(job) = r.jobs.iter_mut().find(|job| job.id == self.id) {
                then(job);
            }
        });
    }
}

fn packed_len(entry: &Entry<'_>) -> usize {
    let bytes = match entry.content {
        Content::Record(bytes) | Content::Definition(bytes) => bytes.len(),
        _ => 0,
    };
    super::backup::LEADING + entry.key.len() + bytes
}

impl Job {
    fn note(&mut self, became: Became, is_record: bool) {
        let n = u64::from(is_record);
        let counts = &mut self.counts;
        match became {
            Became::Restored(bytes) => {
                self.keys += n;
                self.bytes += bytes as u64;
            }
            Became::Kept => counts.kept += n,
            Became::Same => counts.same += n,
            Became::Expired => counts.expired += n,
            Became::Elsewhere => counts.elsewhere += n,
            Became::Refused(why) => {
                counts.refused += 1;
                counts.reason.get_or_insert(why.into_bytes().into());
            }
        }
    }
}

impl Request {
    /// The name under which a key is brought back.
    fn name<'k>(&self, key: &'k [u8]) -> std::borrow::Cow<'k, [u8]> {
        let Some(into) = &self.into else {
            return key.into();
        };
        let prefix = self.prefixes.first().map_or(0, |p| p.len());
        [into, key.get(prefix..).unwrap_or_default()]
            .concat()
            .into()
    }

    fn bring(&self, entry: &Entry<'_>) -> Became {
        failpoint::hit("bring");
        let Ok(db) = i32::try_from(entry.db) else {
            return Became::Refused("a database that there is not".into());
        };
        // SAFETY: our own context.
        let is_there =
            unsafe { api!(RedisModule_SelectDb)(context(0), db) == raw::REDISMODULE_OK as c_int };
        if !is_there {
            return Became::Refused(format!("this server has no database {db}"));
        }
        let name = self.name(entry.key);
        if is_elsewhere(db, &name) {
            return Became::Elsewhere;
        }
        let expires_ms = entry.expires_ms.unwrap_or(0);
        if expires_ms > 0 && expires_ms <= now_us() / 1000 {
            return Became::Expired;
        }
        match entry.content {
            Content::Record(bytes) => self.bring_record(db, &name, bytes, expires_ms),
            Content::Definition(bytes) => self.bring_definition(db, &name, bytes, expires_ms),
            _ => Became::Refused("an entry that is not brought back".into()),
        }
    }

    fn bring_record(&self, db: i32, name: &[u8], bytes: &[u8], expires_ms: u64) -> Became {
        let now = now_us();
        let decoded = {
            let node = &mut *node();
            let bounds = v1::Bounds {
                newest: Stamp(now.saturating_add(node.limits.drift_us))
                    .max(node.clock.last())
                    .min(Stamp::MAX),
                ..v1::Bounds::HARD
            };
            v1::decode_record(bytes, bounds, &mut node.interner).map(|(mut record, share)| {
                match self.into {
                    None => node.join(&mut record, share, name.len()),
                    Some(_) => record.set_member(Member::NONE),
                }
                record
            })
        };
        let mut record = match decoded {
            Ok(record) => record,
            Err(e) => return Became::Refused(e.0.into()),
        };
        record.unlock();
        let ctx = context(db);
        let string = Name::new(ctx, name);
        let (was, live) = (record.current().stamp(), record.live().is_some());
        let again = live && may_have_seen(db, name, was, &record);
        // SAFETY: our own context; the string outlives the key, which nobody else has open.
        let opened = unsafe { Key::open(ctx, string.string, Mode::Write) };
        let Ok(mut key) = opened else {
            return match self.replace {
                true => Became::Refused("a key holds a value of another type".into()),
                false => Became::Kept,
            };
        };
        let mut replaced = 0;
        if let Some(held) = key.record() {
            if held == &record || is_brought(held, &record) {
                return Became::Same;
            }
            let present =
                |g: &maos_core::lock::Guard| g.holders.iter().any(|h| h.is_present(now / 1000));
            if held.guard().is_some_and(present) {
                return match self.replace || held.live().is_none() {
                    true => Became::Refused("a key is locked".into()),
                    false => Became::Kept,
                };
            }
            // A deletion is not brought back over what is there.
            let stays = held.live().is_some() && !self.replace;
            if stays || !live {
                return Became::Kept;
            }
            replaced = held.charge();
        }
        let mut made = None;
        if again {
            let next = node().next_stamp(now);
            if next > Stamp::MAX {
                return Became::Refused("no version is left above its own".into());
            }
            let restored = Restored { was, now: next };
            restored.apply(&mut record);
            made = Some(next);
        }
        if let Err(refusal) = node().admit_whole(db, name, &record, replaced) {
            return Became::Refused(refusal.to_string());
        }
        let size = record.bytes();
        if self.dry_run {
            return Became::Restored(size);
        }
        members::entered(&record, db, name);
        guard::applying(|| {
            key.bring(record, expires_ms);
            let node = &mut *node();
            match made {
                Some(stamp) => node.committed(stamp, stamp, now),
                None => {
                    let newest = key.record().map_or(Stamp::NONE, Record::newest);
                    node.observe(newest, now);
                }
            }
            if let Some(record) = key.record() {
                let encoded = node.encoded(record);
                propagate::brought(ctx, name, encoded, expires_ms);
            }
        });
        drop(key);
        feed::brought(db, name);
        Became::Restored(size)
    }

    fn bring_definition(&self, db: i32, name: &[u8], bytes: &[u8], expires_ms: u64) -> Became {
        let definition = match v1::decode_definition(bytes) {
            Ok(definition) => definition,
            Err(e) => return Became::Refused(e.0.into()),
        };
        let now = now_us();
        let ctx = context(db);
        let string = Name::new(ctx, name);
        // SAFETY: our own context; the string outlives the key, which nobody else has open.
        let Ok(mut key) = (unsafe { ShareKey::open(ctx, string.string, Mode::Write) }) else {
            return Became::Refused("the key of a partition holds something else".into());
        };
        if key.definition().is_some() {
            return Became::Kept;
        }
        let prefixes = definition.prefixes.iter().map(|p| &**p).collect();
        let create = PartitionCreate {
            name,
            terms: terms_of(&definition, prefixes, expires_ms, now / 1000),
        };
        let (fate, stamp) = {
            let node = &mut *node();
            let stamp = node.next_stamp(now);
            let env = Env {
                now_us: now,
                stamp,
                beyond: node.clock.beyond(),
                who: Who::nobody(),
                limits: &node.limits,
                shares: &node.shares,
                answer: None,
            };
            match create.decide(None, &ledger::Here, &env) {
                Ok(fate) => (fate, stamp),
                Err(refusal) => return Became::Refused(refusal.to_string()),
            }
        };
        if self.dry_run {
            return Became::Restored(0);
        }
        if let Fate::Defined(made, expiry) = fate {
            let expires_ms = match expiry {
                Expiry::At(ms) => ms,
                _ => 0,
            };
            partitions::define(ctx, name, &mut key, made, expires_ms, (stamp, now));
        }
        Became::Restored(0)
    }
}

/// Whether what a key holds was brought back from the same before: with a version of its own on top.
fn is_brought(held: &Record, record: &Record) -> bool {
    let below = held.len().checked_sub(2).and_then(|n| held.nth(n));
    let (top, live) = (held.live(), record.live());
    let same = top
        .zip(live)
        .is_some_and(|(a, b)| a.value() == b.value() && a.meta() == b.meta());
    same && below.is_some_and(|v| v.stamp() == record.current().stamp())
}

fn terms_of<'d>(
    d: &'d Definition,
    prefixes: Vec<&'d [u8]>,
    expires_ms: u64,
    now_ms: u64,
) -> Terms<'d> {
    let said = |n: u64| Some(n).filter(|n| *n > 0);
    Terms {
        bytes: Some(d.quota),
        class: Some(d.class),
        agent: d.agent.as_deref(),
        prefixes: Some(prefixes).filter(|p: &Vec<_>| !p.is_empty()),
        ttl_ms: match d.class {
            Class::Temporary => said(expires_ms.saturating_sub(now_ms)),
            _ => said(d.key_ttl_ms),
        },
        on_full: Some(d.on_full),
        on_conflict: d.on_conflict.as_ref().map(|c| c.strategy()),
        history: said(d.history),
        max_age_ms: said(d.max_age_ms),
        max_value: said(d.max_value),
    }
}
