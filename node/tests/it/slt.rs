//! SQLite's sqllogictest files (`../shared/data/slt`) through a session.
//!
//! Each file's first [`RECORDS`] records run (all of them with `QUORATE_SLT=all`) and how many pass is compared with the
//! table below, exactly: a file may not get worse unnoticed, nor better without the table saying so.
//! Records for one engine only (`onlyif`) are not run. `QUORATE_SLT_SHOW=n` prints the first n failures of each file.

use std::path::PathBuf;

use quorate_core::engine::memory::MemoryEngine;
use quorate_shared::value::Value;
use quorate_shared::wire::QueryOptions;

use super::harness::{Boxed, shared_data};

/// Records of each file that run by default: a debug build plans slowly.
const RECORDS: usize = 250;

/// File, records run, records passed.
const EXPECTED: &[(&str, usize, usize)] = &[
    ("evidence_in1", 132, 128),
    ("evidence_in2", 53, 45),
    ("evidence_slt_lang_aggfunc", 5, 5),
    ("evidence_slt_lang_createview", 15, 15),
    ("evidence_slt_lang_dropindex", 8, 8),
    ("evidence_slt_lang_droptable", 12, 12),
    ("evidence_slt_lang_dropview", 13, 13),
    ("evidence_slt_lang_update", 27, 24),
    ("index_delete_10_slt_good_0", 250, 250),
    ("index_random_10_slt_good_0", 250, 250),
    ("random_aggregates_slt_good_0", 250, 250),
    ("random_expr_slt_good_0", 250, 250),
    ("random_groupby_slt_good_0", 250, 250),
    ("random_select_slt_good_0", 250, 250),
    ("select1", 250, 250),
    ("select3", 250, 250),
];

#[derive(Clone, Copy, PartialEq, Debug)]
enum Sort {
    No,
    Rows,
    Values,
}

#[derive(Debug)]
enum Record {
    Statement { sql: String, fails: bool },
    Query { sql: String, types: String, sort: Sort, expected: Vec<String> },
}

/// The records for an engine of no particular name, and the hash threshold.
fn parse(text: &str) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    let mut threshold = 0;
    for block in text.replace("\r\n", "\n").split("\n\n") {
        let mut lines = block.lines().filter(|l| !l.starts_with('#')).skip_while(|l| l.trim().is_empty()).peekable();
        let mut only = false;
        let mut head = None;
        for line in lines.by_ref() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["onlyif", ..] => only = true,
                ["skipif", ..] => {}
                ["hash-threshold", n, ..] => threshold = n.parse().unwrap(),
                ["halt", ..] if !only => return (records, threshold),
                ["halt", ..] => only = false,
                [] => {}
                _ => {
                    head = Some(words);
                    break;
                }
            }
        }
        let Some(head) = head.filter(|_| !only) else { continue };
        let mut sql = String::new();
        let mut expected = Vec::new();
        let mut answers = false;
        for line in lines {
            if line.starts_with("----") {
                answers = true;
            } else if answers {
                expected.push(line.to_owned());
            } else {
                sql.push_str(line);
                sql.push('\n');
            }
        }
        match head.as_slice() {
            ["statement", how, ..] => records.push(Record::Statement { sql, fails: *how == "error" }),
            ["query", types, rest @ ..] => {
                let sort = match rest.first() {
                    Some(&"rowsort") => Sort::Rows,
                    Some(&"valuesort") => Sort::Values,
                    _ => Sort::No,
                };
                records.push(Record::Query { sql, types: (*types).to_owned(), sort, expected });
            }
            other => panic!("unknown record {other:?}"),
        }
    }
    (records, threshold)
}

fn show(value: &Value, ty: char) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let number = match value {
        Value::Int(i) => Some((*i as f64, i.to_string())),
        Value::Bool(b) => Some((f64::from(u8::from(*b)), u8::from(*b).to_string())),
        Value::Float(f) => Some((*f, (*f as i64).to_string())),
        Value::Decimal(d) => {
            let f = d.unscaled as f64 / 10f64.powi(i32::from(d.scale));
            Some((f, (f as i64).to_string()))
        }
        _ => None,
    };
    match (value, ty, number) {
        (Value::Null, ..) => "NULL".to_owned(),
        (_, 'R', Some((float, _))) => format!("{float:.3}"),
        (_, 'I', Some((_, int))) => int,
        (Value::Text(t), 'I', _) => t.parse::<i64>().unwrap_or(0).to_string(),
        (Value::Text(t), ..) if t.is_empty() => "(empty)".to_owned(),
        (Value::Text(t), ..) => t.chars().map(|c| if (' '..='~').contains(&c) { c } else { '@' }).collect(),
        (other, ..) => other.to_string(),
    }
}

fn check(db: &mut Boxed, record: &Record, threshold: usize) -> Result<(), String> {
    match record {
        Record::Statement { sql, fails } => match (db.run(sql), fails) {
            (Ok(_), false) | (Err(_), true) => Ok(()),
            (Ok(_), true) => Err(format!("{sql}should fail")),
            (Err(e), false) => Err(format!("{sql}{e}")),
        },
        Record::Query { sql, types, sort, expected } => {
            let answer = db.run(sql).map_err(|e| format!("{sql}{e}"))?;
            if answer.columns.len() != types.len() {
                return Err(format!("{sql}{} columns, not {}", answer.columns.len(), types.len()));
            }
            let mut rows: Vec<Vec<String>> =
                answer.rows.iter().map(|r| r.iter().zip(types.chars()).map(|(v, t)| show(v, t)).collect()).collect();
            if *sort == Sort::Rows {
                rows.sort();
            }
            let mut values: Vec<String> = rows.into_iter().flatten().collect();
            if *sort == Sort::Values {
                values.sort();
            }
            let count = values.len();
            let hashed = expected.len() == 1 && expected[0].contains(" values hashing to ");
            let got = if hashed || (threshold > 0 && count > threshold) {
                let joined: String = values.iter().flat_map(|v| [v.as_str(), "\n"]).collect();
                let hash = db.run_with("SELECT md5($1)", vec![Value::Text(joined)], &QueryOptions::default());
                let hash = hash.map_err(|e| e.to_string())?.rows[0][0].to_string();
                vec![format!("{count} values hashing to {hash}")]
            } else {
                values
            };
            if &got == expected { Ok(()) } else { Err(format!("{sql}expected {expected:?}\n     got {got:?}")) }
        }
    }
}

#[test]
fn sqlite_logic_tests() {
    let Some(dir) = shared_data("slt") else { return };
    let limit = if std::env::var("QUORATE_SLT").is_ok_and(|v| v == "all") { usize::MAX } else { RECORDS };
    let shown: usize = std::env::var("QUORATE_SLT_SHOW").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "test"));
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let (records, threshold) = parse(&std::fs::read_to_string(file).unwrap());
        let engine = MemoryEngine::new();
        let mut db = Boxed::new(&engine);
        let (mut run, mut passed, mut left) = (0, 0, shown);
        for record in records.iter().take(limit) {
            run += 1;
            match check(&mut db, record, threshold) {
                Ok(()) => passed += 1,
                Err(why) if left > 0 => {
                    left -= 1;
                    eprintln!("  {why}");
                }
                Err(_) => {}
            }
        }
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        eprintln!("    (\"{name}\", {run}, {passed}),");
        found.push((name, run, passed));
    }
    if limit == RECORDS {
        for (name, run, passed) in &found {
            let expected = EXPECTED.iter().find(|(n, ..)| n == name);
            if let Some((_, r, p)) = expected {
                assert_eq!((run, passed), (r, p), "{name}");
            } else {
                eprintln!("{name} is not in the table");
            }
        }
    }
}
