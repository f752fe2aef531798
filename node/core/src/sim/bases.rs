//! Local bases: snapshots of a node in files of its own, written a piece at a time while entries are applied, behind which
//! its log is trimmed, and from which an engine that is not trusted, or is older than the log's beginning, is made anew.
//!
//! Trimming keeps what the slowest reader needs, or, as when a reader is beyond what is kept for it, does not.

use std::path::Path;
use std::sync::Arc;

use quorate_shared::ids::{Index, ShardId};

use super::disk::Handle;
use super::engine::SimTree;
use super::node::{Node, Part, Process};
use super::place::Place;
use super::world::World;
use crate::bug::{Bug, planted};
use crate::disk::Disk;
use crate::engine::Tree;
use crate::error::Fatal;
use crate::log::BaseRecord;
use crate::machine::applied_in;
use crate::snapshot::file::Writer;
use crate::snapshot::install::{fitting, install};
use crate::snapshot::parse_file_name;

/// Where they are.
pub(super) const DIR: &str = "bases";

/// A base on its way to the disk.
pub(super) struct Writing {
    writer: Option<Writer>,
    /// It is written; the log is to be trimmed.
    base: Option<BaseRecord>,
    /// The log is kept for who is behind.
    keep: bool,
}

impl Node {
    /// A shard's tree; made anew from the newest base of this history if it is behind the log's beginning.
    pub(super) fn fill_engine(&mut self, base: &BaseRecord) -> Result<Arc<dyn Tree>, Fatal> {
        let tree = self.replicas.get(&base.shard).map(|r| Arc::clone(&r.tree)).unwrap_or_default();
        if applied_in(&*tree)?.unwrap_or_default() >= base.index {
            return Ok(tree);
        }
        let disk = Handle(Arc::clone(&self.store.disk));
        let reader = self.store.reader();
        let Some(name) = fitting(&disk, Path::new(DIR), &*reader, base)? else {
            let cause = format!("its log begins after {}, and there is no base", base.index);
            return Err(Fatal::new("rebuild the engine", cause));
        };
        let tree = Arc::<SimTree>::default();
        install(&disk, &Path::new(DIR).join(name), &*tree)?;
        tree.settle();
        if let Some(replica) = self.replicas.get_mut(&base.shard) {
            replica.tree = Arc::clone(&tree);
        }
        Ok(tree)
    }

    /// Removes the bases that the log does not rest on any more, and what was left unfinished.
    fn tidy(&self, shard: ShardId, base: Index) -> Result<(), Fatal> {
        let disk = Handle(Arc::clone(&self.store.disk));
        let failed = |e| Fatal::new("remove old bases", e);
        for name in disk.list(Path::new(DIR)).map_err(failed)? {
            let Some(name) = name.to_str() else { continue };
            if parse_file_name(name).is_some_and(|(of, at)| of == shard && at < base) {
                disk.remove(&Path::new(DIR).join(name)).map_err(failed)?;
            }
        }
        disk.sync_dir(Path::new(DIR)).map_err(failed)
    }
}

impl World {
    /// A node begins to write a base; when it is written, its log is trimmed behind it.
    pub fn trim(&mut self, id: Place, keep: bool) {
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        let begins = node.store.durable[id.shard].base.as_ref().map_or(Index::new(0), |b| b.index);
        let disk = Arc::new(Handle(Arc::clone(&node.store.disk))) as Arc<dyn Disk>;
        let process = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut());
        let Some(process) = process.filter(|p| p.writing.is_none() && p.applied() > begins) else { return };
        let mut writing = Writing { writer: None, base: None, keep };
        if planted(Bug::TrimPastBase) {
            writing.base = Some(process.machine.state().base(id.shard));
        } else {
            match Writer::begin(disk, Path::new(DIR), process.machine.snapshot()) {
                Ok(writer) => writing.writer = Some(writer),
                Err(e) => return self.stopped(id.node, &e),
            }
        }
        process.writing = Some(writing);
        self.schedule_base(id);
    }

    /// Writes the next piece, or trims.
    pub(super) fn go_on_writing(&mut self, id: Place) {
        match self.write_piece(id) {
            Ok(true) => self.schedule_base(id),
            Ok(false) => {
                if let Some(process) = self.process(id) {
                    process.writing = None;
                }
            }
            Err(e) => self.stopped(id.node, &e),
        }
    }

    /// `false`: it is over.
    fn write_piece(&mut self, id: Place) -> Result<bool, Fatal> {
        let Some(node) = self.nodes.get_mut(&id.node) else { return Ok(false) };
        let stalled = node.stalled;
        let process = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut());
        let Some(writing) = process.and_then(|p| p.writing.as_mut()) else { return Ok(false) };
        if stalled {
            return Ok(true);
        }
        if let Some(writer) = &mut writing.writer {
            let Some(stored) = writer.step()? else { return Ok(true) };
            writing.writer = None;
            writing.base = Some(stored.head().base.clone());
            node.store.disk.finish(usize::MAX);
            self.checks[id.shard].bases.synced(id.node, stored.head().index());
            return Ok(true);
        }
        let (Some(base), keep) = (writing.base.clone(), writing.keep) else { return Ok(false) };
        // Between two writes of the log, as its thread does it.
        if !node.store.is_idle() {
            return Ok(true);
        }
        self.trim_to(id, &base, keep)?;
        Ok(false)
    }

    fn trim_to(&mut self, id: Place, base: &BaseRecord, keep: bool) -> Result<(), Fatal> {
        let here = self.nodes.values().filter(|n| !n.gone);
        let needed = here.map(|n| n.store.durable[id.shard].last()).min();
        if keep && Some(base.index) > needed {
            return Ok(());
        }
        let Some(Process { part, .. }) = self.process(id) else { return Ok(()) };
        let may = match part {
            Part::Shard(shard) => shard.trim(base)?,
            Part::Follower(follower) => base.index <= follower.view().applied,
        };
        if !may {
            return Ok(());
        }
        self.trace.note(self.now, id, "trim", base.index.get(), u64::from(keep));
        let checked = self.checks[id.shard].bases.trimmed(id.node, base.index);
        self.check(checked);
        let Some(node) = self.nodes.get_mut(&id.node) else { return Ok(()) };
        node.store.trim(base)?;
        node.tidy(id.shard, base.index)?;
        node.store.disk.finish(usize::MAX);
        Ok(())
    }
}
