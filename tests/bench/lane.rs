//! Connections that one thread drives, so that what it sends is in flight on all of them at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::{Conn, Server};
use crate::knobs::Knobs;
use crate::table::{median, spread, Target};

/// Connections at once.
pub const CLIENTS: usize = 50;
/// Keys that each connection writes in turn.
pub const KEYS: usize = 64;

/// One connection.
pub struct Lane {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Lane {
    /// To a server.
    pub fn new(server: &Server) -> Lane {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("the server is up");
        let set = stream.set_nodelay(true);
        set.expect("a socket can be told not to wait");
        Lane {
            stream: BufReader::with_capacity(16 << 10, stream),
            line: vec![],
        }
    }

    /// Sends requests.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream
            .get_mut()
            .write_all(bytes)
            .expect("the server reads");
    }

    /// The next line of what the server answers, which is no error.
    pub fn line(&mut self) -> &[u8] {
        self.line.clear();
        let read = self.stream.read_until(b'\n', &mut self.line);
        read.expect("the server answers");
        assert_ne!(self.line[0], b'-', "{}", self.line.escape_ascii());
        self.line.trim_ascii_end()
    }

    /// The next reply, a number.
    pub fn number(&mut self) -> u64 {
        let line = self.line();
        let number = line.strip_prefix(b":").map(String::from_utf8_lossy);
        number.and_then(|n| n.parse().ok()).expect("a number")
    }

    /// Reads one reply, whatever it is.
    pub fn skip(&mut self) {
        let mut left = 1_u64;
        while left > 0 {
            left -= 1;
            let (kind, len) = {
                let line = self.line();
                let len = String::from_utf8_lossy(&line[1..]).parse::<i64>();
                (line[0], len.unwrap_or(0).max(0).unsigned_abs())
            };
            match kind {
                b'*' => left += len,
                b'$' if self.line != b"$-1\r\n" => {
                    let bytes = std::io::copy(
                        &mut self.stream.by_ref().take(len + 2),
                        &mut std::io::sink(),
                    );
                    assert_eq!(bytes.expect("the server answers"), len + 2);
                }
                _ => {}
            }
        }
    }
}

/// Both in every round, each going first in every other one: (ours, theirs).
pub fn alternate<T>(knobs: &Knobs, mut run: impl FnMut(bool) -> T) -> Vec<(T, T)> {
    let round = |i: usize| {
        if i.is_multiple_of(2) {
            let theirs = run(false);
            return (run(true), theirs);
        }
        (run(true), run(false))
    };
    (0..knobs.rounds).map(round).collect()
}

/// Prints a row: figures in this unit, and the ratio.
pub fn row(name: &str, ours: &[f64], theirs: &[f64], unit: f64, target: Target) {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(o, t)| o / t).collect();
    println!(
        "{name:<44} {:>11.1} {:>11.1}  {:<22} {}",
        median(ours) / unit,
        median(theirs) / unit,
        spread(&ratios),
        target.judge(median(&ratios)),
    );
}

/// Prints what the columns are.
pub fn header() {
    println!(
        "{:<44} {:>11} {:>11}  {:<22} target",
        "", "ours", "theirs", "ratio"
    );
}

/// How many requests a second all connections had answered.
pub fn rate(lanes: &mut [Lane], batches: &[Vec<Vec<u8>>], depth: usize, slice: Duration) -> f64 {
    let start = Instant::now();
    let (mut done, mut turn) = (0, 0);
    while start.elapsed() < slice {
        for (lane, batches) in lanes.iter_mut().zip(batches) {
            lane.send(&batches[turn % batches.len()]);
        }
        for lane in lanes.iter_mut() {
            (0..depth).for_each(|_| lane.skip());
        }
        done += lanes.len() * depth;
        turn += 1;
    }
    done as f64 / start.elapsed().as_secs_f64()
}

/// For each connection what it sends in turn, `depth` requests at once.
pub fn batches(depth: usize, of: impl Fn(usize, usize) -> Vec<String>) -> Vec<Vec<Vec<u8>>> {
    let lane = |lane: usize| {
        let requests: Vec<Vec<u8>> = (0..KEYS).map(|n| Conn::encode(&of(lane, n))).collect();
        requests.chunks(depth).map(|some| some.concat()).collect()
    };
    (0..CLIENTS).map(lane).collect()
}

/// Connections to a server.
pub fn lanes(server: &Server) -> Vec<Lane> {
    (0..CLIENTS).map(|_| Lane::new(server)).collect()
}
