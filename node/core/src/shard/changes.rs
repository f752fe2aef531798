//! Changes of the membership: what the leader looks at before it proposes one, and who waits for it.
//!
//! The protocol sees that a change is possible; here it is seen to that it is wise: the voters that would decide must be
//! there, a learner must have caught up before it counts, the leader never removes itself but hands over. A joint
//! membership is left by whoever leads, also after a crash of the one that entered it.

use std::sync::Arc;

use quorate_shared::ids::{Epoch, Index, ReplicaId};

use super::{Effect, Input, Shard, Ticket};
use crate::error::{Fatal, Rejected};
use crate::log::{LogEntry, Membership};
use crate::machine::Applied;
use crate::membership::{MembershipChange, Refused};
use crate::replica::Now;

/// Entries a learner may be behind when it is made a voter: it has them in a moment.
const BEHIND_MAX: u64 = 1_000;

/// A change that is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The last entry it took.
    pub index: Index,
    /// The membership now.
    pub membership: Arc<Membership>,
}

#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    change: MembershipChange,
    deadline: Now,
}

/// See the module. One change at a time.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Not proposed yet.
    asked: Option<Asked>,
    /// In the log: the entry, and who waits (nobody for a joint membership found by a new leader).
    proposed: Option<(Index, Option<Asked>)>,
}

impl Changes {
    fn is_busy(&self) -> bool {
        self.asked.is_some() || self.proposed.is_some()
    }

    /// Leadership is lost: what is in the log may still be applied, but not by this leader.
    pub(super) fn lose(&mut self, effects: &mut Vec<Effect>) {
        if let Some(asked) = self.asked.take() {
            effects.push(Effect::Changed { ticket: asked.ticket, result: Err(Refused::NotLeader(None)) });
        }
        if let Some((_, Some(asked))) = self.proposed.take() {
            effects.push(Effect::Changed { ticket: asked.ticket, result: Err(Refused::Unknown) });
        }
    }

    /// Entries are applied: a change is done when its last one is, and nothing is joint any more.
    pub(super) fn applied(&mut self, applied: &Applied, effects: &mut Vec<Effect>) {
        let Some((index, asked)) = self.proposed.take_if(|(index, _)| *index <= applied.index) else { return };
        let Some(asked) = asked else { return };
        if applied.membership.is_joint() {
            // Goes on with the entry that leaves it.
            self.asked = Some(Asked { change: MembershipChange::Leave, ..asked });
            return;
        }
        let membership = Arc::clone(&applied.membership);
        effects.push(Effect::Changed { ticket: asked.ticket, result: Ok(Changed { index, membership }) });
    }

    /// Answers whoever has waited too long. What is proposed goes on.
    pub(super) fn expire(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let Some(asked) = self.asked.take_if(|a| a.deadline <= now) {
            let result = match asked.change {
                MembershipChange::Leave => Err(Refused::Unknown),
                _ => Err(Refused::NotReady("its deadline has passed".into())),
            };
            effects.push(Effect::Changed { ticket: asked.ticket, result });
        }
        if let Some((_, asked)) = &mut self.proposed
            && let Some(asked) = asked.take_if(|a| a.deadline <= now)
        {
            effects.push(Effect::Changed { ticket: asked.ticket, result: Err(Refused::Unknown) });
        }
    }
}

impl Shard {
    /// Looks at a change somebody wants.
    pub(super) fn ask_change(
        &mut self,
        now: Now,
        (ticket, change, deadline): (Ticket, MembershipChange, Now),
        effects: &mut Vec<Effect>,
    ) -> Result<(), Fatal> {
        match self.allow_change(now, &change) {
            Ok(()) => self.changes.asked = Some(Asked { ticket, change, deadline }),
            Err(refused) => {
                if matches!(refused, Refused::Leads(_)) {
                    self.replicator.transfer(now, None)?;
                }
                effects.push(Effect::Changed { ticket, result: Err(refused) });
            }
        }
        Ok(())
    }

    fn allow_change(&self, now: Now, change: &MembershipChange) -> Result<(), Refused> {
        let leadership = self.replicator.leadership();
        if !leadership.is_leader {
            let leader = leadership.leader.filter(|r| *r != self.config.replica);
            return Err(Refused::NotLeader(leader.and_then(|r| self.node_of(r))));
        }
        let membership = &self.applied.membership;
        if self.changes.is_busy() || membership.is_joint() {
            return Err(Refused::InProgress);
        }
        let after = membership.after(change)?;
        if !after.voters.iter().any(|m| m.replica == self.config.replica) {
            return Err(Refused::Leads(self.config.replica));
        }
        if self.sequencer.is_none() {
            return Err(Refused::NotReady("it has not applied its whole log yet".into()));
        }
        if self.replicator.transferring() {
            return Err(Refused::NotReady("it is handing leadership over".into()));
        }
        if !self.replicator.confirmed(now) {
            return Err(Refused::NotReady("no quorum has answered lately".into()));
        }
        let learns = matches!(change, MembershipChange::AddLearner(_) | MembershipChange::Replace { .. });
        if learns && !self.replicator.capabilities().learners {
            return Err(Refused::Unsupported("learners".into()));
        }
        self.allow_voters(now, change, &after)
    }

    /// The voters that would decide must be there, a new one among them nearly up to date.
    fn allow_voters(&self, now: Now, change: &MembershipChange, after: &Membership) -> Result<(), Refused> {
        let progress = self.replicator.progress(now);
        let patience = self.config.timing.election_max;
        let alive = |replica: ReplicaId| {
            replica == self.config.replica
                || progress.iter().any(|p| p.replica == replica && p.heard.is_some_and(|age| age <= patience))
        };
        if let MembershipChange::Promote(replica) = *change {
            let durable = progress.iter().find(|p| p.replica == replica).map_or(Index::new(0), |p| p.durable);
            let behind = self.replicator.commit_index().get().saturating_sub(durable.get());
            if behind > BEHIND_MAX || !alive(replica) {
                return Err(Refused::NotCaughtUp { replica, behind });
            }
        }
        // One that votes at once has not been heard of: it does not count as there.
        if after.voters == self.applied.membership.voters || after.has_quorum(alive) {
            return Ok(());
        }
        let alive = after.voters.iter().filter(|m| alive(m.replica)).count();
        Err(Refused::WouldLoseQuorum { alive, voters: after.voters.len() })
    }

    /// Proposes what is asked for, or the way out of a joint membership.
    pub(super) fn start_change(&mut self, now: Now, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if self.sequencer.is_none() || self.changes.proposed.is_some() || self.replicator.transferring() {
            return Ok(());
        }
        let leave = || MembershipChange::Leave;
        let change = match &self.changes.asked {
            Some(asked) => asked.change,
            None if self.applied.membership.is_joint() => leave(),
            None => return Ok(()),
        };
        match self.replicator.change(now, &change)? {
            Ok(entry) => self.follow_change(&entry),
            // It waits for the leader's own entries, or for an earlier change, to be applied.
            Err(Refused::InProgress | Refused::NotReady(_)) => Ok(()),
            Err(refused) => {
                if let Some(asked) = self.changes.asked.take() {
                    effects.push(Effect::Changed { ticket: asked.ticket, result: Err(refused) });
                }
                Ok(())
            }
        }
    }

    fn follow_change(&mut self, entry: &LogEntry) -> Result<(), Fatal> {
        if let Some(sequencer) = &mut self.sequencer {
            sequencer.follow(entry)?;
        }
        self.changes.proposed = Some((entry.index, self.changes.asked.take()));
        Ok(())
    }

    /// A newer epoch: this replica says nothing and promises nothing any more.
    pub(super) fn fence(&mut self, now: Now, epoch: Epoch, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if epoch.number <= self.applied.epoch.number {
            return Ok(());
        }
        self.replicator.step_down(now)?;
        self.note_leadership(now, effects)?;
        self.homeless_until = Some(now);
        self.send_homeless(now, effects);
        self.writes.orphan(now);
        self.writes.expire(now, effects);
        self.waits.expire(now, &self.lag, effects);
        self.fenced = Some(epoch);
        Ok(())
    }

    /// What is still answered: that somebody else leads.
    pub(super) fn step_fenced(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        match input {
            Input::Propose { ticket, .. } => {
                effects.push(Effect::Reply { ticket, result: Err(Rejected::NotLeader(None)) });
            }
            Input::Read { ticket, .. } => {
                effects.push(Effect::ReadReady { ticket, result: Err(Rejected::NotLeader(None)) });
            }
            Input::Change { ticket, .. } => {
                effects.push(Effect::Changed { ticket, result: Err(Refused::NotLeader(None)) });
            }
            Input::Applied(applied) => return self.note_applied(now, applied, effects),
            Input::Fence(epoch) => self.fenced = self.fenced.max(Some(epoch)),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
