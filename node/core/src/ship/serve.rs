//! The server's side of a pulled stream: where a reader is, and what it gets next.

use std::collections::VecDeque;

use quorate_shared::ids::{Epoch, Hash, Index, NodeId, ShardId, Term};
use quorate_shared::limits::APPEND_BYTES_MAX;
use quorate_shared::status::NodeKind;

use super::{Pull, Refusal, ShipBatch, ShipProgress, chain_at};
use crate::entry;
use crate::epoch::{Relation, relation};
use crate::error::Fatal;
use crate::lag::ReaderReport;
use crate::log::{EpochStart, LogReader};

/// Largest window a reader gets.
pub const WINDOW_BYTES_MAX: u64 = 16 << 20;

/// What a server knows of its shard at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Highest index that is committed and durable in this node's log ([`crate::shard::View::shippable`]).
    pub shippable: Index,
    /// Highest index known to be committed.
    pub commit: Index,
    /// The term.
    pub term: Term,
}

/// One reader of one shard.
#[derive(Debug)]
pub struct Sender {
    shard: ShardId,
    epoch: Epoch,
    sent: Index,
    chain: Hash,
    window: u64,
    on_the_way: VecDeque<(Index, u64)>,
    bytes: u64,
    received: Index,
    durable: Index,
    applied: Index,
}

impl Sender {
    /// Begins a stream, if the reader's point is in this log.
    pub fn begin(
        log: &dyn LogReader,
        (epoch, start): (Epoch, EpochStart),
        committed: Committed,
        pull: &Pull,
    ) -> Result<Result<Sender, Refusal>, Fatal> {
        let Some(bounds) = log.bounds(pull.shard) else { return Ok(Err(Refusal::NotHere(pull.shard))) };
        let older = match relation(epoch, pull.epoch) {
            Relation::Same => false,
            Relation::Older => true,
            Relation::Newer => return Ok(Err(Refusal::OtherEpoch { ours: epoch })),
            Relation::Conflict => return Ok(Err(Refusal::TwoEpochs { ours: epoch })),
        };
        // A reader of an epoch before this one is served if what it has is of this history: its chain says so.
        let cut = older && pull.index > start.index;
        if cut && pull.index > bounds.base.index {
            match chain_at(log, pull.shard, pull.index)? {
                Some(ours) if ours == pull.chain => {}
                _ => return Ok(Err(Refusal::NewEpoch { epoch, start })),
            }
        }
        if pull.index < bounds.base.index {
            return Ok(Err(Refusal::NeedsSnapshot { first: bounds.base.index }));
        }
        if pull.index > committed.shippable.max(bounds.base.index) {
            return Ok(Err(Refusal::Ahead { commit: committed.shippable }));
        }
        match chain_at(log, pull.shard, pull.index)? {
            // Before the epoch's start cutting there mends nothing: what the reader has is of an epoch that was passed over.
            Some(ours) if ours != pull.chain => {
                let diverged = Refusal::Diverged { index: pull.index, ours };
                return Ok(Err(if cut { Refusal::NewEpoch { epoch, start } } else { diverged }));
            }
            Some(_) => {}
            None => return Ok(Err(Refusal::Ahead { commit: committed.shippable })),
        }
        Ok(Ok(Sender {
            shard: pull.shard,
            epoch,
            sent: pull.index,
            chain: pull.chain,
            window: pull.window.clamp(1, WINDOW_BYTES_MAX),
            on_the_way: VecDeque::new(),
            bytes: 0,
            received: Index::new(0),
            durable: Index::new(0),
            applied: Index::new(0),
        }))
    }

    /// What to send now; `None`: nothing new, or the window is full.
    pub fn next(&mut self, log: &dyn LogReader, committed: Committed) -> Result<Option<ShipBatch>, Fatal> {
        if self.sent >= committed.shippable || self.bytes >= self.window {
            return Ok(None);
        }
        let entries = log.entries(self.shard, self.sent.next(), committed.shippable.next(), APPEND_BYTES_MAX)?;
        let Some(last) = entries.last() else {
            let cause = format!("the log has no entry {}", self.sent.next());
            return Err(Fatal::new(format!("ship {}", self.shard), cause));
        };
        let bytes = entries.iter().map(|e| e.bytes.len() as u64 + 64).sum();
        self.chain = entries.iter().fold(self.chain, entry::chain);
        self.sent = last.index;
        self.on_the_way.push_back((self.sent, bytes));
        self.bytes += bytes;
        Ok(Some(ShipBatch { entries, ..self.heartbeat(committed) }))
    }

    /// A batch without entries: the server is there, and knows this commit index.
    pub fn heartbeat(&self, committed: Committed) -> ShipBatch {
        ShipBatch {
            shard: self.shard,
            epoch: self.epoch,
            entries: Vec::new(),
            last: self.sent,
            chain: self.chain,
            commit: committed.commit,
            commit_term: committed.term,
        }
    }

    /// The reader says how far it is. What it cannot have is ignored.
    pub fn progress(&mut self, progress: &ShipProgress) {
        let most = progress.received.max(progress.durable).max(progress.applied);
        if progress.shard != self.shard || most > self.sent {
            return;
        }
        self.received = self.received.max(progress.received);
        self.durable = self.durable.max(progress.durable);
        self.applied = self.applied.max(progress.applied);
        while self.on_the_way.front().is_some_and(|(last, _)| *last <= self.applied) {
            self.bytes -= self.on_the_way.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    /// Highest index sent.
    pub fn sent(&self) -> Index {
        self.sent
    }

    /// What the leader is to know of this reader.
    pub fn report(&self, node: NodeId) -> ReaderReport {
        let (sent, received, durable, applied) = (self.sent, self.received, self.durable, self.applied);
        ReaderReport { node, kind: NodeKind::Replica, sent, received, durable, applied }
    }
}
