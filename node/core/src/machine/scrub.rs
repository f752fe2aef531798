//! The scrub: recomputes the digests from the rows and compares.
//!
//! It reads the versions as of the state it began with, so writes go on meanwhile and any thread may run it. Equal chain
//! and unequal digest means that the replica has diverged.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_shared::ids::TableId;

use super::{Digest, Machine, storage_of};
use crate::engine::KeyRange;
use crate::error::Fatal;
use crate::keys;
use crate::mvcc::Snapshot;

/// A scrub under way.
pub struct Scrub {
    snapshot: Snapshot,
    expected: BTreeMap<TableId, Digest>,
    computed: BTreeMap<TableId, Digest>,
    rest: KeyRange,
}

impl Machine {
    /// Begins a scrub of the state as it is now.
    pub fn scrub(&self) -> Scrub {
        // Storages without a table are being purged: their rows go without history. The catalog's digest is 0.
        let live = self.state.tables.values().map(|t| t.storage).chain([TableId::new(0)]);
        let expected = live.map(|id| (id, self.state.digests.get(&id).copied().unwrap_or_default()));
        Scrub {
            snapshot: Snapshot::new(self.tree.clone(), self.state.timestamp),
            expected: expected.collect(),
            computed: BTreeMap::new(),
            // Catalog, then data.
            rest: keys::rows_range(),
        }
    }
}

impl Scrub {
    #[cfg(test)]
    pub(super) fn expect_all(&mut self, expected: BTreeMap<TableId, Digest>) {
        self.expected = expected;
    }

    /// Looks at up to `budget` rows; at the end, the storages whose digest is not what it should be.
    pub fn step(&mut self, budget: usize) -> Result<Option<Vec<TableId>>, Fatal> {
        let mut seen = 0;
        let mut last = None;
        for item in self.snapshot.scan(&self.rest, false) {
            let (key, version) = item?;
            let digest = self.computed.entry(storage_of(&key)?).or_default();
            digest.add(&key, version.timestamp, &version.row);
            last = Some(key);
            seen += 1;
            if seen >= budget {
                break;
            }
        }
        if seen >= budget
            && let Some(last) = last
        {
            self.rest.start = Bytes::from([&last[..], &[0]].concat());
            return Ok(None);
        }
        if !self.snapshot.is_readable()? {
            return Err(Fatal::new("scrub", "it took longer than versions are kept"));
        }
        let zero = Digest::default();
        let wrong = self.expected.iter().filter(|(id, digest)| self.computed.get(id).unwrap_or(&zero) != *digest);
        Ok(Some(wrong.map(|(id, _)| *id).collect()))
    }
}
