//! Keyspace notifications: one word for what happened to a key, for clients that only listen.

use super::replica_of;
use crate::harness::*;

/// A connection that hears what is told of the keys of all databases.
fn listener(server: &Server, flags: &str) -> Conn {
    let mut conn = server.conn();
    cmd!(conn, "CONFIG", "SET", "notify-keyspace-events", flags).ok();
    conn.send(&["PSUBSCRIBE", "__key*__:*"]);
    conn.recv();
    conn
}

/// What is heard next: the channel's end, and the message.
fn heard(conn: &mut Conn) -> String {
    let message = conn.recv();
    let [_, _, channel, what] = message.array() else {
        panic!("{message}");
    };
    let channel = channel.text().trim_start_matches("__key");
    format!("{channel} {}", what.text())
}

/// Each of these is heard next, on all of them: words like `created k`.
#[track_caller]
fn hear(listeners: &mut [Conn], events: &[&str], after: &str) {
    for listener in listeners {
        for event in events {
            let (what, key) = event.split_once(' ').expect("an event and a key");
            assert_eq!(
                heard(listener),
                format!("event@0__:maos.{what} {key}"),
                "{after}"
            );
        }
    }
}

#[test]
fn every_change_is_told_in_one_word_here_and_on_replicas() {
    let master = Server::start();
    let replica = replica_of(&master);
    let both = &mut [listener(&master, "Ed"), listener(&replica, "Ed")];
    let conn = &mut master.conn();
    let mut run = |line: &str, events: &[&str]| {
        let reply = conn.run(line);
        hear(both, events, line);
        reply
    };
    run("MAOS.SET k 1", &["created k"]);
    run("MAOS.SET k 2", &["updated k"]);
    run("MAOS.PATCH k '{\"a\":1}'", &["updated k"]);
    run("MAOS.DEL k", &["deleted k"]);
    run("MAOS.INCRBY n 1", &["created n"]);
    run("MAOS.INCRBY n 1", &["updated n"]);
    run("MAOS.ROLLBACK n VERSION -1", &["rolledback n"]);
    run("MAOS.SET k 3", &["created k"]);
    run("MAOS.MSET 2 b 1 a 1", &["created b", "created a"]);
    let swap = "MAOS.TXN 2 a b THEN SET a 2 THEN DEL b THEN SET a 3";
    run(swap, &["updated a", "deleted b"]);
    run(
        "EVAL \"return redis.call('maos.set', KEYS[1], 1)\" 1 l",
        &["created l"],
    );
    run("MULTI", &[]);
    run("MAOS.SET l 2", &[]);
    run("MAOS.DEL l", &[]);
    run("EXEC", &["updated l", "deleted l"]);
    // What is lost, refused, read or only kept otherwise is no event.
    for line in [
        "MAOS.CAS k 1 v",
        "MAOS.SET k v IFVERSION 1",
        "MAOS.SET k v TOKEN 1",
        "MAOS.GET k",
        "MAOS.HISTORY k",
    ] {
        run(line, &[]);
    }
    let lease = run("MAOS.LOCK k me 60000", &["locked k"]);
    let token = lease.array()[0].int();
    run(&format!("MAOS.RENEW k {token} 60000"), &[]);
    run("MAOS.LOCK k me 60000", &[]);
    run("MAOS.SET k v", &[]);
    run(&format!("MAOS.UNLOCK k {token}"), &[]);
    run(&format!("MAOS.UNLOCK k {token}"), &["unlocked k"]);
    let locks = run("MAOS.MLOCK 2 k none me 60000", &["locked k", "locked none"]);
    let token = locks.array()[0].array()[1].int();
    run(&format!("MAOS.UNLOCK none {token}"), &["unlocked none"]);
    run("MAOS.SET last v", &["created last"]);
}

#[test]
fn a_merge_is_resolved_or_conflicted() {
    let master = Server::start();
    let replica = replica_of(&master);
    let both = &mut [listener(&master, "Ed"), listener(&replica, "Ed")];
    let conn = &mut master.conn();
    let base = conn.run("MAOS.SET d '{\"a\":1,\"b\":1}'").int();
    conn.run("MAOS.SET d '{\"a\":2,\"b\":1}'").int();
    hear(both, &["created d", "updated d"], "two versions");
    let mut merge = |what: &str, how: &str| {
        let reply = conn.run(&format!("MAOS.MERGE d {base} {what}"));
        assert_eq!(reply.array()[2].text(), how, "{reply}");
    };
    merge("'{\"a\":1,\"b\":2}' STRATEGY merge", "merged");
    hear(both, &["resolved d"], "merged");
    merge("'{\"c\":1}' STRATEGY lww", "replaced");
    hear(both, &["resolved d"], "replaced");
    merge("'{\"c\":2}' STRATEGY lww TS 1", "kept");
    // It is one change more where it travels: the loser goes into history.
    hear(&mut both[..1], &["resolved d"], "kept");
    hear(&mut both[1..], &["updated d", "resolved d"], "kept");
    let present = conn.run("MAOS.GET d WITHVERSION").array()[1].int();
    let next = conn.run(&format!("MAOS.MERGE d {present} '{{\"c\":3}}'"));
    assert_eq!(next.array()[2].text(), "fast-forward");
    hear(both, &["updated d"], "fast-forward");
    // Nothing has changed: so it is nothing that replicas hear of.
    let lost = conn.run(&format!("MAOS.MERGE d {base} '{{\"c\":4}}'"));
    assert_eq!(lost.array()[0].int(), 0);
    hear(&mut both[..1], &["conflicted d"], "conflicted");
    conn.run("MAOS.SET d v").int();
    hear(both, &["updated d"], "the next write");
}

#[test]
fn a_lock_that_comes_or_lapses_by_itself_is_told() {
    let master = Server::start();
    let replica = replica_of(&master);
    let both = &mut [listener(&master, "Ed"), listener(&replica, "Ed")];
    let conn = &mut master.conn();
    conn.run("MAOS.SET k v").int();
    let token = conn.run("MAOS.LOCK k a 60000").array()[0].int();
    hear(both, &["created k", "locked k"], "a value and a lock");
    let mut waits = master.conn();
    waits.send(&["MAOS.LOCK", "k", "b", "100", "WAIT", "60000"]);
    eventually(PATIENCE, "somebody waits", || {
        conn.run("MAOS.LOCKS k").field("waiters").array().len() == 1
    });
    conn.run(&format!("MAOS.UNLOCK k {token}")).int();
    assert_eq!(waits.recv().array().len(), 2);
    hear(both, &["unlocked k", "locked k"], "handed on");
    // Its lease ends, and nobody does anything.
    hear(both, &["unlocked k"], "lapsed");
}

#[test]
fn who_does_not_ask_hears_nothing_and_who_asks_hears_of_each_database() {
    let server = Server::start();
    let conn = &mut server.conn();
    let hears = &mut listener(&server, "");
    conn.run("MAOS.SET k 1").int();
    // All classes but ours.
    conn.run("CONFIG SET notify-keyspace-events KEg$lshzxet")
        .ok();
    conn.run("MAOS.SET k 2").int();
    conn.run("MAOS.DEL k").int();
    conn.run("CONFIG SET notify-keyspace-events Kd").ok();
    conn.run("MAOS.SET k 3").int();
    conn.run("SELECT 3").ok();
    conn.run("MAOS.SET k 1").int();
    assert_eq!(heard(hears), "space@0__:k maos.created");
    assert_eq!(heard(hears), "space@3__:k maos.created");
}
