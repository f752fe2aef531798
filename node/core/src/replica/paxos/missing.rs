//! What is decided, for a replica that has missed it: from the log of a member, past the library.
//!
//! The library synchronizes within a configuration and from a log that is whole. A replica that comes back in a
//! configuration that is over, or whose end its leader's log does not reach back to, is told so ([`FrameKind::Behind`]).
//! It asks for what is decided behind its own decided end ([`FrameKind::Lacking`]), takes it over as it comes
//! ([`FrameKind::Decided`]), the stop sign of its configuration included, and begins anew; where the log has been trimmed
//! it asks for a snapshot instead. No session is needed: each frame says what it follows, and one that does not fit
//! counts for nothing.
//!
//! Invariant: only what is decided, and durable where it comes from, is given. What it replaces was never decided, and
//! whatever round a replica has accepted in before goes on being what it says of the rest.

use std::sync::Arc;

use quorate_shared::ids::{Index, ReplicaId, Term};

use super::storage::SYNC_BYTES;
use super::wire::{self, FrameKind};
use super::{PaxosReplicator, Replicator};
use crate::error::Fatal;
use crate::log::Payload;
use crate::membership::ChangeEntry;
use crate::replica::{Now, Output};

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Missing {
    /// Who was asked, and when.
    asked: Option<(ReplicaId, Now)>,
    /// Who is asked for more as soon as what it gave is durable.
    next: Option<ReplicaId>,
    /// The log of the others begins here, behind the end of this one; when to say so next.
    snapshot: Option<(Index, Now)>,
    /// What was decided here when that was looked at, and since when it is.
    still: (Index, Now),
}

impl PaxosReplicator {
    fn say(&mut self, to: ReplicaId, kind: FrameKind, items: &[super::storage::Item]) {
        self.sends.push((to, wire::encode_outside(self.configuration, kind, items)));
    }

    /// Tells a replica that it has to get what is decided elsewhere.
    pub(super) fn tell_behind(&mut self, to: ReplicaId) {
        let ((base, term), decided) = (self.store.base(), self.commit_index());
        self.say(to, FrameKind::Behind { base, term, decided }, &[]);
    }

    /// Another replica, whose log begins behind `base`, says that this one is behind.
    pub(super) fn told_behind(
        &mut self,
        now: Now,
        from: ReplicaId,
        (base, term): (Index, Term),
        decided: Index,
    ) -> Result<(), Fatal> {
        if self.is_over() {
            return Ok(());
        }
        if self.store.paxos().decided < base {
            if !self.store.learn_decided(base, term)? {
                self.missing.snapshot.get_or_insert((base, now)).0 = base;
                return Ok(());
            }
            self.begin(now, Arc::clone(&self.membership))?;
        }
        if decided > self.store.paxos().decided {
            self.ask(now, from);
        }
        Ok(())
    }

    /// Nothing more gets decided here while others have applied more: something was lost on the way, whatever it was.
    pub(super) fn ask_again(&mut self, now: Now) {
        let decided = self.store.paxos().decided;
        let (before, since) = self.missing.still;
        if before != decided {
            self.missing.still = (decided, now);
        } else if now.saturating_sub(since) > self.timing.election_max {
            let lately = |l: &super::Link| now.saturating_sub(l.heard) <= self.timing.election_max;
            let more = self.links.iter().filter(|(_, link)| link.applied > decided && lately(link));
            let furthest = more.max_by_key(|(_, link)| link.applied).map(|(pid, _)| *pid);
            self.missing.still.1 = now;
            if let Some(whom) = furthest.and_then(|pid| self.replica_at(pid)) {
                self.ask(now, whom);
            }
        }
    }

    /// Asks a replica that has more, now and then.
    pub(super) fn ask(&mut self, now: Now, whom: ReplicaId) {
        let lately = self.missing.asked.is_some_and(|(_, at)| now.saturating_sub(at) < self.timing.heartbeat);
        if !lately && !self.is_over() {
            self.missing.asked = Some((whom, now));
            self.say(whom, FrameKind::Lacking { after: self.store.paxos().decided }, &[]);
        }
    }

    /// Gives what is decided behind an index, up to the end of a configuration.
    pub(super) fn give_decided(&mut self, to: ReplicaId, after: Index) -> Result<(), Fatal> {
        if after < self.store.base().0 {
            self.tell_behind(to);
            return Ok(());
        }
        let end = self.commit_index();
        if after >= end {
            return Ok(());
        }
        let mut entries = self.store.entries(after.next(), end.next(), SYNC_BYTES)?;
        if let Some(stop) = entries.iter().position(|e| e.payload == Payload::Membership) {
            entries.truncate(stop + 1);
        }
        let items: Vec<_> = entries.into_iter().map(super::storage::item).collect();
        self.say(to, FrameKind::Decided { after }, &items);
        Ok(())
    }

    /// Takes over what is decided behind everything this replica knows to be.
    pub(super) fn take_decided(&mut self, now: Now, from: ReplicaId, after: Index, bytes: &[u8]) -> Result<(), Fatal> {
        let expected = self.missing.asked.is_some_and(|(whom, _)| whom == from);
        if !expected || self.is_over() || after != self.store.paxos().decided {
            return Ok(());
        }
        let Some(items) = wire::decode_items(bytes) else {
            self.dropped += 1;
            return Ok(());
        };
        let change = |item: &super::storage::Item| item.payload == Payload::Membership;
        let Some((last, before)) = items.split_last() else { return Ok(()) };
        if before.iter().any(change) || (change(last) && ChangeEntry::decode(&last.bytes).is_err()) {
            self.dropped += 1;
            return Ok(());
        }
        self.missing.asked = None;
        self.store.adopt(items)?;
        if let Some(cut) = self.store.take_cut() {
            self.writes.cut(cut);
        }
        self.begin(now, Arc::clone(&self.membership))?;
        self.missing.next = Some(from);
        Ok(())
    }

    /// A part is durable: the next one. So no more waits in memory than one.
    pub(super) fn ask_on(&mut self, now: Now) {
        if self.store.durable() == self.store.last()
            && let Some(whom) = self.missing.next.take()
        {
            self.ask(now, whom);
        }
    }

    /// Says that a snapshot is needed, until there is one.
    pub(super) fn want_snapshot(&mut self, now: Now, out: &mut Output) {
        let decided = self.store.paxos().decided;
        self.missing.snapshot = self.missing.snapshot.filter(|(base, _)| decided < *base);
        if let Some((base, next)) = self.missing.snapshot.as_mut().filter(|(_, next)| *next <= now) {
            *next = now + self.timing.election_max;
            out.needs_snapshot = Some(*base);
        }
    }
}
