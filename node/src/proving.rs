//! Proving while the node runs: what this node answers about what it has stored.
//!
//! The node that is asked ([`crate::admin::actions`]) or that leads a shard ([`scrub`]) puts small questions to every
//! node: recompute your log (in the background, at a bounded rate), give these hashes, sign this anchor, sum these ranges
//! of rows. Whoever asks compares.
//!
//! Invariants: a node signs only what its own log or its own kept hashes say; a question never takes longer than its rows
//! and bytes are bounded for; nothing here writes, except that a node whose content was found to differ is told to
//! distrust its engine, which it then rebuilds from its log.

pub mod recompute;
pub mod scrub;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_core::error::Fatal;
use quorate_core::keys::{self, Key};
use quorate_core::log::LogReader;
use quorate_core::machine::CHECKPOINT_EVERY;
use quorate_core::mvcc::Snapshot;
use quorate_core::ship::chain_at;
use quorate_core::verify::{RangeSum, Ranges, live_storages};
use quorate_shared::anchor::{Anchor, AnchorSignature, AnchoredShard, NodeKey};
use quorate_shared::ids::{ClusterId, Epoch, Hash, Index, NodeId, ShardId, TableId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use self::recompute::{Recomputed, Recomputing};
use crate::driver::view::ShardView;
use crate::driver::{Driver, Failure};
use crate::peers::Peers;
use crate::peers::message::{Ask, Reply};
use crate::reporting::NodeReports;
use crate::store::engine::EngineHandle;

/// How long a question waits for an index to be applied.
const APPLY_WAIT: Duration = Duration::from_secs(5);
/// Ranges that are summed for one question.
pub const RANGES_MAX: usize = 64;
/// Hashes in one answer.
const HASHES_MAX: usize = 4096;

/// What a node is asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Prove {
    /// Its public key and how far it has applied each shard.
    Points,
    /// Sign this, if it is so.
    Sign(Box<Anchor>),
    /// Recompute the log; asked again with the same job, how far that is.
    Recompute {
        /// Drawn at random.
        job: u64,
        /// Hashes from elsewhere, and whose they are.
        marks: Vec<(ShardId, Index, Hash, String)>,
    },
    /// The chain's hash at these indexes.
    Hashes {
        /// Of this shard.
        shard: ShardId,
        /// Where.
        at: Vec<Index>,
    },
    /// Sums of rows as of a point.
    Sums {
        /// Of this shard.
        shard: ShardId,
        /// Applied at least so far.
        index: Index,
        /// As of then.
        timestamp: Timestamp,
        /// Rows of these storages and the catalog's.
        live: Vec<TableId>,
        /// From this key.
        start: Bytes,
        /// In ranges that end at these.
        ends: Vec<Bytes>,
    },
    /// Recompute the digests of a shard's tables, and compare with those kept while applying.
    SelfCheck {
        /// The shard.
        shard: ShardId,
    },
    /// The content differs from what most replicas have: rebuild it.
    Rebuild {
        /// Of this shard.
        shard: ShardId,
        /// What differs.
        why: String,
    },
}

/// What a node answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Proved {
    /// To `Points`.
    Points {
        /// Its public key, in hex.
        key: String,
        /// Applied, with the chain's hash there.
        applied: Vec<(ShardId, Index, Hash)>,
    },
    /// To `Sign`.
    Signed(AnchorSignature),
    /// To `Recompute`, while it runs: bytes done and all.
    Running(u64, u64),
    /// To `Recompute`, at the end.
    Recomputed(Box<Recomputed>),
    /// To `Hashes`, in their order; `None` where it is not known any more.
    Hashes(Vec<Option<Hash>>),
    /// To `Sums`.
    Sums(Vec<RangeSum>),
    /// To `SelfCheck`: storages whose rows are not what was applied.
    Checked(Vec<TableId>),
    /// To `Rebuild`.
    Rebuilds,
    /// It cannot be said, and why.
    Refused(String),
}

/// What proving needs of its node.
pub struct Prover {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its data directory.
    pub directory: PathBuf,
    /// Its shards.
    pub driver: Arc<Driver>,
    /// Its log.
    pub log: Arc<dyn LogReader>,
    /// Connections.
    pub peers: Arc<Peers>,
    /// Its engine.
    pub engine: Arc<EngineHandle>,
    /// Its key.
    pub key: NodeKey,
    /// What it says of itself.
    pub reports: Arc<NodeReports>,
    /// Told when it has to begin again.
    pub failures: mpsc::UnboundedSender<(Failure, String)>,
    /// The recomputation under way, or the last.
    pub recomputing: Mutex<Recomputing>,
    /// Whom it has told to rebuild, and when.
    pub told: Mutex<BTreeMap<NodeId, Instant>>,
}

#[expect(clippy::needless_pass_by_value, reason = "a message is often made for this call")]
fn refused(why: impl ToString) -> Proved {
    Proved::Refused(why.to_string())
}

impl Prover {
    /// Asks a node, this one included.
    pub async fn ask(self: &Arc<Self>, node: NodeId, ask: Prove, patience: Duration) -> Result<Proved, String> {
        let proved = if node == self.node {
            tokio::time::timeout(patience, self.answer(ask)).await.map_err(|_| "it takes too long".to_owned())?
        } else {
            let deadline = Instant::now() + patience;
            match self.peers.ask(node, Ask::Prove(Box::new(ask)), deadline).await {
                Ok(Reply::Proved(proved)) => *proved,
                Ok(Reply::Failed(error)) => return Err(error.message),
                Ok(_) => return Err(format!("{node} gave an answer to another question")),
                Err(error) => return Err(error.to_string()),
            }
        };
        match proved {
            Proved::Refused(why) => Err(why),
            proved => Ok(proved),
        }
    }

    /// Answers a question.
    pub async fn answer(self: &Arc<Self>, ask: Prove) -> Proved {
        match ask {
            Prove::Points => self.points(),
            Prove::Sign(anchor) => self.sign(*anchor).await,
            Prove::Recompute { job, marks } => self.recompute(job, marks),
            Prove::Hashes { shard, at } => self.blocking(move |p| p.hashes(shard, &at).map(Proved::Hashes)).await,
            Prove::Sums { shard, index, timestamp, live, start, ends } => {
                let Some(view) = self.driver.view(shard).cloned() else { return refused(format!("no {shard} here")) };
                if let Err(why) = wait_applied(&view, index).await {
                    return refused(why);
                }
                self.blocking(move |_| {
                    let ranges = Ranges::new(Snapshot::new(view.tree().clone(), timestamp), live);
                    ranges.sums(&start, ends.get(..RANGES_MAX).unwrap_or(&ends)).map(Proved::Sums)
                })
                .await
            }
            Prove::SelfCheck { shard } => self.blocking(move |p| p.self_check(shard).map(Proved::Checked)).await,
            Prove::Rebuild { shard, why } => {
                self.rebuild(shard, &why);
                Proved::Rebuilds
            }
        }
    }

    async fn blocking(
        self: &Arc<Self>,
        work: impl FnOnce(&Prover) -> Result<Proved, Fatal> + Send + 'static,
    ) -> Proved {
        let prover = self.clone();
        let done = tokio::task::spawn_blocking(move || crate::driver::guarded(|| work(&prover))).await;
        match done {
            Ok(Ok(proved)) => proved,
            Ok(Err(fatal)) => refused(fatal),
            Err(error) => refused(error),
        }
    }

    fn points(&self) -> Proved {
        let point = |view: &Arc<ShardView>| {
            let applied = view.applied_point();
            (view.shard, applied.index, applied.chain)
        };
        Proved::Points { key: self.key.public(), applied: self.driver.views().map(point).collect() }
    }

    /// The chain's hash at an index: from the log, or as it was kept when the entry was applied.
    pub fn hash_at(&self, shard: ShardId, index: Index) -> Result<Option<Hash>, Fatal> {
        if let Some(hash) = chain_at(&*self.log, shard, index)? {
            return Ok(Some(hash));
        }
        let Some(view) = self.driver.view(shard) else { return Ok(None) };
        let point = view.applied_point();
        if point.index == index {
            return Ok(Some(point.chain));
        }
        let kept = view.tree().get(&Key::Checkpoint(index).encode())?;
        Ok(kept.and_then(|value| value.first_chunk::<32>().map(|hash| Hash(*hash))))
    }

    fn hashes(&self, shard: ShardId, at: &[Index]) -> Result<Vec<Option<Hash>>, Fatal> {
        at.iter().take(HASHES_MAX).map(|index| self.hash_at(shard, *index)).collect()
    }

    /// The indexes of every hash that was kept for good, newest first.
    pub fn kept(&self, shard: ShardId) -> Result<Vec<(Index, Hash)>, Fatal> {
        let Some(view) = self.driver.view(shard) else { return Ok(Vec::new()) };
        let mut kept = Vec::new();
        for item in view.tree().scan(&keys::checkpoints_range(), true).take(HASHES_MAX) {
            let (key, value) = item?;
            if let (Key::Checkpoint(index), Some(hash)) = (Key::decode(&key)?, value.first_chunk::<32>()) {
                kept.push((index, Hash(*hash)));
            }
        }
        Ok(kept)
    }

    /// Where the chains stand here, for an anchor: the newest hash, and the newest that is kept for good.
    pub fn anchored(&self) -> Result<Vec<AnchoredShard>, Fatal> {
        let mut out = Vec::new();
        for view in self.driver.views() {
            let point = view.applied_point();
            let kept = Index::new(point.index.get() / CHECKPOINT_EVERY * CHECKPOINT_EVERY);
            if kept < point.index
                && kept.get() > 0
                && let Some(hash) = self.hash_at(view.shard, kept)?
            {
                out.push(AnchoredShard::new(view.shard, self.epoch, kept, hash));
            }
            out.push(AnchoredShard::new(view.shard, self.epoch, point.index, point.chain));
        }
        Ok(out)
    }

    async fn sign(self: &Arc<Self>, anchor: Anchor) -> Proved {
        if let Err(error) = anchor.check_cluster(&self.cluster.to_string()) {
            return refused(error);
        }
        for shard in &anchor.shards {
            let (Some(id), Some(hash)) = (shard.id(), shard.hash()) else { return refused("the anchor is malformed") };
            let Some(view) = self.driver.view(id) else { return refused(format!("no {id} here")) };
            let index = Index::new(shard.index);
            if let Err(why) = wait_applied(view, index).await {
                return refused(why);
            }
            match self.hash_at(id, index) {
                Ok(Some(ours)) if ours == hash => {}
                Ok(Some(ours)) => {
                    return refused(format!("the chain of {id} at entry {index} is {ours} here, not {hash}"));
                }
                Ok(None) => return refused(format!("entry {index} of {id} is not in the log any more")),
                Err(fatal) => return refused(fatal),
            }
        }
        Proved::Signed(self.key.sign(&anchor, self.node))
    }

    fn recompute(self: &Arc<Self>, job: u64, marks: Vec<(ShardId, Index, Hash, String)>) -> Proved {
        let mut state = self.recomputing.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            Recomputing::Running { job: running, done, of } if *running == job => {
                return Proved::Running(done.load(std::sync::atomic::Ordering::Relaxed), *of);
            }
            Recomputing::Running { .. } => return refused("another verification runs here; try again when it is done"),
            Recomputing::Done { job: done, result } if *done == job => return Proved::Recomputed(result.clone()),
            _ => {}
        }
        let (running, done, of) = recompute::begin(job, &self.directory.join("log"));
        *state = running;
        drop(state);
        let prover = self.clone();
        let work = move || {
            let result = Box::new(recompute::run(&prover, &marks, &done));
            let mut state = prover.recomputing.lock().unwrap_or_else(PoisonError::into_inner);
            *state = Recomputing::Done { job, result };
        };
        if let Err(error) = std::thread::Builder::new().name("quorate-verify".into()).spawn(work) {
            *self.recomputing.lock().unwrap_or_else(PoisonError::into_inner) = Recomputing::Never;
            return refused(error);
        }
        Proved::Running(0, of)
    }

    /// Recomputes the digests from the rows.
    fn self_check(&self, shard: ShardId) -> Result<Vec<TableId>, Fatal> {
        let Some(view) = self.driver.view(shard) else { return Ok(Vec::new()) };
        let mut scrub = quorate_core::machine::Scrub::of_tree(view.tree().clone())?;
        loop {
            match scrub.step(2_000)? {
                Some(wrong) => return Ok(wrong),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn rebuild(&self, shard: ShardId, why: &str) {
        let why = format!("ReplicaDiverged: {shard} on {}: {why}", self.node);
        tracing::error!(%why, "the content here is not what most replicas have; it is rebuilt from the log");
        self.engine.distrust(&why);
        // Nobody listens any more when the node is stopping.
        let _ = self.failures.send((Failure::Restart, why));
    }

    /// Shows what a scrub has found, until the next one of the shard.
    pub fn note(&self, shard: ShardId, found: &scrub::Scrubbed) {
        let differences = found.differences.iter().filter(|d| !d.wrong.iter().all(|n| found.rebuilt.contains(n)));
        let said = differences.map(|d| (d.subject(), d.to_string())).collect();
        self.reports.set_diverged(shard, said);
    }

    /// Names of a shard's tables by storage.
    pub fn tables(&self, shard: ShardId) -> Result<BTreeMap<TableId, String>, Fatal> {
        self.driver.view(shard).map_or_else(|| Ok(BTreeMap::new()), |view| live_storages(&**view.tree()))
    }
}

async fn wait_applied(view: &ShardView, index: Index) -> Result<(), String> {
    match tokio::time::timeout(APPLY_WAIT, view.wait_applied(index)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{} has stopped here", view.shard)),
        Err(_) => Err(format!("it has applied {} of {}, not {index}", view.applied(), view.shard)),
    }
}
