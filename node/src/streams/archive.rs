//! A shard's log for a backup: a base, entries as they are applied here, digests, signs of life.
//!
//! What is sent is committed and applied on this node. A [`ArchivePart::Beat`] says up to when everything acknowledged has
//! been sent: it takes a linearizable read of the shard, so a node that is cut off goes on sending what it has and says
//! no such thing, and the archive is seen to age.
//!
//! Invariant: nothing that comes out of the engine (a base, digests) is sent while the engine is not trusted: after an
//! unclean stop a base is refused until the engine has been looked through, and digests wait. Entries come from the log.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_core::entry::{self, Entry};
use quorate_core::error::Fatal;
use quorate_core::log::{BaseRecord, LogEntry, LogReader, Payload};
use quorate_core::machine::refound::{Digests, digests};
use quorate_core::ship::chain_at;
use quorate_shared::archive::{ArchiveBase, ArchiveMark, ArchivePart, ArchivePoint, ArchivedEntries, TableDigest};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Epoch, Hash, Index, ShardId, Timestamp};
use quorate_shared::limits::APPEND_BYTES_MAX;
use quorate_shared::wire::{ReadLevel, Response};

use super::{CATCH_UP, NodeStreams, internal, stopped};
use crate::driver::Clock;
use crate::driver::view::ShardView;
use crate::forward::NodeRouter;
use crate::router::Router;
use crate::serve::StreamSink;

/// How often the reader is told that everything has been sent.
const BEAT: Duration = Duration::from_millis(500);
/// How often digests are sent while there is something new.
const MARK: Duration = Duration::from_secs(1);
/// Tries to read digests that entries do not change meanwhile, before it is left for later.
const MARK_TRIES: usize = 50;
/// A write that is on its way has a timestamp no older than this; it covers what clocks may differ by, too.
const ON_ITS_WAY_MS: u64 = 1_000;
/// How long a quorum may take to confirm that a node is up to date.
const CONFIRM: Duration = Duration::from_secs(1);
/// Entries that come in this time are sent together.
const GATHER: Duration = Duration::from_millis(20);
/// Pause behind a piece of a snapshot: as long as it took to read and to send, at least and at most this.
const PIECE_PAUSE: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(100));

/// Where a stream is.
struct At {
    shard: ShardId,
    index: Index,
    chain: Hash,
    /// Digests that wait until the entries up to their index have been sent.
    mark: Option<Digests>,
    marked: Index,
    marked_at: Option<Instant>,
}

impl NodeStreams {
    pub(super) async fn run_archive(
        &self,
        shard: ShardId,
        after: Option<ArchivePoint>,
        once: bool,
        sink: &dyn StreamSink,
    ) -> Result<(), WireError> {
        let (view, log) = self.view(shard)?;
        if once || after.is_none() {
            self.trusted(shard)?;
        }
        let point = match after {
            None => self.send_base(shard, &view, log, sink).await?,
            Some(point) => {
                // Whether it came in time is seen below.
                let _ = tokio::time::timeout(CATCH_UP, view.wait_applied(point.index)).await;
                self.check_ahead(&view, &point).await?;
                check(log, shard, &point, view.applied())?;
                point
            }
        };
        if once && self.confirmed(shard).await.is_none() {
            let message = format!("nobody confirms that this node has everything of {shard} that is committed");
            return Err(WireError::new(Code::Retry, message));
        }
        let goal = once.then(|| view.applied());
        let (index, chain, marked) = (point.index, point.chain, Index::new(0));
        let mut at = At { shard, index, chain, mark: None, marked, marked_at: None };
        let mut beat: Option<Instant> = None;
        loop {
            let (view, log) = self.view(shard)?;
            let due = goal.is_some() || beat.is_none_or(|beat| beat.elapsed() >= BEAT);
            let confirmed = if due { self.confirmed(shard).await } else { None };
            let point = view.applied_point();
            at.send_entries(log, point.index, sink).await?;
            let done = self.trusted(shard).is_ok() && at.send_mark(&view, goal, sink).await?;
            if let Some(wall) = confirmed {
                let until_ms = point.timestamp.ms().max(wall.saturating_sub(ON_ITS_WAY_MS));
                send(sink, ArchivePart::Beat { index: at.index, until_ms }).await?;
                beat = Some(Instant::now());
            }
            if done {
                return send(sink, ArchivePart::End).await;
            }
            if goal.is_none() && tokio::time::timeout(BEAT, view.wait_applied(at.index.next())).await == Ok(false) {
                return Err(stopped(shard, &view.stopped().unwrap_or_default()));
            }
            // So that a busy shard's entries come in batches.
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Refuses what would be made of an engine that may be damaged.
    fn trusted(&self, shard: ShardId) -> Result<(), WireError> {
        if self.source()?.engine.is_trusted() {
            return Ok(());
        }
        let message = format!("EngineUnchecked: no backup of {shard} from this node until its engine has been checked");
        let detail = "it did not stop cleanly; what it stored is being compared with what was applied";
        Err(WireError::new(Code::Retry, message).detail(detail).hint("seconds per GB; another node serves it at once"))
    }

    /// Refuses an archive that goes further than anything committed: what it has behind that was lost with its epoch.
    async fn check_ahead(&self, view: &ShardView, point: &ArchivePoint) -> Result<(), WireError> {
        let ahead = || point.index > view.applied();
        if ahead() && self.confirmed(view.shard).await.is_some() && ahead() {
            let why = format!("it goes on to entry {}, everything committed ends at {}", point.index, view.applied());
            return Err(other_history(view.shard, point, &why));
        }
        Ok(())
    }

    /// A moment before which everything acknowledged is applied here now; `None`: nobody confirms it.
    async fn confirmed(&self, shard: ShardId) -> Option<u64> {
        let wall = Clock::wall();
        let router = NodeRouter(self.forwarder.clone());
        router.read(shard, &ReadLevel::Linearizable, Instant::now() + CONFIRM).await.ok().map(|_| wall)
    }

    /// Begins an archive: a snapshot of what is applied now; a shard that nothing was ever applied to begins empty.
    async fn send_base(
        &self,
        shard: ShardId,
        view: &ShardView,
        log: &dyn LogReader,
        sink: &dyn StreamSink,
    ) -> Result<ArchivePoint, WireError> {
        let cluster = NodeRouter(self.forwarder.clone()).identity().cluster;
        let cluster = cluster.ok_or_else(|| self.forwarder.unavailable())?;
        if view.applied() == Index::new(0) {
            let bounds = log.bounds(shard).ok_or_else(|| super::no_replica(shard))?;
            send(sink, ArchivePart::Base(base_part(cluster, &bounds.base, false)?)).await?;
            return Ok(point_of(&bounds.base));
        }
        let driver = self.forwarder.driver().ok_or_else(|| self.forwarder.unavailable())?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // The client has gone when the receiver is gone.
        driver.snapshot(shard, Box::new(move |source| drop(sender.send(source))));
        let source = receiver.await.ok().flatten();
        let mut source = source.ok_or_else(|| stopped(shard, &view.stopped().unwrap_or_default()))?;
        let base = source.head().base.clone();
        send(sink, ArchivePart::Base(base_part(cluster, &base, true)?)).await?;
        let mut offset = 0;
        let mut held: Option<Bytes> = None;
        loop {
            let began = Instant::now();
            // Rows are read from disk: not on a thread that others wait for.
            let read = tokio::task::spawn_blocking(move || {
                let piece = source.next_chunk();
                (source, piece)
            });
            let (again, piece) = read.await.map_err(|e| internal(Fatal::new("read a snapshot", e)))?;
            source = again;
            let piece = piece.map_err(internal)?;
            if let Some(bytes) = held.take() {
                let (at, last) = (offset, piece.is_none());
                offset += bytes.len() as u64;
                send(sink, ArchivePart::Snapshot { offset: at, bytes: bytes.into(), last }).await?;
            }
            // Whoever writes meanwhile is to notice little of it.
            tokio::time::sleep(began.elapsed().clamp(PIECE_PAUSE.0, PIECE_PAUSE.1)).await;
            match piece {
                Some(piece) => held = Some(piece),
                None => return Ok(point_of(&base)),
            }
        }
    }
}

/// The part that begins an archive.
fn base_part(
    cluster: quorate_shared::ids::ClusterId,
    base: &BaseRecord,
    snapshot: bool,
) -> Result<ArchiveBase, WireError> {
    let record = postcard::to_stdvec(base).map_err(|e| internal(Fatal::new("encode a base record", e)))?;
    Ok(ArchiveBase { cluster, point: point_of(base), timestamp: base.timestamp, record, snapshot })
}

fn point_of(base: &BaseRecord) -> ArchivePoint {
    ArchivePoint { epoch: base.epoch, index: base.index, chain: base.chain }
}

async fn send(sink: &dyn StreamSink, part: ArchivePart) -> Result<(), WireError> {
    sink.send(Response::Archive(part)).await
}

/// Whether the log can be gone on with behind a point.
fn check(log: &dyn LogReader, shard: ShardId, point: &ArchivePoint, applied: Index) -> Result<(), WireError> {
    let index = point.index;
    let first = log.bounds(shard).map_or(applied, |bounds| bounds.base.index);
    if index < first {
        let message =
            format!("needs a snapshot: the log of {shard} begins after entry {first}, the archive ends at {index}");
        return Err(WireError::new(Code::Invalid, message)
            .hint("begin a new backup in another directory; this one can be restored up to its end"));
    }
    if index > applied {
        return Err(WireError::new(
            Code::Retry,
            format!("the archive ends at entry {index}, this node is at {applied}"),
        ));
    }
    match chain_at(log, shard, index).map_err(internal)? {
        Some(chain) if chain == point.chain => Ok(()),
        _ => Err(other_history(shard, point, &format!("entry {index} differs"))),
    }
}

fn other_history(shard: ShardId, point: &ArchivePoint, why: &str) -> WireError {
    let Epoch { number, .. } = point.epoch;
    let message = format!("the archive (begun in epoch {number}) has another history of {shard}: {why}");
    WireError::new(Code::Invalid, message)
        .hint("begin a new backup in another directory; this one can be restored up to its end")
}

impl At {
    async fn send_entries(
        &mut self,
        log: &dyn LogReader,
        applied: Index,
        sink: &dyn StreamSink,
    ) -> Result<(), WireError> {
        while self.index < applied {
            let next = self.index.next();
            if let Some(bounds) = log.bounds(self.shard).filter(|bounds| next <= bounds.base.index) {
                let (epoch, index, chain) = (bounds.base.epoch, self.index, self.chain);
                check(log, self.shard, &ArchivePoint { epoch, index, chain }, applied)?;
            }
            let entries = log.entries(self.shard, next, applied.next(), APPEND_BYTES_MAX).map_err(internal)?;
            let part = self.entries(&entries)?;
            send(sink, part).await?;
            self.flush_mark(sink).await?;
        }
        Ok(())
    }

    fn entries(&mut self, entries: &[LogEntry]) -> Result<ArchivePart, WireError> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Err(internal(Fatal::new("archive the log", format!("it has no entry {}", self.index.next()))));
        };
        let (first, last) = (first.index, last.index);
        self.chain = entries.iter().fold(self.chain, entry::chain);
        self.index = last;
        let mut times = entries.iter().filter(|e| e.payload == Payload::Entry).map(time_of);
        let first_time = times.next().unwrap_or_default();
        let last_time = times.last().unwrap_or(first_time);
        let bytes = postcard::to_stdvec(entries).map_err(|e| internal(Fatal::new("encode entries", e)))?;
        let chain = self.chain;
        Ok(ArchivePart::Entries(ArchivedEntries { first, last, chain, first_time, last_time, bytes }))
    }

    /// Takes and sends digests when it is time. Whether everything asked for has been sent.
    async fn send_mark(
        &mut self,
        view: &ShardView,
        goal: Option<Index>,
        sink: &dyn StreamSink,
    ) -> Result<bool, WireError> {
        let reached = goal.is_some_and(|goal| self.index >= goal);
        let due = reached || self.marked_at.is_none_or(|at| at.elapsed() >= MARK);
        if self.mark.is_none() && due && self.index > self.marked {
            for _ in 0..MARK_TRIES {
                self.mark = digests(&**view.tree()).map_err(internal)?;
                if self.mark.is_some() {
                    break;
                }
            }
            self.marked_at = Some(Instant::now());
        }
        self.flush_mark(sink).await?;
        // Nothing was ever applied, or the digests have been sent.
        Ok(reached && self.mark.is_none() && (self.marked > Index::new(0) || self.index == Index::new(0)))
    }

    async fn flush_mark(&mut self, sink: &dyn StreamSink) -> Result<(), WireError> {
        let Some(mark) = self.mark.take_if(|mark| mark.index <= self.index) else { return Ok(()) };
        self.marked = mark.index;
        let digests = mark.digests.into_iter();
        let digests = digests.map(|(storage, digest)| TableDigest { storage, table: String::new(), digest }).collect();
        send(sink, ArchivePart::Mark(ArchiveMark { index: mark.index, chain: mark.chain, digests })).await
    }
}

fn time_of(entry: &LogEntry) -> Timestamp {
    Entry::header(&entry.bytes).map(|header| header.timestamp).unwrap_or_default()
}
