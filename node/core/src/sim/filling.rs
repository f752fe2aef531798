//! Filling a replica from another node's snapshot, on a stream of its own, a piece at a time.
//!
//! Who needs one asks a node for the newest base it has, goes on where a broken stream left off, checks the whole,
//! leaves a mark and begins again in place: the start installs it. Nothing received is used before every checksum is
//! right; what is flipped on the way is noticed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Index, ShardId};

use super::bases::DIR;
use super::disk::Handle;
use super::engine::SimTree;
use super::network::Packet;
use super::node::Node;
use super::place::Place;
use super::world::{Event, World};
use crate::disk::Disk;
use crate::error::Fatal;
use crate::log::Log;
use crate::snapshot::file::{adopt, read_head};
use crate::snapshot::install::{Mark, install, list, rebase};
use crate::snapshot::parse_file_name;

const RECEIVING: &str = "receiving-";
/// A server that has been silent for this long is left.
const SILENCE_MS: u64 = 1_000;

/// What a server says on such a stream.
#[derive(Clone, Debug)]
pub enum Part {
    /// It has none.
    Nothing,
    /// It begins, at this byte of so many.
    Begin {
        name: String,
        total: u64,
        from: u64,
    },
    Data(Bytes),
}

/// A snapshot on its way here.
pub(super) struct Filling {
    link: u64,
    heard: u64,
    /// Its name, how long it is, how much is here.
    file: Option<(String, u64, u64)>,
}

fn receiving(name: &str) -> PathBuf {
    Path::new(DIR).join(format!("{RECEIVING}{name}"))
}

fn is_of(name: &str, shard: ShardId) -> bool {
    parse_file_name(name).is_some_and(|(of, _)| of == shard)
}

fn io_failed(e: std::io::Error) -> Fatal {
    Fatal::new("receive a snapshot", e)
}

impl Node {
    fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.store.disk))
    }

    /// What an earlier attempt has received.
    fn partial(&self, shard: ShardId) -> Option<(String, u64)> {
        let disk = self.handle();
        let names = disk.list(Path::new(DIR)).ok()?;
        let name =
            names.iter().filter_map(|n| n.to_str()?.strip_prefix(RECEIVING)).find(|n| is_of(n, shard))?.to_owned();
        let len = disk.open(&receiving(&name)).ok()?.len().ok()?;
        Some((name, len))
    }

    /// The newest base.
    fn newest_base(&self, shard: ShardId) -> Result<Option<(String, Vec<u8>)>, Fatal> {
        let disk = self.handle();
        let Some((name, _)) = list(&disk, Path::new(DIR), shard)?.into_iter().next() else { return Ok(None) };
        let bytes = disk.open(&Path::new(DIR).join(&name)).and_then(|f| f.read_all()).map_err(io_failed)?;
        Ok(Some((name, bytes)))
    }

    /// A file is here whole: checks it, names it, marks it for the next start. `false`: it is damaged and gone.
    fn received(&mut self, shard: ShardId, name: &str) -> Result<bool, Fatal> {
        let disk = self.handle();
        let part = receiving(name);
        let right = |at| parse_file_name(name) == Some((shard, at));
        if !adopt(&disk, &part).is_ok_and(|stored| right(stored.head().index())) {
            disk.remove(&part).map_err(io_failed)?;
            return Ok(false);
        }
        disk.rename(&part, &Path::new(DIR).join(name)).map_err(io_failed)?;
        disk.sync_dir(Path::new(DIR)).map_err(io_failed)?;
        Mark::write(&disk, Path::new(DIR), shard, name)?;
        self.store.disk.finish(usize::MAX);
        Ok(true)
    }

    /// Of a start: installs what was received. Gives its index.
    pub(super) fn install_received(&mut self, shard: ShardId) -> Result<Option<Index>, Fatal> {
        let (disk, dir) = (self.handle(), Path::new(DIR));
        let Some(mark) = Mark::read(&disk, dir, shard)? else { return Ok(None) };
        let path = dir.join(&mark.file);
        let head = read_head(&disk, &path)?;
        let (reader, replica) = (self.store.reader(), self.store.durable[shard].replica);
        rebase(&mut self.store, &*reader, replica, &head.base)?;
        let tree = Arc::<SimTree>::default();
        install(&disk, &path, &*tree)?;
        tree.settle();
        if let Some(replica) = self.replicas.get_mut(&shard) {
            replica.tree = tree;
        }
        Mark::clear(&disk, dir, shard)?;
        self.store.sync()?;
        Ok(Some(head.index()))
    }
}

impl World {
    /// A replica's log ends before every other's begins: it needs a snapshot.
    pub(super) fn fill(&mut self, id: Place) {
        if self.process(id).is_some_and(|p| p.filling.is_none()) {
            self.ask_snapshot(id);
        }
    }

    fn ask_snapshot(&mut self, id: Place) {
        let others: Vec<u64> = self.all().into_iter().filter(|other| *other != id.node).collect();
        let (server, link, heard) = (self.rng.pick(&others), self.network.new_link(), self.now);
        self.trace.note(self.now, id, "asks for a snapshot", server, link);
        let have = self.nodes.get(&id.node).and_then(|n| n.partial(id.shard));
        let Some(process) = self.process(id) else { return };
        let old = process.filling.replace(Filling { link, heard, file: None });
        if let Some(old) = old {
            self.network.break_link(old.link);
        }
        self.send(id, server, Packet::AskSnapshot { link, have });
    }

    /// On every look: goes on, perhaps with another server.
    pub(super) fn keep_filling(&mut self, id: Place) {
        let now = self.now;
        let late = self.process(id).and_then(|p| p.filling.as_ref()).is_some_and(|f| now > f.heard + SILENCE_MS);
        if late {
            self.ask_snapshot(id);
        }
    }

    pub(super) fn asked_for_snapshot(&mut self, id: Place, from: u64, link: u64, have: Option<(String, u64)>) {
        let Some(node) = self.nodes.get(&id.node) else { return };
        let newest = match node.newest_base(id.shard) {
            Ok(newest) => newest,
            Err(e) => return self.stopped(id.node, &e),
        };
        let Some((name, bytes)) = newest else {
            return self.send(id, from, Packet::Snapshot { link, part: Part::Nothing });
        };
        let total = bytes.len() as u64;
        let at = have.filter(|(known, at)| *known == name && *at <= total).map_or(0, |(_, at)| at);
        let piece = self.rng.range(512, 16 << 10) as usize;
        self.send(id, from, Packet::Snapshot { link, part: Part::Begin { name, total, from: at } });
        for piece in bytes[at as usize..].chunks(piece) {
            let data = self.on_the_way(Bytes::copy_from_slice(piece));
            self.send(id, from, Packet::Snapshot { link, part: Part::Data(data) });
        }
    }

    pub(super) fn snapshot_came(&mut self, id: Place, link: u64, part: Part) {
        match self.take_part(id, link, part) {
            Ok(None) => {}
            Ok(Some(name)) => {
                let Some(node) = self.nodes.get_mut(&id.node) else { return };
                match node.received(id.shard, &name) {
                    Ok(true) => {
                        self.trace.note(self.now, id, "received a snapshot", link, 0);
                        self.begin_again(id.node);
                    }
                    Ok(false) => self.ask_snapshot(id),
                    Err(e) => self.stopped(id.node, &e),
                }
            }
            Err(e) => self.stopped(id.node, &e),
        }
    }

    /// Takes a piece; the name of the file once it is whole.
    fn take_part(&mut self, id: Place, link: u64, part: Part) -> Result<Option<String>, Fatal> {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id.node) else { return Ok(None) };
        let (disk, stalled, have) = (node.handle(), node.stalled, node.partial(id.shard));
        let Some(process) = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut()) else { return Ok(None) };
        let applied = process.applied();
        let Some(filling) = process.filling.as_mut().filter(|f| f.link == link && !stalled) else { return Ok(None) };
        filling.heard = now;
        match part {
            Part::Nothing => filling.heard = now.saturating_sub(SILENCE_MS / 2),
            Part::Begin { name, total, from } => {
                let newer = parse_file_name(&name).is_some_and(|(shard, at)| shard == id.shard && at > applied);
                if !newer {
                    filling.file = None;
                    return Ok(None);
                }
                if let Some((old, _)) = have.filter(|(old, _)| *old != name) {
                    disk.remove(&receiving(&old)).map_err(io_failed)?;
                }
                if from == 0 {
                    disk.create(&receiving(&name)).map_err(io_failed)?;
                }
                filling.file = Some((name, total, from));
            }
            Part::Data(data) => {
                let Some((name, total, at)) = &mut filling.file else { return Ok(None) };
                disk.open_write(&receiving(name)).and_then(|f| f.write_at(&data, *at)).map_err(io_failed)?;
                *at += data.len() as u64;
                if at >= total {
                    return Ok(Some(name.clone()));
                }
            }
        }
        Ok(None)
    }

    /// The stream on which a snapshot comes is broken.
    pub(super) fn filling_broken(&mut self, id: Place, link: u64) {
        let now = self.now;
        if let Some(filling) = self.process(id).and_then(|p| p.filling.as_mut()).filter(|f| f.link == link) {
            filling.heard = now.saturating_sub(SILENCE_MS);
        }
    }

    /// The next piece of a base is written.
    pub(super) fn schedule_base(&mut self, id: Place) {
        let pause = self.rng.range(1, 20);
        self.schedule(self.now + pause, id, Event::Base);
    }
}
