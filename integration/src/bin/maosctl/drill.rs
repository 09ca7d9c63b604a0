//! Drills: a backup is restored into a private server, and what that holds then is compared with what the files say.
//!
//! The server is told nothing but where the files are. What it holds is read from a backup that it makes of it, by the same
//! code that reads the files, and not by asking it: so what is proven is the way there and the way back.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use indicatif::ProgressBar;
use maos_client::{
    BackupId, BackupJob, BackupOptions, Client, Code, Config, Error, RestoreOptions,
};
use maos_core::codec::backup::{BackupError, Entry};
use maos_core::codec::Damaged;
use maos_core::keyring::Keyring;
use maos_core::wire::backup::BACKUP_ENDING;
use maos_core::Interner;
use serde_json::{json, Value};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::sleep;

use crate::backup::{counter, why, About};
use crate::chain::{files_in, Chain, Link};
use crate::cli::{DrillArgs, KeyArgs};
use crate::compare::{Compared, Differs, Said};
use crate::file::{cannot, id_of, keys_of, make_private, KEYS};
use crate::line;
use crate::lock::fields;
use crate::partition::{counted, exactly, printable};
use crate::show::Show;
use crate::transfer;
use crate::{End, Failure};

/// The variables that say where the backups, the server and the module are.
const DIR: &str = "MAOS_BACKUP_DIR";
const SERVER: &str = "MAOS_SERVER";
const MODULE: &str = "MAOS_MODULE";
/// How long the private server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many ports are tried.
const TRIES: usize = 5;
/// Time between two looks at a job.
const LOOKS: Duration = Duration::from_millis(20);
/// So much is shown of what the private server has logged.
const LOG_LINES: usize = 20;
/// So much of a file is copied before it is looked whether somebody wants an end.
const COPIED: u64 = 4 << 20;
/// All that partitions may be given.
const POOL: u64 = (1 << 53) - 1;

/// Restores a backup for a try. Whatever ends it, the private server is gone then.
pub async fn run(show: Show, args: &DrillArgs) -> Result<End, Failure> {
    let drill = drill(show, args);
    let end = tokio::select! {
        biased;
        signal = interrupted() => Err(signal),
        end = drill => Ok(end),
    };
    match end {
        Ok(end) => end,
        Err(signal) => {
            eprintln!("maosctl: the drill was interrupted; nothing of it is left");
            // A file may still be read in a thread, which nobody has to wait for.
            std::process::exit(128 + signal)
        }
    }
}

/// Waits until somebody wants this process to end. The number of the signal.
#[cfg(unix)]
async fn interrupted() -> i32 {
    use tokio::signal::unix::{signal, SignalKind};
    let wait = async |kind: SignalKind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => SignalKind::interrupt().as_raw_value(),
        () = wait(SignalKind::terminate()) => SignalKind::terminate().as_raw_value(),
        () = wait(SignalKind::hangup()) => SignalKind::hangup().as_raw_value(),
    }
}

#[cfg(not(unix))]
async fn interrupted() -> i32 {
    match tokio::signal::ctrl_c().await {
        Ok(()) => 2,
        Err(_) => std::future::pending().await,
    }
}

async fn drill(show: Show, args: &DrillArgs) -> Result<End, Failure> {
    let began = Instant::now();
    let path = file_of(args)?;
    let chain = Chain::open(&path, keys_of(&args.keys)?)?;
    // All of it, before anything is begun.
    let bar = chain.progress(2);
    let (chain, said) = aside(move || {
        chain.check(&bar)?;
        let said = read(&chain, &bar)?;
        bar.finish_and_clear();
        Ok((chain, said))
    })
    .await?;
    let mut private = Private::start(args, &chain, said.last_db).await?;
    let did = private.restore(&chain, &said).await;
    let did = did.map_err(|failure| private.told(failure))?;
    let made = private.back_up(chain.head().natives).await;
    let made = made.map_err(|failure| private.told(failure))?;
    // It has said all that it has to say; its files are still needed.
    private.end();
    let ring = keys_of(&args.keys)?;
    let (chain, compared, did) = aside(move || {
        let bar = ProgressBar::hidden();
        let held = held(&made, ring, &bar).map_err(|why| {
            let text = "the private server's own backup of what was restored cannot be read";
            Failure::Job(format!("{text}: {why}"))
        })?;
        let (over, now_ms) = (&did.over, now_ms());
        let (mut compared, mut suspects) = said.compare(held, over, now_ms);
        if !suspects.is_empty() {
            let interner = &mut Interner::default();
            chain.each(&bar, &mut |entry| {
                let looked = suspects.look(entry, &mut compared, interner);
                Ok(looked.map_err(damaged)?)
            })?;
        }
        Ok((chain, compared, did))
    })
    .await?;
    drop(private);
    report(show, &chain, &compared, &did, began.elapsed())?;
    match compared.differ() {
        0 => Ok(End::Done),
        n => {
            if !show.json {
                let text = "the server does not hold what the backup says";
                eprintln!("maosctl: {text}: {} differ", counted(n, "key"));
            }
            Ok(End::Differs)
        }
    }
}

/// Does what takes a while in a thread.
async fn aside<T: Send + 'static>(
    then: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = spawn_blocking(then).await;
    done.unwrap_or_else(|e| Err(Failure::Job(format!("the drill has failed: {e}"))))
}

fn damaged(Damaged(what): Damaged) -> BackupError {
    BackupError::Damaged(what, 0)
}

fn read(chain: &Chain, bar: &ProgressBar) -> Result<Said, Failure> {
    let mut said = Said::default();
    chain.each(bar, &mut |entry: &Entry<'_>| {
        Ok(said.take(entry).map_err(damaged)?)
    })?;
    Ok(said)
}

/// What the private server holds, by the backup that it has made of it.
fn held(made: &Path, ring: Option<Keyring>, bar: &ProgressBar) -> Result<Said, Failure> {
    let chain = Chain::open(made, ring)?;
    chain.check(bar)?;
    read(&chain, bar)
}

/// The file that is meant.
fn file_of(args: &DrillArgs) -> Result<PathBuf, Failure> {
    let Some(id) = id_of(&args.what) else {
        return Ok(args.what.clone());
    };
    let dir = given(args.dir.as_deref(), DIR).unwrap_or_else(|| ".".into());
    files_in(&dir)?.remove(&id).ok_or_else(|| {
        let dir = dir.display();
        let text = format!(
            "there is no backup {id} in {dir}: say where it is (--dir, or the variable {DIR})"
        );
        Failure::Input(text)
    })
}

/// What was said on the command line, or in the environment.
fn given(said: Option<&Path>, variable: &str) -> Option<PathBuf> {
    let known = env::var_os(variable).filter(|value| !value.is_empty());
    said.map(Path::to_owned).or(known.map(PathBuf::from))
}

/// The module: as it was said, or the library beside this program.
fn module(args: &DrillArgs) -> Result<PathBuf, Failure> {
    let beside = || {
        let name = format!("{}maos{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        let program = env::current_exe().and_then(fs::canonicalize).ok()?;
        Some(program.parent()?.join(name)).filter(|path| path.is_file())
    };
    let found = given(args.module.as_deref(), MODULE).or_else(beside);
    let found = found.ok_or_else(|| {
        let text = format!("say where the module is: --module, or the variable {MODULE}");
        Failure::Input(text)
    })?;
    fs::canonicalize(&found).map_err(cannot("read", &found))
}

/// The server's program: as it was said, or the one on the PATH.
fn server(args: &DrillArgs) -> Result<PathBuf, Failure> {
    let Some(said) = given(args.server.as_deref(), SERVER) else {
        return Ok("redis-server".into());
    };
    // A path is one from here, and not from the directory that it is started in.
    match said.components().count() {
        1 => Ok(said),
        _ => fs::canonicalize(&said).map_err(cannot("run", &said)),
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

// ---------------------------------------------------------------------------------------------
// The private server
// ---------------------------------------------------------------------------------------------

/// A directory that nobody else may look into, and that goes with this.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Result<Dir, Failure> {
        let path = env::temp_dir().join(format!("maos-drill-{}", secret()?));
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(cannot("make", &path))?;
        Ok(Dir(path))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("maosctl: cannot remove {}: {e}", self.0.display());
        }
    }
}

/// What nobody can guess.
fn secret() -> Result<String, Failure> {
    let mut random = [0; 16];
    let drawn = getrandom::fill(&mut random);
    drawn.map_err(|e| Failure::Input(format!("the system gives no random bytes: {e}")))?;
    Ok(BackupId(random).to_string())
}

/// A process of ours, which ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: that it is gone is all that matters.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of our own. Its process goes before its directory does.
struct Private {
    process: Option<Process>,
    dir: Dir,
    client: Client,
    id: BackupId,
}

/// What the restore has done.
struct Did {
    /// Restored at once.
    keys: u64,
    took: Duration,
    /// Keys and partitions that were refused, before these got more room.
    refused: u64,
    reason: Option<String>,
    /// Partitions that hold more than their quota.
    over: Vec<Vec<u8>>,
}

/// A text as redis.conf has it.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(['"', '\\', '\n']));
    let text = text.ok_or_else(|| {
        let text = format!("{} cannot be written into redis.conf", path.display());
        Failure::Input(text)
    })?;
    Ok(format!("\"{text}\""))
}

/// The key file, as the server takes it that works in this directory.
fn key_file(keys: &KeyArgs, dir: &Dir) -> Result<Option<PathBuf>, Failure> {
    let Some(path) = &keys.key_file else {
        return Ok(None);
    };
    // What stands in the place of a path may be a key by mistake: it is not repeated.
    let bad = |e: io::Error| Failure::Input(format!("--key-file: {e}"));
    let path = fs::canonicalize(path).map_err(bad)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // Who makes a directory owns it.
        let own = fs::metadata(&dir.0).map_err(bad)?.uid();
        if fs::metadata(&path).map_err(bad)?.uid() != own {
            let text = "--key-file: it belongs to another user, and a server takes no keys but those of its own: \
                        run the drill as that user, or give the keys in the variable";
            return Err(Failure::Input(format!("{text} {KEYS}")));
        }
    }
    Ok(Some(path))
}

/// Puts a file of a backup into a directory: as another name for it, or as a copy. Somebody may interrupt that.
async fn put(link: &Link, to: &Path) -> Result<(), Failure> {
    if fs::hard_link(&link.path, to).is_ok() {
        if is_same(&link.file, to) {
            return Ok(());
        }
        fs::remove_file(to).map_err(cannot("write", to))?;
    }
    copy(&link.path, to)
        .await
        .map_err(cannot("copy the backup to", to))
}

async fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (from, mut to) = (File::open(from)?, make_private(to)?);
    while io::copy(&mut (&from).take(COPIED), &mut to)? > 0 {
        yield_now().await;
    }
    Ok(())
}

/// Whether a name leads to the file that is open.
#[cfg(unix)]
fn is_same(file: &File, name: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    let (one, other) = (file.metadata().map(place), fs::metadata(name).map(place));
    one.is_ok_and(|one| other.is_ok_and(|other| one == other))
}

#[cfg(not(unix))]
fn is_same(_file: &File, _name: &Path) -> bool {
    true
}

impl Private {
    async fn start(args: &DrillArgs, chain: &Chain, last_db: u32) -> Result<Private, Failure> {
        let module = module(args)?;
        let dir = Dir::new()?;
        let keys = key_file(&args.keys, &dir)?;
        let backups = dir.0.join("backups");
        fs::create_dir(&backups).map_err(cannot("make", &backups))?;
        for (link, head) in chain.links().iter().zip(chain.heads()) {
            let name = format!("{}-{}{BACKUP_ENDING}", head.name, BackupId(head.id));
            put(link, &backups.join(name)).await?;
        }
        let password = secret()?;
        let mut text = String::new();
        for (name, value) in [
            ("dir", quoted(&dir.0)?),
            ("bind", "127.0.0.1".into()),
            ("protected-mode", "yes".into()),
            ("requirepass", password.clone()),
            ("save", "\"\"".into()),
            ("appendonly", "no".into()),
            ("daemonize", "no".into()),
            ("databases", (last_db.saturating_add(1)).max(16).to_string()),
            ("loadmodule", quoted(&module)?),
            ("maos.backup-dir", quoted(&backups)?),
            ("maos.backup-plain", "yes".into()),
            // Nothing is trimmed or moved meanwhile, and no partition is too large.
            ("maos.background-effort-us", "0".into()),
            ("maos.pool-bytes", POOL.to_string()),
            ("maos.range-index", "no".into()),
            // The clock of this machine may be behind.
            ("maos.clock-max-drift-ms", "31536000000".into()),
        ] {
            text += &format!("{name} {value}\n");
        }
        if let Some(keys) = &keys {
            text += &format!("maos.backup-key-file {}\n", quoted(keys)?);
        }
        let server = server(args)?;
        let mut last = String::new();
        for _ in 0..TRIES {
            let port = free_port()?;
            let config = format!("{text}port {port}\n");
            let mut process = begin(&server, &dir.0, &config, keys.is_some())?;
            let why = match ready(&mut process, port, &password).await {
                Ok(client) => {
                    return Ok(Private {
                        process: Some(process),
                        dir,
                        client,
                        id: BackupId(chain.head().id),
                    })
                }
                Err(why) => why,
            };
            drop(process);
            let log = logged(&dir.0);
            let is_taken = log.contains("Address already in use");
            last = format!("the private server did not start: {why}{log}");
            if !is_taken {
                break;
            }
        }
        Err(Failure::Private(last))
    }

    /// The process ends now, the files stay.
    fn end(&mut self) {
        self.process = None;
    }

    /// A failure; where the server has ended by itself, with what it has logged.
    fn told(&mut self, failure: Failure) -> Failure {
        let process = self.process.as_mut().map(|process| process.0.try_wait());
        match process {
            Some(Ok(Some(status))) => {
                let log = logged(&self.dir.0);
                Failure::Private(format!(
                    "the private server ended ({status}): {failure}{log}"
                ))
            }
            _ => failure,
        }
    }

    async fn ended(&self, id: BackupId) -> Result<BackupJob, Failure> {
        let job = self.client.wait_for_backup(id, LOOKS).await?;
        match why(&job) {
            None => Ok(job),
            Some(failure) => Err(failure),
        }
    }

    async fn restored(&self) -> Result<BackupJob, Failure> {
        let options = RestoreOptions::new();
        let job = self.client.restore_backup(self.id, &options).await?;
        self.ended(job).await
    }

    async fn restore(&self, chain: &Chain, said: &Said) -> Result<Did, Failure> {
        let bar = counter("{spinner} restoring, {elapsed}");
        let job = self.restored().await?;
        let counts = job.restore.unwrap_or_default();
        let mut did = Did {
            keys: job.keys,
            took: job.took,
            refused: counts.refused,
            reason: counts.reason,
            over: vec![],
        };
        if did.refused > 0 {
            // A quota that was made smaller than what was there then.
            self.make_room(chain, said).await?;
            self.restored().await?;
            did.over = self.take_room(said).await?;
        }
        bar.finish_and_clear();
        Ok(did)
    }

    /// Gives every partition of the backup room for all that is in it.
    async fn make_room(&self, chain: &Chain, said: &Said) -> Result<(), Failure> {
        let more = chain.size().saturating_mul(16).saturating_add(1 << 30);
        let share = POOL / (said.defined.len() as u64).max(1);
        for one in said.defined.iter().filter(|one| one.db == 0) {
            let quota = one.definition.quota.saturating_add(more).min(share);
            let partition = self.client.partition(&one.name).quota(quota);
            match partition.alter().await {
                Ok(_) => {}
                Err(error) if error.code() == Some(Code::NotFound) => {
                    let mut definition = one.definition.clone();
                    definition.quota = quota;
                    let defined = line::Defined {
                        name: one.name.clone(),
                        definition,
                        expires_at_ms: one.expires_ms,
                    };
                    // What is not possible either way is found when it is compared.
                    if let Err(error @ Error::Transport { .. }) =
                        transfer::define(&self.client, &defined).await
                    {
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Gives them the quotas that they have. Those that hold more keep what they got.
    async fn take_room(&self, said: &Said) -> Result<Vec<Vec<u8>>, Failure> {
        let mut over = vec![];
        for one in said.defined.iter().filter(|one| one.db == 0) {
            let partition = self.client.partition(&one.name);
            match partition.quota(one.definition.quota).alter().await {
                Ok(_) => {}
                Err(error) if error.code() == Some(Code::NotFound) => {}
                Err(Error::Refused(_)) => over.push(one.name.clone()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(over)
    }

    /// Has the server make a backup of what it holds; its file.
    async fn back_up(&self, natives: bool) -> Result<PathBuf, Failure> {
        let options = BackupOptions::new();
        let options = if natives { options.native() } else { options };
        let bar = counter("{spinner} reading what was restored, {elapsed}");
        let id = self.client.create_backup("drill", &options).await?;
        self.ended(id).await?;
        bar.finish_and_clear();
        let name = format!("drill-{id}{BACKUP_ENDING}");
        Ok(self.dir.0.join("backups").join(name))
    }
}

/// A port on which nobody listens now. Somebody may take it before our server does.
fn free_port() -> Result<u16, Failure> {
    let found = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    let found = found.map_err(|e| Failure::Private(format!("there is no free port: {e}")))?;
    Ok(found.port())
}

/// Starts the process.
fn begin(server: &Path, dir: &Path, config: &str, has_file: bool) -> Result<Process, Failure> {
    let path = dir.join("redis.conf");
    let written = make_private(&path);
    let written = written.and_then(|mut file| file.write_all(config.as_bytes()));
    written.map_err(cannot("write", &path))?;
    let log = dir.join("server.log");
    let file = make_private(&log).map_err(cannot("write", &log))?;
    let beside = file.try_clone().map_err(cannot("write", &log))?;
    let mut command = Command::new(server);
    command
        .arg(&path)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(beside);
    // A server takes the keys of the variable first, this program those of the file.
    if has_file {
        command.env_remove(KEYS);
    }
    let child = command.spawn();
    let child = child.map_err(|e| {
        let text = format!(
            "cannot run {}: {e} (--server, or the variable {SERVER})",
            server.display()
        );
        Failure::Private(text)
    })?;
    Ok(Process(child))
}

/// Waits until it answers: ours, for nobody else knows the password.
async fn ready(process: &mut Process, port: u16, password: &str) -> Result<Client, String> {
    let url = format!("redis://127.0.0.1:{port}/");
    let settings = Config::new(&url).map_err(|e| e.to_string())?;
    let settings = settings.password(password);
    let began = Instant::now();
    loop {
        match process.0.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Err(format!("it ended ({status})")),
            Err(e) => return Err(e.to_string()),
        }
        let once = settings
            .clone()
            .attempts(1)
            .connect_timeout(Duration::from_secs(1))
            .deadline(Duration::from_secs(1));
        let error = match Client::connect(once).await {
            Ok(_) => match Client::connect(settings.clone()).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if began.elapsed() > PATIENCE {
            return Err(format!("it did not answer within {PATIENCE:?}: {error}"));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// The end of what the server has logged, for people.
fn logged(dir: &Path) -> String {
    let mut text = vec![];
    if let Ok(file) = File::open(dir.join("server.log")) {
        let _ = file.take(1 << 20).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
    let last = last.iter().map(|line| printable(line.as_bytes()));
    last.fold(String::new(), |all, line| all + "\n  " + &line)
}

// ---------------------------------------------------------------------------------------------
// What came of it
// ---------------------------------------------------------------------------------------------

fn report(
    show: Show,
    chain: &Chain,
    compared: &Compared,
    did: &Did,
    took: Duration,
) -> Result<(), Failure> {
    let key = chain.links()[0].key.as_deref();
    let about = About::of(chain.head(), key);
    let (said, held) = (
        format!("{:032x}", compared.said),
        format!("{:032x}", compared.held),
    );
    let named = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    if show.json {
        let first = compared
            .first
            .iter()
            .map(|((db, key), how)| json!({"key": named(key), "db": db, "how": how.word()}));
        let over = did.over.iter().map(|name| json!(named(name)));
        let mut all = about.fields(show);
        all.extend(fields([
            ("same", json!(compared.differ() == 0)),
            ("links", json!(chain.links().len())),
            ("keys", json!(compared.keys)),
            ("versions", json!(compared.versions)),
            ("natives", json!(compared.natives)),
            ("partitions", json!(compared.partitions)),
            ("bytes", json!(compared.bytes)),
            ("restored", json!(did.keys)),
            ("restore_ms", json!(did.took.as_millis() as u64)),
            ("took_ms", json!(took.as_millis() as u64)),
            ("expired", json!(compared.expired)),
            ("locked_only", json!(compared.bare)),
            ("renewed", json!(compared.renewed)),
            ("refused", json!(did.refused)),
            ("reason", json!(did.reason)),
            ("over_quota", over.collect()),
            ("differ", json!(compared.differ())),
            ("missing", json!(compared.missing)),
            ("more", json!(compared.more)),
            ("other", json!(compared.other)),
            ("first", first.collect::<Value>()),
            ("digest", json!(said)),
            ("held", json!(held)),
        ]));
        return Ok(show.object(all)?);
    }
    let mut out = io::stdout().lock();
    about.lines(&mut out, show)?;
    let mut line = |name: &str, text: String| writeln!(out, "{name:<12}{text}");
    let (files, seconds) = (chain.links().len(), did.took.as_secs_f64());
    let files = match files {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    };
    let keys = counted(did.keys, "key");
    line("restored", format!("{keys} from {files} in {seconds:.3} s"))?;
    let (keys, bytes) = (counted(compared.keys, "key"), exactly(compared.bytes));
    let versions = counted(compared.versions, "version");
    let is_same = compared.differ() == 0;
    let what = if is_same { "all the same" } else { "the same" };
    line("compared", format!("{keys}, {versions}, {bytes}: {what}"))?;
    line("partitions", compared.partitions.to_string())?;
    for (name, count, what) in [
        (
            "natives",
            compared.natives,
            "of the server's own types among them",
        ),
        ("expired", compared.expired, "whose time is over by now"),
        (
            "locked",
            compared.bare,
            "that held no more than a lock, which does not come back",
        ),
        (
            "renewed",
            compared.renewed,
            "with a version on top, as others expired meanwhile",
        ),
    ] {
        if count > 0 {
            line(name, format!("{}, {what}", counted(count, "key")))?;
        }
    }
    if did.refused > 0 {
        let reason = did.reason.as_deref().unwrap_or("no reason was given");
        let reason = printable(reason.as_bytes());
        line("refused", format!("{} at first: {reason}", did.refused))?;
    }
    for name in &did.over {
        let what = "holds more than its quota: a restore refuses keys of it until it is given more";
        line("no room", format!("{} {what}", printable(name)))?;
    }
    if is_same {
        return Ok(line("digest", said)?);
    }
    let counts = [
        (compared.missing, Differs::Missing),
        (compared.more, Differs::More),
        (compared.other, Differs::Other),
    ];
    let counts = counts.iter().filter(|(n, _)| *n > 0);
    let counts: Vec<_> = counts
        .map(|(n, how)| format!("{n} {}", how.word()))
        .collect();
    line("differ", counts.join(", "))?;
    for ((db, key), how) in &compared.first {
        let db = match db {
            0 => String::new(),
            db => format!("  (database {db})"),
        };
        line("", format!("{:<8} {}{db}", how.word(), printable(key)))?;
    }
    line("digest", said)?;
    Ok(line("held", held)?)
}
