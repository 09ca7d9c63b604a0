//! Work that takes long and needs nothing of the server: done in a thread, while the client waits and nobody else does.

use std::ffi::{c_int, c_void};

use maos_core::wire::{Reply, Value};
use maos_core::{Code, Refusal};

use super::api::{api, raw};
use super::call::{refuse, reply_to, Call};
use super::guard::FAULT;
use super::{failpoint, guard, waiting};

/// What was found: a reply, or a refusal.
type Found = Result<Value, Refusal>;

/// A client that waits, as the thread knows it.
struct Client(*mut raw::RedisModuleBlockedClient);

// SAFETY: the one thing that a thread does with it is to let the client go, once, which any thread may do.
unsafe impl Send for Client {}

/// Has `work` done in a thread, and the client wait for its reply.
///
/// # Errors
/// Where a client must not wait: in a transaction or a script.
pub fn run<R: Reply>(
    call: &Call<'_>,
    work: impl FnOnce() -> Result<R, Refusal> + Send + 'static,
) -> Result<(), Refusal> {
    if !waiting::may_wait(call) {
        return Err(Refusal::fixed(
            Code::Err,
            "this takes a while, and is not waited for inside of a transaction or a script",
        ));
    }
    // SAFETY: the context of this call; what is handed over comes back to `answered` and `free`.
    let client =
        unsafe { api!(RedisModule_BlockClient)(call.ctx, Some(answered), None, Some(free), 0) };
    if client.is_null() {
        return Err(Refusal::fixed(
            Code::Err,
            "the server does not let the client wait",
        ));
    }
    let waits = Client(client);
    let work = move || {
        let waits = waits;
        let found = guard::run_in_thread(|| {
            failpoint::hit("offload");
            work().map(|reply| Value::of(&reply))
        });
        let found: Found =
            found.unwrap_or_else(|| Err(Refusal::new(Code::Err, format!("met {FAULT}"))));
        let found = Box::into_raw(Box::new(found));
        // SAFETY: blocked above, and let go here alone.
        unsafe { api!(RedisModule_UnblockClient)(waits.0, found.cast()) };
    };
    let thread = std::thread::Builder::new().name("maos-offload".into());
    if let Err(e) = thread.spawn(work) {
        // SAFETY: blocked above; no thread knows of it. It is not answered by `answered`.
        unsafe { api!(RedisModule_AbortBlock)(client) };
        return Err(Refusal::new(Code::Err, format!("no thread for it: {e}")));
    }
    Ok(())
}

unsafe extern "C" fn answered(
    ctx: *mut raw::RedisModuleCtx,
    _: *mut *mut raw::RedisModuleString,
    _: c_int,
) -> c_int {
    guard::run(|| {
        // SAFETY: what `run` handed over, which `free` takes back later.
        let found = unsafe {
            api!(RedisModule_GetBlockedClientPrivateData)(ctx)
                .cast::<Found>()
                .as_ref()
        };
        match found {
            Some(Ok(value)) => reply_to(ctx, value),
            Some(Err(refusal)) => refuse(ctx, refusal),
            // SAFETY: the context of this callback.
            None => drop(unsafe { api!(RedisModule_ReplyWithNull)(ctx) }),
        }
    });
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn free(_: *mut raw::RedisModuleCtx, found: *mut c_void) {
    guard::run(|| {
        if !found.is_null() {
            // SAFETY: made by `run`, and not used after this.
            drop(unsafe { Box::from_raw(found.cast::<Found>()) });
        }
    });
}
