//! JSON: bounded before it is looked into, and kept as it is written.

pub mod decimal;
mod diff;
pub mod merge;
pub mod node;
pub mod patch;
pub mod pointer;

use memchr::memchr2;
use serde_json::Value;

use crate::config::{JSON_DEPTH_MAX, JSON_ELEMENTS_MAX};
use crate::{Code, Refusal};

pub use diff::diff;
pub use node::Node;
pub use pointer::Pointer;

/// How deep a text is nested, and how many elements it has, counted without recursion and without
/// memory. Right for JSON; for anything else some numbers.
fn shape(text: &[u8]) -> (usize, usize) {
    let (mut depth, mut deepest, mut elements) = (0usize, 0, 1);
    let mut at = 0;
    while let Some(b) = text.get(at) {
        at += 1;
        match b {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
                elements += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => elements += 1,
            b'"' => at = after_string(text, at),
            _ => {}
        }
    }
    (deepest, elements)
}

/// Where it goes on behind a string of which the first byte after the quotation mark is here. Most of a
/// document is strings, and what is looked for in them is rare.
fn after_string(text: &[u8], mut at: usize) -> usize {
    while let Some(next) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += next;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

fn check_depth(what: &str, depth: usize) -> Result<(), Refusal> {
    if depth <= JSON_DEPTH_MAX {
        return Ok(());
    }
    let text = format!("{what} is nested {depth} deep, at most {JSON_DEPTH_MAX} is taken");
    Err(Refusal::new(Code::Limit, text))
}

fn not_json(what: &str, e: &serde_json::Error) -> Refusal {
    let text = format!(
        "{what} is not JSON at line {} column {}",
        e.line(),
        e.column()
    );
    Refusal::new(Code::NotJson, text)
}

/// Whether a text is a number as JSON writes it.
pub fn is_number(text: &str) -> bool {
    let number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    number && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn parse(what: &str, text: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(text).map_err(|e| not_json(what, &e))
}

/// Checks that metadata is a JSON object.
///
/// # Errors
/// `LIMIT` beyond [`JSON_DEPTH_MAX`], `NOTJSON` if it is none.
pub fn check_meta(text: &[u8]) -> Result<(), Refusal> {
    const WHAT: &str = "the metadata of META";
    check_depth(WHAT, shape(text).0)?;
    if parse(WHAT, text)?.is_object() {
        return Ok(());
    }
    Err(Refusal::fixed(
        Code::NotJson,
        "the metadata of META must be a JSON object, like {\"why\":\"retry\"}",
    ))
}

/// Checks that a document may be taken apart, or kept.
///
/// # Errors
/// `LIMIT` beyond [`JSON_DEPTH_MAX`] or [`JSON_ELEMENTS_MAX`].
pub fn check_shape(what: &str, text: &[u8]) -> Result<(), Refusal> {
    let (depth, elements) = shape(text);
    check_depth(what, depth)?;
    if elements <= JSON_ELEMENTS_MAX {
        return Ok(());
    }
    let text = format!("{what} has {elements} elements, at most {JSON_ELEMENTS_MAX} are taken");
    Err(Refusal::new(Code::Limit, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_strings() {
        assert_eq!(shape(b"1").0, 0);
        assert_eq!(shape(br#"{"a":[1,{"b":"[[[\"[["}]}"#).0, 3);
        assert_eq!(shape(&[b'['; 10_000]).0, 10_000);
    }

    #[test]
    fn metadata_is_a_bounded_object() {
        assert!(check_meta(br#" {"why":"retry"} "#).is_ok());
        let deep = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
        assert_eq!(check_meta(&deep).unwrap_err().code, Code::Limit);
        for bad in [
            &b""[..],
            b"[]",
            b"1",
            b"{",
            b"{}x",
            b"\xff",
            b"{\"a\":1,}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\\ud800\"}",
        ] {
            assert_eq!(check_meta(bad).unwrap_err().code, Code::NotJson, "{bad:?}");
        }
    }
}
