//! The change log: what happened to the keys of a node, in order, as far back as its memory allows.
//!
//! Every event has a position, and the events of one commit have the same: the stamp of the commit, so what a
//! writer was told is what a watcher reads. What has no stamp (a key expires) takes the next number. A replica builds
//! its log from the same changes in the same order, and comes to the same positions; so a cursor, which is a position,
//! stays good when the replica takes over.
//!
//! ```text
//!   gaps: (0 .. 100)                                    (207 .. 300)
//!   log:               | 100   105   105   207 |                     | 300   311 |
//!                      floor                   the old master's last, the new one's first
//! ```
//!
//! - 105 goes on with 207; 207 and 300 go on with 311, after 311 there is nothing yet.
//! - 50 was given out before this log began: nobody here knows what was before. `DIVERGED`.
//! - 250 was the old master's, and was lost with it. `DIVERGED`, and 207 is the last that was kept.
//! - 305 may have been given out by the old master, if it went on for a while: `DIVERGED`, and it had seen what is here up
//!   to 207. 106 was never given out by a node of this past: `DIVERGED`, and the floor is where to go on.
//! - Once the log has let 100 to 105 go, its floor is 105, and 100 is `COMPACTED`.
//!
//! Deliberately absent: values. A value is in its key's history for longer than in any log, and only once.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::Event;
use crate::{Code, Refusal, Stamp, Who};

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

/// Positions between which a cursor may have been given out by a node whose last changes were lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Gap {
    /// The last position before it that was kept.
    after: Stamp,
    /// The first position after it.
    before: Stamp,
}

/// For so long after another node has taken over the one before it may go on, not knowing, in microseconds. What it gave
/// out then is known for what it is as long as the log reaches back to it; after that it is in doubt.
const IN_DOUBT_US: u64 = 60_000_000;

/// So many gaps are told apart; the oldest ones become one.
const GAPS_MAX: usize = 64;

/// Why a cursor cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// The log has let go what comes after it, and goes back to here.
    Compacted(Stamp),
    /// It was not given out by a node of this past; this is the last position before it from which one can go on.
    Diverged(Stamp),
}

impl Lost {
    /// The refusal of a watch from this cursor.
    pub fn refusal(self, cursor: Stamp) -> Refusal {
        match self {
            Lost::Compacted(floor) => Refusal::new(
                Code::Compacted,
                format!("the change log reaches back to {floor}, not to {cursor}; read the keys again and go on from {floor}, or have maos.changes-max-bytes hold more"),
            ),
            Lost::Diverged(kept) => Refusal::new(
                Code::Diverged,
                format!("{cursor} is no cursor of this node: what it saw after {kept} may have been lost with a node that failed; read the keys again and go on from {kept}"),
            ),
        }
    }
}

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
    gaps: Vec<Gap>,
    has_begun: bool,
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
        self.has_begun
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

    /// How many events were appended since the node started.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// The data set was replaced by one with a past of its own: the log begins anew, with the next commit or
    /// [reign](Feed::reign).
    pub fn forget(&mut self) {
        let kept = Feed::new(self.max_bytes);
        let appended = self.appended;
        *self = Feed { appended, ..kept };
    }

    /// From here on this node, or the master that it follows, makes the changes. What another one made after the last
    /// of them that came here is lost, so cursors from between are not good.
    pub fn reign(&mut self, at: Stamp) {
        if !self.is_on() {
            return;
        }
        if !self.has_begun {
            self.begin(at);
        } else {
            // A clock that was far ahead is not overtaken by this one's: then by a second's worth of what was lost.
            let at = if at > self.last {
                at
            } else {
                Stamp(self.last.0 + 1_000_000)
            };
            self.gap(self.last, at);
            self.before_last = self.last;
            self.last = at;
            self.commit = None;
        }
    }

    /// The node that makes the changes says where its log is, or from where on it makes them.
    pub fn follow(&mut self, at: Stamp) {
        if !self.has_begun || at > self.last {
            self.reign(at);
        }
    }

    fn begin(&mut self, at: Stamp) {
        self.has_begun = true;
        self.gap(Stamp::NONE, at);
        (self.floor, self.last, self.before_last) = (at, at, at);
        self.commit = None;
    }

    fn gap(&mut self, after: Stamp, before: Stamp) {
        if self.gaps.len() == GAPS_MAX {
            // What is between them is in doubt as well; the first is where the log begins.
            let oldest = self.gaps.remove(1);
            self.gaps[1].after = oldest.after;
        }
        self.gaps.push(Gap { after, before });
    }

    /// Appends an event. `None`, and nothing done, where there is no log, or where it has not begun and this is no
    /// commit: its position would be this node's alone. Else the position of what was before its commit: from there a
    /// watcher that has seen all else reads it.
    pub fn append(&mut self, tell: Tell<'_>) -> Option<Stamp> {
        if !self.is_on() {
            return None;
        }
        if !self.has_begun {
            let stamp = tell.stamp?;
            self.begin(Stamp(stamp.0.saturating_sub(1)));
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
                entries: Vec::with_capacity(events),
                keys: Vec::with_capacity(keys),
                bytes,
            });
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

    /// Whether a position may have been given out as a cursor: it is that of an event, or of a beginning.
    fn is_cursor(&self, cursor: Stamp, place: (usize, usize)) -> bool {
        let before = match place {
            (0, 0) => None,
            (segment, 0) => self.segments[segment - 1].entries.last(),
            (segment, n) => self.segments[segment].entries.get(n - 1),
        };
        cursor == self.floor
            || before.is_some_and(|e| e.position == cursor)
            || self.gaps.iter().any(|g| g.before == cursor)
    }

    /// The events after a cursor, oldest first.
    ///
    /// # Errors
    /// [`Lost`] if they are not all here.
    pub fn since(&self, cursor: Stamp) -> Result<impl Iterator<Item = Told<'_>>, Lost> {
        // The first gap is where the log begins, with no other node before it. At any of the others the node that gave
        // the cursor out may have been left behind: from the first of them on what it saw may have been lost, and what
        // happened here not seen.
        let takeovers = || self.gaps.iter().skip(1);
        let in_doubt = |g: &&Gap| g.after < cursor && cursor.0 < g.before.0 + IN_DOUBT_US;
        let diverged = || {
            let parted = takeovers().find(in_doubt);
            let kept = parted.map_or(self.floor, |g| g.after);
            Err(Lost::Diverged(kept.max(self.floor).min(self.last)))
        };
        let within = |g: &Gap| g.after < cursor && cursor < g.before;
        if self.gaps.iter().any(within) {
            return diverged();
        }
        if cursor < self.floor {
            return match takeovers().any(|g| in_doubt(&g)) {
                true => diverged(),
                false => Err(Lost::Compacted(self.floor)),
            };
        }
        let place = self.place_after(cursor);
        if cursor > self.last || !self.is_cursor(cursor, place) {
            return diverged();
        }
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
