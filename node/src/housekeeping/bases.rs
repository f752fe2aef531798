//! Local bases: when the log has grown by as much as the data, a snapshot of every shard is written and the log is
//! trimmed behind it.
//!
//! On a thread of its own, a piece at a time: after each piece it waits three times as long as the piece took, and no less
//! than keeps it at `BYTES_PER_S`, so that the log's own syncs get the disk and writers the processor. The order is what
//! makes it safe: snapshot synced, engine flushed (it must not be behind the log's base after a crash), protocol told,
//! base record synced, segments removed, the older snapshot removed. After an unclean stop nothing of this happens until
//! the engine has been looked through: damage in a base could not be healed any more.
//!
//! Retention: the log is not trimmed past a reader (a voter, a replica, one that is being filled) as long as that keeps
//! at most [`crate::config::Retention::reader_bytes`]; a reader beyond it needs a snapshot. Only a leader knows readers.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_core::disk::RealDisk;
use quorate_core::error::Fatal;
use quorate_core::log::{BaseRecord, LogReader};
use quorate_core::snapshot::file::{Stored, Writer};
use quorate_core::snapshot::install::list;
use quorate_shared::ids::{Index, ShardId};
use tokio_util::sync::CancellationToken;

use super::Housekeeping;
use crate::driver::guarded;
use crate::founding::SHARDS;
use crate::store::snapshots;

/// How often it looks how far the log has grown.
const EVERY: Duration = Duration::from_millis(500);
/// The longest pause behind a piece.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// A base is written no faster: bases are rare, and as long as one is written every write is slower. Far more than the
/// log grows by.
const BYTES_PER_S: u64 = 24 << 20;
/// How long a step of the driver may take.
const DRIVER_WAIT: Duration = Duration::from_secs(30);
/// A reader that is being filled is remembered so long after it was last heard.
const HOLD: Duration = Duration::from_secs(60);
/// Points the log may be trimmed to are remembered, newest last.
const POINTS_MAX: usize = 16;

/// Readers that are being filled: where they will go on.
#[derive(Default)]
pub struct Holds(Mutex<BTreeMap<(ShardId, u64), (Index, Instant)>>);

impl Holds {
    /// A reader (named by its node) is being given a snapshot at this index.
    pub fn hold(&self, shard: ShardId, reader: u64, at: Index) {
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holds.insert((shard, reader), (at, Instant::now()));
    }

    fn of(&self, shard: ShardId) -> Vec<Index> {
        let mut holds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holds.retain(|_, (_, since)| since.elapsed() < HOLD);
        holds.iter().filter(|((of, _), _)| *of == shard).map(|(_, (at, _))| *at).collect()
    }
}

/// A base that was written since the node started, and the points its log may begin at.
struct Base {
    stored: Stored,
    points: Vec<BaseRecord>,
}

/// See the module.
pub(super) struct Bases {
    keeping: Arc<Housekeeping>,
    log: Arc<dyn LogReader>,
    stop: CancellationToken,
    bases: BTreeMap<ShardId, Base>,
    /// Index and bytes of each shard's newest base.
    newest: BTreeMap<ShardId, (Index, u64)>,
}

impl Bases {
    pub(super) fn new(keeping: Arc<Housekeeping>, log: Arc<dyn LogReader>, stop: CancellationToken) -> Self {
        Self { keeping, log, stop, bases: BTreeMap::new(), newest: BTreeMap::new() }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        self.find();
        while !self.stop.is_cancelled() {
            std::thread::sleep(EVERY);
            if let Err(fatal) = self.look() {
                if self.stop.is_cancelled() {
                    return;
                }
                tracing::error!(error = %fatal, "the log cannot be trimmed for now");
                std::thread::sleep(EVERY * 10);
            }
        }
    }

    /// What an earlier run of this node left. Nothing is trimmed on its word: reading all of it again, to be sure, would
    /// cost a start more than it saves.
    fn find(&mut self) {
        let dir = snapshots::directory(&self.keeping.directory);
        for shard in SHARDS {
            let last = self.log.bounds(shard).map_or(Index::new(0), |b| b.last);
            // One that was received and is not installed is of no use here.
            let found = list(&RealDisk, &dir, shard).unwrap_or_default().into_iter().find(|(_, h)| h.index() <= last);
            if let Some((name, head)) = found
                && let Ok(meta) = dir.join(name).metadata()
            {
                self.newest.insert(shard, (head.index(), meta.len()));
            }
        }
    }

    fn look(&mut self) -> Result<(), Fatal> {
        let held = |shard| self.log.bounds(shard).map_or(0, |b| self.log.bytes_after(shard, b.base.index));
        let grown = |shard| match self.newest.get(&shard) {
            Some((at, _)) => self.log.bytes_after(shard, *at),
            None => held(shard),
        };
        let data: u64 = self.newest.values().map(|(_, bytes)| bytes).sum();
        let enough = self.keeping.config.retention.base_min_bytes.max(data);
        if SHARDS.iter().any(|shard| grown(*shard) >= enough) && self.keeping.engine.is_trusted() {
            for shard in SHARDS {
                self.write(shard)?;
            }
            let applied: Vec<_> = self.keeping.driver.views().map(|v| (v.shard, v.applied())).collect();
            self.keeping.engine.checkpoint(&applied)?;
        }
        for shard in SHARDS {
            self.trim(shard)?;
        }
        self.log.remove_obsolete().map(drop)
    }

    /// Writes a new base of a shard, unless nothing was applied since the last one.
    fn write(&mut self, shard: ShardId) -> Result<(), Fatal> {
        let doing = || format!("write a base of {shard}");
        let (sender, receiver) = sync_channel(1);
        // Nobody waits any more when the channel is gone.
        self.keeping.driver.snapshot(shard, Box::new(move |source| drop(sender.send(source))));
        let source = receiver.recv_timeout(DRIVER_WAIT).map_err(|e| Fatal::new(doing(), e))?;
        let Some(source) = source else { return Ok(()) };
        let at = source.head().index();
        if self.bases.get(&shard).is_some_and(|base| base.stored.head().index() >= at) {
            return Ok(());
        }
        let began = Instant::now();
        let dir = snapshots::directory(&self.keeping.directory);
        let mut writer = Writer::begin(RealDisk::shared(), &dir, source)?;
        let stored = loop {
            if self.stop.is_cancelled() {
                return Err(Fatal::new(doing(), "the node is stopping"));
            }
            let (piece, before) = (Instant::now(), writer.bytes());
            if let Some(stored) = guarded(|| writer.step())? {
                break stored;
            }
            let share = Duration::from_micros((writer.bytes() - before) * 1_000_000 / BYTES_PER_S);
            std::thread::sleep((piece.elapsed() * 3).max(share).min(PAUSE_MAX));
        };
        let (bytes, rows) = (stored.summary().bytes, stored.summary().rows);
        tracing::info!(%shard, %at, bytes, rows, ms = began.elapsed().as_millis() as u64, "wrote a base");
        self.newest.insert(shard, (at, bytes));
        let mut points = self.bases.remove(&shard).map(|base| base.points).unwrap_or_default();
        points.push(stored.head().base.clone());
        if points.len() > POINTS_MAX {
            points.remove(0);
        }
        self.bases.insert(shard, Base { stored, points });
        Ok(())
    }

    /// The last index every reader has, as far as the log is kept for it.
    fn floor(&self, shard: ShardId) -> Index {
        let cap = self.keeping.config.retention.reader_bytes;
        let me = self.keeping.config.node.to_string();
        let members = self.keeping.driver.status(shard).map(|(_, status)| status.members).unwrap_or_default();
        let behind = members.iter().filter(|m| m.node != me).map(|m| Index::new(m.durable.unwrap_or(0)));
        let readers = behind.chain(self.keeping.holds.of(shard));
        readers.filter(|at| self.log.bytes_after(shard, *at) <= cap).min().unwrap_or(Index::new(u64::MAX))
    }

    /// Trims a shard's log as far as readers and the newest base allow.
    fn trim(&mut self, shard: ShardId) -> Result<(), Fatal> {
        let floor = self.floor(shard);
        let (Some(base), Some(bounds)) = (self.bases.get_mut(&shard), self.log.bounds(shard)) else { return Ok(()) };
        base.points.retain(|point| point.index > bounds.base.index);
        let Some(point) = base.points.iter().rev().find(|point| point.index <= floor).cloned() else { return Ok(()) };
        let (sender, receiver) = sync_channel(1);
        let index = point.index;
        let done = move || {
            // Nobody waits any more when the channel is gone.
            let _ = sender.send(());
        };
        self.keeping.driver.trim(&base.stored, point, Box::new(done));
        match receiver.recv_timeout(DRIVER_WAIT) {
            Ok(()) => {}
            // Refused: the protocol needs its log whole.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(e) => return Err(Fatal::new(format!("trim the log of {shard}"), e)),
        }
        let removed = self.log.remove_obsolete()?;
        snapshots::keep_from(&self.keeping.directory, shard, base.stored.head().index())?;
        tracing::info!(%shard, at = %index, segments = removed, "trimmed the log");
        Ok(())
    }
}
