//! A panic is an answer. Needs a build with failpoints, which `cargo test` makes.

use super::{fill, has_failpoints, metric, picture};
use crate::harness::*;

/// A server with failpoints; `None` on a release build.
fn faulty(lines: &[(&str, &str)]) -> Option<Server> {
    let server = Server::with(lines);
    let has = has_failpoints(&mut server.conn());
    if !has {
        println!("skipped: this build has no failpoints");
    }
    has.then_some(server)
}

#[test]
fn a_panic_in_any_command_is_an_error_and_changes_nothing() {
    let Some(master) = faulty(&[]) else { return };
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let keys = fill(conn);
    let before = picture(conn, &keys);
    for (point, line) in [
        ("read", "MAOS.GET told"),
        ("read", "MAOS.MGET 2 told plain FULL"),
        ("read", "MAOS.HISTORY told VALUES"),
        ("read", "MAOS.DIFF told -1 -2"),
        ("decide", "MAOS.SET told x"),
        ("decided", "MAOS.SET told x"),
        ("decided", "MAOS.CAS fresh 0 x"),
        ("decided", "MAOS.DEL told"),
        ("decided", "MAOS.MSET 2 told x plain y"),
        ("decided", "MAOS.MCAS 1 fresh 0 x"),
        ("decided", "MAOS.ROLLBACK told VERSION -1"),
    ] {
        conn.run(&format!("MAOS.FAIL {point} 1")).int();
        let reply = conn.run(line);
        assert!(
            reply
                .err()
                .contains("met a fault of its own and changed nothing"),
            "{line}: {reply}"
        );
    }
    assert_eq!(metric(conn, "panics"), 11);
    assert_eq!(picture(conn, &keys), before);
    assert_eq!(conn.run("EXISTS fresh").int(), 0);
    assert!(
        master.log().contains("failpoint decide"),
        "the log says where"
    );
    // In a transaction and in a script too.
    conn.run("MAOS.FAIL decided 2").int();
    conn.run("MULTI").ok();
    conn.run("MAOS.SET told x");
    conn.run("MAOS.SET after y");
    conn.run("EXEC").array();
    conn.run("MAOS.FAIL decided 1").int();
    let script = "return redis.pcall('MAOS.SET', KEYS[1], 'v')";
    assert!(cmd!(conn, "EVAL", script, "1", "told").is_err());
    assert_eq!(picture(conn, &keys), before);
    wait_synced(&master, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(picture(conn, &keys), before);
}

#[test]
fn a_command_that_panics_again_and_again_is_switched_off_alone() {
    let Some(server) = faulty(&[]) else { return };
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    conn.run("MAOS.FAIL decide 5").int();
    for _ in 0..5 {
        conn.run("MAOS.SET k x").err();
    }
    let refusal = conn.run("MAOS.SET k x");
    assert_eq!(refusal.code(), "BUSY");
    assert!(
        refusal.err().contains("MAOS.SET is switched off for"),
        "{refusal}"
    );
    assert_eq!(conn.run("MAOS.GET k").text(), "v");
    assert_eq!(conn.run("MAOS.CAS k 1 x").array()[0].int(), 0);
    // A minute later it is tried again.
    conn.run("MAOS.FAIL clock 61000").int();
    assert!(conn.run("MAOS.SET k x").int() > 0);
}

#[test]
fn a_torn_record_is_never_served() {
    let lines = [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("crash-log-enabled", "no"),
    ];
    let Some(mut server) = faulty(&lines) else {
        return;
    };
    let conn = &mut server.conn();
    conn.run("MAOS.SET k v").int();
    conn.run("MAOS.FAIL apply 1").int();
    assert!(
        conn.try_cmd(&["MAOS.SET", "k", "x"]).is_err(),
        "the process ends"
    );
    eventually(PATIENCE, "the process has ended", || !server.is_running());
    server.kill();
    server.start_again();
    assert_eq!(server.conn().run("MAOS.GET k").text(), "v");
    assert!(server
        .log()
        .contains("panic while a change was being applied"));
}
