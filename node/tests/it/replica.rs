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
