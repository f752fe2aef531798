//! How old what a replica has applied may be: no clocks are compared, only its own is read.
//!
//! It asks, remembers when, and is answered with a commit index that a quorum has confirmed after the question arrived.
//! Whatever was acknowledged before it asked is at or below that index: once it is applied, what is here is no older than
//! the question. Over a server that is no leader the server's own age is added.
//!
//! Invariant: the age never falls without an answer to a later question.

use std::collections::VecDeque;

use quorate_shared::ids::Index;

/// Answers whose index is not applied yet.
const PENDING_MAX: usize = 64;

/// One shard's age. Times are on a clock of the caller that also runs while the machine sleeps.
#[derive(Clone, Debug, Default)]
pub struct Freshness {
    /// When the question was asked whose answer is applied.
    have: Option<u64>,
    /// Answers that are not, the oldest first, growing in both.
    pending: VecDeque<(Index, u64)>,
}

impl Freshness {
    /// A question asked at `asked` was answered with an index; `applied` is what is applied now.
    pub fn confirmed(&mut self, index: Index, asked: u64, applied: Index) {
        self.applied(applied);
        if index <= applied {
            self.have = self.have.max(Some(asked));
            return;
        }
        if self.pending.back().is_some_and(|(_, last)| *last >= asked) {
            return;
        }
        if self.pending.len() >= PENDING_MAX {
            // The oldest are the next to become true; of the newest one is enough.
            self.pending.pop_back();
        }
        self.pending.push_back((index, asked));
    }

    /// Since when, at the latest, everything that was acknowledged is in what is applied.
    pub fn asked(&mut self, applied: Index) -> Option<u64> {
        self.applied(applied);
        self.have
    }

    fn applied(&mut self, applied: Index) {
        while let Some((_, asked)) = self.pending.pop_front_if(|(index, _)| *index <= applied) {
            self.have = self.have.max(Some(asked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Index {
        Index::new(index)
    }

    #[test]
    fn an_answer_counts_when_its_index_is_applied_and_from_when_it_was_asked() {
        let mut fresh = Freshness::default();
        assert_eq!(fresh.asked(at(5)), None);
        fresh.confirmed(at(7), 100, at(5));
        fresh.confirmed(at(9), 200, at(5));
        assert_eq!(fresh.asked(at(6)), None);
        assert_eq!(fresh.asked(at(8)), Some(100));
        assert_eq!(fresh.asked(at(9)), Some(200));
        // A late answer to an old question makes nothing older.
        fresh.confirmed(at(9), 150, at(9));
        assert_eq!(fresh.asked(at(9)), Some(200));
    }

    #[test]
    fn one_that_never_catches_up_stays_bounded_and_true() {
        let mut fresh = Freshness::default();
        for n in 1..1000 {
            fresh.confirmed(at(n), n, at(0));
        }
        assert!(fresh.pending.len() <= PENDING_MAX);
        assert_eq!(fresh.asked(at(10)), Some(10));
        assert_eq!(fresh.asked(at(999)), Some(999));
    }
}
