//! The replicator: the protocol that orders a shard's entries.
//!
//! One trait, one conformance suite of golden scripts. A protocol is never written by hand here: [`raft`] wraps raft-rs.
//! The replicator keeps back every send that depends on an unfinished write; what it cannot do is refused by name through
//! [`Capabilities`].

pub mod raft;

use bytes::Bytes;
use quorate_shared::ids::{Index, ReplicaId, Term};

use crate::error::Fatal;
use crate::log::{LogEntry, LogRecord, LogReader};

/// Milliseconds on the driver's monotonic clock.
pub type Now = u64;

/// Names a durable write; grows by one. Completion of one implies completion of all smaller ones.
pub type PersistId = u64;

/// Who leads, as this replica knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The current term.
    pub term: Term,
    /// Its leader, if known.
    pub leader: Option<ReplicaId>,
    /// This replica is it.
    pub is_leader: bool,
}

/// What a protocol can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// A quorum can be asked for the commit index without an entry.
    pub read_index: bool,
    /// Leadership can be handed over.
    pub transfer: bool,
    /// Non-voting members.
    pub learners: bool,
}

/// What a step wants done. `sends` are already legal to put on the wire.
#[derive(Default, Debug)]
pub struct Output {
    /// To be made durable, in order, under this id; at most one per step.
    pub persist: Option<(PersistId, Vec<LogRecord>)>,
    /// Messages of the protocol.
    pub sends: Vec<(ReplicaId, Bytes)>,
    /// Newly committed entries, in order, durable in the local log.
    pub committed: Vec<LogEntry>,
    /// Confirmed reads: context given to `read_index`, commit index.
    pub reads: Vec<(u64, Index)>,
}

/// One replica's part in a protocol.
pub trait Replicator: Send {
    /// A message of a peer; one that makes no sense is dropped and counted, never a panic.
    fn receive(&mut self, now: Now, from: ReplicaId, message: &[u8], log: &dyn LogReader) -> Result<(), Fatal>;
    /// Time has passed.
    fn tick(&mut self, now: Now, log: &dyn LogReader) -> Result<(), Fatal>;
    /// Appends entries; only legal on the leader, at exactly the indexes after [`Replicator::last_index`].
    fn append(&mut self, now: Now, entries: Vec<Bytes>, log: &dyn LogReader) -> Result<(), Fatal>;
    /// Asks a quorum for the commit index; the answer comes in [`Output::reads`], or never: the caller has a deadline.
    fn read_index(&mut self, now: Now, context: u64, log: &dyn LogReader) -> Result<(), Fatal>;
    /// A write is durable.
    fn persisted(&mut self, id: PersistId, log: &dyn LogReader) -> Result<(), Fatal>;
    /// Entries are applied to the engine.
    fn applied(&mut self, index: Index) -> Result<(), Fatal>;
    /// Hands leadership to another voter.
    fn transfer(&mut self, to: ReplicaId, log: &dyn LogReader) -> Result<(), Fatal>;
    /// Gives leadership up without a successor (a hung disk).
    fn step_down(&mut self, log: &dyn LogReader) -> Result<(), Fatal>;
    /// What is to be done now. Called after every one of the above, until it is empty.
    fn output(&mut self, log: &dyn LogReader) -> Result<Output, Fatal>;
    /// When `tick` wants to be called next.
    fn next_wake(&self) -> Now;
    /// Who leads.
    fn leadership(&self) -> Leadership;
    /// Highest index in the log, durable or not.
    fn last_index(&self) -> Index;
    /// Highest committed index known.
    fn commit_index(&self) -> Index;
    /// Per voter: highest index known to be in its log (the leader's view), and milliseconds since it was last heard.
    fn progress(&self, now: Now) -> Vec<(ReplicaId, Index, Option<u64>)>;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Messages dropped because they made no sense.
    fn dropped(&self) -> u64;
}
