//! `EXPLAIN [ANALYZE]`: the plan as text, one line per step, with shard, index and key range of every scan.

use quorate_shared::error::WireError;
use quorate_shared::wire::Done;

use super::parse::Parsed;
use super::session::Run;
use super::{Sink, show};

/// Runs EXPLAIN or DESCRIBE.
///
/// # Errors
/// What planning the statement refuses.
pub async fn run(run: &Run, parsed: &Parsed, sink: &mut dyn Sink) -> Result<Done, WireError> {
    show::run(run, parsed, sink).await
}
