//! What happens to a node: its process ends in one way or another, its disk stalls or flips a bit, its clock jumps.

#[cfg(test)]
use quorate_shared::ids::{ReplicaId, Term};
use std::sync::Arc;

use super::network::Packet;
#[cfg(test)]
use super::store::Opened;
use super::world::{Event, World};
#[cfg(test)]
use crate::log::{HardState, LogRecord};

impl World {
    pub(super) fn end_process(&mut self, id: u64) {
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
        // The last record of all, where it is the only one, cannot be told from a torn one.
        let may = |n: &&mut super::node::Node| n.up.is_none() && !n.store.durable.entries.is_empty();
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

    /// A stalled applier applies nothing.
    pub fn stall_applier(&mut self, id: u64, stalled: bool) {
        let Some(node) = self.node(id) else { return };
        let was = std::mem::replace(&mut node.applier_stalled, stalled);
        if was && !stalled {
            self.schedule(self.now + 1, id, Event::Apply);
        }
    }
}
