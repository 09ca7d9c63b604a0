//! Transactions, WATCH, scripts, functions: as with a built-in type.

use crate::harness::*;

#[test]
fn multi_exec_runs_all_and_replicates_all() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    conn.run("MULTI").ok();
    for line in [
        "MAOS.SET a 1",
        "MAOS.CAS a 5 x",
        "MAOS.GET a",
        "MAOS.DEL a",
        "MAOS.SET b 2",
    ] {
        assert_eq!(conn.run(line).text(), "QUEUED");
    }
    let replies = conn.run("EXEC");
    let replies = replies.array();
    assert_eq!(replies.len(), 5);
    assert_eq!(replies[1].array()[0].int(), 0);
    assert_eq!(replies[2].text(), "1");
    assert!(replies[0].int() < replies[3].int() && replies[3].int() < replies[4].int());
    wait_synced(&master, &replica);
    for key in ["a", "b"] {
        assert_eq!(digest(conn, key), digest(&mut replica.conn(), key));
    }
}

#[test]
fn watch_notices_a_write_and_only_a_write() {
    let server = Server::start();
    let (conn, other) = (&mut server.conn(), &mut server.conn());
    let version = conn.run("MAOS.SET k v").int();
    let disturbed = |conn: &mut Conn, other: &mut Conn, lines: &[String]| {
        conn.run("WATCH k").ok();
        for line in lines {
            other.run(line);
        }
        conn.run("MULTI").ok();
        conn.run("PING");
        conn.run("EXEC").is_nil()
    };
    for line in [
        "MAOS.SET k w".into(),
        "MAOS.DEL k".into(),
        "MAOS.ROLLBACK k VERSION -1".into(),
        "MAOS.MSET 2 k x j y".into(),
    ] {
        assert!(
            disturbed(conn, other, std::slice::from_ref(&line)),
            "{line}"
        );
    }
    // A refused or lost write is no change.
    let harmless: Vec<String> = [
        format!("MAOS.CAS k {version} x"),
        format!("MAOS.SET k x IFVERSION {version}"),
        "MAOS.SET k x META nonsense".into(),
        "MAOS.MCAS 1 k 5 x".into(),
        "MAOS.GET k FULL".into(),
        "MAOS.HISTORY k".into(),
    ]
    .into();
    assert!(!disturbed(conn, other, &harmless));
}

#[test]
fn scripts_and_functions_may_use_every_command() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let script = "
        local first = redis.call('MAOS.SET', KEYS[1], 'one', 'BY', 'script')
        local pair = redis.call('MAOS.GET', KEYS[1], 'WITHVERSION')
        assert(pair[2] == first)
        local won = redis.call('MAOS.CAS', KEYS[1], pair[2], 'two')
        assert(won[1] == 1 and won[2] > first)
        local lost = redis.call('MAOS.CAS', KEYS[1], first, 'three')
        assert(lost[1] == 0 and lost[2] == won[2] and lost[3] == 'two')
        local past = redis.call('MAOS.GET', KEYS[1], 'VERSION', string.format('%.17g', first))
        assert(past == 'one')
        return redis.pcall('MAOS.SET', KEYS[1], 'x', 'META', 'nonsense')['err']
    ";
    let error = cmd!(conn, "EVAL", script, "1", "k");
    assert!(error.text().starts_with("NOTJSON"), "{error}");
    let library = "#!lua name=maos_test
        redis.register_function('put', function(keys, args) return redis.call('MAOS.SET', keys[1], args[1]) end)";
    cmd!(conn, "FUNCTION", "LOAD", library);
    assert!(conn.run("FCALL put 1 k v").int() > 0);
    wait_synced(&master, &replica);
    assert_eq!(digest(conn, "k"), digest(&mut replica.conn(), "k"));
    let script = "return redis.call('MAOS.SET', KEYS[1], 'v')";
    assert!(cmd!(conn, "EVAL_RO", script, "1", "k").is_err());
}

#[test]
fn a_multi_key_write_is_one_transaction_for_the_replica() {
    let master = Server::start();
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    let version = conn.run("MAOS.MSET 3 a 1 b 2 c 3").int();
    wait_synced(&master, &replica);
    let there = replica.conn().run("MAOS.MGET 3 a b c WITHVERSION");
    for pair in there.array() {
        assert_eq!(pair.array()[1].int(), version);
    }
    let lost = conn.run(&format!("MAOS.MCAS 3 a {version} x b 5 x d 0 x"));
    assert_eq!(lost.array()[1].array().len(), 1);
    assert_eq!(conn.run("EXISTS d").int(), 0);
    assert_eq!(conn.run("MAOS.GET a").text(), "1");
}

#[test]
fn client_side_caches_are_told() {
    let server = Server::start();
    let (conn, other) = (&mut server.conn(), &mut server.conn());
    conn.hello3();
    other.run("MAOS.SET k v").int();
    conn.run("CLIENT TRACKING ON").ok();
    conn.run("MAOS.GET k");
    other.run("MAOS.SET k w").int();
    let push = conn.recv();
    assert_eq!(push.array()[0].text(), "invalidate");
    assert_eq!(push.array()[1].array()[0].text(), "k");
}
