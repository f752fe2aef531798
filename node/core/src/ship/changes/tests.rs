//! Going on from tokens, where the table was emptied since and its definition of then lies behind the log's base.

use quorate_shared::ids::{NodeId, ReplicaId, Term};
use quorate_shared::value::Value;

use super::*;
use crate::engine::memory::MemoryTree;
use crate::entry::EpochEntry;
use crate::keys::tests::table;
use crate::log::{BaseRecord, LogRecord, Membership};
use crate::machine::Machine;
use crate::row;
use crate::sim::records::Disk;

const SHARD: ShardId = ShardId::DATA;
const EPOCH: Epoch = Epoch { number: 2, id: 300 };

/// A replica to which everything written is applied.
struct Replica {
    disk: Arc<Disk>,
    machine: Machine,
}

impl Replica {
    fn new() -> Self {
        let members = Membership::of_voters([(ReplicaId::new(1), NodeId::new(1))]);
        let base = BaseRecord::founding(SHARD, members, EPOCH);
        let machine = Machine::open(Arc::new(MemoryTree::default()), &base).unwrap();
        Self { disk: Arc::new(Disk::new(base)), machine }
    }

    fn write(&mut self, transactions: Vec<Transaction>) {
        self.entry(Body::Write(transactions));
    }

    fn entry(&mut self, body: Body) {
        let state = self.machine.state();
        let (index, previous) = (state.index.next(), state.chain);
        let timestamp = Timestamp::new(1_000 + index.get(), 0);
        let bytes = Entry { index, previous, timestamp, body }.encode();
        let entry = LogEntry { index, term: Term::new(1), payload: Payload::Entry, bytes };
        self.disk.write(&[LogRecord::Entries(vec![entry.clone()])]);
        self.machine.apply(&[entry]).unwrap();
    }

    /// The log begins here from now on.
    fn trim(&self) {
        self.disk.write(&[LogRecord::Base(self.machine.state().base(SHARD))]);
    }

    /// What follows a point of now.
    fn token(&self, version: u32) -> FeedToken {
        let state = self.machine.state();
        let check = FeedToken::check_of(&state.chain);
        let version = SchemaVersion::new(version);
        FeedToken { shard: SHARD, epoch: EPOCH, table: table().id, version, index: state.index, check, skip: 0 }
    }

    fn begin(&self, token: &FeedToken, older: Option<&TableDef>) -> Result<Changes, BadToken> {
        let (tree, applied) = (self.machine.tree().clone(), self.machine.state().index);
        let era = (EPOCH, self.machine.state().epoch_start.index);
        Changes::from_token(&*self.disk, tree, token, era, applied, &|| Ok(older.cloned())).unwrap()
    }

    /// What a reader that goes on from a token gets.
    fn rest(&self, token: &FeedToken, older: Option<&TableDef>) -> Vec<(FeedOp, Option<Value>)> {
        let mut changes = self.begin(token, older).unwrap();
        let end = self.machine.state().index.next();
        let entries = self.disk.entries(SHARD, token.index.next(), end, APPEND_BYTES_MAX).unwrap();
        let parts = changes.read(&entries).unwrap().parts.into_iter();
        let changes = parts.filter_map(|part| match part {
            Part::Change(change) => Some((change.op, change.key.into_iter().next())),
            Part::Columns(_) => None,
        });
        changes.collect()
    }
}

fn put(def: &TableDef, id: i64) -> Transaction {
    let values = [Value::Int(id), Value::Null, Value::Null];
    let write = (keys::row_key(def, &values).unwrap(), Some(row::encode(def, &values).unwrap()));
    Transaction { writes: vec![write], ..Transaction::default() }
}

fn delete(def: &TableDef, id: i64) -> Transaction {
    let key = keys::row_key(def, &[Value::Int(id), Value::Null, Value::Null]).unwrap();
    Transaction { writes: vec![(key, None)], ..Transaction::default() }
}

fn fence(def: &TableDef) -> Transaction {
    Transaction { fences: vec![(def.id, Some(def.clone()))], ..Transaction::default() }
}

/// The table after a TRUNCATE.
fn emptied() -> TableDef {
    TableDef { storage: TableId::new(8), version: SchemaVersion::new(2), ..table() }
}

use FeedOp::{Delete, Insert, Truncate, Update, Upsert};

fn id(id: i64) -> Option<Value> {
    Some(Value::Int(id))
}

#[test]
fn a_truncation_behind_a_forgotten_definition_is_delivered_or_refused() {
    let (old, new) = (table(), emptied());
    let mut replica = Replica::new();
    replica.write(vec![fence(&old)]);
    replica.write(vec![put(&old, 1)]);
    let early = replica.token(1);
    replica.write(vec![put(&old, 2)]);
    replica.trim();
    let token = replica.token(1);
    replica.write(vec![put(&old, 3)]);
    replica.write(vec![put(&old, 2)]);
    replica.write(vec![delete(&old, 1)]);
    replica.write(vec![fence(&new)]);
    replica.write(vec![put(&new, 4)]);

    let all = [(Insert, id(3)), (Update, id(2)), (Delete, id(1)), (Truncate, None), (Insert, id(4))];
    assert_eq!(replica.rest(&token, Some(&old)), all);
    let forgotten = BadToken::Forgotten { at: token.index, version: token.version };
    assert_eq!(replica.begin(&token, None).err(), Some(forgotten.clone()), "never from the definition of now");
    assert_eq!(replica.begin(&token, Some(&new)).err(), Some(forgotten), "nor from another");
    assert!(matches!(replica.begin(&early, Some(&old)).err(), Some(BadToken::NeedsSnapshot { .. })));

    // Purged rows are not there to tell what a write was: nothing is left out for that.
    let gone = Transaction {
        purged: [1, 2, 3].map(|id| keys::row_key_of(&old, &[Value::Int(id)]).unwrap()).to_vec(),
        ..Transaction::default()
    };
    replica.write(vec![gone]);
    let all = [(Upsert, id(3)), (Upsert, id(2)), (Delete, id(1)), (Truncate, None), (Insert, id(4))];
    assert_eq!(replica.rest(&token, Some(&old)), all);

    // The log itself has a definition that came behind its base.
    let later = replica.token(2);
    let third = TableDef { storage: TableId::new(9), version: SchemaVersion::new(3), ..table() };
    replica.write(vec![put(&new, 5), fence(&third)]);
    assert_eq!(replica.rest(&later, None), [(Insert, id(5)), (Truncate, None)]);
}

#[test]
fn a_token_in_the_middle_of_an_entry_that_is_another_here_is_refused() {
    let def = table();
    let mut replica = Replica::new();
    replica.write(vec![fence(&def)]);
    let token = FeedToken { skip: 2, epoch: Epoch { number: 1, id: 7 }, ..replica.token(1) };
    let begun = Epoch { number: 3, id: 1 };
    let membership = (*replica.machine.state().membership).clone();
    replica.entry(Body::Epoch(EpochEntry { epoch: begun, membership }));
    replica.write(vec![put(&def, 1), put(&def, 2), put(&def, 3)]);
    assert!(matches!(replica.begin(&token, None).err(), Some(BadToken::OtherEpoch { .. })));
    let whole = FeedToken { skip: 0, ..token };
    assert_eq!(replica.rest(&whole, None), [(Insert, id(1)), (Insert, id(2)), (Insert, id(3))]);
}

#[test]
fn epochs_of_one_number_are_told_apart() {
    let at = Index::new(9);
    let text = |theirs, ours| BadToken::OtherEpoch { theirs, ours, at }.to_string();
    let other = Epoch { id: 1, ..EPOCH };
    assert!(
        text(EPOCH, other)
            .contains("given in epoch 2 of id 000000000000012c, this is another, of id 0000000000000001,")
    );
    assert!(text(Epoch { number: 1, ..other }, EPOCH).contains("given in epoch 1, this is epoch 2, and"));
    assert!(text(EPOCH, EPOCH).contains("both are in epoch 2, and"));
}
