//! Arithmetic with dates, times and intervals, as PostgreSQL does it.

use quorate_shared::value::{Interval, Value};
use quorate_shared::value::{civil_from_days, days_from_civil};

use super::{BinaryOp, number, value_error};
use crate::error::Rejected;

/// Microseconds of a day.
pub(super) const DAY_MICROS: i64 = 86_400_000_000;
/// Days of a month where an interval is taken as a length.
const MONTH_DAYS: i128 = 30;

fn out_of_range(what: &str) -> Rejected {
    value_error("22008", format!("{what} out of range"))
}

/// Microseconds since 1970 of the beginning of a day.
pub(super) fn midnight(days: i32) -> i128 {
    i128::from(days) * i128::from(DAY_MICROS)
}

/// An interval as a length, months as 30 days: what intervals are compared by.
pub(super) fn interval_span(i: Interval) -> i128 {
    (i128::from(i.months) * MONTH_DAYS + i128::from(i.days)) * i128::from(DAY_MICROS) + i128::from(i.micros)
}

/// `-i`
pub(super) fn negate(i: Interval) -> Result<Interval, Rejected> {
    let negated = || {
        Some(Interval { months: i.months.checked_neg()?, days: i.days.checked_neg()?, micros: i.micros.checked_neg()? })
    };
    negated().ok_or_else(|| out_of_range("interval"))
}

fn sum(a: Interval, b: Interval) -> Option<Interval> {
    Some(Interval {
        months: a.months.checked_add(b.months)?,
        days: a.days.checked_add(b.days)?,
        micros: a.micros.checked_add(b.micros)?,
    })
}

/// A moment moved by an interval: months first (the last day of a shorter month stands for what it lacks), then days, then
/// microseconds.
fn shift(micros: i64, by: Interval) -> Option<i64> {
    let (mut day, time) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
    if by.months != 0 {
        let (year, month, of_month) = civil_from_days(day);
        let months = year * 12 + i64::from(month) - 1 + i64::from(by.months);
        let (year, month) = (months.div_euclid(12), u32::try_from(months.rem_euclid(12)).ok()? + 1);
        let first = days_from_civil(year, month, 1);
        let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        let length = days_from_civil(next_year, next_month, 1) - first;
        day = first + (i64::from(of_month) - 1).min(length - 1);
    }
    day.checked_add(i64::from(by.days))?.checked_mul(DAY_MICROS)?.checked_add(time)?.checked_add(by.micros)
}

/// `+ - * /` where one side is a date, time or interval; `None` if there is no such operator.
pub(super) fn arithmetic(op: BinaryOp, a: &Value, b: &Value) -> Result<Option<Value>, Rejected> {
    Ok(Some(match (op, a, b) {
        (BinaryOp::Add, Value::Interval(a), Value::Interval(b)) => {
            Value::Interval(sum(*a, *b).ok_or_else(|| out_of_range("interval"))?)
        }
        (BinaryOp::Sub, Value::Interval(a), Value::Interval(b)) => {
            Value::Interval(sum(*a, negate(*b)?).ok_or_else(|| out_of_range("interval"))?)
        }
        (BinaryOp::Add, moment, Value::Interval(i)) => return moved(moment, *i),
        (BinaryOp::Add, Value::Interval(i), moment) => return moved(moment, *i),
        (BinaryOp::Sub, moment, Value::Interval(i)) => return moved(moment, negate(*i)?),
        (BinaryOp::Add, Value::Date(d), Value::Int(n)) | (BinaryOp::Add, Value::Int(n), Value::Date(d)) => {
            Value::Date(date(i64::from(*d).checked_add(*n))?)
        }
        (BinaryOp::Sub, Value::Date(d), Value::Int(n)) => Value::Date(date(i64::from(*d).checked_sub(*n))?),
        (BinaryOp::Sub, Value::Date(a), Value::Date(b)) => Value::Int(i64::from(*a) - i64::from(*b)),
        (BinaryOp::Add, Value::Date(d), Value::Time(t)) | (BinaryOp::Add, Value::Time(t), Value::Date(d)) => {
            let micros = midnight(*d) + i128::from(*t);
            Value::Timestamp(i64::try_from(micros).map_err(|_| out_of_range("timestamp"))?)
        }
        (BinaryOp::Sub, Value::Time(a), Value::Time(b)) => {
            Value::Interval(Interval { months: 0, days: 0, micros: a - b })
        }
        (BinaryOp::Sub, a, b) => match (instant(a), instant(b)) {
            (Some(a), Some(b)) => Value::Interval(span(a - b)?),
            _ => return Ok(None),
        },
        (BinaryOp::Mul, Value::Interval(i), n) | (BinaryOp::Mul, n, Value::Interval(i)) => match number::to_float(n) {
            Some(factor) => Value::Interval(scale(*i, factor)?),
            None => return Ok(None),
        },
        (BinaryOp::Div, Value::Interval(i), n) => match number::to_float(n) {
            Some(0.0) => return Err(value_error("22012", "division by zero")),
            Some(factor) => Value::Interval(scale(*i, 1.0 / factor)?),
            None => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn date(days: Option<i64>) -> Result<i32, Rejected> {
    days.and_then(|d| i32::try_from(d).ok()).ok_or_else(|| out_of_range("date"))
}

fn instant(value: &Value) -> Option<i128> {
    match value {
        Value::Date(d) => Some(midnight(*d)),
        Value::Timestamp(t) | Value::TimestampTz(t) => Some(i128::from(*t)),
        _ => None,
    }
}

/// The difference of two timestamps in days and microseconds.
fn span(micros: i128) -> Result<Interval, Rejected> {
    let day = i128::from(DAY_MICROS);
    let days = i32::try_from(micros / day).map_err(|_| out_of_range("interval"))?;
    // The remainder of a division by a day fits.
    Ok(Interval { months: 0, days, micros: (micros % day) as i64 })
}

fn moved(moment: &Value, by: Interval) -> Result<Option<Value>, Rejected> {
    let out = |micros: Option<i64>| micros.ok_or_else(|| out_of_range("timestamp"));
    Ok(Some(match moment {
        Value::Date(d) => {
            let micros = i64::try_from(midnight(*d)).map_err(|_| out_of_range("timestamp"))?;
            Value::Timestamp(out(shift(micros, by))?)
        }
        Value::Timestamp(t) => Value::Timestamp(out(shift(*t, by))?),
        Value::TimestampTz(t) => Value::TimestampTz(out(shift(*t, by))?),
        Value::Time(t) => Value::Time(out(t.checked_add(by.micros))?.rem_euclid(DAY_MICROS)),
        _ => return Ok(None),
    }))
}

/// An interval times a number; fractions of months go into days (30 a month), fractions of days into microseconds.
fn scale(i: Interval, factor: f64) -> Result<Interval, Rejected> {
    let fits = |x: f64, max: f64| if x.is_finite() && x.abs() < max { Ok(x) } else { Err(out_of_range("interval")) };
    let months = fits(f64::from(i.months) * factor, f64::from(i32::MAX))?;
    let days = fits(f64::from(i.days) * factor + months.fract() * 30.0, f64::from(i32::MAX))?;
    let micros = fits(i.micros as f64 * factor + days.fract() * DAY_MICROS as f64, i64::MAX as f64)?;
    Ok(Interval { months: months.trunc() as i32, days: days.trunc() as i32, micros: micros.round() as i64 })
}
