//! What the wrapper adds to the library: refusals, sessions, holding, synchronizations that survive a crash anywhere.

use proptest::prelude::*;
use quorate_shared::ids::{Epoch, NodeId};

use super::session::Link;
use super::storage::{Item, SYNC_BYTES};
use super::wire::{self, FrameKind, Message, Sync};
use super::*;
use crate::log::{BaseRecord, LogEntry, LogRecord, PaxosState};
use crate::sim::records::Disk;

/// A write: its id and how many records.
type Written = (PersistId, usize);

const SHARD: ShardId = ShardId::DATA;

fn membership(voters: u64) -> Membership {
    Membership::of_voters((1..=voters).map(|n| (ReplicaId::new(n), NodeId::new(n))))
}

fn base(voters: u64) -> BaseRecord {
    BaseRecord::founding(SHARD, membership(voters), Epoch::default())
}

fn config(me: u64, voters: u64) -> Config {
    Config {
        shard: SHARD,
        replica: ReplicaId::new(me),
        membership: Arc::new(membership(voters)),
        applied: Index::new(0),
        seed: 1,
        timing: Timing::default(),
    }
}

fn round(number: u32, proposer: u32) -> Round {
    Round { number, proposer }
}

fn item(term: u64, text: &str) -> Item {
    Item { term: Term::new(term), payload: Payload::Entry, bytes: Bytes::copy_from_slice(text.as_bytes()) }
}

/// Replica 2 of three with its disk, and the others' sides of their sessions with it.
struct Bench {
    disk: Arc<Disk>,
    paxos: PaxosReplicator,
    peers: BTreeMap<u64, Link>,
    random: Random,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        let disk = Arc::new(Disk::new(base(3)));
        Bench::on(disk)
    }

    /// With sessions to both peers.
    fn on(disk: Arc<Disk>) -> Self {
        let paxos = PaxosReplicator::new(&config(2, 3), Arc::clone(&disk) as Arc<dyn LogReader>, 0).unwrap();
        let mut random = Random::new(7);
        let peers = [1, 3].map(|p| (p, Link::new(0, &mut random))).into();
        let mut bench = Bench { disk, paxos, peers, random, now: 0 };
        for peer in [1, 3] {
            let (mine, theirs) = bench.peers.get_mut(&peer).unwrap().hello(0);
            let hello = wire::encode_hello(1, mine, theirs);
            bench.paxos.receive(0, ReplicaId::new(peer), &hello).unwrap();
        }
        bench.settle();
        bench
    }

    /// Persists and delivers until nothing more comes; gives what the peers have got.
    fn settle(&mut self) -> Vec<(u64, Message)> {
        let mut got = Vec::new();
        loop {
            let (persist, messages) = self.output();
            got.extend(messages);
            let Some((id, records)) = persist else {
                if self.paxos.sends.is_empty() {
                    return got;
                }
                continue;
            };
            self.disk.sync(records);
            self.paxos.persisted(self.now, id).unwrap();
        }
    }

    /// Takes the output; what is to be persisted is written, not synced.
    fn output(&mut self) -> (Option<Written>, Vec<(u64, Message)>) {
        let output = self.paxos.output(self.now).unwrap();
        let persist = output.persist.map(|(id, records)| {
            self.disk.write(&records);
            (id, records.len())
        });
        let mut got = Vec::new();
        for (to, frame) in output.sends {
            let (head, rest) = wire::decode_head(&frame).unwrap();
            let link = self.peers.get_mut(&to.get()).unwrap();
            let arrived = link.receive(self.now, head.kind, rest, &mut self.random).unwrap();
            got.extend(arrived.messages.into_iter().map(|m| (to.get(), m.unwrap())));
            if arrived.answer {
                let (mine, theirs) = link.hello(self.now);
                self.paxos.receive(self.now, to, &wire::encode_hello(1, mine, theirs)).unwrap();
            }
        }
        got.retain(|(_, m)| !matches!(m, Message::Beat | Message::Heartbeat { .. } | Message::PrepareRequest { .. }));
        (persist, got)
    }

    fn receive(&mut self, from: u64, message: &Message) -> Result<(), Fatal> {
        let link = self.peers.get_mut(&from).unwrap();
        let frames = link.frames(self.now, message, 1, Index::new(0), Round::default());
        for frame in frames.into_iter().flatten() {
            self.paxos.receive(self.now, ReplicaId::new(from), &frame)?;
        }
        Ok(())
    }

    /// Follows replica 3 in a round.
    fn follow(&mut self, n: Round) {
        let prepare = Message::Prepare { n, decided: 0, n_accepted: Round::default(), accepted: 0 };
        self.receive(3, &prepare).unwrap();
        let sync = Sync { at: 0, entries: vec![item(19, "a"), item(19, "b")], stop: None };
        self.settle();
        self.receive(3, &Message::AcceptSync { n, decided: 0, sync }).unwrap();
        self.settle();
    }
}

#[test]
fn what_it_cannot_do_is_refused_by_name() {
    let open = |config: &Config| {
        let disk: Arc<dyn LogReader> = Arc::new(Disk::new(base(3)));
        PaxosReplicator::new(config, disk, 0).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(open(&config(1, 1)), "open s1: the paxos replicator has no configuration of one voter");
    assert_eq!(open(&config(1, 16)), "open s1: the paxos replicator has no configurations of more than 15 voters");
    assert_eq!(open(&config(9, 3)), "open s1: r9 is not a voter of [r1, r2, r3]");
    let lost = Config { applied: Index::new(5), ..config(1, 3) };
    assert_eq!(open(&lost), "open s1: its log is lost: applied 5, but the log ends at 0");
    assert!(!Bench::new().paxos.capabilities().learners);
}

#[test]
fn a_promise_and_an_acceptance_wait_for_the_disk() {
    let mut bench = Bench::new();
    let n = round(2, 3);
    bench.receive(3, &Message::Prepare { n, decided: 0, n_accepted: Round::default(), accepted: 0 }).unwrap();
    let (persist, messages) = bench.output();
    assert_eq!(messages, []);
    let (id, records) = persist.unwrap();
    bench.disk.sync(records);
    bench.paxos.persisted(0, id).unwrap();
    let (_, messages) = bench.output();
    assert!(matches!(messages[..], [(3, Message::Promise { .. })]), "{messages:?}");
    let sync = Sync { at: 0, entries: vec![item(19, "a")], stop: None };
    bench.receive(3, &Message::AcceptSync { n, decided: 1, sync }).unwrap();
    let (persist, messages) = bench.output();
    assert_eq!(messages, []);
    assert_eq!(bench.paxos.commit_index(), Index::new(0), "decided, and not durable here");
    let (id, records) = persist.unwrap();
    bench.disk.sync(records);
    bench.paxos.persisted(0, id).unwrap();
    let (_, messages) = bench.output();
    assert_eq!(messages, [(3, Message::Accepted { n, accepted: 1 })]);
    assert_eq!(bench.paxos.commit_index(), Index::new(1));
}

/// A crash after any record of a synchronization leaves entries of one round under that round's name.
#[test]
fn a_synchronization_survives_a_crash_anywhere() {
    for kept in 0..8 {
        let mut bench = Bench::new();
        bench.follow(round(2, 3));
        let before = bench.disk.bounds(SHARD).unwrap();
        assert_eq!((before.last.get(), before.paxos.unwrap().accepted), (2, round(2, 3)));
        // Another log replaces the second entry.
        let n = round(3, 1);
        let prepare = Message::Prepare { n, decided: 0, n_accepted: round(2, 1), accepted: 3 };
        bench.receive(1, &prepare).unwrap();
        bench.settle();
        let sync = Sync { at: 0, entries: vec![item(19, "a"), item(33, "x"), item(49, "y")], stop: None };
        bench.receive(1, &Message::AcceptSync { n, decided: 0, sync }).unwrap();
        let (persist, _) = bench.output();
        let (_, records) = persist.unwrap();
        assert_eq!(records, 4, "a mark, the cut, the entries, the new round");
        bench.disk.sync(kept.min(records));
        bench.disk.lose();
        let bench = Bench::on(Arc::clone(&bench.disk));
        let (state, last) = (bench.paxos.store.paxos(), bench.paxos.store.last().get());
        let entries = bench.paxos.store.entries(Index::new(1), Index::new(9), usize::MAX).unwrap();
        let texts: Vec<&[u8]> = entries.iter().map(|e| &e.bytes[..]).collect();
        if state.accepted == n {
            assert_eq!((last, &texts[..]), (3, &[&b"a"[..], b"x", b"y"][..]), "{kept} records");
        } else {
            assert!(texts == [&b"a"[..], b"b"] || texts == [&b"a"[..]], "{kept} records: {texts:?}");
        }
        assert_eq!(state.syncing, None);
    }
}

#[test]
fn a_session_is_in_order_once_and_broken_by_a_loss() {
    let mut random = Random::new(1);
    let (mut a, mut b) = (Link::new(0, &mut random), Link::new(0, &mut random));
    let hello = |link: &mut Link| {
        let (mine, theirs) = link.hello(0);
        FrameKind::Hello { mine, theirs }
    };
    let greeting = hello(&mut a);
    assert!(b.receive(0, greeting, &[], &mut random).unwrap().answer);
    let answer = hello(&mut b);
    assert!(a.receive(0, answer, &[], &mut random).unwrap().opened);
    let send = |link: &mut Link, context| {
        let message = Message::Confirm { n: round(1, 1), context };
        link.frames(0, &message, 1, Index::new(0), Round::default()).unwrap().remove(0)
    };
    let frames: Vec<Bytes> = (0..4).map(|n| send(&mut a, n)).collect();
    let take = |link: &mut Link, frame: &Bytes, random: &mut Random| {
        let (head, rest) = wire::decode_head(frame).unwrap();
        let contexts = |m: Option<Message>| match m {
            Some(Message::Confirm { context, .. }) => context,
            other => panic!("{other:?}"),
        };
        link.receive(0, head.kind, rest, random).unwrap().messages.into_iter().map(contexts).collect::<Vec<_>>()
    };
    // Data proves that the nonce has come.
    assert_eq!(take(&mut b, &frames[0], &mut random), [0]);
    assert_eq!(take(&mut b, &frames[0], &mut random), [0; 0], "twice");
    assert_eq!(take(&mut b, &frames[2], &mut random), [0; 0], "early");
    assert_eq!(take(&mut b, &frames[1], &mut random), [1, 2]);
    assert!(!b.is_broken(1_000, 100, 5_000));
    assert_eq!(take(&mut b, &frames[3], &mut random), [3]);
    let (lost, late) = (send(&mut a, 4), send(&mut a, 5));
    assert_eq!(take(&mut b, &late, &mut random), [0; 0]);
    assert!(b.is_broken(101, 100, 5_000), "a frame is missing");
    // A new session: what is left of the last one counts for nothing.
    b.close(&mut random);
    let greeting = hello(&mut b);
    let arrived = a.receive(0, greeting, &[], &mut random).unwrap();
    assert!(arrived.answer && !a.is_open(), "its nonce has named a session, so it needs another");
    let answer = hello(&mut a);
    assert!(b.receive(0, answer, &[], &mut random).unwrap().opened);
    assert_eq!(take(&mut b, &lost, &mut random), [0; 0]);
}

#[test]
fn a_large_message_takes_several_frames() {
    let mut bench = Bench::new();
    let n = round(2, 3);
    bench.receive(3, &Message::Prepare { n, decided: 0, n_accepted: Round::default(), accepted: 0 }).unwrap();
    bench.settle();
    let big = |_| Item { term: Term::new(35), payload: Payload::Entry, bytes: Bytes::from(vec![7; 1 << 20]) };
    let sync = Sync { at: 0, entries: (0..10).map(big).collect(), stop: None };
    let message = Message::AcceptSync { n, decided: 0, sync };
    let frames = bench.peers.get_mut(&3).unwrap().frames(0, &message, 1, Index::new(0), n).unwrap();
    assert_eq!(frames.len(), 3);
    for frame in &frames {
        bench.paxos.receive(0, ReplicaId::new(3), frame).unwrap();
    }
    assert_eq!(bench.paxos.last_index(), Index::new(10));
    assert_eq!(bench.settle(), [(3, Message::Accepted { n, accepted: 10 })]);
}

#[test]
fn strangers_nonsense_and_gaps() {
    let mut bench = Bench::new();
    bench.follow(round(2, 3));
    let dropped = bench.paxos.dropped();
    bench.paxos.receive(0, ReplicaId::new(9), &wire::encode_hello(1, 5, 0)).unwrap();
    bench.paxos.receive(0, ReplicaId::new(3), b"").unwrap();
    bench.receive(3, &Message::Decide { n: round(2, 1), decided: 1 }).unwrap();
    bench.receive(3, &Message::Prepare { n: round(2, 9), decided: 0, n_accepted: round(0, 0), accepted: 0 }).unwrap();
    assert_eq!(bench.paxos.dropped(), dropped + 4);
    // Entries behind a position that this log does not end at: something is missing, and the session ends.
    let n = round(2, 3);
    bench.receive(3, &Message::Accept { n, decided: 0, at: 5, entries: vec![item(35, "z")] }).unwrap();
    assert_eq!(bench.paxos.last_index(), Index::new(2));
    assert!(!bench.paxos.links[&3].is_open());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_frames() {
    assert_eq!(hex(&wire::encode_hello(1, 2, 300)), "01010002ac02");
    let head = |more| wire::Head {
        configuration: 1,
        kind: FrameKind::Data { mine: 2, theirs: 3, seq: 4, applied: Index::new(5), promised: round(6, 1), more },
    };
    let golden = |message: &Message| hex(&wire::encode(message, head)[0]);
    let data = "0101010203040506 0100".replace(' ', "");
    assert_eq!(golden(&Message::Beat), format!("{data}00"));
    let accept = Message::Accept { n: round(6, 1), decided: 7, at: 8, entries: vec![item(97, "abc")] };
    assert_eq!(golden(&accept), format!("{data}05060107080161 0003616263").replace(' ', ""));
    let reply = Message::HeartbeatReply { round: 9, ballot: round(6, 1), leader: round(5, 2), happy: true };
    assert_eq!(golden(&reply), format!("{data}0b090601050201"));
    let frame = wire::encode(&accept, head).remove(0);
    for len in 0..frame.len() {
        let whole = wire::decode_head(&frame[..len]).and_then(|(_, rest)| wire::decode(rest));
        assert_eq!(whole, None, "cut at {len}");
    }
    let (_, rest) = wire::decode_head(&frame).unwrap();
    assert_eq!(wire::decode(rest), Some(accept));
}

fn any_message() -> impl Strategy<Value = (u64, Message)> {
    let number = || prop_oneof![0u64..5, Just(u64::MAX), Just(u64::MAX / 2)];
    let any_round = || (0u32..4, 0u32..5).prop_map(|(n, p)| round(n, p));
    let sync = || {
        (number(), prop::collection::vec(0u64..60, 0..3)).prop_map(|(at, terms)| Sync {
            at,
            entries: terms.into_iter().map(|t| item(t, "e")).collect(),
            stop: None,
        })
    };
    let message = prop_oneof![
        any_round().prop_map(|n| Message::PrepareRequest { n }),
        (any_round(), number(), any_round(), number())
            .prop_map(|(n, decided, n_accepted, accepted)| Message::Prepare { n, decided, n_accepted, accepted }),
        (any_round(), any_round(), number(), number(), prop::option::of(sync())).prop_map(
            |(n, n_accepted, decided, accepted, sync)| Message::Promise { n, n_accepted, decided, accepted, sync }
        ),
        (any_round(), number(), sync()).prop_map(|(n, decided, sync)| Message::AcceptSync { n, decided, sync }),
        (any_round(), number(), number()).prop_map(|(n, decided, at)| Message::Accept {
            n,
            decided,
            at,
            entries: vec![item(1, "e")]
        }),
        (any_round(), number()).prop_map(|(n, accepted)| Message::Accepted { n, accepted }),
        any_round().prop_map(|n| Message::NotAccepted { n }),
        (any_round(), number()).prop_map(|(n, decided)| Message::Decide { n, decided }),
        (0u32..4, any_round(), any_round(), any::<bool>())
            .prop_map(|(round, ballot, leader, happy)| { Message::HeartbeatReply { round, ballot, leader, happy } }),
        any_round().prop_map(|n| Message::Lead { n }),
        (any_round(), number()).prop_map(|(n, context)| Message::Confirmed { n, context }),
    ];
    (prop_oneof![Just(1u64), Just(3u64)], message)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a peer says: an error at worst, and nothing committed that is not durable.
    #[test]
    fn no_message_panics(messages in prop::collection::vec(any_message(), 1..60)) {
        let mut bench = Bench::new();
        for (from, message) in messages {
            bench.now += 10;
            let step = bench.receive(from, &message).and_then(|()| bench.paxos.tick(bench.now));
            if step.is_err() {
                return Ok(());
            }
            bench.settle();
            prop_assert!(bench.paxos.commit_index().get() <= bench.disk.durable_last());
        }
    }
}

/// Behind a trimmed log: what is here already is only known to be decided, the rest comes from a member's log, and what
/// is nowhere any more from a snapshot.
#[test]
fn who_is_behind_asks_for_what_is_decided_or_for_a_snapshot() {
    let mut bench = Bench::new();
    bench.follow(round(2, 3));
    assert_eq!(bench.paxos.commit_index(), Index::new(0));
    let three = ReplicaId::new(3);
    let behind = |base, term, decided| {
        let (base, decided) = (Index::new(base), Index::new(decided));
        wire::encode_outside(1, FrameKind::Behind { base, term: Term::new(term), decided }, &[])
    };
    let asked = |bench: &mut Bench| {
        let output = bench.paxos.output(bench.now).unwrap();
        if let Some((id, records)) = &output.persist {
            bench.disk.write(records);
            bench.disk.sync(records.len());
            bench.paxos.persisted(bench.now, *id).unwrap();
        }
        let kinds = output.sends.iter().map(|(_, frame)| wire::decode_head(frame).unwrap().0.kind);
        let after =
            kinds.filter_map(|kind| if let FrameKind::Lacking { after } = kind { Some(after.get()) } else { None });
        (after.collect::<Vec<_>>(), output.needs_snapshot.map(Index::get))
    };
    // The entry at the base is here.
    bench.paxos.receive(0, three, &behind(1, 19, 4)).unwrap();
    assert_eq!(asked(&mut bench), (vec![1], None));
    assert_eq!(bench.paxos.commit_index(), Index::new(1));
    // One that is not what is decided goes; nobody else's answer counts, and none that does not fit.
    let decided = |after| {
        let items = [item(33, "x"), item(33, "y")];
        wire::encode_outside(1, FrameKind::Decided { after: Index::new(after) }, &items)
    };
    bench.paxos.receive(0, ReplicaId::new(1), &decided(1)).unwrap();
    bench.paxos.receive(0, three, &decided(2)).unwrap();
    assert_eq!((bench.paxos.last_index(), bench.paxos.commit_index()), (Index::new(2), Index::new(1)));
    bench.paxos.receive(0, three, &decided(1)).unwrap();
    assert_eq!(asked(&mut bench), (vec![], None), "when that is durable");
    assert_eq!(asked(&mut bench), (vec![3], None));
    assert_eq!((bench.paxos.last_index(), bench.paxos.commit_index()), (Index::new(3), Index::new(3)));
    // What it has it gives.
    bench.settle();
    bench.paxos.applied(Index::new(3)).unwrap();
    let lacking = wire::encode_outside(1, FrameKind::Lacking { after: Index::new(1) }, &[]);
    bench.paxos.receive(0, three, &lacking).unwrap();
    let sends = bench.paxos.output(0).unwrap().sends;
    assert!(sends.iter().any(|(to, frame)| *to == three && *frame == decided(1)), "{sends:?}");
    // Trimmed, it says so instead.
    assert!(bench.paxos.compact(Index::new(2), Term::new(33)).unwrap());
    bench.paxos.receive(0, three, &lacking).unwrap();
    let sends = bench.paxos.output(0).unwrap().sends;
    assert!(sends.iter().any(|(to, frame)| *to == three && *frame == behind(2, 33, 3)), "{sends:?}");
    // Said again, not all the time.
    bench.paxos.receive(0, three, &behind(9, 99, 9)).unwrap();
    assert_eq!(asked(&mut bench), (vec![], Some(9)));
    assert_eq!(asked(&mut bench), (vec![], None));
    bench.now += Timing::default().election_max;
    assert_eq!(asked(&mut bench), (vec![], Some(9)));
}

/// A leader with decided entries of its own, which the others have not.
fn ahead(decided: u64, accepted: u64, bytes: usize) -> Arc<Disk> {
    let disk = Arc::new(Disk::new(base(3)));
    let entry = |n| LogEntry {
        index: Index::new(n),
        term: Term::new(19),
        payload: Payload::Entry,
        bytes: Bytes::from(vec![7; bytes]),
    };
    let (promised, decided) = (round(1, 3), Index::new(decided));
    let state = PaxosState { configuration: 1, promised, accepted: promised, decided, ..PaxosState::default() };
    disk.write(&[LogRecord::Entries((1..=accepted).map(entry).collect()), LogRecord::Paxos(state)]);
    disk.sync(2);
    disk
}

impl Bench {
    /// Stands; the round.
    fn stand(&mut self) -> Round {
        self.paxos.take_over(self.now).unwrap();
        let asked = self.settle();
        asked.iter().find_map(|(_, m)| if let Message::Prepare { n, .. } = m { Some(*n) } else { None }).unwrap()
    }

    /// Frames outside of sessions that one step leads to.
    fn outside(&mut self, to: u64) -> Vec<FrameKind> {
        let output = self.paxos.output(self.now).unwrap();
        if let Some((id, records)) = &output.persist {
            self.disk.write(records);
            self.disk.sync(records.len());
            self.paxos.persisted(self.now, *id).unwrap();
        }
        let frames = output.sends.iter().filter(|(replica, _)| replica.get() == to);
        let kinds = frames.map(|(_, frame)| wire::decode_head(frame).unwrap().0.kind);
        kinds.filter(|kind| !matches!(kind, FrameKind::Hello { .. } | FrameKind::Data { .. })).collect()
    }
}

/// What is decided comes in parts, before the library is to synchronize anybody.
#[test]
fn who_lacks_much_that_is_decided_gets_it_in_parts_first() {
    let mut bench = Bench::on(ahead(60, 60, SYNC_BYTES / 4));
    let n = bench.stand();
    let promise =
        |decided| Message::Promise { n, n_accepted: Round::default(), decided, accepted: decided, sync: None };
    bench.receive(1, &promise(0)).unwrap();
    let (base, term, decided) = (Index::new(0), Term::new(0), Index::new(60));
    assert_eq!(bench.outside(1), [FrameKind::Behind { base, term, decided }]);
    let (mut have, mut parts) = (0, 0);
    while have < 30 {
        let after = Index::new(have);
        bench.paxos.receive(0, ReplicaId::new(1), &wire::encode_outside(1, FrameKind::Lacking { after }, &[])).unwrap();
        let sends = bench.paxos.output(0).unwrap().sends;
        let items = sends.iter().filter(|(to, _)| to.get() == 1).map(|(_, frame)| wire::decode_head(frame).unwrap());
        let items: Vec<Item> = items
            .filter(|(head, _)| head.kind == FrameKind::Decided { after })
            .flat_map(|(_, rest)| wire::decode_items(rest).unwrap())
            .collect();
        assert!((1..=4).contains(&items.len()), "{}", items.len());
        (have, parts) = (have + items.len() as u64, parts + 1);
    }
    assert!(parts > 5);
    bench.receive(1, &promise(have)).unwrap();
    let sent = bench.settle();
    let sync =
        sent.iter().find_map(|(to, m)| if let Message::AcceptSync { sync, .. } = m { Some((*to, sync)) } else { None });
    let (to, sync) = sync.unwrap();
    assert_eq!((to, sync.at, sync.entries.len()), (1, have, 60 - have as usize));
}

/// Who has accepted in a round has all that an earlier one may have decided: nobody gets a part of that.
#[test]
fn what_may_be_decided_comes_at_once() {
    let mut bench = Bench::on(ahead(0, 60, SYNC_BYTES / 4));
    let n = bench.stand();
    bench
        .receive(1, &Message::Promise { n, n_accepted: Round::default(), decided: 0, accepted: 0, sync: None })
        .unwrap();
    let sent = bench.settle();
    let entries = sent
        .iter()
        .find_map(|(_, m)| if let Message::AcceptSync { sync, .. } = m { Some(sync.entries.len()) } else { None });
    assert_eq!(entries, Some(60));
}

/// What comes after a synchronization flows as it is acknowledged.
#[test]
fn a_slow_follower_gets_what_is_new_by_and_by() {
    let mut bench = Bench::on(ahead(1, 1, 10));
    let n = bench.stand();
    for peer in [1, 3] {
        let promise = Message::Promise { n, n_accepted: Round::default(), decided: 1, accepted: 1, sync: None };
        bench.receive(peer, &promise).unwrap();
    }
    bench.settle();
    bench.receive(3, &Message::Accepted { n, accepted: 2 }).unwrap();
    let entries: Vec<Bytes> = (0..60).map(|_| Bytes::from(vec![7; SYNC_BYTES / 4])).collect();
    for entry in entries {
        assert!(bench.paxos.append(bench.now, vec![entry]).unwrap());
    }
    let (mut have, mut steps) = (2, 0);
    while have < 62 {
        let mut flying = 0;
        for (_, message) in bench.settle().into_iter().filter(|(to, _)| *to == 1) {
            let Message::Accept { at, entries, .. } = message else { continue };
            assert_eq!(at, have);
            have += entries.len() as u64;
            flying += entries.iter().map(|e| e.bytes.len()).sum::<usize>();
        }
        assert!(flying <= 9 * SYNC_BYTES, "{flying} at once");
        bench.receive(1, &Message::Accepted { n, accepted: have }).unwrap();
        steps += 1;
        assert!(steps < 40, "{have}");
    }
    bench.settle();
    assert_eq!(bench.paxos.commit_index(), Index::new(62));
}

/// A follower may know more to be decided than the leader had when it was elected, and have accepted it in this round or
/// in none: it lacks what is behind that, not everything, which the leader's log may not have any more.
#[test]
fn a_synchronization_begins_behind_what_the_follower_knows_to_be_decided() {
    let mut bench = Bench::new();
    let n = bench.stand();
    bench
        .receive(3, &Message::Promise { n, n_accepted: Round::default(), decided: 0, accepted: 0, sync: None })
        .unwrap();
    bench.settle();
    assert!(bench.paxos.append(0, vec![Bytes::from_static(b"x"), Bytes::from_static(b"y")]).unwrap());
    bench.receive(3, &Message::Accepted { n, accepted: 3 }).unwrap();
    bench.settle();
    assert_eq!(bench.paxos.commit_index(), Index::new(3));
    bench.paxos.applied(Index::new(3)).unwrap();
    assert!(bench.paxos.compact(Index::new(2), Term::new(19)).unwrap());
    for n_accepted in [n, Round::default()] {
        let promise = Message::Promise { n, n_accepted, decided: 2, accepted: 2, sync: None };
        bench.receive(1, &promise).unwrap();
        let sent = bench.settle();
        let at =
            sent.iter().find_map(|(_, m)| if let Message::AcceptSync { sync, .. } = m { Some(sync.at) } else { None });
        assert_eq!(at, Some(2), "accepted in {n_accepted:?}");
    }
}

/// Whatever message was lost: who gets no further while others do asks, by the clock.
#[test]
fn who_gets_no_further_asks_again() {
    let mut bench = Bench::new();
    bench.follow(round(2, 3));
    let tick = |bench: &mut Bench, ms| {
        let mut asked = 0;
        for _ in 0..ms / 25 {
            bench.now += 25;
            let link = bench.peers.get_mut(&3).unwrap();
            for frame in link.frames(bench.now, &Message::Beat, 1, Index::new(9), round(2, 3)).into_iter().flatten() {
                bench.paxos.receive(bench.now, ReplicaId::new(3), &frame).unwrap();
            }
            bench.paxos.tick(bench.now).unwrap();
            asked += bench.outside(3).iter().filter(|k| matches!(k, FrameKind::Lacking { .. })).count();
        }
        asked
    };
    assert!(tick(&mut bench, 3_000) > 1);
    bench.receive(3, &Message::Decide { n: round(2, 3), decided: 2 }).unwrap();
    assert_eq!(tick(&mut bench, 500), 0, "it has got further just now");
}

/// A candidate whose log ends before what another knows to be decided, and gets nothing of that with a promise, does not
/// lead: it asks for it.
#[test]
fn who_stands_with_less_than_is_decided_asks_for_it() {
    let mut bench = Bench::new();
    bench.follow(round(2, 3));
    let n = bench.stand();
    bench.receive(1, &Message::Promise { n, n_accepted: round(1, 1), decided: 5, accepted: 5, sync: None }).unwrap();
    assert_eq!(bench.outside(1), [FrameKind::Lacking { after: Index::new(0) }]);
    assert!(!bench.paxos.leadership().is_leader);
    // Of a higher round than its own, and nothing of it: no correct replica says so.
    let dropped = bench.paxos.dropped();
    bench.receive(3, &Message::Promise { n, n_accepted: round(2, 3), decided: 0, accepted: 3, sync: None }).unwrap();
    assert_eq!(bench.paxos.dropped(), dropped + 1);
}

/// After a crash what was decided before the last write is known to be.
#[test]
fn what_is_decided_is_written_with_what_is_written_next() {
    let mut bench = Bench::new();
    let n = round(2, 3);
    bench.follow(n);
    bench.receive(3, &Message::Decide { n, decided: 2 }).unwrap();
    let (persist, _) = bench.output();
    assert_eq!(persist, None, "not alone");
    bench.receive(3, &Message::Accept { n, decided: 2, at: 2, entries: vec![item(35, "c")] }).unwrap();
    bench.settle();
    bench.disk.lose();
    assert_eq!(bench.disk.bounds(SHARD).unwrap().paxos.unwrap().decided, Index::new(2));
}
