//! Compare-and-set that succeeds. redis-benchmark cannot follow versions, so this has its own load:
//! one thread, 50 connections, each with its own keys, whose versions it learns from the replies.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::data::{key, load_script, value, words, LUA_CAS, SIZES};
use crate::harness::{Conn, Server};
use crate::knobs::Knobs;
use crate::machine;
use crate::table::{median, size_name, spread, title, Target};

const CONNECTIONS: usize = 50;
const DEPTHS: [(usize, f64); 2] = [(1, 1.3), (16, 2.5)];

/// Prints the ratio of the module's compare-and-set to the one in Lua.
pub fn run(knobs: &Knobs) {
    title("Compare-and-set that succeeds, every key's version followed");
    println!(
        "{:<30} {:>5} {:>3} {:>11} {:>11}  {:<18} target",
        "ours / theirs", "size", "P", "ours k/s", "theirs k/s", "ratio"
    );
    for size in SIZES {
        let server = machine::server().start();
        let sha = load_script(&mut server.conn(), LUA_CAS);
        for (depth, target) in DEPTHS {
            let mut ours = Load::new(&server, knobs, &["MAOS.CAS"], "c", size, depth);
            let mut theirs = Load::new(&server, knobs, &["EVALSHA", &sha, "1"], "h", size, depth);
            report(
                size,
                depth,
                target,
                &alternate(knobs, &mut ours, &mut theirs),
            );
            server.conn().run("FLUSHALL").ok();
        }
    }
}

fn alternate(knobs: &Knobs, ours: &mut Load, theirs: &mut Load) -> Vec<(f64, f64)> {
    let round = |i: usize| {
        if i.is_multiple_of(2) {
            let first = theirs.run(knobs.slice);
            return (ours.run(knobs.slice), first);
        }
        (ours.run(knobs.slice), theirs.run(knobs.slice))
    };
    (0..knobs.rounds).map(round).collect()
}

fn report(size: usize, depth: usize, target: f64, rounds: &[(f64, f64)]) {
    let ratios: Vec<f64> = rounds.iter().map(|(ours, theirs)| ours / theirs).collect();
    let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
    println!(
        "{:<30} {:>5} {:>3} {:>11.1} {:>11.1}  {:<18} {}",
        "MAOS.CAS / Lua on a hash",
        size_name(size),
        depth,
        median(&ours) / 1000.0,
        median(&theirs) / 1000.0,
        spread(&ratios),
        Target::AtLeast(target).judge(median(&ratios)),
    );
}

/// A stream of compare-and-sets over many keys.
struct Load {
    head: Vec<u8>,
    tail: Vec<u8>,
    depth: usize,
    lanes: Vec<Lane>,
}

/// One connection with the keys that only it writes.
struct Lane {
    stream: BufReader<TcpStream>,
    keys: Vec<Key>,
    next: usize,
    line: Vec<u8>,
}

struct Key {
    /// The name as an encoded argument.
    name: Vec<u8>,
    version: u64,
}

impl Load {
    /// Connects, and writes every key once, over version 0: it must not exist.
    fn new(
        server: &Server,
        knobs: &Knobs,
        command: &[&str],
        prefix: &str,
        size: usize,
        depth: usize,
    ) -> Load {
        let arguments = command.len() + 3;
        let head = argument_list(command, arguments);
        let mut tail = Conn::encode(&words(&[&value(size)]));
        tail.drain(..LIST_OF_ONE);
        let lanes = (0..CONNECTIONS)
            .map(|lane| Lane::new(server, knobs, prefix, lane))
            .collect();
        let mut load = Load {
            head,
            tail,
            depth,
            lanes,
        };
        let batches = knobs.keys / CONNECTIONS / depth + 1;
        for _ in 0..batches {
            load.each_lane(Lane::send);
            load.each_lane(Lane::receive);
        }
        load
    }

    /// Successful compare-and-sets a second.
    fn run(&mut self, slice: Duration) -> f64 {
        let start = Instant::now();
        let mut done = 0;
        self.each_lane(Lane::send);
        while start.elapsed() < slice {
            self.each_lane(|lane, shape| {
                lane.receive(shape);
                lane.send(shape);
            });
            done += self.depth * self.lanes.len();
        }
        self.each_lane(Lane::receive);
        done += self.depth * self.lanes.len();
        done as f64 / start.elapsed().as_secs_f64()
    }

    fn each_lane(&mut self, act: impl Fn(&mut Lane, &Shape)) {
        let shape = Shape {
            head: &self.head,
            tail: &self.tail,
            depth: self.depth,
        };
        self.lanes.iter_mut().for_each(|lane| act(lane, &shape));
    }
}

/// What the requests of all lanes have in common: the encoded arguments before the key and after the version.
struct Shape<'a> {
    head: &'a [u8],
    tail: &'a [u8],
    depth: usize,
}

impl Lane {
    fn new(server: &Server, knobs: &Knobs, prefix: &str, lane: usize) -> Lane {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("the server is up");
        stream
            .set_nodelay(true)
            .expect("a socket can be told not to wait");
        let name = |i| Conn::encode(&[key(prefix, i)]).split_off(LIST_OF_ONE);
        let keys = (lane..knobs.keys).step_by(CONNECTIONS);
        Lane {
            stream: BufReader::with_capacity(64 << 10, stream),
            keys: keys
                .map(|i| Key {
                    name: name(i),
                    version: 0,
                })
                .collect(),
            next: 0,
            line: Vec::new(),
        }
    }

    /// Sends a batch. No key is in it twice, since there are more keys than requests.
    fn send(&mut self, shape: &Shape) {
        let mut batch = Vec::with_capacity(shape.depth * (shape.tail.len() + 128));
        for i in 0..shape.depth {
            let key = &self.keys[(self.next + i) % self.keys.len()];
            let version = key.version.to_string();
            batch.extend_from_slice(shape.head);
            batch.extend_from_slice(&key.name);
            batch.extend_from_slice(format!("${}\r\n{version}\r\n", version.len()).as_bytes());
            batch.extend_from_slice(shape.tail);
        }
        self.stream
            .get_mut()
            .write_all(&batch)
            .expect("the server reads");
    }

    /// Reads the replies of a batch, and learns the new versions.
    fn receive(&mut self, shape: &Shape) {
        for _ in 0..shape.depth {
            let version = self.read_applied();
            let at = self.next % self.keys.len();
            self.keys[at].version = version;
            self.next += 1;
        }
    }

    /// The version in the reply `[1, version]`; panics at any other.
    fn read_applied(&mut self) -> u64 {
        self.expect_line(b"*2\r\n");
        self.expect_line(b":1\r\n");
        self.read_line();
        let digits = self
            .line
            .strip_prefix(b":")
            .unwrap_or_default()
            .trim_ascii_end();
        let number = std::str::from_utf8(digits)
            .ok()
            .and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| panic!("not a version: {}", self.line.escape_ascii()))
    }

    fn expect_line(&mut self, expected: &[u8]) {
        self.read_line();
        let found = self.line.escape_ascii();
        assert!(
            self.line == expected,
            "a lost race or a refusal where none can be: {found}"
        );
    }

    fn read_line(&mut self) {
        self.line.clear();
        self.stream
            .read_until(b'\n', &mut self.line)
            .expect("the server answers");
    }
}

/// How many bytes `*1\r\n` takes.
const LIST_OF_ONE: usize = 4;

/// The beginning of a command of so many arguments, of which the first are given.
fn argument_list(first: &[&str], count: usize) -> Vec<u8> {
    let mut bytes = format!("*{count}\r\n").into_bytes();
    for word in first {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}
