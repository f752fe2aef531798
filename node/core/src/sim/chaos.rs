//! Whole clusters under faults, many seeds: crashes, cuts, lost, doubled and reordered messages, while clients write
//! with write ids, retry and follow the leader as the client library does.
//!
//! Shown: no acknowledged write is lost or executed twice (each needs its key not to exist), a read sees every write
//! acknowledged before it, a log-shipped replica has what the voters have, after the faults everything converges and
//! serves, and a seed always runs the same way.

use std::collections::BTreeMap;

use quorate_shared::ids::Index;

use super::reader::Reader;
use super::{Rng, Weather, World, base, put, value};
use crate::error::Rejected;
use crate::replica::Protocol;
use crate::shard::Ticket;

const CLIENTS: u8 = 4;
const FAULTS_MS: u64 = 10_000;

struct Client {
    id: u8,
    seq: u64,
    to: u64,
    /// The ticket, and whether the outcome of an earlier try is unknown.
    waiting: Option<Ticket>,
    unsure: bool,
    pause_until: u64,
    read: Option<(Ticket, Index)>,
}

struct Chaos {
    world: World,
    rng: Rng,
    clients: Vec<Client>,
    reader: Option<Reader>,
    acked: BTreeMap<(u8, u64), Index>,
    highest: Index,
    reads: usize,
}

fn name(client: u8, seq: u64) -> String {
    format!("{client}/{seq}")
}

impl Chaos {
    fn new(seed: u64, protocol: Protocol) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(31));
        let voters = if rng.chance(300) { 5 } else { 3 };
        let delay = rng.range(1, 30);
        let sync = rng.range(1, 40);
        let weather = Weather { delay: (1, delay), sync: (1, sync), drop: rng.range(0, 100), double: rng.range(0, 50) };
        let client = |id| Client { id, seq: 1, to: 1, waiting: None, unsure: false, pause_until: 0, read: None };
        Chaos {
            world: World::with(seed, voters, weather, protocol),
            rng,
            reader: Some(Reader::new(base(voters))),
            clients: (1..=CLIENTS).map(client).collect(),
            acked: BTreeMap::new(),
            highest: Index::new(0),
            reads: 0,
        }
    }

    fn client_step(&mut self, at: usize) {
        let ids = self.world.ids();
        let client = &mut self.clients[at];
        if let Some((ticket, floor)) = client.read
            && let Some(result) = self.world.reads.remove(&ticket)
        {
            client.read = None;
            if let Ok(index) = result {
                assert!(index >= floor, "a read at {index} does not see the write acknowledged at {floor}");
                self.reads += 1;
            }
        }
        if client.read.is_none() && self.rng.chance(20) {
            client.read = Some((self.world.read(client.to, 500), self.highest));
        }
        if let Some(ticket) = client.waiting {
            let Some(result) = self.world.replies.remove(&ticket) else {
                // A client does not wait for a node that has died.
                if !self.world.is_up(client.to) {
                    client.waiting = None;
                    client.unsure = true;
                    client.to = ids[usize::try_from(self.rng.next()).unwrap() % ids.len()];
                }
                return;
            };
            client.waiting = None;
            match result {
                Ok(done) => {
                    assert!(!done.duplicate || client.unsure, "a duplicate of what was never sent before");
                    self.acked.insert((client.id, client.seq), done.index);
                    self.highest = self.highest.max(done.index);
                    client.seq += 1;
                    client.unsure = false;
                    client.pause_until = self.world.now + self.rng.range(0, 40);
                }
                Err(Rejected::NotLeader(Some(node))) => client.to = node.get(),
                Err(
                    rejected @ (Rejected::NotLeader(None) | Rejected::Retry(_) | Rejected::Unknown(_) | Rejected::Busy),
                ) => {
                    client.unsure |= matches!(rejected, Rejected::Unknown(_));
                    client.to = ids[usize::try_from(self.rng.next()).unwrap() % ids.len()];
                    client.pause_until = self.world.now + self.rng.range(5, 50);
                }
                Err(other) => panic!("client {} write {}: {other}", client.id, client.seq),
            }
            return;
        }
        if self.world.now < client.pause_until {
            return;
        }
        let proposal = put(&name(client.id, client.seq), "x", None, Some((client.id, client.seq)));
        client.waiting = Some(self.world.propose(client.to, proposal, 3_000));
    }

    fn fault(&mut self) {
        let ids = self.world.ids();
        let victim = ids[usize::try_from(self.rng.next()).unwrap() % ids.len()];
        match self.rng.range(0, 9) {
            0..=2 if self.world.is_up(victim) => self.world.crash(victim),
            3 => {
                let (mut one, mut two) = (Vec::new(), Vec::new());
                for id in ids {
                    if self.rng.chance(500) { one.push(id) } else { two.push(id) }
                }
                self.world.partition(&[one, two]);
            }
            4 => {
                let other = ids[usize::try_from(self.rng.next()).unwrap() % ids.len()];
                self.world.cut(victim, other);
            }
            5 => self.world.heal(),
            6 => {
                let stalled = self.rng.chance(400);
                self.world.stall(victim, stalled);
            }
            _ => self.restart_one(),
        }
    }

    /// The replica pulls, from one server until something breaks.
    fn read_on(&mut self) {
        let Some(mut reader) = self.reader.take() else { return };
        if self.rng.chance(300) {
            let ids = self.world.ids();
            let server = ids[usize::try_from(self.rng.next()).unwrap() % ids.len()];
            reader.pull(&self.world, server);
        }
        if self.rng.chance(200) {
            reader.sync();
        }
        let (index, chain) = reader.applied();
        self.world.check_chain(index, chain);
        if self.rng.chance(5) {
            reader.disconnect();
        }
        if self.rng.chance(2) {
            reader = reader.restart(&mut self.rng);
        }
        self.reader = Some(reader);
    }

    fn restart_one(&mut self) {
        if let Some(down) = self.world.ids().into_iter().find(|id| !self.world.is_up(*id)) {
            if self.rng.chance(300) {
                self.world.wipe_engine(down);
            }
            self.world.start(down);
        }
    }

    fn run(mut self) -> String {
        while self.world.now < FAULTS_MS {
            self.world.run_for(1);
            (0..self.clients.len()).for_each(|c| self.client_step(c));
            self.read_on();
            if self.rng.chance(5) {
                self.fault();
            }
        }
        self.calm();
        let before = self.acked.len();
        let until = self.world.now + 2_000;
        while self.world.now < until {
            self.world.run_for(1);
            (0..self.clients.len()).for_each(|c| self.client_step(c));
            self.read_on();
        }
        assert!(self.acked.len() > before + 40, "no progress after the faults: {before} then {}", self.acked.len());
        self.converge();
        let _ = std::fmt::Write::write_fmt(
            &mut self.world.trace,
            format_args!("{} writes, {} reads\n", self.acked.len(), self.reads),
        );
        self.world.trace
    }

    fn calm(&mut self) {
        self.world.heal();
        self.world.weather = Weather::FAIR;
        for id in self.world.ids() {
            self.world.stall(id, false);
            if !self.world.is_up(id) {
                self.world.start(id);
            }
        }
        self.world.run_for(3_000);
    }

    fn converge(&mut self) {
        for _ in 0..3_500 {
            self.world.run_for(1);
            self.read_on();
        }
        let views: Vec<_> = self.world.ids().into_iter().map(|id| self.world.view(id).unwrap()).collect();
        assert!(views.iter().all(|v| v.applied == views[0].applied), "not all are equal: {views:?}");
        let reader = self.reader.as_ref().unwrap();
        assert_eq!(reader.applied().0, views[0].applied, "the replica has not everything");
        for (&(client, seq), index) in &self.acked {
            assert_eq!(
                value(&*reader.tree, &name(client, seq)).as_deref(),
                Some("x"),
                "the replica lacks {client}/{seq}"
            );
            for id in self.world.ids() {
                let value = self.world.get(id, &name(client, seq));
                assert_eq!(value.as_deref(), Some("x"), "n{id} has lost {client}/{seq}, acknowledged at {index}");
            }
        }
        // A client's writes are one after the other: nothing beyond the one it waits for may exist.
        for client in &self.clients {
            assert_eq!(self.world.get(1, &name(client.id, client.seq + 1)), None);
        }
    }
}

/// `SIM_SEED=7` runs one, `SIM_SEED=100..200` many.
fn seeds() -> Vec<u64> {
    match std::env::vars().find(|(k, _)| k == "SIM_SEED") {
        Some((_, range)) if range.contains("..") => {
            let (from, to) = range.split_once("..").unwrap();
            (from.parse().unwrap()..to.parse().unwrap()).collect()
        }
        Some((_, seed)) => vec![seed.parse().unwrap()],
        None => (0..50).collect(),
    }
}

#[test]
fn faults_lose_nothing() {
    run_all(Protocol::Raft);
}

#[test]
fn faults_lose_nothing_under_paxos() {
    run_all(Protocol::Paxos);
}

fn run_all(protocol: Protocol) {
    for seed in seeds() {
        let run = std::panic::catch_unwind(|| Chaos::new(seed, protocol).run());
        if run.is_err() {
            panic!(
                "{protocol} seed {seed} failed; replay: SIM_SEED={seed} cargo test -p quorate-core faults_lose_nothing"
            );
        }
    }
}

#[test]
fn a_seed_runs_one_way() {
    for protocol in [Protocol::Raft, Protocol::Paxos] {
        for seed in [3, 1_000] {
            let run = || Chaos::new(seed, protocol).run();
            assert_eq!(run(), run(), "{protocol} seed {seed}");
        }
    }
}
