//! `quorate bench`: a closed-loop load generator that checks what it measured.
//!
//! Each client has a connection of its own and sends its next statement when the last one was answered. Statements are
//! prepared. Errors and unknown outcomes are counted apart and never enter the latency histogram. Afterwards the data is
//! compared with what was acknowledged: a run that lost or doubled a write fails.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use quorate_shared::client::{Client, ClientConfig, ClientError, Prepared};
use quorate_shared::value::Value;
use quorate_shared::wire::{QueryOptions, ReadLevel};
use serde_json::{Value as Json, json};

/// Rows of one INSERT while the tables are filled.
const ROWS_PER_INSERT: u64 = 500;
/// Bytes of a row's text, so that a row has some 100 bytes.
const PAYLOAD_BYTES: usize = 84;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Workload {
    /// One row of some 100 bytes per statement, autocommit.
    Insert,
    /// One row by its primary key.
    Read,
    /// One random row by its primary key.
    Update,
    /// One row, by everyone: n = n + 1.
    Hot,
    /// A grouped aggregate over the whole table.
    Scan,
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to connect.
    pub client: ClientConfig,
    /// What.
    pub workload: Workload,
    /// Clients, each with a connection.
    pub clients: u32,
    /// How long.
    pub seconds: u64,
    /// Rows of the table that is read, updated or scanned.
    pub rows: u64,
    /// Level of the reads.
    pub read_level: ReadLevel,
    /// One JSON object instead of text.
    pub json: bool,
}

/// What one client saw.
struct Seen {
    latency_us: Histogram<u64>,
    ok: u64,
    errors: u64,
    unknown: u64,
    last_error: Option<String>,
}

impl Seen {
    fn new() -> anyhow::Result<Self> {
        // One microsecond to a minute, three digits.
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3).context("make a histogram")?;
        Ok(Self { latency_us, ok: 0, errors: 0, unknown: 0, last_error: None })
    }

    fn add(&mut self, other: &Seen) -> anyhow::Result<()> {
        self.latency_us.add(&other.latency_us).context("add histograms")?;
        self.ok += other.ok;
        self.errors += other.errors;
        self.unknown += other.unknown;
        if other.last_error.is_some() {
            self.last_error.clone_from(&other.last_error);
        }
        Ok(())
    }
}

/// Runs a workload and prints its figures; the exit code: 0, or 1 if statements failed or the check did.
pub async fn run(options: Options) -> anyhow::Result<u8> {
    if options.clients == 0 || options.seconds == 0 || options.rows == 0 {
        bail!("--clients, --seconds and --rows must be at least 1");
    }
    let mut first = Client::connect(options.client.clone()).await.context("connect")?;
    prepare_tables(&mut first, &options).await?;
    let mut clients = Vec::new();
    for _ in 0..options.clients {
        clients.push(Client::connect(options.client.clone()).await.context("connect")?);
    }
    let finished = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let until = started + Duration::from_secs(options.seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        tasks.spawn(one_client(client, options.clone(), number as u64, until, finished.clone()));
    }
    let progress = tokio::spawn(show_progress(options.workload, options.seconds, finished));
    let mut all = Seen::new()?;
    while let Some(seen) = tasks.join_next().await {
        all.add(&seen.context("a client of the load generator failed")??)?;
    }
    let elapsed = started.elapsed();
    progress.abort();
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let verified = verify(&mut first, &options, &all).await?;
    let report = report(&options, &all, elapsed, verified.as_ref().err());
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{report}")?;
    } else {
        write!(out, "{}", as_text(&report))?;
    }
    Ok(u8::from(all.errors > 0 || verified.is_err()))
}

/// The statement of a workload.
fn statement(workload: Workload) -> &'static str {
    match workload {
        Workload::Insert => "INSERT INTO bench_insert (id, k, payload) VALUES ($1, $2, $3)",
        Workload::Read => "SELECT id, k, payload FROM bench_rows WHERE id = $1",
        Workload::Update => "UPDATE bench_rows SET k = k + 1 WHERE id = $1",
        Workload::Hot => "UPDATE bench_hot SET n = n + 1 WHERE id = 1",
        Workload::Scan => "SELECT k % 100 AS bucket, count(*), sum(k) FROM bench_rows GROUP BY k % 100 ORDER BY bucket",
    }
}

fn payload(id: u64) -> String {
    let mut text = format!("row-{id:016x}-");
    while text.len() < PAYLOAD_BYTES {
        text.push("abcdefghijklmnopqrstuvwxyz".as_bytes()[text.len() % 26] as char);
    }
    text
}

/// Makes the tables that the workload needs; a table of the right size is used again.
async fn prepare_tables(client: &mut Client, options: &Options) -> anyhow::Result<()> {
    let mut run = async |sql: String| {
        let shown: String = sql.chars().take(60).collect();
        client.run(sql, Vec::new()).await.with_context(|| format!("prepare the tables ({shown} …)"))
    };
    match options.workload {
        Workload::Insert => {
            run("DROP TABLE IF EXISTS bench_insert".into()).await?;
            run("CREATE TABLE bench_insert (id BIGINT PRIMARY KEY, k INT NOT NULL, payload TEXT NOT NULL)".into())
                .await?;
        }
        Workload::Hot => {
            run("DROP TABLE IF EXISTS bench_hot".into()).await?;
            run("CREATE TABLE bench_hot (id INT PRIMARY KEY, n BIGINT NOT NULL)".into()).await?;
            run("INSERT INTO bench_hot VALUES (1, 0)".into()).await?;
        }
        Workload::Read | Workload::Update | Workload::Scan => {
            let counted = run("SELECT count(*), min(id), max(id) FROM bench_rows".into()).await;
            let rows = i64::try_from(options.rows).context("--rows")?;
            let wanted = vec![Value::Int(rows), Value::Int(0), Value::Int(rows - 1)];
            if counted.is_ok_and(|result| result.rows.first() == Some(&wanted)) {
                return Ok(());
            }
            run("DROP TABLE IF EXISTS bench_rows".into()).await?;
            run("CREATE TABLE bench_rows (id BIGINT PRIMARY KEY, k INT NOT NULL, payload TEXT NOT NULL)".into())
                .await?;
            for from in (0..options.rows).step_by(ROWS_PER_INSERT as usize) {
                let to = (from + ROWS_PER_INSERT).min(options.rows);
                let rows: Vec<_> = (from..to).map(|id| format!("({id}, {}, '{}')", id % 10_007, payload(id))).collect();
                run(format!("INSERT INTO bench_rows VALUES {}", rows.join(", "))).await?;
            }
        }
    }
    Ok(())
}

/// A small generator of numbers (xorshift64*, Vigna 2016): every client draws its own keys.
fn draw(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

async fn one_client(
    mut client: Client,
    options: Options,
    number: u64,
    until: Instant,
    finished: Arc<AtomicU64>,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::new()?;
    let prepared = client.prepare(statement(options.workload)).await.context("prepare the statement")?;
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut count = 0u64;
    loop {
        let begin = Instant::now();
        if begin >= until {
            return Ok(seen);
        }
        // Clients insert into ranges of their own; both halves fit a BIGINT.
        let id = (number << 40) | count;
        count += 1;
        let params = match options.workload {
            Workload::Insert => {
                vec![Value::Int(id.cast_signed()), Value::Int((id % 10_007).cast_signed()), Value::Text(payload(id))]
            }
            Workload::Read | Workload::Update => vec![Value::Int((draw(&mut state) % options.rows).cast_signed())],
            Workload::Hot | Workload::Scan => Vec::new(),
        };
        match once(&mut client, &prepared, params, &options).await {
            Ok(()) => {
                let us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                seen.latency_us.saturating_record(us);
                seen.ok += 1;
                finished.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_unknown() => seen.unknown += 1,
            Err(error) => {
                seen.errors += 1;
                let gone = matches!(error, ClientError::NoConnection { .. });
                seen.last_error = Some(error.to_string());
                if gone && begin.elapsed() < Duration::from_millis(50) {
                    // Nobody is there: do not spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn once(
    client: &mut Client,
    prepared: &Prepared,
    params: Vec<Value>,
    options: &Options,
) -> Result<(), ClientError> {
    let query = match options.workload {
        Workload::Read | Workload::Scan => QueryOptions::default().read_level(options.read_level.clone()),
        _ => QueryOptions::default(),
    };
    let mut result = client.execute(prepared, params, query).await?;
    let mut rows = 0;
    while let Some(batch) = result.next().await? {
        rows += batch.len();
    }
    let written = result.done().map_or(0, |done| done.rows);
    let wrong = match options.workload {
        Workload::Read => rows != 1,
        Workload::Scan => rows == 0,
        _ => written != 1,
    };
    if wrong {
        return Err(ClientError::Unsendable(format!("wrong answer: {rows} rows read, {written} written")));
    }
    Ok(())
}

async fn show_progress(workload: Workload, seconds: u64, finished: Arc<AtomicU64>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let started = Instant::now();
    let mut before = 0;
    let mut timer = tokio::time::interval(Duration::from_secs(1));
    timer.tick().await;
    loop {
        timer.tick().await;
        let now = finished.load(Ordering::Relaxed);
        eprint!("\r\x1b[K{workload:?}: {} of {seconds} s, {} /s", started.elapsed().as_secs(), now - before);
        before = now;
    }
}

/// Compares the data with what was acknowledged.
async fn verify(client: &mut Client, options: &Options, seen: &Seen) -> anyhow::Result<Result<(), String>> {
    let sql = match options.workload {
        Workload::Insert => "SELECT count(*) FROM bench_insert",
        Workload::Hot => "SELECT n FROM bench_hot WHERE id = 1",
        _ => return Ok(Ok(())),
    };
    let result = client.run(sql, Vec::new()).await.context("check the data afterwards")?;
    let Some([Value::Int(found)]) = result.rows.first().map(Vec::as_slice) else {
        bail!("the check returned no number");
    };
    let found = u64::try_from(*found).unwrap_or(0);
    let most = seen.ok + seen.unknown;
    if (seen.ok..=most).contains(&found) {
        return Ok(Ok(()));
    }
    Ok(Err(format!("{} writes were acknowledged and {} are unknown, but {found} are there", seen.ok, seen.unknown)))
}

fn report(options: &Options, seen: &Seen, elapsed: Duration, wrong: Option<&String>) -> Json {
    let h = &seen.latency_us;
    let level = match options.read_level {
        ReadLevel::Local => "local",
        _ => "linearizable",
    };
    json!({
        "schema": 1,
        "workload": format!("{:?}", options.workload).to_lowercase(),
        "clients": options.clients,
        "seconds": (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        "rows": options.rows,
        "read_level": level,
        "ok": seen.ok,
        "ok_per_s": (seen.ok as f64 / elapsed.as_secs_f64()).round(),
        "errors": seen.errors,
        "unknown": seen.unknown,
        "last_error": seen.last_error,
        "latency_us": {
            "mean": h.mean().round(),
            "p50": h.value_at_quantile(0.5),
            "p95": h.value_at_quantile(0.95),
            "p99": h.value_at_quantile(0.99),
            "p999": h.value_at_quantile(0.999),
            "max": h.max(),
        },
        "verified": matches!(options.workload, Workload::Insert | Workload::Hot).then_some(wrong.is_none()),
        "wrong": wrong,
    })
}

fn as_text(report: &Json) -> String {
    let latency = &report["latency_us"];
    let mut text = format!(
        "{} · {} clients · {} s · {}\n  {} /s  ({} ok, {} errors, {} unknown)\n  latency µs: p50 {}  p95 {}  p99 {}  p99.9 {}  max {}\n",
        report["workload"].as_str().unwrap_or_default(),
        report["clients"],
        report["seconds"],
        report["read_level"].as_str().unwrap_or_default(),
        report["ok_per_s"],
        report["ok"],
        report["errors"],
        report["unknown"],
        latency["p50"],
        latency["p95"],
        latency["p99"],
        latency["p999"],
        latency["max"],
    );
    if let Some(error) = report["last_error"].as_str() {
        text.push_str(&format!("  last error: {error}\n"));
    }
    if let Some(wrong) = report["wrong"].as_str() {
        text.push_str(&format!("  WRONG DATA: {wrong}\n"));
    } else if report["verified"] == true {
        text.push_str("  checked: the table holds what was acknowledged\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_shared::url::Address;

    fn options(workload: Workload) -> Options {
        Options {
            client: ClientConfig::new(vec![Address::new("127.0.0.1", 7411)]),
            workload,
            clients: 2,
            seconds: 1,
            rows: 10,
            read_level: ReadLevel::Local,
            json: true,
        }
    }

    #[test]
    fn a_row_has_some_hundred_bytes() {
        assert_eq!(payload(0).len(), PAYLOAD_BYTES);
        assert_ne!(payload(1), payload(2));
    }

    #[test]
    fn errors_are_not_in_the_histogram_and_wrong_data_shows() {
        let mut seen = Seen::new().expect("a histogram");
        seen.latency_us.saturating_record(250);
        seen.ok = 1;
        seen.errors = 2;
        seen.unknown = 3;
        let wrong = "1 writes were acknowledged and 3 are unknown, but 9 are there".to_owned();
        let report = report(&options(Workload::Hot), &seen, Duration::from_secs(2), Some(&wrong));
        assert_eq!(report["latency_us"]["p50"], 250);
        assert_eq!((&report["ok"], &report["errors"], &report["unknown"]), (&json!(1), &json!(2), &json!(3)));
        let text = as_text(&report);
        assert!(text.contains("WRONG DATA") && text.contains("(1 ok, 2 errors, 3 unknown)"), "{text}");
    }

    #[test]
    fn clients_draw_different_keys() {
        let (mut a, mut b) = (1, 3);
        let drawn = |s: &mut u64| (0..8).map(|_| draw(s) % 1000).collect::<Vec<_>>();
        assert_ne!(drawn(&mut a), drawn(&mut b));
    }
}
