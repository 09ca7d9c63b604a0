//! MAOS.WATCH: whoever goes on from its cursor reads every change, in order and once, or is told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use maos_core::generate::Rng;

use super::oracle::now_us;
use super::persistence::wait_rewritten;
use super::{metric, replica_of};
use crate::harness::*;

/// How late an answer may be. The machine may be busy; what hangs takes longer than this.
const LATE: Duration = Duration::from_secs(60);

/// The cursor of a reply, and its events as `type key version previous by`.
#[track_caller]
fn told(reply: &Reply) -> (String, Vec<String>) {
    let [cursor, events] = reply.array() else {
        panic!("{reply}");
    };
    let shown = |event: &Reply| {
        let text = |name: &str| match event.field(name) {
            field if field.is_nil() => "-".to_string(),
            field => field.text().to_string(),
        };
        format!(
            "{} {} {} {} {}",
            text("type"),
            text("key"),
            event.field("version").int(),
            event.field("previous").int(),
            text("agent")
        )
    };
    let events = events.array().iter().map(shown);
    (cursor.text().to_string(), events.collect())
}

/// The same, without the numbers: `type key`.
#[track_caller]
fn words(reply: &Reply) -> Vec<String> {
    let word = |line: String| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    told(reply).1.into_iter().map(word).collect()
}

/// The position of a cursor.
#[track_caller]
fn at(cursor: &str) -> i64 {
    let (at, _) = cursor.split_once('-').expect("a position and a reign");
    at.parse().expect("a number")
}

/// Where the log is now.
fn now(conn: &mut Conn) -> String {
    told(&conn.run("MAOS.WATCH nothing")).0
}

fn seed() -> u64 {
    let given = std::env::var("MAOS_TEST_SEED").ok();
    given.and_then(|s| s.parse().ok()).unwrap_or_else(now_us)
}

/// A connection that waits, once it does.
#[track_caller]
fn watcher(server: &Server, line: &str) -> Conn {
    let before = metric(&mut server.conn(), "watchers");
    let mut conn = server.conn();
    conn.set_timeout(LATE);
    conn.send(&split_line(line).expect("a line"));
    eventually(PATIENCE, "it waits", || {
        metric(&mut server.conn(), "watchers") == before + 1
    });
    conn
}

#[track_caller]
fn nobody_waits(server: &Server) {
    eventually(PATIENCE, "nobody waits", || {
        metric(&mut server.conn(), "watchers") == 0
    });
}

/// Everything that is done to keys, by our commands and by the server's, is told in the order in which it was done; and
/// a replica says the same, to the number.
#[test]
fn every_change_is_told_in_order_here_and_on_replicas() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let start = now(conn);
    let v1 = conn.run("MAOS.SET k 1 BY planner").int();
    let v2 = conn.run("MAOS.SET k 2 BY worker").int();
    let v3 = conn.run("MAOS.DEL k").int();
    let v4 = conn.run("MAOS.ROLLBACK k VERSION -1 BY operator").int();
    let many = conn.run("MAOS.MSET 2 k 3 l 1").int();
    conn.run("MULTI").ok();
    conn.run("MAOS.SET l 2");
    conn.run("MAOS.PATCH l '{\"a\":1}'");
    let both = conn.run("EXEC");
    let [one, two] = [0, 1].map(|n| both.array()[n].int());
    let script = "return redis.call('maos.incrby', KEYS[1], 1)[1]";
    let counted = cmd!(conn, "EVAL", script, "1", "n").int();
    let lease = conn.run("MAOS.LOCK k me 60000").array()[0].int();
    conn.run(&format!("MAOS.UNLOCK k {lease}")).int();
    let expected = [
        format!("created k {v1} 0 planner"),
        format!("updated k {v2} {v1} worker"),
        format!("deleted k {v3} {v2} -"),
        format!("rolledback k {v4} 0 operator"),
        format!("updated k {many} {v4} -"),
        format!("created l {many} 0 -"),
        format!("updated l {one} {many} -"),
        format!("updated l {two} {one} -"),
        format!("created n {counted} 0 -"),
        format!("locked k {lease} {many} -"),
    ];
    let all = format!("MAOS.WATCH * SINCE {start}");
    let reply = conn.run(&all);
    let (cursor, events) = told(&reply);
    assert_eq!(events[..10], expected);
    assert!(events[10].starts_with("unlocked k ") && events.len() == 11);
    // What is lost, refused, read or only kept otherwise is no event.
    for line in [
        "MAOS.CAS k 1 v",
        "MAOS.SET k v TOKEN 1",
        "MAOS.GET k",
        "MAOS.HISTORY k",
        "SET other 1",
        "DEL other",
        "EXPIRE k 1000",
    ] {
        conn.run(line);
    }
    assert_eq!(
        told(&conn.run(&format!("MAOS.WATCH * SINCE {cursor}"))),
        (cursor.clone(), vec![])
    );
    wait_synced(&master, &replica);
    let there = &mut replica.conn();
    assert_eq!(there.run(&all), conn.run(&all));
    // From every cursor in between the rest follows.
    for at in [v1, v2, v3, v4, many, one, two, counted, lease] {
        let line = format!("MAOS.WATCH * SINCE {at}");
        let (end, rest) = told(&conn.run(&line));
        let version = |e: &&String| e.split(' ').nth(2).and_then(|v| v.parse::<i64>().ok());
        let after = events.iter().filter(|e| version(e) > Some(at));
        let after: Vec<_> = after.cloned().collect();
        assert_eq!(rest, after, "from {at}");
        assert_eq!(end, cursor);
        assert_eq!(there.run(&line), conn.run(&line));
    }
}

/// What the server does to keys by itself, or has other commands do.
#[test]
fn keys_that_go_or_come_without_our_commands_are_told() {
    let master = Server::with(&[("databases", "4")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let start = now(conn);
    let mut done = |line: &str| conn.run(line);
    done("MAOS.SET a 1");
    done("DEL a");
    done("MAOS.SET b 1");
    done("SET b plain");
    done("DEL b");
    done("MAOS.SET c 1 PX 1");
    std::thread::sleep(Duration::from_millis(5));
    assert!(done("MAOS.GET c").is_nil());
    // The tombstone of what is gone is nothing that goes.
    done("MAOS.SET d 1");
    done("MAOS.DEL d");
    done("DEL d");
    done("MAOS.SET e 1");
    done("UNLINK e");
    let mut expected = vec![
        "created a",
        "deleted a",
        "created b",
        "deleted b",
        "created c",
        "expired c",
        "created d",
        "deleted d",
        "created e",
        "deleted e",
    ];
    // Not every server lets a module hear of these without harm.
    done("MAOS.SET f 1");
    done("RENAME f g");
    expected.extend(["created f", "deleted f"]);
    let hears =
        words(&done(&format!("MAOS.WATCH * SINCE {start}"))).contains(&"restored g".to_string());
    let dump = done("DUMP g");
    done("COPY g h");
    done("MAOS.SET h 2");
    done("COPY g h REPLACE");
    let expected_now = ["created f", "deleted f"];
    assert!(expected.ends_with(&expected_now));
    if hears {
        expected.extend([
            "restored g",
            "restored h",
            "updated h",
            "deleted h",
            "restored h",
        ]);
    } else {
        expected.extend(["updated h", "deleted h"]);
    }
    cmd!(conn, "RESTORE", "i", "0", dump.bytes()).ok();
    conn.run("MOVE i 2").int();
    if hears {
        expected.push("restored i");
    }
    expected.push("deleted i");
    let all = format!("MAOS.WATCH * SINCE {start}");
    assert_eq!(words(&conn.run(&all)), expected);
    wait_synced(&master, &replica);
    // A replica is not told why a key went.
    let there = words(&replica.conn().run(&all));
    let unsure: Vec<_> = expected
        .iter()
        .map(|e| e.replace("expired", "deleted"))
        .collect();
    assert_eq!(there, unsure);
    // But whoever asks for those that expired does not miss it.
    let line = format!("{all} TYPES expired,evicted");
    assert_eq!(words(&conn.run(&line)), ["expired c"]);
    assert!(words(&replica.conn().run(&line)).contains(&"deleted c".to_string()));
    conn.run("SELECT 2").ok();
    let moved: &[&str] = if hears { &["restored i"] } else { &[] };
    assert_eq!(words(&conn.run(&all)), moved);
    assert!(conn.run("CLIENT INFO").text().contains(" db=2 "));
    conn.run("SWAPDB 2 3").ok();
    conn.run("FLUSHDB").ok();
    conn.run("FLUSHALL").ok();
    let line = format!("MAOS.WATCH app:* SINCE {start} TYPES flushed");
    assert_eq!(words(&conn.run(&line)), ["flushed -"; 3]);
    conn.run("SELECT 0").ok();
    assert_eq!(words(&conn.run(&line)), ["flushed -"]);
}

#[test]
fn what_is_evicted_is_told() {
    let server = Server::with(&[("maxmemory-policy", "allkeys-random")]);
    let conn = &mut server.conn();
    let start = now(conn);
    conn.run("MAOS.SET k 1").int();
    conn.run("CONFIG SET maxmemory 1").ok();
    eventually(PATIENCE, "it is evicted", || conn.run("DBSIZE").int() == 0);
    conn.run("CONFIG SET maxmemory 0").ok();
    conn.run("MAOS.PARTITION CREATE p BYTES 3000 PREFIX p: ONFULL EVICT")
        .int();
    for n in 0..20 {
        cmd!(conn, "MAOS.SET", format!("p:{n:02}"), "x".repeat(500)).int();
    }
    let line = format!("MAOS.WATCH * SINCE {start} TYPES evicted");
    let events = words(&conn.run(&line));
    assert_eq!(events[..3], ["evicted k", "evicted p:00", "evicted p:01"]);
}

#[test]
fn a_watcher_that_waits_is_told_at_once_what_it_asked_for_and_nothing_else() {
    let server = Server::start();
    let conn = &mut server.conn();
    let mut waits = watcher(
        &server,
        "MAOS.WATCH app:* x?z BLOCK 600000 NOTBY me TYPES created,deleted VALUES",
    );
    conn.run("MAOS.SET other 1");
    conn.run("MAOS.SET app:mine 1 BY me");
    conn.run("MAOS.SET xyyz 1");
    conn.run("MAOS.SET app:1 1 BY me");
    conn.run("MAOS.SET app:1 2 BY you");
    assert_eq!(metric(conn, "watchers"), 1);
    let version = conn.run("MAOS.SET xyz yes BY you").int();
    let reply = waits.recv();
    let (cursor, events) = told(&reply);
    assert_eq!(at(&cursor), version);
    assert_eq!(events, [format!("created xyz {version} 0 you")]);
    let event = &reply.array()[1].array()[0];
    assert_eq!(
        (event.field("value").text(), event.field("gone").int()),
        ("yes", 0)
    );
    assert_eq!(event.field("author").text(), "default");
    nobody_waits(&server);
    // And goes on from there; as one reply what one transaction or script did.
    let mut waits = watcher(
        &server,
        &format!("MAOS.WATCH app:* SINCE {version} BLOCK 0"),
    );
    conn.pipeline(&[
        "MULTI",
        "MAOS.SET app:2 1",
        "SET no 1",
        "MAOS.DEL app:2",
        "EXEC",
    ]);
    assert_eq!(words(&waits.recv()), ["created app:2", "deleted app:2"]);
    // In RESP3 an event is a map as well.
    conn.hello3();
    let reply = conn.run(&format!("MAOS.WATCH xyz SINCE {version} COUNT 1"));
    assert_eq!(reply.array()[1].array().len(), 0);
}

#[test]
fn nothing_for_so_long_is_a_cursor_alone() {
    let server = Server::start();
    let conn = &mut server.conn();
    let version = conn.run("MAOS.SET other 1").int();
    let mut waits = watcher(&server, "MAOS.WATCH app:* BLOCK 300");
    let last = conn.run("MAOS.SET other 2").int();
    let (cursor, events) = told(&waits.recv());
    assert_eq!((at(&cursor), events.len()), (last, 0));
    assert!(last > version);
    nobody_waits(&server);
}

#[test]
fn the_events_of_one_commit_are_never_parted() {
    let server = Server::start();
    let conn = &mut server.conn();
    let start = now(conn);
    let keys: Vec<String> = (0..50).map(|n| format!("app:{n} v")).collect();
    let one = conn.run(&format!("MAOS.MSET 50 {}", keys.join(" "))).int();
    let two = conn.run("MAOS.SET app:last v").int();
    let first = conn.run(&format!("MAOS.WATCH app:* SINCE {start} COUNT 1"));
    let (cursor, events) = told(&first);
    assert_eq!((at(&cursor), events.len()), (one, 50));
    let second = conn.run(&format!("MAOS.WATCH app:* SINCE {one} COUNT 1"));
    let (cursor, events) = told(&second);
    assert_eq!((at(&cursor), events.len()), (two, 1));
    // A transaction that sets, deletes and counts is one commit.
    let line = "MAOS.TXN 3 app:1 app:2 n THEN SET app:1 x THEN DEL app:2 THEN INCRBY n 1";
    conn.run(line).array();
    conn.run("MAOS.SET app:after v").int();
    let reply = conn.run(&format!("MAOS.WATCH * SINCE {two} COUNT 1"));
    assert_eq!(
        words(&reply),
        ["updated app:1", "deleted app:2", "created n"]
    );
}

#[test]
fn values_are_those_of_the_commit_as_long_as_they_are_kept() {
    let server = Server::with(&[("maos.history-max-versions", "3")]);
    let conn = &mut server.conn();
    let start = now(conn);
    for n in 0..5 {
        conn.run(&format!("MAOS.SET k value-{n}")).int();
    }
    conn.run("MAOS.DEL k").int();
    let reply = conn.run(&format!("MAOS.WATCH k SINCE {start} VALUES"));
    let value = |event: &Reply| {
        let value = event.field("value");
        let value = if value.is_nil() { "-" } else { value.text() };
        format!("{value} {}", event.field("gone").int())
    };
    let values: Vec<_> = reply.array()[1].array().iter().map(value).collect();
    assert_eq!(
        values,
        ["- 1", "- 1", "- 1", "value-3 0", "value-4 0", "- 0"]
    );
    // A reply holds not much more than a mebibyte of them; the rest is in the next.
    let long = "x".repeat(400_000);
    let start = now(conn);
    for n in 0..10 {
        cmd!(conn, "MAOS.SET", format!("l:{n}"), &long).int();
    }
    let (mut cursor, mut seen, mut replies) = (start, 0, 0);
    while seen < 10 {
        let reply = conn.run(&format!("MAOS.WATCH l:* SINCE {cursor} VALUES"));
        let events = reply.array()[1].array();
        assert!((1..=3).contains(&events.len()), "{}", events.len());
        for event in events {
            assert_eq!(event.field("key").text(), format!("l:{seen}"));
            assert_eq!(event.field("value").bytes().len(), long.len());
            seen += 1;
        }
        (cursor, replies) = (told(&reply).0, replies + 1);
    }
    assert_eq!(replies, 4);
}

#[test]
fn whoever_comes_too_late_is_told_from_where_it_can_go_on() {
    let server = Server::with(&[("maos.changes-max-bytes", "100000")]);
    let conn = &mut server.conn();
    let start = now(conn);
    let mut versions = vec![];
    for n in 0..5000 {
        versions.push(cmd!(conn, "MAOS.SET", format!("k:{}", n % 100), "v").int());
    }
    assert!(metric(conn, "changes_bytes") <= 100_000);
    let reply = conn.run(&format!("MAOS.WATCH * SINCE {start}"));
    assert_eq!(reply.code(), "COMPACTED");
    let floor = metric(conn, "changes_floor");
    assert!(
        reply.err().contains(&format!("go on from {floor}")),
        "{reply}"
    );
    let place = versions.iter().position(|v| *v == floor).expect("a cursor");
    // What is let go is what was first, and no more than has to be.
    assert!((3000..4900).contains(&place), "{place}");
    let reply = conn.run(&format!("MAOS.WATCH * SINCE {floor} COUNT 10000"));
    assert_eq!(told(&reply).1.len(), 5000 - 1 - place);
    assert_eq!(
        conn.run(&format!("MAOS.WATCH * SINCE {}", versions[place - 1]))
            .code(),
        "COMPACTED"
    );
    // No cursor at all.
    for (cursor, code) in [
        // A number alone is taken on trust, as far as the log goes.
        ((versions[4999] + 1).to_string(), "DIVERGED"),
        ("0".to_string(), "COMPACTED"),
        ("1".to_string(), "COMPACTED"),
        // A cursor is not: that of another node, or of nobody.
        (format!("{floor}-1"), "DIVERGED"),
        (format!("{}-{floor}", versions[4999]), "DIVERGED"),
    ] {
        assert_eq!(
            conn.run(&format!("MAOS.WATCH * SINCE {cursor}")).code(),
            code,
            "{cursor}"
        );
    }
    // Without a log nobody can watch, and one that begins anew knows nothing of what was.
    let mut waits = watcher(&server, "MAOS.WATCH k BLOCK 600000");
    conn.run("CONFIG SET maos.changes-max-bytes 0").ok();
    conn.run("MAOS.SET k v").int();
    let (cursor, events) = told(&waits.recv());
    assert_eq!((at(&cursor), events.len()), (versions[4999], 0));
    assert_eq!(conn.run("MAOS.WATCH k").code(), "ERR");
    assert_eq!(metric(conn, "changes_bytes"), 0);
    conn.run("CONFIG SET maos.changes-max-bytes 1000000").ok();
    let unseen = conn.run("MAOS.SET k v").int();
    let after = now(conn);
    assert!(at(&after) >= unseen);
    assert_eq!(
        conn.run(&format!("MAOS.WATCH * SINCE {cursor}")).code(),
        "DIVERGED"
    );
    conn.run("MAOS.SET k v").int();
    assert_eq!(
        words(&conn.run(&format!("MAOS.WATCH * SINCE {after}"))),
        ["updated k"]
    );
}

/// Where nothing is known of the master's log there is no place in it: nobody is given one, nor told that theirs is lost.
#[test]
fn a_replica_that_was_not_told_where_the_log_is_says_so() {
    let master = Server::with(&[("maos.changes-max-bytes", "0")]);
    let replica = Server::start();
    let there = &mut replica.conn();
    cmd!(there, "REPLICAOF", "127.0.0.1", master.port().to_string()).ok();
    wait_synced(&master, &replica);
    for watch in [
        "MAOS.WATCH *",
        "MAOS.WATCH * SINCE 5",
        "MAOS.WATCH * SINCE 5-3 BLOCK 1",
    ] {
        let reply = there.run(watch);
        assert_eq!(reply.code(), "BUSY", "{watch}: {reply}");
    }
    master
        .conn()
        .run("CONFIG SET maos.changes-max-bytes 1mb")
        .ok();
    eventually(PATIENCE, "the replica is told", || {
        !there.run("MAOS.WATCH *").is_err()
    });
    let from = now(there);
    master.conn().run("MAOS.SET k v").int();
    wait_synced(&master, &replica);
    let told = there.run(&format!("MAOS.WATCH * SINCE {from}"));
    assert_eq!(words(&told), ["created k"], "{told}");
}

/// A cursor that the old master gave out goes on at the new one, if what it saw came there; else it is told so, and
/// from where.
#[test]
fn a_cursor_goes_on_after_a_failover_or_is_told_what_was_lost() {
    let master = Server::start();
    let replica = replica_of(&master);
    let other = replica_of(&master);
    let conn = &mut master.conn();
    let start = now(conn);
    let first = conn.run("MAOS.SET k 1").int();
    let kept = now(conn);
    conn.run("MAOS.SET gone 1");
    conn.run("DEL gone");
    let last = now(conn);
    wait_synced(&master, &replica);
    wait_synced(&master, &other);
    // From here on the replicas hear no more.
    for deaf in [&replica, &other] {
        deaf.conn().run("REPLICAOF NO ONE").ok();
    }
    conn.run("MAOS.SET k 2").int();
    let lost = now(conn);
    conn.run("DEL k");
    let lost_too = now(conn);
    drop(master);
    let conn = &mut replica.conn();
    let next = conn.run("MAOS.SET k 3").int();
    let line = |cursor: &str| format!("MAOS.WATCH * SINCE {cursor}");
    assert_eq!(
        words(&conn.run(&line(&start))),
        ["created k", "created gone", "deleted gone", "updated k"]
    );
    assert_eq!(
        words(&conn.run(&line(&kept))),
        ["created gone", "deleted gone", "updated k"]
    );
    let (cursor, events) = told(&conn.run(&line(&last)));
    assert_eq!(events, [format!("updated k {next} {first} -")]);
    assert_eq!(at(&cursor), next);
    for cursor in [&lost, &lost_too] {
        let reply = conn.run(&line(cursor));
        assert_eq!(reply.code(), "DIVERGED");
        assert!(
            reply.err().contains(&format!("seen after {last} ")),
            "{reply}"
        );
    }
    // The replica of the new master comes to the same log, though it has one of its own.
    let there = &mut other.conn();
    cmd!(there, "REPLICAOF", "127.0.0.1", replica.port().to_string()).ok();
    wait_synced(&replica, &other);
    let after = conn.run("MAOS.SET k 4").int();
    wait_synced(&replica, &other);
    assert_eq!(at(&told(&there.run(&line(&cursor))).0), after);
    for cursor in [&lost, &lost_too] {
        assert_eq!(there.run(&line(cursor)).code(), "DIVERGED");
    }
}

/// A replica that goes on without a full synchronisation when another one takes over hears from where that one does.
#[test]
fn replicas_of_a_new_master_know_what_was_lost_with_the_old_one() {
    let cluster = Cluster::start(3, 2);
    let old = cluster.node_for("{o}k");
    let conn = &mut old.conn();
    let start = now(conn);
    let kept = conn.run("MAOS.SET {o}k 1").int();
    let n = (0..3)
        .find(|n| cluster.master(*n).port() == old.port())
        .expect("it");
    let replicas: Vec<_> = cluster.replicas_of(n).collect();
    replicas.iter().for_each(|r| wait_synced(old, r));
    replicas[0].conn().run("CLUSTER FAILOVER TAKEOVER").ok();
    cluster.wait_ok();
    let new = &mut replicas[0].conn();
    eventually(PATIENCE, "it writes", || {
        !new.run("MAOS.SET {o}k 2").is_err()
    });
    let next = now(new);
    eventually(PATIENCE, "the other follows", || {
        let info = replicas[1].conn().info("replication");
        info["master_port"] == replicas[0].port().to_string() && info["master_link_status"] == "up"
    });
    wait_synced(replicas[0], replicas[1]);
    let there = &mut replicas[1].conn();
    there.run("READONLY").ok();
    let line = format!("MAOS.WATCH * SINCE {kept}");
    assert_eq!(there.run(&line), new.run(&line));
    assert_eq!(told(&new.run(&line)).0, next);
    assert_eq!(
        words(&new.run(&format!("MAOS.WATCH * SINCE {start}"))),
        ["created {o}k", "updated {o}k"]
    );
    let reply = there.run(&format!("MAOS.WATCH * SINCE {}", kept + 1));
    assert_eq!(reply.code(), "DIVERGED");
}

#[test]
fn after_a_restart_the_log_reaches_back_as_far_as_the_aof_tells() {
    let mut server = Server::with(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let conn = &mut server.conn();
    let first = conn.run("MAOS.SET k 1").int();
    let cursor = now(conn);
    conn.run("MAOS.SET gone 1");
    conn.run("DEL gone");
    let line = format!("MAOS.WATCH * SINCE {cursor}");
    let before = told(&conn.run(&line));
    server.restart(Stop::Kill);
    let conn = &mut server.conn();
    let next = conn.run("MAOS.SET k 2").int();
    let (cursor, events) = told(&conn.run(&line));
    assert_eq!(at(&cursor), next);
    assert_eq!(events[..2], before.1);
    assert_eq!(events[2], format!("updated k {next} {first} -"));
    // What may have been told and not written down is not taken for seen.
    let (last, reign) = before.0.split_once('-').expect("a cursor");
    let unwritten = last.parse::<i64>().expect("a number") + 1;
    let line_of = |cursor: &str| format!("MAOS.WATCH * SINCE {cursor}");
    let reply = conn.run(&line_of(&format!("{unwritten}-{reign}")));
    assert_eq!(reply.code(), "DIVERGED");
    // The base of a rewritten AOF knows no past.
    conn.run("BGREWRITEAOF").text();
    wait_rewritten(conn);
    conn.run("MAOS.SET k 3").int();
    let tail = now(conn);
    conn.run("MAOS.SET k 4").int();
    server.restart(Stop::Kill);
    let conn = &mut server.conn();
    assert_eq!(
        words(&conn.run(&format!("MAOS.WATCH * SINCE {tail}"))),
        ["updated k"]
    );
    assert_eq!(conn.run(&line).code(), "DIVERGED");
    // Nor does an RDB file.
    let mut server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k 1").int();
    let saved = now(conn);
    server.restart(Stop::Save);
    let reply = server.conn().run(&format!("MAOS.WATCH * SINCE {saved}"));
    assert_eq!(reply.code(), "DIVERGED");
}

#[test]
fn nobody_is_told_of_a_key_that_it_may_not_read() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("ACL SETUSER ann on nopass +@all ~app:* %R~shared:* %W~drop:*")
        .ok();
    conn.run("ACL SETUSER none on nopass +@all").ok();
    let ann = &mut server.conn();
    ann.run("AUTH ann x").ok();
    let start = now(conn);
    for key in ["app:1", "shared:1", "drop:1", "secret:1"] {
        cmd!(conn, "MAOS.SET", key, "v").int();
    }
    let line = format!("MAOS.WATCH * SINCE {start}");
    assert_eq!(
        words(&ann.run(&line)),
        ["created app:1", "created shared:1"]
    );
    for (pattern, may) in [
        ("app:*", true),
        ("*", true),
        ("a*", true),
        ("app:x:[ab]", true),
        ("shared:*", true),
        ("app", false),
        ("b*", false),
        ("secret:1", false),
        ("drop:*", false),
        ("s?cret:*", true),
    ] {
        let reply = ann.run(&format!("MAOS.WATCH {pattern} SINCE {start}"));
        assert_eq!(reply.is_err(), !may, "{pattern}: {reply}");
    }
    assert!(!ann.run("MAOS.WATCH secret:* app:*").is_err());
    let none = &mut server.conn();
    none.run("AUTH none x").ok();
    assert_eq!(none.run("MAOS.WATCH *").code(), "NOPERM");
    // Selectors are looked at as well.
    conn.run("ACL SETUSER none (~sel:* +maos.watch)").ok();
    assert!(!none.run("MAOS.WATCH sel:*").is_err());
    // The rules are those of the moment at which something is told.
    let mut waits = server.conn();
    waits.run("AUTH ann x").ok();
    waits.set_timeout(LATE);
    waits.send(&["MAOS.WATCH", "app:*", "BLOCK", "600000"]);
    eventually(PATIENCE, "it waits", || metric(conn, "watchers") == 1);
    conn.run("ACL SETUSER ann resetkeys ~app:2").ok();
    conn.run("MAOS.SET app:1 v");
    conn.run("MAOS.SET app:2 v");
    assert_eq!(words(&waits.recv()), ["created app:2"]);
    // Who is no user any more is told nothing.
    waits.send(&["MAOS.WATCH", "app:*", "BLOCK", "600000"]);
    eventually(PATIENCE, "it waits", || metric(conn, "watchers") == 1);
    conn.run("ACL DELUSER ann").int();
    nobody_waits(&server);
}

#[test]
fn a_wait_ends_in_every_way_that_a_wait_can_end() {
    let server = Server::start();
    let conn = &mut server.conn();
    let start = now(conn);
    // Not in transactions and scripts: those answer at once.
    let replies = conn.pipeline(&["MULTI", "MAOS.WATCH a BLOCK 600000", "EXEC"]);
    assert_eq!(told(&replies[2].array()[0]), (start, vec![]));
    let script = "return redis.call('maos.watch', 'a', 'block', '600000')";
    let reply = cmd!(conn, "EVAL", script, "0");
    assert_eq!(reply.array()[1].array().len(), 0);
    for (how, code) in [("TIMEOUT", None), ("ERROR", Some("UNBLOCKED"))] {
        let mut waits = server.conn();
        waits.set_timeout(LATE);
        let id = waits.run("CLIENT ID").int();
        waits.send(&["MAOS.WATCH", "a", "BLOCK", "600000"]);
        eventually(PATIENCE, "it waits", || metric(conn, "watchers") == 1);
        assert_eq!(conn.run(&format!("CLIENT UNBLOCK {id} {how}")).int(), 1);
        let reply = waits.recv();
        match code {
            None => assert_eq!(told(&reply).1.len(), 0),
            Some(code) => assert_eq!(reply.code(), code),
        }
        nobody_waits(&server);
    }
    drop(watcher(&server, "MAOS.WATCH a BLOCK 600000"));
    nobody_waits(&server);
    // Gone between what happens and the word of it.
    for _ in 0..20 {
        let leaves = watcher(&server, "MAOS.WATCH a BLOCK 600000");
        conn.send(&["MAOS.SET", "a", "1"]);
        drop(leaves);
        conn.recv().int();
        nobody_waits(&server);
    }
    // A node that follows another one has another past.
    let master = Server::start();
    let mut waits = watcher(&server, "MAOS.WATCH a BLOCK 600000");
    cmd!(conn, "REPLICAOF", "127.0.0.1", master.port().to_string()).ok();
    match waits.try_recv() {
        Ok(reply) if reply.is_err() => assert_eq!(reply.code(), "UNBLOCKED"),
        Ok(reply) => assert_eq!(told(&reply).1.len(), 0),
        Err(_) => {}
    }
    nobody_waits(&server);
    wait_synced(&master, &server);
    // On a replica one can watch too.
    master.conn().run("MAOS.SET warm 1").int();
    wait_synced(&master, &server);
    let mut waits = watcher(&server, "MAOS.WATCH b BLOCK 600000");
    master.conn().run("MAOS.SET b 1").int();
    assert_eq!(words(&waits.recv()), ["created b"]);
    // And when all its keys are replaced it is told how far it had come.
    let mut waits = watcher(&server, "MAOS.WATCH b BLOCK 600000");
    conn.run("REPLICAOF NO ONE").ok();
    conn.run("DEBUG RELOAD").ok();
    assert!(!waits.recv().is_err());
    nobody_waits(&server);
}

#[test]
fn what_is_asked_for_wrongly_is_refused() {
    let server = Server::start();
    let conn = &mut server.conn();
    let many = vec!["a*"; 1025].join(" ");
    let most = vec!["a*"; 1024].join(" ");
    let long = "a".repeat(1025);
    for (line, code) in [
        ("a[b", "ERR"),
        ("a\\", "ERR"),
        ("a COUNT 0", "ERR"),
        ("a COUNT 10001", "ERR"),
        ("a COUNT x", "ERR"),
        ("a BLOCK -1", "ERR"),
        ("a BLOCK 3600001", "ERR"),
        ("a BLOCK 99999999999999999999", "ERR"),
        ("a SINCE -1", "ERR"),
        ("a SINCE x", "ERR"),
        ("a SINCE 9007199254740992", "ERR"),
        ("a SINCE", "ERR"),
        ("a TYPES", "ERR"),
        ("a TYPES nonsense", "ERR"),
        ("a TYPES created,", "ERR"),
        ("a NOTBY ''", "ERR"),
        ("a SINCE 9007199254740991", "DIVERGED"),
        ("a COUNT 1 b", "ERR"),
        (&many, "LIMIT"),
        (&long, "LIMIT"),
    ] {
        let reply = conn.run(&format!("MAOS.WATCH {line}"));
        assert_eq!(
            reply.code(),
            code,
            "{}: {reply}",
            &line[..line.len().min(60)]
        );
    }
    assert!(!conn.run(&format!("MAOS.WATCH {most}")).is_err());
    // A pattern that is a word of the command has a backslash.
    let start = now(conn);
    conn.run("MAOS.SET COUNT 1").int();
    assert_eq!(
        words(&conn.run(&format!("MAOS.WATCH \\COUNT SINCE {start}"))),
        ["created COUNT"]
    );
}

/// A thousand watchers with a pattern each, in one traffic: each reads its own, all of it, in order, and no other's.
#[test]
fn a_thousand_watchers_each_read_their_own() {
    const WATCHERS: usize = 1000;
    let server = Server::with(&[("maxclients", "2000")]);
    let conn = &mut server.conn();
    let start = now(conn);
    let mut watchers: Vec<Conn> = (0..WATCHERS)
        .map(|n| {
            let mut conn = server.conn();
            conn.set_timeout(LATE);
            let line = format!("MAOS.WATCH agent:{n}:* SINCE {start} BLOCK 600000");
            conn.send(&split_line(&line).expect("a line"));
            conn
        })
        .collect();
    eventually(LATE, "they wait", || {
        metric(conn, "watchers") == WATCHERS as i64
    });
    let mut random = Rng::new(seed());
    let mut expected: Vec<Vec<String>> = vec![vec![]; WATCHERS];
    for n in 0..3 * WATCHERS {
        let to = if n < WATCHERS {
            n
        } else {
            random.below(WATCHERS)
        };
        let key = format!("agent:{to}:{}", random.below(3));
        let version = cmd!(conn, "MAOS.SET", &key, "v").int();
        expected[to].push(format!("{key} {version}"));
    }
    for (n, (conn, expected)) in watchers.iter_mut().zip(&expected).enumerate() {
        let mut seen: Vec<String> = vec![];
        while seen.len() < expected.len() {
            let (cursor, events) = told(&conn.recv());
            assert!(!events.is_empty());
            seen.extend(
                events
                    .iter()
                    .map(|e| e.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ")),
            );
            let line = format!("MAOS.WATCH agent:{n}:* SINCE {cursor} BLOCK 600000");
            if seen.len() < expected.len() {
                conn.send(&split_line(&line).expect("a line"));
            }
        }
        assert_eq!(&seen, expected, "watcher {n}");
    }
}

/// Writers, transactions and scripts over many keys while watchers come and go on from their cursors: put together,
/// what each of them read is what the histories say was written, in the order of the versions, each once.
#[test]
fn what_watchers_read_is_what_was_written() {
    let server = Server::with(&[("maos.history-max-versions", "100000")]);
    let start = now(&mut server.conn());
    let patterns = ["*", "a:*", "b:?", "[ab]:1", "c:*"];
    let fits = |pattern: &str, key: &str| match pattern {
        "*" => true,
        "a:*" => key.starts_with("a:"),
        "b:?" => key.starts_with("b:") && key.len() == 3,
        "[ab]:1" => key == "a:1" || key == "b:1",
        _ => key.starts_with("c:"),
    };
    let seed = seed();
    println!("MAOS_TEST_SEED={seed}");
    let written: BTreeSet<(i64, String)> = std::thread::scope(|scope| {
        let watchers: Vec<_> = patterns
            .into_iter()
            .zip(1..)
            .map(|(pattern, n)| {
                let mut random = Rng::new(seed + n);
                let start = start.clone();
                let server = &server;
                scope.spawn(move || {
                    let (mut conn, mut cursor, mut seen) = (server.conn(), start, vec![]);
                    loop {
                        let (count, block) = (1 + random.below(50), 1 + random.below(40));
                        let line = format!(
                            "MAOS.WATCH {pattern} end SINCE {cursor} COUNT {count} BLOCK {block}"
                        );
                        let reply = conn.run(&line);
                        let (next, events) = told(&reply);
                        assert!(at(&next) >= at(&cursor));
                        cursor = next;
                        for event in events {
                            let words: Vec<&str> = event.split(' ').collect();
                            if words[1] == "end" {
                                return (pattern, seen);
                            }
                            seen.push((
                                words[2].parse::<i64>().expect("a version"),
                                words[1].to_string(),
                            ));
                        }
                        if random.below(20) == 0 {
                            conn = server.conn();
                        }
                    }
                })
            })
            .collect();
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let mut random = Rng::new(seed + 100 + n);
                let server = &server;
                scope.spawn(move || {
                    let mut conn = server.conn();
                    for _ in 0..600 {
                        let mut key = || format!("{}:{}", ["a", "b", "c"][random.below(3)], random.below(12));
                        let (one, two) = (key(), key());
                        match random.below(6) {
                            0 if one != two => {
                                cmd!(conn, "MAOS.MSET", "2", &one, "v", &two, "v").int();
                            }
                            1 => {
                                cmd!(conn, "MAOS.DEL", &one);
                            }
                            2 => {
                                let script = "redis.call('maos.set', KEYS[1], 1) redis.call('maos.del', KEYS[1])";
                                cmd!(conn, "EVAL", script, "1", &one);
                            }
                            _ => {
                                cmd!(conn, "MAOS.SET", &one, "v").int();
                            }
                        }
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .for_each(|w| w.join().expect("a writer"));
        let conn = &mut server.conn();
        let mut written = BTreeSet::new();
        for family in ["a", "b", "c"] {
            for n in 0..12 {
                let key = format!("{family}:{n}");
                for entry in cmd!(conn, "MAOS.HISTORY", &key).array() {
                    written.insert((entry.field("version").int(), key.clone()));
                }
            }
        }
        cmd!(conn, "MAOS.SET", "end", "v").int();
        for watcher in watchers {
            let (pattern, seen) = watcher.join().expect("a watcher");
            // Ordered, and each once: within a commit in the order of its keys.
            assert!(seen.windows(2).all(|two| two[0].0 <= two[1].0), "{pattern}");
            let of: Vec<_> = written
                .iter()
                .filter(|(_, key)| fits(pattern, key))
                .cloned()
                .collect();
            let mut sorted = seen.clone();
            sorted.sort();
            assert_eq!(sorted, of, "{pattern}");
        }
        written
    });
    assert!(written.len() > 1000, "{}", written.len());
}

/// What a watcher did over time.
enum Lived {
    /// It read this: version and key.
    Read(i64, String),
    /// It was told that what it saw after this was lost, or that nothing is certain.
    Diverged(Option<i64>),
    /// It was told that what is up to this is not there any more.
    Compacted(i64, i64),
}

/// Watches at whichever node is the master, through failures, until the end is told.
fn live_through(port: &AtomicU16, start: String, rng: &mut Rng) -> Vec<Lived> {
    let (mut cursor, mut lived) = (start, vec![]);
    let mut conn: Option<(u16, Conn)> = None;
    loop {
        let now = port.load(SeqCst);
        if conn.as_ref().is_none_or(|(at, _)| *at != now) || rng.below(30) == 0 {
            conn = Conn::try_open(now).ok().map(|conn| (now, conn));
        }
        let line = format!(
            "MAOS.WATCH k:* end SINCE {cursor} COUNT {} BLOCK {}",
            1 + rng.below(200),
            1 + rng.below(50)
        );
        let line = split_line(&line).expect("a line");
        let reply = conn.as_mut().and_then(|(_, conn)| conn.try_cmd(&line).ok());
        let Some(reply) = reply else {
            conn = None;
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        if !reply.is_err() {
            let (next, events) = told(&reply);
            assert!(at(&next) >= at(&cursor), "{next} after {cursor}");
            cursor = next;
            for event in events {
                let words: Vec<&str> = event.split(' ').collect();
                if words[1] == "end" {
                    return lived;
                }
                let version = words[2].parse().expect("a version");
                lived.push(Lived::Read(version, words[1].to_string()));
            }
            continue;
        }
        let from = reply.err().rsplit(' ').next().expect("a word").to_string();
        match reply.code() {
            "DIVERGED" => {
                let kept = reply.err().split("seen after ").nth(1);
                let kept = kept.and_then(|rest| rest.split(' ').next()).map(at);
                lived.push(Lived::Diverged(kept));
                lived.push(Lived::Compacted(kept.unwrap_or(0), at(&from)));
                cursor = from;
            }
            "COMPACTED" => {
                lived.push(Lived::Compacted(at(&cursor), at(&from)));
                cursor = from;
            }
            // A server that is loading, or has lost its master, says so.
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Masters are replaced while they go on writing, and killed; watchers go on at whoever is the master. What each of them
/// has read in the end, less what it was told to be lost, is what the last master's histories hold: ordered, each
/// once, and nothing missing but what it was told to be.
#[test]
fn what_watchers_read_over_failovers_is_what_was_kept() {
    const TAKEOVERS: u64 = 5;
    const KEYS: usize = 20;
    let settings = [
        ("maos.history-max-versions", "100000"),
        ("maos.history-max-bytes", "1000000000"),
        ("maos.changes-max-bytes", "3000000"),
    ];
    let seed = seed();
    println!("MAOS_TEST_SEED={seed}");
    let rng = &mut Rng::new(seed);
    let mut master = Server::with(&settings);
    let start = now(&mut master.conn());
    let port = AtomicU16::new(master.port());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watchers: Vec<_> = (1..=4)
            .map(|n| {
                let (mut rng, port) = (Rng::new(seed + n), &port);
                let start = start.clone();
                scope.spawn(move || live_through(port, start, &mut rng))
            })
            .collect();
        let writers: Vec<_> = (0..2)
            .map(|n| {
                let (mut rng, port, over) = (Rng::new(seed + 100 + n), &port, &over);
                scope.spawn(move || {
                    let mut conn: Option<(u16, Conn)> = None;
                    while !over.load(SeqCst) {
                        let now = port.load(SeqCst);
                        if conn.as_ref().is_none_or(|(at, _)| *at != now) {
                            conn = Conn::try_open(now).ok().map(|conn| (now, conn));
                        }
                        let key = format!("k:{}", rng.below(KEYS));
                        let Some((_, open)) = &mut conn else { continue };
                        if open.try_cmd(&["MAOS.SET", &key, "v"]).is_err() {
                            conn = None;
                        }
                    }
                })
            })
            .collect();
        let (mut parted, wait) = (0, Duration::from_millis(160));
        for _ in 0..TAKEOVERS {
            let replica = replica_with(&master, &settings);
            std::thread::sleep(wait);
            if rng.below(3) > 0 {
                // It goes on for a while, and is heard by those that do not know.
                replica.conn().run("REPLICAOF NO ONE").ok();
                std::thread::sleep(wait / 4);
                parted += 1;
            } else {
                master.pause();
                replica.conn().run("REPLICAOF NO ONE").ok();
            }
            // From here on both are written to and watched, each by some.
            port.store(replica.port(), SeqCst);
            std::thread::sleep(wait / 4);
            master.resume();
            master.kill();
            master = replica;
        }
        std::thread::sleep(wait);
        over.store(true, SeqCst);
        writers
            .into_iter()
            .for_each(|w| w.join().expect("a writer"));
        let conn = &mut master.conn();
        let mut held = BTreeSet::new();
        for n in 0..KEYS {
            let key = format!("k:{n}");
            for entry in cmd!(conn, "MAOS.HISTORY", &key).array() {
                held.insert((entry.field("version").int(), key.clone()));
            }
        }
        conn.run("MAOS.SET end 1").int();
        let (mut events, mut lost) = (0, 0);
        for (n, watcher) in watchers.into_iter().enumerate() {
            let (mut read, mut missing, mut story) = (vec![], vec![], vec![]);
            for lived in watcher.join().expect("a watcher") {
                match lived {
                    Lived::Read(version, key) => {
                        assert!(
                            read.last().is_none_or(|(last, _)| *last < version),
                            "ordered"
                        );
                        read.push((version, key));
                        events += 1;
                    }
                    Lived::Diverged(kept) => {
                        story.push(("diverged", kept.unwrap_or(0), read.last().cloned()));
                        let before = read.len();
                        read.retain(|(version, _)| kept.is_some_and(|kept| *version <= kept));
                        lost += before - read.len();
                    }
                    Lived::Compacted(from, to) => {
                        story.push(("compacted", to, read.last().cloned()));
                        missing.push(from + 1..=to);
                    }
                }
            }
            let told = |(version, _): &&(i64, String)| !missing.iter().any(|m| m.contains(version));
            let held: Vec<_> = held.iter().filter(told).collect();
            let read: Vec<_> = read.iter().filter(told).collect();
            let [these, those] = [&read, &held].map(|all| all.iter().collect::<BTreeSet<_>>());
            let extra: Vec<_> = these.difference(&those).take(5).collect();
            let lacks: Vec<_> = those.difference(&these).take(5).collect();
            assert!(
                extra.is_empty() && lacks.is_empty(),
                "watcher {n} was told {story:?}; it has {extra:?} too much, and lacks {lacks:?}"
            );
            assert_eq!(read, held, "watcher {n}");
        }
        println!("{events} events read, {lost} taken back, {parted} takeovers of a living master");
        assert!(events > 1000, "{events}");
    });
}

/// What comes to another database is told there, also in a transaction, where not every server says which that is.
#[test]
fn what_comes_to_another_database_is_told_there() {
    let server = Server::start();
    let conn = &mut server.conn();
    let start = now(conn);
    for line in [
        "SELECT 3",
        "MAOS.SET probe v",
        "RENAME probe renamed",
        "SELECT 1",
        "MAOS.SET k v",
        "MAOS.SET l v",
        "MAOS.SET c v",
        "SELECT 2",
        "MAOS.SET c other",
        "SELECT 1",
        "MULTI",
        "MOVE k 2",
        "COPY l c DB 2 REPLACE",
        "EXEC",
        "MOVE l 2",
        "SELECT 2",
    ] {
        conn.run(line);
    }
    let all = format!("MAOS.WATCH * SINCE {start}");
    conn.run("SELECT 3").ok();
    // Not every server lets a module hear of these without harm.
    if !words(&conn.run(&all)).contains(&"restored renamed".to_string()) {
        return;
    }
    conn.run("SELECT 2").ok();
    let events = words(&conn.run(&all));
    let came = [
        "created c",
        "restored k",
        "deleted c",
        "restored c",
        "restored l",
    ];
    assert_eq!(events, came);
    conn.run("SELECT 1").ok();
    let events = words(&conn.run(&all));
    assert_eq!(
        events,
        [
            "created k",
            "created l",
            "created c",
            "deleted k",
            "deleted l"
        ]
    );
}

/// A key that goes with its slot is not deleted, and comes whole; replicas know that too.
#[test]
fn a_key_that_goes_with_its_slot_leaves_and_comes() {
    let cluster = Cluster::start(3, 1);
    let from = cluster.node_for("{o}k");
    let to = cluster.another(from);
    let [left, came] = [from, to].map(|master| [master, cluster.replica_now(master)]);
    let start = |nodes: [&Server; 2]| now(&mut nodes[0].conn());
    let (since_left, since_came) = (start(left), start(came));
    let conn = &mut from.conn();
    for line in [
        "MAOS.SET {o}k 1",
        "MAOS.SET {o}l 1",
        "MAOS.SET {o}gone 1",
        "DEL {o}gone",
    ] {
        assert!(!conn.run(line).is_err());
    }
    wait_synced(left[0], left[1]);
    wait_synced(came[0], came[1]);
    cluster.move_slot(slot_of(b"{o}"), to);
    to.conn().run("MAOS.SET {o}k 2").int();
    wait_synced(left[0], left[1]);
    wait_synced(came[0], came[1]);
    let events = |node: &Server, since: &str| {
        let conn = &mut node.conn();
        conn.run("READONLY");
        let mut events = words(&conn.run(&format!("MAOS.WATCH * SINCE {since}")));
        // They leave in any order.
        events.sort();
        events
    };
    for node in left {
        let told = [
            "created {o}gone",
            "created {o}k",
            "created {o}l",
            "deleted {o}gone",
            "left {o}k",
            "left {o}l",
        ];
        assert_eq!(events(node, &since_left), told);
    }
    for node in came {
        let told = ["restored {o}k", "restored {o}l", "updated {o}k"];
        assert_eq!(events(node, &since_came), told);
    }
}
