//! Filling a replica from another node's snapshot, over a connection of its own.
//!
//! Who needs one: a reader whose point the leader's log does not reach back to any more, and a voter that its leader
//! told so. It asks any node for the newest base it has, receives the file in pieces, goes on where a broken connection
//! left off, checks it whole, leaves a mark, and the node begins again in place: its start installs the snapshot (see
//! [`crate::store::snapshots`]). Until then the old state is read as before. Writes go on meanwhile; the server keeps its
//! log from the snapshot's index on for this reader.
//!
//! Invariant: nothing received is used before every checksum and the digests are right.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_core::disk::RealDisk;
use quorate_core::snapshot::install::list;
use quorate_core::snapshot::parse_file_name;
use quorate_shared::ids::{NodeId, ShardId};
use quorate_shared::wire::PeerChannel;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::driver::{Driver, Failure};
use crate::forward::Forwarder;
use crate::housekeeping::bases::Holds;
use crate::peers::message::{SnapshotAsk, SnapshotPart};
use crate::peers::{Peers, frame};
use crate::store::snapshots::{self, RECEIVING};

/// Bytes of one piece.
const PIECE: usize = 512 << 10;
/// What is received and not synced yet: a sync of a whole file at once keeps the log's waiting.
const SYNC_BYTES: u64 = 4 << 20;
/// A server that has been silent for this long is left.
const SILENCE: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// Gives a snapshot to who asks for one.
pub async fn serve(
    data: PathBuf,
    holds: Arc<Holds>,
    mut stream: TcpStream,
    mut buffer: BytesMut,
    reader: NodeId,
) -> io::Result<()> {
    let ask: SnapshotAsk = frame::read(&mut stream, &mut buffer).await?;
    let shard = ask.shard;
    let dir = snapshots::directory(&data);
    let newest = blocking(move || {
        let found = list(&RealDisk, &dir, shard).map_err(|fatal| io::Error::other(fatal.to_string()))?;
        // Open from here on: it can be read to its end although a newer one replaces it.
        found.into_iter().next().map(|(name, head)| Ok((File::open(dir.join(&name))?, name, head))).transpose()
    });
    let Some((file, name, head)) = newest.await? else {
        return frame::write(&mut stream, &SnapshotPart::None).await;
    };
    let file = Arc::new(file);
    let total = file.metadata()?.len();
    let mut at = if ask.have.as_ref().is_some_and(|(have, _)| *have == name) { ask.have.map_or(0, |h| h.1) } else { 0 };
    if at > total {
        at = 0;
    }
    tracing::info!(%reader, %shard, %name, from = at, total, "gives a snapshot");
    frame::write(&mut stream, &SnapshotPart::Begin { name, total, from: at }).await?;
    while at < total {
        holds.hold(shard, reader.get(), head.index());
        let from = file.clone();
        let piece = blocking(move || {
            let mut piece = vec![0; PIECE.min(usize::try_from(total - at).unwrap_or(PIECE))];
            from.read_exact_at(&mut piece, at)?;
            Ok(piece)
        })
        .await?;
        at += piece.len() as u64;
        frame::write(&mut stream, &SnapshotPart::Data(Bytes::from(piece))).await?;
    }
    holds.hold(shard, reader.get(), head.index());
    // The reader closes when it has everything.
    frame::fill(&mut stream, &mut buffer).await.map(drop)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Fetches snapshots for this node.
pub struct Filler {
    /// The data directory.
    pub data: PathBuf,
    /// This node.
    pub me: NodeId,
    /// Connections.
    pub peers: Arc<Peers>,
    /// Where nodes are.
    pub forwarder: Arc<Forwarder>,
    /// Its shards.
    pub driver: Arc<Driver>,
    /// Addresses to try besides.
    pub addresses: Vec<String>,
    /// Told when a snapshot is here.
    pub failures: mpsc::UnboundedSender<(Failure, String)>,
    /// What is being fetched.
    pub busy: Mutex<BTreeSet<ShardId>>,
}

impl Filler {
    /// Fetches a snapshot of a shard, however long it takes; then the node begins again. Returns at once if it is being
    /// fetched already.
    pub async fn fill(&self, shard: ShardId, stop: &CancellationToken) {
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(shard) {
            return;
        }
        tracing::warn!(%shard, "NeedsSnapshot: the log of the cluster begins behind the end of this one");
        let mut told = String::new();
        let mut turn = 0;
        loop {
            let address = self.somebody(shard, &mut turn);
            let fetched = tokio::select! {
                () = stop.cancelled() => return,
                fetched = self.fetch(shard, &address) => fetched,
            };
            match fetched {
                Ok(name) => {
                    tracing::info!(%shard, %name, "received a snapshot; begins again to install it");
                    let why = format!("{shard} is made anew from a snapshot");
                    // Nobody listens any more when the node is stopping.
                    let _ = self.failures.send((Failure::Restart, why));
                    return;
                }
                Err(error) => {
                    let why = error.to_string();
                    if why != told {
                        tracing::warn!(%shard, %address, %why, "cannot fetch a snapshot yet");
                        told = why;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// The leader first, then everybody else.
    fn somebody(&self, shard: ShardId, turn: &mut usize) -> String {
        let leader = self.driver.view(shard).and_then(|view| view.leader().node);
        let leader = leader.and_then(|node| self.peers.address(node));
        let all = self.forwarder.somewhere(leader.into_iter().chain(self.addresses.iter().cloned()));
        *turn += 1;
        all.get((*turn - 1) % all.len().max(1)).cloned().unwrap_or_default()
    }

    /// The file's name, once it is complete, checked and marked.
    async fn fetch(&self, shard: ShardId, address: &str) -> io::Result<String> {
        let dir = snapshots::directory(&self.data);
        tokio::fs::create_dir_all(&dir).await?;
        let hello = self.peers.hello(None, PeerChannel::Snapshots);
        let connected = frame::connect(address, &hello).await.map_err(|e| io::Error::other(e.to_string()))?;
        let (mut stream, mut buffer, _) = connected;
        let have = partial(&dir, shard)?;
        frame::write(&mut stream, &SnapshotAsk { shard, have: have.clone() }).await?;
        let (name, total, mut at) = match next(&mut stream, &mut buffer).await? {
            SnapshotPart::Begin { name, total, from } => (name, total, from),
            SnapshotPart::None => return Err(io::Error::other("it has no snapshot")),
            SnapshotPart::Data(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        let Some((_, index)) = parse_file_name(&name).filter(|(of, _)| *of == shard && at <= total) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it offers something else"));
        };
        if self.driver.view(shard).is_some_and(|view| index <= view.applied()) {
            return Err(io::Error::other("its snapshot is older than what is here"));
        }
        if let Some((old, _)) = have.filter(|(old, _)| *old != name) {
            std::fs::remove_file(dir.join(format!("{RECEIVING}{old}")))?;
        }
        let path = dir.join(format!("{RECEIVING}{name}"));
        let file = Arc::new(File::options().create(true).truncate(false).write(true).open(&path)?);
        file.set_len(at)?;
        let mut synced = at;
        while at < total {
            let SnapshotPart::Data(piece) = next(&mut stream, &mut buffer).await? else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            if piece.is_empty() || at + piece.len() as u64 > total {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let (to, offset) = (file.clone(), at);
            at += piece.len() as u64;
            let sync = at - synced >= SYNC_BYTES;
            if sync {
                synced = at;
            }
            blocking(move || {
                to.write_all_at(&piece, offset)?;
                if sync { to.sync_data() } else { Ok(()) }
            })
            .await?;
        }
        let (data, done) = (self.data.clone(), name.clone());
        blocking(move || snapshots::received(&data, shard, &done).map_err(|fatal| io::Error::other(fatal.to_string())))
            .await?;
        Ok(name)
    }
}

async fn next(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<SnapshotPart> {
    match tokio::time::timeout(SILENCE, frame::read(stream, buffer)).await {
        Ok(part) => part,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server is silent")),
    }
}

/// What an earlier attempt has received: the snapshot's name and how much of it.
fn partial(dir: &std::path::Path, shard: ShardId) -> io::Result<Option<(String, u64)>> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|n| n.strip_prefix(RECEIVING)) else { continue };
        if parse_file_name(name).is_some_and(|(of, _)| of == shard) {
            return Ok(Some((name.to_owned(), entry.metadata()?.len())));
        }
    }
    Ok(None)
}
