//! Nothing is sent before what it depends on is durable: a term before any message of it, a vote before it is given, an
//! entry before it is acknowledged.

use super::Sent;
use crate::replica::Claims;

/// See the module.
pub fn check(sent: &Sent<'_>, claims: &Claims) -> Result<(), String> {
    let Sent { from, to, durable, .. } = sent;
    if !claims.speculative && durable.hard.term < claims.term && durable.paxos.is_none() {
        let has = durable.hard.term;
        return Err(format!("{from} speaks to {to} in term {}, its durable term is {has}", claims.term));
    }
    if let Some(candidate) = claims.votes_for
        && (durable.hard.term == claims.term && durable.hard.vote != candidate)
    {
        return Err(format!(
            "{from} votes for {candidate} in {}, durable is a vote for {}",
            claims.term, durable.hard.vote
        ));
    }
    if let Some(index) = claims.has
        && index > durable.last()
    {
        return Err(format!("{from} acknowledges {index} to {to}, durable is {}", durable.last()));
    }
    Ok(())
}
