//! The shard: replicator, sequencer and lag in one function, `step(now, input) -> effects`.
//!
//! The driver's whole contract: *execute persists in order, report each when it is durable, do everything else whenever
//! you like.* Sends that depend on an unfinished write are kept back here; nothing is applied before it is durable in
//! the local log.
//!
//! Use: [`Shard::step`] for each input that is there, then [`Shard::flush`] once: proposals that come together share an
//! entry, messages a write, reads a round. [`Shard::next_wake`] says when to flush although nothing has come.
//!
//! Invariants: a proposal is answered once. It is answered `Ok` only after it was applied here; a refusal, or an answer
//! that appends nothing, only after what it was evaluated on is applied and leadership was confirmed afterwards. What was
//! appended and is not known to be lost is answered `Unknown`, never `Retry`.
//!
//! Who takes part, and the epoch, are what the machine has applied.

mod changes;
mod reads;
mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Epoch, Hash, Index, NodeId, ReplicaId, ShardId, Term};
use quorate_shared::limits::PROPOSALS_IN_FLIGHT_MAX;
use quorate_shared::status::ShardStatus;

pub use self::changes::Changed;
use self::changes::Changes;
use self::reads::{Reads, Waiter};
use self::writes::{ReplicaWaits, Staged, Writes};
use crate::bug::{Bug, planted};
use crate::engine::Tree;
use crate::error::{Fatal, Rejected};
use crate::lag::{Lag, ReaderReport, Subject};
use crate::log::{BaseRecord, LogEntry, LogReader, LogRecord, Membership};
use crate::machine::Applied;
use crate::membership::{MembershipChange, Refused};
use crate::proposal::{Proposal, WriteResult};
use crate::replica::paxos::PaxosReplicator;
use crate::replica::raft::RaftReplicator;
use crate::replica::{Config as ReplicaConfig, Leadership, Now, PersistId, Protocol, Replicator, Timing};
use crate::sequencer::{Decision, Sequencer};
use crate::ship::chain_at;

/// Names a waiting caller; chosen by the driver, never reused while waiting.
pub type Ticket = u64;

/// Everything that can happen to a shard. Closed on purpose: to know what can wake the core, read this.
#[derive(Debug)]
pub enum Input {
    /// A protocol message of a peer replica.
    Receive {
        /// The sender, authenticated by the driver's envelope.
        from: ReplicaId,
        /// The protocol's bytes.
        message: Bytes,
    },
    /// A connection to a peer's node was lost or renewed, or something for it was dropped.
    Disconnected {
        /// The replica there.
        peer: ReplicaId,
    },
    /// Write this; answered by [`Effect::Reply`].
    Propose {
        /// Who waits.
        ticket: Ticket,
        /// What to write.
        proposal: Box<Proposal>,
        /// Answer `retry` if it has not been appended by then (driver's clock, milliseconds).
        deadline: u64,
    },
    /// Which index must be applied to see every acknowledged write; answered by [`Effect::ReadReady`].
    Read {
        /// Who waits.
        ticket: Ticket,
        /// Answer `retry` if no quorum has answered by then.
        deadline: u64,
    },
    /// This persist and all before it are durable.
    Persisted(PersistId),
    /// The applier has applied entries up to an index.
    Applied(Applied),
    /// A log-shipped replica or a voter reports how far it is.
    Report(ReaderReport),
    /// Another node has applied an entry, which is therefore committed: one that has left, perhaps, and that nobody counts
    /// any more although it alone knows. Taken if the log here is the same up to there.
    Committed {
        /// The entry.
        index: Index,
        /// The chain hash there.
        chain: Hash,
    },
    /// The deadline asked for by `next_wake` has passed.
    Wake,
    /// Hand leadership over (drain).
    Transfer {
        /// To whom; `None`: the voter that is furthest.
        to: Option<ReplicaId>,
    },
    /// Change who takes part; answered by [`Effect::Changed`] when the last entry it takes is applied here.
    Change {
        /// Who waits.
        ticket: Ticket,
        /// What is to change.
        change: MembershipChange,
        /// Answer that the outcome is unknown if it has not been applied by then.
        deadline: u64,
    },
    /// The cluster is in a newer epoch: nothing is served or said any more.
    Fence(Epoch),
    /// Free space is below the reserve (or above it again).
    DiskLow(bool),
    /// This replica may be elected, or not: its node's clock is off. Leadership it has is given away by `Transfer`.
    MayLead(bool),
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Effect {
    /// Make these records durable, in order, then report `Persisted(id)`.
    Persist {
        /// Its id.
        id: PersistId,
        /// The records.
        records: Vec<LogRecord>,
    },
    /// Put this on the wire to a voter.
    Send {
        /// The receiver.
        to: ReplicaId,
        /// The protocol's bytes.
        message: Bytes,
    },
    /// Apply these committed, locally durable entries to the machine, then report `Applied`.
    Apply {
        /// In order, following the last ones.
        entries: Vec<LogEntry>,
    },
    /// Answer a proposal.
    Reply {
        /// Who waits.
        ticket: Ticket,
        /// What became of it.
        result: Result<WriteResult, Rejected>,
    },
    /// Answer a read: it may run once this index is applied locally.
    ReadReady {
        /// Who waits.
        ticket: Ticket,
        /// The index, or `Retry`/`NotLeader`.
        result: Result<Index, Rejected>,
    },
    /// Answer a change of the membership.
    Changed {
        /// Who waits.
        ticket: Ticket,
        /// What became of it.
        result: Result<Changed, Refused>,
    },
    /// Leadership changed; for the router, the log and the metrics.
    Leader {
        /// The term.
        term: Term,
        /// The leader, if known.
        leader: Option<ReplicaId>,
        /// The node it lives on.
        node: Option<NodeId>,
        /// This replica is it *and* has applied its whole log: it evaluates proposals.
        ready: bool,
    },
    /// The leader's log does not reach back to this replica's any more: fetch a snapshot at or behind this index from it,
    /// install it and open the shard again. Said again until then.
    NeedsSnapshot {
        /// Where the leader's log begins.
        index: Index,
    },
}

/// What a shard's replica has to know to begin.
#[derive(Clone, Debug)]
pub struct Config {
    /// The shard.
    pub shard: ShardId,
    /// This replica.
    pub replica: ReplicaId,
    /// The node it lives on.
    pub node: NodeId,
    /// What orders its entries.
    pub protocol: Protocol,
    /// For everything that is random in here.
    pub seed: u64,
    /// How long things may take.
    pub timing: Timing,
}

/// How a shard is now, for the driver's own use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// The term.
    pub term: Term,
    /// The leader and its node, if known.
    pub leader: Option<(ReplicaId, NodeId)>,
    /// This replica leads.
    pub is_leader: bool,
    /// It leads and evaluates proposals.
    pub ready: bool,
    /// Highest committed index known.
    pub commit: Index,
    /// Highest index in the log.
    pub last: Index,
    /// Highest index durable in the log.
    pub durable: Index,
    /// Highest index applied.
    pub applied: Index,
    /// Highest index committed and durable here: what may be shipped.
    pub shippable: Index,
    /// Proposals that wait for an answer.
    pub in_flight: usize,
    /// Messages of peers that made no sense.
    pub dropped: u64,
}

/// Bytes of own entries that are not applied yet, beyond which proposals are refused as `busy`.
const UNAPPLIED_BYTES_MAX: usize = 64 << 20;

/// Writes on their way to the local disk, beyond which arrivals are collected: the disk takes everything that waits in
/// one sync anyway, and one larger entry costs less than several small ones.
const WRITES_PENDING_MAX: usize = 2;

/// A proposal that has not been evaluated yet.
struct Arrival {
    ticket: Ticket,
    proposal: Box<Proposal>,
    deadline: u64,
}

/// One replica of a shard that votes. See the module.
pub struct Shard {
    config: Config,
    replicator: Box<dyn Replicator>,
    log: Arc<dyn LogReader>,
    tree: Arc<dyn Tree>,
    applied: Applied,
    leadership: Leadership,
    sequencer: Option<Sequencer>,
    arrivals: VecDeque<Arrival>,
    /// Until when arrivals of a lost leadership are kept, so that they can be told who leads now.
    homeless_until: Option<Now>,
    changes: Changes,
    /// The newer epoch that was heard of.
    fenced: Option<Epoch>,
    writes: Writes,
    waits: ReplicaWaits,
    reads: Reads,
    lag: Lag,
    shippable: Index,
    /// Own entries that are not applied yet: index and bytes.
    unapplied: VecDeque<(Index, usize)>,
    unapplied_bytes: usize,
    disk_low: bool,
    checked: Now,
}

impl Shard {
    /// Opens a replica: its log (synced since it was opened), its tree and what the machine says is applied in it.
    pub fn new(
        config: Config,
        log: Arc<dyn LogReader>,
        tree: Arc<dyn Tree>,
        applied: Applied,
        now: Now,
    ) -> Result<Self, Fatal> {
        let replicator = replicator(&config, &applied, &log, now)?;
        let lag = Lag::new(config.timing, now);
        Ok(Self {
            config,
            leadership: replicator.leadership(),
            replicator,
            log,
            tree,
            shippable: applied.index,
            applied,
            sequencer: None,
            arrivals: VecDeque::new(),
            homeless_until: None,
            changes: Changes::default(),
            fenced: None,
            writes: Writes::default(),
            waits: ReplicaWaits::default(),
            reads: Reads::default(),
            lag,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            disk_low: false,
            checked: now,
        })
    }

    /// Takes an input. What it leads to may only come with the next [`Shard::flush`].
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if self.fenced.is_some() {
            return self.step_fenced(now, input, effects);
        }
        match input {
            Input::Receive { from, message } => self.replicator.receive(now, from, &message),
            Input::Disconnected { peer } => self.replicator.disconnected(now, peer),
            Input::Persisted(id) => self.replicator.persisted(now, id),
            Input::Applied(applied) => self.note_applied(now, applied, effects),
            Input::Propose { ticket, proposal, deadline } => {
                let arrival = Arrival { ticket, proposal, deadline };
                if let Err(rejected) = self.admit(now, arrival) {
                    effects.push(Effect::Reply { ticket, result: Err(rejected) });
                }
                Ok(())
            }
            Input::Read { ticket, deadline } => {
                if self.replicator.leadership().is_leader && planted(Bug::ReadWithoutReadIndex) {
                    effects.push(Effect::ReadReady { ticket, result: Ok(self.replicator.commit_index()) });
                } else if self.replicator.leadership().is_leader {
                    self.reads.push(Waiter::Read { ticket, deadline });
                } else {
                    effects.push(Effect::ReadReady { ticket, result: Err(self.not_leader()) });
                }
                Ok(())
            }
            Input::Report(report) => {
                self.lag.report(now, report);
                self.waits.reported(&self.lag, effects);
                Ok(())
            }
            Input::Committed { index, chain } => {
                let news = index > self.replicator.commit_index() && index <= self.replicator.durable_index();
                match news && chain_at(&*self.log, self.config.shard, index)? == Some(chain) {
                    true => self.replicator.committed(now, index),
                    false => Ok(()),
                }
            }
            Input::Wake => self.replicator.tick(now),
            Input::Transfer { to } => self.replicator.transfer(now, to),
            Input::MayLead(may) => {
                self.replicator.may_lead(may);
                Ok(())
            }
            Input::Change { ticket, change, deadline } => self.ask_change(now, (ticket, change, deadline), effects),
            Input::Fence(epoch) => self.fence(now, epoch, effects),
            Input::DiskLow(low) => {
                self.disk_low = low;
                Ok(())
            }
        }
    }

    /// To be asked before the log is trimmed to a point that a synced snapshot covers; `false`: it must not be. From here
    /// on the shard reads nothing at or before that point.
    pub fn trim(&mut self, base: &BaseRecord) -> Result<bool, Fatal> {
        if base.index > self.applied.index {
            return Ok(false);
        }
        self.replicator.compact(base.index, base.term)
    }

    /// Does everything that the inputs since the last flush have made possible. `wall` is the clock in milliseconds since
    /// 1970, for timestamps only.
    pub fn flush(&mut self, now: Now, wall: u64, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if self.fenced.is_some() {
            return Ok(());
        }
        self.replicator.tick(now)?;
        // Each round may make another possible (one voter alone confirms its reads at once); two are the rule.
        loop {
            self.note_leadership(now, effects)?;
            self.evaluate(now, wall, effects)?;
            self.start_change(now, effects)?;
            self.start_reads(now)?;
            if !self.take_output(now, effects)? {
                break;
            }
        }
        self.note_leadership(now, effects)?;
        if now.saturating_sub(self.checked) >= self.config.timing.tick {
            self.checked = now;
            self.expire(now, effects);
        }
        Ok(())
    }

    /// When to flush although nothing has come.
    pub fn next_wake(&self) -> Now {
        self.replicator.next_wake()
    }

    /// How it is now.
    pub fn view(&self) -> View {
        let leadership = self.replicator.leadership();
        View {
            term: leadership.term,
            leader: leadership.leader.and_then(|r| self.node_of(r).map(|n| (r, n))),
            is_leader: leadership.is_leader,
            ready: self.sequencer.is_some(),
            commit: self.replicator.commit_index(),
            last: self.replicator.last_index(),
            durable: self.replicator.durable_index(),
            applied: self.applied.index,
            shippable: self.shippable,
            in_flight: self.in_flight(),
            dropped: self.replicator.dropped(),
        }
    }

    /// The shard as this node sees it; only the leader knows its members' lag.
    pub fn status(&self, now: Now, wall: u64) -> ShardStatus {
        let subject = Subject {
            shard: self.config.shard,
            node: self.config.node,
            membership: &self.applied.membership,
            replicator: &*self.replicator,
            log: &*self.log,
            applied: &self.applied,
        };
        ShardStatus {
            replicator: Some(self.config.protocol.name().into()),
            queue: Some(self.in_flight() as u64),
            ..self.lag.status(&subject, now, wall)
        }
    }

    /// The node of a member, as far as this replica has applied the log.
    fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.applied.membership.node_of(replica)
    }

    /// Who takes part, as far as this replica has applied the log.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.applied.membership
    }

    /// The epoch, as far as this replica has applied the log, and the newer one that was heard of.
    pub fn epochs(&self) -> (Epoch, Option<Epoch>) {
        (self.applied.epoch, self.fenced)
    }

    /// This replica is no member any more: it is to go on as a log-shipped one, or under another id
    /// ([`crate::join::settle`]).
    pub fn is_removed(&self) -> bool {
        !self.applied.membership.contains(self.config.replica)
    }

    fn in_flight(&self) -> usize {
        self.arrivals.len() + self.writes.len() + self.waits.len() + self.reads.answers()
    }

    fn not_leader(&self) -> Rejected {
        let leader = self.replicator.leadership().leader.filter(|r| *r != self.config.replica);
        Rejected::NotLeader(leader.and_then(|r| self.node_of(r)))
    }

    fn admit(&mut self, now: Now, arrival: Arrival) -> Result<(), Rejected> {
        if !self.replicator.leadership().is_leader {
            return Err(self.not_leader());
        }
        if self.disk_low && !arrival.proposal.ops.is_empty() {
            return Err(Rejected::DiskLow);
        }
        if self.in_flight() >= PROPOSALS_IN_FLIGHT_MAX || self.unapplied_bytes > UNAPPLIED_BYTES_MAX {
            return Err(Rejected::Busy);
        }
        if arrival.deadline <= now {
            return Err(Rejected::Retry("its deadline has passed".into()));
        }
        self.arrivals.push_back(arrival);
        Ok(())
    }

    /// Follows the protocol's leadership, and takes up or gives up the sequencer.
    fn note_leadership(&mut self, now: Now, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        let new = self.replicator.leadership();
        let old = std::mem::replace(&mut self.leadership, new);
        if new != old {
            if old.is_leader && (!new.is_leader || new.term != old.term) {
                self.lose_leadership(now, effects);
            }
            if new.is_leader && (!old.is_leader || new.term != old.term) {
                self.lag.lead(now, self.replicator.commit_index());
            }
            self.announce(effects);
        }
        self.send_homeless(now, effects);
        let whole_log = self.applied.index == self.replicator.last_index() && self.applied.term == new.term;
        if new.is_leader && self.sequencer.is_none() && whole_log {
            // The log now ends here for good: what was once appended behind it can never be committed any more.
            self.writes.forget_orphans(effects);
            self.sequencer = Some(Sequencer::new(self.config.shard, Arc::clone(&self.tree), &self.applied)?);
            self.announce(effects);
        }
        Ok(())
    }

    /// What had come before leadership was lost is sent on as soon as it is known where to.
    fn send_homeless(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(until) = self.homeless_until else { return };
        let leadership = self.replicator.leadership();
        if leadership.is_leader {
            // It never left: they are evaluated here.
            self.homeless_until = None;
        } else if leadership.leader.is_some() || until <= now {
            self.homeless_until = None;
            let rejected = self.not_leader();
            for arrival in self.arrivals.drain(..) {
                effects.push(Effect::Reply { ticket: arrival.ticket, result: Err(rejected.clone()) });
            }
        }
    }

    fn announce(&self, effects: &mut Vec<Effect>) {
        let Leadership { term, leader, .. } = self.leadership;
        let node = leader.and_then(|r| self.node_of(r));
        effects.push(Effect::Leader { term, leader, node, ready: self.sequencer.is_some() });
    }

    fn lose_leadership(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.sequencer = None;
        self.unapplied.clear();
        self.unapplied_bytes = 0;
        let rejected = self.not_leader();
        self.homeless_until = Some(now + self.config.timing.election_min);
        self.send_homeless(now, effects);
        self.changes.lose(effects);
        self.reads.lose(&rejected, effects);
        self.writes.orphan(now + self.config.timing.election_max);
    }

    /// Evaluates what has arrived and appends what comes of it.
    fn evaluate(&mut self, now: Now, wall: u64, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        let busy = self.replicator.writes_pending() >= WRITES_PENDING_MAX;
        if self.arrivals.is_empty() || busy || self.replicator.transferring() {
            return Ok(());
        }
        let Some(sequencer) = &mut self.sequencer else { return Ok(()) };
        let term = self.leadership.term;
        let mut open: BTreeMap<Index, Vec<(usize, Staged)>> = BTreeMap::new();
        for Arrival { ticket, proposal, deadline } in self.arrivals.drain(..) {
            if deadline <= now {
                effects.push(Effect::Reply { ticket, result: Err(Rejected::Retry("its deadline has passed".into())) });
                continue;
            }
            let staged = Staged::new(ticket, &proposal, deadline);
            match sequencer.propose(wall, *proposal)? {
                Decision::Staged { index, position } => open.entry(index).or_default().push((position, staged)),
                Decision::Duplicate { result, index } if index <= self.applied.index => {
                    effects.push(Effect::Reply { ticket, result: Ok(finished(result, &self.applied)) });
                }
                Decision::Duplicate { result, index } => {
                    self.writes.push(index, term, staged.with(finished(result, &self.applied)));
                }
                Decision::Answer { result, .. } if planted(Bug::UnconfirmedRefusal) => {
                    effects.push(Effect::Reply { ticket, result });
                }
                Decision::Answer { result, depends_on } => {
                    let result = result.map(|r| finished(r, &self.applied));
                    self.reads.push(Waiter::Answer { ticket, deadline, result, depends_on });
                }
            }
        }
        let mut entries = Vec::new();
        while let Some(sealed) = sequencer.seal()? {
            let expected = self.replicator.last_index().get() + 1 + entries.len() as u64;
            if sealed.index.get() != expected {
                let cause = format!("the sequencer sealed entry {} where {expected} comes next", sealed.index);
                return Err(Fatal::new(format!("append to {}", self.config.shard), cause));
            }
            self.unapplied.push_back((sealed.index, sealed.bytes.len()));
            self.unapplied_bytes += sealed.bytes.len();
            entries.push(sealed.bytes);
            let mut results: Vec<Option<WriteResult>> = sealed.results.into_iter().map(Some).collect();
            for (position, staged) in open.remove(&sealed.index).unwrap_or_default() {
                let result = results.get_mut(position).and_then(Option::take).unwrap_or_default();
                self.writes.push(sealed.index, term, staged.with(finished(result, &self.applied)));
            }
        }
        if !entries.is_empty() && !self.replicator.append(now, entries)? {
            // Excluded by the checks above; if it happens, the in-flight state is wrong and must go.
            return Err(Fatal::new(format!("append to {}", self.config.shard), "the leader refused its own entries"));
        }
        Ok(())
    }

    fn start_reads(&mut self, now: Now) -> Result<(), Fatal> {
        if let Some(context) = self.reads.wants_round()
            && self.replicator.read_index(now, context)?
        {
            self.reads.begin_round();
        }
        Ok(())
    }

    /// Turns what the replicator wants into effects. `false`: nothing that could lead to more.
    fn take_output(&mut self, now: Now, effects: &mut Vec<Effect>) -> Result<bool, Fatal> {
        let output = self.replicator.output(now)?;
        self.lag.committed(now, self.replicator.commit_index(), &output.committed);
        if let Some((id, records)) = output.persist {
            effects.push(Effect::Persist { id, records });
        }
        for (to, message) in output.sends {
            effects.push(Effect::Send { to, message });
        }
        if let Some(last) = output.committed.last() {
            self.shippable = last.index;
            self.writes.committed(&output.committed, effects);
            effects.push(Effect::Apply { entries: output.committed });
        }
        if let Some(index) = output.needs_snapshot {
            effects.push(Effect::NeedsSnapshot { index });
        }
        let more = !output.reads.is_empty();
        for (context, index) in output.reads {
            self.reads.confirmed(context, index, self.applied.index, effects);
        }
        Ok(more && self.reads.wants_round().is_some())
    }

    fn note_applied(&mut self, now: Now, applied: Applied, effects: &mut Vec<Effect>) -> Result<(), Fatal> {
        if applied.index <= self.applied.index {
            return Ok(());
        }
        let index = applied.index;
        self.replicator.applied(index)?;
        if let Some(sequencer) = &mut self.sequencer {
            sequencer.applied(index);
        }
        while let Some((_, bytes)) = self.unapplied.pop_front_if(|(last, _)| *last <= index) {
            self.unapplied_bytes -= bytes;
        }
        for done in self.writes.applied(index) {
            if applied.void.contains(&done.index) {
                let result = Err(Rejected::Retry("another entry came before it".into()));
                effects.push(Effect::Reply { ticket: done.staged.ticket, result });
            } else {
                self.waits.begin(now, done, &self.lag, effects);
            }
        }
        self.applied = applied;
        self.changes.applied(&self.applied, effects);
        self.reads.applied(index, effects);
        Ok(())
    }

    /// Answers what has waited too long.
    fn expire(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.arrivals.retain(|arrival| {
            let keep = arrival.deadline > now;
            if !keep {
                let result = Err(Rejected::Retry("the leader was not ready in time".into()));
                effects.push(Effect::Reply { ticket: arrival.ticket, result });
            }
            keep
        });
        self.changes.expire(now, effects);
        self.reads.expire(now, effects);
        self.writes.expire(now, effects);
        self.waits.expire(now, &self.lag, effects);
        if self.leadership.is_leader {
            self.lag.observe(now, &self.replicator.progress(now));
        }
    }
}

fn replicator(
    config: &Config,
    applied: &Applied,
    log: &Arc<dyn LogReader>,
    now: Now,
) -> Result<Box<dyn Replicator>, Fatal> {
    let Config { shard, replica, seed, timing, .. } = *config;
    let membership = Arc::clone(&applied.membership);
    let replica = ReplicaConfig { shard, replica, membership, applied: applied.index, seed, timing };
    let log = Arc::clone(log);
    Ok(match config.protocol {
        Protocol::Raft => Box::new(RaftReplicator::new(&replica, log, now)?),
        Protocol::Paxos => Box::new(PaxosReplicator::new(&replica, log, now)?),
    })
}

/// Fills in what the sequencer does not know.
fn finished(mut result: WriteResult, applied: &Applied) -> WriteResult {
    result.epoch = applied.epoch.number;
    result
}
