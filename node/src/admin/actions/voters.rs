//! Who votes: a log-shipped replica becomes a voter, a voter a replica, a node leaves.
//!
//! A new voter learns first and votes when it has caught up; a voter that goes hands over what it leads first. Each shard
//! changes one thing at a time, and the leader refuses what would cost the quorum. The `paxos` replicator has no
//! learners: there a log-shipped replica that has caught up votes at once.
//!
//! Left out: several nodes at once.

use std::time::{Duration, Instant};

use quorate_core::catalog::{Descriptor, NodeDesc};
use quorate_core::keys::{CatalogKey, Key};
use quorate_core::membership::{Host, MembershipChange, Refused};
use quorate_core::proposal::{Op, Proposal};
use quorate_core::replica::Protocol;
use quorate_core::replica::paxos::VOTERS_MAX;
use quorate_shared::admin::{AdminOutcome, AdminPlan};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{NodeId, ReplicaId, ShardId};
use quorate_shared::status::NodeKind;

use super::switchover::{best, hand_over, unready};
use super::{Leaders, Planned, Runner, Scene, Steps, Work, facts, list};
use crate::founding::SHARDS;

/// How long a change of the membership may take once it is asked for.
const CHANGE: Duration = Duration::from_secs(10);
/// A node that does not get on for so long is given up: it restarts, and is filled, in less.
const STALLED: Duration = Duration::from_secs(120);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Entries a replica may be behind when it is made a voter without learning first.
const BEHIND_MAX: u64 = 1_000;

/// What is to be done with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// It is to vote.
    Vote,
    /// It is to be a log-shipped replica.
    Ship,
    /// It is to be gone.
    Gone,
}

/// A change that nothing stands against.
pub(super) struct Change {
    protocol: Protocol,
    node: NodeId,
    goal: Goal,
    /// Where the leadership of the shards it leads goes first.
    successor: Option<NodeId>,
}

/// Checks and plans. Pure.
pub(super) fn plan(scene: &Scene, protocol: Protocol, node: NodeId, goal: Goal) -> Planned {
    let title = match goal {
        Goal::Vote => format!("make {node} a voter"),
        Goal::Ship => format!("make {node} a log-shipped replica"),
        Goal::Gone => format!("take {node} out of the cluster"),
    };
    let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
    let mut leaders = Leaders::new();
    for shard in SHARDS {
        match scene.leader(shard) {
            Some(leader) => drop(leaders.insert(shard, leader)),
            None => refusals.push(format!("NoQuorum: {shard} has no leader that a quorum confirms")),
        }
    }
    let Some(kind) = scene.kind(node) else {
        refusals.push(format!("UnknownNode: {node} is no node of this cluster"));
        return Planned { plan: AdminPlan { title, refusals, ..AdminPlan::default() }, work: Work::Nothing };
    };
    let voters: Vec<NodeId> = scene.voters().collect();
    let alive = |node: &NodeId| scene.report(*node).is_some();
    for shard in scene.joint() {
        refusals.push(format!("ChangeInProgress: the membership of {shard} is changing"));
    }
    let mut successor = None;
    match (goal, kind) {
        (Goal::Vote, NodeKind::Voter) => refusals.push(format!("AlreadyVoter: {node} votes already")),
        (Goal::Vote, NodeKind::Replica) => {
            refusals.extend(unready(scene, node));
            refusals.extend(skew(scene, node));
            if protocol == Protocol::Paxos {
                refusals.extend(crowded(voters.len(), voters.iter().filter(|voter| alive(voter)).count()));
            }
            warnings.push(tolerance(voters.len(), voters.len() + 1));
        }
        (Goal::Ship, NodeKind::Replica) => refusals.push(format!("NotVoter: {node} is a log-shipped replica already")),
        (Goal::Gone, NodeKind::Replica) => {}
        (Goal::Ship | Goal::Gone, NodeKind::Voter) => {
            let rest: Vec<NodeId> = voters.iter().copied().filter(|voter| *voter != node).collect();
            let there = rest.iter().filter(|voter| alive(voter)).count();
            if rest.is_empty() {
                refusals.push(format!("LastVoter: {node} is the only voter; without it nobody decides"));
            } else if rest.len() == 1 && protocol == Protocol::Paxos {
                refusals.push(
                    "Unsupported: the paxos replicator needs at least two voters; `add-voter` comes first".into(),
                );
            } else if there * 2 <= rest.len() {
                let all = rest.len();
                refusals.push(format!("NoQuorum: only {there} of the {all} voters that would remain answer"));
            }
            if goal == Goal::Ship && !alive(&node) {
                let why = scene.silence(node).unwrap_or("it was not asked");
                refusals.push(format!("Unreachable: {node} does not answer ({why}); `remove` takes out a dead node"));
            }
            if leaders.values().any(|leader| *leader == node) {
                successor = best(scene, &leaders, Some(node));
                if successor.is_none() && refusals.is_empty() {
                    refusals.push(format!("NoTarget: {node} leads, and nobody is fit to take over"));
                }
            }
            warnings.push(tolerance(voters.len(), rest.len()));
        }
    }
    let steps = steps(protocol, node, goal, kind, successor);
    let plan = AdminPlan { title, steps, warnings, refusals };
    let work =
        if plan.refusals.is_empty() { Work::Voters(Change { protocol, node, goal, successor }) } else { Work::Nothing };
    Planned { plan, work }
}

fn steps(protocol: Protocol, node: NodeId, goal: Goal, kind: NodeKind, successor: Option<NodeId>) -> Vec<String> {
    let shards = list(SHARDS);
    let mut steps = Vec::new();
    if goal == Goal::Vote && protocol == Protocol::Paxos {
        steps.push(format!("look that {node} has caught up"));
        steps.push(format!("{shards}: {node} votes"));
        steps.push(format!("{node} restarts in place and takes part"));
    } else if goal == Goal::Vote {
        steps.push(format!("{shards}: {node} learns"));
        steps.push(format!("{node} restarts in place and catches up"));
        steps.push(format!("{shards}: {node} votes"));
    } else {
        steps.push(match successor {
            Some(to) => format!("hand what {node} leads to {to}"),
            None => format!("look that {node} leads nothing"),
        });
        steps.push(match kind {
            NodeKind::Voter => format!("{shards}: {node} votes no more"),
            NodeKind::Replica => format!("look that {node} has no vote"),
        });
        steps.push(match goal {
            Goal::Gone => format!("strike {node} from the catalog"),
            _ => format!("{node} restarts in place as a log-shipped replica"),
        });
    }
    steps.push("verify: every leader's membership and the picture".into());
    steps
}

/// What speaks against a voter that votes before it is there: until then the others have to be a majority with it.
fn crowded(voters: usize, there: usize) -> Option<String> {
    let after = voters + 1;
    if after as u64 > VOTERS_MAX {
        return Some(format!("Unsupported: the paxos replicator takes at most {VOTERS_MAX} voters"));
    }
    (there * 2 <= after).then(|| {
        format!("NoQuorum: only {there} of the {after} voters there would be answer; `remove` takes out a dead one")
    })
}

/// What the number of voters means.
fn tolerance(before: usize, after: usize) -> String {
    let tolerates = |voters: usize| voters.saturating_sub(1) / 2;
    let (was, is) = (tolerates(before), tolerates(after));
    let even = if after.is_multiple_of(2) { "; an even number tolerates no more than one less" } else { "" };
    format!("{after} voters instead of {before}: {is} may fail instead of {was}{even}")
}

/// A node of another version than the voters may not understand what they write.
fn skew(scene: &Scene, node: NodeId) -> Option<String> {
    let theirs = &scene.report(node)?.version;
    let other = scene.voters().filter_map(|voter| scene.report(voter)).find(|report| report.version != *theirs)?;
    Some(format!("VersionSkew: {node} runs {theirs}, {} runs {}", other.node, other.version))
}

/// Does it, and looks whether it is so.
pub(super) async fn carry_out(runner: &Runner, work: Change, steps: &Steps) -> AdminOutcome {
    let done = match work.goal {
        Goal::Vote if work.protocol == Protocol::Paxos => add_at_once(runner, work.node, steps).await,
        Goal::Vote => add(runner, work.node, steps).await,
        Goal::Ship | Goal::Gone => leave(runner, &work, steps).await,
    };
    let outcome = match done {
        Ok(()) => verify(runner, &work, steps).await,
        Err(outcome) => Err(outcome),
    };
    outcome.unwrap_or_else(|outcome| outcome)
}

type Step<T> = Result<T, AdminOutcome>;

/// A replica learns, catches up, votes.
async fn add(runner: &Runner, node: NodeId, steps: &Steps) -> Step<()> {
    steps.running(0, "").await;
    for shard in SHARDS.into_iter().rev() {
        if replica_of(runner, shard, node).await.is_none() {
            let host = host(runner, node, 0, steps).await?;
            change(runner, shard, MembershipChange::AddLearner(host), 0, steps).await?;
        }
    }
    steps.done(0, "").await;
    takes_part(runner, node, 1, steps).await?;
    steps.running(2, "").await;
    for shard in SHARDS.into_iter().rev() {
        if let Some(replica) = replica_of(runner, shard, node).await {
            change(runner, shard, MembershipChange::Promote(replica), 2, steps).await?;
        }
    }
    steps.done(2, "").await;
    Ok(())
}

/// A replica that has caught up votes, and comes to know of it.
async fn add_at_once(runner: &Runner, node: NodeId, steps: &Steps) -> Step<()> {
    steps.running(0, "").await;
    let began = Instant::now();
    loop {
        let scene = runner.scene().await;
        let behind = |shard| scene.commit(shard).get().saturating_sub(scene.applied(node, shard).get());
        let behind = SHARDS.into_iter().map(behind).max().unwrap_or_default();
        if scene.report(node).is_some() && behind <= BEHIND_MAX {
            break;
        }
        if began.elapsed() > STALLED {
            let error = WireError::new(Code::Retry, format!("{node} is {behind} entries behind"));
            return Err(steps.failed(0, error).await);
        }
        tokio::time::sleep(LOOK).await;
    }
    steps.done(0, "").await;
    steps.running(1, "").await;
    for shard in SHARDS.into_iter().rev() {
        if replica_of(runner, shard, node).await.is_none() {
            let host = host(runner, node, 1, steps).await?;
            change(runner, shard, MembershipChange::AddVoter(host), 1, steps).await?;
        }
    }
    steps.done(1, "").await;
    takes_part(runner, node, 2, steps).await
}

/// A node in the incarnation it is in now.
async fn host(runner: &Runner, node: NodeId, step: usize, steps: &Steps) -> Step<Host> {
    match runner.report(node).await {
        Some(report) => Ok(Host { node, nonce: report.nonce }),
        None => {
            let error = WireError::new(Code::Retry, format!("{node} does not answer any more"));
            Err(steps.failed(step, error).await)
        }
    }
}

/// Waits until a node says that it is a member of every shard.
async fn takes_part(runner: &Runner, node: NodeId, step: usize, steps: &Steps) -> Step<()> {
    steps.running(step, "waits until it takes part").await;
    let began = Instant::now();
    loop {
        let report = runner.report(node).await;
        let takes_part = report.is_some_and(|report| {
            report.shards.len() == SHARDS.len() && report.shards.iter().all(|shard| shard.replica != ReplicaId::NONE)
        });
        if takes_part {
            break;
        }
        if began.elapsed() > STALLED {
            let error = WireError::new(Code::Retry, format!("{node} does not come back as a member"));
            let error = error.hint("it learns of it when it runs; `admin remove` takes it out again");
            return Err(steps.failed(step, error).await);
        }
        tokio::time::sleep(LOOK).await;
    }
    steps.done(step, format!("{node} takes part")).await;
    Ok(())
}

/// A voter hands over, votes no more, and is struck off if it is to be gone.
async fn leave(runner: &Runner, work: &Change, steps: &Steps) -> Step<()> {
    let Change { node, goal, successor, .. } = *work;
    steps.running(0, "").await;
    if let Some(to) = successor {
        for shard in SHARDS.into_iter().rev() {
            let leader = runner.forwarder.leader(shard);
            if leader.is_none_or(|leader| leader == node)
                && let Err(error) = hand_over(runner, shard, node, to).await
            {
                return Err(steps.failed(0, error).await);
            }
        }
    }
    steps.done(0, "").await;
    steps.running(1, "").await;
    for shard in SHARDS.into_iter().rev() {
        if let Some(replica) = replica_of(runner, shard, node).await {
            change(runner, shard, MembershipChange::Remove(replica), 1, steps).await?;
        }
    }
    steps.done(1, "").await;
    steps.running(2, "").await;
    match goal {
        Goal::Gone => strike(runner, node, steps).await?,
        _ => shipped(runner, node, steps).await?,
    }
    Ok(())
}

/// Waits until the node says that it is log-shipped.
async fn shipped(runner: &Runner, node: NodeId, steps: &Steps) -> Step<()> {
    let began = Instant::now();
    loop {
        let report = runner.report(node).await;
        if report.is_some_and(|report| {
            !report.shards.is_empty() && report.shards.iter().all(|shard| shard.replica == ReplicaId::NONE)
        }) {
            steps.done(2, format!("{node} is log-shipped")).await;
            return Ok(());
        }
        if began.elapsed() > STALLED {
            let error = WireError::new(Code::Retry, format!("{node} does not come back as a replica"));
            return Err(steps.failed(2, error.hint("it votes no more; look at its log")).await);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The catalog keeps that a node of this number was removed.
async fn strike(runner: &Runner, node: NodeId, steps: &Steps) -> Step<()> {
    let Some(driver) = runner.forwarder.driver() else {
        return Err(steps.failed(2, runner.forwarder.unavailable()).await);
    };
    let deadline = Instant::now() + CHANGE;
    loop {
        let known = driver.catalog().nodes.get(&node).cloned();
        if known.as_ref().is_some_and(NodeDesc::is_removed) {
            steps.done(2, format!("{node} is no node of the cluster any more")).await;
            return Ok(());
        }
        let put = Op::Put {
            key: Key::Catalog(CatalogKey::Node(node)).encode(),
            expect: known.as_ref().map(Descriptor::encode),
            value: Some(NodeDesc::removed(node).encode()),
        };
        let proposal = Proposal { ops: vec![put], ..Proposal::default() };
        // Seen in the catalog or not: that decides.
        let written = runner.forwarder.propose_anywhere(ShardId::META, &proposal, deadline).await;
        if let (Err(error), true) = (&written, Instant::now() > deadline) {
            let error = WireError::new(Code::Retry, format!("{node} could not be struck from the catalog: {error}"));
            return Err(steps.failed(2, error).await);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A node's replica, as a shard's leader has it.
async fn replica_of(runner: &Runner, shard: ShardId, node: NodeId) -> Option<ReplicaId> {
    runner.leaders_membership(shard).await?.member_on(node).map(|member| member.replica)
}

/// Asks for a change until it is made; what cannot be is a failure.
async fn change(runner: &Runner, shard: ShardId, change: MembershipChange, step: usize, steps: &Steps) -> Step<()> {
    let began = Instant::now();
    let (mut told, mut patience) = (String::new(), CHANGE);
    loop {
        let refused = match runner.forwarder.change(shard, change, Instant::now() + CHANGE).await {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        let is_so = matches!(
            (&refused, change),
            (Refused::AlreadyMember { .. }, MembershipChange::AddLearner(_) | MembershipChange::AddVoter(_))
                | (Refused::AlreadyVoter(_), MembershipChange::Promote(_))
                | (Refused::UnknownReplica(_), MembershipChange::Remove(_))
        );
        if is_so {
            return Ok(());
        }
        if matches!(refused, Refused::NotCaughtUp { .. }) {
            patience = STALLED;
        }
        let passes = matches!(
            refused,
            Refused::NotLeader(_)
                | Refused::NotReady(_)
                | Refused::InProgress
                | Refused::NotCaughtUp { .. }
                | Refused::Leads(_)
                | Refused::Unknown
        );
        if !passes || began.elapsed() > patience {
            let code = if refused == Refused::Unknown { Code::Unknown } else { Code::Conflict };
            let error = WireError::new(code, format!("{shard}: {refused}"));
            return Err(steps.failed(step, error.hint("`quorate status` shows who votes")).await);
        }
        let text = format!("{shard}: {refused}");
        if text != told {
            steps.running(step, text.clone()).await;
            told = text;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every leader's membership is as it should be, and the picture shows it.
async fn verify(runner: &Runner, work: &Change, steps: &Steps) -> Step<AdminOutcome> {
    let Change { node, goal, .. } = *work;
    let step = 3;
    steps.running(step, "").await;
    let began = Instant::now();
    let (mut voters, mut wrong) = (Vec::new(), String::from("nothing is known yet"));
    while began.elapsed() < CHANGE {
        wrong.clear();
        for shard in SHARDS {
            match runner.leaders_membership(shard).await {
                None => wrong = format!("{shard} has no leader that says who votes"),
                Some(membership) => {
                    let votes = membership.voters.iter().any(|m| m.node == node);
                    if votes != (goal == Goal::Vote) || membership.is_joint() {
                        wrong = format!("{shard}: the voters are {}", list(membership.voters.iter().map(|m| m.node)));
                    }
                    voters = membership.voters.iter().map(|m| m.node).collect();
                }
            }
        }
        let kind = runner.scene().await.kind(node);
        let seen = match goal {
            Goal::Vote => kind == Some(NodeKind::Voter),
            Goal::Ship => kind == Some(NodeKind::Replica),
            Goal::Gone => kind.is_none(),
        };
        if wrong.is_empty() && !seen {
            wrong = format!("the picture does not show it yet: {node} is {kind:?}");
        }
        if wrong.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    if !wrong.is_empty() {
        return Err(steps.failed(step, WireError::new(Code::Retry, wrong)).await);
    }
    let voters = list(voters);
    steps.done(step, format!("the voters are {voters}")).await;
    let what = match goal {
        Goal::Vote => "votes",
        Goal::Ship => "is a log-shipped replica",
        Goal::Gone => "is no node of the cluster any more",
    };
    Ok(AdminOutcome {
        done: true,
        summary: format!("{node} {what}; the voters are {voters}"),
        facts: facts([("voters", voters), ("elapsed_ms", steps.elapsed_ms().to_string())]),
        ..AdminOutcome::default()
    })
}
