//! Prints how long an engine takes to open after so much was written to it, and what a snapshot of it costs.
//!
//! `cargo run --release -p quorate-core --example reopen -- [DIR] [ROWS]`. Numbers for a person to look at; nothing is
//! asserted. Each row has 1,000 bytes.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "a clock is what this is for")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quorate_core::disk::RealDisk;
use quorate_core::engine::Engine;
use quorate_core::engine::sled::SledEngine;
use quorate_core::entry::{Body, Entry, Transaction};
use quorate_core::error::Fatal;
use quorate_core::keys::Key;
use quorate_core::log::BaseRecord;
use quorate_core::machine::{Machine, MachineState};
use quorate_core::snapshot::file::{Writer, verify};
use quorate_core::snapshot::install::install;
use quorate_shared::ids::{IndexId, ShardId, TableId, Term, Timestamp};

const CACHE: u64 = 256 << 20;
const PER_ENTRY: u64 = 100;

fn base() -> BaseRecord {
    MachineState::default().base(ShardId::DATA)
}

fn fill(machine: &mut Machine, rows: u64, round: u64) -> Result<(), Fatal> {
    let mut seed = round;
    for from in (0..rows).step_by(PER_ENTRY as usize) {
        let state = machine.state();
        let writes = (from..(from + PER_ENTRY).min(rows)).map(|n| {
            let columns = Bytes::from([&[0x81][..], &n.to_be_bytes()].concat());
            let key = Key::Data { storage: TableId::new(7), index: IndexId::PRIMARY, columns }.encode();
            let row: Vec<u8> = (0..125)
                .flat_map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    seed.to_le_bytes()
                })
                .collect();
            (key, Some(Bytes::from(row)))
        });
        let t = Transaction { writes: writes.collect(), ..Transaction::default() };
        let (index, timestamp) = (state.index.next(), Timestamp::new(state.index.get() + 1, 0));
        let entry = Entry { index, previous: state.chain, timestamp, body: Body::Write(vec![t]) };
        machine.apply(&[entry.logged(Term::new(1))])?;
    }
    Ok(())
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T, Fatal>) -> Result<T, Fatal> {
    let began = Instant::now();
    let done = work()?;
    println!("{what}: {} ms", began.elapsed().as_millis());
    Ok(done)
}

fn main() -> Result<(), Fatal> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(std::env::temp_dir, PathBuf::from).join("quorate-reopen-numbers");
    let rows = args.next().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let _ = std::fs::remove_dir_all(&dir);
    let path = dir.join("engine");
    let open = || -> Result<(SledEngine, Machine), Fatal> {
        let engine = SledEngine::open(&path, CACHE)?;
        let machine = Machine::open(engine.tree("s1")?, &base())?;
        Ok((engine, machine))
    };
    let (engine, mut machine) = open()?;
    timed("write all rows", || fill(&mut machine, rows, 1))?;
    timed("flush", || engine.flush())?;
    println!("bytes on disk: {}", engine.size_bytes());
    drop((machine, engine));
    let (engine, machine) = timed("open after all was written", open)?;
    drop((machine, engine));
    let (engine, mut machine) = timed("open again, nothing written", open)?;
    timed("overwrite a tenth", || fill(&mut machine, rows / 10, 2))?;
    engine.flush()?;
    drop((machine, engine));
    let (engine, mut machine) = timed("open after a tenth was overwritten", open)?;
    let source = machine.snapshot();
    let stored = timed("write a snapshot", || Writer::begin(RealDisk::shared(), &dir, source)?.finish())?;
    println!("snapshot: {} rows, {} bytes", stored.summary().rows, stored.summary().bytes);
    timed("verify it", || verify(&RealDisk, stored.path()))?;
    drop((machine, engine));
    let other: Arc<dyn Engine> = Arc::new(SledEngine::open(&dir.join("other"), CACHE)?);
    let tree = other.tree("s1")?;
    timed("install it", || install(&RealDisk, stored.path(), &*tree))?;
    drop((tree, other));
    std::fs::remove_dir_all(&dir).map_err(|e| Fatal::new("clean up", e))
}
