//! A transaction in one request, and its reply.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::reply::{required, stamp, BadShape, Bytes, Decoded, Reply, Sink, Value};
use super::spec::*;
use super::state::{Expire, WriteOptions};
use super::{number, push_bytes, push_number, push_word, Request};
use crate::config::{OPERATIONS_MAX, TXN_KEYS_MAX};
use crate::refusal::Quoted;
use crate::{Code, Refusal, Stamp};

/// What a condition says about its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test<'a> {
    /// Its current version is this one; [`Stamp::NONE`]: it has no live value.
    Version(Stamp),
    /// It has no live value.
    Absent,
    /// It has a live value.
    Exists,
    /// Its value is this one, byte for byte.
    Value(&'a [u8]),
    /// The token of a present holder of its lock.
    Token(Stamp),
}

/// A condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition<'a> {
    /// The place of its key among the keys.
    pub key: usize,
    /// What it says.
    pub test: Test<'a>,
}

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action<'a> {
    /// Writes this value.
    Set(&'a [u8], Expire),
    /// Leaves a tombstone.
    Del,
    /// Applies a merge patch.
    Patch(&'a [u8]),
    /// Adds to a number.
    IncrBy {
        /// What is added.
        delta: &'a str,
        /// Where in a JSON value; `None`: the whole value is the number.
        path: Option<&'a str>,
        /// What the sum must not be below.
        min: Option<&'a str>,
        /// What the sum must not be above.
        max: Option<&'a str>,
    },
    /// Reads the value.
    Get,
}

impl Action<'_> {
    /// The word on the wire.
    pub const fn tok(&self) -> Tok {
        match self {
            Action::Set(..) => Tok::Set,
            Action::Del => Tok::Del,
            Action::Patch(_) => Tok::Patch,
            Action::IncrBy { .. } => Tok::IncrBy,
            Action::Get => Tok::Get,
        }
    }
}

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation<'a> {
    /// The place of its key among the keys.
    pub key: usize,
    /// What it does.
    pub action: Action<'a>,
}

/// MAOS.TXN
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Txn<'a> {
    /// The keys.
    pub keys: Vec<&'a [u8]>,
    /// `IF`: all of these must hold.
    pub conditions: Vec<Condition<'a>>,
    /// `THEN`: what is done, in this order.
    pub then: Vec<Operation<'a>>,
    /// `ELSE`: what is done where a condition does not hold.
    pub otherwise: Vec<Operation<'a>>,
    /// The options; neither an expiry nor `if_version` is used.
    pub options: WriteOptions<'a>,
}

const AGAIN: Arg = Arg::new("key", ArgKind::KeyAgain);

const CONDITION: &[Arg] = &[
    AGAIN,
    Arg::new(
        "test",
        ArgKind::OneOf(&[
            Arg::option(Tok::Version, "version", ArgKind::Version, "this is its version; 0: it has no live value").needed(),
            Arg::option(Tok::Absent, "absent", ArgKind::Word, "it has no live value").needed(),
            Arg::option(Tok::Exists, "exists", ArgKind::Word, "it has a live value").needed(),
            Arg::option(Tok::Value, "value", ArgKind::Value, "this is its value").needed(),
            Arg::option(Tok::Token, "token", ArgKind::Token, "a present holder of its lock has this token, which then also lets the key be written").needed(),
        ]),
    ),
];

const OPERATION: ArgKind = ArgKind::OneOf(&[
    Arg::option(
        Tok::Set,
        "set",
        ArgKind::Block(&[
            AGAIN,
            VALUE,
            Arg::new("expiry", ArgKind::OneOf(EXPIRY)).maybe(),
        ]),
        "writes a value, as MAOS.SET does",
    )
    .needed(),
    Arg::option(
        Tok::Del,
        "key",
        ArgKind::KeyAgain,
        "deletes, as MAOS.DEL does",
    )
    .needed(),
    Arg::option(
        Tok::Patch,
        "patch",
        ArgKind::Block(&[AGAIN, Arg::new("merge-patch", ArgKind::Patch)]),
        "applies a merge patch, as MAOS.PATCH does",
    )
    .needed(),
    Arg::option(
        Tok::IncrBy,
        "incrby",
        ArgKind::Block(&[
            AGAIN,
            Arg::new("delta", ArgKind::Number),
            Arg::option(Tok::Path, "json-pointer", ArgKind::Pointer, ""),
            Arg::option(Tok::Min, "number", ArgKind::Number, ""),
            Arg::option(Tok::Max, "number", ArgKind::Number, ""),
        ]),
        "adds to a number, as MAOS.INCRBY does",
    )
    .needed(),
    Arg::option(
        Tok::Get,
        "key",
        ArgKind::KeyAgain,
        "reads, as MAOS.GET does",
    )
    .needed(),
]);

const EXPIRY_TOKS: [Tok; 5] = [Tok::Ex, Tok::Px, Tok::ExAt, Tok::PxAt, Tok::KeepTtl];
const TESTS: [Tok; 5] = [
    Tok::Version,
    Tok::Absent,
    Tok::Exists,
    Tok::Value,
    Tok::Token,
];
const ACTIONS: [Tok; 5] = [Tok::Set, Tok::Del, Tok::Patch, Tok::IncrBy, Tok::Get];

impl<'a> Request<'a> for Txn<'a> {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "MAOS.TXN",
        summary: "Writes and reads several keys in one step, if conditions hold",
        complexity: "O(N) for N conditions and operations, and what each of them takes by itself",
        since: "0.1.0",
        arity: -6,
        flags: "write deny-oom",
        acl: "write",
        keys: Keys::Counted {
            step: 1,
            access: Access::ReadWrite,
        },
        args: &[NUMKEYS, KEY.many()],
        options: &[
            &[
                Arg::option(Tok::If, "condition", ArgKind::Block(CONDITION), "must hold for THEN to be done").many(),
                Arg::option(Tok::Then, "operation", OPERATION, "is done if all conditions hold")
                    .many()
                    .needed(),
                Arg::option(Tok::Else, "operation", OPERATION, "is done if one does not").many(),
            ],
            ORIGIN_OPTIONS,
            MANY_OPTIONS,
        ],
        reply: "`[1, version, [reply ...]]`, or `[0, version, [reply of ELSE ...]]`; the version is that of all keys written, 0 if none was. The replies are those of the commands by themselves: a version (SET, PATCH, DEL; 0 for a DEL that finds nothing), `[version, number]` (INCRBY), the value or null (GET). Each operation sees what those before it did. All of it or nothing: a refusal in any operation leaves every key as it was, and says which operation it was. A key that is locked needs a token only where it is written. At most 128 operations, 1,024 keys and 1,024 conditions. REQID goes with an ELSE that only reads; a repetition is answered from the versions that were written, so of a key that is touched several times its replies are those of the end.",
        refusals: &[Code::NotJson, Code::Limit, Code::TooBig, Code::Quota, Code::NotFound],
        examples: r#"
> MAOS.SET app:{t}:task '{"owner":"a","state":"open"}'
< $open
> MAOS.TXN 2 app:{t}:task app:{t}:moves IF app:{t}:task VERSION $open THEN PATCH app:{t}:task '{"owner":"b"}' THEN INCRBY app:{t}:moves 1 ELSE GET app:{t}:task BY a
< [1, $moved, [$moved, [$moved, '1']]]
> MAOS.TXN 2 app:{t}:task app:{t}:moves IF app:{t}:task VERSION $open THEN PATCH app:{t}:task '{"owner":"c"}' THEN INCRBY app:{t}:moves 1 ELSE GET app:{t}:task
< [0, 0, ['{"owner":"b","state":"open"}']]
> MAOS.TXN 2 app:{t}:task app:{t}:moves THEN SET app:{t}:task done THEN INCRBY app:{t}:moves 1 MAX 1
< !LIMIT THEN 2 (INCRBY 'app:{t}:moves'): 1 + 1 is 2, beyond MAX 1
> MAOS.GET app:{t}:task
< '{"owner":"b","state":"open"}'
"#,
        internal: false,
    };

    fn parse(args: &[&'a [u8]]) -> Result<Self, Refusal> {
        let c = &mut Cursor::new(Self::RULES, args);
        let count = c.numkeys(1)?;
        if count > TXN_KEYS_MAX {
            let text = format!("{count} keys in one transaction, at most {TXN_KEYS_MAX} are taken");
            return Err(Refusal::new(Code::Limit, text));
        }
        let mut txn = Txn {
            keys: (0..count).map(|_| c.bytes()).collect::<Result<_, _>>()?,
            ..Txn::default()
        };
        let places: HashMap<&[u8], usize> = match count {
            0..=8 => HashMap::new(),
            _ => txn.keys.iter().copied().zip(0..).collect(),
        };
        while let Some(tok) = c.option()? {
            let keys = Named {
                keys: &txn.keys,
                places: &places,
            };
            match tok {
                Tok::If => {
                    let condition = condition(c, &keys)?;
                    txn.conditions.push(condition);
                }
                Tok::Then | Tok::Else => {
                    let operation = operation(c, &keys)?;
                    match tok {
                        Tok::Then => txn.then.push(operation),
                        _ => txn.otherwise.push(operation),
                    }
                }
                Tok::By | Tok::Meta | Tok::ReqId | Tok::Token | Tok::Fence | Tok::Partition => {
                    txn.options.take(tok, c)?;
                }
                tok => return Err(c.bad(format!("{} does not belong here", tok.word()))),
            }
            bounded(&txn)?;
        }
        if txn.then.is_empty() {
            return Err(c.bad("there is no THEN".into()));
        }
        Ok(txn)
    }

    fn encode(&self) -> Vec<Vec<u8>> {
        let mut out = vec![number(self.keys.len())];
        out.extend(self.keys.iter().map(|k| k.to_vec()));
        for condition in &self.conditions {
            push_bytes(&mut out, Tok::If, Some(self.keys[condition.key]));
            match condition.test {
                Test::Version(v) => push_number(&mut out, Tok::Version, Some(v)),
                Test::Absent => push_word(&mut out, Tok::Absent),
                Test::Exists => push_word(&mut out, Tok::Exists),
                Test::Value(v) => push_bytes(&mut out, Tok::Value, Some(v)),
                Test::Token(n) => push_number(&mut out, Tok::Token, Some(n)),
            }
        }
        for (tok, operations) in [(Tok::Then, &self.then), (Tok::Else, &self.otherwise)] {
            for operation in operations {
                push_word(&mut out, tok);
                let key = self.keys[operation.key];
                push_bytes(&mut out, operation.action.tok(), Some(key));
                match operation.action {
                    Action::Set(value, expire) => {
                        out.push(value.to_vec());
                        expire.encode(&mut out);
                    }
                    Action::Patch(patch) => out.push(patch.to_vec()),
                    Action::IncrBy {
                        delta,
                        path,
                        min,
                        max,
                    } => {
                        out.push(number(delta));
                        for (tok, text) in [(Tok::Path, path), (Tok::Min, min), (Tok::Max, max)] {
                            push_bytes(&mut out, tok, text.map(str::as_bytes));
                        }
                    }
                    Action::Del | Action::Get => {}
                }
            }
        }
        self.options.encode(&mut out);
        out
    }
}

fn bounded(txn: &Txn<'_>) -> Result<(), Refusal> {
    let operations = txn.then.len() + txn.otherwise.len();
    let text = match (operations, txn.conditions.len()) {
        (n, _) if n > OPERATIONS_MAX => {
            format!("more than {OPERATIONS_MAX} operations in one transaction")
        }
        (_, n) if n > TXN_KEYS_MAX => {
            format!("more than {TXN_KEYS_MAX} conditions in one transaction")
        }
        _ => return Ok(()),
    };
    Err(Refusal::new(Code::Limit, text))
}

/// The keys that were named before.
struct Named<'k, 'a> {
    keys: &'k [&'a [u8]],
    /// Where each is; empty where they are few.
    places: &'k HashMap<&'a [u8], usize>,
}

impl Named<'_, '_> {
    fn take(&self, c: &mut Cursor<'_, '_>) -> Result<usize, Refusal> {
        let key = c.bytes()?;
        let place = match self.places.is_empty() {
            true => self.keys.iter().position(|k| *k == key),
            false => self.places.get(key).copied(),
        };
        place.ok_or_else(|| {
            let (key, n) = (Quoted(key), self.keys.len());
            c.bad(format!(
                "{key} is not among the {n} keys named at the beginning"
            ))
        })
    }
}

fn condition<'a>(c: &mut Cursor<'_, 'a>, keys: &Named<'_, 'a>) -> Result<Condition<'a>, Refusal> {
    let key = keys.take(c)?;
    let test = match c.word("what IF asks", &TESTS)? {
        Tok::Version => Test::Version(c.version()?),
        Tok::Absent => Test::Absent,
        Tok::Exists => Test::Exists,
        Tok::Value => Test::Value(c.bytes()?),
        _ => Test::Token(c.token()?),
    };
    Ok(Condition { key, test })
}

fn operation<'a>(c: &mut Cursor<'_, 'a>, keys: &Named<'_, 'a>) -> Result<Operation<'a>, Refusal> {
    let tok = c.word("an operation", &ACTIONS)?;
    let key = keys.take(c)?;
    let action = match tok {
        Tok::Set => {
            let value = c.bytes()?;
            let expire = match c.word_if(&EXPIRY_TOKS) {
                None => Expire::Unsaid,
                Some(tok) => Expire::take(tok, c)?,
            };
            Action::Set(value, expire)
        }
        Tok::Del => Action::Del,
        Tok::Patch => Action::Patch(c.bytes()?),
        Tok::IncrBy => {
            let delta = c.text("the delta")?;
            let (mut path, mut min, mut max) = (None, None, None);
            while let Some(tok) = c.word_if(&[Tok::Path, Tok::Min, Tok::Max]) {
                let place = match tok {
                    Tok::Path => &mut path,
                    Tok::Min => &mut min,
                    _ => &mut max,
                };
                if place
                    .replace(c.text("what follows PATH, MIN or MAX")?)
                    .is_some()
                {
                    return Err(c.bad(format!("{} is given twice", tok.word())));
                }
            }
            Action::IncrBy {
                delta,
                path,
                min,
                max,
            }
        }
        _ => Action::Get,
    };
    Ok(Operation { key, action })
}

/// What came of one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// Of SET, DEL, PATCH: the version; [`Stamp::NONE`] if a deletion found nothing to delete.
    Version(Stamp),
    /// Of INCRBY: the version, and the number now.
    Number(Stamp, Bytes<'a>),
    /// Of GET: the value, if there is one.
    Value(Option<Bytes<'a>>),
}

/// The reply of MAOS.TXN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnReply<'a> {
    /// Whether the conditions held.
    pub held: bool,
    /// The version of all keys written; [`Stamp::NONE`] if none was.
    pub version: Stamp,
    /// One for each operation that was done.
    pub replies: Vec<Outcome<'a>>,
}

impl Reply for Outcome<'_> {
    fn emit(&self, to: &mut impl Sink) {
        match self {
            Outcome::Version(version) => to.int(version.as_i64()),
            Outcome::Number(version, number) => {
                to.array(2);
                to.int(version.as_i64());
                to.bulk(number);
            }
            Outcome::Value(value) => to.maybe(value.as_deref()),
        }
    }

    fn decode(value: Value) -> Decoded<Self> {
        Ok(match value {
            Value::Int(_) => Outcome::Version(stamp(value)?),
            Value::Array(items) => {
                let Ok([version, number]) = <[Value; 2]>::try_from(items) else {
                    return Err(BadShape("a version and a number were expected"));
                };
                Outcome::Number(stamp(version)?, required(number)?)
            }
            other => Outcome::Value(other.bytes()?),
        })
    }
}

impl Reply for TxnReply<'_> {
    fn is_lost_race(&self) -> bool {
        !self.held
    }

    fn emit(&self, to: &mut impl Sink) {
        to.array(3);
        to.int(i64::from(self.held));
        to.int(self.version.as_i64());
        to.array(self.replies.len());
        self.replies.iter().for_each(|reply| reply.emit(to));
    }

    fn decode(value: Value) -> Decoded<Self> {
        let Ok([held, version, replies]) = <[Value; 3]>::try_from(value.items()?) else {
            return Err(BadShape("three parts were expected"));
        };
        Ok(TxnReply {
            held: held.int()? == 1,
            version: stamp(version)?,
            replies: replies
                .items()?
                .into_iter()
                .map(Outcome::decode)
                .collect::<Decoded<_>>()?,
        })
    }
}
