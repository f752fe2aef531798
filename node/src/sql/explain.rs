//! `EXPLAIN [ANALYZE]`: the plan as text, one line per step, with shard, index and key range of every scan.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use datafusion::physical_plan::{ExecutionPlan, displayable};
use futures::StreamExt;
use quorate_shared::error::WireError;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{Column, Done};
use sqlparser::ast::{self, Statement};

use super::parse::Parsed;
use super::scan::ScanExec;
use super::session::Run;
use super::{Sink, dispatch, plan, show};

/// Runs EXPLAIN, or DESCRIBE of a table.
///
/// # Errors
/// What planning the statement refuses.
pub async fn run(run: &Run, parsed: &Parsed, sink: &mut dyn Sink) -> Result<Done, WireError> {
    let (analyze, statement) = match &parsed.statement {
        Statement::Explain { analyze, statement, query_plan: _, options, .. } => {
            let option = |o: &ast::UtilityOption| {
                o.name.value == "analyze"
                    && !matches!(&o.arg, Some(ast::Expr::Value(v)) if v.value.to_string().to_lowercase().contains("false"))
            };
            (*analyze || options.as_ref().is_some_and(|o| o.iter().any(option)), statement)
        }
        _ => return show::run(run, parsed, sink).await,
    };
    let lines = match statement.as_ref() {
        Statement::Query(query) => explain_query(run, parsed, query, analyze).await?,
        other if dispatch::writes(other) && analyze => {
            return Err(WireError::unsupported("EXPLAIN ANALYZE of a statement that writes")
                .hint("EXPLAIN without ANALYZE shows how its rows are found"));
        }
        other => explain_write(run, other).await?,
    };
    let columns = vec![Column { name: "plan".to_owned(), ty: SqlType::Text }];
    let rows = lines.into_iter().map(|l| vec![Value::Text(l)]).collect();
    dispatch::send(sink, "EXPLAIN", columns, rows).await
}

async fn explain_query(
    run: &Run,
    parsed: &Parsed,
    query: &ast::Query,
    analyze: bool,
) -> Result<Vec<String>, WireError> {
    if let Some(line) = dispatch::fast_line(run, parsed, &Statement::Query(Box::new(query.clone())))?
        && !analyze
    {
        return Ok(vec![line]);
    }
    let started = Instant::now();
    let mut running = plan::begin_query(run, parsed, query).await?;
    let planned = started.elapsed();
    if !analyze {
        return Ok(tree(&running.physical, false));
    }
    let mut rows = 0usize;
    while let Some(batch) = running.stream.next().await {
        run.check()?;
        rows += batch.map_err(|e| plan::failure(run, &e))?.num_rows();
    }
    let mut lines = tree(&running.physical, true);
    lines.push(format!(
        "{rows} rows; planning {:.1} ms, running {:.1} ms",
        planned.as_secs_f64() * 1e3,
        (started.elapsed() - planned).as_secs_f64() * 1e3
    ));
    Ok(lines)
}

/// How a writing statement finds its rows.
async fn explain_write(run: &Run, statement: &Statement) -> Result<Vec<String>, WireError> {
    let (verb, table, selection) = match statement {
        Statement::Update(update) => ("Update", update.table.relation.to_string(), update.selection.clone()),
        Statement::Delete(delete) => {
            let (ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from)) = &delete.from;
            let name = from.first().map(|t| t.relation.to_string()).unwrap_or_default();
            ("Delete", name, delete.selection.clone())
        }
        Statement::Insert(insert) => {
            let mut lines = vec![format!("Insert into {}", insert.table)];
            if let Some(source) = &insert.source
                && !matches!(source.body.as_ref(), ast::SetExpr::Values(_))
            {
                let parsed = inner(statement);
                lines.extend(explain_query(run, &parsed, source, false).await?.into_iter().map(|l| format!("  {l}")));
            }
            return Ok(lines);
        }
        other => return Ok(vec![first_words(&other.to_string())]),
    };
    let sql = match &selection {
        Some(filter) => format!("SELECT 1 FROM {table} WHERE {filter}"),
        None => format!("SELECT 1 FROM {table}"),
    };
    let parsed = run.engine.parse(&sql)?;
    let mut lines = vec![format!("{verb} {table}")];
    if let Statement::Query(query) = &parsed.statement {
        let running = plan::begin_query(run, &parsed, query).await?;
        lines.extend(tree(&running.physical, false).into_iter().map(|l| format!("  {l}")));
    }
    Ok(lines)
}

fn inner(statement: &Statement) -> Parsed {
    Parsed {
        sql: String::new(),
        statement: statement.clone(),
        spelling: Default::default(),
        labels: Vec::new(),
        params: 0,
        flavour: super::parse::Flavour::Postgres,
        as_of: None,
    }
}

fn first_words(text: &str) -> String {
    text.split_whitespace().take(6).collect::<Vec<_>>().join(" ")
}

/// The plan as an indented tree, ours in words, the rest by what it does.
fn tree(plan: &Arc<dyn ExecutionPlan>, metrics: bool) -> Vec<String> {
    let mut lines = Vec::new();
    walk(plan, 0, metrics, &mut lines);
    lines
}

fn walk(plan: &Arc<dyn ExecutionPlan>, depth: usize, metrics: bool, lines: &mut Vec<String>) {
    // Steps that only pass batches on say nothing about the query.
    if matches!(plan.name(), "CooperativeExec" | "CoalesceBatchesExec" | "CoalescePartitionsExec") {
        for child in plan.children() {
            walk(child, depth, metrics, lines);
        }
        return;
    }
    let mut line = format!("{}{}", "  ".repeat(depth), describe(plan));
    if metrics && let Some(m) = plan.metrics() {
        let m = m.aggregate_by_name();
        let mut parts = Vec::new();
        if let Some(rows) = m.output_rows() {
            parts.push(format!("{rows} rows"));
        }
        if let Some(nanos) = m.elapsed_compute() {
            #[allow(clippy::cast_precision_loss)] // shown with one digit
            parts.push(format!("{:.1} ms", nanos as f64 / 1e6));
        }
        if !parts.is_empty() {
            let _ = write!(line, "  ({})", parts.join(", "));
        }
    }
    lines.push(line);
    for child in plan.children() {
        walk(child, depth + 1, metrics, lines);
    }
}

fn describe(plan: &Arc<dyn ExecutionPlan>) -> String {
    if let Some(scan) = (plan.as_ref() as &dyn std::any::Any).downcast_ref::<ScanExec>() {
        return scan.describe();
    }
    let text = displayable(plan.as_ref()).one_line().to_string();
    let text = text.trim().replace("Exec:", ":").replace("@0", "");
    // Column references carry their position: `name@3`.
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '@' && chars.peek().is_some_and(char::is_ascii_digit) {
            while chars.peek().is_some_and(char::is_ascii_digit) {
                chars.next();
            }
            continue;
        }
        out.push(c);
    }
    // Names that are ours only.
    while let Some(at) = out.find(" as __q") {
        let digits = out[at + 7..].chars().take_while(char::is_ascii_digit).count();
        out.replace_range(at..at + 7 + digits, "");
    }
    let out = out.replace("count(Int64(1))", "count(*)");
    match out.strip_suffix("Exec") {
        Some(name) => name.to_owned(),
        None => out,
    }
}
