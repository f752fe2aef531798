//! Numbers: checked integers, exact decimals, floats; promotion Int -> Decimal -> Float.

use std::cmp::Ordering;

use quorate_shared::value::{Decimal, Value};

use super::{BinaryOp, value_error};
use crate::error::Rejected;

/// Digits of a decimal, and the largest scale.
const DIGITS_MAX: u8 = 38;
/// Significant digits a quotient of decimals has at least, as PostgreSQL chooses them.
const QUOTIENT_DIGITS: i32 = 16;

fn out_of_range(what: &str) -> Rejected {
    value_error("22003", format!("{what} out of range"))
}

fn division_by_zero() -> Rejected {
    value_error("22012", "division by zero")
}

/// Two numbers brought to their common type.
enum Pair {
    Int(i64, i64),
    Decimal(Decimal, Decimal),
    Float(f64, f64),
}

fn pair(a: &Value, b: &Value) -> Option<Pair> {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Pair::Int(*a, *b),
        (Value::Float(a), b) => Pair::Float(*a, to_float(b)?),
        (a, Value::Float(b)) => Pair::Float(to_float(a)?, *b),
        (a, b) => Pair::Decimal(to_decimal(a)?, to_decimal(b)?),
    })
}

fn to_decimal(value: &Value) -> Option<Decimal> {
    match value {
        Value::Int(i) => Some(Decimal::from_int(*i)),
        Value::Decimal(d) => Some(*d),
        _ => None,
    }
}

/// The nearest float of a number.
pub(super) fn to_float(value: &Value) -> Option<f64> {
    match value {
        Value::Int(i) => Some(*i as f64),
        Value::Float(f) => Some(*f),
        Value::Decimal(d) => Some(d.to_f64()),
        _ => None,
    }
}

/// Floats as PostgreSQL orders them: NaN is equal to itself and above everything.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// How two numbers compare; `None` if one is none.
pub(super) fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    Some(match pair(a, b)? {
        Pair::Int(a, b) => a.cmp(&b),
        Pair::Decimal(a, b) => a.compare(b),
        Pair::Float(a, b) => compare_floats(a, b),
    })
}

/// `-x`
pub(super) fn negate(value: &Value) -> Result<Value, Rejected> {
    match value {
        Value::Int(i) => i.checked_neg().map(Value::Int).ok_or_else(|| out_of_range("bigint")),
        Value::Float(f) => Ok(Value::Float(-f)),
        Value::Decimal(d) => Ok(Value::Decimal(Decimal { unscaled: -d.unscaled, scale: d.scale })),
        other => Err(value_error("42883", format!("operator does not exist: - {}", other.own_type()))),
    }
}

/// `abs(x)`
pub(super) fn abs(value: &Value) -> Result<Value, Rejected> {
    let negative = match value {
        Value::Int(i) => *i < 0,
        Value::Float(f) => f.is_sign_negative(),
        Value::Decimal(d) => d.unscaled < 0,
        other => return Err(value_error("42883", format!("abs({}) does not exist", other.own_type()))),
    };
    if negative { negate(value) } else { Ok(value.clone()) }
}

/// A number written as text: an integer if it is one, else a decimal, else a float.
pub(super) fn from_text(value: &Value) -> Result<Value, Rejected> {
    let Value::Text(text) = value else { return Ok(value.clone()) };
    let text = text.trim();
    if let Ok(int) = text.parse::<i64>() {
        return Ok(Value::Int(int));
    }
    if let Some(decimal) = Decimal::parse(text) {
        return Ok(Value::Decimal(decimal));
    }
    text.parse::<f64>()
        .map(Value::Float)
        .map_err(|_| value_error("22P02", format!("invalid input syntax for a number: \"{text}\"")))
}

/// `+ - * / %` of two numbers; `None` if one is none.
pub(super) fn arithmetic(op: BinaryOp, a: &Value, b: &Value) -> Result<Option<Value>, Rejected> {
    let Some(pair) = pair(a, b) else { return Ok(None) };
    Ok(Some(match pair {
        Pair::Int(a, b) => Value::Int(ints(op, a, b)?),
        Pair::Decimal(a, b) => Value::Decimal(decimals(op, a, b)?),
        Pair::Float(a, b) => Value::Float(floats(op, a, b)?),
    }))
}

fn ints(op: BinaryOp, a: i64, b: i64) -> Result<i64, Rejected> {
    match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        _ if b == 0 => return Err(division_by_zero()),
        BinaryOp::Div => a.checked_div(b),
        // The remainder of the smallest integer by -1 is 0, although the quotient does not fit.
        _ => Some(a.wrapping_rem(b)),
    }
    .ok_or_else(|| out_of_range("bigint"))
}

fn floats(op: BinaryOp, a: f64, b: f64) -> Result<f64, Rejected> {
    let result = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        _ if b == 0.0 => return Err(division_by_zero()),
        BinaryOp::Div => a / b,
        _ => a % b,
    };
    if result.is_infinite() && a.is_finite() && b.is_finite() {
        return Err(value_error("22003", "value out of range: overflow"));
    }
    if result == 0.0 && matches!(op, BinaryOp::Mul | BinaryOp::Div) && a != 0.0 && b.is_finite() && b != 0.0 {
        return Err(value_error("22003", "value out of range: underflow"));
    }
    Ok(result)
}

fn decimals(op: BinaryOp, a: Decimal, b: Decimal) -> Result<Decimal, Rejected> {
    let overflow = || value_error("22003", "numeric value out of range");
    let result = match op {
        BinaryOp::Mul => multiply(a, b),
        BinaryOp::Div if b.unscaled == 0 => return Err(division_by_zero()),
        BinaryOp::Div => divide(a, b),
        BinaryOp::Mod if b.unscaled == 0 => return Err(division_by_zero()),
        _ => {
            let scale = a.scale.max(b.scale);
            let (Some(x), Some(y)) = (a.rescale(scale), b.rescale(scale)) else { return Err(overflow()) };
            let (x, y) = (x.unscaled, y.unscaled);
            match op {
                BinaryOp::Add => x.checked_add(y),
                BinaryOp::Sub => x.checked_sub(y),
                _ => Some(x.wrapping_rem(y)),
            }
            .map(|unscaled| Decimal { unscaled, scale })
        }
    };
    result.filter(|d| d.digits() <= u32::from(DIGITS_MAX)).ok_or_else(overflow)
}

fn multiply(a: Decimal, b: Decimal) -> Option<Decimal> {
    let scale = a.scale + b.scale;
    let product = Decimal { unscaled: a.unscaled.checked_mul(b.unscaled)?, scale };
    if scale > DIGITS_MAX { product.rescale(DIGITS_MAX) } else { Some(product) }
}

/// The position of the first base-10,000 digit left of the point (negative: right of it), and that digit: what PostgreSQL
/// chooses the scale of a quotient by.
fn weight(d: Decimal) -> (i32, u128) {
    if d.unscaled == 0 {
        return (0, 0);
    }
    let digits = d.unscaled.unsigned_abs().ilog10() as i32 + 1;
    let exponent = digits - i32::from(d.scale); // value < 10^exponent
    let weight = (exponent - 1).div_euclid(4);
    // The leading base-10,000 digit: the value divided by 10,000^weight.
    let shift = weight * 4 + i32::from(d.scale);
    let size = d.unscaled.unsigned_abs();
    let first = match shift {
        s if s >= 0 => size / 10u128.pow(s.unsigned_abs()),
        s => size * 10u128.pow(s.unsigned_abs()),
    };
    (weight, first)
}

fn divide(a: Decimal, b: Decimal) -> Option<Decimal> {
    let ((wa, fa), (wb, fb)) = (weight(a), weight(b));
    let quotient_weight = wa - wb - i32::from(fa <= fb);
    let scale = (QUOTIENT_DIGITS - quotient_weight * 4)
        .max(i32::from(a.scale))
        .max(i32::from(b.scale))
        .clamp(0, i32::from(DIGITS_MAX));
    // a/10^sa / (b/10^sb) at `scale` = a * 10^(scale + sb - sa) / b; digits are added one by one so that nothing overflows.
    let negative = (a.unscaled < 0) != (b.unscaled < 0);
    let (mut numerator, denominator) = (a.unscaled.unsigned_abs(), b.unscaled.unsigned_abs());
    let mut shift = scale + i32::from(b.scale) - i32::from(a.scale);
    let mut denominator = denominator;
    while shift < 0 {
        denominator = denominator.checked_mul(10)?;
        shift += 1;
    }
    let mut quotient = numerator / denominator;
    numerator %= denominator;
    let mut reached = 0;
    while reached < shift {
        let (Some(next), Some(rest)) = (quotient.checked_mul(10), numerator.checked_mul(10)) else { break };
        if next > 10u128.pow(37) {
            break; // 38 digits are all there is
        }
        quotient = next + rest / denominator;
        numerator = rest % denominator;
        reached += 1;
    }
    if numerator >= denominator - numerator {
        quotient += 1;
    }
    let unscaled = i128::try_from(quotient).ok()?;
    let scale = u8::try_from(scale - (shift - reached)).ok()?;
    Some(Decimal { unscaled: if negative { -unscaled } else { unscaled }, scale })
}
