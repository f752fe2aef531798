//! CREATE TABLE, from a list of columns or from a query.

use quorate_core::catalog::TableDesc;
use quorate_shared::error::WireError;
use quorate_shared::ids::ShardId;
use quorate_shared::limits::ENTRY_BYTES_MAX;
use quorate_shared::value::SqlType;
use quorate_shared::wire::{Column, Done, ReadLevel};
use sqlparser::ast::{self, CreateTable, Ident, Query, SetExpr, Statement};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::announce::{Edit, Stop, announce};
use super::define::{Builder, checked_name};
use super::drop;
use super::job::{Change, put};
use super::{check_new_name, ignore_options, place};
use crate::sql::Sink;
use crate::sql::insert;
use crate::sql::write::WriteContext;

/// Runs CREATE TABLE.
///
/// # Errors
/// Whatever is wrong with it.
pub async fn create_table(ctx: &WriteContext<'_>, create: &CreateTable) -> Result<Done, WireError> {
    refuse(create)?;
    let from_query = match &create.query {
        Some(query) => Some(result_columns(ctx, query).await?),
        None => None,
    };
    let mut created = false;
    let done = announce(ctx, "CREATE TABLE", |catalog, edit| {
        created = plan(ctx, create, from_query.as_deref(), catalog, edit)?;
        Ok(())
    })
    .await?;
    let (Some(query), true) = (&create.query, created) else { return Ok(done) };
    // The rows come in a second step; if they do not, the table goes again.
    match fill(ctx, create, query).await {
        Ok(filled) => Ok(Done { tag: "CREATE TABLE AS".into(), rows: filled.rows, token: filled.token, ..done }),
        Err(error) => {
            let how = drop::How { if_exists: true, cascade: false };
            let mut again = ctx.again();
            again.options.write = None;
            again.options.retry = false;
            let _ = drop::drop_tables(&again, std::slice::from_ref(&create.name), how).await;
            Err(error)
        }
    }
}

fn refuse(create: &CreateTable) -> Result<(), WireError> {
    let parts = [
        (create.temporary, "CREATE TEMPORARY TABLE"),
        (create.external, "CREATE EXTERNAL TABLE"),
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.like.is_some(), "CREATE TABLE ... LIKE"),
        (create.clone.is_some(), "CREATE TABLE ... CLONE"),
        (create.inherits.is_some(), "INHERITS"),
        (create.partition_of.is_some() || create.partition_by.is_some(), "partitioning"),
        (create.on_cluster.is_some(), "ON CLUSTER"),
        (create.location.is_some() || create.file_format.is_some(), "a table stored elsewhere"),
    ];
    match parts.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(WireError::unsupported(what)),
        None => Ok(()),
    }
}

/// Plans the table; `false` if it is there already and that is all right.
fn plan(
    ctx: &WriteContext<'_>,
    create: &CreateTable,
    from_query: Option<&[Column]>,
    catalog: &quorate_core::catalog::Catalog,
    edit: &mut Edit,
) -> Result<bool, Stop> {
    let (database, folded, name) = place(ctx, catalog, &create.name)?;
    match check_new_name(catalog, database, &folded, &name, true) {
        Err(Stop::Error(_)) if create.if_not_exists => {
            edit.notice("AlreadyExists", format!("table \"{name}\" exists already, skipping"));
            return Ok(false);
        }
        other => other?,
    }
    let id = edit.next_table();
    let mut builder = Builder::create(catalog, database, id, name.clone(), ctx.spelled);
    let mut constraints = Vec::new();
    for column in &create.columns {
        constraints.extend(builder.add_column(column, edit)?);
    }
    if let Some(columns) = from_query {
        add_query_columns(&mut builder, columns, create, edit)?;
    }
    if builder.def.columns.is_empty() {
        return Err(WireError::sql("42601", format!("table \"{name}\" needs at least one column")).into());
    }
    // Keys come first: a foreign key of the table to itself refers to them.
    let (keys, others): (Vec<_>, Vec<_>) = constraints
        .iter()
        .chain(&create.constraints)
        .partition(|c| matches!(c, ast::TableConstraint::PrimaryKey(_) | ast::TableConstraint::Unique(_)));
    for constraint in keys.into_iter().chain(others) {
        builder.add_constraint(constraint, edit)?;
    }
    builder.close();
    ignore_options(&create.table_options, edit);
    let desc = TableDesc { database, shard: ShardId::DATA, def: builder.def.clone(), public: false };
    edit.puts.push(put(None, Some(&desc)));
    edit.work.what = format!("CREATE TABLE {name}");
    edit.work.uses = builder.uses;
    edit.work.changes.push(Change {
        table: id,
        shard: ShardId::DATA,
        before: None,
        if_empty: None,
        fenced: Some(builder.def),
        not_empty: None,
        fill: None,
    });
    Ok(true)
}

/// CREATE TABLE t (names) AS: names may be given without types by plain columns; else those of the query.
fn add_query_columns(
    builder: &mut Builder<'_>,
    columns: &[Column],
    create: &CreateTable,
    edit: &mut Edit,
) -> Result<(), Stop> {
    if !create.columns.is_empty() {
        if create.columns.len() != columns.len() {
            return Err(WireError::sql("42601", "CREATE TABLE AS needs as many columns as its query has").into());
        }
        return Ok(());
    }
    for column in columns {
        let ty = if column.ty == SqlType::Null { SqlType::Text } else { column.ty };
        let name = checked_name(column.name.clone())?;
        let sql = format!("CREATE TABLE t (x {ty})");
        let parsed = Parser::parse_sql(&PostgreSqlDialect {}, &sql)
            .map_err(|_| WireError::unsupported(format!("a column of type {ty}")))?;
        let Some(Statement::CreateTable(mut template)) = parsed.into_iter().next() else { continue };
        let Some(mut def) = template.columns.pop() else { continue };
        def.name = Ident::with_quote('"', name.clone());
        builder.add_column(&def, edit)?;
        // The label's own spelling, whatever the statement spelled likewise.
        if let Some(added) = builder.def.columns.last_mut() {
            added.name = name;
        }
    }
    Ok(())
}

async fn result_columns(ctx: &WriteContext<'_>, query: &Query) -> Result<Vec<Column>, WireError> {
    let point = ctx.router.read(ShardId::DATA, &ReadLevel::Linearizable, ctx.options.deadline).await?;
    let selected = ctx.queries.select(query, ctx.params, &ctx.catalog, &point, ENTRY_BYTES_MAX).await?;
    // Plain columns keep the spelling they have in the statement.
    let spelled = |column: Column| Column { name: (ctx.spelled)(&column.name), ..column };
    Ok(selected.columns.into_iter().map(spelled).collect())
}

/// INSERT INTO the new table the query's rows.
async fn fill(ctx: &WriteContext<'_>, create: &CreateTable, query: &Query) -> Result<Done, WireError> {
    let broken = || WireError::new(quorate_shared::error::Code::Internal, "an INSERT could not be built");
    let mut parsed = Parser::parse_sql(&PostgreSqlDialect {}, "INSERT INTO t SELECT 1").map_err(|_| broken())?;
    let Some(Statement::Insert(mut insert)) = parsed.pop() else { return Err(broken()) };
    insert.table = ast::TableObject::TableName(create.name.clone());
    insert.source = Some(match &*query.body {
        // A bare VALUES is a query as well.
        SetExpr::Values(_) | SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::SetOperation { .. } => {
            Box::new(query.clone())
        }
        other => return Err(WireError::unsupported(format!("CREATE TABLE AS {other}"))),
    });
    insert::run_insert(&ctx.again(), &insert, &mut NoRows).await
}

struct NoRows;

#[async_trait::async_trait]
impl Sink for NoRows {
    async fn columns(&mut self, _columns: Vec<Column>) -> Result<(), WireError> {
        Ok(())
    }
    async fn rows(&mut self, _rows: Vec<Vec<quorate_shared::value::Value>>) -> Result<(), WireError> {
        Ok(())
    }
}
