//! The closed list of refusals.
//!
//! The first word of an error is a [`Code`]; the rest says what happened, with the numbers, and
//! what to do. A lost race is not a refusal: it is a reply with data.

use std::borrow::Cow;
use std::fmt;

macro_rules! codes {
    ($($name:ident $word:literal $meaning:literal)*) => {
        /// Why a command was refused: the first word of the error.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $(#[doc = $meaning] $name),* }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The word on the wire.
            pub const fn word(self) -> &'static str {
                match self { $(Code::$name => $word),* }
            }

            /// What it means, in one line.
            pub const fn meaning(self) -> &'static str {
                match self { $(Code::$name => $meaning),* }
            }

            /// The code of a word, if it is one of ours.
            pub fn from_word(word: &str) -> Option<Code> {
                match word { $($word => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    Locked "LOCKED" "the key is locked by somebody else"
    Fenced "FENCED" "the token is not that of a present holder"
    Deadlock "DEADLOCK" "waiting would close a cycle of owners"
    Quota "QUOTA" "the write would pass the quota of its partition"
    PoolFull "POOLFULL" "the partition would pass the memory pool"
    NoVersion "NOVERSION" "the version was never written, or has been trimmed away"
    BaseGone "BASEGONE" "the base version of a merge has been trimmed away"
    Compacted "COMPACTED" "the change log no longer reaches back to the cursor"
    Diverged "DIVERGED" "the cursor lies in what a failover lost"
    NotJson "NOTJSON" "JSON was needed and this is not JSON"
    TooBig "TOOBIG" "a value or argument is larger than its limit"
    Limit "LIMIT" "a count, depth or number is beyond its limit"
    NotFound "NOTFOUND" "the thing named does not exist"
    Exists "EXISTS" "the thing named exists already"
    BadBackup "BADBACKUP" "the backup is cut, damaged, tampered with or wrongly keyed"
    Busy "BUSY" "not now: try again later"
    Err "ERR" "the request is malformed"
    WrongType "WRONGTYPE" "the key holds a value of another type"
    Oom "OOM" "the server is out of memory"
    ReadOnly "READONLY" "the server is a read-only replica"
    NoPerm "NOPERM" "the user may not do this"
}

/// A refused command: nothing was changed.
///
/// Deliberately not a `std::error::Error`: a blanket conversion would turn the code into `ERR`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The first word.
    pub code: Code,
    /// What happened and what to do: printable ASCII.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with a fixed text.
    pub const fn fixed(code: Code, text: &'static str) -> Refusal {
        Refusal {
            code,
            text: Cow::Borrowed(text),
        }
    }

    /// A refusal with a text made for this case. Quote user bytes with [`Quoted`].
    pub fn new(code: Code, text: String) -> Refusal {
        debug_assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text:?}");
        Refusal {
            code,
            text: Cow::Owned(text),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.word(), self.text)
    }
}

/// The key holds a value that is not ours. Redis' own words.
pub const WRONG_TYPE: Refusal = Refusal::fixed(
    Code::WrongType,
    "Operation against a key holding the wrong kind of value",
);

/// User bytes as they may stand in an error: printable ASCII, the rest as `\xNN`, at most 64 bytes.
pub struct Quoted<'a>(pub &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "'{}'", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_their_codes() {
        for code in Code::ALL {
            assert_eq!(Code::from_word(code.word()), Some(*code));
            assert_eq!(code.word(), code.word().to_ascii_uppercase());
        }
        assert_eq!(Code::from_word("WHATEVER"), None);
    }

    #[test]
    fn quoted_bytes_cannot_break_a_reply() {
        let text = Quoted("a\r\n%n\0\u{100}".as_bytes()).to_string();
        assert_eq!(text, r"'a\r\n%n\x00\xc4\x80'");
        assert!(Quoted(&[b'x'; 100]).to_string().ends_with("(100 bytes)"));
    }
}
