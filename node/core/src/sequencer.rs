//! The sequencer: turns proposals into entries, on the leader only.
//!
//! It validates a proposal against applied *plus in-flight* state, keeps indexes and constraints, gives numbers and
//! timestamps, and collects the effects of many proposals in one open entry. It is created when a replica has become
//! leader and has applied its whole log, and dropped whole when leadership is lost: nothing in it outlives that.
//!
//! Use: any number of [`Sequencer::propose`], then [`Sequencer::seal`] until it gives `None`; each [`Sealed`] entry goes to
//! the replicator at exactly its index. After the applier has applied, [`Sequencer::applied`].
//!
//! Inside: `overlay` is the latest state, `tables` the definitions in force, `statement` evaluates one proposal,
//! `constraints` what follows from its row changes, `fence` what DDL proposes, `sequence` and `dedupe` numbers and
//! exactly-once, `stored` what is read of the tree.
//!
//! Invariants: pure, no clock, no threads; a rejected proposal leaves nothing behind; entries are contiguous and each
//! names the chain hash of its predecessor; timestamps strictly grow.

mod constraints;
mod dedupe;
mod fence;
mod overlay;
mod sequence;
mod statement;
mod stored;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Hash, Index, ShardId, TableId, Timestamp, WriteId};
use quorate_shared::limits::{ENTRY_BYTES_MAX, ENTRY_OVERHEAD_BYTES};

use self::dedupe::{Dedupe, Done};
use self::overlay::{Latest, Overlay};
use self::sequence::Numbers;
use self::statement::{Effects, Statement, Stop};
use self::tables::Tables;
use crate::engine::Tree;
use crate::entry::{self, Body, Entry, Transaction};
use crate::error::{Fatal, Rejected};
use crate::log::LogEntry;
use crate::machine::Applied;
use crate::proposal::{Proposal, WriteResult};

/// An open entry of this size is closed before another transaction goes in: it keeps appends and appliers in small steps.
const ENTRY_BYTES_TARGET: usize = 1 << 20;
/// Transactions staged between two steps of the sweep for clients to forget.
const SWEEP_EVERY: u32 = 1024;

/// What became of a proposal for now.
#[derive(Clone, PartialEq, Debug)]
pub enum Decision {
    /// It is in an entry, sealed or still open: the answer is [`Sealed::results`]`[position]` once that index is applied
    /// here. If leadership is lost before, the outcome is unknown.
    Staged {
        /// The entry.
        index: Index,
        /// Its place in the entry's results.
        position: usize,
    },
    /// It had been executed before, or is in flight: this answer is final once `index` is applied here (at once, if it is).
    Duplicate {
        /// The answer, marked `duplicate`.
        result: WriteResult,
        /// The entry that carries it.
        index: Index,
    },
    /// Nothing to append: a refusal, zero rows. It is a *read*: released when everything up to `depends_on` is applied
    /// here and leadership has been confirmed after this moment; else `retry`.
    Answer {
        /// The answer.
        result: Result<WriteResult, Rejected>,
        /// The last entry in flight it was evaluated on; 0 if none.
        depends_on: Index,
    },
}

/// An entry ready to be appended.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Exactly where it must be appended.
    pub index: Index,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// The chain hash at this index.
    pub chain: Hash,
    /// Its canonical bytes.
    pub bytes: Bytes,
    /// Answers of its proposals by position, `index` and `timestamp` filled in; `replicas` and `epoch` are the shard's.
    pub results: Vec<WriteResult>,
}

/// The entry transactions are being added to; `index` and `timestamp` are the sequencer's last ones.
#[derive(Default)]
struct Open {
    transactions: Vec<Transaction>,
    results: Vec<WriteResult>,
    bytes: usize,
}

/// Evaluates proposals of one shard's leader. See the module.
pub struct Sequencer {
    shard: ShardId,
    tree: Arc<dyn Tree>,
    /// Of the last entry sealed or open.
    last: Index,
    /// Of the last entry sealed or open.
    timestamp: Timestamp,
    /// At the last entry sealed.
    chain: Hash,
    open: Option<Open>,
    sealed: VecDeque<Sealed>,
    overlay: Overlay,
    tables: Tables,
    numbers: BTreeMap<TableId, Numbers>,
    dedupe: Dedupe,
    staged_since_sweep: u32,
}

impl Sequencer {
    /// Starts from what is applied; the whole log must be. Definitions, sequences and client windows are read from the tree.
    pub fn new(shard: ShardId, tree: Arc<dyn Tree>, applied: &Applied) -> Result<Self, Fatal> {
        let tables = Tables::new(stored::tables(&*tree)?);
        Ok(Self {
            shard,
            tree,
            last: applied.index,
            timestamp: applied.timestamp,
            chain: applied.chain,
            open: None,
            sealed: VecDeque::new(),
            overlay: Overlay::new(applied.index, applied.timestamp),
            tables,
            numbers: BTreeMap::new(),
            dedupe: Dedupe::default(),
            staged_since_sweep: 0,
        })
    }

    /// Which shard it evaluates for.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Evaluates a proposal. `now_ms` is the wall clock in milliseconds since 1970, for the entry's timestamp.
    pub fn propose(&mut self, now_ms: u64, proposal: Proposal) -> Result<Decision, Fatal> {
        if let Some(write) = proposal.write {
            match self.dedupe.look_up(&*self.tree, write)? {
                Ok(None) => {}
                Ok(Some(done)) => return Ok(Decision::Duplicate { result: done.result(), index: done.index }),
                Err(unknown) => {
                    return Ok(Decision::Answer { result: Err(unknown), depends_on: Index::default() });
                }
            }
        }
        let write = proposal.write;
        let (outcome, depends_on) = self.evaluate(proposal);
        match outcome {
            Ok(effects) => self.stage(now_ms, write, effects, depends_on),
            Err(Stop::Rejected(rejected)) => Ok(Decision::Answer { result: Err(rejected), depends_on }),
            Err(Stop::Fatal(fatal)) => Err(fatal),
        }
    }

    /// The next entry to append, in order; closes the open one. `None`: nothing is staged.
    pub fn seal(&mut self) -> Result<Option<Sealed>, Fatal> {
        if self.sealed.is_empty() {
            self.close();
            self.sweep()?;
        }
        Ok(self.sealed.pop_front())
    }

    /// An entry that is not of this sequencer has been appended behind the last one sealed; nothing may be open.
    pub fn follow(&mut self, entry: &LogEntry) -> Result<(), Fatal> {
        if self.open.is_some() || !self.sealed.is_empty() || entry.index != self.last.next() {
            let cause = format!("entry {} does not follow what was sealed up to {}", entry.index, self.last);
            return Err(Fatal::new("go on behind an entry of the protocol", cause));
        }
        self.last = entry.index;
        self.chain = entry::chain(self.chain, entry);
        Ok(())
    }

    /// Entries up to this index are applied to the tree.
    pub fn applied(&mut self, index: Index) {
        self.overlay.applied(index);
        self.tables.applied(index);
        self.dedupe.applied(index);
    }

    /// The index of the last entry sealed or open.
    pub fn last_index(&self) -> Index {
        self.last
    }

    /// Evaluates against the latest state; also tells the last entry in flight the outcome depends on.
    fn evaluate(&self, proposal: Proposal) -> (Result<Effects, Stop>, Index) {
        let latest = Latest::new(&self.overlay, &*self.tree);
        let stored_numbers = |table| stored::sequence(&*self.tree, table);
        let outcome = self.check(&latest, &proposal).and_then(|()| {
            let statement = Statement::new(&self.tables, &latest, &self.numbers, &stored_numbers);
            statement.run(proposal.ops, proposal.want_rows)
        });
        (outcome, latest.depends_on())
    }

    /// What the proposal was planned on still holds.
    fn check(&self, latest: &Latest<'_>, proposal: &Proposal) -> Result<(), Stop> {
        for &(table, version) in &proposal.tables {
            let (current, changed_at) = self.tables.version(table);
            latest.depend(changed_at);
            if current != Some(version) {
                return Err(Rejected::StaleCatalog { table, current }.into());
            }
        }
        for read in &proposal.reads {
            latest.check(read)??;
        }
        Ok(())
    }

    /// Puts a statement's effects into the open entry.
    fn stage(
        &mut self,
        now_ms: u64,
        write: Option<WriteId>,
        effects: Effects,
        depends_on: Index,
    ) -> Result<Decision, Fatal> {
        let mut result = WriteResult {
            rows: effects.rows,
            returned: effects.returned,
            last_id: effects.last_id,
            ..WriteResult::default()
        };
        let counted = effects.keep_numbers && effects.numbers.values().any(|n| n.unsaved);
        let nothing = effects.writes.is_empty() && effects.fences.is_empty() && effects.purged.is_empty();
        if nothing && !counted && !effects.close {
            return Ok(Decision::Answer { result: Ok(result), depends_on });
        }
        let mut numbers = effects.numbers;
        let granted = numbers.iter().filter(|(_, n)| n.unsaved).map(|(table, n)| (*table, n.granted()));
        let transaction = Transaction {
            write,
            rows: effects.rows,
            last_id: effects.last_id,
            sequences: granted.collect(),
            writes: effects.writes.into_iter().collect(),
            fences: effects.fences,
            purged: effects.purged,
        };
        let bytes = transaction.bytes_hint() + definitions_bytes(&transaction);
        let limit = ENTRY_BYTES_MAX - ENTRY_OVERHEAD_BYTES;
        if bytes > limit {
            let rejected = Rejected::TooLarge { bytes: bytes as u64, limit: limit as u64 };
            return Ok(Decision::Answer { result: Err(rejected), depends_on });
        }
        if self.open.as_ref().is_some_and(|open| open.bytes + bytes > ENTRY_BYTES_TARGET) {
            self.close();
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                self.last = self.last.next();
                self.timestamp = self.timestamp.next().max(Timestamp::new(now_ms, 0));
                Open::default()
            }
        };
        (result.index, result.timestamp) = (self.last, self.timestamp);
        self.note(write, &result, &transaction);
        numbers.values_mut().for_each(|n| n.unsaved = false);
        self.numbers.append(&mut numbers);
        open.bytes += bytes;
        open.transactions.push(transaction);
        self.staged_since_sweep += 1;
        open.results.push(result);
        let position = open.results.len() - 1;
        self.open = Some(open);
        Ok(Decision::Staged { index: self.last, position })
    }

    /// Makes a staged transaction part of the latest state.
    fn note(&mut self, write: Option<WriteId>, result: &WriteResult, transaction: &Transaction) {
        for (key, value) in &transaction.writes {
            self.overlay.put(self.last, self.timestamp, key.clone(), value.clone());
        }
        for key in &transaction.purged {
            self.overlay.put(self.last, self.timestamp, key.clone(), None);
        }
        if !transaction.fences.is_empty() {
            self.tables.fence(self.last, &transaction.fences);
        }
        if let Some(write) = write {
            let done = Done {
                seq: write.seq,
                index: self.last,
                timestamp: self.timestamp,
                rows: result.rows,
                last_id: result.last_id,
            };
            self.dedupe.note(write.client, done);
        }
    }

    /// Seals the open entry, if there is one.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.seal_body(Body::Write(open.transactions), open.results);
        }
    }

    /// Now and then seals an entry that forgets clients.
    fn sweep(&mut self) -> Result<(), Fatal> {
        if self.staged_since_sweep < SWEEP_EVERY {
            return Ok(());
        }
        self.staged_since_sweep = 0;
        let idle = self.dedupe.sweep(&*self.tree, self.timestamp)?;
        if !idle.is_empty() {
            self.last = self.last.next();
            self.timestamp = self.timestamp.next();
            self.seal_body(Body::ClientExpire(idle), Vec::new());
        }
        Ok(())
    }

    fn seal_body(&mut self, body: Body, results: Vec<WriteResult>) {
        let (index, timestamp) = (self.last, self.timestamp);
        let bytes = Entry { index, previous: self.chain, timestamp, body }.encode();
        self.chain = entry::chain_bytes(self.chain, &bytes);
        self.sealed.push_back(Sealed { index, timestamp, chain: self.chain, bytes, results });
    }
}

/// What definitions take beyond the hint of their transaction.
fn definitions_bytes(transaction: &Transaction) -> usize {
    let defs = transaction.fences.iter().filter_map(|(_, def)| def.as_ref());
    defs.map(|def| entry::encode_table(def).len()).sum()
}
