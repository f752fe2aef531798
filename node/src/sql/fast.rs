//! The fast path: statements whose keys are all given go straight from the parsed statement to the shard.
//!
//! `SELECT columns FROM t WHERE pk = …`, `UPDATE`/`DELETE … WHERE pk = … [AND more]` and `INSERT … VALUES`. A [`FastPlan`]
//! holds what depends on the catalog only; a prepared statement keeps it for as long as [`FastPlan::is_current`], so that
//! executing costs no parsing and no catalog walk.
//!
//! Invariants: a plan gives what the slow path would, or `None` and the slow path is taken; a value that cannot equal a
//! key (NULL, a fraction for an INT) finds no row.

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::catalog::{Catalog, TableDesc};
use quorate_core::expr::Expr;
use quorate_core::keys;
use quorate_core::mvcc::Snapshot;
use quorate_core::proposal::Op;
use quorate_core::row::Projection;
use quorate_core::table::{ColumnPos, TableDef};
use quorate_shared::error::WireError;
use quorate_shared::ids::{CatalogVersion, DatabaseId, ShardId};
use quorate_shared::value::{Decimal, SqlType, Value};
use quorate_shared::wire::{Column, Done};
use sqlparser::ast::{
    self, BinaryOperator, Delete, Expr as Ast, FromTable, GroupByExpr, Insert, LimitClause, Query, Select, SelectItem,
    SetExpr, Statement, TableFactor, TableWithJoins, Update,
};

use super::Sink;
use super::bind::{self, Scope, Unbound};
use super::coerce::coerce;
use super::insert::{self, InsertPlan};
use super::reject;
use super::returning::{Item, Returning};
use super::write::{self, Attempts, WriteContext};

/// Keys of one statement that are worth a fast path of several operations.
const KEYS_MAX: usize = 1000;

/// A statement ready to be executed without DataFusion.
#[derive(Clone, Debug)]
pub struct FastPlan {
    catalog: CatalogVersion,
    table: Arc<TableDesc>,
    kind: Kind,
    columns: Vec<Column>,
    params: Vec<Option<SqlType>>,
    /// Key and bytes of the definition in the shard that it was planned with.
    fence: (Bytes, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Kind {
    Read { key: Vec<Slot>, projection: Projection },
    Insert(Box<InsertPlan>),
    Change { keys: Vec<Vec<Slot>>, name: String },
}

/// A key column's value.
#[derive(Clone, Debug, PartialEq)]
enum Slot {
    /// Given in the text.
    Constant(Value),
    /// `$n`, from 0.
    Param(usize),
}

/// What a read found.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The row, projected.
    Row(Vec<Value>),
    /// No such row.
    Nothing,
    /// The row was written under a newer schema than the plan's: take a newer catalog and plan again.
    Stale,
}

impl FastPlan {
    /// Plans a statement with `params` placeholders; `None`: not for the fast path.
    ///
    /// # Errors
    /// What is wrong with the statement in any case.
    pub fn new(
        statement: &Statement,
        catalog: &Catalog,
        database: DatabaseId,
        params: usize,
        spelled: &(dyn Fn(&str) -> String + Send + Sync),
    ) -> Result<Option<Self>, WireError> {
        // Binding with NULLs tells whether core can do it; types come from the columns.
        let blanks = vec![Value::Null; params];
        let plan = match statement {
            Statement::Query(query) => plan_read(query, catalog, database, spelled)?,
            Statement::Insert(insert) => plan_insert(insert, catalog, database, &blanks, spelled)?,
            Statement::Update(update) => plan_update(statement, update, catalog, database, &blanks, spelled)?,
            Statement::Delete(delete) => plan_delete(statement, delete, catalog, database, &blanks, spelled)?,
            _ => None,
        };
        Ok(plan.map(|mut plan| {
            plan.params = param_types(statement, &plan, params);
            let def = &plan.table.def;
            plan.fence = (keys::Key::Table(def.id).encode(), quorate_core::entry::encode_table(def));
            plan
        }))
    }

    /// Whether it was planned with this catalog, or one with the same table.
    pub fn is_current(&self, catalog: &Catalog) -> bool {
        // Any DDL makes a new catalog; planning again costs a few microseconds.
        self.catalog == catalog.version
    }

    /// Whether the shard itself, as of a snapshot, has the definition it was planned with. A definition changes in the
    /// shard before it does in the catalog, so a linearizable read of the shard alone sees every acknowledged change.
    ///
    /// # Errors
    /// The engine's.
    pub fn is_fenced(&self, snapshot: &Snapshot) -> Result<bool, WireError> {
        let (key, bytes) = &self.fence;
        let there = snapshot.tree.get(key).map_err(|e| reject::read_error(&e))?;
        Ok(there.is_some_and(|there| there == bytes.as_slice()))
    }

    /// Whether it only reads.
    pub fn is_read(&self) -> bool {
        matches!(self.kind, Kind::Read { .. })
    }

    /// The shard it reads or writes.
    pub fn shard(&self) -> ShardId {
        self.table.shard
    }

    /// The result's columns; empty if it has none.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Types of the placeholders, where known.
    pub fn params(&self) -> &[Option<SqlType>] {
        &self.params
    }

    /// For EXPLAIN: what the fast path does.
    pub fn describe(&self) -> String {
        let table = &self.table.def.name;
        let shard = self.table.shard;
        match &self.kind {
            Kind::Read { .. } => format!("PointRead: {table} by primary key, shard {shard}"),
            Kind::Insert(_) => format!("Insert: {table}, shard {shard}"),
            Kind::Change { keys, .. } => format!("PointWrite: {table}, {} key(s), shard {shard}", keys.len()),
        }
    }

    /// Reads the row. Only for [`Self::is_read`].
    ///
    /// # Errors
    /// A parameter that is missing or does not fit its key column; damage.
    pub fn read(&self, snapshot: &Snapshot, params: &[Value]) -> Result<Found, WireError> {
        let Kind::Read { key, projection } = &self.kind else { return Ok(Found::Nothing) };
        let def = &self.table.def;
        let Some(key) = key_of(key, def, params)? else { return Ok(Found::Nothing) };
        let key = keys::row_key_of(def, &key).map_err(reject::wire_error)?;
        let Some(version) = snapshot.get(&key).map_err(|e| reject::read_error(&e))? else { return Ok(Found::Nothing) };
        match projection.values(&version.row) {
            Ok(row) => Ok(Found::Row(row)),
            Err(quorate_core::row::RowError::Newer(_)) => Ok(Found::Stale),
            Err(error) => Err(reject::read_error(&error.into())),
        }
    }

    /// Writes. `statement` is the one it was planned from. `None`: these parameters need the slow path.
    ///
    /// # Errors
    /// Whatever the shard refuses; nothing was written then.
    pub async fn write(
        &self,
        statement: &Statement,
        ctx: &WriteContext<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Option<Done>, WireError> {
        let mut attempts = Attempts::new(ctx);
        if let (Kind::Insert(plan), Statement::Insert(insert)) = (&self.kind, statement) {
            return match insert::attempt(ctx, plan, insert, &mut attempts, sink).await? {
                Some(done) => Ok(Some(done)),
                None => insert::run_insert(ctx, insert, sink).await.map(Some),
            };
        }
        let mut replanned;
        let mut plan = self;
        loop {
            let now = write::now_micros();
            let (op, tag) = match plan.change(statement, ctx.params, now) {
                Ok(Some(change)) => change,
                Ok(None) | Err(Unbound::NotCore(_)) => return Ok(None),
                Err(Unbound::Error(error)) => return Err(error),
            };
            let returning = plan.returning(statement, ctx, now)?;
            let proposal = ctx.proposal(&plan.table, op, Vec::new(), returning.is_some());
            match ctx.propose(plan.table.shard, proposal).await {
                Ok(mut result) => {
                    if let Some(returning) = returning {
                        returning.send(std::mem::take(&mut result.returned), sink).await?;
                    }
                    return Ok(Some(ctx.done(tag, plan.table.shard, &result)));
                }
                Err(error) => attempts.again(error).await?,
            }
            replanned = Self::new(statement, &attempts.catalog, ctx.database, ctx.params.len(), ctx.spelled)?;
            match &replanned {
                Some(fresh) => plan = fresh,
                None => return Ok(None),
            }
        }
    }

    /// The operations of an UPDATE or DELETE; `None`: not by key with these values.
    fn change(
        &self,
        statement: &Statement,
        params: &[Value],
        now: i64,
    ) -> Result<Option<(Vec<Op>, &'static str)>, Unbound> {
        let Kind::Change { keys, name } = &self.kind else { return Ok(None) };
        let def = &self.table.def;
        let scope = Scope { table: Some(def), name, excluded: None, params, now: Some(now) };
        let (selection, set, tag) = match statement {
            Statement::Update(update) => {
                let mut set = Vec::with_capacity(update.assignments.len());
                for (column, expr) in insert::flatten(&update.assignments, def)? {
                    set.push((column, insert::bind_assigned(column, expr, def, &scope)?));
                }
                (update.selection.as_ref(), Some(set), "UPDATE")
            }
            Statement::Delete(delete) => (delete.selection.as_ref(), None, "DELETE"),
            _ => return Ok(None),
        };
        let filter = residual(selection, def, &scope)?;
        let mut ops: Vec<Op> = Vec::with_capacity(keys.len());
        for slots in keys {
            let Some(key) = key_of(slots, def, params)? else { continue };
            // `id IN (1, 1)` is one row.
            if ops.iter().any(|op| matches!(op, Op::Update { key: k, .. } | Op::Delete { key: k, .. } if *k == key)) {
                continue;
            }
            ops.push(match &set {
                Some(set) => Op::Update { table: def.id, key, seen: None, set: set.clone(), filter: filter.clone() },
                None => Op::Delete { table: def.id, key, seen: None, filter: filter.clone() },
            });
        }
        Ok(Some((ops, tag)))
    }

    fn returning(
        &self,
        statement: &Statement,
        ctx: &WriteContext<'_>,
        now: i64,
    ) -> Result<Option<Returning>, WireError> {
        let Kind::Change { name, .. } = &self.kind else { return Ok(None) };
        let items = match statement {
            Statement::Update(update) => &update.returning,
            Statement::Delete(delete) => &delete.returning,
            _ => return Ok(None),
        };
        let scope = Scope { table: Some(&self.table.def), name, excluded: None, params: ctx.params, now: Some(now) };
        items.as_ref().map(|items| Returning::bind(items, &self.table.def, &scope, ctx.spelled)).transpose()
    }
}

fn plan_read(
    query: &Query,
    catalog: &Catalog,
    database: DatabaseId,
    spelled: &(dyn Fn(&str) -> String + Send + Sync),
) -> Result<Option<FastPlan>, WireError> {
    let Some((select, selection)) = plain_select(query) else { return Ok(None) };
    let Some((table, name)) = single_table(&select.from, catalog, database) else { return Ok(None) };
    let def = &table.def;
    let scope = Scope { table: Some(def), name: &name, excluded: None, params: &[], now: None };
    let simple = select.projection.iter().all(|item| match item {
        SelectItem::Wildcard(options) => *options == ast::WildcardAdditionalOptions::default(),
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => scope.column(expr).is_some(),
        _ => false,
    });
    if !simple {
        return Ok(None);
    }
    let Some(Keys { keys, rest }) = Keys::find(Some(selection), def, &scope) else { return Ok(None) };
    let [key] = keys.as_slice() else { return Ok(None) };
    if !rest.is_empty() {
        return Ok(None);
    }
    let returning = Returning::bind(&select.projection, def, &scope, spelled)?;
    let wanted: Vec<ColumnPos> =
        returning.items.iter().filter_map(|item| if let Item::Column(at) = item { Some(*at) } else { None }).collect();
    let Ok(projection) = Projection::new(def, &wanted) else { return Ok(None) };
    Ok(Some(FastPlan {
        catalog: catalog.version,
        table: Arc::new(table.clone()),
        kind: Kind::Read { key: key.clone(), projection },
        columns: returning.columns,
        params: Vec::new(),
        fence: Default::default(),
    }))
}

/// `SELECT … FROM … WHERE …` and nothing else but a LIMIT that keeps the one row.
fn plain_select(query: &Query) -> Option<(&Select, &Ast)> {
    let limit_keeps = match &query.limit_clause {
        None => true,
        Some(LimitClause::LimitOffset { limit, offset: None, limit_by }) if limit_by.is_empty() => {
            let positive = |limit| matches!(bind::constant(limit, &[]), Ok(Some(Value::Int(n))) if n > 0);
            limit.as_ref().is_none_or(positive)
        }
        Some(_) => false,
    };
    let plain_query = query.with.is_none()
        && query.order_by.is_none()
        && query.fetch.is_none()
        && query.locks.is_empty()
        && query.for_clause.is_none()
        && query.settings.is_none()
        && query.format_clause.is_none()
        && query.pipe_operators.is_empty();
    let SetExpr::Select(select) = &*query.body else { return None };
    let plain = select.distinct.is_none()
        && select.select_modifiers.is_none()
        && select.top.is_none()
        && select.exclude.is_none()
        && select.into.is_none()
        && select.lateral_views.is_empty()
        && select.prewhere.is_none()
        && select.connect_by.is_empty()
        && matches!(&select.group_by, GroupByExpr::Expressions(by, with) if by.is_empty() && with.is_empty())
        && select.cluster_by.is_empty()
        && select.distribute_by.is_empty()
        && select.sort_by.is_empty()
        && select.having.is_none()
        && select.named_window.is_empty()
        && select.qualify.is_none()
        && select.value_table_mode.is_none();
    if limit_keeps && plain_query && plain { Some((select, select.selection.as_ref()?)) } else { None }
}

/// The one table of a FROM without anything else, and what it is called there.
fn single_table<'a>(
    from: &[TableWithJoins],
    catalog: &'a Catalog,
    database: DatabaseId,
) -> Option<(&'a TableDesc, String)> {
    let [TableWithJoins { relation, joins }] = from else { return None };
    if !joins.is_empty() {
        return None;
    }
    let TableFactor::Table {
        name,
        alias,
        args: None,
        with_hints,
        version: None,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_hints,
    } = relation
    else {
        return None;
    };
    if !with_hints.is_empty() || !partitions.is_empty() || !index_hints.is_empty() {
        return None;
    }
    // Anything that is not a table (a view, a system table, a typo) is the slow path's business.
    let table = write::resolve(catalog, database, name).ok()?;
    let called = match alias {
        Some(alias) if alias.columns.is_empty() => alias.name.value.clone(),
        Some(_) => return None,
        None => table.def.name.to_lowercase(),
    };
    Some((table, called))
}

fn plan_insert(
    insert: &Insert,
    catalog: &Catalog,
    database: DatabaseId,
    params: &[Value],
    spelled: &(dyn Fn(&str) -> String + Send + Sync),
) -> Result<Option<FastPlan>, WireError> {
    let by_values = insert::values_of(insert).is_some() || (insert.source.is_none() && insert.assignments.is_empty());
    if !by_values {
        return Ok(None);
    }
    let plan = InsertPlan::new(insert, catalog, database)?;
    let columns = plan.returning_columns(insert, params, spelled)?;
    let table = Arc::new(plan.table.clone());
    Ok(Some(FastPlan {
        catalog: catalog.version,
        table,
        kind: Kind::Insert(Box::new(plan)),
        columns,
        params: Vec::new(),
        fence: Default::default(),
    }))
}

fn plan_update(
    statement: &Statement,
    update: &Update,
    catalog: &Catalog,
    database: DatabaseId,
    params: &[Value],
    spelled: &(dyn Fn(&str) -> String + Send + Sync),
) -> Result<Option<FastPlan>, WireError> {
    if update.from.is_some()
        || update.output.is_some()
        || update.or.is_some()
        || !update.order_by.is_empty()
        || update.limit.is_some()
    {
        return Ok(None);
    }
    let plan = plan_change(std::slice::from_ref(&update.table), update.selection.as_ref(), catalog, database, params)?;
    finish_change(plan, statement, update.returning.as_deref(), params, spelled)
}

fn plan_delete(
    statement: &Statement,
    delete: &Delete,
    catalog: &Catalog,
    database: DatabaseId,
    params: &[Value],
    spelled: &(dyn Fn(&str) -> String + Send + Sync),
) -> Result<Option<FastPlan>, WireError> {
    let other = delete.using.is_some()
        || delete.output.is_some()
        || !delete.tables.is_empty()
        || !delete.order_by.is_empty()
        || delete.limit.is_some();
    let FromTable::WithFromKeyword(from) = &delete.from else { return Ok(None) };
    if other {
        return Ok(None);
    }
    let plan = plan_change(from, delete.selection.as_ref(), catalog, database, params)?;
    finish_change(plan, statement, delete.returning.as_deref(), params, spelled)
}

fn plan_change(
    from: &[TableWithJoins],
    selection: Option<&Ast>,
    catalog: &Catalog,
    database: DatabaseId,
    params: &[Value],
) -> Result<Option<FastPlan>, WireError> {
    let Some((table, name)) = single_table(from, catalog, database) else { return Ok(None) };
    let scope = Scope { table: Some(&table.def), name: &name, excluded: None, params, now: Some(0) };
    let Some(found) = Keys::find(selection, &table.def, &scope) else { return Ok(None) };
    Ok(Some(FastPlan {
        catalog: catalog.version,
        table: Arc::new(table.clone()),
        kind: Kind::Change { keys: found.keys, name },
        columns: Vec::new(),
        params: Vec::new(),
        fence: Default::default(),
    }))
}

/// Keeps the plan if core can evaluate the rest of the statement.
fn finish_change(
    plan: Option<FastPlan>,
    statement: &Statement,
    returning: Option<&[SelectItem]>,
    params: &[Value],
    spelled: &(dyn Fn(&str) -> String + Send + Sync),
) -> Result<Option<FastPlan>, WireError> {
    let Some(mut plan) = plan else { return Ok(None) };
    match plan.change(statement, params, 0) {
        Ok(Some(_)) => {}
        Ok(None) | Err(Unbound::NotCore(_)) => return Ok(None),
        Err(Unbound::Error(error)) => return Err(error),
    }
    if let (Some(items), Kind::Change { name, .. }) = (returning, &plan.kind) {
        let scope = Scope { table: Some(&plan.table.def), name, excluded: None, params, now: Some(0) };
        plan.columns = Returning::bind(items, &plan.table.def, &scope, spelled)?.columns;
    }
    Ok(Some(plan))
}

/// What a WHERE says about the primary key.
struct Keys<'e> {
    /// One list of key columns' values for each key.
    keys: Vec<Vec<Slot>>,
    /// Conjuncts that say something else.
    rest: Vec<&'e Ast>,
}

impl<'e> Keys<'e> {
    /// `None` unless every column of the primary key is given, or the only one by a list.
    fn find(selection: Option<&'e Ast>, def: &TableDef, scope: &Scope<'_>) -> Option<Self> {
        let mut conjuncts = Vec::new();
        flatten_and(selection?, &mut conjuncts);
        let mut slots: Vec<Option<Slot>> = vec![None; def.primary_key.len()];
        let mut rest = Vec::new();
        let mut list = None;
        for conjunct in conjuncts {
            match equality(conjunct, scope) {
                Some((column, slot)) => match def.primary_key.iter().position(|c| *c == column) {
                    Some(at) if slots[at].is_none() => slots[at] = Some(slot),
                    _ => rest.push(conjunct),
                },
                None => match key_list(conjunct, def, scope) {
                    Some(slots) if list.is_none() => list = Some(slots),
                    _ => rest.push(conjunct),
                },
            }
        }
        if let Some(key) = slots.into_iter().collect::<Option<Vec<_>>>() {
            // A list beside an equality is just another condition; the slow path sorts it out.
            return if list.is_some() { None } else { Some(Self { keys: vec![key], rest }) };
        }
        let keys = list?;
        Some(Self { keys, rest })
    }
}

fn flatten_and<'e>(expr: &'e Ast, out: &mut Vec<&'e Ast>) {
    match expr {
        Ast::Nested(inner) => flatten_and(inner, out),
        Ast::BinaryOp { left, op: BinaryOperator::And, right } => {
            flatten_and(left, out);
            flatten_and(right, out);
        }
        other => out.push(other),
    }
}

/// `column = constant`, either way round.
fn equality(expr: &Ast, scope: &Scope<'_>) -> Option<(ColumnPos, Slot)> {
    let Ast::BinaryOp { left, op: BinaryOperator::Eq, right } = expr else { return None };
    let (column, value) = match (scope.column(left), scope.column(right)) {
        (Some((column, _)), None) => (column, right),
        (None, Some((column, _))) => (column, left),
        _ => return None,
    };
    slot(value).map(|slot| (column, slot))
}

fn slot(expr: &Ast) -> Option<Slot> {
    match expr {
        Ast::Nested(inner) => slot(inner),
        Ast::Value(value) => match &value.value {
            ast::Value::Placeholder(name) => bind::param_index(name).map(Slot::Param),
            _ => bind::constant(expr, &[]).ok().flatten().map(Slot::Constant),
        },
        _ => bind::constant(expr, &[]).ok().flatten().map(Slot::Constant),
    }
}

/// `key IN (constants)` for a primary key of one column.
fn key_list(expr: &Ast, def: &TableDef, scope: &Scope<'_>) -> Option<Vec<Vec<Slot>>> {
    let Ast::InList { expr, list, negated: false } = expr else { return None };
    let (column, _) = scope.column(expr)?;
    if def.primary_key != [column] || list.len() > KEYS_MAX {
        return None;
    }
    list.iter().map(|item| slot(item).map(|s| vec![s])).collect()
}

/// The key's values; `None` if one of them can equal no stored value.
fn key_of(slots: &[Slot], def: &TableDef, params: &[Value]) -> Result<Option<Vec<Value>>, WireError> {
    let mut key = Vec::with_capacity(slots.len());
    for (slot, column) in slots.iter().zip(&def.primary_key) {
        let value = match slot {
            Slot::Constant(value) => value,
            Slot::Param(n) => params.get(*n).ok_or_else(|| {
                WireError::sql("08P01", format!("parameter ${} has no value", n + 1))
                    .hint(format!("{} values were given", params.len()))
            })?,
        };
        let column = &def.columns[usize::from(*column)];
        match key_value(value, column.ty)? {
            Some(value) => key.push(value),
            None => return Ok(None),
        }
    }
    Ok(Some(key))
}

/// A value as a stored one of this type that equals it; `None` if there cannot be one.
fn key_value(value: &Value, ty: SqlType) -> Result<Option<Value>, WireError> {
    match (value, ty) {
        (Value::Null, _) => Ok(None),
        (Value::Int(n), SqlType::BigInt) => Ok(Some(Value::Int(*n))),
        (Value::Int(n), SqlType::Int) => Ok(i32::try_from(*n).is_ok().then_some(Value::Int(*n))),
        (Value::Int(n), SqlType::SmallInt) => Ok(i16::try_from(*n).is_ok().then_some(Value::Int(*n))),
        (Value::Text(text), SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_)) => {
            Ok(Some(Value::Text(text.clone())))
        }
        // Text meets a key of another type as a literal does: it must be one.
        (Value::Text(_), _) => coerce(value.clone(), ty).map(Some).map_err(WireError::from),
        (Value::Decimal(_) | Value::Float(_) | Value::Int(_), _) => {
            let Ok(fitted) = coerce(value.clone(), ty) else { return Ok(None) };
            Ok((exact(value) == exact(&fitted)).then_some(fitted))
        }
        _ => coerce(value.clone(), ty).map(Some).map_err(WireError::from),
    }
}

fn exact(value: &Value) -> Option<Decimal> {
    match value {
        Value::Int(n) => Some(Decimal::from_int(*n).normalized()),
        Value::Decimal(d) => Some(d.normalized()),
        Value::Float(f) => Decimal::from_f64(*f).map(Decimal::normalized),
        _ => None,
    }
}

/// The conditions beyond the key, as one filter.
fn residual(selection: Option<&Ast>, def: &TableDef, scope: &Scope<'_>) -> Result<Option<Expr>, Unbound> {
    let Some(found) = Keys::find(selection, def, scope) else { return Ok(None) };
    let mut filter: Option<Expr> = None;
    for conjunct in found.rest {
        let next = bind::bind_condition(conjunct, scope)?;
        filter = Some(match filter {
            Some(so_far) => Expr::Binary(quorate_core::expr::BinaryOp::And, Box::new(so_far), Box::new(next)),
            None => next,
        });
    }
    Ok(filter)
}

/// What the placeholders are compared with or assigned to.
fn param_types(statement: &Statement, plan: &FastPlan, params: usize) -> Vec<Option<SqlType>> {
    let mut types = vec![None; params];
    if params == 0 {
        return types;
    }
    let def = &plan.table.def;
    let mut note = |slot: Option<Slot>, column: ColumnPos| {
        if let Some(Slot::Param(n)) = slot
            && let Some(ty) = types.get_mut(n)
        {
            *ty = ty.or(Some(def.columns[usize::from(column)].ty));
        }
    };
    match &plan.kind {
        Kind::Read { key, .. } => key.iter().zip(&def.primary_key).for_each(|(s, c)| note(Some(s.clone()), *c)),
        Kind::Change { keys, name } => {
            for key in keys {
                key.iter().zip(&def.primary_key).for_each(|(s, c)| note(Some(s.clone()), *c));
            }
            let scope = Scope { table: Some(def), name, excluded: None, params: &[], now: None };
            if let Statement::Update(update) = statement {
                for (column, expr) in insert::flatten(&update.assignments, def).unwrap_or_default() {
                    note(slot(expr), column);
                    if let Ast::BinaryOp { left, right, .. } = expr {
                        note(slot(left), column);
                        note(slot(right), column);
                    }
                }
            }
            let selection = match statement {
                Statement::Update(update) => update.selection.as_ref(),
                Statement::Delete(delete) => delete.selection.as_ref(),
                _ => None,
            };
            for conjunct in selection.and_then(|s| Keys::find(Some(s), def, &scope)).map(|k| k.rest).unwrap_or_default()
            {
                if let Ast::BinaryOp { left, right, .. } = conjunct
                    && let Some((column, _)) = scope.column(left)
                {
                    note(slot(right), column);
                }
            }
        }
        Kind::Insert(plan) => {
            let Statement::Insert(insert) = statement else { return types };
            for row in insert::values_of(insert).map(|v| v.rows.as_slice()).unwrap_or_default() {
                row.content.iter().zip(plan.targets()).for_each(|(expr, c)| note(slot(expr), *c));
            }
        }
    }
    types
}
