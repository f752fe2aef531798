//! The merge, rule by rule.

use quorate_core::membership::Membership;
use quorate_shared::ids::{ClusterId, Epoch, Index, Nonce, ReplicaId};
use quorate_shared::status::Problem;

use super::*;
use crate::report::ShardReport;

const NOW: u64 = 1_767_322_445_678;

/// A report of a healthy node.
pub(crate) fn report(node: u64, state: NodeState) -> NodeReport {
    NodeReport {
        node: NodeId::new(node),
        kind: if node == 4 { NodeKind::Replica } else { NodeKind::Voter },
        address: format!("127.0.0.1:741{node}"),
        http: None,
        cluster: Some(ClusterId([7; 16])),
        version: "0.1.0".into(),
        state,
        uptime_ms: 3_600_000,
        disk_used_bytes: 1000,
        disk_free_bytes: 1 << 30,
        disk_low: false,
        sync_running_ms: 0,
        memory_bytes: 50 << 20,
        sessions: node,
        statements: 10 * node,
        engine_rebuilt: None,
        shards: [0, 1].into_iter().map(|shard| follower(shard, 100 + node)).collect(),
        heard: (1..=4).filter(|other| *other != node).map(|other| (NodeId::new(other), Some(100))).collect(),
        dropped: 0,
        clock_ms: NOW,
        diverged: Vec::new(),
        archives: Vec::new(),
        nonce: Nonce([node as u8; 16]),
        epoch: Epoch { number: 1, id: 1 },
        rivals: Vec::new(),
        newer: None,
        twins: Vec::new(),
    }
}

/// n1, n2 and n3 vote, under the ids of their nodes.
fn membership() -> Membership {
    Membership::of_voters((1..=3).map(|n| (ReplicaId::new(n), NodeId::new(n))))
}

fn follower(shard: u64, applied: u64) -> ShardReport {
    ShardReport {
        shard: ShardId::new(shard),
        leads: false,
        status: ShardStatus { id: format!("s{shard}"), term: Some(3), commit: Some(applied), ..ShardStatus::default() },
        durable: Index::new(applied),
        applied: Index::new(applied),
        stopped: None,
        replica: ReplicaId::new(1),
        membership: membership(),
    }
}

fn member(node: u64, lag_ms: u64) -> MemberStatus {
    MemberStatus {
        node: format!("n{node}"),
        kind: if node == 4 { NodeKind::Replica } else { NodeKind::Voter },
        sent: Some(110),
        durable: Some(109),
        applied: Some(108),
        lag_entries: Some(2),
        lag_bytes: Some(64),
        lag_ms: Some(lag_ms),
        lag_at_least: false,
        report_age_ms: Some(20),
        stuck_at: None,
    }
}

fn leader(shard: u64) -> ShardReport {
    let status = ShardStatus {
        id: format!("s{shard}"),
        term: Some(3),
        commit: Some(110),
        confirmed: true,
        chain: Some("00ff".into()),
        replicator: Some("raft".into()),
        queue: Some(0),
        log_bytes: Some(4096),
        led_ms: Some(60_000),
        members: vec![member(4, 0), member(2, 0), member(1, 0), member(3, 0)],
        ..ShardStatus::default()
    };
    ShardReport { leads: true, status, ..follower(shard, 110) }
}

/// Three voters led by n1, and the replica n4; asked is n1.
pub(crate) fn healthy() -> Gathered {
    let mut gathered = Gathered { now_ms: NOW, asked: NodeId::new(1), ..Gathered::default() };
    for node in 1..=4 {
        let mut report = report(node, NodeState::Ready);
        if node == 1 {
            report.shards = vec![leader(0), leader(1)];
        }
        gathered.known.push(NodeAddress { node: report.node, address: report.address.clone(), kind: report.kind });
        let answer = Answer { report, asked_ms: NOW - 3, answered_ms: NOW + 3 };
        gathered.answers.insert(NodeId::new(node), Ok(answer));
    }
    gathered
}

pub(crate) fn with(gathered: &mut Gathered, node: u64, change: impl FnOnce(&mut NodeReport)) {
    change(&mut gathered.answers.get_mut(&NodeId::new(node)).unwrap().as_mut().unwrap().report);
}

/// A node stops answering; the others last heard it so long ago.
pub(crate) fn silence(gathered: &mut Gathered, node: u64, heard_ms: Option<u64>) {
    gathered.answers.insert(NodeId::new(node), Err("connection refused".into()));
    for answer in gathered.answers.values_mut().filter_map(|answer| answer.as_mut().ok()) {
        answer.report.heard.iter_mut().filter(|(of, _)| of.get() == node).for_each(|(_, ms)| *ms = heard_ms);
    }
}

fn picture(gathered: &Gathered) -> ClusterStatus {
    merge(gathered, &mut Since::new())
}

/// `name subject severity` of each problem.
fn named(status: &ClusterStatus) -> Vec<String> {
    let text = |p: &Problem| format!("{} {} {}", p.name, p.subject, p.severity);
    status.problems.iter().map(text).collect()
}

#[test]
fn a_healthy_cluster() {
    let status = picture(&healthy());
    assert_eq!(named(&status), [""; 0]);
    assert_eq!(status.verdict, Verdict::Ok);
    assert_eq!(status.master.as_deref(), Some("n1"));
    assert_eq!(status.taken_at, "2026-01-02T02:54:05.678Z");
    assert_eq!(status.sessions, 10);
    let members: Vec<_> = status.shards[1].members.iter().map(|member| member.node.as_str()).collect();
    assert_eq!(members, ["n1", "n2", "n3", "n4"], "voters first, by number");
    assert_eq!(status.nodes[1].reachable_by_peers, Some(2));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/golden.json");
    let json = serde_json::to_string_pretty(&status).unwrap() + "\n";
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, &json).unwrap();
    }
    assert_eq!(json, std::fs::read_to_string(path).unwrap());
}

#[test]
fn a_dead_node_stays_in_the_list() {
    let mut gathered = healthy();
    silence(&mut gathered, 3, Some(9_000));
    let status = picture(&gathered);
    assert_eq!(named(&status), ["NodeDown n3 critical"]);
    assert_eq!(status.problems[0].since, time_text(NOW - 9_000));
    let dead = &status.nodes[2];
    assert_eq!((dead.reachable, dead.reachable_by_peers), (false, Some(0)));
    assert_eq!(dead.error.as_deref(), Some("connection refused"));
    assert_eq!((dead.memory_bytes, dead.sessions), (None, None), "unknown is not 0");
}

#[test]
fn a_dead_replica_is_a_warning() {
    let mut gathered = healthy();
    silence(&mut gathered, 4, None);
    let status = picture(&gathered);
    assert_eq!(named(&status), ["NodeDown n4 warning"]);
    assert_eq!(status.verdict, Verdict::Warning);
}

#[test]
fn a_node_that_others_hear_is_not_down() {
    let mut gathered = healthy();
    silence(&mut gathered, 2, Some(50));
    let status = picture(&gathered);
    assert_eq!(named(&status), ["NodeUnreachable n2 critical"]);
    assert_eq!(status.nodes[1].reachable_by_peers, Some(2));
}

#[test]
fn of_one_that_has_just_fallen_silent_nobody_is_said_to_hear() {
    let hint = |own: Option<u64>, peers: Option<u64>| {
        let mut gathered = healthy();
        silence(&mut gathered, 2, peers);
        with(&mut gathered, 1, |report| report.heard.iter_mut().filter(|h| h.0.get() == 2).for_each(|h| h.1 = own));
        let problem = picture(&gathered).problems.remove(0);
        (problem.name, problem.hint.contains("other nodes hear it"))
    };
    assert_eq!(hint(Some(900), Some(850)), ("NodeUnreachable".into(), false));
    assert_eq!(hint(Some(60), Some(300)), ("NodeUnreachable".into(), false));
    assert_eq!(hint(Some(9_000), Some(300)), ("NodeUnreachable".into(), true));
    assert_eq!(hint(None, Some(300)), ("NodeUnreachable".into(), true));
    assert_eq!(hint(Some(1_100), Some(1_050)), ("NodeDown".into(), false));
}

#[test]
fn voters_that_are_starting_need_not_be_started() {
    let mut gathered = healthy();
    for node in 1..=3 {
        let state = NodeState::Forming("it waits for the catalog's first entry".into());
        with(&mut gathered, node, |report| report.state = state);
    }
    with(&mut gathered, 1, |report| report.shards = vec![follower(0, 0)]);
    let status = picture(&gathered);
    let leaderless = status.problems.iter().filter(|p| p.severity == Verdict::Critical);
    assert!(leaderless.clone().count() > 0 && leaderless.clone().all(|p| p.name == "LeaderUnconfirmed"), "{status:?}");
    let forming = status.problems.iter().find(|p| p.name == "ClusterForming").unwrap();
    assert_eq!(forming.hint, "it waits for the catalog's first entry", "said once");
}

#[test]
fn a_second_node_of_one_number_is_one_problem_whoever_met_it() {
    let mut gathered = healthy();
    for node in [2, 3] {
        with(&mut gathered, node, |report| report.twins = vec![(NodeId::new(2), "127.0.0.1:9".into())]);
    }
    let status = picture(&gathered);
    assert_eq!(named(&status), ["DuplicateNode n2 warning"]);
    assert!(status.problems[0].hint.contains("127.0.0.1:9"));
}

#[test]
fn alone_nobody_is_called_down() {
    let mut gathered = healthy();
    for node in 2..=4 {
        silence(&mut gathered, node, Some(60_000));
    }
    with(&mut gathered, 1, |report| report.shards.iter_mut().for_each(|shard| shard.status.confirmed = false));
    let status = picture(&gathered);
    let expect = [
        "NoQuorum s0 critical",
        "NoQuorum s1 critical",
        "NodeUnreachable n2 critical",
        "NodeUnreachable n3 critical",
        "NodeUnreachable n4 warning",
    ];
    assert_eq!(named(&status), expect);
    assert_eq!((status.master, status.nodes.len()), (None, 4));
    let shard = &status.shards[1];
    assert_eq!((shard.leader.as_ref(), shard.commit, shard.members.len()), (None, Some(110), 4));
    assert!(shard.members.iter().all(|member| member.lag_ms.is_none() && member.lag_entries.is_none()));
}

#[test]
fn an_election_is_not_a_lost_quorum() {
    let mut gathered = healthy();
    with(&mut gathered, 1, |report| report.shards[1] = follower(1, 110));
    let status = picture(&gathered);
    assert_eq!(named(&status), ["LeaderUnconfirmed s1 critical"]);
    assert_eq!(status.shards[1].members.len(), 4);
    assert_eq!(status.shards[1].members[0].applied, Some(110));
    assert_eq!(status.shards[1].commit, Some(110));
}

#[test]
fn the_confirmed_leader_of_two_is_right() {
    let mut gathered = healthy();
    with(&mut gathered, 3, |report| {
        let mut old = leader(1);
        old.status.term = Some(2);
        old.status.commit = Some(50);
        report.shards[1] = old;
    });
    assert_eq!(picture(&gathered).shards[1].leader.as_deref(), Some("n1"));
    with(&mut gathered, 1, |report| report.shards[1].status.confirmed = false);
    assert_eq!(picture(&gathered).shards[1].leader.as_deref(), Some("n3"));
}

#[test]
fn a_voter_without_its_log_does_not_count() {
    let mut gathered = healthy();
    for node in [2, 3] {
        with(&mut gathered, node, |report| report.state = NodeState::LostLog("wiped".into()));
    }
    with(&mut gathered, 1, |report| report.shards = vec![follower(0, 1)]);
    let status = picture(&gathered);
    let expect = ["LogLost n2 critical", "LogLost n3 critical", "NoQuorum s0 critical", "NoQuorum s1 critical"];
    assert_eq!(named(&status), expect);
    assert_eq!(status.nodes[1].error.as_deref(), Some("lost its log: wiped"));
}

#[test]
fn lag() {
    let mut gathered = healthy();
    with(&mut gathered, 1, |report| {
        report.shards[0].status.members[0] = member(4, 6_000);
        report.shards[1].status.members[0] =
            MemberStatus { stuck_at: Some("apply".into()), lag_at_least: true, ..member(4, 11_000) };
        report.shards[1].status.members[1] = MemberStatus { stuck_at: Some("send".into()), ..member(2, 100) };
    });
    let status = picture(&gathered);
    assert_eq!(
        named(&status),
        ["ReplicaStalled s1/n4 critical", "ReplicaLagging s0/n4 warning", "ReplicaStalled s1/n2 warning",]
    );
    assert_eq!(status.problems[0].since, time_text(NOW - 11_000));
    let mut behind = healthy();
    with(&mut behind, 1, |report| {
        report.shards[1].status.members[0] = MemberStatus { stuck_at: Some("snapshot".into()), ..member(4, 90_000) };
    });
    assert_eq!(named(&picture(&behind)), ["NeedsSnapshot s1/n4 warning"]);
    // One cause, one problem; but a node that only n1 cannot reach may be behind or not.
    let stalled = "ReplicaStalled s1/n2 warning";
    silence(&mut gathered, 4, Some(60_000));
    assert_eq!(named(&picture(&gathered)), ["NodeDown n4 warning", stalled]);
    silence(&mut gathered, 4, Some(60));
    let expect =
        ["ReplicaStalled s1/n4 critical", "NodeUnreachable n4 warning", "ReplicaLagging s0/n4 warning", stalled];
    assert_eq!(named(&picture(&gathered)), expect);
}

#[test]
fn what_nodes_say_of_themselves() {
    let mut gathered = healthy();
    with(&mut gathered, 2, |report| {
        report.disk_low = true;
        report.sync_running_ms = 3_000;
        report.engine_rebuilt = Some("another boot".into());
        report.uptime_ms = 1_000;
        report.version = "0.2.0".into();
        report.clock_ms = NOW + 700;
        report.shards[1].stopped = Some("diverged".into());
    });
    with(&mut gathered, 3, |report| {
        report.clock_ms = NOW - 400;
        report.engine_rebuilt = Some("long ago".into());
    });
    with(&mut gathered, 4, |report| report.state = NodeState::Forming("n1".into()));
    let expect = [
        "DiskLow n2 critical",
        "DiskStalled n2 critical",
        "ReplicaStopped s1/n2 critical",
        "ClockSkew n2 warning",
        "ClusterForming n4 warning",
        "EngineRebuilt n2 warning",
        "VersionSkew n2 warning",
    ];
    assert_eq!(named(&picture(&gathered)), expect);
}

#[test]
fn two_epochs_of_one_number_are_one_problem() {
    let mut gathered = healthy();
    let other = Epoch { number: 1, id: 2 };
    for node in [1, 2] {
        with(&mut gathered, node, |report| report.rivals = vec![(NodeId::new(3), other)]);
    }
    silence(&mut gathered, 3, Some(60_000));
    assert_eq!(named(&picture(&gathered)), ["TwoEpochs n3 critical"], "not down besides");
}

#[test]
fn a_node_of_another_cluster_is_no_answer() {
    let mut gathered = healthy();
    with(&mut gathered, 2, |report| report.cluster = Some(ClusterId([8; 16])));
    let status = picture(&gathered);
    assert!(!status.nodes[1].reachable);
    assert!(status.nodes[1].error.as_ref().unwrap().starts_with("it belongs to another cluster"));
}

#[test]
fn a_member_its_leader_never_heard_of_is_shown() {
    let mut gathered = healthy();
    gathered.known.push(NodeAddress { node: NodeId::new(5), address: "x:1".into(), kind: NodeKind::Replica });
    gathered.answers.insert(NodeId::new(5), Err("no answer".into()));
    let status = picture(&gathered);
    let member = status.shards[1].members.last().unwrap();
    assert_eq!((member.node.as_str(), member.applied, member.lag_ms), ("n5", None, Some(60_000)));
    assert!(named(&status).contains(&"NodeUnreachable n5 warning".into()), "{:?}", named(&status));
}

#[test]
fn a_replica_its_leader_never_heard_of_is_behind_by_as_long_as_it_leads() {
    let silent = |led_ms| {
        let mut gathered = healthy();
        let Some(Ok(answer)) = gathered.answers.get_mut(&NodeId::new(1)) else { panic!() };
        answer.report.shards[1].status.members.retain(|m| m.node != "n4");
        answer.report.shards[1].status.led_ms = Some(led_ms);
        picture(&gathered)
    };
    let [just, long] = [0, 5_000].map(silent);
    let lag = |status: &ClusterStatus| {
        let member = status.shards[1].members.iter().find(|m| m.node == "n4").unwrap();
        (member.lag_ms, member.lag_at_least, member.stuck_at.clone())
    };
    assert_eq!(lag(&just), (Some(1), true, None));
    assert_eq!(lag(&long), (Some(5_000), true, Some("send".into())));
    assert!(named(&long).iter().any(|p| p.starts_with("ReplicaStalled s1/n4")), "{:?}", named(&long));
}

#[test]
fn since_is_kept_while_a_problem_lasts() {
    let mut since = Since::new();
    let mut gathered = healthy();
    with(&mut gathered, 2, |report| report.disk_low = true);
    let first = merge(&gathered, &mut since).problems[0].since.clone();
    gathered.now_ms += 5_000;
    assert_eq!(merge(&gathered, &mut since).problems[0].since, first);
    with(&mut gathered, 2, |report| report.disk_low = false);
    assert!(merge(&gathered, &mut since).problems.is_empty());
    assert!(since.is_empty());
    with(&mut gathered, 2, |report| report.disk_low = true);
    assert_eq!(merge(&gathered, &mut since).problems[0].since, time_text(NOW + 5_000));
}

#[test]
fn metrics_show_the_same() {
    let mut gathered = healthy();
    silence(&mut gathered, 3, None);
    let own = gathered.report(gathered.asked).unwrap().clone();
    let text = crate::metrics::render(&own, &picture(&gathered), &crate::metrics::Meters::default());
    for line in [
        "quorate_verdict 2",
        "quorate_node_up{node=\"n3\"} 0",
        "quorate_problem{name=\"NodeDown\",severity=\"critical\",subject=\"n3\"} 1",
        "quorate_member_lag_entries{shard=\"s1\",node=\"n4\",kind=\"replica\"} 2",
        "quorate_shard_leader{shard=\"s1\"} 1",
        "quorate_uptime_seconds 3600",
        "quorate_peer_heard_seconds{node=\"n2\"} 0.1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn health() {
    use crate::serve::http::sick;
    let mut own = report(1, NodeState::Ready);
    assert_eq!(sick(&own).as_deref(), Some("s0 has no leader"));
    own.shards.iter_mut().for_each(|shard| shard.status.leader = Some("n2".into()));
    assert_eq!(sick(&own), None);
    own.disk_low = true;
    assert_eq!(sick(&own), None, "reads go on");
    own.state = NodeState::LostLog("wiped".into());
    assert!(sick(&own).is_some());
    assert_eq!(sick(&report(4, NodeState::Ready)), None, "a replica answers local reads");
}
