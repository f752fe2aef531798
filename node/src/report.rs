//! What a node says of itself, for the cluster's picture: [`NodeReport`], and who can be asked for one, [`Reports`].
//!
//! The node that is asked collects its own report and those of every node it knows; `admin` makes a
//! [`ClusterStatus`](quorate_shared::status::ClusterStatus) of them. A report crosses the wire between nodes (postcard),
//! so its fields are only ever appended.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use quorate_core::membership::Membership;
use quorate_shared::error::WireError;
use quorate_shared::ids::{ClusterId, Epoch, Index, NodeId, Nonce, ReplicaId, ShardId};
use quorate_shared::status::{NodeKind, ShardStatus};
use serde::{Deserialize, Serialize};

/// How a node is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NodeState {
    /// It is starting: waits for the listed peers (a voter) or for the master (a replica). Says what is going on.
    Forming(String),
    /// Serves.
    Ready,
    /// A voter that neither votes nor acknowledges, and why.
    LostLog(String),
    /// A replica of a shard has stopped, and why; what does not need it goes on.
    Stopped(String),
    /// It is no part of its cluster any more, and who said so.
    Removed(String),
}

/// One shard on one node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// This node leads it: `status` has its members with their lag. Otherwise `members` is empty.
    pub leads: bool,
    /// The shard as this node sees it.
    pub status: ShardStatus,
    /// Highest index durable here.
    pub durable: Index,
    /// Highest index applied here.
    pub applied: Index,
    /// Why this replica has stopped, if it has.
    pub stopped: Option<String>,
    /// Its id; none of a log-shipped one.
    pub replica: ReplicaId,
    /// Who takes part, as of `applied`.
    pub membership: Membership,
}

/// Everything a node says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Who says it.
    pub node: NodeId,
    /// Voter or replica.
    pub kind: NodeKind,
    /// Where clients and peers reach it.
    pub address: String,
    /// Where it serves HTTP.
    pub http: Option<String>,
    /// Its cluster, once it has one.
    pub cluster: Option<ClusterId>,
    /// Its version, e.g. `0.1.0`.
    pub version: String,
    /// How it is.
    pub state: NodeState,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Bytes its data directory uses.
    pub disk_used_bytes: u64,
    /// Bytes free on its disk.
    pub disk_free_bytes: u64,
    /// Free space is below the reserve: writes are refused.
    pub disk_low: bool,
    /// Milliseconds the log's write in progress has taken so far; 0 when none is.
    pub sync_running_ms: u64,
    /// Resident memory.
    pub memory_bytes: u64,
    /// Client sessions.
    pub sessions: u64,
    /// Statements finished since it started.
    pub statements: u64,
    /// The engine was rebuilt at this start, and why.
    pub engine_rebuilt: Option<String>,
    /// Its shards.
    pub shards: Vec<ShardReport>,
    /// Other nodes and milliseconds since something was last heard from each; `None`: never.
    pub heard: Vec<(NodeId, Option<u64>)>,
    /// Peer messages dropped: queue full or not for this replica.
    pub dropped: u64,
    /// Its wall clock, milliseconds since 1970.
    pub clock_ms: u64,
    /// Where its last scrub found replicas that differ and are not rebuilt: which (`s1/n3`), and how.
    pub diverged: Vec<(String, String)>,
    /// Archives of the log that its catalog knows.
    pub archives: Vec<ArchiveHeard>,
    /// Its data directory, in this incarnation.
    pub nonce: Nonce,
    /// The epoch it is in.
    pub epoch: Epoch,
    /// Nodes it has met in another epoch of the same number.
    pub rivals: Vec<(NodeId, Epoch)>,
    /// A newer epoch that it has heard of and is not in yet.
    pub newer: Option<Epoch>,
    /// Nodes that it has lately refused because another one of their number is there, and where they say they are.
    pub twins: Vec<(NodeId, String)>,
}

/// An archive of the log, as a node knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ArchiveHeard {
    /// Its id.
    pub id: u64,
    /// Where it is written.
    pub label: String,
    /// When it was begun, milliseconds since 1970.
    pub started_ms: u64,
    /// Milliseconds since the moment up to which everything is durable in it; `None`: this node has not heard of it.
    pub age_ms: Option<u64>,
    /// The last durable index of each shard.
    pub shards: Vec<(ShardId, Index)>,
}

/// Counters that the doors keep and reports show.
#[derive(Debug, Default)]
pub struct Counters {
    /// Client sessions open now.
    pub sessions: AtomicU64,
    /// Statements finished.
    pub statements: AtomicU64,
}

/// Whom to ask for reports.
#[async_trait]
pub trait Reports: Send + Sync + 'static {
    /// This node.
    fn node(&self) -> NodeId;
    /// This node's own.
    fn local_report(&self) -> NodeReport;
    /// Another node's, or why there is none within the timeout.
    async fn peer_report(&self, node: NodeId, timeout: Duration) -> Result<NodeReport, WireError>;
    /// The counters behind `sessions` and `statements`; doors count here.
    fn counters(&self) -> &Counters;
}

/// Takes over the connections of other nodes. The door has read the preface and the `Hello` and sent its own preface;
/// the greeting is still to be sent.
#[async_trait]
pub trait PeerDoor: Send + Sync + 'static {
    /// Serves the connection until it ends; refuses by greeting.
    async fn accept(&self, stream: tokio::net::TcpStream, hello: quorate_shared::wire::PeerHello);
}
