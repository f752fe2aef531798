//! What lies on top of a page: help, a node's details, a change of the cluster.

use quorate_shared::admin::StepState;
use quorate_shared::status::Verdict;
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
        Some(Overlay::Action) => action(model, theme, frame, area),
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

/// A change of the cluster: what will be done and what stands against it, then how it goes.
fn action(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let Some(doing) = &model.doing else { return };
    let mut lines = Vec::new();
    match &doing.plan {
        None if doing.end.is_none() => lines.push(Line::from(" asks for the plan …")),
        None => {}
        Some(plan) => {
            lines.push(Line::from(Span::styled(format!(" {}", plan.title), theme.head())));
            for (number, step) in plan.steps.iter().enumerate() {
                lines.extend(step_lines(theme, number, step, doing.steps.get(number).and_then(Option::as_ref)));
            }
            let remark = |glyph: &str, verdict, text: &String| {
                Line::from(Span::styled(format!(" {glyph} {text}"), theme.verdict(verdict)))
            };
            lines.extend(plan.warnings.iter().map(|text| remark("!", Verdict::Warning, text)));
            lines.extend(plan.refusals.iter().map(|text| remark("✗ refused:", Verdict::Critical, text)));
        }
    }
    match &doing.end {
        Some(Ok(outcome)) => {
            let (glyph, verdict) = if outcome.done { ("●", Verdict::Ok) } else { ("✗", Verdict::Critical) };
            let style = theme.verdict(verdict);
            lines.push(Line::from(Span::styled(format!(" {glyph} {}", outcome.summary), style)));
            lines.extend(outcome.facts.iter().map(|(name, value)| {
                Line::from(vec![Span::styled(format!("   {name:<14}"), theme.dim()), Span::raw(value.clone())])
            }));
        }
        Some(Err(why)) => {
            lines.push(Line::from(Span::styled(format!(" ✗ {why}"), theme.verdict(Verdict::Critical))));
        }
        None if doing.can_begin() && doing.danger => {
            lines.push(Line::from(Span::styled(" y does it; it cannot be taken back. Esc leaves it.", theme.head())));
        }
        None if doing.can_begin() => {
            lines.push(Line::from(Span::styled(" Enter or y does it. Esc leaves it.", theme.head())));
        }
        None => {}
    }
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(4);
    let cell = centered(area, 90, height);
    frame.render_widget(Clear, cell);
    let block = Block::bordered().title(format!(" {} ", doing.action.name())).border_style(theme.accent());
    frame.render_widget(Paragraph::new(lines).block(block).wrap(Wrap { trim: false }), cell);
}

/// A step, and what is said of it.
fn step_lines<'a>(
    theme: &Theme,
    number: usize,
    step: &'a str,
    said: Option<&'a (StepState, String, u64)>,
) -> Vec<Line<'a>> {
    let (glyph, style) = match said.map(|(state, ..)| *state) {
        None => (" ", theme.dim()),
        Some(StepState::Running) => ("…", theme.accent()),
        Some(StepState::Done) => ("✓", theme.verdict(Verdict::Ok)),
        Some(StepState::Failed) => ("✗", theme.verdict(Verdict::Critical)),
    };
    let mut lines = vec![Line::from(vec![
        Span::styled(format!(" {glyph} {}. ", number + 1), style),
        Span::raw(step),
        Span::styled(said.map_or_else(String::new, |(_, _, ms)| format!("  {}", text::duration(*ms))), theme.dim()),
    ])];
    if let Some((_, detail, _)) = said.filter(|(_, detail, _)| !detail.is_empty()) {
        lines.push(Line::from(Span::styled(format!("      {detail}"), theme.dim())));
    }
    lines
}
