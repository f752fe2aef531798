//! Progress in partly connected networks: as long as some node reaches a majority both ways, somebody leads and writes
//! commit within a bound.
//!
//! In the *constrained election* of OmniPaxos's paper the only node with a majority has an old log: Raft cannot elect
//! anybody there, and the test says so; the `paxos` replicator serves. The two topologies of openraft's issues are its
//! #2080 (an old leader keeps a bridge of the majority quiet) and #2111 (a voter that reaches a follower, not the leader,
//! must not disturb).

use super::network::Weather;
use super::workload::put;
use super::world::{SHARD, World};
use crate::replica::Protocol;

const PROTOCOLS: [Protocol; 2] = [Protocol::Raft, Protocol::Paxos];

/// Links that work, one way.
fn links(world: &mut World, works: impl Fn(u64, u64) -> bool) {
    for from in world.ids(SHARD) {
        for to in world.ids(SHARD) {
            if from != to && !works(from, to) {
                world.cut(from, to);
            }
        }
    }
}

/// A write commits somewhere within five seconds.
fn progress(world: &mut World, name: &str) {
    assert!(serves(world, name), "no write commits: {name}; {:?}", world.violation);
}

/// Whether one does.
fn serves(world: &mut World, name: &str) -> bool {
    let until = world.now + 5_000;
    while world.now < until {
        if let Some(leader) = world.leader(SHARD) {
            // Each try another key: an earlier one may commit late.
            let key = format!("{name}{}", world.now);
            let ticket = world.propose(leader, put(&key, "x", None, None), 500);
            world.run_for(500);
            if matches!(world.replies.remove(&ticket), Some(Ok(_))) {
                return true;
            }
        }
        world.run_for(50);
    }
    false
}

/// The leader and the other voters.
fn roles(world: &World) -> (u64, Vec<u64>) {
    let leader = world.leader(SHARD).unwrap();
    (leader, world.ids(SHARD).into_iter().filter(|id| *id != leader).collect())
}

/// Keeps these links, both ways, and no others.
fn only(world: &mut World, kept: &[(u64, u64)]) {
    links(world, |from, to| kept.contains(&(from, to)) || kept.contains(&(to, from)));
}

fn cluster(seed: u64, voters: u64, protocol: Protocol) -> World {
    let mut world = World::with(seed, voters, Weather::FAIR, protocol);
    assert!(world.run_while(10_000, |w| w.leader(SHARD).is_none()));
    world.run_for(200);
    world
}

#[test]
fn a_hub_is_enough() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..10).map(move |s| (p, s))) {
        for hub in [1, 3] {
            let mut world = cluster(seed, 5, protocol);
            links(&mut world, |from, to| from == hub || to == hub);
            progress(&mut world, "h");
        }
    }
}

#[test]
fn a_chain_is_enough() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..10).map(move |s| (p, s))) {
        let mut world = cluster(seed, 3, protocol);
        links(&mut world, |from, to| from.abs_diff(to) == 1);
        progress(&mut world, "c");
        let mut world = cluster(seed, 5, protocol);
        links(&mut world, |from, to| from.abs_diff(to) <= 2);
        progress(&mut world, "b");
    }
}

#[test]
fn a_leader_that_is_not_heard_or_hears_nobody_is_replaced() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..10).map(move |s| (p, s))) {
        for deaf in [false, true] {
            let mut world = cluster(seed, 3, protocol);
            let leader = world.leader(SHARD).unwrap();
            links(&mut world, |from, to| if deaf { to != leader } else { from != leader });
            world.run_for(3_000);
            progress(&mut world, "w");
            assert_ne!(world.leader(SHARD), Some(leader));
        }
    }
}

#[test]
fn a_link_that_comes_and_goes_does_not_stop_the_others() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..10).map(move |s| (p, s))) {
        let mut world = cluster(seed, 3, protocol);
        let other = world.leader(SHARD).map(|l| l % 3 + 1).unwrap();
        let mut served = 0;
        for _ in 0..20 {
            links(&mut world, |from, to| from != other && to != other);
            world.run_for(700);
            world.heal();
            world.run_for(300);
            if let Some(leader) = world.leader(SHARD) {
                let ticket = world.propose(leader, put(&format!("w{served}"), "x", None, None), 200);
                world.run_for(200);
                served += usize::from(matches!(world.replies.remove(&ticket), Some(Ok(_))));
            }
        }
        assert!(served >= 18, "{protocol}, seed {seed}: only {served} of 20 writes");
    }
}

#[test]
fn quorum_loss_the_leader_is_heard_by_the_hub_alone() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..6).map(move |s| (p, s))) {
        let mut world = cluster(seed, 5, protocol);
        let (_, others) = roles(&world);
        let hub = others[0];
        links(&mut world, |from, to| from == hub || to == hub);
        progress(&mut world, "q");
    }
}

#[test]
fn openraft_2080_a_bridge_still_hears_the_old_leader() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..6).map(move |s| (p, s))) {
        let mut world = cluster(seed, 5, protocol);
        let (leader, others) = roles(&world);
        let [a, b, bridge, _] = others[..] else { panic!("five voters") };
        only(&mut world, &[(a, b), (a, bridge), (b, bridge), (bridge, leader)]);
        progress(&mut world, "o");
    }
}

#[test]
fn openraft_2111_two_leaves_do_not_disturb_the_leader() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..6).map(move |s| (p, s))) {
        let mut world = cluster(seed, 5, protocol);
        let (one, others) = roles(&world);
        let [two, three, four, five] = others[..] else { panic!("five voters") };
        only(&mut world, &[(one, two), (one, three), (two, three), (two, four), (one, five)]);
        progress(&mut world, "t");
        if protocol == Protocol::Raft {
            let term = world.view(one).map(|v| v.term);
            world.run_for(10_000);
            assert_eq!(world.leader(SHARD), Some(one), "seed {seed}: the leader was disturbed");
            assert_eq!(world.view(one).map(|v| v.term), term, "seed {seed}: terms were inflated");
        }
        progress(&mut world, "u");
    }
}

#[test]
fn constrained_election_is_won_with_an_old_log_by_paxos_alone() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..6).map(move |s| (p, s))) {
        let mut world = cluster(seed, 5, protocol);
        let (leader, others) = roles(&world);
        let hub = others[0];
        // The hub misses a write, then becomes the only one that reaches a majority.
        links(&mut world, |from, to| from != hub && to != hub);
        progress(&mut world, "m");
        world.heal();
        links(&mut world, |from, to| from != leader && to != leader && (from == hub || to == hub));
        let served = serves(&mut world, "c");
        match protocol {
            Protocol::Paxos => assert!(served, "seed {seed}: {:?}", world.violation),
            Protocol::Raft => assert!(!served, "seed {seed}: Raft cannot elect a voter with an old log"),
        }
    }
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..6).map(move |s| (p, s))) {
        let mut world = cluster(seed, 3, protocol);
        let (leader, _) = roles(&world);
        world.stall(leader, true);
        world.propose(leader, put("hung", "x", None, None), 500);
        world.run_for(2_000);
        progress(&mut world, "d");
        assert_ne!(world.leader(SHARD), Some(leader), "{protocol}, seed {seed}");
    }
}

#[test]
fn a_rejoining_node_with_a_huge_term_costs_one_election() {
    for seed in 0..6 {
        let mut world = cluster(seed, 3, Protocol::Raft);
        let (_, others) = roles(&world);
        world.shut_down(others[0]);
        world.run_for(500);
        world.inflate_term(others[0], 1_000_000);
        world.start(others[0]);
        progress(&mut world, "h");
        world.run_for(1_000);
        progress(&mut world, "i");
        assert_eq!(world.violation, None, "seed {seed}");
    }
}
