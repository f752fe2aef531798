//! Who takes part in a shard, and how that changes: ours, in the log, the same for every protocol.
//!
//! A change is one entry ([`ChangeEntry`]): what changes, and the membership after it, as canonical bytes. It counts
//! from the moment it is applied. Replica ids are minted by the change from [`Membership::next`] and never given again:
//! a voter that lost its log comes back under another id.
//!
//! Two voters may be in conflict while one set gives way to another: a change of more than one thing at once goes
//! through a *joint* membership, in which both the voters before and those after must agree, and which a second entry
//! leaves ([`MembershipChange::Leave`]).
//!
//! Invariants: [`Membership::after`] is deterministic and refuses everything that would break [`Membership::check`];
//! members are sorted by replica id.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_shared::ids::{NodeId, Nonce, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::bug::{Bug, planted};
use crate::entry::codec::{Malformed, Reader, put_u64};

/// Version of the bytes written here.
const FORMAT: u8 = 1;

/// A replica and where it lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// The nonce of the node's data directory when the replica was named; zero for founders, whose logs begin with
    /// their ids. Only a log of that incarnation takes the id: one that begins again from nothing does so under another
    /// nonce, and never acts as a replica that may have voted before it.
    pub nonce: Nonce,
}

/// A node, in one incarnation of its data directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    /// The node.
    pub node: NodeId,
    /// Its data directory's nonce.
    pub nonce: Nonce,
}

/// The members of a shard at an index.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Membership {
    /// Those whose majority decides.
    pub voters: Vec<Member>,
    /// While joint: the voters before, whose majority is needed too. Else empty.
    pub outgoing: Vec<Member>,
    /// Those that receive everything and do not count.
    pub learners: Vec<Member>,
    /// The first replica id that was never given.
    pub next: ReplicaId,
    /// How many changes have led to it: a protocol whose configurations are numbered counts them by it.
    pub changes: u64,
}

/// What is to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MembershipChange {
    /// A node gets a replica that learns, under a new replica id.
    AddLearner(Host),
    /// A learner becomes a voter.
    Promote(ReplicaId),
    /// A voter becomes a learner.
    Demote(ReplicaId),
    /// A voter or learner is no member any more.
    Remove(ReplicaId),
    /// Both at once: one goes, a node (its own or another) gets a replica that learns.
    Replace {
        /// Who goes.
        remove: ReplicaId,
        /// Where the new one is to live.
        learner: Host,
    },
    /// A node gets a replica that votes at once; for protocols without learners.
    AddVoter(Host),
    /// Both at once: a voter goes, a node gets one that votes at once; for protocols without learners.
    ReplaceVoter {
        /// Who goes.
        remove: ReplicaId,
        /// Where the new one is to live.
        voter: Host,
    },
    /// The voters before do not count any more. The leader proposes it by itself.
    Leave,
}

/// Why a change is not made; nothing has changed.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refused {
    /// Only the leader changes the membership; the leader where known.
    #[error("this replica does not lead")]
    NotLeader(Option<NodeId>),
    /// It leads, but has not applied its whole log yet, or is handing leadership over.
    #[error("the leader is not ready: {0}")]
    NotReady(String),
    /// One at a time.
    #[error("another change of the membership is in progress")]
    InProgress,
    /// Nobody has this id (any more).
    #[error("{0} is not a member")]
    UnknownReplica(ReplicaId),
    /// The node has a replica already.
    #[error("{node} has the replica {replica} already")]
    AlreadyMember {
        /// The node.
        node: NodeId,
        /// Its replica.
        replica: ReplicaId,
    },
    /// Promotion is for learners.
    #[error("{0} is a voter already")]
    AlreadyVoter(ReplicaId),
    /// Demotion is for voters.
    #[error("{0} is not a voter")]
    NotVoter(ReplicaId),
    /// Without it nobody decides.
    #[error("{0} is the last voter")]
    LastVoter(ReplicaId),
    /// A voter must not begin by holding everybody up.
    #[error("{replica} is {behind} entries behind")]
    NotCaughtUp {
        /// The learner.
        replica: ReplicaId,
        /// How far behind it is known to be.
        behind: u64,
    },
    /// Too few of the voters that would remain are there.
    #[error("only {alive} of the {voters} voters that would remain are there")]
    WouldLoseQuorum {
        /// Voters after the change that were heard lately.
        alive: usize,
        /// Voters after the change.
        voters: usize,
    },
    /// The leader goes last: it is handing over, ask the next one.
    #[error("{0} leads; it is handing over first")]
    Leads(ReplicaId),
    /// There is nothing to leave.
    #[error("no change is in progress")]
    NotJoint,
    /// The protocol cannot.
    #[error("this cluster's replicator has no {0}")]
    Unsupported(String),
    /// It was appended; whether it commits is not known.
    #[error("the outcome is unknown: leadership was lost while the membership was changing")]
    Unknown,
}

fn position(members: &[Member], replica: ReplicaId) -> Result<usize, usize> {
    members.binary_search_by_key(&replica, |m| m.replica)
}

fn take(members: &mut Vec<Member>, replica: ReplicaId) -> Option<Member> {
    position(members, replica).ok().map(|at| members.remove(at))
}

fn insert(members: &mut Vec<Member>, member: Member) {
    if let Err(at) = position(members, member.replica) {
        members.insert(at, member);
    }
}

impl Membership {
    /// Of voters alone.
    pub fn of_voters(voters: impl IntoIterator<Item = (ReplicaId, NodeId)>) -> Self {
        let mut voters: Vec<Member> =
            voters.into_iter().map(|(replica, node)| Member { replica, node, ..Member::default() }).collect();
        voters.sort_unstable();
        let next = voters.last().map_or(ReplicaId::new(1), |m| m.replica.next());
        Self { voters, next, ..Self::default() }
    }

    /// Everybody, the voters before included, by replica id.
    pub fn nodes(&self) -> BTreeMap<ReplicaId, NodeId> {
        let all = self.outgoing.iter().chain(&self.voters).chain(&self.learners);
        all.map(|m| (m.replica, m.node)).collect()
    }

    /// The node of a member.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        let find = |members: &[Member]| position(members, replica).ok().and_then(|at| members.get(at).map(|m| m.node));
        find(&self.voters).or_else(|| find(&self.learners)).or_else(|| find(&self.outgoing))
    }

    /// The replica that lives on a node, if it is a voter or a learner (not one that is on its way out).
    pub fn member_on(&self, node: NodeId) -> Option<Member> {
        self.voters.iter().chain(&self.learners).find(|m| m.node == node).copied()
    }

    /// Whether it takes part in any way.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.node_of(replica).is_some()
    }

    /// Whether its voice counts, also as one of the voters before.
    pub fn votes(&self, replica: ReplicaId) -> bool {
        position(&self.voters, replica).is_ok() || position(&self.outgoing, replica).is_ok()
    }

    /// Whether it learns (and does not vote, not even as one of the voters before).
    pub fn learns(&self, replica: ReplicaId) -> bool {
        position(&self.learners, replica).is_ok() && !self.votes(replica)
    }

    /// Two sets of voters count.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether those who say yes decide.
    pub fn has_quorum(&self, yes: impl Fn(ReplicaId) -> bool) -> bool {
        let majority = |members: &[Member]| members.iter().filter(|m| yes(m.replica)).count() * 2 > members.len();
        majority(&self.voters) && (self.outgoing.is_empty() || majority(&self.outgoing))
    }

    /// The membership after a change, or why it cannot be.
    pub fn after(&self, change: &MembershipChange) -> Result<Membership, Refused> {
        let mut out = Membership { changes: self.changes + 1, ..self.clone() };
        match (*change, self.is_joint()) {
            (MembershipChange::Leave, true) => {
                out.outgoing.clear();
                return Ok(out);
            }
            (MembershipChange::Leave, false) => return Err(Refused::NotJoint),
            (_, true) => return Err(Refused::InProgress),
            (MembershipChange::AddLearner(host), _) => {
                let member = out.mint(host)?;
                insert(&mut out.learners, member);
            }
            (MembershipChange::AddVoter(host), _) => {
                let member = out.mint(host)?;
                insert(&mut out.voters, member);
            }
            (MembershipChange::Promote(replica), _) => {
                if position(&self.voters, replica).is_ok() {
                    return Err(Refused::AlreadyVoter(replica));
                }
                let member = take(&mut out.learners, replica).ok_or(Refused::UnknownReplica(replica))?;
                insert(&mut out.voters, member);
            }
            (MembershipChange::Demote(replica), _) => {
                if position(&self.learners, replica).is_ok() {
                    return Err(Refused::NotVoter(replica));
                }
                let member = out.drop_member(replica)?;
                insert(&mut out.learners, member);
            }
            (MembershipChange::Remove(replica), _) => drop(out.drop_member(replica)?),
            (MembershipChange::Replace { remove, learner }, _) => {
                out.drop_member(remove)?;
                let member = out.mint(learner)?;
                insert(&mut out.learners, member);
                out.outgoing.clone_from(&self.voters);
            }
            (MembershipChange::ReplaceVoter { remove, voter }, _) => {
                take(&mut out.voters, remove).ok_or(Refused::UnknownReplica(remove))?;
                let member = out.mint(voter)?;
                insert(&mut out.voters, member);
            }
        }
        Ok(out)
    }

    fn mint(&mut self, host: Host) -> Result<Member, Refused> {
        let Host { node, nonce } = host;
        if let Some(Member { replica, .. }) = self.member_on(node) {
            return Err(Refused::AlreadyMember { node, replica });
        }
        let again =
            (1..self.next.get()).map(ReplicaId::new).find(|r| planted(Bug::ReuseReplicaId) && !self.contains(*r));
        let replica = again.unwrap_or(self.next);
        self.next = self.next.max(replica.next());
        Ok(Member { replica, node, nonce })
    }

    fn drop_member(&mut self, replica: ReplicaId) -> Result<Member, Refused> {
        if let Some(member) = take(&mut self.learners, replica) {
            return Ok(member);
        }
        if self.voters.len() == 1 && position(&self.voters, replica).is_ok() {
            return Err(Refused::LastVoter(replica));
        }
        take(&mut self.voters, replica).ok_or(Refused::UnknownReplica(replica))
    }

    /// Whether it makes sense in itself.
    pub fn check(&self) -> Result<(), &'static str> {
        let sorted = |members: &[Member]| members.is_sorted_by(|a, b| a.replica < b.replica);
        if !(sorted(&self.voters) && sorted(&self.outgoing) && sorted(&self.learners)) {
            return Err("its members are not in order");
        }
        if self.voters.is_empty() {
            return Err("it has no voter");
        }
        let mut all = self.voters.iter().chain(&self.outgoing).chain(&self.learners);
        if all.any(|m| m.replica >= self.next || m.replica == ReplicaId::default()) {
            return Err("a member has an id that was never given");
        }
        let mut nodes: Vec<NodeId> = self.voters.iter().chain(&self.learners).map(|m| m.node).collect();
        nodes.sort_unstable();
        let both = self.learners.iter().any(|m| position(&self.voters, m.replica).is_ok());
        if both || nodes.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("a node has two replicas in it");
        }
        Ok(())
    }

    /// Appends its bytes.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        for members in [&self.voters, &self.outgoing, &self.learners] {
            put_u64(out, members.len() as u64);
            for member in members {
                put_u64(out, member.replica.get());
                put_u64(out, member.node.get());
                out.extend_from_slice(&member.nonce.0);
            }
        }
        put_u64(out, self.next.get());
        put_u64(out, self.changes);
    }

    /// Takes its bytes.
    pub(crate) fn take(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut members = || -> Result<Vec<Member>, Malformed> {
            let n = r.count()?;
            (0..n)
                .map(|_| {
                    let (replica, node) = (ReplicaId::new(r.u64()?), NodeId::new(r.u64()?));
                    Ok(Member { replica, node, nonce: Nonce(r.array()?) })
                })
                .collect::<Result<_, _>>()
        };
        let (voters, outgoing, learners) = (members()?, members()?, members()?);
        Ok(Self { voters, outgoing, learners, next: ReplicaId::new(r.u64()?), changes: r.u64()? })
    }
}

/// What a membership entry says; its bytes are [`crate::log::Payload::Membership`]'s.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeEntry {
    /// What changes.
    pub change: MembershipChange,
    /// The membership after it.
    pub after: Membership,
}

impl ChangeEntry {
    /// Its canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        match self.change {
            MembershipChange::AddLearner(host) => put(&mut out, 1, None, Some(host)),
            MembershipChange::Promote(replica) => put(&mut out, 2, Some(replica), None),
            MembershipChange::Demote(replica) => put(&mut out, 3, Some(replica), None),
            MembershipChange::Remove(replica) => put(&mut out, 4, Some(replica), None),
            MembershipChange::Replace { remove, learner } => put(&mut out, 5, Some(remove), Some(learner)),
            MembershipChange::Leave => put(&mut out, 6, None, None),
            MembershipChange::AddVoter(host) => put(&mut out, 7, None, Some(host)),
            MembershipChange::ReplaceVoter { remove, voter } => put(&mut out, 8, Some(remove), Some(voter)),
        }
        self.after.put(&mut out);
        Bytes::from(out)
    }

    /// From canonical bytes.
    pub fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u8()? != FORMAT {
            return Err(r.malformed());
        }
        let change = match r.u8()? {
            1 => MembershipChange::AddLearner(take_host(&mut r)?),
            2 => MembershipChange::Promote(ReplicaId::new(r.u64()?)),
            3 => MembershipChange::Demote(ReplicaId::new(r.u64()?)),
            4 => MembershipChange::Remove(ReplicaId::new(r.u64()?)),
            5 => MembershipChange::Replace { remove: ReplicaId::new(r.u64()?), learner: take_host(&mut r)? },
            6 => MembershipChange::Leave,
            7 => MembershipChange::AddVoter(take_host(&mut r)?),
            8 => MembershipChange::ReplaceVoter { remove: ReplicaId::new(r.u64()?), voter: take_host(&mut r)? },
            _ => return Err(r.malformed()),
        };
        let after = Membership::take(&mut r)?;
        r.end()?;
        Ok(Self { change, after })
    }
}

fn put(out: &mut Vec<u8>, tag: u8, replica: Option<ReplicaId>, host: Option<Host>) {
    out.push(tag);
    if let Some(replica) = replica {
        put_u64(out, replica.get());
    }
    if let Some(Host { node, nonce }) = host {
        put_u64(out, node.get());
        out.extend_from_slice(&nonce.0);
    }
}

fn take_host(r: &mut Reader<'_>) -> Result<Host, Malformed> {
    Ok(Host { node: NodeId::new(r.u64()?), nonce: Nonce(r.array()?) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn r(n: u64) -> ReplicaId {
        ReplicaId::new(n)
    }

    fn n(n: u64) -> NodeId {
        NodeId::new(n)
    }

    fn h(node: u64) -> Host {
        Host { node: n(node), nonce: Nonce([node as u8; 16]) }
    }

    fn three() -> Membership {
        Membership::of_voters([(r(1), n(1)), (r(3), n(3)), (r(2), n(2))])
    }

    fn ids(members: &[Member]) -> Vec<u64> {
        members.iter().map(|m| m.replica.get()).collect()
    }

    #[test]
    fn a_node_joins_in_two_steps_and_leaves() {
        let one = three().after(&MembershipChange::AddLearner(h(4))).unwrap();
        assert_eq!((ids(&one.voters), ids(&one.learners), one.next), (vec![1, 2, 3], vec![4], r(5)));
        assert!(one.learns(r(4)) && !one.votes(r(4)) && one.contains(r(4)));
        let two = one.after(&MembershipChange::Promote(r(4))).unwrap();
        assert_eq!((ids(&two.voters), ids(&two.learners)), (vec![1, 2, 3, 4], vec![]));
        let back = two.after(&MembershipChange::Demote(r(2))).unwrap();
        assert_eq!((ids(&back.voters), ids(&back.learners)), (vec![1, 3, 4], vec![2]));
        let gone = back.after(&MembershipChange::Remove(r(2))).unwrap();
        assert_eq!((ids(&gone.voters), gone.next), (vec![1, 3, 4], r(5)));
        // The same node again: never the same id.
        assert_eq!(ids(&gone.after(&MembershipChange::AddLearner(h(2))).unwrap().learners), [5]);
    }

    #[test]
    fn a_replacement_is_joint_until_it_is_left() {
        let change = MembershipChange::Replace { remove: r(2), learner: h(2) };
        let joint = three().after(&change).unwrap();
        assert_eq!(
            (ids(&joint.voters), ids(&joint.outgoing), ids(&joint.learners)),
            (vec![1, 3], vec![1, 2, 3], vec![4])
        );
        assert_eq!(joint.member_on(n(2)).map(|m| m.replica), Some(r(4)));
        assert_eq!(joint.node_of(r(2)), Some(n(2)));
        assert!(joint.has_quorum(|id| id != r(2)));
        assert!(!joint.has_quorum(|id| id != r(1)), "1 of 2 is no majority");
        assert_eq!(joint.after(&MembershipChange::Promote(r(4))), Err(Refused::InProgress));
        let left = joint.after(&MembershipChange::Leave).unwrap();
        assert_eq!((ids(&left.voters), ids(&left.learners), left.contains(r(2))), (vec![1, 3], vec![4], false));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let members = three().after(&MembershipChange::AddLearner(h(4))).unwrap();
        let refused = |change| members.after(&change).unwrap_err();
        assert_eq!(refused(MembershipChange::AddLearner(h(1))), Refused::AlreadyMember { node: n(1), replica: r(1) });
        assert_eq!(refused(MembershipChange::Promote(r(1))), Refused::AlreadyVoter(r(1)));
        assert_eq!(refused(MembershipChange::Promote(r(9))), Refused::UnknownReplica(r(9)));
        assert_eq!(refused(MembershipChange::Demote(r(4))), Refused::NotVoter(r(4)));
        assert_eq!(refused(MembershipChange::Remove(r(9))), Refused::UnknownReplica(r(9)));
        assert_eq!(refused(MembershipChange::Leave), Refused::NotJoint);
        let one = Membership::of_voters([(r(1), n(1))]);
        for change in [MembershipChange::Remove(r(1)), MembershipChange::Demote(r(1))] {
            assert_eq!(one.after(&change), Err(Refused::LastVoter(r(1))));
        }
    }

    #[test]
    fn golden_bytes() {
        let change = MembershipChange::Replace { remove: r(2), learner: h(2) };
        let entry = ChangeEntry { change, after: three().after(&change).unwrap() };
        let hex: String = entry.encode().iter().map(|b| format!("{b:02x}")).collect();
        let (zero, two) = ("00".repeat(16), "02".repeat(16));
        let expected =
            format!("01050202{two} 02 0101{zero}0303{zero} 03 0101{zero}0202{zero}0303{zero} 01 0402{two} 05 01");
        assert_eq!(hex, expected.replace(' ', ""));
        assert_eq!(ChangeEntry::decode(&entry.encode()), Ok(entry));
    }

    fn change() -> impl Strategy<Value = MembershipChange> {
        let id = || 1u64..9;
        prop_oneof![
            id().prop_map(|x| MembershipChange::AddLearner(h(x))),
            id().prop_map(|x| MembershipChange::Promote(r(x))),
            id().prop_map(|x| MembershipChange::Demote(r(x))),
            id().prop_map(|x| MembershipChange::Remove(r(x))),
            (id(), id()).prop_map(|(x, y)| MembershipChange::Replace { remove: r(x), learner: h(y) }),
            id().prop_map(|x| MembershipChange::AddVoter(h(x))),
            (id(), id()).prop_map(|(x, y)| MembershipChange::ReplaceVoter { remove: r(x), voter: h(y) }),
            Just(MembershipChange::Leave),
        ]
    }

    proptest! {
        /// Whatever is asked for, in any order: it stays sound, ids are never given twice, bytes come back.
        #[test]
        fn stays_sound(changes in prop::collection::vec(change(), 0..30)) {
            let mut now = three();
            for change in changes {
                let Ok(after) = now.after(&change) else { continue };
                prop_assert_eq!(after.check(), Ok(()));
                prop_assert!(after.next >= now.next);
                let known = now.nodes();
                prop_assert!(after.nodes().keys().all(|id| known.contains_key(id) || *id >= now.next));
                let entry = ChangeEntry { change, after: after.clone() };
                prop_assert_eq!(ChangeEntry::decode(&entry.encode()), Ok(entry));
                now = after;
            }
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = ChangeEntry::decode(&Bytes::from(bytes));
        }
    }
}
