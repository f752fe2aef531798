//! The router of a real node: proposals and read points, here or at the shard's leader.
//!
//! A proposal goes to the leader, forwarded at most once: the node it is forwarded to never forwards it again, it answers
//! who leads. What surely did not happen is tried again until the deadline; what may have happened is tried again under
//! the same write id, which executes once, and is `unknown` when it has none or time runs out.
//!
//! `max_staleness` is served from the last confirmed index that is applied, also by a node that is cut off, as long as
//! that is young enough; only then is somebody asked.

mod known;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quorate_core::catalog::Catalog;
use quorate_core::error::Rejected;
use quorate_core::log::EpochStart;
use quorate_core::machine::Applied;
use quorate_core::membership::{Membership, MembershipChange, Refused};
use quorate_core::proposal::{Op, Proposal, WriteResult};
use quorate_core::replica::Protocol;
use quorate_core::shard::Input;
use quorate_core::ship::fresh::Freshness;
use quorate_shared::admin::{AdminAction, AdminEvent};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, Epoch, Index, NodeId, ReplicaId, ShardId, Timestamp, Token};
use quorate_shared::status::{ClusterStatus, NodeKind};
use quorate_shared::wire::{NodeAddress, ReadLevel};
use tokio::sync::{mpsc, oneshot};

use crate::admin::actions::Runner;
use crate::driver::Driver;
use crate::driver::view::ShardView;
use crate::founding::SHARDS;
use crate::peers::message::{Ask, Leading, Reply};
use crate::peers::{AskError, Peers};
use crate::report::NodeState;
use crate::router::{Identity, Moment, ProposeError, ReadPoint, Router, too_old};

/// First pause before a proposal or read is tried again; it doubles up to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// Read-index requests of one shard under way to its leader; what comes meanwhile shares the next.
const ROUNDS_MAX: usize = 2;
/// How long a read waits at most for somebody to confirm that the node is up to date: several elections. Whoever is cut
/// off says so then, instead of keeping a patient client waiting for nothing.
const CONFIRM_WAIT: Duration = Duration::from_secs(5);

/// How long a read that allows an age waits for a younger one, when what is here is too old.
const AGED_WAIT: Duration = Duration::from_secs(1);
/// How often a read that waits looks whether the disk is full.
const ROOM_EVERY: Duration = Duration::from_millis(100);
/// Replicas remembered that this node's membership does not have yet.
const STRANGERS_MAX: usize = 64;

/// What became of one attempt.
enum Attempt<T> {
    Done(T),
    /// Surely nothing happened; somebody else may be meant.
    Again(String),
    /// It was appended and may have happened; the next leader knows.
    Ambiguous(String),
    /// It may have happened, or may happen yet.
    Lost(String),
}

/// Read-index requests to another node, batched.
#[derive(Default)]
struct Rounds {
    running: usize,
    waiting: Vec<oneshot::Sender<Result<Index, String>>>,
}

/// See the module. Exists from the node's start; serves once it has a driver.
pub struct Forwarder {
    node: NodeId,
    kind: NodeKind,
    address: String,
    peers: Arc<Peers>,
    driver: OnceLock<Arc<Driver>>,
    founding: OnceLock<Arc<crate::peers::message::Founding>>,
    state: RwLock<NodeState>,
    voters: BTreeMap<NodeId, String>,
    rounds: Mutex<BTreeMap<ShardId, Rounds>>,
    fresh: Mutex<BTreeMap<ShardId, Freshness>>,
    picture: OnceLock<PictureTaker>,
    runner: OnceLock<Arc<Runner>>,
    /// Replicas newer than the membership applied here, with their nodes.
    strangers: Mutex<BTreeMap<(ShardId, ReplicaId), NodeId>>,
    /// Nodes heard of otherwise than by the catalog.
    heard_of: Mutex<Vec<NodeAddress>>,
}

/// Takes the cluster's picture; set once by the assembly.
pub type PictureTaker = Box<dyn Fn() -> futures::future::BoxFuture<'static, ClusterStatus> + Send + Sync>;

impl Forwarder {
    /// Serves nothing yet. `voters` are those of the command line.
    pub fn new(
        node: NodeId,
        kind: NodeKind,
        address: String,
        peers: Arc<Peers>,
        voters: BTreeMap<NodeId, String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            kind,
            address,
            peers,
            driver: OnceLock::new(),
            founding: OnceLock::new(),
            state: RwLock::new(NodeState::Forming("it is starting".into())),
            voters,
            rounds: Mutex::default(),
            fresh: Mutex::default(),
            picture: OnceLock::new(),
            runner: OnceLock::new(),
            strangers: Mutex::default(),
            heard_of: Mutex::default(),
        })
    }

    /// The protocol its cluster was founded with.
    pub fn replicator(&self) -> Protocol {
        self.founding.get().map(|founding| founding.replicator).unwrap_or_default()
    }

    /// The node belongs to a cluster from here on.
    pub fn founded(&self, founding: Arc<crate::peers::message::Founding>) {
        // A second founding cannot happen.
        let _ = self.founding.set(founding);
    }

    /// The shards run from here on.
    pub fn serve(&self, driver: Arc<Driver>) {
        // A second driver cannot happen.
        let _ = self.driver.set(driver);
        self.set_state(NodeState::Ready);
    }

    /// How to take the cluster's picture.
    pub fn set_picture(&self, taker: PictureTaker) {
        // Set once, by the assembly.
        let _ = self.picture.set(taker);
    }

    /// Who runs actions on the cluster.
    pub fn set_runner(&self, runner: Arc<Runner>) {
        // Set once, by the assembly.
        let _ = self.runner.set(runner);
    }

    /// Asks the shard's leader on this node to hand leadership to another node's voter.
    pub fn transfer(&self, shard: ShardId, to: NodeId) -> Result<(), WireError> {
        let (driver, view) = self.view(shard)?;
        if view.leader().node != Some(self.node) {
            return Err(WireError::new(Code::Retry, format!("{} does not lead {shard}", self.node)));
        }
        let membership = view.membership();
        let Some(member) = membership.voters.iter().find(|m| m.node == to) else {
            return Err(WireError::new(Code::Invalid, format!("{to} has no vote in {shard}")));
        };
        driver.input(shard, Input::Transfer { to: Some(member.replica) });
        Ok(())
    }

    /// Asks the shard's leader to change the membership, wherever it is; the membership after it.
    pub async fn change(
        &self,
        shard: ShardId,
        change: MembershipChange,
        deadline: Instant,
    ) -> Result<Membership, Refused> {
        let not_ready = |why: String| Refused::NotReady(why);
        let (driver, view) = self.view(shard).map_err(|e| not_ready(e.message))?;
        match view.leader().node {
            None => Err(Refused::NotLeader(None)),
            Some(node) if node == self.node => {
                let (sender, receiver) = oneshot::channel();
                // The caller has given up when the receiver is gone.
                driver.change(shard, change, Box::new(move |result| drop(sender.send(result))));
                match tokio::time::timeout_at(deadline.into(), receiver).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) | Err(_) => Err(Refused::Unknown),
                }
            }
            Some(node) => match self.peers.ask(node, Ask::Change { shard, change }, deadline).await {
                Ok(Reply::Changed(result)) => result,
                Ok(Reply::Failed(error)) => Err(not_ready(error.message)),
                Ok(_) => Err(not_ready(format!("{node} gave an answer to another question"))),
                Err(error @ AskError::NotSent(..)) => Err(not_ready(error.to_string())),
                Err(_) => Err(Refused::Unknown),
            },
        }
    }

    /// The connections.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The epoch of each shard as applied, and where it began.
    pub fn epochs(&self) -> Vec<(ShardId, Epoch, EpochStart)> {
        let views = self.driver.get().into_iter().flat_map(|driver| driver.views());
        views
            .map(|view| (view.shard, view.applied_point()))
            .map(|(shard, at)| (shard, at.epoch, at.epoch_start))
            .collect()
    }

    /// Where a replica lives.
    pub fn home(&self, shard: ShardId, replica: ReplicaId) -> Option<NodeId> {
        let known = self.driver.get()?.view(shard)?.membership().node_of(replica);
        known.or_else(|| self.strangers().get(&(shard, replica)).copied())
    }

    fn strangers(&self) -> std::sync::MutexGuard<'_, BTreeMap<(ShardId, ReplicaId), NodeId>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes of replicas that are of a membership this node has not applied yet.
    pub fn strange_nodes(&self) -> Vec<NodeId> {
        self.strangers().values().copied().collect()
    }

    /// Whether a replica's message is to be heard here: it is for ours, and the sender lives where it says, or is newer
    /// than what this node has applied of the membership.
    pub fn admits(&self, shard: ShardId, (node, from): (NodeId, ReplicaId), to: ReplicaId) -> bool {
        let Some(view) = self.driver.get().and_then(|driver| driver.view(shard)) else { return false };
        if to == ReplicaId::NONE || view.replica != to {
            return false;
        }
        let membership = view.membership();
        match membership.node_of(from) {
            Some(known) => known == node,
            None if from < membership.next => false,
            None => {
                let mut strangers = self.strangers();
                strangers.retain(|(of, replica), _| *of != shard || membership.node_of(*replica).is_none());
                if strangers.len() < STRANGERS_MAX {
                    strangers.insert((shard, from), node);
                }
                true
            }
        }
    }

    /// What this node is by now, as far as it has applied: a learner is not yet a voter.
    pub fn kind(&self) -> NodeKind {
        let Some(driver) = self.driver.get() else { return self.kind };
        match driver.views().all(|view| view.membership().votes(view.replica)) {
            true => NodeKind::Voter,
            false => NodeKind::Replica,
        }
    }

    /// What this node has applied of a shard.
    pub fn applied_point(&self, shard: ShardId) -> Option<Applied> {
        Some(self.driver.get()?.view(shard)?.applied_point())
    }

    /// Who leads a shard, as known here.
    pub fn leading(&self, shard: ShardId) -> Leading {
        let leader = self.driver.get().and_then(|d| d.view(shard)).map(|view| view.leader()).unwrap_or_default();
        Leading { term: leader.term, node: leader.node, ready: leader.ready }
    }

    /// How the node is.
    pub fn state(&self) -> NodeState {
        if let Some(driver) = self.driver.get() {
            for view in driver.views() {
                if let Some(why) = view.stopped() {
                    return NodeState::Stopped(format!("{}: {why}", view.shard));
                }
            }
            let lost = matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), NodeState::LostLog(_));
            if driver.catalog().counters.is_none() && !lost {
                return NodeState::Forming("it waits for the catalog's first entry".into());
            }
        }
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says how the node is.
    pub fn set_state(&self, state: NodeState) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The running shards, once there are.
    pub fn driver(&self) -> Option<&Arc<Driver>> {
        self.driver.get()
    }

    /// Where others reach this node.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Why nothing can be served here.
    pub fn unavailable(&self) -> WireError {
        let node = self.node;
        match self.state() {
            NodeState::LostLog(why) => WireError::new(Code::Internal, format!("{node} has lost its log: {why}"))
                .hint("it neither votes nor acknowledges; connect to another node"),
            NodeState::Removed(why) => {
                WireError::new(Code::Denied, format!("{node} was removed from its cluster: {why}"))
                    .hint("it serves nothing but its state; connect to another node")
            }
            NodeState::Stopped(why) => WireError::new(Code::Internal, format!("{node} has stopped serving: {why}"))
                .hint("connect to another node; restarting this one rebuilds what can be rebuilt"),
            NodeState::Forming(why) => WireError::new(Code::Retry, format!("{node} does not serve yet: {why}")),
            NodeState::Ready => WireError::new(Code::Retry, format!("{node} does not serve yet")),
        }
    }

    fn view(&self, shard: ShardId) -> Result<(&Arc<Driver>, &Arc<ShardView>), WireError> {
        let driver = self.driver.get().ok_or_else(|| self.unavailable())?;
        let view = driver
            .view(shard)
            .ok_or_else(|| WireError::new(Code::NotFound, format!("{} has no replica of {shard}", self.node)))?;
        match view.stopped() {
            Some(_) => Err(self.unavailable()),
            None => Ok((driver, view)),
        }
    }

    /// A shard's replica for reading what is here, also one that has stopped.
    fn readable(&self, shard: ShardId) -> Result<&Arc<ShardView>, WireError> {
        let view = self.driver.get().and_then(|d| d.view(shard)).ok_or_else(|| self.unavailable())?;
        if view.is_readable() { Ok(view) } else { Err(self.unavailable()) }
    }

    /// The leader's node of a shard, as known here.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.driver.get()?.view(shard)?.leader().node
    }

    /// Waits a little for news about the leader.
    async fn pause(&self, view: &ShardView, pause: &mut Duration, deadline: Instant) {
        let until = deadline.min(Instant::now() + *pause);
        // Either way it is time for the next attempt.
        let _ = tokio::time::timeout_at(until.into(), view.leader_changed.notified()).await;
        *pause = (*pause * 2).min(PAUSE.1);
    }

    async fn try_propose(
        &self,
        driver: &Driver,
        view: &ShardView,
        proposal: &Proposal,
        deadline: Instant,
    ) -> Attempt<Result<WriteResult, Rejected>> {
        let leader = view.leader();
        let shard = view.shard;
        let answer = match leader.node {
            None => return Attempt::Again(format!("{shard} has no leader")),
            Some(node) if node == self.node => {
                let (sender, receiver) = oneshot::channel();
                // The caller has given up when the receiver is gone.
                let done = Box::new(move |result| drop(sender.send(result)));
                driver.propose(shard, Box::new(proposal.clone()), deadline, done);
                match tokio::time::timeout_at(deadline.into(), receiver).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => return Attempt::Lost("this node is stopping".into()),
                    Err(_) => return Attempt::Lost("no answer in time".into()),
                }
            }
            Some(node) => {
                let body = Ask::Propose { shard, proposal: Box::new(proposal.clone()) };
                match self.peers.ask(node, body, deadline).await {
                    Ok(Reply::Proposed(result)) => result,
                    Ok(Reply::Failed(error)) => return Attempt::Again(error.to_string()),
                    Ok(_) => return Attempt::Lost(format!("{node} gave an answer to another question")),
                    Err(error @ AskError::NotSent(..)) => return Attempt::Again(error.to_string()),
                    Err(error) => return Attempt::Lost(error.to_string()),
                }
            }
        };
        match answer {
            Err(Rejected::NotLeader(_)) => Attempt::Again(format!("the leader of {shard} has changed")),
            Err(Rejected::Retry(why)) => Attempt::Again(why),
            Err(Rejected::Unknown(why)) => Attempt::Ambiguous(why),
            other => Attempt::Done(other),
        }
    }

    /// Proposes, at the leader. The one way to write, for this node's own registration too.
    pub async fn propose_anywhere(
        &self,
        shard: ShardId,
        proposal: &Proposal,
        deadline: Instant,
    ) -> Result<WriteResult, ProposeError> {
        let (driver, view) = self.view(shard).map_err(ProposeError::Wire)?;
        let mut pause = PAUSE.0;
        let (mut ambiguous, mut lost): (Option<String>, Option<String>) = (None, None);
        loop {
            let why = match self.try_propose(driver, view, proposal, deadline).await {
                Attempt::Done(Ok(result)) => return Ok(result),
                Attempt::Done(Err(rejected)) => {
                    return Err(ProposeError::Rejected(match lost {
                        Some(why) if !matches!(rejected, Rejected::Conflict | Rejected::StaleCatalog { .. }) => {
                            Rejected::Unknown(format!("{why}; asked again, it is refused: {rejected}"))
                        }
                        _ => rejected,
                    }));
                }
                Attempt::Again(why) => why,
                Attempt::Lost(why) => {
                    // It may yet arrive and be executed, whatever a later attempt is told.
                    (ambiguous, lost) = (Some(why.clone()), Some(why.clone()));
                    why
                }
                Attempt::Ambiguous(why) => {
                    ambiguous = Some(why.clone());
                    why
                }
            };
            if let (Some(why), true) = (&ambiguous, proposal.write.is_none()) {
                return Err(ProposeError::Rejected(Rejected::Unknown(why.clone())));
            }
            if Instant::now() >= deadline {
                return Err(match ambiguous {
                    Some(why) => ProposeError::Rejected(Rejected::Unknown(why)),
                    None => ProposeError::Wire(
                        WireError::new(Code::Retry, format!("{}nothing was written: {why}", no_quorum(view)))
                            .hint("the cluster may have no quorum; `quorate status` shows it"),
                    ),
                });
            }
            self.pause(view, &mut pause, deadline).await;
        }
    }

    /// Asks another node for the index to wait for; callers that come while rounds are under way share the next one.
    async fn remote_index(self: &Arc<Self>, shard: ShardId, node: NodeId, deadline: Instant) -> Result<Index, String> {
        let (sender, receiver) = oneshot::channel();
        let start = {
            let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            let rounds = rounds.entry(shard).or_default();
            rounds.waiting.push(sender);
            let start = rounds.running < ROUNDS_MAX;
            rounds.running += usize::from(start);
            start
        };
        if start {
            let this = self.clone();
            tokio::spawn(async move { this.run_rounds(shard, node).await });
        }
        match tokio::time::timeout_at(deadline.into(), receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the node is stopping".into()),
            Err(_) => Err("no answer in time".into()),
        }
    }

    async fn run_rounds(self: Arc<Self>, shard: ShardId, mut node: NodeId) {
        loop {
            let waiting = {
                let mut all = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
                let rounds = all.entry(shard).or_default();
                if rounds.waiting.is_empty() {
                    rounds.running -= 1;
                    return;
                }
                std::mem::take(&mut rounds.waiting)
            };
            node = self.leader(shard).unwrap_or(node);
            let deadline = Instant::now() + Duration::from_secs(2);
            let result = match self.peers.ask(node, Ask::ReadIndex { shard }, deadline).await {
                Ok(Reply::ReadIndex(Ok(index))) => Ok(index),
                Ok(Reply::ReadIndex(Err(rejected))) => Err(rejected.to_string()),
                Ok(Reply::Failed(error)) => Err(error.to_string()),
                Ok(_) => Err(format!("{node} gave an answer to another question")),
                Err(error) => Err(error.to_string()),
            };
            for waiter in waiting {
                // The caller has given up.
                let _ = waiter.send(result.clone());
            }
        }
    }

    /// An index that had every write acknowledged before the call; tried until the deadline, or until the node must
    /// think itself cut off.
    async fn read_index(self: &Arc<Self>, shard: ShardId, deadline: Instant) -> Result<Index, WireError> {
        let (driver, view) = self.view(shard)?;
        let deadline = deadline.min(Instant::now() + CONFIRM_WAIT);
        let mut pause = PAUSE.0;
        loop {
            let asked = Moment::now();
            let why = match view.leader().node {
                None => format!("{shard} has no leader"),
                Some(node) if node == self.node => {
                    let (sender, receiver) = oneshot::channel();
                    // The caller has given up when the receiver is gone.
                    driver.read(shard, deadline, Box::new(move |result| drop(sender.send(result))));
                    match tokio::time::timeout_at(deadline.into(), receiver).await {
                        Ok(Ok(Ok(index))) => return Ok(self.confirm(shard, index, asked)),
                        Ok(Ok(Err(rejected))) => rejected.to_string(),
                        Ok(Err(_)) => "the node is stopping".into(),
                        Err(_) => "no quorum has answered".into(),
                    }
                }
                Some(node) => match self.remote_index(shard, node, deadline).await {
                    Ok(index) => return Ok(self.confirm(shard, index, asked)),
                    Err(why) => why,
                },
            };
            if Instant::now() >= deadline {
                // A client of a voter can ask another one, and tries until its own deadline.
                let code = if self.kind == NodeKind::Replica { Code::Behind } else { Code::Retry };
                let node = self.node;
                let message =
                    format!("{}{node} is cut off and cannot confirm that it is up to date: {why}", no_quorum(view));
                return Err(WireError::new(code, message).hint("SET read_level = local reads what is here"));
            }
            self.pause(view, &mut pause, deadline).await;
        }
    }

    /// Everything that was acknowledged before `asked` is at or below this index.
    pub fn confirm(&self, shard: ShardId, index: Index, asked: Moment) -> Index {
        let applied = self.driver.get().and_then(|d| d.view(shard)).map(|view| view.applied()).unwrap_or_default();
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.entry(shard).or_default().confirmed(index, asked.micros(), applied);
        index
    }

    /// Before when everything that was acknowledged is in what is applied here, if that is known.
    fn since(&self, view: &ShardView) -> Option<Moment> {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.get_mut(&view.shard)?.asked(view.applied()).map(Moment::from_micros)
    }

    /// A read that allows an age: of what is here if that is young enough, else of what somebody confirms now.
    async fn read_aged(
        self: &Arc<Self>,
        view: &ShardView,
        limit: u64,
        deadline: Instant,
    ) -> Result<ReadPoint, WireError> {
        let point = self.point(view);
        if point.since.is_some_and(|since| since.age_ms() <= limit) {
            return Ok(point);
        }
        let deadline = deadline.min(Instant::now() + AGED_WAIT);
        let asked = match self.read_index(view.shard, deadline).await {
            Ok(index) => self.wait_applied(view, index, deadline).await,
            Err(error) => Err(error),
        };
        let point = self.point(view);
        match (point.since.map(Moment::age_ms), asked) {
            (Some(age), _) if age <= limit => Ok(point),
            (age, Err(error)) => Err(too_old(self.node, age, limit).detail(error.message)),
            (age, Ok(())) => Err(too_old(self.node, age, limit)),
        }
    }

    async fn wait_applied(&self, view: &ShardView, index: Index, deadline: Instant) -> Result<(), WireError> {
        if view.applied() >= index {
            return Ok(());
        }
        let waited = tokio::select! {
            waited = tokio::time::timeout_at(deadline.into(), view.wait_applied(index)) => waited,
            () = no_room(view) => return Err(self.no_room(view, index)),
        };
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.unavailable()),
            Err(_) => {
                let applied = view.applied();
                let behind = index.get().saturating_sub(applied.get());
                let message =
                    format!("ReplicaBehind: {} has applied {applied} of {index} in {}", self.node, view.shard);
                Err(WireError::new(Code::Behind, message)
                    .detail(format!("{behind} entries behind"))
                    .hint("SET read_level = local reads what is here"))
            }
        }
    }

    /// What is to be waited for is not applied before there is room on the disk.
    fn no_room(&self, view: &ShardView, index: Index) -> WireError {
        let code = if self.kind == NodeKind::Replica { Code::Behind } else { Code::Retry };
        let (node, applied) = (self.node, view.applied());
        let message = format!("DiskFull: {node} has applied {applied} of {index} in {} and has no room", view.shard);
        WireError { sqlstate: Some("53100".into()), ..WireError::new(code, message) }
            .hint("connect to another node, or make room; SET read_level = local reads what is here")
    }

    async fn wait_tokens(&self, view: &ShardView, tokens: &[Token], deadline: Instant) -> Result<(), WireError> {
        let epoch = self.epoch();
        if let Some(token) = tokens.iter().find(|t| !SHARDS.contains(&t.shard)) {
            return Err(WireError::new(
                Code::Invalid,
                format!("the token is of {}, and there is no such shard", token.shard),
            ));
        }
        for token in tokens.iter().filter(|t| t.shard == view.shard) {
            if token.epoch != epoch.number {
                let message =
                    format!("the token is of epoch {}, {} is in epoch {}", token.epoch, self.node, epoch.number);
                return Err(WireError::new(Code::Invalid, message));
            }
            self.wait_applied(view, token.index, deadline).await?;
        }
        Ok(())
    }

    fn epoch(&self) -> Epoch {
        self.peers.epoch()
    }

    fn point(&self, view: &ShardView) -> ReadPoint {
        // First since when, then the snapshot: what is applied in between only makes it younger.
        let since = self.since(view);
        ReadPoint { snapshot: view.snapshot(), since }
    }

    /// The error of a node that takes no writes.
    fn read_only(&self) -> WireError {
        let master = self.master_address();
        let hint = match &master {
            Some(master) => format!("write on the master, {} at {}", master.node, master.address),
            None => "write on the master; none is known right now".into(),
        };
        WireError::sql("25006", format!("{} is a read-only replica", self.node))
            .hint(hint)
            .redirect(master.map(|m| m.address))
    }

    fn master_address(&self) -> Option<NodeAddress> {
        let node = self.leader(ShardId::META)?;
        self.known().into_iter().find(|n| n.node == node)
    }
}

/// The problem's name, where nobody leads as far as this node knows.
fn no_quorum(view: &ShardView) -> &'static str {
    if view.leader().node.is_none() { "NoQuorum: " } else { "" }
}

/// Waits until nothing is applied for want of room.
async fn no_room(view: &ShardView) {
    while !view.has_no_room() {
        tokio::time::sleep(ROOM_EVERY).await;
    }
}

/// The router as the doors hold it.
#[derive(Clone)]
pub struct NodeRouter(pub Arc<Forwarder>);

#[async_trait]
impl Router for NodeRouter {
    async fn propose(
        &self,
        shard: ShardId,
        proposal: Proposal,
        deadline: Instant,
    ) -> Result<WriteResult, ProposeError> {
        if self.0.kind == NodeKind::Replica {
            return Err(ProposeError::Wire(self.0.read_only()));
        }
        self.0.propose_anywhere(shard, &proposal, deadline).await
    }

    async fn read(&self, shard: ShardId, level: &ReadLevel, deadline: Instant) -> Result<ReadPoint, WireError> {
        let this = &self.0;
        if *level == ReadLevel::Local {
            return self.read_local(shard);
        }
        let (_, view) = this.view(shard)?;
        match level {
            ReadLevel::Local => {}
            ReadLevel::Linearizable => {
                let index = this.read_index(shard, deadline).await?;
                this.wait_applied(view, index, deadline).await?;
                return Ok(ReadPoint { snapshot: view.snapshot(), since: None });
            }
            ReadLevel::After(tokens) => this.wait_tokens(view, tokens, deadline).await?,
            ReadLevel::MaxStaleness(limit) => return this.read_aged(view, *limit, deadline).await,
        }
        Ok(this.point(view))
    }

    /// Also for a replica: it changes nothing.
    async fn close(&self, shard: ShardId, deadline: Instant) -> Result<Timestamp, ProposeError> {
        let proposal = Proposal { ops: vec![Op::Close], ..Proposal::default() };
        Ok(self.0.propose_anywhere(shard, &proposal, deadline).await?.timestamp)
    }

    fn read_local(&self, shard: ShardId) -> Result<ReadPoint, WireError> {
        Ok(self.0.point(self.0.readable(shard)?))
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.0.driver.get().map(|driver| driver.catalog()).unwrap_or_default()
    }

    async fn catalog_at_least(&self, version: CatalogVersion, deadline: Instant) -> Result<Arc<Catalog>, WireError> {
        let driver = self.0.driver.get().ok_or_else(|| self.0.unavailable())?;
        let mut versions = driver.catalog_versions();
        let reached = tokio::time::timeout_at(deadline.into(), versions.wait_for(|v| *v >= version.get())).await;
        match reached {
            Ok(Ok(_)) => Ok(driver.catalog()),
            _ => Err(WireError::new(
                Code::Behind,
                format!("{} has not applied catalog version {version} yet", self.0.node),
            )),
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            cluster: self.0.founding.get().map(|f| f.cluster),
            epoch: self.0.epoch(),
            node: self.0.node,
            kind: self.0.kind,
            address: self.0.address.clone(),
        }
    }

    fn master(&self) -> Option<NodeAddress> {
        self.0.master_address()
    }

    fn is_master(&self) -> bool {
        self.0.driver.get().and_then(|d| d.view(ShardId::META)).is_some_and(|view| view.leader().ready)
    }

    async fn picture(&self) -> ClusterStatus {
        match self.0.picture.get() {
            Some(take) => take().await,
            None => ClusterStatus { schema: quorate_shared::status::SCHEMA, ..ClusterStatus::default() },
        }
    }

    fn nodes(&self) -> Vec<NodeAddress> {
        self.0.known()
    }

    fn not_here(&self, action: &AdminAction) -> Option<WireError> {
        self.0.runner.get()?.not_here(action)
    }

    fn act(&self, action: AdminAction, dry_run: bool, events: mpsc::Sender<AdminEvent>) {
        if let Some(runner) = self.0.runner.get() {
            runner.start(action, dry_run, events);
        }
    }
}
