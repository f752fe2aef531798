//! What the wrapper adds to the library: refusals at the start, refusals of messages, holding, and completions in order.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_shared::ids::{Epoch, NodeId};

use super::*;
use crate::log::{BaseRecord, Payload};
use crate::replica::APPLY_WINDOW_BYTES;
use crate::sim::records::Disk;

const SHARD: ShardId = ShardId::DATA;

fn base() -> BaseRecord {
    BaseRecord::founding(
        SHARD,
        Membership::of_voters((1..=3).map(|n| (ReplicaId::new(n), NodeId::new(n)))),
        Epoch::default(),
    )
}

fn config(applied: u64) -> Config {
    Config {
        shard: SHARD,
        replica: ReplicaId::new(2),
        membership: Arc::new(base().membership),
        applied: Index::new(applied),
        seed: 1,
        timing: Timing::default(),
    }
}

/// A replica with its disk; writes are done when a test says so.
struct Bench {
    disk: Arc<Disk>,
    raft: RaftReplicator,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        let disk = Arc::new(Disk::new(base()));
        let raft = RaftReplicator::new(&config(0), Arc::clone(&disk) as Arc<dyn LogReader>, 0).unwrap();
        Bench { disk, raft, now: 0 }
    }

    fn receive(&mut self, from: u64, message: Message) -> Result<(), Fatal> {
        let bytes = messages::encode(message, Index::new(0)).unwrap();
        self.raft.receive(self.now, ReplicaId::new(from), &bytes)
    }

    /// Takes the output; what is to be persisted is written, not synced.
    fn output(&mut self) -> Output {
        let output = self.raft.output(self.now).unwrap();
        if let Some((_, records)) = &output.persist {
            self.disk.write(records);
        }
        output
    }

    /// Takes the output and finishes its write.
    fn settle(&mut self) {
        if let Some((id, records)) = self.output().persist {
            self.disk.sync(records.len());
            self.raft.persisted(self.now, id).unwrap();
        }
    }

    fn kinds(&self, output: &Output) -> Vec<(u64, MessageType)> {
        let decode = |bytes: &Bytes| messages::decode(ReplicaId::new(2), ReplicaId::new(1), bytes).unwrap().message;
        output.sends.iter().map(|(to, bytes)| (to.get(), decode(bytes).get_msg_type())).collect()
    }
}

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.term = term;
    message
}

fn append(term: u64, after: (u64, u64), terms: &[u64]) -> Message {
    let mut out = message(MessageType::MsgAppend, term);
    (out.index, out.log_term) = after;
    let entry = |(n, term): (usize, &u64)| {
        let data = Bytes::from(format!("{term}"));
        Entry { index: after.0 + 1 + n as u64, term: *term, data, ..Entry::default() }
    };
    out.entries = terms.iter().enumerate().map(entry).collect::<Vec<_>>().into();
    out
}

#[test]
fn a_lost_log_is_noticed_at_the_start() {
    let open = |config: &Config| {
        let disk: Arc<dyn LogReader> = Arc::new(Disk::new(base()));
        RaftReplicator::new(config, disk, 0).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(open(&config(5)), "open s1: its log is lost: applied 5, but the log ends at 0");
    let stranger = Config { replica: ReplicaId::new(9), ..config(0) };
    assert_eq!(open(&stranger), "open s1: r9 is not a member: [r1, r2, r3]");
    let timing = Timing { heartbeat: 900, ..Timing::default() };
    assert!(open(&Config { timing, ..config(0) }).contains("timing makes no sense"));
}

#[test]
fn a_lost_log_is_noticed_by_what_the_leader_knows() {
    let mut bench = Bench::new();
    let mut heartbeat = message(MessageType::MsgHeartbeat, 3);
    heartbeat.commit = 7;
    let fatal = bench.receive(1, heartbeat).unwrap_err().to_string();
    assert_eq!(fatal, "follow in s1: its log is lost: the leader knows 7 to be in it, but it ends at 0");
}

#[test]
fn what_depends_on_a_write_waits_for_it() {
    let mut bench = Bench::new();
    // A new term: even the heartbeat's answer waits.
    bench.receive(1, message(MessageType::MsgHeartbeat, 1)).unwrap();
    let output = bench.output();
    let (term, records) = output.persist.unwrap();
    assert!(matches!(records[..], [LogRecord::Hard(HardState { .. })]));
    assert_eq!(output.sends, vec![]);
    bench.raft.persisted(0, term).unwrap();
    let output = bench.output();
    assert_eq!(bench.kinds(&output), [(1, MessageType::MsgHeartbeatResponse)]);
    // Entries: their acknowledgement waits, a heartbeat's answer does not.
    bench.receive(1, append(1, (0, 0), &[1, 1])).unwrap();
    bench.receive(1, message(MessageType::MsgHeartbeat, 1)).unwrap();
    let output = bench.output();
    let (entries, _) = output.persist.as_ref().map(|(id, r)| (*id, r.len())).unwrap();
    assert_eq!(bench.kinds(&output), [(1, MessageType::MsgHeartbeatResponse)]);
    bench.raft.persisted(0, entries).unwrap();
    let output = bench.output();
    assert_eq!(bench.kinds(&output), [(1, MessageType::MsgAppendResponse)]);
    assert_eq!(bench.raft.durable_index(), Index::new(2));
}

#[test]
fn a_vote_waits_for_the_disk() {
    let mut bench = Bench::new();
    let mut vote = message(MessageType::MsgRequestVote, 2);
    vote.index = 5;
    vote.log_term = 1;
    bench.receive(3, vote).unwrap();
    let output = bench.output();
    assert_eq!(output.sends, vec![]);
    let (id, records) = output.persist.unwrap();
    let hard = HardState { term: Term::new(2), vote: ReplicaId::new(3), commit: Index::new(0) };
    assert_eq!(records, [LogRecord::Hard(hard)]);
    bench.raft.persisted(0, id).unwrap();
    let output = bench.output();
    assert_eq!(bench.kinds(&output), [(3, MessageType::MsgRequestVoteResponse)]);
}

/// The same entry, written, replaced and written again: the completion of the first write says nothing about the third.
#[test]
fn a_completion_from_before_a_truncation_counts_for_nothing() {
    let mut bench = Bench::new();
    bench.receive(1, append(1, (0, 0), &[1])).unwrap();
    let first = bench.output().persist.unwrap();
    bench.receive(3, append(2, (0, 0), &[2])).unwrap();
    let second = bench.output().persist.unwrap();
    assert!(matches!(second.1[0], LogRecord::Truncate(i) if i == Index::new(1)));
    // A leader of term 3 that has the first entry.
    let mut third = append(3, (0, 0), &[1]);
    third.commit = 1;
    bench.receive(1, third).unwrap();
    let third = bench.output().persist.unwrap();
    assert!(matches!(third.1[0], LogRecord::Truncate(_)));
    bench.raft.persisted(0, first.0).unwrap();
    assert_eq!(bench.raft.durable_index(), Index::new(0));
    assert_eq!(bench.output().committed, vec![], "entry 1 is not durable");
    bench.raft.persisted(0, second.0).unwrap();
    assert_eq!(bench.output().committed, vec![]);
    bench.raft.persisted(0, third.0).unwrap();
    assert_eq!(bench.raft.durable_index(), Index::new(1));
    assert_eq!(bench.output().committed.len(), 1);
}

#[test]
fn a_slow_applier_gets_no_more_than_the_window() {
    let mut bench = Bench::new();
    let mut big = append(1, (0, 0), &[1; 40]);
    big.mut_entries().iter_mut().for_each(|e| e.data = Bytes::from(vec![7; 1 << 20]));
    big.commit = 40;
    bench.receive(1, big).unwrap();
    let output = bench.output();
    bench.raft.persisted(0, output.persist.unwrap().0).unwrap();
    let mut seen = 0;
    loop {
        let committed = bench.output().committed;
        let Some(last) = committed.last() else { break };
        let bytes: usize = committed.iter().map(|e| e.bytes.len()).sum();
        assert!(bytes <= APPLY_WINDOW_BYTES + (2 << 20), "{bytes} at once");
        assert_eq!(bench.output().committed, vec![], "the window is full");
        seen += committed.len();
        bench.raft.applied(last.index).unwrap();
    }
    assert_eq!(seen, 40);
}

#[test]
fn strangers_and_nonsense_are_dropped_and_counted() {
    let mut bench = Bench::new();
    let good = messages::encode(message(MessageType::MsgHeartbeat, 1), Index::new(0)).unwrap();
    bench.raft.receive(0, ReplicaId::new(2), &good).unwrap();
    bench.raft.receive(0, ReplicaId::new(1), b"").unwrap();
    bench.raft.receive(0, ReplicaId::new(1), b"\x01\xff\xff").unwrap();
    assert_eq!(bench.raft.dropped(), 3);
    assert_eq!(bench.raft.leadership(), Leadership::default());
    // One that was named since what is applied here may lead.
    bench.raft.receive(0, ReplicaId::new(9), &good).unwrap();
    assert_eq!(bench.raft.leadership().leader, Some(ReplicaId::new(9)));
}

/// The library would panic: what the applier says was never committed. This replica stops, the process does not.
#[test]
fn a_panic_of_the_library_is_fatal_for_the_replica_only() {
    let mut bench = Bench::new();
    let fatal = bench.raft.applied(Index::new(7)).unwrap_err().to_string();
    assert!(fatal.starts_with("note what is applied of s1: the raft library: applied(7) is out of range"), "{fatal}");
}

/// A leader whose other voters have nothing of its log.
#[test]
fn a_follower_far_behind_is_read_for_in_steps() {
    let mut bench = Bench::new();
    let big = |n| LogEntry {
        index: Index::new(n),
        term: Term::new(1),
        payload: Payload::Entry,
        bytes: Bytes::from(vec![7; 1 << 20]),
    };
    bench.disk.write(&[LogRecord::Entries((1..=40).map(big).collect())]);
    bench.disk.sync(1);
    let log = Arc::clone(&bench.disk) as Arc<dyn LogReader>;
    bench.raft = RaftReplicator::new(&config(40), log, 0).unwrap();
    let mut asked = false;
    while !bench.raft.is_leader() {
        bench.now += 25;
        bench.raft.tick(bench.now).unwrap();
        let output = bench.output();
        if let Some((id, records)) = output.persist {
            bench.disk.sync(records.len());
            bench.raft.persisted(bench.now, id).unwrap();
        }
        let (kind, term) =
            if asked { (MessageType::MsgRequestVoteResponse, 1) } else { (MessageType::MsgRequestPreVoteResponse, 1) };
        bench.receive(3, message(kind, term)).unwrap();
        asked = bench.raft.term() == 1;
        assert!(bench.now < 10_000);
    }
    let mut answer = message(MessageType::MsgAppendResponse, 1);
    (answer.reject, answer.index, answer.reject_hint) = (true, 40, 0);
    let mut have = 0;
    for _ in 0..200 {
        bench.receive(3, answer.clone()).unwrap();
        let output = bench.output();
        let mut bytes = 0;
        for (_, message) in output.sends.iter().filter(|(to, _)| *to == ReplicaId::new(3)) {
            bytes += message.len();
            let message = messages::decode(ReplicaId::new(2), ReplicaId::new(3), message).unwrap().message;
            have = message.entries.last().map_or(have, |e| e.index.max(have));
        }
        assert!(bytes <= 6 << 20, "{bytes} at once");
        answer = message(MessageType::MsgAppendResponse, 1);
        answer.index = have;
    }
    assert_eq!(have, 41, "with the leader's own first entry");
}

fn any_message() -> impl Strategy<Value = (u64, Message)> {
    let kinds = prop::sample::select(vec![
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgTimeoutNow,
    ]);
    let number = || prop_oneof![0u64..6, Just(u64::MAX), any::<u64>()];
    let numbers = (0u64..5, number(), number(), number(), number(), number());
    (1u64..4, kinds, numbers, any::<bool>(), prop::collection::vec(0u64..5, 0..4)).prop_map(
        |(from, kind, (term, log_term, index, commit, commit_term, hint), reject, terms)| {
            let mut out = append(term, (index.min(u64::MAX - 8), log_term), &terms);
            out.set_msg_type(kind);
            (out.commit, out.commit_term, out.reject, out.reject_hint) = (commit, commit_term, reject, hint);
            if kind != MessageType::MsgAppend {
                out.entries.clear();
            }
            (from, out)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a peer says: an error at worst, and nothing applied that is not durable.
    #[test]
    fn no_message_panics(messages in prop::collection::vec(any_message(), 1..40)) {
        let mut bench = Bench::new();
        for (from, message) in messages {
            bench.now += 10;
            let step = bench.receive(from, message).and_then(|()| bench.raft.tick(bench.now));
            let Ok(output) = step.and_then(|()| bench.raft.output(bench.now)) else { return Ok(()) };
            if let Some((id, records)) = output.persist {
                bench.disk.write(&records);
                bench.disk.sync(records.len());
                if bench.raft.persisted(bench.now, id).is_err() {
                    return Ok(());
                }
            }
            if let Some(last) = output.committed.last() {
                prop_assert!(last.index.get() <= bench.disk.durable_last());
            }
        }
    }
}

fn marker(term: u64, point: (u64, u64)) -> Message {
    let mut out = message(MessageType::MsgSnapshot, term);
    let at = out.mut_snapshot().mut_metadata();
    (at.index, at.term) = point;
    at.mut_conf_state().voters = vec![1, 2, 3];
    out
}

#[test]
fn a_marker_of_what_is_missing_asks_for_a_snapshot_and_of_what_is_there_is_acknowledged() {
    let mut b = Bench::new();
    b.receive(1, append(1, (0, 0), &[1, 1, 1])).unwrap();
    b.settle();
    b.output();
    b.receive(1, marker(1, (9, 1))).unwrap();
    let output = b.output();
    assert_eq!((output.needs_snapshot, b.kinds(&output)), (Some(Index::new(9)), vec![]));
    assert_eq!(b.output().needs_snapshot, None, "until it is said again");
    // Of another term at an index that it has: it has not got that entry.
    b.receive(1, marker(2, (3, 2))).unwrap();
    assert_eq!(b.output().needs_snapshot, Some(Index::new(3)));
    b.receive(1, marker(1, (2, 1))).unwrap();
    let output = b.output();
    assert_eq!(output.needs_snapshot, None);
    assert_eq!(b.kinds(&output), [(1, MessageType::MsgAppendResponse)]);
    assert_eq!(b.raft.commit_index(), Index::new(2), "what a snapshot has is committed");
}

#[test]
fn a_trimmed_log_sends_a_marker_and_repeats_it() {
    let mut b = Bench::new();
    b.raft.run("stand", |node| node.campaign()).unwrap().unwrap();
    let win = |b: &mut Bench, kind| {
        b.settle();
        let term = if kind == MessageType::MsgRequestPreVoteResponse { b.raft.term() + 1 } else { b.raft.term() };
        b.receive(1, message(kind, term)).unwrap();
    };
    win(&mut b, MessageType::MsgRequestPreVoteResponse);
    win(&mut b, MessageType::MsgRequestVoteResponse);
    assert!(b.raft.is_leader());
    b.raft.append(0, vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]).unwrap();
    b.settle();
    let mut response = message(MessageType::MsgAppendResponse, b.raft.term());
    response.index = 3;
    b.receive(1, response).unwrap();
    let output = b.output();
    assert_eq!(output.committed.len(), 3);
    assert!(b.raft.compact(Index::new(3), Term::new(1)).is_err(), "not applied yet");
    b.raft.applied(Index::new(3)).unwrap();
    b.raft.compact(Index::new(3), Term::new(b.raft.term())).unwrap();
    // Voter 3 has nothing: it rejects, and is told to fetch a snapshot, again and again.
    let mut rejected = message(MessageType::MsgAppendResponse, b.raft.term());
    (rejected.reject, rejected.index, rejected.reject_hint) = (true, 0, 0);
    b.receive(3, rejected).unwrap();
    let snapshots = |b: &mut Bench| {
        let output = b.output();
        b.kinds(&output).into_iter().filter(|(_, kind)| *kind == MessageType::MsgSnapshot).collect::<Vec<_>>()
    };
    assert_eq!(snapshots(&mut b), [(3, MessageType::MsgSnapshot)]);
    let mut again = 0;
    for _ in 0..200 {
        b.now += 25;
        b.raft.tick(b.now).unwrap();
        for from in [1, 3] {
            b.receive(from, message(MessageType::MsgHeartbeatResponse, b.raft.term())).unwrap();
        }
        again += snapshots(&mut b).len();
    }
    assert!((3..20).contains(&again), "{again}");
    // Filled: it says what it has, and gets what follows.
    let mut filled = message(MessageType::MsgAppendResponse, b.raft.term());
    filled.index = 3;
    b.receive(3, filled).unwrap();
    b.output();
    b.raft.append(b.now, vec![Bytes::from_static(b"c")]).unwrap();
    let output = b.output();
    assert!(b.kinds(&output).contains(&(3, MessageType::MsgAppend)));
}
