//! Runs the simulator: `cargo run --release -p quorate-core --example sim -- --seeds 0..1000`.
//!
//! `--bug NAME` runs with a planted bug and stops at the first seed that finds it; `--list-bugs` names them;
//! `--all-bugs` makes the table of bugs and the seeds that find them. `--verbose` prints what happens. With `--twice` every
//! seed runs twice, and two runs that differ are a violation. The last line is `N seeds, M violations`; the exit code is 1
//! if there was one.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "it measures how long it takes")]

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use quorate_core::bug::{BUGS, Bug};
use quorate_core::replica::Protocol;
use quorate_core::sim::{Options, Outcome, run};

struct Args {
    seeds: Range<u64>,
    bug: Option<Bug>,
    all_bugs: bool,
    list: bool,
    verbose: bool,
    twice: bool,
    voters: Option<u64>,
    protocol: Protocol,
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    eprintln!(
        "usage: sim [--seeds A..B] [--replicator raft|paxos] [--bug NAME | --all-bugs | --list-bugs] [--voters N] [--twice] [--verbose]"
    );
    ExitCode::from(2)
}

fn parse() -> Result<Args, String> {
    let mut out = Args {
        seeds: 0..1000,
        bug: None,
        all_bugs: false,
        list: false,
        verbose: false,
        twice: false,
        voters: None,
        protocol: Protocol::Raft,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--seeds" => {
                let text = value()?;
                let range = text.split_once("..").map(|(a, b)| (a.parse(), b.parse()));
                let Some((Ok(from), Ok(to))) = range else { return Err(format!("not a range of seeds: {text}")) };
                out.seeds = from..to;
            }
            "--bug" => {
                let name = value()?;
                out.bug = Some(Bug::named(&name).ok_or_else(|| format!("no such bug: {name}; see --list-bugs"))?);
            }
            "--replicator" => {
                let name = value()?;
                out.protocol = name.parse().map_err(|_| format!("no such replicator: {name}"))?;
            }
            "--voters" => out.voters = Some(value()?.parse().map_err(|_| "--voters wants a number")?),
            "--all-bugs" => out.all_bugs = true,
            "--list-bugs" => out.list = true,
            "--verbose" => out.verbose = true,
            "--twice" => out.twice = true,
            _ => return Err(format!("unknown argument: {arg}")),
        }
    }
    Ok(out)
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    virtual_ms: u64,
    five: (u64, f64),
    events: u64,
    writes: u64,
    reads: u64,
    terms: usize,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome, seconds: f64) {
        self.seeds += 1;
        self.virtual_ms += outcome.virtual_ms;
        self.events += outcome.events;
        self.writes += outcome.writes;
        self.reads += outcome.reads;
        self.terms += outcome.terms;
        if outcome.voters == 5 {
            self.five.0 += outcome.virtual_ms;
            self.five.1 += seconds;
        }
    }

    fn print(&self, elapsed: f64) {
        let seconds = busy();
        let hours = self.virtual_ms as f64 / 3.6e6;
        println!(
            "{hours:.2} hours of virtual time in {elapsed:.1} s, {seconds:.1} s of a core: {:.0} times real time; {} events, {} writes, {} reads, {} terms",
            self.virtual_ms as f64 / 1000.0 / seconds,
            self.events,
            self.writes,
            self.reads,
            self.terms
        );
        if self.five.0 > 0 {
            println!("clusters of 5 voters: {:.0} times real time", self.five.0 as f64 / 1000.0 / self.five.1);
        }
    }
}

/// Seconds this process has had of a core.
fn busy() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn once(seed: u64, args: &Args, bug: Option<Bug>, sum: &mut Sum) -> Outcome {
    let begun = busy();
    let outcome = run(&Options { seed, bug, protocol: args.protocol, verbose: args.verbose, voters: args.voters });
    sum.add(&outcome, busy() - begun);
    outcome
}

/// The first seed that finds a bug.
fn find(args: &Args, bug: Bug, sum: &mut Sum) -> Option<(u64, String)> {
    args.seeds.clone().find_map(|seed| once(seed, args, Some(bug), sum).violation.map(|what| (seed, what)))
}

fn all_bugs(args: &Args) -> ExitCode {
    let mut missed = 0;
    let mut sum = Sum::default();
    println!("| bug | seed | found as |\n|---|---|---|");
    for (bug, name) in BUGS {
        match find(args, *bug, &mut sum) {
            Some((seed, what)) => println!("| {name} | {seed} | {what} |"),
            None => {
                missed += 1;
                println!("| {name} | - | not found |");
            }
        }
    }
    println!("{} seeds, {missed} bugs not found", sum.seeds);
    ExitCode::from(u8::from(missed > 0))
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(problem) => return usage(&problem),
    };
    if args.list {
        BUGS.iter().for_each(|(_, name)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    // A panic is a violation, and reported as one.
    std::panic::set_hook(Box::new(|_| {}));
    if args.all_bugs {
        return all_bugs(&args);
    }
    let begun = Instant::now();
    let mut sum = Sum::default();
    let (mut seeds, mut violations) = (0, 0);
    for seed in args.seeds.clone() {
        seeds += 1;
        let mut outcome = once(seed, &args, args.bug, &mut sum);
        if args.twice {
            let again = once(seed, &args, args.bug, &mut sum);
            if (outcome.trace, outcome.events) != (again.trace, again.events) {
                outcome.violation.get_or_insert_with(|| "it does not run the same way twice".into());
            }
        }
        if let Some(text) = &outcome.text {
            print!("{text}");
        }
        if let Some(what) = &outcome.violation {
            violations += 1;
            println!("seed {seed}: {what}");
            let bug = args.bug.map_or(String::new(), |bug| format!(" --bug {}", bug.name()));
            let voters = args.voters.map_or(String::new(), |n| format!(" --voters {n}"));
            let end = seed + 1;
            println!(
                "replay: cargo run --release -p quorate-core --example sim -- --seeds {seed}..{end} --replicator {}{bug}{voters} --verbose",
                args.protocol
            );
            if args.bug.is_some() {
                break;
            }
        }
    }
    sum.print(begun.elapsed().as_secs_f64());
    println!("{seeds} seeds, {violations} violations");
    ExitCode::from(u8::from(violations > 0))
}
