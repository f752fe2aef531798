//! The line editor, on a thread of its own: it blocks on keys while the session's thread goes on (completion refreshes,
//! remarks appear above the prompt).
//!
//! Invariant: the editor never waits for the network; what it completes with was fetched before.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use rustyline::completion::{Completer, Pair};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::{Hinter, HistoryHinter};
use rustyline::history::{DefaultHistory, History, SearchDirection};
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{
    ColorMode, CompletionType, Config, Context, EditMode, Editor, Event, EventHandler, ExternalPrinter, Helper,
    KeyCode, KeyEvent, Modifiers,
};

use super::complete::{Known, complete};
use super::highlight::highlight;
use super::history;
use crate::command;
use crate::script::split::is_complete;

/// Prints above the prompt while a line is being edited.
pub type Printer = Box<dyn FnMut(String) + Send>;

/// What the editor is asked.
pub enum Ask {
    /// A line, beginning with this text.
    Line {
        /// The prompt without and with colours, of the same width.
        prompt: (String, String),
        /// Text to begin with.
        initial: Option<String>,
    },
    /// To remember a line.
    Remember(String),
    /// For the newest entries of the history, all if no number is given.
    History(Option<usize>),
}

/// What it answers.
pub enum Answer {
    /// It is ready; here is how to print above the prompt.
    Ready(Option<Printer>),
    /// A line.
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the terminal is gone.
    End,
    /// Entries of the history.
    History(Vec<String>),
    /// It cannot go on.
    Failed(String),
}

/// How to edit.
pub struct Settings {
    /// Colours may be used.
    pub color: bool,
    /// The keys of vi instead of those of Emacs.
    pub vi: bool,
    /// Where the history is kept.
    pub history: Option<PathBuf>,
    /// What completion knows.
    pub known: Arc<RwLock<Known>>,
}

/// The thread and the ways to it.
pub struct Handle {
    /// Questions.
    pub ask: Sender<Ask>,
    /// Answers.
    pub answers: tokio::sync::mpsc::UnboundedReceiver<Answer>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Starts the thread.
    pub fn start(settings: Settings) -> std::io::Result<Handle> {
        let (ask, asked) = channel();
        let (answer, answers) = tokio::sync::mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("editor".into()).spawn(move || {
            if let Err(why) = edit(settings, &asked, &answer) {
                // Nobody may listen any more.
                let _ = answer.send(Answer::Failed(why.to_string()));
            }
        })?;
        Ok(Handle { ask, answers, thread: Some(thread) })
    }

    /// Waits until the thread, which must not be reading a line, has ended.
    pub fn close(mut self) {
        drop(self.ask);
        if let Some(thread) = self.thread.take() {
            // It has no panic to tell of that it has not told itself.
            let _ = thread.join();
        }
    }
}

type Answers = tokio::sync::mpsc::UnboundedSender<Answer>;

fn edit(settings: Settings, asked: &Receiver<Ask>, answers: &Answers) -> rustyline::Result<()> {
    let config = Config::builder()
        .max_history_size(history::ENTRIES_MAX)?
        .history_ignore_dups(true)?
        .completion_type(CompletionType::List)
        .completion_prompt_limit(100)
        .completion_show_all_if_ambiguous(true)
        .edit_mode(if settings.vi { EditMode::Vi } else { EditMode::Emacs })
        .color_mode(if settings.color { ColorMode::Enabled } else { ColorMode::Disabled })
        .auto_add_history(false)
        .bracketed_paste(true)
        .build();
    let mut editor: Editor<SqlHelper, DefaultHistory> = Editor::with_config(config)?;
    editor.set_helper(Some(SqlHelper { known: settings.known, hinter: HistoryHinter::new() }));
    editor.set_tab_stop(4);
    // Alt-Enter begins a new line in a statement that could already run.
    let newline = EventHandler::Simple(rustyline::Cmd::Newline);
    editor.bind_sequence(Event::from(KeyEvent(KeyCode::Enter, Modifiers::ALT)), newline);
    let mut file = settings.history;
    if let Some(path) = &file
        && let Err(e) = history::prepare(path).map_err(ReadlineError::from).and_then(|()| editor.load_history(path))
    {
        eprintln!("warning: no history is kept: {}: {e}", path.display());
        file = None;
    }
    let printer = editor.create_external_printer().ok().map(|mut printer| -> Printer {
        Box::new(move |text| {
            // A terminal that is gone is noticed elsewhere.
            let _ = printer.print(text);
        })
    });
    let _ = answers.send(Answer::Ready(printer));
    for ask in asked {
        let answer = match ask {
            Ask::Line { prompt, initial } => {
                let line = match initial {
                    Some(text) => editor.readline_with_initial(&prompt, (&text, "")),
                    None => editor.readline(&prompt),
                };
                match line {
                    Ok(line) => Answer::Line(line),
                    Err(ReadlineError::Interrupted) => Answer::Interrupted,
                    Err(ReadlineError::Eof) => Answer::End,
                    Err(e) => Answer::Failed(e.to_string()),
                }
            }
            Ask::Remember(line) => {
                if history::keeps(&line)
                    && editor.add_history_entry(line.trim_end()).unwrap_or(false)
                    && let Some(path) = &file
                    && let Err(e) = editor.append_history(path)
                {
                    eprintln!("warning: no history is kept: {}: {e}", path.display());
                    file = None;
                }
                continue;
            }
            Ask::History(count) => Answer::History(entries(&editor, count)),
        };
        if answers.send(answer).is_err() {
            break;
        }
    }
    Ok(())
}

fn entries(editor: &Editor<SqlHelper, DefaultHistory>, count: Option<usize>) -> Vec<String> {
    let history = editor.history();
    let from = count.map_or(0, |c| history.len().saturating_sub(c));
    (from..history.len())
        .filter_map(|at| history.get(at, SearchDirection::Forward).ok().flatten())
        .map(|found| found.entry.into_owned())
        .collect()
}

/// Everything the editor asks about a line; pure functions do the work.
struct SqlHelper {
    known: Arc<RwLock<Known>>,
    hinter: HistoryHinter,
}

impl Helper for SqlHelper {}

impl Completer for SqlHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let (start, candidates) = complete(line, pos, &known);
        Ok((start, candidates.into_iter().map(|c| Pair { display: c.clone(), replacement: c }).collect()))
    }
}

impl Hinter for SqlHelper {
    type Hint = String;

    fn hint(&self, line: &str, pos: usize, context: &Context<'_>) -> Option<String> {
        // A hint of several lines would make the prompt jump.
        self.hinter.hint(line, pos, context).filter(|h| !h.contains('\n') && !line.is_empty())
    }
}

impl Highlighter for SqlHelper {
    fn highlight<'l>(&self, line: &'l str, pos: usize) -> Cow<'l, str> {
        Cow::Owned(highlight(line, pos))
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(format!("\x1b[2m{hint}\x1b[0m"))
    }

    fn highlight_char(&self, _: &str, _: usize, _: CmdKind) -> bool {
        true
    }
}

impl Validator for SqlHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let complete = is_complete(text) || command::bare(text).is_some();
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}
