//! Files and manifests written, read back, interrupted, and damaged bit by bit.

use std::fs;
use std::path::PathBuf;

use super::file::{PART, Reader, Writer, file_name};
use super::manifest::{LogFile, Manifest, ShardFiles, parse_time, time_text};
use super::*;

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("quorate-archive-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn point(index: u64) -> ArchivePoint {
    ArchivePoint { epoch: Epoch { number: 1, id: 7 }, index: Index::new(index), chain: Hash([index as u8; 32]) }
}

fn entries(first: u64, last: u64) -> ArchivePart {
    ArchivePart::Entries(ArchivedEntries {
        first: Index::new(first),
        last: Index::new(last),
        chain: Hash([last as u8; 32]),
        first_time: Timestamp::new(first, 0),
        last_time: Timestamp::new(last, 0),
        bytes: vec![first as u8; 40],
    })
}

fn mark(index: u64) -> ArchivePart {
    let digests = vec![TableDigest { storage: TableId::new(5), table: "t".into(), digest: Hash([1; 32]) }];
    ArchivePart::Mark(ArchiveMark { index: Index::new(index), chain: Hash([index as u8; 32]), digests })
}

fn read(path: &std::path::Path) -> Result<Vec<ArchivePart>, super::file::FileError> {
    let mut reader = Reader::open(path)?;
    let mut parts = Vec::new();
    while let Some(part) = reader.next()? {
        parts.push(part);
    }
    Ok(parts)
}

#[test]
fn a_file_comes_back_and_every_flipped_bit_is_noticed() {
    let dir = Scratch::new("file");
    let mut writer = Writer::create(&dir.0, ClusterId([1; 16]), ShardId::DATA, point(4)).unwrap();
    let parts = [entries(5, 9), mark(9), entries(10, 10)];
    parts.iter().for_each(|part| writer.append(part).unwrap());
    let closed = writer.close().unwrap();
    assert_eq!((closed.after, closed.last), (Index::new(4), Index::new(10)));
    assert_eq!((closed.first_time, closed.last_time), (Timestamp::new(5, 0), Timestamp::new(10, 0)));
    let path = dir.0.join(file_name(ShardId::DATA, Index::new(4)));
    assert_eq!(read(&path).unwrap(), parts);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(closed.bytes, bytes.len() as u64);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, damaged).unwrap();
        let error = read(&path).expect_err("a flipped bit");
        assert!(error.to_string().contains(&closed.name), "{error}");
    }
    for cut in 0..bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(read(&path).is_err());
    }
}

#[test]
fn an_unfinished_file_is_gone_on_with_behind_its_last_whole_record() {
    let dir = Scratch::new("resume");
    let mut writer = Writer::create(&dir.0, ClusterId([1; 16]), ShardId::DATA, point(0)).unwrap();
    writer.append(&entries(1, 3)).unwrap();
    writer.sync().unwrap();
    let durable = writer.bytes();
    writer.append(&entries(4, 5)).unwrap();
    drop(writer);
    let path = dir.0.join(file_name(ShardId::DATA, Index::new(0)) + PART);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let mut writer = Writer::resume(&path, durable).unwrap();
    assert_eq!(writer.last().index, Index::new(3));
    writer.append(&entries(4, 7)).unwrap();
    let closed = writer.close().unwrap();
    assert_eq!(closed.last, Index::new(7));
    assert_eq!(read(&dir.0.join(&closed.name)).unwrap(), [entries(1, 3), entries(4, 7)]);

    // What was durable and is not whole any more is damage, not a torn end.
    let mut bytes = whole;
    bytes[durable as usize - 2] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(Writer::resume(&path, durable).is_err());
}

#[test]
fn a_manifest_comes_back_and_every_flipped_bit_is_noticed() {
    let dir = Scratch::new("manifest");
    let base = ArchiveBase {
        cluster: ClusterId([1; 16]),
        point: point(0),
        timestamp: Timestamp::MIN,
        record: vec![1, 0xab],
        snapshot: false,
    };
    let mut manifest = Manifest::new(9, base.cluster, 1_500);
    let mut files = ShardFiles::new(ShardId::DATA, &base);
    let mut writer = Writer::create(&dir.0, base.cluster, ShardId::DATA, base.point).unwrap();
    writer.append(&entries(1, 3)).unwrap();
    files.files.push(LogFile::from(writer.close().unwrap()));
    manifest.shards.push(files);
    manifest.write(&dir.0, 2_500).unwrap();
    assert_eq!(Manifest::read(&dir.0).unwrap(), manifest);
    assert_eq!(manifest.shards[0].base.point(), Some(base.point));
    assert_eq!(manifest.shards[0].base.record(), Some(base.record));
    let path = dir.0.join(super::manifest::NAME);
    let bytes = fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, damaged).unwrap();
        let error = Manifest::read(&dir.0).expect_err("a flipped bit");
        assert!(error.to_string().contains("backup.json"), "{error}");
    }
}

#[test]
fn times() {
    assert_eq!(time_text(1_500), "1970-01-01T00:00:01.500Z");
    assert_eq!(parse_time("1970-01-01T01:00:01.5+01:00"), Some(1_500));
    assert_eq!(parse_time("yesterday"), None);
}
