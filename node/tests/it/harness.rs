//! A session over a router without a cluster: SQL from text to values, in this process.

use std::sync::Arc;

use async_trait::async_trait;
use quorate_core::engine::Engine;
use quorate_node::router::Router;
use quorate_node::sql::local::LocalRouter;
use quorate_node::sql::plan::{EngineOptions, SqlEngine};
use quorate_node::sql::session::SqlSession;
use quorate_node::sql::{Execution, Sink};
use quorate_shared::error::WireError;
use quorate_shared::ids::{CatalogVersion, SessionId};
use quorate_shared::status::NodeKind;
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, QueryOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A whole answer.
#[derive(Default, Debug)]
pub struct Answer {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
    pub done: Done,
}

impl Answer {
    /// Its cells as text, NULL as `NULL`.
    pub fn texts(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(|r| r.iter().map(text).collect()).collect()
    }
}

/// A value as text, NULL as `NULL`.
pub fn text(value: &Value) -> String {
    if value.is_null() { "NULL".to_owned() } else { value.to_string() }
}

#[derive(Default)]
struct Collect {
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
}

#[async_trait]
impl Sink for Collect {
    async fn columns(&mut self, columns: Vec<Column>) -> Result<(), WireError> {
        self.columns = columns;
        Ok(())
    }
    async fn rows(&mut self, mut rows: Vec<Vec<Value>>) -> Result<(), WireError> {
        self.rows.append(&mut rows);
        Ok(())
    }
}

/// One session and all it needs.
pub struct Boxed {
    runtime: Runtime,
    pub session: SqlSession,
    jobs: JoinHandle<()>,
}

impl Boxed {
    /// On an engine, with database `main`.
    pub fn new(engine: &dyn Engine) -> Self {
        Self::with_kind(engine, NodeKind::Voter)
    }

    /// As a voter or as a replica.
    pub fn with_kind(engine: &dyn Engine, kind: NodeKind) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let router: Arc<dyn Router> = Arc::new(LocalRouter::with_kind(engine, kind).unwrap());
        let jobs = runtime.spawn(quorate_node::ddl::run_jobs(Arc::clone(&router)));
        if kind == NodeKind::Voter {
            // The jobs' task founds the catalog: database `main`.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
            runtime.block_on(router.catalog_at_least(CatalogVersion::new(1), deadline)).unwrap();
        }
        let engine = SqlEngine::new(&EngineOptions::default()).unwrap();
        let session = SqlSession::new(Arc::clone(&router), engine, SessionId::new(1), "tester", None, &[]);
        Self { runtime, session, jobs }
    }

    /// Runs one statement.
    pub fn run(&mut self, sql: &str) -> Result<Answer, WireError> {
        self.run_with(sql, Vec::new(), &QueryOptions::default())
    }

    /// Runs one statement with parameters.
    pub fn run_with(&mut self, sql: &str, params: Vec<Value>, options: &QueryOptions) -> Result<Answer, WireError> {
        let mut sink = Collect::default();
        let how = Execution { params, options, cancel: CancellationToken::new(), sink: &mut sink };
        let running = self.session.run(sql, how);
        let done = self.runtime.block_on(running)?;
        Ok(Answer { columns: sink.columns, rows: sink.rows, done })
    }

    /// Prepares and runs once.
    pub fn prepared(&mut self, sql: &str, params: Vec<Value>) -> Result<Answer, WireError> {
        let info = self.runtime.block_on(self.session.prepare(sql))?;
        let mut sink = Collect::default();
        let options = QueryOptions::default();
        let how = Execution { params, options: &options, cancel: CancellationToken::new(), sink: &mut sink };
        let running = self.session.execute(info.statement, how);
        let done = self.runtime.block_on(running)?;
        self.session.close(info.statement);
        Ok(Answer { columns: sink.columns, rows: sink.rows, done })
    }
}

impl Drop for Boxed {
    fn drop(&mut self) {
        self.jobs.abort();
    }
}

/// A folder of the data for tests; says visibly when it is missing.
pub fn shared_data(name: &str) -> Option<std::path::PathBuf> {
    let root = match std::env::var_os("QUORATE_SHARED") {
        Some(shared) => std::path::PathBuf::from(shared),
        None => std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
    };
    let dir = root.join("data").join(name);
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("SKIPPED: {} is missing", dir.display());
    None
}
