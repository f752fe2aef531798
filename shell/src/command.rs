//! The shell's own commands, the lines that begin with a backslash.
//!
//! One table, [`COMMANDS`], drives parsing, `\?`, completion and "did you mean": what is not in it does not exist.
//! Parsing is pure; what a command does is in [`run`].

pub mod run;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use quorate_shared::admin::AdminAction;
use quorate_shared::ids::NodeId;

use crate::args::{self, Format};
use crate::render::wrap;

/// A command, understood.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// `\?`
    Help,
    /// `\q`
    Quit,
    /// `\c`: nothing (show), a database, a URL, or `DATABASE USER HOST PORT` with `-` for "as it is".
    Connect(Vec<String>),
    /// `\conninfo`
    ConnectionInfo,
    /// `\l`
    Databases,
    /// `\d`: everything, or one table.
    Describe(Option<String>),
    /// `\dt`
    Tables,
    /// `\di [TABLE]`
    Indexes(Option<String>),
    /// `\dv`
    Views,
    /// `\df`
    Functions,
    /// `\x [on|off|auto]`
    Expanded(Option<Expanded>),
    /// `\timing [on|off]`
    Timing(Option<bool>),
    /// `\format [NAME]`
    Format(Option<Format>),
    /// `\watch [SECONDS] [COUNT]`
    Watch {
        /// Time between two runs.
        every: Duration,
        /// How often; until interrupted if not given.
        times: Option<u64>,
    },
    /// `\i FILE`
    Include(PathBuf),
    /// `\o [FILE]`
    Output(Option<PathBuf>),
    /// `\e [FILE]`
    Edit(Option<PathBuf>),
    /// `\token`
    Token,
    /// `\set [NAME VALUE]`
    Set(Option<(String, String)>),
    /// `\unset NAME`
    Unset(String),
    /// `\status`
    Status,
    /// `\g [FILE]`, `\gx [FILE]`, `\G`
    Go {
        /// Standing up, whatever the format.
        expanded: bool,
        /// Where the result goes.
        file: Option<PathBuf>,
    },
    /// `\p`
    Print,
    /// `\r`
    Reset,
    /// `\s [COUNT]`
    History(Option<usize>),
    /// `\echo TEXT`
    Echo(String),
    /// `\! COMMAND`
    System(String),
    /// `\switchover`, `\add-voter`, …: change the cluster.
    Admin {
        /// What is to be done.
        action: AdminAction,
        /// Only show the plan.
        dry_run: bool,
    },
}

/// When a table stands up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Expanded {
    /// Never.
    Off,
    /// Always.
    On,
    /// When it is wider than the terminal.
    #[default]
    Auto,
}

/// What completes the argument of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Complete {
    /// Nothing.
    None,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A database.
    Database,
    /// A table or view.
    Table,
    /// A file.
    File,
}

/// A row of the table of commands.
pub struct Spec {
    /// The name, without its backslash.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// Its arguments, as `\?` shows them.
    pub arguments: &'static str,
    /// What it does, as `\?` shows it.
    pub help: &'static str,
    /// What completes its argument.
    pub complete: Complete,
    /// It makes sense on a terminal only.
    pub interactive: bool,
    read: fn(&Line<'_>) -> Result<Command, String>,
}

const FORMATS: &[&str] = &["table", "vertical", "csv", "tsv", "json", "jsonl", "markdown"];
const ON_OFF: &[&str] = &["on", "off"];
/// Session settings that `\set` completes.
pub const SETTINGS: &[&str] = &[
    "application_name",
    "database",
    "read_level",
    "read_only",
    "statement_timeout",
    "timezone",
    "wait_for_replicas",
    "wait_timeout",
];

macro_rules! commands {
    ($($name:literal $($alias:literal)* , $arguments:literal, $help:literal, $complete:expr, $interactive:literal, $read:expr;)*) => {
        /// Every command there is, in the order of `\?`.
        pub const COMMANDS: &[Spec] = &[$(Spec {
            name: $name, aliases: &[$($alias),*], arguments: $arguments, help: $help, complete: $complete,
            interactive: $interactive, read: $read,
        }),*];
    };
}

commands! {
    "?" "h" "help", "", "list these commands", Complete::None, false, |_| Ok(Command::Help);
    "q" "quit" "exit", "", "leave", Complete::None, false, |_| Ok(Command::Quit);
    "c" "connect", "[DATABASE | URL]", "go to another database or cluster (also DATABASE USER HOST PORT, - keeps one)",
        Complete::Database, false, |l| Ok(Command::Connect(l.words()?));
    "conninfo", "", "show the connection", Complete::None, false, |_| Ok(Command::ConnectionInfo);
    "status", "", "show how the cluster is", Complete::None, false, |_| Ok(Command::Status);
    "switchover", "[NODE] [dry-run]", "hand the leadership of every shard to another voter", Complete::None, false,
        |l| l.action(|node, _| Ok(AdminAction::Switchover { to: node }));
    "add-voter", "NODE [dry-run]", "make a log-shipped replica a voter", Complete::None, false,
        |l| l.action(|node, _| Ok(AdminAction::AddVoter { node: which(node)? }));
    "demote", "NODE [dry-run]", "make a voter a log-shipped replica", Complete::None, false,
        |l| l.action(|node, _| Ok(AdminAction::DemoteVoter { node: which(node)? }));
    "remove", "NODE [dry-run]", "take a node, also a dead one, out of the cluster", Complete::None, false,
        |l| l.action(|node, _| Ok(AdminAction::RemoveNode { node: which(node)? }));
    "promote", "[accept-loss] [dry-run]", "make this node the first voter of a new epoch", Complete::None, false,
        |l| l.action(|node, accept_loss| match node {
            None => Ok(AdminAction::Promote { accept_loss }),
            Some(_) => Err("it promotes the node of this session; connect to the one that is meant".to_owned()),
        });
    "verify", "[dry-run]", "recompute the hash chains on every node and compare them", Complete::None, false,
        |l| l.action(|node, _| alone(node, AdminAction::Verify { anchor: None }));
    "scrub", "[dry-run]", "compare the rows of all replicas; those that differ are rebuilt", Complete::None, false,
        |l| l.action(|node, _| alone(node, AdminAction::Scrub));
    "anchor", "[dry-run]", "have the nodes sign where their hash chains stand", Complete::None, false,
        |l| l.action(|node, _| alone(node, AdminAction::Anchor));
    "l" "list", "", "list databases", Complete::None, false, |_| Ok(Command::Databases);
    "d", "[NAME]", "list tables and views, or describe one", Complete::Table, false, |l| Ok(Command::Describe(l.one()?));
    "dt", "", "list tables", Complete::None, false, |_| Ok(Command::Tables);
    "di", "[TABLE]", "list indexes", Complete::Table, false, |l| Ok(Command::Indexes(l.one()?));
    "dv", "", "list views", Complete::None, false, |_| Ok(Command::Views);
    "df", "", "list functions", Complete::None, false, |_| Ok(Command::Functions);
    "g", "[FILE]", "run the statement before it, or the last one again; the result into FILE", Complete::File, false,
        |l| Ok(Command::Go { expanded: false, file: l.one()?.map(Into::into) });
    "gx" "G", "[FILE]", "the same, one line per column", Complete::File, false,
        |l| Ok(Command::Go { expanded: true, file: l.one()?.map(Into::into) });
    "watch", "[SECONDS] [TIMES]", "run the last statement again and again, until Ctrl-C", Complete::None, false, watch;
    "p", "", "print the last statement", Complete::None, false, |_| Ok(Command::Print);
    "r", "", "forget the last statement", Complete::None, false, |_| Ok(Command::Reset);
    "e" "edit", "[FILE]", "edit the last statement, or a file, with $VISUAL or $EDITOR", Complete::File, true,
        |l| Ok(Command::Edit(l.one()?.map(Into::into)));
    "s" "history", "[COUNT]", "show the history", Complete::None, true, |l| match l.one()? {
        None => Ok(Command::History(None)),
        Some(n) => n.parse().map(|n| Command::History(Some(n))).map_err(|_| format!("'{n}' is not a number")),
    };
    "i" "include", "FILE", "run the statements of a file", Complete::File, false,
        |l| l.one()?.map(|f| Command::Include(f.into())).ok_or_else(|| "which file?".to_owned());
    "o" "out", "[FILE]", "write results to a file, or to the terminal again", Complete::File, false,
        |l| Ok(Command::Output(l.one()?.map(Into::into)));
    "format", "[FORMAT]", "how results are written: table, vertical, csv, tsv, json, jsonl, markdown",
        Complete::Words(FORMATS), false, format;
    "x", "[on | off | auto]", "one line per column: always, never, or when a table is too wide",
        Complete::Words(&["on", "off", "auto"]), false, expanded;
    "timing", "[on | off]", "show how long statements take, on the server and on the way", Complete::Words(ON_OFF), false,
        |l| Ok(Command::Timing(l.on_off()?));
    "token", "", "print the token of the last write, for SET read_level = 'after TOKEN' at any node", Complete::None, false,
        |_| Ok(Command::Token);
    "set", "[NAME VALUE]", "change a setting of the session, or show them", Complete::Words(SETTINGS), false, set;
    "unset", "NAME", "put a setting back to its default", Complete::Words(SETTINGS), false,
        |l| l.one()?.map(Command::Unset).ok_or_else(|| "which setting?".to_owned());
    "echo", "[TEXT]", "write a line", Complete::None, false, |l| Ok(Command::Echo(l.rest.to_owned()));
    "!", "COMMAND", "run a command of the operating system", Complete::None, true, |l| match l.rest {
        "" => Err("which command?".to_owned()),
        command => Ok(Command::System(command.to_owned())),
    };
}

/// What stands behind a command's name.
struct Line<'a> {
    rest: &'a str,
    /// A node may be among its words.
    takes_node: bool,
}

impl Line<'_> {
    /// Its words; quotes keep spaces together.
    fn words(&self) -> Result<Vec<String>, String> {
        let mut words = Vec::new();
        let mut chars = self.rest.chars().peekable();
        while let Some(&c) = chars.peek() {
            if c.is_whitespace() {
                chars.next();
                continue;
            }
            let mut word = String::new();
            while let Some(&c) = chars.peek() {
                if c.is_whitespace() {
                    break;
                }
                chars.next();
                if !matches!(c, '\'' | '"' | '`') {
                    word.push(c);
                    continue;
                }
                loop {
                    match chars.next() {
                        Some(q) if q == c => break,
                        Some(q) => word.push(q),
                        None => return Err(format!("the quote {c} is not closed")),
                    }
                }
            }
            words.push(word);
        }
        // Files written for other shells end their commands as if they were statements.
        if let Some(last) = words.last_mut()
            && last.ends_with(';')
        {
            last.pop();
            if last.is_empty() {
                words.pop();
            }
        }
        Ok(words)
    }

    /// At most one word.
    fn one(&self) -> Result<Option<String>, String> {
        let mut words = self.words()?;
        match words.len() {
            0 | 1 => Ok(words.pop()),
            _ => Err(format!("too many arguments: {}", self.rest)),
        }
    }

    /// A node and the words `dry-run` and `accept-loss`, in any order.
    fn action(
        &self,
        make: impl FnOnce(Option<NodeId>, bool) -> Result<AdminAction, String>,
    ) -> Result<Command, String> {
        let (mut node, mut dry_run, mut accept_loss) = (None, false, false);
        for word in self.words()? {
            match word.trim_start_matches("--") {
                "dry-run" => dry_run = true,
                "accept-loss" => accept_loss = true,
                _ => match args::node(&word) {
                    Ok(one) if node.is_none() => node = Some(one),
                    Err(why) if self.takes_node => return Err(why),
                    _ => return Err(format!("'{word}' is too much")),
                },
            }
        }
        make(node, accept_loss).map(|action| Command::Admin { action, dry_run })
    }

    fn on_off(&self) -> Result<Option<bool>, String> {
        match self.one()?.map(|w| w.to_lowercase()).as_deref() {
            None => Ok(None),
            Some("on" | "true" | "1") => Ok(Some(true)),
            Some("off" | "false" | "0") => Ok(Some(false)),
            Some(other) => Err(format!("'{other}' is neither on nor off")),
        }
    }
}

/// An action of the whole cluster.
fn alone(node: Option<NodeId>, action: AdminAction) -> Result<AdminAction, String> {
    node.map_or(Ok(action), |node| Err(format!("it is about the whole cluster, not about {node}")))
}

fn which(node: Option<NodeId>) -> Result<NodeId, String> {
    node.ok_or_else(|| "which node?".to_owned())
}

fn watch(line: &Line<'_>) -> Result<Command, String> {
    let (mut every, mut times, mut place) = (Duration::from_secs(2), None, 0);
    for word in line.words()? {
        let (name, value) = word.split_once('=').unwrap_or(("", &word));
        match (name, place) {
            ("i", _) | ("", 0) => every = args::duration(value)?,
            ("c", _) | ("", 1) => {
                let count = value.parse().ok().filter(|n| *n > 0);
                times = Some(count.ok_or_else(|| format!("'{value}' is not a number of times"))?);
            }
            _ => return Err(format!("'{word}' is too much; say how many seconds and how many times")),
        }
        place += 1;
    }
    Ok(Command::Watch { every, times })
}

fn format(line: &Line<'_>) -> Result<Command, String> {
    let Some(name) = line.one()? else { return Ok(Command::Format(None)) };
    Format::of(&name).map(|f| Command::Format(Some(f))).ok_or_else(|| {
        let near = args::nearest(&name, FORMATS.iter().copied()).map(|n| format!("; did you mean {n}?"));
        format!("'{name}' is no format{}", near.unwrap_or_else(|| format!(": there are {}", FORMATS.join(", "))))
    })
}

fn expanded(line: &Line<'_>) -> Result<Command, String> {
    Ok(Command::Expanded(match line.one()?.map(|w| w.to_lowercase()).as_deref() {
        None => None,
        Some("on") => Some(Expanded::On),
        Some("off") => Some(Expanded::Off),
        Some("auto") => Some(Expanded::Auto),
        Some(other) => return Err(format!("'{other}' is not on, off or auto")),
    }))
}

fn set(line: &Line<'_>) -> Result<Command, String> {
    let words: Vec<String> = line.words()?.into_iter().filter(|w| w != "=").collect();
    let Some((name, value)) = words.split_first() else { return Ok(Command::Set(None)) };
    if value.is_empty() {
        return Err(format!("which value for {name}? (\\unset {name} puts it back)"));
    }
    Ok(Command::Set(Some((name.clone(), value.join(" ")))))
}

/// Reads a command line that begins with a backslash.
pub fn parse(text: &str) -> Result<Command, String> {
    let body = text.strip_prefix('\\').unwrap_or(text);
    // `\!ls` and `\?` need no space behind them.
    let end = match body.chars().next() {
        Some(c @ ('!' | '?')) => c.len_utf8(),
        _ => body.find(|c: char| c.is_whitespace() || c == ';').unwrap_or(body.len()),
    };
    let (name, rest) = body.split_at(end);
    match find(name) {
        Some(spec) => {
            let line = Line { rest: rest.trim(), takes_node: spec.arguments.contains("NODE") };
            (spec.read)(&line).map_err(|why| format!("\\{}: {why}", spec.name))
        }
        None => Err(format!("there is no command \\{name}{}", near(name))),
    }
}

/// The command of a name.
pub fn find(name: &str) -> Option<&'static Spec> {
    COMMANDS.iter().find(|c| c.name == name || c.aliases.contains(&name))
}

/// Every name and alias.
pub fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().flat_map(|c| std::iter::once(c.name).chain(c.aliases.iter().copied()))
}

fn near(name: &str) -> String {
    match args::nearest(name, names().filter(|n| n.len() > 1)) {
        Some(near) => format!("; did you mean \\{near}?"),
        None => "; \\? lists the commands".to_owned(),
    }
}

/// Bare words that people type to leave or to get help.
pub fn bare(text: &str) -> Option<Command> {
    match text.trim().trim_end_matches(';').to_lowercase().as_str() {
        "quit" | "exit" => Some(Command::Quit),
        "help" => Some(Command::Help),
        _ => None,
    }
}

/// The text of `\?`.
pub fn help(interactive: bool, room: usize) -> String {
    let mut out = String::new();
    let shown = || COMMANDS.iter().filter(|c| interactive || !c.interactive);
    let usage = |c: &Spec| {
        let mut usage = format!("\\{}", c.name);
        for alias in c.aliases {
            let _ = write!(usage, ", \\{alias}");
        }
        format!("{usage} {}", c.arguments).trim_end().to_owned()
    };
    let width = shown().map(|c| usage(c).len()).max().unwrap_or(0);
    for command in shown() {
        let mut usage = usage(command);
        for line in wrap(command.help, room.saturating_sub(width + 4).max(20)) {
            let _ = writeln!(out, "  {:width$}  {line}", std::mem::take(&mut usage));
        }
    }
    if interactive {
        let keys = "Statements end with ; and may take several lines. Tab completes, Ctrl-R searches the history, \
                    Ctrl-C stops the running statement on the server or clears the line, Ctrl-D leaves.";
        let _ = writeln!(out, "\n{}", wrap(keys, room).join("\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let before = all.len();
        all.dedup();
        assert_eq!(all.len(), before);
    }

    #[test]
    fn commands_are_understood() {
        assert_eq!(parse("\\c chinook;"), Ok(Command::Connect(vec!["chinook".into()])));
        assert_eq!(
            parse("\\c \"My Db\" - host 7411"),
            Ok(Command::Connect(vec!["My Db".into(), "-".into(), "host".into(), "7411".into()]))
        );
        assert_eq!(parse("\\q;"), Ok(Command::Quit));
        assert_eq!(parse("\\?"), Ok(Command::Help));
        assert_eq!(parse("\\!ls -l"), Ok(Command::System("ls -l".into())));
        assert_eq!(parse("\\d  users"), Ok(Command::Describe(Some("users".into()))));
        assert_eq!(parse("\\x"), Ok(Command::Expanded(None)));
        assert_eq!(parse("\\x ON"), Ok(Command::Expanded(Some(Expanded::On))));
        assert_eq!(parse("\\timing off"), Ok(Command::Timing(Some(false))));
        assert_eq!(parse("\\watch"), Ok(Command::Watch { every: Duration::from_secs(2), times: None }));
        assert_eq!(parse("\\watch 0.5 3"), Ok(Command::Watch { every: Duration::from_millis(500), times: Some(3) }));
        assert_eq!(parse("\\watch c=3"), Ok(Command::Watch { every: Duration::from_secs(2), times: Some(3) }));
        assert_eq!(parse("\\set read_level = local"), Ok(Command::Set(Some(("read_level".into(), "local".into())))));
        assert_eq!(
            parse("\\set read_level max_staleness 500"),
            Ok(Command::Set(Some(("read_level".into(), "max_staleness 500".into()))))
        );
        assert_eq!(parse("\\G"), Ok(Command::Go { expanded: true, file: None }));
        assert_eq!(parse("\\echo  a  b "), Ok(Command::Echo("a  b".into())));
        assert_eq!(bare(" EXIT; "), Some(Command::Quit));
    }

    #[test]
    fn mistakes_are_named() {
        let mistake = |text: &str| parse(text).expect_err("a mistake");
        assert_eq!(mistake("\\tming"), "there is no command \\tming; did you mean \\timing?");
        assert_eq!(mistake("\\zebra"), "there is no command \\zebra; \\? lists the commands");
        assert_eq!(mistake("\\format cvs"), "\\format: 'cvs' is no format; did you mean csv?");
        assert_eq!(mistake("\\i"), "\\i: which file?");
        assert_eq!(mistake("\\c 'x"), "\\c: the quote ' is not closed");
        assert_eq!(mistake("\\watch x"), "\\watch: 'x' is not a time such as 30, 1.5s, 500ms or 2m");
        assert_eq!(mistake("\\timing maybe"), "\\timing: 'maybe' is neither on nor off");
    }

    #[test]
    fn help_lists_all() {
        insta::assert_snapshot!(help(true, 80));
        assert!(!help(false, 80).contains("\\!"));
    }
}
