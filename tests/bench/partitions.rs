//! What partitions cost: writes into one beside writes into none, making and dropping them beside a hash, memory.

use crate::data::{key, send_all, value, words};
use crate::harness::{Conn, Server};
use crate::knobs::Knobs;
use crate::lane::{alternate, batches, header, lanes, rate, row, KEYS};
use crate::machine;
use crate::table::{title, Target};

const SIZE: usize = 100;

/// Prints all of it.
pub fn run(knobs: &Knobs) {
    writes(knobs);
    definitions(knobs);
    memory(knobs);
}

fn writes(knobs: &Knobs) {
    title("MAOS.SET of 100 B into a partition: thousand a second, 50 clients; theirs: into none, on a server that has none");
    header();
    let value = value(SIZE);
    for (name, create, options, target) in [
        ("by its prefix", "PREFIX m", &[][..], Target::AtLeast(0.95)),
        (
            "by the option PARTITION",
            "PREFIX x",
            &["PARTITION", "part"],
            Target::None,
        ),
        ("of 100 others with prefixes", "PREFIX m", &[], Target::None),
        (
            "that removes the oldest (not full)",
            "PREFIX m ONFULL evict",
            &[],
            Target::None,
        ),
    ] {
        // Of two servers the one that starts first is the slower one, by as much as is asked for here: so each side is
        // it in half of the rounds.
        let mut pairs = [true, false].map(|first| {
            let (one, other) = (machine::server().start(), machine::server().start());
            let (ours, theirs) = if first { (one, other) } else { (other, one) };
            share(&mut ours.conn(), create, name.starts_with("of 100"));
            let lanes = (lanes(&ours), lanes(&theirs));
            (ours, theirs, lanes)
        });
        for depth in [1, 16] {
            let set = |options: &'static [&'static str]| {
                let value = value.clone();
                batches(depth, move |lane, n| {
                    let mut request = words(&["MAOS.SET", &key("m", lane * KEYS + n), &value]);
                    request.extend(options.iter().map(|w| w.to_string()));
                    request
                })
            };
            let (mine, plain) = (set(options), set(&[]));
            let (mut a, mut b) = (vec![], vec![]);
            for round in 0..knobs.rounds {
                let (_, _, (here, there)) = &mut pairs[round / 2 % 2];
                let mut sides = [(here, &mine, &mut a), (there, &plain, &mut b)];
                if round % 2 == 0 {
                    sides.reverse();
                }
                for (lanes, batches, rates) in sides {
                    rates.push(rate(lanes, batches, depth, knobs.slice));
                }
            }
            row(&format!("{name}, P {depth}"), &a, &b, 1000.0, target);
        }
    }
}

fn share(conn: &mut Conn, create: &str, with_others: bool) {
    let line = format!("MAOS.PARTITION CREATE part BYTES 1000000000 {create}");
    conn.run(&line).int();
    for n in 0..if with_others { 100 } else { 0 } {
        let line = format!("MAOS.PARTITION CREATE p{n} BYTES 1000 PREFIX other{n}:");
        conn.run(&line).int();
    }
}

fn definitions(knobs: &Knobs) {
    title("CREATE and DROP of a partition: thousand pairs a second, 50 clients; theirs: HSET of as many fields and DEL");
    header();
    let server = machine::server().start();
    let mut lanes = lanes(&server);
    for depth in [2, 32] {
        let ours = batches(depth, |lane, n| {
            let name = key("part", lane * KEYS + n / 2);
            match n % 2 {
                0 => words(&["MAOS.PARTITION", "CREATE", &name, "BYTES", "1000"]),
                _ => words(&["MAOS.PARTITION", "DROP", &name]),
            }
        });
        let theirs = batches(depth, |lane, n| {
            let name = key("hash", lane * KEYS + n / 2);
            match n % 2 {
                0 => words(&["HSET", &name, "bytes", "1000", "type", "shared_pool"]),
                _ => words(&["DEL", &name]),
            }
        });
        let rounds = alternate(knobs, |is_ours| {
            let batches = if is_ours { &ours } else { &theirs };
            rate(&mut lanes, batches, depth, knobs.slice) / 2.0
        });
        let (a, b): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        let target = if depth == 32 {
            Target::AtLeast(0.8)
        } else {
            Target::None
        };
        row(&format!("pairs, P {}", depth / 2), &a, &b, 1000.0, target);
    }
}

fn memory(knobs: &Knobs) {
    let keys = knobs.memory_keys / 4;
    title(&format!("Memory of {keys} keys of {SIZE} B in a partition, above the same in none (where 8 bytes of each key are for accounting)"));
    let used = |server: &Server| -> f64 {
        let info = server.conn().info("memory");
        info["used_memory"].parse().expect("a number of bytes")
    };
    let filled = |create: &str| {
        let server = machine::server().start();
        let conn = &mut server.conn();
        if !create.is_empty() {
            let line = format!("MAOS.PARTITION CREATE part BYTES 10000000000 PREFIX key {create}");
            conn.run(&line).int();
        }
        let (empty, value) = (used(&server), value(SIZE));
        let set = |i| words(&["MAOS.SET", &key("key", i), &value]);
        send_all(&mut server.conn(), (0..keys).map(set));
        (used(&server) - empty) / keys as f64
    };
    let none = filled("");
    for (name, create, target) in [
        (
            "bytes a key, above those of no partition",
            "",
            Target::AtMost(8.0),
        ),
        (
            "the same, ONFULL evict: its keys are listed",
            "ONFULL evict",
            Target::None,
        ),
    ] {
        let figure = filled(create) - none;
        println!("{name:<44} {figure:>9.2}  {}", target.judge(figure));
    }
}
