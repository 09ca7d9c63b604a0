//! The change log of this node, and the clients that wait for it to go on.
//!
//! What happened is appended where it is done: by the one function that applies a change ([`Key::apply`]
//! (super::keys::Key::apply)), by the server's word that a key went, came or changed its name, and by its word that all
//! keys went. All of these come in the same order on a replica, so its log is the same.
//!
//! Who waits is found by what its patterns begin with, and answered from a timer that fires at once: after the
//! command, transaction or script that caused it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::Relaxed};

use foldhash::{HashMap, HashSet};
use maos_core::audience::Audience;
use maos_core::event::Event;
use maos_core::feed::{Feed, Tell};
use maos_core::record::Record;
use maos_core::watch::{value_of, NOT_BEGUN, NO_LOG};
use maos_core::wire::watch::{Mark, Watch, WatchReply};
use maos_core::{Refusal, Stamp, Who};

use super::api::{api, api_if, raw};
use super::call::{bytes_of, flags, refuse, reply_to, Call, Reader};
use super::keys::{is_leaving, Key, Mode};
use super::lineage::{self, context, Name};
use super::metrics::METRICS;
use super::node::{node, now_us};
use super::{backup, failpoint, guard, index, propagate, waiting};

/// One client that waits.
struct Blocked {
    client: *mut raw::RedisModuleBlockedClient,
    watch: Rc<Watch<'static>>,
    db: i32,
    user: Rc<[u8]>,
    /// It has seen all up to here.
    from: Stamp,
    /// The events since that may concern it, by their numbers; none if they are too many to remember.
    heard: Option<Vec<u64>>,
    /// What it is told, once that has been found.
    answer: Option<Result<WatchReply<'static>, Refusal>>,
    /// The server has been told to let it go.
    is_let_go: bool,
}

/// An event that came while the log was being read.
struct Late {
    event: Event,
    db: i32,
    key: Box<[u8]>,
    previous: Stamp,
    unsure: bool,
}

/// The log, and who waits.
#[derive(Default)]
struct Watching {
    feed: Feed,
    audience: Audience,
    blocked: HashMap<u64, Blocked>,
    /// Those for whom there may be something.
    due: HashSet<u64>,
    /// A look at them is arranged for.
    is_armed: bool,
    /// That this node makes the changes from here on is to be told.
    is_to_reign: bool,
    /// Where the log is is to be told.
    is_to_announce: bool,
}

/// Of so many events a watcher remembers where they are. Those of more are looked for in the log.
const HEARD_MAX: usize = 256;

/// How long until that is tried again which could not be sent.
const AGAIN_MS: i64 = 100;

struct MainThread(RefCell<Option<Watching>>, RefCell<Vec<Late>>);

// SAFETY: commands, timers, events, notifications and the callbacks of blocked clients and of keys that go come on
// the main thread only.
unsafe impl Sync for MainThread {}

static WATCHING: MainThread = MainThread(RefCell::new(None), RefCell::new(Vec::new()));

/// Something that is not known has happened to keys: there is no telling what.
static MISSED: AtomicBool = AtomicBool::new(false);

/// The address of the record that was unlinked last; 0: that is of no use any more.
static UNLINKED: AtomicUsize = AtomicUsize::new(0);

/// A key and its database.
type Place = (i32, Box<[u8]>);

struct Leaving(RefCell<VecDeque<Place>>);

// SAFETY: as for the log.
unsafe impl Sync for Leaving {}

/// The keys of which the node that makes the changes has said that they go on elsewhere, in the order in which they are
/// removed.
static LEAVES: Leaving = Leaving(RefCell::new(VecDeque::new()));
const LEAVING_MAX: usize = 100_000;

/// The database that a record was copied to last.
static COPIED_TO: AtomicI32 = AtomicI32::new(NOWHERE);
const NOWHERE: i32 = -1;

/// Apart from the node: keys go while a command of ours holds it.
fn with<T>(then: impl FnOnce(&mut Watching) -> T) -> T {
    let done = then(WATCHING.0.borrow_mut().get_or_insert_default());
    let late = WATCHING.1.take();
    if !late.is_empty() {
        for it in late {
            gone(it.event, it.db, &it.key, it.previous, it.unsure);
        }
        arm_if_due();
    }
    done
}

/// What INFO says of the log.
pub struct Numbers {
    /// Bytes that it takes.
    pub bytes: usize,
    /// Events that it holds.
    pub held: usize,
    /// Events appended since the start.
    pub appended: u64,
    /// How far it reaches back.
    pub floor: Stamp,
    /// Clients that wait.
    pub watchers: usize,
}

/// What INFO says of the log.
pub fn numbers() -> Numbers {
    with(|w| Numbers {
        bytes: w.feed.bytes(),
        held: w.feed.len(),
        appended: w.feed.appended(),
        floor: w.feed.floor(),
        watchers: w.blocked.len(),
    })
}

/// Has the log hold as much as is set.
pub fn set_max_bytes(bytes: usize) {
    let begins = with(|w| {
        let was = w.feed.is_on();
        if bytes == 0 {
            w.let_all_go();
        }
        w.feed.set_max_bytes(bytes);
        w.feed.is_on() && !was
    });
    match begins {
        true => announce(),
        false => arm_if_due(),
    }
}

/// A key that is removed next goes on elsewhere.
pub fn leaves(db: i32, key: &[u8]) {
    let mut leaving = LEAVES.0.borrow_mut();
    // They are removed right after: so many in between are not what they are taken for.
    if leaving.len() >= LEAVING_MAX {
        leaving.clear();
    }
    leaving.push_back((db, key.into()));
}

fn leaves_as_told(db: i32, key: &[u8]) -> bool {
    let mut leaving = LEAVES.0.borrow_mut();
    let at = leaving.iter().position(|it| it.0 == db && *it.1 == *key);
    at.and_then(|at| leaving.remove(at)).is_some()
}

/// Asks the server to say what happens to keys without a command of ours.
///
/// Not everywhere what comes to a key by RENAME, MOVE, COPY and RESTORE: a server may leave a client in another
/// database when a module listens to those. One that checks key prefixes for modules does not, nor one that is too old
/// for jobs after notifications, and in a cluster there is one database.
pub fn register(ctx: *mut raw::RedisModuleCtx) {
    let is_safe = api_if!(RedisModule_ACLCheckKeyPrefixPermissions).is_some()
        || api_if!(RedisModule_AddPostNotificationJob).is_none()
        || flags(ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0;
    let mut kinds = raw::REDISMODULE_NOTIFY_EXPIRED | raw::REDISMODULE_NOTIFY_EVICTED;
    if is_safe {
        kinds |= raw::REDISMODULE_NOTIFY_GENERIC;
    } else {
        index::guess();
    }
    // SAFETY: in OnLoad, with its context.
    unsafe {
        api!(RedisModule_SubscribeToKeyspaceEvents)(ctx, kinds as c_int, Some(notified));
    }
}

impl Watching {
    /// Appends an event, and finds who may want to hear of it.
    fn append(&mut self, tell: Tell<'_>) {
        let Some(before) = self.feed.append(tell) else {
            return;
        };
        if self.audience.is_empty() {
            return;
        }
        self.hear(tell, before);
    }

    #[cold]
    fn hear(&mut self, tell: Tell<'_>, before: Stamp) {
        let (blocked, due) = (&mut self.blocked, &mut self.due);
        let number = self.feed.appended() - 1;
        let mut hear = |id: u64| {
            let Some(one) = blocked.get_mut(&id) else {
                return;
            };
            let concerns = tell.db == one.db || tell.db < 0;
            if !concerns || one.answer.is_some() {
                return;
            }
            // With two of its patterns it hears twice.
            match &mut one.heard {
                Some(heard) if heard.last() == Some(&number) => {}
                Some(heard) if heard.len() < HEARD_MAX => heard.push(number),
                heard => *heard = None,
            }
            if due.insert(id) {
                // What came before did not fit its patterns.
                one.from = before.max(one.from);
            }
        };
        match tell.event {
            Event::Flushed => self.audience.all().for_each(&mut hear),
            _ => self.audience.heard(tell.key, hear),
        }
    }

    /// Whoever waits is told how far it has come, and comes again or not.
    fn let_all_go(&mut self) {
        let all: Vec<u64> = self.blocked.keys().copied().collect();
        for id in all {
            if let Some(one) = self.blocked.get_mut(&id) {
                let (cursor, events) = (self.feed.mark(one.from), vec![]);
                one.answer.get_or_insert(Ok(WatchReply { cursor, events }));
                self.due.insert(id);
            }
        }
    }
}

/// A change was applied to a key.
#[inline]
pub fn append(tell: Tell<'_>) {
    let Ok(mut watching) = WATCHING.0.try_borrow_mut() else {
        return unseen();
    };
    let one = watching.get_or_insert_default();
    if !one.feed.has_begun() {
        begin(&mut one.feed);
    }
    one.append(tell);
    let is_due = !one.due.is_empty();
    drop(watching);
    if is_due {
        arm_if_due();
    }
}

/// A look is arranged for where it is wanted.
#[cold]
fn arm_if_due() {
    let wanted = match WATCHING.0.try_borrow() {
        Ok(w) => w.as_ref().is_some_and(|w| !w.due.is_empty() && !w.is_armed),
        Err(_) => false,
    };
    if wanted {
        arm(0);
    }
}

fn arm(in_ms: i64) {
    let first = with(|w| !std::mem::replace(&mut w.is_armed, true));
    if first {
        // SAFETY: our own context; no data.
        unsafe { api!(RedisModule_CreateTimer)(context(0), in_ms, Some(look), ptr::null_mut()) };
    }
}

/// Whether this node does what a master or the AOF says.
fn obeys() -> bool {
    let now = flags(ptr::null_mut());
    let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    now & raw::REDISMODULE_CTX_FLAGS_MASTER == 0 || now & loading != 0
}

/// A key with this record has gone, by whatever command or for whatever reason. To be called at any time.
pub fn unlinked(record: &Record, db: i32, key: &[u8]) {
    UNLINKED.store(ptr::from_ref(record).addr(), Relaxed);
    let Some(live) = record.live() else { return };
    let is_told = leaves_as_told(db, key);
    let unsure = !is_told && obeys();
    let leaves = is_told || (!unsure && is_leaving(db, key));
    if leaves && !is_told && propagate::may_tell() {
        propagate::leaves(context(db), key);
    }
    let event = if leaves { Event::Left } else { Event::Deleted };
    gone(event, db, key, live.stamp(), unsure);
    arm_if_due();
}

fn gone(event: Event, db: i32, key: &[u8], previous: Stamp, unsure: bool) {
    let Ok(mut watching) = WATCHING.0.try_borrow_mut() else {
        let key = key.into();
        WATCHING.1.borrow_mut().push(Late {
            event,
            db,
            key,
            previous,
            unsure,
        });
        return;
    };
    let watching = watching.get_or_insert_default();
    begin(&mut watching.feed);
    watching.append(Tell {
        stamp: None,
        event,
        db,
        key,
        version: Stamp::NONE,
        previous,
        who: Who::nobody(),
        unsure,
    });
}

/// On a master the log begins with whatever comes first.
fn begin(feed: &mut Feed) {
    if feed.is_on() && !feed.has_begun() && !obeys() {
        feed.reign(Stamp(now_us()).max(lineage::floor()));
    }
}

/// Why the key went that went last.
pub fn amend(db: i32, key: &[u8], event: Event) {
    with(|w| {
        w.feed.amend(db, key, Event::Deleted, event);
        w.feed.amend(db, key, Event::Left, event);
    });
}

/// The server says what happened to a key.
unsafe extern "C" fn notified(
    ctx: *mut raw::RedisModuleCtx,
    _: c_int,
    event: *const c_char,
    name: *mut raw::RedisModuleString,
) -> c_int {
    let seen = guard::run(|| {
        failpoint::hit("notified");
        // SAFETY: the server's event, key and context, in its callback.
        let (event, key, db) = unsafe {
            let db = api!(RedisModule_GetSelectedDb)(ctx);
            (CStr::from_ptr(event), bytes_of(name), db)
        };
        match event.to_bytes() {
            b"expired" => {
                if backup::keeps() {
                    backup::expired();
                }
                amend(db, key, Event::Expired);
            }
            b"evicted" => amend(db, key, Event::Evicted),
            b"restore" | b"rename_to" => came(db, key),
            b"copy_to" => copied(key),
            b"move_to" => moved(db, key),
            _ => {}
        }
        arm_if_due();
    });
    if seen.is_none() {
        guard::run(index::unseen);
        unseen();
    }
    raw::REDISMODULE_OK as c_int
}

/// The record of a key, without touching it.
fn look_at<T>(db: i32, key: &[u8], then: impl FnOnce(Option<&Record>) -> T) -> T {
    let ctx = context(db);
    let name = Name::new(ctx, key);
    // SAFETY: the context and the name outlive the key, which nobody else has open.
    let held = unsafe { Key::open(ctx, name.string, Mode::Look) };
    then(held.as_ref().ok().and_then(Key::record))
}

/// A key was copied. Where to is known from the copy: see [`moved`].
fn copied(key: &[u8]) {
    let db = COPIED_TO.swap(NOWHERE, Relaxed);
    if db != NOWHERE {
        came(db, key);
    }
}

/// A record is being copied to a key of this database.
pub fn copies(db: i32) {
    COPIED_TO.store(db, Relaxed);
}

/// A key has come from another database. In a transaction Valkey 9 names the database that the client has selected: it
/// is where the record is now that was unlinked just before.
fn moved(said: i32, key: &[u8]) {
    let record = UNLINKED.swap(0, Relaxed);
    // SAFETY: a context of our own.
    let is_there = |db: &i32| unsafe { api!(RedisModule_GetSelectedDb)(context(*db)) } == *db;
    let is_it = |db: &i32| {
        look_at(*db, key, |held| {
            held.is_some_and(|held| ptr::from_ref(held).addr() == record)
        })
    };
    let dbs = std::iter::once(said).chain((0..).take_while(is_there));
    if let Some(db) = (record != 0).then(|| { dbs }.find(is_it)).flatten() {
        came(db, key);
    }
}

/// A key was brought back from a backup.
pub fn brought(db: i32, key: &[u8]) {
    came(db, key);
    arm_if_due();
}

/// A key has come whole.
fn came(db: i32, key: &[u8]) {
    look_at(db, key, |held| tell_of(db, key, held));
}

fn tell_of(db: i32, key: &[u8], held: Option<&Record>) {
    if held.is_some() {
        index::found(db, key);
    }
    let Some(live) = held.and_then(Record::live) else {
        return;
    };
    with(|w| {
        begin(&mut w.feed);
        w.append(Tell {
            stamp: None,
            event: Event::Restored,
            db,
            key,
            version: live.stamp(),
            previous: Stamp::NONE,
            who: live.who(),
            unsure: false,
        });
    });
}

/// All keys of a database went, or of all databases (-1).
pub fn flushed(db: i32) {
    gone(Event::Flushed, db, b"", Stamp::NONE, false);
    arm_if_due();
}

/// The data set is replaced by another: the log begins anew, and whoever waits is told so when it comes again.
pub fn replaced() {
    with(|w| {
        w.let_all_go();
        w.feed.forget();
    });
    arm_if_due();
}

/// The data set is there. What was changed after the last that it holds is lost.
pub fn loaded() {
    if flags(ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0 {
        with(|w| w.feed.reign(Stamp(now_us()).max(lineage::floor())));
    }
    announce();
}

/// From now on this node makes the changes. Said where replicas hear it in its place among the others: from a timer.
pub fn reigns() {
    with(|w| w.is_to_reign = true);
    arm(0);
}

/// This node follows another one now. Where the server does not tell those who wait, they are told how far they have
/// come.
pub fn demoted() {
    with(Watching::let_all_go);
    arm_if_due();
}

/// Something was not seen: the log must not be taken for complete.
pub fn unseen() {
    MISSED.store(true, Relaxed);
    guard::run(|| arm(0));
}

/// A replica has all that there was: it is told where the log is, so that its own begins there and not with what comes
/// next.
pub fn announce() {
    with(|w| w.is_to_announce = true);
    arm(0);
}

/// What the node said that makes the changes: where its log is, and in which reign.
pub fn follow(said: Mark) {
    with(|w| w.feed.follow(said));
}

/// What a watcher reads.
///
/// # Errors
/// `COMPACTED`, `DIVERGED`, and an error where there is no log.
fn read(
    watch: &Watch<'_>,
    db: i32,
    user: &[u8],
    from: Option<Mark>,
    heard: Option<&[u64]>,
) -> Result<WatchReply<'static>, Refusal> {
    let ctx = context(db);
    let reader = Reader::of(ctx, user);
    let found = with(|w| {
        if !w.feed.is_on() {
            return Err(NO_LOG);
        }
        begin(&mut w.feed);
        if !w.feed.has_begun() {
            return Err(NOT_BEGUN);
        }
        let from = from.unwrap_or(w.feed.mark(w.feed.last()));
        let may_read = |key: &[u8]| reader.may_read(key);
        let found = match heard {
            Some(heard) => watch.look_at(&w.feed, heard, from, db, may_read),
            None => watch.look(&w.feed, from, db, may_read),
        };
        found.map_err(|lost| lost.refusal(from))
    })?;
    // With the log not held any more: to open a key may end it, and that is an event.
    let reply = found.fill(|key, version| look_at(db, key, |held| value_of(held, version)));
    METRICS.events_read.add(reply.events.len() as u64);
    Ok(reply)
}

/// MAOS.WATCH
pub fn watch<'a>(call: &Call<'a>, watch: Watch<'a>) -> Result<(), Refusal> {
    let db = call.db();
    let user = call.with_user(&mut node().users, |user| Box::<[u8]>::from(user));
    check_reach(call, &watch, &user)?;
    let reply = read(&watch, db, &user, watch.since, None)?;
    let wait_ms = watch.wait_ms();
    let is_short = reply.events.is_empty() && is_caught_up(&reply);
    if !is_short || wait_ms == 0 || !waiting::may_wait(call) {
        call.reply(&reply);
        return Ok(());
    }
    // SAFETY: the context of this call.
    let client = unsafe {
        api!(RedisModule_BlockClient)(
            call.ctx,
            Some(answered),
            Some(over),
            None,
            i64::try_from(wait_ms).unwrap_or(i64::MAX),
        )
    };
    if client.is_null() {
        call.reply(&reply);
        return Ok(());
    }
    // SAFETY: just made.
    unsafe { api!(RedisModule_SetDisconnectCallback)(client, Some(disconnected)) };
    let (watch, user) = (Rc::new(watch.into_owned()), user.into());
    with(|w| {
        let id = client as u64;
        w.audience.enter(id, watch.clone());
        w.blocked.insert(
            id,
            Blocked {
                client,
                watch,
                db,
                user,
                from: reply.cursor.at,
                heard: Some(vec![]),
                answer: None,
                is_let_go: false,
            },
        );
    });
    Ok(())
}

/// The cursor of one who has seen this node's log up to here.
fn seen(at: Stamp) -> Mark {
    let reign = Stamp::NONE;
    Mark { at, reign }
}

/// Whether a reply reaches to the end of the log.
fn is_caught_up(reply: &WatchReply<'_>) -> bool {
    with(|w| reply.cursor.at == w.feed.last())
}

/// Whether the user may read any key that the patterns could fit.
///
/// # Errors
/// `NOPERM`
fn check_reach(call: &Call<'_>, watch: &Watch<'_>, user: &[u8]) -> Result<(), Refusal> {
    let reader = Reader::of(call.ctx, user);
    // Mostly so, and sooner asked than what else the user may read.
    if watch.patterns.iter().any(|g| reader.may_read(g.literal())) {
        return Ok(());
    }
    watch.check_reach(&reader.readable())
}

/// Looks who is to be told, and what.
unsafe extern "C" fn look(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let looked = guard::run(|| {
        with(|w| w.is_armed = false);
        failpoint::hit("tell");
        if MISSED.swap(false, Relaxed) {
            replaced();
            announce();
        }
        reign();
        // In no order: nobody is always the first.
        let due = with(|w| std::mem::take(&mut w.due));
        for id in due {
            tell(id);
        }
        arm_if_due();
    });
    if looked.is_none() {
        // Nobody is left waiting: all of them are told how far they have come.
        guard::run(demoted);
    }
}

/// Has the log say, here and on replicas, that from here on this node makes the changes, where that is so; and where it
/// is.
fn reign() {
    let wanted = |w: &mut Watching| w.feed.is_on() && (w.is_to_reign || w.is_to_announce);
    if !with(wanted) || obeys() {
        return;
    }
    // While nothing may be sent the log goes on as that of the node before.
    if !propagate::may_tell() {
        return arm(AGAIN_MS);
    }
    let at = with(|w| {
        w.is_to_announce = false;
        if std::mem::take(&mut w.is_to_reign) {
            w.feed.reign(Stamp(now_us()).max(lineage::floor()));
        }
        begin(&mut w.feed);
        w.feed.mark(w.feed.last())
    });
    propagate::reign(context(0), at);
}

/// Tells one watcher what there is for it, if there is something.
fn tell(id: u64) {
    let found = with(|w| {
        let one = w.blocked.get_mut(&id).filter(|one| !one.is_let_go)?;
        if one.answer.is_some() {
            return Some(None);
        }
        let heard = one.heard.replace(vec![]);
        Some(Some((
            one.watch.clone(),
            one.db,
            one.user.clone(),
            one.from,
            heard,
        )))
    });
    let answer = match found {
        None => return,
        Some(None) => None,
        Some(Some((watch, db, user, from, heard))) => {
            match read(&watch, db, &user, Some(seen(from)), heard.as_deref()) {
                // It was not for this one after all.
                Ok(reply) if reply.events.is_empty() => {
                    let again = !is_caught_up(&reply);
                    with(|w| {
                        let Some(one) = w.blocked.get_mut(&id) else {
                            return;
                        };
                        one.from = reply.cursor.at;
                        if again {
                            one.heard = None;
                            w.due.insert(id);
                        }
                    });
                    return;
                }
                answer => Some(answer),
            }
        }
    };
    let client = with(|w| {
        w.audience.leave(id);
        let one = w.blocked.get_mut(&id)?;
        if let Some(answer) = answer {
            one.answer = Some(answer);
        }
        one.is_let_go = true;
        Some(one.client)
    });
    if let Some(client) = client {
        // SAFETY: not yet unblocked: whatever ends its wait takes it out, and this is done once.
        unsafe { api!(RedisModule_UnblockClient)(client, ptr::null_mut()) };
    }
}

/// Nobody waits here any more.
fn leave(client: *mut raw::RedisModuleBlockedClient) -> Option<Blocked> {
    let id = client as u64;
    with(|w| {
        w.audience.leave(id);
        w.due.remove(&id);
        w.blocked.remove(&id)
    })
}

/// The client is answered with what was found.
unsafe extern "C" fn answered(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    guard::run(|| {
        // SAFETY: the context of this callback.
        let client = unsafe { api!(RedisModule_GetBlockedClientHandle)(ctx) };
        match leave(client).and_then(|one| one.answer) {
            Some(Ok(reply)) => reply_to(ctx, &reply),
            Some(Err(refusal)) => refuse(ctx, &refusal),
            // SAFETY: the context of this callback.
            None => drop(unsafe { api!(RedisModule_ReplyWithNull)(ctx) }),
        }
    });
    raw::REDISMODULE_OK as c_int
}

/// Nothing happened for as long as the client wanted to wait: it is told how far it has come.
unsafe extern "C" fn over(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    guard::run(|| {
        // SAFETY: the context of this callback.
        let client = unsafe { api!(RedisModule_GetBlockedClientHandle)(ctx) };
        let one = leave(client);
        // What is due may not have been looked at yet.
        let reply = one.map(|one| {
            let (from, heard) = (Some(seen(one.from)), one.heard.as_deref());
            read(&one.watch, one.db, &one.user, from, heard)
        });
        match reply {
            Some(Ok(reply)) => reply_to(ctx, &reply),
            Some(Err(refusal)) => refuse(ctx, &refusal),
            // SAFETY: the context of this callback.
            None => drop(unsafe { api!(RedisModule_ReplyWithNull)(ctx) }),
        }
    });
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn disconnected(
    _: *mut raw::RedisModuleCtx,
    client: *mut raw::RedisModuleBlockedClient,
) {
    guard::run(|| drop(leave(client)));
}
