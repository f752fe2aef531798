//! What leaves this replica, and when.
//!
//! A promise and an acceptance wait for everything written before them. A proposer's messages wait for its promise only:
//! entries travel while its own write runs; what they say is decided is put in when they leave, and is never more than
//! what is durable here. The rest promises nothing and leaves at once.

use omnipaxos::messages::Message as LibraryMessage;

use super::storage::{PROMISE_BYTES, SYNC_BYTES, item};
use super::wire::{self, Message, Stop, Sync};
use super::{Held, Now, PaxosReplicator, Replicator};
use crate::error::Fatal;

/// What a message waits for.
enum Waits {
    Nothing,
    Promise,
    Everything,
}

fn waits(message: &Message) -> Waits {
    match message {
        Message::Promise { .. } | Message::Accepted { .. } => Waits::Everything,
        Message::Prepare { .. }
        | Message::AcceptSync { .. }
        | Message::Accept { .. }
        | Message::AcceptStop { .. }
        | Message::Decide { .. } => Waits::Promise,
        _ => Waits::Nothing,
    }
}

impl PaxosReplicator {
    pub(super) fn hello(&mut self, now: Now, pid: u64) {
        let (Some(to), Some(link)) = (self.replica_at(pid), self.links.get_mut(&pid)) else { return };
        let (mine, theirs) = link.hello(now);
        self.sends.push((to, wire::encode_hello(self.configuration, mine, theirs)));
    }

    /// Sends within the session; without one the message is lost, and what opens the next one makes up for it.
    pub(super) fn send(&mut self, now: Now, pid: u64, message: Message) {
        let promised = self.promised();
        let (Some(to), Some(link)) = (self.replica_at(pid), self.links.get_mut(&pid)) else { return };
        let message = message.into_indexes(self.begins);
        let frames = link.frames(now, &message, self.configuration, self.applied, promised);
        self.sends.extend(frames.into_iter().flatten().map(|frame| (to, frame)));
    }

    /// Takes what the library wants sent. `repeated`: it does so by its clock, in case something was lost.
    pub(super) fn drain(&mut self, now: Now, repeated: bool) -> Result<(), Fatal> {
        let mut taken: Vec<LibraryMessage<_>> = Vec::new();
        self.library.take_outgoing_messages(&mut taken);
        for message in taken {
            let Some((to, message)) = Message::of(message, self.store.len()) else { continue };
            if let Message::Heartbeat { round } = message
                && round != self.round
            {
                self.round = round;
                self.answered.clear();
            }
            // Within a session nothing is lost, and a new one begins with what was.
            let useless = matches!(
                message,
                Message::Promise { .. } | Message::Accept { .. } | Message::AcceptStop { .. } | Message::Decide { .. }
            );
            if !(repeated && useless) {
                self.queue(now, to, message)?;
            }
        }
        Ok(())
    }

    fn queue(&mut self, now: Now, to: u64, mut message: Message) -> Result<(), Fatal> {
        if let Message::AcceptSync { sync, .. } = &mut message {
            match self.synchronization(to, sync.at)? {
                Some(whole) => *sync = whole,
                None => {
                    self.replica_at(to).into_iter().for_each(|to| self.tell_behind(to));
                    return Ok(());
                }
            }
        }
        if !self.follow_stream(to, &message) {
            return Ok(());
        }
        let link = self.links.get(&to).filter(|l| l.is_open());
        let Some(generation) = link.map(|l| l.generation) else { return Ok(()) };
        let (pending, promise_pending) = self.store.has_pending();
        let until = match waits(&message) {
            Waits::Nothing => {
                self.send(now, to, message);
                return Ok(());
            }
            Waits::Promise if promise_pending => self.writes.issued() + 1,
            Waits::Promise => self.promise_write,
            Waits::Everything if pending => self.writes.issued() + 1,
            Waits::Everything => self.writes.issued(),
        };
        self.held.push_back(Held { until, to, generation, message });
        Ok(())
    }

    /// Everything that a follower lacks behind a position, or behind what it knows to be decided: the library does not
    /// know that a log may be decided further than it was ever accepted. All of it: who has a part only would have
    /// accepted in this round without what an earlier one may have decided. `None`: this log cannot give it.
    fn synchronization(&self, to: u64, at: u64) -> Result<Option<Sync>, Fatal> {
        let len = self.store.len() as u64;
        let at = at.max(self.links.get(&to).map_or(0, |l| l.decided)).min(len);
        if at < self.store.first() {
            return Ok(None);
        }
        let mut entries = Vec::new();
        if at < len {
            entries = self.store.entries(self.index(at).next(), self.index(len).next(), PROMISE_BYTES)?;
        }
        let whole = at + entries.len() as u64 == len;
        let entries = entries.into_iter().map(item).collect();
        let stop = self.store.stop().as_ref().map(Stop::of);
        Ok(whole.then_some(Sync { at, entries, stop }))
    }

    /// Keeps account of the leader's streams. `false`: the message is not for this follower now.
    fn follow_stream(&mut self, to: u64, message: &Message) -> bool {
        let len = self.store.len() as u64;
        match message {
            Message::AcceptSync { sync, .. } => {
                let end = sync.at + sync.entries.len() as u64;
                let bytes = sync.entries.iter().map(|e| e.bytes.len()).sum();
                let stream = self.streams.begin(to);
                stream.sent(end, bytes);
                stream.stopped = sync.stop.is_some();
                true
            }
            Message::Accept { at, entries, .. } => {
                let Some(stream) = self.streams.get(to) else { return false };
                if stream.behind || *at != stream.next || stream.is_full() {
                    // It is in the log, and is read from there when it is its turn.
                    stream.behind |= stream.next < len;
                    return false;
                }
                stream.sent(at + entries.len() as u64, entries.iter().map(|e| e.bytes.len()).sum());
                true
            }
            Message::AcceptStop { at, .. } => {
                let Some(stream) = self.streams.get(to) else { return false };
                let turn = !stream.behind && *at == stream.next && !stream.stopped;
                stream.stopped |= turn;
                turn
            }
            // Said by `feed`, when it is durable here.
            Message::Decide { .. } => false,
            _ => true,
        }
    }

    /// Sends what has waited long enough.
    pub(super) fn release(&mut self, now: Now) {
        for held in std::mem::take(&mut self.held) {
            if held.until > self.writes.durable() {
                self.held.push_back(held);
            } else if self.links.get(&held.to).is_some_and(|l| l.generation == held.generation) {
                self.leave(now, held.to, held.message);
            }
        }
    }

    /// A message leaves: what it says is decided is what is durable here now.
    fn leave(&mut self, now: Now, to: u64, mut message: Message) {
        let (leads, promised, durable) = (self.leads(), self.promised(), self.decided());
        match &mut message {
            Message::AcceptSync { n, decided, sync } => {
                if !leads || *n != promised {
                    return;
                }
                *decided = durable.min(sync.end());
                if let Some(stream) = self.streams.get(to) {
                    stream.told = *decided;
                }
            }
            Message::Accept { n, decided, at, entries } => {
                if !leads || *n != promised {
                    return;
                }
                *decided = durable.min(*at + entries.len() as u64);
                if let Some(stream) = self.streams.get(to) {
                    stream.told = stream.told.max(*decided);
                }
            }
            _ => {}
        }
        self.send(now, to, message);
    }

    /// The leader's followers get what they lack, and hear what is decided when nothing else will tell them soon.
    pub(super) fn feed(&mut self, now: Now) -> Result<(), Fatal> {
        if !self.leads() {
            return Ok(());
        }
        let decided = self.decided();
        let idle = self.commit_index() == self.store.last();
        for pid in self.streams.followers() {
            self.catch_up(now, pid, decided)?;
            let n = self.promised();
            let waiting = self.held.iter().any(|h| h.to == pid);
            let Some(stream) = self.streams.get(pid) else { continue };
            // While entries flow they carry it; the heartbeat bounds how late it may come.
            let due = idle || now >= self.next_heartbeat.saturating_sub(1);
            let position = decided.min(if stream.stopped { u64::MAX } else { stream.next });
            if stream.told < position && due && !waiting {
                stream.told = position;
                self.send(now, pid, Message::Decide { n, decided: position });
            }
        }
        Ok(())
    }

    /// The next entries for a follower that is behind.
    fn catch_up(&mut self, now: Now, pid: u64, decided: u64) -> Result<(), Fatal> {
        let (len, n) = (self.store.len() as u64, self.promised());
        loop {
            let Some(stream) = self.streams.get(pid).filter(|s| s.behind && !s.is_full()) else { return Ok(()) };
            let at = stream.next;
            if at >= len {
                stream.behind = false;
                let send_stop = !stream.stopped && self.store.is_stopped();
                if send_stop && let Some(stop) = self.store.stop().as_ref().map(Stop::of) {
                    self.send(now, pid, Message::AcceptStop { n, at, stop });
                    if let Some(stream) = self.streams.get(pid) {
                        stream.stopped = true;
                    }
                }
                return Ok(());
            }
            if at < self.store.first() {
                // As above.
                self.close(now, pid);
                return Ok(());
            }
            let (from, to) = (self.index(at).next(), self.index(len).next());
            let entries = self.store.entries(from, to, SYNC_BYTES)?;
            let bytes = entries.iter().map(|e| e.bytes.len()).sum();
            let end = at + entries.len() as u64;
            let decided = decided.min(end);
            let entries = entries.into_iter().map(item).collect();
            if let Some(stream) = self.streams.get(pid) {
                stream.sent(end, bytes);
                stream.told = stream.told.max(decided);
            }
            self.send(now, pid, Message::Accept { n, decided, at, entries });
        }
    }
}
