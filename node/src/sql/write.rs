//! What everything that writes shares: its context, the reading side as it sees it, and how a statement is proposed.
//!
//! A statement becomes one [`Proposal`] to one shard: all of it or nothing. When what it read has changed meanwhile it
//! is evaluated again, with growing pauses, until [`ATTEMPTS_MAX`] or the deadline; then it fails with `40001`.
//!
//! Invariants: one statement uses one write id, whatever is tried; a statement that found nothing still proposes, so that
//! a retry gets the first answer.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use quorate_core::catalog::Catalog;
use quorate_core::proposal::ReadCheck;
use quorate_shared::error::WireError;
use quorate_shared::ids::{DatabaseId, WriteId};
use quorate_shared::value::Value;
use quorate_shared::wire::Column;
use sqlparser::ast;

use crate::router::{ReadPoint, Router};

/// How often a statement is evaluated again because of concurrent writes.
pub const ATTEMPTS_MAX: u32 = 12;

/// What a writing statement or DDL needs to know of its session.
pub struct WriteContext<'a> {
    /// The cluster.
    pub router: Arc<dyn Router>,
    /// The catalog the statement begins with; a fresher one is taken from the router when it turns out to be stale.
    pub catalog: Arc<Catalog>,
    /// The session's database.
    pub database: DatabaseId,
    /// Values of `$1`, `$2`, …
    pub params: &'a [Value],
    /// How to write.
    pub options: WriteOptions,
    /// The reading side: runs the SELECTs that an UPDATE, a DELETE or an INSERT needs.
    pub queries: &'a dyn Queries,
    /// The spelling that a folded identifier had in the statement's text.
    pub spelled: &'a (dyn Fn(&str) -> String + Send + Sync),
}

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Identifies the statement for exactly-once.
    pub write: Option<WriteId>,
    /// It was sent before with the same id.
    pub retry: bool,
    /// Give up then.
    pub deadline: Instant,
    /// `SET wait_for_replicas`.
    pub wait_for_replicas: u32,
    /// How long to wait for them, in milliseconds.
    pub wait_ms: u32,
}

/// The reading side as DML needs it; implemented by the session.
#[async_trait]
pub trait Queries: Send + Sync {
    /// Runs a SELECT (identifiers folded, hidden columns selectable by name) on a snapshot of the data shard, with the
    /// given catalog. Fails with `54000` beyond `bytes_max` of result.
    async fn select(
        &self,
        query: &ast::Query,
        params: &[Value],
        catalog: &Arc<Catalog>,
        point: &ReadPoint,
        bytes_max: usize,
    ) -> Result<Selected, WireError>;
}

/// A SELECT's whole result, and what it read.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Vec<Value>>,
    /// Every key range it scanned, with the snapshot's timestamp as `seen`.
    pub reads: Vec<ReadCheck>,
}
