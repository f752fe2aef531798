//! The order-preserving encoding of key columns: comparing encodings as bytes compares the values.
//!
//! Each column begins with a byte that tells NULL (0, so it sorts first) from a value, and ends by itself, so no encoded
//! list of columns is a prefix of another of the same types. Integers of every width, decimals and dates take as many
//! bytes as they need: keys are short, and an INT child's key equals its BIGINT parent's.
//!
//! Equal values have equal encodings: `-0.0` is `0.0`, all NaN are one (the largest), and `1 month` is `30 days`.
//! Decoding such a value gives the one form that stands for all of them.

use quorate_shared::value::{Decimal, Interval, SqlType, Value};

use crate::error::Rejected;
use crate::keys::KeyError;

const NULL: u8 = 0x00;
const PRESENT: u8 = 0x01;
/// First byte of integer 0; positive integers have one more for each byte they need, negative ones less.
const ZERO: u8 = 0x80;
const DAY_MICROS: i128 = 86_400_000_000;
const MONTH_DAYS: i128 = 30;

/// Appends one column.
pub fn encode(out: &mut Vec<u8>, ty: SqlType, value: &Value) -> Result<(), Rejected> {
    match (ty, value) {
        (_, Value::Null) => out.push(NULL),
        (SqlType::Bool, Value::Bool(b)) => out.push(PRESENT + u8::from(*b)),
        (SqlType::SmallInt | SqlType::Int | SqlType::BigInt, Value::Int(n)) => integer(out, i128::from(*n)),
        (SqlType::Real | SqlType::Double, Value::Float(x)) => float(out, *x),
        (SqlType::Real | SqlType::Double, Value::Int(n)) => float(out, *n as f64),
        (SqlType::Decimal { scale, .. }, Value::Decimal(d)) => integer(out, rescale(*d, scale)?),
        (SqlType::Decimal { scale, .. }, Value::Int(n)) => {
            integer(out, rescale(Decimal { unscaled: i128::from(*n), scale: 0 }, scale)?);
        }
        (SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_), Value::Text(s)) => bytes(out, s.as_bytes()),
        (SqlType::Json, Value::Json(s)) => bytes(out, s.as_bytes()),
        (SqlType::Bytes, Value::Bytes(b)) => bytes(out, b),
        (SqlType::Date, Value::Date(d)) => integer(out, i128::from(*d)),
        (SqlType::Time, Value::Time(t))
        | (SqlType::Timestamp, Value::Timestamp(t))
        | (SqlType::TimestampTz, Value::TimestampTz(t)) => integer(out, i128::from(*t)),
        (SqlType::Interval, Value::Interval(i)) => integer(out, interval_micros(*i)),
        (SqlType::Uuid, Value::Uuid(u)) => {
            out.push(PRESENT);
            out.extend_from_slice(u);
        }
        (ty, value) => return Err(mismatch(ty, value)),
    }
    Ok(())
}

/// Takes one column off the front of `input`.
pub fn decode(input: &mut &[u8], ty: SqlType) -> Result<Value, KeyError> {
    if input.first() == Some(&NULL) {
        *input = &input[1..];
        return Ok(Value::Null);
    }
    Ok(match ty {
        SqlType::Bool => match take(input, 1)?[0] {
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            _ => return Err(KeyError::Malformed),
        },
        SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Value::Int(narrow(take_integer(input)?)?),
        SqlType::Real | SqlType::Double => Value::Float(take_float(input)?),
        SqlType::Decimal { scale, .. } => Value::Decimal(Decimal { unscaled: take_integer(input)?, scale }),
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) => Value::Text(take_text(input)?),
        SqlType::Json => Value::Json(take_text(input)?),
        SqlType::Bytes => Value::Bytes(take_bytes(input)?),
        SqlType::Date => Value::Date(narrow(take_integer(input)?)?),
        SqlType::Time => Value::Time(narrow(take_integer(input)?)?),
        SqlType::Timestamp => Value::Timestamp(narrow(take_integer(input)?)?),
        SqlType::TimestampTz => Value::TimestampTz(narrow(take_integer(input)?)?),
        SqlType::Interval => Value::Interval(interval_of(take_integer(input)?)?),
        SqlType::Uuid => {
            let raw = take(input, 17)?;
            let mut uuid = [0; 16];
            uuid.copy_from_slice(&raw[1..]);
            Value::Uuid(uuid)
        }
        SqlType::Null => return Err(KeyError::Malformed),
    })
}

/// Takes one column off the front without decoding it.
pub fn skip(input: &mut &[u8], ty: SqlType) -> Result<(), KeyError> {
    if input.first() == Some(&NULL) {
        *input = &input[1..];
        return Ok(());
    }
    match ty {
        SqlType::Bool => take(input, 1).map(drop),
        SqlType::Real | SqlType::Double => take(input, 9).map(drop),
        SqlType::Uuid => take(input, 17).map(drop),
        SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) | SqlType::Json | SqlType::Bytes => {
            take_bytes(input).map(drop)
        }
        SqlType::Null => Err(KeyError::Malformed),
        _ => take_integer(input).map(drop),
    }
}

fn integer(out: &mut Vec<u8>, n: i128) {
    if n >= 0 {
        let len = bytes_of(n as u128);
        out.push(ZERO + len as u8);
        out.extend_from_slice(&n.to_be_bytes()[16 - len..]);
    } else {
        let len = bytes_of(!n as u128);
        out.push(ZERO - 1 - len as u8);
        out.extend_from_slice(&n.to_be_bytes()[16 - len..]);
    }
}

fn bytes_of(n: u128) -> usize {
    16 - (n.leading_zeros() / 8) as usize
}

fn take_integer(input: &mut &[u8]) -> Result<i128, KeyError> {
    let lead = take(input, 1)?[0];
    let (len, fill) = if lead >= ZERO { (lead - ZERO, 0x00) } else { (ZERO - 1 - lead, 0xff) };
    if len > 16 {
        return Err(KeyError::Malformed);
    }
    let mut raw = [fill; 16];
    raw[16 - usize::from(len)..].copy_from_slice(take(input, usize::from(len))?);
    Ok(i128::from_be_bytes(raw))
}

fn float(out: &mut Vec<u8>, x: f64) {
    let bits = if x.is_nan() {
        u64::MAX
    } else {
        // Adding 0.0 turns -0.0 into 0.0 and nothing else.
        let bits = (x + 0.0).to_bits();
        if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
    };
    out.push(PRESENT);
    out.extend_from_slice(&bits.to_be_bytes());
}

fn take_float(input: &mut &[u8]) -> Result<f64, KeyError> {
    let raw = take(input, 9)?;
    let mut bits = [0; 8];
    bits.copy_from_slice(&raw[1..]);
    let bits = u64::from_be_bytes(bits);
    if bits == u64::MAX {
        return Ok(f64::NAN);
    }
    Ok(f64::from_bits(if bits >> 63 == 1 { bits & !(1 << 63) } else { !bits }))
}

/// Zero bytes are escaped as `00 ff`; `00 00` ends the column.
fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    out.push(PRESENT);
    for &b in value {
        out.push(b);
        if b == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn take_bytes(input: &mut &[u8]) -> Result<Vec<u8>, KeyError> {
    take(input, 1)?;
    let mut value = Vec::new();
    loop {
        let zero = input.iter().position(|&b| b == 0).ok_or(KeyError::Malformed)?;
        value.extend_from_slice(take(input, zero)?);
        match take(input, 2)?[1] {
            0x00 => return Ok(value),
            0xff => value.push(0),
            _ => return Err(KeyError::Malformed),
        }
    }
}

fn take_text(input: &mut &[u8]) -> Result<String, KeyError> {
    String::from_utf8(take_bytes(input)?).map_err(|_| KeyError::Malformed)
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], KeyError> {
    let (head, tail) = input.split_at_checked(len).ok_or(KeyError::Malformed)?;
    *input = tail;
    Ok(head)
}

fn narrow<T: TryFrom<i128>>(n: i128) -> Result<T, KeyError> {
    T::try_from(n).map_err(|_| KeyError::Malformed)
}

/// The digits of a decimal at another scale; an error if any would be lost.
pub(crate) fn rescale(d: Decimal, scale: u8) -> Result<i128, Rejected> {
    let out_of_range = || Rejected::Value {
        sqlstate: "22003".into(),
        message: format!("a decimal does not fit scale {scale} exactly"),
    };
    if d.scale <= scale {
        let factor = 10i128.checked_pow(u32::from(scale - d.scale)).ok_or_else(out_of_range)?;
        d.unscaled.checked_mul(factor).ok_or_else(out_of_range)
    } else {
        let factor = 10i128.checked_pow(u32::from(d.scale - scale)).ok_or_else(out_of_range)?;
        if d.unscaled % factor == 0 { Ok(d.unscaled / factor) } else { Err(out_of_range()) }
    }
}

fn interval_micros(i: Interval) -> i128 {
    (i128::from(i.months) * MONTH_DAYS + i128::from(i.days)) * DAY_MICROS + i128::from(i.micros)
}

fn interval_of(total: i128) -> Result<Interval, KeyError> {
    let month = MONTH_DAYS * DAY_MICROS;
    // Beyond the months' range the rest stays in days and microseconds.
    let months = (total / month).clamp(i128::from(i32::MIN), i128::from(i32::MAX));
    let rest = total - months * month;
    let days = (rest / DAY_MICROS).clamp(i128::from(i32::MIN), i128::from(i32::MAX));
    Ok(Interval { months: narrow(months)?, days: narrow(days)?, micros: narrow(rest - days * DAY_MICROS)? })
}

fn mismatch(ty: SqlType, value: &Value) -> Rejected {
    Rejected::Value {
        sqlstate: "42804".into(),
        message: format!("a {} value is not of type {ty}", crate::row::kind_name(value)),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn enc(ty: SqlType, v: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, ty, v).unwrap();
        out
    }

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden() {
        let cases: &[(SqlType, Value, &str)] = &[
            (SqlType::Int, Value::Null, "00"),
            (SqlType::Bool, Value::Bool(false), "01"),
            (SqlType::Bool, Value::Bool(true), "02"),
            (SqlType::Int, Value::Int(0), "80"),
            (SqlType::SmallInt, Value::Int(1), "8101"),
            (SqlType::BigInt, Value::Int(256), "820100"),
            (SqlType::BigInt, Value::Int(-1), "7f"),
            (SqlType::BigInt, Value::Int(-2), "7efe"),
            (SqlType::BigInt, Value::Int(-257), "7dfeff"),
            (SqlType::BigInt, Value::Int(i64::MIN), "778000000000000000"),
            (SqlType::BigInt, Value::Int(i64::MAX), "887fffffffffffffff"),
            (SqlType::Double, Value::Float(1.5), "01bff8000000000000"),
            (SqlType::Double, Value::Float(-1.5), "014007ffffffffffff"),
            (SqlType::Double, Value::Float(-0.0), "018000000000000000"),
            (SqlType::Double, Value::Float(f64::NAN), "01ffffffffffffffff"),
            (SqlType::Decimal { precision: 9, scale: 2 }, Value::Decimal(Decimal { unscaled: 15, scale: 1 }), "8196"),
            (SqlType::Text, Value::Text("a\0b".into()), "016100ff620000"),
            (SqlType::Text, Value::Text(String::new()), "010000"),
            (SqlType::Bytes, Value::Bytes(vec![0xff]), "01ff0000"),
            (SqlType::Date, Value::Date(-1), "7f"),
            (SqlType::Time, Value::Time(1), "8101"),
            (SqlType::Timestamp, Value::Timestamp(1), "8101"),
            (SqlType::TimestampTz, Value::TimestampTz(1), "8101"),
            (SqlType::Interval, Value::Interval(Interval { months: 0, days: 0, micros: 7 }), "8107"),
            (SqlType::Uuid, Value::Uuid([7; 16]), "0107070707070707070707070707070707"),
            (SqlType::Json, Value::Json("{}".into()), "017b7d0000"),
        ];
        for (ty, v, bytes) in cases {
            assert_eq!(hex(&enc(*ty, v)), *bytes, "{ty} {v:?}");
        }
    }

    #[test]
    fn equal_values_have_equal_keys() {
        let month = Value::Interval(Interval { months: 1, days: 0, micros: 0 });
        let days = Value::Interval(Interval { months: 0, days: 30, micros: 0 });
        assert_eq!(enc(SqlType::Interval, &month), enc(SqlType::Interval, &days));
        assert_eq!(decode(&mut &enc(SqlType::Interval, &days)[..], SqlType::Interval).unwrap(), month);
        assert_eq!(enc(SqlType::Int, &Value::Int(7)), enc(SqlType::BigInt, &Value::Int(7)));
        assert_eq!(enc(SqlType::Double, &Value::Float(7.0)), enc(SqlType::Double, &Value::Int(7)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ty = SqlType::Decimal { precision: 9, scale: 1 };
        let d = Value::Decimal(Decimal { unscaled: 15, scale: 2 });
        assert!(
            matches!(encode(&mut Vec::new(), ty, &d), Err(Rejected::Value { sqlstate, .. }) if sqlstate == "22003")
        );
        let text = Value::Text("x".into());
        assert!(
            matches!(encode(&mut Vec::new(), ty, &text), Err(Rejected::Value { sqlstate, .. }) if sqlstate == "42804")
        );
    }

    /// How SQL orders two values of one type, NULL first.
    fn order(a: &Value, b: &Value) -> Ordering {
        match (a, b) {
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => Ordering::Less,
            (_, Value::Null) => Ordering::Greater,
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => match (a.is_nan(), b.is_nan()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => a.partial_cmp(b).unwrap(),
            },
            (Value::Decimal(a), Value::Decimal(b)) => a.unscaled.cmp(&b.unscaled),
            (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Date(a), Value::Date(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Value::Interval(a), Value::Interval(b)) => interval_micros(*a).cmp(&interval_micros(*b)),
            (Value::Uuid(a), Value::Uuid(b)) => a.cmp(b),
            _ => panic!("two types"),
        }
    }

    fn typed() -> impl Strategy<Value = (SqlType, BoxedStrategy<Value>)> {
        let ints = prop_oneof![any::<i64>(), -300..300i64].prop_map(Value::Int).boxed();
        let texts = prop_oneof!["[a-c\0]{0,4}", any::<String>()].prop_map(Value::Text).boxed();
        let list: Vec<(SqlType, BoxedStrategy<Value>)> = vec![
            (SqlType::Bool, any::<bool>().prop_map(Value::Bool).boxed()),
            (SqlType::BigInt, ints),
            (SqlType::Double, prop_oneof![any::<f64>(), Just(-0.0), Just(0.0)].prop_map(Value::Float).boxed()),
            (
                SqlType::Decimal { precision: 38, scale: 4 },
                prop_oneof![any::<i128>(), -300..300i128]
                    .prop_map(|unscaled| Value::Decimal(Decimal { unscaled, scale: 4 }))
                    .boxed(),
            ),
            (SqlType::Text, texts),
            (
                SqlType::Bytes,
                prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..5)
                    .prop_map(Value::Bytes)
                    .boxed(),
            ),
            (SqlType::Date, any::<i32>().prop_map(Value::Date).boxed()),
            (SqlType::Timestamp, any::<i64>().prop_map(Value::Timestamp).boxed()),
            (
                SqlType::Interval,
                (any::<i32>(), any::<i32>(), any::<i64>())
                    .prop_map(|(months, days, micros)| Value::Interval(Interval { months, days, micros }))
                    .boxed(),
            ),
            (SqlType::Uuid, any::<[u8; 16]>().prop_map(Value::Uuid).boxed()),
        ];
        prop::sample::select(list).prop_map(|(ty, s)| (ty, prop_oneof![1 => Just(Value::Null), 6 => s].boxed()))
    }

    proptest! {
        #[test]
        fn order_of_encodings_is_order_of_values(
            (ty, a, b, c, d) in typed().prop_flat_map(|(ty, s)| (Just(ty), s.clone(), s.clone(), s.clone(), s))
        ) {
            prop_assert_eq!(enc(ty, &a).cmp(&enc(ty, &b)), order(&a, &b));
            // Two columns: the first decides, then the second.
            let two = |x: &Value, y: &Value| [enc(ty, x), enc(ty, y)].concat();
            prop_assert_eq!(two(&a, &b).cmp(&two(&c, &d)), order(&a, &c).then(order(&b, &d)));
            // And back: the decoded value is equal in order and takes exactly its bytes.
            let both = two(&a, &b);
            let mut input = &both[..];
            prop_assert_eq!(order(&decode(&mut input, ty).unwrap(), &a), Ordering::Equal);
            let mut skipped = &both[..];
            skip(&mut skipped, ty).unwrap();
            prop_assert_eq!(skipped, input);
            prop_assert_eq!(order(&decode(&mut input, ty).unwrap(), &b), Ordering::Equal);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, (ty, _) in typed()) {
            let _ = decode(&mut &bytes[..], ty);
            let _ = skip(&mut &bytes[..], ty);
        }
    }
}
