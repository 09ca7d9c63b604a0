//! What was decided travels; nothing is asked again.

use maos_core::codec::v1::encode_record;
use maos_core::model::Model;

use super::{fill, has_failpoints, metric, picture};
use crate::harness::*;

#[test]
fn a_replica_holds_the_same_records_by_stream_and_by_full_sync() {
    let master = Server::start();
    let replica = replica_of(&master);
    let keys = fill(&mut master.conn());
    wait_synced(&master, &replica);
    let there = picture(&mut master.conn(), &keys);
    assert_eq!(picture(&mut replica.conn(), &keys), there);
    let late = replica_of(&master);
    assert_eq!(picture(&mut late.conn(), &keys), there);
    assert_eq!(digest_all(&mut late.conn()), digest_all(&mut master.conn()));
    assert_eq!(metric(&mut replica.conn(), "damaged"), 0);
}

#[test]
fn settings_of_the_replica_decide_nothing() {
    let master = Server::with(&[("maos.history-max-versions", "7")]);
    let replica = replica_with(
        &master,
        &[
            ("maos.history-max-versions", "2"),
            ("maos.history-max-bytes", "10"),
            ("maos.value-max-bytes", "3"),
            ("maos.tombstone-ttl", "1"),
        ],
    );
    let keys = fill(&mut master.conn());
    wait_synced(&master, &replica);
    let there = picture(&mut master.conn(), &keys);
    assert_eq!(picture(&mut replica.conn(), &keys), there);
    assert_eq!(master.conn().run("MAOS.HISTORY long").array().len(), 7);
}

#[test]
fn a_replica_that_keeps_an_aof_survives_on_its_own() {
    let master = Server::start();
    let mut replica = replica_with(&master, &[("appendonly", "yes"), ("appendfsync", "always")]);
    let keys = fill(&mut master.conn());
    wait_synced(&master, &replica);
    let there = picture(&mut master.conn(), &keys);
    // A full synchronisation starts the AOF anew; until that is done there is only the old one.
    super::persistence::wait_rewritten(&mut replica.conn());
    drop(master);
    replica.restart(Stop::Kill);
    assert_eq!(picture(&mut replica.conn(), &keys), there);
}

#[test]
fn a_replica_refuses_writes_and_serves_reads() {
    let master = Server::start();
    let replica = replica_of(&master);
    let first = master.conn().run("MAOS.SET k v").int();
    wait_synced(&master, &replica);
    let conn = &mut replica.conn();
    for line in [
        "MAOS.SET k x",
        "MAOS.CAS k 0 x",
        "MAOS.DEL k",
        "MAOS.MSET 1 k x",
        "MAOS.MCAS 1 k 0 x",
        "MAOS.ROLLBACK k VERSION -1",
    ] {
        assert_eq!(conn.run(line).code(), "READONLY", "{line}");
    }
    assert_eq!(conn.run("MAOS.GET k WITHVERSION").array()[1].int(), first);
    assert_eq!(conn.run("MAOS.HISTORY k").array().len(), 1);
}

#[test]
fn a_promoted_replica_goes_on_above_all_it_has_seen() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let deleted = conn.run("MAOS.SET deleted v").int();
    conn.run("DEL deleted").int();
    let kept = conn.run("MAOS.SET kept v").int();
    wait_synced(&master, &replica);
    drop(master);
    let conn = &mut replica.conn();
    conn.run("REPLICAOF NO ONE").ok();
    let lost = conn.run(&format!("MAOS.CAS deleted {deleted} x"));
    assert_eq!(lost.array()[0].int(), 0);
    assert!(conn.run("MAOS.SET deleted w").int() > deleted);
    assert!(conn.run(&format!("MAOS.CAS kept {kept} x")).array()[1].int() > kept);
}

#[test]
fn a_promoted_replica_with_a_clock_behind_goes_on_above_all_the_same() {
    let master = Server::start();
    let replica = replica_of(&master);
    if !has_failpoints(&mut replica.conn()) {
        println!("skipped: this build has no failpoints");
        return;
    }
    replica.conn().run("MAOS.FAIL clock -3600000").int();
    let deleted = master.conn().run("MAOS.SET deleted v").int();
    master.conn().run("DEL deleted").int();
    wait_synced(&master, &replica);
    replica.conn().run("REPLICAOF NO ONE").ok();
    assert!(replica.conn().run("MAOS.SET deleted w").int() > deleted);
}

#[test]
fn trimming_by_age_is_decided_by_the_master_and_travels() {
    let settings = [
        ("maos.history-max-age", "1"),
        ("maos.background-effort-us", "20000"),
    ];
    let master = Server::with(&settings);
    let replica = replica_with(&master, &[]);
    let conn = &mut master.conn();
    for n in 0..5 {
        conn.run(&format!("MAOS.SET k {n}")).int();
    }
    eventually(PATIENCE, "the old versions leave", || {
        conn.run("MAOS.HISTORY k").array().len() == 1
    });
    wait_synced(&master, &replica);
    assert_eq!(digest(conn, "k"), digest(&mut replica.conn(), "k"));
    assert_eq!(metric(conn, "trimmed"), 4);
    assert_eq!(
        metric(&mut replica.conn(), "trimmed"),
        0,
        "a replica decides nothing"
    );
    assert_eq!(conn.run("MAOS.GET k VERSION -1").code(), "NOVERSION");
}

#[test]
fn a_replica_does_not_trim_what_its_master_keeps() {
    let master = Server::with(&[("maos.background-effort-us", "0")]);
    let replica = replica_with(
        &master,
        &[
            ("maos.history-max-age", "1"),
            ("maos.background-effort-us", "20000"),
        ],
    );
    let conn = &mut master.conn();
    let long = "x".repeat(1000);
    for _ in 0..5 {
        cmd!(conn, "MAOS.SET", "k", &long).int();
    }
    wait_synced(&master, &replica);
    // How a version is kept is the node's own business: the replica compresses, and agrees.
    let there = &mut replica.conn();
    eventually(PATIENCE, "the replica has compressed", || {
        metric(there, "compressed") == 4
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(there.run("MAOS.HISTORY k").array().len(), 5);
    assert_eq!(digest(there, "k"), digest(conn, "k"));
    assert_eq!(metric(conn, "compressed"), 0);
}

#[test]
fn only_a_master_or_the_aof_may_apply() {
    // What a server would obey: a change and a record that are in order.
    let mut model = Model::at(1_790_000_000_000_000);
    model.run(&[b"MAOS.SET", b"k", b"forged"]).unwrap();
    let fact = model.sent[0][0].clone();
    let mut record = vec![];
    encode_record(&model.keys()[&b"k"[..]].record, None, &mut record);
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    let before = digest(conn, "k");
    for key in ["k", "new"] {
        let refused = cmd!(conn, "MAOS.APPLY", fact, key, "forged");
        assert!(refused
            .err()
            .starts_with("ERR this command is for replicas"));
        let refused = cmd!(conn, "MAOS.LOAD", key, record);
        assert!(refused
            .err()
            .starts_with("ERR this command is for replicas"));
        let lua = "return redis.pcall('MAOS.APPLY', ARGV[1], KEYS[1], 'forged')";
        assert!(cmd!(conn, "EVAL", lua, "1", key, fact).is_err());
    }
    assert_eq!(digest(conn, "k"), before);
    assert_eq!(conn.run("EXISTS new").int(), 0);
}

#[test]
fn a_refused_write_is_not_replicated() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.SET k v").int();
    wait_synced(&master, &replica);
    let calls = |conn: &mut Conn| {
        let stats = conn.info("commandstats");
        stats
            .get("cmdstat_MAOS.APPLY")
            .or(stats.get("cmdstat_maos.apply"))
            .cloned()
    };
    let count = |stat: Option<String>| -> Option<String> {
        stat.and_then(|s| s.split(',').next().map(str::to_owned))
    };
    let before = count(calls(&mut replica.conn()));
    assert_eq!(before.as_deref(), Some("calls=1"));
    conn.run("MAOS.CAS k 5 x").array();
    conn.run("MAOS.SET k x META nonsense").err();
    conn.run("MAOS.DEL nothing").int();
    conn.run("MAOS.MCAS 2 k 5 x j 0 y").array();
    wait_synced(&master, &replica);
    assert_eq!(count(calls(&mut replica.conn())), before);
}

#[test]
fn a_diskless_load_gives_the_same_records() {
    for load in ["swapdb", "on-empty-db"] {
        let master = Server::start();
        let keys = fill(&mut master.conn());
        let replica = replica_with(&master, &[("repl-diskless-load", load)]);
        let there = picture(&mut master.conn(), &keys);
        assert_eq!(picture(&mut replica.conn(), &keys), there);
        // Again, over what is there: a replica that has lost its place loads while it serves.
        master.conn().run("DEBUG CHANGE-REPL-ID").ok();
        master.conn().run("MAOS.SET plain again").int();
        replica.conn().run("REPLICAOF NO ONE").ok();
        replica.conn().run("MAOS.SET astray v").int();
        let to = format!("REPLICAOF 127.0.0.1 {}", master.port());
        replica.conn().run(&to).ok();
        wait_synced(&master, &replica);
        let there = picture(&mut master.conn(), &keys);
        assert_eq!(picture(&mut replica.conn(), &keys), there);
        assert_eq!(replica.conn().run("EXISTS astray").int(), 0);
        eventually(PATIENCE, "what was replaced is freed", || {
            metric(&mut replica.conn(), "records") == keys.len() as i64
        });
    }
}

#[test]
fn two_nodes_that_saw_the_same_stamp_from_ahead_give_different_ones() {
    let ahead = Server::start();
    if !has_failpoints(&mut ahead.conn()) {
        println!("skipped: this build has no failpoints");
        return;
    }
    // Half a day: within what is taken.
    ahead.conn().run("MAOS.FAIL clock 43200000").int();
    ahead.conn().run("MAOS.SET p v").int();
    let dump = ahead.conn().run("DUMP p").bytes().to_vec();
    let master = Server::start();
    let replica = replica_of(&master);
    cmd!(master.conn(), "RESTORE", "p", "0", &dump[..]).ok();
    master.conn().run("MAOS.SET k base").int();
    wait_synced(&master, &replica);
    replica.conn().run("REPLICAOF NO ONE").ok();
    // A failover: each goes on by itself. One number may meet another by chance; a clock that only
    // counts gives the same ones all along.
    let go_on = |server: &Server| -> Vec<i64> {
        let conn = &mut server.conn();
        (0..5).map(|_| conn.run("MAOS.SET k v").int()).collect()
    };
    let (there, here) = (go_on(&master), go_on(&replica));
    assert_ne!(there, here);
}

#[test]
fn a_replica_that_others_wrote_to_can_still_be_restarted() {
    let master = Server::start();
    let mut replica = replica_with(&master, &[("replica-read-only", "no")]);
    if !has_failpoints(&mut replica.conn()) {
        println!("skipped: this build has no failpoints");
        return;
    }
    master.conn().run("MAOS.SET k 1").int();
    wait_synced(&master, &replica);
    replica.conn().run("MAOS.FAIL clock 10000").int();
    replica.conn().run("MAOS.SET k local").int();
    let decided = master.conn().run("MAOS.SET k 2").int();
    wait_synced(&master, &replica);
    assert_eq!(metric(&mut replica.conn(), "damaged"), 1);
    drop(master);
    replica.restart(Stop::Save);
    let pair = replica.conn().run("MAOS.GET k WITHVERSION");
    assert_eq!(pair.array()[0].text(), "2");
    assert_eq!(pair.array()[1].int(), decided);
}
