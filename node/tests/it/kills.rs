//! `kill -9` under load: nothing acknowledged is lost, nothing is applied twice, no replica differs, and another leads
//! soon. `QUORATE_KILLS` is how many kills (a handful otherwise), `QUORATE_FAILOVERS` how many of the leader,
//! `QUORATE_PROGRAM` which program.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Sql, TestCluster, TestNode, eventually};

fn count(name: &str, short: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(short)
}

/// A small generator: which node and how long is different each time, and printed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// What a writer knows of its writes.
#[derive(Default)]
struct Written {
    acknowledged: BTreeSet<i64>,
    unknown: BTreeSet<i64>,
    counted: i64,
    maybe_counted: i64,
}

/// Writes events of its own and counts them, until told to stop.
fn writer(mut sql: Sql, id: i64, stop: Arc<AtomicBool>) -> JoinHandle<Written> {
    std::thread::spawn(move || {
        let mut written = Written::default();
        for n in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // No primary key: what is applied twice is there twice.
            match sql.run(&format!("INSERT INTO events VALUES ({id}, {n})")) {
                Ok(_) => drop(written.acknowledged.insert(n)),
                Err(error) if error.is_unknown() => drop(written.unknown.insert(n)),
                // Nothing was written, and it says so.
                Err(_) => {}
            }
            match sql.run(&format!("UPDATE counters SET n = n + 1 WHERE id = {id}")) {
                Ok(_) => written.counted += 1,
                Err(error) if error.is_unknown() => written.maybe_counted += 1,
                Err(_) => {}
            }
        }
        written
    })
}

fn caught_up(cluster: &TestCluster) {
    let master = cluster.master();
    for node in cluster.nodes.values() {
        eventually(&format!("n{} catches up", node.id), || node.caught_up(&cluster.nodes[&master]));
    }
    eventually("nothing is wrong", || match cluster.nodes[&master].status()? {
        status if status["verdict"] == "ok" => Ok(()),
        status => {
            let problems = status["problems"].as_array().ok_or("no problems")?;
            // An engine that was rebuilt is worth a remark for minutes.
            let other: Vec<_> = problems.iter().filter(|p| p["name"] != "EngineRebuilt").collect();
            if other.is_empty() { Ok(()) } else { Err(format!("{other:?}")) }
        }
    });
}

/// Everything a node has, read at the node itself.
fn contents(node: &TestNode) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let mut sql = Sql::on(node);
    sql.must("SET read_level = local");
    (sql.must("SELECT writer, n FROM events ORDER BY writer, n"), sql.must("SELECT id, n FROM counters ORDER BY id"))
}

fn verify(cluster: &TestCluster, written: &[Written]) {
    caught_up(cluster);
    let mut all = cluster.nodes.values().map(|node| (node.id, contents(node)));
    let (first, (events, counters)) = all.next().unwrap();
    for (id, other) in all {
        assert!(other == (events.clone(), counters.clone()), "n{id} and n{first} differ");
    }
    let mut there: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for row in &events {
        *there.entry((row[0].parse().unwrap(), row[1].parse().unwrap())).or_default() += 1;
    }
    let twice: Vec<_> = there.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "applied twice: {twice:?}");
    let (mut acknowledged, mut unknown) = (0, 0);
    for (id, written) in (0i64..).zip(written) {
        let lost: Vec<_> = written.acknowledged.iter().filter(|n| !there.contains_key(&(id, **n))).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?} of writer {id}");
        let own = there.keys().filter(|(w, _)| *w == id).map(|(_, n)| n);
        let ghosts: Vec<_> =
            own.filter(|n| !written.acknowledged.contains(n) && !written.unknown.contains(n)).collect();
        assert!(ghosts.is_empty(), "refused and yet there: {ghosts:?} of writer {id}");
        let n: i64 = counters[usize::try_from(id).unwrap()][1].parse().unwrap();
        let bounds = written.counted..=written.counted + written.maybe_counted;
        assert!(bounds.contains(&n), "counter {id} is {n}, not in {bounds:?}");
        acknowledged += written.acknowledged.len() + usize::try_from(written.counted).unwrap();
        unknown += written.unknown.len() + usize::try_from(written.maybe_counted).unwrap();
    }
    println!("{acknowledged} writes acknowledged, {unknown} unknown; 0 lost, 0 twice, 0 replicas differ");
}

#[test]
fn random_nodes_under_load() {
    let kills = count("QUORATE_KILLS", 6);
    let seed = std::env::var("QUORATE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(u64::from(std::process::id()));
    println!("QUORATE_SEED={seed}");
    let mut random = Random(seed.max(1));
    let mut cluster = TestCluster::started(3, 1);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE events (writer INT NOT NULL, n INT NOT NULL)");
    sql.must("CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)");
    sql.must("INSERT INTO counters VALUES (0, 0), (1, 0), (2, 0)");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3).map(|id| writer(Sql::anywhere(&cluster), id, stop.clone())).collect();
    let mut killed: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.below(400)));
        let victim = 1 + random.below(4);
        cluster.node(victim).kill();
        *killed.entry(victim).or_default() += 1;
        std::thread::sleep(Duration::from_millis(random.below(600)));
        cluster.node(victim).start();
        // Now and then the next one dies before this one is back.
        if random.below(4) > 0 {
            let node = &cluster.nodes[&victim];
            eventually(&format!("n{victim} serves again"), || node.healthy());
        }
    }
    println!("killed {killed:?}");
    cluster.wait_ready();
    stop.store(true, Ordering::Relaxed);
    let written: Vec<Written> = writers.into_iter().map(|w| w.join().unwrap()).collect();
    verify(&cluster, &written);
}

/// When writes were begun and acknowledged, at one node.
struct Probe {
    stop: Arc<AtomicBool>,
    acks: Arc<Mutex<Vec<(Instant, Instant)>>>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    fn start(node: &TestNode) -> Self {
        let mut sql = Sql::on(node);
        let (stop, acks) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (told, noted) = (stop.clone(), acks.clone());
        let id = node.id;
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let begun = Instant::now();
                if sql.run(&format!("UPDATE probes SET n = n + 1 WHERE id = {id}")).is_ok() {
                    noted.lock().unwrap().push((begun, Instant::now()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, acks, thread: Some(thread) }
    }

    /// When the first write that was begun after `since` was acknowledged.
    fn first_after(&self, since: Instant) -> Option<Instant> {
        self.acks.lock().unwrap().iter().find(|(begun, _)| *begun > since).map(|(_, acked)| *acked)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A probe's failure is seen as writes that do not come.
            let _ = thread.join();
        }
    }
}

/// How long writes at the other voters stop when something happens to the master.
fn gap(cluster: &mut TestCluster, what: impl FnOnce(&mut TestNode)) -> (u64, Duration) {
    let master = cluster.settled();
    let others: Vec<Probe> = cluster.nodes.values().filter(|n| n.id != master).map(Probe::start).collect();
    let start = Instant::now();
    eventually("writes run", || match others.iter().all(|probe| probe.first_after(start).is_some()) {
        true => Ok(()),
        false => Err("no write yet".into()),
    });
    let began = Instant::now();
    what(cluster.node(master));
    // Writes that were begun before it was over may still have been the old leader's.
    let over = Instant::now();
    let resumed = eventually("writes go on", || {
        others.iter().filter_map(|probe| probe.first_after(over)).min().ok_or_else(|| "no write yet".to_owned())
    });
    (master, resumed - began)
}

fn with_probes() -> TestCluster {
    let cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE probes (id INT PRIMARY KEY, n INT NOT NULL)");
    sql.must("INSERT INTO probes VALUES (1, 0), (2, 0), (3, 0)");
    cluster
}

fn report(what: &str, mut gaps: Vec<Duration>, worst_allowed: Duration) {
    gaps.sort_unstable();
    let (median, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    println!("{what}: {} times, median {median:?}, worst {worst:?}, all {gaps:?}", gaps.len());
    assert!(worst < worst_allowed, "{what} took {worst:?}");
}

#[test]
fn a_killed_leader_is_replaced() {
    let mut cluster = with_probes();
    let mut gaps = Vec::new();
    for _ in 0..count("QUORATE_FAILOVERS", 2) {
        let (master, gap) = gap(&mut cluster, TestNode::kill);
        gaps.push(gap);
        cluster.node(master).start();
        cluster.wait_ready();
    }
    caught_up(&cluster);
    // Numbers are measured on a quiet machine; here only that it comes.
    report("kill -9 of the leader", gaps, Duration::from_secs(20));
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced() {
    let mut cluster = with_probes();
    let mut gaps = Vec::new();
    for _ in 0..count("QUORATE_HANGS", 1) {
        let (master, gap) = gap(&mut cluster, |node| node.hang("log"));
        gaps.push(gap);
        let asked = (1..=3).find(|id| *id != master).unwrap();
        let name = format!("n{master}");
        eventually("it is named", || {
            let status = cluster.nodes[&asked].status()?;
            let problems = status["problems"].as_array().ok_or("no problems")?;
            let named = problems.iter().any(|p| p["name"] == "DiskStalled" && p["subject"] == name.as_str());
            if named { Ok(()) } else { Err(status["problems"].to_string()) }
        });
        cluster.nodes[&master].unhang("log");
        caught_up(&cluster);
    }
    report("a hung disk of the leader", gaps, Duration::from_secs(20));
}
