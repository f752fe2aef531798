//! The tables of the shard as the sequencer uses them: definitions with their foreign keys resolved in both directions.
//!
//! Invariant: always as of the last staged fence, in flight or applied.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_shared::ids::{Index, IndexId, SchemaVersion, TableId};
use quorate_shared::value::Value;

use crate::error::Rejected;
use crate::expr;
use crate::keys;
use crate::table::{ColumnPos, FkAction, ForeignKeyDef, IndexState, TableDef};

/// A foreign key with the indexes it is checked by.
#[derive(Clone, Debug)]
pub(super) struct ForeignKey {
    /// The table that has it.
    pub child: TableId,
    /// Its position among that table's foreign keys.
    pub position: usize,
    /// As defined.
    pub def: ForeignKeyDef,
    /// The parent's unique index over the referenced columns; `None`: there is none (any more).
    pub parent_index: Option<IndexId>,
    /// Child and parent column for each column of that index, in its order.
    pub pairs: Vec<(ColumnPos, ColumnPos)>,
    /// An index of the child that begins with its columns, and the parent's column for each of them in its order.
    pub child_index: Option<(IndexId, Vec<ColumnPos>)>,
}

impl ForeignKey {
    /// The parent's data key that a child row refers to; `None` if a column is NULL or cannot be a value of the parent.
    pub fn parent_key(&self, parent: &TableDef, child_row: &[Value]) -> Option<Option<bytes::Bytes>> {
        let mut values = Vec::with_capacity(self.pairs.len());
        for &(child, column) in &self.pairs {
            let value = child_row.get(usize::from(child))?;
            if value.is_null() {
                return None;
            }
            values.push((value, parent.columns.get(usize::from(column))?.ty));
        }
        // A value that changes when it becomes one of the parent's type is none of the parent's.
        let cast = |(value, ty): (&Value, _)| {
            let cast = expr::coerce(value.clone(), ty, "").ok()?;
            expr::compare(value, &cast).is_some_and(Ordering::is_eq).then_some(cast)
        };
        let values: Option<Vec<Value>> = values.into_iter().map(cast).collect();
        Some(values.and_then(|v| keys::equal_range(parent, self.parent_index?, &v).ok()).map(|range| range.start))
    }

    /// Whether the referenced columns of two images of a parent row agree.
    pub fn same_parent(&self, a: &[Value], b: &[Value]) -> bool {
        self.pairs.iter().all(|&(_, c)| a.get(usize::from(c)) == b.get(usize::from(c)))
    }

    /// Whether the referencing columns of two images of a child row agree.
    pub fn same_child(&self, a: &[Value], b: &[Value]) -> bool {
        self.pairs.iter().all(|&(c, _)| a.get(usize::from(c)) == b.get(usize::from(c)))
    }

    /// Whether a child row refers to a parent row (as SQL compares them; NULL refers to nothing).
    pub fn refers(&self, child: &[Value], parent: &[Value]) -> bool {
        self.pairs.iter().all(|&(c, p)| match (child.get(usize::from(c)), parent.get(usize::from(p))) {
            (Some(c), Some(p)) => expr::compare(c, p).is_some_and(Ordering::is_eq),
            _ => false,
        })
    }

    /// What happens to children when the parent row is deleted (`true`) or its key changes.
    pub fn action(&self, deleted: bool) -> FkAction {
        if deleted { self.def.on_delete } else { self.def.on_update }
    }
}

/// A table with what refers to it.
#[derive(Debug)]
pub(super) struct Table {
    /// Its definition.
    pub def: Arc<TableDef>,
    /// The entry that defined it; 0 if it is older than this sequencer.
    pub changed_at: Index,
    /// Its own foreign keys.
    pub parents: Vec<ForeignKey>,
    /// Foreign keys, of other tables and its own, that refer to it.
    pub children: Vec<ForeignKey>,
}

/// All tables of the shard.
#[derive(Default, Debug)]
pub(super) struct Tables {
    by_id: BTreeMap<TableId, Table>,
    /// The last entry that removed each table that is gone.
    gone: BTreeMap<TableId, Index>,
}

impl Tables {
    /// From definitions that are applied.
    pub fn new(defs: impl IntoIterator<Item = TableDef>) -> Self {
        let mut tables = Self::default();
        for def in defs {
            let table = Table { def: Arc::new(def), changed_at: Index::default(), parents: vec![], children: vec![] };
            tables.by_id.insert(table.def.id, table);
        }
        tables.resolve();
        tables
    }

    /// The table, or that whoever planned the statement has an old catalog.
    pub fn get(&self, id: TableId) -> Result<&Table, Rejected> {
        self.by_id.get(&id).ok_or(Rejected::StaleCatalog { table: id, current: None })
    }

    /// The version the shard has now, and the entry that made it so.
    pub fn version(&self, id: TableId) -> (Option<SchemaVersion>, Index) {
        match self.by_id.get(&id) {
            Some(table) => (Some(table.def.version), table.changed_at),
            None => (None, self.gone.get(&id).copied().unwrap_or_default()),
        }
    }

    /// The table whose rows are under a storage id.
    pub fn of_storage(&self, storage: TableId) -> Option<&Table> {
        self.by_id.values().find(|t| t.def.storage == storage)
    }

    /// Puts fences into force.
    pub fn fence(&mut self, index: Index, fences: &[(TableId, Option<TableDef>)]) {
        for (id, def) in fences {
            match def {
                Some(def) => {
                    let def = Arc::new(def.clone());
                    self.by_id.insert(*id, Table { def, changed_at: index, parents: vec![], children: vec![] });
                }
                None => {
                    self.by_id.remove(id);
                    self.gone.insert(*id, index);
                }
            }
        }
        self.resolve();
    }

    /// Forgets what was removed by entries that are applied: nothing depends on it any more.
    pub fn applied(&mut self, index: Index) {
        if !self.gone.is_empty() {
            self.gone.retain(|_, at| *at > index);
        }
    }

    fn resolve(&mut self) {
        let mut resolved: Vec<ForeignKey> = Vec::new();
        for child in self.by_id.values() {
            for (position, def) in child.def.foreign_keys.iter().enumerate() {
                let parent = self.by_id.get(&def.parent).map(|t| &*t.def);
                resolved.push(resolve(&child.def, position, def, parent));
            }
        }
        for table in self.by_id.values_mut() {
            table.parents = resolved.iter().filter(|fk| fk.child == table.def.id).cloned().collect();
            table.children = resolved.iter().filter(|fk| fk.def.parent == table.def.id).cloned().collect();
        }
    }
}

/// Whether two lists have the same columns, in any order.
pub(super) fn same_columns(a: &[ColumnPos], b: &[ColumnPos]) -> bool {
    a.len() == b.len() && a.iter().all(|c| b.contains(c))
}

fn resolve(child: &TableDef, position: usize, def: &ForeignKeyDef, parent: Option<&TableDef>) -> ForeignKey {
    let parent_of =
        |c: ColumnPos| def.columns.iter().position(|x| *x == c).and_then(|i| def.parent_columns.get(i).copied());
    let child_of =
        |p: ColumnPos| def.parent_columns.iter().position(|x| *x == p).and_then(|i| def.columns.get(i).copied());
    let parent_index = parent.and_then(|parent| {
        if same_columns(&parent.primary_key, &def.parent_columns) {
            return Some((IndexId::PRIMARY, &parent.primary_key));
        }
        let unique = |i: &&crate::table::IndexDef| i.unique && same_columns(&i.columns, &def.parent_columns);
        parent.indexes.iter().find(unique).map(|i| (i.id, &i.columns))
    });
    let pairs = match &parent_index {
        Some((_, columns)) => columns.iter().filter_map(|&p| Some((child_of(p)?, p))).collect(),
        None => def.columns.iter().copied().zip(def.parent_columns.iter().copied()).collect(),
    };
    let n = def.columns.len();
    let begins = |columns: &[ColumnPos]| columns.len() >= n && same_columns(&columns[..n], &def.columns);
    let in_order = |columns: &[ColumnPos]| columns[..n].iter().filter_map(|&c| parent_of(c)).collect::<Vec<_>>();
    let child_index = if begins(&child.primary_key) {
        Some((IndexId::PRIMARY, in_order(&child.primary_key)))
    } else {
        let usable = |i: &&crate::table::IndexDef| i.state == IndexState::Public && begins(&i.columns);
        child.indexes.iter().find(usable).map(|i| (i.id, in_order(&i.columns)))
    };
    ForeignKey {
        child: child.id,
        position,
        def: def.clone(),
        parent_index: parent_index.map(|(id, _)| id),
        pairs,
        child_index,
    }
}
