//! What is refused, by name, and what is planned.

use quorate_shared::ids::NodeId;

use super::switchover;
use super::*;
use crate::admin::tests::{healthy, silence, with};
use crate::report::NodeState;

fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

fn switchover_refusals(gathered: Gathered, to: u64) -> String {
    switchover::plan(&Scene::new(gathered), Some(n(to))).plan.refusals.join("\n")
}

#[test]
fn a_switchover_is_planned_data_first() {
    let planned = switchover::plan(&Scene::new(healthy()), Some(n(3)));
    assert_eq!(planned.plan.title, "hand leadership of s0, s1 from n1 to n3");
    assert_eq!(planned.plan.refusals, [""; 0]);
    assert_eq!(planned.plan.steps[..2], ["s1: n1 hands leadership to n3", "s0: n1 hands leadership to n3"]);
    let chosen = switchover::plan(&Scene::new(healthy()), None);
    assert_eq!(chosen.plan.title, "hand leadership of s0, s1 from n1 to n2", "the lowest of equals");
}

#[test]
fn what_a_switchover_is_refused_for() {
    assert!(switchover_refusals(healthy(), 9).starts_with("UnknownNode: n9"));
    assert!(switchover_refusals(healthy(), 4).starts_with("NotVoter: n4"));
    assert!(switchover_refusals(healthy(), 1).starts_with("AlreadyLeader: n1"));
    let mut silent = healthy();
    silence(&mut silent, 2, Some(5_000));
    assert_eq!(switchover_refusals(silent.clone(), 2), "Unreachable: n2 does not answer (connection refused)");
    assert!(switchover_refusals(silent, 3).is_empty(), "another voter can still be chosen");
    let mut full = healthy();
    with(&mut full, 2, |report| report.disk_low = true);
    assert!(switchover_refusals(full, 2).starts_with("DiskLow: the disk of n2"));
    let mut lost = healthy();
    with(&mut lost, 2, |report| report.state = NodeState::LostLog("wiped".into()));
    assert!(switchover_refusals(lost, 2).starts_with("NotReady: n2 has lost its log"));
    let mut behind = healthy();
    with(&mut behind, 1, |report| {
        let member = report.shards[1].status.members.iter_mut().find(|m| m.node == "n2").unwrap();
        (member.lag_entries, member.lag_ms, member.lag_at_least) = (Some(20_000), Some(7_300), true);
    });
    let refused = switchover_refusals(behind.clone(), 2);
    assert!(refused.starts_with("Lagging: n2 is 20000 entries and at least 7.3 s behind in s1"), "{refused}");
    let chosen = switchover::plan(&Scene::new(behind), None);
    assert!(chosen.plan.title.ends_with("to n3"), "{}", chosen.plan.title);
}

#[test]
fn a_switchover_without_a_confirmed_leader_is_refused() {
    let mut gathered = healthy();
    with(&mut gathered, 1, |report| report.shards[0].status.confirmed = false);
    assert!(switchover_refusals(gathered, 2).contains("NoQuorum: s0 has no leader"));
}
