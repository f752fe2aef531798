//! What nodes say to each other after the `Hello`, by channel.
//!
//! Consensus: [`Envelope`]s, one way. Requests: [`Request`] and [`Response`] matched by id, and one-way reports. Founding:
//! [`Question`] and [`Answer`]. Shipping: [`Shipment`]s.
//!
//! Invariants: variants and fields are only ever appended; the bytes of each are fixed by a golden test.

use bytes::Bytes;
use quorate_core::error::Rejected;
use quorate_core::lag::ReaderReport;
use quorate_core::log::EpochStart;
use quorate_core::membership::{Membership, MembershipChange, Refused};
use quorate_core::proposal::{Proposal, WriteResult};
use quorate_core::replica::Protocol;
use quorate_shared::error::WireError;
use quorate_shared::ids::{ClusterId, Epoch, Hash, Index, NodeId, Nonce, ReplicaId, ShardId, Term};
use quorate_shared::wire::NodeAddress;
use serde::{Deserialize, Serialize};

use crate::proving::{Prove, Proved};
use crate::report::NodeReport;

/// A protocol message from one replica to another. Whoever gets one that is not for it drops and counts it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The shard.
    pub shard: ShardId,
    /// The replica that sends.
    pub from: ReplicaId,
    /// The replica it is for.
    pub to: ReplicaId,
    /// The protocol's bytes.
    pub message: Bytes,
}

/// On the requests channel, from the node that connected.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the sender, growing; 0 wants no response.
    pub id: u64,
    /// The node that asks: forwarded requests are forwarded at most once.
    pub origin: NodeId,
    /// Milliseconds from arrival after which nobody waits any more.
    pub deadline_ms: u64,
    /// What is asked.
    pub body: Ask,
}

/// What a node asks another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Write this; only a leader does.
    Propose {
        /// To this shard.
        shard: ShardId,
        /// What to write.
        proposal: Box<Proposal>,
    },
    /// Which index must be applied to see every acknowledged write; only a leader knows.
    ReadIndex {
        /// Of this shard.
        shard: ShardId,
    },
    /// Everything about yourself.
    Report,
    /// How far the sender is; to a leader, no response.
    Progress {
        /// In this shard.
        shard: ShardId,
        /// So far.
        report: ReaderReport,
    },
    /// The sender is there; no response. So every node knows of every other whether it is.
    Here,
    /// Hand the leadership of a shard to another voter; only its leader does.
    Transfer {
        /// Of this shard.
        shard: ShardId,
        /// To this node.
        to: NodeId,
    },
    /// Who leads a shard, as far as you know?
    Leader {
        /// This shard.
        shard: ShardId,
    },
    /// Let no other action change the cluster for a while; again to renew.
    Reserve {
        /// Drawn at random.
        action: u64,
        /// Its name.
        what: String,
    },
    /// The action has ended.
    Release {
        /// As in `Reserve`.
        action: u64,
    },
    /// Prove something of what is stored.
    Prove(Box<Prove>),
    /// What time is it there?
    Clock,
    /// Change who takes part; only a leader does.
    Change {
        /// In this shard.
        shard: ShardId,
        /// How.
        change: MembershipChange,
    },
    /// Who takes part, as far as you have applied?
    Membership {
        /// In this shard.
        shard: ShardId,
    },
}

/// The response to the request of the same id.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// The answer.
    pub body: Reply,
}

/// An answer on the requests channel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To `Propose`.
    Proposed(Result<WriteResult, Rejected>),
    /// To `ReadIndex`.
    ReadIndex(Result<Index, Rejected>),
    /// To `Report`.
    Report(Box<NodeReport>),
    /// It cannot be answered here.
    Failed(WireError),
    /// It is done, or begun where its effect is to be observed.
    Done,
    /// To `Leader`.
    Leader(Leading),
    /// To `Prove`.
    Proved(Box<Proved>),
    /// To `Clock`: milliseconds since 1970.
    Clock(u64),
    /// To `Change`: the membership after it.
    Changed(Result<Membership, Refused>),
    /// To `Membership`: as of which index.
    Membership {
        /// The index applied.
        applied: Index,
        /// The chain hash there.
        chain: Hash,
        /// Who takes part then.
        membership: Membership,
    },
}

/// Who leads a shard, as a node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leading {
    /// The term.
    pub term: Term,
    /// The leader's node.
    pub node: Option<NodeId>,
    /// It is the node that says so, and it evaluates proposals.
    pub ready: bool,
}

/// On the founding channel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Question {
    /// Who are you, and what do you know of a cluster?
    Who {
        /// The voters the sender was started with; empty if it was not started with a list.
        voters: Vec<NodeId>,
    },
    /// What are the chain's hashes at these indexes? Answered by a list in their order, `None` where they are not known.
    Hashes {
        /// Of this shard.
        shard: ShardId,
        /// Where; at most [`HASHES_MAX`].
        at: Vec<Index>,
    },
}

/// Hashes that one [`Question::Hashes`] is answered with.
pub const HASHES_MAX: usize = 64;

/// A voter as it was when the cluster was founded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its data directory then.
    pub nonce: Nonce,
    /// Its replica id in every shard.
    pub replica: ReplicaId,
}

/// The record that makes a cluster, the same on every voter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Founding {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its first epoch.
    pub epoch: Epoch,
    /// Its voters, by node id.
    pub members: Vec<Member>,
    /// What orders the entries of all its shards.
    pub replicator: Protocol,
}

/// The answer to `Who`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Who answers.
    pub node: NodeId,
    /// Its data directory.
    pub nonce: Nonce,
    /// The voters it was started with.
    pub voters: Vec<NodeId>,
    /// Its cluster; `None`: it is empty.
    pub founding: Option<Founding>,
    /// The leader of `s0`, if it knows one.
    pub master: Option<NodeAddress>,
    /// Every node it knows.
    pub nodes: Vec<NodeAddress>,
    /// What it was started to have the cluster founded with.
    pub replicator: Protocol,
    /// The epoch of each shard as applied, and where it began.
    pub epochs: Vec<(ShardId, Epoch, EpochStart)>,
}

/// On the shipping channel, to the reader. The reader sends [`quorate_core::ship::ReaderMessage`]s as they are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Shipment {
    /// The stream's own: an encoded [`quorate_core::ship::ServerMessage`].
    Stream(Bytes),
    /// Who leads the shard. Only a leader serves its stream: from another node this is the last message.
    Leader {
        /// The shard.
        shard: ShardId,
        /// The term.
        term: Term,
        /// The leader, if known.
        leader: Option<NodeAddress>,
    },
}

/// On the snapshots channel, from who needs one: the newest there is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SnapshotAsk {
    /// Of this shard.
    pub shard: ShardId,
    /// The name of the one received in part, and how many bytes of it.
    pub have: Option<(String, u64)>,
}

/// On the snapshots channel, the answer: the bytes of a file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum SnapshotPart {
    /// What follows.
    Begin {
        /// The file's name.
        name: String,
        /// Its bytes.
        total: u64,
        /// Where the first piece begins.
        from: u64,
    },
    /// The next piece.
    Data(Bytes),
    /// There is none.
    None,
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::WriteId;
    use quorate_shared::status::NodeKind;

    use super::*;

    fn hex<T: Serialize>(value: &T) -> String {
        postcard::to_stdvec(value).unwrap().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn cluster() -> ClusterId {
        ClusterId([0xc1; 16])
    }

    #[test]
    fn golden_envelope() {
        let envelope = Envelope {
            cluster: cluster(),
            epoch: Epoch { number: 1, id: 2 },
            shard: ShardId::new(1),
            from: ReplicaId::new(2),
            to: ReplicaId::new(3),
            message: Bytes::from_static(b"m"),
        };
        assert_eq!(hex(&envelope), "c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c10102010203016d");
    }

    #[test]
    fn golden_requests() {
        let ask = |body| Request { id: 7, origin: NodeId::new(2), deadline_ms: 9, body };
        let proposal = Proposal { write: Some(WriteId::default()), ..Proposal::default() };
        let propose = ask(Ask::Propose { shard: ShardId::DATA, proposal: Box::new(proposal) });
        assert_eq!(hex(&propose), format!("070209000101{}00000000000000", "00".repeat(16)).replace("\n", ""));
        assert_eq!(hex(&ask(Ask::ReadIndex { shard: ShardId::META })), "0702090100");
        assert_eq!(hex(&ask(Ask::Report)), "07020902");
        let report = ReaderReport {
            node: NodeId::new(4),
            kind: NodeKind::Replica,
            sent: Index::new(3),
            received: Index::new(3),
            durable: Index::new(2),
            applied: Index::new(1),
        };
        assert_eq!(
            hex(&ask(Ask::Progress { shard: ShardId::DATA, report })),
            "07020903010401030302 01".replace(' ', "")
        );
        assert_eq!(hex(&ask(Ask::Here)), "07020904");
        let (shard, to) = (ShardId::DATA, NodeId::new(3));
        assert_eq!(hex(&ask(Ask::Transfer { shard, to })), "070209050103");
        assert_eq!(hex(&ask(Ask::Leader { shard })), "0702090601");
        assert_eq!(hex(&ask(Ask::Reserve { action: 300, what: "s".into() })), "07020907ac020173");
        assert_eq!(hex(&ask(Ask::Release { action: 300 })), "07020908ac02");
        let change = MembershipChange::Promote(ReplicaId::new(3));
        assert_eq!(hex(&ask(Ask::Change { shard, change })), "0702090b010103");
        assert_eq!(hex(&ask(Ask::Membership { shard })), "0702090c01");
        let membership = Membership::of_voters([(ReplicaId::new(1), to)]);
        let one = format!("010103{}00000200", "00".repeat(16));
        assert_eq!(hex(&Response { id: 7, body: Reply::Changed(Ok(membership.clone())) }), format!("070800{one}"));
        let known = Reply::Membership { applied: Index::new(5), chain: Hash([0xaa; 32]), membership };
        assert_eq!(hex(&Response { id: 7, body: known }), format!("070905{}{one}", "aa".repeat(32)));
        assert_eq!(hex(&Response { id: 7, body: Reply::Done }), "0704");
        let leading = Leading { term: Term::new(2), node: Some(to), ready: true };
        assert_eq!(hex(&Response { id: 7, body: Reply::Leader(leading) }), "070502010301");
        assert_eq!(hex(&Response { id: 7, body: Reply::ReadIndex(Ok(Index::new(5))) }), "07010005");
        assert_eq!(hex(&Response { id: 7, body: Reply::Proposed(Err(Rejected::Busy)) }), "07000103");
    }

    #[test]
    fn golden_founding_and_shipping() {
        assert_eq!(hex(&Question::Who { voters: vec![NodeId::new(1)] }), "000101");
        let hashes = Question::Hashes { shard: ShardId::DATA, at: vec![Index::new(5), Index::new(300)] };
        assert_eq!(hex(&hashes), "01010205ac02");
        let member = Member { node: NodeId::new(1), nonce: Nonce([0xaa; 16]), replica: ReplicaId::new(1) };
        let founding = Founding {
            cluster: cluster(),
            epoch: Epoch { number: 1, id: 2 },
            members: vec![member],
            replicator: Protocol::Paxos,
        };
        assert_eq!(hex(&founding), format!("{}01020101{}0101", "c1".repeat(16), "aa".repeat(16)));
        assert_eq!(hex(&Shipment::Stream(Bytes::from_static(b"s"))), "000173");
        let leader = Shipment::Leader { shard: ShardId::DATA, term: Term::new(2), leader: None };
        assert_eq!(hex(&leader), "01010200");
    }
}
