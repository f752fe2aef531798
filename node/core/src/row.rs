//! The bytes of a row: one column can be read without the others.
//!
//! ```text
//! format u8 | schema version varint | physical columns u16 | null bitmap | fixed-width columns | end offsets | the rest
//! ```
//!
//! Bit `i` of the bitmap says that column `i` is NULL. Every fixed-width column takes its place, NULL or not, so its
//! offset follows from the types alone; every other column has the offset of its end, relative to the first of them, in
//! two bytes (four in a wide row, said by the format byte). All numbers are little-endian.
//!
//! A row written before a column was added has fewer columns: the missing ones read as [`added`](crate::table::ColumnDef::added)
//! value. One with more columns than the definition at hand was written under a newer one: that is an error of
//! its own, never a guess.

use bytes::Bytes;
use quorate_shared::ids::SchemaVersion;
use quorate_shared::limits::ROW_BYTES_MAX;
use quorate_shared::value::{Decimal, Interval, SqlType, Value};

use crate::error::{Fatal, Rejected};
use crate::keys::columns::rescale;
use crate::table::{ColumnPos, TableDef};

const NARROW: u8 = 1;
const WIDE: u8 = 2;

/// Why row bytes cannot be decoded.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowError {
    /// They are no row of this table.
    #[error("a stored row is malformed")]
    Malformed,
    /// They were written under a newer definition than the one at hand.
    #[error("a row was written under schema {0}, which is newer than the one at hand")]
    Newer(SchemaVersion),
}

impl From<RowError> for Fatal {
    fn from(e: RowError) -> Self {
        Fatal::new("decode a row", e)
    }
}

/// A value inside row bytes, not copied.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ValueRef<'a> {
    /// NULL.
    Null,
    /// BOOLEAN.
    Bool(bool),
    /// Integers.
    Int(i64),
    /// Floats.
    Float(f64),
    /// DECIMAL.
    Decimal(Decimal),
    /// TEXT, VARCHAR, CHAR.
    Text(&'a str),
    /// BYTEA.
    Bytes(&'a [u8]),
    /// DATE.
    Date(i32),
    /// TIME.
    Time(i64),
    /// TIMESTAMP.
    Timestamp(i64),
    /// TIMESTAMP WITH TIME ZONE.
    TimestampTz(i64),
    /// INTERVAL.
    Interval(Interval),
    /// UUID.
    Uuid([u8; 16]),
    /// JSON.
    Json(&'a str),
}

impl ValueRef<'_> {
    /// A value of its own.
    pub fn to_value(self) -> Value {
        match self {
            ValueRef::Null => Value::Null,
            ValueRef::Bool(b) => Value::Bool(b),
            ValueRef::Int(n) => Value::Int(n),
            ValueRef::Float(x) => Value::Float(x),
            ValueRef::Decimal(d) => Value::Decimal(d),
            ValueRef::Text(s) => Value::Text(s.to_owned()),
            ValueRef::Bytes(b) => Value::Bytes(b.to_vec()),
            ValueRef::Date(d) => Value::Date(d),
            ValueRef::Time(t) => Value::Time(t),
            ValueRef::Timestamp(t) => Value::Timestamp(t),
            ValueRef::TimestampTz(t) => Value::TimestampTz(t),
            ValueRef::Interval(i) => Value::Interval(i),
            ValueRef::Uuid(u) => Value::Uuid(u),
            ValueRef::Json(s) => Value::Json(s.to_owned()),
        }
    }
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => ValueRef::Null,
            Value::Bool(b) => ValueRef::Bool(*b),
            Value::Int(n) => ValueRef::Int(*n),
            Value::Float(x) => ValueRef::Float(*x),
            Value::Decimal(d) => ValueRef::Decimal(*d),
            Value::Text(s) => ValueRef::Text(s),
            Value::Bytes(b) => ValueRef::Bytes(b),
            Value::Date(d) => ValueRef::Date(*d),
            Value::Time(t) => ValueRef::Time(*t),
            Value::Timestamp(t) => ValueRef::Timestamp(*t),
            Value::TimestampTz(t) => ValueRef::TimestampTz(*t),
            Value::Interval(i) => ValueRef::Interval(*i),
            Value::Uuid(u) => ValueRef::Uuid(*u),
            Value::Json(s) => ValueRef::Json(s),
        }
    }
}

/// The name of a value's kind, for messages.
pub fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL",
        Value::Bool(_) => "BOOLEAN",
        Value::Int(_) => "integer",
        Value::Float(_) => "float",
        Value::Decimal(_) => "DECIMAL",
        Value::Text(_) => "TEXT",
        Value::Bytes(_) => "BYTEA",
        Value::Date(_) => "DATE",
        Value::Time(_) => "TIME",
        Value::Timestamp(_) => "TIMESTAMP",
        Value::TimestampTz(_) => "TIMESTAMP WITH TIME ZONE",
        Value::Interval(_) => "INTERVAL",
        Value::Uuid(_) => "UUID",
        Value::Json(_) => "JSON",
    }
}

/// Bytes of a fixed-width column; `None` if its width varies.
fn width(ty: SqlType) -> Option<usize> {
    Some(match ty {
        SqlType::Null => 0,
        SqlType::Bool => 1,
        SqlType::SmallInt => 2,
        SqlType::Int | SqlType::Real | SqlType::Date => 4,
        SqlType::BigInt | SqlType::Double | SqlType::Time | SqlType::Timestamp | SqlType::TimestampTz => 8,
        SqlType::Decimal { precision, .. } => {
            if precision <= 18 {
                8
            } else {
                16
            }
        }
        SqlType::Interval | SqlType::Uuid => 16,
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Bytes | SqlType::Json => {
            return None;
        }
    })
}

/// Encodes a row: one value for every physical column, coerced to its type already.
pub fn encode(def: &TableDef, row: &[Value]) -> Result<Bytes, Rejected> {
    if row.len() != def.columns.len() {
        return Err(invalid("XX000", format!("a row of \"{}\" has {} columns", def.name, def.columns.len())));
    }
    let mut variable = 0usize;
    let mut fixed = 0usize;
    let mut varying = 0usize;
    for (column, value) in def.columns.iter().zip(row) {
        match width(column.ty) {
            Some(w) => fixed += w,
            None => {
                varying += 1;
                variable += match value {
                    Value::Text(s) | Value::Json(s) => s.len(),
                    Value::Bytes(b) => b.len(),
                    _ => 0,
                };
            }
        }
    }
    let wide = variable > usize::from(u16::MAX);
    let bitmap = row.len().div_ceil(8);
    let bytes = 8 + bitmap + fixed + varying * if wide { 4 } else { 2 } + variable;
    if bytes > ROW_BYTES_MAX {
        return Err(Rejected::TooLarge { bytes: bytes as u64, limit: ROW_BYTES_MAX as u64 });
    }
    let mut out = Vec::with_capacity(bytes);
    out.push(if wide { WIDE } else { NARROW });
    varint(&mut out, def.version.get());
    out.extend_from_slice(&(row.len() as u16).to_le_bytes());
    let nulls = out.len();
    out.resize(nulls + bitmap, 0);
    for (i, value) in row.iter().enumerate() {
        if value.is_null() {
            out[nulls + i / 8] |= 1 << (i % 8);
        }
    }
    for (column, value) in def.columns.iter().zip(row) {
        if let Some(w) = width(column.ty) {
            put_fixed(&mut out, column.ty, w, value)
                .map_err(|e| e.unwrap_or_else(|| mismatch(&column.name, column.ty, value)))?;
        }
    }
    let mut end = 0usize;
    let mut tail: Vec<&[u8]> = Vec::with_capacity(varying);
    for (column, value) in def.columns.iter().zip(row) {
        if width(column.ty).is_none() {
            let bytes = varying_bytes(column.ty, value).ok_or_else(|| mismatch(&column.name, column.ty, value))?;
            end += bytes.len();
            if wide {
                out.extend_from_slice(&(end as u32).to_le_bytes());
            } else {
                out.extend_from_slice(&(end as u16).to_le_bytes());
            }
            tail.push(bytes);
        }
    }
    tail.into_iter().for_each(|b| out.extend_from_slice(b));
    Ok(Bytes::from(out))
}

/// All physical columns of a row.
pub fn decode(def: &TableDef, bytes: &[u8]) -> Result<Vec<Value>, RowError> {
    let row = RowRef::new(bytes)?;
    row.check(def)?;
    let mut at = Place { fixed: 0, varying: 0 };
    let mut out = Vec::with_capacity(def.columns.len());
    let data = row.data_start(def)?;
    for (i, column) in def.columns.iter().enumerate() {
        out.push(if i < row.columns { row.value(i, column.ty, at, data)?.to_value() } else { column.added.clone() });
        at.pass(column.ty);
    }
    Ok(out)
}

/// One column of a row. For more than a few rows use a [`Projection`].
pub fn decode_column(def: &TableDef, bytes: &[u8], column: ColumnPos) -> Result<Value, RowError> {
    let row = RowRef::new(bytes)?;
    row.check(def)?;
    let position = usize::from(column);
    let target = def.columns.get(position).ok_or(RowError::Malformed)?;
    if position >= row.columns {
        return Ok(target.added.clone());
    }
    let mut at = Place { fixed: 0, varying: 0 };
    def.columns[..position].iter().for_each(|c| at.pass(c.ty));
    Ok(row.value(position, target.ty, at, row.data_start(def)?)?.to_value())
}

/// The schema version a row was written under.
pub fn schema_version(bytes: &[u8]) -> Result<SchemaVersion, RowError> {
    Ok(RowRef::new(bytes)?.version)
}

/// The same columns of many rows: offsets are computed once.
#[derive(Clone, Debug)]
pub struct Projection {
    wanted: Vec<Wanted>,
    /// Per number of physical columns a row may have: bytes of its fixed-width section and how many others it has.
    sections: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Wanted {
    position: usize,
    ty: SqlType,
    at: Place,
    added: Value,
}

impl Projection {
    /// These columns, in this order.
    pub fn new(def: &TableDef, columns: &[ColumnPos]) -> Result<Self, RowError> {
        let mut at = Place { fixed: 0, varying: 0 };
        let mut sections = vec![at];
        for column in &def.columns {
            at.pass(column.ty);
            sections.push(at);
        }
        let wanted = columns
            .iter()
            .map(|&c| {
                let column = def.columns.get(usize::from(c)).ok_or(RowError::Malformed)?;
                let position = usize::from(c);
                Ok(Wanted { position, ty: column.ty, at: sections[position], added: column.added.clone() })
            })
            .collect::<Result<_, RowError>>()?;
        Ok(Self { wanted, sections })
    }

    /// Hands each wanted column of a row to `each`, in order, with its place in the projection.
    pub fn read<'a>(&'a self, bytes: &'a [u8], mut each: impl FnMut(usize, ValueRef<'a>)) -> Result<(), RowError> {
        let row = RowRef::new(bytes)?;
        let section = self.sections.get(row.columns).ok_or(RowError::Newer(row.version))?;
        let data = row.fixed + section.fixed + section.varying * row.offset_bytes;
        for (i, w) in self.wanted.iter().enumerate() {
            if w.position < row.columns {
                let data = Data { offsets: row.fixed + section.fixed, start: data };
                each(i, row.value(w.position, w.ty, w.at, data)?);
            } else {
                each(i, ValueRef::from(&w.added));
            }
        }
        Ok(())
    }

    /// The wanted columns of a row, in order.
    pub fn values(&self, bytes: &[u8]) -> Result<Vec<Value>, RowError> {
        let mut out = Vec::with_capacity(self.wanted.len());
        self.read(bytes, |_, value| out.push(value.to_value()))?;
        Ok(out)
    }
}

/// Where a column is: bytes of fixed-width columns and number of other columns before it.
#[derive(Clone, Copy, Debug)]
struct Place {
    fixed: usize,
    varying: usize,
}

impl Place {
    fn pass(&mut self, ty: SqlType) {
        match width(ty) {
            Some(w) => self.fixed += w,
            None => self.varying += 1,
        }
    }
}

/// Where the end offsets and the varying data begin.
#[derive(Clone, Copy)]
struct Data {
    offsets: usize,
    start: usize,
}

struct RowRef<'a> {
    bytes: &'a [u8],
    version: SchemaVersion,
    columns: usize,
    nulls: usize,
    fixed: usize,
    offset_bytes: usize,
}

impl<'a> RowRef<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, RowError> {
        let (&format, mut rest) = bytes.split_first().ok_or(RowError::Malformed)?;
        let offset_bytes = match format {
            NARROW => 2,
            WIDE => 4,
            _ => return Err(RowError::Malformed),
        };
        let version = SchemaVersion::new(take_varint(&mut rest)?);
        let (count, rest) = rest.split_first_chunk::<2>().ok_or(RowError::Malformed)?;
        let columns = usize::from(u16::from_le_bytes(*count));
        let nulls = bytes.len() - rest.len();
        let fixed = nulls + columns.div_ceil(8);
        if fixed > bytes.len() {
            return Err(RowError::Malformed);
        }
        Ok(Self { bytes, version, columns, nulls, fixed, offset_bytes })
    }

    fn check(&self, def: &TableDef) -> Result<(), RowError> {
        if self.columns > def.columns.len() { Err(RowError::Newer(self.version)) } else { Ok(()) }
    }

    fn data_start(&self, def: &TableDef) -> Result<Data, RowError> {
        let mut all = Place { fixed: 0, varying: 0 };
        def.columns.iter().take(self.columns).for_each(|c| all.pass(c.ty));
        let offsets = self.fixed + all.fixed;
        Ok(Data { offsets, start: offsets + all.varying * self.offset_bytes })
    }

    fn value(&self, position: usize, ty: SqlType, at: Place, data: Data) -> Result<ValueRef<'a>, RowError> {
        if self.bytes[self.nulls + position / 8] >> (position % 8) & 1 == 1 {
            return Ok(ValueRef::Null);
        }
        match width(ty) {
            Some(w) => {
                let start = self.fixed + at.fixed;
                let raw = self.bytes.get(start..start + w).ok_or(RowError::Malformed)?;
                fixed_value(ty, raw).ok_or(RowError::Malformed)
            }
            None => {
                let begin = if at.varying == 0 { 0 } else { self.end_of(at.varying - 1, data)? };
                let end = self.end_of(at.varying, data)?;
                let raw = self.bytes.get(data.start + begin..data.start + end).ok_or(RowError::Malformed)?;
                let text = || std::str::from_utf8(raw).map_err(|_| RowError::Malformed);
                Ok(match ty {
                    SqlType::Bytes => ValueRef::Bytes(raw),
                    SqlType::Json => ValueRef::Json(text()?),
                    _ => ValueRef::Text(text()?),
                })
            }
        }
    }

    fn end_of(&self, varying: usize, data: Data) -> Result<usize, RowError> {
        let at = data.offsets + varying * self.offset_bytes;
        let raw = self.bytes.get(at..at + self.offset_bytes).ok_or(RowError::Malformed)?;
        Ok(raw.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b)))
    }
}

/// `Err(None)`: the value is not of this type.
fn put_fixed(out: &mut Vec<u8>, ty: SqlType, width: usize, value: &Value) -> Result<(), Option<Rejected>> {
    let range = || Some(invalid("22003", format!("value out of range for type {ty}")));
    match (ty, value) {
        (_, Value::Null) => out.resize(out.len() + width, 0),
        (SqlType::Bool, Value::Bool(b)) => out.push(u8::from(*b)),
        (SqlType::SmallInt, Value::Int(n)) => {
            out.extend_from_slice(&i16::try_from(*n).map_err(|_| range())?.to_le_bytes());
        }
        (SqlType::Int, Value::Int(n)) => {
            out.extend_from_slice(&i32::try_from(*n).map_err(|_| range())?.to_le_bytes());
        }
        (SqlType::BigInt, Value::Int(n)) => out.extend_from_slice(&n.to_le_bytes()),
        (SqlType::Real, Value::Float(x)) => out.extend_from_slice(&(*x as f32).to_le_bytes()),
        (SqlType::Double, Value::Float(x)) => out.extend_from_slice(&x.to_le_bytes()),
        (SqlType::Decimal { precision, scale }, Value::Decimal(d)) => {
            let unscaled = rescale(*d, scale).map_err(Some)?;
            if unscaled.unsigned_abs() >= 10u128.checked_pow(u32::from(precision)).unwrap_or(u128::MAX) {
                return Err(range());
            }
            out.extend_from_slice(&unscaled.to_le_bytes()[..width]);
        }
        (SqlType::Date, Value::Date(d)) => out.extend_from_slice(&d.to_le_bytes()),
        (SqlType::Time, Value::Time(t))
        | (SqlType::Timestamp, Value::Timestamp(t))
        | (SqlType::TimestampTz, Value::TimestampTz(t)) => out.extend_from_slice(&t.to_le_bytes()),
        (SqlType::Interval, Value::Interval(i)) => {
            out.extend_from_slice(&i.months.to_le_bytes());
            out.extend_from_slice(&i.days.to_le_bytes());
            out.extend_from_slice(&i.micros.to_le_bytes());
        }
        (SqlType::Uuid, Value::Uuid(u)) => out.extend_from_slice(u),
        _ => return Err(None),
    }
    Ok(())
}

fn fixed_value(ty: SqlType, raw: &[u8]) -> Option<ValueRef<'static>> {
    let le32 = |at: usize| raw.get(at..at + 4)?.try_into().ok().map(i32::from_le_bytes);
    let le64 = |at: usize| raw.get(at..at + 8)?.try_into().ok().map(i64::from_le_bytes);
    Some(match ty {
        SqlType::Bool => ValueRef::Bool(raw[0] != 0),
        SqlType::SmallInt => ValueRef::Int(i64::from(i16::from_le_bytes(raw.try_into().ok()?))),
        SqlType::Int => ValueRef::Int(i64::from(le32(0)?)),
        SqlType::BigInt => ValueRef::Int(le64(0)?),
        SqlType::Real => ValueRef::Float(f64::from(f32::from_le_bytes(raw.try_into().ok()?))),
        SqlType::Double => ValueRef::Float(f64::from_le_bytes(raw.try_into().ok()?)),
        SqlType::Decimal { scale, .. } => {
            let unscaled =
                if raw.len() == 8 { i128::from(le64(0)?) } else { i128::from_le_bytes(raw.try_into().ok()?) };
            ValueRef::Decimal(Decimal { unscaled, scale })
        }
        SqlType::Date => ValueRef::Date(le32(0)?),
        SqlType::Time => ValueRef::Time(le64(0)?),
        SqlType::Timestamp => ValueRef::Timestamp(le64(0)?),
        SqlType::TimestampTz => ValueRef::TimestampTz(le64(0)?),
        SqlType::Interval => ValueRef::Interval(Interval { months: le32(0)?, days: le32(4)?, micros: le64(8)? }),
        SqlType::Uuid => ValueRef::Uuid(raw.try_into().ok()?),
        _ => ValueRef::Null,
    })
}

fn varying_bytes(ty: SqlType, value: &Value) -> Option<&[u8]> {
    match (ty, value) {
        (_, Value::Null) => Some(&[]),
        (SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_), Value::Text(s)) | (SqlType::Json, Value::Json(s)) => {
            Some(s.as_bytes())
        }
        (SqlType::Bytes, Value::Bytes(b)) => Some(b),
        _ => None,
    }
}

fn varint(out: &mut Vec<u8>, mut n: u32) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take_varint(input: &mut &[u8]) -> Result<u32, RowError> {
    let mut n = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let (&b, rest) = input.split_first().ok_or(RowError::Malformed)?;
        *input = rest;
        n |= u32::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Ok(n);
        }
    }
    Err(RowError::Malformed)
}

fn invalid(sqlstate: &str, message: String) -> Rejected {
    Rejected::Value { sqlstate: sqlstate.into(), message }
}

fn mismatch(column: &str, ty: SqlType, value: &Value) -> Rejected {
    invalid("42804", format!("column \"{column}\" is of type {ty}, not {}", kind_name(value)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::tests::{column, table};

    fn all_types() -> (TableDef, Vec<Value>) {
        let mut def = table();
        def.version = SchemaVersion::new(300);
        let cells = [
            (SqlType::Bool, Value::Bool(true)),
            (SqlType::SmallInt, Value::Int(-2)),
            (SqlType::Int, Value::Int(3)),
            (SqlType::BigInt, Value::Int(i64::MIN)),
            (SqlType::Real, Value::Float(0.5)),
            (SqlType::Double, Value::Float(-0.0)),
            (SqlType::Decimal { precision: 18, scale: 2 }, Value::Decimal(Decimal { unscaled: -150, scale: 2 })),
            (SqlType::Decimal { precision: 38, scale: 0 }, Value::Decimal(Decimal { unscaled: 1 << 100, scale: 0 })),
            (SqlType::Text, Value::Text("héllo".into())),
            (SqlType::Varchar(3), Value::Text(String::new())),
            (SqlType::Char(3), Value::Null),
            (SqlType::Bytes, Value::Bytes(vec![0, 255])),
            (SqlType::Date, Value::Date(-1)),
            (SqlType::Time, Value::Time(1)),
            (SqlType::Timestamp, Value::Timestamp(2)),
            (SqlType::TimestampTz, Value::TimestampTz(3)),
            (SqlType::Interval, Value::Interval(Interval { months: 1, days: -2, micros: 3 })),
            (SqlType::Uuid, Value::Uuid([9; 16])),
            (SqlType::Json, Value::Json("[1]".into())),
        ];
        def.columns = cells.iter().map(|(ty, _)| column("c", *ty)).collect();
        (def, cells.into_iter().map(|(_, v)| v).collect())
    }

    #[test]
    fn golden() {
        let def = table();
        let row = [Value::Int(258), Value::Text("ab".into()), Value::Null];
        let hex: String = encode(&def, &row).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        //              format, version, columns, nulls, id, n, end of name, name
        assert_eq!(hex, "01".to_owned() + "01" + "0300" + "04" + "0201000000000000" + "00000000" + "0200" + "6162");
    }

    #[test]
    fn every_type_comes_back() {
        let (def, row) = all_types();
        let bytes = encode(&def, &row).unwrap();
        assert_eq!(decode(&def, &bytes).unwrap(), row);
        assert_eq!(schema_version(&bytes).unwrap(), SchemaVersion::new(300));
        for (i, value) in row.iter().enumerate() {
            assert_eq!(&decode_column(&def, &bytes, i as u16).unwrap(), value);
        }
        let projection = Projection::new(&def, &[18, 0, 10, 8]).unwrap();
        let expected = [&row[18], &row[0], &row[10], &row[8]].map(Clone::clone);
        assert_eq!(projection.values(&bytes).unwrap(), expected);
    }

    #[test]
    fn columns_added_later_and_dropped_ones() {
        let mut def = table();
        let old = encode(&def, &[Value::Int(1), Value::Text("a".into()), Value::Int(2)]).unwrap();
        let narrow = def.clone();
        def.version = SchemaVersion::new(2);
        def.columns[1].dropped = true;
        def.columns.push(column("late", SqlType::Text));
        def.columns[3].added = Value::Text("was not there".into());
        let expected = [Value::Int(1), Value::Text("a".into()), Value::Int(2), Value::Text("was not there".into())];
        assert_eq!(decode(&def, &old).unwrap(), expected);
        assert_eq!(decode_column(&def, &old, 3).unwrap(), expected[3]);
        assert_eq!(Projection::new(&def, &[3, 2]).unwrap().values(&old).unwrap(), [expected[3].clone(), Value::Int(2)]);
        let new = encode(&def, &[Value::Int(1), Value::Null, Value::Int(2), Value::Null]).unwrap();
        assert_eq!(decode(&def, &new).unwrap()[3], Value::Null);
        // Not guessed with a definition that lacks the column.
        assert_eq!(decode(&narrow, &new), Err(RowError::Newer(SchemaVersion::new(2))));
        assert_eq!(Projection::new(&narrow, &[0]).unwrap().values(&new), Err(RowError::Newer(SchemaVersion::new(2))));
    }

    #[test]
    fn limits_and_types() {
        let def = table();
        let refused = |row: [Value; 3]| match encode(&def, &row) {
            Err(Rejected::Value { sqlstate, .. }) => sqlstate,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused([Value::Int(1), Value::Null, Value::Int(1 << 40)]), "22003");
        assert_eq!(refused([Value::Int(1), Value::Int(1), Value::Null]), "42804");
        let big = |n| encode(&def, &[Value::Int(1), Value::Text("x".repeat(n)), Value::Null]);
        assert!(matches!(big(ROW_BYTES_MAX), Err(Rejected::TooLarge { .. })));
        let wide = big(1 << 20).unwrap();
        assert_eq!(decode_column(&def, &wide, 1).unwrap(), Value::Text("x".repeat(1 << 20)));
    }

    proptest! {
        #[test]
        fn rows_come_back(id: Option<i64>, name: Option<String>, n: Option<i32>) {
            let def = table();
            let row = [
                id.map_or(Value::Null, Value::Int),
                name.map_or(Value::Null, Value::Text),
                n.map_or(Value::Null, |n| Value::Int(i64::from(n))),
            ];
            prop_assert_eq!(decode(&def, &encode(&def, &row).unwrap()).unwrap(), row);
        }

        #[test]
        fn damaged_rows_never_panic(at: prop::sample::Index, bit in 0..8u8, cut: prop::sample::Index) {
            let (def, row) = all_types();
            let mut bytes = encode(&def, &row).unwrap().to_vec();
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            let _ = decode(&def, &bytes);
            let _ = decode(&def, &bytes[..cut.index(bytes.len())]);
            let _ = Projection::new(&def, &[0, 8, 18]).unwrap().values(&bytes);
        }
    }
}
