//! Ids and positions, each its own type, each printed the one way users meet it (`n3`, `s0`).
//!
//! Left out: conversions from bare integers by `From`; every one is spelled with `new`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::anchor::{hex, unhex};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);
        impl $name {
            /// Wraps a raw number.
            pub const fn new(value: $inner) -> Self { Self(value) }
            /// The raw number.
            pub const fn get(self) -> $inner { self.0 }
            /// The number after this one; stays at the maximum.
            #[must_use]
            pub const fn next(self) -> Self { Self(self.0.saturating_add(1)) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($prefix, "{}"), self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
    };
}

id!(/// A process of the cluster, chosen by its operator (`--id`), never reused.
    NodeId, u64, "n");
id!(/// A key range with its log. `s0` is the meta group (the catalog).
    ShardId, u64, "s");
id!(/// One node's copy of a shard, in one incarnation. The protocol's member id; never reused after a loss.
    ReplicaId, u64, "r");
id!(/// Position in a shard's log; the first entry is 1, 0 is "before everything".
    Index, u64, "");
id!(/// Raft term or the number of a Paxos ballot.
    Term, u64, "t");
id!(/// Storage of one table's (or one truncated generation's) rows: the `<table>` of a data key.
    TableId, u64, "tbl");
id!(/// An index of a table; 0 is the primary key.
    IndexId, u32, "i");
id!(/// A database of the catalog.
    DatabaseId, u64, "db");
id!(/// Version of one table's schema; grows with each DDL step on it.
    SchemaVersion, u32, "v");
id!(/// Version of the whole catalog: the index of the last applied entry of `s0` that changed it.
    CatalogVersion, u64, "c");
id!(/// One client's session on one node.
    SessionId, u64, "session ");
id!(/// A request within a connection.
    RequestId, u64, "#");

impl ReplicaId {
    /// Nobody; also what a log-shipped replica goes by in its own log: it has no id until a membership gives it one.
    pub const NONE: ReplicaId = ReplicaId::new(0);
}

impl ShardId {
    /// The meta group: databases, tables, ranges, nodes.
    pub const META: ShardId = ShardId::new(0);
    /// The first data shard.
    pub const DATA: ShardId = ShardId::new(1);
}

impl IndexId {
    /// The primary key's index, under which rows are stored.
    pub const PRIMARY: IndexId = IndexId::new(0);
}

/// Hybrid logical time: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
/// Assigned by a shard's leader, strictly growing within the shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Before everything.
    pub const MIN: Timestamp = Timestamp(0);
    /// After everything.
    pub const MAX: Timestamp = Timestamp(u64::MAX);
    /// From its raw 64 bits.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }
    /// From milliseconds since 1970 and a counter.
    pub const fn new(ms: u64, counter: u16) -> Self {
        Self((ms << 16) | counter as u64)
    }
    /// The raw 64 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// Milliseconds since 1970.
    pub const fn ms(self) -> u64 {
        self.0 >> 16
    }
    /// The next larger timestamp.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A 256-bit BLAKE3 hash: a link of a log's chain. Hex in JSON, its bytes in what programs alone read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.serialize_str(&hex(&self.0)),
            false => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return <[u8; 32]>::deserialize(deserializer).map(Hash);
        }
        let text = String::deserialize(deserializer)?;
        unhex(&text).map(Hash).ok_or_else(|| serde::de::Error::custom(format!("'{text}' is not the hex of 32 bytes")))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
    };
}
id128!(/// A client of the exactly-once rule: chosen at random by the client library, one per session.
    ClientId);
id128!(/// A cluster, drawn at random when it is founded.
    ClusterId);
id128!(/// A data directory's random nonce: who a node was when it was founded.
    Nonce);

/// A generation of a cluster's history: two epochs of one number and different ids never mix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, Debug)]
pub struct Epoch {
    /// Grows by one with each promotion; the first is 1.
    pub number: u64,
    /// Drawn at random when the epoch began.
    pub id: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number, self.id)
    }
}

/// As it is displayed: number and id.
impl std::str::FromStr for Epoch {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, id) = text.split_once(' ').unwrap_or((text, ""));
        Ok(Self { number: number.parse()?, id: id.parse()? })
    }
}

/// Identifies one write of one client for ever: sending it twice executes it once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, Debug)]
pub struct WriteId {
    /// The client.
    pub client: ClientId,
    /// Grows by one per write of this client; the first is 1.
    pub seq: u64,
}

/// A point in a shard's log that a read may wait for (`after <token>`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct Token {
    /// The shard written.
    pub shard: ShardId,
    /// Its epoch.
    pub epoch: u64,
    /// The index of the entry that carried the write.
    pub index: Index,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_hex_in_json_and_its_bytes_elsewhere() {
        let hash = Hash([0xa7; 32]);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json, format!("\"{}\"", "a7".repeat(32)));
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), hash);
        assert!(serde_json::from_str::<Hash>("\"a7\"").is_err());
        let bytes = postcard::to_stdvec(&hash).unwrap();
        assert_eq!(bytes, [0xa7; 32]);
        assert_eq!(postcard::from_bytes::<Hash>(&bytes).unwrap(), hash);
    }
}
