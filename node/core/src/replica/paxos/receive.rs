//! What a peer says: checked before the library sees it.
//!
//! The library indexes by place, adds to positions, and unwraps; it checks neither the configuration nor who may say
//! what. A message that no correct peer sends is dropped and counted; one that shows that this replica has missed
//! something ends the session.

use std::cmp::Ordering;

use quorate_shared::ids::ReplicaId;

use super::storage::{PARTS_AT_ONCE, SYNC_BYTES};
use super::wire::{self, FrameKind, Message};
use super::{Now, PaxosReplicator};
use crate::error::Fatal;
use crate::log::Round;

/// Numbers of rounds are far below where they could overflow.
const ROUND_MAX: u32 = u32::MAX / 2;

/// What to do with a message.
enum Verdict {
    /// The library may have it. `true`: it is the next of the leader's sequence.
    Pass(Message, bool),
    /// It is out of date, and nothing is wrong with it.
    Late,
    /// No correct peer says this.
    Nonsense,
    /// Something before it is missing.
    Gap,
    /// Its sender lacks what this log cannot give it here.
    Behind,
    /// This replica lacks what its sender knows to be decided.
    Lacking,
}

impl PaxosReplicator {
    pub(super) fn receive_frame(&mut self, now: Now, from: ReplicaId, bytes: &[u8]) -> Result<(), Fatal> {
        let Some((head, rest)) = wire::decode_head(bytes).filter(|_| from != self.me) else {
            self.dropped += 1;
            return Ok(());
        };
        match (head.kind, head.configuration.cmp(&self.configuration)) {
            (FrameKind::Behind { base, term, decided }, _) => {
                return self.told_behind(now, from, (base, term), decided);
            }
            (FrameKind::Lacking { after }, _) => return self.give_decided(from, after),
            (FrameKind::Decided { after }, _) => return self.take_decided(now, from, after, rest),
            (_, Ordering::Greater) => {
                self.ask(now, from);
                return Ok(());
            }
            (FrameKind::Hello { .. }, Ordering::Less) => {
                self.tell_behind(from);
                return Ok(());
            }
            // What is left of a session in a configuration that is over.
            (_, Ordering::Less) => return Ok(()),
            (_, Ordering::Equal) => {}
        }
        let Some(pid) = self.place_of(from) else {
            self.dropped += 1;
            return Ok(());
        };
        let Some(link) = self.links.get_mut(&pid) else { return Ok(()) };
        let Ok(arrived) = link.receive(now, head.kind, rest, &mut self.random) else {
            self.close(now, pid);
            return Ok(());
        };
        let generation = link.generation;
        if arrived.answer {
            self.hello(now, pid);
        }
        if arrived.opened {
            self.streams.end(pid);
            self.run(now, "reconnect", |library| library.reconnected(pid))?;
            if !self.disk_hangs(now) {
                let round = self.round;
                self.send(now, pid, Message::Heartbeat { round });
            }
            self.inherit(now)?;
        }
        for message in arrived.messages {
            // Handling one may end the session: what comes behind it belongs to the ended one.
            if self.links.get(&pid).is_none_or(|l| l.generation != generation) {
                break;
            }
            match message {
                Some(message) => self.handle(now, pid, message)?,
                None => {
                    self.dropped += 1;
                    self.close(now, pid);
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, now: Now, pid: u64, message: Message) -> Result<(), Fatal> {
        let promised = self.promised();
        let lacks = matches!(message, Message::Prepare { .. } | Message::Promise { .. });
        let Some(message) = message.into_positions(self.begins) else {
            return self.judge(now, pid, if lacks { Verdict::Behind } else { Verdict::Gap });
        };
        match message {
            Message::Beat => return Ok(()),
            Message::Confirm { n, context } => {
                if n == promised && n.proposer == place(pid) {
                    self.send(now, pid, Message::Confirmed { n, context });
                }
                return Ok(());
            }
            Message::Confirmed { n, context } => {
                if n == promised && self.leads() {
                    let needed = self.others_needed();
                    self.confirmed_reads.extend(self.reads.confirm(pid, context, needed).map(|i| (context, i)));
                }
                return Ok(());
            }
            Message::Lead { n } => {
                if n == promised && n.proposer == place(pid) && n.number < ROUND_MAX && self.may_lead && !self.is_over()
                {
                    self.take_over(now)?;
                }
                return Ok(());
            }
            Message::Heartbeat { .. } if self.disk_hangs(now) => return Ok(()),
            _ => {}
        }
        let verdict = if self.is_far_behind(&message)? { Verdict::Behind } else { self.check(pid, message) };
        self.judge(now, pid, verdict)
    }

    /// Its sender lacks more of what is decided than one message should carry, going by the first part of it: it gets that
    /// in parts first.
    fn is_far_behind(&self, message: &Message) -> Result<bool, Fatal> {
        let has = match message {
            Message::Prepare { decided, .. } => *decided,
            Message::Promise { n, n_accepted, accepted, .. } if n_accepted == n => *accepted,
            Message::Promise { decided, .. } => *decided,
            _ => return Ok(false),
        };
        let decided = self.decided();
        if has >= decided || has < self.store.first() {
            return Ok(has < decided);
        }
        let part = self.store.entries(self.index(has).next(), self.index(decided).next(), SYNC_BYTES)?;
        Ok(has + PARTS_AT_ONCE * (part.len() as u64) < decided)
    }

    fn judge(&mut self, now: Now, pid: u64, verdict: Verdict) -> Result<(), Fatal> {
        match verdict {
            Verdict::Pass(message, in_sequence) => self.pass(now, pid, message, in_sequence)?,
            Verdict::Late => {}
            Verdict::Nonsense => self.dropped += 1,
            Verdict::Gap => self.close(now, pid),
            Verdict::Behind => {
                if let Some(to) = self.replica_at(pid) {
                    self.tell_behind(to);
                }
            }
            Verdict::Lacking => {
                if let Some(whom) = self.replica_at(pid) {
                    self.ask(now, whom);
                }
            }
        }
        Ok(())
    }

    /// The library gets a message.
    fn pass(&mut self, now: Now, pid: u64, message: Message, in_sequence: bool) -> Result<(), Fatal> {
        let sync = matches!(message, Message::AcceptSync { .. });
        let counter = if in_sequence { self.counter + 1 } else { 1 };
        if in_sequence {
            self.counter = counter;
        }
        if matches!(message, Message::HeartbeatReply { .. }) {
            self.answered.insert(pid);
        }
        if let Message::Accepted { accepted, .. } = message {
            self.streams.note_accepted(pid, accepted);
        }
        // What the library gives a follower is read when it is to leave.
        let for_follower = matches!(message, Message::Promise { .. });
        if let (Message::Promise { decided, .. }, Some(link)) = (&message, self.links.get_mut(&pid)) {
            link.decided = *decided;
        }
        let Some(message) = message.library(self.configuration, pid, self.pid, counter) else {
            self.dropped += 1;
            return Ok(());
        };
        self.store.give_suffixes(!for_follower);
        self.run(now, "receive a message", |library| library.handle_incoming(message))?;
        self.store.give_suffixes(true);
        if sync && self.library.get_current_leader() == Some((pid, true)) {
            self.counter = 1;
        }
        Ok(())
    }

    fn check(&self, pid: u64, message: Message) -> Verdict {
        // This replica is in the accept phase of another's round.
        let following =
            self.library.get_current_leader().is_some_and(|(leader, accepts)| accepts && leader != self.pid);
        let promised = self.promised();
        if message.stop().is_some_and(|stop| !stop.is_sound()) {
            return Verdict::Nonsense;
        }
        let accepted = self.library.get_accepted_idx() as u64;
        let decided = self.library.get_decided_idx() as u64;
        let (theirs, mine) = (|n: Round| self.is_round(n) && n.proposer == place(pid), place(self.pid));
        match message {
            Message::Heartbeat { .. } => Verdict::Pass(message, false),
            Message::HeartbeatReply { ref round, ballot, leader, .. } => {
                let known = leader == Round::default() || self.is_round(leader);
                if *round != self.round || self.answered.contains(&pid) {
                    Verdict::Late
                } else if ballot.proposer == place(pid) && ballot.number < ROUND_MAX && known {
                    Verdict::Pass(message, false)
                } else {
                    Verdict::Nonsense
                }
            }
            Message::PrepareRequest { n } | Message::NotAccepted { n } => {
                if n == Round::default() || self.is_round(n) {
                    Verdict::Pass(message, false)
                } else {
                    Verdict::Nonsense
                }
            }
            Message::Prepare { n, decided, accepted, .. } => {
                if !theirs(n) || decided > accepted {
                    Verdict::Nonsense
                } else if decided < self.store.first() {
                    // What it lacks is not in this log any more: the library would leave a hole.
                    Verdict::Behind
                } else {
                    Verdict::Pass(message, false)
                }
            }
            Message::Promise { n, .. } if n.proposer != mine => Verdict::Nonsense,
            Message::Promise { n, .. } if n != promised => Verdict::Late,
            Message::Promise { .. } => self.check_promise(message, accepted, decided),
            Message::Accepted { n, accepted: theirs } => {
                if n.proposer != mine || (n == promised && theirs > accepted) {
                    Verdict::Nonsense
                } else if n != promised {
                    Verdict::Late
                } else {
                    Verdict::Pass(message, false)
                }
            }
            Message::AcceptSync { n, .. }
            | Message::Accept { n, .. }
            | Message::Decide { n, .. }
            | Message::AcceptStop { n, .. }
                if !theirs(n) =>
            {
                Verdict::Nonsense
            }
            // Its configuration is over, with everything that could be synchronized.
            Message::AcceptSync { .. } if self.is_over() => Verdict::Late,
            Message::AcceptSync { n, .. } if n == promised && following => Verdict::Late,
            Message::AcceptSync { n, decided: told, mut sync } => {
                if sync.at > accepted || !sync.begin_at(decided) {
                    return Verdict::Gap;
                }
                let decided = told.min(sync.end());
                Verdict::Pass(Message::AcceptSync { n, decided, sync }, false)
            }
            Message::Accept { n, .. } | Message::Decide { n, .. } | Message::AcceptStop { n, .. } if n != promised => {
                // The library says that it has promised more, or asks to be prepared.
                Verdict::Pass(message, false)
            }
            _ if !following => Verdict::Late,
            Message::Accept { at, .. } | Message::AcceptStop { at, .. } if at != self.store.len() as u64 => {
                Verdict::Gap
            }
            Message::Accept { .. } | Message::AcceptStop { .. } if self.store.is_stopped() => Verdict::Gap,
            Message::Accept { n, decided, at, entries } => {
                let decided = decided.min(at + entries.len() as u64);
                Verdict::Pass(Message::Accept { n, decided, at, entries }, true)
            }
            Message::AcceptStop { .. } => Verdict::Pass(message, true),
            Message::Decide { n, decided } => {
                Verdict::Pass(Message::Decide { n, decided: decided.min(accepted) }, true)
            }
            _ => Verdict::Nonsense,
        }
    }

    /// The library takes the log of the highest round among a majority, and sends what a follower lacks behind what it
    /// takes both to have.
    fn check_promise(&self, message: Message, accepted: u64, decided: u64) -> Verdict {
        let Message::Promise { n, n_accepted, decided: theirs, accepted: their_end, sync } = message else {
            return Verdict::Nonsense;
        };
        let known = n_accepted == Round::default() || self.is_round(n_accepted);
        if !known || theirs > their_end || n_accepted > n {
            return Verdict::Nonsense;
        }
        if theirs < self.store.first() {
            return Verdict::Behind;
        }
        let pass = |n_accepted, their_end, sync| {
            Verdict::Pass(Message::Promise { n, n_accepted, decided: theirs, accepted: their_end, sync }, false)
        };
        if self.library.get_current_leader() == Some((self.pid, true)) {
            // The log of this round is made: what the follower has counts only for where it begins to lack.
            return match () {
                () if n_accepted == n && their_end > accepted => Verdict::Nonsense,
                () if theirs > accepted => Verdict::Lacking,
                () => pass(n_accepted, their_end, None),
            };
        }
        let mine = self.store.paxos().accepted;
        if n_accepted > mine && their_end < decided {
            // Of a higher round, but it ends before what this replica knows, from elsewhere than its own round, to be
            // decided; then another of the majority has accepted that in a round that is higher still. It counts as one
            // that has nothing new.
            return pass(Round::default(), theirs, None);
        }
        match sync {
            None if n_accepted > mine || (n_accepted == mine && their_end > accepted) => Verdict::Nonsense,
            // More is decided than this log has, and none of it comes with the promise.
            None if theirs > accepted => Verdict::Lacking,
            None => pass(n_accepted, their_end, None),
            Some(sync) if sync.at > accepted || sync.end() != their_end => Verdict::Nonsense,
            Some(mut sync) => {
                if sync.begin_at(decided) {
                    pass(n_accepted, their_end, Some(sync))
                } else {
                    Verdict::Nonsense
                }
            }
        }
    }

    fn is_round(&self, n: Round) -> bool {
        (1..=self.voters.len() as u64).contains(&u64::from(n.proposer)) && n.number < ROUND_MAX
    }
}

/// A voter's place as rounds name it.
fn place(pid: u64) -> u32 {
    u32::try_from(pid).unwrap_or(u32::MAX)
}
