//! A node's log: the real one on a simulated disk, beside a model of what must be in it.
//!
//! The model has what was written and, of that, what was durable when a sync had finished. When the log is opened again
//! it must have everything durable, and beyond it some beginning of the rest, nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};

use super::Rng;
use super::disk::{Handle, SimDisk};
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
    shard: ShardId,
    replica: ReplicaId,
    segment_bytes: u64,
    log: Option<SegmentLog>,
    reader: Option<Arc<SegmentReader>>,
    pub durable: Content,
    unsynced: VecDeque<Step>,
    /// Of the unsynced steps, how many the running sync covers, and where the disk was when it was given out.
    syncing: (usize, usize),
    /// A bit was flipped since it was opened.
    pub flipped: bool,
    /// Power goes before anything is synced.
    pub interrupted: bool,
}

impl Store {
    /// An empty disk.
    pub fn new(shard: ShardId, segment_bytes: u64) -> Self {
        Self {
            disk: Arc::default(),
            shard,
            replica: ReplicaId::NONE,
            segment_bytes,
            log: None,
            reader: None,
            durable: Content::default(),
            unsynced: VecDeque::new(),
            syncing: (0, 0),
            flipped: false,
            interrupted: false,
        }
    }

    /// Begins an empty log.
    pub fn found(&mut self, replica: ReplicaId, base: &BaseRecord) -> Result<(), Fatal> {
        self.replica = replica;
        self.write(&[LogRecord::Base(base.clone())])?;
        self.finish();
        Ok(())
    }

    /// The changes of the membership behind an index.
    pub fn changes_after(&self, index: Index) -> Result<Vec<Index>, Fatal> {
        let reader = self.reader();
        let (mut at, mut out) = (index.next(), Vec::new());
        let last = reader.bounds(self.shard).map_or(index, |b| b.last);
        while at <= last {
            let entries = reader.entries(self.shard, at, last.next(), APPEND_BYTES_MAX)?;
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
        self.replica = reader.bounds(self.shard).map_or(ReplicaId::NONE, |b| b.replica);
        (self.log, self.reader) = (Some(log), Some(reader));
        Ok(opened)
    }

    /// Finds what of the unsynced is there.
    fn compare(&mut self, reader: &SegmentReader) -> Opened {
        let mut content = std::mem::take(&mut self.durable);
        let mut unsynced = std::mem::take(&mut self.unsynced).into_iter();
        // The longest that fits: a hard state may be what it was before.
        let mut found = content.is(reader, self.shard).then(|| content.clone());
        for step in unsynced.by_ref() {
            content.add(&step);
            if content.is(reader, self.shard) {
                found = Some(content.clone());
            }
        }
        self.syncing = (0, 0);
        match found {
            Some(found) => {
                self.durable = found;
                Opened::Whole
            }
            None if self.flipped && content.begins_with(reader, self.shard) => {
                // It went with the whole write that it was in, the last one: nobody can tell that from a torn write.
                self.forget();
                Opened::Lost("what was written last is damaged".into())
            }
            None => {
                let bounds = reader.bounds(self.shard);
                let (last, hard) = bounds.map_or((Index::new(0), HardState::default()), |b| (b.last, b.hard));
                Opened::Wrong(format!("its log came back as something never written: up to {last}, {hard:?}"))
            }
        }
    }

    fn forget(&mut self) {
        self.durable = Content::default();
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

    /// Writes records and begins to sync them.
    pub fn write(&mut self, records: &[LogRecord]) -> Result<(), Fatal> {
        let Some(log) = &mut self.log else { return Ok(()) };
        for record in records {
            log.append(self.replica, self.shard, std::slice::from_ref(record))?;
            self.unsynced.extend(steps(self.replica, record));
            if let LogRecord::Become { replica, .. } = record {
                self.replica = *replica;
            }
        }
        log.sync()?;
        self.syncing = (self.unsynced.len(), self.disk.position());
        Ok(())
    }

    /// The sync is over.
    pub fn finish(&mut self) {
        let (steps, position) = std::mem::take(&mut self.syncing);
        self.disk.finish(position);
        for step in self.unsynced.drain(..steps) {
            self.durable.add(&step);
        }
    }

    /// Nothing is on its way to the disk.
    pub fn is_idle(&self) -> bool {
        self.unsynced.is_empty() && self.log.is_some()
    }

    /// Lets the log begin after a base, durably.
    pub fn trim(&mut self, base: &BaseRecord) -> Result<(), Fatal> {
        let (Some(log), Some(reader)) = (&mut self.log, &self.reader) else { return Ok(()) };
        log.trim(self.replica, base)?;
        reader.remove_obsolete()?;
        self.disk.finish(usize::MAX);
        self.durable.add(&Step::Base(self.replica, Box::new(base.clone())));
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
    fn append(&mut self, _: ReplicaId, _: ShardId, records: &[LogRecord]) -> Result<(), Fatal> {
        self.write(records)
    }

    fn sync(&mut self) -> Result<(), Fatal> {
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
