//! A table's definition in the making: columns, constraints and indexes, for CREATE and ALTER alike.
//!
//! Constraints without a name get the one PostgreSQL would give. Every foreign key gets an index of its columns if
//! there is none that begins with them.
//!
//! Left out, and refused by name: generated columns, deferred constraints that would differ, expression and partial
//! indexes, collations other than the byte order.

use quorate_core::catalog::Catalog;
use quorate_core::expr::Expr;
use quorate_core::table::{
    CheckDef, ColumnDef, ColumnPos, DefaultValue, FkAction, ForeignKeyDef, IndexDef, IndexState, TableDef,
};
use quorate_shared::error::WireError;
use quorate_shared::ids::{DatabaseId, IndexId, SchemaVersion, TableId};
use quorate_shared::limits::{COLUMNS_MAX, NAME_BYTES_MAX};
use quorate_shared::value::{SqlType, Value};
use sqlparser::ast::{
    self, CheckConstraint, ColumnOption, ConstraintCharacteristics, Expr as Ast, ForeignKeyConstraint, Ident,
    IndexColumn, ReferentialAction, TableConstraint,
};
use sqlparser::tokenizer::Token;

use super::announce::{Edit, Stop, check_free};
use super::types::{serial_type, sql_type};
use crate::sql::bind::{self, Scope, find_column, no_column, same_name};
use crate::sql::coerce::{coerce, is_text};
use crate::sql::{insert, select, write};

/// Name of the column that a table without a primary key is stored by.
pub const HIDDEN_ROW_ID: &str = "_rowid";

/// The definition and what its change asks of existing rows.
pub struct Builder<'a> {
    /// As it will be.
    pub def: TableDef,
    catalog: &'a Catalog,
    database: DatabaseId,
    spelled: &'a (dyn Fn(&str) -> String + Send + Sync),
    /// Constraints existing rows must be checked against.
    pub validate: Vec<String>,
    /// Indexes existing rows must be entered into.
    pub backfill: bool,
    /// Why the table must have no rows.
    pub not_empty: Option<WireError>,
    /// A primary key that is the storage key only if the table has no rows.
    pub rekey: Option<Vec<ColumnPos>>,
    /// Parents of foreign keys.
    pub uses: Vec<TableId>,
    /// Whether the table exists and may have rows.
    existing: bool,
}

impl<'a> Builder<'a> {
    /// A new table.
    pub fn create(
        catalog: &'a Catalog,
        database: DatabaseId,
        id: TableId,
        name: String,
        spelled: &'a (dyn Fn(&str) -> String + Send + Sync),
    ) -> Self {
        let def = TableDef {
            id,
            storage: id,
            version: SchemaVersion::new(1),
            primary_key_name: String::new(),
            name,
            columns: Vec::new(),
            primary_key: Vec::new(),
            indexes: Vec::new(),
            checks: Vec::new(),
            foreign_keys: Vec::new(),
            next_index: IndexId::new(1),
        };
        Self { existing: false, ..Self::alter(catalog, database, def, spelled) }
    }

    /// An existing table.
    pub fn alter(
        catalog: &'a Catalog,
        database: DatabaseId,
        def: TableDef,
        spelled: &'a (dyn Fn(&str) -> String + Send + Sync),
    ) -> Self {
        Self {
            def,
            catalog,
            database,
            spelled,
            validate: Vec::new(),
            backfill: false,
            not_empty: None,
            rekey: None,
            uses: Vec::new(),
            existing: true,
        }
    }

    /// The spelling of a name.
    pub fn spell(&self, ident: &Ident) -> Result<String, WireError> {
        checked_name((self.spelled)(&ident.value))
    }

    /// The position of a column.
    pub fn column(&self, name: &str) -> Result<ColumnPos, WireError> {
        find_column(&self.def, name).map(|(at, _)| at).ok_or_else(|| no_column(&self.def, name))
    }

    fn column_mut(&mut self, at: ColumnPos) -> &mut ColumnDef {
        &mut self.def.columns[usize::from(at)]
    }

    /// Adds a column with everything declared inline. Constraints over it come after all columns: they are returned.
    pub fn add_column(&mut self, column: &ast::ColumnDef, edit: &mut Edit) -> Result<Vec<TableConstraint>, Stop> {
        let name = self.spell(&column.name)?;
        if find_column(&self.def, &name).is_some() {
            let message = format!("column \"{name}\" of table \"{}\" already exists", self.def.name);
            return Err(WireError::sql("42701", message).into());
        }
        if same_name(&name, HIDDEN_ROW_ID) {
            return Err(WireError::sql("42939", format!("the column name \"{HIDDEN_ROW_ID}\" is reserved")).into());
        }
        if self.def.columns.len() >= COLUMNS_MAX {
            return Err(WireError::sql("54011", format!("tables can have at most {COLUMNS_MAX} columns")).into());
        }
        let serial = serial_type(&column.data_type);
        let ty = match serial {
            Some(ty) => ty,
            None => sql_type(&column.data_type).map_err(|e| in_column(e, &name))?,
        };
        let mut def = ColumnDef {
            name,
            ty,
            not_null: serial.is_some(),
            default: if serial.is_some() { DefaultValue::Sequence } else { DefaultValue::None },
            added: Value::Null,
            hidden: false,
            dropped: false,
        };
        let mut constraints = Vec::new();
        for option in &column.options {
            self.column_option(&mut def, option, &column.name, &mut constraints, edit)?;
        }
        self.check_sequences(&def)?;
        if self.existing {
            self.prepare_old_rows(&mut def)?;
        }
        self.def.columns.push(def);
        Ok(constraints)
    }

    fn check_sequences(&self, def: &ColumnDef) -> Result<(), WireError> {
        if def.default != DefaultValue::Sequence {
            return Ok(());
        }
        if !matches!(def.ty, SqlType::SmallInt | SqlType::Int | SqlType::BigInt) {
            return Err(WireError::sql(
                "22023",
                format!("column \"{}\" counts by itself and must be an integer", def.name),
            ));
        }
        if self.def.columns.iter().any(|c| !c.dropped && !c.hidden && c.default == DefaultValue::Sequence) {
            return Err(WireError::unsupported("a second column that counts by itself")
                .hint("a table has one sequence; use a DEFAULT or values of your own"));
        }
        Ok(())
    }

    /// What rows that exist already get in a new column.
    fn prepare_old_rows(&mut self, def: &mut ColumnDef) -> Result<(), WireError> {
        match insert::fill_of(def)? {
            insert::Fill::Value(value) => def.added = value,
            insert::Fill::Next => {
                self.not_empty = Some(
                    WireError::unsupported("adding a column that counts by itself to a table with rows")
                        .hint("add a plain column, fill it with UPDATE, and give new rows values of your own"),
                );
            }
            insert::Fill::Uuid => {
                self.not_empty = Some(
                    WireError::unsupported(
                        "adding a column whose default differs from row to row to a table with rows",
                    )
                    .hint("add it without DEFAULT, fill it with UPDATE, then SET DEFAULT"),
                );
            }
            insert::Fill::Expr(expr) => {
                let scope = Scope::constant(&[], Some(write::now_micros()));
                let bound = bind::bind(&expr, &scope).map_err(|e| e.refuse("the DEFAULT of an added column"))?;
                let value = quorate_core::expr::eval(&bound.expr, &[], None).map_err(crate::sql::reject::wire_error)?;
                def.added = coerce(value, def.ty).map_err(|m| m.of_column(&def.name))?;
            }
        }
        if def.not_null && def.added.is_null() && def.default != DefaultValue::Sequence && self.not_empty.is_none() {
            let message = format!("column \"{}\" of table \"{}\" contains null values", def.name, self.def.name);
            self.not_empty = Some(WireError::sql("23502", message).hint("give the new column a DEFAULT"));
        }
        Ok(())
    }

    fn column_option(
        &mut self,
        def: &mut ColumnDef,
        option: &ast::ColumnOptionDef,
        ident: &Ident,
        constraints: &mut Vec<TableConstraint>,
        edit: &mut Edit,
    ) -> Result<(), Stop> {
        use ColumnOption as O;
        let named = |inner: &Option<Ident>| option.name.clone().or_else(|| inner.clone());
        let only = || vec![IndexColumn::from(ident.clone())];
        match &option.option {
            O::Null => def.not_null = false,
            O::NotNull => def.not_null = true,
            O::Default(expr) => def.default = self.default(def, expr)?,
            O::PrimaryKey(key) => {
                constraints.push(TableConstraint::PrimaryKey(ast::PrimaryKeyConstraint {
                    name: named(&key.name),
                    columns: only(),
                    ..key.clone()
                }));
            }
            O::Unique(key) => {
                constraints.push(TableConstraint::Unique(ast::UniqueConstraint {
                    name: named(&key.name),
                    columns: only(),
                    ..key.clone()
                }));
            }
            O::ForeignKey(key) => constraints.push(TableConstraint::ForeignKey(ForeignKeyConstraint {
                name: named(&key.name),
                columns: vec![ident.clone()],
                ..key.clone()
            })),
            O::Check(check) => {
                constraints.push(TableConstraint::Check(CheckConstraint { name: named(&check.name), ..check.clone() }))
            }
            O::Generated { generation_expr: None, .. } | O::Identity(_) => {
                def.default = DefaultValue::Sequence;
                def.not_null = true;
            }
            O::Generated { .. } | O::Materialized(_) | O::Ephemeral(_) | O::Alias(_) => {
                return Err(WireError::unsupported(format!("the generated column \"{}\"", def.name))
                    .hint("use a view")
                    .into());
            }
            O::DialectSpecific(tokens) if is_auto_increment(tokens) => {
                def.default = DefaultValue::Sequence;
                def.not_null = true;
            }
            O::CharacterSet(_) | O::Collation(_) => {
                edit.notice(
                    "OptionIgnored",
                    format!(
                        "{} of column \"{}\" is ignored: text is UTF-8 and ordered by its bytes",
                        option.option, def.name
                    ),
                );
            }
            O::Comment(_) => edit.notice("OptionIgnored", format!("COMMENT of column \"{}\" is ignored", def.name)),
            O::OnUpdate(_) => {
                return Err(WireError::unsupported("ON UPDATE of a column")
                    .hint("set the column in each UPDATE")
                    .into());
            }
            other => return Err(WireError::unsupported(format!("{other} in a column")).into()),
        }
        Ok(())
    }

    /// A default as it is stored: checked now if it is constant.
    pub fn default(&self, column: &ColumnDef, expr: &Ast) -> Result<DefaultValue, WireError> {
        let sql = expr.to_string();
        let lower = sql.to_lowercase();
        if lower.starts_with("nextval(") {
            return Err(WireError::unsupported("DEFAULT nextval()").hint("declare the column SERIAL or AUTO_INCREMENT"));
        }
        if lower == "null" {
            return Ok(DefaultValue::None);
        }
        match bind::bind(expr, &Scope::constant(&[], Some(0))) {
            Ok(bound) => {
                let value = quorate_core::expr::eval(&bound.expr, &[], None).map_err(crate::sql::reject::wire_error)?;
                coerce(value, column.ty).map_err(|m| m.of_column(&column.name))?;
            }
            Err(bind::Unbound::Error(error)) => return Err(error),
            Err(bind::Unbound::NotCore(_)) => no_references(expr)?,
        }
        // What is stored is parsed again for every plan.
        select::expression(&sql)?;
        Ok(DefaultValue::Sql(sql))
    }

    /// Adds a table constraint.
    pub fn add_constraint(&mut self, constraint: &TableConstraint, edit: &mut Edit) -> Result<(), Stop> {
        match constraint {
            TableConstraint::PrimaryKey(key) => {
                check_characteristics(key.characteristics.as_ref(), edit)?;
                let columns = self.key_columns(&key.columns, edit)?;
                Ok(self.add_primary_key(key.name.as_ref(), columns)?)
            }
            TableConstraint::Unique(key) => {
                check_characteristics(key.characteristics.as_ref(), edit)?;
                if key.nulls_distinct == ast::NullsDistinctOption::NotDistinct {
                    return Err(WireError::unsupported("UNIQUE NULLS NOT DISTINCT")
                        .hint("declare the columns NOT NULL")
                        .into());
                }
                let columns = self.key_columns(&key.columns, edit)?;
                let name = key.name.as_ref().or(key.index_name.as_ref());
                let name = self.name_of(name, &columns, "key")?;
                Ok(self.add_index(name, columns, true, true)?)
            }
            TableConstraint::Check(check) => Ok(self.add_check(check)?),
            TableConstraint::ForeignKey(key) => self.add_foreign_key(key, edit),
            // MySQL's KEY name (columns) inside CREATE TABLE.
            TableConstraint::Index(index) => {
                let columns = self.key_columns(&index.columns, edit)?;
                let name = self.name_of(index.name.as_ref(), &columns, "idx")?;
                Ok(self.add_index(name, columns, false, false)?)
            }
            TableConstraint::FulltextOrSpatial(_) => {
                Err(WireError::unsupported("a FULLTEXT or SPATIAL index").hint("use LIKE or a plain index").into())
            }
            other => Err(WireError::unsupported(format!("the constraint {other}")).into()),
        }
    }

    fn add_primary_key(&mut self, name: Option<&Ident>, columns: Vec<ColumnPos>) -> Result<(), WireError> {
        let has_one = !self.def.primary_key_name.is_empty() || self.def.indexes.iter().any(|i| i.primary);
        if has_one || self.rekey.is_some() {
            return Err(WireError::sql(
                "42P16",
                format!("multiple primary keys for table \"{}\" are not allowed", self.def.name),
            ));
        }
        let name = match name {
            Some(name) => self.spell(name)?,
            None => self.free_name(&format!("{}_pkey", self.def.name)),
        };
        self.check_constraint_name(&name)?;
        for &column in &columns {
            let def = self.column_mut(column);
            def.not_null = true;
        }
        if !self.existing {
            self.def.primary_key = columns;
            self.def.primary_key_name = name;
            return Ok(());
        }
        // With rows it becomes a unique index; without, `finish` makes it the storage key.
        for &column in &columns {
            let column = self.def.columns[usize::from(column)].name.clone();
            self.validate.push(column);
        }
        self.rekey = Some(columns.clone());
        self.add_index(name, columns, true, true)?;
        if let Some(index) = self.def.indexes.last_mut() {
            index.primary = true;
        }
        Ok(())
    }

    /// Adds an index; existing rows are entered later.
    pub fn add_index(
        &mut self,
        name: String,
        columns: Vec<ColumnPos>,
        unique: bool,
        constraint: bool,
    ) -> Result<(), WireError> {
        self.check_constraint_name(&name)?;
        for (at, column) in columns.iter().enumerate() {
            let def = &self.def.columns[usize::from(*column)];
            if columns[..at].contains(column) {
                return Err(WireError::sql("42701", format!("column \"{}\" appears twice in an index", def.name)));
            }
            if matches!(def.ty, SqlType::Json) {
                return Err(WireError::unsupported(format!("an index on the JSON column \"{}\"", def.name)));
            }
        }
        let state = if self.existing { IndexState::Filling } else { IndexState::Public };
        self.backfill |= self.existing;
        let id = self.def.next_index;
        self.def.next_index = id.next();
        self.def.indexes.push(IndexDef { id, name, columns, unique, state, constraint, primary: false });
        Ok(())
    }

    fn add_check(&mut self, check: &CheckConstraint) -> Result<(), WireError> {
        if check.enforced == Some(false) {
            return Err(WireError::unsupported("CHECK ... NOT ENFORCED").hint("leave the constraint out"));
        }
        let table = self.def.name.to_lowercase();
        let scope = Scope { table: Some(&self.def), name: &table, excluded: None, params: &[], now: None };
        let expr = bind::bind_condition(&check.expr, &scope).map_err(|e| e.refuse("CHECK"))?;
        let mut columns = Vec::new();
        columns_of(&expr, &mut columns);
        let name = match &check.name {
            Some(name) => self.spell(name)?,
            // PostgreSQL names a check by its column if there is one only.
            None => match columns.as_slice() {
                [one] => {
                    self.free_name(&format!("{}_{}_check", self.def.name, self.def.columns[usize::from(*one)].name))
                }
                _ => self.free_name(&format!("{}_check", self.def.name)),
            },
        };
        self.check_constraint_name(&name)?;
        if self.existing {
            self.validate.push(name.clone());
        }
        self.def.checks.push(CheckDef { name, sql: check.expr.to_string(), expr });
        Ok(())
    }

    fn add_foreign_key(&mut self, key: &ForeignKeyConstraint, edit: &mut Edit) -> Result<(), Stop> {
        check_characteristics(key.characteristics.as_ref(), edit)?;
        if matches!(
            key.match_kind,
            Some(ast::ConstraintReferenceMatchKind::Full | ast::ConstraintReferenceMatchKind::Partial)
        ) && key.columns.len() > 1
        {
            return Err(WireError::unsupported("MATCH FULL or PARTIAL").hint("declare the columns NOT NULL").into());
        }
        let mut columns = Vec::with_capacity(key.columns.len());
        for name in &key.columns {
            columns.push(self.column(&name.value)?);
        }
        let name = match &key.name {
            Some(name) => self.spell(name)?,
            None => self.free_name(&format!("{}_{}_fkey", self.def.name, self.names(&columns))),
        };
        self.check_constraint_name(&name)?;
        let itself = {
            let (database, parent) = write::locate(self.catalog, self.database, &key.foreign_table)?;
            database == self.database && same_name(&parent, &self.def.name)
        };
        let parent = if itself {
            self.def.clone()
        } else {
            let parent = write::resolve(self.catalog, self.database, &key.foreign_table)?;
            check_free(self.catalog, parent.def.id)?;
            if parent.database != self.database {
                return Err(WireError::unsupported("a foreign key to a table of another database").into());
            }
            self.uses.push(parent.def.id);
            parent.def.clone()
        };
        let (columns, parent_columns) = match_parent(&self.def, &columns, &parent, &key.referred_columns)?;
        let fk = ForeignKeyDef {
            name: name.clone(),
            columns: columns.clone(),
            parent: parent.id,
            parent_columns,
            on_delete: action(key.on_delete)?,
            on_update: action(key.on_update)?,
            validated: !self.existing,
        };
        self.def.foreign_keys.push(fk);
        if self.existing {
            self.validate.push(name.clone());
        }
        let indexed = self.def.primary_key.starts_with(&columns)
            || self.def.indexes.iter().any(|i| i.columns.starts_with(&columns));
        if !indexed {
            // Named after the key, as MySQL does; an index made later over the same columns replaces it.
            let id = self.def.next_index;
            self.def.next_index = id.next();
            let state = if self.existing { IndexState::Filling } else { IndexState::Public };
            self.backfill |= self.existing;
            self.def.indexes.push(IndexDef {
                id,
                name,
                columns,
                unique: false,
                state,
                constraint: false,
                primary: false,
            });
        }
        Ok(())
    }

    /// Columns of a key or an index.
    pub fn key_columns(&self, columns: &[IndexColumn], edit: &mut Edit) -> Result<Vec<ColumnPos>, WireError> {
        let mut out = Vec::with_capacity(columns.len());
        for column in columns {
            let name = match &column.column.expr {
                Ast::Identifier(name) => name,
                // MySQL's prefix of a column: `KEY (name(10))`; the whole column is indexed.
                Ast::Function(call)
                    if call.name.0.len() == 1 && find_column(&self.def, &call.name.to_string()).is_some() =>
                {
                    edit.notice(
                        "OptionIgnored",
                        format!("the length of {} is ignored: the whole column is indexed", column.column.expr),
                    );
                    match call.name.0[0].as_ident() {
                        Some(name) => name,
                        None => return Err(WireError::unsupported("an index on an expression")),
                    }
                }
                other => {
                    return Err(WireError::unsupported(format!("an index on the expression {other}"))
                        .hint("index a column that holds the value"));
                }
            };
            if column.column.options.asc == Some(false) {
                edit.notice(
                    "OptionIgnored",
                    format!("DESC of \"{}\" is ignored: an index is read in both directions", name.value),
                );
            }
            if column.operator_class.is_some() {
                return Err(WireError::unsupported("an operator class"));
            }
            out.push(self.column(&name.value)?);
        }
        if out.is_empty() {
            return Err(WireError::sql("42601", "a key needs at least one column"));
        }
        Ok(out)
    }

    fn names(&self, columns: &[ColumnPos]) -> String {
        let names: Vec<&str> = columns.iter().map(|c| self.def.columns[usize::from(*c)].name.as_str()).collect();
        names.join("_")
    }

    /// The given name, or the one PostgreSQL would give.
    pub fn name_of(&self, name: Option<&Ident>, columns: &[ColumnPos], suffix: &str) -> Result<String, WireError> {
        match name {
            Some(name) => self.spell(name),
            None => Ok(self.free_name(&format!("{}_{}_{suffix}", self.def.name, self.names(columns)))),
        }
    }

    fn free_name(&self, wanted: &str) -> String {
        let wanted: String = wanted
            .chars()
            .scan(0, |bytes, c| {
                *bytes += c.len_utf8();
                (*bytes < NAME_BYTES_MAX - 4).then_some(c)
            })
            .collect();
        if !self.is_taken(&wanted) {
            return wanted;
        }
        (1..).map(|n: u32| format!("{wanted}{n}")).find(|name| !self.is_taken(name)).unwrap_or(wanted)
    }

    fn is_taken(&self, name: &str) -> bool {
        let def = &self.def;
        same_name(&def.primary_key_name, name)
            || def.indexes.iter().any(|i| same_name(&i.name, name))
            || def.checks.iter().any(|c| same_name(&c.name, name))
            || def.foreign_keys.iter().any(|f| same_name(&f.name, name))
    }

    fn check_constraint_name(&self, name: &str) -> Result<(), WireError> {
        if self.is_taken(name) {
            let message = format!("constraint or index \"{name}\" for table \"{}\" already exists", self.def.name);
            return Err(WireError::sql("42710", message));
        }
        Ok(())
    }

    /// The last touch for a new table: a hidden row id if there is no primary key.
    pub fn close(&mut self) {
        if self.def.primary_key.is_empty() {
            let at = ColumnPos::try_from(self.def.columns.len()).unwrap_or(ColumnPos::MAX);
            self.def.columns.push(row_id());
            self.def.primary_key = vec![at];
        }
    }
}

/// The hidden row id's column.
pub fn row_id() -> ColumnDef {
    ColumnDef {
        name: HIDDEN_ROW_ID.into(),
        ty: SqlType::BigInt,
        not_null: true,
        default: DefaultValue::Sequence,
        added: Value::Null,
        hidden: true,
        dropped: false,
    }
}

/// A name that can be stored.
///
/// # Errors
/// `42622` if it is too long, `42601` if it is empty.
pub fn checked_name(name: String) -> Result<String, WireError> {
    match name.len() {
        0 => Err(WireError::sql("42601", "a name cannot be empty")),
        n if n > NAME_BYTES_MAX => {
            Err(WireError::sql("42622", format!("the name has {n} bytes; at most {NAME_BYTES_MAX} are allowed")))
        }
        _ => Ok(name),
    }
}

/// Columns an expression uses.
pub fn columns_of(expr: &Expr, out: &mut Vec<ColumnPos>) {
    match expr {
        Expr::Column(at) | Expr::Excluded(at) => {
            if !out.contains(at) {
                out.push(*at);
            }
        }
        Expr::Value(_) => {}
        Expr::Binary(_, l, r) => {
            columns_of(l, out);
            columns_of(r, out);
        }
        Expr::Not(e) | Expr::Negate(e) | Expr::IsNull(e) | Expr::Cast(e, _) => columns_of(e, out),
        Expr::In(e, list) => {
            columns_of(e, out);
            list.iter().for_each(|e| columns_of(e, out));
        }
        Expr::Case(arms, other) => {
            for (when, then) in arms {
                columns_of(when, out);
                columns_of(then, out);
            }
            columns_of(other, out);
        }
        Expr::Call(_, args) => args.iter().for_each(|e| columns_of(e, out)),
    }
}

/// Pairs the child's columns with the parent's, in the order of the parent's key.
fn match_parent(
    child: &TableDef,
    columns: &[ColumnPos],
    parent: &TableDef,
    referred: &[Ident],
) -> Result<(Vec<ColumnPos>, Vec<ColumnPos>), WireError> {
    let declared_key = parent.indexes.iter().find(|i| i.primary).map_or(&parent.primary_key, |i| &i.columns);
    let wanted: Vec<ColumnPos> = if referred.is_empty() {
        if parent.columns[usize::from(declared_key[0])].hidden {
            return Err(WireError::sql(
                "42704",
                format!("there is no primary key for referenced table \"{}\"", parent.name),
            ));
        }
        declared_key.clone()
    } else {
        let of = |name: &Ident| {
            find_column(parent, &name.value).map(|(at, _)| at).ok_or_else(|| no_column(parent, &name.value))
        };
        referred.iter().map(of).collect::<Result<_, _>>()?
    };
    if wanted.len() != columns.len() {
        return Err(WireError::sql("42830", "number of referencing and referenced columns for foreign key disagree"));
    }
    let same = |key: &[ColumnPos]| key.len() == wanted.len() && key.iter().all(|c| wanted.contains(c));
    let key = std::iter::once(&parent.primary_key)
        .chain(parent.indexes.iter().filter(|i| i.unique).map(|i| &i.columns))
        .find(|key| same(key))
        .ok_or_else(|| {
            WireError::sql(
                "42830",
                format!("there is no unique constraint matching given keys for referenced table \"{}\"", parent.name),
            )
            .hint("add a UNIQUE constraint over exactly these columns first")
        })?;
    let mut pairs = Vec::with_capacity(key.len());
    for column in key {
        let at = wanted.iter().position(|w| w == column).unwrap_or_default();
        let (ours, theirs) = (&child.columns[usize::from(columns[at])], &parent.columns[usize::from(*column)]);
        if !same_kind(ours.ty, theirs.ty) {
            return Err(WireError::sql("42804", "foreign key columns are of incompatible types")
                .detail(format!("\"{}\" is {}, \"{}\" is {}", ours.name, ours.ty, theirs.name, theirs.ty)));
        }
        pairs.push((columns[at], *column));
    }
    Ok(pairs.into_iter().unzip())
}

fn same_kind(a: SqlType, b: SqlType) -> bool {
    let int = |t| matches!(t, SqlType::SmallInt | SqlType::Int | SqlType::BigInt);
    let decimal = |t| matches!(t, SqlType::Decimal { .. });
    a == b || (int(a) && int(b)) || (is_text(a) && is_text(b)) || (decimal(a) && decimal(b))
}

fn action(action: Option<ReferentialAction>) -> Result<FkAction, WireError> {
    Ok(match action {
        None | Some(ReferentialAction::NoAction) => FkAction::NoAction,
        Some(ReferentialAction::Restrict) => FkAction::Restrict,
        Some(ReferentialAction::Cascade) => FkAction::Cascade,
        Some(ReferentialAction::SetNull) => FkAction::SetNull,
        Some(ReferentialAction::SetDefault) => {
            return Err(WireError::unsupported("SET DEFAULT of a foreign key")
                .hint("use SET NULL, CASCADE, RESTRICT or NO ACTION"));
        }
    })
}

/// One statement is one step here, so what is deferred to its end needs no deferring.
fn check_characteristics(
    characteristics: Option<&ConstraintCharacteristics>,
    edit: &mut Edit,
) -> Result<(), WireError> {
    let Some(characteristics) = characteristics else { return Ok(()) };
    if characteristics.enforced == Some(false) {
        return Err(WireError::unsupported("a constraint that is NOT ENFORCED").hint("leave the constraint out"));
    }
    if characteristics.deferrable == Some(true) || characteristics.initially.is_some() {
        edit.notice("OptionIgnored", "DEFERRABLE is ignored: constraints are checked at the end of each statement");
    }
    Ok(())
}

fn is_auto_increment(tokens: &[Token]) -> bool {
    matches!(tokens, [Token::Word(word)] if matches!(word.value.to_uppercase().as_str(), "AUTO_INCREMENT" | "AUTOINCREMENT"))
}

/// A default names no columns and asks no tables.
fn no_references(expr: &Ast) -> Result<(), WireError> {
    use std::ops::ControlFlow;
    let found = ast::visit_expressions(expr, |e: &Ast| match e {
        Ast::Identifier(_) | Ast::CompoundIdentifier(_) => ControlFlow::Break("column references"),
        Ast::Subquery(_) | Ast::Exists { .. } | Ast::InSubquery { .. } => ControlFlow::Break("a subquery"),
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(what) => Err(WireError::sql("0A000", format!("cannot use {what} in DEFAULT expression"))),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn in_column(error: WireError, column: &str) -> WireError {
    let detail = format!("column \"{column}\"");
    if error.detail.is_none() { error.detail(detail) } else { error }
}
