//! Conversions: CAST, and the assignment of a value to a column.
//!
//! Invariant: a value that does not fit is an error, never cut. The two exceptions are SQL's own: an explicit
//! CAST to VARCHAR(n) cuts, and spaces beyond the length of a VARCHAR or CHAR are dropped.

use quorate_shared::value::{Decimal, Interval, SqlType, Value};

use super::{number, time, value_error};
use crate::error::Rejected;

/// `CAST(value AS ty)`.
pub fn cast(value: Value, ty: SqlType) -> Result<Value, Rejected> {
    convert(value, ty, true)
}

/// The value as a column of this type stores it, or an error that names the column.
pub fn coerce(value: Value, ty: SqlType, column: &str) -> Result<Value, Rejected> {
    // The usual case costs one match.
    match (&value, ty) {
        (Value::Null, _) | (Value::Int(_), SqlType::BigInt) | (Value::Text(_), SqlType::Text) => return Ok(value),
        (Value::Int(n), SqlType::Int) if i32::try_from(*n).is_ok() => return Ok(value),
        _ => {}
    }
    convert(value, ty, false).map_err(|e| match e {
        Rejected::Value { sqlstate, message } if sqlstate == "42846" => {
            value_error("42804", format!("column \"{column}\": {message}"))
        }
        Rejected::Value { sqlstate, message } => {
            Rejected::Value { sqlstate, message: format!("column \"{column}\": {message}") }
        }
        other => other,
    })
}

/// The text of a value, as `||` and CAST AS TEXT give it.
pub(super) fn to_text(value: &Value) -> String {
    match value {
        Value::Text(s) | Value::Json(s) => s.clone(),
        other => other.to_string(),
    }
}

fn convert(value: Value, ty: SqlType, explicit: bool) -> Result<Value, Rejected> {
    if value.is_null() {
        return Ok(Value::Null);
    }
    match ty {
        SqlType::Null => Ok(value),
        SqlType::Bool => to_bool(value),
        SqlType::SmallInt => to_int(&value, ty, i64::from(i16::MIN), i64::from(i16::MAX)),
        SqlType::Int => to_int(&value, ty, i64::from(i32::MIN), i64::from(i32::MAX)),
        SqlType::BigInt => to_int(&value, ty, i64::MIN, i64::MAX),
        SqlType::Real | SqlType::Double => to_float(&value, ty),
        SqlType::Decimal { precision, scale } => to_decimal(&value, precision, scale),
        SqlType::Text => Ok(Value::Text(into_text(value))),
        SqlType::Varchar(n) | SqlType::Char(n) => fit_text(into_text(value), n, ty, explicit),
        SqlType::Bytes => match value {
            Value::Bytes(_) => Ok(value),
            other => parse_text(&other, ty),
        },
        SqlType::Date | SqlType::Time | SqlType::Timestamp | SqlType::TimestampTz => to_moment(value, ty),
        SqlType::Interval => match value {
            Value::Interval(_) => Ok(value),
            Value::Time(micros) => Ok(Value::Interval(Interval { months: 0, days: 0, micros })),
            other => parse_text(&other, ty),
        },
        SqlType::Uuid => match value {
            Value::Uuid(_) => Ok(value),
            other => parse_text(&other, ty),
        },
        SqlType::Json => match value {
            Value::Json(_) => Ok(value),
            other => parse_text(&other, ty),
        },
    }
}

fn no_cast(value: &Value, ty: SqlType) -> Rejected {
    value_error("42846", format!("cannot convert {} to {ty}", value.own_type()))
}

/// Only text is read as another type; everything else has been dealt with before.
fn parse_text(value: &Value, ty: SqlType) -> Result<Value, Rejected> {
    let Value::Text(text) = value else { return Err(no_cast(value, ty)) };
    Value::parse(text, ty).map_err(|message| {
        let sqlstate = if message.contains("out of range") || message.contains("does not fit") {
            "22003"
        } else if matches!(
            ty,
            SqlType::Date | SqlType::Time | SqlType::Timestamp | SqlType::TimestampTz | SqlType::Interval
        ) {
            "22007"
        } else {
            "22P02"
        };
        value_error(sqlstate, message)
    })
}

fn into_text(value: Value) -> String {
    match value {
        Value::Text(s) | Value::Json(s) => s,
        other => other.to_string(),
    }
}

fn fit_text(mut text: String, max: u32, ty: SqlType, explicit: bool) -> Result<Value, Rejected> {
    // Characters are at most as many as bytes, so most values need no counting.
    if text.len() > max as usize
        && let Some((end, _)) = text.char_indices().nth(max as usize)
    {
        if !explicit && text[end..].bytes().any(|b| b != b' ') {
            return Err(value_error("22001", format!("value too long for type {ty}")));
        }
        text.truncate(end);
    }
    Ok(Value::Text(text))
}

fn to_bool(value: Value) -> Result<Value, Rejected> {
    match value {
        Value::Bool(_) => Ok(value),
        Value::Int(n) => Ok(Value::Bool(n != 0)),
        other => parse_text(&other, SqlType::Bool),
    }
}

fn to_int(value: &Value, ty: SqlType, min: i64, max: i64) -> Result<Value, Rejected> {
    let out_of_range = |v: &dyn std::fmt::Display| value_error("22003", format!("{v} is out of range for {ty}"));
    let int = match value {
        Value::Int(n) => Some(*n),
        Value::Bool(b) => Some(i64::from(*b)),
        Value::Decimal(d) => d.rescale(0).and_then(|d| i64::try_from(d.unscaled).ok()),
        Value::Float(f) => {
            let rounded = f.round_ties_even();
            // 2^63 itself is a float, the largest i64 is not.
            (rounded >= -(2f64.powi(63)) && rounded < 2f64.powi(63)).then_some(rounded as i64)
        }
        _ => return parse_text(value, ty),
    };
    int.filter(|n| (min..=max).contains(n)).map(Value::Int).ok_or_else(|| out_of_range(value))
}

fn to_float(value: &Value, ty: SqlType) -> Result<Value, Rejected> {
    let Some(wide) = number::to_float(value) else { return parse_text(value, ty) };
    if ty == SqlType::Double {
        return Ok(Value::Float(wide));
    }
    let narrow = wide as f32;
    if (narrow.is_infinite() && wide.is_finite()) || (narrow == 0.0 && wide != 0.0) {
        return Err(value_error("22003", format!("{value} is out of range for {ty}")));
    }
    Ok(Value::Float(f64::from(narrow)))
}

fn to_decimal(value: &Value, precision: u8, scale: u8) -> Result<Value, Rejected> {
    let ty = SqlType::Decimal { precision, scale };
    let exact = match value {
        Value::Int(n) => Some(Decimal::from_int(*n)),
        Value::Decimal(d) => Some(*d),
        Value::Float(f) => Decimal::from_f64(*f).or_else(|| tiny(*f)),
        _ => return parse_text(value, ty),
    };
    exact
        .and_then(|d| d.fit(precision, scale))
        .map(Value::Decimal)
        .ok_or_else(|| value_error("22003", format!("{value} does not fit {ty}")))
}

/// A float too small for 38 decimal places rounds to zero.
fn tiny(f: f64) -> Option<Decimal> {
    (f.abs() < 1e-20).then(|| Decimal::from_int(0))
}

fn to_moment(value: Value, ty: SqlType) -> Result<Value, Rejected> {
    let out_of_range = || value_error("22008", format!("{ty} out of range"));
    match (&value, ty) {
        (Value::Date(_), SqlType::Date)
        | (Value::Time(_), SqlType::Time)
        | (Value::Timestamp(_), SqlType::Timestamp)
        | (Value::TimestampTz(_), SqlType::TimestampTz) => Ok(value),
        // Sessions run in UTC, so both kinds of timestamp have the same number.
        (Value::TimestampTz(t), SqlType::Timestamp) => Ok(Value::Timestamp(*t)),
        (Value::Timestamp(t), SqlType::TimestampTz) => Ok(Value::TimestampTz(*t)),
        (Value::Date(d), SqlType::Timestamp | SqlType::TimestampTz) => {
            let micros = i64::try_from(time::midnight(*d)).map_err(|_| out_of_range())?;
            Ok(if ty == SqlType::Timestamp { Value::Timestamp(micros) } else { Value::TimestampTz(micros) })
        }
        (Value::Timestamp(t) | Value::TimestampTz(t), SqlType::Date) => {
            i32::try_from(t.div_euclid(time::DAY_MICROS)).map(Value::Date).map_err(|_| out_of_range())
        }
        (Value::Timestamp(t) | Value::TimestampTz(t), SqlType::Time) => Ok(Value::Time(t.rem_euclid(time::DAY_MICROS))),
        (Value::Interval(i), SqlType::Time) => Ok(Value::Time(i.micros.rem_euclid(time::DAY_MICROS))),
        // A date or a time may be given as a whole timestamp.
        (Value::Text(text), SqlType::Date | SqlType::Time) => match Value::parse(text, SqlType::Timestamp) {
            Ok(moment) if Value::parse(text, ty).is_err() => to_moment(moment, ty),
            _ => parse_text(&value, ty),
        },
        _ => parse_text(&value, ty),
    }
}
