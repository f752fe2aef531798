//! The log is never trimmed past a base: what is gone from a log is in a synced snapshot file of the same node.

use std::collections::BTreeMap;

use quorate_shared::ids::Index;

#[derive(Default)]
pub struct Bases {
    synced: BTreeMap<u64, Index>,
    incarnations: BTreeMap<u64, u64>,
}

impl Bases {
    /// A snapshot file of a node is written and synced.
    pub fn synced(&mut self, node: u64, index: Index) {
        let known = self.synced.entry(node).or_default();
        *known = index.max(*known);
    }

    /// A node starts, in this incarnation: what an earlier one had is gone.
    pub fn begins(&mut self, node: u64, incarnation: u64) {
        if self.incarnations.insert(node, incarnation).is_some_and(|before| before != incarnation) {
            self.synced.remove(&node);
        }
    }

    /// The node's log begins after this index now.
    pub fn trimmed(&self, node: u64, index: Index) -> Result<(), String> {
        let base = self.synced.get(&node).copied().unwrap_or_default();
        if index > base {
            return Err(format!("n{node} trims its log up to {index}, its newest base is at {base}"));
        }
        Ok(())
    }
}
