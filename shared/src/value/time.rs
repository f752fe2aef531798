//! Dates, times, timestamps and intervals as text.
//!
//! The calendar is the proleptic Gregorian one, as in PostgreSQL; years before 1 are written `0044-03-15 BC`.
//! Left out: time zone names other than `Z` and `UTC` (a database of them would be needed), leap seconds.

use std::fmt;

use super::Interval;

const DAY_MICROS: i64 = 86_400_000_000;
const SECOND_MICROS: i64 = 1_000_000;
const MINUTE_MICROS: i64 = 60 * SECOND_MICROS;
const HOUR_MICROS: i64 = 60 * MINUTE_MICROS;
/// Years further away than this are refused: they would overflow the microseconds of a timestamp anyway.
const YEAR_MAX: i64 = 294_276;

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar; year 0 is 1 BC.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let month_from_march = (i64::from(month) + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a number of days since 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // Both are within 1..=31 by construction.
    (year, u32::try_from(month).unwrap_or(1), u32::try_from(day).unwrap_or(1))
}

fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

pub(super) fn write_date(f: &mut fmt::Formatter<'_>, days: i64) -> fmt::Result {
    let era = write_date_before_era(f, days)?;
    f.write_str(era)
}

/// Writes the date and returns the suffix that says its era, which stands behind the time of a timestamp.
fn write_date_before_era(f: &mut fmt::Formatter<'_>, days: i64) -> Result<&'static str, fmt::Error> {
    let (year, month, day) = civil_from_days(days);
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    write!(f, "{shown:04}-{month:02}-{day:02}")?;
    Ok(era)
}

pub(super) fn write_time(f: &mut fmt::Formatter<'_>, micros: i64) -> fmt::Result {
    let (sign, micros) = if micros < 0 { ("-", micros.unsigned_abs()) } else { ("", micros.unsigned_abs()) };
    let seconds = micros / SECOND_MICROS.unsigned_abs();
    write!(f, "{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    write_fraction(f, micros % SECOND_MICROS.unsigned_abs())
}

fn write_fraction(f: &mut fmt::Formatter<'_>, micros: u64) -> fmt::Result {
    if micros == 0 {
        return Ok(());
    }
    let digits = format!("{micros:06}");
    write!(f, ".{}", digits.trim_end_matches('0'))
}

pub(super) fn write_timestamp(f: &mut fmt::Formatter<'_>, micros: i64, zone: &str) -> fmt::Result {
    let era = write_date_before_era(f, micros.div_euclid(DAY_MICROS))?;
    f.write_str(" ")?;
    write_time(f, micros.rem_euclid(DAY_MICROS))?;
    write!(f, "{zone}{era}")
}

/// Takes between `min` and `max` digits off the front.
fn take_digits(text: &str, min: usize, max: usize) -> Option<(i64, &str)> {
    let count = text.bytes().take_while(u8::is_ascii_digit).count();
    if count < min || count > max {
        return None;
    }
    Some((text[..count].parse().ok()?, &text[count..]))
}

/// Reads `Y-M-D` or `Y/M/D` off the front; the year is not yet moved to its era.
fn take_date(text: &str) -> Option<((i64, u32, u32), &str)> {
    let (year, rest) = take_digits(text, 4, 6)?;
    let separator = rest.chars().next().filter(|c| matches!(c, '-' | '/'))?;
    let (month, rest) = take_digits(&rest[1..], 1, 2)?;
    let (day, rest) = take_digits(rest.strip_prefix(separator)?, 1, 2)?;
    Some(((year, u32::try_from(month).ok()?, u32::try_from(day).ok()?), rest))
}

fn take_era(text: &str) -> (&str, bool) {
    let end = text.trim_end();
    let cut = end.len().saturating_sub(2);
    match (end.get(..cut), end.get(cut..)) {
        (Some(before), Some(era)) if era.eq_ignore_ascii_case("bc") => (before.trim_end(), true),
        _ => (text, false),
    }
}

fn valid_days((year, month, day): (i64, u32, u32), before_christ: bool) -> Option<i64> {
    let year = if before_christ { 1 - year } else { year };
    let in_range = (1..=12).contains(&month) && year.abs() <= YEAR_MAX && (year > 0 || before_christ);
    (in_range && day >= 1 && day <= days_in_month(year, month)).then(|| days_from_civil(year, month, day))
}

pub(super) fn parse_date(text: &str) -> Option<i32> {
    let (text, before_christ) = take_era(text);
    let (date, rest) = take_date(text)?;
    // A date may be given as a timestamp at midnight, as dumps of other databases do.
    if !rest.is_empty() {
        let time = rest.strip_prefix(['T', 't', ' '])?;
        (parse_time(time)? == 0).then_some(())?;
    }
    valid_days(date, before_christ).and_then(|d| i32::try_from(d).ok())
}

/// Reads `H:MM[:SS[.f]]` off the front; more than six digits of a second are rounded.
fn take_time(text: &str) -> Option<(i64, &str)> {
    let (hours, rest) = take_digits(text, 1, 2)?;
    let (minutes, rest) = take_digits(rest.strip_prefix(':')?, 2, 2)?;
    let (seconds, rest) = match rest.strip_prefix(':') {
        Some(rest) => take_digits(rest, 2, 2)?,
        None => (0, rest),
    };
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(digits) => take_fraction(digits)?,
        None => (0, rest),
    };
    if minutes > 59 || seconds > 59 {
        return None;
    }
    let micros = hours * HOUR_MICROS + minutes * MINUTE_MICROS + seconds * SECOND_MICROS + fraction;
    // 24:00:00 is the end of the day, as in PostgreSQL.
    (micros <= DAY_MICROS).then_some((micros, rest))
}

/// The digits behind a decimal point, as millionths, rounded.
fn take_fraction(text: &str) -> Option<(i64, &str)> {
    let count = text.bytes().take_while(u8::is_ascii_digit).count();
    if count == 0 {
        return None;
    }
    let mut micros = 0;
    for at in 0..6 {
        micros = micros * 10 + text.as_bytes()[..count].get(at).map_or(0, |d| i64::from(d - b'0'));
    }
    if text.as_bytes()[..count].get(6).is_some_and(|d| *d >= b'5') {
        micros += 1;
    }
    Some((micros, &text[count..]))
}

pub(super) fn parse_time(text: &str) -> Option<i64> {
    let (micros, rest) = take_time(text.trim_start())?;
    rest.trim().is_empty().then_some(micros)
}

/// A zone: `Z`, `UTC`, `+05`, `+0530`, `+05:30`; in microseconds east.
fn parse_zone(text: &str) -> Option<i64> {
    if ["z", "utc", "gmt"].iter().any(|z| text.eq_ignore_ascii_case(z)) {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let digits: String = text[1..].chars().filter(|c| *c != ':').collect();
    let (hours, minutes) = match digits.len() {
        1 | 2 => (digits.parse::<i64>().ok()?, 0),
        4 => (digits.get(..2)?.parse().ok()?, digits.get(2..)?.parse().ok()?),
        _ => return None,
    };
    (hours <= 15 && minutes <= 59).then_some(sign * (hours * HOUR_MICROS + minutes * MINUTE_MICROS))
}

/// Local microseconds since 1970 and the offset of the zone, if one is given.
pub(super) fn parse_timestamp(text: &str) -> Option<(i64, Option<i64>)> {
    let (text, before_christ) = take_era(text);
    let (date, rest) = take_date(text)?;
    let (time, rest) = match rest.strip_prefix(['T', 't', ' ']) {
        Some(time) => take_time(time.trim_start())?,
        None => (0, rest),
    };
    let zone = match rest.trim() {
        "" => None,
        zone => Some(parse_zone(zone)?),
    };
    let days = valid_days(date, before_christ)?;
    Some((days.checked_mul(DAY_MICROS)?.checked_add(time)?, zone))
}

impl Interval {
    /// Reads PostgreSQL's own format (`1 year 2 mons -3 days 04:05:06.7`), its verbose one (`1 day ago`) and ISO 8601
    /// (`P1Y2DT3H`); a fraction of a unit goes into the smaller ones.
    pub fn parse(text: &str) -> Option<Interval> {
        if let Some(iso) = text.strip_prefix(['P', 'p']) {
            return parse_iso(iso);
        }
        let text = text.strip_prefix('@').unwrap_or(text).trim();
        let (text, ago) = match text.len().checked_sub(3).and_then(|cut| text.split_at_checked(cut)) {
            Some((before, word)) if word.eq_ignore_ascii_case("ago") => (before.trim_end(), true),
            _ => (text, false),
        };
        let mut sum = Sum::default();
        let mut rest = text;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            rest = sum.take_part(rest)?.trim_start();
        }
        sum.finish(ago)
    }
}

/// An interval while it is being read, in wide integers.
#[derive(Default)]
struct Sum {
    months: i128,
    days: i128,
    micros: i128,
}

impl Sum {
    /// Takes `12 units`, `12units` or `[-]HH:MM[:SS[.f]]` off the front.
    fn take_part<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let sign = if negative { -1 } else { 1 };
        let word_end = unsigned.find(char::is_whitespace).unwrap_or(unsigned.len());
        if unsigned[..word_end].contains(':') {
            self.micros += sign * clock_micros(&unsigned[..word_end])?;
            return Some(&unsigned[word_end..]);
        }
        let (millionths, rest) = take_amount(unsigned)?;
        let rest = rest.trim_start();
        let unit_end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        // A bare number is seconds, as in PostgreSQL.
        let unit = if unit_end == 0 { "s" } else { &rest[..unit_end] };
        self.add(sign * millionths, unit)?;
        Some(&rest[unit_end..])
    }

    /// Adds an amount in millionths of a unit.
    fn add(&mut self, millionths: i128, unit: &str) -> Option<()> {
        const ONE: i128 = 1_000_000;
        let mut months = |factor: i128| {
            let months = millionths.checked_mul(factor)?;
            self.months += months / ONE;
            Some(months % ONE)
        };
        // What is left of a month or a day goes on as days and microseconds.
        let (days, micros) = match unit.to_ascii_lowercase().as_str() {
            "millennium" | "millennia" => (30 * months(12_000)?, 0),
            "century" | "centuries" => (30 * months(1200)?, 0),
            "decade" | "decades" => (30 * months(120)?, 0),
            "year" | "years" | "yr" | "yrs" | "y" => (30 * months(12)?, 0),
            "month" | "months" | "mon" | "mons" => (30 * months(1)?, 0),
            "week" | "weeks" | "w" => (millionths.checked_mul(7)?, 0),
            "day" | "days" | "d" => (millionths, 0),
            "hour" | "hours" | "hr" | "hrs" | "h" => (0, millionths.checked_mul(3600)?),
            "minute" | "minutes" | "min" | "mins" | "m" => (0, millionths.checked_mul(60)?),
            "second" | "seconds" | "sec" | "secs" | "s" => (0, millionths),
            "millisecond" | "milliseconds" | "ms" | "msec" | "msecs" => (0, millionths / 1000),
            "microsecond" | "microseconds" | "us" | "usec" | "usecs" => (0, millionths / ONE),
            _ => return None,
        };
        self.days += days / ONE;
        self.micros += micros + (days % ONE).checked_mul(86_400)?;
        Some(())
    }

    fn finish(self, negate: bool) -> Option<Interval> {
        let sign = if negate { -1 } else { 1 };
        Some(Interval {
            months: i32::try_from(sign * self.months).ok()?,
            days: i32::try_from(sign * self.days).ok()?,
            micros: i64::try_from(sign * self.micros).ok()?,
        })
    }
}

/// Hours of an interval may exceed a day.
fn clock_micros(text: &str) -> Option<i128> {
    let (hours, rest) = take_digits(text, 1, 12)?;
    let (micros, rest) = take_time(&format!("00{rest}")).map(|(m, r)| (m, r.len()))?;
    (rest == 0).then(|| i128::from(hours) * i128::from(HOUR_MICROS) + i128::from(micros))
}

/// A number with an optional fraction, in millionths.
fn take_amount(text: &str) -> Option<(i128, &str)> {
    let (whole, rest) = take_digits(text, 0, 18).or_else(|| text.starts_with('.').then_some((0, text)))?;
    let (fraction, rest, any) = match rest.strip_prefix('.') {
        Some(digits) => take_fraction(digits).map(|(f, r)| (f, r, true))?,
        None => (0, rest, rest.len() < text.len()),
    };
    any.then(|| (i128::from(whole) * 1_000_000 + i128::from(fraction), rest))
}

/// What follows the `P` of an ISO 8601 duration.
fn parse_iso(text: &str) -> Option<Interval> {
    let mut sum = Sum::default();
    let (mut rest, mut in_time, mut parts) = (text, false, 0);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(['T', 't']) {
            (rest, in_time) = (after, true);
            continue;
        }
        let (sign, unsigned) = rest.strip_prefix('-').map_or((1, rest), |r| (-1, r));
        let (amount, after) = take_amount(unsigned)?;
        let unit = match (in_time, after.chars().next()?.to_ascii_uppercase()) {
            (false, 'Y') => "years",
            (false, 'M') => "months",
            (false, 'W') => "weeks",
            (false, 'D') => "days",
            (true, 'H') => "hours",
            (true, 'M') => "minutes",
            (true, 'S') => "seconds",
            _ => return None,
        };
        sum.add(sign * amount, unit)?;
        rest = &after[1..];
        parts += 1;
    }
    (parts > 0).then_some(())?;
    sum.finish(false)
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut before_negative = false;
        for (value, unit) in [(self.months / 12, "year"), (self.months % 12, "mon"), (self.days, "day")] {
            if value == 0 {
                continue;
            }
            let space = if first { "" } else { " " };
            // After a negative field a positive one says so, as PostgreSQL writes it.
            let plus = if before_negative && value > 0 { "+" } else { "" };
            let plural = if value == 1 { "" } else { "s" };
            write!(f, "{space}{plus}{value} {unit}{plural}")?;
            before_negative = value < 0;
            first = false;
        }
        if !first && self.micros == 0 {
            return Ok(());
        }
        let space = if first { "" } else { " " };
        let plus = if before_negative && self.micros > 0 { "+" } else { "" };
        write!(f, "{space}{plus}")?;
        write_time(f, self.micros)
    }
}
