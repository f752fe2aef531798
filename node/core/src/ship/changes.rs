//! One table's changes, read out of a shard's log: what a change feed delivers.
//!
//! A [`Changes`] stands at a point of the log and is fed the entries behind it, committed and applied. It follows the
//! table's definition by the fences it meets, so a row is decoded by the definition that was in force where it was
//! written. Whether a write was an insert or an update is looked up in the tree as of just before the entry; where that
//! is older than the history kept, it is an [`FeedOp::Upsert`].
//!
//! Invariants: what comes out depends on the log, the tree's history and the point only, so that a token taken anywhere
//! goes on with exactly what follows; void entries deliver nothing, as they change nothing. A reader that goes on gets the
//! definition its token names, which tells the rows' storage, or it is refused: under another one it would leave out rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::feed::{Change, FeedColumns, FeedOp, FeedToken};
use quorate_shared::ids::{Epoch, Hash, Index, IndexId, SchemaVersion, ShardId, TableId, Timestamp};
use quorate_shared::limits::APPEND_BYTES_MAX;
use quorate_shared::wire::Column;

use super::chain_at;
use crate::engine::Tree;
use crate::entry::{self, Body, Entry, Kind, Transaction};
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::log::{LogEntry, LogReader, Payload};
use crate::mvcc::{self, Snapshot};
use crate::row::Projection;
use crate::table::{ColumnPos, TableDef};

/// Where a feed begins.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The shard.
    pub shard: ShardId,
    /// The server's epoch.
    pub epoch: Epoch,
    /// The table's catalog id.
    pub table: TableId,
    /// Entries behind this one are read.
    pub index: Index,
    /// The chain hash there.
    pub chain: Hash,
    /// So many changes are left out, delivered already.
    pub skip: u32,
}

/// Why a token cannot be gone on from.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum BadToken {
    /// The log does not reach back to it any more.
    #[error("needs a snapshot: the log of this node begins after entry {first}, the token stands at {at}")]
    NeedsSnapshot {
        /// The point before the first entry.
        first: Index,
        /// The token's.
        at: Index,
    },
    /// This log has another history there.
    #[error("the token is of another cluster or epoch: {}, and the histories differ at entry {at}", differ(.theirs, .ours))]
    OtherEpoch {
        /// The token's epoch.
        theirs: Epoch,
        /// The server's.
        ours: Epoch,
        /// The token's point.
        at: Index,
    },
    /// Not here yet.
    #[error("the token stands at entry {at}, this node has applied {applied}")]
    Ahead {
        /// The token's point.
        at: Index,
        /// What is applied here.
        applied: Index,
    },
    /// The table was altered or emptied behind the token, and what it was like there is kept no longer.
    #[error(
        "needs a snapshot: the token stands at entry {at} under the table's definition {version}, which is kept no longer"
    )]
    Forgotten {
        /// The token's point.
        at: Index,
        /// The definition's version.
        version: SchemaVersion,
    },
    /// It was dropped, and what it was like is kept no longer.
    #[error("the table of the token does not exist any more")]
    NoTable,
}

/// A reader of one table's changes.
pub struct Changes {
    start: Start,
    tree: Arc<dyn Tree>,
    table: Option<Known>,
    timestamp: Timestamp,
    /// Changes delivered behind `start.index`, left out ones included.
    delivered: u32,
}

/// The table as of the point.
struct Known {
    def: Arc<TableDef>,
    shown: Vec<ColumnPos>,
    row: Projection,
    /// The reader has not been told its columns yet.
    news: bool,
}

/// What [`Changes::read`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// Changes in log order; the columns are given before the first change that has them.
    pub parts: Vec<Part>,
    /// The table was dropped: nothing follows.
    pub dropped: Option<String>,
}

/// A step of a feed.
#[derive(Debug)]
pub enum Part {
    /// From here on the values are called so.
    Columns(FeedColumns),
    /// A change.
    Change(Change),
}

impl Changes {
    /// From now: behind what the tree has applied at `start`.
    pub fn from_now(start: Start, tree: Arc<dyn Tree>) -> Result<Option<Self>, Fatal> {
        let Some(def) = current(&*tree, start.table)? else { return Ok(None) };
        Self::new(Start { skip: 0, ..start }, tree, def).map(Some)
    }

    /// Behind a token, checked against this log. The epoch began behind an index; `applied` is how far the tree is. `older`
    /// finds the definition of the token's table and version where the tree has a newer one, as far as it is kept
    /// elsewhere than in the log.
    pub fn from_token(
        log: &dyn LogReader,
        tree: Arc<dyn Tree>,
        token: &FeedToken,
        (epoch, began): (Epoch, Index),
        applied: Index,
        older: &dyn Fn() -> Result<Option<TableDef>, Fatal>,
    ) -> Result<Result<Self, BadToken>, Fatal> {
        let at = token.index;
        let other = || BadToken::OtherEpoch { theirs: token.epoch, ours: epoch, at };
        if token.epoch.number > epoch.number {
            return Ok(Err(other()));
        }
        let base = log.bounds(token.shard).map_or(applied, |bounds| bounds.base.index);
        if at < base {
            return Ok(Err(BadToken::NeedsSnapshot { first: base, at }));
        }
        if at > applied {
            return Ok(Err(if token.epoch == epoch { BadToken::Ahead { at, applied } } else { other() }));
        }
        let chain = match chain_at(log, token.shard, at)? {
            Some(chain) if FeedToken::check_of(&chain) == token.check => chain,
            _ => return Ok(Err(other())),
        };
        // What it stands in the middle of must be the entry that follows here, too.
        let elsewhere = token.epoch != epoch && at >= began;
        if token.skip > 0 && (elsewhere || begins_epoch(log, token.shard, at.next())?) {
            return Ok(Err(other()));
        }
        let (shard, table, skip) = (token.shard, token.table, token.skip);
        let start = Start { shard, epoch, table, index: at, chain, skip };
        match definition(log, &*tree, token, base, older)? {
            Ok(def) => Self::new(start, tree, def).map(Ok),
            Err(bad) => Ok(Err(bad)),
        }
    }

    fn new(start: Start, tree: Arc<dyn Tree>, def: Arc<TableDef>) -> Result<Self, Fatal> {
        let table = Some(Known::new(def)?);
        Ok(Self { start, tree, table, timestamp: Timestamp::MIN, delivered: 0 })
    }

    /// The last entry read.
    pub fn index(&self) -> Index {
        self.start.index
    }

    /// Goes on behind everything read.
    pub fn token(&self) -> FeedToken {
        // After a read nothing is left to be skipped, unless the entries with it have not come yet.
        self.token_behind(self.start.skip.max(self.delivered))
    }

    fn token_behind(&self, skip: u32) -> FeedToken {
        let Start { shard, epoch, table, index, chain, .. } = self.start;
        let version = self.table.as_ref().map(|known| known.def.version).unwrap_or_default();
        FeedToken { shard, epoch, table, version, index, check: FeedToken::check_of(&chain), skip }
    }

    /// What entries that follow change; they are committed and applied to the tree.
    pub fn read(&mut self, entries: &[LogEntry]) -> Result<Found, Fatal> {
        let mut found = Found::default();
        for log_entry in entries {
            if log_entry.index <= self.start.index {
                continue;
            }
            if log_entry.index != self.start.index.next() {
                let cause = format!("entry {} does not follow {}", log_entry.index, self.start.index);
                return Err(Fatal::new("read changes", cause));
            }
            if found.dropped.is_none() && log_entry.payload == Payload::Entry {
                self.read_entry(log_entry, &mut found)?;
            }
            self.start.chain = entry::chain(self.start.chain, log_entry);
            self.start.index = log_entry.index;
            (self.start.skip, self.delivered) = (0, 0);
        }
        if let Some(known) = &mut self.table
            && std::mem::take(&mut known.news)
        {
            found.parts.push(Part::Columns(known.columns()));
        }
        Ok(found)
    }

    fn read_entry(&mut self, log_entry: &LogEntry, found: &mut Found) -> Result<(), Fatal> {
        let header = Entry::header(&log_entry.bytes)?;
        let void = header.previous != self.start.chain
            || header.index != log_entry.index
            || header.timestamp <= self.timestamp;
        if void {
            return Ok(());
        }
        let entry = Entry::decode(&log_entry.bytes)?;
        self.timestamp = entry.timestamp;
        let Body::Write(transactions) = &entry.body else { return Ok(()) };
        let mut seen = BTreeMap::new();
        for transaction in transactions {
            self.read_transaction(transaction, entry.timestamp, &mut seen, found)?;
        }
        Ok(())
    }

    fn read_transaction(
        &mut self,
        transaction: &Transaction,
        timestamp: Timestamp,
        seen: &mut BTreeMap<Bytes, bool>,
        found: &mut Found,
    ) -> Result<(), Fatal> {
        for (key, row) in &transaction.writes {
            let Some(known) = &self.table else { break };
            match keys::split_data(key) {
                Ok((storage, IndexId::PRIMARY, _)) if storage == known.def.storage => {}
                _ => continue,
            }
            let before = match seen.insert(key.clone(), row.is_some()) {
                Some(was) => Some(was),
                None => existed(&self.tree, &known.def, key, timestamp)?,
            };
            let op = match (row, before) {
                (None, Some(false)) => {
                    // Counted, so that a token means the same when this can be told no longer.
                    self.delivered += 1;
                    continue;
                }
                (None, _) => FeedOp::Delete,
                (Some(_), Some(true)) => FeedOp::Update,
                (Some(_), Some(false)) => FeedOp::Insert,
                (Some(_), None) => FeedOp::Upsert,
            };
            let key = keys::decode_primary_key(&known.def, key).map_err(|e| Fatal::new("read changes", e))?;
            let row = row.as_ref().map(|row| known.row.values(row)).transpose()?;
            self.deliver(op, key, row, timestamp, found);
        }
        for (table, def) in &transaction.fences {
            if *table == self.start.table {
                self.fenced(def.as_ref(), timestamp, found)?;
            }
        }
        Ok(())
    }

    /// The table has another definition from here on.
    fn fenced(&mut self, def: Option<&TableDef>, timestamp: Timestamp, found: &mut Found) -> Result<(), Fatal> {
        let before = self.table.as_ref().map(|known| known.def.clone());
        let Some(def) = def else {
            self.table = None;
            found.dropped = Some(before.map(|def| def.name.clone()).unwrap_or_default());
            return Ok(());
        };
        let news = self.table.as_ref().map(Known::columns);
        let mut known = Known::new(Arc::new(def.clone()))?;
        // Many steps of a job change nothing that is shown.
        known.news = self.table.as_ref().is_none_or(|old| old.news) || news.as_ref() != Some(&known.columns());
        self.table = Some(known);
        if before.is_some_and(|before| before.storage != def.storage) {
            self.deliver(FeedOp::Truncate, Vec::new(), None, timestamp, found);
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        op: FeedOp,
        key: Vec<quorate_shared::value::Value>,
        row: Option<Vec<quorate_shared::value::Value>>,
        timestamp: Timestamp,
        found: &mut Found,
    ) {
        self.delivered += 1;
        if self.delivered <= self.start.skip {
            return;
        }
        if let Some(known) = &mut self.table
            && std::mem::take(&mut known.news)
        {
            found.parts.push(Part::Columns(known.columns()));
        }
        let token = self.token_behind(self.delivered);
        found.parts.push(Part::Change(Change { op, key, row, timestamp, token }));
    }
}

impl Known {
    fn new(def: Arc<TableDef>) -> Result<Self, Fatal> {
        let all = (0..).zip(&def.columns);
        let shown: Vec<ColumnPos> = all.filter(|(_, c)| !c.hidden && !c.dropped).map(|(at, _)| at).collect();
        let row = Projection::new(&def, &shown)?;
        Ok(Self { def, shown, row, news: true })
    }

    fn columns(&self) -> FeedColumns {
        let named = |list: &[ColumnPos]| {
            let columns = list.iter().filter_map(|at| self.def.columns.get(usize::from(*at)));
            columns.map(|column| Column { name: column.name.clone(), ty: column.ty }).collect()
        };
        FeedColumns { table: self.def.name.clone(), key: named(&self.def.primary_key), row: named(&self.shown) }
    }
}

/// The epochs of a token and of a server: by number, and by id where that is what differs.
fn differ(theirs: &Epoch, ours: &Epoch) -> String {
    let number = ours.number;
    match theirs.number == number {
        true if theirs.id == ours.id => format!("both are in epoch {number}"),
        true => {
            format!("it was given in epoch {number} of id {:016x}, this is another, of id {:016x}", theirs.id, ours.id)
        }
        false => format!("it was given in epoch {}, this is epoch {number}", theirs.number),
    }
}

/// Whether a row was there just before a timestamp; `None`: that is older than the history kept, or the row was purged
/// since with the storage it was in.
fn existed(tree: &Arc<dyn Tree>, def: &TableDef, key: &[u8], timestamp: Timestamp) -> Result<Option<bool>, Fatal> {
    let before = Timestamp::from_raw(timestamp.raw().saturating_sub(1));
    let snapshot = Snapshot::new(tree.clone(), before);
    match snapshot.get(key) {
        Ok(Some(_)) => Ok(Some(true)),
        Ok(None) => {
            let gone = mvcc::newest(&**tree, key)?.is_none()
                && current(&**tree, def.id)?.is_none_or(|now| now.storage != def.storage);
            Ok((!gone).then_some(false))
        }
        Err(_) if before < mvcc::horizon(&**tree)? => Ok(None),
        Err(fatal) => Err(fatal),
    }
}

/// Whether an epoch begins with an entry.
fn begins_epoch(log: &dyn LogReader, shard: ShardId, index: Index) -> Result<bool, Fatal> {
    let entry = log.entries(shard, index, index.next(), 0)?.into_iter().next();
    Ok(entry.is_some_and(|entry| {
        entry.payload == Payload::Entry && Entry::header(&entry.bytes).is_ok_and(|header| header.kind == Kind::Epoch)
    }))
}

/// A table as the tree has it now.
fn current(tree: &dyn Tree, table: TableId) -> Result<Option<Arc<TableDef>>, Fatal> {
    let Some(bytes) = tree.get(&Key::Table(table).encode())? else { return Ok(None) };
    let def = entry::decode_table(&bytes).ok_or_else(|| Fatal::new("read a table's definition", "it is malformed"))?;
    Ok(Some(Arc::new(def)))
}

/// A table as of a token, by the version that the token names: from the tree where nothing has changed since, from where
/// older ones are kept, or from the log up to the token.
fn definition(
    log: &dyn LogReader,
    tree: &dyn Tree,
    token: &FeedToken,
    base: Index,
    older: &dyn Fn() -> Result<Option<TableDef>, Fatal>,
) -> Result<Result<Arc<TableDef>, BadToken>, Fatal> {
    let named = |def: &TableDef| def.id == token.table && def.version == token.version;
    let now = current(tree, token.table)?;
    if let Some(now) = now.as_ref().filter(|now| named(now)) {
        return Ok(Ok(now.clone()));
    }
    if let Some(def) = older()?.filter(named) {
        return Ok(Ok(Arc::new(def)));
    }
    let mut next = base.next();
    // A token in the middle of an entry may have been given behind a fence in that entry.
    let last = log.bounds(token.shard).map_or(base, |bounds| bounds.last).min(token.index.next());
    while next <= last {
        let entries = log.entries(token.shard, next, last.next(), APPEND_BYTES_MAX)?;
        let mut defs = entries.iter().flat_map(|entry| fences(entry, token.table));
        if let Some(def) = defs.find(named) {
            return Ok(Ok(Arc::new(def)));
        }
        match entries.last() {
            Some(entry) => next = entry.index.next(),
            None => break,
        }
    }
    Ok(Err(match now {
        Some(_) => BadToken::Forgotten { at: token.index, version: token.version },
        None => BadToken::NoTable,
    }))
}

fn fences(log_entry: &LogEntry, table: TableId) -> Vec<TableDef> {
    if log_entry.payload != Payload::Entry {
        return Vec::new();
    }
    match Entry::decode(&log_entry.bytes).map(|entry| entry.body) {
        Ok(Body::Write(transactions)) => {
            let all = transactions.into_iter().flat_map(|transaction| transaction.fences);
            all.filter(|(id, _)| *id == table).filter_map(|(_, def)| def).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
