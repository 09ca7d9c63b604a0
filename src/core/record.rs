//! What lives at a key: the current version and its history.
//!
//! By example, with at most three versions kept (`v1` is the version with stamp 1, `x2` a
//! tombstone):
//!
//! ```text
//! set a      v1                current v1             created 1
//! set b      v1 v2             current v2             created 1
//! del        v1 v2 x3          current x3, no value
//! set c         v2 x3 v4       current v4             created 4, floor 1
//! set d            x3 v4 v5    current v5             created 4, floor 2
//! ```
//!
//! `created` is the first version of the present life, `floor` the newest version trimmed away.
//!
//! A million keys with one version each are the common case, so such a record is one box of 40
//! bytes and one allocation for everything its version holds; whatever only some records have is
//! behind one pointer.

use std::hash::BuildHasher;
use std::sync::Arc;

use crate::config::{Limits, REQID_WINDOW};
use crate::history::{History, HEAD};
use crate::lock::{Guard, Mode, Turn};
use crate::partition::Member;
use crate::version::Owned;
use crate::{Stamp, Who};

pub use crate::version::{Parts, Version};

/// What only some records have.
#[derive(Clone, Debug, Default)]
struct Ext {
    /// The first version of the present life.
    created: Stamp,
    /// The newest version trimmed away; [`Stamp::NONE`] if none was.
    floor: Stamp,
    /// The replaced versions.
    past: History,
    /// The lock and the fences, if there are any.
    guard: Option<Box<Guard>>,
}

impl Ext {
    #[inline]
    fn charge(&self) -> usize {
        size_of::<Ext>() + self.past.charge() + self.guard.as_ref().map_or(0, |g| g.bytes())
    }

    /// True if a record whose current version has this stamp is the same without it, but for its guard.
    fn says_nothing(&self, current: Stamp) -> bool {
        self.created == current && self.floor == Stamp::NONE && self.past.len() == 0
    }

    fn drop_oldest(&mut self, n: usize) {
        if n > 0 {
            self.floor = self.past.drop_oldest(n).unwrap_or(self.floor);
        }
    }
}

/// The value of a state key.
#[derive(Clone, Debug)]
pub struct Record {
    current: Owned,
    ext: Option<Box<Ext>>,
    member: Member,
}

/// Equal in what a reader sees. Which partition is charged is not part of it: its place is the node's own.
impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        self.created() == other.created()
            && self.floor() == other.floor()
            && self.len() == other.len()
            && self.guard() == other.guard()
            && self.iter().eq(other.iter())
    }
}

impl Record {
    /// A record with one version.
    pub fn new(parts: &Parts<'_>) -> Record {
        Record {
            current: Owned::new(parts),
            ext: None,
            member: Member::NONE,
        }
    }

    /// A record with a copy of one version.
    pub fn of(version: Version<'_>) -> Record {
        Record {
            current: Owned::copy_of(version),
            ext: None,
            member: Member::NONE,
        }
    }

    /// A record without a version, for a lock. `who` is whoever made it.
    pub fn bare(who: Arc<Who>) -> Record {
        Record {
            current: Owned::nothing(who),
            ext: None,
            member: Member::NONE,
        }
    }

    /// A record put together from its parts, versions oldest first. `None` if they contradict each
    /// other: no version, stamps that do not rise, a floor or a creation that does not fit. An error in a
    /// version ends it.
    ///
    /// # Errors
    /// The first one of the versions.
    pub fn from_parts<'v, E>(
        created: Stamp,
        floor: Stamp,
        mut versions: impl Iterator<Item = Result<Version<'v>, E>>,
    ) -> Result<Option<Record>, E> {
        let Some(first) = versions.next() else {
            return Ok(None);
        };
        let (oldest, mut last) = (first.as_ref().map_or(Stamp::NONE, |v| v.stamp()), first?);
        let mut past = History::default();
        for version in versions {
            let version = version?;
            if version.stamp() <= last.stamp() {
                return Ok(None);
            }
            past.append(last);
            last = version;
        }
        if floor >= oldest || created == Stamp::NONE || created > last.stamp() {
            return Ok(None);
        }
        let plain = past.len() == 0 && floor == Stamp::NONE && created == last.stamp();
        let ext = Ext {
            created,
            floor,
            past,
            guard: None,
        };
        Ok(Some(Record {
            current: Owned::copy_of(last),
            ext: (!plain).then(|| Box::new(ext)),
            member: Member::NONE,
        }))
    }

    /// The current version, be it a tombstone.
    #[inline]
    pub fn current(&self) -> Version<'_> {
        self.current.view()
    }

    /// The current version, if it is live.
    #[inline]
    pub fn live(&self) -> Option<Version<'_>> {
        Some(self.current()).filter(|v| !v.is_tombstone())
    }

    /// The first version of the present life.
    pub fn created(&self) -> Stamp {
        self.ext
            .as_ref()
            .map_or(self.current().stamp(), |e| e.created)
    }

    /// The newest version trimmed away; [`Stamp::NONE`] if none was.
    pub fn floor(&self) -> Stamp {
        self.ext.as_ref().map_or(Stamp::NONE, |e| e.floor)
    }

    /// How many versions are kept, the current one among them.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(!self.is_bare()) + self.ext.as_ref().map_or(0, |e| e.past.len())
    }

    /// True if there is no version. What else there may be is a lock.
    #[inline]
    pub fn is_bare(&self) -> bool {
        self.current.view().stamp() == Stamp::NONE
    }

    /// True if there is nothing: then the key goes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.is_bare() && self.guard().is_none()
    }

    /// The lock and the fences, if there are any.
    #[inline]
    pub fn guard(&self) -> Option<&Guard> {
        self.ext.as_ref()?.guard.as_deref()
    }

    /// The end of the last lease, in milliseconds of unix time; 0 without one.
    pub fn leased_until_ms(&self) -> u64 {
        let holders = self.guard().into_iter().flat_map(|g| &g.holders);
        holders.map(|h| h.expires_ms).max().unwrap_or(0)
    }

    /// True if somebody holds the lock whose lease is over.
    pub fn has_late_holder(&self, now_ms: u64) -> bool {
        let guard = self.guard();
        guard.is_some_and(|g| g.holders.iter().any(|h| !h.is_present(now_ms)))
    }

    /// The newest of all stamps in it: versions and tokens.
    #[inline]
    pub fn newest(&self) -> Stamp {
        let current = self.current().stamp();
        match self.guard() {
            None => current,
            Some(guard) => guard
                .holders
                .iter()
                .map(|h| h.token)
                .fold(current, Stamp::max),
        }
    }

    fn guard_mut(&mut self, then: impl FnOnce(&mut Guard)) {
        let created = self.current().stamp();
        let ext = self.ext.get_or_insert_with(|| {
            Box::new(Ext {
                created,
                ..Ext::default()
            })
        });
        let guard = ext.guard.get_or_insert_default();
        then(guard);
        if guard.holders.is_empty() {
            guard.mode = Mode::default();
        }
        if guard.is_empty() {
            ext.guard = None;
            // What says nothing is not kept: a record is as large as what is loaded in its place.
            if ext.says_nothing(created) {
                self.ext = None;
            }
        }
    }

    /// Applies a turn of the lock. Cannot fail.
    pub fn turn(&mut self, turn: &Turn) {
        self.guard_mut(|guard| guard.turn(turn));
    }

    /// Keeps the higher one of two tokens of a fence. Cannot fail.
    pub fn raise_fence(&mut self, name: &[u8], token: u64) {
        self.guard_mut(|guard| guard.raise(name, token));
    }

    /// Puts the guard that was kept with the record in its place.
    pub(crate) fn set_guard(&mut self, guard: Guard) {
        self.guard_mut(|place| *place = guard);
    }

    /// The lock goes, as where a record is copied; fences stay.
    pub fn unlock(&mut self) {
        if self.guard().is_some() {
            self.guard_mut(|guard| guard.holders.clear());
        }
    }

    /// The `n`-th version, the oldest being 0.
    pub fn nth(&self, n: usize) -> Option<Version<'_>> {
        match (n + 1).cmp(&self.len()) {
            std::cmp::Ordering::Less => self.ext.as_ref()?.past.nth(n),
            std::cmp::Ordering::Equal => Some(self.current()),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// The current version, if there is any.
    fn written(&self) -> impl Iterator<Item = Version<'_>> {
        Some(self.current()).filter(|_| !self.is_bare()).into_iter()
    }

    /// All versions, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Version<'_>> {
        let past = self.ext.iter().flat_map(|e| e.past.iter());
        past.chain(self.written())
    }

    /// All versions, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = Version<'_>> {
        let past = self.ext.iter().flat_map(|e| e.past.newest_first());
        self.written().chain(past)
    }

    /// The place of the version with this stamp.
    pub fn find(&self, stamp: Stamp) -> Option<usize> {
        let at = self.partition_point(stamp);
        self.nth(at).filter(|v| v.stamp() == stamp).map(|_| at)
    }

    /// How many versions are older than this stamp.
    pub fn partition_point(&self, stamp: Stamp) -> usize {
        if self.current().stamp() < stamp {
            return self.len();
        }
        self.ext
            .as_ref()
            .map_or(0, |e| e.past.partition_point(stamp))
    }

    /// The stamp of the version that a request with this id wrote, if it is among the last
    /// [`REQID_WINDOW`].
    pub fn written_by_request(&self, reqid: &[u8]) -> Option<Stamp> {
        let mut recent = self.newest_first().take(REQID_WINDOW);
        recent
            .find(|v| v.reqid() == Some(reqid))
            .map(Version::stamp)
    }

    /// The bytes of the versions, and of what holds them together. O(1).
    #[inline]
    pub fn bytes(&self) -> usize {
        let ext = self.ext.as_ref();
        let guard = |e: &Ext| e.guard.as_ref().map_or(0, |g| g.bytes());
        let ext = ext.map_or(0, |e| size_of::<Ext>() + e.past.held() + guard(e));
        size_of::<Record>() + self.current.blob.len() + ext
    }

    /// Which partition it is charged to, and how it came to be.
    #[inline]
    pub fn member(&self) -> Member {
        self.member
    }

    /// Says which partition it is charged to.
    #[inline]
    pub fn set_member(&mut self, member: Member) {
        self.member = member.backed(self.member.is_backed());
    }

    /// What it holds now, in 64 bits: the current version, who wrote it and what came with it. Not its history, nor its lock.
    pub fn fingerprint(&self) -> u64 {
        let (current, state) = (self.current(), foldhash::quality::FixedState::default());
        state.hash_one((current.blob(), &**current.who()))
    }

    /// The mark of the last backup that has it as it was at its instant, or that it came after. Nothing that travels.
    #[inline]
    pub fn is_backed(&self) -> bool {
        self.member.is_backed()
    }

    /// Gives it this mark.
    #[inline]
    pub fn set_backed(&mut self, mark: bool) {
        self.member = self.member.backed(mark);
    }

    /// The bytes that its partition is charged with: those of the record, of its versions as they are kept, of
    /// its lock and fences, and of the key's name. Not what an allocator adds to each of its allocations, nor the
    /// room that a history keeps for more. O(1).
    #[inline]
    pub fn charge(&self) -> usize {
        let ext = match &self.ext {
            None => 0,
            Some(ext) => ext.charge(),
        };
        size_of::<Record>() + self.current.blob.len() + ext + self.member.key_len()
    }

    /// The same, counted anew version by version, for a key with a name of so many bytes.
    pub fn recount(&self, key_len: usize) -> usize {
        let ext = self.ext.as_ref().map_or(0, |e| {
            let past = e.past.iter().map(|v| v.blob_len() + HEAD).sum::<usize>();
            size_of::<Ext>() + past + e.guard.as_ref().map_or(0, |g| g.bytes())
        });
        size_of::<Record>() + self.current.blob.len() + ext + key_len
    }

    /// What it would be charged if `next` were [pushed](Record::push) with so many drops and its lock and fences
    /// then were these; `record` is `None` if there is none yet. Its key's name has `key_len` bytes.
    pub fn charge_after(
        record: Option<&Record>,
        next: &Parts<'_>,
        drops: usize,
        guard: Option<&Guard>,
        key_len: usize,
    ) -> usize {
        let own = size_of::<Record>() + next.blob_len() + key_len;
        let guarded = guard.map_or(0, Guard::bytes);
        let empty = size_of::<Ext>() + guarded;
        let Some(record) = record else {
            return own + if guard.is_some() { empty } else { 0 };
        };
        if record.is_bare() {
            return own + empty;
        }
        let past = record.ext.as_ref().map(|e| &e.past);
        let kept = past.map_or(0, History::len);
        if drops > kept {
            let collapses = next.value.is_none() && guard.is_none();
            return own + if collapses { 0 } else { empty };
        }
        let past = past.map_or(0, |p| p.charge() - p.charge_of_oldest(drops));
        own + empty + past + record.current.blob.len() + HEAD
    }

    /// What it would be charged if its lock and fences were these; 0 if nothing would be left.
    pub fn charge_guarded(record: Option<&Record>, guard: &Guard, key_len: usize) -> usize {
        let Some(record) = record else {
            let bare = size_of::<Record>() + crate::version::WORD + size_of::<Ext>();
            return match guard.is_empty() {
                true => 0,
                false => bare + guard.bytes() + key_len,
            };
        };
        if record.is_bare() && guard.is_empty() {
            return 0;
        }
        let own = size_of::<Record>() + record.current.blob.len() + key_len;
        let current = record.current().stamp();
        let nothing = record.ext.as_ref().is_none_or(|e| e.says_nothing(current));
        let past = record.ext.as_ref().map_or(0, |e| e.past.charge());
        match guard.is_empty() {
            true if nothing => own,
            true => own + size_of::<Ext>() + past,
            false => own + size_of::<Ext>() + past + guard.bytes(),
        }
    }

    /// What its oldest replaced versions are charged for.
    pub fn charge_of_oldest(&self, drops: usize) -> usize {
        self.ext
            .as_ref()
            .map_or(0, |e| e.past.charge_of_oldest(drops))
    }

    /// How many allocations hold it.
    pub fn allocations(&self) -> usize {
        let guard = |e: &Ext| 3 * usize::from(e.guard.is_some());
        2 + self
            .ext
            .as_ref()
            .map_or(0, |e| 1 + e.past.allocations() + guard(e))
    }

    /// Where a reader or a writer looks next, to be fetched ahead: the record itself is at hand.
    #[inline]
    pub fn near(&self) -> [*const u8; 3] {
        let blob = self.current.blob.as_ptr();
        let ext = match &self.ext {
            None => std::ptr::null(),
            Some(ext) => std::ptr::from_ref(&**ext).cast::<u8>(),
        };
        [blob, ext, ext.wrapping_add(64)]
    }

    /// Where a writer looks after that: what is [`near`](Record::near) is at hand.
    #[inline]
    pub fn far(&self) -> [*const u8; 4] {
        let past = self.ext.as_ref().map(|e| e.past.far());
        past.unwrap_or([std::ptr::null(); 4])
    }

    /// How many of the oldest versions the limits let go, if a version is about to be written
    /// (`one_more`) or as things stand, at `now_us`.
    #[inline]
    pub fn surplus(&self, limits: &Limits, now_us: u64, one_more: bool) -> usize {
        if self.is_bare() {
            return 0;
        }
        let extra = usize::from(one_more);
        let (past, past_bytes, oldest) = match &self.ext {
            Some(e) if e.past.len() > 0 => (e.past.len(), e.past.bytes(), e.past.not_before()),
            _ => (0, 0, self.current().stamp()),
        };
        // The current version joins the replaced ones when another is written.
        let replaced = past + extra;
        let bytes = past_bytes + extra * self.current.blob.len();
        let cutoff = Stamp(now_us.saturating_sub(limits.history_age_us));
        // Nearly always none goes, or the oldest for the new one; and a version that was written
        // within the time was replaced within it.
        if bytes <= limits.history_bytes && oldest >= cutoff {
            match (replaced + 1).checked_sub(limits.history_versions) {
                None | Some(0) => return 0,
                Some(1) => return 1,
                _ => {}
            }
        }
        self.count_surplus(limits, cutoff, now_us, replaced, bytes)
    }

    fn count_surplus(
        &self,
        limits: &Limits,
        cutoff: Stamp,
        now_us: u64,
        replaced: usize,
        mut bytes: usize,
    ) -> usize {
        let mut versions = self.iter().peekable();
        let mut n = 0;
        while n < replaced {
            let Some(oldest) = versions.next() else { break };
            // A version was current until the next one came.
            let until = versions.peek().map_or(Stamp(now_us), |v| v.stamp());
            let too_many = replaced - n + 1 > limits.history_versions;
            if !too_many && bytes <= limits.history_bytes && until >= cutoff {
                break;
            }
            bytes -= oldest.blob_len();
            n += 1;
        }
        n
    }

    /// Makes a new version the current one; the one it replaces becomes history, of which the oldest
    /// `drops` go. Cannot fail.
    pub fn push(&mut self, next: &Parts<'_>, drops: usize) {
        let current = self.current();
        let (replaced, was_tombstone) = (current.stamp(), current.is_tombstone());
        let ext = self.ext.get_or_insert_with(|| {
            Box::new(Ext {
                created: replaced,
                ..Ext::default()
            })
        });
        if was_tombstone && next.value.is_some() {
            ext.created = next.stamp;
        }
        if replaced == Stamp::NONE {
            self.current.become_version(next);
            return;
        }
        // Dropped first: a full history then never grows.
        let from_past = drops.min(ext.past.len());
        ext.drop_oldest(from_past);
        if drops > from_past {
            ext.floor = replaced;
        } else {
            ext.past.keep(&mut self.current);
        }
        // A tombstone over nothing is kept as small as can be: a deletion never takes more room than what it
        // deletes.
        if drops > from_past && next.value.is_none() && ext.guard.is_none() {
            self.ext = None;
        }
        self.current.become_version(next);
    }

    /// Lets the oldest `drops` replaced versions go. Cannot fail.
    pub fn trim(&mut self, drops: usize) {
        if let Some(ext) = &mut self.ext {
            ext.drop_oldest(drops);
        }
    }

    /// Compresses the replaced versions whose value is at least `min` bytes long (0: none), the oldest
    /// first; about `budget` bytes of values are looked at. Says how many were compressed. A version that
    /// was too short, or did not shrink, is not looked at again.
    pub fn pack(&mut self, min: usize, budget: usize) -> usize {
        match &mut self.ext {
            Some(ext) if min > 0 => ext.past.pack(min, budget),
            _ => 0,
        }
    }

    /// True if [`Record::pack`] has something to look at.
    pub fn may_pack(&self, min: usize) -> bool {
        min > 0 && self.ext.as_ref().is_some_and(|e| e.past.may_pack())
    }

    /// Has `to` move the allocations that hold versions to another place in memory.
    pub fn move_blobs(&mut self, to: &mut dyn FnMut(Box<[u8]>) -> Box<[u8]>) {
        let current = std::mem::take(&mut self.current.blob);
        self.current.blob = to(current);
        if let Some(ext) = &mut self.ext {
            ext.past.move_blobs(to);
        }
    }
}
