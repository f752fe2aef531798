//! Changes of the schema while everything else goes on: an index is made and dropped, a column added and dropped.
//!
//! One job at a time changes the table, in the steps and with the records of the daemon's jobs: it is announced in the
//! first shard, the shard of the rows is fenced, an index is filled, the last definition comes into force, and each step
//! is noted in the first shard. Any client that finds a job unfinished does its next step, from what it has read at
//! whatever node, so that several go on with one job as masters do that do not know of each other.
//!
//! Left out: the daemon's own job runner, which is not in this crate; jobs that are rolled back; DROP and TRUNCATE.

use bytes::Bytes;
use quorate_shared::ids::{DatabaseId, IndexId, SchemaVersion, ShardId};
use quorate_shared::value::{SqlType, Value};
use serde::{Deserialize, Serialize};

use super::Rng;
use super::history::Did;
use super::reads::Query;
use super::workload::{ID, N, Next, SET_END, Then, table};
use crate::catalog::{Descriptor, JobDesc, TableDesc};
use crate::proposal::{Op, Proposal};
use crate::table::{ColumnDef, DefaultValue, IndexDef, IndexState, TableDef};

const JOB: u64 = 1;
const ANNOUNCED: &str = "announced";
const FENCED: &str = "fenced";
const PUBLIC: &str = "public";
/// Columns that a table ever gets.
const COLUMNS_MAX: usize = 9;
/// Rows that are filled in one proposal.
const BATCH_ROWS: usize = 50;

/// What a job does.
#[derive(Serialize, Deserialize)]
struct Work {
    /// The number of the job, so that no two records are alike.
    number: u64,
    before: SchemaVersion,
    fenced: TableDef,
    /// Once the index is filled.
    public: Option<TableDef>,
}

/// The records as the first shard has them: the job, the table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Records {
    pub job: Option<Bytes>,
    pub table: Option<Bytes>,
}

/// The keys of [`Records`].
pub fn keys() -> [Bytes; 2] {
    let table = crate::keys::CatalogKey::Table(table().id);
    [crate::keys::CatalogKey::Job(JOB), table].map(|key| key.encode())
}

/// The table's record when it is made.
pub fn founding(rows: ShardId) -> Proposal {
    let desc = TableDesc { database: DatabaseId::new(1), shard: rows, def: table().clone(), public: true };
    let op = Op::Put { key: desc.key().encode(), expect: None, value: Some(desc.encode()) };
    Proposal { ops: vec![op], ..Proposal::default() }
}

fn next_version(def: &TableDef) -> TableDef {
    TableDef { version: SchemaVersion::new(def.version.get() + 1), ..def.clone() }
}

/// Some other definition, and the one after that if there is something to fill.
fn some_change(rng: &mut Rng, def: &TableDef) -> (TableDef, Option<TableDef>) {
    let mut fenced = next_version(def);
    let own = table().columns.len();
    let dropped = (own..def.columns.len()).find(|at| !def.columns[*at].dropped);
    match rng.range(0, 3) {
        0 if def.columns.len() < COLUMNS_MAX => {
            let name = format!("c{}", def.columns.len());
            let added = Value::Int(def.columns.len() as i64);
            fenced.columns.push(ColumnDef {
                name,
                ty: SqlType::BigInt,
                not_null: false,
                default: DefaultValue::None,
                added,
                hidden: false,
                dropped: false,
            });
            (fenced, None)
        }
        1 if dropped.is_some() => {
            fenced.columns[dropped.unwrap_or(own)].dropped = true;
            (fenced, None)
        }
        _ if def.indexes.is_empty() => {
            let id = def.next_index;
            fenced.indexes.push(IndexDef {
                id,
                name: id.to_string(),
                columns: if rng.chance(500) { vec![N] } else { vec![N, ID] },
                unique: false,
                state: IndexState::Filling,
                constraint: false,
                primary: false,
            });
            fenced.next_index = IndexId::new(id.get() + 1);
            let mut public = next_version(&fenced);
            public.indexes.iter_mut().for_each(|index| index.state = IndexState::Public);
            (fenced, Some(public))
        }
        _ => {
            fenced.indexes.clear();
            (fenced, None)
        }
    }
}

fn decode(records: &Records) -> Option<(Option<(JobDesc, Work)>, TableDesc)> {
    let table = TableDesc::decode(records.table.as_ref()?).ok()?;
    let Some(job) = &records.job else { return Some((None, table)) };
    let job = JobDesc::decode(job).ok()?;
    let work = postcard::from_bytes(&job.work).ok()?;
    Some((Some((job, work)), table))
}

/// Notes how far a job is, if it is where it was when it was read.
fn note(records: &Records, job: &JobDesc, table: Option<&TableDesc>) -> Next {
    let mut ops = vec![Op::Put { key: job.key().encode(), expect: records.job.clone(), value: Some(job.encode()) }];
    if let Some(table) = table {
        let (key, value) = (table.key().encode(), Some(table.encode()));
        ops.push(Op::Put { key, expect: records.table.clone(), value });
    }
    Next::Write(Proposal { ops, ..Proposal::default() }, Did::Catalog)
}

fn rows(ops: Vec<Op>) -> Next {
    Next::Write(Proposal { ops, ..Proposal::default() }, Did::Schema)
}

fn fence(expect: SchemaVersion, def: &TableDef) -> Next {
    rows(vec![Op::Fence { table: def.id, expect: Some(expect), def: Some(Box::new(def.clone())) }])
}

/// What a client does that has read the records.
pub fn step(rng: &mut Rng, records: &Records) -> Vec<Next> {
    let Some((job, desc)) = decode(records) else { return Vec::new() };
    match job {
        Some((job, work)) if job.state == ANNOUNCED => {
            let state = if work.public.is_some() { FENCED } else { PUBLIC };
            let noted = JobDesc { state: state.into(), ..job };
            let fenced = TableDesc { def: work.fenced.clone(), ..desc };
            vec![fence(work.before, &work.fenced), note(records, &noted, Some(&fenced))]
        }
        Some((job, _)) if job.state == FENCED => {
            vec![Next::ReadThen(Query::Range(0, SET_END), Then::Fill(Box::new(records.clone())))]
        }
        last => {
            let (fenced, public) = some_change(rng, &desc.def);
            let number = last.map_or(0, |(_, work)| work.number) + 1;
            let work = Work { number, before: desc.def.version, fenced, public };
            // Serializing plain data into memory cannot fail.
            let work = postcard::to_stdvec(&work).unwrap_or_default();
            let job = JobDesc { id: JOB, table: desc.def.id, state: ANNOUNCED.into(), work, error: None };
            vec![note(records, &job, None)]
        }
    }
}

/// What follows when the rows to be filled in are known, read when the fence was in force.
pub fn fill(records: &Records, ids: &[i64]) -> Vec<Next> {
    let Some((Some((job, work)), desc)) = decode(records) else { return Vec::new() };
    let Some(public) = work.public else { return Vec::new() };
    let table = work.fenced.id;
    let batch =
        |ids: &[i64]| rows(vec![Op::Backfill { table, keys: ids.iter().map(|id| vec![Value::Int(*id)]).collect() }]);
    let mut out: Vec<Next> = ids.chunks(BATCH_ROWS).map(batch).collect();
    out.push(fence(work.fenced.version, &public));
    let noted = JobDesc { state: PUBLIC.into(), ..job };
    out.push(note(records, &noted, Some(&TableDesc { def: public, ..desc })));
    out
}

/// The definition that a refused fence wanted is in force already: somebody else was faster.
pub fn is_reached(proposal: &Proposal, current: Option<SchemaVersion>) -> bool {
    proposal.ops.iter().any(|op| matches!(op, Op::Fence { def: Some(def), .. } if Some(def.version) == current))
}

/// At the end the first shard's records say what the shard of the rows has, but for a step that is not noted yet.
pub fn agree(records: &Records, def: &TableDef) -> Result<(), String> {
    let Some((job, desc)) = decode(records) else { return Err("the table's record is gone".into()) };
    let mut may = vec![desc.def];
    match job {
        Some((job, work)) if job.state == ANNOUNCED => may.push(work.fenced),
        Some((job, work)) if job.state == FENCED => may.extend(work.public),
        _ => {}
    }
    if may.contains(def) {
        return Ok(());
    }
    let (known, has) = (may.iter().map(|def| def.version.get()).collect::<Vec<_>>(), def.version);
    Err(format!("the rows are fenced with version {has} of the table, the catalog knows {known:?}"))
}
