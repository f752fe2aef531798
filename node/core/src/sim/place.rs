//! Where something is: a shard's replica on a node. Whatever has no shard, a client, say, is of the first.

use std::fmt;
use std::ops::{Index, IndexMut};

use quorate_shared::ids::ShardId;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub shard: ShardId,
    pub node: u64,
}

impl Place {
    /// The same shard on another node.
    pub fn on(self, node: u64) -> Self {
        Self { node, ..self }
    }
}

impl From<u64> for Place {
    fn from(node: u64) -> Self {
        Self { shard: ShardId::META, node }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard {
            ShardId::META => write!(f, "n{}", self.node),
            shard => write!(f, "n{}/{shard}", self.node),
        }
    }
}

/// One of each shard.
#[derive(Clone, Debug, Default)]
pub struct ByShard<T>(Vec<T>);

impl<T> ByShard<T> {
    /// For so many shards.
    pub fn new(shards: u64, make: impl FnMut(ShardId) -> T) -> Self {
        Self((0..shards).map(ShardId::new).map(make).collect())
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

impl<T> Index<ShardId> for ByShard<T> {
    type Output = T;
    fn index(&self, shard: ShardId) -> &T {
        &self.0[shard.get() as usize]
    }
}

impl<T> IndexMut<ShardId> for ByShard<T> {
    fn index_mut(&mut self, shard: ShardId) -> &mut T {
        &mut self.0[shard.get() as usize]
    }
}
