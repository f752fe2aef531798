//! A node whose shards run: everything is started around the driver, and taken down with it.
//!
//! Invariant: the driver is started first and stopped last; what it needs is there before it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::log::LogReader;
use quorate_core::membership::Host;
use quorate_core::shard::Input;
use quorate_shared::ids::{ClusterId, NodeId, ReplicaId, ShardId};
use quorate_shared::status::NodeKind;
use tokio::sync::mpsc;

use super::outgoing::NodeOutgoing;
use super::{NodeError, Parts};
use crate::config::Role;
use crate::driver::{Driver, Failure};
use crate::fill::Filler;
use crate::housekeeping::{self, Housekeeping};
use crate::proving::Prover;
use crate::report::NodeState;
use crate::roles::Roles;
use crate::router::Router;
use crate::shipping::{ProgressOut, Puller, Server};
use crate::store::engine::{Closing, Opened};
use crate::store::{self, Directory};

/// How long a leader may take to hand over before the node stops anyway.
const HAND_OVER: Duration = Duration::from_secs(2);

/// A node whose shards run.
pub(super) struct Running {
    pub(super) driver: Arc<Driver>,
    pub(super) closing: Closing,
}

impl Running {
    /// Stops the threads, flushes the engine and marks it clean.
    pub(super) fn close(self, engine_fault: Option<&str>) {
        self.driver.stop();
        let applied: Vec<_> = self.driver.views().map(|v| (v.shard, v.applied())).collect();
        self.closing.close(&applied, engine_fault);
    }

    /// Gives leadership away, where there is somebody to take it.
    pub(super) async fn hand_over(&self, me: NodeId) {
        let deadline = Instant::now() + HAND_OVER;
        for view in self.driver.views().filter(|v| v.leader().node == Some(me)) {
            self.driver.input(view.shard, Input::Transfer { to: None });
        }
        for view in self.driver.views() {
            while view.leader().node == Some(me) && Instant::now() < deadline {
                let until = Instant::now() + Duration::from_millis(50);
                // Looks again either way.
                let _ = tokio::time::timeout_at(until.into(), view.leader_changed.notified()).await;
            }
        }
    }
}

/// Starts everything.
pub(super) fn start(
    parts: &Parts,
    directory: &Directory,
    opened: Opened,
    router: &Arc<dyn Router>,
) -> Result<Running, NodeError> {
    let Some(cluster) = directory.founding().map(|founding| founding.cluster) else {
        return Err(NodeError::Failed("the founding record has vanished".into()));
    };
    let progress = Arc::new(ProgressOut::default());
    let (needs, needed) = mpsc::unbounded_channel();
    let outgoing = Arc::new(NodeOutgoing {
        hooks: parts.config.test_hooks.clone(),
        peers: parts.peers.clone(),
        cluster,
        forwarder: parts.forwarder.clone(),
        data: directory.path().to_owned(),
        progress: progress.clone(),
        needs,
        failures: parts.failures.clone(),
    });
    if let Some(opened) = opened.shards.first() {
        parts.peers.set_epoch(opened.view.applied_point().epoch);
    }
    let Opened { clock, shards, log, reader, catalog, closing, flusher, rebuilt, scrubs, .. } = opened;
    let driver = Arc::new(Driver::start(clock, shards, log, catalog, outgoing, flusher)?);
    parts.reports.set_rebuilt(rebuilt);
    parts.forwarder.serve(driver.clone());
    parts.streams.serve(reader.clone(), parts.events.holds.clone(), closing.handle(), directory.path());
    let prover = Arc::new(prover(parts, directory, cluster, &driver, &reader, &closing)?);
    parts.events.runner.set_prover(prover.clone());
    // A second start cannot happen.
    let _ = parts.events.server.set(Server {
        driver: driver.clone(),
        log: reader.clone(),
        node: parts.config.node,
        forwarder: parts.forwarder.clone(),
    });
    follow(parts, directory, &driver, progress, needed);
    tell_lost(parts, directory);
    watch_roles(parts, directory, &driver);
    let keeping = Arc::new(Housekeeping {
        config: parts.config.clone(),
        directory: directory.path().to_owned(),
        driver: driver.clone(),
        forwarder: parts.forwarder.clone(),
        peers: parts.peers.clone(),
        reports: parts.reports.clone(),
        engine: closing.handle(),
        log: reader,
        holds: parts.events.holds.clone(),
        prover,
        failures: parts.failures.clone(),
    });
    housekeeping::start(&keeping, scrubs, &parts.tasks, &parts.stop_tasks);
    if parts.config.kind() == NodeKind::Voter {
        parts.run_until_stop(crate::ddl::run_jobs(router.clone()));
    }
    tracing::info!("serves");
    Ok(Running { driver, closing })
}

fn prover(
    parts: &Parts,
    directory: &Directory,
    cluster: ClusterId,
    driver: &Arc<Driver>,
    log: &Arc<dyn LogReader>,
    closing: &Closing,
) -> Result<Prover, NodeError> {
    Ok(Prover {
        node: parts.config.node,
        cluster,
        epoch: parts.peers.epoch(),
        directory: directory.path().to_owned(),
        driver: driver.clone(),
        log: log.clone(),
        peers: parts.peers.clone(),
        engine: closing.handle(),
        reports: parts.reports.clone(),
        key: crate::store::key::open(directory.path())?,
        failures: parts.failures.clone(),
        recomputing: std::sync::Mutex::default(),
        told: std::sync::Mutex::default(),
    })
}

/// A voter that is being filled again says so until it votes.
fn tell_lost(parts: &Parts, directory: &Directory) {
    if let Some(why) = directory.note(store::LOST) {
        parts.forwarder.set_state(NodeState::LostLog(format!("{why}; it is being filled again")));
    }
}

fn watch_roles(parts: &Parts, directory: &Directory, driver: &Arc<Driver>) {
    let roles = Roles {
        me: Host { node: parts.config.node, nonce: directory.nonce() },
        directory: directory.path().to_owned(),
        driver: driver.clone(),
        forwarder: parts.forwarder.clone(),
        peers: parts.peers.clone(),
        failures: parts.failures.clone(),
    };
    parts.run_until_stop(roles.watch());
}

/// Everything that comes from others in bulk: the streams of shards that are shipped here, and snapshots where the log of
/// the others does not reach back.
fn follow(
    parts: &Parts,
    directory: &Directory,
    driver: &Arc<Driver>,
    progress: Arc<ProgressOut>,
    needed: mpsc::UnboundedReceiver<ShardId>,
) {
    let addresses: Vec<String> = match &parts.config.role {
        Role::Voter(peers) => peers.values().cloned().collect(),
        Role::Replica(addresses) => addresses.clone(),
    };
    let filler = Arc::new(Filler {
        data: directory.path().to_owned(),
        me: parts.config.node,
        peers: parts.peers.clone(),
        forwarder: parts.forwarder.clone(),
        driver: driver.clone(),
        addresses: addresses.clone(),
        failures: parts.failures.clone(),
        busy: std::sync::Mutex::default(),
    });
    pull(parts, driver, progress, addresses, &filler);
    fill_voters(parts, filler, needed);
}

/// Voters that their leader's log does not reach back to fetch a snapshot.
fn fill_voters(parts: &Parts, filler: Arc<Filler>, mut needed: mpsc::UnboundedReceiver<ShardId>) {
    let (stop, tasks) = (parts.stop_tasks.clone(), parts.tasks.clone());
    parts.run_until_stop(async move {
        while let Some(shard) = needed.recv().await {
            let (filler, stop) = (filler.clone(), stop.clone());
            tasks.spawn(async move { filler.fill(shard, &stop).await });
        }
    });
}

fn pull(parts: &Parts, driver: &Arc<Driver>, progress: Arc<ProgressOut>, addresses: Vec<String>, filler: &Arc<Filler>) {
    let (failures, config) = (parts.failures.clone(), parts.config.clone());
    let puller = Arc::new(Puller {
        driver: driver.clone(),
        peers: parts.peers.clone(),
        forwarder: parts.forwarder.clone(),
        progress,
        addresses,
        filler: filler.clone(),
        diverged: Box::new(move |shard, why| {
            crate::store::engine::mark_diverged(&config.data);
            // Nobody listens any more when the node is stopping.
            let _ = failures.send((Failure::Restart, format!("{shard} has diverged and is rebuilt: {why}")));
        }),
    });
    // Shards in which this node takes part come to it by themselves.
    for shard in driver.views().filter(|view| view.replica == ReplicaId::NONE).map(|view| view.shard) {
        let (puller, stop) = (puller.clone(), parts.stop_tasks.clone());
        parts.tasks.spawn(async move { puller.pull(shard, stop).await });
    }
}
