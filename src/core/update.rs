//! The decisions of commands that change a value where it is: patches, and numbers that are added to.
//!
//! What is decided is the whole new value: what travels is no patch, and nothing is computed again elsewhere.

use std::borrow::Cow;

use crate::change::{Change, Expiry, Kind};
use crate::json::decimal::Decimal;
use crate::json::node::{Work, EMPTY};
use crate::json::patch::{finished, increment, json_patch, merge_patch, sum, Patched};
use crate::json::{self, Node, Pointer};
use crate::record::Record;
use crate::refusal::Quoted;
use crate::state::{live, lost, meet, write_one, written, Decision, Env, Met, WriteCommand};
use crate::wire::state::WriteReply;
use crate::wire::update::{IncrBy, IncrReply, Patch};
use crate::{Code, Refusal};

/// What errors call the value of the key.
pub(crate) const VALUE: &str = "the value of the key";

/// The live value of a key.
pub(crate) fn present(record: Option<&Record>) -> Option<Cow<'_, [u8]>> {
    live(record).and_then(|v| v.value())
}

impl Patch<'_> {
    /// Whether it may lose a race.
    fn may_lose(&self) -> bool {
        self.json_patch || self.options.if_version.is_some()
    }

    fn written(&self, stamp: crate::Stamp) -> WriteReply<'static> {
        written(self.may_lose().then_some(stamp), stamp)
    }

    /// The new value; `None` if a `test` failed.
    pub(crate) fn patched(
        &self,
        value: Option<&[u8]>,
        most: usize,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let patch = Node::parse("the patch", self.patch)?;
        let mut doc = match value {
            Some(value) => Node::parse(VALUE, value)?,
            None => EMPTY,
        };
        let work = &mut Work::default();
        if !self.json_patch {
            merge_patch(&mut doc, patch, work)?;
        } else if json_patch(&mut doc, patch, most, work)? == Patched::TestFailed {
            return Ok(None);
        }
        finished(&doc, most).map(Some)
    }
}

impl<'a> WriteCommand<'a> for Patch<'a> {
    type Reply<'r> = WriteReply<'r>;

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
    ) -> Result<Decision<'a, WriteReply<'r>>, Refusal> {
        let (record, o) = (records[0], &self.options);
        match meet(record, o, o.if_version, env)? {
            Met::Before(done) => return Ok(Decision::Answer(self.written(done))),
            Met::Lost => return Ok(Decision::Answer(WriteReply::Lost(lost(record)))),
            Met::Free => {}
        }
        let present = present(record);
        let most = env.limits(self.key, record, o).value_max;
        let Some(value) = self.patched(present.as_deref(), most)? else {
            return Ok(Decision::Answer(WriteReply::Lost(lost(record))));
        };
        let (value, keep) = (Cow::Owned(value), Expiry::Keep);
        write_one(Kind::Set, self.key, value, o, keep, record, env).map(Decision::Change)
    }

    fn committed(&self, change: &Change<'_>) -> WriteReply<'static> {
        self.written(change.stamp)
    }
}

impl IncrBy<'_> {
    fn number(&self, what: &str, text: &str) -> Result<Decimal, Refusal> {
        Decimal::parse(text).ok_or_else(|| {
            let text = format!(
                "MAOS.INCRBY: {what} must be a number of at most 38 digits, 28 after the point, not {}",
                Quoted(text.as_bytes())
            );
            Refusal::new(Code::Err, text)
        })
    }

    /// The value with the number added to.
    pub(crate) fn added(&self, value: Option<&[u8]>, most: usize) -> Result<Vec<u8>, Refusal> {
        let delta = self.number("the delta", self.delta)?;
        let bound = |what: &str, text: Option<&str>| text.map(|t| self.number(what, t)).transpose();
        let bounds = [
            bound("the number of MIN", self.min)?,
            bound("the number of MAX", self.max)?,
        ];
        let Some(path) = self.path else {
            let now = value.unwrap_or(b"0");
            let number = std::str::from_utf8(now).ok().map(str::trim);
            let number = number.filter(|n| json::is_number(n)).ok_or_else(|| {
                Refusal::fixed(
                    Code::NotJson,
                    "the value of the key is not a number; say with PATH where in it there is one",
                )
            })?;
            return sum(number, delta, bounds).map(String::into_bytes);
        };
        let path = Pointer::parse(path)?;
        let mut sum = String::new();
        let mut doc = match value {
            Some(value) => Node::parse(VALUE, value)?,
            None => EMPTY,
        };
        increment(
            &mut doc,
            &path,
            delta,
            bounds,
            &mut sum,
            &mut Work::default(),
        )?;
        finished(&doc, most)
    }

    /// The number in a value that this made.
    pub(crate) fn number_in(&self, value: &[u8]) -> Option<Vec<u8>> {
        let Some(path) = self.path else {
            return Some(value.to_vec());
        };
        let mut doc = Node::parse(VALUE, value).ok()?;
        let at = json::patch::find(&mut doc, &Pointer::parse(path).ok()?, &mut Work::default());
        Some(at.ok()??.scalar()?.into())
    }

    fn applied(&self, stamp: crate::Stamp, value: &[u8]) -> IncrReply<'static> {
        let number = self.number_in(value).unwrap_or_default();
        IncrReply::Applied(stamp, Cow::Owned(number))
    }
}

impl<'a> WriteCommand<'a> for IncrBy<'a> {
    type Reply<'r> = IncrReply<'r>;

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
    ) -> Result<Decision<'a, IncrReply<'r>>, Refusal> {
        let (record, o) = (records[0], &self.options);
        match meet(record, o, o.if_version, env)? {
            Met::Before(done) => {
                let mut versions = record.into_iter().flat_map(Record::newest_first);
                let then = versions.find(|v| v.stamp() == done);
                let value = then.and_then(|v| v.value()).unwrap_or_default();
                return Ok(Decision::Answer(self.applied(done, &value)));
            }
            Met::Lost => return Ok(Decision::Answer(IncrReply::Lost(lost(record)))),
            Met::Free => {}
        }
        let present = present(record);
        let most = env.limits(self.key, record, o).value_max;
        let value = Cow::Owned(self.added(present.as_deref(), most)?);
        let keep = Expiry::Keep;
        write_one(Kind::Set, self.key, value, o, keep, record, env).map(Decision::Change)
    }

    fn committed(&self, change: &Change<'_>) -> IncrReply<'static> {
        let value = change.writes.first().map_or(&[][..], |w| &w.value);
        self.applied(change.stamp, value)
    }
}
