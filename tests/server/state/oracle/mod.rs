//! The oracle: random requests go to a live server and to the model in memory, and both must answer
//! the same and hold the same.
//!
//! The server chooses the stamps. The model is told each one by the clock it is given: the moment that
//! the server's reply names. All else it must find by itself.
//!
//! A failure prints the seed. `MAOS_TEST_SEED` runs it again; `MAOS_TEST_REQUESTS` says how many
//! requests go each way.

mod digest;
mod rounds;
mod ways;

use std::collections::{BTreeSet, VecDeque};
use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use maos_core::generate::Generator;
use maos_core::model::Model;
use maos_core::transcript;
use maos_core::wire::reference::COMMANDS;
use maos_core::wire::{CommandSpec, Value};

use super::metric;
use crate::harness::*;

type Words = Vec<Vec<u8>>;

/// The node's own work goes on beside the traffic.
const BUSY: (&str, &str) = ("maos.background-effort-us", "20000");

/// Settings under which a few thousand requests meet every limit.
const LIMITS: &[(&str, &str)] = &[
    ("maos.value-max-bytes", "4000"),
    ("maos.history-max-versions", "20"),
];

/// How many requests are sent each way.
pub fn requests() -> usize {
    number("MAOS_TEST_REQUESTS").map_or(4000, |n| usize::try_from(n).expect("it fits"))
}

/// The number that a variable of the environment holds.
pub fn number(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {value}")),
    )
}

/// The wall clock.
pub fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_micros()).expect("before 500000")
}

/// Several requests that are run as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// One after the other.
    Single,
    /// Sent at once, answered one by one.
    Pipeline,
    /// MULTI and EXEC.
    Multi,
    /// A script.
    Script,
    /// A function.
    Function,
}

/// Runs the requests in ARGV: for each the number of its words, and these.
const BODY: &str = "
    local out, at = {}, 1
    while at <= #ARGV do
        local n = tonumber(ARGV[at])
        out[#out + 1] = redis.pcall(unpack(ARGV, at + 1, at + n))
        at = at + n + 1
    end
    return out
";

/// The model, and what it is asked.
pub struct Oracle {
    /// What the server must hold.
    pub model: Model,
    /// What makes the requests.
    pub generator: Generator,
    /// Whether `bytes` of a FULL reply is compared: not where a node has loaded or compressed what it
    /// holds, for then it holds the same in other room.
    exact_bytes: bool,
    /// Whether the connection speaks RESP3.
    resp3: bool,
    /// Whether the node trims and compresses in a pass of its own, at a time of its own.
    busy: bool,
    /// Whether partitions may have their keys expire within moments: where nothing is ever sent in a batch.
    brief_keys: bool,
    /// Every key that has held a record, or might have.
    named: BTreeSet<Vec<u8>>,
    seed: u64,
    asked: usize,
    recent: VecDeque<String>,
}

impl Oracle {
    /// An oracle of a new seed, or of `MAOS_TEST_SEED`; prints which when it fails.
    fn new() -> Oracle {
        let seed = number("MAOS_TEST_SEED").unwrap_or_else(now_us);
        let mut model = Model::at(now_us());
        model.limits.value_max = 4000;
        model.limits.history_versions = 20;
        let mut generator = Generator::new(seed);
        generator.past = false;
        Oracle {
            model,
            exact_bytes: false,
            resp3: false,
            busy: false,
            brief_keys: false,
            named: generator.keys.iter().cloned().collect(),
            generator,
            seed,
            asked: 0,
            recent: VecDeque::new(),
        }
    }

    /// A server and its oracle. The node does nothing by itself, so that all it holds is foreseen.
    pub fn start(lines: &[(&str, &str)]) -> (Server, Oracle) {
        let quiet = ("maos.background-effort-us", "0");
        let (server, mut oracle) = Oracle::beside(&[lines, &[quiet]]);
        oracle.exact_bytes = true;
        (server, oracle)
    }

    /// A server and its oracle. The node compresses what it holds beside the traffic: how many bytes
    /// that takes is not foreseen, and limits no history.
    pub fn busy(lines: &[(&str, &str)]) -> (Server, Oracle) {
        let (server, mut oracle) = Oracle::beside(&[lines, &[BUSY]]);
        oracle.busy = true;
        (server, oracle)
    }

    fn beside(lines: &[&[(&str, &str)]]) -> (Server, Oracle) {
        let server = Setup::new().with(LIMITS).with(&lines.concat()).start();
        let mut oracle = Oracle::new();
        let other = b"{o}:other".to_vec();
        cmd!(server.conn(), "SET", other, "plain").ok();
        oracle.generator.keys.push(other.clone());
        oracle.model.foreign.insert(other);
        (server, oracle)
    }

    /// How many requests were compared.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Makes the next request: mostly one of ours, at times a command of the server's own on our keys.
    pub fn next(&mut self) -> Words {
        self.model.now_us = now_us().max(self.model.now_us);
        if self.generator.rng.chance(5) {
            return self.plain();
        }
        loop {
            let request = self.generator.request(&self.model);
            // What the pass charges, and when, is not foreseen; nor is what an audit finds after a RENAME.
            let of_partitions = is_partition(&request);
            let audits = request
                .iter()
                .any(|word| word.eq_ignore_ascii_case(b"AUDIT"));
            if !of_partitions || !(self.busy || audits) {
                return request;
            }
        }
    }

    /// The next request to be sent in this way. A key that expires at once is in its partition until somebody looks,
    /// and in the midst of a batch nobody does.
    fn next_in(&mut self, way: Way) -> Words {
        loop {
            let request = self.next();
            // A partition that has its keys expire does so in batches to come.
            if !self.brief_keys
                && any_option(&request, |name, n| name == b"TTL" && 0 < n && n < 60_000)
            {
                continue;
            }
            if way == Way::Single || self.busy || !expires_soon(&request) {
                return request;
            }
        }
    }

    fn plain(&mut self) -> Words {
        let g = &mut self.generator;
        let ours: Vec<_> = g
            .keys
            .iter()
            .filter(|k| !self.model.foreign.contains(*k) && !self.model.defined().contains_key(*k))
            .collect();
        let (key, to) = ((*g.rng.pick(&ours)).clone(), (*g.rng.pick(&ours)).clone());
        // When the partition of a key hears that it goes by another name is not foreseen.
        let held = self.model.keys().get(&key);
        let renames = held.is_none_or(|h| !h.record.member().place().is_some());
        let at = (now_us() / 1000 + 86_400_000 + g.rng.number() % 1_000_000_000).to_string();
        match g.rng.below(6) {
            0 => vec![b"DEL".to_vec(), key],
            1 => vec![b"UNLINK".to_vec(), key],
            2 => vec![b"PERSIST".to_vec(), key],
            3 => vec![b"PEXPIREAT".to_vec(), key, at.into_bytes()],
            4 if key != to => vec![b"COPY".to_vec(), key, to, b"REPLACE".to_vec()],
            _ if renames => vec![b"RENAME".to_vec(), key, to],
            _ => vec![b"PERSIST".to_vec(), key],
        }
    }

    /// Other settings, and another user.
    #[track_caller]
    pub fn shake(&mut self, conn: &mut Conn) {
        let (rng, limits) = (&mut self.generator.rng, &mut self.model.limits);
        if !self.busy {
            limits.history_versions = *rng.pick(&[1, 2, 5, 20, 20, 20]);
            limits.history_bytes = *rng.pick(&[0, 300, 20_000, 20_000]);
        }
        limits.value_max = *rng.pick(&[100, 4000, 4000]);
        limits.tombstone_ms = *rng.pick(&[0, 86_400_000]);
        let tombstone_s = limits.tombstone_ms / 1000;
        for (name, value) in [
            (
                "maos.history-max-versions",
                limits.history_versions.to_string(),
            ),
            ("maos.history-max-bytes", limits.history_bytes.to_string()),
            ("maos.value-max-bytes", limits.value_max.to_string()),
            ("maos.tombstone-ttl", tombstone_s.to_string()),
        ] {
            cmd!(conn, "CONFIG", "SET", name, value).ok();
        }
        let user = *rng.pick(&["default", "planner", "caf\u{e9}/\"1\""]);
        if user != "default" {
            cmd!(conn, "ACL", "SETUSER", user, "on", "nopass", "~*", "&*", "+@all").ok();
        }
        cmd!(conn, "AUTH", user, "any").ok();
        self.model.author = user.as_bytes().to_vec();
    }

    /// Sends so many requests in this way and compares every reply. Settings and user change at times.
    #[track_caller]
    pub fn converse(&mut self, conn: &mut Conn, way: Way, requests: usize) {
        let end = self.asked + requests;
        self.shake(conn);
        while self.asked < end {
            if self.generator.rng.below(50) == 0 {
                self.shake(conn);
            }
            // What may expire soon is waited for, which cannot be done in the midst of a batch.
            self.generator.soon = way == Way::Single;
            self.generator.past = way == Way::Single || self.busy;
            // And where the pass lets late holders go is not foreseen.
            self.generator.brief = way == Way::Single && !self.busy;
            let size = if way == Way::Single {
                1
            } else {
                1 + self.generator.rng.below(12)
            };
            let mut batch: Vec<Words> = Vec::new();
            while batch.len() < size {
                let request = self.next_in(way);
                // The key may have become a partition's earlier in the batch, and those we leave to our own commands.
                let ours = spec_of(&request).is_some();
                if ours || !batch.iter().any(|earlier| is_partition(earlier)) {
                    batch.push(request);
                }
            }
            let before: BTreeSet<_> = self.model.keys().keys().cloned().collect();
            self.batch(conn, way, &batch);
            self.settle();
            // A key that has expired is in its partition until somebody looks.
            for key in before.iter().chain(&self.named) {
                if way == Way::Single && !self.busy && !self.model.keys().contains_key(key) {
                    cmd!(conn, "EXISTS", key).int();
                }
            }
        }
    }

    /// Looks at the keys that are not there any more: one that has expired is in its partition until somebody does.
    pub fn look(&self, conn: &mut Conn) {
        for key in &self.generator.keys {
            if !self.model.keys().contains_key(key) {
                cmd!(conn, "EXISTS", key).int();
            }
        }
    }

    /// Sends a batch and compares every reply.
    #[track_caller]
    pub fn batch(&mut self, conn: &mut Conn, way: Way, batch: &[Words]) {
        let sent = now_us();
        let replies = match way {
            Way::Single | Way::Pipeline => piped(conn, batch),
            Way::Multi => match self.transaction(conn, batch) {
                Some(replies) => replies,
                None => return,
            },
            Way::Script => array(conn.cmd(&as_script("EVAL", BODY, batch))),
            Way::Function => array(conn.cmd(&as_script("FCALL", "oracle", batch))),
        };
        assert_eq!(replies.len(), batch.len(), "{}", self.told(way, batch));
        let span = (sent, now_us());
        for (request, reply) in batch.iter().zip(replies) {
            self.compare(request, &reply, span, way);
        }
    }

    /// MULTI, the batch, EXEC. Nothing if it was refused as a whole, which it must be if and only if a
    /// request has too few words.
    #[track_caller]
    fn transaction(&mut self, conn: &mut Conn, batch: &[Words]) -> Option<Vec<Reply>> {
        let mut lines = vec![vec![b"MULTI".to_vec()]];
        lines.extend_from_slice(batch);
        lines.push(vec![b"EXEC".to_vec()]);
        let mut replies = piped(conn, &lines);
        let outcome = replies.pop().expect("EXEC has a reply");
        let queued = replies.iter().skip(1);
        for (request, reply) in batch.iter().zip(queued) {
            let taken = !reply.is_err();
            assert_eq!(
                taken,
                enough_words(request),
                "{}: {reply}",
                self.told(Way::Multi, batch)
            );
        }
        if batch.iter().all(|request| enough_words(request)) {
            return Some(array(outcome));
        }
        assert_eq!(outcome.code(), "EXECABORT");
        None
    }

    /// The model's answer to a request that the server has answered, and whether they agree.
    #[track_caller]
    pub fn compare(&mut self, request: &[Vec<u8>], live: &Reply, span: (u64, u64), way: Way) {
        let live = value(live);
        self.asked += 1;
        let shown = show(request);
        self.recent
            .push_back(format!("{shown} -> {}", show_outcome(&live)));
        if self.recent.len() > 12 {
            self.recent.pop_front();
        }
        self.model.now_us = self.moment(request, &live, span);
        let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        let expected = self.model.run(&line).map_err(|refusal| refusal.to_string());
        for message in self.model.sent.drain(..) {
            self.named.extend(message.into_iter().skip(1).step_by(2));
        }
        let like = Like {
            // In RESP2, and out of a script always, a map is a flat array.
            flat: !self.resp3 || matches!(way, Way::Script | Way::Function),
            late_ms: i64::try_from((span.1.saturating_sub(span.0)) / 1000).expect("it fits") + 2,
            rounded: matches!(way, Way::Script | Way::Function),
            exact_bytes: self.exact_bytes,
        };
        let same = match (&expected, &live) {
            // What is told of keys that expire meanwhile, and when, is not foreseen; how that is asked for is.
            _ if is_watch(request) => {
                let refused = |of: &Result<Value, String>| {
                    let lost =
                        |e: &&String| e.starts_with("DIVERGED") || e.starts_with("COMPACTED");
                    of.as_ref().err().filter(|e| !lost(e)).cloned()
                };
                match (refused(&expected), refused(&live)) {
                    (Some(expected), Some(live)) => like.same_error(&expected, &live),
                    (expected, live) => expected == live,
                }
            }
            // Where the server does not say what it renames, all keys are looked through after it.
            (Ok(_), Err(live)) if is_range(request) && live.starts_with("BUSY the index") => true,
            (Ok(expected), Ok(live)) => like.same(expected, live),
            (Err(expected), Err(live)) => like.same_error(expected, live),
            _ => false,
        };
        assert!(
            same,
            "the model says {}, the server {}\n{}",
            show_outcome(&expected),
            show_outcome(&live),
            self.told(way, &[request.to_vec()])
        );
    }

    /// The moment that the server has chosen, or about when it answered.
    fn moment(&self, request: &[Vec<u8>], live: &Result<Value, String>, span: (u64, u64)) -> u64 {
        let last = self.model.clock.last().0;
        let stamp = chosen(request, live).filter(|stamp| *stamp > last);
        let inside = |ms: &u64| (span.0 / 1000..=span.1 / 1000).contains(ms);
        match leased(request, live).filter(inside) {
            Some(ms) if stamp.is_none_or(|s| s / 1000 != ms) => ms * 1000,
            _ => stamp.unwrap_or(span.0),
        }
    }

    /// What is needed to do it again.
    fn told(&self, way: Way, batch: &[Words]) -> String {
        let batch: Vec<_> = batch.iter().map(|request| show(request)).collect();
        let recent: Vec<_> = self.recent.iter().map(String::as_str).collect();
        format!(
            "MAOS_TEST_SEED={} request {} ({way:?}): {}\nbefore it:\n  {}",
            self.seed,
            self.asked,
            batch.join("; "),
            recent.join("\n  ")
        )
    }

    /// Waits until what expires within moments has expired, so that nobody can be of two minds about it.
    pub fn settle(&mut self) {
        let now_ms = now_us() / 1000;
        let held = self.model.keys().values();
        let soon = held.flat_map(|held| {
            let lease = held.record.leased_until_ms();
            [held.expires_ms.unwrap_or(0), lease]
        });
        if let Some(last) = soon
            .filter(|at| (now_ms..now_ms + 10_000).contains(at))
            .max()
        {
            eventually(PATIENCE, "a key expires", || now_us() / 1000 > last);
        }
        self.model.now_us = now_us().max(self.model.now_us);
        self.model.expire();
    }

    /// Compares what a server holds with the model, key by key: digest and expiry.
    #[track_caller]
    pub fn agree(&mut self, conn: &mut Conn, what: &str) {
        self.agree_under(conn, what, |key| key.to_vec());
    }

    /// The same, of keys that go by other names there.
    #[track_caller]
    pub fn agree_under(&mut self, conn: &mut Conn, what: &str, name: impl Fn(&[u8]) -> Vec<u8>) {
        self.settle();
        // Looked at, too, so that the server lets go what has expired: DEBUG RELOAD drops such keys and
        // tells neither AOF nor replicas.
        for key in &self.named {
            if !self.model.keys().contains_key(key) && !self.model.defined().contains_key(key) {
                let there = cmd!(conn, "EXISTS", name(key)).int();
                assert_eq!(
                    there,
                    0,
                    "{what}: {} is there\n{}",
                    key.escape_ascii(),
                    self.told(Way::Single, &[])
                );
            }
        }
        for (key, held) in self.model.keys() {
            let there = name(key);
            let at = held
                .expires_ms
                .map_or(-1, |ms| i64::try_from(ms).expect("it fits"));
            assert_eq!(
                (
                    super::super::harness::digest(conn, &there),
                    cmd!(conn, "PEXPIRETIME", there).int()
                ),
                (digest::of(&self.model, held), at),
                "{what}: {}\n{}",
                key.escape_ascii(),
                self.told(Way::Single, &[])
            );
        }
        for (key, defined) in self.model.defined() {
            let there = super::super::harness::digest(conn, name(key));
            let (wanted, told) = (digest::of_partition(defined), self.told(Way::Single, &[]));
            assert_eq!(there, wanted, "{what}: {}\n{told}", key.escape_ascii());
            // What is charged is what is there; a node that compresses holds it in fewer bytes.
            let info = cmd!(conn, "MAOS.PARTITION", "INFO", &name(key));
            let (used, keys) = (info.field("used-here").int(), info.field("keys-here").int());
            let usage = self.model.usage(key);
            assert_eq!(
                keys,
                usage.keys as i64,
                "{what}: {}\n{told}",
                key.escape_ascii()
            );
            assert!(
                used <= usage.bytes as i64,
                "{what}: {used} {usage:?}\n{told}"
            );
        }
        assert_eq!(metric(conn, "damaged"), 0, "{what}");
        assert_eq!(metric(conn, "panics"), 0, "{what}");
    }
}

/// How replies are to be alike.
struct Like {
    flat: bool,
    late_ms: i64,
    rounded: bool,
    exact_bytes: bool,
}

impl Like {
    /// The server counts words itself, and words that error in its own way; the rest of a lease is told later
    /// there.
    fn same_error(&self, expected: &str, live: &str) -> bool {
        let few = |line: &str| {
            line.to_ascii_lowercase()
                .starts_with("err wrong number of arg")
        };
        let rest = |line: &str| {
            let (before, after) = line.strip_prefix("LOCKED ")?.rsplit_once(" ms more")?;
            let (before, ms) = before.rsplit_once(' ')?;
            Some((before.to_owned(), ms.parse::<i64>().ok()?, after.to_owned()))
        };
        match (rest(expected), rest(live)) {
            (Some(a), Some(b)) => {
                (a.0, a.2) == (b.0, b.2) && (a.1 - self.late_ms..=a.1 + 2).contains(&b.1)
            }
            _ => expected == live || (few(expected) && few(live)),
        }
    }

    fn same(&self, expected: &Value, live: &Value) -> bool {
        match self.flat {
            true => self.alike(&expected.clone().flat(), live),
            false => self.alike(expected, live),
        }
    }

    fn alike(&self, expected: &Value, live: &Value) -> bool {
        match (expected, live) {
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len()
                    && (0..a.len()).all(|n| {
                        let name = n.checked_sub(1).map(|before| &a[before]);
                        self.alike_field(name, &a[n], &b[n])
                    })
            }
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).all(|((name, a), (other, b))| {
                        name == other && self.alike_field(Some(name), a, b)
                    })
            }
            _ => expected == live,
        }
    }

    fn alike_field(&self, name: Option<&Value>, expected: &Value, live: &Value) -> bool {
        match (name, expected, live) {
            (Some(Value::Bulk(name)), Value::Int(a), Value::Int(b)) if name == b"ttl-ms" => {
                // Time goes by between the request and the look at the clock; a script's numbers are
                // doubles.
                let rounding = if self.rounded { a >> 52 } else { 0 };
                match *a {
                    -1 => *b == -1,
                    a => (a - self.late_ms - rounding..=a + 2 + rounding).contains(b),
                }
            }
            // Of the node, and since it was started.
            (Some(Value::Bulk(name)), _, _)
                if [&b"high-water"[..], b"refused", b"evicted", b"audit"].contains(&&name[..]) =>
            {
                true
            }
            (Some(Value::Bulk(name)), Value::Int(_), Value::Int(b)) if name == b"bytes" => {
                (*b > 0 && !self.exact_bytes) || expected == live
            }
            _ => self.alike(expected, live),
        }
    }
}

fn piped(conn: &mut Conn, lines: &[Words]) -> Vec<Reply> {
    let bytes: Vec<u8> = lines.iter().flat_map(|line| Conn::encode(line)).collect();
    conn.send_raw(&bytes);
    lines.iter().map(|_| conn.recv()).collect()
}

#[track_caller]
fn array(reply: Reply) -> Vec<Reply> {
    match reply {
        Reply::Array(items) => items,
        other => panic!("an array was expected, not: {other}"),
    }
}

/// EVAL or FCALL of the script that runs a batch.
fn as_script(command: &str, which: &str, batch: &[Words]) -> Words {
    let mut words: Words = vec![command.into(), which.into(), b"1".to_vec(), b"{o}".to_vec()];
    for request in batch {
        words.push(request.len().to_string().into_bytes());
        words.extend_from_slice(request);
    }
    words
}

/// Loads the same script as a function; false where the server has none.
pub fn load_function(conn: &mut Conn) -> bool {
    let library = format!(
        "#!lua name=oracle\nredis.register_function('oracle', function(KEYS, ARGV) {BODY} end)"
    );
    !cmd!(conn, "FUNCTION", "LOAD", library).is_err()
}

fn is_watch(request: &[Vec<u8>]) -> bool {
    request[0].eq_ignore_ascii_case(b"MAOS.WATCH")
}

fn is_range(request: &[Vec<u8>]) -> bool {
    request[0].eq_ignore_ascii_case(b"MAOS.RANGE")
}

fn is_partition(request: &[Vec<u8>]) -> bool {
    request[0].eq_ignore_ascii_case(b"MAOS.PARTITION")
}

/// Whether some words of a request would have a key expire within a minute, or before now.
fn expires_soon(request: &[Vec<u8>]) -> bool {
    let now_ms = i128::from(now_us() / 1000);
    any_option(request, |name, n| match name {
        b"PX" => n < 60_000,
        b"EX" => n < 60,
        b"PXAT" => n < now_ms + 60_000,
        b"EXAT" => n < now_ms / 1000 + 60,
        _ => false,
    })
}

/// Whether this is so of some word in capitals and the number after it.
fn any_option(request: &[Vec<u8>], is: impl Fn(&[u8], i128) -> bool) -> bool {
    request.windows(2).any(|pair| {
        let number = std::str::from_utf8(&pair[1]).ok();
        let number = number.and_then(|n| n.parse().ok());
        number.is_some_and(|n| is(&pair[0].to_ascii_uppercase(), n))
    })
}

fn spec_of(request: &[Vec<u8>]) -> Option<&'static CommandSpec> {
    let is = |at: usize, name: &str| {
        let word = request.get(at);
        word.is_some_and(|w| w.eq_ignore_ascii_case(name.as_bytes()))
    };
    COMMANDS.iter().copied().find(|spec| {
        let (command, own) = spec.names();
        is(0, command) && own.is_none_or(|own| is(1, own))
    })
}

/// Whether the server's own count of words lets a request pass.
fn enough_words(request: &[Vec<u8>]) -> bool {
    let arity = spec_of(request).map_or(-1, |spec| spec.arity);
    let (given, wanted) = (request.len(), arity.unsigned_abs() as usize);
    given == wanted || (arity < 0 && given > wanted)
}

/// The stamp of a write that the server says it has made.
fn chosen(request: &[Vec<u8>], live: &Result<Value, String>) -> Option<u64> {
    spec_of(request).filter(|spec| spec.is_write())?;
    let stamp = match live.as_ref().ok()? {
        Value::Int(stamp) => *stamp,
        Value::Array(items) => match &items[..] {
            [Value::Int(1), Value::Int(stamp)] => *stamp,
            // MAOS.MERGE; what is kept stands one above what it was kept from.
            [Value::Int(1), Value::Int(stamp), Value::Bulk(how)] => {
                stamp - i64::from(how == b"kept")
            }
            // MAOS.TXN
            [Value::Int(_), Value::Int(stamp), Value::Array(_)] => *stamp,
            // MAOS.INCRBY
            [Value::Int(stamp), Value::Bulk(_)] => *stamp,
            [Value::Int(token), Value::Int(_)] => *token,
            [Value::Array(tokens), Value::Int(_)] => {
                let token = |t: &Value| match t {
                    Value::Int(token) => Some(*token),
                    _ => None,
                };
                tokens.iter().filter_map(token).max()?
            }
            _ => return None,
        },
        _ => return None,
    };
    u64::try_from(stamp).ok()
}

/// When the server granted or renewed a lease, in milliseconds: its end less its length.
fn leased(request: &[Vec<u8>], live: &Result<Value, String>) -> Option<u64> {
    let spec = spec_of(request)?;
    let words: Vec<&[u8]> = request.iter().skip(1).map(Vec::as_slice).collect();
    let ttl = match spec.name {
        "MAOS.LOCK" | "MAOS.RENEW" => words.get(2)?,
        "MAOS.MLOCK" => words.get(spec.keys.positions(&words).last()? + 2)?,
        _ => return None,
    };
    let ttl: u64 = std::str::from_utf8(ttl).ok()?.parse().ok()?;
    let ends = match live.as_ref().ok()? {
        Value::Int(ends) => *ends,
        Value::Array(items) => match items.last()? {
            Value::Int(ends) => *ends,
            _ => return None,
        },
        _ => return None,
    };
    u64::try_from(ends).ok()?.checked_sub(ttl)
}

/// A reply as the model would give it.
pub fn value(reply: &Reply) -> Result<Value, String> {
    Ok(match reply {
        Reply::Nil => Value::Null,
        Reply::Int(n) => Value::Int(*n),
        Reply::Bulk(b) => Value::Bulk(b.clone()),
        Reply::Simple(text) => Value::Bulk(text.clone().into_bytes()),
        Reply::Error(line) => return Err(line.clone()),
        Reply::Array(items) => Value::Array(items.iter().map(value).collect::<Result<_, _>>()?),
        Reply::Map(pairs) => {
            let pair = |(k, v): &(Reply, Reply)| Ok::<_, String>((value(k)?, value(v)?));
            Value::Map(pairs.iter().map(pair).collect::<Result<_, _>>()?)
        }
        other => panic!("no reply of ours has this shape: {other}"),
    })
}

fn show(request: &[Vec<u8>]) -> String {
    let word = |word: &Vec<u8>| match word.len() {
        0..=80 => format!("'{}'", word.escape_ascii()),
        len => format!("'{}'... ({len} bytes)", word[..40].escape_ascii()),
    };
    request.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn show_outcome(outcome: &Result<Value, String>) -> String {
    let text = transcript::show(outcome);
    let end = text
        .char_indices()
        .nth(600)
        .map_or(text.len(), |(at, _)| at);
    text[..end].to_string()
}
