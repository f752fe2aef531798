//! What must always hold, one file each, checked after every event that could break it.

mod acknowledged;
mod bases;
mod committed;
pub mod indexes;
mod leaders;
mod lineage;
mod members;
mod overlap;
mod readonly;
mod reads;
mod sent;
mod states;
mod votes;

pub use self::lineage::Lineage;
use quorate_shared::ids::{Epoch, Hash, Index, ReplicaId};

use super::history::Operation;
use super::store::Content;
use crate::log::{LogEntry, Membership};
use crate::replica::claims;

/// All of them, for a shard.
#[derive(Default)]
pub struct Checks {
    pub acknowledged: acknowledged::Acknowledged,
    pub bases: bases::Bases,
    pub committed: committed::Committed,
    pub leaders: leaders::Leaders,
    pub lineage: lineage::Lineage,
    pub members: members::Members,
    pub overlap: overlap::Overlap,
    pub reads: reads::Reads,
    pub readonly: readonly::ReadOnly,
    pub states: states::States,
    pub votes: votes::Votes,
}

/// A message of the protocol that leaves a node.
pub struct Sent<'a> {
    pub now: u64,
    pub node: u64,
    pub from: ReplicaId,
    pub to: ReplicaId,
    /// What is durable in the sender's log.
    pub durable: &'a Content,
}

impl Checks {
    /// The cluster begins.
    pub fn found(&mut self, epoch: Epoch, membership: Membership) {
        self.lineage.found(epoch);
        self.members.found(epoch, membership);
    }

    /// A node hands entries to its applier.
    pub fn commits(&mut self, node: u64, entries: &[LogEntry]) -> Result<(), String> {
        self.committed.commits(node, entries, &mut self.lineage, &mut self.members)
    }

    /// A node has applied so far.
    pub fn applies(&mut self, at: (u64, Index), chain: Hash, digest: Hash) -> Result<(), String> {
        self.states.applied(&self.lineage, at, chain, digest)
    }

    /// A client has its answer.
    pub fn ended(&mut self, operation: &Operation) -> Result<(), String> {
        self.reads.ended(&self.lineage, operation)
    }

    /// The last entry of the history that goes on.
    pub fn last(&self) -> Index {
        self.committed.last(self.lineage.newest())
    }

    /// A message is put on the wire.
    pub fn sent(&mut self, sent: &Sent<'_>, message: &[u8]) -> Result<(), String> {
        let Some(claims) = claims(sent.from, sent.to, message) else { return Ok(()) };
        self.votes.sent(sent, &claims)?;
        sent::check(sent, &claims)
    }
}
