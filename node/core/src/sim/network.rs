//! The network: packets between nodes and clients, weather, cuts, connections.
//!
//! Packets of the protocol are datagrams: dropped, doubled, delayed, reordered, cut one way. A shipping stream is a
//! connection: in order, and when a packet is lost on it it breaks, which both ends notice, late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Epoch, Hash, Index, ReplicaId};

use super::Rng;
use super::epochs::Epochs;
use super::filling::Part;
use super::place::Place;
use super::reads::{Level, Query, ReadResult};
use crate::error::Rejected;
use crate::lag::ReaderReport;
use crate::log::Membership;
use crate::membership::MembershipChange;
use crate::proposal::{Proposal, WriteResult};

/// Who asked, and which of its calls.
pub type Call = (u64, u64);

/// What is on the wire.
#[derive(Clone, Debug)]
pub enum Packet {
    /// Of the protocol, member to member.
    Peer { epoch: Epoch, sender: ReplicaId, receiver: ReplicaId, message: Bytes },
    /// A client's write; `planned`: the epoch of the reads it rests on; `via`: the node that forwards it, once.
    Propose { call: Call, proposal: Box<Proposal>, planned: Option<Epoch>, deadline: u64, via: Option<u64> },
    /// Its answer, and the epoch of who gives it.
    Proposed { call: Call, epoch: Epoch, result: Box<Result<WriteResult, Rejected>> },
    /// A client's read.
    Read { call: Call, level: Level, query: Box<Query>, deadline: u64 },
    /// Its answer.
    ReadDone { call: Call, result: Box<Result<ReadResult, Rejected>> },
    /// A node asks the leader for the read index.
    AskIndex { ask: u64, epoch: Epoch },
    /// The answer.
    Index { ask: u64, result: Box<Result<Index, Rejected>> },
    /// A reader to its server.
    Ship { link: u64, message: Bytes },
    /// A server to its reader.
    Shipped { link: u64, message: Bytes },
    /// A stream is broken.
    Broken { link: u64 },
    /// A log-shipped replica says how far it is.
    Report(ReaderReport),
    /// A node wants the membership changed; `via`: the node that forwards it, once.
    Change { change: MembershipChange, via: Option<u64> },
    /// A node that hears of no leader asks who the members are.
    AskMembers,
    /// The answer: as of an index.
    Members { applied: Index, chain: Hash, membership: Arc<Membership> },
    /// Which epoch is it?
    AskEpoch,
    /// Of every shard, where it began.
    Epochs(Epochs),
    /// A node wants a snapshot; of this one it has so many bytes.
    AskSnapshot { link: u64, have: Option<(String, u64)> },
    /// Of a snapshot.
    Snapshot { link: u64, part: Part },
}

/// What the network and the disks are like; milliseconds and permille.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub delay: (u64, u64),
    pub sync: (u64, u64),
    pub apply: (u64, u64),
    pub drop: u64,
    pub double: u64,
    /// Packets that come seconds late.
    pub late: u64,
    /// Shipped batches with a bit flipped on the way.
    pub corrupt: u64,
}

impl Weather {
    pub const FAIR: Weather =
        Weather { delay: (1, 1), sync: (1, 1), apply: (1, 1), drop: 0, double: 0, late: 0, corrupt: 0 };
}

/// See the module.
#[derive(Default)]
pub struct Network {
    cuts: BTreeSet<(u64, u64)>,
    /// When the last packet of a stream arrives, by stream and receiver.
    streams: BTreeMap<(u64, u64), u64>,
    broken: BTreeSet<u64>,
    links: u64,
    /// Some of what was sent as datagrams.
    sent: Vec<(Place, u64, Packet)>,
    count: u64,
}

/// Datagrams remembered.
const SENT_MAX: usize = 256;

/// What becomes of a packet on a stream.
pub enum Fate {
    /// It arrives then.
    Arrives(u64),
    /// The stream breaks; both ends notice then.
    Breaks(u64),
    Gone,
}

impl Network {
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cuts.insert((from, to));
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    pub fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub fn new_link(&mut self) -> u64 {
        self.links += 1;
        self.links
    }

    /// A datagram: when its copies arrive.
    pub fn datagram(&self, rng: &mut Rng, weather: &Weather, now: u64, from: u64, to: u64) -> [Option<u64>; 2] {
        if self.is_cut(from, to) || (weather.drop > 0 && rng.chance(weather.drop)) {
            return [None; 2];
        }
        let (min, max) = weather.delay;
        let late = if weather.late > 0 && rng.chance(weather.late) { rng.range(200, 3_000) } else { 0 };
        let first = now + rng.range(min, max) + late;
        let second = (weather.double > 0 && rng.chance(weather.double)).then(|| now + rng.range(min, max * 2));
        [Some(first), second]
    }

    /// A packet on a stream.
    pub fn stream(&mut self, rng: &mut Rng, weather: &Weather, now: u64, link: u64, (from, to): (u64, u64)) -> Fate {
        if self.broken.contains(&link) {
            return Fate::Gone;
        }
        if self.is_cut(from, to) || (weather.drop > 0 && rng.chance(weather.drop / 8)) {
            self.broken.insert(link);
            return Fate::Breaks(now + rng.range(50, 800));
        }
        let at = now + rng.range(weather.delay.0, weather.delay.1);
        let last = self.streams.entry((link, to)).or_default();
        *last = at.max(*last);
        Fate::Arrives(*last)
    }

    /// A packet on the connection of two voters, for a protocol that wants one: in order, and a loss that the connection
    /// cannot mend ends it, which both notice.
    pub fn session(&mut self, rng: &mut Rng, weather: &Weather, now: u64, (from, to): (Place, u64)) -> Fate {
        if self.is_cut(from.node, to) {
            return Fate::Gone;
        }
        let arrives = now + rng.range(weather.delay.0, weather.delay.1);
        if weather.drop > 0 && rng.chance(weather.drop / 20) {
            return Fate::Breaks(arrives);
        }
        let ends = from.shard.get() << 48 | from.node << 24 | to;
        let last = self.streams.entry((0, ends)).or_default();
        *last = arrives.max(*last);
        Fate::Arrives(*last)
    }

    /// Remembers a datagram, so that it can come again much later.
    pub fn remember(&mut self, from: Place, to: u64, packet: &Packet) {
        self.count += 1;
        if self.sent.len() < SENT_MAX {
            self.sent.push((from, to, packet.clone()));
        } else if self.count.is_multiple_of(3) {
            // Each place is filled anew at its own pace: some are recent, some are of long ago.
            let mixed = self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let at = (mixed % SENT_MAX as u64) * (mixed >> 8 & 0xff) / 0xff;
            self.sent[at as usize] = (from, to, packet.clone());
        }
    }

    /// One of those.
    pub fn old(&mut self, rng: &mut Rng) -> Option<(Place, u64, Packet)> {
        self.sent.get(rng.below(self.sent.len())).cloned()
    }

    /// An end is gone.
    pub fn break_link(&mut self, link: u64) -> bool {
        self.streams.retain(|(l, _), _| *l != link);
        self.broken.insert(link)
    }
}
