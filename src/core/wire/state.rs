//! The state commands: table entries, requests, replies.

use super::cursor::Cursor;
use super::lock::LocksReply;
use super::reply::{
    clamp, count, field, required, stamp, Bytes, Decoded, Fields, Reply, Sink, Value,
};
use super::spec::*;
use super::{number, push_bytes, push_number, push_word, Request};
use crate::config::{OWNER_MAX, PARTITION_NAME_MAX, TOKENS_MAX};
use crate::{Code, Refusal, Stamp};

use smallvec::SmallVec;

// ---------------------------------------------------------------------------------------------
// What the requests are made of
// ---------------------------------------------------------------------------------------------

/// When the key is to expire, as the write says it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Expire {
    /// Nothing said: the command's own rule.
    #[default]
    Unsaid,
    /// `KEEPTTL`
    Keep,
    /// `EX`, `PX`: this many milliseconds from now.
    In(u64),
    /// `EXAT`, `PXAT`: at this unix time in milliseconds.
    At(u64),
}

impl Expire {
    /// What follows one of the words for it.
    pub(super) fn take(tok: Tok, cursor: &mut Cursor<'_, '_>) -> Result<Expire, Refusal> {
        let max = i64::MAX;
        let mut int = |max| Ok(cursor.int(tok.word(), 1, max)?.unsigned_abs());
        Ok(match tok {
            Tok::Ex => Expire::In(int(max / 1000)? * 1000),
            Tok::Px => Expire::In(int(max)?),
            Tok::ExAt => Expire::At(int(max / 1000)? * 1000),
            Tok::PxAt => Expire::At(int(max)?),
            _ => Expire::Keep,
        })
    }

    pub(super) fn encode(self, out: &mut Vec<Vec<u8>>) {
        match self {
            Expire::Unsaid => {}
            Expire::Keep => push_word(out, Tok::KeepTtl),
            Expire::In(ms) => push_number(out, Tok::Px, Some(ms)),
            Expire::At(ms) => push_number(out, Tok::PxAt, Some(ms)),
        }
    }
}

/// The options of a write.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WriteOptions<'a> {
    /// `BY`: the declared agent.
    pub by: Option<&'a [u8]>,
    /// `META`: a JSON object.
    pub meta: Option<&'a [u8]>,
    /// `REQID`: the id that makes a retry safe.
    pub reqid: Option<&'a [u8]>,
    /// `IFVERSION`: the version to write over.
    pub if_version: Option<Stamp>,
    /// The expiry.
    pub expire: Expire,
    /// `TOKEN`: the writer's lock tokens; a write of one key takes one.
    pub tokens: SmallVec<[Stamp; 1]>,
    /// `FENCE`: a token of a lock that lives elsewhere, and the lock's name.
    pub fence: Option<(&'a [u8], u64)>,
    /// `PARTITION`: the partition that is charged from now on.
    pub partition: Option<&'a [u8]>,
}

impl<'a> WriteOptions<'a> {
    /// Whether the writer shows a token, of a lock here or elsewhere.
    pub fn shows_a_token(&self) -> bool {
        !self.tokens.is_empty() || self.fence.is_some()
    }

    #[inline(always)]
    fn parse(cursor: &mut Cursor<'_, 'a>) -> Result<Self, Refusal> {
        let mut o = WriteOptions::default();
        while let Some(tok) = cursor.option()? {
            o.take(tok, cursor)?;
        }
        Ok(o)
    }

    pub(super) fn take(&mut self, tok: Tok, cursor: &mut Cursor<'_, 'a>) -> Result<(), Refusal> {
        match tok {
            Tok::By => self.by = Some(cursor.agent()?),
            Tok::Meta => self.meta = Some(cursor.meta()?),
            Tok::ReqId => self.reqid = Some(cursor.reqid()?),
            Tok::IfVersion => self.if_version = Some(cursor.version()?),
            Tok::Ex | Tok::Px | Tok::ExAt | Tok::PxAt | Tok::KeepTtl => {
                self.expire = Expire::take(tok, cursor)?;
            }
            Tok::Token if self.tokens.len() < TOKENS_MAX => self.tokens.push(cursor.token()?),
            Tok::Token => {
                let text = format!("more than {TOKENS_MAX} tokens in one write");
                return Err(Refusal::new(Code::Limit, text));
            }
            Tok::Fence => {
                let name = cursor.name("the name of FENCE", OWNER_MAX)?;
                let token = cursor.int("the token of FENCE", 0, i64::MAX)?;
                self.fence = Some((name, token.unsigned_abs()));
            }
            Tok::Partition => {
                let name = cursor.name("the partition of PARTITION", PARTITION_NAME_MAX)?;
                self.partition = Some(name);
            }
            _ => return Err(cursor.bad(format!("{} does not belong here", tok.word()))),
        }
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut Vec<Vec<u8>>) {
        push_bytes(out, Tok::By, self.by);
        push_bytes(out, Tok::Meta, self.meta);
        push_bytes(out, Tok::ReqId, self.reqid);
        push_number(out, Tok::IfVersion, self.if_version);
        self.expire.encode(out);
        for token in &self.tokens {
            push_number(out, Tok::Token, Some(token));
        }
        if let Some((name, token)) = self.fence {
            push_bytes(out, Tok::Fence, Some(name));
            out.push(number(token));
        }
        push_bytes(out, Tok::Partition, self.partition);
    }
}

/// Which version of a key is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    /// This version; -n: the n-th before the current one.
    Version(i64),
    /// The one that was current at this unix time in milliseconds.
    At(u64),
}

impl Select {
    fn take(tok: Tok, cursor: &mut Cursor<'_, '_>) -> Result<Select, Refusal> {
        if tok == Tok::At {
            return Ok(Select::At(cursor.unix_millis("AT")?));
        }
        match cursor.version_ref()? {
            0 => {
                Err(cursor.bad("version 0 is no version; -1 is the one before the current".into()))
            }
            n => Ok(Select::Version(n)),
        }
    }

    fn encode(self, out: &mut Vec<Vec<u8>>) {
        match self {
            Select::Version(n) => push_number(out, Tok::Version, Some(n)),
            Select::At(ms) => push_number(out, Tok::At, Some(ms)),
        }
    }
}

/// How much of a version a read shows.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Form {
    /// The value.
    #[default]
    Value,
    /// `WITHVERSION`: value and version.
    WithVersion,
    /// `FULL`: everything.
    Full,
}

impl Form {
    fn encode(self, out: &mut Vec<Vec<u8>>) {
        match self {
            Form::Value => {}
            Form::WithVersion => push_word(out, Tok::WithVersion),
            Form::Full => push_word(out, Tok::Full),
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Replies
// ---------------------------------------------------------------------------------------------

/// The reply of a single-key write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteReply<'a> {
    /// An unconditional write: its version. [`Stamp::NONE`] if a deletion found nothing to delete.
    Version(Stamp),
    /// A conditional write that was applied: its version.
    Applied(Stamp),
    /// A conditional write that another one came before.
    Lost(Lost<'a>),
}

/// The present state of a key, told to the loser of a race for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost<'a> {
    /// The current version; [`Stamp::NONE`] if there is no live value.
    pub version: Stamp,
    /// The current value.
    pub value: Option<Bytes<'a>>,
    /// The ACL user who wrote it.
    pub author: Option<Bytes<'a>>,
    /// The agent who wrote it.
    pub agent: Option<Bytes<'a>>,
}

impl Reply for WriteReply<'_> {
    fn is_lost_race(&self) -> bool {
        matches!(self, WriteReply::Lost(_))
    }

    #[inline]
    fn emit(&self, to: &mut impl Sink) {
        match self {
            WriteReply::Version(v) => to.int(v.as_i64()),
            WriteReply::Applied(v) => {
                to.array(2);
                to.int(1);
                to.int(v.as_i64());
            }
            WriteReply::Lost(lost) => {
                to.array(5);
                to.int(0);
                to.int(lost.version.as_i64());
                to.maybe(lost.value.as_deref());
                to.maybe(lost.author.as_deref());
                to.maybe(lost.agent.as_deref());
            }
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let Value::Array(items) = value else {
            return Ok(WriteReply::Version(stamp(value)?));
        };
        let mut items = items.into_iter();
        let mut next = || items.next().unwrap_or(Value::Null);
        if next().int()? == 1 {
            return Ok(WriteReply::Applied(stamp(next())?));
        }
        Ok(WriteReply::Lost(Lost {
            version: stamp(next())?,
            value: next().bytes()?,
            author: next().bytes()?,
            agent: next().bytes()?,
        }))
    }
}

/// The reply of MAOS.MCAS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MCasReply<'a> {
    /// All were written, with this version.
    Applied(Stamp),
    /// None was written: every key that lost, with its current version.
    Lost(Vec<(Bytes<'a>, Stamp)>),
}

impl Reply for MCasReply<'_> {
    fn is_lost_race(&self) -> bool {
        matches!(self, MCasReply::Lost(_))
    }

    fn emit(&self, to: &mut impl Sink) {
        to.array(2);
        match self {
            MCasReply::Applied(v) => {
                to.int(1);
                to.int(v.as_i64());
            }
            MCasReply::Lost(keys) => {
                to.int(0);
                to.array(keys.len());
                for (key, version) in keys {
                    to.array(2);
                    to.bulk(key);
                    to.int(version.as_i64());
                }
            }
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut items = value.items()?.into_iter();
        let mut next = || items.next().unwrap_or(Value::Null);
        if next().int()? == 1 {
            return Ok(MCasReply::Applied(stamp(next())?));
        }
        let lost = next().items()?.into_iter().map(|pair| {
            let mut pair = pair.items()?.into_iter();
            let mut next = || pair.next().unwrap_or(Value::Null);
            Ok((required(next())?, stamp(next())?))
        });
        Ok(MCasReply::Lost(lost.collect::<Decoded<_>>()?))
    }
}

/// The reply of a read of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GetReply<'a> {
    /// No live value.
    Absent,
    /// The value.
    Value(Bytes<'a>),
    /// The value and its version.
    WithVersion(Bytes<'a>, Stamp),
    /// Everything.
    Full(Box<Full<'a>>),
}

/// Everything about one version of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Full<'a> {
    /// The value.
    pub value: Bytes<'a>,
    /// Its version.
    pub version: Stamp,
    /// The first version since the key last had no live value.
    pub created: Stamp,
    /// The ACL user who wrote this version.
    pub author: Bytes<'a>,
    /// The agent who wrote this version.
    pub agent: Option<Bytes<'a>>,
    /// The metadata of this version: a JSON object.
    pub metadata: Option<Bytes<'a>>,
    /// Milliseconds until the key expires; -1 if it does not.
    pub ttl_ms: i64,
    /// Bytes that the whole record holds, history and all.
    pub bytes: u64,
    /// How many versions are kept.
    pub versions: u64,
    /// Who holds the key's lock, if anybody does.
    pub lock: Option<LocksReply<'a>>,
    /// The partition that is charged with it, if one is.
    pub partition: Option<Bytes<'a>>,
}

impl Reply for GetReply<'_> {
    #[inline]
    fn emit(&self, to: &mut impl Sink) {
        match self {
            GetReply::Absent => to.null(),
            GetReply::Value(v) => to.bulk(v),
            GetReply::WithVersion(value, version) => {
                to.array(2);
                to.bulk(value);
                to.int(version.as_i64());
            }
            GetReply::Full(full) => full.emit(to),
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        match value {
            Value::Null => Ok(GetReply::Absent),
            Value::Bulk(b) => Ok(GetReply::Value(b.into())),
            Value::Array(items) if items.len() == 2 => {
                let mut items = items.into_iter();
                let mut next = || items.next().unwrap_or(Value::Null);
                Ok(GetReply::WithVersion(required(next())?, stamp(next())?))
            }
            other => Ok(GetReply::Full(Box::new(Full::decode(other.fields()?)?))),
        }
    }
}

impl Full<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.map(11);
        field(to, "value").bulk(&self.value);
        field(to, "version").int(self.version.as_i64());
        field(to, "created").int(self.created.as_i64());
        field(to, "author").bulk(&self.author);
        field(to, "agent").maybe(self.agent.as_deref());
        field(to, "metadata").maybe(self.metadata.as_deref());
        field(to, "ttl-ms").int(self.ttl_ms);
        field(to, "bytes").int(clamp(self.bytes));
        field(to, "versions").int(clamp(self.versions));
        match &self.lock {
            None => field(to, "lock").null(),
            Some(lock) => lock.emit(field(to, "lock")),
        }
        field(to, "partition").maybe(self.partition.as_deref());
    }

    fn decode(mut f: Fields) -> Decoded<Self> {
        Ok(Full {
            value: required(f.take("value"))?,
            version: stamp(f.take("version"))?,
            created: stamp(f.take("created"))?,
            author: required(f.take("author"))?,
            agent: f.take("agent").bytes()?,
            metadata: f.take("metadata").bytes()?,
            ttl_ms: f.take("ttl-ms").int()?,
            bytes: count(f.take("bytes"))?,
            versions: count(f.take("versions"))?,
            lock: match f.take("lock") {
                Value::Null => None,
                lock => Some(LocksReply::decode(lock)?),
            },
            partition: f.take("partition").bytes()?,
        })
    }
}

/// The reply of MAOS.MGET: one for each key, in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MGetReply<'a>(pub Vec<GetReply<'a>>);

impl Reply for MGetReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.array(self.0.len());
        for one in &self.0 {
            one.emit(to);
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let items = value.items()?.into_iter().map(GetReply::decode);
        Ok(MGetReply(items.collect::<Decoded<_>>()?))
    }
}

/// The reply of MAOS.HISTORY.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryReply<'a>(pub Vec<Entry<'a>>);

/// One version in a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The version.
    pub version: Stamp,
    /// True for a deletion.
    pub deleted: bool,
    /// The ACL user who wrote it.
    pub author: Bytes<'a>,
    /// The agent who wrote it.
    pub agent: Option<Bytes<'a>>,
    /// Its metadata: a JSON object.
    pub metadata: Option<Bytes<'a>>,
    /// The id of the request that wrote it.
    pub reqid: Option<Bytes<'a>>,
    /// The length of its value.
    pub bytes: u64,
    /// With `VALUES`, its value; `None` for a deletion.
    pub value: Option<Option<Bytes<'a>>>,
}

impl Reply for HistoryReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.array(self.0.len());
        for e in &self.0 {
            to.map(7 + usize::from(e.value.is_some()));
            field(to, "version").int(e.version.as_i64());
            field(to, "deleted").int(i64::from(e.deleted));
            field(to, "author").bulk(&e.author);
            field(to, "agent").maybe(e.agent.as_deref());
            field(to, "metadata").maybe(e.metadata.as_deref());
            field(to, "reqid").maybe(e.reqid.as_deref());
            field(to, "bytes").int(clamp(e.bytes));
            if let Some(value) = &e.value {
                field(to, "value").maybe(value.as_deref());
            }
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let items = value.items()?.into_iter().map(|item| {
            let with_value = match &item {
                Value::Map(pairs) => pairs.len() > 7,
                Value::Array(flat) => flat.len() > 14,
                _ => false,
            };
            let mut f = item.fields()?;
            Ok(Entry {
                version: stamp(f.take("version"))?,
                deleted: f.take("deleted").int()? != 0,
                author: required(f.take("author"))?,
                agent: f.take("agent").bytes()?,
                metadata: f.take("metadata").bytes()?,
                reqid: f.take("reqid").bytes()?,
                bytes: count(f.take("bytes"))?,
                value: if with_value {
                    Some(f.take("value").bytes()?)
                } else {
                    None
                },
            })
        });
        Ok(HistoryReply(items.collect::<Decoded<_>>()?))
    }
}

/// The reply of MAOS.DIFF: a JSON Patch (RFC 6902).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiffReply<'a>(pub Bytes<'a>);

impl Reply for DiffReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.bulk(&self.0);
    }

    fn decode(value: Value) -> Decoded<Self> {
        Ok(DiffReply(required(value)?))
    }
}

// ---------------------------------------------------------------------------------------------
// Requests
// ---------------------------------------------------------------------------------------------

const VERSION_OR_AT: &[Arg] = &[
    Arg::option(
        Tok::Version,
        "version",
        ArgKind::VersionRef,
        "this version; -n is the n-th before the current one",
    )
    .needed(),
    Arg::option(
        Tok::At,
        "unix-time-milliseconds",
        ArgKind::UnixMillis,
        "the version that was current then",
    )
    .needed(),
];

const FORM: Arg = Arg::new(
    "form",
    ArgKind::OneOf(&[
        Arg::option(
            Tok::WithVersion,
            "withversion",
            ArgKind::Word,
            "the value and its version",
        )
        .needed(),
        Arg::option(Tok::Full, "full", ArgKind::Word, "everything about it").needed(),
    ]),
)
.maybe();

/// MAOS.SET
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// The options.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for Set<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.SET",
        summary: "Writes a new version of a key",
        complexity: "O(1), and O(N) for N versions trimmed",
        since: "0.1.0",
        arity: -3,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[KEY, VALUE],
        options: WRITE_OPTIONS,
        reply: "The new version, an integer. With IFVERSION: `[1, version]`, or `[0, current-version, current-value, author, agent]` if another write came first.",
        refusals: &[Code::TooBig, Code::NotJson, Code::Limit, Code::Quota, Code::NotFound],
        examples: "
> MAOS.SET app:task:1 '{\"status\":\"open\"}' BY planner
< $first
> MAOS.SET app:task:1 '{\"status\":\"done\"}' IFVERSION $first
< [1, $second]
> MAOS.SET app:task:1 '{\"status\":\"lost\"}' IFVERSION $first
< [0, $second, '{\"status\":\"done\"}', 'default', null]
",
        internal: false,
    };

    #[inline(always)]
    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        Ok(Set {
            key: c.bytes()?,
            value: c.bytes()?,
            options: WriteOptions::parse(c)?,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec(), self.value.to_vec()];
        self.options.encode(&mut out);
        out
    }
}

/// MAOS.CAS
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cas<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The version to write over; [`Stamp::NONE`]: only if there is no live value.
    pub version: Stamp,
    /// The value.
    pub value: &'a [u8],
    /// The options; `if_version` stays unused.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for Cas<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.CAS",
        summary: "Writes a new version of a key if the current one is the version given",
        complexity: "O(1), and O(N) for N versions trimmed",
        since: "0.1.0",
        arity: -4,
        flags: "write deny-oom fast",
        acl: "write fast",
        keys: Keys::One(Access::ReadWrite),
        args: &[
            KEY,
            Arg::new("version", ArgKind::Version),
            VALUE,
        ],
        options: &[ORIGIN_OPTIONS, KEY_OPTIONS],
        reply: "`[1, version]` if written; `[0, current-version, current-value, author, agent]` if another write came first (`[0, 0, null, null, null]` if there is no live value). Version 0: the key must have no live value.",
        refusals: &[Code::TooBig, Code::NotJson, Code::Limit, Code::Quota, Code::NotFound],
        examples: "
> MAOS.CAS app:plan:1 0 draft
< [1, $first]
> MAOS.CAS app:plan:1 0 mine
< [0, $first, 'draft', 'default', null]
> MAOS.CAS app:plan:1 $first agreed BY planner
< [1, $second]
",
        internal: false,
    };

    #[inline(always)]
    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        Ok(Cas {
            key: c.bytes()?,
            version: c.version()?,
            value: c.bytes()?,
            options: WriteOptions::parse(c)?,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec(), number(self.version), self.value.to_vec()];
        self.options.encode(&mut out);
        out
    }
}

/// MAOS.GET
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Get<'a> {
    /// The key.
    pub key: &'a [u8],
    /// A version of the past; `None`: the current one.
    pub select: Option<Select>,
    /// How much to show.
    pub form: Form,
}

impl<'a> Request<'a> for Get<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.GET",
        summary: "Reads a key, now or as it was",
        complexity: "O(1); O(log N) for one of N past versions",
        since: "0.1.0",
        arity: -2,
        flags: "readonly fast",
        acl: "read fast",
        keys: Keys::One(Access::Read),
        args: &[KEY],
        options: &[&[Arg::new("select", ArgKind::OneOf(VERSION_OR_AT)).maybe(), FORM]],
        reply: "The value; null if there is no live value (or the version asked for is a deletion). WITHVERSION: `[value, version]`. FULL: a map of value, version, created, author, agent, metadata, ttl-ms (-1: does not expire), bytes, versions, lock, partition.",
        refusals: &[Code::NoVersion],
        examples: "
> MAOS.SET app:note:1 first
< $first
> MAOS.SET app:note:1 second
< $second
> MAOS.GET app:note:1
< 'second'
> MAOS.GET app:note:1 VERSION $first WITHVERSION
< ['first', $first]
> MAOS.GET app:note:1 VERSION -1
< 'first'
> MAOS.GET app:note:1 VERSION -2
< !NOVERSION
> MAOS.GET app:note:2
< null
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut get = Get {
            key: c.bytes()?,
            select: None,
            form: Form::Value,
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::WithVersion => get.form = Form::WithVersion,
                Tok::Full => get.form = Form::Full,
                other => get.select = Some(Select::take(other, c)?),
            }
        }
        Ok(get)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec()];
        if let Some(s) = self.select {
            s.encode(&mut out);
        }
        self.form.encode(&mut out);
        out
    }
}

/// MAOS.DEL
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Del<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The options; the expiry is the tombstone's.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for Del<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.DEL",
        summary: "Deletes the value of a key and keeps its history under a tombstone",
        complexity: "O(1), and O(N) for N versions trimmed",
        since: "0.1.0",
        arity: -2,
        flags: "write fast",
        acl: "write fast",
        keys: Keys::One(Access::Delete),
        args: &[KEY],
        options: WRITE_OPTIONS,
        reply: "The version of the tombstone; 0 if there was no live value. With IFVERSION as MAOS.SET. The tombstone and the history under it leave after maos.tombstone-ttl, or at the expiry given; until then MAOS.ROLLBACK brings the value back. Plain DEL and UNLINK purge the record at once.",
        refusals: &[Code::NotJson, Code::TooBig, Code::Limit, Code::Quota, Code::NotFound],
        examples: "
> MAOS.SET app:tmp:1 v
< $first
> MAOS.DEL app:tmp:1
< $gone
> MAOS.GET app:tmp:1
< null
> MAOS.DEL app:tmp:1
< 0
> MAOS.ROLLBACK app:tmp:1 VERSION $first
< $back
> MAOS.GET app:tmp:1
< 'v'
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        Ok(Del {
            key: c.bytes()?,
            options: WriteOptions::parse(c)?,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec()];
        self.options.encode(&mut out);
        out
    }
}

/// MAOS.MSET
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MSet<'a> {
    /// Keys and their values.
    pub pairs: Vec<(&'a [u8], &'a [u8])>,
    /// The options; only those of [`ORIGIN_OPTIONS`] and [`MANY_OPTIONS`].
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for MSet<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.MSET",
        summary: "Writes new versions of several keys, all or nothing, with one version for all",
        complexity: "O(N) for N keys",
        since: "0.1.0",
        arity: -4,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::Counted {
            step: 2,
            access: Access::Write,
        },
        args: &[
            NUMKEYS,
            Arg::new("data", ArgKind::Block(&[KEY, VALUE])).many(),
        ],
        options: &[ORIGIN_OPTIONS, MANY_OPTIONS],
        reply: "The one version given to all. Unlike MSET, a key that is named twice is refused: one commit gives a key one version.",
        refusals: &[Code::TooBig, Code::NotJson, Code::Limit, Code::Quota, Code::NotFound],
        examples: "
> MAOS.MSET 2 app:a 1 app:b 2 BY planner
< $both
> MAOS.MGET 3 app:a app:b app:c WITHVERSION
< [['1', $both], ['2', $both], null]
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let n = c.numkeys(2)?;
        let mut pairs = Vec::with_capacity(n);
        for _ in 0..n {
            pairs.push((c.bytes()?, c.bytes()?));
        }
        Ok(MSet {
            pairs,
            options: WriteOptions::parse(c)?,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![number(self.pairs.len())];
        for (key, value) in &self.pairs {
            out.push(key.to_vec());
            out.push(value.to_vec());
        }
        self.options.encode(&mut out);
        out
    }
}

/// MAOS.MCAS
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MCas<'a> {
    /// Keys, the versions to write over, and the values.
    pub items: Vec<(&'a [u8], Stamp, &'a [u8])>,
    /// The options; only those of [`ORIGIN_OPTIONS`] and [`MANY_OPTIONS`].
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for MCas<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.MCAS",
        summary: "Writes new versions of several keys if each is at the version given, all or nothing",
        complexity: "O(N) for N keys",
        since: "0.1.0",
        arity: -5,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::Counted {
            step: 3,
            access: Access::ReadWrite,
        },
        args: &[
            NUMKEYS,
            Arg::new(
                "data",
                ArgKind::Block(&[KEY, Arg::new("version", ArgKind::Version), VALUE]),
            )
            .many(),
        ],
        options: &[ORIGIN_OPTIONS, MANY_OPTIONS],
        reply: "`[1, version]`, the one version given to all; or `[0, [[key, current-version], ...]]`, naming every key that lost.",
        refusals: &[Code::TooBig, Code::NotJson, Code::Limit, Code::Quota, Code::NotFound],
        examples: "
> MAOS.MCAS 2 app:x 0 1 app:y 0 2
< [1, $both]
> MAOS.MCAS 2 app:x $both 3 app:y 0 4
< [0, [['app:y', $both]]]
> MAOS.GET app:x
< '1'
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let n = c.numkeys(3)?;
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push((c.bytes()?, c.version()?, c.bytes()?));
        }
        Ok(MCas {
            items,
            options: WriteOptions::parse(c)?,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![number(self.items.len())];
        for (key, version, value) in &self.items {
            out.extend([key.to_vec(), number(version), value.to_vec()]);
        }
        self.options.encode(&mut out);
        out
    }
}

/// MAOS.MGET
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MGet<'a> {
    /// The keys.
    pub keys: Vec<&'a [u8]>,
    /// How much to show.
    pub form: Form,
}

impl<'a> Request<'a> for MGet<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.MGET",
        summary: "Reads several keys at one instant",
        complexity: "O(N) for N keys",
        since: "0.1.0",
        arity: -3,
        flags: "readonly fast",
        acl: "read fast",
        keys: Keys::Counted {
            step: 1,
            access: Access::Read,
        },
        args: &[NUMKEYS, KEY.many()],
        options: &[&[FORM]],
        reply:
            "An array with the reply of MAOS.GET for each key, null where there is no live value.",
        refusals: &[Code::Limit],
        examples: "
> MAOS.SET app:m:1 one
< $one
> MAOS.MGET 2 app:m:1 app:m:2
< ['one', null]
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let n = c.numkeys(1)?;
        let mut mget = MGet {
            keys: Vec::with_capacity(n),
            form: Form::Value,
        };
        for _ in 0..n {
            mget.keys.push(c.bytes()?);
        }
        while let Some(tok) = c.option()? {
            mget.form = match tok {
                Tok::WithVersion => Form::WithVersion,
                _ => Form::Full,
            };
        }
        Ok(mget)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![number(self.keys.len())];
        out.extend(self.keys.iter().map(|k| k.to_vec()));
        self.form.encode(&mut out);
        out
    }
}

/// MAOS.HISTORY
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History<'a> {
    /// The key.
    pub key: &'a [u8],
    /// From this version on; -n: from the n-th before the current one.
    pub from: Option<i64>,
    /// Up to this version; -n as in `from`.
    pub to: Option<i64>,
    /// At most this many.
    pub count: Option<u64>,
    /// Newest first.
    pub desc: bool,
    /// With the values.
    pub values: bool,
}

impl<'a> Request<'a> for History<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.HISTORY",
        summary: "Lists the versions of a key",
        complexity: "O(N) for N versions listed",
        since: "0.1.0",
        arity: -2,
        flags: "readonly",
        acl: "read",
        keys: Keys::One(Access::Read),
        args: &[KEY],
        options: &[&[
            Arg::option(Tok::From, "version", ArgKind::VersionRef, "from this version on"),
            Arg::option(Tok::To, "version", ArgKind::VersionRef, "up to this version"),
            Arg::option(
                Tok::Count,
                "count",
                ArgKind::Integer(1, i64::MAX),
                "at most this many",
            ),
            Arg::option(Tok::Desc, "desc", ArgKind::Word, "newest first"),
            Arg::option(Tok::Values, "values", ArgKind::Word, "with the values"),
        ]],
        reply: "An array of maps of version, deleted (1 for a tombstone), author, agent, metadata, reqid, bytes, and with VALUES value; oldest first. Empty if there is no such key.",
        refusals: &[Code::Limit],
        examples: "
> MAOS.SET app:h:1 one BY planner
< $one
> MAOS.DEL app:h:1 BY janitor
< $two
> MAOS.HISTORY app:h:1 VALUES DESC
< [{version: $two, deleted: 1, author: 'default', agent: 'janitor', metadata: null, reqid: null, bytes: 0, value: null}, {version: $one, deleted: 0, author: 'default', agent: 'planner', metadata: null, reqid: null, bytes: 3, value: 'one'}]
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut h = History {
            key: c.bytes()?,
            ..History::default()
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::From => h.from = Some(c.version_ref()?),
                Tok::To => h.to = Some(c.version_ref()?),
                Tok::Count => h.count = Some(c.int("COUNT", 1, i64::MAX)?.unsigned_abs()),
                Tok::Desc => h.desc = true,
                _ => h.values = true,
            }
        }
        Ok(h)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec()];
        push_number(&mut out, Tok::From, self.from);
        push_number(&mut out, Tok::To, self.to);
        push_number(&mut out, Tok::Count, self.count);
        if self.desc {
            push_word(&mut out, Tok::Desc);
        }
        if self.values {
            push_word(&mut out, Tok::Values);
        }
        out
    }
}

/// MAOS.DIFF
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diff<'a> {
    /// The key.
    pub key: &'a [u8],
    /// From this version; -n: the n-th before the current one.
    pub from: i64,
    /// To this version.
    pub to: i64,
}

impl<'a> Request<'a> for Diff<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.DIFF",
        summary: "Shows what changed between two versions of a JSON value",
        complexity: "O(N) for N bytes of both values",
        since: "0.1.0",
        arity: 4,
        flags: "readonly",
        acl: "read",
        keys: Keys::One(Access::Read),
        args: &[
            KEY,
            Arg::new("version1", ArgKind::VersionRef),
            Arg::new("version2", ArgKind::VersionRef),
        ],
        options: &[],
        reply: "A JSON Patch (RFC 6902) that makes the second version out of the first.",
        refusals: &[Code::NoVersion, Code::NotJson, Code::Limit],
        examples: "
> MAOS.SET app:d:1 '{\"status\":\"open\",\"tries\":1}'
< $one
> MAOS.SET app:d:1 '{\"status\":\"done\",\"tries\":1}'
< $two
> MAOS.DIFF app:d:1 $one $two
< '[{\"op\":\"replace\",\"path\":\"/status\",\"value\":\"done\"}]'
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let diff = Diff {
            key: c.bytes()?,
            from: c.version_ref()?,
            to: c.version_ref()?,
        };
        c.option()?;
        Ok(diff)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![self.key.to_vec(), number(self.from), number(self.to)]
    }
}

/// MAOS.ROLLBACK
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rollback<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The version whose value is to come back.
    pub select: Select,
    /// The options.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for Rollback<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.ROLLBACK",
        summary: "Writes a new version that holds the value of an old one",
        complexity: "O(N) for N bytes of the value",
        since: "0.1.0",
        arity: -4,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[KEY],
        options: &[
            &[Arg::new("select", ArgKind::OneOf(VERSION_OR_AT))],
            ORIGIN_OPTIONS,
            CONDITION_OPTIONS,
            KEY_OPTIONS,
        ],
        reply: "As MAOS.SET. The expiry of the key stays as it is unless an option changes it.",
        refusals: &[
            Code::NoVersion,
            Code::NotJson,
            Code::TooBig,
            Code::Limit,
            Code::Quota,
            Code::NotFound,
        ],
        examples: "
> MAOS.SET app:r:1 good
< $good
> MAOS.SET app:r:1 bad
< $bad
> MAOS.ROLLBACK app:r:1 VERSION $good BY operator
< $back
> MAOS.GET app:r:1 WITHVERSION
< ['good', $back]
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let key = c.bytes()?;
        let mut select = None;
        let mut options = WriteOptions::default();
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Version | Tok::At => select = Some(Select::take(tok, c)?),
                other => options.take(other, c)?,
            }
        }
        let select =
            select.ok_or_else(|| c.bad("say which value: VERSION n or AT unix-ms".into()))?;
        Ok(Rollback {
            key,
            select,
            options,
        })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec()];
        self.select.encode(&mut out);
        self.options.encode(&mut out);
        out
    }
}

// ---------------------------------------------------------------------------------------------
// What servers send to servers
// ---------------------------------------------------------------------------------------------

/// MAOS.APPLY fact key value [key value ...]: a change that was decided elsewhere, for replicas and
/// the AOF.
pub const APPLY: CommandSpec = CommandSpec {
    name: "MAOS.APPLY",
    summary: "Applies a change that a master decided; for replicas and the AOF only",
    complexity: "O(N) for N keys",
    since: "0.1.0",
    arity: -4,
    flags: "write",
    acl: "write dangerous admin",
    keys: Keys::Pairs(2, Access::Write),
    args: &[
        Arg::new("fact", ArgKind::Name(usize::MAX)),
        Arg::new("data", ArgKind::Block(&[KEY, VALUE])).many(),
    ],
    options: &[],
    reply: "1.",
    refusals: &[],
    examples: "",
    internal: true,
};

/// MAOS.RESTORED key was now: the version that the RESTORE that follows puts on top of its payload.
pub const RESTORED: CommandSpec = CommandSpec {
    name: "MAOS.RESTORED",
    summary: "Says which version the RESTORE that follows gets; for replicas and the AOF only",
    complexity: "O(1)",
    since: "0.1.0",
    arity: 4,
    flags: "write",
    acl: "write dangerous admin",
    keys: Keys::One(Access::Write),
    args: &[
        KEY,
        Arg::new("was", ArgKind::Name(20)),
        Arg::new("now", ArgKind::Name(20)),
    ],
    options: &[],
    reply: "1.",
    refusals: &[],
    examples: "",
    internal: true,
};

/// MAOS.LOAD key record: a whole record, in a rewritten AOF.
pub const LOAD: CommandSpec = CommandSpec {
    name: "MAOS.LOAD",
    summary: "Loads a whole record; for a rewritten AOF only",
    complexity: "O(N) for N versions",
    since: "0.1.0",
    arity: 3,
    flags: "write",
    acl: "write dangerous admin",
    keys: Keys::One(Access::Write),
    args: &[KEY, Arg::new("record", ArgKind::Name(usize::MAX))],
    options: &[],
    reply: "1.",
    refusals: &[],
    examples: "",
    internal: true,
};
