//! Long fork: of the same lists read together, all reads are in one order, wherever they were made.

use std::collections::BTreeMap;

use crate::sim::history::{Ended, History, What};
use crate::sim::reads::Query;

/// What a read saw of its lists: lengths; who, when.
type Seen = (Vec<usize>, u64, u64);

/// See the module.
pub fn check(history: &History) -> Result<(), String> {
    let mut reads: BTreeMap<&[i64], Vec<Seen>> = BTreeMap::new();
    for operation in &history.operations {
        let (What::Read(_, Query::Rows(ids)), Ended::Read(read)) = (&operation.what, &operation.end) else { continue };
        let length = |id: &i64| read.rows.iter().find(|row| row.id == *id).map_or(0, |row| row.list.len());
        let lengths: Vec<usize> = ids.iter().map(length).collect();
        reads.entry(ids).or_default().push((lengths, operation.client, operation.ended));
    }
    for (ids, mut reads) in reads {
        reads.sort_by_key(|(lengths, ..)| lengths.iter().sum::<usize>());
        for pair in reads.windows(2) {
            let [(a, client, at), (b, other, then)] = pair else { continue };
            if a.iter().zip(b).any(|(a, b)| a > b) {
                return Err(format!(
                    "lists {ids:?}: client {client} at {at} sees lengths {a:?}, client {other} at {then} sees {b:?}"
                ));
            }
        }
    }
    Ok(())
}
