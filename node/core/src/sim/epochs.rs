//! Epochs: a replica is promoted, or a survivor begins again; whoever hears of a newer epoch is fenced, cuts off what is
//! only its own, and goes on as a log-shipped replica of it.

use quorate_shared::ids::{Epoch, Index, ReplicaId};

use super::network::Packet;
use super::node::{Node, Part, Process};
use super::world::{SHARD, WALL, World};
use crate::epoch::{self, Rejoined, Relation, relation};
use crate::error::Fatal;
use crate::log::EpochStart;
use crate::machine::Machine;
use crate::membership::Host;
use crate::shard::Input;

impl World {
    /// The epoch a node is in, and where it began.
    pub(super) fn epoch(&self, id: u64) -> (Epoch, EpochStart) {
        let process = self.nodes.get(&id).and_then(|n| n.up.as_ref());
        process.map(|p| p.machine.state()).map(|s| (s.epoch, s.epoch_start)).unwrap_or_default()
    }

    /// Makes of a node the first voter of a new epoch: a replica that is promoted, a voter whose quorum is lost.
    pub fn promote(&mut self, id: u64, number: u64) {
        let stalled = self.nodes.get(&id).is_none_or(|n| n.stalled);
        if stalled || !self.is_up(id) || self.epoch(id).0.number >= number {
            return;
        }
        self.trace.note(self.now, id, "promote", number, 0);
        let epoch = Epoch { number, id: self.rng.next() };
        if let Some(node) = self.node(id) {
            node.promote = Some(epoch);
            // Half a promotion is done again by hand.
            node.store.interrupted = false;
        }
        self.begin_again(id);
    }

    /// Of a start: begins the epoch that was asked for.
    pub(super) fn begin_epoch(&mut self, id: u64, machine: &Machine) -> Result<bool, Fatal> {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(false) };
        let Some(epoch) = node.promote.take() else { return Ok(false) };
        let wall = (WALL + now).saturating_add_signed(node.skew);
        let (me, reader, applied) = (node.host(), node.store.reader(), machine.state().applied());
        let committed = match reader.bounds(SHARD) {
            Some(bounds) if bounds.replica == ReplicaId::NONE => bounds.last,
            Some(bounds) => bounds.hard.commit.max(applied.index),
            None => applied.index,
        };
        let begun = epoch::begin(&mut node.store, &*reader, (SHARD, me), &applied, epoch, wall)?;
        node.healing = false;
        let start = begun.start.index;
        self.trace
            .say(now, || format!("n{id} begins epoch {} behind {start}, {} adopted", epoch.number, begun.adopted));
        let checked = self.checks.lineage.begins(id, epoch, (committed, start), now);
        self.check(checked);
        Ok(true)
    }

    /// Says which epoch it is in, and where that began.
    pub(super) fn tell_epoch(&mut self, id: u64, to: u64) {
        let (epoch, start) = self.epoch(id);
        self.send(id, to, Packet::Epoch { epoch, start });
    }

    /// Hears of an epoch.
    pub(super) fn hear_epoch(&mut self, id: u64, from: u64, theirs: Epoch, start: EpochStart) {
        let ours = self.epoch(id).0;
        let Some(process) = self.process(id) else { return };
        match (relation(ours, theirs), &process.part) {
            (Relation::Older, _) => self.tell_epoch(id, from),
            (Relation::Newer, Part::Shard(_)) => self.fence(id, theirs, start),
            // A log-shipped replica comes into it with its stream; of two of one number neither follows the other.
            _ => {}
        }
    }

    /// A newer epoch: the node serves nothing any more, and goes on as a replica of it.
    pub(super) fn fence(&mut self, id: u64, epoch: Epoch, start: EpochStart) {
        self.trace.note(self.now, id, "fenced", epoch.number, start.index.get());
        self.drive(id, Some(Input::Fence(epoch)));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.fenced = Some((epoch, start));
        if !node.stalled && node.up.is_some() {
            self.begin_again(id);
        }
    }

    /// Of a start: cuts off what is only this node's.
    pub(super) fn rejoin(&mut self, id: u64) -> Result<(), Fatal> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some((epoch, start)) = node.fenced.take() else { return Ok(()) };
        let reader = node.store.reader();
        let Some(bounds) = reader.bounds(SHARD) else { return Ok(()) };
        let mut suffix = Vec::new();
        let rejoined = epoch::rejoin(&mut node.store, &*reader, SHARD, bounds.last, start, &mut suffix)?;
        let entries = match rejoined {
            Rejoined::Cut { entries, rebuild } => {
                if rebuild {
                    node.tree = std::sync::Arc::default();
                }
                entries
            }
            Rejoined::Drop { entries } => {
                node.begin_anew()?;
                entries
            }
        };
        let lines = suffix.iter().filter(|b| **b == b'\n').count() as u64;
        let at = self.now;
        self.trace.note(at, id, "rejoins", epoch.number, entries);
        if lines != entries {
            self.violate(format!("n{id} cuts {entries} entries and writes out {lines}"));
        }
        Ok(())
    }

    /// Every node, now and then, says which epoch it is in to another: connections begin with it.
    pub(super) fn gossip(&mut self, id: u64) {
        let (epoch, all) = (self.epoch(id).0, self.all());
        if epoch.number > 1 && self.rng.chance(150) {
            let to = self.rng.pick(&all);
            self.tell_epoch(id, to);
        }
    }

    /// The highest number of an epoch.
    pub fn top_epoch(&self) -> u64 {
        self.checks.lineage.newest().number
    }

    /// The number of the epoch a node is in.
    pub fn epoch_number(&self, id: u64) -> u64 {
        self.epoch(id).0.number
    }

    /// Two epochs of one number are there, and none above them.
    pub fn is_split(&self) -> bool {
        self.checks.lineage.is_split()
    }

    /// A node in this incarnation.
    pub fn host(&self, id: u64) -> Option<Host> {
        self.nodes.get(&id).map(Node::host)
    }

    /// How far a node's log is.
    pub fn last_of(&self, id: u64) -> Index {
        self.nodes.get(&id).map_or(Index::new(0), |n| n.store.durable.last())
    }

    /// Whether it runs as a log-shipped replica.
    pub fn is_shipped(&self, id: u64) -> bool {
        let process = self.nodes.get(&id).and_then(|n| n.up.as_ref());
        matches!(process, Some(Process { part: Part::Follower(_), .. }))
    }
}
