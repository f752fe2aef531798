//! The JSON of `schema: 1`, fixed.

use super::*;

/// A picture with every field set.
pub(crate) fn example() -> ClusterStatus {
    let node = NodeStatus {
        id: "n1".into(),
        addr: "127.0.0.1:7411".into(),
        http: Some("127.0.0.1:7412".into()),
        kind: Some(NodeKind::Voter),
        reachable: true,
        reachable_by_peers: Some(2),
        error: None,
        version: Some("0.1.0".into()),
        uptime_ms: Some(61_000),
        disk_used_bytes: Some(1 << 20),
        disk_free_bytes: Some(1 << 30),
        memory_bytes: Some(50 << 20),
        sessions: Some(3),
        statements: Some(1200),
    };
    let dead = NodeStatus {
        id: "n2".into(),
        addr: "127.0.0.1:7511".into(),
        kind: Some(NodeKind::Voter),
        error: Some("connection refused".into()),
        ..NodeStatus::default()
    };
    let member = MemberStatus {
        node: "n4".into(),
        kind: NodeKind::Replica,
        sent: Some(812),
        durable: Some(812),
        applied: Some(811),
        lag_entries: Some(1),
        lag_bytes: Some(96),
        lag_ms: Some(4),
        lag_at_least: true,
        report_age_ms: Some(20),
        stuck_at: Some("apply".into()),
    };
    let shard = ShardStatus {
        id: "s1".into(),
        leader: Some("n1".into()),
        term: Some(3),
        commit: Some(812),
        confirmed: true,
        chain: Some("0123456789abcdef".into()),
        log_bytes: Some(4096),
        led_ms: Some(60_000),
        members: vec![member],
        replicator: Some("raft".into()),
        queue: Some(2),
    };
    ClusterStatus {
        schema: SCHEMA,
        cluster: Some("07".repeat(16)),
        taken_at: "2026-01-02T03:04:05.678Z".into(),
        verdict: Verdict::Critical,
        master: Some("n1".into()),
        asked: Some("n1".into()),
        nodes: vec![node, dead],
        shards: vec![shard],
        sessions: 3,
        archives: Vec::new(),
        problems: vec![Problem {
            name: "NodeUnreachable".into(),
            severity: Verdict::Critical,
            subject: "n2".into(),
            since: "2026-01-02T03:04:00.000Z".into(),
            hint: "look whether it runs".into(),
        }],
    }
}

#[test]
fn json_is_fixed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/status/golden.json");
    let now = serde_json::to_string_pretty(&example()).unwrap() + "\n";
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    assert_eq!(now, std::fs::read_to_string(path).unwrap());
    assert_eq!(serde_json::from_str::<ClusterStatus>(&now).unwrap(), example());
}

#[test]
fn a_kind_that_nobody_could_tell_is_null() {
    let node = NodeStatus::default();
    let json = serde_json::to_value(&node).unwrap();
    assert_eq!(json["kind"], serde_json::Value::Null);
    assert_eq!(serde_json::from_value::<NodeStatus>(json).unwrap(), node);
    for kind in [None, Some(NodeKind::Voter), Some(NodeKind::Replica)] {
        let node = NodeStatus { kind, ..NodeStatus::default() };
        let bytes = postcard::to_stdvec(&node).unwrap();
        assert_eq!(postcard::from_bytes::<NodeStatus>(&bytes).unwrap(), node);
    }
}

#[test]
fn verdicts_are_exit_codes() {
    let all = [Verdict::Ok, Verdict::Warning, Verdict::Critical, Verdict::Unknown];
    assert_eq!(all.map(Verdict::exit_code), [0, 1, 2, 3]);
    assert!(Verdict::Critical > Verdict::Warning);
}
