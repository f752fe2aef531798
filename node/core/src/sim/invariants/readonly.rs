//! A read-only replica never changes except by shipping: what it applies it has received on a stream, and it takes no
//! write.

use std::collections::BTreeMap;

use quorate_shared::ids::Index;

#[derive(Default)]
pub struct ReadOnly {
    received: BTreeMap<u64, Index>,
}

impl ReadOnly {
    /// A batch has been taken up to this index.
    pub fn received(&mut self, node: u64, last: Index) {
        let known = self.received.entry(node).or_default();
        *known = last.max(*known);
    }

    /// It applies.
    pub fn applies(&self, node: u64, index: Index) -> Result<(), String> {
        let received = self.received.get(&node).copied().unwrap_or_default();
        if index > received {
            return Err(format!("the replica n{node} applies {index} and was only shipped {received}"));
        }
        Ok(())
    }
}
