//! `cargo run --release -p quorate-core --example flips -- --count 10000 [--from 0] [--say]`
//!
//! Flips so many random bits of a node's log, snapshot and engine files, one at a time, and says how each was noticed.
//! Exit 1 if one was missed. `--from N --count 1 --say` does one again.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod suite;

use std::process::ExitCode;

use suite::{Seen, Tally};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|a| a == name);
        at.map_or(Some(default), |at| args.get(at + 1)?.parse().ok())
    };
    let (Some(count), Some(from)) = (number("--count", 1000), number("--from", 0)) else {
        eprintln!("--count and --from want numbers");
        return ExitCode::from(2);
    };
    let say = args.iter().any(|a| a == "--say");
    // sled says its panics on standard error; each of them is one that was noticed.
    std::panic::set_hook(Box::new(|_| {}));
    let tally = suite::run(from..from + count, |number, seen, said| {
        if say || seen == Seen::Missed {
            println!("flip {number}: {said}");
        }
    });
    print(&tally);
    let of =
        |wanted: fn(Seen) -> bool| tally.iter().filter(|((_, _, seen), _)| wanted(*seen)).map(|(_, n)| n).sum::<u64>();
    let noticed = of(|s| matches!(s, Seen::Open | Seen::Verify | Seen::Scrub | Seen::Torn));
    let (nothing, missed) = (of(|s| s == Seen::NoEffect), of(|s| s == Seen::Missed));
    println!("{count} flips: {noticed} noticed, {nothing} without effect (content equal), {missed} missed");
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(tally: &Tally) {
    println!("fixture {}", suite::fingerprint());
    for ((scene, class, seen), n) in tally {
        println!("{scene:<7} {:<9} {:<9} {n}", format!("{class:?}"), format!("{seen:?}"));
    }
}
