//! A node's disk: what is written is seen at once, and durable only after a sync that has *finished*.
//!
//! The log calls [`DiskFile::sync_data`] and goes on; the simulator says with [`SimDisk::finish`] when the syncs so far
//! are over. Until then every operation is on a list. A killed process stops between two of them. A power cut stops there
//! too, and of what was not synced by then each write is kept, lost, or torn at sectors; names that no directory sync had
//! made durable are the old ones or the new.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Rng;
use crate::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// An operation that may not be durable.
enum Op {
    /// Bytes of a file: what was there (nothing: zeros), and, while it is undone, what is to be.
    Write {
        file: u64,
        offset: usize,
        len: usize,
        old: Vec<u8>,
        new: Vec<u8>,
        old_len: usize,
    },
    Sync {
        file: u64,
    },
    /// A name: what it meant and what it means.
    Name {
        path: PathBuf,
        old: Option<u64>,
        new: Option<u64>,
    },
    SyncDir,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Vec<u8>>,
    names: BTreeMap<PathBuf, u64>,
    next: u64,
    ops: Vec<Op>,
    /// Bytes whose loss cannot be told from a torn write, per file: the end of what the last group wrote.
    syncs: u64,
}

/// See the module.
#[derive(Default)]
pub struct SimDisk(Mutex<State>);

struct SimFile {
    disk: Arc<SimDisk>,
    file: u64,
}

/// The disk as the log wants it.
pub struct Handle(pub Arc<SimDisk>);

impl State {
    fn write(&mut self, file: u64, bytes: &[u8], offset: usize) {
        let content = self.files.entry(file).or_default();
        let old_len = content.len();
        let end = offset + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        let place = &mut content[offset..end];
        let empty = place.iter().fold(0, |bits, byte| bits | byte) == 0;
        let old = if empty { Vec::new() } else { place.to_vec() };
        place.copy_from_slice(bytes);
        self.ops.push(Op::Write { file, offset, len: bytes.len(), old, new: Vec::new(), old_len });
    }

    fn name(&mut self, path: &Path, new: Option<u64>) {
        let old = match new {
            Some(file) => self.names.insert(path.to_owned(), file),
            None => self.names.remove(path),
        };
        self.ops.push(Op::Name { path: path.to_owned(), old, new });
    }

    /// Of the first `until` operations, which a finished sync had made durable.
    fn durable(&self, until: usize) -> Vec<bool> {
        let mut synced: BTreeSet<u64> = BTreeSet::new();
        let mut names = false;
        let mut durable = vec![false; until];
        for (at, op) in self.ops[..until].iter().enumerate().rev() {
            durable[at] = match op {
                Op::Sync { file } => {
                    synced.insert(*file);
                    true
                }
                Op::SyncDir => {
                    names = true;
                    true
                }
                Op::Write { file, .. } => synced.contains(file),
                Op::Name { .. } => names,
            };
        }
        durable
    }

    fn undo_all(&mut self) -> Vec<Op> {
        let mut ops = std::mem::take(&mut self.ops);
        for op in ops.iter_mut().rev() {
            match op {
                Op::Write { file, offset, len, old, new, old_len } => {
                    let content = self.files.entry(*file).or_default();
                    let place = &mut content[*offset..*offset + *len];
                    *new = place.to_vec();
                    if old.is_empty() {
                        place.fill(0)
                    } else {
                        place.copy_from_slice(old)
                    }
                    content.truncate(*old_len);
                }
                Op::Name { path, old, .. } => match old {
                    Some(file) => drop(self.names.insert(path.clone(), *file)),
                    None => drop(self.names.remove(path)),
                },
                Op::Sync { .. } | Op::SyncDir => {}
            }
        }
        ops
    }

    fn redo(&mut self, op: &Op, keep: impl Fn(usize) -> bool) {
        match op {
            Op::Write { file, offset, new, .. } => {
                let content = self.files.entry(*file).or_default();
                let end = offset + new.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                for (at, byte) in new.iter().enumerate() {
                    if keep((offset + at) / SECTOR) {
                        content[offset + at] = *byte;
                    }
                }
            }
            Op::Name { path, new, .. } => match new {
                Some(file) => drop(self.names.insert(path.clone(), *file)),
                None => drop(self.names.remove(path)),
            },
            Op::Sync { .. } | Op::SyncDir => {}
        }
    }
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations so far that may not be durable.
    pub fn position(&self) -> usize {
        self.state().ops.len()
    }

    /// Every sync among the first `until` operations is over.
    pub fn finish(&self, until: usize) {
        let mut state = self.state();
        let until = until.min(state.ops.len());
        let mut durable = state.durable(until).into_iter();
        state.ops.retain(|_| !durable.next().unwrap_or(false));
    }

    /// The process is gone: it may have been in the middle of a write.
    pub fn kill(&self, rng: &mut Rng) {
        let mut state = self.state();
        let until = rng.range(0, state.ops.len() as u64) as usize;
        let mut ops = state.undo_all();
        ops.truncate(until);
        for op in &ops {
            state.redo(op, |_| true);
        }
        // A power cut may still take them: that a restart syncs what it finds is the log's business.
        state.ops = ops;
    }

    /// Power is gone.
    pub fn power_cut(&self, rng: &mut Rng) {
        let mut state = self.state();
        let until = rng.range(0, state.ops.len() as u64) as usize;
        let durable = state.durable(until);
        let ops = state.undo_all();
        for (op, durable) in ops[..until].iter().zip(durable) {
            let fate = if durable { 0 } else { rng.range(0, 3) };
            let salt = rng.next();
            match fate {
                0 | 1 => state.redo(op, |_| true),
                // Of a torn write some sectors are there; of a name, it or not.
                2 if matches!(op, Op::Write { .. }) => {
                    state.redo(op, |sector| (sector as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0);
                }
                _ => {}
            }
        }
    }

    /// Flips a bit of what is durable, among the first `part` (permille) of what a file holds. Gives where.
    pub fn flip(&self, rng: &mut Rng, part: u64) -> Option<String> {
        let mut state = self.state();
        let names: Vec<(PathBuf, u64)> = state.names.iter().map(|(p, f)| (p.clone(), *f)).collect();
        let (path, file) = names.get(rng.below(names.len()))?.clone();
        let content = state.files.get_mut(&file)?;
        let used = content.iter().rposition(|b| *b != 0)?;
        let at = rng.range(0, used as u64 * part / 1000) as usize;
        content[at] ^= 1 << rng.range(0, 7);
        Some(format!("{} at {at}", path.display()))
    }

    /// Forgets everything.
    pub fn wipe(&self) {
        *self.state() = State::default();
    }
}

impl Disk for Handle {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let state = self.0.state();
        let below = state.names.keys().filter_map(|path| path.strip_prefix(dir).ok());
        let mut names: Vec<OsString> =
            below.filter_map(|rest| rest.components().next()).map(|c| c.as_os_str().to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.state();
        state.next += 1;
        let file = state.next;
        state.files.insert(file, Vec::new());
        state.name(path, Some(file));
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.0), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.state().names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: Arc::clone(&self.0), file }))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.state();
        let file = state.names.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        state.name(from, None);
        state.name(to, Some(file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state();
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.name(path, None);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.0.state().ops.push(Op::SyncDir);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let content = state.files.get(&self.file).map_or(&[][..], Vec::as_slice);
        let rest = content.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.state().write(self.file, bytes, offset as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.syncs += 1;
        state.ops.push(Op::Sync { file: self.file });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files.get(&self.file).map_or(0, |c| c.len() as u64))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let content = state.files.entry(self.file).or_default();
        // Allocated space reads as zeros, durable with the file itself.
        let len = content.len().max(bytes as usize);
        content.resize(len, 0);
        Ok(())
    }
}
