//! Habits of MySQL and PostgreSQL that the planner does not know, rewritten on the parsed statement.
//!
//! Only what has an exact equivalent is rewritten: `IF(a, b, c)` becomes `CASE`, `GROUP_CONCAT` becomes `string_agg`,
//! `DATE_ADD(d, INTERVAL …)` becomes `d + INTERVAL …`, a cast to UUID or JSON becomes the function that checks it, and
//! ranking functions are cast to BIGINT so that arithmetic on them may go below zero.

use std::ops::ControlFlow;

use quorate_shared::error::WireError;
use sqlparser::ast::helpers::attached_token::AttachedToken;
use sqlparser::ast::{
    BinaryOperator, CaseWhen, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArgumentList, FunctionArguments, Ident, ObjectName, OrderByExpr, Query, Select, SelectItem, SetExpr,
    Statement, TableFactor, TableWithJoins, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut,
};

use super::parse::Flavour;

/// Rewrites a whole statement.
///
/// # Errors
/// What is refused by name already here.
pub fn normalise(statement: &mut Statement, flavour: Flavour) -> Result<(), WireError> {
    match statement.visit(&mut Normaliser { flavour }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

struct Normaliser {
    flavour: Flavour,
}

impl VisitorMut for Normaliser {
    type Break = WireError;

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<WireError> {
        if let Value::NationalStringLiteral(text) = &mut value.value {
            value.value = Value::SingleQuotedString(std::mem::take(text));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<WireError> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                let _ = expr.visit(&mut Membership { depth: 0 });
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<WireError> {
        match expr {
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr: inner, data_type, .. } => {
                let function = match data_type {
                    DataType::Uuid => Some("to_uuid"),
                    DataType::JSON | DataType::JSONB => Some("to_json_text"),
                    _ => None,
                };
                if let Some(name) = function {
                    let inner = take(inner);
                    *expr = call(name, vec![inner]);
                }
            }
            Expr::BinaryOp { left, op, right } => match op {
                BinaryOperator::Spaceship => {
                    *expr = Expr::IsNotDistinctFrom(Box::new(take(left)), Box::new(take(right)))
                }
                BinaryOperator::MyIntegerDivide => {
                    let divided = Expr::BinaryOp {
                        left: Box::new(take(left)),
                        op: BinaryOperator::Divide,
                        right: Box::new(take(right)),
                    };
                    *expr = cast(call("trunc", vec![divided]), DataType::BigInt(None));
                }
                _ => {}
            },
            Expr::UnaryOp { op: UnaryOperator::Plus, expr: inner } => *expr = take(inner),
            Expr::RLike { negated, expr: inner, pattern, .. } => {
                let op = match negated {
                    true => BinaryOperator::PGRegexNotIMatch,
                    false => BinaryOperator::PGRegexIMatch,
                };
                *expr = Expr::BinaryOp { left: Box::new(take(inner)), op, right: Box::new(take(pattern)) };
            }
            Expr::Function(_) => {
                let owned = std::mem::replace(expr, Expr::Identifier(Ident::new("")));
                if let Expr::Function(function) = owned {
                    *expr = self.function(function);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// `x IN (SELECT …)` and `EXISTS (…)` outside of WHERE: the planner knows them as joins only, so in a SELECT list they
/// become counts.
struct Membership {
    depth: usize,
}

impl VisitorMut for Membership {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth > 0 {
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Exists { subquery, negated } => {
                let some = count(take_query(subquery), None);
                *expr = nested(some, if *negated { BinaryOperator::Eq } else { BinaryOperator::Gt });
            }
            Expr::InSubquery { expr: wanted, subquery, negated } => {
                let wanted = take(wanted);
                let member = Expr::CompoundIdentifier(vec![Ident::new("__in"), Ident::new("__v")]);
                let subquery = take_query(subquery);
                let equal = Expr::BinaryOp {
                    left: Box::new(member.clone()),
                    op: BinaryOperator::Eq,
                    right: Box::new(wanted.clone()),
                };
                let found = nested(count(subquery.clone(), Some(equal)), BinaryOperator::Gt);
                let nulls = nested(count(subquery.clone(), Some(Expr::IsNull(Box::new(member)))), BinaryOperator::Gt);
                let unknown = Expr::BinaryOp {
                    left: Box::new(Expr::IsNull(Box::new(wanted))),
                    op: BinaryOperator::And,
                    right: Box::new(nested(count(subquery, None), BinaryOperator::Gt)),
                };
                let when = |condition, result| CaseWhen { condition, result };
                *expr = Expr::Case {
                    case_token: AttachedToken::empty(),
                    end_token: AttachedToken::empty(),
                    operand: None,
                    conditions: vec![when(found, boolean(!*negated)), when(nulls, null()), when(unknown, null())],
                    else_result: Some(Box::new(boolean(*negated))),
                };
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn boolean(value: bool) -> Expr {
    Expr::Value(Value::Boolean(value).with_empty_span())
}

fn null() -> Expr {
    Expr::Value(Value::Null.with_empty_span())
}

/// `(count > 0)` or `(count = 0)`.
fn nested(count: Expr, op: BinaryOperator) -> Expr {
    let zero = Expr::Value(Value::Number("0".into(), false).with_empty_span());
    Expr::Nested(Box::new(Expr::BinaryOp { left: Box::new(count), op, right: Box::new(zero) }))
}

/// `(SELECT count(*) FROM (subquery) AS __in (__v) WHERE filter)`.
fn count(subquery: Query, filter: Option<Expr>) -> Expr {
    let dialect = sqlparser::dialect::PostgreSqlDialect {};
    let text = match filter {
        Some(_) => "SELECT count(*) FROM (SELECT 1) AS __in (__v) WHERE true",
        None => "SELECT count(*) FROM (SELECT 1) AS __in",
    };
    let parsed = sqlparser::parser::Parser::new(&dialect).try_with_sql(text).and_then(|mut p| p.parse_query());
    let Ok(mut query) = parsed else { return null() };
    if let SetExpr::Select(select) = query.body.as_mut() {
        if let Some(TableWithJoins { relation: TableFactor::Derived { subquery: place, .. }, .. }) =
            select.from.first_mut()
        {
            **place = subquery;
        }
        if filter.is_some() {
            select.selection = filter;
        }
    }
    Expr::Subquery(query)
}

/// Takes a query out of its place.
fn take_query(place: &mut Query) -> Query {
    let empty = Query {
        with: None,
        body: Box::new(SetExpr::Values(sqlparser::ast::Values {
            explicit_row: false,
            value_keyword: false,
            rows: Vec::new(),
        })),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    };
    std::mem::replace(place, empty)
}

impl Normaliser {
    fn function(&self, mut function: Function) -> Expr {
        let name = match function.name.0.as_slice() {
            [part] => part.as_ident().map(|i| i.value.clone()).unwrap_or_default(),
            _ => return Expr::Function(function),
        };
        match name.as_str() {
            "if" | "iff" => {
                if let Some([condition, then, otherwise]) = three(&function) {
                    return Expr::Case {
                        case_token: AttachedToken::empty(),
                        end_token: AttachedToken::empty(),
                        operand: None,
                        conditions: vec![CaseWhen { condition, result: then }],
                        else_result: Some(Box::new(otherwise)),
                    };
                }
            }
            "date_add" | "adddate" | "date_sub" | "subdate" => {
                if let Some([date, interval]) = two(&function)
                    && matches!(interval, Expr::Interval(_))
                {
                    let op = if name.ends_with("add") || name.starts_with("add") {
                        BinaryOperator::Plus
                    } else {
                        BinaryOperator::Minus
                    };
                    let date = match date {
                        Expr::Value(_) => cast(date, DataType::Datetime(None)),
                        other => other,
                    };
                    return Expr::Nested(Box::new(Expr::BinaryOp {
                        left: Box::new(date),
                        op,
                        right: Box::new(interval),
                    }));
                }
            }
            "group_concat" => return group_concat(function),
            "string_agg" | "listagg" => cast_first_argument(&mut function),
            "row_number" | "rank" | "dense_rank" | "ntile" if function.over.is_some() => {
                return cast(Expr::Function(function), DataType::BigInt(None));
            }
            "user" | "session_user" | "current_role" if self.flavour == Flavour::MySql || name != "user" => {
                rename(&mut function, "current_user");
            }
            "schema" => rename(&mut function, "current_database"),
            "curdate" | "today" => rename(&mut function, "current_date"),
            "curtime" | "localtime" => rename(&mut function, "current_time"),
            "localtimestamp" => {
                rename(&mut function, "now");
                return cast(Expr::Function(function), DataType::Datetime(None));
            }
            "sysdate" => rename(&mut function, "now"),
            "lcase" => rename(&mut function, "lower"),
            "ucase" => rename(&mut function, "upper"),
            "stddev_samp" => rename(&mut function, "stddev"),
            _ => {}
        }
        Expr::Function(function)
    }
}

/// `GROUP_CONCAT([DISTINCT] x [ORDER BY y] [SEPARATOR s])` as `string_agg(x, s)`.
fn group_concat(mut function: Function) -> Expr {
    rename(&mut function, "string_agg");
    if let FunctionArguments::List(list) = &mut function.args {
        let mut separator = None;
        list.clauses.retain(|clause| match clause {
            FunctionArgumentClause::Separator(value) => {
                separator = Some(value.clone());
                false
            }
            _ => true,
        });
        // SQLite's form gives the separator as a second argument.
        if list.args.len() == 1 {
            let separator = separator.map_or_else(|| text(","), Expr::Value);
            list.args.push(FunctionArg::Unnamed(FunctionArgExpr::Expr(separator)));
        }
    }
    cast_first_argument(&mut function);
    Expr::Function(function)
}

/// `string_agg` takes text only; numbers are what people give it.
fn cast_first_argument(function: &mut Function) {
    let FunctionArguments::List(list) = &mut function.args else { return };
    let distinct = list.duplicate_treatment.is_some();
    if let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))) = list.args.first_mut() {
        let before = argument.clone();
        *argument = cast(take_expr(argument), DataType::Text);
        // With DISTINCT the planner wants ORDER BY to name the argument itself.
        if distinct {
            for clause in &mut list.clauses {
                if let FunctionArgumentClause::OrderBy(order) = clause {
                    for OrderByExpr { expr, .. } in order.iter_mut().filter(|o| o.expr == before) {
                        *expr = argument.clone();
                    }
                }
            }
        }
    }
}

fn rename(function: &mut Function, name: &str) {
    function.name = ObjectName::from(vec![Ident::new(name)]);
    if matches!(function.args, FunctionArguments::None) {
        function.args = no_arguments();
    }
}

fn no_arguments() -> FunctionArguments {
    FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args: Vec::new(), clauses: Vec::new() })
}

fn plain_arguments(function: &Function) -> Option<Vec<Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    list.args
        .iter()
        .map(|a| match a {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some(e.clone()),
            _ => None,
        })
        .collect()
}

fn three(function: &Function) -> Option<[Expr; 3]> {
    plain_arguments(function)?.try_into().ok()
}

fn two(function: &Function) -> Option<[Expr; 2]> {
    plain_arguments(function)?.try_into().ok()
}

fn take(expr: &mut Box<Expr>) -> Expr {
    take_expr(expr.as_mut())
}

fn take_expr(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::Identifier(Ident::new("")))
}

fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).with_empty_span())
}

/// `CAST(expr AS data_type)`.
pub fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

/// `name(arguments)`.
pub fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let args = arguments.into_iter().map(|e| FunctionArg::Unnamed(FunctionArgExpr::Expr(e))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}
