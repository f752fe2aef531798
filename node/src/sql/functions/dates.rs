//! Dates and times: what `now()` is, and the functions of MySQL and PostgreSQL around them.

use std::fmt::Write as _;
use std::sync::Arc;

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveDateTime, NaiveTime, Timelike, Utc};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use quorate_shared::error::WireError;
use quorate_shared::value::{Interval, SqlType, Value};

use super::row::{RowFunction, int, text, wrong};
use crate::sql::convert::UTC;

const DAY_US: i64 = 86_400_000_000;

/// `now()`: the time the statement began, in microseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Now {
    signature: Signature,
    aliases: Vec<String>,
}

impl Default for Now {
    fn default() -> Self {
        let aliases =
            ["current_timestamp", "transaction_timestamp", "statement_timestamp", "clock_timestamp", "utc_timestamp"];
        Self {
            signature: Signature::nullary(Volatility::Stable),
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        }
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &'static str {
        "now"
    }
    fn aliases(&self) -> &[String] {
        &self.aliases
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())))
    }
    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("now() is a constant of its statement")
    }
    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let Some(now) = info.query_execution_start_time() else { return Ok(ExprSimplifyResult::Original(args)) };
        let value = ScalarValue::TimestampMicrosecond(Some(now.timestamp_micros()), Some(Arc::from(UTC)));
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(value, None)))
    }
}

/// All of them.
pub fn all() -> Vec<RowFunction> {
    use SqlType::{BigInt, Date, Int, Text, Time, Timestamp};
    vec![
        RowFunction::new("year", 1..=1, Int, |a| part("year", a, |t| t.year().into())),
        RowFunction::new("quarter", 1..=1, Int, |a| part("quarter", a, |t| i64::from(t.month0() / 3 + 1))),
        RowFunction::new("month", 1..=1, Int, |a| part("month", a, |t| t.month().into())),
        RowFunction::new("week", 1..=1, Int, |a| part("week", a, |t| t.iso_week().week().into()))
            .alias(&["weekofyear"]),
        RowFunction::new("day", 1..=1, Int, |a| part("day", a, |t| t.day().into())).alias(&["dayofmonth"]),
        RowFunction::new("hour", 1..=1, Int, |a| part("hour", a, |t| t.hour().into())),
        RowFunction::new("minute", 1..=1, Int, |a| part("minute", a, |t| t.minute().into())),
        RowFunction::new("second", 1..=1, Int, |a| part("second", a, |t| t.second().into())),
        RowFunction::new("microsecond", 1..=1, Int, |a| part("microsecond", a, |t| (t.nanosecond() / 1_000).into())),
        RowFunction::new("dayofweek", 1..=1, Int, |a| {
            part("dayofweek", a, |t| i64::from(t.weekday().num_days_from_sunday()) + 1)
        }),
        RowFunction::new("weekday", 1..=1, Int, |a| part("weekday", a, |t| t.weekday().num_days_from_monday().into())),
        RowFunction::new("dayofyear", 1..=1, Int, |a| part("dayofyear", a, |t| t.ordinal().into())),
        RowFunction::new("dayname", 1..=1, Text, |a| {
            Ok(Value::Text(moment("dayname", &a[0])?.format("%A").to_string()))
        }),
        RowFunction::new("monthname", 1..=1, Text, |a| {
            Ok(Value::Text(moment("monthname", &a[0])?.format("%B").to_string()))
        }),
        RowFunction::new("last_day", 1..=1, Date, last_day),
        RowFunction::new("date", 1..=1, Date, |a| Ok(Value::Date(days(moment("date", &a[0])?.date())))),
        RowFunction::new("datetime", 1..=1, Timestamp, |a| Ok(Value::Timestamp(micros(moment("datetime", &a[0])?)))),
        RowFunction::new("timestamp", 1..=1, Timestamp, |a| Ok(Value::Timestamp(micros(moment("timestamp", &a[0])?)))),
        RowFunction::new("date_format", 2..=2, Text, |a| {
            Ok(Value::Text(mysql_format(moment("date_format", &a[0])?, &text(&a[1]))))
        }),
        RowFunction::new("strftime", 2..=2, Text, strftime),
        RowFunction::new("to_char", 2..=2, Text, to_char),
        RowFunction::new("datediff", 2..=2, Int, |a| {
            let between = moment("datediff", &a[0])?.date() - moment("datediff", &a[1])?.date();
            Ok(Value::Int(between.num_days()))
        }),
        RowFunction::new("age", 2..=2, SqlType::Interval, |a| {
            Ok(Value::Interval(age(moment("age", &a[0])?, moment("age", &a[1])?)))
        }),
        RowFunction::new("unix_timestamp", 1..=1, BigInt, |a| {
            Ok(Value::Int(micros(moment("unix_timestamp", &a[0])?).div_euclid(1_000_000)))
        }),
        RowFunction::new("from_unixtime", 1..=2, Timestamp, |a| {
            let us = int("from_unixtime", &a[0])?
                .checked_mul(1_000_000)
                .ok_or_else(|| WireError::sql("22008", "a time is out of range"))?;
            Ok(Value::Timestamp(us))
        }),
        RowFunction::new("time_of", 1..=1, Time, |a| {
            Ok(Value::Time(micros(moment("time_of", &a[0])?).rem_euclid(DAY_US)))
        }),
        RowFunction::new("julianday", 1..=1, SqlType::Double, |a| {
            #[allow(clippy::cast_precision_loss)] // SQLite's julianday is a float
            let days = micros(moment("julianday", &a[0])?) as f64 / DAY_US as f64;
            Ok(Value::Float(days + 2_440_587.5))
        }),
    ]
}

fn part(function: &str, args: &[Value], read: fn(NaiveDateTime) -> i64) -> Result<Value, WireError> {
    Ok(Value::Int(read(moment(function, &args[0])?)))
}

fn micros(t: NaiveDateTime) -> i64 {
    t.and_utc().timestamp_micros()
}

fn days(d: NaiveDate) -> i32 {
    let epoch = NaiveDate::default();
    i32::try_from((d - epoch).num_days()).unwrap_or(i32::MAX)
}

/// Whatever names a moment, in UTC where it has a zone.
///
/// # Errors
/// `22007` for text that is no date or time; `42804` for other types.
pub fn moment(function: &str, value: &Value) -> Result<NaiveDateTime, WireError> {
    let range = || WireError::sql("22008", "a date or time is out of range");
    match value {
        Value::Date(d) => {
            DateTime::<Utc>::from_timestamp_micros(i64::from(*d) * DAY_US).map(|t| t.naive_utc()).ok_or_else(range)
        }
        Value::Timestamp(us) | Value::TimestampTz(us) => {
            DateTime::<Utc>::from_timestamp_micros(*us).map(|t| t.naive_utc()).ok_or_else(range)
        }
        Value::Time(us) => DateTime::<Utc>::from_timestamp_micros(*us).map(|t| t.naive_utc()).ok_or_else(range),
        Value::Text(t) => {
            parse_moment(t).ok_or_else(|| WireError::sql("22007", format!("invalid input for a date or time: \"{t}\"")))
        }
        other => Err(wrong(function, other)),
    }
}

fn parse_moment(text: &str) -> Option<NaiveDateTime> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("now") {
        return None;
    }
    if let Ok(zoned) = DateTime::parse_from_rfc3339(text) {
        return Some(zoned.naive_utc());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y/%m/%d %H:%M:%S%.f"] {
        if let Ok(t) = NaiveDateTime::parse_from_str(text, format) {
            return Some(t);
        }
    }
    for format in ["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"] {
        if let Ok(d) = NaiveDate::parse_from_str(text, format) {
            return Some(d.and_time(NaiveTime::MIN));
        }
    }
    let time =
        NaiveTime::parse_from_str(text, "%H:%M:%S%.f").or_else(|_| NaiveTime::parse_from_str(text, "%H:%M")).ok()?;
    Some(NaiveDate::default().and_time(time))
}

fn last_day(args: &[Value]) -> Result<Value, WireError> {
    let date = moment("last_day", &args[0])?.date();
    let last = date.with_day(1).and_then(|d| d.checked_add_months(Months::new(1))).and_then(|d| d.pred_opt());
    last.map(|d| Value::Date(days(d))).ok_or_else(|| WireError::sql("22008", "a date is out of range"))
}

/// Years, months and days between two moments, as people count them.
fn age(later: NaiveDateTime, earlier: NaiveDateTime) -> Interval {
    if later < earlier {
        let i = age(earlier, later);
        return Interval { months: -i.months, days: -i.days, micros: -i.micros };
    }
    let mut months = (later.year() - earlier.year()) * 12 + i32::try_from(later.month()).unwrap_or(0)
        - i32::try_from(earlier.month()).unwrap_or(0);
    let shifted = |m: i32| earlier.checked_add_months(Months::new(u32::try_from(m.max(0)).unwrap_or(0)));
    if shifted(months).is_none_or(|t| t > later) {
        months -= 1;
    }
    let rest = shifted(months).map_or(0, |t| micros(later) - micros(t));
    Interval { months, days: i32::try_from(rest / DAY_US).unwrap_or(0), micros: rest % DAY_US }
}

/// SQLite's argument order is (format, time), and so is this; (time, format) is understood as well.
fn strftime(args: &[Value]) -> Result<Value, WireError> {
    let (format, when) = match (&args[0], &args[1]) {
        (Value::Text(f), when) if f.contains('%') => (f.clone(), when),
        (when, format) => (text(format), when),
    };
    let at = moment("strftime", when)?;
    let format = format.replace("%f", "%S%.3f").replace("%J", "%j");
    let mut out = String::new();
    match write!(out, "{}", at.format(&format)) {
        Ok(()) => Ok(Value::Text(out)),
        Err(_) => Err(WireError::sql("22007", format!("\"{format}\" is no format of strftime()"))),
    }
}

fn mysql_format(t: NaiveDateTime, format: &str) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let Some(code) = chars.next() else { break };
        let strftime = match code {
            'Y' => "%Y",
            'y' => "%y",
            'm' => "%m",
            'c' => "%-m",
            'd' => "%d",
            'e' => "%-d",
            'H' => "%H",
            'k' => "%-H",
            'h' | 'I' => "%I",
            'l' => "%-I",
            'i' => "%M",
            's' | 'S' => "%S",
            'f' => "%6f",
            'p' => "%p",
            'W' => "%A",
            'a' => "%a",
            'M' => "%B",
            'b' => "%b",
            'j' => "%j",
            'T' => "%H:%M:%S",
            'r' => "%I:%M:%S %p",
            'w' => "%w",
            'u' | 'v' => "%V",
            'x' => "%G",
            other => {
                out.push(other);
                continue;
            }
        };
        let _ = write!(out, "{}", t.format(strftime));
    }
    out
}

/// PostgreSQL's `to_char` of dates, times and numbers, as far as its usual patterns go.
fn to_char(args: &[Value]) -> Result<Value, WireError> {
    let pattern = text(&args[1]);
    if matches!(args[0], Value::Int(_) | Value::Float(_) | Value::Decimal(_)) {
        return number_to_char(&args[0], &pattern);
    }
    let t = moment("to_char", &args[0])?;
    const CODES: &[(&str, &str)] = &[
        ("YYYY", "%Y"),
        ("YY", "%y"),
        ("MM", "%m"),
        ("Month", "%B"),
        ("MONTH", "%B"),
        ("month", "%B"),
        ("Mon", "%b"),
        ("MON", "%b"),
        ("mon", "%b"),
        ("DDD", "%j"),
        ("DD", "%d"),
        ("Day", "%A"),
        ("DAY", "%A"),
        ("day", "%A"),
        ("Dy", "%a"),
        ("DY", "%a"),
        ("HH24", "%H"),
        ("HH12", "%I"),
        ("HH", "%I"),
        ("MI", "%M"),
        ("SS", "%S"),
        ("MS", "%3f"),
        ("US", "%6f"),
        ("AM", "%p"),
        ("PM", "%p"),
        ("IYYY", "%G"),
        ("IW", "%V"),
        ("TZ", "UTC"),
    ];
    let mut out = String::new();
    let mut rest = pattern.as_str();
    let mut fill = true;
    while let Some(first) = rest.chars().next() {
        if let Some(tail) = rest.strip_prefix("FM") {
            fill = false;
            rest = tail;
            continue;
        }
        if let Some(tail) = rest.strip_prefix('Q') {
            let _ = write!(out, "{}", t.month0() / 3 + 1);
            rest = tail;
            continue;
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inside, tail) = quoted.split_once('"').unwrap_or((quoted, ""));
            out.push_str(inside);
            rest = tail;
            continue;
        }
        let found = CODES.iter().filter(|(code, _)| rest.starts_with(code)).max_by_key(|(code, _)| code.len());
        match found {
            Some((code, format)) => {
                let mut piece = t.format(format).to_string();
                if code.chars().all(char::is_uppercase) {
                    piece = piece.to_uppercase();
                } else if code.chars().all(char::is_lowercase) {
                    piece = piece.to_lowercase();
                }
                if fill && (code.eq_ignore_ascii_case("month") || code.eq_ignore_ascii_case("day")) {
                    piece = format!("{piece:<9}");
                } else if !fill && piece.len() > 1 && piece.chars().all(|c| c.is_ascii_digit()) {
                    piece = piece.trim_start_matches('0').to_owned();
                }
                out.push_str(&piece);
                rest = &rest[code.len()..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    Ok(Value::Text(out))
}

/// `9`, `0`, `.`, `,` and `FM` of PostgreSQL's number patterns.
fn number_to_char(value: &Value, pattern: &str) -> Result<Value, WireError> {
    let fill = !pattern.starts_with("FM");
    let pattern = pattern.trim_start_matches("FM");
    if pattern.chars().any(|c| !matches!(c, '9' | '0' | '.' | ',')) {
        return Err(WireError::unsupported(format!("the pattern \"{pattern}\" of to_char()"))
            .hint("numbers take 9, 0, comma, point and FM"));
    }
    let (whole, fraction) = pattern.split_once('.').unwrap_or((pattern, ""));
    let decimals = fraction.len();
    let number = super::row::float("to_char", value)?;
    let shown = format!("{:.decimals$}", number.abs());
    let (digits, after) = shown.split_once('.').unwrap_or((&shown, ""));
    let places = whole.chars().filter(|c| *c != ',').count();
    if digits.len() > places && digits != "0" {
        return Ok(Value::Text("#".repeat(pattern.len() + 1)));
    }
    let mut out: Vec<char> = Vec::new();
    let mut left: Vec<char> = digits.chars().collect();
    if digits == "0" && !whole.ends_with('0') {
        left.clear();
    }
    let mut zero_until = whole.chars().filter(|c| *c != ',').position(|c| c == '0').map_or(0, |at| places - at);
    for c in whole.chars().rev() {
        match c {
            ',' if !left.is_empty() || zero_until > 0 => out.push(','),
            ',' => out.push(' '),
            _ => {
                out.push(left.pop().unwrap_or(if zero_until > 0 { '0' } else { ' ' }));
                zero_until = zero_until.saturating_sub(1);
            }
        }
    }
    let mut text: String = out.iter().rev().collect();
    let trimmed = text.trim_start().len();
    let sign = if number < 0.0 { "-" } else { "" };
    let spaces = text.len() - trimmed;
    text = format!("{}{sign}{}", " ".repeat(spaces + usize::from(number >= 0.0)), text.trim_start());
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(after);
    }
    Ok(Value::Text(if fill { text } else { text.trim().to_owned() }))
}
