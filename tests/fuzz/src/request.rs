//! Any arguments for every command, and any bytes as metadata and JSON. Requests run on the store in
//! memory, whose records must stay such as can be written down.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maos_core::json;
use maos_core::model::Model;
use maos_core::wire::reference::COMMANDS;
use maos_fuzz::same_again;

fuzz_target!(|data: &[u8]| {
    let mut store = Model::at(1_790_000_000_000_000);
    for line in data.split(|b| *b == b'\n').take(8) {
        let Some((which, rest)) = line.split_first() else {
            continue;
        };
        let name = COMMANDS[usize::from(*which) % COMMANDS.len()].name;
        let mut args = vec![name.as_bytes()];
        args.extend(rest.split(|b| *b == b' '));
        store.now_us += 1;
        let _ = store.run(&args);
    }
    for held in store.keys().values() {
        same_again(&held.record);
    }
    let (from, to) = data.split_at(data.len() / 2);
    let _ = json::check_meta(data);
    let _ = json::diff(from, to);
});
