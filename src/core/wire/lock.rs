//! The lock commands: table entries, requests, replies.

use super::cursor::Cursor;
use super::reply::{clamp, count, field, required, stamp, Bytes, Decoded, Reply, Sink, Value};
use super::spec::*;
use super::{number, push_bytes, push_number, push_word, Request};
use crate::config::{LEASE_MAX_MS, NOTE_MAX, OWNER_MAX, WAIT_MAX_MS};
use crate::{Code, Refusal, Stamp};

const OWNER: Arg = Arg::new("owner", ArgKind::Owner);
const TTL: Arg = Arg::new("ttl-ms", ArgKind::Lease);
const TOKEN: Arg = Arg::new("token", ArgKind::Token);
const WAIT: Arg = Arg::option(
    Tok::Wait,
    "milliseconds",
    ArgKind::Integer(0, WAIT_MAX_MS),
    "wait for the lock for so long, in the order of arrival; not inside MULTI or a script. 0 does not wait",
);
const NOTE: Arg = Arg::option(
    Tok::Note,
    "text",
    ArgKind::Name(NOTE_MAX),
    "what MAOS.LOCKS says about it",
);

fn wait(c: &mut Cursor<'_, '_>) -> Result<u64, Refusal> {
    c.int("WAIT", 0, WAIT_MAX_MS).map(i64::unsigned_abs)
}

fn push_wait(out: &mut Vec<Vec<u8>>, wait_ms: u64) {
    if wait_ms > 0 {
        push_number(out, Tok::Wait, Some(wait_ms));
    }
}

/// MAOS.LOCK
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lock<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Who wants it.
    pub owner: &'a [u8],
    /// How long the lease lasts, in milliseconds.
    pub ttl_ms: u64,
    /// Shared with others who want it shared.
    pub shared: bool,
    /// Refuses no write.
    pub advisory: bool,
    /// How long to wait for it, in milliseconds; 0: not at all.
    pub wait_ms: u64,
    /// What is said about it.
    pub note: Option<&'a [u8]>,
}

impl<'a> Request<'a> for Lock<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.LOCK",
        summary: "Takes the lock of a key, for an owner and for a time",
        complexity: "O(N) for N present holders",
        since: "0.1.0",
        arity: -4,
        flags: "write deny-oom fast",
        acl: "write fast",
        keys: Keys::One(Access::Write),
        args: &[KEY, OWNER, TTL],
        options: &[&[
            Arg::option(Tok::Shared, "shared", ArgKind::Word, "together with others who take it shared"),
            WAIT,
            NOTE,
            Arg::option(Tok::Advisory, "advisory", ArgKind::Word, "refuse no write: who looks at the lock keeps to it"),
        ]],
        reply: "`[token, expires-at-ms]`, or null if somebody else holds it or waits for it, and with WAIT if it was not had in time; DEADLOCK if waiting would never end. An owner that holds it already gets the same token, a lease that ends no earlier, and one more hold; held alone, a shared lock becomes exclusive. While the lock is held exclusively and not advisory, writes need its TOKEN.",
        refusals: &[Code::Limit, Code::Deadlock, Code::Quota],
        examples: "
> MAOS.LOCK app:plan worker-1 30000 NOTE rebuild
< [$token, *]
> MAOS.LOCK app:plan worker-2 30000
< null
> MAOS.SET app:plan v1 TOKEN $token
< $written
> MAOS.UNLOCK app:plan $token
< 0
> MAOS.SET app:plan v2
< $free
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut lock = Lock {
            key: c.bytes()?,
            owner: c.name("owner", OWNER_MAX)?,
            ttl_ms: c.int("ttl-ms", 1, LEASE_MAX_MS)?.unsigned_abs(),
            shared: false,
            advisory: false,
            wait_ms: 0,
            note: None,
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Wait => lock.wait_ms = wait(c)?,
                Tok::Shared => lock.shared = true,
                Tok::Advisory => lock.advisory = true,
                _ => lock.note = Some(c.name("NOTE", NOTE_MAX)?),
            }
        }
        Ok(lock)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec(), self.owner.to_vec(), number(self.ttl_ms)];
        if self.shared {
            push_word(&mut out, Tok::Shared);
        }
        if self.advisory {
            push_word(&mut out, Tok::Advisory);
        }
        push_wait(&mut out, self.wait_ms);
        push_bytes(&mut out, Tok::Note, self.note);
        out
    }
}

/// The reply of MAOS.LOCK: token and end of the lease; none if it was not granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockReply(pub Option<(Stamp, u64)>);

impl Reply for LockReply {
    fn emit(&self, to: &mut impl Sink) {
        match self.0 {
            None => to.null(),
            Some((token, expires_ms)) => {
                to.array(2);
                to.int(token.as_i64());
                to.int(clamp(expires_ms));
            }
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        if value == Value::Null {
            return Ok(LockReply(None));
        }
        let mut items = value.items()?.into_iter();
        let mut next = || items.next().unwrap_or(Value::Null);
        Ok(LockReply(Some((stamp(next())?, count(next())?))))
    }
}

/// MAOS.MLOCK
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MLock<'a> {
    /// The keys.
    pub keys: Vec<&'a [u8]>,
    /// Who wants them.
    pub owner: &'a [u8],
    /// How long the leases last, in milliseconds.
    pub ttl_ms: u64,
    /// How long to wait for them, in milliseconds; 0: not at all.
    pub wait_ms: u64,
    /// What is said about them.
    pub note: Option<&'a [u8]>,
}

impl<'a> Request<'a> for MLock<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.MLOCK",
        summary: "Takes the locks of several keys, all or none",
        complexity: "O(N) for N keys",
        since: "0.1.0",
        arity: -5,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::Counted {
            step: 1,
            access: Access::Write,
        },
        args: &[NUMKEYS, KEY.many(), OWNER, TTL],
        options: &[&[WAIT, NOTE]],
        reply: "`[[token, ...], expires-at-ms]`, a token for each key in their order; or null, and none is taken, if somebody else holds or waits for one of them.",
        refusals: &[Code::Limit, Code::Deadlock, Code::Quota],
        examples: "
> MAOS.MLOCK 2 app:from app:to mover 30000
< [[$token, $token], *]
> MAOS.LOCK app:to other 1000
< null
> MAOS.MSET 2 app:from 1 app:to 2 TOKEN $token
< $moved
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let n = c.numkeys(1)?;
        let mut keys = Vec::with_capacity(n);
        for _ in 0..n {
            keys.push(c.bytes()?);
        }
        let mut mlock = MLock {
            keys,
            owner: c.name("owner", OWNER_MAX)?,
            ttl_ms: c.int("ttl-ms", 1, LEASE_MAX_MS)?.unsigned_abs(),
            wait_ms: 0,
            note: None,
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Wait => mlock.wait_ms = wait(c)?,
                _ => mlock.note = Some(c.name("NOTE", NOTE_MAX)?),
            }
        }
        Ok(mlock)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![number(self.keys.len())];
        out.extend(self.keys.iter().map(|k| k.to_vec()));
        out.extend([self.owner.to_vec(), number(self.ttl_ms)]);
        push_wait(&mut out, self.wait_ms);
        push_bytes(&mut out, Tok::Note, self.note);
        out
    }
}

/// The reply of MAOS.MLOCK: the tokens in the order of the keys, and the end of the lease that ends
/// first; none if they were not granted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MLockReply(pub Option<(Vec<Stamp>, u64)>);

impl Reply for MLockReply {
    fn emit(&self, to: &mut impl Sink) {
        let Some((tokens, expires_ms)) = &self.0 else {
            return to.null();
        };
        to.array(2);
        to.array(tokens.len());
        tokens.iter().for_each(|t| to.int(t.as_i64()));
        to.int(clamp(*expires_ms));
    }

    fn decode(value: Value) -> Decoded<Self> {
        if value == Value::Null {
            return Ok(MLockReply(None));
        }
        let mut items = value.items()?.into_iter();
        let mut next = || items.next().unwrap_or(Value::Null);
        let tokens = next().items()?.into_iter().map(stamp);
        let tokens = tokens.collect::<Decoded<_>>()?;
        Ok(MLockReply(Some((tokens, count(next())?))))
    }
}

/// MAOS.UNLOCK
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unlock<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The holder's token.
    pub token: Stamp,
}

impl<'a> Request<'a> for Unlock<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.UNLOCK",
        summary: "Gives back one hold of a lock",
        complexity: "O(N) for N present holders",
        since: "0.1.0",
        arity: 3,
        flags: "write fast",
        acl: "write fast",
        keys: Keys::One(Access::Write),
        args: &[KEY, TOKEN],
        options: &[],
        reply: "How many holds this owner still has; at 0 the lock is free for others. FENCED if the lock was lost before.",
        refusals: &[Code::Fenced],
        examples: "
> MAOS.LOCK app:u a 30000
< [$token, *]
> MAOS.LOCK app:u a 30000
< [$token, *]
> MAOS.UNLOCK app:u $token
< 1
> MAOS.UNLOCK app:u $token
< 0
> MAOS.UNLOCK app:u $token
< !FENCED
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let unlock = Unlock {
            key: c.bytes()?,
            token: c.token()?,
        };
        c.option()?;
        Ok(unlock)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![self.key.to_vec(), number(self.token)]
    }
}

/// The reply of MAOS.UNLOCK: the holds that remain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnlockReply(pub u32);

impl Reply for UnlockReply {
    fn emit(&self, to: &mut impl Sink) {
        to.int(self.0.into());
    }

    fn decode(value: Value) -> Decoded<Self> {
        let holds = u32::try_from(count(value)?);
        Ok(UnlockReply(holds.unwrap_or(u32::MAX)))
    }
}

/// MAOS.RENEW
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renew<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The holder's token.
    pub token: Stamp,
    /// How long the lease lasts from now, in milliseconds.
    pub ttl_ms: u64,
}

impl<'a> Request<'a> for Renew<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.RENEW",
        summary: "Has the lease of a lock last from now on",
        complexity: "O(N) for N present holders",
        since: "0.1.0",
        arity: 4,
        flags: "write fast",
        acl: "write fast",
        keys: Keys::One(Access::Write),
        args: &[KEY, TOKEN, TTL],
        options: &[],
        reply: "When the lease ends, in milliseconds of unix time; it may be shortened. FENCED if the lock was lost before.",
        refusals: &[Code::Fenced],
        examples: "
> MAOS.LOCK app:n a 30000
< [$token, *]
> MAOS.RENEW app:n $token 60000
< *
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let renew = Renew {
            key: c.bytes()?,
            token: c.token()?,
            ttl_ms: c.int("ttl-ms", 1, LEASE_MAX_MS)?.unsigned_abs(),
        };
        c.option()?;
        Ok(renew)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![self.key.to_vec(), number(self.token), number(self.ttl_ms)]
    }
}

/// The reply of MAOS.RENEW: the end of the lease in milliseconds of unix time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RenewReply(pub u64);

impl Reply for RenewReply {
    fn emit(&self, to: &mut impl Sink) {
        to.int(clamp(self.0));
    }

    fn decode(value: Value) -> Decoded<Self> {
        count(value).map(RenewReply)
    }
}

/// MAOS.LOCKS
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Locks<'a> {
    /// The key.
    pub key: &'a [u8],
}

impl<'a> Request<'a> for Locks<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.LOCKS",
        summary: "Tells who holds the lock of a key",
        complexity: "O(N) for N holders",
        since: "0.1.0",
        arity: 2,
        flags: "readonly fast",
        acl: "read fast",
        keys: Keys::One(Access::Read),
        args: &[KEY],
        options: &[],
        reply: "A map of mode (`exclusive`, `shared`, null where nobody holds it), advisory (1 or 0), holders (an array of maps of owner, token, expires-at-ms, holds, note) waiters (an array of maps of owner, mode, waited-ms, in their order) and highest-token, that of the newest holder or null.",
        refusals: &[],
        examples: "
> MAOS.LOCK app:l a 30000 NOTE nightly
< [$token, *]
> MAOS.LOCKS app:l
< {mode: 'exclusive', advisory: 0, holders: [{owner: 'a', token: $token, expires-at-ms: *, holds: 1, note: 'nightly'}], waiters: [], highest-token: $token}
> MAOS.LOCKS app:unlocked
< {mode: null, advisory: 0, holders: [], waiters: [], highest-token: null}
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let locks = Locks { key: c.bytes()? };
        c.option()?;
        Ok(locks)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![self.key.to_vec()]
    }
}

/// The reply of MAOS.LOCKS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocksReply<'a> {
    /// Shared or exclusive; `None` where nobody holds it.
    pub shared: Option<bool>,
    /// True if it refuses no write.
    pub advisory: bool,
    /// Who holds it, in the order of the grants.
    pub holders: Vec<HolderReply<'a>>,
    /// Who waits for it, first come first.
    pub waiters: Vec<WaiterReply>,
    /// The token of the newest of them.
    pub highest: Option<Stamp>,
}

/// One who holds a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderReply<'a> {
    /// Its name.
    pub owner: Bytes<'a>,
    /// Its token.
    pub token: Stamp,
    /// The end of its lease, in milliseconds of unix time.
    pub expires_ms: u64,
    /// How many times it was taken and not given back.
    pub holds: u32,
    /// What it says about it.
    pub note: Option<Bytes<'a>>,
}

/// One who waits for a lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaiterReply {
    /// Its name.
    pub owner: Vec<u8>,
    /// Wants it shared.
    pub shared: bool,
    /// For how long it has waited, in milliseconds.
    pub waited_ms: u64,
}

const SHARED: &[u8] = b"shared";
const EXCLUSIVE: &[u8] = b"exclusive";

fn mode_of(shared: bool) -> &'static [u8] {
    match shared {
        true => SHARED,
        false => EXCLUSIVE,
    }
}

impl Reply for LocksReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.map(5);
        field(to, "mode").maybe(self.shared.map(mode_of));
        field(to, "advisory").int(i64::from(self.advisory));
        field(to, "holders").array(self.holders.len());
        for h in &self.holders {
            to.map(5);
            field(to, "owner").bulk(&h.owner);
            field(to, "token").int(h.token.as_i64());
            field(to, "expires-at-ms").int(clamp(h.expires_ms));
            field(to, "holds").int(h.holds.into());
            field(to, "note").maybe(h.note.as_deref());
        }
        field(to, "waiters").array(self.waiters.len());
        for w in &self.waiters {
            to.map(3);
            field(to, "owner").bulk(&w.owner);
            field(to, "mode").bulk(mode_of(w.shared));
            field(to, "waited-ms").int(clamp(w.waited_ms));
        }
        match self.highest {
            None => field(to, "highest-token").null(),
            Some(token) => field(to, "highest-token").int(token.as_i64()),
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut f = value.fields()?;
        let holder = |value: Value| {
            let mut f = value.fields()?;
            Ok(HolderReply {
                owner: required(f.take("owner"))?,
                token: stamp(f.take("token"))?,
                expires_ms: count(f.take("expires-at-ms"))?,
                holds: u32::try_from(count(f.take("holds"))?).unwrap_or(u32::MAX),
                note: f.take("note").bytes()?,
            })
        };
        let waiter = |value: Value| {
            let mut f = value.fields()?;
            Ok(WaiterReply {
                owner: required(f.take("owner"))?.into_owned(),
                shared: *required(f.take("mode"))? == *SHARED,
                waited_ms: count(f.take("waited-ms"))?,
            })
        };
        Ok(LocksReply {
            shared: f.take("mode").bytes()?.map(|mode| *mode == *SHARED),
            advisory: f.take("advisory").int()? != 0,
            holders: f
                .take("holders")
                .items()?
                .into_iter()
                .map(holder)
                .collect::<Decoded<_>>()?,
            waiters: f
                .take("waiters")
                .items()?
                .into_iter()
                .map(waiter)
                .collect::<Decoded<_>>()?,
            highest: match f.take("highest-token") {
                Value::Null => None,
                token => Some(stamp(token)?),
            },
        })
    }
}
