//! What the rest of the node sees of a shard's replica: who leads, how far it is applied, its tree.
//!
//! Written by the driver's threads, read by anybody. Reading what is applied takes no lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use quorate_core::engine::Tree;
use quorate_core::machine::Applied;
use quorate_core::membership::Membership;
use quorate_core::mvcc::Snapshot;
use quorate_core::ship::serve::Committed;
use quorate_shared::ids::{Index, NodeId, ReplicaId, ShardId, Term, Timestamp};
use tokio::sync::{Notify, oneshot};

/// Who leads a shard, as this node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leader {
    /// The term.
    pub term: Term,
    /// The node that leads.
    pub node: Option<NodeId>,
    /// It is this node, and it evaluates proposals.
    pub ready: bool,
}

/// One shard's replica on this node.
pub struct ShardView {
    /// The shard.
    pub shard: ShardId,
    /// This node's replica of it.
    pub replica: ReplicaId,
    /// The last id it was a member under ([`quorate_core::join::last_id`]).
    pub was: ReplicaId,
    tree: Arc<dyn Tree>,
    leader: RwLock<Leader>,
    /// Told whenever `leader` changes.
    pub leader_changed: Notify,
    committed: Mutex<Committed>,
    /// Told whenever more can be shipped.
    pub committed_changed: Notify,
    /// Told whenever the membership changes.
    pub membership_changed: Notify,
    index: AtomicU64,
    timestamp: AtomicU64,
    waiting: Mutex<BTreeMap<(u64, u64), oneshot::Sender<()>>>,
    lowest_waiting: AtomicU64,
    next_waiter: AtomicU64,
    chain: Mutex<Applied>,
    is_stopped: AtomicBool,
    unreadable: AtomicBool,
    no_room: AtomicBool,
    stopped: RwLock<Option<String>>,
}

impl ShardView {
    /// A replica as it was opened: what it goes by, and what it last went by.
    pub fn new(shard: ShardId, ids: (ReplicaId, ReplicaId), tree: Arc<dyn Tree>, applied: &Applied) -> Self {
        Self {
            shard,
            replica: ids.0,
            was: ids.1,
            tree,
            leader: RwLock::default(),
            leader_changed: Notify::new(),
            committed: Mutex::new(Committed { shippable: applied.index, commit: applied.index, term: applied.term }),
            committed_changed: Notify::new(),
            membership_changed: Notify::new(),
            index: AtomicU64::new(applied.index.get()),
            timestamp: AtomicU64::new(applied.timestamp.raw()),
            waiting: Mutex::default(),
            lowest_waiting: AtomicU64::new(u64::MAX),
            next_waiter: AtomicU64::new(0),
            chain: Mutex::new(applied.clone()),
            is_stopped: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
            no_room: AtomicBool::new(false),
            stopped: RwLock::new(None),
        }
    }

    /// Who leads.
    pub fn leader(&self) -> Leader {
        *self.leader.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_leader(&self, leader: Leader) {
        *self.leader.write().unwrap_or_else(PoisonError::into_inner) = leader;
        self.leader_changed.notify_waiters();
    }

    /// What is committed, as the core thread last said.
    pub fn committed(&self) -> Committed {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_committed(&self, shippable: Index, commit: Index, term: Term) {
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let more = shippable > committed.shippable || commit > committed.commit;
        *committed = Committed { shippable, commit, term };
        drop(committed);
        if more {
            self.committed_changed.notify_waiters();
        }
    }

    /// Highest applied index.
    pub fn applied(&self) -> Index {
        Index::new(self.index.load(Ordering::Acquire))
    }

    /// Everything known of the applied point.
    pub fn applied_point(&self) -> Applied {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who takes part, as of what is applied.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.chain.lock().unwrap_or_else(PoisonError::into_inner).membership)
    }

    /// A snapshot of what is applied now.
    pub fn snapshot(&self) -> Snapshot {
        let timestamp = Timestamp::from_raw(self.timestamp.load(Ordering::Acquire));
        Snapshot::new(self.tree.clone(), timestamp)
    }

    /// Its tree.
    pub fn tree(&self) -> &Arc<dyn Tree> {
        &self.tree
    }

    /// Entries are in the tree: readers see them from here on. The timestamp first: an index that is visible must be
    /// covered by the timestamp read after it.
    pub(crate) fn publish(&self, applied: &Applied) {
        let before = {
            let mut point = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *point, applied.clone()).membership
        };
        if !Arc::ptr_eq(&before, &applied.membership) {
            self.membership_changed.notify_waiters();
        }
        self.timestamp.store(applied.timestamp.raw(), Ordering::Release);
        self.index.store(applied.index.get(), Ordering::SeqCst);
        if self.lowest_waiting.load(Ordering::SeqCst) <= applied.index.get() {
            self.wake(applied.index.get());
        }
    }

    fn wake(&self, index: u64) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let later = waiting.split_off(&(index + 1, 0));
        let due = std::mem::replace(&mut *waiting, later);
        let lowest = waiting.keys().next().map_or(u64::MAX, |(index, _)| *index);
        self.lowest_waiting.store(lowest, Ordering::SeqCst);
        drop(waiting);
        for sender in due.into_values() {
            // The waiter has given up.
            let _ = sender.send(());
        }
    }

    /// Waits until an index is applied; gives up when the replica stops. The caller has a deadline.
    pub async fn wait_applied(&self, index: Index) -> bool {
        if self.applied() >= index {
            return true;
        }
        let (sender, done) = oneshot::channel();
        let key = (index.get(), self.next_waiter.fetch_add(1, Ordering::Relaxed));
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_stopped.load(Ordering::SeqCst) {
                return false;
            }
            waiting.insert(key, sender);
            self.lowest_waiting.fetch_min(index.get(), Ordering::SeqCst);
        }
        // It may have been applied before the applier could see the waiter.
        if self.index.load(Ordering::SeqCst) >= index.get() {
            self.wake(self.index.load(Ordering::SeqCst));
        }
        let guard = Forget { view: self, key };
        let applied = done.await.is_ok();
        drop(guard);
        applied
    }

    /// Why this replica has stopped, if it has.
    pub fn stopped(&self) -> Option<String> {
        match self.is_stopped.load(Ordering::Acquire) {
            true => self.stopped.read().unwrap_or_else(PoisonError::into_inner).clone(),
            false => None,
        }
    }

    /// Whether what is applied can be read; also a stopped replica's, unless its engine has failed.
    pub fn is_readable(&self) -> bool {
        !self.unreadable.load(Ordering::Acquire)
    }

    pub(crate) fn set_unreadable(&self) {
        self.unreadable.store(true, Ordering::Release);
    }

    /// Whether nothing is applied because the disk is full.
    pub fn has_no_room(&self) -> bool {
        self.no_room.load(Ordering::Acquire)
    }

    pub(crate) fn set_no_room(&self, no_room: bool) {
        self.no_room.store(no_room, Ordering::Release);
    }

    pub(crate) fn stop(&self, why: String) {
        let mut stopped = self.stopped.write().unwrap_or_else(PoisonError::into_inner);
        if stopped.is_none() {
            *stopped = Some(why);
        }
        drop(stopped);
        self.set_leader(Leader { ready: false, node: None, ..self.leader() });
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_stopped.store(true, Ordering::SeqCst);
        // Dropping the senders tells those who wait.
        waiting.clear();
    }
}

/// Takes a waiter off the list when its future is dropped before its time.
struct Forget<'a> {
    view: &'a ShardView,
    key: (u64, u64),
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.view.index.load(Ordering::Acquire) < self.key.0 {
            self.view.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        }
    }
}
