//! DDL: databases, tables, indexes, views, from the parsed statement to catalog descriptors and jobs.
//!
//! The session's node plans on its catalog and announces the change in `s0` ([`mod@announce`]); what concerns rows is done
//! by a job on the master ([`job`]). Names are compared without case and keep the spelling of their creation. What is
//! not supported is refused by name with a hint; what has no meaning here (`ENGINE=`) is ignored with a notice.
//!
//! A CREATE TABLE costs three commits: announced, fenced, public. CREATE DATABASE and views cost one.

pub mod alter;
pub mod announce;
pub mod create;
pub mod define;
pub mod drop;
pub mod job;
pub mod types;

use std::sync::Arc;

use quorate_core::catalog::{Catalog, DatabaseDesc, ViewDesc};
use quorate_shared::error::WireError;
use quorate_shared::ids::DatabaseId;
use quorate_shared::limits::DATABASE_SYSTEM;
use quorate_shared::wire::{Done, ReadLevel};
use sqlparser::ast::{self, CreateView, Expr as Ast, LimitClause, ObjectName, ObjectType, Statement};

use crate::router::Router;
use crate::sql::write::{self, WriteContext};
use announce::{Edit, Stop, announce};
pub use define::HIDDEN_ROW_ID;
use job::put;
pub use job::run_jobs;

/// Databases that nobody can create or drop: they are answered by the node itself.
const RESERVED: [&str; 3] = [DATABASE_SYSTEM, "information_schema", "pg_catalog"];

/// Runs a DDL statement; `None`: it is none.
///
/// # Errors
/// Whatever is wrong with it; nothing was changed then, or the change was rolled back.
pub async fn run(ctx: &WriteContext<'_>, statement: &Statement) -> Result<Option<Done>, WireError> {
    if !is_ddl(statement) {
        return Ok(None);
    }
    write::check_writable(&*ctx.router)?;
    let done = match statement {
        Statement::CreateDatabase { db_name, if_not_exists, .. } => create_database(ctx, db_name, *if_not_exists).await,
        Statement::CreateTable(create) => create::create_table(ctx, create).await,
        Statement::AlterTable(alter) => alter::alter_table(ctx, alter).await,
        Statement::AlterIndex { name, operation } => alter::alter_index(ctx, name, operation).await,
        Statement::RenameTable(renames) => alter::rename_tables(ctx, renames).await,
        Statement::CreateIndex(create) => alter::create_index(ctx, create).await,
        Statement::CreateView(create) => create_view(ctx, create).await,
        Statement::Truncate(truncate) => drop::truncate(ctx, truncate).await,
        Statement::Drop { object_type, if_exists, names, cascade, table, .. } => {
            let how = drop::How { if_exists: *if_exists, cascade: *cascade };
            match object_type {
                ObjectType::Table => drop::drop_tables(ctx, names, how).await,
                ObjectType::View => drop::drop_views(ctx, names, how).await,
                ObjectType::Index => drop::drop_indexes(ctx, names, table.as_ref(), how).await,
                ObjectType::Database => drop::drop_databases(ctx, names, how).await,
                ObjectType::Schema => Err(WireError::unsupported("DROP SCHEMA").hint("use DROP DATABASE")),
                other => Err(WireError::unsupported(format!("DROP {other}"))),
            }
        }
        other => Err(refused(other)),
    };
    done.map(Some)
}

/// Whether a statement is DDL, supported or not.
pub fn is_ddl(statement: &Statement) -> bool {
    use Statement as S;
    matches!(
        statement,
        S::CreateDatabase { .. }
            | S::CreateTable(_)
            | S::AlterTable(_)
            | S::AlterIndex { .. }
            | S::RenameTable(_)
            | S::CreateIndex(_)
            | S::CreateView(_)
            | S::Truncate(_)
            | S::Drop { .. }
            | S::CreateSchema { .. }
            | S::CreateSequence { .. }
            | S::CreateType { .. }
            | S::CreateDomain(_)
            | S::CreateFunction(_)
            | S::CreateTrigger(_)
            | S::CreateRole(_)
            | S::CreateExtension(_)
            | S::AlterView { .. }
            | S::AlterSchema(_)
            | S::DropFunction(_)
            | S::DropTrigger(_)
    )
}

fn refused(statement: &Statement) -> WireError {
    let words: Vec<String> = statement.to_string().split_whitespace().take(2).map(str::to_uppercase).collect();
    let error = WireError::unsupported(words.join(" "));
    match statement {
        Statement::CreateSchema { .. } | Statement::AlterSchema(_) => error.hint("use CREATE DATABASE"),
        Statement::CreateSequence { .. } => error.hint("declare a column SERIAL or AUTO_INCREMENT"),
        Statement::CreateType { .. } | Statement::CreateDomain(_) => error.hint("use a CHECK constraint"),
        Statement::AlterView { .. } => error.hint("use CREATE OR REPLACE VIEW"),
        _ => error,
    }
}

/// Makes sure that there is a catalog with the first database; called by whoever leads `s0`.
pub async fn found(router: &Arc<dyn Router>) {
    announce::found(router).await;
}

/// A database's name in the spelling of the statement.
fn database_name(ctx: &WriteContext<'_>, name: &ObjectName) -> Result<String, WireError> {
    let [part] = name.0.as_slice() else {
        return Err(WireError::sql("42601", format!("{name} is not a database name")));
    };
    let ident = part.as_ident().ok_or_else(|| WireError::sql("42601", format!("{name} is not a database name")))?;
    let name = define::checked_name((ctx.spelled)(&ident.value))?;
    if RESERVED.contains(&name.to_lowercase().as_str()) {
        return Err(WireError::sql("42939", format!("the database name \"{name}\" is reserved")));
    }
    Ok(name)
}

async fn create_database(ctx: &WriteContext<'_>, name: &ObjectName, if_not_exists: bool) -> Result<Done, WireError> {
    let name = database_name(ctx, name)?;
    announce(ctx, "CREATE DATABASE", |catalog, edit| {
        if catalog.databases.contains_key(&name.to_lowercase()) {
            if if_not_exists {
                edit.notice("AlreadyExists", format!("database \"{name}\" exists already, skipping"));
                return Ok(());
            }
            return Err(WireError::sql("42P04", format!("database \"{name}\" already exists")).into());
        }
        let desc = DatabaseDesc { id: edit.next_database(), name: name.clone() };
        edit.puts.push(put(None, Some(&desc)));
        Ok(())
    })
    .await
}

/// Where a new table or view goes: its database, its folded name and its spelling.
fn place(
    ctx: &WriteContext<'_>,
    catalog: &Catalog,
    name: &ObjectName,
) -> Result<(DatabaseId, String, String), WireError> {
    let (database, folded) = write::locate(catalog, ctx.database, name)?;
    if catalog.database_by_id(database).is_none() {
        return Err(WireError::sql("3D000", "the session's database does not exist")
            .hint("USE another one, or CREATE DATABASE"));
    }
    let spelled = define::checked_name((ctx.spelled)(&folded))?;
    Ok((database, folded, spelled))
}

async fn create_view(ctx: &WriteContext<'_>, create: &CreateView) -> Result<Done, WireError> {
    let unsupported = [
        (create.materialized, "CREATE MATERIALIZED VIEW"),
        (create.temporary, "CREATE TEMPORARY VIEW"),
        (create.secure, "CREATE SECURE VIEW"),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(asked, _)| *asked) {
        return Err(WireError::unsupported(what));
    }
    // Planning it now finds unknown tables and columns; no rows are wanted.
    let mut query = (*create.query).clone();
    if query.limit_clause.is_none() && query.fetch.is_none() {
        let zero = Ast::value(ast::Value::Number("0".into(), false));
        query.limit_clause = Some(LimitClause::LimitOffset { limit: Some(zero), offset: None, limit_by: Vec::new() });
    }
    let point =
        ctx.router.read(quorate_shared::ids::ShardId::DATA, &ReadLevel::Linearizable, ctx.options.deadline).await?;
    let selected =
        ctx.queries.select(&query, &[], &ctx.catalog, &point, quorate_shared::limits::ENTRY_BYTES_MAX).await?;
    if create.columns.len() > selected.columns.len() {
        return Err(WireError::sql("42601", "CREATE VIEW specifies more column names than columns"));
    }
    let columns: Vec<String> = create.columns.iter().map(|c| (ctx.spelled)(&c.name.value)).collect();
    let sql = create.query.to_string();
    announce(ctx, "CREATE VIEW", |catalog, edit| {
        let (database, folded, name) = place(ctx, catalog, &create.name)?;
        check_new_name(catalog, database, &folded, &name, false)?;
        let old = catalog.views.get(&(database, folded));
        let desc = match old {
            Some(_) if create.if_not_exists => {
                edit.notice("AlreadyExists", format!("view \"{name}\" exists already, skipping"));
                return Ok(());
            }
            Some(_) if !create.or_replace => {
                return Err(WireError::sql("42P07", format!("view \"{name}\" already exists"))
                    .hint("use CREATE OR REPLACE VIEW")
                    .into());
            }
            Some(old) => ViewDesc { columns: columns.clone(), sql: sql.clone(), ..old.clone() },
            None => ViewDesc { id: edit.next_table(), database, name, columns: columns.clone(), sql: sql.clone() },
        };
        edit.puts.push(put(old, Some(&desc)));
        Ok(())
    })
    .await
}

/// That no table (and no view, where `views`) has this name.
fn check_new_name(catalog: &Catalog, database: DatabaseId, folded: &str, name: &str, views: bool) -> Result<(), Stop> {
    let key = (database, folded.to_owned());
    if let Some(table) = catalog.tables.get(&key) {
        announce::check_free(catalog, table.def.id)?;
        return Err(WireError::sql("42P07", format!("table \"{name}\" already exists")).into());
    }
    if views && catalog.views.contains_key(&key) {
        return Err(WireError::sql("42P07", format!("\"{name}\" already exists as a view")).into());
    }
    Ok(())
}

/// Remarks about options that mean nothing here.
fn ignore_options(options: &ast::CreateTableOptions, edit: &mut Edit) {
    use ast::CreateTableOptions as O;
    let (O::With(list) | O::Options(list) | O::Plain(list) | O::TableProperties(list)) = options else { return };
    if !list.is_empty() {
        let names: Vec<String> = list.iter().map(ToString::to_string).collect();
        edit.notice("OptionIgnored", format!("{} is ignored", names.join(", ")));
    }
}
