//! Election timeouts from our own seed.
//!
//! raft-rs draws them from the thread's generator. The value it holds is read in its `tick` only, so it is overwritten
//! right before each: drawn once, kept while nothing changes, and drawn anew when an election begins, a leader is heard
//! or the term moves, so that two candidates that tied once do not tie for ever.

use crate::replica::random::Random;

/// What the timeout depends on: as long as it stays, the timeout does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Phase {
    pub(super) term: u64,
    pub(super) role: u8,
    pub(super) leader: u64,
}

/// Chooses election timeouts, in ticks.
#[derive(Debug)]
pub(super) struct ElectionClock {
    random: Random,
    min: usize,
    max: usize,
    phase: Option<Phase>,
    elapsed: usize,
    timeout: usize,
}

impl ElectionClock {
    pub(super) fn new(seed: u64, min: usize, max: usize) -> Self {
        Self { random: Random::new(seed), min, max, phase: None, elapsed: 0, timeout: min }
    }

    /// The longest timeout there is.
    pub(super) fn longest(&self) -> usize {
        self.max.saturating_sub(1)
    }

    /// The timeout for the next tick, given what raft-rs shows now.
    pub(super) fn timeout(&mut self, phase: Phase, elapsed: usize) -> usize {
        if self.phase != Some(phase) || elapsed < self.elapsed {
            self.timeout = self.random.range(self.min, self.max);
            self.phase = Some(phase);
        }
        self.elapsed = elapsed;
        self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut clock = ElectionClock::new(seed, 10, 20);
            (0..50)
                .map(|term| clock.timeout(Phase { term, role: 0, leader: 0 }, 0))
                .inspect(|t| assert!((10..20).contains(t)))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn stays_until_the_clock_is_reset() {
        let mut clock = ElectionClock::new(1, 0, 1_000_000);
        let phase = Phase { term: 1, role: 0, leader: 0 };
        let first = clock.timeout(phase, 0);
        assert_eq!(clock.timeout(phase, 1), first);
        assert_eq!(clock.timeout(phase, 2), first);
        assert_ne!(clock.timeout(phase, 1), first, "a reset draws anew");
    }
}
