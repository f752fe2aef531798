//! The world: nodes, the queue of events, virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Hash, Index, NodeId, ReplicaId, ShardId};

use super::Rng;
use super::invariants::Checks;
use super::network::{Call, Fate, Network, Packet, Weather};
use super::node::Node;
use super::place::{ByShard, Place};
use super::trace::Trace;
use crate::error::Rejected;
use crate::log::{BaseRecord, EpochStart, Membership};
use crate::proposal::WriteResult;
use crate::replica::{PersistId, Protocol, Timing};
use crate::shard::{Effect, Input, Shard, Ticket, View};

pub const SHARD: ShardId = ShardId::META;
/// The wall clock when virtual time begins.
pub const WALL: u64 = 1_700_000_000_000;
/// Nodes that have not founded the cluster are numbered from here.
pub const FIRST_READER: u64 = 11;
/// Clients are numbered from here.
pub const CLIENTS: u64 = 1_000;

#[derive(Debug)]
pub(super) enum Event {
    Wake,
    Deliver {
        from: u64,
        packet: Packet,
    },
    /// The connection to a peer is lost.
    Disconnected {
        peer: ReplicaId,
    },
    /// What was written up to here, of each shard, is durable.
    Synced {
        done: Vec<(ShardId, PersistId)>,
    },
    Apply,
    /// A read goes on.
    Read {
        job: u64,
    },
    /// A base is written on.
    Base,
}

/// What is to happen: for whom, in which of its lives.
struct Item {
    to: Place,
    life: u64,
    event: Event,
}

/// What is to happen, in order of time. What moves in the heap is small.
#[derive(Default)]
struct Queue {
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
    items: Vec<Option<Item>>,
    free: Vec<usize>,
    count: u64,
}

impl Queue {
    fn push(&mut self, at: u64, item: Item) {
        self.count += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.items.push(None);
            self.items.len() - 1
        });
        if let Some(slot) = self.items.get_mut(place) {
            *slot = Some(item);
        }
        self.order.push(Reverse((at, self.count, place)));
    }

    fn next_at(&self) -> Option<u64> {
        self.order.peek().map(|Reverse((at, ..))| *at)
    }

    fn pop(&mut self) -> Option<(u64, Item)> {
        let Reverse((at, _, place)) = self.order.pop()?;
        self.free.push(place);
        Some((at, self.items.get_mut(place)?.take()?))
    }
}

/// What concerns a client, not a node.
#[derive(Debug)]
pub enum ToClient {
    Wake(u64),
    Proposed(Call, Epoch, Box<Result<WriteResult, Rejected>>),
    ReadDone(Call, Result<super::reads::ReadResult, Rejected>),
}

/// What makes a world.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Of the first shard on.
    pub shards: u64,
    pub voters: u64,
    pub readers: u64,
    pub timing: Timing,
    pub protocol: Protocol,
    pub segment_bytes: u64,
    pub verbose: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            shards: 1,
            voters: 3,
            readers: 0,
            timing: Timing::default(),
            protocol: Protocol::Raft,
            segment_bytes: 64 << 10,
            verbose: false,
        }
    }
}

/// See the module.
pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub weather: Weather,
    pub seed: u64,
    pub shape: Shape,
    pub network: Network,
    pub(super) nodes: BTreeMap<u64, Node>,
    queue: Queue,
    /// Room for what a shard wants done.
    pub(super) effects: Vec<Effect>,
    pub(super) tickets: Ticket,
    /// Answers to whoever asked through [`World::propose`] and [`World::read`].
    pub replies: BTreeMap<Ticket, Result<WriteResult, Rejected>>,
    pub reads: BTreeMap<Ticket, Result<Index, Rejected>>,
    pub(super) clients: Vec<ToClient>,
    pub checks: ByShard<Checks>,
    pub violation: Option<String>,
    /// Up to here the cluster was set up.
    pub founded: ByShard<Index>,
    pub trace: Trace,
}

/// Why a protocol does not take so many voters.
#[cfg(test)]
pub fn refusal(voters: u64, protocol: Protocol) -> Option<String> {
    use crate::engine::memory::MemoryTree;
    use std::sync::Arc;

    let base = base(SHARD, voters);
    let timing = Timing::default();
    let (replica, node) = (ReplicaId::new(1), NodeId::new(1));
    let config = crate::shard::Config { shard: SHARD, replica, node, protocol, seed: 1, timing };
    let tree = Arc::new(MemoryTree::default());
    let applied = crate::machine::Machine::open(tree.clone(), &base).unwrap().state().applied();
    let log = Arc::new(super::records::Disk::new(base));
    Shard::new(config, log, tree, applied, 0).err().map(|e| e.to_string())
}

/// The founding record.
pub fn base(shard: ShardId, voters: u64) -> BaseRecord {
    let membership = Membership::of_voters((1..=voters).map(|n| (ReplicaId::new(n), NodeId::new(n))));
    BaseRecord {
        chain: Hash([7; 32]),
        epoch_start: EpochStart { index: Index::new(0), chain: Hash([7; 32]) },
        ..BaseRecord::founding(shard, membership, Epoch { number: 1, id: 1 })
    }
}

impl World {
    /// Voters on empty disks, started.
    pub fn with(seed: u64, voters: u64, weather: Weather, protocol: Protocol) -> Self {
        Self::shaped(seed, Shape { voters, protocol, ..Shape::default() }, weather)
    }

    pub fn shaped(seed: u64, shape: Shape, weather: Weather) -> Self {
        let mut world = World {
            now: 0,
            rng: Rng::new(seed),
            weather,
            seed,
            network: Network::default(),
            nodes: BTreeMap::new(),
            queue: Queue::default(),
            effects: Vec::new(),
            tickets: 0,
            replies: BTreeMap::new(),
            reads: BTreeMap::new(),
            clients: Vec::new(),
            checks: ByShard::new(shape.shards, |_| Checks::default()),
            violation: None,
            founded: ByShard::new(shape.shards, |_| Index::new(0)),
            trace: Trace::new(shape.verbose),
            shape,
        };
        let (voters, readers) = (world.shape.voters, world.shape.readers);
        let founding = world.founding();
        for base in &founding {
            world.checks[base.shard].found(base.epoch, base.membership.clone());
        }
        for id in (1..=voters).chain(FIRST_READER..FIRST_READER + readers) {
            let node = Node::new(id, id <= voters, &founding, world.shape.segment_bytes);
            world.nodes.insert(id, node);
        }
        for id in world.all() {
            world.start(id);
        }
        world
    }

    pub(super) fn founding(&self) -> Vec<BaseRecord> {
        self.shards().into_iter().map(|shard| base(shard, self.shape.voters)).collect()
    }

    pub fn shards(&self) -> Vec<ShardId> {
        (0..self.shape.shards).map(ShardId::new).collect()
    }

    /// The nodes of a shard's voters.
    pub fn ids(&self, shard: ShardId) -> Vec<u64> {
        let mut ids: Vec<u64> = self.members(shard).voters.iter().map(|m| m.node.get()).collect();
        ids.sort_unstable();
        ids
    }

    /// A shard's last membership that is committed.
    pub fn members(&self, shard: ShardId) -> Arc<Membership> {
        let checks = &self.checks[shard];
        checks.members.newest(&checks.lineage)
    }

    /// All others.
    pub fn readers(&self, shard: ShardId) -> Vec<u64> {
        let voters = self.ids(shard);
        self.all().into_iter().filter(|id| !voters.contains(id)).collect()
    }

    pub fn all(&self) -> Vec<u64> {
        self.nodes.values().filter(|n| !n.gone).map(|n| n.id).collect()
    }

    pub fn is_up(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(Node::is_up)
    }

    /// Something that must never be.
    pub fn violate(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.trace.say(self.now, || format!("VIOLATION: {what}"));
        self.violation.get_or_insert_with(|| format!("at {} ms: {what}", self.now));
    }

    /// Notes a broken invariant.
    pub(super) fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violate(what);
        }
    }

    pub(super) fn schedule(&mut self, at: u64, to: impl Into<Place>, event: Event) {
        let to = to.into();
        let life = self.nodes.get(&to.node).map_or(0, |n| n.life);
        self.queue.push(at, Item { to, life, event });
    }

    /// A client wants to be woken.
    pub fn wake_client(&mut self, at: u64, client: u64) {
        self.schedule(at.max(self.now + 1), client, Event::Wake);
    }

    pub fn cut(&mut self, from: u64, to: u64) {
        self.network.cut(from, to);
    }

    /// Groups that cannot reach each other.
    pub fn partition(&mut self, groups: &[Vec<u64>]) {
        for (i, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(i + 1) {
                for (&a, &b) in group.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
                    self.cut(a, b);
                    self.cut(b, a);
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.network.heal();
    }

    pub fn view(&self, id: impl Into<Place>) -> Option<View> {
        self.shard(id).map(Shard::view)
    }

    /// The node that leads a shard and evaluates proposals, of the newest epoch and the highest term.
    pub fn leader(&self, shard: ShardId) -> Option<u64> {
        let epoch = self.checks[shard].lineage.newest();
        let ids = self.ids(shard).into_iter().map(|node| Place { shard, node });
        let here = ids.filter_map(|id| self.shard(id).map(|shard| (shard, id.node)));
        let ready = here.filter(|(shard, _)| shard.epochs() == (epoch, None) && shard.view().ready);
        ready.map(|(shard, node)| (shard.view().term, node)).max().map(|(_, node)| node)
    }

    /// Runs until the queue has nothing before this time, or something is wrong.
    pub fn run_until(&mut self, until: u64) {
        while self.violation.is_none() && self.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    pub fn run_for(&mut self, ms: u64) {
        self.run_until(self.now + ms);
    }

    /// Runs until something holds. `false`: it did not in time.
    pub fn run_while(&mut self, ms: u64, mut go_on: impl FnMut(&World) -> bool) -> bool {
        let until = self.now + ms;
        while go_on(self) {
            if self.now >= until {
                return false;
            }
            self.run_until(self.now + 1);
        }
        true
    }

    /// When the next event is.
    pub fn next_at(&self) -> Option<u64> {
        self.queue.next_at()
    }

    /// What has come for clients.
    pub fn take_clients(&mut self) -> Vec<ToClient> {
        std::mem::take(&mut self.clients)
    }

    /// One event.
    pub fn step(&mut self) {
        let Some((at, Item { to, life, event })) = self.queue.pop() else { return };
        self.now = self.now.max(at);
        if to.node >= CLIENTS {
            self.for_client(to.node, event);
            return;
        }
        let Some(node) = self.nodes.get(&to.node) else { return };
        if !node.is_up() || (node.life != life && !matches!(event, Event::Deliver { .. })) {
            return;
        }
        match event {
            Event::Wake => self.wake(to),
            Event::Deliver { from, packet } => self.deliver(to, from, packet),
            Event::Disconnected { peer } => self.drive(to, Some(Input::Disconnected { peer })),
            Event::Synced { done } => self.synced(to.node, done),
            Event::Apply => self.apply(to),
            Event::Read { job } => self.go_on_reading(to, job),
            Event::Base => self.go_on_writing(to),
        }
    }

    fn for_client(&mut self, client: u64, event: Event) {
        match event {
            Event::Wake => self.clients.push(ToClient::Wake(client)),
            Event::Deliver { packet: Packet::Proposed { call, epoch, result }, .. } => {
                self.clients.push(ToClient::Proposed(call, epoch, result));
            }
            Event::Deliver { packet: Packet::ReadDone { call, result }, .. } => {
                self.clients.push(ToClient::ReadDone(call, *result));
            }
            _ => {}
        }
    }

    /// Packets of the protocol that were sent before come again.
    pub fn replay(&mut self, packets: u64) {
        if self.shape.protocol == Protocol::Paxos {
            // Its connections do not do that.
            return;
        }
        for _ in 0..packets {
            let Some((from, to, packet)) = self.network.old(&mut self.rng) else { return };
            let at = self.now + self.rng.range(0, 50);
            self.schedule(at, from.on(to), Event::Deliver { from: from.node, packet });
        }
    }

    /// Puts a packet on the wire, from a shard's replica, or a client of the shard, to another.
    pub fn send(&mut self, at: Place, to: u64, packet: Packet) {
        let from = at.node;
        if let Packet::Ship { link, .. }
        | Packet::Shipped { link, .. }
        | Packet::AskSnapshot { link, .. }
        | Packet::Snapshot { link, .. } = &packet
        {
            let link = *link;
            match self.network.stream(&mut self.rng, &self.weather, self.now, link, (from, to)) {
                Fate::Arrives(then) => self.schedule(then, at.on(to), Event::Deliver { from, packet }),
                Fate::Breaks(then) => {
                    for end in [from, to] {
                        self.schedule(then, at.on(end), Event::Deliver { from: 0, packet: Packet::Broken { link } });
                    }
                }
                Fate::Gone => {}
            }
            return;
        }
        if let (Protocol::Paxos, &Packet::Peer { sender, receiver, .. }) = (self.shape.protocol, &packet) {
            match self.network.session(&mut self.rng, &self.weather, self.now, (at, to)) {
                Fate::Arrives(then) => self.schedule(then, at.on(to), Event::Deliver { from, packet }),
                Fate::Breaks(then) => {
                    self.schedule(then, at, Event::Disconnected { peer: receiver });
                    self.schedule(then, at.on(to), Event::Disconnected { peer: sender });
                }
                Fate::Gone => {}
            }
            return;
        }
        if matches!(packet, Packet::Peer { .. }) {
            self.network.remember(at, to, &packet);
        }
        let times = self.network.datagram(&mut self.rng, &self.weather, self.now, from, to);
        let [first, second] = times;
        // Requests travel on connections: they may be lost with one, but do not come twice.
        let doubles =
            matches!(packet, Packet::Peer { .. } | Packet::Report(_) | Packet::AskIndex { .. } | Packet::Index { .. });
        if let Some(then) = second.filter(|_| doubles) {
            self.schedule(then, at.on(to), Event::Deliver { from, packet: packet.clone() });
        }
        if let Some(then) = first {
            self.schedule(then, at.on(to), Event::Deliver { from, packet });
        }
    }
}
