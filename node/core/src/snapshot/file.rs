//! Snapshot files: written a piece at a time, synced before they have their name; read back with every checksum.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Hash, TableId, Timestamp};

use super::source::SnapshotSource;
use super::{
    CHUNK_BYTES_MAX, CHUNK_HEAD, FORMAT, HEAD_BYTES_MAX, Head, MAGIC, PREFIX_BYTES, Summary, TRAILER_BYTES, file_name,
    le32, le64,
};
use crate::disk::{Disk, DiskFile};
use crate::entry::codec::Reader as Codec;
use crate::entry::decode_table;
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::machine::{Digest, MachineState, storage_of};
use crate::mvcc;
use crate::table::TableDef;

/// What was written and not synced, beyond which it is synced: a sync of everything at the end would keep the log's own
/// syncs waiting.
const SYNC_BYTES: u64 = 1 << 20;

/// A snapshot file that is complete, checked or written here, and durable: what a log may be trimmed behind. Only
/// [`Writer`] and [`adopt`] make one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    path: PathBuf,
    summary: Summary,
}

impl Stored {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What it is of.
    pub fn head(&self) -> &Head {
        &self.summary.head
    }
}

/// Writes a snapshot into a directory, a piece at a time, so that others get the disk in between.
pub struct Writer {
    disk: Arc<dyn Disk>,
    source: SnapshotSource,
    file: Arc<dyn DiskFile>,
    unfinished: PathBuf,
    path: PathBuf,
    at: u64,
    synced: u64,
}

impl Writer {
    /// Begins a file.
    pub fn begin(disk: Arc<dyn Disk>, dir: &Path, source: SnapshotSource) -> Result<Self, Fatal> {
        let path = dir.join(file_name(source.head().shard(), source.head().index()));
        let unfinished = path.with_extension("new");
        let doing = || format!("write the snapshot {}", path.display());
        disk.make_dir(dir).map_err(|e| Fatal::new(doing(), e))?;
        let file = disk.create(&unfinished).map_err(|e| Fatal::new(doing(), e))?;
        Ok(Self { disk, source, file, unfinished, path, at: 0, synced: 0 })
    }

    /// Writes the next piece; at the end, the durable snapshot.
    pub fn step(&mut self) -> Result<Option<Stored>, Fatal> {
        let piece = self.source.next_chunk()?;
        self.put(piece).map_err(|e| Fatal::new(format!("write the snapshot {}", self.path.display()), e))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Writes the rest at once.
    pub fn finish(mut self) -> Result<Stored, Fatal> {
        loop {
            if let Some(stored) = self.step()? {
                return Ok(stored);
            }
        }
    }

    fn put(&mut self, piece: Option<Bytes>) -> io::Result<Option<Stored>> {
        if let Some(piece) = piece {
            self.file.write_at(&piece, self.at)?;
            self.at += piece.len() as u64;
            if self.at - self.synced >= SYNC_BYTES {
                self.file.sync_data()?;
                self.synced = self.at;
            }
            return Ok(None);
        }
        self.file.sync_data()?;
        self.disk.rename(&self.unfinished, &self.path)?;
        if let Some(dir) = self.path.parent() {
            self.disk.sync_dir(dir)?;
        }
        let summary = self.source.summary().ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Some(Stored { path: self.path.clone(), summary }))
    }
}

/// Reads a snapshot's head; nothing behind it is looked at.
pub fn read_head(disk: &dyn Disk, path: &Path) -> Result<Head, Fatal> {
    Ok(Pieces::open(disk, path)?.head)
}

/// A table's definition in a snapshot; nothing behind the machine's own records is read.
pub fn read_definition(disk: &dyn Disk, path: &Path, table: TableId) -> Result<Option<TableDef>, Fatal> {
    let mut pieces = Pieces::open(disk, path)?;
    let (wanted, mut found, mut rows) = (Key::Table(table).encode(), None, false);
    while found.is_none()
        && !rows
        && pieces.next(&mut |key, value| {
            rows |= keys::is_versioned(&key);
            if key == wanted {
                found = decode_table(&value);
            }
            Ok(())
        })?
    {}
    Ok(found)
}

/// Reads a whole snapshot: every checksum, and the digests recomputed from the rows.
pub fn verify(disk: &dyn Disk, path: &Path) -> Result<Summary, Fatal> {
    let mut pieces = Pieces::open(disk, path)?;
    while pieces.next(&mut |_, _| Ok(()))? {}
    pieces.summary()
}

/// Verifies a file that came from elsewhere and makes it durable.
pub fn adopt(disk: &dyn Disk, path: &Path) -> Result<Stored, Fatal> {
    let summary = verify(disk, path)?;
    let sync = || -> io::Result<()> {
        disk.open_write(path)?.sync_data()?;
        path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
    };
    sync().map_err(|e| Fatal::new(format!("sync the snapshot {}", path.display()), e))?;
    Ok(Stored { path: path.to_owned(), summary })
}

/// A snapshot being read and checked.
pub(super) struct Pieces {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    at: u64,
    pub(super) head: Head,
    hasher: blake3::Hasher,
    check: Check,
    summary: Option<Summary>,
}

/// What has been seen of a snapshot's keys.
#[derive(Default)]
struct Check {
    last: Option<Bytes>,
    rows: u64,
    keys: u64,
    digests: std::collections::BTreeMap<TableId, Digest>,
    horizon: Option<Timestamp>,
    applied: Option<MachineState>,
}

impl Pieces {
    pub(super) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, Fatal> {
        let failed = |e: io::Error| Fatal::new(format!("read the snapshot {}", path.display()), e);
        let damaged = |what: &str| {
            let cause = format!("it is damaged or was not written to its end: {what}");
            Fatal::new(format!("read the snapshot {}", path.display()), cause)
        };
        let file = disk.open(path).map_err(failed)?;
        let len = file.len().map_err(failed)?;
        let mut prefix = [0; PREFIX_BYTES];
        if len < PREFIX_BYTES as u64 {
            return Err(damaged("it is too short"));
        }
        file.read_exact_at(&mut prefix, 0).map_err(failed)?;
        if &prefix[..8] != MAGIC {
            return Err(damaged("it does not begin as a snapshot does"));
        }
        if le32(&prefix[8..]) != FORMAT {
            let cause = format!("its format {} is not {FORMAT}: a newer version wrote it", le32(&prefix[8..]));
            return Err(Fatal::new(format!("read the snapshot {}", path.display()), cause));
        }
        let bytes = le32(&prefix[12..]) as usize;
        if bytes > HEAD_BYTES_MAX || (PREFIX_BYTES + bytes) as u64 > len {
            return Err(damaged("its head"));
        }
        let mut encoded = vec![0; bytes];
        file.read_exact_at(&mut encoded, PREFIX_BYTES as u64).map_err(failed)?;
        if crc32c::crc32c(&encoded) != le32(&prefix[16..]) {
            return Err(damaged("its head"));
        }
        let head = match postcard::take_from_bytes::<Head>(&encoded) {
            Ok((head, [])) => head,
            _ => return Err(damaged("its head")),
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&prefix);
        hasher.update(&encoded);
        let at = (PREFIX_BYTES + bytes) as u64;
        Ok(Self { path: path.to_owned(), file, len, at, head, hasher, check: Check::default(), summary: None })
    }

    fn doing(&self) -> String {
        format!("read the snapshot {}", self.path.display())
    }

    fn damaged(&self, what: &str) -> Fatal {
        let cause = format!("it is damaged or was not written to its end: {what} at byte {}", self.at);
        Fatal::new(self.doing(), cause)
    }

    fn take(&mut self, bytes: usize) -> Result<Vec<u8>, Fatal> {
        if self.at + bytes as u64 > self.len {
            return Err(self.damaged("it ends too early,"));
        }
        let mut out = vec![0; bytes];
        self.file.read_exact_at(&mut out, self.at).map_err(|e| Fatal::new(self.doing(), e))?;
        self.at += bytes as u64;
        Ok(out)
    }

    /// Reads the next chunk and gives its keys and values. `false`: that was all, and everything in it is right.
    pub(super) fn next(&mut self, each: &mut dyn FnMut(Bytes, Bytes) -> Result<(), Fatal>) -> Result<bool, Fatal> {
        let frame = self.take(CHUNK_HEAD)?;
        let (bytes, crc) = (le32(&frame) as usize, le32(&frame[4..]));
        self.hasher.update(&frame);
        if bytes == 0 {
            self.end(crc)?;
            return Ok(false);
        }
        if bytes > CHUNK_BYTES_MAX {
            return Err(self.damaged("a chunk's length"));
        }
        let chunk = Bytes::from(self.take(bytes)?);
        if crc32c::crc32c(&chunk) != crc {
            return Err(self.damaged("the chunk that ends"));
        }
        self.hasher.update(&chunk);
        let mut codec = Codec::new(&chunk);
        while codec.end().is_err() {
            let pair = codec.bytes().and_then(|key| Ok((key, codec.bytes()?)));
            let (key, value) = pair.map_err(|_| self.damaged("a key in the chunk that ends"))?;
            self.check.see(&key, &value)?;
            each(key, value)?;
        }
        Ok(true)
    }

    fn end(&mut self, crc: u32) -> Result<(), Fatal> {
        let trailer = self.take(TRAILER_BYTES)?;
        let (counts, hash) = trailer.split_at(16);
        self.hasher.update(counts);
        let computed = *self.hasher.finalize().as_bytes();
        if crc != 0 || computed != hash || self.at != self.len {
            return Err(self.damaged("its trailer"));
        }
        let (keys, rows) = (le64(counts), le64(&counts[8..]));
        if (keys, rows) != (self.check.keys, self.check.rows) {
            return Err(self.damaged("its counts"));
        }
        self.check.against(&self.head).map_err(|what| {
            let cause = format!("its rows are not those of the state it was taken of: {what}");
            Fatal::new(self.doing(), cause)
        })?;
        let head = self.head.clone();
        self.summary = Some(Summary { head, keys, rows, bytes: self.len, hash: Hash(computed) });
        Ok(())
    }

    pub(super) fn summary(self) -> Result<Summary, Fatal> {
        let doing = self.doing();
        self.summary.ok_or_else(|| Fatal::new(doing, "it was not read to its end"))
    }
}

impl Check {
    fn see(&mut self, key: &Bytes, value: &Bytes) -> Result<(), Fatal> {
        self.keys += 1;
        if keys::is_versioned(key) {
            if self.last.as_ref().is_some_and(|last| last >= key) {
                return Err(Fatal::new("read a snapshot", "its rows are not in order"));
            }
            let (timestamp, row) = mvcc::parse(value)?;
            let row = row.ok_or_else(|| Fatal::new("read a snapshot", "it has a deleted row"))?;
            self.digests.entry(storage_of(key)?).or_default().add(key, timestamp, row);
            self.rows += 1;
            self.last = Some(key.clone());
            return Ok(());
        }
        match Key::decode(key)? {
            Key::Applied => self.applied = Some(MachineState::decode_applied(value)?),
            Key::Horizon => {
                self.horizon = value.first_chunk().map(|raw| Timestamp::from_raw(u64::from_be_bytes(*raw)));
            }
            Key::History { .. } => return Err(Fatal::new("read a snapshot", "it has history")),
            _ => {}
        }
        Ok(())
    }

    fn against(&self, head: &Head) -> Result<(), &'static str> {
        let computed = self.digests.iter().map(|(storage, digest)| (*storage, digest.lanes_sum()));
        if !computed.eq(head.digests.iter().map(|(storage, lanes)| (*storage, *lanes))) {
            return Err("their digests differ");
        }
        if self.applied.as_ref().map(|state| state.base(head.shard())).as_ref() != Some(&head.base) {
            return Err("the applied record is another");
        }
        if self.horizon != Some(head.horizon) {
            return Err("the horizon is another");
        }
        Ok(())
    }
}
