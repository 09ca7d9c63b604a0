//! Several keys in one step.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::error::shown;
use crate::value::from_json;
use crate::{wire, Client, Error, IncrementOptions, ManyOptions, SetOptions, Version};

/// One operation of a [`Transaction`].
#[derive(Clone, Debug)]
pub struct Operation {
    key: Vec<u8>,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Set(Vec<u8>, wire::Expire),
    Del,
    Patch(Vec<u8>),
    IncrBy(String, Box<IncrementOptions>),
    Get,
}

impl Operation {
    fn new(key: impl AsRef<[u8]>, action: Action) -> Operation {
        let key = key.as_ref().to_vec();
        Operation { key, action }
    }

    /// Writes a value. Clears the expiry.
    pub fn set(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Operation {
        Operation::set_with(key, value, &SetOptions::new())
    }

    /// Writes a value with the expiry that the options say. Agent, metadata, tokens and the rest are those of the
    /// [transaction](Transaction::options).
    pub fn set_with(
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        options: &SetOptions,
    ) -> Operation {
        let value = value.as_ref().to_vec();
        Operation::new(key, Action::Set(value, options.expire()))
    }

    /// Writes a value as JSON. Clears the expiry.
    ///
    /// # Errors
    /// [`Error::Encode`] if it cannot be written as JSON.
    pub fn set_json(key: impl AsRef<[u8]>, value: &impl Serialize) -> Result<Operation, Error> {
        let value = serde_json::to_vec(value).map_err(Error::Encode)?;
        Ok(Operation::set(key, value))
    }

    /// Deletes a value; its history stays.
    pub fn del(key: impl AsRef<[u8]>) -> Operation {
        Operation::new(key, Action::Del)
    }

    /// Changes parts of a JSON value by a merge patch (RFC 7396).
    ///
    /// # Errors
    /// [`Error::Encode`] if it cannot be written as JSON.
    pub fn patch(key: impl AsRef<[u8]>, patch: &impl Serialize) -> Result<Operation, Error> {
        let patch = serde_json::to_vec(patch).map_err(Error::Encode)?;
        Ok(Operation::new(key, Action::Patch(patch)))
    }

    /// Changes parts of a JSON value by the text of a merge patch, sent as it is.
    pub fn patch_text(key: impl AsRef<[u8]>, patch: impl AsRef<[u8]>) -> Operation {
        Operation::new(key, Action::Patch(patch.as_ref().to_vec()))
    }

    /// Adds to a number.
    pub fn increment(key: impl AsRef<[u8]>, delta: impl Display) -> Operation {
        Operation::increment_with(key, delta, IncrementOptions::new())
    }

    /// Adds to a number at a place and within bounds. The options of the write are those of the
    /// [transaction](Transaction::options).
    pub fn increment_with(
        key: impl AsRef<[u8]>,
        delta: impl Display,
        options: IncrementOptions,
    ) -> Operation {
        Operation::new(key, Action::IncrBy(delta.to_string(), Box::new(options)))
    }

    /// Reads a value.
    pub fn get(key: impl AsRef<[u8]>) -> Operation {
        Operation::new(key, Action::Get)
    }
}

#[derive(Clone, Debug)]
enum Test {
    Version(Version),
    Absent,
    Exists,
    Value(Vec<u8>),
    Token(Version),
}

/// Operations on several keys that are done in one step if all conditions hold, or else other ones. Each sees
/// what those before it did. A transaction names its keys by using them; in a cluster they must share a hash
/// tag (`{...}`).
///
/// ```no_run
/// # async fn doc(client: maos_client::Client, seen: maos_client::Version) -> Result<(), maos_client::Error> {
/// use maos_client::{Operation, Transaction};
///
/// let (task, moves) = ("{shop:42}:task", "{shop:42}:moves");
/// let hand_over = Transaction::new(Operation::patch(task, &serde_json::json!({"owner": "worker-2"}))?)
///     .and(Operation::increment(moves, 1))
///     .if_version(task, seen)
///     .or_else(Operation::get(task))
///     .by("worker-1");
/// let done = client.transact(&hand_over).await?;
/// if !done.held {
///     println!("it is now {:?}", done.value::<serde_json::Value>(0)?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Transaction {
    conditions: Vec<(Vec<u8>, Test)>,
    then: Vec<Operation>,
    otherwise: Vec<Operation>,
    options: ManyOptions,
}

impl Transaction {
    /// Does this.
    pub fn new(first: Operation) -> Transaction {
        Transaction {
            conditions: vec![],
            then: vec![first],
            otherwise: vec![],
            options: ManyOptions::new(),
        }
    }

    /// And then this.
    pub fn and(mut self, next: Operation) -> Transaction {
        self.then.push(next);
        self
    }

    /// Where a condition does not hold, this instead; said again, this after it.
    pub fn or_else(mut self, next: Operation) -> Transaction {
        self.otherwise.push(next);
        self
    }

    fn condition(mut self, key: impl AsRef<[u8]>, test: Test) -> Transaction {
        self.conditions.push((key.as_ref().to_vec(), test));
        self
    }

    /// If this is the key's version ([`Version::NONE`]: if it has no live value).
    pub fn if_version(self, key: impl AsRef<[u8]>, version: Version) -> Transaction {
        self.condition(key, Test::Version(version))
    }

    /// If the key has no live value.
    pub fn if_absent(self, key: impl AsRef<[u8]>) -> Transaction {
        self.condition(key, Test::Absent)
    }

    /// If the key has a live value.
    pub fn if_exists(self, key: impl AsRef<[u8]>) -> Transaction {
        self.condition(key, Test::Exists)
    }

    /// If this is the key's value, byte for byte.
    pub fn if_value(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Transaction {
        self.condition(key, Test::Value(value.as_ref().to_vec()))
    }

    /// If this is the token of a present holder of the key's lock; it then also lets the key be written.
    pub fn if_token(self, key: impl AsRef<[u8]>, token: Version) -> Transaction {
        self.condition(key, Test::Token(token))
    }

    /// Who writes, why, and with which tokens.
    pub fn options(mut self, options: ManyOptions) -> Transaction {
        self.options = options;
        self
    }

    /// The agent that writes.
    pub fn by(mut self, agent: impl Into<String>) -> Transaction {
        self.options = self.options.by(agent);
        self
    }

    /// The partition that all keys written are charged to from now on.
    pub fn partition(mut self, name: impl AsRef<[u8]>) -> Transaction {
        self.options = self.options.partition(name);
        self
    }
}

/// The keys of a transaction, each once, and where each is.
#[derive(Default)]
struct Keys<'t>(Vec<&'t [u8]>);

impl<'t> Keys<'t> {
    fn place(&mut self, key: &'t [u8]) -> usize {
        let known = self.0.iter().position(|k| *k == key);
        known.unwrap_or_else(|| {
            self.0.push(key);
            self.0.len() - 1
        })
    }

    fn condition(&mut self, (key, test): &'t (Vec<u8>, Test)) -> wire::Condition<'t> {
        wire::Condition {
            key: self.place(key),
            test: match test {
                Test::Version(version) => wire::Test::Version(*version),
                Test::Absent => wire::Test::Absent,
                Test::Exists => wire::Test::Exists,
                Test::Value(value) => wire::Test::Value(value),
                Test::Token(token) => wire::Test::Token(*token),
            },
        }
    }

    fn operation(&mut self, operation: &'t Operation) -> wire::Operation<'t> {
        wire::Operation {
            key: self.place(&operation.key),
            action: match &operation.action {
                Action::Set(value, expire) => wire::Action::Set(value, *expire),
                Action::Del => wire::Action::Del,
                Action::Patch(patch) => wire::Action::Patch(patch),
                Action::IncrBy(delta, options) => {
                    let [path, min, max] = options.bounds();
                    wire::Action::IncrBy {
                        delta,
                        path,
                        min,
                        max,
                    }
                }
                Action::Get => wire::Action::Get,
            },
        }
    }
}

/// What came of one operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperationReply {
    /// Of a write: the version; [`Version::NONE`] if a deletion found nothing to delete.
    Version(Version),
    /// Of an increment: the number now, as it is written.
    Number(String),
    /// Of a read: the value, if there is one.
    Value(Option<Vec<u8>>),
}

/// What came of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Transacted {
    /// Whether the conditions held.
    pub held: bool,
    /// The version of all keys written; [`Version::NONE`] if none was.
    pub version: Version,
    /// What came of the operations that were done, in their order.
    pub replies: Vec<OperationReply>,
}

impl Transacted {
    /// The value that the `n`-th operation (from 0) read, from JSON; `None` if there was none, or it read none.
    ///
    /// # Errors
    /// [`Error::Decode`] if it does not have the shape of `T`.
    pub fn value<T: DeserializeOwned>(&self, n: usize) -> Result<Option<T>, Error> {
        let what = format!("the value that operation {n} read");
        match self.replies.get(n) {
            Some(OperationReply::Value(Some(bytes))) => {
                from_json(&what, self.version, bytes).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The number that the `n`-th operation (from 0) made, as it is written; `None` if it was no increment.
    pub fn number(&self, n: usize) -> Option<&str> {
        match self.replies.get(n) {
            Some(OperationReply::Number(number)) => Some(number),
            _ => None,
        }
    }
}

impl Client {
    /// Does a transaction: all of it or nothing. It carries a request id, as every write does, so that it is
    /// repeated safely when a connection is lost; but one that may write either way does not, and is not repeated
    /// once it may have reached the server. A request id of the caller's own is refused for such a one (`ERR`).
    ///
    /// A repetition that the store recognises changes nothing, and is answered from the versions that were written: where
    /// a transaction touches one key several times, reads and numbers in between are then those of the end.
    ///
    /// # Errors
    /// The refusal of an operation, which it names, and which leaves every key as it was; `LIMIT` beyond 128
    /// operations or 1,024 keys; and as [`Client::call`]. Conditions that do not hold are no error.
    pub async fn transact(&self, transaction: &Transaction) -> Result<Transacted, Error> {
        let options = transaction.options.clone();
        let reads = |o: &Operation| matches!(o.action, Action::Get);
        let options = match transaction.otherwise.iter().all(reads) {
            true => options,
            false => options.without_fresh_request_id(),
        };
        let origin = options.settle(self.agent());
        let mut keys = Keys::default();
        let conditions = transaction.conditions.iter();
        let conditions = conditions.map(|c| keys.condition(c)).collect();
        let [then, otherwise] = [&transaction.then, &transaction.otherwise]
            .map(|side| side.iter().map(|o| keys.operation(o)).collect());
        let request = wire::Txn {
            keys: keys.0,
            conditions,
            then,
            otherwise,
            options: origin.wire(),
        };
        let reply = self.call(&request).await?;
        let part = |part| match part {
            wire::OperationOutcome::Version(version) => OperationReply::Version(version),
            wire::OperationOutcome::Number(_, number) => OperationReply::Number(shown(&number)),
            wire::OperationOutcome::Value(value) => {
                OperationReply::Value(value.map(|v| v.into_owned()))
            }
        };
        Ok(Transacted {
            held: reply.held,
            version: reply.version,
            replies: reply.replies.into_iter().map(part).collect(),
        })
    }
}
