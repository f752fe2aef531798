//! What follows from a statement's row changes: cascades, then index entries with their uniqueness, then foreign keys.
//!
//! All of it is checked when the whole statement has been evaluated, so `UPDATE t SET id = id + 1` and rows that refer to
//! each other work. Children are found by what they referred to *before* the statement: a key that moves from one parent
//! to another does not drag along children that have just been moved.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use quorate_shared::value::Value;

use super::statement::{CHANGES_MAX, Change, OldRow, Statement, Stop, check_row, too_many_rows};
use super::tables::{ForeignKey, Table};
use crate::bug::{Bug, planted};
use crate::engine::KeyRange;
use crate::error::Rejected;
use crate::expr;
use crate::keys;
use crate::row;
use crate::table::{ColumnPos, FkAction, IndexDef, IndexState, TableDef};

impl<'a> Statement<'a> {
    /// Turns the changes into writes, or refuses the statement.
    pub fn finish(&mut self) -> Result<(), Stop> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.cascade()?;
        let mut writes = std::mem::take(&mut self.effects.writes);
        for change in &self.changes {
            self.remove_keys(change, &mut writes)?;
        }
        for change in &self.changes {
            self.add_keys(change, &mut writes)?;
        }
        self.effects.writes = writes;
        for change in &self.changes {
            self.check_parents(change)?;
        }
        for change in &self.changes {
            self.check_children(change)?;
        }
        Ok(())
    }

    /// ON DELETE and ON UPDATE actions, until nothing more follows.
    fn cascade(&mut self) -> Result<(), Stop> {
        let mut queue: VecDeque<usize> = (0..self.changes.len()).collect();
        // Changes whose columns of a foreign key were set by a cascade rather than by the statement.
        let mut cascaded = BTreeSet::new();
        let mut steps = 0;
        while let Some(at) = queue.pop_front() {
            let Some(Change { table, .. }) = self.changes.get(at) else { continue };
            let table: &'a Table = table;
            for fk in &table.children {
                let Some(Change { old: Some(old), new, .. }) = self.changes.get(at) else { continue };
                let kept = new.as_ref().is_some_and(|new| fk.same_parent(&old.values, new));
                let action = fk.action(new.is_none());
                if kept || matches!(action, FkAction::NoAction | FkAction::Restrict) {
                    continue;
                }
                let (before, after) = (old.values.clone(), new.clone());
                let child = self.table(fk.child)?;
                for row in self.children(fk, child, &before)? {
                    steps += 1;
                    if steps > 2 * CHANGES_MAX {
                        return Err(too_many_rows().into());
                    }
                    if let Some(changed) = self.follow(fk, child, row, after.as_deref(), &mut cascaded)? {
                        queue.push_back(changed);
                    }
                }
            }
        }
        Ok(())
    }

    /// Applies an action to one child; the change, if the child was not that way already.
    fn follow(
        &mut self,
        fk: &ForeignKey,
        child: &'a Table,
        row: OldRow,
        parent: Option<&[Value]>,
        cascaded: &mut BTreeSet<(usize, usize)>,
    ) -> Result<Option<usize>, Stop> {
        let at = match self.by_key.get(&row.key) {
            Some(at) => *at,
            None => {
                let new = row.values.clone();
                self.change_old(child, row, Some(new), false)?
            }
        };
        let Some(change) = self.changes.get_mut(at) else { return Ok(None) };
        let (Some(old), Some(new)) = (&change.old, &mut change.new) else { return Ok(None) };
        if !fk.same_child(&old.values, new) && !cascaded.contains(&(at, fk.position)) {
            return Ok(None); // the statement itself has turned it elsewhere
        }
        let before = new.clone();
        if fk.action(parent.is_none()) == FkAction::Cascade {
            let Some(parent) = parent else {
                change.new = None;
                return Ok(Some(at));
            };
            for &(column, from) in &fk.pairs {
                set_column(&child.def, new, column, parent.get(usize::from(from)).cloned().unwrap_or_default())?;
            }
        } else {
            for &column in &fk.def.columns {
                set_column(&child.def, new, column, Value::Null)?;
            }
        }
        check_row(&child.def, new)?;
        cascaded.insert((at, fk.position));
        // A row that refers to itself would follow itself for ever.
        Ok((*new != before).then_some(at))
    }

    /// The stored rows (as before the statement) that refer to a parent row.
    fn children(&self, fk: &ForeignKey, child: &Table, parent: &[Value]) -> Result<Vec<OldRow>, Stop> {
        let mut found = Vec::new();
        self.each_child(fk, child, parent, |row| {
            found.push(row);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Hands stored rows that refer to a parent row to `each` until it says `false`.
    fn each_child(
        &self,
        fk: &ForeignKey,
        child: &Table,
        parent: &[Value],
        mut each: impl FnMut(OldRow) -> Result<bool, Stop>,
    ) -> Result<(), Stop> {
        if fk.pairs.iter().any(|&(_, p)| parent.get(usize::from(p)).is_none_or(Value::is_null)) {
            return Ok(());
        }
        let Some((index, range)) = child_range(fk, &child.def, parent)? else { return Ok(()) };
        self.latest.scan(&range, |key, value| -> Result<bool, Stop> {
            let row = match index {
                Some(index) => {
                    let row_key = keys::row_key_of_entry(&child.def, index, key, value)?;
                    self.load(child, row_key)?
                }
                None => {
                    let version = self.latest.version(key)?.map(|(version, _)| version).unwrap_or_default();
                    Some(OldRow { key: key.clone(), values: row::decode(&child.def, value)?, version })
                }
            };
            match row {
                Some(row) if fk.refers(&row.values, parent) => each(row),
                _ => Ok(true),
            }
        })
    }

    /// Removes the keys of the row before that the row now does not have.
    fn remove_keys(&self, change: &Change<'_>, writes: &mut BTreeMap<Bytes, Option<Bytes>>) -> Result<(), Stop> {
        let Some(old) = &change.old else { return Ok(()) };
        let def = &*change.table.def;
        if !change.new.as_ref().is_some_and(|new| same(&def.primary_key, &old.values, new)) {
            writes.insert(old.key.clone(), None);
        }
        for index in &def.indexes {
            if change.new.as_ref().is_some_and(|new| same_entry(def, index, &old.values, new)) {
                continue;
            }
            let entry = keys::index_entry(def, index, &old.values)?;
            // While a unique index is being filled, another row may have taken the key first: its entry stays.
            let other = entry.unique
                && index.state == IndexState::Filling
                && self.latest.get(&entry.key)?.is_some_and(|(_, payload)| payload != entry.payload);
            if !other {
                writes.insert(entry.key, None);
            }
        }
        Ok(())
    }

    /// Writes the keys a change's row has now; two rows with one unique key are refused.
    fn add_keys(&self, change: &Change<'_>, writes: &mut BTreeMap<Bytes, Option<Bytes>>) -> Result<(), Stop> {
        let Some(new) = &change.new else { return Ok(()) };
        let def = &*change.table.def;
        let row = row::encode(def, new)?;
        match &change.old {
            Some(old) if same(&def.primary_key, &old.values, new) => {
                writes.insert(old.key.clone(), Some(row));
            }
            _ => {
                let key = keys::row_key(def, new)?;
                if self.taken(&key, writes)? {
                    return Err(duplicate(def, &def.primary_key_name, &def.primary_key, new).into());
                }
                writes.insert(key, Some(row));
            }
        }
        for index in &def.indexes {
            if change.old.as_ref().is_some_and(|old| same_entry(def, index, &old.values, new)) {
                continue;
            }
            if index.state == IndexState::Filling && planted(Bug::SkipFilling) {
                continue;
            }
            let entry = keys::index_entry(def, index, new)?;
            if entry.unique && self.taken(&entry.key, writes)? {
                return Err(duplicate(def, &index.name, &index.columns, new).into());
            }
            writes.insert(entry.key, Some(entry.payload));
        }
        Ok(())
    }

    /// Whether a key has a value when the statement is done.
    fn taken(&self, key: &Bytes, writes: &BTreeMap<Bytes, Option<Bytes>>) -> Result<bool, Stop> {
        Ok(match writes.get(key) {
            Some(value) => value.is_some(),
            None => self.latest.exists(key)?,
        })
    }

    /// Every foreign key of a new or changed row has its parent.
    fn check_parents(&self, change: &Change<'_>) -> Result<(), Stop> {
        let Some(new) = &change.new else { return Ok(()) };
        for fk in &change.table.parents {
            // A reference that was there before is the parent's business: it may not go while it has children.
            if !change.old.as_ref().is_some_and(|old| fk.same_child(&old.values, new)) {
                self.check_parent(&change.table.def, fk, new)?;
            }
        }
        Ok(())
    }

    /// One foreign key of one row has its parent.
    pub fn check_parent(&self, def: &TableDef, fk: &ForeignKey, row: &[Value]) -> Result<(), Stop> {
        let parent = self.tables.get(fk.def.parent).ok();
        let found = match parent {
            Some(parent) => {
                self.latest.depend(parent.changed_at);
                match fk.parent_key(&parent.def, row) {
                    None => return Ok(()),
                    Some(None) => false,
                    Some(Some(key)) => self.taken(&key, &self.effects.writes)?,
                }
            }
            None => fk.def.columns.iter().any(|c| row.get(usize::from(*c)).is_none_or(Value::is_null)),
        };
        if found {
            return Ok(());
        }
        let parent = parent.map_or("", |p| &p.def.name);
        let detail = format!("{} is not present in table \"{parent}\"", key_text(def, &fk.def.columns, row));
        Err(Rejected::NoParent { table: def.name.clone(), constraint: fk.def.name.clone(), detail }.into())
    }

    /// A parent key that is gone has no children left (NO ACTION, RESTRICT).
    fn check_children(&self, change: &Change<'_>) -> Result<(), Stop> {
        let Some(old) = &change.old else { return Ok(()) };
        for fk in &change.table.children {
            let kept = change.new.as_ref().is_some_and(|new| fk.same_parent(&old.values, new));
            if kept || matches!(fk.action(change.new.is_none()), FkAction::Cascade | FkAction::SetNull) {
                continue;
            }
            let child = self.table(fk.child)?;
            let mut left = false;
            self.each_child(fk, child, &old.values, |row| {
                let now = match self.by_key.get(&row.key).and_then(|at| self.changes.get(*at)) {
                    Some(change) => change.new.as_deref(),
                    None => Some(&row.values[..]),
                };
                left = now.is_some_and(|now| fk.refers(now, &old.values));
                Ok(!left)
            })?;
            if left && !self.parent_is_back(change.table, fk, &old.values)? {
                let def = &change.table.def;
                let columns: Vec<ColumnPos> = fk.pairs.iter().map(|(_, parent)| *parent).collect();
                let key = key_text(def, &columns, &old.values);
                return Err(Rejected::HasChildren {
                    table: def.name.clone(),
                    constraint: fk.def.name.clone(),
                    child: child.def.name.clone(),
                    detail: format!("{key} is still referenced from table \"{}\"", child.def.name),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Whether another row has the parent key that one gave up.
    fn parent_is_back(&self, parent: &Table, fk: &ForeignKey, old: &[Value]) -> Result<bool, Stop> {
        let Some(index) = fk.parent_index else { return Ok(false) };
        let values: Vec<Value> =
            fk.pairs.iter().map(|&(_, p)| old.get(usize::from(p)).cloned().unwrap_or_default()).collect();
        let key = keys::equal_range(&parent.def, index, &values)?.start;
        self.taken(&key, &self.effects.writes)
    }
}

/// Where the children of a parent row are: a range of an index of theirs, or all rows where no index serves.
fn child_range<'d>(
    fk: &ForeignKey,
    child: &'d TableDef,
    parent: &[Value],
) -> Result<Option<(Option<&'d IndexDef>, KeyRange)>, Rejected> {
    use quorate_shared::ids::IndexId;
    let Some((index, columns)) = &fk.child_index else {
        return Ok(Some((None, keys::index_range(child.storage, IndexId::PRIMARY))));
    };
    let own = keys::index_columns(child, *index)?;
    let mut values = Vec::with_capacity(columns.len());
    for (&from, &to) in columns.iter().zip(own) {
        let ty = child.columns.get(usize::from(to)).map(|c| c.ty);
        let value = parent.get(usize::from(from)).cloned().unwrap_or_default();
        // A parent's value that no child can have has no children.
        match ty.map(|ty| expr::coerce(value, ty, "")) {
            Some(Ok(value)) => values.push(value),
            _ => return Ok(None),
        }
    }
    let range = keys::equal_range(child, *index, &values)?;
    Ok(Some((child.indexes.iter().find(|i| i.id == *index), range)))
}

fn same(columns: &[ColumnPos], a: &[Value], b: &[Value]) -> bool {
    columns.iter().all(|&c| a.get(usize::from(c)) == b.get(usize::from(c)))
}

/// Whether two images of a row have the same entry in an index.
fn same_entry(def: &TableDef, index: &IndexDef, a: &[Value], b: &[Value]) -> bool {
    // While an index is being filled the row's entry may not be there yet: it is written whatever changes.
    index.state == IndexState::Public && same(&index.columns, a, b) && same(&def.primary_key, a, b)
}

fn set_column(def: &TableDef, row: &mut [Value], column: ColumnPos, value: Value) -> Result<(), Rejected> {
    let at = usize::from(column);
    if let (Some(column), Some(slot)) = (def.columns.get(at), row.get_mut(at)) {
        *slot = expr::coerce(value, column.ty, &column.name)?;
    }
    Ok(())
}

/// `(a, b)=(1, 2)`
pub(super) fn key_text(def: &TableDef, columns: &[ColumnPos], row: &[Value]) -> String {
    let mut names = String::new();
    let mut values = String::new();
    for (i, &c) in columns.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        let at = usize::from(c);
        let ty = def.columns.get(at).map(|column| column.ty);
        let value = row.get(at).unwrap_or(&Value::Null);
        let text = match (value, ty) {
            (Value::Null, _) | (_, None) => "null".to_string(),
            (value, Some(ty)) => value.text(ty),
        };
        names.push_str(separator);
        names.push_str(def.columns.get(at).map_or("?", |column| &column.name));
        values.push_str(separator);
        values.push_str(&text);
    }
    format!("({names})=({values})")
}

pub(super) fn duplicate(def: &TableDef, constraint: &str, columns: &[ColumnPos], row: &[Value]) -> Rejected {
    Rejected::Duplicate {
        table: def.name.clone(),
        constraint: constraint.to_string(),
        detail: key_text(def, columns, row),
    }
}
