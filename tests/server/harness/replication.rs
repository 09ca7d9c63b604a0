//! Replicas, and the proof that two servers hold the same.

use super::conn::Conn;
use super::server::Server;
use super::wait::{eventually, PATIENCE};
use crate::harness::cmd;

/// A new replica of a master, set up like it, that has caught up.
#[track_caller]
pub fn replica_of(master: &Server) -> Server {
    replica_with(master, &[])
}

/// A new replica of a master, set up like it but for some lines of configuration.
#[track_caller]
pub fn replica_with(master: &Server, lines: &[(&str, &str)]) -> Server {
    let source = format!("127.0.0.1 {}", master.port());
    let setup = master.setup().clone().set("replicaof", &source);
    let replica = setup.with(lines).start();
    wait_synced(master, &replica);
    replica
}

/// Waits until a replica has applied all that its master had written when this was called.
#[track_caller]
pub fn wait_synced(master: &Server, replica: &Server) {
    let goal = offset(&mut master.conn(), "master_repl_offset");
    let mut conn = replica.conn();
    let what = format!(
        "replica {} catches up with master {} (offset {goal:?})",
        replica.port(),
        master.port()
    );
    eventually(PATIENCE, &what, || {
        let info = conn.info("replication");
        info.get("master_link_status").is_some_and(|s| s == "up")
            && offset(&mut conn, "slave_repl_offset") >= goal
    });
}

fn offset(conn: &mut Conn, field: &str) -> Option<u64> {
    conn.info("replication").get(field)?.parse().ok()
}

/// What the server says a key holds, as a digest: equal values have equal digests on every server.
#[track_caller]
pub fn digest(conn: &mut Conn, key: impl AsRef<[u8]>) -> String {
    let reply = conn.cmd(&[b"DEBUG", &b"DIGEST-VALUE"[..], key.as_ref()]);
    reply.array()[0].text().to_owned()
}

/// The digest of everything a server holds: keys, values and expiries.
#[track_caller]
pub fn digest_all(conn: &mut Conn) -> String {
    conn.run("DEBUG DIGEST").text().to_owned()
}

/// Takes the expiry from all keys and waits until what has expired is gone, so that nothing goes between one
/// look at a server and the next: DEBUG RELOAD drops what has expired and tells no replica.
#[track_caller]
pub fn persist_all(conn: &mut Conn) {
    eventually(PATIENCE, "what has expired is gone", || {
        // KEYS names no key that has expired, and leaves it where it is.
        let keys = conn.run("KEYS *");
        for key in keys.array() {
            cmd!(conn, "PERSIST", key.bytes()).int();
        }
        conn.run("DBSIZE").int() == keys.array().len() as i64
    });
}
