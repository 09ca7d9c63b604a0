//! The partitions that this node knows: those whose keys it holds, those that other nodes tell of, and those that
//! are gone and whose keys are to go with them.
//!
//! A key that defines a partition comes and goes as the server likes: by commands, by loading, by expiry, while a
//! command of ours holds the node. So whatever happens to one is noted here, and the node's directory is brought up
//! to date when it is next looked at.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::HashMap;
use maos_core::change::Change;
use maos_core::partition::{Definition, Directory, Ledger, Place, Records, Survey, EVICTIONS_MAX};
use maos_core::record::Record;
use maos_core::state::Env;
use maos_core::wire::partition::{AuditReply, Class, OnFull};
use maos_core::{Code, Refusal, Stamp};

use super::api::{api, raw};
use super::call::{flags, Call};
use super::keys::{Key, Mode, ShareKey};
use super::lineage::{context, Name};
use super::members::{self, Member};
use super::node::{node, now_us, Node};
use super::{bus, conflicts, failpoint, guard, ledger, propagate};
use crate::persist::is_held_share;

/// How long a name that nobody defines is waited for before its keys are let go, or go: the key of a partition that
/// moves from node to node may be seen to leave before it is seen to come.
const MISSING_MS: u64 = 5_000;
/// In the place of such a moment: its keys are let go.
const LET_GO: u64 = 0;
/// So many keys go together with the partition.
pub const AT_ONCE: usize = 256;
/// How long keys that are to go are removed in one go, and how long others have then.
const SWEEP: Duration = Duration::from_micros(1_500);
const SWEEP_EVERY_MS: i64 = 8;

/// A key of this node that defines a partition, and its value: known to be the same, and whether the server still has it.
struct Local {
    db: i32,
    definition: Arc<Definition>,
}

impl Local {
    fn is_alive(&self) -> bool {
        is_held_share(&self.definition)
    }
}

/// A definition, and when it ends, in milliseconds of unix time.
type Known = (Arc<Definition>, u64);

/// A name; and the value that was seen to go, where nobody else can have it.
type Changed = (Arc<[u8]>, Option<Arc<Definition>>);

#[derive(Default)]
struct Partitions {
    local: HashMap<Arc<[u8]>, Local>,
    /// What other nodes say: for each name by node.
    heard: HashMap<Arc<[u8]>, BTreeMap<String, Known>>,
    /// How those were meant that a node has just said are gone from it.
    last: HashMap<Arc<[u8]>, Option<Class>>,
    /// Names whose definition may have changed.
    changed: Vec<Changed>,
    /// Temporary ones whose keys are to go.
    condemned: HashMap<Arc<[u8]>, Condemned>,
    /// Since when records name a partition that nobody defines, in milliseconds of unix time.
    missing: HashMap<Place, u64>,
    audits: HashMap<Place, AuditReply>,
    sweeping: bool,
}

struct Condemned {
    /// Its value, if it was here. As long as the server has it, it may have gone elsewhere: to another name, or another
    /// database.
    value: Option<Arc<Definition>>,
    at_ms: u64,
}

impl Condemned {
    fn new(value: Option<Arc<Definition>>) -> Condemned {
        let at_ms = now_us() / 1000;
        Condemned { value, at_ms }
    }
}

struct MainThread(RefCell<Option<Partitions>>);

// SAFETY: commands, timers, events, messages and the callbacks of values that are loaded or unlinked come on the
// main thread only; the `free` of a definition only drops what it holds.
unsafe impl Sync for MainThread {}

static PARTITIONS: MainThread = MainThread(RefCell::new(None));
static CHANGED: AtomicBool = AtomicBool::new(false);
/// What the directory says of any name may have changed.
static STALE: AtomicBool = AtomicBool::new(false);

/// Nothing of the server is called inside.
fn with<T>(then: impl FnOnce(&mut Partitions) -> T) -> T {
    then(PARTITIONS.0.borrow_mut().get_or_insert_default())
}

impl Partitions {
    fn note(&mut self, name: impl Into<Arc<[u8]>>) {
        self.note_dropped(name.into(), None);
    }

    fn note_dropped(&mut self, name: Arc<[u8]>, dropped: Option<Arc<Definition>>) {
        self.changed.push((name, dropped));
        CHANGED.store(true, Relaxed);
    }

    /// No key here defines this partition any more, if what defined it `is` what is meant; the stamp of what it was.
    fn ended(&mut self, name: &[u8], is: impl Fn(&Definition) -> bool) -> Option<(Stamp, Class)> {
        let (name, local) = self.local.remove_entry(name)?;
        if !is(&local.definition) {
            self.local.insert(name, local);
            return None;
        }
        let definition = local.definition;
        let was = (definition.stamp, definition.class);
        // In a cluster it may only have gone to another node: that is found out before anything is done.
        let dropped = match (bus::is_needed(), definition.class) {
            (true, _) => None,
            (false, Class::Temporary) => {
                let condemned = Condemned::new(Some(definition));
                self.condemned.insert(name.clone(), condemned);
                None
            }
            (false, _) => Some(definition),
        };
        self.note_dropped(name, dropped);
        Some(was)
    }

    /// What a name stands for: what the key here says, or the latest that other nodes say.
    fn effective(&self, name: &[u8]) -> Option<Known> {
        let local = self.local.get(name).filter(|l| l.is_alive());
        let local = local.map(|l| (l.definition.clone(), 0));
        let heard = self
            .heard
            .get(name)
            .into_iter()
            .flat_map(|by| by.values().cloned());
        local.into_iter().chain(heard).max_by_key(|(d, _)| d.stamp)
    }
}

/// Looks whether something was noted, and takes it back. All of these are of the main thread, and need not be locked.
fn take(noted: &AtomicBool) -> bool {
    let was = noted.load(Relaxed);
    if was {
        noted.store(false, Relaxed);
    }
    was
}

/// Brings a directory up to date.
pub fn refresh(directory: &mut Directory) {
    if !take(&CHANGED) {
        return;
    }
    let mut changed = with(|p| std::mem::take(&mut p.changed));
    if take(&STALE) {
        changed.extend(directory.entries().map(|(_, e)| (e.name.clone(), None)));
    }
    for (name, dropped) in changed.drain(..) {
        renew(name, dropped, directory);
    }
    // Its room is used again.
    with(|p| {
        if p.changed.is_empty() {
            p.changed = changed;
        }
    });
}

/// Brings what a directory says of a name up to date.
fn renew(name: Arc<[u8]>, dropped: Option<Arc<Definition>>, directory: &mut Directory) {
    let (effective, condemned) = with(|p| (p.effective(&name), p.condemned.contains_key(&name)));
    let listed = condemned || effective.as_ref().is_some_and(|(d, _)| is_listed(d));
    let ends_ms = effective.as_ref().map_or(0, |(_, ends_ms)| *ends_ms);
    let is_temporary = |d: &Arc<Definition>| d.class == Class::Temporary;
    let now = effective.as_ref().map(|(d, _)| is_temporary(d));
    let place = directory.find(&name);
    let before = place.and_then(|p| directory.definition(p).map(is_temporary));
    let place = directory.define_at(place, name, effective.map(|(d, _)| d));
    if before.zip(now).is_some_and(|(before, now)| before != now) {
        // Its keys have to be told whether they leave with it.
        members::lack();
    }
    let Some(entry) = directory.get_mut(place) else {
        return;
    };
    if ends_ms > 0 || now.is_none() {
        entry.ends_ms = ends_ms;
    }
    members::list(place, listed);
    if now.is_some() || condemned {
        return;
    }
    if ledger::Here.usage(place).keys == 0 {
        let_go(place, directory);
    } else if dropped.is_some_and(|value| !is_held_share(&value)) {
        // Nobody is waited for, and its keys stay. One that is alive has gone elsewhere: to another name, or another
        // database.
        with(|p| p.missing.insert(place, LET_GO));
    }
}

/// Forgets a name that nobody defines and no record here names.
fn let_go(place: Place, directory: &mut Directory) {
    members::list(place, false);
    directory.forget(place);
    ledger::forget(place);
    with(|p| {
        forget(&mut p.missing, &place);
        forget(&mut p.audits, &place);
    });
}

/// Removes what is rarely there, and asks nothing of a map of nothing.
fn forget<K: Borrow<Q> + Eq + Hash, Q: Eq + Hash + ?Sized, V>(map: &mut HashMap<K, V>, key: &Q) {
    if !map.is_empty() {
        map.remove(key);
    }
}

fn is_listed(definition: &Definition) -> bool {
    definition.class == Class::Temporary || definition.on_full == OnFull::Evict
}

// ---------------------------------------------------------------------------------------------
// Keys that define partitions
// ---------------------------------------------------------------------------------------------

/// A key holds this definition from now on.
pub fn held(db: i32, name: &[u8], definition: Arc<Definition>) {
    let local = Local { db, definition };
    with(|p| {
        let shared: Arc<[u8]> = name.into();
        p.local.insert(shared.clone(), local);
        forget(&mut p.condemned, name);
        p.note(shared);
    });
    bus::changed(name, None);
}

/// Whether the definition at this key is known.
pub fn knows(name: &[u8], definition: &Definition) -> bool {
    with(|p| {
        let local = p.local.get(name);
        local.is_some_and(|l| std::ptr::eq(&*l.definition, definition))
    })
}

/// A key holds this definition no longer.
pub fn unlinked(name: &[u8], definition: &Definition) {
    let gone = with(|p| p.ended(name, |d| std::ptr::eq(d, definition)));
    if gone.is_some() {
        bus::changed(name, gone);
        arm();
    }
}

/// Keys went, came or changed databases without being named: which still define partitions has to be looked at. Those
/// that are new are found by the background pass.
pub fn look_at_all(emptied: bool) {
    let gone = local()
        .into_iter()
        .filter(|(name, definition, db)| !defines(*db, name, definition));
    let gone: Vec<_> = gone.map(|(name, ..)| name).collect();
    with(|p| {
        p.missing.clear();
        p.local.retain(|_, l| l.is_alive());
        for name in gone {
            p.local.remove(&name);
        }
        let names: Vec<_> = p.local.keys().chain(p.heard.keys()).cloned().collect();
        names.iter().for_each(|name| p.note(name.clone()));
    });
    STALE.store(true, Relaxed);
    CHANGED.store(true, Relaxed);
    // What was loaded is listed already.
    match emptied {
        true => members::clear(),
        false => members::lack(),
    }
    bus::all_changed();
}

/// Two databases have changed places, and the keys with them.
pub fn swapped(first: i32, second: i32) {
    with(|p| {
        for local in p.local.values_mut() {
            local.db = match local.db {
                db if db == first => second,
                db if db == second => first,
                db => db,
            };
        }
    });
    look_at_all(true);
}

/// Whether a key still holds this definition.
fn defines(db: i32, name: &[u8], definition: &Arc<Definition>) -> bool {
    let ctx = context(db);
    let name = Name::new(ctx, name);
    // SAFETY: the context and the name outlive the key, of which nothing is changed meanwhile.
    let key = unsafe { ShareKey::open(ctx, name.string, Mode::Look) };
    key.is_ok_and(|key| {
        key.definition()
            .is_some_and(|d| std::ptr::eq(d, &**definition))
    })
}

/// What this node's keys define: names, definitions, and the database of each.
pub fn local() -> Vec<(Arc<[u8]>, Arc<Definition>, i32)> {
    with(|p| {
        let alive = p.local.iter().filter(|(_, l)| l.is_alive());
        alive
            .map(|(name, l)| (name.clone(), l.definition.clone(), l.db))
            .collect()
    })
}

/// What a key of this node defines.
pub fn local_of(name: &[u8]) -> Option<(Arc<Definition>, i32)> {
    with(|p| {
        let local = p.local.get(name).filter(|l| l.is_alive())?;
        Some((local.definition.clone(), local.db))
    })
}

/// Carries out that a partition is defined: by its key, here and on replicas. The stamp is the one that was offered for
/// it, and when.
pub fn define(
    ctx: *mut raw::RedisModuleCtx,
    name: &[u8],
    key: &mut ShareKey<'_>,
    made: Arc<Definition>,
    expires_ms: u64,
    (offered, now_us): (Stamp, u64),
) {
    let (is_new, made_at) = (key.definition().is_none(), made.stamp);
    guard::applying(|| {
        key.put(made);
        key.expire(expires_ms);
        let node = &mut *node();
        match made_at == offered {
            true => node.took(made_at, now_us),
            false => node.observe(made_at, now_us),
        }
        // One that is new ends never, as far as is known.
        if !is_new || expires_ms > 0 {
            let place = node.shares.find(name).unwrap_or_default();
            if let Some(entry) = node.shares.get_mut(place) {
                entry.ends_ms = expires_ms;
            }
        }
        if let Some(made) = key.definition() {
            propagate::define(ctx, name, made, expires_ms);
        }
    });
}

/// When the key of a partition expires, in milliseconds of unix time; 0: it does not.
pub fn expires_ms(db: i32, name: &[u8]) -> u64 {
    let ctx = context(db);
    let name = Name::new(ctx, name);
    let look = raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
    // SAFETY: our own context; the key is closed before its name goes.
    unsafe {
        let key = api!(RedisModule_OpenKey)(ctx, name.string, look as _);
        let at = match key.is_null() {
            true => -1,
            false => api!(RedisModule_GetAbsExpire)(key),
        };
        if !key.is_null() {
            api!(RedisModule_CloseKey)(key);
        }
        u64::try_from(at).unwrap_or(0)
    }
}

/// What another node says of a partition, and when it ends; `None`: its key defines it no longer.
pub fn heard(from: &str, name: &[u8], said: Option<Known>) {
    with(|p| {
        match said {
            Some(said) => {
                p.condemned.remove(name);
                let by = p.heard.entry(name.into()).or_default();
                by.insert(from.to_owned(), said);
            }
            None => {
                if let Some(by) = p.heard.get_mut(name) {
                    p.last
                        .insert(name.into(), by.remove(from).map(|(d, _)| d.class));
                    if by.is_empty() {
                        p.heard.remove(name);
                    }
                }
            }
        }
        p.note(name);
    });
}

/// Another node says that a partition is gone for good: whatever was said of it up to then is over, and if it was
/// temporary its keys go.
pub fn heard_over(name: &[u8], stamp: Stamp) {
    with(|p| {
        let mut class = p.last.remove(name).flatten();
        if let Some(by) = p.heard.get_mut(name) {
            by.retain(|_, (definition, _)| {
                let stays = definition.stamp > stamp;
                if !stays {
                    class = Some(definition.class);
                }
                stays
            });
            if by.is_empty() {
                p.heard.remove(name);
            }
        }
        if class == Some(Class::Temporary) && p.effective(name).is_none() {
            p.condemned.insert(name.into(), Condemned::new(None));
        }
        p.note(name);
    });
    arm();
}

/// What a node has said is not to be gone by any more, but for these names.
pub fn unheard(from: &str, but: &dyn Fn(&[u8]) -> bool) {
    with(|p| {
        let mut gone = vec![];
        p.heard.retain(|name, by| {
            if by.contains_key(from) && !but(name) {
                by.remove(from);
                gone.push(name.clone());
            }
            !by.is_empty()
        });
        gone.iter().for_each(|name| p.note(name.clone()));
    });
}

/// The key of a partition went from here, and nowhere else: the keys of one that was temporary go.
pub fn ended_here(name: &[u8], class: Class) {
    with(|p| {
        if class == Class::Temporary && p.effective(name).is_none() {
            p.condemned.insert(name.into(), Condemned::new(None));
            p.note(name);
        }
    });
    arm();
}

/// Whether a partition is gone, and its keys are to go with it.
pub fn is_condemned(name: &[u8]) -> bool {
    with(|p| p.condemned.contains_key(name))
}

// ---------------------------------------------------------------------------------------------
// Room for a write
// ---------------------------------------------------------------------------------------------

/// Keys that are to be removed to make room.
pub type Victims = Vec<(Place, Member)>;

/// Whether partitions have room for what was decided about these records, in the order of the writes of the first
/// change; the keys that are to be removed for it. What is decided may come to drop more versions.
///
/// # Errors
/// As [`Directory::admit`].
#[inline]
pub fn admit(
    changes: &mut [Change<'_>],
    named: Option<&[u8]>,
    records: &[Option<&Record>],
    env: &Env<'_>,
) -> Result<Victims, Refusal> {
    let record = |n: usize, _: &[u8]| records.get(n).copied().flatten();
    let all = || records.iter().copied().flatten();
    ask_for_room(changes, named, &record, all, env)
}

/// The same for a commit of several changes, each of which is about some of the keys.
///
/// # Errors
/// As [`Directory::admit`].
#[cold]
pub fn admit_all(
    changes: &mut [Change<'_>],
    named: Option<&[u8]>,
    keys: &[Key<'_>],
    env: &Env<'_>,
) -> Result<Victims, Refusal> {
    let record =
        |_: usize, name: &[u8]| keys.iter().find(|k| k.name() == name).and_then(Key::record);
    let all = || keys.iter().filter_map(Key::record);
    ask_for_room(changes, named, &record, all, env)
}

#[inline(always)]
fn ask_for_room<'r, I: Iterator<Item = &'r Record>>(
    changes: &mut [Change<'_>],
    named: Option<&[u8]>,
    record: &Records<'_, 'r>,
    all: impl FnOnce() -> I,
    env: &Env<'_>,
) -> Result<Victims, Refusal> {
    let mut found = Victims::new();
    if env.shares.is_idle() && named.is_none() {
        return Ok(found);
    }
    failpoint::hit("admit");
    let mut find =
        |place, need, written: &dyn Fn(&[u8]) -> bool| victims(place, need, written, &mut found);
    let ledger = &ledger::Here;
    let admitted = env
        .shares
        .admit(changes, named, record, env, ledger, &mut find);
    if bus::is_active() {
        tell_others(admitted.as_ref().err(), changes, all(), env);
    }
    admitted.map(|()| found)
}

/// Where other nodes may write to the same partitions they hear of it, if that cannot wait.
#[cold]
fn tell_others<'r>(
    refused: Option<&Refusal>,
    changes: &[Change<'_>],
    records: impl Iterator<Item = &'r Record>,
    env: &Env<'_>,
) {
    let writes = changes.iter().flat_map(|c| &c.writes);
    let comes = writes
        .filter_map(|w| w.home.as_ref())
        .map(|home| home.place);
    let places = comes.chain(records.map(|r| r.member().place()));
    places.for_each(|place| bus::consider(env.shares, place));
    if refused.is_some_and(|refusal| refusal.code == Code::Busy) {
        bus::hurry();
    }
}

/// Finds keys of a partition that are worth so many bytes together, those first that were written longest ago; none
/// that somebody holds, none that is `written` now.
pub fn victims(
    place: Place,
    need: u64,
    written: &dyn Fn(&[u8]) -> bool,
    found: &mut Victims,
) -> bool {
    failpoint::hit("victims");
    let (before, now_ms) = (found.len(), now_us() / 1000);
    let (mut worth, mut looked_at, mut from) = (0, 0, None);
    while worth < need && looked_at < 2 * EVICTIONS_MAX && found.len() - before < EVICTIONS_MAX {
        let next = members::after_member(place, from.as_ref(), 32);
        let Some(last) = next.last() else { break };
        from = Some(last.clone());
        for member in next {
            looked_at += 1;
            if worth >= need || found.len() - before >= EVICTIONS_MAX {
                break;
            }
            let charge = at(&member, |record| {
                let here =
                    record.filter(|r| r.member().place() == place && r.newest() == member.stamp);
                here.map(|r| (r.charge() as u64, r.leased_until_ms() > now_ms))
            });
            match charge {
                // It is not what it was when it was listed.
                None => members::remove(place, member.stamp, member.db, &member.key),
                Some((_, true)) => {}
                Some(_) if written(&member.key) => {}
                Some((charge, false)) => {
                    worth += charge;
                    found.push((place, member));
                }
            }
        }
    }
    if worth < need {
        found.truncate(before);
    }
    worth >= need
}

/// Does something with the record of a key.
fn at<T>(member: &Member, then: impl FnOnce(Option<&Record>) -> T) -> T {
    let ctx = context(member.db);
    let name = Name::new(ctx, &member.key);
    // SAFETY: the context and the name outlive the key, of which nothing is changed meanwhile.
    let key = unsafe { Key::open(ctx, name.string, Mode::Look) };
    then(key.as_ref().ok().and_then(Key::record))
}

/// Removes a key, here, on replicas and from the AOF, and says so.
fn remove(
    member: &Member,
    event: &std::ffi::CStr,
    class: i32,
    is: impl FnOnce(&Record) -> bool,
) -> bool {
    let ctx = context(member.db);
    let name = Name::new(ctx, &member.key);
    // SAFETY: the context and the name outlive the key, which nobody else has open.
    let Ok(mut key) = (unsafe { Key::open(ctx, name.string, Mode::Write) }) else {
        return false;
    };
    if !key.record().is_some_and(is) {
        return false;
    }
    guard::applying(|| {
        key.remove();
        key.signal();
        propagate::unlink(ctx, &member.key);
    });
    drop(key);
    // SAFETY: our own context and a live name.
    unsafe {
        api!(RedisModule_NotifyKeyspaceEvent)(ctx, class as _, event.as_ptr(), name.string);
    }
    true
}

/// Removes the keys that make room for a write.
pub fn evict(victims: &Victims, node: &Node) {
    for (place, member) in victims {
        let class = raw::REDISMODULE_NOTIFY_EVICTED;
        if remove(member, c"evicted", class, |r| r.member().place() == *place) {
            if let Some(entry) = node.shares.get(*place) {
                entry.evicted.set(entry.evicted.get() + 1);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Keys that leave with their partition
// ---------------------------------------------------------------------------------------------

/// Has what is to go removed in steps, from now on.
fn arm() {
    let start = with(|p| {
        let start = !p.sweeping && !p.condemned.is_empty();
        p.sweeping |= start;
        start
    });
    if start {
        again();
    }
}

fn again() {
    // SAFETY: our own context; no data.
    unsafe {
        let data = std::ptr::null_mut();
        api!(RedisModule_CreateTimer)(context(0), SWEEP_EVERY_MS, Some(sweep), data)
    };
}

unsafe extern "C" fn sweep(_: *mut raw::RedisModuleCtx, _: *mut c_void) {
    let more = guard::run(|| {
        failpoint::hit("sweep");
        let started = Instant::now();
        let master = flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0;
        if master && propagate::may_tell() {
            for name in with(Partitions::due) {
                if started.elapsed() < SWEEP {
                    sweep_one(&name, |_| started.elapsed() < SWEEP);
                }
            }
        }
        with(|p| {
            p.sweeping = !p.condemned.is_empty();
            p.sweeping
        })
    });
    if more.unwrap_or(true) {
        again();
    }
}

impl Partitions {
    /// The partitions whose keys are to go now.
    fn due(&mut self) -> Vec<Arc<[u8]>> {
        let now_ms = now_us() / 1000;
        let certain = |c: &Condemned| {
            !c.value.as_ref().is_some_and(is_held_share)
                || now_ms.saturating_sub(c.at_ms) > MISSING_MS
        };
        let due = self.condemned.iter().filter(|(_, c)| certain(c));
        due.map(|(name, _)| name.clone()).collect()
    }
}

/// Removes keys of a partition that is gone, until it is time for others or there are none.
pub fn sweep_one(name: &[u8], goes_on: impl Fn(usize) -> bool) {
    let place = node().shares.find(name).unwrap_or_default();
    let mut done = 0;
    while place.is_some() && goes_on(done) {
        let next = members::after_member(place, None, 16);
        if next.is_empty() {
            break;
        }
        done += next.len();
        for member in next {
            let class = raw::REDISMODULE_NOTIFY_EXPIRED;
            remove(&member, c"expired", class, |r| r.member().place() == place);
            // What was not there is not looked for again.
            members::remove(place, member.stamp, member.db, &member.key);
        }
    }
    if ledger::Here.usage(place).keys == 0 {
        with(|p| {
            p.condemned.remove(name);
            p.note(name);
        });
    } else if members::after_member(place, None, 1).is_empty() {
        members::lack();
    }
}

/// Ten times a second: lets names go that nothing needs, and keys whose partition nobody defines.
pub fn tick(steps: u64) {
    failpoint::hit("partitions");
    let node = &mut *node();
    if node.shares.is_idle() {
        return;
    }
    let now_ms = now_us() / 1000;
    let mut idle = vec![];
    with(|p| {
        p.last.clear();
        for (place, entry) in node.shares.entries() {
            if entry.definition.is_some() || p.condemned.contains_key(&*entry.name) {
                p.missing.remove(&place);
            } else if ledger::Here.usage(place).keys == 0 {
                idle.push(place);
            } else if !node.shares.complete {
                p.missing.remove(&place);
            } else {
                p.missing.entry(place).or_insert(now_ms);
            }
        }
    });
    for place in idle {
        let_go(place, &mut node.shares);
    }
    // EXPIRE and PERSIST are not told.
    if steps % 10 == 3 {
        lapse();
        look_at_ends(node);
    }
}

/// So many are looked at when somebody asks; those of a node that has more are looked at once a second.
const LOOKED_AT_MAX: usize = 1000;

/// Looks when the partitions end whose keys are here, if they are not too many to be looked at now.
pub fn look_at_ends_now(node: &mut Node) {
    if with(|p| p.local.len()) <= LOOKED_AT_MAX {
        look_at_ends(node);
    }
}

fn look_at_ends(node: &mut Node) {
    for (name, _, db) in local() {
        let ends_ms = expires_ms(db, &name);
        let place = node.shares.find(&name).unwrap_or_default();
        if let Some(entry) = node.shares.get_mut(place) {
            entry.ends_ms = ends_ms;
        }
    }
}

/// Definitions whose value is gone and whose end went unseen end now.
fn lapse() {
    let gone: Vec<_> = with(|p| {
        let gone = p.local.iter().filter(|(_, l)| !l.is_alive());
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        gone.into_iter()
            .filter_map(|name| Some((p.ended(&name, |_| true)?, name)))
            .collect()
    });
    for (stamp, name) in gone {
        bus::changed(&name, Some(stamp));
        arm();
    }
}

/// A record that nobody writes is of a partition that nobody defines: true if it is to go with it, because that is
/// what it came with.
pub fn is_orphan(record: &Record, node: &Node) -> bool {
    let member = record.member();
    if !member.dies() || node.shares.definition(member.place()).is_some() {
        return false;
    }
    let Some(entry) = node.shares.get(member.place()) else {
        return false;
    };
    let now_ms = now_us() / 1000;
    let gone = with(|p| {
        let since = p.missing.get(&member.place());
        let gone = since
            .is_some_and(|since| *since != LET_GO && now_ms.saturating_sub(*since) > MISSING_MS);
        if gone {
            let condemned = Condemned::new(None);
            p.condemned.insert((*entry.name).into(), condemned);
            p.note(entry.name.clone());
        }
        gone
    });
    if gone {
        arm();
    }
    gone
}

/// A record that was named into a partition that nobody defines may be let go.
pub fn may_let_go(place: Place) -> bool {
    let now_ms = now_us() / 1000;
    with(|p| {
        let since = p.missing.get(&place);
        since.is_some_and(|since| now_ms.saturating_sub(*since) > MISSING_MS)
    })
}

// ---------------------------------------------------------------------------------------------
// Audits, and what is shown
// ---------------------------------------------------------------------------------------------

static AUDIT_ASKED: AtomicBool = AtomicBool::new(false);

/// True once after an audit was asked for.
pub fn take_audit() -> bool {
    take(&AUDIT_ASKED)
}

/// An audit begins.
pub fn begin_audit() {
    let node = node();
    let places: Vec<_> = node.shares.entries().map(|(p, _)| p).collect();
    ledger::begin_audit(places.iter().copied());
    with(|p| {
        for place in places {
            p.audits.entry(place).or_default().running = true;
        }
    });
}

/// All keys have been counted; `last` if what is still wrong is wrong. False if sums do not agree yet: what is freed
/// in another thread is in them until it is.
pub fn end_audit(last: bool) -> bool {
    let node = node();
    let audited: Vec<Place> = with(|p| {
        let running = p.audits.iter().filter(|(_, a)| a.running);
        running.map(|(place, _)| *place).collect()
    });
    if !last && audited.iter().any(|place| ledger::drift(*place) != 0) {
        return false;
    }
    for place in audited {
        let (usage, drift) = (ledger::counted(place), ledger::drift(place));
        if drift != 0 {
            ledger::set_right(place);
            let name = node.shares.get(place).map_or(&[][..], |e| &e.name);
            super::log::warning(&format!(
                "the sum of the partition {} was wrong by {drift} bytes and has been set right",
                maos_core::refusal::Quoted(name)
            ));
        }
        let audit = AuditReply {
            running: false,
            bytes: usage.bytes,
            keys: usage.keys,
            drift,
            ended_ms: now_us() / 1000,
        };
        with(|p| p.audits.insert(place, audit));
    }
    true
}

/// What a command that looks at partitions sees.
pub struct Surveyed<'s, 'c> {
    /// The call.
    pub call: &'s Call<'c>,
    /// The node.
    pub node: &'s Node,
}

impl Survey for Surveyed<'_, '_> {
    fn directory(&self) -> &Directory {
        &self.node.shares
    }

    fn ledger(&self) -> &dyn Ledger {
        &ledger::Here
    }

    fn pool(&self) -> u64 {
        self.node.limits.pool
    }

    fn now_ms(&self) -> u64 {
        now_us() / 1000
    }

    fn high_water(&self, place: Place) -> u64 {
        ledger::high_water(place)
    }

    fn audit(&self, place: Place, ask: bool) -> Option<AuditReply> {
        if ask {
            AUDIT_ASKED.store(true, Relaxed);
        }
        with(|p| p.audits.get(&place).copied()).map(|audit| match audit.running {
            true => AuditReply {
                bytes: ledger::counted(place).bytes,
                keys: ledger::counted(place).keys,
                ..audit
            },
            false => audit,
        })
    }

    fn may_read(&self, name: &[u8]) -> bool {
        self.call.may_read(name)
    }
}

/// So many partitions stand in INFO by name, the fullest first; MAOS.PARTITION LIST has all.
const NAMED_MAX: usize = 128;

/// What INFO shows of partitions.
pub struct Figures {
    /// Bytes that all may be given.
    pub pool: u64,
    /// Bytes that they have been given.
    pub reserved: u64,
    /// How many there are.
    pub count: u64,
    /// Other masters that this node hears.
    pub peers: u64,
    /// Whether all that there are is known here.
    pub complete: bool,
    /// One for each: its name, and what it holds.
    pub lines: Vec<(String, String)>,
}

/// What INFO shows of partitions.
pub fn figures() -> Figures {
    let node = node();
    let shares = &node.shares;
    let defined = shares.entries().filter_map(|(place, entry)| {
        let (quota, here) = (entry.definition.as_ref()?.quota, ledger::Here.usage(place));
        let used = here.bytes.saturating_add(entry.others.bytes);
        Some((used as f64 / quota as f64, place, entry, quota, used, here))
    });
    let mut all: Vec<_> = defined.collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.2.name.cmp(&b.2.name)));
    let lines = all
        .iter()
        .take(NAMED_MAX)
        .map(|(_, _, entry, quota, used, here)| {
            let name = format!("partition_{}", conflicts::shown(&entry.name));
            let text = format!(
                "used={used},quota={quota},keys={},used_here={},refused={},evicted={}",
                here.keys.saturating_add(entry.others.keys),
                here.bytes,
                entry.refused.get(),
                entry.evicted.get()
            );
            (name, text)
        });
    Figures {
        pool: node.limits.pool,
        reserved: shares.reserved(),
        count: all.len() as u64,
        peers: bus::peers(),
        complete: shares.complete,
        lines: lines.collect(),
    }
}
