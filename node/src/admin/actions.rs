//! Actions on the cluster: checks first, then steps as they happen, then what was verified.
//!
//! The runner works on the node that was asked and drives the others with small requests, so it goes on when a leader
//! changes under it. An action that has begun goes on although whoever asked for it has gone.
//!
//! Invariants: a refused action has changed nothing; one action that changes the cluster at a time, because a majority of
//! the voters must have reserved the cluster for it; an outcome is `done` only when its effect was observed.

mod promote;
mod prove;
pub mod reservation;
mod switchover;
#[cfg(test)]
mod tests;
mod voters;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use quorate_core::machine::Applied;
use quorate_core::membership::Membership;
use quorate_core::replica::Protocol;
use quorate_shared::admin::{AdminAction, AdminEvent, AdminOutcome, AdminPlan, StepState};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Epoch, Index, NodeId, ShardId};
use quorate_shared::status::{ClusterStatus, NodeKind};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::reservation::{HOLD, Reservations};
use self::voters::Goal;
use super::{Gathered, Since, gather, is_recent, merge};
use crate::driver::Failure;
use crate::forward::Forwarder;
use crate::peers::Peers;
use crate::peers::message::{Ask, Leading, Reply};
use crate::proving::Prover;
use crate::report::{NodeReport, Reports};
use crate::reporting::NodeReports;

/// How long a node may take to answer a step's small question.
const ANSWER: Duration = Duration::from_secs(2);

/// Runs actions on this node. See the module.
pub struct Runner {
    node: NodeId,
    forwarder: Arc<Forwarder>,
    peers: Arc<Peers>,
    reports: Arc<NodeReports>,
    /// Told when the node has to begin again.
    failures: mpsc::UnboundedSender<(Failure, String)>,
    /// What this node keeps the cluster reserved for.
    pub reservations: Reservations,
    prover: OnceLock<Arc<Prover>>,
}

/// The cluster as an action finds it.
pub(crate) struct Scene {
    /// The picture.
    pub status: ClusterStatus,
    gathered: Gathered,
}

impl Scene {
    /// From what was gathered.
    pub fn new(gathered: Gathered) -> Self {
        Self { status: merge(&gathered, &mut Since::new()), gathered }
    }

    /// A node's report, if it came.
    pub fn report(&self, node: NodeId) -> Option<&NodeReport> {
        self.gathered.report(node)
    }

    /// Why a node did not report.
    pub fn silence(&self, node: NodeId) -> Option<&str> {
        self.gathered.answers.get(&node)?.as_ref().err().map(String::as_str)
    }

    /// What a node is; `None`: it is no node of this cluster.
    pub fn kind(&self, node: NodeId) -> Option<NodeKind> {
        let name = node.to_string();
        self.status.nodes.iter().find(|n| n.id == name)?.kind
    }

    /// The epoch a node is in.
    pub fn epoch(&self, node: NodeId) -> Epoch {
        self.report(node).map(|report| report.epoch).unwrap_or_default()
    }

    /// What a node has applied of a shard.
    pub fn applied(&self, node: NodeId, shard: ShardId) -> Index {
        let report = self.report(node).and_then(|report| report.shards.iter().find(|s| s.shard == shard));
        report.map(|shard| shard.applied).unwrap_or_default()
    }

    /// The highest commit index of a shard that anybody who answers knows of.
    pub fn commit(&self, shard: ShardId) -> Index {
        let all = self.gathered.reports().flat_map(|report| &report.shards).filter(|s| s.shard == shard);
        Index::new(all.filter_map(|s| s.status.commit).max().unwrap_or_default())
    }

    /// Shards whose membership is on its way from one set of voters to another.
    pub fn joint(&self) -> Vec<ShardId> {
        let all = self.gathered.reports().flat_map(|report| &report.shards);
        let mut joint: Vec<ShardId> = all.filter(|s| s.leads && s.membership.is_joint()).map(|s| s.shard).collect();
        joint.dedup();
        joint
    }

    /// The voters.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.status.nodes.iter().filter(|n| n.kind == Some(NodeKind::Voter)).filter_map(|n| node_id(&n.id))
    }

    /// A shard's confirmed leader.
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let name = shard.to_string();
        self.status.shards.iter().find(|s| s.id == name)?.leader.as_deref().and_then(node_id)
    }
}

/// `n3` as an id.
pub(crate) fn node_id(name: &str) -> Option<NodeId> {
    name.strip_prefix('n')?.parse().ok().map(NodeId::new)
}

/// A plan together with what carrying it out needs.
struct Planned {
    plan: AdminPlan,
    work: Work,
}

enum Work {
    /// There is nothing to carry out: it was refused.
    Nothing,
    Switchover(switchover::Switchover),
    Prove(prove::Task),
    Voters(voters::Change),
    Promote(promote::Promotion),
}

impl Planned {
    /// An action that cannot even be planned.
    fn refused(title: impl Into<String>, why: impl Into<String>) -> Self {
        let plan = AdminPlan { title: title.into(), refusals: vec![why.into()], ..AdminPlan::default() };
        Self { plan, work: Work::Nothing }
    }
}

/// Where an action's events go, with the time since it began.
pub(crate) struct Steps {
    events: mpsc::Sender<AdminEvent>,
    began: Instant,
}

impl Steps {
    async fn send(&self, step: usize, state: StepState, detail: String) {
        let elapsed_ms = self.began.elapsed().as_millis() as u64;
        tracing::info!(step, ?state, %detail, "action");
        // Whoever asked may have gone; the action goes on.
        let _ = self.events.send(AdminEvent::Step { step: step as u32, state, detail, elapsed_ms }).await;
    }
    /// A step has begun, or gets on.
    pub async fn running(&self, step: usize, detail: impl Into<String>) {
        self.send(step, StepState::Running, detail.into()).await;
    }
    /// A step is done.
    pub async fn done(&self, step: usize, detail: impl Into<String>) {
        self.send(step, StepState::Done, detail.into()).await;
    }
    /// A step has failed; gives the outcome that says so.
    pub async fn failed(&self, step: usize, error: WireError) -> AdminOutcome {
        self.send(step, StepState::Failed, error.message.clone()).await;
        AdminOutcome { summary: error.message.clone(), error: Some(error), ..AdminOutcome::default() }
    }
    /// Milliseconds since the action began.
    pub fn elapsed_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

impl Runner {
    /// A runner for this node.
    pub fn new(
        node: NodeId,
        forwarder: Arc<Forwarder>,
        peers: Arc<Peers>,
        reports: Arc<NodeReports>,
        failures: mpsc::UnboundedSender<(Failure, String)>,
    ) -> Arc<Self> {
        let (reservations, prover) = (Reservations::default(), OnceLock::new());
        Arc::new(Self { node, forwarder, peers, reports, failures, reservations, prover })
    }

    /// The shards run from here on, and can be proved.
    pub fn set_prover(&self, prover: Arc<Prover>) {
        // A second start cannot happen.
        let _ = self.prover.set(prover);
    }

    /// What proves this node's shards, once they run.
    pub fn prover(&self) -> Option<&Arc<Prover>> {
        self.prover.get()
    }

    /// Who is to be asked instead: a node whose own part is to change begins again in the middle of it, and could say
    /// neither how it goes nor how it ended.
    pub fn not_here(&self, action: &AdminAction) -> Option<WireError> {
        let (AdminAction::AddVoter { node } | AdminAction::DemoteVoter { node } | AdminAction::RemoveNode { node }) =
            action
        else {
            return None;
        };
        if *node != self.node {
            return None;
        }
        let (leader, heard) = (self.forwarder.leader(ShardId::META), self.peers.heard());
        let others = self.forwarder.known().into_iter().filter(|n| n.kind == NodeKind::Voter && n.node != self.node);
        let silent = |node: NodeId| !heard.iter().any(|(of, age)| *of == node && is_recent(age));
        let to = others.min_by_key(|n| (silent(n.node), Some(n.node) != leader, n.node))?;
        let message =
            format!("{} is not the one to ask to {}: it begins again in the midst of it", node, action.name());
        let error =
            WireError::new(Code::Redirect, message).hint(format!("ask another voter, {} at {}", to.node, to.address));
        Some(error.redirect(Some(to.address)))
    }

    /// Begins an action on a task of its own; it goes on when nobody listens any more.
    pub fn start(self: &Arc<Self>, action: AdminAction, dry_run: bool, events: mpsc::Sender<AdminEvent>) {
        let runner = self.clone();
        tokio::spawn(async move { runner.run(action, dry_run, events).await });
    }

    async fn run(self: Arc<Self>, action: AdminAction, dry_run: bool, events: mpsc::Sender<AdminEvent>) {
        let steps = Steps { events, began: Instant::now() };
        let (mut held, mut conflict) = (None, None);
        // What makes a new epoch needs no quorum of the old one; what proves changes nothing.
        if !dry_run && !prove::knows(&action) && !matches!(action, AdminAction::Promote { .. }) {
            match self.reserve(action.name()).await {
                Ok(reserved) => held = Some(reserved),
                Err(why) => conflict = Some(why),
            }
        }
        let mut planned = self.plan(&action).await;
        planned.plan.refusals.extend(conflict);
        let refused = !planned.plan.refusals.is_empty();
        if refused {
            // Whoever hears of it may ask for the next one at once.
            self.release(held.take()).await;
        }
        // Whoever asked may have gone before it began: nobody knows of it, so nothing is done.
        let listens = steps.events.send(AdminEvent::Plan(planned.plan.clone())).await.is_ok();
        if !dry_run && !refused && listens {
            tracing::info!(action = action.name(), plan = %planned.plan.title, "an action begins");
            let outcome = self.carry_out(planned, &steps).await;
            tracing::info!(action = action.name(), done = outcome.done, outcome = %outcome.summary, "an action has ended");
            self.release(held.take()).await;
            // As above.
            let _ = steps.events.send(AdminEvent::Outcome(outcome)).await;
            return;
        }
        self.release(held.take()).await;
    }

    async fn plan(&self, action: &AdminAction) -> Planned {
        let (scene, protocol) = (self.scene().await, self.forwarder.replicator());
        match action {
            AdminAction::Switchover { to } => switchover::plan(&scene, *to),
            AdminAction::Promote { .. } if protocol == Protocol::Paxos => {
                Planned::refused("begin a new epoch", "Unsupported: the paxos replicator needs at least two voters")
            }
            action if prove::knows(action) => prove::plan(&scene, self.prover.get(), action),
            AdminAction::AddVoter { node } => voters::plan(&scene, protocol, *node, Goal::Vote),
            AdminAction::DemoteVoter { node } => voters::plan(&scene, protocol, *node, Goal::Ship),
            AdminAction::RemoveNode { node } => voters::plan(&scene, protocol, *node, Goal::Gone),
            AdminAction::Promote { accept_loss } => promote::plan(&scene, self.node, *accept_loss),
            other => Planned::refused(
                format!("{} the cluster", other.name()),
                format!("Unsupported: this version cannot do `{}`", other.name()),
            ),
        }
    }

    async fn carry_out(&self, planned: Planned, steps: &Steps) -> AdminOutcome {
        match planned.work {
            Work::Nothing => AdminOutcome::default(),
            Work::Switchover(work) => switchover::carry_out(self, work, steps).await,
            Work::Prove(task) => prove::carry_out(task, steps).await,
            Work::Promote(work) => promote::carry_out(self, &work, steps).await,
            Work::Voters(work) => voters::carry_out(self, work, steps).await,
        }
    }

    /// Everybody's reports, now.
    async fn scene(&self) -> Scene {
        Scene::new(gather(&*self.reports, self.forwarder.known()).await)
    }

    /// Asks a node, this one included.
    async fn ask(&self, node: NodeId, body: Ask) -> Result<Reply, WireError> {
        let deadline = Instant::now() + ANSWER;
        let reply = if node == self.node {
            self.answer(node, &body)
        } else {
            self.peers.ask(node, body, deadline).await.map_err(|e| WireError::new(Code::Retry, e.to_string()))?
        };
        match reply {
            Reply::Failed(error) => Err(error),
            reply => Ok(reply),
        }
    }

    /// Answers another node's runner, or this one's.
    pub fn answer(&self, from: NodeId, body: &Ask) -> Reply {
        match body {
            Ask::Transfer { shard, to } => match self.forwarder.transfer(*shard, *to) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Failed(error),
            },
            Ask::Membership { shard } => match self.forwarder.applied_point(*shard) {
                Some(Applied { index: applied, chain, membership, .. }) => {
                    Reply::Membership { applied, chain, membership: (*membership).clone() }
                }
                None => Reply::Failed(self.forwarder.unavailable()),
            },
            Ask::Leader { shard } => Reply::Leader(self.forwarder.leading(*shard)),
            Ask::Reserve { action, what } => match self.reservations.reserve(*action, what, from) {
                Ok(()) => Reply::Done,
                Err(why) => Reply::Failed(WireError::new(Code::Conflict, why)),
            },
            Ask::Release { action } => {
                self.reservations.release(*action);
                Reply::Done
            }
            _ => Reply::Failed(WireError::new(Code::Invalid, "this is no question of an action")),
        }
    }

    /// Who leads a shard, as a node sees it.
    async fn leading(&self, node: NodeId, shard: ShardId) -> Result<Leading, WireError> {
        match self.ask(node, Ask::Leader { shard }).await? {
            Reply::Leader(leading) => Ok(leading),
            _ => Err(WireError::new(Code::Internal, format!("{node} gave an answer to another question"))),
        }
    }

    /// A node's own report.
    async fn report(&self, node: NodeId) -> Option<NodeReport> {
        if node == self.node {
            return Some(self.reports.local_report());
        }
        self.reports.peer_report(node, super::REPORT_TIMEOUT).await.ok()
    }

    /// Who takes part in a shard, as its leader has applied.
    async fn leaders_membership(&self, shard: ShardId) -> Option<Membership> {
        let leader = self.forwarder.leader(shard)?;
        match self.ask(leader, Ask::Membership { shard }).await {
            Ok(Reply::Membership { membership, .. }) => Some(membership),
            _ => None,
        }
    }

    /// Reserves the cluster at a majority of the voters, and keeps it so; or says what stands against it.
    async fn reserve(self: &Arc<Self>, what: &str) -> Result<Reserved, String> {
        let action = crate::store::random_bytes().map_err(|e| e.to_string())?;
        let action = u64::from_le_bytes([
            action[0], action[1], action[2], action[3], action[4], action[5], action[6], action[7],
        ]);
        let known = self.forwarder.known().into_iter();
        let voters: Vec<NodeId> = known.filter(|n| n.kind == NodeKind::Voter).map(|n| n.node).collect();
        let mut reserved = Reserved { action, voters, keep: None };
        match self.reserve_round(&reserved, what).await {
            Ok(()) => {
                let (runner, what) = (self.clone(), what.to_owned());
                let again = Reserved { action, voters: reserved.voters.clone(), keep: None };
                reserved.keep = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                    loop {
                        tokio::time::sleep(HOLD / 3).await;
                        if let Err(why) = runner.reserve_round(&again, &what).await {
                            tracing::warn!(%why, "the reservation of the running action could not be renewed");
                        }
                    }
                })));
                Ok(reserved)
            }
            Err(why) => {
                self.release(Some(reserved)).await;
                Err(why)
            }
        }
    }

    async fn reserve_round(&self, reserved: &Reserved, what: &str) -> Result<(), String> {
        let action = reserved.action;
        let asked = reserved.voters.iter().map(|node| self.ask(*node, Ask::Reserve { action, what: what.into() }));
        let mut got = 0;
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(_) => got += 1,
                Err(error) if error.code == Code::Conflict => return Err(error.message),
                Err(_) => {}
            }
        }
        if got > reserved.voters.len() / 2 {
            return Ok(());
        }
        let all = reserved.voters.len();
        Err(format!("NoQuorum: {got} of {all} voters can be reached; an action needs a majority of them"))
    }

    async fn release(&self, reserved: Option<Reserved>) {
        let Some(Reserved { action, voters, keep }) = reserved else { return };
        drop(keep);
        // Who does not hear of it forgets it by itself.
        let _ = futures::future::join_all(voters.iter().map(|node| self.ask(*node, Ask::Release { action }))).await;
    }
}

/// The cluster, reserved for one action until it is released.
struct Reserved {
    action: u64,
    voters: Vec<NodeId>,
    keep: Option<AbortOnDropHandle<()>>,
}

/// Facts of an outcome.
pub(crate) fn facts<const N: usize>(facts: [(&str, String); N]) -> Vec<(String, String)> {
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Names joined: `s0, s1`.
pub(crate) fn list<T: ToString>(of: impl IntoIterator<Item = T>) -> String {
    of.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

/// How a shard's leaders were found, by shard.
type Leaders = BTreeMap<ShardId, NodeId>;
