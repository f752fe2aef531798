//! Assignment: a value becomes one of a column's type, or an error that names the column.
//!
//! Follows PostgreSQL's assignment casts, and MySQL's habit of 0 and 1 for booleans.
//!
//! Invariants: a value that does not fit is an error, never cut; surplus digits of a number are rounded.

use quorate_shared::error::WireError;
use quorate_shared::value::{Decimal, SqlType, Value};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Why a value is not one of a type: SQLSTATE and one sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Misfit {
    /// PostgreSQL's code.
    pub sqlstate: &'static str,
    /// What does not fit.
    pub message: String,
}

impl Misfit {
    /// As an error about a column.
    pub fn of_column(self, column: &str) -> WireError {
        WireError::sql(self.sqlstate, format!("column \"{column}\": {}", self.message))
    }
    /// As an error about a column in a row of VALUES, counted from 1.
    pub fn of_cell(self, column: &str, row: usize) -> WireError {
        self.of_column(column).detail(format!("row {row} of VALUES"))
    }
}

impl From<Misfit> for WireError {
    fn from(misfit: Misfit) -> Self {
        WireError::sql(misfit.sqlstate, misfit.message)
    }
}

/// Makes `value` one of `ty`.
///
/// # Errors
/// When it does not fit or there is no assignment between the types.
pub fn coerce(value: Value, ty: SqlType) -> Result<Value, Misfit> {
    match (ty, value) {
        (_, Value::Null) => Ok(Value::Null),
        (SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json, Value::Text(text)) => parse(&text, ty),
        (SqlType::Text | SqlType::Null, Value::Text(text)) => Ok(Value::Text(text)),
        (_, Value::Text(text)) if !is_text(ty) => parse(&text, ty),
        (SqlType::Bool, Value::Bool(b)) => Ok(Value::Bool(b)),
        (SqlType::Bool, Value::Int(n @ (0 | 1))) => Ok(Value::Bool(n == 1)),
        (SqlType::SmallInt | SqlType::Int | SqlType::BigInt, value) => to_int(value, ty),
        (SqlType::Real | SqlType::Double, value) => to_float(value, ty),
        (SqlType::Decimal { precision, scale }, value) => to_decimal(value, precision, scale, ty),
        (SqlType::Bytes, v @ Value::Bytes(_))
        | (SqlType::Date, v @ Value::Date(_))
        | (SqlType::Time, v @ Value::Time(_))
        | (SqlType::Timestamp, v @ Value::Timestamp(_))
        | (SqlType::TimestampTz, v @ Value::TimestampTz(_))
        | (SqlType::Interval, v @ Value::Interval(_))
        | (SqlType::Uuid, v @ Value::Uuid(_))
        | (SqlType::Json, v @ Value::Json(_))
        | (SqlType::Null, v) => Ok(v),
        (SqlType::Date, Value::Timestamp(t) | Value::TimestampTz(t)) => date_of(t, ty),
        (SqlType::Time, Value::Timestamp(t) | Value::TimestampTz(t)) => Ok(Value::Time(t.rem_euclid(MICROS_PER_DAY))),
        (SqlType::Timestamp, Value::TimestampTz(t)) => Ok(Value::Timestamp(t)),
        (SqlType::TimestampTz, Value::Timestamp(t)) => Ok(Value::TimestampTz(t)),
        (SqlType::Timestamp, Value::Date(d)) => Ok(Value::Timestamp(i64::from(d) * MICROS_PER_DAY)),
        (SqlType::TimestampTz, Value::Date(d)) => Ok(Value::TimestampTz(i64::from(d) * MICROS_PER_DAY)),
        (SqlType::Uuid, Value::Bytes(bytes)) => match <[u8; 16]>::try_from(bytes.as_slice()) {
            Ok(uuid) => Ok(Value::Uuid(uuid)),
            Err(_) => Err(Misfit { sqlstate: "22P02", message: format!("{} bytes are not a UUID", bytes.len()) }),
        },
        (SqlType::Json, Value::Bool(b)) => Ok(Value::Json(b.to_string())),
        (SqlType::Json, v @ (Value::Int(_) | Value::Decimal(_))) => Ok(Value::Json(v.to_string())),
        (ty, value) if is_text(ty) && !matches!(value, Value::Bytes(_)) => parse(&value.to_string(), ty),
        (ty, value) => Err(mismatch(&value, ty)),
    }
}

/// Whether values of `ty` already are what `coerce` to `to` gives, without looking at them.
pub fn is_assignable_unchanged(ty: SqlType, to: SqlType) -> bool {
    match (ty, to) {
        (a, b) if a == b => true,
        (SqlType::SmallInt, SqlType::Int | SqlType::BigInt) | (SqlType::Int, SqlType::BigInt) => true,
        (SqlType::Varchar(_) | SqlType::Char(_), SqlType::Text) => true,
        (SqlType::Varchar(a) | SqlType::Char(a), SqlType::Varchar(b) | SqlType::Char(b)) => a <= b,
        _ => false,
    }
}

/// Whether a type's values are text.
pub fn is_text(ty: SqlType) -> bool {
    matches!(ty, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_))
}

/// Whether a type's values are numbers.
pub fn is_number(ty: SqlType) -> bool {
    matches!(
        ty,
        SqlType::SmallInt | SqlType::Int | SqlType::BigInt | SqlType::Real | SqlType::Double | SqlType::Decimal { .. }
    )
}

/// The type a value has by itself; `None` for NULL and for text, which takes the type of what it meets.
pub fn type_of(value: &Value) -> Option<SqlType> {
    match value {
        Value::Null | Value::Text(_) => None,
        Value::Int(n) if i32::try_from(*n).is_ok() => Some(SqlType::Int),
        other => Some(other.own_type()),
    }
}

fn parse(text: &str, ty: SqlType) -> Result<Value, Misfit> {
    match Value::parse(text, ty) {
        Ok(value) => Ok(value),
        // MySQL and PostgreSQL both accept a time of day after a date here.
        Err(message) if ty == SqlType::Date => match Value::parse(text, SqlType::Timestamp) {
            Ok(Value::Timestamp(t)) => date_of(t, ty),
            _ => Err(Misfit { sqlstate: "22007", message }),
        },
        Err(message) => Err(Misfit { sqlstate: sqlstate_of(&message, ty), message }),
    }
}

fn sqlstate_of(message: &str, ty: SqlType) -> &'static str {
    match ty {
        SqlType::Varchar(_) | SqlType::Char(_) => "22001",
        SqlType::Date | SqlType::Time | SqlType::Timestamp | SqlType::TimestampTz | SqlType::Interval => "22007",
        _ if message.contains("out of range") || message.contains("does not fit") => "22003",
        _ => "22P02",
    }
}

fn date_of(micros: i64, ty: SqlType) -> Result<Value, Misfit> {
    let days = micros.div_euclid(MICROS_PER_DAY);
    i32::try_from(days).map(Value::Date).map_err(|_| out_of_range(days, ty))
}

fn to_int(value: Value, ty: SqlType) -> Result<Value, Misfit> {
    let n = match value {
        Value::Int(n) => n,
        Value::Bool(b) => i64::from(b),
        Value::Decimal(d) => {
            let whole = d.rescale(0).ok_or_else(|| out_of_range(d, ty))?;
            i64::try_from(whole.unscaled).map_err(|_| out_of_range(d, ty))?
        }
        Value::Float(f) => {
            let rounded = f.round_ties_even();
            // 2^63 is exact as a float; everything below it and at least -2^63 fits.
            if !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&rounded) {
                return Err(out_of_range(f, ty));
            }
            #[allow(clippy::cast_possible_truncation)]
            let n = rounded as i64;
            n
        }
        other => return Err(mismatch(&other, ty)),
    };
    let fits = match ty {
        SqlType::SmallInt => i16::try_from(n).is_ok(),
        SqlType::Int => i32::try_from(n).is_ok(),
        _ => true,
    };
    if fits { Ok(Value::Int(n)) } else { Err(out_of_range(n, ty)) }
}

fn to_float(value: Value, ty: SqlType) -> Result<Value, Misfit> {
    let f = match value {
        Value::Float(f) => f,
        #[allow(clippy::cast_precision_loss)]
        Value::Int(n) => n as f64,
        Value::Decimal(d) => d.to_f64(),
        other => return Err(mismatch(&other, ty)),
    };
    if ty == SqlType::Double {
        return Ok(Value::Float(f));
    }
    #[allow(clippy::cast_possible_truncation)]
    let narrow = f as f32;
    if narrow.is_infinite() && f.is_finite() {
        return Err(out_of_range(f, ty));
    }
    Ok(Value::Float(f64::from(narrow)))
}

fn to_decimal(value: Value, precision: u8, scale: u8, ty: SqlType) -> Result<Value, Misfit> {
    let exact = match value {
        Value::Decimal(d) => d,
        Value::Int(n) => Decimal::from_int(n),
        Value::Float(f) => Decimal::from_f64(f).ok_or_else(|| out_of_range(f, ty))?,
        other => return Err(mismatch(&other, ty)),
    };
    exact
        .fit(precision, scale)
        .map(Value::Decimal)
        .ok_or_else(|| Misfit { sqlstate: "22003", message: format!("{exact} does not fit {ty}") })
}

fn out_of_range(value: impl std::fmt::Display, ty: SqlType) -> Misfit {
    Misfit { sqlstate: "22003", message: format!("{value} is out of range for {ty}") }
}

fn mismatch(value: &Value, ty: SqlType) -> Misfit {
    let of = type_of(value).map_or_else(|| "text".to_owned(), |t| t.to_string());
    Misfit { sqlstate: "42804", message: format!("a value of type {of} cannot be stored as {ty}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_numbers_and_refuses_what_does_not_fit() {
        let half = Value::Decimal(Decimal { unscaled: 25, scale: 1 });
        assert_eq!(coerce(half, SqlType::Int), Ok(Value::Int(3)));
        assert_eq!(coerce(Value::Int(40_000), SqlType::SmallInt).unwrap_err().sqlstate, "22003");
        assert_eq!(coerce(Value::Text("abcd".into()), SqlType::Varchar(3)).unwrap_err().sqlstate, "22001");
        assert_eq!(coerce(Value::Text("x".into()), SqlType::Int).unwrap_err().sqlstate, "22P02");
        assert_eq!(coerce(Value::Int(1), SqlType::Bool), Ok(Value::Bool(true)));
        assert_eq!(coerce(Value::Int(2), SqlType::Bool).unwrap_err().sqlstate, "42804");
        assert_eq!(coerce(Value::Int(12), SqlType::Text), Ok(Value::Text("12".into())));
    }

    #[test]
    fn dates_and_times_meet() {
        assert_eq!(coerce(Value::Text("2020-01-01 10:00:00".into()), SqlType::Date), Ok(Value::Date(18262)));
        assert_eq!(coerce(Value::Date(1), SqlType::Timestamp), Ok(Value::Timestamp(MICROS_PER_DAY)));
        assert_eq!(coerce(Value::Timestamp(-1), SqlType::Date), Ok(Value::Date(-1)));
    }
}
