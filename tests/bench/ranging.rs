//! What listing keys in order costs, and keeping them so.

use std::time::{Duration, Instant};

use crate::data::{key, send_all, value, words};
use crate::harness::{eventually, Conn, Server};
use crate::knobs::Knobs;
use crate::lane::{alternate, header, lanes, row, Lane};
use crate::machine;
use crate::table::{title, Target};

/// Keys of the prefix that is listed.
const LISTED: usize = 100;
/// How long a switched-off index may take to be freed.
const LONG: Duration = Duration::from_secs(60);

/// Prints all of it.
pub fn run(knobs: &Knobs) {
    memory(knobs);
    writes(knobs);
}

fn figure(conn: &mut Conn, section: &str, name: &str) -> f64 {
    conn.info(section)[name].parse().expect("a number")
}

/// What the index takes, and how fast it lists some keys of many.
fn memory(knobs: &Knobs) {
    let keys = knobs.memory_keys;
    // What looks random and is not: multiples of a large odd number.
    let mixed = |n: usize| format!("{:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let named: [(&str, &dyn Fn(usize) -> String); 3] = [
        ("numbered: app:worker:000123", &|n| key("app:worker", n)),
        ("of two parts: app:00012:00003", &|n| {
            format!("app:{:05}:{:05}", n / 10, n % 10)
        }),
        ("random: app:9e3779b97f4a7c15", &|n| {
            format!("app:{}", mixed(n))
        }),
    ];
    for (name, of) in named {
        let server = machine::server().start();
        let conn = &mut server.conn();
        let value = value(8);
        send_all(
            conn,
            (0..keys).map(|n| words(&["MAOS.SET", &of(n), &value])),
        );
        let used = |conn: &mut Conn| figure(conn, "memory", "used_memory");
        let with = used(conn);
        conn.run("CONFIG SET maos.range-index no").ok();
        conn.run("MAOS.GET k");
        // It is freed in a thread.
        let mut without = with;
        eventually(LONG, "the index is freed", || {
            std::thread::sleep(Duration::from_millis(200));
            let before = std::mem::replace(&mut without, used(conn));
            without < with && before == without
        });
        title(&format!("The index of {keys} keys, {name}"));
        println!("bytes a key {:>11.1}", (with - without) / keys as f64);
    }
    listing(knobs);
}

fn listing(knobs: &Knobs) {
    let keys = knobs.memory_keys;
    title(&format!("{LISTED} keys of a prefix out of {keys}: listings a second; theirs: SCAN MATCH of it, COUNT 1000"));
    header();
    let server = machine::server().start();
    let value = value(8);
    let other = (0..keys).map(|n| words(&["MAOS.SET", &key("other", n), &value]));
    let listed = (0..LISTED).map(|n| words(&["MAOS.SET", &key("listed", n), &value]));
    send_all(&mut server.conn(), other.chain(listed));
    for (name, full) in [
        ("MAOS.RANGE prefix", false),
        ("MAOS.RANGE prefix FULL", true),
    ] {
        let mut conn = server.conn();
        let mut request = words(&["MAOS.RANGE", "listed:"]);
        if full {
            request.push("FULL".into());
        }
        let mut ours = || {
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < knobs.slice {
                let reply = conn.cmd(&request);
                assert_eq!(reply.array()[1].array().len(), LISTED);
                done += 1;
            }
            f64::from(done) / start.elapsed().as_secs_f64()
        };
        let mut conn = server.conn();
        let mut theirs = || {
            let (start, mut found, mut cursor) = (Instant::now(), 0, "0".to_string());
            loop {
                let scan = ["SCAN", &cursor, "MATCH", "listed:*", "COUNT", "1000"];
                let reply = conn.cmd(&words(&scan));
                found += reply.array()[1].array().len();
                cursor = reply.array()[0].text().to_string();
                if cursor == "0" {
                    break;
                }
            }
            assert!(found >= LISTED);
            1.0 / start.elapsed().as_secs_f64()
        };
        let rounds = alternate(knobs, |is_ours| match is_ours {
            true => ours(),
            false => theirs(),
        });
        let (a, b): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        row(name, &a, &b, 1.0, Target::AtLeast(100.0));
    }
}

/// A side of the comparison: a server, connections to it, and how many keys it was given.
struct Side(Server, Vec<Lane>, usize);

/// Keys that are made anew; one that is written over does not come near the index.
fn writes(knobs: &Knobs) {
    title("New keys: thousand MAOS.SET a second, 50 clients; theirs: with maos.range-index no");
    header();
    let start = |index: &str| {
        let server = machine::server().set("maos.range-index", index).start();
        let lanes = lanes(&server);
        Side(server, lanes, 0)
    };
    for depth in [1, 16] {
        let (mut on, mut off) = (start("yes"), start("no"));
        let rounds = alternate(knobs, |is_ours| {
            let side = if is_ours { &mut on } else { &mut off };
            rate(side, depth, knobs.slice)
        });
        let (a, b): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        let name = format!("MAOS.SET of 100 B, P {depth}");
        row(&name, &a, &b, 1000.0, Target::None);
        drop((on.0, off.0));
    }
}

fn rate(side: &mut Side, depth: usize, slice: Duration) -> f64 {
    let Side(_, lanes, made) = side;
    let value = value(100);
    // Made before the clock runs.
    let requests: Vec<Vec<u8>> = (0..lanes.len() * 40)
        .map(|n| {
            let one = |at| {
                let n = *made + n * depth + at;
                // Neighbours in time are none in the order of the names.
                let name = format!("app:{:08x}", (n as u32).wrapping_mul(0x9e37_79b9));
                Conn::encode(&words(&["MAOS.SET", &name, &value]))
            };
            (0..depth).flat_map(one).collect()
        })
        .collect();
    *made += requests.len() * depth;
    let (start, mut done) = (Instant::now(), 0);
    for some in requests.chunks(lanes.len()) {
        if start.elapsed() >= slice {
            break;
        }
        for (lane, bytes) in lanes.iter_mut().zip(some) {
            lane.send(bytes);
        }
        for lane in lanes.iter_mut() {
            (0..depth).for_each(|_| lane.skip());
        }
        done += some.len() * depth;
    }
    done as f64 / start.elapsed().as_secs_f64()
}
