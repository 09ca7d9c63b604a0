//! Where nothing can listen, a change is not told. Whoever begins to listen, whenever that is, misses
//! nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use super::metric;
use crate::harness::*;

/// Waits until a server is certain that nothing listens.
fn wait_quiet(server: &Server) {
    let mut conn = server.conn();
    eventually(PATIENCE, "nothing listens", || {
        metric(&mut conn, "listening") == 0
    });
}

/// Whatever happens, the writers come to an end.
struct StopWhenDropped<'s>(&'s AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Writes from several connections while `then` runs, and goes on until so many writes more.
fn under_load(server: &Server, more: u64, then: impl FnOnce()) {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let port = server.port();
    thread::scope(|scope| {
        for writer in 0..3 {
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                let mut conn = Conn::open(port);
                for n in 0u64.. {
                    let line = |k: u64| match k % 10 {
                        0 => format!("MAOS.MSET 2 {{l}}a{k} {n} {{l}}b{k} {n}"),
                        1 => format!("MAOS.DEL w{writer}:{}", k - 1),
                        2 => format!("EVAL \"return redis.call('MAOS.SET', KEYS[1], ARGV[1])\" 1 w{writer}:{k} {n}"),
                        _ => format!("MAOS.SET w{writer}:{k} {n} BY writer-{writer}"),
                    };
                    let lines: Vec<String> = (0..20).map(|k| line(n * 7 % 50 + k)).collect();
                    let replies = conn.pipeline(&lines);
                    assert!(replies.iter().all(|r| !r.is_err()), "{replies:?}");
                    done.fetch_add(lines.len() as u64, Relaxed);
                    if stop.load(Relaxed) {
                        return;
                    }
                }
            });
        }
        let _stop = StopWhenDropped(&stop);
        eventually(PATIENCE, "writes begin", || done.load(Relaxed) > 500);
        then();
        let goal = done.load(Relaxed) + more;
        eventually(PATIENCE, "writes go on", || done.load(Relaxed) > goal);
    });
}

#[test]
fn a_replica_that_comes_under_load_misses_nothing() {
    for _ in 0..3 {
        let master = Server::with(&[("repl-diskless-sync-delay", "0")]);
        wait_quiet(&master);
        let mut replicas = vec![];
        under_load(&master, 500, || {
            assert_eq!(metric(&mut master.conn(), "listening"), 0);
            replicas.push(replica_of(&master));
            assert_eq!(metric(&mut master.conn(), "listening"), 1);
            // One more, when there is a backlog already.
            replicas.push(replica_of(&master));
        });
        for replica in &replicas {
            wait_synced(&master, replica);
            assert_eq!(
                digest_all(&mut replica.conn()),
                digest_all(&mut master.conn())
            );
            assert_eq!(metric(&mut replica.conn(), "damaged"), 0);
        }
    }
}

#[test]
fn an_append_only_file_that_is_switched_on_under_load_misses_nothing() {
    let mut server = Server::with(&[("appendfsync", "always")]);
    for _ in 0..3 {
        wait_quiet(&server);
        under_load(&server, 500, || {
            let mut conn = server.conn();
            conn.run("CONFIG SET appendonly yes").ok();
            super::persistence::wait_rewritten(&mut conn);
        });
        let held = digest_all(&mut server.conn());
        server.conn().run("CONFIG REWRITE").ok();
        server.restart(Stop::Kill);
        assert_eq!(digest_all(&mut server.conn()), held);
        // And off again: from some moment on nothing listens.
        server.conn().run("CONFIG SET appendonly no").ok();
    }
}

#[test]
fn a_master_that_was_restarted_tells_a_replica_that_comes_back() {
    let mut master = Server::start();
    let replica = replica_of(&master);
    master.conn().run("MAOS.SET k first").int();
    wait_synced(&master, &replica);
    replica.pause();
    master.restart(Stop::Save);
    // Long enough for the node to have looked who listens: the steps of its timer bring that about.
    let mut conn = master.conn();
    let backlog = conn.info("replication")["repl_backlog_active"].clone();
    let first = metric(&mut conn, "listener_checks");
    eventually(PATIENCE, "the node looks who listens", || {
        metric(&mut conn, "listener_checks") > first + 1
    });
    for n in 0..50 {
        cmd!(conn, "MAOS.SET", format!("k{}", n % 5), format!("{n}")).int();
    }
    assert_eq!(metric(&mut conn, "listening").to_string(), backlog);
    replica.resume();
    wait_synced(&master, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(&mut conn));
    assert_eq!(metric(&mut replica.conn(), "damaged"), 0);
}

#[test]
fn a_replica_that_is_promoted_and_one_that_left_are_told() {
    let master = Server::start();
    wait_quiet(&master);
    let replica = replica_of(&master);
    master.conn().run("MAOS.SET k v").int();
    wait_synced(&master, &replica);
    // It leaves for a while: the backlog keeps what it misses.
    let conn = &mut master.conn();
    conn.run("CLIENT KILL TYPE replica").int();
    for n in 0..100 {
        cmd!(conn, "MAOS.SET", "k", format!("{n}")).int();
    }
    wait_synced(&master, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    // Roles change.
    replica.conn().run("REPLICAOF NO ONE").ok();
    let to = format!("REPLICAOF 127.0.0.1 {}", replica.port());
    conn.run(&to).ok();
    for n in 0..100 {
        cmd!(replica.conn(), "MAOS.SET", "k", format!("again {n}")).int();
    }
    wait_synced(&replica, &master);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
}

#[test]
fn a_change_that_is_not_told_counts_for_saving() {
    let server = Server::start();
    wait_quiet(&server);
    let conn = &mut server.conn();
    let unsaved = |conn: &mut Conn| -> i64 {
        let info = conn.info("persistence");
        info["rdb_changes_since_last_save"]
            .parse()
            .expect("a number")
    };
    conn.run("SAVE").ok();
    conn.run("MAOS.SET k v").int();
    conn.run("MAOS.CAS k 1 x").array();
    conn.run("MAOS.DEL k").int();
    assert_eq!(unsaved(conn), 2);
}
