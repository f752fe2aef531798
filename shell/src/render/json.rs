//! Rows as JSON objects.
//!
//! Integers, floats and booleans are JSON's own; a DECIMAL is a string with its exact digits, bytes are `\x...`, JSON
//! values stand as they are (without white space between their tokens), NaN and infinities are strings because JSON has
//! no numbers for them. Column names that occur twice get a number, so that no value is lost.

use std::collections::BTreeSet;
use std::io::{self, Write};

use quorate_shared::value::{Value, json_error};
use quorate_shared::wire::Column;

/// A key for every column, each different.
pub(crate) fn keys(columns: &[Column]) -> Vec<String> {
    let mut taken: BTreeSet<String> = columns.iter().map(|c| c.name.clone()).collect();
    let mut seen = BTreeSet::new();
    columns
        .iter()
        .map(|column| {
            if seen.insert(column.name.clone()) {
                return column.name.clone();
            }
            let mut number = 2_usize;
            loop {
                let name = format!("{}_{number}", column.name);
                if taken.insert(name.clone()) {
                    return name;
                }
                number += 1;
            }
        })
        .collect()
}

/// One row as an object on one line.
pub(crate) fn object(keys: &[String], columns: &[Column], row: &[Value], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{")?;
    for (at, ((key, column), value)) in keys.iter().zip(columns).zip(row).enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        string(key, out)?;
        out.write_all(b":")?;
        match value {
            Value::Null => out.write_all(b"null")?,
            Value::Bool(_) | Value::Int(_) => write!(out, "{value}")?,
            Value::Float(f) if f.is_finite() => out.write_all(value.text(column.ty).as_bytes())?,
            Value::Json(text) if json_error(text).is_none() => compact(text, out)?,
            _ => string(&value.text(column.ty), out)?,
        }
    }
    out.write_all(b"}")
}

fn string(text: &str, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::from)
}

/// Valid JSON without the white space between its tokens: digits stay as they were.
fn compact(text: &str, out: &mut dyn Write) -> io::Result<()> {
    let (mut quoted, mut escaped) = (false, false);
    for part in text.split_inclusive(|c: char| {
        let keep = quoted || !matches!(c, ' ' | '\t' | '\n' | '\r');
        (quoted, escaped) = match c {
            '"' if !escaped => (!quoted, false),
            '\\' if quoted => (true, !escaped),
            _ => (quoted, false),
        };
        !keep
    }) {
        // White space, where it may go, is the last character of a part.
        let trimmed = part.strip_suffix([' ', '\t', '\n', '\r']);
        out.write_all(trimmed.unwrap_or(part).as_bytes())?;
    }
    Ok(())
}
