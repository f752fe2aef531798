//! The scrub: recomputes the digests from the rows and compares.
//!
//! First the engine compares what the tree holds with what was written to it ([`Tree::check`]): that covers what is in no
//! digest, as history, clients' results and sequences. Then it reads the versions as of the state it began with. Writes go
//! on meanwhile and any thread may run it. Equal chain and unequal digest means that the replica has diverged.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::TableId;

use super::{Digest, Machine, MachineState, storage_of};
use crate::engine::{KeyRange, Tree};
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::mvcc::Snapshot;

/// A scrub under way.
pub struct Scrub {
    snapshot: Snapshot,
    expected: BTreeMap<TableId, Digest>,
    computed: BTreeMap<TableId, Digest>,
    rest: KeyRange,
    /// The engine's own round is over.
    checked: bool,
}

impl Machine {
    /// Begins a scrub of the state as it is now.
    pub fn scrub(&self) -> Scrub {
        // Storages without a table are being purged: their rows go without history. The catalog's digest is 0.
        let live = self.state.tables.values().map(|t| t.storage).chain([TableId::new(0)]);
        let expected = live.map(|id| (id, self.state.digests.get(&id).copied().unwrap_or_default()));
        Scrub::new(Snapshot::new(self.tree.clone(), self.state.timestamp), expected.collect())
    }
}

/// A tree whose state changes under every look is looked at so often.
const LOOKS: usize = 1000;

impl Scrub {
    /// Begins a scrub of a tree that a machine writes meanwhile: its digests are read until they are of one state.
    pub fn of_tree(tree: Arc<dyn Tree>) -> Result<Self, Fatal> {
        for _ in 0..LOOKS {
            let Some(before) = tree.get(&Key::Applied.encode())? else {
                return Err(Fatal::new("begin a scrub", "nothing is applied yet"));
            };
            let state = MachineState::digests_of(&*tree, &before)?;
            let live = crate::verify::live_storages(&*tree)?;
            if tree.get(&Key::Applied.encode())? == Some(before) {
                let storages = live.into_keys().chain([TableId::new(0)]);
                let expected = storages.map(|id| (id, state.digests.get(&id).copied().unwrap_or_default()));
                let expected = expected.collect();
                return Ok(Self::new(Snapshot::new(tree, state.timestamp), expected));
            }
        }
        Err(Fatal::new("begin a scrub", "too much is written at the moment"))
    }

    fn new(snapshot: Snapshot, expected: BTreeMap<TableId, Digest>) -> Self {
        // Catalog, then data.
        let rest = keys::rows_range();
        Self { snapshot, expected, computed: BTreeMap::new(), rest, checked: false }
    }

    #[cfg(test)]
    pub(super) fn expect_all(&mut self, expected: BTreeMap<TableId, Digest>) {
        self.expected = expected;
    }

    /// Looks at up to `budget` keys or rows; at the end, the storages whose digest is not what it should be.
    pub fn step(&mut self, budget: usize) -> Result<Option<Vec<TableId>>, Fatal> {
        if !self.checked {
            self.checked = self.snapshot.tree.check(budget)?;
            return Ok(None);
        }
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
