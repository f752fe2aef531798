//! `SELECT … AS OF TIMESTAMP '…'`: a whole statement as of one past time, its catalog included.
//!
//! The words stand at the end of a clause of the outermost query; they are taken out of the tokens before a parser sees
//! them. The time is text as a TIMESTAMP in the session's time zone, or a distance back from now (`'-10s'`).
//!
//! What is read must be complete: nothing at or before the time may be committed or applied later. A shard that has applied
//! something newer is complete, since times grow with the log; one that is idle gets an empty entry for it. Versions below
//! the horizon are gone: that is refused by name, and looked at again after the last row, as is whether a table that was
//! read has been dropped or emptied since.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;
use quorate_core::catalog::Catalog;
use quorate_core::mvcc::Snapshot;
use quorate_core::table::IndexState;
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::{ShardId, TableId, Timestamp};
use quorate_shared::wire::{Done, ReadLevel};
use sqlparser::ast;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::parse::Parsed;
use super::session::Run;
use super::settings::duration_ms;
use super::{Sink, plan};
use crate::router::{ProposeError, ReadPoint};

/// How long a shard may take to get past a time of a moment ago.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Takes `AS OF TIMESTAMP '…'` (or `AS OF SYSTEM TIME '…'`) out of a statement; gives the time's text.
///
/// # Errors
/// `42601` where it stands in a subquery, or twice with different times.
pub fn take(tokens: &mut Vec<TokenWithSpan>) -> Result<Option<String>, WireError> {
    let mut found: Option<String> = None;
    let (mut at, mut depth) = (0, 0usize);
    while at < tokens.len() {
        match tokens[at].token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
        let Some((length, text)) = here(&tokens[at..]) else {
            at += 1;
            continue;
        };
        if depth > 0 {
            return Err(WireError::sql("42601", "AS OF stands in a subquery")
                .hint("the whole statement reads as of one time: put it behind the outermost FROM"));
        }
        if found.as_ref().is_some_and(|other| *other != text) {
            return Err(WireError::sql("42601", "a statement reads as of one time, and this one names two"));
        }
        tokens.drain(at..at + length);
        found = Some(text);
    }
    Ok(found)
}

/// The clause at the beginning of some tokens: how many, and the time.
fn here(tokens: &[TokenWithSpan]) -> Option<(usize, String)> {
    let word = |at: usize, name: &str| match &tokens.get(at)?.token {
        Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(name) => Some(()),
        _ => None,
    };
    word(0, "as")?;
    word(1, "of")?;
    let at = match word(2, "timestamp") {
        Some(()) => 3,
        None => word(2, "system").and_then(|()| word(3, "time")).map(|()| 4)?,
    };
    match &tokens.get(at)?.token {
        Token::SingleQuotedString(text) => Some((at + 1, text.clone())),
        _ => None,
    }
}

/// The time that a text means, in milliseconds since 1970.
fn resolve(run: &Run, text: &str) -> Result<u64, WireError> {
    let bad = || {
        WireError::sql("22007", format!("AS OF {text:?} is no time"))
            .hint("write a timestamp, such as '2026-01-31 12:00:00', or a distance back, such as '-10s'")
    };
    let now_ms = u64::try_from(run.now_us / 1_000).unwrap_or(0);
    let ms = match text.trim().strip_prefix('-') {
        Some(back) => now_ms.saturating_sub(duration_ms("AS OF", back).map_err(|_| bad())?),
        None => {
            let zone: Tz = run.settings.timezone.parse().map_err(|_| bad())?;
            let time = string_to_datetime(&zone, text.trim()).map_err(|_| bad())?;
            u64::try_from(time.timestamp_millis()).map_err(|_| bad())?
        }
    };
    if ms > now_ms {
        return Err(WireError::sql("22023", format!("AS OF {text:?} is in the future: {} ms from now", ms - now_ms))
            .hint("only what has been committed can be read"));
    }
    Ok(ms)
}

/// The shards at a past time.
struct Past {
    ms: u64,
    meta: Snapshot,
    data: Snapshot,
    catalog: Arc<Catalog>,
    /// Tables of then that are gone or emptied, by name.
    gone: Vec<String>,
    /// Those that are not: identity and storage.
    kept: Vec<(TableId, TableId)>,
}

/// Runs a query as of its time.
///
/// # Errors
/// A time in the future or below the horizon; a replica that cannot know that it has everything up to it; else as
/// [`plan::run_query`].
pub async fn run_query(
    run: &Run,
    parsed: &Parsed,
    text: &str,
    query: &ast::Query,
    sink: &mut dyn Sink,
) -> Result<Done, WireError> {
    let past = past(run, resolve(run, text)?).await?;
    let planned = plan::plan_query(run, &past.catalog, query, &parsed.labels, &parsed.spelling).map_err(|error| {
        if error.code == Code::NotFound && !past.gone.is_empty() {
            return error.detail(format!("dropped or emptied since: {}", past.gone.join(", ")));
        }
        error
    })?;
    if planned.used.picture || planned.used.running || planned.used.shards.iter().any(|s| *s != ShardId::DATA) {
        return Err(WireError::unsupported("AS OF over system tables").hint("they show how things are now"));
    }
    let point = ReadPoint { snapshot: past.data.clone(), since: None };
    let mut running = plan::start(run, &planned, &run.params, Some(point), false).await?;
    let rows = plan::drain(run, &mut running, sink, &mut false).await;
    past.check(&past.meta)?;
    past.check(&past.data)?;
    let rows = rows.map_err(|error| match plan::is_stale(&error) {
        true => WireError::new(Code::Conflict, "a table was being altered at that time")
            .hint("read as of a moment before or after"),
        false => error,
    })?;
    past.check_kept(run).await?;
    Ok(Done { tag: "SELECT".to_owned(), rows, ..Done::default() })
}

/// Takes both shards at a time, once nothing at or before it can come any more.
async fn past(run: &Run, ms: u64) -> Result<Past, WireError> {
    let at = Timestamp::new(ms, u16::MAX);
    let (meta, data) = tokio::join!(complete(run, ShardId::META, at), complete(run, ShardId::DATA, at));
    let (meta, data) = (Snapshot::new(meta?.snapshot.tree, at), Snapshot::new(data?.snapshot.tree, at));
    let now = run.router.catalog();
    let loaded = Catalog::load(&meta, now.version);
    let mut past = Past { ms, meta, data, catalog: now.clone(), gone: Vec::new(), kept: Vec::new() };
    past.check(&past.meta)?;
    past.check(&past.data)?;
    past.keep(loaded.map_err(|fatal| failed(&fatal))?, &now);
    Ok(past)
}

/// A point of a shard that has something newer than a time, and so everything up to it. An idle shard is made to go on.
async fn complete(run: &Run, shard: ShardId, at: Timestamp) -> Result<ReadPoint, WireError> {
    let end = run.deadline.min(Instant::now() + CLOSE_WAIT);
    loop {
        let point = run.router.read(shard, &run.read_level, run.deadline).await?;
        if point.snapshot.timestamp > at {
            return Ok(point);
        }
        if run.read_level != ReadLevel::Linearizable || Instant::now() >= end {
            let node = run.router.identity().node;
            let message = format!("ReplicaBehind: {node} cannot know that it has everything of {shard} up to then");
            return Err(WireError::new(Code::Behind, message)
                .hint("SET read_level = linearizable asks the leader; or read as of an earlier time"));
        }
        let closed = run.router.close(shard, run.deadline).await.map_err(|error| match error {
            ProposeError::Wire(error) => error,
            ProposeError::Rejected(why) => WireError::new(Code::Retry, format!("{shard} cannot be closed: {why}")),
        })?;
        if closed <= at {
            // A moment ago, or the leader's clock is behind this node's.
            tokio::time::sleep(Duration::from_millis(at.ms() - closed.ms() + 1).min(CLOSE_WAIT)).await;
        }
    }
}

fn failed(fatal: &quorate_core::error::Fatal) -> WireError {
    WireError::new(Code::Internal, fatal.to_string())
}

/// The refusal of a time below the horizon, if it is.
fn horizon(snapshot: &Snapshot, ms: u64) -> Option<WireError> {
    let horizon = quorate_core::mvcc::horizon(&*snapshot.tree).ok()?;
    (snapshot.timestamp < horizon).then(|| {
        let before = horizon.ms().saturating_sub(ms);
        WireError::sql("22023", format!("AS OF is {before} ms before the horizon: versions that old are gone"))
            .hint("versions are kept for an hour")
    })
}

impl Past {
    fn check(&self, snapshot: &Snapshot) -> Result<(), WireError> {
        match horizon(snapshot, self.ms) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The catalog of then without what has no rows any more: they go at once, whatever the horizon.
    fn keep(&mut self, mut then: Catalog, now: &Catalog) {
        let (gone, kept) = (&mut self.gone, &mut self.kept);
        then.tables.retain(|_, table| {
            let Some(current) = now.table_by_id(table.def.id).filter(|t| t.def.storage == table.def.storage) else {
                gone.push(table.def.name.clone());
                return false;
            };
            let public = |id| current.def.indexes.iter().any(|i| i.id == id && i.state == IndexState::Public);
            table.def.indexes.retain(|index| public(index.id));
            kept.push((table.def.id, table.def.storage));
            true
        });
        self.catalog = Arc::new(then);
    }

    /// Fails if a table was dropped or emptied while it was read.
    async fn check_kept(&self, run: &Run) -> Result<(), WireError> {
        run.router.read(ShardId::META, &run.read_level, run.deadline).await?;
        let now = run.router.catalog();
        let there =
            |(id, storage): &(TableId, TableId)| now.table_by_id(*id).is_some_and(|t| t.def.storage == *storage);
        if self.kept.iter().all(there) {
            return Ok(());
        }
        Err(WireError::new(Code::Retry, "a table was dropped or emptied while the past was read"))
    }
}

#[cfg(test)]
mod tests {
    use crate::sql::parse::parse;

    #[test]
    fn the_clause_is_taken_out_and_an_alias_called_of_is_not() {
        for (sql, time) in [
            ("SELECT * FROM t AS OF TIMESTAMP '2026-01-01' WHERE a = 1", Some("2026-01-01")),
            ("select a from t as of system time '-10s' order by a", Some("-10s")),
            ("SELECT a AS of FROM t", None),
            ("SELECT 'as of timestamp'", None),
        ] {
            let parsed = parse(sql).unwrap();
            assert_eq!(parsed.as_of.as_deref(), time, "{sql}");
        }
        for sql in [
            "SELECT * FROM (SELECT * FROM t AS OF TIMESTAMP 'x') AS s",
            "SELECT * FROM t AS OF TIMESTAMP 'x', u AS OF TIMESTAMP 'y'",
        ] {
            assert!(parse(sql).unwrap_err().message.contains("one time") || parse(sql).is_err(), "{sql}");
        }
    }
}
