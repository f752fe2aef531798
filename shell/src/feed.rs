//! `quorate feed`: a table's committed changes as JSON lines on standard output.
//!
//! Every batch is flushed when it has been written, so a reader sees a change as soon as it came. What happens to the
//! connection is told on standard error; the feed goes on by itself, however long the cluster is away. Whenever it ends
//! before it should, it says how to go on.
//!
//! Invariant: a line is printed whole, and its token stands behind it: who has dealt with a line may go on with its token.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_shared::client::{Client, ClientError, Policy};
use quorate_shared::error::Code;
use quorate_shared::feed::{Change, FeedBatch, FeedColumns, FeedOp, FeedToken};
use quorate_shared::wire::Column;

use crate::args::FeedArgs;
use crate::collect::{now, time_text};
use crate::config::Options;
use crate::exit::Exit;
use crate::output::{Output, reader_gone};
use crate::render::error::Paint;
use crate::render::json;
use crate::session::{Interrupts, client_config, tell_moves};

/// Pause before a cluster that was lost is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs until it is interrupted, the limit is reached, or the feed ends.
pub async fn run(options: &Options, args: &FeedArgs, paint: Paint) -> Result<u8> {
    let mut interrupts = Interrupts::listen();
    let mut lines = Lines::new(Output::stdout(), args);
    let ended = tokio::select! {
        result = feed(options, args, paint, &mut lines) => result,
        () = interrupts.next() => Ok(Exit::Interrupted),
        () = reader_gone() => Ok(Exit::Done),
    };
    // What the server refuses for good cannot be gone on with.
    let over = match &ended {
        Ok(exit) => *exit == Exit::Done,
        Err(error) => matches!(error.downcast_ref(), Some(ClientError::Server(why)) if why.code != Code::Internal),
    };
    if let Some(token) = lines.at.filter(|_| !over) {
        eprintln!("to go on behind this: quorate feed --table {} --from {token}", args.table);
    }
    ended.map(Exit::code)
}

async fn feed(options: &Options, args: &FeedArgs, paint: Paint, lines: &mut Lines) -> Result<Exit> {
    let mut config = client_config(options);
    config.policy = Policy::Anywhere;
    let mut client = Client::connect(config).await?;
    tell_moves(&mut client, paint);
    let mut feed = client.feed(args.table.clone(), args.from.0);
    let mut told = false;
    loop {
        match feed.next().await {
            Ok(batch) => {
                lines.write(&batch).context("cannot write the changes")?;
                told = false;
            }
            Err(error @ ClientError::NoConnection { .. }) => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("{}", paint.dim(&format!("{error}; it is tried again")));
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
        if lines.left == Some(0) || lines.out.is_gone() {
            return Ok(Exit::Done);
        }
    }
}

/// What is printed.
struct Lines {
    out: Output,
    names: Names,
    left: Option<u64>,
    heartbeat: bool,
    /// Behind everything that was written.
    at: Option<FeedToken>,
}

/// The columns in force, and what they are called in JSON.
#[derive(Default)]
struct Names {
    columns: FeedColumns,
    key: Vec<String>,
    row: Vec<String>,
}

impl Lines {
    fn new(out: Output, args: &FeedArgs) -> Self {
        Self { out, names: Names::default(), left: args.limit, heartbeat: args.heartbeat, at: args.from.0 }
    }

    fn write(&mut self, batch: &FeedBatch) -> io::Result<()> {
        if let Some(columns) = &batch.columns {
            let (key, row) = (json::keys(&columns.key), json::keys(&columns.row));
            self.names = Names { columns: columns.clone(), key, row };
        }
        if batch.changes.is_empty() && self.heartbeat {
            let table = serde_json::to_string(&self.names.columns.table)?;
            writeln!(
                self.out,
                "{{\"op\":\"heartbeat\",\"table\":{table},\"key\":null,\"row\":null,\"timestamp\":\"{}\",\"token\":\"{}\"}}",
                now(),
                batch.at
            )?;
        }
        for change in &batch.changes {
            if self.left == Some(0) {
                break;
            }
            self.change(change)?;
            self.left = self.left.map(|left| left - 1);
        }
        self.out.flush()?;
        self.at = Some(batch.at);
        Ok(())
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        let Names { columns, key, row } = &self.names;
        write!(self.out, "{{\"op\":\"{}\",\"table\":{}", change.op, serde_json::to_string(&columns.table)?)?;
        self.out.write_all(b",\"key\":")?;
        let values = (change.op != FeedOp::Truncate).then_some(&change.key);
        object(key, &columns.key, values, &mut self.out)?;
        self.out.write_all(b",\"row\":")?;
        object(row, &columns.row, change.row.as_ref(), &mut self.out)?;
        let time = time_text(change.timestamp.ms());
        writeln!(self.out, ",\"timestamp\":\"{time}\",\"token\":\"{}\"}}", change.token)
    }
}

fn object(
    names: &[String],
    columns: &[Column],
    values: Option<&Vec<quorate_shared::value::Value>>,
    out: &mut Output,
) -> io::Result<()> {
    match values {
        None => out.write_all(b"null"),
        Some(values) => json::object(names, columns, values, out),
    }
}

#[cfg(test)]
mod tests {
    use quorate_shared::ids::{Epoch, Index, SchemaVersion, ShardId, TableId, Timestamp};
    use quorate_shared::value::{SqlType, Value};

    use super::*;

    #[test]
    fn lines() {
        let token = FeedToken {
            shard: ShardId::DATA,
            epoch: Epoch { number: 1, id: 2 },
            table: TableId::new(5),
            version: SchemaVersion::new(1),
            index: Index::new(7),
            check: 3,
            skip: 0,
        };
        let column = |name: &str, ty| Column { name: name.into(), ty };
        let columns = FeedColumns {
            table: "Orders".into(),
            key: vec![column("Id", SqlType::Int)],
            row: vec![column("Id", SqlType::Int), column("note", SqlType::Text)],
        };
        let change = |op, key, row| Change { op, key, row, timestamp: Timestamp::new(1_500, 0), token };
        let row = vec![Value::Int(1), Value::Text("a\"b".into())];
        let changes = vec![
            change(FeedOp::Insert, vec![Value::Int(1)], Some(row)),
            change(FeedOp::Delete, vec![Value::Int(1)], None),
            change(FeedOp::Truncate, Vec::new(), None),
            change(FeedOp::Truncate, Vec::new(), None),
        ];
        let (url, table, from) = (None, "orders".into(), crate::args::streams::FeedPoint(None));
        let args = FeedArgs { url, table, from, limit: Some(3), heartbeat: false };
        let mut lines = Lines::new(Output::memory(), &args);
        lines.write(&FeedBatch { columns: Some(columns), changes, at: token }).expect("memory");
        let tail = format!("\"timestamp\":\"1970-01-01T00:00:01.500Z\",\"token\":\"{token}\"}}");
        let head = |op: &str| format!("{{\"op\":\"{op}\",\"table\":\"Orders\"");
        let expected = format!(
            "{},\"key\":{{\"Id\":1}},\"row\":{{\"Id\":1,\"note\":\"a\\\"b\"}},{tail}\n{},\"key\":{{\"Id\":1}},\"row\":null,{tail}\n{},\"key\":null,\"row\":null,{tail}\n",
            head("insert"),
            head("delete"),
            head("truncate")
        );
        assert_eq!(lines.out.take_memory(), expected);
        assert_eq!((lines.left, lines.at), (Some(0), Some(token)));
    }
}
