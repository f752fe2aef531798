//! Making a replica from a snapshot: its rows into an empty tree, its base into the log.
//!
//! The caller keeps a durable [`Mark`] from before the old tree goes until everything is there; a start that finds one
//! drops the tree and does it all again. The applied record is the last key written, so a tree that was filled halfway
//! does not open even where a mark was lost.

use std::io;
use std::path::Path;

use bytes::Bytes;
use quorate_shared::ids::{ReplicaId, ShardId};
use quorate_shared::limits::APPLY_BATCH_BYTES_MAX;

use super::file::Pieces;
use super::{Head, Summary, parse_file_name};
use crate::disk::Disk;
use crate::engine::{Batch, KeyRange, Tree};
use crate::error::Fatal;
use crate::keys::Key;
use crate::log::{BaseRecord, HardState, Log, LogReader, LogRecord};
use crate::ship::chain_at;

/// Fills an empty tree from a snapshot, in batches of bounded size. What is wrong with the file is found before the tree
/// can be opened by a machine.
pub fn install(disk: &dyn Disk, path: &Path, tree: &dyn Tree) -> Result<Summary, Fatal> {
    let all = KeyRange { start: Bytes::new(), end: None };
    if tree.scan(&all, false).next().transpose()?.is_some() {
        return Err(Fatal::new(format!("install {}", path.display()), "the tree it is to go into is not empty"));
    }
    let mut pieces = Pieces::open(disk, path)?;
    let applied = Key::Applied.encode();
    let mut last = None;
    let (mut batch, mut bytes) = (Batch::default(), 0);
    while pieces.next(&mut |key, value| {
        if key == applied {
            last = Some(value);
            return Ok(());
        }
        bytes += key.len() + value.len() + 16;
        batch.writes.insert(key, Some(value));
        if bytes >= APPLY_BATCH_BYTES_MAX {
            bytes = 0;
            return tree.write(std::mem::take(&mut batch));
        }
        Ok(())
    })? {}
    let summary = pieces.summary()?;
    // There is one: the summary was checked against it.
    batch.writes.insert(applied, last);
    tree.write(batch)?;
    Ok(summary)
}

/// Lets a replica's log begin at a snapshot, unless it does already or begins later. Entries behind that point stay if
/// the log had the snapshot's last entry; otherwise they are of another history than what was committed, and go.
pub fn rebase(log: &mut dyn Log, reader: &dyn LogReader, replica: ReplicaId, base: &BaseRecord) -> Result<(), Fatal> {
    let shard = base.shard;
    let mut records = Vec::new();
    match reader.bounds(shard) {
        Some(bounds) if bounds.base.index >= base.index => return Ok(()),
        Some(bounds) => {
            let agrees = reader.term(shard, base.index)? == Some(base.term);
            if !agrees && bounds.last > bounds.base.index {
                records.push(LogRecord::Truncate(bounds.base.index.next()));
            }
            records.push(LogRecord::Base(base.clone()));
            let hard = bounds.hard;
            if base.term > hard.term {
                // Whoever has an entry of a term has seen that term.
                let vote = ReplicaId::new(0);
                records.push(LogRecord::Hard(HardState { term: base.term, vote, commit: base.index }));
            }
        }
        None => records.push(LogRecord::Base(base.clone())),
    }
    log.append(replica, shard, &records)?;
    log.sync()
}

/// `installing-s1`: this snapshot is being installed; what is in the tree is not to be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The shard.
    pub shard: ShardId,
    /// The snapshot's file name, in the same directory.
    pub file: String,
}

const FIRST_LINE: &str = "quorate installing 1";

fn mark_name(shard: ShardId) -> String {
    format!("installing-{shard}")
}

impl Mark {
    /// Makes it durable. Its snapshot is.
    pub fn write(disk: &dyn Disk, dir: &Path, shard: ShardId, file: &str) -> Result<(), Fatal> {
        let path = dir.join(mark_name(shard));
        let unfinished = path.with_extension("new");
        let body = format!("{FIRST_LINE}\nfile {file}\n");
        let text = format!("{body}check {:08x}\n", crc32c::crc32c(body.as_bytes()));
        let write = || -> io::Result<()> {
            let made = disk.create(&unfinished)?;
            made.write_at(text.as_bytes(), 0)?;
            made.sync_data()?;
            disk.rename(&unfinished, &path)?;
            disk.sync_dir(dir)
        };
        write().map_err(|e| Fatal::new(format!("write {}", path.display()), e))
    }

    /// The mark of a shard, if there is one.
    pub fn read(disk: &dyn Disk, dir: &Path, shard: ShardId) -> Result<Option<Self>, Fatal> {
        let path = dir.join(mark_name(shard));
        let failed = |e: io::Error| Fatal::new(format!("read {}", path.display()), e);
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let bytes = if file.len().map_err(failed)? > 4096 { Vec::new() } else { file.read_all().map_err(failed)? };
        let parse = || -> Option<Self> {
            let text = std::str::from_utf8(&bytes).ok()?;
            let (body, check) = text.strip_suffix('\n')?.rsplit_once("check ")?;
            let name = body.strip_prefix(FIRST_LINE)?.strip_prefix("\nfile ")?.strip_suffix('\n')?;
            let right = check == format!("{:08x}", crc32c::crc32c(body.as_bytes()));
            (right && parse_file_name(name)?.0 == shard).then(|| Self { shard, file: name.to_owned() })
        };
        match parse() {
            Some(mark) => Ok(Some(mark)),
            None => Err(Fatal::new(format!("read {}", path.display()), "it is damaged")),
        }
    }

    /// Everything is installed.
    pub fn clear(disk: &dyn Disk, dir: &Path, shard: ShardId) -> Result<(), Fatal> {
        let path = dir.join(mark_name(shard));
        let clear = || match disk.remove(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| disk.sync_dir(dir)),
        };
        clear().map_err(|e| Fatal::new(format!("remove {}", path.display()), e))
    }
}

/// The newest snapshot in a directory that a log goes on from: at or behind its base, and of its history. One that was
/// written in a history that has been given up since may lie there too.
pub fn fitting(disk: &dyn Disk, dir: &Path, log: &dyn LogReader, base: &BaseRecord) -> Result<Option<String>, Fatal> {
    for (name, head) in list(disk, dir, base.shard)? {
        if head.index() >= base.index && chain_at(log, base.shard, head.index())? == Some(head.base.chain) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Snapshots of a shard in a directory, newest first: file names and heads that can be read.
pub fn list(disk: &dyn Disk, dir: &Path, shard: ShardId) -> Result<Vec<(String, Head)>, Fatal> {
    let names = match disk.list(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(|e| Fatal::new(format!("list {}", dir.display()), e))?,
    };
    let mut found = Vec::new();
    for name in names.iter().rev().filter_map(|name| name.to_str()) {
        if parse_file_name(name).is_some_and(|(of, _)| of == shard)
            && let Ok(head) = super::file::read_head(disk, &dir.join(name))
            && head.shard() == shard
        {
            found.push((name.to_owned(), head));
        }
    }
    Ok(found)
}
