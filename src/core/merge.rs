//! The decision of MAOS.MERGE: what becomes of a write that began with an older version.
//!
//! ```text
//! base ---- theirs          now: theirs
//!     \\--- mine             MERGE key base mine
//!
//! reject     [0, theirs ...]                     nothing is written
//! fww        kept                                nothing is written
//! lww        replaced: mine       if it is later
//!            kept: mine, theirs   if theirs is:  both in the history, theirs with its author and its time
//! merge      merged: both changes                or [0, theirs ..., the paths that both changed]
//! function   merged: what the function made of base, theirs and mine
//! ```
//!
//! What is decided is the whole new value: nothing is merged again elsewhere.

use std::borrow::Cow;

use smallvec::smallvec;

use crate::change::{Change, Expiry, Kind, Write};
use crate::json::merge::{merge, Merged};
use crate::json::node::{Work, EMPTY};
use crate::json::patch::finished;
use crate::json::Node;
use crate::record::{Record, Version};
use crate::refusal::Quoted;
use crate::state::{
    drops, leaves, lost, meet, version_of, write_one, Decision, Env, Met, Question, WriteCommand,
};
use crate::update::{present, VALUE};
use crate::wire::update::{How, Merge, MergeReply, Strategy};
use crate::{Code, Refusal, Stamp};

const MINE: &str = "the value given";
const BASE: &str = "the base version";

type Decided<'a, 'r> = Result<Decision<'a, MergeReply<'r>>, Refusal>;

impl<'a> Merge<'a> {
    /// The value that the writer began with; `None` if there was none.
    fn base<'r>(&self, record: &'r Record) -> Result<Option<Cow<'r, [u8]>>, Refusal> {
        if self.base == Stamp::NONE {
            return Ok(None);
        }
        let found = record.find(self.base).and_then(|place| record.nth(place));
        let base = found.ok_or_else(|| {
            let oldest = record.nth(0).map_or(Stamp::NONE, Version::stamp);
            let text = format!(
                "the base version {} is not kept any more, or was never written; the oldest kept is {oldest}. Read the key and begin anew",
                self.base
            );
            Refusal::new(Code::BaseGone, text)
        })?;
        Ok(base.value())
    }

    /// A time far ahead would win for ever.
    fn check_time(&self, env: &Env<'_>) -> Result<(), Refusal> {
        let (ts, most_ms) = (self.ts.unwrap_or(0), env.limits.drift_us / 1000);
        if ts.saturating_sub(env.now_ms()) > most_ms {
            let text = format!(
                "TS {ts} lies more than {most_ms} ms ahead of the clock of this node (maos.clock-max-drift-ms)"
            );
            return Err(Refusal::new(Code::Limit, text));
        }
        Ok(())
    }

    fn write(
        &self,
        value: Cow<'a, [u8]>,
        record: Option<&Record>,
        env: &Env<'_>,
    ) -> Result<Change<'a>, Refusal> {
        let (key, o, keep) = (self.key, &self.options, Expiry::Keep);
        let change = write_one(Kind::Set, key, value, o, keep, record, env)?;
        Ok(Change {
            time_ms: self.ts,
            ..change
        })
    }

    /// The commit of one change that is no fast-forward.
    fn done<'r>(&self, mut change: Change<'a>, how: How) -> Decided<'a, 'r> {
        change.kind = Kind::Merge;
        let reply = MergeReply::Applied(change.stamp, how);
        Ok(Decision::Commit(smallvec![change], reply))
    }

    /// Mine becomes history, and what was there stands over it again, with its author and its time.
    fn superseded<'r>(&self, record: &Record, env: &Env<'_>) -> Decided<'a, 'r> {
        let mut loser = self.write(Cow::Borrowed(self.value), Some(record), env)?;
        loser.expiry = Expiry::Keep;
        let stands = record.current();
        let stamp = Stamp(loser.stamp.0 + 1);
        if stamp > Stamp::MAX {
            return Err(Refusal::fixed(
                Code::Limit,
                "there is no version left above the current one (2^53 - 1); DEL the key and write it anew",
            ));
        }
        let mut after = record.clone();
        loser.apply(0, Some(&mut after));
        let value = stands.value();
        let (kind, expiry) = match value {
            Some(_) => (Kind::Merge, Expiry::Keep),
            None => (Kind::Delete, leaves(Some(record), env)),
        };
        let again = Change {
            kind,
            stamp,
            who: stands.who().clone(),
            meta: stands.meta().map(|m| Cow::Owned(m.to_vec())),
            reqid: None,
            time_ms: Some(stands.time_ms()),
            expiry,
            fence: None,
            writes: smallvec![Write {
                key: self.key,
                value: Cow::Owned(value.unwrap_or_default().into_owned()),
                drops: drops(
                    Some(&after),
                    env.limits(self.key, Some(record), &self.options),
                    env
                ),
                turn: None,
                home: None,
            }],
        };
        let reply = MergeReply::Applied(stamp, How::Kept);
        Ok(Decision::Commit(smallvec![loser, again], reply))
    }

    /// The longest value that the key may have.
    fn most(&self, record: &Record, env: &Env<'_>) -> usize {
        env.limits(self.key, Some(record), &self.options).value_max
    }

    fn three_way<'r>(&self, record: &'r Record, theirs: &[u8], env: &Env<'_>) -> Decided<'a, 'r> {
        let base = self.base(record)?;
        let mine = Node::parse(MINE, self.value)?;
        let now = Node::parse(VALUE, theirs)?;
        let base = match &base {
            Some(base) => Node::parse(BASE, base)?,
            None => EMPTY,
        };
        let made = match merge(&base, now, mine, &mut Work::default())? {
            Merged::Conflicts(paths) => {
                let paths = paths.iter().map(|path| path.to_string()).collect();
                let lost = lost(Some(record));
                return Ok(Decision::Answer(MergeReply::Lost(lost, paths)));
            }
            Merged::Done(made) => finished(&made, self.most(record, env))?,
        };
        self.made(made, record, theirs, env)
    }

    /// Asks the function, or goes by what it said.
    fn by_function<'r>(
        &self,
        function: &[u8],
        record: &'r Record,
        theirs: &[u8],
        env: &Env<'_>,
    ) -> Decided<'a, 'r> {
        let version = record.current().stamp();
        if let Some((_, made)) = env.answer.filter(|(about, _)| *about == version) {
            let name = Quoted(function);
            let doc = Node::parse("what the function returned", made).map_err(|refusal| {
                Refusal::new(refusal.code, format!("{name}: {}", refusal.text))
            })?;
            let made = finished(&doc, self.most(record, env))?;
            return self.made(made, record, theirs, env);
        }
        let base = self.base(record)?;
        for (what, value) in [(MINE, self.value), (VALUE, theirs)] {
            Node::parse(what, value)?;
        }
        if let Some(base) = &base {
            Node::parse(BASE, base)?;
        }
        let base = base.map_or_else(|| b"null".to_vec(), Cow::into_owned);
        Ok(Decision::Ask(Box::new(Question {
            function: Cow::Owned(function.to_vec()),
            key: self.key,
            version,
            values: [base, theirs.to_vec(), self.value.to_vec()],
        })))
    }

    fn made<'r>(
        &self,
        made: Vec<u8>,
        record: &Record,
        theirs: &[u8],
        env: &Env<'_>,
    ) -> Decided<'a, 'r> {
        if made == theirs {
            let version = record.current().stamp();
            return Ok(Decision::Answer(MergeReply::Applied(version, How::Kept)));
        }
        self.done(
            self.write(Cow::Owned(made), Some(record), env)?,
            How::Merged,
        )
    }

    /// What this request did before, as far as the history tells.
    fn before(&self, done: Stamp, record: Option<&Record>, strategy: Strategy<'_>) -> (Stamp, How) {
        let place = record.and_then(|r| r.find(done));
        let nth = |place: Option<usize>| record.and_then(|r| r.nth(place?));
        let (earlier, later) = (place.and_then(|p| p.checked_sub(1)), place.map(|p| p + 1));
        if let (Some(earlier), Some(later)) = (nth(earlier), nth(later)) {
            let again = later.stamp().0 == done.0 + 1 && later.value() == earlier.value();
            if again && strategy == Strategy::Lww {
                return (later.stamp(), How::Kept);
            }
        }
        let over = nth(earlier).filter(|v| !v.is_tombstone());
        let same = nth(place).and_then(|v| v.value());
        let how = match same.is_some_and(|v| *v == *self.value) {
            _ if over.map_or(Stamp::NONE, Version::stamp) == self.base => How::FastForward,
            true => How::Replaced,
            false => How::Merged,
        };
        (done, how)
    }
}

impl<'a> WriteCommand<'a> for Merge<'a> {
    type Reply<'r> = MergeReply<'r>;

    fn by(&self) -> Option<&'a [u8]> {
        self.options.by
    }

    fn partition(&self) -> Option<&'a [u8]> {
        self.options.partition
    }

    fn is_conditional(&self) -> bool {
        true
    }

    fn strategy<'e>(&self, record: Option<&Record>, env: &Env<'e>) -> Option<Strategy<'e>>
    where
        'a: 'e,
    {
        let named = self.options.partition;
        let unsaid = || env.shares.on_conflict(self.key, record, named);
        Some(self.strategy.unwrap_or_else(unsaid))
    }

    fn decide<'r>(&self, records: &[Option<&'r Record>], env: &Env<'_>) -> Decided<'a, 'r> {
        let (record, o) = (records[0], &self.options);
        let mine = Cow::Borrowed(self.value);
        let strategy = self.strategy(record, env).unwrap_or(Strategy::Reject);
        self.check_time(env)?;
        match meet(record, o, Some(self.base), env)? {
            Met::Before(done) => {
                let (version, how) = self.before(done, record, strategy);
                return Ok(Decision::Answer(MergeReply::Applied(version, how)));
            }
            Met::Free => return self.write(mine, record, env).map(Decision::Change),
            Met::Lost => {}
        }
        let lost = || Ok(Decision::Answer(MergeReply::Lost(lost(record), vec![])));
        let stands = record.filter(|r| !r.is_bare());
        if strategy == Strategy::Lww {
            let since = stands.map_or(0, |r| r.current().time_ms());
            return match stands.filter(|_| self.ts.is_some_and(|ts| ts < since)) {
                Some(record) => self.superseded(record, env),
                None => self.done(self.write(mine, record, env)?, How::Replaced),
            };
        }
        // Where it was deleted meanwhile there is nothing to merge with.
        let (Some(record), Some(theirs)) = (record, present(record)) else {
            return lost();
        };
        match strategy {
            Strategy::Merge => self.three_way(record, &theirs, env),
            Strategy::Function(name) => self.by_function(name, record, &theirs, env),
            Strategy::Fww => {
                let kept = MergeReply::Applied(version_of(Some(record)), How::Kept);
                Ok(Decision::Answer(kept))
            }
            _ => lost(),
        }
    }

    fn committed(&self, change: &Change<'_>) -> MergeReply<'static> {
        MergeReply::Applied(change.stamp, How::FastForward)
    }
}
