//! The way each kind of statement takes. What is not supported is refused by name here, with a hint.

use std::sync::Arc;

use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::ShardId;
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, Notice, ReadLevel};
use sqlparser::ast::{self, Statement};

use super::parse::Parsed;
use super::plan;
use super::session::{Prepared, PreparedInfo, Run};
use super::settings::{SetOutcome, Settings};
use super::{Sink, as_of, execute, explain, show};

/// Runs a statement.
///
/// # Errors
/// Whatever refuses or fails it.
pub async fn run(run: &Run, prepared: &Prepared, sink: &mut dyn Sink) -> Result<Done, WireError> {
    let parsed = &*prepared.parsed;
    if let Some(time) = &parsed.as_of {
        return match &parsed.statement {
            Statement::Query(query) => as_of::run_query(run, parsed, time, query, sink).await,
            _ => {
                Err(WireError::unsupported(format!("AS OF with {}", parsed.verb()))
                    .hint("only a SELECT reads the past"))
            }
        };
    }
    if let Some(done) = execute::fast(run, prepared, sink).await? {
        return Ok(done);
    }
    if let Some(done) = execute::write(run, parsed, sink).await? {
        return Ok(done);
    }
    match &parsed.statement {
        Statement::Query(query) => match query.body.as_ref() {
            // WITH … INSERT/UPDATE/DELETE.
            ast::SetExpr::Insert(_) | ast::SetExpr::Update(_) | ast::SetExpr::Delete(_) => {
                Err(WireError::unsupported("WITH before INSERT, UPDATE or DELETE").hint("use a subquery instead"))
            }
            _ => plan::run_query(run, parsed, query, prepared.query.as_ref(), sink).await,
        },
        Statement::Explain { .. } | Statement::ExplainTable { .. } => explain::run(run, parsed, sink).await,
        Statement::Use(name) => use_database(run, name),
        Statement::Set(set) => self::set(run, set),
        Statement::Reset(reset) => self::reset(run, reset),
        other if show::handles(other) => show::run(run, parsed, sink).await,
        other => Err(refused(other, parsed)),
    }
}

/// Plans a statement for later.
///
/// # Errors
/// What the planner refuses.
pub async fn prepare(run: &Run, parsed: Arc<Parsed>, statement: u32) -> Result<(Prepared, PreparedInfo), WireError> {
    let unknown = vec![None; parsed.params];
    let fast = execute::FastSlot::default();
    let prepared = Prepared { parsed: Arc::clone(&parsed), query: None, fast };
    let planned = match execute::fast_plan(run, &prepared) {
        // A table created a moment ago on another node: ask again with the catalog as it is in the cluster.
        Err(e) if e.code == Code::NotFound && run.read_level != ReadLevel::Local => {
            run.router.read(ShardId::META, &run.read_level, run.deadline).await?;
            execute::fast_plan(run, &prepared)?
        }
        other => other?,
    };
    if let Some(plan) = planned {
        let (params, columns) = (plan.params().to_vec(), execute::labelled(plan.columns(), &parsed));
        return Ok((prepared, PreparedInfo { statement, params, columns, writes: !plan.is_read() }));
    }
    if let Statement::Query(query) = &parsed.statement {
        let (query, params) = plan::prepare_query(run, &parsed, query).await?;
        let info = PreparedInfo { statement, params, columns: query.columns().to_vec(), writes: false };
        return Ok((Prepared { parsed, query: Some(query), fast: prepared.fast }, info));
    }
    let writes = writes(&parsed.statement);
    Ok((prepared, PreparedInfo { statement, params: unknown, columns: Vec::new(), writes }))
}

/// What EXPLAIN says of a statement that takes the fast path.
///
/// # Errors
/// What is wrong with the statement in any case.
pub fn fast_line(run: &Run, parsed: &Parsed, statement: &Statement) -> Result<Option<String>, WireError> {
    execute::describe(run, parsed, statement)
}

/// Whether a statement changes anything stored.
pub fn writes(statement: &Statement) -> bool {
    !matches!(
        statement,
        Statement::Query(_)
            | Statement::Explain { .. }
            | Statement::ExplainTable { .. }
            | Statement::Use(_)
            | Statement::Set(_)
            | Statement::Reset(_)
    ) && !show::handles(statement)
}

fn use_database(run: &Run, name: &ast::Use) -> Result<Done, WireError> {
    let object = match name {
        ast::Use::Object(name) | ast::Use::Database(name) | ast::Use::Catalog(name) | ast::Use::Schema(name) => name,
        ast::Use::Default => return Ok(changed("USE", "database", &Settings::default().database)),
        other => return Err(WireError::unsupported(other.to_string())),
    };
    let database = object.0.last().and_then(|p| p.as_ident()).map(|i| i.value.clone()).unwrap_or_default();
    show::check_database(run, &database)?;
    Ok(changed("USE", "database", &database))
}

fn changed(tag: &str, name: &str, value: &str) -> Done {
    Done { tag: tag.to_owned(), settings: vec![(name.to_owned(), value.to_owned())], ..Done::default() }
}

fn set(run: &Run, set: &ast::Set) -> Result<Done, WireError> {
    let mut pairs = Vec::new();
    match set {
        ast::Set::SingleAssignment { variable, values, .. } => pairs.push((variable.to_string(), setting_text(values))),
        ast::Set::MultipleAssignments { assignments } => {
            for assignment in assignments {
                pairs.push((assignment.name.to_string(), setting_text(std::slice::from_ref(&assignment.value))));
            }
        }
        ast::Set::SetTimeZone { value, .. } => {
            pairs.push(("timezone".to_owned(), setting_text(std::slice::from_ref(value))))
        }
        ast::Set::SetNames { .. } | ast::Set::SetNamesDefault {} => {
            return Ok(ignored("SET NAMES has no effect: text is UTF-8"));
        }
        ast::Set::SetTransaction { .. } => {
            return Ok(ignored("SET TRANSACTION has no effect: every statement is serializable"));
        }
        other => return Err(WireError::unsupported(other.to_string())),
    }
    let mut done = Done { tag: "SET".to_owned(), ..Done::default() };
    let mut tried = Settings::clone(&run.settings);
    for (name, value) in pairs {
        let name = name
            .trim_start_matches("@@")
            .trim_start_matches("session.")
            .trim_start_matches("global.")
            .replace(['"', '`'], "");
        if name == "database" {
            show::check_database(run, &value.to_lowercase())?;
        }
        match tried.set(&name, &value)? {
            SetOutcome::Set => {
                let canonical = tried.get(&name)?;
                done.settings.push((name, canonical));
            }
            SetOutcome::Ignored => done.notices.push(notice(&format!("the setting {name} has no effect here"))),
        }
    }
    Ok(done)
}

/// `a, b` or `'a'` or `5` as the text of a setting.
fn setting_text(values: &[ast::Expr]) -> String {
    let one = |value: &ast::Expr| match value {
        ast::Expr::Value(v) => match &v.value {
            ast::Value::SingleQuotedString(s) | ast::Value::DoubleQuotedString(s) => s.clone(),
            other => other.to_string(),
        },
        ast::Expr::Identifier(i) => i.value.clone(),
        other => other.to_string(),
    };
    values.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn reset(run: &Run, reset: &ast::ResetStatement) -> Result<Done, WireError> {
    let defaults = Settings::default();
    let names: Vec<String> = match &reset.reset {
        ast::Reset::ALL => {
            super::settings::SETTINGS.iter().map(|(n, _)| (*n).to_owned()).filter(|n| n != "database").collect()
        }
        ast::Reset::ConfigurationParameter(name) => vec![name.to_string()],
    };
    let mut done = Done { tag: "RESET".to_owned(), ..Done::default() };
    let mut tried = Settings::clone(&run.settings);
    for name in names {
        tried.reset(&name)?;
        done.settings.push((name.clone(), defaults.get(&name)?));
    }
    Ok(done)
}

/// A statement that does nothing here, and says so.
fn ignored(message: &str) -> Done {
    Done { tag: "SET".to_owned(), notices: vec![notice(message)], ..Done::default() }
}

/// A remark.
pub fn notice(message: &str) -> Notice {
    Notice { severity: "notice".to_owned(), name: "Ignored".to_owned(), message: message.to_owned() }
}

/// Sends a small result.
///
/// # Errors
/// The sink's.
pub async fn send(
    sink: &mut dyn Sink,
    tag: &str,
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
) -> Result<Done, WireError> {
    let count = u64::try_from(rows.len()).unwrap_or(0);
    sink.columns(columns).await?;
    let mut rows = rows;
    while !rows.is_empty() {
        let rest = rows.split_off(rows.len().min(quorate_shared::limits::BATCH_ROWS_MAX));
        sink.rows(rows).await?;
        rows = rest;
    }
    Ok(Done { tag: tag.to_owned(), rows: count, ..Done::default() })
}

fn refused(statement: &Statement, parsed: &Parsed) -> WireError {
    const ATOMIC: &str = "every statement is atomic by itself; several rows go into one INSERT, UPDATE or DELETE";
    match statement {
        Statement::StartTransaction { .. } => WireError::unsupported("BEGIN").hint(ATOMIC),
        Statement::Commit { .. } => WireError::unsupported("COMMIT").hint(ATOMIC),
        Statement::Rollback { .. } => WireError::unsupported("ROLLBACK").hint(ATOMIC),
        Statement::Savepoint { .. } | Statement::ReleaseSavepoint { .. } => {
            WireError::unsupported("SAVEPOINT").hint(ATOMIC)
        }
        Statement::Prepare { .. } | Statement::Execute { .. } | Statement::Deallocate { .. } => {
            WireError::unsupported("PREPARE in SQL").hint("clients prepare statements by the protocol")
        }
        Statement::Copy { .. } => WireError::unsupported("COPY").hint("INSERT with many rows per statement loads fast"),
        Statement::CreateSchema { .. } => {
            WireError::unsupported("CREATE SCHEMA").hint("CREATE DATABASE is the namespace here")
        }
        Statement::CreateFunction(_) | Statement::CreateProcedure { .. } => WireError::unsupported("stored code"),
        Statement::CreateTrigger(_) => WireError::unsupported("CREATE TRIGGER"),
        Statement::CreateUser(_) | Statement::CreateRole(_) | Statement::Grant(_) | Statement::Revoke(_) => {
            WireError::unsupported(parsed.verb() + " of users and roles").hint("there is no authentication yet")
        }
        Statement::LockTables { .. } | Statement::UnlockTables => WireError::unsupported("LOCK TABLES").hint(ATOMIC),
        Statement::Merge(_) => {
            WireError::unsupported("MERGE").hint("INSERT … ON CONFLICT DO UPDATE does the same for one row each")
        }
        Statement::Vacuum(_) | Statement::Analyze(_) | Statement::OptimizeTable { .. } => {
            WireError::unsupported(parsed.verb()).hint("nothing needs it: storage is kept tidy in the background")
        }
        _ => WireError::unsupported(parsed.verb()),
    }
}
