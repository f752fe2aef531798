//! The segment log: torn tails, damage, and everything between.

use std::fs::{self, OpenOptions};

use proptest::prelude::*;
use quorate_shared::ids::{Epoch, NodeId};

use super::*;
use crate::log::memory::MemoryLog;
use crate::log::{BaseRecord, HardState, Membership, Payload};

const S0: ShardId = ShardId::META;
const S1: ShardId = ShardId::DATA;
const R: ReplicaId = ReplicaId::new(1);
const SMALL: u64 = 8 << 10;

/// In memory where the system has that: these tests are about bytes, and a sync of a busy disk takes long.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn base(shard: ShardId) -> LogRecord {
    LogRecord::Base(BaseRecord::founding(
        shard,
        Membership::of_voters([(R, NodeId::new(1))]),
        Epoch { number: 1, id: 2 },
    ))
}

fn entry(index: u64, term: u64, size: usize) -> LogEntry {
    let bytes = Bytes::from(vec![index as u8; size]);
    LogEntry { index: Index::new(index), term: Term::new(term), payload: Payload::Entry, bytes }
}

fn entries(range: std::ops::Range<u64>, term: u64, size: usize) -> LogRecord {
    LogRecord::Entries(range.map(|i| entry(i, term, size)).collect())
}

fn hard(term: u64, commit: u64) -> LogRecord {
    LogRecord::Hard(HardState { term: Term::new(term), vote: R, commit: Index::new(commit) })
}

fn all(reader: &dyn LogReader, shard: ShardId) -> Vec<LogEntry> {
    let Some(bounds) = reader.bounds(shard) else { return vec![] };
    let mut out = Vec::new();
    let mut from = bounds.base.index.next();
    while from <= bounds.last {
        let some = reader.entries(shard, from, bounds.last.next(), 3000).unwrap();
        from = some.last().unwrap().index.next();
        out.extend(some);
    }
    out
}

fn open(dir: &Path) -> (SegmentLog, Arc<SegmentReader>, OpenReport) {
    SegmentLog::open_on(RealDisk::shared(), dir, SMALL).unwrap()
}

fn reads(dir: &Path) -> (Arc<SegmentReader>, OpenReport) {
    let (_, reader, report) = open(dir);
    (reader, report)
}

/// Opening leaves out the zeros of unused space, but not those that are somebody's.
#[test]
fn zeros_that_are_written_are_not_unused_space() {
    const LARGE: u64 = 16 << 20;
    let dir = directory();
    let zeros =
        |index, size| LogRecord::Entries(vec![LogEntry { bytes: Bytes::from(vec![0; size]), ..entry(index, 1, 0) }]);
    let (mut log, reader, _) = SegmentLog::open_on(RealDisk::shared(), dir.path(), LARGE).unwrap();
    log.append(R, S1, &[base(S1), zeros(1, 3 << 20), entries(2..3, 1, 10), zeros(3, 3 << 20)]).unwrap();
    log.sync().unwrap();
    let expected = all(&*reader, S1);
    drop((log, reader));
    let (_, reader, report) = SegmentLog::open_on(RealDisk::shared(), dir.path(), LARGE).unwrap();
    assert_eq!((report.torn, report.lost), (None, None));
    assert_eq!(all(&*reader, S1), expected);
}

#[test]
fn comes_back_after_a_sync_over_several_segments() {
    let dir = directory();
    let (mut log, reader, report) = open(dir.path());
    assert_eq!((report.segments, reader.bounds(S1)), (0, None));
    log.append(R, S1, &[base(S1), hard(1, 0), entries(1..30, 1, 1000)]).unwrap();
    log.append(R, S0, &[base(S0), entries(1..3, 1, 10)]).unwrap();
    // Seen before it is synced.
    assert_eq!(reader.bounds(S1).unwrap().last, Index::new(29));
    log.sync().unwrap();
    log.append(R, S1, &[LogRecord::Truncate(Index::new(20)), entries(20..25, 3, 5), hard(3, 19)]).unwrap();
    log.sync().unwrap();
    let expected = all(&*reader, S1);
    let bounds = reader.bounds(S1);
    assert_eq!(expected.len(), 24);
    drop(log);

    let (reader, report) = reads(dir.path());
    assert!(report.segments > 3 && report.torn.is_none() && report.lost.is_none());
    assert_eq!(reader.bounds(S1), bounds);
    assert_eq!(all(&*reader, S1), expected);
    assert_eq!(all(&*reader, S0).len(), 2);
    assert_eq!(reader.term(S1, Index::new(19)).unwrap(), Some(Term::new(1)));
    assert_eq!(reader.term(S1, Index::new(20)).unwrap(), Some(Term::new(3)));
    assert_eq!(reader.term(S1, Index::new(25)).unwrap(), None);
    assert_eq!(reader.term(S1, Index::new(0)).unwrap(), Some(Term::new(0)));
    assert!(reader.entries(S1, Index::new(0), Index::new(5), 10).is_err());
    assert_eq!(reader.entries(S1, Index::new(1), Index::new(9), 1).unwrap().len(), 1);
    let seen = verify(dir.path()).unwrap();
    assert_eq!((seen.records, seen.damage), (report.records, None));
}

#[test]
fn what_was_not_synced_may_be_gone_the_rest_is_there() {
    let dir = directory();
    let (mut log, _, _) = open(dir.path());
    log.append(R, S1, &[base(S1), entries(1..3, 1, 10)]).unwrap();
    log.sync().unwrap();
    log.append(R, S1, &[entries(3..5, 1, 10)]).unwrap();
    drop(log);
    let (mut log, reader, report) = open(dir.path());
    assert_eq!((reader.bounds(S1).unwrap().last, report.torn), (Index::new(2), None));
    log.append(R, S1, &[entries(3..4, 2, 10)]).unwrap();
    log.sync().unwrap();
    assert_eq!(all(&*reads(dir.path()).0, S1).len(), 3);
}

#[test]
fn a_replica_without_base_or_with_gaps_is_refused() {
    let dir = directory();
    let (mut log, ..) = open(dir.path());
    assert!(log.append(R, S1, &[entries(1..2, 1, 1)]).is_err());
    assert!(log.append(R, S1, &[base(S1)]).is_err(), "refuses everything after an error");
    let (mut log, ..) = open(dir.path());
    log.append(R, S1, &[base(S1), entries(1..2, 1, 1)]).unwrap();
    assert!(log.append(R, S1, &[entries(3..4, 1, 1)]).is_err());
    let (mut log, ..) = open(dir.path());
    log.append(R, S1, &[base(S1)]).unwrap();
    assert!(log.append(ReplicaId::new(9), S1, &[hard(1, 0)]).is_err(), "of another replica");
    let (mut log, ..) = open(dir.path());
    assert!(log.append(R, S0, &[base(S1)]).is_err());
}

/// A log of one segment: group A (base, entry 1), group B (entries 2 and 3), group C (entry 4). Its bytes, the offset of
/// each record and of the end.
fn three_groups(dir: &Path) -> (Vec<u8>, Vec<usize>) {
    let (mut log, ..) = open(dir);
    for records in [vec![base(S1), entries(1..2, 1, 20)], vec![entries(2..4, 1, 20)], vec![entries(4..5, 1, 20)]] {
        log.append(R, S1, &records).unwrap();
        log.sync().unwrap();
    }
    drop(log);
    let bytes = fs::read(segment_path(dir, 1)).unwrap();
    let header = SegmentHeader::decode(&bytes).unwrap();
    let mut offsets = vec![HEADER_BYTES];
    while let Some(raw) = Raw::parse(&bytes[*offsets.last().unwrap()..], header.salt) {
        offsets.push(offsets.last().unwrap() + raw.bytes());
    }
    assert_eq!(offsets.len(), 6);
    (bytes, offsets)
}

#[test]
fn a_tail_cut_at_any_byte_is_torn_and_cut() {
    let dir = directory();
    let (bytes, at) = three_groups(dir.path());
    let path = segment_path(dir.path(), 1);
    for cut in at[1]..at[5] {
        // The file may end there, or the disk may hold zeros.
        for zeros in [false, true] {
            let mut torn = bytes[..cut].to_vec();
            if zeros {
                torn.resize(bytes.len(), 0);
            }
            fs::write(&path, &torn).unwrap();
            let whole = at.iter().filter(|&&end| end <= cut).count() - 1;
            let before = verify(dir.path()).unwrap();
            assert_eq!((before.records, &before.damage), (whole as u64, &None), "cut at {cut}");
            assert_eq!(before.torn.is_some(), !at.contains(&cut) && torn[at[whole]..].iter().any(|&b| b != 0));
            assert_eq!(fs::read(&path).unwrap(), torn, "verify changes nothing");
            // Opening syncs, so not at every byte.
            if cut % 11 != 0 && !at.contains(&cut) {
                continue;
            }
            let (mut log, reader, report) = open(dir.path());
            assert!(report.lost.is_none());
            let last = reader.bounds(S1).unwrap().last.get();
            assert_eq!(last, whole as u64 - 1);
            // It goes on from there.
            log.append(R, S1, &[entries(last + 1..last + 3, 2, 9)]).unwrap();
            log.sync().unwrap();
            let (reader, report) = reads(dir.path());
            assert_eq!((report.torn, all(&*reader, S1).len() as u64), (None, last + 2));
        }
    }
}

#[test]
fn a_flipped_bit_in_the_middle_is_damage_and_nothing_is_cut() {
    let dir = directory();
    let (bytes, at) = three_groups(dir.path());
    let path = segment_path(dir.path(), 1);
    for byte in 0..at[4] {
        let mut bad = bytes.clone();
        bad[byte] ^= 1 << (byte % 8);
        fs::write(&path, &bad).unwrap();
        let seen = verify(dir.path()).unwrap();
        if (40..HEADER_BYTES).contains(&byte) {
            assert_eq!((seen.damage, seen.stray), (None, vec![(1, byte as u64)]), "unused bytes of the header");
            continue;
        }
        assert!(seen.damage.is_some(), "byte {byte}");
        if byte % 11 != 0 {
            continue;
        }
        let (_, reader, report) = open(dir.path());
        let lost = report.lost.unwrap();
        assert_eq!(reader.bounds(S1), None, "a replica that lost its log");
        assert_eq!(fs::read(lost.moved_to.join("0000000001.seg")).unwrap(), bad);
        fs::remove_dir_all(lost.moved_to).unwrap();
    }
}

#[test]
fn an_interrupted_group_whose_end_reached_the_disk_is_torn() {
    let dir = directory();
    let (bytes, at) = three_groups(dir.path());
    // Group C never happened; of group B only the second record came through.
    let mut torn = bytes;
    torn[at[4]..].fill(0);
    torn[at[2]..at[3]].fill(0);
    fs::write(segment_path(dir.path(), 1), &torn).unwrap();
    let (mut log, reader, report) = open(dir.path());
    assert!(report.torn.is_some() && report.lost.is_none());
    assert_eq!(reader.bounds(S1).unwrap().last, Index::new(1));
    // The leftover must not come back behind a record of the same size.
    log.append(R, S1, &[entries(2..3, 2, 20)]).unwrap();
    log.sync().unwrap();
    drop(log);
    assert_eq!(reads(dir.path()).0.bounds(S1).unwrap().last, Index::new(2));
}

#[test]
fn missing_and_damaged_segments() {
    let full = || {
        let dir = directory();
        let (mut log, ..) = open(dir.path());
        log.append(R, S1, &[base(S1), entries(1..30, 1, 1000)]).unwrap();
        log.sync().unwrap();
        assert!(segment_files(&RealDisk, dir.path()).unwrap().len() >= 4);
        dir
    };
    let lost = |dir: &tempfile::TempDir| reads(dir.path()).1.lost.map(|l| l.reason);

    let dir = full();
    fs::remove_file(segment_path(dir.path(), 2)).unwrap();
    assert!(lost(&dir).is_some_and(|why| why.contains("missing")));

    let dir = full();
    fs::remove_file(segment_path(dir.path(), 1)).unwrap();
    assert!(lost(&dir).is_some());

    // The last record of a segment that has successors was durable.
    let dir = full();
    let path = segment_path(dir.path(), 2);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.iter().rposition(|&b| b != 0).unwrap();
    bytes[last] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(lost(&dir).is_some_and(|why| why.contains("segment 2")));

    // Cut short: the same.
    let dir = full();
    OpenOptions::new().write(true).open(segment_path(dir.path(), 2)).unwrap().set_len(500).unwrap();
    assert!(lost(&dir).is_some());

    // A segment that was being made is nothing.
    let dir = full();
    fs::write(dir.path().join("0000000099.new"), b"x").unwrap();
    assert!(lost(&dir).is_none());
    assert!(!dir.path().join("0000000099.new").exists());
}

#[test]
fn a_newer_format_is_refused_by_name_and_left_alone() {
    let dir = directory();
    drop(open(dir.path()));
    let path = segment_path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 7;
    let crc = crc32c::crc32c(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let error = SegmentLog::open_on(RealDisk::shared(), dir.path(), SMALL).err().unwrap().to_string();
    assert!(error.contains("format 7 was written by a newer version"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_record_that_rots_under_a_reader_is_an_error() {
    let dir = directory();
    let (bytes, at) = three_groups(dir.path());
    let (_, reader, _) = open(dir.path());
    let mut bad = bytes;
    bad[at[3] + RECORD_HEAD + ENTRY_HEAD] ^= 1;
    fs::write(segment_path(dir.path(), 1), &bad).unwrap();
    assert_eq!(reader.entries(S1, Index::new(1), Index::new(3), 9999).unwrap().len(), 2);
    assert!(reader.entries(S1, Index::new(1), Index::new(4), 9999).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Entries(u8, u16),
    Truncate(u8),
    Hard,
    Base(u8),
    Sync,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6u8, 0..900u16).prop_map(|(n, size)| Step::Entries(n, size)),
        1 => any::<u8>().prop_map(Step::Truncate),
        1 => Just(Step::Hard),
        1 => any::<u8>().prop_map(Step::Base),
        2 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The log on disk and the one in memory say the same, also after reopening.
    #[test]
    fn agrees_with_the_log_in_memory(steps in prop::collection::vec(step(), 1..40)) {
        let dir = directory();
        let (mut log, mut reader, _) = open(dir.path());
        let (mut model, known) = MemoryLog::new();
        let mut term = 1;
        for record in [base(S0), base(S1)] {
            let LogRecord::Base(b) = &record else { unreachable!() };
            log.append(R, b.shard, std::slice::from_ref(&record)).unwrap();
            model.append(R, b.shard, std::slice::from_ref(&record)).unwrap();
        }
        for s in steps {
            let bounds = known.bounds(S1).unwrap();
            let (first, last) = (bounds.base.index.get(), bounds.last.get());
            let pick = |n: u8| first + u64::from(n) % (last - first + 1);
            let record = match s {
                Step::Entries(n, size) => entries(last + 1..last + 1 + u64::from(n), term, usize::from(size)),
                Step::Truncate(n) => {
                    term += 1;
                    LogRecord::Truncate(Index::new(pick(n) + 1))
                }
                Step::Hard => hard(term, last),
                Step::Base(n) => {
                    let at = Index::new(pick(n));
                    let term = known.term(S1, at).unwrap().unwrap();
                    LogRecord::Base(BaseRecord { index: at, term, ..bounds.base.clone() })
                }
                Step::Sync => {
                    log.sync().unwrap();
                    continue;
                }
                Step::Reopen => {
                    log.sync().unwrap();
                    drop(log);
                    let (l, r, report) = open(dir.path());
                    prop_assert!(report.lost.is_none() && report.torn.is_none());
                    (log, reader) = (l, r);
                    continue;
                }
            };
            log.append(R, S1, std::slice::from_ref(&record)).unwrap();
            model.append(R, S1, std::slice::from_ref(&record)).unwrap();
            let without_bytes = |b: Option<LogBounds>| b.map(|b| LogBounds { bytes: 0, ..b });
            prop_assert_eq!(without_bytes(reader.bounds(S1)), without_bytes(known.bounds(S1)));
            prop_assert_eq!(all(&*reader, S1), all(&*known, S1));
            let last = known.bounds(S1).unwrap().last.get();
            for i in 0..last + 2 {
                prop_assert_eq!(reader.term(S1, Index::new(i)).unwrap(), known.term(S1, Index::new(i)).unwrap());
            }
        }
    }
}

fn base_at(shard: ShardId, index: u64, term: u64) -> BaseRecord {
    let LogRecord::Base(b) = base(shard) else { unreachable!() };
    BaseRecord { index: Index::new(index), term: Term::new(term), ..b }
}

/// Two replicas over many segments; that of s0 has only an entry at the very beginning.
fn long(dir: &Path) -> (SegmentLog, Arc<SegmentReader>) {
    let (mut log, reader, _) = open(dir);
    log.append(R, S0, &[base(S0), hard(2, 1), entries(1..2, 1, 10)]).unwrap();
    log.append(R, S1, &[base(S1), hard(3, 0)]).unwrap();
    for i in 1..60 {
        log.append(R, S1, &[entries(i..i + 1, 3, 1000)]).unwrap();
        log.sync().unwrap();
    }
    (log, reader)
}

#[test]
fn trimming_removes_whole_segments_and_the_rest_opens() {
    let dir = directory();
    let (mut log, reader) = long(dir.path());
    let segments = || segment_files(&RealDisk, dir.path()).unwrap();
    let before = segments().len();
    let held = reader.bytes_after(S1, Index::new(0));
    assert!(held > 59_000 && held < 59_000 + 8 * SMALL, "{held}");
    assert!(reader.bytes_after(S1, Index::new(58)) < SMALL);
    assert_eq!(reader.bytes_after(S1, Index::new(59)), 0);
    // The entry of s0 keeps everything.
    log.trim(R, &base_at(S1, 40, 3)).unwrap();
    assert_eq!(reader.remove_obsolete().unwrap(), 0);
    assert_eq!(reader.bounds(S1).unwrap().base.index, Index::new(40));
    log.trim(R, &base_at(S0, 1, 1)).unwrap();
    let removed = reader.remove_obsolete().unwrap();
    assert!(removed >= 4 && removed < before, "{removed} of {before}");
    assert_eq!(reader.remove_obsolete().unwrap(), 0);
    assert!(segments()[0].0 > 1);
    let (s0, s1) = (reader.bounds(S0), reader.bounds(S1));
    assert_eq!(all(&*reader, S1).len(), 19);
    assert!(reader.entries(S1, Index::new(40), Index::new(42), 99).is_err(), "refused, not misread");
    log.append(R, S1, &[entries(60..62, 3, 10)]).unwrap();
    log.sync().unwrap();
    drop(log);
    {
        let (mut log, reader, report) = open(dir.path());
        assert!(report.lost.is_none() && report.torn.is_none(), "{report:?}");
        assert_eq!(reader.bounds(S0), s0);
        assert_eq!(reader.bounds(S1).map(|b| (b.base, b.hard)), s1.map(|b| (b.base, b.hard)));
        assert_eq!(all(&*reader, S1).len(), 21);
        assert_eq!(reader.term(S1, Index::new(40)).unwrap(), Some(Term::new(3)));
        assert_eq!(reader.term(S1, Index::new(39)).unwrap(), None);
        assert_eq!(verify(dir.path()).unwrap().damage, None);
        // A replica that arrived by snapshot begins behind everything that is there.
        log.trim(R, &base_at(S1, 61, 3)).unwrap();
        assert!(reader.remove_obsolete().unwrap() > 0);
        drop(log);
        let (_, reader, report) = open(dir.path());
        assert!(report.lost.is_none(), "{report:?}");
        assert_eq!((reader.bounds(S1).unwrap().last.get(), all(&*reader, S1).len()), (61, 0));
    }
}

#[test]
fn a_trimmed_log_without_its_first_segment_is_damaged() {
    let dir = directory();
    let (mut log, reader) = long(dir.path());
    log.trim(R, &base_at(S0, 1, 1)).unwrap();
    log.trim(R, &base_at(S1, 40, 3)).unwrap();
    assert!(reader.remove_obsolete().unwrap() > 0);
    drop(log);
    let files = segment_files(&RealDisk, dir.path()).unwrap();
    fs::remove_file(&files[0].1).unwrap();
    assert!(verify(dir.path()).unwrap().damage.is_some());
    let (_, reader, report) = open(dir.path());
    assert!(report.lost.is_some());
    assert_eq!(reader.bounds(S1), None);
}

#[test]
fn an_interrupted_removal_leaves_a_log_that_opens() {
    let dir = directory();
    let (mut log, reader) = long(dir.path());
    log.trim(R, &base_at(S0, 1, 1)).unwrap();
    log.trim(R, &base_at(S1, 40, 3)).unwrap();
    let expected = (reader.bounds(S0), reader.bounds(S1), all(&*reader, S1));
    drop(log);
    // Any number of segments may be gone when it stops.
    loop {
        let (log, reader, report) = open(dir.path());
        assert!(report.lost.is_none(), "{report:?}");
        assert_eq!((reader.bounds(S0), reader.bounds(S1), all(&*reader, S1)), expected);
        let first = reader.shared.read_index().first_segment().unwrap();
        let files = segment_files(&RealDisk, dir.path()).unwrap();
        drop(log);
        if files[0].0 >= u64::from(first) {
            break;
        }
        fs::remove_file(&files[0].1).unwrap();
    }
}
