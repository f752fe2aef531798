//! A replica gives at most one vote in a term, over all its lives; who leads has the votes of a quorum of its members.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_shared::ids::{ReplicaId, Term};

use super::Sent;
use crate::log::Membership;
use crate::replica::Claims;

#[derive(Default)]
pub struct Votes {
    given: BTreeMap<(u64, ReplicaId, Term), ReplicaId>,
}

impl Votes {
    /// A message leaves a replica.
    pub fn sent(&mut self, sent: &Sent<'_>, claims: &Claims) -> Result<(), String> {
        let Some(candidate) = claims.votes_for else { return Ok(()) };
        match *self.given.entry((sent.node, sent.from, claims.term)).or_insert(candidate) {
            known if known == candidate => Ok(()),
            known => Err(format!("{} votes for {known} and for {candidate} in {}", sent.from, claims.term)),
        }
    }

    /// A replica leads in a term, among the members of one of these memberships.
    pub fn elected(
        &self,
        (node, replica): (u64, ReplicaId),
        term: Term,
        memberships: &[Arc<Membership>],
    ) -> Result<(), String> {
        let elected = |members: &Arc<Membership>| {
            members.has_quorum(|voter| {
                let given = members.node_of(voter).and_then(|n| self.given.get(&(n.get(), voter, term)));
                voter == replica || given == Some(&replica)
            })
        };
        if memberships.iter().any(elected) {
            return Ok(());
        }
        let voters = memberships.first().map(|m| &m.voters);
        Err(format!("n{node} leads in {term} without the votes of a quorum of {voters:?}"))
    }
}
