//! Which replica a log is: a log-shipped one becomes a member when the membership names it, and goes back when it does
//! not any more.
//!
//! A node joins as a log-shipped replica, so its log holds committed entries only. Once it has applied the change that
//! names it, the same log goes on under the new replica id, which has never voted. The other way, what may not be
//! committed is cut off first. The driver calls [`settle`] when it opens a log, and opens it again when
//! [`replica_of`] says that it has become another replica.
//!
//! Invariants: a log takes an id only if the change that minted it named this very incarnation of the data directory, so
//! a node that begins again from nothing never acts as a replica that may have voted before it; a log acts as one
//! replica at a time.

use quorate_shared::ids::{Nonce, ReplicaId, ShardId};

use crate::bug::{Bug, planted};
use crate::error::Fatal;
use crate::log::{HardState, Log, LogBounds, LogReader, LogRecord, Membership};
use crate::machine::Applied;
use crate::membership::Host;

/// The id that a log of `me` should go by: its own while it is a member, another one if it is named anew,
/// [`ReplicaId::NONE`] if it is to be shipped to. `was` is what it last went by ([`last_id`]).
pub fn replica_of(replica: ReplicaId, was: ReplicaId, me: Host, membership: &Membership) -> ReplicaId {
    if replica != ReplicaId::NONE && membership.contains(replica) {
        return replica;
    }
    let named = membership.member_on(me.node);
    if planted(Bug::AnyIncarnation) && replica == ReplicaId::NONE {
        return named.map_or(ReplicaId::NONE, |m| m.replica);
    }
    let named = named.filter(|m| m.nonce == me.nonce && m.nonce != Nonce::default());
    // Only one minted after those it had: a membership that is behind may still have it under one of them.
    named.filter(|m| m.replica > replica.max(was)).map_or(ReplicaId::NONE, |m| m.replica)
}

/// The last id a log went by while it was a member, remembered where a log-shipped one has no use for a vote.
pub fn last_id(bounds: &LogBounds) -> ReplicaId {
    if bounds.replica == ReplicaId::NONE { bounds.hard.vote } else { bounds.replica }
}

/// Makes the log's id what the membership says, durably; gives it. `applied` is what the machine has applied: of a
/// log-shipped replica everything, of a member all that its log knows to be committed. `left`: some member's applied
/// membership has minted this replica's id and does not have it any more, so it is removed, although it has not heard of
/// it itself: nobody sends to it.
pub fn settle(
    log: &mut dyn Log,
    reader: &dyn LogReader,
    shard: ShardId,
    me: Host,
    applied: &Applied,
    left: bool,
) -> Result<ReplicaId, Fatal> {
    let Some(bounds) = reader.bounds(shard) else {
        return Err(Fatal::new(format!("open {shard}"), "its log is lost: there is no base record"));
    };
    let old = bounds.replica;
    let was = last_id(&bounds);
    let gone = left && old != ReplicaId::NONE;
    let new = if gone { ReplicaId::NONE } else { replica_of(old, was, me, &applied.membership) };
    if new == old {
        return Ok(old);
    }
    let mut records = Vec::new();
    let mut end = (bounds.last, bounds.last_term);
    if old == ReplicaId::NONE {
        if applied.index < bounds.last {
            // Not yet: the machine has not seen everything it is to take part in.
            return Ok(old);
        }
    } else {
        let committed = bounds.committed().max(applied.index);
        if committed < bounds.last && !planted(Bug::KeepUncommitted) {
            if old >= applied.membership.next {
                let cause = "a new epoch was being begun here and is not complete: begin it again";
                return Err(Fatal::new(format!("open {shard}"), cause));
            }
            let term = reader.term(shard, committed)?.unwrap_or(bounds.base.term);
            records.push(LogRecord::Truncate(committed.next()));
            end = (committed, term);
        }
    }
    // The vote of a member is its own business; a log-shipped replica remembers here which ids it may not take again.
    let vote = if new == ReplicaId::NONE { was } else { ReplicaId::NONE };
    let hard = HardState { term: end.1.max(bounds.hard.term), vote, commit: end.0 };
    records.push(LogRecord::Become { replica: new, hard });
    log.append(old, shard, &records)?;
    log.sync()?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_shared::ids::{Epoch, Index, NodeId, Term};
    use std::sync::Arc;

    use super::*;
    use crate::log::memory::{MemoryLog, MemoryReader};
    use crate::log::{BaseRecord, LogEntry, Payload};
    use crate::membership::MembershipChange;

    const S1: ShardId = ShardId::DATA;

    fn host(node: u64, nonce: u8) -> Host {
        Host { node: NodeId::new(node), nonce: Nonce([nonce; 16]) }
    }

    fn three() -> Membership {
        Membership::of_voters((1..=3).map(|n| (ReplicaId::new(n), NodeId::new(n))))
    }

    fn entries(count: u64) -> LogRecord {
        let one = |n| LogEntry {
            index: Index::new(n),
            term: Term::new(2),
            payload: Payload::Entry,
            bytes: Bytes::from(vec![7; 3]),
        };
        LogRecord::Entries((1..=count).map(one).collect())
    }

    fn applied(index: u64, membership: Membership) -> Applied {
        Applied { index: Index::new(index), membership: Arc::new(membership), ..Applied::default() }
    }

    fn log(replica: ReplicaId, count: u64) -> (MemoryLog, Arc<MemoryReader>) {
        let (mut log, reader) = MemoryLog::new();
        log.append(replica, S1, &[LogRecord::Base(BaseRecord::founding(S1, three(), Epoch::default()))]).unwrap();
        log.append(replica, S1, &[entries(count)]).unwrap();
        (log, reader)
    }

    #[test]
    fn only_the_named_incarnation_takes_the_id() {
        let named = three().after(&MembershipChange::AddLearner(host(4, 9))).unwrap();
        for (me, becomes) in [(host(4, 9), 4), (host(4, 8), 0), (host(5, 9), 0)] {
            let (mut log, reader) = log(ReplicaId::NONE, 5);
            let id = settle(&mut log, &*reader, S1, me, &applied(5, named.clone()), false).unwrap();
            assert_eq!(id, ReplicaId::new(becomes), "{me:?}");
            let bounds = reader.bounds(S1).unwrap();
            assert_eq!((bounds.replica, bounds.last.get()), (id, 5));
            if becomes == 4 {
                let fresh = HardState { term: Term::new(2), vote: ReplicaId::NONE, commit: Index::new(5) };
                assert_eq!(bounds.hard, fresh);
            }
        }
        // What is not applied yet may say otherwise.
        let (mut log, reader) = log(ReplicaId::NONE, 5);
        assert_eq!(settle(&mut log, &*reader, S1, host(4, 9), &applied(4, named), false).unwrap(), ReplicaId::NONE);
    }

    #[test]
    fn a_wiped_voter_is_shipped_to_and_never_takes_its_old_id() {
        let (mut log, reader) = log(ReplicaId::NONE, 5);
        assert_eq!(settle(&mut log, &*reader, S1, host(2, 9), &applied(5, three()), false).unwrap(), ReplicaId::NONE);
        let change = MembershipChange::Replace { remove: ReplicaId::new(2), learner: host(2, 9) };
        let joint = three().after(&change).unwrap();
        assert_eq!(settle(&mut log, &*reader, S1, host(2, 9), &applied(5, joint), false).unwrap(), ReplicaId::new(4));
    }

    #[test]
    fn who_is_removed_keeps_what_is_committed() {
        let (mut log, reader) = log(ReplicaId::new(2), 5);
        let hard = HardState { term: Term::new(3), vote: ReplicaId::new(2), commit: Index::new(3) };
        log.append(ReplicaId::new(2), S1, &[LogRecord::Hard(hard)]).unwrap();
        assert_eq!(
            settle(&mut log, &*reader, S1, host(2, 9), &applied(3, three()), false).unwrap(),
            ReplicaId::new(2),
            "it is a member"
        );
        let gone = three().after(&MembershipChange::Remove(ReplicaId::new(2))).unwrap();
        assert_eq!(
            settle(&mut log, &*reader, S1, host(2, 9), &applied(3, gone.clone()), false).unwrap(),
            ReplicaId::NONE
        );
        let bounds = reader.bounds(S1).unwrap();
        assert_eq!((bounds.last.get(), bounds.hard.vote, bounds.hard.commit.get()), (3, ReplicaId::new(2), 3));
        let again = gone.after(&MembershipChange::AddLearner(host(2, 9))).unwrap();
        assert_eq!(settle(&mut log, &*reader, S1, host(2, 9), &applied(3, again), false).unwrap(), ReplicaId::new(4));
    }

    #[test]
    fn who_has_left_without_hearing_of_it_never_takes_its_id_again() {
        let named = three().after(&MembershipChange::AddLearner(host(4, 9))).unwrap();
        let (mut log, reader) = log(ReplicaId::NONE, 5);
        let mut go = |membership: &Membership, left| {
            settle(&mut log, &*reader, S1, host(4, 9), &applied(5, membership.clone()), left).unwrap()
        };
        assert_eq!(go(&named, false), ReplicaId::new(4));
        assert_eq!(go(&named, true), ReplicaId::NONE);
        assert_eq!(go(&named, false), ReplicaId::NONE, "what it has applied still names it");
        let gone = named.after(&MembershipChange::Remove(ReplicaId::new(4))).unwrap();
        let again = gone.after(&MembershipChange::AddLearner(host(4, 9))).unwrap();
        assert_eq!(go(&again, false), ReplicaId::new(5));
    }
}
