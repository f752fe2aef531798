//! The scan: key ranges of a snapshot, decoded column by column into Arrow.
//!
//! The first rows are read where the query runs; a scan that has more goes on on a blocking thread behind a channel of
//! two batches, so that it neither holds an async thread nor runs ahead of its reader. The statement's cancel token and
//! deadline are checked per batch.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::{RecordBatchReceiverStream, RecordBatchStreamAdapter};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use futures::StreamExt;
use quorate_core::catalog::TableDesc;
use quorate_core::engine::KeyRange;
use quorate_core::keys;
use quorate_core::mvcc::{Snapshot, Version};
use quorate_core::proposal::ReadCheck;
use quorate_core::row::{Projection, RowError};
use quorate_core::table::{ColumnPos, IndexDef};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{IndexId, ShardId, Timestamp};
use quorate_shared::status::ClusterStatus;
use quorate_shared::value::SqlType;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::convert::ColumnBuilder;
use super::errors::external;
use crate::router::ReadPoint;

/// Rows read before a scan moves to a blocking thread.
const INLINE_ROWS: usize = 256;
/// Rows of one batch of a scan.
const BATCH_ROWS: usize = 4096;
/// Message of the error that means "plan again with a newer catalog"; never shown.
pub const STALE: &str = "a row was written under a newer schema";

/// What one running statement reads from; found by its scans in the task's configuration.
#[derive(Default)]
pub struct Reading {
    /// A snapshot of every shard the statement reads.
    pub points: BTreeMap<ShardId, ReadPoint>,
    /// The cluster's picture, if a system table wants it.
    pub picture: Option<Arc<ClusterStatus>>,
    /// Statements running now, if a system table wants them.
    pub running: Vec<super::queries::RunningQuery>,
    /// Stops the statement.
    pub cancel: CancellationToken,
    /// When it gives up.
    pub deadline: Option<Instant>,
    /// Ranges read, collected for a write that depends on them; `None` if nobody asks.
    pub reads: Option<Mutex<Vec<ReadCheck>>>,
}

impl Reading {
    /// Fails when the statement shall end.
    ///
    /// # Errors
    /// `57014`.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(external(WireError::sql("57014", "the statement was cancelled")));
        }
        if self.deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(external(WireError::sql("57014", "the statement took too long")));
        }
        Ok(())
    }

    fn note(&self, range: &KeyRange, seen: Timestamp) {
        if let Some(reads) = &self.reads {
            // A data range always has an end: something sorts behind every table.
            let end = range.end.clone().unwrap_or_else(|| Bytes::from_static(&[0xff]));
            reads.lock().unwrap_or_else(PoisonError::into_inner).push(ReadCheck {
                start: range.start.clone(),
                end,
                seen,
            });
        }
    }
}

/// The physical scan of one table.
#[derive(Debug)]
pub struct ScanExec {
    table: Arc<TableDesc>,
    schema: SchemaRef,
    columns: Vec<ColumnPos>,
    access: Access,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ScanExec {
    /// A scan of some columns along an access path.
    ///
    /// # Errors
    /// None today; building the ordering may fail in the planner.
    pub fn new(
        table: Arc<TableDesc>,
        schema: SchemaRef,
        columns: Vec<ColumnPos>,
        access: Access,
        limit: Option<usize>,
    ) -> Result<Self> {
        let equivalence = match ordering(&table, &columns, &schema, &access) {
            Some(ordering) => EquivalenceProperties::new_with_orderings(Arc::clone(&schema), [ordering]),
            None => EquivalenceProperties::new(Arc::clone(&schema)),
        };
        let properties = PlanProperties::new(
            equivalence,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self {
            table,
            schema,
            columns,
            access,
            limit,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// One line for EXPLAIN: table, shard, index and key conditions.
    pub fn describe(&self) -> String {
        let def = &self.table.def;
        let index = def.indexes.iter().find(|i| i.id == self.access.index);
        let name = index.map_or_else(|| def.primary_key_name.clone(), |i| i.name.clone());
        let columns = index.map_or(&def.primary_key, |i| &i.columns);
        let names: Vec<String> =
            columns.iter().filter_map(|c| def.columns.get(usize::from(*c))).map(|c| c.name.clone()).collect();
        let hidden = index.is_none()
            && def.primary_key.iter().any(|c| def.columns.get(usize::from(*c)).is_some_and(|c| c.hidden));
        let via = match (index, hidden) {
            (Some(_), _) => format!("index {name} ({})", names.join(", ")),
            (None, true) => "row order".to_owned(),
            (None, false) => format!("primary key ({})", names.join(", ")),
        };
        let range = match (self.access.conditions.is_empty(), self.access.ranges.len()) {
            (true, _) => "all keys".to_owned(),
            (false, 0) => format!("{} (no key can match)", self.access.conditions.join(" AND ")),
            (false, 1) => self.access.conditions.join(" AND "),
            (false, n) => format!("{} ({n} key ranges)", self.access.conditions.join(" AND ")),
        };
        let kind = if self.access.point { "Get" } else { "Scan" };
        let limit = self.limit.map_or_else(String::new, |l| format!(", at most {l} rows"));
        format!("{kind} {} on {} by {via}: {range}{limit}", def.name, self.table.shard)
    }
}

/// Rows come in key order; where that is an order SQL knows, sorting can be spared.
fn ordering(table: &TableDesc, columns: &[ColumnPos], schema: &SchemaRef, access: &Access) -> Option<LexOrdering> {
    let def = &table.def;
    let key = match def.indexes.iter().find(|i| i.id == access.index) {
        Some(index) => &index.columns,
        None => &def.primary_key,
    };
    let mut order = Vec::new();
    for position in key {
        let ty = def.columns.get(usize::from(*position))?.ty;
        if matches!(ty, SqlType::Real | SqlType::Double | SqlType::Interval | SqlType::Json) {
            break;
        }
        let Some(at) = columns.iter().position(|c| c == position) else { break };
        let expr: Arc<dyn PhysicalExpr> = Arc::new(Column::new(schema.field(at).name(), at));
        order.push(PhysicalSortExpr::new(expr, SortOptions { descending: false, nulls_first: true }));
    }
    LexOrdering::new(order)
}

impl DisplayAs for ScanExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl ExecutionPlan for ScanExec {
    fn name(&self) -> &'static str {
        "ScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("a scan has no children") }
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn supports_limit_pushdown(&self) -> bool {
        false
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        let scan = Self::new(
            Arc::clone(&self.table),
            Arc::clone(&self.schema),
            self.columns.clone(),
            self.access.clone(),
            limit,
        )
        .ok()?;
        Some(Arc::new(scan))
    }

    fn fetch(&self) -> Option<usize> {
        self.limit
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(reading) = context.session_config().get_extension::<Reading>() else {
            return internal_err!("a scan without a snapshot");
        };
        let Some(point) = reading.points.get(&self.table.shard) else {
            return internal_err!("a scan without a snapshot of {}", self.table.shard);
        };
        for range in &self.access.ranges {
            reading.note(range, point.snapshot.timestamp);
        }
        let cursor =
            Cursor::new(self, point.snapshot.clone(), MetricBuilder::new(&self.metrics).output_rows(partition))?;
        Ok(stream(cursor, Arc::clone(&self.schema), reading))
    }
}

/// Reads a few rows here and the rest, if there is one, on a blocking thread.
fn stream(mut cursor: Cursor, schema: SchemaRef, reading: Arc<Reading>) -> SendableRecordBatchStream {
    let out = Arc::clone(&schema);
    let first = futures::stream::once(async move {
        let batch = reading.check().and_then(|()| cursor.next_batch(INLINE_ROWS));
        let rest = match &batch {
            Ok(Some(_)) if !cursor.done => Some(blocking(cursor, schema, reading)),
            _ => None,
        };
        let head = futures::stream::iter(batch.transpose());
        match rest {
            Some(rest) => head.chain(rest).left_stream(),
            None => head.right_stream(),
        }
    });
    Box::pin(RecordBatchStreamAdapter::new(out, first.flatten()))
}

fn blocking(mut cursor: Cursor, schema: SchemaRef, reading: Arc<Reading>) -> SendableRecordBatchStream {
    let mut builder = RecordBatchReceiverStream::builder(schema, 2);
    let sender = builder.tx();
    builder.spawn_blocking(move || {
        while let Some(batch) = reading.check().and_then(|()| cursor.next_batch(BATCH_ROWS)).transpose() {
            let failed = batch.is_err();
            // The reader is gone: nobody wants the rest.
            if sender.blocking_send(batch).is_err() || failed {
                break;
            }
        }
        Ok(())
    });
    builder.build()
}

/// Where a scan is.
struct Cursor {
    snapshot: Snapshot,
    table: Arc<TableDesc>,
    index: Option<IndexDef>,
    ranges: std::collections::VecDeque<KeyRange>,
    projection: Projection,
    builders: Vec<ColumnBuilder>,
    schema: SchemaRef,
    left: usize,
    done: bool,
    rows: Count,
}

impl Cursor {
    fn new(scan: &ScanExec, snapshot: Snapshot, rows: Count) -> Result<Self> {
        let def = &scan.table.def;
        let projection = Projection::new(def, &scan.columns).map_err(row_error)?;
        let types = scan.columns.iter().map(|c| def.columns.get(usize::from(*c)).map_or(SqlType::Null, |c| c.ty));
        let builders = types.map(|ty| ColumnBuilder::new(ty, 16)).collect();
        let index = match scan.access.index {
            IndexId::PRIMARY => None,
            id => Some(def.indexes.iter().find(|i| i.id == id).cloned().ok_or_else(stale)?),
        };
        Ok(Self {
            snapshot,
            table: Arc::clone(&scan.table),
            index,
            ranges: scan.access.ranges.iter().cloned().collect(),
            projection,
            builders,
            schema: Arc::clone(&scan.schema),
            left: scan.limit.unwrap_or(usize::MAX),
            done: false,
            rows,
        })
    }

    /// Up to `most` rows; `None` at the end.
    fn next_batch(&mut self, most: usize) -> Result<Option<RecordBatch>> {
        let want = most.min(self.left);
        let mut got = 0;
        while got < want {
            let Some(range) = self.ranges.pop_front() else { break };
            let (found, resume) = self.read_range(&range, want - got)?;
            got += found;
            if let Some(start) = resume {
                self.ranges.push_front(KeyRange { start, end: range.end });
            }
        }
        self.left -= got;
        self.done = self.left == 0 || self.ranges.is_empty();
        self.rows.add(got);
        if got == 0 {
            self.done = true;
            return Ok(None);
        }
        let columns = self.builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(got));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map(Some)
            .map_err(DataFusionError::from)
    }

    /// Reads up to `most` rows of a range; says where to go on if there may be more.
    fn read_range(&mut self, range: &KeyRange, most: usize) -> Result<(usize, Option<Bytes>)> {
        let Self { snapshot, table, index, projection, builders, .. } = self;
        let mut got = 0;
        let mut last = None;
        for item in snapshot.scan(range, false) {
            let (key, version) = item.map_err(|e| fatal(&e))?;
            let row = match index {
                None => Some(version),
                Some(index) => lookup(snapshot, table, index, &key, &version)?,
            };
            if let Some(row) = row {
                decode(projection, builders, &row.row)?;
                got += 1;
            }
            if got >= most {
                last = Some(key);
                break;
            }
        }
        let resume = last.map(|key| {
            let mut next = Vec::with_capacity(key.len() + 1);
            next.extend_from_slice(&key);
            next.push(0);
            Bytes::from(next)
        });
        Ok((got, resume))
    }
}

/// The row an index entry points to.
fn lookup(
    snapshot: &Snapshot,
    table: &TableDesc,
    index: &IndexDef,
    key: &[u8],
    entry: &Version,
) -> Result<Option<Version>> {
    let row_key = keys::row_key_of_entry(&table.def, index, key, &entry.row)
        .map_err(|e| external(super::errors::internal("reading an index entry", &e)))?;
    snapshot.get(&row_key).map_err(|e| fatal(&e))
}

fn decode(projection: &Projection, builders: &mut [ColumnBuilder], row: &[u8]) -> Result<()> {
    let mut failed = None;
    projection
        .read(row, |i, value| {
            if let Some(builder) = builders.get_mut(i)
                && let Err(error) = builder.push_ref(value)
            {
                failed = Some(error);
            }
        })
        .map_err(row_error)?;
    failed.map_or(Ok(()), |e| Err(external(e)))
}

fn stale() -> DataFusionError {
    external(WireError::new(Code::Retry, STALE))
}

fn row_error(error: RowError) -> DataFusionError {
    match error {
        RowError::Newer(_) => stale(),
        RowError::Malformed => external(super::errors::internal("reading a row", &error)),
    }
}

fn fatal(error: &quorate_core::error::Fatal) -> DataFusionError {
    external(super::errors::internal("reading the engine", error))
}
