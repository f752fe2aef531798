//! Stopping a statement from outside: over a second connection, and in the client's own loop of retries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{ClientConfig, ClientError, link};
use crate::ids::SessionId;
use crate::wire::{ClientFrame, Request, ServerFrame};

/// Address, session and key of the connection in use.
type Target = (String, SessionId, u64);

/// What a client and its handles share.
#[derive(Default)]
pub(super) struct CancelState {
    target: Mutex<Option<Target>>,
    /// The request on the wire.
    pub(super) current: AtomicU64,
    /// The statement being run (it may take several requests).
    statement: AtomicU64,
    /// The statement that is to stop.
    stop: AtomicU64,
    wake: Notify,
}

impl CancelState {
    /// A new statement begins; its number.
    pub(super) fn begin(&self) -> u64 {
        self.statement.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Whether this statement is to stop.
    pub(super) fn asked(&self, statement: u64) -> bool {
        self.stop.load(Ordering::Acquire) == statement
    }

    /// Sleeps, or less long when the statement is to stop.
    pub(super) async fn sleep(&self, duration: Duration, statement: u64) {
        let woken = self.wake.notified();
        if !self.asked(statement) {
            let _ = tokio::time::timeout(duration, woken).await;
        }
    }

    pub(super) fn set_target(&self, target: Option<Target>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

/// Stops what its [`super::Client`] is running.
#[derive(Clone)]
pub struct CancelHandle {
    state: Arc<CancelState>,
    config: ClientConfig,
}

impl std::fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelHandle").finish_non_exhaustive()
    }
}

impl CancelHandle {
    pub(super) fn new(state: Arc<CancelState>, config: ClientConfig) -> Self {
        Self { state, config }
    }

    /// Stops the statement that runs now: exactly its request on the server, and the client's retries of it. Returns
    /// when the server has been told; the statement itself ends in its own call.
    pub async fn cancel(&self) -> Result<(), ClientError> {
        let request = self.state.current.load(Ordering::Acquire);
        self.state.stop.store(self.state.statement.load(Ordering::Acquire), Ordering::Release);
        self.state.wake.notify_waiters();
        let target = self.state.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((address, session, key)) = target else { return Ok(()) };
        let agent = format!("{} (cancel)", self.config.agent);
        let failed = |reason: String| ClientError::NoConnection { tried: vec![(address.clone(), reason)] };
        let (mut connection, _) =
            link::open(&address, &self.config, self.config.connect_timeout, &agent, &[]).await.map_err(failed)?;
        let body = Request::Cancel { session, key, request };
        let told = async {
            connection.writer.send(&ClientFrame { request: 1, body }).await?;
            connection.reader.message::<ServerFrame>().await
        };
        match tokio::time::timeout(self.config.connect_timeout, told).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("no answer".into())),
        }
    }
}
