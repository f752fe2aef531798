//! The log: durable, ordered, verifiable. One per node, for the replicas of all its shards.
//!
//! A [`Log`] is written by one thread: records are appended, then synced together. [`LogReader`]s are shared.

pub mod memory;
pub mod segment;

use bytes::Bytes;
use quorate_shared::ids::{Epoch, Hash, Index, ReplicaId, ShardId, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::Fatal;
pub use crate::membership::{Member, Membership};

/// What kind of thing a protocol put at an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Payload {
    /// An entry of ours: `bytes` are its canonical bytes (see [`crate::entry`]).
    Entry,
    /// The protocol's own empty entry of a new leader; `bytes` is empty.
    Empty,
    /// A change of the membership; `bytes` are a [`crate::membership::ChangeEntry`]'s.
    Membership,
}

/// One position of a replica's log. `bytes` are stored, hashed and shipped as they came, never encoded again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its position.
    pub index: Index,
    /// The term it was appended in.
    pub term: Term,
    /// Whose bytes they are.
    pub payload: Payload,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a protocol must not forget besides entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Whom this replica voted for in it; replica 0 is nobody.
    pub vote: ReplicaId,
    /// A committed index; never needs a sync of its own.
    pub commit: Index,
}

/// A round of the `paxos` replicator: who proposes in it, and its number. The default is no round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    /// Its number.
    pub number: u32,
    /// The proposer, by its place among the voters of the configuration, from 1.
    pub proposer: u32,
}

/// What a replica of the `paxos` replicator must not forget besides entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PaxosState {
    /// The configuration it is of; those before it are over.
    pub configuration: u32,
    /// This replica takes part in it from here on: everything up to this index is decided, and the configuration's
    /// entries follow it.
    pub begins: Index,
    /// No round below this one is taken part in any more.
    pub promised: Round,
    /// The round in which the entries were accepted last.
    pub accepted: Round,
    /// A decided index; never needs a sync of its own.
    pub decided: Index,
    /// While entries of a newer round replace or follow others: where they begin. They count for nothing until a state
    /// without this is behind them, so that a crash between the two leaves the prefix that belongs to `accepted`.
    pub syncing: Option<Index>,
}

/// The point just before a replica's first entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BaseRecord {
    /// The shard it is a replica of.
    pub shard: ShardId,
    /// Index of the base; entries begin after it.
    pub index: Index,
    /// Term at that index.
    pub term: Term,
    /// Chain hash at that index.
    pub chain: Hash,
    /// Who takes part as of that index.
    pub membership: Membership,
    /// Epoch at that index.
    pub epoch: Epoch,
    /// Where that epoch began.
    pub epoch_start: EpochStart,
    /// Last timestamp given at or before that index.
    pub timestamp: Timestamp,
}

/// Where an epoch began: what is at or before this index is of the epochs before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EpochStart {
    /// The index before the epoch's first entry.
    pub index: Index,
    /// Chain hash there.
    pub chain: Hash,
}

impl BaseRecord {
    /// Where a shard's log begins in a new cluster.
    pub fn founding(shard: ShardId, membership: Membership, epoch: Epoch) -> Self {
        Self {
            shard,
            index: Index::new(0),
            term: Term::new(0),
            chain: Hash::default(),
            membership,
            epoch,
            epoch_start: EpochStart::default(),
            timestamp: Timestamp::MIN,
        }
    }
}

/// What is appended. Records of one replica keep their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogRecord {
    /// Entries, contiguous, following what is there (a truncation comes first where they replace something).
    Entries(Vec<LogEntry>),
    /// The newest hard state.
    Hard(HardState),
    /// The newest state of the `paxos` replicator.
    Paxos(PaxosState),
    /// Everything from this index on is gone.
    Truncate(Index),
    /// A replica begins here.
    Base(BaseRecord),
    /// The replica goes on under another id ([`ReplicaId::NONE`]: as a log-shipped one), with the same entries and a
    /// hard state of its own: the votes of one id are not those of another.
    Become {
        /// Its id from here on.
        replica: ReplicaId,
        /// Its hard state.
        hard: HardState,
    },
}

/// What a log knows of one replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogBounds {
    /// The replica whose log it is; nobody's id for a log-shipped one.
    pub replica: ReplicaId,
    /// The point before the first entry.
    pub base: BaseRecord,
    /// Last index, durable or not; the base's if there is no entry.
    pub last: Index,
    /// Term of the last index.
    pub last_term: Term,
    /// Newest hard state.
    pub hard: HardState,
    /// Newest state of the `paxos` replicator, if it ever wrote one.
    pub paxos: Option<PaxosState>,
    /// Bytes of its entries.
    pub bytes: u64,
}

impl LogBounds {
    /// The highest index that this log itself knows to be committed.
    pub fn committed(&self) -> Index {
        let decided = self.paxos.map_or(self.base.index, |paxos| paxos.decided);
        self.hard.commit.max(decided).max(self.base.index).min(self.last)
    }
}

/// The writer's side. `append` may buffer; after `sync` everything appended is durable.
pub trait Log: Send {
    /// Adds records of one replica.
    fn append(&mut self, replica: ReplicaId, shard: ShardId, records: &[LogRecord]) -> Result<(), Fatal>;
    /// Makes everything appended durable (`fdatasync`).
    fn sync(&mut self) -> Result<(), Fatal>;
    /// Lets a replica's log begin at a later point, durably. The caller has a synced snapshot at or behind that point:
    /// nothing before it can be had from this log any more.
    fn trim(&mut self, replica: ReplicaId, base: &BaseRecord) -> Result<(), Fatal> {
        self.append(replica, base.shard, &[LogRecord::Base(base.clone())])?;
        self.sync()
    }
}

/// The readers' side; sees what was appended, synced or not.
pub trait LogReader: Send + Sync {
    /// What is known of a shard's replica; `None` if it has no base record: a replica that lost its log.
    fn bounds(&self, shard: ShardId) -> Option<LogBounds>;
    /// Entries from `from` up to and without `to`, at least one if there is one, at most `bytes_max` bytes.
    fn entries(&self, shard: ShardId, from: Index, to: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Fatal>;
    /// The term at an index; the base's index included; `None` outside.
    fn term(&self, shard: ShardId, index: Index) -> Result<Option<Term>, Fatal>;

    /// Bytes of disk that are kept for the entries behind an index, those of other shards in between included.
    fn bytes_after(&self, shard: ShardId, index: Index) -> u64 {
        self.bounds(shard).filter(|b| b.last > index).map_or(0, |b| b.bytes)
    }

    /// Removes what no replica needs any more; how many files went. For any thread but the writer's.
    fn remove_obsolete(&self) -> Result<usize, Fatal> {
        Ok(0)
    }
}
