//! SELECTs made from parts of other statements.

use quorate_shared::error::{Code, WireError};
use sqlparser::ast::{Expr, Ident, Query, SelectItem, SetExpr, Statement, TableWithJoins};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// `SELECT exprs FROM from WHERE selection`.
///
/// # Errors
/// Never in practice.
pub fn query(exprs: Vec<Expr>, from: Vec<TableWithJoins>, selection: Option<Expr>) -> Result<Query, WireError> {
    // The parser fills in the many parts that such a query does not use.
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, "SELECT 1").map_err(|_| broken())?;
    let Some(Statement::Query(mut query)) = statements.pop() else { return Err(broken()) };
    let SetExpr::Select(select) = &mut *query.body else { return Err(broken()) };
    // The planner wants every column to have a name of its own.
    let named = |(n, expr)| SelectItem::ExprWithAlias { expr, alias: Ident::new(format!("__w{n}")) };
    select.projection = exprs.into_iter().enumerate().map(named).collect();
    select.from = from;
    select.selection = selection;
    Ok(*query)
}

/// Parses a stored expression (a DEFAULT, a CHECK), whose names are folded already.
///
/// # Errors
/// `42601` if it is none.
pub fn expression(sql: &str) -> Result<Expr, WireError> {
    Parser::new(&PostgreSqlDialect {})
        .try_with_sql(sql)
        .and_then(|mut parser| parser.parse_expr())
        .map_err(|e| WireError::sql("42601", format!("cannot read the expression {sql:?}: {e}")))
}

/// Parses a stored query (a view), whose names are folded already.
///
/// # Errors
/// `42601` if it is none.
pub fn stored_query(sql: &str) -> Result<Query, WireError> {
    Parser::new(&PostgreSqlDialect {})
        .try_with_sql(sql)
        .and_then(|mut parser| parser.parse_query())
        .map(|query| *query)
        .map_err(|e| WireError::sql("42601", format!("cannot read the query {sql:?}: {e}")))
}

fn broken() -> WireError {
    WireError::new(Code::Internal, "a SELECT could not be built")
}
