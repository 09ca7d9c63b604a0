//! What it costs to make and to restore backups.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::data::{key, send_all, sentence, value, words};
use crate::harness::{Conn, Reply, Server};
use crate::instructions;
use crate::knobs::Knobs;
use crate::lane::{alternate, header, row, Lane};
use crate::machine;
use crate::table::{median, spread, title, Target};

const SIZE: usize = 1024;
/// From one request of a connection to its next.
const EVERY: Duration = Duration::from_millis(1);
/// How long a save or a load of everything may take.
const LONG: Duration = Duration::from_secs(300);
/// The key that seals, in a file of its own.
const KEY: &str = "bench 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";

/// Prints all of it.
pub fn run(knobs: &Knobs) {
    let keys = knobs.memory_keys;
    title(&format!(
        "{keys} keys of 1 KiB, compressed and sealed: thousand keys a second; theirs: BGSAVE"
    ));
    header();
    let server = full(keys, noise);
    making(knobs, "values that do not compress", &server);
    drop(server);
    let server = full(keys, task);
    making(knobs, "values of JSON", &server);
    delays(knobs, &server);
    restoring(knobs, &server);
    drop(server);
    agents();
    idle(knobs);
}

/// A server whose backups are sealed, in its own directory.
fn start(dir: Option<&Path>) -> Server {
    let dir = dir.map_or(".".into(), Path::to_string_lossy);
    let server = machine::free_server()
        .set("maos.backup-dir", &dir)
        .set("maos.backup-key-file", "backup.keys")
        .set("maos.history-max-versions", "1")
        // When a child has ended is seen by the server's clock.
        .set("hz", "100")
        .start();
    let path = server.dir().join("backup.keys");
    fs::write(&path, KEY).expect("the key file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    server
}

/// The same with so many keys.
fn full(keys: usize, value: impl Fn(usize) -> String) -> Server {
    let server = start(None);
    let set = |n| words(&["MAOS.SET", &key("key", n), &value(n)]);
    send_all(&mut server.conn(), (0..keys).map(set));
    server
}

/// A task as agents keep it, of 1 KiB, like no other.
fn task(n: usize) -> String {
    let step = |i: usize| {
        serde_json::json!({
            "id": format!("step-{i}"), "title": sentence(n * 13 + i), "state": "open",
            "agent": format!("agent-{}", (n * 7 + i) % 23), "at": n * 1_000_003 + i,
        })
    };
    let mut steps = vec![];
    let mut len = 60;
    while len + 110 < SIZE {
        steps.push(step(steps.len()));
        len += steps[steps.len() - 1].to_string().len() + 1;
    }
    serde_json::json!({ "task": n, "owner": sentence(n * 7), "steps": steps }).to_string()
}

/// Text of 1 KiB that does not compress, like none near it.
fn noise(n: usize) -> String {
    thread_local! {
        static TEXT: String = value(4 << 20);
    }
    TEXT.with(|text| {
        let at = n * (SIZE + 7) % (text.len() - SIZE);
        text[at..at + SIZE].to_owned()
    })
}

/// Waits for the end of a job, and gives its status.
fn ended(conn: &mut Conn, id: &str) -> Reply {
    loop {
        let status = conn.cmd(&["MAOS.BACKUP", "STATUS", id]);
        match status.field("state").text() {
            "running" => thread::sleep(Duration::from_millis(5)),
            "done" => return status,
            _ => panic!("{status}"),
        }
    }
}

/// Makes a backup.
fn backup(conn: &mut Conn) -> (String, Reply) {
    let id = conn.run("MAOS.BACKUP CREATE bench").text().to_owned();
    let status = ended(conn, &id);
    (id, status)
}

fn delete(conn: &mut Conn, id: &str) {
    conn.cmd(&["MAOS.BACKUP", "DELETE", id]).int();
}

fn rate(status: &Reply) -> f64 {
    let seconds: f64 = status.field("seconds").text().parse().expect("seconds");
    status.field("keys").int() as f64 / seconds.max(0.001)
}

/// The server's own way, until it says that it is done.
fn save(conn: &mut Conn) {
    let begun = conn.run("BGSAVE");
    assert!(!begun.is_err(), "{begun}");
    while conn.info("persistence")["rdb_bgsave_in_progress"] == "1" {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(conn.info("persistence")["rdb_last_bgsave_status"], "ok");
}

fn making(knobs: &Knobs, name: &str, server: &Server) {
    let conn = &mut server.conn();
    let keys = conn.run("DBSIZE").int() as f64;
    let mut sizes = [0.0; 2];
    let rounds = alternate(knobs, |is_ours| {
        if !is_ours {
            let start = Instant::now();
            save(conn);
            let rate = keys / start.elapsed().as_secs_f64();
            sizes[1] = len(&server.dir().join("dump.rdb"));
            return rate;
        }
        let (id, status) = backup(conn);
        sizes[0] = len(&file_of(server, &id));
        delete(conn, &id);
        rate(&status)
    });
    let (a, b): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
    row(name, &a, &b, 1000.0, Target::AtLeast(0.7));
    let [ours, theirs] = sizes.map(|bytes| bytes / 1e6);
    println!(
        "{:<44} {ours:>11.1} {theirs:>11.1}  {:.2}",
        "  its file, MB",
        ours / theirs
    );
}

fn len(path: &Path) -> f64 {
    fs::metadata(path).expect("a file").len() as f64
}

/// The file of a backup.
fn file_of(server: &Server, id: &str) -> PathBuf {
    let mut files = fs::read_dir(server.dir()).expect("its directory");
    let is_it = |path: &PathBuf| path.to_string_lossy().contains(id);
    let found = files.find_map(|f| Some(f.ok()?.path()).filter(is_it));
    found.expect("the file of the backup")
}

/// What the load sends, each command on a connection of its own.
const COMMANDS: [&str; 4] = ["MAOS.GET", "MAOS.SET", "GET", "SET"];

/// How long requests took, in microseconds.
struct Delays {
    p99: [f64; COMMANDS.len()],
    longest: f64,
    ping: f64,
}

/// Sends requests at a bounded rate while `act` runs.
fn delays_while(server: &Server, keys: usize, act: impl FnOnce(&mut Conn)) -> Delays {
    let stop = &AtomicBool::new(false);
    let load = move || {
        let mut lanes: Vec<Lane> = COMMANDS.iter().map(|_| Lane::new(server)).collect();
        let value = value(SIZE);
        let request = |command: &str, n: usize| {
            let name = match command.starts_with("MAOS.") {
                true => key("key", n.wrapping_mul(0x9e37_79b9) % keys),
                false => key("plain", n % 1000),
            };
            match command.ends_with("SET") {
                true => Conn::encode(&[command, &name, &value]),
                false => Conn::encode(&[command, &name]),
            }
        };
        let mut took = COMMANDS.map(|_| vec![]);
        let (mut due, mut n) = (Instant::now(), 0);
        while !stop.load(Relaxed) {
            let requests = COMMANDS.map(|command| request(command, n));
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let from = Instant::now();
            for (lane, bytes) in lanes.iter_mut().zip(&requests) {
                lane.send(bytes);
            }
            for (lane, took) in lanes.iter_mut().zip(&mut took) {
                lane.skip();
                took.push(from.elapsed().as_secs_f64() * 1e6);
            }
            due = from + EVERY;
            n += 1;
        }
        took
    };
    let pings = move || {
        let mut lane = Lane::new(server);
        let (request, mut longest) = (Conn::encode(&["PING"]), 0.0);
        while !stop.load(Relaxed) {
            let start = Instant::now();
            lane.send(&request);
            lane.line();
            longest = f64::max(longest, start.elapsed().as_secs_f64() * 1e6);
            thread::sleep(Duration::from_micros(200));
        }
        longest
    };
    let (took, ping) = thread::scope(|scope| {
        let (load, pings) = (scope.spawn(load), scope.spawn(pings));
        act(&mut server.conn());
        stop.store(true, Relaxed);
        (load.join(), pings.join())
    });
    let took = took.expect("the load has ended").map(|mut took| {
        took.sort_by(f64::total_cmp);
        took
    });
    let most = took.iter().filter_map(|took| took.last());
    Delays {
        p99: took
            .each_ref()
            .map(|took| took[(took.len() - 1) * 99 / 100]),
        longest: most.copied().fold(0.0, f64::max),
        ping: ping.expect("the pings have ended"),
    }
}

fn delays(knobs: &Knobs, server: &Server) {
    title("At most a thousand requests a second of each command, over keys of 1 KiB: p99 in us; theirs: while nothing is made");
    header();
    let keys = server.conn().run("DBSIZE").int() as usize;
    let mut rounds: [Vec<Delays>; 3] = [vec![], vec![], vec![]];
    for round in 0..knobs.rounds {
        let mut order = [0, 1, 2];
        order.rotate_left(round % 3);
        for what in order {
            let delays = delays_while(server, keys, |conn| match what {
                0 => thread::sleep(knobs.slice * 3),
                1 => {
                    let (id, _) = backup(conn);
                    delete(conn, &id);
                }
                _ => save(conn),
            });
            rounds[what].push(delays);
        }
    }
    let [idle, ours, saving] = &rounds;
    let figures = |rounds: &[Delays], of: &dyn Fn(&Delays) -> f64| -> Vec<f64> {
        rounds.iter().map(of).collect()
    };
    for (while_, busy, target) in [
        ("a backup", ours, Target::AtMost(2.0)),
        ("BGSAVE", saving, Target::None),
    ] {
        for (n, command) in COMMANDS.iter().enumerate() {
            let [busy, idle] = [busy, idle].map(|rounds| figures(rounds, &|d| d.p99[n]));
            row(
                &format!("{command}, while {while_} is made"),
                &busy,
                &idle,
                1.0,
                target,
            );
        }
        let [busy, idle] = [busy, idle].map(|rounds| figures(rounds, &|d| d.longest));
        row("  the longest of all", &busy, &idle, 1.0, Target::None);
    }
    for (name, rounds, target) in [
        ("a backup", ours, Target::AtMost(20.0)),
        ("BGSAVE", saving, Target::None),
        ("nothing", idle, Target::None),
    ] {
        let pings = figures(rounds, &|d| d.ping / 1000.0);
        let worst = pings.iter().copied().fold(0.0, f64::max);
        println!(
            "{:<44} {:>9}  {}",
            format!("longest PING while {name} is made, ms"),
            spread(&pings),
            target.judge(worst)
        );
    }
}

fn restoring(knobs: &Knobs, server: &Server) {
    title(
        "To bring all of it back to an empty server: thousand keys a second; theirs: DEBUG RELOAD",
    );
    header();
    let conn = &mut server.conn();
    conn.set_timeout(LONG);
    let (id, made) = backup(conn);
    let keys = conn.run("DBSIZE").int() as f64;
    let rounds = alternate(knobs, |is_ours| {
        if !is_ours {
            let start = Instant::now();
            conn.run("DEBUG RELOAD").ok();
            return keys / start.elapsed().as_secs_f64();
        }
        let empty = start(Some(server.dir()));
        let there = &mut empty.conn();
        let job = there.cmd(&["MAOS.BACKUP", "RESTORE", &id]);
        let status = ended(there, job.text());
        assert_eq!(
            status.field("keys").int(),
            made.field("keys").int(),
            "{status}"
        );
        rate(&status)
    });
    let (a, b): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
    row("restore", &a, &b, 1000.0, Target::AtLeast(0.33));
}

/// What is left of state as agents have really written it.
fn agents() {
    title("State as agents write it: the file of a backup beside the bytes of the values");
    let dir = env::var_os("MAOS_BENCH_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        PathBuf::from,
    );
    let Ok(text) = fs::read_to_string(dir.join("agent-trajectories.ndjson")) else {
        println!("skipped: there is no agent-trajectories.ndjson where MAOS_BENCH_DATA says, or in ../shared/data");
        return;
    };
    let server = start(None);
    let conn = &mut server.conn();
    let lines: Vec<&str> = text.lines().collect();
    let set = |n: usize| words(&["MAOS.SET", &key("run", n), lines[n]]);
    send_all(conn, (0..lines.len()).map(set));
    let values: usize = lines.iter().map(|line| line.len()).sum();
    let (id, _) = backup(conn);
    let saved = 1.0 - len(&file_of(&server, &id)) / values as f64;
    println!(
        "{:<44} {saved:>9.2}  {}",
        format!("share saved of {} values", lines.len()),
        Target::AtLeast(0.3).judge(saved)
    );
}

/// What a write takes while no backup is made.
fn idle(knobs: &Knobs) {
    title("Instructions of MAOS.SET of 100 B while no backup is made; before: with the module that MAOS_BENCH_BEFORE names");
    if !machine::has("valgrind") {
        println!("skipped: valgrind is not installed");
        return;
    }
    let mut figures = vec![("now", instructions::of_a_set(knobs, None))];
    if let Some(module) = env::var_os("MAOS_BENCH_BEFORE") {
        let before = instructions::of_a_set(knobs, Some(&module.to_string_lossy()));
        figures.push(("before", before));
    }
    for (name, figure) in &figures {
        println!("{name:<44} {figure:>11.0}");
    }
    if let [(_, now), (_, before)] = figures[..] {
        println!("{:<44} {:>11.3}", "now / before", median(&[now / before]));
    }
}
