//! An acknowledged write is durable on a quorum of the voters, in one term, and applied where it was proposed; an answer
//! that names replicas tells the truth about them. Voters may have changed since the write was appended: those of one of
//! the memberships that have held since must have it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_shared::ids::{Index, Term};

use crate::error::Rejected;
use crate::log::Membership;
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

    /// It is answered, at a node that has applied up to `here`. `logs`: what is durable, by node; `members`: the
    /// memberships since the write; `readers`: the furthest each log-shipped replica ever was.
    pub fn answered<'a>(
        &mut self,
        ticket: u64,
        result: &Result<WriteResult, Rejected>,
        here: Index,
        logs: impl Iterator<Item = (u64, &'a Content)>,
        members: impl FnOnce(Index) -> Vec<Arc<Membership>>,
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
        let mut have: BTreeMap<Option<Term>, BTreeSet<u64>> = BTreeMap::new();
        for (node, content) in logs {
            match content.entries.get(&index) {
                Some(term) => drop(have.entry(Some(*term)).or_default().insert(node)),
                None if content.base.as_ref().is_some_and(|b| b.index >= index) => {
                    have.entry(None).or_default().insert(node);
                }
                None => {}
            }
        }
        let behind_base = have.remove(&None).unwrap_or_default();
        let memberships = members(index);
        let durable = |members: &Membership, having: &BTreeSet<u64>| {
            members.has_quorum(|replica| {
                let node = members.node_of(replica).map(|node| node.get());
                node.is_some_and(|node| having.contains(&node) || behind_base.contains(&node))
            })
        };
        let empty = [BTreeSet::new()];
        let durable = |m: &Arc<Membership>| have.values().chain(&empty).any(|having| durable(m, having));
        if !memberships.iter().any(durable) {
            let voters = memberships.last().map(|m| m.voters.clone());
            return Err(format!(
                "the write in {index} is acknowledged and not durable on a quorum of {voters:?}: {have:?}"
            ));
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
