//! What a node is in its shard, followed while the membership changes, as the daemon's roles do it.
//!
//! A node whose membership gives it another part begins again in here. One that lost its log as a member asks to be
//! replaced by itself, then for its vote. One that hears of no leader asks the others whether it still is a member. Every
//! change is the leader's decision; what the simulator's own hand asks for goes the same way.

use std::sync::Arc;

use quorate_shared::ids::{Hash, Index, ReplicaId};

use super::network::Packet;
use super::node::{Part, Process, Waiter};
use super::place::Place;
use super::world::World;
use crate::log::Membership;
use crate::membership::{MembershipChange, Refused};
use crate::replica::Protocol;
use crate::shard::{Changed, Input, Ticket};

/// How often a node asks for what it has not got.
const ASK_MS: u64 = 500;
/// Without a leader for so long, a member asks the others whether it still is one.
const LEADERLESS_MS: u64 = 1_500;
/// How long a change may take.
const CHANGE_MS: u64 = 3_000;

/// What a node has to do about its part.
enum Duty {
    Nothing,
    BeginAgain,
    Ask(MembershipChange),
    AskMembers,
}

impl World {
    /// Looks at what the membership says of a node.
    pub(super) fn look(&mut self, id: Place) {
        let (now, protocol) = (self.now, self.shape.protocol);
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        if node.stalled {
            // It could not stop in order.
            return;
        }
        let (me, was) = (node.host(), node.store.durable[id.shard].hard.vote);
        let Some(here) = node.replicas.get_mut(&id.shard) else { return };
        let healing = here.healing;
        let Some(process) = &here.up else { return };
        let duty = match &process.part {
            Part::Shard(shard) if shard.is_removed() => Duty::BeginAgain,
            Part::Shard(shard) => {
                let learns = shard.membership().learns(process.replica);
                let leaderless = shard.view().leader.is_none();
                here.healing &= !shard.membership().votes(process.replica);
                let since = *here.leaderless.get_or_insert(now);
                if !leaderless {
                    here.leaderless = None;
                }
                match () {
                    () if leaderless && now > since + LEADERLESS_MS => Duty::AskMembers,
                    () if healing && learns => Duty::Ask(MembershipChange::Promote(process.replica)),
                    () => Duty::Nothing,
                }
            }
            Part::Follower(follower) => match follower.named(me) {
                ReplicaId::NONE => {
                    let member = process.machine.state().membership.member_on(me.node);
                    match (member.filter(|m| m.replica > was), protocol) {
                        (None, _) => {
                            here.healing = false;
                            Duty::Nothing
                        }
                        (Some(member), Protocol::Raft) => {
                            Duty::Ask(MembershipChange::Replace { remove: member.replica, learner: me })
                        }
                        (Some(member), Protocol::Paxos) => {
                            Duty::Ask(MembershipChange::ReplaceVoter { remove: member.replica, voter: me })
                        }
                    }
                }
                _ => Duty::BeginAgain,
            },
        };
        let mut asks = || {
            let due = now >= here.next_ask;
            here.next_ask = if due { now + ASK_MS } else { here.next_ask };
            due
        };
        match duty {
            Duty::Nothing => {}
            Duty::BeginAgain => self.begin_again(id.node),
            Duty::Ask(change) => {
                if asks() {
                    let to = self.somebody(id);
                    self.send(id, to, Packet::Change { change, via: None });
                }
            }
            Duty::AskMembers => {
                if asks() {
                    let to = self.somebody(id);
                    self.send(id, to, Packet::AskMembers);
                }
            }
        }
    }

    /// The voters' nodes, as a node knows them.
    pub(super) fn voters_known_to(&self, id: Place) -> Vec<u64> {
        let Some(process) = self.running(id) else { return vec![id.node] };
        process.machine.state().membership.voters.iter().map(|m| m.node.get()).collect()
    }

    /// Another node that may know more.
    pub(super) fn somebody(&mut self, id: Place) -> u64 {
        let voters: Vec<u64> = self.voters_known_to(id).into_iter().filter(|n| *n != id.node).collect();
        let all = self.all();
        if voters.is_empty() || self.rng.chance(200) { self.rng.pick(&all) } else { self.rng.pick(&voters) }
    }

    /// A change somebody wants: to the shard if it leads, to the leader if it was not forwarded yet.
    pub(super) fn take_change(&mut self, id: Place, _from: u64, change: MembershipChange, via: Option<u64>) {
        let Some(view) = self.view(id) else { return };
        if view.is_leader {
            self.change(id, change);
        } else if let (Some((_, leader)), None) = (view.leader, via) {
            self.send(id, leader.get(), Packet::Change { change, via: Some(id.node) });
        }
    }

    /// Asks a node for a change, past the network.
    pub fn change(&mut self, id: Place, change: MembershipChange) -> Ticket {
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + CHANGE_MS);
        self.trace.say(self.now, || format!("{id} is asked for {change:?}"));
        if let Some(process) = self.process(id).filter(|p| matches!(p.part, Part::Shard(_))) {
            process.tickets.insert(ticket, Waiter::Change);
            self.drive(id, Some(Input::Change { ticket, change, deadline }));
        }
        ticket
    }

    /// A change is answered.
    pub(super) fn changed(&mut self, id: Place, ticket: Ticket, result: &Result<Changed, Refused>) {
        self.trace.note(self.now, id, "changed", ticket, u64::from(result.is_ok()));
        self.trace.say(self.now, || match result {
            Ok(done) => format!("{id}: the members are {:?} as of {}", done.membership, done.index),
            Err(refused) => format!("{id}: no change: {refused}"),
        });
        let epoch = self.epoch(id).0;
        if let Ok(done) = result {
            let checks = &self.checks[id.shard];
            let known = checks.members.at(&checks.lineage, epoch, done.index);
            if known != done.membership || known.is_joint() {
                let says = &done.membership;
                self.violate(format!("{id} says that the members are {says:?} as of {}: {known:?}", done.index));
            }
        }
        if self.process(id).is_some_and(|p| p.tickets.remove(&ticket).is_none()) {
            self.violate(format!("{id} answers the change {ticket} twice"));
        }
    }

    pub(super) fn tell_members(&mut self, id: Place, to: u64) {
        let Some(process) = self.process(id) else { return };
        let state = process.machine.state();
        let (applied, chain, membership) = (state.index, state.chain, Arc::clone(&state.membership));
        self.send(id, to, Packet::Members { applied, chain, membership });
    }

    /// Another node's newer membership may show that this replica is none any more; what it has applied is committed.
    pub(super) fn hear_members(&mut self, id: Place, (theirs, chain): (Index, Hash), membership: &Membership) {
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        let stalled = node.stalled;
        let Some(here) = node.replicas.get_mut(&id.shard) else { return };
        let Some(Process { replica, machine, .. }) = &here.up else { return };
        let (own, applied) = (*replica, machine.state().index);
        let gone = theirs > applied && own < membership.next && !membership.contains(own);
        if own == ReplicaId::NONE || stalled {
            return;
        }
        if !gone {
            return self.drive(id, Some(Input::Committed { index: theirs, chain }));
        }
        here.left.push(own);
        self.trace.note(self.now, id, "has left", own.get(), theirs.get());
        self.begin_again(id.node);
    }
}
