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
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use maos_core::codec::backup::{Head, Parent, NODE_MAX};
use maos_core::codec::v1::{self, Share};
use maos_core::keyring::Keyring;
use maos_core::partition::Place;
use maos_core::record::Record;
use maos_core::wire::backup::{BackupCreate, BackupId, JobKind, StatusReply};
use maos_core::{Code, Refusal, Stamp};

use super::api::{api, raw};
use super::call::{bytes_of, flags};
use super::chain::{Chain, Known};
use super::guard::FAULT;
use super::jobs::{End, Job, Jobs};
use super::keys::{Key, Mode};
use super::lineage::context;
use super::native::{self, Found};
use super::node::{node, now_us};
use super::scribe::{leading, locked, Kind, Packed, Parcel, Scribe, Shared, LEADING};
use super::vault::{self, Vault};
use super::{config, failpoint, guard, log, nodes, partitions, restoring, schedule};
use crate::persist;

/// How long one slice of the walk takes where nobody has asked for anything in so many of them, how long otherwise, and
/// milliseconds from one to the next. Whoever comes in the middle of one waits for its end.
const SLICE: Duration = Duration::from_micros(950);
const QUIET: u32 = 20;
const SHORT: Duration = Duration::from_micros(100);
const SLICE_EVERY_MS: i64 = 1;
/// While so many bytes wait for the thread the walk does not go on.
const AHEAD: usize = 16 << 20;
/// So many bytes are handed to the thread at once.
const PARCEL: usize = 128 << 10;

/// Whether what is about to change is to be looked at first: as long as there is a walk. A record that goes to another
/// place without a mark would never get one, and the next backup would take it for one that it has.
static KEEPS: AtomicBool = AtomicBool::new(false);
/// The mark of the records that the backup has, or need not have.
static MARK: AtomicBool = AtomicBool::new(false);
/// A record may not have been handed over, or may be without its mark.
static MISSED: AtomicBool = AtomicBool::new(false);
/// Somebody has asked for something since the last slice, other than how a backup stands.
static ASKED: AtomicBool = AtomicBool::new(false);

/// The backup that is being made.
struct Making {
    id: BackupId,
    shared: Arc<Shared>,
    to: Sender<Parcel>,
    /// What it is to say of itself, until it begins.
    head: Option<Box<Head>>,
    prefixes: Vec<Box<[u8]>>,
    native: bool,
    /// What it goes on from has of the keys.
    known: Option<Arc<Known>>,
    /// What the partitions are called, as of the instant: who asks may hold the node.
    names: HashMap<Place, Arc<[u8]>>,
    /// What waits to be handed over.
    parcel: Vec<u8>,
    /// However much waits: all keys go at once.
    unbounded: bool,
    /// Where the last entry begins in it, if that key was removed and it is not known why.
    unsure: Option<usize>,
}

/// What is told of one.
struct Told {
    name: Box<str>,
    instant: Stamp,
    left_out: u64,
    shared: Arc<Shared>,
    /// The log is told if it fails.
    logged: bool,
}

/// The walk over all keys.
struct Walk {
    cursor: *mut raw::RedisModuleScanCursor,
    db: c_int,
    /// Some may have been missed: once more from the beginning.
    again: bool,
}

#[derive(Default)]
struct Backups {
    making: Option<Making>,
    jobs: Jobs<Told>,
    /// It goes on until every record bears the mark, though nobody may want the backup any more.
    walk: Option<Walk>,
    /// A look is arranged for.
    armed: bool,
    /// How many of them have come since somebody asked for something.
    quiet: u32,
    /// Keys of other types that the walk has come by.
    natives: Vec<(i32, Box<[u8]>)>,
    /// Ended, and not yet heard of from its thread.
    ending: Option<(BackupId, Arc<Shared>)>,
    begun: u64,
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
pub fn keys() -> Result<Option<Arc<Keyring>>, Refusal> {
    let ring = vault::keys(&config::text(config::BACKUP_KEY_FILE));
    ring.map_err(|why| Refusal::new(Code::Err, why))
}

/// Which node this is, to be put down in a backup: in a cluster its id, elsewhere its host and port.
pub fn node_id() -> Vec<u8> {
    // SAFETY: it has no arguments; in a cluster the server gives a name of so many characters that stays.
    unsafe {
        let id = api!(RedisModule_GetMyClusterID)();
        if !id.is_null() {
            let bytes = std::slice::from_raw_parts(id.cast::<u8>(), nodes::NAME);
            return bytes.to_vec();
        }
    }
    // SAFETY: our own context; the information is freed, and not used after that.
    let port = unsafe {
        let info = api!(RedisModule_GetServerInfo)(context(0), c"server".as_ptr());
        let port = api!(RedisModule_ServerInfoGetFieldUnsigned)(
            info,
            c"tcp_port".as_ptr(),
            ptr::null_mut(),
        );
        api!(RedisModule_FreeServerInfo)(context(0), info);
        port
    };
    let port = format!(":{port}");
    let mut id = vault::host();
    id.truncate(NODE_MAX.saturating_sub(port.len()));
    id.extend_from_slice(port.as_bytes());
    id
}

/// Whether a backup may begin now.
///
/// # Errors
/// `BUSY` if one is being made or given up, or the data set is being loaded.
pub fn may_begin() -> Result<(), Refusal> {
    if is_loading() {
        return Err(busy("the data set is being loaded: begin when it is there"));
    }
    let what = with(|b| match (&b.making, &b.walk, &b.ending) {
        (Some(making), ..) => Some(format!("the backup {} is being made", making.id)),
        (None, Some(_), _) => Some("what the backup before has marked is being cleared".into()),
        (.., Some(_)) => Some("the backup before is being given up".into()),
        _ => None,
    });
    match what {
        Some(what) => Err(busy(&format!("{what}: begin another one when it is done"))),
        None => Ok(()),
    }
}

/// Whether the data set is being loaded.
pub fn is_loading() -> bool {
    let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    flags(ptr::null_mut()) & loading != 0
}

/// A backup that may begin: its file is made, and what it goes on from is open. The file goes if it is not begun.
pub struct Prepared {
    id: BackupId,
    scribe: Scribe,
}

impl Prepared {
    /// Makes ready what a backup of this name is written with. May be called in any thread.
    ///
    /// # Errors
    /// If it may not be written without a key and there is none, and what the system says.
    pub fn new(
        name: &str,
        vault: Vault,
        ring: Option<Arc<Keyring>>,
        may_be_plain: bool,
        parent: Option<Chain>,
    ) -> Result<Prepared, Refusal> {
        let fault = |why: String| Refusal::new(Code::Err, why);
        if ring.is_none() && !may_be_plain {
            return Err(fault("no key to encrypt backups with: set maos.backup-key-file in redis.conf, or maos.backup-plain yes for files that anybody can read".into()));
        }
        let id = BackupId(*uuid::Uuid::new_v4().as_bytes());
        let random = vault::random().map_err(fault)?;
        let file = vault.begin(name, id).map_err(fault)?;
        let scribe = Scribe {
            file,
            vault,
            ring,
            random,
            parent,
        };
        Ok(Prepared { id, scribe })
    }
}

/// Begins a backup of what there is now, or, where it goes on from another one, as soon as that has been read.
///
/// # Errors
/// `BUSY` if one is being made, and whatever keeps it from being begun.
pub fn create(request: &BackupCreate<'_>) -> Result<BackupId, Refusal> {
    let vault = vault()?;
    may_begin()?;
    let ring = keys()?;
    let may_be_plain = node().limits.backup_plain;
    let parent = match request.since {
        Some(since) if schedule::is_removing(since) => {
            return Err(busy(&format!(
                "the backup {since} is being removed, as maos.backup-keep has it"
            )))
        }
        Some(since) => Some(Chain::open(&vault, since, ring.clone(), may_be_plain)?),
        None => None,
    };
    let same = |p: &Chain| {
        p.head()
            .prefixes
            .iter()
            .map(|p| &**p)
            .eq(request.prefixes.iter().copied())
    };
    if parent.as_ref().is_some_and(|p| !same(p)) {
        return Err(Refusal::fixed(
            Code::Err,
            "the backup that it is to go on from has other prefixes",
        ));
    }
    let name = String::from_utf8_lossy(request.name);
    start(
        request,
        Prepared::new(&name, vault, ring, may_be_plain, parent)?,
        true,
    )
}

/// Begins what has been made ready. Where it is not to be `logged` that it failed, somebody else does.
///
/// # Errors
/// `BUSY` if one is being made; then its file is gone.
pub fn start(
    request: &BackupCreate<'_>,
    prepared: Prepared,
    logged: bool,
) -> Result<BackupId, Refusal> {
    may_begin()?;
    let Prepared { id, scribe } = prepared;
    let prefixes: Vec<Box<[u8]>> = request.prefixes.iter().map(|p| Box::from(*p)).collect();
    let name = String::from_utf8_lossy(request.name).into_owned();
    let head = Head {
        id: id.0,
        name: name.clone().into(),
        node: node_id().into(),
        instant: Stamp::NONE,
        prefixes: prefixes.clone(),
        parent: scribe.parent.as_ref().map(|p| Parent {
            id: p.head().id,
            instant: p.head().instant,
        }),
        natives: request.native,
        made_with: env!("CARGO_PKG_VERSION").into(),
    };
    let (to, parcels) = mpsc::channel();
    let shared = Arc::new(Shared::default());
    let job = Told {
        name: name.into(),
        instant: Stamp::NONE,
        left_out: 0,
        shared: shared.clone(),
        logged,
    };
    let waits = scribe.parent.is_some();
    let heard = shared.clone();
    let write = move || {
        let wrote = guard::run_in_thread(|| scribe.write(&parcels, &heard));
        let wrote = wrote.unwrap_or_else(|| Err(FAULT.into()));
        *locked(&heard.ended) = Some(wrote);
    };
    let thread = std::thread::Builder::new().name("maos-backup".into());
    thread
        .spawn(write)
        .map_err(|e| Refusal::new(Code::Err, format!("no thread for it: {e}")))?;
    with(|b| {
        b.making = Some(Making {
            id,
            shared,
            to,
            head: Some(Box::new(head)),
            prefixes,
            native: request.native,
            known: None,
            names: HashMap::default(),
            parcel: Vec::new(),
            unbounded: false,
            unsure: None,
        });
        b.begun += 1;
        b.jobs.begin(JobKind::Create, id, job);
    });
    if !waits {
        begin(None);
    }
    arm();
    Ok(id)
}

/// How many backups have begun since the start.
pub fn begun() -> u64 {
    with(|b| b.begun)
}

/// The instant: what is there now is what the backup holds.
fn begin(known: Option<Arc<Known>>) {
    let master = flags(ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0;
    let parent = with(|b| b.making.as_ref()?.head.as_ref()?.parent.map(|p| p.instant));
    let instant = {
        let node = &mut *node();
        let (now, last) = (now_us(), node.clock.last());
        match master || last == Stamp::NONE {
            true => {
                let stamp = node.next_stamp(now);
                node.took(stamp, now);
                stamp
            }
            // The clock of the master may be behind: what it writes next is later than what came last, and that is all
            // that is known. Two backups are of two instants all the same.
            false => last.max(Stamp(parent.map_or(0, |p| p.0 + 1))),
        }
    };
    let mut parcel = Vec::with_capacity(PARCEL + 4096);
    for (name, definition, db) in partitions::local() {
        Packed {
            db,
            key: &name,
            expires_ms: partitions::expires_ms(db, &name),
            kind: Kind::Definition,
            bytes: &v1::encode_definition(&definition),
        }
        .put(&mut parcel);
    }
    let names = {
        let node = node();
        let named = node.shares.entries();
        let named = named.map(|(place, entry)| (place, entry.name.clone()));
        named.collect()
    };
    let begun = with(|b| {
        let Some(making) = &mut b.making else {
            return false;
        };
        let Some(mut head) = making.head.take() else {
            return false;
        };
        head.instant = instant;
        let _ = making.to.send(Parcel::Head(head));
        (making.known, making.names, making.parcel) = (known, names, parcel);
        if let Some(job) = b.jobs.get_mut(making.id) {
            job.of.instant = instant;
        }
        // SAFETY: it has no arguments.
        let cursor = unsafe { api!(RedisModule_ScanCursorCreate)() };
        b.walk = Some(Walk {
            cursor,
            db: 0,
            again: false,
        });
        b.natives.clear();
        true
    });
    if begun {
        MARK.store(!MARK.load(Relaxed), Relaxed);
        KEEPS.store(true, Relaxed);
        listen(true);
    }
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
    making.unsure = None;
    let same = |known: &Arc<Known>| known.has(db, key, record);
    if making.known.as_ref().is_some_and(same) {
        Packed {
            db,
            key,
            expires_ms,
            kind: Kind::Unchanged,
            bytes: &record.current().stamp().0.to_le_bytes(),
        }
        .put(&mut making.parcel);
    } else {
        let start = making.parcel.len();
        making.parcel.resize(start + LEADING, 0);
        making.parcel.extend_from_slice(key);
        let from = making.parcel.len();
        let name = making.names.get(&record.member().place());
        let share = Share::of(record, name.map(|n| &**n));
        v1::encode_record(record, share, &mut making.parcel);
        let len = making.parcel.len() - from;
        let lead = leading(db, key.len(), expires_ms, Kind::Record, len);
        making.parcel[start..start + LEADING].copy_from_slice(&lead);
    }
    if making.parcel.len() >= PARCEL {
        making.send();
        let waiting = making.shared.waiting.load(Relaxed);
        if waiting > config::limits().backup_buffer && !making.unbounded {
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
    let looked = guard::run(|| {
        // SAFETY: the server's filter, in its callback; its arguments live through it.
        unsafe {
            let count = api!(RedisModule_CommandFilterArgsCount)(filter);
            let arg = |n| api!(RedisModule_CommandFilterArgGet)(filter, n);
            let name = bytes_of(arg(0));
            let own = name.split_at_checked(5);
            let own = own.filter(|(start, _)| start.eq_ignore_ascii_case(b"maos."));
            if !own.is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(b"backup")) {
                ASKED.store(true, Relaxed);
            }
            if count < 2 || own.is_some() {
                return;
            }
            failpoint::hit("backup filter");
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
    if looked.is_none() {
        unseen();
    }
}

/// Keys are about to go, all of a database or of all.
pub fn flushes() {
    if !with(|b| b.making.is_some() && b.walk.is_some()) {
        return;
    }
    // What is left to do is done at once: the server takes all keys away as soon as this returns.
    log::notice(
        "all keys go while a backup is made: what it does not have yet is handed over first",
    );
    with_making(|making| making.unbounded = true);
    while with(|b| b.making.is_some() && b.walk.is_some()) {
        if !walk_for(Duration::from_millis(100), true) {
            break;
        }
    }
}

/// The data set is replaced, or its databases change places: what is being made cannot be finished.
pub fn disturbed(why: &str) {
    with(|b| b.give_up(why));
    super::restoring::disturbed(why);
    super::rolling::disturbed(why);
}

/// What became of some keys is not known.
pub fn unseen() {
    if keeps() {
        MISSED.store(true, Relaxed);
    }
}

impl Backups {
    /// The backup comes to its end here: all has been handed over, or it is given up.
    fn end(&mut self, how: Result<(), String>) {
        KEEPS.store(self.walk.is_some(), Relaxed);
        let Some(mut making) = self.making.take() else {
            return;
        };
        self.ending = Some((making.id, making.shared.clone()));
        match how {
            Ok(()) => {
                making.send();
                let _ = making.to.send(Parcel::End);
            }
            Err(why) => {
                making.shared.cancelled.store(true, Relaxed);
                self.fail(making.id, why);
            }
        }
    }

    /// Nothing is known any more of what the walk has passed.
    fn give_up(&mut self, why: &str) {
        self.end(Err(why.into()));
        if let Some(walk) = &mut self.walk {
            walk.again = true;
        }
    }

    /// The job has failed, unless nobody wants it any more.
    fn fail(&mut self, id: BackupId, why: String) {
        if !self.jobs.end(id, End::Failed(why)) {
            return;
        }
        self.failed += 1;
        let logged = self.jobs.get(id).filter(|job| job.of.logged);
        logged.inspect(|job| job.log_failure());
    }

    /// Whether the thread has told what came of it.
    fn hear(&mut self) {
        let making = self.making.as_ref().map(|m| (m.id, m.shared.clone()));
        let Some((id, shared)) = self.ending.clone().or(making) else {
            return;
        };
        let Some(ended) = locked(&shared.ended).take() else {
            return;
        };
        // Before all was handed over, if it failed.
        if self.making.take_if(|making| making.id == id).is_some() {
            KEEPS.store(self.walk.is_some(), Relaxed);
        }
        self.ending = None;
        match ended {
            Err(why) => self.fail(id, why),
            Ok(()) if self.jobs.end(id, End::Done) => {
                self.made += 1;
                self.last_ms = now_us() / 1000;
            }
            Ok(()) => {}
        }
    }
}

/// How a job stands that is remembered.
pub fn status(id: BackupId) -> Option<StatusReply<'static>> {
    with(|b| {
        b.hear();
        let job = b.jobs.get(id)?;
        let told = &job.of;
        Some(StatusReply {
            keys: told.shared.keys.load(Relaxed),
            bytes: told.shared.bytes.load(Relaxed),
            left_out: told.left_out,
            ..job.status(told.name.as_bytes(), told.instant)
        })
    })
}

/// Ends the backup with this id. False if it is not being made.
pub fn cancel(id: BackupId) -> bool {
    with(|b| {
        let is_it = b.making.as_ref().is_some_and(|making| making.id == id);
        if is_it {
            b.jobs.end(id, End::Cancelled);
            b.end(Err("cancelled".into()));
        }
        is_it
    })
}

/// Whether the backup with this id is being made.
pub fn is_making(id: BackupId) -> bool {
    with(|b| b.jobs.get(id).is_some_and(Job::is_running))
}

fn arm() {
    let wanted = with(|b| {
        let wanted = b.making.is_some() || b.walk.is_some() || b.ending.is_some();
        wanted && !std::mem::replace(&mut b.armed, true)
    });
    if wanted {
        // SAFETY: our own context; no data.
        unsafe {
            api!(RedisModule_CreateTimer)(context(0), SLICE_EVERY_MS, Some(tick), ptr::null_mut())
        };
    }
}

unsafe extern "C" fn tick(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let went = guard::run(|| {
        let ready = with(|b| {
            b.armed = false;
            b.hear();
            let waits = b.making.as_ref().filter(|m| m.head.is_some());
            waits.and_then(|m| locked(&m.shared.ready).take())
        });
        failpoint::hit("backup tick");
        if let Some(known) = ready {
            begin(known);
        }
        if MISSED.swap(false, Relaxed) {
            with(|b| b.give_up(FAULT));
        }
        let ahead = with(|b| {
            b.making
                .as_ref()
                .map_or(0, |m| m.shared.waiting.load(Relaxed))
        });
        if ahead < AHEAD {
            walk_for(slice(), false);
            // By the walk itself, which reads with the server's commands.
            ASKED.store(false, Relaxed);
        }
    });
    if went.is_none() {
        with(|b| b.give_up(FAULT));
    }
    if !keeps() {
        listen(false);
    }
    arm();
}

/// How long the next slice may take.
fn slice() -> Duration {
    with(|b| {
        b.quiet = match ASKED.swap(false, Relaxed) {
            true => 0,
            false => b.quiet.saturating_add(1),
        };
        match b.quiet {
            0..QUIET => SHORT,
            _ => SLICE,
        }
    })
}

/// Walks on for so long. False if that was the end.
fn walk_for(budget: Duration, all: bool) -> bool {
    let start = Instant::now();
    let Some((cursor, mut db)) = with(|b| b.walk.as_ref().map(|w| (w.cursor, w.db))) else {
        return false;
    };
    let ctx = context(db);
    while all || start.elapsed() < budget {
        if take_native() {
            continue;
        }
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

/// Reads one of the keys of other types that the walk has come by. False if there is none.
fn take_native() -> bool {
    let Some((db, key)) = with(|b| b.natives.pop()) else {
        return false;
    };
    let read = native::read(db, &key);
    with(|b| {
        let Some(making) = &mut b.making else {
            return;
        };
        match read {
            Found::Value(expires_ms, kind, elements) => {
                making.unsure = None;
                Packed {
                    db,
                    key: &key,
                    expires_ms,
                    kind: Kind::Native(kind as u8),
                    bytes: &elements.0,
                }
                .put(&mut making.parcel);
                if making.parcel.len() >= PARCEL {
                    making.send();
                }
            }
            Found::LeftOut => {
                if let Some(job) = b.jobs.get_mut(making.id) {
                    job.of.left_out += 1;
                }
            }
            Found::Nothing => {}
        }
    });
    true
}

/// All keys have been looked at.
fn ended(cursor: *mut raw::RedisModuleScanCursor) {
    let over = with(|b| {
        if MISSED.swap(false, Relaxed) {
            b.give_up(FAULT);
        }
        if let Some(walk) = b.walk.as_mut().filter(|walk| walk.again) {
            (walk.again, walk.db) = (false, 0);
            return false;
        }
        b.walk = None;
        b.end(Ok(()));
        true
    });
    if over {
        // SAFETY: the walk's own, which is over.
        unsafe { api!(RedisModule_ScanCursorDestroy)(cursor) };
    }
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
            if key.is_null() {
                return;
            }
            let kind = api!(RedisModule_ModuleTypeGetType)(key);
            if kind != persist::data_type() {
                if kind != persist::share_type() {
                    note_native(ctx, bytes_of(name));
                }
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
        unseen();
    }
}

/// A key of another type is read when the scan has let go of it.
fn note_native(ctx: *mut raw::RedisModuleCtx, key: &[u8]) {
    // SAFETY: the context of the scan.
    let db = unsafe { api!(RedisModule_GetSelectedDb)(ctx) };
    with(|b| {
        let wants = |m: &Making| m.native && m.wants(key);
        if b.making.as_ref().is_some_and(wants) {
            b.natives.push((db, key.into()));
        }
    });
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
