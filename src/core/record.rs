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
//! A million keys with one version each are the common case, so such a record is one box of 32
//! bytes and one allocation for everything its version holds; whatever only some records have is
//! behind one pointer.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::{Limits, REQID_WINDOW};
use crate::{Stamp, Who};

const TOMBSTONE: u64 = 1 << 53;
const EXTRAS: u64 = 1 << 54;
const PACKED: u64 = 1 << 55;
/// Compression would not help: not tried again. A note of this node's own, which does not travel.
const UNPACKABLE: u64 = 1 << 56;
const KNOWN_BITS: u64 = Stamp::MAX.0 | TOMBSTONE | EXTRAS | PACKED;
/// The word before everything else.
const WORD: usize = 8;
/// The lengths of metadata and request id, where a version has any.
const EXTRAS_HEAD: usize = 5;

/// One immutable write.
///
/// One allocation holds it: a word with the stamp (53 bits) and flags; if there are any, the
/// lengths of metadata (4 bytes) and request id (1 byte) and then these; then the value, plain or
/// LZ4 (its plain length in 4 bytes first).
#[derive(Clone, Debug)]
pub struct Version {
    blob: Box<[u8]>,
    who: Arc<Who>,
}

impl Version {
    /// A version that holds `value`, or a tombstone.
    pub fn new(
        stamp: Stamp,
        who: Arc<Who>,
        value: Option<&[u8]>,
        meta: Option<&[u8]>,
        reqid: Option<&[u8]>,
    ) -> Version {
        let mut word = stamp.0;
        if value.is_none() {
            word |= TOMBSTONE;
        }
        let value = value.unwrap_or_default();
        if meta.is_none() && reqid.is_none() {
            let mut blob = Vec::with_capacity(WORD + value.len());
            blob.extend_from_slice(&word.to_le_bytes());
            blob.extend_from_slice(value);
            return Version {
                blob: blob.into_boxed_slice(),
                who,
            };
        }
        let (meta, reqid) = (meta.unwrap_or_default(), reqid.unwrap_or_default());
        let mut blob =
            Vec::with_capacity(WORD + EXTRAS_HEAD + meta.len() + reqid.len() + value.len());
        blob.extend_from_slice(&(word | EXTRAS).to_le_bytes());
        // Bounded by META_MAX and REQID_MAX before a version is made.
        blob.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        blob.push(reqid.len() as u8);
        blob.extend_from_slice(meta);
        blob.extend_from_slice(reqid);
        blob.extend_from_slice(value);
        Version {
            blob: blob.into_boxed_slice(),
            who,
        }
    }

    /// A version from bytes that [`Version::blob`] gave, here or elsewhere. `None` if they are not
    /// such bytes: a stamp of 0, an unknown flag, lengths that do not add up, a tombstone with a
    /// value, a packed value that does not unpack or is longer than `value_max`. What unpacking a value
    /// takes is taken off `unpack`; when that is used up, no more are taken.
    pub fn from_blob(
        blob: &[u8],
        who: Arc<Who>,
        value_max: usize,
        unpack: &mut usize,
    ) -> Option<Version> {
        let word = u64::from_le_bytes(blob.get(..WORD)?.try_into().ok()?);
        if word & !KNOWN_BITS != 0 || word & Stamp::MAX.0 == 0 {
            return None;
        }
        if word & EXTRAS != 0 {
            let head = blob.get(WORD..WORD + EXTRAS_HEAD)?;
            let meta = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
            let both = meta.checked_add(head[4] as usize)?;
            if both == 0 || both > blob.len() - WORD - EXTRAS_HEAD {
                return None;
            }
        }
        let version = Version {
            blob: blob.into(),
            who,
        };
        let body = version.body();
        if version.is_tombstone() && !body.is_empty() {
            return None;
        }
        if word & PACKED != 0 {
            let plain = u32::from_le_bytes(body.get(..4)?.try_into().ok()?) as usize;
            // LZ4 cannot do better than 255 to 1: a longer claim is a lie, found before memory
            // is taken for it.
            if plain > value_max || plain / 255 > body.len() {
                return None;
            }
            *unpack = unpack.checked_sub(plain)?;
            let unpacked = lz4_flex::block::decompress(&body[4..], plain).ok()?;
            return (unpacked.len() == plain).then_some(version);
        }
        (body.len() <= value_max).then_some(version)
    }

    /// How many bytes hold this version, its writer apart.
    pub fn blob_len(&self) -> usize {
        self.blob.len()
    }

    /// The bytes that hold this version, its writer apart, as they travel: the word and the rest.
    pub fn blob(&self) -> ([u8; WORD], &[u8]) {
        let word = self.word() & KNOWN_BITS;
        (word.to_le_bytes(), &self.blob[WORD..])
    }

    fn word(&self) -> u64 {
        self.blob
            .first_chunk::<WORD>()
            .map_or(0, |w| u64::from_le_bytes(*w))
    }

    /// The stamp: this version's number and time.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.word() & Stamp::MAX.0)
    }

    /// True for a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.word() & TOMBSTONE != 0
    }

    /// True if the value is kept compressed.
    pub fn is_packed(&self) -> bool {
        self.word() & PACKED != 0
    }

    /// Who wrote it.
    pub fn who(&self) -> &Arc<Who> {
        &self.who
    }

    /// (metadata, request id, body)
    fn parts(&self) -> (&[u8], &[u8], &[u8]) {
        if self.word() & EXTRAS == 0 {
            return (&[], &[], &self.blob[WORD..]);
        }
        let rest = &self.blob[WORD..];
        let meta_len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let (meta, rest_) = rest[EXTRAS_HEAD..].split_at(meta_len);
        let (reqid, body) = rest_.split_at(rest[4] as usize);
        (meta, reqid, body)
    }

    fn body(&self) -> &[u8] {
        self.parts().2
    }

    /// The metadata, if it has any.
    pub fn meta(&self) -> Option<&[u8]> {
        Some(self.parts().0).filter(|m| !m.is_empty())
    }

    /// The request id, if it has one.
    pub fn reqid(&self) -> Option<&[u8]> {
        Some(self.parts().1).filter(|r| !r.is_empty())
    }

    /// The value; `None` for a tombstone.
    pub fn value(&self) -> Option<Cow<'_, [u8]>> {
        let word = self.word();
        if word & TOMBSTONE != 0 {
            return None;
        }
        let body = self.body();
        if word & PACKED == 0 {
            return Some(Cow::Borrowed(body));
        }
        let plain = u32::from_le_bytes([body[0], body[1], body[2], body[3]]) as usize;
        // Packed here, or unpacked once when it was loaded.
        let value = lz4_flex::block::decompress(&body[4..], plain);
        Some(Cow::Owned(value.expect("a packed value unpacks")))
    }

    /// The length of the value.
    pub fn value_len(&self) -> usize {
        let body = self.body();
        match body.first_chunk::<4>() {
            Some(len) if self.is_packed() => u32::from_le_bytes(*len) as usize,
            _ => body.len(),
        }
    }

    fn is_settled(&self) -> bool {
        self.word() & (PACKED | UNPACKABLE) != 0
    }

    fn settle(&mut self) {
        let word = self.word() | UNPACKABLE;
        self.blob[..WORD].copy_from_slice(&word.to_le_bytes());
    }

    /// The same version with its value compressed, if that makes it smaller.
    fn packed(&self) -> Option<Version> {
        let value = self.body();
        let packed = lz4_flex::block::compress(value);
        if packed.len() + 4 >= value.len() {
            return None;
        }
        let head = self.blob.len() - value.len();
        let mut blob = Vec::with_capacity(head + 4 + packed.len());
        blob.extend_from_slice(&(self.word() | PACKED).to_le_bytes());
        blob.extend_from_slice(&self.blob[WORD..head]);
        blob.extend_from_slice(&(value.len() as u32).to_le_bytes());
        blob.extend_from_slice(&packed);
        Some(Version {
            blob: blob.into_boxed_slice(),
            who: self.who.clone(),
        })
    }
}

/// Equal in what a reader sees; whether a value is compressed is not part of it.
impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        self.stamp() == other.stamp()
            && self.who == other.who
            && self.meta() == other.meta()
            && self.reqid() == other.reqid()
            && self.value() == other.value()
    }
}

/// What only some records have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ext {
    /// The first version of the present life.
    pub(crate) created: Stamp,
    /// The newest version trimmed away; [`Stamp::NONE`] if none was.
    pub(crate) floor: Stamp,
    /// The replaced versions, oldest first.
    pub(crate) past: VecDeque<Version>,
    /// The bytes of their blobs.
    pub(crate) past_bytes: usize,
}

/// The value of a state key.
#[derive(Clone, Debug)]
pub struct Record {
    current: Version,
    ext: Option<Box<Ext>>,
}

/// Equal in what a reader sees.
impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        self.created() == other.created()
            && self.floor() == other.floor()
            && self.len() == other.len()
            && self.iter().eq(other.iter())
    }
}

impl Record {
    /// A record with one version.
    pub fn new(current: Version) -> Record {
        Record { current, ext: None }
    }

    /// A record put together from its parts, versions oldest first. `None` if they contradict each
    /// other: no version, stamps that do not rise, a floor or a creation that does not fit.
    pub fn from_parts(
        created: Stamp,
        floor: Stamp,
        mut versions: VecDeque<Version>,
    ) -> Option<Record> {
        let rising = |i: usize| versions[i].stamp() < versions[i + 1].stamp();
        if !(0..versions.len().saturating_sub(1)).all(rising) {
            return None;
        }
        let oldest = versions.front()?.stamp();
        let current = versions.pop_back()?;
        if floor >= oldest || created == Stamp::NONE || created > current.stamp() {
            return None;
        }
        let past_bytes = versions.iter().map(|v| v.blob.len()).sum();
        let ext = Ext {
            created,
            floor,
            past: versions,
            past_bytes,
        };
        let plain = ext.past.is_empty() && floor == Stamp::NONE && created == current.stamp();
        Some(Record {
            current,
            ext: (!plain).then(|| Box::new(ext)),
        })
    }

    /// The current version, be it a tombstone.
    pub fn current(&self) -> &Version {
        &self.current
    }

    /// The current version, if it is live.
    pub fn live(&self) -> Option<&Version> {
        Some(&self.current).filter(|v| !v.is_tombstone())
    }

    /// The first version of the present life.
    pub fn created(&self) -> Stamp {
        self.ext
            .as_ref()
            .map_or(self.current.stamp(), |e| e.created)
    }

    /// The newest version trimmed away; [`Stamp::NONE`] if none was.
    pub fn floor(&self) -> Stamp {
        self.ext.as_ref().map_or(Stamp::NONE, |e| e.floor)
    }

    /// How many versions are kept, the current one among them.
    pub fn len(&self) -> usize {
        1 + self.ext.as_ref().map_or(0, |e| e.past.len())
    }

    /// Never: a record has a version.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The `n`-th version, the oldest being 0.
    pub fn nth(&self, n: usize) -> Option<&Version> {
        let past = self.ext.as_ref().map_or(0, |e| e.past.len());
        match n.cmp(&past) {
            std::cmp::Ordering::Less => self.ext.as_ref()?.past.get(n),
            std::cmp::Ordering::Equal => Some(&self.current),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// All versions, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Version> {
        let past = self.ext.iter().flat_map(|e| e.past.iter());
        past.chain(std::iter::once(&self.current))
    }

    /// The place of the version with this stamp.
    pub fn find(&self, stamp: Stamp) -> Option<usize> {
        let at = self.partition_point(stamp);
        self.nth(at).filter(|v| v.stamp() == stamp).map(|_| at)
    }

    /// How many versions are older than this stamp.
    pub fn partition_point(&self, stamp: Stamp) -> usize {
        let past = match &self.ext {
            Some(e) => e.past.partition_point(|v| v.stamp() < stamp),
            None => 0,
        };
        if past + 1 == self.len() && self.current.stamp() < stamp {
            return past + 1;
        }
        past
    }

    /// The stamp of the version that a request with this id wrote, if it is among the last
    /// [`REQID_WINDOW`].
    pub fn written_by_request(&self, reqid: &[u8]) -> Option<Stamp> {
        let mut recent = self.iter().rev().take(REQID_WINDOW);
        recent
            .find(|v| v.reqid() == Some(reqid))
            .map(Version::stamp)
    }

    /// The bytes of the versions, and of what holds them together. O(1).
    pub fn bytes(&self) -> usize {
        let ext = self.ext.as_ref().map_or(0, |e| {
            size_of::<Ext>() + e.past_bytes + e.past.capacity() * size_of::<Version>()
        });
        size_of::<Record>() + self.current.blob.len() + ext
    }

    /// How many of the oldest versions the limits let go, if a version is about to be written
    /// (`one_more`) or as things stand, at `now_us`.
    pub fn surplus(&self, limits: &Limits, now_us: u64, one_more: bool) -> usize {
        let extra = usize::from(one_more);
        if self.ext.is_none() && limits.history_versions > 1 && !one_more {
            return 0;
        }
        // The current version joins the replaced ones when another is written.
        let replaced = self.len() - 1 + extra;
        let mut bytes =
            self.ext.as_ref().map_or(0, |e| e.past_bytes) + extra * self.current.blob.len();
        let cutoff = Stamp(now_us.saturating_sub(limits.history_age_us));
        let mut n = 0;
        while n < replaced {
            // A version was current until the next one came.
            let until = self.nth(n + 1).map_or(Stamp(now_us), Version::stamp);
            let too_many = replaced - n + 1 > limits.history_versions;
            if !too_many && bytes <= limits.history_bytes && until >= cutoff {
                break;
            }
            bytes -= self.nth(n).map_or(0, |v| v.blob.len());
            n += 1;
        }
        n
    }

    /// Makes `next` the current version; the one it replaces becomes history, of which the oldest
    /// `drops` go. Cannot fail.
    pub fn push(&mut self, next: Version, drops: usize) {
        let ext = self.ext.get_or_insert_with(|| {
            Box::new(Ext {
                created: self.current.stamp(),
                ..Ext::default()
            })
        });
        if self.current.is_tombstone() && !next.is_tombstone() {
            ext.created = next.stamp();
        }
        let replaced = std::mem::replace(&mut self.current, next);
        // Dropped first: a full history then never grows.
        let from_past = drops.min(ext.past.len());
        ext.drop_oldest(from_past);
        if drops > from_past {
            ext.floor = replaced.stamp();
        } else {
            ext.keep(replaced);
        }
    }

    /// Lets the oldest `drops` replaced versions go. Cannot fail.
    pub fn trim(&mut self, drops: usize) {
        if let Some(ext) = &mut self.ext {
            ext.drop_oldest(drops);
        }
    }

    /// Compresses the replaced versions whose value is at least `min` bytes long (0: none), the oldest
    /// first; at most `budget` bytes of values are looked at, and one more. Says how many were
    /// compressed. A version that was too short, or did not shrink, is not looked at again.
    pub fn pack(&mut self, min: usize, mut budget: usize) -> usize {
        let Some(ext) = self.ext.as_mut().filter(|_| min > 0) else {
            return 0;
        };
        // What has been looked at lies before what has not.
        let waiting = ext.past.iter().rev().take_while(|v| !v.is_settled());
        let from = ext.past.len() - waiting.count();
        let mut done = 0;
        for v in ext.past.iter_mut().skip(from) {
            if budget == 0 {
                break;
            }
            let len = v.value_len();
            budget = budget.saturating_sub(len.max(64));
            match (len >= min).then(|| v.packed()).flatten() {
                Some(packed) => {
                    ext.past_bytes -= v.blob.len() - packed.blob.len();
                    *v = packed;
                    done += 1;
                }
                None => v.settle(),
            }
        }
        done
    }

    /// True if [`Record::pack`] has something to look at.
    pub fn may_pack(&self, min: usize) -> bool {
        let newest = self.ext.as_ref().and_then(|e| e.past.back());
        min > 0 && newest.is_some_and(|v| !v.is_settled())
    }

    /// Hands out every allocation that holds a version, so that they can be moved in memory.
    pub fn blobs_mut(&mut self) -> impl Iterator<Item = &mut Box<[u8]>> {
        let past = self.ext.iter_mut().flat_map(|e| e.past.iter_mut());
        std::iter::once(&mut self.current)
            .chain(past)
            .map(|v| &mut v.blob)
    }
}

impl Ext {
    fn drop_oldest(&mut self, n: usize) {
        for _ in 0..n {
            let Some(v) = self.past.pop_front() else {
                return;
            };
            self.past_bytes -= v.blob.len();
            self.floor = v.stamp();
        }
    }

    fn keep(&mut self, v: Version) {
        if self.past.len() == self.past.capacity() {
            // An eighth at a time: the spare room is memory that a history holds for nothing.
            self.past.reserve_exact((self.past.len() / 8).max(2));
        }
        self.past_bytes += v.blob.len();
        self.past.push_back(v);
    }
}
