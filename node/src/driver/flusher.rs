//! The flusher: moves what is written behind (see [`quorate_core::engine::behind`]) into the engine.
//!
//! It lets a little come together first: what is written again meanwhile is then written once. Invariant: a failure stops
//! the node in the same way as the applier's.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_core::engine::behind::{Behind, GROUP_BYTES};
use quorate_core::error::Fatal;

use super::{Shared, applier};

/// How long it waits for more when little is on its way.
const GATHER: Duration = Duration::from_millis(20);

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

    /// Lets some time pass, less if it is closed meanwhile.
    fn pause(&self, time: Duration) {
        // Either way it goes on.
        let _ = self.rung.wait_timeout_while(self.state(), time, |state| !state.closed);
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
        loop {
            if self.behind.pending_bytes() < GROUP_BYTES {
                self.bell.pause(GATHER);
            }
            applier::wait_room(shared);
            if !applier::guarded(|| self.behind.drain())? || self.bell.state().closed {
                return Ok(());
            }
        }
    }
}
