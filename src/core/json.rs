//! Bounded checks of JSON, and the difference of two documents.

use serde_json::Value;

use crate::config::JSON_DEPTH_MAX;
use crate::{Code, Refusal};

/// The deepest nesting in a text, counted without recursion and without memory. Right for JSON;
/// for anything else some number.
pub fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let mut bytes = text.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(b) = bytes.next() {
                    match b {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

fn check_depth(what: &str, text: &[u8]) -> Result<(), Refusal> {
    let depth = depth(text);
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

/// Parses a document.
///
/// # Errors
/// `LIMIT` beyond [`JSON_DEPTH_MAX`], `NOTJSON` if it is none; both name `what`.
pub fn parse(what: &str, text: &[u8]) -> Result<Value, Refusal> {
    check_depth(what, text)?;
    serde_json::from_slice(text).map_err(|e| not_json(what, &e))
}

/// Checks that metadata is a JSON object.
///
/// # Errors
/// `LIMIT` beyond [`JSON_DEPTH_MAX`], `NOTJSON` if it is none.
pub fn check_meta(text: &[u8]) -> Result<(), Refusal> {
    const WHAT: &str = "the metadata of META";
    check_depth(WHAT, text)?;
    serde_json::from_slice::<serde::de::IgnoredAny>(text).map_err(|e| not_json(WHAT, &e))?;
    let first = text.iter().find(|b| !b.is_ascii_whitespace());
    if first != Some(&b'{') {
        return Err(Refusal::fixed(
            Code::NotJson,
            "the metadata of META must be a JSON object, like {\"why\":\"retry\"}",
        ));
    }
    Ok(())
}

/// A JSON Patch (RFC 6902) that makes `to` out of `from`.
///
/// # Errors
/// `LIMIT` or `NOTJSON` if one of them is no JSON within bounds.
pub fn diff(from: &[u8], to: &[u8]) -> Result<Vec<u8>, Refusal> {
    let from = parse("the value of the first version", from)?;
    let to = parse("the value of the second version", to)?;
    let patch = json_patch::diff(&from, &to);
    serde_json::to_vec(&patch).map_err(|e| not_json("the patch", &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depth_is_counted_outside_strings() {
        assert_eq!(depth(b"1"), 0);
        assert_eq!(depth(br#"{"a":[1,{"b":"[[[\"[["}]}"#), 3);
        assert_eq!(depth(&[b'['; 10_000]), 10_000);
    }

    #[test]
    fn metadata_is_a_bounded_object() {
        assert!(check_meta(br#" {"why":"retry"} "#).is_ok());
        let deep = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
        assert_eq!(check_meta(&deep).unwrap_err().code, Code::Limit);
        for bad in [&b""[..], b"[]", b"1", b"{", b"{}x", b"\xff", b"{\"a\":1,}"] {
            assert_eq!(check_meta(bad).unwrap_err().code, Code::NotJson, "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_compared_as_written() {
        let patch = diff(b"9007199254740993", b"9007199254740992").unwrap();
        assert_eq!(
            String::from_utf8(patch).unwrap(),
            r#"[{"op":"replace","path":"","value":9007199254740992}]"#
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z~/]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c~/]{0,2}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patch_leads_from_one_to_the_other(from in json(), to in json()) {
            let patch = diff(from.to_string().as_bytes(), to.to_string().as_bytes()).unwrap();
            let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
            let mut made = from;
            json_patch::patch(&mut made, &patch).unwrap();
            prop_assert_eq!(made, to);
        }
    }
}
