//! Three voters: forwarding, failover, exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Sql, TestCluster, TestNode, eventually};

#[test]
fn a_voter_forwards_to_the_leader_and_reads_its_own_writes() {
    let mut cluster = TestCluster::started(3, 0);
    let master = cluster.master();
    let other = (1..=3).find(|id| *id != master).unwrap();
    let mut sql = Sql::on(cluster.node(other));
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, name TEXT)");
    sql.must("INSERT INTO t VALUES (1, 'one'), (2, 'two')");
    assert_eq!(sql.must("SELECT name FROM t ORDER BY id"), [["one"], ["two"]]);
    for id in 1..=3 {
        let mut sql = Sql::on(cluster.node(id));
        assert_eq!(sql.number("SELECT count(*) FROM t"), 2, "linearizable at n{id}");
    }
}

/// What a writer knows at the end.
struct Written {
    acknowledged: Vec<i64>,
    unknown: i64,
}

/// Inserts 1, 2, … and counts up one row, until told to stop.
fn write_on(mut sql: Sql, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Written> {
    std::thread::spawn(move || {
        let mut written = Written { acknowledged: Vec::new(), unknown: 0 };
        for id in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match sql.run(&format!("INSERT INTO log VALUES ({id})")) {
                Ok(_) => written.acknowledged.push(id),
                Err(error) if error.is_unknown() => {}
                Err(error) => panic!("insert {id}: {error:?}"),
            }
            match sql.run("UPDATE counter SET n = n + 1 WHERE id = 1") {
                Ok(_) => {}
                Err(error) if error.is_unknown() => written.unknown += 1,
                Err(error) => panic!("count {id}: {error:?}"),
            }
        }
        written
    })
}

#[test]
fn a_killed_leader_loses_nothing_and_catches_up() {
    let mut cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE log (id INT PRIMARY KEY)");
    sql.must("CREATE TABLE counter (id INT PRIMARY KEY, n INT NOT NULL)");
    sql.must("INSERT INTO counter VALUES (1, 0)");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_on(Sql::anywhere(&cluster), stop.clone());
    for _ in 0..2 {
        let before = sql.number("SELECT count(*) FROM log");
        eventually("writes run", || match sql.number("SELECT count(*) FROM log") {
            n if n > before + 20 => Ok(()),
            n => Err(n.to_string()),
        });
        let master = cluster.master();
        cluster.node(master).kill();
        let before = sql.number("SELECT count(*) FROM log");
        eventually("writes go on", || match sql.number("SELECT count(*) FROM log") {
            n if n > before + 20 => Ok(()),
            n => Err(n.to_string()),
        });
        cluster.node(master).start();
        cluster.wait_ready();
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().unwrap();
    let ids: Vec<i64> = sql.must("SELECT id FROM log").iter().map(|r| r[0].parse().unwrap()).collect();
    let lost: Vec<&i64> = written.acknowledged.iter().filter(|id| !ids.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let attempts = written.acknowledged.len() as i64;
    let n = sql.number("SELECT n FROM counter");
    assert!(n <= attempts + written.unknown + 1 && n + written.unknown >= attempts, "{n} of {attempts}");
    for id in 1..=3 {
        let (node, asked): (&TestNode, &TestNode) = (&cluster.nodes[&id], &cluster.nodes[&cluster.master()]);
        eventually(&format!("n{id} catches up"), || node.caught_up(asked));
        let mut local = Sql::on(node);
        local.must("SET read_level = local");
        assert_eq!(local.number("SELECT count(*) FROM log"), ids.len() as i64);
    }
}

#[test]
fn sigterm_hands_over_and_ends_cleanly() {
    let mut cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    let master = cluster.master();
    assert_eq!(cluster.node(master).terminate(), Some(0));
    sql.must("INSERT INTO t VALUES (1)");
    cluster.node(master).start();
    cluster.wait_ready();
    assert_eq!(sql.number("SELECT count(*) FROM t"), 1);
}

#[test]
fn a_full_disk_refuses_writes_and_reads_go_on() {
    let mut cluster = TestCluster::started(1, 0);
    let mut sql = Sql::on(cluster.node(1));
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    sql.must("INSERT INTO t VALUES (1)");
    cluster.node(1).kill();
    cluster.node(1).set_flag("--disk-reserve-mb", "1000000000");
    cluster.node(1).start();
    cluster.wait_ready();
    // The old connection went with the node: what was sent on it would have another answer.
    let mut sql = Sql::on(&cluster.nodes[&1]);
    let error = eventually("writes are refused", || match sql.run("UPDATE t SET id = 1 WHERE id = 1") {
        Ok(_) => Err("written".to_owned()),
        Err(error) => Ok(error.to_string()),
    });
    assert!(error.contains("disk"), "{error}");
    assert_eq!(sql.number("SELECT count(*) FROM t"), 1);
    let status = cluster.node(1).status().unwrap();
    assert!(status["problems"].to_string().contains("DiskLow"), "{status}");
    cluster.node(1).kill();
    cluster.node(1).set_flag("--disk-reserve-mb", "16");
    cluster.node(1).start();
    cluster.wait_ready();
    sql.must("INSERT INTO t VALUES (2)");
    assert_eq!(sql.number("SELECT count(*) FROM t"), 2);
}
