//! Opening a node's log and engine: what is trusted, what is rebuilt, what is lost.
//!
//! The log is the truth. A replica without a base record, or whose engine has applied more than the log holds, has lost
//! its log. The engine is derived: it is moved aside and rebuilt from the log when it was last written under another boot
//! of the machine without a clean close, when it is behind its own last checkpoint, when it or its hash chain disagrees
//! with the log, when it cannot be opened, or when an error was found in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use quorate_core::catalog::Catalog;
use quorate_core::disk::RealDisk;
use quorate_core::engine::Engine;
use quorate_core::engine::sled::{SledEngine, trust};
use quorate_core::epoch;
use quorate_core::error::Fatal;
use quorate_core::join;
use quorate_core::log::segment::SegmentLog;
use quorate_core::log::{Log, LogBounds, LogReader};
use quorate_core::machine::{Machine, Scrub};
use quorate_core::membership::Host;
use quorate_core::mvcc::Snapshot;
use quorate_core::replica::{Protocol, Timing};
use quorate_core::shard::{self, Shard};
use quorate_core::ship::{chain_at, follow::Follower};
use quorate_shared::ids::{CatalogVersion, Epoch, Index, Nonce, ReplicaId, ShardId};
use quorate_shared::limits::APPEND_BYTES_MAX;
use quorate_shared::status::NodeKind;

use super::snapshots::{self, Installing};
use super::{Directory, StoreError, io_error, replace_file};
use crate::config::Config;
use crate::driver::flusher::Flusher;
use crate::driver::view::ShardView;
use crate::driver::{Clock, OpenShard, Part, guarded, replay};
use crate::founding::{SHARDS, write_bases};
use crate::node::NodeError;
use crate::peers::message::Founding;

pub(super) const CHECKPOINT: &str = "engine.checkpoint";
const DIVERGED: &str = "diverged";
/// A rebuild says how far it is every so many entries.
const PROGRESS_ENTRIES: u64 = 100_000;

/// `engine.checkpoint`: how far each shard was when the engine was last flushed. One that is behind it is damaged.
pub(crate) type Checkpoint = BTreeMap<String, u64>;

pub(crate) fn read_checkpoint(dir: &Path) -> Checkpoint {
    // None, or one that cannot be read, promises nothing.
    fs::read_to_string(dir.join(CHECKPOINT)).ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default()
}

fn write_checkpoint(dir: &Path, applied: &[(ShardId, Index)]) -> Result<(), Fatal> {
    let checkpoint: Checkpoint = applied.iter().map(|(shard, index)| (shard.to_string(), index.get())).collect();
    let doing = "record the engine's checkpoint";
    let text = serde_json::to_string(&checkpoint).map_err(|e| Fatal::new(doing, e))?;
    replace_file(dir, CHECKPOINT, text.as_bytes()).map_err(|e| Fatal::new(doing, e))
}

/// What opening came to.
pub enum Store {
    /// Ready to run.
    Opened(Box<Opened>),
    /// The log is lost, and how.
    Lost(String),
}

/// A node's log and engine with their shards, ready for the driver.
pub struct Opened {
    /// Deadlines are on this clock.
    pub clock: Clock,
    /// The shards.
    pub shards: Vec<OpenShard>,
    /// The log's writer.
    pub log: Box<dyn Log>,
    /// The log's readers.
    pub reader: Arc<dyn LogReader>,
    /// What the node is: a voter (or on its way to be one) in every shard, or a replica.
    pub kind: NodeKind,
    /// The catalog as applied.
    pub catalog: Catalog,
    /// How to close the engine.
    pub closing: Closing,
    /// Moves what is written behind into it.
    pub flusher: Arc<Flusher>,
    /// Why the engine was rebuilt, if it was.
    pub rebuilt: Option<String>,
    /// To be run in the background after an unclean stop.
    pub scrubs: Vec<(ShardId, Scrub)>,
}

/// The engine, for whoever checkpoints and closes it.
pub struct EngineHandle {
    dir: PathBuf,
    boot: String,
    /// Taken when it is closed.
    engine: RwLock<Option<SledEngine>>,
    flusher: Arc<Flusher>,
    distrusted: AtomicBool,
    /// Shards that are still looked through after an unclean stop.
    unchecked: AtomicUsize,
}

impl EngineHandle {
    /// Whether nothing is left to be looked through after an unclean stop, and no error was found. Until then nothing that
    /// is to last may be made of it: no base, since the log behind a base goes, no backup; and its close is no clean one.
    pub fn is_trusted(&self) -> bool {
        self.unchecked.load(Ordering::SeqCst) == 0 && !self.distrusted.load(Ordering::SeqCst)
    }

    /// One of its shards was looked through, and is whole.
    pub fn checked(&self) {
        // More reports than shards would be a mistake here, and harmless.
        let _ = self.unchecked.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    }

    /// Makes what is applied durable and records how far that is.
    pub fn checkpoint(&self, applied: &[(ShardId, Index)]) -> Result<(), Fatal> {
        if let Some(engine) = &*self.engine.read().unwrap_or_else(PoisonError::into_inner) {
            self.flusher.behind().drain_all()?;
            engine.flush()?;
            write_checkpoint(&self.dir, applied)?;
        }
        Ok(())
    }

    /// An error was found in the engine: the next start rebuilds it.
    pub fn distrust(&self, why: &str) {
        self.distrusted.store(true, Ordering::SeqCst);
        if let Err(error) = trust::distrust(&self.dir, &self.boot, why) {
            tracing::error!(%error, "cannot record that the engine is not to be trusted");
        }
    }

    /// What is damaged, once something was read from the engine that is not what was written.
    pub fn damage(&self) -> Option<String> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(SledEngine::damage)
    }

    fn close(&self, applied: &[(ShardId, Index)]) -> Result<(), Fatal> {
        let engine = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(engine), false) = (engine, self.distrusted.load(Ordering::SeqCst)) else { return Ok(()) };
        self.flusher.behind().drain_all()?;
        engine.flush()?;
        write_checkpoint(&self.dir, applied)?;
        match self.is_trusted() {
            true => trust::close(&self.dir, &self.boot, engine),
            // The next start goes on looking.
            false => Ok(()),
        }
    }
}

/// Closes the engine at the end.
pub struct Closing(Arc<EngineHandle>);

impl Closing {
    /// The engine while it runs.
    pub fn handle(&self) -> Arc<EngineHandle> {
        self.0.clone()
    }

    /// Flushes and marks a clean close, unless the engine has failed.
    pub fn close(self, applied: &[(ShardId, Index)], fault: Option<&str>) {
        if let Some(why) = fault {
            self.0.distrust(why);
        }
        if let Err(error) = self.0.close(applied) {
            tracing::error!(%error, "the engine was not closed cleanly; it is checked at the next start");
        }
    }
}

/// Begins the log of a directory that has just become part of a cluster, then records the cluster.
pub fn begin(
    directory: &mut Directory,
    founding: &Founding,
    replica: ReplicaId,
    segment_bytes: u64,
) -> Result<(), NodeError> {
    fresh_log(directory, founding, replica, segment_bytes, "unfounded")?;
    directory.found(founding.clone())?;
    Ok(())
}

/// A replica that lost its log or diverged starts again from nothing, in the same cluster.
pub fn restart(directory: &mut Directory, replica: ReplicaId, segment_bytes: u64) -> Result<(), NodeError> {
    let Some(founding) = directory.founding().cloned() else { return Ok(()) };
    directory.renew()?;
    fresh_log(directory, &founding, replica, segment_bytes, "lost")?;
    remove_file(&directory.path().join(DIVERGED))?;
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}

fn fresh_log(
    directory: &Directory,
    founding: &Founding,
    replica: ReplicaId,
    segment_bytes: u64,
    why: &str,
) -> Result<(), NodeError> {
    directory.set_aside("log", why)?;
    directory.set_aside("engine", why)?;
    for file in ["engine.trust", CHECKPOINT] {
        remove_file(&directory.path().join(file))?;
    }
    // Bases of a history that is not gone on with.
    let old = snapshots::directory(directory.path());
    match fs::remove_dir_all(&old) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error("remove", &old)(e).into()),
        _ => {}
    }
    let (mut log, _, _) = SegmentLog::open_on(RealDisk::shared(), &directory.path().join("log"), segment_bytes)?;
    write_bases(founding, replica, &mut log)?;
    super::sync_directory(directory.path())?;
    Ok(())
}

/// Notes that a replica's history is not the cluster's.
pub fn mark_diverged(dir: &Path) {
    if let Err(error) = replace_file(dir, DIVERGED, b"") {
        tracing::error!(%error, "cannot note that this replica has diverged");
    }
}

/// What the shards are opened with.
struct Plan<'a> {
    dir: &'a Path,
    config: &'a Config,
    protocol: Protocol,
    reader: Arc<dyn LogReader>,
    bounds: BTreeMap<ShardId, LogBounds>,
    installing: Installing,
    me: Host,
}

/// Opens the log and the engine of a founded directory.
pub fn open(dir: &Path, config: &Config, founding: &Founding, nonce: Nonce) -> Result<Store, NodeError> {
    if dir.join(DIVERGED).exists() {
        return Ok(Store::Lost("its history was not the cluster's".into()));
    }
    if !dir.join("log").exists() {
        return Ok(Store::Lost(format!("{} has no log directory", dir.display())));
    }
    let closed = trust::is_closed(dir);
    let (mut log, reader, report) =
        SegmentLog::open_on(RealDisk::shared(), &dir.join("log"), config.retention.segment_bytes)?;
    if let Some(torn) = report.torn
        && closed
    {
        // A clean close is noted after everything is synced: nothing can have been interrupted.
        return Ok(Store::Lost(format!("the log was closed cleanly, but what was written last is damaged: {torn:?}")));
    }
    if let Some(lost) = report.lost {
        let moved = lost.moved_to.display();
        return Ok(Store::Lost(format!("the log is damaged: {} (its files are in {moved})", lost.reason)));
    }
    if let Some(torn) = report.torn {
        tracing::warn!(?torn, "an interrupted write at the end of the log was cut");
    }
    let reader: Arc<dyn LogReader> = reader;
    snapshots::tidy(dir);
    let installing = match snapshots::prepare(dir, &mut log, &*reader)? {
        Ok(installing) => installing,
        Err(why) => return Ok(Store::Lost(why)),
    };
    let mut bounds = BTreeMap::new();
    for shard in SHARDS {
        let Some(known) = reader.bounds(shard) else {
            return Ok(Store::Lost(format!("the log has no base record of {shard}")));
        };
        if known.base.epoch.number < founding.epoch.number {
            return Ok(Store::Lost(format!("the log of {shard} is of another epoch than identity.json")));
        }
        bounds.insert(shard, known);
    }
    let me = Host { node: config.node, nonce };
    let plan = Plan { dir, config, protocol: founding.replicator, reader, bounds, installing, me };
    plan.open(Box::new(log))
}

/// What came of looking into an engine.
enum Look {
    Good(trust::Opened, Arc<Flusher>, Vec<Machine>),
    /// It is not to be believed, and why.
    Bad(String),
    /// It has applied what the log does not have, or needs a snapshot that is not there.
    Ahead(String),
}

impl Plan<'_> {
    fn open(mut self, mut log: Box<dyn Log>) -> Result<Store, NodeError> {
        let boot = trust::boot_id()?;
        let (opened, flusher, mut machines, rebuilt) = match self.look(&boot, &read_checkpoint(self.dir)) {
            Look::Good(opened, flusher, machines) => {
                let rebuilt = opened.rebuilt.clone();
                (opened, flusher, machines, rebuilt)
            }
            Look::Ahead(why) => return Ok(Store::Lost(why)),
            Look::Bad(why) => {
                trust::distrust(self.dir, &boot, &why)?;
                match self.look(&boot, &Checkpoint::new()) {
                    Look::Good(opened, flusher, machines) => (opened, flusher, machines, Some(why)),
                    Look::Ahead(why) => return Ok(Store::Lost(why)),
                    Look::Bad(why) => return Err(NodeError::Failed(why)),
                }
            }
        };
        opened.engine.flush()?;
        self.installing.done(self.dir)?;
        if let Some(why) = &rebuilt {
            tracing::warn!(%why, "EngineRebuilt: the engine is rebuilt from the log");
            self.make_room()?;
        }
        let scrubs = match opened.unclean && rebuilt.is_none() {
            true => machines.iter().zip(SHARDS).map(|(machine, shard)| (shard, machine.scrub())).collect(),
            false => Vec::new(),
        };
        for (machine, shard) in machines.iter_mut().zip(SHARDS) {
            self.catch_up(machine, shard)?;
        }
        let promoted = self.promote(&mut *log, &mut machines)?;
        for (machine, shard) in machines.iter().zip(SHARDS).filter(|_| !promoted) {
            self.settle(&mut *log, machine, shard)?;
        }
        // Which ids it had is in the log from here on.
        super::drop_note(self.dir, super::LEFT)?;
        let kind = match self.bounds.values().all(|bounds| bounds.replica != ReplicaId::NONE) {
            true => NodeKind::Voter,
            false => NodeKind::Replica,
        };
        let clock = Clock::start();
        let catalog = load_catalog(&machines)?;
        let mut shards = Vec::new();
        for (machine, shard) in machines.into_iter().zip(SHARDS) {
            shards.push(self.shard(machine, shard, clock)?);
        }
        let closing = Closing(Arc::new(EngineHandle {
            dir: self.dir.to_owned(),
            boot,
            engine: RwLock::new(Some(opened.engine)),
            flusher: flusher.clone(),
            distrusted: AtomicBool::new(false),
            unchecked: AtomicUsize::new(scrubs.len()),
        }));
        Ok(Store::Opened(Box::new(Opened {
            clock,
            shards,
            log,
            reader: self.reader,
            kind,
            catalog,
            closing,
            flusher,
            rebuilt,
            scrubs,
        })))
    }

    fn look(&self, boot: &str, checkpoint: &Checkpoint) -> Look {
        match self.try_look(boot, checkpoint) {
            Ok(look) => look,
            Err(fatal) => Look::Bad(fatal.to_string()),
        }
    }

    fn try_look(&self, boot: &str, checkpoint: &Checkpoint) -> Result<Look, Fatal> {
        let opened = guarded(|| trust::open_trusted(self.dir, boot, self.config.cache_bytes))?;
        let (flusher, mut machines) = (Arc::<Flusher>::default(), Vec::new());
        for shard in SHARDS {
            let bounds = &self.bounds[&shard];
            // What cannot be read is the engine's fault, and no reason to give up the log.
            guarded(|| snapshots::applied(&opened.engine, shard))?;
            let tree = match guarded(|| {
                snapshots::tree(self.dir, &opened.engine, shard, (&*self.reader, bounds), &self.installing)
            }) {
                Ok(tree) => flusher.behind().tree(tree),
                // A tree that cannot be filled from a snapshot now cannot be filled in a new engine either.
                Err(fatal) => return Ok(Look::Ahead(fatal.to_string())),
            };
            let machine = guarded(|| Machine::open(tree, &bounds.base))?;
            let (index, chain) = (machine.state().index, machine.state().chain);
            if index > bounds.last {
                let last = bounds.last;
                return Ok(Look::Ahead(format!("{shard} has applied entry {index}, but the log ends at {last}")));
            }
            let flushed = checkpoint.get(&shard.to_string()).copied().unwrap_or(0);
            if index.get() < flushed && opened.rebuilt.is_none() && !self.installing.has(shard) {
                return Ok(Look::Bad(format!("{shard} is at entry {index}, behind its checkpoint at {flushed}")));
            }
            if chain_at(&*self.reader, shard, index)?.is_some_and(|ours| ours != chain) {
                return Ok(Look::Bad(format!("{shard} has another hash at entry {index} than the log")));
            }
            machines.push(machine);
        }
        Ok(Look::Good(opened, flusher, machines))
    }

    /// The old engine is kept for whoever wants to look at it, where there is room for two.
    fn make_room(&self) -> Result<(), StoreError> {
        let old = self.dir.join("engine.untrusted");
        if !old.exists() {
            return Ok(());
        }
        let room = super::free_bytes(self.dir).unwrap_or(0);
        if room < super::used_bytes(&old).saturating_add(self.config.disk_reserve_bytes) {
            fs::remove_dir_all(&old).map_err(io_error("remove", &old))?;
        }
        Ok(())
    }

    /// Begins the epoch that a note asks for, in every shard; one that has begun already goes on.
    fn promote(&mut self, log: &mut dyn Log, machines: &mut [Machine]) -> Result<bool, NodeError> {
        let Ok(note) = fs::read_to_string(self.dir.join(super::PROMOTE)) else { return Ok(false) };
        let newest = machines.iter().map(|machine| machine.state().epoch).max_by_key(|epoch| epoch.number);
        let newest = newest.unwrap_or_default();
        let epoch = match note.trim().parse() {
            // One shard has begun it before this start was interrupted.
            Ok(Epoch { number: 0, id }) if newest.id == id => newest,
            Ok(Epoch { number: 0, id }) => Epoch { number: newest.number + 1, id },
            Ok(epoch) => epoch,
            Err(_) => return Err(NodeError::Failed(format!("the note {} cannot be read: {note}", super::PROMOTE))),
        };
        for (machine, shard) in machines.iter_mut().zip(SHARDS) {
            let applied = machine.state().applied();
            if applied.epoch == epoch {
                continue;
            }
            let begun = epoch::begin(log, &*self.reader, (shard, self.me), &applied, epoch, Clock::wall())?;
            let (number, replica, after) = (epoch.number, begun.replica, begun.start.index);
            tracing::warn!(%shard, epoch = number, %replica, %after, adopted = begun.adopted, "a new epoch begins here");
            if let Some(bounds) = self.reader.bounds(shard) {
                self.bounds.insert(shard, bounds);
            }
            self.catch_up(machine, shard)?;
        }
        super::drop_note(self.dir, super::PROMOTE)?;
        Ok(true)
    }

    /// Makes of the replica what the membership, as far as it is applied, says ([`join::settle`]). One that the others have
    /// struck off, though it has not seen that entry, goes on as a log-shipped one with what is committed.
    fn settle(&mut self, log: &mut dyn Log, machine: &Machine, shard: ShardId) -> Result<(), Fatal> {
        let Some(bounds) = self.bounds.get(&shard) else { return Ok(()) };
        let (applied, own) = (machine.state().applied(), bounds.replica);
        let left = super::left(self.dir, shard).contains(&own);
        join::settle(log, &*self.reader, shard, self.me, &applied, left)?;
        if let Some(bounds) = self.reader.bounds(shard) {
            if bounds.replica != own {
                let (now, at) = (bounds.replica, applied.index);
                tracing::info!(%shard, before = %own, %now, %at, "the replica has another part from here on");
            }
            self.bounds.insert(shard, bounds);
        }
        Ok(())
    }

    /// Applies what the log knows to be committed.
    fn catch_up(&self, machine: &mut Machine, shard: ShardId) -> Result<(), Fatal> {
        let bounds = &self.bounds[&shard];
        let end = match bounds.replica {
            ReplicaId::NONE => bounds.last,
            _ => bounds.committed(),
        };
        let mut told = machine.state().index.get();
        while machine.state().index < end {
            let next = machine.state().index.next();
            let entries = self.reader.entries(shard, next, end.next(), APPEND_BYTES_MAX)?;
            if entries.is_empty() {
                return Err(Fatal::new(format!("replay {shard}"), format!("the log has no entry {next}")));
            }
            replay(machine, &entries)?;
            if machine.state().index.get() >= told + PROGRESS_ENTRIES {
                told = machine.state().index.get();
                tracing::info!(%shard, at = told, of = %end, "replays the log");
            }
        }
        Ok(())
    }

    fn shard(&self, machine: Machine, shard: ShardId, clock: Clock) -> Result<OpenShard, NodeError> {
        let applied = machine.state().applied();
        let tree = machine.tree().clone();
        let bounds = &self.bounds[&shard];
        let replica = bounds.replica;
        let view = Arc::new(ShardView::new(shard, (replica, join::last_id(bounds)), tree.clone(), &applied));
        let part = match replica {
            ReplicaId::NONE => {
                let follower = Follower::new(shard, applied.epoch, self.reader.clone(), &applied)?;
                Part::Follower(Box::new(follower))
            }
            _ => {
                let random = super::random_bytes()?;
                let seed = random.iter().fold(0u64, |seed, byte| (seed << 8) ^ (seed >> 56) ^ u64::from(*byte));
                let config = shard::Config {
                    shard,
                    replica,
                    node: self.config.node,
                    protocol: self.protocol,
                    seed,
                    timing: timing(self.config),
                };
                Part::Voter(Box::new(Shard::new(config, self.reader.clone(), tree, applied, clock.now())?))
            }
        };
        Ok(OpenShard { view, machine, part })
    }
}

fn load_catalog(machines: &[Machine]) -> Result<Catalog, Fatal> {
    let Some(meta) = machines.first() else { return Ok(Catalog::default()) };
    let state = meta.state();
    let snapshot = Snapshot::new(meta.tree().clone(), state.timestamp);
    guarded(|| Catalog::load(&snapshot, CatalogVersion::new(state.index.get())))
}

/// The protocol's timing from what is configured.
fn timing(config: &Config) -> Timing {
    Timing {
        tick: (config.heartbeat_ms / 2).clamp(1, 25),
        heartbeat: config.heartbeat_ms,
        election_min: config.election_ms,
        election_max: config.election_ms * 2,
        report_fresh: (config.heartbeat_ms * 5).max(250),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_looked_through_is_not_closed_cleanly() {
        let dir = tempfile::tempdir().unwrap();
        for unchecked in [1, 0] {
            let opened = trust::open_trusted(dir.path(), "boot", 8 << 20).unwrap();
            let handle = EngineHandle {
                dir: dir.path().to_owned(),
                boot: "boot".into(),
                engine: RwLock::new(Some(opened.engine)),
                flusher: Arc::default(),
                distrusted: AtomicBool::new(false),
                unchecked: AtomicUsize::new(1),
            };
            assert!(!handle.is_trusted());
            if unchecked == 0 {
                handle.checked();
            }
            handle.close(&[]).unwrap();
            assert_eq!(trust::is_closed(dir.path()), unchecked == 0);
        }
    }
}
