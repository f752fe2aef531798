//! Which history an index is of: an epoch begun by a promotion goes on from a point of the one before, and what that one
//! has behind the point is only its own.
//!
//! Invariants checked elsewhere are per history: of one index there is one entry in each. Here it is checked that an epoch
//! is begun once, and that no node follows two epochs of one number.

use std::collections::BTreeMap;

use quorate_shared::ids::{Epoch, Index};

struct Branch {
    parent: Option<Epoch>,
    /// Up to here it is the parent's history.
    fork: Index,
    /// From there up to here it has what was not known to be committed in the parent's.
    adopted: Index,
    /// When it began.
    at: u64,
}

#[derive(Default)]
pub struct Lineage {
    branches: BTreeMap<Epoch, Branch>,
    /// The history of what each node has handed to its applier last.
    nodes: BTreeMap<u64, Epoch>,
    newest: Epoch,
}

impl Lineage {
    /// The cluster's first epoch.
    pub fn found(&mut self, epoch: Epoch) {
        self.branches.insert(epoch, Branch { parent: None, fork: Index::new(0), adopted: Index::new(0), at: 0 });
        self.newest = epoch;
    }

    /// A node begins an epoch; up to the first index its history is the one it had, up to the second what was not known to
    /// be committed.
    pub fn begins(&mut self, node: u64, epoch: Epoch, (fork, adopted): (Index, Index), at: u64) -> Result<(), String> {
        let parent = self.of_node(node);
        if epoch.number <= parent.number {
            return Err(format!("n{node} begins epoch {} behind epoch {}", epoch.number, parent.number));
        }
        let parent = Some(parent);
        if self.branches.insert(epoch, Branch { parent, fork, adopted, at }).is_some() {
            return Err(format!("n{node} begins epoch {} a second time", epoch.number));
        }
        if epoch.number > self.newest.number {
            self.newest = epoch;
        }
        Ok(())
    }

    /// The epoch that the cluster is to end up in.
    pub fn newest(&self) -> Epoch {
        self.newest
    }

    /// Two epochs have one number, and none is above them.
    pub fn is_split(&self) -> bool {
        self.branches.keys().filter(|epoch| epoch.number == self.newest.number).count() > 1
    }

    /// Epochs there ever were.
    pub fn epochs(&self) -> usize {
        self.branches.len()
    }

    /// A node starts, with what it has applied.
    pub fn opens(&mut self, node: u64, epoch: Epoch) {
        self.nodes.insert(node, epoch);
    }

    /// A node comes to an entry that begins an epoch.
    pub fn enters(&mut self, node: u64, epoch: Epoch) -> Result<(), String> {
        let before = self.of_node(node);
        if before == epoch {
            return Ok(());
        }
        let follows = self.branches.get(&epoch).is_some_and(|b| b.parent == Some(before));
        if !follows {
            return Err(format!(
                "n{node} follows epoch {}/{:x} from epoch {}/{:x}",
                epoch.number, epoch.id, before.number, before.id
            ));
        }
        self.nodes.insert(node, epoch);
        Ok(())
    }

    /// The epoch of what a node has handed to its applier last.
    pub fn of_node(&self, node: u64) -> Epoch {
        self.nodes.get(&node).copied().unwrap_or(self.newest)
    }

    /// The epoch that an index is of, in the history of an epoch.
    pub fn home(&self, epoch: Epoch, index: Index) -> Epoch {
        let mut at = epoch;
        while let Some(Branch { parent: Some(parent), fork, .. }) = self.branches.get(&at)
            && index <= *fork
        {
            at = *parent;
        }
        at
    }

    /// The epochs that an entry may be of that a node takes for one of this epoch: it has been adopted by a later one, of
    /// which the node has not heard yet.
    pub fn adopters(&self, epoch: Epoch, index: Index) -> impl Iterator<Item = Epoch> {
        let adopts = move |b: &Branch| b.parent == Some(epoch) && b.fork < index && index <= b.adopted;
        self.branches.iter().filter(move |(_, b)| adopts(b)).map(|(epoch, _)| *epoch)
    }

    /// Up to which index the history of `epoch` begins as that of `other`, one before it; none: it is not before it.
    pub fn common(&self, epoch: Epoch, other: Epoch) -> Option<Index> {
        let (mut at, mut least) = (epoch, Index::new(u64::MAX));
        while at != other {
            let branch = self.branches.get(&at)?;
            least = least.min(branch.fork);
            at = branch.parent?;
        }
        Some(least)
    }

    /// Whether what was done at an index in an epoch is in the newest history.
    pub fn survives(&self, epoch: Epoch, index: Index) -> bool {
        self.home(epoch, index) == self.home(self.newest, index)
    }

    /// Whether what was seen then at an index in an epoch is of the newest history: seen before another epoch began.
    pub fn was_seen(&self, epoch: Epoch, index: Index, at: u64) -> bool {
        let mut child = self.newest;
        if child == epoch {
            return true;
        }
        while let Some(Branch { parent: Some(parent), at: began, .. }) = self.branches.get(&child) {
            if *parent == epoch {
                return at < *began && self.survives(epoch, index);
            }
            child = *parent;
        }
        false
    }
}
