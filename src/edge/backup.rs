//! Backups while they are made: all records as they are at one instant, however long it takes to write them down and
//! whatever happens to them meanwhile.
//!
//! Each record bears a mark: whether the backup that is going on has it, or need not have it because it came after the
//! instant. A walk over all keys, in slices, hands those without the mark to a thread that writes them down. Whatever
//! is about to change or to remove a record that has no mark yet hands it over first. So each is written down as it was
//! at the instant, once, whatever becomes of it; nothing is forked, and nothing copied that does not change but once.
//!
//! Who is about to change a record:
//!
//! - a command of ours: where the change is applied;
//! - a command of the server's own (DEL, EXPIRE, RENAME, FLUSHALL ...): before it is run, by the keys among its words,
//!   and before the server removes a key, where it says so before (Redis 7.2, Valkey);
//! - a flush: before it.
//!
//! On Redis 7.0 the server says that it removes a key only when its expiry is forgotten already. What it removes because
//! its time is over need not be in the backup. What else it removes by itself (it evicts it, its slot leaves, a transaction
//! that was queued before the instant deletes it) is in it without an expiry. And on every server: an expiry that such a
//! transaction changes may be in the backup already. (README)

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::BufWriter;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use maos_core::codec::backup::{Content, Entry, Head, Sealer, Writer};
use maos_core::codec::v1::{self, Share};
use maos_core::keyring::Keyring;
use maos_core::partition::Place;
use maos_core::record::Record;
use maos_core::wire::backup::{BackupCreate, BackupId, JobKind, JobState, StatusReply};
use maos_core::{Code, Refusal, Stamp};

use super::api::{api, raw};
use super::call::{bytes_of, flags};
use super::keys::{Key, Mode};
use super::lineage::context;
use super::metrics::METRICS;
use super::node::{node, now_us};
use super::vault::{self, Unfinished, Vault};
use super::{config, failpoint, guard, log, nodes, partitions, restoring};
use crate::persist;

/// How long one slice of the walk takes, and milliseconds from one to the next.
const SLICE: Duration = Duration::from_micros(700);
const SLICE_EVERY_MS: i64 = 1;
/// While so many bytes wait for the thread the walk does not go on.
const AHEAD: usize = 16 << 20;
/// So many bytes are handed to the thread at once.
const PARCEL: usize = 128 << 10;
/// So many jobs are remembered.
const JOBS_MAX: usize = 64;

const FAULT: &str = "a fault of its own; the server's log says where";

/// Whether what is about to change is to be handed over first.
static KEEPS: AtomicBool = AtomicBool::new(false);
/// The mark of the records that the backup has, or need not have.
static MARK: AtomicBool = AtomicBool::new(false);
/// A record could not be handed over.
static MISSED: AtomicBool = AtomicBool::new(false);

/// What the thread and the main thread tell each other.
#[derive(Default)]
struct Shared {
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    keys: AtomicU64,
    bytes: AtomicU64,
    /// Nobody wants it any more.
    cancelled: AtomicBool,
    /// What came of it.
    ended: Mutex<Option<Result<(), String>>>,
}

/// What is handed to the thread.
enum Parcel {
    /// Entries, one after the other: see [`pack`].
    Entries(Vec<u8>),
    /// There are no more.
    End,
}

/// The backup that is being made.
struct Making {
    id: BackupId,
    shared: Arc<Shared>,
    to: Sender<Parcel>,
    prefixes: Vec<Box<[u8]>>,
    /// What the partitions are called, as of the instant: who asks may hold the node.
    names: HashMap<Place, Arc<[u8]>>,
    /// What waits to be handed over.
    parcel: Vec<u8>,
    /// Where the last entry begins in it, if that key was removed and it is not known why.
    unsure: Option<usize>,
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
    shared: Arc<Shared>,
}

/// The walk over all keys.
struct Walk {
    cursor: *mut raw::RedisModuleScanCursor,
    db: c_int,
    armed: bool,
}

#[derive(Default)]
struct Backups {
    making: Option<Making>,
    jobs: VecDeque<Job>,
    /// It goes on until every record bears the mark, though nobody may want the backup any more.
    walk: Option<Walk>,
    /// Ended, and not yet heard of from its thread.
    ending: Option<Arc<Shared>>,
    made: u64,
    failed: u64,
    last_ms: u64,
    filter: Option<*mut raw::RedisModuleCommandFilter>,
}

struct MainThread(RefCell<Option<Backups>>);

// SAFETY: commands, timers, events, filters and the callbacks of values come on the main thread only.
unsafe impl Sync for MainThread {}

static BACKUPS: MainThread = MainThread(RefCell::new(None));

/// Nothing that may remove a key is called inside.
fn with<T>(then: impl FnOnce(&mut Backups) -> T) -> T {
    then(BACKUPS.0.borrow_mut().get_or_insert_default())
}

/// What INFO says of backups.
pub struct Numbers {
    /// One is being made, or a restore goes on.
    pub running: bool,
    /// Made since the start.
    pub made: u64,
    /// Failed since the start.
    pub failed: u64,
    /// When the last one was done, in milliseconds of unix time.
    pub last_ms: u64,
}

/// What INFO says of backups.
pub fn numbers() -> Numbers {
    with(|b| Numbers {
        running: b.making.is_some() || restoring::is_running(),
        made: b.made,
        failed: b.failed,
        last_ms: b.last_ms,
    })
}

/// The vault of this node.
///
/// # Errors
/// If there is none, or it cannot be used.
pub fn vault() -> Result<Vault, Refusal> {
    let dir = config::text(config::BACKUP_DIR);
    if dir.is_empty() {
        return Err(maos_core::wire::backup::NO_BACKUPS);
    }
    Vault::new(&dir).map_err(|why| Refusal::new(Code::Err, why))
}

/// The keys of this node.
///
/// # Errors
/// If they cannot be used.
pub fn keys() -> Result<Option<Keyring>, Refusal> {
    let ring = vault::keys(&config::text(config::BACKUP_KEY_FILE));
    ring.map_err(|why| Refusal::new(Code::Err, why))
}

/// Which node this is, to be put down in a backup.
fn node_id() -> Vec<u8> {
    // SAFETY: it has no arguments; in a cluster the server gives a name of so many characters that stays.
    unsafe {
        let id = api!(RedisModule_GetMyClusterID)();
        if !id.is_null() {
            let bytes = std::slice::from_raw_parts(id.cast::<u8>(), nodes::NAME);
            return bytes.to_vec();
        }
    }
    vault::host()
}

/// Begins a backup of what there is now.
///
/// # Errors
/// `BUSY` if one is being made, and whatever keeps it from being begun.
pub fn create(request: &BackupCreate<'_>) -> Result<BackupId, Refusal> {
    let vault = vault()?;
    let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    if flags(ptr::null_mut()) & loading != 0 {
        return Err(busy("the data set is being loaded: begin when it is there"));
    }
    if let Some(what) = with(|b| match (&b.making, &b.walk, &b.ending) {
        (Some(making), ..) => Some(format!("the backup {} is being made", making.id)),
        (None, Some(_), _) => Some("what the backup before has marked is being cleared".into()),
        (.., Some(_)) => Some("the backup before is being given up".into()),
        _ => None,
    }) {
        return Err(busy(&format!("{what}: begin another one when it is done")));
    }
    let ring = keys()?;
    let fault = |why: String| Refusal::new(Code::Err, why);
    if ring.is_none() && !node().limits.backup_plain {
        return Err(fault("no key to encrypt backups with: set maos.backup-key-file in redis.conf, or maos.backup-plain yes for files that anybody can read".into()));
    }
    let name = String::from_utf8_lossy(request.name).into_owned();
    let id = BackupId(*uuid::Uuid::new_v4().as_bytes());
    let random = vault::random().map_err(fault)?;
    let file = vault.begin(&name, id).map_err(fault)?;
    let instant = {
        let node = &mut *node();
        let now = now_us();
        let stamp = node.next_stamp(now);
        node.took(stamp, now);
        stamp
    };
    let head = Head {
        id: id.0,
        name: name.clone().into(),
        node: node_id().into(),
        instant,
        prefixes: request.prefixes.iter().map(|p| Box::from(*p)).collect(),
        parent: None,
        natives: false,
        made_with: env!("CARGO_PKG_VERSION").into(),
    };
    let (to, parcels) = mpsc::channel();
    let shared = Arc::new(Shared::default());
    let job = Job {
        id,
        name: name.into(),
        instant,
        state: JobState::Running,
        began: Instant::now(),
        took: None,
        error: None,
        shared: shared.clone(),
    };
    let prefixes = head.prefixes.clone();
    let told = shared.clone();
    let write = move || {
        let wrote = catch_unwind(AssertUnwindSafe(|| {
            write(file, &vault, head, ring.as_ref(), &random, &parcels, &told)
        }));
        let wrote = wrote.unwrap_or_else(|_| {
            METRICS.panics.one();
            Err(FAULT.into())
        });
        *told.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(wrote);
    };
    let thread = std::thread::Builder::new().name("maos-backup".into());
    thread
        .spawn(write)
        .map_err(|e| fault(format!("no thread for it: {e}")))?;
    let mut parcel = Vec::with_capacity(PARCEL + 4096);
    for (name, definition, db) in partitions::local() {
        let (bytes, ends_ms) = (
            v1::encode_definition(&definition),
            partitions::expires_ms(db, &name),
        );
        pack(&mut parcel, db, &name, ends_ms, &bytes, DEFINITION);
    }
    let names = {
        let node = node();
        let named = node
            .shares
            .entries()
            .map(|(place, entry)| (place, entry.name.clone()));
        named.collect()
    };
    with(|b| {
        b.making = Some(Making {
            id,
            shared,
            to,
            prefixes,
            names,
            parcel,
            unsure: None,
        });
        // SAFETY: it has no arguments.
        let cursor = unsafe { api!(RedisModule_ScanCursorCreate)() };
        b.walk = Some(Walk {
            cursor,
            db: 0,
            armed: false,
        });
        while b.jobs.len() >= JOBS_MAX {
            b.jobs.pop_front();
        }
        b.jobs.push_back(job);
    });
    MARK.store(!MARK.load(Relaxed), Relaxed);
    KEEPS.store(true, Relaxed);
    listen(true);
    arm();
    Ok(id)
}

fn busy(why: &str) -> Refusal {
    Refusal::new(Code::Busy, why.to_string())
}

/// Has the commands of others looked at before they are run, or not any more.
fn listen(on: bool) {
    let ctx = context(0);
    let filter = with(|b| b.filter.take());
    // SAFETY: our own context; a filter of ours, which is registered.
    unsafe {
        match filter {
            Some(filter) if !on => {
                api!(RedisModule_UnregisterCommandFilter)(ctx, filter);
            }
            Some(filter) => with(|b| b.filter = Some(filter)),
            None if on => {
                let made = api!(RedisModule_RegisterCommandFilter)(ctx, Some(filtered), 0);
                with(|b| b.filter = (!made.is_null()).then_some(made));
            }
            None => {}
        }
    }
}

/// The bytes of one entry as it is handed over: where the key and what it holds end, when it expires, in which
/// database, what it is.
pub const LEADING: usize = 4 + 4 + 8 + 4 + 1;
/// It is a record.
pub const RECORD: u8 = 0;
/// It is the definition of a partition.
pub const DEFINITION: u8 = 1;

pub fn pack(to: &mut Vec<u8>, db: i32, key: &[u8], expires_ms: u64, bytes: &[u8], kind: u8) {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    to.extend_from_slice(&len(key));
    to.extend_from_slice(&len(bytes));
    to.extend_from_slice(&expires_ms.to_le_bytes());
    to.extend_from_slice(&db.to_le_bytes());
    to.push(kind);
    to.extend_from_slice(key);
    to.extend_from_slice(bytes);
}

/// Takes what was [packed](pack) apart again.
pub fn unpack(bytes: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (lead, after) = rest.split_at_checked(LEADING)?;
        let word = |at: usize| u32::from_le_bytes(lead[at..at + 4].try_into().unwrap_or_default());
        let expires_ms = u64::from_le_bytes(lead[8..16].try_into().unwrap_or_default());
        let (key, after) = after.split_at_checked(word(0) as usize)?;
        let (bytes, after) = after.split_at_checked(word(4) as usize)?;
        rest = after;
        Some(Entry {
            db: word(16),
            key,
            expires_ms: Some(expires_ms).filter(|ms| *ms > 0),
            content: match lead[20] {
                DEFINITION => Content::Definition(bytes),
                _ => Content::Record(bytes),
            },
        })
    })
}

/// Writes a backup down. In a thread of its own.
fn write(
    file: Unfinished,
    vault: &Vault,
    head: Head,
    ring: Option<&Keyring>,
    random: &[u8; maos_core::codec::backup::SEAL_RANDOM],
    parcels: &Receiver<Parcel>,
    shared: &Shared,
) -> Result<(), String> {
    let wrote = write_all(&file.file, head, ring, random, parcels, shared);
    match wrote {
        Ok(()) => {
            failpoint::hit("backup finish");
            file.finish(vault)
        }
        Err(why) => {
            file.give_up();
            Err(why)
        }
    }
}

fn write_all(
    file: &File,
    head: Head,
    ring: Option<&Keyring>,
    random: &[u8; maos_core::codec::backup::SEAL_RANDOM],
    parcels: &Receiver<Parcel>,
    shared: &Shared,
) -> Result<(), String> {
    failpoint::hit("backup write");
    let sealer = match ring {
        Some(ring) => Sealer::with_key(ring.active(), random),
        None => Sealer::plain(),
    };
    let out = BufWriter::with_capacity(1 << 20, file);
    let mut writer = Writer::create(out, head, sealer).map_err(|e| e.to_string())?;
    loop {
        let parcel = parcels.recv();
        if shared.cancelled.load(Relaxed) {
            return Err("cancelled".into());
        }
        let bytes = match parcel {
            Ok(Parcel::Entries(bytes)) => bytes,
            Ok(Parcel::End) => break,
            Err(_) => return Err("it was given up".into()),
        };
        for entry in unpack(&bytes) {
            writer.entry(&entry).map_err(|e| e.to_string())?;
            if let Content::Record(_) = entry.content {
                shared.keys.fetch_add(1, Relaxed);
            }
        }
        shared.bytes.fetch_add(bytes.len() as u64, Relaxed);
        shared.waiting.fetch_sub(bytes.len(), Relaxed);
    }
    let (out, _) = writer.finish().map_err(|e| e.to_string())?;
    out.into_inner().map_err(|e| e.to_string())?;
    Ok(())
}

impl Making {
    fn wants(&self, key: &[u8]) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|p| key.starts_with(p))
    }

    /// Hands over what waits.
    fn send(&mut self) {
        if self.parcel.is_empty() {
            return;
        }
        let parcel = std::mem::replace(&mut self.parcel, Vec::with_capacity(PARCEL + 4096));
        self.shared.waiting.fetch_add(parcel.len(), Relaxed);
        // Where nobody takes it any more the thread has said why.
        let _ = self.to.send(Parcel::Entries(parcel));
    }
}

/// Whether something is to be handed over before it changes.
#[inline(always)]
pub fn keeps() -> bool {
    KEEPS.load(Relaxed)
}

/// A record comes to be: what is going on need not have it.
#[inline]
pub fn born(record: &mut Record) {
    record.set_backed(MARK.load(Relaxed));
}

/// A record is about to change, or to go. To be called where [`keeps`] says so.
#[cold]
pub fn keep(db: i32, key: &[u8], expires_ms: u64, record: &mut Record) {
    let mark = MARK.load(Relaxed);
    if record.is_backed() == mark {
        return;
    }
    record.set_backed(mark);
    take(db, key, expires_ms, record);
}

/// Hands a record over.
fn take(db: i32, key: &[u8], expires_ms: u64, record: &Record) {
    // Who only holds a lock has no state.
    if record.is_bare() {
        return;
    }
    let Ok(mut backups) = BACKUPS.0.try_borrow_mut() else {
        MISSED.store(true, Relaxed);
        return;
    };
    let Some(making) = backups.as_mut().and_then(|b| b.making.as_mut()) else {
        return;
    };
    if !making.wants(key) {
        return;
    }
    let start = making.parcel.len();
    making.unsure = None;
    making.parcel.resize(start + LEADING, 0);
    making.parcel.extend_from_slice(key);
    let from = making.parcel.len();
    let name = making.names.get(&record.member().place());
    v1::encode_record(
        record,
        Share::of(record, name.map(|n| &**n)),
        &mut making.parcel,
    );
    let len = making.parcel.len() - from;
    let mut lead = Vec::with_capacity(LEADING);
    pack(&mut lead, db, &[], expires_ms, &[], RECORD);
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    lead[0..4].copy_from_slice(&size(key.len()));
    lead[4..8].copy_from_slice(&size(len));
    making.parcel[start..start + LEADING].copy_from_slice(&lead);
    if making.parcel.len() >= PARCEL {
        making.send();
        let waiting = making.shared.waiting.load(Relaxed);
        if waiting > config::limits().backup_buffer {
            let why = format!("{waiting} bytes wait to be written, more than maos.backup-buffer-bytes: the disk is too slow for what is written meanwhile");
            if let Some(b) = backups.as_mut() {
                b.end(Err(why));
            }
        }
    }
}

/// A key has been removed, and when it would have expired is not known any more.
#[cold]
pub fn unlinked(db: i32, key: &[u8], record: &mut Record) {
    if record.is_backed() == MARK.load(Relaxed) {
        return;
    }
    let start = held();
    keep(db, key, 0, record);
    // Unless it was handed over with others.
    with_making(|making| {
        making.unsure = start.filter(|at| *at < making.parcel.len());
    });
}

/// The key that was removed last had come to its time: it need not be in the backup.
pub fn expired() {
    with_making(|making| {
        if let Some(start) = making.unsure.take() {
            making.parcel.truncate(start);
        }
    });
}

/// How much waits to be handed over.
fn held() -> Option<usize> {
    let mut len = None;
    with_making(|making| len = Some(making.parcel.len()));
    len
}

fn with_making(then: impl FnOnce(&mut Making)) {
    let Ok(mut backups) = BACKUPS.0.try_borrow_mut() else {
        return;
    };
    if let Some(making) = backups.as_mut().and_then(|b| b.making.as_mut()) {
        then(making);
    }
}

/// A key is about to be removed or altered by somebody else: its record is handed over first.
pub fn keep_key(db: i32, name: *mut raw::RedisModuleString) {
    let ctx = context(db);
    // SAFETY: our own context and a live string; nobody else has the key open.
    let Ok(mut key) = (unsafe { Key::open(ctx, name, Mode::Look) }) else {
        return;
    };
    key.keep_for_backup();
}

unsafe extern "C" fn filtered(filter: *mut raw::RedisModuleCommandFilterCtx) {
    guard::run(|| {
        // SAFETY: the server's filter, in its callback; its arguments live through it.
        unsafe {
            let count = api!(RedisModule_CommandFilterArgsCount)(filter);
            let arg = |n| api!(RedisModule_CommandFilterArgGet)(filter, n);
            if count < 2 {
                return;
            }
            let name = bytes_of(arg(0));
            if name
                .get(..5)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"maos."))
            {
                return;
            }
            let mut db = 0;
            // A filter is not told the database: of all that hold something, any may be meant.
            while api!(RedisModule_SelectDb)(context(0), db) == raw::REDISMODULE_OK as c_int {
                if api!(RedisModule_DbSize)(context(db)) > 0 {
                    (1..count).for_each(|n| keep_key(db, arg(n)));
                }
                db += 1;
            }
        }
    });
}

/// Keys are about to go, all of a database or of all.
pub fn flushes() {
    if !keeps() {
        return;
    }
    // What is left to do is done at once: the server takes all keys away as soon as this returns.
    log::notice(
        "all keys go while a backup is made: what it does not have yet is handed over first",
    );
    while with(|b| b.walk.is_some()) && keeps() {
        if !walk_for(Duration::from_millis(100), true) {
            break;
        }
    }
}

/// The data set is replaced, or its databases change places: what is being made cannot be finished.
pub fn disturbed(why: &str) {
    with(|b| {
        if b.making.is_some() {
            b.end(Err(why.into()));
        }
    });
    super::restoring::disturbed(why);
    super::rolling::disturbed(why);
}

impl Backups {
    /// The backup comes to its end here: all has been handed over, or it is given up.
    fn end(&mut self, how: Result<(), String>) {
        KEEPS.store(false, Relaxed);
        let Some(mut making) = self.making.take() else {
            return;
        };
        self.ending = Some(making.shared.clone());
        match how {
            Ok(()) => {
                making.send();
                let _ = making.to.send(Parcel::End);
            }
            Err(why) => {
                making.shared.cancelled.store(true, Relaxed);
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == making.id) {
                    job.fail(why);
                }
            }
        }
    }

    /// Whether the thread has told what came of it.
    fn hear(&mut self) {
        let Some(shared) = self
            .ending
            .clone()
            .or(self.making.as_ref().map(|m| m.shared.clone()))
        else {
            return;
        };
        let Some(ended) = shared
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return;
        };
        // Before all was handed over, if it failed.
        if self
            .making
            .as_ref()
            .is_some_and(|m| Arc::ptr_eq(&m.shared, &shared))
        {
            self.making = None;
            KEEPS.store(false, Relaxed);
        }
        self.ending = None;
        let Some(job) = self
            .jobs
            .iter_mut()
            .find(|job| Arc::ptr_eq(&job.shared, &shared))
        else {
            return;
        };
        if job.state != JobState::Running {
            return;
        }
        match ended {
            Ok(()) => {
                job.state = JobState::Done;
                job.took = Some(job.began.elapsed());
                self.made += 1;
                self.last_ms = now_us() / 1000;
            }
            Err(why) => {
                log::warning(&format!("the backup {} has failed: {why}", job.id));
                job.fail(why);
                self.failed += 1;
            }
        }
    }
}

impl Job {
    fn fail(&mut self, why: String) {
        self.state = JobState::Failed;
        self.took = Some(self.began.elapsed());
        self.error = Some(why);
    }

    fn reply(&self) -> StatusReply<'static> {
        let took = self.took.unwrap_or_else(|| self.began.elapsed());
        StatusReply {
            id: self.id,
            name: self.name.as_bytes().to_vec().into(),
            kind: JobKind::Create,
            state: self.state,
            keys: self.shared.keys.load(Relaxed),
            bytes: self.shared.bytes.load(Relaxed),
            instant: self.instant,
            millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            error: self
                .error
                .as_ref()
                .map(|why| why.clone().into_bytes().into()),
            restore: None,
            rollback: None,
        }
    }
}

/// How a job stands that is remembered.
pub fn status(id: BackupId) -> Option<StatusReply<'static>> {
    with(|b| {
        b.hear();
        b.jobs.iter().find(|job| job.id == id).map(Job::reply)
    })
}

/// Ends the backup with this id. False if it is not being made.
pub fn cancel(id: BackupId) -> bool {
    with(|b| {
        let is_it = b.making.as_ref().is_some_and(|making| making.id == id);
        if is_it {
            b.end(Err(String::new()));
            if let Some(job) = b.jobs.iter_mut().find(|job| job.id == id) {
                job.state = JobState::Cancelled;
                job.error = None;
            }
        }
        is_it
    })
}

/// Whether the backup with this id is being made.
pub fn is_making(id: BackupId) -> bool {
    with(|b| {
        let running = |job: &Job| job.id == id && job.state == JobState::Running;
        b.jobs.iter().any(running)
    })
}

fn arm() {
    let first = with(|b| match &mut b.walk {
        Some(walk) => !std::mem::replace(&mut walk.armed, true),
        None => b.ending.is_some(),
    });
    if first {
        // SAFETY: our own context; no data.
        unsafe {
            api!(RedisModule_CreateTimer)(context(0), SLICE_EVERY_MS, Some(tick), ptr::null_mut())
        };
    }
}

unsafe extern "C" fn tick(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let went = guard::run(|| {
        with(|b| {
            if let Some(walk) = &mut b.walk {
                walk.armed = false;
            }
            b.hear();
        });
        failpoint::hit("backup tick");
        if MISSED.swap(false, Relaxed) {
            with(|b| b.end(Err(FAULT.into())));
        }
        let ahead = with(|b| {
            b.making
                .as_ref()
                .map_or(0, |m| m.shared.waiting.load(Relaxed))
        });
        if ahead < AHEAD {
            walk_for(SLICE, false);
        }
    });
    if went.is_none() {
        with(|b| b.end(Err(FAULT.into())));
    }
    if !keeps() {
        listen(false);
    }
    arm();
}

/// Walks on for so long. False if that was the end.
fn walk_for(budget: Duration, all: bool) -> bool {
    let start = Instant::now();
    let Some((cursor, mut db)) = with(|b| b.walk.as_ref().map(|w| (w.cursor, w.db))) else {
        return false;
    };
    let ctx = context(db);
    while all || start.elapsed() < budget {
        // SAFETY: our own context and cursor; `look` is given nothing back.
        let more = unsafe {
            if api!(RedisModule_SelectDb)(ctx, db) != raw::REDISMODULE_OK as c_int {
                ended(cursor);
                return false;
            }
            let more = api!(RedisModule_Scan)(ctx, cursor, Some(look), ptr::null_mut());
            if more == 0 {
                api!(RedisModule_ScanCursorRestart)(cursor);
            }
            more
        };
        if more == 0 {
            db += 1;
            with(|b| {
                if let Some(walk) = &mut b.walk {
                    walk.db = db;
                }
            });
        }
    }
    true
}

/// All keys have been looked at.
fn ended(cursor: *mut raw::RedisModuleScanCursor) {
    with(|b| {
        b.walk = None;
        b.end(Ok(()));
    });
    // SAFETY: the walk's own, which is over.
    unsafe { api!(RedisModule_ScanCursorDestroy)(cursor) };
}

unsafe extern "C" fn look(
    ctx: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    _: *mut c_void,
) {
    let looked = guard::run(|| {
        failpoint::hit("backup look");
        // SAFETY: the key is open or null while this runs, and a value of our type is what we put there, which
        // nothing else looks at meanwhile. The name lives while this runs.
        unsafe {
            if key.is_null() || api!(RedisModule_ModuleTypeGetType)(key) != persist::data_type() {
                return;
            }
            let record = api!(RedisModule_ModuleTypeGetValue)(key).cast::<Record>();
            let Some(record) = record.as_mut() else {
                return;
            };
            if record.is_backed() == MARK.load(Relaxed) {
                return;
            }
            let expires = api!(RedisModule_GetAbsExpire)(key);
            let db = api!(RedisModule_GetSelectedDb)(ctx);
            keep(
                db,
                bytes_of(name),
                u64::try_from(expires).unwrap_or(0),
                record,
            );
        }
    });
    if looked.is_none() {
        disturbed(FAULT);
    }
}

/// The server is about to remove a key, and says so (Redis 7.2, Valkey).
///
/// # Safety
/// `key` must be the server's open key, in its callback, and `name` its name.
pub unsafe fn removes(db: i32, name: &[u8], key: *mut raw::RedisModuleKey) {
    // SAFETY: by the caller; as for `look`.
    unsafe {
        if key.is_null() || api!(RedisModule_ModuleTypeGetType)(key) != persist::data_type() {
            return;
        }
        let record = api!(RedisModule_ModuleTypeGetValue)(key).cast::<Record>();
        if let Some(record) = record.as_mut() {
            let expires = api!(RedisModule_GetAbsExpire)(key);
            keep(db, name, u64::try_from(expires).unwrap_or(0), record);
        }
    }
}
