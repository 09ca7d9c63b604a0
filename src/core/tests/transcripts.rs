//! Conversations run against the model: the examples of the command table and `tests/scripts`.
//! `tests/server` runs the same against a live server.

use maos_core::model::Model;
use maos_core::transcript;
use maos_core::wire::reference::COMMANDS;

/// A day in 2026.
const NOW_US: u64 = 1_790_000_000_000_000;

#[test]
fn every_example_of_the_table_holds() {
    for spec in COMMANDS {
        let asked = transcript::run(spec.examples, &mut Model::at(NOW_US));
        let asked = asked.unwrap_or_else(|e| panic!("{}: {e}", spec.name));
        assert!(asked > 0, "{} has no example", spec.name);
    }
}

#[test]
fn every_script_holds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/scripts");
    let mut run = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        transcript::run(&text, &mut Model::at(NOW_US))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        run += 1;
    }
    assert!(run > 0, "no scripts in {folder}");
}

#[test]
fn a_transcript_that_is_wrong_is_noticed() {
    for wrong in [
        "> MAOS.SET k v\n< 'v'",
        "> MAOS.SET k v\n< $a\n> MAOS.SET k v\n< $a",
        "> MAOS.SET k v\n< $a\n> MAOS.GET k\n< 'w'",
        "> MAOS.SET k v\n< $a\n> MAOS.GET k WITHVERSION\n< ['v']",
        "> MAOS.SET k v\n< $a\n> MAOS.GET k WITHVERSION\n< ['v', $a, 1]",
        "> MAOS.GET k\n< !ERR",
        "> MAOS.GET k VERSION 0\n< null",
        "> MAOS.GET k",
    ] {
        assert!(
            transcript::run(wrong, &mut Model::at(NOW_US)).is_err(),
            "{wrong}"
        );
    }
}
