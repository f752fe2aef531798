//! Equal index means equal hash and digest, on voters and log-shipped replicas alike.

use std::collections::BTreeMap;

use quorate_shared::ids::{Hash, Index};

#[derive(Default)]
pub struct States {
    known: BTreeMap<Index, (Hash, Hash)>,
    highest: BTreeMap<u64, Index>,
}

impl States {
    /// A node has applied so far.
    pub fn applied(&mut self, node: u64, index: Index, chain: Hash, digest: Hash) -> Result<(), String> {
        let highest = self.highest.entry(node).or_default();
        *highest = index.max(*highest);
        let (known_chain, known_digest) = *self.known.entry(index).or_insert((chain, digest));
        if known_chain != chain {
            return Err(format!("n{node} has another chain hash at {index}"));
        }
        if known_digest != digest {
            return Err(format!("n{node} has the chain but another digest at {index}"));
        }
        Ok(())
    }

    /// The furthest a node ever was.
    pub fn highest(&self, node: u64) -> Index {
        self.highest.get(&node).copied().unwrap_or_default()
    }
}
