//! Writing behind: batches are visible at once and reach the engine below in larger groups, on another thread.
//!
//! The log is the truth and the engine is derived, so a batch need not be in the engine when it is applied: it must be
//! visible, and the engine must be as of *some* applied index after a crash. A [`BehindTree`] keeps what is on its way in
//! memory; [`Behind::drain_while`] moves it below, oldest first. Whole batches are joined into a group and a group goes below as
//! one batch, so the tree below is always as it was after some batch. Keys written again meanwhile (applied records,
//! digests, clients' slots, hot rows) are written once. A batch as large as a group becomes one as it is: who is far
//! behind pays for no second sorting.
//!
//! Reads look at what is on its way first and below after: what vanishes from the first in between is below by then.
//!
//! Invariants: groups go below in order and one at a time; at most [`PENDING_BYTES_MAX`] and one batch are on their way,
//! beyond it the writer does the draining; after an error below nothing more is taken, and reads go on.
//!
//! Left out: threads; whoever owns the engine calls [`Behind::drain_while`] when it is woken.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque, btree_map};
use std::hash::BuildHasherDefault;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::engine::{Batch, KeyRange, ScanItem, Tree};
use crate::error::Fatal;

/// Bytes of keys and values on their way per tree, beyond which the writer waits for the engine.
pub const PENDING_BYTES_MAX: usize = 96 << 20;
/// Beyond this whoever drains is woken, however little time has passed: there is room left for a burst.
pub const PENDING_BYTES_MUCH: usize = 64 << 20;
/// A group takes no further batch beyond this: the engine below stops its readers while it takes one.
const GROUP_BYTES: usize = 256 << 10;
/// Keys on their way that a scan looks at under one lock.
const PAGE: usize = 256;
/// What a key costs besides its bytes.
const KEY_OVERHEAD: usize = 96;

/// Called when something is on its way and nothing was before, and when it becomes much.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The trees of one engine, written behind.
pub struct Behind {
    trees: Mutex<Vec<Arc<BehindTree>>>,
    wake: Wake,
}

impl Behind {
    /// Without trees; `wake` is called when there is something to drain.
    pub fn new(wake: Wake) -> Self {
        Self { trees: Mutex::new(Vec::new()), wake }
    }

    /// Puts itself before a tree.
    pub fn tree(&self, below: Arc<dyn Tree>) -> Arc<dyn Tree> {
        let tree = Arc::new(BehindTree {
            below,
            pending: RwLock::default(),
            draining: Mutex::new(()),
            wake: Arc::clone(&self.wake),
        });
        lock(&self.trees).push(Arc::clone(&tree));
        tree
    }

    /// Moves everything below that was on its way when it was called, and perhaps more.
    pub fn drain_all(&self) -> Result<(), Fatal> {
        self.drain_while(|| true)
    }

    /// The same, asked before each group whether to go on.
    pub fn drain_while(&self, go_on: impl Fn() -> bool) -> Result<(), Fatal> {
        let trees = lock(&self.trees).clone();
        for tree in trees {
            let last = tree.read().next;
            // Drained once in any case: that waits for a group that is just going below.
            while go_on() && tree.drain()? && tree.read().groups.front().is_some_and(|g| g.number <= last) {}
        }
        Ok(())
    }

    /// Bytes on their way.
    pub fn pending_bytes(&self) -> usize {
        lock(&self.trees).iter().map(|t| t.read().bytes).sum()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// Batches that go below as one.
struct Group {
    number: u64,
    /// Shared with whoever moves it below.
    writes: Arc<Writes>,
    bytes: usize,
    /// It takes no further batch.
    closed: bool,
}

/// The newest value on its way of each key, and the group that carries it.
#[expect(clippy::disallowed_types, reason = "never iterated, and without randomness of its own")]
type Newest = std::collections::HashMap<Bytes, (u64, Option<Bytes>), BuildHasherDefault<DefaultHasher>>;

#[derive(Default)]
struct Pending {
    newest: Newest,
    /// In the order in which they go below; the one that is just going is the first.
    groups: VecDeque<Group>,
    /// Number of the newest group.
    next: u64,
    bytes: usize,
    /// The error below, and whether it was for want of room.
    failed: Option<(std::io::ErrorKind, String)>,
}

/// One tree, written behind. See the module.
pub struct BehindTree {
    below: Arc<dyn Tree>,
    pending: RwLock<Pending>,
    /// Held while a group goes below: they go in order.
    draining: Mutex<()>,
    wake: Wake,
}

impl BehindTree {
    fn read(&self) -> RwLockReadGuard<'_, Pending> {
        self.pending.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Pending> {
        self.pending.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self) -> Result<bool, Fatal> {
        let _turn = lock(&self.draining);
        self.check()?;
        let writes = {
            let mut pending = self.change();
            let Some(group) = pending.groups.front_mut() else { return Ok(false) };
            group.closed = true;
            Arc::clone(&group.writes)
        };
        // Seen by readers until it is below.
        if let Err(fatal) = self.below.write(Batch { writes: (*writes).clone() }) {
            self.change().failed = Some((kind_of(&fatal), fatal.to_string()));
            return Err(fatal);
        }
        let mut guard = self.change();
        let pending = &mut *guard;
        let Some(gone) = pending.groups.pop_front() else { return Ok(false) };
        for key in writes.keys() {
            if pending.newest.get(key).is_some_and(|(number, _)| *number == gone.number) {
                pending.newest.remove(key);
            }
        }
        pending.bytes -= gone.bytes;
        // What it held is freed behind the lock.
        drop(guard);
        Ok(true)
    }

    fn check(&self) -> Result<(), Fatal> {
        match &self.read().failed {
            None => Ok(()),
            Some((kind, why)) => Err(Fatal::new("write to the engine", std::io::Error::new(*kind, why.clone()))),
        }
    }
}

/// The kind of the system's error in it, so that who asks later is told the same.
fn kind_of(fatal: &Fatal) -> std::io::ErrorKind {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*fatal.cause);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind();
        }
        cause = error.source();
    }
    std::io::ErrorKind::Other
}

/// What a write counts for.
fn size((key, value): (&Bytes, &Option<Bytes>)) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len) + KEY_OVERHEAD
}

impl Pending {
    fn take(&mut self, writes: Writes, bytes: usize) {
        let open = self.groups.back_mut().filter(|g| !g.closed && g.bytes < GROUP_BYTES && bytes < GROUP_BYTES / 2);
        let Some((group, into)) = open.and_then(|g| Some((g.number, Arc::get_mut(&mut g.writes)?))) else {
            self.next += 1;
            let number = self.next;
            self.newest.extend(writes.iter().map(|(key, value)| (key.clone(), (number, value.clone()))));
            self.groups.push_back(Group { number, writes: Arc::new(writes), bytes, closed: false });
            self.bytes += bytes;
            return;
        };
        let mut more = 0;
        for (key, value) in writes {
            let bytes = size((&key, &value));
            self.newest.insert(key.clone(), (group, value.clone()));
            more += if into.insert(key, value).is_none() { bytes } else { 0 };
        }
        self.bytes += more;
        self.groups.back_mut().into_iter().for_each(|group| group.bytes += more);
    }

    /// The first keys on their way in a range, from its end if `reverse`, at most [`PAGE`], with their newest values.
    fn first(&self, range: &KeyRange, reverse: bool) -> Vec<(Bytes, Option<Bytes>)> {
        let end = range.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let bounds = (Bound::Included(&range.start), end);
        let mut runs: Vec<Run<'_>> =
            self.groups.iter().map(|group| Run { rest: group.writes.range::<Bytes, _>(bounds), reverse }).collect();
        // The next key of each run; of runs that have the same key next, the newest stays.
        let mut next: BTreeMap<&Bytes, (usize, &Option<Bytes>)> = BTreeMap::new();
        (0..runs.len()).for_each(|run| advance(&mut runs, run, &mut next));
        let mut first = Vec::new();
        while first.len() < PAGE
            && let Some((key, (run, value))) = if reverse { next.pop_last() } else { next.pop_first() }
        {
            first.push((key.clone(), value.clone()));
            advance(&mut runs, run, &mut next);
        }
        first
    }
}

/// What is left of a group in a range.
struct Run<'a> {
    rest: btree_map::Range<'a, Bytes, Option<Bytes>>,
    reverse: bool,
}

/// Puts the next key of a run where the smallest is sought; an older run that had the same one goes on to its next.
fn advance<'a>(runs: &mut [Run<'a>], mut run: usize, next: &mut BTreeMap<&'a Bytes, (usize, &'a Option<Bytes>)>) {
    while let Some(Run { rest, reverse }) = runs.get_mut(run)
        && let Some((key, value)) = if *reverse { rest.next_back() } else { rest.next() }
    {
        match next.entry(key) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert((run, value));
                return;
            }
            btree_map::Entry::Occupied(mut entry) if entry.get().0 < run => {
                run = std::mem::replace(entry.get_mut(), (run, value)).0;
            }
            btree_map::Entry::Occupied(_) => {}
        }
    }
}

impl Tree for BehindTree {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        if let Some((_, value)) = self.read().newest.get(key) {
            return Ok(value.clone());
        }
        self.below.get(key)
    }

    fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a> {
        let pages = Pages { tree: self, rest: Some(range.clone()), reverse, page: None };
        Box::new(pages)
    }

    fn write(&self, batch: Batch) -> Result<(), Fatal> {
        self.check()?;
        let bytes: usize = batch.writes.iter().map(size).sum();
        let wake = {
            let mut guard = self.change();
            let pending = &mut *guard;
            let (was_empty, bytes_before) = (pending.groups.is_empty(), pending.bytes);
            pending.take(batch.writes, bytes);
            was_empty || (bytes_before <= PENDING_BYTES_MUCH && pending.bytes > PENDING_BYTES_MUCH)
        };
        if wake {
            (self.wake)();
        }
        while self.read().bytes > PENDING_BYTES_MAX && self.drain()? {}
        Ok(())
    }

    fn check(&self, budget: usize) -> Result<bool, Fatal> {
        self.below.check(budget)
    }
}

/// Keys on their way in a part of a range, and what is below in the same part.
struct Page<'a> {
    above: std::iter::Peekable<std::vec::IntoIter<(Bytes, Option<Bytes>)>>,
    below: std::iter::Peekable<Box<dyn Iterator<Item = ScanItem> + Send + 'a>>,
}

/// A scan, part by part.
struct Pages<'a> {
    tree: &'a BehindTree,
    /// What has not been begun.
    rest: Option<KeyRange>,
    reverse: bool,
    page: Option<Page<'a>>,
}

impl<'a> Pages<'a> {
    /// Begins the next part: up to and with the last of [`PAGE`] keys on their way.
    fn turn(&mut self) -> Option<Page<'a>> {
        let range = self.rest.take()?;
        let pending = self.tree.read();
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return None;
        }
        let above = pending.first(&range, self.reverse);
        drop(pending);
        let part = match above.last().filter(|_| above.len() == PAGE) {
            None => range,
            Some((last, _)) if self.reverse => {
                self.rest = Some(KeyRange { start: range.start, end: Some(last.clone()) });
                KeyRange { start: last.clone(), end: range.end }
            }
            Some((last, _)) => {
                let after = Bytes::from([last, &[0][..]].concat());
                self.rest = Some(KeyRange { start: after.clone(), end: range.end });
                KeyRange { start: range.start, end: Some(after) }
            }
        };
        // Only now: what has gone below since is seen there.
        let below = self.tree.below.scan(&part, self.reverse).peekable();
        Some(Page { above: above.into_iter().peekable(), below })
    }
}

impl Page<'_> {
    /// The next key of the part; `Some(None)`: one that is deleted.
    fn step(&mut self, reverse: bool) -> Option<Option<ScanItem>> {
        let above_first = match (self.above.peek(), self.below.peek()) {
            (None, None) => return None,
            (None, Some(_)) => return self.below.next().map(Some),
            (Some(_), None) => true,
            (_, Some(Err(_))) => return self.below.next().map(Some),
            (Some((above, _)), Some(Ok((below, _)))) => {
                if above == below {
                    self.below.next();
                    true
                } else {
                    (above < below) != reverse
                }
            }
        };
        if !above_first {
            return self.below.next().map(Some);
        }
        let (key, value) = self.above.next()?;
        Some(value.map(|value| Ok((key, value))))
    }
}

impl Iterator for Pages<'_> {
    type Item = ScanItem;

    fn next(&mut self) -> Option<ScanItem> {
        loop {
            if self.page.is_none() {
                self.page = Some(self.turn()?);
            }
            match self.page.as_mut().and_then(|page| page.step(self.reverse)) {
                None => self.page = None,
                Some(None) => {}
                Some(Some(item)) => {
                    if item.is_err() {
                        self.rest = None;
                        self.page = Some(Page { above: Vec::new().into_iter().peekable(), below: nothing() });
                    }
                    return Some(item);
                }
            }
        }
    }
}

fn nothing<'a>() -> std::iter::Peekable<Box<dyn Iterator<Item = ScanItem> + Send + 'a>> {
    let none: Box<dyn Iterator<Item = ScanItem> + Send + 'a> = Box::new(std::iter::empty());
    none.peekable()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::memory::MemoryTree;
    use crate::sim::Rng;

    fn key(n: u64) -> Bytes {
        Bytes::from(format!("k{n:05}"))
    }

    fn all(tree: &dyn Tree, start: u64, end: Option<u64>, reverse: bool) -> Vec<(Bytes, Bytes)> {
        let range = KeyRange { start: key(start), end: end.map(key) };
        tree.scan(&range, reverse).map(Result::unwrap).collect()
    }

    /// Random writes, drains, reads and scans give what a plain tree gives; the tree below is always as it was after some
    /// batch.
    #[test]
    fn reads_like_a_plain_tree() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let below = Arc::new(MemoryTree::default());
            let behind = Behind::new(Arc::new(|| ()));
            let tree = behind.tree(below.clone());
            let plain = MemoryTree::default();
            let keys = rng.range(3, 2000);
            for step in 0..300u64 {
                let mut batch = Batch::default();
                for _ in 0..rng.range(1, 40) {
                    let value =
                        (!rng.chance(300)).then(|| Bytes::from(vec![rng.next() as u8; rng.range(0, 9000) as usize]));
                    batch.writes.insert(key(rng.range(0, keys)), value);
                }
                batch.writes.insert(Bytes::from_static(b"applied"), Some(Bytes::copy_from_slice(&step.to_be_bytes())));
                plain.write(batch.clone()).unwrap();
                tree.write(batch).unwrap();
                if rng.chance(200) {
                    let left = std::cell::Cell::new(rng.range(0, 3));
                    behind.drain_while(|| left.replace(left.get().saturating_sub(1)) > 0).unwrap();
                }
                let (start, end) = (rng.range(0, keys), rng.chance(700).then(|| rng.range(0, keys)));
                let reverse = rng.chance(500);
                assert_eq!(
                    all(&*tree, start, end, reverse),
                    all(&plain, start, end, reverse),
                    "seed {seed} step {step}"
                );
                assert_eq!(tree.get(&key(start)).unwrap(), plain.get(&key(start)).unwrap());
            }
            behind.drain_all().unwrap();
            assert_eq!(behind.pending_bytes(), 0);
            assert_eq!(all(&*below, 0, None, false), all(&plain, 0, None, false));
        }
    }

    /// Takes so many batches.
    struct Full(MemoryTree, AtomicUsize);

    impl Tree for Full {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
            self.0.get(key)
        }
        fn scan<'a>(&'a self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = ScanItem> + Send + 'a> {
            self.0.scan(range, reverse)
        }
        fn write(&self, batch: Batch) -> Result<(), Fatal> {
            if self.1.fetch_sub(1, Ordering::SeqCst) == 0 {
                return Err(Fatal::new("write", std::io::Error::from(std::io::ErrorKind::StorageFull)));
            }
            self.0.write(batch)
        }
    }

    #[test]
    fn an_error_below_stops_writes_and_keeps_reads() {
        let behind = Behind::new(Arc::new(|| ()));
        let tree = behind.tree(Arc::new(Full(MemoryTree::default(), AtomicUsize::new(1))));
        let put = |n: u64| Batch { writes: [(key(n), Some(Bytes::from_static(b"v")))].into() };
        tree.write(put(1)).unwrap();
        behind.drain_all().unwrap();
        tree.write(put(2)).unwrap();
        behind.drain_all().expect_err("no room");
        let error = tree.write(put(3)).expect_err("an earlier error");
        assert_eq!(kind_of(&error), std::io::ErrorKind::StorageFull);
        assert_eq!(all(&*tree, 0, None, false).len(), 2);
    }

    #[test]
    fn who_drains_is_woken_once() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = woken.clone();
        let behind = Behind::new(Arc::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
        let tree = behind.tree(Arc::new(MemoryTree::default()));
        for n in 0..3 {
            tree.write(Batch { writes: [(key(n), None)].into() }).unwrap();
        }
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        behind.drain_all().unwrap();
        assert_eq!(behind.pending_bytes(), 0);
        tree.write(Batch { writes: [(key(9), None)].into() }).unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 2);
    }
}
