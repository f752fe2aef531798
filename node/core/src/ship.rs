//! Shipping: the stream of committed entries, pulled by whoever wants it.
//!
//! A reader asks a node for a shard's entries after a point ([`Pull`]: epoch, index and chain hash) and gets
//! [`ShipBatch`]es. It verifies that they follow what it has and that they chain, writes them to its own log, applies
//! them, and says how far it is ([`ShipProgress`]). The protocol among the voters is not seen here, and never waits for
//! a reader. [`serve`] is the node's side, [`follow`] the reader's; sockets are the driver's business.
//!
//! Invariants: only committed entries are shipped; a reader whose point is not in the server's log is refused, never
//! corrected; what is on its way to a reader is bounded by the window it gave.

pub mod changes;
pub mod follow;
pub mod fresh;
pub mod serve;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use quorate_shared::ids::{Epoch, Hash, Index, ShardId, Term};
use serde::{Deserialize, Serialize};

use crate::entry::{self, Entry};
use crate::error::Fatal;
use crate::log::{EpochStart, LogEntry, LogReader, Payload};

/// The format version written; a message of another is not understood.
const VERSION: u8 = 2;
/// Of the checksum at a message's end: chains say nothing about terms, and a network's own checksums are weak.
const CHECKSUM_BYTES: usize = 4;

/// "Give me this shard's entries after this point."
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pull {
    /// The shard.
    pub shard: ShardId,
    /// The epoch the reader is in.
    pub epoch: Epoch,
    /// The last index the reader has.
    pub index: Index,
    /// The chain hash there.
    pub chain: Hash,
    /// Bytes of entries that may be on their way and not yet applied.
    pub window: u64,
}

/// How far a reader is; frees its window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShipProgress {
    /// The shard.
    pub shard: ShardId,
    /// Highest index that has arrived.
    pub received: Index,
    /// Highest index durable at the reader.
    pub durable: Index,
    /// Highest index applied there.
    pub applied: Index,
}

/// Entries that follow what was sent before; none: a heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShipBatch {
    /// The shard.
    pub shard: ShardId,
    /// The server's epoch.
    pub epoch: Epoch,
    /// The entries, contiguous.
    pub entries: Vec<LogEntry>,
    /// The last index sent, these entries included.
    pub last: Index,
    /// The chain hash there.
    pub chain: Hash,
    /// The commit index the server knows.
    pub commit: Index,
    /// The server's term.
    pub commit_term: Term,
}

/// Why a pull is not served.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// This node has no replica of the shard, or has lost its log.
    #[error("this node has no log of {0}")]
    NotHere(ShardId),
    /// The reader is in another epoch.
    #[error("this node is in epoch {}", ours.number)]
    OtherEpoch {
        /// The server's.
        ours: Epoch,
    },
    /// The reader is ahead of what this server knows to be committed: ask again, or ask another.
    #[error("this node knows entries up to {commit} to be committed")]
    Ahead {
        /// The server's commit index.
        commit: Index,
    },
    /// The log does not reach back to the point any more.
    #[error("the log of this node begins after {first}")]
    NeedsSnapshot {
        /// The point before the first entry.
        first: Index,
    },
    /// The point is not in the server's log: the histories differ. The reader must be rebuilt.
    #[error("entry {index} has another hash here: {ours}")]
    Diverged {
        /// The reader's point.
        index: Index,
        /// The server's chain hash there.
        ours: Hash,
    },
    /// The reader has what is not in this server's epoch, and a newer epoch has begun: what it has behind the start is
    /// only its own.
    #[error("epoch {} has begun behind entry {}", epoch.number, start.index)]
    NewEpoch {
        /// The server's.
        epoch: Epoch,
        /// Where it began.
        start: EpochStart,
    },
    /// Two epochs of one number: neither follows the other.
    #[error("this node is in another epoch {}", ours.number)]
    TwoEpochs {
        /// The server's.
        ours: Epoch,
    },
}

/// What a reader says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReaderMessage {
    /// Begin, or begin again.
    Pull(Pull),
    /// So far it got.
    Progress(ShipProgress),
    /// Which index has everything that was acknowledged before this arrives? The server asks a quorum, then.
    Probe {
        /// Comes back with the answer: the reader's own time, which nobody else reads.
        tag: u64,
    },
}

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ServerMessage {
    /// More entries, or a heartbeat.
    Batch(ShipBatch),
    /// The pull is not served.
    Refused(Refusal),
    /// The answer to a probe.
    Confirmed {
        /// The probe's.
        tag: u64,
        /// What was acknowledged before the probe arrived, less the age, is at or below this index.
        index: Index,
        /// Microseconds that the server itself may be behind; 0: it leads.
        age: u64,
    },
}

/// A message of this stream that is not one.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("not a message of the shipping stream")]
pub struct NotShipping;

fn encode<T: Serialize>(message: &T, hint: usize) -> Bytes {
    let mut out = Vec::with_capacity(hint + 128);
    out.push(VERSION);
    // Serializing plain data into memory cannot fail.
    let mut out = postcard::to_extend(message, out).unwrap_or_default();
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    Bytes::from(out)
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, NotShipping> {
    let Some((bytes, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else { return Err(NotShipping) };
    let Some((&VERSION, rest)) = bytes.split_first() else { return Err(NotShipping) };
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*checksum) {
        return Err(NotShipping);
    }
    match postcard::take_from_bytes(rest) {
        Ok((message, [])) => Ok(message),
        _ => Err(NotShipping),
    }
}

impl ReaderMessage {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        encode(self, 0)
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotShipping> {
        decode(bytes)
    }
}

impl ServerMessage {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let hint = match self {
            ServerMessage::Batch(batch) => batch.entries.iter().map(|e| e.bytes.len() + 32).sum(),
            ServerMessage::Refused(_) | ServerMessage::Confirmed { .. } => 0,
        };
        encode(self, hint)
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotShipping> {
        decode(bytes)
    }
}

/// The chain hash at an index of a log; `None` if it is not in it.
///
/// Not computed from the beginning: an entry of ours names its predecessor's. That holds while no entry is void; with a
/// protocol that can make entries void the points of the machine must be used instead.
pub fn chain_at(log: &dyn LogReader, shard: ShardId, index: Index) -> Result<Option<Hash>, Fatal> {
    let Some(bounds) = log.bounds(shard) else { return Ok(None) };
    if index < bounds.base.index || index > bounds.last {
        return Ok(None);
    }
    let mut at = index;
    let mut above = Vec::new();
    let mut hash = loop {
        if at == bounds.base.index {
            break bounds.base.chain;
        }
        let Some(entry) = log.entries(shard, at, at.next(), 0)?.into_iter().next() else { return Ok(None) };
        if entry.payload == Payload::Entry
            && let Ok(header) = Entry::header(&entry.bytes)
            && header.index == at
        {
            break entry::chain(header.previous, &entry);
        }
        above.push(entry);
        at = Index::new(at.get() - 1);
    };
    while let Some(entry) = above.pop() {
        hash = entry::chain(hash, &entry);
    }
    Ok(Some(hash))
}
