//! Listing keys in order: what MAOS.RANGE answers.
//!
//! The names come from an index that may hold some which are no state key any more, but lacks none. What is there, and
//! whether it is to be listed, is looked at key by key.

use std::borrow::Cow;
use std::ops::Bound;

use crate::config::LISTED_LOOKED_AT;
use crate::glob::are_apart;
use crate::record::Record;
use crate::refusal::Quoted;
use crate::wire::range::{Listed, ListedFull, Range, RangeReply};
use crate::{Code, Refusal};

/// A reply has not many more bytes of keys and values than this.
const BYTES: usize = 1 << 20;
/// So many names are asked for at once.
const NAMES: usize = 128;
/// So many keys in a row that the user may not read are passed over.
const HIDDEN_MAX: usize = 100_000;

/// Keys are not kept in order.
pub const NO_INDEX: Refusal = Refusal::fixed(
    Code::Err,
    "this node keeps no index of its keys: set maos.range-index to yes",
);

/// The keys of a node, as one user sees them.
pub trait Keyspace {
    /// Names in order, from here on, at most so many. None of a state key is left out.
    fn names(&mut self, from: Bound<&[u8]>, most: usize) -> Vec<Box<[u8]>>;

    /// Shows what a state key holds, and in how many milliseconds it expires (-1: it does not).
    fn look(&mut self, name: &[u8], then: &mut dyn FnMut(&Record, i64));

    /// Whether the user may read a key of this name.
    fn may_read(&self, name: &[u8]) -> bool;

    /// What each of the keys that the user may read begins with one of.
    fn readable(&self) -> Vec<Vec<u8>>;
}

/// The first name that the user could read, from this one on, by what those begin with that it may.
fn next_readable<'n>(name: &'n [u8], readable: &'n [Vec<u8>]) -> Option<&'n [u8]> {
    if readable.iter().any(|r| name.starts_with(r)) {
        return Some(name);
    }
    let later = readable.iter().map(Vec::as_slice).filter(|r| *r > name);
    later.min()
}

/// Whether there is a key of this name still: its time may be over, and the name not be gone yet.
fn is_there(keys: &mut impl Keyspace, name: &[u8]) -> bool {
    let mut is_there = false;
    keys.look(name, &mut |_, _| is_there = true);
    is_there
}

impl Range<'_> {
    /// The keys that are asked for.
    ///
    /// # Errors
    /// `NOPERM` if the user may read no key with the prefix; `LIMIT` if it may read so few of them that none is found.
    pub fn list(&self, keys: &mut impl Keyspace) -> Result<RangeReply<'static>, Refusal> {
        let prefix = &*self.prefix;
        let mut readable = None;
        if !keys.may_read(prefix) {
            let may = readable.insert(keys.readable());
            if may.iter().all(|r| are_apart(prefix, r)) {
                let text = "the user may read no key that begins with this prefix";
                return Err(Refusal::fixed(Code::NoPerm, text));
            }
        }
        let mut from = match &self.after {
            Some(after) if **after >= *prefix => Bound::Excluded(after.to_vec()),
            _ => Bound::Included(prefix.to_vec()),
        };
        let mut reply = RangeReply::default();
        let (mut bytes, mut looked, mut hidden) = (0, 0, 0);
        let mut last: Option<Box<[u8]>> = None;
        'more: loop {
            let names = keys.names(from.as_ref().map(Vec::as_slice), NAMES);
            let Some(end) = names.last() else {
                return Ok(reply);
            };
            from = Bound::Excluded(end.to_vec());
            for name in names {
                if !name.starts_with(prefix) {
                    return Ok(reply);
                }
                if !keys.may_read(&name) {
                    hidden += 1;
                    if hidden > HIDDEN_MAX {
                        break 'more;
                    }
                    let readable = readable.get_or_insert_with(|| keys.readable());
                    match next_readable(&name, readable) {
                        None => return Ok(reply),
                        Some(later) if *later != *name => {
                            from = Bound::Included(later.to_vec());
                            continue 'more;
                        }
                        Some(_) => continue,
                    }
                }
                let is_full = reply.keys.len() >= self.most() || bytes >= BYTES;
                if looked >= LISTED_LOOKED_AT || is_full && is_there(keys, &name) {
                    break 'more;
                }
                (looked, hidden) = (looked + 1, 0);
                if is_full {
                    continue;
                }
                keys.look(&name, &mut |record, ttl_ms| {
                    if let Some(one) = self.show(&name, record, ttl_ms) {
                        bytes += size(&one);
                        reply.keys.push(one);
                    }
                });
                last = Some(name);
            }
        }
        match last {
            Some(last) => reply.next = Some(Cow::Owned(last.into())),
            // Where to go on cannot be said without naming a key that the user may not read.
            None => {
                let text = format!("the user may read none of {HIDDEN_MAX} keys in a row that begin with {}: ask for a longer prefix", Quoted(prefix));
                return Err(Refusal::new(Code::Limit, text));
            }
        }
        Ok(reply)
    }

    /// How a key is listed, if it is.
    fn show(&self, name: &[u8], record: &Record, ttl_ms: i64) -> Option<Listed<'static>> {
        let shown = match self.since {
            None => record.live()?,
            Some(since) if record.is_bare() || record.current().stamp() <= since.at => return None,
            Some(_) => record.current(),
        };
        let key = Cow::Owned(name.to_vec());
        if !self.full {
            return Some(Listed::Key(key));
        }
        let owned = |bytes: &[u8]| Cow::Owned(bytes.to_vec());
        Some(Listed::Full(Box::new(ListedFull {
            key,
            value: shown.value().map(|value| Cow::Owned(value.into_owned())),
            version: shown.stamp(),
            author: owned(&shown.who().author),
            agent: shown.who().agent.as_deref().map(owned),
            metadata: shown.meta().map(owned),
            ttl_ms,
        })))
    }
}

/// About how many bytes a key takes in a reply.
fn size(one: &Listed<'_>) -> usize {
    let len = |bytes: &Option<Cow<'_, [u8]>>| bytes.as_ref().map_or(0, |b| b.len());
    match one {
        Listed::Key(key) => key.len(),
        Listed::Full(full) => full.key.len() + len(&full.value) + len(&full.metadata),
    }
}
