//! Golden scripts over a [`World`] of shards: the conformance suite of replicators.
//!
//! Scripts are in `replica/testscripts/conformance`; they print answers and final states, nothing of a protocol, so that
//! one expectation serves every protocol. Where an answer depends on what a protocol can do, or on whom it elects, there
//! is one script for each, with its name as the extension. To add one: write the commands, `UPDATE_GOLDENFILES=1 cargo test -p
//! quorate-core conformance`, and read what it says.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use super::network::Weather;
use super::process::outcome;
use super::workload::put;
use super::world::{SHARD, WALL, World, refusal};
use crate::lag::ReaderReport;
use crate::replica::Protocol;
use crate::shard::{Input, Ticket};
use quorate_shared::ids::{Index, NodeId, ReplicaId};
use quorate_shared::status::NodeKind;

/// `n1`.
#[derive(Clone, Copy, Debug)]
struct Id(u64);

impl std::str::FromStr for Id {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        s.strip_prefix('n').and_then(|n| n.parse().ok()).map(Id).ok_or_else(|| format!("no node: {s}"))
    }
}

/// What a script can say.
#[derive(goldenscript::Command)]
enum Command {
    /// Starts voters; n1 is made to lead.
    Cluster {
        #[arg(key)]
        voters: u64,
    },
    /// Virtual time passes; answers that come are printed.
    Run {
        #[arg(key)]
        ms: u64,
    },
    /// Proposes `key=value` at a node; the key must not exist or have the value `expect`.
    Put {
        id: Id,
        key: String,
        value: String,
        #[arg(key, optional)]
        expect: Option<String>,
        /// `client/sequence`.
        #[arg(key, optional)]
        write: Option<String>,
        #[arg(key, optional)]
        replicas: Option<u32>,
        #[arg(key, optional)]
        patience: Option<u64>,
    },
    /// Asks a node for the read index.
    Read {
        id: Id,
    },
    /// The values applied at every node.
    Get {
        key: String,
    },
    Crash {
        id: Id,
    },
    Restart {
        id: Id,
    },
    /// Loses a stopped node's engine.
    WipeEngine {
        id: Id,
    },
    /// Nodes that are cut off from all others.
    Isolate(Vec<Id>),
    Heal,
    /// A node's disk finishes nothing until `unstall`.
    Stall {
        id: Id,
    },
    Unstall {
        id: Id,
    },
    DiskLow {
        id: Id,
    },
    DiskOk {
        id: Id,
    },
    Transfer {
        id: Id,
        #[arg(key, optional)]
        to: Option<Id>,
    },
    /// A log-shipped replica says how far it is.
    Report {
        id: Id,
        replica: Id,
        #[arg(key)]
        applied: u64,
    },
    /// Who leads, and how far everybody is.
    Status,
    /// The members' lag as the leader states it.
    Lag,
}

#[derive(Default)]
struct Script {
    protocol: Protocol,
    world: Option<World>,
    names: BTreeMap<Ticket, String>,
}

impl Script {
    fn world(&mut self) -> &mut World {
        self.world.get_or_insert_with(|| World::with(1, 3, Weather::FAIR, self.protocol))
    }

    /// What has been answered since.
    fn answers(&mut self) -> String {
        let mut out = String::new();
        let Some(world) = &mut self.world else { return out };
        while let Some((ticket, result)) = world.replies.pop_first() {
            let name = self.names.remove(&ticket).unwrap_or_default();
            let _ = writeln!(out, "{name} → {}", outcome(&result));
        }
        while let Some((ticket, result)) = world.reads.pop_first() {
            let name = self.names.remove(&ticket).unwrap_or_default();
            let result = result.map(|_| crate::proposal::WriteResult::default());
            let _ = writeln!(out, "{name} → {}", outcome(&result));
        }
        out
    }

    fn status(&mut self) -> String {
        let world = self.world();
        let mut out = String::new();
        let leader = world.leader(SHARD);
        let _ = writeln!(out, "leader {}", leader.map_or("-".into(), |l| format!("n{l}")));
        let top =
            world.ids(SHARD).into_iter().filter_map(|id| world.view(id)).map(|v| v.applied).max().unwrap_or_default();
        for id in world.ids(SHARD) {
            let _ = match world.view(id) {
                None => writeln!(out, "n{id} down"),
                Some(v) if v.applied == top => writeln!(out, "n{id} has everything"),
                Some(v) => writeln!(out, "n{id} is {} behind", top.get() - v.applied.get()),
            };
        }
        out
    }

    fn lag(&mut self) -> String {
        let world = self.world();
        let mut out = String::new();
        let Some(leader) = world.leader(SHARD) else { return "no leader\n".into() };
        let Some(shard) = world.shard(leader) else { return out };
        let status = shard.status(world.now, WALL + world.now);
        let _ = writeln!(out, "leader {} confirmed {}", status.leader.as_deref().unwrap_or("-"), status.confirmed);
        for m in status.members {
            let some = |v: Option<u64>| v.map_or("-".into(), |v| v.to_string());
            let at_least = if m.lag_at_least { "≥" } else { "" };
            let stuck = m.stuck_at.map_or(String::new(), |s| format!(" stuck at {s}"));
            let _ = writeln!(
                out,
                "{} {} lag {} entries {} bytes {at_least}{} ms{stuck}",
                m.node,
                m.kind,
                some(m.lag_entries),
                some(m.lag_bytes),
                some(m.lag_ms)
            );
        }
        out
    }

    fn put(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        let Command::Put { id, key, value, expect, write, replicas, patience } = command else { return Ok(()) };
        let write_id = match write {
            Some(text) => {
                let (client, seq) = text.split_once('/').ok_or("write=client/sequence")?;
                Some((client.parse()?, seq.parse()?))
            }
            None => None,
        };
        let mut proposal = put(key, value, expect.as_deref(), write_id);
        proposal.wait_for_replicas = replicas.unwrap_or(0);
        proposal.wait_ms = 200;
        let ticket = self.world().propose(id.0, proposal, patience.unwrap_or(5_000));
        self.names.insert(ticket, format!("n{} put {key}={value}", id.0));
        Ok(())
    }

    fn cluster(&mut self, voters: u64) -> Result<(), Box<dyn Error>> {
        let mut world = World::with(1, voters, Weather::FAIR, self.protocol);
        if !world.run_while(10_000, |w| w.leader(SHARD).is_none()) {
            return Err("nobody leads".into());
        }
        if let Some(leader) = world.leader(SHARD).filter(|l| *l != 1) {
            world.input(leader, Input::Transfer { to: Some(ReplicaId::new(1)) });
            if !world.run_while(10_000, |w| w.leader(SHARD) != Some(1)) {
                return Err("n1 does not lead".into());
            }
        }
        world.run_for(200);
        self.world = Some(world);
        Ok(())
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let mut out = String::new();
        match command {
            Command::Cluster { voters } => match refusal(*voters, self.protocol) {
                Some(refusal) => out = refusal + "\n",
                None => self.cluster(*voters)?,
            },
            Command::Run { ms } => self.world().run_for(*ms),
            Command::Put { .. } => self.put(command)?,
            Command::Read { id } => {
                let ticket = self.world().read(id.0, 1_000);
                self.names.insert(ticket, format!("n{} read", id.0));
            }
            Command::Get { key } => {
                let world = self.world();
                for id in world.ids(SHARD) {
                    let value = world.get(id, key).unwrap_or_else(|| "-".into());
                    let _ = writeln!(out, "n{id} {key}={value}");
                }
            }
            Command::Crash { id } => self.world().crash(id.0),
            Command::Restart { id } => self.world().start(id.0),
            Command::WipeEngine { id } => self.world().wipe_engine(id.0),
            Command::Isolate(ids) => {
                let world = self.world();
                let alone: Vec<u64> = ids.iter().map(|i| i.0).collect();
                let rest = world.ids(SHARD).into_iter().filter(|i| !alone.contains(i)).collect();
                world.partition(&[alone, rest]);
            }
            Command::Heal => self.world().heal(),
            Command::Stall { id } => self.world().stall(id.0, true),
            Command::Unstall { id } => self.world().stall(id.0, false),
            Command::DiskLow { id } => self.world().input(id.0, Input::DiskLow(true)),
            Command::DiskOk { id } => self.world().input(id.0, Input::DiskLow(false)),
            Command::Transfer { id, to } => {
                let to = to.map(|to| ReplicaId::new(to.0));
                self.world().input(id.0, Input::Transfer { to });
            }
            Command::Report { id, replica, applied } => {
                let index = Index::new(*applied);
                let (node, kind) = (NodeId::new(replica.0), NodeKind::Replica);
                let report = ReaderReport { node, kind, sent: index, received: index, durable: index, applied: index };
                self.world().input(id.0, Input::Report(report));
            }
            Command::Status => out = self.status(),
            Command::Lag => out = self.lag(),
        }
        Ok(self.answers() + &out)
    }
}

#[test]
fn conformance() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/replica/testscripts/conformance");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let only = path.extension().map(|e| e.to_string_lossy().parse::<Protocol>().unwrap());
        for protocol in [Protocol::Raft, Protocol::Paxos].into_iter().filter(|p| only.is_none_or(|o| o == *p)) {
            let mut script = Script { protocol, ..Script::default() };
            goldenscript::run(&mut script, &path).unwrap_or_else(|e| panic!("{protocol}: {}: {e}", path.display()));
        }
    }
}
