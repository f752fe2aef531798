//! Who is let in, and what being refused says of this node.
//!
//! Whoever connects names its cluster, epoch, number, data directory and address. Refused are: somebody meant for another
//! node, a second node of one number while the first is there, another cluster, a removed node, another epoch. A refusal
//! is also news: of a newer epoch, of one that rivals this node's, of having been removed.
//!
//! Invariant: of two epochs of one number neither lets the other in, on any channel but the founding one.

use std::io;
use std::time::{Duration, Instant};

use quorate_core::epoch::{self, Relation};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Epoch, NodeId, Nonce};
use quorate_shared::wire::{PeerChannel, PeerHello};

use super::{Peers, frame, get, read, write};

/// How a refusal begins that says that this node is no part of the cluster any more.
const REMOVED: &str = "Removed: ";
/// How a refusal begins that says that this node's epoch is over.
const OVER: &str = "EpochOver: ";
/// How a refusal begins that says that there are two epochs of one number.
const RIVAL: &str = "TwoEpochs: ";
/// Nodes of a rival epoch that are remembered.
const RIVALS_MAX: usize = 64;
/// Reasons remembered for which a node was not let in.
const TOLD_MAX: usize = 256;
/// A node that was heard within this time is there: another one of its number is refused.
const TWIN_MS: u64 = 3_000;
/// For so long after its last attempt a second node of one number is a problem.
const TWIN_TOLD: Duration = Duration::from_secs(10);
/// Second nodes that are remembered.
const TWINS_MAX: usize = 64;

/// A node that was refused because another one of its number is there.
pub(super) struct Twin {
    nonce: Nonce,
    address: String,
    at: Instant,
}

impl Peers {
    /// Why a connection to a node could not be made; remembers what its refusal says of this node.
    pub(super) fn heed(&self, node: NodeId, error: &frame::ConnectError) -> String {
        let text = error.to_string();
        let refusal = match error {
            frame::ConnectError::Refused(refusal) => refusal,
            frame::ConnectError::Io(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.tell_once(node, &text, "a peer cannot be understood");
                }
                return text;
            }
        };
        if refusal.code != Code::Retry {
            self.tell_once(node, &text, "a peer has refused this node");
        }
        self.heed_removal(error);
        let epoch = refusal.detail.as_deref().and_then(|detail| detail.parse::<Epoch>().ok());
        match epoch {
            Some(epoch) if refusal.message.starts_with(OVER) => self.heard_of(epoch),
            Some(epoch) if refusal.message.starts_with(RIVAL) => self.rival(node, epoch),
            _ => {}
        }
        text
    }

    /// Remembers that this node was removed, if that is why it was refused.
    pub fn heed_removal(&self, error: &frame::ConnectError) {
        if let frame::ConnectError::Refused(refusal) = error
            && let Some(why) = refusal.message.strip_prefix(REMOVED)
        {
            *get(&self.expelled) = Some(why.to_owned());
        }
    }

    /// Logs why a node and this one do not come together, once for each kind of reason.
    pub(super) fn tell_once(&self, node: NodeId, why: &str, what: &str) {
        let name = why.split_once(':').map_or(why, |(name, _)| name).to_owned();
        let mut told = get(&self.told);
        if told.len() < TOLD_MAX && told.insert((node, name)) {
            tracing::warn!(peer = %node, %why, "{what}");
        }
    }

    /// Who said that this node was removed from the cluster, if anybody did.
    pub fn expelled(&self) -> Option<String> {
        get(&self.expelled).clone()
    }

    /// Why a peer is not let in, if it is not.
    pub(super) fn refusal(&self, hello: &PeerHello) -> Option<WireError> {
        let denied = |message: String| Some(WireError::new(Code::Denied, message));
        if let Some(to) = hello.to.filter(|to| *to != self.me) {
            return denied(format!("this is {}, not {to}", self.me))
                .map(|e| e.hint("two nodes' addresses are confused; compare --peers and --advertise"));
        }
        if let Some(why) = self.twin(hello) {
            let twin = Twin { nonce: hello.nonce, address: hello.address.clone(), at: Instant::now() };
            let mut twins = get(&self.twins);
            if twins.len() < TWINS_MAX || twins.contains_key(&hello.node) {
                twins.insert(hello.node, twin);
            }
            return denied(why).map(|e| e.hint("a node's number is never given twice; choose another --id"));
        }
        if hello.channel == PeerChannel::Founding {
            return None;
        }
        let Some(founding) = read(&self.founding).clone() else {
            return Some(WireError::new(Code::Retry, format!("{} belongs to no cluster yet", self.me)));
        };
        if hello.cluster != Some(founding.cluster) {
            let theirs = hello.cluster.map_or_else(|| "no cluster".to_owned(), |c| format!("cluster {c}"));
            let (node, me, ours) = (hello.node, self.me, founding.cluster);
            return denied(format!("OtherCluster: {node} belongs to {theirs}, {me} to cluster {ours}"));
        }
        let events = read(&self.events).clone();
        let removed = events.is_some_and(|events| events.removed(hello.node));
        if !removed {
            // Also of another epoch: whoever has to change epochs needs to find it.
            self.says(hello.node, &hello.address);
        }
        if let Some(error) = self.other_epoch(hello) {
            return Some(error);
        }
        if removed {
            let message = format!("{REMOVED}{} says that {} was removed from the cluster", self.me, hello.node);
            return denied(message).map(|e| e.hint("its number is not given again; choose another --id"));
        }
        None
    }

    /// Why a node of another epoch is not let in. A log-shipped replica of an older one may read on from where it is, and
    /// be filled where the log does not reach back to it.
    fn other_epoch(&self, hello: &PeerHello) -> Option<WireError> {
        let (ours, theirs, node) = (self.epoch(), hello.epoch, hello.node);
        let message = match epoch::relation(ours, theirs) {
            Relation::Same => {
                get(&self.rivals).remove(&node);
                return None;
            }
            Relation::Older if matches!(hello.channel, PeerChannel::Shipping | PeerChannel::Snapshots) => return None,
            Relation::Older => format!("{OVER}{node} is in epoch {}, {} in {}", theirs.number, self.me, ours.number),
            Relation::Newer => {
                self.heard_of(theirs);
                format!("EpochBehind: {node} is in epoch {}, {} still in {}", theirs.number, self.me, ours.number)
            }
            Relation::Conflict => {
                self.rival(node, theirs);
                let (me, number) = (self.me, ours.number);
                format!("{RIVAL}{node} and {me} are in two different epochs {number}; neither follows the other")
            }
        };
        // For whoever reads it by machine.
        Some(WireError::new(Code::Denied, message).detail(ours.to_string()))
    }

    /// The epoch this node is in.
    pub fn epoch(&self) -> Epoch {
        *read(&self.epoch)
    }

    /// This node is in this epoch from here on.
    pub fn set_epoch(&self, epoch: Epoch) {
        *write(&self.epoch) = epoch;
    }

    fn heard_of(&self, newer: Epoch) {
        let mut known = get(&self.newer);
        if known.is_none_or(|known| newer.number > known.number) {
            *known = Some(newer);
        }
    }

    fn rival(&self, node: NodeId, epoch: Epoch) {
        let mut rivals = get(&self.rivals);
        if rivals.len() < RIVALS_MAX && rivals.insert(node, epoch) != Some(epoch) {
            let number = epoch.number;
            tracing::error!(%node, number, "TwoEpochs: it is in another epoch of the same number; neither follows the other");
        }
    }

    /// Nodes in another epoch of the same number as this node's: two histories that do not come together by themselves.
    pub fn rivals(&self) -> Vec<(NodeId, Epoch)> {
        let ours = self.epoch();
        let rivals = get(&self.rivals);
        let all = rivals.iter().map(|(node, epoch)| (*node, *epoch));
        all.filter(|(_, theirs)| epoch::relation(ours, *theirs) == Relation::Conflict).collect()
    }

    /// A newer epoch's node has refused this node's log: it has what is not in that epoch.
    pub fn cut_off(&self, newer: Epoch) {
        *get(&self.cut_off) = Some(newer);
    }

    /// The epoch that has refused this node's log.
    pub fn refused_by(&self) -> Option<Epoch> {
        *get(&self.cut_off)
    }

    /// An epoch newer than this node's that was heard of.
    pub fn newer_epoch(&self) -> Option<Epoch> {
        get(&self.newer).filter(|newer| newer.number > self.epoch().number)
    }

    /// A node is there, with this data directory: it is no second one of its number, whatever it was taken for.
    pub(super) fn is_the_one(&self, node: NodeId, nonce: Nonce) {
        write(&self.nonces).insert(node, nonce);
        let mut twins = get(&self.twins);
        if twins.get(&node).is_some_and(|twin| twin.nonce == nonce) {
            twins.remove(&node);
        }
    }

    /// Nodes lately refused because another one of their number is there, and where they say they are.
    pub fn twins(&self) -> Vec<(NodeId, String)> {
        let mut twins = get(&self.twins);
        twins.retain(|_, twin| twin.at.elapsed() < TWIN_TOLD);
        twins.iter().map(|(node, twin)| (*node, twin.address.clone())).collect()
    }

    /// Whether another node of that number is there, with another data directory.
    fn twin(&self, hello: &PeerHello) -> Option<String> {
        let node = hello.node;
        if node == self.me && hello.nonce != self.nonce {
            return Some(format!("DuplicateNode: {node} is this node; another one calls itself so too"));
        }
        let known = read(&self.nonces).get(&node).copied().filter(|nonce| *nonce != hello.nonce)?;
        self.hearing(node).age_ms().filter(|age| *age < TWIN_MS)?;
        Some(format!("DuplicateNode: another {node} is there, with the data directory {known}"))
    }
}
