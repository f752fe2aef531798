//! The `paxos` replicator in a cluster: chosen at founding, nothing acknowledged is lost, replicas ship as ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_shared::admin::AdminAction;
use quorate_shared::ids::NodeId;

use crate::support::{Sql, TestCluster, eventually};

fn cluster(voters: u64, replicas: u64) -> TestCluster {
    let mut cluster = TestCluster::new(voters, replicas);
    (1..=voters).for_each(|id| cluster.node(id).set_flag("--replicator", "paxos"));
    cluster.start_all();
    cluster.wait_ready();
    cluster
}

/// Inserts 1, 2, … until told to stop: what was acknowledged, and the longest wait for one answer.
fn write_on(mut sql: Sql, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(Vec<i64>, Duration)> {
    std::thread::spawn(move || {
        let (mut acknowledged, mut longest) = (Vec::new(), Duration::ZERO);
        for id in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let asked = Instant::now();
            match sql.run(&format!("INSERT INTO log VALUES ({id})")) {
                Ok(_) => acknowledged.push(id),
                Err(error) if error.is_unknown() => {}
                Err(error) => panic!("insert {id}: {error:?}"),
            }
            longest = longest.max(asked.elapsed());
        }
        (acknowledged, longest)
    })
}

fn grows(sql: &mut Sql, what: &str) {
    let before = sql.number("SELECT count(*) FROM log");
    eventually(what, || match sql.number("SELECT count(*) FROM log") {
        n if n > before + 20 => Ok(()),
        n => Err(n.to_string()),
    });
}

/// Everything acknowledged is there.
fn has_all(sql: &mut Sql, acknowledged: &[i64]) -> usize {
    let ids: std::collections::BTreeSet<i64> =
        sql.must("SELECT id FROM log").iter().map(|r| r[0].parse().unwrap()).collect();
    let lost: Vec<&i64> = acknowledged.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    ids.len()
}

#[test]
fn a_leader_asked_to_go_has_another_do_it() {
    crate::roles::leaves_when_asked_itself(&cluster(3, 0));
}

#[test]
fn a_killed_leader_loses_nothing_and_the_replica_has_it_all() {
    let mut cluster = cluster(3, 1);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE log (id INT PRIMARY KEY)");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(Sql::anywhere(&cluster), stop.clone());
    for _ in 0..2 {
        grows(&mut sql, "writes run");
        let master = cluster.master();
        cluster.node(master).kill();
        grows(&mut sql, "writes go on");
        cluster.node(master).start();
        cluster.wait_ready();
    }
    stop.store(true, Ordering::Relaxed);
    let (acknowledged, longest) = writer.join().unwrap();
    println!("{} writes, the longest waited {longest:?} over two kills of the leader", acknowledged.len());
    let rows = has_all(&mut sql, &acknowledged);
    for id in 1..=4 {
        let (node, asked) = (&cluster.nodes[&id], &cluster.nodes[&cluster.master()]);
        eventually(&format!("n{id} catches up"), || node.caught_up(asked));
        let mut local = Sql::on(node);
        local.must("SET read_level = local");
        assert_eq!(local.number("SELECT count(*) FROM log"), rows as i64, "n{id}");
    }
    let status = cluster.nodes[&4].status().unwrap();
    let shards = status["shards"].as_array().unwrap();
    assert!(shards.iter().all(|shard| shard["replicator"] == "paxos" && shard["queue"].is_u64()), "{status}");
}

#[test]
fn a_dead_voter_is_replaced_while_writes_go_on() {
    let mut cluster = cluster(3, 1);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE log (id INT PRIMARY KEY)");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(Sql::anywhere(&cluster), stop.clone());
    grows(&mut sql, "writes run");
    let dead = cluster.master();
    cluster.node(dead).kill();
    grows(&mut sql, "writes go on without it");
    let one = (1..=3).find(|id| *id != dead).unwrap();
    let asked = &cluster.nodes[&one];
    let n = NodeId::new;
    let why = Sql::on(asked).refused(AdminAction::Promote { accept_loss: true });
    assert!(why.contains("Unsupported: the paxos replicator"), "{why}");
    let facts = Sql::on(asked).act(AdminAction::RemoveNode { node: n(dead) });
    assert!(!facts["voters"].contains(&format!("n{dead}")), "{facts:?}");
    let last = (1..=3).find(|id| *id != dead && *id != one).unwrap();
    let why = Sql::on(asked).refused(AdminAction::DemoteVoter { node: n(last) });
    assert!(why.contains("Unsupported: the paxos replicator needs at least two voters"), "{why}");
    let facts = Sql::on(asked).act(AdminAction::AddVoter { node: n(4) });
    assert!(facts["voters"].contains("n4"), "{facts:?}");
    grows(&mut sql, "writes go on with the new voter");
    // It counts: the two that are left of three are a majority only with it.
    cluster.node(last).kill();
    grows(&mut sql, "writes go on with the new voter as half of the majority");
    cluster.node(last).start();
    stop.store(true, Ordering::Relaxed);
    let (acknowledged, longest) = writer.join().unwrap();
    println!("{} writes, the longest waited {longest:?} over the replacement", acknowledged.len());
    let rows = has_all(&mut sql, &acknowledged);
    for id in [one, last, 4] {
        let (node, asked) = (&cluster.nodes[&id], &cluster.nodes[&cluster.master()]);
        eventually(&format!("n{id} catches up"), || node.caught_up(asked));
        let mut local = Sql::on(node);
        local.must("SET read_level = local");
        assert_eq!(local.number("SELECT count(*) FROM log"), rows as i64, "n{id}");
    }
}

#[test]
fn a_voter_that_lost_everything_votes_again() {
    let mut cluster = cluster(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE log (id INT PRIMARY KEY)");
    sql.must("INSERT INTO log VALUES (1)");
    let (master, lost) = (cluster.master(), cluster.master() % 3 + 1);
    let other = (1..=3).find(|id| *id != master && *id != lost).unwrap();
    cluster.node(lost).kill();
    cluster.node(lost).wipe();
    cluster.node(lost).start();
    eventually("it votes again, under another id", || {
        let log = cluster.nodes[&lost].log_text();
        if log.contains("this voter is whole again") { Ok(()) } else { Err(log) }
    });
    cluster.node(other).kill();
    sql.must("INSERT INTO log VALUES (2)");
    assert_eq!(sql.number("SELECT count(*) FROM log"), 2);
}

#[test]
fn leadership_is_handed_over() {
    let cluster = cluster(3, 0);
    let master = cluster.settled();
    let to = master % 3 + 1;
    Sql::on(&cluster.nodes[&master]).act(AdminAction::Switchover { to: Some(NodeId::new(to)) });
    assert_eq!(cluster.master(), to);
}

#[test]
fn requests_are_taken_at_any_node() {
    let cluster = cluster(3, 0);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, at INT)");
    for id in 1..=3 {
        let mut sql = Sql::on(&cluster.nodes[&id]);
        sql.must(&format!("INSERT INTO t VALUES ({id}, {id})"));
        assert_eq!(sql.number("SELECT count(*) FROM t"), id as i64, "linearizable at n{id}");
    }
}

#[test]
fn a_cluster_keeps_the_replicator_it_was_founded_with() {
    let mut cluster = cluster(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    let other = (1..=3).find(|id| *id != cluster.master()).unwrap();
    cluster.node(other).kill();
    cluster.node(other).set_flag("--replicator", "raft");
    cluster.node(other).start();
    eventually("it is refused by name", || {
        let log = cluster.nodes[&other].log_text();
        if log.contains("was founded with paxos") { Ok(()) } else { Err(log) }
    });
    cluster.node(other).kill();
    cluster.node(other).set_flag("--replicator", "paxos");
    cluster.node(other).start();
    cluster.wait_ready();
    sql.must("INSERT INTO t VALUES (1)");
}
