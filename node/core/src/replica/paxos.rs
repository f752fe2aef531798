//! The `paxos` replicator: OmniPaxos 0.2 (Sequence Paxos and ballot leader election) under our own durability.
//!
//! What is added to the library here:
//! - **Durability.** The library counts its own acceptance as soon as its storage call returns. So a promise and an
//!   acceptance leave only when everything written before is durable; entries may go out while the leader's own write
//!   runs, but what is said to be decided, applied or answered never exceeds what is durable here.
//! - **Sessions.** It resends nothing of its accept phase. `session` orders frames and notices every loss; after one
//!   both sides tell their library that the other has reconnected.
//! - **Flow.** A follower that is far behind gets its entries in parts (`stream`).
//! - **Forwarding** is never used: entries are appended by a leader in its accept phase only, at exactly the position
//!   they were made for. A forwarded proposal of a peer is dropped.
//! - **Reads.** See `reads`.
//! - **Leadership.** A leader that no majority has confirmed for an election timeout does not call itself one; one whose
//!   disk hangs neither answers nor asks in the election, so that the others replace it.
//! - **Membership.** See `members`: a configuration of the library for each membership, on one log.
//! - **Catching up** past the library, from what is decided, or by a snapshot where the log is trimmed: see `missing`.
//! - **Panics.** Messages are checked first, and what panics all the same is [`Fatal`] for this replica only.
//! - **Terms.** A round is a term that grows (configuration, number, proposer); a leader's first entry is empty and of its
//!   term: once it is decided, everything accepted at the election is.
//!
//! It cannot: learners, a configuration of one voter. Both are refused by name.

mod members;
mod missing;
mod reads;
mod receive;
mod send;
mod session;
mod storage;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use omnipaxos::OmniPaxos;
use quorate_shared::ids::{Index, ReplicaId, ShardId, Term};
use quorate_shared::limits::APPEND_BYTES_MAX;

use self::members::Place;
use self::missing::Missing;
use self::reads::Reads;
use self::session::Link;
use self::storage::{Item, Store};
use self::stream::Streams;
use self::wire::Message;
use super::flow::{Applying, Writes, guard};
use super::random::Random;
use super::{Capabilities, Config, Leadership, Now, Output, PersistId, Progress, Replicator, Timing};
use crate::error::Fatal;
use crate::log::{LogEntry, LogReader, Membership, Payload, Round};
use crate::membership::{ChangeEntry, MembershipChange, Refused};

/// Voters of one configuration: a term holds its round's proposer in four bits.
pub const VOTERS_MAX: u64 = 15;
/// How often the library repeats what a peer may not have got.
const RESEND_MS: u64 = 500;
/// Rounds a leader goes up in one tick.
const ROUNDS_AT_ONCE: u32 = 16;
/// Messages the library may have for others in one step.
const BUFFER_MESSAGES: usize = 64;

/// A message that waits for a write.
struct Held {
    until: PersistId,
    to: u64,
    /// The session it was meant for.
    generation: u64,
    message: Message,
}

/// A handing over that has not ended: the round it ends, and when it is given up.
#[derive(Clone, Copy)]
struct HandingOver {
    round: Round,
    until: Now,
}

/// One replica of a configuration of OmniPaxos.
pub struct PaxosReplicator {
    library: OmniPaxos<Item, Store>,
    store: Store,
    shard: ShardId,
    timing: Timing,
    me: ReplicaId,
    /// By place: the first is 1 to the library.
    voters: Vec<ReplicaId>,
    pid: u64,
    configuration: u32,
    membership: Arc<Membership>,
    begins: Index,
    /// Changes of the membership handed out and not yet followed.
    changes: VecDeque<(Index, ChangeEntry)>,
    /// It led the configuration before, and stands first in this one; until when.
    heir: Option<Now>,
    missing: Missing,
    random: Random,
    links: BTreeMap<u64, Link>,
    streams: Streams,
    /// Messages taken from the leader's sequence since its synchronization.
    counter: u64,
    /// The running round of the election, and who has answered in it: the library counts an answer each time it comes.
    round: u32,
    answered: BTreeSet<u64>,
    /// A majority has been connected once: before, a round of the election would only say that nobody is there.
    met: bool,
    /// Ticks of an election round, and those of the running one.
    round_ticks: u64,
    ticks: u64,
    next_tick: Now,
    next_heartbeat: Now,
    writes: Writes,
    /// The last write that carries a new promise.
    promise_write: PersistId,
    held: VecDeque<Held>,
    sends: Vec<(ReplicaId, Bytes)>,
    reads: Reads,
    confirmed_reads: Vec<(u64, Index)>,
    applied: Index,
    /// Committed entries handed out up to here.
    handed: Index,
    applying: Applying,
    /// The round this replica leads, and the index of its first entry.
    led: Option<(Round, Index)>,
    led_since: Now,
    /// No majority has confirmed this leader for an election timeout.
    lonely: bool,
    handing_over: Option<HandingOver>,
    /// The round it has given up without waiting for another leader, and when.
    resigned: Option<(Round, Now)>,
    may_lead: bool,
    dropped: u64,
}

impl PaxosReplicator {
    /// Opens a replica on its log. The log must have been synced since it was opened: what is in it counts as durable.
    pub fn new(config: &Config, log: Arc<dyn LogReader>, now: Now) -> Result<Self, Fatal> {
        let doing = || format!("open {}", config.shard);
        let timing = config.timing;
        if timing.tick == 0
            || timing.tick > timing.heartbeat
            || timing.heartbeat * 3 > timing.election_min
            || timing.election_min + timing.tick > timing.election_max
        {
            return Err(Fatal::new(doing(), format!("its timing makes no sense: {timing:?}")));
        }
        let place = Place::of(config.shard, config.replica, &config.membership)?;
        let store = Store::open(log, config.shard, place.configuration, config.applied)?;
        let library = place.library(config.shard, &timing, &store)?;
        let Place { configuration, voters, pid } = place;
        // Not the replica's alone: two sessions of one place must never have the same name.
        let mut random = Random::new(config.seed ^ config.replica.get().rotate_left(32) ^ now.rotate_left(48));
        let links = (1..=voters.len() as u64).filter(|p| *p != pid).map(|p| (p, Link::new(now, &mut random))).collect();
        let mut replica = Self {
            library,
            begins: store.paxos().begins,
            store,
            shard: config.shard,
            timing,
            me: config.replica,
            voters,
            pid,
            configuration,
            membership: Arc::clone(&config.membership),
            changes: VecDeque::new(),
            heir: None,
            missing: Missing::default(),
            random,
            links,
            streams: Streams::default(),
            counter: 0,
            round: 0,
            answered: BTreeSet::new(),
            met: false,
            round_ticks: members::round_ticks(&timing),
            ticks: 0,
            next_tick: now,
            next_heartbeat: now,
            writes: Writes::default(),
            promise_write: 0,
            held: VecDeque::new(),
            sends: Vec::new(),
            reads: Reads::default(),
            confirmed_reads: Vec::new(),
            applied: config.applied,
            handed: config.applied,
            applying: Applying::default(),
            led: None,
            led_since: now,
            lonely: false,
            handing_over: None,
            resigned: None,
            may_lead: true,
            dropped: 0,
        };
        // What it wants sent first is lost: there is no session yet.
        replica.drain(now, false)?;
        Ok(replica)
    }

    /// Runs the library; a panic in it, or a failed read of the log under it, is fatal. What it wants sent is taken.
    fn run<T>(&mut self, now: Now, doing: &str, f: impl FnOnce(&mut OmniPaxos<Item, Store>) -> T) -> Result<T, Fatal> {
        let library = &mut self.library;
        let shard = self.shard;
        let result = guard("paxos", || format!("{doing} of {shard}"), || f(library));
        if let Some(fatal) = self.store.take_failure() {
            return Err(fatal);
        }
        let result = result?;
        self.after(now)?;
        Ok(result)
    }

    /// What every call of the library may have led to.
    fn after(&mut self, now: Now) -> Result<(), Fatal> {
        if let Some(from) = self.store.take_cut() {
            self.writes.cut(from);
        }
        self.drain(now, false)?;
        let promised = self.store.paxos().promised;
        if !self.leads() {
            if self.led.take().is_some() {
                self.streams.clear();
                self.reads.clear();
                self.lonely = false;
            }
        } else if self.led.is_none_or(|(round, _)| round != promised) && !self.store.is_stopped() {
            self.led = Some((promised, self.store.last().next()));
            self.led_since = now;
            self.lonely = false;
            self.reads.clear();
            let item = Item { term: self.term(promised), payload: Payload::Empty, bytes: Bytes::new() };
            self.run(now, "begin to lead", |library| library.append(item).is_ok())?;
        }
        if self.handing_over.is_some_and(|h| h.round != promised) {
            self.handing_over = None;
        }
        Ok(())
    }

    /// The library says that this replica leads, in its accept phase.
    fn leads(&self) -> bool {
        let resigned = self.resigned.is_some_and(|(round, _)| round == self.promised());
        !resigned && self.library.get_current_leader() == Some((self.pid, true))
    }

    fn promised(&self) -> Round {
        self.store.paxos().promised
    }

    /// A round as a term: grows with the rounds of a configuration and over configurations, and is nobody else's.
    fn term(&self, round: Round) -> Term {
        let configuration = u64::from(self.configuration.saturating_sub(1));
        Term::new(configuration << 32 | u64::from(round.number) << 4 | u64::from(round.proposer))
    }

    fn index(&self, position: u64) -> Index {
        Index::new(self.begins.get().saturating_add(position))
    }

    fn position(&self, index: Index) -> u64 {
        index.get().saturating_sub(self.begins.get())
    }

    fn replica_at(&self, pid: u64) -> Option<ReplicaId> {
        self.voters.get(usize::try_from(pid.checked_sub(1)?).ok()?).copied()
    }

    fn place_of(&self, replica: ReplicaId) -> Option<u64> {
        self.voters.iter().position(|v| *v == replica).map(|p| p as u64 + 1)
    }

    /// How many others make a majority with this replica.
    fn others_needed(&self) -> usize {
        self.voters.len() / 2
    }

    /// Others that have said within so many milliseconds that they have promised what this replica has.
    fn supporters(&self, now: Now, within: u64) -> usize {
        let promised = self.promised();
        let fresh = |l: &&Link| l.is_open() && l.promised == promised && now.saturating_sub(l.heard) <= within;
        self.links.values().filter(fresh).count()
    }

    /// Whether a majority still follows this leader; a new one gets an election timeout to hear so.
    fn look_around(&mut self, now: Now) {
        let new = now.saturating_sub(self.led_since) <= self.timing.election_max;
        let lonely =
            self.led.is_some() && !new && self.supporters(now, self.timing.election_max) < self.others_needed();
        if lonely && !self.lonely {
            self.reads.clear();
        }
        self.lonely = lonely;
    }

    /// A follower that has promised a higher round which nobody leads (its proposer came back without it) would stay
    /// behind for ever: the library hears neither it nor its leader. So the leader goes on in a round above that one.
    fn bring_in(&mut self, now: Now) -> Result<(), Fatal> {
        let promised = self.promised();
        let leads = self.leads() && !self.lonely;
        let mut target = None;
        for link in self.links.values_mut() {
            if !leads || !link.is_open() || link.promised <= promised {
                link.above_since = None;
            } else if now.saturating_sub(*link.above_since.get_or_insert(now)) > self.timing.election_max {
                target = target.max(Some(link.promised));
            }
        }
        let Some(target) = target else { return Ok(()) };
        for _ in 0..ROUNDS_AT_ONCE {
            self.take_over(now)?;
            if self.promised() > target {
                break;
            }
        }
        Ok(())
    }

    /// The disk hangs: this replica takes no part in elections.
    fn disk_hangs(&self, now: Now) -> bool {
        self.writes.wait(now) >= self.timing.election_min
    }

    /// The highest decided position that is durable here.
    fn decided(&self) -> u64 {
        self.position(self.commit_index())
    }

    /// Ends the session with a peer; a new one is asked for at once.
    fn close(&mut self, now: Now, pid: u64) {
        self.streams.end(pid);
        if let Some(link) = self.links.get_mut(&pid) {
            link.close(&mut self.random);
        }
        self.hello(now, pid);
    }

    /// Of the others that are there, the one whose log is furthest.
    fn furthest_voter(&self, now: Now) -> Option<u64> {
        let alive = |l: &Link| l.is_open() && now.saturating_sub(l.heard) <= self.timing.election_min;
        let others = self.links.iter().map(|(pid, link)| (alive(link), self.streams.progress(*pid).1, *pid));
        others.max_by_key(|(alive, accepted, pid)| (*alive, *accepted, std::cmp::Reverse(*pid))).map(|o| o.2)
    }

    fn tick_library(&mut self, now: Now) -> Result<(), Fatal> {
        let library = &mut self.library;
        guard("paxos", || format!("tick of {}", self.shard), || library.tick())?;
        self.ticks = (self.ticks + 1) % self.round_ticks;
        // What the library repeats by the clock, the session has not lost.
        self.drain(now, true)?;
        self.run(now, "tick", |_| ())
    }

    /// Stands for leadership at once. The election hears of a round only at the end of one of its own: until then it
    /// would tell the others of an older ballot, and they would think that nobody leads.
    fn take_over(&mut self, now: Now) -> Result<(), Fatal> {
        self.run(now, "take over", |library| library.try_become_leader())?;
        for _ in self.ticks..self.round_ticks {
            self.tick_library(now)?;
        }
        Ok(())
    }

    fn tick_links(&mut self, now: Now) {
        let (gap, silence) = (2 * self.timing.heartbeat, self.timing.election_min);
        let pids: Vec<u64> = self.links.keys().copied().collect();
        for pid in pids {
            let Some(link) = self.links.get(&pid) else { continue };
            if link.is_broken(now, gap, silence) {
                self.close(now, pid);
            } else if !link.is_open() {
                if now.saturating_sub(link.spoken) >= self.timing.heartbeat {
                    self.hello(now, pid);
                }
            } else if now >= self.next_heartbeat {
                for context in self.reads.open_for(pid) {
                    let n = self.promised();
                    self.send(now, pid, Message::Confirm { n, context });
                }
                let quiet = self.links.get(&pid).is_some_and(|l| now.saturating_sub(l.spoken) >= self.timing.heartbeat);
                if quiet {
                    self.send(now, pid, Message::Beat);
                }
            }
        }
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.timing.heartbeat;
        }
    }

    /// Committed entries that the applier has room for.
    fn take_committed(&mut self, out: &mut Output) -> Result<(), Fatal> {
        let commit = self.commit_index();
        while self.handed < commit && !self.applying.is_full() {
            let entries = self.store.entries(self.handed.next(), commit.next(), APPEND_BYTES_MAX)?;
            let Some(last) = entries.last().map(|e| e.index) else {
                let cause = format!("the log has no entry {}", self.handed.next());
                return Err(Fatal::new(format!("read the log of {}", self.shard), cause));
            };
            self.handed = last;
            self.applying.hand_out(&entries);
            self.note_changes(&entries)?;
            out.committed.extend(entries);
        }
        Ok(())
    }
}

impl Replicator for PaxosReplicator {
    fn receive(&mut self, now: Now, from: ReplicaId, message: &[u8]) -> Result<(), Fatal> {
        self.receive_frame(now, from, message)
    }

    fn tick(&mut self, now: Now) -> Result<(), Fatal> {
        if now < self.next_tick {
            return Ok(());
        }
        self.next_tick = self.timing.after_tick(self.next_tick, now);
        self.tick_links(now);
        self.ask_again(now);
        self.look_around(now);
        self.handing_over = self.handing_over.filter(|h| now < h.until);
        self.met |= self.links.values().filter(|l| l.is_open()).count() >= self.others_needed();
        if !self.met || self.disk_hangs(now) {
            return Ok(());
        }
        if self.resigned.is_some_and(|(_, since)| now.saturating_sub(since) > self.timing.election_max) {
            // Nobody has taken over.
            let (round, _) = self.resigned.take().unwrap_or_default();
            if round == self.promised() && self.may_lead {
                self.take_over(now)?;
            }
        }
        if !self.may_lead && self.leads() && self.handing_over.is_none() {
            self.transfer(now, None)?;
        }
        self.tick_library(now)?;
        self.bring_in(now)
    }

    fn append(&mut self, now: Now, entries: Vec<Bytes>) -> Result<bool, Fatal> {
        if !self.leadership().is_leader || self.transferring() || self.store.is_stopped() {
            return Ok(false);
        }
        let term = self.term(self.promised());
        self.run(now, "append", |library| {
            entries.into_iter().all(|bytes| library.append(Item { term, payload: Payload::Entry, bytes }).is_ok())
        })
    }

    fn read_index(&mut self, now: Now, context: u64) -> Result<bool, Fatal> {
        let commit = self.commit_index();
        // Behind a stop sign others may be further than a majority of this configuration knows.
        if !self.leadership().is_leader || self.store.is_stopped() || self.led.is_none_or(|(_, first)| commit < first) {
            return Ok(false);
        }
        self.reads.begin(context, commit);
        let n = self.promised();
        let pids: Vec<u64> = self.links.keys().copied().collect();
        for pid in pids {
            self.send(now, pid, Message::Confirm { n, context });
        }
        Ok(true)
    }

    fn disconnected(&mut self, now: Now, peer: ReplicaId) -> Result<(), Fatal> {
        if let Some(pid) = self.place_of(peer).filter(|pid| *pid != self.pid) {
            self.close(now, pid);
        }
        Ok(())
    }

    fn persisted(&mut self, now: Now, id: PersistId) -> Result<(), Fatal> {
        if let (true, Some(last)) = self.writes.finish(id) {
            self.store.set_durable(last);
        }
        self.ask_on(now);
        Ok(())
    }

    fn applied(&mut self, index: Index) -> Result<(), Fatal> {
        if index <= self.applied {
            return Ok(());
        }
        if index > self.handed {
            let cause = format!("{index} is applied, but {} was committed last", self.handed);
            return Err(Fatal::new(format!("note what is applied of {}", self.shard), cause));
        }
        self.applied = index;
        self.applying.applied(index);
        Ok(())
    }

    fn change(&mut self, now: Now, change: &MembershipChange) -> Result<Result<LogEntry, Refused>, Fatal> {
        self.stop_with(now, change)
    }

    fn compact(&mut self, index: Index, term: Term) -> Result<bool, Fatal> {
        if index > self.applied {
            let cause = format!("entry {index} is not applied");
            return Err(Fatal::new(format!("trim the log of {}", self.shard), cause));
        }
        self.store.compact(index, term);
        Ok(true)
    }

    fn step_down(&mut self, now: Now) -> Result<(), Fatal> {
        if self.leads() {
            self.transfer(now, None)?;
            self.resigned = Some((self.promised(), now));
        }
        Ok(())
    }

    fn transfer(&mut self, now: Now, to: Option<ReplicaId>) -> Result<(), Fatal> {
        let to = to.and_then(|to| self.place_of(to)).or_else(|| self.furthest_voter(now));
        if let Some(to) = to.filter(|to| *to != self.pid && self.leads()) {
            let round = self.promised();
            self.handing_over = Some(HandingOver { round, until: now + self.timing.election_min });
            self.send(now, to, Message::Lead { n: round });
        }
        Ok(())
    }

    fn transferring(&self) -> bool {
        // Nothing follows a stop sign in its configuration.
        self.handing_over.is_some() || self.store.is_stopped()
    }

    fn may_lead(&mut self, may: bool) {
        self.may_lead = may;
    }

    fn output(&mut self, now: Now) -> Result<Output, Fatal> {
        let mut out = Output::default();
        self.follow_changes(now)?;
        let pending = self.store.take_pending();
        if !pending.records.is_empty() {
            let id = self.writes.issued() + 1;
            if pending.promise {
                self.promise_write = id;
            }
            self.writes.give_out(now, id, Some(self.store.last()));
            out.persist = Some((id, pending.records));
        }
        self.release(now);
        self.feed(now)?;
        self.take_committed(&mut out)?;
        self.want_snapshot(now, &mut out);
        out.sends = std::mem::take(&mut self.sends);
        out.reads = std::mem::take(&mut self.confirmed_reads);
        Ok(out)
    }

    fn next_wake(&self) -> Now {
        self.next_tick
    }

    fn leadership(&self) -> Leadership {
        let promised = self.promised();
        let leads = self.led.is_some_and(|(round, _)| round == promised) && self.leads();
        let is_leader = leads && !self.lonely;
        let followed = || {
            let (pid, _) = self.library.get_current_leader().filter(|(pid, accepts)| *accepts && *pid != self.pid)?;
            self.links.get(&pid).filter(|l| l.is_open())?;
            self.replica_at(pid)
        };
        let leader = if leads { is_leader.then_some(self.me) } else { followed() };
        Leadership { term: self.term(promised), leader, is_leader }
    }

    fn confirmed(&self, now: Now) -> bool {
        self.leadership().is_leader && self.supporters(now, self.timing.election_min) >= self.others_needed()
    }

    fn last_index(&self) -> Index {
        self.store.last()
    }

    fn durable_index(&self) -> Index {
        self.store.durable()
    }

    fn writes_pending(&self) -> usize {
        self.writes.pending()
    }

    fn commit_index(&self) -> Index {
        self.store.paxos().decided.min(self.store.durable())
    }

    fn progress(&self, now: Now) -> Vec<Progress> {
        if !self.leadership().is_leader {
            return Vec::new();
        }
        let promised = self.promised();
        let mut out: Vec<Progress> = Vec::new();
        for (pid, &replica) in (1..).zip(&self.voters) {
            if pid == self.pid {
                let (sent, durable) = (self.last_index(), self.durable_index());
                out.push(Progress { replica, sent, durable, applied: self.applied, heard: Some(0) });
            } else if let Some(link) = self.links.get(&pid) {
                let heard = (link.promised == promised && link.heard >= self.led_since).then_some(link);
                let (sent, accepted) = self.streams.progress(pid);
                let applied = heard.map_or(Index::new(0), |l| l.applied);
                out.push(Progress {
                    replica,
                    // What came past the library is known of only when it is applied.
                    sent: self.index(sent).max(applied),
                    durable: self.index(accepted).max(applied),
                    applied,
                    heard: heard.map(|l| now.saturating_sub(l.heard)),
                });
            }
        }
        out
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_index: true, transfer: true, learners: false }
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
