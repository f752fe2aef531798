//! A small expression over one row, evaluated inside the sequencer: `n = n + 1`, CHECKs, fast-path filters.
//!
//! Three-valued logic as SQL has it. Integer arithmetic never wraps, decimals are exact, division by zero is an error.
//!
//! Types promote Int -> Decimal -> Float; text given beside another type is read as that type, as PostgreSQL reads a bare
//! literal. Arithmetic is in `number` and `time`, conversions in `cast`, patterns in `like`.
//!
//! Left out: anything that reads another row or the clock; the router puts such values in as constants.

mod cast;
mod like;
mod number;
mod time;

use std::borrow::Cow;
use std::cmp::Ordering;

use quorate_shared::value::{SqlType, Value};
use serde::{Deserialize, Serialize};

pub use self::cast::{cast, coerce};
pub use self::like::like;
use crate::error::Rejected;
use crate::table::ColumnPos;

/// Nesting that is still evaluated: a proposal from another node must not overflow the stack.
const DEPTH_MAX: usize = 160;

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

/// A [`Rejected::Value`] with its SQLSTATE.
pub(crate) fn value_error(sqlstate: &str, message: impl Into<String>) -> Rejected {
    Rejected::Value { sqlstate: sqlstate.into(), message: message.into() }
}

/// The value of an expression over a row (and the row an INSERT proposed, for ON CONFLICT).
pub fn eval(expr: &Expr, row: &[Value], excluded: Option<&[Value]>) -> Result<Value, Rejected> {
    Scope { row, excluded }.eval(expr, 0).map(Cow::into_owned)
}

/// Whether a filter is true for a row; NULL is not.
pub fn is_true(expr: &Expr, row: &[Value], excluded: Option<&[Value]>) -> Result<bool, Rejected> {
    Ok(truth(&*Scope { row, excluded }.eval(expr, 0)?)? == Some(true))
}

/// Whether a CHECK passes for a row; NULL does.
pub fn passes(expr: &Expr, row: &[Value]) -> Result<bool, Rejected> {
    Ok(truth(&*Scope { row, excluded: None }.eval(expr, 0)?)? != Some(false))
}

/// How two values compare; `None` if one is NULL or the types have no common order. Text is not converted here.
pub fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    use Value::{Bool, Bytes, Date, Interval, Json, Text, Time, Timestamp, TimestampTz, Uuid};
    Some(match (a, b) {
        (Bool(a), Bool(b)) => a.cmp(b),
        (Text(a) | Json(a), Text(b) | Json(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Bytes(a), Bytes(b)) => a.cmp(b),
        (Date(a), Date(b)) => a.cmp(b),
        (Time(a), Time(b)) => a.cmp(b),
        (Timestamp(a) | TimestampTz(a), Timestamp(b) | TimestampTz(b)) => a.cmp(b),
        (Date(a), Timestamp(b) | TimestampTz(b)) => time::midnight(*a).cmp(&i128::from(*b)),
        (Timestamp(a) | TimestampTz(a), Date(b)) => i128::from(*a).cmp(&time::midnight(*b)),
        (Interval(a), Interval(b)) => time::interval_span(*a).cmp(&time::interval_span(*b)),
        (Uuid(a), Uuid(b)) => a.cmp(b),
        _ => return number::compare(a, b),
    })
}

/// What an expression may refer to.
struct Scope<'a> {
    row: &'a [Value],
    excluded: Option<&'a [Value]>,
}

impl<'a> Scope<'a> {
    fn eval<'e>(&self, expr: &'e Expr, depth: usize) -> Result<Cow<'e, Value>, Rejected>
    where
        'a: 'e,
    {
        if depth > DEPTH_MAX {
            return Err(value_error("54001", "the expression is nested too deeply"));
        }
        let depth = depth + 1;
        Ok(match expr {
            Expr::Value(v) => Cow::Borrowed(v),
            Expr::Column(c) => Cow::Borrowed(column(self.row, *c)?),
            Expr::Excluded(c) => match self.excluded {
                Some(row) => Cow::Borrowed(column(row, *c)?),
                None => return Err(value_error("42P10", "\"excluded\" is only known in ON CONFLICT DO UPDATE")),
            },
            Expr::Binary(op @ (BinaryOp::And | BinaryOp::Or), ..) => Cow::Owned(self.logic(*op, expr, depth)?),
            Expr::Binary(op, a, b) => Cow::Owned(binary(*op, &*self.eval(a, depth)?, &*self.eval(b, depth)?)?),
            Expr::Not(e) => Cow::Owned(truth(&*self.eval(e, depth)?)?.map_or(Value::Null, |b| Value::Bool(!b))),
            Expr::Negate(e) => Cow::Owned(negate(&*self.eval(e, depth)?)?),
            Expr::IsNull(e) => Cow::Owned(Value::Bool(self.eval(e, depth)?.is_null())),
            Expr::In(e, list) => Cow::Owned(self.is_in(e, list, depth)?),
            Expr::Case(arms, otherwise) => {
                for (when, then) in arms {
                    if truth(&*self.eval(when, depth)?)? == Some(true) {
                        return self.eval(then, depth);
                    }
                }
                self.eval(otherwise, depth)?
            }
            Expr::Cast(e, ty) => Cow::Owned(cast(self.eval(e, depth)?.into_owned(), *ty)?),
            Expr::Call(function, args) => self.call(*function, args, depth)?,
        })
    }

    /// `a AND b AND c` is parsed as a chain that leans to the left: it is walked, not recursed into, so it may be long.
    fn logic(&self, op: BinaryOp, expr: &Expr, depth: usize) -> Result<Value, Rejected> {
        let mut operands = Vec::new();
        let mut first = expr;
        while let Expr::Binary(inner, a, b) = first
            && *inner == op
        {
            operands.push(&**b);
            first = a;
        }
        // The value that decides alone: `false AND x` is false, `true OR x` is true, whatever x is.
        let decisive = op == BinaryOp::Or;
        let mut unknown = false;
        for operand in std::iter::once(first).chain(operands.into_iter().rev()) {
            match truth(&*self.eval(operand, depth)?)? {
                Some(value) if value == decisive => return Ok(Value::Bool(decisive)),
                Some(_) => {}
                None => unknown = true,
            }
        }
        Ok(if unknown { Value::Null } else { Value::Bool(!decisive) })
    }

    fn is_in(&self, e: &Expr, list: &[Expr], depth: usize) -> Result<Value, Rejected> {
        let needle = self.eval(e, depth)?;
        let mut unknown = false;
        for item in list {
            match binary(BinaryOp::Eq, &needle, &*self.eval(item, depth)?)? {
                Value::Bool(true) => return Ok(Value::Bool(true)),
                Value::Null => unknown = true,
                _ => {}
            }
        }
        Ok(if unknown { Value::Null } else { Value::Bool(false) })
    }

    fn call<'e>(&self, function: Function, args: &'e [Expr], depth: usize) -> Result<Cow<'e, Value>, Rejected>
    where
        'a: 'e,
    {
        if function == Function::Coalesce {
            for arg in args {
                let value = self.eval(arg, depth)?;
                if !value.is_null() {
                    return Ok(value);
                }
            }
            return Ok(Cow::Owned(Value::Null));
        }
        let [arg] = args else {
            return Err(value_error("42883", format!("{} takes one argument", function.name())));
        };
        let arg = self.eval(arg, depth)?;
        Ok(Cow::Owned(match (function, &*arg) {
            (_, Value::Null) => Value::Null,
            (Function::Length, Value::Text(s)) => Value::Int(s.chars().count() as i64),
            (Function::Length, Value::Bytes(b)) => Value::Int(b.len() as i64),
            (Function::Lower, Value::Text(s)) => Value::Text(s.to_lowercase()),
            (Function::Upper, Value::Text(s)) => Value::Text(s.to_uppercase()),
            (Function::Trim, Value::Text(s)) => Value::Text(s.trim_matches(' ').to_string()),
            (Function::Abs, v) => number::abs(v)?,
            (_, v) => {
                let name = function.name();
                return Err(value_error("42883", format!("{name}({}) does not exist", v.own_type())));
            }
        }))
    }
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Function::Length => "length",
            Function::Lower => "lower",
            Function::Upper => "upper",
            Function::Trim => "trim",
            Function::Abs => "abs",
            Function::Coalesce => "coalesce",
        }
    }
}

impl BinaryOp {
    fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Mod => "%",
            BinaryOp::Concat => "||",
            BinaryOp::Eq => "=",
            BinaryOp::Ne => "<>",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::And => "AND",
            BinaryOp::Or => "OR",
            BinaryOp::Like => "LIKE",
            BinaryOp::ILike => "ILIKE",
        }
    }
}

/// A column of a row; a position beyond it can only come from a broken proposal.
fn column(row: &[Value], pos: ColumnPos) -> Result<&Value, Rejected> {
    row.get(usize::from(pos)).ok_or_else(|| value_error("42703", format!("column {pos} does not exist")))
}

/// The truth value of a condition; NULL is `None`.
fn truth(value: &Value) -> Result<Option<bool>, Rejected> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(b) => Ok(Some(*b)),
        other => Err(value_error("42804", format!("a condition must be BOOLEAN, not {}", other.own_type()))),
    }
}

fn negate(value: &Value) -> Result<Value, Rejected> {
    match value {
        Value::Null => Ok(Value::Null),
        Value::Interval(i) => time::negate(*i).map(Value::Interval),
        _ => number::negate(value),
    }
}

/// Everything but AND and OR, which need not evaluate both sides.
fn binary(op: BinaryOp, a: &Value, b: &Value) -> Result<Value, Rejected> {
    if a.is_null() || b.is_null() {
        return Ok(Value::Null);
    }
    match op {
        BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge => comparison(op, a, b),
        BinaryOp::Like | BinaryOp::ILike => match (a, b) {
            (Value::Text(text), Value::Text(pattern)) => Ok(Value::Bool(like(text, pattern, op == BinaryOp::ILike)?)),
            _ => Err(no_operator(op, a, b)),
        },
        BinaryOp::Concat => match (a, b) {
            (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&a[..], &b[..]].concat())),
            _ => {
                let mut text = cast::to_text(a);
                text.push_str(&cast::to_text(b));
                Ok(Value::Text(text))
            }
        },
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod => {
            let (a, b) = same_kind(a, b)?;
            match number::arithmetic(op, &a, &b)? {
                Some(value) => Ok(value),
                None => time::arithmetic(op, &a, &b)?.ok_or_else(|| no_operator(op, &a, &b)),
            }
        }
        BinaryOp::And | BinaryOp::Or => Err(no_operator(op, a, b)),
    }
}

fn comparison(op: BinaryOp, a: &Value, b: &Value) -> Result<Value, Rejected> {
    let order = match compare(a, b) {
        Some(order) => order,
        None => {
            let (x, y) = same_kind(a, b)?;
            compare(&x, &y).ok_or_else(|| no_operator(op, a, b))?
        }
    };
    Ok(Value::Bool(match op {
        BinaryOp::Eq => order.is_eq(),
        BinaryOp::Ne => order.is_ne(),
        BinaryOp::Lt => order.is_lt(),
        BinaryOp::Le => order.is_le(),
        BinaryOp::Gt => order.is_gt(),
        _ => order.is_ge(),
    }))
}

/// Text beside another type is read as that type; other pairs stay as they are.
fn same_kind<'v>(a: &'v Value, b: &'v Value) -> Result<(Cow<'v, Value>, Cow<'v, Value>), Rejected> {
    let as_kind = |text: &Value, other: &Value| -> Result<Cow<'v, Value>, Rejected> {
        let ty = match other {
            // Any number: the text decides which.
            Value::Int(_) | Value::Decimal(_) => return number::from_text(text).map(Cow::Owned),
            other => other.own_type(),
        };
        cast(text.clone(), ty).map(Cow::Owned)
    };
    Ok(match (a, b) {
        (Value::Text(_), Value::Text(_)) => (Cow::Borrowed(a), Cow::Borrowed(b)),
        (Value::Text(_), other) => (as_kind(a, other)?, Cow::Borrowed(b)),
        (other, Value::Text(_)) => (Cow::Borrowed(a), as_kind(b, other)?),
        _ => (Cow::Borrowed(a), Cow::Borrowed(b)),
    })
}

fn no_operator(op: BinaryOp, a: &Value, b: &Value) -> Rejected {
    value_error("42883", format!("operator does not exist: {} {} {}", a.own_type(), op.symbol(), b.own_type()))
}

#[cfg(test)]
mod tests;
