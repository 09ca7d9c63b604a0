//! RESTORE: what a client brings back must not bring an old version back with it.
//!
//! A payload whose current version this node may have given to the key before gets one more on top, with
//! the same value. The old ones stay readable, and every compare-and-set that names them loses.

use maos_core::codec::Damaged;
use maos_core::record::Record;
use maos_core::restored::Restored;
use maos_core::{Code, Stamp};

use crate::edge::api::{api, raw};
use crate::edge::call::bytes_of;
use crate::edge::failpoint;
use crate::edge::keys::{is_elsewhere, Key, Mode};
use crate::edge::lineage::{self, Name, Note};
use crate::edge::node::{node, now_us};
use crate::persist::hooks::is_freed_at_once;

/// The key that is loaded, and its database. `None` if another module loads a value for itself.
///
/// # Safety
/// `io` must be the server's, in its callback, which the bytes do not outlive.
pub unsafe fn place<'io>(io: *mut raw::RedisModuleIO) -> Option<(i32, &'io [u8])> {
    // SAFETY: by the caller.
    unsafe {
        let name = api!(RedisModule_GetKeyNameFromIO)(io);
        (!name.is_null()).then(|| (api!(RedisModule_GetDbIdFromIO)(io), bytes_of(name)))
    }
}

/// Looks at what a client RESTOREs on a master.
///
/// # Errors
/// If no stamp is left above it, or its partition has no room for it.
///
/// # Safety
/// `io` must be the server's, in its callback.
pub unsafe fn decide(io: *mut raw::RedisModuleIO, record: &mut Record) -> Result<(), Damaged> {
    failpoint::hit("restore decide");
    // SAFETY: by the caller.
    let Some((db, key)) = (unsafe { place(io) }).filter(|(db, key)| !is_elsewhere(*db, key)) else {
        return Ok(());
    };
    let was = record.current().stamp();
    let again = record.live().is_some() && may_have_seen(db, key, was, record);
    let locked = record.leased_until_ms() > 0;
    if !(again || locked) {
        return admit(db, key, record);
    }
    if record.is_bare() {
        return Err(Damaged(
            "it is a lock without a value, which is not restored",
        ));
    }
    let now_us = now_us();
    let now = match again {
        true => node().next_stamp(now_us),
        false => was,
    };
    if now > Stamp::MAX {
        return Err(Damaged("no version is left above its own"));
    }
    let restored = Restored { was, now };
    restored.apply(record);
    admit(db, key, record)?;
    // From here on nothing is refused: what was decided is told.
    let node = &mut *node();
    if again {
        node.committed(now, now, now_us);
    }
    let key = key.into();
    lineage::announce(Note { db, key, restored }, node);
    Ok(())
}

/// Does with a record that a master, the AOF or the node that a slot comes from RESTOREs what was decided
/// about it there. False if nothing was.
///
/// # Safety
/// `io` must be the server's, in its callback.
pub unsafe fn obey(io: *mut raw::RedisModuleIO, record: &mut Record) -> bool {
    failpoint::hit("restore obey");
    let node = &mut *node();
    node.decided = None;
    // Whatever is loaded next: a decision is about that, or about nothing.
    let Some(note) = node.note.take() else {
        return false;
    };
    // SAFETY: by the caller.
    let place = unsafe { place(io) };
    place == Some((note.db, &note.key)) && note.restored.apply(record)
}

/// Whether this version may have been given to the key before, with another value. A record that
/// the key holds already may come again.
pub fn may_have_seen(db: i32, key: &[u8], was: Stamp, record: &Record) -> bool {
    let ctx = lineage::context(db);
    let name = Name::new(ctx, key);
    // SAFETY: the context and the string outlive the key, which nobody else has open.
    let held = unsafe { Key::open(ctx, name.string, Mode::Look) };
    let held = held.as_ref().ok().and_then(Key::record);
    match held {
        Some(held) if held == record => false,
        Some(held) if was <= held.newest() => true,
        _ => was <= lineage::floor(),
    }
}

/// Whether a record that a client brings has room in its partition.
///
/// # Errors
/// If it has not, or that is not known yet.
fn admit(db: i32, key: &[u8], record: &Record) -> Result<(), Damaged> {
    if node().shares.is_idle() {
        return Ok(());
    }
    let ctx = lineage::context(db);
    let name = Name::new(ctx, key);
    // SAFETY: the context and the string outlive the key, which nobody else has open.
    let held = unsafe { Key::open(ctx, name.string, Mode::Look) };
    let held = held.as_ref().ok().and_then(Key::record);
    let node = node();
    let place = node.shares.place_of(key, record);
    let replaced = held.filter(|h| h.member().place() == place);
    // The room of what lies there still for a while is no room for more.
    let shrinks = |h: &&Record| record.charge() <= h.charge();
    let replaced = replaced.filter(|h| shrinks(h) || is_freed_at_once(h));
    node.admit_whole(db, key, record, replaced.map_or(0, Record::charge))
        .map_err(|refusal| {
            Damaged(match refusal.code {
                Code::NotFound => "this node has not heard of its partition (yet): try again",
                Code::Busy => "its partition is nearly full, and other nodes have yet to hear what was written here: try again",
                _ => "its partition has no room for it",
            })
        })
}
