//! Reading a backup, with every proof: the manifest's checksum, each file's, each record's, and the hash chain recomputed
//! from the entries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quorate_core::entry::{self, Body, Entry, Kind};
use quorate_core::log::{BaseRecord, LogEntry, Payload};
use quorate_shared::archive::file::{PART, Reader};
use quorate_shared::archive::manifest::{LogFile, Manifest, ShardFiles, hex};
use quorate_shared::archive::{ArchiveMark, ArchivePart, ArchivePoint};
use quorate_shared::ids::{ClusterId, Index, ShardId, Timestamp};

use super::RestoreError;

/// A backup's directory.
pub struct Backup {
    dir: PathBuf,
    /// What belongs to it.
    pub manifest: Manifest,
    cluster: ClusterId,
}

/// What a pass over a shard found.
#[derive(Debug)]
pub struct Scan {
    /// The archive begins after it.
    pub after: Index,
    /// Its last entry.
    pub last: Index,
    /// The last entry that is wanted.
    pub cut: Index,
    /// The newest timestamp up to the cut.
    pub cut_time: Timestamp,
    /// The timestamp of the point where it begins.
    pub base_time: Timestamp,
    /// The first timestamp in it.
    pub first_time: Timestamp,
    /// The last.
    pub last_time: Timestamp,
    /// Everything committed up to this time is in it, milliseconds since 1970.
    pub until_ms: u64,
    /// Digests by index, up to the cut.
    pub marks: BTreeMap<Index, ArchiveMark>,
    /// It ends in the middle of something.
    pub torn: Option<String>,
    /// The highest number of an epoch that is in it.
    pub epoch: u64,
}

impl Scan {
    /// Everything committed up to this time is in it for certain, milliseconds since 1970.
    pub fn reach(&self) -> u64 {
        self.until_ms.max(self.last_time.ms())
    }
}

/// What a backup has of a shard, in order.
pub enum Item {
    /// An entry, proved.
    Entry(LogEntry),
    /// Digests, as of an index not above the last entry.
    Mark(ArchiveMark),
}

impl Backup {
    /// Reads the manifest.
    pub fn open(dir: &Path) -> Result<Self, RestoreError> {
        let manifest = Manifest::read(dir)?;
        let damaged = || RestoreError::Damaged(format!("{}: the cluster's id", dir.display()));
        let cluster = manifest.cluster_id().ok_or_else(damaged)?;
        Ok(Self { dir: dir.to_owned(), manifest, cluster })
    }

    /// What belongs to a shard.
    pub fn shard(&self, shard: ShardId) -> Result<&ShardFiles, RestoreError> {
        let found = self.manifest.shards.iter().find(|files| files.id() == shard);
        found.ok_or_else(|| {
            let dir = self.dir.display();
            RestoreError::Damaged(format!("{dir} has nothing of {shard}: it was stopped before it had begun"))
        })
    }

    /// Where a shard's archive begins.
    pub fn base(&self, shard: ShardId) -> Result<BaseRecord, RestoreError> {
        let base = &self.shard(shard)?.base;
        let record: Option<BaseRecord> = base.record().and_then(|bytes| postcard::from_bytes(&bytes).ok());
        let damaged = || RestoreError::Damaged(format!("{}: the base of {shard}", self.dir.display()));
        let record = record.ok_or_else(damaged)?;
        let point = base.point().ok_or_else(damaged)?;
        if record.shard != shard || record.index != point.index || record.chain != point.chain {
            return Err(damaged());
        }
        Ok(record)
    }

    /// The snapshot a shard's archive begins with, its checksum verified.
    pub fn snapshot(&self, shard: ShardId) -> Result<Option<PathBuf>, RestoreError> {
        let Some(file) = &self.shard(shard)?.base.snapshot else { return Ok(None) };
        let path = self.dir.join(&file.file);
        let damaged = |why: &str| RestoreError::Damaged(format!("{}: {why}", path.display()));
        let mut hasher = blake3_of(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => damaged("the file is missing"),
            _ => damaged(&e.to_string()),
        })?;
        if (hasher.1, std::mem::take(&mut hasher.0)) != (file.bytes, file.blake3.clone()) {
            return Err(damaged("its checksum is another"));
        }
        Ok(Some(path))
    }

    /// Reads a shard to its end and finds where it is to be cut: behind the last entry before the first one with a
    /// timestamp above the limit, or at an index.
    pub fn scan(&self, shard: ShardId, limit: Option<Timestamp>, at: Option<Index>) -> Result<Scan, RestoreError> {
        let base = self.base(shard)?;
        self.snapshot(shard)?;
        let mut scan = Scan {
            after: base.index,
            last: base.index,
            cut: base.index,
            cut_time: base.timestamp,
            base_time: base.timestamp,
            first_time: base.timestamp,
            last_time: base.timestamp,
            until_ms: self.shard(shard)?.until_ms,
            marks: BTreeMap::new(),
            torn: None,
            epoch: base.epoch.number,
        };
        let mut beyond = false;
        let mut marks = BTreeMap::new();
        scan.torn = self.pass(shard, &mut |item| {
            let entry = match item {
                Item::Mark(mark) => {
                    marks.insert(mark.index, mark);
                    return Ok(());
                }
                Item::Entry(entry) => entry,
            };
            scan.last = entry.index;
            let time = match entry.payload {
                Payload::Entry => Entry::header(&entry.bytes).map(|header| header.timestamp).unwrap_or_default(),
                _ => Timestamp::MIN,
            };
            scan.epoch = scan.epoch.max(begun(&entry).unwrap_or(0));
            scan.last_time = scan.last_time.max(time);
            if scan.first_time == Timestamp::MIN {
                scan.first_time = time;
            }
            beyond |= limit.is_some_and(|limit| time > limit) || at.is_some_and(|at| entry.index > at);
            if !beyond {
                scan.cut = entry.index;
                scan.cut_time = scan.cut_time.max(time);
            }
            Ok(())
        })?;
        marks.retain(|index, _| *index <= scan.cut);
        scan.marks = marks;
        Ok(scan)
    }

    /// Reads a shard to its end. Gives why it ends in the middle of something, if it does.
    pub fn pass(
        &self,
        shard: ShardId,
        each: &mut dyn FnMut(Item) -> Result<(), RestoreError>,
    ) -> Result<Option<String>, RestoreError> {
        let files = self.shard(shard)?;
        let base = self.base(shard)?;
        let mut at = ArchivePoint { epoch: base.epoch, index: base.index, chain: base.chain };
        for file in &files.files {
            self.complete(shard, file, &mut at, each)?;
        }
        match &files.open {
            None => Ok(None),
            Some(open) => self.unfinished(shard, &open.file, open.bytes, open.last, &mut at, each),
        }
    }

    fn complete(
        &self,
        shard: ShardId,
        file: &LogFile,
        at: &mut ArchivePoint,
        each: &mut dyn FnMut(Item) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        let path = self.dir.join(&file.file);
        let range = format!("it holds entries {} to {} of {shard}", file.after + 1, file.last);
        let ranged = |why: String| RestoreError::Damaged(format!("{why}; {range}"));
        let mut reader = self.begin(&path, shard, at).map_err(ranged)?;
        while let Some(part) = reader.next().map_err(|e| ranged(e.to_string()))? {
            take(&path, part, at, each)?;
        }
        let found = (reader.at(), hex(&reader.hash().0), at.index.get(), hex(&at.chain.0));
        if found != (file.bytes, file.blake3.clone(), file.last, file.chain.clone()) {
            return Err(ranged(format!("{}: it is not the file that belongs to this backup", path.display())));
        }
        Ok(())
    }

    /// The file that was being written: what had been synced must be there, what follows counts as far as it is whole.
    fn unfinished(
        &self,
        shard: ShardId,
        name: &str,
        durable: u64,
        last: u64,
        at: &mut ArchivePoint,
        each: &mut dyn FnMut(Item) -> Result<(), RestoreError>,
    ) -> Result<Option<String>, RestoreError> {
        let part = self.dir.join(format!("{name}{PART}"));
        // It may have been finished just before the archiver died.
        let path = if part.exists() { part } else { self.dir.join(name) };
        let range = format!("it holds entries up to {last} of {shard} and was being written");
        let ranged = |why: String| RestoreError::Damaged(format!("{why}; {range}"));
        let mut reader = self.begin(&path, shard, at).map_err(ranged)?;
        loop {
            match reader.next() {
                Ok(Some(part)) => take(&path, part, at, each)?,
                Ok(None) => return Ok(None),
                Err(error) if reader.at() < durable => return Err(ranged(error.to_string())),
                Err(_) => {
                    let (path, index) = (path.display(), at.index);
                    let text = format!(
                        "the backup was interrupted: {path} has no end; {shard} is complete up to entry {index}"
                    );
                    return Ok(Some(text));
                }
            }
        }
    }

    fn begin(&self, path: &Path, shard: ShardId, at: &ArchivePoint) -> Result<Reader, String> {
        let reader = Reader::open(path).map_err(|e| e.to_string())?;
        let header = &reader.header;
        if header.cluster != self.cluster || header.shard != shard {
            return Err(format!("{}: it belongs to another backup or shard", path.display()));
        }
        if (header.after.index, header.after.chain) != (at.index, at.chain) {
            let (path, after) = (path.display(), header.after.index);
            return Err(format!("{path}: it goes on after entry {after}, the file before it ends at {}", at.index));
        }
        Ok(reader)
    }
}

/// The number of the epoch that an entry begins.
fn begun(entry: &LogEntry) -> Option<u64> {
    if entry.payload != Payload::Entry || Entry::header(&entry.bytes).ok()?.kind != Kind::Epoch {
        return None;
    }
    match Entry::decode(&entry.bytes).ok()?.body {
        Body::Epoch(begun) => Some(begun.epoch.number),
        _ => None,
    }
}

/// Proves a part and hands it on.
fn take(
    path: &Path,
    part: ArchivePart,
    at: &mut ArchivePoint,
    each: &mut dyn FnMut(Item) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let entries = match part {
        ArchivePart::Mark(mark) => return each(Item::Mark(mark)),
        ArchivePart::Entries(entries) => entries,
        _ => return Ok(()),
    };
    let range = format!("entries {} to {}", entries.first, entries.last);
    let damaged = |why: &str| RestoreError::Damaged(format!("{}: {why} ({range})", path.display()));
    let decoded: Vec<LogEntry> =
        postcard::from_bytes(&entries.bytes).map_err(|_| damaged("its entries cannot be understood"))?;
    for log_entry in decoded {
        if log_entry.index != at.index.next() {
            return Err(damaged("an entry is missing"));
        }
        at.index = log_entry.index;
        at.chain = entry::chain(at.chain, &log_entry);
        each(Item::Entry(log_entry))?;
    }
    if (at.index, at.chain) != (entries.last, entries.chain) {
        return Err(damaged("its hash chain is broken"));
    }
    Ok(())
}

/// BLAKE3 of a file in hex, and its bytes.
fn blake3_of(path: &Path) -> std::io::Result<(String, u64)> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut buffer, mut bytes) = (quorate_shared::archive::file::Hasher::default(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&hasher.finish().0), bytes)),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}
