//! `SELECT … AS OF TIMESTAMP '…'`: a whole statement as of one past time, its catalog included.
//!
//! The words stand at the end of a clause of the outermost query; they are taken out of the tokens before a parser sees
//! them. The time is text as a TIMESTAMP in the session's time zone, or a distance back from now (`'-10s'`).
//!
//! What is read must be complete: nothing at or before the time may be committed or applied later. A shard that has applied
//! something newer is complete, since times grow with the log; one that is idle gets an empty entry for it. Versions below
//! the horizon are gone: that is refused by name, and looked at again after the last row. So are the rows of a table that
//! was dropped or emptied since: they go at once, whatever the horizon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;
use quorate_core::catalog::{Catalog, TableDesc, founded_at, history_of};
use quorate_core::mvcc::Snapshot;
use quorate_core::table::IndexState;
use quorate_shared::archive::manifest::time_text;
use quorate_shared::duration;
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
        return Err(WireError::sql(
            "22023",
            format!("AS OF {text:?} is in the future: {} from now", duration::text(ms - now_ms)),
        )
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
    /// Tables of then whose rows are gone: their names, and their storage then.
    gone: BTreeMap<TableId, (String, TableId)>,
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
    let planned = plan::plan_query(run, &past.catalog, query, &parsed.labels, &parsed.spelling)?;
    if let Some(error) = planned.used.tables.iter().find_map(|table| past.gone(*table)) {
        return Err(error);
    }
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
    past.check_kept(run, &planned.used.tables).await?;
    Ok(Done { tag: "SELECT".to_owned(), rows, ..Done::default() })
}

/// Takes both shards at a time, once nothing at or before it can come any more.
async fn past(run: &Run, ms: u64) -> Result<Past, WireError> {
    let at = Timestamp::new(ms, u16::MAX);
    let (meta, data) = tokio::join!(complete(run, ShardId::META, at), complete(run, ShardId::DATA, at));
    let (meta, data) = (Snapshot::new(meta?.snapshot.tree, at), Snapshot::new(data?.snapshot.tree, at));
    let now = run.router.catalog();
    let loaded = Catalog::load(&meta, now.version);
    let mut past = Past { ms, meta, data, catalog: now.clone(), gone: BTreeMap::new() };
    past.check(&past.meta)?;
    past.check(&past.data)?;
    let then = loaded.map_err(|fatal| failed(&fatal))?;
    if then.counters.is_none() {
        return Err(past.before_all());
    }
    past.keep(then, &now);
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
        let before = duration::text(horizon.ms().saturating_sub(ms));
        WireError::sql("22023", format!("AS OF is {before} before the horizon: versions that old are gone"))
            .hint("versions are kept for an hour")
    })
}

/// What made a table's rows of a past time go, and when, by its history, newest first.
fn end_of(history: &[(Timestamp, Option<TableDesc>)], storage: TableId, then: Timestamp) -> (&'static str, Timestamp) {
    let other = |desc: &Option<TableDesc>| desc.as_ref().is_none_or(|desc| desc.def.storage != storage);
    let newer = history.iter().take_while(|(at, _)| *at > then);
    let Some((place, (at, desc))) = newer.enumerate().filter(|(_, (_, desc))| other(desc)).last() else {
        return ("DROP or TRUNCATE", Timestamp::MIN);
    };
    let before = history.get(place + 1).and_then(|(_, desc)| desc.as_ref());
    let what = match (desc, before) {
        (None, _) => "DROP",
        (Some(now), Some(before)) if now.def.columns != before.def.columns => "ALTER",
        (Some(now), Some(before)) if now.def.primary_key != before.def.primary_key => "ALTER",
        _ => "TRUNCATE",
    };
    (what, *at)
}

impl Past {
    fn check(&self, snapshot: &Snapshot) -> Result<(), WireError> {
        match horizon(snapshot, self.ms) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The refusal of a time before the cluster's first entry.
    fn before_all(&self) -> WireError {
        let began = founded_at(&*self.meta.tree).ok().flatten().map_or(self.ms, Timestamp::ms);
        let before = duration::text(began.saturating_sub(self.ms));
        WireError::sql("22023", format!("AS OF is {before} before the horizon: nothing was committed as early as that"))
            .hint(format!("the cluster began at {}", time_text(began)))
    }

    /// Takes the catalog of then; of its tables those are noted that have no rows of then any more.
    fn keep(&mut self, mut then: Catalog, now: &Catalog) {
        for table in then.tables.values_mut() {
            let Some(current) = now.table_by_id(table.def.id).filter(|t| t.def.storage == table.def.storage) else {
                self.gone.insert(table.def.id, (table.def.name.clone(), table.def.storage));
                continue;
            };
            let public = |id| current.def.indexes.iter().any(|i| i.id == id && i.state == IndexState::Public);
            table.def.indexes.retain(|index| public(index.id));
        }
        self.catalog = Arc::new(then);
    }

    /// The refusal of a table whose rows of then are gone, if they are.
    fn gone(&self, table: TableId) -> Option<WireError> {
        let (name, storage) = self.gone.get(&table)?;
        let history = history_of(&*self.meta.tree, table).unwrap_or_default();
        let (what, at) = end_of(&history, *storage, self.meta.timestamp);
        let at = if at == Timestamp::MIN { String::new() } else { format!(" at {}", time_text(at.ms())) };
        let message = format!("AS OF cannot go behind the {what} of \"{name}\"{at}: the rows from before are gone");
        Some(WireError::sql("22023", message).hint("a backup can be restored to any time (quorate restore --to-time)"))
    }

    /// Fails if a table was dropped or emptied while it was read.
    async fn check_kept(&self, run: &Run, used: &BTreeSet<TableId>) -> Result<(), WireError> {
        run.router.read(ShardId::META, &run.read_level, run.deadline).await?;
        let now = run.router.catalog();
        let there = |id: &TableId| {
            let then = self.catalog.table_by_id(*id).map(|t| t.def.storage);
            then.is_some() && now.table_by_id(*id).map(|t| t.def.storage) == then
        };
        if used.iter().all(there) {
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
