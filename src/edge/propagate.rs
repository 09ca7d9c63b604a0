//! Sends what was decided to replicas and the AOF. Nothing else in the module replicates a change,
//! and what is sent is the fact, never the question.
//!
//! A change travels as `MAOS.APPLY fact key value [key value ...]`. Keys and values are the strings
//! that the client sent, handed on by reference; the fact is one short argument.

use std::ffi::{c_char, CStr};

use maos_core::change::Change;
use maos_core::codec::v1;
use maos_core::restored::Restored;
use smallvec::SmallVec;

use super::api::{api, raw};
use super::call::bytes_of;

const APPLY: &CStr = c"MAOS.APPLY";
const RESTORED: &CStr = c"MAOS.RESTORED";

/// Replicates a change. `known` are strings of the server among which those of the change may be.
///
/// # Safety
/// `ctx` and `known` must be the server's and live through the call.
pub unsafe fn change(
    ctx: *mut raw::RedisModuleCtx,
    known: &[*mut raw::RedisModuleString],
    change: &Change<'_>,
    scratch: &mut Vec<u8>,
) {
    scratch.clear();
    v1::encode_fact(change, scratch);
    let mut strings = Strings {
        ctx,
        known,
        at: 0,
        made: SmallVec::new(),
    };
    let mut argv: SmallVec<[*mut raw::RedisModuleString; 2]> = SmallVec::new();
    for write in &change.writes {
        argv.push(strings.find(&write.key));
        argv.push(strings.find(&write.value));
    }
    // SAFETY: the format says what follows: bytes with their length, and an array of live strings
    // with its length.
    unsafe {
        api!(RedisModule_Replicate)(
            ctx,
            APPLY.as_ptr(),
            c"bv".as_ptr(),
            scratch.as_ptr().cast::<c_char>(),
            scratch.len(),
            argv.as_mut_ptr(),
            argv.len(),
        );
    }
    for made in strings.made {
        // SAFETY: made by `find`; the server has kept what it needs.
        unsafe { api!(RedisModule_FreeString)(ctx, made) };
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

/// Replicates that a key is not there. `ctx` is the module's own.
pub fn unlink(ctx: *mut raw::RedisModuleCtx, key: &[u8]) {
    // SAFETY: the format says what follows: bytes with their length.
    unsafe {
        api!(RedisModule_Replicate)(
            ctx,
            c"UNLINK".as_ptr(),
            c"b".as_ptr(),
            key.as_ptr().cast::<c_char>(),
            key.len(),
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
    known: &'s [*mut raw::RedisModuleString],
    /// Bytes are asked for in the order of the arguments: the search goes on where it ended.
    at: usize,
    made: SmallVec<[*mut raw::RedisModuleString; 1]>,
}

impl Strings<'_> {
    fn find(&mut self, bytes: &[u8]) -> *mut raw::RedisModuleString {
        for at in self.at..self.known.len() {
            // SAFETY: live by `change`'s contract.
            let candidate = unsafe { bytes_of(self.known[at]) };
            if candidate.as_ptr() == bytes.as_ptr() && candidate.len() == bytes.len() {
                self.at = at + 1;
                return self.known[at];
            }
        }
        let start = bytes.as_ptr().cast::<c_char>();
        // SAFETY: the server copies the bytes; the string is freed after use.
        let made = unsafe { api!(RedisModule_CreateString)(self.ctx, start, bytes.len()) };
        self.made.push(made);
        made
    }
}
