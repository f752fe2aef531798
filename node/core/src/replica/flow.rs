//! What every protocol keeps account of besides its own state: writes on their way to the disk, committed entries on
//! their way to the applier, the next tick; and the guard around its library.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use quorate_shared::ids::Index;

use super::{Now, PersistId, Timing};
use crate::error::Fatal;
use crate::log::LogEntry;

/// Bytes of committed entries handed out and not yet applied, beyond which no more are taken.
pub const APPLY_WINDOW_BYTES: usize = 16 << 20;
/// What an entry costs besides its bytes.
const ENTRY_OVERHEAD: usize = 64;

/// A write on its way to the disk.
struct Write {
    id: PersistId,
    since: Now,
    /// The last index of its entries, as far as they have not been replaced since.
    last: Option<Index>,
}

/// Writes given out, in order.
#[derive(Default)]
pub(super) struct Writes {
    under_way: VecDeque<Write>,
    issued: PersistId,
    durable: PersistId,
}

impl Writes {
    /// A write is given out.
    pub(super) fn give_out(&mut self, now: Now, id: PersistId, last: Option<Index>) {
        self.issued = id;
        self.under_way.push_back(Write { id, since: now, last });
    }

    /// Entries from this index on are replaced or gone.
    pub(super) fn cut(&mut self, from: Index) {
        let keep = Index::new(from.get().saturating_sub(1));
        for write in &mut self.under_way {
            write.last = write.last.map(|last| last.min(keep));
        }
    }

    /// A write is durable, and all before it: up to which entry. `false`: that is no news.
    pub(super) fn finish(&mut self, id: PersistId) -> (bool, Option<Index>) {
        if id <= self.durable || id > self.issued {
            return (false, None);
        }
        self.durable = id;
        let mut last = None;
        while let Some(write) = self.under_way.pop_front_if(|w| w.id <= id) {
            last = write.last.or(last);
        }
        (true, last)
    }

    /// The last write given out.
    pub(super) fn issued(&self) -> PersistId {
        self.issued
    }

    /// The last write that is durable.
    pub(super) fn durable(&self) -> PersistId {
        self.durable
    }

    /// How many are under way.
    pub(super) fn pending(&self) -> usize {
        self.under_way.len()
    }

    /// How long the oldest one has taken by now.
    pub(super) fn wait(&self, now: Now) -> u64 {
        self.under_way.front().map_or(0, |w| now.saturating_sub(w.since))
    }
}

/// Committed entries handed out and not yet applied.
#[derive(Default)]
pub(super) struct Applying {
    batches: VecDeque<(Index, usize)>,
    bytes: usize,
}

impl Applying {
    /// These are handed out.
    pub(super) fn hand_out(&mut self, entries: &[LogEntry]) {
        let Some(last) = entries.last() else { return };
        let bytes = entries.iter().map(|e| e.bytes.len() + ENTRY_OVERHEAD).sum();
        self.batches.push_back((last.index, bytes));
        self.bytes += bytes;
    }

    /// Entries up to an index are applied.
    pub(super) fn applied(&mut self, index: Index) {
        while let Some((_, bytes)) = self.batches.pop_front_if(|(last, _)| *last <= index) {
            self.bytes -= bytes;
        }
    }

    /// No more are to be taken now.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= APPLY_WINDOW_BYTES
    }
}

impl Timing {
    /// When to tick after a tick. After a pause one is enough: messages that have come meanwhile must be heard before an
    /// election begins.
    pub(super) fn after_tick(&self, due: Now, now: Now) -> Now {
        (due + self.tick).max(now + self.tick / 2).max(now + 1)
    }
}

/// Runs something of a protocol's library; a panic becomes [`Fatal`]. After one nothing of it is used again: the replica
/// stops.
pub(super) fn guard<T>(library: &str, doing: impl Fn() -> String, f: impl FnOnce() -> T) -> Result<T, Fatal> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("it panicked");
        Fatal::new(doing(), format!("the {library} library: {text}"))
    })
}
