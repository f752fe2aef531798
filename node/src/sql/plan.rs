//! Queries: from the parsed SELECT to rows in a sink.
//!
//! [`SqlEngine`] holds what all sessions of a node share: functions, planner configuration, the memory queries may use,
//! the list of running statements. A query is planned against a catalog, then run on snapshots of the shards it uses;
//! when a scan meets a row newer than the catalog, the statement waits for the catalog and is planned again.
//!
//! Planning recurses with the statement's depth, so it is polled on a stack that grows.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use datafusion::prelude::SessionConfig;
use futures::StreamExt;
use quorate_core::catalog::Catalog;
use quorate_core::proposal::ReadCheck;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, ShardId};
use quorate_shared::limits::{BATCH_BYTES_MAX, BATCH_ROWS_MAX};
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{Column, Done, ReadLevel};
use sqlparser::ast;

use super::names::{self, Names, Used};
use super::parse::{self, Label, Parsed, Spelling};
use super::queries::Queries;
use super::scan::{Reading, STALE};
use super::session::Run;
use super::{Sink, convert, errors, functions, offload};
use crate::router::{Moment, ReadPoint, check_age, older};

/// Stack that must be left before planning begins, and what is taken when it is not.
const STACK_LEFT: usize = 1 << 20;
const STACK_NEW: usize = 16 << 20;
/// How often a statement is planned again because its catalog was behind the data.
const STALE_MAX: u32 = 5;

/// What a node gives to queries.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes all running queries may use for sorting, grouping and joining.
    pub memory_bytes: usize,
    /// Where they spill; `None`: they do not.
    pub spill: Option<PathBuf>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, spill: None }
    }
}

/// What all sessions of a node share.
pub struct SqlEngine {
    state: SessionState,
    queries: Queries,
}

impl std::fmt::Debug for SqlEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlEngine").finish_non_exhaustive()
    }
}

/// A query as a prepared statement keeps it.
#[derive(Clone, Debug)]
pub struct PreparedQuery {
    planned: Planned,
    version: CatalogVersion,
    database: String,
}

/// A query planned against a catalog.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan before optimization.
    pub plan: LogicalPlan,
    /// The result's columns.
    pub columns: Vec<Column>,
    /// What it uses.
    pub used: Used,
}

impl SqlEngine {
    /// Builds the planner and its memory.
    ///
    /// # Errors
    /// The spill directory cannot be used.
    pub fn new(options: &EngineOptions) -> Result<Arc<Self>, WireError> {
        let disk = match &options.spill {
            Some(path) => DiskManagerMode::Directories(vec![path.clone()]),
            None => DiskManagerMode::Disabled,
        };
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(options.memory_bytes, 1.0)
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(disk))
            .build_arc()
            .map_err(|e| errors::translate(&e))?;
        let builder = SessionStateBuilder::new_with_default_features().with_config(config()).with_runtime_env(runtime);
        let mut state = functions::add_rules(builder).build();
        functions::register(&mut state).map_err(|e| errors::translate(&e))?;
        Ok(Arc::new(Self { state, queries: Queries::default() }))
    }

    /// Statements running now.
    pub fn queries(&self) -> &Queries {
        &self.queries
    }

    /// Parses a statement on a stack that suffices.
    ///
    /// # Errors
    /// As [`parse::parse`].
    pub fn parse(&self, sql: &str) -> Result<Parsed, WireError> {
        stacker::maybe_grow(STACK_LEFT, STACK_NEW, || parse::parse(sql))
    }

    /// Names of all functions, for completion.
    pub fn functions(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .state
            .scalar_functions()
            .keys()
            .chain(self.state.aggregate_functions().keys())
            .chain(self.state.window_functions().keys())
            .filter(|n| !functions::is_internal(n))
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The planner's state for one statement: its clock, time zone and session facts.
    fn state_for(&self, run: &Run) -> SessionState {
        let mut state = self.state.clone();
        let config = state.config_mut();
        config.options_mut().execution.time_zone = Some(run.settings.timezone.clone());
        state.execution_props_mut().query_execution_start_time = chrono::DateTime::from_timestamp_micros(run.now_us);
        state
    }
}

fn config() -> SessionConfig {
    let mut config =
        SessionConfig::new().with_target_partitions(1).with_information_schema(false).with_batch_size(4096);
    let options = config.options_mut();
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.enable_ident_normalization = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.skip_physical_aggregate_schema_check = true;
    options.execution.collect_statistics = false;
    options.optimizer.enable_round_robin_repartition = false;
    // Our scans take no filters while they run.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    config
}

/// Polls a future on a stack that grows: planning recurses with the statement.
struct Deep<F>(Pin<Box<F>>);

impl<F: Future> Future for Deep<F> {
    type Output = F::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        stacker::maybe_grow(STACK_LEFT, STACK_NEW, || self.0.as_mut().poll(cx))
    }
}

/// Plans a query against a catalog.
///
/// # Errors
/// Unknown names, types that do not agree, what the planner cannot do.
pub fn plan_query(
    run: &Run,
    catalog: &Arc<Catalog>,
    query: &ast::Query,
    labels: &[Label],
    spelling: &Spelling,
) -> Result<Planned, WireError> {
    stacker::maybe_grow(STACK_LEFT, STACK_NEW, || {
        refuse(query)?;
        let state = run.engine.state_for(run);
        let facts = Arc::new(functions::SessionFacts {
            user: run.user.to_string(),
            database: run.settings.database.clone(),
            session: run.session.get(),
        });
        let names = Names::new(&state, catalog, &run.settings.database, names::mentioned(query), facts);
        let plan = names.plan(query.clone()).map_err(|e| errors::translate(&e))?;
        let used = names.used();
        let columns = label(&plan, labels, spelling, &used);
        Ok(Planned { plan, columns, used })
    })
}

/// Clauses the planner would ignore.
fn refuse(query: &ast::Query) -> Result<(), WireError> {
    if !query.locks.is_empty() {
        return Err(WireError::unsupported("SELECT … FOR UPDATE/SHARE")
            .hint("statements are atomic: UPDATE … WHERE checks and changes in one step"));
    }
    if let ast::SetExpr::Select(select) = query.body.as_ref()
        && select.into.is_some()
    {
        return Err(WireError::unsupported("SELECT INTO").hint("CREATE TABLE, then INSERT INTO … SELECT"));
    }
    Ok(())
}

/// The result's columns with the spelling of their origin.
fn label(plan: &LogicalPlan, labels: &[Label], spelling: &Spelling, used: &Used) -> Vec<Column> {
    let fields = plan.schema().fields();
    let wildcards = labels.iter().filter(|l| **l == Label::Wildcard).count();
    let own = |name: &str| used.columns.get(name).map_or_else(|| spelling.of_name(name).to_owned(), Clone::clone);
    let first_wild = labels.iter().position(|l| *l == Label::Wildcard);
    fields
        .iter()
        .enumerate()
        .map(|(i, field)| {
            // One wildcard: what stands before it counts from the left, what stands behind it from the right.
            let label = match (wildcards, first_wild) {
                (0, _) if labels.len() == fields.len() => labels.get(i),
                (1, Some(wild)) if i < wild => labels.get(i),
                (1, Some(wild)) => {
                    let behind = labels.len() - 1 - wild;
                    (fields.len() - i <= behind).then(|| labels.get(labels.len() - (fields.len() - i))).flatten()
                }
                _ => None,
            };
            let number =
                || field.name().strip_prefix("__q").and_then(|n| n.parse::<usize>().ok()).and_then(|n| labels.get(n));
            let name = match label.or_else(number) {
                Some(Label::Text(text)) => text.clone(),
                Some(Label::Column(name)) => own(name),
                _ => own(field.name()),
            };
            Column { name, ty: convert::sql_type(field) }
        })
        .collect()
}

/// Puts the statement's values into a plan.
fn bind(run_params: &[Value], plan: LogicalPlan) -> Result<LogicalPlan, WireError> {
    if run_params.is_empty() {
        return Ok(plan);
    }
    let types = plan.get_parameter_types().map_err(|e| errors::translate(&e))?;
    let scalars: Vec<ScalarValue> = run_params
        .iter()
        .enumerate()
        .map(|(i, v)| convert::scalar(v, types.get(&format!("${}", i + 1)).and_then(Option::as_ref)))
        .collect::<Result<_, _>>()?;
    plan.with_param_values(ParamValues::from(scalars)).map_err(|e| errors::translate(&e))
}

/// The catalog a statement begins with, and (in parallel) the shard's snapshot its level asks for.
async fn begin(run: &Run, needs_data: bool) -> Result<(Arc<Catalog>, Option<ReadPoint>), WireError> {
    if !needs_data {
        return Ok((run.router.catalog(), None));
    }
    if run.read_level == ReadLevel::Local {
        let catalog = run.router.catalog();
        return Ok((catalog, Some(run.router.read_local(ShardId::DATA)?)));
    }
    let (meta, data) = tokio::join!(
        run.router.read(ShardId::META, &run.read_level, run.deadline),
        run.router.read(ShardId::DATA, &run.read_level, run.deadline)
    );
    let (meta, data) = (meta?, data?);
    let since = older(meta.since, data.since);
    Ok((run.router.catalog(), Some(ReadPoint { since, ..data })))
}

/// Whether a query names any table that is kept in a shard.
fn names_tables(query: &ast::Query) -> bool {
    use sqlparser::ast::{Visit, Visitor};
    struct Any(bool);
    impl Visitor for Any {
        type Break = ();
        fn pre_visit_relation(&mut self, name: &ast::ObjectName) -> std::ops::ControlFlow<()> {
            let first = name.0.first().and_then(|p| p.as_ident()).map(|i| i.value.as_str());
            let system = name.0.len() > 1 && matches!(first, Some("quorate" | "information_schema"));
            self.0 |= !system;
            std::ops::ControlFlow::Continue(())
        }
    }
    let mut any = Any(false);
    let _ = query.visit(&mut any);
    any.0
}

/// A query that runs: its columns and batches.
pub struct Running {
    /// The result's columns.
    pub columns: Vec<Column>,
    /// Its batches.
    pub stream: SendableRecordBatchStream,
    /// What its scans share.
    pub reading: Arc<Reading>,
    /// The plan, for EXPLAIN ANALYZE.
    pub physical: Arc<dyn ExecutionPlan>,
    /// How old what it reads may be; see [`ReadPoint`].
    pub since: Option<Moment>,
}

/// Optimizes a planned query, takes what it reads, and starts it.
///
/// # Errors
/// The planner's, or no snapshot at the level asked for.
pub async fn start(
    run: &Run,
    planned: &Planned,
    params: &[Value],
    data: Option<ReadPoint>,
    record_reads: bool,
) -> Result<Running, WireError> {
    let mut points = BTreeMap::new();
    let mut since = Vec::new();
    for shard in &planned.used.shards {
        let point = match &data {
            Some(point) if *shard == ShardId::DATA => point.clone(),
            _ => run.router.read(*shard, &run.read_level, run.deadline).await?,
        };
        since.push(point.since);
        points.insert(*shard, point);
    }
    let picture = match planned.used.picture {
        true => Some(Arc::new(run.router.picture().await)),
        false => None,
    };
    let running = if planned.used.running { run.engine.queries().running() } else { Vec::new() };
    let reading = Arc::new(Reading {
        points,
        picture,
        running,
        cancel: run.cancel.clone(),
        deadline: Some(run.deadline),
        reads: record_reads.then(|| Mutex::new(Vec::new())),
    });
    let plan = bind(params, planned.plan.clone())?;
    let mut state = run.engine.state_for(run);
    state.config_mut().set_extension(Arc::clone(&reading));
    let physical =
        Deep(Box::pin(async { state.create_physical_plan(&plan).await })).await.map_err(|e| errors::translate(&e))?;
    let context = Arc::new(TaskContext::new(
        None,
        String::new(),
        state.config().clone(),
        Default::default(),
        Default::default(),
        Default::default(),
        Default::default(),
        Arc::clone(state.runtime_env()),
    ));
    let physical = offload::cooperative(physical).map_err(|e| errors::translate(&e))?;
    let stream = offload::stream(Arc::clone(&physical), context).map_err(|e| errors::translate(&e))?;
    let since = since.into_iter().reduce(older).flatten();
    Ok(Running { columns: planned.columns.clone(), stream, reading, physical, since })
}

/// Runs a query into a sink.
///
/// # Errors
/// Whatever fails it; see [`start`].
pub async fn run_query(
    run: &Run,
    parsed: &Parsed,
    query: &ast::Query,
    prepared: Option<&PreparedQuery>,
    sink: &mut dyn Sink,
) -> Result<Done, WireError> {
    let needs_data = names_tables(query);
    for attempt in 0.. {
        let (catalog, data) = begin(run, needs_data).await?;
        let planned = match prepared {
            Some(p) if p.version == catalog.version && p.database == run.settings.database => p.planned.clone(),
            _ => plan_query(run, &catalog, query, &parsed.labels, &parsed.spelling)?,
        };
        let mut running = start(run, &planned, &run.params, data, false).await?;
        let mut sent = false;
        match drain(run, &mut running, sink, &mut sent).await {
            Ok(rows) => {
                if !planned.used.shards.is_empty() {
                    check_age(&run.read_level, running.since, run.router.identity().node)?;
                }
                let age_ms = running.since.map(Moment::age_ms);
                return Ok(Done { tag: "SELECT".to_owned(), rows, age_ms, ..Done::default() });
            }
            Err(error) if is_stale(&error) && !sent && attempt < STALE_MAX => {
                let newer = CatalogVersion::new(catalog.version.get() + 1);
                run.router.catalog_at_least(newer, run.deadline).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(WireError::new(Code::Retry, "the catalog kept changing while the statement was planned"))
}

/// Plans a query and starts it, without a second try; for EXPLAIN.
///
/// # Errors
/// As [`run_query`].
pub async fn begin_query(run: &Run, parsed: &Parsed, query: &ast::Query) -> Result<Running, WireError> {
    let (catalog, data) = begin(run, names_tables(query)).await?;
    let planned = plan_query(run, &catalog, query, &parsed.labels, &parsed.spelling)?;
    start(run, &planned, &run.params, data, false).await
}

/// Whether an error means that the catalog is behind the data.
pub fn is_stale(error: &WireError) -> bool {
    error.code == Code::Retry && error.message == STALE
}

/// Sends a running query's rows; `sent` is set once anything went out.
///
/// # Errors
/// Whatever fails it.
pub async fn drain(run: &Run, running: &mut Running, sink: &mut dyn Sink, sent: &mut bool) -> Result<u64, WireError> {
    let types: Vec<SqlType> = running.columns.iter().map(|c| c.ty).collect();
    let mut count = 0;
    // The first batch is awaited before the columns go out: an error then finds nothing sent.
    let mut next = running.stream.next().await;
    if let Some(Err(error)) = &next {
        return Err(failure(run, error));
    }
    *sent = true;
    sink.columns(running.columns.clone()).await?;
    while let Some(batch) = next {
        let batch = batch.map_err(|e| failure(run, &e))?;
        run.check()?;
        let rows_per_chunk = rows_per_chunk(batch.get_array_memory_size(), batch.num_rows());
        let mut at = 0;
        while at < batch.num_rows() {
            let length = rows_per_chunk.min(batch.num_rows() - at);
            let rows = convert::rows(&batch.slice(at, length), &types)?;
            count += u64::try_from(length).unwrap_or(0);
            at += length;
            sink.rows(rows).await?;
        }
        next = running.stream.next().await;
    }
    Ok(count)
}

/// A statement that was stopped says so, whatever its scans said.
pub fn failure(run: &Run, error: &DataFusionError) -> WireError {
    match run.check() {
        Err(stopped) => stopped,
        Ok(()) => errors::translate(error),
    }
}

fn rows_per_chunk(bytes: usize, rows: usize) -> usize {
    let per_row = bytes.checked_div(rows).unwrap_or(1).max(1);
    (BATCH_BYTES_MAX / per_row).clamp(1, BATCH_ROWS_MAX)
}

/// Plans a query for a prepared statement and says what it takes and gives.
///
/// # Errors
/// As [`plan_query`].
pub async fn prepare_query(
    run: &Run,
    parsed: &Parsed,
    query: &ast::Query,
) -> Result<(PreparedQuery, Vec<Option<SqlType>>), WireError> {
    let catalog = run.router.catalog();
    let planned = match plan_query(run, &catalog, query, &parsed.labels, &parsed.spelling) {
        // A table created a moment ago on another node: ask again with the catalog as it is in the cluster.
        Err(e) if e.code == Code::NotFound && run.read_level != ReadLevel::Local => {
            run.router.read(ShardId::META, &run.read_level, run.deadline).await?;
            plan_query(run, &run.router.catalog(), query, &parsed.labels, &parsed.spelling)?
        }
        other => other?,
    };
    let types = planned.plan.get_parameter_types().map_err(|e| errors::translate(&e))?;
    let params = (1..=parsed.params)
        .map(|i| types.get(&format!("${i}")).and_then(Option::as_ref).map(convert::sql_type_of_arrow))
        .collect();
    Ok((PreparedQuery { planned, version: catalog.version, database: run.settings.database.clone() }, params))
}

impl PreparedQuery {
    /// The result's columns.
    pub fn columns(&self) -> &[Column] {
        &self.planned.columns
    }
}

/// A whole result in memory, and what was read for it.
pub struct Collected {
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Vec<Value>>,
    /// Ranges read.
    pub reads: Vec<ReadCheck>,
}

/// Runs a query on a given snapshot into memory, at most `bytes_max` of it.
///
/// # Errors
/// `54000` beyond `bytes_max`, else as [`run_query`].
pub async fn collect(
    run: &Run,
    query: &ast::Query,
    params: &[Value],
    catalog: &Arc<Catalog>,
    point: &ReadPoint,
    bytes_max: usize,
) -> Result<Collected, WireError> {
    let planned = plan_query(run, catalog, query, &[], &Spelling::default())?;
    let mut running = start(run, &planned, params, Some(point.clone()), true).await?;
    let types: Vec<SqlType> = running.columns.iter().map(|c| c.ty).collect();
    let mut rows = Vec::new();
    let mut bytes = 0usize;
    while let Some(batch) = running.stream.next().await {
        let batch = batch.map_err(|e| failure(run, &e))?;
        run.check()?;
        bytes = bytes.saturating_add(batch.get_array_memory_size());
        if bytes > bytes_max {
            return Err(WireError::sql(
                "54000",
                format!("the statement would change more than {bytes_max} bytes of rows at once"),
            )
            .hint("change them in several statements, each over a part of the keys"));
        }
        rows.extend(convert::rows(&batch, &types)?);
    }
    let reads = running
        .reading
        .reads
        .as_ref()
        .map(|r| std::mem::take(&mut *r.lock().unwrap_or_else(PoisonError::into_inner)))
        .unwrap_or_default();
    Ok(Collected { columns: running.columns, rows, reads })
}
