//! The `tcp` door: clients and peers on one port, told apart by their `Hello`.
//!
//! Whoever connects has [`HANDSHAKE_MS`](quorate_shared::limits::HANDSHAKE_MS) to say what it is; strangers and other
//! versions are told off in one line. Clients get a session, connections of nodes are handed to the [`PeerDoor`].
//!
//! On shutdown the door closes, sessions end after the statement they are running, and those that do not are dropped.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quorate_shared::codec::{self, CodecError, Connection, HANDSHAKE};
use quorate_shared::error::{Code, WireError};
use quorate_shared::limits::{FRAME_BYTES_MAX, HANDSHAKES_MAX, HELLO_BYTES_MAX, SESSIONS_MAX};
use quorate_shared::wire::{ClientHello, Greeting, Hello, Preface, Welcome};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::registry::Registry;
use super::session::{End, Session};
use super::{Sessions, Statements, Streams};
use crate::metrics::Meters;
use crate::report::{PeerDoor, Reports};
use crate::router::Router;

/// Pauses after a failed accept (out of file descriptors, most of the time).
const ACCEPT_PAUSE_MS: (u64, u64) = (5, 1_000);
/// Refused versions that are remembered.
const TOLD_MAX: usize = 64;
/// How long sessions may go on after the door is told to close.
const DRAIN: Duration = Duration::from_secs(5);

/// What a door needs of its node.
pub struct Door {
    /// The cluster.
    pub router: Arc<dyn Router>,
    /// Counters, for the node's report.
    pub reports: Arc<dyn Reports>,
    /// Opens SQL sessions.
    pub sessions: Arc<dyn Sessions>,
    /// Takes the connections of other nodes.
    pub peers: Arc<dyn PeerDoor>,
    /// Where statements are measured.
    pub meters: Arc<Meters>,
    /// Sessions that are open.
    pub registry: Arc<Registry>,
    streams: OnceLock<Arc<dyn Streams>>,
    /// Versions that were refused and logged, by address.
    told: Mutex<BTreeSet<(IpAddr, u16, u16)>>,
}

impl Door {
    /// A door; nothing is open yet.
    pub fn new(
        router: Arc<dyn Router>,
        reports: Arc<dyn Reports>,
        sessions: Arc<dyn Sessions>,
        peers: Arc<dyn PeerDoor>,
        meters: Arc<Meters>,
    ) -> Arc<Self> {
        let (registry, streams, told) = (Arc::default(), OnceLock::new(), Mutex::default());
        Arc::new(Self { router, reports, sessions, peers, meters, registry, streams, told })
    }

    /// Serves streams of the log, too.
    #[must_use]
    pub fn with_streams(self: Arc<Self>, streams: Arc<dyn Streams>) -> Arc<Self> {
        // Set once, by the assembly.
        let _ = self.streams.set(streams);
        self
    }

    /// Streams of the log, where this node has one.
    pub fn streams(&self) -> Result<&dyn Streams, WireError> {
        self.streams
            .get()
            .map(|streams| &**streams)
            .ok_or_else(|| WireError::unsupported("a stream of this node's log"))
    }

    /// Serves a listener until it is told to stop; returns when every session has ended or been dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let dropped = CancellationToken::new();
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut pause = ACCEPT_PAUSE_MS.0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.accept(&listener, &handshakes) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    pause = ACCEPT_PAUSE_MS.0;
                    let (door, dropped) = (Arc::clone(&self), dropped.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = dropped.cancelled() => {}
                            () = door.welcome(stream, permit) => {}
                        }
                    });
                }
                Err(error) => {
                    if pause == ACCEPT_PAUSE_MS.0 {
                        tracing::warn!(%error, "cannot accept connections");
                    }
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE_MS.1);
                }
            }
        }
        drop(listener);
        self.registry.drain();
        tasks.close();
        let drained = async {
            while !self.registry.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!(sessions = self.registry.len(), "sessions are dropped, they did not end in time");
        }
        dropped.cancel();
        tasks.wait().await;
    }

    async fn accept(
        &self,
        listener: &TcpListener,
        handshakes: &Arc<Semaphore>,
    ) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(handshakes).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        Ok((stream, permit))
    }

    /// Finds out who has connected, and serves it until it goes.
    async fn welcome(self: Arc<Self>, stream: TcpStream, permit: tokio::sync::OwnedSemaphorePermit) {
        let address = stream.peer_addr().ok();
        let mut connection = match codec::accept(stream).await {
            Ok(connection) => connection,
            Err(error) => {
                if let (CodecError::Version(theirs), Some(address)) = (&error, address) {
                    self.tell_once(address.ip(), *theirs, &error);
                }
                return self.refused(&address.map(|a| a.to_string()).unwrap_or_default(), &error);
            }
        };
        let from = connection.peer();
        connection.reader.set_limit(HELLO_BYTES_MAX);
        let hello = tokio::time::timeout(HANDSHAKE, connection.reader.message::<Hello>()).await;
        let hello = match hello.unwrap_or(Err(CodecError::Slow(HANDSHAKE))) {
            Ok(Some(hello)) => hello,
            Ok(None) => return,
            Err(error) => {
                self.refused(&from, &error);
                return refuse(connection, WireError::new(Code::Invalid, error.to_string())).await;
            }
        };
        connection.reader.set_limit(FRAME_BYTES_MAX);
        drop(permit);
        match hello {
            Hello::Peer(hello) => match connection.into_stream() {
                Some(stream) => self.peers.accept(stream, hello).await,
                None => tracing::warn!(%from, node = %hello.node, "a peer spoke before it was greeted"),
            },
            Hello::Client(hello) => self.client(connection, hello, &from).await,
        }
    }

    /// Opens a session and serves it.
    async fn client(self: Arc<Self>, mut connection: Connection, hello: ClientHello, from: &str) {
        if self.registry.draining() {
            return refuse(connection, WireError::new(Code::Retry, "the node is shutting down")).await;
        }
        let Some(open) = random_key().ok().and_then(|key| self.registry.open(key)) else {
            let error = WireError::new(Code::Busy, format!("this node has {SESSIONS_MAX} sessions already"));
            return refuse(connection, error.hint("close some, or connect to another node")).await;
        };
        let id = open.handle.id;
        let statements = match self.sessions.open(id, &hello) {
            Ok(statements) => statements,
            Err(error) => return refuse(connection, error).await,
        };
        let greeting = Greeting::Welcome(Box::new(self.welcome_of(&open.handle, &*statements)));
        if let Err(error) = connection.writer.send(&greeting).await {
            return self.refused(from, &error);
        }
        let counters = Arc::clone(&self.reports);
        counters.counters().sessions.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(session = id.get(), %from, user = hello.user, agent = hello.agent, "session opened");
        let end = Session::new(Arc::clone(&self), open, connection, statements).serve().await;
        counters.counters().sessions.fetch_sub(1, Ordering::Relaxed);
        match end {
            End::Unread => {
                self.meters.unread.add(1);
                tracing::warn!(session = id.get(), %from, "session closed: its client stopped reading");
            }
            End::Broken(
                error @ (CodecError::TooLong(_) | CodecError::Garbled { .. } | CodecError::HalfFrame { .. }),
            ) => {
                self.meters.refused.add(1);
                tracing::warn!(session = id.get(), %from, %error, "session closed: bad frame");
            }
            end => tracing::debug!(session = id.get(), ?end, "session closed"),
        }
    }

    fn welcome_of(&self, handle: &super::registry::Handle, statements: &dyn Statements) -> Welcome {
        let identity = self.router.identity();
        Welcome {
            cluster: identity.cluster,
            epoch: identity.epoch,
            node: identity.node,
            kind: identity.kind,
            version: env!("CARGO_PKG_VERSION").into(),
            session: handle.id,
            cancel_key: handle.key,
            master: self.router.master(),
            nodes: self.router.nodes(),
            database: statements.database(),
        }
    }

    /// Who speaks another version tries for ever: it is worth a line, not more.
    fn tell_once(&self, from: IpAddr, versions: Preface, error: &CodecError) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD_MAX && told.insert((from, versions.lowest, versions.highest)) {
            tracing::warn!(%from, %error, "connection refused");
        }
    }

    /// Counts and logs somebody who did not get in. A port scan is no reason to worry anybody.
    fn refused(&self, from: &str, error: &CodecError) {
        self.meters.refused.add(1);
        tracing::debug!(%from, %error, "connection refused");
    }
}

/// Says no in the greeting and closes. The other side may be gone; nothing depends on it.
async fn refuse(mut connection: Connection, error: WireError) {
    let farewell = async {
        connection.writer.push(&Greeting::Refused(error))?;
        connection.writer.close().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
}

fn random_key() -> Result<u64, getrandom::Error> {
    getrandom::u64()
}
