//! The entry: effects, not statements.
//!
//! Canonical bytes begin with kind and format version, then index, previous hash and timestamp (fixed width, big-endian),
//! then the body. They are stored, hashed and shipped as they came, never encoded again. An entry names its index and the chain hash of its predecessor;
//! one that was appended behind another predecessor is *void*. `chain(i) = BLAKE3(chain(i-1) ‖ canonical bytes)`.

pub(crate) mod codec;

use bytes::Bytes;
use quorate_shared::ids::{ClientId, Epoch, Hash, Index, TableId, Term, Timestamp, WriteId};

use crate::entry::codec::{Malformed, Reader, put_bytes, put_i64, put_u64};
use crate::error::Fatal;
use crate::log::{LogEntry, Membership, Payload};
use crate::table::TableDef;

/// What an entry is; numbered for ever, kinds for what comes later included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Whole transactions (row images).
    Write = 1,
    /// A part of a transaction larger than an entry.
    Part = 2,
    /// Commits parts.
    Commit = 3,
    /// Aborts parts.
    Abort = 4,
    /// Two-phase commit: prepared.
    Prepare = 5,
    /// A table's definition from here on.
    Fence = 6,
    /// Voters.
    Membership = 7,
    /// A new epoch.
    Epoch = 8,
    /// A shard is split.
    Split = 9,
    /// Shards are merged.
    Merge = 10,
    /// Nothing below this timestamp will be committed any more.
    ClosedTimestamp = 11,
    /// A client of the exactly-once rule is opened.
    ClientOpen = 12,
    /// Clients are forgotten.
    ClientExpire = 13,
    /// A block of numbers is granted.
    Sequence = 14,
    /// The cluster's active version rises.
    Feature = 15,
    /// Nothing (a leader's first entry).
    Empty = 16,
}

/// One transaction of a [`Kind::Write`] entry: everything one proposal changes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Transaction {
    /// For exactly-once; opens the client if it is new.
    pub write: Option<WriteId>,
    /// Rows for a duplicate's answer.
    pub rows: u64,
    /// The last number given, for a duplicate's answer.
    pub last_id: Option<i64>,
    /// Encoded data (or catalog) keys with the new row (`None`: deleted), in order.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
    /// Tables redefined: catalog id, new definition.
    pub fences: Vec<(TableId, Option<TableDef>)>,
    /// Blocks of numbers granted: table, first number not granted any more.
    pub sequences: Vec<(TableId, i64)>,
    /// Physical removals without history (purge of an unused storage).
    pub purged: Vec<Bytes>,
}

/// The body of an entry.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// Transactions, in order; all get the entry's timestamp.
    Write(Vec<Transaction>),
    /// Clients forgotten.
    ClientExpire(Vec<ClientId>),
    /// A new epoch.
    Epoch(EpochEntry),
    /// Nothing.
    Empty,
}

/// What begins an epoch; its predecessor is the last entry of those before it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EpochEntry {
    /// The epoch.
    pub epoch: Epoch,
    /// Who takes part from here on.
    pub membership: Membership,
}

/// An entry of ours.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Where it was meant to be.
    pub index: Index,
    /// `chain(index - 1)` it was made for.
    pub previous: Hash,
    /// Its timestamp; larger than every earlier one of the shard.
    pub timestamp: Timestamp,
    /// What it does.
    pub body: Body,
}

/// Version of the entry format written here.
pub const FORMAT: u8 = 1;
/// Kind, format, index, previous hash, timestamp.
const HEADER_BYTES: usize = 2 + 8 + 32 + 8;

const HAS_WRITE: u8 = 1;
const HAS_LAST_ID: u8 = 2;
const HAS_DDL: u8 = 4;

/// Why entry bytes cannot be used.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryError {
    /// A kind or format this program does not know: it is too old for this log.
    #[error("log entry of kind {kind} in format {format} was written by a newer version")]
    Newer {
        /// The kind's number.
        kind: u8,
        /// The format's.
        format: u8,
    },
    /// They do not decode.
    #[error("log entry is malformed: {0}")]
    Malformed(#[from] Malformed),
}

impl From<EntryError> for Fatal {
    fn from(e: EntryError) -> Self {
        Fatal::new("decode a log entry", e)
    }
}

/// What an entry says before its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Where it was meant to be.
    pub index: Index,
    /// The chain hash it was made for.
    pub previous: Hash,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

impl Kind {
    fn known(kind: u8, format: u8) -> Result<Kind, EntryError> {
        match (kind, format) {
            (1, FORMAT) => Ok(Kind::Write),
            (8, FORMAT) => Ok(Kind::Epoch),
            (13, FORMAT) => Ok(Kind::ClientExpire),
            (16, FORMAT) => Ok(Kind::Empty),
            _ => Err(EntryError::Newer { kind, format }),
        }
    }
}

impl Entry {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::Write(_) => Kind::Write,
            Body::ClientExpire(_) => Kind::ClientExpire,
            Body::Epoch(_) => Kind::Epoch,
            Body::Empty => Kind::Empty,
        }
    }

    /// As it stands in a log, written in this term.
    pub fn logged(&self, term: Term) -> LogEntry {
        LogEntry { index: self.index, term, payload: Payload::Entry, bytes: self.encode() }
    }

    /// Its canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes_hint());
        out.push(self.kind() as u8);
        out.push(FORMAT);
        out.extend_from_slice(&self.index.get().to_be_bytes());
        out.extend_from_slice(&self.previous.0);
        out.extend_from_slice(&self.timestamp.raw().to_be_bytes());
        match &self.body {
            Body::Write(transactions) => {
                put_u64(&mut out, transactions.len() as u64);
                transactions.iter().for_each(|t| put_transaction(&mut out, t));
            }
            Body::ClientExpire(clients) => {
                put_u64(&mut out, clients.len() as u64);
                clients.iter().for_each(|c| out.extend_from_slice(&c.0));
            }
            Body::Epoch(begun) => {
                put_u64(&mut out, begun.epoch.number);
                put_u64(&mut out, begun.epoch.id);
                begun.membership.put(&mut out);
            }
            Body::Empty => {}
        }
        Bytes::from(out)
    }

    fn bytes_hint(&self) -> usize {
        let body = match &self.body {
            Body::Write(transactions) => transactions.iter().map(Transaction::bytes_hint).sum(),
            Body::ClientExpire(clients) => clients.len() * 16,
            Body::Epoch(_) => 128,
            Body::Empty => 0,
        };
        HEADER_BYTES + 8 + body
    }

    /// The header of canonical bytes; the body is not looked at.
    pub fn header(bytes: &Bytes) -> Result<Header, EntryError> {
        Self::read_header(&mut Reader::new(bytes))
    }

    fn read_header(r: &mut Reader<'_>) -> Result<Header, EntryError> {
        let kind = r.u8()?;
        let kind = Kind::known(kind, r.u8()?)?;
        Ok(Header {
            kind,
            index: Index::new(u64::from_be_bytes(r.array()?)),
            previous: Hash(r.array()?),
            timestamp: Timestamp::from_raw(u64::from_be_bytes(r.array()?)),
        })
    }

    /// From canonical bytes; keys and values share them.
    pub fn decode(bytes: &Bytes) -> Result<Entry, EntryError> {
        let mut r = Reader::new(bytes);
        let header = Self::read_header(&mut r)?;
        let body = match header.kind {
            Kind::Write => {
                let n = r.count()?;
                Body::Write((0..n).map(|_| take_transaction(&mut r)).collect::<Result<_, _>>()?)
            }
            Kind::ClientExpire => {
                let n = r.count()?;
                Body::ClientExpire((0..n).map(|_| r.array().map(ClientId)).collect::<Result<_, _>>()?)
            }
            Kind::Epoch => {
                let epoch = Epoch { number: r.u64()?, id: r.u64()? };
                Body::Epoch(EpochEntry { epoch, membership: Membership::take(&mut r)? })
            }
            _ => Body::Empty,
        };
        r.end()?;
        Ok(Entry { index: header.index, previous: header.previous, timestamp: header.timestamp, body })
    }
}

impl Transaction {
    /// Roughly what it takes in an entry, never less.
    pub fn bytes_hint(&self) -> usize {
        let writes: usize = self.writes.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Bytes::len) + 8).sum();
        let purged: usize = self.purged.iter().map(|k| k.len() + 4).sum();
        // A definition rarely takes a kilobyte; being wrong here costs an allocation, nothing else.
        64 + writes + purged + self.fences.len() * 1024 + self.sequences.len() * 20
    }
}

fn put_transaction(out: &mut Vec<u8>, t: &Transaction) {
    let ddl = !(t.fences.is_empty() && t.sequences.is_empty() && t.purged.is_empty());
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(flag(t.write.is_some(), HAS_WRITE) | flag(t.last_id.is_some(), HAS_LAST_ID) | flag(ddl, HAS_DDL));
    if let Some(write) = &t.write {
        out.extend_from_slice(&write.client.0);
        put_u64(out, write.seq);
    }
    put_u64(out, t.rows);
    if let Some(id) = t.last_id {
        put_i64(out, id);
    }
    put_u64(out, t.writes.len() as u64);
    for (key, value) in &t.writes {
        put_bytes(out, key);
        // 0 is a deletion, n a value of n - 1 bytes.
        match value {
            None => put_u64(out, 0),
            Some(value) => {
                put_u64(out, value.len() as u64 + 1);
                out.extend_from_slice(value);
            }
        }
    }
    if ddl {
        put_u64(out, t.fences.len() as u64);
        for (table, def) in &t.fences {
            put_u64(out, table.get());
            put_bytes(out, &def.as_ref().map(encode_table).unwrap_or_default());
        }
        put_u64(out, t.sequences.len() as u64);
        for (table, next) in &t.sequences {
            put_u64(out, table.get());
            put_i64(out, *next);
        }
        put_u64(out, t.purged.len() as u64);
        t.purged.iter().for_each(|key| put_bytes(out, key));
    }
}

fn take_transaction(r: &mut Reader<'_>) -> Result<Transaction, Malformed> {
    let flags = r.u8()?;
    if flags > (HAS_WRITE | HAS_LAST_ID | HAS_DDL) {
        return Err(r.malformed());
    }
    let mut t = Transaction::default();
    if flags & HAS_WRITE != 0 {
        t.write = Some(WriteId { client: ClientId(r.array()?), seq: r.u64()? });
    }
    t.rows = r.u64()?;
    if flags & HAS_LAST_ID != 0 {
        t.last_id = Some(r.i64()?);
    }
    let n = r.count()?;
    t.writes.reserve_exact(n);
    for _ in 0..n {
        let key = r.bytes()?;
        let value = match r.count_plus_one()? {
            None => None,
            Some(len) => Some(r.take(len)?),
        };
        t.writes.push((key, value));
    }
    if flags & HAS_DDL != 0 {
        for _ in 0..r.count()? {
            let table = TableId::new(r.u64()?);
            let def = r.bytes()?;
            let def = if def.is_empty() { None } else { Some(decode_table(&def).ok_or(r.malformed())?) };
            t.fences.push((table, def));
        }
        for _ in 0..r.count()? {
            t.sequences.push((TableId::new(r.u64()?), r.i64()?));
        }
        for _ in 0..r.count()? {
            t.purged.push(r.bytes()?);
        }
    }
    Ok(t)
}

/// Bytes of a table's definition inside an entry and in the shard's tree: format version, then postcard.
pub fn encode_table(def: &TableDef) -> Vec<u8> {
    // Serializing plain data into memory cannot fail.
    postcard::to_extend(def, vec![FORMAT]).unwrap_or_default()
}

/// A table's definition from its bytes.
pub fn decode_table(bytes: &[u8]) -> Option<TableDef> {
    let (&FORMAT, rest) = bytes.split_first()? else { return None };
    postcard::from_bytes(rest).ok()
}

/// The bytes that are hashed for a position of the log: an entry's own, or for the protocol's empty and membership
/// entries kind, format, index, term and the protocol's bytes.
pub fn canonical(entry: &LogEntry) -> Bytes {
    let kind = match entry.payload {
        Payload::Entry => return entry.bytes.clone(),
        Payload::Empty => Kind::Empty,
        Payload::Membership => Kind::Membership,
    };
    let mut out = Vec::with_capacity(18 + entry.bytes.len());
    out.push(kind as u8);
    out.push(FORMAT);
    out.extend_from_slice(&entry.index.get().to_be_bytes());
    out.extend_from_slice(&entry.term.get().to_be_bytes());
    out.extend_from_slice(&entry.bytes);
    Bytes::from(out)
}

/// `chain(i)` from `chain(i - 1)` and the entry at `i`.
pub fn chain(previous: Hash, entry: &LogEntry) -> Hash {
    chain_bytes(previous, &canonical(entry))
}

/// As [`chain`], for canonical bytes at hand.
pub fn chain_bytes(previous: Hash, canonical: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&previous.0);
    hasher.update(canonical);
    Hash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quorate_shared::ids::Term;

    use super::*;

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn entry(body: Body) -> Entry {
        Entry { index: Index::new(2), previous: Hash([0xcc; 32]), timestamp: Timestamp::new(1, 2), body }
    }

    const HEAD: &str = "01\
        0000000000000002\
        cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc\
        0000000000010002";

    #[test]
    fn golden_write() {
        let write = Some(WriteId { client: ClientId([0xab; 16]), seq: 300 });
        let plain = Transaction {
            write,
            rows: 2,
            last_id: Some(-1),
            writes: vec![(Bytes::from_static(b"k"), Some(Bytes::from_static(b"v"))), (Bytes::from_static(b"l"), None)],
            ..Transaction::default()
        };
        let ddl = Transaction {
            fences: vec![(TableId::new(5), None)],
            sequences: vec![(TableId::new(5), 64)],
            purged: vec![Bytes::from_static(b"p")],
            ..Transaction::default()
        };
        let e = entry(Body::Write(vec![plain, ddl]));
        let expected = format!(
            "01{HEAD}02\
             03abababababababababababababababab\
             ac020201\
             02016b0276016c00\
             04000001050001058001010170"
        );
        assert_eq!(hex(&e.encode()), expected);
        assert_eq!(Entry::decode(&e.encode()).unwrap(), e);
    }

    #[test]
    fn golden_others() {
        let expire = entry(Body::ClientExpire(vec![ClientId([1; 16])]));
        assert_eq!(hex(&expire.encode()), format!("0d{HEAD}0101010101010101010101010101010101"));
        assert_eq!(Entry::decode(&expire.encode()).unwrap(), expire);
        let epoch = Epoch { number: 2, id: 300 };
        let membership = Membership { next: quorate_shared::ids::ReplicaId::new(5), ..Membership::default() };
        let begun = entry(Body::Epoch(EpochEntry { epoch, membership }));
        assert_eq!(hex(&begun.encode()), format!("08{HEAD}02ac020000000500"));
        assert_eq!(Entry::decode(&begun.encode()).unwrap(), begun);
        let empty = entry(Body::Empty);
        assert_eq!(hex(&empty.encode()), format!("10{HEAD}"));
        assert_eq!(Entry::decode(&empty.encode()).unwrap(), empty);
    }

    #[test]
    fn golden_of_the_protocols_own() {
        let log = |payload, bytes| LogEntry { index: Index::new(2), term: Term::new(3), payload, bytes };
        let empty = log(Payload::Empty, Bytes::new());
        assert_eq!(hex(&canonical(&empty)), "100100000000000000020000000000000003");
        let membership = log(Payload::Membership, Bytes::from_static(&[9, 8]));
        assert_eq!(hex(&canonical(&membership)), "0701000000000000000200000000000000030908");
        assert_eq!(
            hex(&chain(Hash::default(), &empty).0),
            "146e47bd902ac1de279d450fe8efcb85a1e376adb6fa1f59dc91699aa3a8ac07"
        );
        let ours = log(Payload::Entry, Bytes::from_static(b"as it came"));
        assert_eq!(canonical(&ours), ours.bytes);
        assert_ne!(chain(Hash::default(), &ours), chain(Hash([1; 32]), &ours));
    }

    #[test]
    fn a_definition_comes_back() {
        let def = crate::keys::tests::table();
        assert_eq!(decode_table(&encode_table(&def)).unwrap(), def);
        let t = Transaction { fences: vec![(def.id, Some(def))], ..Transaction::default() };
        let e = entry(Body::Write(vec![t]));
        assert_eq!(Entry::decode(&e.encode()).unwrap(), e);
    }

    #[test]
    fn newer_kinds_are_refused_by_name() {
        let mut bytes = entry(Body::Empty).encode().to_vec();
        bytes[0] = 9;
        assert_eq!(Entry::decode(&Bytes::from(bytes.clone())), Err(EntryError::Newer { kind: 9, format: 1 }));
        bytes[0] = 16;
        bytes[1] = 2;
        let e = Entry::header(&Bytes::from(bytes)).unwrap_err();
        assert_eq!(e.to_string(), "log entry of kind 16 in format 2 was written by a newer version");
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
    }

    fn transaction() -> impl Strategy<Value = Transaction> {
        (
            prop::option::of((any::<[u8; 16]>(), any::<u64>())),
            any::<u64>(),
            any::<Option<i64>>(),
            prop::collection::vec((bytes(), prop::option::of(bytes())), 0..4),
            prop::collection::vec(bytes(), 0..2),
        )
            .prop_map(|(write, rows, last_id, writes, purged)| Transaction {
                write: write.map(|(client, seq)| WriteId { client: ClientId(client), seq }),
                rows,
                last_id,
                writes,
                purged,
                ..Transaction::default()
            })
    }

    proptest! {
        #[test]
        fn entries_come_back(list in prop::collection::vec(transaction(), 0..4)) {
            let hint: usize = list.iter().map(Transaction::bytes_hint).sum();
            let e = entry(Body::Write(list));
            prop_assert!(e.encode().len() <= hint + HEADER_BYTES + 8);
            prop_assert_eq!(Entry::decode(&e.encode()).unwrap(), e);
        }

        #[test]
        fn garbage_never_panics(list in prop::collection::vec(transaction(), 0..2), at: prop::sample::Index, b: u8) {
            let mut bytes = entry(Body::Write(list)).encode().to_vec();
            let i = at.index(bytes.len());
            bytes[i] = b;
            let _ = Entry::decode(&Bytes::from(bytes.clone()));
            bytes.truncate(i);
            prop_assert!(Entry::decode(&Bytes::from(bytes)).is_err());
        }
    }
}
