//! Functions that PostgreSQL's and MySQL's users expect and the planner lacks, and arithmetic that does not wrap.

use datafusion::common::Result;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};

/// What functions may know of their session.
#[derive(Clone, Debug, Default)]
pub struct SessionFacts {
    /// `current_user`.
    pub user: String,
    /// `current_database()`.
    pub database: String,
    /// `connection_id()`.
    pub session: u64,
}

/// Whether a function is ours only, not for users.
pub fn is_internal(name: &str) -> bool {
    matches!(name, "+" | "-" | "*" | "to_json_text")
}

/// Rules added to the planner.
pub fn add_rules(builder: SessionStateBuilder) -> SessionStateBuilder {
    builder
}

/// Registers every function.
///
/// # Errors
/// None that a user could cause.
pub fn register(_state: &mut SessionState) -> Result<()> {
    Ok(())
}
