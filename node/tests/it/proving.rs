//! A log that proves itself: verified offline and while it runs, anchored, scrubbed, healed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_shared::admin::AdminAction;
use quorate_shared::anchor::Anchor;
use serde_json::Value as Json;

use crate::support::{Sql, TestCluster, eventually};

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

/// The file with the most bytes that are not zero.
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
