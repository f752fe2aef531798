//! A shard's refusal as the client sees it: PostgreSQL's SQLSTATEs, details and hints.

use quorate_core::error::{Fatal, Rejected};
use quorate_shared::error::{Code, WireError};

use crate::router::ProposeError;

/// An error of the way to a shard, or its answer.
pub fn propose_error(error: ProposeError) -> WireError {
    match error {
        ProposeError::Rejected(rejected) => wire_error(rejected),
        ProposeError::Wire(error) => error,
    }
}

/// A local failure while reading; what it was goes to the log, not to the client.
pub fn read_error(error: &Fatal) -> WireError {
    tracing::error!(%error, "a read failed");
    WireError::new(Code::Internal, "the storage of this node failed")
        .hint("see the node's log; another node can answer")
}

/// A refusal as the client sees it.
pub fn wire_error(rejected: Rejected) -> WireError {
    let message = rejected.to_string();
    match rejected {
        Rejected::NotLeader(_) | Rejected::Retry(_) => WireError::new(Code::Retry, message).hint("send it again"),
        Rejected::Unknown(_) => WireError::new(Code::Unknown, message)
            .hint("look whether the change is there before sending it again under a new id"),
        Rejected::Busy => WireError { sqlstate: Some("53300".into()), ..WireError::new(Code::Busy, message) }
            .hint("send less at once or later"),
        Rejected::Conflict => WireError::sql("40001", message)
            .hint("nothing was written; run the statement again, or name the rows by their key"),
        Rejected::StaleCatalog { current: None, .. } => {
            WireError::sql("42P01", "the table was dropped meanwhile").hint("nothing was written")
        }
        Rejected::StaleCatalog { .. } => WireError::sql("40001", "the table was altered meanwhile")
            .hint("nothing was written; run the statement again"),
        Rejected::Duplicate { detail, .. } => {
            WireError::sql("23505", message).detail(format!("Key {detail} already exists."))
        }
        Rejected::NotNull { column, .. } => {
            WireError::sql("23502", message).hint(format!("give \"{column}\" a value, or the column a DEFAULT"))
        }
        Rejected::Check { .. } => WireError::sql("23514", message),
        Rejected::NoParent { detail, .. } => WireError::sql("23503", message).detail(format!("Key {detail}.")),
        Rejected::HasChildren { child, .. } => WireError::sql("23503", message)
            .detail(format!("rows of table \"{child}\" still refer to it"))
            .hint(format!("delete or change those of \"{child}\" first, or declare ON DELETE CASCADE")),
        Rejected::Value { sqlstate, message } => WireError::sql(&sqlstate, message),
        Rejected::TooLarge { .. } => WireError::sql("54000", message).hint("split the statement into several"),
        Rejected::CatalogChanged => {
            WireError::sql("40001", "another change of the catalog was faster").hint("run the statement again")
        }
        // Not `busy`: it would be tried again in silence until the deadline, and nothing changes until somebody acts.
        Rejected::DiskLow => WireError { sqlstate: Some("53100".into()), ..WireError::new(Code::Denied, message) }
            .hint("writes are refused until there is room on the leader's disk; reads go on"),
    }
}
