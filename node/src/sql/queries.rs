//! The statements running on this node, for `quorate.queries` and the count of finished ones.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quorate_shared::ids::SessionId;

use super::session::Run;

/// Characters of a statement kept in the list.
const TEXT_MAX: usize = 1_000;

/// A running statement.
#[derive(Clone, Debug)]
pub struct RunningQuery {
    /// Its session.
    pub session: SessionId,
    /// Who runs it.
    pub user: Arc<str>,
    /// The session's database.
    pub database: String,
    /// Its text, cut.
    pub sql: String,
    /// Microseconds since 1970 when it began.
    pub started_us: i64,
    /// When it began, to tell how long it has run.
    pub since: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Queries {
    next: AtomicU64,
    finished: AtomicU64,
    running: Mutex<BTreeMap<u64, RunningQuery>>,
}

/// Takes a statement off the list when it is dropped.
pub struct Listed<'a> {
    queries: &'a Queries,
    id: u64,
}

impl Queries {
    /// Lists a statement while the result lives.
    pub fn enter(&self, run: &Run, sql: &str) -> Listed<'_> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let text = match sql.char_indices().nth(TEXT_MAX) {
            Some((end, _)) => sql.get(..end).unwrap_or_default().to_owned(),
            None => sql.to_owned(),
        };
        let query = RunningQuery {
            session: run.session,
            user: Arc::clone(&run.user),
            database: run.settings.database.clone(),
            sql: text,
            started_us: run.now_us,
            since: Instant::now(),
        };
        self.lock().insert(id, query);
        Listed { queries: self, id }
    }

    /// Those running now.
    pub fn running(&self) -> Vec<RunningQuery> {
        self.lock().values().cloned().collect()
    }

    /// How many have finished since the node started.
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, RunningQuery>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.queries.lock().remove(&self.id);
        self.queries.finished.fetch_add(1, Ordering::Relaxed);
    }
}
