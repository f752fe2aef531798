//! Who leads, who votes: changed while the cluster serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate_shared::admin::AdminAction;
use quorate_shared::ids::NodeId;

use crate::support::{Sql, TestCluster, TestNode, eventually, settles_with};

/// Clients that write at once.
const WRITERS: i64 = 4;

fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

fn switchover(to: u64) -> AdminAction {
    AdminAction::Switchover { to: Some(n(to)) }
}

/// What a writer saw.
struct Seen {
    written: i64,
    /// The longest time between two acknowledged writes.
    gap: Duration,
}

/// Clients that insert rows of their own, one after the other, until told to stop. Every write must succeed.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Seen>>,
}

impl Load {
    fn on(cluster: &TestCluster) -> Self {
        let mut sql = Sql::anywhere(cluster);
        sql.must("CREATE TABLE IF NOT EXISTS log (writer INT, id INT, PRIMARY KEY (writer, id))");
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (mut sql, stop) = (Sql::anywhere(cluster), stop.clone());
                std::thread::spawn(move || {
                    let (mut seen, mut last) = (Seen { written: 0, gap: Duration::ZERO }, Instant::now());
                    while !stop.load(Ordering::Relaxed) {
                        sql.must(&format!("INSERT INTO log VALUES ({writer}, {})", seen.written));
                        seen.written += 1;
                        seen.gap = seen.gap.max(last.elapsed());
                        last = Instant::now();
                    }
                    seen
                })
            })
            .collect();
        Self { stop, writers }
    }

    /// Waits until another so many rows are there.
    fn flows(sql: &mut Sql, rows: i64) {
        let before = sql.number("SELECT count(*) FROM log");
        eventually("writes flow", || match sql.number("SELECT count(*) FROM log") {
            now if now >= before + rows => Ok(()),
            now => Err(now.to_string()),
        });
    }

    /// Stops; nothing acknowledged may be missing. The longest gap any writer saw.
    fn end(self, sql: &mut Sql) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let seen: Vec<Seen> = self.writers.into_iter().map(|w| w.join().unwrap()).collect();
        let written: i64 = seen.iter().map(|s| s.written).sum();
        assert_eq!(sql.number("SELECT count(*) FROM log"), written, "every acknowledged row, each once");
        seen.iter().map(|s| s.gap).max().unwrap()
    }
}

#[test]
fn a_switchover_under_load_fails_no_write_and_lasts_a_blink() {
    let cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    let load = Load::on(&cluster);
    Load::flows(&mut sql, 100);
    let mut longest = 0;
    for _ in 0..4 {
        let (from, asked) = (cluster.master(), 1);
        let to = from % 3 + 1;
        let facts = Sql::on(&cluster.nodes[&asked]).act(switchover(to));
        assert_eq!((cluster.master(), facts["master"].as_str()), (to, format!("n{to}").as_str()));
        longest = longest.max(facts["write_gap_ms"].parse().unwrap());
        Load::flows(&mut sql, 50);
    }
    let seen = load.end(&mut sql);
    eprintln!("write gap: {longest} ms by the probe, {seen:?} as the slowest writer saw it");
    // Debug builds on a shared machine: the goal of 200 ms is measured with release builds.
    assert!(longest < 1_000 && seen < Duration::from_secs(1), "{longest} ms, {seen:?}");
}

#[test]
fn a_switchover_is_refused_by_name_and_changes_nothing() {
    let cluster = TestCluster::started(3, 1);
    let master = cluster.settled();
    let mut sql = Sql::on(&cluster.nodes[&master]);
    assert!(sql.refused(switchover(9)).starts_with("UnknownNode: n9"));
    assert!(sql.refused(switchover(master)).starts_with("AlreadyLeader: "));
    eventually("the replica is known as one", || match sql.refused(switchover(4)) {
        why if why.starts_with("NotVoter: n4") => Ok(()),
        why => Err(why),
    });
    let plan = sql.admin(switchover(master % 3 + 1), true).unwrap();
    assert!(!plan.refused() && plan.outcome.is_none(), "{plan:?}");
    let stopped = &cluster.nodes[&(master % 3 + 1)];
    stopped.freeze();
    let why = sql.refused(switchover(stopped.id));
    stopped.thaw();
    assert!(why.contains("Unreachable: ") || why.contains("Lagging: "), "{why}");
    assert_eq!(cluster.master(), master);
}

#[test]
fn two_actions_at_once_are_one_and_a_refusal() {
    let cluster = TestCluster::started(3, 0);
    let master = cluster.master();
    let done = std::thread::scope(|scope| {
        let both = [master % 3 + 1, (master + 1) % 3 + 1].map(|to| {
            let cluster = &cluster;
            scope.spawn(move || Sql::on(&cluster.nodes[&to]).admin(switchover(to), false).unwrap())
        });
        both.map(|one| one.join().unwrap())
    });
    for end in done.iter().filter(|end| end.outcome.is_none()) {
        let why = end.plan.refusals.join("; ");
        assert!(why.contains("ActionRunning: `switchover`"), "{why}");
    }
    // They may also have come one after the other, or have kept each other from beginning.
    let led = done.iter().filter_map(|end| end.outcome.as_ref()).all(|outcome| outcome.done);
    assert!(led, "{done:?}");
}

/// Fails until writes go through.
fn writes(sql: &mut Sql, id: &mut i64) {
    *id += 1;
    sql.must(&format!("INSERT INTO t VALUES ({id})"));
    assert_eq!(sql.number("SELECT count(*) FROM t"), *id);
}

#[test]
fn replicas_become_voters_and_carry_the_cluster_and_go_back() {
    let mut cluster = TestCluster::started(3, 2);
    let (mut sql, mut id) = (Sql::anywhere(&cluster), 0);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    writes(&mut sql, &mut id);
    for node in [4, 5] {
        let asked = cluster.master();
        eventually("the replica follows", || cluster.nodes[&node].caught_up(&cluster.nodes[&asked]));
        let facts = Sql::on(&cluster.nodes[&asked]).act(AdminAction::AddVoter { node: n(node) });
        assert!(facts["voters"].contains(&format!("n{node}")), "{facts:?}");
        writes(&mut sql, &mut id);
        settles_with(&cluster.nodes[&asked], &[1, 2, 3, 4, 5]);
        let log = cluster.nodes[&node].log_text();
        assert!(log.contains("begins again") && !log.contains("a fault stops"), "a planned restart is none");
    }
    let why = Sql::on(&cluster.nodes[&1]).refused(AdminAction::AddVoter { node: n(4) });
    assert!(why.starts_with("AlreadyVoter: n4"), "{why}");
    // Three of five, two of them new, are a majority.
    for node in [1, 2] {
        cluster.node(node).kill();
    }
    let mut others = Sql::connect(&[&cluster.nodes[&3], &cluster.nodes[&4]], quorate_shared::client::Policy::Follow);
    writes(&mut others, &mut id);
    for node in [1, 2] {
        cluster.node(node).start();
    }
    cluster.wait_ready();
    let asked = cluster.master();
    let demoted = if asked == 5 { 4 } else { 5 };
    let facts = Sql::on(&cluster.nodes[&asked]).act(AdminAction::DemoteVoter { node: n(demoted) });
    assert!(!facts["voters"].contains(&format!("n{demoted}")), "{facts:?}");
    writes(&mut others, &mut id);
    eventually("the replica follows", || cluster.nodes[&demoted].caught_up(&cluster.nodes[&asked]));
}

#[test]
fn a_dead_voter_is_taken_out_and_another_put_in_its_place() {
    let mut cluster = TestCluster::started(3, 1);
    let (mut sql, mut id) = (Sql::anywhere(&cluster), 0);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    writes(&mut sql, &mut id);
    // The dead one leads nothing: there is no election to be waited for.
    let master = cluster.settled();
    let dead = master % 3 + 1;
    cluster.node(dead).kill();
    let mut asked = Sql::on(&cluster.nodes[&master]);
    let facts = asked.act(AdminAction::RemoveNode { node: n(dead) });
    assert!(!facts["voters"].contains(&format!("n{dead}")), "{facts:?}");
    let why = asked.refused(AdminAction::RemoveNode { node: n(dead) });
    assert!(why.contains("UnknownNode: "), "{why}");
    asked.act(AdminAction::AddVoter { node: n(4) });
    writes(&mut sql, &mut id);
    // The new one makes the majority.
    let other = (1..=3).find(|node| ![master, dead].contains(node)).unwrap();
    cluster.node(other).kill();
    writes(&mut asked, &mut id);
    cluster.node(other).start();
    // The removed one says so and serves nothing.
    cluster.node(dead).start();
    knows_that_it_was_removed(&cluster.nodes[&dead]);
    writes(&mut asked, &mut id);
}

/// It says so, and serves nothing.
fn knows_that_it_was_removed(node: &TestNode) {
    eventually("the removed node knows", || match node.get("/health")? {
        (503, why) if why.contains("removed") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let error = Sql::on(node).run("SELECT 1 FROM t").unwrap_err().to_string();
    assert!(error.contains("was removed from its cluster"), "{error}");
}

#[test]
fn removed_replicas_get_nothing_more_and_leave_the_picture() {
    let mut cluster = TestCluster::started(1, 2);
    let (mut sql, mut id) = (Sql::on(&cluster.nodes[&1]), 0);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    writes(&mut sql, &mut id);
    for node in [2, 3] {
        eventually("the replica follows", || cluster.nodes[&node].caught_up(&cluster.nodes[&1]));
    }
    settles_with(&cluster.nodes[&1], &[1, 2, 3]);
    // A dead one and one that runs.
    cluster.node(3).kill();
    sql.act(AdminAction::RemoveNode { node: n(3) });
    settles_with(&cluster.nodes[&1], &[1, 2]);
    sql.act(AdminAction::RemoveNode { node: n(2) });
    writes(&mut sql, &mut id);
    knows_that_it_was_removed(&cluster.nodes[&2]);
    settles_with(&cluster.nodes[&1], &[1]);
    let (_, metrics) = cluster.nodes[&1].get("/metrics").unwrap();
    assert!(!metrics.contains("node=\"n2\"") && !metrics.contains("subject=\"s1/n2\""), "{metrics}");
}

/// Asked at the node itself, leader or not, and done to its end all the same.
pub fn leaves_when_asked_itself(cluster: &TestCluster) {
    let mut sql = Sql::anywhere(cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    drop(sql);
    let master = cluster.settled();
    let facts = Sql::on(&cluster.nodes[&master]).act(AdminAction::RemoveNode { node: n(master) });
    assert!(!facts["voters"].contains(&format!("n{master}")), "{facts:?}");
    knows_that_it_was_removed(&cluster.nodes[&master]);
    let rest: Vec<u64> = (1..=3).filter(|id| *id != master).collect();
    settles_with(&cluster.nodes[&rest[0]], &rest);
    let mut rest = Sql::on(&cluster.nodes[&rest[0]]);
    writes(&mut rest, &mut 0);
}

#[test]
fn a_leader_asked_to_go_has_another_do_it() {
    leaves_when_asked_itself(&TestCluster::started(3, 0));
}

#[test]
fn a_wiped_voter_comes_back_by_itself_under_another_id() {
    let mut cluster = TestCluster::started(3, 0);
    let (mut sql, mut id) = (Sql::anywhere(&cluster), 0);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY)");
    writes(&mut sql, &mut id);
    let wiped = cluster.master() % 3 + 1;
    cluster.node(wiped).kill();
    cluster.node(wiped).wipe();
    cluster.node(wiped).start();
    eventually("the wiped voter votes again", || cluster.nodes[&wiped].healthy());
    eventually("its log is another replica's", || {
        match cluster.nodes[&wiped].log_text().contains("this voter is whole again") {
            true => Ok(()),
            false => Err("not yet".into()),
        }
    });
    writes(&mut sql, &mut id);
    // It counts: with one of the others gone, the two are a majority.
    let other = (1..=3).find(|node| *node != wiped).unwrap();
    cluster.node(other).kill();
    let rest: Vec<_> = cluster.nodes.values().filter(|node| node.id != other).collect();
    let mut rest = Sql::connect(&rest, quorate_shared::client::Policy::Follow);
    writes(&mut rest, &mut id);
}

#[test]
fn the_last_voter_stays() {
    let cluster = TestCluster::started(1, 1);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    for action in [AdminAction::RemoveNode { node: n(1) }, AdminAction::DemoteVoter { node: n(1) }] {
        let why = sql.refused(action);
        assert!(why.contains("LastVoter: n1"), "{why}");
    }
}

#[test]
fn a_second_node_of_one_number_is_refused() {
    let cluster = TestCluster::started(3, 0);
    let (port, http) = (crate::support::free_port(), crate::support::free_port());
    let data = cluster.path().join("twin");
    let of = cluster.nodes[&1].address();
    let log = cluster.path().join("twin.log");
    let mut twin = std::process::Command::new(env!("CARGO_BIN_EXE_quorated"))
        .args(["start", "--id", "2", "--replica-of", &of, "--listen", &format!("127.0.0.1:{port}"), "--data"])
        .arg(&data)
        .args(["--http", &format!("127.0.0.1:{http}")])
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    eventually("the twin is refused by name", || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", http)).map_err(|e| e.to_string())?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
        if text.contains("DuplicateNode") { Ok(()) } else { Err(text) }
    });
    // Whom it asked says so, and the master does; and it has told its own log.
    for asked in [1, cluster.master()] {
        eventually("the picture names it", || {
            let picture = cluster.nodes[&asked].status()?;
            let problems = picture["problems"].as_array().ok_or("no problems")?;
            let named = problems.iter().any(|p| p["name"] == "DuplicateNode" && p["subject"] == "n2");
            named.then_some(()).ok_or(picture["problems"].to_string())
        });
    }
    assert!(std::fs::read_to_string(&log).unwrap().contains("DuplicateNode"));
    twin.kill().unwrap();
    twin.wait().unwrap();
    cluster.wait_ready();
    settles_with(&cluster.nodes[&1], &[1, 2, 3]);
}
