//! The catalog: what `s0` holds. Databases, tables, views, nodes, DDL jobs; names to ids, ranges to shards.
//!
//! Each descriptor is one key of `s0` (`catalog/<kind>/<id>`), written by [`crate::proposal::Op::Put`] with its old bytes
//! as precondition. [`Catalog`] is the decoded whole, rebuilt or patched when `s0` applies entries, shared as an `Arc`.
//!
//! Names are compared without case and keep the spelling of their creation.

use std::collections::BTreeMap;

use quorate_shared::ids::{CatalogVersion, DatabaseId, NodeId, ShardId, TableId};
use quorate_shared::status::NodeKind;
use serde::{Deserialize, Serialize};

use crate::table::TableDef;

/// A database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DatabaseDesc {
    /// Its id.
    pub id: DatabaseId,
    /// Its name as created.
    pub name: String,
}

/// A table of a database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TableDesc {
    /// Its database.
    pub database: DatabaseId,
    /// Where its rows live.
    pub shard: ShardId,
    /// What the shard was fenced with last.
    pub def: TableDef,
    /// False until the job that creates it has made it public, and again while one drops it.
    pub public: bool,
}

/// A view: a stored SELECT.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ViewDesc {
    /// Its id, from the same numbers as tables.
    pub id: TableId,
    /// Its database.
    pub database: DatabaseId,
    /// Its name as created.
    pub name: String,
    /// Column names given in CREATE VIEW, or empty.
    pub columns: Vec<String>,
    /// The SELECT.
    pub sql: String,
}

/// A node, registered by itself: a dead one stays in the picture.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeDesc {
    /// Its id.
    pub id: NodeId,
    /// `host:port` for clients and peers.
    pub address: String,
    /// HTTP address.
    pub http: Option<String>,
    /// Voter or replica.
    pub kind: NodeKind,
}

/// A DDL job: resumed by whoever leads `s0`; each step is idempotent. Only its state is core's business.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobDesc {
    /// Grows.
    pub id: u64,
    /// Table (catalog id) it works on.
    pub table: TableId,
    /// `announced`, `fenced`, `filled`, `public`, `rolled back`.
    pub state: String,
    /// What to do, as the router's DDL module encodes it.
    pub work: Vec<u8>,
    /// Why it was rolled back: an encoded error.
    pub error: Option<Vec<u8>>,
}

/// Numbers that are handed out: next database, table (also storage) and job id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// Next [`DatabaseId`].
    pub database: u64,
    /// Next [`TableId`]; ids of storages come from here too.
    pub table: u64,
    /// Next job.
    pub job: u64,
}

/// The decoded whole, as of `version`.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The index of the last applied `s0` entry that changed it.
    pub version: CatalogVersion,
    /// By lower-case name.
    pub databases: BTreeMap<String, DatabaseDesc>,
    /// By database and lower-case name; not yet public ones included.
    pub tables: BTreeMap<(DatabaseId, String), TableDesc>,
    /// By database and lower-case name.
    pub views: BTreeMap<(DatabaseId, String), ViewDesc>,
    /// By id.
    pub nodes: BTreeMap<NodeId, NodeDesc>,
    /// By id; finished ones are removed once their waiters may have seen them.
    pub jobs: BTreeMap<u64, JobDesc>,
    /// `None` before the first entry.
    pub counters: Option<Counters>,
}
