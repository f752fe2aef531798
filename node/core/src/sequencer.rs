//! The sequencer: turns proposals into entries, on the leader only.
//!
//! It validates a proposal against applied *plus in-flight* state, keeps indexes and constraints, gives numbers and
//! timestamps, and collects the effects of many proposals in one open entry. It is created when a replica has become
//! leader and has applied its whole log, and dropped whole when leadership is lost: nothing in it outlives that.
//!
//! Use: any number of [`Sequencer::propose`], then [`Sequencer::seal`] until it gives `None`; each [`Sealed`] entry goes to
//! the replicator at exactly its index. After the applier has applied, [`Sequencer::applied`].
//!
//! Invariants: pure, no clock, no threads; a rejected proposal leaves nothing behind; entries are contiguous and each
//! names the chain hash of its predecessor; timestamps strictly grow.

use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Hash, Index, ShardId, Timestamp};

use crate::engine::Tree;
use crate::error::{Fatal, Rejected};
use crate::machine::Applied;
use crate::proposal::{Proposal, WriteResult};

/// What became of a proposal for now.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    /// It is in an entry, sealed or still open: the answer is [`Sealed::results`]`[position]` once that index is applied
    /// here. If leadership is lost before, the outcome is unknown.
    Staged {
        /// The entry.
        index: Index,
        /// Its place in the entry's results.
        position: usize,
    },
    /// It had been executed before, or is in flight: this answer is final once `index` is applied here (at once, if it is).
    Duplicate {
        /// The answer, marked `duplicate`.
        result: WriteResult,
        /// The entry that carries it.
        index: Index,
    },
    /// Nothing to append: a refusal, zero rows. It is a *read*: released when everything up to `depends_on` is applied
    /// here and leadership has been confirmed after this moment; else `retry`.
    Answer {
        /// The answer.
        result: Result<WriteResult, Rejected>,
        /// The last entry in flight it was evaluated on; 0 if none.
        depends_on: Index,
    },
}

/// An entry ready to be appended.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Exactly where it must be appended.
    pub index: Index,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// The chain hash at this index.
    pub chain: Hash,
    /// Its canonical bytes.
    pub bytes: Bytes,
    /// Answers of its proposals by position, `index` and `timestamp` filled in; `replicas` and `epoch` are the shard's.
    pub results: Vec<WriteResult>,
}

/// Evaluates proposals of one shard's leader. See the module.
pub struct Sequencer {
    shard: ShardId,
    tree: Arc<dyn Tree>,
    last: Index,
}

impl Sequencer {
    /// Starts from what is applied; the whole log must be. Definitions, sequences and client windows are read from the tree.
    pub fn new(shard: ShardId, tree: Arc<dyn Tree>, applied: &Applied) -> Result<Self, Fatal> {
        Ok(Self { shard, tree, last: applied.index })
    }

    /// Evaluates a proposal. `now_ms` is the wall clock in milliseconds since 1970, for the entry's timestamp.
    pub fn propose(&mut self, now_ms: u64, proposal: Proposal) -> Result<Decision, Fatal> {
        let _ = (now_ms, proposal, self.shard, &self.tree);
        Ok(Decision::Answer { result: Err(Rejected::Retry("not there yet".into())), depends_on: self.last })
    }

    /// The next entry to append, in order; closes the open one. `None`: nothing is staged.
    pub fn seal(&mut self) -> Result<Option<Sealed>, Fatal> {
        Ok(None)
    }

    /// Entries up to this index are applied to the tree.
    pub fn applied(&mut self, index: Index) {
        let _ = index;
    }

    /// The index of the last entry sealed or open.
    pub fn last_index(&self) -> Index {
        self.last
    }
}
