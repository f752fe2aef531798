//! A node: what survives its process, and the process in the driver's place.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Index, NodeId, Nonce, ReplicaId};
use quorate_shared::limits::APPEND_BYTES_MAX;

use super::Rng;
use super::bases::Writing;
use super::engine::SimTree;
use super::filling::Filling;
use super::invariants::Sent;
use super::network::{Call, Packet};
use super::reads::Reading;
use super::shipping::{Pulling, Stream};
use super::store::{Opened, Store};
use super::world::{Event, SHARD, WALL, World};
use crate::bug::{Bug, planted};
use crate::engine::Tree;
use crate::epoch::{Relation, relation};
use crate::error::{Fatal, Rejected};
use crate::join;
use crate::log::{BaseRecord, EpochStart, LogEntry, LogRecord, Payload};
use crate::machine::{Applied, Machine};
use crate::membership::Host;
use crate::mvcc;
use crate::proposal::{Proposal, WriteResult};
use crate::replica::{PersistId, Protocol};
use crate::shard::{Config, Effect, Input, Shard, Ticket};
use crate::ship::follow::Follower;

/// What an engine's directory says about itself.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    boot: u64,
    pub(super) clean: bool,
}

/// See the module.
pub struct Node {
    pub(super) id: u64,
    /// A founding voter.
    founder: bool,
    /// How often its data directory has begun from nothing.
    incarnation: u64,
    base: BaseRecord,
    pub(super) store: Store,
    pub(super) tree: Arc<SimTree>,
    pub(super) mark: Mark,
    pub(super) up: Option<Process>,
    /// Counts starts: events of an earlier life mean nothing.
    pub(super) life: u64,
    /// Counts power cuts.
    pub(super) boot: u64,
    pub(super) stalled: bool,
    /// The applier does not get on.
    pub(super) applier_stalled: bool,
    /// What the wall clock is off by.
    pub skew: i64,
    /// It has lost its log as a member, and wants to be one again.
    pub(super) healing: bool,
    /// Notes for the next start: replica ids it had and others know to be gone; the newer epoch it is fenced by; the
    /// epoch it is to begin.
    pub(super) left: Vec<ReplicaId>,
    pub(super) fenced: Option<(Epoch, EpochStart)>,
    pub(super) promote: Option<Epoch>,
    /// It was log-shipped at some time.
    pub(super) was_reader: bool,
    /// Since when it knows no leader; when it asks for a change again.
    pub(super) leaderless: Option<u64>,
    pub(super) next_ask: u64,
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
    /// Whoever wants a change of the membership.
    Change,
}

pub(super) struct Process {
    /// What its log went by when it was opened.
    pub(super) replica: ReplicaId,
    pub(super) part: Part,
    pub(super) machine: Machine,
    persists: VecDeque<(PersistId, Vec<LogRecord>)>,
    syncing: bool,
    applying: VecDeque<Vec<LogEntry>>,
    pub(super) tickets: BTreeMap<Ticket, Waiter>,
    pub(super) reading: Reading,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) pulling: Option<Pulling>,
    /// The snapshot that is being fetched; the base that is being written.
    pub(super) filling: Option<Filling>,
    pub(super) writing: Option<Writing>,
    /// Nodes of members named since what it has applied.
    strangers: BTreeMap<ReplicaId, u64>,
    /// Changes of the membership in its log that are not applied.
    changes: Vec<Index>,
    pub(super) next_beat: u64,
}

impl Node {
    pub(super) fn new(id: u64, founder: bool, base: &BaseRecord, segment_bytes: u64) -> Self {
        Self {
            id,
            founder,
            incarnation: 1,
            base: base.clone(),
            store: Store::new(SHARD, segment_bytes),
            tree: Arc::default(),
            mark: Mark { boot: 1, clean: true },
            up: None,
            life: 0,
            boot: 1,
            stalled: false,
            applier_stalled: false,
            skew: 0,
            healing: false,
            left: Vec::new(),
            fenced: None,
            promote: None,
            was_reader: false,
            leaderless: None,
            next_ask: 0,
        }
    }

    /// This node in this incarnation.
    pub(super) fn host(&self) -> Host {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.id.to_be_bytes());
        nonce[8..].copy_from_slice(&self.incarnation.to_be_bytes());
        Host { node: NodeId::new(self.id), nonce: Nonce(nonce) }
    }

    /// Nothing of what it had is to be used any more: it begins again as a log-shipped replica, in another incarnation.
    pub(super) fn begin_anew(&mut self) -> Result<(), Fatal> {
        self.incarnation += 1;
        self.tree = Arc::default();
        self.store.wipe();
        self.left.clear();
        self.store.open()?;
        self.store.found(ReplicaId::NONE, &self.base)
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
        let was = self.store.durable.replica;
        match self.store.open()? {
            Opened::Whole => {}
            Opened::Wrong(what) => return Ok(Some(what)),
            Opened::Lost(_) if planted(Bug::WipedVoterVotes) => self.store.found(was, &self.base)?,
            Opened::Lost(_) => {
                self.healing |= was != ReplicaId::NONE;
                self.begin_anew()?;
            }
        }
        if self.store.reader().bounds(SHARD).is_none() {
            let replica = if self.founder { ReplicaId::new(self.id) } else { ReplicaId::NONE };
            self.store.found(replica, &self.base)?;
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

    /// It has lost its log and is not a member again yet.
    pub fn is_lost(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.healing)
    }

    /// Starts a node on what its disk and engine have.
    pub fn start(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.up.is_none()) else { return };
        node.life += 1;
        node.open_engine();
        let opened = node.open_log();
        let life = node.life;
        match opened {
            Ok(None) => {}
            Ok(Some(what)) => return self.violate(format!("n{id}: {what}")),
            Err(e) => return self.stopped(id, &e),
        }
        self.trace.note(self.now, id, "start", life, 0);
        let mut opened = self.open_parts(id);
        if opened.is_err()
            && let Some(node) = self.nodes.get_mut(&id).filter(|n| n.store.flipped)
        {
            // A base that is damaged cannot be rebuilt from.
            node.healing |= node.store.durable.replica != ReplicaId::NONE;
            opened = node.begin_anew().and_then(|()| self.open_parts(id));
        }
        let interrupted = self.node(id).is_some_and(|node| std::mem::take(&mut node.store.interrupted));
        match opened {
            Ok(()) if interrupted => self.power_cut(id),
            Ok(()) => {
                self.drive(id, None);
                self.schedule(self.now + 1, id, Event::Wake);
            }
            Err(e) => self.stopped(id, &e),
        }
    }

    /// As the daemon does it: a fenced log is cut, a received snapshot installed, the engine filled, what is committed
    /// applied; then the membership says what part the replica has.
    fn open_parts(&mut self, id: u64) -> Result<(), Fatal> {
        let (now, seed, timing, protocol) = (self.now, self.seed, self.shape.timing, self.shape.protocol);
        self.rejoin(id)?;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let was = node.store.durable.replica;
        self.checks.bases.begins(id, node.incarnation);
        let filled = node.install_received()?;
        let log = node.store.reader();
        let base = log.bounds(SHARD).map_or_else(|| node.base.clone(), |b| b.base);
        node.fill_engine(&base)?;
        let tree: Arc<dyn Tree> = Arc::clone(&node.tree) as Arc<dyn Tree>;
        let mut machine = Machine::open(Arc::clone(&tree), &base)?;
        if let Some(at) = filled {
            self.checks.bases.synced(id, at);
            self.checks.readonly.received(id, at);
        }
        self.catch_up(id, &mut machine)?;
        self.settle(id, &machine)?;
        self.catch_up(id, &mut machine)?;
        let applied = machine.state().applied();
        let mut effects = Vec::new();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let replica = node.store.reader().bounds(SHARD).map_or(ReplicaId::NONE, |b| b.replica);
        let part = if replica == ReplicaId::NONE {
            node.was_reader = true;
            if was != replica {
                // What it had as a member is its own.
                self.checks.readonly.received(id, node.store.durable.last());
            }
            let mut follower = Follower::new(SHARD, applied.epoch, log, &applied)?;
            follower.hand_out(&mut effects)?;
            Part::Follower(Box::new(follower))
        } else {
            let config = Config {
                shard: SHARD,
                replica,
                node: NodeId::new(id),
                protocol,
                // Not a plain mix of small numbers: two replicas with one stream of timeouts never elect anybody.
                seed: Rng::new(seed ^ (node.life << 8 | id).wrapping_mul(0x9e37_79b9_7f4a_7c15)).next(),
                timing,
            };
            Part::Shard(Box::new(Shard::new(config, log, tree, applied.clone(), now)?))
        };
        node.leaderless = None;
        node.up = Some(Process {
            replica,
            part,
            machine,
            persists: VecDeque::new(),
            syncing: false,
            applying: VecDeque::new(),
            tickets: BTreeMap::new(),
            reading: Reading::default(),
            streams: BTreeMap::new(),
            pulling: None,
            filling: None,
            writing: None,
            strangers: BTreeMap::new(),
            changes: node.store.changes_after(applied.index)?,
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

    /// Applies what the log knows to be committed.
    fn catch_up(&mut self, id: u64, machine: &mut Machine) -> Result<(), Fatal> {
        self.checks.lineage.opens(id, machine.state().epoch);
        let Some(log) = self.nodes.get(&id).map(|n| n.store.reader()) else { return Ok(()) };
        let Some(bounds) = log.bounds(SHARD) else { return Ok(()) };
        let end = if bounds.replica == ReplicaId::NONE { bounds.last } else { bounds.hard.commit.min(bounds.last) };
        while machine.state().index < end {
            let entries = log.entries(SHARD, machine.state().index.next(), end.next(), APPEND_BYTES_MAX)?;
            if entries.is_empty() {
                let cause = format!("the log has no entry {}", machine.state().index.next());
                return Err(Fatal::new(format!("open n{id}"), cause));
            }
            let checked = self.checks.commits(id, &entries);
            self.check(checked);
            let applied = machine.apply(&entries)?;
            self.note_applied(id, &applied, machine.state().digest());
        }
        Ok(())
    }

    /// Makes the log go by the id that the membership says, or begins an epoch in it.
    fn settle(&mut self, id: u64, machine: &Machine) -> Result<(), Fatal> {
        if self.begin_epoch(id, machine)? {
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let (me, reader, own) = (node.host(), node.store.reader(), node.store.durable.replica);
        let left = node.left.contains(&own);
        let new = join::settle(&mut node.store, &*reader, SHARD, me, &machine.state().applied(), left)?;
        node.left.clear();
        if new != own {
            self.trace.note(self.now, id, "becomes", new.get(), own.get());
        }
        if new != ReplicaId::NONE {
            let checked = self.checks.members.lives(new, me);
            self.check(checked);
        }
        Ok(())
    }

    /// What it has is of another history than the cluster's: it begins again from nothing.
    pub(super) fn start_anew(&mut self, id: u64) {
        self.shut_down(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match node.begin_anew() {
            Ok(()) => self.start(id),
            Err(e) => self.stopped(id, &e),
        }
    }

    /// Stops in order and starts again: the membership, an epoch or a snapshot gives it another part.
    pub(super) fn begin_again(&mut self, id: u64) {
        self.shut_down(id);
        self.start(id);
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

    /// A node's state as it is.
    pub fn snapshot(&self, id: u64) -> Option<mvcc::Snapshot> {
        let node = self.nodes.get(&id)?;
        let timestamp = node.up.as_ref()?.machine.state().timestamp;
        Some(mvcc::Snapshot::new(Arc::clone(&node.tree) as Arc<dyn Tree>, timestamp))
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
            Packet::Peer { epoch, sender, receiver, message } => {
                let Some(Process { part: Part::Shard(shard), replica, strangers, .. }) = self.process(id) else {
                    return;
                };
                if sender >= shard.membership().next {
                    strangers.insert(sender, from);
                }
                // The envelope: who is not meant, or is in another epoch, does not hear it.
                match relation(shard.epochs().0, epoch) {
                    Relation::Same if *replica == receiver => {
                        self.drive(id, Some(Input::Receive { from: sender, message }));
                    }
                    Relation::Same | Relation::Conflict => {}
                    Relation::Older => self.tell_epoch(id, from),
                    Relation::Newer => self.send(id, from, Packet::AskEpoch),
                }
            }
            Packet::Propose { planned: Some(epoch), call, .. } if epoch != self.epoch(id).0 => {
                // A transaction ends with the epoch it began in: its session does.
                let (epoch, result) = (self.epoch(id).0, Box::new(Err(Rejected::Conflict)));
                self.send(id, from, Packet::Proposed { call, epoch, result });
            }
            Packet::Propose { call, proposal, planned, deadline, via } => {
                self.take_write(id, from, call, (proposal, planned), deadline, via)
            }
            Packet::Proposed { call, epoch, result } => {
                self.send(id, call.0, Packet::Proposed { call, epoch, result });
            }
            Packet::Read { call, level, query, deadline } => self.take_read(id, call, level, query, deadline),
            Packet::AskIndex { ask, epoch } => self.asked_for_index(id, from, (ask, epoch)),
            Packet::Index { ask, result } => self.index_came(id, ask, result),
            Packet::Ship { link, message } => self.ship_came(id, from, link, &message),
            Packet::Shipped { link, message } => self.shipped_came(id, link, &message),
            Packet::Broken { link } => self.link_broken(id, link),
            Packet::Report(report) => {
                if self.shard(id).is_some() {
                    self.drive(id, Some(Input::Report(report)));
                }
            }
            Packet::Change { change, via } => self.take_change(id, from, change, via),
            Packet::AskMembers => self.tell_members(id, from),
            Packet::Members { applied, chain, membership } => self.hear_members(id, (applied, chain), &membership),
            Packet::AskEpoch => self.tell_epoch(id, from),
            Packet::Epoch { epoch, start } => self.hear_epoch(id, from, epoch, start),
            Packet::AskSnapshot { link, have } => self.asked_for_snapshot(id, from, link, have),
            Packet::Snapshot { link, part } => self.snapshot_came(id, link, part),
            Packet::ReadDone { .. } => {}
        }
    }

    /// A client's write: to the shard if it leads, to the leader if it was not forwarded yet.
    fn take_write(
        &mut self,
        id: u64,
        from: u64,
        call: Call,
        (proposal, planned): (Box<Proposal>, Option<Epoch>),
        deadline: u64,
        via: Option<u64>,
    ) {
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
            return self.send(id, leader.get(), Packet::Propose { call, proposal, planned, deadline, via: Some(id) });
        }
        let result = Box::new(Err(Rejected::NotLeader(leader)));
        let epoch = self.epoch(id).0;
        self.send(id, from, Packet::Proposed { call, epoch, result });
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
    pub(super) fn sync(&mut self, id: u64) {
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
        let reader = matches!(process.part, Part::Follower(_));
        process.changes.retain(|index| *index > applied.index);
        self.note_applied(id, &applied, digest);
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

    fn note_applied(&mut self, id: u64, applied: &Applied, digest: quorate_shared::ids::Hash) {
        let Applied { index, chain, .. } = *applied;
        let checked = self.checks.states.applied(&self.checks.lineage, (id, index), chain, digest);
        self.check(checked);
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
        let mut effects = std::mem::take(&mut self.effects);
        let stepped = input.map_or(Ok(()), |input| shard.step(now, input, &mut effects));
        let done = stepped.and_then(|()| shard.flush(now, wall, &mut effects));
        for effect in effects.drain(..) {
            self.execute(id, effect);
        }
        self.effects = effects;
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
                self.note_changes(id, &records);
                if let Some(process) = self.process(id) {
                    process.persists.push_back((persist, records));
                }
                self.sync(id);
            }
            Effect::Send { to, message } => self.send_peer(id, to, message),
            Effect::Apply { entries } => self.commits(id, entries),
            Effect::Reply { ticket, result } => self.replied(id, ticket, result),
            Effect::ReadReady { ticket, result } => self.read_ready(id, ticket, result),
            Effect::Changed { ticket, result } => self.changed(id, ticket, &result),
            Effect::NeedsSnapshot { .. } => self.fill(id),
            Effect::Leader { term, leader, ready, .. } => {
                self.trace.note(self.now, id, "leader", term.get(), leader.map_or(0, ReplicaId::get));
                self.note_leader(id, term, leader, ready);
            }
        }
    }

    fn send_peer(&mut self, id: u64, to: ReplicaId, message: bytes::Bytes) {
        let Some(node) = self.nodes.get(&id) else { return };
        let Some(Process { part: Part::Shard(shard), replica, strangers, .. }) = &node.up else { return };
        let (sender, epoch) = (*replica, shard.epochs().0);
        let known = shard.membership().node_of(to).map(NodeId::get);
        let Some(receives) = known.or_else(|| strangers.get(&to).copied()) else { return };
        let sent = Sent { now: self.now, node: id, from: sender, to, durable: &node.store.durable };
        if self.shape.protocol == Protocol::Raft {
            let checked = self.checks.sent(&sent, &message);
            self.check(checked);
        }
        self.send(id, receives, Packet::Peer { epoch, sender, receiver: to, message });
    }

    fn note_leader(&mut self, id: u64, term: quorate_shared::ids::Term, leader: Option<ReplicaId>, ready: bool) {
        let Some(Process { part: Part::Shard(shard), replica, .. }) = self.nodes.get(&id).and_then(|n| n.up.as_ref())
        else {
            return;
        };
        if leader != Some(*replica) {
            return;
        }
        let (me, epoch) = ((id, *replica), shard.epochs().0);
        // It may have applied a change since it was elected.
        let members = self.checks.members.last_two(&self.checks.lineage, epoch, shard.view().applied);
        let first = match self.checks.leaders.leads(id, (epoch, term), ready) {
            Ok(first) => first,
            Err(what) => return self.violate(what),
        };
        if first && self.shape.protocol == Protocol::Raft {
            let checked = self.checks.votes.elected(me, term, &members);
            self.check(checked);
        }
    }

    /// Changes of the membership that a leader appends come one after the other.
    fn note_changes(&mut self, id: u64, records: &[LogRecord]) {
        let leads = self.view(id).filter(|v| v.is_leader).map(|v| v.term);
        for record in records {
            let Some(process) = self.process(id) else { return };
            match record {
                LogRecord::Truncate(from) => process.changes.retain(|index| index < from),
                LogRecord::Entries(entries) => {
                    for entry in entries.iter().filter(|e| e.payload == Payload::Membership) {
                        let Some(process) = self.process(id) else { return };
                        process.changes.push(entry.index);
                        let pending = process.changes.clone();
                        if leads == Some(entry.term) {
                            let checked = self.checks.members.appended(id, entry.index, &pending);
                            self.check(checked);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn commits(&mut self, id: u64, entries: Vec<LogEntry>) {
        let last = entries.last().map_or(Index::new(0), |e| e.index);
        self.trace.note(self.now, id, "commit", last.get(), 0);
        let checked = self.checks.commits(id, &entries);
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
        let logs = self.nodes.values().map(|n| (n.id, &n.store.durable));
        let readers = self.nodes.values().filter(|n| n.was_reader && n.id != id).map(|n| n.id);
        let applied: Vec<Index> = readers.map(|id| self.checks.states.highest(id)).collect();
        let (here, epoch) = (self.applied_at(id).unwrap_or_default(), self.epoch(id).0);
        let (lineage, known) = (&self.checks.lineage, &self.checks.members);
        let members = |index: Index| known.counted(lineage, epoch, index);
        let checked = self.checks.acknowledged.answered(ticket, &result, here, logs, members, &applied);
        self.check(checked);
        let Some(process) = self.process(id) else { return };
        match process.tickets.remove(&ticket) {
            Some(Waiter::Write { call, to }) => {
                self.send(id, to, Packet::Proposed { call, epoch, result: Box::new(result) });
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
