//! `SHOW …` and `DESCRIBE`: the catalog and the session's settings as small results.

use std::fmt::Write as _;

use quorate_core::catalog::{Catalog, DatabaseDesc, TableDesc, ViewDesc};
use quorate_core::table::{DefaultValue, FkAction, TableDef};
use quorate_shared::error::WireError;
use quorate_shared::ids::ShardId;
use quorate_shared::limits::DATABASE_SYSTEM;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{Column, Done, ReadLevel};
use sqlparser::ast::{self, ShowStatementFilter, ShowStatementFilterPosition, ShowStatementOptions, Statement};

use super::errors::nearest;
use super::parse::Parsed;
use super::session::Run;
use super::settings::SETTINGS;
use super::{Sink, dispatch, system};

/// Whether [`run`] answers it.
pub fn handles(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::ShowDatabases { .. }
            | Statement::ShowSchemas { .. }
            | Statement::ShowTables { .. }
            | Statement::ShowViews { .. }
            | Statement::ShowColumns { .. }
            | Statement::ShowCreate { .. }
            | Statement::ShowVariable { .. }
            | Statement::ShowVariables { .. }
            | Statement::ShowFunctions { .. }
            | Statement::ShowProcessList { .. }
            | Statement::ShowStatus { .. }
            | Statement::ExplainTable { .. }
    )
}

/// Runs it.
///
/// # Errors
/// What it names does not exist.
pub async fn run(run: &Run, parsed: &Parsed, sink: &mut dyn Sink) -> Result<Done, WireError> {
    if run.read_level != ReadLevel::Local {
        // Names shall be as fresh as rows are.
        run.router.read(ShardId::META, &run.read_level, run.deadline).await?;
    }
    let catalog = run.router.catalog();
    let (columns, rows) = match &parsed.statement {
        Statement::ShowDatabases { show_options, .. } | Statement::ShowSchemas { show_options, .. } => {
            databases(&catalog, &Like::of(show_options)?)
        }
        Statement::ShowTables { show_options, full, .. } => tables(run, &catalog, show_options, *full, true)?,
        Statement::ShowViews { show_options, .. } => tables(run, &catalog, show_options, false, false)?,
        Statement::ShowColumns { show_options, .. } => columns_of(run, &catalog, show_options)?,
        Statement::ExplainTable { table_name, .. } => describe(run, &catalog, table_name, &Like::default())?,
        Statement::ShowCreate { obj_type, obj_name } => show_create(run, &catalog, obj_type, obj_name)?,
        Statement::ShowVariable { variable } => variable_or_index(run, &catalog, variable)?,
        Statement::ShowVariables { filter, .. } => all_settings(run, &Like::filter(filter.as_ref())?)?,
        Statement::ShowFunctions { filter } => {
            let like = Like::filter(filter.as_ref())?;
            let names = run.engine.functions().into_iter().filter(|n| like.matches(n));
            (text_columns(&["function"]), names.map(|n| vec![text(n)]).collect())
        }
        Statement::ShowProcessList { .. } => processes(run),
        _ => {
            return Err(WireError::unsupported(parsed.verb())
                .hint("SELECT * FROM quorate.nodes, .shards, .replicas, .problems or .queries"));
        }
    };
    dispatch::send(sink, "SHOW", columns, rows).await
}

type Table = (Vec<Column>, Vec<Vec<Value>>);

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn text_columns(names: &[&str]) -> Vec<Column> {
    names.iter().map(|n| Column { name: (*n).to_owned(), ty: SqlType::Text }).collect()
}

/// A `LIKE` behind SHOW.
#[derive(Default)]
struct Like(Option<String>);

impl Like {
    fn of(options: &ShowStatementOptions) -> Result<Self, WireError> {
        let filter = match &options.filter_position {
            Some(ShowStatementFilterPosition::Infix(f) | ShowStatementFilterPosition::Suffix(f)) => Some(f),
            None => None,
        };
        let starts = options.starts_with.as_ref().map(|v| Like(Some(format!("{}%", v.to_string().trim_matches('\'')))));
        starts.map_or_else(|| Self::filter(filter), Ok)
    }

    fn filter(filter: Option<&ShowStatementFilter>) -> Result<Self, WireError> {
        match filter {
            None => Ok(Like(None)),
            Some(ShowStatementFilter::Like(p) | ShowStatementFilter::ILike(p) | ShowStatementFilter::NoKeyword(p)) => {
                Ok(Like(Some(p.to_lowercase())))
            }
            Some(ShowStatementFilter::Where(_)) => {
                Err(WireError::unsupported("SHOW … WHERE")
                    .hint("SHOW … LIKE 'pattern', or SELECT from information_schema"))
            }
        }
    }

    fn matches(&self, name: &str) -> bool {
        fn like(pattern: &[char], text: &[char]) -> bool {
            match pattern.split_first() {
                None => text.is_empty(),
                Some(('%', rest)) => (0..=text.len()).any(|i| like(rest, &text[i..])),
                Some(('_', rest)) => !text.is_empty() && like(rest, &text[1..]),
                Some((c, rest)) => text.first() == Some(c) && like(rest, &text[1..]),
            }
        }
        let Some(pattern) = &self.0 else { return true };
        // Long runs of % would take for ever and match the same.
        let mut collapsed = Vec::with_capacity(pattern.len());
        for c in pattern.chars().take(128) {
            if c != '%' || collapsed.last() != Some(&'%') {
                collapsed.push(c);
            }
        }
        if collapsed.iter().filter(|c| **c == '%').count() > 8 {
            return false;
        }
        like(&collapsed, &name.to_lowercase().chars().collect::<Vec<_>>())
    }
}

fn databases(catalog: &Catalog, like: &Like) -> Table {
    let mut names: Vec<&str> = catalog
        .databases
        .values()
        .map(|d| d.name.as_str())
        .chain([DATABASE_SYSTEM])
        .filter(|n| like.matches(n))
        .collect();
    names.sort_by_key(|n| n.to_lowercase());
    (text_columns(&["database"]), names.into_iter().map(|n| vec![text(n)]).collect())
}

/// Fails if there is no such database.
///
/// # Errors
/// `3D000`.
pub fn check_database(run: &Run, name: &str) -> Result<(), WireError> {
    let catalog = run.router.catalog();
    if name == DATABASE_SYSTEM {
        return Ok(());
    }
    database(&catalog, name).map(|_| ())
}

/// A database by its lower-case name.
///
/// # Errors
/// `3D000`, with the nearest name.
pub fn database<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a DatabaseDesc, WireError> {
    catalog.databases.get(name).ok_or_else(|| {
        let names: Vec<&str> = catalog.databases.keys().map(String::as_str).collect();
        let error = WireError::sql("3D000", format!("database \"{name}\" does not exist"));
        match nearest(name, &names) {
            Some(near) => error.hint(format!("did you mean \"{near}\"?")),
            None => error.hint("SHOW DATABASES lists those there are"),
        }
    })
}

fn scope_of(run: &Run, options: &ShowStatementOptions) -> String {
    let name = options.show_in.as_ref().and_then(|s| s.parent_name.as_ref());
    name.map_or_else(|| run.settings.database.clone(), last)
}

fn last(name: &ast::ObjectName) -> String {
    name.0.last().and_then(|p| p.as_ident()).map(|i| i.value.clone()).unwrap_or_default()
}

fn tables(
    run: &Run,
    catalog: &Catalog,
    options: &ShowStatementOptions,
    full: bool,
    with_tables: bool,
) -> Result<Table, WireError> {
    let name = scope_of(run, options);
    let like = Like::of(options)?;
    let mut found: Vec<(String, &str)> = Vec::new();
    if name == DATABASE_SYSTEM {
        found.extend(system::NAMES.iter().map(|n| ((*n).to_owned(), "SYSTEM TABLE")));
    } else {
        let database = database(catalog, &name)?;
        if with_tables {
            found.extend(
                catalog.tables_of(database.id).filter(|t| t.public).map(|t| (t.def.name.clone(), "BASE TABLE")),
            );
        }
        found.extend(catalog.views_of(database.id).map(|v| (v.name.clone(), "VIEW")));
    }
    found.retain(|(n, _)| like.matches(n));
    found.sort_by_key(|(n, _)| n.to_lowercase());
    let rows = found.into_iter().map(|(n, kind)| if full { vec![text(n), text(kind)] } else { vec![text(n)] });
    Ok((text_columns(if full { &["table", "type"] } else { &["table"] }), rows.collect()))
}

/// What a name stands for.
enum Thing<'a> {
    Table(&'a TableDesc),
    View(&'a ViewDesc),
    System(&'static [(&'static str, SqlType)]),
}

fn find<'a>(run: &Run, catalog: &'a Catalog, name: &ast::ObjectName) -> Result<Thing<'a>, WireError> {
    let parts: Vec<String> = name.0.iter().filter_map(|p| p.as_ident()).map(|i| i.value.clone()).collect();
    let (database_name, table) = match parts.as_slice() {
        [table] => (run.settings.database.clone(), table.clone()),
        [database, table] => (database.clone(), table.clone()),
        [database, _, table] => (database.clone(), table.clone()),
        _ => return Err(WireError::sql("42601", format!("\"{name}\" is no name of a table"))),
    };
    let missing = |names: &[&str]| {
        let error =
            WireError::sql("42P01", format!("table \"{table}\" does not exist in database \"{database_name}\""));
        match nearest(&table, names) {
            Some(near) => error.hint(format!("did you mean \"{near}\"?")),
            None => error.hint("SHOW TABLES lists those there are"),
        }
    };
    if database_name == DATABASE_SYSTEM {
        return system::columns(&table).map(Thing::System).ok_or_else(|| missing(&system::NAMES));
    }
    let database = database(catalog, &database_name)?;
    if let Some(found) = catalog.table(database.id, &table).filter(|t| t.public) {
        return Ok(Thing::Table(found));
    }
    if let Some(view) = catalog.view(database.id, &table) {
        return Ok(Thing::View(view));
    }
    let names: Vec<&str> = catalog
        .tables_of(database.id)
        .map(|t| t.def.name.as_str())
        .chain(catalog.views_of(database.id).map(|v| v.name.as_str()))
        .collect();
    Err(missing(&names))
}

fn columns_of(run: &Run, catalog: &Catalog, options: &ShowStatementOptions) -> Result<Table, WireError> {
    let Some(name) = options.show_in.as_ref().and_then(|s| s.parent_name.as_ref()) else {
        return Err(WireError::sql("42601", "SHOW COLUMNS needs FROM and a table"));
    };
    describe(run, catalog, name, &Like::of(options)?)
}

fn describe(run: &Run, catalog: &Catalog, name: &ast::ObjectName, like: &Like) -> Result<Table, WireError> {
    let columns = text_columns(&["column", "type", "null", "key", "default"]);
    let rows = match find(run, catalog, name)? {
        Thing::Table(table) => table_rows(&table.def),
        Thing::View(view) => {
            let sql = format!("SELECT * FROM {name} LIMIT 0");
            let parsed = run.engine.parse(&sql)?;
            let Statement::Query(query) = &parsed.statement else {
                return Err(WireError::unsupported(format!("DESCRIBE {}", view.name)));
            };
            let planned = super::plan::plan_query(run, &run.router.catalog(), query, &parsed.labels, &parsed.spelling)?;
            planned
                .columns
                .into_iter()
                .map(|c| vec![text(c.name), text(c.ty.to_string()), text("YES"), text(""), Value::Null])
                .collect()
        }
        Thing::System(columns) => columns
            .iter()
            .map(|(n, ty)| vec![text(*n), text(ty.to_string()), text("YES"), text(""), Value::Null])
            .collect(),
    };
    let kept = rows.into_iter().filter(|r: &Vec<Value>| matches!(r.first(), Some(Value::Text(n)) if like.matches(n)));
    Ok((columns, kept.collect()))
}

fn table_rows(def: &TableDef) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    for (position, column) in def.columns.iter().enumerate().filter(|(_, c)| !c.dropped && !c.hidden) {
        let is = |c: &u16| usize::from(*c) == position;
        let key = if def.primary_key.iter().any(is) {
            "PRI"
        } else if def.indexes.iter().any(|i| i.unique && i.columns.len() == 1 && i.columns.iter().any(is)) {
            "UNI"
        } else if def.indexes.iter().any(|i| i.columns.first().is_some_and(is)) {
            "MUL"
        } else {
            ""
        };
        let default = match &column.default {
            DefaultValue::None => Value::Null,
            DefaultValue::Sql(sql) => text(sql),
            DefaultValue::Sequence => text("auto_increment"),
        };
        let nullable = if column.not_null { "NO" } else { "YES" };
        rows.push(vec![text(&column.name), text(column.ty.to_string()), text(nullable), text(key), default]);
    }
    rows
}

fn variable_or_index(run: &Run, catalog: &Catalog, variable: &[ast::Ident]) -> Result<Table, WireError> {
    let words: Vec<&str> = variable.iter().map(|i| i.value.as_str()).collect();
    match words.as_slice() {
        ["index" | "indexes" | "keys", "from" | "in", rest @ ..] if !rest.is_empty() => {
            let name = ast::ObjectName::from(rest.iter().take(2).map(|w| ast::Ident::new(*w)).collect::<Vec<_>>());
            indexes(run, catalog, &name)
        }
        ["all" | "settings"] => all_settings(run, &Like(None)),
        ["warnings" | "errors"] => Ok((text_columns(&["level", "message"]), Vec::new())),
        ["engines"] => {
            Ok((text_columns(&["engine", "comment"]), vec![vec![text("quorate"), text("replicated log over sled")]]))
        }
        ["server_version"] => Ok((text_columns(&["server_version"]), vec![vec![text(env!("CARGO_PKG_VERSION"))]])),
        ["time", "zone"] => setting(run, "timezone"),
        ["transaction_isolation"] | ["transaction", "isolation", "level"] => {
            Ok((text_columns(&["transaction_isolation"]), vec![vec![text("serializable")]]))
        }
        [name] => setting(run, name),
        _ => Err(WireError::unsupported(format!("SHOW {}", words.join(" ").to_uppercase()))
            .hint("SHOW DATABASES, TABLES, COLUMNS, INDEXES, CREATE TABLE, ALL or a setting")),
    }
}

fn setting(run: &Run, name: &str) -> Result<Table, WireError> {
    let value = run.settings.get(name)?;
    Ok((text_columns(&[name]), vec![vec![text(value)]]))
}

fn all_settings(run: &Run, like: &Like) -> Result<Table, WireError> {
    let mut rows = Vec::new();
    for (name, meaning) in SETTINGS.iter().filter(|(n, _)| like.matches(n)) {
        rows.push(vec![text(*name), text(run.settings.get(name)?), text(*meaning)]);
    }
    Ok((text_columns(&["name", "value", "meaning"]), rows))
}

fn names_of(def: &TableDef, columns: &[u16]) -> String {
    let names: Vec<&str> =
        columns.iter().filter_map(|c| def.columns.get(usize::from(*c))).map(|c| c.name.as_str()).collect();
    names.join(", ")
}

fn indexes(run: &Run, catalog: &Catalog, name: &ast::ObjectName) -> Result<Table, WireError> {
    let columns = text_columns(&["table", "index", "columns", "unique", "kind", "state"]);
    let Thing::Table(table) = find(run, catalog, name)? else { return Ok((columns, Vec::new())) };
    let def = &table.def;
    let mut rows = Vec::new();
    let hidden = def.primary_key.iter().any(|c| def.columns.get(usize::from(*c)).is_some_and(|c| c.hidden));
    if !hidden {
        rows.push(vec![
            text(&def.name),
            text(&def.primary_key_name),
            text(names_of(def, &def.primary_key)),
            text("YES"),
            text("primary key"),
            text("public"),
        ]);
    }
    for index in &def.indexes {
        let kind = if index.primary {
            "primary key"
        } else if index.constraint {
            "constraint"
        } else {
            "index"
        };
        let state = format!("{:?}", index.state).to_lowercase();
        rows.push(vec![
            text(&def.name),
            text(&index.name),
            text(names_of(def, &index.columns)),
            text(if index.unique { "YES" } else { "NO" }),
            text(kind),
            text(state),
        ]);
    }
    Ok((columns, rows))
}

fn processes(run: &Run) -> Table {
    let columns = vec![
        Column { name: "session".to_owned(), ty: SqlType::BigInt },
        Column { name: "user".to_owned(), ty: SqlType::Text },
        Column { name: "database".to_owned(), ty: SqlType::Text },
        Column { name: "elapsed_ms".to_owned(), ty: SqlType::BigInt },
        Column { name: "sql".to_owned(), ty: SqlType::Text },
    ];
    let int = |n: u128| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let row = |q: super::queries::RunningQuery| {
        vec![
            int(q.session.get().into()),
            text(&*q.user),
            text(q.database),
            int(q.since.elapsed().as_millis()),
            text(q.sql),
        ]
    };
    (columns, run.engine.queries().running().into_iter().map(row).collect())
}

fn show_create(
    run: &Run,
    catalog: &Catalog,
    kind: &ast::ShowCreateObject,
    name: &ast::ObjectName,
) -> Result<Table, WireError> {
    let (name, sql) = match (kind, find(run, catalog, name)?) {
        (ast::ShowCreateObject::Table, Thing::Table(table)) => {
            (table.def.name.clone(), create_table(catalog, &table.def))
        }
        (ast::ShowCreateObject::Table | ast::ShowCreateObject::View, Thing::View(view)) => {
            let columns = if view.columns.is_empty() {
                String::new()
            } else {
                format!(" ({})", view.columns.iter().map(|c| quoted(c)).collect::<Vec<_>>().join(", "))
            };
            (view.name.clone(), format!("CREATE VIEW {}{columns} AS {}", quoted(&view.name), view.sql))
        }
        (kind, _) => return Err(WireError::unsupported(format!("SHOW CREATE {kind} for this name"))),
    };
    Ok((text_columns(&["name", "sql"]), vec![vec![text(name), text(sql)]]))
}

/// A name as it must be written: quoted where it is no plain word.
fn quoted(name: &str) -> String {
    let plain = name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let reserved =
        sqlparser::keywords::RESERVED_FOR_COLUMN_ALIAS.iter().any(|k| format!("{k:?}").eq_ignore_ascii_case(name))
            || ["user", "order", "table", "index", "primary", "check", "default", "references"]
                .contains(&name.to_lowercase().as_str());
    if plain && !reserved { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn list(def: &TableDef, columns: &[u16]) -> String {
    let names: Vec<String> =
        columns.iter().filter_map(|c| def.columns.get(usize::from(*c))).map(|c| quoted(&c.name)).collect();
    names.join(", ")
}

/// The statement that makes this table again.
pub fn create_table(catalog: &Catalog, def: &TableDef) -> String {
    let mut parts = Vec::new();
    for column in def.columns.iter().filter(|c| !c.dropped && !c.hidden) {
        let mut part = format!("{} {}", quoted(&column.name), column.ty);
        if column.not_null {
            part.push_str(" NOT NULL");
        }
        match &column.default {
            DefaultValue::None => {}
            DefaultValue::Sql(sql) => _ = write!(part, " DEFAULT {sql}"),
            DefaultValue::Sequence => part.push_str(" AUTO_INCREMENT"),
        }
        parts.push(part);
    }
    let hidden = def.primary_key.iter().any(|c| def.columns.get(usize::from(*c)).is_some_and(|c| c.hidden));
    if !hidden && !def.primary_key.is_empty() {
        parts.push(format!(
            "CONSTRAINT {} PRIMARY KEY ({})",
            quoted(&def.primary_key_name),
            list(def, &def.primary_key)
        ));
    }
    for index in def.indexes.iter().filter(|i| i.constraint) {
        let kind = if index.primary { "PRIMARY KEY" } else { "UNIQUE" };
        parts.push(format!("CONSTRAINT {} {kind} ({})", quoted(&index.name), list(def, &index.columns)));
    }
    for check in &def.checks {
        parts.push(format!("CONSTRAINT {} CHECK ({})", quoted(&check.name), check.sql));
    }
    for key in &def.foreign_keys {
        let parent = catalog.table_by_id(key.parent);
        let (name, columns) = parent.map_or_else(
            || (key.parent.to_string(), String::new()),
            |p| (quoted(&p.def.name), list(&p.def, &key.parent_columns)),
        );
        let mut part = format!(
            "CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {name} ({columns})",
            quoted(&key.name),
            list(def, &key.columns)
        );
        for (when, action) in [("DELETE", key.on_delete), ("UPDATE", key.on_update)] {
            let action = match action {
                FkAction::NoAction => continue,
                FkAction::Restrict => "RESTRICT",
                FkAction::Cascade => "CASCADE",
                FkAction::SetNull => "SET NULL",
            };
            let _ = write!(part, " ON {when} {action}");
        }
        parts.push(part);
    }
    let mut sql = format!("CREATE TABLE {} (\n    {}\n)", quoted(&def.name), parts.join(",\n    "));
    for index in def.indexes.iter().filter(|i| !i.constraint) {
        let unique = if index.unique { "UNIQUE " } else { "" };
        let _ = write!(
            sql,
            ";\nCREATE {unique}INDEX {} ON {} ({})",
            quoted(&index.name),
            quoted(&def.name),
            list(def, &index.columns)
        );
    }
    sql
}
