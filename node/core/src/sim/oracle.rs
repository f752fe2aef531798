//! The oracle: judges a history by what clients saw, knowing nothing of the insides.

pub mod bank;
pub mod fork;
pub mod linear;
pub mod lists;
pub mod set;

use super::history::History;

/// What is wrong with a history.
pub fn judge(history: &History) -> Result<(), String> {
    bank::check(history)?;
    set::check(history)?;
    fork::check(history)?;
    lists::check(history)?;
    linear::check(history)
}
