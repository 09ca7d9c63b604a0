//! Clients of one key, who write down what they see.

use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use super::{Did, Op, Random, NEVER};
use crate::harness::*;

/// What the clients do.
#[derive(Clone, Copy)]
pub struct Load {
    /// How many there are.
    pub clients: u64,
    /// How many operations they make together.
    pub ops: u64,
    /// How many of a thousand rounds end with a connection that is cut before all replies are there.
    pub cuts: u64,
    /// Pipelines only, or MULTI and Lua too.
    pub plain: bool,
}

/// What they all share.
struct Shared {
    load: Load,
    key: String,
    port: u16,
    start: Instant,
    made: AtomicU64,
    values: AtomicU64,
    /// A version that was current not long ago.
    recent: AtomicI64,
}

/// One command that is sent.
#[derive(Clone, Copy)]
pub enum Ask {
    /// A read.
    Get,
    /// A plain write.
    Set(u64),
    /// A compare-and-set over a version.
    Cas(i64, u64),
    /// The same, said otherwise.
    SetIf(i64, u64),
    /// A deletion.
    Del,
    /// A deletion of a version.
    DelIf(i64),
}

/// Runs the clients, and `meanwhile` beside them until they are done (it is told whether they are).
pub fn run(port: u16, key: &str, load: Load, meanwhile: impl FnOnce(&dyn Fn() -> bool)) -> Vec<Op> {
    let shared = Shared {
        load,
        key: key.into(),
        port,
        start: Instant::now(),
        made: AtomicU64::new(0),
        values: AtomicU64::new(0),
        recent: AtomicI64::new(0),
    };
    thread::scope(|scope| {
        let shared = &shared;
        let clients: Vec<_> = (0..load.clients)
            .map(|n| scope.spawn(move || shared.client(n)))
            .collect();
        meanwhile(&|| clients.iter().all(|c| c.is_finished()));
        let logs = clients.into_iter().map(|c| c.join().expect("a client"));
        logs.flatten().collect()
    })
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(NEVER - 1)
    }

    fn client(&self, n: u64) -> Vec<Op> {
        let random = &mut Random(n * 7_919 + 13);
        let mut log = vec![];
        let mut conn = Conn::open(self.port);
        while self.made.load(Relaxed) < self.load.ops {
            let cut = random.below(1000) < self.load.cuts;
            if self.round(&mut conn, random, cut, &mut log).is_err() || cut {
                conn = Conn::open(self.port);
            }
        }
        log
    }

    fn ask(&self, random: &mut Random) -> Ask {
        let value = self.values.fetch_add(1, Relaxed) + 1;
        Ask::some(random, self.recent.load(Relaxed), value)
    }

    /// Several commands in one go, in one of the ways a client has, and their replies. With `cut` the
    /// connection ends before all of them are read.
    fn round(
        &self,
        conn: &mut Conn,
        random: &mut Random,
        cut: bool,
        log: &mut Vec<Op>,
    ) -> io::Result<()> {
        // Who asks for one thing at a time knows best what is there.
        let depth = match random.below(2) {
            0 => 1,
            _ => 1 + random.below(16),
        };
        let asks: Vec<Ask> = (0..depth).map(|_| self.ask(random)).collect();
        self.made.fetch_add(asks.len() as u64, Relaxed);
        let way = if self.load.plain { 9 } else { random.below(10) };
        let mut bytes = vec![];
        if way == 0 {
            bytes.extend(Conn::encode(&["MULTI"]));
        }
        for ask in &asks {
            let mut words = ask.words(&self.key);
            if way == 1 {
                let mut lua = vec!["EVAL".into(), "return redis.call(unpack(ARGV))".into()];
                lua.extend(["1".into(), self.key.clone()]);
                lua.append(&mut words);
                words = lua;
            }
            bytes.extend(Conn::encode(&words));
        }
        if way == 0 {
            bytes.extend(Conn::encode(&["EXEC"]));
        }
        let call = self.now();
        let mut left = asks.iter();
        let outcome = self.send_and_read(conn, &bytes, call, way == 0, cut, random, &mut left, log);
        // What has no reply may have happened.
        log.extend(left.filter_map(|ask| ask.unknown(call)));
        outcome
    }

    #[allow(clippy::too_many_arguments)]
    fn send_and_read<'a>(
        &self,
        conn: &mut Conn,
        bytes: &[u8],
        call: u64,
        multi: bool,
        cut: bool,
        random: &mut Random,
        left: &mut (impl Iterator<Item = &'a Ask> + Clone),
        log: &mut Vec<Op>,
    ) -> io::Result<()> {
        conn.try_send_raw(bytes)?;
        let waiting = left.clone().count() as u64;
        let read = if cut {
            random.below(waiting + 1)
        } else {
            waiting
        };
        if !multi {
            for _ in 0..read {
                let reply = conn.try_recv()?;
                let Some(ask) = left.next() else { break };
                self.note(*ask, &reply, call, log);
            }
            return Ok(());
        }
        if cut {
            return Ok(());
        }
        for _ in 0..=waiting {
            conn.try_recv()?;
        }
        let all = conn.try_recv()?;
        for reply in all.array() {
            let Some(ask) = left.next() else { break };
            self.note(*ask, reply, call, log);
        }
        Ok(())
    }

    /// Writes down what a reply says.
    fn note(&self, ask: Ask, reply: &Reply, call: u64, log: &mut Vec<Op>) {
        let did = ask.did(reply);
        if let Some(version) = did.version() {
            self.recent.fetch_max(version, Relaxed);
        }
        log.push(Op {
            call,
            ret: self.now(),
            did,
        });
    }
}

impl Did {
    /// The version that was written or seen.
    pub fn version(&self) -> Option<i64> {
        match *self {
            Did::Wrote { version, .. }
            | Did::Saw {
                what: Some((version, _)),
                ..
            } => Some(version),
            _ => None,
        }
    }
}

impl Ask {
    /// Some command of a client who has seen `recent`; `value` is one that nobody else writes.
    pub fn some(random: &mut Random, recent: i64, value: u64) -> Ask {
        let over = match random.below(10) {
            0 => 0,
            1 => (recent - 1).max(0),
            _ => recent,
        };
        match random.below(100) {
            0..30 => Ask::Get,
            30..40 => Ask::Set(value),
            40..85 => Ask::Cas(over, value),
            85..92 => Ask::SetIf(over, value),
            92..96 => Ask::DelIf(over),
            _ => Ask::Del,
        }
    }

    /// The command.
    pub fn words(self, key: &str) -> Vec<String> {
        let mut words = match self {
            Ask::Get => vec!["MAOS.GET".into(), "WITHVERSION".into()],
            Ask::Set(value) => vec!["MAOS.SET".into(), value.to_string()],
            Ask::Cas(over, value) => vec!["MAOS.CAS".into(), over.to_string(), value.to_string()],
            Ask::SetIf(over, value) => vec![
                "MAOS.SET".into(),
                value.to_string(),
                "IFVERSION".into(),
                over.to_string(),
            ],
            Ask::Del => vec!["MAOS.DEL".into()],
            Ask::DelIf(over) => vec!["MAOS.DEL".into(), "IFVERSION".into(), over.to_string()],
        };
        words.insert(1, key.to_owned());
        words
    }

    /// What it was if its reply never came; nothing if that does not matter.
    pub fn unknown(self, call: u64) -> Option<Op> {
        let (value, over) = match self {
            Ask::Get => return None,
            Ask::Set(value) => (Some(value), None),
            Ask::Cas(over, value) | Ask::SetIf(over, value) => (Some(value), Some(over)),
            Ask::Del => (None, None),
            Ask::DelIf(over) => (None, Some(over)),
        };
        Some(Op {
            call,
            ret: NEVER,
            did: Did::Maybe { value, over },
        })
    }

    /// What it did, by its reply.
    pub fn did(self, reply: &Reply) -> Did {
        let pair = |version: &Reply, value: &Reply| {
            (!value.is_nil()).then(|| (version.int(), value.text().parse().expect("our value")))
        };
        let wrote = |version: i64, value, over| Did::Wrote {
            version,
            value,
            over,
        };
        let raced = |value, over| {
            let parts = reply.array();
            match parts[0].int() {
                1 => wrote(parts[1].int(), value, Some(over)),
                _ => Did::Saw {
                    what: pair(&parts[1], &parts[2]),
                    not: Some(over),
                },
            }
        };
        match self {
            Ask::Get if reply.is_nil() => Did::Saw {
                what: None,
                not: None,
            },
            Ask::Get => Did::Saw {
                what: pair(&reply.array()[1], &reply.array()[0]),
                not: None,
            },
            Ask::Set(value) => wrote(reply.int(), Some(value), None),
            Ask::Cas(over, value) | Ask::SetIf(over, value) => raced(Some(value), over),
            Ask::Del if reply.int() == 0 => Did::Saw {
                what: None,
                not: None,
            },
            Ask::Del => wrote(reply.int(), None, None),
            // Nothing to delete, and nothing was named: version 0 is then the reply.
            Ask::DelIf(0) if reply.array()[0].int() == 1 && reply.array()[1].int() == 0 => {
                Did::Saw {
                    what: None,
                    not: None,
                }
            }
            Ask::DelIf(over) => raced(None, over),
        }
    }
}
