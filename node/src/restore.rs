//! `quorated restore` and `quorated backup-verify`: a backup made into a data directory, or proved to be good for one.
//!
//! Everything in the backup is read and proved first (checksums, chain), then each shard is replayed up to the cut into a
//! scratch engine, its digests compared with those in the archive on the way, and its state written as the snapshot on
//! which the new directory begins. The new directory is the first voter of a new cluster: another cluster id and a higher
//! epoch, with the rows, catalog, sequences and results of writes as they were; nodes and archives of the old cluster are
//! not in its catalog.
//!
//! Invariants: nothing is left at the target unless it is whole (it is renamed into place at the end); all shards are cut
//! at one timestamp; a backup that is damaged, or does not reach to where it is to be restored, is refused by name.

mod build;
pub mod command;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quorate_core::error::Fatal;
use quorate_shared::archive::file::FileError;
use quorate_shared::archive::manifest::{ManifestError, parse_time, time_text};
use quorate_shared::ids::{ClusterId, Epoch, Index, NodeId, ShardId, Timestamp};
use serde::Serialize;

use self::source::{Backup, Scan};
use crate::founding::SHARDS;
use crate::store::StoreError;

/// Why there is nothing restored, or nothing proved.
#[derive(thiserror::Error, Debug)]
pub enum RestoreError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file is missing or not what was written.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// It cannot be done as asked.
    #[error("{0}")]
    Refused(String),
    /// A fault here.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// The target directory.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<FileError> for RestoreError {
    fn from(error: FileError) -> Self {
        RestoreError::Damaged(error.to_string())
    }
}

/// Up to where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cut {
    /// Everything there is.
    #[default]
    End,
    /// What was committed with a timestamp up to this, in milliseconds since 1970.
    Time(u64),
    /// Up to this entry of this shard, and what was committed elsewhere up to its timestamp.
    Index(ShardId, Index),
}

impl Cut {
    /// From `--to-time`, RFC 3339.
    pub fn time(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not a time such as 2026-01-31T12:34:56.789Z or 2026-01-31T13:34:56+01:00");
        parse_time(text).map(Cut::Time).ok_or_else(bad)
    }

    /// From `--to-index`, e.g. `s1:4711`.
    pub fn index(text: &str) -> Result<Self, String> {
        let read = || {
            let (shard, index) = text.trim().strip_prefix(['s', 'S'])?.split_once(':')?;
            Some(Cut::Index(ShardId::new(shard.parse().ok()?), Index::new(index.parse().ok()?)))
        };
        read().ok_or_else(|| format!("'{text}' is not an entry such as s1:4711"))
    }
}

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The backup.
    pub from: PathBuf,
    /// The data directory to make.
    pub into: PathBuf,
    /// The node it is for.
    pub node: NodeId,
    /// Up to where.
    pub cut: Cut,
}

/// What was restored or proved.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// The cluster that was backed up.
    pub of: String,
    /// The new cluster; not for a verification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The new epoch's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The newest timestamp in it, RFC 3339.
    pub time: String,
    /// Per shard.
    pub shards: Vec<ShardSummary>,
    /// What there is to be said.
    pub notes: Vec<String>,
}

/// One shard of a [`Summary`].
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ShardSummary {
    /// e.g. `s1`.
    pub shard: String,
    /// The archive begins after this entry.
    pub after: u64,
    /// The last entry in the archive; the chain was recomputed up to it.
    pub archived: u64,
    /// The last entry restored.
    pub index: u64,
    /// Points at which the digests of all tables were compared.
    pub compared: u64,
    /// The last of them.
    pub compared_at: u64,
    /// Tables.
    pub tables: u64,
}

/// Restores. Says what it does through `tell`.
pub fn restore(options: &Options, tell: &mut dyn FnMut(&str)) -> Result<Summary, RestoreError> {
    check_target(&options.into)?;
    let backup = Backup::open(&options.from)?;
    tell("reads the backup");
    let (scans, notes) = scan(&backup, options.cut)?;
    let founding = build::found(&scans, options.node)?;
    let shards = build::directory(&backup, &scans, &options.into, options.node, &founding, tell)?;
    Ok(Summary {
        cluster: Some(founding.cluster.to_string()),
        epoch: Some(founding.epoch.number),
        ..summary(&backup, &scans, shards, notes)
    })
}

/// Restores into a scratch directory, which is removed, and compares.
pub fn verify(from: &Path, tell: &mut dyn FnMut(&str)) -> Result<Summary, RestoreError> {
    let backup = Backup::open(from)?;
    tell("reads the backup");
    let (scans, notes) = scan(&backup, Cut::End)?;
    let shards = build::rehearse(&backup, &scans, tell)?;
    Ok(summary(&backup, &scans, shards, notes))
}

fn summary(backup: &Backup, scans: &Scans, shards: Vec<ShardSummary>, notes: Vec<String>) -> Summary {
    let newest = scans.values().map(|scan| scan.cut_time).max().unwrap_or_default();
    let time = time_text(newest.ms());
    Summary { of: backup.manifest.cluster.clone(), cluster: None, epoch: None, time, shards, notes }
}

type Scans = BTreeMap<ShardId, Scan>;

/// Reads everything, proves it, and finds where each shard is to be cut.
fn scan(backup: &Backup, cut: Cut) -> Result<(Scans, Vec<String>), RestoreError> {
    if let Cut::Index(shard, _) = cut
        && !SHARDS.contains(&shard)
    {
        let there: Vec<String> = SHARDS.iter().map(ShardId::to_string).collect();
        return Err(RestoreError::Refused(format!("there is no shard {shard}: a backup has {}", there.join(" and "))));
    }
    for shard in SHARDS {
        backup.shard(shard)?;
    }
    let limit = match cut {
        Cut::End => None,
        Cut::Time(ms) => Some(Timestamp::new(ms, u16::MAX)),
        Cut::Index(shard, index) => {
            let found = backup.scan(shard, None, Some(index))?;
            if index < found.after || index > found.last {
                let (first, last) = (found.after.next(), found.last);
                let message =
                    format!("{shard}:{index} is not in the backup; it holds {shard}:{first} to {shard}:{last}");
                return Err(RestoreError::Refused(message));
            }
            Some(found.cut_time)
        }
    };
    let mut scans = Scans::new();
    for shard in SHARDS {
        let index = match cut {
            Cut::Index(of, index) if of == shard => Some(index),
            _ => None,
        };
        scans.insert(shard, backup.scan(shard, limit.filter(|_| index.is_none()), index)?);
    }
    let mut notes: Vec<String> = scans.values().filter_map(|scan| scan.torn.clone()).collect();
    if let Cut::Time(ms) = cut {
        check_range(&scans, ms)?;
        notes.extend(scans.iter().filter(|(_, scan)| scan.reach() < ms).map(|(shard, scan)| {
            let (time, reach) = (time_text(ms), time_text(scan.reach()));
            format!("{shard} is known to be complete up to {reach} only: what it had up to {time} may be missing")
        }));
    }
    if !backup.manifest.ended {
        let updated = &backup.manifest.updated;
        notes.push(format!("the archiver was not stopped as it should be, or still runs (it last wrote at {updated})"));
    }
    Ok((scans, notes))
}

fn check_range(scans: &Scans, ms: u64) -> Result<(), RestoreError> {
    // No shard can be taken back behind its base; where that is the beginning of all things, there is nothing before.
    let begun = scans.values().map(|scan| scan.base_time).max().filter(|time| *time > Timestamp::MIN);
    let first = begun.or(scans.values().map(|scan| scan.first_time).filter(|time| *time > Timestamp::MIN).min());
    let first = first.map_or(0, Timestamp::ms);
    // As far as there are entries of any shard, as in a restore of everything: an idle one has none.
    let complete = scans.values().map(Scan::reach).min().unwrap_or(0);
    let last = scans.values().map(|scan| scan.last_time.ms()).max().unwrap_or(0).max(complete);
    if ms < first || ms > last {
        let (time, first, last) = (time_text(ms), time_text(first), time_text(last));
        return Err(RestoreError::Refused(format!("{time} is not in the backup; it reaches from {first} to {last}")));
    }
    Ok(())
}

/// Nothing, or an empty directory.
fn check_target(into: &Path) -> Result<(), RestoreError> {
    let failed = |cause| StoreError::Io { doing: "read", path: into.to_owned(), cause };
    match into.read_dir() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e).into()),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                let message = format!("{} is not empty: a backup is restored into a new directory", into.display());
                Err(RestoreError::Refused(message))
            }
        },
    }
}

/// The ids of the cluster that a restore begins.
pub(crate) struct NewIds {
    cluster: ClusterId,
    epoch: Epoch,
}

impl NewIds {
    fn draw(above: u64) -> Result<Self, RestoreError> {
        let (cluster, random) = (crate::store::random_bytes()?, crate::store::random_bytes()?);
        let id = random.iter().take(8).fold(0u64, |id, byte| (id << 8) | u64::from(*byte));
        Ok(Self { cluster: ClusterId(cluster), epoch: Epoch { number: above + 1, id } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_read() {
        assert_eq!(Cut::index("s1:12"), Ok(Cut::Index(ShardId::DATA, Index::new(12))));
        assert_eq!(Cut::time("1970-01-01T00:00:02Z"), Ok(Cut::Time(2_000)));
        for bad in ["", "1:2", "s1", "s1:x"] {
            assert!(Cut::index(bad).is_err(), "{bad}");
        }
        assert!(Cut::time("noon").is_err());
    }

    #[test]
    fn a_target_must_be_empty() {
        let tmp = tempfile::tempdir().unwrap();
        check_target(&tmp.path().join("new")).unwrap();
        check_target(tmp.path()).unwrap();
        std::fs::write(tmp.path().join("x"), "").unwrap();
        assert!(check_target(tmp.path()).unwrap_err().to_string().contains("is not empty"));
    }
}
