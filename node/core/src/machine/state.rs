//! What the machine knows besides rows, kept in memory and in the tree: enough to seed a sequencer.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{ClientId, Epoch, Hash, Index, ShardId, TableId, Term, Timestamp, WriteId};
use quorate_shared::limits::DEDUPE_WINDOW;
use serde::{Deserialize, Serialize};

use crate::engine::{KeyRange, Tree};
use crate::entry::codec::{Malformed, Reader, put_i64, put_u64};
use crate::entry::decode_table;
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::log::{BaseRecord, EpochStart, Membership};
use crate::machine::Applied;
use crate::table::TableDef;

/// Version of the machine's records written here.
const FORMAT: u8 = 1;
/// Version of the applied record: 2 has the whole membership and where the epoch began.
const APPLIED_FORMAT: u8 = 2;

/// An order-independent sum over BLAKE3(key ‖ version ‖ row) of what is current.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Digest([u64; 4]);

impl Digest {
    fn lanes(key: &[u8], timestamp: Timestamp, row: &[u8]) -> [u64; 4] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(key.len() as u32).to_le_bytes());
        hasher.update(key);
        hasher.update(&timestamp.raw().to_le_bytes());
        hasher.update(row);
        let hash = *hasher.finalize().as_bytes();
        let mut lanes = [0; 4];
        for (lane, raw) in lanes.iter_mut().zip(hash.as_chunks::<8>().0) {
            *lane = u64::from_le_bytes(*raw);
        }
        lanes
    }

    /// A row has become current.
    pub fn add(&mut self, key: &[u8], timestamp: Timestamp, row: &[u8]) {
        let lanes = Self::lanes(key, timestamp, row);
        self.0.iter_mut().zip(lanes).for_each(|(a, b)| *a = a.wrapping_add(b));
    }

    /// A row is current no more.
    pub fn remove(&mut self, key: &[u8], timestamp: Timestamp, row: &[u8]) {
        let lanes = Self::lanes(key, timestamp, row);
        self.0.iter_mut().zip(lanes).for_each(|(a, b)| *a = a.wrapping_sub(b));
    }

    /// Its stored bytes.
    pub fn encode(&self) -> Bytes {
        Bytes::from(self.0.map(u64::to_le_bytes).concat())
    }

    /// The sum, for formats that store it as numbers.
    pub fn lanes_sum(&self) -> [u64; 4] {
        self.0
    }

    /// From such a sum.
    pub fn from_lanes(lanes: [u64; 4]) -> Self {
        Self(lanes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (lanes, rest) = bytes.as_chunks::<8>();
        let lanes: [[u8; 8]; 4] = lanes.try_into().ok()?;
        rest.is_empty().then(|| Self(lanes.map(u64::from_le_bytes)))
    }
}

/// A client of the exactly-once rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientState {
    /// The highest sequence number executed.
    pub seq: u64,
    /// When that was.
    pub last: Timestamp,
}

/// What a duplicate of an executed write is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientResult {
    /// The write's sequence number.
    pub seq: u64,
    /// The entry that carried it.
    pub index: Index,
    /// Its place in the entry.
    pub position: u32,
    /// The entry's timestamp.
    pub timestamp: Timestamp,
    /// Rows.
    pub rows: u64,
    /// The last number given.
    pub last_id: Option<i64>,
}

impl ClientResult {
    /// Its stored bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(32);
        out.push(FORMAT);
        put_u64(&mut out, self.seq);
        put_u64(&mut out, self.index.get());
        put_u64(&mut out, u64::from(self.position));
        put_u64(&mut out, self.timestamp.raw());
        put_u64(&mut out, self.rows);
        if let Some(id) = self.last_id {
            put_i64(&mut out, id);
        }
        Bytes::from(out)
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, Fatal> {
        let read = || -> Result<Self, Malformed> {
            let mut r = Reader::new(bytes);
            if r.u8()? != FORMAT {
                return Err(r.malformed());
            }
            Ok(Self {
                seq: r.u64()?,
                index: Index::new(r.u64()?),
                position: r.u64()? as u32,
                timestamp: Timestamp::from_raw(r.u64()?),
                rows: r.u64()?,
                last_id: if r.end().is_ok() { None } else { Some(r.i64()?) },
            })
        };
        read().map_err(|e| Fatal::new("read a client's result", e))
    }
}

/// What is known of a write id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// The client has never written here, or has been forgotten.
    NoClient,
    /// Not executed.
    New,
    /// Executed.
    Done(ClientResult),
    /// Too long ago to tell.
    BelowWindow,
}

/// The machine's state as of an applied index. Cloning copies maps of pointers; rows are only in the tree.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MachineState {
    /// Highest applied index.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Chain hash there.
    pub chain: Hash,
    /// Last timestamp applied.
    pub timestamp: Timestamp,
    /// The epoch.
    pub epoch: Epoch,
    /// Where it began.
    pub epoch_start: EpochStart,
    /// Who takes part.
    pub membership: Arc<Membership>,
    /// Tables as fenced, by catalog id.
    pub tables: BTreeMap<TableId, Arc<TableDef>>,
    /// First number not granted, by catalog id.
    pub sequences: BTreeMap<TableId, i64>,
    /// Clients of the exactly-once rule.
    pub clients: BTreeMap<ClientId, ClientState>,
    /// Digests, by storage; the catalog's is 0.
    pub digests: BTreeMap<TableId, Digest>,
}

impl MachineState {
    /// From a tree; `base` is where an empty one begins.
    pub fn load(tree: &dyn Tree, base: &BaseRecord) -> Result<Self, Fatal> {
        let Some(applied) = tree.get(&Key::Applied.encode())? else {
            let all = KeyRange { start: Bytes::new(), end: None };
            if tree.scan(&all, false).next().transpose()?.is_some() {
                return Err(Fatal::new("open the machine", "its tree has keys but no applied record"));
            }
            if base.index > Index::new(0) {
                let cause = format!("its tree is empty and its log begins after {}: a snapshot is missing", base.index);
                return Err(Fatal::new("open the machine", cause));
            }
            return Ok(Self {
                index: base.index,
                term: base.term,
                chain: base.chain,
                timestamp: base.timestamp,
                epoch: base.epoch,
                epoch_start: base.epoch_start,
                membership: Arc::new(base.membership.clone()),
                ..Self::default()
            });
        };
        let mut state = Self::decode_applied(&applied)?;
        for item in tree.scan(&keys::table_defs_range(), false) {
            let (key, value) = item?;
            if let Key::Table(id) = Key::decode(&key)? {
                let def = decode_table(&value).ok_or_else(|| malformed("table definition"))?;
                state.tables.insert(id, Arc::new(def));
            }
        }
        for item in tree.scan(&keys::sequences_range(), false) {
            let (key, value) = item?;
            if let Key::Sequence(id) = Key::decode(&key)? {
                let next = value[..].try_into().map_err(|_| malformed("sequence"))?;
                state.sequences.insert(id, i64::from_be_bytes(next));
            }
        }
        state.load_digests(tree)?;
        for item in tree.scan(&keys::client_range(None), false) {
            let (key, value) = item?;
            if let Key::Client { client, .. } = Key::decode(&key)? {
                state.remember(client, &ClientResult::decode(&value)?);
            }
        }
        Ok(state)
    }

    /// The point it is at, as the base of a log that goes on from here.
    pub fn base(&self, shard: ShardId) -> BaseRecord {
        BaseRecord {
            shard,
            index: self.index,
            term: self.term,
            chain: self.chain,
            membership: (*self.membership).clone(),
            epoch: self.epoch,
            epoch_start: self.epoch_start,
            timestamp: self.timestamp,
        }
    }

    /// What the applier reports of it.
    pub fn applied(&self) -> Applied {
        Applied {
            index: self.index,
            term: self.term,
            chain: self.chain,
            timestamp: self.timestamp,
            epoch: self.epoch,
            epoch_start: self.epoch_start,
            membership: Arc::clone(&self.membership),
            void: Vec::new(),
            schema_changed: false,
        }
    }

    /// The applied record and the digests, without the rest.
    pub(super) fn digests_of(tree: &dyn Tree, applied: &Bytes) -> Result<Self, Fatal> {
        let mut state = Self::decode_applied(applied)?;
        state.load_digests(tree)?;
        Ok(state)
    }

    fn load_digests(&mut self, tree: &dyn Tree) -> Result<(), Fatal> {
        for item in tree.scan(&keys::digests_range(), false) {
            let (key, value) = item?;
            if let Key::Digest(id) = Key::decode(&key)? {
                self.digests.insert(id, Digest::decode(&value).ok_or_else(|| malformed("digest"))?);
            }
        }
        Ok(())
    }

    /// What is known of a write.
    pub fn known(&self, tree: &dyn Tree, write: WriteId) -> Result<Known, Fatal> {
        let Some(client) = self.clients.get(&write.client) else { return Ok(Known::NoClient) };
        if write.seq > client.seq {
            return Ok(Known::New);
        }
        if write.seq + DEDUPE_WINDOW <= client.seq {
            return Ok(Known::BelowWindow);
        }
        match tree.get(&slot_key(write.client, write.seq))? {
            None => Ok(Known::New),
            Some(bytes) => {
                let result = ClientResult::decode(&bytes)?;
                Ok(if result.seq == write.seq { Known::Done(result) } else { Known::New })
            }
        }
    }

    /// One hash over all digests.
    pub fn digest(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for (storage, digest) in self.digests.iter().filter(|(_, d)| **d != Digest::default()) {
            hasher.update(&storage.get().to_le_bytes());
            hasher.update(&digest.encode());
        }
        Hash(*hasher.finalize().as_bytes())
    }

    /// Notes a result; where it is stored.
    pub(super) fn remember(&mut self, client: ClientId, result: &ClientResult) -> Bytes {
        let state = self.clients.entry(client).or_insert(ClientState { seq: 0, last: Timestamp::MIN });
        state.seq = state.seq.max(result.seq);
        state.last = state.last.max(result.timestamp);
        slot_key(client, result.seq)
    }

    pub(crate) fn encode_applied(&self) -> Bytes {
        let mut out = Vec::with_capacity(160);
        out.push(APPLIED_FORMAT);
        put_u64(&mut out, self.index.get());
        put_u64(&mut out, self.term.get());
        out.extend_from_slice(&self.chain.0);
        put_u64(&mut out, self.timestamp.raw());
        put_u64(&mut out, self.epoch.number);
        put_u64(&mut out, self.epoch.id);
        put_u64(&mut out, self.epoch_start.index.get());
        out.extend_from_slice(&self.epoch_start.chain.0);
        self.membership.put(&mut out);
        Bytes::from(out)
    }

    pub(crate) fn decode_applied(bytes: &Bytes) -> Result<Self, Fatal> {
        let read = || -> Result<Self, Malformed> {
            let mut r = Reader::new(bytes);
            if r.u8()? != APPLIED_FORMAT {
                return Err(r.malformed());
            }
            let state = Self {
                index: Index::new(r.u64()?),
                term: Term::new(r.u64()?),
                chain: Hash(r.array()?),
                timestamp: Timestamp::from_raw(r.u64()?),
                epoch: Epoch { number: r.u64()?, id: r.u64()? },
                epoch_start: EpochStart { index: Index::new(r.u64()?), chain: Hash(r.array()?) },
                membership: Arc::new(Membership::take(&mut r)?),
                ..Self::default()
            };
            r.end()?;
            Ok(state)
        };
        read().map_err(|e| Fatal::new("read the applied record", e))
    }
}

fn slot_key(client: ClientId, seq: u64) -> Bytes {
    Key::Client { client, slot: (seq % DEDUPE_WINDOW) as u8 }.encode()
}

fn malformed(what: &str) -> Fatal {
    Fatal::new("open the machine", format!("a stored {what} is malformed"))
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::{NodeId, ReplicaId};

    use super::*;

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden() {
        let state = MachineState {
            index: Index::new(300),
            term: Term::new(2),
            chain: Hash([0xcc; 32]),
            timestamp: Timestamp::from_raw(5),
            epoch: Epoch { number: 1, id: 9 },
            epoch_start: EpochStart { index: Index::new(7), chain: Hash([0xdd; 32]) },
            membership: Arc::new(Membership::of_voters([1, 2].map(|n| (ReplicaId::new(n), NodeId::new(n))))),
            ..MachineState::default()
        };
        let bytes = state.encode_applied();
        let (chain, start, zero) = ("cc".repeat(32), "dd".repeat(32), "00".repeat(16));
        let expected = format!("02ac0202{chain} 05 0109 07{start} 02 0101{zero} 0202{zero} 00 00 03 00");
        assert_eq!(hex(&bytes), expected.replace(' ', ""));
        assert_eq!(MachineState::decode_applied(&bytes).unwrap(), state);

        let mut result = ClientResult {
            seq: 300,
            index: Index::new(7),
            position: 2,
            timestamp: Timestamp::from_raw(5),
            rows: 3,
            last_id: Some(-1),
        };
        assert_eq!(hex(&result.encode()), "01ac020702050301");
        assert_eq!(ClientResult::decode(&result.encode()).unwrap(), result);
        result.last_id = None;
        assert_eq!(ClientResult::decode(&result.encode()).unwrap(), result);
    }

    #[test]
    fn a_digest_does_not_depend_on_order() {
        let (mut a, mut b) = (Digest::default(), Digest::default());
        let ts = Timestamp::from_raw(1);
        a.add(b"x", ts, b"1");
        a.add(b"y", ts, b"2");
        b.add(b"y", ts, b"2");
        b.add(b"z", ts, b"3");
        b.add(b"x", ts, b"1");
        assert_ne!(a, b);
        b.remove(b"z", ts, b"3");
        assert_eq!(a, b);
        assert_eq!(Digest::decode(&a.encode()), Some(a));
        // Key and row do not run into each other.
        let (mut c, mut d) = (Digest::default(), Digest::default());
        c.add(b"ab", ts, b"c");
        d.add(b"a", ts, b"bc");
        assert_ne!(c, d);
    }
}
