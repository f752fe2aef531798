//! Collection: old versions below the horizon go, a bounded step at a time.
//!
//! Walks the history. A version is needed until the one after it is at or below the horizon; a tombstone goes together
//! with the last of its key's history, never before it (an older version would come to light under the next row of that
//! key). History without a data key was purged and goes at once. The horizon rises in the same batch as the removal.
//! Collection is local: it is in neither chain nor digest.

use bytes::Bytes;
use quorate_shared::ids::Timestamp;
use quorate_shared::limits::HORIZON_MS_DEFAULT;

use super::Machine;
use crate::engine::{Batch, KeyRange};
use crate::error::Fatal;
use crate::keys::{self, Key};
use crate::mvcc;

/// A new walk begins this long after the last one did.
const PAUSE_MS: u64 = HORIZON_MS_DEFAULT / 8;

/// After so many needed versions of one key the rest of them is skipped.
const SKIP_AFTER: usize = 16;

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Versions looked at.
    pub seen: usize,
    /// Versions and tombstones removed.
    pub removed: usize,
    /// The walk is complete; nothing is to be done for a while.
    pub done: bool,
}

/// Where the walk is.
#[derive(Default)]
pub(super) struct Progress {
    /// When the current or last walk began.
    started_ms: u64,
    /// The last history key looked at; `None` between walks.
    cursor: Option<Bytes>,
    /// The key it belongs to.
    key: Bytes,
    /// When the version at the cursor was replaced.
    newer: Timestamp,
    /// A version of this key was kept, so its tombstone must stay.
    kept: bool,
}

impl Machine {
    /// Looks at no more than `budget` old versions and removes those nobody may read any more. To be called now and
    /// then by the applier, between batches.
    pub fn collect(&mut self, now_ms: u64, budget: usize) -> Result<Collected, Fatal> {
        if self.failed {
            return Err(Fatal::new("collect old versions", "an earlier error stopped this replica"));
        }
        let mut p = std::mem::take(&mut self.collecting);
        if p.cursor.is_none() {
            if p.started_ms != 0 && now_ms < p.started_ms.saturating_add(PAUSE_MS) {
                self.collecting = p;
                return Ok(Collected { done: true, ..Collected::default() });
            }
            p = Progress { started_ms: now_ms, ..Progress::default() };
        }
        let horizon = Timestamp::new(now_ms.saturating_sub(HORIZON_MS_DEFAULT), 0).min(self.state.timestamp);
        let horizon = horizon.min(self.captures.floor()).max(mvcc::horizon(&*self.tree)?);
        let done = self.walk(&mut p, horizon, budget);
        self.collecting = p;
        if done.is_err() {
            self.failed = true;
        }
        done
    }

    fn walk(&self, p: &mut Progress, horizon: Timestamp, budget: usize) -> Result<Collected, Fatal> {
        let mut range = keys::history_range();
        if let Some(cursor) = &p.cursor {
            range = KeyRange { start: Bytes::from([&cursor[..], &[0]].concat()), end: range.end };
        }
        let mut step = Collected::default();
        let mut batch = Batch::default();
        let mut items = self.tree.scan(&range, false);
        // Versions of the key at hand that are newer than the horizon, in a row.
        let mut needed = 0;
        loop {
            if step.seen >= budget {
                break;
            }
            // A hot row's newest versions are all needed: go to the first that may not be.
            if needed >= SKIP_AFTER {
                let start = keys::history_key(&p.key, horizon);
                items = self.tree.scan(&KeyRange { start, end: range.end.clone() }, false);
                needed = 0;
                p.newer = Timestamp::MAX;
            }
            let Some(item) = items.next() else {
                self.leave(p, horizon, &mut batch)?;
                step.done = true;
                break;
            };
            let (history, _) = item?;
            step.seen += 1;
            let (key, timestamp) = keys::split_history(&history)?;
            if key != &p.key[..] || p.cursor.is_none() {
                self.leave(p, horizon, &mut batch)?;
                p.key = Bytes::copy_from_slice(key);
                p.newer = mvcc::newest(&*self.tree, key)?.map_or(Timestamp::MIN, |n| n.timestamp);
                p.kept = false;
                needed = 0;
            }
            if p.newer <= horizon {
                batch.writes.insert(history.clone(), None);
            } else {
                p.kept = true;
            }
            needed = if timestamp > horizon { needed + 1 } else { 0 };
            p.newer = timestamp;
            p.cursor = Some(history);
        }
        drop(items);
        step.removed = batch.writes.len();
        if step.done {
            p.cursor = None;
        }
        if !batch.writes.is_empty() {
            let raw = Bytes::copy_from_slice(&horizon.raw().to_be_bytes());
            batch.writes.insert(Key::Horizon.encode(), Some(raw));
            self.tree.write(batch)?;
        }
        Ok(step)
    }

    /// The history of the key at hand has been seen to its end: its tombstone may go with it, unless new history has
    /// come up behind the walk.
    fn leave(&self, p: &Progress, horizon: Timestamp, batch: &mut Batch) -> Result<(), Fatal> {
        if p.cursor.is_none() || p.kept {
            return Ok(());
        }
        match mvcc::newest(&*self.tree, &p.key)? {
            Some(newest) if newest.row.is_none() && newest.timestamp <= horizon => {}
            _ => return Ok(()),
        }
        for item in self.tree.scan(&keys::history_range_of(&p.key, Timestamp::MAX), false) {
            if !batch.writes.contains_key(&item?.0) {
                return Ok(());
            }
        }
        batch.writes.insert(p.key.clone(), None);
        Ok(())
    }
}
