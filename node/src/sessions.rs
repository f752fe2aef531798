//! SQL sessions as the doors want them.

use std::sync::Arc;

use async_trait::async_trait;
use quorate_shared::error::WireError;
use quorate_shared::ids::SessionId;
use quorate_shared::limits::DATABASE_DEFAULT;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{ClientHello, Done, QueryOptions, SchemaInfo, TableInfo};
use tokio_util::sync::CancellationToken;

use crate::router::Router;
use crate::serve::{PreparedStatement, Sessions, Statements, schema};
use crate::sql::plan::SqlEngine;
use crate::sql::session::SqlSession;
use crate::sql::{Sink, system};

/// Opens SQL sessions on one node.
pub struct SqlSessions {
    router: Arc<dyn Router>,
    engine: Arc<SqlEngine>,
}

impl SqlSessions {
    /// All sessions share one planner.
    pub fn new(router: Arc<dyn Router>, engine: Arc<SqlEngine>) -> Self {
        Self { router, engine }
    }
}

struct Session(SqlSession);

impl Sessions for SqlSessions {
    fn open(&self, id: SessionId, hello: &ClientHello) -> Result<Box<dyn Statements>, WireError> {
        let database = hello.database.as_deref().filter(|d| !d.is_empty()).or(Some(DATABASE_DEFAULT));
        let (router, engine) = (self.router.clone(), self.engine.clone());
        Ok(Box::new(Session(SqlSession::new(router, engine, id, &hello.user, database, &hello.settings))))
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
    async fn run(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        options: &QueryOptions,
        cancel: CancellationToken,
        sink: &mut dyn Sink,
    ) -> Result<Done, WireError> {
        self.0.run(sql, params, options, cancel, sink).await
    }

    async fn prepare(&mut self, sql: &str) -> Result<PreparedStatement, WireError> {
        let info = self.0.prepare(sql).await?;
        Ok(PreparedStatement {
            statement: info.statement,
            params: info.params,
            columns: info.columns,
            writes: info.writes,
        })
    }

    async fn execute(
        &mut self,
        statement: u32,
        params: Vec<Value>,
        options: &QueryOptions,
        cancel: CancellationToken,
        sink: &mut dyn Sink,
    ) -> Result<Done, WireError> {
        self.0.execute(statement, params, options, cancel, sink).await
    }

    fn close(&mut self, statement: u32) {
        self.0.close(statement);
    }

    fn database(&self) -> String {
        self.0.settings().database.clone()
    }
}
