//! Keys opened for one call: the one typed way to a record.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use maos_core::change::{Change, Expiry};
use maos_core::event::Event;
use maos_core::feed::Tell;
use maos_core::partition::Definition;
use maos_core::record::{Record, Version};
use maos_core::refusal::WRONG_TYPE;
use maos_core::{Refusal, Stamp};

use super::api::{api, raw};
use super::call::{bytes_of, flags};
use super::ledger::{self, Held};
use super::lineage::{context, Name};
use super::{backup, failpoint, feed, index, members, partitions};
use crate::persist;

/// Whether the key's slot is another node's, or on its way from or to one that the key is on now: then it
/// goes on there. Asked by having the server look at the key: it refuses before.
pub fn is_elsewhere(db: i32, key: &[u8]) -> bool {
    if flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_CLUSTER == 0 {
        return false;
    }
    let ctx = context(db);
    let name = Name::new(ctx, key);
    // SAFETY: the format says that a string follows; the reply is freed.
    unsafe {
        let (command, format) = (c"EXISTS".as_ptr(), c"s".as_ptr());
        let reply = api!(RedisModule_Call)(ctx, command, format, name.string);
        if reply.is_null() {
            return true;
        }
        api!(RedisModule_FreeCallReply)(reply);
    }
    false
}

/// Whether the slot of a key is on its way from here, or another node's: what holds of any key there that does not
/// exist. The key itself is not looked at, which may be about to go.
pub fn is_leaving(db: i32, key: &[u8]) -> bool {
    if flags(std::ptr::null_mut()) & raw::REDISMODULE_CTX_FLAGS_CLUSTER == 0 {
        return false;
    }
    let tag = hash_tag(key);
    // Not to be put between braces.
    if tag.is_empty() || tag.contains(&b'}') {
        return false;
    }
    is_elsewhere(db, &[b"{", tag, b"}\0maos"].concat())
}

/// The part of a key that its slot is made of: what is between the first `{` and the next `}`, or all of it.
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|b| *b == b'}')?;
        Some(&rest[..close])
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// What a key is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To read.
    Read,
    /// To read and write.
    Write,
    /// To read, as if nobody had: it does not count as a use.
    Look,
}

/// Has the processor fetch what will be looked at soon. With more keys than fit into its caches it waits
/// longer for memory than it works, and these places are known a while before they are needed.
#[inline(always)]
fn fetch_ahead(places: &[*const u8]) {
    #[cfg(target_arch = "x86_64")]
    for place in places {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: a hint, which reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = places;
}

/// An open key of our type, or of none. Closed when it goes.
pub struct Key<'c> {
    ctx: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    handle: *mut raw::RedisModuleKey,
    record: *mut Record,
    /// What those who listen are told once the key is closed.
    event: Cell<Option<Event>>,
    call: PhantomData<&'c ()>,
}

impl<'c> Key<'c> {
    /// Opens a key.
    ///
    /// # Errors
    /// `WRONGTYPE` if it holds something else.
    ///
    /// # Safety
    /// `ctx` and `name` must be the server's and live for `'c`, and no other `Key` of the same name
    /// may be open for writing.
    #[inline]
    pub unsafe fn open(
        ctx: *mut raw::RedisModuleCtx,
        name: *mut raw::RedisModuleString,
        mode: Mode,
    ) -> Result<Key<'c>, Refusal> {
        failpoint::hit("open");
        let mode = match mode {
            Mode::Read => raw::REDISMODULE_READ,
            Mode::Write => raw::REDISMODULE_READ | raw::REDISMODULE_WRITE,
            Mode::Look => raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH,
        };
        // SAFETY: by the caller; the handle is used until `drop` closes it.
        let handle = unsafe { api!(RedisModule_OpenKey)(ctx, name, mode as _) };
        let mut key = Key {
            ctx,
            name,
            handle,
            record: std::ptr::null_mut(),
            event: Cell::new(None),
            call: PhantomData,
        };
        // SAFETY: the handle is open, or null, which all of these take for an empty key. A value of
        // our type is a record that `persist` put there.
        unsafe {
            if api!(RedisModule_ModuleTypeGetType)(handle) == persist::data_type() {
                key.record = api!(RedisModule_ModuleTypeGetValue)(handle).cast();
                fetch_ahead(&[key.record.cast_const().cast()]);
            } else if api!(RedisModule_KeyType)(handle) != raw::REDISMODULE_KEYTYPE_EMPTY as i32 {
                return Err(WRONG_TYPE);
            }
        }
        Ok(key)
    }

    /// The key's name.
    pub fn name(&self) -> &[u8] {
        // SAFETY: the name lives for `'c`.
        unsafe { bytes_of(self.name) }
    }

    /// The record, if there is one.
    pub fn record(&self) -> Option<&Record> {
        // SAFETY: null, or the record of a key that stays open while `self` is borrowed.
        unsafe { self.record.as_ref() }
    }

    /// Has what a reader looks at fetched: the current version.
    #[inline(always)]
    pub fn fetch_to_read(&self) {
        if let Some(record) = self.record() {
            fetch_ahead(&record.near()[..1]);
        }
    }

    /// Has what a writer looks at first fetched.
    #[inline(always)]
    pub fn fetch_to_write(&self) {
        if let Some(record) = self.record() {
            fetch_ahead(&record.near());
        }
    }

    /// Has what a writer looks at last fetched; what [`fetch_to_write`](Key::fetch_to_write) asked for is
    /// at hand by now.
    #[inline(always)]
    pub fn fetch_history(&self) {
        if let Some(record) = self.record() {
            fetch_ahead(&record.far());
        }
    }

    /// The record, to change how it is kept but not what it says.
    pub fn record_mut(&mut self) -> Option<&mut Record> {
        // SAFETY: as for `record`, and `self` is borrowed alone.
        unsafe { self.record.as_mut() }
    }

    /// Milliseconds until the key expires; -1 if it does not.
    pub fn ttl_ms(&self) -> i64 {
        // SAFETY: the handle is open.
        unsafe { api!(RedisModule_GetExpire)(self.handle) }
    }

    /// Applies a change to its `n`-th key, which is this one. Cannot fail.
    pub fn apply(&mut self, change: &Change<'_>, n: usize) {
        failpoint::hit("apply");
        let (ctx, handle) = (self.ctx, self.handle);
        let expires_ms = || {
            // SAFETY: the handle is open.
            let at = unsafe { api!(RedisModule_GetAbsExpire)(handle) };
            u64::try_from(at).ok()
        };
        self.keep_for_backup();
        let event = change.event(n, self.record());
        let live = self.record().and_then(Record::live);
        let previous = live.map_or(Stamp::NONE, Version::stamp);
        self.note(event);
        if let Some(record) = self.record_mut() {
            let (before, was) = (Held::by(record), members::before(record));
            change.apply(n, Some(record));
            ledger::changed(before, record);
            if record.is_empty() {
                self.remove();
            } else {
                let expiry = change.expiry_over(record, expires_ms);
                let place = || (db_of(ctx), change.writes[n].key.into());
                members::after(was, record, place);
                self.expire(expiry);
            }
        } else if let Some(record) = change.apply(n, None) {
            let expiry = change.expiry_over(&record, || None);
            members::after(None, &record, || (db_of(ctx), change.writes[n].key.into()));
            self.put(record);
            if let Expiry::At(_) = expiry {
                self.expire(expiry);
            }
        }
        if let Some(event) = event {
            feed::append(Tell {
                stamp: Some(change.stamp),
                event,
                db: db_of(ctx),
                key: change.writes[n].key,
                version: change.stamp,
                previous,
                who: &change.who,
                unsure: false,
            });
        }
        self.signal();
    }

    /// Hands the record over to the backup that is being made, if it does not have it yet: it is about to change.
    #[inline(always)]
    pub fn keep_for_backup(&mut self) {
        if backup::keeps() {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&mut self) {
        if self.record.is_null() {
            return;
        }
        // SAFETY: the handle is open, and the name lives for `'c`; the record is as for `record_mut`.
        unsafe {
            let expires = api!(RedisModule_GetAbsExpire)(self.handle);
            let (db, name) = (db_of(self.ctx), bytes_of(self.name));
            if let Some(record) = self.record.as_mut() {
                backup::keep(db, name, u64::try_from(expires).unwrap_or(0), record);
            }
        }
    }

    /// Puts a record that was restored in the place of whatever the key holds; it expires then, in milliseconds of unix
    /// time; 0: not at all.
    pub fn bring(&mut self, record: Record, expires_ms: u64) {
        self.put(record);
        if expires_ms > 0 {
            self.expire(Expiry::At(expires_ms));
        }
        self.signal();
    }

    /// Has those who listen told of this once the key is closed: whoever they are, nothing of ours is open then. Of
    /// several events of one command they are told the last.
    #[inline]
    pub fn note(&self, event: Option<Event>) {
        self.event.set(event.or(self.event.get()));
    }

    /// The key goes, and its value with it.
    pub fn remove(&mut self) {
        self.keep_for_backup();
        self.record = std::ptr::null_mut();
        // SAFETY: the key is open for writing; its value is not used any more.
        unsafe { api!(RedisModule_DeleteKey)(self.handle) };
    }

    /// Puts a record in the place of whatever the key holds.
    pub fn put(&mut self, record: Record) {
        self.keep_for_backup();
        let value = persist::boxed(record);
        self.record = value.cast();
        // SAFETY: the key is open for writing; the server owns the value from here on.
        let done = unsafe {
            api!(RedisModule_ModuleTypeSetValue)(self.handle, persist::data_type(), value)
        };
        assert_eq!(
            done,
            raw::REDISMODULE_OK as i32,
            "the key is open for writing"
        );
        index::made(db_of(self.ctx), self.name());
    }

    fn expire(&mut self, expiry: Expiry) {
        // SAFETY: the key is open for writing and holds a value.
        unsafe {
            match expiry {
                Expiry::Keep => {}
                // Asking is cheaper than clearing what is not there.
                Expiry::Clear if self.ttl_ms() < 0 => {}
                Expiry::Clear => {
                    api!(RedisModule_SetExpire)(self.handle, raw::REDISMODULE_NO_EXPIRE.into());
                }
                Expiry::At(ms) => {
                    let ms = i64::try_from(ms).unwrap_or(i64::MAX / 2);
                    api!(RedisModule_SetAbsExpire)(self.handle, ms);
                }
            }
        }
    }

    /// Tells those who WATCH or track the key. Not done by opening it: a refused write is no change.
    pub fn signal(&self) {
        // SAFETY: context and name live for `'c`.
        unsafe { api!(RedisModule_SignalModifiedKey)(self.ctx, self.name) };
    }
}

/// The database that a context has selected.
fn db_of(ctx: *mut raw::RedisModuleCtx) -> i32 {
    // SAFETY: a context of the server.
    unsafe { api!(RedisModule_GetSelectedDb)(ctx) }
}

impl Drop for Key<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: open, and not used after this.
            unsafe { api!(RedisModule_CloseKey)(self.handle) };
        }
        if let Some(event) = self.event.get() {
            let (class, event) = (raw::REDISMODULE_NOTIFY_MODULE, event.notification());
            // SAFETY: context and name live for `'c`.
            unsafe {
                api!(RedisModule_NotifyKeyspaceEvent)(
                    self.ctx,
                    class as _,
                    event.as_ptr(),
                    self.name,
                );
            }
        }
    }
}

/// An open key that defines a partition, or nothing. Closed when it goes.
pub struct ShareKey<'c> {
    ctx: *mut raw::RedisModuleCtx,
    name: *mut raw::RedisModuleString,
    handle: *mut raw::RedisModuleKey,
    held: *const Definition,
    call: PhantomData<&'c ()>,
}

impl<'c> ShareKey<'c> {
    /// Opens a key.
    ///
    /// # Errors
    /// `WRONGTYPE` if it holds something else.
    ///
    /// # Safety
    /// As for [`Key::open`].
    pub unsafe fn open(
        ctx: *mut raw::RedisModuleCtx,
        name: *mut raw::RedisModuleString,
        mode: Mode,
    ) -> Result<ShareKey<'c>, Refusal> {
        let mode = match mode {
            Mode::Write => raw::REDISMODULE_READ | raw::REDISMODULE_WRITE,
            Mode::Read | Mode::Look => raw::REDISMODULE_READ,
        };
        // SAFETY: by the caller; the handle is used until `drop` closes it.
        let handle = unsafe { api!(RedisModule_OpenKey)(ctx, name, mode as _) };
        let mut key = ShareKey {
            ctx,
            name,
            handle,
            held: std::ptr::null(),
            call: PhantomData,
        };
        // SAFETY: as for `Key::open`.
        unsafe {
            if api!(RedisModule_ModuleTypeGetType)(handle) == persist::share_type() {
                key.held = api!(RedisModule_ModuleTypeGetValue)(handle).cast();
            } else if api!(RedisModule_KeyType)(handle) != raw::REDISMODULE_KEYTYPE_EMPTY as i32 {
                return Err(WRONG_TYPE);
            }
        }
        Ok(key)
    }

    /// The definition, if there is one.
    pub fn definition(&self) -> Option<&Definition> {
        // SAFETY: null, or the value of a key that stays open while `self` is borrowed.
        unsafe { self.held.as_ref() }
    }

    /// When it expires, in milliseconds of unix time; 0: it does not.
    pub fn expires_ms(&self) -> u64 {
        // Redis 8.2 crashes if it is asked about a key without a value.
        if self.handle.is_null() || self.held.is_null() {
            return 0;
        }
        // SAFETY: the handle is open.
        let at = unsafe { api!(RedisModule_GetAbsExpire)(self.handle) };
        u64::try_from(at).unwrap_or(0)
    }

    /// Puts a definition in the place of whatever the key holds.
    pub fn put(&mut self, definition: Arc<Definition>) {
        let value = persist::boxed_share(definition.clone());
        self.held = value;
        // SAFETY: the key is open for writing; the server owns the value from here on, and context and name live
        // for `'c`.
        unsafe {
            let done = api!(RedisModule_ModuleTypeSetValue)(
                self.handle,
                persist::share_type(),
                value.cast_mut().cast(),
            );
            assert_eq!(
                done,
                raw::REDISMODULE_OK as i32,
                "the key is open for writing"
            );
            partitions::held(db_of(self.ctx), bytes_of(self.name), definition);
            api!(RedisModule_SignalModifiedKey)(self.ctx, self.name);
        }
    }

    /// Has the key, which holds what was just put there, expire then, in milliseconds of unix time; 0: not at all.
    pub fn expire(&mut self, at_ms: u64) {
        // What is put in the place of something else does not inherit its end.
        if at_ms > 0 {
            let ms = i64::try_from(at_ms).unwrap_or(i64::MAX / 2);
            // SAFETY: the key is open for writing and holds a value.
            unsafe { api!(RedisModule_SetAbsExpire)(self.handle, ms) };
        }
    }

    /// The key goes, and its definition with it.
    pub fn remove(&mut self) {
        self.held = std::ptr::null();
        // SAFETY: the key is open for writing; its value is not used any more.
        unsafe {
            api!(RedisModule_DeleteKey)(self.handle);
            api!(RedisModule_SignalModifiedKey)(self.ctx, self.name);
        }
    }
}

impl Drop for ShareKey<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: open, and not used after this.
            unsafe { api!(RedisModule_CloseKey)(self.handle) };
        }
    }
}
