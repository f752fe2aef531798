//! An error for a person: where it is, the line with a caret, why, what to do.
//!
//! ```text
//! dump.sql:12:8: error: column "emial" does not exist [42703]
//!   12 | select emial from users
//!      |        ^
//! hint: did you mean "email"?
//! ```
//!
//! A line may be megabytes long (dumps): only the part around the place is shown. Nothing of the text is obeyed by the
//! terminal.

use std::fmt::Write as _;

use quorate_shared::error::{Code, WireError};
use unicode_width::UnicodeWidthStr;

use sqlparser::tokenizer::Token;

use super::aligned::printable;
use crate::args::nearest;
use crate::repl::highlight::tokens;
use crate::script::split::{Place, Statement};

/// Characters of a line shown before and behind the place.
const CONTEXT_CHARS: usize = 60;

/// Where a statement came from, for messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// A file's path, `-e`, `<stdin>`.
    pub name: String,
}

impl Source {
    /// A source of that name.
    pub fn new(name: impl Into<String>) -> Source {
        Source { name: name.into() }
    }
}

/// Colours of a message, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paint {
    /// Whether to colour at all.
    pub color: bool,
}

impl Paint {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// What went wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// What should be looked at.
    pub fn warn(self, text: &str) -> String {
        self.wrap("1;33", text)
    }

    /// What may help.
    pub fn help(self, text: &str) -> String {
        self.wrap("1;36", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// A failed statement. `source` is left out where the text was just typed.
pub fn statement_error(source: Option<&Source>, statement: &Statement, error: &WireError, paint: Paint) -> String {
    let chars = error.position.map(|p| p as usize).or_else(|| named(statement, error));
    let place = statement.place.after(&statement.text, chars.unwrap_or(0));
    let mut out = String::new();
    if let Some(source) = source {
        let _ = write!(out, "{}:{}:{}: ", source.name, place.line, place.column);
    }
    let label = if error.code == Code::Unknown { "outcome unknown" } else { "error" };
    let _ = write!(out, "{} {}", paint.bad(&format!("{label}:")), printable(&error.message));
    if let Some(state) = &error.sqlstate {
        let _ = write!(out, " {}", paint.dim(&format!("[{state}]")));
    }
    out.push('\n');
    // A typed statement of one line stands right above the message; so show lines only where a place is known.
    if chars.is_some() || source.is_some() {
        excerpt(&mut out, statement, place, chars.is_some(), paint);
    }
    remarks(&mut out, error, paint);
    if error.hint.is_none()
        && let Some(word) = misspelt(statement, error)
    {
        let _ = writeln!(out, "{} did you mean {word}?", paint.help("hint:"));
    }
    out
}

/// An error that belongs to no statement.
pub fn plain_error(error: &WireError, paint: Paint) -> String {
    let mut out = format!("{} {}\n", paint.bad("error:"), printable(&error.message));
    remarks(&mut out, error, paint);
    out
}

/// An error at a place of a source whose text is not at hand.
pub fn place_error(source: &Source, place: Place, message: &str, paint: Paint) -> String {
    format!("{}:{}:{}: {} {}\n", source.name, place.line, place.column, paint.bad("error:"), printable(message))
}

fn remarks(out: &mut String, error: &WireError, paint: Paint) {
    if let Some(detail) = &error.detail {
        let _ = writeln!(out, "{} {}", paint.dim("detail:"), printable(detail));
    }
    if let Some(hint) = &error.hint {
        let _ = writeln!(out, "{} {}", paint.help("hint:"), printable(hint));
    }
    if let Some(address) = &error.redirect
        && !error.hint.as_ref().is_some_and(|h| h.contains(address.as_str()))
    {
        let _ = writeln!(out, "{} ask {}", paint.help("hint:"), printable(address));
    }
}

/// The line of the place, with a caret under it if the place is exact.
fn excerpt(out: &mut String, statement: &Statement, place: Place, caret: bool, paint: Paint) {
    let first = usize::try_from(place.line - statement.place.line).unwrap_or(0);
    let Some(line) = statement.text.split('\n').nth(first) else { return };
    // The statement's own first line may begin in the middle of the source's.
    let before = if first == 0 { statement.place.column } else { 1 };
    let at = usize::try_from(place.column.saturating_sub(before)).unwrap_or(0);
    let from = at.saturating_sub(CONTEXT_CHARS);
    let window: String = line.trim_end_matches('\r').chars().skip(from).take(2 * CONTEXT_CHARS).collect();
    let cut = line.chars().nth(from + 2 * CONTEXT_CHARS).is_some();
    let (left, right) = (if from > 0 { "…" } else { "" }, if cut { "…" } else { "" });
    let shown = window.replace('\t', " ");
    let number = place.line.to_string();
    let bar = paint.dim("|");
    let _ = writeln!(out, "{number:>4} {bar} {left}{}{right}", printable(&shown));
    if caret {
        let head: String = shown.chars().take(at - from).collect();
        let space = left.width() + printable(&head).width();
        let _ = writeln!(out, "{:width$} {bar} {:space$}{}", "", "", paint.bad("^"), width = number.len().max(4));
    }
}

/// Texts longer than this are not searched for the name an error is about.
const SEARCH_BYTES_MAX: usize = 256 << 10;

/// For an error about a name that came without a position: where (in characters) the statement has the name first.
fn named(statement: &Statement, error: &WireError) -> Option<usize> {
    const ABOUT_NAMES: [&str; 6] = ["42703", "42P01", "42704", "3D000", "42883", "42702"];
    if !ABOUT_NAMES.contains(&error.sqlstate.as_deref()?) || statement.text.len() > SEARCH_BYTES_MAX {
        return None;
    }
    let name = error.message.split('"').nth(1)?;
    let name = name.rsplit('.').next().filter(|n| !n.is_empty())?;
    let (tokens, _) = tokens(&statement.text);
    let (_, from, _) = tokens.iter().find(|(token, ..)| match token {
        Token::Word(word) => word.value.eq_ignore_ascii_case(name),
        _ => false,
    })?;
    Some(statement.text.get(..*from)?.chars().count())
}

/// For a syntax error at the first word of a statement: the word that may have been meant.
fn misspelt(statement: &Statement, error: &WireError) -> Option<&'static str> {
    if error.sqlstate.as_deref() != Some("42601") || error.position.is_some_and(|p| p > 0) {
        return None;
    }
    let end = statement.text.find(|c: char| !c.is_alphanumeric()).unwrap_or(statement.text.len());
    let word = &statement.text[..end];
    let near = nearest(word, FIRST_WORDS)?;
    (!near.eq_ignore_ascii_case(word)).then_some(near)
}

/// Words that statements begin with.
pub const FIRST_WORDS: [&str; 18] = [
    "SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "TRUNCATE", "SHOW", "DESCRIBE", "EXPLAIN",
    "USE", "SET", "WITH", "VALUES", "TABLE", "BEGIN", "COMMIT",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(text: &str, line: u64, column: u64) -> Statement {
        Statement { text: text.to_owned(), place: Place { line, column, offset: 0 } }
    }

    #[test]
    fn an_error_shows_its_place() {
        let error = WireError::sql("42703", "column \"emial\" does not exist").at(7).hint("did you mean \"email\"?");
        let file = Source::new("x.sql");
        let shown =
            statement_error(Some(&file), &statement("select emial\nfrom users", 12, 3), &error, Paint::default());
        insta::assert_snapshot!(shown, @r#"
        x.sql:12:10: error: column "emial" does not exist [42703]
          12 | select emial
             |        ^
        hint: did you mean "email"?
        "#);
        let error = WireError::sql("42P01", "table \"usres\" does not exist").at(20).detail("in database main");
        let shown = statement_error(None, &statement("select \t größe\nfrom usres", 1, 1), &error, Paint::default());
        insta::assert_snapshot!(shown, @r#"
        error: table "usres" does not exist [42P01]
           2 | from usres
             |      ^
        detail: in database main
        "#);
    }

    #[test]
    fn a_name_without_a_position_is_searched_for() {
        let error = WireError::sql("42703", "column \"titel\" does not exist").hint("did you mean \"title\"?");
        let shown = statement_error(
            Some(&Source::new("-e")),
            &statement("select 'titel', a.Titel", 1, 1),
            &error,
            Paint::default(),
        );
        insta::assert_snapshot!(shown, @r#"
        -e:1:19: error: column "titel" does not exist [42703]
           1 | select 'titel', a.Titel
             |                   ^
        hint: did you mean "title"?
        "#);
    }

    #[test]
    fn without_a_position_the_statement_s_line_is_shown() {
        let error = WireError::sql("42601", "syntax error");
        let shown = statement_error(Some(&Source::new("x.sql")), &statement("selec 2", 2, 1), &error, Paint::default());
        insta::assert_snapshot!(shown, @"
        x.sql:2:1: error: syntax error [42601]
           2 | selec 2
        hint: did you mean SELECT?
        ");
    }

    #[test]
    fn long_lines_are_shown_in_part_and_escapes_are_not_obeyed() {
        let text = format!("insert into t values ({}, '\x1b[31m', oops, {})", "1, ".repeat(500), "2, ".repeat(500));
        let position = u32::try_from(text.find("oops").expect("there")).expect("small");
        let error = WireError::sql("42703", "column \"oops\" does not exist").at(position);
        let shown = statement_error(None, &statement(&text, 1, 1), &error, Paint::default());
        insta::assert_snapshot!(shown, @r#"
        error: column "oops" does not exist [42703]
           1 | … 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, , '\u{1b}[31m', oops, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, …
             |                                                                   ^
        "#);
    }

    #[test]
    fn wide_characters_keep_the_caret_in_place() {
        let error = WireError::sql("42703", "no").at(10);
        let shown = statement_error(None, &statement("select '漢字', x", 1, 1), &error, Paint::default());
        insta::assert_snapshot!(shown, @"
        error: no [42703]
           1 | select '漢字', x
             |             ^
        ");
    }
}
