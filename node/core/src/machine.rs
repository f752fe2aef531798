//! The machine: deterministic `apply` of entries to a tree.

use quorate_shared::ids::{Hash, Index, Term, Timestamp};

/// What the applier reports after a batch of entries is in the tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Highest applied index.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Chain hash there.
    pub chain: Hash,
    /// Last timestamp applied.
    pub timestamp: Timestamp,
    /// Indexes of this batch that were void.
    pub void: Vec<Index>,
    /// A catalog key or a fence was among them.
    pub schema_changed: bool,
}
