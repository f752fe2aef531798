//! What raft-rs reads: the log as the protocol sees it, of which the end is still in memory.
//!
//! raft-rs wants to read entries as soon as it has handed them out, long before they are durable. So the newest entries
//! live in a *tail* here, and everything before it is read through the [`LogReader`]. Entries stay in the tail until they
//! are durable, and longer as a cache: followers and the applier usually ask for them soon after.
//!
//! Invariant: everything before the tail is in the log exactly as the protocol knows it; no truncation of it is pending.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use quorate_shared::ids::{Index, ShardId};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState as RaftHardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, StorageError};

use super::messages::from_log;
use crate::error::Fatal;
use crate::log::{HardState, LogReader, Membership, Payload};

/// Bytes of durable entries kept in memory.
const CACHE_BYTES: usize = 8 << 20;
/// Most bytes of one read of the log at the start.
const SCAN_BYTES: usize = 4 << 20;
/// Bytes of the log read for followers between two refills: reading blocks everything else of this node. A follower
/// that is far behind goes on with its next acknowledgement.
const READ_BYTES: usize = 4 << 20;
/// What an entry costs besides its bytes.
const ENTRY_OVERHEAD: usize = 64;

/// See the module.
pub(super) struct Storage {
    log: Arc<dyn LogReader>,
    shard: ShardId,
    hard: HardState,
    conf: ConfState,
    base: (u64, u64),
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    last: u64,
    durable: u64,
    /// Where the log has changes of the membership that are not applied: raft-rs must not stand for election while a
    /// committed one is among them, and looks through everything for them.
    changes: BTreeSet<u64>,
    /// While set, reads give nothing: the replicator takes no more committed entries than the applier can hold.
    pub(super) pause: Cell<bool>,
    /// Bytes that may still be read for followers.
    budget: Cell<usize>,
    failed: RefCell<Option<Fatal>>,
}

impl Storage {
    /// The log of a replica as it is on disk; all of it is durable. `commit` replaces the saved commit index.
    pub(super) fn open(
        log: Arc<dyn LogReader>,
        shard: ShardId,
        membership: &Membership,
        applied: Index,
    ) -> Result<Self, Fatal> {
        let Some(bounds) = log.bounds(shard) else {
            return Err(Fatal::new(format!("open {shard}"), "its log is lost: there is no base record"));
        };
        let mut hard = bounds.hard;
        if applied > bounds.last {
            let cause = format!("its log is lost: applied {applied}, but the log ends at {}", bounds.last);
            return Err(Fatal::new(format!("open {shard}"), cause));
        }
        if hard.commit > bounds.last {
            let cause = format!("its log is lost: committed {}, but the log ends at {}", hard.commit, bounds.last);
            return Err(Fatal::new(format!("open {shard}"), cause));
        }
        hard.commit = hard.commit.max(applied).max(bounds.base.index);
        let changes = changes_after(&*log, shard, applied.max(bounds.base.index), bounds.last)?;
        Ok(Self {
            log,
            shard,
            hard,
            conf: conf_state(membership),
            base: (bounds.base.index.get(), bounds.base.term.get()),
            tail: VecDeque::new(),
            tail_bytes: 0,
            last: bounds.last.get(),
            durable: bounds.last.get(),
            changes,
            pause: Cell::new(false),
            budget: Cell::new(READ_BYTES),
            failed: RefCell::new(None),
        })
    }

    /// The newest hard state, durable or on its way.
    pub(super) fn hard(&self) -> HardState {
        self.hard
    }

    /// Notes a newer hard state.
    pub(super) fn set_hard(&mut self, hard: HardState) {
        self.hard = hard;
    }

    /// Highest index known to be in the log, durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// A read of the log that failed; raft-rs has panicked because of it, or will give wrong answers.
    pub(super) fn take_failure(&self) -> Option<Fatal> {
        self.failed.borrow_mut().take()
    }

    /// Adds entries that are not in the log yet. `true`: they replace some that were.
    pub(super) fn append(&mut self, entries: &[Entry]) -> bool {
        let Some(first) = entries.first() else { return false };
        let truncates = first.index <= self.last;
        if truncates {
            while self.tail.back().is_some_and(|e| e.index >= first.index) {
                if let Some(gone) = self.tail.pop_back() {
                    self.tail_bytes -= size(&gone);
                }
            }
            self.durable = self.durable.min(first.index - 1);
            self.changes.split_off(&first.index);
        }
        for entry in entries {
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.changes.insert(entry.index);
            }
            self.tail_bytes += size(entry);
            self.tail.push_back(entry.clone());
        }
        self.last = first.index + entries.len() as u64 - 1;
        truncates
    }

    /// Entries up to this index are durable in the log, and no truncation is pending.
    pub(super) fn set_durable(&mut self, index: u64) {
        self.durable = self.durable.max(index.min(self.last));
        while self.tail_bytes > CACHE_BYTES && self.tail.front().is_some_and(|e| e.index <= self.durable) {
            if let Some(gone) = self.tail.pop_front() {
                self.tail_bytes -= size(&gone);
            }
        }
    }

    /// The log is about to be trimmed to this point; nothing at or before it is read any more.
    pub(super) fn compact(&mut self, index: u64, term: u64) {
        if index <= self.base.0 || index > self.durable {
            return;
        }
        self.base = (index, term);
        while self.tail.front().is_some_and(|e| e.index <= index) {
            if let Some(gone) = self.tail.pop_front() {
                self.tail_bytes -= size(&gone);
            }
        }
    }

    /// Changes of the membership up to this index are applied.
    pub(super) fn changed(&mut self, index: u64) {
        self.changes = self.changes.split_off(&(index + 1));
    }

    /// The kinds of entries without the entries: all raft-rs looks at where it reads without a limit.
    fn kinds(&self, low: u64, high: u64) -> Vec<Entry> {
        let kind = |index| {
            let mut out = Entry::default();
            if self.changes.contains(&index) {
                out.set_entry_type(EntryType::EntryConfChangeV2);
            }
            out
        };
        (low..high).map(kind).collect()
    }

    /// A flush is over: followers may be read for again.
    pub(super) fn refill(&self) {
        self.budget.set(READ_BYTES);
    }

    fn tail_first(&self) -> u64 {
        self.last + 1 - self.tail.len() as u64
    }

    fn fail<T>(&self, fatal: Fatal) -> raft::Result<T> {
        self.failed.borrow_mut().get_or_insert(fatal);
        Err(Error::Store(StorageError::Unavailable))
    }
}

fn changes_after(log: &dyn LogReader, shard: ShardId, after: Index, last: Index) -> Result<BTreeSet<u64>, Fatal> {
    let mut out = BTreeSet::new();
    let mut at = after.next();
    while at <= last {
        let read = log.entries(shard, at, last.next(), SCAN_BYTES)?;
        let Some(end) = read.last() else { break };
        at = end.index.next();
        out.extend(read.iter().filter(|e| e.payload == Payload::Membership).map(|e| e.index.get()));
    }
    Ok(out)
}

/// A membership as raft-rs knows it. A learner that is still one of the voters before counts as theirs.
pub(super) fn conf_state(membership: &Membership) -> ConfState {
    let ids = |members: &[crate::log::Member]| members.iter().map(|m| m.replica.get()).collect::<Vec<_>>();
    let outgoing = ids(&membership.outgoing);
    let (next, learners) = ids(&membership.learners).into_iter().partition(|id| outgoing.contains(id));
    ConfState {
        voters: ids(&membership.voters),
        voters_outgoing: outgoing,
        learners,
        learners_next: next,
        ..ConfState::default()
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD
}

impl raft::Storage for Storage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard = RaftHardState::default();
        hard.term = self.hard.term.get();
        hard.vote = self.hard.vote.get();
        hard.commit = self.hard.commit.get();
        Ok(RaftState::new(hard, self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if self.pause.get() {
            return Ok(Vec::new());
        }
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let Some(limit) = max_size.into() else { return Ok(self.kinds(low, high)) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let tail_first = self.tail_first();
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut next = low;
        if low < tail_first {
            if context.can_async() && self.budget.get() == 0 {
                return Err(Error::Store(StorageError::LogTemporarilyUnavailable));
            }
            let to = high.min(tail_first);
            match self.log.entries(self.shard, Index::new(low), Index::new(to), limit) {
                Ok(read) => {
                    bytes = read.iter().map(|e| e.bytes.len() + ENTRY_OVERHEAD).sum();
                    next += read.len() as u64;
                    if context.can_async() {
                        self.budget.set(self.budget.get().saturating_sub(bytes));
                    }
                    out = read.iter().map(from_log).collect();
                }
                Err(fatal) => return self.fail(fatal),
            }
            if out.first().is_none_or(|e| e.index != low) {
                let cause = format!("the log has no entry {low}");
                return self.fail(Fatal::new(format!("read the log of {}", self.shard), cause));
            }
            if next < tail_first {
                return Ok(out);
            }
        }
        let skip = usize::try_from(next - tail_first).unwrap_or(usize::MAX);
        for entry in self.tail.iter().skip(skip).take_while(|e| e.index < high) {
            bytes += size(entry);
            if bytes > limit && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let tail_first = self.tail_first();
        if index >= tail_first {
            let at = usize::try_from(index - tail_first).unwrap_or(usize::MAX);
            return self.tail.get(at).map(|e| e.term).ok_or(Error::Store(StorageError::Unavailable));
        }
        match self.log.term(self.shard, Index::new(index)) {
            Ok(Some(term)) => Ok(term.get()),
            Ok(None) => {
                let cause = format!("the log has no entry {index}");
                self.fail(Fatal::new(format!("read the log of {}", self.shard), cause))
            }
            Err(fatal) => self.fail(fatal),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// A marker: it says where this log begins, and the follower fetches a snapshot itself.
    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        let mut marker = Snapshot::default();
        let point = marker.mut_metadata();
        (point.index, point.term) = self.base;
        match self.base.0 {
            0 => Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable)),
            _ => Ok(marker),
        }
    }
}
