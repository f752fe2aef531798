//! The cluster's picture as a table for a terminal or a pager.
//!
//! What is unknown is `-`, never 0; a lower bound carries `≥`. Colour is never the only sign: every state has its word.

use std::fmt::Write as _;

pub use quorate_shared::duration::text as duration;
use quorate_shared::status::{ClusterStatus, MemberStatus, NodeStatus, ShardStatus, Verdict};
use unicode_width::UnicodeWidthStr;

use super::aligned::printable;
use super::error::Paint;

/// The whole picture.
pub fn status_table(status: &ClusterStatus, paint: Paint) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cluster {}  {}  master {}  taken {}{}",
        status.cluster.as_deref().map_or("-", |c| c.get(..8).unwrap_or(c)),
        verdict(status.verdict, paint),
        status.master.as_deref().unwrap_or("-"),
        if status.taken_at.is_empty() { "-" } else { &status.taken_at },
        status.asked.as_deref().map(|n| format!(" at {n}")).unwrap_or_default(),
    );
    nodes(&mut out, status, paint);
    status.shards.iter().for_each(|shard| members(&mut out, shard, paint));
    if !status.archives.is_empty() {
        out.push('\n');
        let rows = status.archives.iter().map(|a| {
            let bound = if a.age_at_least { "≥ " } else { "" };
            let at: Vec<String> = a.shards.iter().map(|(shard, index)| format!("{shard}:{index}")).collect();
            let age = format!("{bound}{:.1} s", a.age_ms as f64 / 1000.0);
            vec![a.id.clone(), age, at.join(" "), a.started.clone(), a.label.clone()]
        });
        table(&mut out, &["archive", "age", "up to", "since", "where"], "lrlll", rows.collect(), paint);
    }
    if !status.problems.is_empty() {
        out.push('\n');
        let rows = status.problems.iter().map(|p| {
            vec![
                p.severity.to_string(),
                p.name.clone(),
                p.subject.clone(),
                if p.since.is_empty() { "-".to_owned() } else { p.since.clone() },
                p.hint.clone(),
            ]
        });
        table(&mut out, &["severity", "problem", "subject", "since", "what to do"], "lllll", rows.collect(), paint);
    }
    out
}

fn verdict(verdict: Verdict, paint: Paint) -> String {
    match verdict {
        Verdict::Ok if paint.color => "\x1b[1;32mok\x1b[0m".to_owned(),
        Verdict::Ok => "ok".to_owned(),
        Verdict::Warning => paint.warn("warning"),
        Verdict::Critical => paint.bad("critical"),
        Verdict::Unknown => paint.bad("unknown"),
    }
}

fn nodes(out: &mut String, status: &ClusterStatus, paint: Paint) {
    if status.nodes.is_empty() {
        return;
    }
    out.push('\n');
    let rows = status.nodes.iter().map(|node| {
        vec![
            node.id.clone(),
            node.addr.clone(),
            role(status, node),
            if node.reachable { "up".to_owned() } else { "unreachable".to_owned() },
            node.uptime_ms.map_or_else(unknown, uptime),
            node.sessions.map_or_else(unknown, |n| n.to_string()),
            node.memory_bytes.map_or_else(unknown, bytes),
            node.disk_used_bytes.map_or_else(unknown, bytes),
            node.disk_free_bytes.map_or_else(unknown, bytes),
            node.version.clone().unwrap_or_else(unknown),
            node.error.clone().unwrap_or_default(),
        ]
    });
    let head = ["node", "address", "role", "state", "uptime", "sessions", "memory", "data", "free", "version", "error"];
    table(out, &head, "llllrrrrrll", rows.collect(), paint);
}

/// `master`, `voter` or `replica`.
fn role(status: &ClusterStatus, node: &NodeStatus) -> String {
    match node.kind {
        _ if status.master.as_deref() == Some(node.id.as_str()) => "master".to_owned(),
        kind => kind.map_or_else(unknown, |kind| kind.to_string()),
    }
}

fn members(out: &mut String, shard: &ShardStatus, paint: Paint) {
    let number = |n: Option<u64>| n.map_or_else(unknown, |n| n.to_string());
    let _ = writeln!(
        out,
        "\n{}  {}leader {}{}  term {}  commit {}  log {}  queue {}",
        shard.id,
        shard.replicator.as_deref().map_or(String::new(), |r| format!("{r}  ")),
        shard.leader.as_deref().unwrap_or("-"),
        if shard.leader.is_some() && !shard.confirmed { " (unconfirmed)" } else { "" },
        number(shard.term),
        number(shard.commit),
        shard.log_bytes.map_or_else(unknown, bytes),
        number(shard.queue),
    );
    let rows = shard.members.iter().map(|m| {
        let role =
            if shard.leader.as_deref() == Some(m.node.as_str()) { "leader".to_owned() } else { m.kind.to_string() };
        vec![
            m.node.clone(),
            role,
            number(m.sent),
            number(m.durable),
            number(m.applied),
            number(m.lag_entries),
            m.lag_bytes.map_or_else(unknown, bytes),
            lag(m),
            m.report_age_ms.map_or_else(unknown, duration),
            m.stuck_at.clone().unwrap_or_default(),
        ]
    });
    let head = [
        "member",
        "role",
        "sent",
        "durable",
        "applied",
        "lag entries",
        "lag bytes",
        "lag time",
        "report age",
        "stuck at",
    ];
    table(out, &head, "llrrrrrrrl", rows.collect(), paint);
}

/// A member's lag in time.
pub fn lag(member: &MemberStatus) -> String {
    let bound = if member.lag_at_least { "≥ " } else { "" };
    member.lag_ms.map_or_else(unknown, |ms| format!("{bound}{}", duration(ms)))
}

fn unknown() -> String {
    "-".to_owned()
}

fn uptime(ms: u64) -> String {
    const DAY: u64 = 86_400_000;
    if ms >= DAY { format!("{} d", ms / DAY) } else { duration(ms) }
}

/// `96 B`, `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut tenths = u128::from(n) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Rows under a header; `sides` has `l` or `r` per column. Columns without any content are left out.
fn table(out: &mut String, head: &[&str], sides: &str, rows: Vec<Vec<String>>, paint: Paint) {
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|r| r.into_iter().map(|c| printable(&c).replace('\n', " ")).collect()).collect();
    let shown: Vec<usize> = (0..head.len())
        .filter(|c| rows.is_empty() || rows.iter().any(|r| r.get(*c).is_some_and(|t| !t.is_empty())))
        .collect();
    let width =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.width()).chain([head[c].width()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut line = |cells: &[String], dim: bool| {
        let mut text = String::new();
        for &c in &shown {
            let cell = cells.get(c).map_or("", String::as_str);
            let space = widths[c].saturating_sub(cell.width());
            let left = if sides.as_bytes().get(c) == Some(&b'r') { space } else { 0 };
            let _ = write!(text, "{:left$}{cell}{:right$}  ", "", "", right = space - left);
        }
        let text = text.trim_end();
        out.push_str(&if dim { paint.dim(text) } else { text.to_owned() });
        out.push('\n');
    };
    line(&head.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>(), true);
    rows.iter().for_each(|r| line(r, false));
}

#[cfg(test)]
mod tests {
    use quorate_shared::status::{NodeKind, Problem};

    use super::*;

    fn picture() -> ClusterStatus {
        let node = |id: &str, kind, up: bool| NodeStatus {
            id: id.to_owned(),
            addr: format!("127.0.0.1:741{id}").replace('n', ""),
            kind: Some(kind),
            reachable: up,
            error: (!up).then(|| "connection refused".to_owned()),
            version: up.then(|| "0.1.0".to_owned()),
            uptime_ms: up.then_some(95_000),
            disk_used_bytes: up.then_some(1 << 20),
            disk_free_bytes: up.then_some(3 << 30),
            memory_bytes: up.then_some(48 << 20),
            sessions: up.then_some(2),
            ..NodeStatus::default()
        };
        let member = |id: &str, kind, applied: Option<u64>| MemberStatus {
            node: id.to_owned(),
            kind,
            sent: Some(812),
            durable: applied,
            applied,
            lag_entries: applied.map(|a| 812 - a),
            lag_bytes: applied.map(|a| (812 - a) * 96),
            lag_ms: Some(applied.map_or(7345, |a| (812 - a) * 4)),
            lag_at_least: applied.is_none(),
            report_age_ms: applied.map(|_| 20),
            stuck_at: applied.is_none().then(|| "send".to_owned()),
        };
        ClusterStatus {
            schema: 1,
            cluster: Some("c0ffee00112233445566778899aabbcc".to_owned()),
            taken_at: "2026-01-31T12:34:56.789Z".to_owned(),
            verdict: Verdict::Critical,
            master: Some("n1".to_owned()),
            asked: Some("n3".to_owned()),
            nodes: vec![
                node("n1", NodeKind::Voter, true),
                node("n2", NodeKind::Voter, false),
                node("n3", NodeKind::Voter, true),
                node("n4", NodeKind::Replica, true),
            ],
            shards: vec![ShardStatus {
                id: "s1".to_owned(),
                leader: Some("n1".to_owned()),
                term: Some(3),
                commit: Some(812),
                confirmed: true,
                chain: None,
                log_bytes: Some(64 << 20),
                led_ms: Some(60_000),
                replicator: Some("paxos".to_owned()),
                queue: Some(3),
                members: vec![
                    member("n1", NodeKind::Voter, Some(812)),
                    member("n2", NodeKind::Voter, None),
                    member("n4", NodeKind::Replica, Some(811)),
                ],
            }],
            sessions: 6,
            archives: Vec::new(),
            problems: vec![Problem {
                name: "NodeUnreachable".to_owned(),
                severity: Verdict::Critical,
                subject: "n2".to_owned(),
                since: "2026-01-31T12:34:49Z".to_owned(),
                hint: "start it again".to_owned(),
            }],
        }
    }

    #[test]
    fn a_sick_cluster() {
        insta::assert_snapshot!(status_table(&picture(), Paint::default()));
    }

    #[test]
    fn nobody_there() {
        let status = ClusterStatus { schema: 1, ..ClusterStatus::default() };
        assert_eq!(status_table(&status, Paint::default()), "cluster -  unknown  master -  taken -\n");
    }

    #[test]
    fn amounts() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(5 << 40)], ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]);
        assert_eq!(
            [duration(4), duration(7345), duration(61_000), duration(9_000_000)],
            ["4 ms", "7.3 s", "1 min", "2.5 h"]
        );
    }
}
