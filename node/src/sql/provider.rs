//! A table as the planner sees it: its columns, which filters its keys answer, and how to scan it.
//!
//! It holds no data: the rows come from the [`Reading`](super::scan::Reading) of the statement that runs the plan, so a
//! prepared plan can be run again on a newer snapshot.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Constraint, Constraints, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use quorate_core::catalog::TableDesc;
use quorate_core::table::ColumnPos;

use super::scan::ScanExec;
use super::{access, convert};

/// A table of the catalog.
#[derive(Debug)]
pub struct QuorateTable {
    table: Arc<TableDesc>,
    /// Physical column of each column of the schema.
    columns: Vec<ColumnPos>,
    schema: SchemaRef,
    constraints: Constraints,
}

impl QuorateTable {
    /// A table with its visible columns, and those hidden ones whose name the statement mentions.
    pub fn new(table: TableDesc, mentioned: &HashSet<String>) -> Self {
        let mut columns = Vec::new();
        let mut fields = Vec::new();
        for (position, column) in table.def.columns.iter().enumerate() {
            let name = column.name.to_lowercase();
            let Ok(position) = ColumnPos::try_from(position) else { continue };
            if column.dropped || (column.hidden && !mentioned.contains(&name)) {
                continue;
            }
            // Only the key is sure to hold no NULL: NOT NULL may be added while old rows are still being checked.
            let nullable = !table.def.primary_key.contains(&position);
            fields.push(convert::field(&name, column.ty, nullable));
            columns.push(position);
        }
        let key: Option<Vec<usize>> =
            table.def.primary_key.iter().map(|p| columns.iter().position(|c| c == p)).collect();
        let constraints = key
            .filter(|k| !k.is_empty())
            .map_or_else(Constraints::default, |k| Constraints::new_unverified(vec![Constraint::PrimaryKey(k)]));
        Self { table: Arc::new(table), columns, schema: Arc::new(Schema::new(fields)), constraints }
    }
}

#[async_trait]
impl TableProvider for QuorateTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let access = access::plan(&self.table.def, filters);
        Ok((0..filters.len())
            .map(|i| match access.consumed.binary_search(&i) {
                Ok(_) => TableProviderFilterPushDown::Exact,
                Err(_) => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filters: Vec<&Expr> = filters.iter().collect();
        let access = access::plan(&self.table.def, &filters);
        let (schema, columns) = match projection {
            Some(wanted) => (
                Arc::new(self.schema.project(wanted)?),
                wanted.iter().filter_map(|i| self.columns.get(*i).copied()).collect(),
            ),
            None => (Arc::clone(&self.schema), self.columns.clone()),
        };
        Ok(Arc::new(ScanExec::new(Arc::clone(&self.table), schema, columns, access, limit)?))
    }
}
