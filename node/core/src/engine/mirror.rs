//! Two engines side by side, for tests: every write goes to both, every answer is compared.
//!
//! A difference is a [`Fatal`]. Only for one thread at a time: while somebody writes, two engines may rightly differ.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{Batch, Engine, KeyRange, ScanItem, Tree};
use crate::error::Fatal;

/// Compares two engines.
pub struct MirrorEngine {
    first: Arc<dyn Engine>,
    second: Arc<dyn Engine>,
}

struct MirrorTree {
    first: Arc<dyn Tree>,
    second: Arc<dyn Tree>,
}

impl MirrorEngine {
    /// The first engine's answers are given, if the second agrees.
    pub fn new(first: Arc<dyn Engine>, second: Arc<dyn Engine>) -> Self {
        Self { first, second }
    }
}

fn differ(what: &str) -> Fatal {
    Fatal::new("compare two engines", format!("they differ in {what}"))
}

impl Engine for MirrorEngine {
    fn tree(&self, name: &str) -> Result<Arc<dyn Tree>, Fatal> {
        Ok(Arc::new(MirrorTree { first: self.first.tree(name)?, second: self.second.tree(name)? }))
    }

    fn drop_tree(&self, name: &str) -> Result<(), Fatal> {
        self.first.drop_tree(name)?;
        self.second.drop_tree(name)
    }

    fn flush(&self) -> Result<(), Fatal> {
        self.first.flush()?;
        self.second.flush()
    }

    fn size_bytes(&self) -> u64 {
        self.first.size_bytes()
    }
}

impl Tree for MirrorTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        let value = self.first.get(key)?;
        if self.second.get(key)? != value {
            return Err(differ(&format!("the value of {key:02x?}")));
        }
        Ok(value)
    }

    fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a> {
        let mut first = self.first.scan(range, reverse);
        let mut second = self.second.scan(range, reverse);
        Box::new(std::iter::from_fn(move || match (first.next(), second.next()) {
            (None, None) => None,
            (Some(Err(e)), _) | (_, Some(Err(e))) => Some(Err(e)),
            (Some(Ok(a)), Some(Ok(b))) if a == b => Some(Ok(a)),
            (a, _) => Some(Err(differ(&format!("a scan, at {:02x?}", a.and_then(Result::ok).map(|(key, _)| key))))),
        }))
    }

    fn write(&self, batch: Batch) -> Result<(), Fatal> {
        self.first.write(batch.clone())?;
        self.second.write(batch)
    }

    fn check(&self, budget: usize) -> Result<bool, Fatal> {
        self.first.check(budget)
    }
}
