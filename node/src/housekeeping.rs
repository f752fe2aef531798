//! What a running node does now and then: watches its disk, checkpoints its engine, registers itself in the catalog, keeps
//! the leaders of the data shards where the master is, checks its engine after an unclean stop, trims its log behind
//! [`bases`].
//!
//! Invariant: nothing here is needed for an acknowledged write to be safe.

pub mod bases;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quorate_core::catalog::{Descriptor, NodeDesc};
use quorate_core::keys::{CatalogKey, Key};
use quorate_core::log::LogReader;
use quorate_core::machine::Scrub;
use quorate_core::proposal::{Op, Proposal};
use quorate_core::shard::Input;
use quorate_shared::ids::{Index, NodeId, ShardId};
use quorate_shared::status::NodeKind;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::driver::{Driver, Failure};
use crate::forward::Forwarder;
use crate::peers::Peers;
use crate::peers::message::{Ask, Reply};
use crate::proving::Prover;
use crate::proving::scrub::{self, Party};
use crate::reporting::NodeReports;
use crate::store::engine::EngineHandle;
use crate::store::used_bytes;

const DISK_EVERY: Duration = Duration::from_secs(1);
const USAGE_EVERY: Duration = Duration::from_secs(10);
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
const LEADERS_EVERY: Duration = Duration::from_secs(1);
/// How often every other node is told that this one is there.
const HERE_EVERY: Duration = Duration::from_millis(300);
/// A data shard's leader hands over to the master after seeing it elsewhere so many times in a row.
const ELSEWHERE_MAX: u32 = 3;
/// Pause between attempts to write to the catalog.
const CATALOG_PAUSE: Duration = Duration::from_millis(300);
/// How long one attempt may take.
const CATALOG_WAIT: Duration = Duration::from_secs(5);
/// How long another voter may take to say whether it has room.
const ROOM_WAIT: Duration = Duration::from_millis(500);
/// How often it is asked whether the engine was found damaged by a read.
const ENGINE_EVERY: Duration = Duration::from_millis(200);
/// Rows a scrub looks at before it lets others run, and for how long.
const SCRUB_ROWS: usize = 2_000;
const SCRUB_PAUSE: Duration = Duration::from_millis(5);

/// What housekeeping needs of its node.
pub struct Housekeeping {
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its data directory.
    pub directory: PathBuf,
    /// Its shards.
    pub driver: Arc<Driver>,
    /// The way to the leaders.
    pub forwarder: Arc<Forwarder>,
    /// Connections.
    pub peers: Arc<Peers>,
    /// Where the disk's numbers go.
    pub reports: Arc<NodeReports>,
    /// Its engine.
    pub engine: Arc<EngineHandle>,
    /// Its log.
    pub log: Arc<dyn LogReader>,
    /// Readers that are being filled.
    pub holds: Arc<bases::Holds>,
    /// Compares its shards with those of the others.
    pub prover: Arc<Prover>,
    /// Told when something is beyond repair while running.
    pub failures: mpsc::UnboundedSender<(Failure, String)>,
}

/// Starts everything; it ends when told to stop.
pub fn start(
    keeping: &Arc<Housekeeping>,
    scrubs: Vec<(ShardId, Scrub)>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let spawn = |job: futures::future::BoxFuture<'static, ()>| {
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = job => {}
            }
        });
    };
    let with = |keeping: &Arc<Housekeeping>| keeping.clone();
    let k = with(keeping);
    spawn(Box::pin(async move { k.watch_disk().await }));
    let k = with(keeping);
    spawn(Box::pin(async move { k.checkpoint().await }));
    let k = with(keeping);
    spawn(Box::pin(async move { k.register().await }));
    let k = with(keeping);
    spawn(Box::pin(async move { k.follow_catalog().await }));
    let k = with(keeping);
    spawn(Box::pin(async move { k.be_heard().await }));
    let k = with(keeping);
    spawn(Box::pin(async move { k.watch_engine().await }));
    let k = with(keeping);
    spawn(Box::pin(async move { k.compare().await }));
    if keeping.config.kind() == NodeKind::Voter {
        let k = with(keeping);
        spawn(Box::pin(async move { k.gather_leaders().await }));
        let k = with(keeping);
        spawn(Box::pin(async move { k.watch_clock().await }));
    }
    let bases = bases::Bases::new(with(keeping), keeping.log.clone(), stop.clone());
    tasks.spawn_blocking(move || bases.run());
    let stopping = stop.clone();
    for (shard, scrub) in scrubs {
        let (k, stop) = (with(keeping), stopping.clone());
        tasks.spawn_blocking(move || k.scrub(shard, scrub, &stop));
    }
}

impl Housekeeping {
    async fn watch_disk(&self) {
        let mut measured: Option<Instant> = None;
        let mut told = false;
        loop {
            if measured.is_none_or(|at| at.elapsed() >= USAGE_EVERY) {
                let directory = self.directory.clone();
                if let Ok(used) = tokio::task::spawn_blocking(move || used_bytes(&directory)).await {
                    self.reports.disk_used.store(used, Ordering::Relaxed);
                }
                measured = Some(Instant::now());
            }
            if let Some(free) = self.driver.free_bytes() {
                self.reports.disk_free.store(free, Ordering::Relaxed);
                let reserve = self.config.disk_reserve_bytes;
                // Once low, a little more than the reserve has to be free again.
                let low = free < if told { reserve.saturating_add(reserve / 16) } else { reserve };
                if low != told {
                    told = low;
                    self.reports.disk_low.store(low, Ordering::Relaxed);
                    if low {
                        tracing::error!(free, reserve, "DiskLow: writes are refused until there is more room");
                    } else {
                        tracing::info!(free, "there is room on the disk again");
                    }
                    for view in self.driver.views() {
                        self.driver.input(view.shard, Input::DiskLow(low));
                    }
                }
            }
            if self.driver.views().any(|view| view.has_no_room()) {
                self.leave_to_others().await;
            }
            tokio::time::sleep(DISK_EVERY).await;
        }
    }

    /// A leader that applies nothing for want of room answers nobody: what it leads it hands to a voter that has room.
    async fn leave_to_others(&self) {
        let me = self.config.node;
        let led: Vec<_> = self.driver.views().filter(|view| view.leader().node == Some(me)).collect();
        let mut room: BTreeMap<NodeId, bool> = BTreeMap::new();
        for view in led {
            for member in view.membership().voters.iter().filter(|member| member.node != me) {
                let has_room = match room.get(&member.node) {
                    Some(known) => *known,
                    None => {
                        let answer = self.peers.ask(member.node, Ask::Report, Instant::now() + ROOM_WAIT).await;
                        matches!(answer, Ok(Reply::Report(report)) if !report.disk_low)
                    }
                };
                room.insert(member.node, has_room);
                if has_room {
                    tracing::warn!(shard = %view.shard, to = %member.node, "DiskFull: hands over leadership");
                    self.driver.input(view.shard, Input::Transfer { to: Some(member.replica) });
                    break;
                }
            }
        }
    }

    async fn checkpoint(self: &Arc<Self>) {
        let mut last: Vec<(ShardId, Index)> = Vec::new();
        loop {
            tokio::time::sleep(CHECKPOINT_EVERY).await;
            let applied: Vec<(ShardId, Index)> = self.driver.views().map(|v| (v.shard, v.applied())).collect();
            // A full disk is not for a flush to find out: the engine's library would fail for good.
            if applied == last || self.reports.disk_low.load(Ordering::Relaxed) {
                continue;
            }
            let (keeping, point) = (self.clone(), applied.clone());
            match tokio::task::spawn_blocking(move || keeping.engine.checkpoint(&point)).await {
                Ok(Ok(())) => last = applied,
                Ok(Err(fatal)) => tracing::error!(error = %fatal, "the engine cannot be checkpointed"),
                Err(error) => tracing::error!(%error, "a checkpoint panicked"),
            }
        }
    }

    /// This node as the catalog is to have it.
    fn desc(&self) -> NodeDesc {
        NodeDesc {
            id: self.config.node,
            address: self.forwarder.address().to_owned(),
            http: self.reports.http().cloned(),
            kind: self.forwarder.kind(),
        }
    }

    /// Writes this node into the catalog, whenever it is not there as it is.
    async fn register(&self) {
        let mut versions = self.driver.catalog_versions();
        let desc = self.desc();
        loop {
            let catalog = self.driver.catalog();
            let known = catalog.nodes.get(&desc.id);
            // A removed node does not come back under its number.
            if known == Some(&desc) || catalog.has_removed(desc.id) {
                // The sender lives as long as the driver.
                if versions.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let put = Op::Put {
                key: Key::Catalog(CatalogKey::Node(desc.id)).encode(),
                expect: known.map(Descriptor::encode),
                value: Some(desc.encode()),
            };
            self.put(vec![put], "register").await;
            tokio::time::sleep(CATALOG_PAUSE).await;
        }
    }

    async fn put(&self, ops: Vec<Op>, doing: &str) {
        let proposal = Proposal { ops, ..Proposal::default() };
        let deadline = Instant::now() + CATALOG_WAIT;
        match self.forwarder.propose_anywhere(ShardId::META, &proposal, deadline).await {
            Ok(_) => tracing::debug!(doing, "wrote to the catalog"),
            Err(error) => tracing::debug!(doing, %error, "could not write to the catalog yet"),
        }
    }

    /// Learns where nodes are.
    async fn follow_catalog(&self) {
        let mut versions = self.driver.catalog_versions();
        loop {
            let catalog = self.driver.catalog();
            self.peers.learn(catalog.nodes.values().map(|n| (n.id, n.address.clone())));
            catalog.nodes.values().filter(|node| node.is_removed()).for_each(|node| self.peers.forget(node.id));
            if versions.changed().await.is_err() {
                return;
            }
        }
    }

    /// A leader of a data shard hands it to the master, when it is another node for a while.
    async fn gather_leaders(&self) {
        let me = self.config.node;
        let mut elsewhere = 0;
        loop {
            tokio::time::sleep(LEADERS_EVERY).await;
            let leader = |shard| self.driver.view(shard).map(|v| v.leader()).unwrap_or_default();
            let master = leader(ShardId::META).node.filter(|node| *node != me);
            let leads = leader(ShardId::DATA).ready;
            elsewhere = if leads && master.is_some() { elsewhere + 1 } else { 0 };
            if elsewhere < ELSEWHERE_MAX {
                continue;
            }
            elsewhere = 0;
            let membership = self.driver.view(ShardId::DATA).map(|view| view.membership()).unwrap_or_default();
            let to = |node: NodeId| membership.voters.iter().find(|m| m.node == node).map(|m| m.replica);
            if let Some(replica) = master.and_then(to) {
                tracing::info!(shard = %ShardId::DATA, to = ?master, "hands over leadership to the master");
                self.driver.input(ShardId::DATA, Input::Transfer { to: Some(replica) });
            }
        }
    }

    /// Tells every node that this one is there: voters that follow the same leader have nothing else to say to each
    /// other, and whether a node is down or only cut off from here is judged by who hears it.
    async fn be_heard(&self) {
        loop {
            tokio::time::sleep(HERE_EVERY).await;
            let others = self.forwarder.known().into_iter().map(|node| node.node);
            others.filter(|node| *node != self.config.node).for_each(|node| self.peers.tell(node, Ask::Here));
        }
    }

    /// An engine from which something was read that is not what was written is rebuilt, whoever it was that read.
    async fn watch_engine(&self) {
        loop {
            tokio::time::sleep(ENGINE_EVERY).await;
            if let Some(why) = self.engine.damage() {
                tracing::error!(%why, "the engine is damaged");
                self.engine.distrust(&why);
                // Nobody listens any more when the node is stopping.
                let _ = self.failures.send((Failure::Restart, format!("the engine is damaged: {why}")));
                return;
            }
        }
    }

    /// The leader of a shard compares its rows with those of every other replica, now and then.
    async fn compare(&self) {
        let mut due: BTreeMap<ShardId, Instant> = BTreeMap::new();
        loop {
            tokio::time::sleep(LEADERS_EVERY).await;
            for view in self.driver.views() {
                let leader = view.leader();
                if !leader.ready || leader.node != Some(self.config.node) {
                    due.remove(&view.shard);
                    continue;
                }
                let at = *due.entry(view.shard).or_insert_with(|| Instant::now() + scrub::FIRST);
                if Instant::now() < at {
                    continue;
                }
                due.insert(view.shard, Instant::now() + scrub::EVERY);
                self.compare_shard(view.shard).await;
            }
        }
    }

    async fn compare_shard(&self, shard: ShardId) {
        let known = self.forwarder.known().into_iter();
        let parties: Vec<Party> = known.map(|n| Party { node: n.node, kind: n.kind }).collect();
        match scrub::run(&self.prover, shard, &parties, |_| ()).await {
            Ok(mut found) => {
                scrub::heal(&self.prover, &mut found).await;
                self.prover.note(shard, &found);
                tracing::info!(%shard, rows = found.rows, differences = found.differences.len(),
                    left_out = ?found.left_out, "the rows of the replicas were compared");
            }
            Err(why) => tracing::warn!(%shard, %why, "the rows of the replicas could not be compared"),
        }
    }

    /// Recomputes the digests; what does not agree makes the engine untrusted.
    fn scrub(&self, shard: ShardId, mut scrub: Scrub, stop: &CancellationToken) {
        let why = loop {
            if stop.is_cancelled() {
                return;
            }
            if self.config.test_hooks.as_ref().is_some_and(|hooks| hooks.join("scrub").exists()) {
                std::thread::sleep(ENGINE_EVERY);
                continue;
            }
            match crate::driver::guarded(|| scrub.step(SCRUB_ROWS)) {
                Ok(None) => std::thread::sleep(SCRUB_PAUSE),
                Ok(Some(wrong)) if wrong.is_empty() => {
                    tracing::debug!(%shard, "the engine is as it should be");
                    self.engine.checked();
                    return;
                }
                Ok(Some(wrong)) => break format!("{shard}: the rows of {wrong:?} are not what was applied"),
                Err(fatal) => break format!("{shard}: {fatal}"),
            }
        };
        tracing::error!(%why, "the engine is damaged");
        self.engine.distrust(&why);
        // Nobody listens any more when the node is stopping.
        let _ = self.failures.send((Failure::Restart, format!("the engine is damaged: {why}")));
    }
}
