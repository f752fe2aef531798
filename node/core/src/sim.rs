//! The simulator's seed: whole shards in one thread, on virtual time, everything decided by one number.
//!
//! A [`World`] drives the very code the daemon drives, in the driver's place: it executes effects (disk, network,
//! applier) as events of a queue and gives their completions back. Its disk loses what was not synced, its network drops,
//! doubles, delays and cuts. After every event the invariants are checked: one leader per term, committed entries never
//! change, equal index means equal chain.
//!
//! Left out for now: DDL, a disk that tears or flips, an engine that comes back older than its log.

mod chaos;
pub(crate) mod disk;
mod partly;
mod reader;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{ClientId, Epoch, Hash, Index, NodeId, ReplicaId, ShardId, Term, WriteId};

use self::disk::Disk;
use crate::engine::Tree;
use crate::engine::memory::MemoryTree;
use crate::entry;
use crate::error::Rejected;
use crate::keys::{CatalogKey, Key};
use crate::log::{BaseRecord, EpochStart, LogEntry, LogReader, Membership};
use crate::machine::Machine;
use crate::mvcc;
use crate::proposal::{Op, Proposal, WriteResult};
use crate::replica::{PersistId, Protocol, Timing};
use crate::shard::{Config, Effect, Input, Shard, Ticket, View};

const SHARD: ShardId = ShardId::META;
/// The wall clock when virtual time begins.
const WALL: u64 = 1_700_000_000_000;

/// The splitmix64 generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `min..=max`.
    pub fn range(&mut self, min: u64, max: u64) -> u64 {
        min + self.next() % (max - min + 1)
    }

    /// True so many times of a thousand.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.next() % 1000 < permille
    }
}

/// What the network and the disks are like; milliseconds and permille.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub delay: (u64, u64),
    pub sync: (u64, u64),
    pub drop: u64,
    pub double: u64,
}

impl Weather {
    pub const FAIR: Weather = Weather { delay: (1, 1), sync: (1, 1), drop: 0, double: 0 };
}

#[derive(Debug)]
enum Event {
    Wake,
    Deliver {
        from: ReplicaId,
        message: Bytes,
    },
    /// The connection to a peer was lost.
    Disconnected {
        peer: ReplicaId,
    },
    Synced {
        until: PersistId,
        records: usize,
    },
    Apply,
}

/// One voter: its process while it is up, and what survives it.
struct Node {
    disk: Arc<Disk>,
    tree: Arc<MemoryTree>,
    up: Option<Process>,
    /// Counts starts: events of an earlier life mean nothing.
    life: u64,
    stalled: bool,
}

struct Process {
    shard: Shard,
    machine: Machine,
    persists: VecDeque<(PersistId, usize)>,
    syncing: bool,
    applying: VecDeque<Vec<LogEntry>>,
}

/// See the module.
pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub weather: Weather,
    seed: u64,
    protocol: Protocol,
    nodes: BTreeMap<u64, Node>,
    queue: BTreeMap<(u64, u64), (u64, u64, Event)>,
    queued: u64,
    cuts: BTreeSet<(u64, u64)>,
    /// When the last message of each connection arrives: connections keep the order (paxos).
    arrivals: BTreeMap<(u64, u64), u64>,
    tickets: Ticket,
    pub replies: BTreeMap<Ticket, Result<WriteResult, Rejected>>,
    pub reads: BTreeMap<Ticket, Result<Index, Rejected>>,
    leaders: BTreeMap<Term, ReplicaId>,
    committed: BTreeMap<Index, (Term, Hash)>,
    chains: BTreeMap<Index, Hash>,
    pub trace: String,
}

fn base(voters: u64) -> BaseRecord {
    BaseRecord {
        chain: Hash([7; 32]),
        epoch_start: EpochStart { index: Index::new(0), chain: Hash([7; 32]) },
        ..BaseRecord::founding(
            SHARD,
            Membership::of_voters((1..=voters).map(|n| (ReplicaId::new(n), NodeId::new(n)))),
            Epoch { number: 1, id: 1 },
        )
    }
}

/// The stored key of a name of up to eight letters.
pub fn key(name: &str) -> Bytes {
    let number = name.bytes().fold(0u64, |n, b| (n << 8) | u64::from(b));
    Key::Catalog(CatalogKey::Job(number)).encode()
}

/// A write of one key that must not exist, or must have a value.
pub fn put(name: &str, value: &str, expect: Option<&str>, write: Option<(u8, u64)>) -> Proposal {
    let text = |s: &str| Bytes::copy_from_slice(s.as_bytes());
    Proposal {
        write: write.map(|(client, seq)| WriteId { client: ClientId([client; 16]), seq }),
        ops: vec![Op::Put { key: key(name), expect: expect.map(text), value: Some(text(value)) }],
        ..Proposal::default()
    }
}

impl World {
    /// Voters of a protocol on empty disks, started.
    pub fn with(seed: u64, voters: u64, weather: Weather, protocol: Protocol) -> Self {
        let mut world = World {
            now: 0,
            rng: Rng::new(seed),
            weather,
            seed,
            protocol,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            queued: 0,
            cuts: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            tickets: 0,
            replies: BTreeMap::new(),
            reads: BTreeMap::new(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            chains: BTreeMap::new(),
            trace: String::new(),
        };
        for id in 1..=voters {
            let disk = Arc::new(Disk::new(base(voters)));
            let tree = Arc::new(MemoryTree::default());
            world.nodes.insert(id, Node { disk, tree, up: None, life: 0, stalled: false });
        }
        for id in 1..=voters {
            world.start(id);
        }
        world
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    pub fn is_up(&self, id: u64) -> bool {
        self.nodes[&id].up.is_some()
    }

    fn note(&mut self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.trace, "{} {line}", self.now);
    }

    fn schedule(&mut self, at: u64, node: u64, event: Event) {
        let life = self.nodes[&node].life;
        self.queued += 1;
        self.queue.insert((at, self.queued), (node, life, event));
    }

    /// Starts a node on what its disk and tree have.
    pub fn start(&mut self, id: u64) {
        let (now, seed) = (self.now, self.seed);
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.up.is_none(), "n{id} is up");
        node.life += 1;
        let tree: Arc<dyn Tree> = Arc::clone(&node.tree) as Arc<dyn Tree>;
        let base = node.disk.bounds(SHARD).unwrap().base;
        let machine = Machine::open(Arc::clone(&tree), &base).unwrap();
        let applied = machine.state().applied();
        let config = Config {
            shard: SHARD,
            replica: ReplicaId::new(id),
            node: NodeId::new(id),
            protocol: self.protocol,
            seed: seed ^ (node.life << 32),
            timing: Timing::default(),
        };
        let log: Arc<dyn LogReader> = Arc::clone(&node.disk) as Arc<dyn LogReader>;
        let shard = Shard::new(config, log, tree, applied, now).unwrap();
        let (persists, applying) = (VecDeque::new(), VecDeque::new());
        node.up = Some(Process { shard, machine, persists, syncing: false, applying });
        self.note(format_args!("n{id} starts"));
        self.drive(id, Vec::new());
        self.schedule(now + 1, id, Event::Wake);
    }

    /// Stops a node where it stands; what was not synced is there or not.
    pub fn crash(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.up = None;
        node.life += 1;
        let kept = node.disk.crash(&mut self.rng);
        self.note(format_args!("n{id} crashes, {kept} unsynced records survive"));
    }

    /// Forgets what a stopped node's engine had.
    pub fn wipe_engine(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.up.is_none());
        node.tree = Arc::new(MemoryTree::default());
    }

    /// A stalled disk finishes nothing.
    pub fn stall(&mut self, id: u64, stalled: bool) {
        self.nodes.get_mut(&id).unwrap().stalled = stalled;
        if !stalled {
            self.sync(id);
        }
    }

    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
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
        self.cuts.clear();
    }

    pub fn propose(&mut self, id: u64, proposal: Proposal, patience: u64) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let deadline = self.now + patience;
        if self.is_up(id) {
            self.drive(id, vec![Input::Propose { ticket, proposal: Box::new(proposal), deadline }]);
        } else {
            self.replies.insert(ticket, Err(Rejected::NotLeader(None)));
        }
        ticket
    }

    pub fn read(&mut self, id: u64, patience: u64) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let deadline = self.now + patience;
        if self.is_up(id) {
            self.drive(id, vec![Input::Read { ticket, deadline }]);
        } else {
            self.reads.insert(ticket, Err(Rejected::NotLeader(None)));
        }
        ticket
    }

    pub fn input(&mut self, id: u64, input: Input) {
        self.drive(id, vec![input]);
    }

    pub fn view(&self, id: u64) -> Option<View> {
        self.nodes[&id].up.as_ref().map(|p| p.shard.view())
    }

    pub fn shard(&self, id: u64) -> Option<&Shard> {
        self.nodes[&id].up.as_ref().map(|p| &p.shard)
    }

    /// The newest value applied at a node.
    pub fn get(&self, id: u64, name: &str) -> Option<String> {
        value(&*self.nodes[&id].tree, name)
    }

    /// A node's log.
    pub fn log(&self, id: u64) -> Arc<Disk> {
        Arc::clone(&self.nodes[&id].disk)
    }

    /// A replica has applied this: it must be what the voters have there.
    pub fn check_chain(&self, index: Index, chain: Hash) {
        let known = self.chains.get(&index);
        assert!(known.is_none_or(|c| *c == chain), "seed {}: the replica has another chain at {index}", self.seed);
    }

    /// The node that leads and evaluates proposals, of the highest term.
    pub fn leader(&self) -> Option<u64> {
        let ready = self.ids().into_iter().filter_map(|id| self.view(id).filter(|v| v.ready).map(|v| (v.term, id)));
        ready.max().map(|(_, id)| id)
    }

    /// Runs until the queue has nothing before this time.
    pub fn run_until(&mut self, until: u64) {
        while let Some((&(at, _), _)) = self.queue.first_key_value()
            && at <= until
        {
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

    fn step(&mut self) {
        let Some(((at, _), (id, life, event))) = self.queue.pop_first() else { return };
        self.now = self.now.max(at);
        let node = &self.nodes[&id];
        if node.life != life || node.up.is_none() {
            return;
        }
        match event {
            Event::Wake => {
                let wake = self.nodes[&id].up.as_ref().map_or(0, |p| p.shard.next_wake());
                if wake <= self.now {
                    self.drive(id, vec![Input::Wake]);
                }
                let wake = self.nodes[&id].up.as_ref().map_or(0, |p| p.shard.next_wake());
                self.schedule(wake.max(self.now + 1), id, Event::Wake);
            }
            Event::Deliver { from, message } => self.drive(id, vec![Input::Receive { from, message }]),
            Event::Disconnected { peer } => self.drive(id, vec![Input::Disconnected { peer }]),
            Event::Synced { until, records } => self.synced(id, until, records),
            Event::Apply => self.apply(id),
        }
    }

    fn synced(&mut self, id: u64, until: PersistId, records: usize) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.stalled {
            // Comes again when the stall ends.
            node.up.as_mut().unwrap().syncing = false;
            return;
        }
        node.disk.sync(records);
        let process = node.up.as_mut().unwrap();
        process.syncing = false;
        while process.persists.front().is_some_and(|(p, _)| *p <= until) {
            process.persists.pop_front();
        }
        self.drive(id, vec![Input::Persisted(until)]);
        self.sync(id);
    }

    /// Starts a sync of everything written, if none is running.
    fn sync(&mut self, id: u64) {
        let delay = self.rng.range(self.weather.sync.0, self.weather.sync.1);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(process) = node.up.as_mut().filter(|p| !p.syncing && !p.persists.is_empty()) else { return };
        if node.stalled {
            return;
        }
        process.syncing = true;
        let records = process.persists.iter().map(|(_, n)| n).sum();
        let until = process.persists.back().map_or(0, |(p, _)| *p);
        self.schedule(self.now + delay, id, Event::Synced { until, records });
    }

    fn apply(&mut self, id: u64) {
        let process = self.nodes.get_mut(&id).unwrap().up.as_mut().unwrap();
        let Some(entries) = process.applying.pop_front() else { return };
        let applied = process.machine.apply(&entries).unwrap();
        let (index, chain) = (applied.index, applied.chain);
        let known = *self.chains.entry(index).or_insert(chain);
        assert_eq!(known, chain, "seed {}: n{id} has another chain at {index}", self.seed);
        self.drive(id, vec![Input::Applied(applied)]);
    }

    fn drive(&mut self, id: u64, inputs: Vec<Input>) {
        let (now, seed) = (self.now, self.seed);
        let process = self.nodes.get_mut(&id).unwrap().up.as_mut().unwrap();
        let mut effects = Vec::new();
        for input in inputs {
            process.shard.step(now, input, &mut effects).unwrap_or_else(|e| panic!("seed {seed}: n{id}: {e}"));
        }
        process.shard.flush(now, WALL + now, &mut effects).unwrap_or_else(|e| panic!("seed {seed}: n{id}: {e}"));
        for effect in effects {
            self.execute(id, effect);
        }
    }

    fn execute(&mut self, id: u64, effect: Effect) {
        match effect {
            Effect::Persist { id: persist, records } => {
                self.note(format_args!("n{id} persist #{persist} {}", records.len()));
                let node = self.nodes.get_mut(&id).unwrap();
                node.disk.write(&records);
                node.up.as_mut().unwrap().persists.push_back((persist, records.len()));
                self.sync(id);
            }
            Effect::Send { to, message } => self.send(id, to.get(), &message),
            Effect::Apply { entries } => {
                for entry in &entries {
                    let new = (entry.term, Hash(*blake3::hash(&entry::canonical(entry)).as_bytes()));
                    let known = *self.committed.entry(entry.index).or_insert(new);
                    assert_eq!(known, new, "seed {}: n{id} commits another entry {}", self.seed, entry.index);
                }
                let last = entries.last().map_or(0, |e| e.index.get());
                self.note(format_args!("n{id} commits to {last}"));
                let node = self.nodes.get_mut(&id).unwrap();
                let durable = node.disk.durable_last();
                assert!(last <= durable, "seed {}: n{id} applies {last}, durable is {durable}", self.seed);
                node.up.as_mut().unwrap().applying.push_back(entries);
                self.schedule(self.now + 1, id, Event::Apply);
            }
            Effect::Reply { ticket, result } => {
                self.note(format_args!("n{id} reply {ticket} {}", outcome(&result)));
                assert!(self.replies.insert(ticket, result).is_none(), "seed {}: {ticket} answered twice", self.seed);
            }
            Effect::ReadReady { ticket, result } => {
                self.note(format_args!("n{id} read {ticket} {result:?}"));
                assert!(self.reads.insert(ticket, result).is_none(), "seed {}: {ticket} answered twice", self.seed);
            }
            Effect::NeedsSnapshot { .. } => panic!("nothing is trimmed here"),
            Effect::Leader { term, leader, ready, .. } => {
                self.note(format_args!("n{id} sees leader {leader:?} in {term}, ready {ready}"));
                if leader == Some(ReplicaId::new(id)) {
                    let known = *self.leaders.entry(term).or_insert(ReplicaId::new(id));
                    assert_eq!(known, ReplicaId::new(id), "seed {}: two leaders in {term}", self.seed);
                }
            }
        }
    }

    fn send(&mut self, from: u64, to: u64, message: &Bytes) {
        if self.protocol == Protocol::Paxos {
            self.send_in_session(from, to, message);
            return;
        }
        if self.cuts.contains(&(from, to)) || self.rng.chance(self.weather.drop) {
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.weather.double));
        for _ in 0..copies {
            let delay = self.rng.range(self.weather.delay.0, self.weather.delay.1);
            let from = ReplicaId::new(from);
            self.schedule(self.now + delay, to, Event::Deliver { from, message: message.clone() });
        }
    }
}

impl World {
    /// Why a protocol does not take so many voters.
    fn refusal(voters: u64, protocol: Protocol) -> Option<String> {
        let base = base(voters);
        let config = Config {
            shard: SHARD,
            replica: ReplicaId::new(1),
            node: NodeId::new(1),
            protocol,
            seed: 1,
            timing: Timing::default(),
        };
        let applied = Machine::open(Arc::new(MemoryTree::default()), &base).unwrap().state().applied();
        let log: Arc<dyn LogReader> = Arc::new(Disk::new(base));
        Shard::new(config, log, Arc::new(MemoryTree::default()), applied, 0).err().map(|e| e.to_string())
    }

    /// Over a connection: in order, and what is lost ends it, which both sides notice.
    fn send_in_session(&mut self, from: u64, to: u64, message: &Bytes) {
        if self.cuts.contains(&(from, to)) {
            return;
        }
        let arrives = self.now + self.rng.range(self.weather.delay.0, self.weather.delay.1);
        // A lost packet is sent again by the connection; only some losses end it.
        if self.rng.chance(self.weather.drop / 20) {
            self.schedule(arrives, from, Event::Disconnected { peer: ReplicaId::new(to) });
            self.schedule(arrives, to, Event::Disconnected { peer: ReplicaId::new(from) });
            return;
        }
        let last = self.arrivals.entry((from, to)).or_default();
        *last = arrives.max(*last);
        let arrives = *last;
        let from = ReplicaId::new(from);
        self.schedule(arrives, to, Event::Deliver { from, message: message.clone() });
    }
}

/// The newest value of a name in a tree.
pub fn value(tree: &dyn Tree, name: &str) -> Option<String> {
    let newest = mvcc::newest(tree, &key(name)).unwrap()?;
    newest.row.map(|row| String::from_utf8_lossy(&row).into_owned())
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
