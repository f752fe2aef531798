//! Proving what is stored: the chain of a log, recomputed, and the content of a tree, recomputed.
//!
//! Both are walks in steps, so that whoever runs them can pace them, stop them, and run them beside a live node or on
//! closed files. They only read.
//!
//! [`ChainWalk`] hashes every entry of a replica's log from its base on and compares with *marks*: hashes that somebody
//! else kept (the engine, another node, an anchor). A chain alone proves only that nothing changed *by accident*: who
//! edits an entry can recompute everything behind it. A mark from outside proves the rest, up to its index.
//!
//! [`TreeWalk`] reads every key of a tree that nobody writes: each value's checksum, each key's form, and per storage the
//! digest of the current rows, compared with what the machine kept while it applied. [`Ranges`] sums rows as of a
//! timestamp, range by range, so that replicas can be compared while writes go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Hash, Index, ShardId, TableId, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::engine::{KeyRange, Tree};
use crate::entry::{self, Entry};
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::log::{BaseRecord, LogBounds, LogReader, Payload};
use crate::machine::{Digest, MachineState, storage_of};
use crate::mvcc::{self, Snapshot};

/// A hash somebody kept of a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// At this index.
    pub index: Index,
    /// The hash there.
    pub chain: Hash,
    /// Whose it is, e.g. `the engine's checkpoint`.
    pub whose: String,
}

/// Something that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Damage {
    /// What is wrong, in one sentence.
    pub what: String,
    /// The file, where it is known.
    pub file: Option<String>,
    /// The byte in it, where it is known.
    pub offset: Option<u64>,
    /// The shard, where it is of one.
    pub shard: Option<ShardId>,
    /// The first entry concerned, where it is known.
    pub index: Option<Index>,
}

impl Damage {
    /// Damage of which only what is known.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), file: None, offset: None, shard: None, index: None }
    }

    /// In a file.
    #[must_use]
    pub fn at(mut self, file: impl Into<String>, offset: Option<u64>) -> Self {
        (self.file, self.offset) = (Some(file.into()), offset);
        self
    }

    /// Of a shard, from an entry on.
    #[must_use]
    pub fn of(mut self, shard: ShardId, index: Option<Index>) -> Self {
        (self.shard, self.index) = (Some(shard), index);
        self
    }
}

/// What a walk over a chain has found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ChainProof {
    /// The point before the first entry: taken on trust, unless a mark is at it.
    pub base: Index,
    /// The hash there.
    pub base_chain: Hash,
    /// The last entry of the log; from the base to here the entries are one chain.
    pub last: Index,
    /// The hash there.
    pub chain: Hash,
    /// The last entry known to be committed.
    pub commit: Index,
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries that changed nothing because they were made for another predecessor.
    pub void: u64,
    /// The marks that agree: whose, and how many.
    pub agrees: BTreeMap<String, u64>,
    /// The highest index at which a mark agrees.
    pub agrees_at: Option<Index>,
    /// Marks that are outside of the log: whose, and how many.
    pub outside: BTreeMap<String, u64>,
}

/// Recomputes the chain of one shard's log. See the module.
pub struct ChainWalk<'a> {
    reader: &'a dyn LogReader,
    shard: ShardId,
    bounds: LogBounds,
    marks: Vec<Mark>,
    proof: ChainProof,
    term: Term,
    timestamp: Timestamp,
    damage: Vec<Damage>,
}

impl<'a> ChainWalk<'a> {
    /// From the base to the last entry of now; `None` without a base.
    pub fn new(reader: &'a dyn LogReader, shard: ShardId, mut marks: Vec<Mark>) -> Option<Self> {
        let bounds = reader.bounds(shard)?;
        marks.sort_by_key(|mark| std::cmp::Reverse(mark.index));
        let base = &bounds.base;
        let proof = ChainProof {
            base: base.index,
            base_chain: base.chain,
            last: base.index,
            chain: base.chain,
            commit: bounds.committed(),
            ..ChainProof::default()
        };
        let (term, timestamp) = (base.term, base.timestamp);
        let mut walk = Self { reader, shard, bounds, marks, proof, term, timestamp, damage: Vec::new() };
        while walk.marks.last().is_some_and(|mark| mark.index < walk.proof.base) {
            walk.skip_mark();
        }
        walk.compare();
        Some(walk)
    }

    /// Hashes about `bytes` more of the log; whether that was the last.
    pub fn step(&mut self, bytes: usize) -> Result<bool, Fatal> {
        let from = self.proof.last.next();
        if from > self.bounds.last {
            while !self.marks.is_empty() {
                self.skip_mark();
            }
            return Ok(true);
        }
        let entries = self.reader.entries(self.shard, from, self.bounds.last.next(), bytes)?;
        if entries.is_empty() {
            return Err(Fatal::new("walk the chain", format!("the log has no entry {from} of {}", self.shard)));
        }
        for entry in entries {
            if entry.index != self.proof.last.next() || entry.term < self.term {
                let cause = format!("entry {} of {} does not follow {}", entry.index, self.shard, self.proof.last);
                return Err(Fatal::new("walk the chain", cause));
            }
            if entry.payload == Payload::Entry {
                let header = Entry::header(&entry.bytes)?;
                let void = header.previous != self.proof.chain
                    || header.index != entry.index
                    || header.timestamp <= self.timestamp;
                if void {
                    self.proof.void += 1;
                } else {
                    self.timestamp = header.timestamp;
                }
            }
            self.term = entry.term;
            self.proof.chain = entry::chain(self.proof.chain, &entry);
            self.proof.last = entry.index;
            self.proof.entries += 1;
            self.proof.bytes += entry.bytes.len() as u64;
            self.compare();
        }
        Ok(false)
    }

    /// Everything at once.
    pub fn run(mut self) -> Result<(ChainProof, Vec<Damage>), Fatal> {
        while !self.step(4 << 20)? {}
        Ok(self.finish())
    }

    /// What was found so far.
    pub fn finish(self) -> (ChainProof, Vec<Damage>) {
        (self.proof, self.damage)
    }

    /// The last index walked.
    pub fn at(&self) -> Index {
        self.proof.last
    }

    fn skip_mark(&mut self) {
        if let Some(mark) = self.marks.pop() {
            *self.proof.outside.entry(mark.whose).or_default() += 1;
        }
    }

    fn compare(&mut self) {
        while let Some(mark) = self.marks.pop_if(|mark| mark.index == self.proof.last) {
            if mark.chain == self.proof.chain {
                *self.proof.agrees.entry(mark.whose).or_default() += 1;
                self.proof.agrees_at = Some(mark.index);
            } else {
                let (shard, index) = (self.shard, mark.index);
                let what = format!(
                    "the chain of {shard} at entry {index} is {}, {} has {}",
                    self.proof.chain, mark.whose, mark.chain
                );
                self.damage.push(Damage::new(what).of(shard, Some(index)));
            }
        }
    }
}

/// What a walk over a tree has found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TreeProof {
    /// Applied so far.
    pub applied: Index,
    /// The chain's hash there, as applied.
    pub chain: Hash,
    /// Keys, every value's checksum right.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Current rows and index entries.
    pub rows: u64,
    /// Storages whose rows give the digest that was kept.
    pub digests: u64,
}

/// Reads everything in a tree that nobody writes meanwhile.
pub struct TreeWalk {
    tree: Arc<dyn Tree>,
    state: MachineState,
    computed: BTreeMap<TableId, Digest>,
    marks: Vec<Mark>,
    rest: KeyRange,
    proof: TreeProof,
}

impl TreeWalk {
    /// Over the tree of a replica.
    pub fn new(tree: Arc<dyn Tree>, base: &BaseRecord) -> Result<Self, Fatal> {
        let state = MachineState::load(&*tree, base)?;
        let proof = TreeProof { applied: state.index, chain: state.chain, ..TreeProof::default() };
        let applied = Mark { index: state.index, chain: state.chain, whose: "the engine's applied record".into() };
        let rest = KeyRange { start: Bytes::new(), end: None };
        Ok(Self { tree, state, computed: BTreeMap::new(), marks: vec![applied], rest, proof })
    }

    /// Looks at up to `budget` keys more; whether those were the last.
    pub fn step(&mut self, budget: usize) -> Result<bool, Fatal> {
        let mut last = None;
        let mut seen = 0;
        for item in self.tree.scan(&self.rest, false) {
            let (key, value) = item?;
            seen += 1;
            self.proof.keys += 1;
            self.proof.bytes += (key.len() + value.len()) as u64;
            match Key::decode(&key)? {
                Key::Data { .. } | Key::Catalog(_) => {
                    let (timestamp, row) = mvcc::parse(&value)?;
                    if let Some(row) = row {
                        self.proof.rows += 1;
                        self.computed.entry(storage_of(&key)?).or_default().add(&key, timestamp, row);
                    }
                }
                Key::History { .. } => drop(mvcc::parse(&value)?),
                Key::Checkpoint(index) => {
                    let chain = value.first_chunk::<32>().map(|h| Hash(*h));
                    let chain = chain.ok_or_else(|| Fatal::new("read a checkpoint", "its bytes are malformed"))?;
                    self.marks.push(Mark { index, chain, whose: "the engine's checkpoints".into() });
                }
                _ => {}
            }
            last = Some(key);
            if seen >= budget {
                break;
            }
        }
        match last {
            Some(last) if seen >= budget => {
                self.rest.start = Bytes::from([&last[..], &[0]].concat());
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    /// Everything at once.
    pub fn run(mut self) -> Result<(TreeProof, Vec<Mark>, Vec<Damage>), Fatal> {
        while !self.step(100_000)? {}
        Ok(self.finish())
    }

    /// What was found, the hashes of the chain that the tree keeps, and storages whose rows are not what was applied.
    pub fn finish(mut self) -> (TreeProof, Vec<Mark>, Vec<Damage>) {
        let storages: BTreeSet<TableId> = self.computed.keys().chain(self.state.digests.keys()).copied().collect();
        let zero = Digest::default();
        let mut damage = Vec::new();
        for storage in storages {
            let kept = self.state.digests.get(&storage).unwrap_or(&zero);
            if self.computed.get(&storage).unwrap_or(&zero) == kept {
                self.proof.digests += 1;
            } else {
                let name = table_name(&self.state, storage);
                damage.push(Damage::new(format!("the rows of {name} are not what was applied")));
            }
        }
        (self.proof, self.marks, damage)
    }
}

/// What people call a storage.
fn table_name(state: &MachineState, storage: TableId) -> String {
    match state.tables.values().find(|def| def.storage == storage) {
        Some(def) => format!("table {}", def.name),
        None if storage == TableId::new(0) => "the catalog".into(),
        None => format!("{storage}"),
    }
}

/// A range of rows of one tree and their sum.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RangeSum {
    /// Its end, exclusive; it begins where the one before it ends.
    pub end: Bytes,
    /// Rows in it.
    pub rows: u64,
    /// The order-independent sum over them.
    pub sum: Digest,
}

/// Sums of rows as of a timestamp. Safe while writes go on, as long as versions that old are kept.
pub struct Ranges {
    snapshot: Snapshot,
    /// Only rows of these storages count.
    live: BTreeSet<TableId>,
}

/// The end of everything that is summed.
pub fn rows_end() -> Bytes {
    keys::history_range().start
}

/// The start of everything that is summed.
pub fn rows_start() -> Bytes {
    keys::catalog_range().start
}

impl Ranges {
    /// Of a tree as of a timestamp, of the catalog and the storages of these tables.
    pub fn new(snapshot: Snapshot, live: impl IntoIterator<Item = TableId>) -> Self {
        Self { snapshot, live: live.into_iter().chain([TableId::new(0)]).collect() }
    }

    /// Up to `count` ranges of `rows` rows each from a key on; the last may have fewer and ends at [`rows_end`].
    pub fn cut(&self, start: &Bytes, rows: u64, count: usize) -> Result<Vec<RangeSum>, Fatal> {
        let mut out: Vec<RangeSum> = Vec::new();
        let mut range = RangeSum { end: rows_end(), rows: 0, sum: Digest::default() };
        for item in self.snapshot.scan(&KeyRange { start: start.clone(), end: Some(rows_end()) }, false) {
            let (key, version) = item?;
            if !self.live.contains(&storage_of(&key)?) {
                continue;
            }
            range.sum.add(&key, version.timestamp, &version.row);
            range.rows += 1;
            if range.rows >= rows.max(1) {
                let next = RangeSum { end: rows_end(), rows: 0, sum: Digest::default() };
                let mut full = std::mem::replace(&mut range, next);
                full.end = Bytes::from([&key[..], &[0]].concat());
                out.push(full);
                if out.len() >= count.max(1) {
                    return self.readable(out);
                }
            }
        }
        out.push(range);
        self.readable(out)
    }

    /// The sums of the ranges that begin at `start` and end at these keys.
    pub fn sums(&self, start: &Bytes, ends: &[Bytes]) -> Result<Vec<RangeSum>, Fatal> {
        let mut out = Vec::with_capacity(ends.len());
        let mut start = start.clone();
        for end in ends {
            let mut range = RangeSum { end: end.clone(), rows: 0, sum: Digest::default() };
            for item in self.snapshot.scan(&KeyRange { start, end: Some(end.clone()) }, false) {
                let (key, version) = item?;
                if self.live.contains(&storage_of(&key)?) {
                    range.sum.add(&key, version.timestamp, &version.row);
                    range.rows += 1;
                }
            }
            out.push(range);
            start = end.clone();
        }
        self.readable(out)
    }

    fn readable(&self, out: Vec<RangeSum>) -> Result<Vec<RangeSum>, Fatal> {
        if self.snapshot.is_readable()? {
            return Ok(out);
        }
        Err(Fatal::new("sum ranges", "versions that old are kept no longer"))
    }
}

/// The storages of a tree's tables as they are now.
pub fn live_storages(tree: &dyn Tree) -> Result<BTreeMap<TableId, String>, Fatal> {
    let mut live = BTreeMap::new();
    for item in tree.scan(&keys::table_defs_range(), false) {
        let (_, value) = item?;
        let def = entry::decode_table(&value);
        let def = def.ok_or_else(|| Fatal::new("read the tables", "a stored definition is malformed"))?;
        live.insert(def.storage, def.name);
    }
    Ok(live)
}

#[cfg(test)]
mod tests;
