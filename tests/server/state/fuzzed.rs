//! No argument stops the server or breaks a reply: requests made from the command table, then damaged,
//! sent every way to a master with a replica. What is answered is not looked at here, only that it is
//! one well-formed reply to each request, and that both nodes hold the same afterwards.

use std::time::Duration;

use maos_core::generate::{keep_awake, Generator, Rng};
use maos_core::model::Model;

use super::metric;
use super::oracle::{now_us, number};
use crate::harness::*;

/// Requests by default.
const REQUESTS: usize = 40_000;

/// What no argument should be.
fn hostile(rng: &mut Rng) -> Vec<u8> {
    match rng.below(24) {
        0 => vec![],
        1 => b"\0".to_vec(),
        2 => b"\r\n+OK\r\n$-1\r\n".to_vec(),
        3 => b"%n%s%p%n%s".to_vec(),
        4 => "\u{100}\u{200}\u{10ffff}".into(),
        5 => b"\xff\xfe\xed\xa0\x80".to_vec(),
        6 => b"9007199254740993".to_vec(),
        7 => b"-9223372036854775808".to_vec(),
        8 => b"18446744073709551616".to_vec(),
        9 => b"nan".to_vec(),
        10 => b"1e400".to_vec(),
        // Not often: a history of such values is a long reply.
        11 if rng.below(20) == 0 => [b"[".repeat(10_000), b"]".repeat(10_000)].concat(),
        12 if rng.below(20) == 0 => [b"{\"a\":".repeat(5_000), b"}".repeat(5_000)].concat(),
        13 if rng.below(40) == 0 => vec![b'x'; 65_536],
        14 => b"foreign".to_vec(),
        15 => (0..=255).collect(),
        // Once in a long while, as large as a value may be, and larger.
        16 if rng.below(400) == 0 => vec![b'v'; (8 << 20) + rng.below(2)],
        _ => (0..rng.below(40)).map(|_| rng.number() as u8).collect(),
    }
}

fn damage(words: &mut Vec<Vec<u8>>, rng: &mut Rng) {
    for _ in 0..rng.below(3) {
        let at = rng.below(words.len());
        match rng.below(7) {
            // The name stays, mostly: an unknown command tries nothing of ours.
            0..=2 if at > 0 => words[at] = hostile(rng),
            3 => words.insert(at + 1, hostile(rng)),
            4 if at > 0 => drop(words.remove(at)),
            5 => words.push(words[at].clone()),
            6 => words[at].push(rng.number() as u8),
            _ => {}
        }
    }
    keep_awake(words);
}

/// Requests of others to the same keys.
fn other(generator: &mut Generator) -> Vec<Vec<u8>> {
    let keys = generator.keys.clone();
    let rng = &mut generator.rng;
    let (a, b) = (rng.pick(&keys).clone(), rng.pick(&keys).clone());
    let words = |name: &str, rest: &[&[u8]]| {
        let mut words = vec![name.as_bytes().to_vec()];
        words.extend(rest.iter().map(|w| w.to_vec()));
        words
    };
    // Removed often: nobody here knows the tokens of the locks that are taken.
    match rng.below(24) {
        0 => words("DEL", &[&a]),
        1 => words("SET", &[&a, b"plain"]),
        2 => words("RENAME", &[&a, &b]),
        3 => words("COPY", &[&a, &b, b"REPLACE"]),
        4 => words("PEXPIRE", &[&a, b"100000000"]),
        5 => words("PERSIST", &[&a]),
        6 => words("MAOS.APPLY", &[&a, &hostile(rng), &b]),
        7 => words("MAOS.LOAD", &[&a, &hostile(rng)]),
        8 => words("MAOS.RESTORED", &[&a, b"1", b"2"]),
        9 => words("RESTORE", &[&a, b"0", &hostile(rng), b"REPLACE"]),
        10 => words("MEMORY", &[b"USAGE", &a]),
        11 => words("OBJECT", &[b"ENCODING", &a]),
        12 => words("DUMP", &[&a]),
        _ => words("UNLINK", &[&a, &b]),
    }
}

/// So many replies, each well formed: the connection's parser takes nothing else.
fn send(conn: &mut Conn, requests: &[Vec<Vec<u8>>]) {
    let bytes: Vec<u8> = requests.iter().flat_map(|r| Conn::encode(r)).collect();
    conn.send_raw(&bytes);
    for _ in requests {
        conn.recv();
    }
}

fn from_lua(words: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let script = "return redis.pcall(unpack(ARGV))";
    let mut call = vec![b"EVAL".to_vec(), script.into(), b"1".to_vec()];
    // The script names one key; the others have its hash tag.
    call.push(b"{o}".to_vec());
    call.extend(words);
    call
}

/// One that was made by chance may leave no room for anything else, and nobody here knows its name.
fn drop_partitions(conn: &mut Conn) {
    for shown in conn.run("MAOS.PARTITION LIST").array() {
        let name = shown.field("name").bytes();
        cmd!(conn, "MAOS.PARTITION", "DROP", name, "FORCE");
    }
}

#[test]
fn no_arguments_stop_the_server_or_part_its_replica() {
    let seed = number("MAOS_TEST_SEED").unwrap_or_else(now_us);
    let requests = number("MAOS_TEST_FUZZ").map_or(REQUESTS, |n| n as usize);
    println!("MAOS_TEST_SEED={seed}");
    let master = Server::with(&[("maos.history-max-versions", "20")]);
    let replica = replica_of(&master);
    let mut generator = Generator::new(seed);
    // It only gives requests something to name: they are made to fit its limits.
    let mut model = Model::at(seed);
    model.limits.value_max = 2000;
    model.limits.history_versions = 20;
    let mut plain = master.conn();
    let mut third = master.conn();
    third.hello3();
    for conn in [&mut plain, &mut third] {
        conn.set_timeout(Duration::from_secs(60));
    }
    plain.run("RPUSH foreign a").int();
    let mut sent = 0;
    while sent < requests {
        let mut batch: Vec<Vec<Vec<u8>>> = vec![];
        for _ in 0..50 {
            let words = match generator.rng.below(5) {
                0 => other(&mut generator),
                _ => {
                    let mut words = generator.request(&model);
                    let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                    model.now_us += 1000;
                    let _ = model.run(&args);
                    damage(&mut words, &mut generator.rng);
                    words
                }
            };
            batch.push(match generator.rng.below(6) {
                0 => from_lua(words),
                _ => words,
            });
        }
        sent += batch.len();
        if sent % 2000 == 0 {
            drop_partitions(&mut master.conn());
        }
        let conn = match generator.rng.below(2) {
            0 => &mut plain,
            _ => &mut third,
        };
        match generator.rng.below(4) {
            0 => batch
                .iter()
                .for_each(|one| send(conn, std::slice::from_ref(one))),
            1 => {
                batch.insert(0, vec![b"MULTI".to_vec()]);
                batch.push(vec![b"EXEC".to_vec()]);
                send(conn, &batch);
            }
            _ => send(conn, &batch),
        }
    }
    let conn = &mut master.conn();
    assert_eq!(conn.run("PING").to_string(), "PONG");
    assert_eq!(metric(conn, "panics"), 0);
    let writes = metric(conn, "writes");
    assert!(
        writes > requests as i64 / 40,
        "{writes} of {requests} were writes: {}",
        conn.run("MAOS.PARTITION LIST")
    );
    assert!(metric(conn, "records") > 0);
    // What the pass does between two looks is no difference between them.
    conn.run("CONFIG SET maos.background-effort-us 0").ok();
    persist_all(conn);
    wait_synced(&master, &replica);
    let held = digest_all(conn);
    assert_eq!(digest_all(&mut replica.conn()), held);
    assert_eq!(metric(&mut replica.conn(), "panics"), 0);
    conn.run("DEBUG RELOAD").ok();
    assert_eq!(digest_all(conn), held);
    assert!(!master.log().contains("panic at"));
    assert!(!replica.log().contains("panic at"));
    println!("{sent} requests, {} writes", metric(conn, "writes"));
}
