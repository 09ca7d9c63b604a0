//! Merges and transactions on a live server: functions, who is told what, one step on every node.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::metric;
use crate::harness::*;

const LIBRARY: &str = r"#!lua name=merges
local function both(keys, args)
  local theirs, mine = cjson.decode(args[2]), cjson.decode(args[3])
  for name, value in pairs(mine) do
    if type(value) == 'number' and type(theirs[name]) == 'number' then
      local base = cjson.decode(args[1])
      theirs[name] = theirs[name] + value - (type(base) == 'table' and base[name] or 0)
    else
      theirs[name] = value
    end
  end
  return cjson.encode(theirs)
end
local function spin(keys, args)
  local until_us = tonumber(args[1])
  while true do
    local now = redis.call('TIME')
    if now[1] * 1000000 + now[2] > until_us then return '1' end
  end
end
local reads = function(f, name)
  redis.register_function{function_name=name, callback=f, flags={'no-writes'}}
end
reads(both, 'both')
reads(spin, 'spin')
reads(function() while true do end end, 'endless')
reads(function() return 'no json' end, 'text')
reads(function() return 5 end, 'number')
reads(function() return nil end, 'nothing')
reads(function() error('my own words') end, 'fails')
reads(function(keys) return redis.call('MAOS.GET', keys[1]) end, 'looks')
reads(function(keys, args) return redis.call('MAOS.MERGE', keys[1], 1, '2', 'STRATEGY', 'FUNCTION', 'both') end, 'again')
redis.register_function('writes', function(keys) redis.call('MAOS.SET', keys[1], 'x') return '1' end)
";

fn load(conn: &mut Conn) {
    assert_eq!(cmd!(conn, "FUNCTION", "LOAD", LIBRARY).text(), "merges");
}

/// A key with a base that is not the current version any more; its number.
fn apart(conn: &mut Conn, key: &str) -> i64 {
    let base = cmd!(conn, "MAOS.SET", key, r#"{"n":1}"#).int();
    cmd!(
        conn,
        "MAOS.SET",
        key,
        r#"{"n":5,"by":"them"}"#,
        "BY",
        "them"
    )
    .int();
    base
}

#[test]
fn a_function_decides_and_its_word_travels() {
    let server = Server::with(&[("appendonly", "yes"), ("aof-use-rdb-preamble", "no")]);
    let replica = replica_of(&server);
    let conn = &mut server.conn();
    load(conn);
    let base = apart(conn, "k");
    let merge = format!("MAOS.MERGE k {base} '{{\"n\":3}}' STRATEGY FUNCTION both BY me");
    let reply = conn.run(&merge);
    assert_eq!(reply.array()[2].text(), "merged", "{reply}");
    let doc: serde_json::Value =
        serde_json::from_slice(conn.run("MAOS.GET k").bytes()).expect("JSON");
    assert_eq!(doc, serde_json::json!({"n": 7, "by": "them"}));
    // In a transaction of the server too.
    let base = apart(conn, "m");
    conn.run("MULTI").ok();
    conn.run("MAOS.GET m");
    conn.run(&format!(
        "MAOS.MERGE m {base} '{{\"n\":2}}' STRATEGY FUNCTION both"
    ));
    let replies = conn.run("EXEC");
    assert_eq!(replies.array()[1].array()[2].text(), "merged", "{replies}");
    // Where it has gone nobody needs it.
    conn.run("FUNCTION DELETE merges").ok();
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    let calls = replica.conn().info("commandstats");
    assert!(
        !calls.keys().any(|name| name.contains("fcall")),
        "{calls:?}"
    );
    let before = digest_all(conn);
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!(digest_all(conn), before);
}

#[test]
fn a_function_that_makes_no_value_changes_nothing() {
    let server = Server::start();
    let conn = &mut server.conn();
    load(conn);
    let base = apart(conn, "k");
    let before = digest(conn, "k");
    for (name, code, says) in [
        ("nobody", "NOTFOUND", "Function not found"),
        ("text", "NOTJSON", "what the function returned"),
        ("number", "NOTJSON", "no string"),
        ("nothing", "NOTJSON", "no string"),
        ("fails", "ERR", "my own words"),
        ("writes", "ERR", "write flag"),
        ("again", "ERR", "read-only script"),
    ] {
        let reply = conn.run(&format!(
            "MAOS.MERGE k {base} '{{}}' STRATEGY FUNCTION {name}"
        ));
        assert_eq!(reply.code(), code, "{name}: {reply}");
        assert!(reply.err().contains(says), "{name}: {reply}");
        assert_eq!(digest(conn, "k"), before, "{name}");
    }
    // What it sees is what there is.
    let looks = conn.run(&format!(
        "MAOS.MERGE k {base} '{{}}' STRATEGY FUNCTION looks"
    ));
    assert_eq!(looks.array()[2].text(), "kept", "{looks}");
    // Inside a script there is no second one.
    let script = format!(
        "return redis.call('MAOS.MERGE', 'k', '{base}', '2', 'STRATEGY', 'FUNCTION', 'both')"
    );
    let inside = cmd!(conn, "EVAL", script, "1", "k");
    assert!(inside.err().contains("inside a script"), "{inside}");
    // One that was slow has been in vain.
    conn.run("CONFIG SET maos.merge-function-max-ms 20").ok();
    let until_us = conn.run("TIME").array()[0]
        .text()
        .parse::<u64>()
        .expect("seconds")
        * 1_000_000;
    let value = until_us + 2_000_000;
    cmd!(conn, "MAOS.SET", "slow", value.to_string()).int();
    let base = conn.run("MAOS.GET slow WITHVERSION").array()[1].int();
    conn.run("MAOS.SET slow 1").int();
    let slow = conn.run(&format!("MAOS.MERGE slow {base} 2 STRATEGY FUNCTION spin"));
    assert_eq!(slow.code(), "LIMIT", "{slow}");
    assert!(slow.err().contains("merge-function-max-ms"), "{slow}");
    assert_eq!(conn.run("MAOS.GET slow").text(), "1");
    assert_eq!(metric(conn, "panics"), 0);
}

#[test]
fn a_function_without_end_can_be_ended() {
    let server = Server::with(&[("busy-reply-threshold", "50")]);
    let conn = &mut server.conn();
    load(conn);
    let base = apart(conn, "k");
    let before = digest(conn, "k");
    let mut waits = server.conn();
    waits.send(
        &split_line(&format!(
            "MAOS.MERGE k {base} '{{}}' STRATEGY FUNCTION endless"
        ))
        .expect("a line"),
    );
    let mut other = server.conn();
    eventually(PATIENCE, "others are told that it runs", || {
        other.run("MAOS.GET k").code() == "BUSY"
    });
    other.run("FUNCTION KILL").ok();
    let reply = waits.recv();
    assert!(reply.is_err(), "{reply}");
    assert_eq!(digest(conn, "k"), before);
    conn.run("MAOS.SET k 1").int();
}

#[test]
fn a_user_calls_only_what_it_may() {
    let server = Server::start();
    let conn = &mut server.conn();
    load(conn);
    let base = apart(conn, "k");
    conn.run("ACL SETUSER agent on >secret ~* +maos.merge +auth")
        .ok();
    let mut agent = server.conn();
    agent.run("AUTH agent secret").ok();
    let merge = format!("MAOS.MERGE k {base} '{{}}' STRATEGY FUNCTION both");
    let refused = agent.run(&merge);
    assert_eq!(refused.code(), "NOPERM", "{refused}");
    conn.run("ACL SETUSER agent +fcall_ro").ok();
    assert_eq!(agent.run(&merge).array()[2].text(), "merged");
}

#[test]
fn who_lost_is_told_what_to_act_on_and_it_is_counted() {
    let server = Server::start();
    let conn = &mut server.conn();
    let base = apart(conn, "{app}:plan:1");
    let merge = |conn: &mut Conn, value: &str, strategy: &str| {
        let line = format!("MAOS.MERGE {{app}}:plan:1 {base} '{value}' {strategy}");
        conn.run(&line)
    };
    let lost = merge(conn, r#"{"n":2,"by":"me"}"#, "STRATEGY MERGE");
    let lost = lost.array();
    assert_eq!(
        (lost[0].int(), lost[3].text(), lost[4].text()),
        (0, "default", "them")
    );
    assert_eq!(lost[2].text(), r#"{"n":5,"by":"them"}"#);
    let paths: Vec<&str> = lost[5].array().iter().map(Reply::text).collect();
    assert_eq!(paths, ["/n", "/by"]);
    assert_eq!(merge(conn, "{}", "").array()[0].int(), 0);
    for (strategy, times) in [("FWW", 2), ("LWW", 1), ("MERGE", 1)] {
        for _ in 0..times {
            let value = if strategy == "MERGE" {
                r#"{"n":1,"new":1}"#
            } else {
                r#"{"n":1}"#
            };
            let reply = merge(conn, value, &format!("STRATEGY {strategy}"));
            assert_eq!(reply.array()[0].int(), 1, "{strategy}: {reply}");
        }
    }
    apart(conn, "other");
    conn.run("MAOS.MERGE other 5 1 STRATEGY REJECT");
    conn.run("MAOS.MERGE other 5 1 STRATEGY MERGE");
    let info = conn.info("maos");
    let shown = |name: &str| info.get(&format!("maos_merge_{name}")).map(String::as_str);
    assert_eq!(shown("reject"), Some("conflicted=2,resolved=0"));
    assert_eq!(shown("merge"), Some("conflicted=1,resolved=1"));
    assert_eq!(shown("fww"), Some("conflicted=0,resolved=2"));
    assert_eq!(shown("lww"), Some("conflicted=0,resolved=1"));
    assert_eq!(shown("function"), None);
    assert_eq!(shown("namespace_app"), Some("conflicted=2,resolved=4"));
    assert_eq!(shown("namespace_other"), Some("conflicted=1,resolved=0"));
    assert_eq!(metric(conn, "conflicts_merge"), 3);
}

#[test]
fn namespaces_that_are_counted_are_bounded_and_may_be_named_anything() {
    let server = Server::start();
    let conn = &mut server.conn();
    for n in 0..400 {
        let key = format!("n{n}\r\n,=:x");
        cmd!(conn, "MAOS.SET", key, "1").int();
        cmd!(conn, "MAOS.MERGE", key, "5", "2").array();
    }
    let info = conn.info("maos");
    let names = info
        .keys()
        .filter(|k| k.starts_with("maos_merge_namespace_"));
    assert_eq!(names.count(), 257);
    assert_eq!(
        info.get("maos_merge_namespace_n7%0D%0A%2C%3D")
            .map(String::as_str),
        Some("conflicted=1,resolved=0")
    );
    let others = info
        .get("maos_merge_namespace_(others)")
        .map(String::as_str);
    assert_eq!(others, Some("conflicted=144,resolved=0"));
}

#[test]
fn a_transaction_is_one_step_on_every_node() {
    let server = Server::with(&[("appendonly", "yes")]);
    let replica = replica_of(&server);
    // Two keys that always sum up to the same, and one that comes and goes.
    let total = 100_000;
    let conn = &mut server.conn();
    conn.run(&format!("MAOS.MSET 2 {{t}}a {total} {{t}}b 0"))
        .int();
    wait_synced(&server, &replica);
    let (moved, seen) = (&AtomicI64::new(0), &AtomicI64::new(0));
    thread::scope(|scope| {
        for n in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let mut conn = server.conn();
                for i in 0..200 {
                    let (from, to) = if (n + i) % 3 == 0 { ("b", "a") } else { ("a", "b") };
                    let by = 1 + (n * i) % 50;
                    let last = if i % 2 == 0 { "SET {t}note '{\"by\":1}' PX 600000" } else { "DEL {t}note" };
                    let line = format!("MAOS.TXN 3 {{t}}a {{t}}b {{t}}note THEN INCRBY {{t}}{from} -{by} MIN 0 THEN {last} THEN INCRBY {{t}}{to} {by} BY w{n}");
                    let reply = conn.run(&line);
                    if reply.is_err() {
                        assert!(reply.err().starts_with("LIMIT THEN 1 (INCRBY"), "{reply}");
                    } else {
                        moved.fetch_add(1, Relaxed);
                        let reply = reply.array();
                        let version = reply[1].int();
                        let replies = reply[2].array();
                        assert_eq!(replies[0].array()[0].int(), version);
                        assert_eq!(replies[2].array()[0].int(), version);
                    }
                }
            });
        }
        for node in [&server, &replica] {
            scope.spawn(move || {
                let mut conn = node.conn();
                while seen.load(Relaxed) < 400 {
                    let both = conn.run("MAOS.MGET 2 {t}a {t}b");
                    let sum: i64 = both
                        .array()
                        .iter()
                        .map(|v| v.text().parse::<i64>().expect("a number"))
                        .sum();
                    assert_eq!(sum, total, "{both}");
                    seen.fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert!(moved.load(Relaxed) > 0);
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    let before = digest_all(conn);
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!(digest_all(conn), before);
}

#[test]
fn a_transaction_that_the_aof_has_half_of_is_not_there() {
    let mut server = Server::with(&[
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("aof-use-rdb-preamble", "no"),
    ]);
    let conn = &mut server.conn();
    conn.run("MAOS.MSET 3 {t}a 1 {t}b 1 {t}c 1").int();
    // A value, a value that keeps its expiry, a tombstone: three changes.
    let line = "MAOS.TXN 3 {t}a {t}b {t}c THEN SET {t}a 2 THEN INCRBY {t}b 1 THEN DEL {t}c";
    let version = conn.run(line).array()[1].int();
    for key in ["a", "b", "c"] {
        let history = conn.run(&format!("MAOS.HISTORY {{t}}{key} DESC COUNT 1"));
        assert_eq!(history.array()[0].field("version").int(), version, "{key}");
    }
    server.stop(Stop::Kill);
    let dir = server.dir().join("appendonlydir");
    let files = std::fs::read_dir(&dir).expect("the folder of the AOF");
    let file = files
        .map(|f| f.expect("a file").path())
        .find(|f| f.to_string_lossy().ends_with(".incr.aof"))
        .expect("an AOF");
    // Without the end of it, which is EXEC and a little more.
    let len = std::fs::metadata(&file).expect("its length").len();
    let aof = std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .expect("to cut it");
    aof.set_len(len - 40).expect("cut");
    server.start_again();
    let conn = &mut server.conn();
    let values = conn.run("MAOS.MGET 3 {t}a {t}b {t}c");
    let values: Vec<&str> = values.array().iter().map(Reply::text).collect();
    assert_eq!(values, ["1", "1", "1"]);
}

#[test]
fn a_transaction_keeps_to_one_slot_and_to_the_keys_it_names() {
    let cluster = Cluster::start(3, 0);
    let mut client = cluster.client();
    let line = |text: &str| split_line(text).expect("a line");
    let reply = client.cmd(
        "{t}a",
        &line("MAOS.TXN 2 {t}a {t}b THEN SET {t}a 1 THEN SET {t}b 2"),
    );
    assert_eq!(reply.array()[0].int(), 1, "{reply}");
    let across = client.cmd("{t}a", &line("MAOS.TXN 2 {t}a other THEN SET {t}a 1"));
    assert_eq!(across.code(), "CROSSSLOT");
    let conn = &mut cluster.node_for("{t}a").conn();
    let keys = conn.run("COMMAND GETKEYS MAOS.TXN 2 a b THEN SET a 1 THEN SET b 2");
    let keys: Vec<&str> = keys.array().iter().map(Reply::text).collect();
    assert_eq!(keys, ["a", "b"]);
    let moved = cluster.another(cluster.node_for("{t}a"));
    let slot = slot_of(b"{t}a");
    cluster.move_slot(slot, moved);
    let reply = client.cmd(
        "{t}a",
        &line("MAOS.TXN 2 {t}a {t}b IF {t}a VALUE 1 THEN INCRBY {t}b 1"),
    );
    assert_eq!(
        reply.array()[2].array()[0].array()[1].text(),
        "3",
        "{reply}"
    );
}

#[test]
fn a_loser_of_lww_is_two_versions_in_one_step() {
    let server = Server::start();
    let replica = replica_of(&server);
    let conn = &mut server.conn();
    let base = apart(conn, "k");
    conn.run("PEXPIRE k 600000").int();
    conn.run("WATCH k").ok();
    let kept = server.conn().run(&format!(
        "MAOS.MERGE k {base} mine STRATEGY LWW TS 1000 BY me PX 5"
    ));
    assert_eq!(kept.array()[2].text(), "kept", "{kept}");
    conn.run("MULTI").ok();
    conn.run("MAOS.GET k");
    assert!(conn.run("EXEC").is_nil(), "a watcher saw it");
    thread::sleep(Duration::from_millis(20));
    let now = conn.run("MAOS.GET k FULL");
    assert_eq!(now.field("value").text(), r#"{"n":5,"by":"them"}"#);
    assert_eq!(now.field("agent").text(), "them");
    assert_eq!(now.field("version").int(), kept.array()[1].int());
    // What lost has brought no expiry of its own.
    assert!(now.field("ttl-ms").int() > 60_000, "{now}");
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    let merge = format!("MAOS.MERGE k {base} mine STRATEGY LWW TS 2000");
    assert_eq!(conn.run(&merge).array()[2].text(), "kept");
}
