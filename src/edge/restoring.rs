//! Restores while they go on: what a backup holds is brought back, key by key, in slices.
//!
//! A thread reads the file to its last byte first, and decodes all that is in it; only then does it read it again and
//! hand over what is to be brought back. So a backup that is damaged, cut, altered or of another key is refused before a
//! key is touched. Each key is decided about by itself, by the same rules as a RESTORE that a client sends: no version
//! that may have been given here is given again. What came of each is counted; a restore that was cut short, by a kill
//! or by CANCEL, is begun again, and finds what it has brought back already.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maos_core::change::Expiry;
use maos_core::codec::backup::{Content, Entry};
use maos_core::codec::v1;
use maos_core::partition::{DefineCommand, Definition, Fate, Member};
use maos_core::record::Record;
use maos_core::restored::Restored;
use maos_core::state::Env;
use maos_core::wire::backup::{BackupId, BackupRestore, JobKind, RestoreCounts, StatusReply};
use maos_core::wire::partition::{Class, PartitionCreate, Terms};
use maos_core::{Code, Refusal, Stamp, Who};

use super::api::{api, raw};
use super::backup::{is_loading, vault};
use super::call::flags;
use super::chain::Chain;
use super::guard::FAULT;
use super::jobs::{End, Jobs};
use super::keys::{is_elsewhere, Key, Mode, ShareKey};
use super::lineage::{context, Name};
use super::node::{node, now_us};
use super::scribe::{type_of, Elements, Kind, Packed};
use super::vault::Vault;
use super::{failpoint, feed, guard, ledger, log, members, native, partitions, propagate};
use crate::persist::may_have_seen;

/// How long one slice takes, and milliseconds from one to the next.
const SLICE: Duration = Duration::from_millis(3);
const SLICE_EVERY_MS: i64 = 1;
/// So many parcels wait at most, each of about so many bytes.
const PARCELS: usize = 8;
const PARCEL: usize = 256 << 10;
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
    /// The backup, and where it is.
    of: BackupId,
    vault: Vault,
    request: Request,
    from: Receiver<Parcel>,
    cancelled: Arc<AtomicBool>,
    parcel: Vec<u8>,
    /// How far the parcel has been gone through.
    at: usize,
    /// All has been brought back.
    over: bool,
}

/// What is told of one.
struct Told {
    name: Box<str>,
    instant: Stamp,
    keys: u64,
    bytes: u64,
    counts: RestoreCounts<'static>,
}

#[derive(Default)]
struct Restores {
    doing: Option<Doing>,
    interrupted: Option<BackupId>,
    jobs: Jobs<Told>,
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
    let may_be_plain = node().limits.backup_plain;
    let chain = Chain::open(&vault, request.id, super::backup::keys()?, may_be_plain)?;
    let head = chain.head();
    let id = BackupId(*uuid::Uuid::new_v4().as_bytes());
    let job = Told {
        name: head.name.clone(),
        instant: head.instant,
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
        let read = guard::run_in_thread(|| read(&chain, &prefixes, partitions_too, &to, &told));
        let last = match read {
            Some(Ok(())) => Parcel::End,
            Some(Err(why)) => Parcel::Failed(why),
            None => Parcel::Failed(FAULT.into()),
        };
        // Where nobody takes it nobody wants it.
        let _ = to.send(last);
    };
    if !request.dry_run {
        vault
            .note_restore(request.id)
            .map_err(|why| Refusal::new(Code::Err, why))?;
    }
    let thread = std::thread::Builder::new().name("maos-restore".into());
    if let Err(e) = thread.spawn(read) {
        vault.forget_restore(request.id);
        return Err(Refusal::new(Code::Err, format!("no thread for it: {e}")));
    }
    with(|r| {
        r.jobs.begin(JobKind::Restore, id, job);
        r.doing = Some(Doing {
            id,
            of: request.id,
            vault,
            request: owned,
            from,
            cancelled,
            parcel: vec![],
            at: 0,
            over: false,
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
    match is_loading() {
        false => Ok(()),
        true => Err(Refusal::fixed(Code::Busy, "the data set is being loaded")),
    }
}

/// Reads a backup, and all that it goes on from, to their ends, and then what is wanted of it. In a thread of its own.
fn read(
    chain: &Chain,
    prefixes: &[Box<[u8]>],
    partitions_too: bool,
    to: &SyncSender<Parcel>,
    cancelled: &AtomicBool,
) -> Result<(), String> {
    let gone = |_| "nobody wants it any more".to_string();
    let wanted = |entry: &Entry<'_>| match entry.content {
        Content::Definition(_) => partitions_too,
        _ => prefixes.is_empty() || prefixes.iter().any(|p| entry.key.starts_with(p)),
    };
    // First all of it, to know that it is good, that no link lacks a key, and how much of it is wanted.
    chain.check()?;
    let mut total = 0;
    chain.each(&mut |entry| {
        let is_key = !matches!(entry.content, Content::Definition(_));
        total += u64::from(is_key && wanted(entry));
        Ok(())
    })?;
    to.send(Parcel::Whole(total)).map_err(gone)?;
    let mut parcel = Vec::with_capacity(PARCEL + 4096);
    chain.each(&mut |entry| {
        if cancelled.load(Relaxed) {
            return Err("cancelled".into());
        }
        if !wanted(entry) {
            return Ok(());
        }
        put(entry, &mut parcel);
        if parcel.len() >= PARCEL {
            let full = std::mem::replace(&mut parcel, Vec::with_capacity(PARCEL + 4096));
            to.send(Parcel::Entries(full)).map_err(gone)?;
        }
        Ok(())
    })?;
    to.send(Parcel::Entries(parcel)).map_err(gone)
}

/// Appends what is to be handed over of an entry.
fn put(entry: &Entry<'_>, to: &mut Vec<u8>) {
    let elements;
    let (kind, bytes) = match entry.content {
        Content::Record(bytes) => (Kind::Record, bytes),
        Content::Definition(bytes) => (Kind::Definition, bytes),
        Content::Native(native) => {
            let mut all = Elements::read_at(native.read_ms);
            native.elements.iter().for_each(|element| all.push(element));
            elements = all;
            (Kind::Native(native.kind as u8), &elements.0[..])
        }
        // Found in another link, or an error.
        Content::Unchanged(_) => return,
    };
    Packed {
        db: i32::try_from(entry.db).unwrap_or(i32::MAX),
        key: entry.key,
        expires_ms: entry.expires_ms.unwrap_or(0),
        kind,
        bytes,
    }
    .put(to);
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
    let ended = ended.unwrap_or_else(|| Some(Err(FAULT.into())));
    match ended {
        None => {
            with(|r| r.doing = Some(doing));
            arm();
        }
        Some(how) => {
            doing.leave(how.is_ok());
            end(id, how);
        }
    }
}

fn end(id: BackupId, how: Result<(), String>) {
    with(|r| {
        r.jobs.end(id, how.into());
        r.jobs.get(id).inspect(|job| job.log_failure());
    });
}

/// The data set is replaced, or its databases change places.
pub fn disturbed(why: &str) {
    let Some(doing) = with(|r| r.doing.take()) else {
        return;
    };
    doing.leave(false);
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
    doing.leave(false);
    with(|r| r.jobs.end(id, End::Cancelled))
}

/// How a restore stands that is remembered.
pub fn status(id: BackupId) -> Option<StatusReply<'static>> {
    with(|r| {
        let job = r.jobs.get(id)?;
        let told = &job.of;
        Some(StatusReply {
            keys: told.keys,
            bytes: told.bytes,
            restore: Some(told.counts.clone()),
            ..job.status(told.name.as_bytes(), told.instant)
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

/// A restore that was cut short by the end of the server, if one was: known from its note, and until the same is done.
pub fn interrupted() -> Option<BackupId> {
    with(|r| r.interrupted)
}

/// Looks whether one was.
pub fn look_for_interrupted() {
    let Ok(vault) = vault() else { return };
    for id in vault.interrupted() {
        log::warning(&format!("a restore of the backup {id} was cut short: what it had brought back is there, and what not is not. MAOS.BACKUP RESTORE {id} brings back the rest"));
        with(|r| r.interrupted = Some(id));
    }
}

impl Doing {
    /// It does not go on. What has failed, or was ended by somebody, has said so.
    fn leave(&self, is_whole: bool) {
        self.cancelled.store(true, Relaxed);
        if self.request.dry_run {
            return;
        }
        self.vault.forget_restore(self.of);
        if is_whole {
            with(|r| r.interrupted = r.interrupted.filter(|id| *id != self.of));
        }
    }

    /// Goes on for a moment. `Some`: that was the end.
    fn slice(&mut self) -> Option<Result<(), String>> {
        if let Err(refusal) = may_change() {
            return Some(Err(refusal.text.into_owned()));
        }
        // SAFETY: it has no arguments.
        if unsafe { api!(RedisModule_GetUsedMemoryRatio)() } >= 1.0 {
            return Some(Err(
                "OOM the server has used up maxmemory: give it more, and restore again".into(),
            ));
        }
        // While nothing may be sent nothing is brought back.
        if !propagate::may_tell() {
            return None;
        }
        if self.over {
            return Some(Ok(()));
        }
        let start = Instant::now();
        while start.elapsed() < SLICE {
            if self.at >= self.parcel.len() {
                match self.from.try_recv() {
                    Ok(Parcel::Whole(total)) => self.count(|job| job.counts.total = total),
                    Ok(Parcel::Entries(bytes)) => (self.parcel, self.at) = (bytes, 0),
                    // Not before what came last has been written to the append-only file, as it is after this.
                    Ok(Parcel::End) => {
                        self.over = true;
                        return None;
                    }
                    Ok(Parcel::Failed(why)) => return Some(Err(why)),
                    Err(TryRecvError::Empty) => return None,
                    Err(TryRecvError::Disconnected) => {
                        return Some(Err("its thread is gone".into()));
                    }
                }
                continue;
            }
            let Some((packed, rest)) = Packed::first(&self.parcel[self.at..]) else {
                return Some(Err("a parcel that makes no sense".into()));
            };
            let at = self.parcel.len() - rest.len();
            let is_key = packed.kind != Kind::Definition;
            let became = self.request.bring(&packed);
            self.at = at;
            self.count(|job| job.note(became, is_key));
        }
        None
    }

    fn count(&self, then: impl FnOnce(&mut Told)) {
        with(|r| {
            if let Some(job) = r.jobs.get_mut(self.id) {
                then(&mut job.of);
            }
        });
    }
}

impl Told {
    fn note(&mut self, became: Became, is_key: bool) {
        let n = u64::from(is_key);
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

    fn bring(&self, packed: &Packed<'_>) -> Became {
        failpoint::hit("bring");
        let (db, expires_ms) = (packed.db, packed.expires_ms);
        // SAFETY: our own context.
        let is_there =
            unsafe { api!(RedisModule_SelectDb)(context(0), db) == raw::REDISMODULE_OK as c_int };
        if !is_there {
            return Became::Refused(format!("this server has no database {db}"));
        }
        let name = self.name(packed.key);
        if is_elsewhere(db, &name) {
            return Became::Elsewhere;
        }
        if expires_ms > 0 && expires_ms <= now_us() / 1000 {
            return Became::Expired;
        }
        match packed.kind {
            Kind::Record => self.bring_record(db, &name, packed.bytes, expires_ms),
            Kind::Definition => self.bring_definition(db, &name, packed.bytes, expires_ms),
            Kind::Native(kind) => self.bring_native(db, &name, kind, packed.bytes, expires_ms),
            Kind::Unchanged => Became::Refused("its parent lacks it".into()),
        }
    }

    fn bring_native(
        &self,
        db: i32,
        name: &[u8],
        kind: u8,
        bytes: &[u8],
        expires_ms: u64,
    ) -> Became {
        if native::exists(db, name) && !self.replace {
            return Became::Kept;
        }
        let Some(kind) = type_of(kind) else {
            return Became::Refused("a value of a type that is not known".into());
        };
        let elements: Vec<&[u8]> = Elements::all(bytes).1.collect();
        if self.dry_run {
            return Became::Restored(bytes.len());
        }
        match native::write(db, name, kind, &elements, expires_ms) {
            Ok(()) => Became::Restored(bytes.len()),
            Err(why) => Became::Refused(why),
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
        // The tokens of its lock too: none of them is given again.
        let newest = record.newest();
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
            node.observe(newest, now);
            if let Some(stamp) = made {
                node.committed(stamp, stamp, now);
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
