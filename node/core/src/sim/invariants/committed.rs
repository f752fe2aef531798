//! Committed entries never change: what a node hands to its applier at an index is what every other did, or will.

use std::collections::BTreeMap;

use quorate_shared::ids::{Epoch, Index, Term};

use super::lineage::Lineage;
use super::members::{Members, epoch_of};
use crate::log::{LogEntry, Payload};

#[derive(Default)]
pub struct Committed {
    known: BTreeMap<(Epoch, Index), (Term, Payload8, u32)>,
}

type Payload8 = u8;

impl Committed {
    /// A node hands these to its applier.
    pub fn commits(
        &mut self,
        node: u64,
        entries: &[LogEntry],
        lineage: &mut Lineage,
        members: &mut Members,
    ) -> Result<(), String> {
        for entry in entries {
            if let Some((epoch, _)) = epoch_of(entry) {
                lineage.enters(node, epoch)?;
            }
            let payload = match entry.payload {
                Payload::Entry => 0,
                Payload::Empty => 1,
                Payload::Membership => 2,
            };
            let epoch = lineage.of_node(node);
            let new = (entry.term, payload, crc32c::crc32c(&entry.bytes));
            let mut first = false;
            let known = *self.known.entry((lineage.home(epoch, entry.index), entry.index)).or_insert_with(|| {
                first = true;
                new
            });
            let adopted = |epoch| *self.known.entry((epoch, entry.index)).or_insert(new) == new;
            if known != new && !lineage.adopters(epoch, entry.index).any(adopted) {
                return Err(format!("n{node} commits another entry {} of term {}", entry.index, entry.term));
            }
            if first {
                members.committed(lineage, epoch, entry)?;
            }
        }
        Ok(())
    }

    /// The last of an epoch's history.
    pub fn last(&self, epoch: Epoch) -> Index {
        let of = (epoch, Index::new(0))..=(epoch, Index::new(u64::MAX));
        self.known.range(of).next_back().map_or(Index::new(0), |((_, index), _)| *index)
    }
}
