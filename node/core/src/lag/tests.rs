//! What is stated of a member, against a protocol that stands still.

use bytes::Bytes;

use super::*;
use crate::error::Fatal;
use crate::log::memory::MemoryLog;
use crate::replica::{Capabilities, Leadership, Output, PersistId};

/// A leader confirmed at every time, whose commit index is this.
struct Still(u64);

impl Replicator for Still {
    fn receive(&mut self, _: Now, _: ReplicaId, _: &[u8]) -> Result<(), Fatal> {
        Ok(())
    }
    fn tick(&mut self, _: Now) -> Result<(), Fatal> {
        Ok(())
    }
    fn append(&mut self, _: Now, _: Vec<Bytes>) -> Result<bool, Fatal> {
        Ok(false)
    }
    fn read_index(&mut self, _: Now, _: u64) -> Result<bool, Fatal> {
        Ok(false)
    }
    fn disconnected(&mut self, _: Now, _: ReplicaId) -> Result<(), Fatal> {
        Ok(())
    }
    fn persisted(&mut self, _: Now, _: PersistId) -> Result<(), Fatal> {
        Ok(())
    }
    fn applied(&mut self, _: Index) -> Result<(), Fatal> {
        Ok(())
    }
    fn transfer(&mut self, _: Now, _: Option<ReplicaId>) -> Result<(), Fatal> {
        Ok(())
    }
    fn transferring(&self) -> bool {
        false
    }
    fn output(&mut self, _: Now) -> Result<Output, Fatal> {
        Ok(Output::default())
    }
    fn next_wake(&self) -> Now {
        0
    }
    fn leadership(&self) -> Leadership {
        Leadership { leader: Some(ReplicaId::new(1)), is_leader: true, ..Leadership::default() }
    }
    fn confirmed(&self, _: Now) -> bool {
        true
    }
    fn last_index(&self) -> Index {
        Index::new(self.0)
    }
    fn durable_index(&self) -> Index {
        Index::new(self.0)
    }
    fn writes_pending(&self) -> usize {
        0
    }
    fn commit_index(&self) -> Index {
        Index::new(self.0)
    }
    fn progress(&self, _: Now) -> Vec<Progress> {
        Vec::new()
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_index: true, transfer: true, learners: true }
    }
    fn dropped(&self) -> u64 {
        0
    }
}

fn lag(now: Now) -> Lag {
    Lag::new(Timing::default(), now)
}

/// Entries up to `last` of eight bytes each, from the one after `after`.
fn entries(after: u64, last: u64) -> Vec<LogEntry> {
    let entry = |index| LogEntry {
        index: Index::new(index),
        term: quorate_shared::ids::Term::new(1),
        payload: Payload::Empty,
        bytes: Bytes::from_static(b"12345678"),
    };
    (after + 1..=last).map(entry).collect()
}

/// n4 has applied so much.
fn reported(lag: &mut Lag, now: Now, applied: u64) {
    let index = Index::new(applied);
    let (node, kind) = (NodeId::new(4), NodeKind::Replica);
    lag.report(now, ReaderReport { node, kind, sent: index, received: index, durable: index, applied: index });
}

/// What n1, leading with this commit index, says of n4, if anything.
fn said(lag: &Lag, now: Now, commit: u64, membership: &Membership) -> Option<MemberStatus> {
    let (_, reader) = MemoryLog::new();
    let subject = Subject {
        shard: ShardId::DATA,
        node: NodeId::new(1),
        membership,
        replicator: &Still(commit),
        log: &*reader,
        applied: &Applied::default(),
    };
    let mut members = lag.status(&subject, now, 0).members.into_iter().filter(|m| m.node == "n4");
    let first = members.next();
    assert_eq!(members.next(), None, "a node is one row");
    first
}

fn alone() -> Membership {
    Membership::of_voters([(ReplicaId::new(1), NodeId::new(1))])
}

#[test]
fn what_is_committed_and_not_noted_yet_is_young() {
    let mut lag = lag(0);
    lag.lead(1_000, Index::new(10));
    lag.committed(50_000, Index::new(12), &entries(10, 12));
    reported(&mut lag, 60_000, 12);
    let member = said(&lag, 60_000, 13, &alone()).unwrap();
    assert_eq!((member.lag_entries, member.lag_ms, member.lag_at_least), (Some(1), Some(1), false));
    assert_eq!(member.lag_bytes, None, "its size is not known: that is not 0");
    reported(&mut lag, 60_000, 11);
    let member = said(&lag, 60_000, 13, &alone()).unwrap();
    assert_eq!((member.lag_ms, member.lag_at_least), (Some(10_000), false), "committed at 50 s, noted then");
}

#[test]
fn what_was_there_when_the_leadership_began_is_at_least_as_old() {
    let mut lag = lag(0);
    lag.lead(1_000, Index::new(10));
    reported(&mut lag, 60_000, 9);
    let member = said(&lag, 60_000, 10, &alone()).unwrap();
    assert_eq!((member.lag_ms, member.lag_at_least), (Some(59_000), true));
}

#[test]
fn what_is_forgotten_is_at_least_as_old_as_what_is_not_and_not_as_the_leadership() {
    let mut lag = lag(0);
    lag.lead(0, Index::new(0));
    let past = 1_000_000;
    for n in 1..=MEMORY_MAX as u64 + 5 {
        lag.committed(past + n, Index::new(n), &[]);
    }
    let now = past + MEMORY_MAX as u64 + 5;
    reported(&mut lag, now, 1);
    let member = said(&lag, now, MEMORY_MAX as u64 + 5, &alone()).unwrap();
    assert_eq!((member.lag_ms, member.lag_at_least), (Some(MEMORY_MAX as u64), true));
}

#[test]
fn a_report_to_an_earlier_leadership_is_none() {
    let mut lag = lag(0);
    lag.lead(0, Index::new(10));
    reported(&mut lag, 1_000, 10);
    assert!(said(&lag, 1_000, 10, &alone()).is_some());
    lag.lead(60_000, Index::new(20));
    assert_eq!(said(&lag, 60_100, 20, &alone()), None);
    assert_eq!(lag.replicas_at(Index::new(10)), 0);
}

#[test]
fn a_member_is_no_replica_besides() {
    let mut lag = lag(0);
    lag.lead(0, Index::new(10));
    reported(&mut lag, 1_000, 10);
    let with = Membership::of_voters([1, 4].map(|id| (ReplicaId::new(id), NodeId::new(id))));
    assert_eq!(said(&lag, 30_000, 10, &with).unwrap().kind, NodeKind::Voter);
    assert_eq!(said(&lag, 30_000, 10, &alone()).unwrap().kind, NodeKind::Replica);
}

#[test]
fn whoever_is_silent_for_longest_makes_room() {
    let mut lag = lag(0);
    lag.lead(0, Index::new(0));
    for node in 0..READERS_MAX as u64 {
        let report = ReaderReport {
            node: NodeId::new(100 + node),
            kind: NodeKind::Replica,
            sent: Index::new(1),
            received: Index::new(1),
            durable: Index::new(1),
            applied: Index::new(1),
        };
        lag.report(10 + node, report);
    }
    reported(&mut lag, 1_000, 1);
    assert_eq!(lag.replicas_at(Index::new(1)), READERS_MAX as u32);
    assert!(said(&lag, 1_000, 1, &alone()).is_some());
}
