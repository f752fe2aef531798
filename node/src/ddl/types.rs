//! Column types: what PostgreSQL and MySQL call them, as our [`SqlType`]s.
//!
//! MySQL's unsigned types take the next wider signed one, so that every value fits; its sizes for display are ignored.

use quorate_shared::error::WireError;
use quorate_shared::value::SqlType;
use sqlparser::ast::{BinaryLength, CharacterLength, DataType, ExactNumberInfo, TimezoneInfo};

/// Most digits a DECIMAL can have.
const PRECISION_MAX: u64 = 38;

/// The type a name means; `None` if it is SERIAL and its kind (see [`serial_type`]).
///
/// # Errors
/// `42704` for an unknown type, `0A000` for one that is not supported, `22023` for a bad precision.
pub fn sql_type(ty: &DataType) -> Result<SqlType, WireError> {
    use DataType as T;
    Ok(match ty {
        T::Bool | T::Boolean => SqlType::Bool,
        T::TinyInt(_) | T::TinyIntUnsigned(_) | T::UTinyInt | T::Int2(_) | T::SmallInt(_) | T::Int16 | T::UInt8 => {
            SqlType::SmallInt
        }
        T::Int2Unsigned(_)
        | T::SmallIntUnsigned(_)
        | T::USmallInt
        | T::UInt16
        | T::MediumInt(_)
        | T::MediumIntUnsigned(_)
        | T::Int(_)
        | T::Int4(_)
        | T::Int32
        | T::Integer(_)
        | T::Signed
        | T::SignedInteger => SqlType::Int,
        T::IntUnsigned(_)
        | T::Int4Unsigned(_)
        | T::IntegerUnsigned(_)
        | T::UInt32
        | T::Int8(_)
        | T::Int64
        | T::BigInt(_)
        | T::Unsigned
        | T::UnsignedInteger => SqlType::BigInt,
        T::BigIntUnsigned(_) | T::UBigInt | T::Int8Unsigned(_) | T::UInt64 => {
            SqlType::Decimal { precision: 20, scale: 0 }
        }
        T::Real | T::RealUnsigned | T::Float4 | T::Float32 => SqlType::Real,
        T::Float(info) | T::FloatUnsigned(info) => float(info)?,
        T::Float8
        | T::Float64
        | T::Double(_)
        | T::DoubleUnsigned(_)
        | T::DoublePrecision
        | T::DoublePrecisionUnsigned => SqlType::Double,
        T::Numeric(info)
        | T::Decimal(info)
        | T::DecimalUnsigned(info)
        | T::Dec(info)
        | T::DecUnsigned(info)
        | T::BigNumeric(info)
        | T::BigDecimal(info) => decimal(info)?,
        T::Text | T::TinyText | T::MediumText | T::LongText | T::String(_) => SqlType::Text,
        T::CharacterLargeObject(_) | T::CharLargeObject(_) | T::Clob(_) => SqlType::Text,
        T::Varchar(n) | T::Nvarchar(n) | T::CharacterVarying(n) | T::CharVarying(n) => match length(n.as_ref())? {
            Some(n) => SqlType::Varchar(n),
            None => SqlType::Text,
        },
        T::Char(n) | T::Character(n) => SqlType::Char(length(n.as_ref())?.unwrap_or(1)),
        T::Bytea | T::Blob(_) | T::TinyBlob | T::MediumBlob | T::LongBlob | T::Bytes(_) | T::Binary(_) => {
            SqlType::Bytes
        }
        T::Varbinary(None | Some(BinaryLength::Max | BinaryLength::IntegerLength { .. })) => SqlType::Bytes,
        T::Date | T::Date32 => SqlType::Date,
        T::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => SqlType::Time,
        T::Time(..) => {
            return Err(WireError::unsupported("TIME WITH TIME ZONE").hint("use TIME or TIMESTAMP WITH TIME ZONE"));
        }
        T::Datetime(_) | T::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) | T::TimestampNtz(_) => {
            SqlType::Timestamp
        }
        T::Timestamp(_, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => SqlType::TimestampTz,
        T::Interval { .. } => SqlType::Interval,
        T::Uuid => SqlType::Uuid,
        T::JSON | T::JSONB => SqlType::Json,
        T::Custom(name, args) => return custom(&name.to_string(), args),
        T::Array(_) => return Err(WireError::unsupported("the type ARRAY").hint("use JSON, or a table of elements")),
        T::Enum(..) => {
            return Err(WireError::unsupported("the type ENUM").hint("use VARCHAR with CHECK (column IN (...))"));
        }
        T::Set(_) => return Err(WireError::unsupported("the type SET").hint("use a table of elements")),
        other => return Err(WireError::unsupported(format!("the type {other}"))),
    })
}

/// The integer type behind SERIAL, BIGSERIAL and SMALLSERIAL.
pub fn serial_type(ty: &DataType) -> Option<SqlType> {
    let DataType::Custom(name, args) = ty else { return None };
    if !args.is_empty() {
        return None;
    }
    match name.to_string().to_lowercase().as_str() {
        "serial" | "serial4" => Some(SqlType::Int),
        "bigserial" | "serial8" => Some(SqlType::BigInt),
        "smallserial" | "serial2" => Some(SqlType::SmallInt),
        _ => None,
    }
}

fn custom(name: &str, args: &[String]) -> Result<SqlType, WireError> {
    let lower = name.to_lowercase();
    let number = args.first().and_then(|a| a.parse::<u32>().ok());
    Ok(match (lower.as_str(), number) {
        ("nchar" | "bpchar", n) => SqlType::Char(n.unwrap_or(1)),
        ("nvarchar" | "varchar2" | "nvarchar2", Some(n)) => SqlType::Varchar(n),
        ("nvarchar" | "citext" | "ntext" | "name", None) => SqlType::Text,
        ("timestamptz", _) => SqlType::TimestampTz,
        ("year", _) => SqlType::SmallInt,
        ("money", _) => SqlType::Decimal { precision: 19, scale: 2 },
        ("uuid", _) => SqlType::Uuid,
        ("serial" | "bigserial" | "smallserial", _) => {
            return Err(WireError::sql(
                "42601",
                format!("{lower} is a column type for CREATE TABLE and ADD COLUMN only"),
            ));
        }
        _ => return Err(WireError::sql("42704", format!("type \"{name}\" does not exist"))),
    })
}

fn float(info: &ExactNumberInfo) -> Result<SqlType, WireError> {
    // PostgreSQL: binary digits; MySQL: the same, or digits for display in two numbers.
    Ok(match info {
        ExactNumberInfo::None => SqlType::Double,
        ExactNumberInfo::Precision(1..=24) => SqlType::Real,
        ExactNumberInfo::Precision(25..=53) | ExactNumberInfo::PrecisionAndScale(..) => SqlType::Double,
        ExactNumberInfo::Precision(_) => {
            return Err(WireError::sql("22023", "precision for type float must be between 1 and 53"));
        }
    })
}

fn decimal(info: &ExactNumberInfo) -> Result<SqlType, WireError> {
    let (precision, scale) = match info {
        // PostgreSQL keeps any number of digits; ours are 38 in all, so a bare DECIMAL gets a fair share after the point.
        ExactNumberInfo::None => (PRECISION_MAX, 10),
        ExactNumberInfo::Precision(p) => (*p, 0),
        ExactNumberInfo::PrecisionAndScale(p, s) => (*p, *s),
    };
    let bad = || {
        WireError::sql("22023", format!("DECIMAL({precision},{scale}) is out of range"))
            .hint(format!("precision is 1 to {PRECISION_MAX}, scale 0 to the precision"))
    };
    if !(1..=PRECISION_MAX).contains(&precision) {
        return Err(bad());
    }
    let digits = u8::try_from(precision).map_err(|_| bad())?;
    match u8::try_from(scale) {
        Ok(scale) if scale <= digits => Ok(SqlType::Decimal { precision: digits, scale }),
        _ => Err(bad()),
    }
}

fn length(length: Option<&CharacterLength>) -> Result<Option<u32>, WireError> {
    match length {
        None | Some(CharacterLength::Max) => Ok(None),
        Some(CharacterLength::IntegerLength { length, .. }) => match u32::try_from(*length) {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(WireError::sql("22023", format!("length {length} of a character type is out of range"))),
        },
    }
}
