//! Configurations: a membership is a configuration of the library, and a change of it is the stop sign of the one before.
//!
//! Nothing follows a stop sign in its configuration. It is decided there, handed out and applied like any entry, and then
//! each of the voters after it begins a new instance of the library on the same log, behind the stop sign; who led before
//! stands at once. The configuration's number counts the changes of the membership ([`Membership::changes`]), so that it
//! is known from what is applied, also to a replica that comes in later or begins from a snapshot. Who is no voter any
//! more stays in the configuration that is over, where nothing can be appended, until its node gives it another part.

use std::sync::Arc;

use omnipaxos::storage::StopSign;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig};
use quorate_shared::ids::{ReplicaId, ShardId};

use super::session::Link;
use super::storage::{Item, Store};
use super::{BUFFER_MESSAGES, PaxosReplicator, RESEND_MS, Replicator, Streams, VOTERS_MAX};
use crate::error::Fatal;
use crate::log::{LogEntry, Membership, Payload, Round};
use crate::membership::{ChangeEntry, MembershipChange, Refused};
use crate::replica::flow::guard;
use crate::replica::{Now, Timing};

/// A replica's place in a configuration.
pub(super) struct Place {
    pub(super) configuration: u32,
    /// By place: the first is 1 to the library. Sorted by replica id, the same for everybody.
    pub(super) voters: Vec<ReplicaId>,
    pub(super) pid: u64,
}

/// The number of a membership's configuration.
fn number(membership: &Membership) -> u32 {
    u32::try_from(membership.changes.saturating_add(1)).unwrap_or(u32::MAX)
}

/// What the library is told of a configuration.
fn cluster(number: u32, voters: usize) -> ClusterConfig {
    ClusterConfig { configuration_id: number, nodes: (1..=voters as u64).collect(), flexible_quorum: None }
}

/// Why a membership cannot be a configuration.
fn impossible(membership: &Membership) -> Option<String> {
    let Membership { voters, outgoing, learners, .. } = membership;
    match voters.len() as u64 {
        _ if !outgoing.is_empty() || !learners.is_empty() => Some("learners or joint memberships".into()),
        0 | 1 => Some("configuration of one voter".into()),
        count if count > VOTERS_MAX => Some(format!("configurations of more than {VOTERS_MAX} voters")),
        _ => None,
    }
}

impl Place {
    pub(super) fn of(shard: ShardId, me: ReplicaId, membership: &Membership) -> Result<Self, Fatal> {
        let doing = || format!("open {shard}");
        if let Some(what) = impossible(membership) {
            return Err(Fatal::new(doing(), format!("the paxos replicator has no {what}")));
        }
        let voters: Vec<ReplicaId> = membership.voters.iter().map(|m| m.replica).collect();
        let Some(place) = voters.iter().position(|v| *v == me) else {
            return Err(Fatal::new(doing(), format!("{me} is not a voter of {voters:?}")));
        };
        Ok(Place { configuration: number(membership), voters, pid: place as u64 + 1 })
    }

    /// The library on what a log has.
    pub(super) fn library(
        &self,
        shard: ShardId,
        timing: &Timing,
        store: &Store,
    ) -> Result<OmniPaxos<Item, Store>, Fatal> {
        let doing = || format!("open {shard}");
        let ticks = |ms: u64| (ms / timing.tick).max(1);
        let server = ServerConfig {
            pid: self.pid,
            election_tick_timeout: round_ticks(timing),
            resend_message_tick_timeout: ticks(RESEND_MS),
            buffer_size: BUFFER_MESSAGES,
            ..ServerConfig::default()
        };
        let cluster = cluster(self.configuration, self.voters.len());
        let library = guard("paxos", doing, || cluster.build_for_server(server, store.clone()))?
            .map_err(|e| Fatal::new(doing(), format!("the paxos library: {e:?}")))?;
        match store.take_failure() {
            Some(fatal) => Err(fatal),
            None => Ok(library),
        }
    }
}

/// Ticks of a round of the election.
pub(super) fn round_ticks(timing: &Timing) -> u64 {
    (timing.election_min / 2 / timing.tick).max(1)
}

/// The stop sign that an entry is in the log of its configuration.
pub(super) fn stop_of(entry: &LogEntry) -> Option<StopSign> {
    let change = (entry.payload == Payload::Membership).then(|| ChangeEntry::decode(&entry.bytes).ok())??;
    // Its metadata begins with the term it was appended in.
    let mut metadata = entry.term.get().to_be_bytes().to_vec();
    metadata.extend_from_slice(&entry.bytes);
    Some(StopSign::with(cluster(number(&change.after), change.after.voters.len()), Some(metadata)))
}

impl PaxosReplicator {
    /// Appends a stop sign, if it makes sense in this protocol.
    pub(super) fn stop_with(
        &mut self,
        now: Now,
        change: &MembershipChange,
    ) -> Result<Result<LogEntry, Refused>, Fatal> {
        let refused = match change {
            _ if !self.leadership().is_leader => Some(Refused::NotLeader(None)),
            _ if self.store.is_stopped() => Some(Refused::InProgress),
            _ if self.transferring() => Some(Refused::NotReady("it is handing leadership over".into())),
            _ if self.led.is_none_or(|(_, first)| self.commit_index() < first) => {
                Some(Refused::NotReady("nothing of its term is committed yet".into()))
            }
            MembershipChange::AddVoter(_) | MembershipChange::ReplaceVoter { .. } | MembershipChange::Remove(_) => None,
            _ => Some(Refused::Unsupported("learners".into())),
        };
        if let Some(refused) = refused {
            return Ok(Err(refused));
        }
        let after = match self.membership.after(change) {
            Ok(after) => after,
            Err(refused) => return Ok(Err(refused)),
        };
        if let Some(what) = impossible(&after) {
            return Ok(Err(Refused::Unsupported(what)));
        }
        let bytes = ChangeEntry { change: *change, after }.encode();
        let term = self.term(self.promised());
        let entry = LogEntry { index: self.last_index().next(), term, payload: Payload::Membership, bytes };
        let stop = stop_of(&entry);
        let stopped = self.run(now, "propose a membership change", |library| {
            stop.is_some_and(|stop| library.reconfigure(stop.next_config, stop.metadata).is_ok())
        })?;
        if !stopped {
            return Ok(Err(Refused::NotReady("the protocol does not take it now".into())));
        }
        Ok(Ok(entry))
    }

    /// Committed entries are handed out: what changes the membership will have to be followed when it is applied.
    pub(super) fn note_changes(&mut self, entries: &[LogEntry]) -> Result<(), Fatal> {
        for entry in entries.iter().filter(|e| e.payload == Payload::Membership) {
            let change = ChangeEntry::decode(&entry.bytes).map_err(|e| {
                Fatal::new(format!("read the membership change at {} of {}", entry.index, self.shard), e)
            })?;
            self.changes.push_back((entry.index, change));
        }
        Ok(())
    }

    /// Goes on in the configuration that an applied change has made.
    pub(super) fn follow_changes(&mut self, now: Now) -> Result<(), Fatal> {
        while let Some((at, entry)) = self.changes.pop_front_if(|(at, _)| *at <= self.applied) {
            let votes = entry.after.voters.iter().any(|m| m.replica == self.me);
            if !votes || number(&entry.after) <= self.configuration {
                continue;
            }
            let led = self.led.is_some();
            self.store.turn(number(&entry.after), at)?;
            self.begin(now, Arc::new(entry.after))?;
            self.heir = led.then_some(now + self.timing.election_max);
        }
        Ok(())
    }

    /// The library begins anew, on what the log has by now, in the configuration of a membership.
    pub(super) fn begin(&mut self, now: Now, membership: Arc<Membership>) -> Result<(), Fatal> {
        let place = Place::of(self.shard, self.me, &membership)?;
        self.library = place.library(self.shard, &self.timing, &self.store)?;
        self.membership = membership;
        self.begins = self.store.paxos().begins;
        (self.voters, self.pid, self.configuration) = (place.voters, place.pid, place.configuration);
        let others = (1..=self.voters.len() as u64).filter(|pid| *pid != self.pid);
        self.links = others.map(|pid| (pid, Link::new(now, &mut self.random))).collect();
        self.streams = Streams::default();
        (self.counter, self.round, self.ticks) = (0, 0, 0);
        self.answered.clear();
        self.held.clear();
        self.reads.clear();
        (self.met, self.lonely) = (false, false);
        (self.led, self.handing_over, self.heir, self.resigned) = (None, None, None, None);
        // What it wants sent first is lost: there is no session yet.
        self.drain(now, false)?;
        self.links.keys().copied().collect::<Vec<_>>().into_iter().for_each(|pid| self.hello(now, pid));
        Ok(())
    }

    /// Who led the configuration before stands in the new one as soon as a majority is there, above the round in which
    /// everybody begins.
    pub(super) fn inherit(&mut self, now: Now) -> Result<(), Fatal> {
        let Some(until) = self.heir else { return Ok(()) };
        if now > until || self.promised() != Round::default() {
            self.heir = None;
        } else if self.links.values().filter(|l| l.is_open()).count() >= self.others_needed() {
            self.heir = None;
            while self.promised().number < 2 {
                self.take_over(now)?;
            }
        }
        Ok(())
    }

    /// Everything of its configuration is decided: it has stopped, and there is nothing to be had in it.
    pub(super) fn is_over(&self) -> bool {
        self.store.is_stopped() && self.store.paxos().decided == self.store.last()
    }
}
