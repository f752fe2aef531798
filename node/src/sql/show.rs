//! `SHOW …` and `DESCRIBE`: the catalog and the session's settings as small results.

use quorate_shared::error::WireError;
use quorate_shared::limits::DATABASE_SYSTEM;
use quorate_shared::wire::Done;
use sqlparser::ast::Statement;

use super::Sink;
use super::errors::nearest;
use super::parse::Parsed;
use super::session::Run;

/// Whether [`run`] answers it.
pub fn handles(_statement: &Statement) -> bool {
    false
}

/// Runs it.
///
/// # Errors
/// What it names does not exist.
pub async fn run(_run: &Run, parsed: &Parsed, _sink: &mut dyn Sink) -> Result<Done, WireError> {
    Err(WireError::unsupported(parsed.verb()))
}

/// Fails if there is no such database.
///
/// # Errors
/// `3D000`.
pub fn check_database(run: &Run, name: &str) -> Result<(), WireError> {
    let catalog = run.router.catalog();
    if catalog.databases.contains_key(name) || name == DATABASE_SYSTEM {
        return Ok(());
    }
    let names: Vec<&str> = catalog.databases.keys().map(String::as_str).collect();
    let error = WireError::sql("3D000", format!("database \"{name}\" does not exist"));
    Err(match nearest(name, &names) {
        Some(near) => error.hint(format!("did you mean \"{near}\"?")),
        None => error.hint("SHOW DATABASES lists those there are"),
    })
}
