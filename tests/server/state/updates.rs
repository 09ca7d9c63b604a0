//! Documents and numbers that many change at once, in one step each: nothing is lost, no bound is passed.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::thread;

use crate::harness::*;

const WORKERS: i64 = 16;

/// How many changes each test makes: `MAOS_TEST_UPDATES`, or some.
fn updates() -> i64 {
    let asked = std::env::var("MAOS_TEST_UPDATES").ok();
    asked.map_or(8_000, |n| n.parse().expect("MAOS_TEST_UPDATES is a number"))
}

#[test]
fn a_budget_that_many_spend_is_never_overspent() {
    let server = Server::start();
    let replica = replica_of(&server);
    let budget = updates() * 3;
    let conn = &mut server.conn();
    let doc = format!(r#"{{"team":"a","left":{budget}.50}}"#);
    cmd!(conn, "MAOS.SET", "budget", doc).int();
    let (spent, refused) = (&AtomicI64::new(0), &AtomicI64::new(0));
    thread::scope(|scope| {
        for n in 0..WORKERS {
            let server = &server;
            scope.spawn(move || {
                let mut conn = server.conn();
                let price = 1 + n % 7;
                let line = format!("MAOS.INCRBY budget -{price} PATH /left MIN 0 BY worker-{n}");
                loop {
                    let reply = conn.run(&line);
                    if reply.is_err() {
                        assert!(reply.err().starts_with("LIMIT "), "{reply}");
                        refused.fetch_add(1, Relaxed);
                        break;
                    }
                    spent.fetch_add(price, Relaxed);
                    let left: f64 = reply.array()[1].text().parse().expect("a number");
                    assert!(left >= 0.0);
                }
            });
        }
    });
    // Everybody went on until the budget was too small for it: less than the smallest price is left.
    assert_eq!(refused.load(Relaxed), WORKERS);
    let left = budget - spent.load(Relaxed);
    assert_eq!(left, 0, "whole units only");
    assert_eq!(
        conn.run("MAOS.GET budget").text(),
        r#"{"team":"a","left":0.5}"#
    );
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
}

/// Merges a change of its own part into what is there, whatever came meanwhile; how it was decided.
fn merge_own_part(conn: &mut Conn, n: usize, i: i64) -> String {
    let now = conn.run("MAOS.GET doc WITHVERSION");
    let (text, base) = (now.array()[0].bytes(), now.array()[1].int().to_string());
    let mut doc: serde_json::Value = serde_json::from_slice(text).expect("JSON");
    doc[format!("w{n}")]["merged"] = i.into();
    let doc = doc.to_string();
    let reply = cmd!(conn, "MAOS.MERGE", "doc", base, doc, "STRATEGY", "MERGE");
    assert_eq!(reply.array()[0].int(), 1, "{reply}");
    reply.array()[2].text().to_owned()
}

#[test]
fn changes_to_different_parts_of_one_document_lose_none() {
    const CLIENTS: usize = 50;
    // A base must be there for as long as its writer takes.
    let server = Server::with(&[
        ("maos.history-max-versions", "2000"),
        ("maos.history-max-bytes", "64mb"),
    ]);
    let replica = replica_of(&server);
    server.conn().run("MAOS.SET doc '{\"total\":0}'").int();
    let each = updates() / CLIENTS as i64;
    let merged = &AtomicI64::new(0);
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            let server = &server;
            scope.spawn(move || {
                let mut conn = server.conn();
                for i in 1..=each {
                    let reply = match i % 4 {
                        0 => {
                            let path = format!("/w{n}/count");
                            cmd!(conn, "MAOS.INCRBY", "doc", "1", "PATH", path)
                        }
                        1 => {
                            let patch = format!(r#"{{"w{n}":{{"last":{i},"gone":null}}}}"#);
                            cmd!(conn, "MAOS.PATCH", "doc", patch)
                        }
                        2 => {
                            let patch =
                                format!(r#"[{{"op":"add","path":"/w{n}/next","value":{i}}}]"#);
                            cmd!(conn, "MAOS.PATCH", "doc", patch, "JSONPATCH")
                        }
                        _ => {
                            let how = merge_own_part(&mut conn, n, i);
                            merged.fetch_add(i64::from(how == "merged"), Relaxed);
                            cmd!(conn, "MAOS.INCRBY", "doc", "0", "PATH", "/total")
                        }
                    };
                    assert!(!reply.is_err(), "{reply}");
                    cmd!(conn, "MAOS.INCRBY", "doc", "0.1", "PATH", "/total").array();
                }
            });
        }
    });
    assert!(merged.load(Relaxed) > 0, "nobody came between");
    let conn = &mut server.conn();
    let doc: serde_json::Value =
        serde_json::from_slice(conn.run("MAOS.GET doc").bytes()).expect("JSON");
    // Tenths, exactly.
    let total = each * CLIENTS as i64;
    let tenths = match total % 10 {
        0 => (total / 10).to_string(),
        rest => format!("{}.{rest}", total / 10),
    };
    assert_eq!(doc["total"].to_string(), tenths);
    for n in 0..CLIENTS {
        let of = &doc[format!("w{n}")];
        assert_eq!(of["count"], each / 4, "worker {n}");
        let last = |rest| (1..=each).rfind(|i| i % 4 == rest).expect("one");
        assert_eq!(of["last"], last(1), "worker {n}");
        assert_eq!(of["next"], last(2), "worker {n}");
        assert_eq!(of["merged"], last(3), "worker {n}");
    }
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
}
