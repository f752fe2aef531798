//! Aggregating subqueries that are correlated by more than equality: `(SELECT count(*) FROM t x WHERE x.a < t.a)`.
//!
//! The planner turns a correlated scalar subquery into a join only where the correlation is an equality. This rule does
//! the rest: every outer row gets a number, is joined (left) with the inner rows its condition finds, and the result is
//! grouped by the outer row again. It runs before type coercion.
//!
//! Left out: subqueries with GROUP BY, HAVING, DISTINCT or LIMIT inside, and those nested in other subqueries' conditions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, Result, ScalarValue};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Expr, Filter, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, col,
};
use datafusion::optimizer::AnalyzerRule;

/// The rule; numbers the columns it adds.
#[derive(Debug, Default)]
pub struct Correlated {
    next: AtomicU64,
}

/// A subquery this rule takes over.
struct Parts<'a> {
    output: &'a Expr,
    aggregate: &'a Aggregate,
    filter: &'a Filter,
}

fn parts(subquery: &Subquery) -> Option<Parts<'_>> {
    let LogicalPlan::Projection(projection) = subquery.subquery.as_ref() else { return None };
    let [output] = projection.expr.as_slice() else { return None };
    let LogicalPlan::Aggregate(aggregate) = projection.input.as_ref() else { return None };
    let LogicalPlan::Filter(filter) = aggregate.input.as_ref() else { return None };
    let beyond_equality = split_conjunction(&filter.predicate)
        .into_iter()
        .any(|c| c.contains_outer() && !matches!(c, Expr::BinaryExpr(BinaryExpr { op: Operator::Eq, .. })));
    let nested = subqueries_in(&filter.predicate)
        || output.contains_outer()
        || aggregate.aggr_expr.iter().any(Expr::contains_outer);
    let inner_outer = has_outer(&filter.input);
    (aggregate.group_expr.is_empty() && beyond_equality && !nested && !inner_outer).then_some(Parts {
        output,
        aggregate,
        filter,
    })
}

fn subqueries_in(expr: &Expr) -> bool {
    expr.exists(|e| Ok(matches!(e, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_)))).unwrap_or(true)
}

fn has_outer(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|e| {
            found |= e.contains_outer();
            Ok(TreeNodeRecursion::Continue)
        })
    });
    walked.is_err() || found
}

impl Correlated {
    fn name(&self, what: &str) -> String {
        format!("__{what}{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Joins a subquery to its outer plan; gives the new outer plan and what stands for the subquery.
    fn join(&self, outer: LogicalPlan, parts: &Parts<'_>) -> Result<(LogicalPlan, Expr)> {
        let outer = LogicalPlanBuilder::from(outer).window(vec![row_number().alias(self.name("row"))])?.build()?;
        // Inner columns get names of their own: the outer plan may have the same ones.
        let mut renamed: HashMap<Column, Column> = HashMap::new();
        let mut inner_columns = Vec::new();
        for (qualifier, field) in parts.filter.input.schema().iter() {
            let from = Column::new(qualifier.cloned(), field.name());
            let to = self.name("in");
            inner_columns.push(Expr::Column(from.clone()).alias(&to));
            renamed.insert(from, Column::from_name(to));
        }
        let here = self.name("here");
        inner_columns.push(Expr::Literal(ScalarValue::Boolean(Some(true)), None).alias(&here));
        let inner = LogicalPlanBuilder::from(parts.filter.input.as_ref().clone()).project(inner_columns)?.build()?;
        let map = |expr: Expr| -> Result<Expr> {
            let mapped = expr.transform_up(|e| {
                Ok(match e {
                    Expr::Column(c) => match renamed.get(&c) {
                        Some(to) => Transformed::yes(Expr::Column(to.clone())),
                        None => Transformed::no(Expr::Column(c)),
                    },
                    Expr::OuterReferenceColumn(_, c) => Transformed::yes(Expr::Column(c)),
                    other => Transformed::no(other),
                })
            })?;
            Ok(mapped.data)
        };
        let groups: Vec<Expr> =
            outer.schema().iter().map(|(q, f)| Expr::Column(Column::new(q.cloned(), f.name()))).collect();
        let mut aggregates = Vec::new();
        let mut results: HashMap<Column, Expr> = HashMap::new();
        for (i, expr) in parts.aggregate.aggr_expr.iter().enumerate() {
            let to = self.name("agg");
            let (qualifier, field) = parts.aggregate.schema.qualified_field(i);
            results.insert(Column::new(qualifier.cloned(), field.name()), col(Column::from_name(&to)));
            aggregates.push(count_found(map(expr.clone())?, &here)?.alias(to));
        }
        let on = map(parts.filter.predicate.clone())?;
        let plan = LogicalPlanBuilder::from(outer)
            .join_on(inner, JoinType::Left, [on])?
            .aggregate(groups, aggregates)?
            .build()?;
        let output = parts.output.clone().transform_up(|e| {
            Ok(match e {
                Expr::Column(c) => match results.get(&c) {
                    Some(to) => Transformed::yes(to.clone()),
                    None => Transformed::no(Expr::Column(c)),
                },
                other => Transformed::no(other),
            })
        })?;
        Ok((plan, output.data.unalias_nested().data))
    }

    /// Takes every such subquery out of expressions over a plan.
    fn extract(&self, exprs: Vec<Expr>, mut plan: LogicalPlan) -> Result<Option<(Vec<Expr>, LogicalPlan)>> {
        let mut any = false;
        let mut out = Vec::with_capacity(exprs.len());
        for expr in exprs {
            let name = expr.schema_name().to_string();
            let was_column = matches!(expr, Expr::Column(_));
            let rewritten = expr.transform_up(|e| {
                let Expr::ScalarSubquery(subquery) = &e else { return Ok(Transformed::no(e)) };
                let Some(parts) = parts(subquery) else { return Ok(Transformed::no(e)) };
                let (joined, value) = self.join(plan.clone(), &parts)?;
                plan = joined;
                Ok(Transformed::yes(value))
            })?;
            any |= rewritten.transformed;
            let keep = !rewritten.transformed || was_column || matches!(rewritten.data, Expr::Alias(_));
            out.push(if keep { rewritten.data } else { rewritten.data.alias(name) });
        }
        Ok(any.then_some((out, plan)))
    }

    fn rewrite(&self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        match &plan {
            LogicalPlan::Projection(projection) => {
                match self.extract(projection.expr.clone(), projection.input.as_ref().clone())? {
                    Some((exprs, input)) => {
                        LogicalPlanBuilder::from(input).project(exprs)?.build().map(Transformed::yes)
                    }
                    None => Ok(Transformed::no(plan)),
                }
            }
            LogicalPlan::Filter(filter) => {
                match self.extract(vec![filter.predicate.clone()], filter.input.as_ref().clone())? {
                    Some((exprs, input)) => {
                        let Some(predicate) = exprs.into_iter().next().map(|e| e.unalias_nested().data) else {
                            return Ok(Transformed::no(plan));
                        };
                        let columns: Vec<Expr> = filter
                            .input
                            .schema()
                            .iter()
                            .map(|(q, f)| Expr::Column(Column::new(q.cloned(), f.name())))
                            .collect();
                        let filtered = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?);
                        LogicalPlanBuilder::from(filtered).project(columns)?.build().map(Transformed::yes)
                    }
                    None => Ok(Transformed::no(plan)),
                }
            }
            _ => Ok(Transformed::no(plan)),
        }
    }
}

/// `count(*)` over a left join counts the rows that were found, not the outer row that found none.
fn count_found(expr: Expr, here: &str) -> Result<Expr> {
    let counted = expr.transform_up(|e| {
        Ok(match e {
            Expr::AggregateFunction(AggregateFunction { func, mut params })
                if func.name() == "count" && params.args.iter().all(|a| a.column_refs().is_empty()) =>
            {
                params.args = vec![col(Column::from_name(here))];
                Transformed::yes(Expr::AggregateFunction(AggregateFunction { func, params }))
            }
            other => Transformed::no(other),
        })
    })?;
    Ok(counted.data.unalias_nested().data)
}

impl AnalyzerRule for Correlated {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        Ok(plan.transform_up_with_subqueries(|p| self.rewrite(p))?.data)
    }

    fn name(&self) -> &'static str {
        "correlated_by_more_than_equality"
    }
}
