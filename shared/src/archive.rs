//! The log archive: what a backup gets of a shard, and the files it is kept in.
//!
//! A node streams a shard as [`ArchivePart`]s: where it begins (a base, with its snapshot where the log does not reach
//! back to the beginning), then entries as they are committed, digests to check a restore against, and signs of life.
//! [`mod@file`] keeps the parts in files that prove themselves, [`manifest`] says which files belong together.
//!
//! Invariants: entries are archived as the bytes that were hashed, so the chain can be recomputed from the files alone; a
//! point is gone on from only where the serving log has the same chain hash.

pub mod file;
pub mod manifest;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Epoch, Hash, Index, ShardId, TableId, Timestamp};

/// A point of a shard's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchivePoint {
    /// The epoch in which it was archived.
    pub epoch: Epoch,
    /// The index.
    pub index: Index,
    /// The chain hash there.
    pub chain: Hash,
}

/// Where an archive of a shard begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveBase {
    /// The cluster.
    pub cluster: ClusterId,
    /// The point; entries begin after it.
    pub point: ArchivePoint,
    /// The last timestamp at or before it.
    pub timestamp: Timestamp,
    /// The node's own record of that point, members included.
    pub record: Vec<u8>,
    /// A snapshot of the state there follows; without one the state there is empty.
    pub snapshot: bool,
}

/// Entries that follow what came before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchivedEntries {
    /// Index of the first.
    pub first: Index,
    /// Index of the last.
    pub last: Index,
    /// The chain hash after the last.
    pub chain: Hash,
    /// The timestamp of the first that has one; 0 if none has.
    pub first_time: Timestamp,
    /// The timestamp of the last that has one; 0 if none has.
    pub last_time: Timestamp,
    /// The entries, as the node encodes them.
    pub bytes: Vec<u8>,
}

/// The digest of one table's current rows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableDigest {
    /// The storage; 0 is the catalog's.
    pub storage: TableId,
    /// The table's name, for messages.
    pub table: String,
    /// The digest's bytes.
    pub digest: Hash,
}

/// The state at an index, as the node that was archived had it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveMark {
    /// The index; not above the last archived before the mark.
    pub index: Index,
    /// The chain hash there.
    pub chain: Hash,
    /// Of every table that has rows.
    pub digests: Vec<TableDigest>,
}

/// A part of a shard's stream for a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ArchivePart {
    /// First, when the archive is begun.
    Base(ArchiveBase),
    /// A piece of the base's snapshot.
    Snapshot {
        /// Where it belongs in the file.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
        /// It is the last piece.
        last: bool,
    },
    /// Entries.
    Entries(ArchivedEntries),
    /// Digests.
    Mark(ArchiveMark),
    /// Everything committed up to a moment has been sent.
    Beat {
        /// The last index sent.
        index: Index,
        /// The moment, by the clock of the shard's leader, in milliseconds since 1970; lower where it is not known.
        until_ms: u64,
    },
    /// What was asked for is complete; nothing follows.
    End,
}

/// What an archiver says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveReport {
    /// Its id, drawn when the archive was begun.
    pub id: u64,
    /// Where it writes, for people.
    pub label: String,
    /// When the archive was begun, milliseconds since 1970.
    pub started_ms: u64,
    /// Milliseconds since the moment up to which everything is durable in it.
    pub age_ms: u64,
    /// The last durable index of each shard.
    pub shards: Vec<(ShardId, Index)>,
}
