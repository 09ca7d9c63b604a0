//! Keys of the server's own types, read and written by the server's own commands: for backups that hold them too.

use std::ffi::CStr;
use std::slice;

use maos_core::codec::backup::Type;

use super::api::{api, raw};
use super::lineage::{context, Name};
use super::node::now_us;
use super::scribe::Elements;

/// A value of more elements is left out: to read it would hold the others up.
const ELEMENTS_MAX: usize = 100_000;
/// So many elements are written with one command.
const AT_ONCE: usize = 1_000;

/// What was found at a key.
pub enum Found {
    /// When it expires (0: not at all), what it is, and what is in it.
    Value(u64, Type, Elements),
    /// Something that is not read.
    LeftOut,
    /// It is gone.
    Nothing,
}

/// A reply of the server, freed when it goes.
struct Answer(*mut raw::RedisModuleCallReply);

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: ours, and not used after this.
            unsafe { api!(RedisModule_FreeCallReply)(self.0) };
        }
    }
}

impl Answer {
    fn is_error(&self) -> bool {
        // SAFETY: null, or a live reply.
        unsafe {
            self.0.is_null()
                || api!(RedisModule_CallReplyType)(self.0) as isize == raw::REDISMODULE_REPLY_ERROR
        }
    }

    /// Has `then` called with every element; a text alone is one.
    fn each(&self, then: &mut dyn FnMut(&[u8])) {
        // SAFETY: a live reply, whose parts live as long.
        unsafe {
            if api!(RedisModule_CallReplyType)(self.0) as isize != raw::REDISMODULE_REPLY_ARRAY {
                return then(text(self.0));
            }
            for n in 0..api!(RedisModule_CallReplyLength)(self.0) {
                then(text(api!(RedisModule_CallReplyArrayElement)(self.0, n)));
            }
        }
    }
}

/// # Safety
/// `reply` must be a live reply of the server, or a part of one; the bytes live as long.
unsafe fn text<'r>(reply: *mut raw::RedisModuleCallReply) -> &'r [u8] {
    let mut len = 0;
    // SAFETY: by the caller; the server gives a pointer to `len` bytes, or null.
    unsafe {
        let start = api!(RedisModule_CallReplyStringPtr)(reply, &raw mut len);
        match start.is_null() {
            true => &[],
            false => slice::from_raw_parts(start.cast(), len),
        }
    }
}

/// Has the server run a command with a key and words after it; told to replicas if it `writes`.
fn call(db: i32, command: &CStr, key: &[u8], words: &[&[u8]], writes: bool) -> Answer {
    let ctx = context(db);
    let name = Name::new(ctx, key);
    let rest: Vec<Name> = words.iter().map(|w| Name::new(ctx, w)).collect();
    let mut argv: Vec<_> = rest.iter().map(|w| w.string).collect();
    let format = if writes { c"!sv" } else { c"sv" };
    // SAFETY: the format says what follows: a string, and strings with their number. All of them live through the call.
    Answer(unsafe {
        let (start, len) = (argv.as_mut_ptr(), argv.len());
        api!(RedisModule_Call)(
            ctx,
            command.as_ptr(),
            format.as_ptr(),
            name.string,
            start,
            len,
        )
    })
}

/// Reads a key.
pub fn read(db: i32, key: &[u8]) -> Found {
    let ctx = context(db);
    let name = Name::new(ctx, key);
    let look = raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
    // SAFETY: our own context; the key is closed before its name goes.
    let (kind, len, expires_ms) = unsafe {
        let open = api!(RedisModule_OpenKey)(ctx, name.string, look as _);
        if open.is_null() {
            return Found::Nothing;
        }
        let kind = api!(RedisModule_KeyType)(open) as isize;
        let len = api!(RedisModule_ValueLength)(open);
        let expires = api!(RedisModule_GetAbsExpire)(open);
        api!(RedisModule_CloseKey)(open);
        (kind, len, u64::try_from(expires).unwrap_or(0))
    };
    let (kind, command, words): (_, _, &[&[u8]]) = match kind {
        raw::REDISMODULE_KEYTYPE_STRING => (Type::String, c"GET", &[]),
        raw::REDISMODULE_KEYTYPE_LIST => (Type::List, c"LRANGE", &[b"0", b"-1"]),
        raw::REDISMODULE_KEYTYPE_SET => (Type::Set, c"SMEMBERS", &[]),
        raw::REDISMODULE_KEYTYPE_HASH => (Type::Hash, c"HGETALL", &[]),
        raw::REDISMODULE_KEYTYPE_ZSET => {
            let words: &[&[u8]] = &[b"0", b"-1", b"WITHSCORES"];
            (Type::ZSet, c"ZRANGE", words)
        }
        _ => return Found::LeftOut,
    };
    if kind != Type::String && len > ELEMENTS_MAX {
        return Found::LeftOut;
    }
    let answer = call(db, command, key, words, false);
    if answer.is_error() {
        return Found::LeftOut;
    }
    let (mut elements, mut count) = (Elements::read_at(now_us() / 1000), 0);
    answer.each(&mut |element| {
        elements.push(element);
        count += 1;
    });
    match count {
        0 => Found::Nothing,
        _ => Found::Value(expires_ms, kind, elements),
    }
}

/// Whether there is a key.
pub fn exists(db: i32, key: &[u8]) -> bool {
    let ctx = context(db);
    let name = Name::new(ctx, key);
    let look = raw::REDISMODULE_READ | raw::REDISMODULE_OPEN_KEY_NOTOUCH;
    // SAFETY: our own context; the key is closed before its name goes.
    unsafe {
        let open = api!(RedisModule_OpenKey)(ctx, name.string, look as _);
        let kind = api!(RedisModule_KeyType)(open) as isize;
        if !open.is_null() {
            api!(RedisModule_CloseKey)(open);
        }
        kind != raw::REDISMODULE_KEYTYPE_EMPTY
    }
}

/// Puts a value in the place of whatever the key holds, here and on replicas.
///
/// # Errors
/// If the server does not take it.
pub fn write(
    db: i32,
    key: &[u8],
    kind: Type,
    elements: &[&[u8]],
    expires_ms: u64,
) -> Result<(), String> {
    let run = |command: &CStr, words: &[&[u8]]| {
        let answer = call(db, command, key, words, true);
        match answer.is_error() {
            true => Err(format!(
                "{} was refused by the server",
                command.to_string_lossy()
            )),
            false => Ok(()),
        }
    };
    run(c"DEL", &[])?;
    let command = match kind {
        Type::String => c"SET",
        Type::List => c"RPUSH",
        Type::Set => c"SADD",
        Type::Hash => c"HSET",
        Type::ZSet => c"ZADD",
    };
    for some in elements.chunks(AT_ONCE) {
        if kind == Type::ZSet {
            // Scores come first there.
            let turned: Vec<&[u8]> = some
                .chunks(2)
                .flat_map(|p| p.iter().rev().copied())
                .collect();
            run(command, &turned)?;
        } else {
            run(command, some)?;
        }
    }
    if expires_ms > 0 {
        run(c"PEXPIREAT", &[expires_ms.to_string().as_bytes()])?;
    }
    Ok(())
}
