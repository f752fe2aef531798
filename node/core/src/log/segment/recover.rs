//! The read-only pass over all segments: what opening a log and `verify` have in common.
//!
//! Records must follow each other without a gap in their sequence numbers. Bad bytes are a *torn tail* if nothing behind
//! them proves that they had been durable: no later segment, and no valid record of a write group that began behind them.
//! Otherwise they are *damage*. (One write and its sync carry a whole group; when power fails, the disk may have kept
//! its end and not its start. Such a group was never acknowledged, so it is torn, not damaged.)

use std::path::{Path, PathBuf};

use quorate_shared::limits::SEGMENT_BYTES;

use super::record::{HEADER_BYTES, HEADER_USED, HeaderError, PAYLOAD_BYTES_MAX, RECORD_HEAD, Raw, SegmentHeader};
use crate::disk::{Disk, DiskFile};
use crate::error::Fatal;

/// Read at once: most of a fresh segment is zeros, which need not be in memory.
const READ_PIECE: usize = 1 << 20;

/// File name extension of segments.
pub const EXTENSION: &str = "seg";

/// What the pass found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inspection {
    /// Segments, in order.
    pub segments: Vec<SegmentHeader>,
    /// Valid records.
    pub records: u64,
    /// Bytes of valid records.
    pub bytes: u64,
    /// Where the next record goes in the last segment.
    pub end: u64,
    /// Sequence number of the next record.
    pub next_lsn: u64,
    /// Bad bytes at the very end: a write that power or a crash interrupted.
    pub torn: Option<Torn>,
    /// Bad bytes that had been durable: where and how.
    pub damage: Option<String>,
    /// Segment and offset of the damage.
    pub damaged_at: Option<(u64, u64)>,
    /// Bytes that are not zero where nothing was ever written, each time with segment and offset. They change nothing.
    pub stray: Vec<(u64, u64)>,
}

/// An interrupted write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Torn {
    /// The segment.
    pub segment: u64,
    /// Where it begins.
    pub offset: u64,
    /// Bytes to the last that is not zero.
    pub bytes: u64,
}

/// A record and where it is.
pub struct Found<'a> {
    /// Number of its segment.
    pub segment: u64,
    /// Its offset.
    pub offset: u64,
    /// The record.
    pub raw: Raw<'a>,
}

/// Segment files of a directory, by number.
pub fn segment_files(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, Fatal> {
    let doing = || format!("list the log in {}", dir.display());
    let mut files = Vec::new();
    for name in disk.list(dir).map_err(|e| Fatal::new(doing(), e))? {
        let path = dir.join(name);
        if path.extension().is_some_and(|e| e == EXTENSION) {
            let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
            files.push((number.unwrap_or(0), path));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads every record; `each` sees the valid ones in order and may object (a record that contradicts what came before
/// it counts as damage).
pub fn inspect(
    disk: &dyn Disk,
    files: &[(u64, PathBuf)],
    mut each: impl FnMut(Found<'_>) -> Result<(), Objection>,
) -> Result<Inspection, Fatal> {
    let mut found = Inspection { next_lsn: 1, ..Inspection::default() };
    for (i, (number, path)) in files.iter().enumerate() {
        found.damaged_at = Some((*number, 0));
        let doing = || format!("read log segment {}", path.display());
        let file = disk.open(path).map_err(|e| Fatal::new(doing(), e))?;
        let len = file.len().map_err(|e| Fatal::new(doing(), e))?;
        if len > SEGMENT_BYTES * 2 {
            found.damage = Some(format!("segment {number} has {len} bytes"));
            return Ok(found);
        }
        let bytes = read_used(&*file, len).map_err(|e| Fatal::new(doing(), e))?;
        let header = match SegmentHeader::decode(&bytes) {
            Ok(header) => header,
            Err(HeaderError::Newer(format)) => {
                let cause = format!("its format {format} was written by a newer version");
                return Err(Fatal::new(doing(), cause));
            }
            Err(HeaderError::Bad) => {
                found.damage = Some(format!("the header of segment {number} is damaged"));
                return Ok(found);
            }
        };
        if i == 0 && *number > 1 {
            // Those before it may have been trimmed away; whether they had been needed is found out by what follows.
            found.next_lsn = header.first_lsn;
        }
        if header.number != *number || header.first_lsn != found.next_lsn {
            found.damage = Some(format!("records are missing before segment {number}"));
            return Ok(found);
        }
        if let Some(last) = found.segments.last()
            && header.number != last.number + 1
        {
            found.damage = Some(format!("segment {} is missing", last.number + 1));
            return Ok(found);
        }
        found.segments.push(header);
        if let Some(at) = bytes[HEADER_USED..HEADER_BYTES].iter().position(|&b| b != 0) {
            found.stray.push((*number, (HEADER_USED + at) as u64));
        }
        let end = match read_records(&bytes, header, &mut found, &mut each) {
            Ok(end) => end,
            Err(Objection::Fatal(e)) => return Err(e),
            Err(Objection::Contradiction(what)) => {
                found.damage = Some(format!("in segment {number}: {what}"));
                found.damaged_at = Some((*number, found.end));
                return Ok(found);
            }
        };
        found.end = end as u64;
        let rest = &bytes[end..];
        let Some(used) = last_used(rest) else { continue };
        let next = files.get(i + 1).and_then(|(_, next)| first_lsn(disk, next));
        // A later segment that continues right here proves that nothing of value is in these bytes.
        if next == Some(found.next_lsn) {
            let first = rest.iter().position(|&b| b != 0).unwrap_or(used);
            found.stray.push((*number, (end + first) as u64));
            continue;
        }
        if next.is_some() || i + 1 < files.len() || durable_behind(rest, header.salt, found.next_lsn) {
            found.damage = Some(format!("segment {number} is damaged at offset {end}"));
            found.damaged_at = Some((*number, end as u64));
            return Ok(found);
        }
        found.torn = Some(Torn { segment: *number, offset: end as u64, bytes: used as u64 + 1 });
    }
    found.damaged_at = None;
    Ok(found)
}

/// What a segment holds, without the zeros behind it, but for those that its last record may end with.
fn read_used(file: &dyn DiskFile, len: u64) -> std::io::Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; READ_PIECE]);
    let (mut at, mut used) = (0, 0);
    while at < len {
        let piece = &mut piece[..usize::try_from(len - at).unwrap_or(READ_PIECE).min(READ_PIECE)];
        file.read_exact_at(piece, at)?;
        at += piece.len() as u64;
        if last_used(piece).is_some() {
            // Zeros in between have been left out so far.
            bytes.resize(at as usize - piece.len(), 0);
            bytes.extend_from_slice(piece);
            used = at;
        }
    }
    let end = len.min(used.max(HEADER_BYTES as u64) + (RECORD_HEAD + PAYLOAD_BYTES_MAX) as u64);
    bytes.resize(end as usize, 0);
    Ok(bytes)
}

/// Why the consumer of records stops the pass.
pub enum Objection {
    /// The record contradicts those before it.
    Contradiction(String),
    /// It cannot be understood at all (a newer version).
    Fatal(Fatal),
}

fn read_records(
    bytes: &[u8],
    header: SegmentHeader,
    found: &mut Inspection,
    each: &mut impl FnMut(Found<'_>) -> Result<(), Objection>,
) -> Result<usize, Objection> {
    let mut at = HEADER_BYTES;
    while let Some(raw) = bytes.get(at..).and_then(|rest| Raw::parse(rest, header.salt)) {
        if raw.stamp.lsn != found.next_lsn {
            break;
        }
        found.end = at as u64;
        each(Found { segment: header.number, offset: at as u64, raw })?;
        at += raw.bytes();
        found.next_lsn += 1;
        found.records += 1;
        found.bytes += raw.bytes() as u64;
    }
    Ok(at)
}

/// Position of the last byte that is not zero.
fn last_used(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    // A page at a time: most of a fresh segment is unused.
    let mut end = bytes.len();
    for page in bytes.rchunks(ZEROS.len()) {
        if page != &ZEROS[..page.len()] {
            return page.iter().rposition(|&b| b != 0).map(|at| end - page.len() + at);
        }
        end -= page.len();
    }
    None
}

/// Whether a valid record is in `rest` whose write group began behind `lsn`: what is at `lsn` had been durable then.
fn durable_behind(rest: &[u8], salt: u64, lsn: u64) -> bool {
    let salt_bytes = salt.to_le_bytes();
    let mut at = 0;
    // The salt stands 16 bytes into a record.
    while at + RECORD_HEAD <= rest.len() {
        if rest[at + 16] == salt_bytes[0]
            && rest[at + 16..at + 24] == salt_bytes
            && let Some(raw) = Raw::parse(&rest[at..], salt)
            && raw.stamp.lsn.saturating_sub(u64::from(raw.stamp.group)) > lsn
        {
            return true;
        }
        at += 1;
    }
    false
}

fn first_lsn(disk: &dyn Disk, path: &Path) -> Option<u64> {
    let mut head = [0; HEADER_BYTES];
    disk.open(path).and_then(|file| file.read_exact_at(&mut head, 0)).ok()?;
    SegmentHeader::decode(&head).ok().map(|h| h.first_lsn)
}
