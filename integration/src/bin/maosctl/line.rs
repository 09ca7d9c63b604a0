//! One line of NDJSON: a key, its value, and what is known about it; or the definition of a partition.

use std::borrow::Cow;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use maos_client::wire::{Class, Expire, Full, OnFull, PartitionCreate, Strategy, Terms};
use maos_core::partition::{Conflict, Definition};
use maos_core::Stamp;
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
    deleted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_b64: Option<String>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

/// The line of a partition as JSON. Zeros: as the server's settings say.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct DefinitionFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    define: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    define_b64: Option<String>,
    #[serde(rename = "type")]
    class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_b64: Option<String>,
    quota: u64,
    #[serde(default)]
    prefixes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    prefixes_b64: Vec<String>,
    onfull: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    onconflict: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    onconflict_b64: Option<String>,
    #[serde(default)]
    history: u64,
    #[serde(default)]
    max_age_ms: u64,
    #[serde(default)]
    max_value: u64,
    #[serde(default)]
    key_ttl_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

/// A line as it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Row {
    /// A key.
    Key(Line),
    /// A partition.
    Partition(Defined),
}

/// The line of a key as bytes of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub key: Vec<u8>,
    /// `None`: it is deleted.
    pub value: Option<Vec<u8>>,
    pub agent: Option<Vec<u8>>,
    pub metadata: Option<Vec<u8>>,
    pub expires_at_ms: Option<u64>,
}

/// The line of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defined {
    pub name: Vec<u8>,
    pub definition: Definition,
    pub expires_at_ms: Option<u64>,
}

impl Row {
    /// Reads a line.
    pub fn read(text: &str) -> Result<Row, String> {
        let why = match serde_json::from_str::<Fields<'_>>(text) {
            Ok(fields) => return Line::of(fields).map(Row::Key),
            Err(why) => why,
        };
        // One of a hundred thousand, so it is looked at last.
        match serde_json::from_str::<DefinitionFields>(text) {
            Ok(fields) => Defined::of(fields).map(Row::Partition),
            Err(its) if text.contains("\"define") => Err(its.to_string()),
            Err(_) => Err(why.to_string()),
        }
    }
}

impl Line {
    fn of(fields: Fields<'_>) -> Result<Line, String> {
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
        let key = one_of("key", fields.key, fields.key_b64)?;
        let key = key.ok_or("the field key (or key_b64) is missing")?;
        let value = one_of("value", value, fields.value_b64)?;
        Ok(Line {
            key,
            value: match fields.deleted {
                Some(true) if value.is_some() => {
                    return Err("what is deleted has no value".to_owned());
                }
                Some(true) => None,
                _ => Some(value.ok_or("the field value (or value_b64) is missing or null")?),
            },
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

impl Defined {
    fn of(fields: DefinitionFields) -> Result<Defined, String> {
        let name = one_of("define", fields.define, fields.define_b64)?;
        let class = Class::named(fields.class.as_bytes());
        let on_conflict = one_of("onconflict", fields.onconflict, fields.onconflict_b64)?;
        let base64 = fields.prefixes_b64.into_iter();
        let base64 = base64.map(|text| base64_of("prefixes_b64", &text));
        let prefixes = fields.prefixes.into_iter().map(|p| Ok(p.into_bytes()));
        let prefixes = prefixes.chain(base64).map(|p| p.map(Vec::into_boxed_slice));
        let agent = one_of("agent", fields.agent, fields.agent_b64)?;
        Ok(Defined {
            name: name.ok_or("the field define (or define_b64) is missing")?,
            definition: Definition {
                stamp: Stamp(fields.version.unwrap_or_default()),
                quota: fields.quota,
                class: class.ok_or(
                    "the field type is one of shared_pool, agent_dedicated, temporary, persistent",
                )?,
                agent: agent.map(Vec::into_boxed_slice),
                prefixes: prefixes.collect::<Result<_, String>>()?,
                on_full: match &fields.onfull[..] {
                    "reject" => OnFull::Reject,
                    "evict" => OnFull::Evict,
                    _ => return Err("the field onfull is reject or evict".to_owned()),
                },
                on_conflict: on_conflict.map(|text| conflict(&text)).transpose()?,
                history: fields.history,
                max_age_ms: fields.max_age_ms,
                max_value: fields.max_value,
                key_ttl_ms: fields.key_ttl_ms,
            },
            expires_at_ms: fields.expires_at_ms,
        })
    }

    /// Writes the line, without its line end.
    pub fn line(&self, db: u32) -> Result<String, serde_json::Error> {
        let d = &self.definition;
        let (define, define_b64) = text_or_base64(&self.name);
        let (agent, agent_b64) = d.agent.as_deref().map_or((None, None), text_or_base64);
        let strategy = d.on_conflict.as_ref().map(|c| match c.strategy() {
            Strategy::Reject => b"reject".to_vec(),
            Strategy::Lww => b"lww".to_vec(),
            Strategy::Fww => b"fww".to_vec(),
            Strategy::Merge => b"merge".to_vec(),
            Strategy::Function(name) => [FUNCTION, name].concat(),
        });
        let (onconflict, onconflict_b64) = strategy.as_deref().map_or((None, None), text_or_base64);
        let prefixes: Vec<_> = d.prefixes.iter().map(|p| text_or_base64(p)).collect();
        serde_json::to_string(&DefinitionFields {
            define,
            define_b64,
            class: d.class.name(),
            agent,
            agent_b64,
            quota: d.quota,
            prefixes_b64: prefixes.iter().filter_map(|(_, b)| b.clone()).collect(),
            prefixes: prefixes.into_iter().filter_map(|(text, _)| text).collect(),
            onfull: d.on_full.name().to_owned(),
            onconflict,
            onconflict_b64,
            history: d.history,
            max_age_ms: d.max_age_ms,
            max_value: d.max_value,
            key_ttl_ms: d.key_ttl_ms,
            expires_at_ms: self.expires_at_ms,
            db: Some(db).filter(|db| *db > 0),
            version: Some(d.stamp.0),
        })
    }

    /// The request that makes it. What is over by now is made all the same, and goes at once.
    pub fn request(&self, now_ms: u64) -> PartitionCreate<'_> {
        let d = &self.definition;
        let lasts = self.expires_at_ms;
        let prefixes: Vec<&[u8]> = d.prefixes.iter().map(|p| &p[..]).collect();
        let said = |n: u64| Some(n).filter(|n| *n > 0);
        PartitionCreate {
            name: &self.name,
            terms: Terms {
                bytes: Some(d.quota),
                class: Some(d.class),
                agent: d.agent.as_deref(),
                prefixes: Some(prefixes).filter(|all| !all.is_empty()),
                ttl_ms: match d.class {
                    Class::Temporary => lasts.map(|at| at.saturating_sub(now_ms).max(1)),
                    _ => said(d.key_ttl_ms),
                },
                on_full: Some(d.on_full),
                on_conflict: d.on_conflict.as_ref().map(Conflict::strategy),
                history: said(d.history),
                max_age_ms: said(d.max_age_ms),
                max_value: said(d.max_value),
            },
        }
    }
}

const FUNCTION: &[u8] = b"function:";

fn conflict(text: &[u8]) -> Result<Conflict, String> {
    Ok(Conflict::new(match text {
        b"reject" => Strategy::Reject,
        b"lww" => Strategy::Lww,
        b"fww" => Strategy::Fww,
        b"merge" => Strategy::Merge,
        _ => match text.strip_prefix(FUNCTION) {
            Some(name) => Strategy::Function(name),
            None => {
                let all = "the field onconflict is reject, lww, fww, merge or function:NAME";
                return Err(all.to_owned());
            }
        },
    }))
}

fn one_of(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_b64 exclude each other")),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(base64)) => base64_of(&format!("{name}_b64"), &base64).map(Some),
        (None, None) => Ok(None),
    }
}

fn base64_of(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let bytes = STANDARD.decode(text);
    bytes.map_err(|e| format!("{name} is not base64: {e}"))
}

/// What the line of a key is made of.
#[derive(Clone, Copy, Default, Debug)]
pub struct Parts<'a> {
    pub key: &'a [u8],
    /// `None`: it is deleted.
    pub value: Option<&'a [u8]>,
    pub author: Option<&'a [u8]>,
    pub agent: Option<&'a [u8]>,
    pub metadata: Option<&'a [u8]>,
    pub expires_at_ms: Option<u64>,
    pub partition: Option<&'a [u8]>,
    pub db: u32,
    pub version: u64,
}

impl Parts<'_> {
    /// Writes the line, without its line end.
    pub fn line(&self) -> Result<String, serde_json::Error> {
        let pair = |bytes: Option<&[u8]>| bytes.map_or((None, None), text_or_base64);
        let (key, key_b64) = text_or_base64(self.key);
        let (value, value_b64) = pair(self.value);
        let (author, author_b64) = pair(self.author);
        let (agent, agent_b64) = pair(self.agent);
        let (partition, partition_b64) = pair(self.partition);
        let value = value.as_deref().map(json_of).transpose()?;
        let metadata = self.metadata.map(on_one_line);
        let metadata = metadata
            .as_deref()
            .map(serde_json::from_slice::<&RawValue>)
            .transpose()?;
        serde_json::to_string(&Fields {
            key,
            key_b64,
            value: value.as_deref(),
            value_b64,
            deleted: self.value.is_none().then_some(true),
            author,
            author_b64,
            agent,
            agent_b64,
            metadata,
            expires_at_ms: self.expires_at_ms,
            partition,
            partition_b64,
            db: Some(self.db).filter(|db| *db > 0),
            version: Some(self.version),
        })
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
    let ttl = u64::try_from(full.ttl_ms).ok();
    let parts = Parts {
        key,
        value: Some(&full.value),
        agent: full.agent.as_deref(),
        metadata: full.metadata.as_deref(),
        expires_at_ms: ttl.map(|ttl| now_ms.saturating_add(ttl)),
        version: full.version.0,
        ..Parts::default()
    };
    parts.line()
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
    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};
    use proptest::strategy::Strategy as _;

    #[test]
    fn lines_are_read_as_the_manual_says() {
        let line = |text: &str| key(Row::read(text));
        let value = |text: &str| String::from_utf8(line(text).value.unwrap()).unwrap();
        assert_eq!(value(r#"{"key":"k","value":"v"}"#), "v");
        let object = r#"{"key":"k","value":{"a": 1.50}}"#;
        assert_eq!(value(object), r#"{"a": 1.50}"#);
        assert_eq!(value(r#"{"key":"k","value":12}"#), "12");
        assert_eq!(value(r#"{"key":"k","value":"","deleted":false}"#), "");
        assert_eq!(
            line(r#"{"key":"k","deleted":true,"author":"a","db":3,"partition":"p"}"#).value,
            None
        );
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
            (r#"{"key":"k","deleted":true,"value":"v"}"#, "no value"),
            (r#"{"key":"k","deleted":false}"#, "missing"),
            (r#"{"define":"p","type":"shared_pool","quota":1}"#, "onfull"),
            (
                r#"{"define":"p","type":"shared","quota":1,"onfull":"evict"}"#,
                "shared_pool",
            ),
            (
                r#"{"define":"p","type":"persistent","quota":1,"onfull":"wait"}"#,
                "evict",
            ),
            (
                r#"{"define":"p","type":"persistent","quota":1,"onfull":"evict","onconflict":"x"}"#,
                "fww",
            ),
            (
                r#"{"define":"p","type":"persistent","quota":1,"onfull":"evict","prefixes_b64":["?"]}"#,
                "base64",
            ),
            (
                r#"{"define":"p","type":"persistent","quota":1,"onfull":"evict","colour":1}"#,
                "colour",
            ),
            (
                r#"{"type":"persistent","quota":1,"onfull":"evict"}"#,
                "define",
            ),
        ] {
            let said = Row::read(bad).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }

    fn key(row: Result<Row, String>) -> Line {
        match row.unwrap() {
            Row::Key(line) => line,
            Row::Partition(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn metadata_of_several_lines_becomes_one_that_says_the_same() {
        let metadata = b"{\n  \"why\":\r\n\"a\\nb\"}";
        let parts = Parts {
            key: b"k",
            value: Some(b"v\n"),
            metadata: Some(metadata),
            ..Parts::default()
        };
        let text = parts.line().unwrap();
        assert!(!text.contains(['\n', '\r']), "{text}");
        let read = key(Row::read(&text)).metadata.unwrap();
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(json(&read), json(metadata));
    }

    #[test]
    fn a_partition_is_read_as_it_was_written() {
        let plain = Definition {
            stamp: Stamp(5),
            quota: 1 << 20,
            class: Class::SharedPool,
            agent: None,
            prefixes: vec![],
            on_full: OnFull::Reject,
            on_conflict: None,
            history: 0,
            max_age_ms: 0,
            max_value: 0,
            key_ttl_ms: 0,
        };
        let name = b"p".to_vec();
        for definition in [
            Definition {
                class: Class::AgentDedicated,
                agent: Some(b"a\xff"[..].into()),
                prefixes: vec![b"b:"[..].into(), b"c\xff"[..].into()],
                on_full: OnFull::Evict,
                on_conflict: Some(Conflict::new(Strategy::Function(b"f\xff"))),
                history: 1,
                max_age_ms: 2,
                max_value: 3,
                key_ttl_ms: 4,
                ..plain.clone()
            },
            Definition {
                class: Class::Temporary,
                on_conflict: Some(Conflict::new(Strategy::Merge)),
                ..plain.clone()
            },
            plain,
        ] {
            let expires_at_ms = (definition.class == Class::Temporary).then_some(1000);
            let defined = Defined {
                name: name.clone(),
                definition,
                expires_at_ms,
            };
            let text = defined.line(0).unwrap();
            let key_ttl = Some(defined.definition.key_ttl_ms).filter(|ms| *ms > 0);
            let ttl = expires_at_ms.map(|_| 100).or(key_ttl);
            assert_eq!(defined.request(900).terms.ttl_ms, ttl);
            assert_eq!(Row::read(&text), Ok(Row::Partition(defined)), "{text}");
        }
        let over =
            r#"{"define":"p","type":"temporary","quota":1,"onfull":"evict","expires_at_ms":5}"#;
        let Ok(Row::Partition(over)) = Row::read(over) else {
            panic!("a partition");
        };
        assert_eq!(over.request(900).terms.ttl_ms, Some(1));
    }

    fn value() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
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
            let line = Line { key, value: Some(value), agent, metadata, expires_at_ms };
            prop_assert_eq!(Row::read(&text).unwrap(), Row::Key(line));
        }
    }
}
