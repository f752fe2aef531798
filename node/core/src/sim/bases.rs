//! Local bases: snapshots of a node in files of its own, behind which its log is trimmed, and from which an engine that is
//! not trusted, or is older than the log's beginning, is made anew.
//!
//! Left out: trimming what another replica still needs, and filling that one from a snapshot.

use std::path::Path;
use std::sync::Arc;

use quorate_shared::ids::Index;

use super::disk::Handle;
use super::node::{Node, Part, Process};
use super::world::{SHARD, World};
use crate::bug::{Bug, planted};
use crate::disk::Disk;
use crate::error::Fatal;
use crate::log::BaseRecord;
use crate::machine::applied_in;
use crate::snapshot::file::Writer;
use crate::snapshot::install::{install, list};

const DIR: &str = "bases";

impl Node {
    /// Makes the engine anew from the newest base if it is behind the log's beginning.
    pub(super) fn fill_engine(&mut self, base: &BaseRecord) -> Result<(), Fatal> {
        let applied = applied_in(&*self.tree)?.unwrap_or_default();
        if applied >= base.index {
            return Ok(());
        }
        let disk = Handle(Arc::clone(&self.store.disk));
        let bases = list(&disk, Path::new(DIR), SHARD)?;
        let Some((name, _)) = bases.iter().find(|(_, head)| head.index() >= base.index) else {
            let cause = format!("its log begins after {}, and there is no base", base.index);
            return Err(Fatal::new("rebuild the engine", cause));
        };
        self.tree = Arc::default();
        install(&disk, &Path::new(DIR).join(name), &*self.tree)?;
        self.tree.settle();
        Ok(())
    }

    /// Writes a snapshot of what is applied, synced.
    fn write_base(&mut self) -> Result<Option<BaseRecord>, Fatal> {
        let disk = Arc::new(Handle(Arc::clone(&self.store.disk))) as Arc<dyn Disk>;
        let Some(process) = &mut self.up else { return Ok(None) };
        if planted(Bug::TrimPastBase) {
            return Ok(Some(process.machine.state().base(SHARD)));
        }
        let stored = Writer::begin(disk, Path::new(DIR), process.machine.snapshot())?.finish()?;
        self.store.disk.finish(usize::MAX);
        Ok(Some(stored.head().base.clone()))
    }
}

impl World {
    /// A node writes a base, and trims its log behind it if nobody needs what is before.
    pub fn trim(&mut self, id: u64) {
        let needed = self.nodes.values().filter(|n| !n.lost).map(|n| n.store.durable.last()).min();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let tree_of = node.up.as_ref().map(Process::applied);
        let begins = node.store.durable.base.as_ref().map_or(Index::new(0), |b| b.index);
        // Between two writes of the log, as its thread does it.
        if !node.store.is_idle() || tree_of.is_none_or(|applied| applied <= begins || Some(applied) > needed) {
            return;
        }
        let base = match node.write_base() {
            Ok(Some(base)) => base,
            Ok(None) => return,
            Err(e) => return self.stopped(id, &e),
        };
        if !planted(Bug::TrimPastBase) {
            self.checks.bases.synced(id, base.index);
        }
        let Some(Process { part, .. }) = self.process(id) else { return };
        let may = match part {
            Part::Shard(shard) => shard.trim(&base),
            Part::Follower(_) => Ok(true),
        };
        match may {
            Ok(false) => return,
            Ok(true) => {}
            Err(e) => return self.stopped(id, &e),
        }
        self.trace.note(self.now, id, "trim", base.index.get(), 0);
        let checked = self.checks.bases.trimmed(id, base.index);
        self.check(checked);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Err(e) = node.store.trim(&base) {
            self.stopped(id, &e);
        }
    }
}
