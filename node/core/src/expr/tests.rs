//! Truth tables, promotion, range and format errors.

use quorate_shared::value::Decimal;

use super::*;

fn v(n: i64) -> Expr {
    Expr::Value(Value::Int(n))
}
fn t(s: &str) -> Expr {
    Expr::Value(Value::Text(s.into()))
}
fn d(s: &str) -> Expr {
    Expr::Value(Value::Decimal(Decimal::parse(s).unwrap()))
}
fn null() -> Expr {
    Expr::Value(Value::Null)
}
fn b(x: bool) -> Expr {
    Expr::Value(Value::Bool(x))
}
fn typed(s: &str, ty: SqlType) -> Expr {
    Expr::Value(Value::parse(s, ty).unwrap())
}
fn op(o: BinaryOp, x: Expr, y: Expr) -> Expr {
    Expr::Binary(o, Box::new(x), Box::new(y))
}
fn run(e: &Expr) -> String {
    match eval(e, &[], None) {
        Ok(value) => value.to_string(),
        Err(Rejected::Value { sqlstate, .. }) => sqlstate,
        Err(other) => other.to_string(),
    }
}

#[test]
fn three_valued_logic() {
    let name = |x: Option<bool>| x.map_or(null(), b);
    for x in [Some(true), Some(false), None] {
        for y in [Some(true), Some(false), None] {
            let and = match (x, y) {
                (Some(false), _) | (_, Some(false)) => Value::Bool(false),
                (Some(true), Some(true)) => Value::Bool(true),
                _ => Value::Null,
            };
            let or = match (x, y) {
                (Some(true), _) | (_, Some(true)) => Value::Bool(true),
                (Some(false), Some(false)) => Value::Bool(false),
                _ => Value::Null,
            };
            assert_eq!(eval(&op(BinaryOp::And, name(x), name(y)), &[], None).unwrap(), and);
            assert_eq!(eval(&op(BinaryOp::Or, name(x), name(y)), &[], None).unwrap(), or);
        }
    }
    assert_eq!(run(&op(BinaryOp::And, b(false), v(1))), "false", "the right side is not evaluated");
    assert_eq!(run(&op(BinaryOp::And, b(true), v(1))), "42804");
    assert_eq!(eval(&Expr::In(Box::new(v(1)), vec![v(2), null()]), &[], None).unwrap(), Value::Null);
    assert_eq!(run(&Expr::In(Box::new(v(1)), vec![null(), d("1.0")])), "true");
    assert!(!is_true(&null(), &[], None).unwrap());
    assert!(passes(&null(), &[]).unwrap());
}

#[test]
fn numbers() {
    use BinaryOp::{Add, Div, Eq, Mod, Mul, Sub};
    for (e, want) in [
        (op(Add, v(i64::MAX), v(1)), "22003"),
        (op(Mul, v(i64::MAX), v(2)), "22003"),
        (op(Div, v(7), v(2)), "3"),
        (op(Div, v(-7), v(2)), "-3"),
        (op(Mod, v(-7), v(2)), "-1"),
        (op(Div, v(i64::MIN), v(-1)), "22003"),
        (op(Mod, v(i64::MIN), v(-1)), "0"),
        (op(Div, v(1), v(0)), "22012"),
        (op(Add, v(1), d("0.10")), "1.10"),
        (op(Sub, d("0.3"), d("0.1")), "0.2"),
        (op(Mul, d("1.50"), d("2.5")), "3.750"),
        (op(Div, d("1"), d("3")), "0.33333333333333333333"),
        (op(Div, d("10"), d("4")), "2.5000000000000000"),
        (op(Div, d("2"), d("3")), "0.66666666666666666667"),
        (op(Div, d("123456789"), d("7")), "17636684.142857142857"),
        (op(Mod, d("7.5"), d("2")), "1.5"),
        (op(Mul, d("99999999999999999999"), d("99999999999999999999")), "22003"),
        (op(Eq, v(1), d("1.000")), "true"),
        (op(Eq, d("1.5"), Expr::Value(Value::Float(1.5))), "true"),
        (op(Add, v(1), Expr::Value(Value::Float(0.5))), "1.5"),
        (op(Eq, v(7), t("7")), "true"),
        (op(Eq, v(7), t("x")), "22P02"),
        (op(Add, t("2"), v(3)), "5"),
        (op(Add, t("a"), t("b")), "42883"),
        (Expr::Negate(Box::new(v(i64::MIN))), "22003"),
        (Expr::Call(Function::Abs, vec![d("-1.5")]), "1.5"),
    ] {
        assert_eq!(run(&e), want, "{e:?}");
    }
    assert_eq!(compare(&Value::Float(f64::NAN), &Value::Float(f64::INFINITY)), Some(Ordering::Greater));
    assert_eq!(compare(&Value::Null, &Value::Int(1)), None);
    assert_eq!(compare(&Value::Bool(true), &Value::Int(1)), None);
}

#[test]
fn text_and_time() {
    use BinaryOp::{Add, Concat, Eq, Gt, ILike, Like, Lt, Sub};
    let date = |s| typed(s, SqlType::Date);
    let ts = |s| typed(s, SqlType::Timestamp);
    let span = |s| typed(s, SqlType::Interval);
    for (e, want) in [
        (op(Like, t("abc"), t("a%")), "true"),
        (op(Like, t("abc"), t("a_")), "false"),
        (op(Like, t("a%c"), t(r"a\%c")), "true"),
        (op(Like, t("axc"), t(r"a\%c")), "false"),
        (op(Like, t("aXbXc"), t("%X%c")), "true"),
        (op(Like, t(""), t("%")), "true"),
        (op(Like, t("a"), t("a\\")), "22025"),
        (op(ILike, t("ÄB"), t("ä_")), "true"),
        (op(Concat, t("a"), v(1)), "a1"),
        (op(Lt, t("a"), t("b")), "true"),
        (op(Eq, date("2024-02-29"), t("2024-02-29")), "true"),
        (op(Gt, ts("2024-02-29 00:00:01"), date("2024-02-29")), "true"),
        (op(Add, date("2024-02-28"), v(2)), "2024-03-01"),
        (op(Sub, date("2024-03-01"), date("2024-02-28")), "2"),
        (op(Add, ts("2024-01-31 10:00:00"), span("1 month")), "2024-02-29 10:00:00"),
        (op(Sub, ts("2024-03-01 00:00:00"), span("1 day")), "2024-02-29 00:00:00"),
        (op(Sub, ts("2024-03-01 12:00:00"), ts("2024-02-28 00:00:00")), "2 days 12:00:00"),
        (op(BinaryOp::Mul, span("1 day"), d("1.5")), "1 day 12:00:00"),
        (op(Eq, span("1 month"), span("30 days")), "true"),
        (op(Eq, date("2024-01-01"), t("nonsense")), "22007"),
        (Expr::Call(Function::Length, vec![t("äö")]), "2"),
        (Expr::Call(Function::Upper, vec![t("ä")]), "Ä"),
        (Expr::Call(Function::Trim, vec![t("  a ")]), "a"),
        (Expr::Call(Function::Coalesce, vec![null(), v(2), op(BinaryOp::Div, v(1), v(0))]), "2"),
        (Expr::Case(vec![(null(), v(1)), (b(true), v(2))], Box::new(v(3))), "2"),
        (Expr::Cast(Box::new(t("12")), SqlType::SmallInt), "12"),
        (Expr::Cast(Box::new(t("abcdef")), SqlType::Varchar(3)), "abc"),
        (Expr::Cast(Box::new(d("2.5")), SqlType::Int), "3"),
        (Expr::Cast(Box::new(Expr::Value(Value::Float(2.5))), SqlType::Int), "2"),
        (Expr::Cast(Box::new(b(true)), SqlType::Date), "42846"),
    ] {
        assert_eq!(run(&e), want, "{e:?}");
    }
}

#[test]
fn columns_and_depth() {
    let row = [Value::Int(1), Value::Int(2)];
    let e = op(BinaryOp::Add, Expr::Column(1), Expr::Excluded(0));
    assert_eq!(eval(&e, &row, Some(&[Value::Int(40)])).unwrap(), Value::Int(42));
    assert!(eval(&e, &row, None).is_err());
    assert!(eval(&Expr::Column(9), &row, None).is_err());
    let long = (0..5000).fold(b(true), |e, _| op(BinaryOp::And, e, b(true)));
    assert_eq!(run(&long), "true");
    let deep = (0..2000).fold(b(true), |e, _| Expr::Not(Box::new(e)));
    assert_eq!(run(&deep), "54001");
}

#[test]
fn values_fit_their_columns() {
    let text = |s: &str| Value::Text(s.into());
    let dec = |s: &str| Value::Decimal(Decimal::parse(s).unwrap());
    let amount = SqlType::Decimal { precision: 5, scale: 2 };
    for (value, ty, want) in [
        (Value::Int(32768), SqlType::SmallInt, "22003"),
        (Value::Int(i64::from(i32::MAX) + 1), SqlType::Int, "22003"),
        (dec("1.5"), SqlType::Int, "2"),
        (Value::Float(1e19), SqlType::BigInt, "22003"),
        (text("abcd"), SqlType::Varchar(3), "22001"),
        (text("abc  "), SqlType::Varchar(3), "abc"),
        (text("äöü"), SqlType::Varchar(3), "äöü"),
        (dec("999.994"), amount, "999.99"),
        (dec("999.995"), amount, "22003"),
        (dec("-0.005"), amount, "-0.01"),
        (Value::Float(0.1), amount, "0.10"),
        (Value::Int(7), amount, "7.00"),
        (text("12.345"), amount, "12.35"),
        (text("x"), SqlType::Int, "22P02"),
        (text("99999"), SqlType::SmallInt, "22003"),
        (text("2009-01-02 00:00:00"), SqlType::Date, "2009-01-02"),
        (text("2009-13-02"), SqlType::Date, "22007"),
        (text("{\"a\":}"), SqlType::Json, "22P02"),
        (Value::Float(1e300), SqlType::Real, "22003"),
        (Value::Int(1), SqlType::Bool, "true"),
        (Value::Bool(true), SqlType::Date, "42804"),
        (Value::Null, SqlType::Date, "NULL"),
        (Value::Int(5), SqlType::Text, "5"),
    ] {
        let got = match coerce(value.clone(), ty, "c") {
            Ok(Value::Null) => "NULL".into(),
            Ok(value) => value.to_string(),
            Err(Rejected::Value { sqlstate, message }) => {
                assert!(message.contains("\"c\""), "{message}");
                sqlstate
            }
            Err(other) => other.to_string(),
        };
        assert_eq!(got, want, "{value:?} as {ty}");
    }
}
