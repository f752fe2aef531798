//! Members change one step at a time: each change is made for the membership before it, no second one is appended while
//! one is not applied, replica ids are never given again, and an id lives on one incarnation of one node.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Index, NodeId, ReplicaId};

use super::lineage::Lineage;
use crate::entry::{Body, Entry, Kind};
use crate::log::{LogEntry, Membership, Payload};
use crate::membership::{ChangeEntry, Host};

#[derive(Default)]
pub struct Members {
    /// From which index on, in the epoch it is of.
    known: BTreeMap<(Epoch, Index), Arc<Membership>>,
    hosts: BTreeMap<(NodeId, ReplicaId), Host>,
    /// Changes committed.
    pub changes: u64,
}

/// The epoch that an entry begins.
pub fn epoch_of(entry: &LogEntry) -> Option<(Epoch, Membership)> {
    if entry.payload != Payload::Entry || Entry::header(&entry.bytes).is_ok_and(|h| h.kind != Kind::Epoch) {
        return None;
    }
    match Entry::decode(&entry.bytes).ok()?.body {
        Body::Epoch(begun) => Some((begun.epoch, begun.membership)),
        _ => None,
    }
}

impl Members {
    /// The founders.
    pub fn found(&mut self, epoch: Epoch, membership: Membership) {
        self.known.insert((epoch, Index::new(0)), Arc::new(membership));
    }

    /// The membership at an index in the history of an epoch.
    pub fn at(&self, lineage: &Lineage, epoch: Epoch, index: Index) -> Arc<Membership> {
        self.range(lineage, epoch, index, index).pop().unwrap_or_default()
    }

    /// The last one.
    pub fn newest(&self, lineage: &Lineage) -> Arc<Membership> {
        self.at(lineage, lineage.newest(), Index::new(u64::MAX))
    }

    /// Those that held somewhere between two indexes, the oldest first.
    pub fn range(&self, lineage: &Lineage, epoch: Epoch, from: Index, to: Index) -> Vec<Arc<Membership>> {
        let (mut out, mut at) = (Vec::new(), to);
        loop {
            let home = lineage.home(epoch, at);
            let Some(((_, since), membership)) = self.known.range((home, Index::new(0))..=(home, at)).next_back()
            else {
                return out;
            };
            out.push(Arc::clone(membership));
            if *since <= from || *since == Index::new(0) {
                out.reverse();
                return out;
            }
            at = Index::new(since.get() - 1);
        }
    }

    /// Those whose voters may have decided about an index: that of the entry before it may not have counted yet, since a
    /// change counts when it is applied.
    pub fn counted(&self, lineage: &Lineage, epoch: Epoch, index: Index) -> Vec<Arc<Membership>> {
        let before = Index::new(index.get().saturating_sub(1));
        let mut out = self.range(lineage, epoch, before, Index::new(u64::MAX));
        out.extend(self.last_two(lineage, epoch, before));
        out
    }

    /// The membership at an index, and the one before it.
    pub fn last_two(&self, lineage: &Lineage, epoch: Epoch, at: Index) -> Vec<Arc<Membership>> {
        let home = lineage.home(epoch, at);
        let known = self.known.range((home, Index::new(0))..=(home, at)).rev();
        known.take(2).map(|(_, membership)| Arc::clone(membership)).collect()
    }

    /// A node takes up a replica id.
    pub fn lives(&mut self, replica: ReplicaId, host: Host) -> Result<(), String> {
        let known = *self.hosts.entry((host.node, replica)).or_insert(host);
        if known == host {
            return Ok(());
        }
        Err(format!("{replica} lives on {} again, which has begun from nothing since", host.node))
    }

    /// An entry is committed, for the first time.
    pub fn committed(&mut self, lineage: &Lineage, epoch: Epoch, entry: &LogEntry) -> Result<(), String> {
        let index = entry.index;
        if let Some((begun, membership)) = epoch_of(entry) {
            self.known.insert((begun, index), Arc::new(membership));
            return Ok(());
        }
        if entry.payload != Payload::Membership {
            return Ok(());
        }
        self.changes += 1;
        let change = ChangeEntry::decode(&entry.bytes).map_err(|e| format!("the change in {index}: {e}"))?;
        let before = self.at(lineage, epoch, Index::new(index.get() - 1));
        let refused = |why: String| format!("the change {:?} in {index} of {before:?}: {why}", change.change);
        let after = before.after(&change.change).map_err(|e| refused(e.to_string()))?;
        after.check().map_err(|e| refused(e.into()))?;
        if after != change.after {
            return Err(refused(format!("it was made for another membership: {:?}", change.after)));
        }
        let given = |m: &Membership, replica: ReplicaId| m.contains(replica);
        let new = after.nodes().into_keys().filter(|r| !given(&before, *r));
        if let Some(again) = new.into_iter().find(|r| *r < before.next) {
            return Err(refused(format!("{again} is given a second time")));
        }
        self.known.insert((lineage.home(epoch, index), index), Arc::new(after));
        Ok(())
    }

    /// A leader appends a change, with these in its log that are not applied yet.
    pub fn appended(&self, node: u64, change: Index, pending: &[Index]) -> Result<(), String> {
        match pending.iter().find(|index| **index < change) {
            Some(other) => {
                Err(format!("n{node} appends the change in {change} while the one in {other} is not applied"))
            }
            None => Ok(()),
        }
    }
}
