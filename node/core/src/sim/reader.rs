//! A log-shipped replica beside the voters: pulls from whoever it reaches, loses its connection, its process, its engine.

use std::sync::Arc;

use quorate_shared::ids::{Hash, Index};

use super::disk::Disk;
use super::{Rng, SHARD, World};
use crate::engine::Tree;
use crate::engine::memory::MemoryTree;
use crate::log::{BaseRecord, LogReader};
use crate::machine::Machine;
use crate::replica::PersistId;
use crate::shard::Effect;
use crate::ship::follow::Follower;
use crate::ship::serve::{Committed, Sender};

/// Its process and what survives it.
pub struct Reader {
    base: BaseRecord,
    disk: Arc<Disk>,
    pub tree: Arc<MemoryTree>,
    machine: Machine,
    follower: Follower,
    persists: Vec<(PersistId, usize)>,
    /// The server and the stream, while there is one.
    stream: Option<(u64, Sender)>,
}

impl Reader {
    pub fn new(base: BaseRecord) -> Self {
        let disk = Arc::new(Disk::new(base.clone()));
        Self::open(base, disk, Arc::default())
    }

    fn open(base: BaseRecord, disk: Arc<Disk>, tree: Arc<MemoryTree>) -> Self {
        let machine = Machine::open(Arc::clone(&tree) as Arc<dyn Tree>, &base).unwrap();
        let applied = machine.state().applied();
        let log = Arc::clone(&disk) as Arc<dyn LogReader>;
        let mut follower = Follower::new(SHARD, base.epoch, log, &applied).unwrap();
        let mut effects = Vec::new();
        follower.hand_out(&mut effects).unwrap();
        let mut reader = Self { base, disk, tree, machine, follower, persists: Vec::new(), stream: None };
        reader.execute(effects);
        reader
    }

    /// What it has applied.
    pub fn applied(&self) -> (Index, Hash) {
        (self.machine.state().index, self.machine.state().chain)
    }

    pub fn restart(self, rng: &mut Rng) -> Self {
        self.disk.crash(rng);
        let tree = if rng.chance(300) { Arc::default() } else { self.tree };
        Self::open(self.base, self.disk, tree)
    }

    /// The connection breaks.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// One exchange with a server: a new stream, or a batch and a report on the old one.
    pub fn pull(&mut self, world: &World, server: u64) {
        if let Some((from, _)) = self.stream
            && !world.is_up(from)
        {
            self.stream = None;
        }
        let from = self.stream.as_ref().map_or(server, |(from, _)| *from);
        let Some(view) = world.view(from) else { return };
        let committed = Committed { shippable: view.shippable, commit: view.commit, term: view.term };
        let log = world.log(from);
        let Some((_, sender)) = &mut self.stream else {
            // A server that is behind this reader refuses; another time, another server.
            let begun = Sender::begin(&*log, self.base.epoch, committed, &self.follower.pull()).unwrap();
            match begun {
                Ok(sender) => self.stream = Some((from, sender)),
                Err(crate::ship::Refusal::Ahead { .. }) => {}
                Err(other) => panic!("n{from} refuses: {other}"),
            }
            return;
        };
        sender.progress(&self.follower.progress());
        if let Some(batch) = sender.next(&*log, committed).unwrap() {
            let mut effects = Vec::new();
            self.follower.receive(batch, &mut effects).unwrap();
            self.execute(effects);
        }
    }

    /// Its disk has finished.
    pub fn sync(&mut self) {
        for (id, records) in std::mem::take(&mut self.persists) {
            self.disk.sync(records);
            let mut effects = Vec::new();
            self.follower.persisted(id, &mut effects).unwrap();
            self.execute(effects);
        }
    }

    fn execute(&mut self, mut effects: Vec<Effect>) {
        while !effects.is_empty() {
            match effects.remove(0) {
                Effect::Persist { id, records } => {
                    self.disk.write(&records);
                    self.persists.push((id, records.len()));
                }
                Effect::Apply { entries } => {
                    assert!(entries.last().unwrap().index.get() <= self.disk.durable_last(), "applied before durable");
                    let applied = self.machine.apply(&entries).unwrap();
                    self.follower.applied(&applied, &mut effects).unwrap();
                }
                other => panic!("a follower does not {other:?}"),
            }
        }
    }
}
