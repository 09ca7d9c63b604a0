//! The replaced versions of a key, in few allocations.
//!
//! Versions that follow each other lie in one group: a run of 2 to 8 KiB in which each has a length,
//! the place of its writer, and its own bytes. So a version costs 13 bytes above its value, an
//! allocation is made for some eighteen versions of 100 bytes, and freed once when they have grown
//! old. A version too large for that is a group by itself, and stays in the allocation in which it was
//! current.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::{smallvec, SmallVec};

use crate::version::{Owned, Version};
use crate::{Stamp, Who};

/// A version of more bytes is a group by itself.
const ALONE: usize = 2048;
/// The room made for a group while it grows: few steps, and sizes that allocators have.
const ROOMS: [usize; 9] = [128, 384, 768, 1280, 2048, 3072, 4096, 6144, 8192];

/// How many bytes a group holds that begins with a version of so many.
fn full(len: usize) -> usize {
    (len * 16).clamp(2048, 8192)
}

const SECOND_US: u64 = 1_000_000;

/// The second of a stamp; the last that fits, in 2106, for those after it.
fn second(stamp: Stamp) -> u32 {
    u32::try_from(stamp.0 / SECOND_US).unwrap_or(u32::MAX)
}

/// What a processor fetches at once.
const LINE: usize = 64;

/// Before a version: its length in four bytes and the place of its writer in one. A group has no
/// more writers than versions, and a full one of the shortest versions has 157.
pub(crate) const HEAD: usize = 5;

/// Versions that follow each other.
#[derive(Clone, Debug, Default)]
struct Group {
    /// The versions, each after its head; or, if it is `alone`, the bytes of the only one.
    bytes: Vec<u8>,
    who: SmallVec<[Arc<Who>; 2]>,
    /// Where the oldest version that is kept has its head.
    from: u32,
    /// How many bytes it may hold; 0 while it is empty.
    full: u16,
    /// How many are kept.
    count: u16,
    /// How many of these, from the oldest on, need not be looked at for compression again.
    settled: u16,
    alone: bool,
}

impl Group {
    fn alone(version: Owned) -> Group {
        Group {
            bytes: version.blob.into_vec(),
            who: smallvec![version.who],
            from: 0,
            full: 0,
            count: 1,
            settled: 0,
            alone: true,
        }
    }

    /// Adds a version. `long`: room for a whole group is made at once, for it will be filled.
    fn append(&mut self, version: Version<'_>, long: bool) {
        let need = HEAD + version.blob_len();
        if self.bytes.capacity() - self.bytes.len() < need {
            self.make_room(need, long);
        }
        let place = self.who.iter().position(|w| Arc::ptr_eq(w, version.who()));
        let place = place.unwrap_or_else(|| {
            self.who.push(version.who().clone());
            self.who.len() - 1
        });
        let [a, b, c, d] = (version.blob_len() as u32).to_le_bytes();
        self.bytes.extend_from_slice(&[a, b, c, d, place as u8]);
        self.bytes.extend_from_slice(version.blob());
        self.count += 1;
    }

    #[cold]
    fn make_room(&mut self, need: usize, long: bool) {
        self.forget_dropped();
        let need = self.bytes.len() + need;
        let least = if long { self.full.into() } else { need };
        let room = ROOMS.into_iter().find(|r| *r >= least);
        let room = room.unwrap_or(need).max(need);
        self.bytes.reserve_exact(room - self.bytes.len());
    }

    /// Gives up the bytes of versions that were dropped.
    fn forget_dropped(&mut self) {
        self.bytes.drain(..self.from as usize);
        self.from = 0;
    }

    /// The bytes in use.
    fn used(&self) -> usize {
        self.bytes.len() - self.from as usize
    }

    fn iter(&self) -> Entries<'_> {
        Entries {
            group: self,
            at: self.from as usize,
            left: self.count as usize,
        }
    }

    fn newest_first(&self) -> impl Iterator<Item = Version<'_>> {
        let versions: SmallVec<[Version<'_>; 20]> = self.iter().collect();
        versions.into_iter().rev()
    }

    /// The stamp of the oldest one; of an empty group none.
    #[inline]
    fn oldest_stamp(&self) -> Stamp {
        let at = match self.alone {
            true => 0,
            false => self.from as usize + HEAD,
        };
        let bytes = self.bytes.get(at..).unwrap_or_default();
        Version::stamp_of(bytes)
    }

    fn waits(&self) -> bool {
        self.settled < self.count
    }

    /// Drops the oldest version; its bytes.
    #[inline]
    fn drop_oldest(&mut self) -> Option<usize> {
        let len = self.oldest_len()?;
        self.count -= 1;
        self.settled = self.settled.saturating_sub(1);
        match self.count {
            0 => *self = Group::default(),
            _ => self.from += (HEAD + len) as u32,
        }
        Some(len)
    }

    /// The bytes of the oldest version, if there is one.
    #[inline]
    fn oldest_len(&self) -> Option<usize> {
        if self.count == 0 || self.alone {
            return (self.count > 0).then_some(self.bytes.len());
        }
        let head = self.bytes.get(self.from as usize..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*head) as usize)
    }

    /// Compresses what has not been looked at. The bytes of values looked at, and how many were
    /// compressed.
    fn pack(&mut self, min: usize) -> (usize, usize) {
        let lens = self
            .iter()
            .skip(self.settled as usize)
            .map(Version::value_len);
        let (looked_at, longest) = lens.fold((0, 0), |(sum, max), len| (sum + len, len.max(max)));
        let done = match longest >= min {
            true => self.pack_now(min),
            false => 0,
        };
        self.settled = self.count;
        (looked_at, done)
    }

    fn pack_now(&mut self, min: usize) -> usize {
        let mut done = 0;
        let mut bytes = Vec::with_capacity(if self.alone { 0 } else { self.used() });
        for (n, (version, place)) in self.iter().zip(self.places()).enumerate() {
            let min = match n < self.settled as usize {
                true => usize::MAX,
                false => min,
            };
            let head = bytes.len();
            if !self.alone {
                bytes.extend_from_slice(&[0, 0, 0, 0, place]);
            }
            done += usize::from(version.pack_into(min, &mut bytes));
            if !self.alone {
                let len = (bytes.len() - head - HEAD) as u32;
                bytes[head..head + 4].copy_from_slice(&len.to_le_bytes());
            }
        }
        bytes.shrink_to_fit();
        (self.bytes, self.from) = (bytes, 0);
        done
    }

    /// For each version the place of its writer.
    fn places(&self) -> impl Iterator<Item = u8> + '_ {
        let mut at = self.from as usize;
        self.iter().map(move |v| {
            let place = match self.alone {
                true => 0,
                false => self.bytes[at + HEAD - 1],
            };
            at += HEAD + v.blob_len();
            place
        })
    }

    fn blob_bytes(&self) -> usize {
        self.iter().map(Version::blob_len).sum()
    }
}

/// The versions of a group, oldest first.
struct Entries<'g> {
    group: &'g Group,
    at: usize,
    left: usize,
}

impl<'g> Iterator for Entries<'g> {
    type Item = Version<'g>;

    #[inline]
    fn next(&mut self) -> Option<Version<'g>> {
        self.left = self.left.checked_sub(1)?;
        let g = self.group;
        if g.alone {
            return Some(Version::trusted(&g.bytes, &g.who[0]));
        }
        let (head, rest) = g.bytes[self.at..].split_at(HEAD);
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        self.at += HEAD + len;
        Some(Version::trusted(&rest[..len], &g.who[head[4] as usize]))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// The replaced versions of a key.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// The newest ones.
    tail: Group,
    /// Full groups before them, none of them empty.
    #[allow(clippy::box_collection)] // most histories are short, and have none
    older: Option<Box<VecDeque<Group>>>,
    bytes: usize,
    count: u32,
    /// The second in which the oldest one was written: every write asks, and its bytes lie far away.
    oldest_s: u32,
}

impl History {
    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.count as usize
    }

    /// The bytes of their blobs.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes that hold them, apart from this struct.
    #[inline]
    pub(crate) fn held(&self) -> usize {
        let older = self.older.as_ref().map_or(0, |o| {
            size_of::<VecDeque<Group>>() + o.capacity() * size_of::<Group>()
        });
        older + self.bytes + self.len() * HEAD + self.tail.bytes.capacity() - self.tail.bytes.len()
    }

    /// What they are charged for: their blobs, and what stands before each. Not the room that is kept for more
    /// of them.
    #[inline]
    pub(crate) fn charge(&self) -> usize {
        self.bytes + self.len() * HEAD
    }

    /// What the oldest `n` are charged for.
    pub(crate) fn charge_of_oldest(&self, n: usize) -> usize {
        match n {
            0 => 0,
            n if n >= self.len() => self.charge(),
            n => self.iter().take(n).map(|v| v.blob_len() + HEAD).sum(),
        }
    }

    /// How many allocations hold them.
    pub(crate) fn allocations(&self) -> usize {
        1 + self.older.as_ref().map_or(0, |o| o.len() + 2)
    }

    fn groups(&self) -> impl DoubleEndedIterator<Item = &Group> {
        let older = self.older.iter().flat_map(|o| o.iter());
        older.chain(std::iter::once(&self.tail))
    }

    /// All of them, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Version<'_>> {
        self.groups().flat_map(Group::iter)
    }

    /// All of them, newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = Version<'_>> {
        self.groups().rev().flat_map(Group::newest_first)
    }

    /// No stamp is older than this one.
    #[inline]
    pub(crate) fn not_before(&self) -> Stamp {
        Stamp(u64::from(self.oldest_s) * SECOND_US)
    }

    /// Where the next write puts and drops versions, to be fetched ahead.
    pub(crate) fn far(&self) -> [*const u8; 4] {
        let end = self.tail.bytes.as_ptr().wrapping_add(self.tail.bytes.len());
        let front = match &self.older {
            None => self
                .tail
                .bytes
                .as_ptr()
                .wrapping_add(self.tail.from as usize),
            Some(older) => std::ptr::from_ref(&**older).cast(),
        };
        [
            end,
            end.wrapping_add(LINE),
            end.wrapping_add(2 * LINE),
            front,
        ]
    }

    /// The `n`-th, the oldest being 0.
    pub(crate) fn nth(&self, mut n: usize) -> Option<Version<'_>> {
        for group in self.groups() {
            if n < group.count as usize {
                return group.iter().nth(n);
            }
            n -= group.count as usize;
        }
        None
    }

    /// How many are older than this stamp.
    pub(crate) fn partition_point(&self, stamp: Stamp) -> usize {
        let mut before = 0;
        for group in self.groups().rev() {
            match group.count > 0 && group.oldest_stamp() < stamp {
                true => {
                    let older = group.iter().take_while(|v| v.stamp() < stamp).count();
                    return self.len() - before - group.count as usize + older;
                }
                false => before += group.count as usize,
            }
        }
        0
    }

    /// Adds the version that is being replaced, and may take its bytes.
    pub(crate) fn keep(&mut self, replaced: &mut Owned) {
        if replaced.blob.len() <= ALONE {
            return self.append(replaced.view());
        }
        self.begin_group(replaced.view());
        self.tail = Group::alone(Owned {
            blob: std::mem::take(&mut replaced.blob),
            who: replaced.who.clone(),
        });
    }

    /// Adds a copy of a version.
    pub(crate) fn append(&mut self, version: Version<'_>) {
        let len = version.blob_len();
        if len > ALONE {
            self.begin_group(version);
            self.tail = Group::alone(Owned::copy_of(version));
            return;
        }
        if self.tail.used() + HEAD + len > self.tail.full.into() {
            self.begin_group(version);
            self.tail.full = full(len) as u16;
        } else {
            self.count_in(version);
        }
        self.tail.append(version, self.older.is_some());
    }

    #[inline]
    fn count_in(&mut self, version: Version<'_>) {
        if self.count == 0 {
            self.oldest_s = second(version.stamp());
        }
        self.bytes += version.blob_len();
        self.count += 1;
    }

    /// Puts the tail among the older groups; this version will be the first of a new one.
    fn begin_group(&mut self, first: Version<'_>) {
        self.count_in(first);
        if self.tail.count == 0 {
            self.tail = Group::default();
            return;
        }
        let mut full = std::mem::take(&mut self.tail);
        if !full.alone {
            full.forget_dropped();
        }
        if full.bytes.capacity() > full.bytes.len() + full.bytes.len() / 8 {
            full.bytes.shrink_to_fit();
        }
        self.older.get_or_insert_default().push_back(full);
    }

    /// Drops the oldest `n`; the stamp of the last one dropped.
    pub(crate) fn drop_oldest(&mut self, n: usize) -> Option<Stamp> {
        let mut last = None;
        for _ in 0..n.min(self.len()) {
            let mut older = self.older.as_mut().filter(|o| !o.is_empty());
            let front = older.as_mut().and_then(|o| o.front_mut());
            let front = front.unwrap_or(&mut self.tail);
            let stamp = front.oldest_stamp();
            let Some(len) = front.drop_oldest() else {
                break;
            };
            last = Some(stamp);
            self.oldest_s = second(front.oldest_stamp());
            if front.count == 0 {
                if let Some(older) = older {
                    older.pop_front();
                    let front = older.front().unwrap_or(&self.tail);
                    self.oldest_s = second(front.oldest_stamp());
                }
            }
            self.bytes -= len;
            self.count -= 1;
        }
        if self.count == 0 {
            self.older = None;
        }
        last
    }

    /// Compresses values of at least `min` bytes that have not been looked at, the oldest first, until
    /// `budget` bytes of values have been looked at. Says how many were compressed.
    pub(crate) fn pack(&mut self, min: usize, mut budget: usize) -> usize {
        // What has been looked at lies before what has not.
        let waiting = self.groups().rev().take_while(|g| g.waits()).count();
        let older = self.older.as_mut().map_or(0, |o| o.len());
        let mut done = 0;
        for n in older + 1 - waiting..=older {
            if budget == 0 {
                break;
            }
            let group = match self.older.as_mut().and_then(|o| o.get_mut(n)) {
                Some(group) => group,
                None => &mut self.tail,
            };
            let before = group.blob_bytes();
            let (looked_at, packed) = group.pack(min);
            self.bytes -= before - group.blob_bytes();
            budget = budget.saturating_sub(looked_at);
            done += packed;
        }
        done
    }

    /// True if [`History::pack`] has something to look at.
    pub(crate) fn may_pack(&self) -> bool {
        self.tail.waits()
    }

    /// Has every large or full allocation moved by `to`.
    pub(crate) fn move_blobs(&mut self, to: &mut dyn FnMut(Box<[u8]>) -> Box<[u8]>) {
        let tail = Some(&mut self.tail).filter(|t| t.alone);
        let older = self.older.iter_mut().flat_map(|o| o.iter_mut());
        for group in older.chain(tail) {
            let bytes = std::mem::take(&mut group.bytes);
            group.bytes = to(bytes.into_boxed_slice()).into_vec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Parts;
    use proptest::prelude::*;

    fn owned(stamp: u64, who: &Arc<Who>, value: &[u8]) -> Owned {
        Owned::new(&Parts {
            stamp: Stamp(stamp),
            who,
            value: Some(value),
            meta: None,
            reqid: None,
            time_ms: None,
        })
    }

    proptest! {
        /// A history is what a plain list of versions is, whatever comes and goes.
        #[test]
        fn a_history_is_a_list(steps in prop::collection::vec((0usize..4, 0usize..900, 0usize..3, 0usize..8), 1..200)) {
            let writers: Vec<_> = (0..4).map(|n| Arc::new(Who::new(&[n], None))).collect();
            let (mut history, mut list) = (History::default(), VecDeque::new());
            for (n, (writer, len, drops, rare)) in steps.into_iter().enumerate() {
                let len = if rare == 0 { len * 40 } else { len / 8 };
                let mut version = owned(n as u64 * 700_000 + 1, &writers[writer], &vec![n as u8; len]);
                list.push_back(version.clone());
                history.keep(&mut version);
                if rare == 1 {
                    history.pack(16, 2000);
                }
                let drops = if rare == 2 { drops * 20 } else { drops };
                let gone = list.drain(..drops.min(list.len())).next_back();
                prop_assert_eq!(history.drop_oldest(drops), gone.map(|v| v.view().stamp()));
                prop_assert_eq!(history.len(), list.len());
                prop_assert_eq!(history.bytes(), history.iter().map(Version::blob_len).sum::<usize>());
                prop_assert!(history.iter().eq(list.iter().map(Owned::view)));
                prop_assert!(history.newest_first().eq(list.iter().rev().map(Owned::view)));
                let oldest = list.front().map_or(Stamp::NONE, |v| v.view().stamp());
                prop_assert_eq!(history.not_before(), Stamp(oldest.0 / SECOND_US * SECOND_US));
                for (at, version) in list.iter().enumerate() {
                    let stamp = version.view().stamp();
                    prop_assert_eq!(history.nth(at), Some(version.view()));
                    prop_assert_eq!(history.partition_point(stamp), at);
                    prop_assert_eq!(history.partition_point(Stamp(stamp.0 + 1)), at + 1);
                }
                prop_assert_eq!(history.nth(list.len()), None);
            }
        }
    }

    #[test]
    fn few_allocations_hold_many_versions() {
        let who = Arc::new(Who::default());
        let mut history = History::default();
        for n in 1..1000 {
            history.keep(&mut owned(n, &who, &[7; 100]));
            if n > 99 {
                history.drop_oldest(1);
            }
        }
        assert_eq!(history.len(), 99);
        assert!(history.allocations() <= 9, "{}", history.allocations());
        let over = history.held() - 99 * 100;
        assert!(over < 99 * 40, "{over} bytes above the values");
    }

    #[test]
    fn what_has_been_looked_at_is_settled() {
        let who = Arc::new(Who::default());
        let mut history = History::default();
        for n in 1..40 {
            history.keep(&mut owned(n, &who, &vec![7; 20 * n as usize]));
        }
        assert!(history.may_pack());
        let packed = history.pack(256, usize::MAX);
        assert_eq!(packed, (1..40).filter(|n| 20 * n >= 256).count());
        assert!(!history.may_pack());
        assert_eq!(history.pack(256, usize::MAX), 0);
    }
}
