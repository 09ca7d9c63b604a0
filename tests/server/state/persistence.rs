//! A record is the same record after every way of writing it down and reading it back.

use super::{fill, metric, picture};
use crate::harness::*;

#[test]
fn a_reload_from_rdb_gives_the_same_records() {
    let server = Server::start();
    let conn = &mut server.conn();
    let keys = fill(conn);
    let before = (picture(conn, &keys), digest_all(conn));
    conn.run("DEBUG RELOAD").ok();
    assert_eq!((picture(conn, &keys), digest_all(conn)), before);
}

#[test]
fn a_restart_from_rdb_gives_the_same_records_and_versions_go_on() {
    let mut server = Server::start();
    let keys = fill(&mut server.conn());
    let before = picture(&mut server.conn(), &keys);
    let last = server.conn().run("MAOS.SET last v").int();
    server.restart(Stop::Save);
    let conn = &mut server.conn();
    assert_eq!(picture(conn, &keys), before);
    assert!(conn.run("MAOS.SET last w").int() > last);
    assert_eq!(metric(conn, "records"), keys.len() as i64 + 1);
}

#[test]
fn a_crash_loses_nothing_that_the_aof_has() {
    for preamble in ["yes", "no"] {
        let mut server = Server::with(&[
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("aof-use-rdb-preamble", preamble),
        ]);
        let keys = fill(&mut server.conn());
        let before = picture(&mut server.conn(), &keys);
        let last = server.conn().run("MAOS.SET last v").int();
        server.restart(Stop::Kill);
        assert_eq!(picture(&mut server.conn(), &keys), before);
        assert_eq!(
            server.conn().run("MAOS.GET last WITHVERSION").array()[1].int(),
            last
        );
        assert!(server.conn().run("MAOS.SET last w").int() > last);
        rewrite(&mut server.conn());
        server.conn().run("MAOS.SET after v").int();
        let after = digest(&mut server.conn(), "after");
        server.restart(Stop::Kill);
        let conn = &mut server.conn();
        assert_eq!(
            picture(conn, &keys),
            before,
            "after a rewrite, preamble {preamble}"
        );
        assert_eq!(digest(conn, "after"), after);
        assert_eq!(metric(conn, "damaged"), 0);
        assert_eq!(metric(conn, "stamps_ahead"), 0);
    }
}

fn rewrite(conn: &mut Conn) {
    conn.run("BGREWRITEAOF");
    wait_rewritten(conn);
}

/// Waits until no rewrite of the AOF runs or is about to.
pub fn wait_rewritten(conn: &mut Conn) {
    eventually(PATIENCE, "the AOF is rewritten", || {
        let info = conn.info("persistence");
        info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0"
    });
    assert_eq!(conn.info("persistence")["aof_last_bgrewrite_status"], "ok");
}

#[test]
fn debug_loadaof_replays_what_was_decided() {
    let server = Server::with(&[("appendonly", "yes")]);
    let conn = &mut server.conn();
    let keys = fill(conn);
    let before = (picture(conn, &keys), digest_all(conn));
    conn.run("DEBUG LOADAOF").ok();
    assert_eq!((picture(conn, &keys), digest_all(conn)), before);
}

#[test]
fn dump_and_restore_carry_the_whole_record() {
    let server = Server::start();
    let other = Server::start();
    let (conn, target) = (&mut server.conn(), &mut other.conn());
    for key in fill(conn) {
        let dump = conn.run(&format!("DUMP {key}"));
        let at = conn
            .run(&format!("PEXPIRETIME {key}"))
            .int()
            .max(0)
            .to_string();
        cmd!(target, "RESTORE", key, at, dump.bytes(), "ABSTTL").ok();
        assert_eq!(digest(conn, key), digest(target, key), "{key}");
    }
}

#[test]
fn a_damaged_payload_is_refused_and_the_server_lives() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("CONFIG SET sanitize-dump-payload no");
    fill(conn);
    let dump = conn.run("DUMP long").bytes().to_vec();
    let mut accepted = 0;
    // The checksum is made right again, so that it is our decoder that has to look.
    for at in (0..dump.len() - 10).step_by(7) {
        for cut in [false, true] {
            let mut bad = dump.clone();
            if cut {
                bad.drain(at..dump.len() - 10);
            } else {
                bad[at] ^= 0x55;
            }
            let end = bad.len() - 8;
            let sum = crc64(&bad[..end]).to_le_bytes();
            bad[end..].copy_from_slice(&sum);
            let reply = cmd!(conn, "RESTORE", "bad", "0", &bad[..], "REPLACE");
            accepted += u32::from(!reply.is_err());
            conn.run("MAOS.HISTORY bad VALUES");
        }
    }
    assert_eq!(conn.run("PING"), Reply::Simple("PONG".into()));
    assert!(metric(conn, "damaged") > 0);
    assert_eq!(metric(conn, "panics"), 0);
    // Flips inside a value give another value: no checksum of ours could tell.
    assert!(accepted > 0);
}

/// CRC-64 as Redis computes it ("Jones", reflected).
fn crc64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0u64, |mut crc, b| {
        crc ^= u64::from(*b);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= 0x95ac_9329_ac4b_c9b5;
            }
        }
        crc
    })
}

#[test]
fn copy_and_rename_keep_the_record() {
    let server = Server::start();
    let conn = &mut server.conn();
    fill(conn);
    for key in ["plain", "long", "told", "gone"] {
        let before = digest(conn, key);
        assert_eq!(conn.run(&format!("COPY {key} copied REPLACE")).int(), 1);
        assert_eq!(digest(conn, "copied"), before);
        // A copy is its own record.
        conn.run("MAOS.SET copied other").int();
        assert_eq!(digest(conn, key), before);
        conn.run(&format!("RENAME {key} renamed")).ok();
        assert_eq!(digest(conn, "renamed"), before);
        assert_eq!(conn.run("MOVE renamed 1").int(), 1);
        conn.run("SELECT 1").ok();
        assert_eq!(digest(conn, "renamed"), before);
        conn.run("DEL renamed").int();
        conn.run("SELECT 0").ok();
    }
}

#[test]
fn a_record_from_another_encoding_is_refused_with_a_word() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    let mut dump = conn.run("DUMP k").bytes().to_vec();
    // The type and encoding word of a module's value: byte 0 is the opcode, then a 64-bit length
    // marker and nine characters of six bits and ten bits of encoding.
    dump[9] ^= 2;
    let end = dump.len() - 8;
    let sum = crc64(&dump[..end]).to_le_bytes();
    dump[end..].copy_from_slice(&sum);
    assert!(cmd!(conn, "RESTORE", "later", "0", &dump[..]).is_err());
    assert!(
        server.log().contains("a state record has encoding 3"),
        "{}",
        server.log()
    );
}

#[test]
fn types_are_reported_and_kept_apart() {
    let server = Server::start();
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    conn.run("SET s v").ok();
    assert_eq!(conn.run("TYPE k").text(), "MaosState");
    assert_eq!(conn.run("GET k").code(), "WRONGTYPE");
    for line in [
        "MAOS.GET s",
        "MAOS.SET s x",
        "MAOS.CAS s 0 x",
        "MAOS.DEL s",
        "MAOS.HISTORY s",
        "MAOS.DIFF s 1 2",
        "MAOS.ROLLBACK s VERSION -1",
        "MAOS.MSET 2 k x s x",
        "MAOS.MCAS 2 k 0 x s 0 x",
        "MAOS.MGET 2 k s",
    ] {
        assert_eq!(conn.run(line).code(), "WRONGTYPE", "{line}");
    }
    assert_eq!(conn.run("MAOS.GET k").text(), "v");
    assert_eq!(
        conn.run("SCAN 0 TYPE MaosState COUNT 100").array()[1]
            .array()
            .len(),
        1
    );
    assert!(conn.run("MEMORY USAGE k").int() > 40);
    assert_eq!(conn.run("EXISTS k").int(), 1);
}

#[test]
fn the_digest_tells_every_part_of_a_record() {
    let server = Server::with(&[("rdbcompression", "no")]);
    let conn = &mut server.conn();
    conn.run(r#"MAOS.SET k value BY planner META '{"why":"start"}' REQID request"#)
        .int();
    conn.run("MAOS.SET k current").int();
    let (dump, digest_of_k) = (conn.run("DUMP k").bytes().to_vec(), digest(conn, "k"));
    for part in ["default", "planner", "start", "request", "value", "current"] {
        let mut other = dump.clone();
        let at = other.windows(part.len()).position(|w| w == part.as_bytes());
        other[at.expect("the part stands in the payload")] ^= 1;
        let end = other.len() - 8;
        let sum = crc64(&other[..end]).to_le_bytes();
        other[end..].copy_from_slice(&sum);
        cmd!(conn, "RESTORE", "other", "0", &other[..], "REPLACE").ok();
        assert_ne!(digest(conn, "other"), digest_of_k, "{part}");
    }
}
