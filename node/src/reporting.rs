//! What this node reports of itself, and how it asks others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Index, NodeId, ShardId};
use quorate_shared::status::ShardStatus;

use crate::admin::actions::node_id;
use crate::config::Config;
use crate::driver::{Clock, Driver};
use crate::forward::{Forwarder, NodeRouter};
use crate::peers::Peers;
use crate::peers::message::{Ask, Reply};
use crate::report::{Counters, NodeReport, Reports, ShardReport};
use crate::router::Router;
use crate::streams::archives::Archives;

/// The node's reports. Disk numbers are refreshed by housekeeping.
pub struct NodeReports {
    config: Arc<Config>,
    http: Option<String>,
    data: PathBuf,
    peers: Arc<Peers>,
    forwarder: Arc<Forwarder>,
    counters: Counters,
    started: Instant,
    rebuilt: Mutex<Option<String>>,
    diverged: Mutex<BTreeMap<ShardId, Vec<(String, String)>>>,
    /// Bytes the data directory uses.
    pub disk_used: AtomicU64,
    /// Bytes free on its disk.
    pub disk_free: AtomicU64,
    /// Free space is below the reserve.
    pub disk_low: AtomicBool,
    /// What was heard of archives.
    pub archives: Archives,
}

impl NodeReports {
    /// Nothing is counted yet.
    pub fn new(
        config: Arc<Config>,
        http: Option<String>,
        data: &Path,
        peers: Arc<Peers>,
        forwarder: Arc<Forwarder>,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            http,
            data: data.to_owned(),
            peers,
            forwarder,
            counters: Counters::default(),
            started: Instant::now(),
            rebuilt: Mutex::new(None),
            diverged: Mutex::default(),
            disk_used: AtomicU64::new(0),
            disk_free: AtomicU64::new(crate::store::free_bytes(data).unwrap_or(0)),
            disk_low: AtomicBool::new(false),
            archives: Archives::default(),
        })
    }

    /// Why the engine was rebuilt at this start.
    pub fn set_rebuilt(&self, why: Option<String>) {
        *self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Where a scrub of a shard found replicas that differ: which, and how.
    pub fn set_diverged(&self, shard: ShardId, found: Vec<(String, String)>) {
        self.diverged.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, found);
    }

    /// Where HTTP is served.
    pub fn http(&self) -> Option<&String> {
        self.http.as_ref()
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    fn shards(&self, driver: &Driver) -> Vec<ShardReport> {
        let mut reports = Vec::new();
        let catalog = driver.catalog();
        for view in driver.views() {
            let leader = view.leader();
            let (state, mut status) = driver.status(view.shard).unwrap_or_else(|| {
                let status = ShardStatus { id: view.shard.to_string(), ..ShardStatus::default() };
                (quorate_core::shard::View { applied: view.applied(), ..Default::default() }, status)
            });
            // What a node said last before it was removed says nothing of the cluster.
            status.members.retain(|member| !node_id(&member.node).is_some_and(|node| catalog.has_removed(node)));
            if status.leader.is_none() {
                status.leader = leader.node.map(|node| node.to_string());
            }
            reports.push(ShardReport {
                shard: view.shard,
                leads: state.is_leader,
                status,
                durable: state.durable,
                applied: Index::max(state.applied, view.applied()),
                stopped: view.stopped(),
                replica: view.replica,
                membership: (*view.membership()).clone(),
            });
        }
        reports
    }
}

/// Resident memory of this process.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[async_trait]
impl Reports for NodeReports {
    fn node(&self) -> NodeId {
        self.config.node
    }

    fn local_report(&self) -> NodeReport {
        let driver = self.forwarder.driver();
        let identity = NodeRouter(self.forwarder.clone()).identity();
        NodeReport {
            node: self.config.node,
            kind: self.forwarder.kind(),
            address: self.forwarder.address().to_owned(),
            http: self.http.clone(),
            cluster: identity.cluster,
            version: env!("CARGO_PKG_VERSION").into(),
            state: self.forwarder.state(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            disk_used_bytes: self.disk_used.load(Ordering::Relaxed),
            disk_free_bytes: self.disk_free.load(Ordering::Relaxed),
            disk_low: self.disk_low.load(Ordering::Relaxed),
            sync_running_ms: driver.map_or(0, |d| d.sync_running_ms()),
            memory_bytes: memory_bytes(),
            sessions: self.counters.sessions.load(Ordering::Relaxed),
            statements: self.counters.statements.load(Ordering::Relaxed),
            engine_rebuilt: self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            shards: driver.map(|d| self.shards(d)).unwrap_or_default(),
            heard: self.peers.heard(),
            dropped: self.peers.dropped() + driver.map_or(0, |d| d.dropped()),
            clock_ms: Clock::wall(),
            diverged: self
                .diverged
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values()
                .flatten()
                .cloned()
                .collect(),
            archives: driver.map(|d| self.archives.of(&d.catalog())).unwrap_or_default(),
            nonce: self.peers.nonce(),
            epoch: self.peers.epoch(),
            rivals: self.peers.rivals(),
            newer: self.peers.newer_epoch(),
            twins: self.peers.twins(),
        }
    }

    async fn peer_report(&self, node: NodeId, timeout: Duration) -> Result<NodeReport, WireError> {
        let failed = |why: String| WireError::new(Code::Retry, why);
        match self.peers.ask(node, Ask::Report, Instant::now() + timeout).await {
            Ok(Reply::Report(report)) => Ok(*report),
            Ok(Reply::Failed(error)) => Err(error),
            Ok(_) => Err(failed(format!("{node} gave an answer to another question"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
