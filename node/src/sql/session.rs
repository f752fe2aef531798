//! A session: one client's settings and prepared statements, and the way each of its statements takes.
//!
//! [`SqlSession::run`] parses, tries the fast path, and dispatches. One statement runs at a time; dropping the future
//! or cancelling its token stops it.
//!
//! Invariants: a statement never outlives its deadline; whatever it wrote before an error is nothing (statements are
//! atomic); settings change only by a statement that succeeded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quorate_core::proposal::{Proposal, WriteResult};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{SessionId, ShardId};
use quorate_shared::limits::PREPARED_MAX;
use quorate_shared::status::NodeKind;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{Column, Done, QueryOptions, ReadLevel};
use tokio_util::sync::CancellationToken;

use super::Execution;
use super::dispatch;
use super::execute;
use super::parse::{self, Parsed};
use super::plan::SqlEngine;
use super::settings::Settings;
use crate::router::{ProposeError, Router};

/// What a prepared statement looks like to its client.
#[derive(Clone, PartialEq, Debug)]
pub struct PreparedInfo {
    /// Its number in this session.
    pub statement: u32,
    /// Types of the placeholders, where known.
    pub params: Vec<Option<SqlType>>,
    /// Columns of its result; empty if it has none.
    pub columns: Vec<Column>,
    /// Whether it writes.
    pub writes: bool,
}

/// A prepared statement as the session keeps it.
#[derive(Debug)]
pub struct Prepared {
    /// The parsed statement.
    pub parsed: Arc<Parsed>,
    /// What the planner made of it, if it is a query.
    pub query: Option<super::plan::PreparedQuery>,
    /// Its fast path, if it has one.
    pub fast: super::execute::FastSlot,
}

/// Everything one running statement needs.
#[derive(Clone)]
pub struct Run {
    /// What all sessions share.
    pub engine: Arc<SqlEngine>,
    /// The cluster.
    pub router: Arc<dyn Router>,
    /// The session's settings.
    pub settings: Arc<Settings>,
    /// Who runs it.
    pub user: Arc<str>,
    /// The session it runs in.
    pub session: SessionId,
    /// Values of its placeholders.
    pub params: Arc<Vec<Value>>,
    /// How.
    pub options: QueryOptions,
    /// Which state it must see.
    pub read_level: ReadLevel,
    /// When to give up.
    pub deadline: Instant,
    /// Stops it.
    pub cancel: CancellationToken,
    /// Microseconds since 1970 UTC when it began: its `now()`.
    pub now_us: i64,
    proposed: Arc<AtomicBool>,
}

impl Run {
    /// Fails if the statement was cancelled or has no time left; called between batches.
    ///
    /// # Errors
    /// `57014`.
    pub fn check(&self) -> Result<(), WireError> {
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        if Instant::now() >= self.deadline {
            return Err(timed_out(&self.settings, &self.options));
        }
        Ok(())
    }

    /// Proposes to a shard and remembers that something was sent: from then on a cancelled or late statement is
    /// `unknown`, not undone.
    ///
    /// # Errors
    /// As [`Router::propose`].
    pub async fn propose(&self, shard: ShardId, proposal: Proposal) -> Result<WriteResult, ProposeError> {
        self.proposed.store(true, Ordering::Relaxed);
        let outcome = self.router.propose(shard, proposal, self.deadline).await;
        // An answer settles it; only while one is awaited is the outcome open.
        self.proposed.store(false, Ordering::Relaxed);
        outcome
    }

    /// Set while a proposal is on its way; see [`Run::propose`].
    pub fn proposed(&self) -> &AtomicBool {
        &self.proposed
    }

    /// The error of a statement whose waiting ends now.
    fn stopped(&self, error: WireError) -> WireError {
        if self.proposed.load(Ordering::Relaxed) {
            return WireError { code: Code::Unknown, ..error }
                .detail("the write had been sent; it may or may not have been committed")
                .hint("look whether it happened before sending it again");
        }
        error
    }

    /// Fails where writes are refused: on a shipped replica and in a read-only session.
    ///
    /// # Errors
    /// `25006`, with the master's address.
    pub fn check_writable(&self, what: &str) -> Result<(), WireError> {
        if self.router.identity().kind == NodeKind::Replica {
            let master = self.router.master().map(|m| m.address);
            let error = WireError::sql("25006", format!("cannot execute {what} on a read-only replica"));
            let error = match &master {
                Some(address) => error.hint(format!("connect to the master at {address}")),
                None => error.hint("connect to a voter; this replica knows no master now"),
            };
            return Err(error.redirect(master));
        }
        if self.settings.read_only || self.options.read_only {
            return Err(WireError::sql("25006", format!("cannot execute {what} in a read-only session"))
                .hint("SET read_only = off, or start the shell without --read-only"));
        }
        Ok(())
    }
}

fn cancelled() -> WireError {
    WireError::sql("57014", "the statement was cancelled")
}

fn timed_out(settings: &Settings, options: &QueryOptions) -> WireError {
    let ms = settings.patience_ms(options.deadline_ms);
    WireError::sql("57014", format!("the statement took longer than {ms} ms"))
        .hint("SET statement_timeout = '5min' allows more")
}

/// One client's session.
pub struct SqlSession {
    engine: Arc<SqlEngine>,
    router: Arc<dyn Router>,
    id: SessionId,
    user: Arc<str>,
    settings: Arc<Settings>,
    prepared: BTreeMap<u32, Arc<Prepared>>,
    next_statement: u32,
}

impl SqlSession {
    /// Opens a session in a database, with settings as by `SET name = value`. Unknown settings are ignored: another
    /// version of the client may know more.
    pub fn new(
        router: Arc<dyn Router>,
        engine: Arc<SqlEngine>,
        id: SessionId,
        user: &str,
        database: Option<&str>,
        settings: &[(String, String)],
    ) -> Self {
        let mut own = Settings::default();
        for (name, value) in settings {
            // What a newer client knows and this node does not must not refuse the connection.
            let _ = own.set(name, value);
        }
        if let Some(database) = database {
            own.database = database.to_lowercase();
        }
        Self {
            engine,
            router,
            id,
            user: Arc::from(user),
            settings: Arc::new(own),
            prepared: BTreeMap::new(),
            next_statement: 1,
        }
    }

    /// The session's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    fn start(&self, params: Vec<Value>, options: &QueryOptions, cancel: CancellationToken) -> Run {
        let ms = self.settings.patience_ms(options.deadline_ms);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Run {
            engine: Arc::clone(&self.engine),
            router: Arc::clone(&self.router),
            settings: Arc::clone(&self.settings),
            user: Arc::clone(&self.user),
            session: self.id,
            params: Arc::new(params),
            options: options.clone(),
            read_level: options.read_level.clone().unwrap_or_else(|| self.settings.read_level.clone()),
            deadline: Instant::now() + Duration::from_millis(ms),
            cancel,
            now_us: i64::try_from(now.as_micros()).unwrap_or(i64::MAX),
            proposed: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Runs one statement, given as text.
    ///
    /// # Errors
    /// Whatever refuses or fails it; rows the sink got are void then.
    pub async fn run(&mut self, sql: &str, how: Execution<'_>) -> Result<Done, WireError> {
        let parsed = Arc::new(self.engine.parse(sql)?);
        let prepared = Arc::new(Prepared { parsed, query: None, fast: Default::default() });
        self.finish(prepared, how).await
    }

    /// Parses and plans one statement.
    ///
    /// # Errors
    /// What [`parse::parse`] and the planner refuse; too many prepared statements.
    pub async fn prepare(&mut self, sql: &str) -> Result<PreparedInfo, WireError> {
        if self.prepared.len() >= PREPARED_MAX {
            return Err(WireError::new(Code::Busy, format!("this session has {PREPARED_MAX} prepared statements"))
                .hint("close those that are not needed any more"));
        }
        let parsed = Arc::new(self.engine.parse(sql)?);
        let run = self.start(Vec::new(), &QueryOptions::default(), CancellationToken::new());
        let (prepared, info) = dispatch::prepare(&run, parsed, self.next_statement).await?;
        self.prepared.insert(info.statement, Arc::new(prepared));
        self.next_statement = self.next_statement.wrapping_add(1).max(1);
        Ok(info)
    }

    /// Runs a prepared statement.
    ///
    /// # Errors
    /// `26000` for an unknown number, else as [`SqlSession::run`].
    pub async fn execute(&mut self, statement: u32, how: Execution<'_>) -> Result<Done, WireError> {
        let Some(prepared) = self.prepared.get(&statement).map(Arc::clone) else {
            return Err(WireError::sql("26000", format!("there is no prepared statement {statement} in this session")));
        };
        self.finish(prepared, how).await
    }

    /// Forgets a prepared statement; an unknown number is ignored.
    pub fn close(&mut self, statement: u32) {
        self.prepared.remove(&statement);
    }

    async fn finish(&mut self, prepared: Arc<Prepared>, how: Execution<'_>) -> Result<Done, WireError> {
        let Execution { params, options, cancel, sink } = how;
        let started = Instant::now();
        let wanted = prepared.parsed.params;
        if params.len() != wanted {
            return Err(WireError::sql(
                "08P01",
                format!("the statement has {wanted} parameters and got {}", params.len()),
            ));
        }
        // A prepared point read is over before anybody could see it run: it takes the shortest way.
        if let Some(plan) = prepared.fast.point_read(&self.router.catalog(), &self.settings.database) {
            let level = options.read_level.as_ref().unwrap_or(&self.settings.read_level);
            let ms = self.settings.patience_ms(options.deadline_ms);
            let deadline = started + Duration::from_millis(ms);
            let columns = Some(execute::labelled(plan.columns(), &prepared.parsed));
            let outcome = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(cancelled()),
                outcome = execute::point_read(&*self.router, &plan, level, deadline, &params, columns, sink) => outcome,
            };
            if let Some(mut done) = outcome? {
                done.elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                return Ok(done);
            }
        }
        let run = self.start(params, options, cancel);
        let _listed = self.engine.queries().enter(&run, &prepared.parsed.sql);
        let remaining = run.deadline.saturating_duration_since(started);
        let outcome = tokio::select! {
            biased;
            () = run.cancel.cancelled() => Err(run.stopped(cancelled())),
            outcome = tokio::time::timeout(remaining, Box::pin(dispatch::run(&run, &prepared, sink))) => {
                outcome.unwrap_or_else(|_| Err(run.stopped(timed_out(&run.settings, &run.options))))
            }
        };
        let mut done = outcome?;
        for (name, value) in &done.settings {
            Arc::make_mut(&mut self.settings).set(name, value)?;
        }
        done.elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        done.catalog = self.router.catalog().version;
        Ok(done)
    }
}

/// Parses a statement the way sessions do; for callers outside a session.
///
/// # Errors
/// As [`parse::parse`].
pub fn parse_statement(sql: &str) -> Result<Parsed, WireError> {
    parse::parse(sql)
}
