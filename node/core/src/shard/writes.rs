//! Proposals that are in the log: from the append until they are applied, and then until enough replicas have them.
//!
//! When leadership is lost they become *orphans*: they may still commit under the next leader. Until that is known they
//! wait, but not long: their callers can ask the new leader with the same write id. An entry of another term at their
//! index proves that they are lost.

use std::collections::BTreeMap;

use quorate_shared::ids::{Index, Term};

use super::{Effect, Ticket};
use crate::error::Rejected;
use crate::lag::Lag;
use crate::log::LogEntry;
use crate::proposal::{Proposal, WriteResult};
use crate::replica::Now;

/// A proposal in an entry.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) ticket: Ticket,
    deadline: u64,
    wait_for_replicas: u32,
    wait_ms: u32,
    result: WriteResult,
}

impl Staged {
    pub(super) fn new(ticket: Ticket, proposal: &Proposal, deadline: u64) -> Self {
        let Proposal { wait_for_replicas, wait_ms, .. } = *proposal;
        Self { ticket, deadline, wait_for_replicas, wait_ms, result: WriteResult::default() }
    }

    /// With its answer.
    pub(super) fn with(mut self, result: WriteResult) -> Self {
        self.result = result;
        self
    }
}

/// A proposal whose entry is applied.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) index: Index,
    pub(super) staged: Staged,
}

#[derive(Debug)]
struct Slot {
    term: Term,
    staged: Vec<Staged>,
}

/// Proposals in the log, by the index of their entry.
#[derive(Debug, Default)]
pub(super) struct Writes {
    slots: BTreeMap<Index, Slot>,
    len: usize,
    /// Set while those of a lost leadership are among them: when they are given up.
    orphans_until: Option<Now>,
}

impl Writes {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, index: Index, term: Term, staged: Staged) {
        self.len += 1;
        self.slots.entry(index).or_insert_with(|| Slot { term, staged: Vec::new() }).staged.push(staged);
    }

    /// Leadership is lost: whether they commit is not known until they do.
    pub(super) fn orphan(&mut self, until: Now) {
        self.orphans_until = (!self.slots.is_empty()).then_some(until);
    }

    /// Entries are committed: those of another term at the same index prove an orphan lost.
    pub(super) fn committed(&mut self, entries: &[LogEntry], effects: &mut Vec<Effect>) {
        if self.orphans_until.is_none() {
            return;
        }
        for entry in entries {
            if self.slots.get(&entry.index).is_some_and(|slot| slot.term != entry.term) {
                let lost = self.slots.remove(&entry.index);
                self.answer(lost, &Rejected::Retry("leadership was lost before it was committed".into()), effects);
            }
        }
    }

    /// The log ends before every orphan for good: none of them can commit.
    pub(super) fn forget_orphans(&mut self, effects: &mut Vec<Effect>) {
        self.orphans_until = None;
        while let Some((_, slot)) = self.slots.pop_first() {
            self.answer(Some(slot), &Rejected::Retry("leadership was lost before it was committed".into()), effects);
        }
    }

    /// Takes out what is applied now.
    pub(super) fn applied(&mut self, index: Index) -> Vec<Done> {
        let mut done = Vec::new();
        while let Some(first) = self.slots.first_entry().filter(|slot| *slot.key() <= index) {
            let (index, slot) = first.remove_entry();
            self.len -= slot.staged.len();
            done.extend(slot.staged.into_iter().map(|staged| Done { index, staged }));
        }
        if self.slots.is_empty() {
            self.orphans_until = None;
        }
        done
    }

    /// Gives up orphans whose time is over, and whatever is past its caller's deadline.
    pub(super) fn expire(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let unknown = |text: &str| Rejected::Unknown(text.into());
        if self.orphans_until.is_some_and(|until| until <= now) {
            self.orphans_until = None;
            while let Some((_, slot)) = self.slots.pop_first() {
                self.answer(Some(slot), &unknown("leadership was lost while it was being written"), effects);
            }
        }
        for slot in self.slots.values_mut() {
            let before = slot.staged.len();
            for late in slot.staged.extract_if(.., |staged| staged.deadline <= now) {
                let result = Err(unknown("it was not committed before its deadline"));
                effects.push(Effect::Reply { ticket: late.ticket, result });
            }
            self.len -= before - slot.staged.len();
        }
    }

    fn answer(&mut self, slot: Option<Slot>, rejected: &Rejected, effects: &mut Vec<Effect>) {
        for staged in slot.into_iter().flat_map(|slot| slot.staged) {
            self.len -= 1;
            effects.push(Effect::Reply { ticket: staged.ticket, result: Err(rejected.clone()) });
        }
    }
}

#[derive(Debug)]
struct Wait {
    staged: Staged,
    until: Now,
}

/// Applied writes that wait for log-shipped replicas, by index.
#[derive(Debug, Default)]
pub(super) struct ReplicaWaits {
    waits: BTreeMap<Index, Vec<Wait>>,
    len: usize,
}

impl ReplicaWaits {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Answers an applied write, at once if it waits for no replica.
    pub(super) fn begin(&mut self, now: Now, done: Done, lag: &Lag, effects: &mut Vec<Effect>) {
        let Done { index, mut staged } = done;
        if staged.wait_for_replicas == 0 {
            effects.push(Effect::Reply { ticket: staged.ticket, result: Ok(staged.result) });
            return;
        }
        let have = lag.replicas_at(index);
        if have >= staged.wait_for_replicas {
            staged.result.replicas = Some(have);
            effects.push(Effect::Reply { ticket: staged.ticket, result: Ok(staged.result) });
            return;
        }
        let until = now.saturating_add(u64::from(staged.wait_ms)).min(staged.deadline);
        self.len += 1;
        self.waits.entry(index).or_default().push(Wait { staged, until });
    }

    /// A replica has reported.
    pub(super) fn reported(&mut self, lag: &Lag, effects: &mut Vec<Effect>) {
        if self.len > 0 {
            self.release(lag, effects, |wait, have| have >= wait.staged.wait_for_replicas);
        }
    }

    /// Answers those that have waited long enough, with how many replicas have it.
    pub(super) fn expire(&mut self, now: Now, lag: &Lag, effects: &mut Vec<Effect>) {
        if self.len > 0 {
            self.release(lag, effects, |wait, have| wait.until <= now || have >= wait.staged.wait_for_replicas);
        }
    }

    fn release(&mut self, lag: &Lag, effects: &mut Vec<Effect>, free: impl Fn(&Wait, u32) -> bool) {
        let mut released = 0;
        self.waits.retain(|index, waits| {
            let have = lag.replicas_at(*index);
            for mut wait in waits.extract_if(.., |wait| free(wait, have)) {
                released += 1;
                wait.staged.result.replicas = Some(have);
                effects.push(Effect::Reply { ticket: wait.staged.ticket, result: Ok(wait.staged.result) });
            }
            !waits.is_empty()
        });
        self.len -= released;
    }
}
