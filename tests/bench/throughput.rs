//! Requests a second by redis-benchmark: each of our commands beside the one it is measured against.

use std::process::Command;

use crate::data::{
    document, key, load_script, send_all, value, words, LUA_PATCH, LUA_VERSIONED_SET, SIZES,
};
use crate::harness::{Conn, Server};
use crate::knobs::Knobs;
use crate::machine;
use crate::table::{median, size_name, spread, title, Target};

const CLIENTS: &str = "50";

/// How many requests are in flight on a connection: the two columns of the targets.
const DEPTHS: [usize; 2] = [1, 16];

/// Two commands that do the same for a user, and the ratio of their rates that is aimed at.
struct Pair {
    name: &'static str,
    /// Keys in one request.
    count: usize,
    ours: Vec<String>,
    theirs: Vec<String>,
    targets: [f64; 2],
}

/// What redis-benchmark and the server say of one run.
struct Sample {
    rate: f64,
    cpu_us: f64,
}

/// Prints the ratios of all pairs, without persistence and with an append-only file.
pub fn run(knobs: &Knobs) {
    title("Throughput: the ratio ours / theirs in one round, its median and range over the rounds");
    header();
    for size in SIZES {
        measure(knobs, size, "no", LUA_VERSIONED_SET, &value(size), pairs);
    }
    title("The same, AOF everysec");
    header();
    for size in SIZES {
        let value = value(size);
        measure(
            knobs,
            size,
            "yes",
            LUA_VERSIONED_SET,
            &value,
            |value, sha| pairs_with_aof(pairs(value, sha)),
        );
    }
    title("Parts of a JSON document of 1 KiB");
    header();
    measure(knobs, 1024, "no", LUA_PATCH, &document(1024), |_, sha| {
        updates(sha)
    });
}

fn header() {
    println!(
        "{:<30} {:>5} {:>3} {:>11} {:>11}  {:<18} {:>6}  target",
        "ours / theirs", "size", "P", "ours k/s", "theirs k/s", "ratio", "CPU"
    );
}

fn measure(
    knobs: &Knobs,
    size: usize,
    aof: &str,
    script: &str,
    value: &str,
    pairs: impl Fn(&str, &str) -> Vec<Pair>,
) {
    let setup = machine::server()
        .set("appendonly", aof)
        .set("appendfsync", "everysec");
    let server = setup.start();
    let sha = load_script(&mut server.conn(), script);
    for pair in pairs(value, &sha) {
        for (depth, target) in DEPTHS.into_iter().zip(pair.targets) {
            fill(&server, knobs.keys, &pair, value, &sha);
            let bench = Bench {
                server: &server,
                knobs,
                depth,
                families: pair.count,
            };
            report(&pair, size, depth, target, &bench.alternate(&pair));
        }
    }
}

/// All keys exist before the clock starts: what is measured are overwrites and hits. Every cell of the
/// table begins with one version of each, or histories would fill the memory of the machine.
///
/// The first key of a request comes from one family of keys, the second from another, and so on: a
/// request that names a key twice is one that MAOS.MSET refuses.
fn fill(server: &Server, keys: usize, pair: &Pair, value: &str, sha: &str) {
    let mut conn = server.conn();
    conn.run("FLUSHALL SYNC").ok();
    let theirs = |family: usize, i: usize| match pair.theirs[0].as_str() {
        "EVALSHA" => words(&["EVALSHA", sha, "1", &key(&format!("l{family}"), i), value]),
        _ => words(&["SET", &key(&format!("s{family}"), i), value]),
    };
    let ours =
        |family: usize, i: usize| words(&["MAOS.SET", &key(&format!("m{family}"), i), value]);
    for family in 0..pair.count {
        let each = 0..keys / pair.count;
        send_all(
            &mut conn,
            each.flat_map(|i| [theirs(family, i), ours(family, i)]),
        );
    }
}

fn pairs(value: &str, sha: &str) -> Vec<Pair> {
    let (ours, theirs, lua) = (random_key("m", 0), random_key("s", 0), random_key("l", 0));
    vec![
        Pair {
            name: "MAOS.SET / SET",
            count: 1,
            ours: words(&["MAOS.SET", &ours, value]),
            theirs: words(&["SET", &theirs, value]),
            targets: [0.97, 0.80],
        },
        Pair {
            name: "MAOS.GET / GET",
            count: 1,
            ours: words(&["MAOS.GET", &ours]),
            theirs: words(&["GET", &theirs]),
            targets: [0.97, 0.90],
        },
        Pair {
            name: "MAOS.SET / Lua set + list",
            count: 1,
            ours: words(&["MAOS.SET", &ours, value]),
            theirs: words(&["EVALSHA", sha, "1", &lua, value]),
            targets: [1.3, 3.5],
        },
        mset("MAOS.MSET / MSET, 10 keys", 10, value),
        mset("MAOS.MSET / MSET, 100 keys", 100, value),
        Pair {
            name: "MAOS.MGET / MGET, 100 keys",
            count: 100,
            ours: many(&["MAOS.MGET", "100"], "m", &[], 100),
            theirs: many(&["MGET"], "s", &[], 100),
            targets: [0.85, 0.85],
        },
    ]
}

/// A member of a document, changed by a merge patch and by a script.
fn updates(sha: &str) -> Vec<Pair> {
    const PATCH: &str = r#"{"status":"done","attempts":7}"#;
    let (ours, lua) = (random_key("m", 0), random_key("l", 0));
    vec![Pair {
        name: "MAOS.PATCH / Lua and cjson",
        count: 1,
        ours: words(&["MAOS.PATCH", &ours, PATCH]),
        theirs: words(&["EVALSHA", sha, "1", &lua, PATCH]),
        targets: [1.5, 3.0],
    }]
}

fn mset(name: &'static str, count: usize, value: &str) -> Pair {
    Pair {
        name,
        count,
        ours: many(&["MAOS.MSET", &count.to_string()], "m", &[value], count),
        theirs: many(&["MSET"], "s", &[value], count),
        targets: [0.85, 0.80],
    }
}

/// What redis-benchmark makes a key of.
fn random_key(letter: &str, family: usize) -> String {
    format!("{letter}{family}:__rand_int__")
}

/// A command with many keys, each of its own family and followed by the same words.
fn many(head: &[&str], letter: &str, after: &[&str], count: usize) -> Vec<String> {
    let mut command = words(head);
    for family in 0..count {
        command.push(random_key(letter, family));
        command.extend(words(after));
    }
    command
}

/// Of all pairs, the one whose cost an append-only file changes most.
fn pairs_with_aof(pairs: Vec<Pair>) -> Vec<Pair> {
    let set = pairs.into_iter().take(1);
    set.map(|pair| Pair {
        targets: [0.95, 0.75],
        ..pair
    })
    .collect()
}

fn report(pair: &Pair, size: usize, depth: usize, target: f64, rounds: &[(Sample, Sample)]) {
    let of = |figure: fn(&(Sample, Sample)) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let ratios = of(|(ours, theirs)| ours.rate / theirs.rate);
    println!(
        "{:<30} {:>5} {:>3} {:>11.1} {:>11.1}  {:<18} {:>6.2}  {}",
        pair.name,
        size_name(size),
        depth,
        median(&of(|(ours, _)| ours.rate)) / 1000.0,
        median(&of(|(_, theirs)| theirs.rate)) / 1000.0,
        spread(&ratios),
        median(&of(|(ours, theirs)| ours.cpu_us / theirs.cpu_us)),
        Target::AtLeast(target).judge(median(&ratios)),
    );
}

/// One server under one depth of pipelines.
struct Bench<'a> {
    server: &'a Server,
    knobs: &'a Knobs,
    depth: usize,
    families: usize,
}

impl Bench<'_> {
    /// Both commands in every round, each going first in every other one.
    fn alternate(&self, pair: &Pair) -> Vec<(Sample, Sample)> {
        let ours = self.requests_for(&pair.ours);
        let theirs = self.requests_for(&pair.theirs);
        let round = |i: usize| {
            if i.is_multiple_of(2) {
                let first = self.sample(&pair.theirs, theirs);
                return (self.sample(&pair.ours, ours), first);
            }
            let first = self.sample(&pair.ours, ours);
            (first, self.sample(&pair.theirs, theirs))
        };
        (0..self.knobs.rounds).map(round).collect()
    }

    /// How many requests fill a slice of time, by a short try that also warms up.
    fn requests_for(&self, command: &[String]) -> usize {
        let tried = self.sample(command, 500).rate;
        let again = self.sample(command, (tried * 0.1) as usize + 500).rate;
        (again * self.knobs.slice.as_secs_f64()) as usize + 500
    }

    fn sample(&self, command: &[String], requests: usize) -> Sample {
        let mut conn = self.server.conn();
        let before = cpu_us(&mut conn);
        let rate = self.redis_benchmark(command, requests);
        let cpu_us = (cpu_us(&mut conn) - before) / requests as f64;
        Sample { rate, cpu_us }
    }

    fn redis_benchmark(&self, command: &[String], requests: usize) -> f64 {
        let output = Command::new("redis-benchmark")
            .args([
                "-p",
                &self.server.port().to_string(),
                "-c",
                CLIENTS,
                "--csv",
            ])
            .args(["-P", &self.depth.to_string(), "-n", &requests.to_string()])
            .args(["-r", &(self.knobs.keys / self.families).to_string()])
            .args(command)
            .output()
            .expect("redis-benchmark can be run (Debian: apt-get install redis-tools)");
        let text = String::from_utf8_lossy(&output.stdout);
        match rate_of(&text) {
            Some(rate) if output.status.success() => rate,
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                panic!("redis-benchmark failed on {}: {text}{said}", command[0])
            }
        }
    }
}

/// The rate in the last line of redis-benchmark's CSV, counted from the end: `"command","rate"` and six latencies.
fn rate_of(csv: &str) -> Option<f64> {
    let field = csv.lines().last()?.rsplit(',').nth(6)?;
    field.trim_matches('"').parse().ok()
}

/// CPU time of the server's main thread so far: what a request costs, whatever the load generator can do.
fn cpu_us(conn: &mut Conn) -> f64 {
    let info = conn.info("cpu");
    let seconds = |name: &str| info.get(name).and_then(|text| text.parse::<f64>().ok());
    let user = seconds("used_cpu_user_main_thread");
    let system = seconds("used_cpu_sys_main_thread");
    (user.unwrap_or(f64::NAN) + system.unwrap_or(f64::NAN)) * 1e6
}
