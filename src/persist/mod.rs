//! The data types: `MaosState`, a record, and `MaosShare`, the definition of a partition. What the server calls to
//! save, load, copy, free and measure them.
//!
//! Exactly one function makes our boxed value for the server and one takes it back.
#![allow(unsafe_code)]

mod hooks;
mod rdb;
mod restore;
mod share;

pub use restore::may_have_seen;
pub use share::{boxed as boxed_share, held as held_share, is_held as is_held_share, share_type};

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use maos_core::codec::v1;
use maos_core::record::Record;

use crate::edge::api::{api, raw};
use crate::edge::{backup, ledger};

/// Nine characters, and for ever.
const NAME: &std::ffi::CStr = c"MaosState";

/// The form of the table of methods that every server since Redis 7.0 knows.
const METHODS_VERSION: u64 = 4;

static DATA_TYPE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(std::ptr::null_mut());

/// Our data type, as the server knows it.
pub fn data_type() -> *mut raw::RedisModuleType {
    DATA_TYPE.load(Relaxed)
}

/// Hands a record to the server.
pub fn boxed(mut record: Record) -> *mut c_void {
    ledger::entered(&mut record);
    backup::born(&mut record);
    Box::into_raw(Box::new(record)).cast()
}

/// Takes a record back from the server.
///
/// # Safety
/// `value` must come from [`boxed`] and not be used again.
unsafe fn unboxed(value: *mut c_void) -> Box<Record> {
    // SAFETY: by the caller.
    let record = unsafe { Box::from_raw(value.cast::<Record>()) };
    ledger::left(&record);
    record
}

/// Registers the data type.
///
/// # Errors
/// If the server did not take it.
pub fn register(ctx: *mut raw::RedisModuleCtx) -> Result<(), String> {
    let mut methods = raw::RedisModuleTypeMethods {
        version: METHODS_VERSION,
        rdb_load: Some(rdb::load),
        rdb_save: Some(rdb::save),
        aof_rewrite: Some(rdb::rewrite),
        mem_usage: None,
        digest: Some(hooks::digest),
        free: Some(hooks::free),
        aux_load: None,
        aux_save: None,
        aux_save_triggers: 0,
        free_effort: None,
        unlink: None,
        copy: None,
        defrag: Some(hooks::defrag),
        mem_usage2: Some(hooks::mem_usage),
        free_effort2: Some(hooks::free_effort),
        unlink2: Some(hooks::unlink),
        copy2: Some(hooks::copy),
        aux_save2: None,
    };
    // SAFETY: in OnLoad, with its context; the server copies the table.
    let made = unsafe {
        api!(RedisModule_CreateDataType)(
            ctx,
            NAME.as_ptr(),
            c_int::from(v1::ENCODING),
            &raw mut methods,
        )
    };
    if made.is_null() {
        return Err(
            "the data type MaosState was not taken; is another module using that name?".into(),
        );
    }
    DATA_TYPE.store(made, Relaxed);
    share::register(ctx)
}
