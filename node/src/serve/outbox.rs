//! What a session has to say: frames that wait to be written, and the credit its client has given.
//!
//! The session's task writes it and, polling its statement, fills it; the lock is there because others may look and
//! wake, and is never held across an await.
//!
//! Invariants: no more than `OUT_BYTES_MAX` and one frame wait; without credit no batch is added.

use std::future::poll_fn;
use std::io;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use quorate_shared::codec::Frames;
use quorate_shared::error::{Code, WireError};
use quorate_shared::limits::{BATCH_BYTES_MAX, BATCH_ROWS_MAX, UNREAD_MS_MAX};
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, Response, ServerFrame};
use tokio::io::AsyncWrite;

use super::registry::lock;
use crate::sql::Sink;

/// Bytes that may wait before a statement has to.
pub(super) const OUT_BYTES_MAX: usize = 2 << 20;
/// Batches a client may be sent when it names no number.
const CREDIT_DEFAULT: u32 = 16;
/// Rows collected before a batch is sent although the statement goes on.
const ROWS_HELD: usize = 256;

/// See the module.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    frames: Frames,
    credit: u32,
    /// The request the credit is for.
    request: u64,
    /// The statement, waiting for credit or room.
    statement: Option<Waker>,
    /// The session's task.
    session: Option<Waker>,
}

impl Outbox {
    /// Adds a frame that needs no credit.
    pub fn push(&self, request: u64, body: Response) -> Result<(), WireError> {
        let mut state = lock(&self.state);
        // No wake: only the session's own task comes here, and it writes before it sleeps.
        state.frames.push(&ServerFrame { request, body }).map_err(|error| unsendable(&error))
    }

    /// A request begins with so much credit.
    pub(super) fn begin(&self, request: u64, credit: u32) {
        let mut state = lock(&self.state);
        state.request = request;
        state.credit = if credit == 0 { CREDIT_DEFAULT } else { credit };
    }

    /// The client takes more batches. Credit for another request came too late.
    pub(super) fn add_credit(&self, request: u64, batches: u32) {
        let mut state = lock(&self.state);
        if state.request == request {
            state.credit = state.credit.saturating_add(batches);
            wake(&state.statement);
        }
    }

    /// Writes what waits.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(&self, io: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.state);
        if !state.session.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.session = Some(cx.waker().clone());
        }
        if state.frames.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let written = state.frames.poll_write(io, cx);
        if state.frames.len() < OUT_BYTES_MAX {
            wake(&state.statement);
        }
        written
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.state).frames.len()
    }

    /// Makes the session's task look around.
    pub(super) fn wake_session(&self) {
        wake(&lock(&self.state).session);
    }

    /// Adds a batch once there is credit and room.
    pub(super) async fn push_batch(&self, request: u64, body: Response) -> Result<(), WireError> {
        let ready = poll_fn(|cx| {
            let mut state = lock(&self.state);
            if state.credit > 0 && state.frames.len() < OUT_BYTES_MAX {
                state.credit -= 1;
                state.statement = None;
                return Poll::Ready(());
            }
            if !state.statement.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.statement = Some(cx.waker().clone());
            }
            Poll::Pending
        });
        tokio::time::timeout(Duration::from_millis(UNREAD_MS_MAX), ready).await.map_err(|_| unread())?;
        self.push(request, body)
    }
}

fn wake(waker: &Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake_by_ref();
    }
}

fn unread() -> WireError {
    let message = format!("the result was left unread for {} s and is closed", UNREAD_MS_MAX / 1000);
    WireError { sqlstate: Some("57014".into()), ..WireError::new(Code::Invalid, message) }
        .hint("read results as they come, or ask for fewer rows (LIMIT)")
}

fn unsendable(error: &quorate_shared::codec::CodecError) -> WireError {
    WireError::sql("54000", format!("the result does not fit a frame: {error}")).hint("select fewer or shorter values")
}

/// Where a statement's rows go: collected into batches, the last of which carries the end as well.
pub struct Rows<'a> {
    outbox: &'a Outbox,
    request: u64,
    /// Columns the client knows already from `Prepared`.
    known: Option<&'a [Column]>,
    /// To be sent with the next batch. `None`: the client knows them.
    columns: Option<Vec<Column>>,
    held: Vec<Vec<Value>>,
    held_bytes: usize,
}

impl<'a> Rows<'a> {
    /// For a request; `known` are the columns of the prepared statement it executes.
    pub fn new(outbox: &'a Outbox, request: u64, known: Option<&'a [Column]>) -> Self {
        let columns = if known.is_some() { None } else { Some(Vec::new()) };
        Self { outbox, request, known, columns, held: Vec::new(), held_bytes: 0 }
    }

    /// The statement has ended: sends what is held and the end.
    pub fn finish(self, done: Done) -> Result<(), WireError> {
        let body = Response::Batch { columns: self.columns, rows: self.held, done: Some(done) };
        self.outbox.push(self.request, body)
    }

    async fn send_held(&mut self) -> Result<(), WireError> {
        let rows = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        let body = Response::Batch { columns: self.columns.take(), rows, done: None };
        self.outbox.push_batch(self.request, body).await
    }
}

#[async_trait]
impl Sink for Rows<'_> {
    async fn columns(&mut self, columns: Vec<Column>) -> Result<(), WireError> {
        self.columns = if self.known == Some(columns.as_slice()) { None } else { Some(columns) };
        Ok(())
    }

    async fn rows(&mut self, rows: Vec<Vec<Value>>) -> Result<(), WireError> {
        if self.held.is_empty() && rows.len() <= ROWS_HELD {
            // The usual short result: taken as it is, without a copy.
            let bytes: usize = rows.iter().map(|row| row_bytes(row)).sum();
            if bytes <= BATCH_BYTES_MAX {
                self.held_bytes = bytes;
                self.held = rows;
                return Ok(());
            }
        }
        for row in rows {
            let bytes = row_bytes(&row);
            let full = self.held.len() >= BATCH_ROWS_MAX || self.held_bytes + bytes > BATCH_BYTES_MAX;
            if full && !self.held.is_empty() {
                self.send_held().await?;
            }
            self.held_bytes += bytes;
            self.held.push(row);
        }
        if self.held.len() > ROWS_HELD {
            self.send_held().await?;
        }
        Ok(())
    }
}

/// About how many bytes a row takes on the wire, rather too many than too few.
pub(crate) fn row_bytes(row: &[Value]) -> usize {
    row.iter().map(value_bytes).sum::<usize>() + 4
}

fn value_bytes(value: &Value) -> usize {
    11 + match value {
        Value::Text(text) | Value::Json(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Decimal(_) | Value::Interval(_) => 20,
        Value::Uuid(_) => 16,
        _ => 0,
    }
}
