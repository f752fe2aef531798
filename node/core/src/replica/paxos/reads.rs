//! Linearizable reads: after a read has come the leader asks the others what they have promised. A majority that has
//! promised nothing higher than its round proves that no later leader has decided anything before the read came.

use std::collections::{BTreeSet, VecDeque};

use quorate_shared::ids::Index;

/// Rounds that wait; the shard has one at a time.
const ROUNDS_MAX: usize = 16;

#[derive(Debug)]
struct Round {
    context: u64,
    index: Index,
    confirmed: BTreeSet<u64>,
}

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Reads {
    rounds: VecDeque<Round>,
}

impl Reads {
    /// Asks from now on.
    pub(super) fn begin(&mut self, context: u64, index: Index) {
        if self.rounds.len() >= ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round { context, index, confirmed: BTreeSet::new() });
    }

    /// A voter confirms. Gives the index if a majority has now; `others` is how many of them must.
    pub(super) fn confirm(&mut self, from: u64, context: u64, others: usize) -> Option<Index> {
        let at = self.rounds.iter().position(|r| r.context == context)?;
        let round = self.rounds.get_mut(at)?;
        round.confirmed.insert(from);
        if round.confirmed.len() < others {
            return None;
        }
        self.rounds.remove(at).map(|r| r.index)
    }

    /// What a voter has still to confirm.
    pub(super) fn open_for(&self, voter: u64) -> Vec<u64> {
        self.rounds.iter().filter(|r| !r.confirmed.contains(&voter)).map(|r| r.context).collect()
    }

    /// Leadership is lost.
    pub(super) fn clear(&mut self) {
        self.rounds.clear();
    }
}
