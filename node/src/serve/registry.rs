//! The sessions that are open at a door: counted, found by cancels, woken for the drain.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_shared::ids::SessionId;
use quorate_shared::limits::{SESSIONS_MAX, SESSIONS_RESERVE};
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;

/// Cancels remembered for requests that have not arrived yet.
const EARLY_MAX: usize = 64;

/// A lock whose holder cannot leave it inconsistent: poisoning is ignored.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What others may do to a session.
pub struct Handle {
    /// The session.
    pub id: SessionId,
    /// Whoever names it may cancel.
    pub key: u64,
    /// It may run statements; beyond [`SESSIONS_MAX`] only status, ping and cancel.
    pub full: bool,
    pub(super) outbox: Arc<Outbox>,
    cancels: Mutex<Cancels>,
}

#[derive(Default)]
struct Cancels {
    running: Option<(u64, CancellationToken)>,
    /// The highest request that was started.
    started: u64,
    early: VecDeque<u64>,
}

impl Handle {
    /// A request starts: its token, cancelled already if somebody was faster than the request.
    pub fn start(&self, request: u64) -> CancellationToken {
        let token = CancellationToken::new();
        let mut cancels = lock(&self.cancels);
        if cancels.early.contains(&request) {
            token.cancel();
        }
        cancels.early.retain(|early| *early > request);
        cancels.started = cancels.started.max(request);
        cancels.running = Some((request, token.clone()));
        token
    }

    /// The running request has ended.
    pub fn end(&self) {
        lock(&self.cancels).running = None;
    }

    /// Stops a request: the running one, or one that has not started yet. One that has ended is left alone.
    pub fn cancel(&self, request: u64) {
        let mut cancels = lock(&self.cancels);
        match &cancels.running {
            Some((running, token)) if *running == request => token.cancel(),
            _ if request > cancels.started && !cancels.early.contains(&request) => {
                if cancels.early.len() == EARLY_MAX {
                    cancels.early.pop_front();
                }
                cancels.early.push_back(request);
            }
            _ => {}
        }
    }
}

/// All sessions of a node.
#[derive(Default)]
pub struct Registry {
    sessions: Mutex<BTreeMap<SessionId, Arc<Handle>>>,
    next: AtomicU64,
    draining: AtomicBool,
}

impl Registry {
    /// Opens a session; `None` when even the reserve is used up.
    pub fn open(self: &Arc<Self>, key: u64) -> Option<Open> {
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= SESSIONS_MAX + SESSIONS_RESERVE {
            return None;
        }
        let handle = Arc::new(Handle {
            id: SessionId::new(self.next.fetch_add(1, Ordering::Relaxed) + 1),
            key,
            full: sessions.len() < SESSIONS_MAX,
            outbox: Arc::new(Outbox::default()),
            cancels: Mutex::default(),
        });
        sessions.insert(handle.id, Arc::clone(&handle));
        Some(Open { registry: Arc::clone(self), handle })
    }

    /// Stops a request of a session; false if session or key are wrong.
    pub fn cancel(&self, session: SessionId, key: u64, request: u64) -> bool {
        let handle = lock(&self.sessions).get(&session).filter(|handle| handle.key == key).cloned();
        handle.as_ref().inspect(|handle| handle.cancel(request)).is_some()
    }

    /// Sessions open now.
    pub fn len(&self) -> usize {
        lock(&self.sessions).len()
    }

    /// Some session.
    #[cfg(test)]
    pub(super) fn any(&self) -> Option<Arc<Handle>> {
        lock(&self.sessions).values().next().cloned()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sessions end after the statement they are running.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let handles: Vec<_> = lock(&self.sessions).values().cloned().collect();
        handles.iter().for_each(|handle| handle.outbox.wake_session());
    }

    /// Whether sessions are to end.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// An open session; dropping it closes it.
pub struct Open {
    registry: Arc<Registry>,
    /// What others may do to it.
    pub handle: Arc<Handle>,
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.registry.sessions).remove(&self.handle.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancels_exactly_one_request() {
        let registry = Arc::new(Registry::default());
        let open = registry.open(7).unwrap();
        let id = open.handle.id;
        let first = open.handle.start(1);
        assert!(!registry.cancel(id, 8, 1), "a wrong key");
        assert!(registry.cancel(id, 7, 2), "not arrived yet");
        assert!(!first.is_cancelled());
        assert!(registry.cancel(id, 7, 1));
        assert!(first.is_cancelled());
        open.handle.end();
        assert!(open.handle.start(2).is_cancelled(), "was cancelled before it arrived");
        open.handle.end();
        assert!(registry.cancel(id, 7, 2), "it has ended");
        assert!(!open.handle.start(3).is_cancelled());
        drop(open);
        assert!(!registry.cancel(id, 7, 3));
        assert!(registry.is_empty());
    }

    #[test]
    fn refuses_beyond_its_limits() {
        let registry = Arc::new(Registry::default());
        let all: Vec<_> = std::iter::from_fn(|| registry.open(1)).collect();
        assert_eq!(all.len(), SESSIONS_MAX + SESSIONS_RESERVE);
        assert_eq!(all.iter().filter(|open| open.handle.full).count(), SESSIONS_MAX);
    }
}
