//! Bytes of segment headers and records. All numbers are little-endian.
//!
//! Segment header, 64 bytes: magic, format u32, segment number u64, first log sequence number u64, salt u64, crc32c u32 of
//! those 36 bytes, zeros. Magic, format and checksum keep their places in every format, so a newer one is recognized.
//!
//! Record: length u32 (of the payload), crc32c u32 (of everything else in the record), log sequence number u64, segment
//! salt u64, place in its write group u32, shard u64, replica id u64, kind u8, format u8, payload. The *write group* is what was
//! written since the last completed sync: a record whose group began behind some position proves that everything before
//! that position had been durable.

use bytes::Bytes;
use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};
use quorate_shared::limits::{ENTRY_BYTES_MAX, ENTRY_OVERHEAD_BYTES};

use crate::error::Fatal;
use crate::log::{BaseRecord, HardState, LogEntry, LogRecord, PaxosState, Payload, Round};

/// Format of segments and records written here.
pub const FORMAT: u32 = 1;
/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of it that say something; the rest is zero and means nothing.
pub const HEADER_USED: usize = 40;
/// Bytes of a record before its payload.
pub const RECORD_HEAD: usize = 46;
/// Bytes of an entry's payload before the entry's own.
pub const ENTRY_HEAD: usize = 17;
/// Largest payload.
pub const PAYLOAD_BYTES_MAX: usize = ENTRY_BYTES_MAX + ENTRY_OVERHEAD_BYTES;

const MAGIC: &[u8; 8] = b"QUORSEG\n";
const KIND_ENTRY: u8 = 1;
const KIND_HARD: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_BASE: u8 = 4;
const KIND_PAXOS: u8 = 5;
const KIND_BECOME: u8 = 6;
/// Format of every kind of record written here but bases.
const RECORD_FORMAT: u8 = 1;
/// Format of base records: 2 has the whole membership.
const BASE_FORMAT: u8 = 2;

/// What a segment file begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Counts up from 1.
    pub number: u64,
    /// Sequence number of its first record.
    pub first_lsn: u64,
    /// In every record of the segment, so that bytes of another one are never taken for its own.
    pub salt: u64,
}

/// Why a segment's header cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// Written by a newer program.
    Newer(u32),
    /// No header.
    Bad,
}

impl SegmentHeader {
    /// A header with the salt that belongs to it.
    pub fn new(number: u64, first_lsn: u64) -> Self {
        let hash = blake3::hash(&[number.to_le_bytes(), first_lsn.to_le_bytes()].concat());
        let salt = hash.as_bytes().first_chunk().map_or(0, |c| u64::from_le_bytes(*c));
        // Never 0: a record must not look like unused space.
        Self { number, first_lsn, salt: salt | 1 }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..20].copy_from_slice(&self.number.to_le_bytes());
        out[20..28].copy_from_slice(&self.first_lsn.to_le_bytes());
        out[28..36].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out[..36]);
        out[36..40].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// From the start of a segment.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let head = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Bad)?;
        if &head[..8] != MAGIC || crc32c::crc32c(&head[..36]) != le32(&head[36..]) {
            return Err(HeaderError::Bad);
        }
        match le32(&head[8..]) {
            FORMAT => Ok(Self { number: le64(&head[12..]), first_lsn: le64(&head[20..]), salt: le64(&head[28..]) }),
            newer => Err(HeaderError::Newer(newer)),
        }
    }
}

/// Where a record stands among others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Log sequence number: grows by one per record of the node.
    pub lsn: u64,
    /// The segment's salt.
    pub salt: u64,
    /// Place in its write group.
    pub group: u32,
    /// The shard it is of.
    pub shard: ShardId,
    /// The replica it is of.
    pub replica: ReplicaId,
}

/// A record whose checksum is right; its payload is not decoded yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raw<'a> {
    /// Where it stands.
    pub stamp: Stamp,
    /// Its kind.
    pub kind: u8,
    /// Its format.
    pub format: u8,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Raw<'a> {
    /// The record at the start of `bytes`, if there is one of this segment.
    pub fn parse(bytes: &'a [u8], salt: u64) -> Option<Self> {
        let head = bytes.get(..RECORD_HEAD)?;
        let len = le32(head) as usize;
        if le64(&head[16..]) != salt || len > PAYLOAD_BYTES_MAX {
            return None;
        }
        let payload = bytes.get(RECORD_HEAD..RECORD_HEAD + len)?;
        if crc(&bytes[..RECORD_HEAD + len]) != le32(&head[4..]) {
            return None;
        }
        let stamp = Stamp {
            lsn: le64(&head[8..]),
            salt,
            group: le32(&head[24..]),
            shard: ShardId::new(le64(&head[28..])),
            replica: ReplicaId::new(le64(&head[36..])),
        };
        Some(Self { stamp, kind: head[44], format: head[45], payload })
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        RECORD_HEAD + self.payload.len()
    }

    /// What it says. An error means a newer program wrote it.
    pub fn decode(&self) -> Result<Decoded, Fatal> {
        let (kind, format, p) = (self.kind, self.format, self.payload);
        if format != format_of(kind) || !(KIND_ENTRY..=KIND_BECOME).contains(&kind) {
            let age = if format < format_of(kind) { "an older" } else { "a newer" };
            let cause = format!("a record of kind {kind} in format {format} was written by {age} version");
            return Err(Fatal::new("read the log", cause));
        }
        let malformed = || Fatal::new("read the log", "a record with a right checksum is malformed");
        Ok(match kind {
            KIND_ENTRY if p.len() >= ENTRY_HEAD => {
                payload_of(p[16]).ok_or_else(malformed)?;
                Decoded::Entry { index: Index::new(le64(p)), term: Term::new(le64(&p[8..])) }
            }
            KIND_HARD if p.len() == HARD_BYTES => Decoded::Hard(hard_of(p)),
            KIND_BECOME if p.len() == 8 + HARD_BYTES => Decoded::Become(ReplicaId::new(le64(p)), hard_of(&p[8..])),
            KIND_TRUNCATE if p.len() == 8 => Decoded::Truncate(Index::new(le64(p))),
            KIND_PAXOS if p.len() == PAXOS_BYTES => Decoded::Paxos(paxos_of(p)),
            KIND_BASE => Decoded::Base(Box::new(postcard::from_bytes(p).map_err(|_| malformed())?)),
            _ => return Err(malformed()),
        })
    }
}

/// A record's meaning; an entry's bytes stay where they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// An entry.
    Entry {
        /// Its index.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// A hard state.
    Hard(HardState),
    /// A state of the `paxos` replicator.
    Paxos(PaxosState),
    /// Everything from here on is gone.
    Truncate(Index),
    /// A replica begins.
    Base(Box<BaseRecord>),
    /// It goes on under another id.
    Become(ReplicaId, HardState),
}

/// The entry in a record, which shares its bytes.
pub fn entry_of(record: &Bytes) -> Option<LogEntry> {
    let p = record.get(RECORD_HEAD..)?;
    if record[44] != KIND_ENTRY || p.len() < ENTRY_HEAD {
        return None;
    }
    Some(LogEntry {
        index: Index::new(le64(p)),
        term: Term::new(le64(&p[8..])),
        payload: payload_of(p[16])?,
        bytes: record.slice(RECORD_HEAD + ENTRY_HEAD..),
    })
}

/// Appends an entry's record.
pub fn put_entry(out: &mut Vec<u8>, stamp: Stamp, entry: &LogEntry) {
    put(out, stamp, KIND_ENTRY, |out| {
        out.extend_from_slice(&entry.index.get().to_le_bytes());
        out.extend_from_slice(&entry.term.get().to_le_bytes());
        out.push(match entry.payload {
            Payload::Entry => 1,
            Payload::Empty => 2,
            Payload::Membership => 3,
        });
        out.extend_from_slice(&entry.bytes);
    });
}

/// Appends a record of any other kind.
pub fn put_other(out: &mut Vec<u8>, stamp: Stamp, record: &LogRecord) {
    match record {
        LogRecord::Entries(_) => {}
        LogRecord::Hard(hard) => put(out, stamp, KIND_HARD, |out| put_hard(out, hard)),
        LogRecord::Become { replica, hard } => put(out, stamp, KIND_BECOME, |out| {
            out.extend_from_slice(&replica.get().to_le_bytes());
            put_hard(out, hard);
        }),
        LogRecord::Paxos(paxos) => put(out, stamp, KIND_PAXOS, |out| {
            let PaxosState { configuration, begins, promised, accepted, decided, syncing } = *paxos;
            let (p, a) = (promised, accepted);
            let words = [configuration, p.number, p.proposer, a.number, a.proposer];
            words.iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
            out.extend_from_slice(&begins.get().to_le_bytes());
            out.extend_from_slice(&decided.get().to_le_bytes());
            // No entry has index 0.
            out.extend_from_slice(&syncing.map_or(0, Index::get).to_le_bytes());
        }),
        LogRecord::Truncate(from) => {
            put(out, stamp, KIND_TRUNCATE, |out| out.extend_from_slice(&from.get().to_le_bytes()));
        }
        LogRecord::Base(base) => put(out, stamp, KIND_BASE, |out| {
            // Serializing plain data into memory cannot fail.
            out.extend_from_slice(&postcard::to_stdvec(base).unwrap_or_default());
        }),
    }
}

/// Bytes of a [`HardState`].
const HARD_BYTES: usize = 24;

fn hard_of(p: &[u8]) -> HardState {
    HardState { term: Term::new(le64(p)), vote: ReplicaId::new(le64(&p[8..])), commit: Index::new(le64(&p[16..])) }
}

fn put_hard(out: &mut Vec<u8>, hard: &HardState) {
    for number in [hard.term.get(), hard.vote.get(), hard.commit.get()] {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Bytes of a [`PaxosState`].
const PAXOS_BYTES: usize = 44;

fn paxos_of(p: &[u8]) -> PaxosState {
    let word = |at: usize| le32(&p[at * 4..]);
    let syncing = Index::new(le64(&p[36..]));
    PaxosState {
        configuration: word(0),
        begins: Index::new(le64(&p[20..])),
        promised: Round { number: word(1), proposer: word(2) },
        accepted: Round { number: word(3), proposer: word(4) },
        decided: Index::new(le64(&p[28..])),
        syncing: (syncing != Index::new(0)).then_some(syncing),
    }
}

fn put(out: &mut Vec<u8>, stamp: Stamp, kind: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&stamp.lsn.to_le_bytes());
    out.extend_from_slice(&stamp.salt.to_le_bytes());
    out.extend_from_slice(&stamp.group.to_le_bytes());
    out.extend_from_slice(&stamp.shard.get().to_le_bytes());
    out.extend_from_slice(&stamp.replica.get().to_le_bytes());
    out.push(kind);
    out.push(format_of(kind));
    payload(out);
    let record = &mut out[start..];
    let len = (record.len() - RECORD_HEAD) as u32;
    record[..4].copy_from_slice(&len.to_le_bytes());
    let crc = crc(record);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn format_of(kind: u8) -> u8 {
    if kind == KIND_BASE { BASE_FORMAT } else { RECORD_FORMAT }
}

/// Of the length and everything behind the checksum.
fn crc(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

fn payload_of(byte: u8) -> Option<Payload> {
    match byte {
        1 => Some(Payload::Entry),
        2 => Some(Payload::Empty),
        3 => Some(Payload::Membership),
        _ => None,
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::{Epoch, Hash, NodeId, Timestamp};

    use crate::log::{EpochStart, Membership};

    use super::*;

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    const STAMP: Stamp =
        Stamp { lsn: 7, salt: 0x1122_3344_5566_7788, group: 2, shard: ShardId::new(1), replica: ReplicaId::new(3) };
    //                    lsn              salt             group    shard            replica
    const HEAD: &str = "0700000000000000 8877665544332211 02000000 0100000000000000 0300000000000000";

    fn check(bytes: &[u8], len: &str, kind: &str, payload: &str) {
        let crc = hex(&bytes[4..8]);
        let expected = format!("{len}{crc}{HEAD}{kind}{payload}").replace(' ', "");
        assert_eq!(hex(bytes), expected);
        let raw = Raw::parse(bytes, STAMP.salt).unwrap();
        assert_eq!((raw.stamp, raw.bytes()), (STAMP, bytes.len()));
        assert!(Raw::parse(bytes, 1).is_none());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Raw::parse(&bad, STAMP.salt).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn golden_records() {
        let entry = LogEntry {
            index: Index::new(5),
            term: Term::new(4),
            payload: Payload::Entry,
            bytes: Bytes::from_static(b"abc"),
        };
        let mut out = Vec::new();
        put_entry(&mut out, STAMP, &entry);
        check(&out, "14000000", "0101", "0500000000000000 0400000000000000 01 616263");
        assert_eq!(hex(&out[4..8]), "d3d593a1");
        assert_eq!(entry_of(&Bytes::from(out)).unwrap(), entry);

        let base = BaseRecord {
            chain: Hash([0xcc; 32]),
            epoch_start: EpochStart { index: Index::new(0), chain: Hash([0xcc; 32]) },
            timestamp: Timestamp::from_raw(9),
            ..BaseRecord::founding(
                ShardId::DATA,
                Membership::of_voters([1, 2].map(|n| (ReplicaId::new(n), NodeId::new(n)))),
                Epoch { number: 1, id: 300 },
            )
        };
        let hard = HardState { term: Term::new(4), vote: ReplicaId::new(2), commit: Index::new(1) };
        let paxos = PaxosState {
            configuration: 1,
            begins: Index::new(5),
            promised: Round { number: 9, proposer: 2 },
            accepted: Round { number: 8, proposer: 1 },
            decided: Index::new(6),
            syncing: Some(Index::new(7)),
        };
        let (chain, zero) = ("cc".repeat(32), "00".repeat(16));
        let base_bytes = format!("010000{chain} 02 0101{zero} 0202{zero} 00 00 03 00 01ac02 00{chain} 09");
        let cases = [
            (
                LogRecord::Hard(hard),
                "18000000",
                "0201",
                "0400000000000000 0200000000000000 0100000000000000".to_owned(),
            ),
            (LogRecord::Truncate(Index::new(6)), "08000000", "0301", "0600000000000000".to_owned()),
            (LogRecord::Base(base), "71000000", "0402", base_bytes),
            (
                LogRecord::Paxos(paxos),
                "2c000000",
                "0501",
                "01000000 09000000 02000000 08000000 01000000 0500000000000000 0600000000000000 0700000000000000"
                    .to_owned(),
            ),
            (
                LogRecord::Become { replica: ReplicaId::new(9), hard },
                "20000000",
                "0601",
                "0900000000000000 0400000000000000 0200000000000000 0100000000000000".to_owned(),
            ),
        ];
        for (record, len, kind, payload) in cases {
            let mut out = Vec::new();
            put_other(&mut out, STAMP, &record);
            check(&out, len, kind, &payload);
            let back = match Raw::parse(&out, STAMP.salt).unwrap().decode().unwrap() {
                Decoded::Hard(hard) => LogRecord::Hard(hard),
                Decoded::Paxos(paxos) => LogRecord::Paxos(paxos),
                Decoded::Truncate(from) => LogRecord::Truncate(from),
                Decoded::Base(base) => LogRecord::Base(*base),
                Decoded::Become(replica, hard) => LogRecord::Become { replica, hard },
                Decoded::Entry { .. } => panic!("an entry"),
            };
            assert_eq!(back, record);
        }
    }

    #[test]
    fn golden_header() {
        let header = SegmentHeader { number: 1, first_lsn: 2, salt: 3 };
        let bytes = header.encode();
        assert_eq!(hex(&bytes[..36]), "51554f525345470a01000000010000000000000002000000000000000300000000000000");
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(SegmentHeader::decode(&newer), Err(HeaderError::Bad));
        let crc = crc32c::crc32c(&newer[..36]);
        newer[36..40].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&newer), Err(HeaderError::Newer(2)));
        assert_eq!(SegmentHeader::decode(&[]), Err(HeaderError::Bad));
        assert_ne!(SegmentHeader::new(1, 1).salt, SegmentHeader::new(2, 1).salt);
    }
}
