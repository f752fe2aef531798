//! SQL: from text to results. DataFusion plans and runs queries; everything else is taken from the parsed statement.

pub mod access;
pub mod as_of;
pub mod bind;
pub mod coerce;
pub mod convert;
pub mod dispatch;
pub mod errors;
pub mod execute;
pub mod explain;
pub mod fast;
pub mod functions;
pub mod insert;
pub mod local;
pub mod names;
pub mod offload;
pub mod parse;
pub mod plan;
pub mod provider;
pub mod queries;
pub mod reject;
pub mod returning;
pub mod rewrite;
pub mod scan;
pub mod select;
pub mod session;
pub mod settings;
pub mod show;
pub mod system;
pub mod update;
pub mod write;

use async_trait::async_trait;
use quorate_shared::error::WireError;
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, QueryOptions};
use tokio_util::sync::CancellationToken;

/// Stack of every thread that runs statements: an expression of `OPERATORS_MAX` operators is a tree as deep, and walking
/// and dropping it recurses. Only what is touched takes memory.
pub const STACK_BYTES: usize = 16 << 20;

/// Where a statement's rows go. Awaiting is back-pressure: a client that stops reading stops the scan.
#[async_trait]
pub trait Sink: Send {
    /// The result's columns; called once, before rows.
    async fn columns(&mut self, columns: Vec<Column>) -> Result<(), WireError>;
    /// Rows, in batches of at most `BATCH_ROWS_MAX`.
    async fn rows(&mut self, rows: Vec<Vec<Value>>) -> Result<(), WireError>;
}

/// How one statement is run.
pub struct Execution<'a> {
    /// Values of its placeholders.
    pub params: Vec<Value>,
    /// Read level, deadline and the like.
    pub options: &'a QueryOptions,
    /// Stops it.
    pub cancel: CancellationToken,
    /// Where its rows go; they are void when it fails.
    pub sink: &'a mut dyn Sink,
}
