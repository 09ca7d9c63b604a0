//! What watching costs: the change log, watchers that hear and watchers that wait.

use std::time::Instant;

use crate::data::{key, value, words};
use crate::harness::{Conn, Server};
use crate::knobs::Knobs;
use crate::lane::{alternate, batches, header, lanes, rate, row, Lane, KEYS};
use crate::machine;
use crate::table::{title, Target};

const SIZE: usize = 100;
const WATCHERS: usize = 100;
const IDLE: usize = 10_000;
/// Milliseconds that a watch waits at most.
const WAIT: &str = "3600000";

/// Prints all of it.
pub fn run(knobs: &Knobs) {
    log(knobs);
    delivery(knobs);
    idle(knobs);
}

/// Writes to two servers of different settings, or with something else that makes them differ. Of two servers the one
/// that starts first is the slower one, so each side is it in half of the rounds.
fn writes(knobs: &Knobs, name: &str, target: Target, start: impl Fn(bool) -> (Server, Vec<Lane>)) {
    let mut rates = [1, 16].map(|depth| (depth, vec![], vec![]));
    for first in [true, false] {
        let (one, other) = (start(first), start(!first));
        let (ours, theirs) = if first { (one, other) } else { (other, one) };
        let (mut here, mut there) = (lanes(&ours.0), lanes(&theirs.0));
        for (depth, a, b) in &mut rates {
            let value = value(SIZE);
            let set = batches(*depth, |lane, n| {
                words(&["MAOS.SET", &key("m", lane * KEYS + n), &value])
            });
            for round in 0..knobs.rounds.div_ceil(2) {
                let mut sides = [(&mut here, &mut *a), (&mut there, &mut *b)];
                if round % 2 == 0 {
                    sides.reverse();
                }
                for (lanes, rates) in sides {
                    rates.push(rate(lanes, &set, *depth, knobs.slice));
                }
            }
        }
    }
    for (depth, a, b) in &rates {
        let name = format!("{name}, P {depth}");
        row(&name, a, b, 1000.0, target);
    }
}

fn log(knobs: &Knobs) {
    title("MAOS.SET of 100 B with the change log on: thousand a second, 50 clients; theirs: with it off");
    header();
    writes(knobs, "nobody watches", Target::AtLeast(0.95), |ours| {
        let setup = machine::server();
        let log = if ours { "16mb" } else { "0" };
        (setup.set("maos.changes-max-bytes", log).start(), vec![])
    });
}

/// A connection for each of so many beginnings of keys that hears what happens to them.
fn subscribe(server: &Server, request: impl Fn(usize) -> Vec<String>) -> Vec<Lane> {
    let one = |n| {
        let mut lane = Lane::new(server);
        lane.send(&Conn::encode(&request(n)));
        lane
    };
    (0..WATCHERS).map(one).collect()
}

fn delivery(knobs: &Knobs) {
    title("One writer, 100 watchers of a prefix each: thousand events a second delivered; theirs: PUBLISH to 100 that PSUBSCRIBE");
    header();
    let server = machine::server().start();
    let value = value(SIZE);
    for depth in [1, 16, 128] {
        let prefix = |n: usize| format!("watched:{n:03}:");
        let all = |command: &str| -> Vec<u8> {
            let request = |n: usize| {
                let key = format!("{}{}", prefix(n % WATCHERS), n / WATCHERS % 8);
                Conn::encode(&words(&[command, &key, &value]))
            };
            (0..WATCHERS * depth).flat_map(request).collect()
        };
        let (set, publish) = (all("MAOS.SET"), all("PUBLISH"));
        let mut writer = Lane::new(&server);
        let ours = |writer: &mut Lane| {
            let from = watch_now(&server);
            let request = |n: usize, cursor: &str| {
                let pattern = format!("{}*", prefix(n));
                words(&["MAOS.WATCH", &pattern, "SINCE", cursor, "BLOCK", WAIT])
            };
            let mut heard = subscribe(&server, |n| request(n, &from));
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < knobs.slice {
                writer.send(&set);
                for (n, lane) in heard.iter_mut().enumerate() {
                    let mut left = depth;
                    while left > 0 {
                        assert_eq!(lane.line(), b"*2");
                        lane.line();
                        let cursor = String::from_utf8_lossy(lane.line()).into_owned();
                        let events = lane.line()[1..].to_vec();
                        let events = String::from_utf8_lossy(&events).parse::<usize>();
                        let events = events.expect("a number");
                        (0..events).for_each(|_| lane.skip());
                        left -= events;
                        lane.send(&Conn::encode(&request(n, &cursor)));
                    }
                }
                (0..WATCHERS * depth).for_each(|_| writer.skip());
                done += WATCHERS * depth;
            }
            done as f64 / start.elapsed().as_secs_f64()
        };
        let theirs = |writer: &mut Lane| {
            let mut heard = subscribe(&server, |n| {
                words(&["PSUBSCRIBE", &format!("{}*", prefix(n))])
            });
            heard.iter_mut().for_each(Lane::skip);
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < knobs.slice {
                writer.send(&publish);
                for lane in &mut heard {
                    (0..depth).for_each(|_| lane.skip());
                }
                (0..WATCHERS * depth).for_each(|_| writer.skip());
                done += WATCHERS * depth;
            }
            done as f64 / start.elapsed().as_secs_f64()
        };
        let rounds = alternate(knobs, |is_ours| match is_ours {
            true => ours(&mut writer),
            false => theirs(&mut writer),
        });
        let (a, b): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        let name = format!("{depth} in a row to each");
        row(&name, &a, &b, 1000.0, Target::AtLeast(1.0));
    }
}

fn watch_now(server: &Server) -> String {
    let reply = server.conn().run("MAOS.WATCH none");
    reply.array()[0].text().to_string()
}

/// Ten thousand who wait; and as many who wait for a list, which shows what the server itself takes for connections
/// that do nothing.
fn idle(knobs: &Knobs) {
    title("MAOS.SET of 100 B while 10,000 watch other keys: thousand a second, 50 clients; theirs: while nobody does");
    header();
    let blpop = |n: usize| words(&["BLPOP", &format!("idle:{n}"), "3600"]);
    let watch = |n: usize| words(&["MAOS.WATCH", &format!("idle:{n}:*"), "BLOCK", WAIT]);
    let start = |wait: Option<&dyn Fn(usize) -> Vec<String>>| {
        let server = machine::server().set("maxclients", "11000").start();
        let mut waiting = vec![];
        if let Some(request) = wait {
            for n in 0..IDLE {
                let mut lane = Lane::new(&server);
                lane.send(&Conn::encode(&request(n)));
                waiting.push(lane);
            }
        }
        let (conn, wanted) = (&mut server.conn(), waiting.len().to_string());
        while conn.info("clients")["blocked_clients"] != wanted {}
        (server, waiting)
    };
    for (name, target, wait) in [
        (
            "10,000 idle watchers",
            Target::AtLeast(0.95),
            &watch as &dyn Fn(usize) -> _,
        ),
        ("10,000 in BLPOP instead", Target::None, &blpop),
    ] {
        writes(knobs, name, target, |ours| start(ours.then_some(wait)));
    }
}
