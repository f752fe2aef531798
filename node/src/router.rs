//! The router: what SQL and the doors see of the cluster. Shards by id, never sockets.
//!
//! [`Router`] is a trait so that SQL runs against a whole node or against one shard in memory (tests).

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use quorate_core::catalog::Catalog;
use quorate_core::error::Rejected;
use quorate_core::mvcc::Snapshot;
use quorate_core::proposal::{Op, Proposal, WriteResult};
use quorate_shared::admin::{AdminAction, AdminEvent};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, ClusterId, Epoch, NodeId, ShardId, Timestamp};
use quorate_shared::status::{ClusterStatus, NodeKind};
use quorate_shared::wire::{NodeAddress, ReadLevel};
use tokio::sync::mpsc;

/// A moment on the machine's clock that also runs while it sleeps: only ages are made of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000)
    }

    /// One that was [`Moment::micros`].
    pub fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the machine started.
    pub fn micros(self) -> u64 {
        self.0
    }

    /// Milliseconds since, rounded up: an age is never understated.
    pub fn age_ms(self) -> u64 {
        Self::now().0.saturating_sub(self.0).div_ceil(1_000)
    }
}

/// A snapshot and how old it may be.
#[derive(Clone)]
pub struct ReadPoint {
    /// Where to read.
    pub snapshot: Snapshot,
    /// It has everything that was acknowledged before then, where that is known and the level allows an age.
    pub since: Option<Moment>,
}

/// The older of two; unknown is oldest where either is.
pub fn older(one: Option<Moment>, other: Option<Moment>) -> Option<Moment> {
    Some(one?.min(other?))
}

/// Fails where a read at this level took longer than its staleness allows; called when the result is complete.
///
/// # Errors
/// `ReplicaBehind`, with how far.
pub fn check_age(level: &ReadLevel, since: Option<Moment>, node: NodeId) -> Result<(), WireError> {
    let ReadLevel::MaxStaleness(limit) = level else { return Ok(()) };
    match since.map(Moment::age_ms) {
        Some(age) if age <= *limit => Ok(()),
        age => Err(too_old(node, age, *limit)),
    }
}

/// What is here is older than a read allows.
pub fn too_old(node: NodeId, age_ms: Option<u64>, limit: u64) -> WireError {
    let age = age_ms.map_or_else(|| "of unknown age".to_owned(), |age| format!("up to {age} ms old"));
    WireError::new(Code::Behind, format!("ReplicaBehind: what {node} has is {age}, and max_staleness is {limit} ms"))
        .hint("SET read_level = local reads what is here, whatever its age")
}

/// Why a proposal has no result: the shard's answer, or the way to it failed.
#[derive(thiserror::Error, Debug, Clone, PartialEq)]
pub enum ProposeError {
    /// The leader's answer.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// No answer came in time, or nobody to ask: `retry` (nothing was sent) or `unknown`.
    #[error("{0}")]
    Wire(WireError),
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster; `None` while it is not founded.
    pub cluster: Option<ClusterId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// This node.
    pub node: NodeId,
    /// Voter or replica. A replica refuses every write and all DDL.
    pub kind: NodeKind,
    /// Where clients and peers reach it.
    pub address: String,
}

/// The cluster as SQL and doors use it.
#[async_trait]
pub trait Router: Send + Sync + 'static {
    /// Proposes a write to a shard's leader, wherever it is; forwarded at most once. The caller replans and retries on
    /// `Conflict` and `StaleCatalog`; `NotLeader` and `Retry` are retried in here until the deadline.
    async fn propose(&self, shard: ShardId, proposal: Proposal, deadline: Instant)
    -> Result<WriteResult, ProposeError>;
    /// A snapshot of a shard that satisfies a read level.
    async fn read(&self, shard: ShardId, level: &ReadLevel, deadline: Instant) -> Result<ReadPoint, WireError>;
    /// Has an entry appended to a shard, so that nothing at or before the time it gives comes any more.
    async fn close(&self, shard: ShardId, deadline: Instant) -> Result<Timestamp, ProposeError> {
        let proposal = Proposal { ops: vec![Op::Close], ..Proposal::default() };
        Ok(self.propose(shard, proposal, deadline).await?.timestamp)
    }
    /// A snapshot of what is applied here, at once.
    fn read_local(&self, shard: ShardId) -> Result<ReadPoint, WireError>;
    /// The catalog as applied here.
    fn catalog(&self) -> Arc<Catalog>;
    /// Waits until the catalog applied here is at least this version.
    async fn catalog_at_least(&self, version: CatalogVersion, deadline: Instant) -> Result<Arc<Catalog>, WireError>;
    /// Who this node is.
    fn identity(&self) -> Identity;
    /// The leader of `s0`, if one is known.
    fn master(&self) -> Option<NodeAddress>;
    /// Whether this node leads `s0` and evaluates proposals (runs DDL jobs).
    fn is_master(&self) -> bool;
    /// Takes the cluster's picture.
    async fn picture(&self) -> ClusterStatus;
    /// Every node known.
    fn nodes(&self) -> Vec<NodeAddress>;
    /// Who is to be asked for an action instead of this node, if somebody is.
    fn not_here(&self, _action: &AdminAction) -> Option<WireError> {
        None
    }
    /// Begins an action on the cluster, which goes on by itself; what it says goes to `events`, which it drops at its
    /// end. A router without a cluster drops them at once.
    fn act(&self, action: AdminAction, dry_run: bool, events: mpsc::Sender<AdminEvent>) {
        drop((action, dry_run, events));
    }
}
