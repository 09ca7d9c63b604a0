//! Patterns over keys, as `KEYS` and `PSUBSCRIBE` understand them: `*` any bytes, `?` one byte, `[abc]`, `[a-z]` and
//! `[^abc]` one byte of a set or outside of it, `\` the next byte as it is.
//!
//! Matched in time proportional to pattern times key at worst: of several `*` only the last is ever gone back to.

use std::borrow::Cow;

use crate::config::PATTERN_MAX;
use crate::refusal::Quoted;
use crate::{Code, Refusal};

/// A pattern that has been looked through.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Glob<'a> {
    pattern: Cow<'a, [u8]>,
    /// What every key that fits begins with.
    literal: Box<[u8]>,
    /// The last bytes of the literal, where it has as many: what keys beside each other differ in.
    tail: Option<[u8; TAIL]>,
    /// How much of the pattern the literal stands for.
    plain: usize,
}

/// As many bytes as are compared at once.
const TAIL: usize = 8;

impl<'a> Glob<'a> {
    /// Looks a pattern through.
    ///
    /// # Errors
    /// `LIMIT` if it is too long, `ERR` if a set is not closed or nothing follows a backslash.
    pub fn new(pattern: &'a [u8]) -> Result<Glob<'a>, Refusal> {
        if pattern.len() > PATTERN_MAX {
            let text = format!(
                "a pattern has at most {PATTERN_MAX} bytes, this one {}",
                pattern.len()
            );
            return Err(Refusal::new(Code::Limit, text));
        }
        let (mut rest, mut literal, mut plain) = (pattern, vec![], None);
        while let Some((piece, after)) = Piece::first(rest) {
            match piece {
                Piece::Bad(why) => {
                    let text = format!("the pattern {} {why}", Quoted(pattern));
                    return Err(Refusal::new(Code::Err, text));
                }
                Piece::Byte(byte) if plain.is_none() => literal.push(byte),
                Piece::Byte(_) => {}
                _ => plain = plain.or(Some(pattern.len() - rest.len())),
            }
            rest = after;
        }
        Ok(Glob {
            pattern: Cow::Borrowed(pattern),
            tail: literal.last_chunk().copied(),
            literal: literal.into(),
            plain: plain.unwrap_or(pattern.len()),
        })
    }

    /// The pattern.
    pub fn pattern(&self) -> &[u8] {
        &self.pattern
    }

    /// What every key that fits begins with; all of it, if [one key alone](Glob::is_literal) fits.
    pub fn literal(&self) -> &[u8] {
        &self.literal
    }

    /// Whether one key alone fits.
    pub fn is_literal(&self) -> bool {
        self.plain == self.pattern.len()
    }

    /// Whether a key fits.
    #[inline]
    pub fn fits(&self, key: &[u8]) -> bool {
        let Some(begins) = key.get(..self.literal.len()) else {
            return false;
        };
        // Most that do not fit are known by this: whoever reads a log has it asked of every event.
        let ends = self.tail.is_none() || begins.last_chunk() == self.tail.as_ref();
        ends && self.fits_all(key)
    }

    fn fits_all(&self, key: &[u8]) -> bool {
        let Some(rest) = key.strip_prefix(&*self.literal) else {
            return false;
        };
        match &self.pattern[self.plain..] {
            [] => rest.is_empty(),
            b"*" => true,
            pattern => fits(pattern, rest),
        }
    }

    /// The same, with bytes of its own.
    pub fn into_owned(self) -> Glob<'static> {
        Glob {
            pattern: Cow::Owned(self.pattern.into_owned()),
            literal: self.literal,
            tail: self.tail,
            plain: self.plain,
        }
    }
}

/// Whether no key can begin with both of these.
pub fn are_apart(one: &[u8], other: &[u8]) -> bool {
    let len = one.len().min(other.len());
    one[..len] != other[..len]
}

/// One piece of a pattern.
enum Piece<'p> {
    /// Any bytes.
    Star,
    /// One byte, whichever.
    Any,
    /// This byte.
    Byte(u8),
    /// A byte of this set, or (true) outside of it.
    Set(&'p [u8], bool),
    /// What stands here means nothing.
    Bad(&'static str),
}

impl<'p> Piece<'p> {
    /// The first piece, and what comes after it.
    fn first(pattern: &'p [u8]) -> Option<(Piece<'p>, &'p [u8])> {
        let (first, rest) = pattern.split_first()?;
        Some(match first {
            b'*' => (Piece::Star, rest),
            b'?' => (Piece::Any, rest),
            b'\\' => match rest.split_first() {
                Some((byte, rest)) => (Piece::Byte(*byte), rest),
                None => (Piece::Bad("ends with a backslash"), rest),
            },
            b'[' => {
                let (outside, set) = match rest.split_first() {
                    Some((b'^', rest)) => (true, rest),
                    _ => (false, rest),
                };
                match end_of_set(set) {
                    Some(end) => (Piece::Set(&set[..end], outside), &set[end + 1..]),
                    None => (Piece::Bad("has a [ without its ]"), &[]),
                }
            }
            byte => (Piece::Byte(*byte), rest),
        })
    }

    fn takes(&self, byte: u8) -> bool {
        match self {
            Piece::Any => true,
            Piece::Byte(own) => *own == byte,
            Piece::Set(set, outside) => holds(set, byte) != *outside,
            Piece::Star | Piece::Bad(_) => false,
        }
    }
}

/// Where the `]` stands that ends a set.
fn end_of_set(set: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match set.get(at)? {
            b']' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Whether a byte is in a set: bytes and ranges of them.
fn holds(set: &[u8], byte: u8) -> bool {
    let mut rest = set;
    while let Some((first, after)) = one_of_set(rest) {
        rest = after;
        let mut last = first;
        if let [b'-', after @ ..] = rest {
            if let Some((end, after)) = one_of_set(after) {
                (last, rest) = (end, after);
            }
        }
        if (first.min(last)..=first.max(last)).contains(&byte) {
            return true;
        }
    }
    false
}

fn one_of_set(set: &[u8]) -> Option<(u8, &[u8])> {
    match set {
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

fn fits(mut pattern: &[u8], mut key: &[u8]) -> bool {
    // After the last star, and the key from where what follows it is tried next.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (Piece::first(pattern), key.split_first()) {
            (Some((Piece::Star, rest)), _) => {
                if rest.is_empty() {
                    return true;
                }
                retry = Some((rest, key));
                pattern = rest;
                continue;
            }
            (Some((piece, rest)), Some((byte, after))) if piece.takes(*byte) => {
                (pattern, key) = (rest, after);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match retry {
            Some((rest, from)) if !from.is_empty() => {
                retry = Some((rest, &from[1..]));
                (pattern, key) = (rest, &from[1..]);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let glob = Glob::new(pattern.as_bytes()).unwrap();
        for key in yes {
            assert!(glob.fits(key.as_bytes()), "{pattern} {key}");
        }
        for key in no {
            assert!(!glob.fits(key.as_bytes()), "{pattern} {key}");
        }
    }

    #[test]
    fn patterns_mean_what_they_mean_to_keys() {
        check("*", &["", "a"], &[]);
        check("app:*", &["app:", "app:1"], &["app", "bapp:1"]);
        check("h?llo", &["hello", "h*llo"], &["hllo", "heello"]);
        check("h*llo", &["hllo", "heeeello", "hllollo"], &["hllow"]);
        check("h[ae]llo", &["hallo", "hello"], &["hillo"]);
        check("h[^e]llo", &["hallo", "h^llo"], &["hello", "hllo"]);
        check("h[a-c]llo", &["hallo", "hcllo"], &["hdllo", "h-llo"]);
        check("h[c-a]llo", &["hbllo"], &["hdllo"]);
        check("[\\]-]", &["]", "-"], &["\\"]);
        check("a[b-]", &["ab", "a-"], &["ac"]);
        check("\\*a\\\\", &["*a\\"], &["xa\\"]);
        check("a[]b", &[], &["ab", "a]b"]);
        check("a[^]b", &["axb"], &["ab"]);
        check("", &[""], &["a"]);
        check("*a*b*", &["ab", "xaxbx"], &["ba"]);
    }

    #[test]
    fn what_every_key_begins_with_is_known() {
        let literal = |p: &'static str| {
            let glob = Glob::new(p.as_bytes()).unwrap();
            let literal = String::from_utf8(glob.literal().to_vec()).unwrap();
            (literal, glob.is_literal())
        };
        assert_eq!(literal("app:1"), ("app:1".into(), true));
        assert_eq!(literal("app:*"), ("app:".into(), false));
        assert_eq!(literal("a\\*b?c"), ("a*b".into(), false));
        assert_eq!(literal("\\SINCE"), ("SINCE".into(), true));
        assert_eq!(literal("*x"), (String::new(), false));
        assert_eq!(literal("ab[c]"), ("ab".into(), false));
    }

    #[test]
    fn a_pattern_that_means_nothing_is_refused() {
        for bad in ["a[bc", "[", "[^", "a\\", "[\\]", "*[a-"] {
            assert_eq!(
                Glob::new(bad.as_bytes()).unwrap_err().code,
                Code::Err,
                "{bad}"
            );
        }
        let long = vec![b'a'; PATTERN_MAX + 1];
        assert_eq!(Glob::new(&long).unwrap_err().code, Code::Limit);
        assert!(Glob::new(&long[1..]).is_ok());
    }

    /// A pattern made to be gone back in at every star takes no time.
    #[test]
    fn no_pattern_is_slow() {
        let pattern = "a*".repeat(PATTERN_MAX / 2);
        let key = "a".repeat(10_000) + "b";
        assert!(Glob::new(pattern.as_bytes()).unwrap().fits(key.as_bytes()));
        let pattern = "*a".repeat(PATTERN_MAX / 2);
        assert!(!Glob::new(pattern.as_bytes()).unwrap().fits(key.as_bytes()));
    }

    /// By trying every length for every star.
    fn slowly(pattern: &[u8], key: &[u8]) -> bool {
        match Piece::first(pattern) {
            None => key.is_empty(),
            Some((Piece::Star, rest)) => (0..=key.len()).any(|n| slowly(rest, &key[n..])),
            Some((piece, rest)) => key
                .split_first()
                .is_some_and(|(byte, key)| piece.takes(*byte) && slowly(rest, key)),
        }
    }

    proptest! {
        #[test]
        fn going_back_to_the_last_star_is_enough(
            pattern in "[ab*?]{0,8}|[a\\[\\]b^-]{0,8}|[ab\\\\*]{0,6}",
            key in "[ab]{0,10}",
        ) {
            if let Ok(glob) = Glob::new(pattern.as_bytes()) {
                prop_assert_eq!(glob.fits(key.as_bytes()), slowly(pattern.as_bytes(), key.as_bytes()));
                prop_assert!(!glob.fits(key.as_bytes()) || key.as_bytes().starts_with(glob.literal()));
            }
        }
    }
}
