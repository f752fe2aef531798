//! The cluster's picture: every node's report, asked for in parallel, merged into one [`ClusterStatus`].
//!
//! The merge is a pure function of what was gathered, so that its rules can be tested one by one. It shows things as the
//! node sees them that was asked: a node that does not answer stays in the list with the reason, a shard is shown as its
//! leader sees it, and what nobody knows is `None`.
//!
//! Left out: history. When a problem began is known as far back as this node has seen it.

pub mod actions;
mod problems;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use futures::future::join_all;
use quorate_shared::ids::{NodeId, ShardId};
use quorate_shared::status::{
    ArchiveStatus, ClusterStatus, MemberStatus, NodeKind, NodeStatus, SCHEMA, ShardStatus, Verdict,
};
use quorate_shared::wire::NodeAddress;

use crate::report::{ArchiveHeard, NodeReport, NodeState, Reports};

/// How long a node may take to report before the picture is taken without it.
pub const REPORT_TIMEOUT: Duration = Duration::from_millis(500);
/// A node that was heard within this time is alive.
pub const HEARD_MS_MAX: u64 = 1_000;

/// A report and when it was taken, by the asking node's clock.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The report.
    pub report: NodeReport,
    /// When it was asked for, milliseconds since 1970.
    pub asked_ms: u64,
    /// When it had come.
    pub answered_ms: u64,
}

/// Everything a picture is made of.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// The node that asks.
    pub asked: NodeId,
    /// Every node known: registered, configured, or heard of.
    pub known: Vec<NodeAddress>,
    /// What each said, or why it did not; the asking node's own report is among them.
    pub answers: BTreeMap<NodeId, Result<Answer, String>>,
}

/// Takes pictures; remembers since when it has seen each problem.
#[derive(Debug, Default)]
pub struct Admin {
    since: Mutex<Since>,
}

/// When a problem was first seen, by name and subject.
pub type Since = BTreeMap<(String, String), u64>;

impl Admin {
    /// Asks every known node and merges what they say.
    pub async fn picture(&self, reports: &dyn Reports, known: Vec<NodeAddress>) -> ClusterStatus {
        let gathered = gather(reports, known).await;
        merge(&gathered, &mut self.since.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks every known node at once.
pub async fn gather(reports: &dyn Reports, known: Vec<NodeAddress>) -> Gathered {
    let asked_ms = now_ms();
    let asked = reports.node();
    let others: BTreeSet<NodeId> = known.iter().map(|node| node.node).filter(|node| *node != asked).collect();
    let answers = join_all(others.into_iter().map(|node| async move {
        let answer = match reports.peer_report(node, REPORT_TIMEOUT).await {
            Ok(report) => Ok(Answer { report, asked_ms, answered_ms: now_ms() }),
            Err(error) => Err(error.message),
        };
        (node, answer)
    }));
    let mut answers: BTreeMap<_, _> = answers.await.into_iter().collect();
    // Last: while the others were waited for, this node's own knowledge has grown.
    let (local_ms, local) = (now_ms(), reports.local_report());
    answers.insert(asked, Ok(Answer { report: local, asked_ms: local_ms, answered_ms: local_ms }));
    Gathered { now_ms: now_ms(), asked, known, answers }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// RFC 3339, UTC, milliseconds.
pub fn time_text(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Makes the picture. `since` keeps the problems that are still there.
pub fn merge(gathered: &Gathered, since: &mut Since) -> ClusterStatus {
    let gathered = &refuse_foreigners(gathered);
    let reports: Vec<&NodeReport> = gathered.reports().collect();
    let shards = shards(gathered);
    let master = shards.iter().find(|shard| shard.id == ShardId::META.to_string()).and_then(|meta| meta.leader.clone());
    let mut status = ClusterStatus {
        schema: SCHEMA,
        cluster: reports.iter().find_map(|report| report.cluster).map(|cluster| cluster.to_string()),
        taken_at: time_text(gathered.now_ms),
        verdict: Verdict::Ok,
        master,
        asked: Some(gathered.asked.to_string()),
        nodes: gathered.known_nodes().iter().map(|node| node_status(gathered, node)).collect(),
        shards,
        sessions: reports.iter().map(|report| report.sessions).sum(),
        problems: Vec::new(),
        archives: archives(gathered),
    };
    status.problems = problems::find(gathered, &status, since);
    status.verdict = status.problems.iter().map(|problem| problem.severity).max().unwrap_or(Verdict::Ok);
    status
}

/// Every archive anybody knows, as heard last.
fn archives(gathered: &Gathered) -> Vec<ArchiveStatus> {
    let mut all: BTreeMap<u64, (&ArchiveHeard, Option<u64>)> = BTreeMap::new();
    for heard in gathered.reports().flat_map(|report| &report.archives) {
        let (best, age) = all.entry(heard.id).or_insert((heard, heard.age_ms));
        if heard.age_ms.is_some_and(|ms| age.is_none_or(|age| ms < age)) {
            (*best, *age) = (heard, heard.age_ms);
        }
    }
    // Nobody has heard of it since it started: that long at least.
    let listening = gathered.reports().map(|report| report.uptime_ms).max().unwrap_or(0);
    let status = |(heard, age): (&ArchiveHeard, Option<u64>)| ArchiveStatus {
        id: format!("{:016x}", heard.id),
        label: heard.label.clone(),
        started: time_text(heard.started_ms),
        age_ms: age.unwrap_or(listening),
        age_at_least: age.is_none(),
        shards: heard.shards.iter().map(|(shard, index)| (shard.to_string(), index.get())).collect(),
    };
    all.into_values().map(status).collect()
}

/// A node of another cluster behind a known address is no answer.
fn refuse_foreigners(gathered: &Gathered) -> Gathered {
    let mut gathered = gathered.clone();
    let ours = gathered.report(gathered.asked).and_then(|report| report.cluster);
    for answer in gathered.answers.values_mut() {
        let theirs = answer.as_ref().ok().and_then(|answer| answer.report.cluster);
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
        {
            *answer = Err(format!("it belongs to another cluster ({theirs})"));
        }
    }
    gathered
}

impl Gathered {
    /// Reports that came, by node.
    fn reports(&self) -> impl Iterator<Item = &NodeReport> {
        self.answers.values().filter_map(|answer| answer.as_ref().ok()).map(|answer| &answer.report)
    }

    /// A node's report, if it came.
    fn report(&self, node: NodeId) -> Option<&NodeReport> {
        self.answers.get(&node)?.as_ref().ok().map(|answer| &answer.report)
    }

    /// Every node, by id, each once; what a node says of itself wins.
    fn known_nodes(&self) -> Vec<NodeAddress> {
        let mut nodes: BTreeMap<NodeId, NodeAddress> = BTreeMap::new();
        for node in &self.known {
            nodes.entry(node.node).or_insert_with(|| node.clone());
        }
        for report in self.reports() {
            let (node, address, kind) = (report.node, report.address.clone(), report.kind);
            nodes.insert(node, NodeAddress { node, address, kind });
        }
        nodes.into_values().collect()
    }

    /// What the other nodes that answered last heard of a node: milliseconds, `None` for never. Without those that
    /// have nothing to do with it.
    fn heard_by_peers(&self, node: NodeId) -> Vec<Option<u64>> {
        let others = self.reports().filter(|report| report.node != node && report.node != self.asked);
        others.filter_map(|report| report.heard.iter().find(|(of, _)| *of == node)).map(|(_, ms)| *ms).collect()
    }
}

/// Whether something was heard lately.
fn is_recent(heard: &Option<u64>) -> bool {
    heard.is_some_and(|ms| ms <= HEARD_MS_MAX)
}

fn node_status(gathered: &Gathered, node: &NodeAddress) -> NodeStatus {
    let peers = gathered.heard_by_peers(node.node);
    let reachable_by_peers = (!peers.is_empty()).then(|| peers.iter().filter(|heard| is_recent(heard)).count() as u32);
    let base = NodeStatus {
        id: node.node.to_string(),
        addr: node.address.clone(),
        kind: Some(node.kind),
        reachable_by_peers,
        ..NodeStatus::default()
    };
    let report = match gathered.answers.get(&node.node) {
        Some(Ok(answer)) => &answer.report,
        Some(Err(reason)) => return NodeStatus { error: Some(reason.clone()), ..base },
        None => return NodeStatus { error: Some("it was not asked".into()), ..base },
    };
    NodeStatus {
        http: report.http.clone(),
        reachable: true,
        error: match &report.state {
            NodeState::Ready => None,
            NodeState::Forming(whom) => Some(format!("no cluster yet: {whom}")),
            NodeState::LostLog(why) => Some(format!("lost its log: {why}")),
            NodeState::Removed(why) => Some(format!("removed: {why}")),
            NodeState::Stopped(why) => Some(format!("stopped: {why}")),
        },
        version: Some(report.version.clone()),
        uptime_ms: Some(report.uptime_ms),
        disk_used_bytes: Some(report.disk_used_bytes),
        disk_free_bytes: Some(report.disk_free_bytes),
        memory_bytes: Some(report.memory_bytes),
        sessions: Some(report.sessions),
        statements: Some(report.statements),
        ..base
    }
}

/// Every shard anybody reports, as its leader sees it.
fn shards(gathered: &Gathered) -> Vec<ShardStatus> {
    let ids: BTreeSet<ShardId> =
        gathered.reports().flat_map(|report| &report.shards).map(|shard| shard.shard).collect();
    ids.into_iter().map(|id| shard_status(gathered, id)).collect()
}

fn shard_status(gathered: &Gathered, id: ShardId) -> ShardStatus {
    let copies: Vec<_> = gathered
        .reports()
        .filter_map(|report| Some((report, report.shards.iter().find(|shard| shard.shard == id)?)))
        .collect();
    // Two nodes may think that they lead: the newer term is right, and only a quorum makes it certain.
    let leading = copies.iter().filter(|(_, shard)| shard.leads);
    let leading = leading.max_by_key(|(_, shard)| (shard.status.confirmed, shard.status.term));
    let mut status = match leading {
        Some((report, shard)) if shard.status.confirmed => {
            ShardStatus { leader: Some(report.node.to_string()), ..shard.status.clone() }
        }
        Some((_, shard)) => unconfirmed(shard.status.clone()),
        None => ShardStatus::default(),
    };
    status.id = id.to_string();
    if leading.is_none() {
        status.term = copies.iter().filter_map(|(_, shard)| shard.status.term).max();
        status.commit = copies.iter().filter_map(|(_, shard)| shard.status.commit).max();
        status.replicator = copies.iter().find_map(|(_, shard)| shard.status.replicator.clone());
    }
    for node in gathered.known_nodes() {
        let name = node.node.to_string();
        if status.members.iter().any(|member| member.node == name) {
            continue;
        }
        let own = copies.iter().find(|(report, _)| report.node == node.node).map(|(_, shard)| shard);
        // A replica that a confirmed leader has never heard of: behind by as long as that one leads, if not longer.
        let silent = status.led_ms.filter(|_| status.confirmed && node.kind == NodeKind::Replica);
        status.members.push(MemberStatus {
            node: name,
            kind: node.kind,
            durable: own.map(|shard| shard.durable.get()),
            applied: own.map(|shard| shard.applied.get()),
            lag_ms: silent.map(|ms| ms.max(1)),
            lag_at_least: silent.is_some(),
            stuck_at: silent.filter(|ms| *ms >= HEARD_MS_MAX).map(|_| "send".into()),
            ..MemberStatus::default()
        });
    }
    status.members.sort_by_cached_key(|member| (member.kind == NodeKind::Replica, node_number(&member.node)));
    status
}

/// A leader whom no quorum has confirmed lately does not know how far behind anybody is.
fn unconfirmed(mut status: ShardStatus) -> ShardStatus {
    status.leader = None;
    status.queue = None;
    status.led_ms = None;
    for member in &mut status.members {
        member.lag_entries = None;
        member.lag_bytes = None;
        member.lag_ms = None;
        member.lag_at_least = false;
        member.stuck_at = None;
    }
    status
}

/// `n12` sorts behind `n2`.
fn node_number(name: &str) -> (u64, String) {
    (name.trim_start_matches('n').parse().unwrap_or(u64::MAX), name.to_owned())
}

#[cfg(test)]
pub(crate) mod tests;
