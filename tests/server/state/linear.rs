//! One key under many clients is the work of one register that does one thing at a time. The checker, and
//! what it checks, are in `tests/server/linear/`.

use crate::harness::*;
use crate::linear::check::check;
use crate::linear::load::{run, Load};
use crate::linear::proxy::{self, Lie};
use crate::linear::search::linearizable;

/// How many operations the long run makes: `MAOS_TEST_LINEAR_OPS`, or enough for a few seconds.
fn long_run() -> u64 {
    let asked = std::env::var("MAOS_TEST_LINEAR_OPS").ok();
    asked.map_or(100_000, |n| {
        n.parse().expect("MAOS_TEST_LINEAR_OPS is a number")
    })
}

#[test]
fn one_key_under_sixteen_clients_is_linearizable() {
    let server = Server::start();
    let load = Load {
        clients: 16,
        ops: long_run(),
        cuts: 10,
        plain: false,
    };
    let began = std::time::Instant::now();
    let ops = run(server.port(), "k", load, |done| {
        let mut conn = server.conn();
        let mut disturb = |line: &str, rounds: u32| {
            for _ in 0..rounds {
                if done() {
                    return;
                }
                // Between two disturbances some work gets done.
                let before = conn.info("stats")["total_commands_processed"].clone();
                let goal = before.parse::<u64>().expect("a number") + load.ops / 40;
                eventually(PATIENCE, "the clients go on", || {
                    let now = conn.info("stats")["total_commands_processed"].clone();
                    done() || now.parse::<u64>().is_ok_and(|n| n >= goal)
                });
                conn.run(line);
            }
        };
        disturb("CLIENT PAUSE 20 WRITE", 5);
        disturb("CLIENT KILL TYPE normal SKIPME yes", 5);
        disturb("CLIENT PAUSE 20 ALL", 5);
    });
    let took = began.elapsed();
    let figures = check(&ops).unwrap_or_else(|(wrong, what)| panic!("{wrong:?}: {what}"));
    println!("{} operations in {took:?}: {figures:?}", ops.len());
    // The run has something of everything, or it shows nothing.
    let most = ops.len() / 100;
    assert!(
        figures.conditional > most && figures.lost > most,
        "{figures:?}"
    );
    assert!(
        figures.deletions > 0 && figures.unknown > figures.unknown_seen,
        "{figures:?}"
    );
    assert!(figures.unknown_seen > 0, "{figures:?}");
}

#[test]
fn the_search_agrees_on_samples() {
    let server = Server::start();
    let load = Load {
        clients: 6,
        ops: 600,
        cuts: 5,
        plain: false,
    };
    for n in 0..20 {
        let ops = run(server.port(), &format!("k{n}"), load, |_| {});
        assert!(ops.len() <= 1_000);
        check(&ops).unwrap_or_else(|(wrong, what)| panic!("{wrong:?}: {what}"));
        assert!(linearizable(&ops), "sample {n}");
    }
}

#[test]
fn a_lying_server_is_found_out() {
    let load = Load {
        clients: 4,
        ops: 3_000,
        cuts: 0,
        plain: true,
    };
    for lie in [
        Lie::None,
        Lie::Reused,
        Lie::LostUpdate,
        Lie::Stale,
        Lie::NeverWritten,
        Lie::DelIgnored,
        Lie::EarlyAnswer,
        Lie::OutOfOrder,
    ] {
        let server = Server::start();
        let ops = run(proxy::start(server.port(), lie), "k", load, |_| {});
        let verdict = check(&ops);
        println!("{lie:?}: {verdict:?}");
        assert_eq!(verdict.is_ok(), lie == Lie::None, "{lie:?}: {verdict:?}");
    }
}
