//! Roll-backs of a prefix to an instant: every key holds what it held, as a new version, or it is said why not.

use std::collections::BTreeMap;

use maos_core::generate::Rng;

use super::oracle::{now_us, number};
use super::replica_of;
use crate::harness::*;

/// Nothing is trimmed away.
const ALL: [(&str, &str); 2] = [
    ("maos.history-max-versions", "100000"),
    ("maos.history-max-bytes", "1gb"),
];
const NO_INDEX: (&str, &str) = ("maos.range-index", "no");

/// The present millisecond, once it is over: what comes after this comes after it.
fn instant(conn: &mut Conn) -> u64 {
    let millis = |conn: &mut Conn| {
        let time = conn.run("TIME");
        let part = |n: usize| time.array()[n].text().parse::<u64>().expect("a number");
        part(0) * 1000 + part(1) / 1000
    };
    let now = millis(conn);
    while millis(conn) <= now {}
    now
}

/// Waits until a job has ended, and gives its status.
#[track_caller]
fn ended(conn: &mut Conn, id: &str) -> Reply {
    let mut status = Reply::Nil;
    eventually(PATIENCE, "the job ends", || {
        status = cmd!(conn, "MAOS.BACKUP", "STATUS", id);
        status.field("state").text() != "running"
    });
    status
}

/// Rolls back to the end, and gives what came of it.
#[track_caller]
fn rolled(conn: &mut Conn, line: &str) -> Reply {
    let job = conn.run(&format!("MAOS.ROLLBACKTO {line}"));
    let status = ended(conn, job.text());
    assert_eq!(status.field("state").text(), "done", "{status}");
    status
}

/// The counts that are not 0, in their order.
fn counts(status: &Reply) -> Vec<(&str, i64)> {
    let names = [
        "keys",
        "deleted",
        "same",
        "newer",
        "elsewhere",
        "refused",
        "beyond",
    ];
    let all = names.map(|name| (name, status.field(name).int()));
    all.into_iter().filter(|(_, n)| *n != 0).collect()
}

/// What keys hold; those without a value are not in it.
fn held(conn: &mut Conn, keys: &[String]) -> BTreeMap<String, String> {
    let many = format!("MAOS.MGET {} {}", keys.len(), keys.join(" "));
    let values = conn.run(&many);
    let live = keys.iter().zip(values.array()).filter(|(_, v)| !v.is_nil());
    live.map(|(key, v)| (key.clone(), v.text().to_owned()))
        .collect()
}

/// One random write to one of the keys, by whatever command.
fn any_write(rng: &mut Rng, keys: &[String], n: usize) -> String {
    let (key, other) = (rng.pick(keys), rng.pick(keys));
    match rng.below(14) {
        0..=2 => format!("MAOS.DEL {key}"),
        3 => format!("MAOS.PATCH {key} '{{\"n\":{n}}}'"),
        4 => format!("MAOS.ROLLBACK {key} VERSION -1 BY fixer"),
        5 if key != other => format!("MAOS.MSET 2 {key} both{n} {other} both{n}"),
        6 if key != other => {
            format!("MAOS.TXN 2 {key} {other} THEN SET {key} moved{n} THEN DEL {other}")
        }
        // Few different values, so that what a key held it may hold again.
        7..=9 => format!("MAOS.SET {key} {} BY worker-{}", n % 3, n % 5),
        _ => format!("MAOS.SET {key} '{{\"v\":{n}}}'"),
    }
}

/// Random writes to two hundred keys, and instants that are remembered in between: whichever is gone back to, in whatever
/// order, every key holds what it held then; on the replica and after a restart too, and a dry run changes nothing.
fn every_key_holds_what_it_held(lines: &[(&str, &str)]) {
    let lines = [&ALL[..], &[("appendonly", "yes")], lines].concat();
    let server = Server::with(&lines);
    let replica = replica_of(&server);
    let conn = &mut server.conn();
    let seed = number("MAOS_TEST_SEED").unwrap_or_else(now_us);
    println!("MAOS_TEST_SEED={seed}");
    let mut rng = Rng::new(seed);
    let keys: Vec<String> = (0..200).map(|n| format!("app:{n}")).collect();
    let others = ["ap", "apq", "b"].map(str::to_owned);
    let mut known = vec![(instant(conn), held(conn, &keys))];
    for round in 0..12 {
        let writes: Vec<String> = (0..300)
            .map(|n| any_write(&mut rng, &keys, 300 * round + n))
            .collect();
        conn.pipeline(&writes);
        for other in &others {
            cmd!(conn, "MAOS.SET", other, round.to_string()).int();
        }
        known.push((instant(conn), held(conn, &keys)));
    }
    for turn in 0..8 {
        let (at, then) = rng.pick(&known).clone();
        let before = held(conn, &keys);
        let (was, end) = (digest_all(conn), instant(conn));
        let foretold = rolled(conn, &format!("app: AT {at} DRYRUN"));
        assert_eq!(digest_all(conn), was, "a dry run");
        let status = rolled(conn, &format!("app: AT {at} BY operator"));
        assert_eq!(held(conn, &keys), then, "turn {turn} to {at}");
        assert_eq!(counts(&status), counts(&foretold));
        assert_eq!(status.field("bytes").int(), foretold.field("bytes").int());
        let differs = |key: &&String| before.get(*key) != then.get(*key);
        let changed = keys.iter().filter(differs).count() as i64;
        let gone = before.keys().filter(|key| !then.contains_key(*key)).count() as i64;
        assert_eq!(status.field("keys").int(), changed, "{status}");
        assert_eq!(status.field("deleted").int(), gone, "{status}");
        assert_eq!(status.field("kind").text(), "rollback");
        assert_eq!(status.field("name").text(), "app:");
        assert_eq!(status.field("instant").int(), at as i64 * 1000);
        // Once more: it is all there already.
        let again = rolled(conn, &format!("app: AT {at}"));
        let seen = changed + status.field("same").int();
        assert_eq!(
            counts(&again),
            if seen > 0 {
                vec![("same", seen)]
            } else {
                vec![]
            }
        );
        wait_synced(&server, &replica);
        assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
        // What was undone is brought back by the same means.
        if rng.chance(50) {
            rolled(conn, &format!("app: AT {end}"));
            assert_eq!(held(conn, &keys), before);
        }
    }
    for other in &others {
        assert_eq!(cmd!(conn, "MAOS.GET", other).text(), "11", "{other}");
    }
    let (now, digest) = (held(conn, &keys), digest_all(conn));
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!((held(conn, &keys), digest_all(conn)), (now, digest));
    assert_eq!(super::metric(conn, "panics"), 0);
}

#[test]
fn every_key_holds_what_it_held_then() {
    every_key_holds_what_it_held(&[]);
}

#[test]
fn every_key_holds_what_it_held_then_without_an_index() {
    every_key_holds_what_it_held(&[NO_INDEX]);
}

#[test]
fn the_index_may_be_switched_on_and_off_meanwhile() {
    let server = Server::with(&ALL);
    let conn = &mut server.conn();
    let sets = |value: &str| -> Vec<String> {
        let lines = (0..20_000).map(|n| format!("MAOS.SET k{n:05} {value}"));
        lines.collect()
    };
    conn.pipeline(&sets("old"));
    let at = instant(conn);
    conn.pipeline(&sets("new"));
    let id = conn
        .run(&format!("MAOS.ROLLBACKTO k AT {at}"))
        .text()
        .to_owned();
    for on in ["no", "yes", "no"] {
        let begun = cmd!(conn, "MAOS.BACKUP", "STATUS", &id).field("keys").int();
        eventually(PATIENCE, "it goes on", || {
            let status = cmd!(conn, "MAOS.BACKUP", "STATUS", &id);
            status.field("keys").int() > begun + 500 || status.field("state").text() != "running"
        });
        conn.run(&format!("CONFIG SET maos.range-index {on}")).ok();
    }
    let status = ended(conn, &id);
    assert_eq!(status.field("state").text(), "done", "{status}");
    assert_eq!(counts(&status), [("keys", 20_000)], "{status}");
    for n in [0, 1, 7_777, 19_999] {
        let held = conn.run(&format!("MAOS.GET k{n:05}"));
        assert_eq!(held.text(), "old", "{n}");
    }
    // Where it has just been switched on it is waited for.
    conn.run("CONFIG SET maos.range-index yes").ok();
    let again = rolled(conn, &format!("k AT {at}"));
    assert_eq!(counts(&again), [("same", 20_000)]);
}

/// Where it turns out that the index has lacked names all keys have their turn again, and none is counted twice.
#[test]
fn what_the_index_has_lacked_has_its_turn_too() {
    let server = Server::with(&ALL);
    let conn = &mut server.conn();
    let same: Vec<String> = (0..10).map(|n| format!("MAOS.SET k!{n} v")).collect();
    conn.pipeline(&same);
    let at = many(&server, 20_000);
    let begin = format!("MAOS.ROLLBACKTO k AT {at}");
    let id = conn.run(&begin).text().to_owned();
    eventually(PATIENCE, "it has begun", || {
        cmd!(conn, "MAOS.BACKUP", "STATUS", &id).field("keys").int() > 500
    });
    let lines = [
        "RENAME k9999 k!late",
        "CONFIG SET maos.range-index no",
        "MAOS.SET other v",
        "CONFIG SET maos.range-index yes",
        "MAOS.SET other v",
    ];
    conn.pipeline(&lines);
    let status = ended(conn, &id);
    assert_eq!(
        counts(&status),
        [("keys", 20_000), ("same", 10)],
        "{status}"
    );
    assert_eq!(conn.run("MAOS.GET k!late").text(), "old");
}

#[test]
fn what_history_no_longer_reaches_stays_and_is_told() {
    let server = Server::with(&[("maos.history-max-versions", "3")]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET app:few 1").int();
    conn.run("MAOS.SET app:gone 1").int();
    conn.run("MAOS.SET app:secret:1 1").int();
    conn.run("MAOS.SET app:many 1").int();
    let at = instant(conn);
    conn.run("MAOS.SET app:few 2").int();
    conn.run("MAOS.SET app:born 2").int();
    for n in 2..9 {
        for key in ["app:many", "app:secret:1"] {
            cmd!(conn, "MAOS.SET", key, n.to_string()).int();
        }
    }
    // Its life began after the deletion, and that is all that is kept of it.
    let deleted = instant(conn);
    conn.run("MAOS.DEL app:gone").int();
    let after = instant(conn);
    for n in 2..5 {
        conn.run(&format!("MAOS.SET app:gone {n}")).int();
    }
    let versions = |conn: &mut Conn, key: &str| {
        let history = cmd!(conn, "MAOS.HISTORY", key);
        history
            .array()
            .iter()
            .map(|v| v.field("version").int())
            .collect::<Vec<_>>()
    };
    let many = versions(conn, "app:many");
    let foretold = rolled(conn, &format!("app: AT {after} DRYRUN"));
    assert_eq!(foretold.field("beyond").int(), 0, "{foretold}");
    let foretold = rolled(conn, &format!("app: AT {deleted} DRYRUN"));
    assert_eq!(foretold.field("beyond").int(), 1, "{foretold}");
    let status = rolled(conn, &format!("app: AT {at}"));
    let all = [("keys", 2), ("deleted", 1), ("beyond", 3)];
    assert_eq!(counts(&status), all, "{status}");
    let named = |status: &Reply| -> Vec<String> {
        let keys = status.field("beyond-keys").array().iter();
        keys.map(|key| key.text().to_owned()).collect()
    };
    assert_eq!(named(&status), ["app:gone", "app:many", "app:secret:1"]);
    assert_eq!(versions(conn, "app:many"), many);
    assert_eq!(conn.run("MAOS.GET app:many").text(), "8");
    assert_eq!(conn.run("MAOS.GET app:few").text(), "1");
    assert!(conn.run("MAOS.GET app:born").is_nil());
    // Another one who may ask about jobs is shown the names that it may read.
    conn.run("ACL SETUSER keeper on >k ~app:* -@all +maos.backup +bgsave")
        .ok();
    conn.run("ACL SETUSER blind on >k ~app:many -@all +maos.backup +bgsave")
        .ok();
    for (user, shown) in [("keeper", 3), ("blind", 1)] {
        let other = &mut server.conn();
        other.run(&format!("AUTH {user} k")).ok();
        let status = cmd!(other, "MAOS.BACKUP", "STATUS", status.field("id").text());
        assert_eq!(named(&status).len(), shown, "{user}: {status}");
        assert_eq!(status.field("beyond").int(), 3);
    }
    // Of many only the first are named.
    for n in 0..40 {
        for value in 0..5 {
            conn.run(&format!("MAOS.SET more:{n:02} {value}")).int();
        }
    }
    let status = rolled(conn, &format!("more: AT {at}"));
    assert_eq!(status.field("beyond").int(), 40, "{status}");
    assert_eq!(named(&status).len(), 16);
}

#[test]
fn what_a_write_may_not_do_a_roll_back_may_not_either() {
    let server = Server::with(&ALL);
    let conn = &mut server.conn();
    let keys = [
        "advisory", "charged", "free", "held", "large", "late", "shared",
    ];
    let long = "x".repeat(5000);
    for key in keys {
        cmd!(conn, "MAOS.SET", format!("app:{key}"), &long).int();
    }
    conn.run("SET app:string 1").ok();
    let at = instant(conn);
    for key in keys {
        cmd!(conn, "MAOS.SET", format!("app:{key}"), "new").int();
    }
    conn.run("MAOS.SET app:new v").int();
    conn.run("MAOS.LOCK app:held me 100000").array();
    conn.run("MAOS.LOCK app:bare me 100000").array();
    conn.run("MAOS.LOCK app:shared me 100000 ADVISORY").array();
    conn.run("MAOS.LOCK app:late me 1").array();
    conn.run("MAOS.PARTITION CREATE share BYTES 8000 PREFIX app:charged")
        .int();
    conn.run("MAOS.SET app:charged small PARTITION share").int();
    instant(conn);
    let refused = conn.run("MAOS.PARTITION INFO share").field("refused").int();
    let (was, foretold) = (
        digest_all(conn),
        rolled(conn, &format!("app: AT {at} DRYRUN BY op")),
    );
    assert_eq!(digest_all(conn), was);
    let told = conn.run("MAOS.PARTITION INFO share").field("refused").int();
    assert_eq!(told, refused, "a dry run is no refused write");
    let status = rolled(conn, &format!("app: AT {at} BY op"));
    // The key of another type and the one that is only locked hold no state.
    let all = [("keys", 6), ("deleted", 1), ("refused", 2)];
    assert_eq!(counts(&status), all, "{status}");
    assert_eq!(counts(&foretold), all, "{foretold}");
    let reason = status.field("reason").text();
    assert!(reason.starts_with("'app:charged': QUOTA "), "{reason}");
    assert_eq!(conn.run("MAOS.GET app:charged").text(), "small");
    assert_eq!(conn.run("MAOS.GET app:held").text(), "new");
    for key in ["advisory", "free", "large", "late", "shared"] {
        let full = cmd!(conn, "MAOS.GET", format!("app:{key}"), "FULL");
        assert_eq!(full.field("value").text(), long, "{key}");
        assert_eq!(full.field("agent").text(), "op");
    }
    assert_eq!(conn.run("GET app:string").text(), "1");
    let info = conn.run("MAOS.PARTITION INFO share AUDIT");
    assert_eq!(info.field("refused").int(), refused + 1);
    // A value that is larger than is taken now; and where there is no memory nothing is rolled back, but deleted.
    let end = instant(conn);
    conn.run("MAOS.SET app:large new").int();
    conn.run("CONFIG SET maos.value-max-bytes 1000").ok();
    let status = rolled(conn, &format!("app:large AT {end}"));
    assert_eq!(counts(&status), [("refused", 1)], "{status}");
    let reason = status.field("reason").text();
    assert!(reason.starts_with("'app:large': TOOBIG "), "{reason}");
    conn.run("CONFIG SET maos.value-max-bytes 8mb").ok();
    conn.run("MAOS.SET app:newest v").int();
    let used = conn.info("memory")["used_memory"].clone();
    conn.run(&format!(
        "CONFIG SET maxmemory {}",
        used.parse::<u64>().expect("a number") / 2
    ))
    .ok();
    let status = rolled(conn, &format!("app: AT {end}"));
    assert_eq!(status.field("deleted").int(), 1, "{status}");
    assert_eq!(status.field("refused").int(), 1, "{status}");
    let reason = status.field("reason").text();
    assert!(reason.starts_with("'app:large': OOM "), "{reason}");
    conn.run("CONFIG SET maxmemory 0").ok();
    let status = rolled(conn, &format!("app: AT {end}"));
    assert_eq!(status.field("keys").int(), 1, "{status}");
}

/// Room is made in whatever database, and what is rolled back in its own: on the replica too.
#[test]
fn keys_of_another_database_make_room() {
    let server = Server::with(&ALL);
    let replica = replica_of(&server);
    let conn = &mut server.conn();
    conn.run("MAOS.PARTITION CREATE share BYTES 30000 PREFIX app: ONFULL evict")
        .int();
    let long = "x".repeat(5000);
    cmd!(conn, "MAOS.SET", "app:back", &long).int();
    let at = instant(conn);
    conn.run("SELECT 1").ok();
    for n in 0..4 {
        cmd!(conn, "MAOS.SET", format!("app:{n}"), &long).int();
    }
    conn.run("SELECT 0").ok();
    conn.run("MAOS.SET app:back new").int();
    let status = rolled(conn, &format!("app: AT {at}"));
    assert_eq!(counts(&status), [("keys", 1)], "{status}");
    assert_eq!(conn.run("MAOS.GET app:back").text(), long);
    conn.run("SELECT 1").ok();
    assert_eq!(conn.run("DBSIZE").int(), 3);
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
}

#[test]
fn rights_hold_for_each_key() {
    let server = Server::with(&ALL);
    let admin = &mut server.conn();
    let keys = ["app:a:1", "app:b:1", "app:c:1", "app:c:2"];
    let at = instant(admin);
    for key in keys {
        cmd!(admin, "MAOS.SET", key, "old").int();
    }
    let then = instant(admin);
    for key in keys {
        cmd!(admin, "MAOS.SET", key, "new").int();
    }
    let commands = "-@all +maos.rollbackto +maos.rollback +maos.del +maos.backup +multi +exec";
    for (user, rules) in [
        ("own", "~app:a:*"),
        ("reads", "%R~app:* ~none:*"),
        ("writes", "%W~app:* ~none:*"),
        ("apart", "%R~app:* %W~other:*"),
        ("mixed", "~app:a:* %R~app:b:* %W~app:c:1 ~app:c:2"),
        ("elsewhere", "~other:*"),
        ("none", ""),
    ] {
        let line = format!("ACL SETUSER {user} on >s {rules} {commands}");
        admin.run(&line).ok();
    }
    admin
        .run("ACL SETUSER unable on >s ~app:* -@all +maos.rollbackto +maos.backup")
        .ok();
    admin
        .run("ACL SETUSER keeps on >s ~app:* -@all +maos.rollbackto +maos.rollback +maos.backup")
        .ok();
    admin
        .run("ACL SETUSER outside on >s ~app:* +@all -maos.rollbackto")
        .ok();
    let as_user = |user: &str| {
        let mut conn = server.conn();
        conn.run(&format!("AUTH {user} s")).ok();
        conn
    };
    for user in ["reads", "writes", "apart", "elsewhere", "none", "outside"] {
        let refused = as_user(user).run(&format!("MAOS.ROLLBACKTO app: AT {at}"));
        assert_eq!(refused.code(), "NOPERM", "{user}: {refused}");
    }
    // Whose patterns could allow it, and of whom none does.
    let status = rolled(&mut as_user("unable"), &format!("app: AT {at}"));
    assert_eq!(counts(&status), [("refused", 4)], "{status}");
    // What only needs a deletion needs the right to delete.
    let status = rolled(&mut as_user("keeps"), &format!("app: AT {at} DRYRUN"));
    assert_eq!(counts(&status), [("refused", 4)], "{status}");
    let status = rolled(&mut as_user("keeps"), &format!("app: AT {then} DRYRUN"));
    assert_eq!(counts(&status), [("keys", 4)], "{status}");
    let status = rolled(&mut as_user("mixed"), &format!("app: AT {then} BY helper"));
    assert_eq!(counts(&status), [("keys", 2), ("refused", 2)], "{status}");
    let values: Vec<String> = keys
        .iter()
        .map(|key| cmd!(admin, "MAOS.GET", key).text().to_owned())
        .collect();
    assert_eq!(values, ["old", "new", "new", "old"]);
    let full = admin.run("MAOS.GET app:a:1 FULL");
    assert_eq!(full.field("author").text(), "mixed");
    assert_eq!(full.field("agent").text(), "helper");
    // Its own job a user may ask about and end, another's only who may save.
    let id = status.field("id").text();
    let refused = cmd!(as_user("own"), "MAOS.BACKUP", "STATUS", id);
    assert_eq!(refused.code(), "NOPERM", "{refused}");
    let refused = cmd!(as_user("own"), "MAOS.BACKUP", "CANCEL", id);
    assert_eq!(refused.code(), "NOPERM", "{refused}");
    // Why another's key was refused is not told whoever may not read it.
    admin.run("ACL SETUSER own +bgsave").ok();
    let seen = cmd!(as_user("own"), "MAOS.BACKUP", "STATUS", id);
    assert!(!seen.field("reason").text().contains("app:b"), "{seen}");
    let seen = cmd!(admin, "MAOS.BACKUP", "STATUS", id);
    assert!(
        seen.field("reason").text().contains("'app:b:1': NOPERM"),
        "{seen}"
    );
    // Rights that are taken away meanwhile are gone.
    let own = &mut as_user("own");
    own.run("MULTI").ok();
    own.run(&format!("MAOS.ROLLBACKTO app:a: AT {at}"));
    let id = own.run("EXEC").array()[0].text().to_owned();
    admin.run("ACL DELUSER own").int();
    let status = ended(admin, &id);
    let left = admin.run("MAOS.GET app:a:1");
    match left.is_nil() {
        true => assert_eq!(counts(&status), [("keys", 1), ("deleted", 1)], "{status}"),
        false => assert_eq!(counts(&status), [("refused", 1)], "{status}"),
    }
}

#[test]
fn watchers_and_histories_are_told_of_it() {
    let server = Server::with(&ALL);
    let conn = &mut server.conn();
    conn.run("MAOS.SET app:a old PX 100000000").int();
    conn.run("MAOS.SET app:c old").int();
    conn.run("MAOS.SET app:d same").int();
    let at = instant(conn);
    conn.run("MAOS.SET app:a new KEEPTTL").int();
    let made = conn.run("MAOS.SET app:b new PX 100000000").int();
    conn.run("MAOS.DEL app:c").int();
    conn.run("MAOS.SET app:d other").int();
    conn.run("MAOS.SET app:d same").int();
    let cursor = conn.run("MAOS.WATCH app:*").array()[0].text().to_owned();
    let watcher = &mut server.conn();
    watcher.send(&[
        "MAOS.WATCH",
        "app:*",
        "SINCE",
        &cursor,
        "BLOCK",
        "20000",
        "VALUES",
    ]);
    let guarded = &mut server.conn();
    guarded.run("WATCH app:a").ok();
    let spared = &mut server.conn();
    spared.run("WATCH app:d").ok();
    let expires = conn.run("PEXPIRETIME app:a").int();
    let status = rolled(conn, &format!("app: AT {at} BY operator"));
    let all = [("keys", 3), ("deleted", 1), ("same", 1)];
    assert_eq!(counts(&status), all, "{status}");
    assert_eq!(status.field("bytes").int(), 6);
    let mut told = vec![];
    let mut reply = watcher.recv();
    loop {
        for event in reply.array()[1].array() {
            assert_eq!(event.field("author").text(), "default");
            assert_eq!(event.field("agent").text(), "operator");
            let word = |name: &str| event.field(name).text().to_owned();
            told.push((word("key"), word("type")));
        }
        if told.len() >= 3 {
            break;
        }
        let cursor = reply.array()[0].text().to_owned();
        reply = cmd!(
            watcher,
            "MAOS.WATCH",
            "app:*",
            "SINCE",
            cursor,
            "BLOCK",
            "20000"
        );
    }
    let wanted = [
        ("app:a", "rolledback"),
        ("app:b", "deleted"),
        ("app:c", "rolledback"),
    ];
    let wanted = wanted.map(|(key, word)| (key.to_owned(), word.to_owned()));
    assert_eq!(told, wanted);
    // Expiries are as after MAOS.ROLLBACK; a deletion has that of a tombstone.
    assert_eq!(conn.run("PEXPIRETIME app:a").int(), expires);
    assert_eq!(conn.run("PEXPIRETIME app:c").int(), -1);
    let leaves = conn.run("PTTL app:b").int();
    assert!((80_000_000..90_000_000).contains(&leaves), "{leaves}");
    let history = conn.run("MAOS.HISTORY app:b");
    let last = &history.array()[1];
    assert_eq!(history.array()[0].field("version").int(), made);
    assert_eq!(last.field("deleted").int(), 1);
    assert!(last.field("version").int() > made);
    // Who guards a key that changed learns of it, and of one that did not nobody.
    guarded.run("MULTI").ok();
    guarded.run("PING");
    assert!(guarded.run("EXEC").is_nil());
    spared.run("MULTI").ok();
    spared.run("PING");
    assert_eq!(spared.run("EXEC").array().len(), 1);
}

#[test]
fn what_is_made_after_it_began_stays() {
    for lines in [&[][..], &[NO_INDEX]] {
        let server = Server::with(&[&ALL, lines].concat());
        let conn = &mut server.conn();
        conn.run("MAOS.SET app:gone old").int();
        conn.run("MAOS.SET app:there old").int();
        let at = instant(conn);
        conn.run("MAOS.SET app:there new").int();
        conn.run("MAOS.DEL app:gone").int();
        conn.run("MULTI").ok();
        conn.run(&format!("MAOS.ROLLBACKTO app: AT {at}"));
        conn.run("MAOS.SET app:fresh v");
        conn.run("MAOS.SET app:there newer");
        conn.run("MAOS.SET app:gone again");
        let id = conn.run("EXEC").array()[0].text().to_owned();
        let status = ended(conn, &id);
        assert_eq!(counts(&status), [("keys", 1), ("newer", 2)], "{status}");
        assert_eq!(conn.run("MAOS.GET app:fresh").text(), "v");
        assert_eq!(conn.run("MAOS.GET app:gone").text(), "again");
        assert_eq!(conn.run("MAOS.GET app:there").text(), "old");
    }
}

#[test]
fn only_what_has_been_can_be_gone_back_to() {
    let server = Server::with(&ALL);
    let conn = &mut server.conn();
    conn.run("MAOS.SET app:a v").int();
    let now = instant(conn);
    let (was, far) = (digest_all(conn), now + 1_000_000);
    for line in [
        format!("app: AT {far}"),
        "app: AT 9007199254740".into(),
        "app: AT 9007199254741".into(),
        "app: AT 9223372036854775807".into(),
        "app: AT 9223372036854775808".into(),
        "app: AT 18446744073709551616".into(),
        "app: AT -1".into(),
        "app: AT 1.5".into(),
        "app: AT ''".into(),
        "app: AT now".into(),
        "app: DRYRUN".into(),
        format!("app: AT {now} AT {now}"),
        format!("app: AT {now} DRYRUN DRYRUN"),
        format!("app: AT {now} BY ''"),
        format!("app: AT {now} REPLACE"),
        format!("app: VERSION {now} AT {now}"),
    ] {
        let refused = conn.run(&format!("MAOS.ROLLBACKTO {line}"));
        assert_eq!(refused.code(), "ERR", "{line}: {refused}");
    }
    let long = "x".repeat(513);
    let refused = cmd!(conn, "MAOS.ROLLBACKTO", &long, "AT", now.to_string());
    assert_eq!(refused.code(), "TOOBIG");
    let refused = cmd!(
        conn,
        "MAOS.ROLLBACKTO",
        "app:",
        "AT",
        now.to_string(),
        "BY",
        &long
    );
    assert_eq!(refused.code(), "TOOBIG");
    assert!(conn.run("MAOS.ROLLBACKTO app:").err().contains("arguments"));
    assert_eq!(digest_all(conn), was);
    // Nothing begins with it; and everything does.
    assert_eq!(counts(&rolled(conn, &format!("none: AT {now}"))), []);
    let status = rolled(conn, "'' AT 0 DRYRUN");
    assert_eq!(counts(&status), [("keys", 1), ("deleted", 1)], "{status}");
    // The database that is selected, and no other.
    conn.run("SELECT 3").ok();
    assert_eq!(counts(&rolled(conn, "'' AT 0")), []);
    conn.run("SELECT 0").ok();
    assert_eq!(digest_all(conn), was);
    let status = rolled(conn, "'' AT 0");
    assert_eq!(counts(&status), [("keys", 1), ("deleted", 1)], "{status}");
}

/// Many keys with two versions each, and the instant in between.
fn many(server: &Server, count: usize) -> u64 {
    let conn = &mut server.conn();
    let sets = |value: &str| -> Vec<String> {
        let lines = (0..count).map(|n| format!("MAOS.SET k{n} {value}"));
        lines.collect()
    };
    conn.pipeline(&sets("old"));
    let at = instant(conn);
    conn.pipeline(&sets("new"));
    at
}

#[test]
fn one_at_a_time_and_it_can_be_cancelled() {
    let server = Server::with(&ALL);
    let at = many(&server, 100_000);
    let conn = &mut server.conn();
    let lines = [
        format!("MAOS.ROLLBACKTO k AT {at}"),
        format!("MAOS.ROLLBACKTO other AT {at} DRYRUN"),
    ];
    let replies = conn.pipeline(&lines);
    assert_eq!(replies[1].code(), "BUSY");
    let id = replies[0].text();
    eventually(PATIENCE, "it has begun", || {
        cmd!(conn, "MAOS.BACKUP", "STATUS", id).field("keys").int() > 0
    });
    assert_eq!(cmd!(conn, "MAOS.BACKUP", "CANCEL", id).int(), 1);
    let status = cmd!(conn, "MAOS.BACKUP", "STATUS", id);
    assert_eq!(status.field("state").text(), "cancelled");
    assert!(status.field("error").is_nil());
    let done = status.field("keys").int();
    assert!((1..100_000).contains(&done), "{status}");
    let refused = cmd!(conn, "MAOS.BACKUP", "CANCEL", id);
    assert_eq!(refused.code(), "NOTFOUND", "{refused}");
    // What has been rolled back stays, and the next one does the rest.
    let status = rolled(conn, &format!("k AT {at}"));
    let rest = [("keys", 100_000 - done), ("same", done)];
    assert_eq!(counts(&status), rest, "{status}");
    // Of what is not remembered nothing is known without a directory.
    let unknown = "0".repeat(32);
    for name in ["STATUS", "CANCEL"] {
        let refused = cmd!(conn, "MAOS.BACKUP", name, &unknown);
        assert!(refused.err().contains("maos.backup-dir"), "{refused}");
    }
    // The last 64 are.
    let ids: Vec<String> = (0..65)
        .map(|_| {
            let status = rolled(conn, &format!("none AT {at}"));
            status.field("id").text().to_owned()
        })
        .collect();
    assert!(cmd!(conn, "MAOS.BACKUP", "STATUS", &ids[0]).is_err());
    assert!(!cmd!(conn, "MAOS.BACKUP", "STATUS", &ids[1]).is_err());
}

#[test]
fn it_ends_where_its_data_set_does() {
    let server = Server::with(&ALL);
    let at = many(&server, 20_000);
    let conn = &mut server.conn();
    let begin = format!("MAOS.ROLLBACKTO k AT {at}");
    for (happens, told) in [
        ("SWAPDB 0 1", "databases"),
        ("SWAPDB 0 1", "databases"),
        ("DEBUG RELOAD", "data set"),
        ("REPLICAOF 127.0.0.1 1", "replica"),
    ] {
        let lines = [&begin, happens];
        let replies = conn.pipeline(&lines);
        let status = ended(conn, replies[0].text());
        assert_eq!(
            status.field("state").text(),
            "failed",
            "{happens}: {status}"
        );
        let error = status.field("error").text();
        assert!(error.contains(told), "{happens}: {status}");
        if happens.starts_with("SWAPDB") {
            conn.run("SWAPDB 0 1").ok();
        }
    }
    assert_eq!(conn.run(&begin).code(), "READONLY");
    conn.run("REPLICAOF NO ONE").ok();
    let status = rolled(conn, &format!("k AT {at}"));
    let seen = status.field("keys").int() + status.field("same").int();
    assert_eq!(seen, 20_000, "{status}");
    // All keys go: then there is nothing to do.
    let replies = conn.pipeline(&[&begin[..], "FLUSHALL"]);
    let status = ended(conn, replies[0].text());
    assert_eq!(status.field("state").text(), "done", "{status}");
    assert_eq!(conn.run("DBSIZE").int(), 0);
}

#[test]
fn nothing_is_rolled_back_while_writes_are_paused() {
    let server = Server::with(&ALL);
    let at = many(&server, 1000);
    let conn = &mut server.conn();
    let begin = format!("MAOS.ROLLBACKTO k AT {at}");
    let replies = conn.pipeline(&["CLIENT PAUSE 100000 WRITE", &begin]);
    let id = replies[1].text();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let status = cmd!(conn, "MAOS.BACKUP", "STATUS", id);
    assert_eq!(status.field("state").text(), "running");
    assert_eq!(counts(&status), [], "{status}");
    conn.run("CLIENT UNPAUSE").ok();
    assert_eq!(counts(&ended(conn, id)), [("keys", 1000)]);
}

/// A roll-back that was killed is begun again, and comes to the same.
#[test]
fn a_roll_back_that_was_killed_is_begun_again() {
    let mut server = Server::with(&[&ALL[..], &[("appendonly", "yes")]].concat());
    let count = 20_000;
    let at = many(&server, count);
    let mut rng = Rng::new(now_us());
    for _ in 0..3 {
        let line = format!("MAOS.ROLLBACKTO k AT {at}");
        server.conn().run(&line).text();
        std::thread::sleep(std::time::Duration::from_micros(rng.below(300_000) as u64));
        server.restart(Stop::Kill);
    }
    let conn = &mut server.conn();
    let status = rolled(conn, &format!("k AT {at}"));
    let seen = status.field("keys").int() + status.field("same").int();
    assert_eq!(seen, count as i64, "{status}");
    for n in [0, 77, count - 1] {
        assert_eq!(conn.run(&format!("MAOS.GET k{n}")).text(), "old");
    }
    assert_eq!(conn.run("DBSIZE").int(), count as i64);
}

#[test]
fn each_node_of_a_cluster_rolls_back_its_own_keys() {
    let cluster = Cluster::start(3, 1);
    let mut client = cluster.client();
    let keys: Vec<String> = (0..300).map(|n| format!("app:{n}")).collect();
    for key in &keys {
        client.cmd(key, &["MAOS.SET", key, "old"]).int();
    }
    let instants = (0..3).map(|n| instant(&mut cluster.master(n).conn()));
    let at = instants.max().expect("three");
    for key in &keys {
        client.cmd(key, &["MAOS.SET", key, "new"]).int();
    }
    let mut seen = 0;
    for n in 0..3 {
        let conn = &mut cluster.master(n).conn();
        let status = rolled(conn, &format!("app: AT {at}"));
        let own = conn.run("DBSIZE").int();
        assert_eq!(counts(&status), [("keys", own)], "{status}");
        seen += own;
    }
    assert_eq!(seen, 300);
    for key in &keys {
        assert_eq!(client.cmd(key, &["MAOS.GET", key]).text(), "old", "{key}");
    }
    for n in 0..3 {
        let (master, replica) = (cluster.master(n), cluster.replica_now(cluster.master(n)));
        let refused = replica.conn().run(&format!("MAOS.ROLLBACKTO app: AT {at}"));
        assert_eq!(refused.code(), "READONLY", "{refused}");
        wait_synced(master, replica);
        assert_eq!(
            digest_all(&mut replica.conn()),
            digest_all(&mut master.conn())
        );
    }
    // A slot that moves takes its keys' histories along, and where they went they are rolled back.
    let key = &keys[0];
    let (from, to) = (
        cluster.node_for(key),
        cluster.another(cluster.node_for(key)),
    );
    cluster.move_slot(slot_of(key.as_bytes()), to);
    client.cmd(key, &["MAOS.SET", key, "newer"]).int();
    let status = rolled(&mut from.conn(), &format!("{key} AT {at}"));
    assert_eq!(status.field("keys").int(), 0, "{status}");
    let status = rolled(&mut to.conn(), &format!("{key} AT {at}"));
    assert!(status.field("keys").int() >= 1, "{status}");
    assert_eq!(client.cmd(key, &["MAOS.GET", key]).text(), "old");
}
