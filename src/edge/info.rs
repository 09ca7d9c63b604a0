//! `INFO maos`.

use std::ffi::{c_int, CStr, CString};

use maos_core::wire::reference::COMMANDS;
use maos_core::Code;

use super::api::{api, raw};
use super::metrics::METRICS;
use super::{
    background, backup, conflicts, failpoint, feed, guard, index, listeners, node, partitions,
    pause, restoring, schedule, waiting,
};

/// Registers the section.
pub fn register(ctx: *mut raw::RedisModuleCtx) {
    // SAFETY: in OnLoad, with its context.
    unsafe { api!(RedisModule_RegisterInfoFunc)(ctx, Some(info)) };
}

unsafe extern "C" fn info(ctx: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    // In a crash report nothing may be assumed, so nothing is touched.
    if for_crash_report == 0 {
        guard::run(|| {
            failpoint::hit("info");
            write(ctx);
        });
    }
}

fn write(ctx: *mut raw::RedisModuleInfoCtx) {
    // SAFETY: the context of this callback; a null name makes the section `maos`.
    if unsafe { api!(RedisModule_InfoAddSection)(ctx, std::ptr::null()) }
        != raw::REDISMODULE_OK as c_int
    {
        return;
    }
    let number = |name: &str, n: u64| {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the context of this callback; the server copies the name.
        unsafe { api!(RedisModule_InfoAddFieldULongLong)(ctx, name.as_ptr(), n) };
    };
    let m = &METRICS;
    let [records, versions, bytes] = m.totals();
    number("records", records);
    number("versions", versions);
    number("bytes", bytes);
    number("writes", m.writes.get());
    number("trimmed", m.trimmed.get());
    number("compressed", m.compressed.get());
    number("unlinked", m.unlinked.get());
    number("panics", m.panics.get());
    number("damaged", m.damaged.get());
    // The wall clock that went on while this was gathered is no drift.
    let ahead = node::node().clock.last().0.saturating_sub(node::now_us());
    number("clock_ahead_us", ahead);
    number("stamps_ahead", m.stamps_ahead.get());
    number("pauses", m.pauses.get());
    number("in_doubt", u64::from(pause::in_doubt()));
    number("lock_waiters", waiting::count() as u64);
    let log = feed::numbers();
    number("changes_bytes", log.bytes as u64);
    number("changes_held", log.held as u64);
    number("changes_appended", log.appended);
    number("changes_floor", log.floor.0);
    number("changes_read", m.events_read.get());
    number("watchers", log.watchers as u64);
    number("index_keys", index::len());
    let backups = backup::numbers();
    number("backup_running", u64::from(backups.running));
    number("backups_made", backups.made);
    number("backups_failed", backups.failed);
    number("backup_last_ms", backups.last_ms);
    if let Some(id) = restoring::interrupted() {
        let text = CString::new(id.to_string()).unwrap_or_default();
        let name = c"backup_restore_interrupted";
        // SAFETY: the context of this callback; the server copies both strings.
        unsafe { api!(RedisModule_InfoAddFieldCString)(ctx, name.as_ptr(), text.as_ptr()) };
    }
    let scheduled = schedule::numbers();
    number("backup_scheduled_made", scheduled.made);
    number("backup_scheduled_failed", scheduled.failed);
    number("backup_verified", scheduled.verified);
    number("backup_verify_failed", scheduled.verify_failed);
    let error = CString::new(scheduled.last_error).unwrap_or_default();
    // SAFETY: the context of this callback; the server copies the strings.
    unsafe {
        let (error_name, next_name) = (c"backup_last_error", c"backup_next_in_s");
        api!(RedisModule_InfoAddFieldCString)(ctx, error_name.as_ptr(), error.as_ptr());
        api!(RedisModule_InfoAddFieldLongLong)(ctx, next_name.as_ptr(), scheduled.next_in_s);
    }
    number("listening", u64::from(listeners::any()));
    number("listener_checks", m.listener_checks.get());
    for (spec, counter) in COMMANDS.iter().zip(&m.conflicts) {
        if counter.get() > 0 {
            let name = spec.name.trim_start_matches("MAOS.").to_ascii_lowercase();
            number(&format!("conflicts_{name}"), counter.get());
        }
    }
    for (name, counts) in conflicts::counts() {
        let text = format!(
            "conflicted={},resolved={}",
            counts.conflicted, counts.resolved
        );
        let [name, text] = [name, text].map(|s| CString::new(s).unwrap_or_default());
        // SAFETY: the context of this callback; the server copies both strings.
        unsafe { api!(RedisModule_InfoAddFieldCString)(ctx, name.as_ptr(), text.as_ptr()) };
    }
    let shares = partitions::figures();
    number("pool_bytes", shares.pool);
    number("pool_reserved", shares.reserved);
    number("partitions", shares.count);
    number("partition_peers", shares.peers);
    number("partitions_complete", u64::from(shares.complete));
    for (name, text) in shares.lines {
        let [name, text] = [name, text].map(|s| CString::new(s).unwrap_or_default());
        // SAFETY: the context of this callback; the server copies both strings.
        unsafe { api!(RedisModule_InfoAddFieldCString)(ctx, name.as_ptr(), text.as_ptr()) };
    }
    for (code, counter) in Code::ALL.iter().zip(&m.refusals) {
        if counter.get() > 0 {
            let name = code.word().to_ascii_lowercase();
            number(&format!("refusals_{name}"), counter.get());
        }
    }
    let eviction: &CStr = match background::evicts_state() {
        true => c"unsafe: maxmemory-policy evicts keys that do not expire; use noeviction or a volatile policy",
        false => c"ok",
    };
    // SAFETY: as above; the server copies both strings.
    unsafe {
        api!(RedisModule_InfoAddFieldCString)(ctx, c"eviction".as_ptr(), eviction.as_ptr());
    }
}
