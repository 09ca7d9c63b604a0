//! The change log: what happened to the keys of a node, in order, as far back as its memory allows.
//!
//! Every event has a position, and the events of one commit have the same: the stamp of the commit, so what a
//! writer was told is what a watcher reads. What has no stamp (a key expires) takes the next number. A replica builds
//! its log from the same changes in the same order, and comes to the same positions; so what a watcher has seen it has
//! seen of the replica's log too.
//!
//! From one node that makes the changes to the next some may be lost, and the one before may go on for a while and not
//! know. So each reign has a name (the position at which it began), and a cursor is a position with the name of the
//! reign in which it was given out.
//!
//! ```text
//!   reign:             99                                        300
//!   log:               | 100   105   105   207 |                 | 300   311 |
//!                      floor             the last that came here  the new one's first
//! ```
//!
//! - 105-99 goes on with 207, 207-99 and 300-300 with 311; after 311-300 there is nothing yet.
//! - 250-99 and 305-99 were given out by the old master for what never came here: `DIVERGED`, and 207 is the last that was kept.
//! - 50-7 is of a reign that nobody here knows of: `DIVERGED`, and nothing is certain.
//! - Once the log has let 100 to 105 go, its floor is 105, and 100-99 is `COMPACTED`.
//! - A number alone is taken for one of this past: the version of a write to this node.
//!
//! Deliberately absent: values. A value is in its key's history for longer than in any log, and only once.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Event;
pub use crate::wire::watch::Gap;
use crate::wire::watch::Mark;
use crate::{Stamp, Who};

/// One event of the log.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Told<'f> {
    /// Where it is: the cursor that has seen it, and all of its commit.
    pub position: Stamp,
    /// What happened.
    pub event: Event,
    /// In which database; -1: in all.
    pub db: i32,
    /// To which key; empty for [`Event::Flushed`].
    pub key: &'f [u8],
    /// The version that was made, or that the key has; else the position.
    pub version: Stamp,
    /// The version that was current before; none where there was none.
    pub previous: Stamp,
    /// Who did it; nobody, where that is not known.
    pub who: &'f Arc<Who>,
    /// A key went, and this node was not told why.
    pub unsure: bool,
}

/// What is appended: an event whose position follows.
#[derive(Clone, Copy, Debug)]
pub struct Tell<'t> {
    /// The stamp of the commit, where it has one that moves the clock.
    pub stamp: Option<Stamp>,
    /// What happened.
    pub event: Event,
    /// In which database; -1: in all.
    pub db: i32,
    /// To which key.
    pub key: &'t [u8],
    /// The version that was made, or that the key has; none: the event's position takes its place.
    pub version: Stamp,
    /// The version that was current before.
    pub previous: Stamp,
    /// Who did it.
    pub who: &'t Arc<Who>,
    /// A key went, and this node was not told why.
    pub unsure: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    position: Stamp,
    version: Stamp,
    previous: Stamp,
    who: Arc<Who>,
    key_end: u32,
    db: i32,
    event: Event,
    unsure: bool,
}

/// A run of events and the bytes of their keys. Goes as a whole.
#[derive(Clone, Default, Debug)]
struct Segment {
    /// The number of its first event.
    first: u64,
    entries: Vec<Entry>,
    keys: Vec<u8>,
    /// What it was made for.
    bytes: usize,
}

/// So many events and bytes of keys a segment has at most, but for a key that is longer. 80 KiB in all.
const SEGMENT_EVENTS: usize = 1024;
const SEGMENT_KEYS: usize = 32 << 10;

impl Segment {
    fn has_room(&self, key_len: usize) -> bool {
        self.entries.len() < self.entries.capacity()
            && self.keys.len() + key_len <= self.keys.capacity()
    }

    fn at(&self, n: usize) -> Option<Told<'_>> {
        let entry = self.entries.get(n)?;
        let start = n.checked_sub(1).map_or(0, |n| self.entries[n].key_end);
        Some(Told {
            position: entry.position,
            event: entry.event,
            db: entry.db,
            key: &self.keys[start as usize..entry.key_end as usize],
            version: entry.version,
            previous: entry.previous,
            who: &entry.who,
            unsure: entry.unsure,
        })
    }
}

/// The time in which one node makes the changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reign {
    /// Its name: where it began. None until the node is told.
    name: Stamp,
    /// The first position of it that is known here.
    from: Stamp,
    /// The last position of it, once it is over.
    end: Stamp,
}

/// So many reigns are known; the oldest are forgotten first.
const REIGNS_MAX: usize = 64;

/// The log of one node.
#[derive(Clone, Default, Debug)]
pub struct Feed {
    segments: VecDeque<Segment>,
    bytes: usize,
    max_bytes: usize,
    /// All events after this position are here.
    floor: Stamp,
    /// The position of the last event, or of where the log begins.
    last: Stamp,
    /// The stamp of the last event's commit.
    commit: Option<Stamp>,
    /// The position before that of the last event.
    before_last: Stamp,
    /// Oldest first; none until the log has begun.
    reigns: Vec<Reign>,
    /// How many events were appended since the node started.
    appended: u64,
}

impl Feed {
    /// A log that holds about so many bytes; 0: none.
    pub fn new(max_bytes: usize) -> Feed {
        Feed {
            max_bytes,
            ..Feed::default()
        }
    }

    /// Lets the log hold so many bytes from now on. Where there was none it has not begun.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
        if max_bytes == 0 {
            self.forget();
        }
        self.fit();
    }

    /// Whether there is a log.
    pub fn is_on(&self) -> bool {
        self.max_bytes > 0
    }

    /// Whether a position has been fixed from which on it is complete.
    pub fn has_begun(&self) -> bool {
        !self.reigns.is_empty()
    }

    /// The position of the last event: whoever has seen that has seen all.
    pub fn last(&self) -> Stamp {
        self.last
    }

    /// How far the log reaches back: all that happened after this is here.
    pub fn floor(&self) -> Stamp {
        self.floor
    }

    /// How many bytes the log takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many events it holds.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|s| s.entries.len()).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events were appended since the node started: the [number](Feed::numbered) of the next one.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// The event that was appended when there had been so many, if it is still here.
    pub fn numbered(&self, n: u64) -> Option<Told<'_>> {
        let after = self.segments.partition_point(|s| s.first <= n);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        segment.at(usize::try_from(n - segment.first).ok()?)
    }

    /// The data set was replaced by one with a past of its own: the log begins anew, with the next commit or
    /// [reign](Feed::reign).
    pub fn forget(&mut self) {
        let kept = Feed::new(self.max_bytes);
        let appended = self.appended;
        *self = Feed { appended, ..kept };
    }

    /// From here on this node makes the changes. What another one made after the last of them that came here is lost.
    pub fn reign(&mut self, at: Stamp) {
        // A clock that was far ahead is not overtaken by this one's.
        let at = at.max(Stamp(self.last.0 + 1));
        self.begin(at, at);
    }

    /// The node that makes the changes says where its log is, and the name of its reign.
    pub fn follow(&mut self, said: Mark) {
        match self.reigns.last_mut() {
            Some(reign) if reign.name == said.reign => {}
            Some(reign) if reign.name == Stamp::NONE => reign.name = said.reign,
            _ => self.begin(said.at, said.reign),
        }
    }

    fn begin(&mut self, at: Stamp, name: Stamp) {
        if !self.is_on() {
            return;
        }
        let at = at.max(self.last);
        match self.reigns.last_mut() {
            Some(before) => before.end = self.last,
            None => self.floor = at,
        }
        (self.before_last, self.last, self.commit) = (self.last, at, None);
        if self.reigns.len() == REIGNS_MAX {
            self.reigns.remove(0);
        }
        let end = Stamp::MAX;
        self.reigns.push(Reign {
            name,
            from: at,
            end,
        });
    }

    /// The cursor that a position is.
    pub fn mark(&self, at: Stamp) -> Mark {
        let of = self.reigns.iter().rfind(|r| r.from <= at);
        Mark {
            at,
            reign: of.map_or(Stamp::NONE, |r| r.name),
        }
    }

    /// Appends an event. `None`, and nothing done, where there is no log, or where it has not begun and this is no
    /// commit: its position would be this node's alone. Else the position of what was before its commit: from there a
    /// watcher that has seen all else reads it.
    pub fn append(&mut self, tell: Tell<'_>) -> Option<Stamp> {
        if !self.is_on() {
            return None;
        }
        if !self.has_begun() {
            let stamp = tell.stamp?;
            // By whom it is made will be told.
            self.begin(Stamp(stamp.0.saturating_sub(1)), Stamp::NONE);
        }
        let same = tell.stamp.is_some() && tell.stamp == self.commit;
        if !same {
            self.before_last = self.last;
            self.last = match tell.stamp {
                Some(stamp) if stamp > self.last => stamp,
                _ => Stamp(self.last.0 + 1),
            };
            self.commit = tell.stamp;
        }
        if !self
            .segments
            .back()
            .is_some_and(|s| s.has_room(tell.key.len()))
        {
            self.grow(tell.key.len());
        }
        let position = self.last;
        let segment = self.segments.back_mut()?;
        segment.keys.extend_from_slice(tell.key);
        segment.entries.push(Entry {
            position,
            version: match tell.version {
                Stamp::NONE => position,
                version => version,
            },
            previous: tell.previous,
            who: tell.who.clone(),
            key_end: u32::try_from(segment.keys.len()).unwrap_or(u32::MAX),
            db: tell.db,
            event: tell.event,
            unsure: tell.unsure,
        });
        self.appended += 1;
        Some(self.before_last)
    }

    /// Whether the last event is this one.
    pub fn is_last(&self, db: i32, key: &[u8], event: Event) -> bool {
        let segment = self.segments.back();
        let last = segment.and_then(|s| s.at(s.entries.len().wrapping_sub(1)));
        last.is_some_and(|t| t.db == db && t.key == key && t.event == event)
    }

    /// The last event turns out to be another one, if it is this key's.
    pub fn amend(&mut self, db: i32, key: &[u8], from: Event, to: Event) {
        if self.is_last(db, key, from) {
            let last = self.segments.back_mut().and_then(|s| s.entries.last_mut());
            if let Some(entry) = last {
                entry.event = to;
            }
        }
    }

    #[cold]
    fn grow(&mut self, key_len: usize) {
        let sixteenth = (self.max_bytes / 16).max(4096);
        let events = (sixteenth / size_of::<Entry>() / 2).clamp(16, SEGMENT_EVENTS);
        let keys = (sixteenth / 2).min(SEGMENT_KEYS).max(key_len);
        let mut made = None;
        // What goes at one end is of use at the other.
        let bytes = events * size_of::<Entry>() + keys;
        while self.bytes + bytes > self.max_bytes {
            match self.let_go() {
                Some(segment) => made = Some(segment),
                None => break,
            }
        }
        let mut made = made
            .filter(|s| s.bytes == bytes && s.keys.capacity() == keys)
            .unwrap_or_else(|| Segment {
                first: 0,
                entries: Vec::with_capacity(events),
                keys: Vec::with_capacity(keys),
                bytes,
            });
        made.first = self.appended;
        made.entries.clear();
        made.keys.clear();
        self.bytes += bytes;
        self.segments.push_back(made);
    }

    /// The oldest events go.
    fn let_go(&mut self) -> Option<Segment> {
        let gone = self.segments.pop_front()?;
        self.bytes -= gone.bytes;
        // A commit that is torn is gone.
        let kept = self.segments.front().and_then(|s| s.entries.first());
        let ends = gone.entries.last().map_or(self.floor, |e| e.position);
        self.floor = ends;
        if kept.is_none() {
            self.floor = self.last;
        }
        Some(gone)
    }

    fn fit(&mut self) {
        while self.bytes > self.max_bytes && self.let_go().is_some() {}
    }

    /// The events after a cursor, oldest first.
    ///
    /// # Errors
    /// [`Gap`] if they are not all here.
    pub fn since(&self, cursor: Mark) -> Result<impl Iterator<Item = Told<'_>>, Gap> {
        let at = cursor.at;
        let diverged = |kept: Option<Stamp>| {
            let from = kept.map_or(self.floor, |at| at.max(self.floor));
            let kept = kept.map(|at| self.mark(at));
            let from = self.mark(from);
            Err(Gap::Diverged { kept, from })
        };
        let mut reigns = self.reigns.iter();
        let reign = match cursor.reign {
            Stamp::NONE => reigns.rfind(|r| r.from <= at).or(self.reigns.first()),
            name => reigns.find(|r| r.name == name),
        };
        let Some(reign) = reign else {
            return diverged(None);
        };
        let end = reign.end.min(self.last);
        if at > end {
            return diverged(Some(end));
        }
        if at < self.floor {
            return Err(Gap::Compacted(self.mark(self.floor)));
        }
        if at < reign.from {
            return diverged(None);
        }
        let place = self.place_after(at);
        let (first, from) = place;
        let segments = self.segments.iter().skip(first).enumerate();
        Ok(segments.flat_map(move |(n, segment)| {
            let from = if n == 0 { from } else { 0 };
            (from..segment.entries.len()).filter_map(|n| segment.at(n))
        }))
    }

    /// Where the first event after a position is: its segment, and its place there.
    fn place_after(&self, cursor: Stamp) -> (usize, usize) {
        let is_before = |s: &Segment| s.entries.last().is_none_or(|e| e.position <= cursor);
        let first = self.segments.partition_point(is_before);
        let from = self.segments.get(first);
        let from = from.map_or(0, |s| s.entries.partition_point(|e| e.position <= cursor));
        (first, from)
    }
}
