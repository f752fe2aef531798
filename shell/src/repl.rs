//! The line shell: a prompt, an editor, statements and commands until the user leaves.
//!
//! The session's thread runs statements and waits; the editor has its own ([`editor`]); knowledge for completion and
//! prompt comes over a second connection ([`background`]).
//!
//! Invariants: Ctrl-C never leaves the shell; Ctrl-D on an empty line does; the terminal is left as it was found, also
//! on SIGTERM and SIGHUP; a failed statement stops the statements entered with it, not the shell.

pub mod background;
pub mod complete;
pub mod editor;
pub mod highlight;
pub mod history;

use std::sync::{Arc, PoisonError, RwLock};

use quorate_shared::error::{Code, WireError};
use quorate_shared::limits::PORT_DEFAULT;
use quorate_shared::status::NodeKind;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::command::run::{Flow, connection_info, run as run_command};
use crate::command::{self, Command};
use crate::render::error::{Paint, plain_error, statement_error};
use crate::render::wrap;
use crate::script::split::{Piece, Splitter, Statement};
use crate::session::{Failure, Session, client_config, terminal_width};
use background::{News, Wanted};
use complete::Known;
use editor::{Answer, Ask, Handle, Printer, Settings};

/// Exit codes of signals are 128 and their number.
const HANGUP: u8 = 129;
const TERMINATED: u8 = 143;

/// Runs the shell on the terminal; the exit code.
pub async fn run(session: &mut Session) -> u8 {
    let known = Arc::new(RwLock::new(Known::default()));
    let settings = Settings {
        color: session.display.paint.color,
        vi: session.options().file.vi,
        history: history::path(&session.options().file),
        known: known.clone(),
    };
    let terminal = TerminalState::take();
    let signals = (signal(SignalKind::hangup()), signal(SignalKind::terminate()));
    let (editor, signals) = match (Handle::start(settings), signals) {
        (Ok(editor), (Ok(hangup), Ok(terminate))) => (editor, (hangup, terminate)),
        (Err(e), _) | (_, (Err(e), _) | (_, Err(e))) => {
            eprintln!("error: cannot start the line editor: {e}");
            return 1;
        }
    };
    let (wanted, wants) = watch::channel(wanted(session, 0));
    let (tell, news) = mpsc::unbounded_channel();
    let fetching = tokio::spawn(background::fetch(wants, known.clone(), tell));
    let hello = connection_info(session);
    let hello = format!("quorate {}; {hello}", env!("CARGO_PKG_VERSION"));
    session.display.say(&wrap(&hello, terminal_width().unwrap_or(usize::MAX)).join("\n"));
    session.display.say("\\? lists the commands, \\q leaves");
    let mut shell = Shell {
        session,
        editor,
        known,
        wanted,
        news,
        signals,
        last: None,
        initial: None,
        master: None,
        printer: None,
        generation: 0,
        moves: 0,
    };
    let ended = shell.serve().await;
    fetching.abort();
    let Shell { editor, .. } = shell;
    match ended {
        End::Left => editor.close(),
        // The editor sits in a read that nothing ends: put the terminal right and let the process go.
        End::Signal(_) => terminal.restore(),
    }
    match ended {
        End::Left => 0,
        End::Signal(code) => code,
    }
}

fn wanted(session: &mut Session, generation: u64) -> Wanted {
    Wanted { config: Arc::new(client_config(session.options())), generation, catalog: session.catalog }
}

/// Why the shell ends.
#[derive(Clone, Copy)]
enum End {
    Left,
    Signal(u8),
}

/// A failure that the user has been told of.
struct Told;

struct Shell<'a> {
    session: &'a mut Session,
    editor: Handle,
    known: Arc<RwLock<Known>>,
    wanted: watch::Sender<Wanted>,
    news: mpsc::UnboundedReceiver<News>,
    signals: (Signal, Signal),
    last: Option<Statement>,
    /// What the next line begins with.
    initial: Option<String>,
    /// Who was master when last looked.
    master: Option<String>,
    printer: Option<Printer>,
    generation: u64,
    moves: u64,
}

impl Shell<'_> {
    async fn serve(&mut self) -> End {
        loop {
            self.share();
            let ask = Ask::Line { prompt: self.prompt(), initial: self.initial.take() };
            if self.editor.ask.send(ask).is_err() {
                return End::Left;
            }
            let line = match self.answer().await {
                Ok(Answer::Line(line)) => line,
                Ok(Answer::Interrupted) => {
                    self.session.display.say("Ctrl-D or \\q leaves");
                    continue;
                }
                Ok(Answer::Failed(why)) => {
                    eprintln!("error: the line editor: {why}");
                    return End::Left;
                }
                Ok(_) => return End::Left,
                Err(code) => return End::Signal(code),
            };
            if line.trim().is_empty() {
                continue;
            }
            // The editor may be gone; the next question finds out.
            let _ = self.editor.ask.send(Ask::Remember(line.clone()));
            if !self.line(&line).await {
                return End::Left;
            }
        }
    }

    /// The editor's answer; meanwhile news are told. A signal gives an exit code.
    async fn answer(&mut self) -> Result<Answer, u8> {
        loop {
            tokio::select! {
                answer = self.editor.answers.recv() => match answer {
                    Some(Answer::Ready(printer)) => self.printer = printer,
                    Some(answer) => return Ok(answer),
                    None => return Ok(Answer::End),
                },
                Some(News::Master(master)) = self.news.recv() => self.hear(master),
                _ = self.signals.0.recv() => return Err(HANGUP),
                _ = self.signals.1.recv() => return Err(TERMINATED),
            }
        }
    }

    /// Somebody else is master now.
    fn hear(&mut self, master: Option<String>) {
        let first = self.master.is_none();
        if self.master != master && !first {
            let text = match &master {
                Some(node) => format!("the master is now {node}\n"),
                None => "no master is known now\n".to_owned(),
            };
            match &mut self.printer {
                Some(print) => print(text),
                None => self.session.display.say(text.trim_end()),
            }
        }
        // Without any known before, the prompt of the next line says it.
        self.master = master.or(if first { None } else { Some("nobody".to_owned()) });
    }

    /// Tells background and completion where the session stands.
    fn share(&mut self) {
        let database = self.session.database().to_owned();
        self.known.write().unwrap_or_else(PoisonError::into_inner).database = database;
        if std::mem::replace(&mut self.moves, self.session.moves()) != self.moves {
            // What was known of the master is older than what the new node said.
            self.master = None;
        }
        let now = wanted(self.session, self.generation);
        self.wanted.send_if_modified(|w| {
            let changed = w.catalog != now.catalog || w.generation != now.generation;
            if changed {
                *w = now;
            }
            changed
        });
    }

    fn prompt(&mut self) -> (String, String) {
        let role = self.role();
        let address = self.session.address();
        let host = address.strip_suffix(&format!(":{PORT_DEFAULT}")).unwrap_or(&address).to_owned();
        let user = self.session.options().user.clone();
        prompt(&user, &host, role, self.session.database(), self.session.display.paint)
    }

    /// The role of the session's node; background's knowledge is newer than the session's.
    fn role(&mut self) -> &'static str {
        let role = self.session.role();
        let Some(welcome) = self.session.client().welcome() else { return role };
        match &self.master {
            Some(master) if role != "?" && welcome.kind == NodeKind::Voter => {
                if *master == welcome.node.to_string() {
                    "master"
                } else {
                    "voter"
                }
            }
            _ => role,
        }
    }

    /// Runs what was entered; false to leave.
    async fn line(&mut self, line: &str) -> bool {
        if let Some(command) = command::bare(line) {
            return self.command(command, None).await.unwrap_or(true);
        }
        for piece in Splitter::split(line) {
            let paint = self.session.display.paint;
            let result = match piece {
                Ok(Piece::Statement(statement)) => {
                    let style = self.session.style();
                    let result = self.session.execute(&statement.text, style).await.map(|_| true);
                    self.last = Some(statement.clone());
                    result.map_err(|failure| self.tell(failure, Some(&statement)))
                }
                Ok(Piece::Command { text, before, .. }) => {
                    if before.is_some() {
                        self.last = before;
                    }
                    match command::parse(&text) {
                        Ok(command) => self.command(command, self.last.clone()).await,
                        Err(why) => Err(self.tell(Failure::Statement(WireError::new(Code::Invalid, why)), None)),
                    }
                }
                Err(error) => {
                    eprint!("{}", plain_error(&WireError::new(Code::Invalid, error.to_string()), paint));
                    Err(Told)
                }
            };
            match result {
                Ok(true) => {}
                Ok(false) => return false,
                // What was entered behind it may depend on it.
                Err(Told) => return true,
            }
        }
        true
    }

    async fn command(&mut self, command: Command, at: Option<Statement>) -> Result<bool, Told> {
        let goes = matches!(command, Command::Go { .. } | Command::Watch { .. });
        let connects = matches!(command, Command::Connect(_));
        let before = self.session.options().clone();
        let flow = run_command(self.session, command, &mut self.last, 0).await;
        if connects && *self.session.options() != before {
            self.generation += 1;
            self.master = None;
        }
        match flow {
            Ok(Flow::Continue) => Ok(true),
            Ok(Flow::Quit) => Ok(false),
            Ok(Flow::Edit(text)) => {
                self.initial = Some(text);
                Ok(true)
            }
            Ok(Flow::History(count)) => {
                // Without an editor there is no history, and the next question finds out.
                let _ = self.editor.ask.send(Ask::History(count));
                if let Ok(Answer::History(entries)) = self.answer().await {
                    let text: String = entries.iter().map(|e| format!("{e}\n")).collect();
                    let written = self.session.write_text(&text).map_err(Failure::Output);
                    written.map_err(|failure| self.tell(failure, None))?;
                }
                Ok(true)
            }
            Err(failure) => Err(self.tell(failure, at.as_ref().filter(|_| goes))),
        }
    }

    /// Tells a failure; what was entered behind it is not run.
    fn tell(&mut self, failure: Failure, statement: Option<&Statement>) -> Told {
        let paint = self.session.display.paint;
        let lost = matches!(failure, Failure::NoConnection(_));
        let error = failure.into_wire();
        match statement {
            Some(statement) => eprint!("{}", statement_error(None, statement, &error, paint)),
            None => eprint!("{}", plain_error(&error, paint)),
        }
        if lost {
            self.session.display.say("the next statement tries to connect again");
        }
        Told
    }
}

/// `user@host[role]:database> ` without and with colours.
fn prompt(user: &str, host: &str, role: &str, database: &str, paint: Paint) -> (String, String) {
    let plain = format!("{user}@{host}[{role}]:{database}> ");
    if !paint.color {
        return (plain.clone(), plain);
    }
    let code = match role {
        "master" => "32",
        "voter" => "36",
        "replica" => "33",
        _ => "31",
    };
    (plain, format!("{user}@{host}[\x1b[{code}m{role}\x1b[0m]:\x1b[1m{database}\x1b[0m> "))
}

/// The terminal as it was found.
struct TerminalState(Option<Termios>);

impl TerminalState {
    fn take() -> TerminalState {
        TerminalState(tcgetattr(std::io::stdin()).ok())
    }

    fn restore(&self) {
        if let Some(state) = &self.0 {
            // The terminal may be gone, as after a hangup.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, state);
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_prompts_have_the_same_width() {
        let (plain, styled) = prompt("ann", "db1", "master", "shop", Paint { color: true });
        assert_eq!(plain, "ann@db1[master]:shop> ");
        assert_eq!(styled.replace("\x1b[32m", "").replace("\x1b[1m", "").replace("\x1b[0m", ""), plain);
    }
}
