//! A node's log: the real one on a simulated disk, beside a model of what must be in it.
//!
//! The model has what was written and, of that, what was durable when a sync had finished, of every shard that the log has.
//! When the log is opened again it must have everything durable, and beyond it some beginning of the rest, in the order in
//! which the shards wrote it, nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};

use super::Rng;
use super::disk::{Handle, SimDisk};
use super::place::ByShard;
use crate::disk::Disk;
use crate::error::Fatal;
use crate::log::segment::{SegmentLog, SegmentReader};
use crate::log::{BaseRecord, HardState, Log, LogEntry, LogReader, LogRecord, PaxosState, Payload};
use quorate_shared::limits::APPEND_BYTES_MAX;

const DIR: &str = "log";

/// What a replica's log has, entry by entry.
#[derive(Clone, Default)]
pub struct Content {
    pub replica: ReplicaId,
    pub base: Option<BaseRecord>,
    pub entries: BTreeMap<Index, Term>,
    pub hard: HardState,
    pub paxos: Option<PaxosState>,
}

/// One step of a record.
#[derive(Clone)]
enum Step {
    Entry(Index, Term),
    Hard(HardState),
    Paxos(PaxosState),
    Truncate(Index),
    Base(ReplicaId, Box<BaseRecord>),
    Become(ReplicaId, HardState),
}

impl Content {
    fn add(&mut self, step: &Step) {
        match step {
            Step::Entry(index, term) => drop(self.entries.insert(*index, *term)),
            Step::Hard(hard) => self.hard = *hard,
            Step::Paxos(paxos) => self.paxos = Some(*paxos),
            Step::Become(replica, hard) => (self.replica, self.hard, self.paxos) = (*replica, *hard, None),
            Step::Truncate(from) => drop(self.entries.split_off(from)),
            Step::Base(replica, base) => {
                self.replica = *replica;
                let rest = self.entries.split_off(&base.index.next());
                let known = self.base.as_ref().is_some_and(|b| b.index <= base.index);
                self.entries = if known { rest } else { BTreeMap::new() };
                self.base = Some((**base).clone());
            }
        }
    }

    pub fn last(&self) -> Index {
        let base = self.base.as_ref().map_or(Index::new(0), |b| b.index);
        self.entries.last_key_value().map_or(base, |(index, _)| *index)
    }

    fn is(&self, reader: &SegmentReader, shard: ShardId) -> bool {
        let Some(bounds) = reader.bounds(shard) else { return self.base.is_none() };
        let last_term = self.entries.last_key_value().map(|(_, term)| *term);
        self.base.as_ref() == Some(&bounds.base)
            && self.replica == bounds.replica
            && self.last() == bounds.last
            && last_term.is_none_or(|term| term == bounds.last_term)
            && self.hard == bounds.hard
            && self.paxos == bounds.paxos
    }

    /// The log is this, but for its end.
    fn begins_with(&self, reader: &SegmentReader, shard: ShardId) -> bool {
        let Some(bounds) = reader.bounds(shard) else { return true };
        let same = self.entries.get(&bounds.last) == Some(&bounds.last_term) || bounds.last == bounds.base.index;
        same && bounds.last <= self.last()
    }
}

fn steps(replica: ReplicaId, record: &LogRecord) -> Vec<Step> {
    match record {
        LogRecord::Entries(entries) => entries.iter().map(|e| Step::Entry(e.index, e.term)).collect(),
        LogRecord::Hard(hard) => vec![Step::Hard(*hard)],
        LogRecord::Paxos(paxos) => vec![Step::Paxos(*paxos)],
        LogRecord::Become { replica, hard } => vec![Step::Become(*replica, *hard)],
        LogRecord::Truncate(from) => vec![Step::Truncate(*from)],
        LogRecord::Base(base) => vec![Step::Base(replica, Box::new(base.clone()))],
    }
}

/// What opening a log came to.
pub enum Opened {
    Whole,
    /// It was damaged, says the log.
    Lost(String),
    /// It is not what was written.
    Wrong(String),
}

/// See the module.
pub struct Store {
    pub disk: Arc<SimDisk>,
    shards: u64,
    replicas: ByShard<ReplicaId>,
    segment_bytes: u64,
    log: Option<SegmentLog>,
    reader: Option<Arc<SegmentReader>>,
    pub durable: ByShard<Content>,
    unsynced: VecDeque<(ShardId, Step)>,
    /// Of the unsynced steps, how many the running sync covers, and where the disk was when it was given out.
    syncing: (usize, usize),
    /// A bit was flipped since it was opened.
    pub flipped: bool,
    /// Power goes before anything is synced.
    pub interrupted: bool,
}

impl Store {
    /// An empty disk.
    pub fn new(shards: u64, segment_bytes: u64) -> Self {
        Self {
            disk: Arc::default(),
            shards,
            replicas: ByShard::new(shards, |_| ReplicaId::NONE),
            segment_bytes,
            log: None,
            reader: None,
            durable: ByShard::new(shards, |_| Content::default()),
            unsynced: VecDeque::new(),
            syncing: (0, 0),
            flipped: false,
            interrupted: false,
        }
    }

    /// Begins a shard's empty log.
    pub fn found(&mut self, replica: ReplicaId, base: &BaseRecord) -> Result<(), Fatal> {
        self.replicas[base.shard] = replica;
        self.append(base.shard, &[LogRecord::Base(base.clone())])?;
        self.begin_sync()?;
        self.finish();
        Ok(())
    }

    /// The changes of the membership behind an index.
    pub fn changes_after(&self, shard: ShardId, index: Index) -> Result<Vec<Index>, Fatal> {
        let reader = self.reader();
        let (mut at, mut out) = (index.next(), Vec::new());
        let last = reader.bounds(shard).map_or(index, |b| b.last);
        while at <= last {
            let entries = reader.entries(shard, at, last.next(), APPEND_BYTES_MAX)?;
            let Some(end) = entries.last() else { return Ok(out) };
            at = end.index.next();
            out.extend(entries.iter().filter(|e| e.payload == Payload::Membership).map(|e| e.index));
        }
        Ok(out)
    }

    pub fn open(&mut self) -> Result<Opened, Fatal> {
        let disk = Arc::new(Handle(Arc::clone(&self.disk))) as Arc<dyn Disk>;
        let (log, reader, report) = SegmentLog::open_on(disk, Path::new(DIR), self.segment_bytes)?;
        self.disk.finish(usize::MAX);
        let opened = match report.lost {
            Some(lost) => {
                let flipped = self.flipped;
                self.forget();
                if flipped { Opened::Lost(lost.reason) } else { Opened::Wrong(format!("damaged: {}", lost.reason)) }
            }
            None => self.compare(&reader),
        };
        self.replicas = ByShard::new(self.shards, |shard| reader.bounds(shard).map_or(ReplicaId::NONE, |b| b.replica));
        (self.log, self.reader) = (Some(log), Some(reader));
        Ok(opened)
    }

    /// Finds what of the unsynced is there.
    fn compare(&mut self, reader: &SegmentReader) -> Opened {
        let mut content = std::mem::take(&mut self.durable);
        // Which shards are as the log has them; only that of the step can have become so, or not so.
        let mut fits = ByShard::new(self.shards, |shard| content[shard].is(reader, shard));
        let whole = |fits: &ByShard<bool>| fits.values().all(|fits| *fits);
        // The longest that fits: a hard state may be what it was before.
        let mut found = whole(&fits).then(|| content.clone());
        for (shard, step) in std::mem::take(&mut self.unsynced) {
            content[shard].add(&step);
            fits[shard] = content[shard].is(reader, shard);
            if whole(&fits) {
                found = Some(content.clone());
            }
        }
        self.syncing = (0, 0);
        match found {
            Some(found) => {
                self.durable = found;
                Opened::Whole
            }
            None if self.flipped && (0..self.shards).map(ShardId::new).all(|s| content[s].begins_with(reader, s)) => {
                // It went with the whole write that it was in, the last one: nobody can tell that from a torn write.
                self.forget();
                Opened::Lost("what was written last is damaged".into())
            }
            None => {
                let bounds = (0..self.shards).filter_map(|shard| reader.bounds(ShardId::new(shard)));
                let has: Vec<(Index, HardState)> = bounds.map(|b| (b.last, b.hard)).collect();
                self.durable = content;
                Opened::Wrong(format!("its log came back as something never written: up to {has:?}"))
            }
        }
    }

    fn forget(&mut self) {
        self.durable = ByShard::new(self.shards, |_| Content::default());
        self.unsynced.clear();
        self.syncing = (0, 0);
        self.flipped = false;
    }

    pub fn reader(&self) -> Arc<dyn LogReader> {
        match &self.reader {
            Some(reader) => Arc::clone(reader) as Arc<dyn LogReader>,
            None => Arc::new(NoLog),
        }
    }

    /// Writes a shard's records.
    pub fn append(&mut self, shard: ShardId, records: &[LogRecord]) -> Result<(), Fatal> {
        let Some(log) = &mut self.log else { return Ok(()) };
        for record in records {
            let replica = self.replicas[shard];
            log.append(replica, shard, std::slice::from_ref(record))?;
            self.unsynced.extend(steps(replica, record).into_iter().map(|step| (shard, step)));
            if let LogRecord::Become { replica, .. } = record {
                self.replicas[shard] = *replica;
            }
        }
        Ok(())
    }

    /// Begins to sync what is written.
    pub fn begin_sync(&mut self) -> Result<(), Fatal> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.sync()?;
        self.syncing = (self.unsynced.len(), self.disk.position());
        Ok(())
    }

    /// The sync is over.
    pub fn finish(&mut self) {
        let (steps, position) = std::mem::take(&mut self.syncing);
        self.disk.finish(position);
        for (shard, step) in self.unsynced.drain(..steps) {
            self.durable[shard].add(&step);
        }
    }

    /// Nothing is on its way to the disk.
    pub fn is_idle(&self) -> bool {
        self.unsynced.is_empty() && self.log.is_some()
    }

    /// Lets a shard's log begin after a base, durably.
    pub fn trim(&mut self, base: &BaseRecord) -> Result<(), Fatal> {
        let (Some(log), Some(reader)) = (&mut self.log, &self.reader) else { return Ok(()) };
        let replica = self.replicas[base.shard];
        log.trim(replica, base)?;
        reader.remove_obsolete()?;
        self.disk.finish(usize::MAX);
        self.durable[base.shard].add(&Step::Base(replica, Box::new(base.clone())));
        Ok(())
    }

    fn close(&mut self) {
        (self.log, self.reader) = (None, None);
    }

    pub fn kill(&mut self, rng: &mut Rng) {
        self.close();
        self.disk.kill(rng);
    }

    pub fn power_cut(&mut self, rng: &mut Rng) {
        self.close();
        self.disk.power_cut(rng);
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&mut self) {
        self.close();
        self.disk.wipe();
        self.forget();
    }
}

/// For what is done to a log while nothing of it runs: at once, and durably.
impl Log for Store {
    fn append(&mut self, _: ReplicaId, shard: ShardId, records: &[LogRecord]) -> Result<(), Fatal> {
        Store::append(self, shard, records)
    }

    fn sync(&mut self) -> Result<(), Fatal> {
        self.begin_sync()?;
        if !self.interrupted {
            self.finish();
            self.disk.finish(usize::MAX);
        }
        Ok(())
    }
}

/// Where there is no log there is nothing to read.
struct NoLog;

impl LogReader for NoLog {
    fn bounds(&self, _: ShardId) -> Option<crate::log::LogBounds> {
        None
    }

    fn entries(&self, _: ShardId, _: Index, _: Index, _: usize) -> Result<Vec<LogEntry>, Fatal> {
        Ok(Vec::new())
    }

    fn term(&self, _: ShardId, _: Index) -> Result<Option<Term>, Fatal> {
        Ok(None)
    }
}
