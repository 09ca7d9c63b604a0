//! Any bytes as a record: what a client RESTOREs, and what a file or a master brings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maos_core::codec::v1::Bounds;
use maos_fuzz::{decode, CLIENT};

fuzz_target!(|bytes: &[u8]| {
    let held = decode(bytes, Bounds::HARD);
    let restored = decode(bytes, CLIENT);
    // Bounds refuse; they change nothing.
    if let Some(restored) = restored {
        assert!(held.is_some_and(|held| held == restored));
    }
});
