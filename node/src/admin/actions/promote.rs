//! Promotion: the node that is asked becomes the first voter of a new, fenced epoch.
//!
//! For one voter with replicas whose voter is gone, and for a lost quorum. What the old master acknowledged and this
//! replica does not have is lost: the plan says which entries those are, as far as anybody who answers knows.
//!
//! The node writes what is to be done beside its log and begins again in place; its start writes the epoch into the log.
//! So the action's outcome is looked at by the client, after the restart.

use quorate_shared::admin::{AdminOutcome, AdminPlan};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Epoch, NodeId};
use quorate_shared::status::NodeKind;

use super::switchover::unready;
use super::{Planned, Runner, Scene, Steps, Work};
use crate::driver::Failure;
use crate::founding::SHARDS;
use crate::store;

/// A promotion that nothing stands against.
pub(super) struct Promotion {
    number: u64,
}

/// Checks and plans. Pure.
pub(super) fn plan(scene: &Scene, node: NodeId, accept_loss: bool) -> Planned {
    let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
    if scene.kind(node) != Some(NodeKind::Replica) {
        refusals.push(format!("NotReplica: {node} votes; `switchover` hands it the leadership"));
    }
    refusals.extend(unready(scene, node));
    let risks = if accept_loss { &mut warnings } else { &mut refusals };
    let newer = scene.report(node).and_then(|report| report.newer).map(|epoch| epoch.number);
    if let Some(newer) = newer {
        risks.push(format!("MayLose: epoch {newer} has begun without {node}; what was acknowledged in it is lost"));
    }
    let number = scene.epoch(node).number.max(newer.unwrap_or_default()) + 1;
    for shard in SHARDS {
        if let Some(leader) = scene.leader(shard) {
            risks.push(format!(
                "MasterAlive: {leader} leads {shard} with a quorum; a new epoch takes its place by force"
            ));
        }
        let (have, known) = (scene.applied(node, shard), scene.commit(shard));
        if known > have {
            risks.push(format!(
                "MayLose: entries {} to {} of {shard} were acknowledged and are not on {node}",
                have.next(),
                known
            ));
        }
    }
    for voter in scene.voters().filter(|voter| *voter != node && scene.report(*voter).is_none()) {
        warnings.push(format!("what {voter} acknowledged and nobody who answers has heard of is lost too"));
    }
    warnings.push(format!(
        "{node} is the only voter of epoch {number}; every other node follows as a replica and can be made a voter again"
    ));
    warnings.push(
        "until the old voters have been reached they may go on by themselves; what they acknowledge is lost".into(),
    );
    let steps = vec![
        format!("{node} writes epoch {number} into its log and begins again in place"),
        format!("verify: {node} is the master of epoch {number}"),
    ];
    let title = format!("make {node} the first voter of epoch {number}");
    let work = if refusals.is_empty() { Work::Promote(Promotion { number }) } else { Work::Nothing };
    Planned { plan: AdminPlan { title, steps, warnings, refusals }, work }
}

/// Leaves the note and begins again. What it says is never the last word: the client looks.
pub(super) async fn carry_out(runner: &Runner, work: &Promotion, steps: &Steps) -> AdminOutcome {
    steps.running(0, "").await;
    let random = match store::random_bytes() {
        Ok(random) => random,
        Err(error) => return steps.failed(0, WireError::new(Code::Internal, error.to_string())).await,
    };
    let id = random.iter().take(8).fold(0u64, |id, byte| (id << 8) | u64::from(*byte));
    let epoch = Epoch { number: work.number, id };
    let directory = runner.reports.data();
    store::leave_note(directory, store::PROMOTE, &epoch.to_string());
    if !directory.join(store::PROMOTE).exists() {
        let error = WireError::new(Code::Internal, "the note of the new epoch cannot be written");
        return steps.failed(0, error).await;
    }
    steps.done(0, format!("begins epoch {}", epoch.number)).await;
    // Nobody listens any more when the node is stopping.
    let _ = runner.failures.send((Failure::Restart, format!("it begins epoch {}", epoch.number)));
    let message = format!("{} begins again; whether it leads epoch {} is to be looked at", runner.node, epoch.number);
    let error = WireError::new(Code::Unknown, message);
    AdminOutcome { summary: error.message.clone(), error: Some(error), ..AdminOutcome::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::{healthy, silence, with};

    #[test]
    fn an_epoch_that_has_begun_without_the_replica_is_not_begun_again() {
        let (four, mut gathered) = (NodeId::new(4), healthy());
        (1..=3).for_each(|voter| silence(&mut gathered, voter, None));
        gathered.asked = four;
        assert_eq!(plan(&Scene::new(gathered.clone()), four, false).plan.title, "make n4 the first voter of epoch 2");
        with(&mut gathered, 4, |report| report.newer = Some(Epoch { number: 2, id: 9 }));
        let refused = plan(&Scene::new(gathered.clone()), four, false).plan.refusals;
        assert_eq!(refused, ["MayLose: epoch 2 has begun without n4; what was acknowledged in it is lost"]);
        let accepted = plan(&Scene::new(gathered), four, true).plan;
        assert_eq!((accepted.title.as_str(), accepted.refusals.len()), ("make n4 the first voter of epoch 3", 0));
    }
}
