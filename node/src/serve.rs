//! The doors: where clients and peers come in. `tcp` speaks the Quorate protocol, `http` serves metrics and health.
//!
//! Doors know the router and the SQL sessions by their traits and nothing of shards. Everything a stranger can do to a
//! door is bounded: connections, bytes of a frame, requests sent ahead, unread results, time for the handshake.

pub mod http;
pub mod outbox;
pub mod registry;
pub mod schema;
pub mod session;
pub mod tcp;

use async_trait::async_trait;
use quorate_shared::archive::{ArchivePoint, ArchiveReport};
use quorate_shared::error::WireError;
use quorate_shared::feed::FeedToken;
use quorate_shared::ids::{SessionId, ShardId};
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{ClientHello, Column, Done, QueryOptions, Response, SchemaInfo};
use tokio_util::sync::CancellationToken;

use crate::sql::Sink;

/// What a prepared statement looks like to its client.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PreparedStatement {
    /// Its number in this session.
    pub statement: u32,
    /// Types of the placeholders, where known.
    pub params: Vec<Option<SqlType>>,
    /// Columns of its result; empty if it has none.
    pub columns: Vec<Column>,
    /// Whether it writes.
    pub writes: bool,
}

/// One SQL session, as a door drives it: one statement at a time. Dropping a future stops its statement.
#[async_trait]
pub trait Statements: Send + 'static {
    /// Runs one statement, given as text.
    async fn run(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        options: &QueryOptions,
        cancel: CancellationToken,
        sink: &mut dyn Sink,
    ) -> Result<Done, WireError>;

    /// Parses and plans one statement.
    async fn prepare(&mut self, sql: &str) -> Result<PreparedStatement, WireError>;

    /// Runs a prepared statement.
    async fn execute(
        &mut self,
        statement: u32,
        params: Vec<Value>,
        options: &QueryOptions,
        cancel: CancellationToken,
        sink: &mut dyn Sink,
    ) -> Result<Done, WireError>;

    /// Forgets a prepared statement.
    fn close(&mut self, statement: u32);

    /// The session's database.
    fn database(&self) -> String;
}

/// Where the parts of a stream go. Awaiting is back-pressure: a client that stops reading stops the stream.
#[async_trait]
pub trait StreamSink: Send + Sync {
    /// The next part, once the client has given credit for it.
    async fn send(&self, part: Response) -> Result<(), WireError>;
}

/// Streams out of the node's log. Each runs until it fails or its future is dropped.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// A table's changes, as [`Response::Feed`]s.
    async fn feed(
        &self,
        database: &str,
        table: &str,
        from: Option<FeedToken>,
        sink: &dyn StreamSink,
    ) -> Result<(), WireError>;

    /// A shard's log for a backup, as [`Response::Archive`]s; with `once` it ends behind what is committed by now.
    async fn archive(
        &self,
        shard: ShardId,
        after: Option<ArchivePoint>,
        once: bool,
        sink: &dyn StreamSink,
    ) -> Result<(), WireError>;

    /// An archiver says how far it is.
    async fn archived(&self, report: &ArchiveReport) -> Result<(), WireError>;

    /// An archive is gone on with no more.
    async fn forget_archive(&self, id: u64) -> Result<(), WireError>;
}

/// Opens SQL sessions for doors.
pub trait Sessions: Send + Sync + 'static {
    /// A new session for a client.
    fn open(&self, id: SessionId, hello: &ClientHello) -> Result<Box<dyn Statements>, WireError>;
    /// Names for completion.
    fn schema(&self) -> SchemaInfo;
}
