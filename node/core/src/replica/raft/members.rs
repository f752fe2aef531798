//! Membership changes: our entries as raft-rs's, and back.
//!
//! What is in the log is a [`ChangeEntry`]; in raft-rs's entry it travels as the context, and what raft-rs itself wants
//! to know is derived from it. raft-rs turns a second change while one is pending into an empty entry, so it is refused
//! here first. A joint membership is left by an entry of ours too: raft-rs would leave it to the leader that entered it.

use quorate_shared::ids::{Index, ReplicaId};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use super::{RaftReplicator, Replicator};
use crate::error::Fatal;
use crate::log::{LogEntry, Payload};
use crate::membership::{ChangeEntry, MembershipChange, Refused};
use crate::replica::Now;

/// What raft-rs is to do for a change.
fn conf_change(entry: &ChangeEntry) -> Result<ConfChangeV2, Refused> {
    let single = |kind: ConfChangeType, replica: ReplicaId| {
        let mut out = ConfChangeSingle::default();
        out.set_change_type(kind);
        out.node_id = replica.get();
        out
    };
    let new = |host: crate::membership::Host| {
        entry.after.member_on(host.node).map(|m| m.replica).ok_or(Refused::UnknownReplica(ReplicaId::NONE))
    };
    let changes = match entry.change {
        MembershipChange::AddLearner(host) => vec![single(ConfChangeType::AddLearnerNode, new(host)?)],
        MembershipChange::Promote(replica) => vec![single(ConfChangeType::AddNode, replica)],
        MembershipChange::Demote(replica) => vec![single(ConfChangeType::AddLearnerNode, replica)],
        MembershipChange::Remove(replica) => vec![single(ConfChangeType::RemoveNode, replica)],
        MembershipChange::Replace { remove, learner } => {
            vec![single(ConfChangeType::RemoveNode, remove), single(ConfChangeType::AddLearnerNode, new(learner)?)]
        }
        MembershipChange::Leave => Vec::new(),
        MembershipChange::AddVoter(_) | MembershipChange::ReplaceVoter { .. } => {
            return Err(Refused::Unsupported("voters that have not learned first".into()));
        }
    };
    let mut out = ConfChangeV2::default();
    if entry.after.is_joint() {
        out.set_transition(ConfChangeTransition::Explicit);
    }
    out.changes = changes.into();
    Ok(out)
}

impl RaftReplicator {
    /// Whether a replica may be handed leadership.
    pub(super) fn can_lead(&self, replica: ReplicaId) -> bool {
        self.membership.voters.iter().any(|m| m.replica == replica)
    }

    /// A committed entry is handed out: if it changes the membership, that will have to be done when it is applied.
    pub(super) fn note_change(&mut self, entry: &LogEntry) -> Result<(), Fatal> {
        if entry.payload != Payload::Membership {
            return Ok(());
        }
        let change = ChangeEntry::decode(&entry.bytes)
            .map_err(|e| Fatal::new(format!("read the membership change at {} of {}", entry.index, self.shard), e))?;
        self.changes.push_back((entry.index.get(), change));
        Ok(())
    }

    pub(super) fn propose_change(
        &mut self,
        _: Now,
        change: &MembershipChange,
    ) -> Result<Result<LogEntry, Refused>, Fatal> {
        if !self.is_leader() {
            return Ok(Err(Refused::NotLeader(None)));
        }
        if self.transferring() {
            return Ok(Err(Refused::NotReady("it is handing leadership over".into())));
        }
        if !self.node.raft.commit_to_current_term() {
            return Ok(Err(Refused::NotReady("nothing of its term is committed yet".into())));
        }
        if self.node.raft.has_pending_conf() {
            return Ok(Err(Refused::InProgress));
        }
        let entry = match self.membership.after(change) {
            Ok(after) => ChangeEntry { change: *change, after },
            Err(refused) => return Ok(Err(refused)),
        };
        let conf = match conf_change(&entry) {
            Ok(conf) => conf,
            Err(refused) => return Ok(Err(refused)),
        };
        let index = self.last_index().next();
        let bytes = entry.encode();
        let proposed =
            self.run("propose a membership change", |node| node.propose_conf_change(bytes.to_vec(), conf))?;
        if proposed.is_err() {
            return Ok(Err(Refused::NotReady("the protocol does not take it now".into())));
        }
        let term = self.leadership().term;
        Ok(Ok(LogEntry { index, term, payload: Payload::Membership, bytes }))
    }

    /// The machine has applied entries up to an index: the changes among them count from here on.
    pub(super) fn apply_changes(&mut self, index: Index) -> Result<(), Fatal> {
        while let Some((at, entry)) = self.changes.pop_front_if(|(at, _)| *at <= index.get()) {
            let doing = || format!("change the membership at {at} of {}", self.shard);
            let conf = conf_change(&entry).map_err(|e| Fatal::new(doing(), e))?;
            let failed = doing();
            self.run("change the membership", |node| {
                node.advance_apply_to(at - 1);
                let done = node.apply_conf_change(&conf);
                node.advance_apply_to(at);
                done
            })?
            .map_err(|e| Fatal::new(failed, e))?;
            self.membership = entry.after.into();
            self.heard.retain(|replica, _| self.membership.contains(*replica));
            self.node.raft.mut_store().changed(at);
        }
        if self.is_leader() && !self.can_lead(self.me) {
            // raft-rs would go on leading without being counted.
            self.transfer(0, None)?;
            return self.step_down(0);
        }
        Ok(())
    }
}
