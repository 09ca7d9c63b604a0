//! What the server tells the module about itself, and who wants to know.

use std::ffi::{c_int, c_void};

use super::api::{api, raw};
use super::call::bytes_of;
use super::index::{self, Beside};
use super::{
    background, backup, failpoint, feed, guard, lineage, listeners, partitions, pause, waiting,
};

/// The events that are asked for. All are offered since Redis 7.0.
const EVENTS: [u64; 8] = [
    raw::REDISMODULE_EVENT_FORK_CHILD,
    raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED,
    raw::REDISMODULE_EVENT_REPLICA_CHANGE,
    raw::REDISMODULE_EVENT_LOADING,
    raw::REDISMODULE_EVENT_CONFIG,
    raw::REDISMODULE_EVENT_FLUSHDB,
    raw::REDISMODULE_EVENT_SWAPDB,
    raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD,
];

/// The form of the events' data that every server since Redis 7.0 knows.
const DATA_VERSION: u64 = 1;

/// The end of loading, good or bad.
const LOADED: [u64; 2] = [
    raw::REDISMODULE_SUBEVENT_LOADING_ENDED,
    raw::REDISMODULE_SUBEVENT_LOADING_FAILED,
];

/// Asks for the events. False if the server does not know one of them.
pub fn subscribe(ctx: *mut raw::RedisModuleCtx) -> bool {
    let known = |id| {
        let dataver = DATA_VERSION;
        let event = raw::RedisModuleEvent { id, dataver };
        // SAFETY: in OnLoad, with its context.
        let done = unsafe { api!(RedisModule_SubscribeToServerEvent)(ctx, event, Some(happened)) };
        done == raw::REDISMODULE_OK as c_int
    };
    // Offered since Redis 7.2.
    let key = raw::RedisModuleEvent {
        id: raw::REDISMODULE_EVENT_KEY,
        dataver: DATA_VERSION,
    };
    // SAFETY: in OnLoad, with its context; a server that does not know it says so.
    unsafe { api!(RedisModule_SubscribeToServerEvent)(ctx, key, Some(goes)) };
    EVENTS.into_iter().all(known)
}

/// A key is about to be removed, by whatever.
unsafe extern "C" fn goes(
    ctx: *mut raw::RedisModuleCtx,
    _: raw::RedisModuleEvent,
    _: u64,
    data: *mut c_void,
) {
    if !backup::keeps() || data.is_null() {
        return;
    }
    guard::run(|| {
        // SAFETY: what comes with this event, in the form that was asked for; the key is open in this callback, and so
        // is its name.
        unsafe {
            let key = (*data.cast::<raw::RedisModuleKeyInfo>()).key;
            let name = api!(RedisModule_GetKeyNameFromModuleKey)(key);
            let db = api!(RedisModule_GetSelectedDb)(ctx);
            if !name.is_null() {
                backup::removes(db, bytes_of(name), key);
            }
        }
    });
}

unsafe extern "C" fn happened(
    _: *mut raw::RedisModuleCtx,
    event: raw::RedisModuleEvent,
    sub: u64,
    data: *mut c_void,
) {
    // Before all else, and it cannot panic: to miss this is to lose data. Some that bring no listener
    // are not told apart.
    listeners::may_have_come();
    let noted = guard::run(|| {
        failpoint::hit("event");
        match event.id {
            raw::REDISMODULE_EVENT_CONFIG => {
                background::look_at_policy();
                pause::look_at_settings();
            }
            raw::REDISMODULE_EVENT_LOADING => {
                backup::disturbed("the data set was replaced by another one");
                lineage::replaced(true);
                if LOADED.contains(&sub) {
                    partitions::look_at_all(false);
                    feed::loaded();
                } else {
                    feed::replaced();
                }
            }
            raw::REDISMODULE_EVENT_REPL_ASYNC_LOAD => match sub {
                raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_STARTED => {
                    index::loads_beside(Beside::Begins);
                }
                raw::REDISMODULE_SUBEVENT_REPL_ASYNC_LOAD_COMPLETED => {
                    backup::disturbed("the data set was replaced by another one");
                    index::loads_beside(Beside::Served);
                    feed::replaced();
                }
                _ => index::loads_beside(Beside::Dropped),
            },
            // What is written down from here on is to be known for a part of this log.
            raw::REDISMODULE_EVENT_FORK_CHILD => feed::announce(),
            raw::REDISMODULE_EVENT_REPLICA_CHANGE
                if sub == raw::REDISMODULE_SUBEVENT_REPLICA_CHANGE_ONLINE =>
            {
                feed::announce();
            }
            raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED => {
                match sub == raw::REDISMODULE_EVENT_REPLROLECHANGED_NOW_MASTER {
                    true => feed::reigns(),
                    false => feed::demoted(),
                }
            }
            raw::REDISMODULE_EVENT_FLUSHDB => {
                if sub == raw::REDISMODULE_SUBEVENT_FLUSHDB_START {
                    backup::flushes();
                }
                lineage::replaced(false);
                waiting::look_at_all();
                if sub != raw::REDISMODULE_SUBEVENT_FLUSHDB_START {
                    partitions::look_at_all(true);
                    // SAFETY: what comes with this event, in the form that was asked for.
                    let flush = unsafe { &*data.cast::<raw::RedisModuleFlushInfo>() };
                    index::flushed(flush.dbnum);
                    feed::flushed(flush.dbnum);
                }
            }
            raw::REDISMODULE_EVENT_SWAPDB => {
                lineage::replaced(false);
                waiting::look_at_all();
                // SAFETY: what comes with this event, in the form that was asked for.
                let swap = unsafe { &*data.cast::<raw::RedisModuleSwapDbInfo>() };
                let (first, second) = (swap.dbnum_first, swap.dbnum_second);
                // The server says so too when a database changes places with itself.
                if first != second {
                    backup::disturbed("databases have changed places");
                    partitions::swapped(first, second);
                    index::swapped(first, second);
                    feed::flushed(first);
                    feed::flushed(second);
                }
            }
            _ => {}
        }
    });
    if noted.is_none() {
        unseen();
    }
}

/// Keys may have gone without being seen: what depends on that takes it that any has.
pub fn unseen() {
    lineage::raise_to_now();
    guard::run(waiting::look_at_all);
    guard::run(index::unseen);
    backup::unseen();
    feed::unseen();
}
