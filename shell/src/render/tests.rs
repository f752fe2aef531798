//! Every format on the same results.

use quorate_shared::value::{Decimal, SqlType, Value};
use quorate_shared::wire::Column;

use super::*;

fn column(name: &str, ty: SqlType) -> Column {
    Column { name: name.to_owned(), ty }
}

fn text(t: &str) -> Value {
    Value::Text(t.to_owned())
}

const MONEY: SqlType = SqlType::Decimal { precision: 10, scale: 2 };

fn sample() -> (Vec<Column>, Vec<Vec<Value>>) {
    let columns = vec![
        column("id", SqlType::Int),
        column("Name", SqlType::Text),
        column("total", MONEY),
        column("raw", SqlType::Bytes),
    ];
    let total = |unscaled| Value::Decimal(Decimal { unscaled, scale: 2 });
    let rows = vec![
        vec![Value::Int(1), text("Ada, \"the\" first"), total(398), Value::Bytes(vec![0xde, 0xad])],
        vec![Value::Int(-20), Value::Null, Value::Null, Value::Null],
        vec![Value::Int(300), text(""), total(-5), Value::Bytes(vec![])],
        vec![Value::Int(4), text("漢字\tx\nand | more\\N"), total(100_000_000), Value::Null],
    ];
    (columns, rows)
}

fn rendered(style: Style, columns: &[Column], rows: Vec<Vec<Value>>) -> String {
    let mut out = Vec::new();
    let mut renderer = Renderer::new(style, columns);
    for row in rows {
        renderer.rows(vec![row], &mut out).expect("a vector takes everything");
    }
    renderer.end(&mut out).expect("a vector takes everything");
    String::from_utf8(out).expect("text")
}

fn sample_as(format: Format) -> String {
    let (columns, rows) = sample();
    rendered(Style::plain(format), &columns, rows)
}

#[test]
fn table() {
    insta::assert_snapshot!(sample_as(Format::Table));
}

#[test]
fn table_of_a_terminal() {
    let (columns, rows) = sample();
    let style = Style { unicode: true, color: true, ..Style::plain(Format::Table) };
    insta::assert_snapshot!(rendered(style, &columns, rows).replace('\x1b', "ESC"));
}

#[test]
fn table_too_wide_for_the_terminal_stands_up() {
    let (columns, rows) = sample();
    let style = Style { unicode: true, width: Some(30), ..Style::plain(Format::Table) };
    insta::assert_snapshot!(rendered(style, &columns, rows));
}

#[test]
fn vertical() {
    insta::assert_snapshot!(sample_as(Format::Vertical));
}

#[test]
fn csv() {
    insta::assert_snapshot!(sample_as(Format::Csv));
}

#[test]
fn tsv() {
    insta::assert_snapshot!(sample_as(Format::Tsv));
}

#[test]
fn json() {
    let text = sample_as(Format::Json);
    let value: serde_json::Value = serde_json::from_str(&text).expect("valid");
    assert_eq!(value[0]["total"], "3.98");
    insta::assert_snapshot!(text);
}

#[test]
fn jsonl() {
    insta::assert_snapshot!(sample_as(Format::Jsonl));
}

#[test]
fn markdown() {
    insta::assert_snapshot!(sample_as(Format::Markdown));
}

#[test]
fn empty_results() {
    let (columns, _) = sample();
    let shown = |format| rendered(Style::plain(format), &columns, Vec::new());
    assert_eq!(shown(Format::Json), "[]\n");
    assert_eq!(shown(Format::Jsonl), "");
    assert_eq!(shown(Format::Vertical), "");
    assert_eq!(shown(Format::Csv), "id,Name,total,raw\n");
    assert_eq!(shown(Format::Tsv), "id\tName\ttotal\traw\n");
    assert_eq!(shown(Format::Markdown), "| id | Name | total | raw |\n| ---: | --- | ---: | --- |\n");
    assert_eq!(shown(Format::Table), " id | Name | total | raw\n----+------+-------+-----\n");
}

#[test]
fn statements_without_a_result_write_nothing() {
    for format in
        [Format::Table, Format::Csv, Format::Tsv, Format::Json, Format::Jsonl, Format::Markdown, Format::Vertical]
    {
        assert_eq!(rendered(Style::plain(format), &[], Vec::new()), "", "{format:?}");
    }
}

#[test]
fn without_header() {
    let columns = [column("a", SqlType::Int), column("b", SqlType::Text)];
    let shown = |format| {
        let style = Style { header: false, ..Style::plain(format) };
        rendered(style, &columns, vec![vec![Value::Int(1), text("x")]])
    };
    assert_eq!(shown(Format::Csv), "1,x\n");
    assert_eq!(shown(Format::Tsv), "1\tx\n");
    assert_eq!(shown(Format::Table), " 1 | x\n");
    assert_eq!(shown(Format::Vertical), "a | 1\nb | x\n");
    assert_eq!(shown(Format::Markdown), "|  |  |\n| ---: | --- |\n| 1 | x |\n");
}

#[test]
fn json_values_of_every_kind() {
    let columns = [
        column("a", SqlType::Double),
        column("a", SqlType::Double),
        column("a_2", SqlType::Bool),
        column("j", SqlType::Json),
        column("r", SqlType::Real),
        column("d", SqlType::Date),
    ];
    let row = vec![
        Value::Float(0.1),
        Value::Float(f64::NAN),
        Value::Bool(true),
        Value::Json("{ \"x y\" : [1.00 , \"\\\" \\n\"],\n \"n\": 123456789012345678901234567890 }".to_owned()),
        Value::Float(f64::from(0.1_f32)),
        Value::Date(0),
    ];
    let shown = rendered(Style::plain(Format::Jsonl), &columns, vec![row]);
    assert_eq!(
        shown,
        "{\"a\":0.1,\"a_3\":\"NaN\",\"a_2\":true,\"j\":{\"x y\":[1.00,\"\\\" \\n\"],\"n\":123456789012345678901234567890},\"r\":0.1,\"d\":\"1970-01-01\"}\n"
    );
}

#[test]
fn many_rows_stream_and_later_wide_cells_stick_out() {
    let columns = [column("n", SqlType::Int), column("t", SqlType::Text)];
    let mut out = Vec::new();
    let mut renderer = Renderer::new(Style::plain(Format::Table), &columns);
    let rows = |n: usize| (0..n).map(|i| vec![Value::Int(i as i64), text("x")]).collect::<Vec<_>>();
    renderer.rows(rows(ALIGN_ROWS_MAX), &mut out).expect("written");
    let before = out.len();
    assert!(before > 0, "nothing was written after {ALIGN_ROWS_MAX} rows");
    renderer.rows(vec![vec![Value::Int(1_234_567), text("wide")]], &mut out).expect("written");
    renderer.end(&mut out).expect("written");
    assert_eq!(String::from_utf8_lossy(&out[before..]), " 1234567 | wide\n");
    assert_eq!(renderer.count(), ALIGN_ROWS_MAX as u64 + 1);
}

#[test]
fn data_cannot_steer_the_terminal() {
    let columns = [column("a\x1b[2J", SqlType::Text)];
    for format in [Format::Table, Format::Vertical] {
        let shown = rendered(Style::plain(format), &columns, vec![vec![text("\x1b]0;x\x07\u{202e}\r")]]);
        assert!(!shown.contains(['\x1b', '\x07', '\u{202e}', '\r']), "{shown:?}");
    }
}

#[test]
fn wrapping_breaks_at_blanks_and_long_words_anywhere() {
    assert_eq!(wrap("a bc def", 4), ["a bc", "def"]);
    assert_eq!(wrap("x abcdefgh ij", 3), ["x", "abc", "def", "gh", "ij"]);
    assert_eq!(wrap("日本語 x", 4), ["日本", "語 x"]);
    assert_eq!((wrap("", 4), wrap("日", 1)), (vec![String::new()], vec!["日".to_owned()]));
}
