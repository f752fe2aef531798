//! What everything that writes shares: its context, the reading side as it sees it, and how a statement is proposed.
//!
//! A statement becomes one [`Proposal`] to one shard: all of it or nothing. When what it read has changed meanwhile it
//! is evaluated again, with growing pauses, until [`ATTEMPTS_MAX`] or the deadline; then it fails with `40001`.
//!
//! Invariants: one statement uses one write id, whatever is tried; a statement that found nothing still proposes, so that
//! a retry gets the first answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use quorate_core::catalog::{Catalog, TableDesc};
use quorate_core::error::Rejected;
use quorate_core::proposal::{Op, Proposal, ReadCheck, WriteResult};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{DatabaseId, SchemaVersion, ShardId, TableId, Token, WriteId};
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, Notice};
use sqlparser::ast;

use super::reject;
use crate::router::{ProposeError, ReadPoint, Router};

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
    /// Set while a proposal is on its way: a statement that is stopped then is `unknown`, not undone.
    pub proposed: &'a AtomicBool,
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

impl<'a> WriteContext<'a> {
    /// The same statement on the newest catalog.
    pub fn again(&self) -> WriteContext<'a> {
        WriteContext { catalog: self.router.catalog(), router: Arc::clone(&self.router), ..*self }
    }

    /// Proposes to a shard, and notes that something is on its way while it is.
    ///
    /// # Errors
    /// As [`Router::propose`].
    pub async fn propose(&self, shard: ShardId, proposal: Proposal) -> Result<WriteResult, ProposeError> {
        self.proposed.store(true, Ordering::Relaxed);
        let outcome = self.router.propose(shard, proposal, self.options.deadline).await;
        self.proposed.store(false, Ordering::Relaxed);
        outcome
    }

    /// A proposal of this statement.
    pub fn proposal(&self, table: &TableDesc, ops: Vec<Op>, reads: Vec<ReadCheck>, want_rows: bool) -> Proposal {
        Proposal {
            write: self.options.write,
            reads,
            tables: vec![(table.def.id, table.def.version)],
            ops,
            want_rows,
            wait_for_replicas: self.options.wait_for_replicas,
            wait_ms: self.options.wait_ms,
        }
    }

    /// The end of a statement that was written.
    pub fn done(&self, tag: &str, shard: ShardId, result: &WriteResult) -> Done {
        let mut notices = Vec::new();
        if let Some(replicas) = result.replicas
            && replicas < self.options.wait_for_replicas
        {
            notices.push(Notice {
                severity: "warning".into(),
                name: "ReplicaShortfall".into(),
                message: format!(
                    "{replicas} of {} replicas had applied this write after {} ms; it is committed",
                    self.options.wait_for_replicas, self.options.wait_ms
                ),
            });
        }
        let token = match result.index.get() {
            0 => Vec::new(),
            _ => vec![Token { shard, epoch: result.epoch, index: result.index }],
        };
        Done { tag: tag.into(), rows: result.rows, token, notices, ..Done::default() }
    }
}

/// Finds a public table by its (folded) name: `t`, `db.t` or `public.t`.
///
/// # Errors
/// `42P01`, with the nearest name; `42809` for a view.
pub fn resolve<'a>(
    catalog: &'a Catalog,
    database: DatabaseId,
    name: &ast::ObjectName,
) -> Result<&'a TableDesc, WireError> {
    let (database, table) = locate(catalog, database, name)?;
    if let Some(desc) = catalog.tables.get(&(database, table.clone())).filter(|d| d.public) {
        return Ok(desc);
    }
    if catalog.views.contains_key(&(database, table.clone())) {
        return Err(WireError::sql("42809", format!("\"{table}\" is a view"))
            .hint("change the tables it reads from; views take no writes"));
    }
    let error = WireError::sql("42P01", format!("table \"{table}\" does not exist"));
    let near = catalog
        .tables
        .iter()
        .filter(|((db, _), desc)| *db == database && desc.public)
        .map(|((_, key), desc)| (strsim::damerau_levenshtein(key, &table), &desc.def.name))
        .min();
    Err(match near {
        Some((distance, name)) if distance <= 2 && distance < table.len() => {
            error.hint(format!("did you mean \"{name}\"?"))
        }
        _ => error,
    })
}

/// The database and lower-case name that an object's name means.
///
/// # Errors
/// `3D000` for an unknown database, `42601` for too many parts.
pub fn locate(
    catalog: &Catalog,
    database: DatabaseId,
    name: &ast::ObjectName,
) -> Result<(DatabaseId, String), WireError> {
    let parts: Vec<String> = name
        .0
        .iter()
        .map(|part| part.as_ident().map(|i| i.value.to_lowercase()))
        .collect::<Option<_>>()
        .ok_or_else(|| WireError::sql("42601", format!("{name} is not a name")))?;
    let (qualifier, table) = match parts.as_slice() {
        [table] => (None, table),
        [schema, table] if schema == "public" => (None, table),
        [db, table] => (Some(db), table),
        [db, schema, table] if schema == "public" => (Some(db), table),
        _ => {
            return Err(WireError::sql("42601", format!("improper qualified name \"{name}\""))
                .hint("write table or database.table"));
        }
    };
    match qualifier {
        None => Ok((database, table.clone())),
        Some(db) => match catalog.databases.get(db) {
            Some(desc) => Ok((desc.id, table.clone())),
            None => Err(WireError::sql("3D000", format!("database \"{db}\" does not exist"))),
        },
    }
}

/// The wall clock in microseconds since 1970, for `now()`: one value per statement.
pub fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Counts a statement's evaluations and decides whether there is another one.
pub struct Attempts {
    router: Arc<dyn Router>,
    deadline: Instant,
    count: u32,
    /// What the next evaluation plans with.
    pub catalog: Arc<Catalog>,
}

impl Attempts {
    /// The first evaluation.
    pub fn new(ctx: &WriteContext<'_>) -> Self {
        Self {
            router: Arc::clone(&ctx.router),
            deadline: ctx.options.deadline,
            count: 0,
            catalog: Arc::clone(&ctx.catalog),
        }
    }

    /// Returns when the statement may be evaluated again.
    ///
    /// # Errors
    /// The refusal itself when another evaluation cannot help or none is left.
    pub async fn again(&mut self, error: ProposeError) -> Result<(), WireError> {
        self.count += 1;
        let ProposeError::Rejected(rejected) = error else {
            return Err(reject::propose_error(error));
        };
        let stale = match &rejected {
            Rejected::Conflict => None,
            Rejected::StaleCatalog { table, current } => Some((*table, *current)),
            _ => return Err(reject::wire_error(rejected)),
        };
        if self.count >= ATTEMPTS_MAX || Instant::now() >= self.deadline {
            return Err(reject::wire_error(rejected));
        }
        match stale {
            Some((table, current)) => self.wait_for_schema(table, current).await,
            None => {
                // Doubling pauses, spread by the clock's low bits so that rivals do not meet again.
                let spread = u64::try_from(now_micros().rem_euclid(1000)).unwrap_or(0);
                let pause = (500u64 << self.count.min(7)) + spread;
                tokio::time::sleep(Duration::from_micros(pause)).await;
                Ok(())
            }
        }
    }

    /// After a failed read: waits for a newer catalog where that was the reason.
    ///
    /// # Errors
    /// The error itself where it was something else.
    pub async fn after_read(&mut self, error: WireError) -> Result<(), WireError> {
        self.count += 1;
        if !super::plan::is_stale(&error) || self.count >= ATTEMPTS_MAX {
            return Err(error);
        }
        self.catalog = self.router.catalog_at_least(self.catalog.version.next(), self.deadline).await?;
        Ok(())
    }

    /// Waits until this node's catalog has at least the schema version that the shard has.
    async fn wait_for_schema(&mut self, table: TableId, current: Option<SchemaVersion>) -> Result<(), WireError> {
        loop {
            let catalog = self.router.catalog();
            let known = catalog.tables.values().find(|d| d.def.id == table && d.public).map(|d| d.def.version);
            let there = match (known, current) {
                (Some(known), Some(current)) => known >= current,
                (known, None) => known.is_none(),
                (None, Some(_)) => true,
            };
            // Planned with an older catalog than the router has by now: that alone is worth another evaluation.
            if there || catalog.version > self.catalog.version {
                self.catalog = catalog;
                return Ok(());
            }
            self.router.catalog_at_least(catalog.version.next(), self.deadline).await?;
        }
    }
}

/// Refuses a write on a node that takes none, with the master's address.
///
/// # Errors
/// `25006` on a log-shipped replica.
pub fn check_writable(router: &dyn Router) -> Result<(), WireError> {
    if router.identity().kind != quorate_shared::status::NodeKind::Replica {
        return Ok(());
    }
    let master = router.master().map(|m| m.address);
    let error = WireError {
        sqlstate: Some("25006".into()),
        ..WireError::new(Code::ReadOnly, "this node is a read-only replica")
    };
    Err(match &master {
        Some(address) => error.hint(format!("write on the master at {address}")).redirect(master.clone()),
        None => error.hint("no master is known at the moment"),
    })
}
