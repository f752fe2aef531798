//! The wire between clients and nodes: preface, frames, requests, responses.
//!
//! A connection begins with a fixed [`Preface`] each way. After it come frames: a 4-byte big-endian length, at most
//! [`FRAME_BYTES_MAX`](crate::limits::FRAME_BYTES_MAX), then one postcard message. The first message is a [`Hello`];
//! what follows depends on whether a client or a peer said it. Peer messages after the `Hello` belong to the node and
//! are opaque here.
//!
//! Requests of one session run in order. A request's result streams as [`Response::Batch`]es under credit: the server
//! sends at most `credit` batches until it gets [`Request::Credit`].
//!
//! Invariants: variants are only ever appended; the bytes of each are fixed by a golden test.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::admin::{AdminAction, AdminEvent};
use crate::archive::{ArchivePart, ArchivePoint, ArchiveReport};
use crate::error::WireError;
use crate::feed::{FeedBatch, FeedToken};
use crate::ids::{CatalogVersion, ClusterId, Epoch, NodeId, Nonce, SessionId, ShardId, Token, WriteId};
use crate::status::{ClusterStatus, NodeKind};
use crate::value::{SqlType, Value};

/// The protocol version this build speaks, lowest and highest. It rises with every build that is handed out and lays out
/// a message differently: 2 has actions, streams and what the status says of them.
pub const VERSION: (u16, u16) = (2, 2);
/// First eight bytes of every connection, each way.
pub const MAGIC: [u8; 8] = *b"QUORATE\n";
/// Bytes of a [`Preface`].
pub const PREFACE_BYTES: usize = 12;

/// The fixed first bytes each way: magic, lowest and highest version, big-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preface {
    /// Lowest version the sender speaks.
    pub lowest: u16,
    /// Highest version the sender speaks.
    pub highest: u16,
}

impl Preface {
    /// This build's preface.
    pub const OURS: Preface = Preface { lowest: VERSION.0, highest: VERSION.1 };

    /// Its fixed bytes.
    pub fn encode(self) -> [u8; PREFACE_BYTES] {
        let mut out = [0; PREFACE_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&self.lowest.to_be_bytes());
        out[10..].copy_from_slice(&self.highest.to_be_bytes());
        out
    }

    /// Reads them back; `None` if the magic is wrong (a stranger).
    pub fn decode(bytes: &[u8; PREFACE_BYTES]) -> Option<Preface> {
        if bytes[..8] != MAGIC {
            return None;
        }
        Some(Preface {
            lowest: u16::from_be_bytes([bytes[8], bytes[9]]),
            highest: u16::from_be_bytes([bytes[10], bytes[11]]),
        })
    }

    /// The version both sides speak, the highest of them.
    pub fn agree(self, other: Preface) -> Option<u16> {
        let version = self.highest.min(other.highest);
        (version >= self.lowest && version >= other.lowest).then_some(version)
    }
}

impl fmt::Display for Preface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lowest == self.highest {
            true => write!(f, "protocol version {}", self.lowest),
            false => write!(f, "protocol versions {} to {}", self.lowest, self.highest),
        }
    }
}

/// The first message of a connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Hello {
    /// A client that wants a session.
    Client(ClientHello),
    /// A node of a cluster (consensus traffic, forwarding, shipping, founding).
    Peer(PeerHello),
}

/// A client that wants a session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClientHello {
    /// Program and version, for `quorate.queries` and the log.
    pub agent: String,
    /// User name; there is no authentication yet.
    pub user: String,
    /// Database to begin in; `None` means the default.
    pub database: Option<String>,
    /// Settings to begin with, as by `SET name = value` (how a client restores its session after a reconnect).
    pub settings: Vec<(String, String)>,
}

/// What kind of traffic a peer connection carries: a heartbeat never queues behind data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PeerChannel {
    /// Consensus messages.
    Consensus,
    /// Forwarded proposals and read-index requests, reports.
    Requests,
    /// A pulled stream of committed entries.
    Shipping,
    /// Questions before there is a cluster: who are you, are you empty.
    Founding,
    /// A snapshot for a replica that the log does not reach back to any more.
    Snapshots,
}

/// A node that connects to another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerHello {
    /// The cluster the sender belongs to; `None` before founding.
    pub cluster: Option<ClusterId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Who connects.
    pub node: NodeId,
    /// Whom it wants to reach, if it knows.
    pub to: Option<NodeId>,
    /// The sender's data directory.
    pub nonce: Nonce,
    /// What the connection is for.
    pub channel: PeerChannel,
    /// Where the sender is reached: `host:port`.
    pub address: String,
}

/// Where a node can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The node.
    pub node: NodeId,
    /// `host:port` for clients and peers.
    pub address: String,
    /// Voter or log-shipped replica.
    pub kind: NodeKind,
}

/// The answer to a client's `Hello`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster; `None` while it is not founded.
    pub cluster: Option<ClusterId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Who answers.
    pub node: NodeId,
    /// Voter or log-shipped replica.
    pub kind: NodeKind,
    /// The server's version, e.g. `0.1.0`.
    pub version: String,
    /// The session just opened.
    pub session: SessionId,
    /// Needed to cancel a request of this session from another connection.
    pub cancel_key: u64,
    /// The leader of `s0`, if one is known.
    pub master: Option<NodeAddress>,
    /// Every node the catalog knows, this one included.
    pub nodes: Vec<NodeAddress>,
    /// The database the session is in.
    pub database: String,
}

/// A frame from a client.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClientFrame {
    /// Chosen by the client, growing; responses name it.
    pub request: u64,
    /// What is asked.
    pub body: Request,
}

/// A frame to a client.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServerFrame {
    /// The request it answers.
    pub request: u64,
    /// The answer or a part of it.
    pub body: Response,
}

/// Which state a read must see. `SET read_level = '...'` and per request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub enum ReadLevel {
    /// Every write acknowledged before the read began, at any node.
    #[default]
    Linearizable,
    /// At least these positions.
    After(Vec<Token>),
    /// A consistent cut no older than this many milliseconds.
    MaxStaleness(u64),
    /// Whatever is here.
    Local,
}

/// How a statement is to be executed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct QueryOptions {
    /// Overrides the session's read level.
    pub read_level: Option<ReadLevel>,
    /// Give up after this many milliseconds from arrival; 0 means the server's default.
    pub deadline_ms: u64,
    /// Identifies the write, if the statement is one. The client library always gives it.
    pub write: Option<WriteId>,
    /// This statement was sent before with the same `write`.
    pub retry: bool,
    /// Refuse anything that writes.
    pub read_only: bool,
    /// Batches the server may send before it waits for [`Request::Credit`]; 0 means 16.
    pub credit: u32,
}

/// What a client asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run one statement, given as text.
    Query {
        /// One SQL statement.
        sql: String,
        /// Values for `$1`, `$2`, … or `?`.
        params: Vec<Value>,
        /// How.
        options: QueryOptions,
    },
    /// Parse and plan one statement; answered by [`Response::Prepared`].
    Prepare {
        /// One SQL statement with placeholders.
        sql: String,
    },
    /// Run a prepared statement.
    Execute {
        /// From [`Response::Prepared`].
        statement: u32,
        /// Values for its placeholders.
        params: Vec<Value>,
        /// How.
        options: QueryOptions,
    },
    /// Forget a prepared statement; answered by an empty final batch.
    Close {
        /// From [`Response::Prepared`].
        statement: u32,
    },
    /// Let the server send more batches of a running request. Needs no credit and gets no answer.
    Credit {
        /// The running request.
        request: u64,
        /// How many more batches.
        batches: u32,
    },
    /// Stop a request, also of another connection's session, also one that has not arrived yet.
    Cancel {
        /// From [`Welcome`].
        session: SessionId,
        /// From [`Welcome`].
        key: u64,
        /// The request to stop.
        request: u64,
    },
    /// The cluster's picture; answered by [`Response::Status`].
    Status,
    /// Send [`Response::Status`] again and again, until cancelled.
    Watch {
        /// Milliseconds between two pictures.
        every_ms: u64,
    },
    /// Is anybody there; answered by an empty final batch.
    Ping,
    /// What completion needs: databases, tables, columns; answered by [`Response::Schema`].
    Schema,
    /// Do something to the cluster; answered by [`Response::Admin`]s.
    Admin {
        /// What.
        action: AdminAction,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Send a table's committed changes as they come, until cancelled; answered by [`Response::Feed`]s under credit.
    Feed {
        /// The table: `name`, in the session's database, or `database.name`.
        table: String,
        /// Go on from here; `None`: from now.
        from: Option<FeedToken>,
        /// Batches the server may send before it waits for [`Request::Credit`]; 0 means 16.
        credit: u32,
    },
    /// Send a shard's log for a backup, until cancelled; answered by [`Response::Archive`]s under credit.
    Archive {
        /// The shard.
        shard: ShardId,
        /// Go on behind this point; `None`: begin, with the base.
        after: Option<ArchivePoint>,
        /// End when everything committed by now has been sent.
        once: bool,
        /// Batches the server may send before it waits for [`Request::Credit`]; 0 means 16.
        credit: u32,
    },
    /// An archiver says how far it is; answered by an empty final batch.
    Archived(ArchiveReport),
    /// An archive is gone on with no more; answered by an empty final batch.
    ForgetArchive {
        /// Its id.
        id: u64,
    },
}

/// A column of a result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Its label, in its own spelling.
    pub name: String,
    /// Its type.
    pub ty: SqlType,
}

/// A remark that is not an error.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Notice {
    /// `warning` or `notice`.
    pub severity: String,
    /// A stable name, e.g. `ReplicaShortfall`.
    pub name: String,
    /// One sentence.
    pub message: String,
}

/// The end of a request that succeeded.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct Done {
    /// Like PostgreSQL's command tag, without numbers: `SELECT`, `INSERT`, `CREATE TABLE`.
    pub tag: String,
    /// Rows returned or written.
    pub rows: u64,
    /// Where the write is in the log; empty for a read.
    pub token: Vec<Token>,
    /// Remarks.
    pub notices: Vec<Notice>,
    /// Session settings this statement changed (`database` among them).
    pub settings: Vec<(String, String)>,
    /// Time on the server, in microseconds.
    pub elapsed_us: u64,
    /// The catalog version this node has applied: completion refreshes when it grows.
    pub catalog: CatalogVersion,
    /// The age in milliseconds of what was read, when the level allows an age.
    pub age_ms: Option<u64>,
}

/// A part of an answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// Rows of a result. The first batch carries `columns` (empty for a statement without a result, `None` when an
    /// executed prepared statement's columns are those of [`Response::Prepared`]); the last carries `done`.
    Batch {
        /// The result's columns, in the first batch.
        columns: Option<Vec<Column>>,
        /// Rows in column order.
        rows: Vec<Vec<Value>>,
        /// Set in the last batch.
        done: Option<Done>,
    },
    /// The request failed; nothing follows. Rows already sent are void.
    Error(WireError),
    /// A statement is prepared.
    Prepared {
        /// Its number in this session.
        statement: u32,
        /// Types of the placeholders, where known.
        params: Vec<Option<SqlType>>,
        /// Columns of its result; empty if it has none.
        columns: Vec<Column>,
        /// Whether it writes.
        writes: bool,
    },
    /// The cluster's picture.
    Status(Box<ClusterStatus>),
    /// What completion needs.
    Schema(SchemaInfo),
    /// A part of an action's answer; `last` in the last one.
    Admin {
        /// What there is to say.
        event: AdminEvent,
        /// Nothing follows.
        last: bool,
    },
    /// A part of a table's changes.
    Feed(FeedBatch),
    /// A part of a shard's log for a backup.
    Archive(ArchivePart),
}

/// Names for completion and `\d`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct SchemaInfo {
    /// The catalog version it was read at.
    pub catalog: CatalogVersion,
    /// Databases with their tables and views.
    pub databases: Vec<DatabaseInfo>,
    /// Function names.
    pub functions: Vec<String>,
}

/// A database and its tables.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct DatabaseInfo {
    /// Its name.
    pub name: String,
    /// Its tables and views.
    pub tables: Vec<TableInfo>,
}

/// A table or view and its columns.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// `table`, `view` or `system`.
    pub kind: String,
    /// Its columns: name and type as shown.
    pub columns: Vec<(String, String)>,
    /// Columns of the primary key.
    pub primary_key: Vec<String>,
    /// Foreign keys: own columns, other table, its columns.
    pub foreign_keys: Vec<(Vec<String>, String, Vec<String>)>,
}

/// The first answer of a connection: welcome or refusal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Greeting {
    /// A client's session is open.
    Welcome(Box<Welcome>),
    /// A peer is accepted.
    PeerWelcome {
        /// Who answers.
        node: NodeId,
        /// Its data directory.
        nonce: Nonce,
    },
    /// Refused, with the reason.
    Refused(WireError),
}

#[cfg(test)]
mod tests;
