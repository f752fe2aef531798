//! LIKE and ILIKE: `%` is any run of characters, `_` one, `\\` takes the next character as it is.

use super::value_error;
use crate::error::Rejected;

/// One element of a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Token {
    Any,
    One,
    Char(char),
}

/// Whether a text matches a pattern; `fold` ignores case. Takes time proportional to the product of the lengths at worst.
pub fn like(text: &str, pattern: &str, fold: bool) -> Result<bool, Rejected> {
    let tokens = tokens(&folded(pattern, fold))?;
    let text: Vec<char> = folded(text, fold).chars().collect();
    let (mut t, mut p) = (0, 0);
    // Where the last `%` was, and from where in the text it has to swallow one character more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match tokens.get(p) {
            Some(Token::Any) => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(Token::One) => (t, p) = (t + 1, p + 1),
            Some(Token::Char(c)) if *c == text[t] => (t, p) = (t + 1, p + 1),
            _ => match retry {
                Some((after, from)) => {
                    retry = Some((after, from + 1));
                    (t, p) = (from + 1, after);
                }
                None => return Ok(false),
            },
        }
    }
    Ok(tokens[p..].iter().all(|token| *token == Token::Any))
}

fn folded(text: &str, fold: bool) -> std::borrow::Cow<'_, str> {
    if fold { text.to_lowercase().into() } else { text.into() }
}

fn tokens(pattern: &str) -> Result<Vec<Token>, Rejected> {
    let mut tokens = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '%' => Token::Any,
            '_' => Token::One,
            '\\' => match chars.next() {
                Some(c) => Token::Char(c),
                None => return Err(value_error("22025", "LIKE pattern must not end with escape character")),
            },
            c => Token::Char(c),
        });
    }
    Ok(tokens)
}
