//! The client: one session, followed over the loss of nodes, every statement executed at most once.
//!
//! A [`Client`] owns its connection and uses it directly: a request is one write, its answer one read, without a task
//! in between. It stays on the node it was given while that node lives. When the connection is lost it goes to another
//! voter, the master first, restores the session's settings and prepared statements, and sends the same statement again
//! under the same [`WriteId`], until the deadline. A session on a read replica never turns into one on a voter.
//!
//! Invariants: nothing is ever sent again under a new id; a statement whose rows were delivered in part is never
//! repeated; [`Code::Unknown`] is reported only for a statement that may write, was sent, and got no answer in time.
//!
//! Left out: several requests at once on one connection. Who wants that opens several clients.

mod admin;
mod archive;
mod cancel;
mod feed;
mod link;
mod result;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::codec::CodecError;
use crate::error::{Code, WireError};
use crate::ids::{ClientId, NodeId, WriteId};
use crate::status::{ClusterStatus, NodeKind};
use crate::url::Address;
use crate::value::Value;
use crate::wire::{Done, NodeAddress, QueryOptions, Request, Response, SchemaInfo, Welcome};

pub use admin::AdminEnd;
pub use archive::Archive;
pub use cancel::CancelHandle;
pub use feed::Feed;
pub use result::{Prepared, ResultSet, ResultStream, Watch};

use cancel::CancelState;
use link::Link;
use result::First;

/// SQLSTATE of a statement stopped on request.
pub const SQLSTATE_CANCELED: &str = "57014";
/// SQLSTATE of a prepared statement that the session does not have.
pub const SQLSTATE_NO_STATEMENT: &str = "26000";
/// An answer `unknown` is asked for again this long: a duplicate of a committed write gets its result.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(10);
/// A node that answers nothing but `retry` for so long is left for another one.
const RETRY_STAY: Duration = Duration::from_secs(3);

/// Where a client may go when its node is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// To any other known voter (a session on a voter), or to the other configured replicas (one on a replica).
    #[default]
    Follow,
    /// Only to the configured hosts.
    Stay,
    /// To any known node, voter or replica: for readers of streams, which every node serves.
    Anywhere,
}

/// What a client is made with.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Tried in order.
    pub hosts: Vec<Address>,
    /// User name.
    pub user: String,
    /// Database to begin in; `None`: the server's default.
    pub database: Option<String>,
    /// Settings to begin with.
    pub settings: Vec<(String, String)>,
    /// Program and version, shown in `quorate.queries`.
    pub agent: String,
    /// For one attempt to connect to one node, handshake included.
    pub connect_timeout: Duration,
    /// For finding a node again after a loss.
    pub reconnect_timeout: Duration,
    /// For one statement up to its first rows, retries included; what the first connection took counts for the first.
    pub deadline: Duration,
    /// Where to go on a loss.
    pub policy: Policy,
}

impl ClientConfig {
    /// The defaults, for these hosts.
    pub fn new(hosts: Vec<Address>) -> Self {
        Self {
            hosts,
            user: String::new(),
            database: None,
            settings: Vec::new(),
            agent: concat!("quorate-client/", env!("CARGO_PKG_VERSION")).into(),
            connect_timeout: Duration::from_secs(2),
            reconnect_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(60),
            policy: Policy::Follow,
        }
    }
}

/// What a front end may want to tell its user while a statement waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The connection broke.
    Lost {
        /// To which node.
        node: NodeId,
        /// Where it was.
        address: String,
        /// Why.
        reason: String,
    },
    /// The session goes on at another node, or at the same one after a loss.
    Moved {
        /// Which.
        node: NodeId,
        /// Where it is.
        address: String,
    },
    /// The node asked for patience; the statement is sent again.
    Waiting {
        /// What it said.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Lost { node, address, reason } => write!(f, "lost {node} ({address}): {reason}"),
            Event::Moved { node, address } => write!(f, "moved to {node} ({address})"),
            Event::Waiting { reason } => write!(f, "waiting: {reason}"),
        }
    }
}

/// Why there is no result.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum ClientError {
    /// The server's answer, or what the client makes of silence (`unknown`, `retry`).
    #[error("{0}")]
    Server(WireError),
    /// No node could be reached; per address why.
    #[error("no connection: {}", tried_text(.tried))]
    NoConnection {
        /// Address and reason, in the order tried.
        tried: Vec<(String, String)>,
    },
    /// The request cannot be sent at all.
    #[error("{0}")]
    Unsendable(String),
}

fn tried_text(tried: &[(String, String)]) -> String {
    let parts: Vec<String> = tried.iter().map(|(address, reason)| format!("{address}: {reason}")).collect();
    if parts.is_empty() { "no host is known".into() } else { parts.join("; ") }
}

impl ClientError {
    /// Whether the statement may or may not have been executed.
    pub fn is_unknown(&self) -> bool {
        matches!(self, ClientError::Server(error) if error.code == Code::Unknown)
    }

    /// The error as one of the wire, for uniform printing.
    pub fn into_wire(self) -> WireError {
        match self {
            ClientError::Server(error) => error,
            other => WireError::new(Code::Invalid, other.to_string()),
        }
    }
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        ClientError::Server(error)
    }
}

/// Called with each [`Event`], on the task that uses the client.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// One session. Methods take `&mut self`: a session runs one statement at a time.
pub struct Client {
    config: ClientConfig,
    id: ClientId,
    seq: u64,
    next_request: u64,
    link: Option<Link>,
    /// Counts connections; prepared statements belong to one.
    generation: u64,
    /// What the last node said: who it is and whom it knows.
    welcome: Option<Welcome>,
    /// Voter or replica, decided by the first node.
    home: Option<NodeKind>,
    /// What the first connection took, until the first request.
    connecting: Duration,
    /// The address of the node lost last, asked last when a new one is sought.
    left: Option<String>,
    settings: Vec<(String, String)>,
    statements: Vec<Option<result::Slot>>,
    cancel: Arc<CancelState>,
    listener: Option<Listener>,
}

/// What goes wrong in one attempt.
enum Attempt {
    /// The connection is gone; whether the request arrived is not known.
    Lost(String),
    /// Nothing came before the deadline.
    Late,
    /// It cannot be sent; nothing was.
    Unsendable(String),
}

impl From<CodecError> for Attempt {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::TooLong(_) => Attempt::Unsendable(error.to_string()),
            other => Attempt::Lost(other.to_string()),
        }
    }
}

/// A request being made, perhaps several times.
struct Call {
    body: Request,
    /// It may write: silence means `unknown`.
    writes: bool,
    /// The prepared statement it executes, whose number changes with the connection.
    slot: Option<usize>,
}

impl Client {
    /// Opens a session at the first host that answers.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| ClientError::Unsendable(format!("no randomness for a client id: {error}")))?;
        let mut settings = config.settings.clone();
        if let Some(database) = &config.database {
            set(&mut settings, "database", database);
        }
        let mut client = Client {
            config,
            id: ClientId(id),
            seq: 0,
            next_request: 1,
            link: None,
            generation: 0,
            welcome: None,
            home: None,
            connecting: Duration::ZERO,
            left: None,
            settings,
            statements: Vec::new(),
            cancel: Arc::new(CancelState::default()),
            listener: None,
        };
        let begun = Instant::now();
        client.connect_once().await?;
        client.connecting = begun.elapsed();
        Ok(client)
    }

    /// Runs one statement and waits for its first rows.
    pub async fn query(
        &mut self,
        sql: impl Into<String>,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<ResultStream<'_>, ClientError> {
        let sql = sql.into();
        let writes = !options.read_only && may_write(&sql);
        let first = self.call(Call { body: Request::Query { sql, params, options }, writes, slot: None }).await?;
        ResultStream::new(self, first, writes, None)
    }

    /// Runs one statement and collects its whole result.
    pub async fn run(&mut self, sql: impl Into<String>, params: Vec<Value>) -> Result<ResultSet, ClientError> {
        self.query(sql, params, QueryOptions::default()).await?.collect().await
    }

    /// Prepares a statement. It survives reconnects.
    pub async fn prepare(&mut self, sql: impl Into<String>) -> Result<Prepared, ClientError> {
        let sql = sql.into();
        let body = Request::Prepare { sql: sql.clone() };
        let first = self.call(Call { body, writes: false, slot: None }).await?;
        let Response::Prepared { statement, params, columns, writes } = first.response else {
            return Err(self.out_of_step("prepare"));
        };
        let columns: Arc<[crate::wire::Column]> = columns.into();
        let slot =
            result::Slot { sql, number: statement, generation: self.generation, columns: columns.clone(), writes };
        self.statements.push(Some(slot));
        Ok(Prepared { slot: self.statements.len() - 1, params, columns, writes })
    }

    /// Runs a prepared statement and waits for its first rows.
    pub async fn execute(
        &mut self,
        prepared: &Prepared,
        params: Vec<Value>,
        options: QueryOptions,
    ) -> Result<ResultStream<'_>, ClientError> {
        let writes = prepared.writes && !options.read_only;
        let body = Request::Execute { statement: 0, params, options };
        let first = self.call(Call { body, writes, slot: Some(prepared.slot) }).await?;
        let columns =
            self.statements.get(prepared.slot).and_then(|slot| slot.as_ref()).map(|slot| slot.columns.clone());
        ResultStream::new(self, first, writes, columns)
    }

    /// Forgets a prepared statement.
    pub async fn close(&mut self, prepared: Prepared) -> Result<(), ClientError> {
        let Some(slot) = self.statements.get_mut(prepared.slot).and_then(Option::take) else { return Ok(()) };
        if slot.generation == self.generation && self.link.is_some() {
            let body = Request::Close { statement: slot.number };
            self.call(Call { body, writes: false, slot: None }).await?;
        }
        Ok(())
    }

    /// The cluster's picture as the session's node sees it.
    pub async fn status(&mut self) -> Result<ClusterStatus, ClientError> {
        let first = self.call(Call { body: Request::Status, writes: false, slot: None }).await?;
        match first.response {
            Response::Status(status) => Ok(*status),
            _ => Err(self.out_of_step("status")),
        }
    }

    /// The cluster's picture again and again. Survives reconnects.
    pub fn watch(&mut self, every: Duration) -> Watch<'_> {
        Watch::new(self, every)
    }

    /// Asks whether the node is there; the time it took.
    pub async fn ping(&mut self) -> Result<Duration, ClientError> {
        let started = Instant::now();
        self.call(Call { body: Request::Ping, writes: false, slot: None }).await?;
        Ok(started.elapsed())
    }

    /// What completion needs.
    pub async fn schema(&mut self) -> Result<SchemaInfo, ClientError> {
        let first = self.call(Call { body: Request::Schema, writes: false, slot: None }).await?;
        match first.response {
            Response::Schema(schema) => Ok(schema),
            _ => Err(self.out_of_step("schema")),
        }
    }

    /// Stops the statement that runs when it is used, from another task or thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle::new(self.cancel.clone(), self.config.clone())
    }

    /// Who hears of [`Event`]s.
    pub fn set_listener(&mut self, listener: Option<Listener>) {
        self.listener = listener;
    }

    /// What the session's node said when the session (last) began.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Where the session is; `None` while the connection is lost.
    pub fn address(&self) -> Option<&str> {
        self.link.as_ref().map(|link| link.address.as_str())
    }

    /// Nodes known so far.
    pub fn nodes(&self) -> &[NodeAddress] {
        self.welcome.as_ref().map_or(&[], |welcome| &welcome.nodes)
    }

    /// The current database.
    pub fn database(&self) -> &str {
        let set = self.settings.iter().find(|(name, _)| name == "database").map(|(_, value)| value.as_str());
        set.or(self.welcome.as_ref().map(|welcome| welcome.database.as_str()))
            .unwrap_or(crate::limits::DATABASE_DEFAULT)
    }

    /// The session's settings that differ from the defaults, `database` among them.
    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// The client's id of the exactly-once rule.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Makes a request until there is an answer or the deadline has passed.
    async fn call(&mut self, mut call: Call) -> Result<First, ClientError> {
        let number = self.cancel.begin();
        let begun = Instant::now();
        let deadline = begun + self.deadline_of(&call.body).saturating_sub(std::mem::take(&mut self.connecting));
        self.seq += 1;
        let write = WriteId { client: self.id, seq: self.seq };
        let (mut uncertain, mut lost) = (false, false);
        // What the node that was left last had said.
        let mut said: Option<WireError> = None;
        let mut pause = Pause::default();
        loop {
            if self.cancel.asked(number) {
                return Err(canceled(uncertain && call.writes));
            }
            if self.link.is_none() {
                let found = self.find_node(deadline, number).await;
                found.map_err(|error| after_loss(no_better(said.take(), error), uncertain && call.writes))?;
            }
            let stale = match call.slot {
                Some(slot) => self.prepare_again(slot, deadline).await,
                None => Ok(None),
            };
            let attempt = match stale {
                Ok(None) => {
                    self.fill(&mut call, write, uncertain, deadline);
                    self.attempt(&call.body, deadline).await
                }
                Ok(Some(error)) => return Err(error),
                Err(attempt) => Err(attempt),
            };
            match attempt {
                Ok(First { response: Response::Error(error), .. }) => {
                    uncertain |= error.code == Code::Unknown;
                    said = Some(error.clone());
                    // What was lost on its way may yet arrive: a refusal now does not mean that it is refused then.
                    let again = self.again(error, &call, begun, deadline, &mut pause, number).await;
                    again.map_err(|error| after_loss(error, lost && call.writes))?;
                }
                Ok(first) => return Ok(first),
                Err(Attempt::Lost(reason)) => {
                    (uncertain, lost, said) = (true, true, None);
                    self.lose(&reason);
                }
                Err(Attempt::Late) => {
                    self.lose("no answer in time");
                    return Err(no_answer(call.writes));
                }
                Err(Attempt::Unsendable(reason)) => return Err(ClientError::Unsendable(reason)),
            }
        }
    }

    /// After an error: waits and returns if the request is to be sent again, else gives the error.
    async fn again(
        &mut self,
        error: WireError,
        call: &Call,
        begun: Instant,
        deadline: Instant,
        pause: &mut Pause,
        number: u64,
    ) -> Result<(), ClientError> {
        if error.sqlstate.as_deref() == Some(SQLSTATE_NO_STATEMENT)
            && let Some(Some(slot)) = call.slot.map(|slot| &mut self.statements[slot])
            && slot.generation == self.generation
        {
            slot.generation = 0;
            return Ok(());
        }
        let canceled = error.sqlstate.as_deref() == Some(SQLSTATE_CANCELED);
        let repeat = match error.code {
            Code::Retry | Code::Busy | Code::Redirect => true,
            Code::Unknown => call.writes && begun.elapsed() < UNKNOWN_AGAIN,
            _ => false,
        };
        let wait = pause.next();
        if canceled || !repeat || Instant::now() + wait >= deadline {
            return Err(error.into());
        }
        self.tell(&Event::Waiting { reason: error.message.clone() });
        self.cancel.sleep(wait, number).await;
        let elsewhere = error.code == Code::Redirect || pause.since.elapsed() > RETRY_STAY;
        if elsewhere && self.may_move() {
            pause.since = Instant::now();
            self.leave(&error);
        }
        Ok(())
    }

    /// Completes a request for this attempt: write id, remaining time, the statement's number.
    fn fill(&self, call: &mut Call, write: WriteId, retry: bool, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let number = call.slot.and_then(|slot| self.statements[slot].as_ref()).map_or(0, |slot| slot.number);
        let options = match &mut call.body {
            Request::Query { options, .. } => options,
            Request::Execute { options, statement, .. } => {
                *statement = number;
                options
            }
            _ => return,
        };
        options.deadline_ms = (left.as_millis() as u64).max(1);
        options.write = call.writes.then_some(write);
        options.retry = retry;
    }

    /// Prepares a statement again on a new connection. `Ok(Some)`: the server refuses it now.
    async fn prepare_again(&mut self, slot: usize, deadline: Instant) -> Result<Option<ClientError>, Attempt> {
        let generation = self.generation;
        let Some(Some(known)) = self.statements.get(slot) else {
            return Ok(Some(ClientError::Unsendable("the prepared statement is closed".into())));
        };
        if known.generation == generation {
            return Ok(None);
        }
        let body = Request::Prepare { sql: known.sql.clone() };
        let first = Box::pin(self.attempt(&body, deadline)).await?;
        match (first.response, &mut self.statements[slot]) {
            (Response::Prepared { statement, columns, writes, .. }, Some(known)) => {
                known.number = statement;
                known.generation = generation;
                known.columns = columns.into();
                known.writes = writes;
                Ok(None)
            }
            (Response::Error(error), _) => Ok(Some(error.into())),
            _ => Err(Attempt::Lost("an answer that does not fit a prepare".into())),
        }
    }

    fn deadline_of(&self, body: &Request) -> Duration {
        match body {
            Request::Query { options, .. } | Request::Execute { options, .. } if options.deadline_ms > 0 => {
                Duration::from_millis(options.deadline_ms)
            }
            Request::Query { .. } | Request::Execute { .. } => self.statement_timeout().unwrap_or(self.config.deadline),
            _ => self.config.deadline,
        }
    }

    /// What the session has set, in the spelling of the nodes.
    fn statement_timeout(&self) -> Option<Duration> {
        let (_, value) = self.settings.iter().find(|(name, _)| name == "statement_timeout")?;
        value.strip_suffix("ms")?.parse().ok().map(Duration::from_millis)
    }

    /// Drops the connection after it broke.
    fn lose(&mut self, reason: &str) {
        let Some(link) = self.link.take() else { return };
        self.cancel.set_target(None);
        let event = Event::Lost { node: link.node, address: link.address.clone(), reason: reason.to_owned() };
        self.left = Some(link.address);
        self.tell(&event);
    }

    /// Drops a connection that works, to go elsewhere.
    fn leave(&mut self, error: &WireError) {
        self.lose(&error.message);
    }

    /// Takes over what a finished statement changed in the session.
    fn finish(&mut self, done: &Done) {
        for (name, value) in &done.settings {
            set(&mut self.settings, name, value);
        }
    }

    /// The server's answer does not fit the question: the connection cannot be trusted any more.
    fn out_of_step(&mut self, question: &str) -> ClientError {
        self.lose("an answer that does not fit the question");
        WireError::new(Code::Internal, format!("the server's answer does not fit a {question} request")).into()
    }

    fn tell(&self, event: &Event) {
        if let Some(listener) = &self.listener {
            listener(event);
        }
    }

    fn new_request(&mut self) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.cancel.current.store(request, Ordering::Relaxed);
        request
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("id", &self.id).field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Growing pauses between attempts.
struct Pause {
    ms: u64,
    since: Instant,
}

impl Default for Pause {
    fn default() -> Self {
        Self { ms: 10, since: Instant::now() }
    }
}

impl Pause {
    fn next(&mut self) -> Duration {
        let wait = Duration::from_millis(self.ms);
        self.ms = (self.ms * 2).min(250);
        wait
    }
}

/// Replaces or adds a setting.
fn set(settings: &mut Vec<(String, String)>, name: &str, value: &str) {
    match settings.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => settings.push((name.to_owned(), value.to_owned())),
    }
}

/// Whether a statement may write, judged by its first word; when in doubt it may.
fn may_write(sql: &str) -> bool {
    let mut rest = sql.trim_start();
    loop {
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after).trim_start();
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after).trim_start();
        } else if let Some(inner) = rest.strip_prefix('(') {
            rest = inner.trim_start();
        } else {
            break;
        }
    }
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let reads = ["SELECT", "SHOW", "DESCRIBE", "DESC", "VALUES", "TABLE", "SET", "USE"];
    !reads.iter().any(|word| word.eq_ignore_ascii_case(&rest[..end]))
}

/// Silence until the deadline.
fn no_answer(writes: bool) -> ClientError {
    if writes {
        let error = WireError::new(
            Code::Unknown,
            "no answer before the deadline: the statement may or may not have been executed",
        );
        error.hint("look whether its effect is there before you run it again").into()
    } else {
        WireError::new(Code::Retry, "no answer before the deadline").hint("try again, or raise the timeout").into()
    }
}

/// No other node was found in time: what the node that was left had said is the answer.
fn no_better(said: Option<WireError>, error: ClientError) -> ClientError {
    match (said, error) {
        (Some(said), ClientError::NoConnection { tried }) => {
            said.detail(format!("no other node took over: {}", tried_text(&tried))).into()
        }
        (_, error) => error,
    }
}

/// No node was found again, or one that refuses.
fn after_loss(error: ClientError, uncertain: bool) -> ClientError {
    if !uncertain || matches!(error, ClientError::Server(WireError { code: Code::Unknown, .. })) {
        return error;
    }
    let unknown = WireError::new(
        Code::Unknown,
        "the connection was lost while the statement ran: it may or may not have been executed",
    );
    unknown.detail(error.to_string()).hint("look whether its effect is there before you run it again").into()
}

/// Stopped on request between two attempts.
fn canceled(uncertain: bool) -> ClientError {
    let code = if uncertain { Code::Unknown } else { Code::Invalid };
    let message = if uncertain {
        "canceled on request; the statement may or may not have been executed"
    } else {
        "canceled on request"
    };
    WireError { sqlstate: Some(SQLSTATE_CANCELED.into()), ..WireError::new(code, message) }.into()
}

#[cfg(test)]
mod tests;
