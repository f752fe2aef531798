//! The Chinook sample database: both dumps load unedited and queries give the answers SQLite gives on the same data.

use quorate_core::engine::memory::MemoryEngine;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::harness::{Boxed, shared_data, text};

/// The dump's statements, without comments' ends and shell commands; `\c name` becomes `USE name`.
fn statements(dump: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut current = String::new();
    let mut chars = dump.chars().peekable();
    let mut quoted = false;
    let mut comment = false;
    while let Some(c) = chars.next() {
        if comment {
            if c == '*' && chars.peek() == Some(&'/') {
                chars.next();
                comment = false;
            }
            continue;
        }
        match c {
            '\'' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'*') => {
                chars.next();
                comment = true;
                continue;
            }
            ';' if !quoted => {
                let statement =
                    std::mem::take(&mut current).trim().trim_start_matches('\u{feff}').replace("\\c ", "USE ");
                if !statement.is_empty() {
                    out.push(statement);
                }
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    out
}

/// The same rows in SQLite: without what it does not know, and dates as ISO text.
fn sqlite(dump: &str) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    for statement in statements(dump) {
        let verb: Vec<&str> = statement.split_whitespace().take(2).collect();
        if !matches!(verb.as_slice(), ["CREATE", "TABLE"] | ["INSERT", "INTO"]) {
            continue;
        }
        db.execute_batch(&iso_dates(&statement.replace("N'", "'"))).unwrap();
    }
    db
}

/// `'2021/1/9'` as `'2021-01-09 00:00:00'`.
fn iso_dates(sql: &str) -> String {
    let parts: Vec<&str> = sql.split('\'').collect();
    let mut out = String::with_capacity(sql.len());
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push('\'');
        }
        let numbers: Vec<Option<u32>> = part.split('/').map(|p| p.parse().ok()).collect();
        match numbers.as_slice() {
            [Some(y), Some(m), Some(d)] if i % 2 == 1 => out.push_str(&format!("{y:04}-{m:02}-{d:02} 00:00:00")),
            _ => out.push_str(part),
        }
    }
    out
}

/// Tables with their rows.
const COUNTS: &[(&str, usize)] = &[
    ("album", 347),
    ("artist", 275),
    ("customer", 59),
    ("employee", 8),
    ("genre", 25),
    ("invoice", 412),
    ("invoice_line", 2240),
    ("media_type", 5),
    ("playlist", 18),
    ("playlist_track", 8715),
    ("track", 3503),
];

const QUERIES: &[&str] = &[
    // Joins over four tables and more.
    "SELECT ar.name, al.title, t.name, g.name FROM artist ar JOIN album al ON al.artist_id = ar.artist_id JOIN track t ON t.album_id = al.album_id JOIN genre g ON g.genre_id = t.genre_id WHERE ar.name = 'AC/DC' ORDER BY t.track_id",
    "SELECT c.country, sum(il.unit_price * il.quantity) AS spent FROM customer c JOIN invoice i ON i.customer_id = c.customer_id JOIN invoice_line il ON il.invoice_id = i.invoice_id JOIN track t ON t.track_id = il.track_id GROUP BY c.country ORDER BY spent DESC, c.country",
    "SELECT g.name, count(*) AS sold FROM invoice_line il JOIN track t ON t.track_id = il.track_id JOIN genre g ON g.genre_id = t.genre_id JOIN invoice i ON i.invoice_id = il.invoice_id GROUP BY g.name HAVING count(*) > 20 ORDER BY sold DESC, g.name",
    "SELECT p.name, count(*) AS tracks FROM playlist p JOIN playlist_track pt ON pt.playlist_id = p.playlist_id JOIN track t ON t.track_id = pt.track_id JOIN media_type m ON m.media_type_id = t.media_type_id GROUP BY p.playlist_id, p.name ORDER BY p.playlist_id",
    // Grouping.
    "SELECT billing_country, count(*), min(total), max(total), sum(total) FROM invoice GROUP BY billing_country ORDER BY 1",
    "SELECT count(*), count(composer), count(DISTINCT composer) FROM track",
    "SELECT media_type_id, avg(milliseconds) FROM track GROUP BY media_type_id ORDER BY media_type_id",
    "SELECT country, city, count(*) FROM customer GROUP BY country, city HAVING count(*) > 1 ORDER BY country, city",
    // Windows.
    "SELECT customer_id, invoice_id, sum(total) OVER (PARTITION BY customer_id ORDER BY invoice_id) AS running FROM invoice ORDER BY customer_id, invoice_id",
    "SELECT name, milliseconds, rank() OVER (ORDER BY milliseconds DESC) AS place FROM track ORDER BY place, track_id LIMIT 20",
    "SELECT album_id, track_id, row_number() OVER (PARTITION BY album_id ORDER BY milliseconds DESC, track_id) - 1 AS n FROM track ORDER BY album_id, n LIMIT 50",
    "SELECT invoice_id, total, lag(total) OVER (ORDER BY invoice_id) AS before FROM invoice ORDER BY invoice_id LIMIT 30",
    // CTEs, one of them recursive.
    "WITH sales AS (SELECT customer_id, sum(total) AS total FROM invoice GROUP BY customer_id) SELECT c.last_name, s.total FROM sales s JOIN customer c ON c.customer_id = s.customer_id WHERE s.total > 40 ORDER BY s.total DESC, c.last_name",
    "WITH RECURSIVE chain AS (SELECT employee_id, last_name, 1 AS depth FROM employee WHERE reports_to IS NULL UNION ALL SELECT e.employee_id, e.last_name, c.depth + 1 FROM employee e JOIN chain c ON e.reports_to = c.employee_id) SELECT depth, last_name FROM chain ORDER BY depth, last_name",
    // Subqueries.
    "SELECT name FROM artist WHERE artist_id NOT IN (SELECT artist_id FROM album) ORDER BY name LIMIT 25",
    "SELECT name FROM artist a WHERE EXISTS (SELECT 1 FROM album b WHERE b.artist_id = a.artist_id AND b.title LIKE '%Live%') ORDER BY name",
    "SELECT name, milliseconds FROM track WHERE milliseconds > (SELECT avg(milliseconds) * 5 FROM track) ORDER BY milliseconds DESC, name LIMIT 20",
    "SELECT c.last_name, (SELECT count(*) FROM invoice i WHERE i.customer_id = c.customer_id) AS n FROM customer c ORDER BY c.last_name, n",
    // Dates.
    "SELECT strftime('%Y', invoice_date) AS y, count(*), sum(total) FROM invoice GROUP BY strftime('%Y', invoice_date) ORDER BY y",
    "SELECT strftime('%Y-%m', invoice_date) AS m, sum(total) FROM invoice WHERE invoice_date >= '2023-01-01' AND invoice_date < '2024-01-01' GROUP BY strftime('%Y-%m', invoice_date) ORDER BY m",
    "SELECT last_name, date(hire_date) FROM employee WHERE date(hire_date) < '2003-06-01' ORDER BY hire_date",
    // Keys, unions, texts, outer joins.
    "SELECT track_id, name FROM track WHERE track_id IN (1, 5, 3503, 9999) ORDER BY track_id",
    "SELECT track_id FROM track WHERE track_id BETWEEN 100 AND 110 AND milliseconds > 200000 ORDER BY track_id",
    "SELECT city FROM customer UNION SELECT city FROM employee ORDER BY city",
    "SELECT upper(substr(country, 1, 3)) || '-' || length(first_name) FROM customer ORDER BY customer_id",
    "SELECT e.last_name, count(c.customer_id) FROM employee e LEFT JOIN customer c ON c.support_rep_id = e.employee_id GROUP BY e.employee_id, e.last_name ORDER BY e.last_name",
    "SELECT CASE WHEN total < 2 THEN 'small' WHEN total < 8 THEN 'middle' ELSE 'large' END AS size, count(*) FROM invoice GROUP BY 1 ORDER BY 1",
    "SELECT DISTINCT billing_state FROM invoice WHERE billing_country = 'USA' AND billing_state IS NOT NULL ORDER BY billing_state",
    "SELECT coalesce(company, last_name) FROM customer WHERE fax IS NULL ORDER BY customer_id",
];

/// The names of the MySQL dump: `invoice_line` is `InvoiceLine` there.
fn pascal(query: &str) -> String {
    const NAMES: &[&str] = &[
        "invoice_line_id",
        "invoice_line",
        "playlist_track",
        "playlist_id",
        "media_type_id",
        "media_type",
        "artist_id",
        "album_id",
        "track_id",
        "genre_id",
        "customer_id",
        "invoice_id",
        "employee_id",
        "invoice_date",
        "billing_country",
        "billing_state",
        "unit_price",
        "last_name",
        "first_name",
        "reports_to",
        "hire_date",
        "support_rep_id",
    ];
    let mut out = query.to_owned();
    for name in NAMES {
        out = out.replace(name, &name.replace('_', ""));
    }
    out
}

fn close(ours: &str, theirs: &str) -> bool {
    if ours == theirs {
        return true;
    }
    match (ours.parse::<f64>(), theirs.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0),
        _ => false,
    }
}

fn answers(db: &Connection, query: &str) -> Vec<Vec<String>> {
    let mut statement = db.prepare(query).unwrap_or_else(|e| panic!("SQLite: {query}: {e}"));
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut out = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        out.push(
            (0..columns)
                .map(|i| match row.get_ref(i).unwrap() {
                    ValueRef::Null => "NULL".to_owned(),
                    ValueRef::Integer(i) => i.to_string(),
                    ValueRef::Real(f) => f.to_string(),
                    ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
                    ValueRef::Blob(b) => format!("{b:?}"),
                })
                .collect(),
        );
    }
    out
}

fn compare(ours: &mut Boxed, reference: &Connection, rename: fn(&str) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    for (table, count) in COUNTS {
        let got = ours.run(&rename(&format!("SELECT count(*) FROM {table}")));
        match got {
            Ok(answer) if answer.texts() == [[count.to_string()]] => {}
            other => wrong.push(format!("{table}: {other:?}, not {count}")),
        }
    }
    for query in QUERIES {
        let theirs = answers(reference, query);
        assert!(!theirs.is_empty(), "{query} shows nothing");
        match ours.run(&rename(query)) {
            Err(e) => wrong.push(format!("{query}\n  {e:?}")),
            Ok(answer) => {
                let got: Vec<Vec<String>> = answer.rows.iter().map(|r| r.iter().map(text).collect()).collect();
                let same = got.len() == theirs.len()
                    && got
                        .iter()
                        .zip(&theirs)
                        .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(x, y)| close(x, y)));
                if !same {
                    let first =
                        got.iter().zip(&theirs).find(|(a, b)| !a.iter().zip(b.iter()).all(|(x, y)| close(x, y)));
                    wrong.push(format!(
                        "{query}\n  {} rows, not {}; first difference {first:?}",
                        got.len(),
                        theirs.len()
                    ));
                }
            }
        }
    }
    wrong
}

fn load(db: &mut Boxed, dump: &str) {
    for statement in statements(dump) {
        if let Err(error) = db.run(&statement) {
            let start: String = statement.chars().take(200).collect();
            panic!("{start}\n{error:?}");
        }
    }
}

#[test]
fn both_dumps_load_and_answer_as_sqlite_does() {
    let Some(dir) = shared_data("chinook") else { return };
    let postgres = std::fs::read_to_string(dir.join("chinook_postgres.sql")).unwrap();
    let mysql = std::fs::read_to_string(dir.join("chinook_mysql.sql")).unwrap();
    let reference = sqlite(&postgres);
    let engine = MemoryEngine::new();
    let mut db = Boxed::new(&engine);

    load(&mut db, &postgres);
    let wrong = compare(&mut db, &reference, str::to_owned);
    assert!(wrong.is_empty(), "PostgreSQL's dump:\n{}", wrong.join("\n"));

    // Names are compared without case: the second dump replaces the first.
    load(&mut db, &mysql);
    let wrong = compare(&mut db, &reference, pascal);
    assert!(wrong.is_empty(), "MySQL's dump:\n{}", wrong.join("\n"));
    let labels = db.run("SELECT albumid, TITLE, \"ArtistId\" FROM ALBUM LIMIT 1").unwrap();
    let names: Vec<&str> = labels.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["AlbumId", "Title", "ArtistId"]);
}
