//! What OmniPaxos writes and reads: the log as the protocol sees it, of which the end is still in memory.
//!
//! The library counts its own acceptance as soon as a call here returns, and panics on every error. So nothing here fails:
//! writes go into memory and become [`LogRecord`]s for the driver; a read of the log that fails is remembered
//! ([`Store::take_failure`]) and stops the replica before anything it led to is sent.
//!
//! The library counts *positions* in its configuration from 0; a position is an index minus [`PaxosState::begins`].
//!
//! A synchronization is one step for the library and several records on disk. It keeps what is there already (same index
//! and term: same entry), so decided entries are never cut; and until its last record is durable, `syncing` says where
//! the entries end that belong to the round accepted before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::storage::{Entry, NoSnapshot, StopSign, Storage, StorageOp, StorageResult};
use quorate_shared::ids::{Index, ShardId, Term};
use serde::{Deserialize, Serialize};

use crate::error::Fatal;
use crate::log::{LogEntry, LogReader, LogRecord, PaxosState, Payload, Round};

/// Bytes of durable entries kept in memory.
const CACHE_BYTES: usize = 8 << 20;
/// Bytes of entries in one message that need not hold all that its receiver lacks. The logs of the simulator are short:
/// there it is little, so that parts are what it runs with.
pub(super) const SYNC_BYTES: usize = if cfg!(any(test, feature = "planted-bugs")) { 1 << 10 } else { 4 << 20 };
/// So many parts, about, a synchronization may have. One part for each round trip would not do here: what others write
/// meanwhile must not be more than this.
pub(super) const PARTS_AT_ONCE: u64 = 8;
/// Most bytes of entries in a promise and in a synchronization: it must hold all that its receiver lacks.
pub(super) const PROMISE_BYTES: usize = 512 << 20;
/// What an entry costs besides its bytes.
const ENTRY_OVERHEAD: usize = 64;

/// An entry as the library carries it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) term: Term,
    pub(super) payload: Payload,
    pub(super) bytes: Bytes,
}

impl Entry for Item {
    type Snapshot = NoSnapshot;
}

/// Everything behind the lock.
struct State {
    log: Arc<dyn LogReader>,
    shard: ShardId,
    paxos: PaxosState,
    /// The newest entries, at least all that are not durable.
    tail: VecDeque<LogEntry>,
    tail_bytes: usize,
    /// Last index, the stop sign's included.
    last: Index,
    durable: Index,
    stop: Option<StopSign>,
    records: Vec<LogRecord>,
    promise_pending: bool,
    /// The decided end as it was written last.
    noted: Index,
    /// Lowest index cut since it was asked for.
    cut: Option<Index>,
    /// The library gets the suffixes it asks for.
    gives_suffixes: bool,
    failed: Option<Fatal>,
    /// Nothing at or before this index is read any more, and its term.
    compacted: (Index, Term),
}

/// The handle; one is the library's, one the replicator's.
#[derive(Clone)]
pub(super) struct Store(Arc<Mutex<State>>);

/// What is to be written.
pub(super) struct Pending {
    pub(super) records: Vec<LogRecord>,
    /// A new promise is among them.
    pub(super) promise: bool,
}

impl Store {
    /// The log of a replica as it is on disk; all of it is durable. `configuration` is the one of what is applied.
    pub(super) fn open(
        log: Arc<dyn LogReader>,
        shard: ShardId,
        configuration: u32,
        applied: Index,
    ) -> Result<Self, Fatal> {
        let lost = |cause: String| Fatal::new(format!("open {shard}"), format!("its log is lost: {cause}"));
        let bounds = log.bounds(shard).ok_or_else(|| lost("there is no base record".into()))?;
        let mut last = bounds.last;
        let mut records = Vec::new();
        if applied > last {
            return Err(lost(format!("applied {applied}, but the log ends at {last}")));
        }
        let mut paxos = match bounds.paxos {
            Some(known) if known.configuration == configuration => known,
            Some(known) if known.configuration > configuration => {
                let cause =
                    format!("it is in configuration {}, what is applied in {configuration}", known.configuration);
                return Err(Fatal::new(format!("open {shard}"), cause));
            }
            _ => {
                // What is applied is decided. What may be behind it was never accepted in this configuration.
                if applied < last {
                    records.push(LogRecord::Truncate(applied.next()));
                    last = applied;
                }
                PaxosState { configuration, begins: applied, ..PaxosState::default() }
            }
        };
        if let Some(from) = paxos.syncing.take() {
            // A synchronization that was not finished: what it wrote belongs to no round yet.
            if from <= last {
                records.push(LogRecord::Truncate(from));
                last = Index::new(from.get() - 1);
            }
            records.push(LogRecord::Paxos(paxos));
        }
        if paxos.decided > last {
            return Err(lost(format!("decided {}, but the log ends at {last}", paxos.decided)));
        }
        paxos.decided = paxos.decided.max(applied).max(bounds.base.index);
        let mut stop = None;
        if last > paxos.begins.max(bounds.base.index) {
            let end = log.entries(shard, last, last.next(), 0)?;
            stop = end.first().filter(|e| e.payload == Payload::Membership).and_then(super::members::stop_of);
        }
        Ok(Store(Arc::new(Mutex::new(State {
            log,
            shard,
            paxos,
            tail: VecDeque::new(),
            tail_bytes: 0,
            last,
            durable: last,
            stop,
            records,
            promise_pending: false,
            noted: paxos.decided,
            cut: None,
            gives_suffixes: true,
            failed: None,
            compacted: (bounds.base.index, bounds.base.term),
        }))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn paxos(&self) -> PaxosState {
        self.state().paxos
    }

    pub(super) fn last(&self) -> Index {
        self.state().last
    }

    pub(super) fn durable(&self) -> Index {
        self.state().durable
    }

    /// Entries without the stop sign, counted from the beginning of the configuration.
    pub(super) fn len(&self) -> usize {
        self.state().len()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state().stop.is_some()
    }

    /// The stop sign at the end of the log.
    pub(super) fn stop(&self) -> Option<StopSign> {
        self.state().stop.clone()
    }

    /// The point before the first entry that may be read.
    pub(super) fn base(&self) -> (Index, Term) {
        self.state().compacted
    }

    /// Its position: what begins before it cannot be given.
    pub(super) fn first(&self) -> u64 {
        let state = self.state();
        state.position(state.compacted.0) as u64
    }

    /// Nothing at or before this index is read any more.
    pub(super) fn compact(&self, index: Index, term: Term) {
        let mut state = self.state();
        if index > state.compacted.0 {
            state.compacted = (index, term);
        }
    }

    /// Its configuration ends at an index, with its stop sign; another one begins behind it.
    pub(super) fn turn(&self, configuration: u32, at: Index) -> Result<(), Fatal> {
        let mut state = self.state();
        if state.last != at || state.paxos.decided < at {
            let cause = format!("configuration {configuration} begins at {at}, but the log ends at {}", state.last);
            return Err(Fatal::new(format!("change the membership of {}", state.shard), cause));
        }
        state.stop = None;
        state.paxos = PaxosState { configuration, begins: at, decided: at, ..PaxosState::default() };
        state.note_state();
        Ok(())
    }

    /// Takes over what follows everything known to be decided, and is decided too. The library has to begin anew.
    pub(super) fn adopt(&self, items: Vec<Item>) -> Result<(), Fatal> {
        let mut state = self.state();
        let end = Index::new(state.paxos.decided.get() + items.len() as u64);
        let mut items = items.into_iter().peekable();
        let at = state.skip_same(state.paxos.decided.next(), &mut items)?;
        if items.peek().is_some() {
            state.cut(at);
            state.push(items);
            let last = state.tail.back().cloned();
            state.stop = last.as_ref().and_then(super::members::stop_of);
        }
        state.paxos.decided = end;
        state.note_state();
        Ok(())
    }

    /// Somebody knows that everything up to an entry of this term is decided. `false`: that entry is not here.
    pub(super) fn learn_decided(&self, index: Index, term: Term) -> Result<bool, Fatal> {
        let mut state = self.state();
        if state.term(index)? != Some(term) {
            return Ok(false);
        }
        state.paxos.decided = state.paxos.decided.max(index);
        state.note_state();
        Ok(true)
    }

    /// A read of the log that failed: what the library says now is not to be used.
    pub(super) fn take_failure(&self) -> Option<Fatal> {
        self.state().failed.take()
    }

    /// Whether the library gets the suffixes it asks for.
    pub(super) fn give_suffixes(&self, give: bool) {
        self.state().gives_suffixes = give;
    }

    /// Whether there is something to be written.
    pub(super) fn has_pending(&self) -> (bool, bool) {
        let state = self.state();
        (!state.records.is_empty(), state.promise_pending)
    }

    /// Takes what is to be written.
    pub(super) fn take_pending(&self) -> Pending {
        let mut state = self.state();
        let promise = std::mem::take(&mut state.promise_pending);
        if !state.records.is_empty() && state.noted != state.paxos.decided {
            // Written with what is written anyway: after a crash little has to be decided again.
            state.note_state();
        }
        Pending { records: std::mem::take(&mut state.records), promise }
    }

    /// The lowest index cut since this was asked last.
    pub(super) fn take_cut(&self) -> Option<Index> {
        self.state().cut.take()
    }

    /// Entries up to this index are durable.
    pub(super) fn set_durable(&self, index: Index) {
        let mut state = self.state();
        state.durable = state.durable.max(index.min(state.last));
        while state.tail_bytes > CACHE_BYTES && state.tail.front().is_some_and(|e| e.index <= state.durable) {
            state.tail_bytes -= state.tail.pop_front().map_or(0, |e| size(&e));
        }
    }

    /// Entries from one index up to and without another, at least one, at most so many bytes.
    pub(super) fn entries(&self, from: Index, to: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Fatal> {
        self.state().entries(from, to, bytes_max)
    }
}

impl State {
    fn position(&self, index: Index) -> usize {
        usize::try_from(index.get().saturating_sub(self.paxos.begins.get())).unwrap_or(usize::MAX)
    }

    fn index(&self, position: usize) -> Index {
        Index::new(self.paxos.begins.get().saturating_add(position as u64))
    }

    fn len(&self) -> usize {
        self.position(self.last) - usize::from(self.stop.is_some())
    }

    fn tail_first(&self) -> Index {
        self.tail.front().map_or(self.last.next(), |e| e.index)
    }

    fn term(&self, index: Index) -> Result<Option<Term>, Fatal> {
        if index > self.last {
            return Ok(None);
        }
        match index.get().checked_sub(self.tail_first().get()) {
            Some(at) => Ok(self.tail.get(usize::try_from(at).unwrap_or(usize::MAX)).map(|e| e.term)),
            None => self.log.term(self.shard, index),
        }
    }

    fn entries(&self, from: Index, to: Index, bytes_max: usize) -> Result<Vec<LogEntry>, Fatal> {
        let to = to.min(self.last.next());
        let mut out: Vec<LogEntry> = Vec::new();
        let mut bytes = 0usize;
        let mut next = from;
        let disk_to = self.tail_first().min(to);
        while next < disk_to && bytes <= bytes_max {
            let got = self.log.entries(self.shard, next, disk_to, (bytes_max - bytes).min(CACHE_BYTES))?;
            let Some(last) = got.last() else {
                let cause = format!("the log has no entry {next}");
                return Err(Fatal::new(format!("read the log of {}", self.shard), cause));
            };
            next = last.index.next();
            bytes += got.iter().map(size).sum::<usize>();
            out.extend(got);
        }
        if next < disk_to {
            return Ok(out);
        }
        let skip = next.get().saturating_sub(self.tail_first().get());
        for entry in self.tail.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take_while(|e| e.index < to) {
            bytes += size(entry);
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn push(&mut self, items: impl IntoIterator<Item = Item>) {
        let mut new = Vec::new();
        for Item { term, payload, bytes } in items {
            self.last = self.last.next();
            let entry = LogEntry { index: self.last, term, payload, bytes };
            self.tail_bytes += size(&entry);
            self.tail.push_back(entry.clone());
            new.push(entry);
        }
        if new.is_empty() {
            return;
        }
        match self.records.last_mut() {
            Some(LogRecord::Entries(entries)) => entries.extend(new),
            _ => self.records.push(LogRecord::Entries(new)),
        }
    }

    fn cut(&mut self, from: Index) {
        if from > self.last {
            return;
        }
        while self.tail.back().is_some_and(|e| e.index >= from) {
            self.tail_bytes -= self.tail.pop_back().map_or(0, |e| size(&e));
        }
        self.last = Index::new(from.get() - 1);
        self.durable = self.durable.min(self.last);
        self.cut = Some(self.cut.map_or(from, |c| c.min(from)));
        self.records.push(LogRecord::Truncate(from));
    }

    fn note_state(&mut self) {
        self.noted = self.paxos.decided;
        // Several in one step are one; nothing is between them that a crash could separate.
        if let Some(LogRecord::Paxos(last)) = self.records.last_mut()
            && last.syncing.is_none()
        {
            *last = self.paxos;
            return;
        }
        self.records.push(LogRecord::Paxos(self.paxos));
    }

    /// Takes from items that are to follow an index those that are there already: same index and term, same entry. Gives
    /// where they begin to differ.
    fn skip_same(
        &self,
        from: Index,
        items: &mut std::iter::Peekable<impl Iterator<Item = Item>>,
    ) -> Result<Index, Fatal> {
        let mut at = from;
        while let Some(item) = items.peek() {
            if self.term(at)? != Some(item.term) {
                break;
            }
            items.next();
            at = at.next();
        }
        Ok(at)
    }

    /// Makes the log end with these items behind a position, keeping what is the same.
    fn replace(&mut self, position: usize, items: Vec<Item>, accepted: Option<Round>, decided: Option<Index>) {
        let mut items = items.into_iter().peekable();
        let at = match self.skip_same(self.index(position).next(), &mut items) {
            Ok(at) => at,
            Err(fatal) => {
                self.failed = Some(fatal);
                return;
            }
        };
        if items.peek().is_some() && accepted.is_some_and(|a| a != self.paxos.accepted) {
            self.paxos.syncing = Some(at);
            self.records.push(LogRecord::Paxos(self.paxos));
            self.paxos.syncing = None;
        }
        self.cut(at);
        self.push(items);
        self.paxos.accepted = accepted.unwrap_or(self.paxos.accepted);
        self.paxos.decided = decided.unwrap_or(self.paxos.decided).max(self.paxos.decided);
        self.note_state();
    }

    fn suffix(&mut self, from: usize) -> Vec<Item> {
        let end = self.index(self.len()).next();
        let from = self.index(from).next();
        // What is trimmed is not given: who would need it is told so when the message is to leave.
        if from >= end || from <= self.compacted.0 || !self.gives_suffixes {
            return Vec::new();
        }
        match self.entries(from, end, PROMISE_BYTES) {
            Ok(entries) => entries.into_iter().map(item).collect(),
            Err(fatal) => {
                self.failed = Some(fatal);
                Vec::new()
            }
        }
    }
}

fn size(entry: &LogEntry) -> usize {
    entry.bytes.len() + ENTRY_OVERHEAD
}

pub(super) fn item(entry: LogEntry) -> Item {
    Item { term: entry.term, payload: entry.payload, bytes: entry.bytes }
}

/// The library's ballot as ours.
pub(super) fn round(ballot: Ballot) -> Round {
    Round { number: ballot.n, proposer: u32::try_from(ballot.pid).unwrap_or(u32::MAX) }
}

/// Our round as the library's ballot.
pub(super) fn ballot(configuration: u32, round: Round) -> Ballot {
    if round == Round::default() {
        return Ballot::default();
    }
    Ballot::with(configuration, round.number, 0, u64::from(round.proposer))
}

/// The stop sign as an entry: its metadata begins with the term it was appended in.
pub(super) fn stop_item(stop: &StopSign) -> Item {
    let metadata = stop.metadata.as_deref().unwrap_or_default();
    let (term, bytes) = metadata.split_first_chunk::<8>().map_or((0, metadata), |(t, b)| (u64::from_be_bytes(*t), b));
    Item { term: Term::new(term), payload: Payload::Membership, bytes: Bytes::copy_from_slice(bytes) }
}

impl Storage<Item> for Store {
    fn write_atomically(&mut self, ops: Vec<StorageOp<Item>>) -> StorageResult<()> {
        let mut state = self.state();
        let (mut accepted, mut decided, mut suffix) = (None, None, None);
        let mut stop = state.stop.clone();
        for op in ops {
            match op {
                StorageOp::SetAcceptedRound(n) => accepted = Some(round(n)),
                StorageOp::SetDecidedIndex(n) => decided = Some(n),
                StorageOp::AppendOnPrefix(from, items) => {
                    suffix = Some((from, items));
                    stop = None;
                }
                StorageOp::SetStopsign(new) => stop = new,
                // Only in what this replica never asks for: trimming, snapshots, and single steps.
                _ => {}
            }
        }
        let decided = decided.map(|n| state.index(n));
        match suffix {
            Some((from, mut items)) => {
                items.extend(stop.as_ref().map(stop_item));
                state.stop = stop;
                state.replace(from, items, accepted, decided);
            }
            None => {
                state.paxos.accepted = accepted.unwrap_or(state.paxos.accepted);
                state.paxos.decided = decided.unwrap_or(state.paxos.decided);
                state.note_state();
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: Item) -> StorageResult<()> {
        self.state().push([entry]);
        Ok(())
    }

    fn append_entries(&mut self, entries: Vec<Item>) -> StorageResult<()> {
        self.state().push(entries);
        Ok(())
    }

    fn append_on_prefix(&mut self, from_idx: usize, entries: Vec<Item>) -> StorageResult<()> {
        self.state().replace(from_idx, entries, None, None);
        Ok(())
    }

    fn set_promise(&mut self, n_prom: Ballot) -> StorageResult<()> {
        let mut state = self.state();
        let new = round(n_prom);
        if state.paxos.promised != new {
            state.paxos.promised = new;
            state.promise_pending = true;
            state.note_state();
        }
        Ok(())
    }

    fn set_decided_idx(&mut self, ld: usize) -> StorageResult<()> {
        let mut state = self.state();
        state.paxos.decided = state.index(ld);
        Ok(())
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        let state = self.state();
        Ok(state.position(state.paxos.decided))
    }

    fn set_accepted_round(&mut self, na: Ballot) -> StorageResult<()> {
        let mut state = self.state();
        state.paxos.accepted = round(na);
        state.note_state();
        Ok(())
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        let paxos = self.state().paxos;
        Ok((paxos.accepted != Round::default()).then(|| ballot(paxos.configuration, paxos.accepted)))
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<Item>> {
        let state = self.state();
        let entries = state.entries(state.index(from).next(), state.index(to).next(), usize::MAX);
        Ok(entries.unwrap_or_default().into_iter().map(item).collect())
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        Ok(self.state().len())
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<Item>> {
        Ok(self.state().suffix(from))
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        let paxos = self.state().paxos;
        Ok((paxos.promised != Round::default()).then(|| ballot(paxos.configuration, paxos.promised)))
    }

    fn set_stopsign(&mut self, s: Option<StopSign>) -> StorageResult<()> {
        let mut state = self.state();
        if state.stop.is_some() {
            let last = state.last;
            state.cut(last);
        }
        if let Some(stop) = &s {
            state.push([stop_item(stop)]);
        }
        state.stop = s;
        Ok(())
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        Ok(self.state().stop.clone())
    }

    fn trim(&mut self, _: usize) -> StorageResult<()> {
        Ok(())
    }

    fn set_compacted_idx(&mut self, _: usize) -> StorageResult<()> {
        Ok(())
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        // The log is trimmed underneath; the library is never asked for what is gone.
        Ok(0)
    }

    fn set_snapshot(&mut self, _: Option<NoSnapshot>) -> StorageResult<()> {
        Ok(())
    }

    fn get_snapshot(&self) -> StorageResult<Option<NoSnapshot>> {
        Ok(None)
    }
}
