//! The leader's stream of entries to each follower, as this replica sends it.
//!
//! The library sends everything at once and never again. Here a follower that is far behind gets its entries in parts,
//! the next when it has made the last durable; what the library says meanwhile is dropped, for it is in the log. So
//! neither the leader's memory nor a peer's queue has to hold what a follower lacks.

use std::collections::{BTreeMap, VecDeque};

use super::storage::{PARTS_AT_ONCE, SYNC_BYTES};

/// Bytes on their way to a follower that it has not acknowledged.
const WINDOW_BYTES: usize = PARTS_AT_ONCE as usize * SYNC_BYTES;

/// One follower's.
#[derive(Default, Debug)]
pub(super) struct Stream {
    /// The position the next entries begin at.
    pub(super) next: u64,
    /// The decided position it has been told.
    pub(super) told: u64,
    /// Entries are read from the log for it.
    pub(super) behind: bool,
    /// The stop sign has been sent.
    pub(super) stopped: bool,
    flying: VecDeque<(u64, usize)>,
    flying_bytes: usize,
}

impl Stream {
    /// Entries up to a position are on their way.
    pub(super) fn sent(&mut self, end: u64, bytes: usize) {
        self.next = end;
        self.flying.push_back((end, bytes));
        self.flying_bytes += bytes;
    }

    fn accepted(&mut self, position: u64) {
        while self.flying.front().is_some_and(|(end, _)| *end <= position) {
            self.flying_bytes -= self.flying.pop_front().map_or(0, |(_, bytes)| bytes);
        }
    }

    /// No more fits on the way.
    pub(super) fn is_full(&self) -> bool {
        self.flying_bytes >= WINDOW_BYTES
    }
}

/// All followers', and how far each has accepted what this leader sent.
#[derive(Default, Debug)]
pub(super) struct Streams {
    streams: BTreeMap<u64, Stream>,
    accepted: BTreeMap<u64, u64>,
}

impl Streams {
    /// A stream begins (again) behind a synchronization.
    pub(super) fn begin(&mut self, follower: u64) -> &mut Stream {
        let stream = self.streams.entry(follower).or_default();
        *stream = Stream::default();
        stream
    }

    pub(super) fn get(&mut self, follower: u64) -> Option<&mut Stream> {
        self.streams.get_mut(&follower)
    }

    pub(super) fn followers(&self) -> Vec<u64> {
        self.streams.keys().copied().collect()
    }

    /// The session with a follower is over.
    pub(super) fn end(&mut self, follower: u64) {
        self.streams.remove(&follower);
    }

    /// Leadership is lost, or has begun.
    pub(super) fn clear(&mut self) {
        self.streams.clear();
        self.accepted.clear();
    }

    /// A follower says how far it has accepted, durably.
    pub(super) fn note_accepted(&mut self, follower: u64, position: u64) {
        let known = self.accepted.entry(follower).or_default();
        *known = (*known).max(position);
        if let Some(stream) = self.streams.get_mut(&follower) {
            stream.accepted(position);
        }
    }

    /// The positions sent to a follower and accepted by it.
    pub(super) fn progress(&self, follower: u64) -> (u64, u64) {
        let accepted = self.accepted.get(&follower).copied().unwrap_or_default();
        (self.streams.get(&follower).map_or(accepted, |s| s.next.max(accepted)), accepted)
    }
}
