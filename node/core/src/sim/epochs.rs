//! Epochs: a replica is promoted, or a survivor begins again; whoever hears of a newer epoch is fenced, cuts off what is
//! only its own, and goes on as a log-shipped replica of it.

use quorate_shared::ids::{Epoch, ReplicaId, ShardId};

use super::network::Packet;
use super::node::{Node, Part, Process};
use super::place::Place;
use super::world::{WALL, World};
use crate::epoch::{self, Rejoined, Relation, relation};
use crate::error::Fatal;
use crate::log::EpochStart;
use crate::machine::Machine;
use crate::membership::Host;
use crate::shard::Input;

/// Which epoch each of a node's shards is in, and where that began.
pub type Epochs = Vec<(ShardId, Epoch, EpochStart)>;

impl World {
    /// The epoch a replica is in, and where it began.
    pub(super) fn epoch(&self, id: Place) -> (Epoch, EpochStart) {
        self.running(id).map(|p| p.machine.state()).map(|s| (s.epoch, s.epoch_start)).unwrap_or_default()
    }

    fn epochs(&self, id: u64) -> Epochs {
        let places = self.places(id).into_iter().map(|id| (id.shard, self.epoch(id)));
        places.map(|(shard, (epoch, start))| (shard, epoch, start)).collect()
    }

    /// Makes of a node the first voter of a new epoch, in every shard: a replica that is promoted, a voter whose quorum is
    /// lost.
    pub fn promote(&mut self, id: u64, number: u64) {
        let stalled = self.nodes.get(&id).is_none_or(|n| n.stalled);
        if stalled || !self.is_up(id) || self.epoch_number(id) >= number {
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
    pub(super) fn begin_epoch(&mut self, id: Place, machine: &Machine) -> Result<bool, Fatal> {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id.node) else { return Ok(false) };
        let Some(epoch) = node.promote else { return Ok(false) };
        let wall = (WALL + now).saturating_add_signed(node.skew);
        let (me, reader, applied) = (node.host(), node.store.reader(), machine.state().applied());
        let committed = match reader.bounds(id.shard) {
            Some(bounds) if bounds.replica == ReplicaId::NONE => bounds.last,
            Some(bounds) => bounds.committed().max(applied.index),
            None => applied.index,
        };
        let begun = epoch::begin(&mut node.store, &*reader, (id.shard, me), &applied, epoch, wall)?;
        if let Some(replica) = node.replicas.get_mut(&id.shard) {
            replica.healing = false;
        }
        let start = begun.start.index;
        self.trace.say(now, || format!("{id} begins epoch {} behind {start}, {} adopted", epoch.number, begun.adopted));
        let checked = self.checks[id.shard].lineage.begins(id.node, epoch, (committed, start), now);
        self.check(checked);
        Ok(true)
    }

    /// Says which epoch each of its shards is in, and where that began.
    pub(super) fn tell_epoch(&mut self, id: Place, to: u64) {
        let epochs = self.epochs(id.node);
        self.send(id, to, Packet::Epochs(epochs));
    }

    /// Hears of another node's epochs.
    pub(super) fn hear_epochs(&mut self, id: Place, from: u64, theirs: &Epochs) {
        let Some((_, newer, _)) = theirs.iter().find(|(shard, ..)| *shard == id.shard) else { return };
        let ours = self.epoch(id).0;
        match relation(ours, *newer) {
            Relation::Older => self.tell_epoch(id, from),
            // Voters serve nothing any more, at once; they go on when somebody knows where it began in every shard.
            Relation::Newer if self.places(id.node).iter().any(|id| self.shard(*id).is_some()) => {
                let begun = |epoch: Epoch| epoch == *newer || epoch.number > newer.number;
                if theirs.iter().all(|(_, epoch, _)| begun(*epoch)) {
                    self.fence(id.node, theirs);
                } else {
                    self.drive(id, Some(Input::Fence(*newer)));
                }
            }
            // A log-shipped replica comes into it with its stream; of two of one number neither follows the other.
            _ => {}
        }
    }

    /// A newer epoch: the node serves nothing any more, and goes on as a replica of it.
    pub(super) fn fence(&mut self, id: u64, epochs: &[(ShardId, Epoch, EpochStart)]) {
        for &(shard, epoch, start) in epochs {
            let id = Place { shard, node: id };
            if self.epoch(id).0 == epoch {
                // It has come into it with its stream.
                continue;
            }
            self.trace.note(self.now, id, "fenced", epoch.number, start.index.get());
            self.drive(id, Some(Input::Fence(epoch)));
            if let Some(node) = self.node(id.node) {
                node.fenced.insert(shard, (epoch, start));
            }
        }
        if self.nodes.get(&id).is_some_and(|n| !n.stalled && n.is_up()) {
            self.begin_again(id);
        }
    }

    /// Of a start: cuts off what is only this node's.
    pub(super) fn rejoin(&mut self, id: u64) -> Result<(), Fatal> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let (reader, mut anew, mut wrong) = (node.store.reader(), false, None);
        for (shard, (epoch, start)) in std::mem::take(&mut node.fenced) {
            let Some(bounds) = reader.bounds(shard) else { continue };
            let mut suffix = Vec::new();
            let rejoined = epoch::rejoin(&mut node.store, &*reader, shard, bounds.last, start, &mut suffix)?;
            let entries = match rejoined {
                Rejoined::Cut { entries, rebuild } => {
                    if rebuild {
                        node.forget_engine();
                    }
                    entries
                }
                Rejoined::Drop { entries } => {
                    anew = true;
                    entries
                }
            };
            let lines = suffix.iter().filter(|b| **b == b'\n').count() as u64;
            self.trace.note(self.now, Place { shard, node: id }, "rejoins", epoch.number, entries);
            if lines != entries {
                wrong = Some(format!("n{id} cuts {entries} entries of {shard} and writes out {lines}"));
            }
        }
        if anew {
            node.begin_anew()?;
        }
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
        Ok(())
    }

    /// Every node, now and then, says which epoch it is in to another: connections begin with it.
    pub(super) fn gossip(&mut self, id: Place) {
        let (epoch, all) = (self.epoch(id).0, self.all());
        if epoch.number > 1 && self.rng.chance(150) {
            let to = self.rng.pick(&all);
            self.tell_epoch(id, to);
        }
    }

    /// The highest number of an epoch.
    pub fn top_epoch(&self) -> u64 {
        self.checks.values().map(|checks| checks.lineage.newest().number).max().unwrap_or_default()
    }

    /// The highest number of the epochs that a node's shards are in.
    pub fn epoch_number(&self, id: u64) -> u64 {
        self.places(id).into_iter().map(|id| self.epoch(id).0.number).max().unwrap_or_default()
    }

    /// Two epochs of one number are there, and none above them.
    pub fn is_split(&self) -> bool {
        self.checks.values().any(|checks| checks.lineage.is_split())
    }

    /// A node in this incarnation.
    pub fn host(&self, id: u64) -> Option<Host> {
        self.nodes.get(&id).map(Node::host)
    }

    /// How much a node's log has, of all shards.
    pub fn last_of(&self, id: u64) -> u64 {
        self.nodes.get(&id).map_or(0, |n| n.store.durable.values().map(|content| content.last().get()).sum())
    }

    /// Whether it runs as a log-shipped replica.
    pub fn is_shipped(&self, id: Place) -> bool {
        matches!(self.running(id), Some(Process { part: Part::Follower(_), .. }))
    }
}
