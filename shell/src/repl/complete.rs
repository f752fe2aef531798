//! What can stand at the cursor: keywords, databases, tables, columns, join conditions, the shell's own commands.
//!
//! Pure: text, cursor and what is known of the schema go in, candidates come out; the schema is fetched elsewhere and
//! never while a key waits. The context is read from the tokens of the statement around the cursor.

use sqlparser::tokenizer::{Token, Word};

use quorate_shared::wire::{DatabaseInfo, SchemaInfo, TableInfo};

use super::highlight::tokens;
use crate::command::{self, Complete, run::quoted};
use crate::render::error::FIRST_WORDS;

/// Candidates given at most: more than a screen helps nobody.
const CANDIDATES_MAX: usize = 200;

/// What is known of the schema.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Databases, tables, columns, functions.
    pub schema: SchemaInfo,
    /// The database the session is in.
    pub database: String,
}

impl Known {
    fn here(&self) -> Option<&DatabaseInfo> {
        self.named(&self.database)
    }

    fn named(&self, name: &str) -> Option<&DatabaseInfo> {
        self.schema.databases.iter().find(|d| d.name.eq_ignore_ascii_case(name))
    }
}

/// Words offered where an expression or clause may stand; those of two words are offered as such.
pub const KEYWORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "DISTINCT",
    "AS",
    "AND",
    "OR",
    "NOT",
    "NULL",
    "IS",
    "IN",
    "EXISTS",
    "BETWEEN",
    "LIKE",
    "ILIKE",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "CAST",
    "JOIN",
    "INNER JOIN",
    "LEFT JOIN",
    "RIGHT JOIN",
    "FULL JOIN",
    "CROSS JOIN",
    "ON",
    "USING",
    "UNION",
    "UNION ALL",
    "INTERSECT",
    "EXCEPT",
    "WITH",
    "RECURSIVE",
    "VALUES",
    "INSERT INTO",
    "UPDATE",
    "SET",
    "DELETE FROM",
    "RETURNING",
    "ON CONFLICT",
    "DO NOTHING",
    "DO UPDATE",
    "CREATE",
    "TABLE",
    "VIEW",
    "INDEX",
    "UNIQUE",
    "DATABASE",
    "DROP",
    "ALTER",
    "ADD",
    "COLUMN",
    "CONSTRAINT",
    "PRIMARY KEY",
    "FOREIGN KEY",
    "REFERENCES",
    "CHECK",
    "DEFAULT",
    "RENAME",
    "TRUNCATE",
    "CASCADE",
    "RESTRICT",
    "IF EXISTS",
    "IF NOT EXISTS",
    "EXPLAIN",
    "ANALYZE",
    "SHOW",
    "DATABASES",
    "TABLES",
    "COLUMNS",
    "INDEXES",
    "DESCRIBE",
    "USE",
    "TRUE",
    "FALSE",
    "ASC",
    "DESC",
    "NULLS FIRST",
    "NULLS LAST",
    "OVER",
    "PARTITION BY",
    "FILTER",
    "INTERVAL",
    "DATE",
    "TIMESTAMP",
    "EXTRACT",
    "COALESCE",
    "COUNT",
    "SUM",
    "AVG",
    "MIN",
    "MAX",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "INT",
    "BIGINT",
    "SMALLINT",
    "TEXT",
    "VARCHAR",
    "BOOLEAN",
    "DECIMAL",
    "REAL",
    "DOUBLE PRECISION",
    "TIME",
    "BYTEA",
    "UUID",
    "JSON",
    "SERIAL",
    "AUTO_INCREMENT",
];

/// Where the candidates begin (a byte offset), and the candidates.
pub fn complete(line: &str, cursor: usize, known: &Known) -> (usize, Vec<String>) {
    let before = line.get(..cursor).unwrap_or(line);
    if before.trim_start().starts_with('\\') {
        return complete_command(before, known);
    }
    let start = before
        .rfind(|c: char| !(c.is_alphanumeric() || c == '_'))
        .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
    let word = &before[start..];
    let (all, failed) = tokens(line);
    let (head, head_failed) = tokens(&before[..start]);
    // Inside a string or comment nothing is completed, unless it is a quoted name.
    if head_failed.is_some() && (failed.is_none() || !before[..start].ends_with(['"', '`'])) {
        return (start, Vec::new());
    }
    let statement_begin = head.iter().rposition(|(t, ..)| *t == Token::SemiColon).map_or(0, |at| at + 1);
    let begin_byte = head.get(statement_begin).map_or(0, |(_, from, _)| *from);
    let head: Vec<&Token> = head[statement_begin..].iter().map(|(t, ..)| t).filter(|t| !is_space(t)).collect();
    let whole: Vec<&Token> = all
        .iter()
        .filter(|(_, from, _)| *from >= begin_byte)
        .map(|(t, ..)| t)
        .take_while(|t| **t != Token::SemiColon)
        .filter(|t| !is_space(t))
        .collect();
    let tables = tables_of(&whole, known);
    let mut found = Found { word, candidates: Vec::new() };
    match context(&head) {
        Context::Begin => found.words(&FIRST_WORDS),
        Context::Qualified(names) => qualified(&mut found, &names, &tables, known),
        Context::Database => found.names(known.schema.databases.iter().map(|d| d.name.as_str())),
        Context::Table => {
            found.names(known.here().into_iter().flat_map(|d| &d.tables).map(|t| t.name.as_str()));
            found.names(known.schema.databases.iter().map(|d| d.name.as_str()));
            found.words(&["SELECT", "IF EXISTS", "IF NOT EXISTS"]);
        }
        Context::ColumnList => {
            for used in &tables {
                found.names(used.table.columns.iter().map(|(name, _)| name.as_str()));
            }
        }
        Context::JoinCondition => {
            joins(&mut found, &tables);
            // A foreign key is what nearly every join goes along: one Tab writes it.
            if found.candidates.is_empty() {
                expression(&mut found, &tables, known);
            }
        }
        Context::Expression => expression(&mut found, &tables, known),
    }
    (start, found.candidates)
}

fn is_space(token: &Token) -> bool {
    matches!(token, Token::Whitespace(_))
}

fn word_of(token: &Token) -> Option<&Word> {
    match token {
        Token::Word(word) => Some(word),
        _ => None,
    }
}

fn is_keyword(token: &Token, text: &str) -> bool {
    word_of(token).is_some_and(|w| w.quote_style.is_none() && w.value.eq_ignore_ascii_case(text))
}

/// What may stand at the cursor.
#[derive(Debug, PartialEq)]
enum Context {
    Begin,
    Qualified(Vec<String>),
    Database,
    Table,
    ColumnList,
    JoinCondition,
    Expression,
}

fn context(head: &[&Token]) -> Context {
    let Some(last) = head.last() else { return Context::Begin };
    if **last == Token::Period {
        let mut names = Vec::new();
        let mut rest = head;
        while let [before @ .., name, Token::Period] = rest {
            let Some(word) = word_of(name) else { break };
            names.insert(0, word.value.clone());
            rest = before;
        }
        return Context::Qualified(names);
    }
    if is_keyword(last, "ON") && head.iter().rev().any(|t| is_keyword(t, "JOIN")) {
        return Context::JoinCondition;
    }
    if is_column_list(head) {
        return Context::ColumnList;
    }
    // The nearest word that governs what follows; a comma goes on with the same.
    for (at, token) in head.iter().enumerate().rev() {
        let Some(word) = word_of(token).filter(|w| w.quote_style.is_none()) else {
            if matches!(token, Token::LParen) && at + 1 == head.len() && !(at > 0 && is_keyword(head[at - 1], "FROM")) {
                return Context::Expression;
            }
            continue;
        };
        let just_before = at + 1 == head.len();
        let listing = just_before || matches!(head.last(), Some(Token::Comma));
        match word.value.to_uppercase().as_str() {
            "FROM" | "JOIN" | "INTO" | "UPDATE" | "TABLE" | "DESCRIBE" | "TRUNCATE" | "REFERENCES" | "VIEW"
                if listing =>
            {
                return Context::Table;
            }
            "EXISTS" if just_before && head.iter().any(|t| is_keyword(t, "TABLE") || is_keyword(t, "VIEW")) => {
                return Context::Table;
            }
            "EXISTS" if just_before && head.iter().any(|t| is_keyword(t, "DATABASE")) => return Context::Database,
            "USE" | "DATABASE" if just_before => return Context::Database,
            "SELECT" | "WHERE" | "ON" | "BY" | "SET" | "HAVING" | "AND" | "OR" | "FROM" | "JOIN" | "VALUES" => {
                return Context::Expression;
            }
            _ => {}
        }
    }
    Context::Expression
}

/// Inside the brackets of `INSERT INTO t (a, b`.
fn is_column_list(head: &[&Token]) -> bool {
    let Some(open) = head.iter().rposition(|t| **t == Token::LParen) else { return false };
    let names_only = head[open + 1..].iter().all(|t| matches!(t, Token::Word(_) | Token::Comma));
    let into = head[..open].iter().rposition(|t| is_keyword(t, "INTO"));
    names_only && into.is_some_and(|at| head[at + 1..open].iter().all(|t| matches!(t, Token::Word(_) | Token::Period)))
}

/// A table of the statement and the name it has there.
struct Used<'a> {
    name: String,
    table: &'a TableInfo,
}

/// Tables behind FROM, JOIN, INTO, UPDATE, with their aliases.
fn tables_of<'a>(statement: &[&Token], known: &'a Known) -> Vec<Used<'a>> {
    let mut used = Vec::new();
    let mut at = 0;
    while at < statement.len() {
        let begins =
            ["FROM", "JOIN", "INTO", "UPDATE", "DESCRIBE", "TABLE"].iter().any(|k| is_keyword(statement[at], k));
        at += 1;
        if !begins {
            continue;
        }
        while let Some(first) = statement.get(at).and_then(|t| word_of(t)) {
            let (database, name, mut next) = match statement.get(at + 1..at + 3) {
                Some([Token::Period, Token::Word(table)]) => (first.value.as_str(), table.value.as_str(), at + 3),
                _ => (known.database.as_str(), first.value.as_str(), at + 1),
            };
            if statement.get(next).is_some_and(|t| is_keyword(t, "AS")) {
                next += 1;
            }
            let alias =
                statement.get(next).and_then(|t| word_of(t)).filter(|w| !ends_table(w)).map(|w| w.value.clone());
            next += usize::from(alias.is_some());
            let table = known.named(database).and_then(|d| d.tables.iter().find(|t| t.name.eq_ignore_ascii_case(name)));
            if let Some(table) = table {
                used.push(Used { name: alias.unwrap_or_else(|| name.to_owned()), table });
            }
            at = next;
            if statement.get(at) != Some(&&Token::Comma) {
                break;
            }
            at += 1;
        }
    }
    used
}

/// Whether a word behind a table is no alias.
fn ends_table(word: &Word) -> bool {
    const NO_ALIAS: [&str; 22] = [
        "WHERE",
        "JOIN",
        "INNER",
        "LEFT",
        "RIGHT",
        "FULL",
        "CROSS",
        "ON",
        "USING",
        "GROUP",
        "ORDER",
        "HAVING",
        "LIMIT",
        "OFFSET",
        "SET",
        "VALUES",
        "SELECT",
        "UNION",
        "EXCEPT",
        "INTERSECT",
        "NATURAL",
        "RETURNING",
    ];
    word.quote_style.is_none() && NO_ALIAS.iter().any(|k| word.value.eq_ignore_ascii_case(k))
}

/// Candidates that begin with the word typed so far, each once.
struct Found<'a> {
    word: &'a str,
    candidates: Vec<String>,
}

impl Found<'_> {
    fn push(&mut self, text: String) {
        let fits = text.get(..self.word.len()).is_some_and(|head| head.eq_ignore_ascii_case(self.word))
            || text.to_lowercase().starts_with(&self.word.to_lowercase());
        if fits && self.candidates.len() < CANDIDATES_MAX && !self.candidates.contains(&text) {
            self.candidates.push(text);
        }
    }

    /// Names, quoted where they must be.
    fn names<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) {
        for name in names {
            self.push(quoted(name));
        }
    }

    /// Keywords, in the case the user types in.
    fn words(&mut self, words: &[&str]) {
        let lower = self.word.chars().any(char::is_lowercase);
        for word in words {
            self.push(if lower { word.to_lowercase() } else { (*word).to_owned() });
        }
    }
}

fn expression(found: &mut Found<'_>, tables: &[Used<'_>], known: &Known) {
    for used in tables {
        found.names(used.table.columns.iter().map(|(name, _)| name.as_str()));
    }
    found.names(tables.iter().map(|u| u.name.as_str()));
    if found.word.is_empty() {
        // Everything would be no help.
        return;
    }
    found.words(KEYWORDS);
    for function in &known.schema.functions {
        found.push(function.clone());
    }
    if tables.is_empty() {
        // Nobody has said yet which tables are meant.
        let all = known.here().into_iter().flat_map(|d| &d.tables);
        found.names(all.flat_map(|t| &t.columns).map(|(name, _)| name.as_str()));
    }
}

fn qualified(found: &mut Found<'_>, names: &[String], tables: &[Used<'_>], known: &Known) {
    match names {
        [name] => {
            for used in tables.iter().filter(|u| u.name.eq_ignore_ascii_case(name)) {
                found.names(used.table.columns.iter().map(|(column, _)| column.as_str()));
            }
            let database = known.named(name).into_iter().flat_map(|d| &d.tables);
            found.names(database.map(|t| t.name.as_str()));
            if found.candidates.is_empty() {
                let table =
                    known.here().into_iter().flat_map(|d| &d.tables).filter(|t| t.name.eq_ignore_ascii_case(name));
                found.names(table.flat_map(|t| &t.columns).map(|(column, _)| column.as_str()));
            }
        }
        [database, table] => {
            let tables = known.named(database).into_iter().flat_map(|d| &d.tables);
            let table = tables.filter(|t| t.name.eq_ignore_ascii_case(table));
            found.names(table.flat_map(|t| &t.columns).map(|(column, _)| column.as_str()));
        }
        _ => {}
    }
}

/// `a.x = b.y` for every foreign key between the last table and one before it.
fn joins(found: &mut Found<'_>, tables: &[Used<'_>]) {
    let Some((last, others)) = tables.split_last() else { return };
    for other in others.iter().rev() {
        for (child, parent) in [(last, other), (other, last)] {
            for (columns, target, target_columns) in &child.table.foreign_keys {
                if !target.eq_ignore_ascii_case(&parent.table.name) || columns.len() != target_columns.len() {
                    continue;
                }
                let side = |used: &Used<'_>, column: &str| format!("{}.{}", quoted(&used.name), quoted(column));
                let parts = columns
                    .iter()
                    .zip(target_columns)
                    .map(|(c, t)| format!("{} = {}", side(child, c), side(parent, t)));
                found.push(parts.collect::<Vec<_>>().join(" AND "));
            }
        }
    }
}

fn complete_command(before: &str, known: &Known) -> (usize, Vec<String>) {
    let slash = before.find('\\').unwrap_or(0);
    let body = &before[slash + 1..];
    let Some(space) = body.find(char::is_whitespace) else {
        let mut found = Found { word: body, candidates: Vec::new() };
        command::COMMANDS.iter().for_each(|c| found.push(c.name.to_owned()));
        return (slash + 1, found.candidates);
    };
    let start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let mut found = Found { word: &before[start..], candidates: Vec::new() };
    let first_argument = body[space..].trim_start().find(char::is_whitespace).is_none();
    match command::find(&body[..space]).filter(|_| first_argument).map_or(Complete::None, |c| c.complete) {
        Complete::None => {}
        Complete::Words(words) => words.iter().for_each(|w| found.push((*w).to_owned())),
        Complete::Database => known.schema.databases.iter().for_each(|d| found.push(d.name.clone())),
        Complete::Table => {
            known.here().into_iter().flat_map(|d| &d.tables).for_each(|t| found.push(t.name.clone()));
        }
        Complete::File => files(&mut found),
    }
    (start, found.candidates)
}

/// Files and folders that begin like the word.
fn files(found: &mut Found<'_>) {
    let (folder, _) = found.word.rsplit_once('/').map_or(("", found.word), |(folder, name)| (folder, name));
    let path = match (folder, found.word.starts_with('/')) {
        ("", true) => "/",
        ("", false) => ".",
        (folder, _) => folder,
    };
    let Ok(entries) = std::fs::read_dir(path) else { return };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let slash = if entry.file_type().ok()?.is_dir() { "/" } else { "" };
            let front = if found.word.contains('/') { format!("{folder}/") } else { String::new() };
            Some(format!("{front}{name}{slash}"))
        })
        .take(10_000)
        .collect();
    names.sort();
    names.into_iter().for_each(|name| found.push(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let table = |name: &str, columns: &[&str], keys: &[(&str, &str, &str)]| TableInfo {
            name: name.to_owned(),
            kind: "table".to_owned(),
            columns: columns.iter().map(|c| ((*c).to_owned(), "INT".to_owned())).collect(),
            primary_key: vec![columns[0].to_owned()],
            foreign_keys: keys
                .iter()
                .map(|(c, t, tc)| (vec![(*c).to_owned()], (*t).to_owned(), vec![(*tc).to_owned()]))
                .collect(),
        };
        let shop = DatabaseInfo {
            name: "shop".to_owned(),
            tables: vec![
                table("users", &["id", "email", "Full Name"], &[]),
                table("orders", &["order_id", "user_id", "total"], &[("user_id", "users", "id")]),
            ],
        };
        let main = DatabaseInfo { name: "main".to_owned(), tables: vec![table("logs", &["at"], &[])] };
        let schema =
            SchemaInfo { databases: vec![main, shop], functions: vec!["upper".to_owned()], ..SchemaInfo::default() };
        Known { schema, database: "shop".to_owned() }
    }

    /// Completes at the `|`.
    fn at(text: &str) -> Vec<String> {
        let cursor = text.find('|').expect("a cursor");
        let line = text.replacen('|', "", 1);
        complete(&line, cursor, &known()).1
    }

    #[test]
    fn statements_begin_with_words() {
        assert_eq!(at("sel|"), ["select"]);
        assert_eq!(at("SEL|"), ["SELECT"]);
        assert_eq!(at("select 1; ins|"), ["insert"]);
    }

    #[test]
    fn tables_follow_from() {
        assert_eq!(at("select * from u|"), ["users"]);
        assert_eq!(at("select * from users, o|"), ["orders"]);
        assert_eq!(at("insert into o|"), ["orders"]);
        assert_eq!(at("select * from main.|"), ["logs"]);
        assert_eq!(at("drop table if exists us|"), ["users"]);
        assert_eq!(at("use m|"), ["main"]);
        assert_eq!(at("drop database s|"), ["shop"]);
    }

    #[test]
    fn columns_of_the_tables_in_use() {
        assert_eq!(at("select em| from users"), ["email"]);
        assert_eq!(at("select u.| from users u"), ["id", "email", "\"Full Name\""]);
        assert_eq!(at("select o.t| from users as u join orders as o on true"), ["total"]);
        assert_eq!(at("update orders set to|"), ["total"]);
        assert_eq!(at("insert into orders (us|"), ["user_id"]);
        assert_eq!(at("select 1 from users where e|")[0], "email");
        assert_eq!(at("select upp|"), ["upper"]);
    }

    #[test]
    fn joins_follow_foreign_keys() {
        assert_eq!(at("select * from orders o join users u on |"), ["o.user_id = u.id"]);
        assert_eq!(at("select * from users join orders on |"), ["orders.user_id = users.id"]);
        assert_eq!(at("select * from users u join orders on u.i|"), ["id"]);
    }

    #[test]
    fn nothing_inside_strings_and_comments() {
        assert_eq!(at("select 'em|"), [""; 0]);
        assert_eq!(at("select /* em|"), [""; 0]);
    }

    #[test]
    fn commands_and_their_arguments() {
        assert_eq!(at("\\ti|"), ["timing"]);
        assert_eq!(at("\\c s|"), ["shop"]);
        assert_eq!(at("\\d us|"), ["users"]);
        assert_eq!(at("\\format js|"), ["json", "jsonl"]);
        assert_eq!(at("\\set read|"), ["read_level", "read_only"]);
        assert_eq!(at("\\q |"), [""; 0]);
    }

    #[test]
    fn any_text_and_cursor_are_fine() {
        for text in
            ["", "ä.", "sélect ü", "`a", "\"Fu", "select * from \"x\".", "a.b.c.d.", "select $$", "\\", "\\c ü "]
        {
            for cursor in (0..=text.len()).filter(|c| text.is_char_boundary(*c)) {
                let (start, _) = complete(text, cursor, &known());
                assert!(start <= cursor && text.is_char_boundary(start), "{text:?} {cursor}");
            }
        }
    }
}
