//! Watching: the table entry, the request, the reply.

use std::borrow::Cow;
use std::fmt;

use super::cursor::Cursor;
use super::reply::{count, field, required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value};
use super::spec::*;
use super::{push_bytes, push_number, push_word, Request};
use crate::config::{AGENT_MAX, BLOCK_MAX_MS, EVENTS_DEFAULT, EVENTS_MAX, PATTERNS_MAX};
use crate::event::Event;
use crate::glob::Glob;
use crate::refusal::Quoted;
use crate::{Code, Refusal, Stamp};

/// A cursor: how far somebody has come in the change log of a node.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Mark {
    /// All up to this position was seen.
    pub at: Stamp,
    /// In which reign that was; [`Stamp::NONE`]: not said.
    pub reign: Stamp,
}

impl Mark {
    /// From `position-reign`, or a position alone.
    pub fn parse(text: &[u8]) -> Option<Mark> {
        let text = std::str::from_utf8(text).ok()?;
        let (at, reign) = text.split_once('-').unwrap_or((text, "0"));
        let number = |part: &str| {
            let digits = part.bytes().all(|b| b.is_ascii_digit());
            let number = part.parse().ok().filter(|_| digits);
            number.map(Stamp).filter(|n| *n <= Stamp::MAX)
        };
        Some(Mark {
            at: number(at)?,
            reign: number(reign)?,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reign {
            Stamp::NONE => write!(f, "{}", self.at),
            reign => write!(f, "{}-{reign}", self.at),
        }
    }
}

/// Why a cursor cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gap {
    /// The log has let go what comes after it, and goes back to here.
    Compacted(Mark),
    /// What it has seen is not this node's past.
    Diverged {
        /// All that was seen up to here is; not known for a past of which this node has not heard.
        kept: Option<Mark>,
        /// The log goes on from here: there, or as far back as it reaches.
        from: Mark,
    },
}

impl Gap {
    /// The refusal of a watch from this cursor.
    pub fn refusal(self, cursor: Mark) -> Refusal {
        match self {
            Gap::Compacted(floor) => Refusal::new(
                Code::Compacted,
                format!("the change log reaches back to {floor}, not to {cursor}; read the keys again and {GO_ON}{floor}"),
            ),
            Gap::Diverged { kept, from } => {
                let what = match kept {
                    Some(kept) => format!("{KEPT}{kept} and up to {cursor} was lost with a node that failed"),
                    None => format!("{cursor} is of a past that this node does not know, and what was seen then may have been lost"),
                };
                let text = format!("{what}; read the keys again and {GO_ON}{from}");
                Refusal::new(Code::Diverged, text)
            }
        }
    }

    /// What a refusal of MAOS.WATCH says, if it is one of these.
    pub fn of(refusal: &Refusal) -> Option<Gap> {
        let text = &*refusal.text;
        let (_, from) = text.rsplit_once(GO_ON)?;
        let from = Mark::parse(from.as_bytes())?;
        match refusal.code {
            Code::Compacted => Some(Gap::Compacted(from)),
            Code::Diverged => {
                let kept = text
                    .strip_prefix(KEPT)
                    .and_then(|rest| rest.split(' ').next());
                let kept = kept.and_then(|kept| Mark::parse(kept.as_bytes()));
                Some(Gap::Diverged { kept, from })
            }
            _ => None,
        }
    }
}

/// Before the cursor from which one can go on, and that up to which all is certain.
const GO_ON: &str = "go on from ";
const KEPT: &str = "what was seen after ";

/// MAOS.WATCH
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watch<'a> {
    /// Keys that fit one of these.
    pub patterns: Vec<Glob<'a>>,
    /// What happened after this cursor; without it, after now.
    pub since: Option<Mark>,
    /// At most so many events, but for the rest of a commit.
    pub count: Option<u64>,
    /// Wait so many milliseconds for something to happen; 0: as long as it may be.
    pub block_ms: Option<u64>,
    /// Events of these types: a [bit](Event::bit) for each.
    pub types: Option<u16>,
    /// With the values.
    pub values: bool,
    /// Not what this agent has written.
    pub not_by: Option<Cow<'a, [u8]>>,
}

impl<'a> Watch<'a> {
    /// What happens to the keys of these patterns from now on.
    pub fn new(patterns: Vec<Glob<'a>>) -> Watch<'a> {
        Watch {
            patterns,
            since: None,
            count: None,
            block_ms: None,
            types: None,
            values: false,
            not_by: None,
        }
    }

    /// So many events a reply has at most, but for the rest of a commit.
    pub fn most(&self) -> usize {
        let most = self.count.and_then(|n| usize::try_from(n).ok());
        most.unwrap_or(EVENTS_DEFAULT)
    }

    /// How many milliseconds it waits; 0 not at all.
    pub fn wait_ms(&self) -> u64 {
        match self.block_ms {
            None => 0,
            Some(0) => BLOCK_MAX_MS.unsigned_abs(),
            Some(ms) => ms,
        }
    }

    /// The same, with bytes of its own.
    pub fn into_owned(self) -> Watch<'static> {
        let patterns = self.patterns.into_iter().map(Glob::into_owned);
        Watch {
            patterns: patterns.collect(),
            not_by: self.not_by.map(|agent| Cow::Owned(agent.into_owned())),
            since: self.since,
            count: self.count,
            block_ms: self.block_ms,
            types: self.types,
            values: self.values,
        }
    }
}

/// What follows SINCE.
pub(super) fn cursor(spec: &CommandSpec, text: &[u8]) -> Result<Mark, Refusal> {
    Mark::parse(text).ok_or_else(|| {
        let text = format!(
            "{}: SINCE is the cursor of an earlier reply of MAOS.WATCH, or a version, not {}",
            spec.name,
            Quoted(text)
        );
        Refusal::new(Code::Err, text)
    })
}

fn types(list: &[u8]) -> Result<u16, Refusal> {
    let mut set = 0;
    for word in list.split(|b| *b == b',') {
        let event = Event::from_word(word).ok_or_else(|| {
            let words: Vec<_> = Event::ALL.iter().map(|e| e.word()).collect();
            let text = format!(
                "MAOS.WATCH: TYPES is a list like 'created,updated' of {}, and has {}",
                words.join(", "),
                Quoted(word)
            );
            Refusal::new(Code::Err, text)
        })?;
        set |= event.bit();
    }
    Ok(set)
}

impl<'a> Request<'a> for Watch<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.WATCH",
        summary: "Reads what happened to keys, in order and without a gap, and waits for more",
        complexity: "O(N) for N events of the log after the cursor, and patterns; to wait costs writers of other keys next to nothing",
        since: "0.1.0",
        arity: -2,
        flags: "readonly",
        acl: "read blocking",
        keys: Keys::None,
        args: &[Arg::new("pattern", ArgKind::Pattern).many()],
        options: &[&[
            Arg::option(
                Tok::Since,
                "cursor",
                ArgKind::Cursor,
                "what happened after this: the cursor of an earlier reply. The version of a write to this node is taken too, on trust: whether a failover lost it is not known of a number alone. Without it: after now",
            ),
            Arg::option(
                Tok::Count,
                "count",
                ArgKind::Integer(1, EVENTS_MAX),
                "at most this many events, but for the rest of a commit; 1000 without it",
            ),
            Arg::option(
                Tok::Block,
                "milliseconds",
                ArgKind::Integer(0, BLOCK_MAX_MS),
                "wait this long for something to happen; 0: as long as may be, an hour. Not inside of MULTI and scripts",
            ),
            Arg::option(
                Tok::Types,
                "types",
                ArgKind::Events,
                "only events of these types, separated by commas",
            ),
            Arg::option(
                Tok::Values,
                "values",
                ArgKind::Word,
                "with the value that each event made, as long as it is in the key's history",
            ),
            Arg::option(
                Tok::NotBy,
                "agent",
                ArgKind::Name(AGENT_MAX),
                "without what this agent has written: one's own",
            ),
        ]],
        reply: "An array of the next cursor (a string) and an array of events, oldest first; all events of a commit are in one reply. An event is a map of type, key, version, previous (the version before; 0: there was none), author, agent, and with VALUES value, and gone (1: it is not kept any more). No events: there were none for these patterns up to the cursor.",
        refusals: &[
            Code::Compacted,
            Code::Diverged,
            Code::Limit,
            Code::NoPerm,
            Code::Busy,
        ],
        examples: "
> MAOS.WATCH app:w:*
< [@start, []]
> MAOS.SET app:w:1 one BY planner
< $one
> MAOS.SET other 1
< $other
> MAOS.MSET 2 app:w:1 two app:w:2 zwei BY worker
< $two
> MAOS.WATCH app:w:* SINCE @start COUNT 1 VALUES
< [@first, [{type: 'created', key: 'app:w:1', version: $one, previous: 0, author: 'default', agent: 'planner', value: 'one', gone: 0}]]
> MAOS.WATCH app:w:* SINCE $one COUNT 1
< [@second, [{type: 'updated', key: 'app:w:1', version: $two, previous: $one, author: 'default', agent: 'worker'}, {type: 'created', key: 'app:w:2', version: $two, previous: 0, author: 'default', agent: 'worker'}]]
> MAOS.WATCH app:w:* SINCE @second
< [@second, []]
",
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut watch = Watch::new(vec![Glob::new(c.bytes()?)?]);
        // The first word that is an option ends the patterns; one that is to be a pattern has a backslash before it.
        while let Some(pattern) = c.bytes_unless_option() {
            if watch.patterns.len() == PATTERNS_MAX {
                let text = format!("MAOS.WATCH: more than {PATTERNS_MAX} patterns; have more watches, or wider patterns");
                return Err(Refusal::new(Code::Limit, text));
            }
            watch.patterns.push(Glob::new(pattern)?);
        }
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Since => watch.since = Some(cursor(Self::SPEC, c.bytes()?)?),
                Tok::Count => watch.count = Some(c.int("COUNT", 1, EVENTS_MAX)?.unsigned_abs()),
                Tok::Block => {
                    watch.block_ms = Some(c.int("BLOCK", 0, BLOCK_MAX_MS)?.unsigned_abs());
                }
                Tok::Types => watch.types = Some(types(c.bytes()?)?),
                Tok::NotBy => watch.not_by = Some(Cow::Borrowed(c.name("NOTBY", AGENT_MAX)?)),
                _ => watch.values = true,
            }
        }
        Ok(watch)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = Vec::with_capacity(self.patterns.len() + 10);
        out.extend(self.patterns.iter().map(|glob| glob.pattern().to_vec()));
        push_number(&mut out, Tok::Since, self.since);
        push_number(&mut out, Tok::Count, self.count);
        push_number(&mut out, Tok::Block, self.block_ms);
        if let Some(set) = self.types {
            let named = Event::ALL.iter().filter(|e| set & e.bit() != 0);
            let words: Vec<_> = named.map(|e| e.word()).collect();
            push_bytes(&mut out, Tok::Types, Some(words.join(",").as_bytes()));
        }
        if self.values {
            push_word(&mut out, Tok::Values);
        }
        push_bytes(&mut out, Tok::NotBy, self.not_by.as_deref());
        out
    }
}

/// MAOS.REIGN cursor: sent by masters and written to the AOF.
pub const REIGN: CommandSpec = CommandSpec {
    name: "MAOS.REIGN",
    summary: "Says from where in the change log on another node makes the changes; for replicas and the AOF only",
    complexity: "O(1)",
    since: "0.1.0",
    arity: 2,
    flags: "write",
    acl: "write dangerous admin",
    keys: Keys::None,
    args: &[Arg::new("cursor", ArgKind::Cursor)],
    options: &[],
    reply: "1.",
    refusals: &[],
    examples: "",
    internal: true,
};

/// MAOS.LEAVES key: sent by masters and written to the AOF.
pub const LEAVES: CommandSpec = CommandSpec {
    name: "MAOS.LEAVES",
    summary:
        "Says that a key which is removed next goes on elsewhere; for replicas and the AOF only",
    args: &[Arg::new("key", ArgKind::KeyLike)],
    ..REIGN
};

/// The reply of MAOS.WATCH.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchReply<'a> {
    /// Whoever goes on from here misses nothing.
    pub cursor: Mark,
    /// What happened, oldest first.
    pub events: Vec<EventReply<'a>>,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventReply<'a> {
    /// What happened.
    pub event: Event,
    /// To which key; `None`: to all.
    pub key: Option<Bytes<'a>>,
    /// The version that it made; of what makes none the number of the event. Those of a key rise.
    pub version: Stamp,
    /// The version before; [`Stamp::NONE`] where there was none.
    pub previous: Stamp,
    /// The ACL user who did it, where that is known.
    pub author: Option<Bytes<'a>>,
    /// The agent who did it.
    pub agent: Option<Bytes<'a>>,
    /// With `VALUES`, the value that it made.
    pub value: Option<Kept<'a>>,
}

/// What is there still of the value that an event made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept<'a> {
    /// It made none.
    None,
    /// It is in no history any more.
    Gone,
    /// This.
    Value(Bytes<'a>),
}

impl Reply for EventReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.map(if self.value.is_some() { 8 } else { 6 });
        field(to, "type").bulk(self.event.word().as_bytes());
        field(to, "key").maybe(self.key.as_deref());
        field(to, "version").int(self.version.as_i64());
        field(to, "previous").int(self.previous.as_i64());
        field(to, "author").maybe(self.author.as_deref());
        field(to, "agent").maybe(self.agent.as_deref());
        if let Some(kept) = &self.value {
            let value = match kept {
                Kept::Value(value) => Some(&**value),
                Kept::None | Kept::Gone => None,
            };
            field(to, "value").maybe(value);
            field(to, "gone").int(i64::from(*kept == Kept::Gone));
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut f = value.fields()?;
        let word = required(f.take("type"))?;
        let (kept, gone) = (f.take("value").bytes()?, f.take("gone"));
        Ok(EventReply {
            event: Event::from_word(&word).ok_or(BadShape("an event of an unknown type"))?,
            key: f.take("key").bytes()?,
            version: stamp(f.take("version"))?,
            previous: stamp(f.take("previous"))?,
            author: f.take("author").bytes()?,
            agent: f.take("agent").bytes()?,
            value: match (kept, gone) {
                (_, Value::Null) => None,
                (Some(value), _) => Some(Kept::Value(value)),
                (None, gone) if count(gone.clone())? > 0 => Some(Kept::Gone),
                (None, _) => Some(Kept::None),
            },
        })
    }
}

impl Reply for WatchReply<'_> {
    fn emit(&self, to: &mut impl Sink) {
        to.array(2);
        to.bulk(self.cursor.to_string().as_bytes());
        to.array(self.events.len());
        self.events.iter().for_each(|event| event.emit(to));
    }

    fn decode(value: Value) -> Decoded<Self> {
        let [cursor, events]: [Value; 2] = value
            .items()?
            .try_into()
            .map_err(|_| BadShape("a cursor and events were expected"))?;
        let events = events.items()?.into_iter().map(EventReply::decode);
        Ok(WatchReply {
            cursor: Mark::parse(&required(cursor)?).ok_or(BadShape("a cursor was expected"))?,
            events: events.collect::<Decoded<_>>()?,
        })
    }
}
