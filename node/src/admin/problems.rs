//! What is wrong, each with a stable name, and what to do about it.
//!
//! A cause is named once: a node that is down has no lagging replica besides. Names and severities are a contract with
//! whoever watches `quorate status`.

use quorate_shared::duration;
use quorate_shared::limits::CLOCK_AHEAD_MS_MAX;
use quorate_shared::status::{ClusterStatus, MemberStatus, NodeKind, Problem, ShardStatus, Verdict};

use super::{Gathered, Since, is_recent, time_text};
use crate::report::{NodeReport, NodeState};

/// A replica further behind than this is lagging.
const LAG_MS_MAX: u64 = 1_000;
/// A replica that does not get on is stalled; for this long, and it is critical.
const STALL_MS_MAX: u64 = 10_000;
/// A write to the disk that takes longer is a problem.
const SYNC_MS_MAX: u64 = 1_000;
/// An archive that is older is gone on with no more. Long enough to find a node again after a failover.
const ARCHIVE_MS_MAX: u64 = 8_000;
/// A node that others heard by so much later than this one is cut off from here only.
const APART_MS: u64 = 500;
/// For how long after the start a rebuilt engine is worth a remark.
const REBUILT_MS: u64 = 5 * 60 * 1000;

/// A problem before it is known since when.
struct Found {
    name: &'static str,
    severity: Verdict,
    subject: String,
    /// It has been so for this long at least, in milliseconds.
    age_ms: u64,
    hint: String,
}

impl Found {
    fn new(name: &'static str, severity: Verdict, subject: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, severity, subject: subject.into(), age_ms: 0, hint: hint.into() }
    }

    fn aged(mut self, age_ms: u64) -> Self {
        self.age_ms = age_ms;
        self
    }
}

/// All problems, worst first.
pub(super) fn find(gathered: &Gathered, status: &ClusterStatus, since: &mut Since) -> Vec<Problem> {
    let mut found = Vec::new();
    two_epochs(gathered, &mut found);
    duplicates(gathered, &mut found);
    silent_nodes(gathered, &mut found);
    for report in gathered.reports() {
        node_problems(report, &mut found);
    }
    clocks(gathered, &mut found);
    versions(gathered, &mut found);
    for shard in &status.shards {
        quorum(gathered, shard, &mut found);
        members(gathered, shard, &mut found);
    }
    backups(status, &mut found);
    dated(found, gathered.now_ms, since)
}

/// Archives that nobody goes on with.
fn backups(status: &ClusterStatus, found: &mut Vec<Found>) {
    for archive in status.archives.iter().filter(|archive| archive.age_ms > ARCHIVE_MS_MAX) {
        let at_least = if archive.age_at_least { "at least " } else { "" };
        let (id, seconds) = (&archive.id, archive.age_ms / 1000);
        let hint = format!(
            "nothing has been archived to {} for {at_least}{seconds} s; run `quorate backup --to` its directory again, \
             or forget it: `quorate backup --forget {id}`",
            archive.label
        );
        found.push(Found::new("BackupStale", Verdict::Warning, id.clone(), hint).aged(archive.age_ms));
    }
}

/// Adds since when each has been seen; forgets those that are over.
fn dated(found: Vec<Found>, now_ms: u64, since: &mut Since) -> Vec<Problem> {
    let mut seen = Since::new();
    let mut problems: Vec<Problem> = Vec::new();
    for Found { name, severity, subject, age_ms, hint } in found {
        let key = (name.to_owned(), subject.clone());
        let began = now_ms.saturating_sub(age_ms).min(since.get(&key).copied().unwrap_or(u64::MAX));
        seen.insert(key, began);
        problems.push(Problem { name: name.into(), severity, subject, since: time_text(began), hint });
    }
    *since = seen;
    problems.sort_by(|a, b| (b.severity, &a.name, &a.subject).cmp(&(a.severity, &b.name, &b.subject)));
    problems
}

/// Nodes whose history is another one than that of whoever has met them, under the same number.
fn two_epochs(gathered: &Gathered, found: &mut Vec<Found>) {
    for report in gathered.reports() {
        for (rival, theirs) in &report.rivals {
            let subject = rival.to_string();
            if found.iter().any(|known| known.subject == subject) {
                continue;
            }
            let (node, number) = (report.node, theirs.number);
            let hint = format!(
                "{rival} and {node} are in two different epochs {number}, and neither follows the other: decide which \
                 history stays, stop the nodes of the other one and start them again with empty directories"
            );
            found.push(Found::new("TwoEpochs", Verdict::Critical, subject, hint));
        }
    }
}

/// Numbers that a second node has claimed lately.
fn duplicates(gathered: &Gathered, found: &mut Vec<Found>) {
    for (node, address) in gathered.reports().flat_map(|report| &report.twins) {
        let subject = node.to_string();
        if found.iter().any(|known| known.name == "DuplicateNode" && known.subject == subject) {
            continue;
        }
        let hint = format!(
            "another node calls itself {node}, at {address}, and is let in nowhere: stop it, or start it with another \
             --id and an empty directory"
        );
        found.push(Found::new("DuplicateNode", Verdict::Warning, subject, hint));
    }
}

/// Nodes that did not answer: down if the others do not hear them either.
fn silent_nodes(gathered: &Gathered, found: &mut Vec<Found>) {
    for node in gathered.known_nodes() {
        let Some(Err(reason)) = gathered.answers.get(&node.node) else { continue };
        if found.iter().any(|known| known.name == "TwoEpochs" && known.subject == node.node.to_string()) {
            continue;
        }
        let severity = if node.kind == NodeKind::Voter { Verdict::Critical } else { Verdict::Warning };
        let peers = gathered.heard_by_peers(node.node);
        let heard = gathered.report(gathered.asked).and_then(|own| own.heard.iter().find(|(of, _)| *of == node.node));
        let age_ms = heard.and_then(|(_, ms)| *ms).unwrap_or(0);
        let (id, address) = (node.node, &node.address);
        // Of one that has just fallen silent everybody heard lately.
        let later = |ms: &u64| heard.and_then(|(_, own)| *own).is_none_or(|own| ms + APART_MS <= own);
        let problem = if !peers.is_empty() && !peers.iter().any(is_recent) {
            let hint = format!(
                "no node hears from it ({address}: {reason}): start it again if it does not run; if it does, it may \
                 hang or be cut off"
            );
            Found::new("NodeDown", severity, id.to_string(), hint)
        } else if peers.iter().filter(|ms| is_recent(ms)).flatten().any(later) {
            let asked = gathered.asked;
            let hint =
                format!("look at the network between {asked} and {id} ({address}: {reason}); other nodes hear it");
            Found::new("NodeUnreachable", severity, id.to_string(), hint)
        } else {
            let hint = format!("look whether it runs, and at the network to it ({address}: {reason})");
            Found::new("NodeUnreachable", severity, id.to_string(), hint)
        };
        found.push(problem.aged(age_ms));
    }
}

/// What a node says is wrong with itself.
fn node_problems(report: &NodeReport, found: &mut Vec<Found>) {
    use Verdict::{Critical, Warning};
    let node = report.node.to_string();
    let mut add = |problem: Found| found.push(problem);
    match &report.state {
        NodeState::Ready => {}
        NodeState::Forming(whom) => {
            add(Found::new("ClusterForming", Warning, &node, whom.clone()).aged(report.uptime_ms));
        }
        NodeState::LostLog(why) => {
            let hint = format!("it neither votes nor acknowledges ({why}); the others go on while they are a majority");
            add(Found::new("LogLost", Critical, &node, hint).aged(report.uptime_ms));
        }
        NodeState::Removed(why) => {
            let hint = format!("stop it, its number is not given again: {why}");
            add(Found::new("NodeRemoved", Warning, &node, hint).aged(report.uptime_ms));
        }
        NodeState::Stopped(why) => {
            add(Found::new("ReplicaStopped", Critical, &node, format!("look at its log and restart it: {why}")));
        }
    }
    for shard in &report.shards {
        if let Some(why) = &shard.stopped {
            let subject = format!("{}/{node}", shard.shard);
            add(Found::new("ReplicaStopped", Critical, subject, format!("restart {node}: {why}")));
        }
    }
    if report.disk_low {
        let free = report.disk_free_bytes >> 20;
        let hint = format!("make room on its disk ({free} MiB free): writes are refused, reads go on");
        add(Found::new("DiskLow", Critical, &node, hint));
    }
    if report.sync_running_ms > SYNC_MS_MAX {
        let hint = format!("its disk has not finished a write for {} ms; look at the disk", report.sync_running_ms);
        add(Found::new("DiskStalled", Critical, &node, hint).aged(report.sync_running_ms));
    }
    if let Some(why) = &report.engine_rebuilt
        && report.uptime_ms < REBUILT_MS
    {
        let hint = format!("nothing to do, it was rebuilt from the log: {why}; if it comes again, look at the disk");
        let name = if why.contains("ReplicaDiverged") { "ReplicaDiverged" } else { "EngineRebuilt" };
        add(Found::new(name, Warning, &node, hint).aged(report.uptime_ms));
    }
    for (subject, what) in &report.diverged {
        let hint = format!("look at their disks and memory, then `quorate admin scrub`: {what}");
        add(Found::new("ReplicaDiverged", Critical, subject, hint));
    }
}

/// Nodes whose clock is off by more than a timestamp may be ahead.
fn clocks(gathered: &Gathered, found: &mut Vec<Found>) {
    for answer in gathered.answers.values().filter_map(|answer| answer.as_ref().ok()) {
        let clock = answer.report.clock_ms;
        let ahead = clock.saturating_sub(answer.answered_ms);
        let behind = answer.asked_ms.saturating_sub(clock);
        let off = ahead.max(behind);
        if off > CLOCK_AHEAD_MS_MAX && answer.report.node != gathered.asked {
            let way = if ahead > behind { "ahead of" } else { "behind" };
            let hint = format!("synchronize its clock (NTP): it is {off} ms {way} {}'s", gathered.asked);
            found.push(Found::new("ClockSkew", Verdict::Warning, answer.report.node.to_string(), hint));
        }
    }
}

/// Nodes that do not run the version most of them run.
fn versions(gathered: &Gathered, found: &mut Vec<Found>) {
    let all: Vec<&str> = gathered.reports().map(|report| report.version.as_str()).collect();
    let count = |version: &str| all.iter().filter(|other| **other == version).count();
    let Some(usual) = all.iter().max_by_key(|version| (count(version), **version)) else { return };
    for report in gathered.reports().filter(|report| report.version != *usual) {
        let hint = format!("it runs {}, most nodes {usual}; bring it to the same version", report.version);
        found.push(Found::new("VersionSkew", Verdict::Warning, report.node.to_string(), hint));
    }
}

/// A shard that nobody leads with a quorum behind it.
fn quorum(gathered: &Gathered, shard: &ShardStatus, found: &mut Vec<Found>) {
    if shard.leader.is_some() {
        return;
    }
    let voters: Vec<_> = gathered.known_nodes().into_iter().filter(|node| node.kind == NodeKind::Voter).collect();
    // One that is starting will vote: nobody has to start it.
    let votes = |report: &NodeReport| matches!(report.state, NodeState::Ready | NodeState::Forming(_));
    let there = voters.iter().filter(|node| gathered.report(node.node).is_some_and(votes)).count();
    let problem = if there * 2 > voters.len() {
        let hint = "an election is under way; if it stays, look at the network between the voters";
        Found::new("LeaderUnconfirmed", Verdict::Critical, &*shard.id, hint)
    } else {
        let need = voters.len() / 2 + 1;
        let hint =
            format!("start voters again: {there} of {} can vote, {need} are needed; local reads go on", voters.len());
        Found::new("NoQuorum", Verdict::Critical, &*shard.id, hint)
    };
    found.push(problem);
}

/// Members that are behind. One that is down or has stopped is named already; one that only this node cannot reach is
/// not: whether its replica gets on is another question.
fn members(gathered: &Gathered, shard: &ShardStatus, found: &mut Vec<Found>) {
    let down: Vec<String> = found.iter().filter(|f| f.name == "NodeDown").map(|f| f.subject.clone()).collect();
    let healthy = |member: &&MemberStatus| {
        let report = gathered.reports().find(|report| report.node.to_string() == member.node);
        report.is_none_or(|report| report.state == NodeState::Ready) && !down.contains(&member.node)
    };
    for member in shard.members.iter().filter(healthy) {
        let subject = format!("{}/{}", shard.id, member.node);
        let Some(lag_ms) = member.lag_ms else {
            let answers = gathered.reports().any(|report| report.node.to_string() == member.node);
            if shard.leader.is_some() && answers {
                let hint = "how far it is is not known: its leader has not heard from it yet; look at its log";
                found.push(Found::new("ReplicaLagging", Verdict::Warning, subject, hint));
            }
            continue;
        };
        let behind = format!("{}{}", if member.lag_at_least { "at least " } else { "" }, duration::text(lag_ms));
        if member.stuck_at.as_deref() == Some("snapshot") {
            let hint = "the leader's log does not reach back to it any more; it is filled from a snapshot";
            found.push(Found::new("NeedsSnapshot", Verdict::Warning, subject, hint));
        } else if let Some(phase) = member.stuck_at.as_deref() {
            let hint = format!("it does not get on at {phase}, {behind} behind; look at {}'s log", member.node);
            let severity = if lag_ms > STALL_MS_MAX { Verdict::Critical } else { Verdict::Warning };
            found.push(Found::new("ReplicaStalled", severity, subject, hint).aged(lag_ms));
        } else if lag_ms > LAG_MS_MAX {
            let hint = format!("it is {behind} behind; look at its disk, its load and the network to it");
            found.push(Found::new("ReplicaLagging", Verdict::Warning, subject, hint).aged(lag_ms));
        }
    }
}
