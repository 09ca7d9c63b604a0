//! What the nodes of a cluster tell each other of partitions, over the cluster bus.
//!
//! *Definitions.* Each master owns those whose keys it holds. It numbers their changes and broadcasts each at once;
//! a beat every second says how far it has come. Who has missed something, or has just come, asks, and is told all
//! of it. What is told is kept by who told it, and the latest definition of a name is the one that holds.
//!
//! *Usage.* Each master broadcasts what its keys hold when that has changed, ten times a second, and at once where
//! a partition is nearly full. Every other master confirms it, and says with that what it holds itself. What has not
//! been confirmed by all may not be much: see [`admit`](maos_core::partition::Directory::admit).
//!
//! All of it is derived. A node that knows nothing is told within two seconds, and one that leaves is forgotten.
//! Messages have a version and bounds; what does not keep to them is not listened to.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{c_char, c_uchar};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use maos_core::codec::v1;
use maos_core::config::{PARTITIONS_MAX, PARTITION_NAME_MAX};
use maos_core::partition::{Definition, Directory, Ledger, Place, Usage};
use maos_core::wire::partition::Class;
use maos_core::Stamp;

use super::api::{api, raw};
use super::call::flags;
use super::keys::is_elsewhere;
use super::node::{node, now_us, Node};
use super::{cluster, failpoint, guard, ledger, partitions};

/// The kind of our messages.
const KIND: u8 = 0xA6;

const BEAT: u8 = 0;
const ASK: u8 = 1;
const CHANGE: u8 = 2;
const ALL: u8 = 3;
const USAGE: u8 = 4;
const CONFIRM: u8 = 5;

/// A message that is longer is not ours. One definition may have 64 prefixes.
const MESSAGE_MAX: usize = 64 << 10;
/// A message that has grown so long is sent, and another begun.
const FULL: usize = 16 << 10;
/// Steps of the background pass, ten a second, from one beat or look at the cluster to the next.
const EVERY: u64 = 10;
/// How long a node that is silent is waited for, and one that has never said anything.
const SILENT_US: u64 = 5_000_000;
const NEVER_US: u64 = 10_000_000;
/// For how long what a node said is kept that is no master any more: who takes its place is heard by then.
const KEPT_US: u64 = 3_000_000;

/// What is known of another master.
#[derive(Default)]
struct Peer {
    /// Since when it is seen.
    seen_us: u64,
    /// When it last said something; 0: never.
    heard_us: u64,
    /// A majority does not reach it. One that only this node does not reach may still write.
    failed: bool,
    /// The life that it tells of, and how many changes of it have been heard.
    known: Option<(u64, u64)>,
    /// What it tells of itself, as far as it has come: life, number, the next part, and the names.
    coming: Option<Coming>,
    asked_us: u64,
    usage: HashMap<Box<[u8]>, Usage>,
    /// The last of our own tellings that it has confirmed.
    confirmed: u64,
    /// Since when it is no master that serves any more.
    left_us: Option<u64>,
}

/// The stamp of a definition that is not there any more, and how it was meant.
pub type Gone = (Stamp, Class);

/// Life, number and next part of what is coming, and the names so far.
type Coming = (u64, u64, u64, HashSet<Box<[u8]>>);

#[derive(Default)]
struct Bus {
    /// Our own life: when it began.
    life: u64,
    /// How many changes of definitions there were in it.
    number: u64,
    /// Names whose definition has changed, and the stamp of what is gone.
    changed: Vec<(Box<[u8]>, Option<Gone>)>,
    /// How many tellings of usage.
    telling: u64,
    was_master: bool,
    peers: HashMap<String, Peer>,
    /// The master of this node, if it is a replica: what it holds is what we hold.
    master: Option<String>,
    /// What was told and not yet confirmed by all, and before it what was, for each name: telling and bytes.
    told: HashMap<Box<[u8]>, VecDeque<(u64, Usage)>>,
}

struct MainThread(RefCell<Option<Bus>>);

// SAFETY: commands, timers and messages of the cluster come on the main thread only.
unsafe impl Sync for MainThread {}

static BUS: MainThread = MainThread(RefCell::new(None));
/// This server is a node of a cluster.
static CLUSTER: AtomicBool = AtomicBool::new(false);
/// There are other masters.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Something has to be told before the next step.
static URGENT: AtomicBool = AtomicBool::new(false);

/// Nothing of the server is called inside.
fn with<T>(then: impl FnOnce(&mut Bus) -> T) -> T {
    then(BUS.0.borrow_mut().get_or_insert_default())
}

/// Asks for the messages of other nodes.
pub fn register(ctx: *mut raw::RedisModuleCtx) {
    CLUSTER.store(cluster::is_cluster(), Relaxed);
    // SAFETY: in OnLoad, with its context; outside a cluster the server does nothing.
    unsafe { api!(RedisModule_RegisterClusterMessageReceiver)(ctx, KIND, Some(message)) };
}

/// Whether there may be other nodes to tell, and to hear.
pub fn is_needed() -> bool {
    CLUSTER.load(Relaxed)
}

/// Whether there are other masters that may write to the same partitions.
#[inline]
pub fn is_active() -> bool {
    ACTIVE.load(Relaxed)
}

fn is_master() -> bool {
    flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0
}

// ---------------------------------------------------------------------------------------------
// Messages
// ---------------------------------------------------------------------------------------------

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u8) -> Message {
        Message(cluster::begin(kind))
    }

    fn number(mut self, n: u64) -> Message {
        self.0.extend_from_slice(&n.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Message {
        self.0
            .extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    fn usage(self, name: &[u8], usage: Usage) -> Message {
        self.bytes(name).number(usage.bytes).number(usage.keys)
    }

    fn definition(self, name: &[u8], definition: &Definition, ends_ms: u64) -> Message {
        let encoded = v1::encode_definition(definition);
        self.bytes(name).bytes(&encoded).number(ends_ms)
    }

    /// To a node, or to all.
    fn send(self, to: Option<&str>) {
        // A node that is not connected asks when it is.
        cluster::send(KIND, to, &self.0);
    }
}

/// What comes from another node: nothing of it is trusted.
struct Said<'m>(&'m [u8]);

impl<'m> Said<'m> {
    fn number(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn bytes(&mut self) -> Option<&'m [u8]> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*head) as usize)?;
        self.0 = rest;
        Some(bytes)
    }

    fn name(&mut self) -> Option<&'m [u8]> {
        let name = self.bytes()?;
        (1..=PARTITION_NAME_MAX)
            .contains(&name.len())
            .then_some(name)
    }

    fn usage(&mut self) -> Option<(&'m [u8], Usage)> {
        let (name, bytes, keys) = (self.name()?, self.number()?, self.number()?);
        let fits = bytes <= Stamp::MAX.0 && keys <= Stamp::MAX.0;
        fits.then_some((name, Usage { bytes, keys }))
    }

    fn definition(&mut self) -> Option<(&'m [u8], Arc<Definition>, u64)> {
        let (name, encoded, ends_ms) = (self.name()?, self.bytes()?, self.number()?);
        let definition = v1::decode_definition(encoded).ok()?;
        Some((name, Arc::new(definition), ends_ms))
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

unsafe extern "C" fn message(
    _: *mut raw::RedisModuleCtx,
    sender: *const c_char,
    _: u8,
    payload: *const c_uchar,
    len: u32,
) {
    guard::run(|| {
        failpoint::hit("bus");
        // SAFETY: the server's arguments, in its callback.
        let heard = unsafe { cluster::heard(sender, payload, len) };
        if let Some((sender, kind, rest)) = heard.filter(|(.., rest)| rest.len() <= MESSAGE_MAX) {
            understand(sender, kind, Said(rest));
        }
    });
}

/// Does what a message says; nothing of it if it breaks off. `None` if it did.
fn understand(sender: &str, kind: u8, mut said: Said<'_>) -> Option<()> {
    let now = now_us();
    let is_known = with(|b| {
        let peer = b.peers.get_mut(sender);
        peer.map(|p| p.heard_us = now).is_some()
    });
    match kind {
        ASK if is_master() => {
            tell_all(sender);
            return Some(());
        }
        // A node that is not known as a master may have become one.
        _ if !is_known => {
            look_at_cluster();
            if !with(|b| b.peers.contains_key(sender)) {
                return None;
            }
        }
        _ => {}
    }
    match kind {
        BEAT => {
            let at = (said.number()?, said.number()?);
            if with(|b| b.peers.get(sender).is_none_or(|p| p.known != Some(at))) {
                ask(sender, now);
            }
        }
        CHANGE => {
            let (life, number, there) = (said.number()?, said.number()?, said.number()?);
            let follows = with(|b| {
                let known = b.peers.get(sender).and_then(|p| p.known);
                known.is_some_and(|(l, n)| l == life && n + 1 == number)
            });
            if !follows {
                ask(sender, now);
                return None;
            }
            if there == 1 {
                let (name, definition, ends_ms) = said.definition()?;
                partitions::heard(sender, name, Some((definition, ends_ms)));
            } else {
                let (name, stamp, over) = (said.name()?, said.number()?, said.number()?);
                partitions::heard(sender, name, None);
                if over == 1 {
                    partitions::heard_over(name, Stamp(stamp));
                }
            }
            with(|b| {
                if let Some(peer) = b.peers.get_mut(sender) {
                    peer.known = Some((life, number));
                }
            });
        }
        ALL => hear_all(sender, &mut said)?,
        USAGE => {
            let (telling, whole) = (said.number()?, said.number()?);
            let mut answer = Message::new(CONFIRM).number(telling);
            let mut usages = vec![];
            while !said.is_over() {
                usages.push(said.usage()?);
            }
            let node = &mut *node();
            for (name, _) in &usages {
                let place = node.shares.find(name).unwrap_or_default();
                answer = answer.usage(name, ledger::Here.usage(place));
            }
            hear_usage(sender, &usages, whole == 1, node);
            if is_master() {
                answer.send(Some(sender));
            }
        }
        CONFIRM => {
            let telling = said.number()?;
            let mut usages = vec![];
            while !said.is_over() {
                usages.push(said.usage()?);
            }
            with(|b| {
                let most = b.telling;
                if let Some(peer) = b.peers.get_mut(sender) {
                    peer.confirmed = peer.confirmed.max(telling.min(most));
                }
            });
            hear_usage(sender, &usages, false, &mut node());
        }
        _ => {}
    }
    Some(())
}

/// Asks a node for all that it has to tell, though not again and again.
fn ask(whom: &str, now: u64) {
    let asks = with(|b| {
        let peer = b.peers.get_mut(whom);
        peer.is_some_and(|p| {
            let asks = now.saturating_sub(p.asked_us) > 200_000;
            if asks {
                p.asked_us = now;
            }
            asks
        })
    });
    if asks {
        Message::new(ASK).send(Some(whom));
    }
}

/// Tells a node all that there is to tell.
fn tell_all(to: &str) {
    let (life, number) = with(|b| (b.life, b.number));
    let begin = |part: u64| Message::new(ALL).number(life).number(number).number(part);
    let (mut part, mut text) = (0, vec![]);
    for (name, definition, db) in partitions::local() {
        let ends_ms = partitions::expires_ms(db, &name);
        text.extend_from_slice(&Message(vec![]).definition(&name, &definition, ends_ms).0);
        if text.len() >= FULL {
            let mut message = begin(part).number(0);
            message.0.append(&mut text);
            message.send(Some(to));
            part += 1;
        }
    }
    let mut message = begin(part).number(1);
    message.0.append(&mut text);
    message.send(Some(to));
    tell_usage(Some(to), true);
}

/// A part of all that a node has to tell.
fn hear_all(sender: &str, said: &mut Said<'_>) -> Option<()> {
    let (life, number, part, last) = (
        said.number()?,
        said.number()?,
        said.number()?,
        said.number()?,
    );
    let mut definitions = vec![];
    while !said.is_over() {
        definitions.push(said.definition()?);
    }
    let names = with(|b| {
        let peer = b.peers.get_mut(sender)?;
        let mut coming = peer.coming.take();
        if part == 0 {
            coming = Some((life, number, 0, HashSet::new()));
        }
        let (l, n, next, mut names) = coming?;
        if (l, n, next) != (life, number, part) || names.len() + definitions.len() > PARTITIONS_MAX
        {
            return None;
        }
        names.extend(definitions.iter().map(|(name, ..)| Box::from(*name)));
        if last == 1 {
            peer.known = Some((life, number));
            return Some(Some(names));
        }
        peer.coming = Some((life, number, part + 1, names));
        Some(None)
    })?;
    for (name, definition, ends_ms) in definitions {
        partitions::heard(sender, name, Some((definition, ends_ms)));
    }
    if let Some(names) = names {
        partitions::unheard(sender, &|name| names.contains(name));
    }
    Some(())
}

// ---------------------------------------------------------------------------------------------
// Definitions
// ---------------------------------------------------------------------------------------------

/// The definition of this name has changed here: `gone` is the stamp of one that is not there any more. It is told
/// when whatever does that is done.
pub fn changed(name: &[u8], gone: Option<Gone>) {
    if !CLUSTER.load(Relaxed) {
        return;
    }
    with(|b| b.changed.push((name.into(), gone)));
    URGENT.store(true, Relaxed);
}

/// Tells what has changed.
fn tell_changes() {
    for (name, gone) in with(|b| std::mem::take(&mut b.changed)) {
        let (life, number) = with(|b| {
            b.number += 1;
            (b.life, b.number)
        });
        if !is_master() {
            continue;
        }
        let message = Message::new(CHANGE).number(life).number(number);
        let message = match (partitions::local_of(&name), gone) {
            (Some((definition, db)), _) => {
                let ends_ms = partitions::expires_ms(db, &name);
                message.number(1).definition(&name, &definition, ends_ms)
            }
            (None, gone) => {
                // One whose slot moves goes elsewhere, and not for good.
                let over = gone.filter(|_| !is_elsewhere(0, &name));
                if let Some((_, class)) = over {
                    partitions::ended_here(&name, class);
                }
                let (stamp, over) = (gone.map_or(0, |(stamp, _)| stamp.0), over.is_some());
                let message = message.number(0).bytes(&name);
                message.number(stamp).number(u64::from(over))
            }
        };
        message.send(None);
    }
}

/// Any definition may have changed here.
pub fn all_changed() {
    if !CLUSTER.load(Relaxed) {
        return;
    }
    with(|b| b.number += 1);
    URGENT.store(true, Relaxed);
}

// ---------------------------------------------------------------------------------------------
// Usage
// ---------------------------------------------------------------------------------------------

/// Tells what has changed since it was last told, or all of it.
fn tell_usage(to: Option<&str>, whole: bool) {
    if !is_master() {
        return;
    }
    let node = &mut *node();
    let telling = with(|b| b.telling + 1);
    let begin = || Message::new(USAGE).number(telling).number(u64::from(whole));
    let mut messages = vec![begin()];
    let mut any = false;
    for (place, entry) in node.shares.entries() {
        let usage = ledger::Here.usage(place);
        let last = with(|b| {
            b.told
                .get(&*entry.name)
                .and_then(|told| told.back().copied())
        });
        let news = last.map_or(usage != Usage::default(), |(_, last)| last != usage);
        let shown = news || (whole && usage != Usage::default());
        if !shown {
            continue;
        }
        any = true;
        if news && to.is_none() {
            with(|b| {
                let told = b.told.entry((*entry.name).into()).or_default();
                told.push_back((telling, usage));
            });
        }
        let full = messages.last().is_some_and(|m| m.0.len() >= FULL);
        if full {
            messages.push(Message::new(USAGE).number(telling).number(0));
        }
        if let Some(message) = messages.pop() {
            messages.push(message.usage(&entry.name, usage));
        }
    }
    if !any && !whole {
        return;
    }
    with(|b| b.telling = telling);
    messages.into_iter().for_each(|message| message.send(to));
    settle(node);
}

fn hear_usage(sender: &str, usages: &[(&[u8], Usage)], whole: bool, node: &mut Node) {
    with(|b| {
        let Some(peer) = b.peers.get_mut(sender) else {
            return;
        };
        if whole {
            peer.usage.clear();
        }
        for (name, usage) in usages {
            match *usage == Usage::default() {
                true => {
                    peer.usage.remove(*name);
                }
                false if peer.usage.len() < 2 * PARTITIONS_MAX => {
                    peer.usage.insert((*name).into(), *usage);
                }
                false => {}
            }
        }
    });
    settle(node);
}

/// Puts what is known of the other nodes into the directory.
fn settle(node: &mut Node) {
    with(|b| {
        let counts =
            |name: &String, p: &Peer| p.left_us.is_none() && Some(name) != b.master.as_ref();
        let masters: Vec<&Peer> = b
            .peers
            .iter()
            .filter(|(n, p)| counts(n, p))
            .map(|(_, p)| p)
            .collect();
        let writers = masters.iter().filter(|p| p.heard_us > 0 && !p.failed);
        let confirmed = writers
            .clone()
            .map(|p| p.confirmed)
            .min()
            .unwrap_or(u64::MAX);
        let count = writers.count() as u64;
        node.shares.peers = count;
        let places: Vec<Place> = node.shares.entries().map(|(p, _)| p).collect();
        for place in places {
            let Some(entry) = node.shares.get_mut(place) else {
                continue;
            };
            let mut others = Usage::default();
            for usage in masters.iter().filter_map(|p| p.usage.get(&*entry.name)) {
                others.bytes = others.bytes.saturating_add(usage.bytes);
                others.keys = others.keys.saturating_add(usage.keys);
            }
            entry.others = others;
            entry.confirmed = match b.told.get_mut(&*entry.name) {
                None => 0,
                Some(told) => {
                    while told.get(1).is_some_and(|(n, _)| *n <= confirmed) {
                        told.pop_front();
                    }
                    let heard = told.front().is_some_and(|(n, _)| *n <= confirmed);
                    let least = told.iter().map(|(_, u)| u.bytes).min().unwrap_or(0);
                    if heard {
                        least
                    } else {
                        0
                    }
                }
            };
        }
    });
}

/// A partition is about to be written here that others may write to: tells them at once what it holds where much of
/// it has not been told.
#[cold]
pub fn consider(shares: &Directory, place: Place) {
    let Some(entry) = shares.get(place) else {
        return;
    };
    let Some(definition) = &entry.definition else {
        return;
    };
    let here = ledger::Here.usage(place).bytes;
    let told = with(|b| {
        let told = b.told.get(&*entry.name).and_then(|told| told.back());
        told.map_or(0, |(_, usage)| usage.bytes)
    });
    let left = definition.quota.saturating_sub(here + entry.others.bytes);
    let part = (left / (shares.peers + 1)).max(definition.quota / 256);
    if here.saturating_sub(told) > part / 4 {
        URGENT.store(true, Relaxed);
    }
}

/// After a command: what cannot wait is told.
#[inline]
pub fn flush() {
    if URGENT.load(Relaxed) {
        flush_now();
    }
}

#[cold]
fn flush_now() {
    URGENT.store(false, Relaxed);
    guard::run(|| match cluster::is_cluster() {
        true => {
            tell_changes();
            tell_usage(None, false);
        }
        false => with(|b| b.changed.clear()),
    });
}

/// A write was refused because others have not heard of what was written before.
#[cold]
pub fn hurry() {
    URGENT.store(true, Relaxed);
}

// ---------------------------------------------------------------------------------------------
// The cluster
// ---------------------------------------------------------------------------------------------

/// Looks at who is a master that serves, and forgets who is none any more.
fn look_at_cluster() {
    let Some(nodes) = cluster::nodes() else {
        return;
    };
    let masters: Vec<_> = nodes.masters.iter().filter(|m| !m.is_myself).collect();
    let now = now_us();
    let forgotten: Vec<String> = with(|b| {
        b.master = nodes.own_master.clone();
        for (name, peer) in &mut b.peers {
            if !masters.iter().any(|m| m.name == *name) {
                peer.left_us.get_or_insert(now);
            }
        }
        for master in masters {
            let peer = b.peers.entry(master.name.clone()).or_default();
            if peer.seen_us == 0 {
                peer.seen_us = now;
            }
            (peer.failed, peer.left_us) = (master.failed, None);
        }
        let waits = !b.all_heard(now);
        let over =
            |p: &Peer| p.left_us.is_some_and(|at| now.saturating_sub(at) > KEPT_US) && !waits;
        let gone: Vec<String> = b
            .peers
            .iter()
            .filter(|(_, p)| over(p))
            .map(|(n, _)| n.clone())
            .collect();
        gone.iter().for_each(|name| drop(b.peers.remove(name)));
        gone
    });
    for name in forgotten {
        partitions::unheard(&name, &|_| false);
    }
}

impl Bus {
    /// Whether every master that serves has told all that it has to tell, and still does.
    fn all_heard(&self, now: u64) -> bool {
        let heard = |p: &Peer| match (p.left_us, p.heard_us) {
            (Some(_), _) => true,
            // Without the module it has nothing to tell.
            (None, 0) => now.saturating_sub(p.seen_us) > NEVER_US,
            (None, at) => p.known.is_some() && (p.failed || now.saturating_sub(at) < SILENT_US),
        };
        self.peers.values().all(heard)
    }
}

/// Ten times a second.
pub fn tick(steps: u64) {
    if !CLUSTER.load(Relaxed) {
        return;
    }
    let (now, master) = (now_us(), is_master());
    let begins = with(|b| {
        let begins = master && !b.was_master;
        b.was_master = master;
        // A life of its own: what it was before has nothing to do with it.
        if begins || b.life == 0 {
            b.life = now;
        }
        begins
    });
    if steps % EVERY == 1 || begins {
        look_at_cluster();
        if master {
            let (life, number) = with(|b| (b.life, b.number));
            Message::new(BEAT).number(life).number(number).send(None);
        }
    }
    let unknown: Vec<String> = with(|b| {
        let unknown = b
            .peers
            .iter()
            .filter(|(_, p)| p.known.is_none() && p.left_us.is_none() && !p.failed);
        unknown.map(|(name, _)| name.clone()).collect()
    });
    unknown.iter().for_each(|name| ask(name, now));
    let (active, complete) = with(|b| {
        let others = b
            .peers
            .iter()
            .any(|(n, p)| p.left_us.is_none() && Some(n) != b.master.as_ref());
        (
            others && master,
            b.all_heard(now) && now.saturating_sub(b.life) > 1_000_000,
        )
    });
    ACTIVE.store(active, Relaxed);
    node().shares.complete = complete;
    flush_now();
    settle(&mut node());
    // What is not defined and not held any more was told so once.
    if steps % EVERY == 5 {
        let node = node();
        with(|b| {
            let known = |name: &[u8]| node.shares.find(name).is_some();
            b.told.retain(|name, told| {
                known(name) || told.back().is_some_and(|(_, u)| *u != Usage::default())
            });
        });
    }
}

/// Other masters that this node hears.
pub fn peers() -> u64 {
    with(|b| {
        let heard = b
            .peers
            .values()
            .filter(|p| p.left_us.is_none() && p.heard_us > 0);
        heard.count() as u64
    })
}

/// Tells all nodes a hundred messages that are nearly right, cut, too long, or nonsense.
#[cfg(debug_assertions)]
pub fn shout(seed: u64) {
    let mut rng = maos_core::generate::Rng::new(seed);
    for _ in 0..100 {
        let kind = rng.below(8) as u8;
        let mut message = Message::new(kind);
        for _ in 0..rng.below(8) {
            message = match rng.below(4) {
                0 => message.number(rng.number()),
                1 => message.number(rng.below(3) as u64),
                2 => message.bytes(b"part:a"),
                _ => message.bytes(&rng.number().to_le_bytes()),
            };
        }
        let local = partitions::local();
        if let Some((name, definition, _)) = local.first().filter(|_| rng.chance(30)) {
            message = message.definition(name, definition, rng.number());
        }
        let text = &mut message.0;
        match rng.below(6) {
            0 => text.truncate(rng.below(text.len())),
            1 => text.extend_from_slice(&vec![7; rng.below(100_000)]),
            2 => {
                let at = rng.below(text.len());
                text[at] = rng.number() as u8;
            }
            _ => {}
        }
        message.send(None);
    }
}
