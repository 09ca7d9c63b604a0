//! `maosctl`: the state store on the command line. `maosctl --help` is its manual.

mod backup;
mod chain;
mod cli;
mod compare;
mod drill;
mod file;
mod line;
mod lock;
mod partition;
mod show;
mod transfer;
mod txn;
mod watch;

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use maos_client::{
    Client, Code, Config, Error, HistoryOptions, IncrementOptions, LockOptions, MergeOptions,
    Outcome, SetOptions, Version,
};
use serde_json::value::RawValue;
use serde_json::{json, Map, Value};

use cli::{Cli, Command, ConditionArgs, Global, WriteArgs};
use maos_core::codec::backup::BackupError;
use maos_core::codec::chain::ChainError;
use show::Show;

/// How it ended, as the exit code says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Done = 0,
    NoValue = 1,
    Usage = 2,
    Lost = 3,
    Refused = 4,
    Connection = 5,
    Differs = 6,
}

/// Why it could not be done.
#[derive(Debug)]
enum Failure {
    /// The store, or the way to it.
    Client(Error),
    /// What was typed or read.
    Input(String),
    /// What was to be written.
    Output(io::Error),
    /// A line of an import.
    Line {
        line: u64,
        written: u64,
        why: Box<Failure>,
    },
    /// The file of a backup, or one that it goes on from.
    Backup(ChainError),
    /// A job that did not come to its end.
    Job(String),
    /// A server of our own that did not start, or ended.
    Private(String),
    /// One of several nodes.
    Node { address: String, why: Box<Failure> },
}

impl Failure {
    fn end(&self) -> End {
        match self {
            Failure::Client(error) => match error {
                Error::Refused(refusal) if refusal.code == Code::NoVersion => End::NoValue,
                Error::Refused(_) | Error::Server { .. } => End::Refused,
                Error::Transport { .. } | Error::Protocol(_) => End::Connection,
                _ => End::Usage,
            },
            Failure::Private(_) => End::Connection,
            Failure::Input(_) => End::Usage,
            // Whoever read our output has seen enough.
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => End::Done,
            Failure::Output(_) => End::Usage,
            Failure::Line { why, .. } | Failure::Node { why, .. } => why.end(),
            Failure::Backup(error) if is_io(error) => End::Usage,
            Failure::Backup(_) | Failure::Job(_) => End::Refused,
        }
    }

    fn code(&self) -> Value {
        match self {
            Failure::Client(Error::Refused(refusal)) => json!(refusal.code.word()),
            Failure::Client(Error::Server { word, .. }) => json!(word),
            Failure::Line { why, .. } | Failure::Node { why, .. } => why.code(),
            Failure::Backup(error) if is_io(error) => Value::Null,
            Failure::Backup(_) => json!(Code::BadBackup.word()),
            _ => Value::Null,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Client(error) => error.fmt(f),
            Failure::Input(text) => f.write_str(text),
            Failure::Output(error) => write!(f, "cannot write: {error}"),
            Failure::Line { line, written, why } => {
                write!(f, "line {line}: {why} ({written} other lines were written)")
            }
            Failure::Backup(
                error @ ChainError::Link {
                    why: BackupError::NoKey { .. },
                    ..
                },
            ) => {
                write!(f, "{error} (--key-file, or the variable {})", file::KEYS)
            }
            Failure::Backup(error) => error.fmt(f),
            Failure::Job(text) | Failure::Private(text) => f.write_str(text),
            Failure::Node { address, why } => write!(f, "{address}: {why}"),
        }
    }
}

/// The system failed, and not the backup.
fn is_io(error: &ChainError) -> bool {
    matches!(
        error,
        ChainError::Link {
            why: BackupError::Io(_),
            ..
        }
    )
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Client(error)
    }
}

impl From<ChainError> for Failure {
    fn from(error: ChainError) -> Failure {
        Failure::Backup(error)
    }
}

impl From<BackupError> for Failure {
    fn from(why: BackupError) -> Failure {
        Failure::Backup(ChainError::Link { parent: None, why })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.global.verbose {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(io::stderr)
            .init();
    }
    let show = Show {
        json: cli.global.json,
        utc: cli.global.utc,
    };
    let done = match cli.command {
        // It ends as the command that it runs.
        Command::Run {
            lock,
            lease,
            wait,
            command,
        } => lock::run(&cli.global, show, &lock, lease, wait, &command).await,
        _ => run(cli, show).await.map(|end| end as u8),
    };
    ExitCode::from(done.unwrap_or_else(|failure| {
        report(show, &failure);
        failure.end() as u8
    }))
}

fn report(show: Show, failure: &Failure) {
    if failure.end() == End::Done {
        return;
    }
    if show.json {
        let line = match failure {
            Failure::Line { line, .. } => json!(line),
            _ => Value::Null,
        };
        let code = failure.code();
        let text = failure.to_string();
        eprintln!("{}", json!({"error": text, "code": code, "line": line}));
    } else {
        eprintln!("maosctl: {failure}");
    }
}

fn settings(global: &Global) -> Result<Config, Error> {
    if let Some(file) = &global.config {
        return Config::from_file(file);
    }
    Config::from_vars(|name| match name {
        "REDIS_STATE_URLS" if !global.url.is_empty() => Some(global.url.join(",")),
        "REDIS_CLUSTER_ENABLED" if global.cluster => Some("true".to_owned()),
        _ => std::env::var(name).ok(),
    })
}

async fn run(cli: Cli, show: Show) -> Result<End, Failure> {
    if let Command::Backup(cli::Backup::Drill(args)) = &cli.command {
        return drill::run(show, args).await;
    }
    if let Command::Backup(what) = &cli.command {
        if let Some(end) = file::run(show, what)? {
            return Ok(end);
        }
    }
    let config = settings(&cli.global)?;
    if let Command::Import {
        file,
        dry_run: true,
        ..
    } = &cli.command
    {
        let count = transfer::import(None, file, None).await?;
        tell(show, "checked", count)?;
        return Ok(End::Done);
    }
    let client = Client::connect(config).await?;
    match cli.command {
        Command::Get {
            key,
            past,
            full,
            raw,
        } => {
            let found = match past.past() {
                None => client.get(&key).await?,
                Some(past) => client.get_past(&key, past).await?,
            };
            match found {
                Some(found) => show.value(&key, &found, full, raw)?,
                None => return no_value(show, &key),
            }
        }
        Command::Set {
            key,
            value,
            write,
            condition,
        } => {
            let (value, options) = (value_of(value)?, options(&write)?);
            return match condition.version() {
                None => applied(show, &key, client.set(&key, value, options).await?),
                Some(v) => ended(
                    show,
                    &key,
                    &client.set(&key, value, options.if_version(v)).await?,
                ),
            };
        }
        Command::Cas {
            key,
            version,
            value,
            write,
        } => {
            let (value, options) = (value_of(value)?, options(&write)?);
            let outcome = client.cas(&key, Version(version), value, options).await?;
            return ended(show, &key, &outcome);
        }
        Command::Merge {
            key,
            base,
            value,
            strategy,
            made,
            write,
        } => {
            let (value, write) = (raw_json(value_of(value)?)?, options(&write)?);
            let mut options = strategy
                .0
                .map_or_else(MergeOptions::as_partitioned, MergeOptions::new);
            options = options.write(write);
            options = made.map_or(options.clone(), |made| options.at(made));
            let merged = client.merge(&key, Version(base), value, options).await?;
            return Ok(match show.merged(&key, &merged)? {
                true => End::Done,
                false => End::Lost,
            });
        }
        Command::Txn {
            file,
            by,
            partition,
        } => {
            let mut transaction = txn::read(&file)?;
            transaction = partition.map_or(transaction.clone(), |p| transaction.partition(p));
            transaction = by.map_or(transaction.clone(), |agent| transaction.by(agent));
            let done = client.transact(&transaction).await?;
            show.transacted(&done)?;
            return Ok(match done.held {
                true => End::Done,
                false => End::Lost,
            });
        }
        Command::Patch {
            key,
            patch,
            json_patch,
            write,
            condition,
        } => {
            let (patch, options) = (raw_json(value_of(patch)?)?, options(&write)?);
            return match (condition.version(), json_patch) {
                (None, false) => applied(show, &key, client.patch(&key, patch, options).await?),
                (Some(v), false) => {
                    let options = options.if_version(v);
                    ended(show, &key, &client.patch(&key, patch, options).await?)
                }
                (None, true) => ended(show, &key, &client.json_patch(&key, patch, options).await?),
                (Some(v), true) => {
                    let options = options.if_version(v);
                    ended(show, &key, &client.json_patch(&key, patch, options).await?)
                }
            };
        }
        Command::Incr {
            key,
            delta,
            path,
            min,
            max,
            write,
        } => {
            let mut options = IncrementOptions::new().write(options(&write)?);
            options = path.map_or(options.clone(), |path| options.path(path));
            options = min.map_or(options.clone(), |min| options.min(min));
            options = max.map_or(options.clone(), |max| options.max(max));
            let sum = client.increment(&key, delta, options).await?;
            show.incremented(&key, &sum)?;
        }
        Command::Del {
            key,
            write,
            condition,
        } => return delete(&client, show, &key, &write, &condition).await,
        Command::History {
            key,
            from,
            to,
            count,
            desc,
            values,
        } => {
            let mut options = HistoryOptions::new();
            options = from.map_or(options.clone(), |v| options.from(v));
            options = to.map_or(options.clone(), |v| options.to(v));
            options = count.map_or(options.clone(), |n| options.count(n));
            options = if desc {
                options.newest_first()
            } else {
                options
            };
            options = if values { options.values() } else { options };
            let revisions = client.history(&key, options).await?;
            if revisions.is_empty() {
                return no_value(show, &key);
            }
            show.history(&revisions, values)?;
        }
        Command::Diff { key, from, to } => {
            let patch = client.diff(&key, from, to).await?;
            diff(show, &patch)?;
        }
        Command::Rollback {
            key,
            past,
            write,
            condition,
        } => {
            let text = "say what to go back to: --version or --at";
            let past = past.past().ok_or_else(|| Failure::Input(text.to_owned()))?;
            let options = options(&write)?;
            return match condition.version() {
                None => applied(show, &key, client.rollback(&key, past, options).await?),
                Some(v) => {
                    let options = options.if_version(v);
                    ended(show, &key, &client.rollback(&key, past, options).await?)
                }
            };
        }
        Command::Lock {
            key,
            owner,
            lease,
            wait,
            shared,
            advisory,
            note,
        } => {
            let mut options = LockOptions::new().wait(wait.unwrap_or_default());
            options = if shared { options.shared() } else { options };
            options = if advisory {
                options.advisory()
            } else {
                options
            };
            options = note.map_or(options.clone(), |text| options.note(text));
            return lock::take(&client, show, &key, &owner, lease, options).await;
        }
        Command::Unlock { key, token } => {
            let left = client.unlock(&key, Version(token)).await?;
            lock::given_back(show, &key, left)?;
        }
        Command::Locks { key } => lock::state(show, &key, &client.locks(&key).await?)?,
        Command::Run { .. } => unreachable!("it is dealt with in `main`"),
        Command::Partition(what) => return partition::run(&client, show, what).await,
        Command::Backup(what) => return backup::run(&client, show, what).await,
        Command::Info => info(&client, show).await?,
        Command::Import {
            file, partition, ..
        } => {
            let count = transfer::import(Some(&client), &file, partition.as_deref()).await?;
            tell(show, "written", count)?;
        }
        Command::Ls {
            prefix,
            long,
            since,
            count,
        } => watch::list(&client, show, &prefix, long, since, count).await?,
        Command::Watch {
            pattern,
            types,
            not_by,
            values,
            snapshot,
            checkpoint,
            count,
        } => {
            if snapshot && pattern.len() > 1 {
                let text = "--snapshot takes one prefix";
                return Err(Failure::Input(text.to_owned()));
            }
            let asked = watch::Watching {
                patterns: &pattern,
                types: &types,
                not_by,
                values,
                snapshot,
                checkpoint,
                count,
            };
            watch::watch(&client, show, asked).await?;
        }
        Command::Export { prefix, output } => {
            let count = transfer::export(&client, &prefix, &output).await?;
            // The lines themselves are the output; the count goes beside it.
            let quiet = output == Path::new("-") && show.json;
            if !quiet {
                eprintln!("{count} values");
            }
        }
    }
    Ok(End::Done)
}

async fn delete(
    client: &Client,
    show: Show,
    key: &str,
    write: &WriteArgs,
    condition: &ConditionArgs,
) -> Result<End, Failure> {
    let options = options(write)?;
    let version = match condition.version() {
        None => client.del(key, options).await?,
        Some(v) => match client.del(key, options.if_version(v)).await? {
            Outcome::Applied(version) => version,
            lost => return ended(show, key, &lost),
        },
    };
    if version == Version::NONE {
        return no_value(show, key);
    }
    applied(show, key, version)
}

fn applied(show: Show, key: &str, version: Version) -> Result<End, Failure> {
    show.written(key, version)?;
    Ok(End::Done)
}

fn ended(show: Show, key: &str, outcome: &Outcome) -> Result<End, Failure> {
    Ok(match show.outcome(key, outcome)? {
        true => End::Done,
        false => End::Lost,
    })
}

fn no_value(show: Show, key: &str) -> Result<End, Failure> {
    if show.json {
        let mut fields = Map::new();
        fields.insert("key".into(), json!(key));
        fields.insert("value".into(), Value::Null);
        show.object(fields)?;
    } else {
        eprintln!("{key} has no value");
    }
    Ok(End::NoValue)
}

fn tell(show: Show, what: &str, count: u64) -> Result<(), Failure> {
    if show.json {
        let mut fields = Map::new();
        fields.insert(what.into(), json!(count));
        show.object(fields)?;
    } else {
        eprintln!("{count} lines {what}");
    }
    Ok(())
}

/// The value of the command line, or standard input.
fn value_of(value: String) -> Result<Vec<u8>, Failure> {
    if value != "-" {
        return Ok(value.into_bytes());
    }
    let mut bytes = Vec::new();
    match io::stdin().lock().read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(Failure::Input(format!("cannot read standard input: {e}"))),
    }
}

/// As it was typed: no number loses a digit.
fn raw_json(text: Vec<u8>) -> Result<Box<RawValue>, Failure> {
    let text = String::from_utf8(text).map_err(|e| Failure::Input(format!("not UTF-8: {e}")))?;
    RawValue::from_string(text).map_err(|e| Failure::Input(format!("not JSON: {e}")))
}

fn options(write: &WriteArgs) -> Result<SetOptions, Failure> {
    let mut options = SetOptions::new();
    if let Some(agent) = &write.by {
        options = options.by(agent);
    }
    if let Some(meta) = &write.meta {
        options = options.meta_text(meta);
    }
    if let Some(ttl) = write.ttl {
        options = options.ttl(ttl);
    }
    if write.keep_ttl {
        options = options.keep_ttl();
    }
    if let Some(id) = &write.request_id {
        options = options.request_id(id);
    }
    if let Some(token) = write.token {
        options = options.token(Version(token));
    }
    if let Some((name, token)) = &write.fence {
        options = options.fence(name, *token);
    }
    if let Some(partition) = &write.partition {
        options = options.partition(partition);
    }
    Ok(options)
}

/// A patch: as it is for programs, an operation a line for people.
fn diff(show: Show, patch: &str) -> Result<(), Failure> {
    if show.json {
        println!("{patch}");
        return Ok(());
    }
    let operations: Vec<Value> = serde_json::from_str(patch)
        .map_err(|e| Failure::Client(Error::Protocol(format!("not a JSON patch: {e}"))))?;
    if operations.is_empty() {
        println!("no difference");
    }
    for operation in operations {
        let text = |name: &str| operation[name].as_str().unwrap_or_default().to_owned();
        let (op, path, from) = (text("op"), text("path"), text("from"));
        match (op.as_str(), operation.get("value")) {
            ("move" | "copy", _) => println!("{op:<8} {from} -> {path}"),
            (_, Some(value)) => println!("{op:<8} {path}  {value}"),
            (_, None) => println!("{op:<8} {path}"),
        }
    }
    Ok(())
}

async fn info(client: &Client, show: Show) -> Result<(), Failure> {
    for text in client.info(&["server", "replication", "maos"]).await? {
        let wanted = |name: &str| {
            let known = [
                "redis_version",
                "valkey_version",
                "tcp_port",
                "uptime_in_seconds",
                "role",
            ];
            known.contains(&name) || name.starts_with("maos")
        };
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let lines = lines.filter(|(name, _)| wanted(name));
        if show.json {
            let fields = lines.map(|(name, value)| {
                let number = value.parse::<i64>().ok().filter(|n| n.to_string() == value);
                (
                    name.to_owned(),
                    number.map_or_else(|| json!(value), |n| json!(n)),
                )
            });
            show.object(fields.collect())?;
            continue;
        }
        for (name, value) in lines {
            println!("{name:<32} {value}");
        }
        println!();
    }
    Ok(())
}
