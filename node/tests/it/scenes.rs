//! The five scenes in which replicas of other systems claim to be up to date: a stopped process, a connection that is open
//! and brings nothing, an applier that hangs, a bulk load, a long silence.
//!
//! Every picture that is asked for a second or later after something went wrong must say so: the lag, the phase, the
//! problem's name. And what every picture at any time must not do: call something 0 or healthy that is not.
//! `QUORATE_SCENES=full` runs them at full length.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::proxy::Proxy;
use crate::support::{Sql, TestCluster, TestNode, Turn, eventually};

/// From then on every picture must be right.
const LIMIT: Duration = Duration::from_secs(1);
/// A signal or a switch takes effect within this time.
const SLOP: Duration = Duration::from_millis(50);
/// Behind by more than this is a problem.
const LAGGING_MS: u64 = 1_000;

fn seconds(short: u64, full: u64) -> Duration {
    let is_full = std::env::var("QUORATE_SCENES").is_ok_and(|v| v == "full");
    Duration::from_secs(if is_full { full } else { short })
}

/// A write: its number, when it was begun, when it was acknowledged.
type Beat = (i64, Instant, Instant);

/// Writes 1, 2, … all the time and remembers when.
struct Beats {
    stop: Arc<AtomicBool>,
    beats: Arc<Mutex<Vec<Beat>>>,
    thread: Option<JoinHandle<()>>,
}

impl Beats {
    fn start(mut sql: Sql) -> Self {
        let (stop, beats) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (told, written) = (stop.clone(), beats.clone());
        let thread = std::thread::spawn(move || {
            for n in 1.. {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                let begun = Instant::now();
                sql.must(&format!("INSERT INTO beats VALUES ({n})"));
                written.lock().unwrap().push((n, begun, Instant::now()));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, beats, thread: Some(thread) }
    }

    /// The first that satisfies a condition.
    fn first(&self, condition: impl Fn(&Beat) -> bool) -> Option<Beat> {
        self.beats.lock().unwrap().iter().find(|beat| condition(beat)).copied()
    }

    /// How old the first write is that was begun after `since`.
    fn behind(&self, since: Instant, at: Instant) -> Duration {
        let acked = self.first(|(_, begun, _)| *begun > since).map(|(_, _, acked)| acked);
        acked.map_or(Duration::ZERO, |acked| at.saturating_duration_since(acked))
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().map(JoinHandle::join);
        if let (Some(Err(_)), false) = (result, std::thread::panicking()) {
            panic!("the writer failed");
        }
    }
}

fn with_beats(cluster: &TestCluster) -> Beats {
    let mut sql = Sql::anywhere(cluster);
    sql.must("CREATE TABLE beats (n INT PRIMARY KEY)");
    sql.must("CREATE TABLE bulk (id INT PRIMARY KEY, text TEXT)");
    cluster.nodes.values().for_each(healthy_again);
    Beats::start(sql)
}

fn healthy_again(asked: &TestNode) {
    eventually("everything is healthy", || {
        let picture = truth(asked.status()?);
        match picture["verdict"].as_str() {
            Some("ok") => Ok(()),
            _ => Err(picture["problems"].to_string()),
        }
    });
}

fn list<'a>(json: &'a Json, name: &str) -> &'a Vec<Json> {
    json[name].as_array().unwrap()
}

/// What no picture may ever violate.
fn truth(picture: Json) -> Json {
    let problems = list(&picture, "problems");
    let ok = picture["verdict"] == "ok";
    assert_eq!(ok, problems.is_empty(), "{picture:#}");
    for shard in list(&picture, "shards") {
        for member in list(shard, "members") {
            let at_least = member["lag_at_least"] == true;
            let Some(lag) = member["lag_ms"].as_u64() else {
                assert!(!at_least, "{picture:#}");
                continue;
            };
            assert!(shard["leader"].is_string(), "lag without a confirmed leader: {picture:#}");
            let age = member["report_age_ms"].as_u64();
            if lag == 0 {
                let fresh = !at_least && member["lag_entries"] == 0 && age.is_some_and(|age| age <= 250);
                assert!(fresh, "0 is not known: {picture:#}");
            }
            if age.is_none_or(|age| age > 250) {
                assert!(at_least && lag > 0, "a silent member's lag is a lower bound: {picture:#}");
            }
            if lag > LAGGING_MS {
                let name = member["node"].as_str().unwrap();
                let named = problems.iter().any(|p| p["subject"].as_str().is_some_and(|s| s.ends_with(name)));
                assert!(named, "{name} is behind and nothing is wrong: {picture:#}");
            }
        }
    }
    picture
}

fn member<'a>(picture: &'a Json, shard: &str, node: u64) -> Result<&'a Json, String> {
    let shard = list(picture, "shards").iter().find(|s| s["id"] == shard).ok_or("no such shard")?;
    let name = format!("n{node}");
    list(shard, "members").iter().find(|m| m["node"] == name.as_str()).ok_or(format!("{name} is not a member"))
}

fn problem(picture: &Json, name: &str, subject: &str) -> Result<(), String> {
    let there = list(picture, "problems").iter().any(|p| p["name"] == name && p["subject"] == subject);
    there.then_some(()).ok_or_else(|| format!("{name} {subject} is not among the problems"))
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    holds.then_some(()).ok_or_else(what)
}

/// Takes pictures for so long; those asked for a second after `began` or later must pass. Gives how many did.
fn watch(
    asked: &TestNode,
    began: Instant,
    lasts: Duration,
    right: impl Fn(&Json, Instant) -> Result<(), String>,
) -> usize {
    let mut passed = 0;
    let mut first = None;
    while began.elapsed() < lasts {
        let at = Instant::now();
        let Ok(picture) = asked.status() else { continue };
        let picture = truth(picture);
        match right(&picture, at) {
            Ok(()) => {
                first.get_or_insert(began.elapsed());
                passed += usize::from(at - began >= LIMIT);
            }
            // Where no quorum has confirmed the leader just now, no lag is stated, and that is said.
            Err(_) if list(&picture, "shards").iter().any(|shard| shard["confirmed"] != true) => {
                assert_ne!(picture["verdict"], "ok", "{picture:#}");
            }
            Err(why) => assert!(at - began < LIMIT, "{why}, {:?} after it began: {picture:#}", at - began),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(passed > 0, "no picture came in time");
    println!("right after {:?}, {passed} pictures", first.unwrap_or_default());
    passed
}

/// That a member's lag is at least so long, and a lower bound or not.
fn behind(member: &Json, least: Duration, at_least: Option<bool>) -> Result<(), String> {
    let lag = member["lag_ms"].as_u64().ok_or("no lag")?;
    check(lag > 0 && u128::from(lag) >= least.as_millis(), || format!("lag {lag} ms is less than {least:?}"))?;
    check(at_least.is_none_or(|want| member["lag_at_least"] == want), || "≥ where it is not, or not".into())
}

#[test]
fn a_stopped_replica() {
    let _alone = Turn::take(true);
    let cluster = TestCluster::started(3, 1);
    let beats = with_beats(&cluster);
    let master = cluster.settled();
    let follower = (1..=3).find(|id| *id != master).unwrap();
    for victim in [4, follower] {
        let asked = &cluster.nodes[&master];
        cluster.nodes[&victim].freeze();
        let began = Instant::now();
        watch(asked, began, seconds(4, 20), |picture, at| {
            for shard in ["s0", "s1"] {
                let member = member(picture, shard, victim)?;
                // It is silent: of the idle shard no more is known than for how long.
                behind(member, (at - began).saturating_sub(Duration::from_millis(300)), Some(true))?;
                check(member["stuck_at"] == "send", || format!("stuck at {}", member["stuck_at"]))?;
            }
            behind(member(picture, "s1", victim)?, beats.behind(began + SLOP, at), Some(true))?;
            let node = format!("n{victim}");
            problem(picture, "NodeUnreachable", &node)
                .and_then(|()| problem(picture, "ReplicaStalled", &format!("s1/{node}")))
                .or_else(|_| problem(picture, "NodeDown", &node))
        });
        cluster.nodes[&victim].thaw();
        healthy_again(asked);
    }
}

#[test]
fn a_replica_whose_inbound_is_blocked() {
    let _alone = Turn::take(true);
    let mut cluster = TestCluster::new(1, 1);
    let (to_master, to_replica) = (Proxy::new(cluster.node(1).port), Proxy::new(cluster.node(2).port));
    cluster.node(1).set_flag("--advertise", &to_master.address());
    cluster.node(2).set_flag("--advertise", &to_replica.address());
    cluster.node(2).set_flag("--replica-of", &to_master.address());
    cluster.start_all();
    cluster.wait_ready();
    let beats = with_beats(&cluster);
    to_master.block_to_client(true);
    to_replica.block_to_server(true);
    let began = Instant::now();
    watch(&cluster.nodes[&1], began, seconds(5, 30), |picture, at| {
        let member = member(picture, "s1", 2)?;
        behind(member, beats.behind(began + SLOP, at), None)?;
        check(member["stuck_at"] == "send", || format!("stuck at {}", member["stuck_at"]))?;
        problem(picture, "NodeUnreachable", "n2")?;
        problem(picture, "ReplicaStalled", "s1/n2")
    });
    to_master.block_to_client(false);
    to_replica.block_to_server(false);
    healthy_again(&cluster.nodes[&1]);
}

#[test]
fn a_replica_that_applies_nothing() {
    let _alone = Turn::take(true);
    let cluster = TestCluster::started(3, 1);
    let beats = with_beats(&cluster);
    let master = cluster.settled();
    let follower = (1..=3).find(|id| *id != master).unwrap();
    for victim in [4, follower] {
        let asked = &cluster.nodes[&master];
        cluster.nodes[&victim].hang("applier");
        let began = Instant::now();
        watch(asked, began, seconds(4, 20), |picture, at| {
            let member = member(picture, "s1", victim)?;
            behind(member, beats.behind(began + SLOP, at), None)?;
            check(member["stuck_at"] == "apply", || format!("stuck at {}", member["stuck_at"]))?;
            problem(picture, "ReplicaStalled", &format!("s1/n{victim}"))
        });
        cluster.nodes[&victim].unhang("applier");
        healthy_again(asked);
    }
}

#[test]
fn a_bulk_load() {
    let _alone = Turn::take(true);
    let cluster = TestCluster::started(1, 1);
    let beats = with_beats(&cluster);
    let began = Instant::now();
    let lasts = seconds(6, 60);
    let load = Arc::new(AtomicBool::new(true));
    let loaders: Vec<_> = (0..2)
        .map(|n| {
            let (mut sql, load) = (Sql::on(&cluster.nodes[&1]), load.clone());
            std::thread::spawn(move || {
                let text = "x".repeat(300);
                for batch in 0.. {
                    let row = |i: i64| format!("({}, '{text}')", (n * 1_000_000 + batch * 500) + i);
                    let rows: Vec<String> = (0..500).map(row).collect();
                    sql.must(&format!("INSERT INTO bulk VALUES {}", rows.join(",")));
                    if !load.load(Ordering::Relaxed) {
                        return;
                    }
                }
            })
        })
        .collect();
    let mut replica = Sql::on(&cluster.nodes[&2]);
    replica.must("SET read_level = local");
    let mut applied = move || replica.number("SELECT coalesce(max(n), 0) FROM beats");
    let (mut pictures, mut worst) = (0, 0);
    while began.elapsed() < lasts {
        let before = applied();
        let asked = Instant::now();
        let Ok(picture) = cluster.nodes[&1].status().map(truth) else { continue };
        let answered = Instant::now();
        let after = applied();
        let member = member(&picture, "s1", 2).unwrap();
        // None is stated while the leader is unconfirmed.
        let Some(lag) = member["lag_ms"].as_u64().map(Duration::from_millis) else { continue };
        // What the replica had not applied afterwards it had not applied when the picture was taken.
        if let Some((_, _, acked)) = beats.first(|(n, ..)| *n > after) {
            let least = asked.saturating_duration_since(acked);
            assert!(lag + Duration::from_millis(2) >= least, "it is behind by {least:?}: {picture:#}");
        }
        // What it had applied before was begun before whatever it had not.
        if let (Some((_, begun, _)), false) = (beats.first(|(n, ..)| *n >= before), member["lag_at_least"] == true) {
            let most = answered.saturating_duration_since(begun) + LIMIT;
            assert!(lag <= most, "it is behind by at most {most:?}: {picture:#}");
        }
        worst = worst.max(lag.as_millis());
        pictures += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{pictures} pictures, lag up to {worst} ms");
    assert!(pictures > 0);
    load.store(false, Ordering::Relaxed);
    loaders.into_iter().for_each(|thread| thread.join().unwrap());
    healthy_again(&cluster.nodes[&1]);
}

#[test]
fn a_write_load() {
    let _alone = Turn::take(true);
    let cluster = TestCluster::started(3, 1);
    let _beats = with_beats(&cluster);
    let asked = &cluster.nodes[&cluster.settled()];
    let load = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..4)
        .map(|n| {
            let (mut sql, load) = (Sql::on(asked), load.clone());
            std::thread::spawn(move || {
                for i in (n * 1_000_000..).take_while(|_| load.load(Ordering::Relaxed)) {
                    sql.must(&format!("INSERT INTO bulk VALUES ({i}, '')"));
                }
            })
        })
        .collect();
    let (began, mut pictures) = (Instant::now(), 0);
    while began.elapsed() < seconds(4, 30) {
        let picture = truth(asked.status().unwrap());
        for shard in list(&picture, "shards").iter().filter(|shard| shard["confirmed"] == true) {
            for member in list(shard, "members") {
                // Whoever reports lacks only what came under this leader, who knows when that was.
                let fresh = member["report_age_ms"].as_u64().is_some_and(|age| age <= 250);
                assert!(!fresh || member["lag_at_least"] == false, "{member:#} {picture:#}");
            }
        }
        pictures += 1;
    }
    load.store(false, Ordering::Relaxed);
    writers.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{pictures} pictures");
}

#[test]
fn an_idle_cluster() {
    let _alone = Turn::take(true);
    let cluster = TestCluster::started(3, 1);
    let asked = &cluster.nodes[&cluster.settled()];
    healthy_again(asked);
    let began = Instant::now();
    while began.elapsed() < seconds(5, 180) {
        // Nothing is behind, however long nothing was written: at most a report is late, and then that is said.
        let picture = truth(eventually("a picture", || asked.status()));
        for shard in list(&picture, "shards").iter().filter(|shard| shard["confirmed"] == true) {
            for member in list(shard, "members") {
                // The nodes themselves may write (a registration); who is behind that is not shown as level.
                match member["lag_entries"].as_u64() {
                    Some(0) => assert_eq!(member["lag_at_least"] == true, member["lag_ms"] != 0, "{picture:#}"),
                    _ => assert_ne!(member["lag_ms"], 0, "{picture:#}"),
                }
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    healthy_again(asked);
    // The silence of one who has nothing to say differs from that of one who cannot.
    let victim = &cluster.nodes[&4];
    victim.freeze();
    let began = Instant::now();
    watch(asked, began, seconds(3, 10), |picture, at| {
        for shard in ["s0", "s1"] {
            behind(member(picture, shard, 4)?, (at - began).saturating_sub(Duration::from_millis(300)), Some(true))?;
        }
        problem(picture, "NodeUnreachable", "n4").or_else(|_| problem(picture, "NodeDown", "n4"))
    });
    victim.thaw();
    healthy_again(asked);
}
