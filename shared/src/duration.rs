//! Distances in time as people read them.

/// `4 ms`, `7.3 s`, `12 min`, `3.0 h`, `1136 d`.
pub fn text(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..172_800_000 => format!("{}.{} h", ms / 3_600_000, ms % 3_600_000 / 360_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_unit() {
        let cases = [
            (0, "0 ms"),
            (999, "999 ms"),
            (7_300, "7.3 s"),
            (59_999, "59.9 s"),
            (229_928, "3 min"),
            (6_888_370, "1.9 h"),
            (172_799_999, "47.9 h"),
            (98_172_824_580, "1136 d"),
        ];
        for (ms, expected) in cases {
            assert_eq!(text(ms), expected);
        }
    }
}
