//! The whole store in memory: what a live server is compared with, and what tests state facts
//! about. It runs the same decisions and applies the same changes; only the keyspace is its own.

use std::collections::{HashMap, HashSet};

use crate::change::{Change, Expiry};
use crate::clock::Clock;
use crate::codec::{v1, Damaged};
use crate::config::Limits;
use crate::record::Record;
use crate::refusal::{Quoted, WRONG_TYPE};
use crate::state::{Decision, Env, Question, ReadCommand, View, WriteCommand};
use crate::wire::lock::WaiterReply;
use crate::wire::{requests as cmd, Keys, Request, Value};
use crate::{lock, Code, Interner, Refusal, Stamp};

/// What answers a merge that a Redis Function decides.
pub type Function = fn(&Question<'_>) -> Result<Vec<u8>, Refusal>;

/// A store of state keys. Time is set by whoever drives it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The wall clock, in microseconds of unix time.
    pub now_us: u64,
    /// A clock that never steps, in microseconds.
    pub steady_us: u64,
    /// The ACL user of the connection.
    pub author: Vec<u8>,
    /// The settings.
    pub limits: Limits,
    /// The node's clock.
    pub clock: Clock,
    interner: Interner,
    keys: HashMap<Vec<u8>, Held>,
    /// The Redis Functions there are.
    pub functions: Option<Function>,
    /// Keys that hold something else.
    pub foreign: HashSet<Vec<u8>>,
    /// The facts of the changes made, as they would travel: fact, then keys and values in turn.
    pub sent: Vec<Vec<Vec<u8>>>,
}

/// A record and its key's expiry in milliseconds of unix time.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The record.
    pub record: Record,
    /// When the key expires.
    pub expires_ms: Option<u64>,
}

impl Model {
    /// An empty store on a connection of the user `default`, at this time.
    pub fn at(now_us: u64) -> Model {
        Model {
            now_us,
            author: b"default".to_vec(),
            ..Model::default()
        }
    }

    /// What COPY and RESTORE make of all keys: nobody holds them, and those that were only locked are not
    /// there.
    pub fn unlock_all(&mut self) {
        self.keys.retain(|_, held| {
            held.record.unlock();
            !held.record.is_empty()
        });
    }

    /// What the keys hold.
    pub fn keys(&self) -> &HashMap<Vec<u8>, Held> {
        &self.keys
    }

    /// Plain DEL: the record goes at once.
    pub fn purge(&mut self, key: &[u8]) -> bool {
        self.keys.remove(key).is_some()
    }

    /// Lets the keys go whose time is over.
    pub fn expire(&mut self) {
        let now_ms = self.now_us / 1000;
        // The server's rule: the millisecond itself still belongs to the key.
        self.keys
            .retain(|_, held| held.expires_ms.is_none_or(|at| at >= now_ms));
    }

    /// What the server's own commands do to state keys, as far as they stand here.
    fn plain(&mut self, line: &[&[u8]]) -> Option<Result<Value, Refusal>> {
        let yes = |done: bool| Value::Int(i64::from(done));
        Some(Ok(match *line {
            [b"DEL" | b"UNLINK", key] => yes(self.purge(key)),
            [b"PERSIST", key] => {
                let held = self.keys.get_mut(key);
                yes(held.is_some_and(|h| h.expires_ms.take().is_some()))
            }
            [b"PEXPIREAT", key, ms] => {
                let ms = std::str::from_utf8(ms).ok()?.parse().ok()?;
                let held = self.keys.get_mut(key);
                yes(held.map(|h| h.expires_ms = Some(ms)).is_some())
            }
            [b"COPY", from, to, b"REPLACE"] if from != to => {
                let mut copy = self.keys.get(from).cloned();
                if let Some(held) = &mut copy {
                    held.record.unlock();
                    if held.record.is_empty() {
                        let text = "module key failed to copy";
                        return Some(Err(Refusal::fixed(Code::Err, text)));
                    }
                }
                yes(copy
                    .map(|held| self.keys.insert(to.to_vec(), held))
                    .is_some())
            }
            [b"RENAME", from, to] => match self.keys.remove(from) {
                Some(held) => {
                    self.keys.insert(to.to_vec(), held);
                    Value::Bulk(b"OK".to_vec())
                }
                None => return Some(Err(Refusal::fixed(Code::Err, "no such key"))),
            },
            _ => return None,
        }))
    }

    /// The records of a request's keys.
    ///
    /// # Errors
    /// `WRONGTYPE` if one of them holds something else.
    fn held(&self, keys: Keys, args: &[&[u8]]) -> Result<Vec<Option<&Held>>, Refusal> {
        keys.positions(args)
            .map(|at| match self.foreign.contains(args[at]) {
                true => Err(WRONG_TYPE),
                false => Ok(self.keys.get(args[at])),
            })
            .collect()
    }

    /// Runs one command line.
    ///
    /// # Errors
    /// The refusal.
    pub fn run(&mut self, line: &[&[u8]]) -> Result<Value, Refusal> {
        self.expire();
        if let Some(answer) = self.plain(line) {
            return answer;
        }
        let (name, args) = line.split_first().ok_or_else(|| unknown(b""))?;
        let name = name.to_ascii_uppercase();
        macro_rules! dispatch {
            ($($kind:ident $name:ident),*) => {
                $(if name == <cmd::$name<'_> as Request<'_>>::SPEC.name.as_bytes() {
                    return self.$kind::<cmd::$name<'_>>(args);
                })*
            };
        }
        crate::for_each_command!(dispatch);
        Err(unknown(&name))
    }

    fn read<'a, C: ReadCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        check_arity(C::SPEC.arity, args)?;
        let request = C::parse(args)?;
        let held = self.held(C::SPEC.keys, args)?;
        let records: Vec<_> = held.iter().map(|h| h.map(|h| &h.record)).collect();
        let looks = Looks {
            held: &held,
            now_ms: self.now_us / 1000,
        };
        Ok(Value::of(&request.answer(&records, &looks)?))
    }

    /// As one who does not wait.
    fn lock<'a, C: WriteCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        self.write::<C>(args)
    }

    fn write<'a, C: WriteCommand<'a>>(&mut self, args: &[&'a [u8]]) -> Result<Value, Refusal> {
        self.write_with::<C>(args, None)
    }

    fn write_with<'a, C: WriteCommand<'a>>(
        &mut self,
        args: &[&'a [u8]],
        answer: Option<(Stamp, Vec<u8>)>,
    ) -> Result<Value, Refusal> {
        check_arity(C::SPEC.arity, args)?;
        let request = C::parse(args)?;
        let who = self.interner.get(&self.author, request.by()).clone();
        let stamp = self.clock.peek(self.now_us, || self.steady_us);
        let held = self.held(C::SPEC.keys, args)?;
        let records: Vec<_> = held.iter().map(|h| h.map(|h| &h.record)).collect();
        let env = Env {
            now_us: self.now_us,
            stamp,
            beyond: self.clock.beyond(),
            who: &who,
            limits: &self.limits,
            answer: answer.as_ref().map(|(about, made)| (*about, &made[..])),
        };
        let decided = match request.decide(&records, &env)? {
            Decision::Answer(reply) => return Ok(Value::of(&reply)),
            Decision::Change(change) => {
                let reply = Value::of(&request.committed(&change));
                Ok((smallvec::smallvec![change], reply))
            }
            Decision::Commit(changes, reply) => Ok((changes, Value::of(&reply))),
            Decision::Ask(question) => Err(question),
        };
        let (changes, reply) = match decided {
            Ok(commit) => commit,
            Err(_) if answer.is_some() => {
                return Err(Refusal::fixed(Code::Busy, "asked twice"));
            }
            Err(question) => {
                let none = Refusal::fixed(Code::NotFound, "there are no functions here");
                let made = self.functions.ok_or(none)?(&question)?;
                return self.write_with::<C>(args, Some((question.version, made)));
            }
        };
        // Made by this clock, unless a version it replaces lies beyond.
        let own = changes[0].stamp == stamp;
        for change in &changes {
            if own {
                self.clock
                    .made(change.stamp, self.now_us, || self.steady_us);
            }
            self.apply(change);
            self.sent.push(message(change));
        }
        Ok(reply)
    }

    /// Applies a change, as a replica does.
    pub fn apply(&mut self, change: &Change<'_>) {
        // A stamp too far ahead does not move the clock, here as on a server.
        let _ = self
            .clock
            .observe(change.stamp, self.now_us, self.limits.drift_us, || {
                self.steady_us
            });
        for (n, write) in change.writes.iter().enumerate() {
            let held = self.keys.get_mut(write.key);
            let made = match held {
                Some(held) => {
                    change.apply(n, Some(&mut held.record));
                    held
                }
                None => match change.apply(n, None) {
                    None => continue,
                    Some(record) => self.keys.entry(write.key.to_vec()).or_insert(Held {
                        record,
                        expires_ms: None,
                    }),
                },
            };
            match change.expiry_over(&made.record, || made.expires_ms) {
                Expiry::Keep => {}
                Expiry::Clear => made.expires_ms = None,
                Expiry::At(ms) => made.expires_ms = Some(ms),
            }
            if made.record.is_empty() {
                self.keys.remove(write.key);
            }
        }
    }

    /// Applies a change that travelled here.
    ///
    /// # Errors
    /// If the message is not one.
    pub fn receive(&mut self, message: &[Vec<u8>]) -> Result<(), Damaged> {
        let (fact, rest) = message.split_first().ok_or(Damaged("no fact"))?;
        let pairs = rest.chunks_exact(2).map(|p| (&p[0][..], &p[1][..]));
        let change = v1::decode_fact(fact, pairs, &mut self.interner)?;
        self.apply(&change);
        Ok(())
    }

    /// What the background pass does to one key: trims what has grown too old, compresses, lets leases go
    /// that are over.
    pub fn tend(&mut self, key: &[u8]) {
        self.lapse(key);
        let Some(held) = self.keys.get_mut(key) else {
            return;
        };
        let drops = held.record.surplus(&self.limits, self.now_us, false);
        held.record.pack(self.limits.compress_min, usize::MAX);
        if drops > 0 {
            let change = Change::trim(key, drops);
            self.sent.push(message(&change));
            self.apply(&change);
        }
    }

    fn lapse(&mut self, key: &[u8]) {
        let Some(held) = self.keys.get(key) else {
            return;
        };
        let stamp = self.clock.peek(self.now_us, || self.steady_us);
        let env = Env {
            now_us: self.now_us,
            stamp,
            beyond: self.clock.beyond(),
            who: &Default::default(),
            limits: &self.limits,
            answer: None,
        };
        if let Some(change) = lock::lapse(key, &held.record, &env) {
            self.clock.made(stamp, self.now_us, || self.steady_us);
            self.sent.push(message(&change));
            self.apply(&change);
        }
    }
}

/// What a reader sees of the keys of a request.
struct Looks<'h> {
    held: &'h [Option<&'h Held>],
    now_ms: u64,
}

impl View for Looks<'_> {
    fn ttl_ms(&self, n: usize) -> i64 {
        let at = self.held[n].and_then(|h| h.expires_ms);
        at.map_or(-1, |at| i64::try_from(at - self.now_ms).unwrap_or(i64::MAX))
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Nobody waits here: to wait takes a connection.
    fn waiters(&self, _: usize) -> Vec<WaiterReply> {
        vec![]
    }
}

fn message(change: &Change<'_>) -> Vec<Vec<u8>> {
    let mut fact = Vec::new();
    v1::encode_fact(change, &mut fact);
    let pairs = change.writes.iter();
    let pairs = pairs.flat_map(|w| [w.key.to_vec(), w.carried().into_owned()]);
    std::iter::once(fact).chain(pairs).collect()
}

fn check_arity(arity: i32, args: &[&[u8]]) -> Result<(), Refusal> {
    let given = args.len() + 1;
    let wanted = arity.unsigned_abs() as usize;
    if (arity >= 0 && given != wanted) || given < wanted {
        return Err(Refusal::fixed(Code::Err, "wrong number of arguments"));
    }
    Ok(())
}

fn unknown(name: &[u8]) -> Refusal {
    Refusal::new(Code::Err, format!("unknown command {}", Quoted(name)))
}

impl crate::transcript::Store for Model {
    fn ask(&mut self, request: &[Vec<u8>]) -> Result<Value, String> {
        // A microsecond at least goes by from one request to the next.
        self.now_us += 1;
        let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        self.run(&line).map_err(|refusal| refusal.to_string())
    }
}
