//! No two live replicas on a node overlap: one part at a time has the shard's log and tree.

use std::collections::BTreeMap;

#[derive(Default)]
pub struct Overlap {
    live: BTreeMap<u64, u64>,
}

impl Overlap {
    /// A replica begins to live on a node.
    pub fn begins(&mut self, node: u64, life: u64) -> Result<(), String> {
        match self.live.insert(node, life) {
            Some(other) => Err(format!("n{node} begins life {life} while life {other} goes on")),
            None => Ok(()),
        }
    }

    /// It is over.
    pub fn ends(&mut self, node: u64) {
        self.live.remove(&node);
    }
}
