//! What the state commands promise, on a live server.

mod aba;
mod acl;
mod atomic;
mod backups;
mod cluster;
mod conflicts;
mod docs;
mod failpoints;
mod faults;
mod fencing;
mod fuzzed;
mod hostile;
pub mod limits;
mod linear;
mod listeners;
mod locks;
mod memory;
mod moving;
mod names;
mod notifications;
pub mod oracle;
mod partitions;
mod pauses;
pub mod persistence;
mod ranging;
mod replicas;
mod restore;
mod rollbackto;
mod scheduled;
mod spread;
mod transcripts;
mod updates;
mod versions;
mod waiting;
mod watching;
mod way;

use crate::harness::*;

/// Keys of every shape: one version, a history, metadata and request ids, a tombstone, an expiry,
/// an empty value, compressible and incompressible values.
pub fn fill(conn: &mut Conn) -> Vec<&'static str> {
    let long = "agents share their state ".repeat(40);
    conn.run("MAOS.SET plain v").int();
    conn.run("MAOS.SET empty ''").int();
    for n in 0..20 {
        cmd!(
            conn,
            "MAOS.SET",
            "long",
            format!("{n} {long}"),
            "BY",
            format!("agent-{}", n % 3)
        )
        .int();
    }
    conn.run(r#"MAOS.SET told one BY planner META '{"why":"start"}' REQID r1"#)
        .int();
    conn.run("MAOS.SET told two BY worker REQID r2").int();
    conn.run("MAOS.ROLLBACK told VERSION -1 BY operator").int();
    conn.run("MAOS.SET gone v").int();
    conn.run("MAOS.DEL gone BY janitor").int();
    conn.run("MAOS.SET leaves v PX 100000000").int();
    conn.run("MAOS.SET leaves w KEEPTTL").int();
    conn.run("MAOS.MSET 2 {m}a 1 {m}b 2 BY planner").int();
    conn.run("MAOS.MCAS 2 {m}c 0 1 {m}d 0 2").array();
    vec![
        "plain", "empty", "long", "told", "gone", "leaves", "{m}a", "{m}b", "{m}c", "{m}d",
    ]
}

/// What a node shows of its keys: digests, expiries, histories.
pub fn picture(conn: &mut Conn, keys: &[&str]) -> Vec<String> {
    let mut seen = vec![];
    for key in keys {
        seen.push(format!("{key} {}", digest(conn, key)));
        seen.push(conn.run(&format!("PEXPIRETIME {key}")).to_string());
        seen.push(conn.run(&format!("MAOS.HISTORY {key} VALUES")).to_string());
    }
    seen
}

/// A counter of `INFO maos`; 0 if it is not there.
pub fn metric(conn: &mut Conn, name: &str) -> i64 {
    let info = conn.info("maos");
    let value = info.get(&format!("maos_{name}"));
    value.map_or(0, |v| v.parse().expect("a number"))
}

/// True for a build with failpoints.
pub fn has_failpoints(conn: &mut Conn) -> bool {
    !conn.run("COMMAND INFO MAOS.FAIL").array()[0].is_nil()
}
