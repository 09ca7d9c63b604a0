//! Walks over arguments, with the table in hand.

use super::spec::{parse_count, Rules, Tok, Toks};
use crate::config::{AGENT_MAX, KEYS_MAX, META_MAX, REQID_MAX};
use crate::refusal::Quoted;
use crate::{Code, Refusal, Stamp};

/// A position in a command's arguments.
pub struct Cursor<'c, 'a> {
    rules: &'static Rules,
    args: &'c [&'a [u8]],
    at: usize,
    seen: Toks,
}

impl<'c, 'a> Cursor<'c, 'a> {
    /// At the first argument after the command's name.
    #[inline(always)]
    pub fn new(rules: &'static Rules, args: &'c [&'a [u8]]) -> Self {
        Cursor {
            rules,
            args,
            at: 0,
            seen: 0,
        }
    }

    /// True if no argument is left.
    pub fn is_done(&self) -> bool {
        self.at >= self.args.len()
    }

    /// The next argument, as it is.
    ///
    /// # Errors
    /// `ERR` if there is none.
    #[inline(always)]
    pub fn bytes(&mut self) -> Result<&'a [u8], Refusal> {
        let Some(arg) = self.args.get(self.at) else {
            return Err(self.too_few());
        };
        self.at += 1;
        Ok(arg)
    }

    /// The next argument, unless it is an option of the command, or there is none.
    pub fn bytes_unless_option(&mut self) -> Option<&'a [u8]> {
        let arg = *self.args.get(self.at)?;
        if Tok::among(self.rules.known, arg).is_some() {
            return None;
        }
        self.at += 1;
        Some(arg)
    }

    /// The next option's token; `None` at the end.
    ///
    /// # Errors
    /// `ERR` for a word that is not in the command's table, one given twice, or two that exclude
    /// each other.
    #[inline(always)]
    pub fn option(&mut self) -> Result<Option<Tok>, Refusal> {
        match self.args.get(self.at) {
            None => Ok(None),
            Some(word) => self.take_option(word),
        }
    }

    fn take_option(&mut self, word: &[u8]) -> Result<Option<Tok>, Refusal> {
        self.at += 1;
        let rules = self.rules;
        let tok = Tok::among(rules.known, word)
            .ok_or_else(|| self.bad(format!("unknown option {}", Quoted(word))))?;
        if rules.reserved & tok.bit() != 0 {
            return Err(self.bad(format!("{} is not offered by this version", tok.word())));
        }
        if self.seen & !rules.repeatable & tok.bit() != 0 {
            return Err(self.bad(format!("{} is given twice", tok.word())));
        }
        if self.seen & rules.exclusive[tok as usize] & !tok.bit() != 0 {
            return Err(self.bad(format!("{} excludes another option given", tok.word())));
        }
        self.seen |= tok.bit();
        Ok(Some(tok))
    }

    /// The next argument, which must be one of these words.
    ///
    /// # Errors
    /// `ERR` if it is another, or there is none.
    pub fn word(&mut self, what: &str, known: &[Tok]) -> Result<Tok, Refusal> {
        let arg = self.bytes()?;
        let tok = known.iter().copied().find(|tok| tok.is(arg));
        tok.ok_or_else(|| {
            let words: Vec<_> = known.iter().map(|tok| tok.word()).collect();
            let words = words.join(", ");
            self.bad(format!("{what} is one of {words}, not {}", Quoted(arg)))
        })
    }

    /// The next argument if it is one of these words.
    pub fn word_if(&mut self, known: &[Tok]) -> Option<Tok> {
        let word = self.args.get(self.at)?;
        let tok = known.iter().copied().find(|tok| tok.is(word))?;
        self.at += 1;
        Some(tok)
    }

    /// The next argument as an integer from `min` to `max`.
    ///
    /// # Errors
    /// `ERR` if it is none, or outside.
    pub fn int(&mut self, what: &str, min: i64, max: i64) -> Result<i64, Refusal> {
        let arg = self.bytes()?;
        plain_digits(arg)
            .or_else(|| std::str::from_utf8(arg).ok()?.parse::<i64>().ok())
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| {
                self.bad(format!(
                    "{what} must be an integer from {min} to {max}, not {}",
                    Quoted(arg)
                ))
            })
    }

    /// The next argument as a version that must be 0 or a stamp.
    ///
    /// # Errors
    /// `ERR` if it is neither.
    pub fn version(&mut self) -> Result<Stamp, Refusal> {
        let n = self.version_ref()?;
        u64::try_from(n).map(Stamp).map_err(|_| {
            self.bad(format!(
                "the version to compare with must not be negative, it is {n}"
            ))
        })
    }

    /// The next argument as a version, or as -n for the n-th before the current one.
    ///
    /// A number may have the forms in which Lua prints it (`1.5e+15`, `3.0`) as long as it is an
    /// integer below 2^53.
    ///
    /// # Errors
    /// `ERR` if it is none.
    pub fn version_ref(&mut self) -> Result<i64, Refusal> {
        let arg = self.bytes()?;
        parse_version(arg).ok_or_else(|| {
            self.bad(format!(
                "a version is an integer below 2^53, not {}",
                Quoted(arg)
            ))
        })
    }

    /// The next argument as unix time in milliseconds.
    ///
    /// # Errors
    /// `ERR` if it is negative, no integer, or beyond the largest stamp.
    pub fn unix_millis(&mut self, what: &str) -> Result<u64, Refusal> {
        let max = i64::try_from(Stamp::MAX.millis()).unwrap_or(i64::MAX);
        Ok(self.int(what, 0, max)?.unsigned_abs())
    }

    /// The next argument as the number of keys, with `step` arguments for each still to come.
    ///
    /// # Errors
    /// `ERR` if the arguments do not suffice, `LIMIT` beyond [`KEYS_MAX`].
    pub fn numkeys(&mut self, step: usize) -> Result<usize, Refusal> {
        let arg = self.bytes()?;
        let n = parse_count(arg).ok_or_else(|| {
            self.bad(format!(
                "numkeys must be a number from 1 on, not {}",
                Quoted(arg)
            ))
        })?;
        if n > KEYS_MAX {
            let text = format!("{n} keys in one command, at most {KEYS_MAX} are taken");
            return Err(Refusal::new(Code::Limit, text));
        }
        let left = self.args.len() - self.at;
        if n * step > left {
            return Err(self.bad(format!(
                "numkeys is {n}, which needs {} arguments after it; {left} are there",
                n * step
            )));
        }
        Ok(n)
    }

    /// The next argument as an agent's name.
    ///
    /// # Errors
    /// `ERR` if it is empty, `TOOBIG` if it is too long.
    pub fn agent(&mut self) -> Result<&'a [u8], Refusal> {
        self.name("the agent of BY", AGENT_MAX)
    }

    /// The next argument as a request id.
    ///
    /// # Errors
    /// `ERR` if it is empty, `TOOBIG` if it is too long.
    pub fn reqid(&mut self) -> Result<&'a [u8], Refusal> {
        self.name("the id of REQID", REQID_MAX)
    }

    /// The next argument as metadata. That it is a JSON object is checked where it is kept.
    ///
    /// # Errors
    /// `TOOBIG` if it is too long.
    pub fn meta(&mut self) -> Result<&'a [u8], Refusal> {
        let arg = self.bytes()?;
        bounded("the metadata of META", arg, META_MAX)
    }

    /// The next argument as a lock token.
    ///
    /// # Errors
    /// `ERR` if it is no integer from 1 to below 2^53.
    pub fn token(&mut self) -> Result<Stamp, Refusal> {
        let arg = self.bytes()?;
        let token = parse_version(arg).filter(|n| *n > 0);
        token.map(|n| Stamp(n.unsigned_abs())).ok_or_else(|| {
            self.bad(format!(
                "a token is an integer from 1 to below 2^53, as MAOS.LOCK gives it, not {}",
                Quoted(arg)
            ))
        })
    }

    /// The next argument as a name of 1 to `max` bytes.
    ///
    /// # Errors
    /// `ERR` if it is empty, `TOOBIG` if it is too long.
    pub fn name(&mut self, what: &str, max: usize) -> Result<&'a [u8], Refusal> {
        let arg = self.bytes()?;
        if arg.is_empty() {
            return Err(self.bad(format!("{what} must not be empty")));
        }
        bounded(what, arg, max)
    }

    /// The next argument as what keys begin with: `max` bytes at most, or none.
    ///
    /// # Errors
    /// `TOOBIG` if it is too long.
    pub fn beginning(&mut self, what: &str, max: usize) -> Result<&'a [u8], Refusal> {
        bounded(what, self.bytes()?, max)
    }

    /// The next argument as text.
    ///
    /// # Errors
    /// `ERR` if it is not UTF-8.
    pub fn text(&mut self, what: &str) -> Result<&'a str, Refusal> {
        let arg = self.bytes()?;
        let bad = |_| self.bad(format!("{what} must be text, not {}", Quoted(arg)));
        std::str::from_utf8(arg).map_err(bad)
    }

    /// The error for arguments that break this command's syntax.
    pub fn bad(&self, what: String) -> Refusal {
        Refusal::new(Code::Err, format!("{}: {what}", self.rules.spec.name))
    }

    #[cold]
    fn too_few(&self) -> Refusal {
        self.bad("too few arguments; COMMAND DOCS has its syntax".into())
    }
}

fn bounded<'a>(what: &str, arg: &'a [u8], max: usize) -> Result<&'a [u8], Refusal> {
    if arg.len() > max {
        let text = format!("{what} has {} bytes, at most {max} are taken", arg.len());
        return Err(Refusal::new(Code::TooBig, text));
    }
    Ok(arg)
}

/// A version as a decimal integer, or in a form in which Lua prints one.
#[inline]
fn parse_version(arg: &[u8]) -> Option<i64> {
    plain_digits(arg)
        .filter(|n| n.unsigned_abs() <= Stamp::MAX.0)
        .or_else(|| parse_other_version(arg))
}

fn parse_other_version(arg: &[u8]) -> Option<i64> {
    const BOUND: f64 = (1u64 << 53) as f64;
    let text = std::str::from_utf8(arg).ok()?;
    let n = match text.parse::<i64>() {
        Ok(n) => n,
        Err(_) => {
            // "inf", "nan" and "+1" are Rust's forms, not Lua's.
            if !text
                .bytes()
                .all(|b| b.is_ascii_digit() || b"-+.e".contains(&b))
            {
                return None;
            }
            let f = text.parse::<f64>().ok()?;
            (f.fract() == 0.0 && f.abs() < BOUND).then_some(f as i64)?
        }
    };
    (n.unsigned_abs() <= Stamp::MAX.0).then_some(n)
}

/// What nearly every number is made of.
#[inline]
fn plain_digits(bytes: &[u8]) -> Option<i64> {
    // So many always fit.
    if bytes.is_empty() || bytes.len() > 18 {
        return None;
    }
    bytes.iter().try_fold(0, |sum, byte| match byte {
        b'0'..=b'9' => Some(sum * 10 + i64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_in_the_forms_of_lua() {
        let v = 1_763_843_159_123_456;
        for form in [
            "1763843159123456",
            "1763843159123456.0",
            "1.763843159123456e+15",
        ] {
            assert_eq!(parse_version(form.as_bytes()), Some(v), "{form}");
        }
        assert_eq!(parse_version(b"-3"), Some(-3));
        assert_eq!(parse_version(b"-3.0"), Some(-3));
        for bad in [
            "",
            " 1",
            "1 ",
            "0x10",
            "1.5",
            "nan",
            "inf",
            "1e400",
            "9007199254740992",
            "9223372036854775808",
            "--1",
            "1e",
            "\u{100}",
        ] {
            assert_eq!(parse_version(bad.as_bytes()), None, "{bad}");
        }
    }
}
