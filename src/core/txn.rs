//! The decision of MAOS.TXN: conditions, and operations on several keys in one step.
//!
//! Operations are done one after the other on what the keys would hold; a refusal in any of them leaves it at
//! that. What comes out is at most one new version for each key, all with one stamp, in as many changes as
//! there are ways in which keys change: a tombstone, a value that keeps the expiry, one that clears it.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::change::{Change, Expiry, Kind, Write};
use crate::config::{Limits, REPLY_MAX};
use crate::record::Record;
use crate::refusal::Quoted;
use crate::state::{
    check_origin, check_value, drops, expiry, leaves, refuse_twice, stamp_over, version_of,
    written_before, Decision, Env, WriteCommand,
};
use crate::update::present;
use crate::wire::state::{Expire, WriteOptions};
use crate::wire::txn::{Action, Condition, Operation, Outcome, Test, Txn, TxnReply};
use crate::wire::update::{IncrBy, Patch};
use crate::{lock, Code, Refusal, Stamp};

/// What a key would hold.
enum Staged<'a> {
    /// What it holds.
    Untouched,
    /// A new value, and what becomes of its expiry.
    Value(Cow<'a, [u8]>, Expiry),
    /// Nothing.
    Gone,
}

/// The keys as they would be.
struct Stage<'t, 'a, 'r, 'e> {
    txn: &'t Txn<'a>,
    records: &'t [Option<&'r Record>],
    env: &'t Env<'e>,
    /// With the tokens that conditions have shown.
    options: WriteOptions<'a>,
    staged: Vec<Staged<'a>>,
    /// The stamp of all that is written.
    stamp: Stamp,
    /// How many bytes of values may still be read or taken apart.
    room: usize,
}

impl<'a> Stage<'_, 'a, '_, '_> {
    /// The value that the key would have.
    fn value(&self, key: usize) -> Option<Cow<'_, [u8]>> {
        match &self.staged[key] {
            Staged::Untouched => present(self.records[key]),
            Staged::Value(value, _) => Some(Cow::Borrowed(value)),
            Staged::Gone => None,
        }
    }

    /// The server does nothing else meanwhile: what is looked at has a bound together.
    fn look_at(&mut self, key: usize) -> Result<(), Refusal> {
        let len = self.value(key).map_or(0, |v| v.len());
        let left = self.room.checked_sub(len);
        self.room = left.ok_or_else(|| {
            let text = format!(
                "the values that one transaction reads, patches and counts in have more than {REPLY_MAX} bytes together; make it several"
            );
            Refusal::new(Code::Limit, text)
        })?;
        Ok(())
    }

    /// What becomes of the expiry of a key that is written: a plain write clears it unless it says otherwise.
    fn expiry(&self, key: usize, unsaid: Expiry, said: Expire) -> Result<Expiry, Refusal> {
        let keeps = matches!(
            (unsaid, said),
            (Expiry::Keep, Expire::Unsaid) | (_, Expire::Keep)
        );
        match &self.staged[key] {
            Staged::Value(_, before) if keeps => Ok(*before),
            Staged::Gone if keeps => Ok(Expiry::Clear),
            _ => {
                let (record, limits) = (self.records[key], self.limits(key));
                expiry(said, unsaid, record, limits, self.env)
            }
        }
    }

    fn limits(&self, key: usize) -> &Limits {
        self.env
            .limits(self.txn.keys[key], self.records[key], &self.options)
    }

    fn run(&mut self, operation: &Operation<'a>) -> Result<Outcome<'static>, Refusal> {
        let (key, most) = (operation.key, self.limits(operation.key).value_max);
        if operation.action != Action::Get {
            lock::permit_write(self.records[key], &self.options, self.env)?;
        }
        if !matches!(operation.action, Action::Set(..) | Action::Del) {
            self.look_at(key)?;
        }
        let name = self.txn.keys[key];
        let mut number = None;
        self.staged[key] = match operation.action {
            Action::Get => {
                let value = self.value(key).map(|v| Cow::Owned(v.into_owned()));
                return Ok(Outcome::Value(value));
            }
            Action::Del if self.value(key).is_none() => {
                return Ok(Outcome::Version(Stamp::NONE));
            }
            Action::Del => Staged::Gone,
            Action::Set(value, expire) => {
                check_value(value, self.limits(key))?;
                let expiry = self.expiry(key, Expiry::Clear, expire)?;
                Staged::Value(Cow::Borrowed(value), expiry)
            }
            Action::Patch(patch) => {
                let patch = Patch {
                    key: name,
                    patch,
                    json_patch: false,
                    options: WriteOptions::default(),
                };
                let value = patch.patched(self.value(key).as_deref(), most)?;
                let expiry = self.expiry(key, Expiry::Keep, Expire::Unsaid)?;
                Staged::Value(Cow::Owned(value.unwrap_or_default()), expiry)
            }
            Action::IncrBy { .. } => {
                let incr = increment(name, operation.action);
                let value = incr.added(self.value(key).as_deref(), most)?;
                number = incr.number_in(&value);
                let expiry = self.expiry(key, Expiry::Keep, Expire::Unsaid)?;
                Staged::Value(Cow::Owned(value), expiry)
            }
        };
        Ok(match number {
            None => Outcome::Version(self.stamp),
            Some(number) => Outcome::Number(self.stamp, Cow::Owned(number)),
        })
    }

    /// The changes that make it so.
    fn changes(&mut self) -> SmallVec<[Change<'a>; 2]> {
        let mut changes: SmallVec<[Change<'a>; 2]> = SmallVec::new();
        for (key, staged) in std::mem::take(&mut self.staged).into_iter().enumerate() {
            let record = self.records[key];
            let (kind, value, expiry) = match staged {
                Staged::Untouched => continue,
                Staged::Gone => (Kind::Delete, Cow::default(), leaves(record, self.env)),
                Staged::Value(value, expiry) => (Kind::Set, value, expiry),
            };
            let write = Write {
                key: self.txn.keys[key],
                value,
                drops: drops(record, self.limits(key), self.env),
                turn: None,
                home: None,
            };
            let alike = |c: &&mut Change<'a>| (c.kind, c.expiry) == (kind, expiry);
            match changes.iter_mut().find(alike) {
                Some(change) => change.writes.push(write),
                None => changes.push(Change {
                    kind,
                    stamp: self.stamp,
                    who: self.env.who.clone(),
                    meta: self.options.meta.map(Cow::Borrowed),
                    reqid: self.options.reqid,
                    time_ms: None,
                    expiry,
                    fence: self.options.fence,
                    writes: smallvec::smallvec![write],
                }),
            }
        }
        changes
    }
}

fn increment<'a>(key: &'a [u8], action: Action<'a>) -> IncrBy<'a> {
    let (delta, path, min, max) = match action {
        Action::IncrBy {
            delta,
            path,
            min,
            max,
        } => (delta, path, min, max),
        _ => ("0", None, None, None),
    };
    IncrBy {
        key,
        delta,
        path,
        min,
        max,
        options: WriteOptions::default(),
    }
}

impl<'a> Txn<'a> {
    fn holds(condition: &Condition<'_>, records: &[Option<&Record>], env: &Env<'_>) -> bool {
        let record = records[condition.key];
        match condition.test {
            Test::Version(version) => version_of(record) == version,
            Test::Absent => version_of(record) == Stamp::NONE,
            Test::Exists => version_of(record) != Stamp::NONE,
            Test::Value(value) => present(record).is_some_and(|v| *v == *value),
            Test::Token(token) => lock::holds(record, token, env.now_ms()),
        }
    }

    /// What a transaction that was done before replied, as far as the versions it wrote tell.
    fn replies(&self, done: Stamp, records: &[Option<&Record>]) -> TxnReply<'static> {
        let value = |key: usize| {
            let record = records[key]?;
            let place = record.partition_point(Stamp(done.0 + 1)).checked_sub(1)?;
            record.nth(place)?.value().map(Cow::into_owned)
        };
        let reply = |operation: &Operation<'a>| match operation.action {
            Action::Get => Outcome::Value(value(operation.key).map(Cow::Owned)),
            Action::IncrBy { .. } => {
                let incr = increment(self.keys[operation.key], operation.action);
                let number = value(operation.key).and_then(|v| incr.number_in(&v));
                Outcome::Number(done, Cow::Owned(number.unwrap_or_default()))
            }
            _ => Outcome::Version(done),
        };
        TxnReply {
            held: true,
            version: done,
            replies: self.then.iter().map(reply).collect(),
        }
    }
}

impl<'a> WriteCommand<'a> for Txn<'a> {
    type Reply<'r> = TxnReply<'r>;

    fn by(&self) -> Option<&'a [u8]> {
        self.options.by
    }

    fn partition(&self) -> Option<&'a [u8]> {
        self.options.partition
    }

    fn is_conditional(&self) -> bool {
        true
    }

    fn decide<'r>(
        &self,
        records: &[Option<&'r Record>],
        env: &Env<'_>,
    ) -> Result<Decision<'a, TxnReply<'r>>, Refusal> {
        let only_reads = |o: &Operation<'_>| o.action == Action::Get;
        if self.options.reqid.is_some() && !self.otherwise.iter().all(only_reads) {
            return Err(Refusal::fixed(
                Code::Err,
                "MAOS.TXN: REQID goes with an ELSE that only reads: of one that writes a retry could not tell which was done",
            ));
        }
        let done = records
            .iter()
            .find_map(|r| written_before(&self.options, *r));
        if let Some(stamp) = done {
            return Ok(Decision::Answer(self.replies(stamp, records)));
        }
        refuse_twice(|n| self.keys[n], records)?;
        lock::check_tokens(records, &self.options, env)?;
        check_origin(&self.options, env.who)?;
        let mut options = self.options.clone();
        let mut held = true;
        for condition in &self.conditions {
            match (Txn::holds(condition, records, env), condition.test) {
                (true, Test::Token(token)) => options.tokens.push(token),
                (true, _) => {}
                (false, _) => held = false,
            }
        }
        let (word, operations) = match held {
            true => ("THEN", &self.then),
            false => ("ELSE", &self.otherwise),
        };
        let written = operations.iter().filter(|o| o.action != Action::Get);
        let written: SmallVec<[Option<&Record>; 8]> = written.map(|o| records[o.key]).collect();
        let mut stage = Stage {
            txn: self,
            records,
            env,
            options,
            staged: records.iter().map(|_| Staged::Untouched).collect(),
            stamp: stamp_over(&written, env)?,
            room: REPLY_MAX,
        };
        let mut replies = Vec::with_capacity(operations.len());
        for (n, operation) in operations.iter().enumerate() {
            let reply = stage.run(operation).map_err(|refusal| {
                let (what, key) = (
                    operation.action.tok().word(),
                    Quoted(self.keys[operation.key]),
                );
                let text = format!("{word} {} ({what} {key}): {}", n + 1, refusal.text);
                Refusal::new(refusal.code, text)
            })?;
            replies.push(reply);
        }
        let changes = stage.changes();
        let reply = TxnReply {
            held,
            version: changes.first().map_or(Stamp::NONE, |c| c.stamp),
            replies,
        };
        Ok(match changes.is_empty() {
            true => Decision::Answer(reply),
            false => Decision::Commit(changes, reply),
        })
    }

    /// Never asked for: what a transaction does it says itself.
    fn committed(&self, change: &Change<'_>) -> TxnReply<'static> {
        TxnReply {
            held: true,
            version: change.stamp,
            replies: vec![],
        }
    }
}
