//! MAOS.RANGE: every state key in order, exactly once, whatever has happened to the keys.

use std::collections::BTreeSet;
use std::time::Duration;

use maos_core::generate::Rng;

use super::oracle::now_us;
use super::persistence::wait_rewritten;
use super::{metric, replica_of};
use crate::harness::*;

/// The keys that a reply lists, and where to go on.
#[track_caller]
fn page(reply: &Reply) -> (Option<Vec<u8>>, Vec<Vec<u8>>) {
    let [next, keys] = reply.array() else {
        panic!("{reply}");
    };
    let next = (!next.is_nil()).then(|| next.bytes().to_vec());
    let keys = keys.array().iter().map(|key| key.bytes().to_vec());
    (next, keys.collect())
}

/// All keys with a prefix, page by page.
#[track_caller]
fn listed(conn: &mut Conn, prefix: &[u8], count: usize) -> Vec<Vec<u8>> {
    let (mut all, mut after) = (vec![], None::<Vec<u8>>);
    loop {
        let count = count.to_string().into_bytes();
        let mut words = vec![
            b"MAOS.RANGE".to_vec(),
            prefix.to_vec(),
            b"COUNT".to_vec(),
            count,
        ];
        if let Some(after) = after.take() {
            words.extend([b"AFTER".to_vec(), after]);
        }
        let mut reply = conn.cmd(&words);
        eventually(PATIENCE, "the index is whole", || {
            let busy = reply.is_err() && reply.code() == "BUSY";
            if busy {
                reply = conn.cmd(&words);
            }
            !busy
        });
        let (next, keys) = page(&reply);
        all.extend(keys);
        match next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

/// All keys that hold state, found by looking at all keys.
fn scanned(conn: &mut Conn) -> Vec<Vec<u8>> {
    let (mut all, mut cursor) = (BTreeSet::new(), "0".to_string());
    loop {
        let reply = cmd!(conn, "SCAN", cursor, "COUNT", "1000");
        let keys = reply.array()[1].array().iter();
        all.extend(keys.map(|key| key.bytes().to_vec()));
        cursor = reply.array()[0].text().to_string();
        if cursor == "0" {
            break;
        }
    }
    let mut live = |key: &Vec<u8>| {
        let held = cmd!(conn, "MAOS.GET", key);
        !held.is_err() && !held.is_nil()
    };
    all.into_iter().filter(|key| live(key)).collect()
}

/// What is listed is what is there, in all databases that the tests use.
#[track_caller]
fn agrees(conn: &mut Conn, when: &str) {
    for db in 0..3 {
        if conn.run(&format!("SELECT {db}")).is_err() {
            break;
        }
        let shown = |keys: Vec<Vec<u8>>| -> Vec<String> {
            let text = |key: Vec<u8>| String::from_utf8_lossy(&key).into_owned();
            keys.into_iter().map(text).collect()
        };
        let mut both = || (listed(conn, b"", 7), scanned(conn));
        let (mut one, mut other) = both();
        // What expires in between is in the one only.
        for _ in 0..20 {
            if one != other {
                std::thread::sleep(Duration::from_millis(5));
                (one, other) = both();
            }
        }
        assert_eq!(shown(one), shown(other), "database {db}, {when}");
    }
    conn.run("SELECT 0");
}

#[test]
fn keys_are_listed_in_the_order_of_their_bytes_each_once() {
    let server = Server::start();
    let conn = &mut server.conn();
    let mut all = BTreeSet::new();
    for n in 0..3_000u32 {
        // Long and short ones, some the beginning of others, with any bytes.
        let key = match n % 4 {
            0 => format!("a:{n}").into_bytes(),
            1 => [b"a:\xff".to_vec(), n.to_be_bytes().to_vec()].concat(),
            2 => vec![b'a'; 1 + n as usize % 300],
            _ => n.to_le_bytes().to_vec(),
        };
        cmd!(conn, "MAOS.SET", key, "v").int();
        all.insert(key);
    }
    cmd!(conn, "SET", "a:other", "no state").ok();
    for (prefix, count) in [
        (&b""[..], 1000),
        (b"a:", 1),
        (b"a:", 10_000),
        (b"a:\xff", 7),
        (b"b", 3),
    ] {
        let fit: Vec<_> = all
            .iter()
            .filter(|k| k.starts_with(prefix))
            .cloned()
            .collect();
        assert!(fit.len() > 100 || prefix == b"b");
        assert!(listed(conn, prefix, count) == fit, "{prefix:?}");
    }
    // Without COUNT it is bounded as well, and says where to go on; also after a key that is not there (any more).
    let (next, keys) = page(&cmd!(conn, "MAOS.RANGE", ""));
    assert_eq!((keys.len(), keys.last()), (1000, next.as_ref()));
    let later: Vec<_> = all
        .iter()
        .filter(|k| k.as_slice() > b"a:5\0")
        .take(5)
        .cloned()
        .collect();
    let (_, keys) = page(&cmd!(
        conn,
        "MAOS.RANGE",
        "",
        "AFTER",
        b"a:5\0",
        "COUNT",
        "5"
    ));
    assert_eq!(keys, later);
    // Before all of them is from the first one on; after all of them there is none.
    let first = page(&cmd!(conn, "MAOS.RANGE", "a:", "AFTER", "a", "COUNT", "1")).1;
    assert_eq!(first, [b"a:0"]);
    assert_eq!(
        page(&cmd!(conn, "MAOS.RANGE", "a:", "AFTER", "b")),
        (None, vec![])
    );
    // Large values make a page short, not the listing.
    for n in 0..30 {
        cmd!(
            conn,
            "MAOS.SET",
            format!("large:{n:02}"),
            "x".repeat(100_000)
        )
        .int();
    }
    let reply = conn.run("MAOS.RANGE large: FULL");
    let keys = reply.array()[1].array();
    assert!((10..20).contains(&keys.len()), "{}", keys.len());
    let last = keys.last().expect("some").field("key").text();
    assert_eq!(reply.array()[0].text(), last);
}

#[test]
fn the_listing_follows_keys_wherever_they_go() {
    let master = Server::with(&[("appendonly", "yes"), ("appendfsync", "always")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let mut rng = Rng::new(now_us());
    let check = |conn: &mut Conn, when: &str| {
        agrees(conn, when);
        wait_synced(&master, &replica);
        agrees(&mut replica.conn(), &format!("{when}, on the replica"));
    };
    for n in 0..9 {
        conn.run(&format!("MAOS.SET k{n} v")).int();
    }
    conn.run("SET s plain").ok();
    let dump = cmd!(conn, "DUMP", "k1");
    let dump = dump.bytes();
    for line in [
        "MAOS.DEL k0",
        "DEL k1",
        "UNLINK k2",
        "RENAME k3 r3",
        "RENAME k4 k5",
        "RENAMENX k5 r5",
        "RENAMENX k6 r5",
        "RENAME s k6",
        "MOVE k7 1",
        "COPY k8 c8",
        "COPY r3 c8 REPLACE",
        "COPY c8 c8 DB 2",
        "SET r3 plain",
        "DEL c8",
        "MAOS.SET r3 again",
        "MAOS.LOCK only me 60000",
        "PEXPIRE r5 1",
        "SWAPDB 0 1",
        "MAOS.SET k0 again",
        "SWAPDB 1 2",
        "SWAPDB 0 0",
        "FLUSHDB",
        "MAOS.SET k0 again",
        "SELECT 2",
        "FLUSHDB ASYNC",
        "SELECT 0",
        "MAOS.SET k1 again",
    ] {
        conn.run(line);
        if line.starts_with("PEXPIRE") {
            eventually(PATIENCE, "it is gone", || conn.run("EXISTS r5").int() == 0);
        }
        check(conn, line);
    }
    // What RESTORE brings, beside something and in its place; what it refuses, or is too late.
    for (key, ttl, more) in [
        ("d", "0", &[][..]),
        ("d", "0", &[]),
        ("d", "0", &["REPLACE"]),
        ("k1", "0", &["REPLACE"]),
        ("k6", "0", &["REPLACE"]),
        ("late", "1", &["ABSTTL"]),
        ("k1", "1", &["ABSTTL", "REPLACE"]),
    ] {
        let mut words = vec![b"RESTORE".to_vec(), key.into(), ttl.into(), dump.to_vec()];
        words.extend(more.iter().map(|w| w.as_bytes().to_vec()));
        conn.cmd(&words);
        check(conn, &format!("RESTORE {key} {ttl} {more:?}"));
        conn.run(&format!("DEL {key}"));
        check(conn, &format!("DEL after RESTORE {key} {ttl} {more:?}"));
    }
    // Anything after anything.
    for round in 0..40 {
        let mut lines = vec![];
        for _ in 0..30 {
            let mut key = || format!("k{}", rng.below(8));
            let [a, b] = [key(), key()];
            let line = match rng.below(15) {
                0..4 => format!("MAOS.SET {a} v"),
                4 => format!("DEL {a}"),
                5 => format!("RENAME {a} {b}"),
                6 => format!("COPY {a} {b} REPLACE"),
                7 => format!("COPY {a} {b} DB {} REPLACE", rng.below(3)),
                8 => format!("MOVE {a} {}", rng.below(3)),
                9 => format!("SET {a} plain"),
                10 => format!("MAOS.DEL {a}"),
                11 => format!("SELECT {}", rng.below(3)),
                12 => format!("SWAPDB {} {}", rng.below(3), rng.below(3)),
                13 => format!("PEXPIRE {a} {}", 1 + rng.below(3)),
                _ => format!("EVAL \"redis.call('rename', '{a}', '{b}') return redis.call('maos.set', '{a}', 'x')\" 0"),
            };
            lines.push(line);
        }
        let inside = rng.chance(30);
        if inside {
            lines.insert(0, "MULTI".into());
            lines.push("EXEC".into());
        }
        conn.pipeline(&lines);
        check(conn, &format!("round {round}: {lines:?}"));
        match rng.below(12) {
            0 => conn.run("DEBUG RELOAD").ok(),
            1 => {
                conn.run("BGREWRITEAOF");
                wait_rewritten(conn);
                conn.run("DEBUG LOADAOF").ok();
            }
            2 => drop(conn.run("FLUSHALL")),
            3 => {
                conn.run("CONFIG SET maos.range-index no").ok();
                assert_eq!(conn.run("MAOS.RANGE k").code(), "ERR");
                assert_eq!(metric(conn, "index_keys"), 0);
                conn.run("MAOS.SET k7 meanwhile");
                conn.run("CONFIG SET maos.range-index yes").ok();
            }
            _ => continue,
        }
        check(conn, &format!("after round {round}"));
    }
    let held = scanned(conn).len() as i64;
    let mut other = replica.conn();
    other.run("REPLICAOF NO ONE").ok();
    agrees(&mut other, "taken over");
    assert!(held <= metric(conn, "index_keys"));
}

#[test]
fn the_listing_is_that_of_the_data_set_that_is_served() {
    let master = Server::with(&[
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", "0"),
    ]);
    let conn = &mut master.conn();
    for n in 0..100 {
        conn.run(&format!("MAOS.SET m{n} v")).int();
    }
    for load in ["disabled", "swapdb"] {
        let mut replica = Server::with(&[("repl-diskless-load", load)]);
        let other = &mut replica.conn();
        for n in 0..50 {
            other.run(&format!("MAOS.SET old{n} v")).int();
        }
        agrees(other, "before");
        let port = master.port();
        other.run(&format!("REPLICAOF 127.0.0.1 {port}")).ok();
        wait_synced(&master, &replica);
        assert_eq!(listed(other, b"", 1000).len(), 100);
        agrees(other, load);
        // A second time, as a replica of the same data.
        conn.run("DEBUG CHANGE-REPL-ID").ok();
        conn.run("CLIENT KILL TYPE replica");
        conn.run("MAOS.SET m0 w").int();
        wait_synced(&master, &replica);
        agrees(other, load);
        replica.restart(Stop::Save);
        agrees(&mut replica.conn(), "started again");
    }
}

#[test]
fn names_that_came_to_nothing_are_forgotten() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    let dump = cmd!(conn, "DUMP", "k");
    for n in 0..2_000 {
        // It comes too late to live.
        cmd!(
            conn,
            "RESTORE",
            format!("late{n}"),
            "1",
            dump.bytes(),
            "ABSTTL"
        )
        .ok();
    }
    assert_eq!(page(&conn.run("MAOS.RANGE k")).1, [b"k"]);
    eventually(PATIENCE, "only one name is left", || {
        metric(conn, "index_keys") == 1
    });
    agrees(conn, "after it");
}

#[test]
fn a_listing_shows_what_the_user_may_read() {
    let server = Server::start();
    let admin = &mut server.conn();
    for key in [
        "app:1",
        "app:2",
        "app:2:secret",
        "app:3",
        "b",
        "c:1",
        "c:secret",
    ] {
        cmd!(admin, "MAOS.SET", key, "v").int();
    }
    let mut shown = |rules: &str, line: &str| {
        let on = format!("ACL SETUSER reader reset on nopass +@all {rules}");
        admin.run(&on).ok();
        let mut conn = server.conn();
        conn.run("AUTH reader any").ok();
        conn.run(line)
    };
    let names = |reply: &Reply| -> Vec<String> {
        let text = |key: Vec<u8>| String::from_utf8_lossy(&key).into_owned();
        page(reply).1.into_iter().map(text).collect()
    };
    assert_eq!(
        names(&shown("~app:* ~c:1", "MAOS.RANGE ''")),
        ["app:1", "app:2", "app:2:secret", "app:3", "c:1"]
    );
    assert_eq!(
        names(&shown("%R~app:? ~b", "MAOS.RANGE app")),
        ["app:1", "app:2", "app:3"]
    );
    assert_eq!(
        names(&shown("resetkeys (%R~c:* +@all)", "MAOS.RANGE ''")),
        ["c:1", "c:secret"]
    );
    assert_eq!(shown("~app:* %W~c:*", "MAOS.RANGE c:").code(), "NOPERM");
    assert_eq!(shown("~app:*", "MAOS.RANGE b").code(), "NOPERM");
    assert_eq!(shown("resetkeys", "MAOS.RANGE ''").code(), "NOPERM");
    // Where to go on is no key that it may not read.
    let reply = shown("~app:?", "MAOS.RANGE app: COUNT 2");
    assert_eq!(reply.array()[0].text(), "app:2");
    let reply = shown("~app:?", "MAOS.RANGE app: COUNT 3");
    assert!(reply.array()[0].is_nil());
    // What lies between what it may read costs nothing, however much that is; what a pattern tells apart only key by
    // key is bounded.
    let many: Vec<String> = (0..100_100)
        .map(|n| format!("MAOS.SET app:x{n} v"))
        .collect();
    for some in many.chunks(10_000) {
        server.conn().pipeline(some);
    }
    assert_eq!(
        names(&shown("~app:1 ~app:3 ~b ~c:*", "MAOS.RANGE ''")),
        ["app:1", "app:3", "b", "c:1", "c:secret"]
    );
    let reply = shown("~app:*y", "MAOS.RANGE app:");
    assert_eq!(reply.code(), "LIMIT");
    assert!(!reply.err().contains("app:x"), "{reply}");
    assert_eq!(
        names(&shown("~app:*1", "MAOS.RANGE app:x1000 COUNT 2")),
        ["app:x100001", "app:x10001"]
    );
}

/// What has changed since a version, or since a watcher's cursor: that is how it catches up.
#[test]
fn what_has_changed_since_is_listed_with_what_was_deleted() {
    let server = Server::start();
    let conn = &mut server.conn();
    for n in 0..10 {
        conn.run(&format!("MAOS.SET k{n} v")).int();
    }
    let cursor = conn.run("MAOS.WATCH k*");
    let cursor = cursor.array()[0].text().to_string();
    let v3 = conn.run("MAOS.SET k3 w BY worker META '{\"a\":1}'").int();
    let v5 = conn.run("MAOS.DEL k5 BY cleaner").int();
    conn.run("MAOS.LOCK k7 me 60000");
    conn.run("MAOS.LOCK k11 me 60000");
    conn.run("DEL k8");
    let reply = conn.run(&format!("MAOS.RANGE k SINCE {cursor} FULL"));
    let [k3, k5] = reply.array()[1].array() else {
        panic!("{reply}");
    };
    let text = |of: &Reply, name: &str| of.field(name).text().to_string();
    assert_eq!(
        (text(k3, "key"), text(k3, "value")),
        ("k3".into(), "w".into())
    );
    assert_eq!(
        (text(k3, "agent"), text(k3, "metadata")),
        ("worker".into(), "{\"a\":1}".into())
    );
    assert_eq!(
        (k3.field("version").int(), k3.field("ttl-ms").int()),
        (v3, -1)
    );
    assert_eq!(
        (text(k5, "key"), text(k5, "agent")),
        ("k5".into(), "cleaner".into())
    );
    assert!(k5.field("value").is_nil() && k5.field("ttl-ms").int() > 0);
    assert_eq!(
        (k5.field("version").int(), text(k5, "author")),
        (v5, "default".into())
    );
    assert_eq!(
        page(&conn.run(&format!("MAOS.RANGE k SINCE {v3}"))).1,
        [b"k5"]
    );
    assert_eq!(
        page(&conn.run(&format!("MAOS.RANGE k SINCE {v5}"))).1.len(),
        0
    );
    assert_eq!(page(&conn.run("MAOS.RANGE k SINCE 0")).1.len(), 9);
    // Few that have changed among many that have not: page after page may be empty, and says where to go on.
    let many: Vec<String> = (0..25_000).map(|n| format!("MAOS.SET m{n:05} v")).collect();
    let last = server.conn().pipeline(&many).last().expect("some").int();
    conn.run("MAOS.SET m24999 w").int();
    let (next, keys) = page(&conn.run(&format!("MAOS.RANGE m SINCE {last}")));
    assert_eq!((next, keys), (Some(b"m09999".to_vec()), vec![]));
    let line = format!("MAOS.RANGE m SINCE {last} AFTER m09999");
    assert_eq!(page(&conn.run(&line)).0, Some(b"m19999".to_vec()));
    let line = format!("MAOS.RANGE m SINCE {last} AFTER m19999");
    assert_eq!(page(&conn.run(&line)), (None, vec![b"m24999".to_vec()]));
}

#[test]
fn an_index_that_is_switched_on_is_made_while_the_server_serves() {
    let server = Server::with(&[("maos.range-index", "no")]);
    let conn = &mut server.conn();
    let many: Vec<String> = (0..60_000).map(|n| format!("MAOS.SET k{n:05} v")).collect();
    for some in many.chunks(10_000) {
        conn.pipeline(some);
    }
    let off = conn.run("MAOS.RANGE k");
    assert!(off.err().contains("maos.range-index"), "{off}");
    conn.run("CONFIG SET maos.range-index yes").ok();
    // Meanwhile keys come, go and are renamed.
    for n in 0..500 {
        conn.run(&format!("MAOS.SET new{n} v")).int();
        conn.run(&format!("DEL k{n:05}")).int();
        conn.run(&format!("RENAME k{:05} r{n}", 59_999 - n)).ok();
    }
    assert_eq!(listed(conn, b"", 10_000).len(), 60_000);
    agrees(conn, "made");
}

#[test]
fn a_cluster_s_nodes_list_each_their_own() {
    let cluster = Cluster::start(3, 0);
    let mut client = cluster.client();
    for n in 0..300 {
        let key = format!("k{n}");
        client.cmd(&key, &["MAOS.SET", &key, "v"]).int();
    }
    let all = || -> Vec<Vec<u8>> {
        let nodes = cluster.nodes.iter();
        let mut all: Vec<_> = nodes
            .flat_map(|node| listed(&mut node.conn(), b"k", 1000))
            .collect();
        all.sort();
        all
    };
    let whole = all();
    assert_eq!(whole.len(), 300);
    for n in 0..5 {
        let key = format!("k{n}");
        let from = cluster.node_for(&key);
        cluster.move_slot(slot_of(key.as_bytes()), cluster.another(from));
        assert!(listed(&mut from.conn(), key.as_bytes(), 1000).first() != Some(&key.into_bytes()));
        assert_eq!(all(), whole);
    }
}

#[test]
fn bad_listings_are_refused_with_what_is_wrong() {
    let server = Server::start();
    let conn = &mut server.conn();
    for (line, says) in [
        ("MAOS.RANGE k COUNT 0", "COUNT"),
        ("MAOS.RANGE k COUNT 10001", "10000"),
        ("MAOS.RANGE k COUNT x", "COUNT"),
        ("MAOS.RANGE k SINCE yesterday", "MAOS.RANGE: SINCE"),
        ("MAOS.RANGE k SINCE -1", "SINCE"),
        ("MAOS.RANGE k AFTER", "too few arguments"),
        ("MAOS.RANGE k BEFORE l", "BEFORE"),
        ("MAOS.RANGE k FULL FULL", "FULL"),
    ] {
        let reply = conn.run(line);
        assert!(
            reply.is_err() && reply.err().contains(says),
            "{line}: {reply}"
        );
    }
    assert!(conn.run("MAOS.RANGE").is_err());
}

/// Where only keys follow whose time is over there is no more, though they are not removed yet.
#[test]
fn a_page_is_the_last_where_only_keys_follow_whose_time_is_over() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("DEBUG SET-ACTIVE-EXPIRE 0").ok();
    for key in ["a1", "a2", "b1"] {
        conn.run(&format!("MAOS.SET {key} v")).int();
    }
    for key in ["a3", "a4"] {
        conn.run(&format!("MAOS.SET {key} v PX 1")).int();
    }
    // To look at them would remove them.
    conn.run("DEBUG SLEEP 0.01").ok();
    let page = conn.run("MAOS.RANGE a COUNT 2");
    assert!(page.array()[0].is_nil(), "{page}");
    let page = conn.run("MAOS.RANGE a COUNT 1");
    assert_eq!(page.array()[0].text(), "a1");
    let page = conn.run("MAOS.RANGE '' COUNT 2");
    assert_eq!(page.array()[0].text(), "a2");
}
