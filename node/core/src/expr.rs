//! A small expression over one row, evaluated inside the sequencer: `n = n + 1`, CHECKs, fast-path filters.
//!
//! Three-valued logic as SQL has it. Integer arithmetic never wraps, decimals are exact, division by zero is an error.
//!
//! Left out: anything that reads another row or the clock; the router puts such values in as constants.

use quorate_shared::value::{SqlType, Value};
use serde::{Deserialize, Serialize};

use crate::table::ColumnPos;

/// An operator of two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`; of two integers it truncates.
    Div,
    /// `%`
    Mod,
    /// `||`
    Concat,
    /// `=`
    Eq,
    /// `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `AND`
    And,
    /// `OR`
    Or,
    /// `LIKE` with `%` and `_`, `\` escapes.
    Like,
    /// `ILIKE`
    ILike,
}

/// A function without side effects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Function {
    /// `length(text)` in characters.
    Length,
    /// `lower(text)`
    Lower,
    /// `upper(text)`
    Upper,
    /// `trim(text)`
    Trim,
    /// `abs(n)`
    Abs,
    /// `coalesce(a, b, …)`
    Coalesce,
}

/// An expression.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Expr {
    /// A constant.
    Value(Value),
    /// A column of the (old) row.
    Column(ColumnPos),
    /// A column of the row proposed by an INSERT … ON CONFLICT DO UPDATE (`excluded.x`).
    Excluded(ColumnPos),
    /// Two operands.
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `NOT`
    Not(Box<Expr>),
    /// `-`
    Negate(Box<Expr>),
    /// `IS NULL`
    IsNull(Box<Expr>),
    /// `x IN (…)`
    In(Box<Expr>, Vec<Expr>),
    /// `CASE WHEN … THEN … ELSE … END`
    Case(Vec<(Expr, Expr)>, Box<Expr>),
    /// `CAST(x AS type)`
    Cast(Box<Expr>, SqlType),
    /// A function.
    Call(Function, Vec<Expr>),
}
