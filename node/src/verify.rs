//! `quorated verify DIR`: proves a closed node's directory, offline and without changing anything in it.
//!
//! What is recomputed: the checksum of every record of the log; the chain of every shard from its base on; the checksum of
//! every value of the engine and the digest of every table's rows. What is compared: the chain with the engine's applied
//! record, with every checkpoint in it, and with an anchor; the digests with those that were kept while applying.
//!
//! The engine's library writes when it opens, so its files are copied and the copy is opened. The directory's lock is held
//! meanwhile, shared: a node that runs is refused by name, and none can be started.
//!
//! What it cannot prove is said: a chain alone proves no more than that nothing changed by accident, entries behind the
//! last mark rest on their checksums, and an interrupted write at the end of the log is told from damage only where the
//! node was closed cleanly.

mod copy;
mod text;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use quorate_core::disk::RealDisk;
use quorate_core::engine::Engine;
use quorate_core::engine::sled::{SledEngine, trust};
use quorate_core::error::Fatal;
use quorate_core::log::segment::{SegmentReader, open_read_only};
use quorate_core::log::{BaseRecord, LogReader};
use quorate_core::snapshot;
use quorate_core::verify::{ChainProof, ChainWalk, Damage, Mark, TreeProof, TreeWalk};
use quorate_shared::ids::{Index, ReplicaId, ShardId};
use serde::{Deserialize, Serialize};

use crate::store::{Identity, StoreError, io_error};

/// Version of the JSON.
pub const SCHEMA: u32 = 1;
/// Cache of the copied engine.
const CACHE_BYTES: u64 = 64 << 20;

/// What is to be verified.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The data directory.
    pub directory: PathBuf,
    /// Where the engine is copied to; the system's directory for temporary files otherwise.
    pub scratch: Option<PathBuf>,
    /// Leave the engine out.
    pub log_only: bool,
    /// Hashes from outside, by shard.
    pub marks: BTreeMap<ShardId, Vec<Mark>>,
}

/// What was proved, and what is damaged.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Verified {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The directory.
    pub directory: String,
    /// Whose it is, e.g. `n1`.
    pub node: String,
    /// Its cluster, in hex; `None` before it belongs to one.
    pub cluster: Option<String>,
    /// Nothing is damaged.
    pub proved: bool,
    /// The node was closed cleanly, so nothing may be missing at the end.
    pub closed_cleanly: bool,
    /// The log's files.
    pub log: LogFiles,
    /// What is proved of each shard.
    pub shards: Vec<ShardProof>,
    /// Snapshot files whose every byte is as it was written.
    pub snapshots: Vec<SnapshotProof>,
    /// Why the engine was not looked at, if it was not.
    pub engine_skipped: Option<String>,
    /// Everything that is not as it was written.
    pub damage: Vec<Damage>,
    /// What is unusual and changes nothing.
    pub notes: Vec<String>,
}

/// The files of a log.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LogFiles {
    /// Segment files.
    pub segments: u64,
    /// Records whose checksum is right.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A snapshot file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SnapshotProof {
    /// The file.
    pub file: String,
    /// Its shard.
    pub shard: ShardId,
    /// The index it is of.
    pub index: Index,
    /// Rows in it.
    pub rows: u64,
}

/// One shard's replica.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ShardProof {
    /// e.g. `s1`.
    pub shard: ShardId,
    /// Its replica id here.
    pub replica: ReplicaId,
    /// Its log.
    pub chain: ChainProof,
    /// Its tree in the engine.
    pub tree: Option<TreeProof>,
}

/// Verifies a directory. An error means that it could not be looked at.
pub fn run(options: &Options) -> Result<Verified, StoreError> {
    let directory = options.directory.canonicalize().map_err(io_error("open", &options.directory))?;
    let identity = Identity::read(&directory)?;
    let _lock = share_lock(&directory)?;
    let mut out = Verified {
        schema: SCHEMA,
        directory: directory.display().to_string(),
        node: identity.node.to_string(),
        cluster: identity.founding.as_ref().map(|f| f.cluster.clone()),
        closed_cleanly: trust::is_closed(&directory),
        ..Verified::default()
    };
    let log = directory.join("log");
    let reader = match log.is_dir() {
        true => open_log(&log, &mut out),
        false => {
            if identity.founding.is_some() {
                out.damage.push(Damage::new("the log is missing").at(log.display().to_string(), None));
            }
            None
        }
    };
    if let Some(reader) = &reader {
        let mut marks = options.marks.clone();
        let trees = look_into_engine(&directory, options, reader, &mut marks, &mut out)?;
        prove_snapshots(&directory, &mut marks, &mut out);
        prove_chains(reader, marks, trees, &mut out);
    }
    out.proved = out.damage.is_empty();
    Ok(out)
}

/// Makes sure that no node has the directory, and that none gets it meanwhile.
fn share_lock(directory: &Path) -> Result<Option<File>, StoreError> {
    let path = directory.join("LOCK");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", &path)(e)),
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse(directory.to_owned())),
        Err(e) => Err(io_error("lock", &path)(e.into())),
    }
}

fn segment_file(log: &Path, number: u64) -> String {
    log.join(format!("{number:010}.seg")).display().to_string()
}

/// The pass over every record.
fn open_log(log: &Path, out: &mut Verified) -> Option<SegmentReader> {
    let (reader, found) = match open_read_only(log, |_| {}) {
        Ok(opened) => opened,
        Err(fatal) => {
            out.damage.push(Damage::new(fatal.to_string()).at(log.display().to_string(), None));
            return None;
        }
    };
    out.log = LogFiles { segments: found.segments.len() as u64, records: found.records, bytes: found.bytes };
    let behind = |reader: &SegmentReader| {
        let last = |(shard, _)| reader.bounds(shard).map(|b| format!("entry {} of {shard}", b.last));
        let ends: Vec<String> = reader.replicas().into_iter().filter_map(last).collect();
        if ends.is_empty() { "the first record".to_owned() } else { ends.join(" and ") }
    };
    if let Some(what) = &found.damage {
        let what = Damage::new(format!("the log is damaged behind {}: {what}", behind(&reader)));
        out.damage.push(match found.damaged_at {
            Some((segment, offset)) => what.at(segment_file(log, segment), Some(offset)),
            None => what.at(log.display().to_string(), None),
        });
    }
    if let Some(torn) = found.torn {
        let what = format!("the write behind {} is incomplete ({} bytes)", behind(&reader), torn.bytes);
        if out.closed_cleanly {
            // A clean close is recorded after everything is synced: nothing can have been interrupted.
            let what = format!("{what}, although the node was closed cleanly");
            out.damage.push(Damage::new(what).at(segment_file(log, torn.segment), Some(torn.offset)));
        } else {
            out.notes.push(format!("{what}: an interrupted write; the next start cuts it"));
        }
    }
    for (segment, offset) in found.stray {
        let what = "bytes where nothing was ever written; they are never read";
        out.damage.push(Damage::new(what).at(segment_file(log, segment), Some(offset)));
    }
    Some(reader)
}

/// The trees of the engine by shard and replica, with the marks they keep.
fn look_into_engine(
    directory: &Path,
    options: &Options,
    reader: &SegmentReader,
    marks: &mut BTreeMap<ShardId, Vec<Mark>>,
    out: &mut Verified,
) -> Result<BTreeMap<ShardId, TreeProof>, StoreError> {
    let mut trees = BTreeMap::new();
    let engine = directory.join("engine");
    if options.log_only {
        out.engine_skipped = Some("it was not asked for".into());
        return Ok(trees);
    }
    if let Some(why) = trust::distrusted(directory) {
        out.engine_skipped = Some(format!("it is to be rebuilt from the log at the next start: {why}"));
        return Ok(trees);
    }
    if !engine.is_dir() {
        out.engine_skipped = Some("there is none; it is built from the log at the next start".into());
        return Ok(trees);
    }
    for damage in trust::check_seal(directory) {
        out.damage.push(Damage::new(damage.what).at(engine.join(damage.file).display().to_string(), damage.offset));
    }
    let copied = copy::of(&engine, options.scratch.as_deref())?;
    let file = engine.display().to_string();
    let opened = match SledEngine::open(copied.path(), CACHE_BYTES) {
        Ok(opened) => opened,
        Err(fatal) => {
            out.damage.push(Damage::new(format!("the engine cannot be opened: {fatal}")).at(file, None));
            return Ok(trees);
        }
    };
    let checkpoint = crate::store::engine::read_checkpoint(directory);
    for (shard, _) in reader.replicas() {
        let Some(bounds) = reader.bounds(shard) else { continue };
        let snapshots = crate::store::snapshots::directory(directory);
        if let Ok(Some(_)) = snapshot::install::Mark::read(&RealDisk, &snapshots, shard) {
            out.notes.push(format!("{shard} is being installed from a snapshot; its tree was not looked at"));
            continue;
        }
        match walk_tree(&opened, shard, &bounds.base) {
            Ok((proof, found, damage)) => {
                let flushed = checkpoint.get(&shard.to_string()).copied().unwrap_or(0);
                if proof.applied.get() < flushed {
                    let what = format!(
                        "the engine has applied entry {} of {shard}, but had {flushed} when it was last flushed",
                        proof.applied
                    );
                    out.damage.push(Damage::new(what).at(&file, None).of(shard, Some(proof.applied.next())));
                }
                if proof.applied > bounds.last {
                    let (applied, last) = (proof.applied, bounds.last);
                    let what = format!("the engine has applied entry {applied} of {shard}, the log ends at {last}");
                    let log = directory.join("log").display().to_string();
                    out.damage.push(Damage::new(what).at(log, None).of(shard, Some(last.next())));
                }
                out.damage.extend(damage.into_iter().map(|d| d.at(&file, None).of(shard, None)));
                marks.entry(shard).or_default().extend(found);
                trees.insert(shard, proof);
            }
            Err(fatal) => {
                let what = format!("the engine's tree of {shard}: {fatal}");
                out.damage.push(Damage::new(what).at(&file, None).of(shard, None));
            }
        }
    }
    drop(opened);
    Ok(trees)
}

fn walk_tree(
    engine: &SledEngine,
    shard: ShardId,
    base: &BaseRecord,
) -> Result<(TreeProof, Vec<Mark>, Vec<Damage>), Fatal> {
    let name = shard.to_string();
    if !engine.tree_names().contains(&name) {
        return Err(Fatal::new("open the tree", format!("the engine has no tree {name}")));
    }
    let tree = engine.tree(&name)?;
    crate::driver::guarded(|| TreeWalk::new(tree, base)?.run())
}

/// Every snapshot below the directory; the chain's hash in each is one more mark.
fn prove_snapshots(directory: &Path, marks: &mut BTreeMap<ShardId, Vec<Mark>>, out: &mut Verified) {
    let mut rest = vec![directory.to_owned()];
    let mut found = Vec::new();
    while let Some(dir) = rest.pop() {
        for path in dir.read_dir().into_iter().flatten().flatten().map(|item| item.path()) {
            if path.is_dir() {
                rest.push(path);
            } else if path.extension().is_some_and(|e| e == snapshot::EXTENSION) {
                found.push(path);
            }
        }
    }
    found.sort();
    for path in found {
        let file = path.display().to_string();
        match snapshot::file::verify(&RealDisk, &path) {
            Ok(summary) => {
                let base = &summary.head.base;
                let whose = "the snapshots".to_owned();
                marks.entry(base.shard).or_default().push(Mark { index: base.index, chain: base.chain, whose });
                out.snapshots.push(SnapshotProof { file, shard: base.shard, index: base.index, rows: summary.rows });
            }
            Err(fatal) => {
                let named = path.file_name().and_then(|n| snapshot::parse_file_name(&n.to_string_lossy()));
                let damage = Damage::new(format!("a snapshot is damaged: {fatal}")).at(file, None);
                out.damage.push(match named {
                    Some((shard, index)) => damage.of(shard, Some(index)),
                    None => damage,
                });
            }
        }
    }
}

fn prove_chains(
    reader: &SegmentReader,
    mut marks: BTreeMap<ShardId, Vec<Mark>>,
    mut trees: BTreeMap<ShardId, TreeProof>,
    out: &mut Verified,
) {
    let shards: Vec<(ShardId, ReplicaId)> = reader.replicas();
    for (shard, replica) in shards {
        let Some(walk) = ChainWalk::new(reader, shard, marks.remove(&shard).unwrap_or_default()) else { continue };
        match walk.run() {
            Ok((chain, damage)) => {
                let place = |d: Damage| match d.index.and_then(|i| reader.place(shard, i)) {
                    Some((file, offset)) => d.at(file.display().to_string(), Some(offset)),
                    None => d,
                };
                out.damage.extend(damage.into_iter().map(place));
                out.shards.push(ShardProof { shard, replica, chain, tree: trees.remove(&shard) });
            }
            Err(fatal) => out.damage.push(Damage::new(fatal.to_string()).of(shard, None)),
        }
    }
    for shard in marks.into_keys() {
        out.damage.push(Damage::new(format!("there is no log of {shard} to compare with")).of(shard, None));
    }
}

impl Verified {
    /// The last index of a shard up to which the chain agrees with something kept elsewhere.
    pub fn agrees_at(&self, shard: ShardId) -> Option<Index> {
        self.shards.iter().find(|s| s.shard == shard).and_then(|s| s.chain.agrees_at)
    }
}

#[cfg(test)]
mod tests;
