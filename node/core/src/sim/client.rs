//! A client, as the client library is one: it stays at a node while that answers, goes to another when it does not, sends
//! the same write again under the same id until its deadline, and says `unknown` when it cannot know.
//!
//! A try that was given up may still be on its way. A refusal that comes after one therefore proves nothing about it, and
//! the outcome is unknown.

use std::collections::VecDeque;
use std::sync::Arc;

use quorate_shared::ids::{ClientId, Epoch, Index, SchemaVersion, ShardId, WriteId};

use super::Rng;
use super::history::{Did, Ended, History, Operation, What};
use super::network::{Call, Packet};
use super::place::{ByShard, Place};
use super::reads::{Level, Query, ReadResult, Token};
use super::schema;
use super::workload::{self, Mix, Next, Then};
use super::world::{CLIENTS, World};
use crate::error::Rejected;
use crate::proposal::{Proposal, WriteResult};
use crate::table::TableDef;

/// How long it waits for one try, one operation, between operations.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub one_try: u64,
    pub deadline: u64,
    pub pause: (u64, u64),
}

enum Doing {
    /// `planned`: the epoch of the reads it rests on.
    Write {
        proposal: Proposal,
        did: Did,
        planned: Option<Epoch>,
    },
    Read {
        level: Level,
        query: Query,
        then: Option<Then>,
    },
}

struct Running {
    doing: Doing,
    shard: ShardId,
    begun: u64,
    /// The whole operation, and the try under way.
    deadline: u64,
    try_until: u64,
    /// The call of the try; none: it pauses before the next.
    call: Option<u64>,
    /// The table's definition is another: it is read before the next try.
    stale: bool,
    /// Some try got `unknown`; some try got no answer.
    unknown: bool,
    lost: bool,
}

impl Running {
    fn is_of_rows(&self) -> bool {
        matches!(&self.doing, Doing::Write { did, .. } if did.is_of_rows())
    }

    fn is_reached(&self, current: Option<SchemaVersion>) -> bool {
        matches!(&self.doing, Doing::Write { proposal, .. } if schema::is_reached(proposal, current))
    }
}

/// See the module.
pub struct Client {
    pub id: u64,
    seq: u64,
    calls: u64,
    /// The node it asks, and the token of its last write, for each shard.
    at: ByShard<u64>,
    tokens: ByShard<Token>,
    running: Option<Running>,
    patience: Patience,
    /// The table as it knows it.
    def: Arc<TableDef>,
    /// What comes after what has just ended, and the epoch of the reads it rests on.
    queued: VecDeque<(Next, Option<Epoch>)>,
    /// Nothing new is begun.
    pub done: bool,
}

impl Client {
    pub fn new(number: u64, shards: u64, at: u64, patience: Patience) -> Self {
        let id = CLIENTS + number;
        let (at, tokens) = (ByShard::new(shards, |_| at), ByShard::new(shards, |_| Token::default()));
        Self {
            id,
            seq: 0,
            calls: 0,
            at,
            tokens,
            running: None,
            patience,
            queued: VecDeque::new(),
            done: false,
            def: Arc::new(workload::table().clone()),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none() && self.queued.is_empty()
    }

    /// Begins with this.
    pub fn begin_with(&mut self, world: &mut World, proposal: Proposal, did: Did) {
        self.queued = [(Next::Write(proposal, did), None)].into();
        world.wake_client(world.now + 1, self.id);
    }

    /// Its time has come: a pause or a try is over.
    pub fn wake(&mut self, world: &mut World, rng: &mut Rng, mix: &Mix, history: &mut History) {
        let now = world.now;
        let Some(running) = &mut self.running else {
            if !self.done || !self.queued.is_empty() {
                self.begin(world, rng, mix);
            }
            return;
        };
        if now < running.try_until {
            return;
        }
        if running.call.take().is_some() {
            running.lost = true;
            self.elsewhere(world, rng);
        }
        self.again(world, history);
    }

    fn elsewhere(&mut self, world: &World, rng: &mut Rng) {
        let Some(Running { doing, shard, .. }) = &self.running else { return };
        let writes = matches!(doing, Doing::Write { .. });
        let nodes = if writes { world.ids(*shard) } else { world.all() };
        self.at[*shard] = rng.pick(&nodes);
    }

    fn begin(&mut self, world: &mut World, rng: &mut Rng, mix: &Mix) {
        let queued = self.queued.pop_front();
        let (next, planned) = queued.unwrap_or_else(|| (workload::next(rng, mix, self.id, self.seq + 1), None));
        let shard = match &next {
            Next::Write(_, did) => mix.of_write(did),
            Next::Read(query) | Next::ReadThen(query, _) => mix.of_query(query),
        };
        let doing = match next {
            Next::Write(mut proposal, did) => {
                self.seq += 1;
                proposal.write = Some(WriteId { client: client_id(self.id), seq: self.seq });
                if rng.chance(mix.wait) {
                    proposal.wait_for_replicas = 1;
                    proposal.wait_ms = 100;
                }
                Doing::Write { proposal, did, planned }
            }
            Next::Read(query) => Doing::Read { level: self.level(rng, shard), query, then: None },
            Next::ReadThen(query, then) => {
                let level = self.level(rng, shard);
                // What is to be filled in is what there is.
                let level = if matches!(then, Then::Fill(_)) { Level::Linearizable } else { level };
                Doing::Read { level, query, then: Some(then) }
            }
        };
        let writes = matches!(doing, Doing::Write { .. });
        let now = world.now;
        let deadline = now + self.patience.deadline;
        self.running = Some(Running {
            doing,
            shard,
            begun: now,
            deadline,
            try_until: now,
            call: None,
            stale: false,
            unknown: false,
            lost: false,
        });
        let reader = world.readers(shard).contains(&self.at[shard]);
        if (writes && reader) || rng.chance(150) {
            self.elsewhere(world, rng);
        }
        self.send(world);
    }

    fn level(&self, rng: &mut Rng, shard: ShardId) -> Level {
        match rng.range(0, 9) {
            0..=5 => Level::Linearizable,
            6 | 7 => Level::After(self.tokens[shard]),
            8 => Level::MaxStaleness(rng.range(50, 1_000)),
            _ => Level::Local,
        }
    }

    fn send(&mut self, world: &mut World) {
        let Some(running) = &mut self.running else { return };
        self.calls += 1;
        running.call = Some(self.calls);
        let call = (self.id, self.calls);
        let (now, deadline) = (world.now, running.deadline);
        running.try_until = (now + self.patience.one_try).min(deadline.max(now + 1));
        let until = running.try_until;
        let packet = match &running.doing {
            Doing::Write { .. } if running.stale => {
                Packet::Read { call, level: Level::Local, query: Box::new(Query::Definition), deadline: until }
            }
            Doing::Write { proposal, did, planned } => {
                let (mut proposal, planned) = (Box::new(proposal.clone()), *planned);
                if did.is_of_rows() {
                    workload::fit(&mut proposal, &self.def);
                }
                Packet::Propose { call, proposal, planned, deadline, via: None }
            }
            Doing::Read { level, query, .. } => {
                Packet::Read { call, level: *level, query: Box::new(query.clone()), deadline: until }
            }
        };
        let shard = running.shard;
        world.send(Place { shard, node: self.id }, self.at[shard], packet);
        world.wake_client(until, self.id);
    }

    /// Another try, or the end.
    fn again(&mut self, world: &mut World, history: &mut History) {
        let Some(running) = &self.running else { return };
        if world.now >= running.deadline {
            let end = if running.unknown || running.lost { Ended::Unknown } else { Ended::Refused(false) };
            return self.end(world, history, Epoch::default(), end);
        }
        self.send(world);
    }

    fn pause(&mut self, world: &mut World, ms: u64) {
        let Some(running) = &mut self.running else { return };
        running.call = None;
        running.try_until = world.now + ms;
        world.wake_client(running.try_until, self.id);
    }

    fn expects(&self, call: Call) -> bool {
        self.running.as_ref().is_some_and(|r| r.call == Some(call.1))
    }

    /// An answer to a write.
    pub fn proposed(
        &mut self,
        world: &mut World,
        rng: &mut Rng,
        history: &mut History,
        (call, epoch): (Call, Epoch),
        result: Result<WriteResult, Rejected>,
    ) {
        if !self.expects(call) {
            return;
        }
        let Some(running) = &mut self.running else { return };
        match result {
            Ok(done) => {
                let first = !running.unknown && !running.lost;
                if done.duplicate && first {
                    world.violate(format!("client {}: a duplicate of what was never sent before", self.id));
                }
                if done.index > Index::new(0) {
                    let token = &mut self.tokens[running.shard];
                    let same = token.epoch == epoch;
                    let index = if same { token.index.max(done.index) } else { done.index };
                    *token = Token { epoch, index };
                }
                let rows = done.returned.iter().filter_map(|values| workload::row_of(values)).collect();
                self.end(world, history, epoch, Ended::Done { index: done.index, rows });
            }
            Err(Rejected::NotLeader(Some(node))) => {
                self.at[running.shard] = node.get();
                self.pause(world, 1);
            }
            Err(Rejected::NotLeader(None) | Rejected::Retry(_) | Rejected::Busy | Rejected::DiskLow) => {
                self.elsewhere(world, rng);
                let ms = rng.range(5, 50);
                self.pause(world, ms);
            }
            Err(Rejected::Unknown(_)) => {
                running.unknown = true;
                self.elsewhere(world, rng);
                let ms = rng.range(5, 50);
                self.pause(world, ms);
            }
            Err(Rejected::StaleCatalog { .. }) if running.is_of_rows() => {
                running.stale = true;
                let ms = rng.range(1, 30);
                self.pause(world, ms);
            }
            Err(Rejected::StaleCatalog { current, .. }) if running.is_reached(current) => {
                self.end(world, history, epoch, Ended::Done { index: Index::new(0), rows: Vec::new() });
            }
            Err(refused) => {
                let end = if running.lost { Ended::Unknown } else { Ended::Refused(true) };
                let what = refused.to_string();
                let expected = matches!(refused, Rejected::Conflict | Rejected::CatalogChanged)
                    || matches!(&running.doing, Doing::Write { did: Did::SetUp | Did::Schema, .. });
                if !expected {
                    world.violate(format!("client {}: refused although nothing is in its way: {what}", self.id));
                }
                self.end(world, history, epoch, end);
            }
        }
    }

    /// An answer to a read.
    pub fn read_done(
        &mut self,
        world: &mut World,
        rng: &mut Rng,
        history: &mut History,
        call: Call,
        result: Result<ReadResult, Rejected>,
    ) {
        if !self.expects(call) {
            return;
        }
        match result {
            Ok(read) => {
                if self.learns(&read) {
                    // A node that is behind knows nothing new.
                    self.elsewhere(world, rng);
                    return self.pause(world, 1);
                }
                if let Some(Running { doing: Doing::Read { query, then: Some(then), .. }, .. }) = &self.running {
                    let next = workload::follow_up(rng, then, query, &read);
                    let planned = |next: &Next| match next {
                        Next::Write(proposal, _) if !proposal.reads.is_empty() => Some(read.epoch),
                        _ => None,
                    };
                    let next = next.into_iter().map(|next| (planned(&next), next));
                    self.queued.extend(next.map(|(planned, next)| (next, planned)));
                }
                self.end(world, history, read.epoch, Ended::Read(read));
            }
            Err(_) => {
                self.elsewhere(world, rng);
                let ms = rng.range(5, 50);
                self.pause(world, ms);
            }
        }
    }

    /// Whether what was read is the table's definition, wanted before the next try.
    fn learns(&mut self, read: &ReadResult) -> bool {
        let Some(running) = self.running.as_mut().filter(|r| r.stale) else { return false };
        running.stale = false;
        if let Some(def) = &read.def {
            self.def = Arc::clone(def);
        }
        true
    }

    fn end(&mut self, world: &mut World, history: &mut History, epoch: Epoch, end: Ended) {
        let Some(running) = self.running.take() else { return };
        let what = match running.doing {
            Doing::Write { did, .. } => What::Write(did),
            Doing::Read { level, query, .. } => What::Read(level, query),
        };
        let kind = match end {
            Ended::Done { .. } => 1,
            Ended::Refused(_) => 2,
            Ended::Unknown => 3,
            Ended::Read(_) => 4,
        };
        world.trace.note(world.now, self.id, "client", self.seq, kind);
        world.trace.say(world.now, || format!("client {} from {}: {what:?} → {end:?}", self.id, running.begun));
        let Running { shard, begun, .. } = running;
        let operation = Operation { client: self.id, shard, what, begun, ended: world.now, epoch, end };
        let checked = world.checks[shard].ended(&operation);
        world.check(checked);
        history.operations.push(operation);
        if kind == 2 || kind == 3 {
            // The rest of a job is somebody's who looks how far it is.
            self.queued.clear();
        }
        let pause =
            if !self.queued.is_empty() { 1 } else { world.rng.range(self.patience.pause.0, self.patience.pause.1) };
        world.wake_client(world.now + pause, self.id);
    }
}

fn client_id(id: u64) -> ClientId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    ClientId(bytes)
}
