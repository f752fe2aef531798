//! A fenced node's way back: what only it has is written out, and its log goes on as that of a log-shipped replica of the
//! newer epoch.
//!
//! Invariant: nothing is cut before what is cut has been written to a file and synced.

use std::fs::File;
use std::io::BufWriter;

use quorate_core::disk::RealDisk;
use quorate_core::epoch::{self, Rejoined};
use quorate_core::log::segment::SegmentLog;
use quorate_core::log::{EpochStart, LogReader};
use quorate_shared::ids::{Epoch, ReplicaId, ShardId};
use quorate_shared::status::NodeKind;

use super::engine::{CHECKPOINT, remove_file, restart};
use super::{Directory, FENCED, drop_note, io_error, sync_directory};
use crate::node::NodeError;

/// Makes the directory that of a replica of the newer epoch, which began at these points.
pub fn rejoin(
    directory: &mut Directory,
    starts: &[(ShardId, Epoch, EpochStart)],
    segment_bytes: u64,
) -> Result<(), NodeError> {
    let dir = directory.path().to_owned();
    let (mut log, reader, _) = SegmentLog::open_on(RealDisk::shared(), &dir.join("log"), segment_bytes)?;
    let (mut rebuild, mut drop_all) = (false, false);
    for (shard, newer, start) in starts {
        let Some(last) = reader.bounds(*shard).map(|bounds| bounds.last) else {
            drop_all = true;
            continue;
        };
        let path = dir.join(format!("suffix-{shard}-before-epoch-{}.txt", newer.number));
        let file = File::create(&path).map_err(io_error("create", &path))?;
        let synced = file.try_clone().map_err(io_error("open", &path))?;
        let mut suffix = BufWriter::new(file);
        // What is cut is not only the log's: the engine has most of it applied.
        let rejoined = epoch::rejoin(&mut log, &*reader, *shard, last, *start, &mut suffix)?;
        synced.sync_all().map_err(io_error("sync", &path))?;
        let entries = match rejoined {
            Rejoined::Cut { entries, rebuild: cut } => {
                rebuild |= cut;
                entries
            }
            Rejoined::Drop { entries } => {
                drop_all = true;
                entries
            }
        };
        if entries == 0 {
            remove_file(&path)?;
        } else {
            tracing::error!(%shard, entries, file = %path.display(), "entries that only this node had were written out");
        }
    }
    drop(log);
    sync_directory(&dir)?;
    if drop_all {
        restart(directory, ReplicaId::NONE, segment_bytes)?;
    } else if rebuild {
        directory.set_aside("engine", "fenced")?;
        for file in ["engine.trust", CHECKPOINT] {
            remove_file(&dir.join(file))?;
        }
    }
    directory.set_kind(NodeKind::Replica)?;
    drop_note(&dir, FENCED)?;
    Ok(())
}
