//! What this node is in its shards, followed while the membership changes.
//!
//! A replica's part (voter, learner, log-shipped) is decided when it is opened; whenever the membership asks for another
//! one, the node begins again in place. A node that lost its log as a voter has itself replaced: its old replica id goes, a
//! new one learns, and votes when it has caught up. Whoever is not in the cluster any more finds out by itself.
//!
//! Invariants: a node without the record of its replica id neither votes nor acknowledges; every change of the membership
//! is the leader's decision, this node only asks for it.
//!
//! Left out: shards that are in different hands on purpose; a node takes part in all of them or in none.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::join;
use quorate_core::membership::{Host, Membership, MembershipChange, Refused};
use quorate_core::replica::Protocol;
use quorate_core::shard::Input;
use quorate_shared::ids::{Epoch, Index, NodeId, ReplicaId};
use tokio::sync::mpsc;

use crate::driver::view::ShardView;
use crate::driver::{Driver, Failure};
use crate::forward::Forwarder;
use crate::peers::Peers;
use crate::peers::message::{Ask, Reply};
use crate::report::NodeState;
use crate::store;
use crate::store::rejoin::Fenced;

/// How often everything is looked at, besides whenever a membership changes.
const LOOK: Duration = Duration::from_millis(500);
/// A change mostly comes in every shard at once: so long they are waited for before the node begins again.
const GATHER: Duration = Duration::from_millis(300);
/// Without a leader for so long, a member asks the others whether it still is one.
const LEADERLESS: Duration = Duration::from_secs(3);
/// How long a change may take.
const CHANGE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Roles {
    /// This node, in this incarnation.
    pub me: Host,
    /// Its data directory.
    pub directory: PathBuf,
    /// Its shards.
    pub driver: Arc<Driver>,
    /// The way to the leaders.
    pub forwarder: Arc<Forwarder>,
    /// Connections.
    pub peers: Arc<Peers>,
    /// Told when the node has to begin again.
    pub failures: mpsc::UnboundedSender<(Failure, String)>,
}

/// The part a replica should have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// The one it has.
    Same,
    /// It takes part under this id.
    Member(ReplicaId),
    /// It is log-shipped.
    Shipped,
    /// It is log-shipped, but this voter of its node is still counted: its log is lost.
    Lost(ReplicaId),
}

/// What a membership asks of this node's replica, which last went by the id `was`. Pure.
fn part(me: Host, own: ReplicaId, was: ReplicaId, membership: &Membership) -> Part {
    match join::replica_of(own, was, me, membership) {
        same if same == own => match membership.member_on(me.node).filter(|_| own == ReplicaId::NONE) {
            // One that it had is gone, as it knows of others, and its membership is only behind.
            Some(member) if member.replica > was => Part::Lost(member.replica),
            _ => Part::Same,
        },
        ReplicaId::NONE => Part::Shipped,
        new => Part::Member(new),
    }
}

impl Roles {
    /// Watches for ever.
    pub async fn watch(self) {
        let mut leaderless: Option<Instant> = None;
        loop {
            self.keep_connections();
            if let Some(why) = self.peers.expelled().or_else(|| self.struck_off()) {
                store::leave_note(&self.directory, store::REMOVED, &why);
                self.begin_again(format!("this node was removed: {why}"));
                return;
            }
            self.follow_epoch();
            let votes = self.driver.views().any(|view| view.replica != ReplicaId::NONE);
            let newer = self.peers.newer_epoch().filter(|_| votes).or_else(|| self.peers.refused_by());
            if let Some(newer) = newer {
                self.fence(newer);
                return;
            }
            if self.driver.views().any(|view| matches!(self.part(view), Part::Member(_) | Part::Shipped)) {
                tokio::time::sleep(GATHER).await;
                self.begin_again("the membership gives it another part".into());
                return;
            }
            let led = self.driver.views().filter(|v| v.replica != ReplicaId::NONE).all(|v| v.leader().node.is_some());
            leaderless = if led { None } else { leaderless.or_else(|| Some(Instant::now())) };
            if leaderless.is_some_and(|since| since.elapsed() > LEADERLESS) && self.has_left().await {
                self.begin_again("it is no member any more".into());
                return;
            }
            self.heal().await;
            self.pause().await;
        }
    }

    /// A log-shipped replica may learn from its own catalog that it was removed. What is a member is none of those: its
    /// catalog may be that of another cluster of which this one was made.
    fn struck_off(&self) -> Option<String> {
        let shipped = self.driver.views().all(|view| view.replica == ReplicaId::NONE);
        let removed = shipped && self.driver.catalog().has_removed(self.me.node);
        removed.then(|| format!("the catalog says that {} was removed from the cluster", self.me.node))
    }

    fn part(&self, view: &ShardView) -> Part {
        part(self.me, view.replica, view.was, &view.membership())
    }

    async fn pause(&self) {
        let changes = self.driver.views().map(|view| Box::pin(view.membership_changed.notified()));
        // Looks again either way.
        let _ = tokio::time::timeout(LOOK, futures::future::select_all(changes)).await;
    }

    fn begin_again(&self, why: String) {
        // Nobody listens any more when the node is stopping.
        let _ = self.failures.send((Failure::Restart, why));
    }

    /// A log-shipped replica comes into a new epoch with its stream.
    fn follow_epoch(&self) {
        let applied = self.driver.views().map(|view| view.applied_point().epoch).min_by_key(|epoch| epoch.number);
        if let Some(epoch) = applied.filter(|epoch| epoch.number > self.peers.epoch().number) {
            tracing::info!(number = epoch.number, "this node is in a new epoch");
            self.peers.set_epoch(epoch);
        }
    }

    /// A newer epoch has begun without this node's votes: it stops serving at once, and goes on as a replica of it.
    fn fence(&self, newer: Epoch) {
        for view in self.driver.views() {
            self.driver.input(view.shard, Input::Fence(newer));
        }
        let known = self.forwarder.known().into_iter().filter(|node| node.node != self.me.node);
        let mut addresses = self.peers.addresses();
        addresses.extend(known.map(|node| node.address));
        Fenced { epoch: newer, addresses }.leave(&self.directory);
        self.begin_again(format!("epoch {} has begun without it; it is fenced", newer.number));
    }

    /// Members of a shard in which this node takes part are connected to each other.
    fn keep_connections(&self) {
        let mut nodes: BTreeSet<NodeId> = self.forwarder.strange_nodes().into_iter().collect();
        for view in self.driver.views().filter(|view| view.replica != ReplicaId::NONE) {
            nodes.extend(view.membership().nodes().into_values());
        }
        self.peers.connect(&nodes);
    }

    /// Asks the others whether this node's replicas are still members; leaves a note of those that are not.
    async fn has_left(&self) -> bool {
        let mut left = Vec::new();
        for view in self.driver.views().filter(|view| view.replica != ReplicaId::NONE) {
            let (shard, own) = (view.shard, view.replica);
            let others: BTreeSet<NodeId> =
                view.membership().nodes().into_values().filter(|n| *n != self.me.node).collect();
            for node in others {
                let asked =
                    self.peers.ask(node, Ask::Membership { shard }, Instant::now() + Duration::from_secs(1)).await;
                let Ok(Reply::Membership { applied, chain, membership }) = asked else { continue };
                if is_gone(own, view.applied(), applied, &membership) {
                    left.push(format!("{shard} {own}"));
                    break;
                }
                // What another has applied is committed, also where who knew that is no member any more.
                self.driver.input(shard, Input::Committed { index: applied, chain });
            }
        }
        if left.is_empty() {
            return false;
        }
        tracing::warn!(?left, "these replicas are no members any more");
        store::leave_note(&self.directory, store::LEFT, &left.join("\n"));
        true
    }

    /// A voter that lost its log: asks for a new id, then for its vote.
    async fn heal(&self) {
        let mut whole = true;
        for view in self.driver.views() {
            let (shard, membership) = (view.shard, view.membership());
            let change = match self.part(view) {
                Part::Lost(remove) => match self.forwarder.replicator() {
                    Protocol::Raft => MembershipChange::Replace { remove, learner: self.me },
                    // It has no learners; and the one that goes is not there either.
                    Protocol::Paxos => MembershipChange::ReplaceVoter { remove, voter: self.me },
                },
                // One that was added as a new voter is promoted by whoever added it.
                _ if self.is_healing() && membership.learns(view.replica) => MembershipChange::Promote(view.replica),
                _ => continue,
            };
            whole = false;
            if view.leader().node.is_none() {
                continue;
            }
            match self.forwarder.change(shard, change, Instant::now() + CHANGE).await {
                Ok(_) => tracing::info!(%shard, ?change, "this node heals"),
                // What cannot be is said where the node begins.
                Err(Refused::InProgress | Refused::Unsupported(_)) => {}
                Err(why) => tracing::info!(%shard, ?change, %why, "this node cannot heal yet"),
            }
        }
        if whole && self.is_healing() && self.driver.views().all(|view| view.membership().votes(view.replica)) {
            tracing::info!("this voter is whole again");
            if let Err(error) = store::drop_note(&self.directory, store::LOST) {
                tracing::warn!(%error, "cannot take away the note of the lost log");
            }
            self.forwarder.set_state(NodeState::Ready);
        }
    }

    fn is_healing(&self) -> bool {
        self.directory.join(store::LOST).exists()
    }
}

/// Whether another node's newer membership shows that a replica, a member as far as it knows, is none any more.
fn is_gone(own: ReplicaId, applied: Index, theirs: Index, membership: &Membership) -> bool {
    theirs > applied && own < membership.next && !membership.contains(own)
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::Nonce;

    use super::*;

    fn n(id: u64) -> NodeId {
        NodeId::new(id)
    }
    fn r(id: u64) -> ReplicaId {
        ReplicaId::new(id)
    }

    fn h(id: u64) -> Host {
        Host { node: n(id), nonce: Nonce([id as u8; 16]) }
    }

    #[test]
    fn the_part_follows_the_membership() {
        let three = Membership::of_voters((1..=3).map(|id| (r(id), n(id))));
        assert_eq!(part(h(2), r(2), ReplicaId::NONE, &three), Part::Same);
        assert_eq!(part(h(4), ReplicaId::NONE, ReplicaId::NONE, &three), Part::Same);
        assert_eq!(part(h(2), ReplicaId::NONE, ReplicaId::NONE, &three), Part::Lost(r(2)));
        let four = three.after(&MembershipChange::AddLearner(h(4))).unwrap();
        assert_eq!(part(h(4), ReplicaId::NONE, ReplicaId::NONE, &four), Part::Member(r(4)));
        assert_eq!(part(h(4), ReplicaId::NONE, r(4), &four), Part::Same, "it has left, as others know");
        let again = Host { nonce: Nonce([9; 16]), ..h(4) };
        assert_eq!(part(again, ReplicaId::NONE, ReplicaId::NONE, &four), Part::Lost(r(4)), "another incarnation");
        let two = three.after(&MembershipChange::Remove(r(2))).unwrap();
        assert_eq!(part(h(2), r(2), ReplicaId::NONE, &two), Part::Shipped);
    }

    #[test]
    fn only_a_newer_membership_says_that_one_has_left() {
        let two = Membership::of_voters([(r(1), n(1)), (r(3), n(3))]);
        assert!(is_gone(r(2), Index::new(5), Index::new(6), &two));
        assert!(!is_gone(r(2), Index::new(6), Index::new(6), &two), "it may be older than what made it a member");
        assert!(!is_gone(r(4), Index::new(5), Index::new(6), &two), "never given as far as they know");
    }
}
