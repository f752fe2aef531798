//! What happens to a node: its process ends in one way or another, its disk stalls or flips a bit, its clock jumps.

use quorate_shared::limits::HORIZON_MS_DEFAULT;

#[cfg(test)]
use quorate_shared::ids::{ReplicaId, Term};

use super::network::Packet;
use super::node::{Node, Process};
use super::place::Place;
#[cfg(test)]
use super::store::Opened;
#[cfg(test)]
use super::world::SHARD;
use super::world::{Event, FIRST_READER, WALL, World};
#[cfg(test)]
use crate::log::{HardState, LogRecord};

/// There are never more nodes.
const NODES_MAX: usize = 9;

impl World {
    pub(super) fn end_process(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.life += 1;
        (node.persists, node.syncing) = (Vec::new(), false);
        for (id, process) in self.drop_processes(id) {
            let links = process.streams.iter().map(|(link, stream)| (*link, stream.reader));
            let pulled = process.pulling.iter().map(|p| (p.link, p.server));
            for (link, other) in links.chain(pulled) {
                if self.network.break_link(link) {
                    let at = self.now + self.rng.range(1, 300);
                    self.schedule(at, id.on(other), Event::Deliver { from: 0, packet: Packet::Broken { link } });
                }
            }
        }
    }

    /// The replicas of a node are no more.
    pub(super) fn drop_processes(&mut self, id: u64) -> Vec<(Place, Process)> {
        let mut out = Vec::new();
        for id in self.places(id) {
            self.checks[id.shard].overlap.ends(id.node);
            let replica = self.nodes.get_mut(&id.node).and_then(|n| n.replicas.get_mut(&id.shard));
            out.extend(replica.and_then(|r| r.up.take()).map(|process| (id, process)));
        }
        out
    }

    /// `kill -9`.
    pub fn kill(&mut self, id: u64) {
        self.end_process(id);
        self.trace.note(self.now, id, "kill", 0, 0);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.store.kill(&mut self.rng);
        node.replicas.values().for_each(|r| r.tree.kill(&mut self.rng));
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
        node.replicas.values().for_each(|r| r.tree.power_cut(&mut self.rng));
    }

    /// When it starts the next time its power goes before anything that the start writes is synced.
    pub fn interrupt(&mut self, id: u64, interrupt: bool) {
        if let Some(node) = self.node(id) {
            node.store.interrupted = interrupt && node.promote.is_none() && !node.store.flipped;
        }
    }

    /// Stops in order.
    pub fn shut_down(&mut self, id: u64) {
        self.end_process(id);
        self.trace.note(self.now, id, "shut down", 0, 0);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        // The log's last write is finished, the engine closed.
        node.store.finish();
        node.store.kill(&mut self.rng);
        node.replicas.values().for_each(|r| r.tree.settle());
        node.mark.clean = true;
    }

    /// Forgets what a stopped node's engine had.
    pub fn wipe_engine(&mut self, id: u64) {
        if let Some(node) = self.node(id).filter(|n| !n.is_up()) {
            node.forget_engine();
        }
    }

    /// A stopped voter has seen a term far beyond the others'.
    #[cfg(test)]
    pub fn inflate_term(&mut self, id: u64, term: u64) {
        let Some(node) = self.node(id).filter(|n| !n.is_up()) else { return };
        let opened = node.store.open();
        assert!(matches!(opened, Ok(Opened::Whole)));
        let hard =
            HardState { term: Term::new(term), vote: ReplicaId::NONE, commit: node.store.durable[SHARD].hard.commit };
        node.store.append(SHARD, &[LogRecord::Hard(hard)]).unwrap();
        node.store.begin_sync().unwrap();
        node.store.finish();
    }

    /// Flips a bit of a stopped node's log, not in what was written last.
    pub fn flip(&mut self, id: u64) {
        // The last record of all, where it is the only one, cannot be told from a torn one.
        let may = |n: &&mut super::node::Node| {
            !n.is_up() && n.store.durable.values().any(|content| !content.entries.is_empty())
        };
        let Some(node) = self.nodes.get_mut(&id).filter(may) else { return };
        if let Some(place) = node.store.disk.flip(&mut self.rng, 500) {
            node.store.flipped = true;
            node.store.interrupted = false;
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

    /// Old versions go as if the horizon had passed them an hour ago.
    pub fn collect(&mut self, id: Place, budget: usize) {
        let skew = self.nodes.get(&id.node).map_or(0, |n| n.skew);
        let later = (WALL + self.now + 2 * HORIZON_MS_DEFAULT).saturating_add_signed(skew);
        let Some(process) = self.process(id) else { return };
        match process.machine.collect(later, budget) {
            Ok(done) => self.trace.note(self.now, id, "collect", done.seen as u64, done.removed as u64),
            Err(e) => self.stopped(id.node, &e),
        }
    }

    /// Another log-shipped replica comes, with nothing.
    pub fn join(&mut self) {
        let id = self.nodes.keys().next_back().map_or(0, |last| last + 1).max(FIRST_READER);
        if self.all().len() >= NODES_MAX {
            return;
        }
        let founding = self.founding();
        self.nodes.insert(id, Node::new(id, false, &founding, self.shape.segment_bytes));
        self.start(id);
    }

    /// A node that is no member goes for good.
    pub fn leave(&mut self, id: u64) {
        let named = |shard| self.members(shard).nodes().values().any(|node| node.get() == id);
        if self.shards().into_iter().any(named) {
            return;
        }
        self.kill(id);
        if let Some(node) = self.node(id) {
            node.gone = true;
        }
    }

    /// A stalled applier applies nothing.
    pub fn stall_applier(&mut self, id: u64, stalled: bool) {
        let Some(node) = self.node(id) else { return };
        let was = std::mem::replace(&mut node.applier_stalled, stalled);
        if was && !stalled {
            for id in self.places(id) {
                self.schedule(self.now + 1, id, Event::Apply);
            }
        }
    }
}
