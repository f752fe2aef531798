//! Progress in partly connected networks: as long as some node reaches a majority both ways, somebody leads and writes
//! commit within a bound.
//!
//! Left out: the *constrained election* of OmniPaxos's paper (the only node with a majority has an old log). Raft cannot
//! elect anybody there; the `paxos` replicator is for that.

use super::network::Weather;
use super::workload::put;
use super::world::World;
use crate::replica::Protocol;

const PROTOCOLS: [Protocol; 2] = [Protocol::Raft, Protocol::Paxos];

/// Links that work, one way.
fn links(world: &mut World, works: impl Fn(u64, u64) -> bool) {
    for from in world.ids() {
        for to in world.ids() {
            if from != to && !works(from, to) {
                world.cut(from, to);
            }
        }
    }
}

/// A write commits somewhere within ten seconds.
fn progress(world: &mut World, name: &str) {
    let until = world.now + 10_000;
    while world.now < until {
        if let Some(leader) = world.leader() {
            // Each try another key: an earlier one may commit late.
            let key = format!("{name}{}", world.now);
            let ticket = world.propose(leader, put(&key, "x", None, None), 500);
            world.run_for(500);
            if matches!(world.replies.remove(&ticket), Some(Ok(_))) {
                return;
            }
        }
        world.run_for(50);
    }
    panic!("no write commits: {name}; {:?}", world.violation);
}

fn cluster(seed: u64, voters: u64, protocol: Protocol) -> World {
    let mut world = World::with(seed, voters, Weather::FAIR, protocol);
    assert!(world.run_while(10_000, |w| w.leader().is_none()));
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
            let leader = world.leader().unwrap();
            links(&mut world, |from, to| if deaf { to != leader } else { from != leader });
            world.run_for(3_000);
            progress(&mut world, "w");
            assert_ne!(world.leader(), Some(leader));
        }
    }
}

#[test]
fn a_link_that_comes_and_goes_does_not_stop_the_others() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|p| (0..10).map(move |s| (p, s))) {
        let mut world = cluster(seed, 3, protocol);
        let other = world.leader().map(|l| l % 3 + 1).unwrap();
        let mut served = 0;
        for _ in 0..20 {
            links(&mut world, |from, to| from != other && to != other);
            world.run_for(700);
            world.heal();
            world.run_for(300);
            if let Some(leader) = world.leader() {
                let ticket = world.propose(leader, put(&format!("w{served}"), "x", None, None), 200);
                world.run_for(200);
                served += usize::from(matches!(world.replies.remove(&ticket), Some(Ok(_))));
            }
        }
        assert!(served >= 18, "{protocol}, seed {seed}: only {served} of 20 writes");
    }
}
