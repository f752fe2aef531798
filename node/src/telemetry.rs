//! The log: fragments with fields, to stderr.
//!
//! `ERROR` means that someone must look, `WARN` is unexpected and survived, `INFO` is a change of state, what happens
//! per request is `DEBUG`. Stdout stays free for what was asked for.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::util::TryInitError;

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is wrong with the log's settings.
#[derive(thiserror::Error, Debug)]
pub enum TelemetryError {
    /// The level is neither a level nor a filter.
    #[error("log level {0:?} is not error, warn, info, debug, trace or a filter such as quorate_node=debug")]
    Filter(String),
    /// Another subscriber is there already.
    #[error(transparent)]
    Taken(#[from] TryInitError),
}

/// Reads a level or filter. Libraries are kept quiet unless they are named in it.
pub fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let quiet = ["datafusion", "datafusion_optimizer", "sqlparser", "sled", "h2", "hyper", "raft", "pagecache"];
    let mut text = level.trim().to_owned();
    for library in quiet {
        if !level.contains(library) {
            text.push_str(&format!(",{library}=warn"));
        }
    }
    let bad = |_| TelemetryError::Filter(level.to_owned());
    let known = ["error", "warn", "info", "debug", "trace", "off"];
    if !level.contains('=') && !known.iter().any(|known| known.eq_ignore_ascii_case(level.trim())) {
        return Err(TelemetryError::Filter(level.to_owned()));
    }
    EnvFilter::try_new(text).map_err(bad)
}

/// Begins to log. Once per process.
pub fn init(level: &str, format: Format) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => builder.finish().try_init()?,
        Format::Json => builder.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        assert!(filter("info").is_ok());
        assert!(filter("quorate_node=debug,warn").is_ok());
        assert!(filter("loud").is_err());
        assert!(filter("x=loud").is_err());
    }
}
