//! Snapshots: a shard's state as of exactly one applied index, in one file.
//!
//! One format for a new replica, the local base behind which a log is trimmed, and a backup. [`source`] makes the bytes
//! from a running machine while writes go on; [`mod@file`] stores and checks them; [`install`] fills an empty tree with them.
//!
//! File, numbers little-endian: magic, format u32, head length u32, crc32c u32 of the head, head (postcard, [`Head`]);
//! then chunks `[length u32, crc32c u32, bytes]`; then eight zero bytes and the trailer: keys u64, rows u64, BLAKE3 of
//! everything before it. A chunk's bytes are keys with their stored values, each with its length before it (LEB128), in
//! this order: the machine's own records, catalog and data rows, at last the applied record. So what was installed
//! halfway has no applied record and opens nowhere. Magic and format keep their places in every format, so a newer one is
//! refused by name.
//!
//! Invariants: a snapshot holds what `apply` reads or writes as of its index, no history (`horizon` is its timestamp), and
//! no more; one that ends early, or has any bit that was not written, is refused.

pub mod file;
pub mod install;
pub mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_shared::ids::{Hash, Index, ShardId, TableId, Timestamp};
use quorate_shared::limits::{ENTRY_BYTES_MAX, ENTRY_OVERHEAD_BYTES};
use serde::{Deserialize, Serialize};

use crate::log::BaseRecord;
use crate::machine::{Digest, MachineState};

/// Format of the files written here.
pub const FORMAT: u32 = 1;
/// File name extension of snapshots.
pub const EXTENSION: &str = "qsnap";
/// Bytes of a chunk as it is written; one large value may exceed it.
pub const CHUNK_BYTES: usize = 256 << 10;

const MAGIC: &[u8; 8] = b"QUORSNP\n";
/// Magic, format, length and checksum of the head.
const PREFIX_BYTES: usize = 20;
/// Length and checksum of a chunk.
const CHUNK_HEAD: usize = 8;
/// Two counts and the hash.
const TRAILER_BYTES: usize = 48;
/// Largest head: fifty bytes for each table there has ever been.
const HEAD_BYTES_MAX: usize = 16 << 20;
/// Largest chunk: what is written, and one value more than that.
const CHUNK_BYTES_MAX: usize = CHUNK_BYTES + ENTRY_BYTES_MAX + ENTRY_OVERHEAD_BYTES;

/// What a snapshot says of itself before its rows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The point it is of; a log goes on after it.
    pub base: BaseRecord,
    /// State digests by storage; those of the rows in it.
    pub digests: BTreeMap<TableId, [u64; 4]>,
    /// Reads below this find no versions: the timestamp of the point, since history is not in it.
    pub horizon: Timestamp,
}

impl Head {
    fn of(shard: ShardId, state: &MachineState) -> Self {
        let used = state.digests.iter().filter(|(_, digest)| **digest != Digest::default());
        let digests = used.map(|(storage, digest)| (*storage, digest.lanes_sum())).collect();
        Self { base: state.base(shard), digests, horizon: state.timestamp }
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.base.shard
    }

    /// The index it is of.
    pub fn index(&self) -> Index {
        self.base.index
    }

    /// One hash over all digests, as [`MachineState::digest`] has it.
    pub fn digest(&self) -> Hash {
        let digests = self.digests.iter().map(|(storage, lanes)| (*storage, Digest::from_lanes(*lanes))).collect();
        MachineState { digests, ..MachineState::default() }.digest()
    }
}

/// What a whole snapshot came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Its head.
    pub head: Head,
    /// Keys in it.
    pub keys: u64,
    /// Catalog and data rows among them.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// BLAKE3 over it.
    pub hash: Hash,
}

/// `snapshot-s1-00000000000000001234.qsnap`: sorts by index.
pub fn file_name(shard: ShardId, index: Index) -> String {
    format!("snapshot-{shard}-{:020}.{EXTENSION}", index.get())
}

/// Shard and index of a snapshot's file name.
pub fn parse_file_name(name: &str) -> Option<(ShardId, Index)> {
    let (shard, index) =
        name.strip_suffix(EXTENSION)?.strip_suffix('.')?.strip_prefix("snapshot-s")?.split_once('-')?;
    let found = (ShardId::new(shard.parse().ok()?), Index::new(index.parse().ok()?));
    (file_name(found.0, found.1) == name).then_some(found)
}

/// The first bytes of a file.
fn encode_head(head: &Head) -> Bytes {
    // Serializing plain data into memory cannot fail.
    let bytes = postcard::to_stdvec(head).unwrap_or_default();
    let mut out = Vec::with_capacity(PREFIX_BYTES + bytes.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    out.extend_from_slice(&bytes);
    Bytes::from(out)
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}
