//! JSON: paths into a document, as PostgreSQL's `->` and `->>` and MySQL's and SQLite's `json_extract`.

use std::sync::Arc;

use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::ScalarUDF;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use quorate_shared::error::WireError;
use quorate_shared::value::{SqlType, Value};
use serde_json::Value as Json;
use sqlparser::ast::BinaryOperator;

use super::row::{RowFunction, text};

/// All of them.
pub fn all() -> Vec<RowFunction> {
    vec![
        get_json(),
        get_text(),
        RowFunction::new("to_json_text", 1..=1, SqlType::Json, |a| {
            let document = text(&a[0]);
            parse(&document)?;
            Ok(Value::Json(document))
        }),
        RowFunction::new("json", 1..=1, SqlType::Json, |a| Ok(Value::Json(parse(&text(&a[0]))?.to_string()))),
        RowFunction::new("json_extract", 2..=2, SqlType::Text, |a| {
            Ok(at_path(&parse(&text(&a[0]))?, &text(&a[1]))?.map_or(Value::Null, plain))
        })
        .alias(&["json_value"]),
        RowFunction::new("json_unquote", 1..=1, SqlType::Text, |a| {
            let given = text(&a[0]);
            Ok(Value::Text(serde_json::from_str::<String>(&given).unwrap_or(given)))
        }),
        RowFunction::new("json_valid", 1..=1, SqlType::Bool, |a| Ok(Value::Bool(parse(&text(&a[0])).is_ok()))),
        RowFunction::new("json_array_length", 1..=1, SqlType::BigInt, |a| match parse(&text(&a[0]))? {
            Json::Array(items) => Ok(Value::Int(i64::try_from(items.len()).unwrap_or(i64::MAX))),
            _ => Err(WireError::sql("22023", "json_array_length() takes a JSON array")),
        })
        .alias(&["jsonb_array_length"]),
        RowFunction::new("json_length", 1..=1, SqlType::BigInt, |a| {
            let length = match parse(&text(&a[0]))? {
                Json::Array(items) => items.len(),
                Json::Object(items) => items.len(),
                _ => 1,
            };
            Ok(Value::Int(i64::try_from(length).unwrap_or(i64::MAX)))
        }),
        RowFunction::new("json_typeof", 1..=1, SqlType::Text, |a| {
            let name = match parse(&text(&a[0]))? {
                Json::Null => "null",
                Json::Bool(_) => "boolean",
                Json::Number(_) => "number",
                Json::String(_) => "string",
                Json::Array(_) => "array",
                Json::Object(_) => "object",
            };
            Ok(Value::Text(name.to_owned()))
        })
        .alias(&["jsonb_typeof", "json_type"]),
    ]
}

fn get_json() -> RowFunction {
    RowFunction::new("json_get", 2..=2, SqlType::Json, |a| {
        Ok(step(&parse(&text(&a[0]))?, &a[1])?.map_or(Value::Null, |j| Value::Json(j.to_string())))
    })
}

fn get_text() -> RowFunction {
    RowFunction::new("json_get_text", 2..=2, SqlType::Text, |a| {
        Ok(step(&parse(&text(&a[0]))?, &a[1])?.map_or(Value::Null, plain))
    })
}

fn parse(document: &str) -> Result<Json, WireError> {
    serde_json::from_str(document).map_err(|e| WireError::sql("22P02", "invalid input for JSON").detail(e.to_string()))
}

/// JSON as SQL shows it: strings without quotes, null as NULL.
fn plain(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::String(s) => Value::Text(s.clone()),
        other => Value::Text(other.to_string()),
    }
}

/// A member by name or position, or a `$.path`.
fn step<'a>(json: &'a Json, key: &Value) -> Result<Option<&'a Json>, WireError> {
    match key {
        Value::Int(position) => {
            let Json::Array(items) = json else { return Ok(None) };
            let from_end = usize::try_from(position.unsigned_abs()).unwrap_or(usize::MAX);
            let at = if *position < 0 { items.len().checked_sub(from_end) } else { Some(from_end) };
            Ok(at.and_then(|i| items.get(i)))
        }
        Value::Text(path) if path.starts_with('$') => at_path(json, path),
        other => Ok(json.get(text(other))),
    }
}

/// `$.a.b[0]."c d"`.
fn at_path<'a>(json: &'a Json, path: &str) -> Result<Option<&'a Json>, WireError> {
    let bad = || WireError::sql("22023", format!("\"{path}\" is no path into JSON")).hint("a path looks like $.a.b[0]");
    let mut rest = path.strip_prefix('$').ok_or_else(bad)?;
    let mut at = Some(json);
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix('[') {
            let (index, tail) = tail.split_once(']').ok_or_else(bad)?;
            let index: usize = index.trim().parse().map_err(|_| bad())?;
            at = at.and_then(|j| j.get(index));
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix(".\"") {
            let (key, tail) = tail.split_once('"').ok_or_else(bad)?;
            at = at.and_then(|j| j.get(key));
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('.') {
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            let (key, tail) = tail.split_at(end);
            at = at.and_then(|j| j.get(key));
            rest = tail;
        } else {
            return Err(bad());
        }
    }
    Ok(at)
}

/// `->` and `->>`.
#[derive(Debug)]
pub struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match expr.op {
            BinaryOperator::Arrow => get_json(),
            BinaryOperator::LongArrow => get_text(),
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let function = Arc::new(ScalarUDF::from(function));
        Ok(PlannerResult::Planned(function.call(vec![expr.left, expr.right])))
    }
}
