//! A node's engine: a tree in memory that after a crash has forgotten its newest batches, and after a power cut is a mix
//! of older and newer pages, perhaps under the newest applied record. Nothing in it says so: the design must notice.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::Rng;
use crate::engine::memory::MemoryTree;
use crate::engine::{Batch, KeyRange, ScanItem, Tree};
use crate::error::Fatal;

/// Batches that may be lost.
const BATCHES: usize = 24;
const PAGES: u64 = 8;

/// What a batch replaced.
type Undo = Vec<(Bytes, Option<Bytes>)>;

/// See the module.
#[derive(Default)]
pub struct SimTree {
    tree: MemoryTree,
    undo: Mutex<VecDeque<Undo>>,
}

fn page(key: &[u8]) -> u64 {
    key.iter().fold(7u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)) >> 7 & (PAGES - 1)
}

impl SimTree {
    fn put(&self, writes: impl Iterator<Item = (Bytes, Option<Bytes>)>) {
        // A tree in memory does not fail.
        let _ = self.tree.write(Batch { writes: writes.collect() });
    }

    /// The process is gone, and with it what the engine had not given to the system.
    pub fn kill(&self, rng: &mut Rng) {
        let mut undo = self.undo.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = if rng.chance(500) { 0 } else { rng.below(undo.len() + 1).min(6) };
        for _ in 0..lost {
            let batch = undo.pop_back().unwrap_or_default();
            self.put(batch.into_iter().rev());
        }
    }

    /// Power is gone: each page is as of some moment.
    pub fn power_cut(&self, rng: &mut Rng) {
        let undo = std::mem::take(&mut *self.undo.lock().unwrap_or_else(PoisonError::into_inner));
        let kept: Vec<usize> =
            (0..PAGES).map(|_| if rng.chance(400) { undo.len() } else { rng.below(undo.len() + 1) }).collect();
        for (at, batch) in undo.into_iter().enumerate().rev() {
            self.put(batch.into_iter().filter(|(key, _)| kept[page(key) as usize] <= at));
        }
    }

    /// Everything so far is on disk.
    pub fn settle(&self) {
        self.undo.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Tree for SimTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.tree.get(key)
    }

    fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a> {
        self.tree.scan(range, reverse)
    }

    fn write(&self, batch: Batch) -> Result<(), Fatal> {
        let old = self.tree.replace(batch);
        let mut undo = self.undo.lock().unwrap_or_else(PoisonError::into_inner);
        undo.push_back(old);
        if undo.len() > BATCHES {
            undo.pop_front();
        }
        Ok(())
    }
}
