//! Requests that change a value where it is, and their replies.

use super::cursor::Cursor;
use super::reply::{required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value};
use super::spec::*;
use super::state::{Lost, WriteOptions, WriteReply};
use super::{number, push_bytes, push_word, Request};
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
        refusals: &[Code::NotJson, Code::NotFound, Code::Limit, Code::TooBig],
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
        let c = &mut Cursor::new(Self::SPEC, args);
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
        refusals: &[Code::NotJson, Code::Limit, Code::TooBig],
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
        let c = &mut Cursor::new(Self::SPEC, args);
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
