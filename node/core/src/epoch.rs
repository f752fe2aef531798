//! Epochs: generations of a cluster's history, each begun by an entry.
//!
//! [`begin`] makes a replica the one voter of a new epoch: a log-shipped one that is promoted, or a survivor of a lost
//! quorum. Its log goes on, and the chain with it; the entry names the epoch and the membership that holds from there,
//! and its predecessor is where the epoch begins. Who learns of a newer epoch stops serving and [`rejoin`]s: what it has
//! behind that point, and nobody else, is written out and cut off.
//!
//! Invariants: an epoch's number is above those before it; two epochs of one number are two histories, and neither
//! follows the other ([`Relation::Conflict`]); nothing that was committed in an epoch before its end as this log knows
//! it is cut by [`begin`].

use std::io::Write;

use quorate_shared::ids::{Epoch, Hash, Index, ReplicaId, ShardId, Timestamp};
use quorate_shared::limits::APPEND_BYTES_MAX;

use crate::bug::{Bug, planted};
use crate::entry::{Body, Entry, EpochEntry};
use crate::error::Fatal;
use crate::join::last_id;
use crate::log::{EpochStart, HardState, Log, LogEntry, LogReader, LogRecord, Membership, Payload};
use crate::machine::Applied;
use crate::membership::{ChangeEntry, Host, Member};
use crate::ship::chain_at;

/// How another's epoch stands to ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// One history.
    Same,
    /// Theirs is of before ours.
    Older,
    /// Theirs is of after ours: stop serving.
    Newer,
    /// Two histories under one number: neither follows the other.
    Conflict,
}

/// How `theirs` stands to `ours`.
pub fn relation(ours: Epoch, theirs: Epoch) -> Relation {
    match theirs.number.cmp(&ours.number) {
        std::cmp::Ordering::Less => Relation::Older,
        std::cmp::Ordering::Greater => Relation::Newer,
        std::cmp::Ordering::Equal if theirs.id == ours.id => Relation::Same,
        std::cmp::Ordering::Equal => Relation::Conflict,
    }
}

/// A new epoch has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun {
    /// Where.
    pub start: EpochStart,
    /// Its one voter.
    pub replica: ReplicaId,
    /// Entries that were not known to be committed and are now.
    pub adopted: u64,
}

/// What the entries that are not applied change.
struct Tail {
    next: ReplicaId,
    timestamp: Timestamp,
    epoch: u64,
}

/// Begins an epoch in a log that nobody else writes: everything in it counts as committed from here on, and this replica
/// is the only voter. `wall` is the clock in milliseconds since 1970. The log is synced; to be opened anew afterwards.
pub fn begin(
    log: &mut dyn Log,
    reader: &dyn LogReader,
    (shard, me): (ShardId, Host),
    applied: &Applied,
    epoch: Epoch,
    wall: u64,
) -> Result<Begun, Fatal> {
    let doing = || format!("begin epoch {} of {shard}", epoch.number);
    let bounds = reader.bounds(shard).ok_or_else(|| Fatal::new(doing(), "its log is lost: there is no base record"))?;
    if applied.index > bounds.last {
        return Err(Fatal::new(doing(), format!("applied {}, but the log ends at {}", applied.index, bounds.last)));
    }
    let tail = tail(reader, shard, applied, bounds.last)?;
    if epoch.number <= tail.epoch {
        return Err(Fatal::new(doing(), format!("epoch {} is there already", tail.epoch)));
    }
    let chain = if applied.index == bounds.last {
        applied.chain
    } else {
        let known = chain_at(reader, shard, bounds.last)?;
        known.ok_or_else(|| Fatal::new(doing(), format!("the log has no entry {}", bounds.last)))?
    };
    // An interrupted attempt has taken the next id already: it is this replica's.
    let replica = tail.next.max(bounds.replica);
    let member = Member { replica, node: me.node, nonce: me.nonce };
    let membership = Membership {
        voters: vec![member],
        next: replica.next(),
        changes: applied.membership.changes + 1,
        ..Membership::default()
    };
    let (index, term) = (bounds.last.next(), bounds.hard.term.max(bounds.last_term).next());
    let timestamp = Timestamp::new(wall, 0).max(tail.timestamp.next());
    let body = Body::Epoch(EpochEntry { epoch, membership });
    let entry = Entry { index, previous: chain, timestamp, body }.logged(term);
    let hard = HardState { term, vote: replica, commit: bounds.committed().max(applied.index) };
    if bounds.replica == replica {
        log.append(replica, shard, &[LogRecord::Hard(hard)])?;
    } else {
        log.append(bounds.replica, shard, &[LogRecord::Become { replica, hard }])?;
    }
    let all = HardState { commit: index, ..hard };
    log.append(replica, shard, &[LogRecord::Entries(vec![entry]), LogRecord::Hard(all)])?;
    log.sync()?;
    let adopted = if bounds.replica == ReplicaId::NONE { 0 } else { bounds.last.get() - hard.commit.get() };
    Ok(Begun { start: EpochStart { index: bounds.last, chain }, replica, adopted })
}

fn tail(reader: &dyn LogReader, shard: ShardId, applied: &Applied, last: Index) -> Result<Tail, Fatal> {
    let mut out = Tail { next: applied.membership.next, timestamp: applied.timestamp, epoch: applied.epoch.number };
    each(reader, shard, applied.index.next(), last, |entry| {
        match entry.payload {
            Payload::Membership => {
                let change =
                    ChangeEntry::decode(&entry.bytes).map_err(|e| Fatal::new("read a membership change", e))?;
                out.next = out.next.max(change.after.next);
            }
            Payload::Entry => {
                let entry = Entry::decode(&entry.bytes)?;
                out.timestamp = out.timestamp.max(entry.timestamp);
                if let Body::Epoch(begun) = entry.body {
                    out.epoch = out.epoch.max(begun.epoch.number);
                    out.next = out.next.max(begun.membership.next);
                }
            }
            Payload::Empty => {}
        }
        Ok(())
    })?;
    Ok(out)
}

fn each(
    reader: &dyn LogReader,
    shard: ShardId,
    from: Index,
    last: Index,
    mut visit: impl FnMut(&LogEntry) -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    let mut at = from;
    while at <= last {
        let entries = reader.entries(shard, at, last.next(), APPEND_BYTES_MAX)?;
        let Some(end) = entries.last() else {
            return Err(Fatal::new(format!("read {shard}"), format!("the log has no entry {at}")));
        };
        at = end.index.next();
        entries.iter().try_for_each(&mut visit)?;
    }
    Ok(())
}

/// What became of a log whose cluster is in a newer epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejoined {
    /// It is a log-shipped replica's, as of the start of the newer epoch or before.
    Cut {
        /// Entries that were only here.
        entries: u64,
        /// The engine has applied some of them and must be rebuilt.
        rebuild: bool,
    },
    /// It has no point in common with the newer epoch's that it still knows: it must begin again from nothing. Nothing
    /// was changed; `entries` are what was written out.
    Drop {
        /// Entries written out.
        entries: u64,
    },
}

/// Makes the log of a fenced replica that of a log-shipped one again: what is behind the start of the newer epoch is
/// written to `suffix` (a line each: index, term, kind, bytes in hex) and cut. `applied` is the machine's index. The
/// replica must not run; the caller makes `suffix` durable when it is told how many entries there were, before the log is
/// used.
pub fn rejoin(
    log: &mut dyn Log,
    reader: &dyn LogReader,
    shard: ShardId,
    applied: Index,
    start: EpochStart,
    suffix: &mut dyn Write,
) -> Result<Rejoined, Fatal> {
    let doing = || format!("rejoin {shard}");
    let bounds = reader.bounds(shard).ok_or_else(|| Fatal::new(doing(), "its log is lost: there is no base record"))?;
    let ours = if start.index <= bounds.last { chain_at(reader, shard, start.index)? } else { None };
    let common = match ours {
        // It ends before the newer epoch begins: the stream's own check will say whether it agrees.
        None if start.index > bounds.last => Some(bounds.last),
        Some(ours) if ours == start.chain => Some(start.index),
        _ => None,
    };
    // What a member had not known to be committed may not be what the others have there.
    let committed = bounds.committed();
    let keep = match common {
        Some(common) if bounds.replica == ReplicaId::NONE || ours.is_some() => common,
        Some(_) => committed,
        None => bounds.base.index,
    };
    let mut entries = 0;
    each(reader, shard, keep.next(), bounds.last, |entry| {
        entries += 1;
        write_line(suffix, entry).map_err(|e| Fatal::new(doing(), e))
    })?;
    suffix.flush().map_err(|e| Fatal::new(doing(), e))?;
    if common.is_none() {
        return Ok(Rejoined::Drop { entries });
    }
    let keep = if planted(Bug::RejoinUncut) { bounds.last } else { keep };
    let term = reader.term(shard, keep)?.unwrap_or(bounds.base.term);
    let mut records = Vec::new();
    if keep < bounds.last {
        records.push(LogRecord::Truncate(keep.next()));
    }
    let hard = HardState { term, vote: last_id(&bounds), commit: keep };
    records.push(LogRecord::Become { replica: ReplicaId::NONE, hard });
    log.append(bounds.replica, shard, &records)?;
    log.sync()?;
    Ok(Rejoined::Cut { entries, rebuild: applied > keep })
}

fn write_line(out: &mut dyn Write, entry: &LogEntry) -> std::io::Result<()> {
    let kind = match entry.payload {
        Payload::Entry => "entry",
        Payload::Empty => "empty",
        Payload::Membership => "membership",
    };
    write!(out, "{} {} {kind} ", entry.index, entry.term.get())?;
    entry.bytes.iter().try_for_each(|b| write!(out, "{b:02x}"))?;
    writeln!(out)
}

/// The start that an entry of [`Body::Epoch`] at an index stands for.
pub(crate) fn start_of(index: Index, previous: Hash) -> EpochStart {
    EpochStart { index: Index::new(index.get().saturating_sub(1)), chain: previous }
}

#[cfg(test)]
mod tests;
