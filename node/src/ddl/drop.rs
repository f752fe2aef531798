//! DROP of everything, and TRUNCATE.
//!
//! Rows are not deleted one by one: the table is fenced away (or onto a new storage), and its old keys are purged later.
//! What others need (a foreign key, a view) is refused without CASCADE; CASCADE drops those constraints and views, never
//! rows of other tables. TRUNCATE ... CASCADE truncates the tables that refer to it as well, as in PostgreSQL.

use std::collections::BTreeSet;

use quorate_core::catalog::{Catalog, TableDesc, ViewDesc};
use quorate_core::table::TableDef;
use quorate_shared::error::WireError;
use quorate_shared::ids::{DatabaseId, SchemaVersion, TableId};
use quorate_shared::wire::Done;
use sqlparser::ast::{self, ObjectName, Truncate};

use super::announce::{Edit, Stop, announce, check_free};
use super::database_name;
use super::job::{Change, put};
use crate::sql::bind::same_name;
use crate::sql::select;
use crate::sql::write::{self, WriteContext};

/// IF EXISTS and CASCADE.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// What is not there is skipped with a notice.
    pub if_exists: bool,
    /// What depends on it goes, too.
    pub cascade: bool,
}

/// The schema version `n` steps after a definition's.
pub(super) fn version_after(def: &TableDef, n: u32) -> SchemaVersion {
    SchemaVersion::new(def.version.get().saturating_add(n))
}

/// Finds a table that no job works on.
pub(super) fn find<'a>(ctx: &WriteContext<'_>, catalog: &'a Catalog, name: &ObjectName) -> Result<&'a TableDesc, Stop> {
    let (database, folded) = write::locate(catalog, ctx.database, name)?;
    // Also one that is just being created or dropped: wait for its job first.
    if let Some(desc) = catalog.tables.get(&(database, folded)) {
        check_free(catalog, desc.def.id)?;
    }
    Ok(write::resolve(catalog, ctx.database, name)?)
}

/// A change that only needs a fence.
pub(super) fn fence_only(desc: &TableDesc, fenced: Option<TableDef>) -> Change {
    Change {
        table: desc.def.id,
        shard: desc.shard,
        before: Some(desc.def.clone()),
        if_empty: None,
        fenced,
        not_empty: None,
        fill: None,
    }
}

/// DROP TABLE.
///
/// # Errors
/// Unknown tables, and those that others depend on.
pub async fn drop_tables(ctx: &WriteContext<'_>, names: &[ObjectName], how: How) -> Result<Done, WireError> {
    announce(ctx, "DROP TABLE", |catalog, edit| {
        let mut tables: Vec<&TableDesc> = Vec::new();
        for name in names {
            match find(ctx, catalog, name) {
                Ok(desc) if tables.iter().any(|t| t.def.id == desc.def.id) => {}
                Ok(desc) => tables.push(desc),
                Err(Stop::Error(error)) if how.if_exists && error.sqlstate.as_deref() == Some("42P01") => {
                    edit.notice("NotThere", format!("table \"{name}\" does not exist, skipping"));
                }
                Err(stop) => return Err(stop),
            }
        }
        if tables.is_empty() {
            return Ok(());
        }
        edit.work.what =
            format!("DROP TABLE {}", tables.iter().map(|t| t.def.name.as_str()).collect::<Vec<_>>().join(", "));
        release(catalog, &tables, how.cascade, edit)?;
        for desc in tables {
            edit.work.purge.push(desc.def.storage);
            edit.work.changes.push(fence_only(desc, None));
        }
        Ok(())
    })
    .await
}

/// Foreign keys and views that depend on tables that go: dropped with CASCADE, else the reason to refuse.
fn release(catalog: &Catalog, tables: &[&TableDesc], cascade: bool, edit: &mut Edit) -> Result<(), Stop> {
    let goes = |id: TableId| tables.iter().any(|t| t.def.id == id);
    for desc in catalog.tables.values().filter(|d| !goes(d.def.id)) {
        let Some(fk) = desc.def.foreign_keys.iter().find(|fk| goes(fk.parent)) else { continue };
        check_free(catalog, desc.def.id)?;
        if !cascade {
            let parent = tables.iter().find(|t| t.def.id == fk.parent).map_or("", |t| t.def.name.as_str());
            return Err(depends(
                &format!("table {parent}"),
                &format!("constraint {} on table {} depends on table {parent}", fk.name, desc.def.name),
            )
            .into());
        }
        let mut def = desc.def.clone();
        for fk in def.foreign_keys.iter().filter(|fk| goes(fk.parent)) {
            edit.notice("Cascades", format!("drop cascades to constraint {} on table {}", fk.name, def.name));
        }
        def.foreign_keys.retain(|fk| !goes(fk.parent));
        def.version = version_after(&def, 1);
        edit.work.changes.push(fence_only(desc, Some(def)));
    }
    for view in catalog.views.values() {
        let Some(table) = tables.iter().find(|t| view_uses(catalog, view, t.database, &t.def.name)) else { continue };
        if !cascade {
            return Err(depends(
                &format!("table {}", table.def.name),
                &format!("view {} depends on table {}", view.name, table.def.name),
            )
            .into());
        }
        edit.notice("Cascades", format!("drop cascades to view {}", view.name));
        edit.work.views.push(view.id);
    }
    Ok(())
}

fn depends(what: &str, detail: &str) -> WireError {
    WireError::sql("2BP01", format!("cannot drop {what} because other objects depend on it"))
        .detail(detail)
        .hint("use DROP ... CASCADE to drop the dependent objects too")
}

/// Whether a view reads a table or view of this name.
fn view_uses(catalog: &Catalog, view: &ViewDesc, database: DatabaseId, name: &str) -> bool {
    use std::ops::ControlFlow;
    let Ok(query) = select::stored_query(&view.sql) else { return false };
    let folded = name.to_lowercase();
    let found = ast::visit_relations(&query, |relation| match write::locate(catalog, view.database, relation) {
        Ok((db, table)) if db == database && table == folded => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// DROP VIEW.
///
/// # Errors
/// Unknown views, and those that other views depend on.
pub async fn drop_views(ctx: &WriteContext<'_>, names: &[ObjectName], how: How) -> Result<Done, WireError> {
    announce(ctx, "DROP VIEW", |catalog, edit| {
        let mut gone: BTreeSet<TableId> = BTreeSet::new();
        let mut queue: Vec<&ViewDesc> = Vec::new();
        for name in names {
            let (database, folded) = write::locate(catalog, ctx.database, name)?;
            match catalog.views.get(&(database, folded.clone())) {
                Some(view) => queue.push(view),
                None if catalog.tables.contains_key(&(database, folded)) => {
                    return Err(WireError::sql("42809", format!("\"{name}\" is not a view"))
                        .hint("use DROP TABLE")
                        .into());
                }
                None if how.if_exists => edit.notice("NotThere", format!("view \"{name}\" does not exist, skipping")),
                None => return Err(WireError::sql("42P01", format!("view \"{name}\" does not exist")).into()),
            }
        }
        let named: BTreeSet<TableId> = queue.iter().map(|v| v.id).collect();
        while let Some(view) = queue.pop() {
            if !gone.insert(view.id) {
                continue;
            }
            edit.puts.push(put(Some(view), None));
            for other in catalog
                .views
                .values()
                .filter(|v| !gone.contains(&v.id) && view_uses(catalog, v, view.database, &view.name))
            {
                if !how.cascade && !named.contains(&other.id) {
                    return Err(depends(
                        &format!("view {}", view.name),
                        &format!("view {} depends on view {}", other.name, view.name),
                    )
                    .into());
                }
                queue.push(other);
            }
        }
        Ok(())
    })
    .await
}

/// DROP DATABASE, with everything in it.
///
/// # Errors
/// Unknown databases.
pub async fn drop_databases(ctx: &WriteContext<'_>, names: &[ObjectName], how: How) -> Result<Done, WireError> {
    let [name] = names else {
        return Err(WireError::unsupported("DROP DATABASE of several databases").hint("drop them one by one"));
    };
    let name = database_name(ctx, name)?;
    announce(ctx, "DROP DATABASE", |catalog, edit| {
        let Some(database) = catalog.databases.get(&name.to_lowercase()) else {
            if how.if_exists {
                edit.notice("NotThere", format!("database \"{name}\" does not exist, skipping"));
                return Ok(());
            }
            return Err(WireError::sql("3D000", format!("database \"{name}\" does not exist")).into());
        };
        let tables: Vec<&TableDesc> = catalog.tables_of(database.id).collect();
        for desc in &tables {
            check_free(catalog, desc.def.id)?;
        }
        let views = catalog.views_of(database.id);
        if tables.is_empty() {
            edit.puts.extend(views.map(|view| put(Some(view), None)));
            edit.puts.push(put(Some(database), None));
            return Ok(());
        }
        edit.work.what = format!("DROP DATABASE {name}");
        edit.work.views = views.map(|v| v.id).collect();
        edit.work.database = Some(database.id);
        for desc in tables {
            edit.work.purge.push(desc.def.storage);
            edit.work.changes.push(fence_only(desc, None));
        }
        Ok(())
    })
    .await
}

/// DROP INDEX name, or name ON table.
///
/// # Errors
/// Unknown or ambiguous indexes, and those that a constraint needs.
pub async fn drop_indexes(
    ctx: &WriteContext<'_>,
    names: &[ObjectName],
    table: Option<&ObjectName>,
    how: How,
) -> Result<Done, WireError> {
    let [name] = names else {
        return Err(WireError::unsupported("DROP INDEX of several indexes").hint("drop them one by one"));
    };
    announce(ctx, "DROP INDEX", |catalog, edit| {
        let Some((desc, index)) = find_index(ctx, catalog, name, table)? else {
            if how.if_exists {
                edit.notice("NotThere", format!("index \"{name}\" does not exist, skipping"));
                return Ok(());
            }
            return Err(WireError::sql("42704", format!("index \"{name}\" does not exist")).into());
        };
        let mut def = desc.def.clone();
        super::alter::drop_index(catalog, &mut def, &index, how.cascade, false, edit)?;
        def.version = version_after(&def, 1);
        edit.work.what = format!("DROP INDEX {index}");
        edit.work.purge.push(def.storage);
        edit.work.changes.push(fence_only(desc, Some(def)));
        Ok(())
    })
    .await
}

/// The table and exact name of an index.
pub(super) fn find_index<'a>(
    ctx: &WriteContext<'_>,
    catalog: &'a Catalog,
    name: &ObjectName,
    table: Option<&ObjectName>,
) -> Result<Option<(&'a TableDesc, String)>, Stop> {
    let (database, folded) = write::locate(catalog, ctx.database, name)?;
    let candidates: Vec<&TableDesc> = match table {
        Some(table) => vec![find(ctx, catalog, table)?],
        None => catalog.tables_of(database).filter(|d| d.public).collect(),
    };
    let mut found = candidates.into_iter().filter_map(|desc| {
        desc.def.indexes.iter().find(|i| same_name(&i.name, &folded)).map(|i| (desc, i.name.clone()))
    });
    let first = found.next();
    if let (Some((a, _)), Some((b, _))) = (&first, found.next()) {
        let message = format!("index \"{name}\" exists on \"{}\" and on \"{}\"", a.def.name, b.def.name);
        return Err(WireError::sql("42725", message).hint("say which: DROP INDEX name ON table").into());
    }
    if let Some((desc, _)) = &first {
        check_free(catalog, desc.def.id)?;
    }
    Ok(first)
}

/// TRUNCATE.
///
/// # Errors
/// Unknown tables; tables that others refer to, without CASCADE.
pub async fn truncate(ctx: &WriteContext<'_>, truncate: &Truncate) -> Result<Done, WireError> {
    if truncate.partitions.is_some() || truncate.on_cluster.is_some() {
        return Err(WireError::unsupported("TRUNCATE of partitions"));
    }
    let cascade = matches!(truncate.cascade, Some(ast::CascadeOption::Cascade));
    let restart = matches!(truncate.identity, Some(ast::TruncateIdentityOption::Restart));
    announce(ctx, "TRUNCATE TABLE", |catalog, edit| {
        let mut tables: Vec<&TableDesc> = Vec::new();
        for target in &truncate.table_names {
            match find(ctx, catalog, &target.name) {
                Ok(desc) if tables.iter().any(|t| t.def.id == desc.def.id) => {}
                Ok(desc) => tables.push(desc),
                Err(Stop::Error(error)) if truncate.if_exists && error.sqlstate.as_deref() == Some("42P01") => {
                    edit.notice("NotThere", format!("table \"{}\" does not exist, skipping", target.name));
                }
                Err(stop) => return Err(stop),
            }
        }
        let mut at = 0;
        while let Some(parent) = tables.get(at).copied() {
            at += 1;
            for desc in catalog.tables.values() {
                let refers = desc.def.foreign_keys.iter().any(|fk| fk.parent == parent.def.id);
                if !refers || tables.iter().any(|t| t.def.id == desc.def.id) {
                    continue;
                }
                if !cascade {
                    return Err(WireError::sql(
                        "0A000",
                        "cannot truncate a table referenced in a foreign key constraint",
                    )
                    .detail(format!("table \"{}\" references \"{}\"", desc.def.name, parent.def.name))
                    .hint(format!("truncate table \"{}\" at the same time, or use TRUNCATE ... CASCADE", desc.def.name))
                    .into());
                }
                check_free(catalog, desc.def.id)?;
                edit.notice("Cascades", format!("truncate cascades to table \"{}\"", desc.def.name));
                tables.push(desc);
            }
        }
        for desc in tables {
            let storage = edit.next_table();
            let def = TableDef { storage, version: version_after(&desc.def, 1), ..desc.def.clone() };
            edit.work.purge.push(desc.def.storage);
            edit.work.changes.push(fence_only(desc, Some(def)));
        }
        edit.work.restart = restart;
        edit.work.what = "TRUNCATE".into();
        Ok(())
    })
    .await
}
