//! A node that slept: what it grants or compares would mean nothing, and it does neither until it is known
//! that it is still in charge.

use std::time::{Duration, Instant};

use super::{has_failpoints, metric};
use crate::harness::*;

/// Longer than the nodes of these clusters may sleep, and longer than it takes to see them fail.
const SLEEP: Duration = Duration::from_millis(4500);

fn cluster(replicas_each: usize) -> Cluster {
    let mut setup = ClusterSetup::new(3, replicas_each);
    setup.node_timeout_ms = 2000;
    setup.start()
}

/// What says more about the key than what it wrote, of a key `{p}k` whose lock is held.
fn conditional(version: i64, token: i64) -> Vec<String> {
    vec![
        format!("MAOS.CAS {{p}}free {version} x"),
        format!("MAOS.MCAS 1 {{p}}free {version} x"),
        format!("MAOS.SET {{p}}free x IFVERSION {version}"),
        format!("MAOS.DEL {{p}}free IFVERSION {version}"),
        format!("MAOS.ROLLBACK {{p}}free VERSION -1 IFVERSION {version}"),
        format!("MAOS.SET {{p}}k x TOKEN {token}"),
        format!("MAOS.MSET 1 {{p}}k x TOKEN {token}"),
        "MAOS.SET {p}fenced x FENCE job 7".to_owned(),
        "MAOS.LOCK {p}new a 1000".to_owned(),
        "MAOS.LOCK {p}new a 1000 WAIT 1000".to_owned(),
        "MAOS.MLOCK 1 {p}new a 1000".to_owned(),
        format!("MAOS.RENEW {{p}}k {token} 600000"),
    ]
}

/// Makes the keys; the version of one and the token of the other.
fn fill(conn: &mut Conn) -> (i64, i64) {
    conn.run("MAOS.SET {p}free first").int();
    let version = conn.run("MAOS.SET {p}free v").int();
    conn.run("MAOS.SET {p}k v").int();
    let token = conn.run("MAOS.LOCK {p}k holder 600000").array()[0].int();
    (version, token)
}

/// Stops a node and sends while it sleeps what it finds when it wakes.
fn find_after_sleep(node: &Server, lines: &[String], sleep: impl FnOnce()) -> Vec<Reply> {
    let mut conn = node.conn();
    conn.set_timeout(Duration::from_secs(60));
    conn.run("PING");
    node.pause();
    sleep();
    let words = lines.iter().map(|line| split_line(line).expect("a line"));
    let bytes: Vec<u8> = words.flat_map(|words| Conn::encode(&words)).collect();
    conn.send_raw(&bytes);
    node.resume();
    lines.iter().map(|_| conn.recv()).collect()
}

#[track_caller]
fn all_busy(lines: &[String], replies: &[Reply]) {
    for (line, reply) in lines.iter().zip(replies) {
        assert_eq!(reply.code(), "BUSY", "{line}: {reply}");
        assert!(reply.err().contains("slept for"), "{reply}");
    }
}

#[test]
fn a_server_alone_waits_as_long_as_it_is_told() {
    const GUARD: Duration = Duration::from_secs(2);
    let server = Server::with(&[("maos.pause-guard-ms", "2000")]);
    let conn = &mut server.conn();
    let (version, token) = fill(conn);
    let lines = conditional(version, token);
    let mut waits = server.conn();
    waits.set_timeout(Duration::from_secs(60));
    waits.send(&split_line("MAOS.LOCK {p}k next 600000 WAIT 600000").expect("a line"));
    eventually(PATIENCE, "it waits", || {
        metric(&mut server.conn(), "lock_waiters") == 1
    });
    let before = picture_of(conn);
    let woke = loop {
        let mut woke = Instant::now();
        let replies = find_after_sleep(&server, &lines, || {
            std::thread::sleep(GUARD + Duration::from_millis(500));
            woke = Instant::now();
        });
        // A machine that stood still itself is asked again.
        if woke.elapsed() < GUARD {
            all_busy(&lines, &replies);
            break woke;
        }
    };
    assert_eq!(picture_of(conn), before);
    // Whatever promises nothing goes on, and so does what gives a lock back.
    conn.run("MAOS.SET {p}plain x").int();
    assert_eq!(conn.run("MAOS.GET {p}free").text(), "v");
    assert_eq!(conn.run(&format!("MAOS.UNLOCK {{p}}k {token}")).int(), 0);
    let pauses = metric(conn, "pauses");
    assert!(pauses >= 1);
    assert!(waits.recv().array()[0].int() > token);
    let granted = woke.elapsed();
    assert!(granted >= GUARD, "granted in doubt, after {granted:?}");
    eventually(PATIENCE, "it is certain again", || {
        metric(&mut server.conn(), "in_doubt") == 0
    });
    let again = conn.run(&format!("MAOS.CAS {{p}}free {version} x"));
    assert_eq!(again.array()[0].int(), 1);
}

fn picture_of(conn: &mut Conn) -> Vec<String> {
    ["free", "k", "fenced", "new"]
        .iter()
        .map(|key| {
            conn.run(&format!("MAOS.HISTORY {{p}}{key} VALUES"))
                .to_string()
        })
        .collect()
}

#[test]
fn nothing_is_asked_where_the_guard_is_off() {
    let server = Server::start();
    let conn = &mut server.conn();
    let (version, token) = fill(conn);
    let line = [format!("MAOS.CAS {{p}}free {version} x TOKEN {token}")];
    let replies = find_after_sleep(&server, &line, || {
        std::thread::sleep(Duration::from_millis(300));
    });
    assert_eq!(replies[0].code(), "FENCED");
    assert_eq!(metric(conn, "pauses"), 0);
}

#[test]
fn a_node_of_a_cluster_waits_until_a_majority_has_confirmed_it() {
    let cluster = cluster(0);
    let node = cluster.node_for("{p}k");
    let (version, token) = fill(&mut node.conn());
    let lines = conditional(version, token);
    let before = picture_of(&mut node.conn());
    let replies = find_after_sleep(node, &lines, || std::thread::sleep(SLEEP));
    all_busy(&lines, &replies);
    assert_eq!(picture_of(&mut node.conn()), before);
    // As long as both others see it fail, a replica might be elected.
    let fails = || {
        let name = node.conn().run("CLUSTER MYID").text().to_owned();
        let others = cluster.nodes.iter().filter(|n| n.port() != node.port());
        others.into_iter().all(|other| {
            let nodes = other.conn().run("CLUSTER NODES");
            let mut lines = nodes.text().lines();
            let line = lines.find(|l| l.starts_with(&name)).expect("a node");
            line.contains("master,fail ")
        })
    };
    let mut seen_to_fail = 0;
    loop {
        let before = fails();
        let in_doubt = metric(&mut node.conn(), "in_doubt") == 1;
        if !(before && fails()) {
            break;
        }
        assert!(in_doubt, "certain while all others see it fail");
        seen_to_fail += 1;
    }
    println!("{seen_to_fail} looks while it was seen to fail");
    becomes_certain(node, version);
    // All of them slept: nobody knows more than the others, and all of them agree.
    let mut conns: Vec<Conn> = cluster.nodes.iter().map(Server::conn).collect();
    cluster.nodes.iter().for_each(Server::pause);
    std::thread::sleep(SLEEP);
    cluster.nodes.iter().for_each(Server::resume);
    for conn in &mut conns {
        eventually(PATIENCE, "it has seen that it slept", || {
            metric(conn, "pauses") > 0
        });
        eventually(PATIENCE, "it is certain", || metric(conn, "in_doubt") == 0);
    }
}

/// Where all slept nobody knows more than the others: they are believed when they all agree, and not only when
/// they have been awake for long.
#[test]
fn masters_that_all_slept_believe_each_other() {
    let cluster = Cluster::start(3, 0);
    if !has_failpoints(&mut cluster.master(0).conn()) {
        println!("skipped: this build has no failpoints");
        return;
    }
    for node in &cluster.nodes {
        node.conn()
            .run("CONFIG SET cluster-node-timeout 3600000")
            .ok();
    }
    // Nobody answers before all are in doubt.
    for node in &cluster.nodes {
        cmd!(node.conn(), "MAOS.FAIL", "message", "1000000").int();
    }
    for node in &cluster.nodes {
        let conn = &mut node.conn();
        conn.run("MAOS.FAIL clock 7200000").int();
        eventually(PATIENCE, "it has seen that it slept", || {
            metric(conn, "pauses") > 0
        });
    }
    for node in &cluster.nodes {
        assert_eq!(metric(&mut node.conn(), "in_doubt"), 1);
    }
    for node in &cluster.nodes {
        node.conn().run("MAOS.FAIL apply 0").int();
    }
    for node in &cluster.nodes {
        eventually(PATIENCE, "it is certain", || {
            metric(&mut node.conn(), "in_doubt") == 0
        });
    }
}

fn becomes_certain(node: &Server, version: i64) {
    let mut reply = Reply::Nil;
    eventually(PATIENCE, "it is certain again", || {
        reply = node
            .conn()
            .run(&format!("MAOS.CAS {{p}}free {version} sure"));
        !reply.is_err()
    });
    assert_eq!(reply.array()[0].int(), 1, "{reply}");
}

/// A replica has taken over while the master slept: nothing that the old one grants or compares is taken.
#[test]
fn a_master_that_was_replaced_in_its_sleep_takes_nothing_that_promises() {
    for how in ["FORCE", "TAKEOVER"] {
        let cluster = cluster(1);
        let old = cluster.node_for("{p}k");
        let i = (0..3).find(|i| cluster.master(*i).port() == old.port());
        let new = cluster
            .replicas_of(i.expect("a master"))
            .next()
            .expect("a replica");
        let (version, token) = fill(&mut old.conn());
        wait_synced(old, new);
        let lines = conditional(version, token);
        let replies = find_after_sleep(old, &lines, || {
            new.conn().run(&format!("CLUSTER FAILOVER {how}"));
            eventually(PATIENCE, "the replica has taken over", || {
                new.conn().run("ROLE").array()[0].text() == "master"
            });
            // What the holder writes now is written there.
            let line = format!("MAOS.SET {{p}}k after TOKEN {token}");
            eventually(PATIENCE, "the holder writes", || {
                !new.conn().run(&line).is_err()
            });
            std::thread::sleep(SLEEP);
        });
        for (line, reply) in lines.iter().zip(&replies) {
            let refused = matches!(reply.code(), "BUSY" | "READONLY" | "MOVED" | "CLUSTERDOWN");
            assert!(refused, "{how}: {line}: {reply}");
        }
        assert_eq!(new.conn().run("MAOS.GET {p}k").text(), "after");
        let won = new.conn().run(&format!("MAOS.CAS {{p}}free {version} x"));
        assert_eq!(won.array()[0].int(), 1);
    }
}
