//! The files of a backup while it is written: one open log file per shard, the snapshot it may begin with, the manifest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use quorate_shared::archive::file::{Hasher, PART, Reader, Writer, sync_dir};
use quorate_shared::archive::manifest::{self, LogFile, Manifest, OpenFile, ShardFiles, SnapshotFile, hex, time_text};
use quorate_shared::archive::{ArchiveBase, ArchivePart, ArchivePoint, ArchiveReport};
use quorate_shared::ids::{ClusterId, Index, ShardId};

/// A file of the log is finished at this size.
const FILE_BYTES: u64 = 64 << 20;
/// Held while a backup is written.
const LOCK: &str = "backup.lock";

/// A backup being written.
pub struct Archiver {
    dir: PathBuf,
    _lock: File,
    cluster: ClusterId,
    manifest: Manifest,
    shards: BTreeMap<ShardId, Shard>,
    started_ms: u64,
}

/// One shard.
#[derive(Default)]
struct Shard {
    /// A snapshot on its way, and the base it is of.
    snapshot: Option<(ArchiveBase, Incoming)>,
    writer: Option<Writer>,
    /// Its files were opened by this run; before that the manifest's word on them stands.
    begun: bool,
    /// Something was written since the last sync.
    dirty: bool,
    /// Bytes of the open file and the last entry, as synced.
    synced: (u64, Index),
    /// When the node said that everything was sent, and it was synced.
    complete: Option<Instant>,
    bytes: u64,
}

struct Incoming {
    name: String,
    file: File,
    hasher: Hasher,
    bytes: u64,
    synced: u64,
}

/// A snapshot is synced in steps of this: one sync of all of it would hold up the syncs of a node on the same disk.
const SYNC_BYTES: u64 = 1 << 20;

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Archiver {
    /// Begins a backup in a new or empty directory, or goes on with the one that is there.
    pub fn open(dir: &Path, cluster: ClusterId) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let lock = File::create(dir.join(LOCK)).with_context(|| format!("cannot write into {}", dir.display()))?;
        if lock.try_lock().is_err() {
            bail!("{} is being written by another `quorate backup`", dir.display());
        }
        let mut manifest = if dir.join(manifest::NAME).exists() {
            Manifest::read(&dir)?
        } else {
            let other = fs::read_dir(&dir)?.flatten().find(|entry| entry.file_name() != LOCK);
            if let Some(other) = other {
                let (dir, name) = (dir.display(), other.file_name());
                bail!("{dir} is no backup and not empty (it has {}); give a new directory", name.display());
            }
            let mut id = [0; 8];
            getrandom::fill(&mut id).map_err(|e| anyhow::anyhow!("no randomness for an id: {e}"))?;
            Manifest::new(u64::from_le_bytes(id), cluster, now_ms())
        };
        if manifest.cluster_id() != Some(cluster) {
            let (dir, theirs) = (dir.display(), &manifest.cluster);
            bail!("{dir} is a backup of cluster {theirs}, this is cluster {cluster}; give a new directory");
        }
        manifest.ended = false;
        manifest.write(&dir, now_ms())?;
        let started_ms = manifest::parse_time(&manifest.started).unwrap_or_else(now_ms);
        Ok(Self { dir, _lock: lock, cluster, manifest, shards: BTreeMap::new(), started_ms })
    }

    /// The backup's id.
    pub fn id(&self) -> u64 {
        self.manifest.id
    }

    /// What belongs to it so far.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether a shard has its base.
    pub fn has(&self, shard: ShardId) -> bool {
        self.manifest.shards.iter().any(|files| files.id() == shard)
    }

    /// Opens a shard's archive; where the node is to go on, `None` when it has not begun.
    pub fn begin(&mut self, shard: ShardId) -> Result<Option<ArchivePoint>> {
        let (dir, cluster) = (self.dir.clone(), self.cluster);
        let state = self.shards.entry(shard).or_default();
        let Some(files) = self.manifest.shard(shard) else { return Ok(None) };
        let damaged = || format!("{}: the base of {shard} is damaged", dir.display());
        let mut point = files.base.point().with_context(damaged)?;
        if let Some(open) = files.open.clone() {
            let (part, whole) = (dir.join(format!("{}{PART}", open.file)), dir.join(&open.file));
            if part.exists() {
                let writer = Writer::resume(&part, open.bytes)?;
                point = ArchivePoint { epoch: point.epoch, ..writer.last() };
                state.synced = (writer.bytes(), point.index);
                state.bytes = writer.bytes();
                state.writer = Some(writer);
                state.begun = true;
                return Ok(Some(point));
            }
            // It was finished, and the manifest not told any more.
            files.files.push(finished(&whole)?);
        }
        if let Some(last) = files.files.last() {
            let chain = manifest::unhex(&last.chain).with_context(damaged)?;
            point = ArchivePoint {
                epoch: point.epoch,
                index: Index::new(last.last),
                chain: quorate_shared::ids::Hash(chain),
            };
        }
        state.open(&dir, cluster, shard, point)?;
        Ok(Some(point))
    }

    /// Takes what the node sent.
    pub fn take(&mut self, shard: ShardId, part: ArchivePart) -> Result<()> {
        let dir = self.dir.clone();
        let writing = || format!("cannot write the backup in {}", dir.display());
        match part {
            ArchivePart::Base(base) => {
                if base.cluster != self.cluster {
                    bail!("the node belongs to another cluster ({})", base.cluster);
                }
                let state = self.shards.entry(shard).or_default();
                if base.snapshot {
                    state.snapshot =
                        Some((base.clone(), Incoming::create(&dir, shard, base.point.index).with_context(writing)?));
                    return Ok(());
                }
                let point = base.point;
                self.manifest.shards.push(ShardFiles::new(shard, &base));
                self.manifest.shards.sort_by_key(|files| files.shard);
                let cluster = self.cluster;
                self.shards.entry(shard).or_default().open(&dir, cluster, shard, point).with_context(writing)?;
                self.write_manifest()
            }
            ArchivePart::Snapshot { offset, bytes, last } => {
                self.take_snapshot(shard, offset, &bytes, last).with_context(writing)
            }
            ArchivePart::Entries(_) | ArchivePart::Mark(_) => {
                let state = self.shards.entry(shard).or_default();
                let Some(writer) = &mut state.writer else { bail!("the node sent entries of {shard} before its base") };
                let before = writer.bytes();
                writer.append(&part).with_context(writing)?;
                state.bytes += writer.bytes() - before;
                state.dirty = true;
                if state.writer.as_ref().is_some_and(|writer| writer.bytes() >= FILE_BYTES) {
                    self.rotate(shard).with_context(writing)?;
                }
                Ok(())
            }
            ArchivePart::Beat { until_ms, .. } => {
                let came = Instant::now();
                let state = self.shards.entry(shard).or_default();
                state.sync().with_context(writing)?;
                state.complete = Some(came);
                if let Some(files) = self.manifest.shard(shard) {
                    files.until_ms = files.until_ms.max(until_ms);
                }
                Ok(())
            }
            ArchivePart::End => Ok(()),
        }
    }

    fn take_snapshot(&mut self, shard: ShardId, offset: u64, bytes: &[u8], last: bool) -> Result<()> {
        let (dir, cluster) = (self.dir.clone(), self.cluster);
        let state = self.shards.entry(shard).or_default();
        let Some((_, incoming)) = &mut state.snapshot else {
            bail!("the node sent a snapshot of {shard} before its base")
        };
        if offset != incoming.bytes {
            bail!("the node sent byte {offset} of a snapshot of {shard} behind byte {}", incoming.bytes);
        }
        incoming.write(bytes)?;
        state.bytes += bytes.len() as u64;
        if last && let Some((base, incoming)) = state.snapshot.take() {
            let mut files = ShardFiles::new(shard, &base);
            files.base.snapshot = Some(incoming.finish(&dir)?);
            state.open(&dir, cluster, shard, base.point)?;
            self.manifest.shards.push(files);
            self.manifest.shards.sort_by_key(|files| files.shard);
            self.write_manifest()?;
        }
        Ok(())
    }

    /// Finishes a shard's file and begins the next.
    fn rotate(&mut self, shard: ShardId) -> Result<()> {
        let last = self.close(shard)?;
        let (dir, cluster) = (self.dir.clone(), self.cluster);
        if let Some(last) = last {
            self.shards.entry(shard).or_default().open(&dir, cluster, shard, last)?;
        }
        self.write_manifest()
    }

    /// Finishes a shard's file; where it ended.
    fn close(&mut self, shard: ShardId) -> Result<Option<ArchivePoint>> {
        let Some(writer) = self.shards.get_mut(&shard).and_then(|state| state.writer.take()) else { return Ok(None) };
        let last = writer.last();
        if writer.is_empty() {
            let name = writer.name();
            drop(writer);
            fs::remove_file(self.dir.join(format!("{name}{PART}")))?;
        } else {
            let closed = writer.close()?;
            if let Some(files) = self.manifest.shard(shard) {
                files.files.push(LogFile::from(closed));
            }
        }
        Ok(Some(last))
    }

    /// A shard is complete.
    pub fn finish(&mut self, shard: ShardId) -> Result<()> {
        self.close(shard)?;
        self.write_manifest()
    }

    /// Everything gets its end.
    pub fn end(&mut self) -> Result<()> {
        for shard in self.shards.keys().copied().collect::<Vec<_>>() {
            self.close(shard)?;
        }
        self.manifest.ended = true;
        self.write_manifest()
    }

    /// Writes the manifest as of what is synced.
    pub fn write_manifest(&mut self) -> Result<()> {
        for files in &mut self.manifest.shards {
            let Some(state) = self.shards.get(&files.id()).filter(|state| state.begun) else { continue };
            let (bytes, last) = (state.synced.0, state.synced.1.get());
            files.open = state.writer.as_ref().map(|writer| OpenFile { file: writer.name(), bytes, last });
        }
        self.manifest
            .write(&self.dir, now_ms())
            .with_context(|| format!("cannot write the backup in {}", self.dir.display()))
    }

    /// What the cluster is told; `None` while something has not come at all.
    pub fn report(&self) -> Option<ArchiveReport> {
        let mut age_ms = 0;
        let mut shards = Vec::new();
        for (shard, state) in &self.shards {
            age_ms = age_ms.max(state.complete?.elapsed().as_millis() as u64);
            shards.push((*shard, state.synced.1));
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let label = format!("{}:{}", host.trim(), self.dir.display());
        let complete = shards.len() == super::SHARDS.len();
        complete.then_some(ArchiveReport { id: self.manifest.id, label, started_ms: self.started_ms, age_ms, shards })
    }

    /// One line about how far it is.
    pub fn progress(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for files in &self.manifest.shards {
            let open = self.shards.get(&files.id()).filter(|state| state.writer.is_some());
            let last = open.map(|state| state.synced.1.get()).or(files.files.last().map(|file| file.last));
            let until = if files.until_ms == 0 { String::new() } else { format!(" ({})", time_text(files.until_ms)) };
            parts.push(format!("{} up to entry {}{until}", files.id(), last.unwrap_or(files.base.index)));
        }
        let bytes: u64 = self.shards.values().map(|state| state.bytes).sum();
        parts.push(format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)));
        parts.join(", ")
    }
}

impl Shard {
    fn open(&mut self, dir: &Path, cluster: ClusterId, shard: ShardId, after: ArchivePoint) -> std::io::Result<()> {
        let writer = Writer::create(dir, cluster, shard, after)?;
        self.synced = (writer.bytes(), after.index);
        self.dirty = false;
        self.begun = true;
        self.writer = Some(writer);
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        if let Some(writer) = self.writer.as_mut().filter(|_| self.dirty) {
            writer.sync()?;
            self.dirty = false;
            self.synced = (writer.bytes(), writer.last().index);
        }
        Ok(())
    }
}

impl Incoming {
    fn create(dir: &Path, shard: ShardId, index: Index) -> std::io::Result<Self> {
        let name = format!("snapshot-{shard}-{:020}.qsnap", index.get());
        let file = File::create(dir.join(format!("{name}{PART}")))?;
        Ok(Self { name, file, hasher: Hasher::default(), bytes: 0, synced: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.bytes - self.synced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.synced = self.bytes;
        }
        Ok(())
    }

    fn finish(self, dir: &Path) -> std::io::Result<SnapshotFile> {
        self.file.sync_all()?;
        fs::rename(dir.join(format!("{}{PART}", self.name)), dir.join(&self.name))?;
        sync_dir(dir)?;
        Ok(SnapshotFile { file: self.name, bytes: self.bytes, blake3: hex(&self.hasher.finish().0) })
    }
}

/// A file that was finished without the manifest knowing.
fn finished(path: &Path) -> Result<LogFile> {
    let mut reader = Reader::open(path)?;
    let after = reader.header.after.index.get();
    let (mut first_time, mut last_time) = (0, 0);
    while let Some(part) = reader.next()? {
        if let ArchivePart::Entries(entries) = part {
            if first_time == 0 {
                first_time = entries.first_time.raw();
            }
            last_time = last_time.max(entries.last_time.raw());
        }
    }
    let last = reader.last();
    Ok(LogFile {
        file: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        after,
        last: last.index.get(),
        chain: hex(&last.chain.0),
        first_time,
        last_time,
        bytes: reader.at(),
        blake3: hex(&reader.hash().0),
    })
}
