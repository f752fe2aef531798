//! What a seed is: sizes, configuration values, workload, faults and weather, all drawn from one number.
//!
//! Each seed has some kinds of faults and not others, so that a rare combination is not drowned by the frequent ones.
//! Some seeds are small and violent, some long and quiet.

use super::Rng;
use super::client::Patience;
use quorate_shared::ids::{NodeId, ReplicaId, ShardId};

use super::network::Weather;
use super::place::Place;
use super::workload::Mix;
use super::world::{Shape, World};
use crate::log::Member;
use crate::membership::MembershipChange;
use crate::replica::{Protocol, Timing};
use crate::shard::Input;

/// What may happen to the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    Kill,
    PowerCut,
    PowerCutAll,
    ShutDown,
    Restart,
    Partition,
    CutOneWay,
    CutOff,
    Heal,
    Stall,
    Unstall,
    StallApplier,
    ClockJump,
    Flip,
    WipeEngine,
    Transfer,
    DiskLow,
    Weather,
    Trim,
    /// Also what somebody is still behind of.
    TrimAll,
    Stranger,
    /// The membership.
    Change,
    /// A replica begins a new epoch.
    Promote,
    /// Old packets come again.
    Replay,
    /// The next start does not come to its end.
    CutStart,
    /// Old versions go.
    Collect,
    /// A replica comes, one goes for good.
    Join,
    Leave,
}

const OPTIONAL: &[(Fault, u64)] = &[
    (Fault::Kill, 10),
    (Fault::PowerCut, 8),
    (Fault::PowerCutAll, 2),
    (Fault::ShutDown, 3),
    (Fault::Partition, 8),
    (Fault::CutOneWay, 6),
    (Fault::CutOff, 8),
    (Fault::Stall, 6),
    (Fault::StallApplier, 5),
    (Fault::ClockJump, 3),
    (Fault::Flip, 2),
    (Fault::WipeEngine, 3),
    (Fault::Transfer, 4),
    (Fault::DiskLow, 2),
    (Fault::Weather, 4),
    (Fault::Trim, 8),
    (Fault::TrimAll, 8),
    (Fault::Stranger, 4),
    (Fault::Change, 14),
    (Fault::Promote, 1),
    (Fault::Replay, 8),
    (Fault::CutStart, 5),
    (Fault::Collect, 8),
    (Fault::Join, 2),
    (Fault::Leave, 2),
];

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    pub shape: Shape,
    pub weather: Weather,
    pub mix: Mix,
    pub clients: u64,
    pub patience: Patience,
    /// How long there are faults.
    pub faults_ms: u64,
    /// Milliseconds from one fault to the next.
    pub every: (u64, u64),
    pub faults: Vec<(Fault, u64)>,
}

fn weather(rng: &mut Rng, rough: bool) -> Weather {
    let slow = if rough { 30 } else { 6 };
    Weather {
        delay: (1, rng.range(1, slow)),
        sync: (1, rng.range(1, slow + 10)),
        apply: (1, rng.range(1, slow)),
        drop: if rough { rng.range(0, 80) } else { 0 },
        double: if rough { rng.range(0, 50) } else { 0 },
        late: if rough && rng.chance(400) { rng.range(1, 30) } else { 0 },
        corrupt: if rough && rng.chance(500) { rng.range(1, 20) } else { 0 },
    }
}

fn timing(rng: &mut Rng) -> Timing {
    if rng.chance(400) {
        return Timing::default();
    }
    let tick = rng.range(10, 40);
    let heartbeat = tick * rng.range(1, 3);
    let election_min = heartbeat * rng.range(4, 9);
    let election_max = election_min + 4 * tick + rng.range(0, election_min);
    Timing { tick, heartbeat, election_min, election_max, report_fresh: heartbeat * 5 }
}

fn mix(rng: &mut Rng, rows: ShardId) -> Mix {
    let mut weights = [0; 6];
    for weight in &mut weights {
        *weight = if rng.chance(600) { rng.range(1, 10) } else { 0 };
    }
    if weights.iter().all(|w| *w == 0) {
        weights = [3, 1, 1, 3, 1, 1];
    }
    let wait = if rng.chance(200) { rng.range(0, 200) } else { 0 };
    Mix {
        rows,
        registers: rng.range(1, 6) as usize,
        lists: rng.range(1, 8) as usize,
        weights,
        reads: rng.range(200, 700),
        wait,
    }
}

impl Plan {
    pub fn of(seed: u64, protocol: Protocol, verbose: bool) -> Plan {
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9).wrapping_add(17));
        let rng = &mut rng;
        let quiet = rng.chance(120);
        let voters = rng.pick(&[1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5]);
        let readers = rng.pick(&[0, 0, 1, 1, 2]);
        // The largest record of the workloads fits.
        let segment_bytes = rng.range(64, 160) << 10;
        // What a protocol cannot do is refused by name: one voter alone with paxos.
        let voters = if protocol == Protocol::Paxos { voters.max(2) } else { voters };
        // As the daemon has them, mostly: the catalog in one shard, the rows in another.
        let shards = rng.pick(&[1, 2, 2]);
        let shape = Shape { shards, voters, readers, timing: timing(rng), protocol, segment_bytes, verbose };
        let rough = !quiet && rng.chance(800);
        let weather = weather(rng, rough);
        let pause = if quiet { (0, 15) } else { (0, rng.range(10, 200)) };
        let patience = Patience { one_try: rng.range(150, 1_200), deadline: rng.range(1_000, 4_000), pause };
        let mut faults: Vec<(Fault, u64)> = OPTIONAL.iter().copied().filter(|_| rng.chance(450)).collect();
        faults.push((Fault::Restart, 22));
        faults.push((Fault::Heal, 14));
        faults.push((Fault::Unstall, 8));
        let faults_ms = if quiet { rng.range(6_000, 12_000) } else { rng.range(2_000, 6_000) };
        let every = if quiet { (2_000, 8_000) } else { (20, rng.range(100, 900)) };
        let clients = if quiet { rng.range(4, 8) } else { rng.range(2, 6) };
        Plan { shape, weather, mix: mix(rng, ShardId::new(shards - 1)), clients, patience, faults_ms, every, faults }
    }

    fn draw(&self, rng: &mut Rng) -> Fault {
        let total = self.faults.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.range(1, total);
        for (fault, weight) in &self.faults {
            if at <= *weight {
                return *fault;
            }
            at -= weight;
        }
        Fault::Heal
    }

    /// Something happens.
    pub fn fault(&self, rng: &mut Rng, world: &mut World) {
        let fault = self.draw(rng);
        let all = world.all();
        let victim = rng.pick(&all);
        let shard = rng.pick(&world.shards());
        let down: Vec<u64> = all.iter().copied().filter(|id| !world.is_up(*id)).collect();
        match fault {
            Fault::Kill if world.is_up(victim) => world.kill(victim),
            Fault::PowerCut if world.is_up(victim) => world.power_cut(victim),
            Fault::PowerCutAll => all.iter().for_each(|id| world.power_cut(*id)),
            Fault::ShutDown if world.is_up(victim) => world.shut_down(victim),
            Fault::Restart if !down.is_empty() => world.start(rng.pick(&down)),
            Fault::Partition => {
                let (one, two) = all.iter().partition(|_| rng.chance(500));
                world.partition(&[one, two]);
            }
            Fault::CutOneWay => world.cut(victim, rng.pick(&all)),
            Fault::CutOff => {
                // Often the leader: that is where it hurts.
                let victim = world.leader(shard).filter(|_| rng.chance(600)).unwrap_or(victim);
                let rest = all.iter().copied().filter(|id| *id != victim).collect();
                world.partition(&[vec![victim], rest]);
            }
            Fault::Heal => world.heal(),
            Fault::Stall => world.stall(victim, true),
            Fault::Unstall => all.iter().for_each(|id| {
                world.stall(*id, false);
                world.stall_applier(*id, false);
            }),
            Fault::StallApplier => world.stall_applier(victim, true),
            Fault::ClockJump => world.jump_clock(victim, rng.range(0, 20_000) as i64 - 10_000),
            Fault::Flip => self.flip(rng, world),
            Fault::WipeEngine => down.first().into_iter().for_each(|id| world.wipe_engine(*id)),
            Fault::Transfer => {
                if let Some(leader) = world.leader(shard) {
                    let members = world.members(shard);
                    let to = rng.chance(500).then(|| members.voters[rng.below(members.voters.len())].replica);
                    world.input(Place { shard, node: leader }, Input::Transfer { to });
                }
            }
            Fault::DiskLow => {
                let low = rng.chance(300);
                world.places(victim).into_iter().for_each(|id| world.input(id, Input::DiskLow(low)));
            }
            Fault::Weather => world.weather = weather(rng, true),
            Fault::Trim => world.trim(Place { shard, node: victim }, true),
            Fault::TrimAll => world.trim(Place { shard, node: victim }, false),
            Fault::Change => self.change(rng, world),
            Fault::Promote => self.promote(rng, world),
            Fault::CutStart => world.interrupt(victim, true),
            Fault::Collect => world.collect(Place { shard, node: victim }, rng.range(1, 400) as usize),
            Fault::Join => world.join(),
            // With paxos a change under way could make a voter of one that is gone for good, and nobody is promoted there.
            Fault::Leave if world.shape.protocol == Protocol::Raft => world.leave(victim),
            Fault::Replay => world.replay(rng.range(5, 40)),
            Fault::Stranger => world.meet_stranger(Place { shard, node: victim }),
            _ => {}
        }
    }

    /// Somebody asks for another membership, mostly in every shard; mostly the leader is asked.
    fn change(&self, rng: &mut Rng, world: &mut World) {
        let (one, seed) = (rng.chance(200).then(|| rng.pick(&world.shards())), rng.next());
        for shard in world.shards().into_iter().filter(|shard| one.is_none_or(|one| one == *shard)) {
            // The same draws: where the members are the same, it is the same change.
            let rng = &mut Rng::new(seed);
            let Some(change) = self.some_change(rng, world, shard) else { continue };
            let all = world.all();
            let asked = world.leader(shard).filter(|_| rng.chance(900)).unwrap_or_else(|| rng.pick(&all));
            world.change(Place { shard, node: asked }, change);
        }
    }

    fn some_change(&self, rng: &mut Rng, world: &World, shard: ShardId) -> Option<MembershipChange> {
        let members = world.members(shard);
        let is_shipped = |node: &u64| world.is_shipped(Place { shard, node: *node });
        let shipped: Vec<u64> = world.readers(shard).into_iter().filter(is_shipped).collect();
        let host = (!shipped.is_empty()).then(|| rng.pick(&shipped)).and_then(|id| world.host(id));
        let learner = members.learners.get(rng.below(members.learners.len())).map(|m| m.replica);
        // Often one that the leader does not reach, which may have what was never committed, is to go.
        let leader = world.leader(shard);
        let unheard = |m: &&Member| leader.is_some_and(|leader| world.network.is_cut(m.node.get(), leader));
        let unheard: Vec<ReplicaId> = members.voters.iter().filter(unheard).map(|m| m.replica).collect();
        let ousts = !unheard.is_empty() && rng.chance(500);
        let any = members.voters.get(rng.below(members.voters.len())).map(|m| m.replica)?;
        let voter = if ousts { rng.pick(&unheard) } else { any };
        // Neither so many that nothing is ever decided, nor one alone most of the time.
        let few = members.voters.len() <= 2;
        let paxos = world.shape.protocol == Protocol::Paxos;
        Some(match if ousts { rng.range(6, 7) } else { rng.range(0, 9) } {
            7 if ousts => MembershipChange::Remove(voter),
            0..=3 if learner.is_some() => MembershipChange::Promote(learner?),
            0..=5 if host.is_some() && paxos => MembershipChange::AddVoter(host?),
            0..=5 if host.is_some() => MembershipChange::AddLearner(host?),
            6 if !few || rng.chance(300) => MembershipChange::Demote(voter),
            7 => MembershipChange::Remove(learner.filter(|_| few || rng.chance(500)).unwrap_or(voter)),
            8 if paxos => MembershipChange::ReplaceVoter { remove: voter, voter: host? },
            8 => MembershipChange::Replace { remove: voter, learner: host? },
            _ => MembershipChange::Promote(learner?),
        })
    }

    /// A log-shipped replica is made the first voter of a new epoch; mostly the others cannot hear of it. Seldom two are,
    /// of one number.
    fn promote(&self, rng: &mut Rng, world: &mut World) {
        // Not one that has nothing yet: whoever promotes it loses everything, knowingly.
        let has = |id: Place| world.is_shipped(id) && world.applied_at(id) >= Some(world.founded[id.shard]);
        let has = |id: &u64| world.places(*id).into_iter().all(has);
        let shipped: Vec<u64> = world.all().into_iter().filter(has).collect();
        if shipped.is_empty() || world.shape.protocol == Protocol::Paxos || world.is_split() {
            return;
        }
        let number = world.top_epoch() + 1;
        let first = rng.pick(&shipped);
        let rest: Vec<u64> = world.all().into_iter().filter(|id| *id != first).collect();
        if rng.chance(700) {
            world.partition(&[vec![first], rest]);
        }
        world.promote(first, number);
        let second: Vec<u64> = shipped.into_iter().filter(|id| *id != first).collect();
        if !second.is_empty() && rng.chance(250) {
            world.promote(rng.pick(&second), number);
        }
    }

    /// A bit flips on a disk whose node is down; never on so many that no majority is left.
    fn flip(&self, rng: &mut Rng, world: &mut World) {
        let down: Vec<u64> = world.all().into_iter().filter(|id| !world.is_up(*id)).collect();
        let victim = rng.pick(&if down.is_empty() { vec![0] } else { down });
        let minority = |shard: ShardId| {
            let voters = world.ids(shard);
            let lost = |node: u64| world.is_lost(Place { shard, node }) || world.is_flipped(node);
            let lost = voters.iter().filter(|node| lost(**node)).count();
            (lost + 1) * 2 < voters.len() || !voters.contains(&victim)
        };
        if victim != 0 && world.shards().into_iter().all(minority) {
            world.flip(victim);
        }
    }

    /// The faults end.
    pub fn calm(world: &mut World) {
        world.heal();
        world.weather = Weather::FAIR;
        for id in world.all() {
            world.interrupt(id, false);
            world.stall(id, false);
            world.stall_applier(id, false);
            world.places(id).into_iter().for_each(|id| world.input(id, Input::DiskLow(false)));
            if !world.is_up(id) {
                world.start(id);
            }
        }
        Self::decide(world);
    }

    /// What somebody has to decide: which of two epochs of one number goes on, or that a quorum is lost for good.
    fn decide(world: &mut World) {
        let here = |id: Place| world.is_up(id.node) && !world.is_lost(id);
        let lost = world.shards().into_iter().any(|shard| {
            let members = world.members(shard);
            let here = |node: NodeId| here(Place { shard, node: node.get() });
            !members.has_quorum(|r| members.node_of(r).is_some_and(here))
        });
        if world.shape.protocol == Protocol::Paxos || !(lost || world.is_split()) {
            return;
        }
        let survivor = world
            .all()
            .into_iter()
            .filter(|id| world.places(*id).into_iter().all(here))
            .max_by_key(|id| (world.epoch_number(*id), world.last_of(*id)));
        if let Some(survivor) = survivor {
            world.promote(survivor, world.top_epoch() + 1);
        }
    }
}
