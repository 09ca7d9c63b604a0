//! Locks on the command line, and commands that run while one is held.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use maos_client::{Client, Code, Error, Grant, LockMode, LockOptions, LockState, Refusal, Version};
use serde_json::{json, Map, Value};
use tokio::process::Command;

use crate::cli::Global;
use crate::show::Show;
use crate::{settings, End, Failure};

/// The exit code of a command that a signal ended, as shells have it: 128 and the signal's number; that of
/// SIGKILL where it is not known.
const KILLED: u8 = 137;

pub(crate) fn fields(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Map<String, Value> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub async fn take(
    client: &Client,
    show: Show,
    key: &str,
    owner: &str,
    lease: Duration,
    options: LockOptions,
) -> Result<End, Failure> {
    let granted = client.lock(key, owner, lease, options).await?;
    let Some(Grant {
        token,
        expires_at_ms,
    }) = granted
    else {
        return Ok(not_had(show, key)?);
    };
    if show.json {
        show.object(fields([
            ("key", json!(key)),
            ("locked", json!(true)),
            ("token", json!(token.0)),
            ("expires_at_ms", json!(expires_at_ms)),
        ]))?;
    } else {
        let until = show.time(Version(expires_at_ms.saturating_mul(1000)));
        println!("{token}  (until {until})");
    }
    Ok(End::Done)
}

fn not_had(show: Show, key: &str) -> io::Result<End> {
    if show.json {
        show.object(fields([("key", json!(key)), ("locked", json!(false))]))?;
    } else {
        eprintln!("{key} is locked by somebody else; maosctl locks {key} says by whom");
    }
    Ok(End::Lost)
}

pub fn given_back(show: Show, key: &str, left: u32) -> io::Result<()> {
    if show.json {
        return show.object(fields([("key", json!(key)), ("holds", json!(left))]));
    }
    match left {
        0 => eprintln!("{key} is free"),
        left => eprintln!("{key} is still held {left} times by its owner"),
    }
    Ok(())
}

pub fn state(show: Show, key: &str, state: &LockState) -> io::Result<()> {
    let mode = |mode| match mode {
        LockMode::Exclusive => "exclusive",
        LockMode::Shared => "shared",
    };
    if show.json {
        let holders = state.holders.iter().map(|h| {
            json!({
                "owner": text(&h.owner),
                "token": h.grant.token.0,
                "expires_at_ms": h.grant.expires_at_ms,
                "holds": h.holds,
                "note": h.note.as_deref().map(text),
            })
        });
        let waiters = state.waiters.iter().map(|w| {
            json!({
                "owner": text(&w.owner),
                "mode": mode(w.mode),
                "waited_ms": w.waited.as_millis() as u64,
            })
        });
        return show.object(fields([
            ("key", json!(key)),
            ("mode", json!(state.mode.map(mode))),
            ("advisory", json!(state.advisory)),
            ("holders", holders.collect()),
            ("waiters", waiters.collect()),
        ]));
    }
    match state.mode {
        None => println!("{key} is free"),
        Some(how) => {
            let advisory = if state.advisory { ", advisory" } else { "" };
            println!("{key} is locked: {}{advisory}", mode(how));
        }
    }
    for h in &state.holders {
        let until = show.time(Version(h.grant.expires_at_ms.saturating_mul(1000)));
        let note = h.note.as_deref().map(text).unwrap_or_default();
        println!(
            "held by    {}  token {}  until {until}  {note}",
            text(&h.owner),
            h.grant.token
        );
    }
    for w in &state.waiters {
        println!(
            "waits      {}  {}  for {:?}",
            text(&w.owner),
            mode(w.mode),
            w.waited
        );
    }
    Ok(())
}

/// Runs a command while a lock is held. Its exit code.
pub async fn run(
    global: &Global,
    show: Show,
    key: &str,
    lease: Duration,
    wait: Option<Duration>,
    command: &[OsString],
) -> Result<u8, Failure> {
    let client = Client::connect(settings(global)?).await?;
    let options = LockOptions::new()
        .wait(wait.unwrap_or_default())
        .note("maosctl run");
    let Some(guard) = client.lock_guard(key, lease, options).await? else {
        return Ok(not_had(show, key)? as u8);
    };
    let (program, args) = command
        .split_first()
        .ok_or_else(|| Failure::Input("say what to run".to_owned()))?;
    let child = Command::new(program)
        .args(args)
        .env("MAOS_LOCK_KEY", key)
        .env("MAOS_LOCK_TOKEN", guard.token().to_string())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            guard.release().await?;
            let text = format!("cannot run {}: {e}", program.display());
            return Err(Failure::Input(text));
        }
    };
    let ended = tokio::select! {
        ended = child.wait() => ended.map_err(Failure::Output)?,
        () = guard.lost() => {
            // Whatever it does now it does without the lock.
            child.kill().await.map_err(Failure::Output)?;
            return Err(Failure::Client(Error::Refused(Refusal::fixed(
                Code::Fenced,
                "the lock was lost, and the command was killed",
            ))));
        }
    };
    if let Err(error) = guard.release().await {
        eprintln!("maosctl: the lock was not given back: {error}");
    }
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(KILLED))
}
