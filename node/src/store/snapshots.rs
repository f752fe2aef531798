//! The snapshot files of a node: local bases, and what has been received to be installed.
//!
//! All in `snapshots/`. A base is what its log is trimmed behind; the newest one of a shard is kept. A snapshot on its
//! way here has `receiving-` before its name until it is complete and checked; then a mark makes the next start install
//! it (see [`quorate_core::snapshot::install`]), before anything of the shard is opened.
//!
//! Invariant: the file that the log's base rests on is never removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_core::disk::{Disk, RealDisk};
use quorate_core::engine::sled::SledEngine;
use quorate_core::engine::{Engine, KeyRange, Tree};
use quorate_core::error::Fatal;
use quorate_core::log::{BaseRecord, Log, LogBounds, LogReader};
use quorate_core::machine::applied_in;
use quorate_core::snapshot::file::{adopt, read_head};
use quorate_core::snapshot::install::{Mark, fitting, install, rebase};
use quorate_core::snapshot::parse_file_name;
use quorate_shared::ids::{Index, ShardId};

use crate::founding::SHARDS;

/// The directory, in the data directory.
pub const DIRECTORY: &str = "snapshots";
/// Before the name of a file that is not complete.
pub const RECEIVING: &str = "receiving-";

/// The snapshots of a data directory.
pub fn directory(data: &Path) -> PathBuf {
    data.join(DIRECTORY)
}

/// What a start has to install.
#[derive(Default)]
pub struct Installing(BTreeMap<ShardId, PathBuf>);

impl Installing {
    /// Whether a shard is made from what was received.
    pub fn has(&self, shard: ShardId) -> bool {
        self.0.contains_key(&shard)
    }

    /// Everything is installed, and durable.
    pub fn done(&self, data: &Path) -> Result<(), Fatal> {
        self.0.keys().try_for_each(|shard| Mark::clear(&RealDisk, &directory(data), *shard))
    }
}

/// Looks for marks; lets the logs of their shards begin at the snapshots. `Err(why)` in the inner result: a snapshot
/// that was to be installed cannot be read any more.
pub fn prepare(data: &Path, log: &mut dyn Log, reader: &dyn LogReader) -> Result<Result<Installing, String>, Fatal> {
    let dir = directory(data);
    let mut installing = Installing::default();
    for shard in SHARDS {
        let Some(mark) = Mark::read(&RealDisk, &dir, shard)? else { continue };
        let path = dir.join(&mark.file);
        let head = match read_head(&RealDisk, &path) {
            Ok(head) => head,
            Err(fatal) => return Ok(Err(fatal.to_string())),
        };
        let Some(bounds) = reader.bounds(shard) else { continue };
        rebase(log, reader, bounds.replica, &head.base)?;
        tracing::info!(%shard, at = %head.index(), "installs a snapshot");
        installing.0.insert(shard, path);
    }
    Ok(Ok(installing))
}

/// How far the tree of a shard is; `None`: it is new, or was not filled to its end.
pub fn applied(engine: &SledEngine, shard: ShardId) -> Result<Option<Index>, Fatal> {
    applied_in(&*engine.tree(&shard.to_string())?)
}

/// The tree of a shard, filled from a snapshot where the log alone cannot: one was received, or the tree is behind the
/// log's base (or new, in an engine that is rebuilt).
pub fn tree(
    data: &Path,
    engine: &SledEngine,
    shard: ShardId,
    (log, bounds): (&dyn LogReader, &LogBounds),
    installing: &Installing,
) -> Result<Arc<dyn Tree>, Fatal> {
    let name = shard.to_string();
    let tree = engine.tree(&name)?;
    let path = match installing.0.get(&shard) {
        Some(path) => path.clone(),
        None => match applied(engine, shard)? {
            Some(index) if index >= bounds.base.index => return Ok(tree),
            None if bounds.base.index.get() == 0 => return Ok(tree),
            _ => base_file(data, log, &bounds.base)?,
        },
    };
    let all = KeyRange { start: bytes::Bytes::new(), end: None };
    let used = tree.scan(&all, false).next().is_some();
    drop(tree);
    if used {
        engine.drop_tree(&name)?;
    }
    let tree = engine.tree(&name)?;
    let summary = install(&RealDisk, &path, &*tree)?;
    tracing::info!(%shard, at = %summary.head.index(), rows = summary.rows, "installed a snapshot");
    Ok(tree)
}

/// The newest base that the log goes on from.
fn base_file(data: &Path, log: &dyn LogReader, base: &BaseRecord) -> Result<PathBuf, Fatal> {
    let dir = directory(data);
    let name = fitting(&RealDisk, &dir, log, base)?;
    name.map(|name| dir.join(name)).ok_or_else(|| {
        let cause = format!("the log begins after {} and there is no snapshot in {}", base.index, dir.display());
        Fatal::new(format!("rebuild {}", base.shard), cause)
    })
}

/// Removes the snapshots of a shard that are older than this one. Newer ones may have been received to be installed.
pub fn keep_from(data: &Path, shard: ShardId, keep: Index) -> Result<(), Fatal> {
    let dir = directory(data);
    let failed = |e| Fatal::new(format!("remove old snapshots in {}", dir.display()), e);
    for name in RealDisk.list(&dir).map_err(failed)? {
        let Some(name) = name.to_str() else { continue };
        if parse_file_name(name).is_some_and(|(of, at)| of == shard && at < keep) {
            RealDisk.remove(&dir.join(name)).map_err(failed)?;
        }
    }
    RealDisk.sync_dir(&dir).map_err(failed)
}

/// Removes what an interrupted process left unfinished; what was being received stays, to be gone on with.
pub fn tidy(data: &Path) {
    let dir = directory(data);
    for name in RealDisk.list(&dir).unwrap_or_default() {
        if Path::new(&name).extension().is_some_and(|e| e == "new")
            && let Err(error) = RealDisk.remove(&dir.join(&name))
        {
            tracing::warn!(%error, ?name, "cannot remove an unfinished snapshot");
        }
    }
}

/// A file that was received whole: checked, named, marked for the next start.
pub fn received(data: &Path, shard: ShardId, name: &str) -> Result<(), Fatal> {
    let dir = directory(data);
    let part = dir.join(format!("{RECEIVING}{name}"));
    let stored = match adopt(&RealDisk, &part) {
        Ok(stored) => stored,
        Err(fatal) => {
            // It is fetched again from the start.
            RealDisk.remove(&part).map_err(|e| Fatal::new(format!("remove {}", part.display()), e))?;
            return Err(fatal);
        }
    };
    if parse_file_name(name) != Some((stored.head().shard(), stored.head().index())) || stored.head().shard() != shard {
        return Err(Fatal::new(format!("take the snapshot {name}"), "it is of another shard or index than its name"));
    }
    let named = || {
        RealDisk.rename(&part, &dir.join(name))?;
        RealDisk.sync_dir(&dir)
    };
    named().map_err(|e| Fatal::new(format!("take the snapshot {name}"), e))?;
    Mark::write(&RealDisk, &dir, shard, name)
}
