//! What a watcher reads of the change log.

use std::borrow::Cow;

use crate::config::EVENTS_LOOKED_AT;
use crate::event::Event;
use crate::feed::{Feed, Gap, Told};
use crate::glob::{are_apart, Glob};
use crate::record::Record;
use crate::wire::watch::{EventReply, Kept, Mark, Watch, WatchReply};
use crate::{Code, Refusal, Stamp};

/// A reply has not many more bytes of keys and values than this.
const BYTES: usize = 1 << 20;

/// Keys that went without a word why are all of these.
const GONE: u16 = Event::Deleted.bit() | Event::Expired.bit() | Event::Evicted.bit();

/// The value that a version has, if it is kept still.
pub fn value_of(record: Option<&Record>, version: Stamp) -> Kept<'static> {
    let version = record.and_then(|r| r.newest_first().find(|v| v.stamp() == version));
    match version.map(|v| v.value()) {
        None => Kept::Gone,
        Some(None) => Kept::None,
        Some(Some(value)) => Kept::Value(Cow::Owned(value.into_owned())),
    }
}

impl Watch<'_> {
    /// Whether an event of the log is asked for, but for who may read it.
    #[inline]
    fn wants(&self, told: &Told<'_>, db: i32) -> bool {
        // Most events of a log are not for this watcher, and most of those for this reason.
        let fits = |g: &Glob<'_>| g.fits(told.key);
        if told.event != Event::Flushed && !self.patterns.iter().any(fits) {
            return false;
        }
        let of_db = told.db == db || told.db < 0;
        let types = if told.unsure { GONE } else { told.event.bit() };
        let of_type = self.types.is_none_or(|set| set & types != 0);
        let by_other = match (&self.not_by, &told.who.agent) {
            (Some(not), Some(agent)) => **not != **agent,
            _ => true,
        };
        of_db && of_type && by_other
    }

    /// What the watcher reads that has seen all up to this cursor, but for the [values](Found::fill). It may be
    /// nothing, and the cursor of the reply further on.
    ///
    /// # Errors
    /// If the log does not hold all that came after the cursor.
    pub fn look(
        &self,
        feed: &Feed,
        from: Mark,
        db: i32,
        may_read: impl FnMut(&[u8]) -> bool,
    ) -> Result<Found, Gap> {
        let all = feed.since(from)?;
        Ok(self.pick(feed, all, from, db, may_read))
    }

    /// The same, where it is known which events after the cursor may concern the watcher: those of these
    /// [numbers](Feed::numbered), which rise.
    ///
    /// # Errors
    /// As [`look`](Watch::look).
    pub fn look_at(
        &self,
        feed: &Feed,
        numbers: &[u64],
        from: Mark,
        db: i32,
        may_read: impl FnMut(&[u8]) -> bool,
    ) -> Result<Found, Gap> {
        // All that came after the cursor is here, so they are too.
        drop(feed.since(from)?);
        let heard = numbers.iter().filter_map(|n| feed.numbered(*n));
        let new = heard.filter(|told| told.position > from.at);
        Ok(self.pick(feed, new, from, db, may_read))
    }

    fn pick<'f>(
        &self,
        feed: &Feed,
        events: impl Iterator<Item = Told<'f>>,
        from: Mark,
        db: i32,
        mut may_read: impl FnMut(&[u8]) -> bool,
    ) -> Found {
        let mut found = Found {
            cursor: from,
            events: vec![],
            bytes: 0,
        };
        let (mut at, mut looked) = (from.at, 0);
        for told in events {
            let full = found.events.len() >= self.most() || found.is_full();
            if (full || looked >= EVENTS_LOOKED_AT) && told.position != at {
                found.cursor = feed.mark(at);
                return found;
            }
            (at, looked) = (told.position, looked + 1);
            let all = told.event == Event::Flushed;
            if !self.wants(&told, db) || !(all || may_read(told.key)) {
                continue;
            }
            found.bytes += told.key.len();
            let named = |name: &[u8]| (!name.is_empty()).then(|| Cow::Owned(name.to_vec()));
            let event = EventReply {
                event: told.event,
                key: (!all).then(|| Cow::Owned(told.key.to_vec())),
                version: told.version,
                previous: told.previous,
                author: named(&told.who.author),
                agent: told.who.agent.as_deref().and_then(named),
                value: self.values.then_some(Kept::None),
            };
            found.events.push((feed.mark(at), event));
        }
        found.cursor = feed.mark(feed.last().max(from.at));
        found
    }

    /// Whether no key that fits the patterns can begin with any of these, which is what a user may read; keys that the
    /// patterns name as they are it may not.
    ///
    /// # Errors
    /// `NOPERM` if so.
    pub fn check_reach(&self, readable: &[Vec<u8>]) -> Result<(), Refusal> {
        let apart = |glob: &Glob<'_>| {
            glob.is_literal() || readable.iter().all(|r| are_apart(glob.literal(), r))
        };
        if self.patterns.iter().all(apart) {
            return Err(Refusal::fixed(
                Code::NoPerm,
                "the user may read no key that these patterns fit",
            ));
        }
        Ok(())
    }
}

/// What a watcher reads, without the values.
#[derive(Debug)]
pub struct Found {
    cursor: Mark,
    /// Each with the cursor that has seen it.
    events: Vec<(Mark, EventReply<'static>)>,
    bytes: usize,
}

impl Found {
    fn is_full(&self) -> bool {
        self.bytes >= BYTES
    }

    /// The reply. The values are asked for by key and version, until they are many: then the rest of the events is for
    /// another reply.
    pub fn fill(
        mut self,
        mut value: impl FnMut(&[u8], Stamp) -> Kept<'static>,
    ) -> WatchReply<'static> {
        let mut last = None;
        for n in 0..self.events.len() {
            let mark = self.events[n].0;
            if let Some(last) = last.filter(|last| self.is_full() && *last != mark) {
                self.events.truncate(n);
                self.cursor = last;
                break;
            }
            last = Some(mark);
            let event = &mut self.events[n].1;
            let makes = matches!(
                event.event,
                Event::Created
                    | Event::Updated
                    | Event::RolledBack
                    | Event::Resolved
                    | Event::Restored
            );
            if let (Some(key), true, true) = (&event.key, makes, event.value.is_some()) {
                let kept = value(key, event.version);
                if let Kept::Value(value) = &kept {
                    self.bytes += value.len();
                }
                event.value = Some(kept);
            }
        }
        WatchReply {
            cursor: self.cursor,
            events: self.events.into_iter().map(|(_, event)| event).collect(),
        }
    }
}

/// A replica that has its data set, and no word yet of where in its master's log that is: no position here would mean
/// anything elsewhere.
pub const NOT_BEGUN: Refusal = Refusal::fixed(
    Code::Busy,
    "this replica has not been told yet where the change log of its master is: try again, or ask the master",
);

/// Watching is off.
pub const NO_LOG: Refusal = Refusal::fixed(
    Code::Err,
    "this node keeps no change log: set maos.changes-max-bytes to more than 0",
);
