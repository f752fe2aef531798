//! Nodes with a log in memory, a machine, and a part: a member or a log-shipped replica, opened anew whenever the
//! membership says so. Time goes in milliseconds; unsynced records are lost in a crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{ClientId, Epoch, Hash, Index, NodeId, Nonce, ReplicaId, ShardId, Term, WriteId};

use crate::engine::Tree;
use crate::engine::memory::MemoryTree;
use crate::entry;
use crate::error::Rejected;
use crate::join::{replica_of, settle};
use crate::keys::{CatalogKey, Key};
use crate::log::memory::{MemoryLog, MemoryReader};
use crate::log::{BaseRecord, Log, LogEntry, LogReader, LogRecord, Membership};
use crate::machine::Machine;
use crate::membership::{Host, MembershipChange, Refused};
use crate::mvcc;
use crate::proposal::{Op, Proposal};
use crate::replica::Timing;
use crate::shard::{Changed, Config, Effect, Input, Protocol, Shard, Ticket};
use crate::ship::follow::Follower;
use crate::ship::serve::{Committed, Sender};

const SHARD: ShardId = ShardId::META;
const WALL: u64 = 1_700_000_000_000;
const EPOCH: Epoch = Epoch { number: 1, id: 1 };

/// The splitmix64 generator.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// In `min..=max`.
    pub fn range(&mut self, min: u64, max: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        min + (z ^ (z >> 31)) % (max - min + 1)
    }
}

enum Part {
    Member(Box<Shard>),
    Shipped(Box<Follower>),
}

struct Process {
    part: Part,
    replica: ReplicaId,
    machine: Machine,
    persists: VecDeque<(u64, u64, Vec<LogRecord>)>,
    applying: VecDeque<Vec<LogEntry>>,
}

struct Node {
    nonce: u8,
    log: MemoryLog,
    reader: Arc<MemoryReader>,
    tree: Arc<MemoryTree>,
    up: Option<Process>,
}

/// One packet: from a node as a replica to a replica.
type Packet = (u64, ReplicaId, ReplicaId, Bytes);

pub struct Cluster {
    pub protocol: Protocol,
    pub now: u64,
    pub rng: Rng,
    pub clients: u8,
    pub acked: BTreeMap<(u8, u64), Index>,
    pub acked_at: Vec<u64>,
    pub changed: BTreeMap<Ticket, Result<Changed, Refused>>,
    pub sent: u64,
    nodes: BTreeMap<u64, Node>,
    base: BaseRecord,
    seed: u64,
    lives: u64,
    packets: BTreeMap<(u64, u64), Packet>,
    cuts: BTreeSet<(u64, u64)>,
    delay: (u64, u64),
    sync: (u64, u64),
    drop: u64,
    tickets: Ticket,
    writing: BTreeMap<u8, (Ticket, u64, u64)>,
    next_seq: BTreeMap<u8, u64>,
    to: BTreeMap<u8, u64>,
    pause: BTreeMap<u8, u64>,
    replies: BTreeMap<Ticket, Result<Index, Rejected>>,
    leaders: BTreeMap<Term, ReplicaId>,
    committed: BTreeMap<Index, (Term, Hash)>,
    histories: BTreeMap<Index, (Hash, Arc<Membership>)>,
    homes: BTreeMap<ReplicaId, (u64, u8)>,
}

fn name(client: u8, seq: u64) -> Bytes {
    Key::Catalog(CatalogKey::Job(u64::from(client) << 32 | seq)).encode()
}

impl Cluster {
    pub fn new(seed: u64, voters: u64, others: u64) -> Self {
        Self::with(Protocol::Raft, seed, voters, others)
    }

    /// Founding voters from 1 on, and others that are shipped to.
    pub fn with(protocol: Protocol, seed: u64, voters: u64, others: u64) -> Self {
        let membership = Membership::of_voters((1..=voters).map(|n| (ReplicaId::new(n), NodeId::new(n))));
        let base = BaseRecord::founding(SHARD, membership, EPOCH);
        let mut out = Cluster {
            protocol,
            now: 0,
            rng: Rng::new(seed),
            clients: 2,
            acked: BTreeMap::new(),
            acked_at: Vec::new(),
            changed: BTreeMap::new(),
            sent: 0,
            nodes: BTreeMap::new(),
            base,
            seed,
            lives: 0,
            packets: BTreeMap::new(),
            cuts: BTreeSet::new(),
            delay: (1, 1),
            sync: (1, 1),
            drop: 0,
            tickets: 0,
            writing: BTreeMap::new(),
            next_seq: BTreeMap::new(),
            to: BTreeMap::new(),
            pause: BTreeMap::new(),
            replies: BTreeMap::new(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            histories: BTreeMap::new(),
            homes: BTreeMap::new(),
        };
        for id in 1..=voters + others {
            let replica = if id <= voters { ReplicaId::new(id) } else { ReplicaId::NONE };
            let node = out.empty(replica, 1);
            out.nodes.insert(id, node);
            out.start(id);
        }
        out
    }

    pub fn stormy(&mut self) {
        self.delay = (1, self.rng.range(1, 20));
        self.sync = (1, self.rng.range(1, 20));
        self.drop = self.rng.range(0, 80);
    }

    fn empty(&self, replica: ReplicaId, nonce: u8) -> Node {
        let (mut log, reader) = MemoryLog::new();
        log.append(replica, SHARD, &[LogRecord::Base(self.base.clone())]).unwrap();
        Node { nonce, log, reader, tree: Arc::default(), up: None }
    }

    pub fn host(&self, node: u64) -> Host {
        Host { node: NodeId::new(node), nonce: Nonce([self.nodes[&node].nonce; 16]) }
    }

    /// What its log goes by.
    pub fn replica(&self, node: u64) -> ReplicaId {
        self.nodes[&node].reader.bounds(SHARD).unwrap().replica
    }

    pub fn applied(&self, node: u64) -> Index {
        self.nodes[&node].up.as_ref().map_or(Index::new(0), |p| p.machine.state().index)
    }

    /// The membership as of the highest index applied anywhere.
    pub fn membership(&self) -> Membership {
        let last = self.histories.last_key_value();
        last.map_or_else(|| self.base.membership.clone(), |(_, (_, m))| (**m).clone())
    }

    pub fn leader(&self) -> Option<u64> {
        let ready = |p: &Process| match &p.part {
            Part::Member(shard) => Some(shard.view()).filter(|v| v.ready).map(|v| v.term),
            Part::Shipped(_) => None,
        };
        let leaders = self.nodes.iter().filter_map(|(id, n)| Some((n.up.as_ref().and_then(ready)?, *id)));
        leaders.max().map(|(_, id)| id)
    }

    pub fn picture(&self) -> String {
        let mut out = format!("at {} {:?}\n", self.now, self.membership());
        for (id, node) in &self.nodes {
            let view = node.up.as_ref().map(|p| match &p.part {
                Part::Member(shard) => format!("{:?}", shard.view()),
                Part::Shipped(follower) => format!("{:?}", follower.view()),
            });
            out += &format!("n{id} {} {view:?}\n", self.replica(*id));
        }
        out
    }

    /// Opens a node on what its log and tree have; does nothing if it is up.
    pub fn start(&mut self, id: u64) {
        self.open(id, false);
    }

    fn open(&mut self, id: u64, left: bool) {
        let (now, me) = (self.now, self.host(id));
        self.lives += 1;
        let seed = self.seed ^ self.lives.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (base, protocol) = (self.base.clone(), self.protocol);
        let node = self.nodes.get_mut(&id).unwrap();
        if node.up.is_some() {
            return;
        }
        let tree: Arc<dyn Tree> = Arc::clone(&node.tree) as Arc<dyn Tree>;
        let mut machine = Machine::open(Arc::clone(&tree), &base).unwrap();
        let bounds = node.reader.bounds(SHARD).unwrap();
        let end = if bounds.replica == ReplicaId::NONE { bounds.last } else { bounds.committed() };
        let read = node.reader.entries(SHARD, machine.state().index.next(), end.next(), usize::MAX).unwrap();
        machine.apply(&read).unwrap();
        let applied = machine.state().applied();
        let replica = settle(&mut node.log, &*node.reader, SHARD, me, &applied, left).unwrap();
        let log = Arc::clone(&node.reader) as Arc<dyn LogReader>;
        let part = if replica == ReplicaId::NONE {
            Part::Shipped(Box::new(Follower::new(SHARD, applied.epoch, log, &applied).unwrap()))
        } else {
            let (node, timing) = (NodeId::new(id), Timing::default());
            let config = Config { shard: SHARD, replica, node, protocol, seed, timing };
            Part::Member(Box::new(Shard::new(config, log, tree, applied, now).unwrap()))
        };
        node.up = Some(Process { part, replica, machine, persists: VecDeque::new(), applying: VecDeque::new() });
        if replica != ReplicaId::NONE {
            let home = *self.homes.entry(replica).or_insert((id, me.nonce.0[0]));
            assert_eq!(home, (id, me.nonce.0[0]), "seed {}: {replica} lives on two incarnations", self.seed);
        }
    }

    pub fn crash(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().up = None;
    }

    /// The disk is gone: what begins again is another incarnation.
    pub fn wipe(&mut self, id: u64) {
        let nonce = self.nodes[&id].nonce + 1;
        let node = self.empty(ReplicaId::NONE, nonce);
        self.nodes.insert(id, node);
    }

    /// Whether the voters can do without a node's log: a majority of every set of voters that counts, or may count soon,
    /// has its own.
    pub fn may_lose(&self, id: u64) -> bool {
        let membership = self.membership();
        let intact = |m: &crate::membership::Member| m.node.get() != id && self.replica(m.node.get()) == m.replica;
        let enough =
            |members: &[crate::membership::Member]| members.iter().filter(|m| intact(m)).count() > members.len() / 2;
        let log_end = |n: &Node| n.reader.bounds(SHARD).unwrap().last;
        let last = self.histories.last_key_value().map_or(Index::new(0), |(i, _)| *i);
        // Nothing that changes it is on its way.
        let settled = !membership.is_joint()
            && self.nodes.values().all(|n| {
                let end = log_end(n);
                let tail = n.reader.entries(SHARD, last.next().min(end.next()), end.next(), usize::MAX).unwrap();
                tail.iter().all(|e| e.payload != crate::log::Payload::Membership || e.index <= last)
            });
        settled && membership.voters.len() > 2 && enough(&membership.voters)
    }

    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    pub fn isolate(&mut self, node: u64) {
        for other in self.nodes.keys().copied() {
            self.cuts.insert((node, other));
            self.cuts.insert((other, node));
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// The end of all faults.
    pub fn calm(&mut self) {
        self.heal();
        (self.delay, self.sync, self.drop) = ((1, 1), (1, 1), 0);
        (1..=self.nodes.len() as u64).for_each(|n| self.start(n));
        self.run(3_000);
    }

    pub fn change(&mut self, id: u64, change: MembershipChange) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        let deadline = self.now + 5_000;
        self.input(id, Input::Change { ticket, change, deadline });
        ticket
    }

    pub fn input(&mut self, id: u64, input: Input) {
        self.drive(id, vec![input]);
    }

    pub fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.tick();
        }
    }

    /// Runs until something holds, ten seconds at most.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Cluster) -> bool) {
        let until = self.now + 10_000;
        while !holds(self) {
            assert!(self.now < until, "seed {}: not in time: {what}; {}", self.seed, self.picture());
            self.tick();
        }
    }

    /// Everybody has everything, and every acknowledged write.
    pub fn converge(&mut self) {
        let clients = std::mem::replace(&mut self.clients, 0);
        self.until("everybody is equal", |c| {
            let last = c.histories.last_key_value().map_or(Index::new(0), |(i, _)| *i);
            c.nodes.iter().all(|(id, n)| n.up.is_none() || c.applied(*id) == last)
        });
        for (&(client, seq), index) in &self.acked {
            for (id, node) in self.nodes.iter().filter(|(_, n)| n.up.is_some()) {
                let stored = node.tree.get(&name(client, seq)).unwrap();
                let row = stored.as_deref().map(|s| mvcc::parse(s).unwrap().1.is_some());
                assert_eq!(row, Some(true), "seed {}: n{id} lacks {client}/{seq}, acked at {index}", self.seed);
            }
        }
        self.clients = clients;
    }

    /// One millisecond.
    pub fn tick(&mut self) {
        self.now += 1;
        while let Some(first) = self.packets.first_entry().filter(|p| p.key().0 <= self.now) {
            let (from, as_replica, to, message) = first.remove();
            let at = self.nodes.iter().find(|(_, n)| n.up.as_ref().is_some_and(|p| p.replica == to)).map(|(id, _)| *id);
            if let Some(at) = at.filter(|at| !self.cuts.contains(&(from, *at))) {
                self.drive(at, vec![Input::Receive { from: as_replica, message }]);
            }
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.disk(id);
            self.apply(id);
            self.wake(id);
            self.ship(id);
            self.reopen(id);
        }
        (1..=self.clients).for_each(|client| self.write(client));
    }

    fn process(&mut self, id: u64) -> Option<&mut Process> {
        self.nodes.get_mut(&id).and_then(|n| n.up.as_mut())
    }

    fn disk(&mut self, id: u64) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(process) = &mut node.up else { return };
        let mut done = Vec::new();
        while let Some((_, persist, records)) = process.persists.pop_front_if(|(at, _, _)| *at <= now) {
            node.log.append(process.replica, SHARD, &records).unwrap();
            done.push(Input::Persisted(persist));
        }
        if !done.is_empty() {
            self.drive(id, done);
        }
    }

    fn apply(&mut self, id: u64) {
        let seed = self.seed;
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.up.as_mut()) else { return };
        let Some(entries) = process.applying.pop_front() else { return };
        let applied = process.machine.apply(&entries).unwrap();
        assert!(applied.void.is_empty(), "seed {seed}: {:?} are void", applied.void);
        let new = (applied.chain, Arc::clone(&applied.membership));
        let known = self.histories.entry(applied.index).or_insert_with(|| new.clone());
        assert_eq!(*known, new, "seed {seed}: n{id} has another history at {}", applied.index);
        self.drive(id, vec![Input::Applied(applied)]);
    }

    fn wake(&mut self, id: u64) {
        let now = self.now;
        let due = |p: &mut Process| matches!(&p.part, Part::Member(shard) if shard.next_wake() <= now);
        if self.process(id).is_some_and(due) {
            self.drive(id, vec![Input::Wake]);
        }
    }

    /// A log-shipped replica gets a batch from whoever it reaches.
    fn ship(&mut self, id: u64) {
        let Some(Process { part: Part::Shipped(follower), .. }) = self.process(id) else { return };
        let pull = follower.pull();
        let server = self.rng.range(1, self.nodes.len() as u64);
        if self.cuts.contains(&(server, id)) || self.cuts.contains(&(id, server)) {
            return;
        }
        let node = &self.nodes[&server];
        let Some(Process { part: Part::Member(shard), .. }) = &node.up else { return };
        let view = shard.view();
        let committed = Committed { shippable: view.shippable, commit: view.commit, term: view.term };
        let era = (EPOCH, self.base.epoch_start);
        let Ok(mut sender) = Sender::begin(&*node.reader, era, committed, &pull).unwrap() else { return };
        let Some(batch) = sender.next(&*node.reader, committed).unwrap() else { return };
        let mut effects = Vec::new();
        if let Some(Process { part: Part::Shipped(follower), .. }) = self.process(id) {
            follower.receive(batch, &mut effects).unwrap();
        }
        self.execute(id, effects);
    }

    /// A replica whose membership says so goes on as another one.
    fn reopen(&mut self, id: u64) {
        let me = self.host(id);
        let Some(process) = self.process(id) else { return };
        let moved = match &process.part {
            Part::Member(shard) => {
                replica_of(process.replica, process.replica, me, shard.membership()) != process.replica
            }
            Part::Shipped(follower) => follower.named(me) != ReplicaId::NONE,
        };
        let (member, replica) = (matches!(process.part, Part::Member(_)), process.replica);
        let left = member && self.told_it_left(id, replica);
        let idle = self.nodes[&id].up.as_ref().is_some_and(|p| p.persists.is_empty());
        if (moved && idle) || left {
            self.crash(id);
            self.open(id, left);
        }
    }

    /// A member it reaches knows that it was removed: nobody else would tell it.
    fn told_it_left(&self, id: u64, replica: ReplicaId) -> bool {
        let knows = |p: &Process| match &p.part {
            Part::Member(shard) => replica < shard.membership().next && !shard.membership().contains(replica),
            Part::Shipped(_) => false,
        };
        let reached = |other: u64| !self.cuts.contains(&(other, id)) && !self.cuts.contains(&(id, other));
        self.nodes.iter().any(|(other, n)| reached(*other) && n.up.as_ref().is_some_and(knows))
    }

    fn drive(&mut self, id: u64, inputs: Vec<Input>) {
        let (now, seed) = (self.now, self.seed);
        let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.up.as_mut()) else { return };
        let mut effects = Vec::new();
        let fatal = |e: crate::error::Fatal| panic!("seed {seed}: n{id}: {e}");
        match &mut process.part {
            Part::Member(shard) => {
                for input in inputs {
                    shard.step(now, input, &mut effects).unwrap_or_else(fatal);
                }
                shard.flush(now, WALL + now, &mut effects).unwrap_or_else(fatal);
                let view = shard.view();
                if view.is_leader {
                    let replica = process.replica;
                    let leads = *self.leaders.entry(view.term).or_insert(replica);
                    assert_eq!(leads, replica, "seed {seed}: two leaders in {}", view.term);
                }
            }
            Part::Shipped(follower) => {
                for input in inputs {
                    match input {
                        Input::Persisted(persist) => follower.persisted(persist, &mut effects).unwrap_or_else(fatal),
                        Input::Applied(applied) => follower.applied(&applied, &mut effects).unwrap_or_else(fatal),
                        Input::Change { ticket, .. } => {
                            drop(self.changed.insert(ticket, Err(Refused::NotLeader(None))));
                        }
                        Input::Propose { ticket, .. } => {
                            drop(self.replies.insert(ticket, Err(Rejected::NotLeader(None))));
                        }
                        _ => {}
                    }
                }
            }
        }
        self.execute(id, effects);
    }

    fn execute(&mut self, id: u64, effects: Vec<Effect>) {
        let seed = self.seed;
        for effect in effects {
            match effect {
                Effect::Persist { id: persist, records } => {
                    let at = self.now + self.rng.range(self.sync.0, self.sync.1);
                    let process = self.process(id).unwrap();
                    let at = process.persists.back().map_or(at, |(last, _, _)| at.max(*last));
                    process.persists.push_back((at, persist, records));
                }
                Effect::Send { to, message } => {
                    self.sent += 1;
                    let from = self.process(id).unwrap().replica;
                    if self.rng.range(0, 999) >= self.drop {
                        let at = self.now + self.rng.range(self.delay.0, self.delay.1);
                        let number = self.sent;
                        self.packets.insert((at, number), (id, from, to, message));
                    }
                }
                Effect::Apply { entries } => {
                    for entry in &entries {
                        let new = (entry.term, Hash(*blake3::hash(&entry::canonical(entry)).as_bytes()));
                        let known = *self.committed.entry(entry.index).or_insert(new);
                        assert_eq!(known, new, "seed {seed}: n{id} commits another entry {}", entry.index);
                    }
                    self.process(id).unwrap().applying.push_back(entries);
                }
                Effect::Reply { ticket, result } => drop(self.replies.insert(ticket, result.map(|r| r.index))),
                Effect::Changed { ticket, result } => drop(self.changed.insert(ticket, result)),
                Effect::ReadReady { .. } | Effect::Leader { .. } => {}
                Effect::NeedsSnapshot { .. } => panic!("seed {seed}: no log is trimmed here"),
            }
        }
    }

    /// A client writes one key after the other, each until it is acknowledged, at whoever it is told leads.
    fn write(&mut self, client: u8) {
        let count = self.nodes.len() as u64;
        if let Some((ticket, seq, until)) = self.writing.get(&client).copied() {
            let result = self.replies.remove(&ticket);
            if result.is_none() && self.now < until {
                return;
            }
            self.writing.remove(&client);
            let next = match result {
                Some(Ok(index)) => {
                    self.acked.insert((client, seq), index);
                    self.acked_at.push(self.now);
                    self.next_seq.insert(client, seq + 1);
                    return;
                }
                Some(Err(Rejected::NotLeader(Some(node)))) => node.get(),
                Some(Err(_)) | None => self.rng.range(1, count),
            };
            self.to.insert(client, next);
            let pause = self.now + self.rng.range(1, 10);
            self.pause.insert(client, pause);
        }
        if self.pause.get(&client).is_some_and(|until| self.now < *until) {
            return;
        }
        let seq = self.next_seq.get(&client).copied().unwrap_or(1);
        let write = Some(WriteId { client: ClientId([client; 16]), seq });
        let value = Some(Bytes::from_static(b"x"));
        let ops = vec![Op::Put { key: name(client, seq), expect: None, value }];
        let proposal = Box::new(Proposal { write, ops, ..Proposal::default() });
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + 2_000);
        self.writing.insert(client, (ticket, seq, self.now + 300));
        let to = self.to.get(&client).copied().unwrap_or(1);
        self.drive(to, vec![Input::Propose { ticket, proposal, deadline }]);
    }
}
