//! Tables that are not stored: the cluster's picture as `quorate.*`, the catalog as `information_schema`, and `dual`.
//!
//! They are answered by the node asked, from what it knows, without a quorum.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use quorate_core::catalog::Catalog;
use quorate_core::table::DefaultValue;
use quorate_shared::status::ClusterStatus;
use quorate_shared::value::{SqlType, Value};

use super::convert::{self, ColumnBuilder};
use super::errors::external;
use super::scan::Reading;

/// The system tables.
pub const NAMES: [&str; 5] = ["nodes", "problems", "queries", "replicas", "shards"];

const T: SqlType = SqlType::Text;
const N: SqlType = SqlType::BigInt;
const B: SqlType = SqlType::Bool;

const NODES: &[(&str, SqlType)] = &[
    ("id", T),
    ("addr", T),
    ("http", T),
    ("kind", T),
    ("reachable", B),
    ("reachable_by_peers", N),
    ("error", T),
    ("version", T),
    ("uptime_ms", N),
    ("disk_used_bytes", N),
    ("disk_free_bytes", N),
    ("memory_bytes", N),
    ("sessions", N),
    ("statements", N),
];
const SHARDS: &[(&str, SqlType)] =
    &[("id", T), ("leader", T), ("term", N), ("commit", N), ("confirmed", B), ("chain", T), ("log_bytes", N)];
const REPLICAS: &[(&str, SqlType)] = &[
    ("shard", T),
    ("node", T),
    ("kind", T),
    ("sent", N),
    ("durable", N),
    ("applied", N),
    ("lag_entries", N),
    ("lag_bytes", N),
    ("lag_ms", N),
    ("lag_at_least", B),
    ("report_age_ms", N),
    ("stuck_at", T),
];
const PROBLEMS: &[(&str, SqlType)] = &[("name", T), ("severity", T), ("subject", T), ("since", T), ("hint", T)];
const QUERIES: &[(&str, SqlType)] =
    &[("session", N), ("user", T), ("database", T), ("sql", T), ("started", SqlType::TimestampTz), ("elapsed_ms", N)];
const INFO_TABLES: &[(&str, SqlType)] =
    &[("table_catalog", T), ("table_schema", T), ("table_name", T), ("table_type", T)];
const INFO_COLUMNS: &[(&str, SqlType)] = &[
    ("table_catalog", T),
    ("table_schema", T),
    ("table_name", T),
    ("column_name", T),
    ("ordinal_position", N),
    ("column_default", T),
    ("is_nullable", T),
    ("data_type", T),
];

/// Column names and types of every system table, for completion and DESCRIBE.
pub fn columns(name: &str) -> Option<&'static [(&'static str, SqlType)]> {
    match name {
        "nodes" => Some(NODES),
        "shards" => Some(SHARDS),
        "replicas" => Some(REPLICAS),
        "problems" => Some(PROBLEMS),
        "queries" => Some(QUERIES),
        _ => None,
    }
}

/// A system table.
pub fn table(name: &str) -> Option<Arc<dyn TableProvider>> {
    let columns = columns(name)?;
    let name = NAMES.into_iter().find(|n| *n == name)?;
    Some(Arc::new(Listing::new(columns, Rows::System(name))))
}

/// MySQL's table of one row.
pub fn dual() -> Arc<dyn TableProvider> {
    Arc::new(Listing::new(&[("dummy", T)], Rows::Ready(Arc::new(vec![vec![Value::Text("X".to_owned())]]))))
}

/// A table of `information_schema`.
pub fn information_schema(name: &str, catalog: &Catalog, database: &str) -> Option<Arc<dyn TableProvider>> {
    let (columns, rows) = match name {
        "tables" => (INFO_TABLES, info_tables(catalog, database)),
        "columns" => (INFO_COLUMNS, info_columns(catalog, database)),
        _ => return None,
    };
    Some(Arc::new(Listing::new(columns, Rows::Ready(Arc::new(rows)))))
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn info_tables(catalog: &Catalog, database: &str) -> Vec<Vec<Value>> {
    let Some(desc) = catalog.databases.get(database) else { return Vec::new() };
    let row = |name: &str, kind: &str| vec![text(&desc.name), text("public"), text(name), text(kind)];
    let tables = catalog
        .tables
        .iter()
        .filter(|((d, _), t)| *d == desc.id && t.public)
        .map(|(_, t)| row(&t.def.name, "BASE TABLE"));
    let views = catalog.views.iter().filter(|((d, _), _)| *d == desc.id).map(|(_, v)| row(&v.name, "VIEW"));
    tables.chain(views).collect()
}

fn info_columns(catalog: &Catalog, database: &str) -> Vec<Vec<Value>> {
    let Some(desc) = catalog.databases.get(database) else { return Vec::new() };
    let mut rows = Vec::new();
    for ((_, _), table) in catalog.tables.iter().filter(|((d, _), t)| *d == desc.id && t.public) {
        for (position, column) in (1i64..).zip(table.def.columns.iter().filter(|c| !c.dropped && !c.hidden)) {
            let default = match &column.default {
                DefaultValue::None => Value::Null,
                DefaultValue::Sql(sql) => text(sql),
                DefaultValue::Sequence => text("nextval"),
            };
            rows.push(vec![
                text(&desc.name),
                text("public"),
                text(&table.def.name),
                text(&column.name),
                Value::Int(position),
                default,
                text(if column.not_null { "NO" } else { "YES" }),
                text(column.ty.to_string()),
            ]);
        }
    }
    rows
}

fn opt(value: Option<&String>) -> Value {
    value.map_or(Value::Null, text)
}

fn num(value: Option<u64>) -> Value {
    value.map_or(Value::Null, |v| Value::Int(i64::try_from(v).unwrap_or(i64::MAX)))
}

fn nodes(picture: &ClusterStatus) -> Vec<Vec<Value>> {
    let row = |n: &quorate_shared::status::NodeStatus| {
        vec![
            text(&n.id),
            text(&n.addr),
            opt(n.http.as_ref()),
            opt(n.kind.map(|kind| kind.to_string()).as_ref()),
            Value::Bool(n.reachable),
            num(n.reachable_by_peers.map(u64::from)),
            opt(n.error.as_ref()),
            opt(n.version.as_ref()),
            num(n.uptime_ms),
            num(n.disk_used_bytes),
            num(n.disk_free_bytes),
            num(n.memory_bytes),
            num(n.sessions),
            num(n.statements),
        ]
    };
    picture.nodes.iter().map(row).collect()
}

fn shards(picture: &ClusterStatus) -> Vec<Vec<Value>> {
    let row = |s: &quorate_shared::status::ShardStatus| {
        vec![
            text(&s.id),
            opt(s.leader.as_ref()),
            num(s.term),
            num(s.commit),
            Value::Bool(s.confirmed),
            opt(s.chain.as_ref()),
            num(s.log_bytes),
        ]
    };
    picture.shards.iter().map(row).collect()
}

fn replicas(picture: &ClusterStatus) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    for shard in &picture.shards {
        for m in &shard.members {
            rows.push(vec![
                text(&shard.id),
                text(&m.node),
                text(m.kind.to_string()),
                num(m.sent),
                num(m.durable),
                num(m.applied),
                num(m.lag_entries),
                num(m.lag_bytes),
                num(m.lag_ms),
                Value::Bool(m.lag_at_least),
                num(m.report_age_ms),
                opt(m.stuck_at.as_ref()),
            ]);
        }
    }
    rows
}

fn problems(picture: &ClusterStatus) -> Vec<Vec<Value>> {
    let row = |p: &quorate_shared::status::Problem| {
        vec![text(&p.name), text(p.severity.to_string()), text(&p.subject), text(&p.since), text(&p.hint)]
    };
    picture.problems.iter().map(row).collect()
}

fn queries(reading: &Reading) -> Vec<Vec<Value>> {
    let now = Instant::now();
    let row = |q: &super::queries::RunningQuery| {
        let elapsed = now.saturating_duration_since(q.since).as_millis();
        vec![
            num(Some(q.session.get())),
            text(&*q.user),
            text(&q.database),
            text(&q.sql),
            Value::TimestampTz(q.started_us),
            Value::Int(i64::try_from(elapsed).unwrap_or(i64::MAX)),
        ]
    };
    reading.running.iter().map(row).collect()
}

#[derive(Clone, Debug)]
enum Rows {
    Ready(Arc<Vec<Vec<Value>>>),
    System(&'static str),
}

/// A table whose rows fit in memory.
#[derive(Debug)]
struct Listing {
    types: Vec<SqlType>,
    schema: SchemaRef,
    rows: Rows,
}

impl Listing {
    fn new(columns: &[(&str, SqlType)], rows: Rows) -> Self {
        let fields: Vec<_> = columns.iter().map(|(name, ty)| convert::field(name, *ty, true)).collect();
        Self { types: columns.iter().map(|(_, ty)| *ty).collect(), schema: Arc::new(Schema::new(fields)), rows }
    }
}

#[async_trait]
impl TableProvider for Listing {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.types.len()).collect());
        let schema = Arc::new(self.schema.project(&wanted)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        let types = wanted.iter().filter_map(|i| self.types.get(*i).copied()).collect();
        Ok(Arc::new(ListingExec { wanted, types, schema, rows: self.rows.clone(), properties: Arc::new(properties) }))
    }
}

#[derive(Debug)]
struct ListingExec {
    wanted: Vec<usize>,
    types: Vec<SqlType>,
    schema: SchemaRef,
    rows: Rows,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for ListingExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rows {
            Rows::System(name) => write!(f, "Scan quorate.{name} on this node"),
            Rows::Ready(_) => f.write_str("Scan the catalog of this node"),
        }
    }
}

impl ListingExec {
    fn batch(&self, reading: &Reading) -> Result<RecordBatch> {
        let empty = ClusterStatus::default();
        let picture = reading.picture.as_deref().unwrap_or(&empty);
        let made;
        let rows: &[Vec<Value>] = match &self.rows {
            Rows::Ready(rows) => rows,
            Rows::System(name) => {
                made = match *name {
                    "nodes" => nodes(picture),
                    "shards" => shards(picture),
                    "replicas" => replicas(picture),
                    "problems" => problems(picture),
                    _ => queries(reading),
                };
                &made
            }
        };
        let mut builders: Vec<ColumnBuilder> =
            self.types.iter().map(|ty| ColumnBuilder::new(*ty, rows.len())).collect();
        for row in rows {
            for (builder, at) in builders.iter_mut().zip(&self.wanted) {
                builder.push(row.get(*at).unwrap_or(&Value::Null)).map_err(external)?;
            }
        }
        let columns = builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(DataFusionError::from)
    }
}

impl ExecutionPlan for ListingExec {
    fn name(&self) -> &'static str {
        "ListingExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn datafusion::physical_expr::PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("a listing has no children") }
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(reading) = context.session_config().get_extension::<Reading>() else {
            return internal_err!("a system table without a statement");
        };
        let batch = self.batch(&reading)?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::iter([Ok(batch)]))))
    }
}
