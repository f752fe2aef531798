//! The entry: effects, not statements.
//!
//! Canonical bytes begin with kind and format version. An entry names its index and the chain hash of its predecessor;
//! one that was appended behind another predecessor is *void*. `chain(i) = BLAKE3(chain(i-1) ‖ canonical bytes)`.

use bytes::Bytes;
use quorate_shared::ids::{ClientId, Hash, Index, TableId, Timestamp, WriteId};

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
    /// Nothing.
    Empty,
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
