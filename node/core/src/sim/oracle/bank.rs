//! The bank: whoever reads all accounts at once sees all the money, at every level.

use crate::sim::history::{Ended, History, What};
use crate::sim::reads::Query;
use crate::sim::workload::{ACCOUNTS, BALANCE};

/// See the module.
pub fn check(history: &History) -> Result<(), String> {
    for operation in &history.operations {
        let (What::Read(level, Query::Rows(ids)), Ended::Read(read)) = (&operation.what, &operation.end) else {
            continue;
        };
        if ids.len() as i64 != ACCOUNTS || ids[0] != 0 || read.rows.len() != ids.len() {
            continue;
        }
        let sum: i64 = read.rows.iter().map(|row| row.n).sum();
        if sum != ACCOUNTS * BALANCE {
            let (client, at, index) = (operation.client, operation.ended, read.index);
            return Err(format!("client {client} at {at} sees {sum} in the bank, read {level:?} as of {index}"));
        }
    }
    Ok(())
}
