//! Traffic of every kind, and then a way of writing everything down and reading it back: every key must
//! hold what the model holds, versions, history, expiry and all.

use maos_core::model::Held;

use super::*;
use crate::state::persistence::wait_rewritten;

type Start = fn(&[(&str, &str)]) -> (Server, Oracle);

/// Some traffic, sent in every way.
#[track_caller]
fn traffic(oracle: &mut Oracle, server: &Server) {
    oracle.exact_bytes = false;
    let conn = &mut server.conn();
    let ways = [Way::Single, Way::Pipeline, Way::Multi, Way::Script];
    for way in ways {
        oracle.converse(conn, way, requests() / 10);
    }
    oracle.agree(conn, "after the traffic");
}

#[test]
fn reloads_and_restarts_from_the_aof() {
    for (preamble, start) in [("yes", Oracle::busy as Start), ("no", Oracle::start)] {
        let lines = [("appendonly", "yes"), ("aof-use-rdb-preamble", preamble)];
        let (mut server, mut oracle) = start(&lines);
        traffic(&mut oracle, &server);
        server.conn().run("DEBUG RELOAD").ok();
        oracle.agree(&mut server.conn(), "after DEBUG RELOAD");
        // DEBUG RELOAD begins no new AOF, and what is in it is what was sent.
        traffic(&mut oracle, &server);
        server.restart(Stop::NoSave);
        oracle.agree(&mut server.conn(), "after a restart from the AOF alone");
        traffic(&mut oracle, &server);
        server.conn().run("BGREWRITEAOF");
        wait_rewritten(&mut server.conn());
        server.restart(Stop::NoSave);
        oracle.agree(&mut server.conn(), "after a rewrite and a restart");
        // What comes after a rewrite stands behind it.
        traffic(&mut oracle, &server);
        server.restart(Stop::NoSave);
        oracle.agree(&mut server.conn(), "after traffic behind a rewrite");
    }
}

#[test]
fn restarts_from_rdb() {
    for start in [Oracle::busy as Start, Oracle::start] {
        let (mut server, mut oracle) = start(&[]);
        traffic(&mut oracle, &server);
        server.restart(Stop::Save);
        oracle.agree(&mut server.conn(), "after a restart from RDB");
        traffic(&mut oracle, &server);
        server.restart(Stop::Save);
        oracle.agree(&mut server.conn(), "after another restart from RDB");
    }
}

#[test]
fn replicas_by_stream_by_part_and_in_full() {
    let (master, mut oracle) = Oracle::start(&[("repl-backlog-size", "64mb")]);
    traffic(&mut oracle, &master);
    // The replica compresses, the master does not: they hold the same.
    let replica = replica_with(&master, &[BUSY]);
    let there = &mut replica.conn();
    oracle.agree(there, "after the first synchronisation");
    let count =
        |name: &str| -> u64 { master.conn().info("stats")[name].parse().expect("a number") };
    for _ in 0..3 {
        traffic(&mut oracle, &master);
        wait_synced(&master, &replica);
        oracle.agree(there, "by the stream");
        let before = (count("sync_full"), count("sync_partial_ok"));
        assert_eq!(master.conn().run("CLIENT KILL TYPE replica").int(), 1);
        traffic(&mut oracle, &master);
        wait_synced(&master, &replica);
        let after = (count("sync_full"), count("sync_partial_ok"));
        assert!(
            after.0 == before.0 && after.1 > before.1,
            "{before:?}, then {after:?}"
        );
        oracle.agree(there, "after a synchronisation in part");
    }
    let before = count("sync_full");
    there.run("REPLICAOF NO ONE").ok();
    // A history of its own: the master cannot go on where this replica stopped.
    cmd!(there, "SET", "{o}:other", "astray").ok();
    cmd!(there, "DEL", oracle.generator.keys[0]).int();
    cmd!(there, "MAOS.SET", oracle.generator.keys[0], "astray").int();
    traffic(&mut oracle, &master);
    there
        .run(&format!("REPLICAOF 127.0.0.1 {}", master.port()))
        .ok();
    wait_synced(&master, &replica);
    assert!(count("sync_full") > before);
    oracle.agree(there, "after a full synchronisation");
}

#[test]
fn a_replica_answers_reads_and_refuses_writes() {
    let (master, mut oracle) = Oracle::busy(&[]);
    traffic(&mut oracle, &master);
    let replica = replica_of(&master);
    let conn = &mut replica.conn();
    let (mut read, mut refused) = (0, 0);
    while read + refused < requests() / 2 {
        oracle.settle();
        let request = oracle.generator.request(&oracle.model);
        let sent = now_us();
        let reply = conn.cmd(&request);
        let writes = spec_of(&request).is_some_and(CommandSpec::is_write);
        if writes && enough_words(&request) {
            refused += 1;
            assert_eq!(
                reply.code(),
                "READONLY",
                "{}",
                oracle.told(Way::Single, &[request])
            );
        } else {
            read += 1;
            oracle.compare(&request, &reply, (sent, now_us()), Way::Single);
        }
    }
    assert!(
        read > 100 && refused > 100,
        "{read} reads, {refused} writes"
    );
    oracle.agree(conn, "on the replica");
    oracle.agree(&mut master.conn(), "on the master");
}

#[test]
fn copies_of_every_kind() {
    let (server, mut oracle) = Oracle::busy(&[]);
    traffic(&mut oracle, &server);
    // To a server on which nothing was written.
    let fresh = Server::start();
    let (conn, target) = (&mut server.conn(), &mut fresh.conn());
    let with_value = |held: &&Held| !held.record.is_bare();
    let locked = oracle.model.clone();
    for (key, held) in locked.keys().iter().filter(|(_, held)| with_value(held)) {
        let dump = cmd!(conn, "DUMP", key);
        let at = held.expires_ms.unwrap_or(0).to_string();
        cmd!(target, "RESTORE", key, at, dump.bytes(), "ABSTTL").ok();
    }
    // Locks do not come along.
    oracle.model.unlock_all();
    oracle.agree(target, "after DUMP and RESTORE");
    let away = |key: &[u8]| [key, b":away"].concat();
    let keys: Vec<Vec<u8>> = oracle.model.keys().keys().cloned().collect();
    for key in &keys {
        assert_eq!(cmd!(conn, "COPY", key, away(key)).int(), 1);
    }
    oracle.agree_under(conn, "a copy", away);
    for key in locked.keys().keys().filter(|key| !keys.contains(key)) {
        let copied = cmd!(conn, "COPY", key, away(key));
        assert!(copied.err().contains("failed to copy"), "{copied}");
        cmd!(conn, "DEL", key).int();
    }
    oracle.model = locked;
    for key in oracle.model.clone().keys().keys() {
        if !keys.contains(key) {
            oracle.model.purge(key);
        }
    }
    // A copy is its own record: what becomes of it is nothing to the other.
    for key in &keys {
        cmd!(conn, "MAOS.SET", away(key), "another").int();
        cmd!(conn, "DEL", away(key)).int();
    }
    oracle.agree(conn, "what was copied");
    for key in &keys {
        cmd!(conn, "RENAME", key, away(key)).ok();
    }
    oracle.agree_under(conn, "under another name", away);
    for key in &keys {
        assert_eq!(cmd!(conn, "COPY", away(key), key, "DB", "2").int(), 1);
        assert_eq!(cmd!(conn, "MOVE", away(key), "1").int(), 1);
        assert_eq!(cmd!(conn, "EXISTS", key, away(key)).int(), 0);
    }
    conn.run("SELECT 1").ok();
    oracle.agree_under(conn, "moved to another database", away);
    conn.run("SELECT 2").ok();
    oracle.model.unlock_all();
    oracle.agree(conn, "copied to another database");
    conn.run("SWAPDB 0 2").ok();
    conn.run("SELECT 0").ok();
    oracle.agree(conn, "after the databases were swapped");
    // And life goes on from there.
    cmd!(conn, "SET", "{o}:other", "plain").ok();
    oracle.converse(conn, Way::Pipeline, requests() / 10);
    oracle.agree(conn, "after traffic there");
}
