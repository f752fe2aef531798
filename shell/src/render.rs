//! Results as text: table, vertical, csv, tsv, json, jsonl, markdown.
//!
//! A [`Renderer`] is fed a result's rows as they come and writes to whatever it is given, so every format is a pure
//! function of columns, rows and [`Style`]. All but the aligned ones stream row by row in constant memory; those keep
//! the first [`ALIGN_ROWS_MAX`] rows to find the widths and let later, wider cells stick out: nothing is ever cut.
//!
//! What a value looks like is [`Value::text`]; what NULL looks like is the format's business.
//! Left out: remarks about a result (row counts, timing), which are narration and go elsewhere.

mod aligned;
pub mod error;
pub(crate) mod json;
pub mod status;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io::{self, Write};

use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::Column;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::args::Format;

/// Rows looked at before the widths of an aligned format are fixed.
pub const ALIGN_ROWS_MAX: usize = 2000;
/// Bytes of cells kept for the same purpose.
pub const ALIGN_BYTES_MAX: usize = 8 << 20;

/// How results are to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// The format.
    pub format: Format,
    /// With a header, where the format has one.
    pub header: bool,
    /// Box-drawing characters, for a terminal that has them; else ASCII.
    pub unicode: bool,
    /// Colours, for a terminal.
    pub color: bool,
    /// Show a table that is wider than this as `vertical`.
    pub width: Option<usize>,
}

impl Style {
    /// Plain output, as for a pipe.
    pub fn plain(format: Format) -> Style {
        Style { format, header: true, unicode: false, color: false, width: None }
    }
}

/// Writes one result.
pub struct Renderer {
    style: Style,
    columns: Vec<Column>,
    begun: bool,
    rows: u64,
    /// Rows kept until the widths are known.
    kept: Vec<Vec<Value>>,
    kept_bytes: usize,
    layout: Option<aligned::Layout>,
    keys: Vec<String>,
}

impl Renderer {
    /// A renderer for a result with these columns.
    pub fn new(style: Style, columns: &[Column]) -> Self {
        Self {
            style,
            columns: columns.to_vec(),
            begun: false,
            rows: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            layout: None,
            keys: json::keys(columns),
        }
    }

    /// Rows written so far.
    pub fn count(&self) -> u64 {
        self.rows
    }

    /// Writes (or keeps) some rows.
    pub fn rows(&mut self, rows: Vec<Vec<Value>>, out: &mut dyn Write) -> io::Result<()> {
        if self.columns.is_empty() {
            return Ok(());
        }
        match self.style.format {
            Format::Table | Format::Vertical if self.layout.is_none() => {
                self.kept_bytes += rows.iter().flatten().map(approximate_bytes).sum::<usize>();
                self.kept.extend(rows);
                if self.kept.len() >= ALIGN_ROWS_MAX || self.kept_bytes >= ALIGN_BYTES_MAX {
                    self.align(out)?;
                }
                Ok(())
            }
            _ => {
                self.begin(out)?;
                rows.iter().try_for_each(|row| self.row(row, out))
            }
        }
    }

    /// Writes the end of the result.
    pub fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.columns.is_empty() {
            return Ok(());
        }
        match self.style.format {
            Format::Table | Format::Vertical => self.align(out),
            Format::Json => {
                self.begin(out)?;
                out.write_all(if self.rows == 0 { b"]\n" } else { b"\n]\n" })
            }
            _ => self.begin(out),
        }
    }

    /// Gives up after an error: writes what was kept, but no end.
    pub fn abort(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self.style.format {
            Format::Table | Format::Vertical if !self.kept.is_empty() => self.align(out),
            Format::Json if self.rows > 0 => out.write_all(b"\n"),
            _ => Ok(()),
        }
    }

    /// Fixes the widths and writes what was kept.
    fn align(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.layout.is_some() {
            return Ok(());
        }
        let kept = std::mem::take(&mut self.kept);
        let layout = aligned::Layout::of(&self.style, &self.columns, &kept);
        layout.header(&self.columns, out)?;
        self.layout = Some(layout);
        kept.iter().try_for_each(|row| self.row(row, out))
    }

    /// Writes what stands before the first row, once.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        let names = || self.columns.iter().map(|c| c.name.as_str());
        match self.style.format {
            Format::Json => out.write_all(b"["),
            Format::Csv if self.style.header => line(out, ",", names().map(|n| csv(Some(n)))),
            Format::Tsv if self.style.header => line(out, "\t", names().map(tsv)),
            Format::Markdown => {
                // A Markdown table is none without its header.
                let names: Vec<Cow<'_, str>> = if self.style.header {
                    names().map(markdown).collect()
                } else {
                    vec![Cow::Borrowed(""); self.columns.len()]
                };
                markdown_line(out, &names)?;
                let rules = self.columns.iter().map(|c| if is_number(c.ty) { "---:" } else { "---" });
                markdown_line(out, &rules.map(Cow::Borrowed).collect::<Vec<_>>())
            }
            _ => Ok(()),
        }
    }

    fn row(&mut self, row: &[Value], out: &mut dyn Write) -> io::Result<()> {
        self.rows += 1;
        let cells = || row.iter().zip(&self.columns);
        match (self.style.format, &self.layout) {
            (Format::Table | Format::Vertical, Some(layout)) => layout.row(&self.columns, row, self.rows, out),
            (Format::Table | Format::Vertical, None) => Ok(()),
            (Format::Csv, _) => {
                let texts: Vec<Option<String>> = cells().map(|(v, c)| (!v.is_null()).then(|| v.text(c.ty))).collect();
                line(out, ",", texts.iter().map(|t| csv(t.as_deref())))
            }
            (Format::Tsv, _) => {
                let texts: Vec<Option<String>> = cells().map(|(v, c)| (!v.is_null()).then(|| v.text(c.ty))).collect();
                line(out, "\t", texts.iter().map(|t| t.as_deref().map_or(Cow::Borrowed("\\N"), tsv)))
            }
            (Format::Json, _) => {
                out.write_all(if self.rows == 1 { b"\n  " } else { b",\n  " })?;
                json::object(&self.keys, &self.columns, row, out)
            }
            (Format::Jsonl, _) => {
                json::object(&self.keys, &self.columns, row, out)?;
                out.write_all(b"\n")
            }
            (Format::Markdown, _) => {
                let texts: Vec<String> = cells().map(|(v, c)| v.text(c.ty)).collect();
                markdown_line(out, &texts.iter().map(|t| markdown(t)).collect::<Vec<_>>())
            }
        }
    }
}

/// Whether values of the type stand on the right.
fn is_number(ty: SqlType) -> bool {
    matches!(
        ty,
        SqlType::SmallInt | SqlType::Int | SqlType::BigInt | SqlType::Real | SqlType::Double | SqlType::Decimal { .. }
    )
}

fn approximate_bytes(value: &Value) -> usize {
    const FIXED: usize = 16;
    FIXED
        + match value {
            Value::Text(t) | Value::Json(t) => t.len(),
            Value::Bytes(b) => b.len() * 2,
            _ => 0,
        }
}

/// Cells with a separator between them and a line feed behind them.
fn line<'a>(out: &mut dyn Write, separator: &str, cells: impl Iterator<Item = Cow<'a, str>>) -> io::Result<()> {
    for (at, cell) in cells.enumerate() {
        if at > 0 {
            out.write_all(separator.as_bytes())?;
        }
        out.write_all(cell.as_bytes())?;
    }
    out.write_all(b"\n")
}

/// RFC 4180; an empty string is quoted, so that it differs from NULL.
fn csv(text: Option<&str>) -> Cow<'_, str> {
    match text {
        None => Cow::Borrowed(""),
        Some(t) if t.is_empty() || t.contains(['"', ',', '\n', '\r']) || t.starts_with(' ') || t.ends_with(' ') => {
            Cow::Owned(format!("\"{}\"", t.replace('"', "\"\"")))
        }
        Some(t) => Cow::Borrowed(t),
    }
}

/// The escapes of PostgreSQL's COPY, so that `\N` is NULL and nothing else.
fn tsv(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '\t', '\n', '\r']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r"))
}

fn markdown(text: &str) -> Cow<'_, str> {
    if !text.contains(['|', '\n', '\r', '\\']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('\\', "\\\\").replace('|', "\\|").replace("\r\n", "<br>").replace(['\n', '\r'], "<br>"))
}

fn markdown_line(out: &mut dyn Write, cells: &[Cow<'_, str>]) -> io::Result<()> {
    writeln!(out, "| {} |", cells.join(" | "))
}

/// Breaks a text into lines of a width, at blanks where there are some; at least one line.
pub fn wrap(text: &str, room: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.width() + 1 + word.width() > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            // A word longer than a line goes on in the next.
            if !line.is_empty() && line.width() + c.width().unwrap_or(0) > room {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}
