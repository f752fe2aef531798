//! Seeds without a violation, each planted bug found, and every seed the same twice.

use super::run::{Options, run};
use crate::bug::{BUGS, Bug};
use crate::replica::Protocol;

/// `SIM_SEED=7` runs one, `SIM_SEED=100..200` many.
fn seeds() -> std::ops::Range<u64> {
    match std::env::vars().find(|(k, _)| k == "SIM_SEED") {
        Some((_, range)) => match range.split_once("..") {
            Some((from, to)) => from.parse().unwrap()..to.parse().unwrap(),
            None => {
                let seed = range.parse().unwrap();
                seed..seed + 1
            }
        },
        None => 0..200,
    }
}

fn clean(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let outcome = run(&Options { seed, ..Options::default() });
        if let Some(what) = outcome.violation {
            panic!(
                "seed {seed}: {what}\nreplay: cargo run --release -p quorate-core --example sim -- --seeds {seed}..{} --verbose",
                seed + 1
            );
        }
    }
}

#[test]
fn even_seeds_are_clean() {
    clean(seeds().filter(|seed| seed % 2 == 0));
}

#[test]
fn odd_seeds_are_clean() {
    clean(seeds().filter(|seed| seed % 2 == 1));
}

#[test]
fn a_seed_runs_one_way() {
    for seed in [3, 8, 11, 40, 77, 150] {
        let once = run(&Options { seed, ..Options::default() });
        let again = run(&Options { seed, ..Options::default() });
        assert_eq!((once.trace, once.events), (again.trace, again.events), "seed {seed}");
    }
}

#[test]
fn names_of_bugs() {
    for (bug, name) in BUGS {
        assert_eq!(crate::bug::Bug::named(name), Some(*bug));
        assert_eq!(bug.name(), *name);
    }
}

/// Each planted bug is found. The search begins at a seed that finds it, and goes through all of them if that one does no
/// longer: `cargo run --release -p quorate-core --example sim -- --all-bugs --seeds 0..2000` gives the first for each.
#[test]
fn every_planted_bug_is_found() {
    let known = |bug: Bug| match bug {
        Bug::SkipTermCheck => 117,
        Bug::ReadWithoutReadIndex => 12,
        Bug::LoseTruncation => 23,
        Bug::IgnoreChainMismatch => 10,
        Bug::WipedVoterVotes => 55,
        Bug::KeepUncommitted => 629,
        Bug::RejoinUncut => 60,
        Bug::SnapshotOfNow => 14,
        Bug::UnconfirmedRefusal => 7,
        Bug::ReuseReplicaId | Bug::AnyIncarnation => 5,
        Bug::DropDedupe | Bug::DoubleApply | Bug::TrimPastBase | Bug::TwoEpochs => 2,
        _ => 0,
    };
    for (bug, name) in BUGS {
        let from = known(*bug);
        let found = (from..2_000).chain(0..from).find(|seed| {
            let options = Options { seed: *seed, bug: Some(*bug), ..Options::default() };
            run(&options).violation.is_some()
        });
        assert!(found.is_some(), "{name} is not found");
    }
}

#[test]
fn seeds_of_paxos_are_clean_and_run_one_way() {
    for seed in 0..30 {
        let options = Options { seed, protocol: Protocol::Paxos, ..Options::default() };
        let once = run(&options);
        assert_eq!(once.violation, None, "seed {seed}");
        if seed % 10 == 0 {
            assert_eq!(once.trace, run(&options).trace, "seed {seed}");
        }
    }
}
