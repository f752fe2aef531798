//! What completion and `\d` need to know, from the catalog.

use quorate_core::catalog::{Catalog, TableDesc};
use quorate_core::table::{ColumnPos, TableDef};
use quorate_shared::limits::DATABASE_SYSTEM;
use quorate_shared::wire::{DatabaseInfo, SchemaInfo, TableInfo};

/// Databases with their public tables and views. `system` are the tables of the reserved database, `functions` what
/// SQL can call.
pub fn schema_of(catalog: &Catalog, system: Vec<TableInfo>, functions: Vec<String>) -> SchemaInfo {
    let mut databases: Vec<DatabaseInfo> = catalog
        .databases
        .values()
        .map(|database| {
            let tables = catalog.tables.values().filter(|table| table.database == database.id && table.public);
            let views = catalog.views.values().filter(|view| view.database == database.id);
            let mut tables: Vec<TableInfo> = tables.map(|table| table_of(catalog, table)).collect();
            tables.extend(views.map(|view| TableInfo {
                name: view.name.clone(),
                kind: "view".into(),
                columns: view.columns.iter().map(|name| (name.clone(), String::new())).collect(),
                ..TableInfo::default()
            }));
            tables.sort_by_cached_key(|table| table.name.to_lowercase());
            DatabaseInfo { name: database.name.clone(), tables }
        })
        .collect();
    databases.push(DatabaseInfo { name: DATABASE_SYSTEM.into(), tables: system });
    SchemaInfo { catalog: catalog.version, databases, functions }
}

fn table_of(catalog: &Catalog, table: &TableDesc) -> TableInfo {
    let def = &table.def;
    let name = |def: &TableDef, at: &ColumnPos| def.columns.get(usize::from(*at)).map(|column| column.name.clone());
    let names = |def: &TableDef, at: &[ColumnPos]| at.iter().filter_map(|at| name(def, at)).collect::<Vec<_>>();
    let hidden = |at: &ColumnPos| def.columns.get(usize::from(*at)).is_none_or(|column| column.hidden);
    let parent = |id| catalog.tables.values().map(|table| &table.def).find(|def| def.id == id);
    TableInfo {
        name: def.name.clone(),
        kind: "table".into(),
        columns: def
            .columns
            .iter()
            .filter(|column| !column.hidden && !column.dropped)
            .map(|column| (column.name.clone(), column.ty.to_string()))
            .collect(),
        // A hidden row id is nobody's business.
        primary_key: if def.primary_key.iter().any(hidden) { Vec::new() } else { names(def, &def.primary_key) },
        foreign_keys: def
            .foreign_keys
            .iter()
            .filter_map(|key| {
                let parent = parent(key.parent)?;
                Some((names(def, &key.columns), parent.name.clone(), names(parent, &key.parent_columns)))
            })
            .collect(),
    }
}
