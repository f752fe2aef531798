//! The shard: replicator, sequencer and lag in one function, `step(now, input) -> effects`.
//!
//! The driver's whole contract: *execute persists in order, report each when it is durable, do everything else whenever
//! you like.* Sends that depend on an unfinished write are kept back here; nothing is applied before it is durable in
//! the local log.

use bytes::Bytes;
use quorate_shared::ids::{Index, NodeId, ReplicaId, Term};

use crate::error::Rejected;
use crate::lag::ReaderReport;
use crate::log::{LogEntry, LogRecord};
use crate::machine::Applied;
use crate::proposal::{Proposal, WriteResult};
use crate::replica::PersistId;

/// Names a waiting caller; chosen by the driver, never reused while waiting.
pub type Ticket = u64;

/// Everything that can happen to a shard. Closed on purpose: to know what can wake the core, read this.
#[derive(Debug)]
pub enum Input {
    /// A protocol message of a peer replica.
    Receive {
        /// The sender, authenticated by the driver's envelope.
        from: ReplicaId,
        /// The protocol's bytes.
        message: Bytes,
    },
    /// Write this; answered by [`Effect::Reply`].
    Propose {
        /// Who waits.
        ticket: Ticket,
        /// What to write.
        proposal: Box<Proposal>,
        /// Answer `retry` if it has not been appended by then (driver's clock, milliseconds).
        deadline: u64,
    },
    /// Which index must be applied to see every acknowledged write; answered by [`Effect::ReadReady`].
    Read {
        /// Who waits.
        ticket: Ticket,
        /// Answer `retry` if no quorum has answered by then.
        deadline: u64,
    },
    /// This persist and all before it are durable.
    Persisted(PersistId),
    /// The applier has applied entries up to an index.
    Applied(Applied),
    /// A log-shipped replica or a voter reports how far it is.
    Report(ReaderReport),
    /// The deadline asked for by `next_wake` has passed.
    Wake,
    /// Hand leadership over (drain).
    Transfer {
        /// To whom; `None`: the voter that is furthest.
        to: Option<ReplicaId>,
    },
    /// Free space is below the reserve (or above it again).
    DiskLow(bool),
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Effect {
    /// Make these records durable, in order, then report `Persisted(id)`.
    Persist {
        /// Its id.
        id: PersistId,
        /// The records.
        records: Vec<LogRecord>,
    },
    /// Put this on the wire to a voter.
    Send {
        /// The receiver.
        to: ReplicaId,
        /// The protocol's bytes.
        message: Bytes,
    },
    /// Apply these committed, locally durable entries to the machine, then report `Applied`.
    Apply {
        /// In order, following the last ones.
        entries: Vec<LogEntry>,
    },
    /// Answer a proposal.
    Reply {
        /// Who waits.
        ticket: Ticket,
        /// What became of it.
        result: Result<WriteResult, Rejected>,
    },
    /// Answer a read: it may run once this index is applied locally.
    ReadReady {
        /// Who waits.
        ticket: Ticket,
        /// The index, or `Retry`/`NotLeader`.
        result: Result<Index, Rejected>,
    },
    /// Leadership changed; for the router, the log and the metrics.
    Leader {
        /// The term.
        term: Term,
        /// The leader, if known.
        leader: Option<ReplicaId>,
        /// The node it lives on.
        node: Option<NodeId>,
        /// This replica is it *and* has applied its whole log: it evaluates proposals.
        ready: bool,
    },
}
