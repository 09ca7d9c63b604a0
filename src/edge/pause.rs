//! Whether this node may have slept through its own replacement.
//!
//! A master whose process was stopped or whose machine was paused goes on where it was, and for a moment
//! serves clients who do not know that a replica has taken its place: what it grants or compares then means
//! nothing. So a gap between two looks at the clock, longer than the cluster's node timeout, puts the node in
//! doubt, and until that ends whatever is conditional is refused with `BUSY`.
//!
//! In a cluster the other masters end it. They are asked over the cluster bus whether they see this node as
//! a master that serves slots and has not failed; a majority, this node among it, is enough, because whoever
//! takes its place needs the votes of a majority that saw it fail. One that slept as well may know no more
//! than this node: its word counts when all masters agree, or when it has been awake for two node timeouts
//! (in which it has heard from everybody). Outside a cluster nobody can be asked, and the doubt ends by itself.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{c_char, c_uchar};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use maos_core::{Code, Refusal};

use super::api::{api, raw};
use super::call::flags;
use super::lineage::context;
use super::metrics::METRICS;
use super::node::{node, now_us};
use super::{failpoint, guard, log};

/// The kind of our messages on the cluster bus. Modules whose names are short share one space of kinds, so
/// each message begins with our name too.
const KIND: u8 = 0xA5;
const MARK: &[u8; 5] = b"maos\x01";
const ASKED: u8 = 0;
const SURE: u8 = 1;
const UNSURE: u8 = 2;

/// The first pause before the others are asked again, and the longest: it doubles in between.
const AGAIN_US: [u64; 2] = [100_000, 3_200_000];

/// The length of a node's name.
const NAME: usize = raw::REDISMODULE_NODE_ID_LEN as usize;

/// The wall clock when the node was last looked at awake.
static SEEN_US: AtomicU64 = AtomicU64::new(0);
/// For how long after that it counts as awake without another look: 0 in doubt, all time where nobody asks.
static AWAKE_US: AtomicU64 = AtomicU64::new(u64::MAX);

/// What is known besides.
#[derive(Default)]
struct Watch {
    /// The steady clock when the node was last looked at awake.
    seen_us: u64,
    /// How long it may sleep; 0: as long as it likes.
    limit_us: u64,
    limit_known: bool,
    doubt: Option<Doubt>,
}

struct Doubt {
    /// Tells answers to this doubt from those to an earlier one: the moment it began, by the steady clock.
    began_us: u64,
    slept_us: u64,
    ask_us: u64,
    pause_us: u64,
    sure: HashSet<String>,
    unsure: HashSet<String>,
    /// Masters that have confirmed this node, itself among them, and how many are needed.
    count: (usize, usize),
}

struct MainThread(RefCell<Watch>);

// SAFETY: commands, timers, events and messages of the cluster come on the main thread only.
unsafe impl Sync for MainThread {}

static WATCH: MainThread = MainThread(RefCell::new(Watch {
    seen_us: 0,
    limit_us: 0,
    limit_known: false,
    doubt: None,
}));

fn with<T>(then: impl FnOnce(&mut Watch) -> T) -> T {
    then(&mut WATCH.0.borrow_mut())
}

/// True unless the node may have slept too long: one comparison, for a clock that has been read.
#[inline(always)]
pub fn is_certain(now_us: u64) -> bool {
    // A clock that stepped back wraps around, and is looked at more closely.
    now_us.wrapping_sub(SEEN_US.load(Relaxed)) < AWAKE_US.load(Relaxed)
}

/// Whether the node is in doubt.
pub fn in_doubt() -> bool {
    with(|w| w.doubt.is_some())
}

/// Looks more closely.
///
/// # Errors
/// `BUSY` while the node is in doubt.
#[cold]
pub fn check(now_us: u64) -> Result<(), Refusal> {
    failpoint::hit("pause");
    look(now_us);
    with(|w| match &w.doubt {
        None => Ok(()),
        Some(doubt) => Err(doubt.refusal(w.limit_us)),
    })
}

/// A setting has changed.
pub fn look_at_settings() {
    with(|w| w.limit_known = false);
}

/// Asks for the messages of other nodes.
pub fn register(ctx: *mut raw::RedisModuleCtx) {
    // SAFETY: in OnLoad, with its context; outside a cluster the server does nothing.
    unsafe { api!(RedisModule_RegisterClusterMessageReceiver)(ctx, KIND, Some(message)) };
}

/// At load, and from the background ten times a second.
pub fn tick() {
    look(now_us());
    if with(|w| w.limit_known) {
        return;
    }
    let limit_us = limit_us();
    with(|w| {
        w.limit_us = limit_us;
        w.limit_known = true;
        w.publish(now_us());
    });
}

impl Watch {
    fn publish(&self, now_us: u64) {
        SEEN_US.store(now_us, Relaxed);
        let awake_us = match (&self.doubt, self.limit_us) {
            (Some(_), _) => 0,
            (None, 0) => u64::MAX,
            (None, limit_us) => limit_us,
        };
        AWAKE_US.store(awake_us, Relaxed);
    }
}

impl Doubt {
    fn refusal(&self, limit_us: u64) -> Refusal {
        let (slept_ms, limit_ms) = (self.slept_us / 1000, limit_us / 1000);
        let text = if is_cluster() {
            let (sure, needed) = self.count;
            format!("this node slept for {slept_ms} ms, longer than the cluster's node timeout of {limit_ms} ms, and may have been replaced: it grants and compares nothing until a majority of the masters has confirmed it ({sure} of {needed} so far). Try again")
        } else {
            let left_ms = (self.began_us + limit_us).saturating_sub(steady_us()) / 1000;
            format!("this server slept for {slept_ms} ms, longer than maos.pause-guard-ms {limit_ms}, and may have been replaced: for {left_ms} more ms it grants and compares nothing. Try again")
        };
        Refusal::new(Code::Busy, text)
    }
}

/// Looks at the clock: has the node slept, and is what it was in doubt about over?
fn look(now_us: u64) {
    let steady_us = steady_us();
    let is_master = flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_MASTER != 0;
    let doubts = with(|w| {
        // A paused machine may stop its steady clock and set its wall clock afterwards.
        let wall_us = now_us.saturating_sub(SEEN_US.load(Relaxed));
        let slept_us = wall_us.max(steady_us.saturating_sub(w.seen_us));
        w.seen_us = steady_us;
        if w.limit_us == 0 || !is_master {
            w.doubt = None;
        } else if slept_us > w.limit_us {
            METRICS.pauses.one();
            log::warning(&format!(
                "this node slept for {} ms: until it is known that it is still a master, it refuses locks and conditional writes",
                slept_us / 1000
            ));
            w.doubt = Some(Doubt {
                began_us: steady_us,
                slept_us,
                ask_us: steady_us,
                pause_us: AGAIN_US[0],
                sure: HashSet::new(),
                unsure: HashSet::new(),
                count: (0, 0),
            });
        }
        w.publish(now_us);
        w.doubt.is_some()
    });
    if !doubts {
        return;
    }
    if is_cluster() {
        // To judge is to list all nodes: with each question and each answer, not with each request refused.
        if ask(steady_us) {
            judge();
        }
    } else {
        with(|w| {
            let limit_us = w.limit_us;
            w.doubt.take_if(|d| steady_us - d.began_us >= limit_us);
            w.publish(now_us);
        });
    }
}

/// Asks all nodes, if it is time.
fn ask(steady_us: u64) -> bool {
    let question = with(|w| {
        let doubt = w.doubt.as_mut().filter(|d| d.ask_us <= steady_us)?;
        doubt.ask_us = steady_us + doubt.pause_us;
        doubt.pause_us = (doubt.pause_us * 2).min(AGAIN_US[1]);
        Some(doubt.began_us)
    });
    if let Some(number) = question {
        send(None, ASKED, number);
    }
    question.is_some()
}

/// Ends the doubt when enough have confirmed this node.
fn judge() {
    let masters = masters();
    with(|w| {
        let Some(doubt) = &mut w.doubt else { return };
        let others = || masters.iter().filter(|m| !m.is_myself);
        let mine = masters.len() - others().count();
        let sure = mine + others().filter(|m| doubt.sure.contains(&m.name)).count();
        let needed = masters.len() / 2 + 1;
        let said = |m: &Master| doubt.sure.contains(&m.name) || doubt.unsure.contains(&m.name);
        let all = mine > 0 && others().all(said);
        doubt.count = (sure, needed);
        if sure >= needed || all {
            w.doubt = None;
            w.publish(now_us());
        }
    });
}

/// A message of another node: a question, or the answer to one of ours.
unsafe extern "C" fn message(
    _: *mut raw::RedisModuleCtx,
    sender: *const c_char,
    _: u8,
    payload: *const c_uchar,
    len: u32,
) {
    guard::run(|| {
        failpoint::hit("message");
        // SAFETY: the server gives a node's name, of a fixed length, and `len` bytes.
        let (sender, payload) = unsafe {
            (
                std::slice::from_raw_parts(sender.cast::<u8>(), NAME),
                std::slice::from_raw_parts(payload, len as usize),
            )
        };
        let sender = String::from_utf8_lossy(sender).into_owned();
        let Some((kind, number)) = payload.strip_prefix(MARK).and_then(understood) else {
            return;
        };
        if kind == ASKED {
            if let Some(answer) = answer(&sender) {
                send(Some(&sender), answer, number);
            }
            return;
        }
        with(|w| {
            let asked = w.doubt.as_mut().filter(|d| d.began_us == number);
            if let Some(doubt) = asked {
                match kind {
                    SURE => doubt.sure.insert(sender),
                    _ => doubt.unsure.insert(sender),
                };
            }
        });
        judge();
    });
}

fn understood(rest: &[u8]) -> Option<(u8, u64)> {
    let (kind, number) = rest.split_first()?;
    Some((*kind, u64::from_le_bytes(number.try_into().ok()?)))
}

/// What is to be said of a node that asks; nothing if it is not seen as a master that serves.
fn answer(asks: &str) -> Option<u8> {
    let masters = masters();
    masters.iter().find(|m| m.name == *asks && !m.failed)?;
    let steady_us = steady_us();
    let now_us = now_us();
    // Who slept hears the question before it has looked at its own clock.
    if !is_certain(now_us) {
        look(now_us);
    }
    let slept = with(|w| {
        let heard_us = 2 * w.limit_us;
        let doubt = w.doubt.as_ref();
        doubt.is_some_and(|d| steady_us.saturating_sub(d.began_us) < heard_us)
    });
    Some(if slept { UNSURE } else { SURE })
}

fn send(to: Option<&str>, kind: u8, number: u64) {
    let mut text = MARK.to_vec();
    text.push(kind);
    text.extend_from_slice(&number.to_le_bytes());
    let mut name = [0u8; NAME + 1];
    let to = match to {
        Some(to) => {
            name[..NAME].copy_from_slice(&to.as_bytes()[..NAME]);
            name.as_ptr()
        }
        None => std::ptr::null(),
    };
    // SAFETY: our own context; the server copies name and message. A node that is not connected is asked
    // again later.
    unsafe {
        api!(RedisModule_SendClusterMessage)(
            context(0),
            to.cast(),
            KIND,
            text.as_ptr().cast(),
            text.len() as u32,
        )
    };
}

/// A master that serves slots, as this node sees it.
struct Master {
    name: String,
    is_myself: bool,
    failed: bool,
}

/// All masters that serve slots: those whose votes count.
fn masters() -> Vec<Master> {
    let text = said([c"CLUSTER", c"NODES"], None).unwrap_or_default();
    text.lines().filter_map(master).collect()
}

/// A line of `CLUSTER NODES`: name, address, flags, master, two times, epoch, link, slots.
fn master(line: &str) -> Option<Master> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let mut flags = words.nth(1)?.split(',');
    let has_slots = words.skip(5).any(|slots| !slots.starts_with('['));
    let has = |flag: &str| flags.clone().any(|f| f == flag);
    let master = Master {
        name: name.to_owned(),
        is_myself: has("myself"),
        failed: has("fail") || has("fail?"),
    };
    (flags.any(|f| f == "master") && has_slots && name.len() == NAME).then_some(master)
}

/// Whether this server is a node of a cluster.
pub fn is_cluster() -> bool {
    flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0
}

/// How long this node may sleep.
fn limit_us() -> u64 {
    if !is_cluster() {
        return node().limits.pause_us;
    }
    let said = said([c"CONFIG", c"GET"], Some(c"cluster-node-timeout"));
    let ms = said.and_then(|text| text.parse::<u64>().ok());
    ms.unwrap_or(15_000) * 1000
}

/// What the server says to a command of its own: a text, or the second of a pair.
pub fn said(command: [&std::ffi::CStr; 2], argument: Option<&std::ffi::CStr>) -> Option<String> {
    let [name, sub] = command.map(|word| word.as_ptr());
    let ctx = context(0);
    // SAFETY: the formats say how many strings follow; the reply lives until it is freed.
    unsafe {
        let reply = match argument {
            None => api!(RedisModule_Call)(ctx, name, c"c".as_ptr(), sub),
            Some(arg) => api!(RedisModule_Call)(ctx, name, c"cc".as_ptr(), sub, arg.as_ptr()),
        };
        if reply.is_null() {
            return None;
        }
        let text = match argument {
            None => reply,
            Some(_) => api!(RedisModule_CallReplyArrayElement)(reply, 1),
        };
        let mut len = 0;
        let start = match text.is_null() {
            true => std::ptr::null(),
            false => api!(RedisModule_CallReplyStringPtr)(text, &raw mut len),
        };
        let said = (!start.is_null()).then(|| {
            let bytes = std::slice::from_raw_parts(start.cast::<u8>(), len);
            String::from_utf8_lossy(bytes).into_owned()
        });
        api!(RedisModule_FreeCallReply)(reply);
        said
    }
}

/// A clock that goes on while the machine sleeps, where there is one, in microseconds.
fn steady_us() -> u64 {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the struct is ours.
    unsafe { libc::clock_gettime(CLOCK, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}
