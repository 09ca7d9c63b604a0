//! The data type `MaosShare`: a key that defines a partition.
//!
//! The name of the partition is the name of the key. A copy would be a second partition with the same prefixes that
//! nobody has taken from the pool: it is refused.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::{ptr, slice};

use maos_core::codec::{v1, Damaged};
use maos_core::digest::show_definition;
use maos_core::partition::Definition;

use super::hooks::Server;
use super::rdb::fail;
use super::restore::place;
use crate::edge::api::{api, raw};
use crate::edge::call::bytes_of;
use crate::edge::metrics::METRICS;
use crate::edge::partitions;
use crate::edge::{failpoint, guard, log};

/// Nine characters, and for ever.
const NAME: &CStr = c"MaosShare";

static DATA_TYPE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(ptr::null_mut());

/// Our data type, as the server knows it.
pub fn share_type() -> *mut raw::RedisModuleType {
    DATA_TYPE.load(Relaxed)
}

/// Hands a definition to the server, which no other key may have. What the server has is the definition, and the only
/// weak reference that there ever is to it: see [`is_held`].
pub fn boxed(definition: Arc<Definition>) -> *const Definition {
    debug_assert!(!is_held(&definition), "a definition is of one key");
    let _ = Weak::into_raw(Arc::downgrade(&definition));
    Arc::into_raw(definition)
}

/// Whether a definition is still the value of a key. Not all of them say when they go, and they may be freed in a thread.
pub fn is_held(definition: &Arc<Definition>) -> bool {
    Arc::weak_count(definition) > 0
}

/// Takes a definition back from the server.
///
/// # Safety
/// `value` must come from [`boxed`] and not be used again.
pub unsafe fn unboxed(value: *mut c_void) {
    let value = value.cast_const().cast::<Definition>();
    // SAFETY: by the caller; `boxed` gave both.
    unsafe {
        drop(Weak::from_raw(value));
        drop(Arc::from_raw(value));
    }
}

/// The definition of a value.
///
/// # Safety
/// `value` must be a value of our type, and live as long as what is returned.
pub unsafe fn held(value: *const c_void) -> ManuallyDrop<Arc<Definition>> {
    // SAFETY: by the caller: `boxed` made it. It stays the server's, and is not dropped here.
    ManuallyDrop::new(unsafe { Arc::from_raw(value.cast()) })
}

/// Registers the data type.
///
/// # Errors
/// If the server did not take it.
pub fn register(ctx: *mut raw::RedisModuleCtx) -> Result<(), String> {
    let mut methods = raw::RedisModuleTypeMethods {
        version: super::METHODS_VERSION,
        rdb_load: Some(load),
        rdb_save: Some(save),
        aof_rewrite: Some(rewrite),
        mem_usage: None,
        digest: Some(digest),
        free: Some(free),
        aux_load: None,
        aux_save: None,
        aux_save_triggers: 0,
        free_effort: None,
        unlink: None,
        copy: None,
        defrag: None,
        mem_usage2: Some(mem_usage),
        free_effort2: None,
        unlink2: Some(unlink),
        copy2: Some(copy),
        aux_save2: None,
    };
    // SAFETY: in OnLoad, with its context; the server copies the table.
    let made = unsafe {
        let encoding = c_int::from(v1::ENCODING);
        api!(RedisModule_CreateDataType)(ctx, NAME.as_ptr(), encoding, &raw mut methods)
    };
    if made.is_null() {
        return Err(
            "the data type MaosShare was not taken; is another module using that name?".into(),
        );
    }
    DATA_TYPE.store(made, Relaxed);
    Ok(())
}

unsafe extern "C" fn save(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    let saved = guard::run(|| {
        failpoint::hit("share save");
        // SAFETY: the server gives a value of our type and its own `io`.
        unsafe {
            let bytes = v1::encode_definition(&held(value));
            let start = bytes.as_ptr().cast::<c_char>();
            api!(RedisModule_SaveStringBuffer)(io, start, bytes.len());
        }
    });
    if saved.is_none() {
        // SAFETY: the server's `io`, in its callback.
        unsafe { fail(io) };
    }
}

unsafe extern "C" fn load(io: *mut raw::RedisModuleIO, encoding: c_int) -> *mut c_void {
    let loaded = guard::run(|| {
        failpoint::hit("share load");
        let mut len = 0;
        // SAFETY: the server's `io`; what it gives is ours to free, after its last use.
        unsafe {
            let bytes = api!(RedisModule_LoadStringBuffer)(io, &raw mut len);
            if bytes.is_null() {
                // The payload is cut: the server knows, and reports it.
                return ptr::null_mut();
            }
            let read = v1::decode_definition(slice::from_raw_parts(bytes.cast(), len));
            api!(RedisModule_Free)(bytes.cast());
            let read = match encoding == c_int::from(v1::ENCODING) {
                true => read,
                false => Err(Damaged("its encoding is not 1")),
            };
            match read {
                Ok(definition) => {
                    let definition = Arc::new(definition);
                    if let Some((db, name)) = place(io) {
                        partitions::held(db, name, definition.clone());
                    }
                    boxed(definition).cast_mut().cast()
                }
                Err(Damaged(why)) => {
                    METRICS.damaged.one();
                    log::io_warning(io, &format!("a partition is refused: {why}"));
                    ptr::null_mut()
                }
            }
        }
    });
    loaded.unwrap_or_else(|| {
        METRICS.damaged.one();
        ptr::null_mut()
    })
}

unsafe extern "C" fn rewrite(
    io: *mut raw::RedisModuleIO,
    key: *mut raw::RedisModuleString,
    value: *mut c_void,
) {
    let written = guard::run(|| {
        failpoint::hit("share rewrite");
        // SAFETY: as for `save`; the format says what follows: a string, bytes and their length, a text. The
        // expiry is written by the server.
        unsafe {
            let bytes = v1::encode_definition(&held(value));
            api!(RedisModule_EmitAOF)(
                io,
                c"MAOS.DEFINE".as_ptr(),
                c"sbc".as_ptr(),
                key,
                bytes.as_ptr().cast::<c_char>(),
                bytes.len(),
                c"0".as_ptr(),
            );
        }
    });
    if written.is_none() {
        // SAFETY: the server's `io`, in its callback.
        unsafe { fail(io) };
    }
}

unsafe extern "C" fn digest(md: *mut raw::RedisModuleDigest, value: *mut c_void) {
    guard::run(|| {
        // SAFETY: the server gives a value of our type.
        show_definition(unsafe { &held(value) }, &mut Server(md));
    });
}

/// May run in a thread of the server.
unsafe extern "C" fn free(value: *mut c_void) {
    guard::run(|| {
        // SAFETY: the server gives the value up.
        unsafe { unboxed(value) };
    });
}

unsafe extern "C" fn mem_usage(
    _: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
    _samples: usize,
) -> usize {
    guard::run(|| {
        // SAFETY: the server gives a value of our type.
        let definition = unsafe { held(value) };
        size_of::<Definition>() + v1::encode_definition(&definition).len()
    })
    .unwrap_or(0)
}

/// A key with this definition has been removed, or gets another value. On the main thread.
unsafe extern "C" fn unlink(ctx: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) {
    guard::run(|| {
        failpoint::hit("share unlink");
        // SAFETY: the server's context and a value of our type; the name lives through the callback.
        unsafe {
            let name = api!(RedisModule_GetKeyNameFromOptCtx)(ctx);
            if !name.is_null() {
                partitions::unlinked(bytes_of(name), &held(value));
            }
        }
    });
}

unsafe extern "C" fn copy(_: *mut raw::RedisModuleKeyOptCtx, _: *const c_void) -> *mut c_void {
    ptr::null_mut()
}
