//! The scrub: the content of a shard's replicas compared, range by range, while everything goes on.
//!
//! The leader of a shard does it by itself, [`FIRST`] after it began to lead and every [`EVERY`] after that, and whenever
//! it is asked to. It cuts its rows into ranges of `ROWS` rows and asks every other node for the sums of the same ranges
//! as of the same timestamp: voters and log-shipped replicas alike. No more than `COUNT` ranges, then a pause, so it
//! reads at most about 80,000 rows a second on each node.
//!
//! A difference is looked at again at a later timestamp before it counts, and names table and range. Who is wrong: whoever
//! is not with the majority of the voters compared; without a majority, whoever's rows are not what it applied itself.
//! The wrong one is told to rebuild its engine from its log. One that differs again within [`AGAIN`] is only reported.
//!
//! Rows whose table is dropped meanwhile do not count; a node that does not answer, or is too far behind, is not compared
//! and the outcome says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use quorate_core::keys;
use quorate_core::mvcc::Snapshot;
use quorate_core::verify::{RangeSum, Ranges, live_storages, rows_end, rows_start};
use quorate_shared::ids::{NodeId, ShardId, TableId};
use quorate_shared::status::NodeKind;

use super::{Prove, Proved, Prover};

/// How long a leader leads before it scrubs by itself.
pub const FIRST: Duration = Duration::from_secs(300);
/// How often it does.
pub const EVERY: Duration = Duration::from_secs(3600);
/// A replica that was rebuilt within this time is not rebuilt again.
pub const AGAIN: Duration = Duration::from_secs(3600);
/// Rows in a range.
const ROWS: u64 = 512;
/// Ranges between pauses.
const COUNT: usize = 16;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a node may take for a stretch.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a node may take to recompute its digests.
const SELF_CHECK: Duration = Duration::from_secs(600);
/// More differences of a shard are not listed.
const DIFFERENCES_MAX: usize = 32;

/// A range in which replicas differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The shard.
    pub shard: ShardId,
    /// What people call it.
    pub table: String,
    /// Its first and last key, in hex, shortened.
    pub range: String,
    /// Rows as each node has them.
    pub rows: BTreeMap<NodeId, u64>,
    /// Who differs from the majority; empty: there is none.
    pub wrong: BTreeSet<NodeId>,
}

impl Difference {
    /// e.g. `s1/n3`.
    pub fn subject(&self) -> String {
        let nodes =
            if self.wrong.is_empty() { self.rows.keys().collect::<Vec<_>>() } else { self.wrong.iter().collect() };
        let names: Vec<String> = nodes.into_iter().map(ToString::to_string).collect();
        format!("{}/{}", self.shard, names.join(","))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<String> = self.rows.iter().map(|(node, rows)| format!("{node} {rows} rows")).collect();
        write!(f, "{}, {} differs in {} ({})", self.subject(), self.table, self.range, rows.join(", "))
    }
}

/// What a scrub of a shard has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Rows compared.
    pub rows: u64,
    /// Ranges compared.
    pub ranges: u64,
    /// Nodes compared to the end.
    pub compared: Vec<NodeId>,
    /// Nodes that were not, and why.
    pub left_out: BTreeMap<NodeId, String>,
    /// Where they differ.
    pub differences: Vec<Difference>,
    /// Who was told to rebuild.
    pub rebuilt: Vec<NodeId>,
}

/// A node that takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    /// Which.
    pub node: NodeId,
    /// Voter or replica.
    pub kind: NodeKind,
}

/// Who of those that gave sums is wrong: not with the majority of the voters, or of all where the voters are even.
pub fn minority(sums: &BTreeMap<NodeId, RangeSum>, voters: &BTreeSet<NodeId>) -> Option<BTreeSet<NodeId>> {
    let mut groups: Vec<(&RangeSum, Vec<NodeId>)> = Vec::new();
    for (node, sum) in sums {
        match groups.iter_mut().find(|(of, _)| of == &sum) {
            Some((_, nodes)) => nodes.push(*node),
            None => groups.push((sum, vec![*node])),
        }
    }
    let votes = |nodes: &[NodeId]| nodes.iter().filter(|n| voters.contains(n)).count();
    let all = votes(&sums.keys().copied().collect::<Vec<_>>());
    let right = groups.iter().find(|(_, nodes)| votes(nodes) * 2 > all)?;
    Some(sums.keys().copied().filter(|node| !right.1.contains(node)).collect())
}

/// One scrub of one shard.
struct Scrubbing<'a> {
    prover: &'a Arc<Prover>,
    shard: ShardId,
    parties: Vec<Party>,
    out: Scrubbed,
}

/// Compares this node's replica of a shard with those of the others. `told` hears how far it is.
pub async fn run(
    prover: &Arc<Prover>,
    shard: ShardId,
    parties: &[Party],
    mut told: impl FnMut(u64),
) -> Result<Scrubbed, String> {
    let mut s = Scrubbing { prover, shard, parties: parties.to_vec(), out: Scrubbed::default() };
    let mut start = rows_start();
    while start < rows_end() {
        let (ours, theirs, live) = s.stretch(&start).await?;
        s.out.rows += ours.iter().map(|range| range.rows).sum::<u64>();
        s.out.ranges += ours.len() as u64;
        let mut from = start.clone();
        for (i, range) in ours.iter().enumerate() {
            let differs = theirs.values().any(|sums| sums.get(i) != Some(range));
            if differs && s.out.differences.len() < DIFFERENCES_MAX {
                s.look_again(&from, &range.end, &live).await?;
            }
            from = range.end.clone();
        }
        start = ours.last().map_or_else(rows_end, |range| range.end.clone());
        told(s.out.rows);
        if start < rows_end() {
            tokio::time::sleep(PAUSE).await;
        }
    }
    s.out.compared = s.parties.iter().map(|party| party.node).collect();
    s.judge().await;
    Ok(s.out)
}

type Sums = BTreeMap<NodeId, Vec<RangeSum>>;

impl Scrubbing<'_> {
    /// Ranges from a key on, here and elsewhere, as of now.
    async fn stretch(&mut self, start: &Bytes) -> Result<(Vec<RangeSum>, Sums, BTreeMap<TableId, String>), String> {
        let (prover, shard) = (self.prover.clone(), self.shard);
        let view = prover.driver.view(shard).cloned().ok_or_else(|| format!("no {shard} here"))?;
        let from = start.clone();
        let cut = tokio::task::spawn_blocking(move || {
            crate::driver::guarded(|| {
                let point = view.applied_point();
                let live = live_storages(&**view.tree())?;
                let ranges = Ranges::new(Snapshot::new(view.tree().clone(), point.timestamp), live.keys().copied());
                Ok((point, ranges.cut(&from, ROWS, COUNT)?, live))
            })
        });
        let (point, ours, live) = cut.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let ask = Prove::Sums {
            shard,
            index: point.index,
            timestamp: point.timestamp,
            live: live.keys().copied().collect(),
            start: start.clone(),
            ends: ours.iter().map(|range| range.end.clone()).collect(),
        };
        let theirs = self.everybody(&ask).await;
        Ok((ours, theirs, live))
    }

    /// Asks every other party; those that do not answer are left out from here on.
    async fn everybody(&mut self, ask: &Prove) -> Sums {
        let prover = self.prover;
        let asked = self.parties.iter().map(|p| p.node).filter(|node| *node != prover.node);
        let answers =
            join_all(asked.map(|node| async move { (node, prover.ask(node, ask.clone(), PATIENCE).await) })).await;
        let mut sums = Sums::new();
        for (node, answer) in answers {
            match answer {
                Ok(Proved::Sums(ranges)) => drop(sums.insert(node, ranges)),
                Ok(_) => drop(self.out.left_out.insert(node, "it gave an answer to another question".into())),
                Err(why) => drop(self.out.left_out.insert(node, why)),
            }
        }
        let left_out = &self.out.left_out;
        self.parties.retain(|party| !left_out.contains_key(&party.node));
        sums
    }

    /// A range that differed, as of a later point.
    async fn look_again(&mut self, from: &Bytes, end: &Bytes, live: &BTreeMap<TableId, String>) -> Result<(), String> {
        let (prover, shard) = (self.prover.clone(), self.shard);
        let view = prover.driver.view(shard).cloned().ok_or_else(|| format!("no {shard} here"))?;
        let point = view.applied_point();
        let now = prover.tables(shard).map_err(|e| e.to_string())?;
        let ask = Prove::Sums {
            shard,
            index: point.index,
            timestamp: point.timestamp,
            live: now.keys().filter(|id| live.contains_key(id)).copied().collect(),
            start: from.clone(),
            ends: vec![end.clone()],
        };
        let mut sums = self.everybody(&ask).await;
        if let Ok(Proved::Sums(ours)) = prover.ask(prover.node, ask, PATIENCE).await {
            sums.insert(prover.node, ours);
        }
        let after = prover.tables(shard).map_err(|e| e.to_string())?;
        let first = |ranges: Vec<RangeSum>| ranges.into_iter().next();
        let sums: BTreeMap<NodeId, RangeSum> = sums.into_iter().filter_map(|(n, r)| Some((n, first(r)?))).collect();
        let same = sums.values().all(|sum| Some(sum) == sums.values().next());
        // A table that went meanwhile takes its rows along, on each node when it gets there.
        if same || now.keys().any(|id| !after.contains_key(id)) {
            return Ok(());
        }
        let voters = self.voters();
        let difference = Difference {
            shard,
            table: table_of(from, end, &after),
            range: format!("{}..{}", short(from), short(end)),
            rows: sums.iter().map(|(node, sum)| (*node, sum.rows)).collect(),
            wrong: minority(&sums, &voters).unwrap_or_default(),
        };
        tracing::error!(?difference, "ReplicaDiverged: replicas of a shard differ");
        self.out.differences.push(difference);
        Ok(())
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.parties.iter().filter(|p| p.kind == NodeKind::Voter).map(|p| p.node).collect()
    }

    /// Where no majority says who is wrong, whoever's rows are not what it applied.
    async fn judge(&mut self) {
        if self.out.differences.iter().all(|d| !d.wrong.is_empty()) {
            return;
        }
        let ask = Prove::SelfCheck { shard: self.shard };
        let nodes: Vec<NodeId> = self.parties.iter().map(|p| p.node).collect();
        let checks = join_all(nodes.iter().map(|node| self.prover.ask(*node, ask.clone(), SELF_CHECK))).await;
        let failed = |check: &Result<Proved, String>| match check {
            Ok(Proved::Checked(wrong)) => !wrong.is_empty(),
            _ => false,
        };
        let wrong: BTreeSet<NodeId> =
            nodes.iter().zip(&checks).filter(|(_, check)| failed(check)).map(|(node, _)| *node).collect();
        for difference in self.out.differences.iter_mut().filter(|d| d.wrong.is_empty()) {
            difference.wrong.clone_from(&wrong);
        }
    }
}

/// Tells those that are wrong to rebuild, the node itself last.
pub async fn heal(prover: &Arc<Prover>, scrubbed: &mut Scrubbed) {
    let mut why: BTreeMap<NodeId, String> = BTreeMap::new();
    for d in &scrubbed.differences {
        for node in &d.wrong {
            why.entry(*node).or_insert_with(|| format!("{} differs in {}", d.table, d.range));
        }
    }
    let mut order: Vec<NodeId> = why.keys().copied().collect();
    order.sort_by_key(|node| *node == prover.node);
    let shard = scrubbed.differences.first().map_or(ShardId::DATA, |d| d.shard);
    for node in order {
        let before = prover.told.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied();
        if before.is_some_and(|at| at.elapsed() < AGAIN) {
            tracing::error!(%node, "ReplicaDiverged: it differs again after it was rebuilt; look at its disk and memory");
            continue;
        }
        let ask = Prove::Rebuild { shard, why: why.remove(&node).unwrap_or_default() };
        match prover.ask(node, ask, PATIENCE).await {
            Ok(_) => {
                prover.told.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now());
                scrubbed.rebuilt.push(node);
            }
            Err(why) => tracing::error!(%node, %why, "a replica that differs could not be told to rebuild"),
        }
    }
}

/// The tables a range touches.
fn table_of(from: &Bytes, end: &Bytes, live: &BTreeMap<TableId, String>) -> String {
    let storage = |key: &Bytes| keys::split_data(key).ok().map(|(storage, ..)| storage);
    let (first, last) = (storage(from), storage(end));
    let mut names: Vec<String> = Vec::new();
    if keys::is_catalog(from) {
        names.push("the catalog".into());
    }
    let inside =
        live.iter().filter(|(id, _)| first.is_none_or(|first| **id >= first) && last.is_none_or(|last| **id <= last));
    names.extend(inside.filter(|_| last.is_some() || *end >= rows_end()).map(|(_, name)| format!("table {name}")));
    if names.is_empty() { "rows of no table".into() } else { names.join(", ") }
}

/// A key in hex, the middle left out.
fn short(key: &[u8]) -> String {
    let hex = quorate_shared::anchor::hex(key);
    if hex.len() <= 48 { hex } else { format!("{}…{}", &hex[..32], &hex[hex.len() - 12..]) }
}

#[cfg(test)]
mod tests {
    use quorate_core::machine::Digest;
    use quorate_shared::ids::IndexId;

    use super::*;

    #[test]
    fn the_majority_of_the_voters_is_right() {
        let n = NodeId::new;
        let sum = |rows| RangeSum { end: Bytes::new(), rows, sum: Digest::default() };
        let sums = |list: &[(u64, u64)]| list.iter().map(|(node, rows)| (n(*node), sum(*rows))).collect();
        let voters = BTreeSet::from([n(1), n(2), n(3)]);
        assert_eq!(minority(&sums(&[(1, 5), (2, 5), (3, 4)]), &voters), Some(BTreeSet::from([n(3)])));
        // The leader itself may be the one.
        assert_eq!(minority(&sums(&[(1, 4), (2, 5), (3, 5)]), &voters), Some(BTreeSet::from([n(1)])));
        // Replicas have no say, however many they are.
        let many = sums(&[(1, 5), (4, 4), (5, 4), (6, 4)]);
        assert_eq!(minority(&many, &BTreeSet::from([n(1)])), Some(BTreeSet::from([n(4), n(5), n(6)])));
        assert_eq!(minority(&sums(&[(1, 5), (2, 4)]), &voters), None, "two voters, two opinions");
        assert_eq!(minority(&sums(&[(1, 5), (2, 4), (3, 3)]), &voters), None);
    }

    #[test]
    fn a_range_is_named_by_its_tables() {
        let key = |storage: u64| keys::index_range(TableId::new(storage), IndexId::PRIMARY).start;
        let live = BTreeMap::from([(TableId::new(5), "a".to_owned()), (TableId::new(7), "b".to_owned())]);
        assert_eq!(table_of(&key(5), &key(5), &live), "table a");
        assert_eq!(table_of(&key(6), &rows_end(), &live), "table b");
        assert_eq!(table_of(&rows_start(), &key(5), &live), "the catalog, table a");
        assert_eq!(table_of(&key(8), &key(9), &live), "rows of no table");
    }
}
