//! INSERT and REPLACE: rows from VALUES or a SELECT, defaults, ON CONFLICT, RETURNING.
//!
//! VALUES never touches DataFusion unless a cell needs it (a subquery, a function core does not know): then all such
//! cells of the statement are one SELECT. [`InsertPlan`] is what does not depend on values and is kept by a prepared
//! statement.
//!
//! Invariants: the clock is read once per statement; a value that does not fit names its column and row; a NULL for a
//! column that counts by itself and takes no NULL means the next number (MySQL's habit).
//! Left out: INSERT into several tables, OVERRIDING SYSTEM VALUE.

use std::sync::Arc;

use quorate_core::expr::{self, Expr};
use quorate_core::proposal::{Cell, OnConflict, Op, ReadCheck};
use quorate_core::table::{ColumnPos, DefaultValue, TableDef};
use quorate_shared::error::{Code, WireError};
use quorate_shared::ids::DatabaseId;
use quorate_shared::limits::{COLUMNS_MAX, ENTRY_BYTES_MAX};
use quorate_shared::value::Value;
use quorate_shared::wire::{Column, Done, ReadLevel};
use sqlparser::ast::{self, Expr as Ast, Insert, OnConflictAction, OnInsert, SetExpr, TableObject};

use super::Sink;
use super::bind::{self, Scope, Unbound};
use super::coerce::coerce;
use super::parse;
use super::returning::Returning;
use super::select;
use super::write::{self, Attempts, WriteContext};
use quorate_core::catalog::{Catalog, TableDesc};

/// Where a column's value comes from when the statement gives none.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// A constant, NULL included.
    Value(Value),
    /// The table's next number.
    Next,
    /// A fresh random UUID per row.
    Uuid,
    /// An expression that is evaluated once per statement.
    Expr(Box<Ast>),
}

/// What an INSERT needs that does not depend on its values.
#[derive(Clone, Debug)]
pub struct InsertPlan {
    /// The table as planned.
    pub table: TableDesc,
    /// The column of each value of a row.
    targets: Vec<ColumnPos>,
    /// For each physical column, what it gets without a value.
    fills: Vec<Fill>,
    /// The table's name or alias in the statement.
    name: String,
}

/// Runs an INSERT or REPLACE.
///
/// # Errors
/// Whatever is wrong with it; nothing was written then.
pub async fn run_insert(ctx: &WriteContext<'_>, insert: &Insert, sink: &mut dyn Sink) -> Result<Done, WireError> {
    let mut attempts = Attempts::new(ctx);
    loop {
        let plan = InsertPlan::new(insert, &attempts.catalog, ctx.database)?;
        if let Some(done) = attempt(ctx, &plan, insert, &mut attempts, sink).await? {
            return Ok(done);
        }
    }
}

/// Evaluates and proposes once; `None`: again, with a fresh plan.
pub(super) async fn attempt(
    ctx: &WriteContext<'_>,
    plan: &InsertPlan,
    insert: &Insert,
    attempts: &mut Attempts,
    sink: &mut dyn Sink,
) -> Result<Option<Done>, WireError> {
    let now = write::now_micros();
    let returning = plan.returning(insert, ctx, now)?;
    let on_conflict = plan.on_conflict(insert, ctx.params, now)?;
    let catalog = Arc::clone(&attempts.catalog);
    let (rows, reads) = match plan.rows(ctx, insert, &catalog, now).await {
        Ok(rows) => rows,
        Err(error) => return attempts.after_read(error).await.map(|()| None),
    };
    let table = &plan.table;
    let op = Op::Insert { table: table.def.id, rows, on_conflict };
    let proposal = ctx.proposal(table, vec![op], reads, returning.is_some());
    match ctx.propose(table.shard, proposal).await {
        Ok(mut result) => {
            if let Some(returning) = returning {
                returning.send(std::mem::take(&mut result.returned), sink).await?;
            }
            Ok(Some(ctx.done("INSERT", table.shard, &result)))
        }
        Err(error) => attempts.again(error).await.map(|()| None),
    }
}

impl InsertPlan {
    /// Plans an INSERT.
    ///
    /// # Errors
    /// Unknown table or columns, and what is refused by name.
    pub fn new(insert: &Insert, catalog: &Catalog, database: DatabaseId) -> Result<Self, WireError> {
        refuse(insert)?;
        let TableObject::TableName(name) = &insert.table else {
            return Err(WireError::unsupported("INSERT into anything but a table"));
        };
        let table = write::resolve(catalog, database, name)?.clone();
        let alias = insert.table_alias.as_ref().map(|a| a.alias.value.clone());
        let targets = targets(insert, &table.def)?;
        let fills = table.def.columns.iter().map(fill_of).collect::<Result<_, _>>()?;
        Ok(Self { name: alias.unwrap_or_else(|| table.def.name.to_lowercase()), table, targets, fills })
    }

    /// The column of each value of a row.
    pub fn targets(&self) -> &[ColumnPos] {
        &self.targets
    }

    fn scope<'a>(&'a self, params: &'a [Value], now: i64, excluded: Option<&'a str>) -> Scope<'a> {
        Scope { table: Some(&self.table.def), name: &self.name, excluded, params, now: Some(now) }
    }

    /// What RETURNING gives back.
    ///
    /// # Errors
    /// As [`Returning::bind`].
    pub fn returning(&self, insert: &Insert, ctx: &WriteContext<'_>, now: i64) -> Result<Option<Returning>, WireError> {
        insert
            .returning
            .as_ref()
            .map(|items| Returning::bind(items, &self.table.def, &self.scope(ctx.params, now, None), ctx.spelled))
            .transpose()
    }

    /// The result's columns, for a prepared statement.
    ///
    /// # Errors
    /// As [`Returning::bind`].
    pub fn returning_columns(
        &self,
        insert: &Insert,
        params: &[Value],
        spelled: &(dyn Fn(&str) -> String + Send + Sync),
    ) -> Result<Vec<Column>, WireError> {
        let Some(items) = &insert.returning else { return Ok(Vec::new()) };
        Ok(Returning::bind(items, &self.table.def, &self.scope(params, 0, None), spelled)?.columns)
    }

    fn on_conflict(&self, insert: &Insert, params: &[Value], now: i64) -> Result<OnConflict, WireError> {
        if insert.replace_into || matches!(insert.or, Some(ast::SqliteOnConflict::Replace)) {
            return Ok(OnConflict::Replace);
        }
        let def = &self.table.def;
        let alias = insert.insert_alias.as_ref().map(|a| a.row_alias.to_string());
        let scope = self.scope(params, now, Some(alias.as_deref().unwrap_or("excluded")));
        match &insert.on {
            None if insert.ignore || matches!(insert.or, Some(ast::SqliteOnConflict::Ignore)) => {
                Ok(OnConflict::Nothing(None))
            }
            None => Ok(OnConflict::Fail),
            Some(OnInsert::DuplicateKeyUpdate(assignments)) => {
                Ok(OnConflict::Update { target: None, set: bind_assignments(assignments, def, &scope)?, filter: None })
            }
            Some(OnInsert::OnConflict(on)) => {
                let target = on.conflict_target.as_ref().map(|t| conflict_target(t, def)).transpose()?;
                match &on.action {
                    OnConflictAction::DoNothing => Ok(OnConflict::Nothing(target)),
                    OnConflictAction::DoUpdate(_) if target.is_none() => {
                        Err(WireError::sql("42601", "ON CONFLICT DO UPDATE needs a conflict target")
                            .hint("name the unique columns: ON CONFLICT (column) DO UPDATE"))
                    }
                    OnConflictAction::DoUpdate(update) => {
                        let set = bind_assignments(&update.assignments, def, &scope)?;
                        let filter = update
                            .selection
                            .as_ref()
                            .map(|e| bind::bind_condition(e, &scope).map_err(|e| e.refuse("ON CONFLICT")))
                            .transpose()?;
                        Ok(OnConflict::Update { target, set, filter })
                    }
                }
            }
            Some(other) => Err(WireError::unsupported(other.to_string().trim())),
        }
    }

    /// The rows to insert, and what was read for them.
    async fn rows(
        &self,
        ctx: &WriteContext<'_>,
        insert: &Insert,
        catalog: &Arc<Catalog>,
        now: i64,
    ) -> Result<(Vec<Vec<Cell>>, Vec<ReadCheck>), WireError> {
        let mut draft = Draft { params: ctx.params, now, rows: Vec::new(), exprs: Vec::new(), patches: Vec::new() };
        let mut reads = Vec::new();
        if !insert.assignments.is_empty() {
            let (targets, exprs) = assigned_columns(&insert.assignments, &self.table.def)?;
            self.add(&mut draft, &targets, exprs)?;
        } else if let Some(values) = values_of(insert) {
            draft.rows.reserve(values.rows.len());
            for row in &values.rows {
                self.add(&mut draft, &self.targets, row.content.iter())?;
            }
        } else if let Some(query) = &insert.source {
            let point = ctx.router.read(self.table.shard, &ReadLevel::Linearizable, ctx.options.deadline).await?;
            let mut query = query.clone();
            parse::name_apart(&mut query);
            let selected = ctx.queries.select(&query, ctx.params, catalog, &point, ENTRY_BYTES_MAX).await?;
            self.add_selected(&mut draft, selected.rows)?;
            reads = selected.reads;
        } else {
            self.add(&mut draft, &[], [].iter())?;
        }
        if !draft.exprs.is_empty() {
            reads.extend(self.evaluate(&mut draft, ctx, catalog).await?);
        }
        let mut rows = draft.rows;
        for row in &mut rows {
            self.number(row);
        }
        Ok((rows, reads))
    }

    /// A row of what columns get that have no value; what must be evaluated is noted.
    fn blank(&self, draft: &mut Draft<'_>, targets: &[ColumnPos]) -> Result<Vec<Cell>, WireError> {
        let mut row = Vec::with_capacity(self.fills.len());
        for (at, fill) in self.fills.iter().enumerate() {
            let given = targets.iter().any(|t| usize::from(*t) == at);
            row.push(if given { Cell::Value(Value::Null) } else { self.fill(draft, at, fill)? });
        }
        Ok(row)
    }

    fn fill(&self, draft: &mut Draft<'_>, column: usize, fill: &Fill) -> Result<Cell, WireError> {
        Ok(match fill {
            Fill::Value(value) => Cell::Value(value.clone()),
            Fill::Next => Cell::Next,
            Fill::Uuid => Cell::Value(self.fit(random_uuid()?, column, None)?),
            Fill::Expr(expr) => self.cell(draft, column, expr)?,
        })
    }

    /// Adds a row of expressions.
    fn add<'e>(
        &self,
        draft: &mut Draft<'_>,
        targets: &[ColumnPos],
        exprs: impl ExactSizeIterator<Item = &'e Ast>,
    ) -> Result<(), WireError> {
        self.check_width(exprs.len(), targets.len())?;
        // Without a column list a row may give fewer values than there are columns.
        let targets = &targets[..exprs.len()];
        let mut row = self.blank(draft, targets)?;
        for (target, expr) in targets.iter().zip(exprs) {
            let at = usize::from(*target);
            row[at] =
                if is_default(expr) { self.fill(draft, at, &self.fills[at])? } else { self.cell(draft, at, expr)? };
        }
        draft.rows.push(row);
        Ok(())
    }

    fn check_width(&self, given: usize, wanted: usize) -> Result<(), WireError> {
        if given > wanted {
            return Err(WireError::sql("42601", "INSERT has more expressions than target columns")
                .detail(format!("{given} values for {wanted} columns of \"{}\"", self.table.def.name)));
        }
        if given < wanted && given > 0 {
            return Err(WireError::sql("42601", "INSERT has more target columns than expressions")
                .detail(format!("{given} values for {wanted} columns of \"{}\"", self.table.def.name)));
        }
        Ok(())
    }

    /// A cell's value, or a place to be filled by [`Self::evaluate`].
    fn cell(&self, draft: &mut Draft<'_>, at: usize, expr: &Ast) -> Result<Cell, WireError> {
        let row = draft.rows.len() + 1;
        if let Some(value) = bind::constant(expr, draft.params)? {
            return self.fit(value, at, Some(row)).map(Cell::Value);
        }
        if is_uuid_call(expr) {
            return self.fit(random_uuid()?, at, Some(row)).map(Cell::Value);
        }
        match bind::bind(expr, &Scope::constant(draft.params, Some(draft.now))) {
            Ok(bound) => {
                let value = expr::eval(&bound.expr, &[], None).map_err(super::reject::wire_error)?;
                self.fit(value, at, Some(row)).map(Cell::Value)
            }
            Err(Unbound::Error(error)) => Err(error),
            Err(Unbound::NotCore(_)) => {
                draft.patches.push((draft.rows.len(), at, draft.exprs.len()));
                draft.exprs.push(expr.clone());
                Ok(Cell::Value(Value::Null))
            }
        }
    }

    fn fit(&self, value: Value, at: usize, row: Option<usize>) -> Result<Value, WireError> {
        let column = &self.table.def.columns[at];
        coerce(value, column.ty).map_err(|misfit| match row {
            Some(row) => misfit.of_cell(&column.name, row),
            None => misfit.of_column(&column.name),
        })
    }

    fn add_selected(&self, draft: &mut Draft<'_>, rows: Vec<Vec<Value>>) -> Result<(), WireError> {
        for values in rows {
            self.check_width(values.len(), self.targets.len())?;
            let mut row = self.blank(draft, &self.targets)?;
            let number = draft.rows.len() + 1;
            for (target, value) in self.targets.iter().zip(values) {
                let at = usize::from(*target);
                let column = &self.table.def.columns[at];
                let value = coerce(value, column.ty)
                    .map_err(|misfit| misfit.of_column(&column.name).detail(format!("row {number} of the SELECT")))?;
                row[at] = Cell::Value(value);
            }
            draft.rows.push(row);
        }
        Ok(())
    }

    /// Evaluates the noted expressions as SELECTs of constants.
    async fn evaluate(
        &self,
        draft: &mut Draft<'_>,
        ctx: &WriteContext<'_>,
        catalog: &Arc<Catalog>,
    ) -> Result<Vec<ReadCheck>, WireError> {
        let point = ctx.router.read(self.table.shard, &ReadLevel::Linearizable, ctx.options.deadline).await?;
        let (mut values, mut reads) = (Vec::with_capacity(draft.exprs.len()), Vec::new());
        for exprs in draft.exprs.chunks(COLUMNS_MAX / 2) {
            let query = select::query(exprs.to_vec(), Vec::new(), None)?;
            let mut selected = ctx.queries.select(&query, ctx.params, catalog, &point, ENTRY_BYTES_MAX).await?;
            reads.append(&mut selected.reads);
            let row = selected.rows.into_iter().next().unwrap_or_default();
            if row.len() != exprs.len() {
                return Err(WireError::new(Code::Internal, "a SELECT of constants gave another number of columns"));
            }
            values.extend(row);
        }
        for (row, column, expr) in std::mem::take(&mut draft.patches) {
            let value = self.fit(values[expr].clone(), column, Some(row + 1))?;
            draft.rows[row][column] = Cell::Value(value);
        }
        Ok(reads)
    }

    /// NULL for a column that counts by itself and takes no NULL is the next number.
    fn number(&self, row: &mut [Cell]) {
        for (at, fill) in self.fills.iter().enumerate() {
            if *fill == Fill::Next && self.table.def.columns[at].not_null && row[at] == Cell::Value(Value::Null) {
                row[at] = Cell::Next;
            }
        }
    }
}

/// Rows in the making.
struct Draft<'a> {
    params: &'a [Value],
    now: i64,
    rows: Vec<Vec<Cell>>,
    /// What core cannot evaluate.
    exprs: Vec<Ast>,
    /// Row, column and expression that belongs there.
    patches: Vec<(usize, usize, usize)>,
}

fn refuse(insert: &Insert) -> Result<(), WireError> {
    let what = if insert.overwrite {
        "INSERT OVERWRITE"
    } else if insert.partitioned.is_some() || !insert.after_columns.is_empty() {
        "PARTITION in INSERT"
    } else if insert.output.is_some() {
        return Err(WireError::unsupported("OUTPUT in INSERT").hint("use RETURNING"));
    } else if insert.settings.is_some() || insert.format_clause.is_some() {
        "SETTINGS or FORMAT in INSERT"
    } else if insert.multi_table_insert_type.is_some() || !insert.multi_table_into_clauses.is_empty() {
        "INSERT into several tables"
    } else if insert.insert_alias.as_ref().is_some_and(|a| a.col_aliases.is_some()) {
        "column aliases of the inserted row"
    } else if matches!(insert.or, Some(ast::SqliteOnConflict::Rollback | ast::SqliteOnConflict::Fail)) {
        "INSERT OR ROLLBACK or FAIL"
    } else {
        return Ok(());
    };
    Err(WireError::unsupported(what))
}

fn targets(insert: &Insert, def: &TableDef) -> Result<Vec<ColumnPos>, WireError> {
    let mut out: Vec<ColumnPos> = Vec::new();
    if !insert.assignments.is_empty() {
        out = assigned_columns(&insert.assignments, def)?.0;
    } else if insert.columns.is_empty() {
        for (at, column) in def.columns.iter().enumerate() {
            if !column.dropped && !column.hidden {
                out.push(ColumnPos::try_from(at).unwrap_or(ColumnPos::MAX));
            }
        }
        // Without a column list the first columns are meant, as in PostgreSQL.
        if let Some(first) = values_of(insert).and_then(|v| v.rows.first()) {
            out.truncate(first.content.len().max(1));
        }
    } else {
        for name in &insert.columns {
            out.push(column_of(name, def)?);
        }
    }
    for (at, column) in out.iter().enumerate() {
        if out[..at].contains(column) {
            let name = &def.columns[usize::from(*column)].name;
            return Err(WireError::sql("42701", format!("column \"{name}\" specified more than once")));
        }
    }
    Ok(out)
}

/// A column named `x` or `t.x`.
pub(super) fn column_of(name: &ast::ObjectName, def: &TableDef) -> Result<ColumnPos, WireError> {
    let last = name.0.last().and_then(|part| part.as_ident());
    let last = last.ok_or_else(|| WireError::sql("42601", format!("{name} is no column name")))?;
    bind::find_column(def, &last.value).map(|(at, _)| at).ok_or_else(|| bind::no_column(def, &last.value))
}

fn assigned_columns<'e>(
    assignments: &'e [ast::Assignment],
    def: &TableDef,
) -> Result<(Vec<ColumnPos>, impl ExactSizeIterator<Item = &'e Ast> + use<'e>), WireError> {
    let mut targets = Vec::with_capacity(assignments.len());
    for assignment in assignments {
        let ast::AssignmentTarget::ColumnName(name) = &assignment.target else {
            return Err(WireError::unsupported("INSERT ... SET of several columns at once"));
        };
        targets.push(column_of(name, def)?);
    }
    Ok((targets, assignments.iter().map(|a| &a.value)))
}

/// The rows of a plain VALUES.
pub(super) fn values_of(insert: &Insert) -> Option<&ast::Values> {
    let query = insert.source.as_deref()?;
    let plain = query.with.is_none()
        && query.order_by.is_none()
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && query.pipe_operators.is_empty();
    match &*query.body {
        SetExpr::Values(values) if plain => Some(values),
        _ => None,
    }
}

/// Whether a cell or an assigned value is the word DEFAULT.
pub(super) fn is_default(expr: &Ast) -> bool {
    matches!(expr, Ast::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("default"))
}

fn is_uuid_call(expr: &Ast) -> bool {
    let Ast::Function(call) = expr else { return false };
    let no_args = match &call.args {
        ast::FunctionArguments::List(list) => list.args.is_empty(),
        ast::FunctionArguments::None => true,
        ast::FunctionArguments::Subquery(_) => false,
    };
    no_args
        && matches!(
            call.name.to_string().to_lowercase().as_str(),
            "gen_random_uuid" | "uuid" | "uuidv4" | "uuid_generate_v4"
        )
}

fn random_uuid() -> Result<Value, WireError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| WireError::new(Code::Internal, "no random numbers are to be had"))?;
    // Version 4, variant 1 (RFC 9562).
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Ok(Value::Uuid(bytes))
}

/// What a column gets when an INSERT gives no value.
///
/// # Errors
/// A stored default that does not parse: damage.
pub fn fill_of(column: &quorate_core::table::ColumnDef) -> Result<Fill, WireError> {
    let sql = match &column.default {
        _ if column.dropped => return Ok(Fill::Value(Value::Null)),
        DefaultValue::None => return Ok(Fill::Value(Value::Null)),
        DefaultValue::Sequence => return Ok(Fill::Next),
        DefaultValue::Sql(sql) => sql,
    };
    let expr = select::expression(sql)?;
    if is_uuid_call(&expr) {
        return Ok(Fill::Uuid);
    }
    match bind::constant(&expr, &[])? {
        Some(value) => coerce(value, column.ty).map(Fill::Value).map_err(|misfit| misfit.of_column(&column.name)),
        None => Ok(Fill::Expr(Box::new(expr))),
    }
}

fn conflict_target(target: &ast::ConflictTarget, def: &TableDef) -> Result<Vec<ColumnPos>, WireError> {
    let missing = || {
        WireError::sql("42P10", "there is no unique or exclusion constraint matching the ON CONFLICT specification")
            .hint("name exactly the columns of the primary key or of a unique index")
    };
    match target {
        ast::ConflictTarget::OnConstraint(name) => {
            let name = name.to_string();
            if bind::same_name(&def.primary_key_name, &name) {
                return Ok(def.primary_key.clone());
            }
            let index = def.indexes.iter().find(|i| i.unique && bind::same_name(&i.name, &name));
            index.map(|i| i.columns.clone()).ok_or_else(|| {
                WireError::sql("42704", format!("constraint \"{name}\" for table \"{}\" does not exist", def.name))
            })
        }
        ast::ConflictTarget::Columns(names) => {
            let mut wanted = Vec::with_capacity(names.len());
            for name in names {
                wanted.push(bind::find_column(def, &name.value).ok_or_else(|| bind::no_column(def, &name.value))?.0);
            }
            let same =
                |columns: &[ColumnPos]| columns.len() == wanted.len() && columns.iter().all(|c| wanted.contains(c));
            if same(&def.primary_key) {
                return Ok(def.primary_key.clone());
            }
            let index = def.indexes.iter().find(|i| i.unique && same(&i.columns));
            index.map(|i| i.columns.clone()).ok_or_else(missing)
        }
    }
}

/// Binds `SET a = ..., (b, c) = (..., ...)` for the sequencer.
///
/// # Errors
/// What core cannot evaluate is refused by name.
fn bind_assignments(
    assignments: &[ast::Assignment],
    def: &TableDef,
    scope: &Scope<'_>,
) -> Result<Vec<(ColumnPos, Expr)>, WireError> {
    let mut set = Vec::with_capacity(assignments.len());
    for (column, expr) in flatten(assignments, def)? {
        set.push((column, bind_assigned(column, expr, def, scope).map_err(|e| e.refuse("ON CONFLICT"))?));
    }
    Ok(set)
}

/// Assignments one by one.
///
/// # Errors
/// Unknown columns, one assigned twice, tuples of different lengths.
pub(super) fn flatten<'e>(
    assignments: &'e [ast::Assignment],
    def: &TableDef,
) -> Result<Vec<(ColumnPos, &'e Ast)>, WireError> {
    let mut out: Vec<(ColumnPos, &Ast)> = Vec::with_capacity(assignments.len());
    for assignment in assignments {
        match (&assignment.target, &assignment.value) {
            (ast::AssignmentTarget::ColumnName(name), value) => out.push((column_of(name, def)?, value)),
            (ast::AssignmentTarget::Tuple(names), Ast::Tuple(values)) if names.len() == values.len() => {
                for (name, value) in names.iter().zip(values) {
                    out.push((column_of(name, def)?, value));
                }
            }
            (ast::AssignmentTarget::Tuple(names), Ast::Nested(value)) if names.len() == 1 => {
                out.push((column_of(&names[0], def)?, value));
            }
            (ast::AssignmentTarget::Tuple(_), _) => {
                return Err(WireError::unsupported("SET (...) = anything but as many values")
                    .hint("assign each column by itself: SET a = (SELECT ...), b = (SELECT ...)"));
            }
        }
    }
    for (at, (column, _)) in out.iter().enumerate() {
        if out[..at].iter().any(|(c, _)| c == column) {
            let name = &def.columns[usize::from(*column)].name;
            return Err(WireError::sql("42601", format!("multiple assignments to same column \"{name}\"")));
        }
    }
    Ok(out)
}

/// Binds one assigned value; constants are made to fit the column, the rest is by the sequencer.
pub(super) fn bind_assigned(column: ColumnPos, expr: &Ast, def: &TableDef, scope: &Scope<'_>) -> Result<Expr, Unbound> {
    let target = &def.columns[usize::from(column)];
    if is_default(expr) {
        return match fill_of(target)? {
            Fill::Value(value) => Ok(Expr::Value(value)),
            Fill::Uuid => Ok(Expr::Value(coerce(random_uuid()?, target.ty).map_err(|m| m.of_column(&target.name))?)),
            Fill::Expr(default) => bind_assigned(column, &default, def, &Scope { table: None, ..*scope }),
            Fill::Next => Err(WireError::unsupported(format!(
                "SET \"{}\" = DEFAULT of a column that counts by itself",
                target.name
            ))
            .into()),
        };
    }
    let bound = bind::bind(expr, scope)?;
    match bound.expr {
        Expr::Value(value) => {
            Ok(Expr::Value(coerce(value, target.ty).map_err(|misfit| misfit.of_column(&target.name))?))
        }
        expr => Ok(expr),
    }
}
