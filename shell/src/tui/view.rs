//! The only place that draws: `view(&Model, &mut Frame)`.
//!
//! Invariants: nothing here changes state; every size down to 1x1 draws without a panic; colour is never the only
//! signal (each state has a glyph and a word); a value that is not known is `-`, never 0.

mod cluster;
mod overlay;
mod sql;
pub mod text;

use quorate_shared::status::Verdict;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph};

use super::actions;
use super::model::{Model, Page, Pane};

/// Styles by meaning; without colour only modifiers remain.
pub(super) struct Theme {
    color: bool,
}

impl Theme {
    fn fg(&self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }
    pub(super) fn verdict(&self, verdict: Verdict) -> Style {
        match verdict {
            Verdict::Ok => self.fg(Color::Green),
            Verdict::Warning => self.fg(Color::Yellow).add_modifier(Modifier::BOLD),
            Verdict::Critical => self.fg(Color::Red).add_modifier(Modifier::BOLD),
            Verdict::Unknown => self.fg(Color::Magenta).add_modifier(Modifier::BOLD),
        }
    }
    pub(super) fn accent(&self) -> Style {
        self.fg(Color::Cyan)
    }
    pub(super) fn dim(&self) -> Style {
        if self.color { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }
    pub(super) fn head(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
    pub(super) fn selected(&self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// Draws the whole screen.
pub fn view(model: &Model, frame: &mut Frame) {
    let theme = Theme { color: model.color };
    let area = frame.area();
    if area.height < 4 || area.width < 10 {
        frame.render_widget(Paragraph::new(verdict_word(model)), area);
        return;
    }
    let [header, tabs, body, footer] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
            .areas(area);
    draw_header(model, &theme, frame, header);
    draw_tabs(model, &theme, frame, tabs);
    match model.page {
        Page::Cluster => cluster::draw(model, &theme, frame, body),
        Page::Sql => sql::draw(model, &theme, frame, body),
    }
    draw_footer(model, &theme, frame, footer);
    overlay::draw(model, &theme, frame, area);
}

/// `● ok`: glyph and word of the verdict; what is stale is not called ok.
fn verdict_word(model: &Model) -> String {
    let verdict = shown_verdict(model);
    format!("{} {verdict}", text::glyph(verdict))
}

fn shown_verdict(model: &Model) -> Verdict {
    match &model.cluster.picture {
        Some(picture) if !model.stale() => picture.verdict,
        _ => Verdict::Unknown,
    }
}

fn draw_header(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let mut spans = vec![
        Span::styled(" Quorate ", theme.head()),
        Span::styled(verdict_word(model), theme.verdict(shown_verdict(model))),
    ];
    let age = if model.frozen {
        " FROZEN ".to_owned()
    } else if model.cluster.picture.is_none() {
        " connecting ".to_owned()
    } else if model.stale() {
        format!(" STALE {} ", text::duration(model.picture_age()))
    } else {
        format!(" {} ago ", text::duration(model.picture_age()))
    };
    if let Some(picture) = &model.cluster.picture {
        let up = picture.nodes.iter().filter(|n| n.reachable).count();
        spans.push(Span::raw(format!("  master {}", picture.master.as_deref().unwrap_or("-"))));
        spans.push(Span::raw(format!("  nodes {up}/{} up", picture.nodes.len())));
        if area.width >= 70 {
            spans.push(Span::raw(format!("  sessions {}", picture.sessions)));
        }
    }
    if area.width >= 70
        && let Some(rate) = model.cluster.rate.back().copied().flatten()
    {
        spans.push(Span::raw(format!("  {rate} entries/s ")));
        let room = usize::from(area.width).saturating_sub(75).min(20);
        spans.push(Span::styled(text::sparkline(&model.cluster.rate, room, 1), theme.accent()));
    }
    let width = u16::try_from(text::width(&age)).unwrap_or(area.width).min(area.width);
    let [left, right] = Layout::horizontal([Constraint::Min(0), Constraint::Length(width)]).areas(area);
    frame.render_widget(Paragraph::new(Line::from(spans)), left);
    let style = if model.stale() || model.frozen { theme.verdict(Verdict::Warning) } else { theme.dim() };
    frame.render_widget(Paragraph::new(Span::styled(age, style)), right);
}

fn draw_tabs(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let tab = |name: &'static str, page: Page| {
        let style = if model.page == page { theme.selected().add_modifier(Modifier::BOLD) } else { theme.dim() };
        Span::styled(name, style)
    };
    let mut spans = vec![Span::raw(" "), tab(" 1 Cluster ", Page::Cluster), Span::raw(" "), tab(" 2 SQL ", Page::Sql)];
    if area.width >= 60 {
        spans.push(Span::styled(format!("   second shell: {}", model.connect_hint), theme.dim()));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

fn draw_footer(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    if let Some((message, _)) = &model.message {
        frame.render_widget(Paragraph::new(Span::styled(format!(" {message}"), theme.accent())), area);
        return;
    }
    let mut spans = Vec::new();
    let mut used = 0;
    let room = usize::from(area.width);
    for action in actions::footer(model) {
        let piece = format!(" {} {} ", action.keys, action.label);
        if used + text::width(&piece) > room.saturating_sub(8) {
            spans.push(Span::styled(" ? more", theme.dim()));
            break;
        }
        used += text::width(&piece);
        spans.push(Span::styled(format!(" {}", action.keys), theme.head()));
        spans.push(Span::styled(format!(" {} ", action.label), theme.dim()));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

/// A frame around a pane; the focused one is thick, so that it shows without colour.
pub(super) fn pane_block<'a>(model: &Model, theme: &Theme, pane: Pane, title: impl Into<Line<'a>>) -> Block<'a> {
    let focused = model.pane == pane && model.overlay.is_none();
    let block = Block::bordered().title(title);
    if focused {
        block.border_type(BorderType::Thick).border_style(theme.accent())
    } else {
        block.border_style(theme.dim())
    }
}
