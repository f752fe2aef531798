//! SQL scripts with their expected output: `node/src/sql/testscripts/*`.
//!
//! Each runs on the engine in memory and on sled. A line `> SELECT …` is a statement, `!> SELECT …` one that fails.
//! `UPDATE_GOLDENFILES=1` writes what comes out.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use goldenscript::{Command, Context, Runner};
use quorate_core::engine::Engine;
use quorate_core::engine::memory::MemoryEngine;
use quorate_core::engine::sled::SledEngine;
use quorate_shared::error::WireError;
use quorate_shared::status::NodeKind;
use quorate_shared::value::Value;

use super::harness::{Answer, Boxed, text};

impl Runner for Boxed {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Box<dyn Error>> {
        let tags: Vec<&str> = context.tags.iter().map(String::as_str).collect();
        match Boxed::run(self, &command.name) {
            Ok(answer) => Ok(show(&answer, &tags)),
            Err(error) => Err(describe(&error).into()),
        }
    }
}

fn show(answer: &Answer, tags: &[&str]) -> String {
    let mut out = String::new();
    if !answer.columns.is_empty() {
        let names: Vec<String> = answer
            .columns
            .iter()
            .map(|c| if tags.contains(&"types") { format!("{} {}", c.name, c.ty) } else { c.name.clone() })
            .collect();
        let _ = writeln!(out, "{}", names.join(" | "));
    }
    for row in &answer.rows {
        let _ = writeln!(out, "{}", row.iter().map(text).collect::<Vec<_>>().join(" | "));
    }
    if answer.columns.is_empty() {
        let _ = writeln!(out, "{} {}", answer.done.tag, answer.done.rows);
    }
    for notice in &answer.done.notices {
        let _ = writeln!(out, "{}: {}", notice.severity, notice.message);
    }
    out
}

fn describe(error: &WireError) -> String {
    let mut out = format!("{} {}", error.sqlstate.as_deref().unwrap_or("-----"), error.message);
    if let Some(at) = error.position {
        let _ = write!(out, " (at {at})");
    }
    if let Some(detail) = &error.detail {
        let _ = write!(out, "; detail: {detail}");
    }
    if let Some(hint) = &error.hint {
        let _ = write!(out, "; hint: {hint}");
    }
    out
}

fn scripts() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sql/testscripts");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

fn run_all(engine: impl Fn() -> (Box<dyn Engine>, Option<tempfile::TempDir>)) {
    for path in scripts() {
        let (engine, _directory) = engine();
        eprintln!("{}", path.display());
        goldenscript::run(&mut Boxed::new(&*engine), &path).unwrap();
    }
}

#[test]
fn scripts_on_the_engine_in_memory() {
    run_all(|| (Box::new(MemoryEngine::new()), None));
}

#[test]
fn scripts_on_sled() {
    run_all(|| {
        let directory = tempfile::tempdir().unwrap();
        (Box::new(SledEngine::open(directory.path(), 16 << 20).unwrap()), Some(directory))
    });
}

#[test]
fn a_replica_refuses_writes_and_names_the_master() {
    let engine = MemoryEngine::new();
    let mut db = Boxed::with_kind(&engine, NodeKind::Replica);
    for sql in
        ["CREATE DATABASE d", "CREATE TABLE t (a INT)", "DROP TABLE t", "INSERT INTO t VALUES (1)", "DELETE FROM t"]
    {
        let error = db.run(sql).unwrap_err();
        assert_eq!(error.sqlstate.as_deref(), Some("25006"), "{sql}");
        assert_eq!(error.redirect.as_deref(), Some("127.0.0.1:7411"), "{sql}");
        assert!(error.hint.is_some_and(|h| h.contains("127.0.0.1:7411")), "{sql}");
    }
    assert_eq!(db.run("SELECT 1").unwrap().rows, [[Value::Int(1)]]);
}

#[test]
fn prepared_statements_take_parameters() {
    let engine = MemoryEngine::new();
    let mut db = Boxed::new(&engine);
    db.run("CREATE TABLE t (id INT PRIMARY KEY, name TEXT, price DECIMAL(10,2))").unwrap();
    for i in 1..=3 {
        let values = vec![Value::Int(i), Value::Text(format!("n{i}")), Value::Text(format!("{i}.50"))];
        db.prepared("INSERT INTO t VALUES (?, ?, ?)", values).unwrap();
    }
    let found = db.prepared("SELECT name FROM t WHERE id = $1", vec![Value::Int(2)]).unwrap();
    assert_eq!(found.texts(), [["n2"]]);
    let found = db.prepared(
        "SELECT id FROM t WHERE price > $1 AND name LIKE $2 ORDER BY id",
        vec![Value::Int(2), Value::Text("n%".into())],
    );
    assert_eq!(found.unwrap().texts(), [["2"], ["3"]]);
    let found = db.prepared("SELECT id FROM t ORDER BY id LIMIT $1", vec![Value::Int(1)]).unwrap();
    assert_eq!(found.texts(), [["1"]]);
    let error = db.prepared("SELECT id FROM t WHERE id = $1", Vec::new()).unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("08P01"));
}

#[test]
fn no_statement_overflows_the_stack() {
    // As large as the node's threads have it.
    let thread = std::thread::Builder::new().stack_size(quorate_node::sql::STACK_BYTES).spawn(deep_statements);
    thread.unwrap().join().unwrap();
}

fn deep_statements() {
    let engine = MemoryEngine::new();
    let mut db = Boxed::new(&engine);
    let deep = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert_eq!(db.run(&deep).unwrap_err().sqlstate.as_deref(), Some("54001"));
    let nested = format!("SELECT {}1{}", "(".repeat(100), ")".repeat(100));
    db.run(&nested).unwrap();
    let long = format!("SELECT 1 WHERE {}", vec!["1 = 2"; 100_000].join(" OR "));
    assert_eq!(db.run(&long).unwrap_err().sqlstate.as_deref(), Some("54001"));
    let fits = format!("SELECT 1 WHERE {}", vec!["1 = 2"; 1_900].join(" OR "));
    assert_eq!(db.run(&fits).unwrap().rows.len(), 0);
    let not = format!("SELECT {} true", "NOT ".repeat(1_500));
    assert!(db.run(&not).is_err());
    let list: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    assert_eq!(db.run(&format!("SELECT 7 IN ({})", list.join(", "))).unwrap().texts(), [["true"]]);
}
