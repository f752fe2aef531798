//! The line as it is typed, in colours: keywords, strings, numbers, comments, brackets that match nothing in red.
//!
//! Pure, and on the tokenizer's own tokens. Invariant: without its escapes the result is the line, byte for byte.

use sqlparser::dialect::{Dialect, MySqlDialect, PostgreSqlDialect};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace};

use crate::command;

/// Longer lines are shown as they are: they were pasted, and each key would cost a walk over them.
const HIGHLIGHT_BYTES_MAX: usize = 20_000;

const KEYWORD: &str = "1;34";
const STRING: &str = "32";
const NUMBER: &str = "36";
const COMMENT: &str = "2";
const WRONG: &str = "1;31";
const MATCHING: &str = "1;4";
const COMMAND: &str = "1;35";

/// The tokens of a text that may be unfinished, and the byte where the tokenizer gave up.
pub fn tokens(text: &str) -> (Vec<(Token, usize, usize)>, Option<usize>) {
    let dialect: &dyn Dialect = if text.contains('`') { &MySqlDialect {} } else { &PostgreSqlDialect {} };
    let mut found: Vec<TokenWithSpan> = Vec::new();
    let failed =
        Tokenizer::new(dialect, text).with_unescape(false).tokenize_with_location_into_buf(&mut found).is_err();
    let mut offsets = Offsets::new(text);
    let tokens: Vec<(Token, usize, usize)> = found
        .into_iter()
        .map(|t| {
            let from = offsets.of(t.span.start.line, t.span.start.column);
            (t.token, from, offsets.of(t.span.end.line, t.span.end.column))
        })
        .collect();
    let end = tokens.last().map_or(0, |(_, _, to)| *to);
    (tokens, failed.then_some(end))
}

/// Turns growing (line, column) pairs into byte offsets.
struct Offsets<'a> {
    text: &'a str,
    at: usize,
    line: u64,
    column: u64,
}

impl<'a> Offsets<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1, column: 1 }
    }

    fn of(&mut self, line: u64, column: u64) -> usize {
        let rest = self.text.get(self.at..).unwrap_or_default();
        for c in rest.chars() {
            if (self.line, self.column) >= (line, column) {
                break;
            }
            self.at += c.len_utf8();
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.at
    }
}

/// The line with escapes in it; `cursor` is a byte offset.
pub fn highlight(line: &str, cursor: usize) -> String {
    if line.len() > HIGHLIGHT_BYTES_MAX {
        return line.to_owned();
    }
    if line.trim_start().starts_with('\\') {
        return highlight_command(line);
    }
    let (tokens, failed) = tokens(line);
    let brackets = brackets(&tokens, cursor);
    let mut out = String::with_capacity(line.len() * 2);
    let mut done = 0;
    for (token, from, to) in &tokens {
        // Whatever the tokens leave out is shown as it is.
        out.push_str(line.get(done..*from).unwrap_or_default());
        let text = line.get(*from..*to).unwrap_or_default();
        let code = brackets.iter().find(|(at, _)| at == from).map(|(_, code)| *code).or_else(|| color(token));
        paint(&mut out, text, code);
        done = done.max(*to);
    }
    let rest = line.get(done..).unwrap_or_default();
    // What cannot be read to its end is a string or comment that is still being typed.
    paint(&mut out, rest, failed.map(|_| if rest.trim_start().starts_with("/*") { COMMENT } else { STRING }));
    out
}

fn highlight_command(line: &str) -> String {
    let start = line.find('\\').unwrap_or(0);
    let end = line[start..].find(char::is_whitespace).map_or(line.len(), |at| start + at);
    let name = line.get(start + 1..end).unwrap_or_default().trim_end_matches(';');
    let known = command::find(name).is_some() || name.starts_with('!');
    let begun = command::names().any(|n| n.starts_with(name));
    let mut out = line[..start].to_owned();
    paint(
        &mut out,
        &line[start..end],
        if known {
            Some(COMMAND)
        } else if begun {
            None
        } else {
            Some(WRONG)
        },
    );
    out.push_str(&line[end..]);
    out
}

fn paint(out: &mut String, text: &str, code: Option<&str>) {
    match code {
        Some(code) if !text.is_empty() => {
            out.push_str("\x1b[");
            out.push_str(code);
            out.push('m');
            out.push_str(text);
            out.push_str("\x1b[0m");
        }
        _ => out.push_str(text),
    }
}

fn color(token: &Token) -> Option<&'static str> {
    Some(match token {
        Token::Word(word) if word.keyword != Keyword::NoKeyword && is_common(word.keyword) => KEYWORD,
        Token::Number(..) => NUMBER,
        Token::SingleQuotedString(_)
        | Token::DollarQuotedString(_)
        | Token::NationalStringLiteral(_)
        | Token::EscapedStringLiteral(_)
        | Token::UnicodeStringLiteral(_)
        | Token::SingleQuotedByteStringLiteral(_)
        | Token::HexStringLiteral(_) => STRING,
        Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)) => COMMENT,
        _ => return None,
    })
}

/// The tokenizer knows every word of every dialect; names like `name` or `value` are no keywords to people.
fn is_common(keyword: Keyword) -> bool {
    let word = format!("{keyword:?}");
    super::complete::KEYWORDS.iter().any(|k| k.split(' ').any(|w| w == word))
}

/// Brackets to mark: those that match nothing, and the pair at the cursor.
fn brackets(tokens: &[(Token, usize, usize)], cursor: usize) -> Vec<(usize, &'static str)> {
    let mut open: Vec<(usize, &Token)> = Vec::new();
    let mut marks = Vec::new();
    for (token, from, to) in tokens {
        let opener = match token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                open.push((*from, token));
                continue;
            }
            Token::SemiColon => {
                marks.extend(open.drain(..).map(|(at, _)| (at, WRONG)));
                continue;
            }
            Token::RParen => Token::LParen,
            Token::RBracket => Token::LBracket,
            Token::RBrace => Token::LBrace,
            _ => continue,
        };
        match open.pop_if(|(_, o)| **o == opener) {
            Some((at, _)) => {
                let beside = |at: usize, to: usize| cursor == at || cursor == to;
                if beside(at, at + 1) || beside(*from, *to) {
                    marks.extend([(at, MATCHING), (*from, MATCHING)]);
                }
            }
            None => marks.push((*from, WRONG)),
        }
    }
    // A bracket that is still open is no mistake while the cursor stands behind everything; elsewhere it is.
    marks.extend(open.into_iter().map(|(at, _)| (at, WRONG)));
    marks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(line: &str, cursor: usize) -> String {
        highlight(line, cursor).replace("\x1b[0m", "}").replace("\x1b[", "{")
    }

    #[test]
    fn words_have_colours() {
        assert_eq!(shown("select name, 1.5 from t -- x", 99), "{1;34mselect} name, {36m1.5} {1;34mfrom} t {2m-- x}");
        assert_eq!(shown("select 'a''b'", 0), "{1;34mselect} {32m'a''b'}");
        assert_eq!(shown("select 'ab", 0), "{1;34mselect} {32m'ab}");
        assert_eq!(shown("select /* ab", 0), "{1;34mselect} {2m/* ab}");
        assert_eq!(shown("\\timing on", 0), "{1;35m\\timing} on");
        assert_eq!(shown("\\zebra", 0), "{1;31m\\zebra}");
    }

    #[test]
    fn brackets_are_marked() {
        assert_eq!(shown("(1", 2), "{1;31m(}{36m1}");
        assert_eq!(shown("1)", 0), "{36m1}{1;31m)}");
        assert_eq!(shown("(a)", 3), "{1;4m(}a{1;4m)}");
        assert_eq!(shown("(a) b", 5), "(a) b");
        assert_eq!(shown("(a]", 9), "{1;31m(}a{1;31m]}");
    }

    fn bare(text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("\x1b[") {
            out.push_str(before);
            rest = after.split_once('m').map_or("", |(_, a)| a);
        }
        out + rest
    }

    proptest! {
        #[test]
        fn only_escapes_are_added(line in "[a-z0-9 '\"()`;$/*\\n\\\\ä漢-]{0,60}", cursor in 0_usize..60) {
            prop_assert_eq!(bare(&highlight(&line, cursor)), line);
        }
    }
}
