//! Switchover: the leadership of every shard goes to one voter, planned.
//!
//! Checks first: whoever is to lead must be a voter that answers, is healthy, has room on its disk and is close behind.
//! Then shard by shard, the data first, so that the master is the last to change. A probe goes through the leaders all
//! the while, as a write would; the longest time without an answer is the write gap.
//!
//! Left out: several data shards led by different nodes on purpose (the leaders follow the master here).

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::proposal::Proposal;
use quorate_shared::admin::{AdminOutcome, AdminPlan};
use quorate_shared::duration;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{NodeId, ShardId, Term};
use quorate_shared::status::{MemberStatus, NodeKind};
use tokio_util::sync::CancellationToken;

use super::{Leaders, Planned, Runner, Scene, Steps, Work, facts, list, node_id};
use crate::forward::Forwarder;
use crate::founding::SHARDS;
use crate::peers::message::Ask;
use crate::report::NodeState;

/// A voter further behind than this is not handed leadership: writes would wait for it.
const LAG_ENTRIES_MAX: u64 = 10_000;
/// The same in time.
const LAG_MS_MAX: u64 = 2_000;
/// How long one shard's hand-over may take before it is called failed.
const HAND_OVER: Duration = Duration::from_secs(5);
/// A target silent for so long is not handed anything again: while a leader hands over, writes wait.
const SILENT: Duration = Duration::from_secs(1);
/// Pause between two looks at who leads, and between two probes.
const LOOK: Duration = Duration::from_millis(2);
/// A probe that gets no answer for so long is given up.
const PROBE: Duration = Duration::from_secs(10);

/// What is to be handed over.
pub(super) struct Switchover {
    to: NodeId,
    /// Shards with their leaders, in the order they are handed over.
    moves: Vec<(ShardId, NodeId)>,
}

/// Checks and plans. Pure.
pub(super) fn plan(scene: &Scene, to: Option<NodeId>) -> Planned {
    let mut refusals = Vec::new();
    let mut leaders = Leaders::new();
    for shard in SHARDS {
        match scene.leader(shard) {
            Some(node) => drop(leaders.insert(shard, node)),
            None => refusals.push(format!("NoQuorum: {shard} has no leader that a quorum confirms")),
        }
    }
    let target = match to {
        Some(node) => {
            refusals.extend(unfit(scene, &leaders, node));
            Some(node)
        }
        None if refusals.is_empty() => {
            let best = best(scene, &leaders, None);
            if best.is_none() {
                refusals.push("NoTarget: no other voter is reachable, healthy and close behind".into());
            }
            best
        }
        None => None,
    };
    // The data shards first: the master is asked for most, and its change ends the action.
    let mut moves: Vec<(ShardId, NodeId)> = leaders.iter().map(|(shard, node)| (*shard, *node)).collect();
    moves.retain(|(_, from)| Some(*from) != target);
    moves.sort_by_key(|(shard, _)| std::cmp::Reverse(*shard));
    let named = target.map_or_else(|| "another voter".to_owned(), |to| to.to_string());
    let title = match moves.as_slice() {
        [] => format!("hand leadership to {named}"),
        moves => format!(
            "hand leadership of {} from {} to {named}",
            list(moves.iter().rev().map(|m| m.0)),
            list(distinct(moves))
        ),
    };
    let mut steps: Vec<String> =
        moves.iter().map(|(shard, from)| format!("{shard}: {from} hands leadership to {named}")).collect();
    steps.push("verify: every shard is led by it and answers".into());
    let plan = AdminPlan { title, steps, warnings: Vec::new(), refusals };
    let work = match (target, plan.refusals.is_empty()) {
        (Some(to), true) => Work::Switchover(Switchover { to, moves }),
        _ => Work::Nothing,
    };
    Planned { plan, work }
}

fn distinct(moves: &[(ShardId, NodeId)]) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = moves.iter().map(|m| m.1).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// What speaks against giving a node anything to do: it does not answer, is not healthy, or has no room.
pub(super) fn unready(scene: &Scene, node: NodeId) -> Vec<String> {
    let Some(report) = scene.report(node) else {
        let why = scene.silence(node).unwrap_or("it was not asked");
        return vec![format!("Unreachable: {node} does not answer ({why})")];
    };
    let mut refusals = Vec::new();
    match &report.state {
        NodeState::Ready => {}
        NodeState::Forming(why) => refusals.push(format!("NotReady: {node} does not serve yet ({why})")),
        NodeState::LostLog(why) => refusals.push(format!("NotReady: {node} has lost its log ({why})")),
        NodeState::Removed(why) => refusals.push(format!("Removed: {node} is no part of the cluster ({why})")),
        NodeState::Stopped(why) => refusals.push(format!("NotReady: a replica of {node} has stopped ({why})")),
    }
    if report.disk_low {
        refusals.push(format!("DiskLow: the disk of {node} is almost full; it would refuse every write"));
    }
    refusals
}

/// What speaks against a node as the leader of everything.
fn unfit(scene: &Scene, leaders: &Leaders, node: NodeId) -> Vec<String> {
    match scene.kind(node) {
        None => return vec![format!("UnknownNode: {node} is no node of this cluster")],
        Some(NodeKind::Replica) => {
            return vec![format!("NotVoter: {node} is a log-shipped replica; only voters lead")];
        }
        Some(NodeKind::Voter) => {}
    }
    if !leaders.is_empty() && leaders.len() == SHARDS.len() && leaders.values().all(|leader| *leader == node) {
        return vec![format!("AlreadyLeader: {node} leads every shard")];
    }
    let mut refusals = unready(scene, node);
    for (shard, leader) in leaders.iter().filter(|(_, leader)| **leader != node) {
        refusals.extend(member(scene, *shard, node).map_or_else(
            || Some(format!("NotVoter: {node} has no vote in {shard}, which {leader} leads")),
            |member| lagging(node, *shard, member),
        ));
    }
    refusals
}

fn member(scene: &Scene, shard: ShardId, node: NodeId) -> Option<&MemberStatus> {
    let (shard, node) = (shard.to_string(), node.to_string());
    let members = &scene.status.shards.iter().find(|s| s.id == shard)?.members;
    members.iter().find(|m| m.node == node && m.kind == NodeKind::Voter)
}

fn lagging(node: NodeId, shard: ShardId, member: &MemberStatus) -> Option<String> {
    let (Some(entries), Some(ms)) = (member.lag_entries, member.lag_ms) else {
        return Some(format!("LagUnknown: the leader of {shard} does not know how far {node} is"));
    };
    if entries <= LAG_ENTRIES_MAX && ms <= LAG_MS_MAX {
        return None;
    }
    let least = if member.lag_at_least { "at least " } else { "" };
    Some(format!(
        "Lagging: {node} is {entries} entries and {least}{} behind in {shard}; at most {LAG_ENTRIES_MAX} entries and \
         {} are allowed",
        duration::text(ms),
        duration::text(LAG_MS_MAX)
    ))
}

/// The voter that nothing speaks against and that is furthest; not the master, and not the one that is to go.
pub(super) fn best(scene: &Scene, leaders: &Leaders, goes: Option<NodeId>) -> Option<NodeId> {
    let master = leaders.get(&ShardId::META).copied();
    let others = scene.voters().filter(|node| Some(*node) != goes && (goes.is_some() || Some(*node) != master));
    // Who leads everything already is fit to take what is left.
    let leads_all = |node: NodeId| leaders.values().all(|leader| *leader == node);
    let fit = others.filter(|node| leads_all(*node) || unfit(scene, leaders, *node).is_empty());
    let behind = |node: NodeId| -> u64 {
        leaders.keys().filter_map(|shard| member(scene, *shard, node)).filter_map(|m| m.lag_entries).sum()
    };
    fit.min_by_key(|node| (behind(*node), *node))
}

/// Does it, and looks whether it is so.
pub(super) async fn carry_out(runner: &Runner, work: Switchover, steps: &Steps) -> AdminOutcome {
    let Switchover { to, moves } = work;
    let stop = CancellationToken::new();
    let probes: Vec<_> =
        moves.iter().map(|(shard, _)| tokio::spawn(probe(runner.forwarder.clone(), *shard, stop.clone()))).collect();
    let mut failed = None;
    for (step, (shard, from)) in moves.iter().enumerate() {
        steps.running(step, format!("asks {from}")).await;
        let began = Instant::now();
        match hand_over(runner, *shard, *from, to).await {
            Ok(term) => {
                steps.done(step, format!("{to} leads {shard} in {term}, {} ms", began.elapsed().as_millis())).await
            }
            Err(error) => {
                failed = Some(steps.failed(step, error).await);
                break;
            }
        }
    }
    let verified = match failed {
        None => verify(runner, to, &moves, steps).await,
        Some(outcome) => Err(outcome),
    };
    stop.cancel();
    let mut gap = Duration::ZERO;
    for probe in probes {
        gap = gap.max(probe.await.unwrap_or(PROBE));
    }
    let gap_ms = gap.as_millis().to_string();
    match verified {
        Err(outcome) => outcome,
        Ok(()) => AdminOutcome {
            done: true,
            summary: format!("{to} leads {}; writes waited {gap_ms} ms at most", list(SHARDS)),
            facts: facts([
                ("master", to.to_string()),
                ("write_gap_ms", gap_ms),
                ("elapsed_ms", steps.elapsed_ms().to_string()),
            ]),
            ..AdminOutcome::default()
        },
    }
}

/// One shard: asks its leader, then looks until the other one leads and evaluates.
pub(super) async fn hand_over(runner: &Runner, shard: ShardId, from: NodeId, to: NodeId) -> Result<Term, WireError> {
    let began = Instant::now();
    let mut from = from;
    let mut asked: Option<Instant> = None;
    let mut heard = Instant::now();
    let mut why = String::from("nothing was heard of it");
    while began.elapsed() < HAND_OVER {
        // The protocol gives up a transfer that takes an election timeout: it is asked for again then.
        if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            asked = Some(Instant::now());
            if let Err(error) = runner.ask(from, Ask::Transfer { shard, to }).await {
                why = error.message;
            }
        }
        match runner.leading(to, shard).await {
            Ok(leading) if leading.node == Some(to) && leading.ready => return Ok(leading.term),
            Ok(leading) => {
                heard = Instant::now();
                from = leading.node.filter(|node| *node != to).unwrap_or(from);
            }
            Err(error) => {
                why = error.message;
                if heard.elapsed() >= SILENT {
                    break;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    let message = format!("{to} does not lead {shard} after {} ms: {why}", began.elapsed().as_millis());
    Err(WireError::new(Code::Retry, message).hint("`quorate status` shows who leads; it can be tried again"))
}

/// Every shard is led by the target, as it and the picture say, and answers.
async fn verify(runner: &Runner, to: NodeId, moves: &[(ShardId, NodeId)], steps: &Steps) -> Result<(), AdminOutcome> {
    let step = moves.len();
    steps.running(step, "looks who leads").await;
    for shard in SHARDS {
        let leading = match runner.leading(to, shard).await {
            Ok(leading) => leading,
            Err(error) => return Err(steps.failed(step, error).await),
        };
        if leading.node != Some(to) || !leading.ready {
            let by = leading.node.map_or_else(|| "nobody".to_owned(), |node| node.to_string());
            let error = WireError::new(Code::Retry, format!("{shard} is led by {by}, not by {to}"));
            return Err(steps.failed(step, error).await);
        }
        let deadline = Instant::now() + HAND_OVER;
        if let Err(error) = runner.forwarder.propose_anywhere(shard, &Proposal::default(), deadline).await {
            let error = WireError::new(Code::Retry, format!("{shard} does not answer: {error}"));
            return Err(steps.failed(step, error).await);
        }
    }
    let scene = runner.scene().await;
    let master = scene.status.master.as_deref().and_then(node_id);
    if master != Some(to) {
        let by = master.map_or_else(|| "nobody".to_owned(), |node| node.to_string());
        let error = WireError::new(Code::Retry, format!("the picture shows {by} as master, not {to}"));
        return Err(steps.failed(step, error).await);
    }
    steps.done(step, format!("{} are led by {to} and answer", list(SHARDS))).await;
    Ok(())
}

/// Goes the way of a write again and again: evaluated by the leader, released when everything before it is applied and a
/// quorum has confirmed it. The longest time without an answer.
async fn probe(forwarder: Arc<Forwarder>, shard: ShardId, stop: CancellationToken) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    while !stop.is_cancelled() {
        let answered = forwarder.propose_anywhere(shard, &Proposal::default(), Instant::now() + PROBE).await.is_ok();
        longest = longest.max(last.elapsed());
        if answered {
            last = Instant::now();
        }
        tokio::time::sleep(LOOK).await;
    }
    longest
}
