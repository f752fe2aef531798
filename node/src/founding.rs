//! Founding: how the listed voters become a cluster, once.
//!
//! The voter with the lowest id founds, and only when every listed peer has answered in one round that it is empty and
//! that it was started with the same list and the same replicator. The record has each data directory's nonce: a listed peer whose nonce is in it
//! finishes joining, also after a crash. A voter whose directory is another than the recorded one has lost its log: it
//! neither votes nor acknowledges, and founds nothing. So wiped voters never form a new cluster beside one that remains.
//!
//! Left out: the way back for a voter that lost its log (a membership change under a new replica id).

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use quorate_core::log::{BaseRecord, Log, LogRecord, Membership};
use quorate_core::replica::Protocol;
use quorate_shared::ids::{ClusterId, Epoch, NodeId, Nonce, ReplicaId, ShardId};

use crate::peers::Peers;
use crate::peers::message::{Answer, Founding, Member};
use crate::store::{StoreError, names, random_bytes};

/// The shards every cluster has from the start.
pub const SHARDS: [ShardId; 2] = [ShardId::META, ShardId::DATA];
/// Pause between two rounds of questions.
const ROUND: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the peers' answers mean for a voter without a cluster.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// Be the founder.
    Found(Vec<(NodeId, Nonce)>),
    /// Join what was founded.
    Join(Founding),
    /// This voter's log is lost: how, and the cluster it was a voter of.
    Lost(String, Box<Founding>),
    /// Ask again; why.
    Wait(String),
}

/// Decides from one round of answers; `Err` is why a peer gave none. Pure.
pub fn judge(
    me: NodeId,
    nonce: Nonce,
    voters: &[NodeId],
    replicator: Protocol,
    answers: &BTreeMap<NodeId, Result<Answer, String>>,
) -> Verdict {
    let mut waiting: Vec<String> = Vec::new();
    let mut empty = vec![(me, nonce)];
    for (node, answer) in answers {
        let answer = match answer {
            Ok(answer) if answer.node == *node => answer,
            Ok(answer) => {
                waiting.push(format!("at the address of {node} is {}", answer.node));
                continue;
            }
            Err(why) => {
                waiting.push(format!("{node} ({why})"));
                continue;
            }
        };
        if let Some(founding) = &answer.founding {
            match founding.members.iter().find(|m| m.node == me) {
                Some(member) if member.nonce == nonce => return Verdict::Join(founding.clone()),
                Some(_) => {
                    let cluster = founding.cluster;
                    let why =
                        format!("its data directory is new, but {me} is a voter of cluster {cluster} ({node} says so)");
                    return Verdict::Lost(why, Box::new(founding.clone()));
                }
                None => {
                    let others: Vec<NodeId> = founding.members.iter().map(|m| m.node).collect();
                    let cluster = founding.cluster;
                    waiting.push(format!(
                        "OtherCluster: {node} belongs to cluster {cluster}, whose voters are {}",
                        names(&others)
                    ));
                }
            }
        } else if !same_set(&answer.voters, voters) {
            waiting.push(format!("{node} was started with another list of voters: {}", names(&answer.voters)));
        } else if answer.replicator != replicator {
            waiting.push(format!(
                "{node} was started for the {} replicator, this node for {replicator}",
                answer.replicator
            ));
        } else {
            empty.push((*node, answer.nonce));
        }
    }
    if !waiting.is_empty() {
        return Verdict::Wait(format!("it waits for {}", waiting.join(", ")));
    }
    match voters.iter().min() {
        Some(lowest) if *lowest != me => Verdict::Wait(format!("it waits for {lowest} to found the cluster")),
        _ => Verdict::Found(empty),
    }
}

fn same_set(a: &[NodeId], b: &[NodeId]) -> bool {
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    a.sort_unstable();
    b.sort_unstable();
    a == b
}

/// A new cluster's record.
pub fn mint(members: Vec<(NodeId, Nonce)>, replicator: Protocol) -> Result<Founding, StoreError> {
    let id = random_bytes()?;
    let mut members: Vec<Member> =
        members.into_iter().map(|(node, nonce)| Member { node, nonce, replica: ReplicaId::new(node.get()) }).collect();
    members.sort_unstable_by_key(|m| m.node);
    let random = random_bytes()?;
    let epoch =
        u64::from_le_bytes([random[0], random[1], random[2], random[3], random[4], random[5], random[6], random[7]]);
    Ok(Founding { cluster: ClusterId(id), epoch: Epoch { number: 1, id: epoch }, members, replicator })
}

/// The point at which a shard's log begins in a new cluster.
pub fn base_record(founding: &Founding, shard: ShardId) -> BaseRecord {
    BaseRecord::founding(
        shard,
        Membership::of_voters(founding.members.iter().map(|m| (m.replica, m.node))),
        founding.epoch,
    )
}

/// Writes the base records, durably.
pub fn write_bases(
    founding: &Founding,
    replica: ReplicaId,
    log: &mut dyn Log,
) -> Result<(), quorate_core::error::Fatal> {
    for shard in SHARDS {
        log.append(replica, shard, &[LogRecord::Base(base_record(founding, shard))])?;
    }
    log.sync()
}

/// Asks the listed peers until it is clear what to do. Says through `state` what it waits for.
pub async fn agree(
    peers: &Peers,
    me: NodeId,
    nonce: Nonce,
    voters: &BTreeMap<NodeId, String>,
    replicator: Protocol,
    state: impl Fn(String),
) -> Verdict {
    let ids: Vec<NodeId> = voters.keys().copied().collect();
    let mut pause = ROUND.0;
    let mut told = String::new();
    loop {
        let others = voters.iter().filter(|(node, _)| **node != me);
        let answers: BTreeMap<_, _> =
            join_all(others.map(|(node, address)| async { (*node, peers.who(address, Some(*node)).await) }))
                .await
                .into_iter()
                .collect();
        match judge(me, nonce, &ids, replicator, &answers) {
            Verdict::Wait(why) => {
                if why != told {
                    tracing::info!("no cluster yet: {why}");
                    told.clone_from(&why);
                }
                state(why);
            }
            verdict => return verdict,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ROUND.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(id: u64) -> NodeId {
        NodeId::new(id)
    }
    fn nonce(id: u8) -> Nonce {
        Nonce([id; 16])
    }
    fn empty(id: u8) -> Result<Answer, String> {
        let voters = vec![n(3), n(2), n(1)];
        Ok(Answer {
            node: n(id.into()),
            nonce: nonce(id),
            voters,
            founding: None,
            master: None,
            nodes: vec![],
            replicator: Protocol::Raft,
            epochs: vec![],
        })
    }
    fn founded(id: u8) -> Result<Answer, String> {
        let founding = mint(vec![(n(1), nonce(1)), (n(2), nonce(2)), (n(3), nonce(3))], Protocol::Raft).unwrap();
        empty(id).map(|a| Answer { founding: Some(founding), ..a })
    }
    fn round(me: u8, my_nonce: u8, answers: [(u64, Result<Answer, String>); 2]) -> Verdict {
        let answers = answers.into_iter().map(|(id, a)| (n(id), a)).collect();
        judge(n(me.into()), nonce(my_nonce), &[n(1), n(2), n(3)], Protocol::Raft, &answers)
    }

    #[test]
    fn the_lowest_founds_when_all_are_empty() {
        let Verdict::Found(members) = round(1, 1, [(2, empty(2)), (3, empty(3))]) else { panic!("founds") };
        assert_eq!(members, [(n(1), nonce(1)), (n(2), nonce(2)), (n(3), nonce(3))]);
        assert!(matches!(round(2, 2, [(1, empty(1)), (3, empty(3))]), Verdict::Wait(_)));
    }

    #[test]
    fn one_silent_peer_is_enough_to_wait() {
        assert!(matches!(round(1, 1, [(2, empty(2)), (3, Err("refused".into()))]), Verdict::Wait(_)));
    }

    #[test]
    fn a_wiped_voter_is_lost_and_wiped_ones_do_not_found() {
        assert!(matches!(round(1, 9, [(2, empty(2)), (3, founded(3))]), Verdict::Lost(..)));
        assert!(matches!(round(2, 9, [(1, empty(1)), (3, founded(3))]), Verdict::Lost(..)));
        assert!(matches!(round(1, 9, [(2, empty(2)), (3, Err("down".into()))]), Verdict::Wait(_)));
    }

    #[test]
    fn a_listed_nonce_finishes_joining() {
        assert!(matches!(round(3, 3, [(1, founded(1)), (2, Err("down".into()))]), Verdict::Join(_)));
    }

    #[test]
    fn other_lists_and_swapped_addresses_found_nothing() {
        let other = empty(2).map(|a| Answer { voters: vec![n(1), n(2)], ..a });
        assert!(matches!(round(1, 1, [(2, other), (3, empty(3))]), Verdict::Wait(_)));
        let other = empty(2).map(|a| Answer { replicator: Protocol::Paxos, ..a });
        let Verdict::Wait(why) = round(1, 1, [(2, other), (3, empty(3))]) else { panic!("waits") };
        assert!(why.contains("n2 was started for the paxos replicator, this node for raft"), "{why}");
        assert!(matches!(round(1, 1, [(2, empty(3)), (3, empty(3))]), Verdict::Wait(_)));
    }
}
