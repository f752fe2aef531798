//! A log in memory, for tests: same rules as the real one, nothing is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};

use crate::error::Fatal;
use crate::log::{BaseRecord, HardState, Log, LogBounds, LogEntry, LogReader, LogRecord, PaxosState};

type Shards = BTreeMap<ShardId, Replica>;

/// The writer's side.
pub struct MemoryLog {
    shards: Arc<RwLock<Shards>>,
}

/// The readers' side.
pub struct MemoryReader {
    shards: Arc<RwLock<Shards>>,
}

struct Replica {
    id: ReplicaId,
    base: BaseRecord,
    hard: HardState,
    paxos: Option<PaxosState>,
    entries: VecDeque<LogEntry>,
    bytes: u64,
}

impl MemoryLog {
    /// An empty log and its reader.
    pub fn new() -> (Self, Arc<MemoryReader>) {
        let shards = Arc::new(RwLock::default());
        (Self { shards: Arc::clone(&shards) }, Arc::new(MemoryReader { shards }))
    }

    fn shards(&self) -> RwLockWriteGuard<'_, Shards> {
        self.shards.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryReader {
    fn shards(&self) -> RwLockReadGuard<'_, Shards> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(cause: String) -> Fatal {
    Fatal::new("append to the log", cause)
}

impl Replica {
    fn last(&self) -> Index {
        Index::new(self.base.index.get() + self.entries.len() as u64)
    }

    fn append(&mut self, entry: &LogEntry) -> Result<(), Fatal> {
        if entry.index != self.last().next() {
            return Err(refused(format!("entry {} does not follow {}", entry.index, self.last())));
        }
        self.bytes += entry.bytes.len() as u64;
        self.entries.push_back(entry.clone());
        Ok(())
    }

    fn truncate(&mut self, from: Index) -> Result<(), Fatal> {
        if from <= self.base.index {
            return Err(refused(format!("cutting from {from} would remove the base {}", self.base.index)));
        }
        while self.last() >= from {
            let cut = self.entries.pop_back();
            self.bytes -= cut.map_or(0, |e| e.bytes.len() as u64);
        }
        Ok(())
    }

    fn rebase(&mut self, base: &BaseRecord) {
        if base.index > self.last() {
            self.entries.clear();
            self.bytes = 0;
        }
        while self.entries.front().is_some_and(|e| e.index <= base.index) {
            let cut = self.entries.pop_front();
            self.bytes -= cut.map_or(0, |e| e.bytes.len() as u64);
        }
        self.base = base.clone();
    }
}

impl Log for MemoryLog {
    fn append(&mut self, replica: ReplicaId, shard: ShardId, records: &[LogRecord]) -> Result<(), Fatal> {
        let mut shards = self.shards();
        for record in records {
            if let LogRecord::Base(base) = record {
                match shards.get_mut(&shard).filter(|r| r.id == replica) {
                    Some(existing) => existing.rebase(base),
                    None => {
                        let (base, hard) = (base.clone(), HardState::default());
                        let fresh =
                            Replica { id: replica, base, hard, paxos: None, entries: VecDeque::new(), bytes: 0 };
                        shards.insert(shard, fresh);
                    }
                }
                continue;
            }
            let Some(known) = shards.get_mut(&shard).filter(|r| r.id == replica) else {
                return Err(refused(format!("replica {replica} of {shard} has no base record")));
            };
            match record {
                LogRecord::Entries(entries) => entries.iter().try_for_each(|e| known.append(e))?,
                LogRecord::Hard(hard) => known.hard = *hard,
                LogRecord::Paxos(paxos) => known.paxos = Some(*paxos),
                LogRecord::Truncate(from) => known.truncate(*from)?,
                LogRecord::Become { replica, hard } => {
                    (known.id, known.hard, known.paxos) = (*replica, *hard, None);
                }
                LogRecord::Base(_) => {}
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Fatal> {
        Ok(())
    }
}

impl LogReader for MemoryReader {
    fn bounds(&self, shard: ShardId) -> Option<LogBounds> {
        let shards = self.shards();
        let r = shards.get(&shard)?;
        Some(LogBounds {
            replica: r.id,
            base: r.base.clone(),
            last: r.last(),
            last_term: r.entries.back().map_or(r.base.term, |e| e.term),
            hard: r.hard,
            paxos: r.paxos,
            bytes: r.bytes,
        })
    }

    fn entries(&self, shard: ShardId, from: Index, to: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Fatal> {
        let shards = self.shards();
        let Some(r) = shards.get(&shard) else { return Ok(Vec::new()) };
        let Some(skip) = from.get().checked_sub(r.base.index.get() + 1) else {
            let cause = format!("entry {from} of {shard} is not behind the base {}", r.base.index);
            return Err(Fatal::new("read the log", cause));
        };
        let mut bytes = 0usize;
        let mut out = Vec::new();
        for e in r.entries.iter().skip(skip as usize).take_while(|e| e.index < to) {
            bytes += e.bytes.len();
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(e.clone());
        }
        Ok(out)
    }

    fn term(&self, shard: ShardId, index: Index) -> Result<Option<Term>, Fatal> {
        let shards = self.shards();
        let Some(r) = shards.get(&shard) else { return Ok(None) };
        if index == r.base.index {
            return Ok(Some(r.base.term));
        }
        let at = index.get().checked_sub(r.base.index.get() + 1);
        Ok(at.and_then(|at| r.entries.get(at as usize)).map(|e| e.term))
    }
}
