//! A disk of records, for tests of one part: what is written is seen at once and durable only after a sync; a crash keeps
//! the durable part and some of the rest, in order.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};

use super::Rng;
use crate::error::Fatal;
use crate::log::{BaseRecord, HardState, LogBounds, LogEntry, LogReader, LogRecord, PaxosState};

#[derive(Clone)]
struct Content {
    replica: ReplicaId,
    base: BaseRecord,
    entries: BTreeMap<Index, LogEntry>,
    hard: HardState,
    paxos: Option<PaxosState>,
}

impl Content {
    fn add(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Entries(entries) => {
                for entry in entries {
                    let last = self.entries.last_key_value().map_or(self.base.index, |(i, _)| *i);
                    assert_eq!(entry.index, last.next(), "entries must follow each other");
                    self.entries.insert(entry.index, entry.clone());
                }
            }
            LogRecord::Become { replica, hard } => (self.replica, self.hard, self.paxos) = (*replica, *hard, None),
            LogRecord::Hard(hard) => self.hard = *hard,
            LogRecord::Paxos(paxos) => self.paxos = Some(*paxos),
            LogRecord::Truncate(from) => drop(self.entries.split_off(from)),
            LogRecord::Base(base) => self.base = base.clone(),
        }
    }
}

struct State {
    durable: Content,
    written: Content,
    unsynced: Vec<LogRecord>,
}

pub struct Disk(Mutex<State>);

impl Disk {
    pub fn new(base: BaseRecord) -> Self {
        let content = Content {
            replica: ReplicaId::NONE,
            base,
            entries: BTreeMap::new(),
            hard: HardState::default(),
            paxos: None,
        };
        Disk(Mutex::new(State { durable: content.clone(), written: content, unsynced: Vec::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, records: &[LogRecord]) {
        let mut state = self.state();
        for record in records {
            state.written.add(record);
            state.unsynced.push(record.clone());
        }
    }

    /// The first so many unsynced records are durable.
    pub fn sync(&self, records: usize) {
        let mut state = self.state();
        let synced: Vec<LogRecord> = state.unsynced.drain(..records).collect();
        synced.iter().for_each(|r| state.durable.add(r));
    }

    /// Loses some of what is not durable. Gives how many records it kept.
    pub fn crash(&self, rng: &mut Rng) -> usize {
        let records = self.state().unsynced.len();
        let kept = usize::try_from(rng.range(0, records as u64)).unwrap();
        self.sync(kept);
        let mut state = self.state();
        state.unsynced.clear();
        state.written = state.durable.clone();
        kept
    }

    /// Loses all that is not durable.
    pub fn lose(&self) {
        let mut state = self.state();
        state.unsynced.clear();
        state.written = state.durable.clone();
    }

    pub fn durable_last(&self) -> u64 {
        let state = self.state();
        state.durable.entries.last_key_value().map_or(state.durable.base.index, |(i, _)| *i).get()
    }
}

impl LogReader for Disk {
    fn bounds(&self, _: ShardId) -> Option<LogBounds> {
        let state = self.state();
        let content = &state.written;
        let last = content.entries.last_key_value();
        Some(LogBounds {
            replica: content.replica,
            base: content.base.clone(),
            last: last.map_or(content.base.index, |(i, _)| *i),
            last_term: last.map_or(content.base.term, |(_, e)| e.term),
            hard: content.hard,
            paxos: content.paxos,
            bytes: content.entries.values().map(|e| e.bytes.len() as u64).sum(),
        })
    }

    fn entries(&self, _: ShardId, from: Index, to: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Fatal> {
        let mut bytes = 0;
        let mut out: Vec<LogEntry> = Vec::new();
        for entry in self.state().written.entries.range(from..to).map(|(_, e)| e) {
            bytes += entry.bytes.len();
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, _: ShardId, index: Index) -> Result<Option<Term>, Fatal> {
        let state = self.state();
        if index == state.written.base.index {
            return Ok(Some(state.written.base.term));
        }
        Ok(state.written.entries.get(&index).map(|e| e.term))
    }
}
