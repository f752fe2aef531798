//! Chains against marks; trees against their digests; ranges against each other.

use quorate_shared::ids::{Epoch, IndexId, ReplicaId};

use super::*;
use crate::engine::Batch;
use crate::engine::memory::MemoryTree;
use crate::entry::{Body, Transaction};
use crate::log::memory::MemoryLog;
use crate::log::{Log, LogEntry, LogRecord, Membership};
use crate::machine::Machine;

const S1: ShardId = ShardId::DATA;
const R: ReplicaId = ReplicaId::new(1);

fn base() -> BaseRecord {
    BaseRecord::founding(S1, Membership::default(), Epoch { number: 1, id: 2 })
}

fn key(n: u64) -> Bytes {
    let columns = Bytes::from(n.to_be_bytes().to_vec());
    Key::Data { storage: TableId::new(7), index: IndexId::PRIMARY, columns }.encode()
}

/// `count` entries that put one row each, and the tree they make.
fn written(count: u64) -> (Vec<LogEntry>, Arc<MemoryTree>) {
    let tree = Arc::new(MemoryTree::default());
    let mut machine = Machine::open(tree.clone(), &base()).unwrap();
    let mut entries = Vec::new();
    for i in 1..=count {
        let row = Bytes::from(format!("row {i}"));
        let t = Transaction { writes: vec![(key(i), Some(row))], ..Transaction::default() };
        let state = machine.state();
        let e = Entry {
            index: state.index.next(),
            previous: state.chain,
            timestamp: Timestamp::new(i, 0),
            body: Body::Write(vec![t]),
        };
        let e = e.logged(Term::new(1));
        machine.apply(std::slice::from_ref(&e)).unwrap();
        entries.push(e);
    }
    (entries, tree)
}

fn log_of(entries: Vec<LogEntry>) -> Arc<dyn LogReader> {
    let (mut log, reader) = MemoryLog::new();
    log.append(R, S1, &[LogRecord::Base(base()), LogRecord::Entries(entries)]).unwrap();
    log.sync().unwrap();
    reader
}

/// What an attacker makes: entry `at` has other bytes, and everything behind it names the hashes that follow from it.
fn forged(entries: &[LogEntry], at: usize) -> Vec<LogEntry> {
    let mut out = entries.to_vec();
    let mut chain = Hash::default();
    for (i, e) in out.iter_mut().enumerate() {
        let mut entry = Entry::decode(&e.bytes).unwrap();
        entry.previous = chain;
        if i == at
            && let Body::Write(list) = &mut entry.body
        {
            list[0].writes[0].1 = Some(Bytes::from_static(b"forged"));
        }
        e.bytes = entry.encode();
        chain = entry::chain(chain, e);
    }
    out
}

#[test]
fn an_honest_chain_agrees_with_its_tree() {
    let (entries, tree) = written(2100);
    let reader = log_of(entries);
    let (proof, marks, damage) = TreeWalk::new(tree, &base()).unwrap().run().unwrap();
    assert_eq!((proof.applied, proof.rows, proof.digests, damage.len()), (Index::new(2100), 2100, 1, 0));
    let (proof, damage) = ChainWalk::new(&*reader, S1, marks).unwrap().run().unwrap();
    assert_eq!((proof.entries, proof.void, damage.len()), (2100, 0, 0));
    assert_eq!(proof.agrees["the engine's checkpoints"], 2);
    assert_eq!(proof.agrees_at, Some(Index::new(2100)));
}

#[test]
fn a_forged_entry_with_a_recomputed_chain_fails_against_a_mark() {
    let (entries, _) = written(50);
    let honest = ChainWalk::new(&*log_of(entries.clone()), S1, vec![]).unwrap().run().unwrap().0;
    let anchor = Mark { index: Index::new(40), chain: Hash::default(), whose: "the anchor".into() };
    let reader = log_of(entries.clone());
    let chain = crate::ship::chain_at(&*reader, S1, Index::new(40)).unwrap().unwrap();
    let anchor = Mark { chain, ..anchor };

    let forged = log_of(forged(&entries, 19));
    // In itself it is perfect: as many entries, none of them void.
    let (proof, damage) = ChainWalk::new(&*forged, S1, vec![]).unwrap().run().unwrap();
    assert_eq!((proof.entries, proof.void, damage.len()), (50, 0, 0));
    assert_ne!(proof.chain, honest.chain);
    let (_, damage) = ChainWalk::new(&*forged, S1, vec![anchor.clone()]).unwrap().run().unwrap();
    assert_eq!((damage[0].shard, damage[0].index), (Some(S1), Some(Index::new(40))));
    assert!(damage[0].what.contains("the anchor has"), "{damage:?}");
    // Behind the anchor nothing is proved: it must say how far it reaches.
    let (proof, damage) = ChainWalk::new(&*reader, S1, vec![anchor]).unwrap().run().unwrap();
    assert_eq!((proof.agrees_at, damage.len()), (Some(Index::new(40)), 0));
    let beyond = Mark { index: Index::new(51), chain, whose: "the anchor".into() };
    let (proof, _) = ChainWalk::new(&*reader, S1, vec![beyond]).unwrap().run().unwrap();
    assert_eq!(proof.outside["the anchor"], 1);
}

#[test]
fn a_row_that_was_not_applied_is_noticed() {
    let (_, tree) = written(30);
    let mut batch = Batch::default();
    batch.writes.insert(key(12), Some(mvcc::Newest::encode(Timestamp::new(12, 0), Some(b"row 13"))));
    tree.write(batch).unwrap();
    let (_, _, damage) = TreeWalk::new(tree, &base()).unwrap().run().unwrap();
    assert!(damage[0].what.contains("tbl7"), "{damage:?}");
}

#[test]
fn ranges_narrow_a_difference() {
    let (_, a) = written(1000);
    let (_, b) = written(1000);
    let mut batch = Batch::default();
    batch.writes.insert(key(523), None);
    b.write(batch).unwrap();
    // Newer than the comparison: it must not matter.
    let mut batch = Batch::default();
    batch.writes.insert(key(2000), Some(mvcc::Newest::encode(Timestamp::new(5000, 0), Some(b"later"))));
    a.write(batch).unwrap();
    let ranges = |tree: Arc<MemoryTree>| Ranges::new(Snapshot::new(tree, Timestamp::new(1000, 0)), [TableId::new(7)]);
    let (a, b) = (ranges(a), ranges(b));
    let (mut start, mut differ, mut rows) = (rows_start(), Vec::new(), 0);
    loop {
        let ours = a.cut(&start, 64, 4).unwrap();
        let ends: Vec<Bytes> = ours.iter().map(|r| r.end.clone()).collect();
        let theirs = b.sums(&start, &ends).unwrap();
        for (ours, theirs) in ours.iter().zip(&theirs) {
            rows += ours.rows;
            if ours != theirs {
                differ.push((ours.rows, theirs.rows, ours.end.clone()));
            }
        }
        start = ends.last().unwrap().clone();
        if start >= rows_end() {
            break;
        }
    }
    assert_eq!(rows, 1000);
    assert_eq!(differ.len(), 1);
    assert_eq!((differ[0].0, differ[0].1), (64, 63));
    assert!(differ[0].2 > key(523) && differ[0].2 <= key(600));
    // A table that is gone does not count.
    let none = Ranges::new(b.snapshot, []);
    assert_eq!(none.cut(&rows_start(), 64, 4).unwrap()[0].rows, 0);
}
