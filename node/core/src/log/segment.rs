//! The segment log: one per node, for all replicas, in preallocated files.
//!
//! Records are appended to a buffer; [`Log::sync`] is one write and one `fdatasync` for everything in it. A full segment
//! is written and synced before the next one exists, and a new segment appears under its name only when it is complete
//! (written elsewhere, synced, renamed, directory synced).
//!
//! Space ahead of the end is allocated when the segment is made and zeroed a stretch at a time, so that a sync
//! overwrites what is there already and has no allocation to record.
//!
//! Opening: a torn tail is cut (overwritten with zeros); damage cuts nothing: all files are moved aside and the replicas
//! of this node have *lost their log* ([`OpenReport::lost`], [`LogReader::bounds`] is `None`). See [`recover`] for the
//! rule. [`verify`] is the same pass, read-only.
//!
//! Invariants: what was synced is never overwritten; after a failed write or sync the log refuses everything (what the
//! page cache says then is not what the disk has); a newer format is refused by name and left alone.
//!
//! Trimming ([`Log::trim`]): the base, hard state and the like of *every* replica are written anew behind what there is;
//! once that is durable, segments at the front that hold no entry any more are removed, the oldest first
//! ([`LogReader::remove_obsolete`]). A log whose first segment is gone is whole if each replica's base record still comes
//! and its entries follow that without a gap.

pub mod index;
pub mod record;
pub mod recover;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};
use quorate_shared::limits::SEGMENT_BYTES;

use self::index::{Location, LogIndex, ReplicaIndex};
use self::record::{Decoded, ENTRY_HEAD, HEADER_BYTES, PAYLOAD_BYTES_MAX, RECORD_HEAD, Raw, SegmentHeader, Stamp};
use self::recover::{EXTENSION, Found, Inspection, Objection, Torn, inspect, segment_files};
use crate::bug::{Bug, planted};
use crate::disk::{Disk, DiskFile, RealDisk};
use crate::error::Fatal;
use crate::log::{BaseRecord, Log, LogBounds, LogEntry, LogReader, LogRecord};

/// Zeros written ahead of the end.
const ZERO_AHEAD: u64 = 1 << 20;
/// The append buffer is given back to the system beyond this.
const BUFFER_KEEP: usize = 1 << 20;
/// Segments a reader keeps open.
const FILES_OPEN_MAX: usize = 16;
/// Records closer than this are read together.
const READ_GAP: u32 = 16 << 10;

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// Segment files.
    pub segments: usize,
    /// Records.
    pub records: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// An interrupted write that was cut.
    pub torn: Option<Torn>,
    /// The log was damaged: it begins anew, empty.
    pub lost: Option<LostLog>,
}

/// A damaged log. Its replicas may neither vote nor acknowledge any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostLog {
    /// Where and how it is damaged.
    pub reason: String,
    /// Where the files are now.
    pub moved_to: PathBuf,
}

/// The writer.
pub struct SegmentLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    file: Arc<dyn DiskFile>,
    header: SegmentHeader,
    /// Where the buffer goes in the segment.
    position: u64,
    /// Zeroed up to here.
    zeroed: u64,
    buffer: Vec<u8>,
    next_lsn: u64,
    /// Sequence number of the first record that is not durable.
    group_lsn: u64,
    shared: Arc<Shared>,
    failed: bool,
}

/// The readers' side.
pub struct SegmentReader {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    index: RwLock<LogIndex>,
    files: Mutex<BTreeMap<u32, Arc<dyn DiskFile>>>,
    /// Segments before this one may be removed.
    obsolete: Mutex<u64>,
}

/// The read-only pass over a log's directory.
pub fn verify(dir: &Path) -> Result<Inspection, Fatal> {
    verify_on(&RealDisk, dir)
}

/// On any disk.
pub fn verify_on(disk: &dyn Disk, dir: &Path) -> Result<Inspection, Fatal> {
    let mut index = LogIndex::default();
    let mut found = inspect(disk, &segment_files(disk, dir)?, |found| take(&mut index, &found))?;
    complete(&index, &mut found);
    Ok(found)
}

/// Opens a log for reading only, as it is: nothing is cut, moved or made. Its entries are read from the files, never from
/// memory, up to the first damage. `pace` is told of the bytes of every record, and may take its time.
pub fn open_read_only(dir: &Path, mut pace: impl FnMut(usize)) -> Result<(SegmentReader, Inspection), Fatal> {
    let mut index = LogIndex::default();
    let disk = RealDisk::shared();
    let mut found = inspect(&*disk, &segment_files(&*disk, dir)?, |found| {
        pace(found.raw.bytes());
        take(&mut index, &found)
    })?;
    complete(&index, &mut found);
    let shared = Shared {
        disk,
        dir: dir.to_owned(),
        segment_bytes: SEGMENT_BYTES,
        index: RwLock::new(index),
        files: Mutex::default(),
        // It removes nothing.
        obsolete: Mutex::new(0),
    };
    Ok((SegmentReader { shared: Arc::new(shared) }, found))
}

impl SegmentReader {
    /// The shards it has replicas of, each with the replica's id.
    pub fn replicas(&self) -> Vec<(ShardId, ReplicaId)> {
        self.shared.read_index().replicas().collect()
    }

    /// In which segment and where an entry is.
    pub fn place(&self, shard: ShardId, index: Index) -> Option<(PathBuf, u64)> {
        let location = self.shared.read_index().get(shard)?.location(index)?;
        Some((segment_path(&self.shared.dir, u64::from(location.segment)), u64::from(location.offset)))
    }
}

impl SegmentLog {
    /// Opens the log in a directory, making it if it is not there.
    pub fn open(dir: &Path) -> Result<(Self, Arc<SegmentReader>, OpenReport), Fatal> {
        Self::open_on(RealDisk::shared(), dir, SEGMENT_BYTES)
    }

    /// On any disk, with segments of any size.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
    ) -> Result<(Self, Arc<SegmentReader>, OpenReport), Fatal> {
        let doing = || format!("open the log in {}", dir.display());
        disk.make_dir(dir).map_err(|e| Fatal::new(doing(), e))?;
        remove_unfinished(&*disk, dir)?;
        let mut index = LogIndex::default();
        let mut files = segment_files(&*disk, dir)?;
        let mut found = inspect(&*disk, &files, |found| take(&mut index, &found))?;
        complete(&index, &mut found);
        let mut report = OpenReport::default();
        if let Some(reason) = found.damage.take() {
            let moved_to = move_aside(&*disk, dir, &files)?;
            report.lost = Some(LostLog { reason, moved_to });
            (index, files, found) = (LogIndex::default(), Vec::new(), Inspection::default());
            found.next_lsn = 1;
        }
        report.segments = found.segments.len();
        report.records = found.records;
        report.bytes = found.bytes;
        report.torn = found.torn;
        let (file, header, position) = match (found.segments.last(), files.last()) {
            (Some(header), Some((_, path))) => {
                let doing = || format!("open log segment {}", path.display());
                let file = disk.open_write(path).map_err(|e| Fatal::new(doing(), e))?;
                if let Some(torn) = found.torn {
                    zero(&*file, torn.offset, torn.offset + torn.bytes).map_err(|e| Fatal::new(doing(), e))?;
                }
                // What a killed process wrote may be in memory only; from here on it counts as durable.
                file.sync_data().map_err(|e| Fatal::new(doing(), e))?;
                (file, *header, found.end)
            }
            _ => {
                let header = SegmentHeader::new(1, found.next_lsn);
                (create_segment(&*disk, dir, header, segment_bytes)?, header, HEADER_BYTES as u64)
            }
        };
        index.all_written();
        let first = index.first_segment().map_or(header.number, u64::from);
        let (index, files) = (RwLock::new(index), Mutex::new(BTreeMap::new()));
        let obsolete = Mutex::new(header.number.min(first));
        let shared =
            Arc::new(Shared { disk: Arc::clone(&disk), dir: dir.to_owned(), segment_bytes, index, files, obsolete });
        shared.opened(header.number as u32, &file);
        let log = Self {
            disk,
            dir: dir.to_owned(),
            segment_bytes,
            file,
            header,
            position,
            zeroed: position,
            buffer: Vec::new(),
            next_lsn: found.next_lsn,
            group_lsn: found.next_lsn,
            shared: Arc::clone(&shared),
            failed: false,
        };
        Ok((log, Arc::new(SegmentReader { shared }), report))
    }

    fn append_record(&mut self, replica: ReplicaId, shard: ShardId, record: &LogRecord) -> Result<(), Fatal> {
        if let LogRecord::Entries(entries) = record {
            for entry in entries {
                let bytes = RECORD_HEAD + ENTRY_HEAD + entry.bytes.len();
                self.make_room(bytes)?;
                let location = Location {
                    segment: self.header.number as u32,
                    offset: (self.position + self.buffer.len() as u64) as u32,
                    bytes: bytes as u32,
                };
                self.shared.with_index(|index| {
                    let known = index.replica(shard, replica)?;
                    known.push(entry.index, entry.term, location)?;
                    known.cache(entry.clone());
                    index.ends(location);
                    Ok(())
                })?;
                let stamp = self.stamp(replica, shard)?;
                record::put_entry(&mut self.buffer, stamp, entry);
            }
            return Ok(());
        }
        // All of these are small; a base has at most a few dozen voters.
        self.make_room(RECORD_HEAD + (4 << 10))?;
        self.shared.with_index(|index| match record {
            LogRecord::Paxos(paxos) => {
                index.replica(shard, replica)?.paxos(*paxos);
                Ok(())
            }
            LogRecord::Become { replica: new, hard } => {
                index.replica(shard, replica)?.becomes(*new, *hard);
                Ok(())
            }
            LogRecord::Hard(hard) => {
                index.replica(shard, replica)?.hard(*hard);
                Ok(())
            }
            LogRecord::Truncate(from) => index.replica(shard, replica)?.truncate(*from),
            LogRecord::Base(base) if base.shard == shard => {
                index.base(replica, base);
                Ok(())
            }
            LogRecord::Base(_) | LogRecord::Entries(_) => {
                Err(Fatal::new("append to the log", format!("a base of another shard for a replica of {shard}")))
            }
        })?;
        let stamp = self.stamp(replica, shard)?;
        record::put_other(&mut self.buffer, stamp, record);
        Ok(())
    }

    /// See [`Log::trim`].
    fn trim_to(&mut self, replica: ReplicaId, base: &BaseRecord) -> Result<(), Fatal> {
        self.append_record(replica, base.shard, &LogRecord::Base(base.clone()))?;
        let behind = self.header.number;
        let anchors = self.shared.with_index(|index| Ok(index.anchors()))?;
        for (replica, base, hard, paxos) in anchors {
            let shard = base.shard;
            self.append_record(replica, shard, &LogRecord::Base(base))?;
            self.append_record(replica, shard, &LogRecord::Hard(hard))?;
            if let Some(paxos) = paxos {
                self.append_record(replica, shard, &LogRecord::Paxos(paxos))?;
            }
        }
        self.write_out()?;
        let first = self.shared.with_index(|index| Ok(index.first_segment()))?;
        let mut obsolete = self.shared.obsolete.lock().unwrap_or_else(PoisonError::into_inner);
        *obsolete = (*obsolete).max(first.map_or(behind, |first| behind.min(u64::from(first))));
        Ok(())
    }

    fn stamp(&mut self, replica: ReplicaId, shard: ShardId) -> Result<Stamp, Fatal> {
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        let group = u32::try_from(lsn - self.group_lsn)
            .map_err(|_| Fatal::new("append to the log", "too many records without a sync"))?;
        Ok(Stamp { lsn, salt: self.header.salt, group, shard, replica })
    }

    /// Goes on to the next segment if `bytes` more do not fit into this one.
    fn make_room(&mut self, bytes: usize) -> Result<(), Fatal> {
        if bytes > RECORD_HEAD + PAYLOAD_BYTES_MAX || (HEADER_BYTES + bytes) as u64 > self.segment_bytes {
            return Err(Fatal::new("append to the log", format!("a record of {bytes} bytes is too large")));
        }
        if self.position + (self.buffer.len() + bytes) as u64 <= self.segment_bytes {
            return Ok(());
        }
        self.write_out()?;
        let header = SegmentHeader::new(self.header.number + 1, self.next_lsn);
        self.file = create_segment(&*self.disk, &self.dir, header, self.segment_bytes)?;
        self.shared.opened(header.number as u32, &self.file);
        self.header = header;
        self.position = HEADER_BYTES as u64;
        self.zeroed = self.position;
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), Fatal> {
        self.write_file().map_err(|e| {
            let full = matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            let why = if full { ": the disk is full" } else { "" };
            Fatal::new(format!("write {}{why}", segment_path(&self.dir, self.header.number).display()), e)
        })?;
        self.group_lsn = self.next_lsn;
        self.shared.with_index(|index| {
            index.all_written();
            Ok(())
        })
    }

    fn write_file(&mut self) -> std::io::Result<()> {
        self.file.write_at(&self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEEP);
        if self.zeroed < (self.position + ZERO_AHEAD / 4).min(self.segment_bytes) {
            let from = self.zeroed.max(self.position);
            let to = (self.position + ZERO_AHEAD).min(self.segment_bytes);
            zero(&*self.file, from, to)?;
            self.zeroed = to;
        }
        self.file.sync_data()
    }

    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Fatal>) -> Result<(), Fatal> {
        if self.failed {
            return Err(Fatal::new("write the log", "an earlier error stopped it"));
        }
        let done = work(self);
        self.failed = done.is_err();
        done
    }
}

impl Log for SegmentLog {
    fn append(&mut self, replica: ReplicaId, shard: ShardId, records: &[LogRecord]) -> Result<(), Fatal> {
        self.guarded(|log| records.iter().try_for_each(|record| log.append_record(replica, shard, record)))
    }

    fn sync(&mut self) -> Result<(), Fatal> {
        self.guarded(|log| if log.buffer.is_empty() { Ok(()) } else { log.write_out() })
    }

    fn trim(&mut self, replica: ReplicaId, base: &BaseRecord) -> Result<(), Fatal> {
        self.guarded(|log| log.trim_to(replica, base))
    }
}

impl Shared {
    fn with_index<T>(&self, work: impl FnOnce(&mut LogIndex) -> Result<T, Fatal>) -> Result<T, Fatal> {
        work(&mut self.index.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_index(&self) -> RwLockReadGuard<'_, LogIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self, segment: u32, file: &Arc<dyn DiskFile>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(segment, Arc::clone(file));
        if files.len() > FILES_OPEN_MAX {
            files.pop_first();
        }
    }

    fn file(&self, segment: u32) -> Result<Arc<dyn DiskFile>, Fatal> {
        if let Some(file) = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&segment) {
            return Ok(Arc::clone(file));
        }
        let path = segment_path(&self.dir, u64::from(segment));
        let doing = || format!("open log segment {}", path.display());
        let file = self.disk.open(&path).map_err(|e| Fatal::new(doing(), e))?;
        self.opened(segment, &file);
        Ok(file)
    }

    /// The oldest first, each durably, so that a crash leaves a log without a hole.
    fn remove_obsolete(&self) -> Result<usize, Fatal> {
        let before = *self.obsolete.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removed = 0;
        for (number, path) in segment_files(&*self.disk, &self.dir)?.into_iter().filter(|(n, _)| *n < before) {
            self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&(number as u32));
            let gone = self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.dir));
            gone.map_err(|e| Fatal::new(format!("remove log segment {}", path.display()), e))?;
            removed += 1;
        }
        Ok(removed)
    }

    fn unreadable(&self, segment: u32, cause: std::io::Error) -> Fatal {
        Fatal::new(format!("read log segment {}", segment_path(&self.dir, u64::from(segment)).display()), cause)
    }

    /// Reads the records at these places, which follow each other.
    fn read(&self, wanted: &[(Index, Location)], out: &mut Vec<LogEntry>) -> Result<(), Fatal> {
        let damaged =
            |index: Index| Fatal::new("read the log", format!("the record of entry {index} is not what was written"));
        let mut rest = wanted;
        while let Some((_, first)) = rest.first() {
            let mut run = 1;
            let mut end = first.offset + first.bytes;
            while let Some((_, next)) = rest.get(run)
                && next.segment == first.segment
                && next.offset >= end
                && next.offset - end <= READ_GAP
            {
                end = next.offset + next.bytes;
                run += 1;
            }
            let mut span = vec![0; (end - first.offset) as usize];
            self.file(first.segment)?
                .read_exact_at(&mut span, u64::from(first.offset))
                .map_err(|e| self.unreadable(first.segment, e))?;
            let span = Bytes::from(span);
            for (index, location) in &rest[..run] {
                let start = (location.offset - first.offset) as usize;
                let record = span.slice(start..start + location.bytes as usize);
                // The salt is checked with the rest: it is under the checksum.
                let salt = record.get(16..24).and_then(|s| s.first_chunk()).map_or(0, |s| u64::from_le_bytes(*s));
                Raw::parse(&record, salt).ok_or_else(|| damaged(*index))?;
                let entry = record::entry_of(&record).filter(|e| e.index == *index);
                out.push(entry.ok_or_else(|| damaged(*index))?);
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}

impl LogReader for SegmentReader {
    fn bounds(&self, shard: ShardId) -> Option<LogBounds> {
        self.shared.read_index().get(shard).map(ReplicaIndex::bounds)
    }

    fn entries(&self, shard: ShardId, from: Index, to: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Fatal> {
        let mut wanted = Vec::new();
        let mut out = Vec::new();
        let mut cached = Vec::new();
        {
            let index = self.shared.read_index();
            let Some(r) = index.get(shard) else { return Ok(out) };
            if from <= r.base_index() {
                let cause = format!("entry {from} of {shard} is not behind the base {}", r.base_index());
                return Err(Fatal::new("read the log", cause));
            }
            let mut bytes = 0usize;
            let mut fits = |more: usize| {
                let first = bytes == 0;
                bytes += more.max(1);
                first || bytes <= bytes_max
            };
            let cached_from = r.cached_from();
            let mut at = from;
            while at < to.min(cached_from)
                && let Some(location) = r.location(at)
                && fits(location.bytes as usize)
            {
                wanted.push((at, location));
                at = at.next();
            }
            if at >= cached_from {
                cached.extend(r.cached(at).take_while(|e| e.index < to && fits(e.bytes.len())).cloned());
            }
        }
        out.reserve_exact(wanted.len() + cached.len());
        self.shared.read(&wanted, &mut out)?;
        out.append(&mut cached);
        Ok(out)
    }

    fn term(&self, shard: ShardId, index: Index) -> Result<Option<Term>, Fatal> {
        Ok(self.shared.read_index().get(shard).and_then(|r| r.term(index)))
    }

    fn bytes_after(&self, shard: ShardId, index: Index) -> u64 {
        self.shared.read_index().bytes_after(shard, index, self.shared.segment_bytes)
    }

    fn remove_obsolete(&self) -> Result<usize, Fatal> {
        self.shared.remove_obsolete()
    }
}

/// Takes a record found on disk into the index.
fn take(index: &mut LogIndex, found: &Found<'_>) -> Result<(), Objection> {
    let Stamp { shard, replica, .. } = found.raw.stamp;
    let said = found.raw.decode().map_err(Objection::Fatal)?;
    let location =
        Location { segment: found.segment as u32, offset: found.offset as u32, bytes: found.raw.bytes() as u32 };
    index.ends(location);
    let done = match said {
        Decoded::Entry { index: at, term } => index.found(shard, replica).and_then(|r| {
            if planted(Bug::LoseTruncation) && at <= r.last() { Ok(()) } else { r.push(at, term, location) }
        }),
        Decoded::Become(new, hard) => index.found(shard, replica).map(|r| r.becomes(new, hard)),
        Decoded::Paxos(paxos) => index.found(shard, replica).map(|r| r.paxos(paxos)),
        Decoded::Hard(hard) => index.found(shard, replica).map(|r| r.hard(hard)),
        Decoded::Truncate(_) if planted(Bug::LoseTruncation) => Ok(()),
        Decoded::Truncate(from) => index.found(shard, replica).and_then(|r| r.truncate(from)),
        Decoded::Base(base) => {
            index.found_base(replica, &base);
            Ok(())
        }
    };
    done.map_err(|e| Objection::Contradiction(e.cause.to_string()))
}

/// A log whose records follow each other is still not whole if a replica's beginning is not in it.
fn complete(index: &LogIndex, found: &mut Inspection) {
    if found.damage.is_none()
        && let (Some((shard, replica)), Some(first)) = (index.without_base(), found.segments.first())
    {
        let what = format!("the base record of replica {replica} of {shard}");
        found.damage = Some(format!("records are missing before segment {}: {what}", first.number));
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.{EXTENSION}"))
}

/// A segment that was being made when the process ended was never used.
fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> Result<(), Fatal> {
    let doing = || format!("open the log in {}", dir.display());
    for name in disk.list(dir).map_err(|e| Fatal::new(doing(), e))? {
        let path = dir.join(name);
        if path.extension().is_some_and(|e| e == "new") {
            disk.remove(&path).map_err(|e| Fatal::new(doing(), e))?;
        }
    }
    Ok(())
}

fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    header: SegmentHeader,
    segment_bytes: u64,
) -> Result<Arc<dyn DiskFile>, Fatal> {
    let path = segment_path(dir, header.number);
    let unfinished = path.with_extension("new");
    let make = || -> std::io::Result<Arc<dyn DiskFile>> {
        let file = disk.create(&unfinished)?;
        file.allocate(segment_bytes)?;
        file.write_at(&header.encode(), 0)?;
        file.sync_data()?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(dir)?;
        Ok(file)
    };
    make().map_err(|e| {
        let full = matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let why = if full { ": the disk is full" } else { "" };
        Fatal::new(format!("make log segment {}{why}", path.display()), e)
    })
}

/// Keeps damaged files for whoever wants to look at them.
fn move_aside(disk: &dyn Disk, dir: &Path, files: &[(u64, PathBuf)]) -> Result<PathBuf, Fatal> {
    let make = || -> std::io::Result<PathBuf> {
        let there = disk.list(dir)?;
        let mut n = 1;
        while there.iter().any(|name| *name == *format!("damaged-{n}")) {
            n += 1;
        }
        let aside = dir.join(format!("damaged-{n}"));
        disk.make_dir(&aside)?;
        for (_, path) in files {
            if let Some(name) = path.file_name() {
                disk.rename(path, &aside.join(name))?;
            }
        }
        disk.sync_dir(&aside)?;
        disk.sync_dir(dir)?;
        Ok(aside)
    };
    make().map_err(|e| Fatal::new(format!("move the damaged log in {} aside", dir.display()), e))
}

fn zero(file: &dyn DiskFile, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; ZERO_AHEAD.min(to.saturating_sub(from)) as usize];
    let mut at = from;
    while at < to {
        let n = (to - at).min(zeros.len() as u64);
        file.write_at(&zeros[..n as usize], at)?;
        at += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
