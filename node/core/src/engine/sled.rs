//! The engine on disk: sled 0.34.7, and the only place that names it.
//!
//! What sled does not give, this adds:
//! - every value carries our own checksum over key and value, verified on every read;
//! - no value is larger than [`ENGINE_VALUE_BYTES_MAX`]: sled puts large leaves into blob files that it never syncs. What
//!   is larger is cut into `ff/<version>/<chunk>` keys, and its own key holds a pointer. The chunks of a value are never
//!   changed; a reader that finds them gone was overtaken by a write and reads the key again;
//! - each tree has a sum over everything in it, see `sum`: sled loses what a damaged message said when it recovers;
//! - a panic inside sled is an error. After any error the engine refuses everything (half a batch may be visible);
//! - trust across starts, see [`trust`].
//!
//! sled writes out only when it wants to or in [`Engine::flush`]; every batch carries the applied index, and what is lost
//! is applied again from the log.
//!
//! Value: crc32c u32 (of key, tag and the rest), tag u8, then the value, or version u64, length u32 and chunks u32 of an
//! overflow. Chunk: crc32c u32 (of key and bytes), bytes.

mod seal;
mod sum;
pub mod trust;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_shared::limits::{ENGINE_VALUE_BYTES_MAX, ENTRY_BYTES_MAX};

use crate::engine::{Batch, Engine, KeyRange, ScanItem, Tree};
use crate::error::Fatal;
use crate::keys::ENGINE_PREFIX;

use self::sum::{Round, Sum, Summed};

const INLINE: u8 = 0;
const OVERFLOW: u8 = 1;
/// Checksum and tag.
const HEAD: usize = 5;
const POINTER: usize = HEAD + 16;
/// Bytes of value in a chunk.
const CHUNK: usize = ENGINE_VALUE_BYTES_MAX - 4;
/// A reader overtaken by writes so often is not overtaken but looks at damage.
const RETRIES: usize = 1000;
/// sled lets go of its lock a moment after the last handle is dropped.
const LOCK_TRIES: usize = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// All trees of a node in one sled `Db`.
pub struct SledEngine {
    db: sled::Db,
    dir: PathBuf,
    /// The open ones: a tree has one handle, as it has one sum.
    trees: Mutex<BTreeMap<String, Arc<SledTree>>>,
    failed: Arc<Failed>,
}

/// Whether an error has stopped the engine.
#[derive(Default)]
struct Failed {
    is: AtomicBool,
    /// What was read is not what was written: the first time, and how.
    damage: OnceLock<String>,
}

impl Failed {
    fn stop(&self) {
        self.is.store(true, Ordering::SeqCst);
    }

    #[expect(clippy::needless_pass_by_value, reason = "a message is often made for this call")]
    fn damaged(&self, what: impl ToString) {
        // The first is the one that is told.
        let _ = self.damage.set(what.to_string());
        self.stop();
    }
}

struct SledTree {
    tree: sled::Tree,
    failed: Arc<Failed>,
    /// The next overflow version.
    next_version: AtomicU64,
    /// Held while a batch is written and during a step of a round.
    summed: Mutex<Summed>,
}

impl SledEngine {
    /// Opens the engine in a directory, making it if it is not there. The cache is sled's main use of memory.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Fatal> {
        let mut failed = Arc::new(Failed::default());
        let config = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
        let mut tries = 0;
        let db = loop {
            match guarded(&failed, "open the engine", || config.open()) {
                Ok(db) => break db,
                Err(e) if e.cause.to_string().contains("could not acquire lock") && tries < LOCK_TRIES => {
                    failed = Arc::default();
                    tries += 1;
                    pause();
                }
                Err(e) => return Err(e),
            }
        };
        let engine = Self { db, dir: dir.to_owned(), trees: Mutex::default(), failed };
        engine.assert_no_blobs()?;
        Ok(engine)
    }

    /// What is damaged, once something was read that is not what was written.
    pub fn damage(&self) -> Option<String> {
        self.failed.damage.get().cloned()
    }

    /// The names of all trees.
    pub fn tree_names(&self) -> Vec<String> {
        let names = self.db.tree_names();
        let own = |name: &sled::IVec| name.as_ref() != b"__sled__default";
        names.iter().filter(|n| own(n)).map(|n| String::from_utf8_lossy(n).into_owned()).collect()
    }

    fn assert_no_blobs(&self) -> Result<(), Fatal> {
        match std::fs::read_dir(self.dir.join("blobs")).map(|mut files| files.next()) {
            Ok(None) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Ok(Some(_)) => {
                self.failed.stop();
                Err(Fatal::new("check the engine", "it has written a blob file, which is never synced"))
            }
            Err(e) => Err(Fatal::new("check the engine", e)),
        }
    }
}

impl Engine for SledEngine {
    fn tree(&self, name: &str) -> Result<Arc<dyn Tree>, Fatal> {
        let mut trees = lock(&self.trees);
        if let Some(tree) = trees.get(name) {
            return Ok(tree.clone());
        }
        let (tree, newest, first, stored) = guarded(&self.failed, "open a tree", || {
            let tree = self.db.open_tree(name)?;
            let newest = tree.range([ENGINE_PREFIX]..).keys().next_back().transpose()?;
            let first = tree.iter().keys().next().transpose()?;
            let stored = tree.get(sum::KEY)?;
            Ok((tree, newest, first, stored))
        })?;
        let total = match (first, stored) {
            (None, None) => Some(Sum::default()),
            (_, stored) => stored.and_then(|stored| Sum::decode(&stored)),
        };
        let Some(total) = total else {
            let what = format!("the tree {name} has lost its sum");
            self.failed.damaged(&what);
            return Err(Fatal::new("open a tree", what));
        };
        let version = newest.and_then(|key| key.get(1..9)?.try_into().ok()).map(u64::from_be_bytes);
        let tree = Arc::new(SledTree {
            tree,
            failed: Arc::clone(&self.failed),
            next_version: AtomicU64::new(version.map_or(1, |v| v + 1)),
            summed: Mutex::new(Summed { total, round: None }),
        });
        trees.insert(name.to_owned(), tree.clone());
        Ok(tree)
    }

    fn drop_tree(&self, name: &str) -> Result<(), Fatal> {
        lock(&self.trees).remove(name);
        guarded(&self.failed, "drop a tree", || self.db.drop_tree(name)).map(drop)
    }

    fn flush(&self) -> Result<(), Fatal> {
        guarded(&self.failed, "flush the engine", || self.db.flush())?;
        self.assert_no_blobs()
    }

    fn size_bytes(&self) -> u64 {
        guarded(&self.failed, "measure the engine", || self.db.size_on_disk()).unwrap_or(0)
    }
}

#[expect(clippy::disallowed_methods, reason = "opening waits for another handle of this process, before anything runs")]
fn pause() {
    std::thread::sleep(LOCK_PAUSE);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a call of sled; its errors and panics stop the engine.
fn guarded<T>(failed: &Failed, doing: &str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Fatal> {
    if failed.is.load(Ordering::Relaxed) {
        return Err(Fatal::new(doing, "an earlier error stopped the engine"));
    }
    let result = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => {
            if matches!(e, sled::Error::Corruption { .. }) {
                failed.damaged(&e);
            }
            Err(Fatal::new(doing, e))
        }
        Err(panic) => {
            let what = panic.downcast_ref::<String>().map(String::as_str);
            let what = what.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            // Its library panics on damage of its files.
            failed.damaged(format!("the engine panicked: {what}"));
            Err(Fatal::new(doing, format!("the engine panicked: {what}")))
        }
    };
    failed.stop();
    result
}

/// What a stored value says.
enum Stored<'a> {
    Inline(&'a [u8]),
    Overflow { version: u64, len: usize, chunks: u32 },
}

fn encode_inline(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.clear();
    out.extend_from_slice(&[0, 0, 0, 0, INLINE]);
    out.extend_from_slice(value);
    seal(out, key);
}

fn encode_pointer(out: &mut Vec<u8>, key: &[u8], version: u64, len: usize) {
    out.clear();
    out.extend_from_slice(&[0, 0, 0, 0, OVERFLOW]);
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    out.extend_from_slice(&(len.div_ceil(CHUNK) as u32).to_be_bytes());
    seal(out, key);
}

fn seal(out: &mut [u8], key: &[u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &out[4..]);
    out[..4].copy_from_slice(&crc.to_be_bytes());
}

/// What follows the checksum, if it is right.
fn unseal<'a>(key: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, rest) = stored.split_first_chunk::<4>()?;
    let actual = crc32c::crc32c_append(crc32c::crc32c(key), rest);
    (actual == u32::from_be_bytes(*crc)).then_some(rest)
}

fn parse<'a>(key: &[u8], stored: &'a [u8]) -> Option<Stored<'a>> {
    match unseal(key, stored)?.split_first()? {
        (&INLINE, value) => Some(Stored::Inline(value)),
        (&OVERFLOW, rest) if rest.len() == POINTER - HEAD => {
            let number = |at: usize| rest[at..at + 4].iter().fold(0u32, |n, &b| n << 8 | u32::from(b));
            let version = rest.first_chunk().map(|v| u64::from_be_bytes(*v))?;
            let len = number(8) as usize;
            (len <= ENTRY_BYTES_MAX).then_some(Stored::Overflow { version, len, chunks: number(12) })
        }
        _ => None,
    }
}

fn chunk_key(version: u64, chunk: u32) -> [u8; 13] {
    let mut key = [ENGINE_PREFIX; 13];
    key[1..9].copy_from_slice(&version.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

impl SledTree {
    fn damaged(&self, key: &[u8]) -> Fatal {
        let hex: String = key.iter().take(40).map(|b| format!("{b:02x}")).collect();
        let what = format!("the value of key {hex} is not what was written");
        self.failed.damaged(&what);
        Fatal::new("read the engine", what)
    }

    fn raw(&self, key: &[u8]) -> Result<Option<sled::IVec>, Fatal> {
        guarded(&self.failed, "read the engine", || self.tree.get(key))
    }

    /// The value behind what is stored; `None` if a write has replaced it meanwhile.
    fn resolve(&self, key: &[u8], stored: &[u8]) -> Result<Option<Bytes>, Fatal> {
        match parse(key, stored).ok_or_else(|| self.damaged(key))? {
            Stored::Inline(value) => Ok(Some(Bytes::copy_from_slice(value))),
            Stored::Overflow { version, len, chunks } => {
                let mut value = Vec::with_capacity(len);
                for chunk in 0..chunks {
                    let chunk_key = chunk_key(version, chunk);
                    let Some(stored) = self.raw(&chunk_key)? else { return Ok(None) };
                    value.extend_from_slice(unseal(&chunk_key, &stored).ok_or_else(|| self.damaged(key))?);
                }
                if value.len() != len {
                    return Err(self.damaged(key));
                }
                Ok(Some(Bytes::from(value)))
            }
        }
    }

    /// Puts a change of one stored value into a batch and its sum.
    fn change(&self, key: &[u8], new: Option<&[u8]>, out: &mut Changes) -> Result<(), Fatal> {
        let old = self.raw(key)?;
        if let Some(stored) = &old
            && let Stored::Overflow { version, chunks, .. } = parse(key, stored).ok_or_else(|| self.damaged(key))?
        {
            for chunk in (0..chunks).map(|chunk| chunk_key(version, chunk)) {
                let old = self.raw(&chunk)?;
                out.summed.change(&chunk, old.as_deref(), None);
                out.batch.remove(&chunk);
            }
        }
        out.summed.change(key, old.as_deref(), new);
        match new {
            Some(new) => out.batch.insert(key, new),
            None => out.batch.remove(key),
        }
        Ok(())
    }

    fn put_overflow(&self, key: &[u8], value: &[u8], scratch: &mut Vec<u8>, out: &mut Changes) -> Result<(), Fatal> {
        let version = self.next_version.fetch_add(1, Ordering::SeqCst);
        for (chunk, part) in (0u32..).zip(value.chunks(CHUNK)) {
            let chunk_key = chunk_key(version, chunk);
            scratch.clear();
            scratch.extend_from_slice(&[0; 4]);
            scratch.extend_from_slice(part);
            seal(scratch, &chunk_key);
            // The version is new, so nothing is there yet.
            out.summed.change(&chunk_key, None, Some(scratch));
            out.batch.insert(&chunk_key, &scratch[..]);
        }
        encode_pointer(scratch, key, version, value.len());
        self.change(key, Some(scratch), out)
    }

    /// Looks at up to `budget` more keys; whether the round has come to its end.
    fn step(&self, round: &mut Round, budget: usize) -> Result<bool, Fatal> {
        let mut iter = self.tree.range(&round.next[..]..);
        for _ in 0..budget {
            let next = guarded(&self.failed, "check the engine", || iter.next().transpose())?;
            let Some((key, stored)) = next else { return Ok(true) };
            if key[..] != sum::KEY {
                unseal(&key, &stored).ok_or_else(|| self.damaged(&key))?;
                round.seen.add(&stored);
            }
            round.next.clear();
            round.next.extend_from_slice(&key);
            round.next.push(0);
        }
        Ok(false)
    }
}

/// A batch on its way, and the sum as it will leave it.
struct Changes {
    batch: sled::Batch,
    summed: Summed,
}

impl Tree for SledTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        for _ in 0..RETRIES {
            let Some(stored) = self.raw(key)? else { return Ok(None) };
            if let Some(value) = self.resolve(key, &stored)? {
                return Ok(Some(value));
            }
        }
        Err(self.damaged(key))
    }

    fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a> {
        let own = Bytes::from_static(&[ENGINE_PREFIX]);
        let end = range.end.clone().map_or(own.clone(), |end| end.min(own));
        if range.start >= end {
            return Box::new(std::iter::empty());
        }
        Box::new(Scan { tree: self, iter: self.tree.range(&range.start[..]..&end[..]), reverse, done: false })
    }

    fn write(&self, batch: Batch) -> Result<(), Fatal> {
        let mut summed = lock(&self.summed);
        let mut out = Changes { batch: sled::Batch::default(), summed: summed.clone() };
        let mut scratch = Vec::with_capacity(512);
        for (key, value) in &batch.writes {
            if key.first() == Some(&ENGINE_PREFIX) {
                return Err(Fatal::new("write to the engine", "a key has the engine's own prefix"));
            }
            match value {
                None => self.change(key, None, &mut out)?,
                Some(value) if value.len() + HEAD <= ENGINE_VALUE_BYTES_MAX => {
                    encode_inline(&mut scratch, key, value);
                    self.change(key, Some(&scratch), &mut out)?;
                }
                Some(value) if value.len() <= ENTRY_BYTES_MAX => {
                    self.put_overflow(key, value, &mut scratch, &mut out)?;
                }
                Some(value) => {
                    let cause = format!("a value of {} bytes is too large", value.len());
                    return Err(Fatal::new("write to the engine", cause));
                }
            }
        }
        out.batch.insert(&sum::KEY, out.summed.total.encode());
        guarded(&self.failed, "write to the engine", || self.tree.apply_batch(out.batch))?;
        *summed = out.summed;
        Ok(())
    }

    fn check(&self, budget: usize) -> Result<bool, Fatal> {
        let mut summed = lock(&self.summed);
        let mut round = summed.round.take().unwrap_or_default();
        if !self.step(&mut round, budget)? {
            summed.round = Some(round);
            return Ok(false);
        }
        if round.seen != summed.total {
            let what = format!("it holds {:?}, but {:?} was written to it", round.seen, summed.total);
            self.failed.damaged(&what);
            return Err(Fatal::new("check the engine", what));
        }
        Ok(true)
    }
}

struct Scan<'a> {
    tree: &'a SledTree,
    iter: sled::Iter,
    reverse: bool,
    done: bool,
}

impl Scan<'_> {
    fn step(&mut self) -> Result<Option<(Bytes, Bytes)>, Fatal> {
        loop {
            let (iter, reverse) = (&mut self.iter, self.reverse);
            let next = guarded(&self.tree.failed, "scan the engine", || {
                if reverse { iter.next_back().transpose() } else { iter.next().transpose() }
            })?;
            let Some((key, stored)) = next else { return Ok(None) };
            let value = match self.tree.resolve(&key, &stored)? {
                Some(value) => Some(value),
                None => self.tree.get(&key)?,
            };
            if let Some(value) = value {
                return Ok(Some((Bytes::copy_from_slice(&key), value)));
            }
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = ScanItem;

    fn next(&mut self) -> Option<ScanItem> {
        if self.done {
            return None;
        }
        let item = self.step().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests;
