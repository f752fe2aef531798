//! The rows a write gives back: RETURNING, and the projection of a point read.
//!
//! A written row comes from the shard with all its physical columns; [`Returning`] turns it into the columns asked for.
//! Beyond columns it takes what core's expressions take; anything else is refused by name.

use quorate_core::expr::{self, Expr};
use quorate_core::table::{ColumnPos, TableDef};
use quorate_shared::error::WireError;
use quorate_shared::limits::BATCH_ROWS_MAX;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::Column;
use sqlparser::ast::{SelectItem, SelectItemQualifiedWildcardKind};

use super::Sink;
use super::bind::{self, Scope};
use super::reject;

/// A column of the result.
#[derive(Clone, PartialEq, Debug)]
pub enum Item {
    /// A column of the row.
    Column(ColumnPos),
    /// Something computed from it.
    Expr(Expr),
}

/// What is given back of each row.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Returning {
    /// The result's columns.
    pub columns: Vec<Column>,
    /// Where each comes from.
    pub items: Vec<Item>,
}

impl Returning {
    /// Binds a list of items.
    ///
    /// # Errors
    /// Unknown columns; `0A000` for what core cannot compute.
    pub fn bind(
        items: &[SelectItem],
        table: &TableDef,
        scope: &Scope<'_>,
        spelled: &(dyn Fn(&str) -> String + Send + Sync),
    ) -> Result<Self, WireError> {
        let mut out = Self::default();
        for item in items {
            match item {
                SelectItem::Wildcard(_) => out.all(table),
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _)
                    if bind::same_name(&name.to_string(), scope.name) =>
                {
                    out.all(table);
                }
                SelectItem::UnnamedExpr(expr) => out.one(expr, None, scope)?,
                SelectItem::ExprWithAlias { expr, alias } => out.one(expr, Some(spelled(&alias.value)), scope)?,
                other => return Err(WireError::unsupported(format!("{other} in RETURNING"))),
            }
        }
        Ok(out)
    }

    fn all(&mut self, table: &TableDef) {
        for (position, column) in table.columns.iter().enumerate() {
            if !column.dropped
                && !column.hidden
                && let Ok(position) = ColumnPos::try_from(position)
            {
                self.columns.push(Column { name: column.name.clone(), ty: column.ty });
                self.items.push(Item::Column(position));
            }
        }
    }

    fn one(&mut self, expr: &sqlparser::ast::Expr, alias: Option<String>, scope: &Scope<'_>) -> Result<(), WireError> {
        if let Some((position, column)) = scope.column(expr) {
            self.columns.push(Column { name: alias.unwrap_or_else(|| column.name.clone()), ty: column.ty });
            self.items.push(Item::Column(position));
            return Ok(());
        }
        let bound = bind::bind(expr, scope).map_err(|e| e.refuse("RETURNING"))?;
        let ty = match &bound.expr {
            Expr::Value(Value::Null) => SqlType::Null,
            _ => bound.ty.unwrap_or(SqlType::Text),
        };
        self.columns.push(Column { name: alias.unwrap_or_else(|| expr.to_string()), ty });
        self.items.push(Item::Expr(bound.expr));
        Ok(())
    }

    /// One result row.
    ///
    /// # Errors
    /// When an expression cannot be computed.
    pub fn project(&self, mut row: Vec<Value>) -> Result<Vec<Value>, WireError> {
        let mut out = Vec::with_capacity(self.items.len());
        // A column is moved out where nothing after it needs it again.
        for (at, item) in self.items.iter().enumerate() {
            out.push(match item {
                Item::Column(position) => {
                    let again =
                        self.items[at + 1..].iter().any(|later| !matches!(later, Item::Column(p) if p != position));
                    match row.get_mut(usize::from(*position)) {
                        Some(value) if again => value.clone(),
                        Some(value) => std::mem::take(value),
                        None => Value::Null,
                    }
                }
                Item::Expr(expr) => expr::eval(expr, &row, None).map_err(reject::wire_error)?,
            });
        }
        Ok(out)
    }

    /// Sends all rows.
    ///
    /// # Errors
    /// The sink's, or that of an expression.
    pub async fn send(&self, rows: Vec<Vec<Value>>, sink: &mut dyn Sink) -> Result<(), WireError> {
        sink.columns(self.columns.clone()).await?;
        let mut batch = Vec::with_capacity(rows.len().min(BATCH_ROWS_MAX));
        for row in rows {
            batch.push(self.project(row)?);
            if batch.len() == BATCH_ROWS_MAX {
                sink.rows(std::mem::take(&mut batch)).await?;
            }
        }
        if !batch.is_empty() {
            sink.rows(batch).await?;
        }
        Ok(())
    }
}
