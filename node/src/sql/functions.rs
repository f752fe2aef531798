//! Functions that PostgreSQL's and MySQL's users expect and the planner lacks, and arithmetic that does not wrap.
//!
//! `row` turns a Rust function over values into one the planner can call; `dates`, `json` and `misc` are written with
//! it; `arithmetic` replaces integer `+ - *` by checked ones; `floats` lets floats win over decimals; `correlated` runs
//! subqueries the planner cannot; `literals` reads text where it meets bytes, UUIDs or times; `sum` is a checked `sum`
//! over integers.
//!
//! To add a function: write `fn(&[Value]) -> Result<Value, WireError>` in one of these, and list it in its `all()`.

pub mod arithmetic;
pub mod correlated;
pub mod dates;
pub mod floats;
pub mod json;
pub mod literals;
pub mod misc;
pub mod row;
pub mod sum;

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{AggregateUDF, Expr, LogicalPlan, ScalarUDF};
use datafusion::optimizer::{Analyzer, AnalyzerRule};

/// What functions may know of their session.
#[derive(Clone, Debug, Default)]
pub struct SessionFacts {
    /// `current_user`.
    pub user: String,
    /// `current_database()`.
    pub database: String,
    /// `connection_id()`.
    pub session: u64,
}

/// Whether a function is ours only, not for users.
pub fn is_internal(name: &str) -> bool {
    matches!(name, "+" | "-" | "*" | "to_json_text")
}

/// Functions whose value depends on the session: each statement gets its own.
pub fn of_session(name: &str, facts: &SessionFacts) -> Option<Arc<ScalarUDF>> {
    misc::of_session(name, facts).map(|f| Arc::new(ScalarUDF::from(f)))
}

/// Rewrites every expression of a plan and of its subqueries, inner ones first; columns keep their names.
fn rewrite_expressions(
    plan: LogicalPlan,
    rewrite: impl Fn(Expr, &DFSchema) -> Result<Transformed<Expr>>,
) -> Result<LogicalPlan> {
    let rewritten = plan.transform_up_with_subqueries(|plan| {
        let schema = merge_schema(&plan.inputs());
        let names = NamePreserver::new(&plan);
        let changed = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(|e| rewrite(e, &schema))?.update_data(|e| name.restore(e)))
        })?;
        if changed.transformed { changed.map_data(LogicalPlan::recompute_schema) } else { Ok(changed) }
    })?;
    Ok(rewritten.data)
}

/// Rules added to the planner.
pub fn add_rules(builder: SessionStateBuilder) -> SessionStateBuilder {
    let mut rules: Vec<Arc<dyn AnalyzerRule + Send + Sync>> = vec![
        Arc::new(literals::Literals::default()),
        Arc::new(correlated::Correlated::default()),
        Arc::new(floats::Floats),
    ];
    rules.extend(Analyzer::new().rules);
    rules.push(Arc::new(arithmetic::Checked::default()));
    builder.with_analyzer_rules(rules)
}

/// Registers every function.
///
/// # Errors
/// None that a user could cause.
pub fn register(state: &mut SessionState) -> Result<()> {
    for function in dates::all().into_iter().chain(json::all()).chain(misc::all()) {
        state.register_udf(Arc::new(ScalarUDF::from(function)))?;
    }
    state.register_udf(Arc::new(ScalarUDF::from(dates::Now::default())))?;
    let inner = state.udaf("sum")?;
    state.register_udaf(Arc::new(AggregateUDF::from(sum::CheckedSum::new(inner))))?;
    state.register_expr_planner(Arc::new(json::Operators))?;
    Ok(())
}
