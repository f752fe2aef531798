//! Reads, and answers that are reads: one round of the protocol confirms all that are waiting when it starts.
//!
//! A round that is lost is repeated by the protocol's heartbeats; one that never ends leaves its waiters to their
//! deadlines. A new round starts only when the last one has come back, so that rounds grow with the load.

use std::collections::BTreeMap;

use quorate_shared::ids::Index;

use super::{Effect, Ticket};
use crate::error::Rejected;
use crate::proposal::WriteResult;
use crate::replica::Now;

/// Someone who waits for leadership to be confirmed.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A read: it wants the commit index.
    Read { ticket: Ticket, deadline: u64 },
    /// A proposal that appended nothing, with the last entry it was evaluated on.
    Answer { ticket: Ticket, deadline: u64, result: Result<WriteResult, Rejected>, depends_on: Index },
}

impl Waiter {
    fn deadline(&self) -> u64 {
        match self {
            Waiter::Read { deadline, .. } | Waiter::Answer { deadline, .. } => *deadline,
        }
    }

    fn refuse(self, rejected: Rejected) -> Effect {
        match self {
            Waiter::Read { ticket, .. } => Effect::ReadReady { ticket, result: Err(rejected) },
            Waiter::Answer { ticket, .. } => Effect::Reply { ticket, result: Err(rejected) },
        }
    }
}

/// A confirmed answer that waits for what it depends on.
#[derive(Debug)]
struct Confirmed {
    ticket: Ticket,
    deadline: u64,
    result: Result<WriteResult, Rejected>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next: Vec<Waiter>,
    round: Option<Vec<Waiter>>,
    /// Names the running round, or the next one. Never used twice, also over a loss of leadership.
    context: u64,
    confirmed: BTreeMap<Index, Vec<Confirmed>>,
    answers: usize,
}

impl Reads {
    pub(super) fn push(&mut self, waiter: Waiter) {
        self.answers += usize::from(matches!(waiter, Waiter::Answer { .. }));
        self.next.push(waiter);
    }

    /// Answers of proposals among those that wait.
    pub(super) fn answers(&self) -> usize {
        self.answers
    }

    /// The context of a round to start, if there is reason for one and none is running.
    pub(super) fn wants_round(&self) -> Option<u64> {
        (self.round.is_none() && !self.next.is_empty()).then_some(self.context + 1)
    }

    /// The round of [`Reads::wants_round`] has been started.
    pub(super) fn begin_round(&mut self) {
        self.context += 1;
        self.round = Some(std::mem::take(&mut self.next));
    }

    /// A quorum has answered.
    pub(super) fn confirmed(&mut self, context: u64, index: Index, applied: Index, effects: &mut Vec<Effect>) {
        if context != self.context {
            return;
        }
        for waiter in self.round.take().into_iter().flatten() {
            match waiter {
                Waiter::Read { ticket, .. } => effects.push(Effect::ReadReady { ticket, result: Ok(index) }),
                Waiter::Answer { ticket, result, depends_on, .. } if depends_on <= applied => {
                    self.answers -= 1;
                    effects.push(Effect::Reply { ticket, result });
                }
                Waiter::Answer { ticket, deadline, result, depends_on } => {
                    self.confirmed.entry(depends_on).or_default().push(Confirmed { ticket, deadline, result });
                }
            }
        }
    }

    /// Entries are applied: what waited for them is free.
    pub(super) fn applied(&mut self, index: Index, effects: &mut Vec<Effect>) {
        while let Some(first) = self.confirmed.first_entry().filter(|e| *e.key() <= index) {
            for Confirmed { ticket, result, .. } in first.remove() {
                self.answers -= 1;
                effects.push(Effect::Reply { ticket, result });
            }
        }
    }

    /// Leadership is lost: nothing that waits can be confirmed any more.
    pub(super) fn lose(&mut self, rejected: &Rejected, effects: &mut Vec<Effect>) {
        self.answers = 0;
        let round = self.round.take().unwrap_or_default();
        effects.extend(round.into_iter().chain(self.next.drain(..)).map(|w| w.refuse(rejected.clone())));
        for Confirmed { ticket, .. } in std::mem::take(&mut self.confirmed).into_values().flatten() {
            effects.push(Effect::Reply { ticket, result: Err(rejected.clone()) });
        }
    }

    /// Refuses what is past its deadline.
    pub(super) fn expire(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let mut gone = 0;
        for waiters in [&mut self.next].into_iter().chain(self.round.as_mut()) {
            for late in waiters.extract_if(.., |w| w.deadline() <= now) {
                gone += usize::from(matches!(late, Waiter::Answer { .. }));
                effects.push(late.refuse(Rejected::Retry("no quorum answered in time".into())));
            }
        }
        self.confirmed.retain(|_, waiting| {
            for late in waiting.extract_if(.., |w| w.deadline <= now) {
                gone += 1;
                let result = Err(Rejected::Retry("what it depends on was not applied in time".into()));
                effects.push(Effect::Reply { ticket: late.ticket, result });
            }
            !waiting.is_empty()
        });
        self.answers -= gone;
    }
}
