//! Sessions between two voters: frames arrive once, in order, without a gap, or the session is over on both sides.
//!
//! OmniPaxos resends nothing of its accept phase and relies on being told of every break. A session is named by a nonce
//! of each side; what carries another pair is of an earlier session and counts for nothing. A side that misses a frame,
//! hears nothing for too long, or is told by the driver that something was lost takes a new nonce and says so; the pair
//! is then another, and both sides begin anew.
//!
//! Frames that overtake each other wait for the missing one for a moment: a transport that never reorders loses nothing
//! by it.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_shared::ids::Index;

use super::wire::{FrameKind, Head, MESSAGE_BYTES_MAX, Message, decode, encode};
use crate::log::Round;
use crate::replica::Now;
use crate::replica::random::Random;

/// Frames and bytes that wait for a missing one.
const EARLY_MAX: usize = 1024;

/// What a frame has led to.
#[derive(Default, Debug)]
pub(super) struct Arrived {
    /// The session has begun.
    pub(super) opened: bool,
    /// A hello is to be sent.
    pub(super) answer: bool,
    /// Whole messages, in order; `None`: one that does not decode.
    pub(super) messages: Vec<Option<Message>>,
}

/// The session has to end.
#[derive(Debug)]
pub(super) struct Broken;

/// A part of a message that has come.
#[derive(Debug)]
struct Part {
    bytes: Bytes,
    more: bool,
}

/// One side of the sessions with one peer.
#[derive(Debug)]
pub(super) struct Link {
    mine: u64,
    theirs: u64,
    open: bool,
    /// My nonce has named a session.
    used: bool,
    /// Counts sessions: what was meant for an earlier one is dropped.
    pub(super) generation: u64,
    sent: u64,
    received: u64,
    early: BTreeMap<u64, Part>,
    early_bytes: usize,
    /// Since when a frame is missing.
    missing: Option<Now>,
    parts: Vec<u8>,
    /// When the peer was last heard in this session.
    pub(super) heard: Now,
    /// When something was last sent to it.
    pub(super) spoken: Now,
    /// Highest index it said it has applied.
    pub(super) applied: Index,
    /// What it said last that it has promised.
    pub(super) promised: Round,
    /// Since when that is above what its leader has.
    pub(super) above_since: Option<Now>,
    /// The position it said with its last promise to be decided.
    pub(super) decided: u64,
}

impl Link {
    pub(super) fn new(now: Now, random: &mut Random) -> Self {
        Link {
            mine: nonce(random),
            theirs: 0,
            open: false,
            used: false,
            generation: 0,
            sent: 0,
            received: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            missing: None,
            parts: Vec::new(),
            heard: now,
            spoken: now,
            applied: Index::new(0),
            promised: Round::default(),
            above_since: None,
            decided: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// The nonces for a hello.
    pub(super) fn hello(&mut self, now: Now) -> (u64, u64) {
        self.spoken = now;
        (self.mine, self.theirs)
    }

    /// Something was lost, or may have been: the session is over.
    pub(super) fn close(&mut self, random: &mut Random) {
        self.mine = nonce(random);
        self.open = false;
        self.used = false;
        self.clear();
    }

    fn clear(&mut self) {
        self.generation += 1;
        self.sent = 0;
        self.received = 0;
        self.early.clear();
        self.early_bytes = 0;
        self.missing = None;
        self.parts = Vec::new();
    }

    fn begin(&mut self, now: Now, theirs: u64) {
        self.theirs = theirs;
        self.open = true;
        self.used = true;
        self.heard = now;
        self.clear();
    }

    /// A frame of the peer.
    pub(super) fn receive(
        &mut self,
        now: Now,
        kind: FrameKind,
        rest: &[u8],
        random: &mut Random,
    ) -> Result<Arrived, Broken> {
        let mut out = Arrived::default();
        match kind {
            FrameKind::Hello { mine: 0, .. } => {}
            FrameKind::Hello { mine: theirs, theirs: mine } => {
                let news = theirs != self.theirs;
                if news && self.used {
                    // A nonce names one session only: else what is left of the last one would be taken for the new one's.
                    self.close(random);
                }
                self.theirs = theirs;
                if mine == self.mine && !self.open {
                    self.begin(now, theirs);
                    out.opened = true;
                }
                // The peer knows only from an answer that its nonce has come.
                out.answer = out.opened || mine != self.mine;
            }
            FrameKind::Behind { .. } | FrameKind::Lacking { .. } | FrameKind::Decided { .. } => {}
            FrameKind::Data { mine: theirs, theirs: mine, seq, applied, promised, more } => {
                if mine != self.mine || theirs != self.theirs {
                    return Ok(out);
                }
                if !self.open {
                    self.begin(now, theirs);
                    out.opened = true;
                }
                self.heard = now;
                self.applied = self.applied.max(applied);
                if seq > self.received {
                    self.promised = promised;
                    self.take(now, seq, Part { bytes: Bytes::copy_from_slice(rest), more }, &mut out)?;
                }
            }
        }
        Ok(out)
    }

    fn take(&mut self, now: Now, seq: u64, part: Part, out: &mut Arrived) -> Result<(), Broken> {
        self.early_bytes += part.bytes.len();
        if let Some(twice) = self.early.insert(seq, part) {
            self.early_bytes -= twice.bytes.len();
        }
        while let Some(part) = self.early.remove(&(self.received + 1)) {
            self.received += 1;
            self.missing = None;
            self.early_bytes -= part.bytes.len();
            if !part.more && self.parts.is_empty() {
                out.messages.push(decode(&part.bytes));
                continue;
            }
            if self.parts.len() + part.bytes.len() > MESSAGE_BYTES_MAX {
                return Err(Broken);
            }
            self.parts.extend_from_slice(&part.bytes);
            if !part.more {
                out.messages.push(decode(&std::mem::take(&mut self.parts)));
            }
        }
        if self.early.is_empty() {
            return Ok(());
        }
        self.missing.get_or_insert(now);
        if self.early.len() > EARLY_MAX || self.early_bytes > MESSAGE_BYTES_MAX { Err(Broken) } else { Ok(()) }
    }

    /// Whether the session has to end: a frame is missing for longer than `gap`, or the peer is silent for `silence`.
    pub(super) fn is_broken(&self, now: Now, gap: u64, silence: u64) -> bool {
        self.open
            && (self.missing.is_some_and(|since| now.saturating_sub(since) > gap)
                || now.saturating_sub(self.heard) > silence)
    }

    /// The frames of a message; `None` while there is no session.
    pub(super) fn frames(
        &mut self,
        now: Now,
        message: &Message,
        configuration: u32,
        applied: Index,
        promised: Round,
    ) -> Option<Vec<Bytes>> {
        if !self.open {
            return None;
        }
        self.spoken = now;
        let (mine, theirs) = (self.mine, self.theirs);
        let sent = &mut self.sent;
        Some(encode(message, |more| {
            *sent += 1;
            let kind = FrameKind::Data { mine, theirs, seq: *sent, applied, promised, more };
            Head { configuration, kind }
        }))
    }
}

/// Never 0, which means that none is known.
fn nonce(random: &mut Random) -> u64 {
    random.next() | 1
}
