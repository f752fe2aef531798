//! The node: put together, run, taken apart. Start and stop order live only here.
//!
//! Start: directory, listeners, doors (they answer "not yet"), founding, log and engine, driver, peers, the rest. Stop:
//! doors close, leadership is handed over, sessions end, peers, driver, engine, clean-close mark.

mod signals;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use quorate_core::error::Rejected;
use quorate_core::log::EpochStart;
use quorate_core::membership::Host;
use quorate_core::replica::Protocol;
use quorate_core::shard::Input;
use quorate_core::ship::ShipProgress;
use quorate_shared::ids::{Epoch, NodeId, Nonce, ReplicaId, ShardId};
use quorate_shared::limits::SEGMENT_BYTES;
use quorate_shared::status::NodeKind;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::signals::Signals;
use crate::admin::Admin;
use crate::admin::actions::Runner;
use crate::config::{Config, Role};
use crate::driver::{Clock, Driver, Failure, Held, Outgoing};
use crate::fill::Filler;
use crate::forward::{Forwarder, NodeRouter};
use crate::founding::{self, Verdict};
use crate::housekeeping::bases::Holds;
use crate::housekeeping::{self, Housekeeping};
use crate::metrics::Meters;
use crate::peers::message::{Answer, Ask, Envelope, Founding, Reply, Request, Response};
use crate::peers::{Heard, Outbox, PeerEvents, Peers};
use crate::proving::{Prove, Proved, Prover};
use crate::report::{NodeState, Reports};
use crate::reporting::NodeReports;
use crate::roles::Roles;
use crate::router::Router;
use crate::serve::http::{self, Shown};
use crate::serve::tcp::Door;
use crate::sessions::SqlSessions;
use crate::shipping::{ProgressOut, Puller, Server};
use crate::sql::plan::{EngineOptions, SqlEngine};
use crate::store::engine::{Opened, Store};
use crate::store::{self, Directory, StoreError};
use crate::streams::NodeStreams;

/// How long a leader may take to hand over before the node stops anyway.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Why a node ended.
#[derive(thiserror::Error, Debug)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A port cannot be had.
    #[error("cannot listen on {address}: {cause}{hint}")]
    Listen {
        /// The address.
        address: String,
        /// Why not.
        cause: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A local fault.
    #[error(transparent)]
    Fatal(#[from] quorate_core::error::Fatal),
    /// A fault while running.
    #[error("{0}")]
    Failed(String),
    /// The node has to begin again; a new start repairs it.
    #[error("begins again: {0}")]
    Restart(String),
}

/// Why a running node is to stop.
enum Stop {
    Signal(&'static str),
    Failed(Failure, String),
}

/// Everything that lives as long as the node.
struct Parts {
    config: Arc<Config>,
    peers: Arc<Peers>,
    forwarder: Arc<Forwarder>,
    reports: Arc<NodeReports>,
    events: Arc<Events>,
    streams: Arc<NodeStreams>,
    tasks: TaskTracker,
    stop_tasks: CancellationToken,
    failures: mpsc::UnboundedSender<(Failure, String)>,
}

/// Runs a node until it is told to stop.
pub async fn run(config: Config) -> Result<(), NodeError> {
    let mut signals = Signals::new()?;
    let mut directory = Directory::open(&config.data, config.node, config.kind())?;
    let config = Arc::new(config.in_role(directory.kind()));
    let voters = match &config.role {
        Role::Voter(peers) => peers.clone(),
        Role::Replica(_) => BTreeMap::new(),
    };
    if directory.kind() == NodeKind::Voter {
        directory.check_replicator(config.replicator)?;
    }
    let listener = listen(&config.listen).await?;
    let http = match &config.http {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let (failures, mut failed) = mpsc::unbounded_channel();
    let parts = assemble(&config, &directory, &voters, &listener, http.as_ref(), failures)?;
    announce(&config, &parts.forwarder, http.as_ref());

    let router: Arc<dyn Router> = Arc::new(NodeRouter(parts.forwarder.clone()));
    let (stop_doors, doors) = (CancellationToken::new(), TaskTracker::new());
    let engine = SqlEngine::new(&EngineOptions::default()).map_err(|e| NodeError::Failed(e.to_string()))?;
    open_doors(&parts, &router, engine, listener, http, &stop_doors, &doors);

    let forming = async {
        match directory.note(store::REMOVED) {
            Some(why) => {
                tracing::error!(%why, "this node was removed from its cluster; it serves nothing but its state");
                parts.forwarder.set_state(NodeState::Removed(why));
                Ok(None)
            }
            None => form(&parts, &mut directory, &voters).await,
        }
    };
    let running = tokio::select! {
        running = forming => running?,
        signal = signals.next() => {
            tracing::info!(signal, "stops before it belonged to a cluster");
            stop_doors.cancel();
            return Ok(());
        }
    };
    let mut running = match running {
        Some(opened) => Some(start(&parts, &directory, opened, &router)?),
        None => None,
    };
    let stop = tokio::select! {
        signal = signals.next() => Stop::Signal(signal),
        failure = wait_failure(&mut failed, &parts) => Stop::Failed(failure.0, failure.1),
    };
    let mut result = match &stop {
        Stop::Signal(signal) => {
            tracing::info!(signal, "stops");
            Ok(())
        }
        Stop::Failed(what, why) => {
            tracing::error!(?what, %why, "a fault stops this node");
            Err(match what {
                Failure::Restart | Failure::DiskFull | Failure::EngineFull => NodeError::Restart(why.clone()),
                _ => NodeError::Failed(why.clone()),
            })
        }
    };
    stop_doors.cancel();
    doors.close();
    if let (Some(running), Stop::Signal(_)) = (&running, &stop) {
        hand_over(&running.driver, config.node).await;
    }
    doors.wait().await;
    parts.stop_tasks.cancel();
    parts.tasks.close();
    parts.tasks.wait().await;
    parts.peers.close().await;
    parts.peers.detach();
    if let Some(running) = running.take() {
        let damage = running.closing.handle().damage();
        let engine_fault = match stop {
            Stop::Failed(Failure::Engine | Failure::EngineFull, why) => Some(why),
            _ => damage.clone(),
        };
        if let (Err(NodeError::Failed(_)), Some(damage)) = (&result, damage) {
            // What is only damaged can be rebuilt at once; other faults of the engine are for somebody to look at.
            result = Err(NodeError::Restart(format!("the engine is damaged: {damage}")));
        }
        let close = move || running.close(engine_fault.as_deref());
        if tokio::task::spawn_blocking(close).await.is_err() {
            tracing::error!("closing the engine panicked; it is rebuilt at the next start");
        }
    }
    tracing::info!("stopped");
    result
}

/// Only what the whole node cannot live with ends it: a stopped shard is shown and the others go on. A node whose log met
/// a full disk serves reads until there is room.
async fn wait_failure(failed: &mut mpsc::UnboundedReceiver<(Failure, String)>, parts: &Parts) -> (Failure, String) {
    loop {
        match failed.recv().await {
            Some((Failure::Shard(shard), why)) => tracing::error!(%shard, %why, "a replica has stopped"),
            Some((what @ (Failure::DiskFull | Failure::EngineFull), why)) => {
                tracing::error!(%why, "DiskFull: this node takes no part until there is room; local reads go on");
                wait_room(parts).await;
                return (what, "there is room on the disk again".into());
            }
            Some(failure) => return failure,
            None => std::future::pending().await,
        }
    }
}

async fn wait_room(parts: &Parts) {
    // The next thing the log wants is a whole segment.
    let enough = parts.config.disk_reserve_bytes.max(2 * SEGMENT_BYTES);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let free = crate::store::free_bytes(parts.reports.data()).unwrap_or(0);
        if free > enough {
            return;
        }
    }
}

async fn listen(address: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|cause| {
        let hint = match cause.kind() {
            std::io::ErrorKind::AddrInUse => "; another process has this port",
            std::io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges",
            _ => "",
        };
        NodeError::Listen { address: address.to_owned(), cause, hint }
    })
}

fn announce(config: &Config, forwarder: &Forwarder, http: Option<&TcpListener>) {
    use std::io::Write;
    let http = http.and_then(|l| l.local_addr().ok()).map(|a| format!(", http {a}")).unwrap_or_default();
    let line = format!("quorated {} ({}) listens on {}{http}\n", config.node, config.kind(), forwarder.address());
    // A closed stdout is nobody's problem.
    let _ = std::io::stdout().write_all(line.as_bytes());
}

fn assemble(
    config: &Arc<Config>,
    directory: &Directory,
    voters: &BTreeMap<NodeId, String>,
    listener: &TcpListener,
    http: Option<&TcpListener>,
    failures: mpsc::UnboundedSender<(Failure, String)>,
) -> Result<Parts, NodeError> {
    let listening = |l: &TcpListener| {
        l.local_addr().map(|a| a.to_string()).map_err(|e| NodeError::Failed(format!("cannot tell the port: {e}")))
    };
    let local = listening(listener)?;
    let listed = voters.get(&config.node).filter(|address| !address.ends_with(":0")).cloned();
    let address = config.advertise.clone().or(listed).unwrap_or(local);
    let http = http.map(listening).transpose()?;
    let stop_tasks = CancellationToken::new();
    let runtime = tokio::runtime::Handle::current();
    let nonce = directory.nonce();
    let ids = voters.keys().copied().collect();
    let peers = Peers::new(config.node, nonce, ids, voters.clone(), stop_tasks.child_token(), runtime);
    let forwarder = Forwarder::new(config.node, config.kind(), address, peers.clone(), voters.clone());
    let reports = NodeReports::new(config.clone(), http, directory.path(), peers.clone(), forwarder.clone());
    let events = Arc::new(Events {
        node: config.node,
        nonce,
        voters: voters.keys().copied().collect(),
        replicator: config.replicator.unwrap_or_default(),
        forwarder: forwarder.clone(),
        reports: reports.clone(),
        runner: Runner::new(config.node, forwarder.clone(), peers.clone(), reports.clone(), failures.clone()),
        data: directory.path().to_owned(),
        holds: Arc::default(),
        founding: std::sync::OnceLock::new(),
        server: std::sync::OnceLock::new(),
    });
    peers.attach(events.clone());
    forwarder.set_runner(events.runner.clone());
    let streams = NodeStreams::new(forwarder.clone(), reports.clone());
    let tasks = TaskTracker::new();
    Ok(Parts { config: config.clone(), peers, forwarder, reports, events, streams, tasks, stop_tasks, failures })
}

fn open_doors(
    parts: &Parts,
    router: &Arc<dyn Router>,
    engine: Arc<SqlEngine>,
    listener: TcpListener,
    http: Option<TcpListener>,
    stop: &CancellationToken,
    doors: &TaskTracker,
) {
    let admin = Arc::new(Admin::default());
    let (reports, forwarder) = (parts.reports.clone(), parts.forwarder.clone());
    parts.forwarder.set_picture(Box::new(move || {
        let (admin, reports, forwarder) = (admin.clone(), reports.clone(), forwarder.clone());
        Box::pin(async move { admin.picture(&*reports, forwarder.known()).await })
    }));
    let meters = Arc::new(Meters::default());
    let sessions = Arc::new(SqlSessions::new(parts.forwarder.clone(), router.clone(), engine));
    let door = Door::new(router.clone(), parts.reports.clone(), sessions, parts.peers.clone(), meters.clone())
        .with_streams(parts.streams.clone());
    doors.spawn(door.serve(listener, stop.clone()));
    if let Some(listener) = http {
        let shown = Shown { router: router.clone(), reports: parts.reports.clone(), meters };
        let stop = stop.clone();
        doors.spawn(async move {
            if let Err(error) = http::serve(shown, listener, stop).await {
                tracing::error!(%error, "the http door has closed");
            }
        });
    }
}

/// Makes the node part of its cluster and opens what it has; `None`: a voter that has lost its log.
async fn form(
    parts: &Parts,
    directory: &mut Directory,
    voters: &BTreeMap<NodeId, String>,
) -> Result<Option<Opened>, NodeError> {
    let (config, forwarder) = (&parts.config, &parts.forwarder);
    let waits = |why: String| forwarder.set_state(NodeState::Forming(why));
    if directory.founding().is_none() {
        let founding = match &config.role {
            Role::Voter(_) => {
                let replicator = config.replicator.unwrap_or_default();
                match founding::agree(&parts.peers, config.node, directory.nonce(), voters, replicator, waits).await {
                    Verdict::Found(members) => founding::mint(members, replicator)?,
                    Verdict::Join(founding) => founding,
                    Verdict::Lost(why, founding) => {
                        // Without a log there is nothing to set aside.
                        crate::store::engine::begin(
                            directory,
                            &founding,
                            ReplicaId::NONE,
                            config.retention.segment_bytes,
                        )?;
                        return lost(parts, directory, &why, &Arc::new(*founding));
                    }
                    Verdict::Wait(why) => return Err(NodeError::Failed(why)),
                }
            }
            Role::Replica(addresses) => find_cluster(parts, addresses, waits).await,
        };
        let member = founding.members.iter().find(|m| m.node == config.node && config.kind() == NodeKind::Voter);
        let replica = member.map_or(ReplicaId::NONE, |m| m.replica);
        crate::store::engine::begin(directory, &founding, replica, config.retention.segment_bytes)?;
        let Founding { cluster, replicator, members, .. } = &founding;
        tracing::info!(%cluster, %replicator, voters = members.len(), "belongs to a cluster");
        directory.check_replicator(config.replicator)?;
    }
    let Some(founding) = directory.founding().cloned() else {
        return Err(NodeError::Failed("the founding record has vanished".into()));
    };
    let founding = Arc::new(founding);
    if let Some(newer) = directory.note(store::FENCED) {
        let starts = find_epoch(parts, &newer, waits).await;
        crate::store::rejoin::rejoin(directory, &starts, config.retention.segment_bytes)?;
        return Err(NodeError::Restart("it goes on as a replica of the newer epoch".into()));
    }
    parts.peers.founded(founding.clone());
    parts.forwarder.founded(founding.clone());
    // A second founding cannot happen.
    let _ = parts.events.founding.set(founding.clone());
    waits("it opens its log and engine".into());
    let (path, config, kind) = (directory.path().to_owned(), config.clone(), config.kind());
    let (given, nonce, again) = (founding.clone(), directory.nonce(), config.clone());
    let opening = move || crate::store::engine::open(&path, &config, &given, nonce);
    let opened = tokio::task::spawn_blocking(opening)
        .await
        .map_err(|e| NodeError::Failed(format!("opening the data directory panicked: {e}")))??;
    match opened {
        Store::Opened(opened) if opened.kind != kind => {
            directory.set_kind(opened.kind)?;
            let applied: Vec<_> = opened.shards.iter().map(|s| (s.view.shard, s.view.applied())).collect();
            let now = opened.kind;
            opened.closing.close(&applied, None);
            Err(NodeError::Restart(format!("this node is a {now} from here on")))
        }
        Store::Opened(opened) => Ok(Some(*opened)),
        Store::Lost(why) if kind == NodeKind::Voter => {
            crate::store::engine::restart(directory, ReplicaId::NONE, again.retention.segment_bytes)?;
            lost(parts, directory, &why, &founding)
        }
        Store::Lost(why) => {
            // A replica owes nobody anything: it starts again from nothing.
            tracing::warn!(%why, "this replica starts again from nothing");
            crate::store::engine::restart(directory, ReplicaId::NONE, again.retention.segment_bytes)?;
            Err(NodeError::Restart(format!("this replica starts again from nothing: {why}")))
        }
    }
}

/// A voter without a log is a new voter: it begins again as a log-shipped replica, and is made a voter under another id
/// once it has what the others have ([`crate::roles`]). The only voter of a cluster stays up to say why.
fn lost(
    parts: &Parts,
    directory: &mut Directory,
    why: &str,
    founding: &Arc<Founding>,
) -> Result<Option<Opened>, NodeError> {
    tracing::error!(%why, "this voter has lost its log; it neither votes nor acknowledges");
    parts.peers.founded(founding.clone());
    parts.forwarder.founded(founding.clone());
    parts.forwarder.set_state(NodeState::LostLog(why.to_owned()));
    let Role::Voter(voters) = &parts.config.role else { return Ok(None) };
    if !voters.keys().chain(founding.members.iter().map(|m| &m.node)).any(|node| *node != parts.config.node) {
        return Ok(None);
    }
    store::leave_note(directory.path(), store::LOST, why);
    directory.set_kind(NodeKind::Replica)?;
    Err(NodeError::Restart(format!("this voter has lost its log and begins again as a replica: {why}")))
}

/// Asks everybody known, by the command line and by the note, where the epochs of a newer one began.
async fn find_epoch(parts: &Parts, note: &str, waits: impl Fn(String)) -> Vec<(ShardId, Epoch, EpochStart)> {
    let mut lines = note.lines();
    let number: u64 = lines.next().and_then(|line| line.parse().ok()).unwrap_or_default();
    let mut addresses: Vec<String> = lines.map(str::to_owned).collect();
    match &parts.config.role {
        Role::Voter(peers) => addresses.extend(peers.values().cloned()),
        Role::Replica(of) => addresses.extend(of.iter().cloned()),
    }
    loop {
        for address in &addresses {
            if let Ok(answer) = parts.peers.who(address, None).await
                && answer.epochs.len() == founding::SHARDS.len()
                && answer.epochs.iter().all(|(_, epoch, _)| epoch.number >= number)
            {
                return answer.epochs;
            }
        }
        waits(format!("epoch {number} has begun without it; it looks for a node of that epoch"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Asks the given addresses until one names its cluster.
async fn find_cluster(parts: &Parts, addresses: &[String], waits: impl Fn(String)) -> Founding {
    let mut pause = Duration::from_millis(50);
    loop {
        let mut why = Vec::new();
        for address in addresses {
            match parts.peers.who(address, None).await {
                Ok(Answer { founding: Some(founding), nodes, .. }) => {
                    parts.peers.learn(nodes.into_iter().map(|n| (n.node, n.address)));
                    return founding;
                }
                Ok(answer) => why.push(format!("{} at {address} belongs to no cluster yet", answer.node)),
                Err(error) => why.push(format!("{address} ({error})")),
            }
        }
        waits(format!("it waits for {}", why.join(", ")));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// A node whose shards run.
struct Running {
    driver: Arc<Driver>,
    closing: crate::store::engine::Closing,
}

impl Running {
    /// Stops the threads, flushes the engine and marks it clean.
    fn close(self, engine_fault: Option<&str>) {
        self.driver.stop();
        let applied: Vec<_> = self.driver.views().map(|v| (v.shard, v.applied())).collect();
        self.closing.close(&applied, engine_fault);
    }
}

fn start(parts: &Parts, directory: &Directory, opened: Opened, router: &Arc<dyn Router>) -> Result<Running, NodeError> {
    let Some(founding) = directory.founding() else {
        return Err(NodeError::Failed("the founding record has vanished".into()));
    };
    let progress = Arc::new(ProgressOut::default());
    let (needs, needed) = mpsc::unbounded_channel();
    let outgoing = Arc::new(NodeOutgoing {
        hooks: parts.config.test_hooks.clone(),
        peers: parts.peers.clone(),
        founding: founding.clone(),
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
    parts.streams.serve(reader.clone(), parts.events.holds.clone());
    let server = Server {
        driver: driver.clone(),
        log: reader.clone(),
        node: parts.config.node,
        forwarder: parts.forwarder.clone(),
    };
    let prover = Arc::new(Prover {
        node: parts.config.node,
        cluster: founding.cluster,
        epoch: parts.peers.epoch(),
        directory: directory.path().to_owned(),
        driver: driver.clone(),
        log: server.log.clone(),
        peers: parts.peers.clone(),
        engine: closing.handle(),
        reports: parts.reports.clone(),
        key: crate::store::key::open(directory.path())?,
        failures: parts.failures.clone(),
        recomputing: std::sync::Mutex::default(),
        told: std::sync::Mutex::default(),
    });
    parts.events.runner.set_prover(prover.clone());
    // A second start cannot happen.
    let _ = parts.events.server.set(server);
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
    pull(parts, &driver, progress, &addresses, &filler);
    fill_voters(parts, filler, needed);
    if let Some(why) = directory.note(store::LOST) {
        let then = match founding.replicator {
            Protocol::Raft => "it is being filled again",
            Protocol::Paxos => "it follows as a replica; the paxos replicator cannot give it its vote again",
        };
        parts.forwarder.set_state(NodeState::LostLog(format!("{why}; {then}")));
    }
    let roles = Roles {
        me: Host { node: parts.config.node, nonce: directory.nonce() },
        directory: directory.path().to_owned(),
        driver: driver.clone(),
        forwarder: parts.forwarder.clone(),
        peers: parts.peers.clone(),
        failures: parts.failures.clone(),
    };
    let stop_roles = parts.stop_tasks.clone();
    parts.tasks.spawn(async move {
        tokio::select! {
            () = stop_roles.cancelled() => {}
            () = roles.watch() => {}
        }
    });
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
        let (router, stop) = (router.clone(), parts.stop_tasks.clone());
        parts.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = crate::ddl::run_jobs(router) => {}
            }
        });
    }
    tracing::info!("serves");
    Ok(Running { driver, closing })
}

/// Voters that their leader's log does not reach back to fetch a snapshot.
fn fill_voters(parts: &Parts, filler: Arc<Filler>, mut needed: mpsc::UnboundedReceiver<ShardId>) {
    let stop = parts.stop_tasks.clone();
    let tasks = parts.tasks.clone();
    parts.tasks.spawn(async move {
        loop {
            let shard = tokio::select! {
                () = stop.cancelled() => return,
                shard = needed.recv() => shard,
            };
            let Some(shard) = shard else { return };
            let (filler, stop) = (filler.clone(), stop.clone());
            tasks.spawn(async move { filler.fill(shard, &stop).await });
        }
    });
}

fn pull(parts: &Parts, driver: &Arc<Driver>, progress: Arc<ProgressOut>, addresses: &[String], filler: &Arc<Filler>) {
    let (failures, config) = (parts.failures.clone(), parts.config.clone());
    let puller = Arc::new(Puller {
        driver: driver.clone(),
        peers: parts.peers.clone(),
        forwarder: parts.forwarder.clone(),
        progress,
        addresses: addresses.to_vec(),
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

/// Gives leadership away, where there is somebody to take it.
async fn hand_over(driver: &Arc<Driver>, me: NodeId) {
    let deadline = Instant::now() + HAND_OVER;
    for view in driver.views().filter(|v| v.leader().node == Some(me)) {
        driver.input(view.shard, Input::Transfer { to: None });
    }
    for view in driver.views() {
        while view.leader().node == Some(me) && Instant::now() < deadline {
            let until = Instant::now() + Duration::from_millis(50);
            // Looks again either way.
            let _ = tokio::time::timeout_at(until.into(), view.leader_changed.notified()).await;
        }
    }
}

/// Where the driver's effects go.
struct NodeOutgoing {
    hooks: Option<PathBuf>,
    peers: Arc<Peers>,
    founding: Founding,
    forwarder: Arc<Forwarder>,
    data: PathBuf,
    progress: Arc<ProgressOut>,
    needs: mpsc::UnboundedSender<ShardId>,
    failures: mpsc::UnboundedSender<(Failure, String)>,
}

impl Outgoing for NodeOutgoing {
    fn send(&self, shard: ShardId, from: ReplicaId, to: ReplicaId, message: Bytes) {
        let Some(node) = self.forwarder.home(shard, to) else { return };
        let (cluster, epoch) = (self.founding.cluster, self.peers.epoch());
        self.peers.send(node, &Envelope { cluster, epoch, shard, from, to, message });
    }

    fn free_bytes(&self) -> Option<u64> {
        crate::store::free_bytes(&self.data).ok()
    }

    fn flush(&self) {
        self.peers.flush();
    }

    fn progress(&self, progress: ShipProgress) {
        self.progress.send(progress);
    }

    fn held(&self, part: Held) -> bool {
        let name = match part {
            Held::Applier => "applier",
            Held::Log => "log",
        };
        self.hooks.as_ref().is_some_and(|hooks| hooks.join(name).exists())
    }

    fn needs_snapshot(&self, shard: ShardId) {
        // Nobody listens any more when the node is stopping.
        let _ = self.needs.send(shard);
    }

    fn failed(&self, what: Failure, why: &str) {
        // Nobody listens any more when the node is stopping.
        let _ = self.failures.send((what, why.to_owned()));
    }
}

/// What peers say, acted on.
struct Events {
    node: NodeId,
    nonce: Nonce,
    voters: Vec<NodeId>,
    replicator: Protocol,
    forwarder: Arc<Forwarder>,
    reports: Arc<NodeReports>,
    runner: Arc<Runner>,
    data: PathBuf,
    holds: Arc<Holds>,
    founding: std::sync::OnceLock<Arc<Founding>>,
    server: std::sync::OnceLock<Server>,
}

impl Events {
    fn request(&self, driver: &Driver, from: NodeId, request: Request, answers: &Arc<Outbox>) {
        let Request { id, deadline_ms, body, .. } = request;
        let deadline = Instant::now() + Duration::from_millis(deadline_ms.min(3_600_000));
        let answers = answers.clone();
        match body {
            Ask::Prove(ask) => self.prove(id, *ask, answers),
            Ask::Propose { shard, proposal } => {
                let done = move |result| Response::send(&answers, id, Reply::Proposed(result));
                driver.propose(shard, proposal, deadline, Box::new(done));
            }
            Ask::ReadIndex { shard } => {
                let done = move |result| Response::send(&answers, id, Reply::ReadIndex(result));
                driver.read(shard, deadline, Box::new(done));
            }
            Ask::Report => self.report(id, &answers),
            Ask::Clock => Response::send(&answers, id, Reply::Clock(Clock::wall())),
            Ask::Progress { shard, report } if report.node == from => driver.input(shard, Input::Report(report)),
            Ask::Progress { .. } | Ask::Here => {}
            Ask::Change { shard, change } => {
                let done = move |result| Response::send(&answers, id, Reply::Changed(result));
                driver.change(shard, change, Box::new(done));
            }
            Ask::At { address } => self.forwarder.peers().learn([(from, address)]),
            body @ (Ask::Transfer { .. }
            | Ask::Leader { .. }
            | Ask::Membership { .. }
            | Ask::Reserve { .. }
            | Ask::Release { .. }) => {
                Response::send(&answers, id, self.runner.answer(from, &body));
            }
        }
    }

    fn prove(&self, id: u64, ask: Prove, answers: Arc<Outbox>) {
        let Some(prover) = self.runner.prover().cloned() else {
            return Response::send(&answers, id, Reply::Proved(Box::new(Proved::Refused("it is starting".into()))));
        };
        tokio::spawn(async move {
            let proved = prover.answer(ask).await;
            Response::send(&answers, id, Reply::Proved(Box::new(proved)));
        });
    }

    fn report(&self, id: u64, answers: &Arc<Outbox>) {
        let (reports, answers) = (self.reports.clone(), answers.clone());
        tokio::task::spawn_blocking(move || {
            Response::send(&answers, id, Reply::Report(Box::new(reports.local_report())));
        });
    }
}

#[async_trait]
impl PeerEvents for Events {
    fn consensus(&self, messages: Vec<(ShardId, Input)>) {
        if let Some(driver) = self.forwarder.driver() {
            driver.receive(messages);
        }
    }

    fn disconnected(&self, peer: NodeId) {
        let Some(driver) = self.forwarder.driver() else { return };
        for view in driver.views() {
            if let Some(member) = view.membership().member_on(peer) {
                driver.input(view.shard, Input::Disconnected { peer: member.replica });
            }
        }
    }

    fn admits(&self, shard: ShardId, from: (NodeId, ReplicaId), to: ReplicaId) -> bool {
        self.forwarder.admits(shard, from, to)
    }

    fn requests(&self, from: NodeId, requests: Vec<Request>, answers: &Arc<Outbox>) {
        for request in requests {
            match (self.forwarder.driver(), &request.body) {
                (Some(driver), _) => self.request(driver, from, request, answers),
                (None, Ask::Report) => self.report(request.id, answers),
                (None, Ask::Propose { .. }) => {
                    Response::send(answers, request.id, Reply::Proposed(Err(Rejected::NotLeader(None))));
                }
                (None, Ask::ReadIndex { .. }) => {
                    Response::send(answers, request.id, Reply::ReadIndex(Err(Rejected::NotLeader(None))));
                }
                (None, Ask::Clock) => Response::send(answers, request.id, Reply::Clock(Clock::wall())),
                (None, Ask::Progress { .. } | Ask::Here) => {}
                (None, Ask::At { address }) => self.forwarder.peers().learn([(from, address.clone())]),
                (None, body) => Response::send(answers, request.id, self.runner.answer(from, body)),
            }
        }
    }

    fn removed(&self, node: NodeId) -> bool {
        let catalog = self.forwarder.driver().map(|driver| driver.catalog());
        catalog.is_some_and(|catalog| catalog.nodes.get(&node).is_some_and(|desc| desc.is_removed()))
    }

    fn who(&self, _voters: &[NodeId]) -> Answer {
        let router = NodeRouter(self.forwarder.clone());
        Answer {
            node: self.node,
            nonce: self.nonce,
            voters: self.voters.clone(),
            founding: self.founding.get().map(|f| (**f).clone()),
            epochs: self.forwarder.epochs(),
            master: router.master(),
            nodes: router.nodes(),
            replicator: self.replicator,
        }
    }

    async fn ship(&self, stream: TcpStream, buffer: BytesMut, reader: NodeId, heard: Heard) {
        let Some(server) = self.server.get() else { return };
        if let Err(why) = server.serve(stream, buffer, reader, heard).await {
            tracing::debug!(%reader, %why, "a reader's stream has ended");
        }
    }

    async fn give(&self, stream: TcpStream, buffer: BytesMut, reader: NodeId) {
        let given = crate::fill::serve(self.data.clone(), self.holds.clone(), stream, buffer, reader);
        if let Err(why) = given.await {
            tracing::debug!(%reader, %why, "a snapshot was not given to its end");
        }
    }
}
