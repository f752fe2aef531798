//! Results: streamed under credit, or collected; prepared statements; the watched picture.

use std::sync::Arc;
use std::time::Duration;

use super::stream::Stream;
use super::{Attempt, Client, ClientError};
use crate::error::{Code, WireError};
use crate::status::ClusterStatus;
use crate::value::{SqlType, Value};
use crate::wire::{Column, Done, QueryOptions, Request, Response};

/// Batches a server may send ahead when the options name no number.
pub(crate) const CREDIT_DEFAULT: u32 = 16;

/// The first frame of an answer.
pub(super) struct First {
    pub(super) request: u64,
    pub(super) response: Response,
}

/// What the client keeps of a prepared statement.
pub(super) struct Slot {
    pub(super) sql: String,
    pub(super) number: u32,
    pub(super) generation: u64,
    pub(super) columns: Arc<[Column]>,
    pub(super) writes: bool,
}

/// A prepared statement of one [`Client`].
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) slot: usize,
    /// Types of its placeholders, where known.
    pub params: Vec<Option<SqlType>>,
    /// Columns of its result; empty if it has none.
    pub columns: Arc<[Column]>,
    /// Whether it writes.
    pub writes: bool,
}

/// A whole result.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ResultSet {
    /// Its columns; empty for a statement without a result.
    pub columns: Vec<Column>,
    /// Its rows.
    pub rows: Vec<Vec<Value>>,
    /// How it ended.
    pub done: Done,
}

/// A result as it comes. Dropping it before its end stops the statement with the next request.
#[derive(Debug)]
pub struct ResultStream<'a> {
    client: &'a mut Client,
    request: u64,
    writes: bool,
    columns: Arc<[Column]>,
    rows: Vec<Vec<Value>>,
    done: Option<Done>,
    /// Nothing more comes: the end was seen, or it failed.
    ended: bool,
    /// Batches taken since the server last got credit.
    taken: u32,
}

impl<'a> ResultStream<'a> {
    pub(super) fn new(
        client: &'a mut Client,
        first: First,
        writes: bool,
        known: Option<Arc<[Column]>>,
    ) -> Result<Self, ClientError> {
        let Response::Batch { columns, rows, done } = first.response else {
            return Err(client.out_of_step("query"));
        };
        let columns = columns.map(Arc::from).or(known).unwrap_or_else(|| Arc::from([]));
        let ended = done.is_some();
        if let Some(done) = &done {
            client.finish(done);
        }
        Ok(Self { client, request: first.request, writes, columns, rows, done, ended, taken: 1 })
    }

    /// The result's columns; empty for a statement without a result.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<Vec<Value>>>, ClientError> {
        loop {
            if !self.rows.is_empty() {
                return Ok(Some(std::mem::take(&mut self.rows)));
            }
            if self.ended {
                return Ok(None);
            }
            self.receive().await?;
        }
    }

    /// How it ended; `None` before the last rows were taken.
    pub fn done(&self) -> Option<&Done> {
        self.done.as_ref()
    }

    /// Takes everything that is left.
    pub async fn collect(mut self) -> Result<ResultSet, ClientError> {
        let mut rows = std::mem::take(&mut self.rows);
        while let Some(more) = self.next().await? {
            rows.extend(more);
        }
        Ok(ResultSet { columns: self.columns.to_vec(), rows, done: self.done.take().unwrap_or_default() })
    }

    /// Takes and forgets everything that is left.
    pub async fn finish(mut self) -> Result<Done, ClientError> {
        while self.next().await?.is_some() {}
        Ok(self.done.take().unwrap_or_default())
    }

    async fn receive(&mut self) -> Result<(), ClientError> {
        let answer = self.receive_frame().await;
        match answer {
            Ok(Response::Batch { rows, done, .. }) => {
                if let Some(done) = &done {
                    self.client.finish(done);
                }
                self.rows = rows;
                self.ended = done.is_some();
                self.done = done;
                Ok(())
            }
            Ok(Response::Error(error)) => {
                self.ended = true;
                Err(error.into())
            }
            Ok(_) => {
                self.ended = true;
                Err(self.client.out_of_step("query"))
            }
            Err(reason) => {
                self.ended = true;
                self.client.lose(&reason);
                Err(broken(&reason, self.writes))
            }
        }
    }

    async fn receive_frame(&mut self) -> Result<Response, String> {
        let text = |attempt| match attempt {
            Attempt::Lost(reason) | Attempt::Unsendable(reason) => reason,
            Attempt::Late => "no answer in time".to_owned(),
        };
        let Some(link) = &mut self.client.link else { return Err("not connected".into()) };
        if self.taken >= CREDIT_DEFAULT / 2 {
            link.credit(self.request, std::mem::take(&mut self.taken)).await.map_err(text)?;
        }
        self.taken += 1;
        link.receive(self.request, None).await.map_err(text)
    }
}

impl Drop for ResultStream<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Some(link) = &mut self.client.link
        {
            link.abandoned = Some(self.request);
        }
    }
}

/// The connection broke in the middle of a result: it cannot be repeated, rows are out already.
fn broken(reason: &str, writes: bool) -> ClientError {
    let code = if writes { Code::Unknown } else { Code::Retry };
    let error = WireError::new(code, "the connection was lost in the middle of the result");
    error.detail(reason).hint("the rows so far are not the whole result").into()
}

/// The cluster's picture, again and again.
#[derive(Debug)]
pub struct Watch<'a> {
    stream: Stream<'a>,
    every: Duration,
}

impl<'a> Watch<'a> {
    pub(super) fn new(client: &'a mut Client, every: Duration) -> Self {
        Self { stream: Stream::new(client, "watch"), every }
    }

    /// The next picture. After an error it may be called again: it subscribes anew, at another node if need be.
    pub async fn next(&mut self) -> Result<ClusterStatus, ClientError> {
        let every_ms = (self.every.as_millis() as u64).max(1);
        // Pictures come without credit.
        let body = |_| Request::Watch { every_ms };
        let part = |response| match response {
            Response::Status(status) => Some(*status),
            _ => None,
        };
        self.stream.next(body, part).await
    }
}

/// The options of a read at whatever state is here.
impl QueryOptions {
    /// With a read level.
    #[must_use]
    pub fn read_level(mut self, level: crate::wire::ReadLevel) -> Self {
        self.read_level = Some(level);
        self
    }

    /// With a deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline_ms = (deadline.as_millis() as u64).max(1);
        self
    }
}
