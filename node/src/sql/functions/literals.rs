//! Text that meets bytes, UUIDs or timestamps is read as one of them, as in PostgreSQL: `b = '\xff'`, `'\xff'::bytea`.
//!
//! The planner would compare bytes with the text's own bytes, UUIDs letter by letter, and timestamps in nanoseconds, which
//! end in 2262. This rule runs before type coercion.
//!
//! Left out: text that is not a literal in comparisons; times with a zone, which depend on the session's.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{Between, BinaryExpr, InList, ScalarFunction};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator, ScalarUDF};
use datafusion::optimizer::AnalyzerRule;
use quorate_shared::error::WireError;
use quorate_shared::value::{SqlType, Value};

use super::rewrite_expressions;
use super::row::{RowFunction, text};
use crate::sql::convert;
use crate::sql::errors::external;

/// The rule and the functions it puts in.
#[derive(Debug)]
pub struct Literals {
    to_bytes: Arc<ScalarUDF>,
    bytes_text: Arc<ScalarUDF>,
    octets: Arc<ScalarUDF>,
}

impl Default for Literals {
    fn default() -> Self {
        let to_bytes = RowFunction::new("to_bytea", 1..=1, SqlType::Bytes, |a| match &a[0] {
            Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
            other => parse(&text(other), SqlType::Bytes),
        });
        let bytes_text = RowFunction::new("bytea_text", 1..=1, SqlType::Text, |a| Ok(Value::Text(a[0].to_string())));
        let octets = RowFunction::new("octets", 1..=1, SqlType::Int, |a| match &a[0] {
            Value::Bytes(bytes) => Ok(Value::Int(i64::try_from(bytes.len()).unwrap_or(i64::MAX))),
            other => Ok(Value::Int(i64::try_from(text(other).len()).unwrap_or(i64::MAX))),
        });
        let udf = |f| Arc::new(ScalarUDF::from(f));
        Self { to_bytes: udf(to_bytes), bytes_text: udf(bytes_text), octets: udf(octets) }
    }
}

fn parse(text: &str, ty: SqlType) -> Result<Value, WireError> {
    Value::parse(text, ty).map_err(|why| WireError::sql("22P02", why))
}

fn compares(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// What text is read as when it meets `expr`.
fn target(expr: &Expr, schema: &DFSchema) -> Option<SqlType> {
    if matches!(expr, Expr::Literal(..)) {
        return None;
    }
    let (_, field) = expr.to_field(schema).ok()?;
    match field.data_type() {
        DataType::Binary => Some(SqlType::Bytes),
        DataType::Timestamp(TimeUnit::Microsecond, None) => Some(SqlType::Timestamp),
        _ => (convert::sql_type(&field) == SqlType::Uuid).then_some(SqlType::Uuid),
    }
}

/// A text literal as one of `ty`; anything else as it is.
fn read(expr: Expr, ty: SqlType) -> Result<Expr> {
    let Expr::Literal(ScalarValue::Utf8(Some(text)), metadata) = &expr else { return Ok(expr) };
    let scalar = match parse(text, ty) {
        Ok(Value::Bytes(bytes)) => ScalarValue::Binary(Some(bytes)),
        Ok(Value::Timestamp(micros)) => ScalarValue::TimestampMicrosecond(Some(micros), None),
        Ok(Value::Uuid(uuid)) => ScalarValue::Utf8(Some(convert::uuid_text(&uuid))),
        // The planner may know more spellings of a time.
        Err(_) if ty == SqlType::Timestamp => return Ok(expr),
        Err(error) => return Err(external(error)),
        Ok(_) => return Ok(expr),
    };
    Ok(Expr::Literal(scalar, metadata.clone()))
}

impl Literals {
    fn rewrite(&self, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let is_bytes = |e: &Expr| matches!(e.get_type(schema), Ok(DataType::Binary));
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(op) => {
                let (of_left, of_right) = (target(&left, schema), target(&right, schema));
                let left = of_right.map_or(Ok(*left.clone()), |ty| read(*left, ty))?;
                let right = of_left.map_or(Ok(*right.clone()), |ty| read(*right, ty))?;
                Transformed::yes(Expr::BinaryExpr(BinaryExpr { left: Box::new(left), op, right: Box::new(right) }))
            }
            Expr::Between(Between { expr, negated, low, high }) => match target(&expr, schema) {
                Some(ty) => {
                    let (low, high) = (Box::new(read(*low, ty)?), Box::new(read(*high, ty)?));
                    Transformed::yes(Expr::Between(Between { expr, negated, low, high }))
                }
                None => Transformed::no(Expr::Between(Between { expr, negated, low, high })),
            },
            Expr::InList(InList { expr, list, negated }) => match target(&expr, schema) {
                Some(ty) => {
                    let list = list.into_iter().map(|e| read(e, ty)).collect::<Result<_>>()?;
                    Transformed::yes(Expr::InList(InList { expr, list, negated }))
                }
                None => Transformed::no(Expr::InList(InList { expr, list, negated })),
            },
            Expr::Cast(cast) if *cast.field.data_type() == DataType::Binary && !is_bytes(&cast.expr) => {
                Transformed::yes(self.to_bytes.call(vec![*cast.expr]))
            }
            Expr::Cast(cast) if *cast.field.data_type() == DataType::Utf8 && is_bytes(&cast.expr) => {
                Transformed::yes(self.bytes_text.call(vec![*cast.expr]))
            }
            Expr::ScalarFunction(ScalarFunction { func, args })
                if matches!(func.name(), "length" | "character_length" | "octet_length")
                    && args.first().is_some_and(is_bytes) =>
            {
                Transformed::yes(self.octets.call(args))
            }
            other => Transformed::no(other),
        })
    }
}

impl AnalyzerRule for Literals {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite_expressions(plan, |e, schema| self.rewrite(e, schema))
    }

    fn name(&self) -> &'static str {
        "literals"
    }
}
