//! Names in a statement: databases, tables, views, functions. What the planner asks while it turns text into a plan.
//!
//! A name without a database is looked up in the session's; `a.t` names database `a`; `quorate` holds the system tables
//! and `information_schema` is there in every database. Views are expanded where they are used.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::catalog::TableFunctionArgs;
use datafusion::common::{DataFusionError, Result, TableReference};
use datafusion::config::ConfigOptions;
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner, TypePlanner};
use datafusion::logical_expr::{
    AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, LogicalPlanBuilder, ScalarUDF, TableSource, WindowUDF, col,
};
use datafusion::sql::planner::{ParserOptions, SqlToRel};
use quorate_core::catalog::{Catalog, TableDesc, ViewDesc};
use quorate_shared::error::WireError;
use quorate_shared::ids::{ShardId, TableId};
use quorate_shared::limits::DATABASE_SYSTEM;
use sqlparser::ast;

use super::errors::{external, nearest};
use super::parse::{self, Label};
use super::provider::QuorateTable;
use super::{convert, functions, system};

/// Views inside views.
const VIEW_DEPTH_MAX: usize = 16;

/// What the statement turned out to use.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// Shards its tables live in.
    pub shards: BTreeSet<ShardId>,
    /// Those tables.
    pub tables: BTreeSet<TableId>,
    /// Lower-case column names with the catalog's spelling.
    pub columns: HashMap<String, String>,
    /// It reads the cluster's picture.
    pub picture: bool,
    /// It reads the list of running statements.
    pub running: bool,
}

/// Resolves the names of one statement.
pub struct Names<'a> {
    state: &'a SessionState,
    catalog: &'a Arc<Catalog>,
    database: String,
    mentioned: HashSet<String>,
    depth: usize,
    types: Arc<dyn TypePlanner>,
    used: Arc<Mutex<Used>>,
    facts: Arc<functions::SessionFacts>,
}

impl<'a> Names<'a> {
    /// For a statement of a session in `database`; `mentioned` are the column names in its text.
    pub fn new(
        state: &'a SessionState,
        catalog: &'a Arc<Catalog>,
        database: &str,
        mentioned: HashSet<String>,
        facts: Arc<functions::SessionFacts>,
    ) -> Self {
        Self {
            state,
            catalog,
            database: database.to_owned(),
            mentioned,
            depth: 0,
            types: Arc::new(Types),
            used: Arc::default(),
            facts,
        }
    }

    /// What was used until now.
    pub fn used(&self) -> Used {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans a query.
    ///
    /// # Errors
    /// The planner's.
    pub fn plan(&self, query: ast::Query) -> Result<LogicalPlan> {
        let options = ParserOptions {
            parse_float_as_decimal: true,
            enable_ident_normalization: false,
            support_varchar_with_length: true,
            map_string_types_to_utf8view: false,
            ..ParserOptions::default()
        };
        SqlToRel::new_with_options(self, options).sql_statement_to_plan(ast::Statement::Query(Box::new(query)))
    }

    fn table(&self, database: &str, name: &str) -> Result<Arc<dyn TableSource>> {
        if database == DATABASE_SYSTEM {
            let mut used = self.lock();
            used.picture |= name != "queries";
            used.running |= name == "queries";
            drop(used);
            return system::table(name)
                .map(provider_as_source)
                .ok_or_else(|| unknown_table(database, name, &system::NAMES));
        }
        if database == "information_schema" {
            return system::information_schema(name, self.catalog, &self.database)
                .map(provider_as_source)
                .ok_or_else(|| unknown_table(database, name, &["tables", "columns"]));
        }
        let Some(desc) = self.catalog.databases.get(database) else {
            let names: Vec<&str> = self.catalog.databases.keys().map(String::as_str).collect();
            let error = WireError::sql("3D000", format!("database \"{database}\" does not exist"));
            return Err(external(match nearest(database, &names) {
                Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                None => error.hint("SHOW DATABASES lists those there are"),
            }));
        };
        let key = (desc.id, name.to_owned());
        if let Some(table) = self.catalog.tables.get(&key).filter(|t| t.public) {
            return Ok(provider_as_source(Arc::new(self.base(table))));
        }
        if let Some(view) = self.catalog.views.get(&key) {
            return self.view(database, view);
        }
        if name == "dual" {
            return Ok(provider_as_source(system::dual()));
        }
        let tables = self
            .catalog
            .tables
            .range((desc.id, String::new())..)
            .take_while(|((d, _), _)| *d == desc.id)
            .map(|((_, n), _)| n.as_str());
        let views = self
            .catalog
            .views
            .range((desc.id, String::new())..)
            .take_while(|((d, _), _)| *d == desc.id)
            .map(|((_, n), _)| n.as_str());
        Err(unknown_table(database, name, &tables.chain(views).collect::<Vec<_>>()))
    }

    fn base(&self, table: &TableDesc) -> QuorateTable {
        let mut used = self.lock();
        used.shards.insert(table.shard);
        used.tables.insert(table.def.id);
        for column in table.def.columns.iter().filter(|c| !c.dropped && c.name.chars().any(char::is_uppercase)) {
            used.columns.entry(column.name.to_lowercase()).or_insert_with(|| column.name.clone());
        }
        drop(used);
        QuorateTable::new(table.clone(), &self.mentioned)
    }

    fn view(&self, database: &str, view: &ViewDesc) -> Result<Arc<dyn TableSource>> {
        if self.depth >= VIEW_DEPTH_MAX {
            return Err(external(WireError::sql("54001", format!("views are nested more than {VIEW_DEPTH_MAX} deep"))));
        }
        let parsed = parse::parse(&view.sql).map_err(external)?;
        let ast::Statement::Query(query) = parsed.statement else {
            return Err(external(WireError::sql("42809", format!("view \"{}\" is no query", view.name))));
        };
        let inner = Names {
            state: self.state,
            catalog: self.catalog,
            database: database.to_owned(),
            mentioned: HashSet::new(),
            depth: self.depth + 1,
            types: Arc::clone(&self.types),
            used: Arc::clone(&self.used),
            facts: Arc::clone(&self.facts),
        };
        let plan = inner.plan(*query)?;
        let plan = self.rename(plan, view, &parsed.labels)?;
        Ok(provider_as_source(Arc::new(ViewTable::new(plan, Some(view.sql.clone())))))
    }

    /// Gives a view's columns the names they have outside: those of CREATE VIEW, or the SELECT's labels.
    fn rename(&self, plan: LogicalPlan, view: &ViewDesc, labels: &[Label]) -> Result<LogicalPlan> {
        let fields: Vec<_> = plan.schema().iter().map(|(q, f)| (q.cloned(), f.name().clone())).collect();
        let labelled = labels.len() == fields.len() && !labels.contains(&Label::Wildcard);
        let mut taken = HashSet::new();
        let mut exprs = Vec::with_capacity(fields.len());
        for (i, (qualifier, name)) in fields.into_iter().enumerate() {
            let spelled = match (view.columns.get(i), labels.get(i)) {
                (Some(given), _) => given.clone(),
                (None, Some(Label::Text(text))) if labelled => text.clone(),
                _ => name.clone(),
            };
            let mut outer = spelled.to_lowercase();
            while !taken.insert(outer.clone()) {
                outer.push_str("_1");
            }
            if outer != spelled {
                self.lock().columns.entry(outer.clone()).or_insert(spelled);
            }
            exprs.push(Expr::Column(datafusion::common::Column::new(qualifier, name)).alias(outer));
        }
        LogicalPlanBuilder::from(plan).project(exprs)?.build()
    }
}

fn unknown_table(database: &str, name: &str, names: &[&str]) -> DataFusionError {
    let error = WireError::sql("42P01", format!("table \"{name}\" does not exist in database \"{database}\""));
    external(match nearest(name, names) {
        Some(near) => error.hint(format!("did you mean \"{near}\"?")),
        None => error.hint("SHOW TABLES lists those there are"),
    })
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        match name {
            TableReference::Bare { table } => self.table(&self.database, &table),
            TableReference::Partial { schema, table }
                if &*schema == "public" && !self.catalog.databases.contains_key("public") =>
            {
                self.table(&self.database, &table)
            }
            TableReference::Partial { schema, table } => self.table(&schema, &table),
            TableReference::Full { catalog, schema, table } => match &*schema {
                "public" => self.table(&catalog, &table),
                "information_schema" => self.table("information_schema", &table),
                _ => Err(external(
                    WireError::sql("3F000", format!("there is no schema \"{schema}\""))
                        .hint("tables are named database.table"),
                )),
            },
        }
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        let Some(function) = self.state.table_functions().get(name) else {
            return Err(external(WireError::sql("42883", format!("table function {name}() does not exist"))));
        };
        let provider = function.create_table_provider_with_args(TableFunctionArgs::new(&args, self.state))?;
        Ok(provider_as_source(provider))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::clone(&self.types))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        functions::of_session(name, &self.facts).or_else(|| self.state.scalar_functions().get(name).cloned())
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _variable_names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().filter(|n| !functions::is_internal(n)).cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}

/// Declared types in casts.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> Result<Option<FieldRef>> {
        match sql_type {
            ast::DataType::Array(_) => Ok(None),
            other => Ok(Some(Arc::new(convert::field("", convert::declared_type(other).map_err(external)?, true)))),
        }
    }
}

/// Every bare column name a query mentions.
pub fn mentioned(query: &ast::Query) -> HashSet<String> {
    use sqlparser::ast::{Visit, Visitor};
    struct Collect(HashSet<String>);
    impl Visitor for Collect {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &ast::Expr) -> std::ops::ControlFlow<()> {
            match expr {
                ast::Expr::Identifier(ident) => _ = self.0.insert(ident.value.clone()),
                ast::Expr::CompoundIdentifier(parts) => {
                    if let Some(last) = parts.last() {
                        self.0.insert(last.value.clone());
                    }
                }
                _ => {}
            }
            std::ops::ControlFlow::Continue(())
        }
    }
    let mut collect = Collect(HashSet::new());
    let _ = query.visit(&mut collect);
    collect.0
}

/// A column by its bare name; for plans built by hand.
pub fn column(name: &str) -> Expr {
    col(datafusion::common::Column::from_name(name))
}
