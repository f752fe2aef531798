//! The replicator: the protocol that orders a shard's entries.
//!
//! One trait, one conformance suite of golden scripts. A protocol is never written by hand here: [`raft`] wraps raft-rs,
//! [`paxos`] OmniPaxos.
//! The replicator keeps back every send that depends on an unfinished write; what it cannot do is refused by name through
//! [`Capabilities`].
//!
//! Invariants: entries are handed out as committed only when they are durable in the local log; every message in
//! [`Output::sends`] is legal to put on the wire at once; a peer's bytes never panic.

mod flow;
pub mod paxos;
pub mod raft;
pub(crate) mod random;

use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};
use serde::{Deserialize, Serialize};

pub use self::flow::APPLY_WINDOW_BYTES;
use crate::error::Fatal;
use crate::log::{LogEntry, LogRecord, Membership};
use crate::membership::{MembershipChange, Refused};

/// Milliseconds on the driver's monotonic clock.
pub type Now = u64;

/// Names a durable write; grows. Completion of one implies completion of all smaller ones.
pub type PersistId = u64;

/// How long things may take, in milliseconds of the driver's clock.
///
/// Relations: `tick <= heartbeat < election_min < election_max`; checked when a replicator is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// How often the protocol looks at the clock.
    pub tick: u64,
    /// How often a leader says that it is there.
    pub heartbeat: u64,
    /// A follower that has heard nothing for at least this long stands for election; a leader that has heard no quorum
    /// for this long steps down.
    pub election_min: u64,
    /// The latest moment a follower stands for election (drawn anew each time between the two).
    pub election_max: u64,
    /// A report older than this is no longer news: lag is then a lower bound.
    pub report_fresh: u64,
}

impl Default for Timing {
    /// A leader that died is replaced after about half a second; a stall of 0.8 s of the leader's disk hands over.
    fn default() -> Self {
        Timing { tick: 25, heartbeat: 50, election_min: 400, election_max: 800, report_fresh: 250 }
    }
}

/// What a replica has to know to take part.
#[derive(Clone, Debug)]
pub struct Config {
    /// The shard.
    pub shard: ShardId,
    /// This replica.
    pub replica: ReplicaId,
    /// Who takes part as of what is applied, this replica among them.
    pub membership: Arc<Membership>,
    /// Highest index the engine has applied.
    pub applied: Index,
    /// For everything random in it; different on every replica and every start.
    pub seed: u64,
    /// How long things may take.
    pub timing: Timing,
}

/// The protocol of a shard, the same for all its replicas for as long as it exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// [`raft`].
    #[default]
    Raft,
    /// [`paxos`].
    Paxos,
}

impl Protocol {
    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Raft => "raft",
            Protocol::Paxos => "paxos",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        [Protocol::Raft, Protocol::Paxos].into_iter().find(|p| p.name() == name).ok_or(UnknownProtocol)
    }
}

/// A name that no protocol has.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[error("the replicators are raft and paxos")]
pub struct UnknownProtocol;

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

/// What the leader knows of a voter, itself included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The voter.
    pub replica: ReplicaId,
    /// Highest index sent to it.
    pub sent: Index,
    /// Highest index known to be durable in its log.
    pub durable: Index,
    /// Highest index it said it has applied.
    pub applied: Index,
    /// Milliseconds since it was last heard in this term; `None`: not yet.
    pub heard: Option<u64>,
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
    /// The leader's log does not reach back to where this one ends any more: a snapshot at or behind this index has to
    /// be fetched and installed, out of band. Said again until it is there.
    pub needs_snapshot: Option<Index>,
}

impl Output {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.persist.is_none()
            && self.sends.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.needs_snapshot.is_none()
    }
}

/// One replica's part in a protocol. Any number of inputs may be given before [`Replicator::output`] is asked.
pub trait Replicator: Send {
    /// A message of a peer; one that makes no sense is dropped and counted, never a panic.
    fn receive(&mut self, now: Now, from: ReplicaId, message: &[u8]) -> Result<(), Fatal>;
    /// Time has passed.
    fn tick(&mut self, now: Now) -> Result<(), Fatal>;
    /// Appends entries at exactly the indexes after [`Replicator::last_index`]. `false`: nothing was appended, because
    /// this replica does not lead or is handing leadership over.
    fn append(&mut self, now: Now, entries: Vec<Bytes>) -> Result<bool, Fatal>;
    /// Appends a change of the membership as the next entry, which is given back; it counts once it is applied. One at a
    /// time. Whether it is wise has been looked at; what is refused here cannot be.
    fn change(&mut self, now: Now, change: &MembershipChange) -> Result<Result<LogEntry, Refused>, Fatal> {
        let _ = (now, change);
        Ok(Err(Refused::Unsupported("membership changes".into())))
    }
    /// Asks a quorum for the commit index; the answer comes in [`Output::reads`], or never: the caller has a deadline.
    /// `false`: it cannot be asked now (not the leader, or nothing of its term is committed yet).
    fn read_index(&mut self, now: Now, context: u64) -> Result<bool, Fatal>;
    /// A connection to a peer was lost or renewed, or a message to it was dropped: what was under way may not arrive.
    fn disconnected(&mut self, now: Now, peer: ReplicaId) -> Result<(), Fatal>;
    /// A write is durable, and all before it.
    fn persisted(&mut self, now: Now, id: PersistId) -> Result<(), Fatal>;
    /// Entries are applied to the engine.
    fn applied(&mut self, index: Index) -> Result<(), Fatal>;
    /// The entry at this index, and all before it, are known to be committed, from outside of the protocol; they are durable
    /// here. A protocol need not make use of it.
    fn committed(&mut self, _now: Now, _index: Index) -> Result<(), Fatal> {
        Ok(())
    }
    /// The log is about to be trimmed to this point, which is applied: nothing at or before it is read or sent any more,
    /// and a voter that would need it is told to fetch a snapshot. `false`: this protocol needs its log whole.
    fn compact(&mut self, _index: Index, _term: Term) -> Result<bool, Fatal> {
        Ok(false)
    }
    /// Gives leadership up at once, whoever follows.
    fn step_down(&mut self, now: Now) -> Result<(), Fatal> {
        self.transfer(now, None)
    }
    /// Hands leadership to another voter; `None`: the one whose log is furthest.
    fn transfer(&mut self, now: Now, to: Option<ReplicaId>) -> Result<(), Fatal>;
    /// Leadership is being handed over: nothing can be appended.
    fn transferring(&self) -> bool;
    /// Whether this replica may be elected; one that may not goes on voting and following.
    fn may_lead(&mut self, _may: bool) {}
    /// What is to be done now.
    fn output(&mut self, now: Now) -> Result<Output, Fatal>;
    /// When `tick` wants to be called next.
    fn next_wake(&self) -> Now;
    /// Who leads.
    fn leadership(&self) -> Leadership;
    /// A quorum has answered this leader within the last election timeout.
    fn confirmed(&self, now: Now) -> bool;
    /// Highest index in the log, durable or not.
    fn last_index(&self) -> Index;
    /// Highest index durable in the local log.
    fn durable_index(&self) -> Index;
    /// Writes given out and not durable yet.
    fn writes_pending(&self) -> usize;
    /// Highest committed index known.
    fn commit_index(&self) -> Index;
    /// The leader's view of every voter, by replica id; empty elsewhere.
    fn progress(&self, now: Now) -> Vec<Progress>;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Messages dropped because they made no sense.
    fn dropped(&self) -> u64;
}

/// What a message of a protocol promises, for the simulator's invariants.
#[cfg(any(test, feature = "planted-bugs"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claims {
    /// The sender is in this term.
    pub term: Term,
    /// The term may never be: nothing is promised about it.
    pub speculative: bool,
    /// The sender votes for this replica in the term.
    pub votes_for: Option<ReplicaId>,
    /// The sender's log has, durably, everything up to here.
    pub has: Option<Index>,
}

/// Reads the claims of a message; `None`: it makes none that can be checked.
#[cfg(any(test, feature = "planted-bugs"))]
pub fn claims(from: ReplicaId, to: ReplicaId, message: &[u8]) -> Option<Claims> {
    raft::claims(from, to, message)
}
