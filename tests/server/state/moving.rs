//! Slots that move, and masters that fail, while many write: what the clients saw of each key is the work
//! of one register, or, after a failover, at least no version of two contents.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use super::way::Way;
use super::{metric, picture};
use crate::harness::*;
use crate::linear::check::{check, check_versions, Wrong};
use crate::linear::load::Ask;
use crate::linear::{Did, Op, Random, NEVER};

/// All in one slot.
const KEYS: usize = 6;
const WRITERS: u64 = 4;

fn key(n: usize) -> String {
    format!("{{m}}{n}")
}

/// How many times a slot is moved: `MAOS_TEST_MOVES`, or a few.
fn moves() -> usize {
    let asked = std::env::var("MAOS_TEST_MOVES").ok();
    asked.map_or(3, |n| n.parse().expect("MAOS_TEST_MOVES is a number"))
}

/// Writers that find their way, and what they wrote down.
struct Load {
    ports: Vec<u16>,
    start: Instant,
    stop: AtomicBool,
    made: AtomicU64,
    values: AtomicU64,
    recent: [AtomicI64; KEYS],
}

impl Load {
    fn new(cluster: &Cluster) -> Load {
        Load {
            ports: cluster.nodes.iter().map(Server::port).collect(),
            start: Instant::now(),
            stop: AtomicBool::new(false),
            made: AtomicU64::new(0),
            values: AtomicU64::new(0),
            recent: Default::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(NEVER - 1)
    }

    /// Runs writers while `then` runs; gives what they saw of each key, read once more at the end.
    fn run(&self, then: impl FnOnce()) -> Vec<Vec<Op>> {
        // Also if the test fails meanwhile.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let mut all = vec![vec![]; KEYS];
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|n| scope.spawn(move || self.writer(n)))
                .collect();
            {
                let _stop = Stop(&self.stop);
                self.some_work();
                then();
                self.some_work();
            }
            for writer in writers {
                for (n, op) in writer.join().expect("a writer") {
                    all[n].push(op);
                }
            }
        });
        let mut way = Way::new(&self.ports);
        for (n, log) in all.iter_mut().enumerate() {
            self.one(&mut way, n, Ask::Get, |_, op| log.push(op));
        }
        all
    }

    /// Waits until the writers have got something done.
    fn some_work(&self) {
        let goal = self.made.load(Relaxed) + 1_000;
        eventually(PATIENCE, "the writers go on", || {
            self.made.load(Relaxed) >= goal
        });
    }

    fn writer(&self, n: u64) -> Vec<(usize, Op)> {
        let random = &mut Random(n * 104_729 + 17);
        let mut way = Way::new(&self.ports);
        let mut log = vec![];
        while !self.stop.load(Relaxed) {
            let n = random.below(KEYS as u64) as usize;
            let value = self.values.fetch_add(1, Relaxed) + 1;
            let ask = Ask::some(random, self.recent[n].load(Relaxed), value);
            self.one(&mut way, n, ask, |n, op| log.push((n, op)));
        }
        log
    }

    fn one(&self, way: &mut Way, n: usize, ask: Ask, mut log: impl FnMut(usize, Op)) {
        let call = self.now();
        match way.send(&ask.words(&key(n))) {
            Ok(reply) => {
                let did = ask.did(&reply);
                if let Some(version) = did.version() {
                    self.recent[n].fetch_max(version, Relaxed);
                }
                let ret = self.now();
                log(n, Op { call, ret, did });
                self.made.fetch_add(1, Relaxed);
            }
            Err(_) => {
                if let Some(op) = ask.unknown(call) {
                    log(n, op);
                }
            }
        }
    }
}

/// Every node has a past of its own: what comes to it is older than what it has written.
fn give_all_a_past(cluster: &Cluster) {
    let mut client = cluster.client();
    for n in 0..30 {
        let key = format!("past:{n}");
        client.cmd(&key, &["MAOS.SET", &key, "v"]).int();
    }
}

fn other_master<'a>(cluster: &'a Cluster, not: &Server, round: usize) -> &'a Server {
    let others: Vec<_> = (0..3)
        .map(|n| cluster.master(n))
        .filter(|m| m.port() != not.port())
        .collect();
    others[round % 2]
}

#[track_caller]
fn one_register_each(logs: &[Vec<Op>]) {
    for (n, log) in logs.iter().enumerate() {
        match check(log) {
            Ok(figures) => println!("{}: {figures:?}", key(n)),
            Err((wrong, what)) => panic!("{}: {wrong:?}: {what}", key(n)),
        }
    }
}

fn nothing_was_damaged(cluster: &Cluster) {
    for node in &cluster.nodes {
        assert_eq!(metric(&mut node.conn(), "damaged"), 0);
        assert_eq!(metric(&mut node.conn(), "panics"), 0);
    }
}

#[test]
fn a_slot_that_comes_to_a_node_with_a_later_past_keeps_its_versions() {
    let cluster = Cluster::start(3, 0);
    let slot = slot_of(key(0).as_bytes());
    let conn = &mut cluster.node_for(key(0)).conn();
    let version = conn.run("MAOS.SET {m}0 old").int();
    conn.run("MAOS.SET {m}1 one").int();
    conn.run("MAOS.SET {m}1 two REQID r1").int();
    let before = picture(conn, &["{m}0", "{m}1"]);
    for round in 0..3 {
        give_all_a_past(&cluster);
        let from = cluster.node_for(key(0));
        let to = other_master(&cluster, from, round);
        cluster.move_slot(slot, to);
        assert_eq!(picture(&mut to.conn(), &["{m}0", "{m}1"]), before);
    }
    // What a client of the new owner restores is no import.
    let conn = &mut cluster.node_for(key(0)).conn();
    let dump = conn.run("DUMP {m}0").bytes().to_vec();
    conn.run("MAOS.SET {m}0 newer").int();
    cmd!(conn, "RESTORE", "{m}0", "0", &dump, "REPLACE").ok();
    let lost = conn.run(&format!("MAOS.CAS {{m}}0 {version} stolen"));
    assert_eq!(lost.array()[0].int(), 0);
}

#[test]
fn a_slot_that_moves_under_load_loses_and_repeats_nothing() {
    let cluster = Cluster::start(3, 0);
    let slot = slot_of(key(0).as_bytes());
    let load = Load::new(&cluster);
    let logs = load.run(|| {
        for round in 0..moves() {
            give_all_a_past(&cluster);
            let from = cluster.node_for(key(0));
            cluster.move_slot(slot, other_master(&cluster, from, round));
            load.some_work();
        }
    });
    one_register_each(&logs);
    nothing_was_damaged(&cluster);
}

/// Has a slot migrated by the server itself. False if it cannot do that.
fn migrate(from: &Server, to: &Server, slot: u16) -> bool {
    let id = to.conn().run("CLUSTER MYID").text().to_string();
    let line = format!("CLUSTER MIGRATESLOTS SLOTSRANGE {slot} {slot} NODE {id}");
    let reply = from.conn().run(&line);
    if reply.is_err() && reply.err().contains("nknown subcommand") {
        println!("skipped: this server has no atomic slot migration");
        return false;
    }
    reply.ok();
    true
}

#[test]
fn an_atomic_migration_under_load_loses_and_repeats_nothing() {
    let cluster = Cluster::start(3, 0);
    let slot = slot_of(key(0).as_bytes());
    let mut skipped = false;
    let load = Load::new(&cluster);
    let logs = load.run(|| {
        for round in 0..moves() {
            give_all_a_past(&cluster);
            let from = cluster.node_for(key(0));
            let to = other_master(&cluster, from, round);
            if !migrate(from, to, slot) {
                skipped = true;
                return;
            }
            eventually(PATIENCE, "the slot has moved", || {
                cluster.nodes.iter().all(|node| {
                    let reply = cmd!(node.conn(), "MAOS.GET", key(0));
                    match Redirect::of(&reply) {
                        Some(redirect) => redirect.port == to.port(),
                        None => node.port() == to.port(),
                    }
                })
            });
            load.some_work();
        }
    });
    if skipped {
        return;
    }
    one_register_each(&logs);
    nothing_was_damaged(&cluster);
}

#[test]
fn what_is_restored_during_an_atomic_migration_is_the_same_on_both_sides() {
    let cluster = Cluster::start(3, 0);
    give_all_a_past(&cluster);
    let slot = slot_of(b"{m}0");
    let from = cluster.node_for("{m}0");
    let to = other_master(&cluster, from, 0);
    let conn = &mut from.conn();
    let old = conn.run("MAOS.SET {m}0 old").int();
    let dump = conn.run("DUMP {m}0").bytes().to_vec();
    conn.run("MAOS.SET {m}0 newer").int();
    // Enough for the migration to take a while.
    let long = "x".repeat(100_000);
    for n in 0..200 {
        cmd!(conn, "MAOS.SET", format!("{{m}}filler{n}"), &long).int();
    }
    if !migrate(from, to, slot) {
        return;
    }
    let (mut last, mut rounds) = (0, 0);
    loop {
        let restored = cmd!(conn, "RESTORE", "{m}0", "0", &dump, "REPLACE");
        let pair = conn.run("MAOS.GET {m}0 WITHVERSION");
        if restored.is_err() || pair.is_err() {
            break;
        }
        let version = pair.array()[1].int();
        assert!(version > last);
        (last, rounds) = (version, rounds + 1);
    }
    println!("{rounds} times restored");
    let there = &mut to.conn();
    eventually(PATIENCE, "the slot has moved", || {
        !there.run("MAOS.GET {m}0").is_err()
    });
    let version = there.run("MAOS.GET {m}0 WITHVERSION").array()[1].int();
    assert!(version >= last, "{version} after {last}");
    for seen in [old, version - 1] {
        let lost = there.run(&format!("MAOS.CAS {{m}}0 {seen} stolen"));
        assert_eq!(lost.array()[0].int(), 0);
    }
    nothing_was_damaged(&cluster);
}

#[test]
fn a_failover_under_load_gives_no_version_two_contents() {
    let mut cluster = Cluster::start(3, 1);
    let load = Load::new(&cluster);
    let master = cluster.node_for(key(0)).port();
    let first = cluster.nodes.iter().position(|n| n.port() == master);
    let first = first.expect("a node");
    let heir = cluster.replicas_of(first).next().expect("a replica").port();
    let logs = load.run(|| {
        cluster.nodes[first].kill();
        eventually(PATIENCE, "the replica has taken over", || {
            let mut conn = Conn::open(heir);
            conn.run("ROLE").array()[0].text() == "master"
                && !cmd!(conn, "MAOS.GET", key(0)).is_err()
        });
        load.some_work();
        cluster.nodes[first].start_again();
        eventually(PATIENCE, "the old master follows", || {
            let info = cluster.nodes[first].conn().info("replication");
            info.get("master_link_status").is_some_and(|s| s == "up")
        });
    });
    for (n, log) in logs.iter().enumerate() {
        if let Err((wrong, what)) = check_versions(log) {
            panic!("{}: {wrong:?}: {what}", key(n));
        }
        // What was acknowledged may be lost; that is all that may be.
        if let Err((wrong, what)) = check(log) {
            println!("{}: {wrong:?}: {what}", key(n));
            assert!(
                !matches!(wrong, Wrong::Reused | Wrong::NeverWritten),
                "{what}"
            );
        }
        let unknown = log.iter().filter(|op| matches!(op.did, Did::Maybe { .. }));
        println!(
            "{}: {} operations, {} unknown",
            key(n),
            log.len(),
            unknown.count()
        );
    }
    let heir = cluster.node_at(heir);
    wait_synced(heir, &cluster.nodes[first]);
    for n in 0..KEYS {
        let there = digest(&mut heir.conn(), key(n));
        assert_eq!(digest(&mut cluster.nodes[first].conn(), key(n)), there);
    }
}
