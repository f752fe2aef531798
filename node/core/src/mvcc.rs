//! Versions: reading a shard as of a timestamp.
//!
//! `data/<table>/<index>/<columns>` holds the newest version inline (timestamp, then the row or a tombstone);
//! `history/…/<descending timestamp>` holds older ones. Every read has a timestamp; sled iterators are no snapshots,
//! versions are.

use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::Timestamp;

use crate::engine::{KeyRange, Tree};
use crate::error::Fatal;

/// A row of a data key: its version and bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// When it was written.
    pub timestamp: Timestamp,
    /// The row (or index payload).
    pub row: Bytes,
}

/// A shard's state as of a timestamp. Cheap to clone; safe to use from any thread while writes go on.
#[derive(Clone)]
pub struct Snapshot {
    /// Where it reads.
    pub tree: Arc<dyn Tree>,
    /// As of when: that of the applied index when the read began, for reads of now.
    pub timestamp: Timestamp,
}

/// What a snapshot's scan yields: data key and version.
pub type VersionItem = Result<(Bytes, Version), Fatal>;
