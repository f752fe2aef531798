//! Connections between nodes, over the same port as the clients'.
//!
//! Each node dials one connection per channel to every other: consensus messages flow one way on it, requests are answered
//! on it. A heartbeat never queues behind data: channels do not share a connection. Queues are bounded: what does not
//! fit is dropped and counted, the protocols above repeat it. Everything queued goes out in one write.
//!
//! Invariants: nothing is read from a peer of another cluster or epoch beyond its `Hello`, nor from a second node of one
//! number while the first is there; a message for another replica is dropped and counted; a message is queued only while
//! the connection it goes out on is up.
//!
//! Left out: encryption and authentication of peers.

mod admission;
pub mod frame;
pub mod message;
mod outbox;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use quorate_core::shard::Input;
use quorate_shared::error::Code;
use quorate_shared::ids::{Epoch, Hash, Index, NodeId, Nonce, ReplicaId, ShardId};
use quorate_shared::wire::{Greeting, NodeAddress, PeerChannel, PeerHello};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::admission::Twin;
use self::message::{Answer, Ask, Envelope, Founding, Question, Reply, Request, Response};
pub use self::outbox::Outbox;
use crate::report::PeerDoor;

/// First pause between two attempts to connect; it doubles up to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long a request waits for a connection that is being made.
const CONNECT_WAIT: Duration = Duration::from_millis(300);

/// What peers say, handed to whoever acts on it. Must not block.
#[async_trait]
pub trait PeerEvents: Send + Sync + 'static {
    /// Messages of other replicas, checked to be for ours.
    fn consensus(&self, messages: Vec<(ShardId, Input)>);
    /// A consensus connection from or to a node has ended or begun, or the queue in front of it was full: messages may
    /// be lost.
    fn disconnected(&self, peer: NodeId);
    /// Whether a message between these replicas is to be heard here: it is for ours, and the sender lives on that node,
    /// or is of a membership that this node has not heard of yet.
    fn admits(&self, shard: ShardId, from: (NodeId, ReplicaId), to: ReplicaId) -> bool;
    /// Requests of another node, each answered through `answers` unless its id is 0.
    fn requests(&self, from: NodeId, requests: Vec<Request>, answers: &Arc<Outbox>);
    /// Whether a node was removed from the cluster.
    fn removed(&self, node: NodeId) -> bool;
    /// Who this node is and what it knows.
    fn who(&self, voters: &[NodeId]) -> Answer;
    /// The hashes of the chain at these indexes, as far as they are applied and known here. May read from disk.
    fn hashes(&self, shard: ShardId, at: &[Index]) -> Vec<Option<Hash>>;
    /// Serves a reader of our log until it ends.
    async fn ship(&self, stream: TcpStream, buffer: BytesMut, reader: NodeId, heard: Heard);
    /// Gives a node a snapshot.
    async fn give(&self, stream: TcpStream, buffer: BytesMut, reader: NodeId);
}

/// When something was last heard from a node; milliseconds since the start, plus one; 0 is never.
#[derive(Clone, Debug)]
pub struct Heard(Arc<AtomicU64>, Instant);

impl Heard {
    /// Something was heard just now.
    pub fn now(&self) {
        self.0.store(self.1.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }
    /// Milliseconds since; `None`: never.
    pub fn age_ms(&self) -> Option<u64> {
        let at = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        Some((self.1.elapsed().as_millis() as u64).saturating_sub(at))
    }
}

/// Why a question has no reply.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// It was never sent.
    #[error("{0} cannot be reached: {1}")]
    NotSent(NodeId, String),
    /// The connection broke after it was sent: it may have been acted on.
    #[error("the connection to {0} broke")]
    Lost(NodeId),
    /// No reply in time.
    #[error("{0} did not answer in time")]
    TimedOut(NodeId),
}

/// A consensus connection that is kept up until it is stopped.
struct Kept {
    outbox: Arc<Outbox>,
    stop: CancellationToken,
}

struct Link {
    outbox: Arc<Outbox>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
    next: AtomicU64,
    error: Mutex<String>,
}

/// This node's connections.
pub struct Peers {
    me: NodeId,
    nonce: Nonce,
    /// Where others reach this node.
    own: String,
    founding: RwLock<Option<Arc<Founding>>>,
    /// Where the voters are as the command line has it: tried where nothing better answers.
    hints: BTreeMap<NodeId, String>,
    /// Where nodes are, as they said when they connected.
    said: RwLock<BTreeMap<NodeId, String>>,
    /// Where nodes are, as the catalog or another node has it.
    learned: RwLock<BTreeMap<NodeId, String>>,
    consensus: RwLock<BTreeMap<NodeId, Kept>>,
    epoch: RwLock<Epoch>,
    newer: Mutex<Option<Epoch>>,
    cut_off: Mutex<Option<Epoch>>,
    /// Nodes in another epoch of the same number as this node's.
    rivals: Mutex<BTreeMap<NodeId, Epoch>>,
    /// Nodes refused because another one of their number is there.
    twins: Mutex<BTreeMap<NodeId, Twin>>,
    /// What was logged once.
    told: Mutex<BTreeSet<(NodeId, String)>>,
    /// Who said that this node was removed, and how.
    expelled: Mutex<Option<String>>,
    /// The data directory each node last came from.
    nonces: RwLock<BTreeMap<NodeId, Nonce>>,
    requests: RwLock<BTreeMap<NodeId, Arc<Link>>>,
    heard: RwLock<BTreeMap<NodeId, Heard>>,
    events: RwLock<Option<Arc<dyn PeerEvents>>>,
    dropped: AtomicU64,
    started: Instant,
    stop: CancellationToken,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
}

fn get<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// No connection yet. `voters` are those of the command line.
    pub fn new(
        (me, nonce): (NodeId, Nonce),
        own: String,
        voters: BTreeMap<NodeId, String>,
        stop: CancellationToken,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            me,
            nonce,
            own,
            founding: RwLock::new(None),
            hints: voters,
            said: RwLock::default(),
            learned: RwLock::default(),
            consensus: RwLock::default(),
            nonces: RwLock::default(),
            epoch: RwLock::default(),
            newer: Mutex::default(),
            cut_off: Mutex::default(),
            rivals: Mutex::default(),
            twins: Mutex::default(),
            told: Mutex::default(),
            expelled: Mutex::default(),
            requests: RwLock::default(),
            heard: RwLock::default(),
            events: RwLock::new(None),
            dropped: AtomicU64::new(0),
            started: Instant::now(),
            stop,
            tasks: TaskTracker::new(),
            runtime,
        })
    }

    /// Says who acts on what arrives; until then everything but questions about founding is refused.
    pub fn attach(&self, events: Arc<dyn PeerEvents>) {
        *write(&self.events) = Some(events);
    }

    /// Lets go of whoever acts on what arrives.
    pub fn detach(&self) {
        *write(&self.events) = None;
    }

    /// The cluster is known from here on.
    pub fn founded(&self, founding: Arc<Founding>) {
        if founding.epoch.number > self.epoch().number {
            self.set_epoch(founding.epoch);
        }
        *write(&self.founding) = Some(founding);
    }

    /// Keeps a consensus connection to each of these nodes, and to no other.
    pub fn connect(self: &Arc<Self>, nodes: &BTreeSet<NodeId>) {
        let mut kept = write(&self.consensus);
        kept.retain(|node, kept| {
            let wanted = nodes.contains(node);
            if !wanted {
                kept.stop.cancel();
            }
            wanted
        });
        for node in nodes.iter().copied().filter(|node| *node != self.me) {
            if kept.contains_key(&node) {
                continue;
            }
            let (outbox, stop) = (Arc::new(Outbox::default()), self.stop.child_token());
            kept.insert(node, Kept { outbox: outbox.clone(), stop: stop.clone() });
            let peers = self.clone();
            self.tasks.spawn_on(async move { peers.keep_consensus(node, &outbox, &stop).await }, &self.runtime);
            self.link(node);
        }
    }

    /// Where nodes are, from the catalog or from another node.
    pub fn learn(&self, nodes: impl IntoIterator<Item = (NodeId, String)>) {
        let mut learned = write(&self.learned);
        for (node, address) in nodes.into_iter().filter(|(_, address)| !address.is_empty()) {
            learned.insert(node, address);
        }
    }

    /// Where a node is as it says itself: it may have moved since the catalog heard of it.
    fn says(&self, node: NodeId, address: &str) {
        if !address.is_empty() && read(&self.said).get(&node).is_none_or(|known| known != address) {
            write(&self.said).insert(node, address.to_owned());
        }
    }

    /// A node is no part of the cluster any more.
    pub fn forget(&self, node: NodeId) {
        write(&self.said).remove(&node);
        write(&self.learned).remove(&node);
    }

    /// Where a node may be, the best first.
    fn candidates(&self, node: NodeId) -> Vec<String> {
        let said = read(&self.said).get(&node).cloned();
        let learned = read(&self.learned).get(&node).cloned();
        let mut candidates = Vec::new();
        for address in [said, learned, self.hints.get(&node).cloned()].into_iter().flatten() {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }

    /// Where to look for a node, by how often it was not found.
    fn candidate(&self, node: NodeId, failed: usize) -> Option<String> {
        let all = self.candidates(node);
        all.get(failed % all.len().max(1)).cloned()
    }

    /// Where a node is.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.candidates(node).into_iter().next()
    }

    fn nodes(&self) -> BTreeSet<NodeId> {
        let said: Vec<NodeId> = read(&self.said).keys().copied().collect();
        let all = read(&self.learned).keys().chain(self.hints.keys()).copied().chain(said).collect::<BTreeSet<_>>();
        all.into_iter().filter(|node| *node != self.me).collect()
    }

    /// Wherever any other node may be.
    pub fn addresses(&self) -> BTreeSet<String> {
        self.nodes().into_iter().flat_map(|node| self.candidates(node)).collect()
    }

    /// Every node heard of, with the time since it was last heard.
    pub fn heard(&self) -> Vec<(NodeId, Option<u64>)> {
        self.nodes().into_iter().map(|node| (node, self.hearing(node).age_ms())).collect()
    }

    /// The mark to set when something is heard from a node.
    pub fn hearing(&self, node: NodeId) -> Heard {
        if let Some(heard) = read(&self.heard).get(&node) {
            return heard.clone();
        }
        write(&self.heard).entry(node).or_insert_with(|| Heard(Arc::default(), self.started)).clone()
    }

    /// This node's data directory.
    pub fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// Messages dropped so far.
    pub fn dropped(&self) -> u64 {
        let queued: u64 = read(&self.consensus).values().map(|kept| kept.outbox.dropped()).sum();
        queued + self.dropped.load(Ordering::Relaxed)
    }

    /// The `Hello` for a channel to a node.
    pub fn hello(&self, to: Option<NodeId>, channel: PeerChannel) -> PeerHello {
        let founding = read(&self.founding).clone();
        PeerHello {
            cluster: founding.as_ref().map(|f| f.cluster),
            epoch: self.epoch(),
            node: self.me,
            to,
            nonce: self.nonce,
            channel,
            address: self.own.clone(),
        }
    }

    /// Queues a protocol message for another voter, or drops it; [`Peers::flush`] follows.
    pub fn send(&self, to: NodeId, envelope: &Envelope) {
        match read(&self.consensus).get(&to) {
            Some(kept) => {
                if !kept.outbox.push_quietly(envelope) && kept.outbox.first_drop() {
                    self.disconnected(to);
                }
            }
            None => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn disconnected(&self, peer: NodeId) {
        if let Some(events) = read(&self.events).as_ref() {
            events.disconnected(peer);
        }
    }

    /// Puts queued protocol messages on the wire.
    pub fn flush(&self) {
        read(&self.consensus).values().for_each(|kept| kept.outbox.flush());
    }

    /// Stops every connection and waits for their tasks.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn keep_consensus(&self, node: NodeId, outbox: &Outbox, stop: &CancellationToken) {
        let (mut pause, mut failed) = (BACKOFF.0, 0);
        loop {
            let address = self.candidate(node, failed);
            failed += 1;
            let attempt = async {
                let address = address.ok_or("its address is not known")?;
                let hello = self.hello(Some(node), PeerChannel::Consensus);
                let (stream, _, _) = frame::connect(&address, &hello).await.map_err(|e| self.heed(node, &e))?;
                let (mut reader, writer) = stream.into_split();
                (pause, failed) = (BACKOFF.0, 0);
                outbox.open();
                self.disconnected(node);
                // Nothing comes back on this channel: reading only notices its end.
                let mut nothing = BytesMut::new();
                tokio::select! {
                    result = outbox.run(writer) => result.map_err(|e| e.to_string()),
                    _ = frame::fill(&mut reader, &mut nothing) => Err("closed by the peer".to_owned()),
                }
            };
            let ended: Result<(), String> = tokio::select! {
                () = stop.cancelled() => return outbox.close(),
                ended = attempt => ended,
            };
            if outbox.is_open() {
                outbox.close();
                self.disconnected(node);
            }
            if let Err(why) = ended {
                tracing::debug!(peer = %node, %why, "consensus connection is down");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Who answers at a node's address is that node: begun again from nothing, it is let in at once.
    fn met(&self, greeting: &Greeting) {
        if let Greeting::PeerWelcome { node, nonce } = greeting {
            self.is_the_one(*node, *nonce);
        }
    }

    fn link(self: &Arc<Self>, node: NodeId) -> Arc<Link> {
        if let Some(link) = read(&self.requests).get(&node) {
            return link.clone();
        }
        let mut links = write(&self.requests);
        if let Some(link) = links.get(&node) {
            return link.clone();
        }
        let link = Arc::new(Link {
            outbox: Arc::new(Outbox::default()),
            pending: Mutex::default(),
            next: AtomicU64::new(1),
            error: Mutex::new("not connected yet".into()),
        });
        links.insert(node, link.clone());
        let (peers, kept) = (self.clone(), link.clone());
        self.tasks.spawn_on(async move { peers.keep_requests(node, &kept).await }, &self.runtime);
        link
    }

    async fn keep_requests(&self, node: NodeId, link: &Link) {
        let (mut pause, mut failed) = (BACKOFF.0, 0);
        loop {
            let address = self.candidate(node, failed);
            failed += 1;
            let ended = tokio::select! {
                () = self.stop.cancelled() => Ok(()),
                ended = self.serve_link(node, address, link, &mut failed) => ended,
            };
            if failed == 0 {
                pause = BACKOFF.0;
            }
            link.outbox.close();
            // Dropping the senders tells those who wait that the connection is lost.
            get(&link.pending).clear();
            if let Err(why) = ended {
                *get(&link.error) = why;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn serve_link(
        &self,
        node: NodeId,
        address: Option<String>,
        link: &Link,
        failed: &mut usize,
    ) -> Result<(), String> {
        let address = address.ok_or("its address is not known")?;
        let hello = self.hello(Some(node), PeerChannel::Requests);
        let (stream, mut buffer, greeting) = frame::connect(&address, &hello).await.map_err(|e| self.heed(node, &e))?;
        self.met(&greeting);
        let (mut reader, writer) = stream.into_split();
        *failed = 0;
        link.outbox.open();
        let heard = self.hearing(node);
        heard.now();
        let receive = async {
            loop {
                while let Some(bytes) = frame::take(&mut buffer)? {
                    let response: Response = frame::decode(&bytes)?;
                    if let Some(waiter) = get(&link.pending).remove(&response.id) {
                        // Nobody waits any more: past its deadline.
                        let _ = waiter.send(response.body);
                    }
                }
                if !frame::fill(&mut reader, &mut buffer).await? {
                    return Err::<(), _>(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer"));
                }
                heard.now();
            }
        };
        tokio::select! {
            result = link.outbox.run(writer) => result.map_err(|e| e.to_string()),
            result = receive => result.map_err(|e| e.to_string()),
        }
    }

    /// Asks a node and waits for its reply.
    pub async fn ask(self: &Arc<Self>, node: NodeId, body: Ask, deadline: Instant) -> Result<Reply, AskError> {
        let link = self.link(node);
        if !link.outbox.is_open() {
            let until = deadline.min(Instant::now() + CONNECT_WAIT);
            // The error is the same whether the wait ended by time or not.
            let _ = tokio::time::timeout_at(until.into(), link.outbox.opened()).await;
        }
        let id = link.next.fetch_add(1, Ordering::Relaxed);
        let (waiter, reply) = oneshot::channel();
        get(&link.pending).insert(id, waiter);
        let left = deadline.saturating_duration_since(Instant::now());
        let request = Request { id, origin: self.me, deadline_ms: left.as_millis() as u64, body };
        if !link.outbox.push(&request) {
            get(&link.pending).remove(&id);
            return Err(AskError::NotSent(node, get(&link.error).clone()));
        }
        match tokio::time::timeout_at(deadline.into(), reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(AskError::Lost(node)),
            Err(_) => {
                get(&link.pending).remove(&id);
                Err(AskError::TimedOut(node))
            }
        }
    }

    /// Tells a node something that needs no reply, or drops it.
    pub fn tell(self: &Arc<Self>, node: NodeId, body: Ask) {
        self.link(node).outbox.push(&Request { id: 0, origin: self.me, deadline_ms: 0, body });
    }

    /// Asks an address who it is, before there is a cluster.
    pub async fn who(&self, address: &str, to: Option<NodeId>) -> Result<Answer, String> {
        let question = Question::Who { voters: self.hints.keys().copied().collect() };
        self.question(address, to, &question).await
    }

    /// Asks an address for hashes of its chain, while this node is of no epoch that it may speak in.
    pub async fn hashes(&self, address: &str, shard: ShardId, at: &[Index]) -> Result<Vec<Option<Hash>>, String> {
        self.question(address, None, &Question::Hashes { shard, at: at.to_vec() }).await
    }

    async fn question<T: DeserializeOwned>(
        &self,
        address: &str,
        to: Option<NodeId>,
        question: &Question,
    ) -> Result<T, String> {
        let hello = PeerHello { cluster: None, ..self.hello(to, PeerChannel::Founding) };
        let asked = async {
            let (mut stream, mut buffer, _) = frame::connect(address, &hello).await.map_err(|e| e.to_string())?;
            frame::write(&mut stream, question).await.map_err(|e| e.to_string())?;
            frame::read(&mut stream, &mut buffer).await.map_err(|e| e.to_string())
        };
        match tokio::time::timeout(Duration::from_secs(3), asked).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer".into()),
        }
    }

    async fn receive_consensus(&self, mut stream: TcpStream, mut buffer: BytesMut, from: NodeId) -> io::Result<()> {
        let Some(founding) = read(&self.founding).clone() else { return Ok(()) };
        let Some(events) = read(&self.events).clone() else { return Ok(()) };
        let heard = self.hearing(from);
        loop {
            let mut messages = Vec::new();
            while let Some(bytes) = frame::take(&mut buffer)? {
                let envelope: Envelope = frame::decode(&bytes)?;
                let ours = envelope.cluster == founding.cluster && envelope.epoch == self.epoch();
                match ours && events.admits(envelope.shard, (from, envelope.from), envelope.to) {
                    true => messages
                        .push((envelope.shard, Input::Receive { from: envelope.from, message: envelope.message })),
                    false => {
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            if !messages.is_empty() {
                heard.now();
                events.consensus(messages);
            }
            if !frame::fill(&mut stream, &mut buffer).await? {
                return Ok(());
            }
        }
    }

    async fn receive_requests(&self, stream: TcpStream, mut buffer: BytesMut, from: NodeId) -> io::Result<()> {
        let (mut reader, writer) = stream.into_split();
        let heard = self.hearing(from);
        let answers = Arc::new(Outbox::default());
        answers.open();
        let receive = async {
            loop {
                let mut requests = Vec::new();
                while let Some(bytes) = frame::take(&mut buffer)? {
                    requests.push(frame::decode::<Request>(&bytes)?);
                }
                if !requests.is_empty() {
                    heard.now();
                    match read(&self.events).as_ref() {
                        Some(events) => events.requests(from, requests, &answers),
                        None => return Ok(()),
                    }
                }
                if !frame::fill(&mut reader, &mut buffer).await? {
                    return Ok(());
                }
            }
        };
        let result = tokio::select! {
            result = answers.run(writer) => result,
            result = receive => result,
        };
        answers.close();
        result
    }

    async fn receive_questions(&self, mut stream: TcpStream, mut buffer: BytesMut) -> io::Result<()> {
        loop {
            let question = frame::read(&mut stream, &mut buffer).await?;
            let Some(events) = read(&self.events).clone() else { return Ok(()) };
            match question {
                Question::Who { voters } => frame::write(&mut stream, &events.who(&voters)).await?,
                Question::Hashes { shard, at } => {
                    let hashes = tokio::task::spawn_blocking(move || events.hashes(shard, &at)).await;
                    frame::write(&mut stream, &hashes.map_err(io::Error::other)?).await?;
                }
            }
        }
    }

    async fn serve(&self, mut stream: TcpStream, hello: PeerHello) -> io::Result<()> {
        stream.set_nodelay(true)?;
        frame::keep_alive(&stream);
        if let Some(error) = self.refusal(&hello) {
            if error.code != Code::Retry {
                self.tell_once(hello.node, &error.to_string(), "refused a peer");
            }
            return frame::write(&mut stream, &Greeting::Refused(error)).await;
        }
        self.is_the_one(hello.node, hello.nonce);
        frame::write(&mut stream, &Greeting::PeerWelcome { node: self.me, nonce: self.nonce }).await?;
        let buffer = BytesMut::new();
        match hello.channel {
            PeerChannel::Consensus => {
                let ended = self.receive_consensus(stream, buffer, hello.node).await;
                self.disconnected(hello.node);
                ended
            }
            PeerChannel::Requests => self.receive_requests(stream, buffer, hello.node).await,
            PeerChannel::Founding => self.receive_questions(stream, buffer).await,
            PeerChannel::Shipping => {
                let events = read(&self.events).clone();
                if let Some(events) = events {
                    events.ship(stream, buffer, hello.node, self.hearing(hello.node)).await;
                }
                Ok(())
            }
            PeerChannel::Snapshots => {
                let events = read(&self.events).clone();
                if let Some(events) = events {
                    events.give(stream, buffer, hello.node).await;
                }
                Ok(())
            }
        }
    }
}

#[async_trait]
impl PeerDoor for Peers {
    async fn accept(&self, stream: TcpStream, hello: PeerHello) {
        let (node, channel) = (hello.node, hello.channel);
        let ended = tokio::select! {
            () = self.stop.cancelled() => return,
            ended = self.serve(stream, hello) => ended,
        };
        if let Err(why) = ended {
            tracing::debug!(peer = %node, ?channel, %why, "peer connection ended");
        }
    }
}

/// A node's address as the doors show it.
pub fn node_address(node: NodeId, address: String, kind: quorate_shared::status::NodeKind) -> NodeAddress {
    NodeAddress { node, address, kind }
}

impl Response {
    /// Sends a reply to whoever asked, unless no reply is wanted.
    pub fn send(answers: &Outbox, id: u64, body: Reply) {
        if id != 0 {
            answers.push(&Response { id, body });
        }
    }
}
