//! A directory that was really written, verified whole and damaged.

use bytes::Bytes;
use quorate_core::entry::{self, Body, Entry, Transaction};
use quorate_core::keys::Key;
use quorate_core::log::segment::SegmentLog;
use quorate_core::log::{HardState, Log, LogEntry, LogRecord};
use quorate_core::machine::Machine;
use quorate_shared::ids::{ClusterId, Epoch, Hash, IndexId, NodeId, TableId, Term, Timestamp};
use quorate_shared::limits::SEGMENT_BYTES;
use quorate_shared::status::NodeKind;

use std::fs;

use super::*;
use crate::peers::message::{Founding, Member};
use crate::store::Directory;

const S1: ShardId = ShardId::DATA;
const R: ReplicaId = ReplicaId::new(1);

/// Founds a directory.
fn founded(path: &Path) -> Founding {
    let mut directory = Directory::open(path, NodeId::new(1), NodeKind::Voter).unwrap();
    let founding = Founding {
        cluster: ClusterId([7; 16]),
        epoch: Epoch { number: 1, id: 99 },
        members: vec![Member { node: NodeId::new(1), nonce: directory.nonce(), replica: R }],
        replicator: quorate_core::replica::Protocol::Raft,
    };
    crate::store::engine::begin(&mut directory, &founding, R, SEGMENT_BYTES).unwrap();
    founding
}

fn written(count: u64, forged: Option<u64>) -> Vec<LogEntry> {
    let mut chain = Hash::default();
    let mut out = Vec::new();
    for i in 1..=count {
        let columns = Bytes::from((i % 50).to_be_bytes().to_vec());
        let key = Key::Data { storage: TableId::new(7), index: IndexId::PRIMARY, columns }.encode();
        let row = Bytes::from(if forged == Some(i) { "forged".to_owned() } else { format!("row {i}") });
        let t = Transaction { writes: vec![(key, Some(row))], ..Transaction::default() };
        let body = Body::Write(vec![t]);
        let e = Entry { index: Index::new(i), previous: chain, timestamp: Timestamp::new(i, 0), body };
        let e = e.logged(Term::new(1));
        chain = entry::chain(chain, &e);
        out.push(e);
    }
    out
}

/// Writes and applies entries, and closes everything cleanly.
fn filled(path: &Path, entries: &[LogEntry]) -> Founding {
    let founding = founded(path);
    let (mut log, reader, _) = SegmentLog::open(&path.join("log")).unwrap();
    let commit = Index::new(entries.len() as u64);
    let hard = HardState { term: Term::new(1), vote: R, commit };
    log.append(R, S1, &[LogRecord::Entries(entries.to_vec()), LogRecord::Hard(hard)]).unwrap();
    log.sync().unwrap();
    let opened = trust::open_trusted(path, "boot", CACHE_BYTES).unwrap();
    for shard in crate::founding::SHARDS {
        let tree = opened.engine.tree(&shard.to_string()).unwrap();
        let mut machine = Machine::open(tree, &reader.bounds(shard).unwrap().base).unwrap();
        if shard == S1 {
            machine.apply(entries).unwrap();
        }
    }
    trust::close(path, "boot", opened.engine).unwrap();
    founding
}

fn verified(path: &Path) -> Verified {
    run(&Options { directory: path.to_owned(), ..Options::default() }).unwrap()
}

#[test]
fn a_whole_directory_is_proved_and_a_running_one_refused() {
    let tmp = tempfile::tempdir().unwrap();
    filled(tmp.path(), &written(1500, None));
    let before = crate::store::used_bytes(tmp.path());
    let seen = verified(tmp.path());
    assert!(seen.proved && seen.closed_cleanly, "{seen}");
    let s1 = &seen.shards[1];
    assert_eq!((s1.chain.entries, s1.chain.agrees_at), (1500, Some(Index::new(1500))));
    assert_eq!(s1.tree.as_ref().map(|t| (t.rows, t.digests)), Some((50, 1)));
    let text = seen.to_string();
    assert!(text.contains("entries 1 to 1,500 are one chain"), "{text}");
    assert!(text.contains("the engine's applied record and the engine's checkpoints"), "{text}");
    assert_eq!(crate::store::used_bytes(tmp.path()), before, "nothing was written");
    let held = Directory::open(tmp.path(), NodeId::new(1), NodeKind::Voter).unwrap();
    let error = run(&Options { directory: tmp.path().to_owned(), ..Options::default() }).expect_err("it runs");
    assert!(error.to_string().contains("in use"), "{error}");
    drop(held);
    // One that is looked at cannot be started.
    let lock = share_lock(tmp.path()).unwrap();
    assert!(Directory::open(tmp.path(), NodeId::new(1), NodeKind::Voter).is_err());
    drop(lock);
}

#[test]
fn damage_is_named_with_file_offset_and_index() {
    let tmp = tempfile::tempdir().unwrap();
    filled(tmp.path(), &written(300, None));
    let segment = tmp.path().join("log/0000000001.seg");
    let bytes = fs::read(&segment).unwrap();
    // In the middle of the log; then in its last record, which only a clean close tells from an interrupted write.
    let last = bytes.iter().rposition(|b| *b != 0).unwrap();
    for at in [last / 2, last] {
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        fs::write(&segment, &bad).unwrap();
        let seen = verified(tmp.path());
        assert!(!seen.proved);
        let damage = &seen.damage[0];
        assert!(damage.file.as_deref().is_some_and(|f| f.ends_with("0000000001.seg")), "{seen}");
        assert!(damage.offset.is_some_and(|o| o <= at as u64 && o > at as u64 - 200), "{at}: {seen}");
        assert!(damage.what.contains("of s1"), "{seen}");
    }
    fs::write(&segment, &bytes).unwrap();
    let db = tmp.path().join("engine/db");
    let mut bad = fs::read(&db).unwrap();
    let at = bad.len() / 3;
    bad[at] ^= 1;
    fs::write(&db, &bad).unwrap();
    let seen = verified(tmp.path());
    assert!(!seen.proved && seen.damage.iter().any(|d| d.file.as_deref().is_some_and(|f| f.ends_with("engine/db"))));
}

#[test]
fn a_forged_log_is_found_by_the_engine_and_by_a_mark() {
    let tmp = tempfile::tempdir().unwrap();
    let founding = filled(tmp.path(), &written(300, None));
    let honest = verified(tmp.path()).shards[1].chain.chain;
    // The whole log, written anew with one other row and every hash behind it made to fit.
    fs::remove_dir_all(tmp.path().join("log")).unwrap();
    let (mut log, ..) = SegmentLog::open(&tmp.path().join("log")).unwrap();
    let base = |shard| crate::founding::base_record(&founding, shard);
    log.append(R, ShardId::META, &[LogRecord::Base(base(ShardId::META))]).unwrap();
    log.append(R, S1, &[LogRecord::Base(base(S1)), LogRecord::Entries(written(300, Some(100)))]).unwrap();
    log.sync().unwrap();
    drop(log);
    let seen = verified(tmp.path());
    assert!(seen.damage.iter().any(|d| d.what.contains("the engine's applied record")), "{seen}");
    let mark = Mark { index: Index::new(300), chain: honest, whose: "the anchor".into() };
    let options = Options {
        directory: tmp.path().to_owned(),
        log_only: true,
        marks: BTreeMap::from([(S1, vec![mark])]),
        ..Options::default()
    };
    let seen = run(&options).unwrap();
    assert_eq!(seen.damage.len(), 1, "{seen}");
    assert_eq!((seen.damage[0].shard, seen.damage[0].index), (Some(S1), Some(Index::new(300))));
}
