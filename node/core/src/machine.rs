//! The machine: deterministic `apply` of entries to a tree.
//!
//! Everything an entry changes goes into the tree in one batch with the applied record (index, term, chain hash,
//! timestamp) and the digests, so after a crash the tree is as of some applied index, never between two. Several entries
//! share a batch up to [`APPLY_BATCH_BYTES_MAX`]; an entry is never split.
//!
//! An entry of ours whose index or predecessor is not the one it names, or whose timestamp does not grow, is *void*: it
//! becomes part of the chain and changes nothing else, on every replica alike.
//!
//! Writes: the newest version replaces the one before it, which moves into history. Of several writes to one key in one
//! entry only the last is a version. Deleting what is not there writes nothing, so collected tombstones make no
//! difference to chain or digest.
//!
//! Invariants: `apply` depends on the entries and the tree only; after an error the machine refuses everything. Left out
//! for now: parts and intents.

pub(crate) mod capture;
mod collect;
pub mod refound;
mod scrub;
mod state;

use std::collections::VecDeque;
use std::collections::btree_map::Entry as Place;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quorate_shared::ids::{Epoch, Hash, Index, ShardId, TableId, Term, Timestamp};
use quorate_shared::limits::{APPLY_BATCH_BYTES_MAX, DEDUPE_WINDOW};

pub use self::collect::Collected;
pub use self::scrub::Scrub;
pub use self::state::{ClientResult, ClientState, Digest, Known, MachineState};

use crate::bug::{Bug, planted};
use crate::engine::{Batch, Tree};
use crate::entry::{self, Body, Entry, Kind, Transaction};
use crate::epoch;
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::log::{BaseRecord, EpochStart, LogEntry, Membership, Payload};
use crate::membership::ChangeEntry;
use crate::mvcc::{self, Newest};

/// Chain hashes kept for every index; older ones for every [`CHECKPOINT_EVERY`]th.
pub const CHECKPOINTS_RECENT: usize = 10_000;
/// Every so many entries the chain hash is stored for good.
pub const CHECKPOINT_EVERY: u64 = 1024;

/// What the applier reports after a batch of entries is in the tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Highest applied index.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Chain hash there.
    pub chain: Hash,
    /// Last timestamp applied.
    pub timestamp: Timestamp,
    /// The epoch there.
    pub epoch: Epoch,
    /// Where it began.
    pub epoch_start: EpochStart,
    /// Who takes part as of there.
    pub membership: Arc<Membership>,
    /// Indexes of this batch that were void.
    pub void: Vec<Index>,
    /// A catalog key or a fence was among them.
    pub schema_changed: bool,
}

/// Applies a shard's entries to its tree. One per replica, owned by the one applier.
pub struct Machine {
    shard: ShardId,
    tree: Arc<dyn Tree>,
    state: MachineState,
    checkpoints: Arc<Checkpoints>,
    collecting: collect::Progress,
    captures: capture::Captures,
    failed: bool,
}

impl Machine {
    /// Over a tree; `base` is where an empty one begins.
    pub fn open(tree: Arc<dyn Tree>, base: &BaseRecord) -> Result<Self, Fatal> {
        let mut state = MachineState::load(&*tree, base)?;
        if planted(Bug::DoubleApply) && state.index > base.index {
            state.index = Index::new(state.index.get() - 1);
        }
        let checkpoints = Arc::new(Checkpoints { tree: Arc::clone(&tree), recent: Mutex::default() });
        checkpoints.add(&[(state.index, state.chain)]);
        let (collecting, captures) = (collect::Progress::default(), capture::Captures::default());
        Ok(Self { shard: base.shard, tree, state, checkpoints, collecting, captures, failed: false })
    }

    /// The state as of the last applied entry.
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// The tree it applies to.
    pub fn tree(&self) -> &Arc<dyn Tree> {
        &self.tree
    }

    /// Chain hashes of the past, for any thread.
    pub fn checkpoints(&self) -> Arc<Checkpoints> {
        Arc::clone(&self.checkpoints)
    }

    /// Applies entries that follow the applied index; those at or below it are skipped (a restart repeats some).
    pub fn apply(&mut self, entries: &[LogEntry]) -> Result<Applied, Fatal> {
        if self.failed {
            return Err(Fatal::new("apply entries", "an earlier error stopped this replica"));
        }
        // Until it is known to be in the tree, the state here may be ahead of it.
        self.failed = true;
        let mut group = Group::default();
        let mut report = Applied::default();
        let mut links = Vec::with_capacity(entries.len());
        let swapped = planted(Bug::ApplyOutOfOrder).then(|| swap(entries));
        for log_entry in swapped.as_deref().unwrap_or(entries) {
            if log_entry.index <= self.state.index {
                continue;
            }
            if log_entry.index != self.state.index.next() {
                let cause = format!("entry {} does not follow {}", log_entry.index, self.state.index);
                return Err(Fatal::new("apply entries", cause));
            }
            self.apply_one(log_entry, &mut group, &mut report)?;
            links.push((self.state.index, self.state.chain));
            if group.bytes >= APPLY_BATCH_BYTES_MAX {
                self.write(std::mem::take(&mut group))?;
            }
        }
        if !group.batch.writes.is_empty() || group.entries > 0 {
            self.write(group)?;
        }
        self.checkpoints.add(&links);
        self.failed = false;
        Ok(Applied { void: report.void, schema_changed: report.schema_changed, ..self.state.applied() })
    }

    fn apply_one(&mut self, log_entry: &LogEntry, group: &mut Group, report: &mut Applied) -> Result<(), Fatal> {
        let previous = self.state.chain;
        if log_entry.payload == Payload::Entry {
            let header = Entry::header(&log_entry.bytes)?;
            let void = header.previous != previous
                || header.index != log_entry.index
                || header.timestamp <= self.state.timestamp
                || (header.kind == Kind::Epoch && !self.begins_epoch(log_entry)?);
            if void {
                report.void.push(log_entry.index);
            } else {
                let entry = Entry::decode(&log_entry.bytes)?;
                report.schema_changed |= self.apply_body(&entry, group)?;
                self.state.timestamp = entry.timestamp;
            }
        }
        if log_entry.payload == Payload::Membership {
            self.apply_membership(log_entry)?;
        }
        self.state.index = log_entry.index;
        self.state.term = log_entry.term;
        self.state.chain = entry::chain(previous, log_entry);
        group.entries += 1;
        if log_entry.index.get().is_multiple_of(CHECKPOINT_EVERY) {
            let value = [&self.state.chain.0[..], &self.state.digest().0[..]].concat();
            group.put(Key::Checkpoint(log_entry.index).encode(), Some(Bytes::from(value)));
        }
        Ok(())
    }

    /// Whether the number grows: of two epochs of one number the second is not of this history.
    fn begins_epoch(&self, log_entry: &LogEntry) -> Result<bool, Fatal> {
        let entry = Entry::decode(&log_entry.bytes)?;
        Ok(matches!(entry.body, Body::Epoch(begun) if begun.epoch.number > self.state.epoch.number))
    }

    /// A protocol lets one change follow another only; that it does is checked here, on every replica alike.
    fn apply_membership(&mut self, log_entry: &LogEntry) -> Result<(), Fatal> {
        let doing = || format!("apply the membership change at {}", log_entry.index);
        let entry = ChangeEntry::decode(&log_entry.bytes).map_err(|e| Fatal::new(doing(), e))?;
        let after = self.state.membership.after(&entry.change).map_err(|e| Fatal::new(doing(), e))?;
        if after != entry.after {
            return Err(Fatal::new(doing(), "it was made for another membership"));
        }
        self.state.membership = Arc::new(after);
        Ok(())
    }

    /// Whether the schema changed.
    fn apply_body(&mut self, entry: &Entry, group: &mut Group) -> Result<bool, Fatal> {
        let mut schema = false;
        match &entry.body {
            Body::Write(transactions) => {
                for (position, t) in transactions.iter().enumerate() {
                    for (key, row) in &t.writes {
                        schema |= keys::is_catalog(key);
                        self.write_version(key, row.as_deref(), entry.timestamp, group)?;
                    }
                    schema |= !t.fences.is_empty();
                    self.apply_rare(t, entry.timestamp, group)?;
                    if let Some(write) = t.write {
                        let result = ClientResult {
                            seq: write.seq,
                            index: entry.index,
                            position: position as u32,
                            timestamp: entry.timestamp,
                            rows: t.rows,
                            last_id: t.last_id,
                        };
                        let key = self.state.remember(write.client, &result);
                        self.replace(key, Some(result.encode()), group)?;
                    }
                }
            }
            Body::ClientExpire(clients) => {
                for &client in clients {
                    self.state.clients.remove(&client);
                    for slot in 0..DEDUPE_WINDOW as u8 {
                        self.replace(Key::Client { client, slot }.encode(), None, group)?;
                    }
                }
            }
            Body::Epoch(begun) => {
                self.state.epoch = begun.epoch;
                self.state.epoch_start = epoch::start_of(entry.index, entry.previous);
                self.state.membership = Arc::new(begun.membership.clone());
            }
            Body::Empty => {}
        }
        Ok(schema)
    }

    fn write_version(
        &mut self,
        key: &Bytes,
        row: Option<&[u8]>,
        timestamp: Timestamp,
        group: &mut Group,
    ) -> Result<(), Fatal> {
        let storage = storage_of(key)?;
        // One search of the batch, and one of the tree only for what is not in it.
        let place = group.batch.writes.entry(key.clone());
        let old = match &place {
            Place::Occupied(pending) => pending.get().clone(),
            Place::Vacant(_) => self.tree.get(key)?,
        };
        let newest = old.as_deref().map(mvcc::parse).transpose()?;
        let old_row = newest.and_then(|(_, row)| row);
        if row.is_none() && old_row.is_none() {
            return Ok(());
        }
        let digest = self.state.digests.entry(storage).or_default();
        if let (Some((written, _)), Some(row)) = (newest, old_row) {
            digest.remove(key, written, row);
        }
        if let Some(row) = row {
            digest.add(key, timestamp, row);
        }
        let value = Newest::encode(timestamp, row);
        group.bytes += key.len() + value.len() + 16;
        place.insert_entry(Some(value));
        group.touched(storage);
        let written = newest.map(|(written, _)| written);
        if let (Some(written), Some(old)) = (written, old) {
            if written < timestamp {
                // The bytes of the old version go into history as they are.
                group.put(keys::history_key(key, written), Some(old));
            } else if row.is_none() {
                // Written and deleted by one entry: this leads collection to the tombstone, which may have no history.
                let tombstone = Newest::encode(timestamp, None);
                group.put(keys::history_key(key, timestamp), Some(tombstone));
            }
        }
        Ok(())
    }

    fn apply_rare(&mut self, t: &Transaction, timestamp: Timestamp, group: &mut Group) -> Result<(), Fatal> {
        for (id, def) in &t.fences {
            let value = def.as_ref().map(|def| Bytes::from(entry::encode_table(def)));
            group.put(Key::Table(*id).encode(), value);
            match def {
                Some(def) => drop(self.state.tables.insert(*id, Arc::new(def.clone()))),
                None => {
                    self.state.tables.remove(id);
                    self.state.sequences.remove(id);
                    group.put(Key::Sequence(*id).encode(), None);
                }
            }
        }
        for (id, next) in &t.sequences {
            self.state.sequences.insert(*id, *next);
            group.put(Key::Sequence(*id).encode(), Some(Bytes::copy_from_slice(&next.to_be_bytes())));
        }
        for key in &t.purged {
            if self.captures.any() {
                // A snapshot may still have to read it: it goes as if it were deleted, and is collected later. That
                // makes no difference to chain or digest.
                self.write_version(key, None, timestamp, group)?;
                continue;
            }
            let storage = storage_of(key)?;
            if let Some(old) = self.stored(key, group)? {
                let (written, row) = mvcc::parse(&old)?;
                if let Some(row) = row {
                    self.state.digests.entry(storage).or_default().remove(key, written, row);
                    group.touched(storage);
                }
                group.put(key.clone(), None);
            }
        }
        Ok(())
    }

    /// What the tree will hold under a key once the group is written.
    fn stored(&self, key: &Bytes, group: &Group) -> Result<Option<Bytes>, Fatal> {
        match group.batch.writes.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => self.tree.get(key),
        }
    }

    fn write(&mut self, mut group: Group) -> Result<(), Fatal> {
        for &storage in &group.storages {
            let digest = self.state.digests.get(&storage).copied().unwrap_or_default();
            if digest == Digest::default() {
                self.state.digests.remove(&storage);
            }
            let value = (digest != Digest::default()).then(|| digest.encode());
            group.batch.writes.insert(Key::Digest(storage).encode(), value);
        }
        group.batch.writes.insert(Key::Applied.encode(), Some(self.state.encode_applied()));
        self.tree.write(group.batch)
    }
}

/// Entries that go into the tree together.
#[derive(Default)]
struct Group {
    batch: Batch,
    bytes: usize,
    entries: usize,
    /// Whose digests changed.
    storages: Vec<TableId>,
}

impl Group {
    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len) + 16;
        self.batch.writes.insert(key, value);
    }

    fn touched(&mut self, storage: TableId) {
        if self.storages.last() != Some(&storage) && !self.storages.contains(&storage) {
            self.storages.push(storage);
        }
    }
}

/// How far a tree is; `None`: nothing has ever been applied to it, or what was being installed is not complete.
pub fn applied_in(tree: &dyn Tree) -> Result<Option<Index>, Fatal> {
    let applied = tree.get(&Key::Applied.encode())?;
    applied.map(|bytes| MachineState::decode_applied(&bytes).map(|state| state.index)).transpose()
}

/// The first two entries with each other's contents: what [`Bug::ApplyOutOfOrder`] does.
fn swap(entries: &[LogEntry]) -> Vec<LogEntry> {
    let mut entries = entries.to_vec();
    if let [a, b, ..] = &mut entries[..] {
        std::mem::swap(&mut a.bytes, &mut b.bytes);
        std::mem::swap(&mut a.payload, &mut b.payload);
    }
    entries
}

/// The storage whose digest a key counts for; the catalog's is 0.
pub(crate) fn storage_of(key: &[u8]) -> Result<TableId, Fatal> {
    if keys::is_catalog(key) {
        return Ok(TableId::new(0));
    }
    match keys::split_data(key) {
        Ok((storage, _, _)) => Ok(storage),
        Err(_) => Err(Fatal::new("apply an entry", "it writes a key that is neither data nor catalog")),
    }
}

/// Chain hashes by index: of the last [`CHECKPOINTS_RECENT`] entries applied since the start, and of every
/// [`CHECKPOINT_EVERY`]th.
pub struct Checkpoints {
    tree: Arc<dyn Tree>,
    recent: Mutex<VecDeque<(Index, Hash)>>,
}

impl Checkpoints {
    fn add(&self, links: &[(Index, Hash)]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(links);
        let excess = recent.len().saturating_sub(CHECKPOINTS_RECENT);
        recent.drain(..excess);
    }

    /// The chain hash at an index, if it is kept.
    pub fn hash_at(&self, index: Index) -> Result<Option<Hash>, Fatal> {
        {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((first, _)) = recent.front()
                && let Some(offset) = index.get().checked_sub(first.get())
            {
                return Ok(recent.get(offset as usize).map(|(_, hash)| *hash));
            }
        }
        let value = self.tree.get(&Key::Checkpoint(index).encode())?;
        Ok(value.and_then(|v| v.first_chunk::<32>().map(|h| Hash(*h))))
    }
}

#[cfg(test)]
mod tests;
