//! UPDATE and DELETE with any condition: our own SELECT of keys and new values, whose rows are then written.
//!
//! The SELECT runs on a snapshot; what it read becomes read checks of the proposal, so that nothing can have changed
//! between the two. On a conflict the whole is evaluated again (see [`Attempts`]). DataFusion's own update hooks are
//! never used: with a subquery in WHERE they would be told to change every row.
//!
//! Invariants: a row is changed at most once, by the first match of a join; a statement that finds nothing still
//! proposes. Left out: LIMIT and ORDER BY, several target tables: refused by name.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::catalog::{Catalog, TableDesc};
use quorate_core::expr::Expr;
use quorate_core::keys;
use quorate_core::proposal::{Op, ReadCheck};
use quorate_core::table::ColumnPos;
use quorate_shared::error::{Code, WireError};
use quorate_shared::limits::ENTRY_BYTES_MAX;
use quorate_shared::value::Value;
use quorate_shared::wire::{Done, ReadLevel};
use sqlparser::ast::{
    Delete, Expr as Ast, FromTable, Ident, SelectItem, TableFactor, TableWithJoins, Update, UpdateTableFromKind,
};

use super::Sink;
use super::bind::Scope;
use super::coerce::coerce;
use super::insert::{self, Fill};
use super::reject;
use super::returning::Returning;
use super::select;
use super::write::{self, Attempts, WriteContext};

/// Runs an UPDATE.
///
/// # Errors
/// Whatever is wrong with it; nothing was written then.
pub async fn run_update(ctx: &WriteContext<'_>, update: &Update, sink: &mut dyn Sink) -> Result<Done, WireError> {
    if update.limit.is_some() || !update.order_by.is_empty() {
        return Err(
            WireError::unsupported("UPDATE with ORDER BY or LIMIT").hint("use WHERE key IN (SELECT key ... LIMIT n)")
        );
    }
    if update.output.is_some() || update.or.is_some() {
        return Err(WireError::unsupported("OUTPUT or OR in UPDATE"));
    }
    let mut from = vec![update.table.clone()];
    match &update.from {
        Some(UpdateTableFromKind::AfterSet(more) | UpdateTableFromKind::BeforeSet(more)) => {
            from.extend(more.iter().cloned())
        }
        None => {}
    }
    let change = Change {
        target: target_of(&update.table.relation)?,
        from,
        selection: update.selection.as_ref(),
        assignments: Some(&update.assignments),
        returning: update.returning.as_deref(),
        tag: "UPDATE",
    };
    change.run(ctx, sink).await
}

/// Runs a DELETE.
///
/// # Errors
/// Whatever is wrong with it; nothing was written then.
pub async fn run_delete(ctx: &WriteContext<'_>, delete: &Delete, sink: &mut dyn Sink) -> Result<Done, WireError> {
    if delete.limit.is_some() || !delete.order_by.is_empty() {
        return Err(
            WireError::unsupported("DELETE with ORDER BY or LIMIT").hint("use WHERE key IN (SELECT key ... LIMIT n)")
        );
    }
    if delete.output.is_some() {
        return Err(WireError::unsupported("OUTPUT in DELETE").hint("use RETURNING"));
    }
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
    let mut from = from.clone();
    let target = match (delete.tables.as_slice(), from.first()) {
        ([], Some(first)) => target_of(&first.relation)?,
        // MySQL: DELETE t FROM t JOIN u ON ...
        ([name], Some(_)) => from
            .iter()
            .flat_map(|t| std::iter::once(&t.relation).chain(t.joins.iter().map(|j| &j.relation)))
            .filter_map(|relation| target_of(relation).ok())
            .find(|target| super::bind::same_name(&target.called, &name.to_string()))
            .ok_or_else(|| WireError::sql("42P01", format!("table \"{name}\" is not in FROM")))?,
        _ => return Err(WireError::unsupported("DELETE from several tables").hint("one DELETE for each table")),
    };
    if let Some(using) = &delete.using {
        // MySQL repeats the target in USING; PostgreSQL does not.
        let repeated = using.iter().any(|t| target_of(&t.relation).is_ok_and(|u| u.called == target.called));
        if repeated {
            from.clone_from(using);
        } else {
            from.extend(using.iter().cloned());
        }
    }
    let change = Change {
        target,
        from,
        selection: delete.selection.as_ref(),
        assignments: None,
        returning: delete.returning.as_deref(),
        tag: "DELETE",
    };
    change.run(ctx, sink).await
}

/// The table that is changed.
struct Target {
    name: sqlparser::ast::ObjectName,
    /// Its alias or bare name: what qualifies its columns.
    called: String,
}

fn target_of(relation: &TableFactor) -> Result<Target, WireError> {
    let TableFactor::Table { name, alias, args: None, .. } = relation else {
        return Err(WireError::unsupported("changing anything but a table"));
    };
    let bare = name.0.last().and_then(|p| p.as_ident()).map(|i| i.value.clone()).unwrap_or_default();
    Ok(Target { name: name.clone(), called: alias.as_ref().map_or(bare, |a| a.name.value.clone()) })
}

struct Change<'a> {
    target: Target,
    from: Vec<TableWithJoins>,
    selection: Option<&'a Ast>,
    /// `None`: the rows are deleted.
    assignments: Option<&'a [sqlparser::ast::Assignment]>,
    returning: Option<&'a [SelectItem]>,
    tag: &'static str,
}

/// Where an assigned column's value comes from.
enum Source {
    /// A column of the SELECT.
    Selected(usize),
    /// The column's default.
    Default(Value),
}

impl Change<'_> {
    async fn run(&self, ctx: &WriteContext<'_>, sink: &mut dyn Sink) -> Result<Done, WireError> {
        let mut attempts = Attempts::new(ctx);
        loop {
            let catalog = Arc::clone(&attempts.catalog);
            let table = write::resolve(&catalog, ctx.database, &self.target.name)?;
            let scope = Scope {
                table: Some(&table.def),
                name: &self.target.called,
                excluded: None,
                params: ctx.params,
                now: Some(write::now_micros()),
            };
            let returning =
                self.returning.map(|items| Returning::bind(items, &table.def, &scope, ctx.spelled)).transpose()?;
            let (ops, reads) = match self.evaluate(ctx, &catalog, table).await {
                Ok(evaluated) => evaluated,
                Err(error) => {
                    attempts.after_read(error).await?;
                    continue;
                }
            };
            let proposal = ctx.proposal(table, ops, reads, returning.is_some());
            match ctx.propose(table.shard, proposal).await {
                Ok(mut result) => {
                    if let Some(returning) = returning {
                        returning.send(std::mem::take(&mut result.returned), sink).await?;
                    }
                    return Ok(ctx.done(self.tag, table.shard, &result));
                }
                Err(error) => attempts.again(error).await?,
            }
        }
    }

    /// The operations as of a snapshot, and what they rest on.
    async fn evaluate(
        &self,
        ctx: &WriteContext<'_>,
        catalog: &Arc<Catalog>,
        table: &TableDesc,
    ) -> Result<(Vec<Op>, Vec<ReadCheck>), WireError> {
        let def = &table.def;
        let mut exprs: Vec<Ast> =
            def.primary_key.iter().map(|c| self.column(&def.columns[usize::from(*c)].name)).collect();
        let mut set: Vec<(ColumnPos, Source)> = Vec::new();
        for (column, expr) in insert::flatten(self.assignments.unwrap_or_default(), def)? {
            let expr = match default_of(column, expr, table)? {
                None => expr.clone(),
                Some(Fill::Expr(default)) => *default,
                Some(Fill::Value(value)) => {
                    set.push((column, Source::Default(value)));
                    continue;
                }
                Some(Fill::Next | Fill::Uuid) => {
                    let name = &def.columns[usize::from(column)].name;
                    return Err(WireError::unsupported(format!("SET \"{name}\" = DEFAULT for several rows")));
                }
            };
            set.push((column, Source::Selected(exprs.len())));
            exprs.push(expr);
        }
        let query = select::query(exprs, self.from.clone(), self.selection.cloned())?;
        let point = ctx.router.read(table.shard, &ReadLevel::Linearizable, ctx.options.deadline).await?;
        let selected = ctx.queries.select(&query, ctx.params, catalog, &point, ENTRY_BYTES_MAX).await?;
        let mut reads = selected.reads;
        let mut seen: BTreeSet<Bytes> = BTreeSet::new();
        let mut ops = Vec::with_capacity(selected.rows.len());
        for mut row in selected.rows {
            let key = self.key_of(&mut row, table)?;
            let encoded = keys::row_key_of(def, &key).map_err(reject::wire_error)?;
            if !covered(&reads, &encoded) {
                reads.push(ReadCheck { start: encoded.clone(), end: encoded.clone(), seen: point.snapshot.timestamp });
            }
            if !seen.insert(encoded) {
                continue;
            }
            if self.assignments.is_none() {
                ops.push(Op::Delete { table: def.id, key, seen: None, filter: None });
                continue;
            }
            let mut values = Vec::with_capacity(set.len());
            for (column, source) in &set {
                let target = &def.columns[usize::from(*column)];
                let value = match source {
                    Source::Default(value) => value.clone(),
                    Source::Selected(at) => row.get_mut(*at).map(std::mem::take).unwrap_or_default(),
                };
                values.push((*column, Expr::Value(coerce(value, target.ty).map_err(|m| m.of_column(&target.name))?)));
            }
            ops.push(Op::Update { table: def.id, key, seen: None, set: values, filter: None });
        }
        Ok((ops, reads))
    }

    /// `called.column`.
    fn column(&self, name: &str) -> Ast {
        Ast::CompoundIdentifier(vec![Ident::new(self.target.called.clone()), Ident::new(name.to_lowercase())])
    }

    fn key_of(&self, row: &mut [Value], table: &TableDesc) -> Result<Vec<Value>, WireError> {
        let def = &table.def;
        let mut key = Vec::with_capacity(def.primary_key.len());
        for (at, column) in def.primary_key.iter().enumerate() {
            let value = row.get_mut(at).map(std::mem::take).unwrap_or_default();
            // An outer join's row without a match on our side changes nothing; it cannot come out of these joins.
            if value.is_null() {
                return Err(WireError::new(
                    Code::Invalid,
                    format!("the join gives rows without a row of \"{}\"", def.name),
                )
                .hint("use an inner join"));
            }
            let column = &def.columns[usize::from(*column)];
            key.push(coerce(value, column.ty).map_err(|m| m.of_column(&column.name))?);
        }
        Ok(key)
    }
}

/// What `SET column = DEFAULT` means; `None` if something else is assigned.
fn default_of(column: ColumnPos, expr: &Ast, table: &TableDesc) -> Result<Option<Fill>, WireError> {
    if !insert::is_default(expr) {
        return Ok(None);
    }
    insert::fill_of(&table.def.columns[usize::from(column)]).map(Some)
}

fn covered(reads: &[ReadCheck], key: &Bytes) -> bool {
    reads.iter().any(|r| r.start == *key || (r.start <= *key && *key < r.end))
}
