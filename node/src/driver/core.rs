//! The core thread: steps every shard of the node and hands out the effects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quorate_core::error::{Fatal, Rejected};
use quorate_core::log::BaseRecord;
use quorate_core::membership::{Membership, Refused};
use quorate_core::replica::Now;
use quorate_core::shard::{Effect, Input, Ticket, View};
use quorate_core::ship::ShipProgress;
use quorate_shared::ids::ShardId;
use quorate_shared::status::ShardStatus;

use super::view::Leader;
use super::{Clock, Event, Failure, OnChanged, OnIndex, OnStatus, OnTrimmed, OnWritten, Part, Shared, applier, writer};

/// How often a log-shipped replica says how far it is although nothing has changed.
const PROGRESS_EVERY_MS: Now = 100;
/// How long a change of the membership may take: two entries, and their way to a majority.
const CHANGE_PATIENCE_MS: Now = 10_000;

enum Waiter {
    Written(OnWritten),
    Index(OnIndex),
    Changed(OnChanged),
}

pub(super) struct Core {
    shared: Arc<Shared>,
    parts: BTreeMap<ShardId, Part>,
    waiters: HashMap<Ticket, (ShardId, Waiter)>,
    next_ticket: Ticket,
    effects: Vec<Effect>,
    writes: Vec<writer::Work>,
    applies: Vec<applier::Work>,
    answers: Vec<Answer>,
    /// Who wants to know a shard's state: told when everything that came with the question has been taken in.
    asking: Vec<(ShardId, OnStatus)>,
    /// What followers last said, and when.
    said: BTreeMap<ShardId, (ShipProgress, Now)>,
}

enum Answer {
    Written(OnWritten, Result<quorate_core::proposal::WriteResult, Rejected>),
    Index(OnIndex, Result<quorate_shared::ids::Index, Rejected>),
    Changed(OnChanged, Result<Membership, Refused>),
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, parts: BTreeMap<ShardId, Part>) -> Self {
        Self {
            shared,
            parts,
            waiters: HashMap::new(),
            next_ticket: 1,
            effects: Vec::new(),
            writes: Vec::new(),
            applies: Vec::new(),
            answers: Vec::new(),
            asking: Vec::new(),
            said: BTreeMap::new(),
        }
    }

    pub(super) fn run(mut self) {
        self.begin();
        let mut events = Vec::new();
        loop {
            let wake = self.parts.iter().map(|(shard, part)| self.next_wake(*shard, part)).min();
            let until = wake.map(|wake| self.shared.clock.instant(wake));
            if !self.shared.inbox.take(&mut events, until) {
                break;
            }
            for event in events.drain(..) {
                self.handle(event);
            }
            let shards: Vec<ShardId> = self.parts.keys().copied().collect();
            for shard in shards {
                self.flush(shard);
            }
            self.tell_status();
            self.hand_out();
        }
        self.stop(None, "the node is stopping");
        self.hand_out();
    }

    /// What a restart found unapplied is handed out first.
    fn begin(&mut self) {
        let shards: Vec<ShardId> = self.parts.keys().copied().collect();
        for shard in shards {
            if let Some(Part::Follower(follower)) = self.parts.get_mut(&shard) {
                let result = follower.hand_out(&mut self.effects);
                self.after(shard, result);
            }
        }
        self.hand_out();
    }

    fn next_wake(&self, shard: ShardId, part: &Part) -> Now {
        match part {
            Part::Voter(voter) => voter.next_wake(),
            Part::Follower(_) => self.said.get(&shard).map_or(0, |(_, at)| at + PROGRESS_EVERY_MS),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Input(shard, input) => self.step(shard, input),
            Event::Propose { shard, proposal, deadline, done } => {
                if let Some(ticket) = self.ticket(shard, Waiter::Written(done)) {
                    self.step(shard, Input::Propose { ticket, proposal, deadline });
                }
            }
            Event::Read { shard, deadline, done } => {
                if let Some(ticket) = self.ticket(shard, Waiter::Index(done)) {
                    self.step(shard, Input::Read { ticket, deadline });
                }
            }
            Event::Change { shard, change, done } => {
                if let Some(ticket) = self.ticket(shard, Waiter::Changed(done)) {
                    let deadline = self.shared.clock.now() + CHANGE_PATIENCE_MS;
                    self.step(shard, Input::Change { ticket, change, deadline });
                }
            }
            Event::Persisted(shard, id) => self.step(shard, Input::Persisted(id)),
            Event::Applied(shard, applied) => self.step(shard, Input::Applied(applied)),
            Event::Shipped { batch, refused } => {
                let shard = batch.shard;
                if let Some(Part::Follower(follower)) = self.parts.get_mut(&shard) {
                    if let Err(bad) = follower.receive(batch, &mut self.effects) {
                        refused(bad);
                    }
                    self.after(shard, Ok(()));
                }
            }
            Event::Pull(shard, done) => match self.parts.get(&shard) {
                Some(Part::Follower(follower)) => done(Some(follower.pull())),
                _ => done(None),
            },
            Event::Status(shard, done) => self.asking.push((shard, done)),
            Event::Trim(base, done) => self.trim(base, done),
            Event::Stop(shard, why) => self.stop(shard, &why),
        }
    }

    fn tell_status(&mut self) {
        let now = self.shared.clock.now();
        for (shard, done) in self.asking.drain(..) {
            let mut status = self.parts.get(&shard).map(|part| part.status(now, Clock::wall()));
            if let Some((_, status)) = &mut status {
                status.id = shard.to_string();
            }
            done(status);
        }
    }

    /// The protocol first: from then on it reads nothing that the writer then drops.
    fn trim(&mut self, base: BaseRecord, done: OnTrimmed) {
        let shard = base.shard;
        let (allowed, result) = match self.parts.get_mut(&shard) {
            Some(Part::Voter(voter)) => match voter.trim(&base) {
                Ok(allowed) => (allowed, Ok(())),
                Err(fatal) => (false, Err(fatal)),
            },
            // What it has applied it never reads again.
            Some(Part::Follower(follower)) => (base.index <= follower.view().applied, Ok(())),
            None => (false, Ok(())),
        };
        self.after(shard, result);
        if let (Some(view), true) = (self.shared.views.get(&shard), allowed) {
            self.writes.push(writer::Work::Trim { replica: view.replica, base, done });
        }
    }

    /// Remembers who waits; `None`: the shard is not here (any more) and the caller knows by now.
    fn ticket(&mut self, shard: ShardId, waiter: Waiter) -> Option<Ticket> {
        if !matches!(self.parts.get(&shard), Some(Part::Voter(_))) {
            let leader = self.shared.views.get(&shard).and_then(|v| v.leader().node);
            let rejected = Rejected::NotLeader(leader);
            self.answers.push(match waiter {
                Waiter::Written(done) => Answer::Written(done, Err(rejected)),
                Waiter::Index(done) => Answer::Index(done, Err(rejected)),
                Waiter::Changed(done) => Answer::Changed(done, Err(Refused::NotLeader(leader))),
            });
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiters.insert(ticket, (shard, waiter));
        Some(ticket)
    }

    fn step(&mut self, shard: ShardId, input: Input) {
        let now = self.shared.clock.now();
        let result = match self.parts.get_mut(&shard) {
            Some(Part::Voter(voter)) => voter.step(now, input, &mut self.effects),
            Some(Part::Follower(follower)) => match input {
                Input::Persisted(id) => follower.persisted(id, &mut self.effects),
                Input::Applied(applied) => follower.applied(&applied, &mut self.effects),
                _ => Ok(()),
            },
            None => Ok(()),
        };
        self.after(shard, result);
    }

    fn flush(&mut self, shard: ShardId) {
        let now = self.shared.clock.now();
        let result = match self.parts.get_mut(&shard) {
            Some(Part::Voter(voter)) => {
                let result = voter.flush(now, Clock::wall(), &mut self.effects);
                if let Some(view) = self.shared.views.get(&shard) {
                    let state = voter.view();
                    view.set_committed(state.shippable, state.commit, state.term);
                }
                result
            }
            Some(Part::Follower(follower)) => {
                let progress = follower.progress();
                let said = self.said.get(&shard);
                if said.is_none_or(|(last, at)| *last != progress || now >= at + PROGRESS_EVERY_MS) {
                    self.said.insert(shard, (progress, now));
                    self.shared.outgoing.progress(progress);
                }
                Ok(())
            }
            None => Ok(()),
        };
        self.after(shard, result);
    }

    /// Sorts the effects of a step by who executes them; a failed shard stops.
    fn after(&mut self, shard: ShardId, result: Result<(), Fatal>) {
        let Some(view) = self.shared.views.get(&shard) else { return };
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Persist { id, records } => {
                    let job = writer::Job { shard, replica: view.replica, id, records };
                    self.writes.push(writer::Work::Write(job));
                }
                Effect::Send { to, message } => self.shared.outgoing.send(shard, view.replica, to, message),
                Effect::Apply { entries } => self.applies.push(applier::Work::Apply(applier::Job { shard, entries })),
                Effect::NeedsSnapshot { .. } => self.shared.outgoing.needs_snapshot(shard),
                Effect::Reply { ticket, result } => {
                    if let Some((_, Waiter::Written(done))) = self.waiters.remove(&ticket) {
                        self.answers.push(Answer::Written(done, result));
                    }
                }
                Effect::ReadReady { ticket, result } => {
                    if let Some((_, Waiter::Index(done))) = self.waiters.remove(&ticket) {
                        self.answers.push(Answer::Index(done, result));
                    }
                }
                Effect::Changed { ticket, result } => {
                    if let Some((_, Waiter::Changed(done))) = self.waiters.remove(&ticket) {
                        self.answers.push(Answer::Changed(done, result.map(|c| (*c.membership).clone())));
                    }
                }
                Effect::Leader { term, node, ready, .. } => {
                    let leader = Leader { term, node, ready };
                    if view.leader() != leader {
                        let name = node.map_or_else(|| "nobody".to_owned(), |n| n.to_string());
                        tracing::info!(%shard, %term, leader = name, ready, "leadership");
                        view.set_leader(leader);
                    }
                }
            }
        }
        if let Err(fatal) = result {
            let why = fatal.to_string();
            self.stop(Some(shard), &why);
            self.shared.outgoing.failed(Failure::Shard(shard), &why);
        }
    }

    /// Disk first, then the wire, appliers, whoever waits.
    fn hand_out(&mut self) {
        if !self.writes.is_empty() {
            self.shared.writes.push_all(self.writes.drain(..));
        }
        self.shared.outgoing.flush();
        if !self.applies.is_empty() {
            self.shared.applies.push_all(self.applies.drain(..));
        }
        for answer in self.answers.drain(..) {
            match answer {
                Answer::Written(done, result) => done(result),
                Answer::Index(done, result) => done(result),
                Answer::Changed(done, result) => done(result),
            }
        }
    }

    fn stop(&mut self, shard: Option<ShardId>, why: &str) {
        let stopping: Vec<ShardId> = match shard {
            Some(shard) => vec![shard],
            None => self.parts.keys().copied().collect(),
        };
        for shard in stopping {
            if self.parts.remove(&shard).is_none() {
                continue;
            }
            if let Some(view) = self.shared.views.get(&shard) {
                view.stop(why.to_owned());
            }
            let tickets: Vec<Ticket> = self.waiters.iter().filter(|(_, (s, _))| *s == shard).map(|(t, _)| *t).collect();
            for ticket in tickets {
                // It may have been appended.
                let unknown = Rejected::Unknown("the leader's replica has stopped".into());
                match self.waiters.remove(&ticket) {
                    Some((_, Waiter::Written(done))) => self.answers.push(Answer::Written(done, Err(unknown))),
                    Some((_, Waiter::Index(done))) => {
                        self.answers.push(Answer::Index(done, Err(Rejected::NotLeader(None))));
                    }
                    Some((_, Waiter::Changed(done))) => self.answers.push(Answer::Changed(done, Err(Refused::Unknown))),
                    None => {}
                }
            }
        }
    }
}

impl Part {
    fn status(&self, now: Now, wall: u64) -> (View, ShardStatus) {
        match self {
            Part::Voter(voter) => (voter.view(), voter.status(now, wall)),
            Part::Follower(follower) => {
                let state = follower.view();
                let view = View {
                    term: state.term,
                    commit: state.commit,
                    last: state.last,
                    durable: state.durable,
                    applied: state.applied,
                    ..View::default()
                };
                let status = ShardStatus {
                    term: Some(state.term.get()),
                    commit: Some(state.commit.get()),
                    ..ShardStatus::default()
                };
                (view, status)
            }
        }
    }
}
