//! The same under the `paxos` replicator: voters vote at once, and every change begins a new configuration.

use super::cluster::{Cluster, Rng};
use super::*;

fn paxos(seed: u64, voters: u64, others: u64) -> Cluster {
    let mut cluster = Cluster::with(Protocol::Paxos, seed, voters, others);
    writes(&mut cluster);
    cluster
}

/// Makes a change as soon as the leader has heard of everybody it needs.
fn made(c: &mut Cluster, asked: MembershipChange) -> Vec<u64> {
    let until = c.now + 3_000;
    loop {
        match change(c, asked) {
            Ok(voters) => return voters,
            Err(Refused::WouldLoseQuorum { .. } | Refused::NotReady(_)) if c.now < until => c.run(20),
            Err(refused) => panic!("{asked:?}: {refused}; {}", c.picture()),
        }
    }
}

/// One random change, as an operator might ask for it.
pub fn random_change(c: &mut Cluster, nodes: u64) -> Option<MembershipChange> {
    let membership = c.membership();
    let voters: Vec<_> = membership.voters.iter().map(|m| m.replica).collect();
    let pick = |rng: &mut Rng| voters[rng.range(0, voters.len() as u64 - 1) as usize];
    let lost = membership.voters.iter().find(|m| c.replica(m.node.get()) != m.replica);
    let lost = lost.map(|m| MembershipChange::ReplaceVoter { remove: m.replica, voter: c.host(m.node.get()) });
    let node = c.rng.range(1, nodes);
    Some(match c.rng.range(0, 9) {
        0..=2 if lost.is_some() => lost?,
        0..=4 => MembershipChange::AddVoter(c.host(node)),
        5..=6 => MembershipChange::Remove(pick(&mut c.rng)),
        7..=8 => MembershipChange::ReplaceVoter { remove: pick(&mut c.rng), voter: c.host(node) },
        _ => MembershipChange::Demote(pick(&mut c.rng)),
    })
}

#[test]
fn a_dead_voter_is_replaced() {
    for seed in 0..5 {
        let mut c = paxos(seed, 3, 1);
        let leader = c.leader().unwrap();
        let dead = (1..=3).find(|n| *n != leader).unwrap();
        let other = (1..=3).find(|n| *n != leader && *n != dead).unwrap();
        c.crash(dead);
        writes(&mut c);
        c.run(1_500);
        let voter = host(&c, 4);
        let voters = made(&mut c, MembershipChange::ReplaceVoter { remove: r(dead), voter });
        assert!(!voters.contains(&dead) && voters.contains(&4), "seed {seed}: {voters:?}");
        c.until("the new voter takes its id", |c| c.replica(4) == r(4));
        writes(&mut c);
        c.converge();
        // It counts: without it there is no majority any more.
        c.crash(other);
        writes(&mut c);
        // The dead one comes back, in a configuration that is over, and is shipped to.
        c.start(dead);
        c.until("it is shipped to", |c| c.replica(dead) == ReplicaId::NONE);
        c.start(other);
        writes(&mut c);
        c.converge();
    }
}

#[test]
fn voters_come_and_go_one_by_one() {
    let mut c = paxos(1, 2, 3);
    for node in 3..=5 {
        let voter = host(&c, node);
        made(&mut c, MembershipChange::AddVoter(voter));
        c.until("it votes", |c| c.replica(node) == r(node));
        writes(&mut c);
    }
    let leader = c.leader().unwrap();
    for node in (1..=5).filter(|n| *n != leader).take(3) {
        c.until("the first leader leads", |c| c.leader() == Some(leader));
        made(&mut c, MembershipChange::Remove(r(node)));
        c.until("it is shipped to", |c| c.replica(node) == ReplicaId::NONE);
        writes(&mut c);
    }
    assert_eq!(c.membership().changes, 6);
    c.converge();
}

/// A voter that was away while the others went through several configurations finds out and takes part in the last one.
#[test]
fn who_was_away_finds_the_newest_configuration() {
    for seed in 0..5 {
        let mut c = paxos(seed, 5, 2);
        let leader = c.leader().unwrap();
        let away = (1..=5).find(|n| *n != leader).unwrap();
        c.crash(away);
        let others: Vec<u64> = (1..=5).filter(|n| *n != leader && *n != away).collect();
        c.run(1_500);
        for (old, new) in others.into_iter().zip([6, 7]) {
            writes(&mut c);
            c.until("the first leader leads", |c| c.leader() == Some(leader));
            let voter = host(&c, new);
            made(&mut c, MembershipChange::ReplaceVoter { remove: r(old), voter });
            c.until("the new one votes", |c| c.replica(new) != ReplicaId::NONE);
        }
        c.start(away);
        writes(&mut c);
        c.converge();
        assert_eq!(c.replica(away), r(away));
    }
}

#[test]
fn what_it_cannot_do_is_refused_by_name() {
    let mut c = paxos(3, 2, 2);
    let (leader, voter) = (c.leader().unwrap(), host(&c, 3));
    let unsupported = |what: &str| Err(Refused::Unsupported(what.into()));
    let other = 3 - leader;
    assert_eq!(change(&mut c, MembershipChange::AddLearner(voter)), unsupported("learners"));
    assert_eq!(change(&mut c, MembershipChange::Demote(r(other))), unsupported("learners"));
    let replace = MembershipChange::Replace { remove: r(other), learner: voter };
    assert_eq!(change(&mut c, replace), unsupported("learners"));
    assert_eq!(change(&mut c, MembershipChange::Remove(r(other))), unsupported("configuration of one voter"));
    let first = c.change(leader, MembershipChange::AddVoter(voter));
    let second = c.change(leader, MembershipChange::Remove(r(other)));
    assert_eq!(c.changed.remove(&second), Some(Err(Refused::InProgress)));
    c.until("the first is answered", |c| c.changed.contains_key(&first));
    assert!(c.changed.remove(&first).unwrap().is_ok());
    writes(&mut c);
    c.converge();
}

/// The leader crashes at any moment of a change: what comes of it is one or the other, and everybody agrees.
#[test]
fn a_leader_that_crashes_while_changing_leaves_one_configuration() {
    for seed in 0..20 {
        let mut c = paxos(seed, 4, 1);
        let leader = c.leader().unwrap();
        let gone = (1..=4).find(|n| *n != leader).unwrap();
        let voter = host(&c, 5);
        let ticket = c.change(leader, MembershipChange::ReplaceVoter { remove: r(gone), voter });
        let moment = c.rng.range(1, 12);
        c.run(moment);
        c.crash(leader);
        c.until("somebody else leads", |c| c.leader().is_some_and(|l| l != leader));
        writes(&mut c);
        c.start(leader);
        c.run(1_500);
        if c.changed.remove(&ticket).is_some_and(|done| done.is_ok()) {
            assert!(!c.membership().contains(r(gone)), "seed {seed}: it was answered");
        }
        writes(&mut c);
        c.converge();
    }
}

/// The longest time without an acknowledged write around a change that takes no voter away.
#[test]
fn a_change_leaves_a_short_gap() {
    let mut worst = 0;
    for seed in 0..20 {
        let mut c = paxos(seed, 3, 1);
        c.clients = 8;
        c.run(500);
        c.acked_at.clear();
        let from = c.now;
        let voter = host(&c, 4);
        assert!(change(&mut c, MembershipChange::AddVoter(voter)).is_ok(), "seed {seed}");
        c.run(1_500);
        let times: Vec<u64> = std::iter::once(from).chain(c.acked_at.iter().copied()).collect();
        worst = worst.max(times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(u64::MAX));
    }
    assert!(worst < 200, "{worst} ms without a write");
}
