//! One proposal's evaluation: row changes first, then (in [`super::constraints`]) what follows from them.
//!
//! A statement is a set: every operation sees the rows as they were before it, except that a row inserted by it can
//! conflict with another one it inserts. Nothing here changes the sequencer; the [`Effects`] are staged by it afterwards,
//! so a statement that fails leaves nothing behind.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_shared::ids::{TableId, Timestamp};
use quorate_shared::value::Value;

use super::overlay::Latest;
use super::sequence::Numbers;
use super::tables::{Table, Tables, same_columns};
use crate::error::{Fatal, Rejected};
use crate::expr::{self, Expr};
use crate::keys::{self, KeyError};
use crate::proposal::{Cell, OnConflict, Op};
use crate::row::{self, RowError};
use crate::table::{ColumnPos, DefaultValue, TableDef};

/// Rows one statement may change, cascades included; what they take in an entry is limited as well.
pub(super) const CHANGES_MAX: usize = 200_000;

/// Why an evaluation ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// It is an answer.
    Rejected(Rejected),
    /// The replica cannot go on.
    Fatal(Fatal),
}

impl From<Rejected> for Stop {
    fn from(e: Rejected) -> Self {
        Stop::Rejected(e)
    }
}
impl From<Fatal> for Stop {
    fn from(e: Fatal) -> Self {
        Stop::Fatal(e)
    }
}
impl From<KeyError> for Stop {
    fn from(e: KeyError) -> Self {
        Stop::Fatal(e.into())
    }
}
impl From<RowError> for Stop {
    fn from(e: RowError) -> Self {
        Stop::Fatal(e.into())
    }
}

/// What a statement does.
#[derive(Default, Debug)]
pub(super) struct Effects {
    /// Keys and values, one each.
    pub writes: BTreeMap<Bytes, Option<Bytes>>,
    /// Tables redefined.
    pub fences: Vec<(TableId, Option<TableDef>)>,
    /// Keys removed without history.
    pub purged: Vec<Bytes>,
    /// Numbers given.
    pub numbers: BTreeMap<TableId, Numbers>,
    /// They are to be remembered even if nothing is written.
    pub keep_numbers: bool,
    /// An entry is wanted even if nothing is written.
    pub close: bool,
    /// Rows changed by the statement itself.
    pub rows: u64,
    /// Its rows, if they were asked for.
    pub returned: Vec<Vec<Value>>,
    /// The last number given.
    pub last_id: Option<i64>,
}

/// A row as it was before the statement.
#[derive(Debug)]
pub(super) struct OldRow {
    pub key: Bytes,
    pub values: Vec<Value>,
    pub version: Timestamp,
}

/// What a statement does to one row.
pub(super) struct Change<'a> {
    pub table: &'a Table,
    /// Before; `None`: it is new.
    pub old: Option<OldRow>,
    /// Now; `None`: it is gone.
    pub new: Option<Vec<Value>>,
    /// The statement changed it itself (not a cascade): it counts and is returned.
    pub direct: bool,
}

/// An evaluation under way.
pub(super) struct Statement<'a> {
    pub tables: &'a Tables,
    pub latest: &'a Latest<'a>,
    pub changes: Vec<Change<'a>>,
    /// Rows that were there before and are changed, by data key.
    pub by_key: BTreeMap<Bytes, usize>,
    pub effects: Effects,
    /// Unique keys taken (or given up) by this statement's rows so far; kept only where ON CONFLICT asks.
    claims: BTreeMap<Bytes, Option<usize>>,
    granted: &'a BTreeMap<TableId, Numbers>,
    stored_numbers: &'a dyn Fn(TableId) -> Result<Option<i64>, Fatal>,
}

impl<'a> Statement<'a> {
    /// Nothing evaluated yet. `granted` are the numbers known, `stored_numbers` finds others.
    pub fn new(
        tables: &'a Tables,
        latest: &'a Latest<'a>,
        granted: &'a BTreeMap<TableId, Numbers>,
        stored_numbers: &'a dyn Fn(TableId) -> Result<Option<i64>, Fatal>,
    ) -> Self {
        Self {
            tables,
            latest,
            changes: Vec::new(),
            by_key: BTreeMap::new(),
            effects: Effects::default(),
            claims: BTreeMap::new(),
            granted,
            stored_numbers,
        }
    }

    /// Evaluates the operations and everything that follows from them.
    pub fn run(mut self, ops: Vec<Op>, want_rows: bool) -> Result<Effects, Stop> {
        for op in ops {
            self.op(op)?;
        }
        self.finish()?;
        if want_rows {
            for change in self.changes.iter_mut().filter(|c| c.direct) {
                let row = change.new.take().or_else(|| change.old.take().map(|old| old.values));
                self.effects.returned.extend(row);
            }
        }
        Ok(self.effects)
    }

    fn op(&mut self, op: Op) -> Result<(), Stop> {
        match op {
            Op::Insert { table, rows, on_conflict } => self.insert(self.table(table)?, rows, &on_conflict),
            Op::Update { table, key, seen, set, filter } => {
                self.update(self.table(table)?, key, seen, &set, filter.as_ref())
            }
            Op::Delete { table, key, seen, filter } => self.delete(self.table(table)?, key, seen, filter.as_ref()),
            Op::Fence { table, expect, def } => self.fence(table, expect, def),
            Op::Backfill { table, keys } => self.backfill(self.table(table)?, keys),
            Op::Validate { table, keys, constraint } => self.validate(self.table(table)?, keys, &constraint),
            Op::Purge { storage, limit } => self.purge(storage, limit),
            Op::Put { key, expect, value } => self.put(key, expect.as_ref(), value),
            Op::Close => {
                self.effects.close = true;
                Ok(())
            }
            Op::Restart { table, expect } => {
                self.restart(table, expect);
                Ok(())
            }
        }
    }

    /// A table of this shard.
    pub fn table(&self, id: TableId) -> Result<&'a Table, Stop> {
        let table = self.tables.get(id);
        self.latest.depend(match &table {
            Ok(table) => table.changed_at,
            Err(_) => self.tables.version(id).1,
        });
        Ok(table?)
    }

    /// The stored row under a data key, as it was before the statement.
    pub fn load(&self, table: &Table, key: Bytes) -> Result<Option<OldRow>, Stop> {
        Ok(match self.latest.get(&key)? {
            Some((version, bytes)) => Some(OldRow { values: row::decode(&table.def, &bytes)?, key, version }),
            None => None,
        })
    }

    /// Notes what happens to a row that was there before.
    pub fn change_old(
        &mut self,
        table: &'a Table,
        old: OldRow,
        new: Option<Vec<Value>>,
        direct: bool,
    ) -> Result<usize, Rejected> {
        self.by_key.insert(old.key.clone(), self.changes.len());
        self.push(Change { table, old: Some(old), new, direct })
    }

    fn push(&mut self, change: Change<'a>) -> Result<usize, Rejected> {
        if self.changes.len() >= CHANGES_MAX {
            return Err(too_many_rows());
        }
        self.changes.push(change);
        Ok(self.changes.len() - 1)
    }

    fn insert(&mut self, table: &'a Table, rows: Vec<Vec<Cell>>, on_conflict: &OnConflict) -> Result<(), Stop> {
        let arbiters = match on_conflict {
            OnConflict::Fail => Vec::new(),
            OnConflict::Nothing(target) | OnConflict::Update { target, .. } => arbiters(&table.def, target.as_deref())?,
            OnConflict::Replace => arbiters(&table.def, None)?,
        };
        for cells in rows {
            let new = self.new_row(table, cells)?;
            match on_conflict {
                OnConflict::Fail => {
                    self.push(Change { table, old: None, new: Some(new), direct: true })?;
                    self.effects.rows += 1;
                }
                OnConflict::Nothing(_) => {
                    if self.holder(table, &arbiters, &new)?.is_none() {
                        self.insert_claiming(table, &arbiters, new)?;
                    }
                }
                OnConflict::Replace => {
                    while let Some(holder) = self.holder(table, &arbiters, &new)? {
                        self.remove_holder(table, &arbiters, holder)?;
                    }
                    self.insert_claiming(table, &arbiters, new)?;
                }
                OnConflict::Update { target, set, filter } => match self.holder(table, &arbiters, &new)? {
                    None => self.insert_claiming(table, &arbiters, new)?,
                    Some(holder) => {
                        let once = target.is_some();
                        self.update_holder(table, &arbiters, holder, &new, (set, filter.as_ref()), once)?;
                    }
                },
            }
        }
        Ok(())
    }

    /// A row from its cells: numbers given, every value coerced, NOT NULL and CHECKs tested.
    fn new_row(&mut self, table: &Table, cells: Vec<Cell>) -> Result<Vec<Value>, Stop> {
        let def = &*table.def;
        if cells.len() != def.columns.len() {
            return Err(Rejected::StaleCatalog { table: def.id, current: Some(def.version) }.into());
        }
        let mut row = Vec::with_capacity(cells.len());
        // A hidden row id and a SERIAL column of one row share their number, so that the visible ones stay dense.
        let mut given = None;
        for (cell, column) in cells.into_iter().zip(&def.columns) {
            let value = match cell {
                _ if column.dropped => Value::Null,
                Cell::Value(value) => expr::coerce(value, column.ty, &column.name)?,
                Cell::Next => {
                    let number = match given {
                        Some(number) => number,
                        None => self.numbers(def)?.next().ok_or_else(|| no_more_numbers(def))?,
                    };
                    given = Some(number);
                    if !column.hidden {
                        self.effects.last_id = Some(number);
                    }
                    row.push(expr::coerce(Value::Int(number), column.ty, &column.name)?);
                    continue;
                }
            };
            if column.default == DefaultValue::Sequence
                && let Value::Int(number) = value
            {
                self.numbers(def)?.used(number);
            }
            row.push(value);
        }
        check_row(def, &row)?;
        Ok(row)
    }

    /// The numbers of a table, as this statement leaves them.
    pub fn numbers(&mut self, def: &TableDef) -> Result<&mut Numbers, Stop> {
        use std::collections::btree_map::Entry;
        match self.effects.numbers.entry(def.id) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let known = match self.granted.get(&def.id) {
                    Some(numbers) => *numbers,
                    None => Numbers::stored((self.stored_numbers)(def.id)?),
                };
                Ok(entry.insert(known))
            }
        }
    }

    fn update(
        &mut self,
        table: &'a Table,
        key: Vec<Value>,
        seen: Option<Timestamp>,
        set: &[(ColumnPos, Expr)],
        filter: Option<&Expr>,
    ) -> Result<(), Stop> {
        let Some(old) = self.target(table, key, seen, filter)? else { return Ok(()) };
        let new = apply_set(&table.def, &old.values, set, None)?;
        check_row(&table.def, &new)?;
        self.change_old(table, old, Some(new), true)?;
        self.effects.rows += 1;
        Ok(())
    }

    fn delete(
        &mut self,
        table: &'a Table,
        key: Vec<Value>,
        seen: Option<Timestamp>,
        filter: Option<&Expr>,
    ) -> Result<(), Stop> {
        let Some(old) = self.target(table, key, seen, filter)? else { return Ok(()) };
        self.change_old(table, old, None, true)?;
        self.effects.rows += 1;
        Ok(())
    }

    /// The row an UPDATE or DELETE means, unless it is not there, not what was seen, filtered out, or done already.
    fn target(
        &self,
        table: &Table,
        key: Vec<Value>,
        seen: Option<Timestamp>,
        filter: Option<&Expr>,
    ) -> Result<Option<OldRow>, Stop> {
        let key = row_key(&table.def, key)?;
        if self.by_key.contains_key(&key) {
            return Ok(None);
        }
        let old = self.load(table, key)?;
        if let Some(seen) = seen
            && old.as_ref().is_none_or(|old| old.version != seen)
        {
            return Err(Rejected::Conflict.into());
        }
        let Some(old) = old else { return Ok(None) };
        match filter {
            Some(filter) if !expr::is_true(filter, &old.values, None)? => Ok(None),
            _ => Ok(Some(old)),
        }
    }
}

/// ON CONFLICT.
impl<'a> Statement<'a> {
    /// The row that has one of the unique keys this row wants: a change of this statement, or a stored row.
    fn holder(&self, table: &Table, arbiters: &[Arbiter<'_>], row: &[Value]) -> Result<Option<Holder>, Stop> {
        for arbiter in arbiters {
            let Some(key) = arbiter.key(&table.def, row)? else { continue };
            match self.claims.get(&key) {
                Some(Some(change)) => return Ok(Some(Holder::Change(*change))),
                Some(None) => continue,
                None => {}
            }
            let Some((version, value)) = self.latest.get(&key)? else { continue };
            let old = match arbiter {
                Arbiter::Primary => OldRow { values: row::decode(&table.def, &value)?, key, version },
                Arbiter::Index(index) => {
                    let row_key = keys::row_key_of_entry(&table.def, index, &key, &value)?;
                    let missing = || Fatal::new("follow an index", "its row is not there");
                    self.load(table, row_key)?.ok_or_else(missing)?
                }
            };
            match self.by_key.get(&old.key) {
                None => return Ok(Some(Holder::Stored(old))),
                Some(at) if self.changes.get(*at).is_some_and(|c| c.new.is_some()) => {
                    return Ok(Some(Holder::Change(*at)));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    fn insert_claiming(&mut self, table: &'a Table, arbiters: &[Arbiter<'_>], new: Vec<Value>) -> Result<(), Stop> {
        let change = self.push(Change { table, old: None, new: Some(new), direct: true })?;
        self.effects.rows += 1;
        self.claim(arbiters, change, None)
    }

    /// Notes the unique keys of a change's row, and that it gave up those of the row before.
    fn claim(&mut self, arbiters: &[Arbiter<'_>], at: usize, before: Option<&[Value]>) -> Result<(), Stop> {
        let Some(change) = self.changes.get(at) else { return Ok(()) };
        let def = &change.table.def;
        for arbiter in arbiters {
            if let Some(before) = before
                && let Some(key) = arbiter.key(def, before)?
            {
                self.claims.insert(key, None);
            }
            if let Some(new) = &change.new
                && let Some(key) = arbiter.key(def, new)?
            {
                self.claims.insert(key, Some(at));
            }
        }
        Ok(())
    }

    /// REPLACE: the row in the way is deleted.
    fn remove_holder(&mut self, table: &'a Table, arbiters: &[Arbiter<'_>], holder: Holder) -> Result<(), Stop> {
        let (at, before) = match holder {
            Holder::Stored(old) => {
                let before = old.values.clone();
                (self.change_old(table, old, None, false)?, before)
            }
            Holder::Change(at) => match self.changes.get_mut(at) {
                Some(change) => {
                    // A row inserted by this very statement vanishes without a trace.
                    change.direct = false;
                    (at, change.new.take().unwrap_or_default())
                }
                None => return Ok(()),
            },
        };
        self.claim(arbiters, at, Some(&before))
    }

    fn update_holder(
        &mut self,
        table: &'a Table,
        arbiters: &[Arbiter<'_>],
        holder: Holder,
        excluded: &[Value],
        (set, filter): (&[(ColumnPos, Expr)], Option<&Expr>),
        once: bool,
    ) -> Result<(), Stop> {
        let before = match &holder {
            Holder::Stored(old) => old.values.clone(),
            Holder::Change(_) if once => {
                let message = "ON CONFLICT DO UPDATE command cannot affect row a second time";
                return Err(expr::value_error("21000", message).into());
            }
            Holder::Change(at) => self.changes.get(*at).and_then(|c| c.new.clone()).unwrap_or_default(),
        };
        if let Some(filter) = filter
            && !expr::is_true(filter, &before, Some(excluded))?
        {
            return Ok(());
        }
        let new = apply_set(&table.def, &before, set, Some(excluded))?;
        check_row(&table.def, &new)?;
        let at = match holder {
            Holder::Stored(old) => self.change_old(table, old, Some(new), true)?,
            Holder::Change(at) => {
                if let Some(change) = self.changes.get_mut(at) {
                    change.new = Some(new);
                }
                at
            }
        };
        self.effects.rows += 1;
        self.claim(arbiters, at, Some(&before))
    }
}

/// Who has a unique key.
enum Holder {
    Change(usize),
    Stored(OldRow),
}

/// A unique key that decides ON CONFLICT.
enum Arbiter<'d> {
    Primary,
    Index(&'d crate::table::IndexDef),
}

impl Arbiter<'_> {
    /// The key of a row; `None` if a NULL keeps it from conflicting with anything.
    fn key(&self, def: &TableDef, row: &[Value]) -> Result<Option<Bytes>, Rejected> {
        match self {
            Arbiter::Primary => keys::row_key(def, row).map(Some),
            Arbiter::Index(index) => {
                let entry = keys::index_entry(def, index, row)?;
                Ok(entry.unique.then_some(entry.key))
            }
        }
    }
}

/// The unique keys that an ON CONFLICT means: those over the target's columns, or all.
fn arbiters<'d>(def: &'d TableDef, target: Option<&[ColumnPos]>) -> Result<Vec<Arbiter<'d>>, Rejected> {
    let meant = |columns: &[ColumnPos]| target.is_none_or(|target| same_columns(columns, target));
    let mut found = Vec::new();
    if meant(&def.primary_key) {
        found.push(Arbiter::Primary);
    }
    let unique = def.indexes.iter().filter(|i| i.unique && meant(&i.columns));
    found.extend(unique.map(Arbiter::Index));
    if found.is_empty() {
        let message = "there is no unique or exclusion constraint matching the ON CONFLICT specification";
        return Err(expr::value_error("42P10", message));
    }
    Ok(found)
}

/// A row with new values, each evaluated over the row before and coerced to its column.
fn apply_set(
    def: &TableDef,
    before: &[Value],
    set: &[(ColumnPos, Expr)],
    excluded: Option<&[Value]>,
) -> Result<Vec<Value>, Rejected> {
    let mut new = before.to_vec();
    for (position, e) in set {
        let at = usize::from(*position);
        let (Some(column), Some(slot)) = (def.columns.get(at), new.get_mut(at)) else {
            return Err(Rejected::StaleCatalog { table: def.id, current: Some(def.version) });
        };
        *slot = expr::coerce(expr::eval(e, before, excluded)?, column.ty, &column.name)?;
    }
    for (slot, _) in new.iter_mut().zip(&def.columns).filter(|(_, column)| column.dropped) {
        *slot = Value::Null;
    }
    Ok(new)
}

/// NOT NULL and CHECKs of one row.
pub(super) fn check_row(def: &TableDef, row: &[Value]) -> Result<(), Rejected> {
    for (at, (column, value)) in def.columns.iter().zip(row).enumerate() {
        if value.is_null() && !column.dropped && (column.not_null || is_key(def, at)) {
            return Err(Rejected::NotNull { table: def.name.clone(), column: column.name.clone() });
        }
    }
    for check in &def.checks {
        if !expr::passes(&check.expr, row)? {
            return Err(Rejected::Check { table: def.name.clone(), constraint: check.name.clone() });
        }
    }
    Ok(())
}

fn is_key(def: &TableDef, column: usize) -> bool {
    def.primary_key.iter().any(|c| usize::from(*c) == column)
}

/// The data key of a row named by its primary key.
pub(super) fn row_key(def: &TableDef, key: Vec<Value>) -> Result<Bytes, Rejected> {
    let mut exact = Vec::with_capacity(key.len());
    for (value, &column) in key.into_iter().zip(&def.primary_key) {
        exact.push(match def.columns.get(usize::from(column)) {
            Some(column) => expr::coerce(value, column.ty, &column.name)?,
            None => value,
        });
    }
    keys::row_key_of(def, &exact)
}

pub(super) fn too_many_rows() -> Rejected {
    let message = format!("the statement changes more than {CHANGES_MAX} rows, those its foreign keys change included");
    expr::value_error("54000", message)
}

fn no_more_numbers(def: &TableDef) -> Rejected {
    expr::value_error("2200H", format!("the numbers of table \"{}\" are used up", def.name))
}
