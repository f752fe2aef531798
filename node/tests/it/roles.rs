//! Who leads, who votes: changed while the cluster serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate_shared::admin::AdminAction;
use quorate_shared::ids::NodeId;

use crate::support::{Sql, TestCluster, eventually};

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
    stopped.freeze(true);
    let why = sql.refused(switchover(stopped.id));
    stopped.freeze(false);
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
