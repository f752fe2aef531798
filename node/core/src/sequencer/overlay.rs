//! The latest state: what is in flight over what is applied.
//!
//! The overlay keeps every recently written key with its newest version: those in flight because the tree does not have
//! them yet, applied ones for a while longer, so that "has anything in this range changed since?" is answered without
//! reading the tree. Whether the applier is a little further than it has reported does not matter: the overlay wins.
//!
//! Invariants: every key written by an entry in flight is in the overlay; every key written after `floor` is in it.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use quorate_shared::ids::{Index, Timestamp};

use super::stored;
use crate::bug::{Bug, planted};
use crate::engine::{KeyRange, Tree};
use crate::error::{Fatal, Rejected};
use crate::proposal::ReadCheck;

/// Bytes of keys and values the overlay keeps of applied entries.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// What a slot takes besides key and value, roughly.
const SLOT_BYTES: usize = 160;
/// Keys of the tree looked at for a range that was read longer ago than the overlay remembers.
const CHECKED_KEYS_MAX: usize = 2_000;

/// The newest version of a key.
struct Slot {
    index: Index,
    timestamp: Timestamp,
    value: Option<Bytes>,
}

/// Recently written keys. See the module.
pub(super) struct Overlay {
    slots: BTreeMap<Bytes, Slot>,
    /// Keys in the order they were written.
    order: VecDeque<(Index, Timestamp, Bytes)>,
    bytes: usize,
    applied: Index,
    /// Keys written at or before this may be missing.
    floor: Timestamp,
}

impl Overlay {
    /// Empty, over what is applied.
    pub fn new(applied: Index, timestamp: Timestamp) -> Self {
        Self { slots: BTreeMap::new(), order: VecDeque::new(), bytes: 0, applied, floor: timestamp }
    }

    /// A staged write.
    pub fn put(&mut self, index: Index, timestamp: Timestamp, key: Bytes, value: Option<Bytes>) {
        self.bytes += cost(&key, value.as_ref());
        // A key written twice by one entry needs one place in the order.
        let (order_key, slot) = (key.clone(), Slot { index, timestamp, value });
        match self.slots.insert(key, slot) {
            Some(old) => {
                self.bytes -= cost(&order_key, old.value.as_ref());
                if old.index != index {
                    self.order.push_back((index, timestamp, order_key));
                }
            }
            None => self.order.push_back((index, timestamp, order_key)),
        }
    }

    /// Entries up to this index are in the tree.
    pub fn applied(&mut self, index: Index) {
        self.applied = self.applied.max(index);
        while self.bytes > KEPT_BYTES_MAX || self.order.len() > 2 * self.slots.len() + 1024 {
            match self.order.front() {
                Some((at, ..)) if *at <= self.applied => {}
                _ => break,
            }
            let Some((at, timestamp, key)) = self.order.pop_front() else { break };
            self.floor = self.floor.max(timestamp);
            if self.slots.get(&key).is_some_and(|slot| slot.index == at)
                && let Some(slot) = self.slots.remove(&key)
            {
                self.bytes -= cost(&key, slot.value.as_ref());
            }
        }
    }

    fn range<'a>(&'a self, range: &KeyRange) -> impl Iterator<Item = (&'a Bytes, &'a Slot)> + use<'a> {
        let empty = range.is_empty();
        let start = if empty { Bound::Excluded(range.start.clone()) } else { Bound::Included(range.start.clone()) };
        let end = match &range.end {
            _ if empty => Bound::Included(range.start.clone()),
            Some(end) => Bound::Excluded(end.clone()),
            None => Bound::Unbounded,
        };
        self.slots.range::<Bytes, _>((start, end))
    }
}

fn cost(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + SLOT_BYTES
}

/// Reads the latest state, and remembers the last entry in flight that something was read from.
pub(super) struct Latest<'a> {
    overlay: &'a Overlay,
    tree: &'a dyn Tree,
    depends_on: Cell<Index>,
}

impl<'a> Latest<'a> {
    /// A reader with nothing read yet.
    pub fn new(overlay: &'a Overlay, tree: &'a dyn Tree) -> Self {
        Self { overlay, tree, depends_on: Cell::new(Index::default()) }
    }

    /// The last entry in flight that what was read depends on; 0 if none.
    pub fn depends_on(&self) -> Index {
        self.depends_on.get()
    }

    /// What was decided depends on this entry too, if it is still in flight.
    pub fn depend(&self, index: Index) {
        if index > self.overlay.applied && index > self.depends_on.get() {
            self.depends_on.set(index);
        }
    }

    /// The newest version of a key: when it was written, and its value unless it was deleted then.
    pub fn version(&self, key: &[u8]) -> Result<Option<(Timestamp, Option<Bytes>)>, Fatal> {
        if let Some(slot) = self.overlay.slots.get(key) {
            self.depend(slot.index);
            return Ok(Some((slot.timestamp, slot.value.clone())));
        }
        stored::current(self.tree, key)
    }

    /// The value of a key and when it was written; `None` if there is none now.
    pub fn get(&self, key: &[u8]) -> Result<Option<(Timestamp, Bytes)>, Fatal> {
        Ok(self.version(key)?.and_then(|(timestamp, value)| Some((timestamp, value?))))
    }

    /// Whether a key has a value.
    pub fn exists(&self, key: &[u8]) -> Result<bool, Fatal> {
        Ok(self.get(key)?.is_some())
    }

    /// Hands the keys of a range that have a value to `each`, in order, until it says `false`.
    pub fn scan<E: From<Fatal>>(
        &self,
        range: &KeyRange,
        mut each: impl FnMut(&Bytes, &Bytes) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut written = self.overlay.range(range).peekable();
        let mut stored = stored::scan_current(self.tree, range);
        let mut next = stored.next().transpose()?;
        loop {
            let from_overlay = match (written.peek(), &next) {
                (None, None) => return Ok(()),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((key, _)), Some((other, ..))) => *key <= other,
            };
            if from_overlay {
                let Some((key, slot)) = written.next() else { return Ok(()) };
                self.depend(slot.index);
                if next.as_ref().is_some_and(|(other, ..)| other == key) {
                    next = stored.next().transpose()?;
                }
                if let Some(value) = &slot.value
                    && !each(key, value)?
                {
                    return Ok(());
                }
            } else if let Some((key, _, value)) = next.take() {
                if let Some(value) = &value
                    && !each(&key, value)?
                {
                    return Ok(());
                }
                next = stored.next().transpose()?;
            }
        }
    }

    /// Keys of a range that are in the tree or about to be, live or not, at most `limit` (for a purge).
    pub fn physical(&self, range: &KeyRange, limit: usize) -> Result<Vec<Bytes>, Fatal> {
        let in_flight = self.overlay.range(range).filter(|(_, slot)| slot.index > self.overlay.applied);
        let mut out: Vec<Bytes> = Vec::new();
        for (key, slot) in in_flight.filter(|(_, slot)| slot.value.is_some()).take(limit) {
            self.depend(slot.index);
            out.push(key.clone());
        }
        for item in self.tree.scan(range, false) {
            if out.len() >= limit {
                break;
            }
            let (key, _) = item?;
            if self.overlay.slots.get(&key).is_none_or(|slot| slot.index <= self.overlay.applied) {
                out.push(key);
            }
        }
        Ok(out)
    }

    /// Whether a range still is what a reader saw.
    pub fn check(&self, read: &ReadCheck) -> Result<Result<(), Rejected>, Fatal> {
        let one = read.end.is_empty() || read.end == read.start;
        let range = if one {
            KeyRange::one(&read.start)
        } else {
            KeyRange { start: read.start.clone(), end: Some(read.end.clone()) }
        };
        for (_, slot) in self.overlay.range(&range) {
            if slot.timestamp > read.seen && !planted(Bug::IgnoreInFlight) {
                self.depend(slot.index);
                return Ok(Err(Rejected::Conflict));
            }
        }
        if read.seen >= self.overlay.floor {
            return Ok(Ok(()));
        }
        // Read before the overlay's memory begins: the versions in the tree tell, for as much as is reasonable to read.
        for (seen, item) in stored::scan_current(self.tree, &range).enumerate() {
            let (_, timestamp, _) = item?;
            if timestamp > read.seen || seen >= CHECKED_KEYS_MAX {
                return Ok(Err(Rejected::Conflict));
            }
        }
        // A deletion below the horizon may have been collected, and with it the sign that something changed.
        if read.seen < crate::mvcc::horizon(self.tree)? {
            return Ok(Err(Rejected::Conflict));
        }
        Ok(Ok(()))
    }
}
