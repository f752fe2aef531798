//! The command lines of `quorated restore` and `quorated backup-verify`: standard output has the result, standard error
//! what is done meanwhile.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use quorate_shared::ids::{Index, NodeId, ShardId};

use super::{Cut, Options, RestoreError, Summary, restore, verify};

/// `quorated restore`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  \
    quorated restore --from /backup/shop --to-time 2026-01-31T12:34:56Z --into ./restored\n  \
    quorated start --id 1 --peers 1=127.0.0.1:7411 --data ./restored\n\
    The restored node is the first voter of a new cluster; more are added to it while it runs.\n\
    Exit codes: 0 restored, 1 it could not be (nothing is left at the target), 2 usage.")]
pub struct RestoreArgs {
    /// The directory that `quorate backup` wrote.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The data directory to make; it must not be there, or be empty.
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Restore what was committed up to this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = Cut::time, conflicts_with = "to_index")]
    pub to_time: Option<Cut>,
    /// Restore up to this entry of a shard, and the others up to its timestamp.
    #[arg(long, value_name = "sN:INDEX", value_parser = Cut::index)]
    pub to_index: Option<Cut>,
    /// The number of the node it is for.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// The result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// `quorated backup-verify`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Reads every file, recomputes every checksum and the hash chain, replays the backup into a scratch \
    directory (in $TMPDIR, removed afterwards), compares the digest of every table with those in the archive, and \
    recomputes them from the restored rows.\nExit codes: 0 it is good, 1 it is not, 2 usage."
)]
pub struct BackupVerifyArgs {
    /// The directory that `quorate backup` wrote.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The result as one JSON document.
    #[arg(long)]
    pub json: bool,
}

impl RestoreArgs {
    /// Runs it; its exit code.
    pub fn run(&self) -> u8 {
        let options = Options {
            from: self.from.clone(),
            into: self.into.clone(),
            node: NodeId::new(self.id),
            cut: self.to_time.or(self.to_index).unwrap_or_default(),
        };
        ended(restore(&options, &mut tell), self.json, |summary| self.text(summary))
    }

    fn text(&self, summary: &Summary) -> String {
        let mut out = lines(summary);
        let (into, id) = (self.into.display(), self.id);
        out.push(format!("restored as of {} into {into}", summary.time));
        out.push(format!("start it as the first voter of a new cluster:\n  quorated start --id {id} --peers {id}=HOST:PORT --data {into}"));
        out.join("\n") + "\n"
    }
}

impl BackupVerifyArgs {
    /// Runs it; its exit code.
    pub fn run(&self) -> u8 {
        ended(verify(&self.from, &mut tell), self.json, |summary| {
            let mut out = lines(summary);
            let last = |index: u64| Index::new(index);
            for shard in &summary.shards {
                let id = shard.shard.trim_start_matches('s').parse().map(ShardId::new).unwrap_or(ShardId::META);
                out.push(match shard.compared {
                    0 => format!("{id}: it has no snapshot and no digests to compare with; the hash chain is what proves it"),
                    n => format!(
                        "{id}: the digests of all tables were those of the cluster at {n} point{}, the last at entry {} of {}",
                        if n == 1 { "" } else { "s" },
                        last(shard.compared_at),
                        last(shard.archived)
                    ),
                });
            }
            out.push(format!("the backup is good; its newest entry is of {}", summary.time));
            out.join("\n") + "\n"
        })
    }
}

fn lines(summary: &Summary) -> Vec<String> {
    let shard = |shard: &super::ShardSummary| {
        let tables = format!("{} table{}", shard.tables, if shard.tables == 1 { "" } else { "s" });
        if shard.archived == shard.after {
            let base = shard.after;
            return format!(
                "{}: checksums proved of its base at entry {base}, it has no entries behind it; {tables}",
                shard.shard
            );
        }
        format!(
            "{}: checksums and hash chain proved for entries {} to {}; replayed to {}, {tables}",
            shard.shard,
            shard.after + 1,
            shard.archived,
            shard.index
        )
    };
    let notes = summary.notes.iter().map(|note| format!("note: {note}"));
    summary.shards.iter().map(shard).chain(notes).collect()
}

fn tell(text: &str) {
    eprintln!("{text}");
}

fn ended(result: Result<Summary, RestoreError>, json: bool, text: impl Fn(&Summary) -> String) -> u8 {
    let summary = match result {
        Ok(summary) => summary,
        Err(error) => {
            eprintln!("error: {error}");
            return 1;
        }
    };
    let out = match json {
        false => text(&summary),
        // Plain data always serializes.
        true => serde_json::to_string_pretty(&summary).unwrap_or_default() + "\n",
    };
    // A closed stdout is nobody's problem.
    let _ = std::io::stdout().write_all(out.as_bytes());
    0
}
