//! Exit codes: a contract with scripts.
//!
//! `quorate status` alone has the monitoring codes instead: 0 ok, 1 warning, 2 critical, 3 unknown.

use quorate_shared::error::Code;

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Exit {
    /// Everything asked for is done.
    #[default]
    Done,
    /// A statement or action failed.
    Failed,
    /// The command line or configuration is wrong; nothing was tried.
    Usage,
    /// No node could be reached.
    NoConnection,
    /// It may or may not have happened.
    Unknown,
    /// Stopped by Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NoConnection => 3,
            Exit::Unknown => 4,
            Exit::Interrupted => 130,
        }
    }

    /// How a failed statement ends a run.
    pub fn of(code: Code) -> Exit {
        match code {
            Code::Unknown => Exit::Unknown,
            _ => Exit::Failed,
        }
    }

    /// What to report for a run of several, going on after failures: an unknown outcome outweighs a failure.
    #[must_use]
    pub fn worst(self, other: Exit) -> Exit {
        let rank = |e: Exit| match e {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Unknown => 2,
            Exit::NoConnection => 3,
            Exit::Usage => 4,
            Exit::Interrupted => 5,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}
