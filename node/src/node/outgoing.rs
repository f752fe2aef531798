//! Where the driver's effects go: messages to peers, reports to the streams' servers, faults to whoever runs the node.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::ship::ShipProgress;
use quorate_shared::ids::{ClusterId, ReplicaId, ShardId};
use tokio::sync::mpsc;

use crate::driver::{Failure, Held, Outgoing};
use crate::forward::Forwarder;
use crate::peers::Peers;
use crate::peers::message::Envelope;
use crate::shipping::ProgressOut;

/// Where the driver's effects go.
pub(super) struct NodeOutgoing {
    pub(super) hooks: Option<PathBuf>,
    pub(super) peers: Arc<Peers>,
    pub(super) cluster: ClusterId,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) data: PathBuf,
    pub(super) progress: Arc<ProgressOut>,
    pub(super) needs: mpsc::UnboundedSender<ShardId>,
    pub(super) failures: mpsc::UnboundedSender<(Failure, String)>,
}

impl Outgoing for NodeOutgoing {
    fn send(&self, shard: ShardId, from: ReplicaId, to: ReplicaId, message: Bytes) {
        let Some(node) = self.forwarder.home(shard, to) else { return };
        let (cluster, epoch) = (self.cluster, self.peers.epoch());
        self.peers.send(node, &Envelope { cluster, epoch, shard, from, to, message });
    }

    fn free_bytes(&self) -> Option<u64> {
        match self.hooks.as_ref().is_some_and(|hooks| hooks.join("full").exists()) {
            true => Some(0),
            false => crate::store::free_bytes(&self.data).ok(),
        }
    }

    fn flush(&self) {
        self.peers.flush();
    }

    fn progress(&self, progress: ShipProgress) {
        self.progress.send(progress);
    }

    fn held(&self, part: Held) -> bool {
        let name = match part {
            Held::Applier => "applier",
            Held::Log => "log",
        };
        self.hooks.as_ref().is_some_and(|hooks| hooks.join(name).exists())
    }

    fn needs_snapshot(&self, shard: ShardId) {
        // Nobody listens any more when the node is stopping.
        let _ = self.needs.send(shard);
    }

    fn failed(&self, what: Failure, why: &str) {
        // Nobody listens any more when the node is stopping.
        let _ = self.failures.send((what, why.to_owned()));
    }
}
