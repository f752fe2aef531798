//! A node: what survives its process, the replicas of its shards, and how it starts.
//!
//! As in the daemon all shards of a node share one log, one boot, one trust in the engine; they start and end together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Index, NodeId, Nonce, ReplicaId, ShardId};
use quorate_shared::limits::APPEND_BYTES_MAX;

use super::Rng;
use super::bases::Writing;
use super::engine::SimTree;
use super::filling::Filling;
use super::network::Call;
use super::place::Place;
use super::reads::Reading;
use super::shipping::{Pulling, Stream};
use super::store::{Opened, Store};
use super::world::{Event, World};
use crate::bug::{Bug, planted};
use crate::engine::Tree;
use crate::error::Fatal;
use crate::join;
use crate::log::{BaseRecord, EpochStart, LogEntry, LogRecord};
use crate::machine::Machine;
use crate::membership::Host;
use crate::mvcc;
use crate::replica::PersistId;
use crate::shard::{Config, Effect, Shard, Ticket};
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
    pub(super) store: Store,
    pub(super) mark: Mark,
    /// Counts starts: events of an earlier life mean nothing.
    pub(super) life: u64,
    /// Counts power cuts.
    pub(super) boot: u64,
    pub(super) stalled: bool,
    /// The applier does not get on.
    pub(super) applier_stalled: bool,
    /// What the wall clock is off by.
    pub skew: i64,
    /// Notes for the next start: where the newer epoch begins that it is fenced by; the epoch it is to begin.
    pub(super) fenced: BTreeMap<ShardId, (Epoch, EpochStart)>,
    pub(super) promote: Option<Epoch>,
    /// What its shards want written next, and whether something is being synced.
    pub(super) persists: Vec<(ShardId, PersistId, Vec<LogRecord>)>,
    pub(super) syncing: bool,
    pub(super) replicas: BTreeMap<ShardId, Replica>,
    /// It has left for good.
    pub(super) gone: bool,
}

/// What a node has of a shard.
pub(super) struct Replica {
    base: BaseRecord,
    pub(super) tree: Arc<SimTree>,
    pub(super) up: Option<Process>,
    /// It has lost its log as a member, and wants to be one again.
    pub(super) healing: bool,
    /// A note for the next start: replica ids it had and others know to be gone.
    pub(super) left: Vec<ReplicaId>,
    /// It was log-shipped at some time.
    pub(super) was_reader: bool,
    /// Since when it knows no leader; when it asks for a change again.
    pub(super) leaderless: Option<u64>,
    pub(super) next_ask: u64,
}

/// Which part a replica plays.
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
    pub(super) applying: VecDeque<Vec<LogEntry>>,
    pub(super) tickets: BTreeMap<Ticket, Waiter>,
    pub(super) reading: Reading,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) pulling: Option<Pulling>,
    /// The snapshot that is being fetched; the base that is being written.
    pub(super) filling: Option<Filling>,
    pub(super) writing: Option<Writing>,
    /// Nodes of members named since what it has applied.
    pub(super) strangers: BTreeMap<ReplicaId, u64>,
    /// Changes of the membership in its log that are not applied.
    pub(super) changes: Vec<Index>,
    pub(super) next_beat: u64,
}

impl Node {
    /// A node of these shards, on an empty disk.
    pub(super) fn new(id: u64, founder: bool, founding: &[BaseRecord], segment_bytes: u64) -> Self {
        let replica = |base: &BaseRecord| Replica {
            base: base.clone(),
            tree: Arc::default(),
            up: None,
            healing: false,
            left: Vec::new(),
            was_reader: false,
            leaderless: None,
            next_ask: 0,
        };
        Self {
            id,
            founder,
            incarnation: 1,
            store: Store::new(founding.len() as u64, segment_bytes),
            mark: Mark { boot: 1, clean: true },
            life: 0,
            boot: 1,
            stalled: false,
            applier_stalled: false,
            skew: 0,
            fenced: BTreeMap::new(),
            promote: None,
            persists: Vec::new(),
            syncing: false,
            gone: false,
            replicas: founding.iter().map(|base| (base.shard, replica(base))).collect(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.replicas.values().any(|r| r.up.is_some())
    }

    pub(super) fn shards(&self) -> Vec<ShardId> {
        self.replicas.keys().copied().collect()
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
        self.forget_engine();
        self.store.wipe();
        self.store.open()?;
        for replica in self.replicas.values_mut() {
            replica.left.clear();
            self.store.found(ReplicaId::NONE, &replica.base)?;
        }
        Ok(())
    }

    pub(super) fn forget_engine(&mut self) {
        self.replicas.values_mut().for_each(|r| r.tree = Arc::default());
    }

    /// It has lost its log: where it was a member it wants to be one again.
    fn heal(&mut self) {
        for (shard, replica) in &mut self.replicas {
            replica.healing |= self.store.durable[*shard].replica != ReplicaId::NONE;
        }
    }

    /// The engine's rule of trust: within the boot that wrote it, or after a clean close.
    fn open_engine(&mut self) {
        let trusted = self.mark.boot == self.boot || self.mark.clean;
        if !trusted && !planted(Bug::TrustAfterPowerCut) {
            self.forget_engine();
        }
        self.mark = Mark { boot: self.boot, clean: false };
    }

    /// Opens the log, and founds an empty one.
    fn open_log(&mut self) -> Result<Option<String>, Fatal> {
        let was: Vec<ReplicaId> = self.store.durable.values().map(|content| content.replica).collect();
        match self.store.open()? {
            Opened::Whole => {}
            Opened::Wrong(what) => return Ok(Some(what)),
            Opened::Lost(_) if planted(Bug::WipedVoterVotes) => {
                for (replica, was) in self.replicas.values().zip(was) {
                    self.store.found(was, &replica.base)?;
                }
            }
            Opened::Lost(_) => {
                for (replica, was) in self.replicas.values_mut().zip(was) {
                    replica.healing |= was != ReplicaId::NONE;
                }
                self.begin_anew()?;
            }
        }
        for (shard, replica) in &self.replicas {
            if self.store.reader().bounds(*shard).is_none() {
                let own = if self.founder { ReplicaId::new(self.id) } else { ReplicaId::NONE };
                self.store.found(own, &replica.base)?;
            }
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
    pub(super) fn node(&mut self, node: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&node)
    }

    pub(super) fn replica(&self, id: Place) -> Option<&Replica> {
        self.nodes.get(&id.node)?.replicas.get(&id.shard)
    }

    pub(super) fn running(&self, id: Place) -> Option<&Process> {
        self.replica(id)?.up.as_ref()
    }

    pub(super) fn process(&mut self, id: Place) -> Option<&mut Process> {
        self.nodes.get_mut(&id.node)?.replicas.get_mut(&id.shard)?.up.as_mut()
    }

    pub fn shard(&self, id: impl Into<Place>) -> Option<&Shard> {
        match &self.running(id.into())?.part {
            Part::Shard(shard) => Some(shard),
            Part::Follower(_) => None,
        }
    }

    /// The highest index applied by a replica that is up.
    pub fn applied_at(&self, id: Place) -> Option<Index> {
        self.running(id).map(Process::applied)
    }

    /// It has lost its log and is not a member again yet.
    pub fn is_lost(&self, id: Place) -> bool {
        self.replica(id).is_some_and(|r| r.healing)
    }

    /// Starts a node on what its disk and engine have.
    pub fn start(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| !n.is_up() && !n.gone) else { return };
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
            node.heal();
            let begun = node.begin_anew();
            self.drop_processes(id);
            opened = begun.and_then(|()| self.open_parts(id));
        }
        let interrupted = self.node(id).is_some_and(|node| std::mem::take(&mut node.store.interrupted));
        match opened {
            Ok(()) if interrupted => self.power_cut(id),
            Ok(()) => {
                for id in self.places(id) {
                    // What the first shard hands out may let the node begin again.
                    if self.nodes.get(&id.node).is_some_and(|n| n.life == life) {
                        self.drive(id, None);
                        self.schedule(self.now + 1, id, Event::Wake);
                    }
                }
            }
            Err(e) => self.stopped(id, &e),
        }
    }

    /// A node's replicas.
    pub(super) fn places(&self, node: u64) -> Vec<Place> {
        let shards = self.nodes.get(&node).map(Node::shards).unwrap_or_default();
        shards.into_iter().map(|shard| Place { shard, node }).collect()
    }

    /// As the daemon does it: a fenced log is cut, received snapshots are installed, the engine is filled, what is
    /// committed applied; then the membership says what part each replica has.
    fn open_parts(&mut self, id: u64) -> Result<(), Fatal> {
        self.rejoin(id)?;
        let durable = |n: &Node| n.store.durable.values().map(|content| content.replica).collect();
        let was: Vec<ReplicaId> = self.nodes.get(&id).map(durable).unwrap_or_default();
        let places = self.places(id);
        let mut machines = Vec::new();
        for id in &places {
            machines.push(self.open_machine(*id)?);
        }
        self.settle(id, &machines)?;
        let mut effects = Vec::new();
        for ((id, mut machine), was) in places.into_iter().zip(machines).zip(was) {
            self.catch_up(id, &mut machine)?;
            for effect in self.open_part(id, machine, was)? {
                effects.push((id, effect));
            }
        }
        if let Some(node) = self.node(id) {
            node.promote = None;
        }
        for (id, effect) in effects {
            self.execute(id, effect);
        }
        Ok(())
    }

    fn open_machine(&mut self, id: Place) -> Result<Machine, Fatal> {
        let Some(node) = self.nodes.get_mut(&id.node) else { return Err(Fatal::new("open", "there is no such node")) };
        let incarnation = node.incarnation;
        let filled = node.install_received(id.shard)?;
        let bounds = node.store.reader().bounds(id.shard);
        let Some(base) = bounds.map(|b| b.base) else { return Err(Fatal::new("open", "the log has no base record")) };
        let tree = node.fill_engine(&base)?;
        let mut machine = Machine::open(tree, &base)?;
        let checks = &mut self.checks[id.shard];
        checks.bases.begins(id.node, incarnation);
        if let Some(at) = filled {
            checks.bases.synced(id.node, at);
            checks.readonly.received(id.node, at);
        }
        self.catch_up(id, &mut machine)?;
        Ok(machine)
    }

    /// Makes of an opened machine a replica in the part that its log says.
    fn open_part(&mut self, id: Place, machine: Machine, was: ReplicaId) -> Result<Vec<Effect>, Fatal> {
        let (now, seed, timing, protocol) = (self.now, self.seed, self.shape.timing, self.shape.protocol);
        let mut effects = Vec::new();
        let Some(node) = self.nodes.get_mut(&id.node) else { return Ok(effects) };
        let (life, log, applied) = (node.life, node.store.reader(), machine.state().applied());
        let changes = node.store.changes_after(id.shard, applied.index)?;
        let Some(replica) = node.replicas.get_mut(&id.shard) else { return Ok(effects) };
        let own = log.bounds(id.shard).map_or(ReplicaId::NONE, |b| b.replica);
        let part = if own == ReplicaId::NONE {
            replica.was_reader = true;
            if was != own {
                // What it had as a member is its own.
                self.checks[id.shard].readonly.received(id.node, node.store.durable[id.shard].last());
            }
            let mut follower = Follower::new(id.shard, applied.epoch, log, &applied)?;
            follower.hand_out(&mut effects)?;
            Part::Follower(Box::new(follower))
        } else {
            let salt = id.shard.get() << 40 | life << 8 | id.node;
            let config = Config {
                shard: id.shard,
                replica: own,
                node: NodeId::new(id.node),
                protocol,
                // Not a plain mix of small numbers: two replicas with one stream of timeouts never elect anybody.
                seed: Rng::new(seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next(),
                timing,
            };
            let tree: Arc<dyn Tree> = Arc::clone(&replica.tree) as Arc<dyn Tree>;
            Part::Shard(Box::new(Shard::new(config, log, tree, applied, now)?))
        };
        replica.leaderless = None;
        replica.up = Some(Process {
            replica: own,
            part,
            machine,
            applying: VecDeque::new(),
            tickets: BTreeMap::new(),
            reading: Reading::default(),
            streams: BTreeMap::new(),
            pulling: None,
            filling: None,
            writing: None,
            strangers: BTreeMap::new(),
            changes,
            next_beat: now,
        });
        let checked = self.checks[id.shard].overlap.begins(id.node, life);
        self.check(checked);
        Ok(effects)
    }

    /// Applies what the log knows to be committed.
    fn catch_up(&mut self, id: Place, machine: &mut Machine) -> Result<(), Fatal> {
        self.checks[id.shard].lineage.opens(id.node, machine.state().epoch);
        let Some(log) = self.nodes.get(&id.node).map(|n| n.store.reader()) else { return Ok(()) };
        let Some(bounds) = log.bounds(id.shard) else { return Ok(()) };
        let end = if bounds.replica == ReplicaId::NONE { bounds.last } else { bounds.committed() };
        while machine.state().index < end {
            let entries = log.entries(id.shard, machine.state().index.next(), end.next(), APPEND_BYTES_MAX)?;
            if entries.is_empty() {
                let cause = format!("the log has no entry {}", machine.state().index.next());
                return Err(Fatal::new(format!("open {id}"), cause));
            }
            let checked = self.checks[id.shard].commits(id.node, &entries);
            self.check(checked);
            let applied = machine.apply(&entries)?;
            self.note_applied(id, &applied, machine.state().digest());
        }
        Ok(())
    }

    /// Makes the log go by the ids that the memberships say, or begins an epoch in every shard.
    fn settle(&mut self, id: u64, machines: &[Machine]) -> Result<(), Fatal> {
        for (id, machine) in self.places(id).into_iter().zip(machines) {
            if self.begin_epoch(id, machine)? {
                continue;
            }
            let Some(node) = self.nodes.get_mut(&id.node) else { return Ok(()) };
            let (me, reader, own) = (node.host(), node.store.reader(), node.store.durable[id.shard].replica);
            let Some(replica) = node.replicas.get_mut(&id.shard) else { return Ok(()) };
            let left = replica.left.contains(&own);
            let new = join::settle(&mut node.store, &*reader, id.shard, me, &machine.state().applied(), left)?;
            replica.left.clear();
            if new != own {
                self.trace.note(self.now, id, "becomes", new.get(), own.get());
            }
            if new != ReplicaId::NONE {
                let checked = self.checks[id.shard].members.lives(new, me);
                self.check(checked);
            }
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

    /// A node has stopped itself: right only where its disk had lied to it.
    pub(super) fn stopped(&mut self, id: u64, fatal: &Fatal) {
        self.trace.say(self.now, || format!("n{id} stops: {fatal}"));
        let excused = self.nodes.get(&id).is_some_and(|n| n.store.flipped);
        if !excused {
            return self.violate(format!("n{id} stopped: {fatal}"));
        }
        self.kill(id);
    }

    /// A replica's state as it is.
    pub fn snapshot(&self, id: Place) -> Option<mvcc::Snapshot> {
        let replica = self.replica(id)?;
        let timestamp = replica.up.as_ref()?.machine.state().timestamp;
        Some(mvcc::Snapshot::new(Arc::clone(&replica.tree) as Arc<dyn Tree>, timestamp))
    }
}
