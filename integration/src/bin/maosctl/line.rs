//! One line of NDJSON: a key, its value, and what is known about it.

use std::borrow::Cow;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use maos_client::wire::{Expire, Full};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The line as JSON.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_b64: Option<String>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

/// The line as bytes of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub agent: Option<Vec<u8>>,
    pub metadata: Option<Vec<u8>>,
    pub expires_at_ms: Option<u64>,
}

impl Line {
    /// Reads a line.
    pub fn read(text: &str) -> Result<Line, String> {
        let fields: Fields<'_> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let value = match fields.value {
            None => None,
            // A JSON string is the value itself; anything else is kept as the text it is.
            Some(raw) if raw.get().starts_with('"') => {
                let text: String = serde_json::from_str(raw.get()).map_err(|e| e.to_string())?;
                Some(text)
            }
            Some(raw) => Some(raw.get().to_owned()),
        };
        let metadata = fields.metadata.map(|m| m.get());
        if metadata.is_some_and(|m| !m.starts_with('{')) {
            return Err("metadata must be an object".to_owned());
        }
        Ok(Line {
            key: one_of("key", fields.key, fields.key_b64)?
                .ok_or("the field key (or key_b64) is missing")?,
            value: one_of("value", value, fields.value_b64)?
                .ok_or("the field value (or value_b64) is missing or null")?,
            agent: one_of("agent", fields.agent, fields.agent_b64)?,
            metadata: metadata.map(|m| m.as_bytes().to_vec()),
            expires_at_ms: fields.expires_at_ms,
        })
    }

    /// How the write says when the key expires.
    pub fn expire(&self) -> Expire {
        self.expires_at_ms.map_or(Expire::Unsaid, Expire::At)
    }
}

fn one_of(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_b64 exclude each other")),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) => Err(format!("{name}_b64 is not base64: {e}")),
        },
        (None, None) => Ok(None),
    }
}

/// JSON without line ends: where these stand in it they are blanks.
fn on_one_line(json: &[u8]) -> Cow<'_, [u8]> {
    let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !json.iter().any(ends) {
        return Cow::Borrowed(json);
    }
    let blank = |byte: &u8| if ends(byte) { b' ' } else { *byte };
    Cow::Owned(json.iter().map(blank).collect())
}

/// Writes a value of the store as a line, without its line end.
pub fn write(key: &[u8], full: &Full<'_>, now_ms: u64) -> Result<String, serde_json::Error> {
    let (key, key_b64) = text_or_base64(key);
    let (value, value_b64) = text_or_base64(&full.value);
    let (agent, agent_b64) = full.agent.as_deref().map_or((None, None), text_or_base64);
    let value = value.as_deref().map(json_of).transpose()?;
    let metadata = full.metadata.as_deref().map(on_one_line);
    let metadata = metadata
        .as_deref()
        .map(serde_json::from_slice::<&RawValue>)
        .transpose()?;
    let ttl = u64::try_from(full.ttl_ms).ok();
    serde_json::to_string(&Fields {
        key,
        key_b64,
        value: value.as_deref(),
        value_b64,
        agent,
        agent_b64,
        metadata,
        expires_at_ms: ttl.map(|ttl| now_ms.saturating_add(ttl)),
        version: Some(full.version.0),
    })
}

/// UTF-8 as text, anything else as base64.
pub fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// An object or array as it is, if it fits on a line and reads back byte for byte; else a string.
pub fn json_of(text: &str) -> Result<Box<RawValue>, serde_json::Error> {
    let embeds = text.starts_with(['{', '[']) && !text.contains(['\n', '\r']);
    if embeds {
        if let Ok(raw) = serde_json::from_str::<&RawValue>(text) {
            if raw.get().len() == text.len() {
                return Ok(raw.to_owned());
            }
        }
    }
    RawValue::from_string(serde_json::to_string(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use maos_client::Version;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_as_the_manual_says() {
        let line = |text: &str| Line::read(text).unwrap();
        assert_eq!(line(r#"{"key":"k","value":"v"}"#).value, b"v");
        assert_eq!(
            line(r#"{"key":"k","value":{"a": 1.50}}"#).value,
            br#"{"a": 1.50}"#
        );
        assert_eq!(line(r#"{"key":"k","value":12}"#).value, b"12");
        assert_eq!(line(r#"{"key_b64":"/w==","value_b64":""}"#).key, b"\xff");
        for (bad, why) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"key":"k"}"#, "value"),
            (r#"{"key":"k","value":null}"#, "null"),
            (r#"{"value":"v"}"#, "key"),
            (r#"{"key":"k","value":"v","value_b64":"dg=="}"#, "exclude"),
            (r#"{"key":"k","value_b64":"?"}"#, "base64"),
            (r#"{"key":"k","value":"v","metadata":[]}"#, "object"),
            (r#"{"key":"k","value":"v","colour":1}"#, "colour"),
            (r#"{"key":"k","value":"v"} x"#, "trailing"),
        ] {
            let said = Line::read(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }

    #[test]
    fn metadata_of_several_lines_becomes_one_that_says_the_same() {
        let metadata = b"{\n  \"why\":\r\n\"a\\nb\"}";
        let full = Full {
            value: b"v\n"[..].into(),
            version: Version(7),
            created: Version(7),
            author: b"default"[..].into(),
            agent: None,
            metadata: Some(metadata[..].into()),
            ttl_ms: -1,
            bytes: 0,
            versions: 1,
            lock: None,
            partition: None,
        };
        let text = write(b"k", &full, 5).unwrap();
        assert!(!text.contains(['\n', '\r']), "{text}");
        let read = Line::read(&text).unwrap().metadata.unwrap();
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(json(&read), json(metadata));
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            r#"[\[{] ?("a":)?[0-9]{0,3}\n?[}\]] ?"#.prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_byte_for_byte(
            key in value(), value in value(), agent in proptest::option::of(value()),
            meta in proptest::bool::ANY, ttl in -1i64..1000,
        ) {
            let metadata = meta.then(|| br#"{"a": [1,2]}"#.to_vec());
            let full = Full {
                value: value.clone().into(),
                version: Version(7),
                created: Version(7),
                author: b"default"[..].into(),
                agent: agent.clone().map(Into::into),
                metadata: metadata.clone().map(Into::into),
                ttl_ms: ttl,
                bytes: 0,
                versions: 1,
                lock: None,
                partition: None,
            };
            let text = write(&key, &full, 5).unwrap();
            prop_assert!(!text.contains('\n'));
            let expires_at_ms = u64::try_from(ttl).ok().map(|t| t + 5);
            let line = Line { key, value, agent, metadata, expires_at_ms };
            prop_assert_eq!(Line::read(&text).unwrap(), line);
        }
    }
}
