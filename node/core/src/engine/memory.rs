//! An engine in memory, for tests and as the reference the real one is compared with.
//!
//! A scan takes the lock for a page of keys at a time, so like sled's it is no snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;

use crate::engine::{Batch, Engine, KeyRange, ScanItem, Tree};
use crate::error::Fatal;

/// Keys read under one lock.
const PAGE: usize = 64;

/// All trees, gone with the value.
#[derive(Default)]
pub struct MemoryEngine {
    trees: Mutex<BTreeMap<String, Arc<MemoryTree>>>,
}

/// One tree.
#[derive(Default)]
pub struct MemoryTree {
    map: RwLock<BTreeMap<Bytes, Bytes>>,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for MemoryEngine {
    fn tree(&self, name: &str) -> Result<Arc<dyn Tree>, Fatal> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(trees.entry(name.to_owned()).or_default()) as Arc<dyn Tree>)
    }

    fn drop_tree(&self, name: &str) -> Result<(), Fatal> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    fn flush(&self) -> Result<(), Fatal> {
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        let trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        trees.values().map(|t| t.size_bytes()).sum()
    }
}

impl MemoryTree {
    fn size_bytes(&self) -> u64 {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum()
    }

    /// Writes a batch; gives what was there before.
    pub(crate) fn replace(&self, batch: Batch) -> Vec<(Bytes, Option<Bytes>)> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let put = |(key, value): (Bytes, Option<Bytes>)| match value {
            Some(value) => (key.clone(), map.insert(key, value)),
            None => {
                let old = map.remove(&key);
                (key, old)
            }
        };
        batch.writes.into_iter().map(put).collect()
    }
}

impl Tree for MemoryTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        Ok(self.map.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a> {
        let start = Bound::Included(range.start.clone());
        let end = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let empty = range.is_empty();
        Box::new(Scan { tree: self, start, end, reverse, page: VecDeque::new(), done: empty })
    }

    fn write(&self, batch: Batch) -> Result<(), Fatal> {
        self.replace(batch);
        Ok(())
    }
}

struct Scan<'a> {
    tree: &'a MemoryTree,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    reverse: bool,
    page: VecDeque<(Bytes, Bytes)>,
    done: bool,
}

impl Scan<'_> {
    fn fill(&mut self) {
        // Both bounds may have met at the last key read; BTreeMap panics on two equal exclusive bounds.
        if let (Bound::Excluded(a) | Bound::Included(a), Bound::Excluded(b)) = (&self.start, &self.end)
            && a >= b
        {
            self.done = true;
            return;
        }
        let map = self.tree.map.read().unwrap_or_else(PoisonError::into_inner);
        let range = map.range::<Bytes, _>((self.start.as_ref(), self.end.as_ref()));
        let copy = |(k, v): (&Bytes, &Bytes)| (k.clone(), v.clone());
        if self.reverse {
            self.page.extend(range.rev().take(PAGE).map(copy));
        } else {
            self.page.extend(range.take(PAGE).map(copy));
        }
        match self.page.back() {
            Some((last, _)) if self.page.len() == PAGE => {
                let bound = Bound::Excluded(last.clone());
                if self.reverse { self.end = bound } else { self.start = bound }
            }
            _ => self.done = true,
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = ScanItem;

    fn next(&mut self) -> Option<ScanItem> {
        if self.page.is_empty() && !self.done {
            self.fill();
        }
        self.page.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_page_through_in_both_directions() {
        let engine = MemoryEngine::new();
        let tree = engine.tree("t").unwrap();
        let mut batch = Batch::default();
        for i in 0..1000u16 {
            batch.writes.insert(Bytes::copy_from_slice(&i.to_be_bytes()), Some(Bytes::from_static(b"x")));
        }
        tree.write(batch).unwrap();
        let key = |i: u16| Bytes::copy_from_slice(&i.to_be_bytes());
        for (from, to) in [(0, 1000), (10, 10), (63, 64), (64, 192), (999, 1000), (500, 400)] {
            let range = KeyRange { start: key(from), end: Some(key(to)) };
            let forward: Vec<Bytes> = tree.scan(&range, false).map(|r| r.unwrap().0).collect();
            assert_eq!(forward, (from..to).map(key).collect::<Vec<_>>());
            let backward: Vec<Bytes> = tree.scan(&range, true).map(|r| r.unwrap().0).collect();
            assert_eq!(backward, (from..to).rev().map(key).collect::<Vec<_>>());
        }
        let all = KeyRange { start: Bytes::new(), end: None };
        assert_eq!(tree.scan(&all, false).count(), 1000);
        assert_eq!(engine.size_bytes(), 3000);
        engine.drop_tree("t").unwrap();
        assert_eq!(engine.tree("t").unwrap().get(&key(1)).unwrap(), None);
    }
}
