//! Epochs begun on logs in memory, and logs that come back to them.

use std::sync::Arc;

use quorate_shared::ids::{NodeId, Nonce, Term};

use super::*;
use crate::engine::Tree;
use crate::engine::memory::MemoryTree;
use crate::entry;
use crate::log::BaseRecord;
use crate::log::memory::{MemoryLog, MemoryReader};
use crate::machine::Machine;

const S1: ShardId = ShardId::DATA;
const FIRST: Epoch = Epoch { number: 1, id: 5 };

fn base() -> BaseRecord {
    let voters = (1..=3).map(|n| (ReplicaId::new(n), NodeId::new(n)));
    BaseRecord::founding(S1, Membership::of_voters(voters), FIRST)
}

fn host(node: u64) -> Host {
    Host { node: NodeId::new(node), nonce: Nonce([node as u8; 16]) }
}

struct Bench {
    log: MemoryLog,
    reader: Arc<MemoryReader>,
    machine: Machine,
}

impl Bench {
    fn new(replica: u64) -> Self {
        let (mut log, reader) = MemoryLog::new();
        log.append(ReplicaId::new(replica), S1, &[LogRecord::Base(base())]).unwrap();
        let tree: Arc<dyn Tree> = Arc::new(MemoryTree::default());
        let machine = Machine::open(tree, &base()).unwrap();
        Bench { log, reader, machine }
    }

    /// Entries that follow what is there, all empty.
    fn write(&mut self, count: u64, term: u64) {
        let bounds = self.reader.bounds(S1).unwrap();
        let mut chain = chain_at(&*self.reader, S1, bounds.last).unwrap().unwrap();
        for n in 0..count {
            let index = Index::new(bounds.last.get() + 1 + n);
            let timestamp = Timestamp::new(1_000 * term + index.get(), 0);
            let entry = Entry { index, previous: chain, timestamp, body: Body::Empty }.logged(Term::new(term));
            chain = entry::chain(chain, &entry);
            self.log.append(bounds.replica, S1, &[LogRecord::Entries(vec![entry])]).unwrap();
        }
        let hard = HardState { term: Term::new(term), vote: ReplicaId::NONE, commit: bounds.hard.commit };
        self.log.append(bounds.replica, S1, &[LogRecord::Hard(hard)]).unwrap();
    }

    fn apply(&mut self, to: u64) {
        let (from, to) = (self.machine.state().index.next(), Index::new(to).next());
        self.machine.apply(&self.reader.entries(S1, from, to, usize::MAX).unwrap()).unwrap();
    }

    fn begin(&mut self, node: u64, number: u64) -> Result<Begun, Fatal> {
        let applied = self.machine.state().applied();
        begin(&mut self.log, &*self.reader, (S1, host(node)), &applied, Epoch { number, id: 9 }, 7)
    }
}

#[test]
fn relations() {
    let epoch = |number, id| Epoch { number, id };
    assert_eq!(relation(epoch(2, 1), epoch(2, 1)), Relation::Same);
    assert_eq!(relation(epoch(2, 1), epoch(1, 9)), Relation::Older);
    assert_eq!(relation(epoch(2, 1), epoch(3, 0)), Relation::Newer);
    assert_eq!(relation(epoch(2, 1), epoch(2, 2)), Relation::Conflict);
}

#[test]
fn a_shipped_replica_becomes_the_one_voter_of_a_new_epoch() {
    let mut bench = Bench::new(0);
    bench.write(5, 1);
    bench.apply(5);
    let begun = bench.begin(4, 2).unwrap();
    let chain = bench.machine.state().chain;
    assert_eq!(begun.start, EpochStart { index: Index::new(5), chain });
    assert_eq!((begun.replica, begun.adopted), (ReplicaId::new(4), 0));
    bench.apply(6);
    let state = bench.machine.state();
    assert_eq!((state.epoch, state.epoch_start), (Epoch { number: 2, id: 9 }, begun.start));
    let me = Member { replica: ReplicaId::new(4), node: NodeId::new(4), nonce: Nonce([4; 16]) };
    assert_eq!((&state.membership.voters[..], state.membership.next), (&[me][..], ReplicaId::new(5)));
    let bounds = bench.reader.bounds(S1).unwrap();
    let hard = HardState { term: Term::new(2), vote: ReplicaId::new(4), commit: Index::new(6) };
    assert_eq!((bounds.replica, bounds.hard, bounds.last_term), (ReplicaId::new(4), hard, Term::new(2)));
    let again = bench.begin(4, 2).unwrap_err().to_string();
    assert_eq!(again, "begin epoch 2 of s1: epoch 2 is there already");
}

#[test]
fn a_survivor_keeps_what_it_had_not_known_to_be_committed() {
    let mut bench = Bench::new(2);
    bench.write(5, 3);
    bench.apply(3);
    let begun = bench.begin(2, 2).unwrap();
    assert_eq!((begun.start.index.get(), begun.adopted, begun.replica), (5, 2, ReplicaId::new(4)));
    bench.apply(6);
    assert_eq!(bench.machine.state().epoch.number, 2);
    assert_eq!(bench.machine.state().epoch_start, begun.start);
}

#[test]
fn an_old_master_writes_out_its_suffix_and_follows() {
    let mut promoted = Bench::new(0);
    promoted.write(5, 1);
    promoted.apply(5);
    let begun = promoted.begin(4, 2).unwrap();
    // The old master went on to 8, and had applied 7.
    let mut master = Bench::new(1);
    master.write(5, 1);
    master.write(3, 3);
    master.apply(7);
    let mut suffix = Vec::new();
    let done = rejoin(&mut master.log, &*master.reader, S1, Index::new(7), begun.start, &mut suffix).unwrap();
    assert_eq!(done, Rejoined::Cut { entries: 3, rebuild: true });
    let text = String::from_utf8(suffix).unwrap();
    assert_eq!(text.lines().map(|l| &l[..10]).collect::<Vec<_>>(), ["6 3 entry ", "7 3 entry ", "8 3 entry "]);
    let bounds = master.reader.bounds(S1).unwrap();
    assert_eq!((bounds.last.get(), bounds.replica), (5, ReplicaId::NONE));
    assert_eq!(chain_at(&*master.reader, S1, bounds.last).unwrap(), Some(begun.start.chain));
    // It can follow: the entry of the epoch is what comes next.
    let next = promoted.reader.entries(S1, Index::new(6), Index::new(7), 0).unwrap();
    master.log.append(ReplicaId::NONE, S1, &[LogRecord::Entries(next)]).unwrap();
}

#[test]
fn another_history_is_dropped_and_a_short_one_is_kept() {
    let mut other = Bench::new(1);
    other.write(5, 2);
    let start = EpochStart { index: Index::new(3), chain: Hash([1; 32]) };
    let mut suffix = Vec::new();
    let done = rejoin(&mut other.log, &*other.reader, S1, Index::new(0), start, &mut suffix).unwrap();
    assert_eq!(done, Rejoined::Drop { entries: 5 });
    assert_eq!(other.reader.bounds(S1).unwrap().last.get(), 5, "nothing was changed");
    // Of a voter that ends before the new epoch only what it knows to be committed is kept.
    let start = EpochStart { index: Index::new(9), chain: Hash([1; 32]) };
    let mut suffix = Vec::new();
    let done = rejoin(&mut other.log, &*other.reader, S1, Index::new(0), start, &mut suffix).unwrap();
    assert_eq!(done, Rejoined::Cut { entries: 5, rebuild: false });
    assert_eq!(other.reader.bounds(S1).unwrap().replica, ReplicaId::NONE);
}

#[test]
fn an_epoch_whose_number_does_not_grow_is_void() {
    let mut bench = Bench::new(0);
    bench.write(1, 1);
    bench.apply(1);
    let state = bench.machine.state();
    let body = Body::Epoch(EpochEntry { epoch: Epoch { number: 1, id: 6 }, membership: Membership::default() });
    let (index, timestamp) = (Index::new(2), Timestamp::new(9_000, 0));
    let entry = Entry { index, previous: state.chain, timestamp, body }.logged(Term::new(1));
    let applied = bench.machine.apply(&[entry]).unwrap();
    assert_eq!((applied.void, applied.epoch), (vec![index], FIRST));
}
