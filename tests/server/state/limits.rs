//! Settings, their ranges, and the limits they set; memory pressure.

use maos_core::config::{Unit, SETTINGS};

use super::metric;
use crate::harness::*;

#[test]
fn settings_have_the_table_s_defaults_and_ranges() {
    let server = Server::start();
    let conn = &mut server.conn();
    for s in SETTINGS {
        let name = format!("maos.{}", s.name);
        if s.unit == Unit::Switch {
            let default = ["no", "yes"][usize::from(s.default == 1)];
            assert_eq!(conn.config(&name), default, "{name}");
            for value in ["no", "yes"] {
                cmd!(conn, "CONFIG", "SET", name, value).ok();
                assert_eq!(conn.config(&name), value, "{name}");
            }
            assert!(cmd!(conn, "CONFIG", "SET", name, "2").is_err(), "{name}");
            continue;
        }
        assert_eq!(conn.config(&name), s.default.to_string(), "{name}");
        for value in [s.min, s.max] {
            cmd!(conn, "CONFIG", "SET", name, value.to_string()).ok();
            assert_eq!(conn.config(&name), value.to_string(), "{name}");
        }
        let mut bad = vec!["x".to_string(), "-1".into(), (s.max + 1).to_string()];
        if s.min > 0 {
            bad.push((s.min - 1).to_string());
        }
        for value in bad {
            assert!(
                cmd!(conn, "CONFIG", "SET", name, value).is_err(),
                "{name} {value}"
            );
        }
        if s.unit == Unit::Bytes {
            cmd!(conn, "CONFIG", "SET", name, "64kb").ok();
            assert_eq!(conn.config(&name), "65536");
        }
    }
}

#[test]
fn settings_come_from_the_configuration_file() {
    let mut server = Server::with(&[
        ("maos.history-max-versions", "3"),
        ("maos.value-max-bytes", "1kb"),
    ]);
    let conn = &mut server.conn();
    assert_eq!(conn.config("maos.history-max-versions"), "3");
    for n in 0..10 {
        conn.run(&format!("MAOS.SET k {n}")).int();
    }
    assert_eq!(conn.run("MAOS.HISTORY k").array().len(), 3);
    assert_eq!(metric(conn, "trimmed"), 7);
    assert_eq!(
        cmd!(conn, "MAOS.SET", "k", "x".repeat(1025)).code(),
        "TOOBIG"
    );
    conn.run("CONFIG SET maos.history-max-versions 5").ok();
    conn.run("CONFIG REWRITE").ok();
    server.restart(Stop::NoSave);
    assert_eq!(server.conn().config("maos.history-max-versions"), "5");
}

#[test]
fn a_setting_out_of_range_keeps_the_server_from_starting() {
    let mut server = Server::start();
    server.stop(Stop::NoSave);
    let conf = std::fs::read_dir(server.dir())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "conf"))
        .expect("a configuration file");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{text}\nmaos.history-max-versions 0\n")).unwrap();
    assert!(server.try_start_again().is_err());
}

#[test]
fn history_is_held_to_its_bytes() {
    let server = Server::with(&[
        ("maos.history-max-bytes", "1000"),
        ("maos.background-effort-us", "0"),
    ]);
    let conn = &mut server.conn();
    for n in 0..50 {
        cmd!(conn, "MAOS.SET", "k", format!("{n:0100}")).int();
    }
    // 108 bytes a version: nine replaced ones, and the current one.
    assert_eq!(conn.run("MAOS.HISTORY k").array().len(), 10);
}

#[test]
fn older_payloads_are_compressed_and_read_back_the_same() {
    let server = Server::with(&[("maos.background-effort-us", "20000")]);
    let conn = &mut server.conn();
    let text = "an agent writes much the same again and again ".repeat(30);
    for n in 0..20 {
        cmd!(conn, "MAOS.SET", "k", format!("{n} {text}")).int();
    }
    let before = (
        digest(conn, "k"),
        conn.run("MAOS.HISTORY k VALUES").to_string(),
    );
    let held = conn.run("MEMORY USAGE k").int();
    eventually(PATIENCE, "the history is compressed", || {
        metric(conn, "compressed") == 19
    });
    assert_eq!(
        (
            digest(conn, "k"),
            conn.run("MAOS.HISTORY k VALUES").to_string()
        ),
        before
    );
    let now = conn.run("MEMORY USAGE k").int();
    assert!(now * 2 < held, "{now} bytes, {held} before");
    // As long as it is kept, so are the totals.
    assert_eq!(metric(conn, "versions"), 20);
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(
        (
            digest(conn, "k"),
            conn.run("MAOS.HISTORY k VALUES").to_string()
        ),
        before
    );
    assert!(
        conn.run("MEMORY USAGE k").int() * 2 < held,
        "still compressed"
    );
}

#[test]
fn a_long_history_is_compressed_to_its_end() {
    let server = Server::with(&[
        ("maos.background-effort-us", "20000"),
        ("maos.history-max-bytes", "4mb"),
    ]);
    let conn = &mut server.conn();
    let text = "again and again ".repeat(1024);
    for n in 0..60 {
        conn.send(&["MAOS.SET", "k", &format!("{n} {text}")]);
    }
    for _ in 0..60 {
        conn.recv().int();
    }
    eventually(PATIENCE, "all of it is compressed", || {
        metric(conn, "compressed") == 59
    });
}

#[test]
fn totals_follow_every_way_a_record_comes_and_goes() {
    // Without compression, which changes the bytes held at a time of its own.
    let server = Server::with(&[("maos.background-effort-us", "0")]);
    let conn = &mut server.conn();
    let totals = |conn: &mut Conn| ["records", "versions", "bytes"].map(|n| metric(conn, n));
    assert_eq!(totals(conn), [0, 0, 0]);
    super::fill(conn);
    let filled = totals(conn);
    assert_eq!(filled[0], 10);
    conn.run("DEBUG RELOAD").ok();
    // What was there before is freed in a thread of the server.
    eventually(PATIENCE, "what was replaced is freed", || {
        totals(conn)[..2] == filled[..2]
    });
    let loaded = totals(conn);
    conn.run("COPY long copied").int();
    conn.run("UNLINK copied").int();
    conn.run("MAOS.SET leaving v PX 1").int();
    eventually(PATIENCE, "the key expires", || {
        conn.run("EXISTS leaving").int() == 0
    });
    eventually(PATIENCE, "what was unlinked is freed", || {
        totals(conn) == loaded
    });
    conn.run("FLUSHALL ASYNC").ok();
    eventually(PATIENCE, "everything is freed", || {
        totals(conn) == [0, 0, 0]
    });
}

#[test]
fn a_full_server_refuses_writes_and_serves_the_rest() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    conn.run("CONFIG SET maxmemory 1").ok();
    for line in [
        "MAOS.SET k x",
        "MAOS.CAS k 0 x",
        "MAOS.MSET 1 k x",
        "MAOS.ROLLBACK k VERSION -1",
    ] {
        assert_eq!(conn.run(line).code(), "OOM", "{line}");
    }
    assert_eq!(conn.run("MAOS.GET k").text(), "v");
    assert_eq!(conn.run("MAOS.HISTORY k").array().len(), 1);
    assert!(
        conn.run("MAOS.DEL k").int() > 0,
        "a deletion is always allowed"
    );
}

#[test]
fn an_eviction_policy_that_loses_state_is_warned_about() {
    let server = Server::with(&[("maxmemory-policy", "allkeys-lru")]);
    assert!(
        server.log().contains("maxmemory-policy is allkeys-*"),
        "{}",
        server.log()
    );
    let conn = &mut server.conn();
    assert!(conn.info("maos")["maos_eviction"].starts_with("unsafe"));
    conn.run("CONFIG SET maxmemory-policy noeviction").ok();
    eventually(PATIENCE, "the warning goes", || {
        conn.info("maos")["maos_eviction"] == "ok"
    });
    conn.run("CONFIG SET maxmemory-policy allkeys-random").ok();
    eventually(PATIENCE, "it comes back", || {
        conn.info("maos")["maos_eviction"] != "ok"
    });
}

#[test]
fn tombstones_leave_after_their_time() {
    let server = Server::with(&[("maos.tombstone-ttl", "100")]);
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v EX 5000").int();
    conn.run("MAOS.DEL k").int();
    let ttl = conn.run("TTL k").int();
    assert!((90..=100).contains(&ttl), "{ttl}");
    // What takes its place does not inherit the tombstone's end.
    conn.run("MAOS.ROLLBACK k VERSION -1").int();
    assert_eq!(conn.run("TTL k").int(), -1);
    conn.run("MAOS.DEL k PX 1").int();
    eventually(PATIENCE, "the tombstone leaves", || {
        conn.run("EXISTS k").int() == 0
    });
    conn.run("CONFIG SET maos.tombstone-ttl 0").ok();
    conn.run("MAOS.SET k v").int();
    conn.run("MAOS.DEL k").int();
    assert_eq!(conn.run("TTL k").int(), -1);
}

#[test]
fn expiry_options_work_as_in_set() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v EX 1000").int();
    assert!((990..=1000).contains(&conn.run("TTL k").int()));
    conn.run("MAOS.SET k v PX 2000000").int();
    assert!((1990..=2000).contains(&conn.run("TTL k").int()));
    conn.run("MAOS.SET k v EXAT 9000000000").int();
    assert_eq!(conn.run("EXPIRETIME k").int(), 9_000_000_000);
    conn.run("MAOS.SET k v PXAT 9000000000123").int();
    assert_eq!(conn.run("PEXPIRETIME k").int(), 9_000_000_000_123);
    conn.run("MAOS.SET k w KEEPTTL").int();
    assert_eq!(conn.run("PEXPIRETIME k").int(), 9_000_000_000_123);
    conn.run("MAOS.ROLLBACK k VERSION -1").int();
    assert_eq!(
        conn.run("PEXPIRETIME k").int(),
        9_000_000_000_123,
        "a roll-back keeps it"
    );
    conn.run("MAOS.SET k w").int();
    assert_eq!(conn.run("TTL k").int(), -1, "a plain write clears it");
    conn.run("EXPIRE k 100").int();
    let version = conn.run("MAOS.GET k WITHVERSION").array()[1].int();
    conn.run(&format!("MAOS.CAS k {version} x")).array();
    assert_eq!(conn.run("TTL k").int(), -1);
    conn.run("MAOS.SET k v EX 100").int();
    conn.run("PERSIST k").int();
    assert_eq!(conn.run("MAOS.GET k FULL").field("ttl-ms").int(), -1);
    conn.run("MAOS.SET k v PXAT 1").int();
    assert!(conn.run("MAOS.GET k").is_nil(), "an expiry in the past");
}

#[test]
fn a_reply_of_history_is_bounded() {
    let server = Server::with(&[
        ("maos.history-max-bytes", "1gb"),
        ("maos.background-effort-us", "0"),
    ]);
    let conn = &mut server.conn();
    let value = vec![b'x'; 8 << 20];
    for _ in 0..9 {
        cmd!(conn, "MAOS.SET", "k", value).int();
    }
    assert_eq!(conn.run("MAOS.HISTORY k VALUES").code(), "LIMIT");
    assert_eq!(conn.run("MAOS.HISTORY k VALUES COUNT 8").array().len(), 8);
    assert_eq!(conn.run("MAOS.HISTORY k").array().len(), 9);
}

/// So many keys, three quarters of them deleted, and a server that defragments as soon as it is told to.
/// False if it cannot.
pub fn fragment(conn: &mut Conn, keys: usize) -> bool {
    if conn.run("CONFIG SET activedefrag yes").is_err() {
        return false;
    }
    conn.run("CONFIG SET activedefrag no").ok();
    for (name, value) in [
        ("active-defrag-ignore-bytes", "1"),
        ("active-defrag-threshold-lower", "1"),
        ("active-defrag-cycle-min", "60"),
        ("active-defrag-cycle-max", "70"),
    ] {
        cmd!(conn, "CONFIG", "SET", name, value).ok();
    }
    let value = "fragments ".repeat(20);
    for n in 0..keys {
        conn.send(&["MAOS.SET", &format!("k{n}"), &value]);
        conn.send(&["MAOS.SET", &format!("k{n}"), &format!("{n} {value}")]);
    }
    for _ in 0..2 * keys {
        conn.recv().int();
    }
    for n in (0..keys).filter(|n| n % 4 != 0) {
        assert_eq!(conn.run(&format!("DEL k{n}")).int(), 1);
    }
    true
}

#[test]
fn defragmentation_moves_records_and_changes_nothing() {
    let server = Server::start();
    let conn = &mut server.conn();
    if !fragment(conn, 20_000) {
        println!("skipped: this server's allocator cannot defragment");
        return;
    }
    let before = digest_all(conn);
    conn.run("CONFIG SET activedefrag yes").ok();
    let hits = |conn: &mut Conn| {
        conn.info("stats")["active_defrag_hits"]
            .parse::<u64>()
            .unwrap()
    };
    eventually(PATIENCE, "something is moved", || hits(conn) > 1000);
    assert_eq!(digest_all(conn), before);
    assert_eq!(metric(conn, "panics"), 0);
    assert_eq!(
        conn.run("MAOS.GET k4 VERSION -1").text(),
        "fragments ".repeat(20)
    );
}
