//! ALTER TABLE, CREATE INDEX and renaming.
//!
//! All operations of one statement are applied to one definition in order and become one change of one job. Types are
//! changed only where stored rows stay as they are, or the table has none.

use quorate_core::catalog::{Catalog, TableDesc};
use quorate_core::table::{ColumnPos, DefaultValue, IndexState, TableDef};
use quorate_shared::error::WireError;
use quorate_shared::ids::IndexId;
use quorate_shared::value::{SqlType, Value};
use quorate_shared::wire::Done;
use sqlparser::ast::{
    self, AlterColumnOperation, AlterIndexOperation, AlterTable, AlterTableOperation, ColumnOption, CreateIndex,
    DropBehavior, Expr as Ast, Ident, ObjectName, RenameTable, RenameTableNameKind,
};

use super::announce::{Edit, Stop, announce};
use super::check_new_name;
use super::define::{Builder, checked_name, columns_of, row_id};
use super::drop::{fence_only, find, find_index, version_after};
use super::job::{Change, Fill};
use super::types::sql_type;
use crate::sql::bind::{find_column, same_name};
use crate::sql::coerce::is_text;
use crate::sql::select;
use crate::sql::write::{self, WriteContext};

/// Runs ALTER TABLE.
///
/// # Errors
/// Whatever is wrong with it, or with existing rows.
pub async fn alter_table(ctx: &WriteContext<'_>, alter: &AlterTable) -> Result<Done, WireError> {
    if alter.on_cluster.is_some() || alter.location.is_some() || alter.table_type.is_some() {
        return Err(WireError::unsupported("ALTER of a table stored elsewhere"));
    }
    announce(ctx, "ALTER TABLE", |catalog, edit| {
        let desc = match find(ctx, catalog, &alter.name) {
            Err(Stop::Error(error)) if alter.if_exists && error.sqlstate.as_deref() == Some("42P01") => {
                edit.notice("NotThere", format!("table \"{}\" does not exist, skipping", alter.name));
                return Ok(());
            }
            other => other?,
        };
        let mut alteration = Alteration::new(ctx, catalog, desc);
        for operation in &alter.operations {
            alteration.apply(operation, edit)?;
        }
        edit.work.what = format!("ALTER TABLE {}", desc.def.name);
        alteration.finish(edit);
        Ok(())
    })
    .await
}

/// Runs CREATE INDEX.
///
/// # Errors
/// Whatever is wrong with it, or with existing rows.
pub async fn create_index(ctx: &WriteContext<'_>, create: &CreateIndex) -> Result<Done, WireError> {
    let parts = [
        (create.predicate.is_some(), "a partial index"),
        (!create.include.is_empty(), "INCLUDE of an index"),
        (create.nulls_distinct == Some(false), "NULLS NOT DISTINCT"),
        (!create.with.is_empty(), "WITH of an index"),
    ];
    if let Some((_, what)) = parts.iter().find(|(asked, _)| *asked) {
        return Err(WireError::unsupported(what));
    }
    announce(ctx, "CREATE INDEX", |catalog, edit| {
        let desc = find(ctx, catalog, &create.table_name)?;
        let mut alteration = Alteration::new(ctx, catalog, desc);
        if let Some(using) = &create.using
            && !matches!(using, ast::IndexType::BTree | ast::IndexType::Hash)
        {
            return Err(WireError::unsupported(format!("an index USING {using}"))
                .hint("indexes are ordered trees")
                .into());
        }
        let columns = alteration.builder.key_columns(&create.columns, edit)?;
        let ident = create.name.as_ref().and_then(|n| n.0.last()).and_then(|p| p.as_ident());
        let name = alteration.builder.name_of(ident, &columns, "idx")?;
        if create.if_not_exists && desc.def.indexes.iter().any(|i| same_name(&i.name, &name)) {
            edit.notice("AlreadyExists", format!("index \"{name}\" exists already, skipping"));
            return Ok(());
        }
        alteration.builder.add_index(name.clone(), columns.clone(), create.unique, false)?;
        alteration.replace_implied(&columns);
        edit.work.what = format!("CREATE INDEX {name}");
        alteration.finish(edit);
        Ok(())
    })
    .await
}

/// Runs ALTER INDEX ... RENAME TO.
///
/// # Errors
/// Unknown names.
pub async fn alter_index(
    ctx: &WriteContext<'_>,
    name: &ObjectName,
    operation: &AlterIndexOperation,
) -> Result<Done, WireError> {
    let AlterIndexOperation::RenameIndex { index_name } = operation;
    announce(ctx, "ALTER INDEX", |catalog, edit| {
        let Some((desc, old)) = find_index(ctx, catalog, name, None)? else {
            return Err(WireError::sql("42704", format!("index \"{name}\" does not exist")).into());
        };
        let mut alteration = Alteration::new(ctx, catalog, desc);
        let new = index_name
            .0
            .last()
            .and_then(|p| p.as_ident())
            .ok_or_else(|| WireError::sql("42601", "a name is missing"))?;
        alteration.rename_constraint(&old, new)?;
        edit.work.what = format!("ALTER INDEX {old}");
        alteration.finish(edit);
        Ok(())
    })
    .await
}

/// Runs MySQL's RENAME TABLE.
///
/// # Errors
/// Unknown and taken names.
pub async fn rename_tables(ctx: &WriteContext<'_>, renames: &[RenameTable]) -> Result<Done, WireError> {
    let [rename] = renames else {
        return Err(WireError::unsupported("RENAME TABLE of several tables").hint("rename them one by one"));
    };
    announce(ctx, "RENAME TABLE", |catalog, edit| {
        let desc = find(ctx, catalog, &rename.old_name)?;
        let mut alteration = Alteration::new(ctx, catalog, desc);
        alteration.rename_table(&rename.new_name)?;
        edit.work.what = format!("RENAME TABLE {}", desc.def.name);
        alteration.finish(edit);
        Ok(())
    })
    .await
}

struct Alteration<'a> {
    ctx: &'a WriteContext<'a>,
    catalog: &'a Catalog,
    desc: &'a TableDesc,
    builder: Builder<'a>,
    /// Indexes that go once the new ones are filled.
    replaced: Vec<IndexId>,
    /// Stored rows would not fit the definition: it takes a new storage, and no rows.
    new_storage: bool,
    /// The primary key goes (only without rows).
    without_key: bool,
}

impl<'a> Alteration<'a> {
    fn new(ctx: &'a WriteContext<'a>, catalog: &'a Catalog, desc: &'a TableDesc) -> Self {
        let builder = Builder::alter(catalog, desc.database, desc.def.clone(), ctx.spelled);
        Self { ctx, catalog, desc, builder, replaced: Vec::new(), new_storage: false, without_key: false }
    }

    fn apply(&mut self, operation: &AlterTableOperation, edit: &mut Edit) -> Result<(), Stop> {
        use AlterTableOperation as Op;
        match operation {
            Op::AddConstraint { constraint, not_valid: false } => self.builder.add_constraint(constraint, edit),
            Op::AddConstraint { .. } => Err(WireError::unsupported("ADD CONSTRAINT ... NOT VALID")
                .hint("existing rows are checked; leave NOT VALID out")
                .into()),
            Op::AddColumn { if_not_exists, column_def, column_position, .. } => {
                if *if_not_exists && find_column(&self.builder.def, &column_def.name.value).is_some() {
                    edit.notice(
                        "AlreadyExists",
                        format!("column \"{}\" exists already, skipping", column_def.name.value),
                    );
                    return Ok(());
                }
                if column_position.is_some() {
                    edit.notice("OptionIgnored", "FIRST and AFTER are ignored: new columns come last");
                }
                for constraint in self.builder.add_column(column_def, edit)? {
                    self.builder.add_constraint(&constraint, edit)?;
                }
                Ok(())
            }
            Op::DropColumn { column_names, if_exists, drop_behavior, .. } => {
                for name in column_names {
                    self.drop_column(name, *if_exists, is_cascade(*drop_behavior), edit)?;
                }
                Ok(())
            }
            Op::DropConstraint { if_exists, name, drop_behavior } => {
                self.drop_constraint(&name.value, *if_exists, is_cascade(*drop_behavior), edit)
            }
            Op::DropForeignKey { name, drop_behavior } => {
                self.drop_constraint(&name.value, false, is_cascade(*drop_behavior), edit)
            }
            Op::DropPrimaryKey { .. } => self.drop_primary_key(),
            Op::DropIndex { name } => {
                let exact =
                    self.builder.def.indexes.iter().find(|i| same_name(&i.name, &name.value)).map(|i| i.name.clone());
                let exact =
                    exact.ok_or_else(|| WireError::sql("42704", format!("index \"{}\" does not exist", name.value)))?;
                drop_index(self.catalog, &mut self.builder.def, &exact, false, true, edit)?;
                edit.work.purge.push(self.desc.def.storage);
                Ok(())
            }
            Op::RenameColumn { old_column_name, new_column_name } => {
                Ok(self.rename_column(&old_column_name.value, new_column_name)?)
            }
            Op::RenameTable { table_name: RenameTableNameKind::As(name) | RenameTableNameKind::To(name) } => {
                self.rename_table(name)
            }
            Op::RenameConstraint { old_name, new_name } => Ok(self.rename_constraint(&old_name.value, new_name)?),
            Op::AlterColumn { column_name, op } => Ok(self.alter_column(&column_name.value, op)?),
            Op::ModifyColumn { col_name, data_type, options, .. } => {
                Ok(self.modify_column(&col_name.value, data_type, options, edit)?)
            }
            Op::ChangeColumn { old_name, new_name, data_type, options, .. } => {
                self.modify_column(&old_name.value, data_type, options, edit)?;
                Ok(self.rename_column(&old_name.value, new_name)?)
            }
            Op::AutoIncrement { .. } => {
                edit.notice("OptionIgnored", "AUTO_INCREMENT = n is ignored: numbers go on after the largest one used");
                Ok(())
            }
            Op::OwnerTo { .. } => {
                edit.notice("OptionIgnored", "OWNER TO is ignored: there are no owners");
                Ok(())
            }
            Op::Algorithm { .. } | Op::Lock { .. } => {
                edit.notice("OptionIgnored", format!("{operation} is ignored"));
                Ok(())
            }
            Op::ValidateConstraint { name } => {
                edit.notice("OptionIgnored", format!("constraint \"{}\" is valid already", name.value));
                Ok(())
            }
            other => Err(WireError::unsupported(format!("ALTER TABLE ... {other}")).into()),
        }
    }

    fn drop_column(&mut self, name: &Ident, if_exists: bool, cascade: bool, edit: &mut Edit) -> Result<(), Stop> {
        let def = &self.builder.def;
        let Some((at, column)) = find_column(def, &name.value).filter(|(_, c)| !c.hidden) else {
            if if_exists {
                edit.notice("NotThere", format!("column \"{}\" does not exist, skipping", name.value));
                return Ok(());
            }
            return Err(crate::sql::bind::no_column(def, &name.value).into());
        };
        let column = column.name.clone();
        if def.primary_key.contains(&at) {
            return Err(WireError::unsupported(format!("dropping the primary key's column \"{column}\""))
                .hint("create a new table with CREATE TABLE ... AS SELECT")
                .into());
        }
        let visible = def.columns.iter().filter(|c| !c.dropped && !c.hidden).count();
        if visible == 1 {
            return Err(WireError::sql("42P16", "a table needs at least one column").hint("use DROP TABLE").into());
        }
        let indexes: Vec<String> =
            def.indexes.iter().filter(|i| i.columns.contains(&at)).map(|i| i.name.clone()).collect();
        self.builder.def.foreign_keys.retain(|fk| !fk.columns.contains(&at));
        for index in indexes {
            drop_index(self.catalog, &mut self.builder.def, &index, cascade, true, edit)?;
        }
        let def = &mut self.builder.def;
        def.checks.retain(|check| {
            let mut columns = Vec::new();
            columns_of(&check.expr, &mut columns);
            !columns.contains(&at)
        });
        let column = &mut def.columns[usize::from(at)];
        column.dropped = true;
        column.not_null = false;
        column.default = DefaultValue::None;
        edit.work.purge.push(self.desc.def.storage);
        Ok(())
    }

    fn drop_constraint(&mut self, name: &str, if_exists: bool, cascade: bool, edit: &mut Edit) -> Result<(), Stop> {
        let def = &mut self.builder.def;
        if !def.primary_key_name.is_empty() && same_name(&def.primary_key_name, name) {
            return self.drop_primary_key();
        }
        let before = (def.checks.len(), def.foreign_keys.len());
        def.checks.retain(|c| !same_name(&c.name, name));
        def.foreign_keys.retain(|fk| !same_name(&fk.name, name));
        // The index that came with a foreign key stays: others may use it by now.
        if (def.checks.len(), def.foreign_keys.len()) != before {
            return Ok(());
        }
        let index = def.indexes.iter().find(|i| i.constraint && same_name(&i.name, name)).map(|i| i.name.clone());
        match index {
            Some(index) => {
                drop_index(self.catalog, def, &index, cascade, true, edit)?;
                edit.work.purge.push(self.desc.def.storage);
                Ok(())
            }
            None if if_exists => {
                edit.notice("NotThere", format!("constraint \"{name}\" does not exist, skipping"));
                Ok(())
            }
            None => {
                Err(WireError::sql("42704", format!("constraint \"{name}\" of table \"{}\" does not exist", def.name))
                    .into())
            }
        }
    }

    /// Rows are stored by the primary key, so it can go only with them (or if it is an index beside it).
    fn drop_primary_key(&mut self) -> Result<(), Stop> {
        let name = self.builder.def.name.clone();
        if let Some(index) = self.builder.def.indexes.iter().find(|i| i.primary).map(|i| i.name.clone()) {
            let mut edit = Edit::new(self.catalog);
            return drop_index(self.catalog, &mut self.builder.def, &index, false, true, &mut edit);
        }
        if self.builder.def.primary_key_name.is_empty() {
            return Err(WireError::sql("42704", format!("table \"{name}\" has no primary key")).into());
        }
        let key = self.builder.def.primary_key.clone();
        refuse_if_referenced(self.catalog, &self.builder.def, &key)?;
        self.without_key = true;
        self.new_storage = true;
        self.builder.not_empty = Some(
            WireError::unsupported(format!("dropping the primary key of \"{name}\" while it has rows"))
                .hint("create a new table with CREATE TABLE ... AS SELECT"),
        );
        Ok(())
    }

    fn rename_column(&mut self, old: &str, new: &Ident) -> Result<(), WireError> {
        let at = self.builder.column(old)?;
        let name = self.builder.spell(new)?;
        if let Some((other, _)) = find_column(&self.builder.def, &name)
            && other != at
        {
            return Err(WireError::sql(
                "42701",
                format!("column \"{name}\" of table \"{}\" already exists", self.builder.def.name),
            ));
        }
        let folded = name.to_lowercase();
        for check in &mut self.builder.def.checks {
            check.sql = rename_in(&check.sql, old, &folded)?;
        }
        self.builder.def.columns[usize::from(at)].name = name;
        Ok(())
    }

    fn rename_table(&mut self, new: &ObjectName) -> Result<(), Stop> {
        let (database, folded) = write::locate(self.catalog, self.desc.database, new)?;
        if database != self.desc.database {
            return Err(WireError::unsupported("moving a table to another database").into());
        }
        let name = checked_name((self.ctx.spelled)(&folded))?;
        if !same_name(&name, &self.desc.def.name) {
            check_new_name(self.catalog, database, &folded, &name, true)?;
        }
        self.builder.def.name = name;
        Ok(())
    }

    fn rename_constraint(&mut self, old: &str, new: &Ident) -> Result<(), WireError> {
        let name = self.builder.spell(new)?;
        let def = &mut self.builder.def;
        let names = std::iter::once(&mut def.primary_key_name)
            .chain(def.indexes.iter_mut().map(|i| &mut i.name))
            .chain(def.checks.iter_mut().map(|c| &mut c.name))
            .chain(def.foreign_keys.iter_mut().map(|f| &mut f.name));
        let mut renamed = 0;
        for known in names {
            if same_name(known, &name) && !same_name(&name, old) {
                return Err(WireError::sql("42710", format!("constraint or index \"{name}\" already exists")));
            }
            if !known.is_empty() && same_name(known, old) {
                known.clone_from(&name);
                renamed += 1;
            }
        }
        if renamed == 0 {
            return Err(WireError::sql("42704", format!("constraint or index \"{old}\" does not exist")));
        }
        Ok(())
    }

    fn alter_column(&mut self, name: &str, operation: &AlterColumnOperation) -> Result<(), WireError> {
        let at = self.builder.column(name)?;
        match operation {
            AlterColumnOperation::SetNotNull => self.set_not_null(at),
            AlterColumnOperation::DropNotNull => self.drop_not_null(at)?,
            AlterColumnOperation::SetDefault { value } => {
                let default = self.builder.default(&self.builder.def.columns[usize::from(at)], value)?;
                self.builder.def.columns[usize::from(at)].default = default;
            }
            AlterColumnOperation::DropDefault => self.builder.def.columns[usize::from(at)].default = DefaultValue::None,
            AlterColumnOperation::SetDataType { data_type, using: None, .. } => {
                self.set_type(at, sql_type(data_type)?)?
            }
            AlterColumnOperation::SetDataType { .. } => {
                return Err(WireError::unsupported("SET DATA TYPE ... USING")
                    .hint("add a column, UPDATE it, drop the old one, rename"));
            }
            AlterColumnOperation::AddGenerated { .. } => {
                self.set_not_null(at);
                self.set_sequence(at)?;
            }
        }
        Ok(())
    }

    fn set_not_null(&mut self, at: ColumnPos) {
        let column = &mut self.builder.def.columns[usize::from(at)];
        if !column.not_null {
            column.not_null = true;
            self.builder.validate.push(column.name.clone());
        }
    }

    fn drop_not_null(&mut self, at: ColumnPos) -> Result<(), WireError> {
        let def = &mut self.builder.def;
        let in_key = def.primary_key.contains(&at) || def.indexes.iter().any(|i| i.primary && i.columns.contains(&at));
        let column = &mut def.columns[usize::from(at)];
        if in_key {
            return Err(WireError::sql("42P16", format!("column \"{}\" is in a primary key", column.name)));
        }
        column.not_null = false;
        Ok(())
    }

    fn set_sequence(&mut self, at: ColumnPos) -> Result<(), WireError> {
        let def = &mut self.builder.def;
        let other = def
            .columns
            .iter()
            .enumerate()
            .any(|(n, c)| n != usize::from(at) && !c.dropped && !c.hidden && c.default == DefaultValue::Sequence);
        if other {
            return Err(WireError::unsupported("a second column that counts by itself"));
        }
        if def.columns[usize::from(at)].default != DefaultValue::Sequence {
            def.columns[usize::from(at)].default = DefaultValue::Sequence;
            // Numbers that rows have already are taken note of while filling.
            self.builder.backfill = true;
        }
        Ok(())
    }

    /// MySQL's MODIFY and CHANGE: the column is as described, nothing else.
    fn modify_column(
        &mut self,
        name: &str,
        ty: &ast::DataType,
        options: &[ColumnOption],
        edit: &mut Edit,
    ) -> Result<(), WireError> {
        let at = self.builder.column(name)?;
        self.set_type(at, sql_type(ty)?)?;
        let (mut not_null, mut default, mut counts) = (false, DefaultValue::None, false);
        for option in options {
            match option {
                ColumnOption::NotNull => not_null = true,
                ColumnOption::Null => {}
                ColumnOption::Default(expr) => {
                    default = self.builder.default(&self.builder.def.columns[usize::from(at)], expr)?
                }
                ColumnOption::DialectSpecific(tokens)
                    if format!("{tokens:?}").to_uppercase().contains("AUTO_INCREMENT") =>
                {
                    counts = true
                }
                ColumnOption::Comment(_) | ColumnOption::CharacterSet(_) | ColumnOption::Collation(_) => {
                    edit.notice("OptionIgnored", format!("{option} is ignored"));
                }
                other => {
                    return Err(
                        WireError::unsupported(format!("{other} in MODIFY or CHANGE")).hint("use ADD CONSTRAINT")
                    );
                }
            }
        }
        if counts {
            not_null = true;
            self.set_sequence(at)?;
        } else {
            self.builder.def.columns[usize::from(at)].default = default;
        }
        if not_null {
            self.set_not_null(at);
        } else if !self.builder.def.primary_key.contains(&at) {
            self.drop_not_null(at)?;
        }
        Ok(())
    }

    fn set_type(&mut self, at: ColumnPos, ty: SqlType) -> Result<(), WireError> {
        let def = &mut self.builder.def;
        let table = def.name.clone();
        let column = &mut def.columns[usize::from(at)];
        let old = std::mem::replace(&mut column.ty, ty);
        let room = |t| match t {
            SqlType::Varchar(n) | SqlType::Char(n) => Some(n),
            _ => None,
        };
        // Text is stored alike whatever its limit.
        let stays = old == ty
            || (is_text(old) && is_text(ty) && room(ty).is_none_or(|new| room(old).is_some_and(|old| old <= new)));
        if stays {
            return Ok(());
        }
        column.added = Value::Null;
        let name = column.name.clone();
        self.new_storage = true;
        self.builder.not_empty.get_or_insert_with(|| {
            WireError::unsupported(format!(
                "changing \"{table}\".\"{name}\" from {old} to {ty} while the table has rows"
            ))
            .hint("add a column of the new type, UPDATE it, drop the old one, rename")
        });
        if matches!(column.default, DefaultValue::Sql(_)) {
            crate::sql::insert::fill_of(column)?;
        }
        Ok(())
    }

    /// An index that came with a foreign key goes when one is made that does its work.
    fn replace_implied(&mut self, columns: &[ColumnPos]) {
        let def = &self.builder.def;
        let implied = def.indexes.iter().filter(|i| {
            !i.unique
                && !i.constraint
                && columns.starts_with(&i.columns)
                && def.foreign_keys.iter().any(|fk| fk.name == i.name)
        });
        // The new index itself is the last one.
        let last = def.next_index.get();
        self.replaced = implied.filter(|i| i.id.get() + 1 != last).map(|i| i.id).collect();
    }

    /// The change: straight where rows need nothing, else filled; with a way of its own for a table without rows.
    fn finish(self, edit: &mut Edit) {
        let before = &self.desc.def;
        let mut builder = self.builder;
        edit.work.uses.append(&mut builder.uses);
        let mut last = builder.def.clone();
        last.indexes.retain(|i| !self.replaced.contains(&i.id));
        last.indexes.iter_mut().for_each(|i| i.state = IndexState::Public);
        last.foreign_keys.iter_mut().for_each(|fk| fk.validated = true);
        let fills = builder.backfill || !builder.validate.is_empty();
        if !self.replaced.is_empty() {
            edit.work.purge.push(before.storage);
        }
        let mut if_empty = None;
        if fills || builder.not_empty.is_some() || builder.rekey.is_some() {
            let mut def = TableDef { version: version_after(before, 4), ..last.clone() };
            if let Some(key) = &builder.rekey {
                rekey(&mut def, key);
            }
            if self.without_key {
                def.columns.push(row_id());
                def.primary_key = vec![ColumnPos::try_from(def.columns.len() - 1).unwrap_or(ColumnPos::MAX)];
                def.primary_key_name = String::new();
            }
            if builder.rekey.is_some() || self.new_storage {
                def.storage = edit.next_table();
                edit.work.purge.push(before.storage);
            }
            if_empty = Some(def);
        }
        let next_index = builder.def.next_index;
        let fill = fills.then(|| Fill {
            backfill: builder.backfill,
            validate: builder.validate,
            public: TableDef { version: version_after(before, 2), ..last },
            // Ids of indexes are never used again.
            rolled_back: TableDef { version: version_after(before, 3), next_index, ..before.clone() },
        });
        let fenced = TableDef { version: version_after(before, 1), ..builder.def };
        edit.work.changes.push(Change {
            if_empty,
            not_empty: builder.not_empty,
            fill,
            ..fence_only(self.desc, Some(fenced))
        });
    }
}

/// The declared primary key becomes the key that rows are stored by.
fn rekey(def: &mut TableDef, key: &[ColumnPos]) {
    if let Some(at) = def.indexes.iter().position(|i| i.primary) {
        def.primary_key_name = def.indexes.remove(at).name;
    }
    for at in std::mem::replace(&mut def.primary_key, key.to_vec()) {
        let column = &mut def.columns[usize::from(at)];
        if column.hidden {
            column.dropped = true;
            column.not_null = false;
            column.default = DefaultValue::None;
        }
    }
}

fn is_cascade(behavior: Option<DropBehavior>) -> bool {
    behavior == Some(DropBehavior::Cascade)
}

/// Removes an index from a definition.
///
/// # Errors
/// When a constraint or a foreign key needs it.
pub(super) fn drop_index(
    catalog: &Catalog,
    def: &mut TableDef,
    name: &str,
    cascade: bool,
    constraint_too: bool,
    edit: &mut Edit,
) -> Result<(), Stop> {
    let Some(at) = def.indexes.iter().position(|i| i.name == name) else { return Ok(()) };
    let index = &def.indexes[at];
    if index.constraint && !constraint_too {
        return Err(WireError::sql(
            "2BP01",
            format!("cannot drop index {name} because constraint {name} on table {} requires it", def.name),
        )
        .hint(format!("use ALTER TABLE {} DROP CONSTRAINT {name}", def.name))
        .into());
    }
    let columns = index.columns.clone();
    let same = |key: &[ColumnPos]| key.len() == columns.len() && key.iter().all(|c| columns.contains(c));
    let other =
        same(&def.primary_key) || def.indexes.iter().enumerate().any(|(n, i)| n != at && i.unique && same(&i.columns));
    if index.unique && !other {
        if cascade {
            drop_references(catalog, def, &columns, edit)?;
        } else {
            refuse_if_referenced(catalog, def, &columns)?;
        }
    }
    let needed = def.foreign_keys.iter().find(|fk| {
        let serves = |key: &[ColumnPos]| key.starts_with(&fk.columns);
        serves(&columns)
            && !serves(&def.primary_key)
            && !def.indexes.iter().enumerate().any(|(n, i)| n != at && serves(&i.columns))
    });
    if let Some(fk) = needed {
        return Err(WireError::sql(
            "2BP01",
            format!("cannot drop index {name}: needed in foreign key constraint \"{}\"", fk.name),
        )
        .hint("create another index that begins with its columns, or drop the foreign key first")
        .into());
    }
    def.indexes.remove(at);
    Ok(())
}

/// Foreign keys of other tables (or this one) to these columns.
fn refuse_if_referenced(catalog: &Catalog, def: &TableDef, columns: &[ColumnPos]) -> Result<(), Stop> {
    let own = def.foreign_keys.iter().map(|fk| (fk, &def.name));
    let others = catalog
        .tables
        .values()
        .filter(|d| d.def.id != def.id)
        .flat_map(|d| d.def.foreign_keys.iter().map(|fk| (fk, &d.def.name)));
    let refers = own.chain(others).find(|(fk, _)| {
        fk.parent == def.id
            && fk.parent_columns.len() == columns.len()
            && fk.parent_columns.iter().all(|c| columns.contains(c))
    });
    match refers {
        None => Ok(()),
        Some((fk, table)) => Err(WireError::sql(
            "2BP01",
            format!("cannot drop the key of table {} because other objects depend on it", def.name),
        )
        .detail(format!("constraint {} on table {table} depends on it", fk.name))
        .hint("use DROP ... CASCADE, or drop that constraint first")
        .into()),
    }
}

/// CASCADE: the foreign keys that refer to these columns go.
fn drop_references(catalog: &Catalog, def: &mut TableDef, columns: &[ColumnPos], edit: &mut Edit) -> Result<(), Stop> {
    let id = def.id;
    let refers = |fk: &quorate_core::table::ForeignKeyDef| {
        fk.parent == id
            && fk.parent_columns.len() == columns.len()
            && fk.parent_columns.iter().all(|c| columns.contains(c))
    };
    def.foreign_keys.retain(|fk| !refers(fk));
    for desc in catalog.tables.values().filter(|d| d.def.id != id && d.def.foreign_keys.iter().any(refers)) {
        super::announce::check_free(catalog, desc.def.id)?;
        let mut other = desc.def.clone();
        for fk in other.foreign_keys.iter().filter(|fk| refers(fk)) {
            edit.notice("Cascades", format!("drop cascades to constraint {} on table {}", fk.name, other.name));
        }
        other.foreign_keys.retain(|fk| !refers(fk));
        other.version = version_after(&other, 1);
        edit.work.changes.push(fence_only(desc, Some(other)));
    }
    Ok(())
}

/// A stored expression with one column renamed.
fn rename_in(sql: &str, old: &str, new: &str) -> Result<String, WireError> {
    use std::ops::ControlFlow;
    let mut expr = select::expression(sql)?;
    let rename = |ident: &mut Ident| {
        if same_name(&ident.value, old) {
            new.clone_into(&mut ident.value);
            let plain = new.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            ident.quote_style = if plain { None } else { Some('"') };
        }
    };
    let _: ControlFlow<()> = ast::visit_expressions_mut(&mut expr, |e: &mut Ast| {
        match e {
            Ast::Identifier(ident) => rename(ident),
            Ast::CompoundIdentifier(parts) => {
                if let Some(last) = parts.last_mut() {
                    rename(last);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    });
    Ok(expr.to_string())
}
