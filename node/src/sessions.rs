//! SQL sessions as the doors want them.

use std::sync::Arc;

use async_trait::async_trait;
use quorate_shared::error::WireError;
use quorate_shared::ids::SessionId;
use quorate_shared::limits::{DATABASE_DEFAULT, DATABASE_SYSTEM};
use quorate_shared::value::SqlType;
use quorate_shared::wire::{ClientHello, Done, SchemaInfo, TableInfo};

use crate::forward::Forwarder;
use crate::router::Router;
use crate::serve::{Sessions, Statements, schema};
use crate::sql::plan::SqlEngine;
use crate::sql::session::{PreparedInfo, SqlSession};
use crate::sql::{Execution, system};

/// A name this much like another is worth a hint.
const ALIKE: f64 = 0.7;
/// What a statement about the system tables contains.
const SYSTEM_TABLES: &str = "quorate.";

/// Opens SQL sessions on one node.
pub struct SqlSessions {
    forwarder: Arc<Forwarder>,
    router: Arc<dyn Router>,
    engine: Arc<SqlEngine>,
}

impl SqlSessions {
    /// All sessions share one planner.
    pub fn new(forwarder: Arc<Forwarder>, router: Arc<dyn Router>, engine: Arc<SqlEngine>) -> Self {
        Self { forwarder, router, engine }
    }

    /// Refuses a database that is not there, as far as this node's catalog goes. Before the catalog's first database
    /// nothing is there, so nothing is refused.
    fn check_database(&self, name: &str) -> Result<(), WireError> {
        let catalog = self.router.catalog();
        let folded = name.to_lowercase();
        let known = catalog.databases.contains_key(&folded) || folded == DATABASE_SYSTEM || folded == DATABASE_DEFAULT;
        if known || catalog.databases.is_empty() {
            return Ok(());
        }
        let alike = catalog.databases.iter().map(|(have, desc)| (strsim::jaro_winkler(have, &folded), desc));
        let nearest = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
        let error = WireError::sql("3D000", format!("database \"{name}\" does not exist"));
        Err(match nearest {
            Some((_, desc)) => error.hint(format!("did you mean \"{}\"?", desc.name)),
            None => error.hint("SHOW DATABASES lists them"),
        })
    }
}

struct Session {
    sql: SqlSession,
    forwarder: Arc<Forwarder>,
}

impl Session {
    /// A node without a replica has no catalog either: it says why, rather than that nothing exists. The system tables
    /// need neither.
    fn check(&self, sql: &str) -> Result<(), WireError> {
        let has_catalog = self.forwarder.driver().is_some_and(|driver| driver.catalog().counters.is_some());
        if has_catalog || sql.contains(SYSTEM_TABLES) { Ok(()) } else { Err(self.forwarder.unavailable()) }
    }
}

impl Sessions for SqlSessions {
    fn open(&self, id: SessionId, hello: &ClientHello) -> Result<Box<dyn Statements>, WireError> {
        let database = hello.database.as_deref().filter(|d| !d.is_empty()).or(Some(DATABASE_DEFAULT));
        database.map_or(Ok(()), |name| self.check_database(name))?;
        let (router, engine) = (self.router.clone(), self.engine.clone());
        let sql = SqlSession::new(router, engine, id, &hello.user, database, &hello.settings);
        Ok(Box::new(Session { sql, forwarder: self.forwarder.clone() }))
    }

    fn schema(&self) -> SchemaInfo {
        let type_name = |ty: &SqlType| ty.to_string();
        let system = system::NAMES
            .into_iter()
            .map(|name| {
                let columns = system::columns(name).unwrap_or_default();
                TableInfo {
                    name: name.into(),
                    kind: "system".into(),
                    columns: columns.iter().map(|(column, ty)| ((*column).to_owned(), type_name(ty))).collect(),
                    ..TableInfo::default()
                }
            })
            .collect();
        schema::schema_of(&self.router.catalog(), system, self.engine.functions())
    }
}

#[async_trait]
impl Statements for Session {
    async fn run(&mut self, sql: &str, how: Execution<'_>) -> Result<Done, WireError> {
        self.check(sql)?;
        self.sql.run(sql, how).await
    }

    async fn prepare(&mut self, sql: &str) -> Result<PreparedInfo, WireError> {
        self.check(sql)?;
        self.sql.prepare(sql).await
    }

    async fn execute(&mut self, statement: u32, how: Execution<'_>) -> Result<Done, WireError> {
        self.sql.execute(statement, how).await
    }

    fn close(&mut self, statement: u32) {
        self.sql.close(statement);
    }

    fn database(&self) -> String {
        self.sql.settings().database.clone()
    }
}
