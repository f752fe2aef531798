//! What crosses the wire between voters of the `paxos` replicator, as bytes of our own.
//!
//! A *frame* is one version byte, a [`Head`] and, in a data frame, a part of a message. A [`Message`] larger than
//! [`PART_BYTES`] takes several frames. Sender and receiver are not in it: the driver's envelope names them and has proved
//! them; inside a configuration they are the places of the voters, from 1.
//!
//! Beside what OmniPaxos wants to say, every data frame carries how far its sender has applied and what it has promised.
//! OmniPaxos's sequence numbers are not sent: the session orders the frames, and the receiver numbers for its library.
//! Its positions are each replica's own (they count from where it has come into the configuration): what is sent are
//! indexes of the log.
//! Its forwarded proposals, snapshots and trims have no message: they never leave a replica.

use bytes::Bytes;
use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message as LibraryMessage;
use omnipaxos::messages::ballot_leader_election::{BLEMessage, HeartbeatMsg, HeartbeatReply, HeartbeatRequest};
use omnipaxos::messages::sequence_paxos::{
    AcceptDecide, AcceptStopSign, AcceptSync, Accepted, Decide, NotAccepted, PaxosMessage, PaxosMsg, Prepare,
    PrepareReq, Promise,
};
use omnipaxos::storage::StopSign;
use omnipaxos::util::LogSync;
use omnipaxos::{ClusterConfig, util::NodeId as Pid};
use quorate_shared::ids::{Index, Term};
use serde::{Deserialize, Serialize};

use super::storage::{Item, ballot, round};
use crate::log::Round;
use crate::membership::ChangeEntry;

/// The version written; a frame of another is dropped and counted.
const VERSION: u8 = 1;
/// Bytes of a message in one frame.
pub(super) const PART_BYTES: usize = 4 << 20;
/// Bytes of a message in all its frames: a promise with everything a new leader lacks may be large.
pub(super) const MESSAGE_BYTES_MAX: usize = 768 << 20;

/// What a frame begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    /// The sender's configuration.
    pub(super) configuration: u32,
    pub(super) kind: FrameKind,
}

/// What a frame is. `mine` and `theirs` are the nonces of the session, as the sender sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum FrameKind {
    /// Opens a session; `theirs` is 0 if it is not known.
    Hello { mine: u64, theirs: u64 },
    /// A message, or a part of one that goes on in the next frame.
    Data { mine: u64, theirs: u64, seq: u64, applied: Index, promised: Round, more: bool },
    /// Outside of sessions: the receiver cannot be synchronized. The sender's log begins behind `base`, whose entry was of
    /// `term`, and is decided up to `decided`.
    Behind { base: Index, term: Term, decided: Index },
    /// Outside of sessions: the sender wants what is decided behind an index.
    Lacking { after: Index },
    /// Outside of sessions: entries that are decided, following an index.
    Decided { after: Index },
}

/// Entries behind a position, and the stop sign behind them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Sync {
    pub(super) at: u64,
    pub(super) entries: Vec<Item>,
    pub(super) stop: Option<Stop>,
}

/// A stop sign.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Stop {
    pub(super) configuration: u32,
    pub(super) voters: u32,
    pub(super) metadata: Vec<u8>,
}

/// A message; numbered for ever by position.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Nothing: says that the sender is there, how far it is and what it promised.
    Beat,
    /// "Prepare me": the sender may have missed something.
    PrepareRequest {
        n: Round,
    },
    Prepare {
        n: Round,
        decided: u64,
        n_accepted: Round,
        accepted: u64,
    },
    Promise {
        n: Round,
        n_accepted: Round,
        decided: u64,
        accepted: u64,
        sync: Option<Sync>,
    },
    AcceptSync {
        n: Round,
        decided: u64,
        sync: Sync,
    },
    /// Entries behind exactly this position.
    Accept {
        n: Round,
        decided: u64,
        at: u64,
        entries: Vec<Item>,
    },
    Accepted {
        n: Round,
        accepted: u64,
    },
    NotAccepted {
        n: Round,
    },
    Decide {
        n: Round,
        decided: u64,
    },
    AcceptStop {
        n: Round,
        at: u64,
        stop: Stop,
    },
    /// A round of the election.
    Heartbeat {
        round: u32,
    },
    HeartbeatReply {
        round: u32,
        ballot: Round,
        leader: Round,
        happy: bool,
    },
    /// "Is this what you have promised?" Asked for reads.
    Confirm {
        n: Round,
        context: u64,
    },
    /// "Yes."
    Confirmed {
        n: Round,
        context: u64,
    },
    /// "Lead": a leader hands over.
    Lead {
        n: Round,
    },
}

/// The bytes of a frame without data.
pub(super) fn encode_hello(configuration: u32, mine: u64, theirs: u64) -> Bytes {
    let head = Head { configuration, kind: FrameKind::Hello { mine, theirs } };
    // Serializing into a vector cannot fail; if it ever does, the frame is lost as on a bad network.
    postcard::to_extend(&head, vec![VERSION]).map(Bytes::from).unwrap_or_default()
}

/// A frame outside of sessions.
pub(super) fn encode_outside(configuration: u32, kind: FrameKind, items: &[Item]) -> Bytes {
    let head = Head { configuration, kind };
    let frame = postcard::to_extend(&head, vec![VERSION]);
    let frame = match kind {
        FrameKind::Decided { .. } => frame.and_then(|frame| postcard::to_extend(items, frame)),
        _ => frame,
    };
    // As above.
    frame.map(Bytes::from).unwrap_or_default()
}

/// The entries of a frame outside of sessions.
pub(super) fn decode_items(bytes: &[u8]) -> Option<Vec<Item>> {
    match postcard::take_from_bytes(bytes) {
        Ok((items, [])) => Some(items),
        _ => None,
    }
}

/// The frames of a message. `head` makes each one's head: whether more follow.
pub(super) fn encode(message: &Message, mut head: impl FnMut(bool) -> Head) -> Vec<Bytes> {
    let hint = message.size_hint();
    if hint <= PART_BYTES {
        let mut out = Vec::with_capacity(hint + 96);
        out.push(VERSION);
        let bytes = postcard::to_extend(&head(false), out).and_then(|out| postcard::to_extend(message, out));
        return bytes.map(Bytes::from).into_iter().collect();
    }
    let whole = postcard::to_extend(message, Vec::with_capacity(hint)).unwrap_or_default();
    let mut parts = whole.chunks(PART_BYTES).peekable();
    let mut out = Vec::new();
    while let Some(part) = parts.next() {
        let mut frame = Vec::with_capacity(part.len() + 96);
        frame.push(VERSION);
        let mut frame = postcard::to_extend(&head(parts.peek().is_some()), frame).unwrap_or_default();
        frame.extend_from_slice(part);
        out.push(Bytes::from(frame));
    }
    out
}

/// A frame's head and what follows it. `None`: not ours, or damaged.
pub(super) fn decode_head(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let (&version, rest) = bytes.split_first()?;
    if version != VERSION {
        return None;
    }
    let (head, rest): (Head, _) = postcard::take_from_bytes(rest).ok()?;
    let data = matches!(head.kind, FrameKind::Data { .. } | FrameKind::Decided { .. });
    (data || rest.is_empty()).then_some((head, rest))
}

/// A whole message.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Some(message),
        _ => None,
    }
}

impl Message {
    /// With indexes instead of positions, for the wire.
    pub(super) fn into_indexes(mut self, begins: Index) -> Self {
        self.each_position(|position| position.saturating_add(begins.get()));
        self
    }

    /// With positions instead of indexes. `None`: it needs what this replica has no position for, because it came into
    /// the configuration later.
    pub(super) fn into_positions(mut self, begins: Index) -> Option<Self> {
        let begins = begins.get();
        let known = match &mut self {
            Message::Prepare { decided, .. } => *decided >= begins,
            Message::Promise { decided, sync, .. } => {
                *decided >= begins && sync.as_mut().is_none_or(|sync| sync.begin_at(begins))
            }
            Message::AcceptSync { sync, .. } => sync.begin_at(begins),
            Message::Accept { at, .. } | Message::AcceptStop { at, .. } => *at >= begins,
            _ => true,
        };
        self.each_position(|index| index.saturating_sub(begins));
        known.then_some(self)
    }

    fn each_position(&mut self, f: impl Fn(u64) -> u64) {
        let change = |n: &mut u64| *n = f(*n);
        match self {
            Message::Prepare { decided, accepted, .. } => {
                change(decided);
                change(accepted);
            }
            Message::Promise { decided, accepted, sync, .. } => {
                change(decided);
                change(accepted);
                sync.iter_mut().for_each(|sync| change(&mut sync.at));
            }
            Message::AcceptSync { decided, sync, .. } => {
                change(decided);
                change(&mut sync.at);
            }
            Message::Accept { decided, at, .. } => {
                change(decided);
                change(at);
            }
            Message::Accepted { accepted: position, .. }
            | Message::Decide { decided: position, .. }
            | Message::AcceptStop { at: position, .. } => change(position),
            _ => {}
        }
    }

    /// The stop sign in it.
    pub(super) fn stop(&self) -> Option<&Stop> {
        match self {
            Message::Promise { sync, .. } => sync.as_ref()?.stop.as_ref(),
            Message::AcceptSync { sync, .. } => sync.stop.as_ref(),
            Message::AcceptStop { stop, .. } => Some(stop),
            _ => None,
        }
    }

    fn entries(&self) -> &[Item] {
        match self {
            Message::Promise { sync: Some(sync), .. } | Message::AcceptSync { sync, .. } => &sync.entries,
            Message::Accept { entries, .. } => entries,
            _ => &[],
        }
    }

    fn size_hint(&self) -> usize {
        64 + self.entries().iter().map(|e| e.bytes.len() + 16).sum::<usize>()
    }

    /// What the library says, as a message. `None`: of a kind that never leaves this replica. `len` is the number of
    /// entries in the log now: what is to be accepted is its end.
    pub(super) fn of(message: LibraryMessage<Item>, len: usize) -> Option<(Pid, Message)> {
        let (to, message) = match message {
            LibraryMessage::BLE(BLEMessage { to, msg, .. }) => (to, of_election(&msg)),
            LibraryMessage::SequencePaxos(PaxosMessage { to, msg, .. }) => (to, of_paxos(msg, len)?),
        };
        Some((to, message))
    }

    /// As the library wants it. `counter` is the number in the leader's sequence; `None`: it is not for the library.
    pub(super) fn library(self, configuration: u32, from: Pid, to: Pid, counter: u64) -> Option<LibraryMessage<Item>> {
        let b = |round| ballot(configuration, round);
        let position = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let seq = (1u64, counter);
        let msg = match self {
            Message::Heartbeat { round } => {
                let msg = HeartbeatMsg::Request(HeartbeatRequest { round });
                return Some(LibraryMessage::BLE(BLEMessage { from, to, msg }));
            }
            Message::HeartbeatReply { round, ballot, leader, happy } => {
                let reply = HeartbeatReply { round, ballot: in_round(configuration, ballot), leader: b(leader), happy };
                return Some(LibraryMessage::BLE(BLEMessage { from, to, msg: HeartbeatMsg::Reply(reply) }));
            }
            Message::PrepareRequest { n } => PaxosMsg::PrepareReq(PrepareReq { n: b(n) }),
            Message::Prepare { n, decided, n_accepted, accepted } => PaxosMsg::Prepare(Prepare {
                n: b(n),
                decided_idx: position(decided),
                n_accepted: b(n_accepted),
                accepted_idx: position(accepted),
            }),
            Message::Promise { n, n_accepted, decided, accepted, sync } => PaxosMsg::Promise(Promise {
                n: b(n),
                n_accepted: b(n_accepted),
                decided_idx: position(decided),
                accepted_idx: position(accepted),
                log_sync: sync.map(Sync::library),
            }),
            Message::AcceptSync { n, decided, sync } => {
                let empty = Sync { at: 0, entries: Vec::new(), stop: None };
                let like: AcceptSync<Item> = like(&(b(n), seq, position(decided), empty.library()))?;
                PaxosMsg::AcceptSync(AcceptSync { log_sync: sync.library(), ..like })
            }
            Message::Accept { n, decided, entries, .. } => {
                let like: AcceptDecide<Item> = like(&(b(n), seq, position(decided), Vec::<Item>::new()))?;
                PaxosMsg::AcceptDecide(AcceptDecide { entries, ..like })
            }
            Message::Accepted { n, accepted } => {
                PaxosMsg::Accepted(Accepted { n: b(n), accepted_idx: position(accepted) })
            }
            Message::NotAccepted { n } => PaxosMsg::NotAccepted(NotAccepted { n: b(n) }),
            Message::Decide { n, decided } => {
                let decide: Decide = like(&(b(n), seq, position(decided)))?;
                PaxosMsg::Decide(decide)
            }
            Message::AcceptStop { n, stop, .. } => {
                let accept: AcceptStopSign = like(&(b(n), seq, stop.library()))?;
                PaxosMsg::AcceptStopSign(accept)
            }
            Message::Beat | Message::Confirm { .. } | Message::Confirmed { .. } | Message::Lead { .. } => return None,
        };
        Some(LibraryMessage::SequencePaxos(PaxosMessage { from, to, msg }))
    }
}

/// A ballot that was never a promise is one too: the library's number of a replica that has come back is 0.
fn in_round(configuration: u32, round: Round) -> Ballot {
    Ballot::with(configuration, round.number, 0, u64::from(round.proposer))
}

/// The library's sequence number has a type that cannot be named: such messages are made from bytes.
fn like<T: for<'a> Deserialize<'a>>(parts: &impl Serialize) -> Option<T> {
    let bytes = postcard::to_stdvec(parts).ok()?;
    postcard::from_bytes(&bytes).ok()
}

fn of_election(msg: &HeartbeatMsg) -> Message {
    match *msg {
        HeartbeatMsg::Request(HeartbeatRequest { round }) => Message::Heartbeat { round },
        HeartbeatMsg::Reply(HeartbeatReply { round: number, ballot, leader, happy }) => {
            Message::HeartbeatReply { round: number, ballot: round(ballot), leader: round(leader), happy }
        }
    }
}

fn of_paxos(msg: PaxosMsg<Item>, len: usize) -> Option<Message> {
    Some(match msg {
        PaxosMsg::PrepareReq(PrepareReq { n }) => Message::PrepareRequest { n: round(n) },
        PaxosMsg::Prepare(Prepare { n, decided_idx, n_accepted, accepted_idx }) => Message::Prepare {
            n: round(n),
            decided: decided_idx as u64,
            n_accepted: round(n_accepted),
            accepted: accepted_idx as u64,
        },
        PaxosMsg::Promise(Promise { n, n_accepted, decided_idx, accepted_idx, log_sync }) => Message::Promise {
            n: round(n),
            n_accepted: round(n_accepted),
            decided: decided_idx as u64,
            accepted: accepted_idx as u64,
            sync: log_sync.map(|sync| Sync::of(sync, len)),
        },
        PaxosMsg::AcceptSync(AcceptSync { n, decided_idx, log_sync, .. }) => {
            Message::AcceptSync { n: round(n), decided: decided_idx as u64, sync: Sync::of(log_sync, len) }
        }
        PaxosMsg::AcceptDecide(AcceptDecide { n, decided_idx, entries, .. }) => {
            let at = len.saturating_sub(entries.len()) as u64;
            Message::Accept { n: round(n), decided: decided_idx as u64, at, entries }
        }
        PaxosMsg::Accepted(Accepted { n, accepted_idx }) => {
            Message::Accepted { n: round(n), accepted: accepted_idx as u64 }
        }
        PaxosMsg::NotAccepted(NotAccepted { n }) => Message::NotAccepted { n: round(n) },
        PaxosMsg::Decide(Decide { n, decided_idx, .. }) => Message::Decide { n: round(n), decided: decided_idx as u64 },
        PaxosMsg::AcceptStopSign(AcceptStopSign { n, ss, .. }) => {
            Message::AcceptStop { n: round(n), at: len as u64, stop: Stop::of(&ss) }
        }
        PaxosMsg::ProposalForward(_) | PaxosMsg::Compaction(_) | PaxosMsg::ForwardStopSign(_) => return None,
    })
}

impl Sync {
    /// The library counts a stop sign that both sides have as an entry before `at`, and the stop sign once more: it is
    /// always behind the `len` entries of the log.
    fn of(sync: LogSync<Item>, len: usize) -> Self {
        Sync { at: sync.sync_idx.min(len) as u64, entries: sync.suffix, stop: sync.stopsign.as_ref().map(Stop::of) }
    }

    fn library(self) -> LogSync<Item> {
        LogSync {
            decided_snapshot: None,
            suffix: self.entries,
            sync_idx: usize::try_from(self.at).unwrap_or(usize::MAX),
            stopsign: self.stop.map(Stop::library),
        }
    }

    /// The position behind everything in it.
    pub(super) fn end(&self) -> u64 {
        (self.at + self.entries.len() as u64).saturating_add(u64::from(self.stop.is_some()))
    }

    /// Without what is before a position. `false`: it ends before it.
    pub(super) fn begin_at(&mut self, position: u64) -> bool {
        let skip = position.saturating_sub(self.at);
        if skip > self.entries.len() as u64 {
            return false;
        }
        self.entries.drain(..skip as usize);
        self.at += skip;
        true
    }
}

impl Stop {
    pub(super) fn of(stop: &StopSign) -> Self {
        Stop {
            configuration: stop.next_config.configuration_id,
            voters: stop.next_config.nodes.len() as u32,
            metadata: stop.metadata.clone().unwrap_or_default(),
        }
    }

    /// Whether it says what is to follow: the entry of a change of the membership, and its term before it.
    pub(super) fn is_sound(&self) -> bool {
        let entry = self.metadata.get(8..).map(|bytes| ChangeEntry::decode(&Bytes::copy_from_slice(bytes)));
        let Some(Ok(entry)) = entry else { return false };
        entry.after.voters.len() == self.voters as usize && (2..=super::VOTERS_MAX).contains(&u64::from(self.voters))
    }

    pub(super) fn library(self) -> StopSign {
        let nodes = (1..=u64::from(self.voters).min(super::VOTERS_MAX)).collect();
        let config = ClusterConfig { configuration_id: self.configuration, nodes, flexible_quorum: None };
        StopSign::with(config, Some(self.metadata))
    }
}
