//! Lag that cannot lie: what the leader knows of every replica, in the leader's own time.
//!
//! The leader remembers when each recent index was committed. A replica's lag in time is the age of the first committed
//! entry it has not applied. It is 0 only if a fresh report says so; while no report comes it grows; where the commit
//! time is not known (older than the leader's memory or its leadership) it is a lower bound. Nothing is stated by a leader
//! that no quorum has confirmed.
//!
//! Invariants: what was reported to an earlier leadership counts as never heard; a member is no log-shipped replica
//! besides, whatever it last reported as one.
//!
//! Left out: reports of voters; the protocol's own messages carry them.

use std::collections::{BTreeMap, VecDeque};

use quorate_shared::ids::{Index, NodeId, ReplicaId, ShardId};
use quorate_shared::status::{MemberStatus, NodeKind, ShardStatus};
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::log::{LogEntry, LogReader, Membership, Payload};
use crate::machine::Applied;
use crate::replica::{Now, Progress, Replicator, Timing};

/// Indexes whose commit time and size are remembered.
const MEMORY_MAX: usize = 16_384;
/// Log-shipped replicas remembered.
const READERS_MAX: usize = 256;

/// How far a replica says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReaderReport {
    /// Who says so.
    pub node: NodeId,
    /// Voter or replica.
    pub kind: NodeKind,
    /// Highest index sent to it, as the server of its stream knows; for voters from the protocol.
    pub sent: Index,
    /// Highest index that has arrived there.
    pub received: Index,
    /// Highest index durable there.
    pub durable: Index,
    /// Highest index applied there.
    pub applied: Index,
}

/// What a member had applied when it last applied something. That it still receives is no sign that it gets on.
#[derive(Clone, Copy, Debug)]
struct Track {
    applied: Index,
    moved: Now,
}

impl Track {
    fn observe(&mut self, now: Now, applied: Index) {
        if applied != self.applied {
            *self = Track { applied, moved: now };
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Reader {
    report: ReaderReport,
    at: Now,
    track: Track,
}

/// Everything but the replicas that a picture of a shard needs.
pub struct Subject<'a> {
    /// The shard.
    pub shard: ShardId,
    /// This node.
    pub node: NodeId,
    /// Who takes part.
    pub membership: &'a Membership,
    /// Its protocol.
    pub replicator: &'a dyn Replicator,
    /// Its log.
    pub log: &'a dyn LogReader,
    /// What is applied here.
    pub applied: &'a Applied,
}

/// What is known of one member when a picture is taken.
struct Known {
    sent: Index,
    received: Index,
    durable: Index,
    applied: Index,
    age: u64,
    moved: Now,
}

/// See the module.
#[derive(Debug)]
pub struct Lag {
    timing: Timing,
    led_since: Now,
    commit: Index,
    /// Commit index reached and when, growing; entries after the first of `times_from` up to the last one have a known
    /// time.
    times: VecDeque<(Index, Now)>,
    /// What comes before: known to be committed by then.
    times_from: (Index, Now),
    /// Bytes of all entries seen up to each index after `sizes_from`.
    sizes: VecDeque<u64>,
    sizes_from: Index,
    bytes_before: u64,
    readers: BTreeMap<NodeId, Reader>,
    voters: BTreeMap<ReplicaId, Track>,
}

impl Lag {
    /// Knows nothing yet.
    pub fn new(timing: Timing, now: Now) -> Self {
        Self {
            timing,
            led_since: now,
            commit: Index::default(),
            times: VecDeque::new(),
            times_from: (Index::default(), now),
            sizes: VecDeque::new(),
            sizes_from: Index::default(),
            bytes_before: 0,
            readers: BTreeMap::new(),
            voters: BTreeMap::new(),
        }
    }

    /// Leadership begins: times of before are somebody else's, and what replicas said then is no news.
    pub fn lead(&mut self, now: Now, commit: Index) {
        self.led_since = now;
        self.commit = commit;
        self.times.clear();
        self.times_from = (commit, now);
        self.voters.clear();
        self.readers.clear();
    }

    /// The commit index is this now, and these entries are committed and durable here.
    pub fn committed(&mut self, now: Now, commit: Index, entries: &[LogEntry]) {
        if commit > self.commit {
            self.commit = commit;
            match self.times.back_mut() {
                Some((last, at)) if *at == now => *last = commit,
                _ => self.times.push_back((commit, now)),
            }
            if self.times.len() > MEMORY_MAX
                && let Some(gone) = self.times.pop_front()
            {
                self.times_from = gone;
            }
        }
        for entry in entries {
            let next = self.sizes_from.get() + self.sizes.len() as u64 + 1;
            let before = self.sizes.back().copied().unwrap_or(self.bytes_before);
            if entry.index.get() != next {
                self.sizes.clear();
                self.bytes_before = before;
                self.sizes_from = Index::new(entry.index.get().saturating_sub(1));
            }
            self.sizes.push_back(before + entry.bytes.len() as u64);
            if self.sizes.len() > MEMORY_MAX
                && let Some(gone) = self.sizes.pop_front()
            {
                self.bytes_before = gone;
                self.sizes_from = self.sizes_from.next();
            }
        }
    }

    /// A log-shipped replica says how far it is. Reports may overtake each other: nothing goes back.
    pub fn report(&mut self, now: Now, report: ReaderReport) {
        if report.kind == NodeKind::Voter {
            return;
        }
        let applied = report.applied;
        if let Some(reader) = self.readers.get_mut(&report.node) {
            reader.report = report;
            reader.at = now;
            reader.track.observe(now, applied);
            return;
        }
        if self.readers.len() >= READERS_MAX {
            // Whoever has been silent for longest is gone, if anybody is.
            let silent = self.readers.values().min_by_key(|reader| reader.at).map(|reader| reader.report.node);
            silent.and_then(|node| self.readers.remove(&node));
        }
        let track = Track { applied, moved: now };
        self.readers.insert(report.node, Reader { report, at: now, track });
    }

    /// Notes how far the voters are, so that one that does not move is seen; called about once per tick by a leader.
    pub fn observe(&mut self, now: Now, voters: &[Progress]) {
        for Progress { replica, applied, .. } in voters {
            let new = Track { applied: *applied, moved: now };
            self.voters.entry(*replica).or_insert(new).observe(now, *applied);
        }
    }

    /// Log-shipped replicas that have applied an index.
    pub fn replicas_at(&self, index: Index) -> u32 {
        let have = self.readers.values().filter(|r| r.report.applied >= index).count();
        u32::try_from(have).unwrap_or(u32::MAX)
    }

    /// The picture of the shard as this node sees it. Lag is stated by a confirmed leader only. `wall` is the clock in
    /// milliseconds since 1970, compared with entries' timestamps where nothing better is known.
    pub fn status(&self, subject: &Subject, now: Now, wall: u64) -> ShardStatus {
        let replicator = subject.replicator;
        let leadership = replicator.leadership();
        let confirmed = replicator.confirmed(now);
        let commit = replicator.commit_index();
        let leader = leadership.leader.filter(|_| confirmed || !leadership.is_leader);
        let mut status = ShardStatus {
            id: subject.shard.to_string(),
            leader: leader.and_then(|r| subject.membership.node_of(r)).map(|n| n.to_string()),
            term: Some(leadership.term.get()),
            commit: Some(commit.get()),
            confirmed,
            chain: (subject.applied.index == commit).then(|| subject.applied.chain.to_string()),
            log_bytes: subject.log.bounds(subject.shard).map(|b| b.bytes),
            members: Vec::new(),
            replicator: None,
            queue: None,
            led_ms: leadership.is_leader.then(|| now.saturating_sub(self.led_since)),
        };
        let progress = replicator.progress(now);
        for (replica, node) in subject.membership.nodes() {
            let known = match progress.iter().find(|p| p.replica == replica) {
                Some(&Progress { sent, durable, applied, heard, .. }) => heard.map(|age| {
                    let moved = self.voters.get(&replica).map_or(now, |t| t.moved);
                    // The protocol does not say what has arrived: what was sent to one who answers has.
                    Known { sent, received: sent, durable, applied, age, moved }
                }),
                None if node == subject.node => {
                    let durable = replicator.durable_index();
                    let applied = subject.applied.index;
                    Some(Known { sent: durable, received: durable, durable, applied, age: 0, moved: now })
                }
                None => None,
            };
            let kind = if subject.membership.votes(replica) { NodeKind::Voter } else { NodeKind::Replica };
            status.members.push(self.member(node, kind, known.as_ref(), subject, confirmed, (now, wall)));
        }
        let shipped =
            |reader: &&Reader| leadership.is_leader && subject.membership.member_on(reader.report.node).is_none();
        for reader in self.readers.values().filter(shipped) {
            let ReaderReport { node, kind, sent, received, durable, applied } = reader.report;
            let age = now.saturating_sub(reader.at);
            let known = Known { sent, received, durable, applied, age, moved: reader.track.moved };
            status.members.push(self.member(node, kind, Some(&known), subject, confirmed, (now, wall)));
        }
        status
    }

    fn member(
        &self,
        node: NodeId,
        kind: NodeKind,
        known: Option<&Known>,
        subject: &Subject,
        confirmed: bool,
        (now, wall): (Now, u64),
    ) -> MemberStatus {
        let mut member = MemberStatus { node: node.to_string(), kind, ..MemberStatus::default() };
        let Some(known) = known else {
            if confirmed {
                // Never heard by this leader: it is behind by at least this long, as far as anybody can say.
                let silent = now.saturating_sub(self.led_since);
                member.lag_ms = Some(silent.max(1));
                member.lag_at_least = true;
                member.stuck_at = (silent >= self.timing.election_min).then(|| "send".to_owned());
            }
            return member;
        };
        member.sent = Some(known.sent.get());
        member.durable = Some(known.durable.get());
        member.applied = Some(known.applied.get());
        member.report_age_ms = Some(known.age);
        if !confirmed {
            return member;
        }
        let commit = subject.replicator.commit_index();
        let fresh = known.age <= self.timing.report_fresh;
        member.lag_entries = Some(commit.get().saturating_sub(known.applied.get()));
        member.lag_bytes = self.bytes_between(known.applied, commit);
        let (ms, at_least) = if known.applied >= commit {
            (if fresh { 0 } else { known.age }, !fresh)
        } else {
            match self.committed_at(known.applied.next(), now) {
                // Committed in this very millisecond and not applied is still behind.
                Some(at) => (now.saturating_sub(at).max(1), !fresh),
                None => (self.lower_bound(known.applied, subject, now, wall).max(1), true),
            }
        };
        member.lag_ms = Some(ms);
        member.lag_at_least = at_least;
        let silent = known.age >= self.timing.election_min;
        let stands = now.saturating_sub(known.moved) >= self.timing.election_min;
        if silent || (known.applied < commit && ms >= self.timing.election_min && stands) {
            member.stuck_at = Some(phase(known, silent).to_owned());
        }
        let base = subject.log.bounds(subject.shard).map(|bounds| bounds.base.index);
        if base.is_some_and(|base| known.durable < base && known.applied < base) {
            // Nothing that is sent helps it any more.
            member.stuck_at = Some("snapshot".to_owned());
        }
        member
    }

    /// When this leader saw an index committed. One that it has not noted yet it sees only now.
    fn committed_at(&self, index: Index, now: Now) -> Option<Now> {
        if index <= self.times_from.0 {
            return None;
        }
        let at = self.times.partition_point(|(last, _)| *last < index);
        Some(self.times.get(at).map_or(now, |(_, at)| *at))
    }

    fn bytes_at(&self, index: Index) -> Option<u64> {
        match index.get().checked_sub(self.sizes_from.get())? {
            0 => Some(self.bytes_before),
            n => self.sizes.get(usize::try_from(n - 1).ok()?).copied(),
        }
    }

    fn bytes_between(&self, from: Index, to: Index) -> Option<u64> {
        if from >= to {
            return Some(0);
        }
        // The last committed entries may not be durable here yet: what is known ends there, and nothing is not 0.
        let to = to.min(Index::new(self.sizes_from.get() + self.sizes.len() as u64));
        (from < to).then_some(())?;
        Some(self.bytes_at(to)?.saturating_sub(self.bytes_at(from)?))
    }

    /// Where the commit time is not known: the age of the first timestamp after `applied`, and at least that of what is
    /// remembered: this leadership's, or that of the oldest time which is not forgotten.
    fn lower_bound(&self, applied: Index, subject: &Subject, now: Now, wall: u64) -> u64 {
        let remembered = now.saturating_sub(self.times_from.1);
        let next = applied.next();
        let to = Index::new(next.get().saturating_add(LOOK_AHEAD));
        let read = subject.log.entries(subject.shard, next, to, LOOK_BYTES).unwrap_or_default();
        let first = read.iter().filter(|e| e.payload == Payload::Entry).find_map(timestamp_ms);
        remembered.max(first.map_or(0, |ms| wall.saturating_sub(ms)))
    }
}

/// Where a member does not get on: the last phase that has work. Of one who is silent no more can be said than that
/// nothing comes of what is sent to it.
fn phase(known: &Known, silent: bool) -> &'static str {
    match known {
        _ if silent => "send",
        Known { applied, durable, .. } if applied < durable => "apply",
        Known { durable, received, .. } if durable < received => "persist",
        _ => "send",
    }
}

/// Entries looked at for a timestamp: the protocol's own ones have none.
const LOOK_AHEAD: u64 = 4;
/// Bytes read for them.
const LOOK_BYTES: usize = 64 << 10;

fn timestamp_ms(entry: &LogEntry) -> Option<u64> {
    Entry::header(&entry.bytes).ok().map(|header| header.timestamp.ms())
}

#[cfg(test)]
mod tests;
