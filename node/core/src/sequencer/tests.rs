//! The sequencer with a real machine over an engine in memory: scripts (`testscripts/`) and a comparison with a naive model.

mod harness;
mod model;
mod scripts;
mod text;

use quorate_shared::ids::{ClientId, WriteId};
use quorate_shared::value::Value;

use crate::proposal::{Cell, OnConflict, Op, Proposal};
use crate::sequencer::Decision;

/// Clients that have been silent for hours are forgotten by an entry, others are not; nothing else happens to them.
#[test]
fn idle_clients_are_forgotten() {
    let mut shard = harness::Shard::new();
    let mut def = text::table(1, "t", 1);
    def.columns = vec![text::column("id:bigint!+")];
    def.primary_key = vec![0];
    let table = def.id;
    shard.run(vec![Op::Fence { table, expect: None, def: Some(Box::new(def.clone())) }]);
    let insert = |client: u8, seq| Proposal {
        write: Some(WriteId { client: ClientId([client; 16]), seq }),
        ops: vec![Op::Insert { table, rows: vec![vec![Cell::Next]], on_conflict: OnConflict::Fail }],
        ..Proposal::default()
    };
    for client in 1..=20 {
        shard.propose(insert(client, 1));
    }
    shard.flush();
    shard.now_ms += 2 * 3_600_000;
    for seq in 2..2000 {
        shard.propose(insert(3, seq));
        if seq % 100 == 0 {
            shard.flush();
        }
    }
    shard.flush();
    let left: Vec<ClientId> = shard.machine.state().clients.keys().copied().collect();
    assert_eq!(left, [ClientId([3; 16])]);
    assert!(matches!(shard.propose(insert(3, 1999)), Decision::Duplicate { .. }));
    let next = shard.machine.state().index.next();
    shard.propose(insert(4, 2));
    shard.flush();
    assert_eq!(shard.results[&next].len(), 1);
    assert_eq!(shard.rows(&def).last(), Some(&vec![Value::Int(2019)]));
}
