//! Random statements against a model that scans everything: the same answers, the same rows, the same index entries.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_shared::value::Value;

use super::harness::Shard;
use super::text;
use crate::error::Rejected;
use crate::expr::Expr;
use crate::proposal::{Cell, OnConflict, Op};
use crate::sequencer::Decision;
use crate::table::{FkAction, TableDef};

const PARENT: usize = 0;
const CHILD: usize = 1;

/// `parent (id, code UNIQUE, n)` and `child (id, parent -> parent.id, UNIQUE (parent, n), n)`.
fn tables(on_delete: FkAction, on_update: FkAction) -> [TableDef; 2] {
    let mut parent = text::table(1, "parent", 1);
    parent.columns = ["id:bigint!", "code:int", "n:int"].map(text::column).to_vec();
    parent.primary_key = vec![0];
    text::index(&mut parent, true, "code");
    text::index(&mut parent, false, "n");
    let mut child = text::table(2, "child", 1);
    child.columns = ["id:bigint!", "parent:int", "n:int"].map(text::column).to_vec();
    child.primary_key = vec![0];
    text::index(&mut child, true, "parent,n");
    let parent_def = parent.clone();
    text::foreign_key(&mut child, "parent>parent(id)", |_| parent_def.clone());
    child.foreign_keys[0].on_delete = on_delete;
    child.foreign_keys[0].on_update = on_update;
    [parent, child]
}

#[derive(Clone, Debug)]
enum Step {
    Insert {
        table: usize,
        rows: Vec<[Option<i64>; 3]>,
        nothing: bool,
    },
    /// `SET column = column + by` for several rows.
    Shift {
        table: usize,
        keys: Vec<i64>,
        column: u16,
        by: i64,
    },
    Set {
        table: usize,
        key: i64,
        column: u16,
        to: Option<i64>,
    },
    Delete {
        table: usize,
        keys: Vec<i64>,
    },
    /// Rows for `child`, each in place of all that are in its way.
    Replace {
        rows: Vec<Row>,
    },
    /// Rows for `child`; for an `id` that is there, `parent = excluded.parent, n = n + excluded.n`.
    Upsert {
        rows: Vec<Row>,
    },
    Seal,
    Apply,
    Restart,
}

type Row = [Option<i64>; 3];

#[derive(Clone, Default)]
struct Model {
    tables: [BTreeMap<i64, Row>; 2],
}

impl Model {
    fn step(&mut self, step: &Step, on_delete: FkAction, on_update: FkAction) -> Result<u64, ()> {
        let mut next = self.clone();
        let mut rows = 0;
        match step {
            Step::Insert { table, rows: new, nothing } => {
                for row in new {
                    let id = row[0].ok_or(())?;
                    let mut with = next.clone();
                    let taken = with.tables[*table].contains_key(&id) || {
                        with.tables[*table].insert(id, *row);
                        !with.unique(*table)
                    };
                    match (taken, nothing) {
                        (true, true) => {}
                        (true, false) => return Err(()),
                        (false, _) => {
                            next = with;
                            rows += 1;
                        }
                    }
                }
            }
            Step::Shift { table, keys, column, by } => {
                let set = |row: &mut Row| row[usize::from(*column)] = row[usize::from(*column)].map(|v| v + by);
                rows = next.update(*table, keys, set, on_update)?;
            }
            Step::Set { table, key, column, to } => {
                rows = next.update(*table, &[*key], |row| row[usize::from(*column)] = *to, on_update)?;
            }
            Step::Delete { table, keys } => {
                for key in keys {
                    if next.tables[*table].remove(key).is_some() {
                        rows += 1;
                        if *table == PARENT {
                            next.orphan(*key, None, on_delete);
                        }
                    }
                }
            }
            Step::Replace { rows: new } => {
                for row in new {
                    let id = row[0].ok_or(())?;
                    let pair = |r: &Row| r[1].zip(r[2]);
                    next.tables[CHILD].retain(|k, r| *k != id && (pair(r).is_none() || pair(r) != pair(row)));
                    next.tables[CHILD].insert(id, *row);
                    rows += 1;
                }
            }
            Step::Upsert { rows: new } => {
                let mut touched = Vec::new();
                for row in new {
                    let id = row[0].ok_or(())?;
                    if touched.contains(&id) {
                        return Err(());
                    }
                    touched.push(id);
                    let n = |old: &Row| old[2].zip(row[2]).map(|(a, b)| a + b);
                    let now = next.tables[CHILD].get(&id).map_or(*row, |old| [Some(id), row[1], n(old)]);
                    next.tables[CHILD].insert(id, now);
                    rows += 1;
                }
            }
            Step::Seal | Step::Apply | Step::Restart => {}
        }
        if !next.valid() {
            return Err(());
        }
        *self = next;
        Ok(rows)
    }

    fn update(&mut self, table: usize, keys: &[i64], set: impl Fn(&mut Row), action: FkAction) -> Result<u64, ()> {
        let mut moved = Vec::new();
        let mut seen = Vec::new();
        for key in keys {
            if !seen.contains(key)
                && let Some(old) = self.tables[table].remove(key)
            {
                seen.push(*key);
                let mut new = old;
                set(&mut new);
                moved.push((*key, new));
            }
        }
        let rows = moved.len() as u64;
        let before = self.tables[CHILD].clone();
        for (key, new) in moved {
            let id = new[0].ok_or(())?;
            if self.tables[table].insert(id, new).is_some() {
                return Err(());
            }
            if table == PARENT && id != key && matches!(action, FkAction::Cascade | FkAction::SetNull) {
                let to = if action == FkAction::Cascade { Some(id) } else { None };
                for (child, _) in before.iter().filter(|(_, row)| row[1] == Some(key)) {
                    if let Some(row) = self.tables[CHILD].get_mut(child) {
                        row[1] = to;
                    }
                }
            }
        }
        Ok(rows)
    }

    fn orphan(&mut self, key: i64, to: Option<i64>, action: FkAction) {
        match action {
            FkAction::Cascade => self.tables[CHILD].retain(|_, row| row[1] != Some(key)),
            FkAction::SetNull => {
                self.tables[CHILD].values_mut().filter(|row| row[1] == Some(key)).for_each(|row| row[1] = to);
            }
            FkAction::NoAction | FkAction::Restrict => {}
        }
    }

    fn unique(&self, table: usize) -> bool {
        let mut seen = Vec::new();
        self.tables[table].values().all(|row| {
            let key = if table == PARENT { vec![row[1]] } else { vec![row[1], row[2]] };
            if key.contains(&None) {
                return true;
            }
            let new = !seen.contains(&key);
            seen.push(key);
            new
        })
    }

    fn valid(&self) -> bool {
        let ints = |row: &Row| row[1..].iter().flatten().all(|v| i32::try_from(*v).is_ok());
        self.unique(PARENT)
            && self.unique(CHILD)
            && self.tables.iter().flat_map(|t| t.values()).all(ints)
            && self.tables[CHILD].values().all(|row| row[1].is_none_or(|p| self.tables[PARENT].contains_key(&p)))
    }
}

fn ops(defs: &[TableDef; 2], step: &Step) -> Vec<Op> {
    let value = |v: &Option<i64>| v.map_or(Value::Null, Value::Int);
    let insert = |table: usize, rows: &[Row], on_conflict| Op::Insert {
        table: defs[table].id,
        rows: rows.iter().map(|row| row.iter().map(|v| Cell::Value(value(v))).collect()).collect(),
        on_conflict,
    };
    match step {
        Step::Insert { table, rows, nothing } => {
            let on_conflict = if *nothing { OnConflict::Nothing(None) } else { OnConflict::Fail };
            vec![insert(*table, rows, on_conflict)]
        }
        Step::Shift { table, keys, column, by } => {
            let add = Expr::Binary(
                crate::expr::BinaryOp::Add,
                Box::new(Expr::Column(*column)),
                Box::new(Expr::Value(Value::Int(*by))),
            );
            let update = |key: &i64| Op::Update {
                table: defs[*table].id,
                key: vec![Value::Int(*key)],
                seen: None,
                set: vec![(*column, add.clone())],
                filter: None,
            };
            keys.iter().map(update).collect()
        }
        Step::Set { table, key, column, to } => vec![Op::Update {
            table: defs[*table].id,
            key: vec![Value::Int(*key)],
            seen: None,
            set: vec![(*column, Expr::Value(value(to)))],
            filter: None,
        }],
        Step::Delete { table, keys } => {
            let delete = |key: &i64| Op::Delete {
                table: defs[*table].id,
                key: vec![Value::Int(*key)],
                seen: None,
                filter: None,
            };
            keys.iter().map(delete).collect()
        }
        Step::Replace { rows } => vec![insert(CHILD, rows, OnConflict::Replace)],
        Step::Upsert { rows } => {
            let sum = Expr::Binary(crate::expr::BinaryOp::Add, Box::new(Expr::Column(2)), Box::new(Expr::Excluded(2)));
            let set = vec![(1, Expr::Excluded(1)), (2, sum)];
            vec![insert(CHILD, rows, OnConflict::Update { target: Some(vec![0]), set, filter: None })]
        }
        Step::Seal | Step::Apply | Step::Restart => vec![],
    }
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0..8i64;
    let maybe = || prop::option::weighted(0.85, 0..8i64);
    let keys = || prop::collection::vec(0..8i64, 1..5);
    let row = (small.clone(), maybe(), maybe()).prop_map(|(id, a, b)| [Some(id), a, b]);
    let rows = || prop::collection::vec(row.clone(), 1..4);
    prop_oneof![
        2 => rows().prop_map(|rows| Step::Replace { rows }),
        2 => rows().prop_map(|rows| Step::Upsert { rows }),
        6 => (0..2usize, rows(), any::<bool>())
            .prop_map(|(table, rows, nothing)| Step::Insert { table, rows, nothing }),
        3 => (0..2usize, keys(), 0..3u16, -2..3i64)
            .prop_map(|(table, keys, column, by)| Step::Shift { table, keys, column, by }),
        3 => (0..2usize, small, 0..3u16, maybe())
            .prop_map(|(table, key, column, to)| Step::Set { table, key, column, to }),
        3 => (0..2usize, keys()).prop_map(|(table, keys)| Step::Delete { table, keys }),
        2 => Just(Step::Seal),
        2 => Just(Step::Apply),
        1 => Just(Step::Restart),
    ]
}

fn action() -> impl Strategy<Value = FkAction> {
    prop_oneof![Just(FkAction::NoAction), Just(FkAction::Restrict), Just(FkAction::Cascade), Just(FkAction::SetNull)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_model(on_delete in action(), on_update in action(), steps in prop::collection::vec(step(), 1..40)) {
        let defs = tables(on_delete, on_update);
        let mut shard = Shard::new();
        for def in &defs {
            shard.run(vec![Op::Fence { table: def.id, expect: None, def: Some(Box::new(def.clone())) }]);
        }
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Seal => shard.seal(),
                Step::Apply => {
                    shard.seal();
                    shard.apply(1, true);
                }
                Step::Restart => shard.restart(),
                _ => {
                    let want = model.step(step, on_delete, on_update);
                    let got = match shard.run(ops(&defs, step)) {
                        Decision::Staged { index, position } => {
                            shard.seal();
                            Ok(shard.results[&index][position].rows)
                        }
                        Decision::Answer { result, .. } => match result {
                            Ok(result) => Ok(result.rows),
                            Err(Rejected::TooLarge { .. } | Rejected::Conflict) => panic!("not expected here"),
                            Err(_) => Err(()),
                        },
                        Decision::Duplicate { .. } => panic!("no write ids here"),
                    };
                    prop_assert_eq!(got, want, "{:?}", step);
                }
            }
        }
        shard.flush();
        for (def, want) in defs.iter().zip(&model.tables) {
            let want: Vec<Vec<Value>> =
                want.values().map(|row| row.iter().map(|v| v.map_or(Value::Null, Value::Int)).collect()).collect();
            prop_assert_eq!(shard.rows(def), want);
            prop_assert!(shard.verify(def).is_ok(), "{:?}", shard.verify(def));
        }
    }
}
