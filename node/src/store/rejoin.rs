//! A fenced node's way back: what only it has is written out, and its log goes on as that of a log-shipped replica of the
//! newer epoch.
//!
//! Invariant: nothing is cut before what is cut has been written to a file and synced.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use quorate_core::disk::RealDisk;
use quorate_core::epoch::{self, Rejoined};
use quorate_core::error::Fatal;
use quorate_core::log::segment::SegmentLog;
use quorate_core::log::{EpochStart, LogReader};
use quorate_core::ship::chain_at;
use quorate_shared::ids::{ClusterId, Epoch, Hash, Index, ReplicaId, ShardId};
use quorate_shared::status::NodeKind;

use super::engine::{CHECKPOINT, remove_file, restart};
use super::{Directory, FENCED, drop_note, io_error, leave_note, sync_directory};
use crate::founding::SHARDS;
use crate::node::NodeError;
use crate::peers::message::{Answer, HASHES_MAX};

/// The note of a fenced node for its next start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fenced {
    /// The epoch that has begun without it.
    pub epoch: Epoch,
    /// Where somebody of it may be.
    pub addresses: BTreeSet<String>,
}

impl Fenced {
    /// The directory's note, if there is one.
    pub fn of(directory: &Directory) -> Option<Self> {
        directory.note(FENCED).map(|text| Self::parse(&text))
    }

    /// One that cannot be read is of any epoch: the node must not serve as if there were none.
    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let epoch = lines.next().and_then(|line| line.parse().ok()).unwrap_or_default();
        Self { epoch, addresses: lines.filter(|line| !line.is_empty()).map(str::to_owned).collect() }
    }

    fn text(&self) -> String {
        let lines = self.addresses.iter().map(|address| format!("\n{address}"));
        format!("{}{}", self.epoch, lines.collect::<String>())
    }

    /// Leaves it for the next start.
    pub fn leave(&self, dir: &Path) {
        leave_note(dir, FENCED, &self.text());
    }

    /// Whether the answer is of that epoch, or of a later one, of the same cluster.
    pub fn is_ended_by(&self, cluster: ClusterId, answer: &Answer) -> bool {
        let ours = answer.founding.as_ref().is_some_and(|founding| founding.cluster == cluster);
        let new = |epoch: Epoch| epoch == self.epoch || epoch.number > self.epoch.number;
        ours && answer.epochs.len() == SHARDS.len() && answer.epochs.iter().all(|(_, epoch, _)| new(*epoch))
    }
}

/// Makes the directory that of a replica of the newer epoch, which began at these points; `hashes` asks a node of it.
pub async fn rejoin(
    directory: &mut Directory,
    starts: &[(ShardId, Epoch, EpochStart)],
    segment_bytes: u64,
    hashes: impl AsyncFn(ShardId, Vec<Index>) -> Result<Vec<Option<Hash>>, String>,
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
        let start = common(&*reader, *shard, *start, &hashes).await?;
        // What is cut is not only the log's: the engine has most of it applied.
        let rejoined = epoch::rejoin(&mut log, &*reader, *shard, last, start, &mut suffix)?;
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

/// Where this log and the newer epoch's part. That is the epoch's start, unless several have begun without this node: then
/// they may have parted before it, and the last entry with the same hash is looked for, some sixty places at a time. Where
/// nobody can tell, the start is all that is known.
async fn common(
    reader: &dyn LogReader,
    shard: ShardId,
    start: EpochStart,
    hashes: &impl AsyncFn(ShardId, Vec<Index>) -> Result<Vec<Option<Hash>>, String>,
) -> Result<EpochStart, Fatal> {
    let Some(bounds) = reader.bounds(shard) else { return Ok(start) };
    if start.index <= bounds.last && chain_at(reader, shard, start.index)? == Some(start.chain) {
        return Ok(start);
    }
    let (mut low, mut high) = (bounds.base.index.get(), bounds.last.min(start.index).get());
    let mut found = None;
    while low <= high {
        let step = ((high - low) / (HASHES_MAX as u64 - 1)).max(1);
        // The last one is asked for too: what agrees there agrees everywhere.
        let mut at: Vec<Index> = (0..HASHES_MAX as u64 - 1).map(|n| low + n * step).map(Index::new).collect();
        at.retain(|index| index.get() < high);
        at.push(Index::new(high));
        let theirs = match hashes(shard, at.clone()).await {
            Ok(theirs) => theirs,
            Err(why) => {
                tracing::warn!(%shard, %why, "where this log and the newer epoch's part is not known");
                break;
            }
        };
        let known: Vec<(Index, Hash)> = at.into_iter().zip(theirs).filter_map(|(at, hash)| Some((at, hash?))).collect();
        if known.is_empty() {
            break;
        }
        for (index, chain) in known {
            if chain_at(reader, shard, index)? != Some(chain) {
                high = index.get().saturating_sub(1);
                break;
            }
            found = Some(EpochStart { index, chain });
            low = index.get() + 1;
        }
    }
    if let Some(found) = found {
        tracing::info!(%shard, at = %found.index, "this log and the newer epoch's part here");
    }
    Ok(found.unwrap_or(start))
}

#[cfg(test)]
mod tests {
    use quorate_core::replica::Protocol;
    use quorate_shared::ids::{NodeId, Nonce};

    use super::*;
    use crate::founding::mint;

    fn answer(cluster: ClusterId, epochs: &[(u64, u64)]) -> Answer {
        let founding = mint(vec![(NodeId::new(1), Nonce::default())], Protocol::Raft).unwrap();
        let epochs = SHARDS.into_iter().zip(epochs);
        Answer {
            node: NodeId::new(2),
            nonce: Nonce::default(),
            voters: Vec::new(),
            founding: Some(crate::peers::message::Founding { cluster, ..founding }),
            master: None,
            nodes: Vec::new(),
            replicator: Protocol::Raft,
            epochs: epochs
                .map(|(shard, (number, id))| (shard, Epoch { number: *number, id: *id }, EpochStart::default()))
                .collect(),
        }
    }

    #[test]
    fn only_its_own_cluster_in_that_epoch_ends_the_wait() {
        let ours = ClusterId([1; 16]);
        let fenced = Fenced { epoch: Epoch { number: 2, id: 7 }, addresses: BTreeSet::new() };
        let ends = |epochs: &[(u64, u64)]| fenced.is_ended_by(ours, &answer(ours, epochs));
        assert!(ends(&[(2, 7), (2, 7)]) && ends(&[(3, 9), (3, 9)]) && ends(&[(2, 7), (3, 9)]));
        assert!(!ends(&[(2, 7), (1, 1)]), "one shard is not there yet");
        assert!(!ends(&[(2, 8), (2, 8)]), "a rival epoch");
        assert!(!ends(&[]) && !ends(&[(2, 7)]), "it has nothing open");
        assert!(!fenced.is_ended_by(ours, &answer(ClusterId([2; 16]), &[(2, 7), (2, 7)])), "another cluster");
    }

    #[test]
    fn the_note_is_read_as_it_was_left() {
        let addresses = ["a:1", "b:2"].map(str::to_owned).into();
        let fenced = Fenced { epoch: Epoch { number: 2, id: 7 }, addresses };
        assert_eq!(fenced.text(), "2 7\na:1\nb:2");
        assert_eq!(Fenced::parse(&fenced.text()), fenced);
        let none = Fenced { addresses: BTreeSet::new(), ..fenced };
        assert_eq!(Fenced::parse(&none.text()), none);
    }
}
