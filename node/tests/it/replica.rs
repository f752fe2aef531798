//! A log-shipped replica: follows, refuses writes, rebuilds itself.

use quorate_shared::client::ClientError;
use quorate_shared::error::{Code, WireError};

use crate::support::{Sql, TestCluster, eventually};

fn refusal(result: Result<quorate_shared::client::ResultSet, ClientError>) -> WireError {
    match result {
        Err(ClientError::Server(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

fn loaded() -> (TestCluster, Sql) {
    let cluster = TestCluster::started(1, 1);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, name TEXT)");
    sql.must("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')");
    (cluster, sql)
}

fn follows(cluster: &TestCluster, rows: i64) {
    let mut replica = Sql::on(&cluster.nodes[&2]);
    assert_eq!(replica.number("SELECT count(*) FROM t"), rows);
    eventually("the replica catches up", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
}

#[test]
fn reads_everything_and_refuses_every_write() {
    let (cluster, _sql) = loaded();
    follows(&cluster, 3);
    let mut replica = Sql::on(&cluster.nodes[&2]);
    let master = cluster.nodes[&1].address();
    let writes = [
        "INSERT INTO t VALUES (4, 'four')",
        "UPDATE t SET name = 'x' WHERE id = 1",
        "DELETE FROM t",
        "CREATE TABLE u (id INT)",
        "DROP TABLE t",
        "CREATE DATABASE d",
    ];
    for write in writes {
        let error = refusal(replica.run(write));
        assert_eq!(error.code, Code::ReadOnly, "{write}: {error:?}");
        assert!(error.hint.as_deref().is_some_and(|h| h.contains(&master)), "{write}: {error:?}");
    }
    replica.must("SET read_level = local");
    assert_eq!(replica.number("SELECT count(*) FROM t"), 3);
}

#[test]
fn catches_up_after_a_stop_and_rebuilds_after_a_wipe_or_damage() {
    let (mut cluster, mut sql) = loaded();
    follows(&cluster, 3);
    cluster.node(2).kill();
    sql.must("INSERT INTO t VALUES (4, 'four')");
    cluster.node(2).start();
    follows(&cluster, 4);
    cluster.node(2).kill();
    cluster.node(2).wipe();
    cluster.node(2).start();
    follows(&cluster, 4);
    cluster.node(2).kill();
    let engine = cluster.node(2).data.join("engine");
    damage(&engine);
    cluster.node(2).start();
    follows(&cluster, 4);
    sql.must("INSERT INTO t VALUES (5, 'five')");
    follows(&cluster, 5);
}

/// Overwrites the middle of every file of the engine.
fn damage(engine: &std::path::Path) {
    for entry in engine.read_dir().unwrap().flatten() {
        if entry.metadata().unwrap().is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            let (from, to) = (bytes.len() / 4, bytes.len() / 2);
            let mut damaged = bytes;
            damaged[from..to].iter_mut().for_each(|b| *b ^= 0x5a);
            std::fs::write(entry.path(), damaged).unwrap();
        }
    }
}

#[test]
fn cut_off_it_says_so_and_hints_at_local() {
    let (mut cluster, _sql) = loaded();
    follows(&cluster, 3);
    cluster.node(1).kill();
    let mut replica = Sql::on(&cluster.nodes[&2]);
    replica.must("SET statement_timeout = 1000");
    let error = refusal(replica.run("SELECT count(*) FROM t"));
    assert!(error.hint.as_deref().is_some_and(|h| h.contains("read_level = local")), "{error:?}");
    replica.must("SET read_level = local");
    assert_eq!(replica.number("SELECT count(*) FROM t"), 3);
}

#[test]
fn two_replicas_of_each_other_do_not_keep_each_other_young() {
    let mut cluster = TestCluster::started(1, 2);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    for (node, other) in [(2, 3), (3, 2)] {
        eventually("the replica catches up", || cluster.nodes[&node].caught_up(&cluster.nodes[&1]));
        let other = cluster.nodes[&other].address();
        cluster.node(node).set_flag("--replica-of", &other);
    }
    cluster.node(1).kill();
    for node in [2, 3] {
        cluster.node(node).kill();
        cluster.node(node).start();
    }
    // Both run and hear each other, and neither takes that for news of the master.
    for (node, other) in [(2, 3), (3, 2)] {
        eventually("it says that nobody leads", || {
            let status = cluster.nodes[&node].status()?;
            let nodes = status["nodes"].as_array().ok_or("no nodes")?;
            let there = nodes.iter().any(|one| one["id"] == format!("n{other}").as_str() && one["reachable"] == true);
            let shards = status["shards"].as_array().ok_or("no shards")?;
            let members: Vec<_> = shards.iter().flat_map(|shard| shard["members"].as_array()).flatten().collect();
            let silent = shards.iter().all(|shard| shard["leader"].is_null())
                && members.iter().all(|member| member["lag_ms"].is_null() && member["lag_entries"].is_null());
            let named = status["problems"].to_string().contains("NoQuorum");
            if there && silent && named { Ok(()) } else { Err(status.to_string()) }
        });
        let mut replica = Sql::on(&cluster.nodes[&node]);
        replica.must("SET statement_timeout = 1000");
        replica.must("SET read_level = 'max_staleness 500'");
        let error = refusal(replica.run("SELECT count(*) FROM t"));
        assert_eq!(error.code, Code::Behind, "{error:?}");
    }
    // The master is found again though neither was told where it is.
    cluster.node(1).start();
    cluster.wait_ready();
    sql.must("INSERT INTO t VALUES (1)");
    for node in [2, 3] {
        eventually("the replica follows", || cluster.nodes[&node].caught_up(&cluster.nodes[&1]));
        assert_eq!(Sql::on(&cluster.nodes[&node]).number("SELECT count(*) FROM t"), 1);
    }
}
