//! The set: nothing is in it that was not added or that was refused; a linearizable read sees everything whose addition
//! had ended before it began.

use std::collections::BTreeMap;

use crate::sim::history::{Did, Ended, History, What};
use crate::sim::reads::{Level, Query};
use crate::sim::workload::SET;

/// See the module.
pub fn check(history: &History) -> Result<(), String> {
    // When an addition is known to have ended; never: unknown. Refused ones are not in it.
    let mut added: BTreeMap<i64, u64> = BTreeMap::new();
    for operation in &history.operations {
        if let What::Write(Did::Add(id)) = &operation.what
            && !matches!(operation.end, Ended::Refused(_))
        {
            added.insert(*id, operation.until());
        }
    }
    for operation in &history.operations {
        let (What::Read(level, Query::Range(SET, _)), Ended::Read(read)) = (&operation.what, &operation.end) else {
            continue;
        };
        let (client, at) = (operation.client, operation.ended);
        let mut seen = read.rows.iter().map(|row| row.id).peekable();
        for (&id, &until) in &added {
            let there = seen.next_if_eq(&id).is_some();
            if !there && *level == Level::Linearizable && until < operation.begun {
                return Err(format!("client {client} at {at} does not see {id}, added by {until}"));
            }
            if let Some(strange) = seen.next_if(|seen| *seen < id) {
                return Err(format!("client {client} at {at} sees {strange}, which nobody has added"));
            }
        }
        // What is left may have been added by an operation that has not ended when the run did.
        if let Some(strange) = seen.next() {
            return Err(format!("client {client} at {at} sees {strange}, which nobody has added"));
        }
    }
    Ok(())
}
