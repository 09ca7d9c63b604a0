//! `RedisModule_OnLoad`: everything the server is told, in order.

use std::ffi::c_int;

use super::api::{self, raw};
use super::{
    background, bus, config, events, feed, guard, info, lineage, listeners, log, pause, register,
    restoring,
};
use crate::persist;

/// Valkey's option that lets a module's keys take part in atomic slot migration; the bindings do
/// not know it. Servers without it ignore the bit.
const HANDLES_SLOT_MIGRATION: c_int = 1 << 5;

/// The version in MODULE LIST: major * 10000 + minor * 100 + patch.
const MODULE_VERSION: c_int = 100;

/// Called by the server when it loads the module.
///
/// # Safety
/// To be called by a server, once.
#[no_mangle]
pub unsafe extern "C" fn RedisModule_OnLoad(
    ctx: *mut raw::RedisModuleCtx,
    _argv: *mut *mut raw::RedisModuleString,
    _argc: c_int,
) -> c_int {
    // SAFETY: the first call there is: it fills the table of functions. Nothing allocates before.
    let ready = unsafe {
        raw::Export_RedisModule_Init(
            ctx,
            c"maos".as_ptr(),
            MODULE_VERSION,
            raw::REDISMODULE_APIVER_1 as c_int,
        )
    };
    if ready != raw::REDISMODULE_OK as c_int {
        return raw::REDISMODULE_ERR as c_int;
    }
    match guard::run(|| load(ctx)) {
        Some(Ok(())) => raw::REDISMODULE_OK as c_int,
        Some(Err(why)) => {
            log::warning(&format!("maos does not load: {why}"));
            raw::REDISMODULE_ERR as c_int
        }
        None => raw::REDISMODULE_ERR as c_int,
    }
}

fn load(ctx: *mut raw::RedisModuleCtx) -> Result<(), String> {
    let missing = api::lacking();
    if !missing.is_empty() {
        return Err(format!(
            "this server lacks {}; Redis 7.0 and Valkey 8.1 are the oldest that have all",
            missing.join(", ")
        ));
    }
    guard::install_hook();
    let options = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS as c_int
        | raw::REDISMODULE_OPTIONS_HANDLE_REPL_ASYNC_LOAD as c_int
        | raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED as c_int
        | HANDLES_SLOT_MIGRATION;
    // SAFETY: in OnLoad, with its context.
    unsafe { super::api::api!(RedisModule_SetModuleOptions)(ctx, options) };
    persist::register(ctx)?;
    register::register(ctx)?;
    config::register(ctx)?;
    info::register(ctx);
    lineage::register(ctx);
    feed::register(ctx);
    pause::register(ctx);
    bus::register(ctx);
    listeners::start(events::subscribe(ctx));
    background::start(ctx);
    restoring::look_for_interrupted();
    #[cfg(debug_assertions)]
    {
        assert!(super::alloc::self_test(), "over-aligned allocation");
        log::warning("maos is a debug build: slow, and with failpoints. For tests only");
    }
    Ok(())
}
