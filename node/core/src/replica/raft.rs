//! The `raft` replicator: raft-rs 0.7 with pre-vote, check-quorum, ReadIndex, transfer and asynchronous persistence.
//!
//! What is added to the library here:
//! - **Holding.** A follower's messages wait for every write before them; while a new term or vote is not durable, a
//!   leader's do too. A heartbeat's answer waits for terms and votes only: it promises nothing about entries, and reads
//!   must not pay for a follower's sync.
//! - **Durability.** raft-rs takes an entry of the same index and term for the same write; after a truncation no older
//!   completion is passed on until the truncation itself is durable.
//! - **Commit news.** raft-rs tells every follower of every commit at once. Here an append carries it, and a message of
//!   its own is sent only when nothing more is in flight: half the messages under load, none later when idle.
//! - **Backpressure.** No more committed entries are taken than `APPLY_WINDOW_BYTES` ahead of the applier.
//! - **Disk progress.** A leader whose own write has not finished for an election timeout hands over and steps down.
//! - **Snapshots** travel out of band: what raft-rs sends is a marker without data, and a follower that lacks the entry
//!   it names never gives it to raft-rs but asks for a snapshot; the marker is repeated until the follower is filled.
//! - **Panics.** raft-rs panics on what a peer or a bad restart can cause: messages are checked first, and what panics
//!   all the same is [`Fatal`] for this replica only.
//!
//! - **Membership.** Ours, see `members`: it counts from the moment it is applied, as raft-rs has it; a leader that is
//!   no voter any more hands over and steps down.

mod election;
mod members;
mod messages;
mod storage;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "planted-bugs"))]
pub(super) use self::messages::claims;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};
use quorate_shared::limits::APPEND_BYTES_MAX;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config as RaftConfig, RawNode, Ready, StateRole};

use self::election::{ElectionClock, Phase};
use self::storage::Storage;
use super::flow::{Applying, Writes, guard};
use super::{Capabilities, Config, Leadership, Now, Output, PersistId, Progress, Replicator, Timing};
use crate::bug::{Bug, planted};
use crate::error::Fatal;
use crate::log::{HardState, LogEntry, LogReader, LogRecord, Membership};
use crate::membership::{ChangeEntry, MembershipChange, Refused};

/// Ticks between the earliest and the latest moment of an election: with only one every candidate stands at once, splits
/// the votes, and does so again for ever.
const ELECTION_TICKS_MIN: u64 = 4;
/// Append messages on their way to one follower.
const INFLIGHT_MESSAGES_MAX: usize = 64;

/// Messages that wait for a write.
struct Held {
    until: PersistId,
    messages: Vec<Message>,
}

/// What a peer last said.
#[derive(Clone, Copy, Default)]
struct Heard {
    at: Now,
    term: u64,
    applied: Index,
}

/// One replica of a Raft group.
pub struct RaftReplicator {
    node: RawNode<Storage>,
    shard: ShardId,
    timing: Timing,
    clock: ElectionClock,
    membership: Arc<Membership>,
    me: ReplicaId,
    next_tick: Now,
    writes: Writes,
    /// The last write that carries a new term or vote, and the last one that carries a truncation.
    term_write: PersistId,
    truncation_write: PersistId,
    held: VecDeque<Held>,
    sends: Vec<(ReplicaId, Bytes)>,
    reads: Vec<(u64, Index)>,
    applied: Index,
    applying: Applying,
    heard: BTreeMap<ReplicaId, Heard>,
    led_since: Now,
    led_term: u64,
    giving_up: bool,
    may_lead: bool,
    /// The commit index the followers have been told.
    announced: u64,
    /// The commit index written last.
    written: Index,
    dropped: u64,
    /// The leader's log begins behind this one's end.
    needs_snapshot: Option<Index>,
    marked: Now,
    /// Changes of the membership handed out and not yet applied.
    changes: VecDeque<(u64, ChangeEntry)>,
}

impl RaftReplicator {
    /// Opens a replica on its log. The log must have been synced since it was opened: what is in it counts as durable.
    pub fn new(config: &Config, log: Arc<dyn LogReader>, now: Now) -> Result<Self, Fatal> {
        let timing = config.timing;
        if timing.tick == 0
            || timing.tick > timing.heartbeat
            || timing.heartbeat >= timing.election_min
            || timing.election_min + ELECTION_TICKS_MIN * timing.tick > timing.election_max
        {
            return Err(Fatal::new(format!("open {}", config.shard), format!("its timing makes no sense: {timing:?}")));
        }
        if !config.membership.contains(config.replica) {
            let members: Vec<_> = config.membership.nodes().into_keys().collect();
            let cause = format!("{} is not a member: {members:?}", config.replica);
            return Err(Fatal::new(format!("open {}", config.shard), cause));
        }
        let storage = Storage::open(log, config.shard, &config.membership, config.applied)?;
        let ticks = |ms: u64| usize::try_from(ms / timing.tick).unwrap_or(1).max(1);
        let (election_min, election_max) = (ticks(timing.election_min), ticks(timing.election_max));
        let raft = RaftConfig {
            id: config.replica.get(),
            election_tick: election_min,
            heartbeat_tick: ticks(timing.heartbeat),
            min_election_tick: election_min,
            max_election_tick: election_max,
            applied: config.applied.get(),
            max_size_per_msg: APPEND_BYTES_MAX as u64,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            max_committed_size_per_ready: APPEND_BYTES_MAX as u64,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            ..RaftConfig::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let doing = || format!("open {}", config.shard);
        let node =
            guard("raft", doing, || RawNode::new(&raft, storage, &logger))?.map_err(|e| Fatal::new(doing(), e))?;
        let mut replica = Self {
            node,
            shard: config.shard,
            timing,
            clock: ElectionClock::new(config.seed ^ config.replica.get().rotate_left(32), election_min, election_max),
            membership: Arc::clone(&config.membership),
            me: config.replica,
            next_tick: now + timing.tick,
            writes: Writes::default(),
            term_write: 0,
            truncation_write: 0,
            held: VecDeque::new(),
            sends: Vec::new(),
            reads: Vec::new(),
            applied: config.applied,
            applying: Applying::default(),
            heard: BTreeMap::new(),
            led_since: now,
            led_term: 0,
            giving_up: false,
            may_lead: true,
            announced: 0,
            written: Index::new(0),
            dropped: 0,
            needs_snapshot: None,
            marked: now,
            changes: VecDeque::new(),
        };
        if replica.alone() {
            // Nobody else can lead: no reason to wait for an election timeout.
            replica.run("stand for election", |node| node.campaign())?.map_err(|e| Fatal::new(doing(), e))?;
        }
        Ok(replica)
    }

    /// Runs raft-rs; a panic in it, or a failed read of the log under it, is fatal.
    fn run<T>(&mut self, doing: &str, f: impl FnOnce(&mut RawNode<Storage>) -> T) -> Result<T, Fatal> {
        let node = &mut self.node;
        let shard = self.shard;
        let result = guard("raft", || format!("{doing} of {shard}"), || f(node));
        match self.node.store().take_failure() {
            Some(fatal) => Err(fatal),
            None => result,
        }
    }

    /// It is the only voter.
    fn alone(&self) -> bool {
        let Membership { voters, outgoing, .. } = &*self.membership;
        outgoing.is_empty() && voters.len() == 1 && self.membership.votes(self.me)
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Whether a message may be given to raft-rs: it would panic on some that no correct peer sends.
    fn sensible(&self, message: &Message) -> Result<bool, Fatal> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
                let cause =
                    format!("its log is lost: the leader knows {} to be in it, but it ends at {last}", message.commit);
                Err(Fatal::new(format!("follow in {}", self.shard), cause))
            }
            // An acknowledgement of what this leader never appended.
            MessageType::MsgAppendResponse if message.term == raft.term && !message.reject && message.index > last => {
                Ok(false)
            }
            MessageType::MsgTimeoutNow if !self.may_lead => Ok(false),
            // Two leaders in one term, or a reflected message.
            MessageType::MsgAppend | MessageType::MsgHeartbeat
                if message.term == raft.term && raft.state == StateRole::Leader =>
            {
                Ok(false)
            }
            _ => Ok(message.term != 0),
        }
    }

    /// Takes one `Ready` from raft-rs. `false`: there was nothing in it.
    fn take_ready(&mut self, now: Now, records: &mut Vec<LogRecord>, out: &mut Output) -> Result<bool, Fatal> {
        let pause = self.applying.is_full();
        let old = self.node.raft.store().hard();
        let mut ready = self.run("take work", |node| {
            node.store().pause.set(pause);
            let ready = node.ready();
            node.store().pause.set(false);
            ready
        })?;
        let number = ready.number();
        let mut busy = self.take_records(now, &ready, old, records);
        busy |= self.take_messages(&mut ready);
        for state in ready.take_read_states() {
            if let Ok(context) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                self.reads.push((u64::from_be_bytes(context), Index::new(state.index)));
                busy = true;
            }
        }
        let committed: Vec<LogEntry> = ready.take_committed_entries().iter().map(messages::to_log).collect();
        busy |= !committed.is_empty();
        self.applying.hand_out(&committed);
        for entry in &committed {
            self.note_change(entry)?;
        }
        out.committed.extend(committed);
        self.run("go on", |node| node.advance_append_async(ready))?;
        if self.writes.pending() == 0 {
            // raft-rs keeps a record of every `Ready`; with no write on its way this one is complete.
            self.run("go on", |node| node.on_persist_ready(number))?;
        }
        Ok(busy)
    }

    /// The records of a `Ready`: entries first, then the hard state, so that a torn tail never has a commit index beyond
    /// its entries.
    fn take_records(&mut self, now: Now, ready: &Ready, old: HardState, records: &mut Vec<LogRecord>) -> bool {
        if !ready.must_sync() {
            if let Some(hard) = ready.hs() {
                let commit = Index::new(hard.commit);
                self.node.raft.mut_store().set_hard(HardState { commit, ..old });
            }
            return false;
        }
        let number = ready.number();
        let entries = ready.entries();
        if let Some(first) = entries.first() {
            if self.node.raft.mut_store().append(entries) {
                records.push(LogRecord::Truncate(Index::new(first.index)));
                self.truncation_write = number;
                self.writes.cut(Index::new(first.index));
            }
            records.push(LogRecord::Entries(entries.iter().map(messages::to_log).collect()));
        }
        if let Some(hard) = ready.hs() {
            let new = HardState {
                term: Term::new(hard.term),
                vote: ReplicaId::new(hard.vote),
                commit: Index::new(hard.commit),
            };
            if (new.term, new.vote) != (old.term, old.vote) {
                self.term_write = number;
            }
            self.node.raft.mut_store().set_hard(new);
            let forgotten = HardState { commit: new.commit, ..HardState::default() };
            records.push(LogRecord::Hard(if planted(Bug::ForgetHardState) { forgotten } else { new }));
            self.written = new.commit;
        } else if old.commit > self.written && !planted(Bug::ForgetHardState) {
            // A commit that came alone was not written. With the next entries it is: whoever has the entry of a change
            // knows, also after a power cut, that the change before it counts; else two memberships without a common
            // voter could both decide.
            records.push(LogRecord::Hard(old));
            self.written = old.commit;
        }
        self.writes.give_out(now, number, entries.last().map(|e| Index::new(e.index)));
        true
    }

    /// Sends what may be sent now and holds the rest.
    fn take_messages(&mut self, ready: &mut Ready) -> bool {
        let free = ready.take_messages();
        if free.iter().any(|m| m.get_msg_type() == MessageType::MsgAppend) {
            self.announced = self.node.raft.raft_log.committed;
        }
        let bound = ready.take_persisted_messages();
        let busy = !free.is_empty() || !bound.is_empty();
        self.send_or_hold(free, self.term_write);
        if bound.iter().any(|m| m.get_msg_type() == MessageType::MsgHeartbeatResponse) {
            let (early, late) =
                bound.into_iter().partition(|m: &Message| m.get_msg_type() == MessageType::MsgHeartbeatResponse);
            self.send_or_hold(early, self.term_write);
            self.send_or_hold(late, self.writes.issued());
        } else {
            self.send_or_hold(bound, self.writes.issued());
        }
        busy
    }

    fn send_or_hold(&mut self, messages: Vec<Message>, until: PersistId) {
        if messages.is_empty() {
            return;
        }
        if until > self.writes.durable() {
            self.held.push_back(Held { until, messages });
        } else {
            self.send(messages);
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = ReplicaId::new(message.to);
            match messages::encode(message, self.applied) {
                Some(bytes) => self.sends.push((to, bytes)),
                None => self.dropped += 1,
            }
        }
    }

    /// Tells the followers of a commit that no append has told them and none soon will. `true`: there are messages.
    fn announce_commit(&mut self) -> Result<bool, Fatal> {
        let log = &self.node.raft.raft_log;
        let news = log.committed > self.announced && log.committed == log.last_index();
        if !self.is_leader() || !news {
            return Ok(false);
        }
        self.run("tell of a commit", |node| node.raft.bcast_append())?;
        Ok(self.node.has_ready())
    }

    /// Whether a snapshot's marker names an entry that is not in this log.
    fn lacks(&mut self, marker: &Message) -> Result<bool, Fatal> {
        let point = marker.get_snapshot().get_metadata();
        let (index, term) = (point.index, point.term);
        self.run("look for a snapshot's entry", |node| {
            let log = &node.raft.raft_log;
            index > log.committed && !log.match_term(index, term)
        })
    }

    /// raft-rs sends a marker once; the follower may not have heard it, or may have been filled since.
    fn mark_again(&mut self, now: Now) -> Result<(), Fatal> {
        if !self.is_leader() || now.saturating_sub(self.marked) < self.timing.election_max {
            return Ok(());
        }
        self.marked = now;
        let waiting = |(_, progress): &(&u64, &raft::Progress)| progress.state == raft::ProgressState::Snapshot;
        let mut behind: Vec<u64> = self.node.raft.prs().iter().filter(waiting).map(|(id, _)| *id).collect();
        behind.sort_unstable();
        for id in behind {
            self.run("repeat a marker", |node| node.report_snapshot(id, raft::SnapshotStatus::Failure))?;
        }
        Ok(())
    }

    /// A leader whose disk hangs hands over, and gives up a tick later if nobody has taken over.
    fn watch_disk(&mut self, now: Now) -> Result<(), Fatal> {
        if !self.is_leader() || self.alone() || self.writes.wait(now) < self.timing.election_max {
            self.giving_up = false;
            return Ok(());
        }
        if !self.giving_up {
            self.giving_up = true;
            return self.transfer(now, None);
        }
        self.giving_up = false;
        self.step_down(now)
    }

    /// Of the others, the one whose log is furthest; one that was heard lately before one that was not.
    fn furthest_voter(&self, now: Now) -> Option<u64> {
        let alive = |id: u64| {
            let heard = self.heard.get(&ReplicaId::new(id));
            heard.is_some_and(|h| h.term == self.term() && now.saturating_sub(h.at) <= self.timing.election_min)
        };
        let leads = |id: u64| id != self.me.get() && self.can_lead(ReplicaId::new(id));
        let others = self.node.raft.prs().iter().filter(|(id, _)| leads(**id));
        // Of equal ones the lowest id, so that the choice does not depend on a map's order.
        others.max_by_key(|(id, progress)| (alive(**id), progress.matched, std::cmp::Reverse(**id))).map(|(id, _)| *id)
    }
}

impl Replicator for RaftReplicator {
    fn receive(&mut self, now: Now, from: ReplicaId, message: &[u8]) -> Result<(), Fatal> {
        // One that was named since what is applied here may lead: whoever is behind must hear it to get on.
        let newer = from >= self.membership.next;
        let known = from != self.me && (newer || self.membership.contains(from));
        let Some(mut decoded) = messages::decode(from, self.me, message).filter(|_| known) else {
            self.dropped += 1;
            return Ok(());
        };
        if planted(Bug::SkipTermCheck) {
            decoded.message.term = decoded.message.term.max(self.term());
        }
        if planted(Bug::VoteTwice) && decoded.message.get_msg_type() == MessageType::MsgRequestVote {
            self.node.raft.vote = raft::INVALID_ID;
        }
        if !self.sensible(&decoded.message)? {
            self.dropped += 1;
            return Ok(());
        }
        let kind = decoded.message.get_msg_type();
        let term = decoded.message.term;
        if kind == MessageType::MsgSnapshot && self.lacks(&decoded.message)? {
            self.needs_snapshot = Some(Index::new(decoded.message.get_snapshot().get_metadata().index));
            return Ok(());
        }
        if self.run("receive a message", |node| node.step(decoded.message))?.is_err() {
            self.dropped += 1;
        }
        let heard = self.heard.entry(from).or_default();
        heard.applied = heard.applied.max(decoded.applied);
        // Pre-votes speak of a term that may never be.
        if !matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse)
            && term >= heard.term
        {
            heard.at = now;
            heard.term = term;
        }
        Ok(())
    }

    fn tick(&mut self, now: Now) -> Result<(), Fatal> {
        if now < self.next_tick {
            return Ok(());
        }
        self.next_tick = self.timing.after_tick(self.next_tick, now);
        let raft = &self.node.raft;
        let phase = Phase { term: raft.term, role: raft.state as u8, leader: raft.leader_id };
        let elapsed = raft.election_elapsed;
        let mut timeout = self.clock.timeout(phase, elapsed);
        if !self.may_lead && !self.is_leader() {
            // Its own patience never ends; that it has lasted longer than a leader's lease lets it vote for others.
            timeout = self.clock.longest();
            if elapsed + 1 >= timeout {
                return self.watch_disk(now);
            }
        }
        self.run("tick", |node| {
            node.raft.set_randomized_election_timeout(timeout);
            node.tick()
        })?;
        let raft = &self.node.raft;
        let silent = raft.leader_id != raft::INVALID_ID && raft.election_elapsed >= self.clock.longest();
        if silent && !self.membership.votes(self.me) {
            // It stands for no election, and would believe in the leader for ever that has removed it.
            self.run("forget a silent leader", |node| {
                let term = node.raft.term;
                node.raft.become_follower(term, raft::INVALID_ID);
            })?;
        }
        self.mark_again(now)?;
        self.watch_disk(now)
    }

    fn append(&mut self, _: Now, entries: Vec<Bytes>) -> Result<bool, Fatal> {
        if !self.is_leader() || self.transferring() {
            return Ok(false);
        }
        if entries.is_empty() {
            return Ok(true);
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.me.get();
        message.entries =
            entries.into_iter().map(|bytes| Entry { data: bytes, ..Entry::default() }).collect::<Vec<_>>().into();
        Ok(self.run("append", |node| node.step(message))?.is_ok())
    }

    fn read_index(&mut self, _: Now, context: u64) -> Result<bool, Fatal> {
        if !self.is_leader() || !self.node.raft.commit_to_current_term() {
            return Ok(false);
        }
        self.run("ask for the commit index", |node| node.read_index(context.to_be_bytes().to_vec()))?;
        Ok(true)
    }

    fn disconnected(&mut self, _: Now, _: ReplicaId) -> Result<(), Fatal> {
        // raft-rs repeats what was lost.
        Ok(())
    }

    fn persisted(&mut self, _: Now, id: PersistId) -> Result<(), Fatal> {
        let (news, last) = self.writes.finish(id);
        if !news {
            return Ok(());
        }
        if id >= self.truncation_write {
            if let Some(last) = last {
                self.node.raft.mut_store().set_durable(last.get());
            }
            self.run("finish a write", |node| node.on_persist_ready(id))?;
        }
        // Not in order of `until`: a heartbeat's answer may be free before older messages are.
        for held in std::mem::take(&mut self.held) {
            if held.until <= id {
                self.send(held.messages);
            } else {
                self.held.push_back(held);
            }
        }
        Ok(())
    }

    fn applied(&mut self, index: Index) -> Result<(), Fatal> {
        if index <= self.applied {
            return Ok(());
        }
        self.applied = index;
        self.applying.applied(index);
        self.apply_changes(index)?;
        self.run("note what is applied", |node| node.advance_apply_to(index.get()))
    }

    fn committed(&mut self, _: Now, index: Index) -> Result<(), Fatal> {
        self.run("note what is committed", |node| {
            let log = &mut node.raft.raft_log;
            if let Ok(term) = log.term(index.get()) {
                log.maybe_commit(index.get(), term);
            }
        })
    }

    fn compact(&mut self, index: Index, term: Term) -> Result<bool, Fatal> {
        if index > self.applied {
            let cause = format!("entry {index} is not applied");
            return Err(Fatal::new(format!("trim the log of {}", self.shard), cause));
        }
        self.node.raft.mut_store().compact(index.get(), term.get());
        Ok(true)
    }

    fn change(&mut self, now: Now, change: &MembershipChange) -> Result<Result<LogEntry, Refused>, Fatal> {
        self.propose_change(now, change)
    }

    fn step_down(&mut self, _: Now) -> Result<(), Fatal> {
        if !self.is_leader() {
            return Ok(());
        }
        self.run("step down", |node| {
            let term = node.raft.term;
            node.raft.become_follower(term, raft::INVALID_ID);
        })
    }

    fn transfer(&mut self, now: Now, to: Option<ReplicaId>) -> Result<(), Fatal> {
        let to = to.map(ReplicaId::get).or_else(|| self.furthest_voter(now));
        match to {
            Some(to) if self.is_leader() && to != self.me.get() && self.can_lead(ReplicaId::new(to)) => {
                self.run("hand over", |node| node.transfer_leader(to))
            }
            _ => Ok(()),
        }
    }

    fn may_lead(&mut self, may: bool) {
        self.may_lead = may;
    }

    fn transferring(&self) -> bool {
        self.node.raft.lead_transferee.is_some()
    }

    fn output(&mut self, now: Now) -> Result<Output, Fatal> {
        let mut out = Output::default();
        let mut records = Vec::new();
        self.node.store().refill();
        while self.node.has_ready() {
            if !self.take_ready(now, &mut records, &mut out)? {
                break;
            }
        }
        if self.announce_commit()? {
            self.take_ready(now, &mut records, &mut out)?;
        }
        if !records.is_empty() {
            out.persist = Some((self.writes.issued(), records));
        }
        if planted(Bug::AcknowledgeBeforeSync) {
            self.persisted(now, self.writes.issued())?;
        }
        if self.is_leader() && self.led_term != self.term() {
            self.led_term = self.term();
            self.led_since = now;
        }
        out.sends = std::mem::take(&mut self.sends);
        out.reads = std::mem::take(&mut self.reads);
        out.needs_snapshot = self.needs_snapshot.take();
        Ok(out)
    }

    fn next_wake(&self) -> Now {
        self.next_tick
    }

    fn leadership(&self) -> Leadership {
        let leader = self.node.raft.leader_id;
        Leadership {
            term: Term::new(self.term()),
            leader: (leader != raft::INVALID_ID).then_some(ReplicaId::new(leader)),
            is_leader: self.is_leader(),
        }
    }

    fn confirmed(&self, now: Now) -> bool {
        if !self.is_leader() {
            return false;
        }
        let term = self.term();
        let fresh = |h: &Heard| h.term == term && now.saturating_sub(h.at) <= self.timing.election_min;
        self.membership.has_quorum(|id| id == self.me || self.heard.get(&id).is_some_and(fresh))
    }

    fn last_index(&self) -> Index {
        Index::new(self.node.raft.raft_log.last_index())
    }

    fn durable_index(&self) -> Index {
        Index::new(self.node.store().durable())
    }

    fn writes_pending(&self) -> usize {
        self.writes.pending()
    }

    fn commit_index(&self) -> Index {
        Index::new(self.node.raft.raft_log.committed)
    }

    fn progress(&self, now: Now) -> Vec<Progress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let mut out: Vec<Progress> = Vec::new();
        for replica in self.membership.nodes().into_keys() {
            if replica == self.me {
                let (sent, durable) = (self.last_index(), self.durable_index());
                out.push(Progress { replica, sent, durable, applied: self.applied, heard: Some(0) });
            } else if let Some(progress) = self.node.raft.prs().get(replica.get()) {
                let heard = self.heard.get(&replica).filter(|h| h.term == self.term() && h.at >= self.led_since);
                out.push(Progress {
                    replica,
                    sent: Index::new(progress.next_idx.saturating_sub(1).max(progress.matched)),
                    durable: Index::new(progress.matched),
                    applied: heard.map_or(Index::new(0), |h| h.applied),
                    heard: heard.map(|h| now.saturating_sub(h.at)),
                });
            }
        }
        out.sort_by_key(|p| p.replica);
        out
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_index: true, transfer: true, learners: true }
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
