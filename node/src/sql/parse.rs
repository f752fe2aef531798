//! From text to one parsed statement: tokenise, cap, fold, parse, restore spellings.
//!
//! Text is tokenised once per dialect tried. PostgreSQL's comes first; where a backtick is seen, or PostgreSQL's fails,
//! MySQL's is tried and taken if it succeeds. Identifiers are folded to lower case on their tokens, quoted ones too, so
//! that everything behind this module compares names exactly; [`Spelling`] gives the original back for labels and DDL.
//!
//! Invariants: a statement with more tokens, nesting or chained operators than the limits is refused before a parser
//! sees it, so that no statement can overflow a stack; a request holds exactly one statement; positions are offsets in
//! characters into the text the client sent.

use std::collections::HashMap;
use std::ops::ControlFlow;

use quorate_shared::error::WireError;
use quorate_shared::limits::{NESTING_MAX, OPERATORS_MAX, STATEMENT_BYTES_MAX, TOKENS_MAX};
use sqlparser::ast::{Expr, Ident, Query, Select, SelectItem, SetExpr, Statement, VisitMut, VisitorMut};
use sqlparser::dialect::{Dialect, MySqlDialect, PostgreSqlDialect};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::rewrite;

/// Whose habits the text has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// PostgreSQL, the default.
    Postgres,
    /// MySQL: backticks, `AUTO_INCREMENT`, `ENGINE=`, backslash escapes.
    MySql,
}

/// The original spelling of identifiers that were folded to lower case.
#[derive(Clone, Debug, Default)]
pub struct Spelling {
    by_place: HashMap<(u64, u64), String>,
    by_name: HashMap<String, String>,
}

impl Spelling {
    /// The identifier as it was written.
    pub fn of<'a>(&'a self, ident: &'a Ident) -> &'a str {
        let start = ident.span.start;
        self.by_place.get(&(start.line, start.column)).map_or(ident.value.as_str(), String::as_str)
    }

    /// A lower-case name as it was written first in this statement.
    pub fn of_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.by_name.get(name).map_or(name, String::as_str)
    }

    fn note(&mut self, at: Location, folded: &str, original: String) {
        self.by_name.entry(folded.to_owned()).or_insert_with(|| original.clone());
        self.by_place.insert((at.line, at.column), original);
    }
}

/// What a column of the outermost SELECT list is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Label {
    /// `*` or `t.*`: as many columns as the tables have, called as in the catalog.
    Wildcard,
    /// A bare column, by its lower-case name: called as in the catalog.
    Column(String),
    /// An alias in its own spelling, or an expression's text.
    Text(String),
}

/// One statement, parsed.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The text as it came.
    pub sql: String,
    /// The statement, every identifier in lower case.
    pub statement: Statement,
    /// Identifiers as they were written.
    pub spelling: Spelling,
    /// Labels of the outermost SELECT list, if the statement is a query.
    pub labels: Vec<Label>,
    /// How many placeholders it has; `?` became `$1`, `$2`, …
    pub params: usize,
    /// The dialect that understood it.
    pub flavour: Flavour,
    /// The past time the statement reads as of, as it was written.
    pub as_of: Option<String>,
}

impl Parsed {
    /// The first word, for messages.
    pub fn verb(&self) -> String {
        self.sql.split_whitespace().next().unwrap_or_default().to_uppercase()
    }
}

/// Parses exactly one statement.
///
/// # Errors
/// `42601` with the position for anything that is no SQL, `54000`/`54001` past a limit.
pub fn parse(sql: &str) -> Result<Parsed, WireError> {
    if sql.len() > STATEMENT_BYTES_MAX {
        return Err(WireError::sql(
            "54000",
            format!("the statement has {} bytes; at most {STATEMENT_BYTES_MAX} are allowed", sql.len()),
        )
        .hint("split it into several statements"));
    }
    if sql.contains('\0') {
        return Err(WireError::sql("42601", "the statement contains a NUL character"));
    }
    let order =
        if sql.contains('`') { [Flavour::MySql, Flavour::Postgres] } else { [Flavour::Postgres, Flavour::MySql] };
    let first = match attempt(sql, order[0]) {
        Ok(parsed) => return Ok(parsed),
        Err(Attempt::Final(error)) => return Err(error),
        Err(Attempt::Syntax(error)) => error,
    };
    match attempt(sql, order[1]) {
        Ok(parsed) => Ok(parsed),
        Err(_) => Err(first),
    }
}

/// Parses an expression without a statement around it (a stored DEFAULT or CHECK).
///
/// # Errors
/// As [`parse`].
pub fn parse_expr(sql: &str) -> Result<Expr, WireError> {
    let parsed = parse(&format!("SELECT {sql}"))?;
    let Statement::Query(query) = parsed.statement else {
        return Err(WireError::sql("42601", format!("{sql:?} is not an expression")));
    };
    let SetExpr::Select(select) = *query.body else {
        return Err(WireError::sql("42601", format!("{sql:?} is not an expression")));
    };
    match select.projection.into_iter().next() {
        Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => Ok(expr),
        _ => Err(WireError::sql("42601", format!("{sql:?} is not an expression"))),
    }
}

enum Attempt {
    /// Past a limit, or not a question of dialect.
    Final(WireError),
    /// Another dialect may understand it.
    Syntax(WireError),
}

fn attempt(sql: &str, flavour: Flavour) -> Result<Parsed, Attempt> {
    let dialect: &dyn Dialect = match flavour {
        Flavour::Postgres => &PostgreSqlDialect {},
        Flavour::MySql => &MySqlDialect {},
    };
    let mut tokens = Tokenizer::new(dialect, sql)
        .tokenize_with_location()
        .map_err(|e| Attempt::Syntax(tokenizer_error(sql, &e.message, e.location)))?;
    tokens.retain(|t| !matches!(t.token, Token::Whitespace(_)));
    while tokens.last().is_some_and(|t| t.token == Token::SemiColon) {
        tokens.pop();
    }
    if tokens.is_empty() {
        return Err(Attempt::Final(WireError::sql("42601", "the statement is empty")));
    }
    if let Some(error) = check_limits(sql, &tokens) {
        return Err(Attempt::Final(error));
    }
    if let Some(error) = check_single(sql, &tokens) {
        return Err(Attempt::Final(error));
    }
    let as_of = super::as_of::take(&mut tokens).map_err(Attempt::Final)?;
    keep_options(&mut tokens, flavour);
    let mut spelling = Spelling::default();
    let params = fold(&mut tokens, &mut spelling).map_err(Attempt::Final)?;
    let texts = is_query(&tokens).then(|| select_texts(sql, &tokens)).flatten();
    let mut parser = Parser::new(dialect).with_recursion_limit(NESTING_MAX * 3).with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().and_then(|s| {
        let next = parser.peek_token();
        if next.token == Token::EOF { Ok(s) } else { parser.expected("end of statement", next) }
    });
    let mut statement = statement.map_err(|e| Attempt::Syntax(parser_error(sql, &e)))?;
    rewrite::normalise(&mut statement, flavour).map_err(Attempt::Final)?;
    let labels = match &mut statement {
        Statement::Query(query) => label_query(query, texts, &spelling),
        Statement::Explain { statement, .. } => match statement.as_mut() {
            Statement::Query(query) => label_query(query, None, &spelling),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    Ok(Parsed { sql: sql.to_owned(), statement, spelling, labels, params, flavour, as_of })
}

fn check_limits(sql: &str, tokens: &[TokenWithSpan]) -> Option<WireError> {
    if tokens.len() > TOKENS_MAX {
        return Some(WireError::sql(
            "54000",
            format!("the statement has {} words and signs; at most {TOKENS_MAX} are allowed", tokens.len()),
        ));
    }
    // Operators since the last comma, per open parenthesis: the depth of the tree they become.
    let mut chains: Vec<usize> = vec![0];
    let mut cases = 0usize;
    for t in tokens {
        match &t.token {
            Token::LParen | Token::LBracket | Token::LBrace => chains.push(0),
            Token::RParen | Token::RBracket | Token::RBrace if chains.len() > 1 => {
                chains.pop();
            }
            Token::Comma | Token::SemiColon => {
                if let Some(last) = chains.last_mut() {
                    *last = 0;
                }
            }
            Token::Word(w) => match w.keyword {
                Keyword::CASE => cases += 1,
                Keyword::END => cases = cases.saturating_sub(1),
                Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::JOIN
                | Keyword::IS => {
                    bump(&mut chains);
                }
                _ => {}
            },
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Period => {}
            Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::StringConcat
            | Token::DoubleColon
            | Token::Arrow
            | Token::LongArrow
            | Token::ExclamationMark
            | Token::Tilde
            | Token::Caret
            | Token::Pipe
            | Token::Ampersand => bump(&mut chains),
            _ => {}
        }
        if chains.len() + cases > NESTING_MAX {
            return Some(
                WireError::sql("54001", format!("the statement is nested more than {NESTING_MAX} deep"))
                    .at(char_offset(sql, t.span.start)),
            );
        }
        if chains.iter().sum::<usize>() > OPERATORS_MAX {
            return Some(
                WireError::sql("54001", format!("an expression chains more than {OPERATORS_MAX} operators"))
                    .hint("use IN (…) or a join with VALUES for long lists of conditions")
                    .at(char_offset(sql, t.span.start)),
            );
        }
    }
    None
}

fn bump(chains: &mut [usize]) {
    if let Some(last) = chains.last_mut() {
        *last += 1;
    }
}

fn check_single(sql: &str, tokens: &[TokenWithSpan]) -> Option<WireError> {
    let semicolon = tokens.iter().position(|t| t.token == Token::SemiColon)?;
    // A BEGIN … END body may hold semicolons; it is refused by name later.
    Some(
        WireError::sql("42601", "a request holds one statement, and this one holds several")
            .hint("send them one after the other")
            .at(char_offset(sql, tokens.get(semicolon + 1).map_or(tokens[semicolon].span.start, |t| t.span.start))),
    )
}

/// At the end of a column the parser takes some words for options of another dialect and drops them. As plain words they
/// are refused there.
fn keep_options(tokens: &mut [TokenWithSpan], flavour: Flavour) {
    let creates = matches!(&tokens[0].token, Token::Word(word) if word.keyword == Keyword::CREATE);
    let mut before = Keyword::NoKeyword;
    for t in tokens {
        let Token::Word(word) = &mut t.token else { continue };
        let this = word.keyword;
        word.keyword = match this {
            Keyword::AUTO_INCREMENT | Keyword::AUTOINCREMENT if flavour == Flavour::MySql => Keyword::AUTO_INCREMENT,
            Keyword::AUTO_INCREMENT | Keyword::AUTOINCREMENT => Keyword::NoKeyword,
            Keyword::IDENTITY if creates && before != Keyword::AS => Keyword::NoKeyword,
            other => other,
        };
        before = this;
    }
}

/// Lower-cases every identifier and numbers the placeholders; gives their number.
fn fold(tokens: &mut [TokenWithSpan], spelling: &mut Spelling) -> Result<usize, WireError> {
    let mut anonymous = 0;
    let mut highest = 0;
    for t in tokens {
        match &mut t.token {
            Token::Word(w) if w.value.chars().any(char::is_uppercase) => {
                let folded = w.value.to_lowercase();
                let original = std::mem::replace(&mut w.value, folded);
                spelling.note(t.span.start, &w.value, original);
            }
            Token::Question => {
                anonymous += 1;
                t.token = Token::Placeholder(format!("${anonymous}"));
            }
            Token::Placeholder(name) if name == "?" => {
                anonymous += 1;
                *name = format!("${anonymous}");
            }
            Token::Placeholder(name) => {
                let number =
                    name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()).filter(|n| (1..=65_535).contains(n));
                let Some(number) = number else {
                    return Err(WireError::sql("42601", format!("placeholder {name} is not $1, $2, … or ?")));
                };
                highest = highest.max(number);
            }
            _ => {}
        }
    }
    if anonymous > 0 && highest > 0 {
        return Err(WireError::sql("42601", "a statement uses either ? or $1, $2, … for its parameters, not both"));
    }
    Ok(anonymous.max(highest))
}

fn is_query(tokens: &[TokenWithSpan]) -> bool {
    matches!(&tokens[0].token, Token::Word(w) if matches!(w.keyword, Keyword::SELECT | Keyword::WITH))
}

/// The text of each item of the outermost SELECT list, white space collapsed.
fn select_texts(sql: &str, tokens: &[TokenWithSpan]) -> Option<Vec<String>> {
    let mut depth = 0usize;
    let mut start = None;
    for (i, t) in tokens.iter().enumerate() {
        match &t.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            Token::Word(w) if depth == 0 && w.keyword == Keyword::SELECT => {
                start = Some(i + 1);
                break;
            }
            _ => {}
        }
    }
    let mut at = start?;
    if let Token::Word(w) = &tokens.get(at)?.token
        && matches!(w.keyword, Keyword::DISTINCT | Keyword::ALL)
    {
        at += 1;
    }
    let text = Text::new(sql);
    let mut items = Vec::new();
    let mut first = at;
    let mut depth = 0usize;
    let mut end = tokens.len();
    for (i, t) in tokens.iter().enumerate().skip(at) {
        match &t.token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            Token::Comma if depth == 0 => {
                items.push(text.slice(tokens, first, i));
                first = i + 1;
            }
            Token::Word(w) if depth == 0 && ends_select_list(w.keyword) => {
                end = i;
                break;
            }
            _ => {}
        }
    }
    items.push(text.slice(tokens, first, end));
    Some(items)
}

fn ends_select_list(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::FROM
            | Keyword::WHERE
            | Keyword::GROUP
            | Keyword::HAVING
            | Keyword::ORDER
            | Keyword::LIMIT
            | Keyword::OFFSET
            | Keyword::UNION
            | Keyword::EXCEPT
            | Keyword::INTERSECT
            | Keyword::WINDOW
            | Keyword::FETCH
            | Keyword::QUALIFY
            | Keyword::FOR
            | Keyword::INTO
    )
}

/// Gives every expression of the outermost SELECT list that has no name, or one that is taken, an internal unique one
/// (`__q3`), because the planner wants unique names and SQL does not; returns what to call them.
fn label_query(query: &mut Query, texts: Option<Vec<String>>, spelling: &Spelling) -> Vec<Label> {
    let Some(select) = outermost(query) else { return Vec::new() };
    let texts = texts.filter(|t| t.len() == select.projection.len());
    let has_wildcard =
        select.projection.iter().any(|i| matches!(i, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    let single = select.projection.len() == 1;
    let mut seen = std::collections::HashSet::new();
    let mut labels = Vec::with_capacity(select.projection.len());
    for (i, item) in select.projection.iter_mut().enumerate() {
        let label = match item {
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => Label::Wildcard,
            SelectItem::ExprWithAlias { alias, .. } => {
                let label = Label::Text(spelling.of(alias).to_owned());
                if !seen.insert(alias.value.clone()) {
                    alias.value = internal_name(i);
                }
                label
            }
            SelectItem::UnnamedExpr(expr) => {
                let name = match expr {
                    Expr::Identifier(ident) => Some(ident.value.clone()),
                    Expr::CompoundIdentifier(parts) => parts.last().map(|p| p.value.clone()),
                    _ => None,
                };
                let label = match &name {
                    Some(name) => Label::Column(name.clone()),
                    None => Label::Text(texts.as_ref().map_or_else(|| expr.to_string(), |t| t[i].clone())),
                };
                let taken = name.is_none_or(|n| !seen.insert(n) || (has_wildcard && !single));
                if taken {
                    let expr = std::mem::replace(expr, Expr::Identifier(Ident::new("")));
                    *item = SelectItem::ExprWithAlias { expr, alias: Ident::new(internal_name(i)) };
                }
                label
            }
            SelectItem::ExprWithAliases { .. } => Label::Text(item.to_string()),
        };
        labels.push(label);
    }
    labels
}

/// Lets a query name a column twice where only positions count: INSERT takes its rows by position.
pub fn name_apart(query: &mut Query) {
    // What the columns are called is of no interest.
    let _ = label_query(query, None, &Spelling::default());
}

fn internal_name(position: usize) -> String {
    format!("__q{position}")
}

fn outermost(query: &mut Query) -> Option<&mut Select> {
    let mut body = query.body.as_mut();
    loop {
        match body {
            SetExpr::Select(select) => return Some(select),
            SetExpr::SetOperation { left, .. } => body = left,
            SetExpr::Query(inner) => body = inner.body.as_mut(),
            _ => return None,
        }
    }
}

/// Line starts of a text, to find what a token covers.
struct Text<'a> {
    sql: &'a str,
    lines: Vec<usize>,
}

impl<'a> Text<'a> {
    fn new(sql: &'a str) -> Self {
        let lines = std::iter::once(0).chain(sql.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { sql, lines }
    }

    fn byte(&self, at: Location) -> usize {
        let line = usize::try_from(at.line.saturating_sub(1)).unwrap_or(0);
        let column = usize::try_from(at.column.saturating_sub(1)).unwrap_or(0);
        let start = self.lines.get(line).copied().unwrap_or(self.sql.len());
        let rest = self.sql.get(start..).unwrap_or_default();
        start + rest.char_indices().nth(column).map_or(rest.len(), |(i, _)| i)
    }

    fn slice(&self, tokens: &[TokenWithSpan], from: usize, to: usize) -> String {
        let (Some(first), Some(last)) = (tokens.get(from), to.checked_sub(1).and_then(|i| tokens.get(i))) else {
            return String::new();
        };
        let text = self.sql.get(self.byte(first.span.start)..self.byte(last.span.end)).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Offset in characters of a line and column.
pub fn char_offset(sql: &str, at: Location) -> u32 {
    let byte = Text::new(sql).byte(at);
    u32::try_from(sql.get(..byte).map_or(0, |s| s.chars().count())).unwrap_or(u32::MAX)
}

fn tokenizer_error(sql: &str, message: &str, at: Location) -> WireError {
    let message = match message {
        "Unterminated string literal" => "a string is not closed".to_owned(),
        m if m.starts_with("Expected close delimiter") => "a quoted identifier is not closed".to_owned(),
        m if m.contains("EOF while in a multi-line comment") => "a comment is not closed".to_owned(),
        m => lower_first(m),
    };
    WireError::sql("42601", message).at(char_offset(sql, at))
}

fn parser_error(sql: &str, error: &ParserError) -> WireError {
    let message = match error {
        ParserError::RecursionLimitExceeded => {
            return WireError::sql("54001", format!("the statement is nested more than {NESTING_MAX} deep"));
        }
        ParserError::ParserError(m) | ParserError::TokenizerError(m) => m.as_str(),
    };
    let (message, place) = split_place(message);
    let end = u32::try_from(sql.trim_end_matches([';', ' ', '\n', '\t', '\r']).chars().count()).unwrap_or(u32::MAX);
    let offset = place.map_or(end, |p| char_offset(sql, p));
    if let Some((expected, found)) = message.strip_prefix("Expected: ").and_then(|m| m.split_once(", found: ")) {
        let summary = if found == "EOF" {
            "syntax error at the end of the statement".to_owned()
        } else {
            format!("syntax error at or near \"{}\"", word_at(sql, offset).unwrap_or(found))
        };
        let error = WireError::sql("42601", summary)
            .detail(format!("expected {}", lower_first(expected)))
            .at(if found == "EOF" { end } else { offset });
        return match keyword_hint(sql, if found == "EOF" { end } else { offset }) {
            Some(hint) => error.hint(hint),
            None => error,
        };
    }
    WireError::sql("42601", lower_first(message)).at(offset)
}

/// Splits `… at Line: 1, Column: 8` off a message.
fn split_place(message: &str) -> (&str, Option<Location>) {
    let Some((head, tail)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let Some((line, column)) = tail.split_once(", Column: ") else { return (message, None) };
    match (line.trim().parse(), column.trim().parse()) {
        (Ok(line), Ok(column)) => (head, Some(Location { line, column })),
        _ => (message, None),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(chars).collect::<String>().trim_end_matches('.').to_owned()
        }
        _ => text.trim_end_matches('.').to_owned(),
    }
}

/// The word or sign that begins at an offset, as it was written.
fn word_at(sql: &str, offset: u32) -> Option<&str> {
    let (start, _) = sql.char_indices().nth(usize::try_from(offset).ok()?)?;
    let rest = &sql[start..];
    let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let end = if word == 0 { rest.chars().next().map_or(0, char::len_utf8) } else { word };
    rest.get(..end)
}

const KEYWORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "HAVING",
    "ORDER",
    "LIMIT",
    "OFFSET",
    "INSERT",
    "INTO",
    "VALUES",
    "UPDATE",
    "DELETE",
    "CREATE",
    "TABLE",
    "INDEX",
    "DROP",
    "ALTER",
    "DATABASE",
    "UNIQUE",
    "PRIMARY",
    "FOREIGN",
    "REFERENCES",
    "DISTINCT",
    "UNION",
    "BETWEEN",
    "LIKE",
    "JOIN",
    "INNER",
    "LEFT",
    "RIGHT",
    "OUTER",
    "USING",
    "EXISTS",
    "DESCRIBE",
    "EXPLAIN",
    "SHOW",
    "TRUNCATE",
    "CONSTRAINT",
    "DEFAULT",
    "RETURNING",
    "CONFLICT",
];

/// A misspelt keyword at the error, or just before it (`SELECT a FORM t` fails at `t`).
fn keyword_hint(sql: &str, offset: u32) -> Option<String> {
    let chars: String = sql.chars().take(usize::try_from(offset).ok()?).collect();
    let here = word_at(sql, offset);
    let before = chars.split(|c: char| !(c.is_alphanumeric() || c == '_')).rfind(|w| !w.is_empty());
    for word in [here, before].into_iter().flatten() {
        let upper = word.to_uppercase();
        if upper.len() < 3 || KEYWORDS.contains(&upper.as_str()) {
            continue;
        }
        let best = KEYWORDS.iter().map(|k| (strsim::damerau_levenshtein(&upper, k), *k)).min();
        if let Some((distance, keyword)) = best
            && distance <= 1 + usize::from(keyword.len() > 6)
        {
            return Some(format!("did you mean {keyword} instead of {word}?"));
        }
    }
    None
}

/// Puts values into placeholders, for statements that are not planned with them.
///
/// # Errors
/// `08P01` if one is missing.
pub fn bind<T: VisitMut>(node: &mut T, params: &[Expr]) -> Result<(), WireError> {
    struct Binder<'a>(&'a [Expr]);
    impl VisitorMut for Binder<'_> {
        type Break = WireError;
        fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<WireError> {
            let Expr::Value(value) = expr else { return ControlFlow::Continue(()) };
            let sqlparser::ast::Value::Placeholder(name) = &value.value else { return ControlFlow::Continue(()) };
            let number: usize = name.trim_start_matches('$').parse().unwrap_or(0);
            match number.checked_sub(1).and_then(|n| self.0.get(n)) {
                Some(param) => {
                    *expr = param.clone();
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(WireError::sql("08P01", format!("the value for {name} is missing"))),
            }
        }
    }
    match node.visit(&mut Binder(params)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}
