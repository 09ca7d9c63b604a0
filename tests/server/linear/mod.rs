//! Is what the clients of one key saw the work of one register that does one thing at a time?
//!
//! Every successful write returns a version that no other has, and versions rise: so the order of the
//! writes is known, and what is left to look at takes O(n log n). Each version is written once; a conditional
//! write follows the version it names and no other; a write that had returned before another was sent
//! has the smaller version; a read falls into the time in which its version was current. What is
//! unknown, because the connection was cut, may have happened or not.
//!
//! [`search`] decides the same by trying (Wing and Gong, with memory), knows nothing of the order of
//! versions, and is there to check this one.

pub mod check;
pub mod load;
pub mod proxy;
pub mod search;
mod tests;

/// A generator that needs no dependency: xorshift.
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// When an operation did not return: it may happen at any time after it was sent, or never.
pub const NEVER: u64 = u64::MAX;

/// One operation on the key, as its client saw it. Times are of one clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Op {
    /// When it was sent.
    pub call: u64,
    /// When its reply was there.
    pub ret: u64,
    /// What it did.
    pub did: Did,
}

/// What an operation did. A value is a number that no other write uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Did {
    /// Wrote a value, or deleted it (`None`), and was given a version.
    Wrote {
        /// The version it was given.
        version: i64,
        /// The value.
        value: Option<u64>,
        /// Only over this version; 0: only if there is none.
        over: Option<i64>,
    },
    /// Saw what was there; nothing if there was no live value.
    Saw {
        /// Version and value.
        what: Option<(i64, u64)>,
        /// A lost race: what it would have written over was not there.
        not: Option<i64>,
    },
    /// A write whose reply never came.
    Maybe {
        /// The value.
        value: Option<u64>,
        /// Only over this version.
        over: Option<i64>,
    },
}
