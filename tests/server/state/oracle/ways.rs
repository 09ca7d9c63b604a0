//! Every way to send a request, in both protocols: the model says what must come back.

use super::*;

fn all(way: Way, resp3: bool) {
    let (server, mut oracle) = Oracle::start(&[]);
    let conn = &mut server.conn();
    if way == Way::Function && !load_function(conn) {
        println!("skipped: this server has no functions");
        return;
    }
    if resp3 {
        conn.hello3();
        oracle.resp3 = true;
    }
    oracle.brief_keys = way == Way::Single;
    oracle.converse(conn, way, requests());
    oracle.agree(conn, "after it all");
    println!("{way:?}: {} requests", oracle.asked());
}

#[test]
fn one_by_one() {
    all(Way::Single, false);
}

#[test]
fn one_by_one_in_resp3() {
    all(Way::Single, true);
}

#[test]
fn in_pipelines() {
    all(Way::Pipeline, false);
}

#[test]
fn in_pipelines_in_resp3() {
    all(Way::Pipeline, true);
}

#[test]
fn in_transactions() {
    all(Way::Multi, false);
}

#[test]
fn in_transactions_in_resp3() {
    all(Way::Multi, true);
}

#[test]
fn from_scripts() {
    all(Way::Script, false);
}

#[test]
fn from_functions_in_resp3() {
    all(Way::Function, true);
}

/// One node of a cluster: the keys have one slot. What names others is refused before it comes to us.
#[test]
fn in_a_cluster() {
    let cluster = Cluster::start(3, 1);
    let mut oracle = Oracle::new();
    let master = cluster.node_for("{o}");
    let conn = &mut master.conn();
    oracle.busy = true;
    oracle.shake(conn);
    let (mut astray, mut asked) = (0, 0);
    while asked < requests() / 2 {
        oracle.settle();
        let request = oracle.next();
        let sent = now_us();
        let reply = conn.cmd(&request);
        match &reply {
            Reply::Error(line) if line.starts_with("MOVED") || line.starts_with("CROSSSLOT") => {
                astray += 1;
            }
            _ => oracle.compare(&request, &reply, (sent, now_us()), Way::Single),
        }
        asked += 1;
    }
    assert!(astray < asked / 10, "{astray} of {asked} went astray");
    oracle.agree(conn, "after it all");
    for n in (0..3).filter(|n| cluster.master(*n).port() == master.port()) {
        for replica in cluster.replicas_of(n) {
            wait_synced(master, replica);
            let there = &mut replica.conn();
            there.run("READONLY").ok();
            oracle.agree(there, "on its replica");
        }
    }
}

/// Another connection writes, or fails to, while a key is watched: the transaction is given up if and
/// only if the key has changed.
#[test]
fn under_watch() {
    let (server, mut oracle) = Oracle::start(&[]);
    let (conn, other) = (&mut server.conn(), &mut server.conn());
    let (mut through, mut given_up) = (0, 0);
    while oracle.asked() < requests() {
        // What the requests before have let expire is gone before it is watched.
        oracle.settle();
        oracle.look(other);
        let at = oracle.generator.rng.below(oracle.generator.keys.len());
        let watched = oracle.generator.keys[at].clone();
        cmd!(conn, "WATCH", watched).ok();
        let before = oracle.model.keys().get(&watched).cloned();
        // COPY over a key of the same contents changes nothing that could be seen here, nor does a lease that
        // is renewed to the same end.
        let mut meanwhile = oracle.next();
        while meanwhile[0] == b"COPY" || meanwhile[0].eq_ignore_ascii_case(b"MAOS.RENEW") {
            meanwhile = oracle.next();
        }
        oracle.batch(other, Way::Single, &[meanwhile]);
        let changed = oracle.model.keys().get(&watched) != before.as_ref();
        oracle.settle();
        oracle.look(other);
        let body = oracle.generator.request(&oracle.model);
        if !enough_words(&body) {
            cmd!(conn, "UNWATCH").ok();
            continue;
        }
        let lines = [
            vec![b"MULTI".to_vec()],
            body.clone(),
            vec![b"EXEC".to_vec()],
        ];
        let sent = now_us();
        let replies = piped(conn, &lines);
        assert_eq!(
            replies[2].is_nil(),
            changed,
            "watched {}\n{}",
            watched.escape_ascii(),
            oracle.told(Way::Multi, &[body])
        );
        if changed {
            given_up += 1;
        } else {
            through += 1;
            oracle.compare(&body, &replies[2].array()[0], (sent, now_us()), Way::Multi);
        }
    }
    assert!(
        through > 0 && given_up > 0,
        "{through} went through, {given_up} were given up"
    );
    oracle.agree(conn, "after it all");
}

/// Whenever memory is short, what may need more is refused, and everything else goes on.
#[test]
fn while_memory_comes_and_goes() {
    let (server, mut oracle) = Oracle::start(&[]);
    let conn = &mut server.conn();
    let (mut asked, mut refused) = (0, 0);
    while asked < requests() {
        let full = oracle.generator.rng.chance(50);
        cmd!(
            conn,
            "CONFIG",
            "SET",
            "maxmemory",
            if full { "1" } else { "0" }
        )
        .ok();
        for _ in 0..20 {
            asked += 1;
            oracle.settle();
            oracle.look(conn);
            let request = oracle.generator.request(&oracle.model);
            let needs_memory = spec_of(&request).is_some_and(|s| s.flags.contains("deny-oom"));
            let sent = now_us();
            let reply = conn.cmd(&request);
            if full && needs_memory && enough_words(&request) {
                refused += 1;
                assert_eq!(
                    reply.code(),
                    "OOM",
                    "{}",
                    oracle.told(Way::Single, &[request])
                );
            } else {
                oracle.compare(&request, &reply, (sent, now_us()), Way::Single);
            }
        }
    }
    assert!(refused > 100, "{refused}");
    conn.run("CONFIG SET maxmemory 0").ok();
    oracle.agree(conn, "after it all");
}
