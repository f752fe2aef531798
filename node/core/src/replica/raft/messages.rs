//! Raft's messages between voters, as bytes of our own.
//!
//! One version byte, then postcard. Sender and receiver are not in it: the driver's envelope names them and has proved
//! them. Beside what raft-rs wants to say, each message carries how far its sender has applied, so that the leader knows
//! lag without another message.
//!
//! Only what may cross the wire has a [`Kind`]: raft-rs's forwarded proposals and reads have none. A snapshot crosses as a
//! marker: index and term, no data.

use bytes::Bytes;
use quorate_shared::ids::{Index, ReplicaId};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use serde::{Deserialize, Serialize};

use crate::log::{LogEntry, Payload};

/// The version written; a message of another is dropped and counted.
const VERSION: u8 = 1;

/// What a message is; numbered for ever by position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Kind {
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    RequestVote,
    RequestVoteResponse,
    RequestPreVote,
    RequestPreVoteResponse,
    TimeoutNow,
    Snapshot,
}

impl Kind {
    fn of(kind: MessageType) -> Option<Kind> {
        Some(match kind {
            MessageType::MsgAppend => Kind::Append,
            MessageType::MsgAppendResponse => Kind::AppendResponse,
            MessageType::MsgHeartbeat => Kind::Heartbeat,
            MessageType::MsgHeartbeatResponse => Kind::HeartbeatResponse,
            MessageType::MsgRequestVote => Kind::RequestVote,
            MessageType::MsgRequestVoteResponse => Kind::RequestVoteResponse,
            MessageType::MsgRequestPreVote => Kind::RequestPreVote,
            MessageType::MsgRequestPreVoteResponse => Kind::RequestPreVoteResponse,
            MessageType::MsgTimeoutNow => Kind::TimeoutNow,
            MessageType::MsgSnapshot => Kind::Snapshot,
            _ => return None,
        })
    }

    fn raft(self) -> MessageType {
        match self {
            Kind::Append => MessageType::MsgAppend,
            Kind::AppendResponse => MessageType::MsgAppendResponse,
            Kind::Heartbeat => MessageType::MsgHeartbeat,
            Kind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
            Kind::RequestVote => MessageType::MsgRequestVote,
            Kind::RequestVoteResponse => MessageType::MsgRequestVoteResponse,
            Kind::RequestPreVote => MessageType::MsgRequestPreVote,
            Kind::RequestPreVoteResponse => MessageType::MsgRequestPreVoteResponse,
            Kind::TimeoutNow => MessageType::MsgTimeoutNow,
            Kind::Snapshot => MessageType::MsgSnapshot,
        }
    }
}

/// The bytes after the version.
#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    kind: Kind,
    applied: Index,
    term: u64,
    log_term: u64,
    index: u64,
    commit: u64,
    commit_term: u64,
    reject: bool,
    reject_hint: u64,
    context: Bytes,
    entries: Vec<LogEntry>,
}

/// A decoded message: raft-rs's own, and how far its sender has applied.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) message: Message,
    pub(super) applied: Index,
}

/// The bytes of a message; `None` if it is of a kind that never leaves this replica.
pub(super) fn encode(message: Message, applied: Index) -> Option<Bytes> {
    let kind = Kind::of(message.get_msg_type())?;
    let (mut index, mut log_term) = (message.index, message.log_term);
    if kind == Kind::Snapshot {
        let point = message.get_snapshot().get_metadata();
        (index, log_term) = (point.index, point.term);
    }
    let size: usize = message.entries.iter().map(|e| e.data.len() + 32).sum();
    let wire = Wire {
        kind,
        applied,
        term: message.term,
        log_term,
        index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        entries: message.entries.iter().map(to_log).collect(),
    };
    let mut out = Vec::with_capacity(size + 96);
    out.push(VERSION);
    // Serializing into a vector cannot fail; if it ever does, the message is lost as on a bad network.
    postcard::to_extend(&wire, out).ok().map(Bytes::from)
}

/// Reads a message back. `None`: not ours, damaged, or inconsistent in itself.
pub(super) fn decode(from: ReplicaId, to: ReplicaId, bytes: &[u8]) -> Option<Decoded> {
    let (&version, rest) = bytes.split_first()?;
    if version != VERSION {
        return None;
    }
    let (wire, left): (Wire, _) = postcard::take_from_bytes(rest).ok()?;
    if !left.is_empty() || (wire.kind != Kind::Append && !wire.entries.is_empty()) {
        return None;
    }
    let mut term = wire.log_term;
    for (entry, index) in wire.entries.iter().zip(wire.index.checked_add(1)?..) {
        if entry.index.get() != index || entry.term.get() < term || entry.term.get() > wire.term {
            return None;
        }
        term = entry.term.get();
    }
    let mut message = Message::default();
    message.set_msg_type(wire.kind.raft());
    message.from = from.get();
    message.to = to.get();
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context;
    message.entries = wire.entries.iter().map(from_log).collect::<Vec<_>>().into();
    if wire.kind == Kind::Snapshot {
        let point = message.mut_snapshot().mut_metadata();
        (point.index, point.term) = (wire.index, wire.log_term);
        point.mut_conf_state().voters = vec![to.get()];
    }
    Some(Decoded { message, applied: wire.applied })
}

/// The fields before the entries.
#[cfg(any(test, feature = "planted-bugs"))]
#[derive(Deserialize)]
struct Head {
    kind: Kind,
    _applied: Index,
    term: u64,
    _log_term: u64,
    index: u64,
    _commit: u64,
    _commit_term: u64,
    reject: bool,
}

/// What a message promises.
#[cfg(any(test, feature = "planted-bugs"))]
pub(in crate::replica) fn claims(from: ReplicaId, to: ReplicaId, bytes: &[u8]) -> Option<crate::replica::Claims> {
    let (_, rest) = bytes.split_first()?;
    let (head, _): (Head, _) = postcard::take_from_bytes(rest).ok()?;
    Some(crate::replica::Claims {
        term: quorate_shared::ids::Term::new(head.term),
        speculative: matches!(head.kind, Kind::RequestPreVote | Kind::RequestPreVoteResponse),
        votes_for: match head.kind {
            Kind::RequestVote => Some(from),
            Kind::RequestVoteResponse if !head.reject => Some(to),
            _ => None,
        },
        has: (head.kind == Kind::AppendResponse && !head.reject).then(|| Index::new(head.index)),
    })
}

/// raft-rs's entry as ours. The bytes are shared, not copied.
pub(super) fn to_log(entry: &Entry) -> LogEntry {
    let payload = match entry.get_entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => Payload::Empty,
        EntryType::EntryNormal => Payload::Entry,
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => Payload::Membership,
    };
    // What raft-rs makes of a change is its own business; ours is beside it.
    let bytes = if payload == Payload::Membership { entry.context.clone() } else { entry.data.clone() };
    LogEntry { index: Index::new(entry.index), term: quorate_shared::ids::Term::new(entry.term), payload, bytes }
}

/// Our entry as raft-rs's. The bytes are shared, not copied.
pub(super) fn from_log(entry: &LogEntry) -> Entry {
    let mut out = Entry::default();
    out.set_entry_type(match entry.payload {
        Payload::Entry | Payload::Empty => EntryType::EntryNormal,
        Payload::Membership => EntryType::EntryConfChangeV2,
    });
    out.index = entry.index.get();
    out.term = entry.term.get();
    match entry.payload {
        Payload::Membership => out.context = entry.bytes.clone(),
        Payload::Entry | Payload::Empty => out.data = entry.bytes.clone(),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn append() -> Message {
        let entry = Entry { index: 8, term: 3, data: Bytes::from_static(b"abc"), ..Entry::default() };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.from = 1;
        message.to = 2;
        message.term = 3;
        message.log_term = 2;
        message.index = 7;
        message.commit = 6;
        message.entries = vec![entry].into();
        message
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode(append(), Index::new(5)).unwrap();
        assert_eq!(hex(&bytes), "010005030207060000000001080300".to_owned() + "03616263");
        let mut response = Message::default();
        response.set_msg_type(MessageType::MsgHeartbeatResponse);
        response.term = 3;
        response.commit = 6;
        response.context = Bytes::from_static(&[9]);
        assert_eq!(hex(&encode(response, Index::new(300)).unwrap()), "0103ac0203000006000000010900");
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let decoded = decode(ReplicaId::new(1), ReplicaId::new(2), &encode(append(), Index::new(5)).unwrap()).unwrap();
        assert_eq!(decoded.message, append());
        assert_eq!(decoded.applied, Index::new(5));
    }

    #[test]
    fn refuses_nonsense() {
        let (from, to) = (ReplicaId::new(1), ReplicaId::new(2));
        let good = encode(append(), Index::new(5)).unwrap();
        for len in 0..good.len() {
            assert!(decode(from, to, &good[..len]).is_none(), "cut at {len}");
        }
        let mut longer = good.to_vec();
        longer.push(0);
        assert!(decode(from, to, &longer).is_none());
        let mut gap = append();
        gap.mut_entries()[0].index = 9;
        assert!(decode(from, to, &encode(gap, Index::new(0)).unwrap()).is_none());
        let mut future = append();
        future.mut_entries()[0].term = 4;
        assert!(decode(from, to, &encode(future, Index::new(0)).unwrap()).is_none());
        let mut forwarded = Message::default();
        forwarded.set_msg_type(MessageType::MsgPropose);
        assert!(encode(forwarded, Index::new(0)).is_none());
    }
}
