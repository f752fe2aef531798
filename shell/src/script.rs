//! Running statements that nobody types: `-e`, `-f`, standard input, `\i`.
//!
//! A source is read in portions and cut into statements as it comes, so a dump of any size needs the memory of one
//! statement. The first failure ends the run (unless told to go on) and names its place in the source.
//!
//! Left out: anything about terminals.

pub mod split;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use quorate_shared::error::{Code, WireError};

use crate::args::Input;
use crate::command::run::{Flow, run};
use crate::command::{self, Command};
use crate::exit::Exit;
use crate::render::error::{Paint, Source, place_error, plain_error, statement_error};
use crate::session::{Failure, Session};
use split::{Piece, Place, Problem, SplitError, Splitter, Statement};

/// Bytes read at once.
const PORTION_BYTES: usize = 64 << 10;
/// Files that may include each other.
const INCLUDE_DEPTH_MAX: usize = 16;

/// Runs the inputs of a command line in their order.
pub async fn run_inputs(session: &mut Session, inputs: &[Input], keep_going: bool) -> Exit {
    let mut exit = Exit::Done;
    let texts = inputs.iter().filter(|i| matches!(i, Input::Text(_))).count();
    let mut number = 0;
    for input in inputs {
        let mut script = match input {
            Input::Text(text) => {
                number += 1;
                let name = if texts > 1 { format!("-e#{number}") } else { "-e".to_owned() };
                Script::new(Source::new(name), Reader::Text(Some(text.clone())))
            }
            Input::File(path) if path.as_os_str() == "-" => Script::new(Source::new("<stdin>"), Reader::stdin()),
            Input::File(path) => match File::open(path) {
                Ok(file) => Script::new(Source::new(path.display().to_string()), Reader::File(file)),
                Err(e) => {
                    let error = WireError::new(Code::Invalid, format!("cannot read {}: {e}", path.display()));
                    eprint!("{}", plain_error(&error, session.display.paint));
                    exit = exit.worst(Exit::Failed);
                    if keep_going {
                        continue;
                    }
                    return exit;
                }
            },
        };
        script.keep_going = keep_going;
        exit = exit.worst(script.run(session).await);
        if script.stopped || (exit != Exit::Done && !keep_going) {
            return exit;
        }
    }
    exit
}

/// `\i FILE`: a failure inside has been told when this returns it.
pub async fn include(session: &mut Session, path: &Path, depth: usize) -> Result<(), Failure> {
    let refused = |why: String| Failure::Statement(WireError::new(Code::Invalid, why));
    if depth >= INCLUDE_DEPTH_MAX {
        return Err(refused(format!("files include each other more than {INCLUDE_DEPTH_MAX} deep")));
    }
    let file = File::open(path).map_err(|e| refused(format!("cannot read {}: {e}", path.display())))?;
    let mut script = Script::new(Source::new(path.display().to_string()), Reader::File(file));
    script.depth = depth + 1;
    match script.run(session).await {
        Exit::Done => Ok(()),
        Exit::Unknown => Err(Failure::Statement(WireError::new(
            Code::Unknown,
            format!("{} stopped at a statement with an unknown outcome", path.display()),
        ))),
        Exit::Interrupted => Err(Failure::Interrupted(WireError::new(Code::Invalid, "interrupted"))),
        _ => Err(refused(format!("{} stopped at an error", path.display()))),
    }
}

/// One source being run.
struct Script {
    source: Source,
    reader: Reader,
    splitter: Splitter,
    last: Option<Statement>,
    keep_going: bool,
    depth: usize,
    /// `\q`, or something after which going on makes no sense.
    stopped: bool,
}

impl Script {
    fn new(source: Source, reader: Reader) -> Script {
        let splitter = Splitter::default();
        Script { source, reader, splitter, last: None, keep_going: false, depth: 0, stopped: false }
    }

    async fn run(&mut self, session: &mut Session) -> Exit {
        let mut exit = Exit::Done;
        loop {
            while let Some(piece) = self.splitter.next_piece() {
                exit = exit.worst(self.piece(session, piece).await);
                if self.stopped || (exit != Exit::Done && !self.keep_going) {
                    return exit;
                }
            }
            let portion = tokio::select! {
                portion = self.reader.next() => portion,
                () = session.interrupted() => {
                    self.stopped = true;
                    return Exit::Interrupted;
                }
            };
            match portion {
                Ok(Some(bytes)) => self.splitter.push(&bytes),
                Ok(None) if self.reader.is_done() => return exit,
                Ok(None) => {
                    self.reader.close();
                    self.splitter.finish();
                }
                Err(e) => {
                    let error = WireError::new(Code::Invalid, format!("cannot read {}: {e}", self.source.name));
                    eprint!("{}", plain_error(&error, session.display.paint));
                    self.stopped = true;
                    return exit.worst(Exit::Failed);
                }
            }
        }
    }

    async fn piece(&mut self, session: &mut Session, piece: Result<Piece, SplitError>) -> Exit {
        let paint = session.display.paint;
        match piece {
            Ok(Piece::Statement(statement)) => {
                let style = session.style();
                let exit = match session.execute(&statement.text, style).await {
                    Ok(ran) if ran.interrupted => {
                        self.stopped = true;
                        Exit::Interrupted
                    }
                    result => self.outcome(result.map(|_| ()), &statement, paint),
                };
                self.last = Some(statement);
                exit
            }
            Ok(Piece::Command { text, place, before }) => {
                let typed = before.clone();
                if before.is_some() {
                    self.last = before;
                }
                let line = Statement { text, place };
                match command::parse(&line.text) {
                    Err(why) => self.outcome(Err(Failure::Statement(WireError::new(Code::Invalid, why))), &line, paint),
                    Ok(command) => self.command(session, command, &line, typed.as_ref(), paint).await,
                }
            }
            Err(error) => {
                let hint = match error.problem {
                    Problem::TooLong => "cut it into several statements",
                    Problem::NotUtf8 => "convert the text to UTF-8, e.g. with iconv",
                    Problem::Unfinished(_) => "the text may have been cut off; nothing of this statement was executed",
                };
                eprint!("{}", place_error(&self.source, error.place, &error.to_string(), paint));
                eprintln!("{} {hint}", paint.help("hint:"));
                Exit::Failed
            }
        }
    }

    async fn command(
        &mut self,
        session: &mut Session,
        command: Command,
        line: &Statement,
        typed: Option<&Statement>,
        paint: Paint,
    ) -> Exit {
        // A statement before a command that does not run it would be lost without a word.
        let runs = matches!(command, Command::Go { .. } | Command::Watch { .. } | Command::Print | Command::Reset);
        if let Some(typed) = typed.filter(|_| !runs) {
            let error = WireError::new(Code::Invalid, "a statement before this command is not ended by ;");
            return self.outcome(Err(Failure::Statement(error)), typed, paint);
        }
        let at = typed.or(self.last.as_ref()).filter(|_| runs).cloned().unwrap_or_else(|| line.clone());
        match run(session, command, &mut self.last, self.depth).await {
            Ok(Flow::Quit) => {
                self.stopped = true;
                Exit::Done
            }
            Ok(_) => Exit::Done,
            Err(failure) => self.outcome(Err(failure), &at, paint),
        }
    }

    /// Tells a failure; how a run ends with it.
    fn outcome(&mut self, result: Result<(), Failure>, statement: &Statement, paint: Paint) -> Exit {
        let Err(failure) = result else { return Exit::Done };
        let exit = failure.exit();
        // Without a connection or with a user who wants to leave, going on makes no sense.
        self.stopped |= matches!(failure, Failure::NoConnection(_) | Failure::Interrupted(_) | Failure::Output(_));
        eprint!("{}", statement_error(Some(&self.source), statement, &failure.into_wire(), paint));
        exit
    }
}

/// Where the bytes of a source come from.
enum Reader {
    Text(Option<String>),
    File(File),
    /// A thread reads, because standard input may block for ever.
    Stdin(tokio::sync::mpsc::Receiver<io::Result<Vec<u8>>>),
    Done,
}

impl Reader {
    fn stdin() -> Reader {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        std::thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            loop {
                let portion = read_portion(&mut stdin);
                let end = !matches!(&portion, Ok(bytes) if !bytes.is_empty());
                if sender.blocking_send(portion).is_err() || end {
                    return;
                }
            }
        });
        Reader::Stdin(receiver)
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let bytes = match self {
            Reader::Text(text) => return Ok(text.take().map(String::into_bytes)),
            Reader::File(file) => read_portion(file)?,
            Reader::Stdin(receiver) => receiver.recv().await.unwrap_or_else(|| Ok(Vec::new()))?,
            Reader::Done => Vec::new(),
        };
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn close(&mut self) {
        *self = Reader::Done;
    }

    fn is_done(&self) -> bool {
        matches!(self, Reader::Done)
    }
}

fn read_portion(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PORTION_BYTES];
    loop {
        match from.read(&mut bytes) {
            Ok(count) => {
                bytes.truncate(count);
                return Ok(bytes);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The statements typed at a prompt, which has no source to name.
pub fn typed(text: &str) -> Vec<Result<Piece, SplitError>> {
    Splitter::split(text)
}

/// Where a statement typed at a prompt begins.
pub const TYPED: Place = Place::START;
