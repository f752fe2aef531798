//! The cluster's picture: one value for the TUI, `quorate status`, its JSON, the system tables and `/metrics`.
//!
//! Invariants: a node that does not answer stays in the list; what is unknown is `None` (`null`, `-` on screen), never 0;
//! a lower bound has `lag_at_least`. Field names are a contract: `schema` grows when they change.

use serde::{Deserialize, Serialize};

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// Takes part in consensus, or only receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Takes part in consensus.
    #[default]
    Voter,
    /// Receives committed entries by shipping.
    Replica,
}

impl std::fmt::Display for NodeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeKind::Voter => "voter",
            NodeKind::Replica => "replica",
        })
    }
}

/// A kind that may not be known: `null` in JSON, one more variant in bytes, where the others stay what they are.
mod perhaps {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::NodeKind;

    #[derive(Serialize, Deserialize)]
    enum Perhaps {
        Voter,
        Replica,
        Unknown,
    }

    pub(super) fn serialize<S: Serializer>(kind: &Option<NodeKind>, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return kind.serialize(serializer);
        }
        match kind {
            Some(NodeKind::Voter) => Perhaps::Voter,
            Some(NodeKind::Replica) => Perhaps::Replica,
            None => Perhaps::Unknown,
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NodeKind>, D::Error> {
        if deserializer.is_human_readable() {
            return Option::deserialize(deserializer);
        }
        Ok(match Perhaps::deserialize(deserializer)? {
            Perhaps::Voter => Some(NodeKind::Voter),
            Perhaps::Replica => Some(NodeKind::Replica),
            Perhaps::Unknown => None,
        })
    }
}

/// How bad it is; also the exit code of `quorate status` (0, 1, 2, 3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything is as it should be.
    Ok,
    /// Works, but someone should look.
    Warning,
    /// Something does not work.
    Critical,
    /// Nobody could be asked.
    #[default]
    Unknown,
}

impl Verdict {
    /// The exit code of `quorate status`.
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Critical => "critical",
            Verdict::Unknown => "unknown",
        })
    }
}

/// The whole picture.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct ClusterStatus {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Cluster id in hex; `None` when nobody could be asked.
    pub cluster: Option<String>,
    /// When the picture was taken, RFC 3339 UTC with milliseconds.
    pub taken_at: String,
    /// The worst of it all.
    pub verdict: Verdict,
    /// Leader of `s0`, e.g. `n1`.
    pub master: Option<String>,
    /// The node that was asked.
    pub asked: Option<String>,
    /// Every node, dead ones included, by id.
    pub nodes: Vec<NodeStatus>,
    /// Every shard, by id.
    pub shards: Vec<ShardStatus>,
    /// Client sessions over all nodes that answered.
    pub sessions: u64,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
    /// Archives of the log that are kept outside (`quorate backup`).
    #[serde(default)]
    pub archives: Vec<ArchiveStatus>,
}

/// An archive of the log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct ArchiveStatus {
    /// Its id, in hex.
    pub id: String,
    /// Where it is written.
    pub label: String,
    /// When it was begun, RFC 3339 UTC.
    pub started: String,
    /// Milliseconds since the moment up to which everything is durable in it.
    pub age_ms: u64,
    /// `age_ms` is a lower bound: no node that answered has heard of it since it started.
    pub age_at_least: bool,
    /// The last durable index of each shard, as last heard, e.g. `s1`.
    pub shards: Vec<(String, u64)>,
}

/// One node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct NodeStatus {
    /// e.g. `n1`.
    pub id: String,
    /// Where clients and peers reach it.
    pub addr: String,
    /// Its HTTP address, if it serves one.
    pub http: Option<String>,
    /// Voter or replica, where anybody could tell.
    #[serde(with = "perhaps")]
    pub kind: Option<NodeKind>,
    /// Answered the node that took the picture.
    pub reachable: bool,
    /// How many other nodes say that they hear from it; `None` if none of them could be asked.
    pub reachable_by_peers: Option<u32>,
    /// Why it did not answer, or what is wrong with it.
    pub error: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Milliseconds since it started.
    pub uptime_ms: Option<u64>,
    /// Bytes its data directory uses.
    pub disk_used_bytes: Option<u64>,
    /// Bytes free on its disk.
    pub disk_free_bytes: Option<u64>,
    /// Resident memory.
    pub memory_bytes: Option<u64>,
    /// Client sessions on it.
    pub sessions: Option<u64>,
    /// Statements finished since it started.
    pub statements: Option<u64>,
}

/// One shard.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct ShardStatus {
    /// e.g. `s1`.
    pub id: String,
    /// Its leader, if one is known and confirmed.
    pub leader: Option<String>,
    /// Its term.
    pub term: Option<u64>,
    /// Highest committed index known.
    pub commit: Option<u64>,
    /// A quorum confirmed the leader within the last election timeout.
    pub confirmed: bool,
    /// Chain hash at `commit`, in hex, short.
    pub chain: Option<String>,
    /// Bytes of its log on the leader.
    pub log_bytes: Option<u64>,
    /// Its replicas, voters first.
    pub members: Vec<MemberStatus>,
    /// What orders its entries: `raft` or `paxos`.
    #[serde(default)]
    pub replicator: Option<String>,
    /// Requests that its leader has accepted and not answered yet.
    #[serde(default)]
    pub queue: Option<u64>,
    /// Milliseconds since its leader was elected.
    #[serde(default)]
    pub led_ms: Option<u64>,
}

/// One replica of a shard, as its leader sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct MemberStatus {
    /// e.g. `n4`.
    pub node: String,
    /// Voter or replica.
    pub kind: NodeKind,
    /// Highest index sent to it.
    pub sent: Option<u64>,
    /// Highest index durable on it, as reported.
    pub durable: Option<u64>,
    /// Highest index applied on it, as reported.
    pub applied: Option<u64>,
    /// Committed entries it has not applied.
    pub lag_entries: Option<u64>,
    /// Bytes of those entries.
    pub lag_bytes: Option<u64>,
    /// Milliseconds since the first entry it has not applied was committed.
    pub lag_ms: Option<u64>,
    /// `lag_ms` is a lower bound.
    pub lag_at_least: bool,
    /// Milliseconds since its last report.
    pub report_age_ms: Option<u64>,
    /// The phase it is stuck in: `send`, `persist`, `apply`; `snapshot`: the log does not reach back to it any more.
    pub stuck_at: Option<String>,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct Problem {
    /// A stable name, e.g. `NodeUnreachable`.
    pub name: String,
    /// `warning` or `critical`.
    pub severity: Verdict,
    /// What it is about: a node, a shard, a member (`s1/n4`).
    pub subject: String,
    /// Since when, RFC 3339 UTC, as far as the node asked knows.
    pub since: String,
    /// What to do.
    pub hint: String,
}

#[cfg(test)]
pub(crate) mod tests;
