//! Metrics: one table of names, and the Prometheus text made from it.
//!
//! Most values are those of the cluster's picture, so `/metrics` and `quorate status` agree; what happens too often to
//! be looked at afterwards is counted in [`Meters`]. Nothing else makes names. Times are in seconds, sizes in bytes,
//! what is unknown is left out rather than 0.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_shared::error::Code;
use quorate_shared::status::{ClusterStatus, MemberStatus, Verdict};

use crate::report::NodeReport;

/// What Prometheus is told of a metric.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $name:literal $kind:literal $help:literal;)*) => {
        $(const $id: Metric = Metric { name: $name, kind: $kind, help: $help };)*
        /// Every metric: name, kind, meaning.
        pub const ALL: &[(&str, &str, &str)] = &[$(($name, $kind, $help)),*];
    };
}

metrics! {
    NODE "quorate_node_info" "gauge" "Who this is; always 1";
    UP "quorate_node_up" "gauge" "1 if the node answers this one, by node";
    VERDICT "quorate_verdict" "gauge" "0 ok, 1 warning, 2 critical, 3 unknown";
    PROBLEM "quorate_problem" "gauge" "1 for each problem there is, by name, severity and subject";
    UPTIME "quorate_uptime_seconds" "gauge" "Time since the node started";
    DISK_USED "quorate_disk_used_bytes" "gauge" "Size of the data directory";
    DISK_FREE "quorate_disk_free_bytes" "gauge" "Free space on its disk";
    MEMORY "quorate_resident_memory_bytes" "gauge" "Resident memory of the process";
    SESSIONS "quorate_sessions" "gauge" "Client sessions open";
    STATEMENTS "quorate_statements_total" "counter" "Statements finished, failed ones included";
    ERRORS "quorate_statement_errors_total" "counter" "Statements that failed, by code";
    LATENCY "quorate_statement_seconds" "histogram" "Time of a statement on the server";
    REFUSED "quorate_connections_refused_total" "counter" "Connections refused: strangers, other versions, bad frames";
    UNREAD "quorate_sessions_unread_total" "counter" "Sessions closed because their client stopped reading";
    SYNC "quorate_log_sync_running_seconds" "gauge" "How long the log's write in progress has taken so far";
    DROPPED "quorate_peer_messages_dropped_total" "counter" "Peer messages dropped";
    HEARD "quorate_peer_heard_seconds" "gauge" "Time since something was heard from a node";
    LEADER "quorate_shard_leader" "gauge" "1 if this node leads the shard";
    TERM "quorate_shard_term" "gauge" "Term of the shard";
    COMMIT "quorate_shard_commit_index" "gauge" "Highest committed index known";
    DURABLE "quorate_shard_durable_index" "gauge" "Highest index durable on this node";
    APPLIED "quorate_shard_applied_index" "gauge" "Highest index applied on this node";
    LOG "quorate_shard_log_bytes" "gauge" "Size of the shard's log on its leader";
    M_SENT "quorate_member_sent_index" "gauge" "Highest index sent to a member of a shard";
    M_DURABLE "quorate_member_durable_index" "gauge" "Highest index durable on a member, as reported";
    M_APPLIED "quorate_member_applied_index" "gauge" "Highest index applied on a member, as reported";
    M_ENTRIES "quorate_member_lag_entries" "gauge" "Committed entries a member has not applied";
    M_BYTES "quorate_member_lag_bytes" "gauge" "Bytes of those entries";
    M_LAG "quorate_member_lag_seconds" "gauge" "Time since the first entry a member has not applied was committed";
    M_AT_LEAST "quorate_member_lag_at_least" "gauge" "1 if that time is a lower bound";
    M_AGE "quorate_member_report_age_seconds" "gauge" "Time since the member's last report";
}

/// A counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// Reads.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency histogram, in microseconds.
const BOUNDS_US: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000];

/// What the doors count.
#[derive(Debug, Default)]
pub struct Meters {
    buckets: [Count; BOUNDS_US.len() + 1],
    total_us: Count,
    errors: [Count; Code::ALL.len()],
    /// Connections refused.
    pub refused: Count,
    /// Sessions closed unread.
    pub unread: Count,
}

impl Meters {
    /// A statement has ended.
    pub fn statement(&self, took: Duration, error: Option<Code>) {
        let us = took.as_micros() as u64;
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].add(1);
        self.total_us.add(us);
        if let Some(at) = error.and_then(|code| Code::ALL.iter().position(|known| *known == code)) {
            self.errors[at].add(1);
        }
    }
}

/// The text of `/metrics`.
pub fn render(report: &NodeReport, picture: &ClusterStatus, meters: &Meters) -> String {
    let mut out = Text::default();
    node_metrics(&mut out, report, picture);
    door_metrics(&mut out, meters);
    shard_metrics(&mut out, report);
    member_metrics(&mut out, picture);
    out.0
}

fn node_metrics(out: &mut Text, report: &NodeReport, picture: &ClusterStatus) {
    let node = report.node.to_string();
    let kind = report.kind.to_string();
    out.all(&NODE, [(vec![("node", &*node), ("kind", &*kind), ("version", &*report.version)], 1.0)]);
    out.all(&UP, picture.nodes.iter().map(|node| (vec![("node", &*node.id)], f64::from(u8::from(node.reachable)))));
    out.one(&VERDICT, f64::from(picture.verdict.exit_code()));
    let problems = picture.problems.iter().map(|problem| {
        let severity = if problem.severity == Verdict::Warning { "warning" } else { "critical" };
        (vec![("name", &*problem.name), ("severity", severity), ("subject", &*problem.subject)], 1.0)
    });
    out.all(&PROBLEM, problems);
    out.one(&UPTIME, seconds(report.uptime_ms));
    out.one(&DISK_USED, report.disk_used_bytes as f64);
    out.one(&DISK_FREE, report.disk_free_bytes as f64);
    out.one(&MEMORY, report.memory_bytes as f64);
    out.one(&SESSIONS, report.sessions as f64);
    out.one(&STATEMENTS, report.statements as f64);
    out.one(&SYNC, seconds(report.sync_running_ms));
    out.one(&DROPPED, report.dropped as f64);
    let heard: Vec<_> = report.heard.iter().filter_map(|(node, ms)| Some((node.to_string(), (*ms)?))).collect();
    out.all(&HEARD, heard.iter().map(|(node, ms)| (vec![("node", &**node)], seconds(*ms))));
}

fn door_metrics(out: &mut Text, meters: &Meters) {
    let codes: Vec<_> = Code::ALL.iter().map(|code| code.to_string().replace(' ', "_")).collect();
    let errors = codes.iter().zip(&meters.errors);
    out.all(&ERRORS, errors.map(|(code, count)| (vec![("code", &**code)], count.get() as f64)));
    out.one(&REFUSED, meters.refused.get() as f64);
    out.one(&UNREAD, meters.unread.get() as f64);
    out.head(&LATENCY);
    let mut sum = 0;
    for (at, bucket) in meters.buckets.iter().enumerate() {
        sum += bucket.get();
        let bound = BOUNDS_US.get(at).map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
        out.line(&format!("{}_bucket", LATENCY.name), &[("le", &bound)], sum as f64);
    }
    out.line(&format!("{}_sum", LATENCY.name), &[], meters.total_us.get() as f64 / 1e6);
    out.line(&format!("{}_count", LATENCY.name), &[], sum as f64);
}

fn shard_metrics(out: &mut Text, report: &NodeReport) {
    let names: Vec<_> = report.shards.iter().map(|shard| shard.shard.to_string()).collect();
    let shards = || names.iter().map(|name| vec![("shard", &**name)]).zip(&report.shards);
    out.all(&LEADER, shards().map(|(labels, shard)| (labels, f64::from(u8::from(shard.leads)))));
    out.all(&TERM, shards().filter_map(|(labels, shard)| Some((labels, shard.status.term? as f64))));
    out.all(&COMMIT, shards().filter_map(|(labels, shard)| Some((labels, shard.status.commit? as f64))));
    out.all(&DURABLE, shards().map(|(labels, shard)| (labels, shard.durable.get() as f64)));
    out.all(&APPLIED, shards().map(|(labels, shard)| (labels, shard.applied.get() as f64)));
    out.all(&LOG, shards().filter_map(|(labels, shard)| Some((labels, shard.status.log_bytes? as f64))));
}

fn member_metrics(out: &mut Text, picture: &ClusterStatus) {
    let members: Vec<_> = picture
        .shards
        .iter()
        .flat_map(|shard| shard.members.iter().map(move |member| (&*shard.id, member)))
        .map(|(shard, member)| (shard, member, member.kind.to_string()))
        .collect();
    let mut all = |metric: &Metric, value: fn(&MemberStatus) -> Option<f64>| {
        let values = members.iter().filter_map(|(shard, member, kind)| {
            Some((vec![("shard", *shard), ("node", &*member.node), ("kind", &**kind)], value(member)?))
        });
        out.all(metric, values);
    };
    all(&M_SENT, |member| member.sent.map(|n| n as f64));
    all(&M_DURABLE, |member| member.durable.map(|n| n as f64));
    all(&M_APPLIED, |member| member.applied.map(|n| n as f64));
    all(&M_ENTRIES, |member| member.lag_entries.map(|n| n as f64));
    all(&M_BYTES, |member| member.lag_bytes.map(|n| n as f64));
    all(&M_LAG, |member| member.lag_ms.map(seconds));
    all(&M_AT_LEAST, |member| member.lag_ms.map(|_| f64::from(u8::from(member.lag_at_least))));
    all(&M_AGE, |member| member.report_age_ms.map(seconds));
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Prometheus's text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, metric: &Metric) {
        let Metric { name, kind, help } = metric;
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn one(&mut self, metric: &Metric, value: f64) {
        self.head(metric);
        self.line(metric.name, &[], value);
    }

    /// All values of a metric; none, no metric.
    fn all<'a>(&mut self, metric: &Metric, values: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_some() {
            self.head(metric);
        }
        values.for_each(|(labels, value)| self.line(metric.name, &labels, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_their_unit() {
        for (at, (name, kind, help)) in ALL.iter().enumerate() {
            assert!(name.starts_with("quorate_") && !help.is_empty());
            assert!(!ALL[..at].iter().any(|(other, ..)| other == name), "{name} twice");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn text_escapes_labels() {
        let mut text = Text::default();
        text.all(&PROBLEM, [(vec![("name", "a\"b\\c\nd"), ("x", "y")], 1.5)]);
        text.all(&UP, []);
        assert!(text.0.ends_with("\nquorate_problem{name=\"a\\\"b\\\\c\\nd\",x=\"y\"} 1.5\n"), "{}", text.0);
        assert!(!text.0.contains(UP.name));
    }

    #[test]
    fn histogram_is_cumulative() {
        let meters = Meters::default();
        meters.statement(Duration::from_micros(60), None);
        meters.statement(Duration::from_secs(100), Some(Code::NotFound));
        let mut text = Text::default();
        door_metrics(&mut text, &meters);
        for line in [
            "quorate_statement_seconds_bucket{le=\"0.00005\"} 0",
            "quorate_statement_seconds_bucket{le=\"0.0001\"} 1",
            "quorate_statement_seconds_bucket{le=\"10\"} 1",
            "quorate_statement_seconds_bucket{le=\"+Inf\"} 2",
            "quorate_statement_seconds_count 2",
            "quorate_statement_errors_total{code=\"not_found\"} 1",
        ] {
            assert!(text.0.lines().any(|have| have == line), "{line} is missing in\n{}", text.0);
        }
    }
}
