//! Two kinds of failure that must never be mixed.
//!
//! [`Rejected`] is an answer: part of the reply, contains nothing local. [`Fatal`] is local and unrecoverable: the
//! replica stops and is rebuilt, it never diverges.

use quorate_shared::ids::{NodeId, SchemaVersion, TableId};
use serde::{Deserialize, Serialize};

/// Why a proposal was not executed. The same for everyone who asks; carries no path, errno or clock reading.
#[derive(thiserror::Error, Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Rejected {
    /// This replica does not lead; the leader where known.
    #[error("not the leader")]
    NotLeader(Option<NodeId>),
    /// Nothing happened; ask again (a leader that is not ready, a void entry, a lost leadership before the append).
    #[error("try again: {0}")]
    Retry(String),
    /// It was appended; whether it commits is not known any more.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// Too much in flight.
    #[error("too many proposals in flight")]
    Busy,
    /// A row or range that was read has changed since.
    #[error("a concurrent write changed what this statement read")]
    Conflict,
    /// Planned under an older schema than the shard's.
    #[error("the schema of {table} changed")]
    StaleCatalog {
        /// The table.
        table: TableId,
        /// What the shard has now; `None` if the table is gone.
        current: Option<SchemaVersion>,
    },
    /// A unique or primary key exists already.
    #[error("duplicate key value violates unique constraint \"{constraint}\"")]
    Duplicate {
        /// The table's name.
        table: String,
        /// The constraint's name.
        constraint: String,
        /// `(a, b)=(1, 2)`.
        detail: String,
    },
    /// NULL in a NOT NULL column.
    #[error("null value in column \"{column}\" of table \"{table}\" violates not-null constraint")]
    NotNull {
        /// The table's name.
        table: String,
        /// The column's name.
        column: String,
    },
    /// A CHECK is false.
    #[error("new row of table \"{table}\" violates check constraint \"{constraint}\"")]
    Check {
        /// The table's name.
        table: String,
        /// The constraint's name.
        constraint: String,
    },
    /// A child row would have no parent.
    #[error("insert or update on table \"{table}\" violates foreign key constraint \"{constraint}\"")]
    NoParent {
        /// The child table's name.
        table: String,
        /// The constraint's name.
        constraint: String,
        /// `(artist_id)=(7) is not present in table "artist"`.
        detail: String,
    },
    /// A parent row still has children.
    #[error(
        "update or delete on table \"{table}\" violates foreign key constraint \"{constraint}\" on table \"{child}\""
    )]
    HasChildren {
        /// The parent table's name.
        table: String,
        /// The constraint's name.
        constraint: String,
        /// The child table's name.
        child: String,
        /// `(id)=(1) is still referenced from table "album"`.
        detail: String,
    },
    /// A value cannot be computed or does not fit: SQLSTATE and message.
    #[error("{message}")]
    Value {
        /// e.g. `22003` out of range, `22012` division by zero, `22001` too long.
        sqlstate: String,
        /// What does not fit where.
        message: String,
    },
    /// More than one entry can hold.
    #[error("the statement writes {bytes} bytes; one statement may write at most {limit}")]
    TooLarge {
        /// What it would take.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A precondition on a catalog key does not hold (another DDL was faster).
    #[error("the catalog changed")]
    CatalogChanged,
    /// The free space of the disk is below the reserve.
    #[error("the disk is almost full")]
    DiskLow,
}

/// Local and unrecoverable: this replica stops. Neither `Clone` nor serializable, on purpose.
#[derive(thiserror::Error, Debug)]
#[error("{doing}: {cause}")]
pub struct Fatal {
    /// What was being done, e.g. `append to the log`.
    pub doing: String,
    /// Why it failed.
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

impl Fatal {
    /// A fatal error while doing something.
    pub fn new(doing: impl Into<String>, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { doing: doing.into(), cause: cause.into() }
    }
}
