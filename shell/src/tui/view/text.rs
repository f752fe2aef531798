//! Small pure pieces of text: durations, bytes, glyphs, sparklines, lag as users read it.

use std::collections::VecDeque;

use quorate_shared::status::{MemberStatus, Verdict};
use unicode_width::UnicodeWidthStr;

/// What is not known.
pub const UNKNOWN: &str = "-";

/// Columns of the terminal that a text takes.
pub fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// A shape for each verdict, so that it shows without colour.
pub fn glyph(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "●",
        Verdict::Warning => "▲",
        Verdict::Critical => "✖",
        Verdict::Unknown => "?",
    }
}

/// `0 ms`, `340 ms`, `7.3 s`, `4m12s`, `3h05m`, `2d04h`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{}m{:02}s", ms / 60_000, ms / 1000 % 60),
        3_600_000..86_400_000 => format!("{}h{:02}m", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{}d{:02}h", ms / 86_400_000, ms / 3_600_000 % 24),
    }
}

/// `812 B`, `1.2 KiB`, `64.0 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A number, or `-`.
pub fn number(n: Option<u64>) -> String {
    n.map_or_else(|| UNKNOWN.to_owned(), |n| n.to_string())
}

/// Bytes, or `-`.
pub fn maybe_bytes(n: Option<u64>) -> String {
    n.map_or_else(|| UNKNOWN.to_owned(), bytes)
}

/// `0 ms`, `≥ 7.3 s`, `-`.
pub fn lag(member: &MemberStatus) -> String {
    match member.lag_ms {
        None => UNKNOWN.to_owned(),
        Some(ms) if member.lag_at_least => format!("≥ {}", duration(ms)),
        Some(ms) => duration(ms),
    }
}

/// The newest `room` samples as bars, scaled to the highest of them or `least`; a gap where nothing was known.
pub fn sparkline(samples: &VecDeque<Option<u64>>, room: usize, least: u64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = samples.iter().skip(samples.len().saturating_sub(room));
    let top = shown.clone().flatten().copied().max().unwrap_or(0).max(least).max(1);
    shown
        .map(|sample| match sample {
            None => ' ',
            Some(value) => {
                let step = (u128::from(*value) * 7).div_ceil(u128::from(top)).min(7);
                BARS[usize::try_from(step).unwrap_or(7)]
            }
        })
        .collect()
}

/// Cuts a text to a width, with an ellipsis where something is missing.
pub fn fit(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used + w + 1 > room {
            break;
        }
        out.push(c);
        used += w;
    }
    if room > 0 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_bytes_read_well() {
        let shown: Vec<_> = [0, 999, 1_000, 7_340, 59_999, 252_000, 11_100_000, 187_200_000].map(duration).into();
        assert_eq!(shown, ["0 ms", "999 ms", "1.0 s", "7.3 s", "59.9 s", "4m12s", "3h05m", "2d04h"]);
        assert_eq!([0, 1023, 1024, 67_108_864].map(bytes), ["0 B", "1023 B", "1.0 KiB", "64.0 MiB"]);
    }

    #[test]
    fn a_gap_is_not_a_zero() {
        let samples = VecDeque::from([Some(0), None, Some(50), Some(100)]);
        assert_eq!(sparkline(&samples, 10, 1), "▁ ▅█");
        assert_eq!(sparkline(&samples, 2, 1), "▅█");
        assert_eq!(sparkline(&samples, 0, 1), "");
    }

    #[test]
    fn fitting_respects_wide_characters() {
        assert_eq!(fit("日本語テキスト", 7), "日本語…");
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abcd", 3), "ab…");
        assert_eq!(fit("abcd", 0), "");
    }
}
