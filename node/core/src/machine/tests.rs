//! The machine: applying, what it keeps, what it collects.

use proptest::prelude::*;
use quorate_shared::ids::{ClientId, Epoch, ShardId, WriteId};
use quorate_shared::limits::HORIZON_MS_DEFAULT;

use super::*;
use crate::engine::memory::MemoryTree;
use crate::mvcc::{self, Snapshot};

fn base() -> BaseRecord {
    BaseRecord::founding(ShardId::DATA, Membership::default(), Epoch::default())
}

fn key(n: u8) -> Bytes {
    Key::Data {
        storage: TableId::new(7),
        index: quorate_shared::ids::IndexId::PRIMARY,
        columns: Bytes::from(vec![0x81, n]),
    }
    .encode()
}

fn row(s: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(s.as_bytes()))
}

fn put(n: u8, value: Option<&str>) -> Transaction {
    Transaction { writes: vec![(key(n), value.and_then(row))], ..Transaction::default() }
}

/// A machine with what makes entries for it.
struct Bench {
    tree: Arc<MemoryTree>,
    machine: Machine,
}

impl Bench {
    fn new() -> Self {
        let tree = Arc::new(MemoryTree::default());
        let machine = Machine::open(tree.clone(), &base()).unwrap();
        Self { tree, machine }
    }

    fn reopen(self) -> Self {
        let machine = Machine::open(self.tree.clone(), &base()).unwrap();
        assert_eq!(machine.state(), self.machine.state());
        Self { tree: self.tree, machine }
    }

    fn entry(&self, ms: u64, body: Body) -> LogEntry {
        let s = self.machine.state();
        let e = Entry { index: s.index.next(), previous: s.chain, timestamp: Timestamp::new(ms, 0), body };
        e.logged(Term::new(1))
    }

    fn write(&mut self, ms: u64, transactions: Vec<Transaction>) -> Applied {
        let e = self.entry(ms, Body::Write(transactions));
        self.machine.apply(&[e]).unwrap()
    }

    fn at(&self, ms: u64) -> Snapshot {
        Snapshot::new(self.tree.clone(), Timestamp::new(ms, 0))
    }

    fn get(&self, ms: u64, n: u8) -> Option<String> {
        let version = self.at(ms).get(&key(n)).unwrap();
        version.map(|v| String::from_utf8(v.row.to_vec()).unwrap())
    }

    fn rows(&self, ms: u64, reverse: bool) -> Vec<(u8, String)> {
        let snapshot = self.at(ms);
        let range = keys::storage_range(TableId::new(7));
        let rows = snapshot.scan(&range, reverse).map(|item| {
            let (k, v) = item.unwrap();
            (*k.last().unwrap(), String::from_utf8(v.row.to_vec()).unwrap())
        });
        rows.collect()
    }

    fn assert_digests(&self) {
        assert_eq!(self.machine.scrub_all(), vec![]);
    }

    fn keys(&self) -> usize {
        self.tree.scan(&keys::history_range(), false).count()
            + self.tree.scan(&keys::storage_range(TableId::new(7)), false).count()
    }
}

impl Machine {
    /// A scrub that takes every storage for live.
    fn scrub_all(&self) -> Vec<TableId> {
        let mut scrub = self.scrub();
        scrub.expect_all(self.state.digests.clone());
        loop {
            if let Some(wrong) = scrub.step(3).unwrap() {
                return wrong;
            }
        }
    }
}

#[test]
fn versions_history_and_tombstones() {
    let mut b = Bench::new();
    b.write(10, vec![put(1, Some("a")), put(2, Some("b"))]);
    b.write(20, vec![put(1, Some("c"))]);
    b.write(30, vec![put(1, None)]);
    b.write(40, vec![put(1, Some("d"))]);
    let seen: Vec<_> = [5, 10, 19, 20, 30, 39, 40].iter().map(|&ms| b.get(ms, 1)).collect();
    let expected = [None, Some("a"), Some("a"), Some("c"), None, None, Some("d")];
    assert_eq!(seen, expected.map(|s| s.map(str::to_owned)));
    assert_eq!(b.rows(35, false), [(2, "b".into())]);
    assert_eq!(b.rows(45, true), [(2, "b".into()), (1, "d".into())]);
    b.assert_digests();
    let range = keys::storage_range(TableId::new(7));
    assert!(mvcc::changed_since(&*b.tree, &range, Timestamp::new(39, 0)).unwrap());
    assert!(!mvcc::changed_since(&*b.tree, &range, Timestamp::new(40, 0)).unwrap());
    b.reopen().assert_digests();
}

#[test]
fn one_entry_makes_one_version() {
    let mut b = Bench::new();
    b.write(10, vec![put(1, Some("a")), put(1, Some("b")), put(2, Some("x")), put(2, None)]);
    b.write(20, vec![put(1, Some("c")), put(1, None), put(1, Some("d"))]);
    assert_eq!((b.get(10, 1), b.get(10, 2)), (Some("b".into()), None));
    assert_eq!((b.get(15, 1), b.get(20, 1)), (Some("b".into()), Some("d".into())));
    b.assert_digests();
}

#[test]
fn an_entry_made_for_another_predecessor_is_void() {
    let mut b = Bench::new();
    let stale = b.entry(50, Body::Write(vec![put(1, Some("stale"))]));
    b.write(10, vec![put(1, Some("a"))]);
    let chain = b.machine.state().chain;
    let applied = b.machine.apply(&[LogEntry { index: Index::new(2), ..stale }]).unwrap();
    assert_eq!((applied.index, applied.void), (Index::new(2), vec![Index::new(2)]));
    assert_eq!(applied.timestamp, Timestamp::new(10, 0));
    assert_ne!(applied.chain, chain);
    assert_eq!(b.get(99, 1), Some("a".into()));
    // A timestamp that does not grow is void too.
    assert_eq!(b.write(10, vec![put(1, Some("late"))]).void, vec![Index::new(3)]);
    // The next one is made for the chain that includes the void ones.
    assert_eq!(b.write(60, vec![put(1, Some("z"))]).void, vec![]);
    assert_eq!(b.get(99, 1), Some("z".into()));
    assert_eq!(b.machine.checkpoints().hash_at(Index::new(1)).unwrap(), Some(chain));
    assert_eq!(b.machine.checkpoints().hash_at(Index::new(5)).unwrap(), None);
}

#[test]
fn gaps_and_newer_kinds_are_fatal() {
    let mut b = Bench::new();
    b.write(10, vec![]);
    // What was applied before is skipped.
    let empty =
        |index| LogEntry { index: Index::new(index), term: Term::new(2), payload: Payload::Empty, bytes: Bytes::new() };
    let applied = b.machine.apply(&[empty(1), empty(2)]).unwrap();
    assert_eq!((applied.index, applied.term), (Index::new(2), Term::new(2)));
    assert!(b.machine.apply(&[empty(4)]).is_err());
    assert!(b.machine.apply(&[empty(3)]).is_err(), "refuses everything after an error");
    let mut b = b.reopen();
    let mut bytes = b.entry(20, Body::Empty).bytes.to_vec();
    bytes[0] = 9;
    let newer = LogEntry { payload: Payload::Entry, bytes: Bytes::from(bytes), ..empty(3) };
    assert!(b.machine.apply(&[newer]).unwrap_err().to_string().contains("newer version"));
}

#[test]
fn exactly_once_window() {
    let mut b = Bench::new();
    let client = ClientId([1; 16]);
    let id = |seq| WriteId { client, seq };
    let tx = |seq| Transaction { write: Some(id(seq)), rows: seq, last_id: Some(-3), ..put(1, Some("v")) };
    let known = |b: &Bench, seq| b.machine.state().known(&*b.tree, id(seq)).unwrap();
    assert_eq!(known(&b, 1), Known::NoClient);
    b.write(10, vec![tx(1), tx(2)]);
    let Known::Done(result) = known(&b, 2) else { panic!() };
    assert_eq!((result.rows, result.last_id, result.index, result.position), (2, Some(-3), Index::new(1), 1));
    assert_eq!(known(&b, 3), Known::New);
    b.write(20, vec![tx(66)]);
    assert_eq!((known(&b, 2), known(&b, 3)), (Known::BelowWindow, Known::New));
    let mut b = b.reopen();
    assert!(matches!(known(&b, 66), Known::Done(_)));
    let expire = b.entry(30, Body::ClientExpire(vec![client]));
    b.machine.apply(&[expire]).unwrap();
    assert_eq!(known(&b, 66), Known::NoClient);
    let b = b.reopen();
    assert_eq!(b.tree.scan(&keys::client_range(None), false).count(), 0);
}

#[test]
fn tables_sequences_and_purge() {
    let mut b = Bench::new();
    let def = crate::keys::tests::table();
    let fence = |def| Transaction { fences: vec![(TableId::new(5), def)], ..Transaction::default() };
    let mut t = fence(Some(def.clone()));
    t.sequences.push((def.id, 64));
    assert!(b.write(10, vec![t]).schema_changed);
    assert!(!b.write(20, vec![put(1, Some("a")), put(2, Some("b"))]).schema_changed);
    assert_eq!(b.machine.state().sequences[&def.id], 64);
    assert_eq!(*b.machine.state().tables[&def.id], def);
    let mut b = b.reopen();
    b.write(30, vec![fence(None), Transaction { purged: vec![key(1), key(9)], ..Transaction::default() }]);
    assert!(b.machine.state().tables.is_empty() && b.machine.state().sequences.is_empty());
    assert_eq!(b.rows(40, false), [(2, "b".into())]);
    b.assert_digests();
    b.write(40, vec![Transaction { purged: vec![key(2)], ..Transaction::default() }]);
    assert!(b.machine.state().digests.is_empty());
    b.reopen();
}

#[test]
fn a_big_group_is_written_in_pieces_and_checkpointed() {
    let mut b = Bench::new();
    let mut entries = Vec::new();
    let mut chain = Hash::default();
    for i in 1..=1500u64 {
        let t = Transaction { writes: vec![(key((i % 7) as u8), row(&"x".repeat(500)))], ..Transaction::default() };
        let e = Entry {
            index: Index::new(i),
            previous: chain,
            timestamp: Timestamp::new(i, 0),
            body: Body::Write(vec![t]),
        };
        let e = e.logged(Term::new(1));
        chain = entry::chain(chain, &e);
        entries.push(e);
    }
    let applied = b.machine.apply(&entries).unwrap();
    assert_eq!((applied.index, applied.chain, applied.void.len()), (Index::new(1500), chain, 0));
    b.assert_digests();
    let at_1024 = b.machine.checkpoints().hash_at(Index::new(1024)).unwrap();
    let b = b.reopen();
    assert_eq!(b.machine.checkpoints().hash_at(Index::new(1024)).unwrap(), at_1024);
    assert_eq!(b.machine.checkpoints().hash_at(Index::new(1025)).unwrap(), None);
}

#[test]
fn collection_keeps_what_can_be_read() {
    let mut b = Bench::new();
    b.write(10, vec![put(1, Some("a")), put(2, Some("x")), put(3, Some("p"))]);
    b.write(20, vec![put(1, Some("b")), put(2, None), put(3, None)]);
    b.write(30, vec![put(1, Some("c")), put(3, Some("q")), put(4, Some("e")), put(4, None)]);
    // Horizon at 25: only what was replaced by 20 goes.
    let now = HORIZON_MS_DEFAULT + 25;
    while !b.machine.collect(now, 1).unwrap().done {}
    assert_eq!(mvcc::horizon(&*b.tree).unwrap(), Timestamp::new(25, 0));
    assert!(!b.at(24).is_readable().unwrap() && b.at(25).is_readable().unwrap());
    let early = b.at(24);
    assert!(early.scan(&keys::storage_range(TableId::new(7)), false).last().unwrap().is_err());
    assert!(early.get(&key(2)).is_err(), "collected: it cannot be told from what never was");
    assert!(early.get(&key(4)).is_err() && b.at(25).get(&key(4)).unwrap().is_none());
    assert_eq!(b.rows(25, false), [(1, "b".into())]);
    assert_eq!(b.rows(30, false), [(1, "c".into()), (3, "q".into())]);
    assert_eq!(b.tree.get(&key(2)).unwrap(), None, "the tombstone went with its history");
    // Right after a walk there is nothing to do; later the rest goes.
    assert!(b.machine.collect(now + 100, 10).unwrap().done);
    assert_eq!(b.keys(), 6);
    b.write(now * 3, vec![]);
    while !b.machine.collect(now * 3, 2).unwrap().done {}
    assert_eq!(b.keys(), 2);
    assert_eq!(b.rows(u64::MAX >> 16, false), [(1, "c".into()), (3, "q".into())]);
    b.assert_digests();
    b.reopen();
}

#[test]
fn collection_skips_what_a_hot_row_needs() {
    let mut b = Bench::new();
    let now = HORIZON_MS_DEFAULT * 2;
    b.write(10, vec![put(1, Some("old")), put(2, Some("x"))]);
    b.write(20, vec![put(1, Some("older")), put(2, None)]);
    for i in 0..1000 {
        b.write(now - 1000 + i, vec![put(1, Some(&i.to_string()))]);
    }
    let mut seen = 0;
    loop {
        let step = b.machine.collect(now, 5).unwrap();
        seen += step.seen;
        if step.done {
            break;
        }
    }
    // Steps of 5 never see 16 in a row, so go on in one step.
    assert!(seen > 1000);
    b.write(now * 2, vec![put(1, Some("last"))]);
    let step = b.machine.collect(now + HORIZON_MS_DEFAULT - 500, 2000).unwrap();
    assert!(step.done && step.seen < 600, "{step:?}");
    assert_eq!(b.get(now - 1, 1), Some("999".into()));
    assert_eq!(b.get(now - 500, 1), Some("500".into()));
    assert_eq!(b.tree.get(&key(2)).unwrap(), None);
    b.assert_digests();
}

#[test]
fn a_scrub_finds_a_changed_row() {
    let mut b = Bench::new();
    b.write(10, vec![put(1, Some("a")), put(2, Some("b"))]);
    let mut batch = Batch::default();
    batch.writes.insert(key(2), Some(Newest::encode(Timestamp::new(10, 0), Some(b"B"))));
    b.tree.write(batch).unwrap();
    assert_eq!(b.machine.scrub_all(), [TableId::new(7)]);
}

#[test]
fn scans_are_snapshots_while_writes_go_on() {
    let mut b = Bench::new();
    b.write(1, (0..200).map(|n| put(n, Some("0"))).collect());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let tree = b.tree.clone();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || rounds == 0 {
                let applied = MachineState::load(&*tree, &base()).unwrap().timestamp;
                let snapshot = Snapshot::new(tree.clone(), applied);
                let range = keys::storage_range(TableId::new(7));
                let rows: Vec<Bytes> = snapshot.scan(&range, rounds % 2 == 1).map(|r| r.unwrap().1.row).collect();
                assert_eq!(rows.len(), 200);
                assert!(rows.iter().all(|r| r == &rows[0]), "all rows of one version");
                rounds += 1;
            }
        });
        for ms in 2..100 {
            b.write(ms, (0..200).map(|n| put(n, Some(&ms.to_string()))).collect());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
}

/// What a `kill -9` leaves: the files as the system has them, without what sled still holds in memory.
#[test]
fn an_engine_that_lost_its_memory_catches_up_from_the_log() {
    use crate::engine::Engine;
    use crate::engine::sled::SledEngine;

    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let engine = SledEngine::open(&live, 8 << 20).unwrap();
    let mut machine = Machine::open(engine.tree("t").unwrap(), &base()).unwrap();
    let mut log: Vec<LogEntry> = Vec::new();
    let mut behind = 0;
    for round in 1..=10u64 {
        let mut chain = machine.state().chain;
        let from = log.len();
        for i in 0..100 {
            let index = Index::new(log.len() as u64 + 1);
            let size = if i % 40 == 39 { 9000 } else { 400 };
            let writes = vec![
                (key((i * 7 % 50) as u8), row(&round.to_string().repeat(size))),
                (key((i % 13) as u8), if i % 3 == 0 { None } else { row("x") }),
            ];
            let write = Some(WriteId { client: ClientId([i as u8 % 5; 16]), seq: index.get() });
            let body = Body::Write(vec![Transaction { write, writes, ..Transaction::default() }]);
            let e = Entry { index, previous: chain, timestamp: Timestamp::from_raw(index.get()), body };
            let e = e.logged(Term::new(1));
            chain = entry::chain(chain, &e);
            log.push(e);
        }
        machine.apply(&log[from..]).unwrap();

        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir_all(copy.join("blobs")).unwrap();
        for file in std::fs::read_dir(&live).unwrap().map(Result::unwrap).filter(|f| f.path().is_file()) {
            std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        let recovered = SledEngine::open(&copy, 8 << 20).unwrap();
        let mut again = Machine::open(recovered.tree("t").unwrap(), &base()).unwrap();
        assert_eq!(again.scrub_all(), vec![], "whole batches only");
        let applied = again.state().index.get() as usize;
        assert!(applied <= log.len());
        behind += log.len() - applied;
        again.apply(&log[applied..]).unwrap();
        assert_eq!(again.state(), machine.state());
        assert_eq!(again.scrub_all(), vec![]);
    }
    assert!(behind > 0, "nothing was ever lost, so this has shown nothing");
}

proptest! {
    /// Random entries and collections against a model that remembers everything.
    #[test]
    fn reads_agree_with_a_model(
        steps in prop::collection::vec(
            prop_oneof![
                6 => prop::collection::vec((0..4u8, prop::option::of("[a-z]")), 1..4).prop_map(Some),
                1 => Just(None),
            ],
            1..40,
        ),
        reopen_at in 0..40usize,
    ) {
        let mut b = Bench::new();
        let mut model = std::collections::BTreeMap::new();
        let mut states = vec![];
        let hour = HORIZON_MS_DEFAULT;
        let mut ms = hour;
        for (i, step) in steps.iter().enumerate() {
            ms += hour / 4;
            match step {
                Some(writes) => {
                    let list = writes.iter().map(|(n, v)| put(*n, v.as_deref())).collect();
                    prop_assert!(b.write(ms, list).void.is_empty());
                    for (n, v) in writes {
                        match v {
                            Some(v) => drop(model.insert(*n, v.clone())),
                            None => drop(model.remove(n)),
                        }
                    }
                    states.push((ms, model.clone()));
                }
                None => drop(b.machine.collect(ms, 3).unwrap()),
            }
            if i == reopen_at {
                b = b.reopen();
            }
            for (at, model) in &states {
                if b.at(*at).is_readable().unwrap() {
                    let rows: std::collections::BTreeMap<u8, String> = b.rows(*at, false).into_iter().collect();
                    prop_assert_eq!(&rows, model);
                }
            }
        }
        b.assert_digests();
    }
}
