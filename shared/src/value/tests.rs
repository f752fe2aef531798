//! The text formats, by example and by round trip.

use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;

fn shown(text: &str, ty: SqlType) -> String {
    match Value::parse(text, ty) {
        Ok(value) => value.text(ty),
        Err(why) => format!("error: {why}"),
    }
}

const MONEY: SqlType = SqlType::Decimal { precision: 10, scale: 2 };

#[test]
fn booleans_and_integers() {
    assert_eq!(shown("T", SqlType::Bool), "true");
    assert_eq!(shown(" off ", SqlType::Bool), "false");
    assert_eq!(shown("maybe", SqlType::Bool), "error: invalid BOOLEAN value \"maybe\"");
    assert_eq!(shown("-32768", SqlType::SmallInt), "-32768");
    assert_eq!(shown("32768", SqlType::SmallInt), "error: 32768 is out of range for SMALLINT");
    assert_eq!(shown("9223372036854775808", SqlType::BigInt), "error: 9223372036854775808 is out of range for BIGINT");
    assert_eq!(shown("1.5", SqlType::Int), "error: invalid INT value \"1.5\"");
    assert_eq!(shown("", SqlType::Int), "error: invalid INT value \"\"");
}

#[test]
fn floats_are_the_shortest_digits() {
    let double = |v: f64| Value::Float(v).to_string();
    assert_eq!(double(1.0), "1");
    assert_eq!(double(0.1 + 0.2), "0.30000000000000004");
    assert_eq!(double(-1234.5), "-1234.5");
    assert_eq!(double(0.0001), "0.0001");
    assert_eq!(double(0.00001), "1e-05");
    assert_eq!(double(123_456_789_012_345.0), "123456789012345");
    assert_eq!(double(1e15), "1e+15");
    assert_eq!(double(1e300), "1e+300");
    assert_eq!(double(-0.0), "-0");
    assert_eq!(double(f64::NAN), "NaN");
    assert_eq!(double(f64::NEG_INFINITY), "-Infinity");
    assert_eq!(shown("0.1", SqlType::Real), "0.1");
    assert_eq!(shown("1000000", SqlType::Real), "1e+06");
    assert_eq!(shown("1e39", SqlType::Real), "error: 1e39 is out of range for REAL");
    assert_eq!(shown("1e-400", SqlType::Double), "error: 1e-400 is out of range for DOUBLE PRECISION");
    assert_eq!(shown("-inf", SqlType::Double), "-Infinity");
    assert_eq!(shown("e5", SqlType::Double), "error: invalid DOUBLE PRECISION value \"e5\"");
}

#[test]
fn decimals_are_exact() {
    assert_eq!(shown("3.98", MONEY), "3.98");
    assert_eq!(shown("-.5", MONEY), "-0.50");
    assert_eq!(shown("1.005", MONEY), "1.01");
    assert_eq!(shown("-1.005", MONEY), "-1.01");
    assert_eq!(shown("1e3", MONEY), "1000.00");
    assert_eq!(shown("99999999.994", MONEY), "99999999.99");
    assert_eq!(shown("99999999.995", MONEY), "error: 99999999.995 does not fit DECIMAL(10,2)");
    assert_eq!(shown("1.2.3", MONEY), "error: invalid DECIMAL(10,2) value \"1.2.3\"");
    for bad in ["", "-", ".", "1e", "1e99", "0x10", "1_000"] {
        assert_eq!(Decimal::parse(bad), None, "{bad}");
    }
    let d = |text: &str| Decimal::parse(text).expect("a decimal");
    assert_eq!(d("1.0").compare(d("1.00")), Ordering::Equal);
    assert_eq!(d("-0.1").compare(d("-0.09")), Ordering::Less);
    assert_eq!(
        d("99999999999999999999999999999999999999").compare(d("0.00000000000000000000000000000000000001")),
        Ordering::Greater
    );
    assert_eq!(d("1200.500").normalized().to_string(), "1200.5");
    assert_eq!(d("0.00").to_string(), "0.00");
    assert_eq!(Decimal::from_f64(0.1), Some(d("0.1")));
    assert!((d("12.25").to_f64() - 12.25).abs() < f64::EPSILON);
}

#[test]
fn dates_and_times() {
    assert_eq!(shown("2020-1-31", SqlType::Date), "2020-01-31");
    assert_eq!(shown("1962/2/18", SqlType::Date), "1962-02-18");
    assert_eq!(shown("2009-01-01 00:00:00", SqlType::Date), "2009-01-01");
    assert_eq!(shown("2021-02-29", SqlType::Date), "error: invalid DATE value \"2021-02-29\"");
    assert_eq!(shown("0000-00-00", SqlType::Date), "error: invalid DATE value \"0000-00-00\"");
    assert_eq!(shown("0044-03-15 BC", SqlType::Date), "0044-03-15 BC");
    assert_eq!(shown("12:34", SqlType::Time), "12:34:00");
    assert_eq!(shown("12:34:56.120", SqlType::Time), "12:34:56.12");
    assert_eq!(shown("24:00:00", SqlType::Time), "24:00:00");
    assert_eq!(shown("25:00", SqlType::Time), "error: invalid TIME value \"25:00\"");
    assert_eq!(shown("2020-01-31T12:34:56.789", SqlType::Timestamp), "2020-01-31 12:34:56.789");
    assert_eq!(shown("1962/2/18", SqlType::Timestamp), "1962-02-18 00:00:00");
    assert_eq!(shown("1969-12-31 23:59:59.9999999", SqlType::Timestamp), "1970-01-01 00:00:00");
    assert_eq!(shown("2020-01-31 12:00Z", SqlType::Timestamp), "2020-01-31 12:00:00");
    assert!(shown("2020-01-31 12:00+02", SqlType::Timestamp).starts_with("error"));
    assert_eq!(shown("2020-01-31 12:00:00+05:30", SqlType::TimestampTz), "2020-01-31 06:30:00+00");
    assert_eq!(shown("2020-01-31 12:00:00", SqlType::TimestampTz), "2020-01-31 12:00:00+00");
    assert_eq!(shown("0001-01-01 00:00:00-01 BC", SqlType::TimestampTz), "0001-01-01 01:00:00+00 BC");
}

#[test]
fn intervals_as_postgresql_writes_them() {
    let ty = SqlType::Interval;
    assert_eq!(shown("1 year 2 months 3 days 04:05:06.7", ty), "1 year 2 mons 3 days 04:05:06.7");
    assert_eq!(shown("0 s", ty), "00:00:00");
    assert_eq!(shown("90 minutes", ty), "01:30:00");
    assert_eq!(shown("1 day ago", ty), "-1 days");
    assert_eq!(shown("-1 mons +1 day 01:00:00", ty), "-1 mons +1 day 01:00:00");
    assert_eq!(shown("100:00:00", ty), "100:00:00");
    assert_eq!(shown("-00:00:00.5", ty), "-00:00:00.5");
    assert_eq!(shown("1.5 days", ty), "1 day 12:00:00");
    assert_eq!(shown("2 weeks", ty), "14 days");
    assert_eq!(shown("P1Y2M3DT4H5M6.5S", ty), "1 year 2 mons 3 days 04:05:06.5");
    assert_eq!(shown("1 fortnight", ty), "error: invalid INTERVAL value \"1 fortnight\"");
    for bad in ["", "P", "day", "1 day 2", "99999999999 years", "ago", "1::2"] {
        // `1 day 2` is a day and two seconds, as in PostgreSQL.
        assert_eq!(Interval::parse(bad).is_some(), bad == "1 day 2", "{bad}");
    }
}

#[test]
fn bytes_uuid_json_text() {
    assert_eq!(shown("\\xDEADbeef", SqlType::Bytes), "\\xdeadbeef");
    assert_eq!(shown("a\\\\b\\001", SqlType::Bytes), "\\x615c6201");
    assert!(shown("\\xabc", SqlType::Bytes).starts_with("error"));
    assert!(shown("\\9", SqlType::Bytes).starts_with("error"));
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    assert_eq!(shown("{A0EEBC999C0B4EF8BB6D6BB9BD380A11}", SqlType::Uuid), uuid);
    assert_eq!(shown(uuid, SqlType::Uuid), uuid);
    assert!(shown("a0eebc99", SqlType::Uuid).starts_with("error"));
    assert_eq!(shown("{\"b\": 1,  \"a\": [1e999]}", SqlType::Json), "{\"b\": 1,  \"a\": [1e999]}");
    assert!(shown("{a: 1}", SqlType::Json).starts_with("error: invalid JSON value \"{a: 1}\": "));
    assert!(shown(&"[".repeat(100_000), SqlType::Json).starts_with("error"));
    assert_eq!(shown("äöü", SqlType::Varchar(3)), "äöü");
    assert_eq!(shown("äöüß", SqlType::Varchar(3)), "error: value of 4 characters does not fit VARCHAR(3)");
}

fn any_value() -> impl Strategy<Value = (Value, SqlType)> {
    let timestamps = -60_000_000_000_000_000_i64..9_000_000_000_000_000_000;
    prop_oneof![
        any::<bool>().prop_map(|v| (Value::Bool(v), SqlType::Bool)),
        any::<i64>().prop_map(|v| (Value::Int(v), SqlType::BigInt)),
        any::<f64>().prop_map(|v| (Value::Float(v), SqlType::Double)),
        any::<f32>().prop_map(|v| (Value::Float(f64::from(v)), SqlType::Real)),
        (any::<i64>(), 0_u8..=38).prop_map(|(v, scale)| {
            (Value::Decimal(Decimal { unscaled: i128::from(v), scale }), SqlType::Decimal { precision: 38, scale })
        }),
        any::<String>().prop_map(|v| (Value::Text(v), SqlType::Text)),
        any::<Vec<u8>>().prop_map(|v| (Value::Bytes(v), SqlType::Bytes)),
        (-700_000_i32..2_000_000).prop_map(|v| (Value::Date(v), SqlType::Date)),
        (0_i64..86_400_000_000).prop_map(|v| (Value::Time(v), SqlType::Time)),
        timestamps.clone().prop_map(|v| (Value::Timestamp(v), SqlType::Timestamp)),
        timestamps.prop_map(|v| (Value::TimestampTz(v), SqlType::TimestampTz)),
        any::<(i32, i32, i64)>().prop_map(|(months, days, micros)| {
            (Value::Interval(Interval { months, days, micros }), SqlType::Interval)
        }),
        any::<[u8; 16]>().prop_map(|v| (Value::Uuid(v), SqlType::Uuid)),
    ]
}

proptest! {
    #[test]
    fn text_reads_back_as_the_same_value((value, ty) in any_value()) {
        let text = value.text(ty);
        let back = Value::parse(&text, ty);
        match (&value, &back) {
            (Value::Float(a), Ok(Value::Float(b))) => prop_assert_eq!(a.to_bits(), b.to_bits(), "{}", text),
            _ => prop_assert_eq!(back, Ok(value), "{}", text),
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in "\\PC{0,40}", fields in "[-+0-9:./TZPYMDHS eE a-z]{0,30}") {
        for ty in [SqlType::Bool, SqlType::BigInt, SqlType::Real, SqlType::Double, MONEY, SqlType::Bytes, SqlType::Date,
            SqlType::Time, SqlType::Timestamp, SqlType::TimestampTz, SqlType::Interval, SqlType::Uuid, SqlType::Json] {
            let _ = Value::parse(&text, ty);
            let _ = Value::parse(&fields, ty);
        }
    }

    #[test]
    fn decimals_compare_like_integers(a in any::<i64>(), b in any::<i64>(), extra in 0_u8..18) {
        let (a10, b10) = (Decimal { unscaled: i128::from(a), scale: 3 }, Decimal { unscaled: i128::from(b), scale: 3 });
        let wider = b10.rescale(3 + extra).expect("fits");
        prop_assert_eq!(a10.compare(wider), a.cmp(&b));
    }
}
