//! A table as a data shard knows it: enough to encode rows, keep indexes and check constraints without the catalog.
//!
//! A fence entry puts a [`TableDef`] into the shard, so a write planned under another version is refused there. The
//! catalog's descriptor holds the same definition.
//!
//! Invariants: physical columns are only ever added; a dropped column stays as a hole, so a row written under any older
//! version decodes by position; `version` grows with every change.

use quorate_shared::ids::{IndexId, SchemaVersion, TableId};
use quorate_shared::value::{SqlType, Value};
use serde::{Deserialize, Serialize};

use crate::expr::Expr;

/// Position of a column in [`TableDef::columns`].
pub type ColumnPos = u16;

/// Where a column's value comes from when an INSERT does not give one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum DefaultValue {
    /// NULL.
    None,
    /// An SQL expression without columns, as text; the router evaluates it before proposing.
    Sql(String),
    /// The table's next number (SERIAL, AUTO_INCREMENT, hidden row id), given by the sequencer.
    Sequence,
}

/// A column.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ColumnDef {
    /// Its name in the spelling of its creation; compared without case.
    pub name: String,
    /// Its type.
    pub ty: SqlType,
    /// NULL is refused.
    pub not_null: bool,
    /// For inserts that leave it out.
    pub default: DefaultValue,
    /// What rows have that were written before the column was added.
    pub added: Value,
    /// Not shown by `SELECT *` (the hidden row id).
    pub hidden: bool,
    /// A hole left by DROP COLUMN.
    pub dropped: bool,
}

/// How far an index is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum IndexState {
    /// Writers maintain it, nobody reads it.
    Filling,
    /// In use.
    Public,
}

/// A secondary index.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct IndexDef {
    /// Unique in the table; never 0 (the primary key) and never reused.
    pub id: IndexId,
    /// Its name (the constraint's for a UNIQUE constraint).
    pub name: String,
    /// Indexed columns, in order.
    pub columns: Vec<ColumnPos>,
    /// No two rows agree in all columns (rows with a NULL among them never agree).
    pub unique: bool,
    /// How far it is.
    pub state: IndexState,
    /// Made by a UNIQUE or PRIMARY KEY constraint rather than CREATE INDEX.
    pub constraint: bool,
    /// Backs a primary key that was added when rows already existed.
    pub primary: bool,
}

/// A CHECK constraint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CheckDef {
    /// Its name.
    pub name: String,
    /// The expression as the user wrote it.
    pub sql: String,
    /// The expression over the row; NULL passes.
    pub expr: Expr,
}

/// What happens to children.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FkAction {
    /// Refused if children remain when the statement ends.
    NoAction,
    /// Refused (checked when the statement ends as well: one statement is one step).
    Restrict,
    /// Children follow.
    Cascade,
    /// Children's columns become NULL.
    SetNull,
}

/// A foreign key, on the child's side. The parent's columns are its primary key or a unique index.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ForeignKeyDef {
    /// Its name.
    pub name: String,
    /// The child's columns.
    pub columns: Vec<ColumnPos>,
    /// The parent table's catalog id (not its storage; survives TRUNCATE).
    pub parent: TableId,
    /// The parent's columns, in the same order.
    pub parent_columns: Vec<ColumnPos>,
    /// ON DELETE.
    pub on_delete: FkAction,
    /// ON UPDATE.
    pub on_update: FkAction,
    /// Existing rows have been validated; new rows are checked from the start.
    pub validated: bool,
}

/// A table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TableDef {
    /// The catalog's id: names the table for its whole life.
    pub id: TableId,
    /// The `<table>` of its data keys; a new one after TRUNCATE.
    pub storage: TableId,
    /// Grows with every change.
    pub version: SchemaVersion,
    /// Its name, for messages.
    pub name: String,
    /// Physical columns.
    pub columns: Vec<ColumnDef>,
    /// Columns of the key under which rows are stored; a hidden row id if none was declared.
    pub primary_key: Vec<ColumnPos>,
    /// Name of the primary key constraint.
    pub primary_key_name: String,
    /// Secondary indexes.
    pub indexes: Vec<IndexDef>,
    /// CHECK constraints.
    pub checks: Vec<CheckDef>,
    /// Foreign keys of this table.
    pub foreign_keys: Vec<ForeignKeyDef>,
    /// Next id of an index.
    pub next_index: IndexId,
}
