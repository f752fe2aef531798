//! What clients did and saw: all that the oracle knows.

use super::invariants::Checks;
use super::place::ByShard;
use super::reads::{Level, Query, ReadResult};
use super::workload::Row;
use quorate_shared::ids::{Epoch, Index, ShardId};

/// A write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Did {
    SetUp,
    /// A register had `old` and was to have `new`.
    Cas {
        register: String,
        old: Option<String>,
        new: String,
    },
    /// An element of the set.
    Add(i64),
    Transfer,
    /// A step of a job: of the table's definition, of the record of it.
    Schema,
    Catalog,
    /// To each of these lists.
    Append(Vec<i64>, String),
}

impl Did {
    /// Whether it writes rows, as the table is known.
    pub fn is_of_rows(&self) -> bool {
        matches!(self, Did::Add(_) | Did::Transfer | Did::Append(..))
    }
}

/// What became of it.
#[derive(Clone, PartialEq, Debug)]
pub enum Ended {
    /// Done, in this entry; rows given back, if they were.
    Done { index: Index, rows: Vec<Row> },
    /// Surely not done; `true`: because of what is there.
    Refused(bool),
    /// Done once or not at all, perhaps later.
    Unknown,
    /// What was read.
    Read(ReadResult),
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    Write(Did),
    Read(Level, Query),
}

/// One operation.
#[derive(Clone, PartialEq, Debug)]
pub struct Operation {
    pub client: u64,
    pub shard: ShardId,
    pub what: What,
    pub begun: u64,
    /// When the client had its answer, and the epoch of the node that gave it.
    pub ended: u64,
    pub epoch: Epoch,
    pub end: Ended,
}

impl Operation {
    /// When it must have happened: of an unknown one, any time.
    pub fn until(&self) -> u64 {
        if self.end == Ended::Unknown { u64::MAX } else { self.ended }
    }
}

/// All of them, in the order of their ends.
#[derive(Default)]
pub struct History {
    pub operations: Vec<Operation>,
}

impl History {
    /// As it is to be judged once it is known which history goes on: what was done and seen in an epoch behind the point
    /// from which a later one goes on is as if the answers had never come.
    pub fn settled(&self, checks: &ByShard<Checks>) -> History {
        let settle = |operation: &Operation| {
            let Operation { shard, epoch, ended, end, .. } = operation;
            let lineage = &checks[*shard].lineage;
            let end = match end {
                // What appended nothing saw something that may be gone.
                Ended::Done { index, .. } if *index == Index::new(0) && *epoch != lineage.newest() => Ended::Unknown,
                Ended::Done { index, .. } if !lineage.survives(*epoch, *index) => Ended::Unknown,
                Ended::Read(read) if !lineage.was_seen(*epoch, read.index, *ended) => return None,
                Ended::Refused(true) if *epoch != lineage.newest() => Ended::Refused(false),
                end => end.clone(),
            };
            Some(Operation { end, ..operation.clone() })
        };
        History { operations: self.operations.iter().filter_map(settle).collect() }
    }
}
