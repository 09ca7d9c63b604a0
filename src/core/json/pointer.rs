//! JSON pointers (RFC 6901).

use std::fmt;

use crate::config::JSON_DEPTH_MAX;
use crate::refusal::Quoted;
use crate::{Code, Refusal};

/// The way to a value in a document: the names and places on it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pointer(pub Vec<String>);

impl Pointer {
    /// Reads a pointer: empty for the whole document, else `/` before each step, `~1` for `/` in it and `~0`
    /// for `~`.
    ///
    /// # Errors
    /// `ERR` if it is none, `LIMIT` for more than [`JSON_DEPTH_MAX`] steps.
    pub fn parse(text: &str) -> Result<Pointer, Refusal> {
        let Some(steps) = text.strip_prefix('/') else {
            return match text.is_empty() {
                true => Ok(Pointer::default()),
                false => Err(bad(text)),
            };
        };
        if steps.split('/').nth(JSON_DEPTH_MAX).is_some() {
            let text = format!("a JSON pointer has at most {JSON_DEPTH_MAX} steps");
            return Err(Refusal::new(Code::Limit, text));
        }
        let step = |step: &str| {
            let mut rest = step;
            while let Some(at) = rest.find('~') {
                rest = rest[at + 1..]
                    .strip_prefix(['0', '1'])
                    .ok_or_else(|| bad(text))?;
            }
            Ok(step.replace("~1", "/").replace("~0", "~"))
        };
        steps
            .split('/')
            .map(step)
            .collect::<Result<_, _>>()
            .map(Pointer)
    }

    /// True if `other` lies below this.
    pub fn is_above(&self, other: &Pointer) -> bool {
        self.0.len() < other.0.len() && other.0.starts_with(&self.0)
    }
}

/// A place in an array: digits without a leading zero.
pub fn index(step: &str) -> Option<usize> {
    let plain = step == "0" || !step.starts_with('0');
    let digits = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit());
    (plain && digits).then(|| step.parse().ok()).flatten()
}

impl Pointer {
    /// As it may stand in an error.
    pub(crate) fn quoted(&self) -> String {
        Quoted(self.to_string().as_bytes()).to_string()
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = self.0.iter();
        steps.try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

#[cold]
fn bad(text: &str) -> Refusal {
    let text = format!(
        "{} is not a JSON pointer: it is empty or begins with '/', and '~' stands before 0 or 1 only",
        Quoted(text.as_bytes())
    );
    Refusal::new(Code::Err, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_read_and_written() {
        // The examples of RFC 6901, section 5.
        for (text, steps) in [
            ("", &[][..]),
            ("/foo", &["foo"]),
            ("/foo/0", &["foo", "0"]),
            ("/", &[""]),
            ("/a~1b", &["a/b"]),
            ("/m~0n", &["m~n"]),
            ("/ ", &[" "]),
            ("/~01", &["~1"]),
        ] {
            let pointer = Pointer::parse(text).unwrap();
            assert_eq!(pointer.0, steps);
            assert_eq!(pointer.to_string(), text);
        }
        for bad in ["a", "a/b", "/~", "/a~2", "/~a/b", "#/a"] {
            assert_eq!(Pointer::parse(bad).unwrap_err().code, Code::Err, "{bad}");
        }
        assert!(Pointer::parse(&"/a".repeat(JSON_DEPTH_MAX)).is_ok());
        let deep = Pointer::parse(&"/a".repeat(JSON_DEPTH_MAX + 1));
        assert_eq!(deep.unwrap_err().code, Code::Limit);
    }

    #[test]
    fn places_have_no_leading_zeros() {
        assert_eq!(index("0"), Some(0));
        assert_eq!(index("10"), Some(10));
        for bad in [
            "",
            "-",
            "-1",
            "00",
            "01",
            "1e0",
            "+1",
            "99999999999999999999999",
        ] {
            assert_eq!(index(bad), None, "{bad}");
        }
    }
}
