//! Exact decimals: reading, writing, changing the scale, comparing.
//!
//! Invariant: nothing here loses a digit silently; what does not fit 38 digits is `None`.

use std::cmp::Ordering;
use std::fmt;

use super::Decimal;

/// Digits of the widest DECIMAL.
pub const DIGITS_MAX: u8 = 38;

/// `10^exponent`; `None` beyond 38.
const fn power_of_ten(exponent: u8) -> Option<i128> {
    10_i128.checked_pow(exponent as u32)
}

impl Decimal {
    /// An integer as a decimal.
    pub fn from_int(value: i64) -> Decimal {
        Decimal { unscaled: i128::from(value), scale: 0 }
    }

    /// Reads `[+-]digits[.digits][e[+-]digits]`, keeping every digit given; `None` if it is no number or too long.
    pub fn parse(text: &str) -> Option<Decimal> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (negative, mantissa) = match mantissa.as_bytes().first()? {
            b'-' => (true, &mantissa[1..]),
            b'+' => (false, &mantissa[1..]),
            _ => (false, mantissa),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mut unscaled: i128 = 0;
        for byte in whole.bytes().chain(fraction.bytes()) {
            let digit = byte.is_ascii_digit().then(|| i128::from(byte - b'0'))?;
            unscaled = unscaled.checked_mul(10)?.checked_add(digit)?;
        }
        let mut scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        // Only a written exponent can make the scale negative or too large.
        while scale < 0 {
            if unscaled == 0 {
                scale = 0;
                break;
            }
            unscaled = unscaled.checked_mul(10)?;
            scale += 1;
        }
        while scale > i32::from(DIGITS_MAX) && unscaled % 10 == 0 && unscaled != 0 {
            unscaled /= 10;
            scale -= 1;
        }
        if unscaled == 0 {
            scale = scale.min(i32::from(DIGITS_MAX));
        }
        let scale = u8::try_from(scale).ok().filter(|s| *s <= DIGITS_MAX)?;
        let limit = power_of_ten(DIGITS_MAX)?;
        let unscaled = if negative { -unscaled } else { unscaled };
        (unscaled.abs() < limit).then_some(Decimal { unscaled, scale })
    }

    /// The same number with `scale` digits after the point, rounded half away from zero; `None` if it needs over 38 digits.
    pub fn rescale(self, scale: u8) -> Option<Decimal> {
        let unscaled = match scale.cmp(&self.scale) {
            Ordering::Equal => self.unscaled,
            Ordering::Greater => {
                let factor = power_of_ten(scale - self.scale)?;
                let unscaled = self.unscaled.checked_mul(factor)?;
                (unscaled.unsigned_abs() < power_of_ten(DIGITS_MAX)?.unsigned_abs()).then_some(unscaled)?
            }
            Ordering::Less => {
                let factor = power_of_ten(self.scale - scale)?;
                let (quotient, rest) = (self.unscaled / factor, self.unscaled % factor);
                let up = rest.unsigned_abs() >= factor.unsigned_abs().div_ceil(2);
                quotient.checked_add(if up { self.unscaled.signum() } else { 0 })?
            }
        };
        Some(Decimal { unscaled, scale })
    }

    /// The number as DECIMAL(precision, scale), rounded to the scale; `None` if it has too many digits before the point.
    pub fn fit(self, precision: u8, scale: u8) -> Option<Decimal> {
        self.rescale(scale).filter(|d| d.digits() <= u32::from(precision))
    }

    /// Digits of the unscaled number; 0 has none.
    pub fn digits(self) -> u32 {
        self.unscaled.unsigned_abs().checked_ilog10().map_or(0, |log| log + 1)
    }

    /// Compares by value: `1.0` equals `1.00`. (`==` compares the representation.)
    pub fn compare(self, other: Decimal) -> Ordering {
        match (self.aligned(), other.aligned()) {
            (Some(a), Some(b)) => a.cmp(&b),
            // A scale over 38 is never made here; order such values somehow, but always the same way.
            _ => (self.scale, self.unscaled).cmp(&(other.scale, other.unscaled)),
        }
    }

    /// Whole part, and the fraction in units of 10^-38: comparable whatever the scale.
    fn aligned(self) -> Option<(i128, i128)> {
        let factor = power_of_ten(self.scale)?;
        let fill = power_of_ten(DIGITS_MAX.checked_sub(self.scale)?)?;
        let fraction = (self.unscaled % factor).checked_mul(fill)?;
        Some((self.unscaled / factor, fraction))
    }

    /// Without trailing zeros after the point.
    #[must_use]
    pub fn normalized(mut self) -> Decimal {
        while self.scale > 0 && self.unscaled % 10 == 0 {
            self.unscaled /= 10;
            self.scale -= 1;
        }
        self
    }

    /// The nearest double.
    pub fn to_f64(self) -> f64 {
        // Through text: correctly rounded, where a division would round twice.
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// A finite double as the decimal its shortest digits spell; `None` if that needs over 38 digits.
    pub fn from_f64(value: f64) -> Option<Decimal> {
        value.is_finite().then(|| Decimal::parse(&format!("{value:e}")))?
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.unscaled < 0 { "-" } else { "" };
        let digits = self.unscaled.unsigned_abs().to_string();
        let scale = usize::from(self.scale);
        if scale == 0 {
            return write!(f, "{sign}{digits}");
        }
        match digits.len().checked_sub(scale) {
            Some(point) if point > 0 => {
                write!(f, "{sign}{}.{}", &digits[..point], &digits[point..])
            }
            _ => write!(f, "{sign}0.{digits:0>scale$}"),
        }
    }
}
