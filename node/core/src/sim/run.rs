//! One seed, from an empty cluster to the oracle's word.

use super::Rng;
use super::client::Client;
use super::history::{Ended, History, Operation, What};
use super::invariants::indexes;
use super::oracle;
use super::place::{ByShard, Place};
use super::plan::Plan;
use super::reads::{Level, Query, ReadResult};
use super::schema;
use super::workload::{self, LISTS, SET, SET_END};
use super::world::{CLIENTS, ToClient, World};
use crate::bug::{Bug, plant};
use crate::replica::Protocol;
use quorate_shared::ids::ShardId;

/// After the faults some write must be acknowledged within this.
const SERVE_MS: u64 = 5_000;
/// After the clients all replicas must be equal within this.
const CONVERGE_MS: u64 = 15_000;
/// Clients go on for so long after the faults.
const CALM_MS: u64 = 1_500;

/// How to run a seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub seed: u64,
    pub bug: Option<Bug>,
    pub verbose: bool,
    pub protocol: Protocol,
    /// So many voters, whatever the seed says.
    pub voters: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What is wrong, if anything.
    pub violation: Option<String>,
    /// The same for every run of the seed.
    pub trace: u64,
    pub virtual_ms: u64,
    pub events: u64,
    pub voters: u64,
    /// Writes acknowledged, reads done, terms that had a leader.
    pub writes: u64,
    pub reads: u64,
    pub terms: usize,
    pub text: Option<String>,
}

struct Run {
    world: World,
    plan: Plan,
    rng: Rng,
    clients: Vec<Client>,
    history: History,
}

/// Runs a seed. A panic in it is a violation like any other.
pub fn run(options: &Options) -> Outcome {
    plant(options.bug);
    let ran = std::panic::catch_unwind(|| Run::new(options).go());
    plant(None);
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let what = format!("it panicked: {}", text.unwrap_or_default());
        Outcome { violation: Some(what), ..Outcome::default() }
    })
}

impl Run {
    fn new(options: &Options) -> Run {
        let mut plan = Plan::of(options.seed, options.protocol, options.verbose);
        plan.shape.voters = options.voters.unwrap_or(plan.shape.voters).clamp(1, 9);
        let mut world = World::shaped(options.seed, plan.shape.clone(), plan.weather);
        world.trace.say(0, || format!("{plan:?}"));
        let nodes = world.all();
        let clients = (0..plan.clients)
            .map(|n| Client::new(n, plan.shape.shards, nodes[n as usize % nodes.len()], plan.patience))
            .collect();
        let rng = Rng::new(options.seed ^ 0xabcd_ef01);
        Run { world, plan, rng, clients, history: History::default() }
    }

    fn go(mut self) -> Outcome {
        self.set_up();
        let end = self.world.now + self.plan.faults_ms;
        self.clients.iter().for_each(|c| self.world.wake_client(self.world.now + 1, c.id));
        let mut next = self.world.now + self.plan.every.1;
        while self.going() && self.world.now < end {
            self.until(next.min(end));
            if self.world.now >= next {
                self.plan.fault(&mut self.rng, &mut self.world);
                next = self.world.now + self.rng.range(self.plan.every.0, self.plan.every.1);
            }
        }
        self.calm();
        if self.going() {
            self.converge();
        }
        if self.going() {
            self.look();
        }
        if self.going()
            && let Err(what) = oracle::judge(&self.history.settled(&self.world.checks))
        {
            self.world.violate(what);
        }
        let World { now, checks, violation, trace, .. } = self.world;
        Outcome {
            violation,
            trace: trace.hash(),
            virtual_ms: now,
            events: trace.events,
            voters: self.plan.shape.voters,
            writes: checks.values().map(|c| c.acknowledged.writes).sum(),
            reads: checks.values().map(|c| c.reads.reads).sum(),
            terms: checks.values().map(|c| c.leaders.terms()).sum(),
            text: trace.text,
        }
    }

    fn going(&self) -> bool {
        self.world.violation.is_none()
    }

    /// Runs events and clients until a moment.
    fn until(&mut self, until: u64) {
        while self.going() && self.world.next_at().is_some_and(|at| at <= until) {
            self.world.step();
            for event in self.world.take_clients() {
                self.client(event);
            }
        }
        self.world.now = self.world.now.max(until);
    }

    fn client(&mut self, event: ToClient) {
        let (ToClient::Wake(id) | ToClient::Proposed((id, _), ..) | ToClient::ReadDone((id, _), _)) = &event;
        let Some(client) = self.clients.get_mut((id - CLIENTS) as usize) else { return };
        let (world, rng, history) = (&mut self.world, &mut self.rng, &mut self.history);
        match event {
            ToClient::Wake(_) => client.wake(world, rng, &self.plan.mix, history),
            ToClient::Proposed(call, epoch, result) => client.proposed(world, rng, history, (call, epoch), *result),
            ToClient::ReadDone(call, result) => client.read_done(world, rng, history, call, result),
        }
    }

    /// The table is made before anything goes wrong.
    fn set_up(&mut self) {
        let rough = std::mem::replace(&mut self.world.weather, super::network::Weather::FAIR);
        let end = self.world.now + 3 * SERVE_MS;
        for (proposal, did) in workload::set_up(self.plan.mix.rows) {
            let mut made = false;
            while !made && self.going() && self.world.now < end {
                let before = self.history.operations.len();
                if let Some(first) = self.clients.first_mut() {
                    first.done = true;
                    first.begin_with(&mut self.world, proposal.clone(), did.clone());
                }
                while self.going() && self.history.operations.len() == before && self.world.now < end {
                    self.until(self.world.now + 10);
                }
                // Refused: an earlier try had made it.
                made = self.history.operations.iter().skip(before).any(|o| match o.end {
                    Ended::Done { .. } => true,
                    Ended::Refused(there) => there,
                    _ => false,
                });
            }
            if !made && self.going() {
                self.world.violate("an empty cluster without faults does not serve");
            }
        }
        self.clients.iter_mut().for_each(|c| c.done = false);
        let world = &mut self.world;
        world.founded = ByShard::new(world.shape.shards, |shard| world.checks[shard].last());
        world.weather = rough;
    }

    /// The faults end: the cluster serves within a bound, then the clients finish.
    fn calm(&mut self) {
        if !self.going() {
            return;
        }
        self.world.trace.say(self.world.now, || "the faults end".into());
        Plan::calm(&mut self.world);
        let (calm, before) = (self.world.now, self.history.operations.len());
        let served = |run: &Run| {
            let new = run.history.operations.iter().skip(before);
            new.filter(|o| matches!(o.end, Ended::Done { .. } | Ended::Read(_))).any(|o| o.begun >= calm)
        };
        while self.going() && !served(self) && self.world.now < calm + SERVE_MS + self.plan.patience.deadline {
            self.until(self.world.now + 50);
        }
        if !served(self) && self.going() {
            self.world.violate(format!("nothing is served within {SERVE_MS} ms after the faults"));
        }
        self.until(self.world.now + CALM_MS);
        self.clients.iter_mut().for_each(|c| c.done = true);
        let end = self.world.now + 2 * self.plan.patience.deadline + SERVE_MS;
        while self.going() && self.clients.iter().any(|c| !c.is_idle()) && self.world.now < end {
            self.until(self.world.now + 20);
        }
        let busy = self.clients.iter().filter(|c| !c.is_idle()).count();
        if busy > 0 && self.going() {
            self.world.violate(format!("{busy} clients do not come to an end"));
        }
    }

    /// All replicas have everything.
    fn converge(&mut self) {
        let end = self.world.now + CONVERGE_MS;
        loop {
            let behind = self.world.shards().into_iter().find_map(|shard| self.world.behind(shard));
            let Some(what) = behind.filter(|_| self.going()) else { return };
            if self.world.now >= end {
                return self.world.violate(what);
            }
            self.until(self.world.now + 20);
        }
    }

    /// Everything is read at every node: what the oracle is to find, everywhere.
    fn look(&mut self) {
        let now = self.world.now;
        let lists = (LISTS - 2..LISTS + self.plan.mix.lists as i64).collect();
        let registers = (0..self.plan.mix.registers).map(|n| format!("r{n}")).collect();
        let accounts = (0..workload::ACCOUNTS).collect();
        let queries =
            [Query::Registers(registers), Query::Rows(accounts), Query::Rows(lists), Query::Range(SET, SET_END)];
        // Promotions may lose one shard's steps of a job and not the other's.
        if self.world.top_epoch() == 1 {
            self.agree();
        }
        for id in self.world.all() {
            for query in queries.clone() {
                let shard = self.plan.mix.of_query(&query);
                let Some(read) = self.world.read_here(Place { shard, node: id }, &query) else { continue };
                self.history.operations.push(Operation {
                    client: id,
                    shard,
                    what: What::Read(Level::Linearizable, query),
                    begun: now,
                    ended: now,
                    epoch: read.epoch,
                    end: Ended::Read(read),
                });
            }
        }
    }
}

impl Run {
    /// The shards are of one mind about the table.
    fn agree(&mut self) {
        let rows = self.plan.mix.rows;
        for node in self.world.all() {
            let world = &mut self.world;
            let records = world.read_here(node.into(), &Query::Records).and_then(|read| read.records);
            let def = world.read_here(Place { shard: rows, node }, &Query::Definition).and_then(|read| read.def);
            if let (Some(records), Some(def)) = (records, def) {
                world.check(schema::agree(&records, &def).map_err(|what| format!("n{node}: {what}")));
            }
        }
    }
}

impl World {
    /// Which replicas of a shard do not have everything.
    fn behind(&self, shard: ShardId) -> Option<String> {
        let live = self.all();
        let applied: Vec<_> = live.iter().map(|node| self.applied_at(Place { shard, node: *node })).collect();
        let last = self.checks[shard].last();
        let all = applied.iter().all(|a| *a == Some(last));
        (!all).then(|| format!("the replicas of {shard} do not converge on {last}: {live:?} are at {applied:?}"))
    }

    /// Reads at a node, all at once.
    fn read_here(&mut self, id: Place, query: &Query) -> Option<ReadResult> {
        let snapshot = self.snapshot(id)?;
        let (index, epoch, at) = (self.applied_at(id)?, self.epoch(id).0, self.now);
        let def = self.running(id)?.machine.state().tables.get(&workload::table().id).cloned();
        let mut read = ReadResult { index, epoch, timestamp: snapshot.timestamp, at, def, ..ReadResult::default() };
        let mut step = 0;
        loop {
            match workload::read_some(&snapshot, query, step, &mut read) {
                Ok(true) => step += 1,
                Ok(false) => {
                    if let (Query::Range(..), Some(def)) = (query, &read.def) {
                        let checked = indexes::check(&snapshot, def);
                        self.check(checked.map_err(|what| format!("{id}, as of {index}: {what}")));
                    }
                    return Some(read);
                }
                Err(e) => {
                    self.violate(format!("{id} cannot read: {e}"));
                    return None;
                }
            }
        }
    }
}
