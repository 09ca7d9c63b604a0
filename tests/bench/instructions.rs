//! Instructions a command, counted by callgrind: what a busy neighbour cannot change.
//!
//! Every figure is the difference of two runs that differ only in how many requests they send, on
//! one connection in pipelines, so that starting, filling and stopping cancel out.

use std::time::Duration;
use std::{fs, thread};

use crate::data::{accept, key, load_script, send_all, value, words, SIZES};
use crate::harness::{Conn, Reply, Setup, Stop};
use crate::knobs::Knobs;
use crate::locks::LUA_RELEASE;
use crate::machine;
use crate::table::{size_name, title, Target};

/// Keys that exist before the requests come; more than there are requests in flight.
const KEYS: usize = 128;

/// Versions that a key keeps by default, and one more.
const FULL_HISTORY: usize = 101;

/// Requests in flight. Alone, each would pay for a turn of the event loop: some 2,000 instructions more,
/// the same for every command. In pipelines of 64 that is a hundred less than in pipelines of 16.
const DEPTH: usize = 64;

/// How long a node takes at most to see that nothing listens, even under callgrind.
const LOOK: Duration = Duration::from_millis(500);

/// The requests of the shorter run.
const WARM: usize = 500;

/// What is counted: a command over keys that exist.
#[derive(Clone, Copy, PartialEq)]
enum Counted {
    Set,
    Get,
    MaosSet,
    MaosSetFull,
    MaosGet,
    MaosCas,
    Lock,
    MaosLock,
}

impl Counted {
    fn command(self) -> &'static str {
        match self {
            Counted::Set => "SET",
            Counted::Get => "GET",
            Counted::MaosSet | Counted::MaosSetFull => "MAOS.SET",
            Counted::MaosGet => "MAOS.GET",
            Counted::MaosCas => "MAOS.CAS",
            Counted::Lock => "SET NX PX + script",
            Counted::MaosLock => "MAOS.LOCK + MAOS.UNLOCK",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Counted::MaosSetFull => "MAOS.SET, history full",
            Counted::MaosCas => "MAOS.CAS that succeeds",
            other => other.command(),
        }
    }

    /// The targets for the two sizes.
    fn targets(self) -> [Target; 2] {
        match self {
            Counted::Set | Counted::Get | Counted::MaosSetFull => [Target::None; 2],
            Counted::Lock | Counted::MaosLock => [Target::None; 2],
            Counted::MaosSet => [Target::AtMost(6200.0), Target::AtMost(6600.0)],
            Counted::MaosGet => [Target::AtMost(4200.0), Target::AtMost(4400.0)],
            Counted::MaosCas => [Target::AtMost(6900.0), Target::AtMost(7300.0)],
        }
    }

    /// How often every key is written beforehand.
    fn fills(self) -> usize {
        match self {
            Counted::MaosSetFull => FULL_HISTORY,
            _ => 1,
        }
    }

    /// The command that makes the keys, all of one type.
    fn filler(self) -> &'static str {
        match self {
            Counted::Set | Counted::Get => "SET",
            _ => "MAOS.SET",
        }
    }
}

const ALL: [Counted; 6] = [
    Counted::Set,
    Counted::Get,
    Counted::MaosSet,
    Counted::MaosSetFull,
    Counted::MaosGet,
    Counted::MaosCas,
];

/// Prints the instructions of every command, nothing listening, and of the sets with an append-only file.
pub fn run(knobs: &Knobs) {
    title("Instructions a command (callgrind, one connection, pipelines of 64)");
    if !machine::has("valgrind") {
        println!("skipped: valgrind is not installed (Debian: apt-get install valgrind)");
        return;
    }
    println!(
        "{:<36} {:>5} {:>13}  target",
        "command", "size", "instructions"
    );
    let theirs = count(knobs, Counted::Lock, 0, "no");
    line(Counted::Lock.label(), 0, theirs, "");
    let ours = count(knobs, Counted::MaosLock, 0, "no");
    let ratio = ours / theirs;
    let judged = format!("{ratio:.2} x {}", Target::AtMost(1.0).judge(ratio));
    line(Counted::MaosLock.label(), 0, ours, &judged);
    for (column, size) in SIZES.into_iter().enumerate() {
        for counted in ALL {
            let figure = count(knobs, counted, size, "no");
            line(
                counted.label(),
                size,
                figure,
                &counted.targets()[column].judge(figure),
            );
        }
        let set = count(knobs, Counted::Set, size, "yes");
        line("SET, AOF on", size, set, "");
        let ours = count(knobs, Counted::MaosSet, size, "yes");
        let ratio = ours / set;
        let judged = format!("{ratio:.2} x {}", Target::AtMost(1.5).judge(ratio));
        line("MAOS.SET, AOF on", size, ours, &judged);
    }
}

fn line(name: &str, size: usize, figure: f64, judged: &str) {
    println!("{name:<36} {:>5} {figure:>13.0}  {judged}", size_name(size));
}

fn count(knobs: &Knobs, counted: Counted, size: usize, aof: &str) -> f64 {
    difference(knobs, |requests| {
        total(Setup::new(), counted, size, aof, requests)
    })
}

/// What MAOS.SET of 100 B takes, with another module if one is named.
pub fn of_a_set(knobs: &Knobs, module: Option<&str>) -> f64 {
    let setup = || match module {
        None => Setup::new(),
        Some(path) => Setup::plain().set("loadmodule", path),
    };
    difference(knobs, |requests| {
        total(setup(), Counted::MaosSet, SIZES[0], "no", requests)
    })
}

fn difference(knobs: &Knobs, total: impl Fn(usize) -> f64) -> f64 {
    let (short, long) = (total(WARM), total(WARM + knobs.counted));
    (long - short) / knobs.counted as f64
}

/// The instructions of a whole server's life in which it serves so many requests.
fn total(setup: Setup, counted: Counted, size: usize, aof: &str, requests: usize) -> f64 {
    let valgrind = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/stderr",
    ];
    let setup = setup
        .under(&valgrind)
        .with(&[("appendonly", aof), ("hz", "1")])
        // It works by the clock, and here fifty times as long as it is allowed.
        .set("maos.background-effort-us", "0");
    let mut server = setup.start();
    let mut conn = server.conn();
    thread::sleep(LOOK);
    send(&mut conn, counted, &value(size), requests);
    drop(conn);
    server.stop(Stop::NoSave);
    // It has written its profile to the log; the sum is one line of that.
    let log = fs::read(server.dir().join("server.log")).expect("the server has a log");
    let log = String::from_utf8_lossy(&log);
    let sum = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals: "));
    let sum = sum.and_then(|text| text.trim().parse().ok());
    sum.unwrap_or_else(|| panic!("callgrind wrote no totals: {}", server.dir().display()))
}

fn send(conn: &mut Conn, counted: Counted, value: &str, requests: usize) {
    if let Counted::Lock | Counted::MaosLock = counted {
        return send_pairs(conn, counted, requests);
    }
    let key = |i: usize| key("k", i % KEYS);
    let fill = |i: usize| words(&[counted.filler(), &key(i), value]);
    send_all(conn, (0..KEYS * counted.fills()).map(fill));
    let mut versions = match counted {
        Counted::MaosCas => current_versions(conn, key),
        _ => vec![0; KEYS],
    };
    for start in (0..requests).step_by(DEPTH) {
        let batch = start..(start + DEPTH).min(requests);
        let command = |i: usize| match counted {
            Counted::Get | Counted::MaosGet => words(&[counted.command(), &key(i)]),
            Counted::Set | Counted::MaosSet | Counted::MaosSetFull => {
                words(&[counted.command(), &key(i), value])
            }
            Counted::Lock | Counted::MaosLock => unreachable!("sent in pairs"),
            Counted::MaosCas => {
                words(&["MAOS.CAS", &key(i), &versions[i % KEYS].to_string(), value])
            }
        };
        let bytes: Vec<u8> = batch
            .clone()
            .flat_map(|i| Conn::encode(&command(i)))
            .collect();
        conn.send_raw(&bytes);
        for i in batch {
            let reply = accept(conn.recv());
            if counted == Counted::MaosCas {
                versions[i % KEYS] = applied(&reply);
            }
        }
    }
}

/// Locks that nobody else wants, taken and given back.
fn send_pairs(conn: &mut Conn, counted: Counted, pairs: usize) {
    let sha = load_script(conn, LUA_RELEASE);
    for start in (0..pairs).step_by(DEPTH) {
        let batch = start..(start + DEPTH).min(pairs);
        let take = |i: usize| match counted {
            Counted::MaosLock => words(&["MAOS.LOCK", &key("l", i), "a-client-s-name", "30000"]),
            _ => words(&["SET", &key("l", i), "a-client-s-name", "NX", "PX", "30000"]),
        };
        let bytes: Vec<u8> = batch.clone().flat_map(|i| Conn::encode(&take(i))).collect();
        conn.send_raw(&bytes);
        let taken: Vec<Reply> = batch.clone().map(|_| accept(conn.recv())).collect();
        let give = |(i, taken): (usize, &Reply)| match counted {
            Counted::MaosLock => {
                let token = taken.array()[0].int().to_string();
                words(&["MAOS.UNLOCK", &key("l", i), &token])
            }
            _ => words(&["EVALSHA", &sha, "1", &key("l", i), "a-client-s-name"]),
        };
        let gives = batch.clone().zip(&taken).map(give);
        let bytes: Vec<u8> = gives.flat_map(|words| Conn::encode(&words)).collect();
        conn.send_raw(&bytes);
        batch.for_each(|_| drop(accept(conn.recv())));
    }
}

fn current_versions(conn: &mut Conn, key: impl Fn(usize) -> String) -> Vec<i64> {
    let current = |i| conn.cmd(&["MAOS.GET", &key(i), "WITHVERSION"]).array()[1].int();
    (0..KEYS).map(current).collect()
}

/// The version that a compare-and-set made; panics when another write won.
fn applied(reply: &Reply) -> i64 {
    let fields = reply.array();
    assert_eq!(fields[0].int(), 1, "a lost race where none can be: {reply}");
    fields[1].int()
}
