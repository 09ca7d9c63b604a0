//! A version is never given twice for a key, and an old compare-and-set never succeeds: not after
//! anything that can happen to a key, a node or a clock.

use std::collections::BTreeSet;

use super::{has_failpoints, metric};
use crate::harness::*;

/// A key, and every version of it that anybody has seen.
struct Watched {
    key: &'static str,
    seen: BTreeSet<i64>,
}

impl Watched {
    fn new(key: &'static str) -> Watched {
        let seen = BTreeSet::new();
        Watched { key, seen }
    }

    /// Takes note of a version that was just given.
    #[track_caller]
    fn given(&mut self, version: i64) -> i64 {
        assert!(self.seen.insert(version), "{version} was given before");
        version
    }

    /// Writes a value; its version was never seen.
    #[track_caller]
    fn set(&mut self, conn: &mut Conn, value: &str) -> i64 {
        let version = cmd!(conn, "MAOS.SET", self.key, value).int();
        self.given(version)
    }

    /// A past to attack with: writes of every kind, a deletion among them.
    fn live(&mut self, conn: &mut Conn) -> i64 {
        let key = self.key;
        let first = self.set(conn, "one");
        let won = conn.run(&format!("MAOS.CAS {key} {first} two"));
        self.given(won.array()[1].int());
        self.given(conn.run(&format!("MAOS.DEL {key}")).int());
        self.given(
            conn.run(&format!("MAOS.ROLLBACK {key} VERSION {first}"))
                .int(),
        );
        self.given(conn.run(&format!("MAOS.MSET 1 {key} three")).int());
        self.set(conn, "four")
    }

    fn current(&self, conn: &mut Conn) -> Option<i64> {
        let pair = conn.run(&format!("MAOS.GET {} WITHVERSION", self.key));
        (!pair.is_nil()).then(|| pair.array()[1].int())
    }

    /// No conditional write of any kind finds its old version.
    #[track_caller]
    fn old_ones_lose(&self, conn: &mut Conn) {
        let key = self.key;
        let current = self.current(conn);
        let before = conn.run(&format!("MAOS.GET {key} FULL")).to_string();
        for old in self.seen.iter().copied().filter(|v| Some(*v) != current) {
            for line in [
                format!("MAOS.CAS {key} {old} stolen"),
                format!("MAOS.SET {key} stolen IFVERSION {old}"),
                format!("MAOS.DEL {key} IFVERSION {old}"),
                format!("MAOS.MCAS 1 {key} {old} stolen"),
            ] {
                let lost = conn.run(&line);
                assert_eq!(
                    lost.array()[0].int(),
                    0,
                    "{line} succeeded: {:?}",
                    self.seen
                );
            }
        }
        assert_eq!(
            conn.run(&format!("MAOS.GET {key} FULL")).to_string(),
            before
        );
    }

    /// The key may hold what it held; every other version is history, and new ones lie above all.
    #[track_caller]
    fn attack(&mut self, conn: &mut Conn) {
        self.old_ones_lose(conn);
        let above = self.seen.last().copied().unwrap_or(0);
        let new = self.set(conn, "new");
        assert!(new > above, "{new} after {above}");
        self.old_ones_lose(conn);
        let won = conn.run(&format!("MAOS.CAS {} {new} newer", self.key));
        assert_eq!(won.array()[0].int(), 1);
        self.given(won.array()[1].int());
        self.old_ones_lose(conn);
    }

    /// The key holds nothing that was ever seen.
    #[track_caller]
    fn attack_afresh(&mut self, conn: &mut Conn) {
        if let Some(current) = self.current(conn) {
            self.old_ones_lose(conn);
            self.given(current);
        }
        self.attack(conn);
    }
}

/// Lives, does something to the key, attacks.
#[track_caller]
fn gone_by(conn: &mut Conn, purge: impl FnOnce(&mut Conn)) {
    let mut k = Watched::new("k");
    k.live(conn);
    purge(conn);
    assert_eq!(k.current(conn), None);
    k.attack_afresh(conn);
}

#[test]
fn after_del() {
    let server = Server::start();
    for line in ["DEL k", "MAOS.DEL k"] {
        gone_by(&mut server.conn(), |conn| assert!(conn.run(line).int() > 0));
    }
}

#[test]
fn after_unlink() {
    let server = Server::start();
    gone_by(&mut server.conn(), |conn| {
        assert_eq!(conn.run("UNLINK k").int(), 1);
    });
}

#[test]
fn after_expiry() {
    let server = Server::start();
    let conn = &mut server.conn();
    gone_by(conn, |conn| {
        conn.run("PEXPIRE k 1").int();
        eventually(PATIENCE, "the key expires", || {
            conn.run("EXISTS k").int() == 0
        });
    });
    let mut k = Watched::new("j");
    k.live(conn);
    k.given(conn.run("MAOS.SET j v PX 1").int());
    eventually(PATIENCE, "the key expires", || k.current(conn).is_none());
    k.attack_afresh(conn);
}

#[test]
fn after_eviction() {
    let server = Server::start();
    gone_by(&mut server.conn(), |conn| {
        conn.run("CONFIG SET maxmemory-policy allkeys-random").ok();
        conn.run("CONFIG SET maxmemory 1").ok();
        eventually(PATIENCE, "the key is evicted", || {
            conn.run("SET filler x");
            conn.run("EXISTS k").int() == 0
        });
        assert!(conn.info("stats")["evicted_keys"] != "0");
        conn.run("CONFIG SET maxmemory 0").ok();
    });
}

#[test]
fn after_flushall_and_flushdb() {
    let server = Server::start();
    for line in [
        "FLUSHALL SYNC",
        "FLUSHALL ASYNC",
        "FLUSHDB SYNC",
        "FLUSHDB ASYNC",
    ] {
        gone_by(&mut server.conn(), |conn| conn.run(line).ok());
    }
}

#[test]
fn after_being_overwritten_by_other_means() {
    let server = Server::start();
    let conn = &mut server.conn();
    gone_by(conn, |conn| {
        conn.run("SET k plain").ok();
        conn.run("DEL k").int();
    });
    gone_by(conn, |conn| {
        conn.run("SET k plain").ok();
        conn.run("GETDEL k");
    });
}

#[test]
fn after_rename_copy_move_and_swapdb() {
    let server = Server::start();
    let conn = &mut server.conn();
    let mut k = Watched::new("k");
    let mut other = Watched::new("other");
    // Over the key: what comes was never a version of it.
    for line in ["RENAME other k", "COPY other k REPLACE"] {
        other.live(conn);
        k.live(conn);
        conn.run(line);
        k.attack_afresh(conn);
    }
    // Away, and back again over what was written meanwhile: the same record, no version of which has
    // become another.
    for (away, back) in [
        ("RENAME k there", "RENAME there k"),
        ("COPY k there REPLACE", "COPY there k REPLACE"),
    ] {
        let before = k.live(conn);
        conn.run(away);
        k.live(conn);
        conn.run(back);
        assert_eq!(k.current(conn), Some(before));
        k.attack(conn);
    }
    let before = k.live(conn);
    conn.run("MOVE k 1").int();
    k.live(conn);
    conn.run("DEL k").int();
    conn.run("SWAPDB 0 1").ok();
    assert_eq!(k.current(conn), Some(before));
    k.attack(conn);
}

#[test]
fn a_version_shared_by_one_commit_is_never_given_again() {
    let server = Server::start();
    let conn = &mut server.conn();
    let mut b = Watched::new("b");
    b.live(conn);
    let shared = b.given(conn.run("MAOS.MSET 2 a 1 b 2").int());
    b.set(conn, "later");
    // What the README says: the copy brings the version that both keys share, and nothing older.
    assert_eq!(conn.run("COPY a b REPLACE").int(), 1);
    assert_eq!(b.current(conn), Some(shared));
    b.attack(conn);
}

#[test]
fn after_a_restart_without_persistence() {
    for stop in [Stop::NoSave, Stop::Kill] {
        let mut server = Server::start();
        let mut k = Watched::new("k");
        k.live(&mut server.conn());
        server.restart(stop);
        assert_eq!(k.current(&mut server.conn()), None);
        k.attack_afresh(&mut server.conn());
    }
}

#[test]
fn after_a_restart_with_rdb() {
    for purged in [false, true] {
        let mut server = Server::start();
        let mut k = Watched::new("k");
        let kept = k.live(&mut server.conn());
        if purged {
            server.conn().run("DEL k").int();
        }
        server.restart(Stop::Save);
        let kept = (!purged).then_some(kept);
        assert_eq!(k.current(&mut server.conn()), kept);
        k.attack(&mut server.conn());
        // A crash: what came after the file is lost, and none of it is given again.
        let saved = k.current(&mut server.conn());
        server.conn().run("SAVE").ok();
        k.live(&mut server.conn());
        server.restart(Stop::Kill);
        assert_eq!(k.current(&mut server.conn()), saved);
        k.attack(&mut server.conn());
    }
}

#[test]
fn after_a_restart_with_aof() {
    for purged in [false, true] {
        let mut server = Server::with(&[("appendonly", "yes"), ("appendfsync", "always")]);
        let mut k = Watched::new("k");
        let kept = k.live(&mut server.conn());
        if purged {
            server.conn().run("DEL k").int();
        }
        server.restart(Stop::Kill);
        let kept = (!purged).then_some(kept);
        assert_eq!(k.current(&mut server.conn()), kept);
        k.attack(&mut server.conn());
    }
}

#[test]
fn after_a_replica_is_promoted() {
    let master = Server::start();
    let replica = replica_of(&master);
    let mut k = Watched::new("k");
    let kept = k.live(&mut master.conn());
    wait_synced(&master, &replica);
    // What the replica never gets is lost, and given to nobody else.
    replica.pause();
    k.live(&mut master.conn());
    master.conn().run("DEL k").int();
    k.live(&mut master.conn());
    drop(master);
    replica.resume();
    let conn = &mut replica.conn();
    conn.run("REPLICAOF NO ONE").ok();
    assert!(k.current(conn) >= Some(kept));
    k.attack(conn);
}

#[test]
fn after_a_failover_in_a_cluster() {
    let mut cluster = Cluster::start(1, 1);
    let mut k = Watched::new("k");
    let kept = k.live(&mut cluster.nodes[0].conn());
    wait_synced(&cluster.nodes[0], &cluster.nodes[1]);
    cluster.nodes[1].pause();
    k.live(&mut cluster.nodes[0].conn());
    cluster.nodes[0].kill();
    cluster.nodes[1].resume();
    let conn = &mut cluster.nodes[1].conn();
    conn.run("CLUSTER FAILOVER TAKEOVER").ok();
    eventually(PATIENCE, "the replica is the master", || {
        conn.run("ROLE").array()[0].text() == "master" && !conn.run("MAOS.GET k").is_err()
    });
    assert!(k.current(conn) >= Some(kept));
    k.attack(conn);
    // The old master comes back, as a replica of what was its own.
    cluster.nodes[0].start_again();
    eventually(PATIENCE, "the old master follows", || {
        let info = cluster.nodes[0].conn().info("replication");
        info.get("master_link_status").is_some_and(|s| s == "up")
    });
    k.attack(&mut cluster.nodes[1].conn());
}

const TWO_DAYS_BACK: &str = "MAOS.FAIL clock -172800000";

#[test]
fn when_the_wall_clock_steps_back() {
    let server = Server::start();
    let conn = &mut server.conn();
    if !has_failpoints(conn) {
        println!("skipped: this build has no failpoints");
        return;
    }
    let mut k = Watched::new("k");
    k.live(conn);
    conn.run(TWO_DAYS_BACK).int();
    k.attack(conn);
    for purge in ["DEL k", "UNLINK k", "FLUSHALL", "MAOS.DEL k"] {
        conn.run(purge);
        k.attack_afresh(conn);
    }
    let lines = vec!["MAOS.SET k v"; 2000];
    for version in conn.pipeline(&lines) {
        k.given(version.int());
    }
    // Its own stamps are not foreign ones.
    assert_eq!(metric(conn, "stamps_ahead"), 0);
    assert!(metric(conn, "clock_ahead_us") > 172_000_000_000);
}

#[test]
fn when_the_wall_clock_steps_back_over_a_restart() {
    for (aof, stop) in [("yes", Stop::Kill), ("no", Stop::Save)] {
        let mut server = Server::with(&[("appendonly", aof), ("appendfsync", "always")]);
        if !has_failpoints(&mut server.conn()) {
            println!("skipped: this build has no failpoints");
            return;
        }
        let mut k = Watched::new("k");
        k.live(&mut server.conn());
        server.conn().run(TWO_DAYS_BACK).int();
        k.set(&mut server.conn(), "later, at an earlier time");
        server.restart(stop);
        // Before any write: the clock is above all that was loaded. What was purged before is not in
        // a file, so nobody can be above that: clocks that step back while a node is down are not
        // absorbed.
        server.conn().run(TWO_DAYS_BACK).int();
        k.attack(&mut server.conn());
        server.conn().run("DEL k").int();
        k.attack_afresh(&mut server.conn());
    }
}

#[test]
fn when_the_wall_clock_of_the_promoted_replica_is_behind() {
    let master = Server::start();
    if !has_failpoints(&mut master.conn()) {
        println!("skipped: this build has no failpoints");
        return;
    }
    let replica = replica_of(&master);
    // Within `maos.clock-max-drift-ms`: clocks that differ by more are an operator's fault, and logged.
    replica.conn().run("MAOS.FAIL clock -43200000").int();
    let mut k = Watched::new("k");
    k.live(&mut master.conn());
    // Purged: only the replica's clock remembers.
    master.conn().run("DEL k").int();
    wait_synced(&master, &replica);
    drop(master);
    let conn = &mut replica.conn();
    conn.run("REPLICAOF NO ONE").ok();
    k.attack_afresh(conn);
}
