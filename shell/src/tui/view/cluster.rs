//! The cluster page: topology, replication lag, problems.

use quorate_shared::status::{ClusterStatus, NodeKind, NodeStatus, Verdict};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Modifier;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::{Theme, pane_block, text};
use crate::tui::model::{Model, Pane, member_verdict};

/// Draws the page; on a small screen only the pane that has the focus.
pub fn draw(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let Some(picture) = &model.cluster.picture else {
        let why = model.cluster.error.as_deref().unwrap_or("waiting for the first picture");
        let block = pane_block(model, theme, Pane::Nodes, " Cluster ");
        let text = format!("No picture of the cluster yet.\n\n{why}");
        frame.render_widget(Paragraph::new(text).block(block).wrap(Wrap { trim: false }), area);
        return;
    };
    if area.height < 14 || area.width < 60 {
        match model.pane {
            Pane::Replication => replication(model, theme, picture, frame, area),
            Pane::Problems => problems(model, theme, picture, frame, area),
            _ => nodes(model, theme, picture, frame, area),
        }
        return;
    }
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let members: usize = picture.shards.iter().map(|s| s.members.len()).sum();
    let node_rows = count(picture.nodes.len()).saturating_add(3).min(area.height / 3).max(4);
    let member_rows = count(members).saturating_add(3);
    let rest = area.height.saturating_sub(node_rows);
    let member_rows = member_rows.min(rest.saturating_sub(4)).max(4);
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(node_rows), Constraint::Length(member_rows), Constraint::Min(3)])
            .areas(area);
    nodes(model, theme, picture, frame, top);
    replication(model, theme, picture, frame, middle);
    problems(model, theme, picture, frame, bottom);
}

/// `master`, `voter`, `replica`; `-`: nobody could tell.
pub(super) fn role(picture: &ClusterStatus, node: &NodeStatus) -> &'static str {
    match node.kind {
        _ if picture.master.as_deref() == Some(node.id.as_str()) => "master",
        Some(NodeKind::Voter) => "voter",
        Some(NodeKind::Replica) => "replica",
        None => "-",
    }
}

fn node_verdict(node: &NodeStatus) -> Verdict {
    match (node.reachable, &node.error) {
        (false, _) => Verdict::Critical,
        (true, Some(_)) => Verdict::Warning,
        (true, None) => Verdict::Ok,
    }
}

/// The topology: the master first, voters under it, replicas under the leader they pull from.
fn nodes(model: &Model, theme: &Theme, picture: &ClusterStatus, frame: &mut Frame, area: Rect) {
    let wide = area.width >= 90;
    let narrow = area.width < 60;
    let mut heads = vec!["node", "role", "state", "leads"];
    let mut widths = vec![Constraint::Length(8), Constraint::Length(8), Constraint::Length(13), Constraint::Length(7)];
    if !narrow {
        heads.extend(["address", "up"]);
        widths.extend([Constraint::Length(21), Constraint::Length(8)]);
    }
    if wide {
        heads.extend(["disk", "memory", "sessions"]);
        widths.extend([Constraint::Length(11), Constraint::Length(11), Constraint::Length(8)]);
    }
    let last = picture.nodes.len().saturating_sub(1);
    let rows = picture.nodes.iter().enumerate().map(|(at, node)| {
        let verdict = node_verdict(node);
        let branch = if picture.master.as_deref() == Some(&node.id) {
            ""
        } else if at == last {
            "└ "
        } else {
            "├ "
        };
        let leads: Vec<&str> =
            picture.shards.iter().filter(|s| s.leader.as_deref() == Some(&node.id)).map(|s| s.id.as_str()).collect();
        let state = if node.reachable { "up" } else { "unreachable" };
        let mut cells = vec![
            Cell::from(format!("{branch}{}", node.id)),
            Cell::from(role(picture, node)),
            Cell::from(format!("{} {state}", text::glyph(verdict))).style(theme.verdict(verdict)),
            Cell::from(leads.join(" ")),
        ];
        if !narrow {
            cells.push(Cell::from(node.addr.clone()));
            cells.push(Cell::from(node.uptime_ms.map_or(text::UNKNOWN.to_owned(), text::duration)));
        }
        if wide {
            cells.push(Cell::from(text::maybe_bytes(node.disk_used_bytes)));
            cells.push(Cell::from(text::maybe_bytes(node.memory_bytes)));
            cells.push(Cell::from(text::number(node.sessions)));
        }
        Row::new(cells)
    });
    let mut title = vec![Span::raw(" Nodes ")];
    if let Some(error) = model.cluster.error.as_deref().filter(|_| model.stale()) {
        let room = usize::from(area.width).saturating_sub(12);
        title.push(Span::styled(format!("{} ", text::fit(error, room)), theme.verdict(Verdict::Critical)));
    }
    let mut table = Table::new(rows, widths).header(Row::new(heads).style(theme.head())).block(pane_block(
        model,
        theme,
        Pane::Nodes,
        Line::from(title),
    ));
    if model.stale() {
        table = table.style(theme.dim().add_modifier(Modifier::DIM));
    }
    let mut state = TableState::default();
    if model.pane == Pane::Nodes {
        table = table.row_highlight_style(theme.selected());
        state.select(Some(model.node));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

/// Lag of every replica, in the leader's time.
fn replication(model: &Model, theme: &Theme, picture: &ClusterStatus, frame: &mut Frame, area: Rect) {
    let wide = area.width >= 100;
    let narrow = area.width < 60;
    let (heads, widths): (Vec<&str>, Vec<Constraint>) = if narrow {
        (
            vec!["member", "lag", "behind", "trend"],
            vec![Constraint::Length(9), Constraint::Length(10), Constraint::Length(7), Constraint::Min(4)],
        )
    } else {
        let mut heads = vec!["member", "role", "lag", "entries", "bytes", "applied"];
        let mut widths = vec![
            Constraint::Length(10),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(9),
        ];
        if wide {
            heads.extend(["durable", "sent", "report"]);
            widths.extend([Constraint::Length(9), Constraint::Length(9), Constraint::Length(8)]);
        }
        heads.extend(["stuck", "trend"]);
        widths.extend([Constraint::Length(8), Constraint::Min(4)]);
        (heads, widths)
    };
    let used: u16 = widths.iter().map(|w| if let Constraint::Length(n) = w { n + 1 } else { 0 }).sum();
    let room = usize::from(area.width.saturating_sub(used + 2));
    let rows = model.members().into_iter().filter_map(|(s, m)| {
        let shard = picture.shards.get(s)?;
        let member = shard.members.get(m)?;
        let verdict = member_verdict(picture, &shard.id, member);
        let leads = shard.leader.as_deref() == Some(member.node.as_str());
        let key = (shard.id.clone(), member.node.clone());
        let trend = model.cluster.lag.get(&key).map_or_else(String::new, |s| text::sparkline(s, room, 10));
        let name = Cell::from(format!("{} {}/{}", text::glyph(verdict), shard.id, member.node));
        let name = name.style(theme.verdict(verdict));
        let lag = Cell::from(text::lag(member)).style(theme.verdict(verdict));
        let trend = Cell::from(trend).style(theme.accent());
        if narrow {
            let behind = Cell::from(text::number(member.lag_entries));
            return Some(Row::new(vec![name, lag, behind, trend]));
        }
        let role = if leads { "leader".to_owned() } else { member.kind.to_string() };
        let mut cells = vec![
            name,
            Cell::from(role),
            lag,
            Cell::from(text::number(member.lag_entries)),
            Cell::from(text::maybe_bytes(member.lag_bytes)),
            Cell::from(text::number(member.applied)),
        ];
        if wide {
            cells.push(Cell::from(text::number(member.durable)));
            cells.push(Cell::from(text::number(member.sent)));
            cells.push(Cell::from(member.report_age_ms.map_or(text::UNKNOWN.to_owned(), text::duration)));
        }
        cells.push(Cell::from(member.stuck_at.clone().unwrap_or_default()));
        cells.push(trend);
        Some(Row::new(cells))
    });
    let mut title = String::from(" Replication ");
    for shard in &picture.shards {
        if shard.leader.is_none() || !shard.confirmed {
            title.push_str(&format!("· {} leader unconfirmed ", shard.id));
        }
    }
    let mut table = Table::new(rows, widths).header(Row::new(heads).style(theme.head())).block(pane_block(
        model,
        theme,
        Pane::Replication,
        title,
    ));
    if model.stale() {
        table = table.style(theme.dim().add_modifier(Modifier::DIM));
    }
    let mut state = TableState::default();
    if model.pane == Pane::Replication {
        table = table.row_highlight_style(theme.selected());
        state.select(Some(model.member));
    }
    frame.render_stateful_widget(table, area, &mut state);
}

/// What is wrong, worst first, and what has come and gone.
fn problems(model: &Model, theme: &Theme, picture: &ClusterStatus, frame: &mut Frame, area: Rect) {
    let title = match picture.problems.len() {
        0 => " Problems: none ".to_owned(),
        n => format!(" Problems: {n} "),
    };
    let block = pane_block(model, theme, Pane::Problems, title);
    let inner = usize::from(block.inner(area).height);
    let mut lines = Vec::new();
    for (at, problem) in picture.problems.iter().enumerate() {
        let mark = if model.pane == Pane::Problems && at == model.problem { "▸" } else { " " };
        lines.push(Line::from(vec![
            Span::raw(mark),
            Span::styled(
                format!("{} {} {}", text::glyph(problem.severity), problem.name, problem.subject),
                theme.verdict(problem.severity),
            ),
            Span::raw(format!("  since {}", short_time(&problem.since))),
        ]));
        lines.push(Line::from(Span::styled(format!("    {}", problem.hint), theme.dim())));
    }
    for (when, event) in model.cluster.events.iter().rev() {
        let ago = text::duration(model.now.saturating_sub(*when));
        lines.push(Line::from(Span::styled(format!("  {ago} ago: {event}"), theme.dim())));
    }
    if lines.is_empty() {
        lines.push(Line::from(Span::styled(" Nothing is wrong.", theme.dim())));
    }
    // The selected problem stays in sight.
    let wanted = model.problem * 2;
    let skip = if model.pane == Pane::Problems && wanted + 2 > inner { wanted + 2 - inner } else { 0 };
    let lines: Vec<Line> = lines.into_iter().skip(skip).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// The time of day of an RFC 3339 time.
fn short_time(rfc3339: &str) -> &str {
    rfc3339.get(11..19).unwrap_or(rfc3339)
}
