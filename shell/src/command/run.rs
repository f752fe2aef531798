//! What the shell's own commands do.

use std::io;
use std::path::Path;
use std::process::Command as Process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::Token;
use quorate_shared::limits::PORT_DEFAULT;
use quorate_shared::url::{Address, Url, UrlError};
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::{Column, SchemaInfo, TableInfo};

use super::{Command, Expanded};
use crate::args::{Format, is_url};
use crate::output::Output;
use crate::render::error::Paint;
use crate::render::status::status_table;
use crate::script;
use crate::script::split::Statement;
use crate::session::{Failure, Ran, Session, terminal_width};

/// What the front end is to do after a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Leave.
    Quit,
    /// Let the user edit this text, then go on with it.
    Edit(String),
    /// Show this many entries of the history.
    History(Option<usize>),
}

/// Runs a command. `last` is the statement that `\g`, `\watch`, `\p` and `\e` mean; `depth` counts nested `\i`.
pub async fn run(
    session: &mut Session,
    command: Command,
    last: &mut Option<Statement>,
    depth: usize,
) -> Result<Flow, Failure> {
    match command {
        Command::Help => {
            let interactive = session.output.is_terminal();
            let room = terminal_width().filter(|_| interactive).unwrap_or(usize::MAX);
            text(session, &super::help(interactive, room))?;
        }
        Command::Quit => return Ok(Flow::Quit),
        Command::Connect(words) => connect(session, &words).await?,
        Command::ConnectionInfo => {
            let line = connection_info(session);
            text(session, &line)?;
        }
        Command::Status => status(session).await?,
        Command::Databases | Command::Describe(None) | Command::Tables | Command::Views | Command::Functions => {
            let schema = session.client().schema().await?;
            let (columns, rows) = list(&command, &schema, session.database());
            session.write_rows(&columns, rows).map_err(Failure::Output)?;
        }
        Command::Describe(Some(name)) => describe(session, &name).await?,
        Command::Indexes(table) => indexes(session, table.as_deref()).await?,
        Command::Expanded(to) => expanded(session, to),
        Command::Timing(to) => {
            session.display.timing = to.unwrap_or(!session.display.timing);
            session.display.say(&format!("timing is {}", if session.display.timing { "on" } else { "off" }));
        }
        Command::Token => match session.token.as_slice() {
            [] => {
                return Err(Failure::Statement(WireError::new(
                    Code::Invalid,
                    "nothing has been written in this session",
                )));
            }
            tokens => {
                let text = |t: &Token| format!("{}:{}:{}", t.shard, t.epoch, t.index);
                let line = tokens.iter().map(text).collect::<Vec<_>>().join(" ");
                session.write_text(&format!("{line}\n")).map_err(Failure::Output)?;
            }
        },
        Command::Format(Some(format)) => session.display.format = Some(format),
        Command::Format(None) => {
            let line = format!("format is {}", session.style().format.name());
            session.display.say(&line);
        }
        Command::Watch { every, times } => watch(session, last.as_ref(), every, times).await?,
        Command::Include(path) => Box::pin(script::include(session, &path, depth)).await?,
        Command::Output(path) => session.output = path.as_deref().map_or_else(|| Ok(Output::stdout()), open)?,
        Command::Edit(path) => return edit(path.as_deref(), last.as_ref()),
        Command::Set(Some((name, value))) => {
            silent(session, &format!("SET {} = {}", quoted(&name), literal(&value))).await?
        }
        Command::Set(None) => {
            let rows = session.client().settings().iter();
            let rows = rows.map(|(n, v)| vec![Value::Text(n.clone()), Value::Text(v.clone())]).collect();
            session.write_rows(&texts(&["setting", "value"]), rows).map_err(Failure::Output)?;
        }
        Command::Unset(name) => silent(session, &format!("SET {} = DEFAULT", quoted(&name))).await?,
        Command::Go { expanded, file } => {
            go(session, last.as_ref(), expanded, file.as_deref()).await?;
        }
        Command::Print => {
            let line = format!("{};\n", last_text(last.as_ref())?);
            text(session, &line)?;
        }
        Command::Reset => *last = None,
        Command::History(count) => return Ok(Flow::History(count)),
        Command::Echo(line) => text(session, &format!("{line}\n"))?,
        Command::Admin { action, dry_run } => crate::admin::in_session(session, action, dry_run).await?,
        Command::System(line) => match Process::new("sh").arg("-c").arg(&line).status() {
            Ok(status) if status.success() => {}
            Ok(status) => session.display.say(&format!("the command ended with {status}")),
            Err(e) => return Err(refused(format!("cannot run sh: {e}"))),
        },
    }
    Ok(Flow::Continue)
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::Statement(WireError::new(Code::Invalid, why))
}

fn text(session: &mut Session, text: &str) -> Result<(), Failure> {
    session.write_text(text).map_err(Failure::Output)
}

fn open(path: &Path) -> Result<Output, Failure> {
    Output::file(path).map_err(|e| refused(format!("cannot write {}: {e}", path.display())))
}

fn last_text(last: Option<&Statement>) -> Result<&str, Failure> {
    last.map(|s| s.text.as_str()).ok_or_else(|| refused("there is no statement yet"))
}

/// Runs a statement of the shell's own making, without a word about it.
async fn silent(session: &mut Session, sql: &str) -> Result<(), Failure> {
    let narrate = std::mem::replace(&mut session.display.narrate, false);
    let style = session.style();
    let result = session.execute(sql, style).await;
    session.display.narrate = narrate;
    // A position would point into text that the user has not written.
    result.map(|_| ()).map_err(without_position)
}

fn without_position(failure: Failure) -> Failure {
    match failure {
        Failure::Statement(error) => Failure::Statement(WireError { position: None, ..error }),
        other => other,
    }
}

async fn status(session: &mut Session) -> Result<(), Failure> {
    let status = session.client().status().await?;
    let paint = if session.output.is_terminal() { session.display.paint } else { Paint::default() };
    text(session, &status_table(&status, paint))
}

async fn indexes(session: &mut Session, table: Option<&str>) -> Result<(), Failure> {
    let sql = table.map_or_else(|| "SHOW INDEXES".to_owned(), |t| format!("SHOW INDEXES FROM {}", quoted_path(t)));
    let style = session.style();
    session.execute(&sql, style).await.map(|_| ()).map_err(without_position)
}

fn expanded(session: &mut Session, to: Option<Expanded>) {
    let now = session.display.expanded;
    session.display.expanded = to.unwrap_or(if now == Expanded::On { Expanded::Off } else { Expanded::On });
    let word = match session.display.expanded {
        Expanded::On => "on",
        Expanded::Off => "off",
        Expanded::Auto => "auto: when a table is wider than the terminal",
    };
    session.display.say(&format!("expanded display is {word}"));
}

/// Runs the last statement with another look or into a file.
async fn go(
    session: &mut Session,
    last: Option<&Statement>,
    expanded: bool,
    file: Option<&Path>,
) -> Result<Ran, Failure> {
    let sql = last_text(last)?.to_owned();
    let target = file.map(open).transpose()?;
    let before = target.map(|t| std::mem::replace(&mut session.output, t));
    let mut style = session.style();
    if expanded {
        style.format = Format::Vertical;
    }
    let result = session.execute(&sql, style).await;
    if let Some(before) = before {
        session.output = before;
    }
    result
}

/// Runs the last statement until interrupted.
async fn watch(
    session: &mut Session,
    last: Option<&Statement>,
    every: Duration,
    times: Option<u64>,
) -> Result<(), Failure> {
    let sql = last_text(last)?.to_owned();
    let mut round = 0;
    while times.is_none_or(|t| round < t) && !session.output.is_gone() {
        if round > 0 {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = session.interrupted() => break,
            }
        }
        round += 1;
        session.display.say(&format!("run {round}, every {:.1} s, {}", every.as_secs_f64(), now()));
        let style = session.style();
        match session.execute(&sql, style).await {
            Ok(_) => {}
            Err(Failure::Interrupted(_)) => break,
            // A cluster that is being repaired is what one watches: only what cannot get better ends it.
            Err(Failure::Statement(e))
                if matches!(e.code, Code::Retry | Code::Busy | Code::Behind | Code::Redirect) =>
            {
                session.display.say(&format!("error: {}", e.message));
            }
            Err(Failure::NoConnection(why)) => session.display.say(&format!("error: {why}")),
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// The time of day, UTC.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since.as_secs()).unwrap_or(0).saturating_mul(1_000_000);
    format!("{} UTC", Value::Timestamp(micros))
}

/// `\c`: a database, a URL, or `DATABASE USER HOST PORT`.
async fn connect(session: &mut Session, words: &[String]) -> Result<(), Failure> {
    match words {
        [] => {}
        [database] if !is_url(database) => silent(session, &format!("USE {}", quoted(database))).await?,
        _ => reconnect(session, words).await?,
    }
    if session.display.narrate {
        let line = connection_info(session);
        session.display.say(line.trim_end());
    }
    Ok(())
}

async fn reconnect(session: &mut Session, words: &[String]) -> Result<(), Failure> {
    let mut options = session.options().clone();
    if let [url] = words {
        let url: Url = url.parse().map_err(|e: UrlError| refused(e.to_string()))?;
        options.hosts = url.hosts;
        options.database = url.database;
        options.settings = url.settings;
        options.user = url.user.unwrap_or(options.user);
    } else {
        if words.len() > 4 {
            return Err(refused("\\c takes DATABASE USER HOST PORT, no more"));
        }
        let word = |at: usize| words.get(at).map(String::as_str).filter(|w| *w != "-");
        options.database = Some(word(0).unwrap_or(session.database()).to_owned());
        if let Some(user) = word(1) {
            user.clone_into(&mut options.user);
        }
        let port = match word(3) {
            Some(port) => Some(port.parse::<u16>().map_err(|_| refused(format!("'{port}' is not a port")))?),
            None => None,
        };
        if let Some(host) = word(2) {
            let address = Address::parse(host, port.unwrap_or(PORT_DEFAULT)).map_err(|e| refused(e.to_string()))?;
            options.hosts = vec![address];
        } else if let Some(port) = port {
            options.hosts.iter_mut().for_each(|h| h.port = port);
        }
    }
    Ok(session.reconnect(options).await?)
}

/// Who is where, as a sentence.
pub fn connection_info(session: &mut Session) -> String {
    let role = session.role();
    let address = session.address();
    let user = session.options().user.clone();
    let database = session.database().to_owned();
    let Some(welcome) = session.client().welcome() else { return "not connected\n".to_owned() };
    let master =
        welcome.master.as_ref().map_or_else(|| "unknown".to_owned(), |m| format!("{} ({})", m.node, m.address));
    let cluster = welcome.cluster.map_or_else(|| "not founded".to_owned(), |c| c.to_string());
    format!(
        "database {database} as {user} at {} ({address}, {role}, version {}); master {master}; cluster {cluster}\n",
        welcome.node, welcome.version
    )
}

fn texts(names: &[&str]) -> Vec<Column> {
    names.iter().map(|n| Column { name: (*n).to_owned(), ty: SqlType::Text }).collect()
}

/// `\l`, `\d`, `\dt`, `\dv`, `\df` from what completion knows.
fn list(command: &Command, schema: &SchemaInfo, database: &str) -> (Vec<Column>, Vec<Vec<Value>>) {
    let value = |t: &str| Value::Text(t.to_owned());
    let count = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let here = schema.databases.iter().find(|d| d.name.eq_ignore_ascii_case(database));
    let tables = here.map(|d| d.tables.as_slice()).unwrap_or_default();
    let row =
        |t: &TableInfo| vec![value(&t.name), value(&t.kind), count(t.columns.len()), value(&t.primary_key.join(", "))];
    let mut columns = texts(&["name", "kind", "columns", "primary_key"]);
    columns[2].ty = SqlType::BigInt;
    match command {
        Command::Databases => {
            let mut columns = texts(&["database", "tables", "current"]);
            columns[1].ty = SqlType::BigInt;
            columns[2].ty = SqlType::Bool;
            let rows = schema.databases.iter().map(|d| {
                vec![value(&d.name), count(d.tables.len()), Value::Bool(d.name.eq_ignore_ascii_case(database))]
            });
            (columns, rows.collect())
        }
        Command::Functions => (texts(&["function"]), schema.functions.iter().map(|f| vec![value(f)]).collect()),
        Command::Tables => (columns, tables.iter().filter(|t| t.kind != "view").map(row).collect()),
        Command::Views => (columns, tables.iter().filter(|t| t.kind == "view").map(row).collect()),
        _ => (columns, tables.iter().map(row).collect()),
    }
}

/// `\d NAME`: columns, then indexes, then keys to and from other tables.
async fn describe(session: &mut Session, name: &str) -> Result<(), Failure> {
    let narrate = std::mem::replace(&mut session.display.narrate, false);
    let style = session.style();
    let result = session.execute(&format!("DESCRIBE {}", quoted_path(name)), style).await;
    session.display.narrate = narrate;
    result.map_err(without_position)?;
    match session.collect(&format!("SHOW INDEXES FROM {}", quoted_path(name))).await {
        Ok((columns, rows)) if !rows.is_empty() => {
            text(session, "\n")?;
            session.write_rows(&columns, rows).map_err(Failure::Output)?;
        }
        // A view has none.
        Ok(_) | Err(Failure::Statement(_)) => {}
        Err(other) => return Err(other),
    }
    let schema = session.client().schema().await?;
    let (database, table) = match name.split_once('.') {
        Some((database, table)) => (database.to_owned(), table),
        None => (session.database().to_owned(), name),
    };
    let lines = keys_of(&schema, &database, table);
    if lines.is_empty() { Ok(()) } else { text(session, &format!("\n{lines}")) }
}

/// Foreign keys from and to a table, one per line.
fn keys_of(schema: &SchemaInfo, database: &str, table: &str) -> String {
    let mut lines = String::new();
    let tables = schema.databases.iter().filter(|d| d.name.eq_ignore_ascii_case(database)).flat_map(|d| &d.tables);
    for other in tables {
        for (columns, target, target_columns) in &other.foreign_keys {
            let (columns, target_columns) = (columns.join(", "), target_columns.join(", "));
            if other.name.eq_ignore_ascii_case(table) {
                lines.push_str(&format!("foreign key ({columns}) references {target} ({target_columns})\n"));
            } else if target.eq_ignore_ascii_case(table) {
                lines.push_str(&format!("referenced by {} ({columns})\n", other.name));
            }
        }
    }
    lines
}

/// Words that are no names without quotes: PostgreSQL's reserved ones.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "similar",
    "some",
    "symmetric",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

/// A name as SQL takes it, whatever it is made of.
pub fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let keyword = RESERVED.iter().any(|word| name.eq_ignore_ascii_case(word));
    if plain && !keyword && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quoted_path(name: &str) -> String {
    name.split('.').map(quoted).collect::<Vec<_>>().join(".")
}

/// A value of a setting: a number stands alone, all else is a string.
fn literal(value: &str) -> String {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "''"))
}

/// Opens the editor on a file, or on the last statement in a file of its own.
fn edit(path: Option<&Path>, last: Option<&Statement>) -> Result<Flow, Failure> {
    let failed = |what: &str, e: &io::Error| refused(format!("cannot {what}: {e}"));
    let scratch;
    let path = match path {
        Some(path) => path,
        None => {
            let made = tempfile::Builder::new().prefix("quorate-").suffix(".sql").tempfile();
            scratch = made.map_err(|e| failed("make a file to edit", &e))?;
            let text = last.map(|s| format!("{};\n", s.text)).unwrap_or_default();
            std::fs::write(scratch.path(), text).map_err(|e| failed("write the file to edit", &e))?;
            scratch.path()
        }
    };
    let names = ["QUORATE_EDITOR", "VISUAL", "EDITOR"];
    let editor = names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // Through a shell, because the variables hold command lines.
    match Process::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(path).status() {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(refused(format!("the editor {editor} ended with {status}"))),
        Err(e) => return Err(failed("start the editor", &e)),
    }
    let text = std::fs::read_to_string(path).map_err(|e| failed("read the edited file", &e))?;
    Ok(Flow::Edit(text.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_quoted_where_needed() {
        assert_eq!(quoted("chinook"), "chinook");
        assert_eq!(quoted("My Db"), "\"My Db\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(quoted("select"), "\"select\"");
        assert_eq!(quoted("1a"), "\"1a\"");
        assert_eq!(quoted_path("shop.order"), "shop.\"order\"");
        assert_eq!(literal("5"), "5");
        assert_eq!(literal("it's"), "'it''s'");
    }
}
