//! How often merges met a write that came first, and what became of it: by strategy and by namespace.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use maos_core::wire::update::Strategy;

/// So many namespaces are counted; what is in others is counted together.
const NAMESPACES_MAX: usize = 256;

/// How often.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// It was refused, and the writer told.
    pub conflicted: u64,
    /// It was decided.
    pub resolved: u64,
}

#[derive(Default)]
struct Conflicts {
    strategies: [Counts; Strategy::WORDS.len()],
    namespaces: BTreeMap<String, Counts>,
}

static CONFLICTS: Mutex<Option<Conflicts>> = Mutex::new(None);

fn with<T>(then: impl FnOnce(&mut Conflicts) -> T) -> T {
    let mut conflicts = CONFLICTS.lock().unwrap_or_else(PoisonError::into_inner);
    then(conflicts.get_or_insert_default())
}

/// Counts one.
pub fn count(strategy: Strategy<'_>, key: &[u8], resolved: bool) {
    let name = namespace(key);
    with(|c| {
        let others = c.namespaces.len() >= NAMESPACES_MAX && !c.namespaces.contains_key(&name);
        let name = if others { "(others)".into() } else { name };
        for counts in [
            &mut c.strategies[strategy.place()],
            c.namespaces.entry(name).or_default(),
        ] {
            match resolved {
                true => counts.resolved += 1,
                false => counts.conflicted += 1,
            }
        }
    });
}

/// The first segment of a state key, as it may stand in INFO.
fn namespace(key: &[u8]) -> String {
    let first = key.split(|b| *b == b':').next().unwrap_or_default();
    let first: Vec<u8> = first
        .iter()
        .copied()
        .filter(|b| !b"{}".contains(b))
        .collect();
    shown(&first)
}

/// A name as it may stand in INFO: what it may not have there is shown as `%NN`.
pub fn shown(name: &[u8]) -> String {
    name.iter()
        .take(64)
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
                char::from(*b).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

/// What was counted: by strategy, and by namespace; those that never were are left out.
pub fn counts() -> Vec<(String, Counts)> {
    with(|c| {
        let strategies = Strategy::WORDS.iter().zip(&c.strategies);
        let met = |c: &Counts| c.conflicted + c.resolved > 0;
        let strategies = strategies
            .filter(|(_, counts)| met(counts))
            .map(|(tok, counts)| {
                (
                    format!("merge_{}", tok.word().to_ascii_lowercase()),
                    *counts,
                )
            });
        let namespaces = c
            .namespaces
            .iter()
            .map(|(name, counts)| (format!("merge_namespace_{name}"), *counts));
        strategies.chain(namespaces).collect()
    })
}
