//! A log that can be cut: bases, trimming, filling replicas and voters that are behind, rebuilding an engine without
//! anybody else.

use std::path::Path;

use crate::support::{Sql, TestCluster, eventually};

/// Rows that are overwritten again and again, and bytes of each.
const ROWS: u64 = 400;
const ROW_BYTES: usize = 2_000;
const MB: u64 = 1 << 20;

/// Small segments and bases, so that little writing makes the log be trimmed.
pub fn started(voters: u64, replicas: u64, retention_mb: u64) -> TestCluster {
    started_with("raft", voters, replicas, retention_mb)
}

fn started_with(replicator: &str, voters: u64, replicas: u64, retention_mb: u64) -> TestCluster {
    let mut cluster = TestCluster::new(voters, replicas);
    (1..=voters).for_each(|id| cluster.node(id).set_flag("--replicator", replicator));
    for node in cluster.nodes.values_mut() {
        node.add_flags(&["--segment-mb", "8", "--base-min-mb", "8", "--retention-mb", &retention_mb.to_string()]);
    }
    cluster.start_all();
    cluster.wait_ready();
    cluster
}

pub fn create(sql: &mut Sql) {
    sql.must("CREATE TABLE t (id INT PRIMARY KEY, round INT, body TEXT)");
}

/// Writes every row once more: [`ROWS`] times [`ROW_BYTES`].
pub fn overwrite(sql: &mut Sql, round: u64) {
    let body = "x".repeat(ROW_BYTES);
    for from in (0..ROWS).step_by(100) {
        let rows: Vec<String> = (from..from + 100).map(|id| format!("({id}, {round}, '{body}')")).collect();
        if round == 0 {
            sql.must(&format!("INSERT INTO t VALUES {}", rows.join(", ")));
        } else {
            sql.must(&format!(
                "UPDATE t SET round = {round}, body = '{body}' WHERE id >= {from} AND id < {}",
                from + 100
            ));
        }
    }
}

fn check(sql: &mut Sql, round: u64) {
    assert_eq!(sql.number("SELECT count(*) FROM t"), ROWS as i64);
    assert_eq!(sql.number(&format!("SELECT count(*) FROM t WHERE round = {round}")), ROWS as i64);
}

fn bytes(dir: &Path) -> u64 {
    let Ok(entries) = dir.read_dir() else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// Number of the first log segment that is there.
fn first_segment(data: &Path) -> u64 {
    let names = data.join("log").read_dir().unwrap().flatten().map(|e| e.file_name());
    names.filter_map(|n| n.to_str()?.strip_suffix(".seg")?.parse().ok()).min().unwrap()
}

/// Overwrites until the log of these nodes has been trimmed; the last round.
pub fn until_trimmed(cluster: &TestCluster, sql: &mut Sql, nodes: &[u64], mut round: u64) -> u64 {
    let start: Vec<u64> = nodes.iter().map(|id| first_segment(&cluster.nodes[id].data)).collect();
    eventually("the log is trimmed", || {
        round += 1;
        overwrite(sql, round);
        let behind = nodes.iter().zip(&start).find(|(id, start)| first_segment(&cluster.nodes[id].data) <= **start);
        behind.map_or(Ok(()), |(id, _)| Err(format!("n{id} still has its first segment")))
    });
    round
}

/// As after a power cut: the machine has another boot id, and the engine was not closed.
fn lose_engine(data: &Path) {
    std::fs::write(data.join("engine.trust"), "quorate engine 1\nboot another\nstate open\n").unwrap();
}

#[test]
fn the_log_stays_small_under_endless_overwriting_and_survives_restarts() {
    let mut cluster = started(1, 0, 1024);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    create(&mut sql);
    overwrite(&mut sql, 0);
    let mut round = 0;
    let data = cluster.nodes[&1].data.clone();
    let (mut written, mut most) = (0, 0);
    while written < 100 * MB {
        round += 1;
        overwrite(&mut sql, round);
        written += ROWS * ROW_BYTES as u64;
        most = most.max(bytes(&data.join("log")) + bytes(&data.join("snapshots")));
    }
    // Twice the data, a segment that is being filled, one of which something is still needed, and what is written while
    // a base is.
    assert!(most < 48 * MB, "log and bases have taken {most} bytes");
    check(&mut sql, round);
    for _ in 0..2 {
        cluster.node(1).kill();
        cluster.node(1).start();
        cluster.wait_ready();
        let mut sql = Sql::on(&cluster.nodes[&1]);
        check(&mut sql, round);
        round += 1;
        overwrite(&mut sql, round);
    }
}

#[test]
fn an_engine_is_rebuilt_from_base_and_log_without_anybody() {
    let mut cluster = started(1, 0, 1024);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    create(&mut sql);
    overwrite(&mut sql, 0);
    let round = until_trimmed(&cluster, &mut sql, &[1], 0);
    sql.must("INSERT INTO t VALUES (10000, 0, 'behind the base')");
    let data = cluster.nodes[&1].data.clone();
    cluster.node(1).kill();
    lose_engine(&data);
    cluster.node(1).start();
    cluster.wait_ready();
    let mut sql = Sql::on(&cluster.nodes[&1]);
    sql.must("DELETE FROM t WHERE id = 10000");
    check(&mut sql, round);
    assert!(cluster.nodes[&1].log_text().contains("EngineRebuilt"));
    // And again after a clean stop, with the whole engine gone.
    cluster.node(1).terminate();
    std::fs::remove_dir_all(data.join("engine")).unwrap();
    cluster.node(1).start();
    cluster.wait_ready();
    check(&mut Sql::on(&cluster.nodes[&1]), round);
}

#[test]
fn a_new_and_a_lagging_replica_are_filled_while_writes_go_on() {
    let mut cluster = started(1, 1, 8);
    let mut sql = Sql::on(&cluster.nodes[&1]);
    create(&mut sql);
    overwrite(&mut sql, 0);
    eventually("the replica catches up", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    cluster.node(2).kill();
    // More than is kept for it.
    let mut round = until_trimmed(&cluster, &mut sql, &[1], 0);
    cluster.node(2).start();
    round += 1;
    overwrite(&mut sql, round);
    eventually("the lagging replica is filled", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    check(&mut Sql::on(&cluster.nodes[&2]), round);
    assert!(cluster.nodes[&2].log_text().contains("NeedsSnapshot"));
    // From nothing.
    cluster.node(2).kill();
    cluster.node(2).wipe();
    cluster.node(2).start();
    for _ in 0..5 {
        round += 1;
        overwrite(&mut sql, round);
    }
    eventually("the new replica is filled", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    check(&mut Sql::on(&cluster.nodes[&2]), round);
    // It is like any other now.
    cluster.node(2).kill();
    cluster.node(2).start();
    round += 1;
    overwrite(&mut sql, round);
    eventually("it goes on after a restart", || cluster.nodes[&2].caught_up(&cluster.nodes[&1]));
    check(&mut Sql::on(&cluster.nodes[&2]), round);
}

#[test]
fn a_voter_behind_the_log_is_filled_and_votes_again() {
    filled_and_votes_again("raft");
}

#[test]
fn a_voter_behind_the_log_is_filled_and_votes_again_under_paxos() {
    filled_and_votes_again("paxos");
}

fn filled_and_votes_again(replicator: &str) {
    let mut cluster = started_with(replicator, 3, 0, 8);
    let master = cluster.master();
    let behind = if master == 3 { 2 } else { 3 };
    let mut sql = Sql::on(&cluster.nodes[&master]);
    create(&mut sql);
    overwrite(&mut sql, 0);
    cluster.node(behind).kill();
    let others: Vec<u64> = (1..=3).filter(|id| *id != behind).collect();
    let mut round = until_trimmed(&cluster, &mut sql, &others, 0);
    cluster.node(behind).start();
    round += 1;
    overwrite(&mut sql, round);
    let master = cluster.master();
    eventually("the voter is filled", || cluster.nodes[&behind].caught_up(&cluster.nodes[&master]));
    assert!(cluster.nodes[&behind].log_text().contains("NeedsSnapshot"));
    // It counts: without another voter the two go on.
    let gone = others.into_iter().find(|id| *id != master).unwrap();
    cluster.node(gone).kill();
    let mut sql = Sql::on(&cluster.nodes[&behind]);
    round += 1;
    overwrite(&mut sql, round);
    check(&mut sql, round);
    // Every node loses its power; nothing that was acknowledged is lost.
    let running = [behind, master];
    for id in running {
        cluster.node(id).kill();
        lose_engine(&cluster.nodes[&id].data);
    }
    for id in running {
        cluster.node(id).start();
    }
    cluster.wait_ready();
    check(&mut Sql::on(&cluster.nodes[&behind]), round);
}

#[test]
fn a_voter_with_neither_engine_nor_base_is_filled_by_the_others() {
    let mut cluster = started(3, 0, 16);
    let mut sql = Sql::anywhere(&cluster);
    create(&mut sql);
    overwrite(&mut sql, 0);
    let master = cluster.settled();
    let damaged = master % 3 + 1;
    let mut round = until_trimmed(&cluster, &mut sql, &[damaged], 0);
    cluster.node(damaged).kill();
    let data = cluster.nodes[&damaged].data.clone();
    lose_engine(&data);
    let mut flipped = 0;
    for file in data.join("snapshots").read_dir().unwrap().flatten().map(|entry| entry.path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&file, bytes).unwrap();
        flipped += 1;
    }
    assert!(flipped > 0, "the log was trimmed behind a base");
    round += 1;
    overwrite(&mut sql, round);
    cluster.node(damaged).start();
    eventually("the voter is whole again", || match cluster.nodes[&damaged].log_text() {
        text if text.contains("this voter is whole again") => Ok(()),
        _ => Err("not yet".into()),
    });
    cluster.wait_ready();
    eventually("it has everything", || cluster.nodes[&damaged].caught_up(&cluster.nodes[&cluster.master()]));
    let mut local = Sql::on(&cluster.nodes[&damaged]);
    local.must("SET read_level = local");
    check(&mut local, round);
}
