//! Exactly once: what became of each client's recent writes, in flight ones included.
//!
//! The tree has one record per client and slot (`seq % DEDUPE_WINDOW`). A client's window is read from it when the client
//! is first seen and kept up to date as its writes are staged; windows are forgotten again when there are many, and read
//! anew when needed.
//!
//! A client that has written nothing for long is forgotten by an entry, so the records do not pile up. No retry of its
//! last write can arrive so late: the client library gives up after its deadline, which is minutes at most.

use std::collections::BTreeMap;

use quorate_shared::ids::{ClientId, Index, Timestamp, WriteId};
use quorate_shared::limits::{DEDUPE_CLIENTS_MAX, DEDUPE_WINDOW};

use super::stored;
use crate::bug::{Bug, planted};
use crate::engine::Tree;
use crate::error::{Fatal, Rejected};
use crate::proposal::WriteResult;

/// Windows kept in memory; those of clients with nothing in flight are dropped beyond it.
const WINDOWS_MAX: usize = 4_096;

/// A client is forgotten after this much silence, in milliseconds.
const IDLE_MS: u64 = 3_600_000;
/// The same when there are more than [`DEDUPE_CLIENTS_MAX`].
const IDLE_CROWDED_MS: u64 = 600_000;
/// Records looked at in one step of a sweep.
const SWEEP_RECORDS: usize = 512;

/// What became of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Done {
    pub seq: u64,
    pub index: Index,
    pub timestamp: Timestamp,
    pub rows: u64,
    pub last_id: Option<i64>,
}

impl Done {
    /// The answer for whoever asks again.
    pub fn result(&self) -> WriteResult {
        WriteResult {
            rows: self.rows,
            last_id: self.last_id,
            index: self.index,
            timestamp: self.timestamp,
            duplicate: true,
            ..WriteResult::default()
        }
    }
}

#[derive(Default)]
struct Window {
    highest: u64,
    /// By slot.
    done: BTreeMap<u64, Done>,
    last_index: Index,
}

impl Window {
    fn note(&mut self, done: Done) {
        self.highest = self.highest.max(done.seq);
        self.last_index = self.last_index.max(done.index);
        self.done.insert(done.seq % DEDUPE_WINDOW, done);
    }
}

/// The windows of the clients seen lately.
#[derive(Default)]
pub(super) struct Dedupe {
    windows: BTreeMap<ClientId, Window>,
    /// Where the next step of the sweep through all clients begins.
    cursor: ClientId,
    /// Clients met since the sweep began at the first, and in the whole sweep before.
    met: usize,
    clients: usize,
}

impl Dedupe {
    /// What is known of a write: nothing (it is new), what became of it, or that it cannot be known any more.
    pub fn look_up(&mut self, tree: &dyn Tree, write: WriteId) -> Result<Result<Option<Done>, Rejected>, Fatal> {
        if planted(Bug::DropDedupe) {
            return Ok(Ok(None));
        }
        let window = match self.windows.entry(write.client) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let mut window = Window::default();
                stored::client(tree, write.client)?.into_iter().for_each(|done| window.note(done));
                entry.insert(window)
            }
        };
        Ok(match window.done.get(&(write.seq % DEDUPE_WINDOW)) {
            Some(done) if done.seq == write.seq => Ok(Some(*done)),
            _ if write.seq.saturating_add(DEDUPE_WINDOW) <= window.highest => {
                Err(Rejected::Unknown("the write is older than what is remembered of this client".into()))
            }
            _ => Ok(None),
        })
    }

    /// A write has been staged.
    pub fn note(&mut self, client: ClientId, done: Done) {
        self.windows.entry(client).or_default().note(done);
    }

    /// Entries up to this index are in the tree.
    pub fn applied(&mut self, index: Index) {
        if self.windows.len() > WINDOWS_MAX {
            self.windows.retain(|_, window| window.last_index > index);
        }
    }

    /// The next step of an endless sweep through the clients: those to be forgotten now.
    pub fn sweep(&mut self, tree: &dyn Tree, now: Timestamp) -> Result<Vec<ClientId>, Fatal> {
        let crowded = self.clients.max(self.met) > DEDUPE_CLIENTS_MAX;
        let idle_ms = if crowded { IDLE_CROWDED_MS } else { IDLE_MS };
        let mut last: BTreeMap<ClientId, Timestamp> = BTreeMap::new();
        let mut next = None;
        for (records, item) in stored::clients_from(tree, self.cursor).enumerate() {
            let (client, done) = item?;
            // Only clients seen whole are judged.
            if records >= SWEEP_RECORDS && !last.contains_key(&client) {
                next = Some(client);
                break;
            }
            let newest = last.entry(client).or_default();
            *newest = done.timestamp.max(*newest);
        }
        self.met += last.len();
        self.cursor = next.unwrap_or_default();
        if next.is_none() {
            self.clients = std::mem::take(&mut self.met);
        }
        last.retain(|client, at| {
            // What is in flight is not in the tree yet; the window has it.
            let newer = self.windows.get(client).and_then(|w| w.done.values().map(|done| done.timestamp).max());
            now.ms().saturating_sub(newer.unwrap_or(*at).max(*at).ms()) > idle_ms
        });
        for client in last.keys() {
            self.windows.remove(client);
        }
        Ok(last.into_keys().collect())
    }
}
