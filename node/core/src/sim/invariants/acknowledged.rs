//! An acknowledged write is durable on a majority of the voters, in one term, and applied where it was proposed; an
//! answer that names replicas tells the truth about them.

use std::collections::BTreeMap;

use quorate_shared::ids::{Index, Term};

use crate::error::Rejected;
use crate::proposal::{Proposal, WriteResult};
use crate::sim::store::Content;

#[derive(Default)]
pub struct Acknowledged {
    waits: BTreeMap<u64, u32>,
    pub writes: u64,
    pub highest: Index,
}

impl Acknowledged {
    /// A proposal is given to a shard.
    pub fn proposed(&mut self, ticket: u64, proposal: &Proposal) {
        if proposal.wait_for_replicas > 0 {
            self.waits.insert(ticket, proposal.wait_for_replicas);
        }
    }

    /// It is answered, at a node that has applied up to `here`. `voters`: what is durable in their logs; `readers`: the
    /// furthest each log-shipped replica ever was.
    pub fn answered<'a>(
        &mut self,
        ticket: u64,
        result: &Result<WriteResult, Rejected>,
        here: Index,
        voters: impl Iterator<Item = &'a Content>,
        readers: &[Index],
    ) -> Result<(), String> {
        let wanted = self.waits.remove(&ticket);
        let Ok(done) = result else { return Ok(()) };
        let index = done.index;
        if index == Index::new(0) {
            return Ok(());
        }
        self.writes += 1;
        self.highest = self.highest.max(index);
        if here < index {
            return Err(format!("the write in {index} is acknowledged where only {here} is applied"));
        }
        let mut terms: BTreeMap<Option<Term>, usize> = BTreeMap::new();
        let (mut all, mut behind_base) = (0, 0);
        for content in voters {
            all += 1;
            match content.entries.get(&index) {
                Some(term) => *terms.entry(Some(*term)).or_default() += 1,
                None if content.base.as_ref().is_some_and(|b| b.index >= index) => behind_base += 1,
                None => {}
            }
        }
        let most = terms.values().copied().max().unwrap_or(0) + behind_base;
        if most * 2 <= all {
            return Err(format!("the write in {index} is acknowledged and durable on {most} of {all} voters"));
        }
        let said = done.replicas.unwrap_or(0) as usize;
        if said > readers.iter().filter(|applied| **applied >= index).count() {
            return Err(format!("the write in {index} is said to be on {said} replicas"));
        }
        if wanted.is_some() && done.replicas.is_none() && !done.duplicate {
            return Err(format!("the write in {index} waited for replicas and does not say how many have it"));
        }
        Ok(())
    }
}
