//! One call of a command: its arguments as bytes, and the way back to the client.

use std::ffi::{c_char, c_int, CString};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{ptr, slice};

use maos_core::glob::{are_apart, Glob};
use maos_core::wire::{CommandSpec, Keys, Reply, Sink};
use maos_core::{Code, Refusal};

use super::api::{api, raw};
use super::guard::{self, Breaker};
use super::lineage::Name;
use super::metrics::METRICS;
use super::register;
use super::{bus, failpoint, feed, log, propagate};

/// A call in progress. Lives no longer than the server's callback.
pub struct Call<'a> {
    /// The server's context of this call.
    pub ctx: *mut raw::RedisModuleCtx,
    /// The server's strings of the arguments after the command's name.
    pub argv: &'a [*mut raw::RedisModuleString],
    /// The bytes of the arguments after the command's name.
    pub args: &'a [&'a [u8]],
}

/// The author of a write that no user made: one by another module, on its own account. No ACL user
/// can have this name.
const NO_USER: &[u8] = b"(none)";

/// A panic has kept the server from being told the keys of the command that it is about to run: to the
/// server it has none, and anybody may run it.
static KEYS_UNTOLD: AtomicBool = AtomicBool::new(false);

/// So many arguments, enough for a key, a value and three options, are kept without an allocation.
const FEW: usize = 8;

/// `errno` of the server where a command does not exist.
const ENOENT: i32 = 2;

/// The bytes of a server's string.
///
/// # Safety
/// `string` must be a live string of the server, and stay so for `'a`.
pub unsafe fn bytes_of<'a>(string: *const raw::RedisModuleString) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: by the caller; the server gives a pointer to `len` bytes.
    unsafe {
        let start = api!(RedisModule_StringPtrLen)(string, &raw mut len);
        if start.is_null() {
            return &[];
        }
        slice::from_raw_parts(start.cast(), len)
    }
}

/// Connections that have a user. One that has may change it, but never comes to have none, and its
/// id is never given again.
#[derive(Debug)]
pub struct Users([u64; 64]);

impl Default for Users {
    fn default() -> Users {
        // The server counts connections from 1.
        Users([0; 64])
    }
}

impl Users {
    fn slot(id: u64) -> usize {
        (id % 64) as usize
    }

    fn knows(&self, id: u64) -> bool {
        id != 0 && self.0[Users::slot(id)] == id
    }

    fn learn(&mut self, id: u64) {
        self.0[Users::slot(id)] = id;
    }
}

/// Runs a command: understands the server's arguments, contains panics, answers.
///
/// `words` is how many its name has.
///
/// # Safety
/// To be called with what the server gives a command's callback, and in it.
pub unsafe fn enter(
    (spec, words): (&CommandSpec, usize),
    breaker: &Breaker,
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    handler: impl FnOnce(&Call<'_>) -> Result<(), Refusal>,
) -> c_int {
    guard::begin();
    let done = guard::run(|| {
        // SAFETY: by the caller: `argc` strings that live through the callback.
        let argv = unsafe { slice::from_raw_parts(argv, usize::try_from(argc).unwrap_or(0)) };
        let argv = argv.get(words..).unwrap_or_default();
        // SAFETY: as above.
        let bytes = argv.iter().map(|s| unsafe { bytes_of(*s) });
        let mut few = [const { MaybeUninit::<&[u8]>::uninit() }; FEW];
        let many: Vec<&[u8]>;
        let args = if bytes.len() <= FEW {
            let len = bytes.len();
            few.iter_mut().zip(bytes).for_each(|(slot, b)| {
                slot.write(b);
            });
            // SAFETY: so many have been written.
            unsafe { slice::from_raw_parts(few.as_ptr().cast::<&[u8]>(), len) }
        } else {
            many = bytes.collect();
            &many
        };
        let call = Call { ctx, argv, args };
        if matches!(spec.keys, Keys::Counted { .. }) {
            if call.is_asked_for_keys() {
                KEYS_UNTOLD.store(true, Relaxed);
                call.tell_keys(spec.keys);
                KEYS_UNTOLD.store(false, Relaxed);
                return Ok(());
            }
            if KEYS_UNTOLD.load(Relaxed) {
                KEYS_UNTOLD.store(false, Relaxed);
                return Err(Refusal::fixed(Code::Err, "the server could not be told the keys of this command, by which it judges who may run it; its log says why"));
            }
        }
        if let Some(seconds) = breaker.off_for() {
            return Err(Refusal::new(
                Code::Busy,
                format!("{} is switched off for {seconds} more seconds after repeated panics; the server's log says where", spec.name),
            ));
        }
        failpoint::hit("enter");
        handler(&call)
    });
    bus::flush();
    match done {
        Some(Ok(())) => {}
        Some(Err(refusal)) => refuse(ctx, &refusal),
        None => {
            if spec.internal {
                // What a master decided is now missing here: not to be hidden, nor to be made worse by
                // switching the command off.
                METRICS.damaged.one();
                feed::unseen();
                log::warning("a change from the master or the AOF was not applied: this node differs from the one it came from");
            } else {
                breaker.tripped(spec.name);
            }
            let text = format!(
                "{} met a fault of its own and {}; the server's log says where. Please report it",
                spec.name,
                guard::what_was_done()
            );
            refuse(ctx, &Refusal::new(Code::Err, text));
        }
    }
    raw::REDISMODULE_OK as c_int
}

/// Answers with a refusal.
pub fn refuse(ctx: *mut raw::RedisModuleCtx, refusal: &Refusal) {
    METRICS.refusals[refusal.code as usize].one();
    let line = CString::new(refusal.to_string()).unwrap_or_default();
    // SAFETY: the context of this call; the server copies the line.
    unsafe {
        api!(RedisModule_ReplyWithError)(ctx, line.as_ptr());
    }
}

/// Answers in another context than that of a call.
pub fn reply_to(ctx: *mut raw::RedisModuleCtx, reply: &impl Reply) {
    reply.emit(&mut Out(ctx));
}

impl Call<'_> {
    /// True if the server only wants to know where the keys are. Redis 7.0 asks this way where keys
    /// are counted, because it routes by the old key positions and not by key specs.
    fn is_asked_for_keys(&self) -> bool {
        // SAFETY: the context of this call.
        unsafe { api!(RedisModule_IsKeysPositionRequest)(self.ctx) != 0 }
    }

    fn tell_keys(&self, keys: Keys) {
        failpoint::hit("keys");
        for at in keys.positions(self.args) {
            // SAFETY: as above, and the server has asked.
            unsafe {
                api!(RedisModule_KeyAtPosWithFlags)(
                    self.ctx,
                    (at + 1) as c_int,
                    register::key_flags(keys.access()) as c_int,
                );
            }
        }
    }

    /// Answers.
    pub fn reply(&self, reply: &impl Reply) {
        failpoint::hit("reply");
        reply.emit(&mut Out(self.ctx));
    }

    /// Answers with an integer.
    pub fn reply_int(&self, n: i64) {
        Out(self.ctx).int(n);
    }

    /// Does something with the name of the ACL user of the connection.
    #[inline(always)]
    pub fn with_user<T>(&self, users: &mut Users, then: impl FnOnce(&[u8]) -> T) -> T {
        failpoint::hit("user");
        // SAFETY: the context of this call; the string is ours to free, and used before that.
        unsafe {
            // A connection may have no user (a master's link), and asking for the current user
            // would then crash the server; asking by the connection's id does not, and costs twice
            // as much.
            let id = api!(RedisModule_GetClientId)(self.ctx);
            let mut name = ptr::null_mut();
            if !users.knows(id) {
                name = api!(RedisModule_GetClientUserNameById)(self.ctx, id);
                if !name.is_null() {
                    users.learn(id);
                } else if !self.acts_for_a_user() {
                    return then(NO_USER);
                }
            }
            if name.is_null() {
                name = api!(RedisModule_GetCurrentUserName)(self.ctx);
            }
            let result = then(bytes_of(name));
            api!(RedisModule_FreeString)(self.ctx, name);
            result
        }
    }

    /// Whether the user of the connection may read a key.
    pub fn may_read(&self, key: &[u8]) -> bool {
        let mut users = Users::default();
        self.with_user(&mut users, |user| Reader::of(self.ctx, user).may_read(key))
    }

    /// Whether the user of the connection may run this command: one of the server's own that stands for what is asked
    /// for. Not every server lets a module say which commands are for administrators.
    ///
    /// # Errors
    /// `NOPERM`
    pub fn check_may(&self, command: &[&[u8]]) -> Result<(), Refusal> {
        let mut users = Users::default();
        let may = self.with_user(&mut users, |user| {
            Reader::of(self.ctx, user).may_run(command)
        });
        match may {
            true => Ok(()),
            false => {
                let name = String::from_utf8_lossy(command[0]).into_owned();
                let text = format!("the user may not run this, as it may not run {name}");
                Err(Refusal::new(Code::NoPerm, text))
            }
        }
    }

    /// Whether a call that does not come from a connection has a user: a script has, a call by
    /// another module need not. Asked for by having the server look up, as that user, a command that
    /// does not exist: without a user it refuses before it looks.
    #[cold]
    fn acts_for_a_user(&self) -> bool {
        // SAFETY: the context of this call; the format `C` says that no argument follows. The
        // answer is null, as there is no such command, and the reason in `errno`.
        let answer = unsafe { api!(RedisModule_Call)(self.ctx, c"maos.".as_ptr(), c"C".as_ptr()) };
        let reason = std::io::Error::last_os_error().raw_os_error();
        answer.is_null() && reason == Some(ENOENT)
    }

    /// The strings that the client sent, to be handed on as they are.
    pub fn known(&self) -> propagate::Known<'_> {
        propagate::Known {
            strings: self.argv,
            bytes: self.args,
        }
    }

    /// The database that is selected.
    pub fn db(&self) -> c_int {
        // SAFETY: the context of this call.
        unsafe { api!(RedisModule_GetSelectedDb)(self.ctx) }
    }

    /// True if the call comes from where it must be obeyed: a master, the AOF.
    pub fn must_obey(&self) -> bool {
        let from = raw::REDISMODULE_CTX_FLAGS_REPLICATED
            | raw::REDISMODULE_CTX_FLAGS_LOADING
            | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
        flags(self.ctx) & from != 0
    }
}

/// What an ACL user may read, as the rules are now.
pub struct Reader {
    ctx: *mut raw::RedisModuleCtx,
    name: Name,
    /// Null: there is no such user (any more).
    user: *mut raw::RedisModuleUser,
    /// A caller that has no user is held back by nothing.
    has_none: bool,
}

impl Reader {
    /// The user of this name.
    pub fn of(ctx: *mut raw::RedisModuleCtx, user: &[u8]) -> Reader {
        let (name, has_none) = (Name::new(ctx, user), user == NO_USER);
        // SAFETY: the string lives through the call; the user is freed by `drop`.
        let user = unsafe { api!(RedisModule_GetModuleUserFromUserName)(name.string) };
        Reader {
            ctx,
            name,
            user,
            has_none,
        }
    }

    /// Whether it may read a key.
    pub fn may_read(&self, key: &[u8]) -> bool {
        if self.user.is_null() {
            return self.has_none;
        }
        let key = Name::new(self.ctx, key);
        let access = raw::REDISMODULE_CMD_KEY_ACCESS as c_int;
        // SAFETY: the user is ours, the string lives through the call.
        let may =
            unsafe { api!(RedisModule_ACLCheckKeyPermissions)(self.user, key.string, access) };
        may == raw::REDISMODULE_OK as c_int
    }

    /// Whether it may run a command of the server.
    pub fn may_run(&self, command: &[&[u8]]) -> bool {
        if self.user.is_null() {
            return self.has_none;
        }
        let words: Vec<Name> = command.iter().map(|w| Name::new(self.ctx, w)).collect();
        let mut argv: Vec<_> = words.iter().map(|w| w.string).collect();
        // SAFETY: the user is ours, the strings live through the call.
        let may = unsafe {
            let len = argv.len() as c_int;
            api!(RedisModule_ACLCheckCommandPermissions)(self.user, argv.as_mut_ptr(), len)
        };
        may == raw::REDISMODULE_OK as c_int
    }

    /// What each of the keys that it may read begins with one of: the beginnings of its key patterns, up to what may
    /// differ.
    pub fn readable(&self) -> Vec<Vec<u8>> {
        self.beginnings(b'R')
    }

    /// Whether there may be a key that begins with this and that it may both read and write, by what its key patterns
    /// begin with.
    pub fn may_change_some(&self, prefix: &[u8]) -> bool {
        if self.user.is_null() {
            return self.has_none;
        }
        let some = |of: Vec<Vec<u8>>| of.iter().any(|b| !are_apart(prefix, b));
        some(self.readable()) && some(self.beginnings(b'W'))
    }

    /// What the keys begin with one of that it may read (`R`) or write (`W`).
    fn beginnings(&self, access: u8) -> Vec<Vec<u8>> {
        let mut found = vec![];
        // SAFETY: the format says what follows: a C string and a string; the reply is freed.
        unsafe {
            let (command, format) = (c"ACL".as_ptr(), c"cs".as_ptr());
            let get = c"GETUSER".as_ptr();
            let reply = api!(RedisModule_Call)(self.ctx, command, format, get, self.name.string);
            if reply.is_null() {
                // There is no telling: what is read is looked at key by key all the same.
                return vec![vec![]];
            }
            key_patterns(reply, &mut |rule| found.extend(literal_of(rule, access)));
            api!(RedisModule_FreeCallReply)(reply);
        }
        found
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.user.is_null() {
            // SAFETY: made by `of`, and not used after this.
            unsafe { api!(RedisModule_FreeModuleUser)(self.user) };
        }
    }
}

/// What the keys of a rule like `~app:*` or `%R~app:*` begin with, if it lets this be done with them.
fn literal_of(rule: &[u8], access: u8) -> Option<Vec<u8>> {
    let tilde = rule.iter().position(|b| *b == b'~')?;
    let (allowed, pattern) = (&rule[..tilde], &rule[tilde + 1..]);
    if !allowed.is_empty() && !allowed.contains(&access) {
        return None;
    }
    // A pattern that means nothing to us may mean anything to the server.
    Some(Glob::new(pattern).map_or(vec![], |glob| glob.literal().to_vec()))
}

/// The rules that stand after the word `keys`, in the user itself and in its selectors.
///
/// # Safety
/// `reply` must be a live reply of the server.
unsafe fn key_patterns(reply: *mut raw::RedisModuleCallReply, found: &mut dyn FnMut(&[u8])) {
    let text = |reply| {
        let mut len = 0;
        // SAFETY: a live reply; the server gives a pointer to `len` bytes, or null.
        let start = unsafe { api!(RedisModule_CallReplyStringPtr)(reply, &raw mut len) };
        match start.is_null() {
            true => &[][..],
            // SAFETY: as above.
            false => unsafe { slice::from_raw_parts(start.cast::<u8>(), len) },
        }
    };
    // SAFETY: by the caller; parts of a reply live as long as it does.
    unsafe {
        let mut is_keys = false;
        for n in 0..api!(RedisModule_CallReplyLength)(reply) {
            let part = api!(RedisModule_CallReplyArrayElement)(reply, n);
            if api!(RedisModule_CallReplyType)(part) == raw::REDISMODULE_REPLY_ARRAY as c_int {
                key_patterns(part, found);
                is_keys = false;
                continue;
            }
            let word = text(part);
            if is_keys {
                word.split(|b| *b == b' ').for_each(&mut *found);
            }
            is_keys = !is_keys && word == b"keys";
        }
    }
}

/// The server's flags for a context; null asks for those of the server alone.
pub fn flags(ctx: *mut raw::RedisModuleCtx) -> u32 {
    // SAFETY: a context of the server or null, which the function allows.
    unsafe { api!(RedisModule_GetContextFlags)(ctx) }.unsigned_abs()
}

/// The connection, as a sink for replies.
struct Out(*mut raw::RedisModuleCtx);

// SAFETY of all calls here: the context is that of the call in progress, and the server copies.
impl Sink for Out {
    fn null(&mut self) {
        // SAFETY: see above.
        unsafe { api!(RedisModule_ReplyWithNull)(self.0) };
    }

    fn int(&mut self, n: i64) {
        // SAFETY: see above.
        unsafe { api!(RedisModule_ReplyWithLongLong)(self.0, n) };
    }

    fn bulk(&mut self, bytes: &[u8]) {
        let start = bytes.as_ptr().cast::<c_char>();
        // SAFETY: see above.
        unsafe { api!(RedisModule_ReplyWithStringBuffer)(self.0, start, bytes.len()) };
    }

    fn array(&mut self, len: usize) {
        // SAFETY: see above.
        unsafe { api!(RedisModule_ReplyWithArray)(self.0, len as _) };
    }

    fn map(&mut self, pairs: usize) {
        // SAFETY: see above.
        unsafe { api!(RedisModule_ReplyWithMap)(self.0, pairs as _) };
    }
}
