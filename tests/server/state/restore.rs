//! RESTORE of an old dump: what comes back is readable, and no old compare-and-set fits it.

use super::{fill, has_failpoints, metric, picture};
use crate::harness::*;
use crate::state::persistence::wait_rewritten;

/// How a client may send a command.
const WAYS: [&str; 4] = ["plain", "multi", "lua", "pipeline"];

fn send(conn: &mut Conn, way: &str, args: &[&[u8]]) {
    match way {
        "multi" => {
            conn.run("MULTI").ok();
            conn.cmd(args);
            conn.run("PING");
            assert!(!conn.run("EXEC").array()[0].is_err());
        }
        "lua" => {
            let script = "return redis.call(unpack(ARGV))";
            let mut all: Vec<&[u8]> = vec![b"EVAL", script.as_bytes(), b"1", args[1]];
            all.extend(args);
            conn.cmd(&all).ok();
        }
        "pipeline" => {
            let mut bytes = Conn::encode(args);
            bytes.extend(Conn::encode(&["PING"]));
            conn.send_raw(&bytes);
            conn.recv().ok();
            conn.recv();
        }
        _ => conn.cmd(args).ok(),
    }
}

fn version(conn: &mut Conn, key: &str) -> i64 {
    conn.run(&format!("MAOS.GET {key} WITHVERSION")).array()[1].int()
}

#[track_caller]
fn loses(conn: &mut Conn, key: &str, old: i64) {
    for line in [
        format!("MAOS.CAS {key} {old} stolen"),
        format!("MAOS.SET {key} stolen IFVERSION {old}"),
    ] {
        assert_eq!(conn.run(&line).array()[0].int(), 0, "{line}");
    }
}

#[test]
fn an_old_dump_gets_a_version_of_its_own_and_everyone_agrees_on_it() {
    let mut master = Server::with(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let mut replica = replica_with(&master, &[("appendonly", "yes")]);
    let chained = replica_of(&replica);
    let mut keys = vec![];
    {
        let conn = &mut master.conn();
        conn.run("SELECT 3").ok();
        for (n, way) in WAYS.iter().enumerate() {
            // Over what is there, after a purge, after an expiry that is not yet noticed.
            for (m, purge) in ["", "DEL", "PEXPIRE", "MAOS.DEL"].iter().enumerate() {
                let key: &'static str = format!("k{n}{m}").leak();
                let set = format!("MAOS.SET {key} old BY planner META '{{\"why\":1}}' REQID r1");
                let old = conn.run(&set).int();
                let dump = conn.run(&format!("DUMP {key}")).bytes().to_vec();
                let newer = conn.run(&format!("MAOS.SET {key} newer")).int();
                match *purge {
                    "" => {}
                    "PEXPIRE" => drop(conn.run(&format!("PEXPIRE {key} 1"))),
                    purge => drop(conn.run(&format!("{purge} {key}"))),
                }
                let args: [&[u8]; 5] = [b"RESTORE", key.as_bytes(), b"0", &dump, b"REPLACE"];
                send(conn, way, &args);
                let now = version(conn, key);
                assert!(now > newer, "{way} {purge}");
                loses(conn, key, old);
                loses(conn, key, newer);
                // What was restored can be read, and is the value: who wrote it, and why, too.
                let full = conn.run(&format!("MAOS.GET {key} FULL"));
                assert_eq!(full.field("value").text(), "old");
                assert_eq!(full.field("agent").text(), "planner");
                assert_eq!(full.field("metadata").text(), "{\"why\":1}");
                let past = conn.run(&format!("MAOS.GET {key} VERSION {old}"));
                assert_eq!(past.text(), "old");
                // Its request was made once.
                let again = conn.run(&format!("MAOS.SET {key} x REQID r1")).int();
                assert_eq!(again, old);
                let won = conn.run(&format!("MAOS.CAS {key} {now} next"));
                assert_eq!(won.array()[0].int(), 1);
                send(conn, way, &args);
                keys.push(key);
            }
        }
    }
    wait_synced(&master, &replica);
    wait_synced(&replica, &chained);
    let look = |server: &Server| {
        let conn = &mut server.conn();
        conn.run("SELECT 3").ok();
        picture(conn, &keys)
    };
    let there = look(&master);
    assert_eq!(look(&replica), there, "the replica");
    assert_eq!(look(&chained), there, "the replica of the replica");
    drop(chained);
    replica.restart(Stop::Kill);
    wait_synced(&master, &replica);
    assert_eq!(look(&replica), there, "the replica's own AOF");
    master.restart(Stop::Kill);
    assert_eq!(look(&master), there, "the AOF");
    master.conn().run("BGREWRITEAOF");
    wait_rewritten(&mut master.conn());
    master.restart(Stop::Kill);
    assert_eq!(look(&master), there, "the rewritten AOF");
    assert_eq!(metric(&mut master.conn(), "damaged"), 0);
    assert_eq!(metric(&mut replica.conn(), "damaged"), 0);
}

#[test]
fn what_this_node_never_had_is_kept_as_it_is() {
    let (from, to) = (Server::start(), Server::start());
    let keys = fill(&mut from.conn());
    let (there, conn) = (&mut from.conn(), &mut to.conn());
    let mut dumps = vec![];
    // The newest first, so that the clock has seen more than each of the others holds.
    for key in keys.iter().rev() {
        let at = there.run(&format!("PEXPIRETIME {key}")).int().max(0);
        dumps.push((
            key,
            at.to_string(),
            there.run(&format!("DUMP {key}")).bytes().to_vec(),
        ));
    }
    // Twice: a record that the key holds already may come again.
    for _ in 0..2 {
        for (key, at, dump) in &dumps {
            cmd!(conn, "RESTORE", key, at, dump, "ABSTTL", "REPLACE").ok();
        }
        assert_eq!(picture(conn, &keys), picture(there, &keys));
        assert_eq!(digest_all(conn), digest_all(there));
    }
}

#[test]
fn a_past_that_a_node_has_lost_sight_of_still_counts() {
    let old_dump = |conn: &mut Conn| {
        let old = conn.run("MAOS.SET k old").int();
        let dump = conn.run("DUMP k").bytes().to_vec();
        conn.run("MAOS.SET k newer").int();
        (old, dump)
    };
    for lost in [
        "FLUSHALL SYNC",
        "FLUSHALL ASYNC",
        "FLUSHDB",
        "SWAPDB 0 1",
        "MOVE k 1",
        "RENAME k j",
        "SET k plain",
        "UNLINK k",
        "restart",
        "replica",
    ] {
        // Only restored, never written: nothing but its going tells that the key was here.
        let source = Server::start();
        let (old, dump) = old_dump(&mut source.conn());
        let mut server = Server::start();
        cmd!(server.conn(), "RESTORE", "k", "0", &dump[..]).ok();
        assert_eq!(version(&mut server.conn(), "k"), old, "{lost}");
        match lost {
            "restart" => {
                server.conn().run("DEL k").int();
                server.restart(Stop::Save);
            }
            "replica" => {
                let replica = replica_of(&server);
                server.conn().run("DEL k").int();
                wait_synced(&server, &replica);
                replica.conn().run("REPLICAOF NO ONE").ok();
                server = replica;
            }
            line => assert!(!server.conn().run(line).is_err()),
        }
        let conn = &mut server.conn();
        cmd!(conn, "RESTORE", "k", "0", &dump[..], "REPLACE").ok();
        assert!(version(conn, "k") > old, "{lost}");
        loses(conn, "k", old);
    }
}

#[test]
fn a_restore_that_fails_or_is_too_late_harms_nobody() {
    let master = Server::with(&[("appendonly", "yes")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let old = conn.run("MAOS.SET k old").int();
    let dump = conn.run("DUMP k").bytes().to_vec();
    let newer = conn.run("MAOS.SET k newer").int();
    // Without REPLACE: refused.
    assert_eq!(cmd!(conn, "RESTORE", "k", "0", &dump[..]).code(), "BUSYKEY");
    assert_eq!(version(conn, "k"), newer);
    // It has expired already: nothing comes, and the decision about it waits for nobody.
    for key in ["k", "absent"] {
        cmd!(conn, "RESTORE", key, "1000", &dump[..], "REPLACE", "ABSTTL").ok();
        assert_eq!(conn.run(&format!("EXISTS {key}")).int(), 0);
    }
    // The next one is a decision of its own.
    for key in ["absent", "k"] {
        cmd!(conn, "RESTORE", key, "0", &dump[..]).ok();
        loses(conn, key, old);
    }
    wait_synced(&master, &replica);
    let keys = ["k", "absent"];
    let there = picture(conn, &keys);
    assert_eq!(picture(&mut replica.conn(), &keys), there);
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!(picture(conn, &keys), there);
}

#[test]
fn a_tombstone_and_a_newer_dump_come_as_they_are() {
    let server = Server::start();
    let conn = &mut server.conn();
    let old = conn.run("MAOS.SET k v").int();
    conn.run("MAOS.DEL k").int();
    let dump = conn.run("DUMP k").bytes().to_vec();
    let at = conn.run("PEXPIRETIME k").int().to_string();
    let before = digest(conn, "k");
    conn.run("DEL k").int();
    cmd!(conn, "RESTORE", "k", &at, &dump[..], "ABSTTL").ok();
    assert_eq!(digest(conn, "k"), before);
    loses(conn, "k", old);
    // From a node that has gone on by itself: newer than anything here.
    let other = Server::start();
    let newest = other.conn().run("MAOS.SET k newest").int();
    let dump = other.conn().run("DUMP k").bytes().to_vec();
    cmd!(conn, "RESTORE", "k", "0", &dump[..], "REPLACE").ok();
    assert_eq!(version(conn, "k"), newest);
}

#[test]
fn only_a_master_says_what_a_restore_becomes() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    let refused = conn.run("MAOS.RESTORED k 5 9");
    assert!(refused.err().starts_with("ERR this command is for"));
}

#[test]
fn with_the_wall_clock_stepped_back_it_still_rises() {
    let server = Server::start();
    let conn = &mut server.conn();
    if !has_failpoints(conn) {
        println!("skipped: this build has no failpoints");
        return;
    }
    let old = conn.run("MAOS.SET k old").int();
    let dump = conn.run("DUMP k").bytes().to_vec();
    let mut above = conn.run("MAOS.SET k newer").int();
    conn.run("MAOS.FAIL clock -172800000").int();
    for _ in 0..3 {
        cmd!(conn, "RESTORE", "k", "0", &dump[..], "REPLACE").ok();
        let now = version(conn, "k");
        assert!(now > above);
        above = now;
        loses(conn, "k", old);
    }
}
