//! The change feed of one table: changes in log order, and the token by which a reader goes on after any of them.
//!
//! A [`FeedToken`] is a point in the log of the table's shard and a number of changes behind it. It is checked against
//! the log wherever it is used: a token of another history is refused, never guessed at.
//!
//! Invariants: going on from a token delivers every change behind it at least once, in log order; the text of a token is
//! a contract with whoever stored one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Hash, Index, SchemaVersion, ShardId, TableId, Timestamp};
use crate::value::Value;
use crate::wire::Column;

/// Where a reader of a table's changes is: behind so many changes after an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FeedToken {
    /// The shard of the table.
    pub shard: ShardId,
    /// The epoch in which it was given.
    pub epoch: Epoch,
    /// The table's catalog id.
    pub table: TableId,
    /// The version of its schema at that point.
    pub version: SchemaVersion,
    /// Every change of the entries up to this one has been delivered.
    pub index: Index,
    /// The first eight bytes of the chain hash there.
    pub check: u64,
    /// So many changes of the entries after it have been delivered too.
    pub skip: u32,
}

impl FeedToken {
    /// What [`FeedToken::check`] has to be for a chain hash.
    pub fn check_of(chain: &Hash) -> u64 {
        chain.0.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl fmt::Display for FeedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, epoch, table, version, index, check, skip } = self;
        let (shard, table, version) = (shard.get(), table.get(), version.get());
        write!(f, "{shard}-{}.{:016x}-{table}.{version}-{index}.{skip}-{check:016x}", epoch.number, epoch.id)
    }
}

/// A text that is no token.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("'{0}' is not a token of a change feed")]
pub struct NoToken(pub String);

impl FromStr for FeedToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let read = || {
            let mut parts = text.trim().split('-');
            let (shard, epoch, table, point, check) =
                (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            let (number, id) = epoch.split_once('.')?;
            let (table, version) = table.split_once('.')?;
            let (index, skip) = point.split_once('.')?;
            let token = FeedToken {
                shard: ShardId::new(shard.parse().ok()?),
                epoch: Epoch { number: number.parse().ok()?, id: u64::from_str_radix(id, 16).ok()? },
                table: TableId::new(table.parse().ok()?),
                version: SchemaVersion::new(version.parse().ok()?),
                index: Index::new(index.parse().ok()?),
                check: u64::from_str_radix(check, 16).ok()?,
                skip: skip.parse().ok()?,
            };
            parts.next().is_none().then_some(token)
        };
        read().ok_or_else(|| NoToken(text.to_owned()))
    }
}

/// What happened to a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FeedOp {
    /// It came into being.
    Insert,
    /// It has other values.
    Update,
    /// It is gone.
    Delete,
    /// It was written; whether it was there before is older than the history kept.
    Upsert,
    /// Every row of the table is gone.
    Truncate,
}

impl fmt::Display for FeedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FeedOp::Insert => "insert",
            FeedOp::Update => "update",
            FeedOp::Delete => "delete",
            FeedOp::Upsert => "upsert",
            FeedOp::Truncate => "truncate",
        })
    }
}

/// One change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    pub op: FeedOp,
    /// The row's key, in the order of [`FeedColumns::key`]; empty for a truncation.
    pub key: Vec<Value>,
    /// The row, in the order of [`FeedColumns::row`]; `None` when it is gone.
    pub row: Option<Vec<Value>>,
    /// The timestamp of the entry that carried it.
    pub timestamp: Timestamp,
    /// Goes on behind it.
    pub token: FeedToken,
}

/// What the values of a change are called.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct FeedColumns {
    /// The table's name, in its own spelling.
    pub table: String,
    /// Columns of the key.
    pub key: Vec<Column>,
    /// Columns of the row, as `SELECT *` shows them.
    pub row: Vec<Column>,
}

/// Changes that follow those sent before; none: the feed is alive and has got so far.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FeedBatch {
    /// In the first batch, and when they have changed.
    pub columns: Option<FeedColumns>,
    /// The changes.
    pub changes: Vec<Change>,
    /// Goes on behind this batch.
    pub at: FeedToken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_as_text() {
        let token = FeedToken {
            shard: ShardId::DATA,
            epoch: Epoch { number: 2, id: 0xabcd },
            table: TableId::new(5),
            version: SchemaVersion::new(3),
            index: Index::new(12_345),
            check: FeedToken::check_of(&Hash([0x9f; 32])),
            skip: 7,
        };
        let text = token.to_string();
        assert_eq!(text, "1-2.000000000000abcd-5.3-12345.7-9f9f9f9f9f9f9f9f");
        assert_eq!(text.parse(), Ok(token));
        for bad in ["", "now", "1-2.3-4.5-6.7", "1-2.3-4.5-6.7-8-9", "x-2.3-4.5-6.7-8"] {
            assert_eq!(bad.parse::<FeedToken>(), Err(NoToken(bad.to_owned())));
        }
    }
}
