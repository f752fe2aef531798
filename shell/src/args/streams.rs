//! The command line of what streams out of a cluster's log: `quorate feed`, `quorate backup`, `quorate restore`.

use std::path::PathBuf;

use quorate_shared::feed::{FeedToken, NoToken};

/// `quorate feed`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "One line per change, in the order of the log, each at least once:\n  \
        {\"op\":\"insert\",\"table\":\"t\",\"key\":{\"id\":1},\"row\":{\"id\":1,...},\"timestamp\":\"...\",\"token\":\"...\"}\n\
        op is insert, update, delete (row is null), truncate (key and row are null), or upsert where it is too long ago \
        to tell an insert from an update. --from with the token of the last line you have dealt with goes on behind it, \
        at any node; a feed whose node dies goes on by itself. Ctrl-C ends it (exit 130) and says how to go on.")]
pub struct FeedArgs {
    /// Where, as a quorate:// URL
    pub url: Option<String>,
    /// The table: NAME or DATABASE.NAME
    #[arg(long, value_name = "NAME")]
    pub table: String,
    /// Where to begin: now, or a token that was printed
    #[arg(long, value_name = "now|TOKEN", default_value = "now", value_parser = feed_point)]
    pub from: FeedPoint,
    /// End after so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Print a line {"op":"heartbeat"} with a token, too, whenever nothing has changed for about a second
    #[arg(long)]
    pub heartbeat: bool,
}

/// Where a feed begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeedPoint(pub Option<FeedToken>);

fn feed_point(text: &str) -> Result<FeedPoint, String> {
    if text.eq_ignore_ascii_case("now") {
        return Ok(FeedPoint(None));
    }
    text.parse().map(|token| FeedPoint(Some(token))).map_err(|e: NoToken| format!("{e}, nor 'now'"))
}

/// `quorate backup`.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "COMMAND",
    after_help = "A backup is the log of every shard from a base on: it can be restored to any time or entry it reaches to \
        (quorate restore). It goes on until Ctrl-C or SIGTERM, which end it as they should (exit 0); the same command \
        goes on with it later, also after a crash. While it runs, `quorate status` shows how old it is; when it is \
        stopped, the problem BackupStale comes up until it goes on or is forgotten. --once leaves nothing to be missed.\n\
        Examples:\n  \
        quorate backup --to /backup/shop\n  \
        quorate backup --to /backup/shop-today --once\n  \
        quorate backup verify --from /backup/shop"
)]
pub struct BackupArgs {
    #[allow(missing_docs)]
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// Where, as a quorate:// URL
    pub url: Option<String>,
    /// Write the backup into this directory, or go on with the one that is there
    #[arg(long, value_name = "DIR", required_unless_present = "forget")]
    pub to: Option<PathBuf>,
    /// End when everything committed by now is in it
    #[arg(long)]
    pub once: bool,
    /// Let the cluster forget a backup that is gone on with no more (its id is shown by status)
    #[arg(long, value_name = "ID", value_parser = archive_id, conflicts_with_all = ["to", "once"])]
    pub forget: Option<u64>,
    /// What was written as one JSON document, at the end
    #[arg(long)]
    pub json: bool,
}

/// What can be done with a backup besides making it.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum BackupCommand {
    /// Prove that a backup is good: restore it into a scratch directory and compare digests (needs quorated, no cluster)
    Verify(BackupVerifyArgs),
}

/// `quorate backup verify`.
#[derive(clap::Args, Clone, Debug)]
pub struct BackupVerifyArgs {
    /// The backup
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The result as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `quorate restore`.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Needs quorated beside this program or in the PATH; no cluster. What it makes is the first voter of \
    a new cluster:\n  \
    quorate restore --from /backup/shop --to-time 2026-01-31T12:34:56Z --into ./restored\n  \
    quorated start --id 1 --peers 1=127.0.0.1:7411 --data ./restored\n\
    Every checksum and the hash chain are verified; what is missing or damaged is named, and nothing is left at the target."
)]
pub struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The data directory to make; it must not be there, or be empty
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Restore what was committed up to this time (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with = "to_index")]
    pub to_time: Option<String>,
    /// Restore up to this entry of a shard, and the others up to its timestamp
    #[arg(long, value_name = "sN:INDEX")]
    pub to_index: Option<String>,
    /// The number of the node it is for [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub id: Option<u64>,
    /// The result as one JSON document
    #[arg(long)]
    pub json: bool,
}

fn archive_id(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("'{text}' is not the id of a backup (hexadecimal digits)"))
}
