//! A replica gives at most one vote in a term, over all its lives.

use std::collections::BTreeMap;

use quorate_shared::ids::{ReplicaId, Term};

use super::Sent;
use crate::replica::Claims;

#[derive(Default)]
pub struct Votes {
    given: BTreeMap<(ReplicaId, Term), ReplicaId>,
}

impl Votes {
    /// A message leaves a replica.
    pub fn sent(&mut self, sent: &Sent<'_>, claims: &Claims) -> Result<(), String> {
        let Some(candidate) = claims.votes_for else { return Ok(()) };
        match *self.given.entry((sent.from, claims.term)).or_insert(candidate) {
            known if known == candidate => Ok(()),
            known => Err(format!("{} votes for {known} and for {candidate} in {}", sent.from, claims.term)),
        }
    }
}
