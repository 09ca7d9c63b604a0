//! Answers, for people and for programs.

use std::io::{self, Write};

use maos_client::{
    Current, Incremented, Merged, OperationReply, Outcome, Revision, StateValue, Transacted,
    Version,
};
use serde_json::{json, Map, Value};

use crate::line::{json_of, text_or_base64};

/// How answers are shown.
#[derive(Clone, Copy)]
pub struct Show {
    pub json: bool,
    pub utc: bool,
}

impl Show {
    /// When a version was written, readably.
    pub fn time(self, version: Version) -> String {
        let micros = i64::try_from(version.0).unwrap_or(i64::MAX);
        let Ok(time) = jiff::Timestamp::from_microsecond(micros) else {
            return version.to_string();
        };
        if self.utc {
            return time.strftime("%Y-%m-%d %H:%M:%S%.6f UTC").to_string();
        }
        let zoned = time.to_zoned(jiff::tz::TimeZone::system());
        zoned.strftime("%Y-%m-%d %H:%M:%S%.6f %:z").to_string()
    }

    /// One JSON object on a line of its own.
    pub fn object(self, fields: Map<String, Value>) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", Value::Object(fields))
    }

    pub fn value(
        self,
        key: &str,
        found: &StateValue<Vec<u8>>,
        full: bool,
        raw: bool,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            let mut fields = vec![("key", quoted(key))];
            fields.push(value_field(&found.value));
            fields.extend(self.details(found));
            return print_fields(&mut out, &fields);
        }
        if full {
            writeln!(
                out,
                "version   {}  ({})",
                found.version,
                self.time(found.version)
            )?;
            writeln!(
                out,
                "created   {}  ({})",
                found.created,
                self.time(found.created)
            )?;
            writeln!(out, "author    {}", found.author)?;
            writeln!(out, "agent     {}", found.agent.as_deref().unwrap_or("-"))?;
            writeln!(
                out,
                "metadata  {}",
                found.metadata.as_deref().unwrap_or("-")
            )?;
            match found.expires_in {
                Some(left) => writeln!(out, "expires   in {left:?}")?,
                None => writeln!(out, "expires   never")?,
            }
            let (kept, bytes) = (found.versions_kept, found.record_bytes);
            writeln!(out, "kept      {kept} versions, {bytes} bytes in all")?;
            if let Some(partition) = &found.partition {
                writeln!(out, "charged   to {}", String::from_utf8_lossy(partition))?;
            }
            write!(out, "value     ")?;
        }
        out.write_all(&found.value)?;
        if !raw {
            writeln!(out)?;
        }
        out.flush()
    }

    fn details(self, found: &StateValue<Vec<u8>>) -> Vec<(&'static str, String)> {
        let expires = found.expires_in.map(|left| left.as_millis().to_string());
        let partition = found.partition.as_deref().map(String::from_utf8_lossy);
        vec![
            ("version", found.version.to_string()),
            ("time", quoted(&self.time(found.version))),
            ("created", found.created.to_string()),
            ("author", quoted(&found.author)),
            ("agent", optional(found.agent.as_deref())),
            ("metadata", found.metadata.clone().unwrap_or_else(null)),
            ("expires_in_ms", expires.unwrap_or_else(null)),
            ("versions_kept", found.versions_kept.to_string()),
            ("record_bytes", found.record_bytes.to_string()),
            ("partition", optional(partition.as_deref())),
        ]
    }

    /// A write that was applied.
    pub fn written(self, key: &str, version: Version) -> io::Result<()> {
        if self.json {
            let mut fields = Map::new();
            fields.insert("key".into(), json!(key));
            fields.insert("applied".into(), json!(true));
            fields.insert("version".into(), json!(version.0));
            fields.insert("time".into(), json!(self.time(version)));
            return self.object(fields);
        }
        writeln!(io::stdout().lock(), "{version}  ({})", self.time(version))
    }

    /// A number that was added to.
    pub fn incremented(self, key: &str, sum: &Incremented) -> io::Result<()> {
        if self.json {
            // The number as it is written: a program reads all its digits.
            let fields = [
                ("key", quoted(key)),
                ("applied", "true".into()),
                ("version", sum.version.to_string()),
                ("number", sum.number.clone()),
            ];
            return print_fields(&mut io::stdout().lock(), &fields);
        }
        writeln!(io::stdout().lock(), "{}", sum.number)
    }

    /// A write that came too late.
    pub fn lost(self, key: &str, now: &Current) -> io::Result<()> {
        self.conflict(key, now, None)
    }

    fn conflict(self, key: &str, now: &Current, paths: Option<&[String]>) -> io::Result<()> {
        if self.json {
            let mut fields = vec![("key", quoted(key)), ("applied", "false".into())];
            fields.push(("version", now.version.to_string()));
            match &now.value {
                Some(value) => fields.push(value_field(value)),
                None => fields.push(("value", null())),
            }
            fields.push(("author", optional(now.author.as_deref())));
            fields.push(("agent", optional(now.agent.as_deref())));
            if let Some(paths) = paths {
                fields.push(("paths", json!(paths).to_string()));
            }
            return print_fields(&mut io::stdout().lock(), &fields);
        }
        let mut out = io::stderr().lock();
        let Some(value) = &now.value else {
            return writeln!(out, "lost: {key} has no value now; nothing was changed");
        };
        let by = now
            .agent
            .as_deref()
            .or(now.author.as_deref())
            .unwrap_or("-");
        let (version, time) = (now.version, self.time(now.version));
        writeln!(
            out,
            "lost: {key} is at version {version} by {by} ({time}); nothing was changed"
        )?;
        writeln!(out, "its value: {}", String::from_utf8_lossy(value))?;
        match paths {
            Some(paths @ [_, ..]) => writeln!(out, "both changed: {}", paths.join(" ")),
            _ => Ok(()),
        }
    }

    /// What came of a conditional write. True if it was applied.
    pub fn outcome(self, key: &str, outcome: &Outcome) -> io::Result<bool> {
        match outcome {
            Outcome::Applied(version) => self.written(key, *version).map(|()| true),
            Outcome::Lost(now) => self.lost(key, now).map(|()| false),
        }
    }

    /// What came of a merge. True if it was decided.
    pub fn merged(self, key: &str, merged: &Merged) -> io::Result<bool> {
        match merged {
            Merged::Applied(version, how) if self.json => {
                let fields = [
                    ("key", quoted(key)),
                    ("applied", "true".into()),
                    ("version", version.to_string()),
                    ("how", quoted(how.word())),
                ];
                print_fields(&mut io::stdout().lock(), &fields)?;
                Ok(true)
            }
            Merged::Applied(version, how) => {
                let (how, time) = (how.word(), self.time(*version));
                writeln!(io::stdout().lock(), "{version}  {how}  ({time})")?;
                Ok(true)
            }
            Merged::Conflict(conflict) => {
                self.conflict(key, &conflict.current, Some(&conflict.paths))?;
                Ok(false)
            }
        }
    }

    /// What came of a transaction: a line for each operation.
    pub fn transacted(self, done: &Transacted) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            // As they are written: a program reads all digits.
            let reply = |reply: &OperationReply| {
                object(&[match reply {
                    OperationReply::Version(version) => ("version", version.to_string()),
                    // A repetition may find that its number was deleted.
                    OperationReply::Number(number) if number.is_empty() => ("number", null()),
                    OperationReply::Number(number) => ("number", number.clone()),
                    OperationReply::Value(None) => ("value", null()),
                    OperationReply::Value(Some(value)) => value_field(value),
                }])
            };
            let replies: Vec<_> = done.replies.iter().map(reply).collect();
            let fields = [
                ("held", done.held.to_string()),
                ("version", done.version.to_string()),
                ("replies", format!("[{}]", replies.join(","))),
            ];
            return print_fields(&mut out, &fields);
        }
        for reply in &done.replies {
            match reply {
                OperationReply::Version(version) => writeln!(out, "{version}")?,
                OperationReply::Number(number) => writeln!(out, "{number}")?,
                OperationReply::Value(None) => writeln!(out)?,
                OperationReply::Value(Some(value)) => {
                    out.write_all(value)?;
                    writeln!(out)?;
                }
            }
        }
        if !done.held {
            writeln!(io::stderr().lock(), "lost: a condition does not hold")?;
        }
        Ok(())
    }

    pub fn history(self, revisions: &[Revision], values: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for r in revisions {
            if self.json {
                let mut fields = vec![
                    ("version", r.version.to_string()),
                    ("time", quoted(&self.time(r.version))),
                    ("deleted", r.deleted.to_string()),
                    ("author", quoted(&r.author)),
                    ("agent", optional(r.agent.as_deref())),
                    ("metadata", r.metadata.clone().unwrap_or_else(null)),
                    ("request_id", optional(r.request_id.as_deref())),
                    ("bytes", r.bytes.to_string()),
                ];
                if let Some(value) = &r.value {
                    fields.push(value_field(value));
                }
                print_fields(&mut out, &fields)?;
                continue;
            }
            let what = match r.deleted {
                true => "deleted".to_owned(),
                false => format!("{} bytes", r.bytes),
            };
            let by = r.agent.as_deref().unwrap_or(&r.author);
            write!(
                out,
                "{}  {}  {what:>12}  {by}",
                r.version,
                self.time(r.version)
            )?;
            if let Some(metadata) = &r.metadata {
                write!(out, "  {metadata}")?;
            }
            writeln!(out)?;
            if values && !r.deleted {
                let value = r.value.as_deref().unwrap_or_default();
                writeln!(
                    out,
                    "    {}",
                    String::from_utf8_lossy(value).replace('\n', "\n    ")
                )?;
            }
        }
        out.flush()
    }
}

pub fn value_field(value: &[u8]) -> (&'static str, String) {
    match text_or_base64(value) {
        (Some(text), _) => {
            let raw = json_of(&text);
            (
                "value",
                raw.map_or_else(|_| quoted(&text), |raw| raw.get().to_owned()),
            )
        }
        (None, base64) => ("value_b64", quoted(&base64.unwrap_or_default())),
    }
}

pub fn print_fields(out: &mut impl Write, fields: &[(&str, String)]) -> io::Result<()> {
    writeln!(out, "{}", object(fields))
}

/// Fields whose values are JSON already: embedded values keep their text.
fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<_> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
    format!("{{{}}}", fields.join(","))
}

pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

pub fn optional(text: Option<&str>) -> String {
    text.map_or_else(null, quoted)
}

pub fn null() -> String {
    "null".to_owned()
}
