//! Backups on the command line: what servers are asked to do about them.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use maos_client::{
    BackupFile, BackupId, BackupInfo, BackupJob, BackupJobKind, BackupJobState, BackupOptions,
    Client, Code, Error, Master, RestoreCounts, RestoreOptions, VerifiedBackup, Version,
};
use maos_core::codec::backup::Head;
use serde_json::{json, Map, Value};
use tokio::time::sleep;

use crate::cli::Backup;
use crate::file::{id_of, Holds};
use crate::lock::fields;
use crate::partition::{counted, exactly, printable, size};
use crate::show::Show;
use crate::{report, End, Failure};

/// Time between looks at a job: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

pub async fn run(client: &Client, show: Show, what: Backup) -> Result<End, Failure> {
    match what {
        Backup::Create {
            name,
            prefix,
            since,
            native,
            wait,
        } => {
            let mut options = BackupOptions::new();
            for prefix in &prefix {
                options = options.prefix(prefix);
            }
            options = if native { options.native() } else { options };
            return create(client, show, &name, options, &since, wait).await;
        }
        Backup::List => list(client, show).await?,
        Backup::Status { id } => {
            let (master, job) = first(client, async |of| of.backup_job(id).await).await?;
            match show.json {
                true => show.object(job_fields(show, &job, master.address()))?,
                false => job_lines(&mut io::stdout().lock(), show, &job)?,
            }
        }
        Backup::Verify { what, .. } => {
            let id = id_of(&what).ok_or_else(|| Failure::Input("not an id".to_owned()))?;
            let bar = counter("{spinner} reading, {elapsed}");
            let (_, found) = first(client, async |of| of.verify_backup(id).await).await?;
            bar.finish_and_clear();
            verified(show, &found)?;
        }
        Backup::Restore {
            id,
            prefix,
            into,
            dry_run,
            replace,
        } => {
            let mut options = RestoreOptions::new();
            for prefix in &prefix {
                options = options.prefix(prefix);
            }
            options = into.map_or(options.clone(), |prefix| options.into(prefix));
            options = if dry_run { options.dry_run() } else { options };
            options = if replace { options.replace() } else { options };
            return restore(client, show, id, &options, dry_run).await;
        }
        Backup::Cancel { id } => {
            first(client, async |of| of.cancel_backup(id).await).await?;
            told(show, id, "cancelled")?;
        }
        Backup::Delete { id } => {
            first(client, async |of| of.delete_backup(id).await).await?;
            told(show, id, "deleted")?;
        }
        Backup::Show { .. } | Backup::Export { .. } | Backup::Rewrap { .. } | Backup::Drill(_) => {
            unreachable!("they need no server, and are dealt with in `file` and `drill`")
        }
    }
    Ok(End::Done)
}

fn told(show: Show, id: BackupId, what: &'static str) -> io::Result<()> {
    if show.json {
        return show.object(fields([("id", json!(id.to_string())), (what, json!(true))]));
    }
    eprintln!("{id} is {what}");
    Ok(())
}

/// Asks one master after the other until one of them knows what it is about.
async fn first<T>(
    client: &Client,
    ask: impl AsyncFn(&Client) -> Result<T, Error>,
) -> Result<(Master, T), Failure> {
    let masters = client.masters().await?;
    let several = masters.len() > 1;
    let mut failed = None;
    let mut unknown = None;
    for master in masters {
        match ask(master.client()).await {
            Ok(found) => return Ok((master, found)),
            Err(error) if error.code() == Some(Code::NotFound) => unknown = Some(error.into()),
            Err(error) => failed = Some(of_node(several, &master, error.into())),
        }
    }
    // One that did not answer may be the one that knows.
    Err(failed.or(unknown).unwrap_or_else(nobody))
}

fn nobody() -> Failure {
    Failure::Client(Error::Protocol("the cluster has no master".to_owned()))
}

/// A failure, and whose it is, where that is a question.
fn of_node(several: bool, master: &Master, why: Failure) -> Failure {
    match several {
        false => why,
        true => Failure::Node {
            address: master.address().to_owned(),
            why: Box::new(why),
        },
    }
}

// ---------------------------------------------------------------------------------------------
// Jobs, of which there is one on each master
// ---------------------------------------------------------------------------------------------

/// A job that has begun.
struct Begun {
    master: Master,
    id: BackupId,
    /// As it was last seen.
    seen: Option<BackupJob>,
}

/// Looks at the jobs until all have ended; each look is shown. Gives those that could not be looked at any more.
async fn follow(
    begun: &mut [Begun],
    several: bool,
    mut look: impl FnMut(&[Begun]),
) -> Vec<Failure> {
    let mut failed = vec![];
    let mut lost = vec![false; begun.len()];
    let mut pause = LOOKS.0;
    loop {
        let goes_on = |job: &Begun| job.seen.as_ref().is_none_or(BackupJob::is_running);
        let asked: Vec<_> = (0..begun.len())
            .filter(|n| !lost[*n] && goes_on(&begun[*n]))
            .collect();
        if asked.is_empty() {
            return failed;
        }
        let jobs = asked.iter().map(|n| {
            let job = &begun[*n];
            async move { job.master.client().backup_job(job.id).await }
        });
        for (n, seen) in asked.iter().zip(join_all(jobs).await) {
            match seen {
                Ok(job) => begun[*n].seen = Some(job),
                Err(error) => {
                    lost[*n] = true;
                    failed.push(of_node(several, &begun[*n].master, error.into()));
                }
            }
        }
        look(begun);
        if begun
            .iter()
            .enumerate()
            .any(|(n, job)| !lost[n] && goes_on(job))
        {
            sleep(pause).await;
            pause = (2 * pause).min(LOOKS.1);
        }
    }
}

/// Why a job that has ended did not do what it should.
pub fn why(job: &BackupJob) -> Option<Failure> {
    let what = match job.kind {
        BackupJobKind::Create => "the backup",
        BackupJobKind::Rollback => "the roll-back",
        _ => "the restore",
    };
    match job.state {
        BackupJobState::Failed => {
            let error = job.error.as_deref().unwrap_or("no reason was given");
            let error = printable(error.as_bytes());
            Some(Failure::Job(format!("{what} failed: {error}")))
        }
        BackupJobState::Cancelled => Some(Failure::Job(format!("{what} was cancelled"))),
        _ => None,
    }
}

/// How it ended: all failures are told, the last one by whoever called.
fn ended(show: Show, mut failed: Vec<Failure>) -> Result<End, Failure> {
    let Some(last) = failed.pop() else {
        return Ok(End::Done);
    };
    for failure in &failed {
        report(show, failure);
    }
    Err(last)
}

/// What is shown on standard error while something goes on; nothing where that is not a terminal.
pub fn counter(template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    restyle(&bar, template);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

const LEFT_OUT: &str = "of a type or a length that no backup holds";

fn restyle(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("##."));
    }
}

/// Has one master begin a backup.
async fn begin(
    master: &Master,
    name: &str,
    mut options: BackupOptions,
    since: &[BackupId],
    several: bool,
) -> Result<BackupId, Failure> {
    let parent = match since {
        [one] if !several => Some(*one),
        [] => None,
        since => {
            let all = master.client().backups().await?;
            let own = all.iter().map(|one| &one.info);
            let mut own = own.filter(|info| info.made_on == master.id());
            let own = own.find(|info| since.contains(&info.id));
            let none =
                "it has made none of the backups of --since: without that it makes a whole one";
            let own = own.ok_or_else(|| Failure::Job(none.to_owned()))?;
            Some(own.id)
        }
    };
    options = parent.map_or(options.clone(), |id| options.since(id));
    Ok(master.client().create_backup(name, &options).await?)
}

async fn create(
    client: &Client,
    show: Show,
    name: &str,
    options: BackupOptions,
    since: &[BackupId],
    wait: bool,
) -> Result<End, Failure> {
    let masters = client.masters().await?;
    let several = masters.len() > 1;
    if since.len() > 1 && !several {
        let text = "--since is given once for each master, of which there is one";
        return Err(Failure::Input(text.to_owned()));
    }
    let asked = masters
        .iter()
        .map(|m| begin(m, name, options.clone(), since, several));
    let answers = join_all(asked).await;
    let (mut begun, mut failed) = (vec![], vec![]);
    for (master, answer) in masters.into_iter().zip(answers) {
        match answer {
            Ok(id) => begun.push(Begun {
                master,
                id,
                seen: None,
            }),
            Err(why) => failed.push(of_node(several, &master, why)),
        }
    }
    if wait {
        let bar = counter("{spinner} {human_pos} keys written, {msg}, {elapsed}");
        let lost = follow(&mut begun, several, |begun| {
            let seen = || begun.iter().filter_map(|job| job.seen.as_ref());
            bar.set_position(seen().map(|job| job.keys).sum());
            bar.set_message(size(seen().map(|job| job.bytes).sum()));
        });
        failed.extend(lost.await);
        bar.finish_and_clear();
    }
    for job in &begun {
        let (id, address) = (job.id, job.master.address());
        if show.json {
            show.object(match &job.seen {
                Some(seen) => job_fields(show, seen, address),
                None => fields([
                    ("id", json!(id.to_string())),
                    ("name", json!(name)),
                    ("node", json!(address)),
                ]),
            })?;
        }
        let failure = job.seen.as_ref().and_then(why);
        let is_made = failure.is_none() && (job.seen.is_some() || !wait);
        if is_made && !show.json {
            match several {
                true => println!("{id}  {address}"),
                false => println!("{id}"),
            }
            if let Some(seen) = &job.seen {
                let (keys, bytes) = (counted(seen.keys, "key"), exactly(seen.bytes));
                eprintln!("{keys}, {bytes}, in {:?}", seen.took);
                if seen.left_out > 0 {
                    eprintln!("left out: {} {LEFT_OUT}", counted(seen.left_out, "key"));
                }
            }
        }
        failed.extend(failure.map(|why| of_node(several, &job.master, why)));
    }
    ended(show, failed)
}

async fn restore(
    client: &Client,
    show: Show,
    id: BackupId,
    options: &RestoreOptions,
    dry_run: bool,
) -> Result<End, Failure> {
    let masters = client.masters().await?;
    let several = masters.len() > 1;
    let asked = masters
        .iter()
        .map(|m| m.client().restore_backup(id, options));
    let answers = join_all(asked).await;
    let (mut begun, mut failed, mut unknown) = (vec![], vec![], None);
    for (master, answer) in masters.into_iter().zip(answers) {
        match answer {
            Ok(id) => {
                if !show.json {
                    eprintln!("job {id} on {}", master.address());
                }
                begun.push(Begun {
                    master,
                    id,
                    seen: None,
                });
            }
            // It is in the directory of another one.
            Err(error) if error.code() == Some(Code::NotFound) => unknown = Some(error.into()),
            Err(error) => failed.push(of_node(several, &master, error.into())),
        }
    }
    if begun.is_empty() {
        failed.extend(unknown.filter(|_| failed.is_empty()));
        return match failed.is_empty() {
            true => Err(nobody()),
            false => ended(show, failed),
        };
    }
    let bar = counter("{spinner} reading the backup, {elapsed}");
    let mut is_known = false;
    let lost = follow(&mut begun, several, |begun| {
        let sum = Sum::of(begun);
        if sum.counts.total > 0 && !std::mem::replace(&mut is_known, true) {
            restyle(&bar, "{bar:30} {human_pos} of {human_len} keys, {elapsed}");
        }
        bar.set_length(sum.counts.total);
        bar.set_position(sum.keys.saturating_add(sum.counts.passed_over()));
    });
    let lost = lost.await;
    bar.finish_and_clear();
    let is_whole = lost.is_empty() && failed.is_empty();
    failed.extend(lost);
    let failures = begun.iter().filter_map(|job| {
        let why = job.seen.as_ref().and_then(why)?;
        Some(of_node(several, &job.master, why))
    });
    let before = failed.len();
    failed.extend(failures);
    let is_done = is_whole && failed.len() == before;
    restored(show, id, &begun, dry_run, is_done)?;
    ended(show, failed)
}

/// What all nodes together have brought back.
#[derive(Default)]
struct Sum {
    keys: u64,
    bytes: u64,
    counts: RestoreCounts,
}

impl Sum {
    fn of(begun: &[Begun]) -> Sum {
        let mut sum = Sum::default();
        for job in begun.iter().filter_map(|job| job.seen.as_ref()) {
            sum.keys = sum.keys.saturating_add(job.keys);
            sum.bytes = sum.bytes.saturating_add(job.bytes);
            if let Some(counts) = &job.restore {
                sum.counts += counts;
            }
        }
        sum
    }
}

fn restored(
    show: Show,
    id: BackupId,
    begun: &[Begun],
    dry_run: bool,
    is_done: bool,
) -> io::Result<()> {
    let Sum {
        keys,
        bytes,
        counts,
    } = Sum::of(begun);
    if show.json {
        let nodes = begun.iter().map(|job| {
            let address = job.master.address();
            Value::Object(match &job.seen {
                Some(seen) => job_fields(show, seen, address),
                None => fields([("id", json!(job.id.to_string())), ("node", json!(address))]),
            })
        });
        let mut all = fields([
            ("backup", json!(id.to_string())),
            ("done", json!(is_done)),
            ("dry_run", json!(dry_run)),
            ("keys", json!(keys)),
            ("bytes", json!(bytes)),
        ]);
        all.extend(count_fields(&counts));
        all.insert("nodes".to_owned(), nodes.collect());
        return show.object(all);
    }
    let mut out = io::stdout().lock();
    let what = if dry_run { "would come" } else { "restored" };
    let text = format!("{}, {}", counted(keys, "key"), exactly(bytes));
    writeln!(out, "{what:<12}{text}")?;
    count_lines(&mut out, &counts)
}

// ---------------------------------------------------------------------------------------------
// What is shown of them
// ---------------------------------------------------------------------------------------------

/// What the beginning of a backup says.
pub struct About {
    id: BackupId,
    name: String,
    instant: Version,
    made_on: String,
    key: Option<String>,
    parent: Option<BackupId>,
    prefixes: Vec<Vec<u8>>,
}

impl About {
    /// By the head of a file, and the key that sealed it.
    pub fn of(head: &Head, key: Option<&str>) -> About {
        About {
            id: BackupId(head.id),
            name: head.name.to_string(),
            instant: head.instant,
            made_on: String::from_utf8_lossy(&head.node).into_owned(),
            key: key.map(str::to_owned),
            parent: head.parent.map(|parent| BackupId(parent.id)),
            prefixes: head.prefixes.iter().map(|p| p.to_vec()).collect(),
        }
    }

    fn told(info: &BackupInfo) -> About {
        About {
            id: info.id,
            name: info.name.clone(),
            instant: info.instant,
            made_on: info.made_on.clone(),
            key: info.key.clone(),
            parent: info.parent,
            prefixes: info.prefixes.clone(),
        }
    }

    /// For programs.
    pub fn fields(&self, show: Show) -> Map<String, Value> {
        let prefixes = self.prefixes.iter().map(|p| String::from_utf8_lossy(p));
        fields([
            ("id", json!(self.id.to_string())),
            ("name", json!(self.name)),
            ("instant", json!(self.instant.0)),
            ("time", json!(show.time(self.instant))),
            ("made_on", json!(self.made_on)),
            ("key", json!(self.key)),
            ("parent", json!(self.parent.map(|id| id.to_string()))),
            ("prefixes", prefixes.map(|p| json!(p)).collect()),
        ])
    }

    /// For people.
    pub fn lines(&self, out: &mut impl Write, show: Show) -> io::Result<()> {
        let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
        line("name", printable(self.name.as_bytes()))?;
        line("id", self.id.to_string())?;
        let (instant, time) = (self.instant, show.time(self.instant));
        line("instant", format!("{instant}  ({time})"))?;
        line("made on", printable(self.made_on.as_bytes()))?;
        line("keys", self.whose())?;
        line(
            "sealed",
            match &self.key {
                Some(key) => format!("with the key {}", printable(key.as_bytes())),
                None => "not at all: anybody can read it, and make one".to_owned(),
            },
        )?;
        match self.parent {
            Some(id) => line("goes on", format!("from {id}")),
            None => Ok(()),
        }
    }

    fn whose(&self) -> String {
        if self.prefixes.is_empty() {
            return "all".to_owned();
        }
        let prefixes = self.prefixes.iter().map(|p| printable(p) + "*");
        prefixes.collect::<Vec<_>>().join(" ")
    }
}

async fn list(client: &Client, show: Show) -> Result<(), Failure> {
    let masters = client.masters().await?;
    let answers = join_all(masters.iter().map(|m| m.client().backups())).await;
    let (several, mut all) = (masters.len() > 1, vec![]);
    for (master, answer) in masters.iter().zip(answers) {
        all.extend(answer.map_err(|error| of_node(several, master, error.into()))?);
    }
    // Nodes that share a directory say the same.
    let mut seen = HashSet::new();
    all.retain(|one| seen.insert(one.info.id));
    all.sort_by_key(|one| std::cmp::Reverse((one.info.instant, one.info.id)));
    if show.json {
        for one in &all {
            let mut object = About::told(&one.info).fields(show);
            object.insert("file".to_owned(), json!(one.file));
            object.insert("size".to_owned(), json!(one.size));
            show.object(object)?;
        }
        return Ok(());
    }
    if all.is_empty() {
        eprintln!("there are no backups");
    }
    Ok(table(&mut io::stdout().lock(), show, &all)?)
}

fn table(out: &mut impl Write, show: Show, all: &[BackupFile]) -> io::Result<()> {
    let name = |one: &BackupFile| printable(one.info.name.as_bytes());
    let widest = all.iter().map(|one| name(one).chars().count()).max();
    let width = widest.unwrap_or_default();
    for one in all {
        let about = About::told(&one.info);
        let key = match &about.key {
            Some(key) => format!("sealed with {}", printable(key.as_bytes())),
            None => "not sealed".to_owned(),
        };
        let mut more = String::new();
        if !about.prefixes.is_empty() {
            more += &format!(", {}", about.whose());
        }
        if let Some(parent) = about.parent {
            more += &format!(", goes on from {parent}");
        }
        writeln!(
            out,
            "{}  {}  {:>8}  {:<width$}  {key}{more}",
            about.id,
            show.time(about.instant),
            size(one.size),
            name(one)
        )?;
    }
    Ok(())
}

fn verified(show: Show, found: &VerifiedBackup) -> io::Result<()> {
    let about = About::told(&found.info);
    let digest = format!("{:032x}", found.digest);
    if show.json {
        let mut object = about.fields(show);
        object.extend(fields([
            ("keys", json!(found.keys)),
            ("partitions", json!(found.partitions)),
            ("bytes", json!(found.bytes)),
            ("newest", json!(found.newest.0)),
            ("links", json!(found.links)),
            ("digest", json!(digest)),
        ]));
        return show.object(object);
    }
    let mut out = io::stdout().lock();
    about.lines(&mut out, show)?;
    let holds = Holds {
        keys: found.keys,
        partitions: found.partitions,
        bytes: found.bytes,
        newest: found.newest,
    };
    holds.lines(&mut out, show)?;
    if found.links > 1 {
        let links = "together with those that it goes on from";
        writeln!(out, "{:<12}{} files, {links}", "read", found.links)?;
    }
    writeln!(out, "{:<12}{digest}", "digest")
}

fn job_fields(show: Show, job: &BackupJob, address: &str) -> Map<String, Value> {
    let instant = Some(job.instant).filter(|at| *at != Version::NONE);
    let mut all = fields([
        ("id", json!(job.id.to_string())),
        ("node", json!(address)),
        ("name", json!(job.name)),
        ("kind", json!(job.kind.word())),
        ("state", json!(job.state.word())),
        ("keys", json!(job.keys)),
        ("bytes", json!(job.bytes)),
        ("instant", json!(instant.map(|at| at.0))),
        ("time", json!(instant.map(|at| show.time(at)))),
        ("took_ms", json!(job.took.as_millis() as u64)),
        ("error", json!(job.error)),
        ("left_out", json!(job.left_out)),
    ]);
    if let Some(counts) = &job.restore {
        all.extend(count_fields(counts));
    }
    all
}

fn count_fields(counts: &RestoreCounts) -> Map<String, Value> {
    fields([
        ("kept", json!(counts.kept)),
        ("same", json!(counts.same)),
        ("expired", json!(counts.expired)),
        ("elsewhere", json!(counts.elsewhere)),
        ("refused", json!(counts.refused)),
        ("reason", json!(counts.reason)),
        ("total", json!(counts.total)),
    ])
}

fn job_lines(out: &mut impl Write, show: Show, job: &BackupJob) -> io::Result<()> {
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
    line("job", job.id.to_string())?;
    let name = printable(job.name.as_bytes());
    line("does", format!("{} of {name}", job.kind.word()))?;
    line("state", format!("{}, {:?}", job.state.word(), job.took))?;
    if let Some(error) = &job.error {
        line("error", printable(error.as_bytes()))?;
    }
    match job.instant {
        Version::NONE => line("instant", "not yet".to_owned())?,
        instant => line("instant", format!("{instant}  ({})", show.time(instant)))?,
    }
    let (keys, bytes) = (counted(job.keys, "key"), exactly(job.bytes));
    line("done", format!("{keys}, {bytes}"))?;
    if job.left_out > 0 {
        line(
            "left out",
            format!("{} {LEFT_OUT}", counted(job.left_out, "key")),
        )?;
    }
    match &job.restore {
        Some(counts) => count_lines(out, counts),
        None => Ok(()),
    }
}

/// Those that there are.
fn count_lines(out: &mut impl Write, counts: &RestoreCounts) -> io::Result<()> {
    let reason = counts.reason.as_deref().unwrap_or("no reason was given");
    let refused = format!("the first: {}", printable(reason.as_bytes()));
    for (name, count, what) in [
        ("kept", counts.kept, "there already, and left as it is"),
        ("same", counts.same, "holding the same already"),
        ("expired", counts.expired, "whose time was over"),
        ("elsewhere", counts.elsewhere, "of a slot of another node"),
        ("refused", counts.refused, &refused),
    ] {
        if count > 0 {
            writeln!(out, "{name:<12}{}, {what}", counted(count, "key"))?;
        }
    }
    Ok(())
}
