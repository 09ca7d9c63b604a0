//! Versions rise, and of those who write over one version one wins. That none is given twice, whatever
//! happens to the key, is shown in `aba.rs`.

use super::{has_failpoints, metric};
use crate::harness::*;

#[test]
fn a_payload_from_the_future_is_refused_and_does_not_drag_the_clock() {
    let ahead = Server::start();
    if !has_failpoints(&mut ahead.conn()) {
        println!("skipped: this build has no failpoints");
        return;
    }
    const TWO_DAYS_MS: i64 = 2 * 86_400_000;
    ahead
        .conn()
        .run(&format!("MAOS.FAIL clock {TWO_DAYS_MS}"))
        .int();
    let version = ahead.conn().run("MAOS.SET k v").int();
    let dump = ahead.conn().run("DUMP k").bytes().to_vec();

    let server = Server::start();
    let conn = &mut server.conn();
    let now = conn.run("MAOS.SET j v").int();
    assert!(cmd!(conn, "RESTORE", "k", "0", &dump[..]).is_err());
    assert!(server.log().contains("a version too far in the future"));
    assert!(conn.run("MAOS.SET j w").int() < now + 3_600_000_000);
    // Within the bound it is taken, and the clock goes on above it.
    conn.run("CONFIG SET maos.clock-max-drift-ms 259200000")
        .ok();
    cmd!(conn, "RESTORE", "k", "0", &dump[..]).ok();
    assert!(conn.run("MAOS.SET j x").int() > version);
    // From a master it is taken as it is, counted, and the clock stays.
    let replica = replica_with(&ahead, &[]);
    let conn = &mut replica.conn();
    assert_eq!(conn.run("MAOS.GET k WITHVERSION").array()[1].int(), version);
    assert_eq!(metric(conn, "stamps_ahead"), 1);
    conn.run("REPLICAOF NO ONE").ok();
    assert!(conn.run("MAOS.SET j v").int() < now + 3_600_000_000);
    assert_eq!(
        conn.run("MAOS.SET k w").int(),
        version + 1,
        "the key itself goes on rising"
    );
}

#[test]
fn exactly_one_of_many_wins() {
    let server = Server::start();
    let mut version = server.conn().run("MAOS.SET k start").int();
    for round in 0..20 {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let mut conn = server.conn();
                let line = format!("MAOS.CAS k {version} {round}-{n}");
                std::thread::spawn(move || conn.run(&line).array()[0].int())
            })
            .collect();
        let won: i64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(won, 1);
        let now = server.conn().run("MAOS.GET k WITHVERSION").array()[1].int();
        assert!(now > version);
        version = now;
    }
    assert_eq!(metric(&mut server.conn(), "conflicts_cas"), 20 * 7);
}

#[test]
fn a_pipeline_of_writes_gets_rising_versions() {
    let server = Server::start();
    let conn = &mut server.conn();
    let lines: Vec<_> = (0..5000)
        .map(|n| format!("MAOS.SET k{} v", n % 7))
        .collect();
    let versions: Vec<_> = conn.pipeline(&lines).iter().map(Reply::int).collect();
    assert!(versions.windows(2).all(|w| w[0] < w[1]));
}
