//! From a session's statement to what writes and to the fast path.
//!
//! [`FastSlot`] keeps a prepared statement's fast plan; it is planned again when the catalog or the session's database
//! has changed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use quorate_core::catalog::Catalog;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, DatabaseId, ShardId};
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, ReadLevel};
use sqlparser::ast::{self, Statement};

use super::Sink;
use super::fast::{FastPlan, Found};
use super::parse::{Label, Parsed};
use super::plan;
use super::session::{Prepared, Run};
use super::write::{Queries, Selected, WriteContext, WriteOptions};
use super::{insert, update};
use crate::ddl;
use crate::router::{Moment, ReadPoint, Router, check_age, older};

/// How often a point read waits for a newer catalog.
const STALE_MAX: u32 = 5;

/// A prepared statement's fast plan, made when it is first needed.
#[derive(Debug, Default)]
pub struct FastSlot(Mutex<Option<Slot>>);

#[derive(Debug)]
struct Slot {
    version: CatalogVersion,
    database: String,
    plan: Option<Arc<FastPlan>>,
}

impl FastSlot {
    /// The plan of a point read, if there is one for this catalog and database.
    pub fn point_read(&self, catalog: &Catalog, database: &str) -> Option<Arc<FastPlan>> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slot.as_ref().filter(|s| s.version == catalog.version && s.database == database)?;
        slot.plan.clone().filter(|plan| plan.is_read())
    }
}

/// The fast plan of a statement, if it has one.
///
/// # Errors
/// What is wrong with the statement in any case.
pub fn fast_plan(run: &Run, prepared: &Prepared) -> Result<Option<Arc<FastPlan>>, WireError> {
    let parsed = &*prepared.parsed;
    if !can_be_fast(&parsed.statement) || parsed.as_of.is_some() {
        return Ok(None);
    }
    let catalog = run.router.catalog();
    let mut slot = prepared.fast.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(slot) = &*slot
        && slot.version == catalog.version
        && slot.database == run.settings.database
    {
        return Ok(slot.plan.clone());
    }
    let plan = plan_fast(run, parsed, &parsed.statement, &catalog)?.map(Arc::new);
    *slot = Some(Slot { version: catalog.version, database: run.settings.database.clone(), plan: plan.clone() });
    Ok(plan)
}

fn can_be_fast(statement: &Statement) -> bool {
    match statement {
        Statement::Query(query) => {
            matches!(&*query.body, ast::SetExpr::Select(select) if select.selection.is_some() && select.from.len() == 1)
        }
        Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => true,
        _ => false,
    }
}

fn plan_fast(
    run: &Run,
    parsed: &Parsed,
    statement: &Statement,
    catalog: &Catalog,
) -> Result<Option<FastPlan>, WireError> {
    let Some(database) = catalog.database(&run.settings.database).map(|d| d.id) else { return Ok(None) };
    let spelled = |name: &str| parsed.spelling.of_name(name).to_owned();
    FastPlan::new(statement, catalog, database, parsed.params, &spelled)
}

/// For EXPLAIN: what the fast path does with a statement.
///
/// # Errors
/// What is wrong with the statement in any case.
pub fn describe(run: &Run, parsed: &Parsed, statement: &Statement) -> Result<Option<String>, WireError> {
    if !can_be_fast(statement) {
        return Ok(None);
    }
    Ok(plan_fast(run, parsed, statement, &run.router.catalog())?.map(|plan| plan.describe()))
}

/// Runs a statement on the fast path; `None`: it has none.
///
/// # Errors
/// Whatever refuses or fails it.
pub async fn fast(run: &Run, prepared: &Prepared, sink: &mut dyn Sink) -> Result<Option<Done>, WireError> {
    let statement = &prepared.parsed.statement;
    if !can_be_fast(statement) || prepared.parsed.as_of.is_some() {
        return Ok(None);
    }
    if !matches!(statement, Statement::Query(_)) {
        run.check_writable(verb(statement))?;
        // What this node does not know yet is looked up on the slow path.
        let Some(plan) = known(fast_plan(run, prepared))? else { return Ok(None) };
        let spelled = |name: &str| prepared.parsed.spelling.of_name(name).to_owned();
        let ctx = context(run, &spelled);
        return plan.write(statement, &ctx, sink).await;
    }
    for _ in 0..STALE_MAX {
        // A statement without a fast path does not wait for a read point here.
        let Some(plan) = fast_plan(run, prepared)? else { return Ok(None) };
        let columns = Some(labelled(plan.columns(), &prepared.parsed));
        let read = point_read(&*run.router, &plan, &run.read_level, run.deadline, &run.params, columns, sink);
        if let Some(done) = read.await? {
            return Ok(Some(done));
        }
    }
    Ok(None)
}

/// Executes a point read; `None`: the catalog has moved on, plan again. `columns` replaces the plan's.
///
/// # Errors
/// No read point at this level; parameters that do not fit.
pub async fn point_read(
    router: &dyn Router,
    plan: &FastPlan,
    level: &ReadLevel,
    deadline: Instant,
    params: &[Value],
    columns: Option<Vec<Column>>,
    sink: &mut dyn Sink,
) -> Result<Option<Done>, WireError> {
    let point = match level {
        ReadLevel::Local => router.read_local(plan.shard())?,
        ReadLevel::Linearizable => {
            let point = router.read(plan.shard(), level, deadline).await?;
            if !plan.is_fenced(&point.snapshot)? {
                // The table has been altered: plan again with the catalog as it is in the cluster by now.
                router.read(ShardId::META, level, deadline).await?;
                return Ok(None);
            }
            point
        }
        level => {
            let (meta, data) =
                tokio::join!(router.read(ShardId::META, level, deadline), router.read(plan.shard(), level, deadline));
            let since = meta?.since;
            let data = data?;
            ReadPoint { since: older(since, data.since), ..data }
        }
    };
    let catalog = router.catalog();
    // The catalog may have moved while the read point was confirmed.
    if !plan.is_current(&catalog) {
        return Ok(None);
    }
    let row = match plan.read(&point.snapshot, params)? {
        Found::Stale => {
            router.catalog_at_least(catalog.version.next(), deadline).await?;
            return Ok(None);
        }
        Found::Row(row) => Some(row),
        Found::Nothing => None,
    };
    sink.columns(columns.unwrap_or_else(|| plan.columns().to_vec())).await?;
    let rows = u64::from(row.is_some());
    if let Some(row) = row {
        sink.rows(vec![row]).await?;
    }
    check_age(level, point.since, router.identity().node)?;
    let age_ms = point.since.map(Moment::age_ms);
    Ok(Some(Done { tag: "SELECT".into(), rows, age_ms, catalog: catalog.version, ..Done::default() }))
}

/// A point read's columns as the SELECT list calls them: a column named twice has an internal name in the plan.
pub fn labelled(columns: &[Column], parsed: &Parsed) -> Vec<Column> {
    if parsed.labels.len() != columns.len() || parsed.labels.contains(&Label::Wildcard) {
        return columns.to_vec();
    }
    let called = |column: &Column, label: &Label| match label {
        Label::Text(text) => text.clone(),
        Label::Column(name) => {
            let same = columns.iter().find(|c| c.name.to_lowercase() == *name);
            same.map_or_else(|| parsed.spelling.of_name(name).to_owned(), |c| c.name.clone())
        }
        Label::Wildcard => column.name.clone(),
    };
    columns.iter().zip(&parsed.labels).map(|(c, l)| Column { name: called(c, l), ty: c.ty }).collect()
}

/// Runs DDL, INSERT, UPDATE or DELETE; `None`: the statement is none of them.
///
/// # Errors
/// Whatever refuses or fails it; nothing was written then.
pub async fn write(run: &Run, parsed: &Parsed, sink: &mut dyn Sink) -> Result<Option<Done>, WireError> {
    let statement = &parsed.statement;
    let spelled = |name: &str| parsed.spelling.of_name(name).to_owned();
    match statement {
        Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) => {
            run.check_writable(verb(statement))?;
            founded(run).await?;
            let outcome = write_rows(run, statement, &spelled, sink).await;
            if known(outcome.as_ref().map(|_| Some(())).map_err(Clone::clone))?.is_some() {
                return outcome.map(Some);
            }
            // A table created a moment ago on another node: ask again with the catalog as it is in the cluster.
            run.router.read(ShardId::META, &ReadLevel::Linearizable, run.deadline).await?;
            write_rows(run, statement, &spelled, sink).await.map(Some)
        }
        other if ddl::is_ddl(other) => {
            run.check_writable("DDL")?;
            founded(run).await?;
            let ctx = context(run, &spelled);
            ddl::run(&ctx, other).await
        }
        _ => Ok(None),
    }
}

/// Waits until a new cluster has its first database.
async fn founded(run: &Run) -> Result<(), WireError> {
    let catalog = run.router.catalog();
    if catalog.counters.is_none() {
        run.router.catalog_at_least(catalog.version.next(), run.deadline).await?;
    }
    Ok(())
}

async fn write_rows(
    run: &Run,
    statement: &Statement,
    spelled: &(dyn Fn(&str) -> String + Send + Sync),
    sink: &mut dyn Sink,
) -> Result<Done, WireError> {
    let ctx = context(run, spelled);
    check_database(run, &ctx)?;
    match statement {
        Statement::Insert(insert) => insert::run_insert(&ctx, insert, sink).await,
        Statement::Update(update) => update::run_update(&ctx, update, sink).await,
        Statement::Delete(delete) => update::run_delete(&ctx, delete, sink).await,
        other => Err(WireError::unsupported(other)),
    }
}

/// `None` for what this node's catalog does not know; another node's may.
fn known<T>(outcome: Result<Option<T>, WireError>) -> Result<Option<T>, WireError> {
    match outcome {
        Err(error) if error.code == Code::NotFound => Ok(None),
        other => other,
    }
}

fn verb(statement: &Statement) -> &'static str {
    match statement {
        Statement::Insert(_) => "INSERT",
        Statement::Update(_) => "UPDATE",
        _ => "DELETE",
    }
}

fn check_database(run: &Run, ctx: &WriteContext<'_>) -> Result<(), WireError> {
    if ctx.catalog.database_by_id(ctx.database).is_some() {
        return Ok(());
    }
    Err(WireError::sql("3D000", format!("database \"{}\" does not exist", run.settings.database))
        .hint("USE another database, or CREATE DATABASE"))
}

fn context<'a>(run: &'a Run, spelled: &'a (dyn Fn(&str) -> String + Send + Sync)) -> WriteContext<'a> {
    let catalog = run.router.catalog();
    // 0 is no database: statements that name none are refused where they need one.
    let database = catalog.database(&run.settings.database).map_or(DatabaseId::new(0), |d| d.id);
    WriteContext {
        router: Arc::clone(&run.router),
        catalog,
        database,
        params: &run.params,
        options: WriteOptions {
            write: run.options.write,
            retry: run.options.retry,
            deadline: run.deadline,
            wait_for_replicas: run.settings.wait_for_replicas,
            wait_ms: run.settings.wait_timeout_ms,
        },
        queries: run,
        spelled,
        proposed: run.proposed(),
    }
}

#[async_trait]
impl Queries for Run {
    async fn select(
        &self,
        query: &ast::Query,
        params: &[Value],
        catalog: &Arc<Catalog>,
        point: &ReadPoint,
        bytes_max: usize,
    ) -> Result<Selected, WireError> {
        let collected = plan::collect(self, query, params, catalog, point, bytes_max).await?;
        Ok(Selected { columns: collected.columns, rows: collected.rows, reads: collected.reads })
    }
}
