//! RDB files, DUMP payloads and rewritten AOFs, all through the codec of the core.

use std::ffi::{c_char, c_int, c_void};
use std::{ptr, slice};

use maos_core::codec::{v1, Damaged};
use maos_core::config::UNPACKED_MAX;
use maos_core::record::Record;
use maos_core::Stamp;

use super::{boxed, restore};
use crate::edge::api::{api, raw};
use crate::edge::call::flags;
use crate::edge::metrics::METRICS;
use crate::edge::node::{node, now_us, Node};
use crate::edge::{failpoint, guard, index, log, members};

/// # Safety
/// Called by the server.
pub unsafe extern "C" fn save(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    let saved = guard::run(|| {
        failpoint::hit("save");
        // SAFETY: the server gives a value of our type, which is a record.
        let (node, record) = (&mut *node(), unsafe { &*value.cast::<Record>() });
        let buffer = node.encoded(record);
        // SAFETY: the server's own `io`.
        unsafe {
            api!(RedisModule_SaveStringBuffer)(io, buffer.as_ptr().cast::<c_char>(), buffer.len());
        }
    });
    if saved.is_none() {
        // SAFETY: the server's `io`, in its callback.
        unsafe { fail(io) };
    }
}

/// Makes what is being written fail: a file in which a record is missing would be taken for a good one,
/// and put in the place of the last good one.
///
/// `rdb_save` has no way to say that it failed. But the server marks `io` as failed, writes nothing and
/// goes on when it is asked to emit a command that it does not know. So SAVE and SHUTDOWN answer an error,
/// the child of BGSAVE or of a rewritten AOF ends with one, and the file that was there stays. DUMP does
/// not look at the mark: it gives a payload without a record in it, which RESTORE refuses.
///
/// # Safety
/// `io` must be the server's, in its callback.
pub unsafe fn fail(io: *mut raw::RedisModuleIO) {
    // SAFETY: `io` by the caller; the texts are the server's to read, and the format has no arguments.
    unsafe {
        log::io_warning(io, "a state record could not be written down, so all that was being written is given up; the file before it stays");
        api!(RedisModule_EmitAOF)(io, c"maos.".as_ptr(), c"".as_ptr());
    }
}

/// # Safety
/// Called by the server.
pub unsafe extern "C" fn load(io: *mut raw::RedisModuleIO, encoding: c_int) -> *mut c_void {
    guard::run(|| {
        failpoint::hit("load");
        if encoding != c_int::from(v1::ENCODING) {
            let text = format!("a state record has encoding {encoding}; this version of maos reads 1. Load it with the version that wrote it, or a later one");
            // SAFETY: the server's `io`, in its callback.
            unsafe { log::io_warning(io, &text) };
            return ptr::null_mut();
        }
        let mut len = 0;
        // SAFETY: the server's `io`; what it gives is ours to free, after its last use.
        unsafe {
            let bytes = api!(RedisModule_LoadStringBuffer)(io, &raw mut len);
            if bytes.is_null() {
                // The payload is cut: the server knows, and reports it.
                return ptr::null_mut();
            }
            let record = record(io, slice::from_raw_parts(bytes.cast(), len));
            api!(RedisModule_Free)(bytes.cast());
            match record {
                Ok(record) => {
                    let value = boxed(record);
                    if let Some((db, name)) = restore::place(io) {
                        index::comes(db, name, value);
                    }
                    value
                }
                Err(Damaged(why)) => {
                    METRICS.damaged.one();
                    log::io_warning(io, &format!("a state record is refused: {why}"));
                    ptr::null_mut()
                }
            }
        }
    })
    .unwrap_or_else(|| {
        METRICS.damaged.one();
        ptr::null_mut()
    })
}

/// # Safety
/// `io` must be the server's, in its callback.
unsafe fn record(io: *mut raw::RedisModuleIO, bytes: &[u8]) -> Result<Record, Damaged> {
    let server = flags(ptr::null_mut());
    let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
    let from_client = server & raw::REDISMODULE_CTX_FLAGS_MASTER != 0 && server & loading == 0;
    let mut record = decode(bytes, from_client, &mut node())?;
    // SAFETY: by the caller.
    unsafe {
        let place = restore::place(io).filter(|_| record.member().place().is_some());
        if let Some((_, name)) = place {
            record.set_member(record.member().of_key(name.len()));
        }
        if !restore::obey(io, &mut record) && from_client {
            restore::decide(io, &mut record)?;
        }
        if let Some((db, name)) = place {
            members::entered(&record, db, name);
        }
    }
    Ok(record)
}

/// What comes from a file or a master was bounded when it was written, and is taken whole: refusing
/// a record there would cost the user everything. What a client RESTOREs is held to the settings,
/// and to a clock that is not far ahead of ours.
fn decode(bytes: &[u8], from_client: bool, node: &mut Node) -> Result<Record, Damaged> {
    let now = now_us();
    let bounds = match from_client {
        false => v1::Bounds::HARD,
        true => v1::Bounds {
            value_max: node.limits.value_max,
            // What this node has seen before is nothing new, whatever its wall clock says now.
            newest: Stamp(now.saturating_add(node.limits.drift_us))
                .max(node.clock.last())
                .min(Stamp::MAX),
            unpacked_max: UNPACKED_MAX,
        },
    };
    let decoded = v1::decode_record(bytes, bounds, &mut node.interner).inspect_err(|_| {
        // The writers of a refused record are nobody's.
        node.interner.sweep();
    });
    let (mut record, share) = decoded?;
    node.join(&mut record, share, 0);
    // What a client brings is no stamp of this node's own past.
    match from_client {
        true => node.observe(record.newest(), now),
        false => node.obeyed(record.newest(), now),
    }
    Ok(record)
}

/// # Safety
/// Called by the server.
pub unsafe extern "C" fn rewrite(
    io: *mut raw::RedisModuleIO,
    key: *mut raw::RedisModuleString,
    value: *mut c_void,
) {
    let written = guard::run(|| {
        failpoint::hit("rewrite");
        // SAFETY: as for `save`.
        let (node, record) = (&mut *node(), unsafe { &*value.cast::<Record>() });
        let buffer = node.encoded(record);
        // SAFETY: the format says what follows: a string, bytes and their length.
        unsafe {
            api!(RedisModule_EmitAOF)(
                io,
                c"MAOS.LOAD".as_ptr(),
                c"sb".as_ptr(),
                key,
                buffer.as_ptr().cast::<c_char>(),
                buffer.len(),
            );
        }
    });
    if written.is_none() {
        // SAFETY: the server's `io`, in its callback.
        unsafe { fail(io) };
    }
}
