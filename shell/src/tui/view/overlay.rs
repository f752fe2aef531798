//! What lies on top of a page: help, a node's details.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::{Theme, cluster, text};
use crate::tui::actions::ACTIONS;
use crate::tui::model::{Model, Overlay};

/// Draws the overlay, if there is one.
pub fn draw(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    match model.overlay {
        None => {}
        Some(Overlay::Help) => help(model, theme, frame, area),
        Some(Overlay::Node) => node(model, theme, frame, area),
    }
}

/// A box in the middle, at most as large as the screen.
fn centered(area: Rect, width: u16, height: u16) -> Rect {
    let [row] = Layout::vertical([Constraint::Length(height.min(area.height))]).flex(Flex::Center).areas(area);
    let [cell] = Layout::horizontal([Constraint::Length(width.min(area.width))]).flex(Flex::Center).areas(row);
    cell
}

/// Every action, from the one table.
fn help(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let mut lines = Vec::new();
    for action in ACTIONS {
        let mut spans = vec![Span::styled(format!(" {:<10}", action.keys), theme.head()), Span::raw(action.help)];
        if let Some(command) = action.command {
            spans.push(Span::styled(format!("  ({command})"), theme.dim()));
        }
        lines.push(Line::from(spans));
    }
    lines.push(Line::default());
    lines.push(Line::from(" - is not known; ≥ is at least; a gap in a trend is a time without news."));
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let cell = centered(area, 96, height);
    let scroll = model.help_scroll.min(height.saturating_sub(cell.height));
    frame.render_widget(Clear, cell);
    let block = Block::bordered().title(" Help ").border_style(theme.accent());
    frame.render_widget(Paragraph::new(lines).block(block).scroll((scroll, 0)), cell);
}

/// Everything known about the selected node.
fn node(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let Some(picture) = &model.cluster.picture else { return };
    let Some(node) = picture.nodes.get(model.node) else { return };
    let line = |name: &str, value: String| {
        Line::from(vec![Span::styled(format!(" {name:<12}"), theme.head()), Span::raw(value)])
    };
    let mut lines = vec![
        line("role", cluster::role(picture, node).to_owned()),
        line("address", node.addr.clone()),
        line("http", node.http.clone().unwrap_or_else(|| text::UNKNOWN.to_owned())),
        line("reachable", if node.reachable { "yes".to_owned() } else { "no".to_owned() }),
        line("by peers", node.reachable_by_peers.map_or(text::UNKNOWN.to_owned(), |n| n.to_string())),
        line("version", node.version.clone().unwrap_or_else(|| text::UNKNOWN.to_owned())),
        line("up", node.uptime_ms.map_or(text::UNKNOWN.to_owned(), text::duration)),
        line("disk used", text::maybe_bytes(node.disk_used_bytes)),
        line("disk free", text::maybe_bytes(node.disk_free_bytes)),
        line("memory", text::maybe_bytes(node.memory_bytes)),
        line("sessions", text::number(node.sessions)),
        line("statements", text::number(node.statements)),
    ];
    if let Some(error) = &node.error {
        lines.push(line("error", error.clone()));
    }
    for shard in &picture.shards {
        for member in shard.members.iter().filter(|m| m.node == node.id) {
            let stuck = member.stuck_at.as_deref().map_or(String::new(), |s| format!(", stuck at {s}"));
            lines.push(line(
                &shard.id,
                format!(
                    "sent {} durable {} applied {}, lag {}{stuck}",
                    text::number(member.sent),
                    text::number(member.durable),
                    text::number(member.applied),
                    text::lag(member)
                ),
            ));
        }
    }
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let cell = centered(area, 76, height);
    frame.render_widget(Clear, cell);
    let block = Block::bordered().title(format!(" {} ", node.id)).border_style(theme.accent());
    frame.render_widget(Paragraph::new(lines).block(block).wrap(Wrap { trim: false }), cell);
}
