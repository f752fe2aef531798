//! The reader's side of a pulled stream: a replica that only receives.
//!
//! Everything in its log is committed. What comes is verified, made durable, then applied; after a restart it goes on
//! from its own log. It speaks the driver's language: its effects are `Persist` and `Apply`.
//!
//! Invariants: its log only grows, entry after entry, each chained to the last; nothing is applied before it is durable;
//! at most [`APPLY_WINDOW_BYTES`] are handed out and not yet applied.

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Hash, Index, NodeId, ReplicaId, ShardId, Term};
use quorate_shared::limits::APPEND_BYTES_MAX;
use quorate_shared::status::NodeKind;

use super::{Pull, ShipBatch, ShipProgress, chain_at};
use crate::bug::{Bug, planted};
use crate::entry::{self, Body, Entry, Kind};
use crate::epoch::{Relation, relation};
use crate::error::Fatal;
use crate::join::{last_id, replica_of};
use crate::lag::ReaderReport;
use crate::log::{LogEntry, LogReader, LogRecord, Membership, Payload};
use crate::machine::Applied;
use crate::membership::Host;
use crate::replica::APPLY_WINDOW_BYTES;
use crate::replica::PersistId;
use crate::shard::Effect;

/// Why a batch was not taken: the connection is to be closed, and the server, or this replica, looked at.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum BadBatch {
    /// Of another shard or epoch.
    #[error("a batch of another shard or epoch")]
    Foreign,
    /// It does not follow what is here.
    #[error("entry {got} came where {expected} was to come")]
    Gap {
        /// The next index here.
        expected: Index,
        /// What came.
        got: Index,
    },
    /// The entries do not chain to the hash the server names.
    #[error("the chain hash at {0} is not the server's")]
    Chain(Index),
}

/// How a follower is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FollowerView {
    /// Highest index received.
    pub last: Index,
    /// Highest index durable.
    pub durable: Index,
    /// Highest index applied.
    pub applied: Index,
    /// Highest commit index heard of.
    pub commit: Index,
    /// The highest term seen.
    pub term: Term,
}

/// A replica by shipping.
pub struct Follower {
    shard: ShardId,
    epoch: Epoch,
    log: Arc<dyn LogReader>,
    last: Index,
    chain: Hash,
    term: Term,
    commit: Index,
    durable: Index,
    writes: VecDeque<(PersistId, Index)>,
    issued: PersistId,
    /// Received and not yet handed out; contiguous up to `last`.
    fresh: VecDeque<LogEntry>,
    handed: Index,
    applying: VecDeque<(Index, usize)>,
    applying_bytes: usize,
    applied: Index,
    membership: Arc<Membership>,
    /// The last id this log went by as a member.
    was: ReplicaId,
}

impl Follower {
    /// Goes on from its own log (synced since it was opened) and what is applied.
    pub fn new(shard: ShardId, epoch: Epoch, log: Arc<dyn LogReader>, applied: &Applied) -> Result<Self, Fatal> {
        let doing = || format!("open {shard}");
        let bounds =
            log.bounds(shard).ok_or_else(|| Fatal::new(doing(), "its log is lost: there is no base record"))?;
        if applied.index > bounds.last {
            let cause = format!("its log is lost: applied {}, but the log ends at {}", applied.index, bounds.last);
            return Err(Fatal::new(doing(), cause));
        }
        let chain = chain_at(&*log, shard, bounds.last)?
            .ok_or_else(|| Fatal::new(doing(), format!("the log has no entry {}", bounds.last)))?;
        if applied.index == bounds.last && applied.index > bounds.base.index && applied.chain != chain {
            let cause = format!("the engine and the log have different hashes at {}", bounds.last);
            return Err(Fatal::new(doing(), cause));
        }
        let mut epoch = epoch;
        let mut at = applied.index.max(bounds.base.index).next();
        while at <= bounds.last {
            let read = log.entries(shard, at, bounds.last.next(), APPEND_BYTES_MAX)?;
            let Some(end) = read.last() else { break };
            at = end.index.next();
            epoch = read.iter().filter_map(epoch_of).fold(epoch, Epoch::max);
        }
        Ok(Self {
            shard,
            epoch,
            log,
            last: bounds.last,
            chain,
            term: bounds.last_term,
            commit: bounds.last,
            durable: bounds.last,
            writes: VecDeque::new(),
            issued: 0,
            fresh: VecDeque::new(),
            handed: applied.index.max(bounds.base.index),
            applying: VecDeque::new(),
            applying_bytes: 0,
            applied: applied.index.max(bounds.base.index),
            membership: Arc::clone(&applied.membership),
            was: last_id(&bounds),
        })
    }

    /// The id under which this log is to go on as a member, once everything is applied: the driver is to open it anew
    /// ([`crate::join::settle`]). [`ReplicaId::NONE`]: none.
    pub fn named(&self, me: Host) -> ReplicaId {
        if self.applied < self.last {
            ReplicaId::NONE
        } else {
            replica_of(ReplicaId::NONE, self.was, me, &self.membership)
        }
    }

    /// The epoch of what it has received.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What to ask a server for.
    pub fn pull(&self) -> Pull {
        let window = super::serve::WINDOW_BYTES_MAX;
        Pull { shard: self.shard, epoch: self.epoch, index: self.last, chain: self.chain, window }
    }

    /// Takes a batch. Entries that are here already are skipped.
    pub fn receive(&mut self, batch: ShipBatch, effects: &mut Vec<Effect>) -> Result<(), BadBatch> {
        let twin = planted(Bug::TwoEpochs) && batch.epoch.number == self.epoch.number;
        let foreign = matches!(relation(self.epoch, batch.epoch), Relation::Older | Relation::Conflict) && !twin;
        if batch.shard != self.shard || foreign {
            return Err(BadBatch::Foreign);
        }
        let mut new = batch.entries;
        new.retain(|e| e.index > self.last);
        let (mut last, mut chain, mut term) = (self.last, self.chain, self.term);
        for entry in &new {
            if entry.index != last.next() || entry.term < term {
                return Err(BadBatch::Gap { expected: last.next(), got: entry.index });
            }
            chain = entry::chain(chain, entry);
            (last, term) = (entry.index, entry.term);
        }
        if batch.last > last {
            return Err(BadBatch::Gap { expected: last.next(), got: batch.last });
        }
        if batch.last == last && batch.chain != chain && !planted(Bug::IgnoreChainMismatch) {
            return Err(BadBatch::Chain(last));
        }
        self.commit = self.commit.max(batch.commit);
        if new.is_empty() {
            return Ok(());
        }
        (self.last, self.chain, self.term) = (last, chain, term);
        self.epoch = new.iter().filter_map(epoch_of).fold(self.epoch, Epoch::max);
        self.issued += 1;
        self.writes.push_back((self.issued, last));
        self.fresh.extend(new.iter().cloned());
        effects.push(Effect::Persist { id: self.issued, records: vec![LogRecord::Entries(new)] });
        Ok(())
    }

    /// A write is durable, and all before it.
    pub fn persisted(&mut self, id: PersistId, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        while let Some((_, last)) = self.writes.pop_front_if(|(write, _)| *write <= id) {
            self.durable = last;
        }
        self.hand_out(effects)
    }

    /// Entries are applied.
    pub fn applied(&mut self, applied: &Applied, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        self.applied = self.applied.max(applied.index);
        self.membership = Arc::clone(&applied.membership);
        while let Some((_, bytes)) = self.applying.pop_front_if(|(last, _)| *last <= applied.index) {
            self.applying_bytes -= bytes;
        }
        self.hand_out(effects)
    }

    /// Hands out what is durable and not yet being applied. To be called once after [`Follower::new`]: what a restart
    /// found unapplied is handed out too.
    pub fn hand_out(&mut self, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        while self.handed < self.durable && self.applying_bytes < APPLY_WINDOW_BYTES {
            let entries = self.next_entries()?;
            let Some(last) = entries.last() else {
                let cause = format!("the log has no entry {}", self.handed.next());
                return Err(Fatal::new(format!("apply {}", self.shard), cause));
            };
            let bytes = entries.iter().map(|e| e.bytes.len() + 64).sum();
            self.handed = last.index;
            self.applying.push_back((self.handed, bytes));
            self.applying_bytes += bytes;
            effects.push(Effect::Apply { entries });
        }
        Ok(())
    }

    fn next_entries(&mut self) -> Result<Vec<LogEntry>, Fatal> {
        let next = self.handed.next();
        if self.fresh.front().is_none_or(|e| e.index > next) {
            let end = self.fresh.front().map_or(self.durable.next(), |e| e.index);
            return self.log.entries(self.shard, next, end, APPEND_BYTES_MAX);
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        while bytes < APPEND_BYTES_MAX
            && let Some(entry) = self.fresh.pop_front_if(|e| e.index <= self.durable)
        {
            bytes += entry.bytes.len();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// What to tell the server.
    pub fn progress(&self) -> ShipProgress {
        ShipProgress { shard: self.shard, received: self.last, durable: self.durable, applied: self.applied }
    }

    /// What to tell whoever asks about this replica.
    pub fn report(&self, node: NodeId) -> ReaderReport {
        let (received, durable, applied) = (self.last, self.durable, self.applied);
        ReaderReport { node, kind: NodeKind::Replica, sent: received, received, durable, applied }
    }

    /// How it is now.
    pub fn view(&self) -> FollowerView {
        FollowerView {
            last: self.last,
            durable: self.durable,
            applied: self.applied,
            commit: self.commit,
            term: self.term,
        }
    }
}

/// The epoch that an entry begins.
fn epoch_of(entry: &LogEntry) -> Option<Epoch> {
    if entry.payload != Payload::Entry || Entry::header(&entry.bytes).is_ok_and(|h| h.kind != Kind::Epoch) {
        return None;
    }
    match Entry::decode(&entry.bytes).ok()?.body {
        Body::Epoch(begun) => Some(begun.epoch),
        _ => None,
    }
}
