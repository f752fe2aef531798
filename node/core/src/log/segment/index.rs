//! Where every entry is, in memory, with the newest entries themselves.
//!
//! Twelve bytes per entry, terms as runs. The cache always holds what is not yet in a file.

use std::collections::{BTreeMap, VecDeque};

use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};

use crate::error::Fatal;
use crate::log::{BaseRecord, HardState, LogBounds, LogEntry, PaxosState};
use crate::machine::MachineState;

/// Newest entries kept in memory, per shard.
const CACHE_BYTES: usize = 4 << 20;

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// Number of the segment.
    pub segment: u32,
    /// Offset of the record in it.
    pub offset: u32,
    /// Bytes of the record.
    pub bytes: u32,
}

/// All replicas of the node.
#[derive(Default)]
pub struct LogIndex {
    shards: BTreeMap<ShardId, ReplicaIndex>,
    /// Where the last record is.
    end: Option<Location>,
}

/// What is known of a replica's beginning. In a log that was trimmed the records before it are gone, and what is left may
/// begin with a base record that a later one has replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Its base record was met, and what follows it.
    Certain,
    /// A base record was met, and no entry yet.
    Likely,
    /// The base record must still come.
    Missing,
}

/// One replica's entries.
pub struct ReplicaIndex {
    replica: ReplicaId,
    base: BaseRecord,
    origin: Origin,
    hard: HardState,
    paxos: Option<PaxosState>,
    locations: VecDeque<Location>,
    /// First index of each run of one term, in order; never empty runs.
    terms: VecDeque<(Index, Term)>,
    bytes: u64,
    cache: VecDeque<LogEntry>,
    cached: usize,
    /// Entries up to here are in a file.
    written: Index,
}

fn refused(cause: String) -> Fatal {
    Fatal::new("append to the log", cause)
}

impl LogIndex {
    /// The replica of a shard.
    pub fn get(&self, shard: ShardId) -> Option<&ReplicaIndex> {
        self.shards.get(&shard)
    }

    /// Every replica's shard and id.
    pub fn replicas(&self) -> impl Iterator<Item = (ShardId, ReplicaId)> {
        self.shards.iter().map(|(shard, r)| (*shard, r.replica))
    }

    /// That replica of a shard, or an error if it has no base record.
    pub fn replica(&mut self, shard: ShardId, replica: ReplicaId) -> Result<&mut ReplicaIndex, Fatal> {
        self.shards
            .get_mut(&shard)
            .filter(|r| r.replica == replica)
            .ok_or_else(|| refused(format!("replica {replica} of {shard} has no base record")))
    }

    /// That replica of a shard, as records on disk tell of it.
    pub fn found(&mut self, shard: ShardId, replica: ReplicaId) -> Result<&mut ReplicaIndex, Fatal> {
        let known = self.shards.entry(shard).or_insert_with(|| ReplicaIndex::provisional(shard, replica));
        if known.origin == Origin::Missing && known.replica != replica {
            *known = ReplicaIndex::provisional(shard, replica);
        }
        self.replica(shard, replica)
    }

    /// A replica whose base record never came.
    pub fn without_base(&self) -> Option<(ShardId, ReplicaId)> {
        self.shards.iter().find(|(_, r)| r.origin == Origin::Missing).map(|(shard, r)| (*shard, r.replica))
    }

    /// A base record: a replica begins, or what is before it is dropped.
    pub fn base(&mut self, replica: ReplicaId, base: &BaseRecord) {
        match self.shards.get_mut(&base.shard).filter(|r| r.replica == replica) {
            Some(existing) => existing.rebase(base),
            None => drop(self.shards.insert(base.shard, ReplicaIndex::new(replica, base))),
        }
    }

    /// A base record found on disk. Where nothing of the replica was met before, the entries it goes with may have been
    /// trimmed since, and a later one follow.
    pub fn found_base(&mut self, replica: ReplicaId, base: &BaseRecord) {
        let known = self.shards.get(&base.shard).is_some_and(|r| r.replica == replica);
        self.base(replica, base);
        if let Some(new) = self.shards.get_mut(&base.shard).filter(|_| !known) {
            new.origin = Origin::Likely;
        }
    }

    /// A record was put there.
    pub fn ends(&mut self, end: Location) {
        self.end = Some(end);
    }

    /// What a log has to say of every replica so that everything before it but their entries can go.
    pub fn anchors(&self) -> Vec<(ReplicaId, BaseRecord, HardState, Option<PaxosState>)> {
        self.shards.values().map(|r| (r.replica, r.base.clone(), r.hard, r.paxos)).collect()
    }

    /// The first segment that has an entry.
    pub fn first_segment(&self) -> Option<u32> {
        self.shards.values().filter_map(|r| r.locations.front()).map(|l| l.segment).min()
    }

    /// Bytes of disk from the entry behind an index to the end, with segments of a size.
    pub fn bytes_after(&self, shard: ShardId, index: Index, segment_bytes: u64) -> u64 {
        let Some(r) = self.shards.get(&shard) else { return 0 };
        let from = r.location(index.next()).or_else(|| r.locations.front().copied().filter(|_| index < r.last()));
        let (Some(from), Some(end)) = (from, self.end) else { return 0 };
        let at = |l: Location, more: u32| u64::from(l.segment) * segment_bytes + u64::from(l.offset) + u64::from(more);
        at(end, end.bytes).saturating_sub(at(from, 0))
    }

    /// Everything appended so far is in a file.
    pub fn all_written(&mut self) {
        for r in self.shards.values_mut() {
            r.written = r.last();
            r.trim_cache();
        }
    }
}

impl ReplicaIndex {
    fn provisional(shard: ShardId, replica: ReplicaId) -> Self {
        let base = MachineState::default().base(shard);
        Self { origin: Origin::Missing, ..Self::new(replica, &base) }
    }

    fn new(replica: ReplicaId, base: &BaseRecord) -> Self {
        Self {
            replica,
            base: base.clone(),
            origin: Origin::Certain,
            hard: HardState::default(),
            paxos: None,
            locations: VecDeque::new(),
            terms: VecDeque::new(),
            bytes: 0,
            cache: VecDeque::new(),
            cached: 0,
            written: base.index,
        }
    }

    /// Its bounds.
    pub fn bounds(&self) -> LogBounds {
        LogBounds {
            replica: self.replica,
            base: self.base.clone(),
            last: self.last(),
            last_term: self.terms.back().map_or(self.base.term, |(_, term)| *term),
            hard: self.hard,
            paxos: self.paxos,
            bytes: self.bytes,
        }
    }

    /// Index of its last entry.
    pub fn last(&self) -> Index {
        Index::new(self.base.index.get() + self.locations.len() as u64)
    }

    /// Index of the base.
    pub fn base_index(&self) -> Index {
        self.base.index
    }

    /// A hard state.
    pub fn hard(&mut self, hard: HardState) {
        self.hard = hard;
    }

    /// It goes on under another id.
    pub fn becomes(&mut self, replica: ReplicaId, hard: HardState) {
        (self.replica, self.hard, self.paxos) = (replica, hard, None);
    }

    /// A state of the `paxos` replicator.
    pub fn paxos(&mut self, paxos: PaxosState) {
        self.paxos = Some(paxos);
    }

    /// An entry that follows the last.
    pub fn push(&mut self, index: Index, term: Term, location: Location) -> Result<(), Fatal> {
        if self.origin != Origin::Certain && self.locations.is_empty() {
            if self.origin == Origin::Likely && index == self.last().next() {
                self.origin = Origin::Certain;
            } else {
                self.origin = Origin::Missing;
                self.base.index = Index::new(index.get().saturating_sub(1));
            }
        }
        if index != self.last().next() {
            return Err(refused(format!("entry {index} does not follow {}", self.last())));
        }
        if self.terms.back().map(|(_, t)| *t) != Some(term) {
            self.terms.push_back((index, term));
        }
        self.bytes += u64::from(location.bytes);
        self.locations.push_back(location);
        Ok(())
    }

    /// Remembers the entry pushed last.
    pub fn cache(&mut self, entry: LogEntry) {
        self.cached += entry.bytes.len();
        self.cache.push_back(entry);
    }

    /// Everything from here on is gone.
    pub fn truncate(&mut self, from: Index) -> Result<(), Fatal> {
        if self.origin == Origin::Missing && from <= self.base.index {
            let (hard, paxos) = (self.hard, self.paxos);
            *self = Self { hard, paxos, ..Self::provisional(self.base.shard, self.replica) };
            return Ok(());
        }
        if from <= self.base.index {
            return Err(refused(format!("cutting from {from} would remove the base {}", self.base.index)));
        }
        while self.last() >= from {
            self.bytes -= self.locations.pop_back().map_or(0, |l| u64::from(l.bytes));
        }
        while self.terms.back().is_some_and(|(first, _)| *first >= from) {
            self.terms.pop_back();
        }
        while self.cache.back().is_some_and(|e| e.index >= from) {
            self.cached -= self.cache.pop_back().map_or(0, |e| e.bytes.len());
        }
        self.written = self.written.min(self.last());
        Ok(())
    }

    fn rebase(&mut self, base: &BaseRecord) {
        if self.origin == Origin::Missing && !self.locations.is_empty() && base.index < self.base.index {
            // Of before the trim that took what is missing in between.
            return;
        }
        let origin = match self.origin {
            Origin::Certain => Origin::Certain,
            _ if base.index < self.last() => Origin::Certain,
            _ => Origin::Likely,
        };
        let keep = self.last() > base.index && base.index >= self.base.index;
        if keep {
            for _ in self.base.index.get()..base.index.get() {
                self.bytes -= self.locations.pop_front().map_or(0, |l| u64::from(l.bytes));
            }
            let first = base.index.next();
            while self.terms.get(1).is_some_and(|(next, _)| *next <= first) {
                self.terms.pop_front();
            }
            if let Some((start, _)) = self.terms.front_mut() {
                *start = (*start).max(first);
            }
            while self.cache.front().is_some_and(|e| e.index <= base.index) {
                self.cached -= self.cache.pop_front().map_or(0, |e| e.bytes.len());
            }
            self.base = base.clone();
        } else {
            let (hard, paxos) = (self.hard, self.paxos);
            *self = Self { hard, paxos, ..Self::new(self.replica, base) };
        }
        self.origin = origin;
    }

    fn trim_cache(&mut self) {
        while self.cached > CACHE_BYTES && self.cache.front().is_some_and(|e| e.index <= self.written) {
            self.cached -= self.cache.pop_front().map_or(0, |e| e.bytes.len());
        }
    }

    /// The term at an index, the base's included.
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last() {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= index);
        self.terms.get(run.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// Where the entry at an index is.
    pub fn location(&self, index: Index) -> Option<Location> {
        let at = index.get().checked_sub(self.base.index.get() + 1)?;
        self.locations.get(at as usize).copied()
    }

    /// Index of the first cached entry; behind the last if there is none.
    pub fn cached_from(&self) -> Index {
        self.cache.front().map_or(self.last().next(), |e| e.index)
    }

    /// Cached entries from an index on.
    pub fn cached(&self, from: Index) -> impl Iterator<Item = &LogEntry> {
        let skip = from.get().saturating_sub(self.cached_from().get());
        self.cache.iter().skip(skip as usize)
    }
}
