//! SQL values and types as they travel and as they are stored, and the one text format of each.
//!
//! [`Value`]'s `Display`, [`Value::text`] and [`Value::parse`] are that format for SQL casts, every rendering of the
//! shell, TUI and JSON; it is PostgreSQL's (`ISO` dates, `postgres` intervals, `hex` bytes, shortest floats).
//!
//! Invariants: `parse(text(v), type) == v` for every value of a type; a value that does not fit its type is an error,
//! never cut (a decimal's surplus digits are rounded, as SQL asks for).
//! Left out: arithmetic, coercion between types and collation, which belong to whoever evaluates SQL.

use std::fmt;

use serde::{Deserialize, Serialize};

mod decimal;
mod time;

pub use decimal::DIGITS_MAX;
pub use time::{civil_from_days, days_from_civil};

/// A column's type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum SqlType {
    /// BOOLEAN.
    Bool,
    /// SMALLINT, 16 bits.
    SmallInt,
    /// INT, 32 bits.
    Int,
    /// BIGINT, 64 bits.
    BigInt,
    /// REAL, 32-bit float.
    Real,
    /// DOUBLE PRECISION.
    Double,
    /// DECIMAL(precision, scale), precision at most 38.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// TEXT.
    Text,
    /// VARCHAR(n), n in characters.
    Varchar(u32),
    /// CHAR(n), n in characters; not padded.
    Char(u32),
    /// BYTEA, BLOB.
    Bytes,
    /// DATE.
    Date,
    /// TIME, microseconds.
    Time,
    /// TIMESTAMP without zone, microseconds.
    Timestamp,
    /// TIMESTAMP WITH TIME ZONE, microseconds UTC.
    TimestampTz,
    /// INTERVAL.
    Interval,
    /// UUID.
    Uuid,
    /// JSON.
    Json,
    /// The type of a bare NULL.
    Null,
}

/// An exact decimal: `unscaled / 10^scale`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Decimal {
    /// All digits, without the point.
    pub unscaled: i128,
    /// Digits after the point, at most 38.
    pub scale: u8,
}

/// A span of time, as PostgreSQL keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, Default)]
pub struct Interval {
    /// Months.
    pub months: i32,
    /// Days.
    pub days: i32,
    /// Microseconds.
    pub micros: i64,
}

/// A value. All integer types travel as `Int`; a stored row knows the width from its column.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub enum Value {
    /// NULL.
    #[default]
    Null,
    /// BOOLEAN.
    Bool(bool),
    /// SMALLINT, INT, BIGINT.
    Int(i64),
    /// REAL (rounded to 32 bits before it is stored) and DOUBLE.
    Float(f64),
    /// DECIMAL.
    Decimal(Decimal),
    /// TEXT, VARCHAR, CHAR.
    Text(String),
    /// BYTEA.
    Bytes(Vec<u8>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds since 1970-01-01, local.
    Timestamp(i64),
    /// Microseconds since 1970-01-01 UTC.
    TimestampTz(i64),
    /// INTERVAL.
    Interval(Interval),
    /// UUID.
    Uuid([u8; 16]),
    /// JSON, its text as given.
    Json(String),
}

impl Value {
    /// The widest type whose values look like this one.
    pub fn own_type(&self) -> SqlType {
        match self {
            Value::Null => SqlType::Null,
            Value::Bool(_) => SqlType::Bool,
            Value::Int(_) => SqlType::BigInt,
            Value::Float(_) => SqlType::Double,
            Value::Decimal(d) => SqlType::Decimal { precision: 38, scale: d.scale },
            Value::Text(_) => SqlType::Text,
            Value::Bytes(_) => SqlType::Bytes,
            Value::Date(_) => SqlType::Date,
            Value::Time(_) => SqlType::Time,
            Value::Timestamp(_) => SqlType::Timestamp,
            Value::TimestampTz(_) => SqlType::TimestampTz,
            Value::Interval(_) => SqlType::Interval,
            Value::Uuid(_) => SqlType::Uuid,
            Value::Json(_) => SqlType::Json,
        }
    }

    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Its text as a value of `ty`. Differs from `Display` only for REAL, whose shortest digits are those of 32 bits.
    pub fn text(&self, ty: SqlType) -> String {
        match (self, ty) {
            (Value::Float(v), SqlType::Real) => {
                let mut out = String::new();
                // Writing to a String cannot fail.
                let _ = write_real(&mut out, *v);
                out
            }
            _ => self.to_string(),
        }
    }

    /// Reads a value of type `ty` from its text; the error is one lower-case sentence.
    ///
    /// Accepts what [`Value::text`] writes and PostgreSQL's usual other spellings (`t`, `2020/1/31`,
    /// `2020-01-31T12:00:00Z`, `P1D`); spaces around all but character and binary values are ignored.
    pub fn parse(text: &str, ty: SqlType) -> Result<Value, String> {
        let invalid = || format!("invalid {ty} value {}", quoted(text));
        let trimmed = text.trim();
        match ty {
            SqlType::Bool => parse_bool(trimmed).map(Value::Bool).ok_or_else(invalid),
            SqlType::SmallInt => parse_int(trimmed, ty, i64::from(i16::MIN), i64::from(i16::MAX)),
            SqlType::Int => parse_int(trimmed, ty, i64::from(i32::MIN), i64::from(i32::MAX)),
            SqlType::BigInt => parse_int(trimmed, ty, i64::MIN, i64::MAX),
            SqlType::Real => parse_float(trimmed, true).ok_or_else(invalid)?.map(Value::Float),
            SqlType::Double => parse_float(trimmed, false).ok_or_else(invalid)?.map(Value::Float),
            SqlType::Decimal { precision, scale } => {
                let exact = Decimal::parse(trimmed).ok_or_else(invalid)?;
                exact.fit(precision, scale).map(Value::Decimal).ok_or_else(|| format!("{trimmed} does not fit {ty}"))
            }
            SqlType::Text | SqlType::Null => Ok(Value::Text(text.to_owned())),
            SqlType::Varchar(max) | SqlType::Char(max) => {
                let chars = text.chars().count();
                if chars > max as usize {
                    return Err(format!("value of {chars} characters does not fit {ty}"));
                }
                Ok(Value::Text(text.to_owned()))
            }
            SqlType::Bytes => parse_bytes(text).map(Value::Bytes).ok_or_else(invalid),
            SqlType::Date => time::parse_date(trimmed).map(Value::Date).ok_or_else(invalid),
            SqlType::Time => time::parse_time(trimmed).map(Value::Time).ok_or_else(invalid),
            SqlType::Timestamp => match time::parse_timestamp(trimmed).ok_or_else(invalid)? {
                (local, None | Some(0)) => Ok(Value::Timestamp(local)),
                _ => Err(format!("{} has a time zone, which TIMESTAMP does not keep", quoted(text))),
            },
            SqlType::TimestampTz => {
                let (local, offset) = time::parse_timestamp(trimmed).ok_or_else(invalid)?;
                local.checked_sub(offset.unwrap_or(0)).map(Value::TimestampTz).ok_or_else(invalid)
            }
            SqlType::Interval => Interval::parse(trimmed).map(Value::Interval).ok_or_else(invalid),
            SqlType::Uuid => parse_uuid(trimmed).map(Value::Uuid).ok_or_else(invalid),
            SqlType::Json => match json_error(text) {
                None => Ok(Value::Json(text.to_owned())),
                Some(why) => Err(format!("invalid JSON value {}: {why}", quoted(text))),
            },
        }
    }
}

/// Why `text` is not valid JSON; `None` if it is.
pub fn json_error(text: &str) -> Option<String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).err().map(|e| e.to_string())
}

/// A value as an error message quotes it: short, in double quotes.
fn quoted(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => format!("\"{text}\""),
        Some((end, _)) => format!("\"{}...\"", &text[..end]),
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    const TRUE: [&str; 6] = ["true", "t", "yes", "y", "on", "1"];
    const FALSE: [&str; 6] = ["false", "f", "no", "n", "off", "0"];
    if TRUE.iter().any(|t| text.eq_ignore_ascii_case(t)) {
        return Some(true);
    }
    FALSE.iter().any(|t| text.eq_ignore_ascii_case(t)).then_some(false)
}

fn parse_int(text: &str, ty: SqlType, min: i64, max: i64) -> Result<Value, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let out_of_range = || format!("{text} is out of range for {ty}");
    match text.parse::<i64>() {
        Ok(v) if (min..=max).contains(&v) => Ok(Value::Int(v)),
        Ok(_) => Err(out_of_range()),
        Err(e) if matches!(e.kind(), NegOverflow | PosOverflow) => Err(out_of_range()),
        Err(_) => Err(format!("invalid {ty} value {}", quoted(text))),
    }
}

/// `None` if it is no number, an error if the number does not fit.
fn parse_float(text: &str, real: bool) -> Option<Result<f64, String>> {
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    let special = ["nan", "inf", "infinity"].iter().any(|s| bare.eq_ignore_ascii_case(s));
    // Rust reads more words than SQL does; a number begins with a digit or a point.
    if !special && !bare.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let wide: f64 = text.parse().ok()?;
    let value = if real { f64::from(text.parse::<f32>().ok()?) } else { wide };
    let lost = !special && (value.is_infinite() || (value == 0.0 && bare_digits_nonzero(bare)));
    let name = if real { "REAL" } else { "DOUBLE PRECISION" };
    Some(if lost { Err(format!("{text} is out of range for {name}")) } else { Ok(value) })
}

/// Whether a numeral's digits before any exponent have a digit other than 0.
fn bare_digits_nonzero(text: &str) -> bool {
    text.bytes().take_while(|b| !matches!(b, b'e' | b'E')).any(|b| (b'1'..=b'9').contains(&b))
}

/// `\x` and hex digits, or PostgreSQL's escape format: text with `\\` and `\ooo`.
fn parse_bytes(text: &str) -> Option<Vec<u8>> {
    if let Some(hex) = text.strip_prefix("\\x") {
        return hex_bytes(hex.as_bytes());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'\\' {
            out.push(first);
            rest = tail;
        } else if tail.first() == Some(&b'\\') {
            out.push(b'\\');
            rest = &tail[1..];
        } else {
            let octal = tail.get(..3)?;
            if octal[0] > b'3' || !octal.iter().all(|b| (b'0'..=b'7').contains(b)) {
                return None;
            }
            out.push(octal.iter().fold(0, |n: u8, b| (n << 3) | (b - b'0')));
            rest = &tail[3..];
        }
    }
    Some(out)
}

fn hex_bytes(hex: &[u8]) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    hex.chunks_exact(2).map(|pair| Some((hex_digit(pair[0])? << 4) | hex_digit(pair[1])?)).collect()
}

fn hex_digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// 32 hex digits, hyphens anywhere between bytes, optionally in braces.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let inner = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut hex = Vec::with_capacity(32);
    for (at, byte) in inner.bytes().enumerate() {
        if byte == b'-' && at > 0 && hex.len() % 2 == 0 && hex.len() < 32 {
            continue;
        }
        if hex.len() == 32 {
            return None;
        }
        hex.push(byte);
    }
    hex_bytes(&hex)?.try_into().ok()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("NULL"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::Int(v) => write!(f, "{v}"),
            Value::Float(v) => write_double(f, *v),
            Value::Decimal(v) => v.fmt(f),
            Value::Text(v) | Value::Json(v) => f.write_str(v),
            Value::Bytes(v) => {
                f.write_str("\\x")?;
                v.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            Value::Date(days) => time::write_date(f, i64::from(*days)),
            Value::Time(micros) => time::write_time(f, *micros),
            Value::Timestamp(micros) => time::write_timestamp(f, *micros, ""),
            Value::TimestampTz(micros) => time::write_timestamp(f, *micros, "+00"),
            Value::Interval(v) => v.fmt(f),
            Value::Uuid(bytes) => bytes.iter().enumerate().try_for_each(|(at, b)| {
                let hyphen = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(f, "{hyphen}{b:02x}")
            }),
        }
    }
}

/// From this exponent on a DOUBLE is written with one.
const DOUBLE_EXPONENT_FROM: i32 = 15;
/// The same for REAL.
const REAL_EXPONENT_FROM: i32 = 6;

fn write_double(out: &mut impl fmt::Write, v: f64) -> fmt::Result {
    write_float(out, v.is_finite().then(|| format!("{v:e}")).as_deref(), v, DOUBLE_EXPONENT_FROM)
}

/// `v` holds a REAL: its digits are the shortest that give the same 32 bits back.
fn write_real(out: &mut impl fmt::Write, v: f64) -> fmt::Result {
    // Rounding is what REAL is.
    #[allow(clippy::cast_possible_truncation)]
    let narrow = v as f32;
    write_float(
        out,
        narrow.is_finite().then(|| format!("{narrow:e}")).as_deref(),
        f64::from(narrow),
        REAL_EXPONENT_FROM,
    )
}

/// Writes the shortest digits (given as `d.ddde±x`) as PostgreSQL does: plain in the middle range, `1e+20` beyond it.
fn write_float(out: &mut impl fmt::Write, scientific: Option<&str>, v: f64, exponent_from: i32) -> fmt::Result {
    let parts = scientific.and_then(|s| s.split_once('e'));
    let Some((mantissa, exponent)) = parts else {
        return out.write_str(match v {
            _ if v.is_nan() => "NaN",
            _ if v > 0.0 => "Infinity",
            _ => "-Infinity",
        });
    };
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if exponent < -4 || exponent >= exponent_from {
        let sign = if exponent < 0 { '-' } else { '+' };
        return write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    out.write_str(sign)?;
    // Within the plain range the exponent is small in either direction.
    let point = exponent + 1;
    match usize::try_from(point) {
        Ok(point) if point > 0 => {
            let whole = digits.get(..point).unwrap_or(&digits);
            write!(out, "{whole:0<point$}")?;
            match digits.get(point..) {
                Some(fraction) if !fraction.is_empty() => write!(out, ".{fraction}"),
                _ => Ok(()),
            }
        }
        _ => {
            let zeros = point.unsigned_abs() as usize;
            write!(out, "0.{:0<zeros$}{digits}", "")
        }
    }
}

impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqlType::Bool => f.write_str("BOOLEAN"),
            SqlType::SmallInt => f.write_str("SMALLINT"),
            SqlType::Int => f.write_str("INT"),
            SqlType::BigInt => f.write_str("BIGINT"),
            SqlType::Real => f.write_str("REAL"),
            SqlType::Double => f.write_str("DOUBLE PRECISION"),
            SqlType::Decimal { precision, scale } => write!(f, "DECIMAL({precision},{scale})"),
            SqlType::Text => f.write_str("TEXT"),
            SqlType::Varchar(n) => write!(f, "VARCHAR({n})"),
            SqlType::Char(n) => write!(f, "CHAR({n})"),
            SqlType::Bytes => f.write_str("BYTEA"),
            SqlType::Date => f.write_str("DATE"),
            SqlType::Time => f.write_str("TIME"),
            SqlType::Timestamp => f.write_str("TIMESTAMP"),
            SqlType::TimestampTz => f.write_str("TIMESTAMP WITH TIME ZONE"),
            SqlType::Interval => f.write_str("INTERVAL"),
            SqlType::Uuid => f.write_str("UUID"),
            SqlType::Json => f.write_str("JSON"),
            SqlType::Null => f.write_str("NULL"),
        }
    }
}

#[cfg(test)]
mod tests;
