//! Versions: reading a shard as of a timestamp.
//!
//! A data or catalog key holds its newest version inline; `history/<key>/<descending timestamp>` holds older ones, in the
//! same bytes: tag, timestamp, row. Every read has a timestamp; sled's iterators are no snapshots, versions are: a batch
//! puts the old version into history in the same atomic step that replaces it, so whoever meets a version that is too new
//! finds the one before it there.
//!
//! Versions below the horizon may be gone: a read that may have missed one is an error, found after its last row.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use quorate_shared::ids::Timestamp;

use crate::engine::{KeyRange, Tree};
use crate::error::Fatal;
use crate::keys::{self, Key};

const ROW: u8 = 1;
const TOMBSTONE: u8 = 2;
// 3 will be an intent: a write of a transaction that is larger than an entry.

/// Tag and timestamp.
const HEAD_BYTES: usize = 9;

/// A row of a data key: its version and bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// When it was written.
    pub timestamp: Timestamp,
    /// The row (or index payload).
    pub row: Bytes,
}

/// The newest that is stored under a key, deletions included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Newest {
    /// When it was written or deleted.
    pub timestamp: Timestamp,
    /// The row; `None` if it was deleted.
    pub row: Option<Bytes>,
}

impl Newest {
    fn version(self) -> Option<Version> {
        let timestamp = self.timestamp;
        self.row.map(|row| Version { timestamp, row })
    }

    /// Its stored bytes.
    pub(crate) fn encode(timestamp: Timestamp, row: Option<&[u8]>) -> Bytes {
        let row = row.map_or((TOMBSTONE, &[][..]), |row| (ROW, row));
        let mut out = Vec::with_capacity(HEAD_BYTES + row.1.len());
        out.push(row.0);
        out.extend_from_slice(&timestamp.raw().to_be_bytes());
        out.extend_from_slice(row.1);
        Bytes::from(out)
    }

    /// From stored bytes, which it takes.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, Fatal> {
        let (timestamp, row) = parse(&bytes)?;
        let is_row = row.is_some();
        // Unlike a slice, this needs no second owner and so no allocation.
        bytes.advance(HEAD_BYTES);
        Ok(Self { timestamp, row: is_row.then_some(bytes) })
    }
}

/// Timestamp and row of stored bytes.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Timestamp, Option<&[u8]>), Fatal> {
    let malformed = || Fatal::new("read a version", "its bytes are malformed");
    let (head, row) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(malformed)?;
    let [tag, timestamp @ ..] = *head;
    let timestamp = Timestamp::from_raw(u64::from_be_bytes(timestamp));
    match tag {
        ROW => Ok((timestamp, Some(row))),
        TOMBSTONE if row.is_empty() => Ok((timestamp, None)),
        _ => Err(malformed()),
    }
}

/// The newest version of a key.
pub fn newest(tree: &dyn Tree, key: &[u8]) -> Result<Option<Newest>, Fatal> {
    tree.get(key)?.map(Newest::decode).transpose()
}

/// The newest versions of a range, deletions included. Sees writes that happen meanwhile, or not.
pub fn scan_newest<'a>(
    tree: &'a dyn Tree,
    range: &KeyRange,
    reverse: bool,
) -> impl Iterator<Item = Result<(Bytes, Newest), Fatal>> + Send + 'a {
    tree.scan(range, reverse).map(|item| {
        let (key, bytes) = item?;
        Ok((key, Newest::decode(bytes)?))
    })
}

/// Whether anything in the range was written or deleted after `seen`.
pub fn changed_since(tree: &dyn Tree, range: &KeyRange, seen: Timestamp) -> Result<bool, Fatal> {
    for item in scan_newest(tree, range, false) {
        if item?.1.timestamp > seen {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Below this timestamp versions may be gone.
pub fn horizon(tree: &dyn Tree) -> Result<Timestamp, Fatal> {
    let Some(bytes) = tree.get(&Key::Horizon.encode())? else { return Ok(Timestamp::MIN) };
    let raw = bytes[..].try_into().map_err(|_| Fatal::new("read the horizon", "its bytes are malformed"))?;
    Ok(Timestamp::from_raw(u64::from_be_bytes(raw)))
}

/// A shard's state as of a timestamp. Cheap to clone; safe to use from any thread while writes go on.
#[derive(Clone)]
pub struct Snapshot {
    /// Where it reads.
    pub tree: Arc<dyn Tree>,
    /// As of when: that of the applied index when the read began, for reads of now.
    pub timestamp: Timestamp,
}

/// What a snapshot's scan yields: data key and version.
pub type VersionItem = Result<(Bytes, Version), Fatal>;

impl Snapshot {
    /// A tree as of a timestamp.
    pub fn new(tree: Arc<dyn Tree>, timestamp: Timestamp) -> Self {
        Self { tree, timestamp }
    }

    /// The version of a data or catalog key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Version>, Fatal> {
        let version = match newest(&*self.tree, key)? {
            Some(newest) if newest.timestamp <= self.timestamp => return Ok(newest.version()),
            Some(_) => self.older(key)?,
            None => None,
        };
        // What is not inline may have been collected.
        self.assert_readable()?;
        Ok(version)
    }

    /// The rows of a range in order of keys, or from its end. An error after the last row means that some may have been
    /// missing; a consumer that stops early asks [`Snapshot::is_readable`] itself.
    pub fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = VersionItem> + Send + 'a> {
        let mut items = self.tree.scan(range, reverse);
        let mut done = false;
        Box::new(std::iter::from_fn(move || {
            while !done {
                match items.next() {
                    None => {
                        done = true;
                        return self.assert_readable().err().map(Err);
                    }
                    Some(item) => match item.and_then(|(key, bytes)| self.as_of(key, bytes)) {
                        Ok(None) => {}
                        found => {
                            done = found.is_err();
                            return found.transpose();
                        }
                    },
                }
            }
            None
        }))
    }

    /// Whether every version this snapshot may need was still there until now.
    pub fn is_readable(&self) -> Result<bool, Fatal> {
        Ok(self.timestamp >= horizon(&*self.tree)?)
    }

    fn assert_readable(&self) -> Result<(), Fatal> {
        if self.is_readable()? {
            return Ok(());
        }
        let cause = "versions that old are kept no longer; the statement took too long, or the clock was set";
        Err(Fatal::new(format!("read as of {}", self.timestamp), cause))
    }

    fn as_of(&self, key: Bytes, stored: Bytes) -> Result<Option<(Bytes, Version)>, Fatal> {
        let newest = Newest::decode(stored)?;
        let version = if newest.timestamp <= self.timestamp { newest.version() } else { self.older(&key)? };
        Ok(version.map(|version| (key, version)))
    }

    fn older(&self, key: &[u8]) -> Result<Option<Version>, Fatal> {
        let range = keys::history_range_of(key, self.timestamp);
        match self.tree.scan(&range, false).next() {
            None => Ok(None),
            Some(item) => Ok(Newest::decode(item?.1)?.version()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let hex = |b: Bytes| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let ts = Timestamp::new(1, 2);
        assert_eq!(hex(Newest::encode(ts, Some(b"ab"))), "0100000000000100026162");
        assert_eq!(hex(Newest::encode(ts, None)), "020000000000010002");
        for bad in [&b""[..], b"\x01\0\0\0\0\0\0\0", b"\x02\0\0\0\0\0\0\0\0x", b"\x03\0\0\0\0\0\0\0\0"] {
            assert!(Newest::decode(Bytes::from_static(bad)).is_err());
        }
    }
}
