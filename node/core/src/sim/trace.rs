//! What a run did: a running hash of every event, and the text when somebody wants to read it.

use std::fmt::Write as _;

use super::place::Place;

/// See the module.
pub struct Trace {
    hash: u64,
    pub text: Option<String>,
    pub events: u64,
}

impl Trace {
    pub fn new(verbose: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, text: verbose.then(String::new), events: 0 }
    }

    /// An event: when, where, what, and two numbers.
    pub fn note(&mut self, now: u64, at: impl Into<Place>, what: &'static str, a: u64, b: u64) {
        let at = at.into();
        self.events += 1;
        for word in [now, at.shard.get() << 32 | at.node, what.len() as u64, a, b] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        if let Some(text) = &mut self.text {
            let _ = writeln!(text, "{now} {at} {what} {a} {b}");
        }
    }

    /// More about it, for readers.
    pub fn say(&mut self, now: u64, what: impl FnOnce() -> String) {
        if let Some(text) = &mut self.text {
            let _ = writeln!(text, "{now} {}", what());
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }
}
