//! One session of a client with everything that belongs to it: how results look and where they go, what is told to
//! the user, how Ctrl-C is answered. Line shell and scripts both stand on it.
//!
//! Ctrl-C while a statement runs stops it on the server; the answer says what became of it. A second Ctrl-C, or a
//! server that does not answer, gives up waiting.
//! Left out: reading statements ([`crate::script`], [`crate::repl`]) and the shell's own commands ([`crate::command`]).

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_shared::client::{Client, ClientConfig, ClientError, Event, SQLSTATE_CANCELED};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::Token;
use quorate_shared::status::NodeKind;
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, QueryOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Format;
use crate::command::Expanded;
use crate::config::Options;
use crate::exit::Exit;
use crate::output::Output;
use crate::render::error::Paint;
use crate::render::{Renderer, Style};

/// After this long without an answer to a cancel the user is told.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);
/// A statement that waits (for a leader, mostly) says so after this long.
const WAIT_TOLD_AFTER: Duration = Duration::from_secs(1);
/// The longest attempt to connect to one node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How results look, and what is said about them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Display {
    /// The format; `None`: table on a terminal, else tsv.
    pub format: Option<Format>,
    /// With headers.
    pub header: bool,
    /// When a table stands up.
    pub expanded: Expanded,
    /// Tell how long statements take.
    pub timing: bool,
    /// Tell what statements without a result did, and how many rows there were.
    pub narrate: bool,
    /// Tell nothing but errors.
    pub quiet: bool,
    /// Colours of messages.
    pub paint: Paint,
}

/// A session.
pub struct Session {
    client: Client,
    options: Options,
    /// How results look.
    pub display: Display,
    /// Where results go.
    pub output: Output,
    interrupts: Interrupts,
    /// What the client said meanwhile.
    events: Arc<Mutex<Events>>,
    /// The newest catalog version seen: completion refreshes when it grows.
    pub catalog: u64,
    /// Where the last write is in the log; empty before the first.
    pub token: Vec<Token>,
}

/// What a statement did.
#[derive(Clone, PartialEq, Debug)]
pub struct Ran {
    /// Whether it had a result.
    pub has_rows: bool,
    /// Rows of the result.
    pub rows: u64,
    /// The server's last word.
    pub done: Done,
    /// From sending it to having written its last row.
    pub elapsed: Duration,
    /// Ctrl-C came too late to stop it.
    pub interrupted: bool,
}

/// Why there is nothing to tell.
#[derive(Debug)]
pub enum Failure {
    /// The statement failed, or its outcome is unknown.
    Statement(WireError),
    /// No node can be reached.
    NoConnection(String),
    /// The result cannot be written.
    Output(io::Error),
    /// Stopped by Ctrl-C; what the server said about it.
    Interrupted(WireError),
}

impl Failure {
    /// How a run ends with it.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Statement(error) => Exit::of(error.code),
            Failure::NoConnection(_) => Exit::NoConnection,
            Failure::Output(_) => Exit::Failed,
            Failure::Interrupted(error) if error.code == Code::Unknown => Exit::Unknown,
            Failure::Interrupted(_) => Exit::Interrupted,
        }
    }

    /// As an error to show.
    pub fn into_wire(self) -> WireError {
        match self {
            Failure::Statement(error) | Failure::Interrupted(error) => error,
            Failure::NoConnection(why) => WireError::new(Code::Retry, why),
            Failure::Output(e) => WireError::new(Code::Internal, format!("cannot write the result: {e}")),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NoConnection { .. } => Failure::NoConnection(error.to_string()),
            other => Failure::Statement(other.into_wire()),
        }
    }
}

/// Ctrl-C, as something to wait for.
pub struct Interrupts(Option<Signal>);

impl Interrupts {
    /// From now on Ctrl-C does not end the process.
    pub fn listen() -> Interrupts {
        // Without the handler Ctrl-C ends the process, which is the next best.
        Interrupts(signal(SignalKind::interrupt()).ok())
    }

    /// The next Ctrl-C.
    pub async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// What the client says of itself, made into one line per move and per long wait.
#[derive(Default)]
struct Events {
    quiet: bool,
    paint: Paint,
    /// The last loss, told together with where the session goes on.
    lost: Option<String>,
    /// Since when the statement waits; told once when it has been long.
    waiting: Option<(Instant, bool)>,
    /// How often the session has moved.
    moved: u64,
}

impl Events {
    /// What to tell now, if anything.
    fn hear(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Lost { .. } => {
                self.lost = Some(event.to_string());
                None
            }
            Event::Moved { .. } => {
                self.moved += 1;
                let lost = self.lost.take().map(|l| format!("{l}; ")).unwrap_or_default();
                Some(format!("{lost}{event}"))
            }
            Event::Waiting { .. } => {
                let (since, told) = self.waiting.get_or_insert((Instant::now(), false));
                let tell = !*told && since.elapsed() >= WAIT_TOLD_AFTER;
                *told |= tell;
                tell.then(|| event.to_string())
            }
        }
    }
}

impl Session {
    /// Connects.
    pub async fn open(options: Options, display: Display, output: Output) -> Result<Session, ClientError> {
        let mut client = Client::connect(client_config(&options)).await?;
        let events = Arc::new(Mutex::new(Events { quiet: display.quiet, paint: display.paint, ..Events::default() }));
        listen(&mut client, &events);
        Ok(Session {
            client,
            options,
            display,
            output,
            interrupts: Interrupts::listen(),
            events,
            catalog: 0,
            token: Vec::new(),
        })
    }

    /// Goes to another cluster, database or user; the old session ends only if the new one could be opened.
    pub async fn reconnect(&mut self, options: Options) -> Result<(), ClientError> {
        let mut client = Client::connect(client_config(&options)).await?;
        listen(&mut client, &self.events);
        self.client = client;
        self.options = options;
        self.catalog = 0;
        Ok(())
    }

    /// The client.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// What the session was opened with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The database the session is in.
    pub fn database(&self) -> &str {
        self.client.database()
    }

    /// `master`, `voter` or `replica`, as far as the node said when the session began.
    pub fn role(&self) -> &'static str {
        let Some(welcome) = self.client.welcome() else { return "?" };
        match (&welcome.master, welcome.kind) {
            _ if self.client.address().is_none() => "?",
            (_, NodeKind::Replica) => "replica",
            (Some(master), _) if master.node == welcome.node => "master",
            _ => "voter",
        }
    }

    /// Where the session is.
    pub fn address(&self) -> String {
        self.client.address().map_or_else(|| "not connected".to_owned(), str::to_owned)
    }

    /// Waits for Ctrl-C.
    pub async fn interrupted(&mut self) {
        self.interrupts.next().await;
    }

    /// How results look now.
    pub fn style(&self) -> Style {
        let terminal = self.output.is_terminal();
        let format = match self.display.expanded {
            Expanded::On => Format::Vertical,
            _ => self.display.format.unwrap_or(if terminal { Format::Table } else { Format::Tsv }),
        };
        Style {
            format,
            header: self.display.header,
            unicode: terminal && speaks_unicode(),
            color: terminal && self.display.paint.color,
            width: (terminal && self.display.narrate && self.display.expanded == Expanded::Auto)
                .then(terminal_width)
                .flatten(),
        }
    }

    /// Runs one statement and writes its result.
    pub async fn execute(&mut self, sql: &str, style: Style) -> Result<Ran, Failure> {
        let started = Instant::now();
        self.events.lock().unwrap_or_else(PoisonError::into_inner).waiting = None;
        let handle = self.client.cancel_handle();
        let deadline_ms = self.options.timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let query = QueryOptions { deadline_ms, read_only: self.options.read_only, ..QueryOptions::default() };
        let (mut asked, mut told) = (None, false);
        let result = {
            let work = stream(&mut self.client, sql, query, style, &mut self.output);
            tokio::pin!(work);
            loop {
                let patience = asked.filter(|_| !told).map(|at: tokio::time::Instant| at + CANCEL_PATIENCE);
                tokio::select! {
                    biased;
                    result = &mut work => break result,
                    () = self.interrupts.next() => {
                        if asked.replace(tokio::time::Instant::now()).is_some() {
                            break Err(Failure::Interrupted(given_up()));
                        }
                        let handle = handle.clone();
                        tokio::spawn(async move { handle.cancel().await });
                    }
                    () = sleep_until(patience) => {
                        told = true;
                        self.display.say("canceling; Ctrl-C again stops waiting");
                    }
                }
            }
        };
        let interrupted = asked.is_some();
        match result {
            Ok((has_rows, rows, done)) => {
                self.catalog = self.catalog.max(done.catalog.get());
                if !done.token.is_empty() {
                    self.token.clone_from(&done.token);
                }
                let ran = Ran { has_rows, rows, done, elapsed: started.elapsed(), interrupted };
                self.tell(&ran);
                Ok(ran)
            }
            Err(Failure::Statement(error))
                if interrupted
                    && (error.sqlstate.as_deref() == Some(SQLSTATE_CANCELED) || error.code == Code::Unknown) =>
            {
                Err(Failure::Interrupted(error))
            }
            Err(other) => Err(other),
        }
    }

    /// Runs one statement and collects its result instead of writing it.
    pub async fn collect(&mut self, sql: &str) -> Result<(Vec<Column>, Vec<Vec<Value>>), Failure> {
        let result = self.client.run(sql, Vec::new()).await?;
        Ok((result.columns, result.rows))
    }

    /// Writes a result that no statement gave (lists of the shell's own commands).
    pub fn write_rows(&mut self, columns: &[Column], rows: Vec<Vec<Value>>) -> io::Result<()> {
        let mut renderer = Renderer::new(self.style(), columns);
        renderer.rows(rows, &mut self.output)?;
        renderer.end(&mut self.output)?;
        self.output.flush()
    }

    /// Writes text that is data.
    pub fn write_text(&mut self, text: &str) -> io::Result<()> {
        self.output.write_all(text.as_bytes())?;
        self.output.flush()
    }

    /// How often the client has moved to another node.
    pub fn moves(&self) -> u64 {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).moved
    }

    /// What is to be said about a statement that succeeded.
    fn tell(&mut self, ran: &Ran) {
        for notice in &ran.done.notices {
            let label = format!("{}:", notice.severity);
            let warning = notice.severity == "warning";
            if warning || !self.display.quiet {
                let label = if warning { self.display.paint.warn(&label) } else { self.display.paint.dim(&label) };
                eprintln!("{label} {}", notice.message);
            }
        }
        if self.display.narrate && !self.display.quiet {
            eprintln!("{}", self.display.paint.dim(&summary(ran)));
        }
        if self.display.timing {
            let line = timing(ran.elapsed, Duration::from_micros(ran.done.elapsed_us));
            eprintln!("{}", self.display.paint.dim(&line));
        }
    }
}

impl Display {
    /// Tells the user something that is neither data nor an error.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// `(3 rows)`, `INSERT 2`, with the age of what was read where it has one.
pub fn summary(ran: &Ran) -> String {
    let mut text = match (ran.has_rows, ran.rows, ran.done.rows) {
        (true, 1, _) => "(1 row)".to_owned(),
        (true, n, _) => format!("({n} rows)"),
        (false, _, 0) if !matches!(ran.done.tag.as_str(), "INSERT" | "UPDATE" | "DELETE") => ran.done.tag.clone(),
        (false, _, n) => format!("{} {n}", ran.done.tag),
    };
    if let Some(age) = ran.done.age_ms {
        text.push_str(&format!(" as of {} ago", crate::render::status::duration(age)));
    }
    text
}

/// `time: 2.1 ms (server 1.3 ms, network and shell 0.8 ms)`.
pub fn timing(elapsed: Duration, server: Duration) -> String {
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1000.0);
    let rest = elapsed.saturating_sub(server);
    format!("time: {} (server {}, network and shell {})", ms(elapsed), ms(server), ms(rest))
}

/// Runs a statement and writes its rows as they come: has it a result, how many rows, the last word.
async fn stream(
    client: &mut Client,
    sql: &str,
    options: QueryOptions,
    style: Style,
    output: &mut Output,
) -> Result<(bool, u64, Done), Failure> {
    let mut stream = client.query(sql, Vec::new(), options).await?;
    let mut renderer = Renderer::new(style, stream.columns());
    let has_rows = !stream.columns().is_empty();
    loop {
        match stream.next().await {
            Ok(Some(rows)) => {
                renderer.rows(rows, output).map_err(Failure::Output)?;
                if output.is_gone() {
                    // Nobody reads on: leaving the stream stops the statement on the server.
                    return Ok((has_rows, renderer.count(), Done::default()));
                }
            }
            Ok(None) => break,
            Err(error) => {
                // What came so far was meant to be seen; the error says that it is not all.
                renderer.abort(output).and_then(|()| output.flush()).map_err(Failure::Output)?;
                return Err(error.into());
            }
        }
    }
    renderer.end(output).and_then(|()| output.flush()).map_err(Failure::Output)?;
    Ok((has_rows, renderer.count(), stream.done().cloned().unwrap_or_default()))
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn given_up() -> WireError {
    WireError::new(Code::Unknown, "gave up waiting: the statement may or may not have been executed")
        .hint("look whether its effect is there before you run it again")
}

/// The client's configuration for these options.
pub fn client_config(options: &Options) -> ClientConfig {
    let mut config = ClientConfig::new(options.hosts.clone());
    config.user.clone_from(&options.user);
    config.database.clone_from(&options.database);
    config.settings.clone_from(&options.settings);
    config.agent = concat!("quorate/", env!("CARGO_PKG_VERSION")).into();
    if let Some(timeout) = options.timeout {
        config.deadline = timeout;
        config.connect_timeout = timeout.min(CONNECT_TIMEOUT);
        config.reconnect_timeout = timeout.min(config.reconnect_timeout);
    }
    config
}

/// Tells on standard error where a stream's connection goes.
pub fn tell_moves(client: &mut Client, paint: Paint) {
    client.set_listener(Some(Arc::new(move |event: &Event| {
        if !matches!(event, Event::Waiting { .. }) {
            eprintln!("{}", paint.dim(&event.to_string()));
        }
    })));
}

fn listen(client: &mut Client, events: &Arc<Mutex<Events>>) {
    let events = events.clone();
    client.set_listener(Some(Arc::new(move |event: &Event| {
        let mut state = events.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = state.hear(event).filter(|_| !state.quiet) {
            eprintln!("{}", state.paint.dim(&text));
        }
    })));
}

/// Whether the locale is one of UTF-8.
fn speaks_unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    // Without any locale set most terminals of today still speak it.
    locale.is_none_or(|l| {
        let l = l.to_uppercase();
        l.contains("UTF-8") || l.contains("UTF8")
    })
}

/// Columns of the terminal.
pub fn terminal_width() -> Option<usize> {
    let size = crossterm::terminal::size().ok()?;
    (size.0 > 0).then_some(usize::from(size.0))
}

/// Whether to colour what goes to standard error.
pub fn colors() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    io::stderr().is_terminal() && !set("NO_COLOR") && std::env::var("TERM").map_or(true, |t| t != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_one_line_and_a_short_wait_none() {
        let mut events = Events::default();
        let node = quorate_shared::ids::NodeId::new;
        let lost = Event::Lost { node: node(1), address: "a:1".into(), reason: "reset".into() };
        assert_eq!(events.hear(&lost), None);
        assert_eq!(events.hear(&Event::Waiting { reason: "no leader".into() }), None);
        let moved = events.hear(&Event::Moved { node: node(2), address: "b:2".into() });
        assert_eq!(moved.as_deref(), Some("lost n1 (a:1): reset; moved to n2 (b:2)"));
        assert_eq!(events.moved, 1);
    }

    #[test]
    fn what_a_statement_did() {
        let ran = |has_rows, rows, tag: &str, written| Ran {
            has_rows,
            rows,
            done: Done { tag: tag.to_owned(), rows: written, ..Done::default() },
            elapsed: Duration::ZERO,
            interrupted: false,
        };
        assert_eq!(summary(&ran(true, 1, "SELECT", 1)), "(1 row)");
        assert_eq!(summary(&ran(true, 0, "SELECT", 0)), "(0 rows)");
        assert_eq!(summary(&ran(false, 0, "UPDATE", 0)), "UPDATE 0");
        assert_eq!(summary(&ran(false, 0, "CREATE TABLE", 0)), "CREATE TABLE");
        let mut old = ran(true, 2, "SELECT", 2);
        old.done.age_ms = Some(1500);
        assert_eq!(summary(&old), "(2 rows) as of 1.5 s ago");
        let shown = timing(Duration::from_micros(2100), Duration::from_micros(1300));
        assert_eq!(shown, "time: 2.1 ms (server 1.3 ms, network and shell 0.8 ms)");
    }
}
