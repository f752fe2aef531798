//! Planted bugs: the checks of the simulator are themselves checked.
//!
//! Each names one line somewhere in this crate that can be made wrong on purpose, for one thread, in a build that has
//! the feature `planted-bugs` (tests and the simulator have). In every other build [`planted`] is a constant `false`, so
//! that nothing of this is in the daemon.

/// One way to be wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bug {
    /// A follower acknowledges, and a leader counts, what is not synced.
    AcknowledgeBeforeSync,
    /// A message of an older term is taken as one of this term.
    SkipTermCheck,
    /// A leader answers a read without asking a quorum whether it still leads.
    ReadWithoutReadIndex,
    /// Term and vote are not written.
    ForgetHardState,
    /// What a client has written before is not looked up.
    DropDedupe,
    /// The log is trimmed up to what is applied instead of what a synced base holds.
    TrimPastBase,
    /// Two entries that come together change places.
    ApplyOutOfOrder,
    /// After a restart the last applied entry is applied again.
    DoubleApply,
    /// A shipped batch is taken although its chain hash is another.
    IgnoreChainMismatch,
    /// A vote given in this term does not count when the next candidate asks.
    VoteTwice,
    /// A read does not wait until its index is applied.
    StaleSnapshotRead,
    /// A truncation is not found again when the log is opened.
    LoseTruncation,
    /// An engine is trusted although power was cut since it was written.
    TrustAfterPowerCut,
    /// A voter that has lost its log goes on under its old replica id.
    WipedVoterVotes,
    /// A refusal is answered before leadership was confirmed.
    UnconfirmedRefusal,
    /// Epochs are told apart by their number alone.
    TwoEpochs,
    /// A transaction's reads are checked against what is applied, not against what is in flight.
    IgnoreInFlight,
    /// An acknowledged write is taken from the follower's position, whatever its term.
    ReadBelowToken,
    /// A new member is given an id that another had before.
    ReuseReplicaId,
    /// Who is removed goes on with what was not known to be committed.
    KeepUncommitted,
    /// A node that has begun again from nothing takes up the id it had.
    AnyIncarnation,
    /// Who is fenced keeps what a newer epoch does not have.
    RejoinUncut,
    /// A snapshot's rows are those of now, not of its point.
    SnapshotOfNow,
    /// What is written while an index is being filled is not put into it.
    SkipFilling,
}

/// All of them, with the names of the command line.
pub const BUGS: &[(Bug, &str)] = &[
    (Bug::AcknowledgeBeforeSync, "acknowledge-before-sync"),
    (Bug::SkipTermCheck, "skip-term-check"),
    (Bug::ReadWithoutReadIndex, "read-without-read-index"),
    (Bug::ForgetHardState, "forget-hard-state"),
    (Bug::DropDedupe, "drop-dedupe"),
    (Bug::TrimPastBase, "trim-past-base"),
    (Bug::ApplyOutOfOrder, "apply-out-of-order"),
    (Bug::DoubleApply, "double-apply"),
    (Bug::IgnoreChainMismatch, "ignore-chain-mismatch"),
    (Bug::VoteTwice, "vote-twice"),
    (Bug::StaleSnapshotRead, "stale-snapshot-read"),
    (Bug::LoseTruncation, "lose-truncation"),
    (Bug::TrustAfterPowerCut, "trust-after-power-cut"),
    (Bug::WipedVoterVotes, "wiped-voter-votes"),
    (Bug::UnconfirmedRefusal, "unconfirmed-refusal"),
    (Bug::TwoEpochs, "two-epochs"),
    (Bug::IgnoreInFlight, "ignore-in-flight"),
    (Bug::ReadBelowToken, "read-below-token"),
    (Bug::ReuseReplicaId, "reuse-replica-id"),
    (Bug::KeepUncommitted, "keep-uncommitted"),
    (Bug::AnyIncarnation, "any-incarnation"),
    (Bug::RejoinUncut, "rejoin-uncut"),
    (Bug::SnapshotOfNow, "snapshot-of-now"),
    (Bug::SkipFilling, "skip-filling"),
];

impl Bug {
    /// By its name.
    pub fn named(name: &str) -> Option<Bug> {
        BUGS.iter().find(|(_, n)| *n == name).map(|(bug, _)| *bug)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        BUGS.iter().find(|(bug, _)| *bug == self).map_or("?", |(_, name)| name)
    }
}

#[cfg(any(test, feature = "planted-bugs"))]
mod plant {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with that bug.
    pub fn planted(bug: Bug) -> bool {
        PLANTED.with(Cell::get) == Some(bug)
    }

    /// Makes this thread run with a bug, or with none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.with(|planted| planted.set(bug));
    }
}

#[cfg(any(test, feature = "planted-bugs"))]
pub use self::plant::{plant, planted};

/// Nothing is planted in this build.
#[cfg(not(any(test, feature = "planted-bugs")))]
pub const fn planted(_: Bug) -> bool {
    false
}
