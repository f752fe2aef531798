//! Backups of real clusters by the real shell: made under load, interrupted, damaged, restored to a point in time.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value as Json;

use crate::support::{Sql, TestCluster, TestNode, eventually, free_port, quorate, run, shell, signal, text};

/// A backup that runs until it is killed or stopped.
struct Archiver(Child);

impl Archiver {
    fn start(cluster: &TestCluster, dir: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(dir.with_extension("log")).unwrap();
        let arguments = ["backup", "-h", &hosts(cluster), "--to", dir.to_str().unwrap()];
        Archiver(quorate(&arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// Waits until it ends by itself: its exit code, and what it said.
    fn ended(mut self, dir: &Path) -> (Option<i32>, String) {
        let status = eventually("the backup ends", || self.0.try_wait().unwrap().ok_or("it runs".to_owned()));
        (status.code(), std::fs::read_to_string(dir.with_extension("log")).unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn stop(mut self) {
        signal(&self.0, Signal::TERM);
        let status = eventually("SIGTERM ends a backup", || self.0.try_wait().unwrap().ok_or("it runs".to_owned()));
        assert_eq!(status.code(), Some(0));
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn manifest(dir: &Path) -> Result<Json, String> {
    let text = std::fs::read_to_string(dir.join("backup.json")).map_err(|e| e.to_string())?;
    serde_json::from_str::<Json>(&text).map(|json| json["backup"].clone()).map_err(|e| e.to_string())
}

/// Waits until every shard is archived up to a moment.
fn archived_until(dir: &Path, ms: u64) {
    eventually("the backup gets there", || {
        let manifest = manifest(dir)?;
        let shards = manifest["shards"].as_array().cloned().unwrap_or_default();
        let until = shards.iter().filter_map(|shard| shard["until_ms"].as_u64()).min().unwrap_or(0);
        if shards.len() == 2 && until > ms { Ok(()) } else { Err(format!("{until} is not {ms}")) }
    });
}

fn problems(cluster: &TestCluster) -> Result<Vec<String>, String> {
    let status = cluster.nodes.values().next().unwrap().status()?;
    let names = status["problems"].as_array().cloned().unwrap_or_default();
    Ok(names.iter().filter_map(|problem| problem["name"].as_str().map(str::to_owned)).collect())
}

/// A restored node, alone in its cluster.
struct Restored {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Restored {
    fn start(data: &Path, id: u64) -> Self {
        let (port, log) = (free_port(), data.with_extension("log"));
        let peers = format!("{id}=127.0.0.1:{port}");
        let child = Command::new(env!("CARGO_BIN_EXE_quorated"))
            .args(["start", "--disk-reserve-mb", "16", "--id", &id.to_string(), "--peers", &peers, "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, port, log }
    }

    fn sql(&self) -> Sql {
        Sql::at(self.port)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn restore(from: &Path, into: &Path, more: &[&str]) -> Result<Json, String> {
    let (from, into) = (from.to_str().unwrap(), into.to_str().unwrap());
    let output = run(&[&["restore", "--json", "--from", from, "--into", into], more].concat());
    match output.status.code() {
        Some(0) => serde_json::from_slice(&output.stdout).map_err(|e| e.to_string()),
        Some(1) => Err(text(&output.stderr)),
        code => panic!("{code:?}: {}", text(&output.stderr)),
    }
}

/// Ends the load, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Writes all the time; what was acknowledged is in `acknowledged`.
fn load(cluster: &TestCluster, stop: &AtomicBool, acknowledged: &AtomicI64) {
    let mut sql = Sql::anywhere(cluster);
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        sql.must(&format!("INSERT INTO busy VALUES ({n}, 'row {n}')"));
        acknowledged.store(n, Ordering::SeqCst);
    }
}

#[test]
fn a_dropped_table_comes_back_from_a_backup_made_under_load() {
    if shell().is_none() {
        return;
    }
    let cluster = TestCluster::started(3, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE busy (id INT PRIMARY KEY, note TEXT)");
    sql.must("CREATE TABLE keep (id SERIAL PRIMARY KEY, n INT)");
    let dir = cluster.path().join("backup");
    let archiver = Archiver::start(&cluster, &dir);
    // Its base is there: what follows can be gone back to.
    archived_until(&dir, 0);
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicI64::new(0));
    let (before, moment, busy) = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| load(&cluster, &stop, &acknowledged));
        for n in 1..=50 {
            sql.must(&format!("INSERT INTO keep (n) VALUES ({n})"));
        }
        sql.must("UPDATE keep SET n = n * 2 WHERE id <= 10");
        sql.must("DELETE FROM keep WHERE id = 50");
        let before = sql.must("SELECT id, n FROM keep ORDER BY id");
        let (moment, busy) = (now_ms(), acknowledged.load(Ordering::SeqCst));
        eventually("the clock goes on", || if now_ms() > moment + 5 { Ok(()) } else { Err("not yet".into()) });
        sql.must("DROP TABLE keep");
        archived_until(&dir, now_ms());
        (before, moment, busy)
    });

    // While the archiver still runs.
    let into = cluster.path().join("restored");
    let time = quorate_shared::archive::manifest::time_text(moment);
    let summary = restore(&dir, &into, &["--to-time", &time]).unwrap();
    assert!(summary["shards"][1]["compared"].as_u64().unwrap() > 0, "{summary}");
    let node = Restored::start(&into, 1);
    let mut restored = node.sql();
    assert_eq!(restored.must("SELECT id, n FROM keep ORDER BY id"), before);
    let rows = restored.number("SELECT count(*) FROM busy");
    assert!(rows >= busy, "{rows} rows, {busy} had been acknowledged");
    assert_eq!(restored.number("SELECT max(id) FROM busy"), rows, "no row in between is missing");
    // It is a cluster of its own: it writes, and its numbers go on.
    restored.must("INSERT INTO keep (n) VALUES (7)");
    assert!(restored.number("SELECT max(id) FROM keep") > 50);
    // A feed of a table that came with the backup goes on behind a TRUNCATE of it.
    let address = format!("127.0.0.1:{}", node.port);
    let token = crate::feed::Program::token(&address, "keep");
    for statement in ["INSERT INTO keep VALUES (900, 1)", "TRUNCATE keep", "INSERT INTO keep VALUES (901, 1)"] {
        restored.must(statement);
    }
    let changes = crate::feed::Program::behind(&address, "keep", &token, 3);
    let expected = [("insert", Some(900)), ("truncate", None), ("insert", Some(901))];
    assert_eq!(changes, expected.map(|(op, id)| (op.to_owned(), id)));
    drop(node);

    // An archiver that is gone is missed, and no more when it goes on.
    let stale = |problems: Vec<String>| problems.iter().any(|name| name == "BackupStale");
    assert!(!stale(problems(&cluster).unwrap()));
    archiver.kill();
    let killed = Instant::now();
    eventually("BackupStale", || if stale(problems(&cluster)?) { Ok(()) } else { Err("no problem".into()) });
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    sql.must("INSERT INTO busy VALUES (-1, 'while nobody archived')");
    let archiver = Archiver::start(&cluster, &dir);
    eventually("it is over", || if stale(problems(&cluster)?) { Err("stale".into()) } else { Ok(()) });
    archived_until(&dir, now_ms());
    archiver.stop();
    assert_eq!(manifest(&dir).unwrap()["ended"], true);

    // What it is worth.
    let output = run(&["backup", "verify", "--json", "--from", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let summary: Json = serde_json::from_slice(&output.stdout).unwrap();
    let data = &summary["shards"][1];
    assert_eq!(data["compared_at"], data["archived"], "the last state was compared: {summary}");
    let everything = cluster.path().join("everything");
    restore(&dir, &everything, &[]).unwrap();
    let node = Restored::start(&everything, 1);
    assert_eq!(node.sql().number("SELECT count(*) FROM busy WHERE id = -1"), 1);
}

#[test]
fn a_backup_that_is_not_whole_is_refused_by_name() {
    if shell().is_none() {
        return;
    }
    let cluster = TestCluster::started(1, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    for n in 1..=20 {
        sql.must(&format!("INSERT INTO t VALUES ({n}, {n})"));
    }
    let dir = cluster.path().join("once");
    let (hosts, to) = (cluster.nodes[&1].address(), dir.to_str().unwrap().to_owned());
    for part in 0..2 {
        // A snapshot first; the second time the log since.
        let output = run(&["backup", "-h", &hosts, "--to", &to, "--once", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let json: Json = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["schema"], &json["shards"][0]["shard"]), (&1.into(), &"s0".into()), "{json}");
        let id = format!("{:016x}", manifest(&dir).unwrap()["id"].as_u64().unwrap());
        assert_eq!((json["id"].as_str(), &json["ended"]), (Some(id.as_str()), &true.into()), "{json}");
        let output = run(&["backup", "verify", "--from", &to]);
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains("the backup is good"), "{output:?}");
        let data = "s1: the digests of all tables were those of the cluster at ";
        assert!(said.contains(&format!("{data}{}", if part == 0 { "1 point, " } else { "" })), "{said}");
        assert_eq!(said.contains("s1: checksums proved of its base at entry "), part == 0, "{said}");
        for n in part * 20 + 21..part * 20 + 41 {
            sql.must(&format!("INSERT INTO t VALUES ({n}, {n})"));
        }
    }
    assert_eq!(cluster.nodes[&1].status().unwrap()["archives"], serde_json::json!([]), "nothing to be missed");

    let into = cluster.path().join("into");
    for entry in std::fs::read_dir(&dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let bytes = std::fs::read(&path).unwrap();
        for at in [0, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            if bytes.is_empty() {
                continue;
            }
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, damaged).unwrap();
            let error = restore(&dir, &into, &[]).expect_err("a flipped bit");
            assert!(error.contains(&name), "byte {at} of {name}: {error}");
        }
        if !bytes.is_empty() {
            std::fs::remove_file(&path).unwrap();
            let error = restore(&dir, &into, &[]).expect_err("a missing file");
            assert!(error.contains(&name) && !error.contains("at byte"), "{name} is missing: {error}");
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    assert!(!into.exists(), "nothing is left of a restore that failed");

    // Where it may not go, and where it does not reach.
    std::fs::create_dir(&into).unwrap();
    std::fs::write(into.join("mine"), "").unwrap();
    let error = restore(&dir, &into, &[]).expect_err("a directory with something in it");
    assert!(error.contains("is not empty"), "{error}");
    assert!(into.join("mine").exists());
    std::fs::remove_file(into.join("mine")).unwrap();
    for time in ["2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
        let error = restore(&dir, &into, &["--to-time", time]).expect_err("out of range");
        assert!(error.contains("it reaches from 20"), "{error}");
    }
    let error = restore(&dir, &into, &["--to-index", "s1:999999"]).expect_err("out of range");
    assert!(error.contains("it holds s1:"), "{error}");
    let error = restore(&dir, &into, &["--to-index", "s7:1"]).expect_err("no such shard");
    assert_eq!(error.trim(), "reads the backup\nerror: there is no shard s7: a backup has s0 and s1");

    // To an entry: the rows grow one by one with it.
    let last = manifest(&dir).unwrap()["shards"][1]["files"][0]["last"].as_u64().unwrap();
    restore(&dir, &into, &["--to-index", &format!("s1:{}", last - 5), "--id", "7"]).unwrap();
    let node = Restored::start(&into, 7);
    assert_eq!(node.sql().number("SELECT max(id) FROM t"), 35);

    // A directory of something else is no place for a backup.
    let other = cluster.path().join("n1");
    let output = run(&["backup", "-h", &hosts, "--to", other.to_str().unwrap(), "--once"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no backup and not empty"), "{}", text(&output.stderr));
}

#[test]
fn no_backup_is_made_of_an_engine_that_is_still_checked() {
    if shell().is_none() {
        return;
    }
    let mut cluster = TestCluster::started(1, 0);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    insert(&mut sql, 1..=20);
    let (address, begun) = (cluster.nodes[&1].address(), cluster.path().join("begun"));
    let backup = |to: &Path| {
        let output = run(&["backup", "-h", &address, "--to", to.to_str().unwrap(), "--once", "--timeout", "1s"]);
        (output.status.code().unwrap(), text(&output.stderr))
    };
    let (code, said) = backup(&begun);
    assert_eq!(code, 0, "{said}");
    insert(&mut sql, 21..=40);
    cluster.node(1).kill();
    cluster.nodes[&1].hang("scrub");
    cluster.node(1).start();
    cluster.wait_ready();

    // It serves, but neither begins a backup nor ends one: both take something from the engine.
    let new = cluster.path().join("new");
    for to in [&new, &begun] {
        let (code, said) = backup(to);
        assert!(code == 1 && said.contains("EngineUnchecked: no backup of s"), "{code} {said}");
    }
    // One that may take its time gets the log it goes on with, no digest of the engine, and waits for a base.
    let waits = cluster.path().join("waits");
    let (waiting, going_on) = (Archiver::start(&cluster, &waits), Archiver::start(&cluster, &begun));
    archived_until(&begun, now_ms());
    let snapshots = |dir: &Path| manifest(dir).unwrap()["shards"].as_array().cloned().unwrap_or_default();
    assert_eq!(snapshots(&waits), Vec::<Json>::new());
    going_on.stop();
    let verified = || {
        let output = run(&["backup", "verify", "--json", "--from", begun.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let summary: Json = serde_json::from_slice(&output.stdout).unwrap();
        let data = summary["shards"][1].clone();
        (data["compared_at"].as_u64(), data["archived"].as_u64())
    };
    let (compared, archived) = verified();
    assert!(archived.is_some() && compared < archived, "{compared:?} {archived:?}");

    cluster.nodes[&1].unhang("scrub");
    insert(&mut Sql::on(&cluster.nodes[&1]), 41..=41);
    archived_until(&waits, now_ms());
    waiting.stop();
    eventually("the backup that was begun ends", || match backup(&begun) {
        (0, _) => Ok(()),
        (_, said) => Err(said),
    });
    let (compared, archived) = verified();
    assert_eq!(compared, archived);
    for dir in [&waits, &begun] {
        let into = dir.with_extension("restored");
        restore(dir, &into, &[]).unwrap();
        let node = Restored::start(&into, 1);
        assert_eq!(node.sql().number("SELECT sum(n) FROM t"), 861);
    }
}

#[test]
fn a_backup_whose_archiver_was_killed_reaches_as_far_as_its_entries() {
    if shell().is_none() {
        return;
    }
    let cluster = TestCluster::started(1, 0);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    let dir = cluster.path().join("backup");
    let archiver = Archiver::start(&cluster, &dir);
    archived_until(&dir, now_ms());
    // What is in the file of s1 that is being written, whatever the manifest says of it.
    let written = || {
        let files = std::fs::read_dir(&dir).unwrap().flatten();
        let part = files.filter(|file| file.file_name().to_string_lossy().starts_with("s1-"));
        part.map(|file| file.metadata().unwrap().len()).sum::<u64>()
    };
    let before = written();
    insert(&mut sql, 1..=20);
    eventually("entries come", || if written() > before { Ok(()) } else { Err("none yet".into()) });
    archiver.kill();

    let (everything, again) = (cluster.path().join("everything"), cluster.path().join("again"));
    let all = restore(&dir, &everything, &[]).unwrap();
    let cut = restore(&dir, &again, &["--to-time", all["time"].as_str().unwrap()]).unwrap();
    assert_eq!((&cut["time"], &cut["shards"][1]["index"]), (&all["time"], &all["shards"][1]["index"]), "{cut}");
    let error =
        restore(&dir, &cluster.path().join("never"), &["--to-time", "2999-01-01T00:00:00Z"]).expect_err("never");
    assert!(error.contains(" to 20") && error.contains("it reaches from"), "{error}");
    let node = Restored::start(&again, 1);
    assert!(node.sql().number("SELECT count(*) FROM t") > 0);
}

fn hosts(cluster: &TestCluster) -> String {
    cluster.nodes.values().map(TestNode::address).collect::<Vec<_>>().join(",")
}

/// Makes a replica the first voter of a new epoch, by the shell.
fn promote(node: &TestNode, more: &[&str]) {
    let address = node.address();
    let line = [&["admin", "promote", "--yes", "-h", &address], more].concat();
    // It is refused while the old master is still believed to be there.
    eventually("it is promoted", || {
        let output = run(&line);
        if output.status.success() { Ok(()) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
    });
}

fn insert(sql: &mut Sql, ids: std::ops::RangeInclusive<i64>) {
    ids.for_each(|n| drop(sql.must(&format!("INSERT INTO t VALUES ({n}, {n})"))));
}

#[test]
fn a_backup_goes_on_in_the_epoch_of_a_promoted_replica() {
    if shell().is_none() {
        return;
    }
    let mut cluster = TestCluster::started(1, 1);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    let dir = cluster.path().join("backup");
    let archiver = Archiver::start(&cluster, &dir);
    archived_until(&dir, 0);
    insert(&mut sql, 1..=20);
    eventually("the replica has it", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    archived_until(&dir, now_ms());
    let before = now_ms();
    cluster.node(1).kill();
    promote(&cluster.nodes[&2], &[]);
    let mut sql = Sql::on(&cluster.nodes[&2]);
    insert(&mut sql, 21..=40);
    archived_until(&dir, now_ms());
    archiver.stop();

    let time = quorate_shared::archive::manifest::time_text(before);
    for (into, more, rows) in [("then", &["--to-time", time.as_str()][..], 20), ("now", &[], 40)] {
        let into = cluster.path().join(into);
        let summary = restore(&dir, &into, more).unwrap();
        assert_eq!(summary["epoch"], 3, "above both that are in the archive: {summary}");
        let node = Restored::start(&into, 1);
        let mut restored = node.sql();
        assert_eq!((restored.number("SELECT count(*) FROM t"), restored.number("SELECT max(id) FROM t")), (rows, rows));
        restored.must("INSERT INTO t VALUES (100, 100)");
    }
    let output = run(&["backup", "verify", "--from", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn what_a_promotion_lost_ends_a_backup_and_a_feed_by_name() {
    if shell().is_none() {
        return;
    }
    let mut cluster = TestCluster::started(1, 1);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, n INT)");
    let dir = cluster.path().join("backup");
    // Where it reads from must have what the replica has not.
    let archiver = Archiver::start(&cluster, &dir);
    archived_until(&dir, 0);
    insert(&mut sql, 1..=20);
    eventually("the replica has it", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    let address = cluster.nodes[&1].address();
    let token = |after: &str| {
        let feed = ["feed", "--table", "t", "--heartbeat", "--from", after, "-h", &address];
        crate::feed::Program::start(&feed).line()["token"].as_str().unwrap().to_owned()
    };
    let kept = token("now");
    // Not merely frozen: what lay in its socket would reach it all the same.
    cluster.node(2).kill();
    insert(&mut sql, 21..=25);
    let lost = token("now");
    archived_until(&dir, now_ms());
    cluster.node(1).kill();
    cluster.node(2).start();
    promote(&cluster.nodes[&2], &["--accept-loss"]);
    let (code, said) = archiver.ended(&dir);
    assert!(code == Some(1) && said.contains("has another history of s"), "{code:?} {said}");
    assert!(said.contains("begin a new backup in another directory"), "{said}");

    let mut sql = Sql::on(&cluster.nodes[&2]);
    sql.must("INSERT INTO t VALUES (26, 26)");
    let feed = |from: &str, more: &[&str]| {
        let address = cluster.nodes[&2].address();
        run(&[&["feed", "--table", "t", "-h", &address, "--from", from], more].concat())
    };
    let output = feed(&lost, &[]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("of another cluster or epoch"), "{said}");
    let output = feed(&kept, &["--limit", "1"]);
    assert!(text(&output.stdout).contains("\"key\":{\"id\":26}"), "{}", text(&output.stdout));

    // What it has is what was acknowledged then.
    let into = cluster.path().join("into");
    restore(&dir, &into, &[]).unwrap();
    let node = Restored::start(&into, 1);
    assert_eq!(node.sql().number("SELECT count(*) FROM t"), 25);
}
