//! SQL values and types as they travel and as they are stored.
//!
//! Invariants: text formats are the same in SQL, TUI and JSON; a value that does not fit its type is an error, never cut.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
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
