//! The process in the driver's place: it gives a shard what comes for it, and does what comes of it.

use quorate_shared::ids::{Epoch, Hash, Index, NodeId, ReplicaId, ShardId, Term};

use super::invariants::Sent;
use super::network::{Call, Packet};
use super::node::{Node, Part, Process, Waiter};
use super::place::Place;
use super::world::{Event, WALL, World};
use crate::bug::{Bug, planted};
use crate::epoch::{Relation, relation};
use crate::error::{Fatal, Rejected};
use crate::log::{LogEntry, LogRecord, Payload};
use crate::machine::Applied;
use crate::mvcc;
use crate::proposal::{Proposal, WriteResult};
use crate::replica::{PersistId, Protocol};
use crate::shard::{Effect, Input, Shard, Ticket};
use crate::ship::follow::Follower;

impl World {
    pub(super) fn wake(&mut self, id: Place) {
        let now = self.now;
        let tick = self.shape.timing.tick;
        let Some(process) = self.process(id) else { return };
        let next = match &process.part {
            Part::Shard(shard) => {
                if shard.next_wake() <= now {
                    self.drive(id, Some(Input::Wake));
                }
                self.shard(id).map_or(now + tick, Shard::next_wake)
            }
            Part::Follower(_) => now + tick,
        };
        self.keep_shipping(id);
        self.expire_reads(id);
        self.schedule(next.max(now + 1), id, Event::Wake);
    }

    pub(super) fn deliver(&mut self, id: Place, from: u64, packet: Packet) {
        match packet {
            Packet::Peer { epoch, sender, receiver, message } => {
                let Some(Process { part: Part::Shard(shard), replica, strangers, .. }) = self.process(id) else {
                    return;
                };
                if sender >= shard.membership().next {
                    strangers.insert(sender, from);
                }
                // The envelope: who is not meant, or is in another epoch, does not hear it.
                match relation(shard.epochs().0, epoch) {
                    Relation::Same if *replica == receiver => {
                        self.drive(id, Some(Input::Receive { from: sender, message }));
                    }
                    Relation::Same | Relation::Conflict => {}
                    Relation::Older => self.tell_epoch(id, from),
                    Relation::Newer => self.send(id, from, Packet::AskEpoch),
                }
            }
            Packet::Propose { planned: Some(epoch), call, .. } if epoch != self.epoch(id).0 => {
                // A transaction ends with the epoch it began in: its session does.
                let (epoch, result) = (self.epoch(id).0, Box::new(Err(Rejected::Conflict)));
                self.send(id, from, Packet::Proposed { call, epoch, result });
            }
            Packet::Propose { call, proposal, planned, deadline, via } => {
                self.take_write(id, from, call, (proposal, planned), deadline, via)
            }
            Packet::Proposed { call, epoch, result } => {
                self.send(id, call.0, Packet::Proposed { call, epoch, result });
            }
            Packet::Read { call, level, query, deadline } => self.take_read(id, call, level, *query, deadline),
            Packet::AskIndex { ask, epoch } => self.asked_for_index(id, from, (ask, epoch)),
            Packet::Index { ask, result } => self.index_came(id, ask, *result),
            Packet::Ship { link, message } => self.ship_came(id, from, link, &message),
            Packet::Shipped { link, message } => self.shipped_came(id, link, &message),
            Packet::Broken { link } => self.link_broken(id, link),
            Packet::Report(report) => {
                if self.shard(id).is_some() {
                    self.drive(id, Some(Input::Report(report)));
                }
            }
            Packet::Change { change, via } => self.take_change(id, from, change, via),
            Packet::AskMembers => self.tell_members(id, from),
            Packet::Members { applied, chain, membership } => self.hear_members(id, (applied, chain), &membership),
            Packet::AskEpoch => self.tell_epoch(id, from),
            Packet::Epochs(epochs) => self.hear_epochs(id, from, &epochs),
            Packet::AskSnapshot { link, have } => self.asked_for_snapshot(id, from, link, have),
            Packet::Snapshot { link, part } => self.snapshot_came(id, link, part),
            Packet::ReadDone { .. } => {}
        }
    }

    /// A client's write: to the shard if it leads, to the leader if it was not forwarded yet.
    fn take_write(
        &mut self,
        id: Place,
        from: u64,
        call: Call,
        (proposal, planned): (Box<Proposal>, Option<Epoch>),
        deadline: u64,
        via: Option<u64>,
    ) {
        let view = self.view(id);
        let leads = view.is_some_and(|v| v.is_leader);
        if leads {
            self.tickets += 1;
            let ticket = self.tickets;
            if let Some(process) = self.process(id) {
                process.tickets.insert(ticket, Waiter::Write { call, to: from });
            }
            self.checks[id.shard].acknowledged.proposed(ticket, &proposal);
            return self.drive(id, Some(Input::Propose { ticket, proposal, deadline }));
        }
        let leader = view.and_then(|v| v.leader).map(|(_, node)| node);
        if let (Some(leader), None) = (leader.filter(|l| l.get() != id.node), via) {
            return self.send(
                id,
                leader.get(),
                Packet::Propose { call, proposal, planned, deadline, via: Some(id.node) },
            );
        }
        let result = Box::new(Err(Rejected::NotLeader(leader)));
        let epoch = self.epoch(id).0;
        self.send(id, from, Packet::Proposed { call, epoch, result });
    }

    /// What was written of every shard is durable.
    pub(super) fn synced(&mut self, node: u64, done: Vec<(ShardId, PersistId)>) {
        let Some(site) = self.nodes.get_mut(&node) else { return };
        if site.stalled {
            // It comes when the stall ends.
            self.schedule(self.now + 20, node, Event::Synced { done });
            return;
        }
        site.store.finish();
        let life = site.life;
        site.syncing = false;
        for (shard, until) in done {
            let id = Place { shard, node };
            // One shard may let the node begin again.
            if self.nodes.get(&node).is_none_or(|n| n.life != life) {
                return;
            }
            match self.running(id).map(|p| &p.part) {
                Some(Part::Shard(_)) => self.drive(id, Some(Input::Persisted(until))),
                Some(Part::Follower(_)) => self.follow(id, |follower, effects| follower.persisted(until, effects)),
                None => return,
            }
        }
        self.sync(node);
    }

    /// Writes everything that waits, of all shards, and syncs it, if no sync is running.
    pub(super) fn sync(&mut self, node: u64) {
        let Some(site) = self.nodes.get_mut(&node).filter(|n| n.is_up()) else { return };
        if site.stalled || site.syncing || site.persists.is_empty() {
            return;
        }
        site.syncing = true;
        let mut done: Vec<(ShardId, PersistId)> = Vec::new();
        let mut written = Ok(());
        for (shard, persist, records) in site.persists.drain(..) {
            written = written.and_then(|()| site.store.append(shard, &records));
            match done.iter_mut().find(|(of, _)| *of == shard) {
                Some((_, until)) => *until = persist,
                None => done.push((shard, persist)),
            }
        }
        if let Err(e) = written.and_then(|()| site.store.begin_sync()) {
            return self.stopped(node, &e);
        }
        let delay = self.rng.range(self.weather.sync.0, self.weather.sync.1);
        self.schedule(self.now + delay, node, Event::Synced { done });
    }

    pub(super) fn apply(&mut self, id: Place) {
        let stalled = self.nodes.get(&id.node).is_none_or(|n| n.applier_stalled);
        let Some(process) = self.process(id).filter(|_| !stalled) else { return };
        let Some(entries) = process.applying.pop_front() else { return };
        let more = !process.applying.is_empty();
        let applied = match process.machine.apply(&entries) {
            Ok(applied) => applied,
            Err(e) => return self.stopped(id.node, &e),
        };
        let digest = process.machine.state().digest();
        process.changes.retain(|index| *index > applied.index);
        let reader = matches!(process.part, Part::Follower(_));
        self.trace.note(self.now, id, "apply", applied.index.get(), applied.chain.0[0].into());
        self.note_applied(id, &applied, digest);
        if reader {
            let checked = self.checks[id.shard].readonly.applies(id.node, applied.index);
            self.check(checked);
        }
        self.after_apply(id, applied);
        if more {
            let delay = self.rng.range(self.weather.apply.0, self.weather.apply.1);
            self.schedule(self.now + delay, id, Event::Apply);
        }
    }

    pub(super) fn note_applied(&mut self, id: Place, applied: &Applied, digest: Hash) {
        let checked = self.checks[id.shard].applies((id.node, applied.index), applied.chain, digest);
        self.check(checked);
    }

    fn after_apply(&mut self, id: Place, applied: Applied) {
        let Some(process) = self.process(id) else { return };
        match &process.part {
            Part::Shard(_) => self.drive(id, Some(Input::Applied(applied))),
            Part::Follower(_) => {
                self.follow(id, |follower, effects| follower.applied(&applied, effects));
                self.report_soon(id);
            }
        }
        self.serve_reads(id);
    }

    /// Gives an input to a shard, and does what comes of it.
    pub(super) fn drive(&mut self, id: Place, input: Option<Input>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        let wall = (WALL + now).saturating_add_signed(node.skew);
        let process = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut());
        let Some(Process { part: Part::Shard(shard), .. }) = process else { return };
        let mut effects = std::mem::take(&mut self.effects);
        let stepped = input.map_or(Ok(()), |input| shard.step(now, input, &mut effects));
        let done = stepped.and_then(|()| shard.flush(now, wall, &mut effects));
        for effect in effects.drain(..) {
            self.execute(id, effect);
        }
        self.effects = effects;
        match done {
            Ok(()) => self.ship_more(id),
            Err(e) => self.stopped(id.node, &e),
        }
    }

    /// The same for a follower by shipping.
    pub(super) fn follow(
        &mut self,
        id: Place,
        work: impl FnOnce(&mut Follower, &mut Vec<Effect>) -> Result<(), Fatal>,
    ) {
        let Some(Process { part: Part::Follower(follower), .. }) = self.process(id) else { return };
        let mut effects = Vec::new();
        let done = work(follower, &mut effects);
        for effect in effects {
            self.execute(id, effect);
        }
        match done {
            Ok(()) => self.ship_more(id),
            Err(e) => self.stopped(id.node, &e),
        }
    }

    pub(super) fn execute(&mut self, id: Place, effect: Effect) {
        if self.violation.is_some() {
            return;
        }
        match effect {
            Effect::Persist { id: persist, records } => {
                self.trace.note(self.now, id, "persist", persist, records.len() as u64);
                self.note_changes(id, &records);
                if let Some(node) = self.node(id.node) {
                    node.persists.push((id.shard, persist, records));
                }
                self.sync(id.node);
            }
            Effect::Send { to, message } => self.send_peer(id, to, message),
            Effect::Apply { entries } => self.commits(id, entries),
            Effect::Reply { ticket, result } => self.replied(id, ticket, result),
            Effect::ReadReady { ticket, result } => self.read_ready(id, ticket, result),
            Effect::Changed { ticket, result } => self.changed(id, ticket, &result),
            Effect::NeedsSnapshot { .. } => self.fill(id),
            Effect::Leader { term, leader, ready, .. } => {
                self.trace.note(self.now, id, "leader", term.get(), leader.map_or(0, ReplicaId::get));
                self.note_leader(id, term, leader, ready);
            }
        }
    }

    fn send_peer(&mut self, id: Place, to: ReplicaId, message: bytes::Bytes) {
        let Some(node) = self.nodes.get(&id.node) else { return };
        let process = node.replicas.get(&id.shard).and_then(|r| r.up.as_ref());
        let Some(Process { part: Part::Shard(shard), replica, strangers, .. }) = process else { return };
        let (sender, epoch) = (*replica, shard.epochs().0);
        let known = shard.membership().node_of(to).map(NodeId::get);
        let Some(receives) = known.or_else(|| strangers.get(&to).copied()) else { return };
        let sent = Sent { now: self.now, node: id.node, from: sender, to, durable: &node.store.durable[id.shard] };
        if self.shape.protocol == Protocol::Raft {
            let checked = self.checks[id.shard].sent(&sent, &message);
            self.check(checked);
        }
        self.send(id, receives, Packet::Peer { epoch, sender, receiver: to, message });
    }

    fn note_leader(&mut self, id: Place, term: Term, leader: Option<ReplicaId>, ready: bool) {
        let Some(Process { part: Part::Shard(shard), replica, .. }) = self.running(id) else { return };
        if leader != Some(*replica) {
            return;
        }
        let (me, epoch, applied) = ((id.node, *replica), shard.epochs().0, shard.view().applied);
        let checks = &mut self.checks[id.shard];
        // It may have applied a change since it was elected.
        let members = checks.members.last_two(&checks.lineage, epoch, applied);
        let first = match checks.leaders.leads(id.node, (epoch, term), ready) {
            Ok(first) => first,
            Err(what) => return self.violate(what),
        };
        if first && self.shape.protocol == Protocol::Raft {
            let checked = checks.votes.elected(me, term, &members);
            self.check(checked);
        }
    }

    /// Changes of the membership that a leader appends come one after the other.
    fn note_changes(&mut self, id: Place, records: &[LogRecord]) {
        let leads = self.view(id).filter(|v| v.is_leader).map(|v| v.term);
        for record in records {
            let Some(process) = self.process(id) else { return };
            match record {
                LogRecord::Truncate(from) => process.changes.retain(|index| index < from),
                LogRecord::Entries(entries) => {
                    for entry in entries.iter().filter(|e| e.payload == Payload::Membership) {
                        let Some(process) = self.process(id) else { return };
                        process.changes.push(entry.index);
                        let pending = process.changes.clone();
                        if leads == Some(entry.term) {
                            let checked = self.checks[id.shard].members.appended(id.node, entry.index, &pending);
                            self.check(checked);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn commits(&mut self, id: Place, entries: Vec<LogEntry>) {
        let last = entries.last().map_or(Index::new(0), |e| e.index);
        self.trace.note(self.now, id, "commit", last.get(), 0);
        let checked = self.checks[id.shard].commits(id.node, &entries);
        self.check(checked);
        let delay = self.rng.range(self.weather.apply.0, self.weather.apply.1);
        let Some(node) = self.nodes.get_mut(&id.node) else { return };
        let durable = node.store.durable[id.shard].last();
        let Some(process) = node.replicas.get_mut(&id.shard).and_then(|r| r.up.as_mut()) else { return };
        let idle = process.applying.is_empty();
        process.applying.push_back(entries);
        if last > durable && !planted(Bug::AcknowledgeBeforeSync) {
            self.violate(format!("{id} hands {last} to its applier, durable is {durable}"));
        }
        if idle {
            self.schedule(self.now + delay, id, Event::Apply);
        }
    }

    fn replied(&mut self, id: Place, ticket: Ticket, result: Result<WriteResult, Rejected>) {
        self.trace.note(self.now, id, "reply", ticket, u64::from(result.is_ok()));
        self.trace.say(self.now, || format!("{id} answers {ticket}: {}", outcome(&result)));
        let shard = id.shard;
        let (here, epoch) = (self.applied_at(id).unwrap_or_default(), self.epoch(id).0);
        let checks = &mut self.checks[shard];
        let logs = self.nodes.values().map(|n| (n.id, &n.store.durable[shard]));
        let read_here = |n: &&Node| n.id != id.node && n.replicas.get(&shard).is_some_and(|r| r.was_reader);
        let readers = self.nodes.values().filter(read_here).map(|n| n.id);
        let applied: Vec<Index> = readers.map(|node| checks.states.highest(node)).collect();
        let (lineage, known) = (&checks.lineage, &checks.members);
        let members = |index: Index| known.counted(lineage, epoch, index);
        let checked = checks.acknowledged.answered(ticket, &result, here, logs, members, &applied);
        self.check(checked);
        let Some(process) = self.process(id) else { return };
        match process.tickets.remove(&ticket) {
            Some(Waiter::Write { call, to }) => {
                self.send(id, to, Packet::Proposed { call, epoch, result: Box::new(result) });
            }
            Some(_) => drop(self.replies.insert(ticket, result)),
            None => self.violate(format!("{id} answers {ticket} twice")),
        }
    }

    /// Proposes at a node, past network and client.
    pub fn propose(&mut self, id: impl Into<Place>, proposal: Proposal, patience: u64) -> Ticket {
        let id = id.into();
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + patience);
        match self.process(id) {
            Some(process) if matches!(process.part, Part::Shard(_)) => {
                process.tickets.insert(ticket, Waiter::World);
                self.checks[id.shard].acknowledged.proposed(ticket, &proposal);
                self.drive(id, Some(Input::Propose { ticket, proposal: Box::new(proposal), deadline }));
            }
            _ => drop(self.replies.insert(ticket, Err(Rejected::NotLeader(None)))),
        }
        ticket
    }

    /// Asks a node for the read index, past network and client.
    pub fn read(&mut self, id: impl Into<Place>, patience: u64) -> Ticket {
        let id = id.into();
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + patience);
        match self.process(id) {
            Some(process) if matches!(process.part, Part::Shard(_)) => {
                process.tickets.insert(ticket, Waiter::World);
                self.drive(id, Some(Input::Read { ticket, deadline }));
            }
            _ => drop(self.reads.insert(ticket, Err(Rejected::NotLeader(None)))),
        }
        ticket
    }

    pub fn input(&mut self, id: impl Into<Place>, input: Input) {
        self.drive(id.into(), Some(input));
    }

    /// The newest value applied at a node under a catalog key.
    pub fn get(&self, id: impl Into<Place>, name: &str) -> Option<String> {
        let newest = mvcc::newest(&*self.replica(id.into())?.tree, &super::workload::key(name)).ok()??;
        newest.row.map(|row| String::from_utf8_lossy(&row).into_owned())
    }
}

/// An answer in one word or two.
pub fn outcome(result: &Result<WriteResult, Rejected>) -> String {
    match result {
        Ok(WriteResult { duplicate: true, .. }) => "ok (duplicate)".into(),
        Ok(WriteResult { replicas: Some(n), .. }) => format!("ok (on {n} replicas)"),
        Ok(_) => "ok".into(),
        Err(Rejected::NotLeader(Some(node))) => format!("not the leader: {node} is"),
        Err(Rejected::NotLeader(None)) => "not the leader".into(),
        Err(e) => e.to_string(),
    }
}
