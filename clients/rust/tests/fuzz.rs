//! A bounded fuzz of everything that is parsed: messages, and safetensors files. Seeded: ISORUN_FUZZ_SEED, and
//! ISORUN_FUZZ_SECONDS (2 each by default). It looks for panics, for messages that are read in two ways, and for
//! layouts that reach outside. `cargo run --release --example fuzz` goes on for as long as wanted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../examples/fuzz.rs"]
mod fuzz;

use std::time::Duration;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn messages() {
    let (seed, seconds) = (
        setting("ISORUN_FUZZ_SEED", 1),
        setting("ISORUN_FUZZ_SECONDS", 2),
    );
    let counts = fuzz::messages(seed, Duration::from_secs(seconds));
    // A fuzz that never gets past the first check finds nothing.
    assert!(counts.accepted > 100 && counts.refused > 100, "{counts:?}");
}

#[test]
fn safetensors() {
    let (seed, seconds) = (
        setting("ISORUN_FUZZ_SEED", 1),
        setting("ISORUN_FUZZ_SECONDS", 2),
    );
    let counts = fuzz::safetensors(seed, Duration::from_secs(seconds));
    assert!(counts.accepted > 20 && counts.refused > 100, "{counts:?}");
}
