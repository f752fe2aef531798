//! Snapshots: exactly the state at their index, whatever is written meanwhile; nothing else is ever taken for one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_shared::ids::{ClientId, Epoch, IndexId, ReplicaId, Term, WriteId};

use super::file::{Stored, Writer, adopt, read_head, verify};
use super::install::{Mark, install, list, rebase};
use super::source::SnapshotSource;
use super::*;
use crate::disk::RealDisk;
use crate::engine::memory::MemoryTree;
use crate::engine::{KeyRange, Tree};
use crate::entry::{Body, Entry, Transaction};
use crate::keys::{self, Key};
use crate::log::memory::MemoryLog;
use crate::log::{HardState, Log, LogEntry, LogReader, LogRecord, Payload};
use crate::machine::Machine;
use crate::mvcc::{self, Snapshot};

const STORAGE: TableId = TableId::new(7);
const REPLICA: ReplicaId = ReplicaId::new(1);

fn base() -> BaseRecord {
    MachineState { epoch: Epoch { number: 1, id: 5 }, ..MachineState::default() }.base(ShardId::DATA)
}

fn key(n: u8) -> Bytes {
    Key::Data { storage: STORAGE, index: IndexId::PRIMARY, columns: Bytes::from(vec![0x81, n]) }.encode()
}

/// What happens in one entry.
#[derive(Clone, Debug)]
enum Act {
    Put(u8, u8),
    Delete(u8),
    Purge(u8),
    Client(u8),
    Expire(u8),
    Sequence(u8, i64),
    Collect,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..20u8, any::<u8>()).prop_map(|(k, v)| Act::Put(k, v)),
        2 => (0..20u8).prop_map(Act::Delete),
        1 => (0..20u8).prop_map(Act::Purge),
        3 => (0..3u8).prop_map(Act::Client),
        1 => (0..3u8).prop_map(Act::Expire),
        1 => (0..3u8, any::<i64>()).prop_map(|(t, n)| Act::Sequence(t, n)),
        1 => Just(Act::Collect),
    ]
}

struct Bench {
    tree: Arc<MemoryTree>,
    machine: Machine,
    log: Vec<LogEntry>,
    ms: u64,
    seqs: [u64; 3],
    /// A storage that is being purged is never written again.
    purged: std::collections::BTreeSet<u8>,
}

fn client(n: u8) -> ClientId {
    ClientId([n; 16])
}

impl Bench {
    fn new() -> Self {
        let tree = Arc::new(MemoryTree::default());
        let machine = Machine::open(tree.clone(), &base()).unwrap();
        Self { tree, machine, log: Vec::new(), ms: 10, seqs: [0; 3], purged: Default::default() }
    }

    fn act(&mut self, act: &Act) {
        let one = |t: Transaction| Body::Write(vec![t]);
        let body = match *act {
            Act::Put(k, _) | Act::Delete(k) if self.purged.contains(&k) => Body::Empty,
            Act::Put(k, v) => {
                // Some are large: a chunk holds few of them.
                let row = Bytes::from(vec![v; 1 + usize::from(v) * 900]);
                one(Transaction { writes: vec![(key(k), Some(row))], ..Transaction::default() })
            }
            Act::Delete(k) => one(Transaction { writes: vec![(key(k), None)], ..Transaction::default() }),
            Act::Purge(k) => {
                self.purged.insert(k);
                one(Transaction { purged: vec![key(k)], ..Transaction::default() })
            }
            Act::Client(c) => {
                self.seqs[usize::from(c)] += 1;
                let write = WriteId { client: client(c), seq: self.seqs[usize::from(c)] };
                one(Transaction { write: Some(write), rows: self.ms, ..Transaction::default() })
            }
            Act::Expire(c) => Body::ClientExpire(vec![client(c)]),
            Act::Sequence(t, n) => {
                one(Transaction { sequences: vec![(TableId::new(t.into()), n)], ..Transaction::default() })
            }
            Act::Collect => {
                // Hours later: all history may go, except what an open snapshot needs.
                self.ms += 9_000_000;
                self.machine.collect(self.ms, 1000).unwrap();
                Body::Empty
            }
        };
        self.ms += 1;
        let s = self.machine.state();
        let timestamp = Timestamp::new(self.ms, 0);
        let entry = Entry { index: s.index.next(), previous: s.chain, timestamp, body }.logged(Term::new(1));
        self.machine.apply(std::slice::from_ref(&entry)).unwrap();
        self.log.push(entry);
    }
}

fn rows(tree: &Arc<dyn Tree>, at: Timestamp) -> Vec<(Bytes, mvcc::Version)> {
    Snapshot::new(tree.clone(), at).scan(&keys::rows_range(), false).map(Result::unwrap).collect()
}

fn records(tree: &dyn Tree) -> Vec<(Bytes, Bytes)> {
    let range = KeyRange { start: Bytes::new(), end: Some(keys::rows_range().start) };
    let own = |key: &Bytes| *key != Key::Horizon.encode();
    tree.scan(&range, false).map(Result::unwrap).filter(|(key, _)| own(key)).collect()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn store(dir: &Path, source: SnapshotSource) -> Stored {
    Writer::begin(RealDisk::shared(), dir, source).unwrap().finish().unwrap()
}

/// A small one with a bit of everything.
fn small(dir: &Path) -> (Bench, Stored) {
    let mut bench = Bench::new();
    let acts = [
        Act::Put(1, 0),
        Act::Put(2, 0),
        Act::Client(1),
        Act::Sequence(1, 9),
        Act::Put(1, 0),
        Act::Delete(2),
        Act::Put(3, 0),
    ];
    acts.iter().for_each(|a| bench.act(a));
    let source = bench.machine.snapshot();
    let stored = store(dir, source);
    (bench, stored)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is written while the copy is made, the copy is the state at its index, and entries after it lead to the
    /// same state as on the original.
    #[test]
    fn holds_the_state_at_its_index(
        before in prop::collection::vec(act(), 0..60),
        during in prop::collection::vec(act(), 0..60),
        every in 1..6usize,
    ) {
        let dir = directory();
        let disk = RealDisk::shared();
        let mut bench = Bench::new();
        bench.act(&Act::Put(0, 1));
        before.iter().for_each(|a| bench.act(a));
        let (at, state) = (bench.log.len(), bench.machine.state().clone());
        let tree: Arc<dyn Tree> = bench.tree.clone();
        let (then, own) = (rows(&tree, state.timestamp), records(&*tree));
        let mut writer = Writer::begin(disk.clone(), dir.path(), bench.machine.snapshot()).unwrap();
        let mut stored = None;
        for (i, a) in during.iter().enumerate() {
            bench.act(a);
            if i % every == 0 && stored.is_none() {
                stored = writer.step().unwrap();
            }
        }
        let stored = match stored {
            Some(stored) => stored,
            None => writer.finish().unwrap(),
        };
        prop_assert_eq!(stored.head().base.index, state.index);
        prop_assert_eq!(stored.head().digest(), state.digest());
        prop_assert_eq!(&verify(&*disk, stored.path()).unwrap(), stored.summary());

        let copy: Arc<dyn Tree> = Arc::new(MemoryTree::default());
        install(&*disk, stored.path(), &*copy).unwrap();
        prop_assert_eq!(rows(&copy, state.timestamp), then);
        prop_assert_eq!(records(&*copy), own);
        let mut machine = Machine::open(copy.clone(), &base()).unwrap();
        prop_assert_eq!(machine.state(), &state);
        prop_assert_eq!(mvcc::horizon(&*copy).unwrap(), state.timestamp);
        machine.apply(&bench.log[at..]).unwrap();
        prop_assert_eq!(machine.state(), bench.machine.state());
        let now = machine.state().timestamp;
        prop_assert_eq!(rows(&copy, now), rows(&tree, now));
        prop_assert_eq!(records(&*copy), records(&*tree));
    }
}

#[test]
fn every_flipped_bit_and_every_missing_byte_is_noticed() {
    let dir = directory();
    let (_, stored) = small(dir.path());
    let bytes = std::fs::read(stored.path()).unwrap();
    let path = dir.path().join("bad");
    let refused = |bad: &[u8], what: &str| {
        std::fs::write(&path, bad).unwrap();
        let error = verify(&RealDisk, &path).expect_err(what).to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        let tree = MemoryTree::default();
        assert!(install(&RealDisk, &path, &tree).is_err(), "{what}");
        let opened = Machine::open(Arc::new(tree), &base());
        assert!(opened.is_err() || opened.unwrap().state().index == Index::new(0), "{what}");
    };
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        refused(&bad, &format!("bit {bit}"));
    }
    for len in 0..bytes.len() {
        refused(&bytes[..len], &format!("cut at {len}"));
    }
    refused(&[&bytes[..], b"x"].concat(), "longer");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let dir = directory();
    let (_, stored) = small(dir.path());
    let mut bytes = std::fs::read(stored.path()).unwrap();
    bytes[8] = 9;
    std::fs::write(stored.path(), bytes).unwrap();
    let error = read_head(&RealDisk, stored.path()).unwrap_err().to_string();
    assert!(error.contains("format 9") && error.contains("newer"), "{error}");
}

/// A tree that takes so many batches and then fails.
struct Failing(MemoryTree, std::sync::atomic::AtomicUsize);

impl Tree for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, crate::error::Fatal> {
        self.0.get(key)
    }
    fn scan<'a>(
        &'a self,
        range: &KeyRange,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = crate::engine::ScanItem> + Send + 'a> {
        self.0.scan(range, reverse)
    }
    fn write(&self, batch: crate::engine::Batch) -> Result<(), crate::error::Fatal> {
        use std::sync::atomic::Ordering::SeqCst;
        if self.1.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_err() {
            return Err(crate::error::Fatal::new("write", "the power is out"));
        }
        self.0.write(batch)
    }
}

#[test]
fn an_interrupted_installation_opens_nowhere_and_is_repeated() {
    let dir = directory();
    let disk = RealDisk::shared();
    let mut bench = Bench::new();
    (0..20u8).for_each(|k| bench.act(&Act::Put(k, 255)));
    let stored = {
        let source = bench.machine.snapshot();
        store(dir.path(), source)
    };
    let name = stored.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(Mark::read(&*disk, dir.path(), ShardId::DATA).unwrap(), None);
    Mark::write(&*disk, dir.path(), ShardId::DATA, name).unwrap();
    let mut batches = 0;
    loop {
        let tree = Arc::new(Failing(MemoryTree::default(), batches.into()));
        let installed = install(&*disk, stored.path(), &*tree);
        let mark = Mark::read(&*disk, dir.path(), ShardId::DATA).unwrap().unwrap();
        assert_eq!(mark.file, name, "a start that finds it begins again with an empty tree");
        assert_eq!(Mark::read(&*disk, dir.path(), ShardId::META).unwrap(), None);
        if installed.is_ok() {
            let machine = Machine::open(tree, &base()).unwrap();
            assert_eq!(machine.state(), bench.machine.state());
            break;
        }
        let opened = Machine::open(tree, &base());
        assert!(opened.is_err() || (batches == 0 && opened.unwrap().state().index == Index::new(0)));
        batches += 1;
    }
    assert!(batches > 10, "the installation was one step: nothing was shown");
    Mark::clear(&*disk, dir.path(), ShardId::DATA).unwrap();
    assert_eq!(Mark::read(&*disk, dir.path(), ShardId::DATA).unwrap(), None);
    // A tree that has something is not overwritten.
    assert!(install(&*disk, stored.path(), &*bench.tree).is_err());
}

#[test]
fn a_damaged_mark_is_an_error() {
    let dir = directory();
    Mark::write(&RealDisk, dir.path(), ShardId::DATA, &file_name(ShardId::DATA, Index::new(3))).unwrap();
    let path = dir.path().join("installing-s1");
    let text = std::fs::read(&path).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&text),
        "quorate installing 1\nfile snapshot-s1-00000000000000000003.qsnap\ncheck fe4c9495\n"
    );
    for bit in 0..text.len() * 8 {
        let mut bad = text.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, bad).unwrap();
        assert!(Mark::read(&RealDisk, dir.path(), ShardId::DATA).is_err(), "bit {bit}");
    }
}

#[test]
fn snapshots_are_found_and_adopted() {
    let dir = directory();
    let (mut bench, first) = small(dir.path());
    bench.act(&Act::Put(9, 1));
    let source = bench.machine.snapshot();
    let second = store(dir.path(), source);
    std::fs::write(dir.path().join(file_name(ShardId::DATA, Index::new(99))), b"no").unwrap();
    std::fs::write(dir.path().join("snapshot-s1-5.qsnap"), b"no").unwrap();
    let found: Vec<Index> =
        list(&RealDisk, dir.path(), ShardId::DATA).unwrap().iter().map(|(_, head)| head.index()).collect();
    assert_eq!(found, [second.head().index(), first.head().index()]);
    assert_eq!(list(&RealDisk, dir.path(), ShardId::META).unwrap(), []);
    assert_eq!(list(&RealDisk, &dir.path().join("none"), ShardId::META).unwrap(), []);
    assert_eq!(adopt(&RealDisk, first.path()).unwrap(), first);
}

#[test]
fn a_log_begins_at_the_snapshot() {
    let entry = |i: u64, term: u64| LogEntry {
        index: Index::new(i),
        term: Term::new(term),
        payload: Payload::Empty,
        bytes: Bytes::new(),
    };
    let at = |index: u64, term: u64| BaseRecord { index: Index::new(index), term: Term::new(term), ..base() };
    let log = || {
        let (mut log, reader) = MemoryLog::new();
        let hard = HardState { term: Term::new(2), vote: REPLICA, commit: Index::new(3) };
        let entries = (1..=6).map(|i| entry(i, if i < 4 { 1 } else { 2 })).collect();
        let records = [LogRecord::Base(base()), LogRecord::Entries(entries), LogRecord::Hard(hard)];
        log.append(REPLICA, ShardId::DATA, &records).unwrap();
        (log, reader)
    };
    // The log has the snapshot's last entry: what is behind it was promised, and stays.
    let (mut l, reader) = log();
    rebase(&mut l, &*reader, REPLICA, &at(5, 2)).unwrap();
    let bounds = reader.bounds(ShardId::DATA).unwrap();
    assert_eq!((bounds.base.index.get(), bounds.last.get(), bounds.hard.vote), (5, 6, REPLICA));
    // Nothing to do twice, nor for an older one.
    rebase(&mut l, &*reader, REPLICA, &at(4, 2)).unwrap();
    assert_eq!(reader.bounds(ShardId::DATA).unwrap().base.index.get(), 5);
    // It has another one there: all of it is of another history.
    let (mut l, reader) = log();
    rebase(&mut l, &*reader, REPLICA, &at(5, 3)).unwrap();
    let bounds = reader.bounds(ShardId::DATA).unwrap();
    assert_eq!((bounds.base.index.get(), bounds.last.get(), bounds.last_term.get()), (5, 5, 3));
    assert_eq!((bounds.hard.term.get(), bounds.hard.vote.get()), (3, 0));
    // It ends before it.
    let (mut l, reader) = log();
    rebase(&mut l, &*reader, REPLICA, &at(9, 2)).unwrap();
    let bounds = reader.bounds(ShardId::DATA).unwrap();
    assert_eq!((bounds.base.index.get(), bounds.last.get(), bounds.hard.term.get()), (9, 9, 2));
    // There is none yet.
    let (mut l, reader) = MemoryLog::new();
    rebase(&mut l, &*reader, REPLICA, &at(9, 2)).unwrap();
    assert_eq!(reader.bounds(ShardId::DATA).unwrap().last.get(), 9);
}

#[test]
fn golden_file() {
    let dir = directory();
    let (_, stored) = small(dir.path());
    assert_eq!(stored.path(), PathBuf::from(dir.path()).join("snapshot-s1-00000000000000000007.qsnap"));
    assert_eq!(parse_file_name("snapshot-s1-00000000000000000007.qsnap"), Some((ShardId::DATA, Index::new(7))));
    for other in
        ["snapshot-s1-7.qsnap", "snapshot-s1-00000000000000000007.new", "snapshot-1-00000000000000000007.qsnap"]
    {
        assert_eq!(parse_file_name(other), None);
    }
    let bytes = std::fs::read(stored.path()).unwrap();
    assert_eq!(&bytes[..12], b"QUORSNP\n\x01\0\0\0");
    let summary = stored.summary();
    assert_eq!((summary.rows, summary.bytes), (2, bytes.len() as u64));
    assert_eq!(*blake3::hash(&bytes[..bytes.len() - 32]).as_bytes(), summary.hash.0);
    let hash: String = summary.hash.0[..8].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hash, "f7166c55132e6244");
}
