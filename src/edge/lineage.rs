//! What this node may have given versions to: asked when a client RESTOREs a payload.
//!
//! The floor is the largest stamp made here, applied from a master or the AOF, loaded with a data set
//! or gone from here with its key. A payload above it, for a key that holds nothing newer, is kept as it
//! is: so many dumps can be restored into a fresh server one after the other.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use maos_core::restored::Restored;
use maos_core::Stamp;

use super::api::{api, api_if, raw};
use super::call::bytes_of;
use super::keys::{Key, Mode};
use super::metrics::METRICS;
use super::node::{node, now_us, Node};
use super::{failpoint, guard, log, propagate};

/// Atomic because the server tells of removed values wherever it removes them, also while a command of
/// ours holds the node.
static FLOOR: AtomicU64 = AtomicU64::new(0);

/// A context of our own, for where the server gives none that has a database.
static OWN: AtomicPtr<raw::RedisModuleCtx> = AtomicPtr::new(std::ptr::null_mut());

/// What was decided about one RESTORE.
pub struct Note {
    /// The database.
    pub db: i32,
    /// The key.
    pub key: Box<[u8]>,
    /// What was decided.
    pub restored: Restored,
}

/// The largest stamp that this node may have seen at a key that holds nothing now.
pub fn floor() -> Stamp {
    Stamp(FLOOR.load(Relaxed))
}

/// A stamp was made or applied here, or leaves with its key. On the main thread only.
pub fn raise(stamp: Stamp) {
    if stamp > floor() {
        FLOOR.store(stamp.0, Relaxed);
    }
}

/// What was gone from here is not known, because telling it failed: anything up to now.
pub fn raise_to_now() {
    raise(Stamp(now_us()));
}

/// A context of our own, with this database selected. On the main thread only. What is replicated through
/// it while a command runs goes ahead of that command, in the same transaction.
pub fn context(db: i32) -> *mut raw::RedisModuleCtx {
    let ctx = OWN.load(Relaxed);
    // SAFETY: made by `register`, never freed; on the main thread.
    unsafe { api!(RedisModule_SelectDb)(ctx, db) };
    ctx
}

/// Makes the context, and where that is needed listens to what is restored.
pub fn register(ctx: *mut raw::RedisModuleCtx) {
    // SAFETY: in OnLoad, with its context.
    unsafe {
        OWN.store(api!(RedisModule_GetDetachedThreadSafeContext)(ctx), Relaxed);
        if api_if!(RedisModule_AddPostNotificationJob).is_none() {
            let kind = raw::REDISMODULE_NOTIFY_GENERIC as c_int;
            api!(RedisModule_SubscribeToKeyspaceEvents)(ctx, kind, Some(restored));
        }
    }
}

/// Keys go without their values being shown, or a data set with a past of its own is `loaded`: whatever
/// may have been seen is below what the clock has seen, or below now.
pub fn replaced(loaded: bool) {
    let node = &mut *node();
    raise(node.clock.last().max(node.clock.beyond()));
    if loaded {
        raise(Stamp(now_us()));
        node.note = None;
    }
}

/// Sends what was decided about the RESTORE in progress, ahead of it.
///
/// A RESTORE that comes too late to live is not sent by the server at all, unless something else was: then
/// replicas would hold what never was. So where the module can have a word after the command, the key is
/// removed there; where it cannot (Redis 7.0), nothing is sent before the server says that the key was
/// restored. Not everywhere so: a server may leave a client in another database when a module listens to
/// MOVE and COPY, which are told together with RESTORE.
pub fn announce(note: Note, node: &mut Node) {
    let ctx = context(note.db);
    let Some(add) = api_if!(RedisModule_AddPostNotificationJob) else {
        node.decided = Some(note);
        return;
    };
    propagate::restored(ctx, &note.key, note.restored);
    let note = Box::into_raw(Box::new(note)).cast();
    // SAFETY: our own context, the database selected; the note is taken back by `forget`.
    if unsafe { add(ctx, Some(done), note, Some(forget)) } != raw::REDISMODULE_OK as c_int {
        // SAFETY: just made, and nobody else has it.
        unsafe { forget(note) };
    }
}

/// The commands that travel together are done: is the key there?
unsafe extern "C" fn done(_: *mut raw::RedisModuleCtx, note: *mut c_void) {
    guard::run(|| {
        failpoint::hit("restore done");
        // SAFETY: made by `announce`, taken back after this.
        let note = unsafe { &*note.cast::<Note>() };
        let ctx = context(note.db);
        let name = Name::new(ctx, &note.key);
        // SAFETY: the context and the name outlive the key, which nobody else has open.
        if unsafe { Key::open(ctx, name.string, Mode::Look) }
            .is_ok_and(|key| key.record().is_none())
        {
            propagate::unlink(ctx, &note.key);
        }
    });
}

unsafe extern "C" fn forget(note: *mut c_void) {
    guard::run(|| {
        failpoint::hit("restore forget");
        // SAFETY: made by `announce`, and not used after this.
        drop(unsafe { Box::from_raw(note.cast::<Note>()) });
    });
}

/// A key was restored: what was decided about it is sent.
unsafe extern "C" fn restored(
    _: *mut raw::RedisModuleCtx,
    _: c_int,
    event: *const c_char,
    name: *mut raw::RedisModuleString,
) -> c_int {
    let tell = || {
        failpoint::hit("restore event");
        // SAFETY: the server's event and key, in its callback.
        let (event, name) = unsafe { (CStr::from_ptr(event), bytes_of(name)) };
        if event != c"restore" {
            return;
        }
        if let Some(note) = node().decided.take().filter(|n| *n.key == *name) {
            propagate::restored(context(note.db), &note.key, note.restored);
        }
    };
    // What is not sent now makes replicas differ: it is worth a second try.
    if guard::run(tell).or_else(|| guard::run(tell)).is_none() {
        METRICS.damaged.one();
        log::warning("what was decided about a RESTORE was not sent: replicas and the AOF may differ from this node");
    }
    raw::REDISMODULE_OK as c_int
}

/// A string of the server's made of bytes.
pub struct Name {
    ctx: *mut raw::RedisModuleCtx,
    /// The string; it lives as long as this.
    pub string: *mut raw::RedisModuleString,
}

impl Name {
    /// Makes it.
    pub fn new(ctx: *mut raw::RedisModuleCtx, bytes: &[u8]) -> Name {
        let start = bytes.as_ptr().cast::<c_char>();
        // SAFETY: the server copies the bytes; freed by `drop`.
        let string = unsafe { api!(RedisModule_CreateString)(ctx, start, bytes.len()) };
        Name { ctx, string }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used after this.
        unsafe { api!(RedisModule_FreeString)(self.ctx, self.string) };
    }
}
