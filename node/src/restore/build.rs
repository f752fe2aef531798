//! Replaying a backup's shards into a scratch engine, comparing digests on the way; and the data directory made of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_core::catalog::{Catalog, Descriptor};
use quorate_core::disk::RealDisk;
use quorate_core::engine::sled::SledEngine;
use quorate_core::engine::{Engine, Tree};
use quorate_core::entry::{Body, Entry, Transaction};
use quorate_core::error::Fatal;
use quorate_core::keys::Key;
use quorate_core::log::segment::SegmentLog;
use quorate_core::log::{BaseRecord, HardState, Log, LogEntry, LogRecord, Membership};
use quorate_core::machine::Machine;
use quorate_core::mvcc::Snapshot;
use quorate_core::replica::Protocol;
use quorate_core::snapshot;
use quorate_shared::archive::ArchiveMark;
use quorate_shared::ids::{CatalogVersion, Hash, NodeId, Nonce, ReplicaId, ShardId, TableId};

use super::source::{Backup, Item, Scan};
use super::{NewIds, RestoreError, Scans, ShardSummary};
use crate::founding::SHARDS;
use crate::peers::message::{Founding, Member};
use crate::store::{StoreError, io_error, random_bytes, sync_directory};

/// The scratch engine's cache.
const CACHE_BYTES: u64 = 256 << 20;
/// Bytes of entries applied together.
const APPLY_BYTES: usize = 1 << 20;
/// Rows looked at in one step of recomputing the digests.
const SCRUB_ROWS: usize = 100_000;
/// The new cluster's first replica.
const REPLICA: ReplicaId = ReplicaId::new(1);

/// A directory that goes when this does.
struct Scratch(PathBuf);

impl Scratch {
    fn make(path: PathBuf) -> Result<Self, RestoreError> {
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left over is of no use and does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A shard replayed up to its cut.
struct Replayed {
    machine: Machine,
    compared: u64,
    compared_at: u64,
}

/// The new cluster's record.
pub(super) fn found(scans: &Scans, node: NodeId) -> Result<Founding, RestoreError> {
    let old = scans.values().map(|scan| scan.epoch).max().unwrap_or(0);
    let NewIds { cluster, epoch } = NewIds::draw(old)?;
    let member = Member { node, nonce: Nonce(random_bytes()?), replica: REPLICA };
    Ok(Founding { cluster, epoch, members: vec![member], replicator: Protocol::Raft })
}

/// Makes the data directory.
pub(super) fn directory(
    backup: &Backup,
    scans: &Scans,
    into: &Path,
    node: NodeId,
    founding: &Founding,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<ShardSummary>, RestoreError> {
    let parent = into.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    let name = into.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let made = Scratch::make(parent.join(format!(".{name}.restoring-{}", std::process::id())))?;
    let scratch = Scratch::make(made.0.join("scratch"))?;
    let engine = SledEngine::open(&scratch.0, CACHE_BYTES)?;
    let mut replayed = replay_all(backup, scans, &engine, tell)?;
    check_schemas(&replayed)?;
    let (mut log, _, _) = SegmentLog::open(&made.0.join("log"))?;
    let membership = Membership::of_voters([(REPLICA, node)]);
    let mut summaries = Vec::new();
    for (shard, Replayed { machine, compared, compared_at }) in &mut replayed {
        summaries.push(summary(*shard, &scans[shard], machine, *compared, *compared_at));
        if *shard == ShardId::META {
            leave_the_old_cluster(machine)?;
        }
        machine.refound(membership.clone(), founding.epoch)?;
        let base = machine.state().base(*shard);
        if base.index.get() > 0 {
            tell(&format!("writes {shard} as of entry {}", base.index));
            let dir = made.0.join("snapshots");
            snapshot::file::Writer::begin(RealDisk::shared(), &dir, machine.snapshot())?.finish()?;
        }
        let hard = HardState { term: base.term, vote: ReplicaId::default(), commit: base.index };
        log.append(REPLICA, *shard, &[LogRecord::Base(base), LogRecord::Hard(hard)])?;
    }
    log.sync()?;
    drop((replayed, engine, log));
    drop(scratch);
    crate::store::write_founded(&made.0, node, founding)?;
    sync_directory(&made.0)?;
    // Onto an empty directory, or nothing.
    fs::rename(&made.0, into).map_err(io_error("replace", into))?;
    sync_directory(parent)?;
    Ok(summaries)
}

/// Replays everything, compares digests, recomputes them from the rows.
pub(super) fn rehearse(
    backup: &Backup,
    scans: &Scans,
    tell: &mut dyn FnMut(&str),
) -> Result<Vec<ShardSummary>, RestoreError> {
    let random = random_bytes()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let scratch = Scratch::make(std::env::temp_dir().join(format!("quorate-verify-{random}")))?;
    let engine = SledEngine::open(&scratch.0, CACHE_BYTES)?;
    let replayed = replay_all(backup, scans, &engine, tell)?;
    check_schemas(&replayed)?;
    let mut summaries = Vec::new();
    for (shard, Replayed { machine, compared, compared_at }) in &replayed {
        tell(&format!("recomputes the digests of {shard} from its rows"));
        let mut scrub = machine.scrub();
        let wrong = loop {
            if let Some(wrong) = scrub.step(SCRUB_ROWS)? {
                break wrong;
            }
        };
        if !wrong.is_empty() {
            let names: Vec<String> = wrong.iter().map(|storage| table_name(machine, *storage)).collect();
            let message = format!("the rows of {} in {shard} are not what was applied", names.join(", "));
            return Err(RestoreError::Damaged(message));
        }
        summaries.push(summary(*shard, &scans[shard], machine, *compared, *compared_at));
    }
    Ok(summaries)
}

fn summary(shard: ShardId, scan: &Scan, machine: &Machine, compared: u64, compared_at: u64) -> ShardSummary {
    ShardSummary {
        shard: shard.to_string(),
        after: scan.after.get(),
        archived: scan.last.get(),
        index: scan.cut.get(),
        compared,
        compared_at,
        tables: machine.state().tables.len() as u64,
    }
}

fn replay_all(
    backup: &Backup,
    scans: &Scans,
    engine: &SledEngine,
    tell: &mut dyn FnMut(&str),
) -> Result<BTreeMap<ShardId, Replayed>, RestoreError> {
    let mut all = BTreeMap::new();
    for shard in SHARDS {
        let scan = &scans[&shard];
        tell(&format!("replays {shard} up to entry {} of {}", scan.cut, scan.last));
        all.insert(shard, replay(backup, shard, scan, engine.tree(&shard.to_string())?)?);
    }
    Ok(all)
}

fn replay(backup: &Backup, shard: ShardId, scan: &Scan, tree: Arc<dyn Tree>) -> Result<Replayed, RestoreError> {
    let snapshot = backup.snapshot(shard)?;
    let base: BaseRecord = match &snapshot {
        None => backup.base(shard)?,
        Some(path) => {
            let installed = snapshot::install::install(&RealDisk, path, &*tree);
            installed.map_err(|fatal| RestoreError::Damaged(fatal.to_string()))?.head.base
        }
    };
    let machine = Machine::open(tree, &base)?;
    // A snapshot has the digests of the state it was taken of; installing it has compared them with its rows.
    let compared = u64::from(snapshot.is_some());
    let mut replayed = Replayed { machine, compared, compared_at: compared * base.index.get() };
    if let Some(mark) = scan.marks.get(&base.index) {
        replayed.compare(shard, mark)?;
    }
    let (mut held, mut bytes) = (Vec::new(), 0);
    backup.pass(shard, &mut |item| {
        let Item::Entry(entry) = item else { return Ok(()) };
        if entry.index > scan.cut {
            return Ok(());
        }
        let index = entry.index;
        bytes += entry.bytes.len() + 64;
        held.push(entry);
        let mark = scan.marks.get(&index);
        if bytes >= APPLY_BYTES || mark.is_some() || index == scan.cut {
            bytes = 0;
            replayed.apply(&std::mem::take(&mut held))?;
        }
        mark.map_or(Ok(()), |mark| replayed.compare(shard, mark))
    })?;
    Ok(replayed)
}

impl Replayed {
    fn apply(&mut self, entries: &[LogEntry]) -> Result<(), RestoreError> {
        crate::driver::guarded(|| self.machine.apply(entries))?;
        Ok(())
    }

    /// The state here must be the one that was archived.
    fn compare(&mut self, shard: ShardId, mark: &ArchiveMark) -> Result<(), RestoreError> {
        let ours = self.machine.state().digests();
        let theirs: BTreeMap<TableId, Hash> = mark.digests.iter().map(|d| (d.storage, d.digest)).collect();
        if ours.chain != mark.chain {
            let message = format!("{shard} has another hash at entry {} than the node that was backed up", mark.index);
            return Err(RestoreError::Damaged(message));
        }
        let all = ours.digests.keys().chain(theirs.keys());
        if let Some(storage) = all.copied().find(|storage| ours.digests.get(storage) != theirs.get(storage)) {
            let (table, index) = (table_name(&self.machine, storage), mark.index);
            let message = format!("{table} of {shard} is not what the node that was backed up had at entry {index}");
            return Err(RestoreError::Damaged(message));
        }
        self.compared += 1;
        self.compared_at = mark.index.get();
        Ok(())
    }
}

fn table_name(machine: &Machine, storage: TableId) -> String {
    let table = machine.state().tables.values().find(|table| table.storage == storage);
    match table {
        Some(table) => format!("table \"{}\"", table.name),
        None if storage == TableId::new(0) => "the catalog".to_owned(),
        None => format!("storage {storage}"),
    }
}

/// A table must not be newer in a data shard than the catalog knows, unless a job is about to tell it.
fn check_schemas(replayed: &BTreeMap<ShardId, Replayed>) -> Result<(), RestoreError> {
    let Some(meta) = replayed.get(&ShardId::META) else { return Ok(()) };
    let catalog = catalog(&meta.machine)?;
    for (shard, data) in replayed.iter().filter(|(shard, _)| **shard != ShardId::META) {
        for table in data.machine.state().tables.values() {
            let known = catalog.table_by_id(table.id).is_some_and(|desc| desc.def.version >= table.version);
            if !known && !catalog.jobs.values().any(|job| job.table == table.id) {
                let message = format!(
                    "the archive of s0 does not reach as far as that of {shard}: table \"{}\" was changed behind its end; \
                     restore to an earlier time",
                    table.name
                );
                return Err(RestoreError::Refused(message));
            }
        }
    }
    Ok(())
}

fn catalog(machine: &Machine) -> Result<Catalog, Fatal> {
    let state = machine.state();
    let snapshot = Snapshot::new(machine.tree().clone(), state.timestamp);
    Catalog::load(&snapshot, CatalogVersion::new(state.index.get()))
}

/// The old cluster's nodes and archives are not the new one's.
fn leave_the_old_cluster(machine: &mut Machine) -> Result<(), RestoreError> {
    let catalog = catalog(machine)?;
    let nodes = catalog.nodes.values().map(|node| Key::Catalog(node.key()).encode());
    let archives = catalog.archives.values().map(|archive| Key::Catalog(archive.key()).encode());
    let writes: Vec<_> = nodes.chain(archives).map(|key| (key, None)).collect();
    if writes.is_empty() {
        return Ok(());
    }
    let state = machine.state();
    let (index, term) = (state.index.next(), state.term);
    let body = Body::Write(vec![Transaction { writes, ..Transaction::default() }]);
    let entry = Entry { index, previous: state.chain, timestamp: state.timestamp.next(), body };
    machine.apply(&[entry.logged(term)])?;
    Ok(())
}

impl From<std::io::Error> for RestoreError {
    fn from(cause: std::io::Error) -> Self {
        RestoreError::Store(StoreError::Io { doing: "write", path: "the data directory".into(), cause })
    }
}
