//! A guided tour on a private server: `make demo`.
//!
//! It starts a server with the module, plays a day in the life of a small fleet of agents that ships
//! a change to a shop, checks every claim it makes, and stops the server. The server is taken from
//! `MAOS_SERVER` (or `redis-server` on the PATH), the module from `MAOS_MODULE`.

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maos_client::{
    time_of, Client, Config, HistoryOptions, Outcome, Past, SetOptions, StateKey, Version,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Barrier;

type Tour<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The state of the fleet at the start: tasks, agents, findings, messages.
const FLEET: &str = include_str!("data/orchestrator.ndjson");

#[tokio::main]
async fn main() -> ExitCode {
    match tour().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the tour ended early: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn tour() -> Tour<()> {
    let mut server = Server::new()?;
    server.start()?;
    let client = server.client().await?;
    say(format!(
        "A private server with the module listens on port {}; an append-only file keeps its data.",
        server.port
    ));

    let loaded = load(&client).await?;
    race(&client, &server).await?;
    together(&client).await?;
    let good = back_in_time(&client).await?;
    go_back(&client, good).await?;
    delete_and_undo(&client).await?;
    restart(&mut server, &client, loaded).await?;

    server.stop()?;
    println!();
    say("Every claim above was checked. The server is stopped and its data removed.");
    Ok(())
}

/// One line of the data set.
#[derive(Deserialize)]
struct Line<'a> {
    key: String,
    agent: String,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

impl Line<'_> {
    /// The value: what a JSON string says, the text of anything else.
    fn bytes(&self) -> Tour<String> {
        match self.value.get().starts_with('"') {
            true => Ok(serde_json::from_str(self.value.get())?),
            false => Ok(self.value.get().to_owned()),
        }
    }
}

async fn load(client: &Client) -> Tour<usize> {
    heading(1, "Write the state of a fleet");
    say("An orchestrator plans and ships 'guest checkout': its tasks, agents, findings and messages.");
    let mut versions = BTreeSet::new();
    let mut count = 0;
    for text in FLEET.lines() {
        let line: Line<'_> = serde_json::from_str(text)?;
        let mut options = SetOptions::new().by(&line.agent);
        if let Some(metadata) = line.metadata {
            options = options.meta_text(metadata.get());
        }
        versions.insert(client.set(&line.key, line.bytes()?, options).await?);
        count += 1;
    }
    check(
        versions.len() == count,
        "every write has a version of its own",
    )?;
    result(format!(
        "{count} keys written, each with a version of its own"
    ));
    let found = client.get("shop:finding:survey-3").await?;
    let found = found.ok_or("the finding is not there")?;
    check(
        found.agent.as_deref() == Some("surveyor-1"),
        "the agent is kept",
    )?;
    result(format!(
        "shop:finding:survey-3 = {}",
        found.text().unwrap_or("?")
    ));
    result(format!(
        "version {}, that is {}, by {}, metadata {}",
        found.version,
        clock(found.version),
        found.agent.as_deref().unwrap_or("-"),
        found.metadata.as_deref().unwrap_or("-"),
    ));
    Ok(count)
}

#[derive(Serialize, Deserialize, Clone)]
struct Task {
    title: String,
    status: String,
    owner: Option<String>,
    needs: Vec<String>,
}

async fn race(client: &Client, server: &Server) -> Tour<()> {
    heading(2, "One task, twenty agents, one winner");
    let key = StateKey::new("shop", "task", "api");
    let open = client.get_json::<Task>(&key).await?.ok_or("no such task")?;
    say(format!(
        "Twenty agents see {key} open at version {} and claim it.",
        open.version
    ));
    let mut claims = tokio::task::JoinSet::new();
    let start = Arc::new(Barrier::new(20));
    for n in 1..=20 {
        // Each has a connection of its own, and waits until all are ready.
        let (client, key, start) = (server.client().await?, key.clone(), start.clone());
        let (mut task, seen) = (open.value.clone(), open.version);
        claims.spawn(async move {
            let me = format!("builder-{n}");
            task.status = "running".to_owned();
            task.owner = Some(me.clone());
            let text = serde_json::to_string(&task)?;
            start.wait().await;
            // Nobody is always the first to be woken.
            for _ in 0..fastrand::u32(0..20) {
                tokio::task::yield_now().await;
            }
            let outcome = client
                .cas(&key, seen, text, SetOptions::new().by(&me))
                .await?;
            Tour::Ok((me, outcome))
        });
    }
    let (mut winners, mut told) = (vec![], BTreeSet::new());
    while let Some(claim) = claims.join_next().await {
        match claim?? {
            (me, Outcome::Applied(version)) => winners.push((me, version)),
            (_, Outcome::Lost(now)) => {
                told.insert((now.version, now.agent.unwrap_or_default()));
            }
        }
    }
    check(winners.len() == 1, "exactly one wins")?;
    let (winner, version) = winners.remove(0);
    check(
        told == BTreeSet::from([(version, winner.clone())]),
        "every loser learns who won, in the same answer",
    )?;
    let now = client.get_json::<Task>(&key).await?.ok_or("no such task")?;
    check(
        now.value.owner.as_ref() == Some(&winner),
        "the task is the winner's",
    )?;
    result(format!("{winner} has it, at version {version}"));
    result("19 lost, and each learnt from its own answer who has it now");
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Journal {
    entries: Vec<String>,
}

async fn together(client: &Client) -> Tour<()> {
    heading(3, "Fifty agents write one document");
    say("Each adds its line to shop:journal:guest-checkout: read, change, compare-and-set, again if another was first.");
    let mut writers = tokio::task::JoinSet::new();
    for n in 1..=50 {
        let client = client.clone();
        writers.spawn(async move {
            let updated = client
                .update("shop:journal:guest-checkout", |journal: Option<Journal>| {
                    let mut journal = journal.unwrap_or(Journal { entries: vec![] });
                    journal.entries.push(format!("agent {n} was here"));
                    journal
                })
                .await?;
            Tour::Ok(updated.attempts)
        });
    }
    let mut attempts = 0;
    while let Some(writer) = writers.join_next().await {
        attempts += writer??;
    }
    let journal = client
        .get_json::<Journal>("shop:journal:guest-checkout")
        .await?;
    let entries = journal.ok_or("no journal")?.value.entries;
    let different: BTreeSet<_> = entries.iter().collect();
    check(
        entries.len() == 50 && different.len() == 50,
        "no update is lost",
    )?;
    result(format!(
        "50 entries, none lost, none twice; {attempts} attempts for 50 updates"
    ));
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Flag {
    on_for_percent: u32,
    kill_switch: String,
}

const FLAG: &str = "shop:flag:guest_checkout";

async fn back_in_time(client: &Client) -> Tour<Version> {
    heading(4, "What was it, and when");
    say(format!("The roll-out turns {FLAG} up in steps."));
    let mut steps = vec![];
    for percent in [5, 25, 100] {
        let step = client
            .update_with(
                FLAG,
                maos_client::UpdateOptions::new().by("rollout-1"),
                |flag: Option<Flag>| Flag {
                    on_for_percent: percent,
                    kill_switch: flag.map(|f| f.kill_switch).unwrap_or_default(),
                },
            )
            .await?;
        steps.push(step.version);
        // A millisecond apart: the past is read back by milliseconds.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let history = client.history(FLAG, HistoryOptions::new().values()).await?;
    check(
        history.len() == 4,
        "the history has the first version and three steps",
    )?;
    check(
        history
            .windows(2)
            .all(|pair| pair[0].version < pair[1].version),
        "versions rise",
    )?;
    for revision in &history {
        let flag: Flag = serde_json::from_slice(revision.value.as_deref().unwrap_or_default())?;
        result(format!(
            "{}  {}  {:>3} percent  by {}",
            revision.version,
            clock(revision.version),
            flag.on_for_percent,
            revision.agent.as_deref().unwrap_or("-"),
        ));
    }
    let then = time_of(steps[1]) + Duration::from_millis(1);
    let past = client
        .get_past(FLAG, then)
        .await?
        .ok_or("no value then")?
        .json::<Flag>()?;
    check(past.value.on_for_percent == 25, "the past reads as it was")?;
    result(format!(
        "at {} it was on for {} percent",
        clock(steps[1]),
        past.value.on_for_percent
    ));
    let patch = client.diff(FLAG, history[0].version, steps[2]).await?;
    check(
        patch == r#"[{"op":"replace","path":"/on_for_percent","value":100}]"#,
        "the difference is the one field that changed",
    )?;
    result(format!("from first to last: {patch}"));
    Ok(steps[1])
}

async fn go_back(client: &Client, good: Version) -> Tour<()> {
    heading(5, "Roll back");
    say("At 100 percent payment errors rise. The runbook says: back to the version before.");
    let before = client.get(FLAG).await?.ok_or("no flag")?.version;
    let version = client
        .rollback(FLAG, good, SetOptions::new().by("on-call"))
        .await?;
    let flag = client.get_json::<Flag>(FLAG).await?.ok_or("no flag")?;
    check(
        version > before && flag.version == version,
        "a roll-back is a new version",
    )?;
    check(flag.value.on_for_percent == 25, "it holds the old value")?;
    result(format!(
        "on for {} percent again, as version {version} by {}; nothing was forgotten",
        flag.value.on_for_percent,
        flag.agent.as_deref().unwrap_or("-"),
    ));
    Ok(())
}

async fn delete_and_undo(client: &Client) -> Tour<()> {
    heading(6, "Delete, and undo it");
    let key = "shop:runbook:rollout";
    let before = client.get(key).await?.ok_or("no runbook")?;
    client.del(key, SetOptions::new().by("janitor")).await?;
    check(client.get(key).await?.is_none(), "a deleted value is gone")?;
    result(format!("janitor deleted {key}: it reads as absent"));
    let janitor = client
        .history(key, HistoryOptions::new().newest_first())
        .await?;
    check(janitor[0].deleted, "the deletion is part of the history")?;
    client
        .rollback(key, Past::back(1), SetOptions::new().by("planner"))
        .await?;
    let after = client
        .get(key)
        .await?
        .ok_or("the runbook did not come back")?;
    check(
        after.value == before.value,
        "an undone deletion brings the value back",
    )?;
    check(after.version > janitor[0].version, "under a new version")?;
    result("planner rolled the deletion back: the same text, under a new version");
    Ok(())
}

async fn restart(server: &mut Server, client: &Client, keys: usize) -> Tour<()> {
    heading(7, "Restart the server");
    let before = everything(client).await?;
    check(before.len() == keys, "all keys are there")?;
    let highest = before
        .iter()
        .map(|(_, version, _)| *version)
        .max()
        .unwrap_or(Version::NONE);
    server.stop()?;
    server.start()?;
    // The same client: it notices, connects again, and goes on.
    let after = everything(client).await?;
    check(
        before == after,
        "all keys have the same values, versions and histories",
    )?;
    result(format!(
        "{} keys with the same values, versions and histories",
        after.len()
    ));
    let next = client.set(
        "shop:message:6",
        r#"{"to":"planner","text":"Back again."}"#,
        SetOptions::new(),
    );
    let next = next.await?;
    check(next > highest, "versions still rise")?;
    result(format!(
        "the next version is {next}, above {highest}: none is ever given twice"
    ));
    Ok(())
}

/// Every key with its version and its history.
async fn everything(client: &Client) -> Tour<Vec<(String, Version, String)>> {
    let mut all = vec![];
    let mut scan = client.scan("shop:");
    while let Some(page) = scan.next_page().await? {
        for key in page {
            let history = client.history(&key, HistoryOptions::new().values()).await?;
            let last = history.last().ok_or("a key without history")?;
            all.push((
                String::from_utf8(key)?,
                last.version,
                format!("{history:?}"),
            ));
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

// ---------------------------------------------------------------------------------------------
// The server
// ---------------------------------------------------------------------------------------------

/// A private server: its own port and directory, gone at the end.
struct Server {
    port: u16,
    dir: PathBuf,
    child: Option<Child>,
}

impl Server {
    fn new() -> Tour<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = env::temp_dir().join(format!("maos-tour-{}-{port}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Server {
            port,
            dir,
            child: None,
        })
    }

    fn start(&mut self) -> Tour<()> {
        let program = env::var("MAOS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let module = env::var("MAOS_MODULE").map_err(|_| {
            "MAOS_MODULE must name the module; `make demo` builds it and runs this tour"
        })?;
        let module = fs::canonicalize(&module).map_err(|e| format!("{module}: {e}"))?;
        let log = fs::File::create(self.dir.join("server.log"))?;
        let child = Command::new(&program)
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--save",
                "",
            ])
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"])
            .arg(&self.dir)
            .arg("--loadmodule")
            .arg(module)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot run {program}: {e}"))?;
        self.child = Some(child);
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.as_mut().map(Child::try_wait);
            if matches!(ended, Some(Ok(Some(_)))) || start.elapsed() > Duration::from_secs(20) {
                let log = fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
                return Err(format!("the server did not start:\n{log}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    async fn client(&self) -> Tour<Client> {
        let url = format!("redis://127.0.0.1:{}/", self.port);
        Ok(Client::connect(Config::new(&url)?).await?)
    }

    /// Stops it as an administrator would: it writes its file and ends.
    fn stop(&mut self) -> Tour<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let start = Instant::now();
        while child.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(20) {
                child.kill()?;
                child.wait()?;
                return Err("the server did not stop when asked to".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

// ---------------------------------------------------------------------------------------------
// What is shown
// ---------------------------------------------------------------------------------------------

fn heading(number: u32, text: &str) {
    let (bold, plain) = match io::stdout().is_terminal() {
        true => ("\x1b[1m", "\x1b[0m"),
        false => ("", ""),
    };
    println!("\n{bold}{number}. {text}{plain}");
}

fn say(text: impl Display) {
    println!("{text}");
}

fn result(text: impl Display) {
    println!("   {text}");
}

fn check(holds: bool, claim: &str) -> Tour<()> {
    match holds {
        true => Ok(()),
        false => Err(format!("it does not hold that {claim}").into()),
    }
}

/// The time of day of a version, with its microseconds.
fn clock(version: Version) -> String {
    let micros = i64::try_from(version.0).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) => time.strftime("%H:%M:%S%.6f UTC").to_string(),
        Err(_) => version.to_string(),
    }
}
