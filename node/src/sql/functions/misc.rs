//! Text, numbers, identity: what is left of the functions of MySQL and PostgreSQL.

use quorate_shared::error::WireError;
use quorate_shared::value::{SqlType, Value};

use super::SessionFacts;
use super::row::{RowFunction, float, int, text};
use crate::sql::convert;

/// What `version()` says.
pub const VERSION: &str = concat!("Quorate ", env!("CARGO_PKG_VERSION"));

/// Functions whose value depends on the session.
pub fn of_session(name: &str, facts: &SessionFacts) -> Option<RowFunction> {
    let fixed = |name, value: Value, ty| RowFunction::new(name, 0..=0, ty, |a| Ok(a[0].clone())).with(value);
    match name {
        "current_user" => Some(fixed("current_user", Value::Text(facts.user.clone()), SqlType::Text)),
        "user" => Some(fixed("user", Value::Text(facts.user.clone()), SqlType::Text)),
        "current_database" | "current_catalog" | "database" => {
            Some(fixed("current_database", Value::Text(facts.database.clone()), SqlType::Text))
        }
        "connection_id" | "pg_backend_pid" => {
            Some(fixed("connection_id", Value::Int(i64::try_from(facts.session).unwrap_or(i64::MAX)), SqlType::BigInt))
        }
        _ => None,
    }
}

/// All of them.
pub fn all() -> Vec<RowFunction> {
    use SqlType::{BigInt, Bool, Double, Int, Text};
    vec![
        RowFunction::new("version", 0..=0, Text, |_| Ok(Value::Text(VERSION.to_owned()))),
        RowFunction::new("current_schema", 0..=0, Text, |_| Ok(Value::Text("public".to_owned()))),
        RowFunction::new("gen_random_uuid", 0..=0, SqlType::Uuid, |_| random_uuid())
            .alias(&["uuid", "uuid_generate_v4"])
            .volatile(),
        RowFunction::new("to_uuid", 1..=1, SqlType::Uuid, |a| {
            let given = text(&a[0]);
            convert::parse_uuid(&given)
                .map(Value::Uuid)
                .ok_or_else(|| WireError::sql("22P02", format!("invalid input for UUID: \"{given}\"")))
        }),
        RowFunction::new("rand", 0..=1, Double, |_| random()).volatile(),
        RowFunction::new("mod", 2..=2, BigInt, |a| {
            let (n, d) = (int("mod", &a[0])?, int("mod", &a[1])?);
            n.checked_rem(d).map(Value::Int).ok_or_else(|| WireError::sql("22012", "division by zero"))
        }),
        RowFunction::new("sign", 1..=1, Int, |a| {
            let x = float("sign", &a[0])?;
            Ok(Value::Int(if x > 0.0 { 1 } else { -i64::from(x < 0.0) }))
        }),
        RowFunction::new("locate", 2..=3, BigInt, |a| {
            let start = a.get(2).map_or(Ok(1), |v| int("locate", v))?;
            let (needle, hay): (Vec<char>, Vec<char>) =
                (text(&a[0]).to_lowercase().chars().collect(), text(&a[1]).to_lowercase().chars().collect());
            let skip = usize::try_from(start - 1).unwrap_or(0);
            let found = (skip..hay.len() + 1).find(|i| hay.get(*i..).is_some_and(|h| h.starts_with(&needle)));
            Ok(Value::Int(found.map_or(0, |i| i64::try_from(i + 1).unwrap_or(0))))
        }),
        RowFunction::new("mid", 3..=3, Text, |a| {
            let (start, length) = (int("mid", &a[1])?, int("mid", &a[2])?);
            let skip = usize::try_from(start - 1).unwrap_or(0);
            let take = usize::try_from(length).unwrap_or(0);
            Ok(Value::Text(text(&a[0]).chars().skip(skip).take(take).collect()))
        }),
        RowFunction::new("space", 1..=1, Text, |a| {
            Ok(Value::Text(" ".repeat(usize::try_from(int("space", &a[0])?).unwrap_or(0).min(1 << 20))))
        }),
        RowFunction::new("hex", 1..=1, Text, |a| {
            let bytes = match &a[0] {
                Value::Int(i) => return Ok(Value::Text(format!("{i:X}"))),
                Value::Bytes(b) => b.clone(),
                other => text(other).into_bytes(),
            };
            Ok(Value::Text(bytes.iter().map(|b| format!("{b:02X}")).collect()))
        }),
        RowFunction::new("isnull", 1..=1, Bool, |a| Ok(Value::Bool(a[0].is_null()))).sees_null(),
        RowFunction::new("field", 2..=32, BigInt, |a| {
            let wanted = text(&a[0]);
            let found = a[1..].iter().position(|v| text(v) == wanted);
            Ok(Value::Int(found.map_or(0, |i| i64::try_from(i + 1).unwrap_or(0))))
        }),
        RowFunction::new("typeof", 1..=1, Text, |a| Ok(Value::Text(type_name(&a[0]).to_owned())))
            .alias(&["pg_typeof"])
            .sees_null(),
        RowFunction::new("quote_literal", 1..=1, Text, |a| {
            Ok(Value::Text(format!("'{}'", text(&a[0]).replace('\'', "''"))))
        }),
        RowFunction::new("quote_ident", 1..=1, Text, |a| {
            Ok(Value::Text(format!("\"{}\"", text(&a[0]).replace('"', "\"\""))))
        }),
    ]
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Int(_) => "integer",
        Value::Float(_) => "double precision",
        Value::Decimal(_) => "decimal",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytea",
        Value::Date(_) => "date",
        Value::Time(_) => "time",
        Value::Timestamp(_) => "timestamp",
        Value::TimestampTz(_) => "timestamp with time zone",
        Value::Interval(_) => "interval",
        Value::Uuid(_) => "uuid",
        Value::Json(_) => "json",
    }
}

fn random_bytes<const N: usize>() -> Result<[u8; N], WireError> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(|e| crate::sql::errors::internal("drawing random bytes", &e))?;
    Ok(bytes)
}

fn random_uuid() -> Result<Value, WireError> {
    let mut bytes = random_bytes::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(Value::Uuid(bytes))
}

fn random() -> Result<Value, WireError> {
    // 53 bits: every double in [0, 1) of that grid.
    let bits = u64::from_le_bytes(random_bytes::<8>()?) >> 11;
    #[allow(clippy::cast_precision_loss)] // exact: 53 bits
    Ok(Value::Float(bits as f64 / (1u64 << 53) as f64))
}
