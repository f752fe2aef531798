//! A node: what survives its process, and the process in the driver's place.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[cfg(test)]
use quorate_shared::ids::Term;
use quorate_shared::ids::{Index, NodeId, ReplicaId};

use super::Rng;
use super::engine::SimTree;
use super::invariants::Sent;
use super::network::{Call, Packet};
use super::reads::Reading;
use super::shipping::{Pulling, Stream};
use super::store::{Opened, Store};
use super::world::{Event, SHARD, WALL, World};
use crate::bug::{Bug, planted};
use crate::engine::Tree;
use crate::error::{Fatal, Rejected};
#[cfg(test)]
use crate::log::HardState;
use crate::log::{BaseRecord, LogEntry, LogRecord};
use crate::machine::{Applied, Machine};
use crate::mvcc;
use crate::proposal::{Proposal, WriteResult};
use crate::replica::{PersistId, Protocol};
use crate::shard::{Config, Effect, Input, Shard, Ticket};
use crate::ship::follow::Follower;

/// What an engine's directory says about itself.
#[derive(Clone, Copy)]
struct Mark {
    boot: u64,
    clean: bool,
}

/// See the module.
pub struct Node {
    pub(super) id: u64,
    /// As a voter; none: it is log-shipped.
    voter: Option<ReplicaId>,
    base: BaseRecord,
    pub(super) store: Store,
    pub(super) tree: Arc<SimTree>,
    mark: Mark,
    pub(super) up: Option<Process>,
    /// Counts starts: events of an earlier life mean nothing.
    pub(super) life: u64,
    /// Counts power cuts.
    boot: u64,
    stalled: bool,
    /// The applier does not get on.
    pub(super) applier_stalled: bool,
    /// What the wall clock is off by.
    pub skew: i64,
    /// It has lost its log and may not vote any more.
    pub lost: bool,
}

/// Which part the node plays in the shard.
pub(super) enum Part {
    Shard(Box<Shard>),
    Follower(Box<Follower>),
}

/// Who waits for a ticket.
pub(super) enum Waiter {
    /// A test.
    World,
    /// A client, or the node that forwarded its request.
    Write { call: Call, to: u64 },
    /// A read of this node.
    Read { job: u64 },
    /// Another node's read.
    Asked { ask: u64, by: u64 },
}

pub(super) struct Process {
    pub(super) part: Part,
    pub(super) machine: Machine,
    persists: VecDeque<(PersistId, Vec<LogRecord>)>,
    syncing: bool,
    applying: VecDeque<Vec<LogEntry>>,
    pub(super) tickets: BTreeMap<Ticket, Waiter>,
    pub(super) reading: Reading,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) pulling: Option<Pulling>,
    pub(super) next_beat: u64,
}

impl Node {
    pub(super) fn new(id: u64, voter: bool, base: &BaseRecord, segment_bytes: u64) -> Self {
        let replica = if voter { ReplicaId::new(id) } else { ReplicaId::NONE };
        Self {
            id,
            voter: voter.then_some(replica),
            base: base.clone(),
            store: Store::new(SHARD, replica, segment_bytes),
            tree: Arc::default(),
            mark: Mark { boot: 1, clean: true },
            up: None,
            life: 0,
            boot: 1,
            stalled: false,
            applier_stalled: false,
            skew: 0,
            lost: false,
        }
    }

    pub fn is_voter(&self) -> bool {
        self.voter.is_some()
    }

    pub(super) fn replica(&self) -> ReplicaId {
        self.voter.unwrap_or_default()
    }

    /// The engine's rule of trust: within the boot that wrote it, or after a clean close.
    fn open_engine(&mut self) {
        let trusted = self.mark.boot == self.boot || self.mark.clean;
        if !trusted && !planted(Bug::TrustAfterPowerCut) {
            self.tree = Arc::default();
        }
        self.mark = Mark { boot: self.boot, clean: false };
    }

    /// Opens the log, and founds an empty one.
    fn open_log(&mut self) -> Result<Option<String>, Fatal> {
        match self.store.open()? {
            Opened::Whole => {}
            Opened::Wrong(what) => return Ok(Some(what)),
            Opened::Lost(_) if planted(Bug::WipedVoterVotes) => {}
            Opened::Lost(_) => self.lost = true,
        }
        if self.store.reader().bounds(SHARD).is_none() && !self.lost {
            self.store.write(&[LogRecord::Base(self.base.clone())])?;
            self.store.finish();
        }
        Ok(None)
    }
}

impl Process {
    pub(super) fn applied(&self) -> Index {
        self.machine.state().index
    }
}

impl World {
    pub(super) fn node(&mut self, id: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(super) fn process(&mut self, id: u64) -> Option<&mut Process> {
        self.nodes.get_mut(&id)?.up.as_mut()
    }

    pub fn shard(&self, id: u64) -> Option<&Shard> {
        match &self.nodes.get(&id)?.up.as_ref()?.part {
            Part::Shard(shard) => Some(shard),
            Part::Follower(_) => None,
        }
    }

    /// The highest index applied at a node that is up.
    pub fn applied_at(&self, id: u64) -> Option<Index> {
        self.nodes.get(&id)?.up.as_ref().map(Process::applied)
    }

    pub fn is_lost(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.lost)
    }

    /// Starts a node on what its disk and engine have.
    pub fn start(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.up.is_none()) else { return };
        node.life += 1;
        node.open_engine();
        let opened = node.open_log();
        let lost = node.lost;
        match opened {
            Ok(None) => {}
            Ok(Some(what)) => return self.violate(format!("n{id}: {what}")),
            Err(e) => return self.stopped(id, &e),
        }
        self.trace.note(self.now, id, "start", u64::from(lost), 0);
        if lost {
            // Without its log a voter has no vote; it stays away until it is a new one.
            return;
        }
        match self.open_parts(id) {
            Ok(()) => {
                self.drive(id, None);
                self.schedule(self.now + 1, id, Event::Wake);
            }
            Err(e) => self.stopped(id, &e),
        }
    }

    fn open_parts(&mut self, id: u64) -> Result<(), Fatal> {
        let (now, seed, timing, protocol) = (self.now, self.seed, self.shape.timing, self.shape.protocol);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let log = node.store.reader();
        let base = log.bounds(SHARD).map_or_else(|| node.base.clone(), |b| b.base);
        node.fill_engine(&base)?;
        let tree: Arc<dyn Tree> = Arc::clone(&node.tree) as Arc<dyn Tree>;
        let machine = Machine::open(Arc::clone(&tree), &base)?;
        let applied = machine.state().applied();
        let mut effects = Vec::new();
        let part = if let Some(replica) = node.voter {
            let config = Config {
                shard: SHARD,
                replica,
                node: NodeId::new(id),
                protocol,
                // Not a plain mix of small numbers: two replicas with one stream of timeouts never elect anybody.
                seed: Rng::new(seed ^ (node.life << 8 | id).wrapping_mul(0x9e37_79b9_7f4a_7c15)).next(),
                timing,
            };
            Part::Shard(Box::new(Shard::new(config, log, tree, applied, now)?))
        } else {
            let mut follower = Follower::new(SHARD, base.epoch, log, &applied)?;
            follower.hand_out(&mut effects)?;
            Part::Follower(Box::new(follower))
        };
        node.up = Some(Process {
            part,
            machine,
            persists: VecDeque::new(),
            syncing: false,
            applying: VecDeque::new(),
            tickets: BTreeMap::new(),
            reading: Reading::default(),
            streams: BTreeMap::new(),
            pulling: None,
            next_beat: now,
        });
        let life = node.life;
        let checked = self.checks.overlap.begins(id, life);
        self.check(checked);
        for effect in effects {
            self.execute(id, effect);
        }
        Ok(())
    }

    /// A replica has stopped itself: right only where its disk had lied to it.
    pub(super) fn stopped(&mut self, id: u64, fatal: &Fatal) {
        self.trace.say(self.now, || format!("n{id} stops: {fatal}"));
        let excused = self.nodes.get(&id).is_some_and(|n| n.store.flipped);
        if !excused {
            return self.violate(format!("n{id} stopped: {fatal}"));
        }
        self.kill(id);
    }

    fn end_process(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.life += 1;
        let Some(process) = node.up.take() else { return };
        self.checks.overlap.ends(id);
        let links = process.streams.iter().map(|(link, stream)| (*link, stream.reader));
        let pulled = process.pulling.iter().map(|p| (p.link, p.server));
        for (link, other) in links.chain(pulled).collect::<Vec<_>>() {
            if self.network.break_link(link) {
                let at = self.now + self.rng.range(1, 300);
                self.schedule(at, other, Event::Deliver { from: 0, packet: Packet::Broken { link } });
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: u64) {
        self.end_process(id);
        self.trace.note(self.now, id, "kill", 0, 0);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.store.kill(&mut self.rng);
        node.tree.kill(&mut self.rng);
    }

    /// Stops a node where it stands, as [`World::kill`].
    pub fn crash(&mut self, id: u64) {
        self.kill(id);
    }

    /// Its power goes.
    pub fn power_cut(&mut self, id: u64) {
        self.end_process(id);
        self.trace.note(self.now, id, "power cut", 0, 0);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.boot += 1;
        node.store.power_cut(&mut self.rng);
        node.tree.power_cut(&mut self.rng);
    }

    /// Stops in order.
    pub fn shut_down(&mut self, id: u64) {
        self.end_process(id);
        self.trace.note(self.now, id, "shut down", 0, 0);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        // The log's last write is finished, the engine closed.
        node.store.finish();
        node.store.kill(&mut self.rng);
        node.tree.settle();
        node.mark.clean = true;
    }

    /// Forgets what a stopped node's engine had.
    pub fn wipe_engine(&mut self, id: u64) {
        if let Some(node) = self.node(id).filter(|n| n.up.is_none()) {
            node.tree = Arc::default();
        }
    }

    /// A stopped voter has seen a term far beyond the others'.
    #[cfg(test)]
    pub fn inflate_term(&mut self, id: u64, term: u64) {
        let Some(node) = self.node(id).filter(|n| n.up.is_none()) else { return };
        let opened = node.store.open();
        assert!(matches!(opened, Ok(Opened::Whole)));
        let hard = HardState { term: Term::new(term), vote: ReplicaId::NONE, commit: node.store.durable.hard.commit };
        node.store.write(&[LogRecord::Hard(hard)]).unwrap();
        node.store.finish();
    }

    /// Flips a bit of a stopped node's log, not in what was written last.
    pub fn flip(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.up.is_none()) else { return };
        if let Some(place) = node.store.disk.flip(&mut self.rng, 500) {
            node.store.flipped = true;
            self.trace.note(self.now, id, "bit flip", 0, 0);
            self.trace.say(self.now, || format!("n{id} has a flipped bit in {place}"));
        }
    }

    /// A stalled disk finishes nothing.
    pub fn stall(&mut self, id: u64, stalled: bool) {
        self.trace.note(self.now, id, "stall", u64::from(stalled), 0);
        if let Some(node) = self.node(id) {
            node.stalled = stalled;
        }
        if !stalled {
            self.sync(id);
        }
    }

    /// Its wall clock is set.
    pub fn jump_clock(&mut self, id: u64, by: i64) {
        self.trace.note(self.now, id, "clock", by.unsigned_abs(), 0);
        if let Some(node) = self.node(id) {
            node.skew += by;
        }
    }

    pub fn is_flipped(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.store.flipped)
    }

    /// A node's state as it is.
    pub fn snapshot(&self, id: u64) -> Option<mvcc::Snapshot> {
        let node = self.nodes.get(&id)?;
        let timestamp = node.up.as_ref()?.machine.state().timestamp;
        Some(mvcc::Snapshot::new(Arc::clone(&node.tree) as Arc<dyn Tree>, timestamp))
    }

    /// A stalled applier applies nothing.
    pub fn stall_applier(&mut self, id: u64, stalled: bool) {
        let Some(node) = self.node(id) else { return };
        let was = std::mem::replace(&mut node.applier_stalled, stalled);
        if was && !stalled {
            self.schedule(self.now + 1, id, Event::Apply);
        }
    }

    pub(super) fn wake(&mut self, id: u64) {
        let now = self.now;
        let tick = self.shape.timing.tick;
        let Some(process) = self.process(id) else { return };
        let next = match &process.part {
            Part::Shard(shard) => {
                if shard.next_wake() <= now {
                    self.drive(id, Some(Input::Wake));
                }
                self.shard(id).map_or(now + tick, Shard::next_wake)
            }
            Part::Follower(_) => now + tick,
        };
        self.keep_shipping(id);
        self.expire_reads(id);
        self.schedule(next.max(now + 1), id, Event::Wake);
    }

    pub(super) fn deliver(&mut self, id: u64, from: u64, packet: Packet) {
        match packet {
            Packet::Peer(message) => {
                let from = ReplicaId::new(from);
                if self.shard(id).is_some() {
                    self.drive(id, Some(Input::Receive { from, message }));
                }
            }
            Packet::Propose { call, proposal, deadline, via } => {
                self.take_write(id, from, call, proposal, deadline, via)
            }
            Packet::Proposed { call, result } => self.send(id, call.0, Packet::Proposed { call, result }),
            Packet::Read { call, level, query, deadline } => self.take_read(id, call, level, query, deadline),
            Packet::AskIndex { ask } => self.asked_for_index(id, from, ask),
            Packet::Index { ask, result } => self.index_came(id, ask, result),
            Packet::Ship { link, message } => self.ship_came(id, from, link, &message),
            Packet::Shipped { link, message } => self.shipped_came(id, link, &message),
            Packet::Broken { link } => self.link_broken(id, link),
            Packet::Report(report) => {
                if self.shard(id).is_some() {
                    self.drive(id, Some(Input::Report(report)));
                }
            }
            Packet::ReadDone { .. } => {}
        }
    }

    /// A client's write: to the shard if it leads, to the leader if it was not forwarded yet.
    fn take_write(&mut self, id: u64, from: u64, call: Call, proposal: Box<Proposal>, deadline: u64, via: Option<u64>) {
        let view = self.view(id);
        let leads = view.is_some_and(|v| v.is_leader);
        if leads {
            self.tickets += 1;
            let ticket = self.tickets;
            if let Some(process) = self.process(id) {
                process.tickets.insert(ticket, Waiter::Write { call, to: from });
            }
            self.checks.acknowledged.proposed(ticket, &proposal);
            return self.drive(id, Some(Input::Propose { ticket, proposal, deadline }));
        }
        let leader = view.and_then(|v| v.leader).map(|(_, node)| node);
        if let (Some(leader), None) = (leader.filter(|l| l.get() != id), via) {
            return self.send(id, leader.get(), Packet::Propose { call, proposal, deadline, via: Some(id) });
        }
        let result = Box::new(Err(Rejected::NotLeader(leader)));
        self.send(id, from, Packet::Proposed { call, result });
    }

    pub(super) fn synced(&mut self, id: u64, until: PersistId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.stalled {
            // It comes when the stall ends.
            self.schedule(self.now + 20, id, Event::Synced { until });
            return;
        }
        node.store.finish();
        let Some(process) = &mut node.up else { return };
        process.syncing = false;
        match &process.part {
            Part::Shard(_) => self.drive(id, Some(Input::Persisted(until))),
            Part::Follower(_) => self.follow(id, |follower, effects| follower.persisted(until, effects)),
        }
        self.sync(id);
    }

    /// Writes everything that waits and syncs it, if no sync is running.
    fn sync(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.stalled {
            return;
        }
        let Some(process) = node.up.as_mut().filter(|p| !p.syncing && !p.persists.is_empty()) else { return };
        process.syncing = true;
        let mut until = 0;
        let mut records = Vec::new();
        for (persist, more) in process.persists.drain(..) {
            until = persist;
            records.extend(more);
        }
        if let Err(e) = node.store.write(&records) {
            return self.stopped(id, &e);
        }
        let delay = self.rng.range(self.weather.sync.0, self.weather.sync.1);
        self.schedule(self.now + delay, id, Event::Synced { until });
    }

    pub(super) fn apply(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| !n.applier_stalled) else { return };
        let Some(process) = &mut node.up else { return };
        let Some(entries) = process.applying.pop_front() else { return };
        let more = !process.applying.is_empty();
        let applied = match process.machine.apply(&entries) {
            Ok(applied) => applied,
            Err(e) => return self.stopped(id, &e),
        };
        let digest = process.machine.state().digest();
        self.trace.note(self.now, id, "apply", applied.index.get(), applied.chain.0[0].into());
        let reader = !node.is_voter();
        let checked = self.checks.states.applied(id, applied.index, applied.chain, digest);
        self.check(checked);
        if reader {
            let checked = self.checks.readonly.applies(id, applied.index);
            self.check(checked);
        }
        self.after_apply(id, applied);
        if more {
            let delay = self.rng.range(self.weather.apply.0, self.weather.apply.1);
            self.schedule(self.now + delay, id, Event::Apply);
        }
    }

    fn after_apply(&mut self, id: u64, applied: Applied) {
        let Some(process) = self.process(id) else { return };
        match &process.part {
            Part::Shard(_) => self.drive(id, Some(Input::Applied(applied))),
            Part::Follower(_) => {
                self.follow(id, |follower, effects| follower.applied(&applied, effects));
                self.report_soon(id);
            }
        }
        self.serve_reads(id);
    }

    /// Gives an input to a shard, and does what comes of it.
    pub(super) fn drive(&mut self, id: u64, input: Option<Input>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let wall = (WALL + now).saturating_add_signed(node.skew);
        let Some(Process { part: Part::Shard(shard), .. }) = &mut node.up else { return };
        let mut effects = Vec::new();
        let stepped = input.map_or(Ok(()), |input| shard.step(now, input, &mut effects));
        let done = stepped.and_then(|()| shard.flush(now, wall, &mut effects));
        for effect in effects {
            self.execute(id, effect);
        }
        match done {
            Ok(()) => self.ship_more(id),
            Err(e) => self.stopped(id, &e),
        }
    }

    /// The same for a follower by shipping.
    pub(super) fn follow(&mut self, id: u64, work: impl FnOnce(&mut Follower, &mut Vec<Effect>) -> Result<(), Fatal>) {
        let Some(Process { part: Part::Follower(follower), .. }) = self.process(id) else { return };
        let mut effects = Vec::new();
        let done = work(follower, &mut effects);
        for effect in effects {
            self.execute(id, effect);
        }
        match done {
            Ok(()) => self.ship_more(id),
            Err(e) => self.stopped(id, &e),
        }
    }

    fn execute(&mut self, id: u64, effect: Effect) {
        if self.violation.is_some() {
            return;
        }
        match effect {
            Effect::Persist { id: persist, records } => {
                self.trace.note(self.now, id, "persist", persist, records.len() as u64);
                if let Some(process) = self.process(id) {
                    process.persists.push_back((persist, records));
                }
                self.sync(id);
            }
            Effect::Send { to, message } => {
                let Some(node) = self.nodes.get(&id) else { return };
                let sent = Sent { now: self.now, from: node.replica(), to, durable: &node.store.durable };
                if self.shape.protocol == Protocol::Raft {
                    let checked = self.checks.sent(&sent, &message);
                    self.check(checked);
                }
                self.send(id, to.get(), Packet::Peer(message));
            }
            Effect::Apply { entries } => self.commits(id, entries),
            Effect::Reply { ticket, result } => self.replied(id, ticket, result),
            Effect::ReadReady { ticket, result } => self.read_ready(id, ticket, result),
            Effect::Changed { .. } => {}
            Effect::NeedsSnapshot { .. } => self.violate(format!("n{id} wants a snapshot, and nothing was trimmed")),
            Effect::Leader { term, leader, ready, .. } => {
                self.trace.note(self.now, id, "leader", term.get(), leader.map_or(0, ReplicaId::get));
                if leader.is_some() && leader == self.nodes.get(&id).map(Node::replica) {
                    let checked = self.checks.leaders.leads(id, term, ready);
                    self.check(checked);
                }
            }
        }
    }

    fn commits(&mut self, id: u64, entries: Vec<LogEntry>) {
        let last = entries.last().map_or(Index::new(0), |e| e.index);
        self.trace.note(self.now, id, "commit", last.get(), 0);
        let checked = self.checks.committed.commits(id, &entries);
        self.check(checked);
        let delay = self.rng.range(self.weather.apply.0, self.weather.apply.1);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let durable = node.store.durable.last();
        let Some(process) = &mut node.up else { return };
        let idle = process.applying.is_empty();
        process.applying.push_back(entries);
        if last > durable && !planted(Bug::AcknowledgeBeforeSync) {
            self.violate(format!("n{id} hands {last} to its applier, durable is {durable}"));
        }
        if idle {
            self.schedule(self.now + delay, id, Event::Apply);
        }
    }

    fn replied(&mut self, id: u64, ticket: Ticket, result: Result<WriteResult, Rejected>) {
        self.trace.note(self.now, id, "reply", ticket, u64::from(result.is_ok()));
        self.trace.say(self.now, || format!("n{id} answers {ticket}: {}", outcome(&result)));
        let durable = self.nodes.values().filter(|n| n.is_voter()).map(|n| &n.store.durable);
        let readers = self.nodes.values().filter(|n| !n.is_voter()).map(|n| n.id);
        let applied: Vec<Index> = readers.map(|id| self.checks.states.highest(id)).collect();
        let here = self.applied_at(id).unwrap_or_default();
        let checked = self.checks.acknowledged.answered(ticket, &result, here, durable, &applied);
        self.check(checked);
        let Some(process) = self.process(id) else { return };
        match process.tickets.remove(&ticket) {
            Some(Waiter::Write { call, to }) => {
                self.send(id, to, Packet::Proposed { call, result: Box::new(result) });
            }
            Some(_) => drop(self.replies.insert(ticket, result)),
            None => self.violate(format!("n{id} answers {ticket} twice")),
        }
    }

    /// Proposes at a node, past network and client.
    pub fn propose(&mut self, id: u64, proposal: Proposal, patience: u64) -> Ticket {
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + patience);
        match self.process(id) {
            Some(process) if matches!(process.part, Part::Shard(_)) => {
                process.tickets.insert(ticket, Waiter::World);
                self.checks.acknowledged.proposed(ticket, &proposal);
                self.drive(id, Some(Input::Propose { ticket, proposal: Box::new(proposal), deadline }));
            }
            _ => drop(self.replies.insert(ticket, Err(Rejected::NotLeader(None)))),
        }
        ticket
    }

    /// Asks a node for the read index, past network and client.
    pub fn read(&mut self, id: u64, patience: u64) -> Ticket {
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + patience);
        match self.process(id) {
            Some(process) if matches!(process.part, Part::Shard(_)) => {
                process.tickets.insert(ticket, Waiter::World);
                self.drive(id, Some(Input::Read { ticket, deadline }));
            }
            _ => drop(self.reads.insert(ticket, Err(Rejected::NotLeader(None)))),
        }
        ticket
    }

    pub fn input(&mut self, id: u64, input: Input) {
        self.drive(id, Some(input));
    }

    /// The newest value applied at a node under a catalog key.
    pub fn get(&self, id: u64, name: &str) -> Option<String> {
        let newest = mvcc::newest(&*self.nodes.get(&id)?.tree, &super::workload::key(name)).ok()??;
        newest.row.map(|row| String::from_utf8_lossy(&row).into_owned())
    }
}

/// An answer in one word or two.
pub fn outcome(result: &Result<WriteResult, Rejected>) -> String {
    match result {
        Ok(WriteResult { duplicate: true, .. }) => "ok (duplicate)".into(),
        Ok(WriteResult { replicas: Some(n), .. }) => format!("ok (on {n} replicas)"),
        Ok(_) => "ok".into(),
        Err(Rejected::NotLeader(Some(node))) => format!("not the leader: {node} is"),
        Err(Rejected::NotLeader(None)) => "not the leader".into(),
        Err(e) => e.to_string(),
    }
}
