//! The log writer: appends what all shards want durable, syncs once, reports.
//!
//! After a failed write the log takes nothing more: every shard of the node stops and reads go on. If the disk was full,
//! the node begins again, in place, when there is room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quorate_core::error::Fatal;
use quorate_core::log::{BaseRecord, HardState, Log, LogRecord};
use quorate_core::replica::PersistId;
use quorate_shared::ids::{ReplicaId, ShardId};

use super::{Event, Failure, Held, OnTrimmed, Shared};

/// Make these durable.
pub(crate) struct Job {
    pub shard: ShardId,
    pub replica: ReplicaId,
    pub id: PersistId,
    pub records: Vec<LogRecord>,
}

/// What the writer is given, in order.
pub(crate) enum Work {
    /// Records.
    Write(Job),
    /// A replica's log is to begin here.
    Trim { replica: ReplicaId, base: BaseRecord, done: OnTrimmed },
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    log: Box<dyn Log>,
    hard: BTreeMap<ShardId, HardState>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, log: Box<dyn Log>) -> Self {
        Self { shared, log, hard: BTreeMap::new() }
    }

    pub(super) fn run(mut self) {
        let mut work: Vec<Work> = Vec::new();
        while self.shared.writes.take(&mut work, None) {
            let (mut jobs, mut trims) = (Vec::with_capacity(work.len()), Vec::new());
            for item in work.drain(..) {
                match item {
                    Work::Write(job) => jobs.push(job),
                    Work::Trim { replica, base, done } => trims.push((replica, base, done)),
                }
            }
            self.shared.sync_since.store(self.shared.clock.now() + 1, Ordering::Relaxed);
            self.shared.hold(Held::Log, || self.shared.writes.is_closed());
            // A trim drops what was applied long ago: whether it comes before or after these writes makes no difference.
            let written = self.write(&jobs).and_then(|()| self.trim(trims));
            self.shared.sync_since.store(0, Ordering::Relaxed);
            if let Err(fatal) = written {
                let why = fatal.to_string();
                self.shared.inbox.push(Event::Stop(None, why.clone()));
                let what = if is_full(&fatal) { Failure::DiskFull } else { Failure::Log };
                self.shared.outgoing.failed(what, &why);
                return;
            }
            let mut done: BTreeMap<ShardId, PersistId> = BTreeMap::new();
            for job in jobs.drain(..) {
                done.insert(job.shard, job.id);
            }
            self.shared.inbox.push_all(done.into_iter().map(|(shard, id)| Event::Persisted(shard, id)));
        }
    }

    fn trim(&mut self, trims: Vec<(ReplicaId, BaseRecord, OnTrimmed)>) -> Result<(), Fatal> {
        for (replica, base, done) in trims {
            self.log.trim(replica, &base)?;
            done();
        }
        Ok(())
    }

    fn write(&mut self, jobs: &[Job]) -> Result<(), Fatal> {
        let mut must_sync = false;
        for job in jobs {
            must_sync |= self.matters(job);
            self.log.append(job.replica, job.shard, &job.records)?;
        }
        if must_sync {
            self.log.sync()?;
        }
        Ok(())
    }

    /// A commit index alone needs no sync of its own: it is found again.
    fn matters(&mut self, job: &Job) -> bool {
        let mut matters = false;
        for record in &job.records {
            match record {
                LogRecord::Hard(hard) => {
                    let before = self.hard.insert(job.shard, *hard);
                    matters |= before.is_none_or(|b| (b.term, b.vote) != (hard.term, hard.vote));
                }
                LogRecord::Entries(_)
                | LogRecord::Paxos(_)
                | LogRecord::Truncate(_)
                | LogRecord::Base(_)
                | LogRecord::Become { .. } => {
                    matters = true;
                }
            }
        }
        matters
    }
}

/// Whether an error means that there is no room. The engine's library wraps the system's error: its text decides then.
pub(crate) fn is_full(fatal: &Fatal) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*fatal.cause);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        }
        cause = error.source();
    }
    let text = format!("{:?}", fatal.cause);
    text.contains("StorageFull") || text.contains("No space left")
}
