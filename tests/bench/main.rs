//! How fast and how small the module is, beside plain Redis in the same run.
//!
//! `make bench` runs all of it; `README.md` in this folder says how to read what it prints.

#[path = "../server/harness/mod.rs"]
mod harness;

mod backups;
mod cas;
mod data;
mod instructions;
mod knobs;
mod lane;
mod locks;
mod machine;
mod memory;
mod partitions;
mod ranging;
mod table;
mod throughput;
mod updates;
mod watching;

use std::env;

use knobs::Knobs;

/// A part of the benchmark, by the name under which it can be asked for.
type Part = (&'static str, fn(&Knobs));

const PARTS: [Part; 10] = [
    ("throughput", throughput::run),
    ("cas", cas::run),
    ("locks", locks::run),
    ("updates", updates::run),
    ("partitions", partitions::run),
    ("watching", watching::run),
    ("ranging", ranging::run),
    ("backups", backups::run),
    ("instructions", instructions::run),
    ("memory", memory::run),
];

fn main() {
    // `cargo test --all-targets` starts this too, without the word.
    let args: Vec<String> = env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        println!("nothing is measured without optimisation: make bench");
        return;
    }
    let wanted: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| PARTS.iter().all(|(part, _)| part != *name))
    {
        panic!(
            "no part is called {unknown:?}; there are: {:?}",
            PARTS.map(|(name, _)| name)
        );
    }
    let knobs = Knobs::from_env();
    machine::describe(&knobs);
    for (name, run) in PARTS {
        if wanted.is_empty() || wanted.contains(&name) {
            run(&knobs);
        }
    }
}
