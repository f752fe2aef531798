//! One shard without a protocol: what the sequencer seals is applied by a machine when the test says so.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Epoch, Hash, Index, ShardId, TableId, Term};
use quorate_shared::value::Value;

use crate::engine::memory::MemoryEngine;
use crate::engine::{Engine, Tree};
use crate::log::{BaseRecord, LogEntry, Membership, Payload};
use crate::machine::{Applied, Machine};
use crate::mvcc::Snapshot;
use crate::proposal::{Op, Proposal, WriteResult};
use crate::sequencer::{Decision, Sealed, Sequencer};
use crate::table::TableDef;
use crate::{keys, row};

/// A leader and its machine.
pub struct Shard {
    pub tree: Arc<dyn Tree>,
    pub machine: Machine,
    pub sequencer: Sequencer,
    /// Sealed, not applied.
    pub log: VecDeque<Sealed>,
    /// Answers of sealed entries.
    pub results: BTreeMap<Index, Vec<WriteResult>>,
    /// The wall clock.
    pub now_ms: u64,
}

impl Shard {
    pub fn new() -> Self {
        let tree = MemoryEngine::new().tree("s1-r1").unwrap();
        let base = BaseRecord::founding(ShardId::DATA, Membership::default(), Epoch::default());
        let machine = Machine::open(Arc::clone(&tree), &base).unwrap();
        let sequencer = Sequencer::new(ShardId::DATA, Arc::clone(&tree), &Applied::default()).unwrap();
        Self { tree, machine, sequencer, log: VecDeque::new(), results: BTreeMap::new(), now_ms: 1_000 }
    }

    pub fn propose(&mut self, proposal: Proposal) -> Decision {
        self.sequencer.propose(self.now_ms, proposal).unwrap()
    }

    /// Proposes operations planned with the definitions in force.
    pub fn run(&mut self, ops: Vec<Op>) -> Decision {
        self.propose(Proposal { ops, want_rows: true, ..Proposal::default() })
    }

    /// Seals what is open.
    pub fn seal(&mut self) {
        while let Some(sealed) = self.sequencer.seal().unwrap() {
            let chain = crate::entry::chain_bytes(self.chain(), &sealed.bytes);
            assert_eq!(chain, sealed.chain);
            self.results.insert(sealed.index, sealed.results.clone());
            self.log.push_back(sealed);
        }
    }

    fn chain(&self) -> Hash {
        self.log.back().map_or(self.machine.state().chain, |sealed| sealed.chain)
    }

    /// Applies at most `n` sealed entries; tells the sequencer if `report`.
    pub fn apply(&mut self, n: usize, report: bool) {
        let entries: Vec<LogEntry> = (0..n)
            .map_while(|_| self.log.pop_front())
            .map(|s| LogEntry { index: s.index, term: Term::new(1), payload: Payload::Entry, bytes: s.bytes })
            .collect();
        let applied = self.machine.apply(&entries).unwrap();
        assert!(applied.void.is_empty());
        if report {
            self.sequencer.applied(applied.index);
        }
    }

    /// Seals and applies everything.
    pub fn flush(&mut self) {
        self.seal();
        self.apply(usize::MAX, true);
    }

    /// A new leader: what is in flight becomes committed first.
    pub fn restart(&mut self) {
        self.flush();
        let state = self.machine.state();
        let applied =
            Applied { index: state.index, chain: state.chain, timestamp: state.timestamp, ..Applied::default() };
        self.sequencer = Sequencer::new(ShardId::DATA, Arc::clone(&self.tree), &applied).unwrap();
    }

    /// Applied rows of a table.
    pub fn rows(&self, def: &TableDef) -> Vec<Vec<Value>> {
        let snapshot = Snapshot::new(Arc::clone(&self.tree), self.machine.state().timestamp);
        let range = keys::index_range(def.storage, quorate_shared::ids::IndexId::PRIMARY);
        snapshot.scan(&range, false).map(|item| row::decode(def, &item.unwrap().1.row).unwrap()).collect()
    }

    /// Every live key and value of a storage.
    pub fn live(&self, storage: TableId) -> BTreeMap<Bytes, Bytes> {
        let snapshot = Snapshot::new(Arc::clone(&self.tree), self.machine.state().timestamp);
        snapshot.scan(&keys::storage_range(storage), false).map(|item| item.map(|(k, v)| (k, v.row)).unwrap()).collect()
    }

    /// The live keys are exactly the rows and the index entries that follow from them.
    pub fn verify(&self, def: &TableDef) -> Result<usize, String> {
        let mut live = self.live(def.storage);
        let rows = self.rows(def);
        for row in &rows {
            live.remove(&keys::row_key(def, row).unwrap()).ok_or("a row is under another key")?;
            for index in &def.indexes {
                let entry = keys::index_entry(def, index, row).unwrap();
                match live.remove(&entry.key) {
                    Some(payload) if payload == entry.payload => {}
                    other => return Err(format!("{} of {row:?} has {other:?}", index.name)),
                }
            }
        }
        match live.first_key_value() {
            None => Ok(rows.len()),
            Some((key, _)) => Err(format!("{} keys too many, the first is {key:?}", live.len())),
        }
    }
}
