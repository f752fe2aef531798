//! How a node comes to what it serves: founding or joining its cluster, the way back of a fenced one, opening what it has.
//!
//! Whatever is waited for here may take for ever; it is said in the log and in the node's status.
//!
//! Invariant: nothing is opened before the node knows that it is still of its cluster's epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use quorate_core::log::EpochStart;
use quorate_shared::ids::{Epoch, Index, NodeId, ReplicaId, ShardId};
use quorate_shared::status::NodeKind;

use super::{NodeError, Parts};
use crate::config::Role;
use crate::founding::{self, Verdict};
use crate::peers::message::{Answer, Founding};
use crate::report::NodeState;
use crate::store::engine::{self, Opened, Store};
use crate::store::rejoin::{Fenced, rejoin};
use crate::store::{self, Directory};

/// Pause between two rounds of looking for a node of a newer epoch.
const LOOK: Duration = Duration::from_millis(500);
/// What is waited for without an end is logged again so often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Makes the node part of its cluster and opens what it has; `None`: a voter that has lost its log.
pub(super) async fn form(
    parts: &Parts,
    directory: &mut Directory,
    voters: &BTreeMap<NodeId, String>,
) -> Result<Option<Opened>, NodeError> {
    if directory.founding().is_none()
        && let Some((why, founding)) = belong(parts, directory, voters).await?
    {
        return lost(parts, directory, &why, &Arc::new(founding));
    }
    let Some(founding) = directory.founding().cloned() else {
        return Err(NodeError::Failed("the founding record has vanished".into()));
    };
    let founding = Arc::new(founding);
    parts.peers.founded(founding.clone());
    if let Some(fenced) = Fenced::of(directory) {
        // Nodes of that epoch may tell where they are, and show this one in their picture.
        parts.peers.set_epoch(fenced.epoch);
        let (address, starts) = find_epoch(parts, &founding, &fenced).await;
        let hashes = async |shard, at: Vec<Index>| parts.peers.hashes(&address, shard, &at).await;
        rejoin(directory, &starts, parts.config.retention.segment_bytes, hashes).await?;
        return Err(NodeError::Restart("it goes on as a replica of the newer epoch".into()));
    }
    parts.forwarder.founded(founding.clone());
    // A second founding cannot happen.
    let _ = parts.events.founding.set(founding.clone());
    waits(parts, "it opens its log and engine".into());
    open(parts, directory, &founding).await
}

fn waits(parts: &Parts, why: String) {
    parts.forwarder.set_state(NodeState::Forming(why));
}

/// Founds or joins a cluster and begins its log; the cluster of which this node was a voter, and how it is known, if its
/// log is lost.
async fn belong(
    parts: &Parts,
    directory: &mut Directory,
    voters: &BTreeMap<NodeId, String>,
) -> Result<Option<(String, Founding)>, NodeError> {
    let config = &parts.config;
    let segment_bytes = config.retention.segment_bytes;
    let founding = match &config.role {
        Role::Voter(_) => {
            let (nonce, replicator) = (directory.nonce(), config.replicator.unwrap_or_default());
            let says = |why| waits(parts, why);
            match founding::agree(&parts.peers, config.node, nonce, voters, replicator, says).await {
                Verdict::Found(members) => founding::mint(members, replicator)?,
                Verdict::Join(founding) => founding,
                Verdict::Lost(why, founding) => {
                    // Without a log there is nothing to set aside.
                    engine::begin(directory, &founding, ReplicaId::NONE, segment_bytes)?;
                    return Ok(Some((why, *founding)));
                }
                Verdict::Wait(why) => return Err(NodeError::Failed(why)),
            }
        }
        Role::Replica(addresses) => find_cluster(parts, addresses).await,
    };
    let member = founding.members.iter().find(|m| m.node == config.node && config.kind() == NodeKind::Voter);
    let replica = member.map_or(ReplicaId::NONE, |m| m.replica);
    engine::begin(directory, &founding, replica, segment_bytes)?;
    let Founding { cluster, replicator, members, .. } = &founding;
    tracing::info!(%cluster, %replicator, voters = members.len(), "belongs to a cluster");
    directory.check_replicator(config.replicator)?;
    Ok(None)
}

/// Opens log and engine, in whatever role they are for by now.
async fn open(parts: &Parts, directory: &mut Directory, founding: &Arc<Founding>) -> Result<Option<Opened>, NodeError> {
    let (path, kind, nonce) = (directory.path().to_owned(), parts.config.kind(), directory.nonce());
    let (config, given) = (parts.config.clone(), founding.clone());
    let segment_bytes = config.retention.segment_bytes;
    let opened = tokio::task::spawn_blocking(move || engine::open(&path, &config, &given, nonce))
        .await
        .map_err(|e| NodeError::Failed(format!("opening the data directory panicked: {e}")))??;
    match opened {
        Store::Opened(opened) if opened.kind != kind => {
            directory.set_kind(opened.kind)?;
            let applied: Vec<_> = opened.shards.iter().map(|s| (s.view.shard, s.view.applied())).collect();
            let now = opened.kind;
            opened.closing.close(&applied, None);
            Err(NodeError::Restart(format!("this node is a {now} from here on")))
        }
        Store::Opened(opened) => Ok(Some(*opened)),
        Store::Lost(why) if kind == NodeKind::Voter => {
            engine::restart(directory, ReplicaId::NONE, segment_bytes)?;
            lost(parts, directory, &why, founding)
        }
        Store::Lost(why) => {
            // A replica owes nobody anything: it starts again from nothing.
            tracing::warn!(%why, "this replica starts again from nothing");
            engine::restart(directory, ReplicaId::NONE, segment_bytes)?;
            Err(NodeError::Restart(format!("this replica starts again from nothing: {why}")))
        }
    }
}

/// A voter without a log is a new voter: it begins again as a log-shipped replica, and is made a voter under another id
/// once it has what the others have ([`crate::roles`]). The only voter of a cluster stays up to say why.
fn lost(
    parts: &Parts,
    directory: &mut Directory,
    why: &str,
    founding: &Arc<Founding>,
) -> Result<Option<Opened>, NodeError> {
    tracing::error!(%why, "this voter has lost its log; it neither votes nor acknowledges");
    parts.peers.founded(founding.clone());
    parts.forwarder.founded(founding.clone());
    parts.forwarder.set_state(NodeState::LostLog(why.to_owned()));
    let Role::Voter(voters) = &parts.config.role else { return Ok(None) };
    if !voters.keys().chain(founding.members.iter().map(|m| &m.node)).any(|node| *node != parts.config.node) {
        return Ok(None);
    }
    store::leave_note(directory.path(), store::LOST, why);
    directory.set_kind(NodeKind::Replica)?;
    Err(NodeError::Restart(format!("this voter has lost its log and begins again as a replica: {why}")))
}

/// Asks everybody known where the newer epoch began, until somebody of it answers, and where that one is. Who is known is looked up in every
/// round: by the note, the command line, and whoever has connected meanwhile.
async fn find_epoch(
    parts: &Parts,
    founding: &Founding,
    fenced: &Fenced,
) -> (String, Vec<(ShardId, Epoch, EpochStart)>) {
    let number = fenced.epoch.number;
    let mut told: Option<Instant> = None;
    loop {
        let mut addresses: BTreeSet<String> = fenced.addresses.clone();
        match &parts.config.role {
            Role::Voter(peers) => addresses.extend(peers.values().cloned()),
            Role::Replica(of) => addresses.extend(of.iter().cloned()),
        }
        addresses.extend(parts.peers.addresses());
        addresses.remove(parts.forwarder.address());
        let asked = addresses.into_iter().map(|address| async {
            let answer = parts.peers.who(&address, None).await;
            (address, answer)
        });
        let (mut found, mut others) = (None, Vec::new());
        for (address, answer) in join_all(asked).await {
            match answer {
                Ok(answer) if fenced.is_ended_by(founding.cluster, &answer) => found = Some((address, answer)),
                Ok(answer) => {
                    others.push(format!("{} at {address} is not of it", answer.node));
                    // It may know who is.
                    let same = answer.founding.is_some_and(|theirs| theirs.cluster == founding.cluster);
                    parts.peers.learn(answer.nodes.into_iter().filter(|_| same).map(|n| (n.node, n.address)));
                }
                Err(why) => others.push(format!("{address} ({why})")),
            }
        }
        if let Some((address, Answer { node, epochs, .. })) = found {
            tracing::info!(number, from = %node, "found where the newer epoch began");
            return (address, epochs);
        }
        let asked = if others.is_empty() { "nobody is known".to_owned() } else { others.join(", ") };
        let why = format!("epoch {number} has begun without it; it looks for a node of that epoch: {asked}");
        if told.is_none_or(|at| at.elapsed() > TELL_EVERY) {
            tracing::warn!("this node is fenced: {why}");
            told = Some(Instant::now());
        }
        waits(parts, why);
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the given addresses until one names its cluster.
async fn find_cluster(parts: &Parts, addresses: &[String]) -> Founding {
    let mut pause = Duration::from_millis(50);
    let mut told = String::new();
    loop {
        let mut why = Vec::new();
        for address in addresses {
            match parts.peers.who(address, None).await {
                Ok(Answer { founding: Some(founding), nodes, .. }) => {
                    parts.peers.learn(nodes.into_iter().map(|n| (n.node, n.address)));
                    return founding;
                }
                Ok(answer) => why.push(format!("{} at {address} belongs to no cluster yet", answer.node)),
                Err(error) => why.push(format!("{address} ({error})")),
            }
        }
        let why = format!("it waits for {}", why.join(", "));
        if why != told {
            tracing::info!("no cluster yet: {why}");
            told.clone_from(&why);
        }
        waits(parts, why);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
