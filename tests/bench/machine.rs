//! What is measured where, and which core does what.

use std::fs;
use std::process::{self, Command};
use std::thread;

use crate::harness::{module_path, server_program, Setup};
use crate::knobs::Knobs;

/// The core of the server, and the core of everything that puts load on it.
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Prints what must be known to compare two runs, and moves this process to its core.
pub fn describe(knobs: &Knobs) {
    println!(
        "machine   {}, {} cores, {}",
        cpu(),
        cores(),
        line_of("uname", &["-srm"])
    );
    println!("server    {}", line_of(&server_program(), &["--version"]));
    println!("module    {}", module_path().display());
    println!("load      {}", line_of("redis-benchmark", &["--version"]));
    println!("rounds    {} of {:?} each", knobs.rounds, knobs.slice);
    let pid = process::id().to_string();
    let pinned = can_pin() && line_of("taskset", &["-cp", LOAD_CORE, &pid]) != UNKNOWN;
    match pinned {
        true => println!("pinned    server on core {SERVER_CORE}, load on core {LOAD_CORE}"),
        false => println!("pinned    no (it takes taskset and two cores): ratios swing more"),
    }
    if knobs.quick {
        println!("A quick run shows that everything works. Its figures mean nothing.");
    }
}

/// A server that may use every core: for what it does in threads and children.
pub fn free_server() -> Setup {
    let setup = Setup::new().set("auto-aof-rewrite-percentage", "0");
    match can_pin() {
        true => setup.under(&["taskset", "-c", &format!("0-{}", cores() - 1)]),
        false => setup,
    }
}

/// A server that is measured: alone on its core, where that can be had.
pub fn server() -> Setup {
    let setup = Setup::new().with(&[("auto-aof-rewrite-percentage", "0"), ("hz", "10")]);
    match can_pin() {
        // The threads that wait for the disk keep off the core of the commands.
        true => setup
            .under(&["taskset", "-c", SERVER_CORE])
            .set("bio_cpulist", LOAD_CORE),
        false => setup,
    }
}

/// Whether a program can be run.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

const UNKNOWN: &str = "unknown";

fn can_pin() -> bool {
    cores() > 1 && has("taskset")
}

fn cores() -> usize {
    // Of the machine, not of this process, which is soon pinned to one.
    let online = line_of("getconf", &["_NPROCESSORS_ONLN"]).parse();
    online.unwrap_or_else(|_| thread::available_parallelism().map_or(1, Into::into))
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    match model {
        Some(model) => model.trim_start_matches([' ', '\t', ':']).to_owned(),
        None => line_of("sysctl", &["-n", "machdep.cpu.brand_string"]),
    }
}

/// The first line that a program prints.
fn line_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok();
    let text = output
        .filter(|output| output.status.success())
        .map(|output| output.stdout);
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    text.lines().next().unwrap_or(UNKNOWN).to_owned()
}
