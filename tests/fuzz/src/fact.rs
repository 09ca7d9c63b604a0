//! Any bytes as a change that a master or the AOF brings, applied over a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use maos_core::codec::v1::{decode_fact, encode_fact};
use maos_core::record::{Parts, Record};
use maos_core::{Interner, Stamp};
use maos_fuzz::same_again;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let at = usize::from(*first).min(rest.len());
    let (value, fact) = rest.split_at(at);
    let keys = usize::from(*first % 4);
    let pairs = vec![(&b"k"[..], value); keys];
    let interner = &mut Interner::default();
    let mut again = vec![];
    let Ok(change) = decode_fact(fact, pairs.iter().copied(), interner) else {
        return;
    };
    encode_fact(&change, &mut again);
    let back =
        decode_fact(&again, pairs.into_iter(), interner).expect("what is sent is understood");
    assert!(back == change);
    for n in 0..change.writes.len() {
        let who = interner.get(b"u", None).clone();
        let mut record = Record::new(&Parts {
            stamp: Stamp(1),
            who: &who,
            value: Some(b"v"),
            meta: None,
            reqid: None,
            time_ms: None,
        });
        change.apply(n, Some(&mut record));
        same_again(&record);
        change.apply(n, Some(&mut record));
        same_again(&record);
        if let Some(made) = change.apply(n, None) {
            same_again(&made);
        }
    }
});
