//! `watch` and `ls`: what happens, and what is there.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use maos_client::{
    Checkpoint, Client, Event, Gap, GapCause, KeyEvent, KeyState, ListedKey, Version, WatchItem,
    WatchOptions,
};

use crate::line::text_or_base64;
use crate::show::{null, optional, print_fields, quoted, value_field, Show};
use crate::Failure;

/// How often the place is written down up to which all was shown.
const KEPT_EVERY: Duration = Duration::from_secs(1);

/// What `watch` is told.
pub struct Watching<'a> {
    pub patterns: &'a [String],
    pub types: &'a [Event],
    pub not_by: Option<String>,
    pub values: bool,
    pub snapshot: bool,
    pub checkpoint: Option<PathBuf>,
    pub count: Option<u64>,
}

/// Shows what happens, until it is interrupted or has shown as much as was asked for.
pub async fn watch(client: &Client, show: Show, asked: Watching<'_>) -> Result<(), Failure> {
    let mut options = WatchOptions::new();
    if !asked.types.is_empty() {
        options = options.types(asked.types);
    }
    if asked.values {
        options = options.values();
    }
    if let Some(agent) = asked.not_by {
        options = options.not_by(agent);
    }
    let kept = asked.checkpoint.as_deref().map(read).transpose()?.flatten();
    let mut changes = match (&kept, asked.snapshot) {
        (Some(checkpoint), _) => {
            client
                .watch_from(asked.patterns, &options, checkpoint)
                .await?
        }
        (None, true) => {
            client
                .watch_from_snapshot(&asked.patterns[0], &options)
                .await?
        }
        (None, false) => client.watch(asked.patterns, &options).await?,
    };
    let mut left = asked.count.unwrap_or(u64::MAX);
    let mut written = Instant::now();
    let done = loop {
        if left == 0 {
            break Ok(());
        }
        let item = tokio::select! {
            item = changes.next() => item,
            _ = tokio::signal::ctrl_c() => break Ok(()),
        };
        match item {
            None => break Ok(()),
            Some(Err(error)) => break Err(error.into()),
            Some(Ok(item)) => show.item(&item, asked.values)?,
        }
        left -= 1;
        if written.elapsed() >= KEPT_EVERY {
            keep(asked.checkpoint.as_deref(), changes.checkpoint())?;
            written = Instant::now();
        }
    };
    keep(asked.checkpoint.as_deref(), changes.checkpoint())?;
    done
}

/// The checkpoint of a file; `None` if there is no such file yet.
fn read(file: &Path) -> Result<Option<Checkpoint>, Failure> {
    let bad = |why: &dyn std::fmt::Display| {
        Failure::Input(format!("checkpoint {}: {why}", file.display()))
    };
    match fs::read_to_string(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(&e)),
        Ok(text) => Ok(Some(text.trim().parse().map_err(|e| bad(&e))?)),
    }
}

/// Writes down how far it has come: whole or not at all.
fn keep(file: Option<&Path>, checkpoint: &Checkpoint) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let mut beside: OsString = file.into();
    beside.push(".new");
    fs::write(&beside, format!("{checkpoint}\n"))?;
    Ok(fs::rename(&beside, file)?)
}

/// Lists keys.
pub async fn list(
    client: &Client,
    show: Show,
    prefix: &str,
    long: bool,
    since: Option<Version>,
    count: Option<u64>,
) -> Result<(), Failure> {
    let mut listing = client.list(prefix);
    if long || since.is_some() {
        listing = listing.full();
    }
    if let Some(version) = since {
        listing = listing.since(version);
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut left = count.unwrap_or(u64::MAX);
    while let (1.., Some(key)) = (left, listing.next().await?) {
        show.listed(&mut out, &key, long)?;
        left -= 1;
    }
    Ok(out.flush()?)
}

/// A key as a field: as text where it is some.
fn key_field(key: &[u8]) -> (&'static str, String) {
    match text_or_base64(key) {
        (Some(text), _) => ("key", quoted(&text)),
        (None, base64) => ("key_b64", quoted(&base64.unwrap_or_default())),
    }
}

/// A key for a person.
fn shown(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => key.escape_ascii().to_string(),
    }
}

impl Show {
    fn item(self, item: &WatchItem, values: bool) -> io::Result<()> {
        match item {
            WatchItem::Event(event) => self.event(event, values),
            WatchItem::Present(state) => {
                let mut out = io::stdout().lock();
                if self.json {
                    let mut fields = vec![("type", quoted("present"))];
                    fields.extend(self.state(state));
                    return print_fields(&mut out, &fields);
                }
                let key = ListedKey {
                    key: state.key.clone(),
                    state: Some(state.clone()),
                };
                self.listed(&mut out, &key, true)
            }
            WatchItem::SnapshotEnd if self.json => print_fields(
                &mut io::stdout().lock(),
                &[("type", quoted("snapshot-end"))],
            ),
            WatchItem::SnapshotEnd => {
                writeln!(
                    io::stderr().lock(),
                    "that is what is there; now what happens:"
                )
            }
            WatchItem::Gap(gap) => self.gap(gap),
            // One of a later version.
            _ => Ok(()),
        }
    }

    fn gap(self, gap: &Gap) -> io::Result<()> {
        let cause = match gap.cause {
            GapCause::Compacted => "compacted",
            GapCause::Diverged => "diverged",
            _ => "unreachable",
        };
        if self.json {
            let fields = [
                ("type", quoted("gap")),
                ("cause", quoted(cause)),
                ("shard", quoted(&gap.shard)),
                ("since", gap.since.to_string()),
                ("caught_up", gap.caught_up.to_string()),
            ];
            return print_fields(&mut io::stdout().lock(), &fields);
        }
        let next = match gap.caught_up {
            true => "what has changed is shown as it is now",
            false => "read the keys again",
        };
        let since = match gap.since {
            Version::NONE => String::new(),
            since => format!(" since {}", self.time(since)),
        };
        writeln!(
            io::stderr().lock(),
            "gap ({cause}): something that happened on {}{since} is not known; {next}",
            gap.shard
        )
    }

    fn event(self, event: &KeyEvent, values: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let word = event.event.word();
        if self.json {
            let mut fields = vec![("type", quoted(word))];
            fields.push(event.key.as_deref().map_or(("key", null()), key_field));
            fields.push(("version", event.version.to_string()));
            let previous = event.previous.map(|version| version.to_string());
            fields.push(("previous", previous.unwrap_or_else(null)));
            fields.push(("time", quoted(&self.time(event.version))));
            fields.push(("author", optional(event.author.as_deref())));
            fields.push(("agent", optional(event.agent.as_deref())));
            if let Some(value) = &event.value {
                fields.push(value_field(value));
            }
            if event.is_gone {
                fields.push(("gone", "true".into()));
            }
            return print_fields(&mut out, &fields);
        }
        let by = event.agent.as_deref().or(event.author.as_deref());
        writeln!(
            out,
            "{}  {word:<10}  {}  {}  {}",
            self.time(event.version),
            event
                .key
                .as_deref()
                .map_or_else(|| "(all keys)".into(), shown),
            event.version,
            by.unwrap_or("-")
        )?;
        match &event.value {
            Some(value) => {
                let text = String::from_utf8_lossy(value).replace('\n', "\n    ");
                writeln!(out, "    {text}")
            }
            None if values && event.is_gone => writeln!(out, "    (not kept any more)"),
            None => Ok(()),
        }
    }

    fn state(self, state: &KeyState) -> Vec<(&'static str, String)> {
        let expires = state.expires_in.map(|left| left.as_millis().to_string());
        vec![
            key_field(&state.key),
            match &state.value {
                Some(value) => value_field(value),
                None => ("value", null()),
            },
            ("deleted", state.value.is_none().to_string()),
            ("version", state.version.to_string()),
            ("time", quoted(&self.time(state.version))),
            ("author", quoted(&state.author)),
            ("agent", optional(state.agent.as_deref())),
            ("metadata", state.metadata.clone().unwrap_or_else(null)),
            ("expires_in_ms", expires.unwrap_or_else(null)),
        ]
    }

    fn listed(self, out: &mut impl Write, key: &ListedKey, long: bool) -> io::Result<()> {
        match (&key.state, self.json) {
            (None, true) => print_fields(out, &[key_field(&key.key)]),
            (Some(state), true) => print_fields(out, &self.state(state)),
            (Some(state), false) if long || state.value.is_none() => {
                let what = match &state.value {
                    Some(value) => format!("{} bytes", value.len()),
                    None => "deleted".to_owned(),
                };
                let by = state.agent.as_deref().unwrap_or(&state.author);
                let (version, time) = (state.version, self.time(state.version));
                let name = shown(&key.key);
                writeln!(out, "{version}  {time}  {what:>12}  {by}  {name}")
            }
            _ => writeln!(out, "{}", shown(&key.key)),
        }
    }
}

/// A version, or a moment, which is one.
pub fn since(text: &str) -> Result<Version, String> {
    // Versions have microseconds; moments as numbers have milliseconds, and are a thousandth of them.
    if let Ok(version) = text.parse::<u64>() {
        if version > 100_000_000_000_000 && version <= Version::MAX.0 {
            return Ok(Version(version));
        }
    }
    let time = crate::cli::time(text)?;
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let micros = since.map_or(0, |since| since.as_micros());
    Ok(Version(u64::try_from(micros).unwrap_or(Version::MAX.0)))
}
