//! Waiting for locks: first come, first served, woken and never polling, and always answered.

use std::time::{Duration, Instant};

use super::metric;
use crate::harness::*;
use crate::linear::Random;

/// How late an answer may be. The machine may be busy; what hangs takes longer than this.
const LATE: Duration = Duration::from_secs(60);

/// A connection that waits for a lock, once it stands in the queue.
#[track_caller]
fn waiter(server: &Server, line: &str) -> Conn {
    let before = metric(&mut server.conn(), "lock_waiters");
    let mut conn = server.conn();
    conn.set_timeout(LATE);
    conn.send(&split_line(line).expect("a line"));
    eventually(PATIENCE, "it waits", || {
        metric(&mut server.conn(), "lock_waiters") == before + 1
    });
    conn
}

#[track_caller]
fn token(reply: &Reply) -> i64 {
    reply.array()[0].int()
}

fn waiters(conn: &mut Conn, key: &str) -> Vec<String> {
    let locks = conn.run(&format!("MAOS.LOCKS {key}"));
    let waiters = locks.field("waiters").array().iter();
    waiters
        .map(|w| format!("{} {}", w.field("owner").text(), w.field("mode").text()))
        .collect()
}

fn nobody_waits(server: &Server) {
    eventually(PATIENCE, "nobody waits", || {
        metric(&mut server.conn(), "lock_waiters") == 0
    });
}

#[test]
fn first_come_first_served_across_shared_and_exclusive() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let mut held = token(&conn.run("MAOS.LOCK k a 600000"));
    let mut queue: Vec<Conn> = ["b 600000", "c 600000 SHARED", "d 600000 SHARED", "e 600000"]
        .iter()
        .map(|rest| waiter(&master, &format!("MAOS.LOCK k {rest} WAIT 600000")))
        .collect();
    assert_eq!(
        waiters(conn, "k"),
        ["b exclusive", "c shared", "d shared", "e exclusive"]
    );
    // Nobody overtakes, waiting or not.
    assert!(conn.run("MAOS.LOCK k z 1000").is_nil());
    let release = |conn: &mut Conn, token: i64| {
        assert_eq!(conn.run(&format!("MAOS.UNLOCK k {token}")).int(), 0);
    };
    release(conn, held);
    let b = token(&queue[0].recv());
    assert!(b > held);
    assert!(conn.run("MAOS.LOCK k z 1000 SHARED").is_nil());
    assert_eq!(waiters(conn, "k").len(), 3);
    release(conn, b);
    let (c, d) = (token(&queue[1].recv()), token(&queue[2].recv()));
    assert!(d > c && c > b);
    // Readers do not pass a writer that waits.
    assert!(conn.run("MAOS.LOCK k z 1000 SHARED").is_nil());
    release(conn, d);
    assert_eq!(waiters(conn, "k"), ["e exclusive"]);
    release(conn, c);
    held = token(&queue[3].recv());
    assert!(held > d);
    assert_eq!(conn.run("MAOS.SET k v").code(), "LOCKED");
    conn.run(&format!("MAOS.SET k v TOKEN {held}")).int();
    wait_synced(&master, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    nobody_waits(&master);
}

#[test]
fn everything_that_ends_a_lock_wakes_who_waits() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET other v").int();
    let dump = conn.run("DUMP other").bytes().to_vec();
    for end in [
        "DEL k",
        "UNLINK k",
        "PEXPIRE k 1",
        "FLUSHALL",
        "FLUSHALL ASYNC",
        "FLUSHDB",
        "RENAME k elsewhere",
        "RENAME other k",
        "MOVE k 1",
        "SWAPDB 0 1",
        "COPY other k REPLACE",
        "RESTORE",
        "a lease",
        "MAOS.UNLOCK",
        "a renewal",
        "EVAL",
    ] {
        conn.run("FLUSHALL");
        conn.run("MAOS.SET other v").int();
        conn.run("MAOS.SET k v").int();
        let held = token(&conn.run("MAOS.LOCK k a 600000"));
        let mut waits = waiter(&server, "MAOS.LOCK k b 600000 WAIT 600000");
        match end {
            "a lease" => drop(conn.run(&format!("MAOS.RENEW k {held} 50"))),
            "RESTORE" => cmd!(conn, "RESTORE", "k", "0", dump, "REPLACE").ok(),
            "MAOS.UNLOCK" => drop(conn.run(&format!("MAOS.UNLOCK k {held}"))),
            "a renewal" => drop(conn.run(&format!("MAOS.RENEW k {held} 1"))),
            "EVAL" => {
                // What a script gives back is still free in it: others come when it is done.
                let script = "redis.call('MAOS.UNLOCK', KEYS[1], ARGV[1]); return redis.call('MAOS.SET', KEYS[1], 'x')";
                cmd!(conn, "EVAL", script, "1", "k", held.to_string()).int();
            }
            end => assert!(!conn.run(end).is_err(), "{end}"),
        }
        let reply = waits.recv();
        assert!(!reply.is_nil(), "{end}");
        assert!(token(&reply) > held, "{end}");
    }
    nobody_waits(&server);
    // One that ends while somebody waits, with nothing else happening: a key with a value does not expire.
    conn.run("MAOS.SET lease v").int();
    let held = token(&conn.run("MAOS.LOCK lease a 300"));
    let next = conn.run("MAOS.LOCK lease b 600000 WAIT 600000");
    assert!(token(&next) > held);
}

#[test]
fn a_wait_ends_in_time_or_when_it_is_ended() {
    let server = Server::start();
    let conn = &mut server.conn();
    let held = token(&conn.run("MAOS.LOCK k a 600000"));
    let before = Instant::now();
    assert!(conn.run("MAOS.LOCK k b 1000 WAIT 100").is_nil());
    assert!(before.elapsed() >= Duration::from_millis(90));
    for (how, answer) in [("", None), ("TIMEOUT", None), ("ERROR", Some("UNBLOCKED"))] {
        let mut waits = server.conn();
        let id = waits.run("CLIENT ID").int();
        waits.set_timeout(LATE);
        waits.send(&split_line("MAOS.LOCK k b 1000 WAIT 600000").expect("a line"));
        eventually(PATIENCE, "it waits", || {
            metric(&mut server.conn(), "lock_waiters") == 1
        });
        assert_eq!(conn.run(&format!("CLIENT UNBLOCK {id} {how}")).int(), 1);
        let reply = waits.recv();
        match answer {
            None => assert!(reply.is_nil(), "{how}"),
            Some(code) => assert_eq!(reply.code(), code),
        }
        nobody_waits(&server);
    }
    // One whose connection dies stands in nobody's way, not even as the first.
    let dead = waiter(&server, "MAOS.LOCK k b 600000 WAIT 600000");
    let mut behind = waiter(&server, "MAOS.LOCK k c 600000 WAIT 600000");
    drop(dead);
    eventually(PATIENCE, "it is out of the queue", || {
        waiters(&mut server.conn(), "k") == ["c exclusive"]
    });
    conn.run(&format!("MAOS.UNLOCK k {held}")).int();
    assert!(token(&behind.recv()) > held);
}

#[test]
fn one_that_leaves_lets_those_behind_it_go_on() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.LOCK k a 600000 SHARED").array();
    let mut writer = server.conn();
    let id = writer.run("CLIENT ID").int();
    writer.send(&split_line("MAOS.LOCK k w 600000 WAIT 600000").expect("a line"));
    eventually(PATIENCE, "it waits", || {
        metric(&mut server.conn(), "lock_waiters") == 1
    });
    let mut reader = waiter(&server, "MAOS.LOCK k r 600000 SHARED WAIT 600000");
    conn.run(&format!("CLIENT UNBLOCK {id}")).int();
    assert!(writer.recv().is_nil());
    assert!(!reader.recv().is_nil());
}

#[test]
fn several_are_taken_all_or_none() {
    let server = Server::start();
    let conn = &mut server.conn();
    let one = token(&conn.run("MAOS.LOCK x a 600000"));
    let two = token(&conn.run("MAOS.LOCK y a 600000"));
    let mut both = waiter(&server, "MAOS.MLOCK 2 x y b 600000 WAIT 600000");
    let mut after = waiter(&server, "MAOS.LOCK y c 600000 WAIT 600000");
    conn.run(&format!("MAOS.UNLOCK x {one}")).int();
    // Half of it is free, and nobody takes it: not the one who waits for both, nor one who comes later.
    assert!(conn.run("MAOS.LOCK x z 1000").is_nil());
    assert!(conn.run("MAOS.LOCKS x").field("mode").is_nil());
    conn.run(&format!("MAOS.UNLOCK y {two}")).int();
    let tokens = both.recv();
    let tokens: Vec<i64> = tokens.array()[0].array().iter().map(Reply::int).collect();
    assert_eq!(tokens.len(), 2);
    conn.run(&format!("MAOS.UNLOCK y {}", tokens[1])).int();
    assert!(token(&after.recv()) > tokens[1]);
    conn.run(&format!("MAOS.UNLOCK x {}", tokens[0])).int();
    nobody_waits(&server);
}

#[test]
fn the_request_that_closes_a_cycle_is_refused() {
    let server = Server::start();
    let conn = &mut server.conn();
    for (owner, key) in [("a", "x"), ("b", "y"), ("c", "z")] {
        conn.run(&format!("MAOS.LOCK {key} {owner} 600000")).array();
    }
    let _a = waiter(&server, "MAOS.LOCK y a 600000 WAIT 600000");
    let mut b = waiter(&server, "MAOS.LOCK z b 600000 WAIT 600000");
    let closes = conn.run("MAOS.LOCK x c 600000 WAIT 600000");
    let line = closes.err();
    assert!(
        line.starts_with("DEADLOCK 'c' -> 'a' -> 'b' -> 'c' (keys 'x', 'y', 'z')"),
        "{line}"
    );
    // Without waiting it is not had, and that is all.
    assert!(conn.run("MAOS.LOCK x c 600000").is_nil());
    // Two who share it and both want it alone.
    let first = conn.run("MAOS.LOCK s a1 600000 SHARED").array()[0].int();
    conn.run("MAOS.LOCK s b1 600000 SHARED").array();
    let mut alone = waiter(&server, "MAOS.LOCK s b1 600000 WAIT 600000");
    let closes = conn.run("MAOS.LOCK s a1 600000 WAIT 600000");
    assert_eq!(closes.code(), "DEADLOCK");
    conn.run(&format!("MAOS.UNLOCK s {first}")).int();
    assert!(!alone.recv().is_nil());
    // And over a fourth that only stands in a queue.
    let held = conn.run("MAOS.LOCKS z").field("highest-token").int();
    conn.run(&format!("MAOS.UNLOCK z {held}")).int();
    assert!(!b.recv().is_nil());
}

#[test]
fn inside_a_transaction_or_a_script_nobody_waits() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.LOCK k a 600000").array();
    let replies = conn.pipeline(&["MULTI", "MAOS.LOCK k b 1000 WAIT 600000", "PING", "EXEC"]);
    let exec = replies[3].array();
    assert!(exec[0].is_nil() && exec.len() == 2);
    let script = "return redis.call('MAOS.LOCK', KEYS[1], 'b', 1000, 'WAIT', 600000)";
    assert!(cmd!(conn, "EVAL", script, "1", "k").is_nil());
    assert_eq!(metric(conn, "lock_waiters"), 0);
}

#[test]
fn who_waits_is_told_when_the_node_is_demoted_or_the_slot_moves() {
    let server = Server::start();
    let other = Server::start();
    server.conn().run("MAOS.LOCK k a 600000").array();
    let mut waits = waiter(&server, "MAOS.LOCK k b 600000 WAIT 600000");
    let line = format!("REPLICAOF 127.0.0.1 {}", other.port());
    server.conn().run(&line).ok();
    assert_eq!(waits.recv().code(), "UNBLOCKED");
    nobody_waits(&server);

    let cluster = Cluster::start(3, 0);
    let from = cluster.node_for("{m}a");
    let to = cluster.another(from);
    from.conn().run("MAOS.LOCK {m}a a 600000").array();
    let mut waits = waiter(from, "MAOS.LOCK {m}a b 600000 WAIT 600000");
    cluster.move_slot(slot_of(b"{m}a"), to);
    assert_eq!(waits.recv().code(), "MOVED");
    nobody_waits(from);
}

#[test]
fn while_clients_are_paused_nothing_is_granted_and_nothing_is_sent() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MAOS.LOCK k a 300");
    conn.run("MAOS.LOCK alone a 300");
    let mut waits = waiter(&master, "MAOS.LOCK k b 600000 WAIT 600000");
    conn.run("CLIENT PAUSE 600000 WRITE").ok();
    // The leases are over, and the background pass has come by.
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(metric(conn, "lock_waiters"), 1);
    conn.run("CLIENT UNPAUSE").ok();
    token(&waits.recv());
    wait_synced(&master, &replica);
    assert_eq!(replica.conn().run("MAOS.LOCKS k"), conn.run("MAOS.LOCKS k"));
}

#[test]
fn queues_are_bounded() {
    let server = Server::start();
    let conn = &mut server.conn();
    let held = token(&conn.run("MAOS.LOCK k a 600000"));
    let mut queue: Vec<Conn> = (0..256)
        .map(|n| {
            let mut conn = server.conn();
            conn.set_timeout(LATE);
            let line = format!("MAOS.LOCK k o{n} 600000 SHARED WAIT 600000");
            conn.send(&split_line(&line).expect("a line"));
            conn
        })
        .collect();
    eventually(PATIENCE, "all wait", || {
        metric(&mut server.conn(), "lock_waiters") == 256
    });
    let more = conn.run("MAOS.LOCK k more 1000 WAIT 600000");
    assert_eq!(more.code(), "LIMIT");
    conn.run(&format!("MAOS.UNLOCK k {held}")).int();
    let mut tokens: Vec<i64> = queue.iter_mut().map(|c| token(&c.recv())).collect();
    assert_eq!(tokens.len(), 256);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 256, "a token for each");
    nobody_waits(&server);
}

/// Many owners take turns. Nobody else writes meanwhile, and nobody is left waiting.
#[test]
fn critical_sections_do_not_overlap() {
    let server = Server::start();
    server.conn().run("MAOS.SET n 0").int();
    std::thread::scope(|scope| {
        for owner in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let conn = &mut server.conn();
                conn.set_timeout(Duration::from_secs(60));
                for _ in 0..50 {
                    let line = format!("MAOS.LOCK n o{owner} 600000 WAIT 60000");
                    let token = token(&conn.run(&line));
                    let n: i64 = conn.run("MAOS.GET n").text().parse().expect("a number");
                    conn.run(&format!("MAOS.SET n {} TOKEN {token}", n + 1))
                        .int();
                    assert_eq!(conn.run(&format!("MAOS.UNLOCK n {token}")).int(), 0);
                }
            });
        }
    });
    assert_eq!(server.conn().run("MAOS.GET n").text(), "400");
    nobody_waits(&server);
}

/// How many waits: `MAOS_TEST_WAITS`, or some.
fn waits() -> u64 {
    let asked = std::env::var("MAOS_TEST_WAITS").ok();
    asked.map_or(2_000, |n| n.parse().expect("MAOS_TEST_WAITS is a number"))
}

/// Clients that come and go, and everything that ends a lock or a wait: each wait is answered.
#[test]
fn whatever_happens_no_wait_is_left_without_an_answer() {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    const OWNERS: u64 = 24;
    let server = Server::start();
    let (begun, late_ms) = (&AtomicU64::new(0), &AtomicU64::new(0));
    let outcomes = &[const { AtomicU64::new(0) }; 4];
    let goal = waits();
    std::thread::scope(|scope| {
        for n in 0..OWNERS {
            let server = &server;
            scope.spawn(move || {
                let random = &mut Random(n * 31_337 + 5);
                let mut conn = server.conn();
                conn.set_timeout(LATE);
                while begun.fetch_add(1, Relaxed) < goal {
                    let (key, lease) = (random.below(3), 5 + random.below(60));
                    let wait = 1 + random.below(100);
                    let line = match random.below(4) {
                        0 => format!("MAOS.MLOCK 2 k{key} k3 o{n} {lease} WAIT {wait}"),
                        1 => format!("MAOS.LOCK k{key} o{n} {lease} SHARED WAIT {wait}"),
                        _ => format!("MAOS.LOCK k{key} o{n} {lease} WAIT {wait}"),
                    };
                    let line = split_line(&line).expect("a line");
                    let sent = Instant::now();
                    conn.send(&line);
                    if random.below(20) == 0 {
                        // Nobody hears the answer.
                        conn = server.conn();
                        conn.set_timeout(LATE);
                        outcomes[3].fetch_add(1, Relaxed);
                        continue;
                    }
                    let Ok(reply) = conn.try_recv() else {
                        // Killed, for a wait that takes a minute ends the test.
                        assert!(sent.elapsed() < LATE, "{line:?} got no answer");
                        conn = server.conn();
                        conn.set_timeout(LATE);
                        outcomes[3].fetch_add(1, Relaxed);
                        continue;
                    };
                    let over = sent.elapsed().saturating_sub(Duration::from_millis(wait));
                    late_ms.fetch_max(over.as_millis() as u64, Relaxed);
                    let outcome = match &reply {
                        reply if reply.is_nil() => 0,
                        reply if reply.is_err() => {
                            let code = reply.code();
                            assert!(["UNBLOCKED", "DEADLOCK"].contains(&code), "{reply}");
                            1
                        }
                        _ => 2,
                    };
                    outcomes[outcome].fetch_add(1, Relaxed);
                }
            });
        }
        let random = &mut Random(77);
        let conn = &mut server.conn();
        while begun.load(Relaxed) < goal {
            let list = conn.run("CLIENT LIST");
            let blocked = list.text().lines().find(|l| l.contains(" flags=b "));
            let id = blocked.and_then(|l| l.strip_prefix("id=")?.split(' ').next());
            match (random.below(8), id) {
                (0, Some(id)) => drop(conn.run(&format!("CLIENT UNBLOCK {id} ERROR"))),
                (1, Some(id)) => drop(conn.run(&format!("CLIENT UNBLOCK {id}"))),
                (2, Some(id)) => drop(conn.run(&format!("CLIENT KILL ID {id}"))),
                (3, _) => drop(conn.run("FLUSHALL")),
                (4, _) => drop(conn.run("SWAPDB 0 1")),
                (5, _) => drop(conn.run("DEL k0 k1")),
                (6, _) => drop(conn.run("PEXPIRE k2 1")),
                _ => drop(conn.run("MAOS.SET k3 v")),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let [timeouts, errors, granted, unheard] = [0, 1, 2, 3].map(|n| outcomes[n].load(Relaxed));
    println!(
        "{granted} granted, {timeouts} in vain, {errors} ended by others, {unheard} that nobody heard; the latest {} ms late",
        late_ms.load(Relaxed)
    );
    assert!(granted > 0 && timeouts > 0 && errors > 0 && unheard > 0);
    nobody_waits(&server);
}
