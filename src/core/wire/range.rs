//! Listing keys in order: the table entry, the request, the reply.

use std::borrow::Cow;

use super::cursor::Cursor;
use super::reply::{field, required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value};
use super::spec::*;
use super::watch::{cursor, Mark};
use super::{push_bytes, push_number, push_word, Request};
use crate::config::{LISTED_DEFAULT, LISTED_MAX};
use crate::{Code, Refusal, Stamp};

/// MAOS.RANGE
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Range<'a> {
    /// Keys that begin with this.
    pub prefix: Cow<'a, [u8]>,
    /// Only those that come after this one.
    pub after: Option<Cow<'a, [u8]>>,
    /// At most so many keys.
    pub count: Option<u64>,
    /// Only those that changed after this, and those that were deleted after it.
    pub since: Option<Mark>,
    /// With what they hold.
    pub full: bool,
}

impl<'a> Range<'a> {
    /// All keys that begin with this.
    pub fn new(prefix: impl Into<Cow<'a, [u8]>>) -> Range<'a> {
        Range {
            prefix: prefix.into(),
            ..Range::default()
        }
    }

    /// So many keys a reply has at most.
    pub fn most(&self) -> usize {
        let most = self.count.and_then(|n| usize::try_from(n).ok());
        most.unwrap_or(LISTED_DEFAULT)
    }
}

impl<'a> Request<'a> for Range<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.RANGE",
        summary: "Lists the keys of this node that begin with a prefix, in the order of their bytes",
        complexity: "O(log(N) + M) for N keys and M that are listed; with SINCE M are all that begin with the prefix",
        since: "0.1.0",
        arity: -2,
        flags: "readonly",
        acl: "read",
        keys: Keys::None,
        args: &[Arg::new("prefix", ArgKind::Beginning)],
        options: &[&[
            Arg::option(
                Tok::After,
                "key",
                ArgKind::KeyLike,
                "only keys that come after this one: to go on, the key that the reply before names. It need not exist any more",
            ),
            Arg::option(
                Tok::Count,
                "count",
                ArgKind::Integer(1, LISTED_MAX),
                "at most this many keys; 1000 without it. There may be fewer, and more to come all the same",
            ),
            Arg::option(
                Tok::Since,
                "cursor",
                ArgKind::Cursor,
                "only keys whose newest version is newer than this version, or than this cursor of a watch; also those that were deleted by MAOS.DEL, as long as their tombstones are kept",
            ),
            Arg::option(
                Tok::Full,
                "full",
                ArgKind::Word,
                "with what they hold",
            ),
        ]],
        reply: "An array of the key to go on after (null: that were all) and an array of keys. With FULL each is a map of key, value (null: it was deleted), version, author, agent, metadata, ttl-ms. Keys without a value are not listed but with SINCE; nor are those that the user may not read.",
        refusals: &[Code::Busy, Code::Limit, Code::NoPerm],
        examples: "
> MAOS.MSET 3 app:r:b 2 app:r:a 1 app:r:c 3 BY planner
< $all
> MAOS.RANGE app:r:
< [null, ['app:r:a', 'app:r:b', 'app:r:c']]
> MAOS.RANGE app:r: COUNT 2
< ['app:r:b', ['app:r:a', 'app:r:b']]
> MAOS.RANGE app:r: COUNT 2 AFTER app:r:b
< [null, ['app:r:c']]
> MAOS.DEL app:r:b
< $gone
> MAOS.RANGE app:r:
< [null, ['app:r:a', 'app:r:c']]
> MAOS.RANGE app:r: SINCE $all FULL
< [null, [{key: 'app:r:b', value: null, version: $gone, author: 'default', agent: null, metadata: null, ttl-ms: *}]]
> MAOS.RANGE app:r: COUNT 1 FULL
< ['app:r:a', [{key: 'app:r:a', value: '1', version: $all, author: 'default', agent: 'planner', metadata: null, ttl-ms: -1}]]
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut range = Range::new(c.bytes()?);
        while let Some(tok) = c.option()? {
            match tok {
                Tok::After => range.after = Some(Cow::Borrowed(c.bytes()?)),
                Tok::Count => range.count = Some(c.int("COUNT", 1, LISTED_MAX)?.unsigned_abs()),
                Tok::Since => range.since = Some(cursor(Self::SPEC, c.bytes()?)?),
                _ => range.full = true,
            }
        }
        Ok(range)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.prefix.to_vec()];
        push_bytes(&mut out, Tok::After, self.after.as_deref());
        push_number(&mut out, Tok::Count, self.count);
        push_number(&mut out, Tok::Since, self.since);
        if self.full {
            push_word(&mut out, Tok::Full);
        }
        out
    }
}

/// The reply of MAOS.RANGE.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RangeReply<'a> {
    /// The key after which to go on; `None`: that were all.
    pub next: Option<Bytes<'a>>,
    /// The keys, in order.
    pub keys: Vec<Listed<'a>>,
}

/// One key of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listed<'a> {
    /// Its name.
    Key(Bytes<'a>),
    /// With `FULL`, what it holds too.
    Full(Box<ListedFull<'a>>),
}

/// A key and what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedFull<'a> {
    /// Its name.
    pub key: Bytes<'a>,
    /// Its value; `None`: it was deleted.
    pub value: Option<Bytes<'a>>,
    /// The version of that.
    pub version: Stamp,
    /// The ACL user who wrote or deleted it.
    pub author: Bytes<'a>,
    /// The agent who did.
    pub agent: Option<Bytes<'a>>,
    /// The metadata of this version: a JSON object.
    pub metadata: Option<Bytes<'a>>,
    /// Milliseconds until the key expires; -1 if it does not. A tombstone expires with its history.
    pub ttl_ms: i64,
}

impl Listed<'_> {
    /// Its name.
    pub fn key(&self) -> &[u8] {
        match self {
            Listed::Key(key) => key,
            Listed::Full(full) => &full.key,
        }
    }
}

impl Reply for Listed<'_> {
    fn emit(&self, to: &mut impl Sink) {
        let full = match self {
            Listed::Key(key) => return to.bulk(key),
            Listed::Full(full) => full,
        };
        to.map(7);
        field(to, "key").bulk(&full.key);
        field(to, "value").maybe(full.value.as_deref());
        field(to, "version").int(full.version.as_i64());
        field(to, "author").bulk(&full.author);
        field(to, "agent").maybe(full.agent.as_deref());
        field(to, "metadata").maybe(full.metadata.as_deref());
        field(to, "ttl-ms").int(full.ttl_ms);
    }

    fn decode(value: Value) -> Decoded<Self> {
        if let Value::Bulk(key) = value {
            return Ok(Listed::Key(key.into()));
        }
        let mut f = value.fields()?;
        Ok(Listed::Full(Box::new(ListedFull {
            key: required(f.take("key"))?,
            value: f.take("value").bytes()?,
            version: stamp(f.take("version"))?,
            author: required(f.take("author"))?,
            agent: f.take("agent").bytes()?,
            metadata: f.take("metadata").bytes()?,
            ttl_ms: f.take("ttl-ms").int()?,
        })))
    }
}

impl Reply for RangeReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.array(2);
        to.maybe(self.next.as_deref());
        to.array(self.keys.len());
        self.keys.iter().for_each(|key| key.emit(to));
    }

    fn decode(value: Value) -> Decoded<Self> {
        let [next, keys]: [Value; 2] = value
            .items()?
            .try_into()
            .map_err(|_| BadShape("a key and keys were expected"))?;
        let keys = keys.items()?.into_iter().map(Listed::decode);
        Ok(RangeReply {
            next: next.bytes()?,
            keys: keys.collect::<Decoded<_>>()?,
        })
    }
}
