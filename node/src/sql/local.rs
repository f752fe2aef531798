//! A router without a cluster: core's sequencer and machine over trees in memory, in one process.
//!
//! For tests of SQL: every statement runs through the same planner, sequencer and machine as on a node, but there is no
//! log, no consensus and no network. Any [`Engine`] will do.
//!
//! Left out: durability, replicas, leadership (this "node" always leads).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use quorate_core::catalog::Catalog;
use quorate_core::engine::Engine;
use quorate_core::error::{Fatal, Rejected};
use quorate_core::log::{BaseRecord, LogEntry, Membership, Payload};
use quorate_core::machine::{Applied, Machine};
use quorate_core::mvcc::Snapshot;
use quorate_core::proposal::{Proposal, WriteResult};
use quorate_core::sequencer::{Decision, Sequencer};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{CatalogVersion, ClusterId, Epoch, Index, NodeId, ReplicaId, ShardId, Term};
use quorate_shared::status::{ClusterStatus, NodeKind, NodeStatus, SCHEMA, ShardStatus, Verdict};
use quorate_shared::wire::{NodeAddress, ReadLevel};
use tokio::sync::watch;

use crate::router::{Identity, ProposeError, ReadPoint, Router};

const TERM: Term = Term::new(1);

struct Shard {
    machine: Machine,
    sequencer: Sequencer,
}

/// The cluster in a box.
pub struct LocalRouter {
    shards: BTreeMap<ShardId, Mutex<Shard>>,
    catalog: watch::Sender<Arc<Catalog>>,
    kind: NodeKind,
}

impl LocalRouter {
    /// Over an engine, with a catalog shard and one data shard.
    ///
    /// # Errors
    /// The engine's.
    pub fn new(engine: &dyn Engine) -> Result<Self, Fatal> {
        Self::with_kind(engine, NodeKind::Voter)
    }

    /// The same as a log-shipped replica would be: it refuses what writes.
    ///
    /// # Errors
    /// The engine's.
    pub fn with_kind(engine: &dyn Engine, kind: NodeKind) -> Result<Self, Fatal> {
        let mut shards = BTreeMap::new();
        for id in [ShardId::META, ShardId::DATA] {
            let tree = engine.tree(&format!("{id}-r1"))?;
            let machine = Machine::open(Arc::clone(&tree), &base(id))?;
            let applied = Applied { term: TERM, ..machine.state().applied() };
            let sequencer = Sequencer::new(id, tree, &applied)?;
            shards.insert(id, Mutex::new(Shard { machine, sequencer }));
        }
        let (catalog, _) = watch::channel(Arc::new(Catalog::default()));
        let router = Self { shards, catalog, kind };
        router.reload()?;
        Ok(router)
    }

    fn shard(&self, id: ShardId) -> Option<MutexGuard<'_, Shard>> {
        self.shards.get(&id).map(|s| s.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn snapshot(&self, id: ShardId) -> Option<(Snapshot, Index)> {
        let shard = self.shard(id)?;
        let state = shard.machine.state();
        Some((Snapshot::new(Arc::clone(shard.machine.tree()), state.timestamp), state.index))
    }

    fn reload(&self) -> Result<(), Fatal> {
        if let Some((snapshot, index)) = self.snapshot(ShardId::META) {
            let catalog = Catalog::load(&snapshot, CatalogVersion::new(index.get()))?;
            self.catalog.send_replace(Arc::new(catalog));
        }
        Ok(())
    }

    fn execute(&self, id: ShardId, proposal: Proposal) -> Result<Result<WriteResult, Rejected>, Fatal> {
        let Some(mut shard) = self.shard(id) else {
            return Ok(Err(Rejected::NotLeader(None)));
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(0);
        let wanted = proposal.wait_for_replicas;
        let decision = shard.sequencer.propose(now_ms, proposal)?;
        let mut answer = match decision {
            Decision::Answer { result, .. } => return Ok(result),
            Decision::Duplicate { result, .. } => return Ok(Ok(result)),
            Decision::Staged { index, position } => {
                let mut found = None;
                while let Some(sealed) = shard.sequencer.seal()? {
                    let entry =
                        LogEntry { index: sealed.index, term: TERM, payload: Payload::Entry, bytes: sealed.bytes };
                    shard.machine.apply(&[entry])?;
                    shard.sequencer.applied(sealed.index);
                    if sealed.index == index {
                        found = sealed.results.into_iter().nth(position);
                    }
                }
                match found {
                    Some(result) => result,
                    None => return Err(Fatal::new("apply a proposal", "its entry was not sealed")),
                }
            }
        };
        // Nobody follows: a write that waits for replicas has to say so.
        answer.replicas = (wanted > 0).then_some(0);
        answer.epoch = 1;
        drop(shard);
        if id == ShardId::META {
            self.reload()?;
        }
        Ok(Ok(answer))
    }
}

fn base(shard: ShardId) -> BaseRecord {
    BaseRecord::founding(
        shard,
        Membership::of_voters([(ReplicaId::new(1), NodeId::new(1))]),
        Epoch { number: 1, id: 1 },
    )
}

fn broken(error: &Fatal) -> WireError {
    WireError::new(Code::Internal, error.to_string())
}

#[async_trait]
impl Router for LocalRouter {
    async fn propose(
        &self,
        shard: ShardId,
        proposal: Proposal,
        _deadline: Instant,
    ) -> Result<WriteResult, ProposeError> {
        match self.execute(shard, proposal) {
            Ok(answer) => answer.map_err(ProposeError::Rejected),
            Err(error) => Err(ProposeError::Wire(broken(&error))),
        }
    }

    async fn read(&self, shard: ShardId, _level: &ReadLevel, _deadline: Instant) -> Result<ReadPoint, WireError> {
        self.read_local(shard)
    }

    fn read_local(&self, shard: ShardId) -> Result<ReadPoint, WireError> {
        match self.snapshot(shard) {
            Some((snapshot, _)) => Ok(ReadPoint { snapshot, since: None }),
            None => Err(WireError::new(Code::NotFound, format!("there is no shard {shard}"))),
        }
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    async fn catalog_at_least(&self, version: CatalogVersion, deadline: Instant) -> Result<Arc<Catalog>, WireError> {
        let mut receiver = self.catalog.subscribe();
        let wait = receiver.wait_for(|c| c.version >= version);
        match tokio::time::timeout_at(deadline.into(), wait).await {
            Ok(Ok(catalog)) => Ok(Arc::clone(&catalog)),
            _ => Err(WireError::new(Code::Behind, format!("the catalog did not reach {version} in time"))),
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            cluster: Some(ClusterId([1; 16])),
            epoch: Epoch { number: 1, id: 1 },
            node: NodeId::new(1),
            kind: self.kind,
            address: "local".to_owned(),
        }
    }

    fn master(&self) -> Option<NodeAddress> {
        Some(NodeAddress { node: NodeId::new(1), address: "127.0.0.1:7411".to_owned(), kind: NodeKind::Voter })
    }

    fn is_master(&self) -> bool {
        self.kind == NodeKind::Voter
    }

    async fn picture(&self) -> ClusterStatus {
        let shards = self.shards.keys().map(|id| ShardStatus {
            id: id.to_string(),
            leader: Some("n1".to_owned()),
            confirmed: true,
            ..ShardStatus::default()
        });
        let node = NodeStatus {
            id: "n1".to_owned(),
            addr: "local".to_owned(),
            kind: Some(self.kind),
            reachable: true,
            ..NodeStatus::default()
        };
        ClusterStatus {
            schema: SCHEMA,
            verdict: Verdict::Ok,
            master: Some("n1".to_owned()),
            asked: Some("n1".to_owned()),
            nodes: vec![node],
            shards: shards.collect(),
            ..ClusterStatus::default()
        }
    }

    fn nodes(&self) -> Vec<NodeAddress> {
        self.master().into_iter().collect()
    }
}
