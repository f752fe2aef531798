//! The applier: puts committed, locally durable entries into the engine, in small batches, and publishes how far it is.
//!
//! Invariant: the catalog is published before the index that carries it, so whoever waited for an index of `s0` sees at
//! least that catalog.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::catalog::Catalog;
use quorate_core::error::Fatal;
use quorate_core::log::LogEntry;
use quorate_core::machine::{Applied, Machine};
use quorate_core::mvcc::Snapshot;
use quorate_shared::ids::{CatalogVersion, ShardId};
use quorate_shared::limits::APPLY_BATCH_BYTES_MAX;

use super::{Clock, Event, Failure, Held, OnSnapshot, Shared};

/// How often the applier looks for old versions, busy or not, and at how many: a few milliseconds of work, and more of
/// them in a second than a busy node makes.
const COLLECT_EVERY: Duration = Duration::from_millis(200);
const COLLECT_BUDGET: usize = 4096;
/// With less room than this nothing is given to the engine: its library fails for good when the disk is full.
const ROOM_MIN: u64 = 16 << 20;
/// How often a waiting applier looks for room.
const ROOM_PAUSE: Duration = Duration::from_millis(200);

/// Apply these.
pub(crate) struct Job {
    pub shard: ShardId,
    pub entries: Vec<LogEntry>,
}

/// What the applier is given, in order.
pub(crate) enum Work {
    /// Entries.
    Apply(Job),
    /// Who wants a snapshot.
    Snapshot(ShardId, OnSnapshot),
}

pub(super) struct Applier {
    shared: Arc<Shared>,
    machines: BTreeMap<ShardId, Machine>,
}

impl Applier {
    pub(super) fn new(shared: Arc<Shared>, machines: BTreeMap<ShardId, Machine>) -> Self {
        Self { shared, machines }
    }

    pub(super) fn run(mut self) {
        let mut jobs: Vec<Work> = Vec::new();
        let mut collect_at = Instant::now() + COLLECT_EVERY;
        while self.shared.applies.take(&mut jobs, Some(collect_at)) {
            let mut by_shard: BTreeMap<ShardId, Vec<LogEntry>> = BTreeMap::new();
            let mut snapshots = Vec::new();
            for work in jobs.drain(..) {
                match work {
                    Work::Apply(mut job) => by_shard.entry(job.shard).or_default().append(&mut job.entries),
                    Work::Snapshot(shard, done) => snapshots.push((shard, done)),
                }
            }
            for (shard, entries) in by_shard {
                if let Err(fatal) = self.apply(shard, &entries) {
                    fail(&self.shared, &fatal);
                    return;
                }
            }
            for (shard, done) in snapshots {
                done(self.machines.get_mut(&shard).map(Machine::snapshot));
            }
            if Instant::now() >= collect_at {
                if let Err(fatal) = self.collect() {
                    fail(&self.shared, &fatal);
                    return;
                }
                collect_at = Instant::now() + COLLECT_EVERY;
            }
        }
    }

    /// Removes versions that nobody may read any more, a few at a time.
    fn collect(&mut self) -> Result<(), Fatal> {
        for machine in self.machines.values_mut() {
            guarded(|| machine.collect(Clock::wall(), COLLECT_BUDGET))?;
        }
        Ok(())
    }

    fn apply(&mut self, shard: ShardId, entries: &[LogEntry]) -> Result<(), Fatal> {
        let (Some(machine), Some(view)) = (self.machines.get_mut(&shard), self.shared.views.get(&shard)) else {
            return Ok(());
        };
        for batch in batches(entries) {
            wait_room(&self.shared);
            self.shared.hold(Held::Applier, || self.shared.applies.is_closed());
            let applied = guarded(|| machine.apply(batch))?;
            if applied.schema_changed && shard == ShardId::META {
                let snapshot = Snapshot::new(view.tree().clone(), applied.timestamp);
                let catalog = guarded(|| Catalog::load(&snapshot, CatalogVersion::new(applied.index.get())))?;
                self.shared.set_catalog(catalog);
            }
            view.publish(&applied);
            self.shared.inbox.push(Event::Applied(shard, applied));
        }
        Ok(())
    }
}

/// The engine has failed: everything stops.
pub(super) fn fail(shared: &Shared, fatal: &Fatal) {
    let why = fatal.to_string();
    let full = super::writer::is_full(fatal);
    if !full {
        shared.views.values().for_each(|view| view.set_unreadable());
    }
    shared.inbox.push(Event::Stop(None, why.clone()));
    let what = if full { Failure::EngineFull } else { Failure::Engine };
    shared.outgoing.failed(what, &why);
}

/// Waits while the disk is full. Reads of what is applied go on, and so does everything that is in the log already.
pub(super) fn wait_room(shared: &Shared) {
    let full = || shared.outgoing.free_bytes().is_some_and(|free| free < ROOM_MIN) && !shared.applies.is_closed();
    if !full() {
        return;
    }
    tracing::error!("DiskFull: nothing is applied until there is room");
    shared.views.values().for_each(|view| view.set_no_room(true));
    while full() {
        std::thread::sleep(ROOM_PAUSE);
    }
    shared.views.values().for_each(|view| view.set_no_room(false));
    tracing::info!("there is room: applies again");
}

/// Cuts entries into batches that the engine takes in a few milliseconds.
pub(crate) fn batches(entries: &[LogEntry]) -> impl Iterator<Item = &[LogEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.bytes.len() + 1;
                first || bytes <= APPLY_BATCH_BYTES_MAX
            })
            .count();
        let (batch, later) = rest.split_at_checked(count).filter(|(batch, _)| !batch.is_empty())?;
        rest = later;
        Some(batch)
    })
}

/// The engine's library panics on damage of its files; that is its failure, not ours.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, Fatal>) -> Result<T, Fatal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "it panicked".into());
        Err(Fatal::new("use the engine", message))
    })
}

/// What is applied in a tree, for callers that replay.
pub fn replay(machine: &mut Machine, entries: &[LogEntry]) -> Result<Option<Applied>, Fatal> {
    let mut last = None;
    for batch in batches(entries) {
        last = Some(guarded(|| machine.apply(batch))?);
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_core::log::Payload;
    use quorate_shared::ids::{Index, Term};

    use super::*;

    #[test]
    fn batches_hold_whole_entries_and_at_least_one() {
        let entry = |i: u64, bytes: usize| LogEntry {
            index: Index::new(i),
            term: Term::new(1),
            payload: Payload::Entry,
            bytes: Bytes::from(vec![0; bytes]),
        };
        let entries = [entry(1, 10), entry(2, APPLY_BATCH_BYTES_MAX + 5), entry(3, 10), entry(4, 10)];
        let sizes: Vec<usize> = batches(&entries).map(<[LogEntry]>::len).collect();
        assert_eq!(sizes, [1, 1, 2]);
    }
}
