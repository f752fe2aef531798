//! Proposals: what the router asks a shard's leader to write, and what it gets back.
//!
//! A proposal is data: what was read with the version seen, preconditions, and row operations. The sequencer validates
//! it against applied plus in-flight state, keeps indexes and constraints, and turns it into the effects of an entry.
//! A proposal may be forwarded to the leader by another node, so it serializes (postcard, inside a peer message).

use bytes::Bytes;
use quorate_shared::ids::{Index, SchemaVersion, TableId, Timestamp, WriteId};
use quorate_shared::value::Value;
use serde::{Deserialize, Serialize};

use crate::expr::Expr;
use crate::table::{ColumnPos, TableDef};

/// One statement's writes to one shard: all of them or none.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct Proposal {
    /// Identifies it for exactly-once; `None` only for a node's own background work that is idempotent.
    pub write: Option<WriteId>,
    /// What was read, with what was seen.
    pub reads: Vec<ReadCheck>,
    /// Tables it was planned with; refused with `StaleCatalog` if the shard has another version.
    pub tables: Vec<(TableId, SchemaVersion)>,
    /// What to write, in order. Empty: a question whether the write id is known (a statement that found nothing).
    pub ops: Vec<Op>,
    /// Give the written rows back (RETURNING): new rows of inserts and updates, old rows of deletes.
    pub want_rows: bool,
    /// Wait, after it is applied here, until this many log-shipped replicas have applied it.
    pub wait_for_replicas: u32,
    /// How long to wait for them, in milliseconds.
    pub wait_ms: u32,
}

/// "Nothing in this range has changed since `seen`."
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ReadCheck {
    /// First key (encoded data key, see [`crate::keys`]).
    pub start: Bytes,
    /// End, exclusive; equal to `start` for a single key.
    pub end: Bytes,
    /// The read's timestamp.
    pub seen: Timestamp,
}

/// A column's value in an INSERT.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Cell {
    /// Given, or evaluated by the router; coerced to the column's type already, checked again by the sequencer.
    Value(Value),
    /// The table's next number.
    Next,
}

/// `ON CONFLICT`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum OnConflict {
    /// An error.
    Fail,
    /// The row is skipped. With columns: only for a conflict on that key.
    Nothing(Option<Vec<ColumnPos>>),
    /// The existing row is updated.
    Update {
        /// The conflict target's columns; `None`: any unique key (MySQL's ON DUPLICATE KEY UPDATE).
        target: Option<Vec<ColumnPos>>,
        /// New values; may use `Column` (old row) and `Excluded`.
        set: Vec<(ColumnPos, Expr)>,
        /// Only where this is true.
        filter: Option<Expr>,
    },
    /// MySQL's REPLACE: conflicting rows are deleted first.
    Replace,
}

/// A change. `table` is the catalog id.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// New rows, each with a cell for every physical column.
    Insert {
        /// Into this table.
        table: TableId,
        /// The rows.
        rows: Vec<Vec<Cell>>,
        /// What if one exists.
        on_conflict: OnConflict,
    },
    /// One row, by its primary key.
    Update {
        /// Of this table.
        table: TableId,
        /// Its primary key.
        key: Vec<Value>,
        /// Refused with `Conflict` if the row's version is another (slow path); `None`: evaluate on the latest row.
        seen: Option<Timestamp>,
        /// New values over the latest row.
        set: Vec<(ColumnPos, Expr)>,
        /// Only if this is true for the latest row.
        filter: Option<Expr>,
    },
    /// One row, by its primary key.
    Delete {
        /// Of this table.
        table: TableId,
        /// Its primary key.
        key: Vec<Value>,
        /// As in `Update`.
        seen: Option<Timestamp>,
        /// As in `Update`.
        filter: Option<Expr>,
    },
    /// DDL: from here on the shard uses this definition. `None` removes the table; its keys go in the background.
    Fence {
        /// The table.
        table: TableId,
        /// The version the shard must have now; `None`: it must not know the table.
        expect: Option<SchemaVersion>,
        /// The new definition.
        def: Option<Box<TableDef>>,
    },
    /// DDL: write index entries of these rows (latest version, rows gone meanwhile are skipped) for filling indexes.
    Backfill {
        /// The table.
        table: TableId,
        /// Primary keys.
        keys: Vec<Vec<Value>>,
    },
    /// DDL: check these rows against this constraint (a CHECK, NOT NULL or foreign key not yet validated).
    Validate {
        /// The table.
        table: TableId,
        /// Primary keys.
        keys: Vec<Vec<Value>>,
        /// The constraint's name, or a column's for NOT NULL.
        constraint: String,
    },
    /// Removes up to `limit` old keys of a storage id that no table uses any more.
    Purge {
        /// The storage id.
        storage: TableId,
        /// Keys of one step.
        limit: u32,
    },
    /// `s0` only: a catalog key (see [`crate::catalog`]).
    Put {
        /// The encoded key.
        key: Bytes,
        /// The value it must have now; `None`: it must not exist.
        expect: Option<Bytes>,
        /// The new value; `None` deletes it.
        value: Option<Bytes>,
    },
    /// DDL: the table's numbers start again at 1, beside the fence that empties it.
    Restart {
        /// The table.
        table: TableId,
        /// Nothing happens unless the shard has this version before the statement (a repeated step).
        expect: SchemaVersion,
    },
    /// Writes nothing, and yet an entry is appended: nothing at or before its time comes after it any more.
    Close,
}

/// What became of a proposal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct WriteResult {
    /// Rows inserted, updated or deleted (by the statement itself, not by cascades).
    pub rows: u64,
    /// The rows asked for by `want_rows`, all physical columns each.
    pub returned: Vec<Vec<Value>>,
    /// The last number given by `Cell::Next`.
    pub last_id: Option<i64>,
    /// Where it is in the log; 0 if nothing was appended.
    pub index: Index,
    /// The entry's timestamp.
    pub timestamp: Timestamp,
    /// It had been executed before; `returned` may be missing then.
    pub duplicate: bool,
    /// Replicas that had applied it when `wait_for_replicas` ended; `None` if it was not asked for.
    pub replicas: Option<u32>,
    /// Epoch number for the token.
    pub epoch: u64,
}
