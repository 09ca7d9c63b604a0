//! Import and export: many keys at once over one connection.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use maos_client::wire::{Del, Form, Get, GetReply, Set, WriteOptions};
use maos_client::{Client, Code, Error};

use crate::file;
use crate::line::{self, Defined, Line, Row};
use crate::Failure;

/// Requests under way at the same time.
const UNDER_WAY: usize = 512;
/// Lines handed over by the reading thread at once.
const BATCH: usize = 256;

/// Writes the lines of a file. Gives how many were written.
pub(crate) async fn import(
    client: Option<&Client>,
    file: &Path,
    partition: Option<&str>,
) -> Result<u64, Failure> {
    let (mut lines, bar) = read_lines(file)?;
    let mut writes = FuturesUnordered::new();
    let mut busy: HashSet<Vec<u8>> = HashSet::new();
    let mut written = 0u64;
    let mut wrong = None;
    while let Some(batch) = lines.recv().await {
        for (number, text) in batch {
            let row = match text.and_then(|text| Row::read(&text)) {
                Ok(row) => row,
                Err(why) => {
                    wrong = Some((number, Failure::Input(why)));
                    break;
                }
            };
            let Some(client) = client else {
                written += 1;
                continue;
            };
            // Two lines about one key must not overtake each other, and no line a partition.
            let waits = |writes: &FuturesUnordered<_>, busy: &HashSet<Vec<u8>>| match &row {
                Row::Key(line) => writes.len() >= UNDER_WAY || busy.contains(&line.key),
                Row::Partition(_) => !writes.is_empty(),
            };
            while waits(&writes, &busy) {
                if let Some(done) = writes.next().await {
                    settle(done, &mut busy, &mut written, &mut wrong);
                }
            }
            if wrong.is_some() {
                break;
            }
            match row {
                Row::Key(line) => {
                    busy.insert(line.key.clone());
                    writes.push(write(client, number, line, partition));
                }
                Row::Partition(defined) => match define(client, &defined).await {
                    Ok(made) => written += u64::from(made),
                    Err(error) => {
                        wrong = Some((number, Failure::Client(error)));
                        break;
                    }
                },
            }
        }
        bar.set_position(written);
        if wrong.is_some() {
            break;
        }
    }
    while let Some(done) = writes.next().await {
        settle(done, &mut busy, &mut written, &mut wrong);
    }
    bar.finish_and_clear();
    match wrong {
        None => Ok(written),
        Some((line, why)) => Err(Failure::Line {
            line,
            written,
            why: Box::new(why),
        }),
    }
}

type Done = (u64, Vec<u8>, Result<(), Error>);

async fn write(client: &Client, number: u64, line: Line, partition: Option<&str>) -> Done {
    let id = uuid::Uuid::new_v4();
    let key = &line.key[..];
    let options = WriteOptions {
        by: line.agent.as_deref(),
        meta: line.metadata.as_deref(),
        reqid: Some(id.as_bytes()),
        if_version: None,
        expire: line.expire(),
        partition: partition.map(str::as_bytes),
        ..WriteOptions::default()
    };
    let answer = match line.value.as_deref() {
        Some(value) => {
            let request = Set {
                key,
                value,
                options,
            };
            client.call(&request).await
        }
        None => client.call(&Del { key, options }).await,
    };
    (number, line.key, answer.map(drop))
}

/// Makes a partition. False if there is one of this name.
pub(crate) async fn define(client: &Client, defined: &Defined) -> Result<bool, Error> {
    let refused = match client.call(&defined.request(now_ms())).await {
        Ok(_) => return Ok(true),
        Err(error) if error.code() == Some(Code::Exists) => error,
        Err(error) => return Err(error),
    };
    match client.partition(&defined.name).info().await {
        Ok(_) => Ok(false),
        // It is another one that has the prefix.
        Err(error) if error.code() == Some(Code::NotFound) => Err(refused),
        Err(error) => Err(error),
    }
}

fn settle(
    (number, key, answer): Done,
    busy: &mut HashSet<Vec<u8>>,
    written: &mut u64,
    wrong: &mut Option<(u64, Failure)>,
) {
    busy.remove(&key);
    match answer {
        Ok(()) => *written += 1,
        // The first line that failed is the one to name.
        Err(_) if wrong.as_ref().is_some_and(|(first, _)| *first < number) => {}
        Err(error) => *wrong = Some((number, Failure::Client(error))),
    }
}

type Numbered = (u64, Result<String, String>);

/// Reads lines in a thread of its own. Empty lines are passed over, as NDJSON allows.
fn read_lines(
    file: &Path,
) -> Result<(tokio::sync::mpsc::Receiver<Vec<Numbered>>, ProgressBar), Failure> {
    let unreadable = |e| Failure::Input(format!("cannot read {}: {e}", file.display()));
    let (input, bar): (Box<dyn BufRead + Send>, _) = if file == Path::new("-") {
        let bar = progress("written");
        (Box::new(BufReader::new(io::stdin())), bar)
    } else {
        let bar = progress("written");
        let file = File::open(file).map_err(unreadable)?;
        (Box::new(BufReader::with_capacity(1 << 20, file)), bar)
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    std::thread::spawn(move || {
        let mut batch = Vec::with_capacity(BATCH);
        for (n, line) in input.split(b'\n').enumerate() {
            let line = line
                .map_err(|e| e.to_string())
                .and_then(|bytes| String::from_utf8(bytes).map_err(|e| e.to_string()));
            let failed = line.is_err();
            if line.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                continue;
            }
            batch.push((n as u64 + 1, line));
            if failed || batch.len() == BATCH {
                let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                // Nobody listens any more after a line that was wrong.
                if sender.blocking_send(full).is_err() || failed {
                    return;
                }
            }
        }
        let _ = sender.blocking_send(batch);
    });
    Ok((receiver, bar))
}

/// Writes all values whose keys begin with `prefix`. Gives how many there were.
pub(crate) async fn export(client: &Client, prefix: &str, output: &Path) -> Result<u64, Failure> {
    let mut out = Output::open(output, false)?;
    let bar = progress("read");
    let mut scan = client.scan(prefix);
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let mut count = 0u64;
    while let Some(mut page) = scan.next_page().await.map_err(Failure::Client)? {
        page.retain(|key| seen.insert(key.clone()));
        let mut reads = stream::iter(page)
            .map(|key| read(client, key))
            .buffered(UNDER_WAY);
        while let Some(read) = reads.next().await {
            // A key that was deleted meanwhile is no longer part of the current values.
            if let Some(line) = read? {
                out.line(&line)?;
                count += 1;
            }
        }
        bar.set_position(count);
    }
    out.finish()?;
    bar.finish_and_clear();
    Ok(count)
}

async fn read(client: &Client, key: Vec<u8>) -> Result<Option<String>, Failure> {
    let request = Get {
        key: &key,
        select: None,
        form: Form::Full,
    };
    match client.call(&request).await.map_err(Failure::Client)? {
        GetReply::Full(full) => line::write(&key, &full, now_ms())
            .map(Some)
            .map_err(|e| Failure::Input(format!("{}: {e}", key.escape_ascii()))),
        _ => Ok(None),
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Standard output, or a file that has its name only once it is complete.
pub(crate) struct Output {
    to: Box<dyn Write>,
    rename: Option<(PathBuf, PathBuf)>,
}

impl Output {
    /// Begins it. One that is private nobody else may read.
    pub(crate) fn open(path: &Path, private: bool) -> Result<Output, Failure> {
        if path == Path::new("-") {
            return Ok(Output {
                to: Box::new(BufWriter::with_capacity(1 << 18, io::stdout())),
                rename: None,
            });
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = match private {
            true => file::make_private(&partial),
            false => File::create(&partial),
        };
        let file =
            file.map_err(|e| Failure::Input(format!("cannot write {}: {e}", partial.display())))?;
        Ok(Output {
            to: Box::new(BufWriter::with_capacity(1 << 18, file)),
            rename: Some((partial, path.to_owned())),
        })
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.to
            .write_all(line.as_bytes())
            .map_err(Failure::Output)?;
        self.to.write_all(b"\n").map_err(Failure::Output)
    }

    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.to.flush().map_err(Failure::Output)?;
        if let Some((from, to)) = &self.rename {
            std::fs::rename(from, to).map_err(Failure::Output)?;
            self.rename = None;
        }
        Ok(())
    }
}

/// What is not complete does not stay.
impl Drop for Output {
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.rename {
            let _ = std::fs::remove_file(partial);
        }
    }
}

/// A counter on standard error; nothing where that is not a terminal.
pub(crate) fn progress(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let template = format!("{{spinner}} {{human_pos}} {what}, {{per_sec}}, {{elapsed}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
