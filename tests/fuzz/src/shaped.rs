//! Records that are nearly right: lengths and counts that agree, contents that may not. It comes where
//! changed bytes rarely do: many versions, several writers, packed values, histories that are trimmed.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use maos_core::codec::v1::Bounds;
use maos_fuzz::{decode, same_again, CLIENT};

/// A number as the encoding writes it.
fn number(out: &mut Vec<u8>, n: u64) {
    match n {
        0..251 => out.push(n as u8),
        251..65_536 => out.extend([251, n as u8, (n >> 8) as u8]),
        _ => {
            out.push(253);
            out.extend(n.to_le_bytes());
        }
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend(bytes);
}

/// The bytes of a version: a word, perhaps metadata and request id, a value, perhaps packed.
fn version(u: &mut Unstructured<'_>, stamp: u64) -> Result<Vec<u8>> {
    let kind: u8 = u.arbitrary()?;
    let mut word = stamp;
    let (tombstone, extras, packed) = (kind & 1 != 0, kind & 2 != 0, kind & 12 == 12);
    word |= u64::from(tombstone) << 53 | u64::from(extras) << 54 | u64::from(packed) << 55;
    if kind == 0xf0 {
        word |= 1 << u.int_in_range(56..=63)?;
    }
    let mut out = word.to_le_bytes().to_vec();
    if extras {
        let meta: &[u8] = [&b""[..], b"{}", b"{\"a\":1}", b"[1]"][u.choose_index(4)?];
        let reqid: &[u8] = [&b""[..], b"r", b"request-1"][u.choose_index(3)?];
        out.extend((meta.len() as u32).to_le_bytes());
        out.push(reqid.len() as u8);
        out.extend(meta);
        out.extend(reqid);
    }
    let value = vec![b'a' + kind % 16; u.int_in_range(0..=1500)?];
    match (packed, tombstone && kind & 16 == 0) {
        (_, true) => {}
        (true, _) => {
            // A literal run of LZ4, right or nearly so.
            let len = value.len().min(14);
            out.extend((len as u32).to_le_bytes());
            out.push((len as u8) << 4);
            out.extend(&value[..len.saturating_sub(usize::from(kind & 32 != 0))]);
        }
        (false, _) => out.extend(&value),
    }
    Ok(out)
}

fn record(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut out = vec![1];
    let sections = [0, 1, 1, 1, 1, 3, 128][u.choose_index(7)?];
    out.push(sections);
    let writers = u.int_in_range(1..=4)?;
    number(&mut out, writers);
    for n in 0..writers {
        bytes(&mut out, &[b'u', n as u8][..u.int_in_range(0..=2)?]);
        let agent: u8 = u.int_in_range(0..=2)?;
        out.push(agent.min(u.int_in_range(1..=2)?));
        if agent > 0 {
            bytes(&mut out, &vec![b'g'; agent.into()]);
        }
    }
    let mut stamp: u64 = u.int_in_range(1..=1 << 51)?;
    if sections & 1 != 0 {
        number(&mut out, stamp + u.int_in_range(0..=40)?);
        number(&mut out, stamp.saturating_sub(u.int_in_range(0..=3)?));
    }
    let versions = u.int_in_range(0..=60)?;
    number(&mut out, versions);
    for _ in 0..versions {
        stamp += u.int_in_range(0..=20)?;
        number(&mut out, u.int_in_range(0..=writers)?);
        bytes(&mut out, &version(u, stamp)?);
    }
    if u.ratio(1, 16)? {
        let at = u.choose_index(out.len())?;
        out[at] ^= 1 << u.int_in_range(0..=7)?;
    }
    Ok(out)
}

fuzz_target!(|data: &[u8]| {
    let u = &mut Unstructured::new(data);
    let Ok(encoded) = record(u) else { return };
    let _ = decode(&encoded, CLIENT);
    let Some(mut record) = decode(&encoded, Bounds::HARD) else {
        return;
    };
    // Kept otherwise, it says the same.
    let before = record.clone();
    record.pack(8, usize::MAX);
    assert!(record == before);
    same_again(&record);
    let drops = u.int_in_range(0..=70).unwrap_or(0);
    record.trim(drops);
    assert!(record.len() == before.len() - drops.min(before.len() - 1));
    assert!(record
        .newest_first()
        .eq(before.newest_first().take(record.len())));
    same_again(&record);
});
