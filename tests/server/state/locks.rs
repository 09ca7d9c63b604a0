//! Locks live inside records: they end by the master's clock, travel as facts, survive restarts and
//! failovers, and what a stale holder writes is refused wherever it comes from.

use super::{has_failpoints, metric};
use crate::harness::*;

/// Nothing goes by itself between two looks.
const STILL: (&str, &str) = ("maos.background-effort-us", "0");

/// The token of a lock that is granted.
#[track_caller]
fn lock(conn: &mut Conn, key: &str, owner: &str, rest: &str) -> i64 {
    let reply = conn.run(&format!("MAOS.LOCK {key} {owner} {rest}"));
    reply.array()[0].int()
}

fn holders(conn: &mut Conn, key: &str) -> Vec<String> {
    let locks = conn.run(&format!("MAOS.LOCKS {key}"));
    let holders = locks.field("holders").array().iter();
    holders
        .map(|h| h.field("owner").text().to_owned())
        .collect()
}

/// Keys held in every way; a token for each.
fn fill(conn: &mut Conn) -> Vec<(&'static str, i64)> {
    conn.run("MAOS.SET held v FENCE zk 7").int();
    conn.run("MAOS.SET gone v").int();
    conn.run("MAOS.SET old v").int();
    let mut all = vec![
        ("held", lock(conn, "held", "a", "600000 NOTE nightly")),
        ("bare", lock(conn, "bare", "a", "600000")),
        ("shared", lock(conn, "shared", "a", "600000 SHARED")),
        ("gone", lock(conn, "gone", "a", "600000")),
        ("lax", lock(conn, "lax", "a", "600000 ADVISORY")),
    ];
    all.push(("shared", lock(conn, "shared", "b", "600000 SHARED")));
    lock(conn, "held", "a", "1000");
    conn.run(&format!("MAOS.DEL gone TOKEN {}", all[3].1)).int();
    lock(conn, "old", "a", "1");
    all
}

/// What a node shows of locked keys.
fn picture(conn: &mut Conn) -> Vec<String> {
    let mut seen = vec![];
    for key in ["held", "bare", "shared", "gone", "lax", "old"] {
        seen.push(format!("{key} {}", digest(conn, key)));
        seen.push(conn.run(&format!("PEXPIRETIME {key}")).to_string());
        seen.push(conn.run(&format!("MAOS.LOCKS {key}")).to_string());
    }
    seen
}

/// The holders hold, nobody else writes, and what is granted next has a higher token.
#[track_caller]
fn goes_on(conn: &mut Conn, all: &[(&str, i64)]) {
    let highest = all.iter().map(|(_, token)| *token).max().expect("one");
    for key in ["held", "bare", "gone"] {
        assert_eq!(conn.run(&format!("MAOS.SET {key} x")).code(), "LOCKED");
        assert!(conn.run(&format!("MAOS.LOCK {key} b 1000")).is_nil());
    }
    for (key, token) in all {
        conn.run(&format!("MAOS.SET {key} x TOKEN {token}")).int();
    }
    assert_eq!(conn.run("MAOS.SET held x FENCE zk 6").code(), "LOCKED");
    let (_, token) = all[0];
    let lower = conn.run(&format!("MAOS.SET held x TOKEN {token} FENCE zk 6"));
    assert_eq!(lower.code(), "FENCED");
    // Taken three times.
    assert_eq!(conn.run(&format!("MAOS.UNLOCK held {token}")).int(), 1);
    assert_eq!(conn.run(&format!("MAOS.UNLOCK held {token}")).int(), 0);
    assert!(lock(conn, "held", "b", "1000") > highest);
    assert_eq!(
        conn.run(&format!("MAOS.SET held x TOKEN {token}")).code(),
        "FENCED"
    );
}

#[test]
fn a_lease_ends_by_the_clock_and_its_holder_with_it() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET valued v").int();
    for key in ["valued", "bare"] {
        let token = lock(conn, key, "a", "600000");
        assert_eq!(conn.run(&format!("MAOS.SET {key} x")).code(), "LOCKED");
        conn.run(&format!("MAOS.RENEW {key} {token} 1")).int();
        eventually(PATIENCE, "the lease ends", || holders(conn, key).is_empty());
        // A key without a value goes with it, when the server's millisecond is over too.
        let there = i64::from(key == "valued");
        eventually(PATIENCE, "the key is gone, or stays", || {
            conn.run(&format!("EXISTS {key}")).int() == there
        });
        let late = [
            format!("MAOS.UNLOCK {key} {token}"),
            format!("MAOS.RENEW {key} {token} 1000"),
            format!("MAOS.SET {key} x TOKEN {token}"),
        ];
        for line in late {
            assert_eq!(conn.run(&line).code(), "FENCED", "{line}");
        }
        assert!(lock(conn, key, "b", "600000") > token);
        let stale = conn.run(&format!("MAOS.SET {key} x TOKEN {token}"));
        assert_eq!(stale.code(), "FENCED");
        assert_eq!(holders(conn, key), ["b"]);
    }
    // Others who share it go on without the one whose lease has ended.
    let first = lock(conn, "s", "a", "600000 SHARED");
    let second = lock(conn, "s", "b", "600000 SHARED");
    conn.run(&format!("MAOS.RENEW s {first} 1")).int();
    eventually(PATIENCE, "the lease ends", || holders(conn, "s") == ["b"]);
    assert_eq!(conn.run(&format!("MAOS.UNLOCK s {first}")).code(), "FENCED");
    let alone = lock(conn, "s", "b", "600000");
    assert_eq!(alone, second, "alone it becomes exclusive");
    assert_eq!(conn.run("MAOS.SET s x").code(), "LOCKED");
}

/// A record whose holder is late says so nowhere, and does not stay so.
#[test]
fn the_end_of_a_lease_reaches_replicas() {
    let master = Server::with(&[("maos.background-effort-us", "50000")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let plain = {
        conn.run("MAOS.SET k v").int();
        digest(conn, "k")
    };
    lock(conn, "k", "a", "1");
    eventually(PATIENCE, "the holder goes", || digest(conn, "k") == plain);
    wait_synced(&master, &replica);
    assert_eq!(digest(&mut replica.conn(), "k"), plain);
}

#[test]
fn renewing_and_taking_again_keep_the_token() {
    let server = Server::start();
    let conn = &mut server.conn();
    let token = lock(conn, "k", "a", "60000");
    let renewed = conn.run(&format!("MAOS.RENEW k {token} 600000")).int();
    assert_eq!(conn.run("PEXPIRETIME k").int(), renewed);
    // A shorter one does not shorten what is there; RENEW may.
    let again = conn.run("MAOS.LOCK k a 1000");
    assert_eq!(again.array()[0].int(), token);
    assert_eq!(again.array()[1].int(), renewed);
    let shorter = conn.run(&format!("MAOS.RENEW k {token} 100")).int();
    assert!(shorter < renewed);
    eventually(PATIENCE, "the shorter lease ends", || {
        conn.run("EXISTS k").int() == 0
    });
}

#[test]
fn an_empty_record_leaves_no_key() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    for key in ["k", "{t}a"] {
        let token = lock(conn, key, "a", "60000");
        assert_eq!(conn.run(&format!("EXISTS {key}")).int(), 1);
        assert!(conn.run(&format!("MAOS.GET {key}")).is_nil());
        assert_eq!(conn.run(&format!("MAOS.UNLOCK {key} {token}")).int(), 0);
        assert_eq!(conn.run(&format!("EXISTS {key}")).int(), 0);
    }
    let granted = conn.run("MAOS.MLOCK 2 {t}a {t}b a 60000");
    let token = granted.array()[0].array()[0].int();
    wait_synced(&master, &replica);
    assert_eq!(replica.conn().run("DBSIZE").int(), 2);
    for key in ["{t}a", "{t}b"] {
        conn.run(&format!("MAOS.UNLOCK {key} {token}")).int();
    }
    wait_synced(&master, &replica);
    assert_eq!(conn.run("DBSIZE").int(), 0);
    assert_eq!(replica.conn().run("DBSIZE").int(), 0);
    assert_eq!(metric(conn, "records"), 0);
    assert_eq!(metric(&mut replica.conn(), "records"), 0);
}

#[test]
fn what_ends_the_key_ends_the_lock() {
    let server = Server::start();
    let conn = &mut server.conn();
    let dump = {
        conn.run("MAOS.SET other v").int();
        conn.run("DUMP other").bytes().to_vec()
    };
    for end in [
        "DEL k",
        "UNLINK k",
        "PEXPIRE k 1",
        "FLUSHALL",
        "SET k v",
        "RESTORE",
    ] {
        conn.run("DEL k");
        conn.run("MAOS.SET k v").int();
        let token = lock(conn, "k", "a", "600000");
        match end {
            "RESTORE" => cmd!(conn, "RESTORE", "k", "0", dump, "REPLACE").ok(),
            end => assert!(!conn.run(end).is_err()),
        }
        if end.starts_with("PEXPIRE") {
            eventually(PATIENCE, "the key expires", || {
                conn.run("EXISTS k").int() == 0
            });
        }
        if end.starts_with("SET") {
            assert_eq!(conn.run("DEL k").int(), 1);
        }
        for late in [
            format!("MAOS.SET k x TOKEN {token}"),
            format!("MAOS.UNLOCK k {token}"),
        ] {
            assert_eq!(conn.run(&late).code(), "FENCED", "{end}: {late}");
        }
        assert!(lock(conn, "k", "b", "600000") > token, "{end}");
        let late = conn.run(&format!("MAOS.SET k x TOKEN {token}"));
        assert_eq!(late.code(), "FENCED", "{end}");
    }
}

#[test]
fn the_tombstone_of_a_locked_key_outlasts_the_lease() {
    let server = Server::with(&[("maos.tombstone-ttl", "1")]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    let token = lock(conn, "k", "a", "600000");
    conn.run(&format!("MAOS.DEL k TOKEN {token}")).int();
    assert!(conn.run("PTTL k").int() > 500_000);
    assert_eq!(conn.run("MAOS.SET k x").code(), "LOCKED");
    // And one that is there already.
    conn.run("MAOS.SET j v").int();
    conn.run("MAOS.DEL j").int();
    assert!(conn.run("PTTL j").int() <= 1000);
    let token = lock(conn, "j", "a", "600000");
    assert!(conn.run("PTTL j").int() > 500_000);
    conn.run(&format!("MAOS.SET j x TOKEN {token}")).int();
    assert_eq!(conn.run("PTTL j").int(), -1);
}

#[test]
fn locks_are_on_every_node_and_survive_every_restart() {
    let mut master = Server::with(&[("appendonly", "yes"), STILL]);
    let mut replica = replica_of(&master);
    let all = fill(&mut master.conn());
    let late = replica_of(&master);
    eventually(PATIENCE, "the short lease ends", || {
        holders(&mut master.conn(), "old").is_empty()
    });
    wait_synced(&master, &replica);
    let there = picture(&mut master.conn());
    assert_eq!(picture(&mut replica.conn()), there, "the replica");
    assert_eq!(picture(&mut late.conn()), there, "a full copy");
    assert_eq!(replica.conn().run("MAOS.LOCK x a 1").code(), "READONLY");
    master.conn().run("DEBUG RELOAD").ok();
    assert_eq!(picture(&mut master.conn()), there, "reloaded");
    master.restart(Stop::Kill);
    assert_eq!(picture(&mut master.conn()), there, "from the AOF");
    master.conn().run("BGREWRITEAOF");
    super::persistence::wait_rewritten(&mut master.conn());
    master.restart(Stop::Kill);
    assert_eq!(picture(&mut master.conn()), there, "from the rewritten AOF");
    replica.conn().run("REPLICAOF NO ONE").ok();
    goes_on(&mut replica.conn(), &all);
    replica.restart(Stop::Save);
    goes_on(&mut master.conn(), &all);
}

#[test]
fn a_rewritten_aof_without_preamble_keeps_locks() {
    let lines = [("appendonly", "yes"), ("aof-use-rdb-preamble", "no"), STILL];
    let mut server = Server::with(&lines);
    let all = fill(&mut server.conn());
    eventually(PATIENCE, "the short lease ends", || {
        holders(&mut server.conn(), "old").is_empty()
    });
    let there = picture(&mut server.conn());
    server.conn().run("BGREWRITEAOF");
    super::persistence::wait_rewritten(&mut server.conn());
    server.restart(Stop::Kill);
    assert_eq!(picture(&mut server.conn()), there);
    goes_on(&mut server.conn(), &all);
}

#[test]
fn a_lock_moves_with_its_key_and_is_not_copied() {
    let mut master = Server::with(&[("appendonly", "yes")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.SET k v FENCE zk 7").int();
    let token = lock(conn, "k", "a", "600000");
    let bare = lock(conn, "bare", "a", "600000");
    assert_eq!(conn.run("COPY k copied").int(), 1);
    conn.run("MAOS.SET copied x").int();
    assert_eq!(conn.run("MAOS.SET copied x FENCE zk 6").code(), "FENCED");
    assert!(conn.run("COPY bare none").is_err());
    let (dump, nothing) = (
        conn.run("DUMP k").bytes().to_vec(),
        conn.run("DUMP bare").bytes().to_vec(),
    );
    for (key, dump, taken) in [
        ("k", &dump, true),
        ("new", &dump, true),
        ("bare", &nothing, false),
    ] {
        conn.run("MAOS.SET old v").int();
        let reply = cmd!(conn, "RESTORE", key, "0", dump, "REPLACE");
        assert_eq!(!reply.is_err(), taken, "{key}: {reply}");
    }
    for key in ["k", "new"] {
        let stale = conn.run(&format!("MAOS.SET {key} x TOKEN {token}"));
        assert_eq!(stale.code(), "FENCED", "{key}: a lock came back");
        assert_eq!(holders(conn, key), Vec::<String>::new());
    }
    // What could not be restored is as it was.
    assert_eq!(holders(conn, "bare"), ["a"]);
    conn.run("RENAME bare named").ok();
    assert_eq!(conn.run("MOVE named 1").int(), 1);
    conn.run("SWAPDB 0 1").ok();
    assert_eq!(conn.run("MAOS.SET named x").code(), "LOCKED");
    conn.run(&format!("MAOS.SET named x TOKEN {bare}")).int();
    // A tombstone with a lock comes as a tombstone.
    conn.run("MAOS.SET gone v").int();
    let last = lock(conn, "gone", "a", "600000");
    conn.run(&format!("MAOS.DEL gone TOKEN {last}")).int();
    let dump = conn.run("DUMP gone").bytes().to_vec();
    cmd!(conn, "RESTORE", "gone2", "0", dump).ok();
    conn.run("MAOS.SET gone2 x").int();
    wait_synced(&master, &replica);
    let held = digest_all(conn);
    assert_eq!(digest_all(&mut replica.conn()), held);
    assert_eq!(metric(&mut replica.conn(), "damaged"), 0);
    master.restart(Stop::Kill);
    assert_eq!(digest_all(&mut master.conn()), held, "the AOF");
}

#[test]
fn a_lock_goes_along_when_a_slot_moves() {
    let cluster = Cluster::start(3, 0);
    let from = cluster.node_for("{m}a");
    let to = cluster.another(from);
    let conn = &mut from.conn();
    conn.run("MAOS.SET {m}a v").int();
    let all = [
        ("{m}a", lock(conn, "{m}a", "a", "600000")),
        ("{m}bare", lock(conn, "{m}bare", "a", "600000")),
    ];
    let before = all.map(|(key, _)| digest(conn, key));
    cluster.move_slot(slot_of(b"{m}a"), to);
    let there = &mut to.conn();
    assert_eq!(all.map(|(key, _)| digest(there, key)), before);
    for (key, token) in all {
        assert_eq!(there.run(&format!("MAOS.SET {key} x")).code(), "LOCKED");
        there.run(&format!("MAOS.SET {key} x TOKEN {token}")).int();
        assert_eq!(there.run(&format!("MAOS.UNLOCK {key} {token}")).int(), 0);
        assert!(lock(there, key, "b", "1000") > token);
    }
    assert_eq!(conn.run("MAOS.LOCK {m}a c 1000").code(), "MOVED");
    let apart = to.conn().run("MAOS.MLOCK 2 {m}a other a 1000");
    assert_eq!(apart.code(), "CROSSSLOT");
}

#[test]
fn one_of_many_owners_gets_it() {
    let server = Server::start();
    for round in 0..20 {
        let key = format!("k{round}");
        let tokens: Vec<i64> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|n| {
                    let (server, key) = (&server, &key);
                    scope.spawn(move || {
                        let line = format!("MAOS.LOCK {key} owner-{n} 600000");
                        let reply = server.conn().run(&line);
                        (!reply.is_nil()).then(|| reply.array()[0].int())
                    })
                })
                .collect();
            let tries = tries.into_iter();
            tries.filter_map(|t| t.join().expect("no panic")).collect()
        });
        assert_eq!(tokens.len(), 1, "{key}");
    }
}

#[test]
fn scripts_and_transactions_get_an_answer_at_once() {
    let server = Server::start();
    let (conn, other) = (&mut server.conn(), &mut server.conn());
    let token = lock(other, "k", "a", "600000");
    let script = "return redis.call('MAOS.LOCK', KEYS[1], 'b', 1000)";
    assert!(cmd!(conn, "EVAL", script, "1", "k").is_nil());
    let replies = conn.pipeline(&[
        "MULTI".to_owned(),
        "MAOS.LOCK k b 1000".into(),
        format!("MAOS.SET k v TOKEN {token}"),
        "MAOS.SET k w".into(),
        format!("MAOS.UNLOCK k {token}"),
        "MAOS.LOCK k b 1000".into(),
        "EXEC".into(),
    ]);
    let exec = replies[6].array();
    assert!(exec[0].is_nil());
    assert!(exec[1].int() > token);
    assert_eq!(exec[2].code(), "LOCKED");
    assert_eq!(exec[3].int(), 0);
    assert!(exec[4].array()[0].int() > token);
    // WATCH sees a lock come and go: what is written under it depends on it.
    conn.run("WATCH k").ok();
    other.run("DEL k");
    conn.run("MULTI").ok();
    conn.run("PING");
    assert!(conn.run("EXEC").is_nil());
}

#[test]
fn a_clock_that_steps_back_gives_no_token_twice() {
    let server = Server::start();
    let conn = &mut server.conn();
    if !has_failpoints(conn) {
        println!("skipped: this build has no failpoints");
        return;
    }
    let mut last = 0;
    for offset in [0, 5_000, -600_000, -3_600_000, 0] {
        conn.run(&format!("MAOS.FAIL clock {offset}")).int();
        for key in ["k", "j"] {
            conn.run("DEL k j");
            let token = lock(conn, key, "a", "1000");
            assert!(token > last, "{offset}: {token} after {last}");
            last = token;
        }
    }
}

#[test]
fn bounds_hold() {
    let server = Server::start();
    let conn = &mut server.conn();
    let long = "o".repeat(257);
    assert_eq!(cmd!(conn, "MAOS.LOCK", "k", long, "1000").code(), "TOOBIG");
    let huge = "o".repeat(1 << 20);
    assert_eq!(cmd!(conn, "MAOS.LOCK", "k", huge, "1000").code(), "TOOBIG");
    let note = "n".repeat(1025);
    let reply = cmd!(conn, "MAOS.LOCK", "k", "a", "1000", "NOTE", note);
    assert_eq!(reply.code(), "TOOBIG");
    for ttl in [
        "0",
        "-1",
        "31536000001",
        "9223372036854775807",
        "9223372036854775808",
        "1.5",
        "",
    ] {
        assert_eq!(
            cmd!(conn, "MAOS.LOCK", "k", "a", ttl).code(),
            "ERR",
            "{ttl}"
        );
    }
    assert_eq!(conn.run("EXISTS k").int(), 0);
    for n in 0..256 {
        lock(conn, "k", &format!("owner-{n}"), "600000 SHARED");
    }
    let more = conn.run("MAOS.LOCK k one-more 1000 SHARED");
    assert_eq!(more.code(), "LIMIT");
    assert_eq!(holders(conn, "k").len(), 256);
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(holders(conn, "k").len(), 256);
    for n in 0..8 {
        conn.run(&format!("MAOS.SET f v FENCE lock-{n} 1")).int();
    }
    let more = conn.run("MAOS.SET f v FENCE lock-8 1");
    assert_eq!(more.code(), "LIMIT");
    conn.run("MAOS.SET f v FENCE lock-7 2").int();
    let tokens = " TOKEN 5".repeat(129);
    let many = conn.run(&format!("MAOS.MSET 1 f v{tokens}"));
    assert_eq!(many.code(), "LIMIT");
    let twice = conn.run("MAOS.SET f v TOKEN 5 TOKEN 6");
    assert_eq!(twice.code(), "ERR");
}
