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
use super::cluster::{self, Master};
use super::metrics::METRICS;
use super::node::{node, now_us};
use super::{failpoint, guard, log};

/// The kind of our messages on the cluster bus.
const KIND: u8 = 0xA5;
const ASKED: u8 = 0;
const SURE: u8 = 1;
const UNSURE: u8 = 2;

/// The first pause before the others are asked again, and the longest: it doubles in between.
const AGAIN_US: [u64; 2] = [100_000, 3_200_000];

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
        let text = if cluster::is_cluster() {
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
    if cluster::is_cluster() {
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
        // SAFETY: the server's arguments, in its callback.
        let heard = unsafe { cluster::heard(sender, payload, len) };
        let Some((sender, kind, number)) = heard.and_then(understood) else {
            return;
        };
        if kind == ASKED {
            if let Some(answer) = answer(sender) {
                send(Some(sender), answer, number);
            }
            return;
        }
        with(|w| {
            let asked = w.doubt.as_mut().filter(|d| d.began_us == number);
            if let Some(doubt) = asked {
                match kind {
                    SURE => doubt.sure.insert(sender.to_owned()),
                    _ => doubt.unsure.insert(sender.to_owned()),
                };
            }
        });
        judge();
    });
}

fn understood<'m>((sender, what, rest): (&'m str, u8, &[u8])) -> Option<(&'m str, u8, u64)> {
    Some((sender, what, u64::from_le_bytes(rest.try_into().ok()?)))
}

/// What is to be said of a node that asks; nothing if it is not seen as a master that serves.
fn answer(asks: &str) -> Option<u8> {
    let masters = masters();
    masters.iter().find(|m| m.name == *asks && !m.silent)?;
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

fn send(to: Option<&str>, what: u8, number: u64) {
    let mut text = cluster::begin(what);
    text.extend_from_slice(&number.to_le_bytes());
    // A node that is not connected is asked again later.
    cluster::send(KIND, to, &text);
}

/// All masters that serve slots.
fn masters() -> Vec<Master> {
    cluster::nodes().unwrap_or_default().masters
}

/// How long this node may sleep.
fn limit_us() -> u64 {
    if !cluster::is_cluster() {
        return node().limits.pause_us;
    }
    let said = cluster::said([c"CONFIG", c"GET"], Some(c"cluster-node-timeout"));
    let ms = said.and_then(|text| text.parse::<u64>().ok());
    ms.unwrap_or(15_000) * 1000
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
