//! A log that proves itself: verified offline and while it runs, anchored, scrubbed, healed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_core::engine::sled::trust;
use quorate_core::engine::{Batch, Engine};
use quorate_core::keys;
use quorate_shared::admin::AdminAction;
use quorate_shared::anchor::{Anchor, NodeKey, unhex};
use quorate_shared::ids::NodeId;
use serde_json::Value as Json;

use crate::support::{Sql, TestCluster, TestNode, eventually, run, shell, text};

fn filled(cluster: &TestCluster, rows: i64) -> Sql {
    let mut sql = Sql::anywhere(cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, name TEXT)");
    for from in (0..rows).step_by(200) {
        let values: Vec<String> = (from..(from + 200).min(rows)).map(|i| format!("({i}, 'row {i}')")).collect();
        sql.must(&format!("INSERT INTO t VALUES {}", values.join(", ")));
    }
    sql
}

/// `quorated verify`: exit code and JSON.
fn verify(data: &Path) -> (i32, Json) {
    let out = Command::new(env!("CARGO_BIN_EXE_quorated")).arg("verify").arg(data).arg("--json").output().unwrap();
    (out.status.code().unwrap(), serde_json::from_slice(&out.stdout).unwrap_or_default())
}

fn verify_anchor(sql: &mut Sql, anchor: &str) -> Result<String, String> {
    let end = sql.admin(AdminAction::Verify { anchor: Some(anchor.into()) }, false).map_err(|e| e.to_string())?;
    if end.refused() {
        return Err(end.plan.refusals.join("; "));
    }
    let outcome = end.outcome.ok_or("no outcome")?;
    if outcome.done { Ok(outcome.summary) } else { Err(outcome.summary) }
}

fn anchor(sql: &mut Sql) -> Anchor {
    let end = sql.admin(AdminAction::Anchor, false).unwrap();
    let outcome = end.outcome.unwrap_or_else(|| panic!("{:?}", end.plan));
    Anchor::parse(&outcome.document.unwrap_or_else(|| panic!("{}", outcome.summary))).unwrap()
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(data.join("log")).unwrap().flatten().map(|item| item.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    files.sort();
    files
}

/// Turns one bit over in the middle of what is written.
fn flip(path: &Path) -> u64 {
    let mut bytes = fs::read(path).unwrap();
    let used = bytes.iter().rposition(|b| *b != 0).unwrap();
    let at = used / 2;
    bytes[at] ^= 8;
    fs::write(path, bytes).unwrap();
    at as u64
}

#[test]
fn a_cluster_proves_itself_signs_an_anchor_and_scrubs() {
    let cluster = TestCluster::started(3, 1);
    let mut sql = filled(&cluster, 600);
    eventually("the replica catches up", || cluster.nodes[&4].caught_up(&cluster.nodes[&1]));
    let facts = sql.act(AdminAction::Verify { anchor: None });
    for node in ["n1", "n2", "n3", "n4"] {
        assert!(facts[node].contains("s1 entries 1 to"), "{facts:?}");
    }
    assert!(facts["s1"].contains("(3 of 3 voters)") && facts["s1"].contains("n4"), "{facts:?}");

    let good = anchor(&mut sql);
    let checked = good.check().unwrap();
    assert!(checked.strong && checked.signed.len() == 4, "{checked:?}");
    sql.must("INSERT INTO t VALUES (10000, 'after the anchor')");
    verify_anchor(&mut sql, &good.document()).unwrap();
    // The key is made once and is its owner's alone.
    let key = cluster.nodes[&1].data.join("node.key");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);

    // Changed after it was signed; of another cluster; no anchor at all: each by name, before anything is asked.
    let mut forged = good.clone();
    forged.shards[0].index += 1;
    assert!(verify_anchor(&mut sql, &forged.document()).unwrap_err().contains("signature of n"));
    let mut other = good;
    other.cluster = "ab".repeat(16);
    assert!(verify_anchor(&mut sql, &other.document()).unwrap_err().contains("OtherCluster"));
    assert!(verify_anchor(&mut sql, "{}").unwrap_err().contains("BadAnchor"));

    let facts = sql.act(AdminAction::Scrub);
    assert!(facts["s1"].contains("compared on n1, n2, n3, n4"), "{facts:?}");
    assert!(facts["s1_rows"].parse::<u64>().unwrap() >= 601, "{facts:?}");
}

#[test]
fn a_directory_is_verified_offline_and_a_flipped_bit_is_named_and_healed() {
    let mut cluster = TestCluster::started(1, 1);
    let mut sql = filled(&cluster, 600);
    eventually("the replica catches up", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    let data = cluster.nodes[&2].data.clone();
    let running = Command::new(env!("CARGO_BIN_EXE_quorated")).arg("verify").arg(&data).output().unwrap();
    assert_eq!(running.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&running.stderr).contains("is in use"), "{running:?}");

    assert_eq!(cluster.node(2).terminate(), Some(0));
    let (code, json) = verify(&data);
    assert_eq!((code, &json["proved"], &json["closed_cleanly"]), (0, &true.into(), &true.into()), "{json:#}");
    assert!(json["shards"][1]["tree"]["rows"].as_u64().unwrap() >= 600, "{json:#}");
    let chain = json["shards"][1]["chain"]["chain"].as_str().unwrap_or_else(|| panic!("{json:#}"));
    assert!(chain.len() == 64 && chain.bytes().all(|byte| byte.is_ascii_hexdigit()), "{chain}");

    // The log: the replica takes it from the master again.
    let segment = segments(&data).pop().unwrap();
    let at = flip(&segment);
    let (code, json) = verify(&data);
    let damage = &json["damage"][0];
    assert_eq!((code, damage["file"].as_str()), (1, segment.to_str()), "{json:#}");
    assert!(damage["offset"].as_u64().unwrap() <= at, "{json:#}");
    cluster.node(2).start();
    sql.must("INSERT INTO t VALUES (10001, 'healed')");
    let counted = |cluster: &TestCluster, rows: i64| {
        eventually("the replica heals", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
        assert_eq!(Sql::on(&cluster.nodes[&2]).number("SELECT count(*) FROM t"), rows);
    };
    counted(&cluster, 601);

    // The engine, of the replica and of the voter: rebuilt from the log.
    for id in [2, 1] {
        assert_eq!(cluster.node(id).terminate(), Some(0));
        let data = cluster.nodes[&id].data.clone();
        flip(&data.join("engine/db"));
        let (code, json) = verify(&data);
        assert_eq!(code, 1, "{json:#}");
        assert!(json["damage"][0]["file"].as_str().unwrap().ends_with("engine/db"), "{json:#}");
        cluster.node(id).start();
        cluster.wait_ready();
        assert!(cluster.nodes[&id].log_text().contains("EngineRebuilt"));
        counted(&cluster, 601);
        assert_eq!(Sql::on(&cluster.nodes[&1]).number("SELECT count(*) FROM t"), 601);
        assert_eq!(cluster.node(id).terminate(), Some(0));
        let (code, json) = verify(&data);
        assert_eq!(code, 0, "{json:#}");
        cluster.node(id).start();
        cluster.wait_ready();
    }
}

/// Copies a directory without directories in it that matter, over what is there.
fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap().flatten().map(|item| item.path()).filter(|path| path.is_file()) {
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

#[test]
fn damage_that_only_a_read_meets_has_the_engine_rebuilt_and_named() {
    let mut cluster = TestCluster::started(1, 1);
    let mut sql = Sql::anywhere(&cluster);
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, name TEXT, rest TEXT)");
    for from in (0..8000).step_by(500) {
        let rest = "x".repeat(400);
        let values: Vec<String> = (from..from + 500).map(|i| format!("({i}, 'row {i}', '{rest}')")).collect();
        sql.must(&format!("INSERT INTO t VALUES {}", values.join(", ")));
    }
    // Many segments of the engine's file, all but the last written before the last opening: the next does not read them.
    for _ in 0..2 {
        eventually("the replica catches up", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
        assert_eq!(cluster.node(2).terminate(), Some(0));
        cluster.node(2).start();
        cluster.wait_ready();
    }
    assert_eq!(cluster.node(2).terminate(), Some(0));
    let data = cluster.nodes[&2].data.clone();
    let (whole, engine) = (cluster.path().join("whole"), data.join("engine"));
    fs::create_dir(&whole).unwrap();
    copy_files(&engine, &whole);
    let mark = fs::read(data.join("engine.trust")).unwrap();
    // As if the engine were too large to be compared with its seal at the start.
    fs::remove_file(data.join("engine.seal")).unwrap();
    let bytes = fs::read(whole.join("db")).unwrap();
    let copies: Vec<usize> = (0..bytes.len() - 8).filter(|at| bytes[*at..].starts_with(b"row 777x")).collect();
    let read = |cluster: &TestCluster| {
        let mut local = Sql::on(&cluster.nodes[&2]);
        local.run("SET read_level = local").map_err(|e| e.to_string())?;
        let result = local.run("SELECT name FROM t WHERE id = 777").map_err(|e| e.to_string())?;
        result.rows.first().map(|row| row[0].to_string()).ok_or("the row is not there".to_owned())
    };
    // Most copies are of earlier states, which nobody reads, or in the last segment, which the start reads.
    let met = copies.iter().rev().any(|at| {
        let mut damaged = bytes.clone();
        damaged[*at] ^= 8;
        fs::remove_dir_all(&engine).unwrap();
        fs::create_dir(&engine).unwrap();
        copy_files(&whole, &engine);
        fs::write(engine.join("db"), damaged).unwrap();
        fs::write(data.join("engine.trust"), &mark).unwrap();
        let before = cluster.nodes[&2].log_text().len();
        cluster.node(2).start();
        cluster.wait_ready();
        let told = |cluster: &TestCluster| cluster.nodes[&2].log_text()[before..].contains("the engine is damaged");
        let opened = !cluster.nodes[&2].log_text()[before..].contains("EngineRebuilt") && !told(&cluster);
        match read(&cluster) {
            Ok(name) if !opened || !told(&cluster) => {
                assert_eq!(name, "row 777");
                assert_eq!(cluster.node(2).terminate(), Some(0));
                // A seal is of what was closed last.
                fs::remove_file(data.join("engine.seal")).unwrap();
                false
            }
            _ => {
                eventually("the engine is distrusted", || if told(&cluster) { Ok(()) } else { Err("not yet".into()) });
                true
            }
        }
    });
    assert!(met, "no copy of {} is met by the read alone", copies.len());
    let named = |asked: u64| {
        let status = cluster.nodes[&asked].status()?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let one = problems.iter().any(|p| p["name"] == "EngineRebuilt" && p["subject"] == "n2");
        if one { Ok(()) } else { Err(status["problems"].to_string()) }
    };
    eventually("everybody names it", || named(1).and_then(|()| named(2)));
    assert_eq!(eventually("it heals", || read(&cluster)), "row 777");
}

/// Rewrites a row in the engine of a node that does not run, as no entry of its log ever did: checksums, seal and chain
/// are right, the row is not.
fn forge(node: &TestNode, old: &str, new: &str) {
    let boot = trust::boot_id().unwrap();
    let engine = trust::open_trusted(&node.data, &boot, 8 << 20).unwrap().engine;
    let mut forged = 0;
    for name in engine.tree_names() {
        let tree = engine.tree(&name).unwrap();
        let mut batch = Batch::default();
        for item in tree.scan(&keys::rows_range(), false) {
            let (key, value) = item.unwrap();
            if let Some(at) = value.windows(old.len()).position(|part| part == old.as_bytes()) {
                let mut bytes = value.to_vec();
                bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
                batch.writes.insert(key, Some(bytes.into()));
                forged += 1;
            }
        }
        tree.write(batch).unwrap();
    }
    assert_eq!(forged, 1, "one row has {old}");
    trust::close(&node.data, &boot, engine).unwrap();
}

/// What the status says of a node that was found to differ.
fn diverged(asked: &TestNode, id: u64) -> Result<String, String> {
    let status = asked.status()?;
    let all = status["problems"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|p| p["name"] == "ReplicaDiverged" && p["subject"] == format!("n{id}").as_str());
    found.map(ToString::to_string).ok_or(status["problems"].to_string())
}

#[test]
fn a_row_that_no_entry_wrote_is_found_by_the_scrub_named_and_healed() {
    let mut cluster = TestCluster::started(3, 1);
    let mut sql = filled(&cluster, 1500);
    // A voter: the majority is right. A replica: it has no say.
    for id in [2, 4] {
        let asked = cluster.settled();
        eventually("everybody has everything", || cluster.nodes[&id].caught_up(&cluster.nodes[&asked]));
        assert_eq!(cluster.node(id).terminate(), Some(0));
        forge(&cluster.nodes[&id], "row 777", "raw 777");
        cluster.node(id).start();
        cluster.wait_ready();
        let asked = cluster.settled();
        eventually("it is back", || cluster.nodes[&id].caught_up(&cluster.nodes[&asked]));
        let read = |node: &TestNode| {
            let mut local = Sql::on(node);
            local.run("SET read_level = local").map_err(|e| e.to_string())?;
            let result = local.run("SELECT name FROM t WHERE id = 777").map_err(|e| e.to_string())?;
            result.rows.first().map(|row| row[0].to_string()).ok_or("the row is not there".to_owned())
        };
        let forged = eventually("it reads", || read(&cluster.nodes[&id]));
        assert_eq!(forged, "raw 777", "and nobody has noticed");
        let end = Sql::on(&cluster.nodes[&asked]).admin(AdminAction::Scrub, false).unwrap();
        let said = end.outcome.filter(|outcome| !outcome.done).unwrap().summary;
        for part in ["ReplicaDiverged: ", &format!("s1/n{id}, table t differs in "), "n1 512 rows"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // It says so itself, where it was, and takes the rows from its log again.
        let named = eventually("the status names it", || diverged(&cluster.nodes[&asked], id));
        assert!(named.contains("table t differs in "), "{named}");
        // It restarts in place: until it has read its log again there may be no row at all.
        eventually("it heals", || match read(&cluster.nodes[&id])?.as_str() {
            "row 777" => cluster.nodes[&id].caught_up(&cluster.nodes[&asked]),
            other => Err(other.to_owned()),
        });
        eventually("all are compared again", || {
            let facts = Sql::on(&cluster.nodes[&asked]).act(AdminAction::Scrub);
            let all = facts["s1"].contains("compared on n1, n2, n3, n4");
            if all { Ok(()) } else { Err(facts["s1"].clone()) }
        });
    }
    sql.must("INSERT INTO t VALUES (10000, 'it goes on')");
}

#[test]
fn an_anchor_that_does_not_fit_is_an_error_by_name() {
    if shell().is_none() {
        return;
    }
    let cluster = TestCluster::started(1, 0);
    let mut sql = filled(&cluster, 50);
    let address = cluster.nodes[&1].address();
    let file = cluster.path().join("anchor.json");
    let file = file.to_str().unwrap();
    let output = run(&["anchor", "-h", &address, "--out", file]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let good = Anchor::parse(&fs::read_to_string(file).unwrap()).unwrap();
    let again = run(&["anchor", "-h", &address, "--out", file]);
    assert!(again.status.code() == Some(2) && text(&again.stderr).contains("is there already"), "{again:?}");
    assert_eq!(Anchor::parse(&fs::read_to_string(file).unwrap()).unwrap(), good, "nothing is written over");
    let verify = || {
        let output = run(&["verify", "-h", &address, "--anchor", file]);
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    sql.must("INSERT INTO t VALUES (10000, 'later')");
    let (code, said) = verify();
    assert!(code == 0 && said.contains("strong (1 of 1 voters signed)"), "{said}");

    // Signed as it should be, of a history that this cluster does not have: the log was rewritten, or cut.
    let secret = fs::read_to_string(cluster.nodes[&1].data.join("node.key")).unwrap();
    let key = NodeKey::from_secret(&unhex(secret.trim()).unwrap());
    let write = |change: &dyn Fn(&mut Anchor)| {
        let mut anchor = good.clone();
        change(&mut anchor);
        anchor.signatures = vec![key.sign(&anchor, NodeId::new(1))];
        fs::write(file, anchor.document()).unwrap();
    };
    write(&|anchor| anchor.shards.last_mut().unwrap().chain = "ab".repeat(32));
    let (code, said) = verify();
    assert!(code == 1 && said.contains("AnchorMismatch: n1: the chain of s1 at entry "), "{code} {said}");
    write(&|anchor| anchor.shards.last_mut().unwrap().index += 1000);
    let (code, said) = verify();
    assert!(code == 1 && said.contains("AnchorMismatch: nobody has entry "), "{code} {said}");
    // Changed after it was signed; of another cluster; no anchor, which the shell sees by itself; not there.
    let mut forged = good.clone();
    forged.shards[0].index += 1;
    let mut other = good.clone();
    other.cluster = "ab".repeat(16);
    let cases = [
        (forged.document(), 1, "BadAnchor: "),
        (other.document(), 1, "OtherCluster: "),
        ("{}".into(), 2, "this is no anchor"),
    ];
    for (bytes, exit, name) in cases {
        fs::write(file, bytes).unwrap();
        let (code, said) = verify();
        assert!(code == exit && said.contains(name), "{name}: {code} {said}");
    }
    fs::remove_file(file).unwrap();
    let (code, said) = verify();
    assert!(code == 2 && said.contains("anchor.json"), "{code} {said}");
}
