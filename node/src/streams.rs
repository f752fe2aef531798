//! Streams for clients out of this node's own log: change feeds, and the log itself for backups.
//!
//! Any node serves them, a lagging one as far as it is. What is delivered is committed and applied here, so it can be
//! read here too. A stream never holds anything up: its reader gets batches under credit, and the log is not kept for it
//! beyond what it is kept anyway.
//!
//! Invariant: a stream that cannot go on ends with an error that says why; it never leaves anything out.

pub mod archive;
pub mod archives;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use quorate_core::catalog::history_of;
use quorate_core::disk::RealDisk;
use quorate_core::error::Fatal;
use quorate_core::log::LogReader;
use quorate_core::ship::changes::{BadToken, Changes, Found, Part, Start};
use quorate_core::snapshot::file::read_definition;
use quorate_core::snapshot::install::fitting;
use quorate_core::table::TableDef;
use quorate_shared::error::{Code, WireError};
use quorate_shared::feed::{Change, FeedBatch, FeedColumns, FeedToken};
use quorate_shared::ids::{Index, ShardId};
use quorate_shared::limits::{APPEND_BYTES_MAX, BATCH_BYTES_MAX, BATCH_ROWS_MAX};
use quorate_shared::wire::Response;

use crate::driver::view::ShardView;
use crate::forward::{Forwarder, NodeRouter};
use crate::housekeeping::bases::Holds;
use crate::reporting::NodeReports;
use crate::router::Router;
use crate::serve::outbox::row_bytes;
use crate::serve::{ArchiveNote, Stream, StreamSink, Streams};
use crate::store::engine::EngineHandle;
use crate::store::snapshots;

/// A reader is told that the stream is alive, and where it stands, so often.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a node that is behind a token waits to catch up before it sends its reader elsewhere.
const CATCH_UP: Duration = Duration::from_secs(2);

/// See the module. Exists from the node's start; serves once the log is open.
pub struct NodeStreams {
    forwarder: Arc<Forwarder>,
    reports: Arc<NodeReports>,
    source: OnceLock<Source>,
}

/// What streams are made of, once it is open.
struct Source {
    log: Arc<dyn LogReader>,
    /// The log is kept for archives as for other readers.
    holds: Arc<Holds>,
    engine: Arc<EngineHandle>,
    /// The node's own directory: the base that the log goes on from has definitions that the log has not.
    data: PathBuf,
}

/// A table of the catalog, as far as a feed needs it.
struct Named {
    shard: ShardId,
    table: quorate_shared::ids::TableId,
}

impl NodeStreams {
    /// Serves nothing yet.
    pub fn new(forwarder: Arc<Forwarder>, reports: Arc<NodeReports>) -> Arc<Self> {
        Arc::new(Self { forwarder, reports, source: OnceLock::new() })
    }

    /// Log and engine of a data directory are open from here on.
    pub fn serve(&self, log: Arc<dyn LogReader>, holds: Arc<Holds>, engine: Arc<EngineHandle>, data: &Path) {
        // A second opening cannot happen.
        let _ = self.source.set(Source { log, holds, engine, data: data.to_owned() });
    }

    fn source(&self) -> Result<&Source, WireError> {
        self.source.get().ok_or_else(|| self.forwarder.unavailable())
    }

    fn view(&self, shard: ShardId) -> Result<(Arc<ShardView>, &dyn LogReader), WireError> {
        let driver = self.forwarder.driver().ok_or_else(|| self.forwarder.unavailable())?;
        let log = &self.source()?.log;
        let view = driver.view(shard).ok_or_else(|| no_replica(shard))?;
        match view.stopped() {
            Some(why) => Err(stopped(shard, &why)),
            None => Ok((view.clone(), &**log)),
        }
    }

    /// The table a name means in a database; `None`: there is none.
    fn resolve(&self, database: &str, name: &str) -> Result<Option<Named>, WireError> {
        let catalog = NodeRouter(self.forwarder.clone()).catalog();
        let plain = |name: &str| name.trim_matches(['"', '`']).to_owned();
        let split = name.split_once('.').map(|(database, table)| (plain(database), plain(table)));
        for (database, table) in [Some((database.to_owned(), plain(name))), split].into_iter().flatten() {
            let Some(database) = catalog.database(&database) else { continue };
            if catalog.view(database.id, &table).is_some() {
                let error = WireError::sql("42809", format!("\"{table}\" is a view"));
                return Err(error.hint("changes are fed of tables"));
            }
            if let Some(desc) = catalog.table(database.id, &table).filter(|desc| desc.public) {
                return Ok(Some(Named { shard: desc.shard, table: desc.def.id }));
            }
        }
        Ok(None)
    }

    /// The reader of a feed, at its first point.
    async fn begin(&self, database: &str, table: &str, from: Option<FeedToken>) -> Result<Changes, WireError> {
        let named = self.resolve(database, table)?;
        let epoch = NodeRouter(self.forwarder.clone()).identity().epoch;
        let unknown = || WireError::sql("42P01", format!("table \"{table}\" does not exist"));
        let Some(token) = from else {
            let named = named.ok_or_else(unknown)?;
            let (view, _) = self.view(named.shard)?;
            let point = view.applied_point();
            let (index, chain) = (point.index, point.chain);
            let start = Start { shard: named.shard, epoch, table: named.table, index, chain, skip: 0 };
            return Changes::from_now(start, view.tree().clone()).map_err(internal)?.ok_or_else(unknown);
        };
        if named.as_ref().is_some_and(|named| named.table != token.table) {
            let error = WireError::new(Code::Invalid, format!("the token is of another table than \"{table}\""));
            return Err(error.hint("it was dropped and made anew, or the token is another's; begin with --from now"));
        }
        let (view, log) = self.view(token.shard)?;
        // Whether it came in time is seen below.
        let _ = tokio::time::timeout(CATCH_UP, view.wait_applied(token.index)).await;
        let (tree, point) = (view.tree().clone(), view.applied_point());
        // One that has begun elsewhere only has begun behind everything here.
        let began = if point.epoch == epoch { point.epoch_start.index } else { Index::new(u64::MAX) };
        let older = || self.older(log, &token);
        let begun = Changes::from_token(log, tree, &token, (epoch, began), view.applied(), &older).map_err(internal)?;
        begun.map_err(|bad| refused(&bad, named.is_some()))
    }

    /// The definition of a token's table from before it was altered or emptied: in the catalog's history as long as
    /// versions are kept, behind that in the base the log goes on from.
    fn older(&self, log: &dyn LogReader, token: &FeedToken) -> Result<Option<TableDef>, Fatal> {
        if let Some(meta) = self.forwarder.driver().and_then(|driver| driver.view(ShardId::META)) {
            let mut past = history_of(&**meta.tree(), token.table)?.into_iter().filter_map(|(_, desc)| desc);
            if let Some(desc) = past.find(|desc| desc.def.version == token.version) {
                return Ok(Some(desc.def));
            }
        }
        let (Some(source), Some(bounds)) = (self.source.get(), log.bounds(token.shard)) else { return Ok(None) };
        let dir = snapshots::directory(&source.data);
        let Some(name) = fitting(&RealDisk, &dir, log, &bounds.base)? else { return Ok(None) };
        read_definition(&RealDisk, &dir.join(name), token.table)
    }

    async fn run_feed(&self, mut changes: Changes, shard: ShardId, sink: &dyn StreamSink) -> Result<(), WireError> {
        // The columns, before anything else.
        let first = changes.read(&[]).map_err(internal)?;
        send(first, &changes, sink).await?;
        loop {
            let (view, log) = self.view(shard)?;
            let next = changes.index().next();
            match tokio::time::timeout(HEARTBEAT, view.wait_applied(next)).await {
                Ok(true) => {}
                Ok(false) => return Err(stopped(shard, &view.stopped().unwrap_or_default())),
                Err(_) => {
                    let at = changes.token();
                    let batch = FeedBatch { columns: None, changes: Vec::new(), at };
                    sink.send(Response::Feed(batch)).await?;
                    continue;
                }
            }
            let applied = view.applied();
            while changes.index() < applied {
                let next = changes.index().next();
                if let Some(bounds) = log.bounds(shard).filter(|bounds| next <= bounds.base.index) {
                    let bad = BadToken::NeedsSnapshot { first: bounds.base.index, at: changes.index() };
                    return Err(refused(&bad, true));
                }
                let entries = log.entries(shard, next, applied.next(), APPEND_BYTES_MAX).map_err(internal)?;
                if entries.is_empty() {
                    return Err(internal(Fatal::new("read changes", format!("the log has no entry {next}"))));
                }
                let found = changes.read(&entries).map_err(internal)?;
                send(found, &changes, sink).await?;
            }
        }
    }
}

#[async_trait]
impl Streams for NodeStreams {
    async fn run(&self, stream: Stream, sink: &dyn StreamSink) -> Result<(), WireError> {
        match stream {
            Stream::Feed { database, table, from } => {
                let changes = self.begin(&database, &table, from).await?;
                let shard = changes.token().shard;
                self.run_feed(changes, shard, sink).await
            }
            Stream::Archive { shard, after, once } => self.run_archive(shard, after, once, sink).await,
        }
    }

    async fn note(&self, note: ArchiveNote) -> Result<(), WireError> {
        match note {
            ArchiveNote::Report(report) => self.note_archive(&report).await,
            ArchiveNote::Forget(id) => self.drop_archive(id).await,
        }
    }
}

/// Sends what was found, in batches. An error ends the feed: the table is gone.
async fn send(found: Found, changes: &Changes, sink: &dyn StreamSink) -> Result<(), WireError> {
    let mut columns: Option<FeedColumns> = None;
    let mut held: Vec<Change> = Vec::new();
    let mut bytes = 0;
    let mut any = false;
    for part in found.parts {
        let change = match part {
            Part::Columns(news) => {
                if let Some(last) = held.last().map(|change| change.token) {
                    let changes = std::mem::take(&mut held);
                    sink.send(Response::Feed(FeedBatch { columns: columns.take(), changes, at: last })).await?;
                }
                columns = Some(news);
                any = true;
                continue;
            }
            Part::Change(change) => change,
        };
        bytes += row_bytes(&change.key) + change.row.as_deref().map_or(0, row_bytes) + 64;
        let at = change.token;
        held.push(change);
        any = true;
        if held.len() >= BATCH_ROWS_MAX || bytes >= BATCH_BYTES_MAX {
            bytes = 0;
            let changes = std::mem::take(&mut held);
            sink.send(Response::Feed(FeedBatch { columns: columns.take(), changes, at })).await?;
        }
    }
    if any && (columns.is_some() || !held.is_empty()) {
        // What was read to its end need not be read again; not so when the table has ended in the middle.
        let at = match held.last() {
            Some(last) if found.dropped.is_some() => last.token,
            _ => changes.token(),
        };
        sink.send(Response::Feed(FeedBatch { columns, changes: held, at })).await?;
    }
    match found.dropped {
        None => Ok(()),
        Some(name) => {
            let error = WireError::sql("42P01", format!("table \"{name}\" was dropped: its feed has ended"));
            Err(error.hint("every change before that was delivered"))
        }
    }
}

fn refused(bad: &BadToken, known: bool) -> WireError {
    let message = bad.to_string();
    match bad {
        BadToken::Ahead { .. } => WireError::new(Code::Retry, message),
        BadToken::NeedsSnapshot { .. } | BadToken::Forgotten { .. } => WireError::new(Code::Invalid, message)
            .hint("read the table, then go on with --from now; another node's log may reach back further"),
        BadToken::OtherEpoch { .. } => WireError::new(Code::Invalid, message)
            .hint("what was delivered may differ from what is in the table: read it, then go on with --from now"),
        BadToken::NoTable if known => WireError::new(Code::Invalid, message),
        BadToken::NoTable => WireError::sql("42P01", message),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn internal(fatal: Fatal) -> WireError {
    WireError::new(Code::Internal, "this node cannot read its log").detail(fatal.to_string())
}

fn no_replica(shard: ShardId) -> WireError {
    WireError::new(Code::NotFound, format!("this node has no replica of {shard}"))
}

fn stopped(shard: ShardId, why: &str) -> WireError {
    WireError::new(Code::Retry, format!("this node's replica of {shard} has stopped: {why}"))
}
