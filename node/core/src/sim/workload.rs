//! What clients do: registers (compare and set of catalog keys), a set, a bank, lists that grow, and long fork (two lists
//! with one writer each, read together everywhere).
//!
//! One table holds everything but the registers: `id, n, list`. Accounts, lists and elements of the set have their own
//! ranges of ids.

use std::sync::OnceLock;

use bytes::Bytes;
use quorate_shared::ids::{ClientId, IndexId, SchemaVersion, ShardId, TableId, WriteId};
use quorate_shared::value::{SqlType, Value};

use super::Rng;
use super::history::Did;
use super::reads::{Query, ReadResult};
use super::schema::{self, Records};
use crate::engine::KeyRange;
use crate::error::Fatal;
use crate::expr::{BinaryOp, Expr};
use crate::keys::{self, CatalogKey, Key};
use crate::mvcc::Snapshot;
use crate::proposal::{Cell, OnConflict, Op, Proposal, ReadCheck};
use crate::row;
use crate::table::{ColumnDef, DefaultValue, TableDef};

/// Accounts of the bank.
pub const ACCOUNTS: i64 = 5;
/// What each has in the beginning.
pub const BALANCE: i64 = 100;
/// The first list.
pub const LISTS: i64 = 100;
/// The first element of the set.
pub const SET: i64 = 10_000;
/// After the last.
pub const SET_END: i64 = i64::MAX;
pub const ID: u16 = 0;
pub const N: u16 = 1;
const LIST: u16 = 2;

/// A row of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub id: i64,
    pub n: i64,
    pub list: String,
}

/// How much of what.
#[derive(Clone, Debug)]
pub struct Mix {
    /// The shard of the table; registers are in the first.
    pub rows: ShardId,
    pub registers: usize,
    pub lists: usize,
    /// Weights: register, set, bank, lists, long fork, schema.
    pub weights: [u64; 6],
    /// Permille of reads.
    pub reads: u64,
    /// Permille of writes that wait for a replica.
    pub wait: u64,
}

fn column(name: &str, ty: SqlType) -> ColumnDef {
    ColumnDef {
        name: name.into(),
        ty,
        not_null: true,
        default: DefaultValue::None,
        added: Value::Null,
        hidden: false,
        dropped: false,
    }
}

/// The table.
pub fn table() -> &'static TableDef {
    static TABLE: OnceLock<TableDef> = OnceLock::new();
    TABLE.get_or_init(|| TableDef {
        id: TableId::new(1),
        storage: TableId::new(101),
        version: SchemaVersion::new(1),
        name: "t".into(),
        columns: vec![column("id", SqlType::BigInt), column("n", SqlType::BigInt), column("list", SqlType::Text)],
        primary_key: vec![ID],
        primary_key_name: "t_pkey".into(),
        indexes: vec![],
        checks: vec![],
        foreign_keys: vec![],
        next_index: IndexId::new(1),
    })
}

/// The stored key of a name of up to eight letters.
pub fn key(name: &str) -> Bytes {
    let number = name.bytes().fold(0u64, |n, b| (n << 8) | u64::from(b));
    Key::Catalog(CatalogKey::Job(number)).encode()
}

fn text(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

/// A write of one catalog key that must not exist, or must have a value.
pub fn put(name: &str, value: &str, expect: Option<&str>, write: Option<(u8, u64)>) -> Proposal {
    Proposal {
        write: write.map(|(client, seq)| WriteId { client: ClientId([client; 16]), seq }),
        ops: vec![Op::Put { key: key(name), expect: expect.map(text), value: Some(text(value)) }],
        ..Proposal::default()
    }
}

fn row_key(id: i64) -> Bytes {
    keys::row_key_of(table(), &[Value::Int(id)]).unwrap_or_default()
}

fn insert(id: i64, n: i64, list: &str, on_conflict: OnConflict) -> Op {
    let row = vec![Cell::Value(Value::Int(id)), Cell::Value(Value::Int(n)), Cell::Value(Value::Text(list.into()))];
    Op::Insert { table: table().id, rows: vec![row], on_conflict }
}

/// Makes the table, then the accounts, then the table's record.
pub fn set_up(rows: ShardId) -> [(Proposal, Did); 3] {
    let table = Op::Fence { table: table().id, expect: None, def: Some(Box::new(table().clone())) };
    let accounts = (0..ACCOUNTS).map(|id| insert(id, BALANCE, "", OnConflict::Fail)).collect();
    let [table, accounts] = [vec![table], accounts].map(|ops| Proposal { ops, ..Proposal::default() });
    [(table, Did::SetUp), (accounts, Did::SetUp), (schema::founding(rows), Did::Catalog)]
}

fn append(id: i64, element: &str) -> Op {
    let grown = Expr::Binary(BinaryOp::Concat, Box::new(Expr::Column(LIST)), Box::new(Expr::Excluded(LIST)));
    insert(id, 0, element, OnConflict::Update { target: None, set: vec![(LIST, grown)], filter: None })
}

fn change(id: i64, by: i64) -> Op {
    let value = Expr::Binary(BinaryOp::Add, Box::new(Expr::Column(N)), Box::new(Expr::Value(Value::Int(by))));
    Op::Update { table: table().id, key: vec![Value::Int(id)], seen: None, set: vec![(N, value)], filter: None }
}

fn set_to(id: i64, n: i64) -> Op {
    let set = vec![(N, Expr::Value(Value::Int(n)))];
    Op::Update { table: table().id, key: vec![Value::Int(id)], seen: None, set, filter: None }
}

impl Mix {
    /// Where a query is answered.
    pub fn of_query(&self, query: &Query) -> ShardId {
        if matches!(query, Query::Registers(_) | Query::Records) { ShardId::META } else { self.rows }
    }

    /// Where a write is done.
    pub fn of_write(&self, did: &Did) -> ShardId {
        if matches!(did, Did::Cas { .. } | Did::Catalog) { ShardId::META } else { self.rows }
    }
}

/// What a client is about to do.
pub enum Next {
    Read(Query),
    Write(Proposal, Did),
    /// A read, then what follows from it: a transfer, or a compare and set.
    ReadThen(Query, Then),
}

/// What follows from a read.
#[derive(Clone, Debug)]
pub enum Then {
    /// From the first account read to the second.
    Transfer(i64),
    /// A new value of the register.
    Set(String),
    /// The next step of a job.
    Job,
    /// The rows read are put into an index; as of these records.
    Fill(Box<Records>),
}

/// A unique name of what a client writes as its so-manieth.
fn element(client: u64, seq: u64) -> String {
    format!("{}.{seq} ", client - super::world::CLIENTS)
}

/// Chooses what comes next.
pub fn next(rng: &mut Rng, mix: &Mix, client: u64, seq: u64) -> Next {
    let total = mix.weights.iter().sum();
    let mut at = rng.range(1, total);
    let mut what = 0;
    while at > mix.weights[what] {
        at -= mix.weights[what];
        what += 1;
    }
    let read = rng.chance(mix.reads);
    match what {
        0 => {
            let name = format!("r{}", rng.below(mix.registers));
            let query = Query::Registers(vec![name]);
            if read { Next::Read(query) } else { Next::ReadThen(query, Then::Set(element(client, seq))) }
        }
        1 if read => Next::Read(Query::Range(SET, SET_END)),
        1 => {
            let id = SET + (client - super::world::CLIENTS) as i64 * 1_000_000 + seq as i64;
            let op = insert(id, 1, "", OnConflict::Fail);
            Next::Write(Proposal { ops: vec![op], ..Proposal::default() }, Did::Add(id))
        }
        2 if read => Next::Read(Query::Rows((0..ACCOUNTS).collect())),
        2 => {
            let from = rng.below(ACCOUNTS as usize) as i64;
            let to = (from + rng.range(1, ACCOUNTS as u64 - 1) as i64) % ACCOUNTS;
            let amount = rng.range(1, 9) as i64;
            if rng.chance(500) {
                let ops = vec![change(from, -amount), change(to, amount)];
                return Next::Write(Proposal { ops, ..Proposal::default() }, Did::Transfer);
            }
            Next::ReadThen(Query::Rows(vec![from, to]), Then::Transfer(amount))
        }
        3 => {
            let first = LISTS + rng.below(mix.lists) as i64;
            let second = LISTS + rng.below(mix.lists) as i64;
            let mut lists = vec![first, second];
            lists.dedup();
            if read {
                return Next::Read(Query::Rows(lists));
            }
            let element = element(client, seq);
            let ops = lists.iter().map(|id| append(*id, &element)).collect();
            Next::Write(Proposal { ops, want_rows: true, ..Proposal::default() }, Did::Append(lists, element))
        }
        5 => Next::ReadThen(Query::Records, Then::Job),
        _ => {
            // Two clients write a list each, the others read both.
            let which = (client - super::world::CLIENTS) as i64;
            let pair = [LISTS - 2, LISTS - 1];
            if which >= 2 || read {
                return Next::Read(Query::Rows(pair.to_vec()));
            }
            let list = pair[which as usize % 2];
            let element = element(client, seq);
            let ops = vec![append(list, &element)];
            Next::Write(Proposal { ops, want_rows: true, ..Proposal::default() }, Did::Append(vec![list], element))
        }
    }
}

/// What follows from what was read.
pub fn follow_up(rng: &mut Rng, then: &Then, query: &Query, read: &ReadResult) -> Vec<Next> {
    match (then, &read.records) {
        (Then::Job, Some(records)) => return schema::step(rng, records),
        (Then::Fill(records), _) => {
            let ids: Vec<i64> = read.rows.iter().map(|row| row.id).collect();
            return schema::fill(records, &ids);
        }
        _ => {}
    }
    write_after(then, query, read).map(|(proposal, did)| Next::Write(proposal, did)).into_iter().collect()
}

fn write_after(then: &Then, query: &Query, read: &ReadResult) -> Option<(Proposal, Did)> {
    match (then, query) {
        (Then::Set(value), Query::Registers(names)) => {
            let (name, old) = (names.first()?.clone(), read.registers.first()?.clone());
            let proposal = put(&name, value, old.as_deref(), None);
            Some((proposal, Did::Cas { register: name, old, new: value.clone() }))
        }
        (Then::Transfer(amount), Query::Rows(_)) => {
            let [from, to] = &read.rows[..] else { return None };
            let check = |id| {
                let key = row_key(id);
                ReadCheck { start: key.clone(), end: key, seen: read.timestamp }
            };
            let proposal = Proposal {
                reads: vec![check(from.id), check(to.id)],
                ops: vec![set_to(from.id, from.n - amount), set_to(to.id, to.n + amount)],
                ..Proposal::default()
            };
            Some((proposal, Did::Transfer))
        }
        _ => None,
    }
}

/// Decodes a row as given back by a statement.
pub fn row_of(values: &[Value]) -> Option<Row> {
    match values {
        [Value::Int(id), Value::Int(n), Value::Text(list), ..] => Some(Row { id: *id, n: *n, list: list.to_string() }),
        _ => None,
    }
}

fn decode(def: &TableDef, bytes: &[u8]) -> Result<Row, Fatal> {
    let values = row::decode(def, bytes).map_err(|e| Fatal::new("read a row", e))?;
    row_of(&values).ok_or_else(|| Fatal::new("read a row", "it is of another table"))
}

/// Makes a write one of the table as the client knows it.
pub fn fit(proposal: &mut Proposal, def: &TableDef) {
    for op in &mut proposal.ops {
        if let Op::Insert { rows, .. } = op {
            rows.iter_mut().for_each(|row| row.resize(def.columns.len(), Cell::Value(Value::Null)));
        }
    }
    proposal.tables = vec![(def.id, def.version)];
}

/// Reads one row more of a query. `false`: that was all.
pub fn read_some(snapshot: &Snapshot, query: &Query, at: usize, out: &mut ReadResult) -> Result<bool, Fatal> {
    match query {
        Query::Registers(names) => {
            let Some(name) = names.get(at) else { return Ok(false) };
            let version = snapshot.get(&key(name))?;
            out.registers.push(version.map(|v| String::from_utf8_lossy(&v.row).into_owned()));
            Ok(at + 1 < names.len())
        }
        Query::Rows(ids) => {
            let Some(id) = ids.get(at) else { return Ok(false) };
            if let (Some(version), Some(def)) = (snapshot.get(&row_key(*id))?, &out.def) {
                out.rows.push(decode(def, &version.row)?);
            }
            Ok(at + 1 < ids.len())
        }
        Query::Range(from, to) => {
            let range = KeyRange { start: row_key(*from), end: Some(row_key(*to)) };
            let Some(def) = out.def.clone() else { return Ok(false) };
            for item in snapshot.scan(&range, false) {
                out.rows.push(decode(&def, &item?.1.row)?);
            }
            Ok(false)
        }
        Query::Definition => Ok(false),
        Query::Records => {
            let [job, table] = schema::keys();
            let record = |key: Bytes| snapshot.get(&key).map(|version| version.map(|v| v.row));
            out.records = Some(Records { job: record(job)?, table: record(table)? });
            Ok(false)
        }
    }
}
