//! The engine: ordered bytes on disk, derived from the log.
//!
//! One [`Engine`] per node, one [`Tree`] per replica. Writes are atomic batches. Nothing here is synced on commit: every
//! batch carries the applied index (see [`crate::machine`]), and what is lost is applied again from the log.
//!
//! Invariants: a value read is the value written or an error (checksum), never something else; iterators are *not*
//! snapshots, versions are (see [`crate::mvcc`]).

pub mod behind;
pub mod memory;
pub mod mirror;
pub mod sled;

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Fatal;

/// A half-open range of encoded keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    /// First key, inclusive.
    pub start: Bytes,
    /// End, exclusive; `None` means to the end of the tree.
    pub end: Option<Bytes>,
}

/// One atomic change: puts (`Some`) and deletes (`None`), applied in order of keys; the last of one key wins.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    /// Keys and new values.
    pub writes: std::collections::BTreeMap<Bytes, Option<Bytes>>,
}

/// What a scan yields.
pub type ScanItem = Result<(Bytes, Bytes), Fatal>;

/// All trees of a node.
pub trait Engine: Send + Sync {
    /// Opens a tree, creating it if it is new.
    fn tree(&self, name: &str) -> Result<Arc<dyn Tree>, Fatal>;
    /// Drops a tree whole.
    fn drop_tree(&self, name: &str) -> Result<(), Fatal>;
    /// Makes everything written so far durable.
    fn flush(&self) -> Result<(), Fatal>;
    /// Bytes on disk.
    fn size_bytes(&self) -> u64;
}

/// Ordered keys of one replica. Shared by readers and the one applier.
pub trait Tree: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal>;
    /// Keys of a range in order, or from its end if `reverse`. Sees writes that happen meanwhile, or not.
    fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a>;
    /// Applies a batch atomically.
    fn write(&self, batch: Batch) -> Result<(), Fatal>;
    /// Looks at up to `budget` more keys: whether all of them together are what was written, nothing missing and nothing
    /// that was gone. `true` ends a round; batches may be written meanwhile. An engine that cannot lose a part of what was
    /// written to it has nothing to look at.
    fn check(&self, budget: usize) -> Result<bool, Fatal> {
        let _ = budget;
        Ok(true)
    }
}
