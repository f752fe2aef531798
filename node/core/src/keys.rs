//! Every key that is stored in a tree, in one enum, with an order-preserving encoding.
//!
//! A tree's keys by their first byte: `01` the machine's own records, `02` catalog, `03` data, `04` history of catalog and
//! data keys; `ff` belongs to the engine (overflow of large values) and is never seen above it. All numbers are
//! big-endian; ids in data keys take as many bytes as they need.
//!
//! Invariants: no key is a prefix of another (so `history/<key>/` is a range of its own); an encoded key is at most
//! [`KEY_BYTES_MAX`] bytes plus its fixed head, a longer one is refused when a row is written; bytes are fixed by golden
//! tests.
//!
//! Index entries: a unique index has the key columns as key and the row's encoded primary key columns as payload; if one
//! of the columns is NULL, and in a non-unique index always, the primary key columns follow in the key instead and the
//! payload is empty.

pub mod columns;

use std::ops::Bound;

use bytes::Bytes;
use quorate_shared::ids::{ClientId, DatabaseId, Index, IndexId, NodeId, TableId, Timestamp};
use quorate_shared::limits::KEY_BYTES_MAX;
use quorate_shared::value::{SqlType, Value};

use crate::engine::KeyRange;
use crate::error::{Fatal, Rejected};
use crate::table::{ColumnPos, IndexDef, TableDef};

/// Bytes that are no key of ours.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyError {
    /// They do not decode.
    #[error("a stored key is malformed")]
    Malformed,
}

impl From<KeyError> for Fatal {
    fn from(e: KeyError) -> Self {
        Fatal::new("decode a key", e)
    }
}

const META: u8 = 0x01;
const CATALOG: u8 = 0x02;
const DATA: u8 = 0x03;
const HISTORY: u8 = 0x04;
/// First byte of the engine's own keys; no [`Key`] begins with it.
pub const ENGINE_PREFIX: u8 = 0xff;

const APPLIED: u8 = 0x01;
const HORIZON: u8 = 0x02;
const CHECKPOINT: u8 = 0x03;
const CLIENT: u8 = 0x04;
const TABLE: u8 = 0x05;
const SEQUENCE: u8 = 0x06;
const DIGEST: u8 = 0x07;

/// A catalog key's kind; numbered for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CatalogKey {
    /// Numbers that are handed out.
    Counters,
    /// A database.
    Database(DatabaseId),
    /// A table, by catalog id.
    Table(TableId),
    /// A view.
    View(TableId),
    /// A node.
    Node(NodeId),
    /// A DDL job.
    Job(u64),
    /// An archive of the log.
    Archive(u64),
}

/// A stored key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// The applied record.
    Applied,
    /// The timestamp below which versions may be gone.
    Horizon,
    /// Chain hash at an index.
    Checkpoint(Index),
    /// The result of a client's write `seq`, in slot `seq % DEDUPE_WINDOW`.
    Client {
        /// The client.
        client: ClientId,
        /// The slot.
        slot: u8,
    },
    /// A table as the shard knows it, by catalog id.
    Table(TableId),
    /// A table's next number, by catalog id.
    Sequence(TableId),
    /// A storage's state digest.
    Digest(TableId),
    /// Of `s0`.
    Catalog(CatalogKey),
    /// A row or index entry: newest version inline.
    Data {
        /// The table's storage.
        storage: TableId,
        /// The index; 0 holds the rows.
        index: IndexId,
        /// Encoded key columns.
        columns: Bytes,
    },
    /// An older version of a catalog or data key.
    History {
        /// The encoded key.
        key: Bytes,
        /// When that version was written.
        timestamp: Timestamp,
    },
}

impl Key {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let meta = |kind: u8, rest: &[u8]| [&[META, kind], rest].concat();
        Bytes::from(match self {
            Key::Applied => meta(APPLIED, &[]),
            Key::Horizon => meta(HORIZON, &[]),
            Key::Checkpoint(index) => meta(CHECKPOINT, &index.get().to_be_bytes()),
            Key::Client { client, slot } => meta(CLIENT, &[&client.0[..], &[*slot]].concat()),
            Key::Table(id) => meta(TABLE, &id.get().to_be_bytes()),
            Key::Sequence(id) => meta(SEQUENCE, &id.get().to_be_bytes()),
            Key::Digest(id) => meta(DIGEST, &id.get().to_be_bytes()),
            Key::Catalog(key) => {
                let (kind, id) = key.parts();
                [&[CATALOG, kind], &id.to_be_bytes()[..]].concat()
            }
            Key::Data { storage, index, columns } => {
                let mut out = data_head(*storage, *index);
                out.extend_from_slice(columns);
                out
            }
            Key::History { key, timestamp } => return history_key(key, *timestamp),
        })
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Key, KeyError> {
        match bytes.split_first() {
            Some((&META, rest)) => Self::decode_meta(rest),
            Some((&CATALOG, &[kind, ref id @ ..])) => CatalogKey::from_parts(kind, be64(id)?).map(Key::Catalog),
            Some((&DATA, _)) => {
                let (storage, index, columns) = split_data(bytes)?;
                Ok(Key::Data { storage, index, columns: Bytes::copy_from_slice(columns) })
            }
            Some((&HISTORY, _)) => {
                let (key, timestamp) = split_history(bytes)?;
                Ok(Key::History { key: Bytes::copy_from_slice(key), timestamp })
            }
            _ => Err(KeyError::Malformed),
        }
    }

    fn decode_meta(bytes: &[u8]) -> Result<Key, KeyError> {
        let (&kind, rest) = bytes.split_first().ok_or(KeyError::Malformed)?;
        Ok(match kind {
            APPLIED if rest.is_empty() => Key::Applied,
            HORIZON if rest.is_empty() => Key::Horizon,
            CHECKPOINT => Key::Checkpoint(Index::new(be64(rest)?)),
            CLIENT => {
                let (&slot, id) = rest.split_last().ok_or(KeyError::Malformed)?;
                Key::Client { client: ClientId(id.try_into().map_err(|_| KeyError::Malformed)?), slot }
            }
            TABLE => Key::Table(TableId::new(be64(rest)?)),
            SEQUENCE => Key::Sequence(TableId::new(be64(rest)?)),
            DIGEST => Key::Digest(TableId::new(be64(rest)?)),
            _ => return Err(KeyError::Malformed),
        })
    }
}

impl CatalogKey {
    fn parts(self) -> (u8, u64) {
        match self {
            CatalogKey::Counters => (1, 0),
            CatalogKey::Database(id) => (2, id.get()),
            CatalogKey::Table(id) => (3, id.get()),
            CatalogKey::View(id) => (4, id.get()),
            CatalogKey::Node(id) => (5, id.get()),
            CatalogKey::Job(id) => (6, id),
            CatalogKey::Archive(id) => (7, id),
        }
    }

    fn from_parts(kind: u8, id: u64) -> Result<Self, KeyError> {
        Ok(match kind {
            1 if id == 0 => CatalogKey::Counters,
            2 => CatalogKey::Database(DatabaseId::new(id)),
            3 => CatalogKey::Table(TableId::new(id)),
            4 => CatalogKey::View(TableId::new(id)),
            5 => CatalogKey::Node(NodeId::new(id)),
            6 => CatalogKey::Job(id),
            7 => CatalogKey::Archive(id),
            _ => return Err(KeyError::Malformed),
        })
    }

    /// Its encoded key.
    pub fn encode(self) -> Bytes {
        Key::Catalog(self).encode()
    }
}

/// What one row has in one secondary index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// Encoded data key.
    pub key: Bytes,
    /// Its payload: the encoded primary key columns, or empty if the key ends with them.
    pub payload: Bytes,
    /// Two rows with this key would violate the index.
    pub unique: bool,
}

/// The data key of the row with this primary key.
pub fn row_key_of(def: &TableDef, key: &[Value]) -> Result<Bytes, Rejected> {
    let mut out = data_head(def.storage, IndexId::PRIMARY);
    if key.len() != def.primary_key.len() {
        return Err(Rejected::Value {
            sqlstate: "42804".into(),
            message: format!("the primary key of \"{}\" has {} columns", def.name, def.primary_key.len()),
        });
    }
    for (&column, value) in def.primary_key.iter().zip(key) {
        columns::encode(&mut out, type_of(def, column)?, value)?;
    }
    checked(out, def)
}

/// The data key of a row given by all its physical columns.
pub fn row_key(def: &TableDef, row: &[Value]) -> Result<Bytes, Rejected> {
    let mut out = data_head(def.storage, IndexId::PRIMARY);
    append_columns(&mut out, def, &def.primary_key, row)?;
    checked(out, def)
}

/// The entry of a row, given by all its physical columns, in a secondary index.
pub fn index_entry(def: &TableDef, index: &IndexDef, row: &[Value]) -> Result<IndexEntry, Rejected> {
    let mut out = data_head(def.storage, index.id);
    append_columns(&mut out, def, &index.columns, row)?;
    let null = index.columns.iter().any(|&c| row.get(usize::from(c)).is_none_or(Value::is_null));
    let unique = index.unique && !null;
    let payload = if unique {
        let mut payload = Vec::with_capacity(16);
        append_columns(&mut payload, def, &def.primary_key, row)?;
        Bytes::from(payload)
    } else {
        append_columns(&mut out, def, &def.primary_key, row)?;
        Bytes::new()
    };
    Ok(IndexEntry { key: checked(out, def)?, payload, unique })
}

/// The data key of the row that an index entry points to.
pub fn row_key_of_entry(def: &TableDef, index: &IndexDef, key: &[u8], payload: &[u8]) -> Result<Bytes, KeyError> {
    let mut out = data_head(def.storage, IndexId::PRIMARY);
    if payload.is_empty() {
        out.extend_from_slice(after_index_columns(def, index, key)?);
    } else {
        out.extend_from_slice(payload);
    }
    Ok(Bytes::from(out))
}

/// The primary key values of the row that an index entry points to.
pub fn primary_key_of_entry(
    def: &TableDef,
    index: &IndexDef,
    key: &[u8],
    payload: &[u8],
) -> Result<Vec<Value>, KeyError> {
    let mut rest = if payload.is_empty() { after_index_columns(def, index, key)? } else { payload };
    decode_columns(def, &def.primary_key, &mut rest)
}

/// The primary key values in a row's data key.
pub fn decode_primary_key(def: &TableDef, key: &[u8]) -> Result<Vec<Value>, KeyError> {
    let (_, _, mut rest) = split_data(key)?;
    decode_columns(def, &def.primary_key, &mut rest)
}

/// The values of an index entry's own columns (equal in order to the row's; see [`columns`] for what that loses).
pub fn decode_index_columns(def: &TableDef, index: &IndexDef, key: &[u8]) -> Result<Vec<Value>, KeyError> {
    let (_, _, mut rest) = split_data(key)?;
    decode_columns(def, &index.columns, &mut rest)
}

/// Everything of a storage: rows and index entries.
pub fn storage_range(storage: TableId) -> KeyRange {
    let mut out = vec![DATA];
    id(&mut out, storage.get());
    KeyRange::prefix(out)
}

/// All entries of one index, or all rows with [`IndexId::PRIMARY`].
pub fn index_range(storage: TableId, index: IndexId) -> KeyRange {
    KeyRange::prefix(data_head(storage, index))
}

/// Everything of the history of a storage.
pub fn storage_history_range(storage: TableId) -> KeyRange {
    let mut out = vec![HISTORY, DATA];
    id(&mut out, storage.get());
    KeyRange::prefix(out)
}

/// All history.
pub fn history_range() -> KeyRange {
    KeyRange::prefix(vec![HISTORY])
}

/// All catalog keys.
pub fn catalog_range() -> KeyRange {
    KeyRange::prefix(vec![CATALOG])
}

/// Everything that has versions: catalog, then data.
pub fn rows_range() -> KeyRange {
    KeyRange { start: catalog_range().start, end: Some(history_range().start) }
}

/// All dedupe slots, or those of one client.
pub fn client_range(client: Option<ClientId>) -> KeyRange {
    let mut out = vec![META, CLIENT];
    if let Some(client) = client {
        out.extend_from_slice(&client.0);
    }
    KeyRange::prefix(out)
}

/// All tables' definitions.
pub fn table_defs_range() -> KeyRange {
    KeyRange::prefix(vec![META, TABLE])
}

/// All sequences.
pub fn sequences_range() -> KeyRange {
    KeyRange::prefix(vec![META, SEQUENCE])
}

/// All digests.
pub fn digests_range() -> KeyRange {
    KeyRange::prefix(vec![META, DIGEST])
}

/// All chain checkpoints.
pub fn checkpoints_range() -> KeyRange {
    KeyRange::prefix(vec![META, CHECKPOINT])
}

/// Every row or entry of an index whose first key columns equal `values` (NULL equals NULL here).
pub fn equal_range(def: &TableDef, index: IndexId, values: &[Value]) -> Result<KeyRange, Rejected> {
    bounds_range(def, index, values, Bound::Unbounded, Bound::Unbounded)
}

/// Every row or entry of an index whose first key columns equal `prefix` and whose next one is within the bounds.
/// With a bound, NULLs are left out (no comparison with NULL is true).
pub fn bounds_range(
    def: &TableDef,
    index: IndexId,
    prefix: &[Value],
    lower: Bound<&Value>,
    upper: Bound<&Value>,
) -> Result<KeyRange, Rejected> {
    let key_columns = index_columns(def, index)?;
    let types: Vec<SqlType> = key_columns.iter().map(|&c| type_of(def, c)).collect::<Result<_, _>>()?;
    let bounded = !matches!((lower, upper), (Bound::Unbounded, Bound::Unbounded));
    if prefix.len() + usize::from(bounded) > types.len() {
        return Err(Rejected::Value {
            sqlstate: "42804".into(),
            message: "more key columns than the index has".into(),
        });
    }
    let mut head = data_head(def.storage, index);
    for (value, &ty) in prefix.iter().zip(&types) {
        columns::encode(&mut head, ty, value)?;
    }
    if !bounded {
        return Ok(KeyRange::prefix(head));
    }
    let ty = types[prefix.len()];
    let with = |value: &Value| -> Result<Vec<u8>, Rejected> {
        let mut out = head.clone();
        columns::encode(&mut out, ty, value)?;
        Ok(out)
    };
    let start = match lower {
        // 0x00 is NULL; every value begins with a larger byte.
        Bound::Unbounded => Some([&head[..], &[0x01]].concat()),
        Bound::Included(v) => Some(with(v)?),
        Bound::Excluded(v) => successor(with(v)?),
    };
    let end = match upper {
        Bound::Unbounded => successor(head.clone()),
        Bound::Included(v) => successor(with(v)?),
        Bound::Excluded(v) => Some(with(v)?),
    };
    // A data key begins with 03, so it always has a successor.
    let start = Bytes::from(start.unwrap_or_else(|| vec![DATA + 1]));
    Ok(KeyRange { start, end: end.map(Bytes::from) })
}

/// The columns of an index, or of the primary key.
pub fn index_columns(def: &TableDef, index: IndexId) -> Result<&[ColumnPos], Rejected> {
    if index == IndexId::PRIMARY {
        return Ok(&def.primary_key);
    }
    let found = def.indexes.iter().find(|i| i.id == index);
    found.map(|i| &i.columns[..]).ok_or(Rejected::StaleCatalog { table: def.id, current: Some(def.version) })
}

/// The history key of a version of a catalog or data key: newer versions sort first.
pub fn history_key(key: &[u8], timestamp: Timestamp) -> Bytes {
    let mut out = Vec::with_capacity(key.len() + 9);
    out.push(HISTORY);
    out.extend_from_slice(key);
    out.extend_from_slice(&(!timestamp.raw()).to_be_bytes());
    Bytes::from(out)
}

/// The history of one key at and before a timestamp, newest first.
pub fn history_range_of(key: &[u8], at: Timestamp) -> KeyRange {
    let mut prefix = Vec::with_capacity(key.len() + 1);
    prefix.push(HISTORY);
    prefix.extend_from_slice(key);
    KeyRange { start: history_key(key, at), end: successor(prefix).map(Bytes::from) }
}

/// Key and timestamp of a history key.
pub fn split_history(bytes: &[u8]) -> Result<(&[u8], Timestamp), KeyError> {
    let rest = bytes.strip_prefix(&[HISTORY]).ok_or(KeyError::Malformed)?;
    let (key, timestamp) = rest.split_last_chunk::<8>().ok_or(KeyError::Malformed)?;
    Ok((key, Timestamp::from_raw(!u64::from_be_bytes(*timestamp))))
}

/// Storage, index and encoded columns of a data key.
pub fn split_data(bytes: &[u8]) -> Result<(TableId, IndexId, &[u8]), KeyError> {
    let mut rest = bytes.strip_prefix(&[DATA]).ok_or(KeyError::Malformed)?;
    let storage = take_id(&mut rest)?;
    let index = u32::try_from(take_id(&mut rest)?).map_err(|_| KeyError::Malformed)?;
    Ok((TableId::new(storage), IndexId::new(index), rest))
}

/// Whether a key has versions: data and catalog keys do, the machine's own records do not.
pub fn is_versioned(key: &[u8]) -> bool {
    matches!(key.first(), Some(&DATA | &CATALOG))
}

/// Whether it is a catalog key.
pub fn is_catalog(key: &[u8]) -> bool {
    key.first() == Some(&CATALOG)
}

/// The first key behind all keys that begin with `bytes`; `None` if there is none.
pub fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    while let Some(last) = bytes.last_mut() {
        if *last < 0xff {
            *last += 1;
            return Some(bytes);
        }
        bytes.pop();
    }
    None
}

impl KeyRange {
    /// All keys that begin with these bytes.
    pub fn prefix(bytes: Vec<u8>) -> Self {
        KeyRange { start: Bytes::from(bytes.clone()), end: successor(bytes).map(Bytes::from) }
    }

    /// Just this key.
    pub fn one(key: &[u8]) -> Self {
        KeyRange { start: Bytes::copy_from_slice(key), end: Some(Bytes::from([key, &[0]].concat())) }
    }

    /// Whether a key is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether some key can be inside both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        let before = |a: &KeyRange, b: &KeyRange| a.end.as_ref().is_some_and(|end| *end <= b.start);
        !self.is_empty() && !other.is_empty() && !before(self, other) && !before(other, self)
    }
}

fn data_head(storage: TableId, index: IndexId) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    out.push(DATA);
    id(&mut out, storage.get());
    id(&mut out, u64::from(index.get()));
    out
}

/// Ids below 0xf8 take one byte; others a length byte and their bytes.
fn id(out: &mut Vec<u8>, n: u64) {
    if n < 0xf8 {
        out.push(n as u8);
    } else {
        let len = 8 - (n.leading_zeros() / 8) as usize;
        out.push(0xf7 + len as u8);
        out.extend_from_slice(&n.to_be_bytes()[8 - len..]);
    }
}

fn take_id(input: &mut &[u8]) -> Result<u64, KeyError> {
    let (&lead, rest) = input.split_first().ok_or(KeyError::Malformed)?;
    if lead < 0xf8 {
        *input = rest;
        return Ok(u64::from(lead));
    }
    let len = usize::from(lead - 0xf7);
    let (raw, rest) = rest.split_at_checked(len).ok_or(KeyError::Malformed)?;
    *input = rest;
    Ok(raw.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
}

fn be64(bytes: &[u8]) -> Result<u64, KeyError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| KeyError::Malformed)
}

fn type_of(def: &TableDef, column: ColumnPos) -> Result<SqlType, Rejected> {
    def.columns.get(usize::from(column)).map(|c| c.ty).ok_or_else(|| Rejected::Value {
        sqlstate: "XX000".into(),
        message: format!("table \"{}\" has no column at position {column}", def.name),
    })
}

fn append_columns(out: &mut Vec<u8>, def: &TableDef, list: &[ColumnPos], row: &[Value]) -> Result<(), Rejected> {
    for &column in list {
        let value = row.get(usize::from(column)).unwrap_or(&Value::Null);
        columns::encode(out, type_of(def, column)?, value)?;
    }
    Ok(())
}

fn decode_columns(def: &TableDef, list: &[ColumnPos], rest: &mut &[u8]) -> Result<Vec<Value>, KeyError> {
    list.iter()
        .map(|&c| {
            let ty = def.columns.get(usize::from(c)).ok_or(KeyError::Malformed)?.ty;
            columns::decode(rest, ty)
        })
        .collect()
}

fn after_index_columns<'a>(def: &TableDef, index: &IndexDef, key: &'a [u8]) -> Result<&'a [u8], KeyError> {
    let (_, _, mut rest) = split_data(key)?;
    for &c in &index.columns {
        columns::skip(&mut rest, def.columns.get(usize::from(c)).ok_or(KeyError::Malformed)?.ty)?;
    }
    Ok(rest)
}

fn checked(out: Vec<u8>, def: &TableDef) -> Result<Bytes, Rejected> {
    if out.len() > KEY_BYTES_MAX {
        return Err(Rejected::Value {
            sqlstate: "54000".into(),
            message: format!(
                "a key of table \"{}\" takes {} bytes; keys may have at most {KEY_BYTES_MAX}",
                def.name,
                out.len()
            ),
        });
    }
    Ok(Bytes::from(out))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use quorate_shared::ids::SchemaVersion;

    use super::*;
    use crate::table::{ColumnDef, DefaultValue, IndexState};

    pub(crate) fn column(name: &str, ty: SqlType) -> ColumnDef {
        ColumnDef {
            name: name.into(),
            ty,
            not_null: false,
            default: DefaultValue::None,
            added: Value::Null,
            hidden: false,
            dropped: false,
        }
    }

    /// `t (id BIGINT, name TEXT, n INT)`, primary key `id`, unique index 1 on `name`, index 2 on `(n, name)`.
    pub(crate) fn table() -> TableDef {
        let index = |id, columns, unique| IndexDef {
            id: IndexId::new(id),
            name: format!("i{id}"),
            columns,
            unique,
            state: IndexState::Public,
            constraint: false,
            primary: false,
        };
        TableDef {
            id: TableId::new(5),
            storage: TableId::new(7),
            version: SchemaVersion::new(1),
            name: "t".into(),
            columns: vec![column("id", SqlType::BigInt), column("name", SqlType::Text), column("n", SqlType::Int)],
            primary_key: vec![0],
            primary_key_name: "t_pkey".into(),
            indexes: vec![index(1, vec![1], true), index(2, vec![2, 1], false)],
            checks: vec![],
            foreign_keys: vec![],
            next_index: IndexId::new(3),
        }
    }

    fn hex(b: &[u8]) -> String {
        b.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_keys_and_back() {
        let client = ClientId([0xab; 16]);
        let data =
            Key::Data { storage: TableId::new(7), index: IndexId::new(300), columns: Bytes::from_static(&[0x80]) };
        let cases = [
            (Key::Applied, "0101"),
            (Key::Horizon, "0102"),
            (Key::Checkpoint(Index::new(1024)), "01030000000000000400"),
            (Key::Client { client, slot: 63 }, "0104abababababababababababababababab3f"),
            (Key::Table(TableId::new(5)), "01050000000000000005"),
            (Key::Sequence(TableId::new(5)), "01060000000000000005"),
            (Key::Digest(TableId::new(5)), "01070000000000000005"),
            (Key::Catalog(CatalogKey::Counters), "02010000000000000000"),
            (Key::Catalog(CatalogKey::Database(DatabaseId::new(1))), "02020000000000000001"),
            (Key::Catalog(CatalogKey::Table(TableId::new(1))), "02030000000000000001"),
            (Key::Catalog(CatalogKey::View(TableId::new(1))), "02040000000000000001"),
            (Key::Catalog(CatalogKey::Node(NodeId::new(1))), "02050000000000000001"),
            (Key::Catalog(CatalogKey::Job(1)), "02060000000000000001"),
            (Key::Catalog(CatalogKey::Archive(1)), "02070000000000000001"),
            (data.clone(), "0307f9012c80"),
            (Key::History { key: data.encode(), timestamp: Timestamp::from_raw(1) }, "040307f9012c80fffffffffffffffe"),
        ];
        for (key, bytes) in cases {
            assert_eq!(hex(&key.encode()), bytes);
            assert_eq!(Key::decode(&key.encode()).unwrap(), key);
        }
    }

    #[test]
    fn rows_and_index_entries() {
        let def = table();
        let row = [Value::Int(258), Value::Text("ab".into()), Value::Int(3)];
        let key = row_key(&def, &row).unwrap();
        assert_eq!(hex(&key), "030700820102");
        assert_eq!(row_key_of(&def, &row[..1]).unwrap(), key);
        assert_eq!(decode_primary_key(&def, &key).unwrap(), [Value::Int(258)]);

        let unique = index_entry(&def, &def.indexes[0], &row).unwrap();
        assert_eq!(
            (hex(&unique.key), hex(&unique.payload), unique.unique),
            ("0307010161620000".into(), "820102".into(), true)
        );
        let plain = index_entry(&def, &def.indexes[1], &row).unwrap();
        assert_eq!(
            (hex(&plain.key), plain.payload.len(), plain.unique),
            ("03070281030161620000820102".into(), 0, false)
        );
        for (index, entry) in def.indexes.iter().zip([unique, plain]) {
            assert_eq!(row_key_of_entry(&def, index, &entry.key, &entry.payload).unwrap(), key);
            assert_eq!(primary_key_of_entry(&def, index, &entry.key, &entry.payload).unwrap(), [Value::Int(258)]);
            let columns = decode_index_columns(&def, index, &entry.key).unwrap();
            assert!(index.columns.iter().zip(columns).all(|(&c, v)| row[usize::from(c)] == v));
        }
        // NULLs never agree: the primary key makes the entry's key its own.
        let null = index_entry(&def, &def.indexes[0], &[Value::Int(258), Value::Null, Value::Null]).unwrap();
        assert_eq!((hex(&null.key), null.payload.len(), null.unique), ("03070100820102".into(), 0, false));
        assert_eq!(row_key_of_entry(&def, &def.indexes[0], &null.key, &null.payload).unwrap(), key);
    }

    #[test]
    fn a_long_key_is_refused() {
        let mut def = table();
        def.primary_key = vec![1];
        let row = [Value::Int(1), Value::Text("x".repeat(KEY_BYTES_MAX)), Value::Null];
        assert!(matches!(row_key(&def, &row), Err(Rejected::Value { sqlstate, .. }) if sqlstate == "54000"));
    }

    proptest! {
        #[test]
        fn ranges_hold_exactly_what_they_say(n in -300..300i64, low in -300..300i64, high in -300..300i64, null: bool) {
            let def = table();
            let n = if null { Value::Null } else { Value::Int(n) };
            let row = [Value::Int(1), Value::Text("a".into()), n.clone()];
            let key = index_entry(&def, &def.indexes[1], &row).unwrap().key;
            let (lo, hi) = (Value::Int(low), Value::Int(high));
            let range = |l, u| bounds_range(&def, IndexId::new(2), &[], l, u).unwrap().contains(&key);
            let value = if let Value::Int(n) = n { Some(n) } else { None };
            prop_assert_eq!(range(Bound::Included(&lo), Bound::Included(&hi)), value.is_some_and(|n| n >= low && n <= high));
            prop_assert_eq!(range(Bound::Excluded(&lo), Bound::Excluded(&hi)), value.is_some_and(|n| n > low && n < high));
            prop_assert_eq!(range(Bound::Unbounded, Bound::Excluded(&hi)), value.is_some_and(|n| n < high));
            prop_assert_eq!(range(Bound::Excluded(&lo), Bound::Unbounded), value.is_some_and(|n| n > low));
            prop_assert!(range(Bound::Unbounded, Bound::Unbounded));
            prop_assert!(equal_range(&def, IndexId::new(2), &row[2..3]).unwrap().contains(&key));
            prop_assert!(equal_range(&def, IndexId::new(2), &[row[2].clone(), row[1].clone()]).unwrap().contains(&key));
            prop_assert!(!equal_range(&def, IndexId::new(2), &[row[2].clone(), Value::Text(String::new())]).unwrap().contains(&key));
            prop_assert!(storage_range(def.storage).contains(&key) && !storage_range(TableId::new(8)).contains(&key));
            prop_assert!(index_range(def.storage, IndexId::new(2)).contains(&key));
            prop_assert!(!index_range(def.storage, IndexId::new(1)).contains(&key));
        }

        #[test]
        fn ids_keep_their_order(a: u64, b: u64) {
            let enc = |n| Key::Data { storage: TableId::new(n), index: IndexId::PRIMARY, columns: Bytes::new() }.encode();
            prop_assert_eq!(enc(a).cmp(&enc(b)), a.cmp(&b));
            prop_assert_eq!(split_data(&enc(a)).unwrap().0, TableId::new(a));
        }

        #[test]
        fn history_is_newest_first(a: u64, b: u64, key: Vec<u8>) {
            let (x, y) = (Timestamp::from_raw(a), Timestamp::from_raw(b));
            prop_assert_eq!(history_key(&key, x).cmp(&history_key(&key, y)), b.cmp(&a));
            prop_assert_eq!(history_range_of(&key, x).contains(&history_key(&key, y)), b <= a);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let _ = Key::decode(&bytes);
        }
    }
}
