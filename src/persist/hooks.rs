//! What else the server asks of a value: its digest, its size, a copy, to move it, to free it.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use maos_core::digest::{show, Digest};
use maos_core::record::Record;

use super::{boxed, unboxed};
use crate::edge::api::{api, raw};
use crate::edge::call::bytes_of;
use crate::edge::metrics::METRICS;
use crate::edge::node::node;
use crate::edge::{backup, events, failpoint, feed, guard, index, lineage, log, members, waiting};

/// The record of a value.
///
/// # Safety
/// `value` must be a value of our type that lives for `'a`.
unsafe fn record<'a>(value: *const c_void) -> &'a Record {
    // SAFETY: by the caller: `boxed` made it.
    unsafe { &*value.cast::<Record>() }
}

/// The server's digest of one value.
pub struct Server(pub *mut raw::RedisModuleDigest);

// SAFETY of all calls here: the digest is that of the callback in progress, and the server copies.
impl Digest for Server {
    fn number(&mut self, n: u64) {
        // SAFETY: see above.
        unsafe { api!(RedisModule_DigestAddLongLong)(self.0, n as i64) };
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let start = bytes.as_ptr().cast::<c_char>();
        // SAFETY: see above.
        unsafe { api!(RedisModule_DigestAddStringBuffer)(self.0, start, bytes.len()) };
    }

    fn end(&mut self) {
        // SAFETY: see above.
        unsafe { api!(RedisModule_DigestEndSequence)(self.0) };
    }
}

/// # Safety
/// Called by the server.
pub unsafe extern "C" fn digest(md: *mut raw::RedisModuleDigest, value: *mut c_void) {
    guard::run(|| {
        failpoint::hit("digest");
        // SAFETY: the server gives a value of our type.
        let record = unsafe { record(value) };
        let node = node();
        show(record, node.share(record), &mut Server(md));
    });
}

/// May run in a thread of the server.
///
/// # Safety
/// Called by the server.
pub unsafe extern "C" fn free(value: *mut c_void) {
    guard::run(|| {
        failpoint::hit("free");
        index::freed(value);
        // SAFETY: the server gives the value up.
        drop(unsafe { unboxed(value) });
    });
}

/// # Safety
/// Called by the server.
pub unsafe extern "C" fn mem_usage(
    _: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
    _samples: usize,
) -> usize {
    guard::run(|| {
        failpoint::hit("mem usage");
        // SAFETY: the server gives a value of our type.
        unsafe { record(value) }.bytes()
    })
    .unwrap_or(0)
}

/// How much work it is to free the value; beyond [`FREED_LATER`] the server may do it in a thread.
///
/// # Safety
/// Called by the server.
pub unsafe extern "C" fn free_effort(
    _: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
) -> usize {
    guard::run(|| {
        failpoint::hit("free effort");
        // SAFETY: the server gives a value of our type.
        effort(unsafe { record(value) })
    })
    .unwrap_or(1)
}

/// What the servers take to be so much work that a thread had better do it.
const FREED_LATER: usize = 64;

/// The work of freeing a record. A sixteenth of its allocations: to free a thousand takes about as long as to have it
/// done elsewhere, and what lies waiting there is still charged to its partition.
fn effort(record: &Record) -> usize {
    // None would be taken to be more than can be told.
    1 + record.allocations() / 16
}

/// Whether a record is gone as soon as its key has no use for it.
pub fn is_freed_at_once(record: &Record) -> bool {
    effort(record) <= FREED_LATER
}

/// A key with this value has been removed, or gets another. On the main thread: what takes long is freed
/// elsewhere, later.
///
/// # Safety
/// Called by the server.
pub unsafe extern "C" fn unlink(ctx: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) {
    let seen = guard::run(|| {
        failpoint::hit("unlink");
        METRICS.unlinked.one();
        if backup::keeps() {
            // SAFETY: the server's context; the name lives through the callback. The value is of our type, and nobody
            // else looks at it now.
            unsafe {
                let name = api!(RedisModule_GetKeyNameFromOptCtx)(ctx);
                if !name.is_null() {
                    let db = api!(RedisModule_GetDbIdFromOptCtx)(ctx);
                    let record = &mut *value.cast_mut().cast::<Record>();
                    backup::unlinked(db, bytes_of(name), record);
                }
            }
        }
        // SAFETY: the server gives a value of our type.
        let record = unsafe { record(value) };
        lineage::raise(record.newest());
        // SAFETY: the server's context; the name lives through the callback.
        unsafe {
            let name = api!(RedisModule_GetKeyNameFromOptCtx)(ctx);
            if !name.is_null() {
                let (db, name) = (api!(RedisModule_GetDbIdFromOptCtx)(ctx), bytes_of(name));
                members::left(record, db, name);
                index::unlinked(db, name, value);
                waiting::look_at(db, name);
                feed::unlinked(record, db, name);
            }
        }
    });
    if seen.is_none() {
        events::unseen();
    }
}

/// # Safety
/// Called by the server.
pub unsafe extern "C" fn copy(
    ctx: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
) -> *mut c_void {
    // Null is an error to the client.
    guard::run(|| {
        failpoint::hit("copy");
        // SAFETY: the server gives a value of our type.
        let mut copy = unsafe { record(value) }.clone();
        // Who holds the one does not hold the other.
        copy.unlock();
        if copy.is_empty() {
            return ptr::null_mut();
        }
        // SAFETY: the server's context; the name lives through the callback.
        let (db, name) = unsafe {
            let name = api!(RedisModule_GetToKeyNameFromOptCtx)(ctx);
            let db = api!(RedisModule_GetToDbIdFromOptCtx)(ctx);
            (db, if name.is_null() { &[] } else { bytes_of(name) })
        };
        copy.set_member(copy.member().of_key(name.len()));
        if let Err(refusal) = node().admit_whole(db, name, &copy, 0) {
            log::notice(&format!("a key was not copied: {refusal}"));
            return ptr::null_mut();
        }
        members::entered(&copy, db, name);
        let value = boxed(copy);
        index::comes(db, name, value);
        feed::copies(db);
        value
    })
    .unwrap_or(ptr::null_mut())
}

/// Moves the record's allocations to where the server's allocator would rather have them. The array
/// that holds the history together stays: it is small beside what it holds.
///
/// # Safety
/// Called by the server.
pub unsafe extern "C" fn defrag(
    ctx: *mut raw::RedisModuleDefragCtx,
    _: *mut raw::RedisModuleString,
    value: *mut *mut c_void,
) -> c_int {
    guard::run(|| {
        failpoint::hit("defrag");
        // SAFETY: the server gives the place of a value of our type. What `DefragAlloc` returns is
        // null, or a new home for the same bytes, the old one freed.
        unsafe {
            let home = api!(RedisModule_DefragAlloc)(ctx, *value);
            if !home.is_null() {
                *value = home;
            }
            let record = &mut *(*value).cast::<Record>();
            // Half moved it would be torn.
            guard::applying(|| record.move_blobs(&mut |blob| moved(ctx, blob)));
        }
    });
    0
}

/// # Safety
/// `ctx` must be the server's, in the defrag callback.
unsafe fn moved(ctx: *mut raw::RedisModuleDefragCtx, blob: Box<[u8]>) -> Box<[u8]> {
    let len = blob.len();
    if len == 0 {
        return blob;
    }
    let old = Box::into_raw(blob);
    // SAFETY: `old` is an allocation of ours; either it moved, or it is where it was.
    unsafe {
        let home = api!(RedisModule_DefragAlloc)(ctx, old.cast::<c_void>());
        let home = if home.is_null() {
            old.cast()
        } else {
            home.cast::<u8>()
        };
        Box::from_raw(ptr::slice_from_raw_parts_mut(home, len))
    }
}
