//! Values to Arrow and back, and what each SQL type is called in Arrow.
//!
//! UUID and JSON travel as text with a mark in the field's metadata (`quorate.type`): the canonical text of a UUID sorts
//! as its bytes do. Times are in microseconds; a time with a zone is UTC.
//!
//! Invariants: a value that does not fit is an error, never cut; what Arrow has and SQL has not (nanoseconds, unsigned
//! numbers, views) is widened or rounded to the microsecond only where no digit of the user's is lost.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder,
    Float64Builder, Int16Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, NullArray, RecordBatch,
    StringBuilder, Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, IntervalDayTimeType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit,
    IntervalYearMonthType, Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::ScalarValue;
use quorate_core::row::ValueRef;
use quorate_shared::error::WireError;
use quorate_shared::value::{Decimal, Interval, SqlType, Value};
use sqlparser::ast;

/// Name of UTC in Arrow types.
pub const UTC: &str = "+00:00";
/// Metadata key that tells UUID and JSON from text.
const MARK: &str = "quorate.type";

/// The Arrow type of an SQL type.
pub fn arrow_type(ty: SqlType) -> DataType {
    match ty {
        SqlType::Bool => DataType::Boolean,
        SqlType::SmallInt => DataType::Int16,
        SqlType::Int => DataType::Int32,
        SqlType::BigInt => DataType::Int64,
        SqlType::Real => DataType::Float32,
        SqlType::Double => DataType::Float64,
        SqlType::Decimal { precision, scale } => DataType::Decimal128(precision, i8::try_from(scale).unwrap_or(38)),
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Uuid | SqlType::Json => DataType::Utf8,
        SqlType::Bytes => DataType::Binary,
        SqlType::Date => DataType::Date32,
        SqlType::Time => DataType::Time64(TimeUnit::Microsecond),
        SqlType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        SqlType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
        SqlType::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
        SqlType::Null => DataType::Null,
    }
}

/// A field that remembers what its type is in SQL.
pub fn field(name: &str, ty: SqlType, nullable: bool) -> Field {
    let field = Field::new(name, arrow_type(ty), nullable);
    match ty {
        SqlType::Uuid => field.with_metadata(HashMap::from([(MARK.to_owned(), "uuid".to_owned())])),
        SqlType::Json => field.with_metadata(HashMap::from([(MARK.to_owned(), "json".to_owned())])),
        _ => field,
    }
}

/// The SQL type of a result's field.
pub fn sql_type(field: &Field) -> SqlType {
    if matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        match field.metadata().get(MARK).map(String::as_str) {
            Some("uuid") => return SqlType::Uuid,
            Some("json") => return SqlType::Json,
            _ => {}
        }
    }
    sql_type_of_arrow(field.data_type())
}

/// The SQL type an Arrow type is shown as.
pub fn sql_type_of_arrow(ty: &DataType) -> SqlType {
    match ty {
        DataType::Null => SqlType::Null,
        DataType::Boolean => SqlType::Bool,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => SqlType::SmallInt,
        DataType::Int32 | DataType::UInt16 => SqlType::Int,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => SqlType::BigInt,
        DataType::Float16 | DataType::Float32 => SqlType::Real,
        DataType::Float64 => SqlType::Double,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) | DataType::Decimal128(p, s) => {
            SqlType::Decimal { precision: (*p).min(38), scale: u8::try_from(*s).unwrap_or(0) }
        }
        DataType::Decimal256(_, s) => SqlType::Decimal { precision: 38, scale: u8::try_from(*s).unwrap_or(0).min(38) },
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            SqlType::Bytes
        }
        DataType::Date32 | DataType::Date64 => SqlType::Date,
        DataType::Time32(_) | DataType::Time64(_) => SqlType::Time,
        DataType::Timestamp(_, None) => SqlType::Timestamp,
        DataType::Timestamp(_, Some(_)) => SqlType::TimestampTz,
        DataType::Interval(_) | DataType::Duration(_) => SqlType::Interval,
        DataType::Dictionary(_, value) => sql_type_of_arrow(value),
        // Lists, structs and maps are shown as their text.
        _ => SqlType::Text,
    }
}

/// A parameter's value as the planner takes it; `like` is the type the place wants, where known.
///
/// # Errors
/// `22P02` when the value does not fit that type.
pub fn scalar(value: &Value, like: Option<&DataType>) -> Result<ScalarValue, WireError> {
    let micros = TimeUnit::Microsecond;
    let own = match value {
        Value::Null => return Ok(like.and_then(|t| ScalarValue::try_from(t).ok()).unwrap_or(ScalarValue::Null)),
        Value::Bool(b) => ScalarValue::Boolean(Some(*b)),
        Value::Int(i) => ScalarValue::Int64(Some(*i)),
        Value::Float(f) => ScalarValue::Float64(Some(*f)),
        Value::Decimal(d) => ScalarValue::Decimal128(Some(d.unscaled), 38, i8::try_from(d.scale).unwrap_or(38)),
        Value::Text(s) | Value::Json(s) => ScalarValue::Utf8(Some(s.clone())),
        Value::Uuid(u) => ScalarValue::Utf8(Some(uuid_text(u))),
        Value::Bytes(b) => ScalarValue::Binary(Some(b.clone())),
        Value::Date(d) => ScalarValue::Date32(Some(*d)),
        Value::Time(t) => ScalarValue::Time64Microsecond(Some(*t)),
        Value::Timestamp(t) => ScalarValue::TimestampMicrosecond(Some(*t), None),
        Value::TimestampTz(t) => ScalarValue::TimestampMicrosecond(Some(*t), Some(UTC.into())),
        Value::Interval(i) => ScalarValue::IntervalMonthDayNano(Some(interval_to_arrow(i)?)),
    };
    let _ = micros;
    match like {
        Some(ty) if *ty != own.data_type() => match (&own, ty) {
            // A number given for a narrower place is compared as it is: the planner widens.
            (ScalarValue::Int64(_) | ScalarValue::Float64(_) | ScalarValue::Decimal128(..), t) if t.is_numeric() => {
                Ok(own)
            }
            _ => own.cast_to(ty).map_err(|_| {
                WireError::sql("22P02", format!("a parameter does not fit the type {}", sql_type_of_arrow(ty)))
            }),
        },
        _ => Ok(own),
    }
}

fn interval_to_arrow(i: &Interval) -> Result<IntervalMonthDayNano, WireError> {
    let nanos = i.micros.checked_mul(1_000).ok_or_else(|| WireError::sql("22008", "an interval is out of range"))?;
    Ok(IntervalMonthDayNano::new(i.months, i.days, nanos))
}

/// The canonical text of a UUID.
pub fn uuid_text(bytes: &[u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (i, b) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        for nibble in [b >> 4, b & 15] {
            out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    out
}

/// Reads a UUID in any usual form.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let trimmed = text.trim().trim_start_matches('{').trim_end_matches('}');
    let mut out = [0u8; 16];
    let mut digits = trimmed.chars().filter(|c| *c != '-');
    for byte in &mut out {
        let high = digits.next()?.to_digit(16)?;
        let low = digits.next()?.to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    digits.next().is_none().then_some(out)
}

/// Appends values of one column to an Arrow array.
pub enum ColumnBuilder {
    /// BOOLEAN.
    Bool(BooleanBuilder),
    /// SMALLINT.
    Int16(Int16Builder),
    /// INT.
    Int32(Int32Builder),
    /// BIGINT.
    Int64(Int64Builder),
    /// REAL.
    Float32(Float32Builder),
    /// DOUBLE PRECISION.
    Float64(Float64Builder),
    /// DECIMAL, with its scale.
    Decimal(Decimal128Builder, u8, u8),
    /// Texts, UUID, JSON.
    Text(StringBuilder),
    /// BYTEA.
    Bytes(BinaryBuilder),
    /// DATE.
    Date(Date32Builder),
    /// TIME.
    Time(Time64MicrosecondBuilder),
    /// Both timestamps.
    Timestamp(TimestampMicrosecondBuilder),
    /// INTERVAL.
    Interval(IntervalMonthDayNanoBuilder),
    /// NULL.
    Null(usize),
}

impl ColumnBuilder {
    /// For a type, with room for `rows`.
    pub fn new(ty: SqlType, rows: usize) -> Self {
        match ty {
            SqlType::Bool => Self::Bool(BooleanBuilder::with_capacity(rows)),
            SqlType::SmallInt => Self::Int16(Int16Builder::with_capacity(rows)),
            SqlType::Int => Self::Int32(Int32Builder::with_capacity(rows)),
            SqlType::BigInt => Self::Int64(Int64Builder::with_capacity(rows)),
            SqlType::Real => Self::Float32(Float32Builder::with_capacity(rows)),
            SqlType::Double => Self::Float64(Float64Builder::with_capacity(rows)),
            SqlType::Decimal { precision, scale } => {
                Self::Decimal(Decimal128Builder::with_capacity(rows).with_data_type(arrow_type(ty)), precision, scale)
            }
            SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Uuid | SqlType::Json => {
                Self::Text(StringBuilder::with_capacity(rows, rows * 16))
            }
            SqlType::Bytes => Self::Bytes(BinaryBuilder::with_capacity(rows, rows * 16)),
            SqlType::Date => Self::Date(Date32Builder::with_capacity(rows)),
            SqlType::Time => Self::Time(Time64MicrosecondBuilder::with_capacity(rows)),
            SqlType::Timestamp => Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows)),
            SqlType::TimestampTz => {
                Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows).with_timezone(UTC))
            }
            SqlType::Interval => Self::Interval(IntervalMonthDayNanoBuilder::with_capacity(rows)),
            SqlType::Null => Self::Null(0),
        }
    }

    /// Appends one value.
    ///
    /// # Errors
    /// `XX000` when the value is not of the column's type: a stored row that does not match its table.
    pub fn push(&mut self, value: &Value) -> Result<(), WireError> {
        match (self, value) {
            (Self::Bool(b), Value::Bool(v)) => b.append_value(*v),
            (Self::Int16(b), Value::Int(v)) => {
                b.append_value(i16::try_from(*v).map_err(|_| mismatch(value, "SMALLINT"))?)
            }
            (Self::Int32(b), Value::Int(v)) => b.append_value(i32::try_from(*v).map_err(|_| mismatch(value, "INT"))?),
            (Self::Int64(b), Value::Int(v)) => b.append_value(*v),
            #[allow(clippy::cast_possible_truncation)] // rounded to 32 bits when it was stored
            (Self::Float32(b), Value::Float(v)) => b.append_value(*v as f32),
            (Self::Float64(b), Value::Float(v)) => b.append_value(*v),
            (Self::Decimal(b, _, scale), Value::Decimal(d)) => {
                b.append_value(rescale(d, *scale).ok_or_else(|| mismatch(value, "DECIMAL"))?)
            }
            (Self::Text(b), Value::Text(v) | Value::Json(v)) => b.append_value(v),
            (Self::Text(b), Value::Uuid(u)) => b.append_value(uuid_text(u)),
            (Self::Bytes(b), Value::Bytes(v)) => b.append_value(v),
            (Self::Date(b), Value::Date(v)) => b.append_value(*v),
            (Self::Time(b), Value::Time(v)) => b.append_value(*v),
            (Self::Timestamp(b), Value::Timestamp(v) | Value::TimestampTz(v)) => b.append_value(*v),
            (Self::Interval(b), Value::Interval(v)) => b.append_value(interval_to_arrow(v)?),
            (Self::Null(n), Value::Null) => *n += 1,
            (builder, Value::Null) => builder.push_null(),
            (_, value) => return Err(mismatch(value, "its column")),
        }
        Ok(())
    }

    /// Appends a value that still lies in its row.
    ///
    /// # Errors
    /// As [`ColumnBuilder::push`].
    pub fn push_ref(&mut self, value: ValueRef<'_>) -> Result<(), WireError> {
        match (&mut *self, value) {
            (Self::Text(b), ValueRef::Text(v) | ValueRef::Json(v)) => b.append_value(v),
            (Self::Text(b), ValueRef::Uuid(u)) => b.append_value(uuid_text(&u)),
            (Self::Bytes(b), ValueRef::Bytes(v)) => b.append_value(v),
            (Self::Int64(b), ValueRef::Int(v)) => b.append_value(v),
            (_, ValueRef::Null) => self.push_null(),
            (builder, value) => return builder.push(&value.to_value()),
        }
        Ok(())
    }

    fn push_null(&mut self) {
        match self {
            Self::Bool(b) => b.append_null(),
            Self::Int16(b) => b.append_null(),
            Self::Int32(b) => b.append_null(),
            Self::Int64(b) => b.append_null(),
            Self::Float32(b) => b.append_null(),
            Self::Float64(b) => b.append_null(),
            Self::Decimal(b, ..) => b.append_null(),
            Self::Text(b) => b.append_null(),
            Self::Bytes(b) => b.append_null(),
            Self::Date(b) => b.append_null(),
            Self::Time(b) => b.append_null(),
            Self::Timestamp(b) => b.append_null(),
            Self::Interval(b) => b.append_null(),
            Self::Null(n) => *n += 1,
        }
    }

    /// The array of everything appended; the builder is empty again.
    pub fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(b) => Arc::new(b.finish()),
            Self::Int16(b) => Arc::new(b.finish()),
            Self::Int32(b) => Arc::new(b.finish()),
            Self::Int64(b) => Arc::new(b.finish()),
            Self::Float32(b) => Arc::new(b.finish()),
            Self::Float64(b) => Arc::new(b.finish()),
            Self::Decimal(b, ..) => Arc::new(b.finish()),
            Self::Text(b) => Arc::new(b.finish()),
            Self::Bytes(b) => Arc::new(b.finish()),
            Self::Date(b) => Arc::new(b.finish()),
            Self::Time(b) => Arc::new(b.finish()),
            Self::Timestamp(b) => Arc::new(b.finish()),
            Self::Interval(b) => Arc::new(b.finish()),
            Self::Null(n) => Arc::new(NullArray::new(std::mem::take(n))),
        }
    }
}

fn mismatch(value: &Value, wanted: &str) -> WireError {
    WireError::sql("XX000", format!("a stored value does not match {wanted}: {value:?}"))
}

/// The digits of a decimal at another scale, if none is lost.
fn rescale(d: &Decimal, scale: u8) -> Option<i128> {
    if d.scale <= scale {
        10i128.checked_pow(u32::from(scale - d.scale)).and_then(|f| d.unscaled.checked_mul(f))
    } else {
        let factor = 10i128.checked_pow(u32::from(d.scale - scale))?;
        (d.unscaled % factor == 0).then(|| d.unscaled / factor)
    }
}

/// All rows of a batch as values.
///
/// # Errors
/// `22003` for an unsigned number beyond BIGINT.
pub fn rows(batch: &RecordBatch, types: &[SqlType]) -> Result<Vec<Vec<Value>>, WireError> {
    let mut rows: Vec<Vec<Value>> = (0..batch.num_rows()).map(|_| Vec::with_capacity(batch.num_columns())).collect();
    for (i, column) in batch.columns().iter().enumerate() {
        column_values(column, types.get(i).copied().unwrap_or(SqlType::Text), &mut rows)?;
    }
    Ok(rows)
}

macro_rules! push_all {
    ($array:expr, $rows:expr, |$v:ident| $value:expr) => {{
        let array = $array;
        for (i, row) in $rows.iter_mut().enumerate() {
            row.push(if array.is_null(i) {
                Value::Null
            } else {
                let $v = array.value(i);
                $value
            });
        }
    }};
}

/// Appends a column's values to rows.
///
/// # Errors
/// `22003` for an unsigned number beyond BIGINT.
pub fn column_values(array: &ArrayRef, ty: SqlType, rows: &mut [Vec<Value>]) -> Result<(), WireError> {
    match array.data_type() {
        DataType::Null => rows.iter_mut().for_each(|r| r.push(Value::Null)),
        DataType::Boolean => push_all!(array.as_boolean(), rows, |v| Value::Bool(v)),
        DataType::Int8 => push_all!(array.as_primitive::<Int8Type>(), rows, |v| Value::Int(v.into())),
        DataType::Int16 => push_all!(array.as_primitive::<Int16Type>(), rows, |v| Value::Int(v.into())),
        DataType::Int32 => push_all!(array.as_primitive::<Int32Type>(), rows, |v| Value::Int(v.into())),
        DataType::Int64 => push_all!(array.as_primitive::<Int64Type>(), rows, |v| Value::Int(v)),
        DataType::UInt8 => push_all!(array.as_primitive::<UInt8Type>(), rows, |v| Value::Int(v.into())),
        DataType::UInt16 => push_all!(array.as_primitive::<UInt16Type>(), rows, |v| Value::Int(v.into())),
        DataType::UInt32 => push_all!(array.as_primitive::<UInt32Type>(), rows, |v| Value::Int(v.into())),
        DataType::UInt64 => push_all!(array.as_primitive::<UInt64Type>(), rows, |v| {
            Value::Int(i64::try_from(v).map_err(|_| WireError::sql("22003", "a number is out of range for BIGINT"))?)
        }),
        DataType::Float16 => push_all!(array.as_primitive::<Float16Type>(), rows, |v| Value::Float(v.to_f64())),
        DataType::Float32 => push_all!(array.as_primitive::<Float32Type>(), rows, |v| Value::Float(v.into())),
        DataType::Float64 => push_all!(array.as_primitive::<Float64Type>(), rows, |v| Value::Float(v)),
        DataType::Decimal128(_, scale) => {
            let (scale, negative) = (u8::try_from(*scale).unwrap_or(0), u32::from(scale.unsigned_abs()));
            let factor = if scale == 0 && negative > 0 && array.data_type() != &DataType::Decimal128(38, 0) {
                10i128.checked_pow(negative).unwrap_or(1)
            } else {
                1
            };
            push_all!(array.as_primitive::<Decimal128Type>(), rows, |v| Value::Decimal(Decimal {
                unscaled: v.saturating_mul(factor),
                scale
            }));
        }
        DataType::Utf8 => push_all!(array.as_string::<i32>(), rows, |v| text_value(v, ty)),
        DataType::LargeUtf8 => push_all!(array.as_string::<i64>(), rows, |v| text_value(v, ty)),
        DataType::Utf8View => push_all!(array.as_string_view(), rows, |v| text_value(v, ty)),
        DataType::Binary => push_all!(array.as_binary::<i32>(), rows, |v| Value::Bytes(v.to_vec())),
        DataType::LargeBinary => push_all!(array.as_binary::<i64>(), rows, |v| Value::Bytes(v.to_vec())),
        DataType::BinaryView => push_all!(array.as_binary_view(), rows, |v| Value::Bytes(v.to_vec())),
        DataType::FixedSizeBinary(_) => push_all!(array.as_fixed_size_binary(), rows, |v| Value::Bytes(v.to_vec())),
        DataType::Date32 => push_all!(array.as_primitive::<Date32Type>(), rows, |v| Value::Date(v)),
        DataType::Time32(TimeUnit::Second) => {
            push_all!(array.as_primitive::<Time32SecondType>(), rows, |v| Value::Time(i64::from(v) * 1_000_000))
        }
        DataType::Time32(_) => {
            push_all!(array.as_primitive::<Time32MillisecondType>(), rows, |v| Value::Time(i64::from(v) * 1_000))
        }
        DataType::Time64(TimeUnit::Nanosecond) => {
            push_all!(array.as_primitive::<Time64NanosecondType>(), rows, |v| Value::Time(v.div_euclid(1_000)))
        }
        DataType::Time64(_) => push_all!(array.as_primitive::<Time64MicrosecondType>(), rows, |v| Value::Time(v)),
        DataType::Timestamp(unit, zone) => timestamps(array, *unit, zone.is_some(), rows),
        DataType::Interval(unit) => intervals(array, *unit, rows),
        _ => formatted(array, rows)?,
    }
    Ok(())
}

fn text_value(text: &str, ty: SqlType) -> Value {
    match ty {
        SqlType::Json => Value::Json(text.to_owned()),
        SqlType::Uuid => parse_uuid(text).map_or_else(|| Value::Text(text.to_owned()), Value::Uuid),
        _ => Value::Text(text.to_owned()),
    }
}

fn timestamps(array: &ArrayRef, unit: TimeUnit, zoned: bool, rows: &mut [Vec<Value>]) {
    let make = |micros: i64| if zoned { Value::TimestampTz(micros) } else { Value::Timestamp(micros) };
    match unit {
        TimeUnit::Second => {
            push_all!(array.as_primitive::<TimestampSecondType>(), rows, |v| make(v.saturating_mul(1_000_000)))
        }
        TimeUnit::Millisecond => {
            push_all!(array.as_primitive::<TimestampMillisecondType>(), rows, |v| make(v.saturating_mul(1_000)))
        }
        TimeUnit::Microsecond => push_all!(array.as_primitive::<TimestampMicrosecondType>(), rows, |v| make(v)),
        TimeUnit::Nanosecond => {
            push_all!(array.as_primitive::<TimestampNanosecondType>(), rows, |v| make(v.div_euclid(1_000)))
        }
    }
}

fn intervals(array: &ArrayRef, unit: IntervalUnit, rows: &mut [Vec<Value>]) {
    match unit {
        IntervalUnit::YearMonth => {
            push_all!(array.as_primitive::<IntervalYearMonthType>(), rows, |v| Value::Interval(Interval {
                months: v,
                days: 0,
                micros: 0
            }));
        }
        IntervalUnit::DayTime => push_all!(array.as_primitive::<IntervalDayTimeType>(), rows, |v| {
            Value::Interval(Interval { months: 0, days: v.days, micros: i64::from(v.milliseconds) * 1_000 })
        }),
        IntervalUnit::MonthDayNano => push_all!(array.as_primitive::<IntervalMonthDayNanoType>(), rows, |v| {
            Value::Interval(Interval { months: v.months, days: v.days, micros: v.nanoseconds / 1_000 })
        }),
    }
}

/// Durations become intervals; lists and structs their text.
fn formatted(array: &ArrayRef, rows: &mut [Vec<Value>]) -> Result<(), WireError> {
    if let DataType::Duration(_) = array.data_type() {
        let cast = datafusion::arrow::compute::cast(array, &DataType::Interval(IntervalUnit::MonthDayNano))
            .map_err(|e| WireError::sql("22008", format!("an interval is out of range: {e}")))?;
        intervals(&cast, IntervalUnit::MonthDayNano, rows);
        return Ok(());
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array, &options)
        .map_err(|e| WireError::sql("0A000", format!("a result cannot be shown: {e}")))?;
    for (i, row) in rows.iter_mut().enumerate() {
        row.push(if array.is_null(i) { Value::Null } else { Value::Text(formatter.value(i).to_string()) });
    }
    Ok(())
}

/// The type a declared type means here.
///
/// # Errors
/// `0A000` for a type there is none for, `22023` for a precision out of bounds.
pub fn declared_type(ty: &ast::DataType) -> Result<SqlType, WireError> {
    use ast::DataType as D;
    Ok(match ty {
        D::Boolean | D::Bool => SqlType::Bool,
        D::TinyInt(Some(1)) => SqlType::SmallInt,
        D::TinyInt(_)
        | D::TinyIntUnsigned(_)
        | D::UTinyInt
        | D::SmallInt(_)
        | D::Int2(_)
        | D::Int16
        | D::Int8Unsigned(_)
        | D::UInt8 => match ty {
            D::Int8Unsigned(_) => SqlType::BigInt,
            _ => SqlType::SmallInt,
        },
        D::SmallIntUnsigned(_)
        | D::Int2Unsigned(_)
        | D::USmallInt
        | D::MediumInt(_)
        | D::MediumIntUnsigned(_)
        | D::Int(_)
        | D::Int4(_)
        | D::Int32
        | D::Integer(_)
        | D::UInt16 => SqlType::Int,
        D::IntUnsigned(_)
        | D::Int4Unsigned(_)
        | D::IntegerUnsigned(_)
        | D::UInt32
        | D::BigInt(_)
        | D::Int8(_)
        | D::Int64
        | D::BigIntUnsigned(_)
        | D::UBigInt
        | D::UInt64
        | D::Signed
        | D::Unsigned
        | D::SignedInteger
        | D::UnsignedInteger => SqlType::BigInt,
        D::Real | D::Float4 | D::Float32 => SqlType::Real,
        D::Float(info) => match info {
            ast::ExactNumberInfo::Precision(p) if *p <= 24 => SqlType::Real,
            _ => SqlType::Double,
        },
        D::FloatUnsigned(_)
        | D::Double(_)
        | D::DoubleUnsigned(_)
        | D::DoublePrecision
        | D::DoublePrecisionUnsigned
        | D::Float8
        | D::Float64
        | D::RealUnsigned => SqlType::Double,
        D::Decimal(info)
        | D::Numeric(info)
        | D::Dec(info)
        | D::DecimalUnsigned(info)
        | D::DecUnsigned(info)
        | D::BigDecimal(info)
        | D::BigNumeric(info) => decimal(info)?,
        D::Text
        | D::String(_)
        | D::TinyText
        | D::MediumText
        | D::LongText
        | D::Clob(_)
        | D::CharacterLargeObject(_)
        | D::CharLargeObject(_) => SqlType::Text,
        D::Varchar(n) | D::CharacterVarying(n) | D::CharVarying(n) | D::Nvarchar(n) => {
            length(n)?.map_or(SqlType::Text, SqlType::Varchar)
        }
        D::Char(n) | D::Character(n) => SqlType::Char(length(n)?.unwrap_or(1)),
        D::Bytea
        | D::Blob(_)
        | D::TinyBlob
        | D::MediumBlob
        | D::LongBlob
        | D::Binary(_)
        | D::Varbinary(_)
        | D::Bytes(_) => SqlType::Bytes,
        D::Date | D::Date32 => SqlType::Date,
        D::Time(_, ast::TimezoneInfo::None | ast::TimezoneInfo::WithoutTimeZone) => SqlType::Time,
        D::Datetime(_)
        | D::Timestamp(_, ast::TimezoneInfo::None | ast::TimezoneInfo::WithoutTimeZone)
        | D::TimestampNtz(_) => SqlType::Timestamp,
        D::Timestamp(..) => SqlType::TimestampTz,
        D::Interval { .. } => SqlType::Interval,
        D::Uuid => SqlType::Uuid,
        D::JSON | D::JSONB => SqlType::Json,
        D::Enum(..) => SqlType::Text,
        D::Custom(name, modifiers) => custom(name, modifiers)?,
        other => {
            return Err(WireError::sql(
                "0A000",
                format!("the type {} is not supported", other.to_string().to_uppercase()),
            )
            .hint(TYPES_HINT));
        }
    })
}

const TYPES_HINT: &str = "types are BOOLEAN, SMALLINT, INT, BIGINT, REAL, DOUBLE PRECISION, DECIMAL, TEXT, VARCHAR, CHAR, BYTEA, DATE, TIME, TIMESTAMP, INTERVAL, UUID and JSON";

fn custom(name: &ast::ObjectName, modifiers: &[String]) -> Result<SqlType, WireError> {
    let text = name.0.last().map(ToString::to_string).unwrap_or_default().trim_matches('"').to_lowercase();
    let number = modifiers.first().and_then(|m| m.parse::<u32>().ok());
    Ok(match text.as_str() {
        "serial" | "serial4" => SqlType::Int,
        "bigserial" | "serial8" => SqlType::BigInt,
        "smallserial" | "serial2" => SqlType::SmallInt,
        "nchar" | "bpchar" => SqlType::Char(number.unwrap_or(1)),
        "nvarchar2" | "varchar2" => number.map_or(SqlType::Text, SqlType::Varchar),
        "name" | "citext" | "ntext" => SqlType::Text,
        "timestamptz" => SqlType::TimestampTz,
        "number" | "money" => SqlType::Decimal { precision: 38, scale: 10 },
        "year" => SqlType::Int,
        other => {
            let known = [
                "boolean",
                "smallint",
                "integer",
                "bigint",
                "real",
                "double",
                "decimal",
                "numeric",
                "text",
                "varchar",
                "bytea",
                "date",
                "time",
                "timestamp",
                "interval",
                "uuid",
                "json",
                "serial",
            ];
            let nearest = known.iter().map(|k| (strsim::damerau_levenshtein(k, other), *k)).min();
            let error = WireError::sql("42704", format!("type \"{other}\" does not exist"));
            return Err(match nearest {
                Some((d, k)) if d <= 2 => error.hint(format!("did you mean {}?", k.to_uppercase())),
                _ => error.hint(TYPES_HINT),
            });
        }
    })
}

fn decimal(info: &ast::ExactNumberInfo) -> Result<SqlType, WireError> {
    let (precision, scale) = match info {
        ast::ExactNumberInfo::None => (38, 10),
        ast::ExactNumberInfo::Precision(p) => (*p, 0),
        ast::ExactNumberInfo::PrecisionAndScale(p, s) => (*p, *s),
    };
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale <= precision => Ok(SqlType::Decimal { precision, scale }),
        _ => Err(WireError::sql("22023", format!("DECIMAL({precision},{scale}) is not possible"))
            .hint("a DECIMAL has 1 to 38 digits, of which at most all are behind the point")),
    }
}

fn length(length: &Option<ast::CharacterLength>) -> Result<Option<u32>, WireError> {
    match length {
        None | Some(ast::CharacterLength::Max) => Ok(None),
        Some(ast::CharacterLength::IntegerLength { length, .. }) => match u32::try_from(*length) {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(WireError::sql("22023", format!("a length of {length} characters is not possible"))),
        },
    }
}
