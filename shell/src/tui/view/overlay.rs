//! What lies on top of a page: help, a node's details, a change of the cluster.

use quorate_shared::admin::StepState;
use quorate_shared::status::Verdict;
use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph};

use super::{Theme, cluster, text};
use crate::render::wrap;
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

/// Columns of the widest box.
const WIDTH: u16 = 96;

/// Columns of text in the box.
fn room(area: Rect) -> usize {
    usize::from(area.width.min(WIDTH).saturating_sub(4))
}

/// Draws lines in a box in the middle, at most as large as the screen. What its keys do stands on its frame: the first of
/// `below` that fits there.
fn boxed(frame: &mut Frame, theme: &Theme, area: Rect, title: &str, lines: Vec<Line<'_>>, scroll: u16, below: &[&str]) {
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let [row] = Layout::vertical([Constraint::Length(height.min(area.height))]).flex(Flex::Center).areas(area);
    let [cell] = Layout::horizontal([Constraint::Length(WIDTH.min(area.width))]).flex(Flex::Center).areas(row);
    let hidden = height.saturating_sub(cell.height);
    let mut block = Block::bordered().title(format!(" {title} ")).border_style(theme.accent());
    block = block.padding(Padding::horizontal(1));
    let more = if hidden > 0 { "Up Down more " } else { "" };
    let fits = |below: &&&str| text::width(more) + text::width(below) + 4 <= usize::from(cell.width);
    let below = below.iter().find(fits).or(below.last()).copied().unwrap_or_default();
    let below = [more, below].concat();
    if !below.is_empty() {
        block = block.title_bottom(Span::styled(format!(" {} ", below.trim()), theme.head()));
    }
    frame.render_widget(Clear, cell);
    frame.render_widget(Paragraph::new(lines).block(block).scroll((scroll.min(hidden), 0)), cell);
}

/// A text behind a label, wrapped at words; what follows the first line stands under the text.
fn hanging<'a>(label: Span<'a>, text: &str, style: Style, room: usize) -> Vec<Line<'a>> {
    let indent = text::width(&label.content);
    let mut label = Some(label);
    let lines = wrap(text, room.saturating_sub(indent).max(8)).into_iter();
    let lines = lines.map(|line| {
        let label = label.take().unwrap_or_else(|| Span::raw(" ".repeat(indent)));
        Line::from(vec![label, Span::styled(line, style)])
    });
    lines.collect()
}

/// Every action, from the one table.
fn help(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let mut lines = Vec::new();
    for action in ACTIONS {
        let command = action.command.map_or(String::new(), |command| format!("  ({command})"));
        let label = Span::styled(format!("{:<10}", action.keys), theme.head());
        lines.extend(hanging(label, &format!("{}{command}", action.help), Style::new(), room(area)));
    }
    lines.push(Line::default());
    let legend = "- is not known; ≥ is at least; a gap in a trend is a time without news.";
    lines.extend(hanging(Span::raw(""), legend, theme.dim(), room(area)));
    boxed(frame, theme, area, "Help", lines, model.scroll, &[]);
}

/// Everything known about the selected node.
fn node(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let Some(picture) = &model.cluster.picture else { return };
    let Some(node) = picture.nodes.get(model.node) else { return };
    let line = |name: &str, value: String| {
        hanging(Span::styled(format!("{name:<12}"), theme.head()), &value, Style::new(), room(area))
    };
    let mut lines = [
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
    ]
    .concat();
    if let Some(error) = &node.error {
        lines.extend(line("error", error.clone()));
    }
    for shard in &picture.shards {
        for member in shard.members.iter().filter(|m| m.node == node.id) {
            let stuck = member.stuck_at.as_deref().map_or(String::new(), |s| format!(", stuck at {s}"));
            lines.extend(line(
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
    boxed(frame, theme, area, &node.id, lines, 0, &[]);
}

/// A change of the cluster: what stands against it and what will be done, then how it goes.
fn action(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let Some(doing) = &model.doing else { return };
    let room = room(area);
    let remark = |glyph: &'static str, verdict, text: &str| {
        let style = theme.verdict(verdict);
        hanging(Span::styled(glyph, style), text, style, room)
    };
    let mut lines = Vec::new();
    match &doing.plan {
        None if doing.end.is_none() => lines.push(Line::from("asks for the plan …")),
        None => {}
        Some(plan) => {
            lines.extend(hanging(Span::raw(""), &plan.title, theme.head(), room));
            lines.extend(plan.refusals.iter().flat_map(|text| remark("✗ refused: ", Verdict::Critical, text)));
            lines.extend(plan.warnings.iter().flat_map(|text| remark("! ", Verdict::Warning, text)));
            for (number, step) in plan.steps.iter().enumerate() {
                lines.extend(step_lines(theme, number, step, doing.steps.get(number).and_then(Option::as_ref), room));
            }
        }
    }
    let mut below: &[&str] = &[];
    match &doing.end {
        Some(Ok(outcome)) => {
            let (glyph, verdict) = if outcome.done { ("● ", Verdict::Ok) } else { ("✗ ", Verdict::Critical) };
            lines.extend(remark(glyph, verdict, &outcome.summary));
            lines.extend(outcome.facts.iter().flat_map(|(name, value)| {
                hanging(Span::styled(format!("  {name:<14} "), theme.dim()), value, Style::new(), room)
            }));
        }
        Some(Err(why)) => lines.extend(remark("✗ ", Verdict::Critical, why)),
        None if doing.can_begin() && doing.danger => {
            below = &["y does it: no way back; Esc leaves it", "y: no way back; Esc"];
        }
        None if doing.can_begin() => below = &["Enter or y does it, Esc leaves it", "y does it; Esc"],
        None => {}
    }
    // Once it has begun its end is what counts.
    let scroll = if doing.confirmed { u16::MAX } else { model.scroll };
    boxed(frame, theme, area, doing.action.name(), lines, scroll, below);
}

/// A step, and what is said of it.
fn step_lines<'a>(
    theme: &Theme,
    number: usize,
    step: &str,
    said: Option<&(StepState, String, u64)>,
    room: usize,
) -> Vec<Line<'a>> {
    let (glyph, style) = match said.map(|(state, ..)| *state) {
        None => (" ", theme.dim()),
        Some(StepState::Running) => ("…", theme.accent()),
        Some(StepState::Done) => ("✓", theme.verdict(Verdict::Ok)),
        Some(StepState::Failed) => ("✗", theme.verdict(Verdict::Critical)),
    };
    let label = Span::styled(format!("{glyph} {}. ", number + 1), style);
    let mut lines = hanging(label, step, Style::new(), room);
    if let (Some((_, _, ms)), Some(last)) = (said, lines.last_mut()) {
        last.push_span(Span::styled(format!("  {}", text::duration(*ms)), theme.dim()));
    }
    if let Some((_, detail, _)) = said.filter(|(_, detail, _)| !detail.is_empty()) {
        lines.extend(hanging(Span::raw("     "), detail, theme.dim(), room));
    }
    lines
}
