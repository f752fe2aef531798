//! Equal index means equal hash and digest, on voters and log-shipped replicas alike.

use std::collections::BTreeMap;

use quorate_shared::ids::{Epoch, Hash, Index};

use super::lineage::Lineage;

#[derive(Default)]
pub struct States {
    known: BTreeMap<(Epoch, Index), (Hash, Hash)>,
    highest: BTreeMap<u64, Index>,
}

impl States {
    /// A node has applied so far.
    pub fn applied(
        &mut self,
        lineage: &Lineage,
        (node, index): (u64, Index),
        chain: Hash,
        digest: Hash,
    ) -> Result<(), String> {
        let highest = self.highest.entry(node).or_default();
        *highest = index.max(*highest);
        let epoch = lineage.of_node(node);
        let (known_chain, known_digest) =
            *self.known.entry((lineage.home(epoch, index), index)).or_insert((chain, digest));
        let adopted = |epoch| *self.known.entry((epoch, index)).or_insert((chain, digest)) == (chain, digest);
        if (known_chain, known_digest) == (chain, digest) || lineage.adopters(epoch, index).any(adopted) {
            return Ok(());
        }
        if known_chain != chain {
            return Err(format!("n{node} has another chain hash at {index}"));
        }
        Err(format!("n{node} has the chain but another digest at {index}"))
    }

    /// The furthest a node ever was.
    pub fn highest(&self, node: u64) -> Index {
        self.highest.get(&node).copied().unwrap_or_default()
    }
}
