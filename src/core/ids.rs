//! Stamps, and who wrote.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

/// One number for every change: microseconds of unix time, made strictly increasing by each node's
/// hybrid clock. The stamp of a write is its version number and its time.
///
/// A stamp is below 2^53, so a double (JavaScript, Lua) holds it exactly. 0 is no stamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Stamp(pub u64);

impl Stamp {
    /// No version: what a key without a live value has.
    pub const NONE: Stamp = Stamp(0);
    /// The largest stamp, 2^53 - 1: the year 2255.
    pub const MAX: Stamp = Stamp((1 << 53) - 1);

    /// The unix time of this stamp in milliseconds.
    pub fn millis(self) -> u64 {
        self.0 / 1000
    }

    /// The stamp as the integer of a reply.
    pub fn as_i64(self) -> i64 {
        // Below 2^53 wherever a stamp is made or decoded.
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who wrote a version: the ACL user the server knows, and the agent the write declared with `BY`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Who {
    /// The ACL user of the connection. Never chosen by the client.
    pub author: Box<[u8]>,
    /// The declared agent.
    pub agent: Option<Box<[u8]>>,
}

impl Who {
    /// The writer of what has none.
    pub fn nobody() -> &'static Arc<Who> {
        static NOBODY: LazyLock<Arc<Who>> = LazyLock::new(Arc::default);
        &NOBODY
    }

    /// A writer from borrowed parts.
    pub fn new(author: &[u8], agent: Option<&[u8]>) -> Who {
        Who {
            author: author.into(),
            agent: agent.map(Into::into),
        }
    }

    /// True if this is that author with that agent.
    pub fn is(&self, author: &[u8], agent: Option<&[u8]>) -> bool {
        *self.author == *author && self.agent.as_deref() == agent
    }
}

/// Shares one [`Who`] among all versions of the same writer, so that a version costs a pointer.
///
/// Derived state: dropping it loses nothing but sharing. Writers that no version names any more are
/// let go when the table has doubled since it was last swept.
#[derive(Clone, Debug)]
pub struct Interner {
    known: HashSet<Arc<Who>>,
    latest: Arc<Who>,
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Interner {
            known: HashSet::new(),
            latest: Arc::new(Who::default()),
            sweep_at: 1024,
        }
    }
}

impl Interner {
    /// The shared form of this writer.
    #[inline]
    pub fn get(&mut self, author: &[u8], agent: Option<&[u8]>) -> &Arc<Who> {
        // Writes come in runs of the same writer: no hash for those.
        if !self.latest.is(author, agent) {
            self.find(author, agent);
        }
        &self.latest
    }

    fn find(&mut self, author: &[u8], agent: Option<&[u8]>) {
        let who = Who::new(author, agent);
        self.latest = match self.known.get(&who) {
            Some(known) => known.clone(),
            None => {
                let made = Arc::new(who);
                self.known.insert(made.clone());
                made
            }
        };
        if self.known.len() >= self.sweep_at {
            self.sweep();
        }
    }

    /// Lets the writers go that no version names.
    pub fn sweep(&mut self) {
        self.known.retain(|w| Arc::strong_count(w) > 1);
        self.sweep_at = (self.known.len() * 2).max(1024);
    }

    /// How many writers are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if no writer is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_shared_and_forgotten() {
        let mut i = Interner::default();
        let a = i.get(b"default", Some(b"planner")).clone();
        i.get(b"default", None);
        let b = i.get(b"default", Some(b"planner")).clone();
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..5000u32 {
            i.get(b"default", Some(&n.to_le_bytes()));
        }
        assert!(i.len() < 2048, "unused writers stay: {}", i.len());
        assert!(Arc::ptr_eq(&a, i.get(b"default", Some(b"planner"))));
    }
}
