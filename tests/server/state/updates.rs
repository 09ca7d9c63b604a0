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

#[test]
fn changes_to_different_parts_of_one_document_lose_none() {
    let server = Server::start();
    let replica = replica_of(&server);
    server.conn().run("MAOS.SET doc '{\"total\":0}'").int();
    let each = updates() / WORKERS;
    thread::scope(|scope| {
        for n in 0..WORKERS {
            let server = &server;
            scope.spawn(move || {
                let mut conn = server.conn();
                for i in 1..=each {
                    let reply = match i % 3 {
                        0 => cmd!(
                            conn,
                            "MAOS.INCRBY",
                            "doc",
                            "1",
                            "PATH",
                            format!("/w{n}/count")
                        ),
                        1 => cmd!(
                            conn,
                            "MAOS.PATCH",
                            "doc",
                            format!(r#"{{"w{n}":{{"last":{i},"gone":null}}}}"#)
                        ),
                        _ => {
                            let patch =
                                format!(r#"[{{"op":"add","path":"/w{n}/next","value":{i}}}]"#);
                            cmd!(conn, "MAOS.PATCH", "doc", patch, "JSONPATCH")
                        }
                    };
                    assert!(!reply.is_err(), "{reply}");
                    cmd!(conn, "MAOS.INCRBY", "doc", "0.1", "PATH", "/total").array();
                }
            });
        }
    });
    let conn = &mut server.conn();
    let doc: serde_json::Value =
        serde_json::from_slice(conn.run("MAOS.GET doc").bytes()).expect("JSON");
    // Tenths, exactly.
    let total = each * WORKERS;
    let tenths = match total % 10 {
        0 => (total / 10).to_string(),
        rest => format!("{}.{rest}", total / 10),
    };
    assert_eq!(doc["total"].to_string(), tenths);
    for n in 0..WORKERS {
        let of = &doc[format!("w{n}")];
        assert_eq!(of["count"], each / 3, "worker {n}");
        assert_eq!(of["last"], (1..=each).rfind(|i| i % 3 == 1).expect("one"));
        assert_eq!(of["next"], (1..=each).rfind(|i| i % 3 == 2).expect("one"));
    }
    wait_synced(&server, &replica);
    assert_eq!(digest_all(&mut replica.conn()), digest_all(conn));
}
