//! The formats for eyes: `table` and `vertical`.
//!
//! Cells are measured in terminal columns, not characters; control characters are shown as escapes, so data cannot
//! steer the terminal; a line feed in a cell continues it on the next line, marked.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use quorate_shared::value::Value;
use quorate_shared::wire::Column;
use unicode_width::UnicodeWidthStr;

use super::{Style, is_number};
use crate::args::Format;

/// What NULL looks like.
const NULL: &str = "NULL";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// Widths of a result's columns, and whether it lies or stands.
pub(super) struct Layout {
    style: Style,
    vertical: bool,
    /// Table: per column. Vertical: the widest name, the widest value.
    widths: Vec<usize>,
}

impl Layout {
    /// Measures columns and rows.
    pub(super) fn of(style: &Style, columns: &[Column], rows: &[Vec<Value>]) -> Layout {
        let mut widths: Vec<usize> =
            columns.iter().map(|c| if style.header { lines_width(&printable(&c.name)) } else { 0 }).collect();
        for row in rows {
            for ((value, column), width) in row.iter().zip(columns).zip(&mut widths) {
                *width = (*width).max(lines_width(&cell(value, column)));
            }
        }
        let total: usize = widths.iter().map(|w| w + 3).sum::<usize>().saturating_sub(1);
        let vertical =
            style.format == Format::Vertical || style.width.is_some_and(|max| total > max && columns.len() > 1);
        if vertical {
            let name = columns.iter().map(|c| lines_width(&printable(&c.name))).max().unwrap_or(0);
            let value = widths.iter().copied().max().unwrap_or(0);
            widths = vec![name, value];
        }
        Layout { style: *style, vertical, widths }
    }

    /// The header of a table.
    pub(super) fn header(&self, columns: &[Column], out: &mut dyn Write) -> io::Result<()> {
        if self.vertical || !self.style.header {
            return Ok(());
        }
        let names: Vec<Cow<'_, str>> = columns.iter().map(|c| printable(&c.name)).collect();
        self.lines(
            &names,
            |at, line, width| {
                // Names stand in the middle, as people expect of tables in terminals.
                let space = width.saturating_sub(line.width());
                let left = if is_number(columns[at].ty) { space } else { 0 };
                let (on, off) = if self.style.color { (BOLD, RESET) } else { ("", "") };
                format!("{:left$}{on}{line}{off}{:right$}", "", "", right = space - left)
            },
            out,
        )?;
        let (dash, cross) = if self.style.unicode { ("─", "┼") } else { ("-", "+") };
        let rules: Vec<String> = self.widths.iter().map(|w| dash.repeat(w + 2)).collect();
        writeln!(out, "{}", rules.join(cross))
    }

    /// One row; `number` counts from 1.
    pub(super) fn row(&self, columns: &[Column], row: &[Value], number: u64, out: &mut dyn Write) -> io::Result<()> {
        if self.vertical {
            return self.record(columns, row, number, out);
        }
        let cells: Vec<Cow<'_, str>> = row.iter().zip(columns).map(|(v, c)| cell(v, c)).collect();
        self.lines(
            &cells,
            |at, line, width| {
                let space = width.saturating_sub(line.width());
                let left = if is_number(columns[at].ty) { space } else { 0 };
                let (on, off) =
                    if row[at].is_null() && self.style.color && !line.is_empty() { (DIM, RESET) } else { ("", "") };
                format!("{:left$}{on}{line}{off}{:right$}", "", "", right = space - left)
            },
            out,
        )
    }

    /// Cells side by side, each of as many lines as it has; `pad` fills a line of a column to its width.
    fn lines(
        &self,
        cells: &[Cow<'_, str>],
        pad: impl Fn(usize, &str, usize) -> String,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let split: Vec<Vec<&str>> = cells.iter().map(|c| c.split('\n').collect()).collect();
        let height = split.iter().map(Vec::len).max().unwrap_or(1);
        let (bar, more) = if self.style.unicode { ("│", "↵") } else { ("|", "+") };
        for line in 0..height {
            let mut text = String::new();
            for (at, parts) in split.iter().enumerate() {
                if at > 0 {
                    text.push_str(bar);
                }
                let width = self.widths.get(at).copied().unwrap_or(0);
                let goes_on = line + 1 < parts.len();
                let part = pad(at, parts.get(line).copied().unwrap_or(""), width);
                let _ = write!(text, " {part}{}", if goes_on { more } else { " " });
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    /// A row standing up.
    fn record(&self, columns: &[Column], row: &[Value], number: u64, out: &mut dyn Write) -> io::Result<()> {
        let (dash, cross, bar, more) =
            if self.style.unicode { ("─", "┬", "│", "↵") } else { ("-", "+", "|", "+") };
        let (name_width, value_width) = (self.widths[0], self.widths[1]);
        if self.style.header {
            let title = format!("{dash}[ {number} ]");
            let rest = (name_width + 1).saturating_sub(title.width());
            // A very wide value needs no line of its width above it.
            let right = (value_width + 1).min(60);
            writeln!(out, "{title}{}{cross}{}", dash.repeat(rest), dash.repeat(right))?;
        }
        let (on, off) = if self.style.color { (BOLD, RESET) } else { ("", "") };
        for (value, column) in row.iter().zip(columns) {
            let name = printable(&column.name).replace('\n', " ");
            let text = cell(value, column);
            let mut lines = text.split('\n').peekable();
            let mut first = true;
            while let Some(line) = lines.next() {
                let label = if first { name.as_str() } else { "" };
                let space = name_width.saturating_sub(label.width());
                let mark = if lines.peek().is_some() { more } else { "" };
                let row = format!("{on}{label}{off}{:space$} {bar} {line}{mark}", "");
                writeln!(out, "{}", row.trim_end())?;
                first = false;
            }
        }
        Ok(())
    }
}

/// The widest line of a cell.
fn lines_width(text: &str) -> usize {
    text.split('\n').map(UnicodeWidthStr::width).max().unwrap_or(0)
}

fn cell<'a>(value: &'a Value, column: &Column) -> Cow<'a, str> {
    match value {
        Value::Null => Cow::Borrowed(NULL),
        Value::Text(text) | Value::Json(text) => printable(text),
        other => Cow::Owned(other.text(column.ty)),
    }
}

/// Text whose control characters, line feeds apart, are shown instead of obeyed.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| c == '\n' || !(c.is_control() || is_direction_mark(c));
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            _ if harmless(c) => out.push(c),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    Cow::Owned(out)
}

/// Marks that reorder what is shown after them.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
