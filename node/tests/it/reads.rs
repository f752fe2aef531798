//! The four read levels, at any node, and the past: what is promised at each, and what is said when it cannot be kept.

use std::time::{Duration, Instant};

use quorate_shared::client::{Client, ClientConfig, ClientError, ResultSet};
use quorate_shared::error::{Code, WireError};
use quorate_shared::url::Address;

use crate::proxy::Proxy;
use crate::support::{Sql, TestCluster, TestNode, eventually};

fn refusal(result: Result<ResultSet, ClientError>) -> WireError {
    match result {
        Err(ClientError::Server(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

fn token(done: &quorate_shared::wire::Done) -> String {
    let token = &done.token[0];
    format!("{}:{}:{}", token.shard, token.epoch, token.index)
}

#[test]
fn every_node_serves_every_level() {
    let cluster = TestCluster::started(3, 1);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    let mut nodes: Vec<Sql> = cluster.nodes.values().map(Sql::on).collect();
    for id in 1..=20 {
        let written = sql.run(&format!("INSERT INTO t VALUES ({id})")).unwrap();
        let after = token(&written.done);
        for node in &mut nodes {
            node.must("SET read_level = linearizable");
            assert_eq!(node.number("SELECT count(*) FROM t"), id);
            assert_eq!(node.number(&format!("SELECT count(*) FROM t WHERE id = {id}")), 1);
            node.must(&format!("SET read_level = 'after {after}'"));
            assert_eq!(node.number("SELECT count(*) FROM t"), id);
        }
    }
    for node in &mut nodes {
        node.must("SET read_level = 'max_staleness 10s'");
        let read = node.run("SELECT count(*) FROM t").unwrap();
        assert!(read.done.age_ms.is_some_and(|age| age <= 10_000), "{:?}", read.done);
        node.must("SET read_level = local");
        eventually("it is applied", || match node.number("SELECT count(*) FROM t") {
            20 => Ok(()),
            n => Err(n.to_string()),
        });
    }
}

#[test]
fn a_cut_off_replica_serves_what_is_young_enough_and_then_says_how_old_it_is() {
    let mut cluster = TestCluster::new(1, 1);
    let to_master = Proxy::new(cluster.node(1).port);
    cluster.node(1).set_flag("--advertise", &to_master.address());
    cluster.node(2).set_flag("--replica-of", &to_master.address());
    cluster.start_all();
    cluster.wait_ready();
    let mut sql = Sql::on(cluster.node(1));
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    sql.must("INSERT INTO t VALUES (1)");
    let mut replica = Sql::on(cluster.node(2));
    assert_eq!(replica.number("SELECT count(*) FROM t"), 1);
    replica.must("SET read_level = 'max_staleness 4000'");
    assert_eq!(replica.number("SELECT count(*) FROM t"), 1);

    // Nothing of the master's arrives any more: what is here grows old, and its age is stated.
    to_master.block_to_client(true);
    let cut = Instant::now();
    sql.must("INSERT INTO t VALUES (2)");
    let mut served = 0;
    let error = loop {
        match replica.run("SELECT count(*) FROM t") {
            Ok(read) => {
                served += 1;
                let age = read.done.age_ms.unwrap();
                assert!(age <= 4_000, "{age}");
                assert!(Duration::from_millis(age + 500) >= cut.elapsed().saturating_sub(Duration::from_millis(500)));
            }
            Err(_) => break refusal(replica.run("SELECT count(*) FROM t")),
        }
    };
    assert!(served > 0);
    assert!(cut.elapsed() >= Duration::from_secs(3), "refused although it is young enough");
    assert_eq!(error.code, Code::Behind, "{error:?}");
    assert!(error.message.starts_with("ReplicaBehind") && error.message.contains("ms old"), "{error:?}");
    assert!(error.hint.as_deref().is_some_and(|h| h.contains("local")), "{error:?}");
    // Local reads go on and say how old they are.
    replica.must("SET read_level = local");
    let local = replica.run("SELECT count(*) FROM t").unwrap();
    assert!(local.done.age_ms.is_some_and(|age| age >= 3_000), "{:?}", local.done);

    // A token that cannot be reached is refused, with how far it is.
    let after = token(&sql.run("INSERT INTO t VALUES (3)").unwrap().done);
    replica.must("SET statement_timeout = 1000");
    replica.must(&format!("SET read_level = 'after {after}'"));
    let error = refusal(replica.run("SELECT count(*) FROM t"));
    assert_eq!(error.code, Code::Behind, "{error:?}");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("entries behind")), "{error:?}");

    to_master.block_to_client(false);
    replica.must("SET statement_timeout = 20000");
    assert_eq!(replica.number("SELECT count(*) FROM t"), 3);
    replica.must("SET read_level = 'max_staleness 4000'");
    eventually("it is young again", || replica.run("SELECT count(*) FROM t").map(drop).map_err(|e| e.to_string()));
}

#[test]
fn waiting_for_replicas_says_how_many_there_were() {
    let cluster = TestCluster::started(1, 2);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    sql.must("SET wait_for_replicas = 2");
    sql.must("SET wait_timeout = 15000");
    let done = sql.run("INSERT INTO t VALUES (1)").unwrap().done;
    assert!(done.notices.is_empty(), "{done:?}");
    for id in [2, 3] {
        let mut replica = Sql::on(&cluster.nodes[&id]);
        replica.must("SET read_level = local");
        assert_eq!(replica.number("SELECT count(*) FROM t"), 1, "n{id} had applied it");
    }
    cluster.nodes[&3].freeze();
    sql.must("SET wait_timeout = 700");
    let done = sql.run("INSERT INTO t VALUES (2)").unwrap().done;
    cluster.nodes[&3].thaw();
    let notice = done.notices.first().unwrap_or_else(|| panic!("{done:?}"));
    assert_eq!((notice.severity.as_str(), notice.name.as_str()), ("warning", "ReplicaShortfall"), "{notice:?}");
    assert!(notice.message.starts_with("1 of 2 replicas"), "{notice:?}");
    assert_eq!(sql.number("SELECT count(*) FROM t"), 2, "it is committed all the same");
}

#[test]
fn the_past_is_read_as_it_was() {
    let cluster = TestCluster::started(1, 1);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    sql.must("INSERT INTO t VALUES (1, 10), (2, 20)");
    let now = |sql: &mut Sql| {
        // Past the millisecond of the last write, and before that of the next.
        std::thread::sleep(Duration::from_millis(5));
        let text = sql.must("SELECT now()")[0][0].clone();
        std::thread::sleep(Duration::from_millis(5));
        text
    };
    let first = now(&mut sql);
    sql.must("UPDATE t SET n = n + 1");
    sql.must("INSERT INTO t VALUES (3, 30)");
    let second = now(&mut sql);
    sql.must("DELETE FROM t WHERE id < 3");
    sql.must("CREATE TABLE later (id INT PRIMARY KEY)");
    sql.must("ALTER TABLE t ADD COLUMN more TEXT");
    let mut replica = Sql::on(&cluster.nodes[&2]);
    for sql in [&mut sql, &mut replica] {
        let rows = |sql: &mut Sql, at: &str| sql.must(&format!("SELECT * FROM t AS OF TIMESTAMP '{at}' ORDER BY id"));
        assert_eq!(rows(sql, &first), [["1", "10"], ["2", "20"]]);
        assert_eq!(rows(sql, &second), [["1", "11"], ["2", "21"], ["3", "30"]]);
        let one = sql.must(&format!("SELECT n FROM t AS OF SYSTEM TIME '{first}' WHERE id = 1"));
        assert_eq!(one, [["10"]], "by key too");
        let joined = format!("SELECT count(*) FROM t AS a JOIN t AS b ON a.id = b.id AS OF TIMESTAMP '{second}'");
        assert_eq!(sql.number(&joined), 3, "the whole statement");
        assert_eq!(sql.number("SELECT count(*) FROM t"), 1);
        let error = refusal(sql.run(&format!("SELECT * FROM later AS OF TIMESTAMP '{first}'")));
        assert_eq!(error.code, Code::NotFound, "{error:?}");
        let error = refusal(sql.run("SELECT * FROM t AS OF TIMESTAMP '2999-01-01'"));
        assert!(error.message.contains("in the future: ") && error.message.ends_with(" d from now"), "{error:?}");
        let error = refusal(sql.run("SELECT * FROM t AS OF TIMESTAMP '1999-01-01'"));
        assert!(error.message.contains(" d before the horizon"), "{error:?}");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.starts_with("the cluster began at 20")), "{error:?}");
        let error = refusal(sql.run("SELECT * FROM (SELECT * FROM t AS OF TIMESTAMP '-1s') AS s"));
        assert!(error.message.contains("subquery"), "{error:?}");
    }
    let error = refusal(sql.run(&format!("INSERT INTO t SELECT * FROM t AS OF TIMESTAMP '{first}'")));
    assert!(error.message.contains("AS OF"), "{error:?}");
    sql.must("TRUNCATE TABLE t");
    let error = refusal(sql.run(&format!("SELECT * FROM t AS OF TIMESTAMP '{first}'")));
    assert!(error.message.starts_with("AS OF cannot go behind the TRUNCATE of \"t\" at 20"), "{error:?}");
    let third = now(&mut sql);
    sql.must("CREATE VIEW tt AS SELECT * FROM t");
    sql.must("INSERT INTO t VALUES (7, 7)");
    let fourth = now(&mut sql);
    assert_eq!(sql.number(&format!("SELECT count(*) FROM t AS OF TIMESTAMP '{third}'")), 0);
    sql.must("DROP TABLE t CASCADE");
    for (table, at) in [("t", &first), ("t", &fourth), ("tt", &fourth)] {
        let error = refusal(sql.run(&format!("SELECT * FROM {table} AS OF TIMESTAMP '{at}'")));
        // The rows of the first time had gone with the TRUNCATE already.
        let what = if at == &first { "TRUNCATE" } else { "DROP" };
        assert!(error.message.starts_with(&format!("AS OF cannot go behind the {what} of \"t\" at 20")), "{error:?}");
    }
    // Others are read all the same.
    assert_eq!(sql.number(&format!("SELECT count(*) FROM later AS OF TIMESTAMP '{fourth}'")), 0);
}

/// A statement in a session of its own, connecting included, and how long it took.
fn within(deadline: u64, hosts: &[&TestNode], statement: &str) -> (Result<ResultSet, ClientError>, Duration) {
    let hosts = hosts.iter().map(|node| Address::new("127.0.0.1", node.port)).collect();
    let config = ClientConfig { deadline: Duration::from_millis(deadline), ..ClientConfig::new(hosts) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    let result = runtime.block_on(async {
        let mut client = Client::connect(config).await?;
        client.run(statement, Vec::new()).await
    });
    (result, begun.elapsed())
}

/// Whoever does not answer: a statement ends by its deadline, connecting included, and says what is wrong.
#[test]
fn without_a_quorum_everything_ends_by_its_deadline() {
    let cluster = TestCluster::started(3, 0);
    Sql::anywhere(&cluster).must("CREATE TABLE t (id INT PRIMARY KEY)");
    // They take connections and say nothing; the one that answers is asked last.
    cluster.nodes[&2].freeze();
    cluster.nodes[&3].freeze();
    let hosts = [2, 3, 1].map(|id| &cluster.nodes[&id]);
    for statement in ["SELECT count(*) FROM t", "SHOW TABLES", "INSERT INTO t VALUES (1)"] {
        let (result, took) = within(4000, &hosts, statement);
        let error = refusal(result);
        assert!(took < Duration::from_secs(6), "{statement}: {took:?}, {error:?}");
        assert_eq!(error.code, Code::Retry, "{statement}: {error:?}");
        assert!(error.message.starts_with("NoQuorum: "), "{statement}: {error:?}");
    }
}

/// A node whose disk is full applies nothing: what needs that is refused by name at once, what it led is led elsewhere,
/// and what is here can be read.
#[test]
fn a_full_disk_refuses_what_it_cannot_serve_and_leads_nothing() {
    let cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    sql.must("INSERT INTO t VALUES (1)");
    let full = cluster.settled();
    cluster.nodes[&full].hang("full");
    // Committed by the others, and not applied where it was proposed: the next leader answers.
    sql.must("INSERT INTO t VALUES (2)");
    eventually("another node leads", || match cluster.settled() {
        master if master != full => Ok(()),
        master => Err(format!("n{master} leads")),
    });
    sql.must("INSERT INTO t VALUES (3)");
    assert_eq!(sql.number("SELECT count(*) FROM t"), 3);
    let (refused, took) = within(2000, &[&cluster.nodes[&full]], "SELECT count(*) FROM t");
    let error = refusal(refused);
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(error.message.starts_with("DiskFull: "), "{error:?}");
    // Whoever has more time is served elsewhere.
    let (served, _) = within(20_000, &[&cluster.nodes[&full]], "SELECT count(*) FROM t");
    assert_eq!(served.unwrap().rows.len(), 1);
    let mut here = Sql::on(&cluster.nodes[&full]);
    here.must("SET read_level = local");
    assert_eq!(here.number("SELECT count(*) FROM t"), 1);
    cluster.nodes[&full].unhang("full");
    here.must("SET read_level = linearizable");
    assert_eq!(here.number("SELECT count(*) FROM t"), 3);
}
