//! Committed entries never change: what a node hands to its applier at an index is what every other did, or will.

use std::collections::BTreeMap;

use quorate_shared::ids::{Index, Term};

use crate::log::{LogEntry, Payload};

#[derive(Default)]
pub struct Committed {
    known: BTreeMap<Index, (Term, Payload8, u32)>,
}

type Payload8 = u8;

impl Committed {
    /// A node hands these to its applier.
    pub fn commits(&mut self, node: u64, entries: &[LogEntry]) -> Result<(), String> {
        for entry in entries {
            let payload = match entry.payload {
                Payload::Entry => 0,
                Payload::Empty => 1,
                Payload::Membership => 2,
            };
            let new = (entry.term, payload, crc32c::crc32c(&entry.bytes));
            let known = *self.known.entry(entry.index).or_insert(new);
            if known != new {
                return Err(format!("n{node} commits another entry {} of term {}", entry.index, entry.term));
            }
        }
        Ok(())
    }

    /// The term of a committed entry.
    pub fn term(&self, index: Index) -> Option<Term> {
        self.known.get(&index).map(|(term, ..)| *term)
    }

    /// The last.
    pub fn last(&self) -> Index {
        self.known.last_key_value().map_or(Index::new(0), |(index, _)| *index)
    }
}
