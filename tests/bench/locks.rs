//! Locks: taken and given back alone, fought for by many, handed on, and the turns that updates take.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use maos_client::{Client, Config, UpdateOptions};
use maos_core::waits::{Place, Waiter, Waits, NODE_WAITERS_MAX};

use crate::data::{key, load_script, words};
use crate::harness::{eventually, Conn, Server, PATIENCE};
use crate::knobs::Knobs;
use crate::lane::{alternate, header, row, Lane};
use crate::machine;
use crate::table::{median, title, Target};

/// The usual release: only by who set it.
pub const LUA_RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

const CLIENTS: usize = 50;
const DEPTHS: [(usize, f64); 2] = [(1, 1.0), (16, 1.1)];

/// How long a polling client sleeps when it does not get the lock.
const BACK_OFF: Duration = Duration::from_millis(5);

/// Prints all of it.
pub fn run(knobs: &Knobs) {
    pairs(knobs);
    contended(knobs);
    handed_on(knobs);
    updates(knobs);
    deadlocks();
}

/// How a lock is taken and given back.
#[derive(Clone)]
enum Way {
    Ours,
    /// `SET key value NX PX` and the script of this name.
    Theirs(String),
}

impl Way {
    fn take(&self, key: &str, owner: &str, wait: bool) -> Vec<u8> {
        Conn::encode(&match (self, wait) {
            (Way::Ours, false) => words(&["MAOS.LOCK", key, owner, "30000"]),
            (Way::Ours, true) => words(&["MAOS.LOCK", key, owner, "30000", "WAIT", "60000"]),
            (Way::Theirs(_), _) => words(&["SET", key, owner, "NX", "PX", "30000"]),
        })
    }

    fn give(&self, key: &str, owner: &str, token: u64) -> Vec<u8> {
        Conn::encode(&match self {
            Way::Ours => words(&["MAOS.UNLOCK", key, &token.to_string()]),
            Way::Theirs(sha) => words(&["EVALSHA", sha, "1", key, owner]),
        })
    }
}

impl Lane {
    /// The reply to a request for a lock: the token (1 for theirs), or nothing.
    fn taken(&mut self) -> Option<u64> {
        match self.line() {
            b"*2" => {
                let token = self.number();
                self.number();
                Some(token)
            }
            b"+OK" => Some(1),
            _ => None,
        }
    }
}

/// A lock for each, that nobody else wants.
fn pairs(knobs: &Knobs) {
    title("Lock and unlock, uncontended: thousand pairs a second, 50 clients; theirs: SET NX PX and a script");
    header();
    let server = machine::server().start();
    let theirs = Way::Theirs(load_script(&mut server.conn(), LUA_RELEASE));
    for (depth, target) in DEPTHS {
        let mut lanes: Vec<Lane> = (0..CLIENTS).map(|_| Lane::new(&server)).collect();
        let rounds = alternate(knobs, |ours| {
            let way = if ours { &Way::Ours } else { &theirs };
            rate_of_pairs(way, &mut lanes, depth, knobs.slice)
        });
        let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        let name = format!("MAOS.LOCK + MAOS.UNLOCK, P {depth}");
        row(&name, &ours, &theirs, 1000.0, Target::AtLeast(target));
    }
}

fn rate_of_pairs(way: &Way, lanes: &mut [Lane], depth: usize, slice: Duration) -> f64 {
    let names: Vec<Vec<(String, String)>> = (0..lanes.len())
        .map(|lane| {
            let name = |i| (key("lock", lane * 1000 + i), format!("{lane:08}-{i:08}"));
            (0..depth).map(name).collect()
        })
        .collect();
    let take: Vec<Vec<u8>> = names
        .iter()
        .map(|names| {
            names
                .iter()
                .flat_map(|(k, o)| way.take(k, o, false))
                .collect()
        })
        .collect();
    let start = Instant::now();
    let mut pairs = 0;
    while start.elapsed() < slice {
        lanes
            .iter_mut()
            .zip(&take)
            .for_each(|(lane, bytes)| lane.send(bytes));
        for (lane, names) in lanes.iter_mut().zip(&names) {
            let mut give = vec![];
            for (key, owner) in names {
                let token = lane.taken().expect("nobody else wants it");
                give.extend(way.give(key, owner, token));
            }
            lane.send(&give);
        }
        for (lane, names) in lanes.iter_mut().zip(&names) {
            for _ in names {
                lane.number();
            }
            pairs += names.len();
        }
    }
    pairs as f64 / start.elapsed().as_secs_f64()
}

/// What came of many clients who want one lock.
struct Fight {
    rate: f64,
    /// The longest time that a client was without the lock, and the mean.
    longest_over_mean: f64,
}

fn contended(knobs: &Knobs) {
    title("One lock, 50 clients, each of whom wants it again at once: critical sections a second; theirs: SET NX PX every 5 ms, and a script");
    header();
    let server = machine::server().start();
    let theirs = Way::Theirs(load_script(&mut server.conn(), LUA_RELEASE));
    let rounds = alternate(knobs, |ours| match ours {
        true => queue(&server, knobs.slice),
        false => poll(&server, &theirs, knobs.slice),
    });
    let (ours, theirs): (Vec<Fight>, Vec<Fight>) = rounds.into_iter().unzip();
    let all = |fights: &[Fight], of: fn(&Fight) -> f64| fights.iter().map(of).collect::<Vec<_>>();
    let [a, b] = [&ours, &theirs].map(|fights| all(fights, |f| f.rate));
    let target = Target::AtLeast(5.0);
    row("MAOS.LOCK WAIT, sections a second", &a, &b, 1.0, target);
    let [a, b] = [&ours, &theirs].map(|fights| all(fights, |f| f.longest_over_mean));
    println!(
        "{:<44} {:>11.1} {:>11.1}  {:<22} {}",
        "longest wait of any / mean wait",
        median(&a),
        median(&b),
        "",
        Target::AtMost(3.0).judge(median(&a)),
    );
}

impl Fight {
    /// Those who wait when the time is over have waited too.
    fn of(mut waits: Vec<Duration>, began: &[Instant], took: Duration) -> Fight {
        let sections = waits.len();
        waits.extend(began.iter().map(Instant::elapsed));
        let mean = waits.iter().sum::<Duration>() / u32::try_from(waits.len()).unwrap_or(u32::MAX);
        let longest = waits.iter().max().copied().unwrap_or_default();
        Fight {
            rate: sections as f64 / took.as_secs_f64(),
            longest_over_mean: longest.as_secs_f64() / mean.as_secs_f64().max(1e-9),
        }
    }
}

/// Who has had it gives it back and stands in the queue again, in one message.
fn queue(server: &Server, slice: Duration) -> Fight {
    let key = key("fight", 0);
    let take = |n: usize| Way::Ours.take(&key, &format!("client-{n:04}"), true);
    let mut lanes: Vec<Lane> = (0..CLIENTS).map(|_| Lane::new(server)).collect();
    let mut began = vec![Instant::now(); CLIENTS];
    let mut waits = vec![];
    // Everybody stands in the queue before the clock starts.
    for (n, lane) in lanes.iter_mut().enumerate() {
        lane.send(&take(n));
        let info = || server.conn().info("maos")["maos_lock_waiters"].clone();
        eventually(PATIENCE, "it waits", || n == 0 || info() == n.to_string());
        began[n] = Instant::now();
    }
    let start = Instant::now();
    let mut next = (0..CLIENTS).cycle();
    while start.elapsed() < slice {
        let n = next.next().expect("a cycle has no end");
        let lane = &mut lanes[n];
        let token = lane.taken().expect("it waits for a minute");
        waits.push(began[n].elapsed());
        let mut bytes = Way::Ours.give(&key, "", token);
        bytes.extend(take(n));
        began[n] = Instant::now();
        lane.send(&bytes);
        lane.number();
    }
    let fight = Fight::of(waits, &began, start.elapsed());
    // Whoever still waits would get it once more.
    drop(lanes);
    let info = || server.conn().info("maos")["maos_lock_waiters"].clone();
    eventually(PATIENCE, "nobody waits", || info() == "0");
    server.conn().run("FLUSHALL").ok();
    fight
}

/// Who does not get it sleeps for 5 ms.
fn poll(server: &Server, way: &Way, slice: Duration) -> Fight {
    let key = key("fight", 0);
    let owner = |n: usize| format!("client-{n:04}");
    let mut lanes: Vec<Lane> = (0..CLIENTS).map(|_| Lane::new(server)).collect();
    let start = Instant::now();
    let mut began = vec![start; CLIENTS];
    let mut wakes = vec![start; CLIENTS];
    let mut waits = vec![];
    while start.elapsed() < slice {
        let now = Instant::now();
        let awake: Vec<usize> = (0..CLIENTS).filter(|n| wakes[*n] <= now).collect();
        if awake.is_empty() {
            let next = wakes.iter().min().expect("there are clients");
            thread::sleep(next.saturating_duration_since(now));
            continue;
        }
        for n in &awake {
            lanes[*n].send(&way.take(&key, &owner(*n), false));
        }
        for n in awake {
            if lanes[n].taken().is_none() {
                wakes[n] = Instant::now() + BACK_OFF;
                continue;
            }
            waits.push(began[n].elapsed());
            lanes[n].send(&way.give(&key, &owner(n), 0));
            lanes[n].number();
            (began[n], wakes[n]) = (Instant::now(), Instant::now());
        }
    }
    let fight = Fight::of(waits, &began, start.elapsed());
    server.conn().run("FLUSHALL").ok();
    fight
}

/// From the release to the next owner's grant, 256 of whom wait.
fn handed_on(knobs: &Knobs) {
    const WAITERS: usize = 256;
    title("A lock with 256 waiters is handed on: milliseconds from the release to the next one's answer");
    let server = machine::server().start();
    let mut all = vec![];
    for round in 0..knobs.rounds {
        let key = key("queue", round);
        let mut holder = Lane::new(&server);
        holder.send(&Way::Ours.take(&key, "holder", false));
        let mut token = holder.taken().expect("nobody else wants it");
        let mut lanes = vec![holder];
        for n in 0..WAITERS {
            let mut lane = Lane::new(&server);
            lane.send(&Way::Ours.take(&key, &format!("waiter-{n:04}"), true));
            let info = || server.conn().info("maos")["maos_lock_waiters"].clone();
            eventually(PATIENCE, "it waits", || info() == (n + 1).to_string());
            lanes.push(lane);
        }
        for n in 0..WAITERS {
            let began = Instant::now();
            lanes[n].send(&Way::Ours.give(&key, "", token));
            token = lanes[n + 1].taken().expect("it is its turn");
            all.push(began.elapsed().as_secs_f64() * 1000.0);
            lanes[n].number();
        }
    }
    all.sort_by(f64::total_cmp);
    println!(
        "median {:.3}, p99 {:.3}, longest {:.3}  {}",
        median(&all),
        all[all.len() * 99 / 100],
        all[all.len() - 1],
        Target::AtMost(1.0).judge(median(&all)),
    );
}

/// What came of many updates of one key.
struct Updates {
    rate: f64,
    p99_ms: f64,
}

fn updates(knobs: &Knobs) {
    title("update of one key, 20 times by each of 50 tasks: updates a second, and milliseconds that one takes (p99); theirs: without turns");
    header();
    let server = machine::server().start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    for (name, own) in [("one client", false), ("a client each", true)] {
        let rounds = alternate(knobs, |turns| runtime.block_on(update(&server, own, turns)));
        let (ours, theirs): (Vec<Updates>, Vec<Updates>) = rounds.into_iter().unzip();
        let all =
            |from: &[Updates], of: fn(&Updates) -> f64| from.iter().map(of).collect::<Vec<_>>();
        let [a, b] = [&ours, &theirs].map(|u| all(u, |u| u.rate));
        row(
            &format!("{name}, updates a second"),
            &a,
            &b,
            1.0,
            Target::AtLeast(3.0),
        );
        let [a, b] = [&ours, &theirs].map(|u| all(u, |u| u.p99_ms));
        row(&format!("{name}, p99"), &a, &b, 1.0, Target::AtMost(0.2));
    }
}

async fn update(server: &Server, own: bool, turns: bool) -> Updates {
    const EACH: usize = 20;
    let connect = async || {
        let config = Config::new(&server.url()).expect("an address");
        Client::connect(config).await.expect("the server is up")
    };
    let shared = connect().await;
    let mut tasks = tokio::task::JoinSet::new();
    let mut clients = vec![];
    for _ in 0..CLIENTS {
        clients.push(match own {
            true => connect().await,
            false => shared.clone(),
        });
    }
    let start = Instant::now();
    for client in clients {
        tasks.spawn(async move {
            let mut took = vec![];
            for _ in 0..EACH {
                let began = Instant::now();
                let options = match turns {
                    true => UpdateOptions::new(),
                    false => UpdateOptions::new().without_turns(),
                };
                let add = |n: Option<u64>| n.unwrap_or(0) + 1;
                let done = client.update_with("bench:counter", options, add).await;
                done.expect("within a hundred attempts");
                took.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            took
        });
    }
    let mut took: Vec<f64> = vec![];
    while let Some(done) = tasks.join_next().await {
        took.extend(done.expect("a task"));
    }
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    Updates {
        rate,
        p99_ms: took[took.len() * 99 / 100],
    }
}

/// What it takes to see that a waiter closes no cycle.
fn deadlocks() {
    title("The search for deadlocks, 10,000 waiters on the node: microseconds for one that comes to wait");
    let place = |n: usize| -> Place { (0, key("k", n).into_bytes().into()) };
    let owner = |n: usize| -> Box<[u8]> { key("owner", n).into_bytes().into() };
    // A place is held by the owner of its number; those beyond the waiters wait for nothing.
    let idle = NODE_WAITERS_MAX;
    let owners: HashMap<Place, Box<[u8]>> = (0..2 * idle).map(|n| (place(n), owner(n))).collect();
    let mut holders = |place: &Place| vec![owners[place].clone()];
    let last = NODE_WAITERS_MAX - 1;
    let mut measure = |name: &str, wants: &dyn Fn(usize) -> (usize, usize)| {
        let mut waits = Waits::default();
        let mut took = vec![];
        for n in 0..NODE_WAITERS_MAX {
            let (who, what) = wants(n);
            let waiter = Waiter {
                owner: owner(who),
                places: vec![place(what)],
                shared: false,
                since_ms: 0,
            };
            let began = Instant::now();
            waits.enter(waiter, &mut holders).expect("no cycle");
            if n + 100 >= NODE_WAITERS_MAX {
                took.push(began.elapsed().as_secs_f64() * 1e6);
            }
        }
        println!("{name:<60} {:>9.1}", median(&took));
    };
    measure("each for a lock of its own", &|n| (n, idle + n));
    measure("199 before it in the queue", &|n| (n, idle + n / 200));
    // The last one looks through all of them.
    measure(
        "each for the one that came before: a chain of 10,000",
        &|n| (last - n, last - n + 1),
    );
}
