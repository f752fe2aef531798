//! A server and a reader over disks in memory: streams, breaks, restarts and refusals.

use std::sync::Arc;

use quorate_shared::ids::{NodeId, ReplicaId, Timestamp};

use super::follow::{BadBatch, Follower};
use super::serve::{Committed, Sender};
use super::*;
use crate::engine::Tree;
use crate::engine::memory::MemoryTree;
use crate::entry::{Body, Transaction};
use crate::keys::{CatalogKey, Key};
use crate::log::{BaseRecord, EpochStart, LogRecord, Membership};
use crate::machine::Machine;
use crate::shard::Effect;
use crate::sim::Rng;
use crate::sim::records::Disk;

const SHARD: ShardId = ShardId::DATA;
const EPOCH: Epoch = Epoch { number: 1, id: 300 };
const ERA: (Epoch, EpochStart) = (EPOCH, EpochStart { index: Index::new(0), chain: Hash([3; 32]) });

fn base() -> BaseRecord {
    BaseRecord {
        chain: Hash([3; 32]),
        epoch_start: EpochStart { index: Index::new(0), chain: Hash([3; 32]) },
        ..BaseRecord::founding(SHARD, Membership::of_voters([(ReplicaId::new(1), NodeId::new(1))]), EPOCH)
    }
}

/// A log of so many entries, each fourth the protocol's own, with the chain after each.
fn history(count: u64, flavour: &str) -> (Vec<LogEntry>, Vec<Hash>) {
    let (mut entries, mut chains) = (Vec::new(), vec![base().chain]);
    for n in 1..=count {
        let (index, term, previous) = (Index::new(n), Term::new(1 + n / 10), *chains.last().unwrap());
        let (payload, bytes) = if n % 4 == 1 {
            (Payload::Empty, Bytes::new())
        } else {
            let key = Key::Catalog(CatalogKey::Job(n)).encode();
            let writes = vec![(key, Some(Bytes::from(format!("{flavour} {n}"))))];
            let body = Body::Write(vec![Transaction { writes, ..Transaction::default() }]);
            let entry = Entry { index, previous, timestamp: Timestamp::new(1000 + n, 0), body };
            (Payload::Entry, entry.encode())
        };
        let entry = LogEntry { index, term, payload, bytes };
        chains.push(entry::chain(previous, &entry));
        entries.push(entry);
    }
    (entries, chains)
}

fn disk(entries: &[LogEntry]) -> Arc<Disk> {
    let disk = Disk::new(base());
    disk.write(&[LogRecord::Entries(entries.to_vec())]);
    disk.sync(1);
    Arc::new(disk)
}

fn committed(index: u64) -> Committed {
    Committed { shippable: Index::new(index), commit: Index::new(index), term: Term::new(9) }
}

fn pull_from(index: u64, chain: Hash) -> Pull {
    Pull { shard: SHARD, epoch: EPOCH, index: Index::new(index), chain, window: 1 << 20 }
}

/// A replica with its driver.
struct Reader {
    disk: Arc<Disk>,
    tree: Arc<MemoryTree>,
    machine: Machine,
    follower: Follower,
    persists: Vec<(u64, usize)>,
}

impl Reader {
    fn open(disk: Arc<Disk>, tree: Arc<MemoryTree>) -> Self {
        let machine = Machine::open(Arc::clone(&tree) as Arc<dyn Tree>, &base()).unwrap();
        let applied = machine.state().applied();
        let mut follower = Follower::new(SHARD, EPOCH, Arc::clone(&disk) as Arc<dyn LogReader>, &applied).unwrap();
        let mut effects = Vec::new();
        follower.hand_out(&mut effects).unwrap();
        let mut reader = Reader { disk, tree, machine, follower, persists: Vec::new() };
        reader.execute(effects);
        reader
    }

    fn execute(&mut self, mut effects: Vec<Effect>) {
        while let Some(effect) = (!effects.is_empty()).then(|| effects.remove(0)) {
            match effect {
                Effect::Persist { id, records } => {
                    self.disk.write(&records);
                    self.persists.push((id, records.len()));
                }
                Effect::Apply { entries } => {
                    assert!(entries.last().unwrap().index.get() <= self.disk.durable_last(), "applied before durable");
                    let applied = self.machine.apply(&entries).unwrap();
                    self.follower.applied(&applied, &mut effects).unwrap();
                }
                other => panic!("a follower does not {other:?}"),
            }
        }
    }

    fn receive(&mut self, batch: ShipBatch) -> Result<(), BadBatch> {
        let mut effects = Vec::new();
        let result = self.follower.receive(batch, &mut effects);
        self.execute(effects);
        result
    }

    fn sync(&mut self) {
        for (id, records) in std::mem::take(&mut self.persists) {
            self.disk.sync(records);
            let mut effects = Vec::new();
            self.follower.persisted(id, &mut effects).unwrap();
            self.execute(effects);
        }
    }

    fn restart(self, rng: &mut Rng, wiped: bool) -> Self {
        self.disk.crash(rng);
        let tree = if wiped { Arc::default() } else { self.tree };
        Self::open(self.disk, tree)
    }
}

#[test]
fn a_chain_is_known_without_reading_from_the_beginning() {
    let (entries, chains) = history(30, "a");
    let log = disk(&entries);
    for (index, chain) in chains.iter().enumerate() {
        assert_eq!(chain_at(&*log, SHARD, Index::new(index as u64)).unwrap(), Some(*chain), "at {index}");
    }
    assert_eq!(chain_at(&*log, SHARD, Index::new(31)).unwrap(), None);
}

#[test]
fn streams_resumes_and_reports() {
    let (entries, chains) = history(60, "a");
    let log = disk(&entries);
    let mut rng = Rng::new(5);
    let mut reader = Reader::open(disk(&[]), Arc::default());
    for round in 0u64..30 {
        let upto = committed((round * 3).min(60));
        let mut sender = Sender::begin(&*log, ERA, upto, &reader.follower.pull()).unwrap().unwrap();
        while let Some(batch) = sender.next(&*log, upto).unwrap() {
            let bytes = ServerMessage::Batch(batch).encode();
            let Ok(ServerMessage::Batch(batch)) = ServerMessage::decode(&bytes) else { panic!("not a batch") };
            reader.receive(batch).unwrap();
        }
        if rng.chance(700) {
            reader.sync();
        }
        sender.progress(&reader.follower.progress());
        let report = sender.report(NodeId::new(4));
        let view = reader.follower.view();
        assert_eq!((report.sent, report.durable, report.applied), (view.last, view.durable, view.applied));
        if rng.chance(300) {
            let wiped = rng.chance(300);
            reader = reader.restart(&mut rng, wiped);
        }
    }
    let mut sender = Sender::begin(&*log, ERA, committed(60), &reader.follower.pull()).unwrap().unwrap();
    while let Some(batch) = sender.next(&*log, committed(60)).unwrap() {
        reader.receive(batch).unwrap();
    }
    reader.sync();
    assert_eq!(reader.machine.state().index, Index::new(60));
    assert_eq!(reader.machine.state().chain, chains[60]);
    assert_eq!(
        reader.follower.progress(),
        ShipProgress { shard: SHARD, received: Index::new(60), durable: Index::new(60), applied: Index::new(60) }
    );
}

#[test]
fn a_window_holds_the_server_back() {
    let (entries, chains) = history(40, "a");
    let log = disk(&entries);
    let pull = Pull { window: 1, ..pull_from(0, chains[0]) };
    let mut sender = Sender::begin(&*log, ERA, committed(10), &pull).unwrap().unwrap();
    assert_eq!(sender.next(&*log, committed(10)).unwrap().unwrap().last, Index::new(10));
    assert_eq!(sender.next(&*log, committed(40)).unwrap(), None);
    let ten = Index::new(10);
    let progress = |applied| ShipProgress { shard: SHARD, received: ten, durable: ten, applied: Index::new(applied) };
    sender.progress(&progress(9));
    assert_eq!(sender.next(&*log, committed(40)).unwrap(), None);
    sender.progress(&progress(1_000_000));
    assert_eq!(sender.next(&*log, committed(40)).unwrap(), None, "what was never sent cannot be applied");
    sender.progress(&progress(10));
    assert_eq!(sender.next(&*log, committed(40)).unwrap().unwrap().last, Index::new(40));
    assert_eq!(sender.heartbeat(committed(40)).entries, vec![]);
}

#[test]
fn refuses_a_point_that_is_not_in_the_log() {
    let (entries, chains) = history(20, "a");
    let (_, others) = history(20, "b");
    let log = disk(&entries);
    let begin = |epoch, upto, pull: &Pull| {
        Sender::begin(&*log, (epoch, EpochStart { index: Index::new(12), chain: chains[12] }), committed(upto), pull)
            .unwrap()
            .map(|s| s.sent())
    };
    assert_eq!(begin(EPOCH, 20, &pull_from(20, chains[20])), Ok(Index::new(20)));
    let diverged = Refusal::Diverged { index: Index::new(20), ours: chains[20] };
    assert_eq!(begin(EPOCH, 20, &pull_from(20, others[20])), Err(diverged));
    let ahead = Refusal::Ahead { commit: Index::new(10) };
    assert_eq!(begin(EPOCH, 10, &pull_from(11, chains[11])), Err(ahead));
    // Of another epoch: what agrees is served, what does not is told where the newer one began.
    let (newer, twin) = (Epoch { number: 2, id: 1 }, Epoch { number: 1, id: 1 });
    for (index, chain) in [(0, chains[0]), (12, chains[12]), (15, chains[15])] {
        assert_eq!(begin(newer, 20, &pull_from(index, chain)), Ok(Index::new(index)));
    }
    let start = EpochStart { index: Index::new(12), chain: chains[12] };
    // Before the start cutting there would mend nothing.
    let passed_over = Refusal::Diverged { index: Index::new(12), ours: chains[12] };
    assert_eq!(begin(newer, 20, &pull_from(12, others[12])), Err(passed_over));
    for (index, chain) in [(13, others[13]), (25, others[20])] {
        assert_eq!(begin(newer, 20, &pull_from(index, chain)), Err(Refusal::NewEpoch { epoch: newer, start }));
    }
    assert_eq!(begin(twin, 20, &pull_from(0, chains[0])), Err(Refusal::TwoEpochs { ours: twin }));
    let ahead = Pull { epoch: newer, ..pull_from(0, chains[0]) };
    assert_eq!(begin(EPOCH, 20, &ahead), Err(Refusal::OtherEpoch { ours: EPOCH }));
}

#[test]
fn a_reader_takes_only_what_follows_and_chains() {
    let (entries, chains) = history(20, "a");
    let (others, _) = history(20, "b");
    let batch = |from: usize, to: usize, entries: &[LogEntry]| ShipBatch {
        shard: SHARD,
        epoch: EPOCH,
        entries: entries[from - 1..to].to_vec(),
        last: Index::new(to as u64),
        chain: chains[to],
        commit: Index::new(20),
        commit_term: Term::new(3),
    };
    let mut reader = Reader::open(disk(&[]), Arc::default());
    let gap = BadBatch::Gap { expected: Index::new(1), got: Index::new(2) };
    assert_eq!(reader.receive(batch(2, 5, &entries)), Err(gap));
    assert_eq!(reader.receive(batch(1, 5, &others)), Err(BadBatch::Chain(Index::new(5))));
    assert_eq!(reader.follower.view().last, Index::new(0), "nothing of a bad batch is kept");
    reader.receive(batch(1, 5, &entries)).unwrap();
    reader.receive(batch(3, 8, &entries)).unwrap();
    reader.receive(batch(1, 2, &entries)).unwrap();
    let foreign = ShipBatch { epoch: Epoch::default(), ..batch(9, 9, &entries) };
    assert_eq!(reader.receive(foreign), Err(BadBatch::Foreign));
    let missed = ShipBatch { entries: vec![], ..batch(9, 9, &entries) };
    assert_eq!(reader.receive(missed), Err(BadBatch::Gap { expected: Index::new(9), got: Index::new(9) }));
    reader.sync();
    assert_eq!(reader.machine.state().chain, chains[8]);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn batch() -> ServerMessage {
    ServerMessage::Batch(ShipBatch {
        shard: ShardId::new(1),
        epoch: Epoch { number: 1, id: 300 },
        entries: vec![LogEntry {
            index: Index::new(8),
            term: Term::new(3),
            payload: Payload::Entry,
            bytes: Bytes::from_static(b"abc"),
        }],
        last: Index::new(8),
        chain: Hash([0xaa; 32]),
        commit: Index::new(9),
        commit_term: Term::new(3),
    })
}

/// With the checksum behind it.
fn sealed(message: &str) -> String {
    let bytes: Vec<u8> =
        (0..message.len()).step_by(2).map(|at| u8::from_str_radix(&message[at..at + 2], 16).unwrap()).collect();
    format!("{message}{:08x}", crc32c::crc32c(&bytes).swap_bytes())
}

#[test]
fn golden_bytes() {
    let pull = ReaderMessage::Pull(Pull {
        shard: ShardId::new(1),
        epoch: Epoch { number: 1, id: 300 },
        index: Index::new(7),
        chain: Hash([0xbb; 32]),
        window: 1 << 20,
    });
    assert_eq!(hex(&pull.encode()), sealed(&format!("02000101ac0207{}808040", "bb".repeat(32))));
    let (received, durable, applied) = (Index::new(9), Index::new(8), Index::new(7));
    let progress = ShipProgress { shard: ShardId::new(1), received, durable, applied };
    assert_eq!(hex(&ReaderMessage::Progress(progress).encode()), sealed("020101090807"));
    let expected = format!("02000101ac020108030003{}08{}0903", "616263", "aa".repeat(32));
    assert_eq!(hex(&batch().encode()), sealed(&expected));
    assert_eq!(hex(&ReaderMessage::Probe { tag: 300 }.encode()), sealed("0202ac02"));
    let confirmed = ServerMessage::Confirmed { tag: 300, index: Index::new(5), age: 1 };
    assert_eq!(hex(&confirmed.encode()), sealed("0202ac020501"));
    let refused = ServerMessage::Refused(Refusal::Ahead { commit: Index::new(5) });
    assert_eq!(hex(&refused.encode()), sealed("02010205"));
}

#[test]
fn refuses_what_is_cut_or_too_long() {
    let bytes = batch().encode();
    assert_eq!(ServerMessage::decode(&bytes), Ok(batch()));
    for len in 0..bytes.len() {
        assert_eq!(ServerMessage::decode(&bytes[..len]), Err(NotShipping), "cut at {len}");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert_eq!(ServerMessage::decode(&longer), Err(NotShipping));
    for at in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[at / 8] ^= 1 << (at % 8);
        assert_eq!(ServerMessage::decode(&flipped), Err(NotShipping), "bit {at}");
    }
}
