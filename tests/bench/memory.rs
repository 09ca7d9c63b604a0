//! Bytes a key, and how fast many keys are saved and loaded.

use std::thread;
use std::time::{Duration, Instant};

use crate::data::{key, send_all, sentence, value, words};
use crate::harness::{Conn, Server, Stop};
use crate::knobs::Knobs;
use crate::machine;
use crate::table::{median, spread, title, Target};

const SIZE: usize = 100;

/// How long a save or load of everything may take.
const LONG: Duration = Duration::from_secs(300);

/// Documents whose history is compressed, and how often each is changed a little.
const DOCUMENTS: usize = 500;
const CHANGES: usize = 50;

/// Prints what a key, a version and a history cost, and the rates of saving and loading.
pub fn run(knobs: &Knobs) {
    let keys = knobs.memory_keys;
    title(&format!("Memory of {keys} keys of {SIZE} B"));
    let mut strings = Filled::new("SET", keys);
    let mut records = Filled::new("MAOS.SET", keys);
    let (string, record) = (strings.per_key(), records.per_key());
    line("string, bytes a key", string, Target::None);
    line("MAOS.SET, one version, bytes a key", record, Target::None);
    // 48, and 8 for the accounting of partitions.
    line("  above a string", record - string, Target::AtMost(56.0));
    saving(knobs, &mut strings, &mut records);
    versions(&mut records);
    drop((strings, records));
    documents();
}

fn line(name: &str, figure: f64, target: Target) {
    println!("{name:<44} {figure:>9.2}  {}", target.judge(figure));
}

/// A server full of keys made by one command.
struct Filled {
    server: Server,
    command: &'static str,
    keys: usize,
    empty: f64,
}

impl Filled {
    fn new(command: &'static str, keys: usize) -> Filled {
        // What the index of names takes is a figure of its own.
        let server = machine::server().set("maos.range-index", "no").start();
        let empty = used_memory(&server);
        let filled = Filled {
            server,
            command,
            keys,
            empty,
        };
        filled.write();
        filled
    }

    /// Writes every key once.
    fn write(&self) {
        let value = value(SIZE);
        let set = |i| words(&[self.command, &key("key", i), &value]);
        send_all(&mut self.server.conn(), (0..self.keys).map(set));
    }

    fn per_key(&self) -> f64 {
        (used_memory(&self.server) - self.empty) / self.keys as f64
    }

    /// Keys a second into an RDB file.
    fn save(&self) -> f64 {
        let mut conn = self.server.conn();
        conn.set_timeout(LONG);
        let start = Instant::now();
        conn.run("SAVE").ok();
        self.keys as f64 / start.elapsed().as_secs_f64()
    }

    /// Keys a second out of it, by the server's own clock.
    fn load(&mut self) -> f64 {
        self.server.restart(Stop::NoSave);
        let found = self.server.conn().run("DBSIZE").int();
        assert_eq!(found, self.keys as i64, "the file does not hold all keys");
        let log = self.server.log();
        let said = log.lines().rev().find_map(|line| {
            let (_, rest) = line.split_once("DB loaded from disk: ")?;
            rest.split(' ').next()?.parse::<f64>().ok()
        });
        self.keys as f64 / said.expect("the server logs how long it loaded")
    }
}

fn used_memory(server: &Server) -> f64 {
    let info = server.conn().info("memory");
    info["used_memory"].parse().expect("a number of bytes")
}

fn saving(knobs: &Knobs, strings: &mut Filled, records: &mut Filled) {
    let rates: Vec<[f64; 4]> = (0..knobs.rounds)
        .map(|_| {
            [
                strings.save(),
                records.save(),
                strings.load(),
                records.load(),
            ]
        })
        .collect();
    let report = |name: &str, theirs: usize, ours: usize| {
        let ratios: Vec<f64> = rates.iter().map(|r| r[ours] / r[theirs]).collect();
        let thousands = |i: usize| median(&rates.iter().map(|r| r[i]).collect::<Vec<_>>()) / 1000.0;
        println!(
            "{:<44} {:>9}  {}   {:.0} and {:.0} thousand keys/s",
            format!("{name}, ratio to strings"),
            spread(&ratios),
            Target::AtLeast(0.85).judge(median(&ratios)),
            thousands(ours),
            thousands(theirs),
        );
    };
    report("save", 0, 1);
    report("load", 2, 3);
}

/// What further versions of every key cost above their values: the first few, and ten.
fn versions(records: &mut Filled) {
    let before = records.per_key();
    let mut written = 0;
    for (more, target) in [(3, Target::None), (10, Target::AtMost(40.0))] {
        while written < more {
            records.write();
            written += 1;
        }
        let each = (records.per_key() - before) / more as f64;
        line(
            &format!("{more} further versions, each above its value"),
            each - SIZE as f64,
            target,
        );
    }
}

/// The history of JSON documents that change a little, once the background pass has compressed it.
fn documents() {
    let server = machine::server().start();
    let mut conn = server.conn();
    write_documents(&mut conn, 0);
    let before = used_memory(&server);
    for change in 1..=CHANGES {
        write_documents(&mut conn, change);
    }
    let plain = (0..DOCUMENTS).map(|i| document(i, 0).len()).sum::<usize>() * CHANGES;
    let share = (settled(&server) - before) / plain as f64;
    line(
        "history of JSON documents, share of its bytes",
        share,
        Target::AtMost(0.5),
    );
}

fn write_documents(conn: &mut Conn, change: usize) {
    let set = |i| words(&["MAOS.SET", &key("doc", i), &document(i, change)]);
    send_all(conn, (0..DOCUMENTS).map(set));
}

/// A task with its steps, of which one field changes from version to version.
fn document(i: usize, change: usize) -> String {
    let step = |n: usize| {
        serde_json::json!({
            "id": format!("step-{n}"), "title": sentence(i * 13 + n), "state": "open",
            "agent": format!("agent-{}", (i * 7 + n) % 23), "after": [n.saturating_sub(1)],
        })
    };
    let steps: Vec<_> = (0..12).map(step).collect();
    serde_json::json!({ "task": i, "revision": change, "steps": steps }).to_string()
}

/// Memory in use once it has stopped falling for two seconds.
fn settled(server: &Server) -> f64 {
    let (start, mut least, mut since) = (Instant::now(), used_memory(server), Instant::now());
    while since.elapsed() < Duration::from_secs(2) && start.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(100));
        let now = used_memory(server);
        // A sample of the server's own bookkeeping moves it by a few bytes.
        if now < least * 0.999 {
            (least, since) = (now, Instant::now());
        }
    }
    used_memory(server)
}
