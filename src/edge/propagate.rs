//! Sends what was decided to replicas and the AOF. Nothing else in the module replicates a change,
//! and what is sent is the fact, never the question.
//!
//! A change travels as `MAOS.APPLY fact key value [key value ...]`. Keys and values are the strings
//! that the client sent, handed on by reference; the fact is one short argument.

use std::ffi::{c_char, CStr};

use maos_core::change::Change;
use maos_core::codec::v1;
use maos_core::partition::Definition;
use maos_core::restored::Restored;
use maos_core::wire::watch::Mark;
use smallvec::SmallVec;

use super::api::{api, raw};
use super::listeners;

const APPLY: &CStr = c"MAOS.APPLY";
const RESTORED: &CStr = c"MAOS.RESTORED";

/// Strings of the server, and for each its bytes.
#[derive(Clone, Copy)]
pub struct Known<'s> {
    /// The strings.
    pub strings: &'s [*mut raw::RedisModuleString],
    /// The bytes of the strings, as many.
    pub bytes: &'s [&'s [u8]],
}

/// Whether something that no client asked for may be sent now. While clients are paused, for a failover that
/// somebody asked for or by CLIENT PAUSE, nothing may: a replica waits for the last of it, and the server ends
/// itself over what comes after.
pub fn may_tell() -> bool {
    // SAFETY: it has no arguments.
    unsafe { api!(RedisModule_AvoidReplicaTraffic)() == 0 }
}

/// Replicates a change. The strings of the change may be among those `known`.
///
/// # Safety
/// `ctx` and `known` must be the server's and live through the call.
pub unsafe fn change(
    ctx: *mut raw::RedisModuleCtx,
    known: Known<'_>,
    change: &Change<'_>,
    scratch: &mut Vec<u8>,
) {
    scratch.clear();
    v1::encode_fact(change, scratch);
    let fact = scratch.as_ptr().cast::<c_char>();
    let mut strings = Strings {
        ctx,
        known,
        at: 0,
        made: SmallVec::new(),
    };
    // SAFETY: the formats say what follows: bytes with their length, and live strings, or an array of
    // them with its length.
    unsafe {
        let replicate = api!(RedisModule_Replicate);
        if let [write] = &change.writes[..] {
            // Where the number of arguments is known, the server makes room for them once.
            let (key, value) = (strings.find(write.key), strings.find(&write.carried()));
            let format = c"bss".as_ptr();
            replicate(ctx, APPLY.as_ptr(), format, fact, scratch.len(), key, value);
        } else {
            let mut argv = Vec::with_capacity(2 * change.writes.len());
            for write in &change.writes {
                argv.push(strings.find(write.key));
                argv.push(strings.find(&write.carried()));
            }
            let (all, len) = (argv.as_mut_ptr(), argv.len());
            let format = c"bv".as_ptr();
            replicate(ctx, APPLY.as_ptr(), format, fact, scratch.len(), all, len);
        }
    }
    for made in strings.made {
        // SAFETY: made by `find`; the server has kept what it needs.
        unsafe { api!(RedisModule_FreeString)(ctx, made) };
    }
}

/// Tells what a command of a client has changed. Where nothing can listen, only that something did:
/// the server counts it, and sends nothing.
///
/// # Safety
/// As for [`change`]; `ctx` must be that of the command in progress.
pub unsafe fn commit(
    ctx: *mut raw::RedisModuleCtx,
    known: Known<'_>,
    decided: &Change<'_>,
    scratch: &mut Vec<u8>,
) {
    // SAFETY: by the caller.
    unsafe {
        match listeners::any() {
            true => change(ctx, known, decided, scratch),
            false => verbatim(ctx),
        }
    }
}

/// Tells what a command of a client has changed, where that is several changes: in one transaction.
///
/// # Safety
/// As for [`commit`].
#[cold]
pub unsafe fn commit_all(
    ctx: *mut raw::RedisModuleCtx,
    known: Known<'_>,
    decided: &[Change<'_>],
    scratch: &mut Vec<u8>,
) {
    // SAFETY: by the caller.
    unsafe {
        match listeners::any() {
            true => decided.iter().for_each(|c| change(ctx, known, c, scratch)),
            false => verbatim(ctx),
        }
    }
}

/// Replicates what was decided about the RESTORE in progress; it goes ahead of it, in one transaction.
/// `ctx` is the module's own.
pub fn restored(ctx: *mut raw::RedisModuleCtx, key: &[u8], restored: Restored) {
    let [was, now] = restored.args();
    // SAFETY: the format says what follows: three times bytes with their length.
    unsafe {
        api!(RedisModule_Replicate)(
            ctx,
            RESTORED.as_ptr(),
            c"bbb".as_ptr(),
            key.as_ptr().cast::<c_char>(),
            key.len(),
            was.as_ptr().cast::<c_char>(),
            was.len(),
            now.as_ptr().cast::<c_char>(),
            now.len(),
        );
    }
}

/// Replicates the definition of a partition, and when its key expires (0: not at all).
pub fn define(
    ctx: *mut raw::RedisModuleCtx,
    name: &[u8],
    definition: &Definition,
    expires_ms: u64,
) {
    if !listeners::any() {
        // SAFETY: the context of the command in progress.
        return unsafe { verbatim(ctx) };
    }
    let (definition, expires) = (v1::encode_definition(definition), expires_ms.to_string());
    // SAFETY: the context of the call in progress; the format says what follows: three times bytes with their
    // length.
    unsafe {
        api!(RedisModule_Replicate)(
            ctx,
            c"MAOS.DEFINE".as_ptr(),
            c"bbb".as_ptr(),
            name.as_ptr().cast::<c_char>(),
            name.len(),
            definition.as_ptr().cast::<c_char>(),
            definition.len(),
            expires.as_ptr().cast::<c_char>(),
            expires.len(),
        );
    }
}

/// Replicates that a partition was dropped. `ctx` is that of the command in progress.
pub fn dropped(ctx: *mut raw::RedisModuleCtx, name: &[u8]) {
    match listeners::any() {
        true => unlink(ctx, name),
        // SAFETY: by the caller's context.
        false => unsafe { verbatim(ctx) },
    }
}

/// Replicates that a key is not there. `ctx` is the module's own.
pub fn unlink(ctx: *mut raw::RedisModuleCtx, key: &[u8]) {
    tell(ctx, c"UNLINK", key);
}

/// Replicates where the change log is, and in which reign. `ctx` is the module's own.
pub fn reign(ctx: *mut raw::RedisModuleCtx, at: Mark) {
    tell(ctx, c"MAOS.REIGN", at.to_string().as_bytes());
}

/// Replicates that a key which is removed now goes on elsewhere; it goes ahead of its removal. `ctx` is the module's
/// own.
pub fn leaves(ctx: *mut raw::RedisModuleCtx, key: &[u8]) {
    tell(ctx, c"MAOS.LEAVES", key);
}

/// Replicates a record that was restored from a backup. `ctx` must have its database selected.
pub fn brought(ctx: *mut raw::RedisModuleCtx, key: &[u8], record: &[u8], expires_ms: u64) {
    if !listeners::any() {
        return;
    }
    let expires = expires_ms.to_string();
    // SAFETY: the format says what follows: bytes with their length, three times.
    unsafe {
        api!(RedisModule_Replicate)(
            ctx,
            c"MAOS.BROUGHT".as_ptr(),
            c"bbb".as_ptr(),
            key.as_ptr().cast::<c_char>(),
            key.len(),
            record.as_ptr().cast::<c_char>(),
            record.len(),
            expires.as_ptr().cast::<c_char>(),
            expires.len(),
        );
    }
}

/// Replicates a command of one word.
fn tell(ctx: *mut raw::RedisModuleCtx, command: &CStr, word: &[u8]) {
    if !listeners::any() {
        return;
    }
    // SAFETY: the format says what follows: bytes with their length.
    unsafe {
        api!(RedisModule_Replicate)(
            ctx,
            command.as_ptr(),
            c"b".as_ptr(),
            word.as_ptr().cast::<c_char>(),
            word.len(),
        );
    }
}

/// Replicates the command as it came: for what was a fact already.
///
/// # Safety
/// `ctx` must be that of the command in progress.
pub unsafe fn verbatim(ctx: *mut raw::RedisModuleCtx) {
    // SAFETY: by the caller.
    unsafe { api!(RedisModule_ReplicateVerbatim)(ctx) };
}

/// Finds the server's string for bytes.
struct Strings<'s> {
    ctx: *mut raw::RedisModuleCtx,
    known: Known<'s>,
    /// Bytes are asked for in the order of the arguments: the search goes on where it ended.
    at: usize,
    made: SmallVec<[*mut raw::RedisModuleString; 1]>,
}

impl Strings<'_> {
    #[inline]
    fn find(&mut self, bytes: &[u8]) -> *mut raw::RedisModuleString {
        // Mostly in the order in which they came.
        let (before, after) = self.known.bytes.split_at(self.at);
        let known = after.iter().zip(self.at..).chain(before.iter().zip(0..));
        let place = { known }.find(|(k, _)| k.as_ptr() == bytes.as_ptr() && k.len() == bytes.len());
        match place {
            Some((_, at)) => {
                self.at = at + 1;
                self.known.strings[at]
            }
            None => self.make(bytes),
        }
    }

    #[cold]
    fn make(&mut self, bytes: &[u8]) -> *mut raw::RedisModuleString {
        let start = bytes.as_ptr().cast::<c_char>();
        // SAFETY: the server copies the bytes; the string is freed after use.
        let made = unsafe { api!(RedisModule_CreateString)(self.ctx, start, bytes.len()) };
        self.made.push(made);
        made
    }
}
