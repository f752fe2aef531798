//! The client's connection: finding a node, one attempt at a request, noticing that nobody is there any more.

use std::time::{Duration, Instant};

use super::{Attempt, Client, ClientConfig, ClientError, Event, First, Policy, canceled};
use crate::codec::{self, CodecError, Connection};
use crate::error::WireError;
use crate::ids::{NodeId, SessionId};
use crate::status::NodeKind;
use crate::wire::{ClientFrame, ClientHello, Greeting, Hello, Preface, Request, Response, ServerFrame, Welcome};

/// A node that says nothing for so long while a request runs is asked whether it is there.
const PROBE: Duration = Duration::from_secs(2);
/// So many questions in a row without any frame mean that it is not.
const PROBES_MAX: u32 = 2;
/// How much longer than its deadline an answer is waited for.
const GRACE: Duration = Duration::from_millis(250);
/// Pauses between rounds over all nodes.
const ROUND_PAUSE_MS: (u64, u64) = (20, 400);

/// An open connection with a session on it.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) node: NodeId,
    pub(super) address: String,
    pub(super) session: SessionId,
    pub(super) key: u64,
    /// A request whose result nobody reads to the end any more.
    pub(super) abandoned: Option<u64>,
}

/// Opens a connection and a session on it.
pub(super) async fn open(
    address: &str,
    config: &ClientConfig,
    patience: Duration,
    agent: &str,
    settings: &[(String, String)],
) -> Result<(Connection, Welcome), String> {
    let database = settings.iter().find(|(name, _)| name == "database").map(|(_, value)| value.clone());
    let hello = Hello::Client(ClientHello {
        agent: agent.to_owned(),
        user: config.user.clone(),
        database,
        settings: settings.iter().filter(|(name, _)| name != "database").cloned().collect(),
    });
    let work = async {
        let mut connection = codec::connect(address, patience).await?;
        connection.writer.send(&hello).await?;
        let greeting = connection.reader.message::<Greeting>().await?;
        Ok::<_, CodecError>((connection, greeting))
    };
    match tokio::time::timeout(patience, work).await {
        Err(_) => Err(format!("no answer within {} ms", patience.as_millis())),
        Ok(Err(error)) => Err(plain(&error)),
        Ok(Ok((connection, Some(Greeting::Welcome(welcome))))) => Ok((connection, *welcome)),
        Ok(Ok((_, Some(Greeting::Refused(error))))) => Err(refusal(&error)),
        Ok(Ok((_, Some(Greeting::PeerWelcome { .. })))) => Err("it takes us for a node".into()),
        Ok(Ok((_, None))) => Err("it closed the connection".into()),
    }
}

fn refusal(error: &WireError) -> String {
    match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    }
}

/// An I/O error in the words a person uses.
fn plain(error: &CodecError) -> String {
    use std::io::ErrorKind;
    match error {
        CodecError::Io(io) => match io.kind() {
            ErrorKind::ConnectionRefused => "connection refused".into(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "connection reset".into(),
            ErrorKind::UnexpectedEof => "it closed the connection".into(),
            ErrorKind::TimedOut => "no answer".into(),
            _ => io.to_string(),
        },
        CodecError::Version(theirs) if theirs.highest < Preface::OURS.lowest => {
            format!("{error}; it is older: use the quorate that came with it, or upgrade the node")
        }
        CodecError::Version(_) => format!("{error}; it is newer: use the quorate that came with it"),
        CodecError::Slow(timeout) => format!("no answer within {} ms", timeout.as_millis()),
        other => other.to_string(),
    }
}

impl Client {
    /// Opens the first connection: every host once, in order.
    pub(super) async fn connect_once(&mut self) -> Result<(), ClientError> {
        let hosts = self.config.hosts.iter().map(ToString::to_string).collect();
        let tried = match self.try_each(hosts, Instant::now() + self.config.deadline, None).await? {
            None => return Ok(()),
            Some(tried) => tried,
        };
        Err(ClientError::NoConnection { tried })
    }

    /// Tries nodes in order; `None`: the session is there, else why not, per address. A node that says nothing takes no
    /// more of the time left than its share.
    async fn try_each(
        &mut self,
        addresses: Vec<String>,
        deadline: Instant,
        number: Option<u64>,
    ) -> Result<Option<Vec<(String, String)>>, ClientError> {
        let mut tried = Vec::new();
        let mut waiting = addresses.len() as u32;
        for address in addresses {
            if number.is_some_and(|number| self.cancel.asked(number)) {
                return Err(canceled(false));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = self.config.connect_timeout.min(left / waiting.max(1));
            waiting -= 1;
            if patience.is_zero() {
                tried.push((address, "not asked: no time was left".into()));
                continue;
            }
            match self.try_node(&address, patience).await {
                Ok(()) => return Ok(None),
                Err(reason) => tried.push((address, reason)),
            }
        }
        Ok(Some(tried))
    }

    /// Looks for a node after a loss, in rounds, until the deadline or the reconnect timeout.
    pub(super) async fn find_node(&mut self, deadline: Instant, number: u64) -> Result<(), ClientError> {
        let last = deadline.min(Instant::now() + self.config.reconnect_timeout);
        let mut pause = ROUND_PAUSE_MS.0;
        loop {
            let Some(tried) = self.try_each(self.candidates(), deadline, Some(number)).await? else { return Ok(()) };
            let wait = Duration::from_millis(pause);
            if Instant::now() + wait >= last {
                return Err(ClientError::NoConnection { tried });
            }
            self.cancel.sleep(wait, number).await;
            pause = (pause * 2).min(ROUND_PAUSE_MS.1);
        }
    }

    /// Whether there is another node to go to.
    pub(super) fn may_move(&self) -> bool {
        self.candidates().iter().any(|candidate| Some(candidate.as_str()) != self.address())
    }

    /// Whom to ask, in order: the master, other voters, the configured hosts, replicas where they will do, the node lost
    /// last.
    pub(super) fn candidates(&self) -> Vec<String> {
        let mut list: Vec<String> = Vec::new();
        let mut add = |address: String| {
            if !list.contains(&address) {
                list.push(address);
            }
        };
        let (policy, known) = (self.config.policy, self.welcome.as_ref());
        let voters = policy == Policy::Anywhere || policy == Policy::Follow && self.home != Some(NodeKind::Replica);
        if let Some(welcome) = known.filter(|_| voters) {
            welcome.master.iter().for_each(|master| add(master.address.clone()));
            let voters = welcome.nodes.iter().filter(|node| node.kind == NodeKind::Voter);
            voters.for_each(|node| add(node.address.clone()));
        }
        self.config.hosts.iter().for_each(|host| add(host.to_string()));
        if let Some(welcome) = known.filter(|_| policy == Policy::Anywhere) {
            welcome.nodes.iter().for_each(|node| add(node.address.clone()));
        }
        if let Some(left) = &self.left
            && let Some(at) = list.iter().position(|address| address == left)
        {
            let left = list.remove(at);
            list.push(left);
        }
        list
    }

    /// Tries one node; on success the session is there.
    pub(super) async fn try_node(&mut self, address: &str, patience: Duration) -> Result<(), String> {
        let (connection, welcome) = open(address, &self.config, patience, &self.config.agent, &self.settings).await?;
        self.acceptable(&welcome)?;
        let again = self.welcome.is_some();
        self.home.get_or_insert(welcome.kind);
        self.generation += 1;
        self.cancel.set_target(Some((address.to_owned(), welcome.session, welcome.cancel_key)));
        self.link = Some(Link {
            connection,
            node: welcome.node,
            address: address.to_owned(),
            session: welcome.session,
            key: welcome.cancel_key,
            abandoned: None,
        });
        let node = welcome.node;
        self.remember(welcome);
        if again {
            self.tell(&Event::Moved { node, address: address.to_owned() });
        }
        Ok(())
    }

    /// Keeps what a node says of the others; one that knows nobody does not make us forget them.
    fn remember(&mut self, mut welcome: Welcome) {
        if let Some(old) = self.welcome.take() {
            let known: Vec<NodeId> = welcome.nodes.iter().map(|node| node.node).collect();
            welcome.nodes.extend(old.nodes.into_iter().filter(|node| !known.contains(&node.node)));
            welcome.cluster = welcome.cluster.or(old.cluster);
        }
        self.welcome = Some(welcome);
    }

    /// A session stays in its cluster and, where that matters, on its side of voter and replica.
    fn acceptable(&self, welcome: &Welcome) -> Result<(), String> {
        if let Some(home) = self.home
            && home != welcome.kind
            && self.config.policy != Policy::Anywhere
        {
            return Err(format!("it is a {}, and this session began on a {home}", welcome.kind));
        }
        let known = self.welcome.as_ref().and_then(|old| old.cluster);
        match (known, welcome.cluster) {
            (Some(ours), Some(theirs)) if ours != theirs => Err(format!("it belongs to another cluster ({theirs})")),
            _ => Ok(()),
        }
    }

    /// Sends a request once and waits for the first frame of its answer.
    pub(super) async fn attempt(&mut self, body: &Request, deadline: Instant) -> Result<First, Attempt> {
        let request = self.new_request();
        let Some(link) = &mut self.link else { return Err(Attempt::Lost("not connected".into())) };
        if let Some(request) = link.abandoned.take() {
            let body = Request::Cancel { session: link.session, key: link.key, request };
            link.connection.writer.push(&ClientFrame { request: 0, body })?;
        }
        link.connection.writer.push(&FrameRef { request, body })?;
        // The node has the same deadline: what it says when that has passed is worth more than its silence.
        let patience = deadline + GRACE;
        match tokio::time::timeout_at(patience.into(), link.connection.writer.flush()).await {
            Ok(written) => written?,
            Err(_) => return Err(Attempt::Late),
        }
        let response = link.receive(request, Some(patience)).await?;
        Ok(First { request, response })
    }
}

/// [`ClientFrame`] without owning the request; the same bytes.
#[derive(serde::Serialize)]
struct FrameRef<'a> {
    request: u64,
    body: &'a Request,
}

impl Link {
    /// The next frame of a request; frames of others are leftovers and skipped. While nothing comes the node is probed.
    pub(super) async fn receive(&mut self, request: u64, deadline: Option<Instant>) -> Result<Response, Attempt> {
        let mut probes = 0;
        loop {
            let frame = match self.connection.reader.buffered()? {
                Some(frame) => Some(frame),
                None => {
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                    let wait = left.map_or(PROBE, |left| left.min(PROBE));
                    match tokio::time::timeout(wait, self.connection.reader.next()).await {
                        Ok(frame) => frame?,
                        Err(_) if left.is_some_and(|left| left <= PROBE) => return Err(Attempt::Late),
                        Err(_) if probes == PROBES_MAX => {
                            let silent = PROBE.as_millis() * u128::from(PROBES_MAX + 1);
                            return Err(Attempt::Lost(format!("silent for {silent} ms")));
                        }
                        Err(_) => {
                            probes += 1;
                            self.connection.writer.send(&ClientFrame { request: 0, body: Request::Ping }).await?;
                            continue;
                        }
                    }
                }
            };
            let Some(frame) = frame else { return Err(Attempt::Lost("it closed the connection".into())) };
            let frame: ServerFrame = codec::decode(&frame)?;
            probes = 0;
            if frame.request == request {
                return Ok(frame.body);
            }
        }
    }

    /// Lets the server send more batches.
    pub(super) async fn credit(&mut self, request: u64, batches: u32) -> Result<(), Attempt> {
        let body = Request::Credit { request, batches };
        Ok(self.connection.writer.send(&ClientFrame { request: 0, body }).await?)
    }
}
