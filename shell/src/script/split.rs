//! Cuts a stream of bytes into statements and backslash commands, in constant memory per statement.
//!
//! A statement ends at a `;` outside of strings, quoted names, comments and dollar quotes, or at a backslash command.
//! The rules are those of the SQL tokenizer the server uses (a test holds the two together): PostgreSQL's, until a
//! backtick shows that the statement is MySQL's (then a backslash escapes inside quotes, `#` begins a comment, comments
//! do not nest and `$` is nothing special). The tokenizer itself is not used to cut because it needs the whole text at
//! once, as a list of tokens many times its size.
//!
//! Invariants: fed the same bytes in any portions, the pieces are the same; what is kept is never more than one
//! statement of [`STATEMENT_BYTES_MAX`] and one portion; a place is where the text really stands in its source.

use std::fmt;

use quorate_shared::limits::STATEMENT_BYTES_MAX;

/// Where something stands in its source; line and column (in characters) count from 1, the offset (in bytes) from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// Bytes before it.
    pub offset: u64,
}

impl Place {
    /// The beginning of a source.
    pub const START: Place = Place { line: 1, column: 1, offset: 0 };

    /// The place `chars` characters further on in `text`, which begins here.
    #[must_use]
    pub fn after(mut self, text: &str, chars: usize) -> Place {
        for c in text.chars().take(chars) {
            self.advance(c);
        }
        self
    }

    fn advance(&mut self, c: char) {
        self.offset += c.len_utf8() as u64;
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
    }

    fn advance_byte(&mut self, byte: u8) {
        self.offset += 1;
        if byte == b'\n' {
            self.line += 1;
            self.column = 1;
        } else if byte & 0xc0 != 0x80 {
            // Continuation bytes of UTF-8 are no characters of their own.
            self.column += 1;
        }
    }
}

/// A statement without its terminator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// Its text, from its first word on.
    pub text: String,
    /// Where the text begins.
    pub place: Place,
}

/// What a source is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// A statement, ended by `;` or the end of the source.
    Statement(Statement),
    /// A backslash command, up to the end of its line.
    Command {
        /// From the backslash on.
        text: String,
        /// Where the backslash stands.
        place: Place,
        /// The unfinished statement before it (`select 1 \gx`).
        before: Option<Statement>,
    },
}

/// Why a piece cannot be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Longer than [`STATEMENT_BYTES_MAX`]; it has been skipped.
    TooLong,
    /// Not UTF-8; the place is that of the first bad byte.
    NotUtf8,
    /// The source ended inside something; the place is where that began.
    Unfinished(Open),
}

/// What can be left open at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// `'...`
    String,
    /// `"...` or a backtick.
    Name,
    /// `/* ...`
    Comment,
    /// `$tag$ ...`
    DollarQuote,
    /// `(...`
    Bracket,
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Open::String => "string",
            Open::Name => "quoted name",
            Open::Comment => "comment",
            Open::DollarQuote => "dollar-quoted string",
            Open::Bracket => "bracket",
        })
    }
}

/// A piece that cannot be run, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SplitError {
    /// Why.
    pub problem: Problem,
    /// Where.
    pub place: Place,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Problem::TooLong => write!(f, "the statement is longer than {STATEMENT_BYTES_MAX} bytes"),
            Problem::NotUtf8 => write!(f, "the text is not UTF-8 at byte offset {}", self.place.offset),
            Problem::Unfinished(open) => write!(f, "unfinished statement: the {open} that begins here is not closed"),
        }
    }
}

/// Inside what the next byte stands.
#[derive(Clone, PartialEq, Eq, Debug)]
enum State {
    Plain,
    LineComment,
    BlockComment { depth: u32 },
    Quoted { quote: u8, escapes: bool },
    Dollar { tag: Vec<u8> },
    Command,
}

/// The splitter: [`push`](Splitter::push) bytes, take pieces with [`next_piece`](Splitter::next_piece).
#[derive(Debug)]
pub struct Splitter {
    /// Bytes from the beginning of the current piece (or of skippable text) on.
    buffer: Vec<u8>,
    /// Bytes of `buffer` already looked at.
    scanned: usize,
    state: State,
    /// The place of `buffer[scanned]`.
    here: Place,
    /// Where in `buffer` the current statement's first word begins, and its place.
    begin: Option<(usize, Place)>,
    /// Where the state that is not `Plain` began.
    opened: Place,
    /// Open round brackets.
    brackets: Vec<Place>,
    /// The statement has shown itself to be MySQL's.
    mysql: bool,
    /// The statement is too long and is being skipped.
    skipping: bool,
    /// Nothing more will be pushed.
    finished: bool,
}

/// Bracket places remembered; deeper ones are counted as these (the server refuses such nesting anyway).
const BRACKETS_MAX: usize = 10_000;

impl Default for Splitter {
    fn default() -> Self {
        Self::at(Place::START)
    }
}

impl Splitter {
    /// A splitter of a source that begins at `place`.
    pub fn at(place: Place) -> Self {
        Self {
            buffer: Vec::new(),
            scanned: 0,
            state: State::Plain,
            here: place,
            begin: None,
            opened: place,
            brackets: Vec::new(),
            mysql: false,
            skipping: false,
            finished: false,
        }
    }

    /// All pieces of a text that is there as a whole.
    pub fn split(text: &str) -> Vec<Result<Piece, SplitError>> {
        let mut splitter = Splitter::default();
        splitter.push(text.as_bytes());
        splitter.finish();
        std::iter::from_fn(|| splitter.next_piece()).collect()
    }

    /// More of the source.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// There is no more.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether a statement or comment has begun and not ended. Asked after [`next_piece`](Self::next_piece) gave `None`.
    pub fn is_inside(&self) -> bool {
        self.begin.is_some() || !matches!(self.state, State::Plain | State::LineComment)
    }

    /// The next complete piece; `None` when more bytes are needed, or when everything has been given out.
    pub fn next_piece(&mut self) -> Option<Result<Piece, SplitError>> {
        loop {
            let Some(&byte) = self.buffer.get(self.scanned) else {
                self.drop_skippable();
                return if self.finished { self.last_piece() } else { None };
            };
            let ended = match self.state {
                State::Plain => match self.plain(byte) {
                    Step::Take(bytes) => {
                        self.take(bytes);
                        false
                    }
                    Step::NeedMore => return None,
                    Step::End => true,
                },
                State::Command if byte == b'\n' => true,
                State::Command => {
                    self.take(1);
                    false
                }
                _ => {
                    if !self.inside(byte) {
                        return None;
                    }
                    false
                }
            };
            if ended && let Some(piece) = self.end_piece(1) {
                return Some(piece);
            }
            self.limit();
        }
    }

    /// Looks at a byte outside of everything.
    fn plain(&mut self, byte: u8) -> Step {
        let next = self.buffer.get(self.scanned + 1).copied();
        let known = next.is_some() || self.finished;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | 0x0c => return Step::Take(1),
            // A byte order mark at the very beginning is no part of the text.
            0xef | 0xbb | 0xbf if self.here.offset < 3 && self.begin.is_none() => return Step::Take(1),
            b'-' | b'/' if !known => return Step::NeedMore,
            b'-' if next == Some(b'-') => {
                if self.mysql {
                    // MySQL wants white space behind the dashes.
                    match self.buffer.get(self.scanned + 2) {
                        None if !self.finished => return Step::NeedMore,
                        Some(after) if !after.is_ascii_whitespace() => return self.word(2),
                        _ => {}
                    }
                }
                return self.enter(State::LineComment, 2);
            }
            b'#' if self.mysql => return self.enter(State::LineComment, 1),
            b'/' if next == Some(b'*') => {
                // `/*! ... */` is text that MySQL runs.
                match self.buffer.get(self.scanned + 2) {
                    None if !self.finished => return Step::NeedMore,
                    Some(b'!' | b'+') => self.begin_here(),
                    _ => {}
                }
                return self.enter(State::BlockComment { depth: 1 }, 2);
            }
            b';' => return Step::End,
            b'\\' => {
                self.opened = self.here;
                self.state = State::Command;
                return Step::Take(1);
            }
            _ => {}
        }
        self.begin_here();
        match byte {
            b'\'' => {
                let escapes = self.mysql || self.is_escape_string();
                self.enter(State::Quoted { quote: b'\'', escapes }, 1)
            }
            b'"' => self.enter(State::Quoted { quote: b'"', escapes: self.mysql }, 1),
            b'`' => {
                self.mysql = true;
                self.enter(State::Quoted { quote: b'`', escapes: false }, 1)
            }
            b'$' if !self.mysql && !ends_in_name(&self.buffer[..self.scanned]) => self.dollar(),
            b'(' => {
                if self.brackets.len() < BRACKETS_MAX {
                    self.brackets.push(self.here);
                }
                Step::Take(1)
            }
            b')' => {
                self.brackets.pop();
                Step::Take(1)
            }
            _ => Step::Take(1),
        }
    }

    fn word(&mut self, bytes: usize) -> Step {
        self.begin_here();
        Step::Take(bytes)
    }

    fn enter(&mut self, state: State, bytes: usize) -> Step {
        self.opened = self.here;
        self.state = state;
        Step::Take(bytes)
    }

    /// Whether the quote here belongs to `E'...'`.
    fn is_escape_string(&self) -> bool {
        let Some(at) = self.scanned.checked_sub(1) else { return false };
        matches!(self.buffer.get(at), Some(b'e' | b'E')) && !ends_in_name(&self.buffer[..at])
    }

    /// At a `$`: the beginning of a dollar quote, or of a placeholder.
    fn dollar(&mut self) -> Step {
        let rest = &self.buffer[self.scanned + 1..];
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_' || **b >= 0x80).count();
        match rest.get(length) {
            None if !self.finished => Step::NeedMore,
            Some(b'$') => {
                let mut tag = Vec::with_capacity(length + 2);
                tag.push(b'$');
                tag.extend_from_slice(&rest[..=length]);
                let bytes = tag.len();
                self.enter(State::Dollar { tag }, bytes)
            }
            _ => Step::Take(1 + length),
        }
    }

    /// Goes on inside a comment, quote or dollar quote; false when more bytes are needed to tell.
    fn inside(&mut self, byte: u8) -> bool {
        let next = self.buffer.get(self.scanned + 1).copied();
        let known = next.is_some() || self.finished;
        let mut bytes = 1;
        match &mut self.state {
            State::LineComment => {
                if byte == b'\n' {
                    self.state = State::Plain;
                }
            }
            State::BlockComment { depth } => match (byte, next) {
                (b'*' | b'/', None) if !known => return false,
                (b'*', Some(b'/')) => {
                    bytes = 2;
                    *depth -= 1;
                    if *depth == 0 {
                        self.state = State::Plain;
                    }
                }
                (b'/', Some(b'*')) if !self.mysql => {
                    bytes = 2;
                    *depth = depth.saturating_add(1);
                }
                _ => {}
            },
            State::Quoted { quote, escapes } => {
                let (quote, escapes) = (*quote, *escapes);
                if byte == b'\\' && escapes {
                    if !known {
                        return false;
                    }
                    bytes = 2;
                } else if byte == quote {
                    match next {
                        None if !known => return false,
                        // Doubled, it stands for itself.
                        Some(n) if n == quote => bytes = 2,
                        _ => self.state = State::Plain,
                    }
                }
            }
            State::Dollar { tag } => {
                if byte == b'$' {
                    let rest = &self.buffer[self.scanned..];
                    if rest.len() < tag.len() && !self.finished {
                        return false;
                    }
                    if rest.starts_with(tag) {
                        bytes = tag.len();
                        self.state = State::Plain;
                    }
                }
            }
            State::Plain | State::Command => {}
        }
        self.take(bytes.min(self.buffer.len() - self.scanned));
        true
    }

    fn begin_here(&mut self) {
        if self.begin.is_none() {
            self.begin = Some((self.scanned, self.here));
        }
    }

    fn take(&mut self, bytes: usize) {
        let end = (self.scanned + bytes).min(self.buffer.len());
        for at in self.scanned..end {
            self.here.advance_byte(self.buffer[at]);
        }
        self.scanned = end;
    }

    /// Forgets what has been looked at and is part of nothing.
    fn drop_skippable(&mut self) {
        if self.begin.is_none() && self.state != State::Command {
            self.buffer.drain(..self.scanned);
            self.scanned = 0;
        }
    }

    /// A statement past the limit is dropped as it comes; only its place stays.
    fn limit(&mut self) {
        if self.state == State::Command && self.here.offset - self.opened.offset > STATEMENT_BYTES_MAX as u64 {
            self.skipping = true;
            self.buffer.drain(..self.scanned);
            self.scanned = 0;
        }
        let Some((from, _)) = self.begin else {
            // Comments are part of nothing: do not let them pile up.
            if self.scanned > STATEMENT_BYTES_MAX {
                self.drop_skippable();
            }
            return;
        };
        if self.scanned - from > STATEMENT_BYTES_MAX {
            self.skipping = true;
            // The last two bytes stay: they decide what the next quote means.
            let keep = self.scanned - 2;
            self.buffer.drain(..keep);
            self.scanned = 2;
            self.begin = self.begin.map(|(_, place)| (0, place));
        }
    }

    /// Ends the piece at `scanned`; `None` if there was nothing but white space and comments.
    fn end_piece(&mut self, terminator: usize) -> Option<Result<Piece, SplitError>> {
        let end = self.scanned;
        let command = (self.state == State::Command).then(|| {
            let from = usize::try_from(self.here.offset - self.opened.offset).map_or(0, |len| end.saturating_sub(len));
            (from, self.opened)
        });
        self.take(terminator);
        let statement_end = command.map_or(end, |(from, _)| from);
        let statement = self.begin.take().map(|(from, place)| {
            if self.skipping {
                return Err(SplitError { problem: Problem::TooLong, place });
            }
            utf8(&self.buffer[from.min(statement_end)..statement_end], place)
                .map(|text| Statement { text: text.trim_end().to_owned(), place })
        });
        let skipping = self.skipping;
        let text = command.map(|(from, place)| match skipping {
            true => (Err(SplitError { problem: Problem::TooLong, place }), place),
            false => (utf8(&self.buffer[from..end], place).map(str::to_owned), place),
        });
        self.buffer.drain(..self.scanned);
        self.scanned = 0;
        self.state = State::Plain;
        self.brackets.clear();
        self.mysql = false;
        self.skipping = false;
        match (statement, text) {
            (Some(Err(e)), _) | (_, Some((Err(e), _))) => Some(Err(e)),
            (before, Some((Ok(text), place))) => {
                let text = text.trim_end().to_owned();
                Some(Ok(Piece::Command { text, place, before: before.and_then(Result::ok) }))
            }
            (Some(Ok(statement)), None) => Some(Ok(Piece::Statement(statement))),
            (None, None) => None,
        }
    }

    /// What is left at the end of the source.
    fn last_piece(&mut self) -> Option<Result<Piece, SplitError>> {
        let open = match self.state {
            State::Plain | State::LineComment => self.brackets.last().map(|place| (Open::Bracket, *place)),
            State::Command => None,
            State::BlockComment { .. } => Some((Open::Comment, self.opened)),
            State::Quoted { quote: b'\'', .. } => Some((Open::String, self.opened)),
            State::Quoted { .. } => Some((Open::Name, self.opened)),
            State::Dollar { .. } => Some((Open::DollarQuote, self.opened)),
        };
        let too_long = self.skipping;
        let piece = self.end_piece(0);
        match open {
            // Bytes that are no text are the earlier fault; so is the length.
            Some((open, place)) if !too_long && !matches!(piece, Some(Err(_))) => {
                Some(Err(SplitError { problem: Problem::Unfinished(open), place }))
            }
            _ => piece,
        }
    }
}

/// What a byte outside of everything means.
enum Step {
    /// Go over this many bytes.
    Take(usize),
    /// The next bytes decide.
    NeedMore,
    /// The statement ends here.
    End,
}

/// Whether the bytes end in a name (which may hold `$`, and is not the prefix of a string), not in a number.
fn ends_in_name(bytes: &[u8]) -> bool {
    // No number is longer; and looking further back each time would take for ever in a long word.
    const LOOK_BACK: usize = 64;
    let length = bytes.iter().rev().take(LOOK_BACK).take_while(|b| is_word_byte(**b)).count();
    if length == LOOK_BACK {
        return true;
    }
    let word = &bytes[bytes.len() - length..];
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let number = match word.iter().position(|b| matches!(b, b'e' | b'E')) {
        Some(e) => digits(&word[..e]) && digits(&word[e + 1..]),
        None => digits(word),
    };
    !word.is_empty() && !number
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}

/// The bytes as text, or the place of the first that is none.
fn utf8(bytes: &[u8], place: Place) -> Result<&str, SplitError> {
    std::str::from_utf8(bytes).map_err(|e| {
        let mut at = place;
        bytes[..e.valid_up_to()].iter().for_each(|b| at.advance_byte(*b));
        SplitError { problem: Problem::NotUtf8, place: at }
    })
}

/// Whether a text typed so far can be run, for the line editor.
pub fn is_complete(text: &str) -> bool {
    let mut splitter = Splitter::default();
    splitter.push(text.as_bytes());
    // A line's end is what Enter adds: it ends a backslash command.
    splitter.push(b"\n");
    while splitter.next_piece().is_some() {}
    !splitter.is_inside()
}

#[cfg(test)]
mod tests;
