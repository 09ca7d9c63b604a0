//! The generator reaches what the table offers, and the model answers whatever it makes.

use std::collections::{HashMap, HashSet};

use maos_core::generate::Generator;
use maos_core::model::Model;
use maos_core::wire::reference::COMMANDS;
use maos_core::wire::{spec::Toks, Tok, Value};
use maos_core::Code;

const START_US: u64 = 1_790_000_000_000_000;

/// Runs a conversation, calling `after` with each request and its outcome.
fn converse(seed: u64, requests: usize, mut after: impl FnMut(&[Vec<u8>], Result<Value, Code>)) {
    let mut generator = Generator::new(seed);
    let mut model = Model::at(START_US);
    model.limits.value_max = 4000;
    model.limits.history_versions = 20;
    model.foreign.insert(generator.keys[0].clone());
    for _ in 0..requests {
        model.now_us += 1000;
        let request = generator.request(&model);
        let line: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        let outcome = model.run(&line);
        after(&request, outcome.map_err(|refusal| refusal.code));
    }
}

#[test]
fn every_command_is_applied_lost_refused_and_every_option_taken() {
    let mut taken: HashMap<String, HashSet<&str>> = HashMap::new();
    let (mut ran, mut refused) = (0, HashSet::new());
    converse(7, 60_000, |request, outcome| {
        let word = |n: usize| {
            let word = request.get(n).map_or(&[][..], |w| w);
            String::from_utf8_lossy(word).to_ascii_uppercase()
        };
        let name = match word(0).as_str() {
            name @ ("MAOS.PARTITION" | "MAOS.BACKUP") => format!("{name} {}", word(1)),
            name => name.to_owned(),
        };
        let seen = taken.entry(name).or_default();
        match outcome {
            Err(code) => {
                seen.insert("refused");
                refused.insert(code.word());
            }
            Ok(reply) => {
                ran += 1;
                let words = request
                    .iter()
                    .filter_map(|w| Tok::among(Toks::MAX >> (128 - Tok::ALL.len()), w));
                seen.extend(words.map(Tok::word));
                let lost = matches!(&reply, Value::Array(a) if a.first() == Some(&Value::Int(0)));
                seen.insert(if lost { "lost" } else { "applied" });
            }
        }
    });
    // What a roll-back of a prefix does it does between requests: it is never asked for.
    let asked = COMMANDS.iter().filter(|s| s.name != "MAOS.ROLLBACKTO");
    for spec in asked {
        let seen = &taken[spec.name];
        // A store in memory makes no files.
        if spec.name.starts_with("MAOS.BACKUP") {
            assert!(seen.contains("refused"), "{}", spec.name);
            continue;
        }
        for tok in Tok::ALL {
            // What functions there are is the server's own affair.
            let offered =
                spec.tokens() & tok.bit() != 0 && !spec.is_reserved(*tok) && *tok != Tok::Function;
            assert!(
                !offered || seen.contains(tok.word()),
                "{} {}",
                spec.name,
                tok.word()
            );
        }
        assert!(
            seen.contains("applied") && seen.contains("refused"),
            "{}",
            spec.name
        );
        let conditional = spec.tokens() & Tok::IfVersion.bit() != 0 || spec.name.ends_with("CAS");
        assert!(!conditional || seen.contains("lost"), "{}", spec.name);
    }
    for code in [
        Code::NoVersion,
        Code::NotJson,
        Code::TooBig,
        Code::Limit,
        Code::WrongType,
    ] {
        assert!(refused.contains(code.word()), "{}", code.word());
    }
    assert!((25_000..55_000).contains(&ran), "{ran} of 60000 were taken");
}

#[test]
fn a_seed_gives_the_same_conversation() {
    let all = |seed| {
        let mut all = vec![];
        converse(seed, 500, |request, outcome| {
            all.push((request.to_vec(), outcome))
        });
        all
    };
    assert_eq!(all(1), all(1));
    assert_ne!(all(1), all(2));
}
