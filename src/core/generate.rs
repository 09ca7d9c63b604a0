//! Random requests, made from the command table: valid, nearly valid and wrong ones. A command or an
//! option that is added to the table is covered without a word here; only a new kind of argument
//! needs values of its own.
//!
//! The same seed over the same conversation gives the same requests, versions apart.

use std::collections::VecDeque;

use crate::config::{BLOCK_MAX_MS, LEASE_MAX_MS, OWNER_MAX, PATTERN_MAX, WAIT_MAX_MS};
use crate::event::Event;
use crate::model::{Held, Model};
use crate::record::{Record, Version};
use crate::wire::reference::COMMANDS;
use crate::wire::{Arg, ArgKind, CommandSpec, Tok};
use crate::Stamp;

/// Numbers that look random and follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next number, of 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.number() % n as u64).unwrap_or(0)
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }
}

/// What is wrong almost anywhere.
const NASTY: &[&[u8]] = &[
    b"",
    b"0",
    b"-1",
    // As a span of time these last: nothing is to expire in the midst of what is being said.
    b"08640000000",
    b"+8640000000",
    b"1.5",
    b"1e400",
    b"nan",
    b"9007199254740992",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"nonsense",
    b"a\r\n+OK\r\n",
    b"%n%s",
    b"\0",
    b"\xff\xfe",
    b"BY",
];

/// Makes requests over a few keys.
#[derive(Clone, Debug)]
pub struct Generator {
    /// What all choices come from.
    pub rng: Rng,
    /// The keys that requests name.
    pub keys: Vec<Vec<u8>>,
    /// The keys of partitions.
    pub partitions: Vec<Vec<u8>>,
    /// Whether keys may expire within a few milliseconds, or else at once or in days.
    pub soon: bool,
    /// Whether keys may be told to expire in the past, and so at once.
    pub past: bool,
    /// Whether leases may end within a few milliseconds.
    pub brief: bool,
    /// Whether the present request is about the keys of partitions.
    of_partitions: bool,
    /// How many words the name of the present command has.
    names: usize,
    /// The key that was named last: a version beside it is one of its own.
    key: Vec<u8>,
    /// How many keys the present request says it names, and how many it has named.
    count: (usize, usize),
    /// The keys that it has named.
    named: Vec<Vec<u8>>,
    /// Versions that were current lately, on any key.
    lately: VecDeque<Stamp>,
}

/// Has a watch that would wait for an hour wait for a moment.
pub fn keep_awake(words: &mut [Vec<u8>]) {
    for at in 1..words.len() {
        let number = std::str::from_utf8(&words[at]).ok();
        let ms = number.and_then(|n| n.parse::<i64>().ok());
        if Tok::Block.is(&words[at - 1]) && ms.is_some_and(|ms| ms == 0 || ms > 100) {
            words[at] = b"1".to_vec();
        }
    }
}

impl Generator {
    /// The generator of this seed. All keys have one hash tag.
    pub fn new(seed: u64) -> Generator {
        let mut keys: Vec<Vec<u8>> = (0..6).map(|n| format!("{{o}}:k{n}").into_bytes()).collect();
        keys.push(b"{o}\0\r\n\xff".to_vec());
        keys.push([&b"{o}"[..], &[b'x'; 300]].concat());
        let partitions = (0..4).map(|n| format!("{{o}}p{n}").into_bytes());
        Generator {
            rng: Rng::new(seed),
            keys,
            partitions: partitions.collect(),
            of_partitions: false,
            names: 1,
            soon: false,
            past: true,
            brief: false,
            key: vec![],
            count: (0, 0),
            named: vec![],
            lately: VecDeque::new(),
        }
    }

    /// A request of any command.
    pub fn request(&mut self, world: &Model) -> Vec<Vec<u8>> {
        let mut spec = *self.rng.pick(COMMANDS);
        // A store in memory refuses them all: a few do.
        if spec.name.starts_with("MAOS.BACKUP") && self.rng.chance(80) {
            spec = *self.rng.pick(COMMANDS);
        }
        // What it does it does between requests, where no model can follow: it is left out.
        while spec.name == "MAOS.ROLLBACKTO" {
            spec = *self.rng.pick(COMMANDS);
        }
        self.request_of(spec, world)
    }

    /// A request of this command, its name first.
    pub fn request_of(&mut self, spec: &CommandSpec, world: &Model) -> Vec<Vec<u8>> {
        self.remember(world.clock.last());
        self.count = (1, self.rng.below(self.keys.len()));
        self.named.clear();
        self.of_partitions = spec.name.starts_with("MAOS.PARTITION");
        self.names = crate::wire::spec::words(spec.name);
        let mut words = vec![];
        spec.name
            .split(' ')
            .for_each(|name| self.word(name, &mut words));
        for arg in spec.args {
            self.argument(arg, world, &mut words);
        }
        let mut options: Vec<&Arg> = spec.all_args().skip(spec.args.len()).collect();
        for at in (1..options.len()).rev() {
            options.swap(at, self.rng.below(at + 1));
        }
        let often = *self.rng.pick(&[0, 15, 30, 60]);
        for arg in options {
            let taken = match (arg.reserved, arg.optional) {
                (true, _) => self.rng.below(200) == 0,
                // Where it is needed it is mostly there.
                (false, true) if arg.token == Some(Tok::Token) => {
                    let locked = self.record(world).is_some_and(|r| r.leased_until_ms() > 0);
                    self.rng.chance(if locked { 80 } else { often / 10 })
                }
                (false, true) => self.rng.chance(often),
                (false, false) => self.rng.chance(97),
            };
            if taken {
                self.argument(arg, world, &mut words);
            }
        }
        if self.rng.chance(6) {
            self.spoil(&mut words);
        }
        keep_awake(&mut words);
        words
    }

    fn remember(&mut self, stamp: Stamp) {
        if self.lately.back() != Some(&stamp) {
            self.lately.push_back(stamp);
            if self.lately.len() > 50 {
                self.lately.pop_front();
            }
        }
    }

    /// A word of the language, in any case.
    fn word(&mut self, word: &str, out: &mut Vec<Vec<u8>>) {
        let word = match self.rng.below(8) {
            0 => word.to_ascii_lowercase(),
            1 => word[..1].to_string() + &word[1..].to_ascii_lowercase(),
            _ => word.to_string(),
        };
        out.push(word.into_bytes());
    }

    fn argument(&mut self, arg: &Arg, world: &Model, out: &mut Vec<Vec<u8>>) {
        let times = if arg.multiple { self.count.0 } else { 1 };
        for _ in 0..times {
            if let Some(tok) = arg.token {
                self.word(tok.word(), out);
            }
            match arg.kind {
                ArgKind::Word => {}
                ArgKind::OneOf(of) => {
                    let one = self.rng.pick(of);
                    // What functions there are is the server's own affair.
                    if one.token == Some(Tok::Function) {
                        return self.word(Tok::Merge.word(), out);
                    }
                    self.argument(one, world, out);
                }
                ArgKind::Block(of) => {
                    for a in of {
                        if !a.optional || self.rng.chance(30) {
                            self.argument(a, world, out);
                        }
                    }
                }
                // 0 would be to wait for ever.
                _ if arg.token != Some(Tok::Block) && self.rng.below(60) == 0 => {
                    out.push(self.rng.pick(NASTY).to_vec())
                }
                kind => {
                    let value = self.value(kind, arg.token, world);
                    out.push(value);
                }
            }
        }
    }

    fn value(&mut self, kind: ArgKind, tok: Option<Tok>, world: &Model) -> Vec<u8> {
        let number = match (kind, tok) {
            (ArgKind::Key, _) => return self.next_key(),
            (ArgKind::KeyAgain, _) => return self.named_key(),
            (ArgKind::Value, _) => return self.any_value(world),
            (ArgKind::Name(_), Some(Tok::Prefix)) => return self.prefix(),
            (ArgKind::Name(max), _) => return self.name(max, world),
            (ArgKind::Json, _) => return self.metadata(),
            (ArgKind::Patch, _) => return self.patch(),
            (ArgKind::Number, _) => return self.decimal(),
            (ArgKind::Pointer, _) => return self.pointer(),
            (ArgKind::Version, _) => return self.version(world),
            (ArgKind::Token, _) => return self.token(world),
            (ArgKind::Owner, _) => return self.owner(world),
            (ArgKind::Partition, _) => return self.partition(world),
            (ArgKind::Pattern, _) => return self.pattern(),
            (ArgKind::Beginning, _) => return self.beginning(),
            (ArgKind::KeyLike, _) => return self.rng.pick(&self.keys).clone(),
            (ArgKind::Events, _) => return self.events(),
            (ArgKind::Cursor, _) => return self.version(world),
            (ArgKind::Backup, _) => return format!("{:032x}", self.rng.number()).into_bytes(),
            // Nobody waits for what nobody does meanwhile.
            (_, Some(Tok::Block)) => match self.rng.below(20) {
                0 => *self.rng.pick(&[-1, BLOCK_MAX_MS + 1, i64::MAX]),
                n => 1 + (n % 3) as i64,
            },
            (ArgKind::Lease, _) => self.lease(),
            (ArgKind::VersionRef, _) => match self.rng.chance(60) {
                true => -1 - self.rng.below(6) as i64,
                false => return self.version(world),
            },
            (ArgKind::NumKeys, _) => {
                self.count.0 = 1 + self.rng.below(4);
                let said = self.count.0 as i64;
                match self.rng.below(40) {
                    0 => said + 1,
                    1 => said - 1,
                    2 => 10_001,
                    _ => said,
                }
            }
            (_, Some(tok @ (Tok::Ex | Tok::Px | Tok::ExAt | Tok::PxAt))) => self.expiry(tok, world),
            (
                _,
                Some(tok @ (Tok::Bytes | Tok::Ttl | Tok::History | Tok::MaxAge | Tok::MaxValue)),
            ) => self.term(tok),
            // Nobody here gives a lock back meanwhile.
            (_, Some(Tok::Wait)) => match self.rng.below(20) {
                0 => *self.rng.pick(&[-1, WAIT_MAX_MS + 1, i64::MAX]),
                n => (n % 4) as i64,
            },
            (ArgKind::Integer(min, max), _) => match self.rng.below(12) {
                0 => min,
                1 => max,
                2 => min.saturating_sub(1),
                3 => max.saturating_add(1),
                _ => min.saturating_add(self.rng.below(20) as i64),
            },
            (ArgKind::UnixMillis, _) => self.moment(world) / 1000,
            (ArgKind::UnixSeconds, _) => self.moment(world) / 1_000_000,
            (ArgKind::Word | ArgKind::OneOf(_) | ArgKind::Block(_), _) => 0,
        };
        number.to_string().into_bytes()
    }

    /// The keys of one request follow each other; now and then one comes twice.
    fn next_key(&mut self) -> Vec<u8> {
        if self.of_partitions && self.rng.below(30) > 0 {
            return self.rng.pick(&self.partitions).clone();
        }
        let at = match self.rng.below(25) {
            0 => self.rng.below(self.keys.len()),
            _ => self.count.1 % self.keys.len(),
        };
        self.count.1 += 1;
        self.key = self.keys[at].clone();
        self.named.push(self.key.clone());
        self.key.clone()
    }

    /// One of the keys of this request; now and then another.
    fn named_key(&mut self) -> Vec<u8> {
        if self.rng.below(60) == 0 || self.named.is_empty() {
            return self.rng.pick(&self.keys).clone();
        }
        self.key = self.rng.pick(&self.named).clone();
        self.key.clone()
    }

    fn record<'w>(&self, world: &'w Model) -> Option<&'w Record> {
        world.keys().get(&self.key).map(|held: &Held| &held.record)
    }

    fn any_value(&mut self, world: &Model) -> Vec<u8> {
        let most = world.limits.value_max;
        let n = self.rng.number();
        match self.rng.below(24) {
            0 => vec![],
            1 => vec![b'x'; most],
            2 => vec![b'x'; most + 1],
            3 => (0..self.rng.below(200))
                .map(|_| self.rng.number() as u8)
                .collect(),
            4..=6 => format!("an agent's note, {n:x} ")
                .repeat(1 + self.rng.below(60))
                .into_bytes(),
            7..=16 => {
                let list = vec!["1"; self.rng.below(5)].join(",");
                let name = ["a", "b", "a/b", "m~n", "\u{e9}"][self.rng.below(5)];
                let deep = match self.rng.below(20) {
                    0 => 60 + self.rng.below(8),
                    _ => self.rng.below(4),
                };
                let (open, close) = ("[".repeat(deep), "]".repeat(deep));
                format!(
                    r#"{{"n":{},"{name}":"{}","list":[{list}],"deep":{open}1.50{close}}}"#,
                    n % 50,
                    n % 7
                )
                .into_bytes()
            }
            _ => n.to_string().into_bytes(),
        }
    }

    /// Names of a few come again; the bounds of their length are visited.
    fn name(&mut self, max: usize, world: &Model) -> Vec<u8> {
        match self.rng.below(30) {
            0 => vec![b'n'; max.min(1 << 20)],
            1 => vec![b'n'; max.min(1 << 20) + 1],
            2 => (0..8).map(|_| self.rng.number() as u8).collect(),
            3..=9 => {
                let at = self.rng.below(20);
                let known = self
                    .record(world)
                    .and_then(|r| r.newest_first().nth(at)?.reqid());
                known.map_or_else(|| b"r".to_vec(), <[u8]>::to_vec)
            }
            _ => format!("r{}", self.rng.below(300)).into_bytes(),
        }
    }

    /// Few owners, so that they meet.
    fn owner(&mut self, world: &Model) -> Vec<u8> {
        match self.rng.below(20) {
            0 => self.name(OWNER_MAX, world),
            n => vec![b"abc"[n % 3]],
        }
    }

    /// Mostly one that there is.
    fn partition(&mut self, world: &Model) -> Vec<u8> {
        let mut known: Vec<_> = world.defined().keys().cloned().collect();
        known.sort_unstable();
        match known.is_empty() || self.rng.below(20) == 0 {
            true => self.rng.pick(&self.partitions).clone(),
            false => self.rng.pick(&known).clone(),
        }
    }

    /// What CREATE and ALTER say in numbers: quotas that are soon full, and times that do not end meanwhile.
    fn term(&mut self, tok: Tok) -> i64 {
        let n = self.rng.below(40) as i64;
        match (tok, n) {
            (_, 0) => -1,
            (_, 1) => i64::MAX,
            (Tok::Bytes, 2..20) => 300 * n * n,
            (Tok::Bytes, n) => 100_000 * n,
            (Tok::History, n) => n % 12,
            (Tok::MaxValue, n) => 200 * (n % 30),
            (_, 2..20) => 0,
            (_, n) => 86_400_000 * n,
        }
    }

    /// A key, or what keys begin with, or what is no pattern.
    fn pattern(&mut self) -> Vec<u8> {
        let key = self.rng.pick(&self.keys).clone();
        match self.rng.below(20) {
            0 => vec![b'*'; PATTERN_MAX + self.rng.below(2)],
            1 => [&key[..2], b"["].concat(),
            2 => [&key[..1], b"\\"].concat(),
            3 => b"\\COUNT".to_vec(),
            4..8 => key,
            _ => [&key[..self.rng.below(6)], b"*"].concat(),
        }
    }

    /// What keys begin with, or nothing.
    fn beginning(&mut self) -> Vec<u8> {
        let key = self.rng.pick(&self.keys).clone();
        match self.rng.below(20) {
            0 => b"other".to_vec(),
            1 => key,
            _ => key[..self.rng.below(6)].to_vec(),
        }
    }

    /// A list of types.
    fn events(&mut self) -> Vec<u8> {
        let some = (0..1 + self.rng.below(4)).map(|_| self.rng.pick(Event::ALL).word());
        let some: Vec<_> = some.collect();
        match self.rng.below(10) {
            0 => b"created,".to_vec(),
            _ => some.join(",").into_bytes(),
        }
    }

    /// What keys begin with.
    fn prefix(&mut self) -> Vec<u8> {
        let key = self.rng.pick(&self.keys).clone();
        let len = 1 + self.rng.below(8);
        key.into_iter().take(len).collect()
    }

    /// Days, or a few milliseconds where something may end soon, or what no lease is.
    fn lease(&mut self) -> i64 {
        match self.rng.below(20) {
            0 => *self
                .rng
                .pick(&[0, -1, LEASE_MAX_MS + 1, i64::MAX, i64::MIN]),
            1 => LEASE_MAX_MS,
            2..=4 if self.brief => 1 + self.rng.below(3) as i64,
            n => 86_400_000 * (1 + n as i64),
        }
    }

    fn metadata(&mut self) -> Vec<u8> {
        match self.rng.below(20) {
            0 => b"[1]".to_vec(),
            1 => b"{\"a\":1".to_vec(),
            2 => b"{\"a\":\"\xff\"}".to_vec(),
            3 => br#"{"a":"\ud800"}"#.to_vec(),
            4 => {
                let deep = 61 + self.rng.below(5);
                [br#"{"a":"#, &vec![b'['; deep][..], &vec![b']'; deep], b"}"].concat()
            }
            _ => format!(r#"{{"why":"{}"}}"#, self.rng.below(1000)).into_bytes(),
        }
    }

    /// A merge patch or operations over the members that values have, and now and then something else.
    fn patch(&mut self) -> Vec<u8> {
        let n = self.rng.below(50);
        let name = ["a", "n", "list", "deep", "new", "m~n"][self.rng.below(6)];
        let operations = |rng: &mut Rng, pointer: Vec<u8>| {
            let path = String::from_utf8_lossy(&pointer).into_owned();
            let op = ["add", "remove", "replace", "test", "copy", "move"][rng.below(6)];
            format!(r#"{{"op":"{op}","path":"{path}","from":"/n","value":{n}}}"#)
        };
        match self.rng.below(20) {
            0 => b"7".to_vec(),
            1 => b"{\"a\":".to_vec(),
            2 => [&br#"{"a":"#[..], &[b'['; 70], &[b']'; 70], b"}"].concat(),
            3 => format!(r#"{{"{name}":{{"a":{{"x":null,"y":[{n}]}}}}}}"#).into_bytes(),
            4..=7 => format!(r#"{{"{name}":null,"n":{n}.50}}"#).into_bytes(),
            8..=11 => format!(r#"{{"{name}":{{"x":{n}}},"a":"{n}"}}"#).into_bytes(),
            _ => {
                let list: Vec<String> = (0..self.rng.below(4))
                    .map(|_| {
                        let pointer = self.pointer();
                        operations(&mut self.rng, pointer)
                    })
                    .collect();
                format!("[{}]", list.join(",")).into_bytes()
            }
        }
    }

    fn decimal(&mut self) -> Vec<u8> {
        let n = self.rng.below(100);
        match self.rng.below(12) {
            0 => b"9223372036854775807".to_vec(),
            1 => b"-9223372036854775808".to_vec(),
            2 => b"1e3".to_vec(),
            3 => b"-0".to_vec(),
            4..=6 => format!("{n}.{n}0").into_bytes(),
            7..=8 => format!("-{n}").into_bytes(),
            _ => n.to_string().into_bytes(),
        }
    }

    fn pointer(&mut self) -> Vec<u8> {
        let known: [&[u8]; 10] = [
            b"", b"/n", b"/a", b"/list", b"/list/0", b"/list/-", b"/new/x", b"/deep/0", b"/a~1b",
            b"a",
        ];
        self.rng.pick(&known).to_vec()
    }

    /// A version of the key named last: mostly the one that it has, in any form of writing it.
    fn version(&mut self, world: &Model) -> Vec<u8> {
        let back = self.rng.below(8);
        let record = self.record(world);
        let kept = record
            .and_then(|r| r.newest_first().nth(back))
            .map(Version::stamp);
        let live = record
            .and_then(Record::live)
            .map_or(Stamp::NONE, Version::stamp);
        let stamp = match self.rng.below(20) {
            0..=11 => live,
            12..=14 => kept.unwrap_or(live),
            15 => record.map_or(Stamp::NONE, Record::floor),
            16 => Stamp::NONE,
            17 => Stamp(live.0 + 1),
            _ => match self.lately.len() {
                0 => Stamp::MAX,
                n => self.lately[self.rng.below(n)],
            },
        };
        match self.rng.below(40) {
            0 => format!("{stamp}.0").into_bytes(),
            1 => format!("{:e}", stamp.0 as f64)
                .replace('e', "e+")
                .into_bytes(),
            2 => format!("-{stamp}").into_bytes(),
            _ => stamp.to_string().into_bytes(),
        }
    }

    /// A token: mostly one with which the key named last, or any key, is held.
    fn token(&mut self, world: &Model) -> Vec<u8> {
        let beside = self.rng.chance(85);
        let records = world.keys().iter();
        let records = records.filter(|(key, _)| !beside || **key == self.key);
        let guards = records.filter_map(|(_, held)| held.record.guard());
        let mut tokens: Vec<_> = guards.flat_map(|g| &g.holders).map(|h| h.token).collect();
        // Keys have no order, and the same seed is to give the same.
        tokens.sort_unstable();
        match (self.rng.below(12), tokens.len()) {
            (0, _) => self.version(world),
            (_, 0) => match self.lately.len() {
                0 => b"1".to_vec(),
                n => self.lately[self.rng.below(n)].to_string().into_bytes(),
            },
            (_, n) => tokens[self.rng.below(n)].to_string().into_bytes(),
        }
    }

    /// A moment in microseconds: about when a version of the key came to be, or far from it.
    fn moment(&mut self, world: &Model) -> i64 {
        let back = self.rng.below(8);
        let kept = self.record(world).and_then(|r| r.newest_first().nth(back));
        let about = kept.map_or(world.clock.last(), Version::stamp).as_i64();
        match self.rng.below(10) {
            0 => 0,
            1 => -1_000_000,
            2 => i64::MAX,
            3 => Stamp::MAX.as_i64(),
            4 => about - 3_600_000_000,
            5 => about + 3_600_000_000,
            6 => about - 1_000,
            7 => about + 1_000,
            _ => about,
        }
    }

    /// When a key is to expire: never in the midst of what is being said, unless it may be soon.
    fn expiry(&mut self, tok: Tok, world: &Model) -> i64 {
        let absolute = matches!(tok, Tok::ExAt | Tok::PxAt);
        let unit = if matches!(tok, Tok::Ex | Tok::ExAt) {
            1
        } else {
            1000
        };
        let now = i64::try_from(world.now_us / 1_000_000).unwrap_or(0);
        let days = 86_400 * (1 + self.rng.below(1000) as i64);
        match self.rng.below(12) {
            0 => [
                0,
                -1,
                i64::MIN,
                i64::MAX,
                i64::MAX / 1000,
                i64::MAX / 1000 + 1,
            ][self.rng.below(6)],
            1 => i64::MAX / 2 / (1000 / unit),
            2 if absolute && self.past => 1,
            3 if absolute && self.past => (now - days) * unit,
            4 if self.soon && tok == Tok::Px => 1 + self.rng.below(3) as i64,
            _ if absolute => (now + days) * unit,
            _ => days * unit,
        }
    }

    /// Makes a request that is nearly one: a word less, twice, elsewhere, or another.
    fn spoil(&mut self, words: &mut Vec<Vec<u8>>) {
        // The name of a command is what it is.
        let names = self.names;
        if words.len() <= names {
            words.push(self.rng.pick(Tok::ALL).word().into());
            return;
        }
        let at = names + self.rng.below(words.len() - names);
        let other = names + self.rng.below(words.len() - names);
        match self.rng.below(6) {
            0 => drop(words.remove(at)),
            1 => words.insert(at, words[other].clone()),
            2 => words.swap(at, other),
            3 => words.truncate(at),
            4 => words.insert(at, self.rng.pick(Tok::ALL).word().into()),
            _ => words[at] = self.rng.pick(NASTY).to_vec(),
        }
    }
}
