//! Local bases: snapshots of a node in files of its own, written a piece at a time while entries are applied, behind which
//! its log is trimmed, and from which an engine that is not trusted, or is older than the log's beginning, is made anew.
//!
//! Trimming keeps what the slowest reader needs, or, as when a reader is beyond what is kept for it, does not.

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
    /// Makes the engine anew from the newest base of this history if it is behind the log's beginning.
    pub(super) fn fill_engine(&mut self, base: &BaseRecord) -> Result<(), Fatal> {
        let applied = applied_in(&*self.tree)?.unwrap_or_default();
        if applied >= base.index {
            return Ok(());
        }
        let disk = Handle(Arc::clone(&self.store.disk));
        let reader = self.store.reader();
        let Some(name) = fitting(&disk, Path::new(DIR), &*reader, base)? else {
            let cause = format!("its log begins after {}, and there is no base", base.index);
            return Err(Fatal::new("rebuild the engine", cause));
        };
        self.tree = Arc::default();
        install(&disk, &Path::new(DIR).join(name), &*self.tree)?;
        self.tree.settle();
        Ok(())
    }

    /// Removes the bases that the log does not rest on any more, and what was left unfinished.
    fn tidy(&self, base: Index) -> Result<(), Fatal> {
        let disk = Handle(Arc::clone(&self.store.disk));
        let failed = |e| Fatal::new("remove old bases", e);
        for name in disk.list(Path::new(DIR)).map_err(failed)? {
            let Some(name) = name.to_str() else { continue };
            if parse_file_name(name).is_some_and(|(_, at)| at < base) {
                disk.remove(&Path::new(DIR).join(name)).map_err(failed)?;
            }
        }
        disk.sync_dir(Path::new(DIR)).map_err(failed)
    }
}

impl World {
    /// A node begins to write a base; when it is written, its log is trimmed behind it.
    pub fn trim(&mut self, id: u64, keep: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let begins = node.store.durable.base.as_ref().map_or(Index::new(0), |b| b.index);
        let disk = Arc::new(Handle(Arc::clone(&node.store.disk))) as Arc<dyn Disk>;
        let Some(process) = node.up.as_mut().filter(|p| p.writing.is_none() && p.applied() > begins) else { return };
        let mut writing = Writing { writer: None, base: None, keep };
        if planted(Bug::TrimPastBase) {
            writing.base = Some(process.machine.state().base(SHARD));
        } else {
            match Writer::begin(disk, Path::new(DIR), process.machine.snapshot()) {
                Ok(writer) => writing.writer = Some(writer),
                Err(e) => return self.stopped(id, &e),
            }
        }
        process.writing = Some(writing);
        self.schedule_base(id);
    }

    /// Writes the next piece, or trims.
    pub(super) fn go_on_writing(&mut self, id: u64) {
        match self.write_piece(id) {
            Ok(true) => self.schedule_base(id),
            Ok(false) => {
                if let Some(process) = self.process(id) {
                    process.writing = None;
                }
            }
            Err(e) => self.stopped(id, &e),
        }
    }

    /// `false`: it is over.
    fn write_piece(&mut self, id: u64) -> Result<bool, Fatal> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(false) };
        let stalled = node.stalled;
        let Some(writing) = node.up.as_mut().and_then(|p| p.writing.as_mut()) else { return Ok(false) };
        if stalled {
            return Ok(true);
        }
        if let Some(writer) = &mut writing.writer {
            let Some(stored) = writer.step()? else { return Ok(true) };
            writing.writer = None;
            writing.base = Some(stored.head().base.clone());
            node.store.disk.finish(usize::MAX);
            self.checks.bases.synced(id, stored.head().index());
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

    fn trim_to(&mut self, id: u64, base: &BaseRecord, keep: bool) -> Result<(), Fatal> {
        let needed = self.nodes.values().map(|n| n.store.durable.last()).min();
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
        let checked = self.checks.bases.trimmed(id, base.index);
        self.check(checked);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.store.trim(base)?;
        node.tidy(base.index)?;
        node.store.disk.finish(usize::MAX);
        Ok(())
    }
}
