//! Holders that are stopped, masters that are stopped, replaced and killed, slots that move, keys that are
//! deleted by a bystander: no write by a stale holder stands, tokens rise, nobody waits for ever.
//!
//! What the store itself kept is what is judged: the history of the key, in which every value names the
//! token that it was written with.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::metric;
use super::way::Way;
use crate::harness::*;
use crate::linear::Random;

const KEY: &str = "{l}lock";
/// In another slot: it knows the lock by name and token only.
const RESOURCE: &str = "{r}resource";
const WORKERS: u64 = 8;
const WAIT_MS: u64 = 500;

/// How often something goes wrong: `MAOS_TEST_FAULTS`, or each fault once.
fn faults() -> usize {
    let asked = std::env::var("MAOS_TEST_FAULTS").ok();
    asked.map_or(7, |n| n.parse().expect("MAOS_TEST_FAULTS is a number"))
}

/// A lock that a worker was told it has. Times are microseconds of unix time.
#[derive(Clone, Copy, Debug)]
struct Grant {
    token: i64,
    asked: u64,
    granted: u64,
    /// Until when it believed so: it gave it back, or the lease was over.
    until: u64,
}

/// What the workers saw.
#[derive(Default)]
struct Seen {
    grants: Vec<Grant>,
    /// Waits that ended without the lock, and by how much too late, in milliseconds.
    late_ms: Vec<u64>,
    written: u64,
    /// Stale writes that the store refused.
    fenced: u64,
    unknown: u64,
}

struct Run {
    ports: Vec<u16>,
    stop: AtomicBool,
    granted: AtomicU64,
    /// One master is in charge all the time.
    steady: bool,
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_micros()).expect("before the year 586524")
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

impl Run {
    fn new(ports: Vec<u16>, steady: bool) -> Run {
        Run {
            ports,
            stop: AtomicBool::new(false),
            granted: AtomicU64::new(0),
            steady,
        }
    }

    /// Runs the workers while `then` runs.
    fn run(&self, then: impl FnOnce()) -> Seen {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let mut all = Seen::default();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|n| scope.spawn(move || self.worker(n)))
                .collect();
            {
                let _stop = Stop(&self.stop);
                self.some_work();
                then();
                self.some_work();
            }
            for worker in workers {
                let seen = worker.join().expect("a worker");
                all.grants.extend(seen.grants);
                all.late_ms.extend(seen.late_ms);
                all.written += seen.written;
                all.fenced += seen.fenced;
                all.unknown += seen.unknown;
            }
        });
        all
    }

    fn some_work(&self) {
        let goal = self.granted.load(Relaxed) + 200;
        eventually(PATIENCE, "the workers go on", || {
            self.granted.load(Relaxed) >= goal
        });
    }

    fn worker(&self, n: u64) -> Seen {
        let random = &mut Random(n * 7_919 + 31);
        let mut way = Way::new(&self.ports);
        let mut seen = Seen::default();
        for turn in 0.. {
            if self.stop.load(Relaxed) {
                break;
            }
            self.turn(&mut way, &format!("w{n}.{turn}"), random, &mut seen);
        }
        seen
    }

    /// Takes the lock, writes, gives it back; sometimes it stands still in between until the lease is over.
    fn turn(&self, way: &mut Way, owner: &str, random: &mut Random, seen: &mut Seen) {
        let lease_ms = [100, 1000, 5000][random.below(3) as usize];
        let asked = now_us();
        let line = format!("MAOS.LOCK {KEY} {owner} {lease_ms} WAIT {WAIT_MS}");
        let reply = match way.send(&words(&line)) {
            Ok(reply) => reply,
            Err(error) => {
                // A connection may end; a wait may not.
                let hangs = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(!hangs, "{line} got no answer");
                seen.unknown += 1;
                return;
            }
        };
        let granted = now_us();
        if reply.is_nil() {
            let waited_ms = (granted - asked) / 1000;
            seen.late_ms.push(waited_ms.saturating_sub(WAIT_MS));
            return;
        }
        if reply.is_err() {
            assert_eq!(reply.code(), "UNBLOCKED", "{reply}");
            return;
        }
        let [token, expires_ms] = [0, 1].map(|i| reply.array()[i].int());
        let expires = expires_ms.unsigned_abs() * 1000;
        let stands_still = lease_ms == 100 && random.below(4) == 0;
        if stands_still {
            let left = expires.saturating_sub(now_us());
            thread::sleep(Duration::from_micros(left) + Duration::from_millis(20));
        }
        let mut until = expires.min(now_us());
        for line in [
            format!("MAOS.SET {KEY} {token} TOKEN {token}"),
            format!("MAOS.SET {RESOURCE} {token} FENCE lock {token}"),
        ] {
            match way.send(&words(&line)) {
                Err(_) => seen.unknown += 1,
                Ok(reply) if reply.is_err() => {
                    assert_eq!(reply.code(), "FENCED", "{line}: {reply}");
                    seen.fenced += 1;
                }
                Ok(_) => {
                    let over = stands_still && line.contains("TOKEN") && self.steady;
                    assert!(!over, "{line} was taken after the end of the lease");
                    seen.written += 1;
                }
            }
        }
        if !stands_still {
            until = expires.min(now_us());
        }
        match way.send(&words(&format!("MAOS.UNLOCK {KEY} {token}"))) {
            Err(_) => seen.unknown += 1,
            Ok(reply) if reply.is_err() => assert_eq!(reply.code(), "FENCED", "{reply}"),
            Ok(_) => {}
        }
        self.granted.fetch_add(1, Relaxed);
        seen.grants.push(Grant {
            token,
            asked,
            granted,
            until,
        });
    }
}

impl Seen {
    /// A lock granted after another was has the higher token.
    #[track_caller]
    fn tokens_rise(&self) {
        let mut asked: Vec<&Grant> = self.grants.iter().collect();
        let mut granted = asked.clone();
        asked.sort_by_key(|g| g.asked);
        granted.sort_by_key(|g| g.granted);
        let mut before = granted.into_iter().peekable();
        let mut highest: Option<&Grant> = None;
        for grant in asked {
            while let Some(earlier) = before.next_if(|g| g.granted < grant.asked) {
                if highest.is_none_or(|h| h.token < earlier.token) {
                    highest = Some(earlier);
                }
            }
            let rises = highest.is_none_or(|h| h.token < grant.token);
            assert!(rises, "{grant:?} after {highest:?}");
        }
    }

    /// How often two believed at once that they held the lock. A deletion of the key ends the lock, whatever
    /// its holder believes.
    fn overlaps(&self, deletions: &[[u64; 2]]) -> usize {
        let mut grants = self.grants.clone();
        for grant in &mut grants {
            // When within its span a deletion happened is not known, nor when between question and answer
            // the lock was granted.
            let ends = deletions.iter().filter(|[_, to]| *to >= grant.asked);
            grant.until = ends.fold(grant.until, |until, [from, _]| until.min(*from));
        }
        grants.sort_by_key(|g| g.granted);
        let mut until = 0;
        let mut overlaps = 0;
        for grant in grants {
            // One that heard of it after the end never believed it.
            overlaps += usize::from(grant.granted < grant.until.min(until));
            until = until.max(grant.until);
        }
        overlaps
    }

    fn tell(&self, deletions: &[[u64; 2]]) {
        println!(
            "{} grants, {} writes, {} stale ones refused, {} times two believed to hold it, {} waits in vain (the latest {} ms late), {} requests without an answer",
            self.grants.len(),
            self.written,
            self.fenced,
            self.overlaps(deletions),
            self.late_ms.len(),
            self.late_ms.iter().max().unwrap_or(&0),
            self.unknown,
        );
    }
}

/// The tokens of the versions that a key has, in their order.
fn tokens(history: &Reply) -> Vec<i64> {
    let versions = history.array().iter();
    let token = |v: &Reply| v.field("value").text().parse().expect("a token");
    versions.map(token).collect()
}

/// No version was written with an older token than one before it.
#[track_caller]
fn none_is_stale(tokens: &[i64]) {
    assert!(!tokens.is_empty());
    for pair in tokens.windows(2) {
        assert!(
            pair[0] <= pair[1],
            "written with {} after {}",
            pair[1],
            pair[0]
        );
    }
}

/// Deletes the key, as an administrator may at any time; what it held.
fn bystander(conn: &mut Conn) -> Vec<i64> {
    let lines = [
        "MULTI".to_owned(),
        format!("MAOS.HISTORY {KEY} VALUES"),
        format!("DEL {KEY}"),
        "EXEC".to_owned(),
    ];
    let replies = conn.pipeline(&lines);
    tokens(&replies[3].array()[0])
}

fn setup() -> Setup {
    Setup::new().with(&[
        ("maos.history-max-versions", "100000"),
        ("maos.history-max-bytes", "1073741824"),
    ])
}

#[test]
fn while_one_master_is_in_charge_leases_do_not_overlap_and_no_stale_write_is_taken() {
    let lines = [("appendonly", "yes"), ("appendfsync", "always")];
    let mut server = setup().with(&lines).start();
    let run = Run::new(vec![server.port()], true);
    let (mut kept, mut deletions) = (vec![], vec![]);
    let seen = run.run(|| {
        for round in 0..faults().div_ceil(2) {
            match round % 3 {
                0 => {
                    server.pause();
                    thread::sleep(Duration::from_millis(300));
                    server.resume();
                }
                1 => {
                    let began = now_us();
                    kept.extend(bystander(&mut server.conn()));
                    deletions.push([began, now_us()]);
                }
                _ => {
                    server.kill();
                    server.start_again();
                }
            }
            run.some_work();
        }
    });
    seen.tell(&deletions);
    let conn = &mut server.conn();
    kept.extend(tokens(&conn.run(&format!("MAOS.HISTORY {KEY} VALUES"))));
    none_is_stale(&kept);
    none_is_stale(&tokens(
        &conn.run(&format!("MAOS.HISTORY {RESOURCE} VALUES")),
    ));
    seen.tokens_rise();
    assert_eq!(seen.overlaps(&deletions), 0);
    assert!(seen.fenced > 0, "no holder was ever late");
}

#[test]
fn whatever_happens_to_masters_no_stale_write_stands() {
    let mut setup = ClusterSetup::new(3, 1);
    setup.node_timeout_ms = 1000;
    setup.node = self::setup();
    let mut cluster = setup.start();
    let run = Run::new(cluster.nodes.iter().map(Server::port).collect(), false);
    let (mut kept, mut deletions) = (vec![], vec![]);
    let mut pauses = 0;
    let seen = run.run(|| {
        for round in 0..faults() {
            let master = cluster.node_for(KEY);
            let port = master.port();
            let heir = cluster.replica_now(master);
            let taken_over = |heir: u16| {
                eventually(PATIENCE, "the replica has taken over", || {
                    Conn::open(heir).run("ROLE").array()[0].text() == "master"
                });
            };
            match round % 7 {
                0 => {
                    master.pause();
                    thread::sleep(Duration::from_millis(300));
                    master.resume();
                }
                1 => {
                    let heir = heir.port();
                    master.pause();
                    taken_over(heir);
                    cluster.node_at(port).resume();
                }
                2 => {
                    heir.conn().run("CLUSTER FAILOVER").ok();
                    taken_over(heir.port());
                }
                3 => {
                    heir.conn().run("CLUSTER FAILOVER TAKEOVER").ok();
                    taken_over(heir.port());
                }
                4 => {
                    let others = cluster.nodes.iter().find(|node| {
                        let is_master = node.conn().run("ROLE").array()[0].text() == "master";
                        is_master && node.port() != port
                    });
                    cluster.move_slot(slot_of(KEY.as_bytes()), others.expect("another master"));
                }
                5 => {
                    let began = now_us();
                    kept.extend(bystander(&mut master.conn()));
                    deletions.push([began, now_us()]);
                }
                _ => {
                    let heir = heir.port();
                    let at = cluster.nodes.iter().position(|n| n.port() == port);
                    let at = at.expect("a node");
                    cluster.nodes[at].kill();
                    taken_over(heir);
                    cluster.nodes[at].start_again();
                }
            }
            cluster.wait_ok();
            run.some_work();
        }
    });
    seen.tell(&deletions);
    for node in &cluster.nodes {
        pauses += metric(&mut node.conn(), "pauses");
    }
    println!("{pauses} pauses were noticed");
    let history = |key: &str| {
        let conn = &mut cluster.node_for(key).conn();
        tokens(&conn.run(&format!("MAOS.HISTORY {key} VALUES")))
    };
    kept.extend(history(KEY));
    none_is_stale(&kept);
    none_is_stale(&history(RESOURCE));
    seen.tokens_rise();
    assert!(seen.fenced > 0, "no holder was ever late");
}
