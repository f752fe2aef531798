//! What an open snapshot needs of the machine while writes go on.
//!
//! Rows are versioned and are read as of the snapshot's timestamp; the results of clients are not: before one is replaced
//! its old bytes are put aside here, so that who reads the tree first and then looks here sees the state at the snapshot.
//! While a snapshot is open nothing it may need is removed without a trace: collection stays at or below its timestamp,
//! and purged rows leave their last version in history, as deleted ones do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use quorate_shared::ids::{ShardId, Timestamp};

use super::{Group, Machine};
use crate::engine::Tree;
use crate::error::Fatal;
use crate::keys;
use crate::snapshot::source::SnapshotSource;

/// One open snapshot's share.
#[derive(Debug)]
pub(crate) struct Capture {
    timestamp: Timestamp,
    /// What was under keys that have been replaced since; `None` once it is needed no more.
    replaced: Mutex<Option<BTreeMap<Bytes, Option<Bytes>>>>,
}

impl Capture {
    fn new(timestamp: Timestamp) -> Self {
        Self { timestamp, replaced: Mutex::new(Some(BTreeMap::new())) }
    }

    /// The results of clients as they were when the snapshot was opened; to be asked once.
    pub(crate) fn clients(&self, tree: &dyn Tree) -> Result<BTreeMap<Bytes, Bytes>, Fatal> {
        let mut all = tree.scan(&keys::client_range(None), false).collect::<Result<BTreeMap<_, _>, _>>()?;
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner).take();
        for (key, old) in replaced.unwrap_or_default() {
            match old {
                Some(old) => drop(all.insert(key, old)),
                None => drop(all.remove(&key)),
            }
        }
        Ok(all)
    }
}

/// The open snapshots of a machine.
#[derive(Default)]
pub(super) struct Captures(Vec<Weak<Capture>>);

impl Captures {
    /// Whether there is any.
    pub(super) fn any(&mut self) -> bool {
        if !self.0.is_empty() {
            self.0.retain(|capture| capture.strong_count() > 0);
        }
        !self.0.is_empty()
    }

    /// Nothing at or above this may be collected.
    pub(super) fn floor(&self) -> Timestamp {
        self.0.iter().filter_map(Weak::upgrade).map(|c| c.timestamp).min().unwrap_or(Timestamp::MAX)
    }
}

impl Machine {
    /// Opens a snapshot of the state as it is now. Cheap: everything is read later, by whoever has the source, on any
    /// thread, while entries are applied.
    pub fn snapshot(&mut self) -> SnapshotSource {
        let capture = Arc::new(Capture::new(self.state.timestamp));
        self.captures.0.push(Arc::downgrade(&capture));
        SnapshotSource::new(self.shard(), self.state.clone(), Arc::clone(&self.tree), capture)
    }

    /// The shard it is a replica of.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Replaces what is not versioned; open snapshots keep what was there.
    pub(super) fn replace(&mut self, key: Bytes, value: Option<Bytes>, group: &mut Group) -> Result<(), Fatal> {
        if self.captures.any() {
            let open: Vec<_> = self.captures.0.iter().filter_map(Weak::upgrade).collect();
            for capture in open {
                let mut replaced = capture.replaced.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(replaced) = &mut *replaced
                    && !replaced.contains_key(&key)
                {
                    replaced.insert(key.clone(), self.stored(&key, group)?);
                }
            }
        }
        group.put(key, value);
        Ok(())
    }
}
