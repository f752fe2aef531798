//! The command line: what can be given, and how mistakes are answered.
//!
//! `-h` is the host, as in every database shell, so help is `--help` only. Statements and files run in the order given.
//! Left out: what the values mean together with environment and configuration file ([`crate::config`]).

pub mod streams;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use quorate_shared::admin::AdminAction;
use quorate_shared::ids::{Index, NodeId, ShardId, Token};
use quorate_shared::wire::ReadLevel;

pub use self::streams::{BackupArgs, FeedArgs, FeedPoint, RestoreArgs};

use crate::bench::Workload;
use crate::exit::Exit;

/// The shell of Quorate: runs SQL on a cluster, shows how the cluster is.
#[derive(Parser, Clone, Debug, Default)]
#[command(
    name = "quorate",
    version,
    disable_help_flag = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    subcommand_value_name = "COMMAND",
    after_help = "Without -e, -f or a command: an interactive shell on a terminal, else statements from standard input.\n\
        Exit codes: 0 done, 1 a statement failed, 2 usage, 3 no connection, 4 outcome unknown, 130 interrupted.\n\
        Statements go to the database as they are; lines that begin with a backslash are the shell's own (\\? lists them)."
)]
pub struct Args {
    /// Where, as a URL.
    #[arg(help = "Where: quorate://[USER@]HOST[:PORT][,HOST...][/DATABASE][?SETTING=VALUE&...]")]
    pub url: Option<String>,
    /// Run these statements and end; repeatable
    #[arg(short = 'e', long = "execute", visible_short_alias = 'c', visible_alias = "command", value_name = "SQL")]
    pub execute: Vec<String>,
    /// Run the statements of this file and end (- is standard input); repeatable
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// How results are written: table on a terminal, tsv into a pipe [env: QUORATE_FORMAT]
    #[arg(long, value_name = "FORMAT", env = "QUORATE_FORMAT", hide_env = true)]
    pub format: Option<Format>,
    /// Leave out the header of csv, tsv, table and markdown
    #[arg(long)]
    pub no_header: bool,
    /// Write results to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Go on after a statement that failed (the exit code still says so)
    #[arg(long)]
    pub keep_going: bool,
    /// Say nothing but errors on standard error
    #[arg(short, long)]
    pub quiet: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help, global = true)]
    pub help: Option<bool>,
    // Last: its heading holds for what follows.
    #[allow(missing_docs)]
    #[command(flatten)]
    pub connection: ConnectionArgs,
    #[allow(missing_docs)]
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to run, in the order given; filled after parsing.
    #[arg(skip)]
    pub inputs: Vec<Input>,
}

/// Where and how to connect; the same for every command.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// Nodes to try, with an optional port each, or a quorate:// URL [default: 127.0.0.1] [env: QUORATE_HOST]
    #[arg(short = 'h', long, value_name = "HOST[:PORT],...", global = true, env = "QUORATE_HOST", hide_env = true)]
    pub host: Option<String>,
    /// Port of hosts given without one [default: 7411] [env: QUORATE_PORT]
    #[arg(short, long, value_name = "PORT", global = true, env = "QUORATE_PORT", hide_env = true,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Database to begin in [default: main] [env: QUORATE_DATABASE]
    #[arg(short, long, value_name = "DATABASE", global = true, env = "QUORATE_DATABASE", hide_env = true)]
    pub database: Option<String>,
    /// User name [default: the operating system's] [env: QUORATE_USER]
    #[arg(short = 'U', long, value_name = "USER", global = true, env = "QUORATE_USER", hide_env = true)]
    pub user: Option<String>,
    /// Give up on a statement, or on connecting, after this long: 30, 1.5s, 500ms, 2m [env: QUORATE_TIMEOUT]
    #[arg(long, value_name = "TIME", global = true, env = "QUORATE_TIMEOUT", hide_env = true, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Refuse everything that writes [env: QUORATE_READ_ONLY]
    #[arg(long, global = true, env = "QUORATE_READ_ONLY", hide_env = true,
        value_parser = clap::builder::FalseyValueParser::new())]
    pub read_only: bool,
    /// What reads must see: linearizable, max_staleness:MS, local [env: QUORATE_READ_LEVEL]
    #[arg(long, value_name = "LEVEL", global = true, env = "QUORATE_READ_LEVEL", hide_env = true, value_parser = read_level)]
    pub read_level: Option<String>,
    /// Configuration file [default: $XDG_CONFIG_HOME/quorate/config.toml] [env: QUORATE_CONFIG]
    #[arg(long, value_name = "FILE", global = true, env = "QUORATE_CONFIG", hide_env = true)]
    pub config: Option<PathBuf>,
}

/// The commands beside running SQL.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Show how the cluster is; exit 0 ok, 1 warning, 2 critical, 3 unknown
    Status(StatusArgs),
    /// Watch the cluster and run SQL in a full-screen terminal
    Top(TopArgs),
    /// Generate load and measure it
    Bench(BenchArgs),
    /// Start a cluster with sample data on this machine and show it
    Demo(DemoArgs),
    /// Change the cluster: a plan, steps, a verified outcome
    Admin(AdminArgs),
    /// Recompute the hash chains on every node, compare them, check an anchor
    Verify(VerifyArgs),
    /// Have the nodes sign where their hash chains stand, to be kept elsewhere
    Anchor(AnchorArgs),
    /// Print a table's committed changes as JSON lines, as they come
    Feed(FeedArgs),
    /// Keep a backup: the log of every shard, until it is stopped
    Backup(Box<BackupArgs>),
    /// Make a data directory of a backup, as of any time it reaches to
    Restore(RestoreArgs),
}

/// `quorate verify`.
#[derive(clap::Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Compare with an anchor that `quorate anchor` made
    #[arg(long, value_name = "FILE")]
    pub anchor: Option<PathBuf>,
    /// Only show what would be done and what stands against it
    #[arg(long)]
    pub dry_run: bool,
    /// Plan, steps and outcome as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `quorate anchor`.
#[derive(clap::Args, Clone, Debug)]
pub struct AnchorArgs {
    /// Write the anchor to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Only show what would be done and what stands against it
    #[arg(long)]
    pub dry_run: bool,
    /// Plan, steps and outcome, the anchor among it, as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `quorate admin`.
#[derive(clap::Args, Clone, Debug)]
pub struct AdminArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: AdminCommand,
    /// Only show what would be done and what stands against it
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Plan, steps and outcome as one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not ask before something dangerous
    #[arg(short, long, global = true)]
    pub yes: bool,
}

/// What `quorate admin` can do.
#[derive(Subcommand, Clone, Debug)]
pub enum AdminCommand {
    /// Hand the leadership of every shard to another voter, planned
    Switchover {
        /// To this node [default: the voter that is furthest]
        #[arg(long, value_name = "NODE", value_parser = node)]
        to: Option<NodeId>,
    },
    /// Make a log-shipped replica a voter
    AddVoter {
        /// The replica, e.g. n4
        #[arg(value_name = "NODE", value_parser = node)]
        node: NodeId,
    },
    /// Make a voter a log-shipped replica
    Demote {
        /// The voter
        #[arg(value_name = "NODE", value_parser = node)]
        node: NodeId,
    },
    /// Take a node, also a dead one, out of the cluster
    Remove {
        /// The node
        #[arg(value_name = "NODE", value_parser = node)]
        node: NodeId,
    },
    /// Make the node connected to the first voter of a new, fenced epoch (-h NODE)
    Promote {
        /// Go on although acknowledged writes may be lost
        #[arg(long)]
        accept_loss: bool,
    },
    /// Compare the rows of all replicas, range by range; those that differ are rebuilt
    Scrub,
}

impl AdminCommand {
    /// As the wire has it.
    pub fn action(&self) -> AdminAction {
        match *self {
            AdminCommand::Switchover { to } => AdminAction::Switchover { to },
            AdminCommand::AddVoter { node } => AdminAction::AddVoter { node },
            AdminCommand::Demote { node } => AdminAction::DemoteVoter { node },
            AdminCommand::Remove { node } => AdminAction::RemoveNode { node },
            AdminCommand::Promote { accept_loss } => AdminAction::Promote { accept_loss },
            AdminCommand::Scrub => AdminAction::Scrub,
        }
    }
}

/// `n4` or `4`.
pub fn node(text: &str) -> Result<NodeId, String> {
    let number = text.strip_prefix(['n', 'N']).unwrap_or(text);
    number.parse().map(NodeId::new).map_err(|_| format!("'{text}' is not a node such as n4"))
}

/// `quorate status`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct StatusArgs {
    /// Where, as a quorate:// URL
    pub url: Option<String>,
    /// As one JSON document (one per line with --watch)
    #[arg(long)]
    pub json: bool,
    /// Again and again, every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
}

/// `quorate top`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TopArgs {
    /// Where, as a quorate:// URL
    pub url: Option<String>,
}

/// `quorate bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct BenchArgs {
    /// Where, as a quorate:// URL
    pub url: Option<String>,
    /// What to do
    #[arg(long, value_name = "WORKLOAD", default_value = "insert")]
    pub workload: Workload,
    /// Concurrent clients, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Rows of the table that is read or updated
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub rows: u64,
    /// The result as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `quorate demo`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct DemoArgs {
    /// Keep the data here and start from it again
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Writes per second to keep up
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub load: u32,
    /// Print how to connect and run until Ctrl-C
    #[arg(long)]
    pub no_tui: bool,
    /// With --no-tui: one JSON line once the cluster is ready
    #[arg(long, requires = "no_tui")]
    pub json: bool,
}

/// How results are written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Columns, aligned
    Table,
    /// One line per column
    Vertical,
    /// RFC 4180, with header; NULL is empty, an empty string is ""
    Csv,
    /// Tab-separated, with header; NULL is \N
    Tsv,
    /// One array of objects per result
    Json,
    /// One object per line
    Jsonl,
    /// A Markdown table
    Markdown,
}

impl Format {
    /// Its name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Vertical => "vertical",
            Format::Csv => "csv",
            Format::Tsv => "tsv",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
            Format::Markdown => "markdown",
        }
    }

    /// The format of a name, in any case.
    pub fn of(name: &str) -> Option<Format> {
        Format::value_variants().iter().copied().find(|f| f.name().eq_ignore_ascii_case(name))
    }
}

/// Something to run, in the order of the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Text of `-e`.
    Text(String),
    /// A file of `-f`; `-` is standard input.
    File(PathBuf),
}

/// What parsing came to.
#[derive(Debug)]
pub enum Parsed {
    /// Go on with these.
    Run(Box<Args>),
    /// Help or version: print this to standard output, done.
    Print(String),
    /// A mistake: print this to standard error and end with this exit code.
    Mistake(String, u8),
}

/// Reads a command line, program name included.
pub fn parse(line: &[OsString]) -> Parsed {
    let mut command = command();
    let result = command.try_get_matches_from_mut(line).and_then(|matches| {
        let mut args = Args::from_arg_matches(&matches)?;
        args.inputs = in_order(&matches, &args);
        let useless = useless(&command, &matches);
        Ok((args, useless))
    });
    match result {
        Ok((args, useless)) => match useless.or_else(|| misplaced(&args)) {
            None => Parsed::Run(Box::new(args)),
            Some(why) => {
                Parsed::Mistake(format!("error: {why}\n\nFor more information, try '--help'.\n"), usage_code(line))
            }
        },
        Err(e) if !e.use_stderr() => Parsed::Print(e.to_string()),
        Err(e) => Parsed::Mistake(e.to_string(), usage_code(line)),
    }
}

/// Options of [`ConnectionArgs`] that a command has no use for: they are not in its help, and refused.
fn unused(path: &[&str]) -> &'static [&'static str] {
    match path {
        ["demo" | "restore", ..] | ["backup", "verify"] => {
            &["host", "port", "database", "user", "timeout", "read_only", "read_level", "config"]
        }
        ["status" | "admin" | "verify" | "anchor" | "backup", ..] => &["database", "read_only", "read_level"],
        ["feed", ..] => &["read_only", "read_level"],
        ["top" | "bench", ..] => &["read_only"],
        _ => &[],
    }
}

/// The command line's definition; what a command has no use for is not in its help.
fn command() -> clap::Command {
    let root = Args::command();
    let options: Vec<clap::Arg> = root.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    hide_unused(root, &options, &[])
}

fn hide_unused(mut command: clap::Command, options: &[clap::Arg], path: &[&str]) -> clap::Command {
    let hidden = options.iter().filter(|arg| unused(path).contains(&arg.get_id().as_str()));
    command = command.args(hidden.map(|arg| arg.clone().hide(true)));
    let below: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in below {
        let path = [path, &[&name]].concat();
        command = command.mut_subcommand(&name, |below| hide_unused(below, options, &path));
    }
    command
}

/// What was given although the command has no use for it: nobody is to believe that it counts.
fn useless(command: &clap::Command, matches: &clap::ArgMatches) -> Option<String> {
    let (mut path, mut leaf) = (Vec::new(), matches);
    while let Some((name, below)) = leaf.subcommand() {
        path.push(name);
        leaf = below;
    }
    let given =
        |matches: &clap::ArgMatches, id: &str| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
    let own = |arg: &&clap::Arg| !arg.is_global_set() && !path.is_empty();
    let of_sql = command.get_arguments().filter(own).map(|arg| arg.get_id().as_str());
    // A URL may stand before a command that connects.
    let connects = !unused(&path).contains(&"host");
    let of_sql = of_sql.filter(|id| given(matches, id) && !(connects && *id == "url"));
    let id = unused(&path).iter().copied().find(|id| given(leaf, id)).or_else(|| of_sql.last())?;
    let option = command.get_arguments().find(|arg| arg.get_id() == id)?;
    let name = option.get_long().map_or("a URL".to_owned(), |long| format!("--{long}"));
    Some(format!("{name} means nothing to 'quorate {}'", path.join(" ")))
}

/// `status` answers monitoring: a usage error is *unknown* there.
fn usage_code(line: &[OsString]) -> u8 {
    const UNKNOWN: u8 = 3;
    let takes_value = ["-e", "-c", "-f", "-o", "-d", "-h", "-p", "-U", "--host", "--database", "--file", "--execute"];
    let mut previous = None;
    for arg in line.iter().skip(1) {
        let is_value = previous.is_some_and(|p: &OsString| takes_value.iter().any(|t| p == t));
        if !is_value && arg == "status" {
            return UNKNOWN;
        }
        previous = Some(arg);
    }
    Exit::Usage.code()
}

/// `-e` and `-f` as they were mixed.
fn in_order(matches: &clap::ArgMatches, args: &Args) -> Vec<Input> {
    let texts = matches.indices_of("execute").into_iter().flatten().zip(args.execute.iter().cloned().map(Input::Text));
    let files = matches.indices_of("file").into_iter().flatten().zip(args.file.iter().cloned().map(Input::File));
    let mut inputs: Vec<(usize, Input)> = texts.chain(files).collect();
    inputs.sort_by_key(|(at, _)| *at);
    inputs.into_iter().map(|(_, input)| input).collect()
}

/// What clap cannot see: a word that is neither a URL nor a command.
fn misplaced(args: &Args) -> Option<String> {
    let url = args.url.as_deref().filter(|u| !is_url(u))?;
    let commands: Vec<String> = Args::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let near = nearest(url, commands.iter().map(String::as_str));
    let hint = match near {
        Some(command) => format!("did you mean the command '{command}'?"),
        None => "a database is given with -d, a host with -h, statements with -e".to_owned(),
    };
    Some(format!("'{url}' is neither a command nor a quorate:// URL; {hint}"))
}

/// Whether a text is meant as a URL.
pub fn is_url(text: &str) -> bool {
    text.get(..quorate_shared::url::SCHEME.len()).is_some_and(|s| s.eq_ignore_ascii_case(quorate_shared::url::SCHEME))
}

/// The candidate most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distance = |c: &str| strsim::damerau_levenshtein(&word, &c.to_lowercase());
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (distance(c), c))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// `30`, `1.5s`, `500ms`, `2m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is not a time such as 30, 1.5s, 500ms or 2m");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let factor = match &text[split..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let number: f64 = text[..split].trim().parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(number * factor).ok().filter(|d| !d.is_zero()).ok_or_else(bad)
}

fn seconds(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|d| {
        let least = Duration::from_millis(100);
        if d < least { Err("the least is 0.1 seconds".to_owned()) } else { Ok(d) }
    })
}

/// Checks a read level's spelling, and gives it the one that nodes show.
pub fn read_level(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let (name, argument) = lower.split_once([':', '=', ' ']).map_or((&*lower, None), |(a, b)| (a, Some(b.trim())));
    let level = name.replace('-', "_");
    match (level.as_str(), argument) {
        ("linearizable" | "local", None) => Ok(level),
        ("max_staleness", Some(time)) => match staleness(time) {
            Some(ms) => Ok(format!("max_staleness {ms}ms")),
            None => Err(format!("'{time}' is not a time such as 500ms or 2s")),
        },
        ("max_staleness", None) => Err("max_staleness needs a time, e.g. max_staleness:500ms".to_owned()),
        ("after", Some(tokens)) => {
            match tokens.split([' ', ',']).filter(|t| !t.is_empty()).find(|t| token(t).is_none()) {
                None if !tokens.is_empty() => Ok(format!("after {tokens}")),
                _ => Err(format!("'{tokens}' is not a write's token, <shard>:<epoch>:<index>, e.g. s1:1:812")),
            }
        }
        ("after", None) => Err("after needs a write's token, e.g. after:s1:1:812".to_owned()),
        _ => {
            let near = nearest(&level, ["linearizable", "local", "max_staleness", "after"]);
            let hint = near.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default();
            Err(format!("'{text}' is not linearizable, after:TOKEN, max_staleness:TIME or local{hint}"))
        }
    }
}

/// A time in milliseconds; a number alone is one of them, as in `SET read_level`.
fn staleness(time: &str) -> Option<u64> {
    match time.parse() {
        Ok(ms) => Some(ms),
        Err(_) => duration(time).ok().and_then(|d| u64::try_from(d.as_millis()).ok()),
    }
}

/// A write's token: `<shard>:<epoch>:<index>`.
fn token(text: &str) -> Option<Token> {
    let mut parts = text.split(':');
    let shard = parts.next()?.strip_prefix('s')?.parse().ok()?;
    let (epoch, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(Token { shard: ShardId::new(shard), epoch, index: Index::new(index) })
}

/// The level of a spelling that [`read_level`] made.
pub fn wire_read_level(text: &str) -> ReadLevel {
    match text.split_once(' ') {
        Some(("max_staleness", time)) => {
            time.trim_end_matches("ms").parse().map_or(ReadLevel::Linearizable, ReadLevel::MaxStaleness)
        }
        Some(("after", tokens)) => ReadLevel::After(tokens.split([' ', ',']).filter_map(token).collect()),
        _ if text == "local" => ReadLevel::Local,
        _ => ReadLevel::Linearizable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &[&str]) -> Args {
        match parse(&with_name(line)) {
            Parsed::Run(args) => *args,
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn mistake(line: &[&str]) -> (String, u8) {
        match parse(&with_name(line)) {
            Parsed::Mistake(text, code) => (text, code),
            other => panic!("{line:?}: {other:?}"),
        }
    }

    fn with_name(line: &[&str]) -> Vec<OsString> {
        std::iter::once("quorate").chain(line.iter().copied()).map(OsString::from).collect()
    }

    #[test]
    fn a_read_level_is_spelled_as_nodes_show_it() {
        for (given, shown, level) in [
            ("Local", "local", ReadLevel::Local),
            ("max-staleness:500", "max_staleness 500ms", ReadLevel::MaxStaleness(500)),
            ("max_staleness 2s", "max_staleness 2000ms", ReadLevel::MaxStaleness(2000)),
            (
                "after s1:2:812",
                "after s1:2:812",
                ReadLevel::After(vec![Token { shard: ShardId::DATA, epoch: 2, index: Index::new(812) }]),
            ),
        ] {
            assert_eq!(read_level(given).as_deref(), Ok(shown));
            assert_eq!(wire_read_level(shown), level);
        }
        for wrong in ["max_staleness", "max_staleness:soon", "after", "after:7", "after:s1:1", "strong"] {
            assert!(read_level(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_definition_holds_together() {
        command().debug_assert();
    }

    #[test]
    fn what_a_command_has_no_use_for_is_neither_shown_nor_taken() {
        let help = |line: &[&str]| match parse(&with_name(&[line, &["--help"]].concat())) {
            Parsed::Print(text) => text,
            other => panic!("{line:?}: {other:?}"),
        };
        for (line, absent, there) in [
            (&["restore"][..], "Connection:", "--into"),
            (&["demo"], "--host", "--load"),
            (&["backup", "verify"], "Connection:", "--from"),
            (&["backup"], "--database", "--host"),
            (&["admin", "switchover"], "--read-level", "--timeout"),
            (&["status"], "--read-only", "--user"),
            (&["feed"], "--read-only", "--database"),
            (&["top"], "--read-only", "--read-level"),
            (&[], "nothing is hidden from statements", "--read-only"),
        ] {
            let help = help(line);
            assert!(!help.contains(absent) && help.contains(there), "{line:?}: {help}");
        }
        for (line, said) in [
            (&["restore", "--from", "a", "--into", "b", "-h", "c"][..], "--host means nothing to 'quorate restore'"),
            (&["-d", "a", "status"], "--database means nothing to 'quorate status'"),
            (&["--read-only", "admin", "scrub"], "--read-only means nothing to 'quorate admin scrub'"),
            (&["backup", "verify", "--from", "a", "-p", "1"], "--port means nothing to 'quorate backup verify'"),
            (&["-e", "SELECT 1", "status"], "--execute means nothing to 'quorate status'"),
            (&["quorate://a", "demo"], "a URL means nothing to 'quorate demo'"),
        ] {
            let (text, code) = mistake(line);
            assert!(text.contains(said), "{line:?}: {text}");
            assert_eq!(code, if said.ends_with("status'") { 3 } else { 2 });
        }
        assert!(run(&["quorate://a", "status"]).url.is_some());
        assert_eq!(run(&["backup", "--to", "x", "-h", "a"]).connection.host.as_deref(), Some("a"));
    }

    #[test]
    fn statements_and_files_keep_their_order() {
        let args = run(&["-e", "a", "-f", "b.sql", "-c", "c", "-f-", "--command", "d"]);
        let text = |t: &str| Input::Text(t.to_owned());
        assert_eq!(
            args.inputs,
            [text("a"), Input::File("b.sql".into()), text("c"), Input::File("-".into()), text("d")]
        );
    }

    #[test]
    fn h_is_the_host_before_and_behind_a_command() {
        assert_eq!(run(&["-h", "a:1,b"]).connection.host.as_deref(), Some("a:1,b"));
        assert_eq!(run(&["-h", "a", "status"]).connection.host.as_deref(), Some("a"));
        let args = run(&["status", "--json", "-h", "a", "--watch", "0.5"]);
        assert_eq!(args.connection.host.as_deref(), Some("a"));
        assert!(matches!(args.command, Some(Command::Status(StatusArgs { json: true, watch: Some(_), .. }))));
        assert!(matches!(parse(&with_name(&["--help"])), Parsed::Print(text) if text.contains("--keep-going")));
    }

    #[test]
    fn mistakes_name_the_nearest() {
        let (text, code) = mistake(&["--fromat", "csv"]);
        assert!(text.contains("--format") && code == 2, "{text}");
        let (text, _) = mistake(&["--format", "cvs"]);
        assert!(text.contains("csv"), "{text}");
        let (text, code) = mistake(&["statsu"]);
        assert!(text.contains("did you mean the command 'status'") && code == 2, "{text}");
        let (text, _) = mistake(&["--read-level", "linearisable"]);
        assert!(text.contains("did you mean 'linearizable'"), "{text}");
        let (_, code) = mistake(&["status", "--jsno"]);
        assert_eq!(code, 3);
        let (_, code) = mistake(&["-d", "status", "--nope"]);
        assert_eq!(code, 2);
    }

    #[test]
    fn actions_name_their_nodes() {
        let args = run(&["-h", "a", "admin", "switchover", "--to", "n2", "--dry-run"]);
        let Some(Command::Admin(admin)) = args.command else { panic!("an action") };
        assert!(admin.dry_run && !admin.json);
        assert_eq!(admin.action.action(), AdminAction::Switchover { to: Some(NodeId::new(2)) });
        let (text, code) = mistake(&["admin", "remove", "here"]);
        assert!(text.contains("'here' is not a node such as n4") && code == 2, "{text}");
    }

    #[test]
    fn times() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        for bad in ["", "0", "-1", "x", "5 parsecs", "nan", "1e400"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
