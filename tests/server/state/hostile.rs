//! Payloads of DUMP that somebody has altered, with a checksum that is right: each RESTORE is taken or
//! refused, and what is taken is a record like any other, here, on the replica and after a reload.

use maos_core::generate::Rng;

use super::oracle::{now_us, number};
use super::{fill, metric};
use crate::harness::*;

/// Payloads by default.
const PAYLOADS: usize = 20_000;
/// Payloads between two looks at what both nodes hold.
const ROUND: usize = 2_500;
/// Payloads that are sent at once.
const AT_ONCE: usize = 50;

/// The version of the RDB format, and a checksum of all before it.
const FOOTER: usize = 2 + 8;
/// How a payload of ours begins: the type, and the name of the data type as a length of nine bytes.
const HEADER: usize = 1 + 9;
/// In front of a string of a module.
const STRING: u8 = 5;
/// Behind the last field of a module.
const END: u8 = 0;

const CRC: [u64; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x95ac_9329_ac4b_c9b5 * (crc & 1));
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// CRC-64 after Jones, as the server takes it.
fn crc64(bytes: &[u8]) -> u64 {
    let step = |crc: u64, byte: &u8| CRC[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    bytes.iter().fold(0, step)
}

/// A payload with a checksum that is right: `body` ends with the version of the format.
fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let crc = crc64(&body);
    body.extend(crc.to_le_bytes());
    body
}

/// What a payload is made of.
#[derive(Clone)]
struct Payload {
    header: Vec<u8>,
    record: Vec<u8>,
    /// The version of the format.
    format: Vec<u8>,
}

impl Payload {
    /// Takes a payload apart; it must not be compressed.
    fn of(dump: &[u8]) -> Payload {
        let (body, footer) = dump.split_at(dump.len() - FOOTER);
        assert_eq!(crc64(&dump[..dump.len() - 8]).to_le_bytes(), footer[2..]);
        let (header, rest) = body.split_at(HEADER);
        let [STRING, first, rest @ .., END] = rest else {
            panic!("one string and an end: {}", dump.escape_ascii());
        };
        // The length takes one byte, two or five.
        let skip = [0, 1, 4][usize::from(first >> 6)];
        Payload {
            header: header.to_vec(),
            record: rest[skip..].to_vec(),
            format: footer[..2].to_vec(),
        }
    }

    /// Puts it together, with a length that fits.
    fn whole(&self) -> Vec<u8> {
        let len = u32::try_from(self.record.len())
            .expect("short")
            .to_be_bytes();
        let parts: [&[u8]; 6] = [
            &self.header,
            &[STRING, 0x80],
            &len,
            &self.record,
            &[END],
            &self.format,
        ];
        sealed(parts.concat())
    }
}

/// Alters bytes in one of the ways in which bytes go wrong, or are made to.
fn alter(bytes: &mut Vec<u8>, others: &[Payload], rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(rng.number() as u8);
        return;
    }
    let at = rng.below(bytes.len());
    let most = 1 + rng.below(40);
    let len = 1 + rng.below(most.min(bytes.len() - at));
    match rng.below(12) {
        0..=2 => bytes[at] ^= 1 << rng.below(8),
        3 => bytes[at] = rng.number() as u8,
        // Where an integer gets longer.
        4 => bytes[at] = *rng.pick(&[0, 1, 2, 127, 128, 250, 251, 252, 253, 254, 255]),
        5 => bytes[at] = bytes[at].wrapping_add(if rng.chance(50) { 1 } else { 255 }),
        6 => bytes.truncate(at),
        7 => bytes.extend((0..len).map(|_| rng.number() as u8)),
        8 => drop(bytes.drain(at..at + len)),
        9 => {
            let part = bytes[at..at + len].to_vec();
            bytes.splice(at..at, part);
        }
        10 => {
            let other = &rng.pick(others).record;
            let from = rng.below(other.len());
            bytes.splice(at.., other[from..].iter().copied());
        }
        _ => {
            let huge = *rng.pick(&[1 << 31, 1 << 53, (1 << 53) - 1, u64::MAX, now_us()]);
            let number = [&[253][..], &huge.to_le_bytes()].concat();
            let end = bytes.len().min(at + number.len());
            bytes.splice(at..end, number);
        }
    }
}

/// A payload that is nearly one: mostly the record is altered, at times what is around it.
fn nearly(seeds: &[Payload], rng: &mut Rng) -> Vec<u8> {
    let mut payload = rng.pick(seeds).clone();
    let times = *rng.pick(&[1, 1, 1, 2, 3, 6]);
    if rng.chance(85) {
        for _ in 0..times {
            alter(&mut payload.record, seeds, rng);
        }
        return payload.whole();
    }
    let mut body = payload.whole();
    body.truncate(body.len() - 8);
    for _ in 0..times {
        alter(&mut body, seeds, rng);
    }
    sealed(body)
}

/// Records of every shape, as a fresh server dumps them: nothing in them is new to who restores them.
fn seeds() -> Vec<Payload> {
    let server = Server::with(&[
        ("rdbcompression", "no"),
        ("maos.history-max-versions", "30"),
    ]);
    let conn = &mut server.conn();
    let mut keys: Vec<String> = fill(conn).into_iter().map(str::to_owned).collect();
    for n in 0..40 {
        // More versions than are kept, of two users and several agents.
        conn.run("ACL SETUSER planner on nopass ~* &* +@all").ok();
        let user = ["default", "planner"][n % 2];
        cmd!(conn, "AUTH", user, "any").ok();
        conn.run(&format!(
            "MAOS.SET many {n} BY a{} REQID r{n} META {{}}",
            n % 5
        ))
        .int();
        if n % 7 == 0 {
            conn.run("MAOS.DEL many").int();
        }
        cmd!(conn, "MAOS.SET", format!("size{n}"), "x".repeat(n)).int();
    }
    keys.extend(["many", "size0", "size1", "size39"].map(str::to_owned));
    // The background pass has compressed what it compresses.
    eventually(PATIENCE, "old values are compressed", || {
        metric(conn, "compressed") > 0
    });
    let dump = |key| Payload::of(conn.run(&format!("DUMP {key}")).bytes());
    keys.iter().map(dump).collect()
}

/// Two nodes that are given payloads.
struct Target {
    master: Server,
    replica: Server,
    sent: usize,
    taken: usize,
}

impl Target {
    fn new() -> Target {
        let master = Server::start();
        let replica = replica_of(&master);
        Target {
            master,
            replica,
            sent: 0,
            taken: 0,
        }
    }

    /// Restores each over some key, and reads and writes at times what is there.
    #[track_caller]
    fn give(&mut self, conn: &mut Conn, payloads: &[Vec<u8>], rng: &mut Rng) {
        let mut lines: Vec<Vec<Vec<u8>>> = vec![];
        for payload in payloads {
            let key = format!("k{}", rng.below(60));
            let mut line = vec![b"RESTORE".to_vec(), key.clone().into(), b"0".to_vec()];
            line.extend([payload.clone(), b"REPLACE".to_vec()]);
            lines.push(line);
            let next = match rng.below(16) {
                0 => format!("MAOS.HISTORY {key} VALUES"),
                1 => format!("MAOS.GET {key} FULL"),
                2 => format!("MAOS.DIFF {key} -1 -2"),
                3 => format!("MAOS.SET {key} w BY writer"),
                4 => format!("MAOS.ROLLBACK {key} VERSION -1"),
                5 => format!("MAOS.DEL {key}"),
                6 => format!("COPY {key} copy{key} REPLACE"),
                7 => format!("DUMP {key}"),
                8 => format!("MEMORY USAGE {key}"),
                9 => format!("DEL {key}"),
                _ => continue,
            };
            lines.push(split_line(&next).expect("a line"));
        }
        let bytes: Vec<u8> = lines.iter().flat_map(|line| Conn::encode(line)).collect();
        conn.send_raw(&bytes);
        for line in &lines {
            let reply = conn.recv();
            if line[0] == b"RESTORE" {
                self.sent += 1;
                self.taken += usize::from(!reply.is_err());
            }
        }
    }

    /// Both hold the same, and the same again after a reload.
    #[track_caller]
    fn agree(&self, seed: u64) {
        let conn = &mut self.master.conn();
        persist_all(conn);
        wait_synced(&self.master, &self.replica);
        let there = &mut self.replica.conn();
        let held = digest_all(conn);
        assert_eq!(
            digest_all(there),
            held,
            "the replica, MAOS_TEST_SEED={seed}"
        );
        conn.run("DEBUG RELOAD").ok();
        assert_eq!(digest_all(conn), held, "reloaded, MAOS_TEST_SEED={seed}");
        assert_eq!([metric(conn, "panics"), metric(there, "panics")], [0, 0]);
        assert_eq!(metric(there, "damaged"), 0, "MAOS_TEST_SEED={seed}");
    }
}

#[test]
fn the_checksum_is_the_server_s() {
    assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
}

/// Every bit of a record, every length of it.
#[test]
fn every_bit_and_every_cut_of_a_payload() {
    let seeds = seeds();
    let mut target = Target::new();
    let conn = &mut target.master.conn();
    let rng = &mut Rng::new(1);
    let small = seeds.iter().filter(|seed| seed.record.len() < 250);
    let mut payloads = vec![];
    for seed in small {
        for bit in 0..seed.record.len() * 8 {
            let mut altered = seed.clone();
            altered.record[bit / 8] ^= 1 << (bit % 8);
            payloads.push(altered.whole());
        }
        for len in 0..seed.record.len() {
            let mut cut = seed.clone();
            cut.record.truncate(len);
            payloads.push(cut.whole());
        }
    }
    for some in payloads.chunks(AT_ONCE) {
        target.give(conn, some, rng);
    }
    target.agree(1);
    println!("{} payloads, {} taken", target.sent, target.taken);
    assert!(target.taken > 0 && target.taken < target.sent);
}

/// `MAOS_TEST_RESTORES` payloads.
#[test]
fn altered_payloads_are_taken_or_refused() {
    let all =
        number("MAOS_TEST_RESTORES").map_or(PAYLOADS, |n| usize::try_from(n).expect("it fits"));
    let seed = number("MAOS_TEST_SEED").unwrap_or_else(now_us);
    let rng = &mut Rng::new(seed);
    let seeds = seeds();
    let mut target = Target::new();
    let conn = &mut target.master.conn();
    // What is not altered is taken.
    let whole: Vec<Vec<u8>> = seeds.iter().map(Payload::whole).collect();
    target.give(conn, &whole, rng);
    assert_eq!(target.taken, seeds.len());
    while target.sent < all {
        for _ in 0..ROUND.min(all) / AT_ONCE {
            let some: Vec<Vec<u8>> = (0..AT_ONCE).map(|_| nearly(&seeds, rng)).collect();
            target.give(conn, &some, rng);
        }
        target.agree(seed);
    }
    println!("{} payloads, {} taken", target.sent, target.taken);
    assert!(target.taken > all / 50, "few were taken: {}", target.taken);
    assert!(target.taken < all / 2, "few were refused: {}", target.taken);
}

/// The same with what defines a partition.
#[test]
fn an_altered_definition_is_refused_or_is_one_like_any_other() {
    let master = Server::with(&[("maos.background-effort-us", "0")]);
    let replica = replica_of(&master);
    let conn = &mut master.conn();
    for line in [
        "MAOS.PARTITION CREATE a BYTES 1000",
        "MAOS.PARTITION CREATE b BYTES 100000 AGENT someone PREFIX b: PREFIX bb: HISTORY 3 MAXAGE 1000 MAXVALUE 100 TTL 5000",
        "MAOS.PARTITION CREATE c BYTES 100000 ONFULL evict ONCONFLICT function merges PREFIX c:",
    ] {
        conn.run(line).int();
    }
    let bases: Vec<_> = ["a", "b", "c"]
        .map(|key| Payload::of(conn.run(&format!("DUMP {key}")).bytes()))
        .into();
    conn.run("FLUSHALL").ok();
    let seed = now_us();
    println!("MAOS_TEST_SEED={seed}");
    let rng = &mut Rng::new(seed);
    let count = number("MAOS_TEST_RESTORES").map_or(PAYLOADS, |n| n as usize) / 4;
    let (mut taken, mut refused) = (0, 0);
    for n in 0..count {
        let mut payload = rng.pick(&bases).clone();
        for _ in 0..=rng.below(2) {
            alter(&mut payload.record, &bases, rng);
        }
        let key = format!("p{}", n % 7);
        match cmd!(conn, "RESTORE", key, "0", payload.whole(), "REPLACE") {
            Reply::Error(_) => refused += 1,
            _ => {
                taken += 1;
                let info = cmd!(conn, "MAOS.PARTITION", "INFO", key);
                assert!(!info.is_err(), "{info}");
                cmd!(conn, "MAOS.SET", "k", "v", "PARTITION", key);
                conn.run("MAOS.SET b:1 v");
            }
        }
        if n % ROUND == ROUND - 1 || n + 1 == count {
            // An altered definition may let keys expire within moments: not while they are compared.
            for key in ["k", "b:1", "p0", "p1", "p2", "p3", "p4", "p5", "p6"] {
                cmd!(conn, "PERSIST", key).int();
            }
            wait_synced(&master, &replica);
            let held = digest_all(conn);
            assert_eq!(digest_all(&mut replica.conn()), held);
            conn.run("DEBUG RELOAD").ok();
            assert_eq!(digest_all(conn), held);
        }
    }
    println!("{taken} definitions were taken, {refused} refused");
    assert!(taken > 0 && refused > 0);
    for server in [&master, &replica] {
        assert_eq!(metric(&mut server.conn(), "panics"), 0);
    }
}
