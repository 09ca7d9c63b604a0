//! One immutable write: its bytes, and how they are read.
//!
//! One run of bytes holds a version: a word with the stamp (53 bits) and flags; if there are any, the
//! lengths of metadata (4 bytes) and request id (1 byte), the time that the writer gave (8 bytes, if it gave
//! one) and then these; then the value, plain or LZ4 (its plain length in 4 bytes first). The writer is beside it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::{Stamp, Who};

const TOMBSTONE: u64 = 1 << 53;
const EXTRAS: u64 = 1 << 54;
const PACKED: u64 = 1 << 55;
/// With `EXTRAS` only.
const TIMED: u64 = 1 << 56;
const KNOWN_BITS: u64 = Stamp::MAX.0 | TOMBSTONE | EXTRAS | PACKED | TIMED;
/// The word before everything else.
pub(crate) const WORD: usize = 8;
/// The lengths of metadata and request id, where a version has any.
const EXTRAS_HEAD: usize = 5;

/// How many bytes the time takes.
fn time_len(word: u64) -> usize {
    if word & TIMED != 0 {
        size_of::<u64>()
    } else {
        0
    }
}

/// What a version is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Its number and time.
    pub stamp: Stamp,
    /// Who wrote it.
    pub who: &'a Arc<Who>,
    /// The value; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// The metadata, if it has any.
    pub meta: Option<&'a [u8]>,
    /// The request id, if it has one.
    pub reqid: Option<&'a [u8]>,
    /// When its writer says that it was made, in milliseconds of unix time.
    pub time_ms: Option<u64>,
}

impl Parts<'_> {
    fn word(&self) -> u64 {
        let mut word = self.stamp.0;
        if self.value.is_none() {
            word |= TOMBSTONE;
        }
        if self.meta.is_some() || self.reqid.is_some() {
            word |= EXTRAS;
        }
        if self.time_ms.is_some() {
            word |= EXTRAS | TIMED;
        }
        word
    }

    /// How many bytes hold the version that is made of this.
    #[inline]
    pub(crate) fn blob_len(&self) -> usize {
        let word = self.word();
        let extras = match word & EXTRAS {
            0 => 0,
            _ => {
                let texts = [self.meta, self.reqid].into_iter().flatten();
                EXTRAS_HEAD + time_len(word) + texts.map(<[u8]>::len).sum::<usize>()
            }
        };
        WORD + extras + self.value.map_or(0, <[u8]>::len)
    }

    fn blob(&self) -> Box<[u8]> {
        let value = self.value.unwrap_or_default();
        let word = self.word();
        if word & EXTRAS == 0 {
            let mut blob = Vec::with_capacity(WORD + value.len());
            blob.extend_from_slice(&word.to_le_bytes());
            blob.extend_from_slice(value);
            return blob.into_boxed_slice();
        }
        let (meta, reqid) = (
            self.meta.unwrap_or_default(),
            self.reqid.unwrap_or_default(),
        );
        let extras = EXTRAS_HEAD + time_len(word) + meta.len() + reqid.len();
        let mut blob = Vec::with_capacity(WORD + extras + value.len());
        blob.extend_from_slice(&word.to_le_bytes());
        // Bounded by META_MAX and REQID_MAX before a version is made.
        blob.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        blob.push(reqid.len() as u8);
        if let Some(ms) = self.time_ms {
            blob.extend_from_slice(&ms.to_le_bytes());
        }
        blob.extend_from_slice(meta);
        blob.extend_from_slice(reqid);
        blob.extend_from_slice(value);
        blob.into_boxed_slice()
    }
}

/// A version that owns its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) blob: Box<[u8]>,
    pub(crate) who: Arc<Who>,
}

impl Owned {
    pub(crate) fn new(parts: &Parts<'_>) -> Owned {
        Owned {
            blob: parts.blob(),
            who: parts.who.clone(),
        }
    }

    /// What stands in the place of a version where there is none: no stamp, no value.
    pub(crate) fn nothing(who: Arc<Who>) -> Owned {
        Owned {
            blob: TOMBSTONE.to_le_bytes().into(),
            who,
        }
    }

    pub(crate) fn copy_of(version: Version<'_>) -> Owned {
        Owned {
            blob: version.blob.into(),
            who: version.who.clone(),
        }
    }

    /// Becomes another version, in the same allocation if it fits exactly.
    pub(crate) fn become_version(&mut self, parts: &Parts<'_>) {
        let word = parts.word();
        let value = parts.value.unwrap_or_default();
        if word & EXTRAS == 0 && self.blob.len() == WORD + value.len() {
            let (head, body) = self.blob.split_at_mut(WORD);
            head.copy_from_slice(&word.to_le_bytes());
            body.copy_from_slice(value);
        } else {
            self.blob = parts.blob();
        }
        if !Arc::ptr_eq(&self.who, parts.who) {
            self.who = parts.who.clone();
        }
    }

    #[inline(always)]
    pub(crate) fn view(&self) -> Version<'_> {
        Version {
            blob: &self.blob,
            who: &self.who,
        }
    }
}

/// The stamp of a version in its bytes, of which no more is looked at.
pub(crate) fn stamp_of(blob: &[u8]) -> Option<Stamp> {
    let word = u64::from_le_bytes(*blob.first_chunk()?);
    Some(Stamp(word & Stamp::MAX.0))
}

/// A version, wherever it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Version<'r> {
    blob: &'r [u8],
    who: &'r Arc<Who>,
}

impl<'r> Version<'r> {
    /// The version in bytes that came from [`Version::blob`], here or elsewhere. `None` if they are not
    /// such bytes: a stamp of 0, an unknown flag, lengths that do not add up, a tombstone with a
    /// value, a packed value that does not unpack or is longer than `value_max`. What unpacking a value
    /// takes is taken off `unpack`; when that is used up, no more are taken.
    pub fn from_blob(
        blob: &'r [u8],
        who: &'r Arc<Who>,
        value_max: usize,
        unpack: &mut usize,
    ) -> Option<Version<'r>> {
        let word = u64::from_le_bytes(blob.get(..WORD)?.try_into().ok()?);
        if word & !KNOWN_BITS != 0 || word & Stamp::MAX.0 == 0 {
            return None;
        }
        if word & EXTRAS != 0 {
            let head = blob.get(WORD..WORD + EXTRAS_HEAD)?;
            let meta = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
            let all = meta.checked_add(head[4] as usize + time_len(word))?;
            if all == 0 || all > blob.len() - WORD - EXTRAS_HEAD {
                return None;
            }
        } else if word & TIMED != 0 {
            return None;
        }
        let version = Version { blob, who };
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

    /// The version in bytes that this node has put together itself.
    #[inline(always)]
    pub(crate) fn trusted(blob: &'r [u8], who: &'r Arc<Who>) -> Version<'r> {
        Version { blob, who }
    }

    /// How many bytes hold this version, its writer apart.
    #[inline]
    pub fn blob_len(self) -> usize {
        self.blob.len()
    }

    /// The bytes that hold this version, its writer apart.
    pub fn blob(self) -> &'r [u8] {
        self.blob
    }

    #[inline(always)]
    fn word(self) -> u64 {
        self.blob
            .first_chunk::<WORD>()
            .map_or(0, |w| u64::from_le_bytes(*w))
    }

    /// The stamp of the version whose bytes begin here; none if there are none.
    #[inline(always)]
    pub(crate) fn stamp_of(bytes: &[u8]) -> Stamp {
        let word = bytes.first_chunk::<WORD>();
        Stamp(word.map_or(0, |w| u64::from_le_bytes(*w)) & Stamp::MAX.0)
    }

    /// The stamp: this version's number and time.
    #[inline]
    pub fn stamp(self) -> Stamp {
        Stamp(self.word() & Stamp::MAX.0)
    }

    /// True for a deletion.
    #[inline]
    pub fn is_tombstone(self) -> bool {
        self.word() & TOMBSTONE != 0
    }

    /// True if the value is kept compressed.
    pub fn is_packed(self) -> bool {
        self.word() & PACKED != 0
    }

    /// Who wrote it.
    pub fn who(self) -> &'r Arc<Who> {
        self.who
    }

    /// (metadata, request id, body)
    fn parts(self) -> (&'r [u8], &'r [u8], &'r [u8]) {
        if self.word() & EXTRAS == 0 {
            return (&[], &[], &self.blob[WORD..]);
        }
        let rest = &self.blob[WORD..];
        let meta_len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let (meta, rest_) = rest[EXTRAS_HEAD + time_len(self.word())..].split_at(meta_len);
        let (reqid, body) = rest_.split_at(rest[4] as usize);
        (meta, reqid, body)
    }

    fn body(self) -> &'r [u8] {
        self.parts().2
    }

    /// The metadata, if it has any.
    pub fn meta(self) -> Option<&'r [u8]> {
        Some(self.parts().0).filter(|m| !m.is_empty())
    }

    /// The request id, if it has one.
    pub fn reqid(self) -> Option<&'r [u8]> {
        Some(self.parts().1).filter(|r| !r.is_empty())
    }

    /// When its writer says that it was made, in milliseconds of unix time, if it said so.
    pub fn time_given(self) -> Option<u64> {
        let from = WORD + EXTRAS_HEAD;
        let time = self.blob.get(from..)?.first_chunk()?;
        (self.word() & TIMED != 0).then(|| u64::from_le_bytes(*time))
    }

    /// When it was made, in milliseconds of unix time: by its writer's word, or else by its stamp.
    pub fn time_ms(self) -> u64 {
        self.time_given().unwrap_or(self.stamp().millis())
    }

    /// The value; `None` for a tombstone.
    #[inline(always)]
    pub fn value(self) -> Option<Cow<'r, [u8]>> {
        // Most are plain, and a read is made of little else.
        match self.word() & (TOMBSTONE | EXTRAS | PACKED) {
            0 => Some(Cow::Borrowed(&self.blob[WORD..])),
            _ => self.special_value(),
        }
    }

    fn special_value(self) -> Option<Cow<'r, [u8]>> {
        if self.is_tombstone() {
            return None;
        }
        let body = self.body();
        if !self.is_packed() {
            return Some(Cow::Borrowed(body));
        }
        let plain = u32::from_le_bytes([body[0], body[1], body[2], body[3]]) as usize;
        // Packed here, or unpacked once when it was loaded.
        let value = lz4_flex::block::decompress(&body[4..], plain);
        Some(Cow::Owned(value.expect("a packed value unpacks")))
    }

    /// The length of the value.
    pub fn value_len(self) -> usize {
        let body = self.body();
        match body.first_chunk::<4>() {
            Some(len) if self.is_packed() => u32::from_le_bytes(*len) as usize,
            _ => body.len(),
        }
    }

    /// Appends the same version, with its value compressed where it is at least `min` bytes long and
    /// that makes it smaller. True if it was compressed.
    pub(crate) fn pack_into(self, min: usize, out: &mut Vec<u8>) -> bool {
        let value = self.body();
        if !self.is_packed() && value.len() >= min {
            let packed = lz4_flex::block::compress(value);
            if packed.len() + 4 < value.len() {
                out.extend_from_slice(&(self.word() | PACKED).to_le_bytes());
                out.extend_from_slice(&self.blob[WORD..self.blob.len() - value.len()]);
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(&packed);
                return true;
            }
        }
        out.extend_from_slice(self.blob);
        false
    }
}

/// Equal in what a reader sees; whether a value is compressed is not part of it.
impl PartialEq for Version<'_> {
    fn eq(&self, other: &Version<'_>) -> bool {
        self.stamp() == other.stamp()
            && self.who == other.who
            && self.meta() == other.meta()
            && self.reqid() == other.reqid()
            && self.time_given() == other.time_given()
            && self.value() == other.value()
    }
}
