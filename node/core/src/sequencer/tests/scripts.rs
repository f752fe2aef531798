//! Runs the golden scripts. Commands:
//!
//! - `table NAME COLUMN... pk= unique= index= check= fk= [storage=]` proposes a fence; the same name again redefines it.
//! - `insert NAME "1,a,next"... [conflict=nothing|replace|update|...] [target=] [set=] [where=]`
//! - `update NAME KEY set="n = n + 1" [where=] [seen=MARK]`, `delete NAME KEY [where=] [seen=MARK]`
//! - `backfill`, `validate`, `purge`, `put`, `drop`; every proposal takes `as=CLIENT:SEQ`, `read=MARK:NAME[:KEY]`, `plan=VERSION`
//!   and `more` (the next command's operations join this one's statement)
//! - `mark NAME` remembers the applied timestamp, `seal`, `apply [n] [quiet]`, `flush`, `restart`, `rows NAME`
//! - `hold` stops flushing after each command, `auto` starts it again.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use goldenscript::{Argument, Command, Context};
use quorate_shared::ids::{ClientId, IndexId, SchemaVersion, TableId, Timestamp, WriteId};
use quorate_shared::value::Value;

use super::harness::Shard;
use super::text;
use crate::error::Rejected;
use crate::expr::Expr;
use crate::keys;
use crate::proposal::{Cell, OnConflict, Op, Proposal, ReadCheck, WriteResult};
use crate::sequencer::Decision;
use crate::table::{ColumnPos, TableDef};

struct Runner {
    shard: Shard,
    defs: BTreeMap<String, TableDef>,
    marks: BTreeMap<String, Timestamp>,
    ops: Vec<Op>,
    /// What the open and sealed entries' proposals were, to show their answers when applied.
    auto: bool,
}

/// A command's arguments.
struct Args<'a> {
    positional: Vec<&'a str>,
    named: Vec<(&'a str, &'a str)>,
}

impl<'a> Args<'a> {
    fn new(command: &'a Command) -> Self {
        let mut args = Args { positional: vec![], named: vec![] };
        for arg in &command.args {
            match arg {
                Argument::Positional(value) => args.positional.push(value),
                Argument::KeyValue(key, value) => args.named.push((key, value)),
                other => panic!("argument {other}"),
            }
        }
        args
    }
    fn get(&self, key: &str) -> Option<&'a str> {
        self.named.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
    fn flag(&mut self, name: &str) -> bool {
        let before = self.positional.len();
        self.positional.retain(|p| *p != name);
        self.positional.len() < before
    }
    fn rest(&self) -> &[&'a str] {
        self.positional.get(1..).unwrap_or_default()
    }
}

impl Runner {
    fn new() -> Self {
        Self { shard: Shard::new(), defs: BTreeMap::new(), marks: BTreeMap::new(), ops: vec![], auto: true }
    }

    fn def(&self, args: &Args<'_>) -> TableDef {
        self.defs[args.positional[0]].clone()
    }

    fn key(def: &TableDef, text: &str) -> Vec<Value> {
        let types = def.primary_key.iter().map(|c| def.columns[usize::from(*c)].ty);
        text.split(',').zip(types).map(|(t, ty)| text::value(t, ty)).collect()
    }

    fn set(def: &TableDef, text: &str) -> Vec<(ColumnPos, Expr)> {
        let one = |part: &str| {
            let (name, e) = part.split_once('=').unwrap();
            (text::position(def, name.trim()), text::expr(def, e))
        };
        text.split(';').map(one).collect()
    }

    fn table(&mut self, args: &Args<'_>) -> Op {
        let name = args.positional[0];
        let old = self.defs.get(name);
        let id = old.map_or(self.defs.len() as u64 + 1, |d| d.id.get());
        let mut def = text::table(id, name, old.map_or(1, |d| d.version.get() + 1));
        def.columns = args.rest().iter().map(|c| text::column(c)).collect();
        for (key, value) in &args.named {
            match *key {
                "pk" => def.primary_key = text::columns(&def, value),
                "unique" => text::index(&mut def, true, value),
                "index" => text::index(&mut def, false, value),
                "check" => text::check(&mut def, value),
                "fk" => text::foreign_key(&mut def, value, |name| self.defs[name].clone()),
                "storage" => def.storage = TableId::new(value.parse().unwrap()),
                "skip" => def.next_index = IndexId::new(value.parse().unwrap()),
                _ => {}
            }
        }
        let expect = match args.get("expect") {
            Some(version) => Some(SchemaVersion::new(version.parse().unwrap())),
            None => old.map(|d| d.version),
        };
        self.defs.insert(name.into(), def.clone());
        Op::Fence { table: def.id, expect, def: Some(Box::new(def)) }
    }

    fn insert(&self, args: &Args<'_>) -> Op {
        let def = self.def(args);
        let row = |text: &&str| {
            let cell = |(text, column): (&str, &crate::table::ColumnDef)| match text {
                "next" => Cell::Next,
                text => Cell::Value(text::value(text, column.ty)),
            };
            text.split(',').zip(&def.columns).map(cell).collect()
        };
        let target = args.get("target").map(|t| text::columns(&def, t));
        let on_conflict = match args.get("conflict") {
            None => OnConflict::Fail,
            Some("nothing") => OnConflict::Nothing(target),
            Some("replace") => OnConflict::Replace,
            Some(_) => OnConflict::Update {
                target,
                set: Self::set(&def, args.get("set").unwrap()),
                filter: args.get("where").map(|e| text::expr(&def, e)),
            },
        };
        Op::Insert { table: def.id, rows: args.rest().iter().map(row).collect(), on_conflict }
    }

    fn op(&mut self, name: &str, args: &Args<'_>) -> Result<Op, Box<dyn Error>> {
        let seen = args.get("seen").map(|mark| self.marks[mark]);
        let keys = |def: &TableDef, texts: &[&str]| texts.iter().map(|k| Self::key(def, k)).collect();
        Ok(match name {
            "table" => self.table(args),
            "drop" => {
                let def = self.defs.remove(args.positional[0]).unwrap();
                Op::Fence { table: def.id, expect: Some(def.version), def: None }
            }
            "insert" => self.insert(args),
            "update" => {
                let def = self.def(args);
                Op::Update {
                    table: def.id,
                    key: Self::key(&def, args.positional[1]),
                    seen,
                    set: Self::set(&def, args.get("set").unwrap()),
                    filter: args.get("where").map(|e| text::expr(&def, e)),
                }
            }
            "delete" => {
                let def = self.def(args);
                let filter = args.get("where").map(|e| text::expr(&def, e));
                Op::Delete { table: def.id, key: Self::key(&def, args.positional[1]), seen, filter }
            }
            "backfill" => {
                let def = self.def(args);
                Op::Backfill { table: def.id, keys: keys(&def, args.rest()) }
            }
            "validate" => {
                let def = self.def(args);
                let constraint = args.positional[1].to_string();
                Op::Validate { table: def.id, keys: keys(&def, &args.rest()[1..]), constraint }
            }
            "purge" => Op::Purge {
                storage: TableId::new(args.positional[0].parse()?),
                limit: args.get("limit").unwrap_or("1000").parse()?,
            },
            "put" => {
                let bytes = |s: &str| Bytes::copy_from_slice(s.as_bytes());
                Op::Put {
                    key: keys::CatalogKey::Job(args.positional[0].parse()?).encode(),
                    expect: args.get("expect").map(bytes),
                    value: args.get("value").map(bytes),
                }
            }
            other => return Err(format!("unknown command {other}").into()),
        })
    }

    fn propose(&mut self, args: &Args<'_>, ops: Vec<Op>) -> String {
        let write = args.get("as").map(|text| {
            let (client, seq) = text.split_once('.').unwrap();
            WriteId { client: ClientId([client.as_bytes()[0]; 16]), seq: seq.parse().unwrap() }
        });
        let reads = args.named.iter().filter(|(k, _)| *k == "read").map(|(_, text)| {
            let mut parts = text.split(':');
            let seen = self.marks[parts.next().unwrap()];
            let def = &self.defs[parts.next().unwrap()];
            match parts.next() {
                Some(key) => {
                    let start = keys::row_key_of(def, &Self::key(def, key)).unwrap();
                    ReadCheck { end: start.clone(), start, seen }
                }
                None => {
                    let range = keys::storage_range(def.storage);
                    ReadCheck { start: range.start, end: range.end.unwrap(), seen }
                }
            }
        });
        let reads = reads.collect();
        let planned = |version: &str| (self.defs[args.positional[0]].id, SchemaVersion::new(version.parse().unwrap()));
        let tables = args.get("plan").map(planned).into_iter().collect();
        let decision =
            self.shard.propose(Proposal { write, reads, tables, ops, want_rows: true, ..Proposal::default() });
        self.show(decision)
    }

    fn show(&mut self, decision: Decision) -> String {
        match decision {
            Decision::Staged { index, position } => {
                if !self.auto {
                    return format!("staged {index}/{position}");
                }
                self.shard.flush();
                format!("{index}/{position} {}", show_result(&self.shard.results[&index][position]))
            }
            Decision::Duplicate { result, index } => format!("duplicate of {index}: {}", show_result(&result)),
            Decision::Answer { result, depends_on } => {
                let after = if depends_on.get() > 0 { format!(" (after {depends_on})") } else { String::new() };
                match result {
                    Ok(result) => format!("nothing to write{after}: {}", show_result(&result)),
                    Err(rejected) => format!("refused{after}: {}", show_error(&rejected)),
                }
            }
        }
    }

    fn rows(&self, name: &str) -> String {
        let def = &self.defs[name];
        let mut out = String::new();
        for row in self.shard.rows(def) {
            writeln!(out, "{}", show_row(&row)).unwrap();
        }
        match self.shard.verify(def) {
            Ok(n) => writeln!(out, "({n} rows)").unwrap(),
            Err(e) => writeln!(out, "INDEXES DIFFER: {e}").unwrap(),
        }
        out
    }
}

fn show_row(row: &[Value]) -> String {
    row.iter().map(|v| if v.is_null() { "NULL".into() } else { v.to_string() }).collect::<Vec<String>>().join(" | ")
}

fn show_result(result: &WriteResult) -> String {
    let mut out = format!("{} rows", result.rows);
    if let Some(id) = result.last_id {
        write!(out, ", last id {id}").unwrap();
    }
    for row in &result.returned {
        write!(out, ", [{}]", show_row(row)).unwrap();
    }
    out
}

fn show_error(e: &Rejected) -> String {
    match e {
        Rejected::Duplicate { detail, .. } => format!("{e}: Key {detail} already exists."),
        Rejected::NoParent { detail, .. } | Rejected::HasChildren { detail, .. } => format!("{e}: Key {detail}."),
        Rejected::Value { sqlstate, .. } => format!("{e} [{sqlstate}]"),
        Rejected::StaleCatalog { current, .. } => format!("{e}, now {current:?}"),
        e => e.to_string(),
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = Args::new(command);
        let more = args.flag("more");
        let quiet = args.flag("quiet");
        Ok(match &*command.name {
            "hold" => {
                self.auto = false;
                String::new()
            }
            "auto" => {
                self.auto = true;
                self.shard.flush();
                String::new()
            }
            "seal" => {
                let before = self.shard.log.len();
                self.shard.seal();
                let mut out = String::new();
                for sealed in self.shard.log.iter().skip(before) {
                    writeln!(out, "entry {} at {}", sealed.index, sealed.timestamp)?;
                    for result in &sealed.results {
                        writeln!(out, "  {}", show_result(result))?;
                    }
                }
                out
            }
            "apply" => {
                let n = args.positional.first().map_or(usize::MAX, |n| n.parse().unwrap());
                self.shard.apply(n, !quiet);
                String::new()
            }
            "flush" => {
                self.shard.flush();
                String::new()
            }
            "restart" => {
                self.shard.restart();
                String::new()
            }
            "clock" => {
                self.shard.now_ms = args.positional[0].parse()?;
                String::new()
            }
            "mark" => {
                self.marks.insert(args.positional[0].into(), self.shard.machine.state().timestamp);
                String::new()
            }
            "rows" => self.rows(args.positional[0]),
            "ask" => self.propose(&args, vec![]),
            "many" => {
                let def = self.def(&args);
                let (from, to) = (args.positional[1].parse::<i64>()?, args.positional[2].parse::<i64>()?);
                let row = |i| def.columns.iter().map(|_| Cell::Value(Value::Int(i))).collect();
                let rows = (from..=to).map(row).collect();
                let insert = Op::Insert { table: def.id, rows, on_conflict: OnConflict::Fail };
                let decision = self.shard.propose(Proposal { ops: vec![insert], ..Proposal::default() });
                self.show(decision)
            }
            name => {
                let op = self.op(name, &args)?;
                self.ops.push(op);
                if more {
                    return Ok(String::new());
                }
                let ops = std::mem::take(&mut self.ops);
                self.propose(&args, ops)
            }
        })
    }
}

#[test]
fn scripts() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sequencer/testscripts");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        eprintln!("script {}", path.display());
        goldenscript::run(&mut Runner::new(), path).unwrap();
    }
}
