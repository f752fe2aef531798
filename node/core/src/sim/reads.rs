//! Reads at any node, as the router does them: at each of the four levels, from one snapshot, while writes go on.
//!
//! A read at a node that does not lead asks the leader for the read index and waits until that is applied here.
//! `max_staleness` is served from the last index that was confirmed late enough. The rows are read one after the other, at
//! the timestamp of what was applied when the read began.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_shared::ids::{Epoch, Index, Timestamp};

use super::invariants::indexes;
use super::network::{Call, Packet};
use super::node::{Part, Waiter};
use super::place::Place;
use super::schema::Records;
use super::workload;
use super::world::{Event, World};
use crate::bug::{Bug, planted};
use crate::engine::Tree;
use crate::error::Rejected;
use crate::mvcc::Snapshot;
use crate::shard::{Input, Ticket};
use crate::table::TableDef;

/// A write that was acknowledged: where, and in which epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Token {
    pub epoch: Epoch,
    pub index: Index,
}

/// How fresh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Linearizable,
    After(Token),
    MaxStaleness(u64),
    Local,
}

/// What is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    /// Catalog keys.
    Registers(Vec<String>),
    /// Rows of the table.
    Rows(Vec<i64>),
    /// All rows with keys from here up to there.
    Range(i64, i64),
    /// The table as the shard knows it.
    Definition,
    /// What the catalog says of the table and its job.
    Records,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReadResult {
    /// What was applied, and in which epoch.
    pub index: Index,
    pub epoch: Epoch,
    pub timestamp: Timestamp,
    /// When the snapshot was taken.
    pub at: u64,
    /// Registers, in the order asked for.
    pub registers: Vec<Option<String>>,
    /// Rows found.
    pub rows: Vec<workload::Row>,
    /// The table as of then.
    pub def: Option<Arc<TableDef>>,
    pub records: Option<Records>,
}

struct Job {
    call: Call,
    level: Level,
    query: Query,
    deadline: u64,
    /// Not before this is applied.
    wait: Option<Index>,
    asked: u64,
    /// Once it has begun.
    begun: Option<(Snapshot, ReadResult, usize)>,
}

/// The reads of a node.
#[derive(Default)]
pub(super) struct Reading {
    jobs: BTreeMap<u64, Job>,
    next: u64,
    /// An index that had every write acknowledged before then.
    confirmed: Option<(Index, u64)>,
}

impl World {
    pub(super) fn take_read(&mut self, id: Place, call: Call, level: Level, query: Query, deadline: u64) {
        let now = self.now;
        let Some(process) = self.process(id) else { return };
        process.reading.next += 1;
        let number = process.reading.next;
        let mut job = Job { call, level, query, deadline, wait: None, asked: now, begun: None };
        let confirmed = process.reading.confirmed;
        let ask = match level {
            Level::Local => {
                job.wait = Some(Index::new(0));
                false
            }
            Level::After(token) => {
                job.wait = Some(if planted(Bug::ReadBelowToken) { Index::new(0) } else { token.index });
                false
            }
            Level::MaxStaleness(ms) => match confirmed {
                Some((index, asked)) if now < asked + ms && process.applied() >= index => {
                    job.wait = Some(index);
                    false
                }
                _ => true,
            },
            Level::Linearizable => true,
        };
        process.reading.jobs.insert(number, job);
        if ask {
            self.ask_index(id, number);
        } else {
            self.serve_reads(id);
        }
    }

    fn ask_index(&mut self, id: Place, number: u64) {
        let (view, deadline) = (self.view(id), self.now + 1_000);
        match view {
            Some(view) if view.is_leader => {
                self.tickets += 1;
                let ticket = self.tickets;
                if let Some(process) = self.process(id) {
                    process.tickets.insert(ticket, Waiter::Read { job: number });
                }
                self.drive(id, Some(Input::Read { ticket, deadline }));
            }
            _ => {
                let leader = view.and_then(|v| v.leader).map(|(_, node)| node.get());
                // A log-shipped replica asks any voter; one that does not lead says who does.
                let voters = self.voters_known_to(id);
                let asked = leader.unwrap_or_else(|| self.rng.pick(&voters));
                if asked == id.node {
                    return self.fail_read(id, number, Rejected::Retry("no leader".into()));
                }
                let epoch = self.epoch(id).0;
                self.send(id, asked, Packet::AskIndex { ask: number, epoch });
            }
        }
    }

    pub(super) fn asked_for_index(&mut self, id: Place, from: u64, (ask, epoch): (u64, Epoch)) {
        let view = self.view(id);
        if epoch != self.epoch(id).0 {
            let result = Box::new(Err(Rejected::Retry("another epoch".into())));
            return self.send(id, from, Packet::Index { ask, result });
        }
        if !view.is_some_and(|v| v.is_leader) {
            let leader = view.and_then(|v| v.leader).map(|(_, node)| node);
            return self.send(id, from, Packet::Index { ask, result: Box::new(Err(Rejected::NotLeader(leader))) });
        }
        self.tickets += 1;
        let (ticket, deadline) = (self.tickets, self.now + 1_000);
        if let Some(process) = self.process(id) {
            process.tickets.insert(ticket, Waiter::Asked { ask, by: from });
        }
        self.drive(id, Some(Input::Read { ticket, deadline }));
    }

    pub(super) fn read_ready(&mut self, id: Place, ticket: Ticket, result: Result<Index, Rejected>) {
        self.trace.note(self.now, id, "read index", ticket, result.as_ref().map_or(0, |i| i.get()));
        let Some(process) = self.process(id) else { return };
        match process.tickets.remove(&ticket) {
            Some(Waiter::Read { job }) => self.index_came(id, job, result),
            Some(Waiter::Asked { ask, by }) => self.send(id, by, Packet::Index { ask, result: Box::new(result) }),
            Some(_) => drop(self.reads.insert(ticket, result)),
            None => self.violate(format!("{id} answers the read {ticket} twice")),
        }
    }

    pub(super) fn index_came(&mut self, id: Place, ask: u64, result: Result<Index, Rejected>) {
        let Some(process) = self.process(id) else { return };
        let Some(job) = process.reading.jobs.get_mut(&ask).filter(|j| j.wait.is_none()) else { return };
        match result {
            Ok(index) => {
                let asked = job.asked;
                job.wait = Some(index);
                if process.reading.confirmed.is_none_or(|(_, at)| at < asked) {
                    process.reading.confirmed = Some((index, asked));
                }
                self.serve_reads(id);
            }
            Err(Rejected::NotLeader(Some(node))) if node.get() != id.node => {
                let epoch = self.epoch(id).0;
                self.send(id, node.get(), Packet::AskIndex { ask, epoch });
            }
            Err(rejected) => self.fail_read(id, ask, rejected),
        }
    }

    fn fail_read(&mut self, id: Place, number: u64, rejected: Rejected) {
        let Some(job) = self.process(id).and_then(|p| p.reading.jobs.remove(&number)) else { return };
        self.send(id, job.call.0, Packet::ReadDone { call: job.call, result: Box::new(Err(rejected)) });
    }

    /// Begins the reads whose index is applied.
    pub(super) fn serve_reads(&mut self, id: Place) {
        let now = self.now;
        let Some(replica) = self.nodes.get_mut(&id.node).and_then(|n| n.replicas.get_mut(&id.shard)) else { return };
        let tree = Arc::clone(&replica.tree) as Arc<dyn Tree>;
        let Some(process) = &mut replica.up else { return };
        let state = process.machine.state();
        let (index, epoch, timestamp) = (state.index, state.epoch, state.timestamp);
        let def = state.tables.get(&workload::table().id);
        let stale = planted(Bug::StaleSnapshotRead);
        let mut begun = Vec::new();
        for (number, job) in &mut process.reading.jobs {
            // Behind the point from which a newer epoch goes on a token means nothing; before it has come there, not yet.
            let known = match job.level {
                Level::After(token) => token.epoch.number <= epoch.number || planted(Bug::ReadBelowToken),
                _ => true,
            };
            if job.begun.is_none() && known && job.wait.is_some_and(|wait| wait <= index || stale) {
                let def = def.cloned();
                let result = ReadResult { index, epoch, timestamp, at: now, def, ..ReadResult::default() };
                job.begun = Some((Snapshot::new(Arc::clone(&tree), timestamp), result, 0));
                begun.push(*number);
            }
        }
        for number in begun {
            self.go_on_reading(id, number);
        }
    }

    /// Reads the next row.
    pub(super) fn go_on_reading(&mut self, id: Place, number: u64) {
        let Some(process) = self.process(id) else { return };
        let Some(job) = process.reading.jobs.get_mut(&number) else { return };
        let Some((snapshot, result, at)) = &mut job.begun else { return };
        let read = workload::read_some(snapshot, &job.query, *at, result);
        *at += 1;
        match read {
            // What it would read may be collected by now: whoever asked begins anew.
            Err(_) if snapshot.is_readable().is_ok_and(|is| !is) => {
                self.fail_read(id, number, Rejected::Retry("too old to be read".into()));
            }
            Err(e) => self.stopped(id.node, &e),
            Ok(true) => {
                let pause = self.rng.range(0, 4);
                self.schedule(self.now + pause, id, Event::Read { job: number });
            }
            Ok(false) => {
                let Some(job) = process.reading.jobs.remove(&number) else { return };
                let Some((snapshot, result, _)) = job.begun else { return };
                if let (Query::Range(..), Some(def)) = (&job.query, &result.def) {
                    let checked = indexes::check(&snapshot, def);
                    self.check(checked.map_err(|what| format!("{id}, as of {}: {what}", result.index)));
                }
                let Some(process) = self.process(id) else { return };
                let too_old = match job.level {
                    // Checked again when the result is complete.
                    Level::MaxStaleness(ms) => {
                        let confirmed = process.reading.confirmed;
                        !confirmed.is_some_and(|(index, asked)| self.now < asked + ms && result.index >= index)
                    }
                    _ => false,
                };
                let result = if too_old { Err(Rejected::Retry("too old by now".into())) } else { Ok(result) };
                self.send(id, job.call.0, Packet::ReadDone { call: job.call, result: Box::new(result) });
            }
        }
    }

    /// Gives up reads whose time is over.
    pub(super) fn expire_reads(&mut self, id: Place) {
        let now = self.now;
        let Some(process) = self.process(id) else { return };
        if process.reading.jobs.is_empty() {
            return;
        }
        let follows = matches!(process.part, Part::Follower(_));
        let late: Vec<u64> =
            process.reading.jobs.iter().filter(|(_, job)| job.deadline <= now).map(|(number, _)| *number).collect();
        for number in late {
            let what = if follows { "this replica is behind" } else { "no leader in time" };
            self.fail_read(id, number, Rejected::Retry(what.into()));
        }
    }
}
