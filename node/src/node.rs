//! The node: put together, run, taken apart. Start and stop order live only here.
//!
//! Start: directory, listeners, doors (they answer "not yet"), founding, log and engine, driver, peers, the rest. Stop:
//! doors close, leadership is handed over, sessions end, peers, driver, engine, clean-close mark.

mod events;
mod forming;
mod outgoing;
mod running;
mod signals;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_shared::ids::NodeId;
use quorate_shared::limits::SEGMENT_BYTES;
use quorate_shared::status::NodeKind;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::events::Events;
use self::running::Running;
use self::signals::Signals;
use crate::admin::Admin;
use crate::admin::actions::Runner;
use crate::config::{Config, Role};
use crate::driver::Failure;
use crate::forward::{Forwarder, NodeRouter};
use crate::metrics::Meters;
use crate::peers::Peers;
use crate::report::NodeState;
use crate::reporting::NodeReports;
use crate::router::Router;
use crate::serve::http::{self, Shown};
use crate::serve::tcp::Door;
use crate::sessions::SqlSessions;
use crate::sql::plan::{EngineOptions, SqlEngine};
use crate::store::{self, Directory, StoreError};
use crate::streams::NodeStreams;

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

impl Parts {
    /// Runs something until the node stops, which waits for it.
    fn run_until_stop(&self, job: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop_tasks.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = job => {}
            }
        });
    }
}

/// What serves clients and peers; closed before anything else.
#[derive(Default)]
struct Doors {
    stop: CancellationToken,
    tasks: TaskTracker,
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
    let doors = Doors::default();
    let engine = SqlEngine::new(&EngineOptions::default()).map_err(|e| NodeError::Failed(e.to_string()))?;
    open_doors(&parts, &router, engine, listener, http, &doors);

    let forming = async {
        match directory.note(store::REMOVED) {
            Some(why) => {
                tracing::error!(%why, "this node was removed from its cluster; it serves nothing but its state");
                parts.forwarder.set_state(NodeState::Removed(why));
                Ok(None)
            }
            None => forming::form(&parts, &mut directory, &voters).await,
        }
    };
    let opened = tokio::select! {
        opened = forming => opened?,
        signal = signals.next() => {
            tracing::info!(signal, "stops before it belonged to a cluster");
            doors.stop.cancel();
            return Ok(());
        }
    };
    let running = opened.map(|opened| running::start(&parts, &directory, opened, &router)).transpose()?;
    let stop = tokio::select! {
        signal = signals.next() => Stop::Signal(signal),
        failure = wait_failure(&mut failed, &parts) => Stop::Failed(failure.0, failure.1),
    };
    let result = end(&stop);
    take_apart(parts, running, doors, stop, result).await
}

/// How a node ends that stops for this.
fn end(stop: &Stop) -> Result<(), NodeError> {
    match stop {
        Stop::Signal(signal) => {
            tracing::info!(signal, "stops");
            Ok(())
        }
        // Planned, or told where it was found.
        Stop::Failed(Failure::Restart, why) => Err(NodeError::Restart(why.clone())),
        Stop::Failed(what, why) => {
            tracing::error!(?what, %why, "a fault stops this node");
            Err(match what {
                Failure::DiskFull | Failure::EngineFull => NodeError::Restart(why.clone()),
                _ => NodeError::Failed(why.clone()),
            })
        }
    }
}

async fn take_apart(
    parts: Parts,
    running: Option<Running>,
    doors: Doors,
    stop: Stop,
    mut result: Result<(), NodeError>,
) -> Result<(), NodeError> {
    doors.stop.cancel();
    doors.tasks.close();
    if let (Some(running), Stop::Signal(_)) = (&running, &stop) {
        running.hand_over(parts.config.node).await;
    }
    doors.tasks.wait().await;
    parts.stop_tasks.cancel();
    parts.tasks.close();
    parts.tasks.wait().await;
    parts.peers.close().await;
    parts.peers.detach();
    if let Some(running) = running {
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
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let (named, listens) = (forwarder.address(), port(&config.listen));
    if config.advertise.is_none() && port(named) != listens && listens.as_deref() != Some("0") {
        tracing::warn!(listen = %config.listen, "others are told to look for this node at {named}, as its --peers says");
    }
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
    let peers = Peers::new((config.node, nonce), address.clone(), voters.clone(), stop_tasks.child_token(), runtime);
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
    doors: &Doors,
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
    doors.tasks.spawn(door.serve(listener, doors.stop.clone()));
    if let Some(listener) = http {
        let shown = Shown { router: router.clone(), reports: parts.reports.clone(), meters };
        let stop = doors.stop.clone();
        doors.tasks.spawn(async move {
            if let Err(error) = http::serve(shown, listener, stop).await {
                tracing::error!(%error, "the http door has closed");
            }
        });
    }
}
