//! Registers the table of settings with `CONFIG`.

use std::ffi::{c_char, c_int, c_longlong, c_void, CString};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use maos_core::config::{Limits, Unit, SETTINGS, TEXTS};

use super::api::{api, raw};
use super::call::bytes_of;
use super::{failpoint, guard};

static VALUES: [AtomicI64; SETTINGS.len()] = [const { AtomicI64::new(0) }; SETTINGS.len()];
static CHANGED: AtomicBool = AtomicBool::new(true);

static TEXT_VALUES: [Mutex<String>; TEXTS.len()] =
    [const { Mutex::new(String::new()) }; TEXTS.len()];
/// What the server is shown of them: made once for each value, freed with the next.
static SHOWN: [AtomicPtr<raw::RedisModuleString>; TEXTS.len()] =
    [const { AtomicPtr::new(ptr::null_mut()) }; TEXTS.len()];

/// `maos.backup-dir`, as a place among the texts.
pub const BACKUP_DIR: usize = 0;
/// `maos.backup-key-file`
pub const BACKUP_KEY_FILE: usize = 1;

/// What one of the texts is.
pub fn text(which: usize) -> String {
    let value = TEXT_VALUES[which].lock();
    value.unwrap_or_else(PoisonError::into_inner).clone()
}

unsafe extern "C" fn get_text(_: *const c_char, which: *mut c_void) -> *mut raw::RedisModuleString {
    SHOWN[which.addr() % TEXTS.len()].load(Relaxed)
}

unsafe extern "C" fn set_text(
    _: *const c_char,
    value: *mut raw::RedisModuleString,
    which: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    let set = guard::run(|| {
        let which = which.addr() % TEXTS.len();
        // SAFETY: the server's string, in its callback; the one made of it is ours.
        let (text, shown) = unsafe {
            let bytes = bytes_of(value);
            let create = api!(RedisModule_CreateString);
            let shown = create(ptr::null_mut(), bytes.as_ptr().cast(), bytes.len());
            (String::from_utf8_lossy(bytes).into_owned(), shown)
        };
        let before = SHOWN[which].swap(shown, Relaxed);
        if !before.is_null() {
            // SAFETY: made by this function, and shown no more.
            unsafe { api!(RedisModule_FreeString)(ptr::null_mut(), before) };
        }
        *TEXT_VALUES[which]
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = text;
    });
    match set {
        Some(()) => raw::REDISMODULE_OK as c_int,
        None => raw::REDISMODULE_ERR as c_int,
    }
}

/// True once after a setting has changed.
pub fn take_changed() -> bool {
    CHANGED.load(Relaxed) && CHANGED.swap(false, Relaxed)
}

/// The limits that the settings make.
pub fn limits() -> Limits {
    Limits::from_values(|k| VALUES[k as usize].load(Relaxed).unsigned_abs())
}

unsafe extern "C" fn get(_: *const c_char, which: *mut c_void) -> c_longlong {
    let value = || VALUES[which.addr() % SETTINGS.len()].load(Relaxed);
    guard::run(|| {
        failpoint::hit("config get");
        value()
    })
    .unwrap_or_else(value)
}

unsafe extern "C" fn set(
    _: *const c_char,
    value: c_longlong,
    which: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    // The server has checked the range.
    let set = guard::run(|| {
        failpoint::hit("config set");
        VALUES[which.addr() % SETTINGS.len()].store(value, Relaxed);
        CHANGED.store(true, Relaxed);
    });
    match set {
        Some(()) => raw::REDISMODULE_OK as c_int,
        None => raw::REDISMODULE_ERR as c_int,
    }
}

unsafe extern "C" fn get_switch(name: *const c_char, which: *mut c_void) -> c_int {
    // SAFETY: as the server gave them; `get` looks at nothing but the number.
    c_int::from(unsafe { get(name, which) } != 0)
}

unsafe extern "C" fn set_switch(
    name: *const c_char,
    value: c_int,
    which: *mut c_void,
    why: *mut *mut raw::RedisModuleString,
) -> c_int {
    // SAFETY: as above.
    unsafe { set(name, value.into(), which, why) }
}

/// Registers all settings and takes their values from `redis.conf`.
///
/// # Errors
/// What the server refused.
pub fn register(ctx: *mut raw::RedisModuleCtx) -> Result<(), String> {
    for (index, s) in SETTINGS.iter().enumerate() {
        let name = CString::new(s.name).unwrap_or_default();
        let flags = match s.unit {
            Unit::Bytes => raw::REDISMODULE_CONFIG_MEMORY,
            _ => raw::REDISMODULE_CONFIG_DEFAULT,
        };
        let [default, min, max] =
            [s.default, s.min, s.max].map(|n| c_longlong::try_from(n).unwrap_or(c_longlong::MAX));
        VALUES[index].store(default, Relaxed);
        // SAFETY: called in OnLoad with its context; the server copies the name. The pointer that
        // comes back to `get` and `set` is the index and never followed.
        let done = unsafe {
            let (name, which) = (name.as_ptr(), ptr::without_provenance_mut(index));
            match s.unit {
                Unit::Switch => api!(RedisModule_RegisterBoolConfig)(
                    ctx,
                    name,
                    c_int::from(s.default != 0),
                    flags,
                    Some(get_switch),
                    Some(set_switch),
                    None,
                    which,
                ),
                _ => api!(RedisModule_RegisterNumericConfig)(
                    ctx,
                    name,
                    default,
                    flags,
                    min,
                    max,
                    Some(get),
                    Some(set),
                    None,
                    which,
                ),
            }
        };
        if done != raw::REDISMODULE_OK as c_int {
            return Err(format!("the setting maos.{} was not taken", s.name));
        }
    }
    for (index, t) in TEXTS.iter().enumerate() {
        let name = CString::new(t.name).unwrap_or_default();
        // SAFETY: as above.
        let done = unsafe {
            api!(RedisModule_RegisterStringConfig)(
                ctx,
                name.as_ptr(),
                c"".as_ptr(),
                raw::REDISMODULE_CONFIG_IMMUTABLE,
                Some(get_text),
                Some(set_text),
                None,
                ptr::without_provenance_mut(index),
            )
        };
        if done != raw::REDISMODULE_OK as c_int {
            return Err(format!("the setting maos.{} was not taken", t.name));
        }
    }
    // SAFETY: in OnLoad, after all settings are registered, as the server wants it.
    match unsafe { api!(RedisModule_LoadConfigs)(ctx) } == raw::REDISMODULE_OK as c_int {
        true => Ok(()),
        false => {
            Err("a maos setting of redis.conf was not taken; the line above says which".into())
        }
    }
}
