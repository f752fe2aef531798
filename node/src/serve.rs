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
use quorate_shared::wire::{ClientHello, Done, Response, SchemaInfo};

use crate::sql::Execution;
use crate::sql::session::PreparedInfo;

/// One SQL session, as a door drives it: one statement at a time. Dropping a future stops its statement.
#[async_trait]
pub trait Statements: Send + 'static {
    /// Runs one statement, given as text.
    async fn run(&mut self, sql: &str, how: Execution<'_>) -> Result<Done, WireError>;

    /// Parses and plans one statement.
    async fn prepare(&mut self, sql: &str) -> Result<PreparedInfo, WireError>;

    /// Runs a prepared statement.
    async fn execute(&mut self, statement: u32, how: Execution<'_>) -> Result<Done, WireError>;

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

/// A stream that a client asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Stream {
    /// A table's changes, as [`Response::Feed`]s.
    Feed {
        /// The session's database.
        database: String,
        /// The table's name, perhaps with its database.
        table: String,
        /// Where to begin; `None`: now.
        from: Option<FeedToken>,
    },
    /// A shard's log for a backup, as [`Response::Archive`]s.
    Archive {
        /// The shard.
        shard: ShardId,
        /// Where to go on; `None`: from a base.
        after: Option<ArchivePoint>,
        /// End behind what is committed by now.
        once: bool,
    },
}

/// What an archiver says of its archive.
#[derive(Clone, PartialEq, Debug)]
pub enum ArchiveNote {
    /// How far it is.
    Report(ArchiveReport),
    /// It is gone on with no more.
    Forget(u64),
}

/// Streams out of the node's log.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Runs a stream until it fails or its future is dropped; only an archive may come to its end.
    async fn run(&self, stream: Stream, sink: &dyn StreamSink) -> Result<(), WireError>;

    /// Takes note of an archive.
    async fn note(&self, note: ArchiveNote) -> Result<(), WireError>;
}

/// Opens SQL sessions for doors.
pub trait Sessions: Send + Sync + 'static {
    /// A new session for a client.
    fn open(&self, id: SessionId, hello: &ClientHello) -> Result<Box<dyn Statements>, WireError>;
    /// Names for completion.
    fn schema(&self) -> SchemaInfo;
}
