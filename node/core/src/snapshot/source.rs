//! The bytes of a snapshot, made from a running machine.
//!
//! Opened in the step in which the snapshot's index is applied ([`crate::machine::Machine::snapshot`]); read afterwards on
//! any thread, as slowly as one likes, while entries are applied. Rows are read as of the index's timestamp; collection
//! waits for whoever holds this. The pieces, one after the other, are the file.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Hash, ShardId, Timestamp};

use super::{CHUNK_BYTES, CHUNK_HEAD, Head, Summary, TRAILER_BYTES, encode_head};
use crate::bug::{Bug, planted};
use crate::engine::{KeyRange, Tree};
use crate::entry::codec::put_bytes;
use crate::entry::encode_table;
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::machine::capture::Capture;
use crate::machine::{Digest, MachineState};
use crate::mvcc::{Newest, Snapshot};

enum Phase {
    Head,
    /// The machine's own records, as far as they are not written yet.
    Records(VecDeque<(Bytes, Bytes)>),
    /// What is left of the rows.
    Rows(KeyRange),
    Applied,
    Trailer,
    Done,
}

/// A snapshot being read. See the module.
pub struct SnapshotSource {
    head: Head,
    state: MachineState,
    snapshot: Snapshot,
    capture: Arc<Capture>,
    phase: Phase,
    hasher: blake3::Hasher,
    keys: u64,
    rows: u64,
    bytes: u64,
}

impl SnapshotSource {
    pub(crate) fn new(shard: ShardId, state: MachineState, tree: Arc<dyn Tree>, capture: Arc<Capture>) -> Self {
        Self {
            head: Head::of(shard, &state),
            snapshot: Snapshot::new(tree, if planted(Bug::SnapshotOfNow) { Timestamp::MAX } else { state.timestamp }),
            state,
            capture,
            phase: Phase::Head,
            hasher: blake3::Hasher::new(),
            keys: 0,
            rows: 0,
            bytes: 0,
        }
    }

    /// What it is a snapshot of.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What it came to, once [`SnapshotSource::next_chunk`] has given everything.
    pub fn summary(&self) -> Option<Summary> {
        let hash = Hash(*self.hasher.finalize().as_bytes());
        let head = self.head.clone();
        matches!(self.phase, Phase::Done).then_some(Summary {
            head,
            keys: self.keys,
            rows: self.rows,
            bytes: self.bytes,
            hash,
        })
    }

    /// The next piece of the file, of about [`CHUNK_BYTES`]; `None` at the end. After an error the snapshot is to be
    /// thrown away.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Fatal> {
        loop {
            let piece = match std::mem::replace(&mut self.phase, Phase::Done) {
                Phase::Head => {
                    let piece = encode_head(&self.head);
                    self.phase = Phase::Records(self.records()?);
                    piece
                }
                Phase::Records(mut records) => {
                    let mut chunk = Chunk::new();
                    while !chunk.is_full()
                        && let Some((key, value)) = records.pop_front()
                    {
                        chunk.put(&key, &value);
                    }
                    self.phase = match records.is_empty() {
                        true => Phase::Rows(keys::rows_range()),
                        false => Phase::Records(records),
                    };
                    self.seal(chunk)
                }
                Phase::Rows(range) => {
                    let chunk = self.rows(range)?;
                    self.seal(chunk)
                }
                Phase::Applied => {
                    let mut chunk = Chunk::new();
                    chunk.put(&Key::Applied.encode(), &self.state.encode_applied());
                    self.phase = Phase::Trailer;
                    self.seal(chunk)
                }
                Phase::Trailer => return Ok(Some(self.trailer())),
                Phase::Done => return Ok(None),
            };
            if !piece.is_empty() {
                self.hasher.update(&piece);
                self.bytes += piece.len() as u64;
                return Ok(Some(piece));
            }
        }
    }

    /// The machine's own records but the applied one. Clients first: they are replaced soonest.
    fn records(&self) -> Result<VecDeque<(Bytes, Bytes)>, Fatal> {
        let tree = &*self.snapshot.tree;
        let mut out: VecDeque<(Bytes, Bytes)> = self.capture.clients(tree)?.into_iter().collect();
        let state = &self.state;
        out.extend(state.tables.iter().map(|(id, def)| (Key::Table(*id).encode(), Bytes::from(encode_table(def)))));
        let number = |n: i64| Bytes::copy_from_slice(&n.to_be_bytes());
        out.extend(state.sequences.iter().map(|(id, next)| (Key::Sequence(*id).encode(), number(*next))));
        let used = state.digests.iter().filter(|(_, digest)| **digest != Digest::default());
        out.extend(used.map(|(storage, digest)| (Key::Digest(*storage).encode(), digest.encode())));
        let horizon = Bytes::copy_from_slice(&self.head.horizon.raw().to_be_bytes());
        out.push_back((Key::Horizon.encode(), horizon));
        // Never changed once written; those above the index came later.
        for item in tree.scan(&keys::checkpoints_range(), false) {
            let (key, value) = item?;
            if matches!(Key::decode(&key)?, Key::Checkpoint(index) if index <= state.index) {
                out.push_back((key, value));
            }
        }
        Ok(out)
    }

    fn rows(&mut self, mut range: KeyRange) -> Result<Chunk, Fatal> {
        let mut chunk = Chunk::new();
        let mut last = None;
        for item in self.snapshot.scan(&range, false) {
            let (key, version) = item?;
            chunk.put(&key, &Newest::encode(version.timestamp, Some(&version.row)));
            last = Some(key);
            if chunk.is_full() {
                break;
            }
        }
        self.rows += chunk.keys;
        self.phase = match last.filter(|_| chunk.is_full()) {
            Some(last) => {
                range.start = Bytes::from([&last[..], &[0]].concat());
                Phase::Rows(range)
            }
            // The horizon only rises: readable now means that every row was.
            None if self.snapshot.is_readable()? => Phase::Applied,
            None => {
                let cause = "it took longer than versions are kept";
                return Err(Fatal::new(format!("take a snapshot of {}", self.head.shard()), cause));
            }
        };
        Ok(chunk)
    }

    fn seal(&mut self, chunk: Chunk) -> Bytes {
        self.keys += chunk.keys;
        chunk.seal()
    }

    fn trailer(&mut self) -> Bytes {
        let mut out = Vec::with_capacity(CHUNK_HEAD + TRAILER_BYTES);
        out.extend_from_slice(&[0; CHUNK_HEAD]);
        out.extend_from_slice(&self.keys.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
        self.hasher.update(&out);
        out.extend_from_slice(self.hasher.finalize().as_bytes());
        self.bytes += out.len() as u64;
        self.phase = Phase::Done;
        Bytes::from(out)
    }
}

/// Keys and values on their way into a chunk.
struct Chunk {
    out: Vec<u8>,
    keys: u64,
}

impl Chunk {
    fn new() -> Self {
        Self { out: vec![0; CHUNK_HEAD], keys: 0 }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        put_bytes(&mut self.out, key);
        put_bytes(&mut self.out, value);
        self.keys += 1;
    }

    fn is_full(&self) -> bool {
        self.out.len() >= CHUNK_BYTES
    }

    /// Its frame; nothing if there is nothing in it.
    fn seal(mut self) -> Bytes {
        if self.keys == 0 {
            return Bytes::new();
        }
        let (head, body) = self.out.split_at_mut(CHUNK_HEAD);
        head[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        head[4..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        Bytes::from(self.out)
    }
}
