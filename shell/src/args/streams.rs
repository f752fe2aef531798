//! The command line of what streams out of a cluster's log: `quorate feed`.

use quorate_shared::feed::{FeedToken, NoToken};

/// `quorate feed`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "One line per change, in the order of the log, each at least once:\n  \
        {\"op\":\"insert\",\"table\":\"t\",\"key\":{\"id\":1},\"row\":{\"id\":1,...},\"timestamp\":\"...\",\"token\":\"...\"}\n\
        op is insert, update, delete (row is null), truncate (key and row are null), or upsert where it is too long ago \
        to tell an insert from an update. --from with the token of the last line you have dealt with goes on behind it, \
        at any node; a feed whose node dies goes on by itself.")]
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
