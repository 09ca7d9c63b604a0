//! Partitions on a live server, outside of a cluster: quotas that hold, sums that are right whatever happens to the
//! keys, keys that make room, and keys that leave with their partition.
//!
//! What is decided, and why, is tested in the core; here it is what the server makes of it.

use std::collections::BTreeMap;
use std::env;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use maos_core::generate::Rng;

use super::oracle::now_us;
use super::persistence::wait_rewritten;
use super::{has_failpoints, metric};
use crate::harness::*;

/// What INFO of a partition says.
#[track_caller]
fn info(conn: &mut Conn, name: &str) -> Reply {
    let reply = cmd!(conn, "MAOS.PARTITION", "INFO", name);
    assert!(!reply.is_err(), "{reply}");
    reply
}

/// The bytes that a partition is charged with.
#[track_caller]
fn used(conn: &mut Conn, name: &str) -> i64 {
    info(conn, name).field("used").int()
}

/// The keys that a partition is charged with.
#[track_caller]
fn keys(conn: &mut Conn, name: &str) -> i64 {
    info(conn, name).field("keys").int()
}

/// Has everything counted anew, and says what came of it.
#[track_caller]
fn audit(conn: &mut Conn, name: &str) -> Reply {
    let ended = |shown: &Reply| match shown.field("audit") {
        Reply::Nil => 0,
        audit if audit.field("running").int() == 1 => 0,
        audit => audit.field("ended-ms").int(),
    };
    eventually(PATIENCE, "no audit runs", || {
        let shown = info(conn, name);
        shown.field("audit").is_nil() || ended(&shown) > 0
    });
    let before = ended(&info(conn, name));
    let asked = cmd!(conn, "MAOS.PARTITION", "INFO", name, "AUDIT");
    assert!(!asked.is_err(), "{asked}");
    let mut shown = asked;
    eventually(PATIENCE, "an audit ends", || {
        shown = info(conn, name);
        ended(&shown) > before
    });
    shown
}

/// Has everything counted anew: by how many bytes the sum of this partition was wrong.
#[track_caller]
fn audited(conn: &mut Conn, name: &str) -> i64 {
    audit(conn, name).field("audit").field("drift").int()
}

/// All sums of a node are what its keys hold.
#[track_caller]
pub fn sums_are_right(conn: &mut Conn, when: &str) {
    let list = conn.run("MAOS.PARTITION LIST");
    for shown in list.array() {
        let name = shown.field("name").text();
        // What is compressed between an audit and a look at its end is counted once more.
        eventually(PATIENCE, "sums are what was counted", || {
            let shown = audit(conn, name);
            let audit = shown.field("audit");
            assert_eq!(audit.field("drift").int(), 0, "{when}: {shown}");
            audit.field("keys") == shown.field("keys-here")
                && audit.field("bytes") == shown.field("used-here")
        });
        // What the AOF brings lies uncompressed until the pass comes by.
        eventually(PATIENCE, &format!("{when}: it is in its quota"), || {
            let shown = info(conn, name);
            shown.field("used").int() <= shown.field("quota").int()
        });
    }
}

/// The keys of two servers that hold different things, and what they hold.
fn difference(here: &mut Conn, there: &mut Conn) -> Vec<String> {
    let mut found = vec![];
    for db in 0..2 {
        let all = |conn: &mut Conn| -> BTreeMap<String, String> {
            conn.run(&format!("SELECT {db}")).ok();
            let keys = conn.run("KEYS *");
            let keys = keys.array().iter().map(|k| k.text().to_owned());
            let shown = |key: String| {
                let digest = conn.run(&format!("DEBUG DIGEST-VALUE {key}"));
                let full = conn.run(&format!("MAOS.GET {key} FULL"));
                (format!("{db} {key}"), format!("{digest} {full}"))
            };
            keys.map(shown).collect()
        };
        let (here, there) = (all(here), all(there));
        for key in here.keys().chain(there.keys()) {
            if here.get(key) != there.get(key) {
                found.push(format!(
                    "{key}: {:?} and {:?}",
                    here.get(key),
                    there.get(key)
                ));
            }
        }
    }
    found
}

/// Master and replica hold the same and charge the same.
#[track_caller]
fn both_agree(master: &Server, replica: &Server, when: &str) {
    let (here, there) = (&mut master.conn(), &mut replica.conn());
    // The pass may be at work.
    let start = Instant::now();
    loop {
        wait_synced(master, replica);
        if digest_all(there) == digest_all(here) {
            break;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{when}: {:#?}",
            difference(here, there)
        );
        thread::sleep(Duration::from_millis(10));
    }
    sums_are_right(here, when);
    sums_are_right(there, when);
    let charges = |conn: &mut Conn| -> Vec<String> {
        let list = conn.run("MAOS.PARTITION LIST");
        let shown = list.array().iter();
        shown
            .map(|p| {
                let of = |name| p.field(name).to_string();
                // Not the bytes: a record that was loaded may be kept in fewer.
                let fields = ["name", "quota", "keys", "prefixes", "version"];
                fields.map(of).join(" ")
            })
            .collect()
    };
    let mut both = (vec![], vec![]);
    let mut same = || {
        both = (charges(here), charges(there));
        both.0 == both.1
    };
    let start = Instant::now();
    while !same() && start.elapsed() < PATIENCE {
        thread::yield_now();
    }
    assert_eq!(both.0, both.1, "{when}");
}

fn partition_of(conn: &mut Conn, key: &str) -> Option<String> {
    let full = cmd!(conn, "MAOS.GET", key, "FULL");
    match full.field("partition") {
        Reply::Nil => None,
        name => Some(name.text().to_owned()),
    }
}

fn number(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |n| n.parse().expect(name))
}

/// Servers that say nothing to each other of their own accord.
const QUIET: (&str, &str) = ("repl-ping-replica-period", "3600");
/// The pass over the keys goes as fast as it may.
const BUSY: (&str, &str) = ("maos.background-effort-us", "20000");
/// It rests.
const REST: (&str, &str) = ("maos.background-effort-us", "0");

fn big() -> String {
    "x".repeat(5000)
}

// ---------------------------------------------------------------------------------------------
// Refusals
// ---------------------------------------------------------------------------------------------

/// Every way to need more room than there is, on a partition that holds `p:1` and `p:json`.
fn too_large() -> Vec<String> {
    let big = big();
    vec![
        format!("MAOS.SET p:2 {big}"),
        format!("MAOS.SET p:1 {big}"),
        format!("MAOS.SET free {big} PARTITION p"),
        format!("MAOS.CAS p:2 0 {big}"),
        format!("MAOS.MSET 3 free v p:2 {big} p:3 v"),
        format!("MAOS.MCAS 2 free 0 v p:2 0 {big}"),
        format!("MAOS.PATCH p:json '{{\"b\":\"{big}\"}}'"),
        format!("MAOS.TXN 3 free p:1 p:2 THEN SET free v THEN SET p:1 s THEN SET p:2 {big}"),
        format!(
            "MAOS.TXN 2 free p:1 IF p:1 ABSENT THEN GET p:1 ELSE SET free v ELSE SET p:1 {big}"
        ),
        format!("MAOS.SET p:1 v META '{{\"b\":\"{big}\"}}'"),
    ]
}

#[test]
fn a_write_beyond_the_quota_changes_nothing() {
    let master = Server::with(&[QUIET, REST]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("CONFIG SET notify-keyspace-events KEAd").ok();
    conn.run("MAOS.PARTITION CREATE p BYTES 1500 PREFIX p:")
        .int();
    conn.run("MAOS.SET p:1 v").int();
    conn.run("MAOS.SET p:1 w").int();
    conn.run("MAOS.SET p:json '{\"a\":1}'").int();
    wait_synced(&master, &replica);
    let held = (used(conn, "p"), keys(conn, "p"), digest_all(conn));
    let mut hears = master.conn();
    hears.send(&["PSUBSCRIBE", "__key*__:*"]);
    hears.recv();
    let mut watches = master.conn();
    watches.run("WATCH p:1 p:2 p:3 p:json free p").ok();
    let offset = |conn: &mut Conn| conn.info("replication")["master_repl_offset"].clone();
    let sent = offset(conn);
    let writes = metric(conn, "writes");
    let mut refused = 0;
    let is_quota = |reply: &Reply, line: &str| {
        assert_eq!(reply.code(), "QUOTA", "{line:.60}: {reply}");
        let text = reply.err();
        let figures = format!(
            "the partition 'p' holds {} of 1500 bytes, and the write needs ",
            held.0
        );
        assert!(text.contains(&figures), "{text}");
    };
    for line in too_large() {
        is_quota(&conn.run(&line), &line);
        conn.run("MULTI").ok();
        conn.run(&line);
        conn.run("MAOS.GET p:1");
        let exec = conn.run("EXEC");
        is_quota(&exec.array()[0], &line);
        assert_eq!(exec.array()[1].text(), "w");
        // A script hears of it and goes on.
        let words = split_line(&line).expect("a line");
        let body = "local r = redis.pcall(unpack(ARGV)); if type(r) == 'table' and r.err then return {r.err, redis.call('MAOS.GET', KEYS[1])} end return r";
        let head = [
            b"EVAL".to_vec(),
            body.into(),
            b"1".to_vec(),
            b"p:1".to_vec(),
        ];
        let reply = conn.cmd(&[&head[..], &words].concat());
        assert!(reply.array()[0].text().starts_with("QUOTA"), "{reply}");
        assert_eq!(reply.array()[1].text(), "w");
        let replies = conn.pipeline(&[&line[..], "MAOS.GET p:1", &line]);
        is_quota(&replies[0], &line);
        assert_eq!(replies[1].text(), "w");
        is_quota(&replies[2], &line);
        let mut other = master.conn();
        other.hello3();
        is_quota(&other.run(&line), &line);
        refused += 6;
    }
    assert_eq!(info(conn, "p").field("refused").int(), refused);
    assert_eq!(metric(conn, "writes"), writes);
    assert_eq!((used(conn, "p"), keys(conn, "p"), digest_all(conn)), held);
    assert_eq!(conn.run("EXISTS free p:2 p:3").int(), 0);
    assert_eq!(offset(conn), sent, "nothing is replicated");
    // Who watches is not disturbed, and who listens has heard nothing: the next event is this one.
    watches.run("MULTI").ok();
    watches.run("PING");
    assert!(!watches.run("EXEC").is_nil());
    conn.run("SET mark v").ok();
    assert!(hears.recv().to_string().contains("mark"));
    both_agree(&master, &replica, "after refusals");
}

#[test]
fn reaching_a_quota_is_no_outage() {
    let master = Server::with(&[REST]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    // Longer than what a record takes for having a history at all.
    let short = "x".repeat(200);
    type Act = fn(&mut Conn);
    let acts: &[(&str, Act)] = &[
        ("DEL", |c| assert_eq!(c.run("DEL p:0").int(), 1)),
        ("UNLINK", |c| assert_eq!(c.run("UNLINK p:0").int(), 1)),
        ("MAOS.DEL", |c| {
            for n in 0..3 {
                c.run(&format!("MAOS.DEL p:{n}")).int();
            }
        }),
        ("a smaller value", |c| {
            for n in 0..3 {
                c.run(&format!("MAOS.SET p:{n} s")).int();
            }
        }),
        ("expiry", |c| {
            assert_eq!(c.run("PEXPIRE p:0 1").int(), 1);
            eventually(PATIENCE, "it expires", || c.run("EXISTS p:0").int() == 0);
        }),
        ("RENAME over", |c| c.run("RENAME p:0 p:1").ok()),
        ("SET over", |c| c.run("SET p:0 v").ok()),
        ("another partition", |c| {
            c.run("MAOS.SET p:0 v PARTITION other").int();
        }),
        ("MOVE", |c| assert_eq!(c.run("MOVE p:0 1").int(), 1)),
        ("FLUSHALL", |c| c.run("FLUSHALL").ok()),
        ("FLUSHDB ASYNC", |c| c.run("FLUSHDB ASYNC").ok()),
        ("ALTER", |c| {
            c.run("MAOS.PARTITION ALTER p BYTES 5000").int();
        }),
        ("TXN", |c| {
            c.run("MAOS.TXN 1 p:0 THEN DEL p:0").array();
            c.run("DEL p:0").int();
        }),
    ];
    for (how, act) in acts {
        conn.run("FLUSHALL").ok();
        eventually(PATIENCE, "all is freed", || metric(conn, "records") == 0);
        conn.run("MAOS.PARTITION CREATE other BYTES 100000").int();
        conn.run("MAOS.PARTITION CREATE p BYTES 2000 PREFIX p:")
            .int();
        let mut n = 0;
        while !cmd!(conn, "MAOS.SET", format!("p:{n}"), short).is_err() {
            n += 1;
        }
        assert!(n > 3);
        for line in [
            "MAOS.GET p:0",
            "MAOS.GET p:0 FULL",
            "MAOS.HISTORY p:0 VALUES",
            "MAOS.MGET 2 p:0 p:1",
            "MAOS.LOCKS p:0",
            "EXISTS p:0",
            "EXPIRE p:0 1000",
            "PERSIST p:0",
            "DUMP p:0",
        ] {
            let reply = conn.run(line);
            assert!(!reply.is_err() && !reply.is_nil(), "{line}: {reply}");
        }
        act(conn);
        if how.starts_with("FLUSH") {
            conn.run("MAOS.PARTITION CREATE p BYTES 2000 PREFIX p:")
                .int();
        }
        if *how == "MOVE" {
            // It is charged wherever it is: two databases have one memory.
            assert_eq!(cmd!(conn, "MAOS.SET", "p:new", short).code(), "QUOTA");
            conn.run("SELECT 1").ok();
            assert_eq!(conn.run("DEL p:0").int(), 1);
            conn.run("SELECT 0").ok();
        }
        if *how == "RENAME over" {
            eventually(PATIENCE, "it is freed", || keys(conn, "p") < n);
        }
        let reply = cmd!(conn, "MAOS.SET", "p:new", "x");
        assert!(!reply.is_err(), "{how}: {reply}");
        both_agree(&master, &replica, how);
    }
}

// ---------------------------------------------------------------------------------------------
// Sums
// ---------------------------------------------------------------------------------------------

#[test]
fn an_audit_finds_what_is_wrong_and_sets_it_right() {
    let server = Server::with(&[REST]);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 100000 PREFIX p:")
        .int();
    for n in 0..50 {
        conn.run(&format!("MAOS.SET p:{n} v")).int();
    }
    let right = used(conn, "p");
    assert_eq!(audited(conn, "p"), 0);
    if has_failpoints(conn) {
        for wrong in [1, 777, -300] {
            cmd!(conn, "MAOS.FAIL", "spoil", wrong.to_string());
            assert_eq!(used(conn, "p"), right + wrong);
            assert_eq!(audited(conn, "p"), wrong);
            assert_eq!(used(conn, "p"), right);
            assert!(server.log().contains("has been set right"));
        }
    }
    assert_eq!(audited(conn, "p"), 0);
    // Written while it counts.
    for round in 0..20 {
        cmd!(conn, "MAOS.PARTITION", "INFO", "p", "AUDIT");
        for n in 0..50 {
            conn.run(&format!("MAOS.SET p:{n} {round}")).int();
            conn.run(&format!("DEL p:{}", (n + 7) % 50)).int();
        }
    }
    assert_eq!(audited(conn, "p"), 0);
}

/// A step of traffic in which everything happens to keys of partitions.
fn happens(conn: &mut Conn, rng: &mut Rng) -> String {
    // All of one length: what a RENAME adds to a name is charged by the pass, whatever room there is.
    let key = |rng: &mut Rng| {
        let group = rng.pick(&["a:short", "a:long:", "b:beside", "free:by"]);
        format!("{group:<8}{:02}", rng.below(20)).replace(' ', ":")
    };
    let value = |rng: &mut Rng| "agents share ".repeat(rng.below(40));
    let (k, l, v) = (key(rng), key(rng), value(rng));
    let line = match rng.below(30) {
        0..=8 => format!("MAOS.SET {k} '{v}'"),
        9 => format!("MAOS.SET {k} '{v}' PARTITION b"),
        10 => format!("MAOS.SET {k} '{v}' PX {}", 1 + rng.below(200)),
        11 => format!("MAOS.MSET 2 {k} '{v}' {l} '{v}'"),
        12 => format!("MAOS.DEL {k}"),
        13 => format!("DEL {k}"),
        14 => format!("UNLINK {k}"),
        15 | 16 => format!("MAOS.LOCK {k} owner{} {}", rng.below(3), 1 + rng.below(300)),
        17 => format!("COPY {k} {l} REPLACE"),
        18 | 19 => format!("RENAME {k} {l}"),
        20 => {
            // Valkey 8.1 tells its replicas of another database than it means if the key there has expired, and is still
            // to be removed (README).
            conn.run("SELECT 1").ok();
            conn.run(&format!("EXISTS {k}"));
            conn.run("SELECT 0").ok();
            format!("MOVE {k} 1")
        }
        21 => "SWAPDB 0 1".into(),
        22 => format!("MAOS.ROLLBACK {k} VERSION -1"),
        23 => format!("MAOS.TXN 2 {k} {l} THEN SET {k} '{v}' THEN SET {l} '{v}'"),
        24 => format!("PEXPIRE {k} {}", rng.below(100)),
        25 => format!("SELECT {}", rng.below(2)),
        26 => format!("SET {k} plain"),
        27 => format!(
            "MAOS.SET {k} '{v}' META '{{\"n\":{}}}' REQID r{}",
            rng.below(99),
            rng.below(99)
        ),
        28 => {
            let dump = conn.run(&format!("DUMP {k}"));
            if !dump.is_nil() {
                cmd!(conn, "RESTORE", &l, "0", dump.bytes(), "REPLACE");
            }
            return format!("RESTORE {l} from {k}");
        }
        _ => {
            let n = rng.below(3);
            format!("MAOS.PARTITION ALTER a HISTORY {}", 2 + n)
        }
    };
    // Refused or not.
    conn.run(&line);
    line
}

fn traffic(conn: &mut Conn, rng: &mut Rng, steps: usize) {
    for _ in 0..steps {
        happens(conn, rng);
    }
}

#[test]
fn no_quota_is_passed_by_any_step() {
    let server = Server::with(&[BUSY]);
    let conn = &mut server.conn();
    make_partitions(conn);
    let seed = number("MAOS_TEST_SEED", now_us() as usize) as u64;
    println!("MAOS_TEST_SEED={seed}");
    let rng = &mut Rng::new(seed);
    for step in 0..number("MAOS_TEST_REQUESTS", 4000) {
        let line = happens(conn, rng);
        for shown in conn.run("MAOS.PARTITION LIST").array() {
            let (used, quota) = (shown.field("used").int(), shown.field("quota").int());
            assert!(used <= quota, "{step}, after {line}: {shown}");
        }
    }
}

fn make_partitions(conn: &mut Conn) {
    conn.run("SELECT 0").ok();
    for line in [
        "MAOS.PARTITION CREATE a BYTES 30000 PREFIX a:",
        "MAOS.PARTITION CREATE long BYTES 20000 PREFIX a:long: ONFULL evict",
        "MAOS.PARTITION CREATE b BYTES 20000 PREFIX b:",
    ] {
        conn.run(line).int();
    }
}

/// Nothing expires and no lease ends between one look at a server and the next.
fn settle(conn: &mut Conn) {
    for db in 0..2 {
        conn.run(&format!("SELECT {db}")).ok();
        persist_all(conn);
    }
    conn.run("SELECT 0").ok();
}

#[test]
pub fn sums_are_right_after_any_traffic_and_every_way_of_writing_down() {
    let lines = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("maos.history-compress-min-bytes", "64"),
        BUSY,
    ];
    for preamble in ["yes", "no"] {
        let lines = [&lines[..], &[("aof-use-rdb-preamble", preamble)]].concat();
        let mut master = Server::with(&lines);
        let mut replica = replica_of(&master);
        let seed = number("MAOS_TEST_SEED", now_us() as usize) as u64;
        println!("MAOS_TEST_SEED={seed}");
        let rng = &mut Rng::new(seed);
        let steps = number("MAOS_TEST_REQUESTS", 4000) / 4;
        let mut conn = master.conn();
        conn.run("SELECT 0").ok();
        make_partitions(&mut conn);
        traffic(&mut conn, rng, steps);
        settle(&mut conn);
        both_agree(&master, &replica, "after traffic");
        conn.run("DEBUG RELOAD").ok();
        both_agree(&master, &replica, "after a reload");
        traffic(&mut conn, rng, steps / 4);
        settle(&mut conn);
        conn.run("DEBUG LOADAOF").ok();
        both_agree(&master, &replica, "after the AOF was loaded");
        conn.run("BGREWRITEAOF");
        wait_rewritten(&mut conn);
        traffic(&mut conn, rng, steps / 4);
        settle(&mut conn);
        master.restart(Stop::Kill);
        conn = master.conn();
        both_agree(&master, &replica, "after a restart");

        // The link breaks, and what was missed is sent.
        let full = |conn: &mut Conn| conn.info("stats")["sync_full"].clone();
        let before = full(&mut conn);
        conn.run("CLIENT KILL TYPE replica");
        traffic(&mut conn, rng, steps / 4);
        settle(&mut conn);
        both_agree(&master, &replica, "after a partial copy");
        assert_eq!(full(&mut conn), before);
        replica.restart(Stop::NoSave);
        both_agree(&master, &replica, "after a full copy");

        // The replica takes over.
        let there = &mut replica.conn();
        there.run("REPLICAOF NO ONE").ok();
        traffic(there, rng, steps / 4);
        settle(there);
        sums_are_right(there, "promoted");
        let address = format!("REPLICAOF 127.0.0.1 {}", replica.port());
        conn.run(&address).ok();
        both_agree(&replica, &master, "the other way round");
        for how in ["FLUSHALL ASYNC", "FLUSHALL"] {
            there.run(how).ok();
            make_partitions(there);
            eventually(PATIENCE, how, || used(there, "a") + used(there, "b") == 0);
            both_agree(&replica, &master, how);
            traffic(there, rng, 200);
            settle(there);
        }
        assert_eq!(metric(there, "panics") + metric(&mut conn, "panics"), 0);
    }
}

#[test]
fn no_quota_is_passed_at_any_time() {
    let master = Server::with(&[BUSY]);
    let replica = replica_of(&master);
    make_partitions(&mut master.conn());
    let done = AtomicBool::new(false);
    let seed = number("MAOS_TEST_SEED", now_us() as usize) as u64;
    println!("MAOS_TEST_SEED={seed}");
    let steps = number("MAOS_TEST_REQUESTS", 4000) / 2;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let mut conn = master.conn();
                scope.spawn(move || traffic(&mut conn, &mut Rng::new(seed + n), steps))
            })
            .collect();
        let looks = scope.spawn(|| {
            let (conn, mut looks) = (&mut master.conn(), 0);
            while !done.load(Relaxed) || looks == 0 {
                for shown in conn.run("MAOS.PARTITION LIST").array() {
                    let (used, quota) = (shown.field("used").int(), shown.field("quota").int());
                    assert!(used <= quota, "{shown}");
                }
                looks += 1;
            }
            looks
        });
        for worker in workers {
            worker.join().expect("a worker");
        }
        done.store(true, Relaxed);
        println!("{} looks", looks.join().expect("a look"));
    });
    settle(&mut master.conn());
    both_agree(&master, &replica, "after the soak");
    assert_eq!(metric(&mut master.conn(), "panics"), 0);
}

/// The name of a key is charged too; whoever renames it says nothing, and the pass follows.
#[test]
fn a_name_is_charged_and_the_pass_follows_a_rename() {
    let master = Server::with(&[BUSY]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 100000 PREFIX p:")
        .int();
    conn.run("MAOS.SET p:1 v").int();
    let short = used(conn, "p");
    conn.run("MAOS.SET p:22222222222 v").int();
    assert_eq!(used(conn, "p"), 2 * short + 10);
    conn.run("DEL p:22222222222").int();
    conn.run("RENAME p:1 p:22222222222").ok();
    eventually(PATIENCE, "the pass has been there", || {
        used(conn, "p") == short + 10
    });
    both_agree(&master, &replica, "renamed");
    // What does not fit a prefix any more leaves.
    conn.run("RENAME p:22222222222 q:1").ok();
    eventually(PATIENCE, "it leaves", || used(conn, "p") == 0);
    assert_eq!(partition_of(conn, "q:1"), None);
    both_agree(&master, &replica, "renamed away");
}

// ---------------------------------------------------------------------------------------------
// Keys that make room
// ---------------------------------------------------------------------------------------------

#[test]
fn the_keys_written_longest_ago_make_room_and_everyone_hears_of_it() {
    let lines = [("appendonly", "yes"), ("appendfsync", "always"), REST];
    let mut master = Server::with(&lines);
    let replica = replica_of(&master);
    let mut conn = master.conn();
    conn.run("CONFIG SET notify-keyspace-events KEA").ok();
    conn.run("MAOS.PARTITION CREATE p BYTES 3400 PREFIX p: ONFULL evict")
        .int();
    conn.run("MAOS.PARTITION CREATE q BYTES 3000 PREFIX q:")
        .int();
    let value = "x".repeat(200);
    cmd!(conn, "MAOS.SET", "free", value).int();
    cmd!(conn, "MAOS.SET", "q:1", value).int();
    for n in 0..10 {
        cmd!(conn, "MAOS.SET", format!("p:{n}"), value).int();
    }
    // One is written again, one is held; neither goes.
    conn.run("CONFIG RESETSTAT").ok();
    cmd!(conn, "MAOS.SET", "p:0", value).int();
    let token = conn.run("MAOS.LOCK p:1 a 600000").array()[0].int();
    let mut hears = master.conn();
    hears.send(&["PSUBSCRIBE", "__keyevent@0__:evicted"]);
    hears.recv();
    let there = |conn: &mut Conn| -> Vec<String> {
        let found = conn.run("KEYS *");
        let mut found: Vec<_> = found.array().iter().map(|k| k.text().to_owned()).collect();
        found.sort();
        found
    };
    let before = there(&mut conn);
    let large = "x".repeat(1200);
    cmd!(conn, "MAOS.SET", "p:large", large).int();
    let after = there(&mut conn);
    let gone: Vec<_> = before
        .iter()
        .filter(|k| !after.contains(k))
        .cloned()
        .collect();
    let evicted = info(&mut conn, "p").field("evicted").int();
    assert!(evicted >= 2, "{gone:?}");
    let expected: Vec<_> = (2..2 + evicted).map(|n| format!("p:{n}")).collect();
    assert_eq!(gone, expected);
    for key in &expected {
        let event = hears.recv();
        assert_eq!(event.array()[3].text(), key);
    }
    assert!(used(&mut conn, "p") <= 3400);
    both_agree(&master, &replica, "evicted");
    // Nobody makes room for what is larger than the partition, or for who holds all.
    let held = digest_all(&mut conn);
    for value in [3200, 20_000] {
        let reply = cmd!(conn, "MAOS.SET", "p:huge", "x".repeat(value));
        assert_eq!(reply.code(), "QUOTA", "{reply}");
        assert!(reply
            .err()
            .contains("no 1000 keys that may be removed make room"));
    }
    assert_eq!(digest_all(&mut conn), held);
    // In a transaction, a script and several keys at once.
    conn.run("MULTI").ok();
    for n in 0..5 {
        cmd!(conn, "MAOS.SET", format!("p:multi{n}"), value);
    }
    let exec = conn.run("EXEC");
    assert!(exec.array().iter().all(|r| !r.is_err()), "{exec}");
    let body = "for n = 1, 5 do redis.call('MAOS.SET', KEYS[1], ARGV[1]) end return redis.call('MAOS.MSET', 2, KEYS[2], ARGV[1], KEYS[3], ARGV[1])";
    cmd!(conn, "EVAL", body, "3", "p:a", "p:b", "p:c", value).int();
    conn.run(&format!(
        "MAOS.TXN 2 p:d p:e THEN SET p:d {value} THEN SET p:e {value}"
    ))
    .array();
    for key in ["p:a", "p:b", "p:c", "p:d", "p:e", "p:1", "free", "q:1"] {
        assert_eq!(cmd!(conn, "EXISTS", key).int(), 1, "{key}");
    }
    assert!(used(&mut conn, "p") <= 3400);
    conn.run(&format!("MAOS.UNLOCK p:1 {token}")).int();
    both_agree(&master, &replica, "evicted on and on");
    let held = digest_all(&mut conn);
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!(digest_all(&mut conn), held, "the AOF has it");
    // After a restart as well, at once.
    for stop in [Stop::Kill, Stop::Save] {
        master.restart(stop);
        conn = master.conn();
        for n in 0..30 {
            let reply = cmd!(conn, "MAOS.SET", format!("p:again{n}"), value);
            assert!(!reply.is_err(), "{reply}");
        }
        assert!(used(&mut conn, "p") <= 3400);
        assert_eq!(conn.run("EXISTS free q:1").int(), 2);
        both_agree(&master, &replica, "after a restart");
    }
}

#[test]
fn one_write_has_a_bounded_number_of_keys_removed() {
    let server = Server::with(&[REST]);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 2000000 PREFIX p: ONFULL evict")
        .int();
    let lines: Vec<_> = (0..4000).map(|n| format!("MAOS.SET p:{n:05} v")).collect();
    conn.pipeline(&lines);
    let each = used(conn, "p") / keys(conn, "p");
    let quota = used(conn, "p");
    conn.run(&format!("MAOS.PARTITION ALTER p BYTES {quota}"))
        .int();
    let value = |keys: i64| "x".repeat(usize::try_from(keys * each).expect("few"));
    let reply = cmd!(conn, "MAOS.SET", "p:large", value(1100));
    assert_eq!(reply.code(), "QUOTA", "{reply}");
    assert_eq!(keys(conn, "p"), 4000);
    cmd!(conn, "MAOS.SET", "p:large", value(900)).int();
    let evicted = info(conn, "p").field("evicted").int();
    assert!((900..=1000).contains(&evicted), "{evicted}");
    assert_eq!(conn.run("EXISTS p:00000 p:03999").int(), 1);
    sums_are_right(conn, "evicted");
}

// ---------------------------------------------------------------------------------------------
// Keys that leave with their partition
// ---------------------------------------------------------------------------------------------

#[test]
fn a_temporary_partition_leaves_with_its_keys_everywhere() {
    let master = Server::with(&[("appendonly", "yes"), REST]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("CONFIG SET notify-keyspace-events KEA").ok();
    let mut hears = master.conn();
    hears.send(&["PSUBSCRIBE", "__keyevent@0__:expired"]);
    hears.recv();
    let make = |conn: &mut Conn| {
        conn.run("MAOS.PARTITION CREATE t BYTES 100000 TYPE temporary TTL 600000 PREFIX t:")
            .int();
        conn.run("MAOS.PARTITION CREATE stays BYTES 100000 PREFIX stays: ONFULL evict")
            .int();
        for n in 0..20 {
            conn.run(&format!("MAOS.SET t:{n} v")).int();
            conn.run(&format!("MAOS.SET stays:{n} v")).int();
        }
        conn.run("MAOS.SET elsewhere v PARTITION t").int();
        conn.run("MAOS.SET free v").int();
        conn.run("SET t:plain v").ok();
    };
    type Act = fn(&mut Conn);
    let acts: &[(&str, Act)] = &[
        ("expiry", |c| assert_eq!(c.run("PEXPIRE t 1").int(), 1)),
        ("DEL", |c| assert_eq!(c.run("DEL t").int(), 1)),
        ("UNLINK", |c| assert_eq!(c.run("UNLINK t").int(), 1)),
        ("DROP", |c| {
            assert_eq!(c.run("MAOS.PARTITION DROP t FORCE").int(), 21)
        }),
        ("ALTER", |c| {
            c.run("MAOS.PARTITION ALTER t TTL 1").int();
        }),
        ("SET over", |c| c.run("SET t plain").ok()),
    ];
    for (how, act) in acts {
        conn.run("FLUSHALL").ok();
        make(conn);
        assert_eq!(conn.run("MAOS.PARTITION DROP t").code(), "EXISTS");
        act(conn);
        let left = |conn: &mut Conn| {
            let keys = conn.run("KEYS t:*").array().len();
            keys as i64 + conn.run("EXISTS elsewhere").int()
        };
        eventually(PATIENCE, how, || left(conn) == 1);
        let there = &mut replica.conn();
        eventually(PATIENCE, how, || left(there) == 1);
        // Every key is told of, and so is the partition where it expired.
        let mut told: Vec<_> = (0..21)
            .map(|_| hears.recv().array()[3].text().to_owned())
            .collect();
        if told.contains(&"t".to_owned()) {
            told.push(hears.recv().array()[3].text().to_owned());
        }
        assert!(told.contains(&"elsewhere".to_owned()), "{how}: {told:?}");
        assert_eq!(
            told.iter().filter(|k| k.starts_with("t:")).count(),
            20,
            "{how}"
        );
        assert_eq!(conn.run("GET t:plain").text(), "v");
        assert_eq!(keys(conn, "stays"), 20);
        assert_eq!(conn.run("MAOS.GET free").text(), "v");
        let reply = conn.run("MAOS.SET k v PARTITION t");
        assert_eq!(reply.code(), "NOTFOUND", "{how}");
        both_agree(&master, &replica, how);
        let held = digest_all(conn);
        conn.run("DEBUG LOADAOF").ok();
        assert_eq!(digest_all(conn), held, "{how}: the AOF has it");
        // Its prefix and its bytes are another's to have.
        conn.run("MAOS.PARTITION CREATE heir BYTES 100000 PREFIX t:")
            .int();
        conn.run("MAOS.SET t:1 v").int();
        assert_eq!(partition_of(conn, "t:1").as_deref(), Some("heir"), "{how}");
    }
    // One that is not temporary leaves its keys where they are.
    for how in [
        "DEL stays",
        "MAOS.PARTITION DROP stays FORCE",
        "PEXPIRE stays 1",
    ] {
        conn.run("FLUSHALL").ok();
        make(conn);
        conn.run(how);
        eventually(PATIENCE, how, || conn.run("EXISTS stays").int() == 0);
        assert_eq!(conn.run("KEYS stays:*").array().len(), 20, "{how}");
        assert_eq!(partition_of(conn, "t:1").as_deref(), Some("t"));
        wait_synced(&master, &replica);
        assert_eq!(digest_all(&mut replica.conn()), digest_all(conn), "{how}");
    }
}

#[test]
fn a_partition_key_expires_and_persists_like_any() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE t BYTES 10000 TYPE temporary TTL 600000 PREFIX t:")
        .int();
    let ttl = conn.run("PTTL t").int();
    assert!((500_000..=600_000).contains(&ttl), "{ttl}");
    assert!((500_000..=600_000).contains(&info(conn, "t").field("ttl-ms").int()));
    conn.run("PEXPIRE t 1600000").int();
    eventually(PATIENCE, "INFO has it", || {
        info(conn, "t").field("ttl-ms").int() > 600_000
    });
    conn.run("PERSIST t").int();
    eventually(PATIENCE, "INFO has it", || {
        info(conn, "t").field("ttl-ms").int() == -1
    });
    conn.run("MAOS.SET t:1 v").int();
    conn.run("MAOS.PARTITION ALTER t TTL 600000").int();
    assert!(conn.run("PTTL t").int() > 0);
    // What it is for may change: its keys leave with it only while it is temporary.
    conn.run("MAOS.PARTITION ALTER t TYPE shared_pool").int();
    assert_eq!(conn.run("PTTL t").int(), -1);
    conn.run("MAOS.SET t:1 w").int();
    assert_eq!(conn.run("DEL t").int(), 1);
    assert_eq!(conn.run("MAOS.GET t:1").text(), "w");
    conn.run("MAOS.PARTITION CREATE t BYTES 10000 PREFIX t:")
        .int();
    let alter = conn.run("MAOS.PARTITION ALTER t TYPE temporary");
    assert_eq!(alter.code(), "ERR", "{alter}");
    conn.run("MAOS.PARTITION ALTER t TYPE temporary TTL 600000")
        .int();
    conn.run("MAOS.SET t:1 x").int();
    conn.run("PEXPIRE t 1").int();
    eventually(PATIENCE, "they are gone", || conn.run("DBSIZE").int() == 0);
}

/// Fills a partition with so many keys.
fn fill_many(conn: &mut Conn, prefix: &str, count: usize) {
    let mut n = 0;
    while n < count {
        let lines: Vec<_> = (n..count.min(n + 2000))
            .map(|n| format!("MAOS.SET {prefix}{n} v"))
            .collect();
        for reply in conn.pipeline(&lines) {
            assert!(!reply.is_err(), "{reply}");
        }
        n += lines.len();
    }
}

#[test]
fn many_keys_leave_and_nobody_waits_for_them() {
    let count = number("MAOS_TEST_LEAVE_KEYS", 100_000);
    let server = Server::start();
    let conn = &mut server.conn();
    let patience = PATIENCE * 10;
    for how in ["PEXPIRE t 1", "MAOS.PARTITION DROP t FORCE", "UNLINK t"] {
        conn.run("MAOS.PARTITION CREATE t BYTES 10000000000 TYPE temporary TTL 86400000 PREFIX t:")
            .int();
        fill_many(conn, "t:", count);
        conn.run("MAOS.SET free v").int();
        let mut pings = server.conn();
        let (mut longest, mut round_trips) = (Duration::ZERO, 0);
        let start = Instant::now();
        conn.run(how).int();
        let answered = start.elapsed();
        eventually(patience, how, || {
            for _ in 0..200 {
                let start = Instant::now();
                pings.run("PING");
                longest = longest.max(start.elapsed());
                round_trips += 1;
            }
            conn.run("DBSIZE").int() == 1
        });
        println!(
            "{how}: {count} keys left within {:?}; answered after {answered:?}; the longest of {round_trips} PINGs took {longest:?}",
            start.elapsed()
        );
        assert!(longest < Duration::from_secs(5), "{longest:?}");
        assert!(answered < Duration::from_secs(5), "{answered:?}");
        assert_eq!(conn.run("MAOS.GET free").text(), "v");
    }
    assert_eq!(metric(conn, "panics"), 0);
}

#[test]
fn a_restart_while_keys_leave_keeps_none_of_them() {
    let count = number("MAOS_TEST_LEAVE_KEYS", 100_000) / 5;
    for (aof, stop) in [("yes", Stop::Kill), ("no", Stop::Save)] {
        let lines = [("appendonly", aof), ("appendfsync", "always"), BUSY];
        let mut server = Server::with(&lines);
        let conn = &mut server.conn();
        conn.run("MAOS.PARTITION CREATE t BYTES 10000000000 TYPE temporary TTL 86400000 PREFIX t:")
            .int();
        fill_many(conn, "t:", count);
        conn.run("MAOS.SET free v").int();
        conn.run("DEL t").int();
        eventually(PATIENCE, "they begin to leave", || {
            conn.run("DBSIZE").int() < count as i64
        });
        server.restart(stop);
        let conn = &mut server.conn();
        println!("{} keys were left", conn.run("DBSIZE").int());
        eventually(PATIENCE, "the rest leaves too", || {
            conn.run("DBSIZE").int() == 1
        });
        assert_eq!(conn.run("MAOS.GET free").text(), "v");
    }
}

#[test]
fn a_partition_that_expired_while_the_server_was_down_takes_its_keys() {
    for aof in ["yes", "no"] {
        let lines = [("appendonly", aof), ("appendfsync", "always"), BUSY];
        let mut server = Server::with(&lines);
        let conn = &mut server.conn();
        conn.run("MAOS.PARTITION CREATE t BYTES 100000 TYPE temporary TTL 86400000 PREFIX t:")
            .int();
        for n in 0..10 {
            conn.run(&format!("MAOS.SET t:{n} v")).int();
        }
        conn.run("MAOS.SET free v").int();
        // As long as a server takes to be there again, at least.
        let soon = now_us() / 1000 + 300;
        conn.run(&format!("PEXPIREAT t {soon}")).int();
        server.stop(Stop::Save);
        eventually(PATIENCE, "its time comes", || now_us() / 1000 > soon);
        server.start_again();
        let conn = &mut server.conn();
        eventually(PATIENCE, "they are gone", || conn.run("DBSIZE").int() == 1);
        assert_eq!(conn.run("MAOS.GET free").text(), "v");
    }
}

// ---------------------------------------------------------------------------------------------
// What a partition says of its keys
// ---------------------------------------------------------------------------------------------

#[test]
fn types_and_policies_hold_on_a_live_server() {
    let master = Server::with(&[BUSY]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.PARTITION CREATE kept BYTES 10000 TYPE persistent")
        .int();
    assert_eq!(conn.run("MAOS.PARTITION DROP kept").code(), "EXISTS");
    assert_eq!(conn.run("MAOS.PARTITION DROP kept FORCE").int(), 0);
    conn.run("MAOS.PARTITION CREATE mine BYTES 10000 AGENT a1 PREFIX mine:")
        .int();
    for (line, may) in [
        ("MAOS.SET mine:1 v BY a2", false),
        ("MAOS.SET k v PARTITION mine BY a2", false),
        ("MAOS.MSET 2 k v mine:1 v BY a2", false),
        ("MAOS.SET mine:1 v BY a1", true),
        ("MAOS.SET mine:1 v", true),
        ("MAOS.DEL mine:1 BY a2", false),
        ("MAOS.GET mine:1", true),
    ] {
        let reply = conn.run(line);
        assert_eq!(!reply.is_err(), may, "{line}: {reply}");
        if !may {
            assert_eq!(reply.code(), "NOPERM", "{line}");
        }
    }
    assert_eq!(conn.run("EXISTS k").int(), 0);
    conn.run("MAOS.PARTITION CREATE p BYTES 100000 PREFIX p: HISTORY 3 MAXVALUE 100 TTL 600000 ONCONFLICT lww").int();
    for n in 0..10 {
        conn.run(&format!("MAOS.SET p:1 {n}")).int();
    }
    assert_eq!(conn.run("MAOS.HISTORY p:1").array().len(), 3);
    assert_eq!(
        cmd!(conn, "MAOS.SET", "p:2", "x".repeat(101)).code(),
        "TOOBIG"
    );
    cmd!(conn, "MAOS.SET", "free", "x".repeat(101)).int();
    assert!(conn.run("PTTL p:1").int() > 0);
    assert_eq!(conn.run("PTTL free").int(), -1);
    let versions = conn.run("MAOS.HISTORY p:1");
    let base = versions.array()[0].field("version").int();
    let lww = conn.run(&format!("MAOS.MERGE p:1 {base} mine"));
    assert_eq!(lww.array()[0].int(), 1, "{lww}");
    // Fewer versions, and for a shorter time: the pass sees to it.
    conn.run("MAOS.PARTITION ALTER p HISTORY 1").int();
    eventually(PATIENCE, "history goes", || {
        conn.run("MAOS.HISTORY p:1").array().len() == 1
    });
    conn.run("MAOS.PARTITION ALTER p HISTORY 0 MAXAGE 1").int();
    conn.run("MAOS.SET p:1 a").int();
    conn.run("MAOS.SET p:1 b").int();
    eventually(PATIENCE, "it grows old", || {
        conn.run("MAOS.HISTORY p:1").array().len() == 1
    });
    both_agree(&master, &replica, "policies");
}

#[test]
fn keys_that_were_there_before_join_as_far_as_there_is_room() {
    let mut master = Server::with(&[BUSY, ("appendonly", "yes"), ("appendfsync", "always")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    for n in 0..30 {
        conn.run(&format!("MAOS.SET old:{n:02} v")).int();
    }
    conn.run("MAOS.SET other v").int();
    conn.run("MAOS.LOCK old:lock a 1").array();
    conn.run("MAOS.PARTITION CREATE p BYTES 1000 PREFIX old:")
        .int();
    let room = |shown: &Reply| {
        let (used, keys) = (shown.field("used").int(), shown.field("keys").int());
        keys > 0 && used + used / keys > 1000
    };
    eventually(PATIENCE, "it is full", || room(&info(conn, "p")));
    assert!(used(conn, "p") <= 1000);
    both_agree(&master, &replica, "full");
    conn.run("MAOS.PARTITION ALTER p BYTES 100000").int();
    eventually(PATIENCE, "all are in", || keys(conn, "p") == 30);
    for n in 0..30 {
        assert_eq!(
            partition_of(conn, &format!("old:{n:02}")).as_deref(),
            Some("p")
        );
    }
    assert_eq!(partition_of(conn, "other"), None);
    // A longer prefix takes them, and gives them back.
    conn.run("MAOS.PARTITION CREATE zero BYTES 100000 PREFIX old:0")
        .int();
    eventually(PATIENCE, "ten move", || {
        keys(conn, "zero") == 10 && keys(conn, "p") == 20
    });
    conn.run("MAOS.SET other w PARTITION zero").int();
    both_agree(&master, &replica, "moved");
    conn.run("MAOS.PARTITION ALTER zero NOPREFIX").int();
    eventually(PATIENCE, "ten move back", || {
        keys(conn, "zero") == 1 && keys(conn, "p") == 30
    });
    assert_eq!(
        partition_of(conn, "other").as_deref(),
        Some("zero"),
        "named, it stays"
    );
    conn.run("MAOS.SET other x").int();
    assert_eq!(partition_of(conn, "other").as_deref(), Some("zero"));
    both_agree(&master, &replica, "moved back");
    assert_eq!(
        partition_of(&mut replica.conn(), "other").as_deref(),
        Some("zero")
    );
    let held = digest_all(conn);
    conn.run("BGREWRITEAOF");
    wait_rewritten(conn);
    for stop in [Stop::Kill, Stop::Save] {
        master.restart(stop);
        let conn = &mut master.conn();
        assert_eq!(digest_all(conn), held);
        assert_eq!(partition_of(conn, "other").as_deref(), Some("zero"));
        assert_eq!(partition_of(conn, "old:01").as_deref(), Some("p"));
        assert_eq!(keys(conn, "p"), 30);
        both_agree(&master, &replica, "after a restart");
    }
}

#[test]
fn what_is_copied_and_restored_needs_room_too() {
    let master = Server::with(&[REST]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 1000 PREFIX p:")
        .int();
    cmd!(conn, "MAOS.SET", "p:1", "x".repeat(400)).int();
    let dump = conn.run("DUMP p:1").bytes().to_vec();
    assert_eq!(conn.run("COPY p:1 p:2").int(), 1);
    let full = (used(conn, "p"), digest_all(conn));
    let copied = conn.run("COPY p:1 p:3");
    assert!(copied.is_err() || copied.int() == 0, "{copied}");
    for key in ["p:3", "else"] {
        let reply = cmd!(conn, "RESTORE", key, "0", dump);
        assert!(reply.is_err(), "{reply}");
    }
    assert_eq!((used(conn, "p"), digest_all(conn)), full);
    // What is refused in the middle of REPLACE leaves what was there.
    conn.run("SET plain v").ok();
    let reply = cmd!(conn, "RESTORE", "plain", "0", dump, "REPLACE");
    assert!(reply.is_err(), "{reply}");
    let copied = conn.run("COPY p:1 plain REPLACE");
    assert!(copied.is_err() || copied.int() == 0, "{copied}");
    assert_eq!(conn.run("GET plain").text(), "v");
    // Over itself it needs none.
    for _ in 0..3 {
        cmd!(conn, "RESTORE", "p:1", "0", dump, "REPLACE").ok();
    }
    assert_eq!(used(conn, "p"), full.0);
    both_agree(&master, &replica, "after all of it");
}

/// Where the server would free a record in a thread, its room is there for the next write all the same.
#[test]
fn the_room_of_a_deleted_record_is_there_at_once() {
    let lazy = ["user-del", "server-del"].map(|what| format!("lazyfree-lazy-{what}"));
    let lines = [
        (&*lazy[0], "yes"),
        (&*lazy[1], "yes"),
        ("maos.history-compress-min-bytes", "0"),
        REST,
    ];
    let server = Server::with(&lines);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 1000000 PREFIX p: HISTORY 300")
        .int();
    for round in 0..20 {
        // Versions as long as that lie by themselves.
        let lines: Vec<_> = (0..200)
            .map(|n| format!("MAOS.SET p:1 {}", "x".repeat(2100 + n)))
            .collect();
        for reply in conn.pipeline(&lines) {
            assert!(!reply.is_err(), "{reply}");
        }
        assert!(used(conn, "p") > 200_000);
        conn.run("MULTI").ok();
        conn.run("DEL p:1");
        conn.run("MAOS.PARTITION INFO p");
        let done = conn.run("EXEC");
        assert_eq!(done.array()[1].field("used").int(), 0, "{round}");
    }
}

/// A key that a plain command brings under a prefix needs room like any, and is charged at once.
#[test]
fn what_comes_under_a_prefix_needs_room_and_is_charged() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.PARTITION CREATE p BYTES 2000 PREFIX p:")
        .int();
    conn.run("MAOS.PARTITION CREATE q BYTES 100000 PREFIX q:")
        .int();
    cmd!(conn, "MAOS.SET", "free", "x".repeat(400)).int();
    cmd!(conn, "MAOS.SET", "q:1", "x".repeat(400)).int();
    let dump = conn.run("DUMP free").bytes().to_vec();
    let mut came = 0;
    for n in 0..20 {
        let (by_copy, to) = (n % 2 == 0, format!("p:{n}"));
        let reply = match by_copy {
            true => cmd!(conn, "COPY", "free", &to),
            false => cmd!(conn, "RESTORE", &to, "0", dump),
        };
        if !reply.is_err() && reply != Reply::Int(0) {
            came += 1;
            eventually(PATIENCE, "it is charged", || keys(conn, "p") == came);
        }
        assert!(used(conn, "p") <= 2000);
    }
    assert!((2..=4).contains(&came), "{came}");
    // From one partition to another.
    assert_eq!(conn.run("COPY free q:2").int(), 1);
    eventually(PATIENCE, "it is charged", || keys(conn, "q") == 2);
    conn.run("DEL p:0").int();
    assert_eq!(conn.run("COPY q:1 p:0").int(), 1);
    eventually(PATIENCE, "it is where it belongs", || {
        partition_of(conn, "p:0").as_deref() == Some("p")
    });
    assert_eq!((keys(conn, "p"), keys(conn, "q")), (came, 2));
    both_agree(&master, &replica, "all of it");
}

#[test]
fn what_comes_with_the_name_of_no_partition_belongs_to_it_when_there_is_one() {
    let master = Server::with(&[BUSY]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let make = "MAOS.PARTITION CREATE p BYTES 100000 PREFIX p:";
    for named in ["p:1", "elsewhere"] {
        conn.run(make).int();
        cmd!(conn, "MAOS.SET", named, "v", "PARTITION", "p").int();
        let dump = conn.run(&format!("DUMP {named}")).bytes().to_vec();
        conn.run(&format!("DEL {named}")).int();
        conn.run("MAOS.PARTITION DROP p FORCE");
        cmd!(conn, "RESTORE", named, "0", dump).ok();
        both_agree(&master, &replica, "an orphan");
        conn.run(make).int();
        eventually(PATIENCE, "it is charged", || keys(conn, "p") == 1);
        both_agree(&master, &replica, "it has a partition");
        conn.run(&format!("DEL {named}")).int();
        conn.run("MAOS.PARTITION DROP p FORCE");
    }
}

#[test]
fn databases_that_change_places_take_their_partitions_along_at_once() {
    let server = Server::with(&[REST]);
    let conn = &mut server.conn();
    for n in 0..5 {
        conn.run(&format!(
            "MAOS.PARTITION CREATE p{n} BYTES 1000 PREFIX p{n}:"
        ))
        .int();
        cmd!(conn, "MAOS.SET", format!("p{n}:a"), "x".repeat(600)).int();
    }
    for (swap, copied) in [("0 3", "p1:a"), ("3 1", "p2:a"), ("1 0", "p3:a")] {
        conn.run(&format!("SWAPDB {swap}")).ok();
        assert_eq!(conn.run("MAOS.PARTITION LIST").array().len(), 5, "{swap}");
        let big = "x".repeat(600);
        assert_eq!(cmd!(conn, "MAOS.SET", "p0:b", &big).code(), "QUOTA");
        let db = swap.rsplit(' ').next().unwrap();
        conn.run(&format!("SELECT {db}")).ok();
        let reply = conn.run(&format!("COPY {copied} else"));
        assert!(reply.is_err() || reply.int() == 0, "{swap}: {reply}");
        assert!(!conn.run("MAOS.PARTITION DROP p4 FORCE").is_err());
        conn.run("MAOS.PARTITION CREATE p4 BYTES 1000 PREFIX p4:")
            .int();
    }
}

// ---------------------------------------------------------------------------------------------
// The key of a partition
// ---------------------------------------------------------------------------------------------

#[test]
fn a_partition_is_a_key_like_any() {
    let master = Server::with(&[BUSY]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let make =
        "MAOS.PARTITION CREATE p BYTES 1000 PREFIX p: HISTORY 5 ONFULL evict ONCONFLICT merge";
    conn.run(make).int();
    assert_eq!(conn.run("TYPE p").text(), "MaosShare");
    assert_eq!(conn.run("EXISTS p").int(), 1);
    assert!(conn.run("MEMORY USAGE p").int() > 50);
    assert!(!conn.run("OBJECT ENCODING p").is_err());
    assert!(!conn.run("OBJECT FREQ p").is_nil());
    let found = conn.run("SCAN 0 TYPE MaosShare COUNT 1000");
    assert_eq!(found.array()[1].array().len(), 1);
    // Neither is the other.
    conn.run("MAOS.SET state v").int();
    conn.run("SET plain v").ok();
    for line in [
        "MAOS.GET p",
        "MAOS.SET p v",
        "MAOS.DEL p",
        "MAOS.LOCK p a 1000",
        "MAOS.MSET 2 free v p v",
        "MAOS.HISTORY p",
        "GET p",
        "INCR p",
        "APPEND p x",
    ] {
        assert_eq!(conn.run(line).code(), "WRONGTYPE", "{line}");
    }
    for key in ["state", "plain"] {
        for line in [
            "CREATE KEY BYTES 10",
            "ALTER KEY BYTES 10",
            "DROP KEY FORCE",
            "INFO KEY",
        ] {
            let reply = conn.run(&format!("MAOS.PARTITION {}", line.replace("KEY", key)));
            assert_eq!(reply.code(), "WRONGTYPE", "{line} {key}");
        }
    }
    assert_eq!(conn.run("EXISTS free").int(), 0);
    let copied = conn.run("COPY p q");
    assert!(copied.is_err() || copied.int() == 0, "{copied}");
    assert_eq!(conn.run("EXISTS q").int(), 0);
    // DUMP and RESTORE.
    let shown = |conn: &mut Conn, name: &str| {
        let shown = info(conn, name);
        [
            "type",
            "quota",
            "prefixes",
            "onfull",
            "onconflict",
            "history",
            "version",
            "keys",
            "used",
        ]
        .map(|f| shown.field(f).to_string())
    };
    conn.run("MAOS.SET p:1 v").int();
    let before = shown(conn, "p");
    let dump = conn.run("DUMP p").bytes().to_vec();
    assert_eq!(conn.run("DEL p").int(), 1);
    assert_eq!(conn.run("MAOS.PARTITION INFO p").code(), "NOTFOUND");
    cmd!(conn, "RESTORE", "p", "0", dump).ok();
    assert_eq!(shown(conn, "p"), before);
    both_agree(&master, &replica, "restored");
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(shown(conn, "p"), before);
    // RENAME: it is the partition of that name, and the keys that its prefixes fit become its own.
    conn.run("RENAME p r").ok();
    assert_eq!(conn.run("MAOS.PARTITION INFO p").code(), "NOTFOUND");
    eventually(PATIENCE, "it is known", || {
        !conn.run("MAOS.PARTITION INFO r").is_err()
    });
    conn.run("MAOS.SET p:2 v").int();
    assert_eq!(partition_of(conn, "p:2").as_deref(), Some("r"));
    eventually(PATIENCE, "its keys follow", || keys(conn, "r") == 2);
    both_agree(&master, &replica, "renamed");
    // Another database: the same partition.
    assert_eq!(conn.run("MOVE r 3").int(), 1);
    eventually(PATIENCE, "it is known", || {
        !cmd!(conn, "MAOS.SET", "k", "v", "PARTITION", "r").is_err()
    });
    assert_eq!(keys(conn, "r"), 3);
    assert_eq!(
        conn.run("MAOS.PARTITION ALTER r BYTES 2000").code(),
        "NOTFOUND"
    );
    assert_eq!(
        conn.run("MAOS.PARTITION CREATE r BYTES 2000").code(),
        "EXISTS"
    );
    conn.run("SELECT 3").ok();
    conn.run("MAOS.PARTITION ALTER r BYTES 2000").int();
    conn.run("SELECT 0").ok();
    conn.run("SWAPDB 0 3").ok();
    assert_eq!(conn.run("MAOS.PARTITION DROP r FORCE").int(), 3);
    conn.run("SWAPDB 0 3").ok();
    wait_synced(&master, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    // MULTI and WATCH.
    let mut watches = master.conn();
    conn.run("MULTI").ok();
    conn.run(make);
    conn.run("MAOS.SET p:9 v");
    conn.run("MAOS.SET k v PARTITION p");
    conn.run("MAOS.PARTITION INFO p");
    let exec = conn.run("EXEC");
    assert!(exec.array().iter().all(|r| !r.is_err()), "{exec}");
    for line in [
        "MAOS.PARTITION ALTER p BYTES 3000",
        "MAOS.PARTITION DROP p FORCE",
        make,
        "DEL p",
    ] {
        watches.run("WATCH p").ok();
        assert!(!conn.run(line).is_err(), "{line}");
        watches.run("MULTI").ok();
        watches.run("PING");
        assert!(watches.run("EXEC").is_nil(), "{line}");
    }
    for line in [
        "MAOS.PARTITION ALTER p BYTES 3000",
        "MAOS.PARTITION DROP p FORCE",
    ] {
        watches.run("WATCH p").ok();
        assert_eq!(conn.run(line).code(), "NOTFOUND");
        watches.run("MULTI").ok();
        watches.run("PING");
        assert!(!watches.run("EXEC").is_nil(), "{line}");
    }
    // A replica is read-only.
    conn.run(make).int();
    wait_synced(&master, &replica);
    let there = &mut replica.conn();
    assert_eq!(
        there.run("MAOS.PARTITION CREATE x BYTES 10").code(),
        "READONLY"
    );
    assert_eq!(
        there.run("MAOS.PARTITION ALTER p BYTES 10").code(),
        "READONLY"
    );
    assert_eq!(there.run("MAOS.PARTITION DROP p FORCE").code(), "READONLY");
    assert_eq!(info(there, "p").field("quota").int(), 1000);
    assert_eq!(metric(conn, "panics") + metric(there, "panics"), 0);
}

/// The server names HELP to whoever mistypes a subcommand.
#[test]
fn help_names_every_subcommand() {
    let server = Server::start();
    let conn = &mut server.conn();
    let wrong = conn.run("MAOS.PARTITION MAKE p");
    assert!(wrong.err().contains("MAOS.PARTITION HELP"), "{wrong}");
    let help = conn.run("MAOS.PARTITION HELP");
    let lines: Vec<_> = help.array().iter().map(|l| l.text()).collect();
    for sub in ["CREATE", "ALTER", "DROP", "INFO", "LIST", "POOL", "HELP"] {
        let usage = format!("MAOS.PARTITION {sub}");
        assert!(lines.iter().any(|l| l.starts_with(&usage)), "{lines:?}");
    }
    assert!(lines[0].contains("[PREFIX "), "{}", lines[0]);
}

#[test]
fn the_pool_is_what_the_setting_says() {
    let server = Server::with(&[("maos.pool-bytes", "1000")]);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE a BYTES 700").int();
    let refused = conn.run("MAOS.PARTITION CREATE b BYTES 400");
    assert_eq!(refused.code(), "POOLFULL", "{refused}");
    conn.run("CONFIG SET maos.pool-bytes 1100").ok();
    conn.run("MAOS.PARTITION CREATE b BYTES 400").int();
    let pool = conn.run("MAOS.PARTITION POOL");
    assert_eq!(pool.field("bytes").int(), 1100);
    assert_eq!(pool.field("reserved").int(), 1100);
    assert_eq!(pool.field("free").int(), 0);
    assert_eq!(
        conn.run("MAOS.PARTITION ALTER a BYTES 701").code(),
        "POOLFULL"
    );
    // A smaller one takes nothing away.
    conn.run("CONFIG SET maos.pool-bytes 100").ok();
    let pool = conn.run("MAOS.PARTITION POOL");
    assert_eq!(
        (pool.field("reserved").int(), pool.field("free").int()),
        (1100, 0)
    );
    conn.run("MAOS.SET k v PARTITION a").int();
    conn.run("MAOS.PARTITION ALTER a BYTES 600").int();
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(info(conn, "a").field("quota").int(), 600);
    conn.run("DEL a b").int();
    assert_eq!(conn.run("MAOS.PARTITION POOL").field("reserved").int(), 0);
    assert_eq!(
        conn.run("MAOS.PARTITION CREATE c BYTES 101").code(),
        "POOLFULL"
    );
    conn.run("MAOS.PARTITION CREATE c BYTES 100").int();
    for bad in ["-1", "x", "99999999999999999999"] {
        assert!(cmd!(conn, "CONFIG", "SET", "maos.pool-bytes", bad).is_err());
    }
}
