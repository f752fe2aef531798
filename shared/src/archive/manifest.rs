//! `backup.json`: what belongs to a backup, readable by people, proved by a checksum over itself.
//!
//! It is replaced as a whole, durably, whenever a file is finished and about once a second while one is written. The bytes
//! of the file must be exactly those that writing its content gives: whatever bit of it is changed is noticed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::file::{Closed, sync_dir};
use super::{ArchiveBase, ArchivePoint};
pub use crate::anchor::{hex, unhex};
use crate::ids::{ClusterId, Epoch, Hash, Index, ShardId, Timestamp};

/// Its name.
pub const NAME: &str = "backup.json";
/// Version of the format written here.
pub const FORMAT: u32 = 1;

/// A backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Its id: goes on when the archive does.
    pub id: u64,
    /// The cluster, in hex.
    pub cluster: String,
    /// When it was begun, RFC 3339.
    pub started: String,
    /// When this file was written.
    pub updated: String,
    /// It was ended as told; otherwise it is being written, or was interrupted.
    pub ended: bool,
    /// Its shards, by id.
    pub shards: Vec<ShardFiles>,
}

/// The files of one shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFiles {
    /// e.g. 1.
    pub shard: u64,
    /// Where it begins.
    pub base: Base,
    /// Complete files of the log, in order.
    pub files: Vec<LogFile>,
    /// The file being written.
    pub open: Option<OpenFile>,
    /// Everything committed up to this time is in it, milliseconds since 1970; 0 is not known.
    pub until_ms: u64,
}

/// Where a shard's archive begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The epoch's number.
    pub epoch: u64,
    /// The epoch's id.
    pub epoch_id: u64,
    /// Entries begin after it.
    pub index: u64,
    /// The chain hash there, in hex.
    pub chain: String,
    /// The last timestamp at or before it.
    pub timestamp: u64,
    /// The node's own record of the point, in hex.
    pub record: String,
    /// The state there; without one it is empty.
    pub snapshot: Option<SnapshotFile>,
}

/// A snapshot's file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    /// Its name.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// BLAKE3 of all of it, in hex.
    pub blake3: String,
}

/// A complete file of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogFile {
    /// Its name.
    pub file: String,
    /// The point before its first entry.
    pub after: u64,
    /// Its last entry.
    pub last: u64,
    /// The chain hash after it, in hex.
    pub chain: String,
    /// The first timestamp in it; 0: none.
    pub first_time: u64,
    /// The last.
    pub last_time: u64,
    /// Its bytes.
    pub bytes: u64,
    /// BLAKE3 of all of it, in hex.
    pub blake3: String,
}

/// The file being written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFile {
    /// The name it will have; `.part` is added to it while it is written.
    pub file: String,
    /// Bytes that were durable when this was written.
    pub bytes: u64,
    /// The last entry among them.
    pub last: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    backup: Manifest,
    blake3: String,
}

/// Why there is no manifest.
#[derive(thiserror::Error, Debug)]
pub enum ManifestError {
    /// It is not there.
    #[error("{0} has no {NAME}: it is no backup")]
    Missing(String),
    /// It is not what was written.
    #[error("{0} is damaged: {1}")]
    Damaged(String, String),
    /// Written by a newer version.
    #[error("{0} has format {1}, this program reads {FORMAT}: use the newer version that wrote it")]
    Newer(String, u64),
    /// The operating system refuses.
    #[error("cannot read {0}: {1}")]
    Io(String, io::Error),
}

impl Manifest {
    /// Of a new backup.
    pub fn new(id: u64, cluster: ClusterId, now_ms: u64) -> Self {
        let now = time_text(now_ms);
        let (cluster, started) = (cluster.to_string(), now.clone());
        Self { format: FORMAT, id, cluster, started, updated: now, ended: false, shards: Vec::new() }
    }

    /// Reads the manifest of a directory.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let path = dir.join(NAME);
        let name = path.display().to_string();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing(dir.display().to_string()));
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(ManifestError::Damaged(name, "it is not text".into()));
            }
            Err(e) => return Err(ManifestError::Io(name, e)),
        };
        let damaged = |why: String| ManifestError::Damaged(name.clone(), why);
        let any: serde_json::Value = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match any.pointer("/backup/format").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => return Err(ManifestError::Newer(name, format)),
            Some(_) => {}
            None => return Err(damaged("it has no format".into())),
        }
        let sealed: Sealed = serde_json::from_value(any).map_err(|e| damaged(e.to_string()))?;
        let again = sealed.backup.text().map_err(|e| damaged(e.to_string()))?;
        if again != text {
            return Err(damaged("its checksum is another".into()));
        }
        Ok(sealed.backup)
    }

    /// Replaces the manifest of a directory, durably.
    pub fn write(&mut self, dir: &Path, now_ms: u64) -> io::Result<()> {
        self.updated = time_text(now_ms);
        let (unfinished, path) = (dir.join(format!("{NAME}.new")), dir.join(NAME));
        let mut file = File::create(&unfinished)?;
        file.write_all(self.text()?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        sync_dir(dir)
    }

    fn text(&self) -> io::Result<String> {
        let plain = serde_json::to_vec(self)?;
        let blake3 = blake3::hash(&plain).to_hex().to_string();
        Ok(serde_json::to_string_pretty(&Sealed { backup: self.clone(), blake3 })? + "\n")
    }

    /// A shard's files.
    pub fn shard(&mut self, shard: ShardId) -> Option<&mut ShardFiles> {
        self.shards.iter_mut().find(|files| files.shard == shard.get())
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        unhex(&self.cluster).map(ClusterId)
    }
}

impl ShardFiles {
    /// Nothing yet behind a base.
    pub fn new(shard: ShardId, base: &ArchiveBase) -> Self {
        let ArchiveBase { point, timestamp, record, .. } = base;
        let base = Base {
            epoch: point.epoch.number,
            epoch_id: point.epoch.id,
            index: point.index.get(),
            chain: hex(&point.chain.0),
            timestamp: timestamp.raw(),
            record: hex(record),
            snapshot: None,
        };
        Self { shard: shard.get(), base, files: Vec::new(), open: None, until_ms: 0 }
    }

    /// The shard.
    pub fn id(&self) -> ShardId {
        ShardId::new(self.shard)
    }
}

impl Base {
    /// The point.
    pub fn point(&self) -> Option<ArchivePoint> {
        let epoch = Epoch { number: self.epoch, id: self.epoch_id };
        Some(ArchivePoint { epoch, index: Index::new(self.index), chain: Hash(unhex(&self.chain)?) })
    }

    /// The node's own record of the point.
    pub fn record(&self) -> Option<Vec<u8>> {
        let digits = self.record.as_bytes();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        if digits.len().is_multiple_of(2) { digits.chunks(2).map(pair).collect() } else { None }
    }

    /// The last timestamp at or before it.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from_raw(self.timestamp)
    }
}

impl From<Closed> for LogFile {
    fn from(closed: Closed) -> Self {
        Self {
            file: closed.name,
            after: closed.after.get(),
            last: closed.last.get(),
            chain: hex(&closed.chain.0),
            first_time: closed.first_time.raw(),
            last_time: closed.last_time.raw(),
            bytes: closed.bytes,
            blake3: hex(&closed.hash.0),
        }
    }
}

/// Milliseconds since 1970 as RFC 3339, UTC.
pub fn time_text(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::<Utc>::from_timestamp_millis).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Milliseconds since 1970 of an RFC 3339 text.
pub fn parse_time(text: &str) -> Option<u64> {
    let time = DateTime::parse_from_rfc3339(text.trim()).ok()?;
    u64::try_from(time.timestamp_millis()).ok()
}
