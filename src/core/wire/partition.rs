//! Partitions: table entries, requests, replies.

use std::marker::PhantomData;

use super::cursor::Cursor;
use super::reply::{
    clamp, count, field, required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value,
};
use super::spec::*;
use super::update::{strategy, Strategy, STRATEGY};
use super::{push_bytes, push_number, push_word, Request};
use crate::config::{
    AGENT_MAX, HARD_VALUE_MAX, HARD_VERSIONS_MAX, PARTITION_NAME_MAX, PREFIXES_MAX, PREFIX_MAX,
};
use crate::{Code, Refusal, Stamp};

/// How a partition is meant.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Class {
    /// Open to all; goes when it is dropped.
    #[default]
    SharedPool,
    /// Of one agent: a write that another one declares is refused.
    AgentDedicated,
    /// Leaves at its time, and its keys with it.
    Temporary,
    /// Dropped with `FORCE` only, empty or not.
    Persistent,
}

impl Class {
    /// The words for them.
    pub const WORDS: [Tok; 4] = [
        Tok::SharedPool,
        Tok::AgentDedicated,
        Tok::Temporary,
        Tok::Persistent,
    ];

    const ALL: [Class; 4] = [
        Class::SharedPool,
        Class::AgentDedicated,
        Class::Temporary,
        Class::Persistent,
    ];

    /// Its place among them.
    pub fn place(self) -> usize {
        self as usize
    }

    /// The one at a place.
    pub fn at(place: usize) -> Option<Class> {
        Class::ALL.get(place).copied()
    }

    /// Its name, as replies have it.
    pub fn name(self) -> String {
        Class::WORDS[self.place()].word().to_ascii_lowercase()
    }

    /// The one of this name.
    pub fn named(name: &[u8]) -> Option<Class> {
        let place = Class::WORDS.iter().position(|tok| tok.is(name));
        place.and_then(Class::at)
    }
}

/// What becomes of a write for which there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum OnFull {
    /// It is refused.
    #[default]
    Reject,
    /// The partition's own keys go, those first that were written longest ago.
    Evict,
}

impl OnFull {
    /// The words for them.
    pub const WORDS: [Tok; 2] = [Tok::Reject, Tok::Evict];

    /// Its name, as replies have it.
    pub fn name(self) -> &'static str {
        match self {
            OnFull::Reject => "reject",
            OnFull::Evict => "evict",
        }
    }
}

/// What CREATE and ALTER say of a partition. `None`: nothing is said.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Terms<'a> {
    /// `BYTES`: the quota.
    pub bytes: Option<u64>,
    /// `TYPE`
    pub class: Option<Class>,
    /// `AGENT`: whose it is.
    pub agent: Option<&'a [u8]>,
    /// `PREFIX`, as many as there are; `NOPREFIX`: none.
    pub prefixes: Option<Vec<&'a [u8]>>,
    /// `TTL`, in milliseconds: how long a temporary partition lasts; of any other, how long its keys do.
    pub ttl_ms: Option<u64>,
    /// `ONFULL`
    pub on_full: Option<OnFull>,
    /// `ONCONFLICT`: how a MAOS.MERGE goes that names no strategy.
    pub on_conflict: Option<Strategy<'a>>,
    /// `HISTORY`: versions kept; 0: as the server's settings say, also below.
    pub history: Option<u64>,
    /// `MAXAGE`, in milliseconds: how long a replaced version is kept.
    pub max_age_ms: Option<u64>,
    /// `MAXVALUE`: the longest value.
    pub max_value: Option<u64>,
}

const MAX_BYTES: i64 = (1 << 53) - 1;

const BYTES: Arg = Arg::option(
    Tok::Bytes,
    "bytes",
    ArgKind::Integer(1, MAX_BYTES),
    "how many bytes the keys of the partition may hold: versions, metadata, locks and names",
);

const TERMS: &[Arg] = &[
    Arg::option(
        Tok::Type,
        "type",
        ArgKind::OneOf(&[
            Arg::option(Tok::AgentDedicated, "agent_dedicated", ArgKind::Word, "refuses writes BY another agent than that of AGENT").needed(),
            Arg::option(Tok::SharedPool, "shared_pool", ArgKind::Word, "open to all; the default").needed(),
            Arg::option(Tok::Temporary, "temporary", ArgKind::Word, "leaves after its TTL, and its keys with it").needed(),
            Arg::option(Tok::Persistent, "persistent", ArgKind::Word, "is not dropped without FORCE").needed(),
        ]),
        "how the partition is meant",
    ),
    Arg::option(Tok::Agent, "agent", ArgKind::Name(AGENT_MAX), "the agent that a dedicated partition is for"),
    Arg::option(
        Tok::Ttl,
        "milliseconds",
        ArgKind::Integer(0, i64::MAX / 4),
        "how long a temporary partition lasts; of another one, when a key expires that is written without a word about it (0: it does not)",
    ),
    Arg::option(
        Tok::OnFull,
        "onfull",
        ArgKind::OneOf(&[
            Arg::option(Tok::Reject, "reject", ArgKind::Word, "the write is refused; the default").needed(),
            Arg::option(Tok::Evict, "evict", ArgKind::Word, "keys of the partition are removed, those first that were written longest ago").needed(),
        ]),
        "what becomes of a write for which there is no room",
    ),
    Arg::option(
        Tok::OnConflict,
        "strategy",
        ArgKind::OneOf(STRATEGY),
        "how a MAOS.MERGE goes that names no STRATEGY",
    ),
    Arg::option(
        Tok::History,
        "versions",
        ArgKind::Integer(0, HARD_VERSIONS_MAX as i64 - 1),
        "how many versions of each key are kept; 0: as maos.history-max-versions says",
    ),
    Arg::option(
        Tok::MaxAge,
        "milliseconds",
        ArgKind::Integer(0, i64::MAX / 2000),
        "how long a replaced version is kept; 0: as maos.history-max-age says",
    ),
    Arg::option(
        Tok::MaxValue,
        "bytes",
        ArgKind::Integer(0, HARD_VALUE_MAX as i64),
        "the longest value; never longer than maos.value-max-bytes; 0: as that says",
    ),
];

const PREFIX: Arg = Arg::option(
    Tok::Prefix,
    "key-prefix",
    ArgKind::Name(PREFIX_MAX),
    "keys that begin with this belong to the partition, unless a longer prefix of another fits or a write named one; in ALTER all prefixes that are to be",
)
.many();

const NO_PREFIX: Arg = Arg::option(
    Tok::NoPrefix,
    "noprefix",
    ArgKind::Word,
    "no prefix any more",
);

const NAME: Arg = Arg::new("name", ArgKind::Key);

impl<'a> Terms<'a> {
    fn take(&mut self, tok: Tok, c: &mut Cursor<'_, 'a>) -> Result<(), Refusal> {
        let number =
            |c: &mut Cursor<'_, 'a>, min, max| Ok(c.int(tok.word(), min, max)?.unsigned_abs());
        match tok {
            Tok::Bytes => self.bytes = Some(number(c, 1, MAX_BYTES)?),
            Tok::Type => {
                let word = c.word("TYPE", &Class::WORDS)?;
                let place = Class::WORDS.iter().position(|t| *t == word);
                self.class = place.and_then(Class::at);
            }
            Tok::Agent => self.agent = Some(c.name("the agent of AGENT", AGENT_MAX)?),
            Tok::Prefix => {
                let prefix = c.name("a prefix of PREFIX", PREFIX_MAX)?;
                let prefixes = self.prefixes.get_or_insert_default();
                if prefixes.len() >= PREFIXES_MAX {
                    let text = format!("a partition has at most {PREFIXES_MAX} prefixes");
                    return Err(Refusal::new(Code::Limit, text));
                }
                if prefixes.contains(&prefix) {
                    return Err(c.bad("a prefix is given twice".into()));
                }
                prefixes.push(prefix);
            }
            Tok::NoPrefix => self.prefixes = Some(vec![]),
            Tok::Ttl => self.ttl_ms = Some(number(c, 0, i64::MAX / 4)?),
            Tok::OnFull => {
                self.on_full = Some(match c.word("ONFULL", &OnFull::WORDS)? {
                    Tok::Evict => OnFull::Evict,
                    _ => OnFull::Reject,
                });
            }
            Tok::OnConflict => self.on_conflict = Some(strategy(c)?),
            Tok::History => self.history = Some(number(c, 0, HARD_VERSIONS_MAX as i64 - 1)?),
            Tok::MaxAge => self.max_age_ms = Some(number(c, 0, i64::MAX / 2000)?),
            Tok::MaxValue => self.max_value = Some(number(c, 0, HARD_VALUE_MAX as i64)?),
            _ => return Err(c.bad(format!("{} does not belong here", tok.word()))),
        }
        Ok(())
    }

    fn encode(&self, out: &mut Vec<Vec<u8>>) {
        push_number(out, Tok::Bytes, self.bytes);
        if let Some(class) = self.class {
            push_word(out, Tok::Type);
            push_word(out, Class::WORDS[class.place()]);
        }
        push_bytes(out, Tok::Agent, self.agent);
        match self.prefixes.as_deref() {
            Some([]) => push_word(out, Tok::NoPrefix),
            prefixes => {
                for prefix in prefixes.unwrap_or_default() {
                    push_bytes(out, Tok::Prefix, Some(prefix));
                }
            }
        }
        push_number(out, Tok::Ttl, self.ttl_ms);
        if let Some(on_full) = self.on_full {
            push_word(out, Tok::OnFull);
            push_word(out, OnFull::WORDS[on_full as usize]);
        }
        if let Some(strategy) = self.on_conflict {
            push_word(out, Tok::OnConflict);
            strategy.encode(out);
        }
        push_number(out, Tok::History, self.history);
        push_number(out, Tok::MaxAge, self.max_age_ms);
        push_number(out, Tok::MaxValue, self.max_value);
    }
}

fn name<'a>(c: &mut Cursor<'_, 'a>) -> Result<&'a [u8], Refusal> {
    c.name("the name of a partition", PARTITION_NAME_MAX)
}

/// MAOS.PARTITION CREATE
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionCreate<'a> {
    /// The name: the key that is to hold it.
    pub name: &'a [u8],
    /// What it is to be; `bytes` is said.
    pub terms: Terms<'a>,
}

impl<'a> Request<'a> for PartitionCreate<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION CREATE",
        summary: "Makes a partition: a share of the memory pool with a quota and a policy of its own",
        complexity: "O(N) for N partitions",
        since: "0.1.0",
        arity: -5,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[NAME],
        options: &[&[BYTES.needed()], TERMS, &[PREFIX]],
        reply: "The version of the definition. The partition is a key of the type MaosShare: it persists, replicates, moves and expires like any key, and DEL drops it. BYTES are taken from the pool (maos.pool-bytes) at once.",
        refusals: &[Code::Exists, Code::PoolFull, Code::Quota, Code::Limit, Code::TooBig, Code::WrongType],
        examples: "
> MAOS.PARTITION CREATE partition:crew BYTES 1000000 PREFIX crew: HISTORY 10
< $made
> MAOS.PARTITION CREATE partition:crew BYTES 1
< !EXISTS
> MAOS.SET crew:task:1 open
< $first
> MAOS.SET elsewhere:1 v PARTITION partition:crew
< $second
> MAOS.SET elsewhere:2 v PARTITION partition:none
< !NOTFOUND
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let name = name(c)?;
        let mut terms = Terms::default();
        while let Some(tok) = c.option()? {
            terms.take(tok, c)?;
        }
        if terms.bytes.is_none() {
            return Err(c.bad("say with BYTES how many bytes it may hold".into()));
        }
        Ok(PartitionCreate { name, terms })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.name.to_vec()];
        self.terms.encode(&mut out);
        out
    }
}

/// MAOS.PARTITION ALTER
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionAlter<'a> {
    /// The name.
    pub name: &'a [u8],
    /// What is to be otherwise.
    pub terms: Terms<'a>,
}

impl<'a> Request<'a> for PartitionAlter<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION ALTER",
        summary: "Changes what a partition is",
        complexity: "O(N) for N partitions",
        since: "0.1.0",
        arity: -3,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[NAME],
        options: &[
            &[BYTES],
            TERMS,
            &[Arg::new("prefixes", ArgKind::OneOf(&[PREFIX.needed(), NO_PREFIX.needed()])).maybe()],
        ],
        reply: "The version of the new definition. What is not named stays. A quota below what the partition holds is refused; keys that a new prefix fits are charged when they are next written, or by the background pass, as far as there is room.",
        refusals: &[Code::NotFound, Code::PoolFull, Code::Quota, Code::Exists, Code::Limit, Code::TooBig, Code::WrongType],
        examples: "
> MAOS.PARTITION CREATE partition:lab BYTES 1000
< $made
> MAOS.PARTITION ALTER partition:lab BYTES 2000 ONFULL evict
< $more
> MAOS.PARTITION ALTER partition:none BYTES 2000
< !NOTFOUND
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let name = name(c)?;
        let mut terms = Terms::default();
        while let Some(tok) = c.option()? {
            terms.take(tok, c)?;
        }
        Ok(PartitionAlter { name, terms })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.name.to_vec()];
        self.terms.encode(&mut out);
        out
    }
}

/// MAOS.PARTITION DROP
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionDrop<'a> {
    /// The name.
    pub name: &'a [u8],
    /// `FORCE`: also if it has keys, or is persistent.
    pub force: bool,
}

impl<'a> Request<'a> for PartitionDrop<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION DROP",
        summary: "Drops a partition and gives its bytes back to the pool",
        complexity: "O(N) for N partitions",
        since: "0.1.0",
        arity: -3,
        flags: "write",
        acl: "write",
        keys: Keys::One(Access::Delete),
        args: &[NAME],
        options: &[&[Arg::option(
            Tok::Force,
            "force",
            ArgKind::Word,
            "also a partition that has keys, or is persistent",
        )]],
        reply: "How many keys it had. These stay, and belong to whatever partition has a prefix for them, or to none; the keys of a temporary partition go with it.",
        refusals: &[Code::NotFound, Code::Exists, Code::WrongType],
        examples: "
> MAOS.PARTITION CREATE partition:old BYTES 1000 PREFIX old:
< $made
> MAOS.SET old:1 v
< $first
> MAOS.PARTITION DROP partition:old
< !EXISTS
> MAOS.PARTITION DROP partition:old FORCE
< 1
> MAOS.PARTITION DROP partition:old
< !NOTFOUND
> MAOS.GET old:1
< 'v'
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let name = name(c)?;
        let force = c.option()?.is_some();
        c.option()?;
        Ok(PartitionDrop { name, force })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.name.to_vec()];
        if self.force {
            push_word(&mut out, Tok::Force);
        }
        out
    }
}

/// The reply of a CREATE or an ALTER: the version of the definition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DefinedReply(pub Stamp);

impl Reply for DefinedReply {
    fn emit(&self, to: &mut impl Sink) {
        to.int(self.0.as_i64());
    }

    fn decode(value: Value) -> Decoded<Self> {
        stamp(value).map(DefinedReply)
    }
}

/// The reply of a DROP: how many keys it had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DroppedReply(pub u64);

impl Reply for DroppedReply {
    fn emit(&self, to: &mut impl Sink) {
        to.int(clamp(self.0));
    }

    fn decode(value: Value) -> Decoded<Self> {
        count(value).map(DroppedReply)
    }
}

/// MAOS.PARTITION INFO
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionInfo<'a> {
    /// The name.
    pub name: &'a [u8],
    /// `AUDIT`: have its keys counted anew.
    pub audit: bool,
}

impl<'a> Request<'a> for PartitionInfo<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION INFO",
        summary: "Shows what a partition is, and what it holds",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -3,
        flags: "readonly fast",
        acl: "read fast",
        keys: Keys::One(Access::Read),
        args: &[NAME],
        options: &[&[Arg::option(
            Tok::Audit,
            "audit",
            ArgKind::Word,
            "have all keys of this node counted anew, in steps that hold nobody up; what came of it stands in a later reply",
        )]],
        reply: "A map of name, type, agent, quota, used and keys (of all nodes), used-here and keys-here (of this one), high-water (the most that this node held), refused and evicted (counted since it was started), prefixes, onfull, onconflict, history, max-age-ms, max-value, key-ttl-ms (0: as the settings say), ttl-ms (-1: does not expire), version, audit. The audit is null before the first one, or a map of running, bytes and keys (as counted), drift (bytes by which the sum was wrong, and has been set right), ended-ms.",
        refusals: &[Code::NotFound],
        examples: "
> MAOS.PARTITION CREATE partition:shown BYTES 1000 PREFIX shown:
< $made
> MAOS.SET shown:1 v
< $first
> MAOS.PARTITION INFO partition:shown
< {name: 'partition:shown', type: 'shared_pool', agent: null, quota: 1000, used: 56, keys: 1, used-here: 56, keys-here: 1, high-water: 56, refused: 0, evicted: 0, prefixes: ['shown:'], onfull: 'reject', onconflict: null, history: 0, max-age-ms: 0, max-value: 0, key-ttl-ms: 0, ttl-ms: -1, version: $made, audit: null}
> MAOS.PARTITION INFO partition:none
< !NOTFOUND
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let name = name(c)?;
        let audit = c.option()?.is_some();
        c.option()?;
        Ok(PartitionInfo { name, audit })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.name.to_vec()];
        if self.audit {
            push_word(&mut out, Tok::Audit);
        }
        out
    }
}

/// Everything about one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionReply<'a> {
    /// The key that holds it.
    pub name: Bytes<'a>,
    /// How it is meant.
    pub class: Class,
    /// The agent it is for.
    pub agent: Option<Bytes<'a>>,
    /// How many bytes it may hold.
    pub quota: u64,
    /// How many it holds, on all nodes.
    pub used: u64,
    /// How many keys, on all nodes.
    pub keys: u64,
    /// How many bytes on the node that was asked.
    pub used_here: u64,
    /// How many keys on the node that was asked.
    pub keys_here: u64,
    /// The most bytes that this node held.
    pub high_water: u64,
    /// Writes that this node refused for want of room.
    pub refused: u64,
    /// Keys that this node removed to make room.
    pub evicted: u64,
    /// What its keys begin with.
    pub prefixes: Vec<Bytes<'a>>,
    /// What becomes of a write for which there is no room.
    pub on_full: OnFull,
    /// How a merge goes that names no strategy; `function NAME` where a function decides.
    pub on_conflict: Option<Bytes<'a>>,
    /// Versions kept of each key; 0: as the settings say, also below.
    pub history: u64,
    /// Milliseconds that a replaced version is kept.
    pub max_age_ms: u64,
    /// The longest value.
    pub max_value: u64,
    /// Milliseconds after which a key expires that is written without a word about it; 0: it does not.
    pub key_ttl_ms: u64,
    /// Milliseconds until the partition expires; -1 if it does not.
    pub ttl_ms: i64,
    /// When it was last defined.
    pub version: Stamp,
    /// What came of the last audit.
    pub audit: Option<AuditReply>,
}

/// What came of counting anew.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AuditReply {
    /// True while it goes on.
    pub running: bool,
    /// The bytes that were counted.
    pub bytes: u64,
    /// The keys that were counted.
    pub keys: u64,
    /// How many bytes the sum had too many.
    pub drift: i64,
    /// When it ended, in milliseconds of unix time; 0 if none ever did.
    pub ended_ms: u64,
}

impl Reply for PartitionReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.map(21);
        field(to, "name").bulk(&self.name);
        field(to, "type").bulk(self.class.name().as_bytes());
        field(to, "agent").maybe(self.agent.as_deref());
        field(to, "quota").int(clamp(self.quota));
        field(to, "used").int(clamp(self.used));
        field(to, "keys").int(clamp(self.keys));
        field(to, "used-here").int(clamp(self.used_here));
        field(to, "keys-here").int(clamp(self.keys_here));
        field(to, "high-water").int(clamp(self.high_water));
        field(to, "refused").int(clamp(self.refused));
        field(to, "evicted").int(clamp(self.evicted));
        field(to, "prefixes").array(self.prefixes.len());
        self.prefixes.iter().for_each(|p| to.bulk(p));
        field(to, "onfull").bulk(self.on_full.name().as_bytes());
        field(to, "onconflict").maybe(self.on_conflict.as_deref());
        field(to, "history").int(clamp(self.history));
        field(to, "max-age-ms").int(clamp(self.max_age_ms));
        field(to, "max-value").int(clamp(self.max_value));
        field(to, "key-ttl-ms").int(clamp(self.key_ttl_ms));
        field(to, "ttl-ms").int(self.ttl_ms);
        field(to, "version").int(self.version.as_i64());
        field(to, "audit");
        match &self.audit {
            None => to.null(),
            Some(audit) => {
                to.map(5);
                field(to, "running").int(i64::from(audit.running));
                field(to, "bytes").int(clamp(audit.bytes));
                field(to, "keys").int(clamp(audit.keys));
                field(to, "drift").int(audit.drift);
                field(to, "ended-ms").int(clamp(audit.ended_ms));
            }
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut f = value.fields()?;
        let prefixes = f.take("prefixes").items()?.into_iter().map(required);
        Ok(PartitionReply {
            name: required(f.take("name"))?,
            class: Class::named(&required(f.take("type"))?).ok_or(BadShape("an unknown type"))?,
            agent: f.take("agent").bytes()?,
            quota: count(f.take("quota"))?,
            used: count(f.take("used"))?,
            keys: count(f.take("keys"))?,
            used_here: count(f.take("used-here"))?,
            keys_here: count(f.take("keys-here"))?,
            high_water: count(f.take("high-water"))?,
            refused: count(f.take("refused"))?,
            evicted: count(f.take("evicted"))?,
            prefixes: prefixes.collect::<Decoded<_>>()?,
            on_full: match &*required(f.take("onfull"))? {
                b"evict" => OnFull::Evict,
                _ => OnFull::Reject,
            },
            on_conflict: f.take("onconflict").bytes()?,
            history: count(f.take("history"))?,
            max_age_ms: count(f.take("max-age-ms"))?,
            max_value: count(f.take("max-value"))?,
            key_ttl_ms: count(f.take("key-ttl-ms"))?,
            ttl_ms: f.take("ttl-ms").int()?,
            version: stamp(f.take("version"))?,
            audit: match f.take("audit") {
                Value::Null => None,
                audit => {
                    let mut f = audit.fields()?;
                    Some(AuditReply {
                        running: f.take("running").int()? != 0,
                        bytes: count(f.take("bytes"))?,
                        keys: count(f.take("keys"))?,
                        drift: f.take("drift").int()?,
                        ended_ms: count(f.take("ended-ms"))?,
                    })
                }
            },
        })
    }
}

/// MAOS.PARTITION LIST
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionList<'a> {
    /// `AGENT`: only those dedicated to this agent.
    pub agent: Option<&'a [u8]>,
}

impl<'a> Request<'a> for PartitionList<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION LIST",
        summary: "Lists the partitions that this node knows: all of the cluster",
        complexity: "O(N) for N partitions",
        since: "0.1.0",
        arity: -2,
        flags: "readonly",
        acl: "read",
        keys: Keys::None,
        args: &[],
        options: &[&[Arg::option(
            Tok::Agent,
            "agent",
            ArgKind::Name(AGENT_MAX),
            "only those that are dedicated to this agent",
        )]],
        reply: "An array with the map of MAOS.PARTITION INFO for each, in the order of their names; those whose key the user may not read are left out.",
        refusals: &[],
        examples: "
> MAOS.PARTITION CREATE partition:listed BYTES 1000 TYPE agent_dedicated AGENT a1
< $made
> MAOS.PARTITION LIST AGENT a1
< [{name: 'partition:listed', type: 'agent_dedicated', agent: 'a1', quota: 1000, used: 0, keys: 0, used-here: 0, keys-here: 0, high-water: 0, refused: 0, evicted: 0, prefixes: [], onfull: 'reject', onconflict: null, history: 0, max-age-ms: 0, max-value: 0, key-ttl-ms: 0, ttl-ms: -1, version: $made, audit: null}]
> MAOS.PARTITION LIST AGENT a2
< []
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut agent = None;
        while c.option()?.is_some() {
            agent = Some(c.name("the agent of AGENT", AGENT_MAX)?);
        }
        Ok(PartitionList { agent })
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![];
        push_bytes(&mut out, Tok::Agent, self.agent);
        out
    }
}

/// The reply of a LIST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionsReply<'a>(pub Vec<PartitionReply<'a>>);

impl Reply for PartitionsReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.array(self.0.len());
        self.0.iter().for_each(|p| p.emit(to));
    }

    fn decode(value: Value) -> Decoded<Self> {
        let items = value.items()?.into_iter().map(PartitionReply::decode);
        Ok(PartitionsReply(items.collect::<Decoded<_>>()?))
    }
}

/// MAOS.PARTITION POOL
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PartitionPool<'a>(PhantomData<&'a ()>);

impl<'a> Request<'a> for PartitionPool<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION POOL",
        summary: "Shows how much of the memory pool the partitions have been given",
        complexity: "O(N) for N partitions",
        since: "0.1.0",
        arity: 2,
        flags: "readonly",
        acl: "read",
        keys: Keys::None,
        args: &[],
        options: &[],
        reply: "A map of bytes (maos.pool-bytes), reserved (the quotas of all partitions), free, used (what they hold, on all nodes), keys, partitions.",
        refusals: &[],
        examples: "
> MAOS.PARTITION POOL
< {bytes: *, reserved: *, free: *, used: *, keys: *, partitions: *}
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        Cursor::new(Self::RULES, args).option()?;
        Ok(PartitionPool::default())
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![]
    }
}

/// The reply of a POOL.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PoolReply {
    /// What the pool has.
    pub bytes: u64,
    /// What its partitions may hold.
    pub reserved: u64,
    /// What may be given to others.
    pub free: u64,
    /// What its partitions hold, on all nodes.
    pub used: u64,
    /// How many keys, on all nodes.
    pub keys: u64,
    /// How many partitions there are.
    pub partitions: u64,
}

impl Reply for PoolReply {
    fn emit(&self, to: &mut impl Sink) {
        to.map(6);
        field(to, "bytes").int(clamp(self.bytes));
        field(to, "reserved").int(clamp(self.reserved));
        field(to, "free").int(clamp(self.free));
        field(to, "used").int(clamp(self.used));
        field(to, "keys").int(clamp(self.keys));
        field(to, "partitions").int(clamp(self.partitions));
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut f = value.fields()?;
        Ok(PoolReply {
            bytes: count(f.take("bytes"))?,
            reserved: count(f.take("reserved"))?,
            free: count(f.take("free"))?,
            used: count(f.take("used"))?,
            keys: count(f.take("keys"))?,
            partitions: count(f.take("partitions"))?,
        })
    }
}

/// MAOS.PARTITION HELP
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PartitionHelp<'a>(PhantomData<&'a ()>);

impl<'a> Request<'a> for PartitionHelp<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PARTITION HELP",
        summary: "Shows how the subcommands are used",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: "readonly",
        acl: "read",
        keys: Keys::None,
        args: &[],
        options: &[],
        reply: "An array of lines.",
        refusals: &[],
        examples: "
> MAOS.PARTITION HELP
< *
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        Cursor::new(Self::RULES, args).option()?;
        Ok(PartitionHelp::default())
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        vec![]
    }
}

/// The reply of a HELP: its lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelpReply(pub Vec<String>);

impl Reply for HelpReply {
    fn emit(&self, to: &mut impl Sink) {
        to.array(self.0.len());
        for line in &self.0 {
            to.bulk(line.as_bytes());
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let line = |value: Value| {
            let bytes = value.bytes()?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let lines = value.items()?.into_iter().map(line);
        Ok(HelpReply(lines.collect::<Decoded<_>>()?))
    }
}

/// MAOS.DEFINE name definition expires-at: a definition that was decided elsewhere, for replicas and the AOF.
pub const DEFINE: CommandSpec = CommandSpec {
    name: "MAOS.DEFINE",
    summary: "Defines a partition as a master decided; for replicas and the AOF only",
    complexity: "O(1)",
    since: "0.1.0",
    arity: 4,
    flags: "write",
    acl: "write dangerous admin",
    keys: Keys::One(Access::Write),
    args: &[
        Arg::new("key", ArgKind::Key),
        Arg::new("definition", ArgKind::Name(usize::MAX)),
        Arg::new("expires-at", ArgKind::Name(20)),
    ],
    options: &[],
    reply: "1.",
    refusals: &[],
    examples: "",
    internal: true,
};
