//! Partitions in a cluster: known everywhere, charged everywhere, and full once.

use std::thread;
use std::time::{Duration, Instant};

use super::{has_failpoints, metric};
use crate::harness::*;

/// Text is all that it works on: so it is tried here, where the library cannot be linked.
#[path = "../../../src/edge/nodes.rs"]
mod nodes;

/// What a node says of a partition; nothing if it does not know it.
fn seen(node: &Server, name: &str) -> Option<(i64, i64, i64)> {
    let list = node.conn().run("MAOS.PARTITION LIST");
    let of = list
        .array()
        .iter()
        .find(|p| p.field("name").text() == name)?;
    let number = |field: &str| of.field(field).int();
    Some((number("quota"), number("used"), number("keys")))
}

/// Waits until every node sees it so, and says how long that took.
#[track_caller]
fn everywhere(cluster: &Cluster, what: &str, is: impl Fn(&Server) -> bool) -> Duration {
    let start = Instant::now();
    eventually(PATIENCE, what, || cluster.nodes.iter().all(&is));
    let took = start.elapsed();
    println!("{what}: {} ms", took.as_millis());
    took
}

fn complete(cluster: &Cluster) {
    eventually(PATIENCE, "every node knows all there is", || {
        cluster.nodes.iter().all(|n| {
            let conn = &mut n.conn();
            // A node that has not yet heard of the others knows all that it has heard of.
            metric(conn, "partitions_complete") == 1 && metric(conn, "partition_peers") >= 2
        })
    });
}

/// Makes the partition `part:a`, of 100,000 bytes, for keys that begin with `a:`.
fn make_a(client: &mut ClusterClient) {
    let line = "MAOS.PARTITION CREATE part:a BYTES 100000 PREFIX a:";
    let words: Vec<_> = line.split(' ').collect();
    client.cmd("part:a", &words).int();
}

/// A key that a node serves.
fn key_of(cluster: &Cluster, node: &Server, prefix: &str) -> String {
    let mut keys = (0..).map(|n| format!("{prefix}{n}"));
    keys.find(|key| cluster.node_for(key).port() == node.port())
        .unwrap()
}

#[test]
fn every_node_knows_every_partition_and_one_that_returns_does() {
    let mut cluster = Cluster::start(3, 1);
    complete(&cluster);
    let mut client = cluster.client();
    make_a(&mut client);
    everywhere(&cluster, "created", |n| {
        seen(n, "part:a").is_some_and(|s| s.0 == 100_000)
    });
    client
        .cmd(
            "part:a",
            &["MAOS.PARTITION", "ALTER", "part:a", "BYTES", "200000"],
        )
        .int();
    everywhere(&cluster, "altered", |n| {
        seen(n, "part:a").is_some_and(|s| s.0 == 200_000)
    });
    // Charged wherever it is written, seen everywhere.
    for n in 0..60 {
        let key = format!("a:{n}");
        client.cmd(&key, &["MAOS.SET", &key, "v"]).int();
    }
    client
        .cmd("x", &["MAOS.SET", "x", "v", "PARTITION", "part:a"])
        .int();
    everywhere(&cluster, "charged", |n| {
        seen(n, "part:a").is_some_and(|s| s.2 == 61)
    });
    let used: Vec<_> = cluster
        .nodes
        .iter()
        .map(|n| seen(n, "part:a").unwrap().1)
        .collect();
    assert!(
        used.iter().all(|u| *u == used[0] && *u > 61 * 50),
        "{used:?}"
    );
    let unknown = client.cmd("y", &["MAOS.SET", "y", "v", "PARTITION", "part:none"]);
    assert_eq!(unknown.code(), "NOTFOUND");
    // Each name once, and no prefix twice, whoever is asked.
    let twice = client.cmd(
        "part:b",
        &[
            "MAOS.PARTITION",
            "CREATE",
            "part:b",
            "BYTES",
            "1",
            "PREFIX",
            "a:",
        ],
    );
    assert_eq!(twice.code(), "EXISTS");
    // A node that was away knows it again, and what changed meanwhile.
    let away = cluster
        .nodes
        .iter()
        .position(|n| n.port() != cluster.node_for("part:a").port())
        .unwrap();
    let away = if away < 3 { away } else { 0 };
    cluster.nodes[away].restart(Stop::Save);
    cluster.wait_ok();
    everywhere(&cluster, "returned", |n| {
        seen(n, "part:a").is_some_and(|s| s.0 == 200_000 && s.2 == 61)
    });
    complete(&cluster);
    let mut client = cluster.client();
    assert_eq!(
        client
            .cmd("part:a", &["MAOS.PARTITION", "DROP", "part:a"])
            .code(),
        "EXISTS"
    );
    assert_eq!(
        client
            .cmd("part:a", &["MAOS.PARTITION", "DROP", "part:a", "FORCE"])
            .int(),
        61
    );
    everywhere(&cluster, "dropped", |n| seen(n, "part:a").is_none());
}

#[test]
fn a_partition_that_all_fill_passes_its_quota_by_no_more_than_is_said() {
    let cluster = Cluster::start(3, 0);
    complete(&cluster);
    let quota: u64 = 4_000_000;
    let owner = cluster.node_for("part:full");
    let create = format!("MAOS.PARTITION CREATE part:full BYTES {quota} PREFIX f: HISTORY 1");
    owner.conn().run(&create).int();
    everywhere(&cluster, "known", |n| seen(n, "part:full").is_some());
    const VALUE: usize = 700;
    let value = "x".repeat(VALUE);
    let refused: Vec<usize> = thread::scope(|scope| {
        let fill = |i: usize| {
            let (cluster, value) = (&cluster, &value);
            scope.spawn(move || {
                let node = cluster.master(i);
                let mut tags = (0..).map(|n| format!("{{{n}}}"));
                let tag = tags
                    .find(|t| cluster.node_for(t).port() == node.port())
                    .unwrap();
                let conn = &mut node.conn();
                let (mut n, mut refused) = (0, 0);
                // Far more than there is room for, as fast as it goes. BUSY is no refusal: it says to try again.
                while n < 12_000 && refused < 2_000 {
                    let lines: Vec<_> = (0..64)
                        .map(|m| format!("MAOS.SET f:{tag}{} {value}", n + m))
                        .collect();
                    for reply in conn.pipeline(&lines) {
                        match reply.is_err().then(|| reply.code()) {
                            None => n += 1,
                            Some("QUOTA") => refused += 1,
                            code => assert_eq!(code, Some("BUSY"), "{reply}"),
                        }
                    }
                }
                refused
            })
        };
        let all: Vec<_> = (0..3).map(fill).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(refused.iter().all(|n| *n > 0), "{refused:?}");
    eventually(PATIENCE, "all agree on what is held", || {
        let sums: Vec<_> = (0..3)
            .map(|i| seen(cluster.master(i), "part:full").unwrap().1)
            .collect();
        let here = |i: usize| {
            let list = cluster.master(i).conn().run("MAOS.PARTITION LIST");
            list.array()[0].field("used-here").int()
        };
        let sum: i64 = (0..3).map(here).sum();
        sums.iter().all(|s| *s == sum)
    });
    let used = seen(owner, "part:full").unwrap().1 as u64;
    // Of three that write each but one may be a 256th of the quota, or a write, beyond what the others know.
    let bound = 2 * (quota / 256).max(VALUE as u64 + 200);
    println!(
        "three masters: {used} of {quota} bytes, {} beyond, at most {bound}",
        used as i64 - quota as i64
    );
    assert!(used <= quota + bound, "{used} of {quota}");
    assert!(used > quota - quota / 20, "{used} of {quota} only");
}

#[test]
fn a_partition_of_one_slot_is_full_to_the_byte() {
    let cluster = Cluster::start(3, 0);
    complete(&cluster);
    let node = cluster.node_for("{t}p");
    let conn = &mut node.conn();
    conn.run("MAOS.PARTITION CREATE {t}p BYTES 20000 PREFIX {t}: HISTORY 1")
        .int();
    everywhere(&cluster, "known", |n| seen(n, "{t}p").is_some());
    let mut taken = 0;
    // What others have not heard of yet is waited for.
    for n in 0..400 {
        let line = format!("MAOS.SET {{t}}:{n:03} {}", "x".repeat(44));
        let mut reply = conn.run(&line);
        eventually(PATIENCE, "the others have heard", || {
            reply = if reply.is_err() && reply.code() == "BUSY" {
                conn.run(&line)
            } else {
                reply.clone()
            };
            !reply.is_err() || reply.code() == "QUOTA"
        });
        match reply.is_err() {
            false => taken += 1,
            true => assert_eq!(reply.code(), "QUOTA"),
        }
    }
    let (_, used, keys) = seen(node, "{t}p").unwrap();
    let each = used / keys;
    assert_eq!(keys, taken);
    assert!(
        used <= 20_000 && used + each > 20_000,
        "{used}, {each} each"
    );
}

#[test]
fn a_failover_and_a_slot_that_moves_take_the_partition_along() {
    let cluster = Cluster::start(3, 1);
    complete(&cluster);
    let mut client = cluster.client();
    client
        .cmd(
            "{p}part",
            &[
                "MAOS.PARTITION",
                "CREATE",
                "{p}part",
                "BYTES",
                "100000",
                "PREFIX",
                "k:",
            ],
        )
        .int();
    client
        .cmd(
            "{p}run",
            &[
                "MAOS.PARTITION",
                "CREATE",
                "{p}run",
                "BYTES",
                "100000",
                "TYPE",
                "temporary",
                "TTL",
                "100000000",
            ],
        )
        .int();
    everywhere(&cluster, "known", |n| {
        seen(n, "{p}run").is_some() && seen(n, "{p}part").is_some()
    });
    let keys: Vec<_> = (0..30).map(|n| format!("k:{n}")).collect();
    for key in &keys {
        client.cmd(key, &["MAOS.SET", key, "v"]).int();
        let other = format!("r:{key}");
        client
            .cmd(&other, &["MAOS.SET", &other, "v", "PARTITION", "{p}run"])
            .int();
    }
    everywhere(&cluster, "charged", |n| {
        seen(n, "{p}part").is_some_and(|s| s.2 == 30)
            && seen(n, "{p}run").is_some_and(|s| s.2 == 30)
    });
    // The slot of the definitions goes to another master: nobody loses sight of them, and no key goes.
    let from = cluster.node_for("{p}part");
    let to = cluster.another(from);
    cluster.move_slot(slot_of(b"{p}part"), to);
    everywhere(&cluster, "moved", |n| {
        seen(n, "{p}part").is_some_and(|s| s.2 == 30)
            && seen(n, "{p}run").is_some_and(|s| s.2 == 30)
    });
    assert!(
        to.conn()
            .run("MAOS.PARTITION ALTER {p}part BYTES 150000")
            .int()
            > 0
    );
    everywhere(&cluster, "altered where it is now", |n| {
        seen(n, "{p}part").is_some_and(|s| s.0 == 150_000)
    });
    // Its master gives way to its replica.
    let replica = cluster.replica_now(to);
    wait_synced(to, replica);
    eventually(PATIENCE, "the replica takes over", || {
        let conn = &mut replica.conn();
        let _ = conn.run("CLUSTER FAILOVER");
        conn.run("ROLE").array()[0].text() == "master"
    });
    everywhere(&cluster, "taken over", |n| {
        seen(n, "{p}part").is_some_and(|s| (s.0, s.2) == (150_000, 30))
            && seen(n, "{p}run").is_some_and(|s| s.2 == 30)
    });
    assert!(
        replica
            .conn()
            .run("MAOS.PARTITION ALTER {p}part BYTES 160000")
            .int()
            > 0
    );
    everywhere(&cluster, "altered by the new master", |n| {
        seen(n, "{p}part").is_some_and(|s| s.0 == 160_000)
    });
    // A key that is charged moves, and is charged where it is.
    let slot = slot_of(b"k:0");
    let (from, sum) = (cluster.node_for("k:0"), seen(to, "{p}part").unwrap());
    let others: Vec<_> = cluster
        .nodes
        .iter()
        .filter(|n| n.conn().run("ROLE").array()[0].text() == "master")
        .collect();
    let there = others.iter().find(|n| n.port() != from.port()).unwrap();
    cluster.move_slot(slot, there);
    everywhere(&cluster, "charged elsewhere", |n| {
        seen(n, "{p}part").is_some_and(|s| (s.1, s.2) == (sum.1, sum.2))
    });
    for key in &keys {
        assert_eq!(
            cluster.client().cmd(key, &["MAOS.GET", key]).text(),
            "v",
            "{key}"
        );
    }
}

#[test]
fn a_temporary_partition_leaves_every_node() {
    let cluster = Cluster::start(3, 1);
    complete(&cluster);
    let mut client = cluster.client();
    client
        .cmd(
            "run",
            &[
                "MAOS.PARTITION",
                "CREATE",
                "run",
                "BYTES",
                "1000000",
                "TYPE",
                "temporary",
                "TTL",
                "100000000",
            ],
        )
        .int();
    everywhere(&cluster, "known", |n| seen(n, "run").is_some());
    let keys: Vec<_> = (0..90).map(|n| format!("r:{n}")).collect();
    for key in &keys {
        client
            .cmd(key, &["MAOS.SET", key, "v", "PARTITION", "run"])
            .int();
        let stays = format!("s:{key}");
        client.cmd(&stays, &["MAOS.SET", &stays, "v"]).int();
    }
    everywhere(&cluster, "charged", |n| {
        seen(n, "run").is_some_and(|s| s.2 == 90)
    });
    assert_eq!(client.cmd("run", &["PEXPIRE", "run", "100"]).int(), 1);
    everywhere(&cluster, "its keys are gone, and no others", |n| {
        let conn = &mut n.conn();
        conn.run("KEYS r:*").array().is_empty() && seen(n, "run").is_none()
    });
    let left: usize = (0..3)
        .map(|i| cluster.master(i).conn().run("KEYS s:*").array().len())
        .sum();
    assert_eq!(left, 90);
}

#[test]
fn what_comes_over_the_bus_is_not_trusted() {
    let cluster = Cluster::start(3, 0);
    if !has_failpoints(&mut cluster.master(0).conn()) {
        return;
    }
    complete(&cluster);
    let mut client = cluster.client();
    make_a(&mut client);
    everywhere(&cluster, "created", |n| seen(n, "part:a").is_some());
    let node = cluster.another(cluster.node_for("part:a"));
    let shouts = if cfg!(debug_assertions) { 40 } else { 400 };
    for seed in 1..=shouts {
        assert_eq!(node.conn().run(&format!("MAOS.FAIL shout {seed}")).int(), 1);
    }
    // What was said wrongly of it is set right by what its own node says.
    everywhere(&cluster, "known as before", |n| {
        seen(n, "part:a").is_some_and(|s| s.0 == 100_000)
    });
    client
        .cmd(
            "part:b",
            &["MAOS.PARTITION", "CREATE", "part:b", "BYTES", "100000"],
        )
        .int();
    everywhere(&cluster, "created, too", |n| seen(n, "part:b").is_some());
    complete(&cluster);
    for node in &cluster.nodes {
        assert_eq!(metric(&mut node.conn(), "panics"), 0);
        let key = key_of(&cluster, node, "a:");
        assert!(node.conn().run(&format!("MAOS.SET {key} v")).int() > 0);
    }
}

#[test]
fn whom_only_this_node_does_not_reach_still_counts() {
    let name = |n: usize| format!("{n:040}");
    let line = |n: usize, flags: &str, master: &str, slots: &str| {
        format!(
            "{} 127.0.0.1:1{n}@2{n} {flags} {master} 0 1 {n} connected{slots}\n",
            name(n)
        )
    };
    let text = [
        line(1, "myself,master", "-", " 0-99 [5->-0]"),
        line(2, "master,fail?", "-", " 100-199"),
        line(3, "master,fail", "-", " 200-299"),
        line(4, "slave", &name(2), ""),
        // It serves none: one slot is on its way to it.
        line(5, "master", "-", " [7-<-0]"),
        "too short\n".to_owned(),
    ];
    let seen = nodes::Nodes::read(&text.concat());
    let is = |n: usize, is_myself, failed, silent| nodes::Master {
        name: name(n),
        is_myself,
        failed,
        silent,
    };
    let masters = vec![
        is(1, true, false, false),
        is(2, false, false, true),
        is(3, false, true, true),
    ];
    assert_eq!((seen.masters, seen.own_master), (masters, None));
    let replica = line(4, "myself,slave", &name(2), "");
    assert_eq!(nodes::Nodes::read(&replica).own_master, Some(name(2)));
}
