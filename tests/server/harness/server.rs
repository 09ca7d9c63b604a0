//! A private server: its own port, its own directory, gone when the test is over.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::conn::Conn;
use super::port::free_port;
use super::reply::Reply;
use super::wait::{eventually, PATIENCE};

/// How many other ports are tried when somebody takes ours between the look and the start.
const TRIES: usize = 5;

/// What a server is started with. Every method gives the changed setup, [`start`](Setup::start) the server.
#[derive(Clone, Debug)]
pub struct Setup {
    module: bool,
    cluster: bool,
    prefix: Vec<String>,
    lines: Vec<(String, String)>,
}

impl Setup {
    /// A server with the module, without persistence, with DEBUG allowed.
    pub fn new() -> Setup {
        let defaults = [
            ("bind", "127.0.0.1"),
            ("save", ""),
            ("enable-debug-command", "yes"),
            ("repl-diskless-sync-delay", "0"),
            ("repl-ping-replica-period", "1"),
        ];
        Setup {
            module: true,
            cluster: false,
            prefix: Vec::new(),
            lines: Vec::new(),
        }
        .with(&defaults)
    }

    /// The same without the module.
    pub fn plain() -> Setup {
        Setup::new().module(false)
    }

    /// Whether the module is loaded.
    pub fn module(mut self, loaded: bool) -> Setup {
        self.module = loaded;
        self
    }

    /// One line of the configuration file; an empty value is written as `""`.
    pub fn set(mut self, name: &str, value: &str) -> Setup {
        self.lines.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Several lines of the configuration file.
    pub fn with(self, lines: &[(&str, &str)]) -> Setup {
        lines
            .iter()
            .fold(self, |setup, (name, value)| setup.set(name, value))
    }

    /// Cluster mode, with the time after which a silent node counts as failing.
    pub fn cluster(mut self, node_timeout_ms: u32) -> Setup {
        self.cluster = true;
        self.set("cluster-enabled", "yes")
            .set("cluster-node-timeout", &node_timeout_ms.to_string())
    }

    /// Runs the server under another program that becomes it: `taskset -c 0`, `valgrind …`.
    pub fn under(mut self, prefix: &[&str]) -> Setup {
        self.prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts the server and waits until it answers; panics with the end of its log when it does not.
    #[track_caller]
    pub fn start(self) -> Server {
        for _ in 1..TRIES {
            let mut server = self.clone().prepare();
            match server.launch() {
                Ok(()) => return server,
                Err(error) if server.log().contains("Address already in use") => {
                    eprintln!("port {} was taken meanwhile: {error}", server.port);
                }
                Err(error) => panic!("{error}\n{}", server.log_tail()),
            }
        }
        panic!("{TRIES} ports were taken before the server could have them");
    }

    /// A directory and a port, with the configuration file written.
    fn prepare(self) -> Server {
        let port = free_port(self.cluster);
        let dir = new_dir(port);
        let text = self.config_file(port, &dir);
        let server = Server {
            child: None,
            port,
            dir,
            setup: self,
        };
        fs::write(server.config_path(), text).expect("the server's directory is writable");
        server
    }

    fn config_file(&self, port: u16, dir: &Path) -> String {
        let mut text = format!("port {port}\ndir {:?}\n", dir);
        if self.module {
            let _ = writeln!(text, "loadmodule {:?}", module_path());
        }
        for (name, value) in &self.lines {
            let value = if value.is_empty() { "\"\"" } else { value };
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

/// How a server is made to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `SHUTDOWN SAVE`: an RDB file is written first.
    Save,
    /// `SHUTDOWN NOSAVE`: no RDB file; an append-only file is still flushed.
    NoSave,
    /// SIGKILL: what a crash leaves.
    Kill,
}

/// A running server. Dropping it kills it and removes its directory, unless `MAOS_KEEP` is set.
pub struct Server {
    child: Option<Child>,
    port: u16,
    dir: PathBuf,
    setup: Setup,
}

impl Server {
    /// A server with the module, without persistence.
    #[track_caller]
    pub fn start() -> Server {
        Setup::new().start()
    }

    /// A server with the module and some lines of configuration.
    #[track_caller]
    pub fn with(lines: &[(&str, &str)]) -> Server {
        Setup::new().with(lines).start()
    }

    /// A server without the module.
    #[track_caller]
    pub fn plain() -> Server {
        Setup::plain().start()
    }

    /// A new connection to it.
    #[track_caller]
    pub fn conn(&self) -> Conn {
        Conn::open(self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address a client is given.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Its working directory: configuration, log, RDB and append-only files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it was started with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Its process id; panics when it does not run.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        match &self.child {
            Some(child) => child.id(),
            None => panic!("the server on port {} does not run", self.port),
        }
    }

    /// Whether its process runs.
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Everything it has logged, over all its restarts; its last words on stderr too.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Stops it and starts it again, on the same port and directory.
    #[track_caller]
    pub fn restart(&mut self, stop: Stop) {
        self.stop(stop);
        self.start_again();
    }

    /// Starts it after a [`stop`](Server::stop).
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        if let Err(error) = self.launch() {
            panic!("{error}\n{}", self.log_tail());
        }
    }

    /// Tries to start it after a [`stop`](Server::stop): for tests in which it should refuse to.
    pub fn try_start_again(&mut self) -> io::Result<()> {
        assert!(self.child.is_none(), "the server runs already");
        self.launch()
    }

    /// Stops it and waits until its process is gone.
    #[track_caller]
    pub fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Kill => self.kill(),
            Stop::Save => self.shut_down("SAVE"),
            Stop::NoSave => self.shut_down("NOSAVE"),
        }
    }

    /// Kills it (SIGKILL) and waits until its process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died before: that it is gone is all that matters.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops its process in its tracks (SIGSTOP): it keeps its port and answers nothing.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(
            sent.is_ok_and(|s| s.success()),
            "kill {signal} {pid} failed"
        );
    }

    #[track_caller]
    fn shut_down(&mut self, how: &str) {
        // The answer to SHUTDOWN is a closed connection; only a refusal comes as a reply.
        if let Ok(refusal) = self.conn().try_cmd(&["SHUTDOWN", how]) {
            panic!("SHUTDOWN {how} was refused: {refusal}");
        }
        let what = format!("SHUTDOWN {how} ends the server on port {}", self.port);
        eventually(PATIENCE, &what, || !self.is_running());
        self.child = None;
    }

    fn launch(&mut self) -> io::Result<()> {
        let child = self.spawn()?;
        let pid = child.id();
        self.child = Some(child);
        let outcome = self.await_ready(pid);
        if outcome.is_err() {
            self.kill();
        }
        outcome
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut words = self.setup.prefix.clone();
        words.push(server_program());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        Command::new(&words[0])
            .args(&words[1..])
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| {
                let program = words.join(" ");
                io::Error::new(error.kind(), format!("cannot run {program}: {error}"))
            })
    }

    fn await_ready(&mut self, pid: u32) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if !self.is_running() {
                return Err(io::Error::other("the server ended while it started"));
            }
            if answers(self.port, pid) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let message = format!("the server did not answer within {PATIENCE:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        // Of a crash the report is what says why.
        let crash = lines.iter().position(|l| l.contains("BUG REPORT START"));
        let from = crash.unwrap_or(lines.len().saturating_sub(40));
        let tail = lines[from..(from + 100).min(lines.len())].join("\n  ");
        format!("the end of the log of port {}:\n  {tail}", self.port)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    fn config_path(&self) -> PathBuf {
        self.dir.join("redis.conf")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let died = self.child.is_some() && !self.is_running();
        if died || thread::panicking() {
            let how = if died { "had ended by itself" } else { "ran" };
            eprintln!("the server {how}; {}", self.log_tail());
        }
        self.kill();
        match env::var_os("MAOS_KEEP") {
            Some(_) => eprintln!("kept: {}", self.dir.display()),
            // What cannot be removed is left to `cargo clean`.
            None => drop(fs::remove_dir_all(&self.dir)),
        }
    }
}

/// Whether *our* server answers there. Another one may have taken the port, so it is asked who it is;
/// one that wants a password first cannot be asked, and is believed.
fn answers(port: u16, pid: u32) -> bool {
    let Ok(mut conn) = Conn::try_open(port) else {
        return false;
    };
    match conn.try_cmd(&["PING"]) {
        Ok(Reply::Simple(pong)) => pong == "PONG" && process_id(&mut conn) == Some(pid),
        Ok(Reply::Error(line)) => line.starts_with("NOAUTH"),
        _ => false,
    }
}

fn process_id(conn: &mut Conn) -> Option<u32> {
    let reply = conn.try_cmd(&["INFO", "server"]).ok()?;
    super::conn::fields(reply.text())
        .get("process_id")?
        .parse()
        .ok()
}

fn new_dir(port: u16) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Cargo names a scratch directory under target for tests and benches, and only for those.
    let base = option_env!("CARGO_TARGET_TMPDIR").map_or_else(env::temp_dir, PathBuf::from);
    let dir = base.join(format!("maos-{}-{count}-{port}", process::id()));
    if let Err(error) = fs::create_dir_all(&dir) {
        panic!("cannot make {}: {error}", dir.display());
    }
    dir
}

/// The server's program: `MAOS_SERVER`, or `redis-server` from the PATH.
pub fn server_program() -> String {
    env::var("MAOS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// The module: `MAOS_MODULE`, or the library that cargo built beside the running test.
///
/// It is the library of the same build as the test, so it is never stale.
#[track_caller]
pub fn module_path() -> PathBuf {
    let candidates = module_candidates();
    for path in &candidates {
        if let Ok(path) = path.canonicalize() {
            return path;
        }
    }
    panic!(
        "no module at any of {candidates:?}: `make build`, or set MAOS_MODULE, \
         or run the tests of the whole workspace so that cargo builds it"
    );
}

fn module_candidates() -> Vec<PathBuf> {
    if let Some(path) = env::var_os("MAOS_MODULE") {
        return vec![PathBuf::from(path)];
    }
    let name = format!("{}maos{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let exe = env::current_exe().expect("a test knows its own path");
    // target/<profile>/deps for tests; target/<profile>/examples has deps one directory up.
    exe.ancestors()
        .skip(1)
        .take(2)
        .flat_map(|dir| [dir.join(&name), dir.join("deps").join(&name)])
        .collect()
}
