//! What DDL proposes: new definitions, filling and validating them, removing what nobody uses, catalog keys.
//!
//! Every one of these is idempotent, because a job's step may be repeated by another node.

use bytes::Bytes;
use quorate_shared::ids::{IndexId, SchemaVersion, TableId};
use quorate_shared::value::Value;

use super::constraints::duplicate;
use super::sequence::Numbers;
use super::statement::{Statement, Stop, row_key};
use super::tables::Table;
use crate::error::Rejected;
use crate::expr;
use crate::keys;
use crate::table::{DefaultValue, IndexState, TableDef};

/// Keys removed in one step at most. Their history goes by itself, when it is older than the horizon.
const PURGE_KEYS_MAX: usize = 10_000;

impl Statement<'_> {
    /// A definition comes into force with this entry.
    pub fn fence(
        &mut self,
        table: TableId,
        expect: Option<SchemaVersion>,
        def: Option<Box<TableDef>>,
    ) -> Result<(), Stop> {
        let (current, changed_at) = self.tables.version(table);
        self.latest.depend(changed_at);
        let there = self.tables.get(table).ok().map(|t| &*t.def);
        if there == def.as_deref() {
            return Ok(()); // done already
        }
        if current != expect || def.as_ref().is_some_and(|def| def.id != table) {
            return Err(Rejected::StaleCatalog { table, current }.into());
        }
        self.effects.fences.push((table, def.map(|def| *def)));
        Ok(())
    }

    /// Numbers start again at 1, unless the fence beside it has come into force before.
    pub fn restart(&mut self, table: TableId, expect: SchemaVersion) {
        let (current, changed_at) = self.tables.version(table);
        self.latest.depend(changed_at);
        if current == Some(expect) {
            self.effects.numbers.insert(table, Numbers::restarted());
        }
    }

    /// Writes the entries of these rows in the indexes that are being filled; numbers in a column that counts by itself
    /// are taken note of, for a column that has not always done so.
    pub fn backfill(&mut self, table: &Table, rows: Vec<Vec<Value>>) -> Result<(), Stop> {
        let def = &*table.def;
        for key in rows {
            let Some(old) = self.load(table, row_key(def, key)?)? else { continue };
            for index in def.indexes.iter().filter(|i| i.state == IndexState::Filling) {
                let entry = keys::index_entry(def, index, &old.values)?;
                let there = match self.effects.writes.get(&entry.key) {
                    Some(value) => value.clone(),
                    None => self.latest.get(&entry.key)?.map(|(_, payload)| payload),
                };
                match there {
                    Some(payload) if payload == entry.payload => {}
                    Some(_) => return Err(duplicate(def, &index.name, &index.columns, &old.values).into()),
                    None => drop(self.effects.writes.insert(entry.key, Some(entry.payload))),
                }
            }
            for (column, value) in def.columns.iter().zip(&old.values) {
                if let (DefaultValue::Sequence, false, Value::Int(number)) = (&column.default, column.dropped, value) {
                    self.numbers(def)?.used(*number);
                    self.effects.keep_numbers = true;
                }
            }
            self.effects.rows += 1;
        }
        Ok(())
    }

    /// Checks these rows against one constraint: a CHECK, a foreign key, or (by the column's name) NOT NULL.
    pub fn validate(&mut self, table: &Table, rows: Vec<Vec<Value>>, constraint: &str) -> Result<(), Stop> {
        let def = &*table.def;
        let check = def.checks.iter().find(|c| c.name == constraint);
        let fk = table.parents.iter().find(|fk| fk.def.name == constraint);
        let column = def.columns.iter().position(|c| !c.dropped && c.name == constraint);
        if check.is_none() && fk.is_none() && column.is_none() {
            return Err(Rejected::StaleCatalog { table: def.id, current: Some(def.version) }.into());
        }
        for key in rows {
            let Some(row) = self.load(table, row_key(def, key)?)? else { continue };
            if let Some(check) = check {
                if !expr::passes(&check.expr, &row.values)? {
                    let (table, constraint) = (def.name.clone(), check.name.clone());
                    return Err(Rejected::Check { table, constraint }.into());
                }
            } else if let Some(fk) = fk {
                self.check_parent(def, fk, &row.values)?;
            } else if let Some(at) = column
                && row.values.get(at).is_none_or(Value::is_null)
            {
                let column = def.columns.get(at).map_or_else(String::new, |c| c.name.clone());
                return Err(Rejected::NotNull { table: def.name.clone(), column }.into());
            }
            self.effects.rows += 1;
        }
        Ok(())
    }

    /// Removes keys of a storage no table uses, or (of one in use) of indexes that have been dropped.
    pub fn purge(&mut self, storage: TableId, limit: u32) -> Result<(), Stop> {
        let limit = PURGE_KEYS_MAX.min(limit as usize);
        let mut keys_left = limit;
        let mut ranges = Vec::new();
        match self.tables.of_storage(storage) {
            None => ranges.push(keys::storage_range(storage)),
            Some(table) => {
                self.latest.depend(table.changed_at);
                let def = &*table.def;
                let gone =
                    (1..def.next_index.get()).map(IndexId::new).filter(|id| !def.indexes.iter().any(|i| i.id == *id));
                ranges.extend(gone.map(|id| keys::index_range(storage, id)));
            }
        }
        for range in ranges {
            let found = self.latest.physical(&range, keys_left)?;
            keys_left -= found.len().min(keys_left);
            self.effects.purged.extend(found);
            if keys_left == 0 {
                break;
            }
        }
        self.effects.rows += self.effects.purged.len() as u64;
        Ok(())
    }

    /// Writes a catalog key if it is what the proposer saw.
    pub fn put(&mut self, key: Bytes, expect: Option<&Bytes>, value: Option<Bytes>) -> Result<(), Stop> {
        if !keys::is_catalog(&key) {
            return Err(expr::value_error("XX000", "not a catalog key").into());
        }
        let current = match self.effects.writes.get(&key) {
            Some(value) => value.clone(),
            None => self.latest.get(&key)?.map(|(_, value)| value),
        };
        if current.as_ref() != expect {
            return Err(Rejected::CatalogChanged.into());
        }
        self.effects.writes.insert(key, value);
        self.effects.rows += 1;
        Ok(())
    }
}
