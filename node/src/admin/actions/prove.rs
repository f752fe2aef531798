//! `verify`, `anchor` and `scrub`: every node recomputes, says, signs or sums; the node that is asked compares.
//!
//! They change nothing (a scrub's rebuilding apart), so they reserve nothing and run beside other actions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use quorate_core::verify::Damage;
use quorate_shared::admin::{AdminAction, AdminOutcome, AdminPlan};
use quorate_shared::anchor::{Anchor, Checked};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{Hash, Index, NodeId, ShardId};
use quorate_shared::status::NodeKind;

use super::{Planned, Scene, Steps, Work, list, node_id};
use crate::proving::recompute::Recomputed;
use crate::proving::scrub::{self, Party, Scrubbed};
use crate::proving::{Prove, Proved, Prover};

/// How long a node may take for a small question.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a recomputation is asked about.
const POLL: Duration = Duration::from_millis(200);
/// How long all of it may take.
const RECOMPUTE: Duration = Duration::from_secs(6 * 3600);
/// How often the progress is told.
const TELL: Duration = Duration::from_secs(2);
/// The mark of an anchor.
const ANCHOR: &str = "the anchor";
/// The name of an anchor that the cluster does not fit.
const MISMATCH: &str = "AnchorMismatch";

/// What is to be proved.
pub(super) enum Proving {
    Verify(Option<Box<(Anchor, Checked)>>),
    Anchor,
    Scrub,
}

/// An action of this file, with what it needs.
pub(super) struct Task {
    prover: Arc<Prover>,
    what: Proving,
    parties: Vec<Party>,
}

/// Whether this file knows the action.
pub(super) fn knows(action: &AdminAction) -> bool {
    matches!(action, AdminAction::Verify { .. } | AdminAction::Anchor | AdminAction::Scrub)
}

pub(super) fn plan(scene: &Scene, prover: Option<&Arc<Prover>>, action: &AdminAction) -> Planned {
    let title = match action {
        AdminAction::Verify { anchor: None } => "recompute the chains on every node and compare them",
        AdminAction::Verify { .. } => "recompute the chains on every node and compare them and the anchor",
        AdminAction::Anchor => "have the nodes sign where their chains stand",
        _ => "compare the rows of all replicas, range by range",
    };
    let Some(prover) = prover else { return Planned::refused(title, "NotReady: this node serves no shard yet") };
    let cluster = prover.cluster.to_string();
    let what = match action {
        AdminAction::Verify { anchor: Some(text) } => match read_anchor(text, &cluster) {
            Ok(anchor) => Proving::Verify(Some(Box::new(anchor))),
            Err(why) => return Planned::refused(title, why),
        },
        AdminAction::Verify { anchor: None } => Proving::Verify(None),
        AdminAction::Anchor => Proving::Anchor,
        _ => Proving::Scrub,
    };
    let known = scene.status.nodes.iter();
    let parties: Vec<Party> = known.filter_map(|n| Some(Party { node: node_id(&n.id)?, kind: n.kind? })).collect();
    let silent = scene.status.nodes.iter().filter(|n| !n.reachable);
    let warnings = silent.map(|n| format!("{} does not answer and is left out", n.id)).collect();
    let nodes = list(parties.iter().map(|p| p.node));
    let steps = match &what {
        Proving::Verify(anchor) => {
            let mut steps =
                vec![format!("{nodes} recompute their logs"), "compare the chains where all have them".into()];
            steps.extend(anchor.as_ref().map(|_| "compare them with the anchor".to_owned()));
            steps
        }
        Proving::Anchor => vec![format!("{nodes} sign")],
        Proving::Scrub => {
            prover.driver.views().map(|v| format!("compare the rows of {} on {nodes}", v.shard)).collect()
        }
    };
    let plan = AdminPlan { title: title.into(), steps, warnings, refusals: Vec::new() };
    Planned { plan, work: Work::Prove(Task { prover: prover.clone(), what, parties }) }
}

fn read_anchor(text: &str, cluster: &str) -> Result<(Anchor, Checked), String> {
    let anchor = Anchor::parse(text).map_err(|e| format!("BadAnchor: {e}"))?;
    anchor.check_cluster(cluster).map_err(|e| format!("OtherCluster: {e}"))?;
    let checked = anchor.check().map_err(|e| format!("BadAnchor: {e}"))?;
    Ok((anchor, checked))
}

pub(super) async fn carry_out(task: Task, steps: &Steps) -> AdminOutcome {
    match &task.what {
        Proving::Verify(anchor) => task.verify(anchor.as_deref(), steps).await,
        Proving::Anchor => task.anchor(steps).await,
        Proving::Scrub => task.scrub(steps).await,
    }
}

fn not_proved(summary: String, facts: Vec<(String, String)>) -> AdminOutcome {
    let error = WireError::new(Code::Internal, summary.clone());
    AdminOutcome { done: false, summary, facts, document: None, error: Some(error) }
}

/// What the nodes came to.
#[derive(Default)]
struct Results {
    done: BTreeMap<NodeId, Recomputed>,
    failed: BTreeMap<NodeId, String>,
    keys: BTreeMap<NodeId, String>,
}

impl Task {
    fn voters(&self) -> BTreeSet<NodeId> {
        self.parties.iter().filter(|p| p.kind == NodeKind::Voter).map(|p| p.node).collect()
    }

    async fn ask_all(&self, ask: &Prove) -> Vec<(NodeId, Result<Proved, String>)> {
        let nodes = self.parties.iter().map(|p| p.node);
        join_all(nodes.map(|node| async move { (node, self.prover.ask(node, ask.clone(), ANSWER).await) })).await
    }

    async fn verify(&self, anchor: Option<&(Anchor, Checked)>, steps: &Steps) -> AdminOutcome {
        let results = self.recompute(anchor.map(|(anchor, _)| anchor), steps).await;
        let mut facts: Vec<(String, String)> = Vec::new();
        let mut wrong: Vec<String> = Vec::new();
        for (node, result) in &results.done {
            facts.push((node.to_string(), node_fact(result)));
            wrong.extend(result.damage.iter().map(|d| {
                let name = if d.what.contains(ANCHOR) { format!("{MISMATCH}: ") } else { String::new() };
                format!("{name}{node}: {}", place(d))
            }));
        }
        let failed = results.failed.iter().map(|(node, why)| format!("{node} ({why})"));
        let failed: Vec<String> = failed.collect();
        if !failed.is_empty() {
            facts.push(("not_verified".into(), failed.join("; ")));
        }
        steps.running(1, "").await;
        let heads = self.compare(&results, &mut facts, &mut wrong).await;
        steps.done(1, heads).await;
        if let Some((anchor, checked)) = anchor {
            let said = against_anchor(anchor, checked, &results, &mut wrong);
            steps.done(2, said.clone()).await;
            facts.push(("anchor".into(), said));
        }
        let voters = self.voters();
        let proved = results.done.keys().filter(|node| voters.contains(node)).count();
        if !wrong.is_empty() {
            return not_proved(format!("not proved: {}", wrong.join("; ")), facts);
        }
        if proved * 2 <= voters.len() {
            let summary = format!("not proved: only {proved} of {} voters were verified", voters.len());
            return not_proved(summary, facts);
        }
        let who = list(results.done.keys());
        let summary = format!("proved: nothing is damaged on {who}, and their chains are the same");
        AdminOutcome { done: true, summary, facts, ..AdminOutcome::default() }
    }

    /// Every node's own recomputation.
    async fn recompute(&self, anchor: Option<&Anchor>, steps: &Steps) -> Results {
        let marks = anchor.map(marks_of).unwrap_or_default();
        let mut results = Results::default();
        for (node, answer) in self.ask_all(&Prove::Points).await {
            match answer {
                Ok(Proved::Points { key, .. }) => drop(results.keys.insert(node, key)),
                Ok(_) => drop(results.failed.insert(node, "it gave an answer to another question".into())),
                Err(why) => drop(results.failed.insert(node, why)),
            }
        }
        let job = crate::store::random_bytes().map_or(1, |b| u64::from_le_bytes(*b.first_chunk().unwrap_or(&[1; 8])));
        let ask = Prove::Recompute { job, marks };
        let (began, mut told) = (Instant::now(), Instant::now());
        steps.running(0, "").await;
        loop {
            let open = results.keys.keys().filter(|n| !results.done.contains_key(n) && !results.failed.contains_key(n));
            let open: Vec<NodeId> = open.copied().collect();
            if open.is_empty() || began.elapsed() > RECOMPUTE {
                break;
            }
            let answers = join_all(open.iter().map(|node| self.prover.ask(*node, ask.clone(), ANSWER))).await;
            let (mut done, mut of) = (0, 0);
            for (node, answer) in open.into_iter().zip(answers) {
                match answer {
                    Ok(Proved::Recomputed(result)) => drop(results.done.insert(node, *result)),
                    Ok(Proved::Running(n, all)) => (done, of) = (done + n, of + all),
                    Ok(_) => drop(results.failed.insert(node, "it gave an answer to another question".into())),
                    Err(why) => drop(results.failed.insert(node, why)),
                }
            }
            if told.elapsed() > TELL {
                told = Instant::now();
                steps.running(0, format!("{} of {} MB", done >> 20, of >> 20)).await;
            }
            tokio::time::sleep(POLL).await;
        }
        let detail = match results.failed.is_empty() {
            true => format!("{} nodes", results.done.len()),
            false => format!("{} nodes; without {}", results.done.len(), list(results.failed.keys())),
        };
        steps.done(0, detail).await;
        results
    }

    /// Compares the chains at the highest index that every node has, and at all that were kept for good.
    async fn compare(&self, results: &Results, facts: &mut Vec<(String, String)>, wrong: &mut Vec<String>) -> String {
        let mut said = Vec::new();
        for view in self.prover.driver.views() {
            let shard = view.shard;
            let ends = results.done.iter().filter_map(|(node, r)| {
                let (_, proof) = r.shards.iter().find(|(s, _)| *s == shard)?;
                Some((*node, proof.agrees_at.unwrap_or(proof.base).max(proof.commit.min(proof.last))))
            });
            let Some(common) = ends.map(|(_, index)| index).min() else { continue };
            let mut at: Vec<Index> = vec![common];
            at.extend(self.prover.kept(shard).unwrap_or_default().into_iter().map(|(i, _)| i).filter(|i| *i < common));
            let ask = Prove::Hashes { shard, at: at.clone() };
            let mut seen: BTreeMap<Index, BTreeMap<Hash, Vec<NodeId>>> = BTreeMap::new();
            for (node, answer) in self.ask_all(&ask).await {
                let Ok(Proved::Hashes(hashes)) = answer else { continue };
                for (index, hash) in at.iter().zip(hashes).filter_map(|(i, h)| Some((*i, h?))) {
                    seen.entry(index).or_default().entry(hash).or_default().push(node);
                }
            }
            if let Some((index, hashes)) = seen.iter().find(|(_, hashes)| hashes.len() > 1) {
                let sides = hashes.iter().map(|(hash, nodes)| format!("{hash} on {}", list(nodes)));
                wrong.push(format!("{shard}: the chains differ at entry {index}: {}", list(sides)));
                continue;
            }
            let Some((hash, nodes)) = seen.get(&common).and_then(|hashes| hashes.iter().next()) else { continue };
            let voters = nodes.iter().filter(|n| self.voters().contains(n)).count();
            let of = self.voters().len();
            let text = format!("at entry {common} the chain is {hash} on {} ({voters} of {of} voters)", list(nodes));
            facts.push((shard.to_string(), text));
            facts.push((format!("{shard}_index"), common.to_string()));
            facts.push((format!("{shard}_compared"), seen.len().to_string()));
            said.push(format!("{shard} at entry {common} and {} before it", seen.len().saturating_sub(1)));
        }
        list(said)
    }

    async fn anchor(&self, steps: &Steps) -> AdminOutcome {
        let cannot = |why: String| AdminOutcome {
            error: Some(WireError::new(Code::Retry, why.clone())),
            summary: why,
            ..AdminOutcome::default()
        };
        let shards = match self.prover.anchored() {
            Ok(shards) => shards,
            Err(fatal) => return cannot(fatal.to_string()),
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let time = crate::admin::time_text(now.map_or(0, |d| d.as_millis() as u64));
        let voters: Vec<NodeId> = self.voters().into_iter().collect();
        let mut anchor = Anchor::new(self.prover.cluster, time, &voters, shards);
        let mut refused = Vec::new();
        steps.running(0, "").await;
        for (node, answer) in self.ask_all(&Prove::Sign(Box::new(anchor.clone()))).await {
            match answer {
                Ok(Proved::Signed(signature)) if signature.node == node.to_string() => {
                    anchor.signatures.push(signature)
                }
                Ok(_) => refused.push(format!("{node} (it gave an answer to another question)")),
                Err(why) => refused.push(format!("{node} ({why})")),
            }
        }
        let checked = match anchor.check() {
            Ok(checked) => checked,
            Err(error) => return cannot(error.to_string()),
        };
        let (voters, of) = (checked.voters, checked.of);
        let strength = if checked.strong { "strong" } else { "WEAK" };
        let summary = format!("{strength} anchor: {voters} of {of} voters signed");
        steps.done(0, summary.clone()).await;
        let mut facts = vec![("strong".to_owned(), checked.strong.to_string())];
        facts.extend(checked.signed.iter().map(|(node, key)| (node.clone(), format!("signed with key {key}"))));
        if !refused.is_empty() {
            facts.push(("not_signed".into(), refused.join("; ")));
        }
        for shard in &anchor.shards {
            let fact = format!("entry {}, {}", shard.index, shard.chain.get(..16).unwrap_or_default());
            facts.push((shard.shard.clone(), fact));
        }
        AdminOutcome { done: true, summary, facts, document: Some(anchor.document()), error: None }
    }

    async fn scrub(&self, steps: &Steps) -> AdminOutcome {
        let mut facts: Vec<(String, String)> = Vec::new();
        let mut wrong: Vec<String> = Vec::new();
        let shards: Vec<ShardId> = self.prover.driver.views().map(|v| v.shard).collect();
        for (step, shard) in shards.into_iter().enumerate() {
            steps.running(step, "").await;
            let mut done = match scrub::run(&self.prover, shard, &self.parties, |_| ()).await {
                Ok(done) => done,
                Err(why) => return steps.failed(step, WireError::new(Code::Retry, why)).await,
            };
            scrub::heal(&self.prover, &mut done).await;
            self.prover.note(shard, &done);
            let said = scrub_fact(&done);
            steps.done(step, said.clone()).await;
            facts.push((shard.to_string(), said));
            facts.push((format!("{shard}_rows"), done.rows.to_string()));
            wrong.extend(done.differences.iter().map(ToString::to_string));
        }
        if wrong.is_empty() {
            let summary = "the rows are the same wherever they were compared".into();
            return AdminOutcome { done: true, summary, facts, ..AdminOutcome::default() };
        }
        not_proved(format!("ReplicaDiverged: {}", wrong.join("; ")), facts)
    }
}

fn scrub_fact(done: &Scrubbed) -> String {
    let ranges = if done.ranges == 1 { "range" } else { "ranges" };
    let mut text = format!("{} rows in {} {ranges} compared on {}", done.rows, done.ranges, list(&done.compared));
    if !done.left_out.is_empty() {
        let out = done.left_out.iter().map(|(node, why)| format!("{node} ({why})"));
        text += &format!("; not on {}", list(out));
    }
    if !done.rebuilt.is_empty() {
        text += &format!("; {} rebuild", list(&done.rebuilt));
    }
    text
}

fn place(damage: &Damage) -> String {
    match (&damage.file, damage.offset) {
        (Some(file), Some(offset)) => format!("{} [{file} at byte {offset}]", damage.what),
        (Some(file), None) => format!("{} [{file}]", damage.what),
        _ => damage.what.clone(),
    }
}

fn node_fact(result: &Recomputed) -> String {
    let ranges = result.shards.iter().map(|(shard, proof)| {
        let (first, last) = (proof.base.next(), proof.last);
        if first > last { format!("{shard} no entries") } else { format!("{shard} entries {first} to {last}") }
    });
    format!("{} records, {} bytes in {} ms; {}", result.records, result.bytes, result.ms, list(ranges))
}

fn marks_of(anchor: &Anchor) -> Vec<(ShardId, Index, Hash, String)> {
    let mark =
        |s: &quorate_shared::anchor::AnchoredShard| Some((s.id()?, Index::new(s.index), s.hash()?, ANCHOR.to_owned()));
    anchor.shards.iter().filter_map(mark).collect()
}

/// What the anchor says of the nodes' chains; their damage names what does not match.
fn against_anchor(anchor: &Anchor, checked: &Checked, results: &Results, wrong: &mut Vec<String>) -> String {
    let strength = match checked.strong {
        true => format!("strong ({} of {} voters signed)", checked.voters, checked.of),
        false => format!("WEAK ({} of {} voters signed)", checked.voters, checked.of),
    };
    for (name, id) in &checked.signed {
        let shown = node_id(name).and_then(|node| results.keys.get(&node)).map(|k| quorate_shared::anchor::key_id(k));
        if let Some(shown) = shown.filter(|shown| shown != id) {
            wrong.push(format!(
                "{MISMATCH}: the anchor is signed for {name} with key {id}, but the key of {name} is {shown}"
            ));
        }
    }
    let mut unknown: BTreeSet<String> = BTreeSet::new();
    for shard in anchor.shards.iter().filter_map(|s| Some((s.id()?, s.index))) {
        let reaches = |r: &Recomputed| {
            let proof = r.shards.iter().find(|(s, _)| *s == shard.0).map(|(_, p)| p);
            proof.is_some_and(|p| p.last.get() >= shard.1)
        };
        // What was anchored was committed: a log that ends before it has lost it, unless it only lags.
        let short: Vec<NodeId> = results.done.iter().filter(|(_, r)| !reaches(r)).map(|(node, _)| *node).collect();
        if !short.is_empty() && short.len() == results.done.len() {
            wrong.push(format!("{MISMATCH}: nobody has entry {} of {}, which the anchor is of", shard.1, shard.0));
        }
        unknown.extend(short.iter().map(|node| format!("{node} does not reach entry {} of {}", shard.1, shard.0)));
    }
    let made = &anchor.time;
    match unknown.is_empty() {
        true => format!("{strength}, made {made}"),
        false => format!("{strength}, made {made}; {}", list(unknown)),
    }
}
