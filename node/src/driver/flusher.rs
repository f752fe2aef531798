//! The flusher: moves what is written behind (see [`quorate_core::engine::behind`]) into the engine.
//!
//! It lets things come together first: what is written again meanwhile (applied records, digests, clients' slots, hot
//! rows) is written once, and while the engine takes a group nobody can read from it, the applier included. In a rush
//! (somebody catches up, or loads in bulk) it stands back until much has come. Invariant: a failure stops the node in the
//! same way as the applier's.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_core::engine::behind::{Behind, PENDING_BYTES_MUCH};
use quorate_core::error::Fatal;

use super::{Shared, applier};

/// How long it waits for more unless much is on its way. As much more is replayed after a crash.
const GATHER: Duration = Duration::from_secs(1);
/// As many bytes more in that time, and it goes on waiting.
const RUSH: usize = 8 << 20;

#[derive(Default)]
struct Bell {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Default)]
struct State {
    rung: bool,
    closed: bool,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        self.state().rung = true;
        self.rung.notify_one();
    }

    /// Waits until it is rung; `false`: it is closed.
    fn wait(&self) -> bool {
        let waiting = |state: &mut State| !state.rung && !state.closed;
        let mut state = self.rung.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner);
        state.rung = false;
        !state.closed
    }

    /// Lets some time pass, less if it is closed meanwhile, or rung and `enough`.
    fn pause(&self, time: Duration, enough: impl Fn() -> bool) {
        // Either way it goes on.
        let _ = self.rung.wait_timeout_while(self.state(), time, |state| !state.closed && !enough());
    }
}

/// What is written behind, and who is to be woken for it.
pub struct Flusher {
    behind: Behind,
    bell: Arc<Bell>,
}

impl Default for Flusher {
    fn default() -> Self {
        let bell = Arc::<Bell>::default();
        let ringer = bell.clone();
        Self { behind: Behind::new(Arc::new(move || ringer.ring())), bell }
    }
}

impl Flusher {
    /// The trees written behind.
    pub fn behind(&self) -> &Behind {
        &self.behind
    }

    /// Ends [`Flusher::run`]; what is still on its way is drained by whoever closes the engine.
    pub(super) fn close(&self) {
        self.bell.state().closed = true;
        self.bell.rung.notify_one();
    }

    pub(super) fn run(&self, shared: &Shared) {
        while self.bell.wait() {
            if let Err(fatal) = self.empty(shared) {
                applier::fail(shared, &fatal);
                return;
            }
        }
    }

    fn empty(&self, shared: &Shared) -> Result<(), Fatal> {
        let go_on = || {
            applier::wait_room(shared);
            !self.bell.state().closed
        };
        while self.behind.pending_bytes() > 0 && !self.bell.state().closed {
            let much = || self.behind.pending_bytes() > PENDING_BYTES_MUCH;
            loop {
                let before = self.behind.pending_bytes();
                self.bell.pause(GATHER, much);
                if much() || self.bell.state().closed || self.behind.pending_bytes() < before + RUSH {
                    break;
                }
            }
            applier::guarded(|| self.behind.drain_while(go_on))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "how long a pause lasts is what is tested")]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_ring_ends_a_pause_only_when_there_is_enough() {
        let (bell, short, long) = (Bell::default(), Duration::from_millis(20), Duration::from_secs(600));
        bell.ring();
        let begun = Instant::now();
        bell.pause(short, || false);
        assert!(begun.elapsed() >= short);
        let enough = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| bell.pause(long, || enough.load(std::sync::atomic::Ordering::SeqCst)));
            enough.store(true, std::sync::atomic::Ordering::SeqCst);
            bell.ring();
        });
        assert!(begun.elapsed() < long);
        bell.state().closed = true;
        bell.pause(long, || false);
        assert!(begun.elapsed() < long);
    }
}
