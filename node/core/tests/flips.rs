//! Bit flips, a few hundred of them; `QUORATE_FLIPS=10000` for more. See `examples/flips/suite.rs`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../examples/flips/suite.rs"]
mod suite;

use suite::{Class, Seen};

#[test]
fn every_flipped_bit_is_noticed_or_without_effect() {
    let count = std::env::var("QUORATE_FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut missed = Vec::new();
    let tally = suite::run(0..count, |number, seen, said| {
        if seen == Seen::Missed {
            missed.push(format!("flip {number}: {said}"));
        }
    });
    assert!(missed.is_empty(), "{missed:#?}");
    assert_ne!(suite::fingerprint(), quorate_shared::ids::Hash::default());
    // After a clean close nothing at all goes unnoticed, not even in space that nobody uses.
    for class in [Class::Log, Class::Snapshot, Class::Engine] {
        assert_eq!(tally.get(&("closed", class, Seen::NoEffect)), None, "{tally:?}");
        assert_eq!(tally.get(&("closed", class, Seen::Torn)), None, "{tally:?}");
    }
}
