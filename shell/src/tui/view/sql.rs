//! The SQL page: the statement being written, and the last result.

use quorate_shared::value::Value;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState, Wrap};

use super::{Theme, pane_block, text};
use crate::tui::model::{Answer, Model, Pane, RESULT_ROWS_MAX};

/// Widest column shown; longer values end in an ellipsis.
const COLUMN_WIDTH_MAX: usize = 40;

/// Draws the page.
pub fn draw(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let lines = u16::try_from(model.sql.editor.lines().len()).unwrap_or(u16::MAX);
    let editor_rows = lines.saturating_add(2).clamp(3, (area.height / 2).max(3));
    let [top, bottom] = Layout::vertical([Constraint::Length(editor_rows), Constraint::Min(1)]).areas(area);
    let state = match model.sql.running_since {
        Some(_) if model.sql.cancelling => "cancelling".to_owned(),
        Some(since) => format!("running {}", text::duration(model.now.saturating_sub(since))),
        None => "end with ';' and Enter to run".to_owned(),
    };
    let block = pane_block(model, theme, Pane::Editor, format!(" SQL · {} · {state} ", model.database));
    let inner = block.inner(top);
    frame.render_widget(block, top);
    let mut editor = model.sql.editor.clone();
    editor.set_cursor_line_style(Style::new());
    if model.pane != Pane::Editor {
        editor.set_cursor_style(Style::new());
    }
    frame.render_widget(&editor, inner);
    result(model, theme, frame, bottom);
}

fn result(model: &Model, theme: &Theme, frame: &mut Frame, area: Rect) {
    let Some(answer) = &model.sql.answer else {
        let block = pane_block(model, theme, Pane::Result, " Result ");
        let hint = "Try: select * from quorate.nodes;";
        frame.render_widget(Paragraph::new(Span::styled(hint, theme.dim())).block(block), area);
        return;
    };
    let block = pane_block(model, theme, Pane::Result, format!(" Result · {} ", summary(answer)));
    match &answer.end {
        Err(error) => {
            let mut lines = vec![Line::from(Span::styled(
                format!("✖ {error}"),
                theme.verdict(quorate_shared::status::Verdict::Critical),
            ))];
            lines.extend(error.detail.iter().map(|d| Line::from(format!("detail: {d}"))));
            lines.extend(error.hint.iter().map(|h| Line::from(format!("hint: {h}"))));
            frame.render_widget(Paragraph::new(lines).block(block).wrap(Wrap { trim: false }), area);
        }
        Ok(_) if answer.columns.is_empty() => {
            frame.render_widget(Paragraph::new(Span::styled(answer.sql.as_str(), theme.dim())).block(block), area);
        }
        Ok(_) => {
            let first = model.sql.column.min(answer.columns.len().saturating_sub(1));
            let (widths, rows) = cells(answer, first, usize::from(area.height), model.sql.row);
            let heads = answer.columns.iter().skip(first).map(|c| Cell::from(c.name.clone()));
            let mut table =
                Table::new(rows, widths).header(Row::new(heads).style(theme.head())).block(block).column_spacing(2);
            let mut state = TableState::default();
            if model.pane == Pane::Result {
                table = table.row_highlight_style(theme.selected());
                state.select(Some(0));
            }
            frame.render_stateful_widget(table, area, &mut state);
        }
    }
}

/// What the title says of an answer.
fn summary(answer: &Answer) -> String {
    match &answer.end {
        Err(error) => format!("{} · {}", error.code, text::duration(answer.took_ms)),
        Ok(done) if answer.columns.is_empty() => {
            format!("{} {} · {}", done.tag, done.rows, text::duration(answer.took_ms))
        }
        Ok(done) => {
            let cut = if done.rows as usize > RESULT_ROWS_MAX {
                format!(" (the first {RESULT_ROWS_MAX} are here)")
            } else {
                String::new()
            };
            let rows = if done.rows == 1 { "row" } else { "rows" };
            format!("{} {rows}{cut} · {}", done.rows, text::duration(answer.took_ms))
        }
    }
}

/// One line of text for a value.
fn cell_text(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        other => other.to_string().replace('\n', "↵").replace('\t', " "),
    }
}

fn cells(answer: &Answer, first: usize, height: usize, from: usize) -> (Vec<Constraint>, Vec<Row<'static>>) {
    let shown: Vec<Vec<String>> = answer
        .rows
        .iter()
        .skip(from)
        .take(height)
        .map(|row| row.iter().skip(first).map(|v| text::fit(&cell_text(v), COLUMN_WIDTH_MAX)).collect())
        .collect();
    let widths = answer.columns.iter().skip(first).enumerate().map(|(at, column)| {
        let widest = shown.iter().filter_map(|r| r.get(at)).map(|t| text::width(t)).max().unwrap_or(0);
        let w = widest.max(text::width(&column.name)).clamp(1, COLUMN_WIDTH_MAX);
        Constraint::Length(u16::try_from(w).unwrap_or(u16::MAX))
    });
    let widths = widths.collect();
    (widths, shown.into_iter().map(Row::new).collect())
}
