//! Log-shipped replicas: they pull from whoever they reach, voter or replica, and go to another when a stream breaks,
//! falls silent, is refused or lies.

use bytes::Bytes;

use super::Rng;
use super::network::Packet;
use super::node::{Part, Process};
use super::place::Place;
use super::world::World;
use crate::entry::{self, Body, Entry};
use crate::log::{LogEntry, Payload};
use crate::ship::ShipBatch;
use crate::ship::follow::Follower;
use crate::ship::serve::{Committed, Sender};
use crate::ship::{ReaderMessage, Refusal, ServerMessage};
use quorate_shared::ids::{Epoch, NodeId, Timestamp};

/// A stream this node serves.
pub(super) struct Stream {
    pub(super) reader: u64,
    sender: Sender,
    beat: u64,
}

/// The stream this node reads.
pub(super) struct Pulling {
    pub(super) link: u64,
    pub(super) server: u64,
    heard: u64,
}

/// A server says at least so often that it is there.
const BEAT_MS: u64 = 100;
/// A reader that hears nothing for so long goes elsewhere.
const SILENCE_MS: u64 = 1_000;

/// Flips a bit of an entry.
fn flip(batch: &mut ShipBatch, rng: &mut Rng) {
    let at = rng.below(batch.entries.len());
    let Some(entry) = batch.entries.get_mut(at).filter(|e| !e.bytes.is_empty()) else { return };
    let mut bytes = entry.bytes.to_vec();
    let at = rng.below(bytes.len());
    bytes[at] ^= 1 << rng.range(0, 7);
    entry.bytes = Bytes::from(bytes);
}

impl World {
    fn committed(&self, id: Place) -> Option<Committed> {
        let Process { part, .. } = self.running(id)?;
        Some(match part {
            Part::Shard(shard) => {
                let view = shard.view();
                Committed { shippable: view.shippable, commit: view.commit, term: view.term }
            }
            Part::Follower(follower) => {
                let view = follower.view();
                Committed { shippable: view.durable, commit: view.commit.max(view.durable), term: view.term }
            }
        })
    }

    /// Sends every reader of this node what it may have.
    pub(super) fn ship_more(&mut self, id: Place) {
        let has = self.running(id).is_some_and(|p| !p.streams.is_empty());
        if !has {
            return;
        }
        let Some(committed) = self.committed(id) else { return };
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        let log = node.store.reader();
        let Some(process) = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut()) else { return };
        // A server whose memory is bad ships what it has not got.
        let lie = (self.weather.corrupt > 0).then_some(self.weather.corrupt);
        let mut out = Vec::new();
        let mut failed = None;
        for (link, stream) in &mut process.streams {
            loop {
                match stream.sender.next(&*log, committed) {
                    Ok(Some(mut batch)) => {
                        stream.beat = now;
                        if lie.is_some_and(|weather| self.rng.chance(weather)) {
                            flip(&mut batch, &mut self.rng);
                        }
                        out.push((stream.reader, *link, ServerMessage::Batch(batch).encode()));
                    }
                    Ok(None) => break,
                    Err(e) => {
                        failed = Some(e);
                        break;
                    }
                }
            }
            if now >= stream.beat + BEAT_MS {
                stream.beat = now;
                out.push((stream.reader, *link, ServerMessage::Batch(stream.sender.heartbeat(committed)).encode()));
            }
        }
        for (reader, link, message) in out {
            let message = self.on_the_way(message);
            self.send(id, reader, Packet::Shipped { link, message });
        }
        if let Some(e) = failed {
            self.stopped(id.node, &e);
        }
    }

    /// Now and then a bit flips where no checksum of the network sees it.
    pub(super) fn on_the_way(&mut self, message: Bytes) -> Bytes {
        if self.weather.corrupt == 0 || !self.rng.chance(self.weather.corrupt) {
            return message;
        }
        let mut bytes = message.to_vec();
        let at = self.rng.below(bytes.len());
        bytes[at] ^= 1 << self.rng.range(0, 7);
        Bytes::from(bytes)
    }

    /// On every tick: readers look for a server, servers send heartbeats.
    pub(super) fn keep_shipping(&mut self, id: Place) {
        let now = self.now;
        let Some(process) = self.process(id) else { return };
        if now < process.next_beat {
            return;
        }
        process.next_beat = now + BEAT_MS / 2;
        let follows = matches!(process.part, Part::Follower(_));
        let silent = process.pulling.as_ref().is_none_or(|p| now > p.heard + SILENCE_MS);
        self.ship_more(id);
        if follows {
            self.report_soon(id);
            if silent {
                self.pull_anew(id);
            }
        }
        self.keep_filling(id);
        self.gossip(id);
        self.look(id);
    }

    /// Tells the voters how far this replica is.
    pub(super) fn report_soon(&mut self, id: Place) {
        let Some(Process { part: Part::Follower(follower), .. }) = self.process(id) else { return };
        let report = follower.report(NodeId::new(id.node));
        for voter in self.voters_known_to(id) {
            self.send(id, voter, Packet::Report(report));
        }
    }

    fn follower(&mut self, id: Place) -> Option<&mut Follower> {
        match &mut self.process(id)?.part {
            Part::Follower(follower) => Some(follower),
            Part::Shard(_) => None,
        }
    }

    fn pull_anew(&mut self, id: Place) {
        // Replicas read from voters and from replicas before them, as they are told to: never in a circle.
        let may = |other: &u64| *other != id.node && (*other < id.node || !self.is_shipped(id.on(*other)));
        let others: Vec<u64> = self.all().into_iter().filter(may).collect();
        if others.is_empty() {
            return;
        }
        let server = self.rng.pick(&others);
        let link = self.network.new_link();
        let heard = self.now;
        let Some(process) = self.process(id) else { return };
        let old = process.pulling.replace(Pulling { link, server, heard });
        if let Some(old) = old {
            self.network.break_link(old.link);
        }
        let Some(follower) = self.follower(id) else { return };
        let message = ReaderMessage::Pull(follower.pull()).encode();
        self.send(id, server, Packet::Ship { link, message });
    }

    /// A reader's message at its server.
    pub(super) fn ship_came(&mut self, id: Place, from: u64, link: u64, message: &[u8]) {
        let Ok(message) = ReaderMessage::decode(message) else { return };
        let (epoch, committed) = (self.epoch(id), self.committed(id));
        let Some(committed) = committed else { return };
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        let log = node.store.reader();
        let Some(process) = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut()) else { return };
        match message {
            ReaderMessage::Progress(progress) => {
                if let Some(stream) = process.streams.get_mut(&link) {
                    stream.sender.progress(&progress);
                }
                self.ship_more(id);
            }
            // Reads ask for the read index here, at any level.
            ReaderMessage::Probe { .. } => {}
            ReaderMessage::Pull(pull) => match Sender::begin(&*log, epoch, committed, &pull) {
                Ok(Ok(sender)) => {
                    process.streams.insert(link, Stream { reader: from, sender, beat: 0 });
                    self.ship_more(id);
                }
                Ok(Err(refusal)) => {
                    let message = ServerMessage::Refused(refusal).encode();
                    self.send(id, from, Packet::Shipped { link, message });
                }
                Err(e) => self.stopped(id.node, &e),
            },
        }
    }

    /// A server's message at its reader.
    pub(super) fn shipped_came(&mut self, id: Place, link: u64, message: &[u8]) {
        let now = self.now;
        let Some(process) = self.process(id) else { return };
        let Some(pulling) = process.pulling.as_mut().filter(|p| p.link == link) else { return };
        pulling.heard = now;
        let server = pulling.server;
        let batch = match ServerMessage::decode(message) {
            Ok(ServerMessage::Batch(batch)) => batch,
            Ok(ServerMessage::Refused(refusal)) => return self.refused(id, server, &refusal),
            Ok(ServerMessage::Confirmed { .. }) => return,
            Err(_) => return self.hang_up(id),
        };
        let mut bad = None;
        self.follow(id, |follower, effects| {
            bad = follower.receive(batch, effects).err();
            Ok(())
        });
        if let Some(bad) = bad {
            self.trace.say(now, || format!("{id} does not take n{server}'s batch: {bad}"));
            return self.hang_up(id);
        }
        let Some(follower) = self.follower(id) else { return };
        let last = follower.view().last;
        let message = ReaderMessage::Progress(follower.progress()).encode();
        self.checks[id.shard].readonly.received(id.node, last);
        self.send(id, server, Packet::Ship { link, message });
    }

    /// A server of another epoch with the same number takes the place of the reader's: its history goes on differently.
    pub fn meet_stranger(&mut self, id: Place) {
        let Some(process) = self.process(id).filter(|p| p.pulling.is_some()) else { return };
        let timestamp = process.machine.state().timestamp;
        let Part::Follower(follower) = &process.part else { return };
        let (pull, term) = (follower.pull(), follower.view().term);
        let timestamp = Timestamp::from_raw(timestamp.raw() + (1 << 40));
        let index = pull.index.next();
        let bytes = Entry { index, previous: pull.chain, timestamp, body: Body::Empty }.encode();
        let entry = LogEntry { index, term, payload: Payload::Entry, bytes };
        let epoch = Epoch { number: pull.epoch.number, id: pull.epoch.id + 1 };
        let chain = entry::chain(pull.chain, &entry);
        let batch = ShipBatch {
            shard: id.shard,
            epoch,
            entries: vec![entry],
            last: index,
            chain,
            commit: index,
            commit_term: term,
        };
        let mut taken = Ok(());
        self.follow(id, |follower, effects| {
            taken = follower.receive(batch, effects);
            Ok(())
        });
        self.trace.note(self.now, id, "stranger", index.get(), u64::from(taken.is_ok()));
        if taken.is_ok() {
            self.checks[id.shard].readonly.received(id.node, index);
        } else {
            self.hang_up(id);
        }
    }

    fn refused(&mut self, id: Place, server: u64, refusal: &Refusal) {
        self.trace.say(self.now, || format!("n{server} refuses {id}: {refusal}"));
        match refusal {
            // Another time, another server.
            Refusal::Ahead { .. } | Refusal::NotHere(_) | Refusal::TwoEpochs { .. } => self.hang_up(id),
            Refusal::OtherEpoch { .. } => {
                self.tell_epoch(id, server);
                self.hang_up(id);
            }
            Refusal::NeedsSnapshot { .. } => {
                self.fill(id);
                self.hang_up(id);
            }
            Refusal::NewEpoch { epoch, start } => {
                let (epoch, start) = (*epoch, *start);
                self.hang_up(id);
                self.fence(id.node, &[(id.shard, epoch, start)]);
            }
            Refusal::Diverged { .. } if self.epoch(id).0 != self.epoch(id.on(server)).0 => {
                self.trace.note(self.now, id, "diverged", server, 0);
                self.start_anew(id.node);
            }
            other => self.violate(format!("n{server} refuses to serve {id}: {other}")),
        }
    }

    /// The reader closes its stream, and will look for another server.
    fn hang_up(&mut self, id: Place) {
        let Some(pulling) = self.process(id).and_then(|p| p.pulling.take()) else { return };
        self.network.break_link(pulling.link);
        let at = self.now + self.rng.range(1, 100);
        let broken = Packet::Broken { link: pulling.link };
        self.schedule(at, id.on(pulling.server), super::world::Event::Deliver { from: 0, packet: broken });
    }

    pub(super) fn link_broken(&mut self, id: Place, link: u64) {
        self.filling_broken(id, link);
        let Some(process) = self.process(id) else { return };
        process.streams.remove(&link);
        if process.pulling.as_ref().is_some_and(|p| p.link == link) {
            process.pulling = None;
        }
    }
}
