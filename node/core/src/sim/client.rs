//! A client, as the client library is one: it stays at a node while that answers, goes to another when it does not, sends
//! the same write again under the same id until its deadline, and says `unknown` when it cannot know.
//!
//! A try that was given up may still be on its way. A refusal that comes after one therefore proves nothing about it, and
//! the outcome is unknown.

use quorate_shared::ids::{ClientId, Epoch, Index, WriteId};

use super::Rng;
use super::history::{Did, Ended, History, Operation, What};
use super::network::{Call, Packet};
use super::reads::{Level, Query, ReadResult, Token};
use super::workload::{self, Mix, Next, Then};
use super::world::{CLIENTS, World};
use crate::error::Rejected;
use crate::proposal::{Proposal, WriteResult};

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
    begun: u64,
    /// The whole operation, and the try under way.
    deadline: u64,
    try_until: u64,
    /// The call of the try; none: it pauses before the next.
    call: Option<u64>,
    /// Some try got `unknown`; some try got no answer.
    unknown: bool,
    lost: bool,
}

/// See the module.
pub struct Client {
    pub id: u64,
    seq: u64,
    calls: u64,
    at: u64,
    running: Option<Running>,
    patience: Patience,
    /// Of its last write.
    token: Token,
    /// What comes after the read that has just ended.
    queued: Option<(Proposal, Did, Option<Epoch>)>,
    /// Nothing new is begun.
    pub done: bool,
}

impl Client {
    pub fn new(number: u64, at: u64, patience: Patience) -> Self {
        let id = CLIENTS + number;
        let token = Token::default();
        Self { id, seq: 0, calls: 0, at, running: None, patience, token, queued: None, done: false }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none() && self.queued.is_none()
    }

    /// Begins with this.
    pub fn begin_with(&mut self, world: &mut World, proposal: Proposal, did: Did) {
        self.queued = Some((proposal, did, None));
        world.wake_client(world.now + 1, self.id);
    }

    /// Its time has come: a pause or a try is over.
    pub fn wake(&mut self, world: &mut World, rng: &mut Rng, mix: &Mix, history: &mut History) {
        let now = world.now;
        let Some(running) = &mut self.running else {
            if !self.done || self.queued.is_some() {
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
        let voters = world.ids();
        let writes = self.running.as_ref().is_some_and(|r| matches!(r.doing, Doing::Write { .. }));
        let all = world.all();
        self.at = if writes { rng.pick(&voters) } else { rng.pick(&all) };
    }

    fn begin(&mut self, world: &mut World, rng: &mut Rng, mix: &Mix) {
        let (next, planned) = match self.queued.take() {
            Some((proposal, did, planned)) => (Next::Write(proposal, did), planned),
            None => (workload::next(rng, mix, self.id, self.seq + 1), None),
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
            Next::Read(query) => Doing::Read { level: self.level(rng), query, then: None },
            Next::ReadThen(query, then) => Doing::Read { level: self.level(rng), query, then: Some(then) },
        };
        let writes = matches!(doing, Doing::Write { .. });
        let now = world.now;
        let deadline = now + self.patience.deadline;
        self.running =
            Some(Running { doing, begun: now, deadline, try_until: now, call: None, unknown: false, lost: false });
        let reader = world.readers().contains(&self.at);
        if (writes && reader) || rng.chance(150) {
            self.elsewhere(world, rng);
        }
        self.send(world);
    }

    fn level(&self, rng: &mut Rng) -> Level {
        match rng.range(0, 9) {
            0..=5 => Level::Linearizable,
            6 | 7 => Level::After(self.token),
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
            Doing::Write { proposal, planned, .. } => {
                let (proposal, planned) = (Box::new(proposal.clone()), *planned);
                Packet::Propose { call, proposal, planned, deadline, via: None }
            }
            Doing::Read { level, query, .. } => {
                Packet::Read { call, level: *level, query: query.clone(), deadline: until }
            }
        };
        world.send(self.id, self.at, packet);
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
                    let same = self.token.epoch == epoch;
                    let index = if same { self.token.index.max(done.index) } else { done.index };
                    self.token = Token { epoch, index };
                }
                let rows = done.returned.iter().filter_map(|values| workload::row_of(values)).collect();
                self.end(world, history, epoch, Ended::Done { index: done.index, rows });
            }
            Err(Rejected::NotLeader(Some(node))) => {
                self.at = node.get();
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
            Err(refused) => {
                let end = if running.lost { Ended::Unknown } else { Ended::Refused(true) };
                let what = refused.to_string();
                let expected = matches!(refused, Rejected::Conflict | Rejected::CatalogChanged)
                    || matches!(&running.doing, Doing::Write { did: Did::SetUp, .. });
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
                if let Some(Running { doing: Doing::Read { query, then: Some(then), .. }, .. }) = &self.running {
                    let next = workload::follow_up(then, query, &read);
                    self.queued = next.map(|(proposal, did)| {
                        let planned = (!proposal.reads.is_empty()).then_some(read.epoch);
                        (proposal, did, planned)
                    });
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
        let operation = Operation { client: self.id, what, begun: running.begun, ended: world.now, epoch, end };
        let checked = world.checks.reads.ended(&world.checks.lineage, &operation);
        world.check(checked);
        history.operations.push(operation);
        let pause =
            if self.queued.is_some() { 1 } else { world.rng.range(self.patience.pause.0, self.patience.pause.1) };
        world.wake_client(world.now + pause, self.id);
    }
}

fn client_id(id: u64) -> ClientId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    ClientId(bytes)
}
