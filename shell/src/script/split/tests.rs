//! Cuts by example, against the tokenizer, and on real dumps.

use proptest::prelude::*;
use sqlparser::dialect::{Dialect, MySqlDialect, PostgreSqlDialect};
use sqlparser::tokenizer::{Token, Tokenizer};

use super::*;

fn pieces(text: &str) -> Vec<String> {
    Splitter::split(text).into_iter().map(|p| shown(&p)).collect()
}

fn shown(piece: &Result<Piece, SplitError>) -> String {
    let at = |p: &Place| format!("{}:{}", p.line, p.column);
    match piece {
        Ok(Piece::Statement(s)) => format!("{} {}", at(&s.place), s.text),
        Ok(Piece::Command { text, place, before: None }) => format!("{} {text}", at(place)),
        Ok(Piece::Command { text, place, before: Some(s) }) => {
            format!("{} {} <- {} {text}", at(&s.place), s.text, at(place))
        }
        Err(e) => format!("{} ERROR {e}", at(&e.place)),
    }
}

#[test]
fn statements_and_their_places() {
    assert_eq!(pieces(""), [""; 0]);
    assert_eq!(pieces(" -- nothing\n/* at all */ ;; "), [""; 0]);
    assert_eq!(
        pieces("select 1; select\n 2 ;\n\n  -- three\nselect 3"),
        ["1:1 select 1", "1:11 select\n 2", "5:1 select 3"]
    );
    assert_eq!(
        pieces("select ';', \";\", $$;$$, $a$;$$;$a$, /* ; /* ; */ ; */ 1; x"),
        ["1:1 select ';', \";\", $$;$$, $a$;$$;$a$, /* ; /* ; */ ; */ 1", "1:58 x"]
    );
    assert_eq!(
        pieces("select 'it''s;'; select E'it\\'s;'; select 'c:\\'; x"),
        ["1:1 select 'it''s;'", "1:18 select E'it\\'s;'", "1:36 select 'c:\\'", "1:50 x"]
    );
    assert_eq!(
        pieces("insert into `t;` values ('it\\'s;') # ;\n; select $1;"),
        ["1:1 insert into `t;` values ('it\\'s;') # ;", "2:3 select $1"]
    );
    assert_eq!(pieces("\u{feff}größe; ä"), ["1:2 größe", "1:9 ä"]);
}

#[test]
fn backslash_commands() {
    assert_eq!(pieces("\\c chinook;\nselect 1;\n  \\x"), ["1:1 \\c chinook;", "2:1 select 1", "3:3 \\x"]);
    assert_eq!(pieces("select 1 \\gx\nselect 2"), ["1:1 select 1 <- 1:10 \\gx", "2:1 select 2"]);
    assert_eq!(pieces("select '\\x'"), ["1:1 select '\\x'"]);
}

#[test]
fn what_is_left_open_is_named() {
    let unfinished = |text: &str| pieces(text).pop().unwrap_or_default();
    assert_eq!(
        unfinished("x;\ninsert 'ab"),
        "2:8 ERROR unfinished statement: the string that begins here is not closed"
    );
    assert_eq!(unfinished("\"ab"), "1:1 ERROR unfinished statement: the quoted name that begins here is not closed");
    assert_eq!(unfinished("/* ab"), "1:1 ERROR unfinished statement: the comment that begins here is not closed");
    assert_eq!(
        unfinished("a $x$ ab $"),
        "1:3 ERROR unfinished statement: the dollar-quoted string that begins here is not closed"
    );
    assert_eq!(
        unfinished("values (1), (2,"),
        "1:13 ERROR unfinished statement: the bracket that begins here is not closed"
    );
    assert_eq!(unfinished("values (1), (2)"), "1:1 values (1), (2)");
    assert_eq!(unfinished("select 1 -- done"), "1:1 select 1 -- done");
}

#[test]
fn bytes_that_are_no_text_are_named_with_their_offset() {
    let mut splitter = Splitter::default();
    splitter.push(b"select 1;\nselect '\xff'; select 2;");
    splitter.finish();
    let all: Vec<_> = std::iter::from_fn(|| splitter.next_piece()).map(|p| shown(&p)).collect();
    assert_eq!(all, ["1:1 select 1", "2:9 ERROR the text is not UTF-8 at byte offset 18", "2:13 select 2"]);
}

#[test]
fn too_long_is_skipped_in_bounded_memory() {
    let mut splitter = Splitter::default();
    splitter.push(b"select 1; select '");
    let mut all = Vec::new();
    let portion = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        splitter.push(&portion);
        while let Some(piece) = splitter.next_piece() {
            all.push(shown(&piece));
        }
        assert!(splitter.buffer.len() <= STATEMENT_BYTES_MAX + (2 << 20));
    }
    splitter.push(b"'; select 2;");
    splitter.finish();
    all.extend(std::iter::from_fn(|| splitter.next_piece()).map(|p| shown(&p)));
    assert_eq!(all[0], "1:1 select 1");
    assert_eq!(all[1], format!("1:11 ERROR the statement is longer than {STATEMENT_BYTES_MAX} bytes"));
    assert!(all[2].ends_with(" select 2"), "{}", all[2]);
    assert_eq!(all.len(), 3);
}

#[test]
fn completeness_for_the_line_editor() {
    for complete in ["", "  ", "select 1;", "select 1; -- x", "\\d", "select 1\\g", ";", "a;b;"] {
        assert!(is_complete(complete), "{complete}");
    }
    for open in ["select 1", "select ';", "/* ", "a; b", "select $$;"] {
        assert!(!is_complete(open), "{open}");
    }
}

#[test]
fn real_dumps_split_right() {
    for (name, commands) in [("chinook_postgres.sql", 1), ("chinook_mysql.sql", 0)] {
        let folder = std::env::var("QUORATE_SHARED")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").to_owned());
        let Ok(text) = std::fs::read_to_string(format!("{folder}/data/chinook/{name}")) else {
            eprintln!("SKIPPED: {folder}/data/chinook/{name} is not there");
            continue;
        };
        let all = Splitter::split(&text);
        let mut by_word = std::collections::BTreeMap::new();
        for piece in &all {
            let word = match piece {
                Ok(Piece::Statement(s)) => s.text.split_whitespace().next().unwrap_or_default().to_owned(),
                Ok(Piece::Command { text, .. }) => text.clone(),
                Err(e) => panic!("{e:?}"),
            };
            *by_word.entry(word).or_insert(0) += 1;
        }
        assert_eq!(by_word["INSERT"], 24, "{name}: {by_word:?}");
        assert_eq!(by_word.get("\\c chinook;").copied().unwrap_or(0), commands, "{name}");
        assert!(all.len() > 50, "{name}: {by_word:?}");
    }
}

/// How many statements the tokenizer sees; `None` if it cannot read the text.
fn tokenized(dialect: &dyn Dialect, text: &str) -> Option<usize> {
    let tokens = Tokenizer::new(dialect, text).tokenize().ok()?;
    let statements =
        tokens.split(|t| *t == Token::SemiColon).filter(|s| s.iter().any(|t| !matches!(t, Token::Whitespace(_))));
    Some(statements.count())
}

fn fragments() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(";"),
        Just("'"),
        Just("''"),
        Just("\""),
        Just("$$"),
        Just("$a$"),
        Just("$1"),
        Just("/*"),
        Just("*/"),
        Just("--"),
        Just("\n"),
        Just(" "),
        Just("x"),
        Just("E'"),
        Just("N'"),
        Just("e"),
        Just("("),
        Just(")"),
        Just("ü"),
        Just(" - "),
        Just(" / "),
        Just("*"),
        Just("1"),
        Just("a$b")
    ];
    proptest::collection::vec(part, 0..24).prop_map(|v| v.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn portions_do_not_matter(text in fragments(), portion in 1_usize..5) {
        let mut splitter = Splitter::default();
        let mut all = Vec::new();
        for bytes in text.as_bytes().chunks(portion) {
            splitter.push(bytes);
            all.extend(std::iter::from_fn(|| splitter.next_piece()));
        }
        splitter.finish();
        all.extend(std::iter::from_fn(|| splitter.next_piece()));
        prop_assert_eq!(all, Splitter::split(&text));
    }

    #[test]
    fn cuts_where_the_tokenizer_does(text in fragments(), mysql in any::<bool>()) {
        let (text, dialect): (_, &dyn Dialect) = match mysql {
            // A backtick first makes the whole statement MySQL's; one statement at a time.
            true => (format!("`m` {}", text.replace(';', ",").replace('$', "")), &MySqlDialect {}),
            false => (text, &PostgreSqlDialect {}),
        };
        let Some(expected) = tokenized(dialect, &text) else { return Ok(()) };
        let ours = Splitter::split(&text);
        let open = |p: &Result<Piece, SplitError>| matches!(p, Err(e) if e.problem != Problem::Unfinished(Open::Bracket));
        prop_assert!(!ours.iter().any(open), "{:?}", ours);
        prop_assert_eq!(ours.len(), expected, "{:?}", ours);
    }

    #[test]
    fn places_are_true(text in fragments()) {
        for piece in Splitter::split(&text).into_iter().flatten() {
            if let Piece::Statement(s) = piece {
                let from = usize::try_from(s.place.offset).expect("small");
                prop_assert!(text[from..].starts_with(&s.text));
                prop_assert_eq!(Place::START.after(&text, text[..from].chars().count()), s.place);
            }
        }
    }
}
