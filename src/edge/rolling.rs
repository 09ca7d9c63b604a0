//! Roll-backs of a prefix while they go on: each of its keys gets its turn, in slices.
//!
//! What becomes of a key is decided in the core, and what is written is decided, admitted, applied and sent like the
//! MAOS.ROLLBACK or the MAOS.DEL that it is. The names come from the index of keys, or where there is none from a walk
//! through the keyspace. What came of each key is counted; a roll-back that was cut short is begun again, and finds what
//! it has brought back already.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::ops::Bound;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maos_core::change::Change;
use maos_core::record::Record;
use maos_core::refusal::Quoted;
use maos_core::rollback::{turn, Turn};
use maos_core::state::{Decision, Env, WriteCommand};
use maos_core::wire::backup::{BackupId, JobKind, RollbackCounts, StatusReply};
use maos_core::wire::rollback::RollbackTo;
use maos_core::{Code, Refusal, Stamp, Who};

use super::api::{api, raw};
use super::call::{bytes_of, flags, Call, Reader};
use super::guard::FAULT;
use super::index::Unlisted;
use super::jobs::{End, Jobs};
use super::keys::{is_elsewhere, Key, Mode};
use super::lineage::{context, Name};
use super::metrics::METRICS;
use super::node::{node, now_us};
use super::partitions::Victims;
use super::restoring::may_change;
use super::{failpoint, guard, index, partitions, pause, propagate};
use crate::persist;

/// How long one slice takes, and milliseconds from one to the next.
const SLICE: Duration = Duration::from_millis(1);
const SLICE_EVERY_MS: i64 = 2;
/// Milliseconds to the next one where something is waited for.
const WAIT_MS: i64 = 20;
/// So many names are asked for at once.
const NAMES: usize = 128;
/// So many keys are named whose history does not reach back; names of more bytes than this are not.
const NAMED_MAX: usize = 16;
const NAMED_LEN_MAX: usize = 1024;

/// What was asked for, and by whom.
struct Request {
    db: i32,
    prefix: Box<[u8]>,
    at_ms: u64,
    dry_run: bool,
    user: Box<[u8]>,
    agent: Option<Box<[u8]>>,
    /// The last stamp that there was when it was begun.
    began: Stamp,
}

/// The roll-back that goes on.
struct Doing {
    id: BackupId,
    request: Request,
    walk: Walk,
    /// Names that were found and have not had their turn.
    found: VecDeque<Box<[u8]>>,
    /// There are no more than those.
    is_over: bool,
}

/// How the names are found.
enum Walk {
    /// Nothing has been looked at.
    Begins,
    /// By the index, after this name.
    Ordered(Box<[u8]>),
    /// By a walk through the keyspace.
    Scanned(Scan),
}

/// The server's cursor over its keyspace.
struct Scan(*mut raw::RedisModuleScanCursor);

impl Scan {
    fn new() -> Scan {
        // SAFETY: it has no arguments; destroyed by `drop`.
        Scan(unsafe { api!(RedisModule_ScanCursorCreate)() })
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used after this.
        unsafe { api!(RedisModule_ScanCursorDestroy)(self.0) };
    }
}

/// What is told of one.
struct Told {
    prefix: Box<[u8]>,
    user: Box<[u8]>,
    at_ms: u64,
    keys: u64,
    bytes: u64,
    counts: RollbackCounts<'static>,
    /// The key that was refused first, of which `reason` tells.
    refused: Option<Box<[u8]>>,
}

#[derive(Default)]
struct Rollbacks {
    doing: Option<Doing>,
    jobs: Jobs<Told>,
}

struct MainThread(RefCell<Option<Rollbacks>>);

// SAFETY: commands, timers and events come on the main thread only.
unsafe impl Sync for MainThread {}

static ROLLBACKS: MainThread = MainThread(RefCell::new(None));

/// Nothing of the server is called inside.
fn with<T>(then: impl FnOnce(&mut Rollbacks) -> T) -> T {
    then(ROLLBACKS.0.borrow_mut().get_or_insert_default())
}

/// Begins to bring keys back to an instant.
///
/// # Errors
/// `READONLY` on a replica, `NOPERM` if the user may change no key with the prefix, `ERR` if the instant lies in the
/// future, `BUSY` if a roll-back goes on.
pub fn begin(call: &Call<'_>, request: &RollbackTo<'_>) -> Result<BackupId, Refusal> {
    may_change()?;
    let now_ms = now_us() / 1000;
    if request.at_ms > now_ms {
        let text = format!(
            "the instant of AT lies {} ms in the future: nothing is known of it",
            request.at_ms - now_ms
        );
        return Err(Refusal::new(Code::Err, text));
    }
    let user = call.with_user(&mut node().users, |user| Box::<[u8]>::from(user));
    if !Reader::of(call.ctx, &user).may_change_some(request.prefix) {
        return Err(Refusal::fixed(
            Code::NoPerm,
            "the user may not both read and write any key that begins with this prefix",
        ));
    }
    if with(|r| r.doing.is_some()) {
        return Err(Refusal::fixed(
            Code::Busy,
            "a roll-back goes on: begin another one when it is done, or end it with MAOS.BACKUP CANCEL",
        ));
    }
    let id = BackupId(*uuid::Uuid::new_v4().as_bytes());
    let told = Told {
        prefix: request.prefix.into(),
        user: user.clone(),
        at_ms: request.at_ms,
        keys: 0,
        bytes: 0,
        counts: RollbackCounts::default(),
        refused: None,
    };
    let doing = Doing {
        id,
        request: Request {
            db: call.db(),
            prefix: request.prefix.into(),
            at_ms: request.at_ms,
            dry_run: request.dry_run,
            user,
            agent: request.by.map(Box::from),
            began: node().clock.last(),
        },
        walk: Walk::Begins,
        found: VecDeque::new(),
        is_over: false,
    };
    with(|r| {
        r.jobs.begin(JobKind::Rollback, id, told);
        r.doing = Some(doing);
    });
    arm(SLICE_EVERY_MS);
    Ok(id)
}

fn arm(ms: i64) {
    // SAFETY: our own context; no data.
    unsafe { api!(RedisModule_CreateTimer)(context(0), ms, Some(tick), ptr::null_mut()) };
}

/// What came of a slice.
enum Came {
    /// There is more to do.
    On,
    /// Something has to happen first.
    Waits,
    /// That was the end.
    Ended(Result<(), String>),
}

unsafe extern "C" fn tick(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let Some(mut doing) = with(|r| r.doing.take()) else {
        return;
    };
    let id = doing.id;
    let came = guard::run(|| {
        failpoint::hit("rolling");
        doing.slice()
    });
    let next = match came.unwrap_or_else(|| Came::Ended(Err(FAULT.into()))) {
        Came::On => SLICE_EVERY_MS,
        Came::Waits => WAIT_MS,
        Came::Ended(how) => return end(id, how),
    };
    with(|r| r.doing = Some(doing));
    arm(next);
}

fn end(id: BackupId, how: Result<(), String>) {
    with(|r| {
        r.jobs.end(id, how.into());
        r.jobs.get(id).inspect(|job| job.log_failure());
    });
}

/// The data set is replaced, or its databases change places.
pub fn disturbed(why: &str) {
    if let Some(doing) = with(|r| r.doing.take()) {
        end(doing.id, Err(why.into()));
    }
}

/// Ends the roll-back with this id. False if it does not go on.
pub fn cancel(id: BackupId) -> bool {
    with(|r| {
        let doing = r.doing.take_if(|doing| doing.id == id);
        doing.is_some() && r.jobs.end(id, End::Cancelled)
    })
}

/// Whether it was this user who began the roll-back with this id, if it is remembered.
pub fn is_of(id: BackupId, user: &[u8]) -> bool {
    with(|r| r.jobs.get(id).is_some_and(|job| *job.of.user == *user))
}

/// How a roll-back stands that is remembered. Keys are named that whoever asks `may_read`.
pub fn status(id: BackupId, may_read: &dyn Fn(&[u8]) -> bool) -> Option<StatusReply<'static>> {
    // Whether it may be read the server is asked: nothing is borrowed then.
    let (mut status, refused) = with(|r| {
        let job = r.jobs.get(id)?;
        let told = &job.of;
        let instant = Stamp(told.at_ms.saturating_mul(1000));
        let status = StatusReply {
            keys: told.keys,
            bytes: told.bytes,
            rollback: Some(told.counts.clone()),
            ..job.status(&told.prefix, instant)
        };
        Some((status, told.refused.clone()))
    })?;
    if let Some(counts) = &mut status.rollback {
        counts.beyond_keys.retain(|key| may_read(key));
        if refused.is_some_and(|key| !may_read(&key)) {
            counts.reason = Some(b"it is about a key that you may not read"[..].into());
        }
    }
    Some(status)
}

impl Told {
    fn note(&mut self, key: &[u8], became: Became) {
        let counts = &mut self.counts;
        match became {
            Became::Nothing => {}
            Became::Same => counts.same += 1,
            Became::Newer => counts.newer += 1,
            Became::Elsewhere => counts.elsewhere += 1,
            Became::Back(bytes) => {
                self.keys += 1;
                self.bytes += bytes as u64;
            }
            Became::Gone => {
                self.keys += 1;
                counts.deleted += 1;
            }
            Became::Beyond => {
                counts.beyond += 1;
                if counts.beyond_keys.len() < NAMED_MAX && key.len() <= NAMED_LEN_MAX {
                    counts.beyond_keys.push(key.to_vec().into());
                }
            }
            Became::Refused(refusal) => {
                counts.refused += 1;
                if counts.reason.is_none() {
                    let text = format!("{}: {refusal}", Quoted(key));
                    counts.reason = Some(text.into_bytes().into());
                    self.refused = Some(key.into());
                }
            }
        }
    }

    /// All keys are looked at once more: what has been done stays done.
    fn again(&mut self, dry_run: bool) {
        let deleted = self.counts.deleted;
        self.counts = RollbackCounts::default();
        self.refused = None;
        match dry_run {
            true => (self.keys, self.bytes) = (0, 0),
            false => self.counts.deleted = deleted,
        }
    }
}

/// What became of one key.
enum Became {
    /// It is no state key, or had its turn already.
    Nothing,
    Same,
    Newer,
    Beyond,
    Elsewhere,
    /// It has a value of so many bytes again.
    Back(usize),
    Gone,
    Refused(Refusal),
}

/// Where the next name is.
enum Next {
    Key(Box<[u8]>),
    /// Further on: this was enough for now.
    Further,
    /// Not to be had yet.
    Later,
    /// Not to be had: a key could not be looked at.
    Fault,
    /// There is none.
    None,
}

impl Doing {
    /// Goes on for a moment.
    fn slice(&mut self) -> Came {
        if let Err(refusal) = may_change() {
            return Came::Ended(Err(refusal.text.into_owned()));
        }
        // While nothing may be sent nothing is written, nor while it is not known whether this node still makes the
        // changes.
        let now_us = now_us();
        if !propagate::may_tell() || (!pause::is_certain(now_us) && pause::check(now_us).is_err()) {
            return Came::Waits;
        }
        let start = Instant::now();
        let reader = Reader::of(context(self.request.db), &self.request.user);
        let who = {
            let (user, agent) = (&self.request.user, self.request.agent.as_deref());
            node().interner.get(user, agent).clone()
        };
        while start.elapsed() < SLICE {
            match self.next(start) {
                Next::None => return Came::Ended(Ok(())),
                Next::Further => break,
                Next::Later => return Came::Waits,
                Next::Fault => return Came::Ended(Err(FAULT.into())),
                Next::Key(name) => {
                    let became = self.request.turn(&name, &reader, &who);
                    self.count(|job| job.note(&name, became));
                }
            }
        }
        Came::On
    }

    fn count(&self, then: impl FnOnce(&mut Told)) {
        with(|r| {
            if let Some(job) = r.jobs.get_mut(self.id) {
                then(&mut job.of);
            }
        });
    }

    /// The next name, in a slice that began then.
    fn next(&mut self, start: Instant) -> Next {
        loop {
            if let Some(name) = self.found.pop_front() {
                return Next::Key(name);
            }
            if self.is_over {
                return Next::None;
            }
            // Where few keys begin with the prefix a walk passes many others.
            if start.elapsed() >= SLICE {
                return Next::Further;
            }
            if let Walk::Scanned(scan) = &self.walk {
                match bucket(scan, &self.request, &mut self.found) {
                    Some(more) => self.is_over = !more,
                    None => return Next::Fault,
                }
                continue;
            }
            let prefix = &self.request.prefix;
            let from = match &self.walk {
                Walk::Ordered(last) => Bound::Excluded(&**last),
                _ => Bound::Included(&**prefix),
            };
            match index::names(self.request.db, from, NAMES) {
                Ok(names) => {
                    let all = names.len();
                    let wanted = names.into_iter().take_while(|n| n.starts_with(prefix));
                    self.found.extend(wanted);
                    self.is_over = all < NAMES || self.found.len() < all;
                    if let Some(last) = self.found.back() {
                        self.walk = Walk::Ordered(last.clone());
                    }
                }
                // Those that were passed may lack some.
                Err(Unlisted::Lacking) => {
                    self.begin_anew(Walk::Begins);
                    return Next::Later;
                }
                Err(Unlisted::Off) => self.begin_anew(Walk::Scanned(Scan::new())),
            }
        }
    }

    fn begin_anew(&mut self, walk: Walk) {
        if matches!(self.walk, Walk::Ordered(_)) {
            let dry_run = self.request.dry_run;
            self.count(|job| job.again(dry_run));
        }
        self.walk = walk;
    }
}

/// Names of one bucket of the keyspace. False at the end of it all; `None` if a key could not be looked at.
fn bucket(scan: &Scan, request: &Request, found: &mut VecDeque<Box<[u8]>>) -> Option<bool> {
    let ctx = context(request.db);
    let mut step = Step {
        prefix: &request.prefix,
        found,
        is_whole: true,
    };
    // SAFETY: our own context and cursor; `look` is given `step` back, which outlives the call and which nothing else
    // has meanwhile.
    let more = unsafe { api!(RedisModule_Scan)(ctx, scan.0, Some(look), (&raw mut step).cast()) };
    step.is_whole.then_some(more != 0)
}

/// What one callback of the walk needs.
struct Step<'s> {
    prefix: &'s [u8],
    found: &'s mut VecDeque<Box<[u8]>>,
    /// Every key was looked at.
    is_whole: bool,
}

unsafe extern "C" fn look(
    _: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    key: *mut raw::RedisModuleKey,
    step: *mut c_void,
) {
    // SAFETY: `step` is what `bucket` gave.
    let step = unsafe { &mut *step.cast::<Step<'_>>() };
    let looked = guard::run(|| {
        failpoint::hit("rolling look");
        // SAFETY: the key is open or null while this runs, and so long its name lives.
        let (is_ours, name) = unsafe {
            let kind = match key.is_null() {
                true => ptr::null_mut(),
                false => api!(RedisModule_ModuleTypeGetType)(key),
            };
            (kind == persist::data_type(), bytes_of(name))
        };
        if is_ours && name.starts_with(step.prefix) {
            step.found.push_back(name.into());
        }
    });
    step.is_whole &= looked.is_some();
}

impl Request {
    /// A key has its turn.
    fn turn(&self, name: &[u8], reader: &Reader, who: &Arc<Who>) -> Became {
        failpoint::hit("roll");
        if is_elsewhere(self.db, name) {
            return Became::Elsewhere;
        }
        let ctx = context(self.db);
        let string = Name::new(ctx, name);
        let turn = {
            // SAFETY: our own context; the string outlives the key, which nobody else has open.
            let opened = unsafe { Key::open(ctx, string.string, Mode::Look) };
            let Ok(key) = opened else {
                return Became::Nothing;
            };
            let Some(record) = key.record().filter(|r| !r.is_bare()) else {
                return Became::Nothing;
            };
            let turn = turn(name, record, self.at_ms, self.began, self.agent.as_deref());
            let current = record.current();
            if turn == Turn::Same && current.stamp() > self.began && current.who() == who {
                return Became::Nothing;
            }
            turn
        };
        let at = self.at_ms.to_string();
        let may_roll = reader.may_run(&[b"MAOS.ROLLBACK", name, b"AT", at.as_bytes()]);
        let may =
            may_roll && (!matches!(turn, Turn::Gone(_)) || reader.may_run(&[b"MAOS.DEL", name]));
        if !may {
            return Became::Refused(Refusal::fixed(
                Code::NoPerm,
                "the user may not run MAOS.ROLLBACK and MAOS.DEL on this key",
            ));
        }
        let written = match turn {
            Turn::Same => return Became::Same,
            Turn::Newer => return Became::Newer,
            Turn::Beyond => return Became::Beyond,
            Turn::Back(rollback) => self.write(ctx, &string, &rollback, who).map(Became::Back),
            Turn::Gone(del) => self.write(ctx, &string, &del, who).map(|_| Became::Gone),
        };
        written.unwrap_or_else(Became::Refused)
    }

    /// Whether partitions have room for a write; the keys that are to be removed for it.
    fn admit(
        &self,
        changes: &mut [Change<'_>],
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Victims, Refusal> {
        let place = record.zip(changes.first()).map(|(record, change)| {
            let key = change.writes.first().map_or(&[][..], |w| w.key);
            env.shares.place_of(key, record)
        });
        let entry = place.and_then(|place| env.shares.get(place));
        let refused = entry.map(|e| e.refused.get());
        let admitted = partitions::admit(changes, None, &[record], env);
        // No write is refused by what is only tried.
        if let Some((entry, refused)) = entry.zip(refused).filter(|_| self.dry_run) {
            entry.refused.set(refused);
        }
        admitted
    }

    /// Decides, applies and propagates a write of a key, like a command; how many bytes the new value has.
    fn write<'a, C: WriteCommand<'a>>(
        &self,
        ctx: *mut raw::RedisModuleCtx,
        name: &Name,
        request: &C,
        who: &Arc<Who>,
    ) -> Result<usize, Refusal> {
        let is_full = flags(ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_OOM != 0;
        if is_full && C::SPEC.flags.contains("deny-oom") {
            return Err(Refusal::fixed(
                Code::Oom,
                "command not allowed when used memory > 'maxmemory'.",
            ));
        }
        // SAFETY: our own context; the string outlives the key, which nobody else has open.
        let mut key = unsafe { Key::open(ctx, name.string, Mode::Write) }?;
        let now_us = now_us();
        let node = &mut *node();
        let stamp = node.next_stamp(now_us);
        let env = Env {
            now_us,
            stamp,
            beyond: node.clock.beyond(),
            who,
            limits: &node.limits,
            shares: &node.shares,
            answer: None,
        };
        // Only a deletion of nothing is answered otherwise, and there was something a moment ago.
        let Decision::Change(change) = request.decide(&[key.record()], &env)? else {
            return Ok(0);
        };
        let mut changes = [change];
        let mut victims = Victims::new();
        if !node.shares.is_idle() {
            victims = self.admit(&mut changes, key.record(), &env)?;
        }
        let [change] = &changes;
        let known = propagate::Known {
            strings: &[name.string],
            bytes: &[change.writes[0].key],
        };
        let bytes = change.writes.iter().map(|w| w.value.len()).sum();
        if self.dry_run {
            return Ok(bytes);
        }
        if !victims.is_empty() {
            partitions::evict(&victims, node);
        }
        // The context is one for all: who looked for keys that make room, or removed them, may have selected another
        // database, and what is told below is told of the one that is selected.
        context(self.db);
        guard::applying(|| {
            key.apply(change, 0);
            node.committed(change.stamp, stamp, now_us);
            // SAFETY: our own context, and a string that lives through the call.
            unsafe { propagate::change(ctx, known, change, &mut node.scratch) };
        });
        METRICS.writes.one();
        for write in &change.writes {
            METRICS.trimmed.add(write.drops as u64);
        }
        Ok(bytes)
    }
}
