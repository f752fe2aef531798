//! Epochs: a promoted replica, a recovered survivor, who is fenced, and two histories under one number.

use quorate_shared::admin::AdminAction;
use quorate_shared::ids::NodeId;

use crate::support::{Sql, TestCluster, eventually};

/// Fails until writes go through.
fn writes(sql: &mut Sql, id: &mut i64) {
    *id += 1;
    sql.must(&format!("INSERT INTO t VALUES ({id})"));
    assert_eq!(sql.number("SELECT count(*) FROM t"), *id);
}

/// The suffix files a fenced node has written.
fn suffixes(data: &std::path::Path) -> Vec<std::path::PathBuf> {
    let files = data.read_dir().unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("suffix-")).collect()
}

fn role(cluster: &TestCluster, asked: u64, node: u64) -> Result<String, String> {
    let status = cluster.nodes[&asked].status()?;
    let nodes = status["nodes"].as_array().ok_or("no nodes")?;
    let one = nodes.iter().find(|one| one["id"] == format!("n{node}").as_str()).ok_or("not in the picture")?;
    if one["reachable"] == false {
        return Err(format!("unreachable: {one}"));
    }
    Ok(one["kind"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_promoted_replica_fences_the_old_master_which_rejoins_as_a_replica() {
    let mut cluster = TestCluster::started(1, 1);
    let (mut sql, mut id) = (Sql::on(&cluster.nodes[&1]), 0);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    writes(&mut sql, &mut id);
    eventually("the replica follows", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    let promote = |accept_loss| AdminAction::Promote { accept_loss };
    let mut replica = Sql::on(&cluster.nodes[&2]);
    let why = replica.refused(promote(false));
    assert!(why.contains("MasterAlive: n1 leads s0"), "{why}");
    let why = sql.refused(promote(true));
    assert!(why.contains("NotReplica: n1 votes"), "{why}");
    // Cut off from its replica, the old master acknowledges what nobody else will ever have.
    cluster.node(2).kill();
    sql.must("INSERT INTO t VALUES (1000)");
    cluster.node(1).kill();
    // Nor does it know where that one is by now: only who has begun the epoch can tell.
    cluster.node(2).moves();
    cluster.node(2).start();
    let plan = eventually("the old master is known to be gone", || {
        let end = Sql::on(&cluster.nodes[&2]).admin(promote(false), true).map_err(|e| e.to_string())?;
        if end.refused() { Err(format!("{end:?}")) } else { Ok(end) }
    });
    assert!(plan.plan.warnings.iter().any(|w| w.contains("what n1 acknowledged")), "{plan:?}");
    let facts = Sql::on(&cluster.nodes[&2]).act(promote(true));
    assert_eq!((facts["master"].as_str(), facts["epoch"].as_str()), ("n2", "2"));
    let mut master = Sql::on(&cluster.nodes[&2]);
    writes(&mut master, &mut id);
    // It comes back, is fenced, writes out what only it has, and follows.
    cluster.node(1).start();
    eventually("the old master follows as a replica", || match role(&cluster, 2, 1)?.as_str() {
        "replica" => cluster.nodes[&1].caught_up(&cluster.nodes[&2]),
        other => Err(other.to_owned()),
    });
    assert!(!suffixes(&cluster.nodes[&1].data).is_empty(), "what only it had is in a file");
    writes(&mut master, &mut id);
    let mut old = Sql::on(&cluster.nodes[&1]);
    assert_eq!(old.number("SELECT count(*) FROM t"), id, "the row that was lost is not there");
}

#[test]
fn one_survivor_of_three_recovers_and_the_others_rejoin() {
    let mut cluster = TestCluster::started(3, 0);
    let (mut sql, mut id) = (Sql::anywhere(&cluster), 0);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    writes(&mut sql, &mut id);
    for node in [1, 2, 3] {
        cluster.node(node).kill();
    }
    cluster.node(2).wipe();
    let recover = |data: &std::path::Path, dry_run: bool| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quorated"));
        command.arg("recover").arg(data);
        if dry_run {
            command.arg("--dry-run");
        }
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let data = cluster.nodes[&3].data.clone();
    let (code, text) = recover(&data, true);
    assert!(code == Some(0) && text.contains("nothing was changed") && text.contains("s1: the log ends"), "{text}");
    assert!(!data.join("promote").exists());
    let (code, text) = recover(&data, false);
    assert!(code == Some(0) && text.contains("go on with step 2"), "{text}");
    cluster.node(3).start();
    eventually("the survivor serves alone", || cluster.nodes[&3].healthy());
    let mut alone = Sql::on(&cluster.nodes[&3]);
    writes(&mut alone, &mut id);
    cluster.node(1).start();
    eventually("the other survivor follows", || match role(&cluster, 3, 1)?.as_str() {
        "replica" => cluster.nodes[&1].caught_up(&cluster.nodes[&3]),
        other => Err(other.to_owned()),
    });
    let facts = Sql::on(&cluster.nodes[&3]).act(AdminAction::AddVoter { node: NodeId::new(1) });
    assert!(facts["voters"].contains("n1"), "{facts:?}");
    writes(&mut alone, &mut id);
}

/// Promotes a replica whose master is gone, into this epoch.
fn promoted(cluster: &TestCluster, node: u64, epoch: u64) -> Sql {
    let promote = AdminAction::Promote { accept_loss: true };
    eventually("nothing stands against the promotion", || {
        let end = Sql::on(&cluster.nodes[&node]).admin(promote.clone(), true).map_err(|e| e.to_string())?;
        if end.refused() || !end.plan.warnings.iter().all(|w| !w.contains("MasterAlive")) {
            return Err(format!("{end:?}"));
        }
        Ok(())
    });
    let facts = Sql::on(&cluster.nodes[&node]).act(promote);
    assert_eq!((facts["master"].clone(), facts["epoch"].as_str()), (format!("n{node}"), epoch.to_string().as_str()));
    Sql::on(&cluster.nodes[&node])
}

fn two_epochs(cluster: &TestCluster, asked: u64, rival: u64) -> Result<(), String> {
    let status = cluster.nodes[&asked].status()?;
    let problems = status["problems"].as_array().ok_or("no problems")?;
    let named: Vec<_> = problems.iter().filter(|p| p["subject"] == format!("n{rival}").as_str()).collect();
    match &named[..] {
        [one] if one["name"] == "TwoEpochs" && one["severity"] == "critical" => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn two_epochs_of_one_number_are_named_and_neither_follows_the_other() {
    let mut cluster = TestCluster::started(1, 2);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    for node in [2, 3] {
        eventually("the replica follows", || cluster.nodes[&node].caught_up(&cluster.nodes[&1]));
    }
    // Each replica is promoted while the other one is away.
    cluster.node(1).kill();
    cluster.node(3).kill();
    promoted(&cluster, 2, 2).must("INSERT INTO t VALUES (2)");
    cluster.node(2).kill();
    cluster.node(3).start();
    promoted(&cluster, 3, 2).must("INSERT INTO t VALUES (3)");
    cluster.node(2).start();
    eventually("n2 names it", || two_epochs(&cluster, 2, 3));
    eventually("n3 names it", || two_epochs(&cluster, 3, 2));
    // Each goes on by itself with what it has.
    for (node, id) in [(2, 20), (3, 30)] {
        let mut sql = Sql::on(&cluster.nodes[&node]);
        sql.must(&format!("INSERT INTO t VALUES ({id})"));
        assert_eq!(sql.must("SELECT id FROM t ORDER BY id"), [[node.to_string()], [id.to_string()]]);
        assert!(suffixes(&cluster.nodes[&node].data).is_empty(), "nothing was cut");
    }
    // The way out that the hint names: one history stays.
    cluster.node(3).kill();
    cluster.node(3).wipe();
    let of = cluster.nodes[&2].address();
    cluster.node(3).set_flag("--replica-of", &of);
    cluster.node(3).start();
    eventually("n3 follows n2", || cluster.nodes[&3].caught_up(&cluster.nodes[&2]));
    eventually("the problem is over", || match two_epochs(&cluster, 2, 3) {
        Ok(()) => Err("still there".into()),
        Err(_) => Ok(()),
    });
    assert_eq!(Sql::on(&cluster.nodes[&3]).must("SELECT id FROM t ORDER BY id"), [["2"], ["20"]]);
}

#[test]
fn who_missed_two_epochs_writes_out_what_only_it_had_and_follows() {
    // What it has ends behind the start of the newest epoch, or before it.
    for (only_here, between) in [(30, 3), (3, 30)] {
        let mut cluster = TestCluster::started(1, 2);
        let mut sql = Sql::on(&cluster.nodes[&1]);
        sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
        sql.must("INSERT INTO t VALUES (1)");
        for node in [2, 3] {
            eventually("the replica follows", || cluster.nodes[&node].caught_up(&cluster.nodes[&1]));
        }
        let insert = |sql: &mut Sql, from: i64, count: i64| {
            (from..from + count).for_each(|id| drop(sql.must(&format!("INSERT INTO t VALUES ({id})"))));
        };
        cluster.node(2).kill();
        cluster.node(3).kill();
        insert(&mut sql, 1000, only_here);
        cluster.node(1).kill();
        cluster.node(2).start();
        let mut second = promoted(&cluster, 2, 2);
        insert(&mut second, 2000, between);
        let of = cluster.nodes[&2].address();
        cluster.node(3).set_flag("--replica-of", &of);
        cluster.node(3).start();
        eventually("n3 follows n2", || cluster.nodes[&3].caught_up(&cluster.nodes[&2]));
        cluster.node(2).kill();
        let mut third = promoted(&cluster, 3, 3);
        insert(&mut third, 3000, 3);
        cluster.node(1).start();
        eventually("the first master follows", || match role(&cluster, 3, 1)?.as_str() {
            "replica" => cluster.nodes[&1].caught_up(&cluster.nodes[&3]),
            other => Err(other.to_owned()),
        });
        assert_eq!(Sql::on(&cluster.nodes[&1]).number("SELECT count(*) FROM t"), 4 + between);
        let data = &cluster.nodes[&1].data;
        let suffix = data.join("suffix-s1-before-epoch-3.txt");
        let text = std::fs::read_to_string(&suffix).unwrap_or_else(|e| panic!("{e}: {:?}", suffixes(data)));
        // Beside them the empty entry with which it led again.
        let rows = text.lines().filter(|line| line.split(' ').nth(2) == Some("entry")).count();
        assert_eq!(rows as i64, only_here, "{text}");
        assert!(!data.join("log.lost").exists(), "it went on with its own log");
    }
}
