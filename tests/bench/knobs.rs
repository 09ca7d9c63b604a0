//! How long and how much is measured.

use std::env;
use std::str::FromStr;
use std::time::Duration;

/// The settings of one run.
pub struct Knobs {
    /// How often everything is measured; the medians of the rounds count.
    pub rounds: usize,
    /// How long one measurement of throughput takes, roughly.
    pub slice: Duration,
    /// How many keys throughput is measured over.
    pub keys: usize,
    /// How many keys memory is measured over.
    pub memory_keys: usize,
    /// How many requests instructions are counted over.
    pub counted: usize,
    /// Whether this run is only to show that everything works.
    pub quick: bool,
}

impl Knobs {
    /// `MAOS_BENCH_QUICK`, `MAOS_BENCH_ROUNDS` and `MAOS_BENCH_SECONDS`.
    pub fn from_env() -> Knobs {
        let quick = env::var_os("MAOS_BENCH_QUICK").is_some();
        let pick = |full, short| if quick { short } else { full };
        let seconds: f64 = var("MAOS_BENCH_SECONDS").unwrap_or(if quick { 0.1 } else { 1.0 });
        Knobs {
            rounds: var("MAOS_BENCH_ROUNDS").unwrap_or(pick(5, 1)).max(1),
            slice: Duration::from_secs_f64(seconds),
            keys: pick(100_000, 10_000),
            memory_keys: pick(1_000_000, 50_000),
            counted: pick(2000, 500),
            quick,
        }
    }
}

fn var<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name} is not a number: {text}"),
    }
}
