//! Recomputing a running node's log: every record's checksum and every shard's chain, from the files.
//!
//! The log is written and trimmed meanwhile, so bytes at its end may be half written and a segment may go: what looks like
//! damage is looked at again before it is one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_core::error::Fatal;
use quorate_core::log::LogReader;
use quorate_core::log::segment::open_read_only;
use quorate_core::verify::{ChainProof, ChainWalk, Damage, Mark};
use quorate_shared::ids::{Hash, Index, ShardId};
use serde::{Deserialize, Serialize};

use super::Prover;

/// Bytes a second that are read, each of them twice.
const RATE: u64 = 64 << 20;
/// So much is read before the pace is looked at.
const STRETCH: u64 = 1 << 20;
/// What looks like damage is looked at so often.
const LOOKS: u32 = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// How far a node's recomputation is.
#[derive(Default)]
pub enum Recomputing {
    /// None was asked for since the start.
    #[default]
    Never,
    /// One runs.
    Running {
        /// Which.
        job: u64,
        /// Bytes read.
        done: Arc<AtomicU64>,
        /// Bytes there are.
        of: u64,
    },
    /// The last one.
    Done {
        /// Which.
        job: u64,
        /// What came of it.
        result: Box<Recomputed>,
    },
}

/// What came of a recomputation.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Recomputed {
    /// Segment files.
    pub segments: u64,
    /// Records whose checksum is right.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is proved of each shard.
    pub shards: Vec<(ShardId, ChainProof)>,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
    /// Milliseconds it took.
    pub ms: u64,
}

/// Holds a rate.
struct Pace<'a> {
    began: Instant,
    bytes: u64,
    since: u64,
    done: &'a AtomicU64,
}

impl Pace<'_> {
    fn took(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.since += bytes;
        if self.since >= STRETCH {
            self.since = 0;
            self.done.store(self.bytes, Ordering::Relaxed);
            let due = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / RATE);
            std::thread::sleep(due.saturating_sub(self.began.elapsed()).min(Duration::from_secs(1)));
        }
    }
}

/// A new job over a log of so many bytes.
pub fn begin(job: u64, log: &Path) -> (Recomputing, Arc<AtomicU64>, u64) {
    let (done, of) = (Arc::new(AtomicU64::new(0)), crate::store::used_bytes(log).saturating_mul(2));
    (Recomputing::Running { job, done: done.clone(), of }, done, of)
}

/// All of it.
pub fn run(prover: &Prover, marks: &[(ShardId, Index, Hash, String)], done: &AtomicU64) -> Recomputed {
    let began = Instant::now();
    let mut looks = 1;
    let mut result = loop {
        let result = look(prover, marks, done);
        if result.damage.is_empty() || looks >= LOOKS {
            break result;
        }
        looks += 1;
        std::thread::sleep(LOOK_PAUSE);
    };
    result.ms = began.elapsed().as_millis() as u64;
    if let Some(damage) = result.damage.first() {
        tracing::error!(what = %damage.what, file = ?damage.file, offset = ?damage.offset, "verify has found damage");
    }
    result
}

fn look(prover: &Prover, marks: &[(ShardId, Index, Hash, String)], done: &AtomicU64) -> Recomputed {
    let mut out = Recomputed::default();
    if let Err(fatal) = try_look(prover, marks, done, &mut out) {
        out.damage.push(Damage::new(fatal.to_string()).at(prover.directory.join("log").display().to_string(), None));
    }
    out
}

fn try_look(
    prover: &Prover,
    marks: &[(ShardId, Index, Hash, String)],
    done: &AtomicU64,
    out: &mut Recomputed,
) -> Result<(), Fatal> {
    let log = prover.directory.join("log");
    // What is applied before the files are read is in them.
    let mut ours: BTreeMap<ShardId, Vec<Mark>> = BTreeMap::new();
    for view in prover.driver.views() {
        let point = view.applied_point();
        let list = ours.entry(view.shard).or_default();
        list.push(Mark { index: point.index, chain: point.chain, whose: "the engine's applied record".into() });
        let kept = prover.kept(view.shard)?.into_iter();
        list.extend(kept.map(|(index, chain)| Mark { index, chain, whose: "the engine's checkpoints".into() }));
    }
    let mut pace = Pace { began: Instant::now(), bytes: 0, since: 0, done };
    let (reader, found) = open_read_only(&log, |bytes| pace.took(bytes as u64))?;
    (out.segments, out.records, out.bytes) = (found.segments.len() as u64, found.records, found.bytes);
    if let Some(what) = found.damage {
        let damage = Damage::new(format!("the log is damaged: {what}"));
        out.damage.push(match found.damaged_at {
            Some((n, offset)) => damage.at(log.join(format!("{n:010}.seg")).display().to_string(), Some(offset)),
            None => damage.at(log.display().to_string(), None),
        });
        return Ok(());
    }
    for (shard, _) in reader.replicas() {
        let mut list = ours.remove(&shard).unwrap_or_default();
        for (_, index, chain, whose) in marks.iter().filter(|(of, ..)| *of == shard) {
            let mark = Mark { index: *index, chain: *chain, whose: whose.clone() };
            list.push(mark);
        }
        let base = reader.bounds(shard).map_or(Index::default(), |b| b.base.index);
        out.damage.extend(trimmed(prover, shard, base, marks)?);
        let Some(mut walk) = ChainWalk::new(&reader, shard, list) else { continue };
        let mut walked = 0;
        while !walk.step(STRETCH as usize)? {
            let at = walk.at().get();
            pace.took(STRETCH.min((at - walked).saturating_mul(64)));
            walked = at;
        }
        let (proof, damage) = walk.finish();
        out.shards.push((shard, proof));
        out.damage.extend(damage);
    }
    Ok(())
}

/// Marks before the log's base: compared with what was kept when those entries were applied.
fn trimmed(
    prover: &Prover,
    shard: ShardId,
    base: Index,
    marks: &[(ShardId, Index, Hash, String)],
) -> Result<Vec<Damage>, Fatal> {
    let mut out = Vec::new();
    for (_, index, chain, whose) in marks.iter().filter(|(of, index, ..)| *of == shard && *index < base) {
        if let Some(kept) = prover.hash_at(shard, *index)?
            && kept != *chain
        {
            let what = format!("the chain of {shard} at entry {index} was {kept}, {whose} has {chain}");
            out.push(Damage::new(what).of(shard, Some(*index)));
        }
    }
    Ok(out)
}
