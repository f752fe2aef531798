//! A state as the beginning of another cluster, and a state's digests for whoever archives them.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Hash, Index, TableId};

use super::{Machine, MachineState};
use crate::engine::{Batch, Tree};
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::log::EpochStart;
use crate::membership::Membership;

/// The digests of a tree's tables, and the point they are of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digests {
    /// The applied index.
    pub index: Index,
    /// The chain hash there.
    pub chain: Hash,
    /// By storage, those that have rows; the catalog's is 0.
    pub digests: BTreeMap<TableId, Hash>,
}

/// Reads a tree's digests while entries are applied to it; `None`: they were changed meanwhile, or there is nothing yet.
pub fn digests(tree: &dyn Tree) -> Result<Option<Digests>, Fatal> {
    let Some(before) = tree.get(&Key::Applied.encode())? else { return Ok(None) };
    let mut digests = BTreeMap::new();
    for item in tree.scan(&keys::digests_range(), false) {
        let (key, value) = item?;
        if let (Key::Digest(storage), Some(digest)) = (Key::decode(&key)?, value.first_chunk::<32>()) {
            digests.insert(storage, Hash(*digest));
        }
    }
    // Every batch has the applied record in it: equal bytes mean that none was written in between.
    if tree.get(&Key::Applied.encode())?.as_ref() != Some(&before) {
        return Ok(None);
    }
    let state = MachineState::decode_applied(&before)?;
    Ok(Some(Digests { index: state.index, chain: state.chain, digests }))
}

impl Machine {
    /// Makes the state as it is the beginning of another cluster: its members and its epoch are these from here on.
    pub fn refound(&mut self, membership: Membership, epoch: Epoch) -> Result<(), Fatal> {
        self.state.membership = Arc::new(membership);
        self.state.epoch = epoch;
        self.state.epoch_start = EpochStart { index: self.state.index, chain: self.state.chain };
        let mut batch = Batch::default();
        batch.writes.insert(Key::Applied.encode(), Some(self.state.encode_applied()));
        self.tree.write(batch)
    }
}

impl MachineState {
    /// The digests as [`digests`] reads them.
    pub fn digests(&self) -> Digests {
        let used = self.digests.iter().filter(|(_, digest)| **digest != super::Digest::default());
        let digests = used.filter_map(|(storage, digest)| Some((*storage, Hash(*digest.encode().first_chunk()?))));
        Digests { index: self.index, chain: self.chain, digests: digests.collect() }
    }
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::{NodeId, ReplicaId, ShardId};

    use super::*;
    use crate::engine::memory::MemoryTree;
    use crate::log::BaseRecord;

    #[test]
    fn a_state_begins_another_cluster() {
        let members = |n: u64| Membership::of_voters([(ReplicaId::new(n), NodeId::new(n))]);
        let base = BaseRecord::founding(ShardId::DATA, members(1), Epoch { number: 1, id: 2 });
        let tree: Arc<dyn Tree> = Arc::new(MemoryTree::default());
        let mut machine = Machine::open(tree.clone(), &base).unwrap();
        assert_eq!(digests(&*tree).unwrap(), None);
        let epoch = Epoch { number: 2, id: 3 };
        machine.refound(members(7), epoch).unwrap();
        assert_eq!(digests(&*tree).unwrap(), Some(machine.state().digests()));
        let again = Machine::open(tree, &base).unwrap();
        let now = again.state().base(ShardId::DATA);
        assert_eq!((now.epoch, now.membership), (epoch, members(7)));
    }
}
