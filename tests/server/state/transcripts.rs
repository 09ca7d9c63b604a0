//! The same conversations that the model passes, on a live server, in both protocols.

use maos_core::transcript::{self, Store};
use maos_core::wire::reference::COMMANDS;
use maos_core::wire::Value;

use super::oracle::value;
use crate::harness::*;

struct Live(Conn);

impl Store for Live {
    fn ask(&mut self, request: &[Vec<u8>]) -> Result<Value, String> {
        value(&self.0.cmd(request))
    }
}

/// Runs every transcript on its own empty server state.
fn all(conn: Conn) {
    let mut texts: Vec<(String, String)> = COMMANDS
        .iter()
        .map(|s| (s.name.to_string(), s.examples.to_string()))
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        texts.push((
            path.display().to_string(),
            std::fs::read_to_string(&path).unwrap(),
        ));
    }
    let mut live = Live(conn);
    for (name, text) in texts {
        live.0.run("FLUSHALL").ok();
        transcript::run(&text, &mut live).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn conversations_hold_in_resp2() {
    let server = Server::start();
    all(server.conn());
}

#[test]
fn conversations_hold_in_resp3() {
    let server = Server::start();
    let mut conn = server.conn();
    conn.hello3();
    all(conn);
}

#[test]
fn maps_are_maps_in_resp3() {
    let server = Server::start();
    let mut conn = server.conn();
    conn.run("MAOS.SET k v").int();
    assert!(matches!(conn.run("MAOS.GET k FULL"), Reply::Array(items) if items.len() == 22));
    conn.hello3();
    assert!(matches!(conn.run("MAOS.GET k FULL"), Reply::Map(pairs) if pairs.len() == 11));
    assert!(matches!(
        &conn.run("MAOS.HISTORY k").array()[0],
        Reply::Map(_)
    ));
    assert!(conn.run("MAOS.GET nothing").is_nil());
}
