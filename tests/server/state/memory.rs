//! Memory that runs out, and memory that is given back: a million versions at once.

use std::env;

use super::{has_failpoints, metric};
use crate::harness::*;

/// Sends so many commands in large pipelines and hands each reply to `see`.
fn flood(
    conn: &mut Conn,
    count: usize,
    line: impl Fn(usize) -> Vec<String>,
    mut see: impl FnMut(usize, Reply),
) {
    const AT_ONCE: usize = 500;
    for start in (0..count).step_by(AT_ONCE) {
        let some = start..(start + AT_ONCE).min(count);
        let bytes: Vec<u8> = some.clone().flat_map(|n| Conn::encode(&line(n))).collect();
        conn.send_raw(&bytes);
        some.for_each(|n| see(n, conn.recv()));
    }
}

fn used(conn: &mut Conn) -> i64 {
    conn.info("memory")["used_memory"]
        .parse()
        .expect("a number")
}

/// Fills keys with 50 versions each, flushes them, and looks at what is left.
fn flush(how: &str, keys: usize) {
    const VERSIONS: usize = 50;
    let server = Server::with(&[
        ("maos.background-effort-us", "0"),
        // What is told of the keys stays.
        ("maos.changes-max-bytes", "0"),
    ]);
    let conn = &mut server.conn();
    let totals = |conn: &mut Conn| ["records", "versions", "bytes"].map(|n| metric(conn, n));
    let before = used(conn);
    let mut highest = 0;
    let line = |n: usize| {
        let words = [
            "MAOS.SET",
            &format!("k{}", n % keys),
            &format!("value {n}"),
            "BY",
            "agent",
        ];
        words.map(str::to_owned).to_vec()
    };
    flood(conn, keys * VERSIONS, line, |_, reply| {
        highest = highest.max(reply.int())
    });
    let held = [keys, keys * VERSIONS].map(|n| i64::try_from(n).expect("it fits"));
    assert_eq!(totals(conn)[..2], held);
    let full = used(conn);
    assert!(
        full - before > totals(conn)[2] / 2,
        "{before} bytes, then {full}"
    );
    let start = std::time::Instant::now();
    conn.run(how).ok();
    let flushed = start.elapsed();
    assert_eq!(conn.run("PING"), Reply::Simple("PONG".into()));
    assert_eq!(conn.run("DBSIZE").int(), 0);
    eventually(PATIENCE, "everything is freed", || {
        totals(conn) == [0, 0, 0]
    });
    eventually(PATIENCE, "the memory comes back", || {
        let info = conn.info("memory");
        info["lazyfree_pending_objects"] == "0" && used(conn) - before < (full - before) / 20
    });
    println!(
        "{how}: {} versions, {} bytes a version; answered after {flushed:?}, free after {:?}",
        held[1],
        (full - before) / held[1],
        start.elapsed()
    );
    // What was flushed is not forgotten by the clock, not even by one that was set back.
    if has_failpoints(conn) {
        conn.run("MAOS.FAIL clock -3600000").int();
    }
    for n in 0..100 {
        assert!(conn.run(&format!("MAOS.SET k{n} again")).int() > highest);
    }
    assert_eq!(conn.run("MAOS.HISTORY k0").array().len(), 1);
    assert_eq!(metric(conn, "panics"), 0);
}

/// Keys of 50 versions each: `MAOS_TEST_FLUSH_KEYS`.
fn many() -> usize {
    let keys = env::var("MAOS_TEST_FLUSH_KEYS").ok();
    keys.map_or(20_000, |n| {
        n.parse().expect("MAOS_TEST_FLUSH_KEYS is a number")
    })
}

#[test]
fn a_million_versions_are_flushed_in_a_thread() {
    flush("FLUSHALL ASYNC", many());
}

#[test]
fn many_versions_are_flushed_at_once() {
    flush("FLUSHALL SYNC", many() / 10);
}

#[test]
fn a_server_that_runs_full_writes_wholly_or_not_at_all() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let limit = used(conn) + (4 << 20);
    cmd!(conn, "CONFIG", "SET", "maxmemory", limit.to_string()).ok();
    let value = "x".repeat(1000);
    let line = |n: usize| {
        let (a, b) = (format!("{{m}}{}", n % 3000), format!("{{n}}{n}"));
        ["MAOS.MSET", "2", &a, &value, &b, &value]
            .map(str::to_owned)
            .to_vec()
    };
    let mut written = vec![0; 6000];
    flood(conn, written.len(), line, |n, reply| match reply.is_err() {
        true => assert_eq!(reply.code(), "OOM"),
        false => written[n] = reply.int(),
    });
    let refused = written.iter().filter(|v| **v == 0).count();
    assert!(
        (1..written.len()).contains(&refused),
        "{refused} were refused"
    );
    // A pair has its one version on both keys, or neither has it.
    for (n, version) in written.iter().enumerate() {
        let there = conn.run(&format!("MAOS.GET {{n}}{n} WITHVERSION"));
        match version {
            0 => assert!(there.is_nil(), "{n} was refused"),
            version => {
                assert_eq!(there.array()[1].int(), *version);
                let other = conn.run(&format!("MAOS.GET {{m}}{} VERSION {version}", n % 3000));
                assert_eq!(other.text(), value, "{n}");
            }
        }
    }
    wait_synced(&master, &replica);
    assert_eq!(digest_all(conn), digest_all(&mut replica.conn()));
    // A deletion keeps the history: it is taken, though it frees nothing. A plain DEL does.
    let first = written
        .iter()
        .position(|v| *v > 0)
        .expect("some were written");
    assert!(conn.run(&format!("MAOS.DEL {{n}}{first}")).int() > 0);
    assert_eq!(conn.run("MAOS.SET k v").code(), "OOM");
    for n in 0..written.len() {
        conn.run(&format!("DEL {{n}}{n}"));
    }
    eventually(PATIENCE, "there is room again", || {
        !conn.run("MAOS.SET k v").is_err()
    });
    wait_synced(&master, &replica);
    assert_eq!(digest_all(conn), digest_all(&mut replica.conn()));
}
