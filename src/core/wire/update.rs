//! Requests that change a value where it is, and their replies.

use super::cursor::Cursor;
use super::reply::{required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value};
use super::spec::*;
use super::state::{Lost, WriteOptions, WriteReply};
use super::{number, push_bytes, push_number, push_word, Request};
use crate::config::FUNCTION_MAX;
use crate::{Code, Refusal, Stamp};

/// MAOS.PATCH
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The patch.
    pub patch: &'a [u8],
    /// `JSONPATCH`: a list of operations, not a merge patch.
    pub json_patch: bool,
    /// The options.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for Patch<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.PATCH",
        summary: "Changes parts of a JSON value",
        complexity: "O(N) for a value and a patch of N bytes; O(N*M) for M operations of a JSONPATCH over members and elements",
        since: "0.1.0",
        arity: -3,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[KEY, Arg::new("patch", ArgKind::Patch)],
        options: &[
            &[Arg::option(
                Tok::JsonPatch,
                "jsonpatch",
                ArgKind::Word,
                "the patch is a list of operations (RFC 6902), whose failing `test` is a lost race",
            )],
            ORIGIN_OPTIONS,
            CONDITION_OPTIONS,
            KEY_OPTIONS,
        ],
        reply: "As MAOS.SET; with JSONPATCH or IFVERSION `[1, version]`, or `[0, current-version, current-value, author, agent]`. The patch is a merge patch (RFC 7396): members take the place of those of the same name, null removes one. A key without a live value starts from `{}`. What is not touched stays as it is written, and so does the expiry unless another is given.",
        refusals: &[Code::NotJson, Code::NotFound, Code::Limit, Code::TooBig, Code::Quota],
        examples: r#"
> MAOS.SET app:doc:1 '{"title":"plan","tags":["a"],"owner":null}'
< $first
> MAOS.PATCH app:doc:1 '{"owner":"worker-1","title":null,"budget":{"tokens":1.50}}'
< $second
> MAOS.GET app:doc:1
< '{"tags":["a"],"owner":"worker-1","budget":{"tokens":1.50}}'
> MAOS.PATCH app:doc:1 '[{"op":"test","path":"/owner","value":"worker-1"},{"op":"add","path":"/tags/-","value":"b"}]' JSONPATCH
< [1, $third]
> MAOS.PATCH app:doc:1 '[{"op":"test","path":"/owner","value":"worker-2"},{"op":"remove","path":"/tags"}]' JSONPATCH
< [0, $third, '{"tags":["a","b"],"owner":"worker-1","budget":{"tokens":1.50}}', 'default', null]
> MAOS.PATCH app:doc:1 '[{"op":"remove","path":"/absent"}]' JSONPATCH
< !NOTFOUND
"#,
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut patch = Patch {
            key: c.bytes()?,
            patch: c.bytes()?,
            json_patch: false,
            options: WriteOptions::default(),
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::JsonPatch => patch.json_patch = true,
                tok => patch.options.take(tok, c)?,
            }
        }
        Ok(patch)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec(), self.patch.to_vec()];
        if self.json_patch {
            push_word(&mut out, Tok::JsonPatch);
        }
        self.options.encode(&mut out);
        out
    }
}

/// MAOS.INCRBY
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IncrBy<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What is added.
    pub delta: &'a str,
    /// `PATH`: where in a JSON value; `None`: the whole value is the number.
    pub path: Option<&'a str>,
    /// `MIN`: what the sum must not be below.
    pub min: Option<&'a str>,
    /// `MAX`: what the sum must not be above.
    pub max: Option<&'a str>,
    /// The options.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for IncrBy<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.INCRBY",
        summary: "Adds to a number, exactly and within bounds",
        complexity: "O(1) for a whole value, O(N) for one in a JSON value of N bytes",
        since: "0.1.0",
        arity: -3,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[KEY, Arg::new("delta", ArgKind::Number)],
        options: &[
            &[
                Arg::option(
                    Tok::Path,
                    "json-pointer",
                    ArgKind::Pointer,
                    "the number at this place of a JSON value (RFC 6901)",
                ),
                Arg::option(
                    Tok::Min,
                    "number",
                    ArgKind::Number,
                    "refuse a sum below this",
                ),
                Arg::option(
                    Tok::Max,
                    "number",
                    ArgKind::Number,
                    "refuse a sum above this",
                ),
            ],
            ORIGIN_OPTIONS,
            CONDITION_OPTIONS,
            KEY_OPTIONS,
        ],
        reply: "`[version, number]`, the number as text; with IFVERSION, if another write came first, `[0, current-version, current-value, author, agent]`. Integers have 64 bits, decimals 38 digits and 28 of them after the point; no digit is lost. A key, or a member, that is not there starts from 0, and objects are made on the way to it. LIMIT beyond MIN, MAX or 64 bits. The expiry stays unless another is given.",
        refusals: &[Code::NotJson, Code::Limit, Code::TooBig, Code::Quota, Code::NotFound],
        examples: r#"
> MAOS.INCRBY app:count:1 5
< [$first, '5']
> MAOS.INCRBY app:count:1 0.1
< [$second, '5.1']
> MAOS.SET app:budget:1 '{"team":"a","left":10}'
< $set
> MAOS.INCRBY app:budget:1 -7 PATH /left MIN 0
< [$spent, '3']
> MAOS.INCRBY app:budget:1 -7 PATH /left MIN 0
< !LIMIT 3 + -7 is -4, beyond MIN 0
> MAOS.GET app:budget:1
< '{"team":"a","left":3}'
"#,
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut incr = IncrBy {
            key: c.bytes()?,
            delta: c.text("the delta")?,
            path: None,
            min: None,
            max: None,
            options: WriteOptions::default(),
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Path => incr.path = Some(c.text("the JSON pointer of PATH")?),
                Tok::Min => incr.min = Some(c.text("the number of MIN")?),
                Tok::Max => incr.max = Some(c.text("the number of MAX")?),
                tok => incr.options.take(tok, c)?,
            }
        }
        Ok(incr)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec(), number(self.delta)];
        for (tok, text) in [
            (Tok::Path, self.path),
            (Tok::Min, self.min),
            (Tok::Max, self.max),
        ] {
            push_bytes(&mut out, tok, text.map(str::as_bytes));
        }
        self.options.encode(&mut out);
        out
    }
}

/// The reply of MAOS.INCRBY.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IncrReply<'a> {
    /// It was added: the version, and the number now.
    Applied(Stamp, Bytes<'a>),
    /// A conditional one that another write came before.
    Lost(Lost<'a>),
}

impl Reply for IncrReply<'_> {
    fn is_lost_race(&self) -> bool {
        matches!(self, IncrReply::Lost(_))
    }

    fn emit(&self, to: &mut impl Sink) {
        match self {
            IncrReply::Applied(version, number) => {
                to.array(2);
                to.int(version.as_i64());
                to.bulk(number);
            }
            IncrReply::Lost(lost) => WriteReply::Lost(lost.clone()).emit(to),
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let items = value.items()?;
        if items.len() == 2 {
            let mut items = items.into_iter();
            let mut next = || items.next().unwrap_or(Value::Null);
            let version = stamp(next())?;
            return Ok(IncrReply::Applied(version, required(next())?));
        }
        match WriteReply::decode(Value::Array(items))? {
            WriteReply::Lost(lost) => Ok(IncrReply::Lost(lost)),
            _ => Err(BadShape("a lost race was expected")),
        }
    }
}

/// How a merge is decided where another write came first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Strategy<'a> {
    /// The later write is refused.
    #[default]
    Reject,
    /// The one with the later time stands.
    Lww,
    /// The one that came first stands.
    Fww,
    /// Both changes are kept where they are of different parts.
    Merge,
    /// The Redis Function of this name says what becomes of them.
    Function(&'a [u8]),
}

const REJECT: Arg = Arg::option(
    Tok::Reject,
    "reject",
    ArgKind::Word,
    "the present value stands, and the reply says what it is",
);
const LWW: Arg = Arg::option(
    Tok::Lww,
    "lww",
    ArgKind::Word,
    "the value with the later time stands, the other one is in the history under it",
);
const FWW: Arg = Arg::option(
    Tok::Fww,
    "fww",
    ArgKind::Word,
    "the present value stands, and nothing is written",
);
const MERGE: Arg = Arg::option(
    Tok::Merge,
    "merge",
    ArgKind::Word,
    "a three-way merge against the base version in the history",
);
const FUNCTION: Arg = Arg::option(
    Tok::Function,
    "name",
    ArgKind::Name(FUNCTION_MAX),
    "a Redis Function with the flag no-writes is called with the key, and base, theirs and mine as JSON (base is null where there was none); what it returns is the value",
);

/// What stands after the word for a strategy.
pub(super) const STRATEGY: &[Arg] = &[
    REJECT.needed(),
    LWW.needed(),
    FWW.needed(),
    MERGE.needed(),
    FUNCTION.needed(),
];

impl Strategy<'_> {
    /// The words of all strategies, in the order of [`place`](Strategy::place).
    pub const WORDS: [Tok; 5] = [Tok::Reject, Tok::Lww, Tok::Fww, Tok::Merge, Tok::Function];

    /// Which one, as a place in [`WORDS`](Strategy::WORDS).
    pub const fn place(self) -> usize {
        match self {
            Strategy::Reject => 0,
            Strategy::Lww => 1,
            Strategy::Fww => 2,
            Strategy::Merge => 3,
            Strategy::Function(_) => 4,
        }
    }
}

/// MAOS.MERGE
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The version that the writer began with.
    pub base: Stamp,
    /// What the writer made of it.
    pub value: &'a [u8],
    /// `STRATEGY`; `None`: as the key's partition says.
    pub strategy: Option<Strategy<'a>>,
    /// `TS`: when the writer made it, in milliseconds of unix time; `None`: now.
    pub ts: Option<u64>,
    /// The options; `if_version` stays unused.
    pub options: WriteOptions<'a>,
}

impl<'a> Request<'a> for Merge<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.MERGE",
        summary: "Writes what was made of an older version, and merges it with what others wrote since",
        complexity: "O(N) for values of N bytes",
        since: "0.1.0",
        arity: -4,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::One(Access::ReadWrite),
        args: &[
            KEY,
            Arg::new("base-version", ArgKind::Version),
            VALUE,
        ],
        options: &[
            &[
                Arg::option(
                    Tok::Strategy,
                    "strategy",
                    ArgKind::OneOf(STRATEGY),
                    "what to do if another write came since; unless it is said, what the key's partition says, or REJECT",
                ),
                Arg::option(
                    Tok::Ts,
                    "unix-time-milliseconds",
                    ArgKind::UnixMillis,
                    "when this was made, which LWW compares; now unless it is said",
                ),
            ],
            ORIGIN_OPTIONS,
            KEY_OPTIONS,
        ],
        reply: "`[1, version, how]`, or `[0, current-version, current-value, author, agent, [JSON pointer ...]]`, the pointers being the smallest paths in conflict. *fast-forward*: nobody wrote since. *merged*: by a three-way merge, which keeps changes of different paths, takes equal ones for one (so count with MAOS.INCRBY), and merges arrays whose elements are objects with an `id` by it, others as one value; or by a function. *replaced*: the later time won (LWW). *kept*: the present value stands, because it came first (FWW), because it has all that was merged, or because it is later (LWW). BASEGONE if the base version is not in the history any more. The expiry stays unless another is given.",
        refusals: &[Code::BaseGone, Code::NotJson, Code::NotFound, Code::Limit, Code::TooBig, Code::Busy, Code::Quota],
        examples: r#"
> MAOS.SET app:plan:7 '{"steps":{"a":"open","b":"open"},"owner":"x"}'
< $base
> MAOS.MERGE app:plan:7 $base '{"steps":{"a":"done","b":"open"},"owner":"x"}' STRATEGY MERGE BY first
< [1, $one, 'fast-forward']
> MAOS.MERGE app:plan:7 $base '{"steps":{"a":"open","b":"done"},"owner":"y"}' STRATEGY MERGE BY second
< [1, $two, 'merged']
> MAOS.GET app:plan:7
< '{"steps":{"a":"done","b":"done"},"owner":"y"}'
> MAOS.MERGE app:plan:7 $base '{"steps":{"a":"lost","b":"open"},"owner":"x"}' STRATEGY MERGE BY third
< [0, $two, '{"steps":{"a":"done","b":"done"},"owner":"y"}', 'default', 'second', ['/steps/a']]
> MAOS.MERGE app:plan:7 $base '{}'
< [0, $two, '{"steps":{"a":"done","b":"done"},"owner":"y"}', 'default', 'second', []]
> MAOS.MERGE app:plan:7 $base '{}' STRATEGY FWW
< [1, $two, 'kept']
> MAOS.MERGE app:plan:7 $base '{"late":1}' STRATEGY LWW TS 1000
< [1, $kept, 'kept']
> MAOS.GET app:plan:7 VERSION -1
< '{"late":1}'
> MAOS.MERGE app:plan:7 $base '{"now":1}' STRATEGY LWW
< [1, $last, 'replaced']
"#,
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let mut merge = Merge {
            key: c.bytes()?,
            base: c.version()?,
            value: c.bytes()?,
            strategy: None,
            ts: None,
            options: WriteOptions::default(),
        };
        while let Some(tok) = c.option()? {
            match tok {
                Tok::Strategy => merge.strategy = Some(strategy(c)?),
                Tok::Ts => merge.ts = Some(c.unix_millis("TS")?),
                tok => merge.options.take(tok, c)?,
            }
        }
        Ok(merge)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![self.key.to_vec(), number(self.base), self.value.to_vec()];
        if let Some(strategy) = self.strategy {
            push_word(&mut out, Tok::Strategy);
            strategy.encode(&mut out);
        }
        push_number(&mut out, Tok::Ts, self.ts);
        self.options.encode(&mut out);
        out
    }
}

impl Strategy<'_> {
    pub(super) fn encode(self, out: &mut Vec<Vec<u8>>) {
        push_word(out, Strategy::WORDS[self.place()]);
        if let Strategy::Function(name) = self {
            out.push(name.to_vec());
        }
    }
}

pub(super) fn strategy<'a>(c: &mut Cursor<'_, 'a>) -> Result<Strategy<'a>, Refusal> {
    Ok(match c.word("the strategy", &Strategy::WORDS)? {
        Tok::Lww => Strategy::Lww,
        Tok::Fww => Strategy::Fww,
        Tok::Merge => Strategy::Merge,
        Tok::Function => Strategy::Function(c.name("the name of the function", FUNCTION_MAX)?),
        _ => Strategy::Reject,
    })
}

/// How a merge was decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Nobody had written since.
    FastForward,
    /// Both changes were kept.
    Merged,
    /// It took the place of an earlier write.
    Replaced,
    /// The present value stands.
    Kept,
}

impl How {
    /// Every way.
    pub const ALL: [How; 4] = [How::FastForward, How::Merged, How::Replaced, How::Kept];

    /// The word on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            How::FastForward => "fast-forward",
            How::Merged => "merged",
            How::Replaced => "replaced",
            How::Kept => "kept",
        }
    }
}

/// The reply of MAOS.MERGE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MergeReply<'a> {
    /// It was decided: the version now, and how.
    Applied(Stamp, How),
    /// It was not: what is there, and where the two conflict.
    Lost(Lost<'a>, Vec<String>),
}

impl Reply for MergeReply<'_> {
    fn is_lost_race(&self) -> bool {
        matches!(self, MergeReply::Lost(..))
    }

    fn is_resolved(&self) -> bool {
        matches!(self, MergeReply::Applied(_, how) if *how != How::FastForward)
    }

    fn emit(&self, to: &mut impl Sink) {
        match self {
            MergeReply::Applied(version, how) => {
                to.array(3);
                to.int(1);
                to.int(version.as_i64());
                to.bulk(how.word().as_bytes());
            }
            MergeReply::Lost(lost, paths) => {
                to.array(6);
                to.int(0);
                to.int(lost.version.as_i64());
                to.maybe(lost.value.as_deref());
                to.maybe(lost.author.as_deref());
                to.maybe(lost.agent.as_deref());
                to.array(paths.len());
                paths.iter().for_each(|path| to.bulk(path.as_bytes()));
            }
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        let mut items = value.items()?.into_iter();
        let mut next = || items.next().unwrap_or(Value::Null);
        if next().int()? == 1 {
            let version = stamp(next())?;
            let word = required(next())?;
            let mut known = How::ALL.into_iter();
            let how = known.find(|how| how.word().as_bytes() == &*word);
            return Ok(MergeReply::Applied(
                version,
                how.ok_or(BadShape("how it was merged"))?,
            ));
        }
        let lost = Lost {
            version: stamp(next())?,
            value: next().bytes()?,
            author: next().bytes()?,
            agent: next().bytes()?,
        };
        let path = |path| Ok(String::from_utf8_lossy(&required(path)?).into_owned());
        let paths = next().items()?.into_iter().map(path);
        Ok(MergeReply::Lost(lost, paths.collect::<Decoded<_>>()?))
    }
}
