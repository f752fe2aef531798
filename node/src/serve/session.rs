//! One client's connection: reads requests, runs them in order, writes results; all in one task.
//!
//! The task is a hand-written poll: frames that have come in, the statement that runs, frames that wait to be written,
//! round and round until nothing moves. So credit, cancel and ping are served while a statement runs, a point read costs
//! no hop between tasks, and everything that piled up leaves with one write.
//!
//! Invariants: one request runs at a time, in the order they came; what a client can pile up is bounded (requests sent
//! ahead, their bytes, unread results); a panic below a statement ends this session only.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use quorate_shared::admin::{AdminAction, AdminEvent};
use quorate_shared::codec::{CodecError, Connection, FrameReader, decode};
use quorate_shared::error::{Code, WireError};
use quorate_shared::limits::{FRAME_BYTES_MAX, PIPELINE_MAX, UNREAD_MS_MAX};
use quorate_shared::wire::{ClientFrame, Column, Done, Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::outbox::{OUT_BYTES_MAX, Outbox, Rows};
use super::registry::{Handle, Open};
use super::tcp::Door;
use super::{ArchiveNote, Statements, Stream, StreamSink};
use crate::sql::Execution;
use crate::sql::session::PreparedInfo;

/// How often somebody who watches is looked at for whether the node stops.
const WATCH_LOOK: Duration = Duration::from_millis(250);

/// Events of an action that wait to be sent; the action waits beyond.
const ADMIN_EVENTS: usize = 64;

/// Why a session ended.
#[derive(Debug)]
pub enum End {
    /// The client closed.
    Closed,
    /// The node stops.
    Drained,
    /// The stream or what came over it cannot be used.
    Broken(CodecError),
    /// The client has not read for [`UNREAD_MS_MAX`].
    Unread,
    /// A statement panicked: our bug.
    Panicked,
}

type Running = Pin<Box<dyn Future<Output = Option<Box<Sql>>> + Send>>;

/// The SQL side, moved into the running request and back.
struct Sql {
    statements: Box<dyn Statements>,
    /// Columns of prepared statements: what the client knows need not be sent again.
    prepared: BTreeMap<u32, Arc<[Column]>>,
}

/// See the module.
pub struct Session {
    door: Arc<Door>,
    handle: Arc<Handle>,
    _open: Open,
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    queue: VecDeque<(u64, Request, usize)>,
    /// Bytes of the frames in the queue.
    queue_bytes: usize,
    running: Option<Running>,
    sql: Option<Box<Sql>>,
    /// Runs while written bytes do not get through.
    stalled: Option<(usize, Pin<Box<Sleep>>)>,
    /// Nothing is read until what waits has been written.
    held_back: bool,
    end: Option<End>,
}

impl Session {
    /// A session on a connection whose greeting has been sent.
    pub(super) fn new(door: Arc<Door>, open: Open, connection: Connection, statements: Box<dyn Statements>) -> Self {
        let Connection { reader, writer, .. } = connection;
        Self {
            door,
            handle: Arc::clone(&open.handle),
            _open: open,
            reader,
            writer: writer.into_inner(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            running: None,
            sql: Some(Box::new(Sql { statements, prepared: BTreeMap::new() })),
            stalled: None,
            held_back: false,
            end: None,
        }
    }

    /// Serves the client until it goes.
    pub async fn serve(mut self) -> End {
        let end = std::future::poll_fn(|cx| self.poll(cx)).await;
        self.running = None;
        if !matches!(end, End::Unread) {
            let last_words = async {
                std::future::poll_fn(|cx| self.handle.outbox.poll_write(&mut self.writer, cx)).await?;
                self.writer.shutdown().await
            };
            // The client may be gone; nothing depends on these words.
            let _ = tokio::time::timeout(Duration::from_secs(1), last_words).await;
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut moved = self.poll_frames(cx);
            moved |= self.poll_running(cx);
            if let Some(end) = self.poll_write(cx) {
                return Poll::Ready(end);
            }
            if self.held_back && self.handle.outbox.waiting() == 0 {
                self.held_back = false;
                moved = true;
            }
            if self.running.is_none() && self.queue.is_empty() {
                if let Some(end) = self.end.take() {
                    return Poll::Ready(end);
                }
                if self.door.registry.draining() {
                    return Poll::Ready(End::Drained);
                }
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Takes in what has come. Returns whether anything did.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while self.end.is_none() {
            self.held_back = self.handle.outbox.waiting() > OUT_BYTES_MAX;
            if self.held_back {
                // Answers to controls need no credit: who sends them without reading is not read either.
                return moved;
            }
            let end = match self.reader.poll_frame(cx) {
                Poll::Pending => return moved,
                Poll::Ready(Ok(Some(frame))) => match self.take(&frame) {
                    Ok(()) => {
                        moved = true;
                        continue;
                    }
                    Err(error) => End::Broken(error),
                },
                Poll::Ready(Ok(None)) => End::Closed,
                Poll::Ready(Err(error)) => End::Broken(error),
            };
            if let End::Broken(error) = &end {
                let error = WireError::new(Code::Invalid, error.to_string()).hint("the connection is closed");
                let _ = self.handle.outbox.push(0, Response::Error(error));
            }
            // Nobody is there to hear the answers: what runs is dropped, what waits is not begun.
            self.running = None;
            self.queue.clear();
            self.end = Some(end);
            moved = true;
        }
        moved
    }

    /// Takes in one frame: controls are served at once, requests wait for their turn.
    fn take(&mut self, frame: &Bytes) -> Result<(), CodecError> {
        let ClientFrame { request, body } = decode(frame)?;
        let outbox = &self.handle.outbox;
        match body {
            Request::Credit { request, batches } => outbox.add_credit(request, batches),
            Request::Ping => {
                let _ = outbox.push(request, empty());
            }
            Request::Cancel { session, key, request: stop } => {
                let answer = if self.door.registry.cancel(session, key, stop) {
                    empty()
                } else {
                    Response::Error(WireError::new(Code::NotFound, "no such session, or the wrong key"))
                };
                let _ = outbox.push(request, answer);
            }
            body => {
                let full = self.queue.len() >= PIPELINE_MAX || self.queue_bytes + frame.len() > FRAME_BYTES_MAX;
                if full && !self.queue.is_empty() {
                    let error = WireError::new(Code::Busy, "too many requests were sent ahead");
                    let _ = outbox.push(request, Response::Error(error.hint("wait for answers")));
                } else {
                    self.queue_bytes += frame.len();
                    self.queue.push_back((request, body, frame.len()));
                }
            }
        }
        Ok(())
    }

    /// Goes on with the running request, and with those behind it. Returns whether one ended.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            if self.running.is_none() && !self.start_next() {
                return moved;
            }
            let Some(running) = &mut self.running else { return moved };
            let Poll::Ready(sql) = running.as_mut().poll(cx) else { return moved };
            moved = true;
            self.running = None;
            self.handle.end();
            self.sql = sql;
            if self.sql.is_none() {
                self.queue.clear();
                self.end = Some(End::Panicked);
            }
        }
    }

    /// Starts the next request, if there is one.
    fn start_next(&mut self) -> bool {
        if self.door.registry.draining() && !self.queue.is_empty() {
            for (request, ..) in self.queue.drain(..) {
                let error = WireError::new(Code::Retry, "the node is shutting down");
                let _ = self.handle.outbox.push(request, Response::Error(error));
            }
        }
        if self.sql.is_none() {
            return false;
        }
        let Some((request, body, bytes)) = self.queue.pop_front() else {
            self.queue_bytes = 0;
            return false;
        };
        self.queue_bytes = self.queue_bytes.saturating_sub(bytes);
        let Some(sql) = self.sql.take() else { return false };
        let cancel = self.handle.start(request);
        let call = Call { door: Arc::clone(&self.door), handle: Arc::clone(&self.handle), request, cancel };
        self.running = Some(Box::pin(call.guarded(sql, body)));
        true
    }

    /// Writes what waits; an end if that fails or does not get on.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Option<End> {
        match self.handle.outbox.poll_write(&mut self.writer, cx) {
            Poll::Ready(Ok(())) => {
                self.stalled = None;
                None
            }
            Poll::Ready(Err(error)) => Some(End::Broken(error.into())),
            Poll::Pending => {
                let waiting = self.handle.outbox.waiting();
                let progress = self.stalled.as_ref().is_none_or(|(before, _)| waiting < *before);
                if progress {
                    let limit = Duration::from_millis(UNREAD_MS_MAX);
                    self.stalled = Some((waiting, Box::pin(tokio::time::sleep(limit))));
                }
                let (before, timer) = self.stalled.as_mut()?;
                *before = waiting;
                ready_end(timer.as_mut().poll(cx))
            }
        }
    }
}

fn ready_end(timer: Poll<()>) -> Option<End> {
    timer.is_ready().then_some(End::Unread)
}

/// An answer that says only "done".
fn empty() -> Response {
    Response::Batch { columns: Some(Vec::new()), rows: Vec::new(), done: Some(Done::default()) }
}

/// One request being run.
struct Call {
    door: Arc<Door>,
    handle: Arc<Handle>,
    request: u64,
    cancel: CancellationToken,
}

impl Call {
    /// Runs it; `None` if it panicked.
    async fn guarded(self, sql: Box<Sql>, body: Request) -> Option<Box<Sql>> {
        let (handle, request) = (Arc::clone(&self.handle), self.request);
        let run = AssertUnwindSafe(self.run(sql, body)).catch_unwind();
        match run.await {
            Ok(sql) => Some(sql),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
                tracing::error!(session = handle.id.get(), request, panic = text, "a statement panicked");
                let error = WireError::new(Code::Internal, "the statement hit a bug in the server").detail(text);
                let _ = handle.outbox.push(request, Response::Error(error.hint("the session is closed; others go on")));
                None
            }
        }
    }

    async fn run(self, mut sql: Box<Sql>, body: Request) -> Box<Sql> {
        let result = match body {
            Request::Status => {
                let status = self.door.router.picture().await;
                self.handle.outbox.push(self.request, Response::Status(Box::new(status)))
            }
            Request::Watch { every_ms } => self.watch(Duration::from_millis(every_ms.max(100))).await,
            Request::Admin { action, dry_run } => self.act(action, dry_run).await,
            Request::Schema => self.handle.outbox.push(self.request, Response::Schema(self.door.sessions.schema())),
            _ if !self.handle.full => Err(crowded()),
            Request::Feed { table, from, credit } => {
                let database = sql.statements.database();
                self.stream(credit, Stream::Feed { database, table, from }).await
            }
            Request::Archive { shard, after, once, credit } => {
                self.stream(credit, Stream::Archive { shard, after, once }).await
            }
            Request::Archived(report) => self.note(ArchiveNote::Report(report)).await,
            Request::ForgetArchive { id } => self.note(ArchiveNote::Forget(id)).await,
            body => self.statement(&mut sql, body).await,
        };
        if let Err(error) = result {
            let _ = self.handle.outbox.push(self.request, Response::Error(error));
        }
        sql
    }

    async fn statement(&self, sql: &mut Sql, body: Request) -> Result<(), WireError> {
        let outbox = &*self.handle.outbox;
        let started = Instant::now();
        match body {
            Request::Query { sql: text, params, options } => {
                self.check_cancelled()?;
                outbox.begin(self.request, options.credit);
                let mut rows = Rows::new(outbox, self.request, None);
                let how = Execution { params, options: &options, cancel: self.cancel.clone(), sink: &mut rows };
                let result = sql.statements.run(&text, how).await;
                self.finished(started, result, rows)
            }
            Request::Execute { statement, params, options } => {
                self.check_cancelled()?;
                outbox.begin(self.request, options.credit);
                let known = sql.prepared.get(&statement).cloned();
                let mut rows = Rows::new(outbox, self.request, Some(known.as_deref().unwrap_or_default()));
                let how = Execution { params, options: &options, cancel: self.cancel.clone(), sink: &mut rows };
                let result = sql.statements.execute(statement, how).await;
                self.finished(started, result, rows)
            }
            Request::Prepare { sql: text } => {
                let PreparedInfo { statement, params, columns, writes } = sql.statements.prepare(&text).await?;
                sql.prepared.insert(statement, columns.clone().into());
                outbox.push(self.request, Response::Prepared { statement, params, columns, writes })
            }
            Request::Close { statement } => {
                sql.prepared.remove(&statement);
                sql.statements.close(statement);
                outbox.push(self.request, empty())
            }
            _ => Err(WireError::new(Code::Internal, "this request is not a statement")),
        }
    }

    /// Runs a stream under credit until it fails or is cancelled. A drain ends it without an answer: the connection
    /// closes, and the client goes on elsewhere.
    async fn stream(&self, credit: u32, stream: Stream) -> Result<(), WireError> {
        let sink = Parts { outbox: &self.handle.outbox, request: self.request };
        let streams = self.door.streams()?;
        self.handle.outbox.begin(self.request, credit);
        let drained = async {
            while !self.door.registry.draining() {
                tokio::time::sleep(WATCH_LOOK).await;
            }
        };
        tokio::select! {
            () = self.cancel.cancelled() => self.handle.outbox.push(self.request, empty()),
            () = drained => Ok(()),
            result = streams.run(stream, &sink) => result,
        }
    }

    async fn note(&self, note: ArchiveNote) -> Result<(), WireError> {
        self.door.streams()?.note(note).await?;
        self.handle.outbox.push(self.request, empty())
    }

    fn check_cancelled(&self) -> Result<(), WireError> {
        if self.cancel.is_cancelled() {
            return Err(WireError::sql("57014", "the statement was cancelled before it began"));
        }
        Ok(())
    }

    fn finished(&self, started: Instant, result: Result<Done, WireError>, rows: Rows<'_>) -> Result<(), WireError> {
        self.door.reports.counters().statements.fetch_add(1, Ordering::Relaxed);
        self.door.meters.statement(started.elapsed(), result.as_ref().err().map(|error| error.code));
        rows.finish(result?)
    }

    /// Sends what an action says. It goes on when nobody listens any more: a client that goes, or cancels, stops only
    /// hearing of it.
    async fn act(&self, action: AdminAction, dry_run: bool) -> Result<(), WireError> {
        if let Some(error) = self.door.router.not_here(&action).filter(|_| !dry_run) {
            return Err(error);
        }
        let name = action.name();
        let (sender, mut events) = mpsc::channel(ADMIN_EVENTS);
        self.door.router.act(action, dry_run, sender);
        let mut ended = false;
        loop {
            let event = tokio::select! {
                () = self.cancel.cancelled() => {
                    return Err(WireError::new(Code::Unknown, format!("nobody waits for `{name}` any more; it goes on")));
                }
                event = events.recv() => event,
            };
            let Some(event) = event else { break };
            ended = match &event {
                AdminEvent::Plan(plan) => dry_run || !plan.refusals.is_empty(),
                AdminEvent::Step { .. } => false,
                AdminEvent::Outcome(_) => true,
            };
            self.handle.outbox.push(self.request, Response::Admin { event, last: ended })?;
            if ended {
                break;
            }
        }
        if ended {
            return Ok(());
        }
        let message = format!("`{name}` ended without an outcome");
        Err(WireError::new(Code::Internal, message).hint("`quorate status` shows how the cluster is"))
    }

    /// Sends the picture again and again, until cancelled. A drain ends it without an answer: the connection closes.
    async fn watch(&self, every: Duration) -> Result<(), WireError> {
        let watched = async {
            while !self.door.registry.draining() {
                // A client that does not read gets no pictures piled up for it.
                if self.handle.outbox.waiting() == 0 {
                    let status = self.door.router.picture().await;
                    self.handle.outbox.push(self.request, Response::Status(Box::new(status)))?;
                }
                let next = Instant::now() + every;
                while Instant::now() < next && !self.door.registry.draining() {
                    tokio::time::sleep(next.saturating_duration_since(Instant::now()).min(WATCH_LOOK)).await;
                }
            }
            Ok(())
        };
        tokio::select! {
            () = self.cancel.cancelled() => self.handle.outbox.push(self.request, empty()),
            result = watched => result,
        }
    }
}

/// The parts of a stream, on their way to the client.
struct Parts<'a> {
    outbox: &'a Outbox,
    request: u64,
}

#[async_trait]
impl StreamSink for Parts<'_> {
    async fn send(&self, part: Response) -> Result<(), WireError> {
        self.outbox.push_batch(self.request, part).await
    }
}

fn crowded() -> WireError {
    WireError::new(Code::Busy, format!("this node has {} sessions already", quorate_shared::limits::SESSIONS_MAX))
        .hint("close some, or connect to another node; status and cancel still work here")
}

#[cfg(test)]
mod tests;
