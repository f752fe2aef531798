//! Prints what the storage layer does per second on this machine: applying entries, reading, syncing the log.
//!
//! `cargo run --release -p quorate-core --example storage -- [DIR] [ROWS]`. Numbers for a person to look at; nothing is
//! asserted.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a clock is what this is for")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_core::engine::behind::Behind;
use quorate_core::engine::sled::SledEngine;
use quorate_core::engine::{Engine, Tree};
use quorate_core::entry::{Body, Entry, Transaction};
use quorate_core::error::Fatal;
use quorate_core::keys::{self, Key};
use quorate_core::log::segment::SegmentLog;
use quorate_core::log::{BaseRecord, Log, LogEntry, LogReader, LogRecord, Membership, Payload};
use quorate_core::machine::Machine;
use quorate_core::mvcc::Snapshot;
use quorate_shared::ids::{
    ClientId, Epoch, Index, IndexId, NodeId, ReplicaId, ShardId, TableId, Term, Timestamp, WriteId,
};

const STORAGE: TableId = TableId::new(7);
const PER_ENTRY: u64 = 20;

fn main() -> Result<(), Fatal> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from).join("quorate-storage-numbers");
    let rows = args.next().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let _ = std::fs::remove_dir_all(&dir);
    machine(&dir.join("engine"), rows)?;
    backlog(&dir.join("behind"), rows)?;
    log(&dir.join("log"))?;
    std::fs::remove_dir_all(&dir).map_err(|e| Fatal::new("clean up", e))
}

fn base() -> BaseRecord {
    BaseRecord::founding(ShardId::DATA, Membership::of_voters([(ReplicaId::new(1), NodeId::new(1))]), Epoch::default())
}

fn row_key(n: u64) -> Bytes {
    let mut columns = Vec::new();
    let _ = keys::columns::encode(
        &mut columns,
        quorate_shared::value::SqlType::BigInt,
        &quorate_shared::value::Value::Int(n as i64),
    );
    Key::Data { storage: STORAGE, index: IndexId::PRIMARY, columns: Bytes::from(columns) }.encode()
}

/// Entries of [`PER_ENTRY`] transactions of one row each.
fn entries(machine: &Machine, keys: &[u64]) -> Vec<LogEntry> {
    let (mut index, mut chain) = (machine.state().index, machine.state().chain);
    let mut out = Vec::new();
    for keys in keys.chunks(PER_ENTRY as usize) {
        index = index.next();
        let transactions = keys.iter().enumerate().map(|(i, &n)| Transaction {
            write: Some(WriteId { client: ClientId([i as u8; 16]), seq: index.get() }),
            rows: 1,
            writes: vec![(row_key(n), Some(Bytes::from(vec![n as u8; 110])))],
            ..Transaction::default()
        });
        let body = Body::Write(transactions.collect());
        let timestamp = Timestamp::from_raw(index.get());
        let entry = Entry { index, previous: chain, timestamp, body }.logged(Term::new(1));
        chain = quorate_core::entry::chain(chain, &entry);
        out.push(entry);
    }
    out
}

/// Wall clock and processor time, so that a busy machine can be told from slow code.
struct Start {
    wall: Instant,
    processor: Duration,
}

fn start() -> Start {
    Start { wall: Instant::now(), processor: processor() }
}

fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn rate(what: &str, n: u64, since: &Start) {
    let wall = since.wall.elapsed().as_secs_f64();
    let processor = (processor() - since.processor).as_secs_f64();
    println!(
        "{what:<34} {:>9.0} /s {:>8.2} µs each, {:>7.2} µs of processor",
        n as f64 / wall,
        wall * 1e6 / n as f64,
        processor * 1e6 / n as f64
    );
}

fn machine(dir: &Path, rows: u64) -> Result<(), Fatal> {
    let engine = SledEngine::open(dir, 64 << 20)?;
    let tree = engine.tree("s1-r1")?;
    let mut machine = Machine::open(Arc::clone(&tree), &base())?;
    let inserted: Vec<u64> = (0..rows).collect();
    let scattered: Vec<u64> = (0..rows).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % rows).collect();
    for (what, keys) in [("insert, apply", &inserted), ("update of random rows, apply", &scattered)] {
        let list = entries(&machine, keys);
        let begun = start();
        for group in list.chunks(16) {
            machine.apply(group)?;
        }
        rate(what, rows, &begun);
    }
    let hot = entries(&machine, &vec![1; rows as usize]);
    let begun = start();
    for group in hot.chunks(16) {
        machine.apply(group)?;
    }
    rate("update of one row, apply", rows, &begun);
    read(&tree, machine.state().timestamp, &scattered)?;
    let begun = start();
    engine.flush()?;
    println!("flush {:.0} ms, {} MiB on disk", begun.wall.elapsed().as_secs_f64() * 1e3, engine.size_bytes() >> 20);
    drop((machine, tree, engine));
    let begun = start();
    let engine = SledEngine::open(dir, 64 << 20)?;
    let tree = engine.tree("s1-r1")?;
    let machine = Machine::open(Arc::clone(&tree), &base())?;
    println!("reopen {:.0} ms, resident {} MiB", begun.wall.elapsed().as_secs_f64() * 1e3, resident());
    let mut scrub = machine.scrub();
    let begun = start();
    while scrub.step(10_000)?.is_none() {}
    rate("scrub", rows, &begun);
    Ok(())
}

/// What a replica does that is far behind: 64 clients' inserts, written behind, the engine taking them on another thread.
fn backlog(dir: &Path, rows: u64) -> Result<(), Fatal> {
    const CLIENTS: u64 = 64;
    let engine = SledEngine::open(dir, 64 << 20)?;
    let behind = Arc::new(Behind::new(Arc::new(|| ())));
    let mut machine = Machine::open(behind.tree(engine.tree("s1-r1")?), &base())?;
    let keys: Vec<u64> = (0..rows).map(|n| (n % CLIENTS) << 40 | (n / CLIENTS)).collect();
    let list = entries(&machine, &keys);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let drainer = std::thread::spawn({
        let (behind, done) = (behind.clone(), done.clone());
        move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match behind.pending_bytes() > quorate_core::engine::behind::PENDING_BYTES_MUCH {
                    true => behind.drain_while(|| true).unwrap_or_else(|fatal| println!("{fatal}")),
                    false => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
    });
    let begun = start();
    for group in list.chunks(64) {
        machine.apply(group)?;
    }
    rate("backlog of inserts, written behind", rows, &begun);
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    // It has said what there was to say.
    let _ = drainer.join();
    let begun = start();
    behind.drain_all()?;
    rate("what was left, into the engine", rows, &begun);
    Ok(())
}

fn read(tree: &Arc<dyn Tree>, now: Timestamp, scattered: &[u64]) -> Result<(), Fatal> {
    let snapshot = Snapshot::new(Arc::clone(tree), now);
    let list: Vec<Bytes> = scattered.iter().map(|&n| row_key(n)).collect();
    let begun = start();
    for key in &list {
        tree.get(key)?;
    }
    rate("get from the tree", list.len() as u64, &begun);
    let begun = start();
    for key in &list {
        snapshot.get(key)?;
    }
    rate("get of a version", list.len() as u64, &begun);
    let begun = start();
    let n = snapshot.scan(&keys::storage_range(STORAGE), false).count() as u64;
    rate("scan, newest", n, &begun);
    let past = Snapshot::new(Arc::clone(tree), Timestamp::from_raw(scattered.len() as u64 / PER_ENTRY));
    let begun = start();
    let n = past.scan(&keys::storage_range(STORAGE), false).count() as u64;
    rate("scan, all from history", n, &begun);
    Ok(())
}

fn log(dir: &Path) -> Result<(), Fatal> {
    let (mut log, reader, _) = SegmentLog::open(dir)?;
    let replica = ReplicaId::new(1);
    log.append(replica, ShardId::DATA, &[LogRecord::Base(base())])?;
    log.sync()?;
    let syncs = 2000u64;
    let entry = |index| LogEntry {
        index: Index::new(index),
        term: Term::new(1),
        payload: Payload::Entry,
        bytes: Bytes::from(vec![7; 1500]),
    };
    let begun = start();
    for i in 1..=syncs {
        log.append(replica, ShardId::DATA, &[LogRecord::Entries(vec![entry(i)])])?;
        log.sync()?;
    }
    rate("log: append of 1.5 kB and sync", syncs, &begun);
    let many = 200_000u64;
    let begun = start();
    for group in 0..many / 1000 {
        let first = syncs + 1 + group * 1000;
        log.append(replica, ShardId::DATA, &[LogRecord::Entries((first..first + 1000).map(entry).collect())])?;
        log.sync()?;
    }
    rate("log: append of 1000 and sync", many, &begun);
    let begun = start();
    let (mut from, last) = (Index::new(1), Index::new(syncs + many + 1));
    while from < last {
        let read = reader.entries(ShardId::DATA, from, last, 1 << 20)?;
        from = read.last().map_or(last, |e| e.index.next());
    }
    rate("log: read", many + syncs, &begun);
    drop((log, reader));
    let begun = start();
    let (_, _, report) = SegmentLog::open(dir)?;
    println!("log: open of {} MiB {:.0} ms", report.bytes >> 20, begun.wall.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Resident memory in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = status.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4 / 1024
}
