//! Log shipping: this node's streams to readers, and a replica's own streams from the leaders.
//!
//! A replica dials the leader of each shard, found through the addresses it was given and redirected by whoever it
//! reaches; one connection per shard. Only a leader serves a shard's stream, so it knows every reader's lag at first hand.
//! The stream itself (what follows what, what is refused) is `quorate_core::ship`'s.
//!
//! Invariants: a broken connection loses nothing; the next pull begins where the replica's own log ends. A node that was
//! removed from the cluster gets nothing any more from a server that knows of it, and finds out why when it asks again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quorate_core::error::Fatal;
use quorate_core::lag::ReaderReport;
use quorate_core::log::LogReader;
use quorate_core::shard::Input;
use quorate_core::ship::serve::Sender;
use quorate_core::ship::{ReaderMessage, Refusal, ServerMessage, ShipProgress};
use quorate_shared::ids::{Epoch, NodeId, ShardId};
use quorate_shared::status::NodeKind;
use quorate_shared::wire::{NodeAddress, PeerChannel};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::driver::Driver;
use crate::driver::view::{Leader, ShardView};
use crate::fill::Filler;
use crate::forward::Forwarder;
use crate::peers::message::Shipment;
use crate::peers::{Heard, Outbox, Peers, frame};
use crate::router::Moment;

/// Sign of life when there is nothing to send.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// How often a replica asks how old it is.
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// How long the quorum may take for the answer.
const PROBE_WAIT: Duration = Duration::from_secs(2);
/// Answers to probes on their way to one reader.
const ANSWERS_MAX: usize = 16;
/// A server that has been silent for this long is left.
const SILENCE: Duration = Duration::from_secs(2);
/// Pause between two attempts to find a leader.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Reader messages read and not yet acted on.
const MESSAGES_MAX: usize = 1024;

/// What a server of streams needs of its node.
pub struct Server {
    /// Its shards.
    pub driver: Arc<Driver>,
    /// Its log.
    pub log: Arc<dyn LogReader>,
    /// This node.
    pub node: NodeId,
    /// Where nodes are.
    pub forwarder: Arc<Forwarder>,
}

impl Server {
    /// Serves one reader's connection until it ends.
    pub async fn serve(&self, stream: TcpStream, mut buffer: BytesMut, reader: NodeId, heard: Heard) -> io::Result<()> {
        let (mut input, mut output) = stream.into_split();
        let (sender, mut messages) = mpsc::channel(MESSAGES_MAX);
        let receive = async {
            loop {
                while let Some(bytes) = frame::take(&mut buffer)? {
                    let message = ReaderMessage::decode(&bytes)
                        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                    heard.now();
                    if sender.send(message).await.is_err() {
                        return Ok(());
                    }
                }
                if !frame::fill(&mut input, &mut buffer).await? {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = receive => ended,
            ended = self.stream(&mut messages, &mut output, reader) => ended,
        }
    }

    fn leader_of(&self, view: &ShardView) -> Shipment {
        let leader = view.leader();
        let address = |node: NodeId| self.forwarder.known().into_iter().find(|n| n.node == node);
        Shipment::Leader { shard: view.shard, term: leader.term, leader: leader.node.and_then(address) }
    }

    async fn stream(
        &self,
        messages: &mut mpsc::Receiver<ReaderMessage>,
        output: &mut OwnedWriteHalf,
        reader: NodeId,
    ) -> io::Result<()> {
        let Some(ReaderMessage::Pull(pull)) = messages.recv().await else { return Ok(()) };
        let Some(view) = self.driver.view(pull.shard).cloned() else {
            return refuse(output, Refusal::NotHere(pull.shard)).await;
        };
        frame::write(output, &self.leader_of(&view)).await?;
        if view.leader().node != Some(self.node) {
            return Ok(());
        }
        let at = view.applied_point();
        let epoch = (at.epoch, at.epoch_start);
        let mut sender =
            match Sender::begin(&*self.log, epoch, view.committed(), &pull).map_err(|fatal| io_failure(&fatal))? {
                Ok(sender) => sender,
                Err(refusal) => {
                    if matches!(refusal, Refusal::NeedsSnapshot { .. }) {
                        // It is in the picture all the same, with where it is.
                        let (node, kind, at) = (reader, NodeKind::Replica, pull.index);
                        let report = ReaderReport { node, kind, sent: at, received: at, durable: at, applied: at };
                        self.driver.input(pull.shard, Input::Report(report));
                    }
                    return refuse(output, refusal).await;
                }
            };
        tracing::info!(%reader, shard = %pull.shard, after = %pull.index, "ships its log");
        // Not a sleep made anew in each round: the reader's reports come more often than a heartbeat is due.
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (answers, mut answered) = mpsc::channel(ANSWERS_MAX);
        loop {
            let changed = view.committed_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if view.leader().node != Some(self.node) {
                return frame::write(output, &self.leader_of(&view)).await;
            }
            if self.driver.catalog().has_removed(reader) {
                // Whoever lets it in the next time says so.
                tracing::info!(%reader, shard = %pull.shard, "it was removed; its stream ends");
                return Ok(());
            }
            // Reads the log, which may be on disk: not worth a blocking thread for recent entries.
            loop {
                let batch = match sender.next(&*self.log, view.committed()) {
                    Ok(Some(batch)) => batch,
                    Ok(None) => break,
                    Err(fatal) => match self.log.bounds(pull.shard).map(|b| b.base.index) {
                        // It was trimmed although this reader is not there yet: it was too far behind.
                        Some(first) if first > sender.sent() => {
                            return refuse(output, Refusal::NeedsSnapshot { first }).await;
                        }
                        _ => return Err(io_failure(&fatal)),
                    },
                };
                ship(output, &ServerMessage::Batch(batch)).await?;
                while let Ok(message) = messages.try_recv() {
                    self.note(&mut sender, &message, reader, pull.shard, &answers);
                }
                while let Ok(answer) = answered.try_recv() {
                    ship(output, &answer).await?;
                }
            }
            tokio::select! {
                () = changed => {}
                message = messages.recv() => match message {
                    Some(message) => self.note(&mut sender, &message, reader, pull.shard, &answers),
                    None => return Ok(()),
                },
                Some(answer) = answered.recv() => ship(output, &answer).await?,
                _ = beat.tick() => {
                    let heartbeat = sender.heartbeat(view.committed());
                    ship(output, &ServerMessage::Batch(heartbeat)).await?;
                }
            }
        }
    }

    fn note(
        &self,
        sender: &mut Sender,
        message: &ReaderMessage,
        reader: NodeId,
        shard: ShardId,
        answers: &mpsc::Sender<ServerMessage>,
    ) {
        match message {
            ReaderMessage::Progress(progress) => {
                sender.progress(progress);
                self.driver.input(shard, Input::Report(sender.report(reader)));
            }
            ReaderMessage::Probe { tag } => {
                let (tag, answers) = (*tag, answers.clone());
                let done = move |index| {
                    if let Ok(index) = index {
                        // The reader asks again soon: a dropped answer costs nothing but age.
                        let _ = answers.try_send(ServerMessage::Confirmed { tag, index, age: 0 });
                    }
                };
                self.driver.read(shard, Instant::now() + PROBE_WAIT, Box::new(done));
            }
            ReaderMessage::Pull(_) => {}
        }
    }
}

fn io_failure(fatal: &Fatal) -> io::Error {
    io::Error::other(fatal.to_string())
}

async fn ship(output: &mut OwnedWriteHalf, message: &ServerMessage) -> io::Result<()> {
    frame::write(output, &Shipment::Stream(message.encode())).await
}

async fn refuse(output: &mut OwnedWriteHalf, refusal: Refusal) -> io::Result<()> {
    ship(output, &ServerMessage::Refused(refusal)).await
}

/// Where a replica's reports go: the connection of each shard's stream.
#[derive(Default)]
pub struct ProgressOut(Mutex<BTreeMap<ShardId, Arc<Outbox>>>);

impl ProgressOut {
    /// Tells the server of the shard's stream, if there is one.
    pub fn send(&self, progress: ShipProgress) {
        let outbox = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&progress.shard).cloned();
        if let Some(outbox) = outbox {
            outbox.push_raw(&ReaderMessage::Progress(progress).encode());
        }
    }
}

/// How a replica's stream ended.
enum End {
    /// Try there next.
    Moved(Option<NodeAddress>),
    /// Try again.
    Broken(String),
    /// The histories differ: this replica has to start again from nothing.
    Diverged(String),
    /// This replica has what is not in the newer epoch: it has to cut that off first.
    CutOff(Epoch),
    /// The server's log begins behind the end of this replica's.
    Behind,
}

/// A replica's side: keeps a stream per shard.
pub struct Puller {
    /// Its shards.
    pub driver: Arc<Driver>,
    /// Connections.
    pub peers: Arc<Peers>,
    /// Told how fresh the replica is.
    pub forwarder: Arc<Forwarder>,
    /// Where reports go.
    pub progress: Arc<ProgressOut>,
    /// The addresses of `--replica-of`.
    pub addresses: Vec<String>,
    /// Fetches a snapshot when the log is not enough.
    pub filler: Arc<Filler>,
    /// Called when the replica must start again from nothing.
    pub diverged: Box<dyn Fn(ShardId, String) + Send + Sync>,
}

impl Puller {
    /// Pulls a shard until told to stop.
    pub async fn pull(&self, shard: ShardId, stop: CancellationToken) {
        let Some(view) = self.driver.view(shard).cloned() else { return };
        let mut pause = PAUSE.0;
        let mut next: Option<String> = None;
        let mut turn = 0;
        let mut told = String::new();
        loop {
            let address = next.take().unwrap_or_else(|| self.somebody(&mut turn));
            let began = Instant::now();
            let end = tokio::select! {
                () = stop.cancelled() => return,
                end = self.follow(&view, &address) => end,
            };
            view.set_leader(Leader { node: None, ready: false, ..view.leader() });
            if began.elapsed() > SILENCE {
                pause = PAUSE.0;
            }
            match end {
                End::Moved(Some(leader)) => {
                    self.peers.learn([(leader.node, leader.address.clone())]);
                    next = (leader.address != address).then_some(leader.address);
                }
                End::Moved(None) => {}
                End::Broken(why) => {
                    if why != told {
                        tracing::warn!(%shard, %address, %why, "the stream has ended");
                        told = why;
                    }
                }
                End::Behind => {
                    self.filler.fill(shard, &stop).await;
                    return;
                }
                End::CutOff(epoch) => {
                    tracing::error!(%shard, %address, epoch = epoch.number, "this replica has what is not in the new epoch");
                    self.peers.cut_off(epoch);
                    return;
                }
                End::Diverged(why) => {
                    tracing::error!(%shard, %address, %why, "this replica's history is not the cluster's");
                    (self.diverged)(shard, why);
                    return;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// The next address to try. In a newer epoch somebody else may lead, whom only its own word may have named.
    fn somebody(&self, turn: &mut usize) -> String {
        let all = self.forwarder.somewhere(self.addresses.iter().cloned());
        *turn += 1;
        // With nobody known, nobody is found; it is asked for again.
        all.get((*turn - 1) % all.len().max(1)).cloned().unwrap_or_default()
    }

    async fn follow(&self, view: &Arc<ShardView>, address: &str) -> End {
        match self.try_follow(view, address).await {
            Ok(end) => end,
            Err(error) => End::Broken(error.to_string()),
        }
    }

    async fn try_follow(&self, view: &Arc<ShardView>, address: &str) -> io::Result<End> {
        let shard = view.shard;
        let hello = self.peers.hello(None, PeerChannel::Shipping);
        let (stream, mut buffer, greeting) = match frame::connect(address, &hello).await {
            Ok(connected) => connected,
            Err(error) => {
                self.peers.heed_removal(&error);
                return Ok(End::Broken(error.to_string()));
            }
        };
        let (sender, pull) = oneshot::channel();
        // The puller has given up when the receiver is gone.
        self.driver.pull(shard, Box::new(move |pull| drop(sender.send(pull))));
        let Ok(Some(pull)) = pull.await else { return Ok(End::Broken("this replica has stopped".into())) };
        let (mut input, output) = stream.into_split();
        let outbox = Arc::new(Outbox::default());
        outbox.open();
        outbox.push_raw(&ReaderMessage::Pull(pull).encode());
        self.progress.0.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, outbox.clone());
        let quorate_shared::wire::Greeting::PeerWelcome { node: server, .. } = greeting else {
            return Ok(End::Broken("an unexpected greeting".into()));
        };
        let heard = self.peers.hearing(server);
        let (bad_sender, mut bad) = mpsc::channel(1);
        let receive = async {
            loop {
                while let Some(bytes) = frame::take(&mut buffer)? {
                    heard.now();
                    if let Some(end) = self.shipment(view, server, frame::decode(&bytes)?, &bad_sender) {
                        return Ok(end);
                    }
                }
                match tokio::time::timeout(SILENCE, frame::fill(&mut input, &mut buffer)).await {
                    Ok(filled) => {
                        if !filled? {
                            return Ok(End::Broken("closed by the server".into()));
                        }
                    }
                    Err(_) => return Ok(End::Broken("the server is silent".into())),
                }
            }
        };
        let probe = async {
            loop {
                outbox.push_raw(&ReaderMessage::Probe { tag: Moment::now().micros() }.encode());
                tokio::time::sleep(PROBE_EVERY).await;
            }
        };
        let ended = tokio::select! {
            ended = receive => ended,
            () = probe => Ok(End::Broken("it asks no more".into())),
            ended = outbox.run(output) => Err(ended.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())),
            why = bad.recv() => Ok(why.unwrap_or(End::Broken("this replica has stopped".into()))),
        };
        outbox.close();
        ended
    }

    /// Acts on one message of the server.
    fn shipment(
        &self,
        view: &Arc<ShardView>,
        server: NodeId,
        shipment: Shipment,
        bad: &mpsc::Sender<End>,
    ) -> Option<End> {
        match shipment {
            Shipment::Leader { term, leader: Some(leader), .. } if leader.node == server => {
                self.peers.learn([(server, leader.address)]);
                view.set_leader(Leader { term, node: Some(server), ready: false });
                None
            }
            Shipment::Leader { leader, .. } => Some(End::Moved(leader)),
            Shipment::Stream(bytes) => match ServerMessage::decode(&bytes) {
                Err(error) => Some(End::Broken(error.to_string())),
                Ok(ServerMessage::Refused(Refusal::Diverged { index, ours })) => {
                    Some(End::Diverged(format!("entry {index} has the hash {ours} there")))
                }
                Ok(ServerMessage::Refused(Refusal::NeedsSnapshot { .. })) => Some(End::Behind),
                Ok(ServerMessage::Refused(Refusal::NewEpoch { epoch, .. })) => Some(End::CutOff(epoch)),
                Ok(ServerMessage::Refused(refusal)) => Some(End::Broken(refusal.to_string())),
                Ok(ServerMessage::Confirmed { tag, index, age }) => {
                    let asked = Moment::from_micros(tag.saturating_sub(age));
                    self.forwarder.confirm(view.shard, index, asked);
                    None
                }
                Ok(ServerMessage::Batch(batch)) => {
                    let bad = bad.clone();
                    // Only the first reason counts.
                    let refused = move |why: quorate_core::ship::follow::BadBatch| {
                        drop(bad.try_send(End::Broken(why.to_string())));
                    };
                    self.driver.shipped(batch, Box::new(refused));
                    None
                }
            },
        }
    }
}
