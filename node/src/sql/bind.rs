//! Binding: a parsed expression over one table's row becomes core's [`Expr`].
//!
//! Used where the sequencer evaluates: SET and WHERE of the fast path, CHECK constraints, ON CONFLICT DO UPDATE. What
//! core cannot express (subqueries, the clock, most functions, mixed families of types) is [`Unbound::NotCore`]: the
//! caller takes the slow path or refuses by name.
//!
//! Names arrive folded to lower case and are compared without case. Text literals take the type of what they meet.

use quorate_core::expr::{BinaryOp, Expr, Function};
use quorate_core::table::{ColumnDef, ColumnPos, TableDef};
use quorate_shared::error::WireError;
use quorate_shared::value::{Decimal, SqlType, Value};
use sqlparser::ast::{
    self, BinaryOperator, DataType, Expr as Ast, FunctionArg, FunctionArgExpr, FunctionArguments, UnaryOperator,
};

use super::coerce::{coerce, is_number, is_text, type_of};
use crate::ddl::types::sql_type;

/// Why an expression has no core form.
#[derive(Clone, PartialEq, Debug)]
pub enum Unbound {
    /// Core has nothing like it; names the part.
    NotCore(String),
    /// It is wrong in any case.
    Error(WireError),
}

impl From<WireError> for Unbound {
    fn from(error: WireError) -> Self {
        Unbound::Error(error)
    }
}

impl Unbound {
    /// As an error, where there is no other way to evaluate it.
    pub fn refuse(self, place: &str) -> WireError {
        match self {
            Unbound::NotCore(what) => WireError::unsupported(format!("{what} in {place}"))
                .hint("there it may use columns, constants, arithmetic, comparisons, AND/OR/NOT, IN, BETWEEN, LIKE, CASE, CAST, length, lower, upper, trim, abs, coalesce"),
            Unbound::Error(error) => error,
        }
    }
}

/// An expression and its type; `None` for a bare NULL or text literal, which takes the type of what it meets.
#[derive(Clone, PartialEq, Debug)]
pub struct Bound {
    /// The expression.
    pub expr: Expr,
    /// Its type, where known.
    pub ty: Option<SqlType>,
}

/// What names and placeholders mean.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The table; `None`: no columns are visible.
    pub table: Option<&'a TableDef>,
    /// What the table is called in the statement (its alias or name), lower case.
    pub name: &'a str,
    /// What the row proposed by an INSERT is called (`excluded` or an alias), where it is visible.
    pub excluded: Option<&'a str>,
    /// Values of `$1`, …
    pub params: &'a [Value],
    /// What `now()` is, in microseconds since 1970 UTC; `None`: the clock may not be read (CHECK).
    pub now: Option<i64>,
}

impl<'a> Scope<'a> {
    /// No columns, only constants.
    pub fn constant(params: &'a [Value], now: Option<i64>) -> Self {
        Self { table: None, name: "", excluded: None, params, now }
    }

    /// A column's position and definition by an expression that names it.
    pub fn column(&self, expr: &Ast) -> Option<(ColumnPos, &'a ColumnDef)> {
        let table = self.table?;
        match expr {
            Ast::Identifier(name) => find_column(table, &name.value),
            Ast::CompoundIdentifier(parts) => match parts.as_slice() {
                [qualifier, name] if same_name(&qualifier.value, self.name) => find_column(table, &name.value),
                _ => None,
            },
            Ast::Nested(inner) => self.column(inner),
            _ => None,
        }
    }
}

/// A visible or hidden, not dropped column by its name.
pub fn find_column<'a>(table: &'a TableDef, name: &str) -> Option<(ColumnPos, &'a ColumnDef)> {
    let position = table.columns.iter().position(|c| !c.dropped && same_name(&c.name, name))?;
    Some((ColumnPos::try_from(position).ok()?, &table.columns[position]))
}

/// Names are compared without case.
pub fn same_name(a: &str, b: &str) -> bool {
    a == b || a.to_lowercase() == b.to_lowercase()
}

/// "column does not exist", with the nearest that does.
pub fn no_column(table: &TableDef, name: &str) -> WireError {
    let error = WireError::sql("42703", format!("column \"{name}\" of table \"{}\" does not exist", table.name));
    let near = table
        .columns
        .iter()
        .filter(|c| !c.dropped && !c.hidden)
        .map(|c| (strsim::damerau_levenshtein(&c.name.to_lowercase(), name), &c.name))
        .min();
    match near {
        Some((distance, column)) if distance <= 2 && distance < name.len() => {
            error.hint(format!("did you mean \"{column}\"?"))
        }
        _ => error,
    }
}

/// Binds an expression.
///
/// # Errors
/// [`Unbound`].
pub fn bind(expr: &Ast, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    match expr {
        Ast::Nested(inner) => bind(inner, scope),
        Ast::Value(_) | Ast::TypedString(_) | Ast::Prefixed { .. } => literal(expr, scope.params),
        Ast::Identifier(name) => column(scope, &name.value),
        Ast::CompoundIdentifier(parts) => compound(scope, parts),
        Ast::UnaryOp { op, expr } => unary(*op, expr, scope),
        Ast::BinaryOp { left, op, right } => binary(left, op, right, scope),
        Ast::IsNull(inner) => Ok(is_null(bind(inner, scope)?)),
        Ast::IsNotNull(inner) => Ok(not(is_null(bind(inner, scope)?))),
        Ast::IsTrue(inner) => truth(inner, true, scope),
        Ast::IsFalse(inner) => truth(inner, false, scope),
        Ast::IsNotTrue(inner) => truth(inner, true, scope).map(not),
        Ast::IsNotFalse(inner) => truth(inner, false, scope).map(not),
        Ast::InList { expr, list, negated } => in_list(expr, list, *negated, scope),
        Ast::Between { expr, negated, low, high } => between(expr, *negated, low, high, scope),
        Ast::Like { negated, any: false, expr, pattern, escape_char: None } => {
            like(BinaryOp::Like, *negated, expr, pattern, scope)
        }
        Ast::ILike { negated, any: false, expr, pattern, escape_char: None } => {
            like(BinaryOp::ILike, *negated, expr, pattern, scope)
        }
        Ast::Cast {
            kind: ast::CastKind::Cast | ast::CastKind::DoubleColon,
            expr,
            data_type,
            array: false,
            format: None,
        } => cast(expr, data_type, scope),
        Ast::Case { operand, conditions, else_result, .. } => {
            case(operand.as_deref(), conditions, else_result.as_deref(), scope)
        }
        Ast::Function(function) => call(function, scope),
        Ast::Trim { trim_where: None, trim_what: None, expr, trim_characters: None } => {
            function(Function::Trim, "trim", vec![bind(expr, scope)?])
        }
        other => Err(not_core(other)),
    }
}

/// Binds an expression that must be a condition.
///
/// # Errors
/// [`Unbound`]; `42804` if it is not boolean.
pub fn bind_condition(expr: &Ast, scope: &Scope<'_>) -> Result<Expr, Unbound> {
    condition(bind(expr, scope)?, expr)
}

/// A literal's or placeholder's value; `None` if the expression is something else.
pub fn constant(expr: &Ast, params: &[Value]) -> Result<Option<Value>, WireError> {
    Ok(match expr {
        Ast::Nested(inner) => constant(inner, params)?,
        Ast::UnaryOp { op: UnaryOperator::Minus, expr } => match (&**expr, constant(expr, params)?) {
            // The only literal whose negation fits and itself does not.
            (_, Some(Value::Decimal(Decimal { unscaled: 9_223_372_036_854_775_808, scale: 0 }))) => {
                Some(Value::Int(i64::MIN))
            }
            (_, Some(Value::Int(n))) => n.checked_neg().map(Value::Int),
            (_, Some(Value::Decimal(d))) => Some(Value::Decimal(Decimal { unscaled: -d.unscaled, scale: d.scale })),
            (_, Some(Value::Float(f))) => Some(Value::Float(-f)),
            _ => None,
        },
        Ast::UnaryOp { op: UnaryOperator::Plus, expr } => {
            constant(expr, params)?.filter(|v| matches!(v, Value::Int(_) | Value::Decimal(_) | Value::Float(_)))
        }
        Ast::Value(value) => plain(&value.value, params)?,
        Ast::Prefixed { value, .. } => constant(value, params)?,
        Ast::TypedString(typed) => {
            let Some(text) = typed.value.value.clone().into_string() else { return Ok(None) };
            let Ok(ty) = sql_type(&typed.data_type) else { return Ok(None) };
            Some(coerce(Value::Text(text), ty).map_err(WireError::from)?)
        }
        _ => None,
    })
}

fn plain(value: &ast::Value, params: &[Value]) -> Result<Option<Value>, WireError> {
    use ast::Value as V;
    Ok(Some(match value {
        V::Null => Value::Null,
        V::Boolean(b) => Value::Bool(*b),
        V::Number(text, _) => number(text)?,
        V::SingleQuotedString(s)
        | V::DoubleQuotedString(s)
        | V::NationalStringLiteral(s)
        | V::EscapedStringLiteral(s)
        | V::UnicodeStringLiteral(s)
        | V::SingleQuotedRawStringLiteral(s)
        | V::TripleSingleQuotedString(s) => Value::Text(s.clone()),
        V::DollarQuotedString(s) => Value::Text(s.value.clone()),
        V::HexStringLiteral(hex) => {
            coerce(Value::Text(format!("\\x{hex}")), SqlType::Bytes).map_err(WireError::from)?
        }
        V::Placeholder(name) => param(name, params)?,
        _ => return Ok(None),
    }))
}

/// The value of `$n`.
fn param(name: &str, params: &[Value]) -> Result<Value, WireError> {
    let number = param_index(name).ok_or_else(|| WireError::sql("42P02", format!("there is no parameter {name}")))?;
    params.get(number).cloned().ok_or_else(|| {
        WireError::sql("08P01", format!("parameter {name} has no value"))
            .hint(format!("{} values were given", params.len()))
    })
}

/// The position, from 0, of a placeholder `$n`.
pub fn param_index(name: &str) -> Option<usize> {
    name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)
}

fn number(text: &str) -> Result<Value, WireError> {
    if let Ok(n) = text.parse::<i64>() {
        return Ok(Value::Int(n));
    }
    if let Some(d) = Decimal::parse(text) {
        return Ok(Value::Decimal(d));
    }
    text.parse::<f64>().ok().filter(|f| f.is_finite()).map(Value::Float).ok_or_else(|| {
        WireError::sql("22003", format!("the number {} is out of range", text.chars().take(60).collect::<String>()))
    })
}

fn literal(expr: &Ast, params: &[Value]) -> Result<Bound, Unbound> {
    match constant(expr, params)? {
        Some(value) => Ok(Bound { ty: type_of(&value), expr: Expr::Value(value) }),
        None => Err(not_core(expr)),
    }
}

fn column(scope: &Scope<'_>, name: &str) -> Result<Bound, Unbound> {
    let Some(table) = scope.table else {
        return Err(Unbound::NotCore(format!("column \"{name}\"")));
    };
    let (position, def) = find_column(table, name).ok_or_else(|| no_column(table, name))?;
    Ok(Bound { expr: Expr::Column(position), ty: Some(def.ty) })
}

fn compound(scope: &Scope<'_>, parts: &[ast::Ident]) -> Result<Bound, Unbound> {
    let ([qualifier, name], Some(table)) = (parts, scope.table) else {
        return Err(Unbound::NotCore("a qualified name".into()));
    };
    if same_name(&qualifier.value, scope.name) {
        return column(scope, &name.value);
    }
    if scope.excluded.is_some_and(|e| same_name(&qualifier.value, e)) {
        return excluded(table, &name.value);
    }
    Err(WireError::sql("42P01", format!("missing FROM-clause entry for table \"{}\"", qualifier.value)).into())
}

fn excluded(table: &TableDef, name: &str) -> Result<Bound, Unbound> {
    let (position, def) = find_column(table, name).ok_or_else(|| no_column(table, name))?;
    Ok(Bound { expr: Expr::Excluded(position), ty: Some(def.ty) })
}

fn unary(op: UnaryOperator, inner: &Ast, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    match op {
        UnaryOperator::Not | UnaryOperator::BangNot => {
            Ok(not(Bound { expr: bind_condition(inner, scope)?, ty: Some(SqlType::Bool) }))
        }
        UnaryOperator::Minus | UnaryOperator::Plus => {
            let whole = Ast::UnaryOp { op, expr: Box::new(inner.clone()) };
            if let Some(value) = constant(&whole, scope.params)? {
                return Ok(Bound { ty: type_of(&value), expr: Expr::Value(value) });
            }
            let bound = bind(inner, scope)?;
            if !bound.ty.is_some_and(is_number) {
                return Err(not_core(inner));
            }
            Ok(match op {
                UnaryOperator::Minus => Bound { expr: Expr::Negate(Box::new(bound.expr)), ty: bound.ty },
                _ => bound,
            })
        }
        _ => Err(not_core(inner)),
    }
}

fn binary(left: &Ast, op: &BinaryOperator, right: &Ast, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    use BinaryOperator as B;
    let core = match op {
        B::And | B::Or => {
            let core = if matches!(op, B::And) { BinaryOp::And } else { BinaryOp::Or };
            let (l, r) = (bind_condition(left, scope)?, bind_condition(right, scope)?);
            return Ok(pair(core, l, r, Some(SqlType::Bool)));
        }
        B::Eq => BinaryOp::Eq,
        B::NotEq => BinaryOp::Ne,
        B::Lt => BinaryOp::Lt,
        B::LtEq => BinaryOp::Le,
        B::Gt => BinaryOp::Gt,
        B::GtEq => BinaryOp::Ge,
        B::Plus => BinaryOp::Add,
        B::Minus => BinaryOp::Sub,
        B::Multiply => BinaryOp::Mul,
        B::Divide => BinaryOp::Div,
        B::Modulo => BinaryOp::Mod,
        B::StringConcat => BinaryOp::Concat,
        other => return Err(Unbound::NotCore(format!("the operator {other}"))),
    };
    let (l, r) = meet(bind(left, scope)?, bind(right, scope)?)?;
    match core {
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod => arithmetic(core, l, r),
        BinaryOp::Concat => {
            let texts = [l.ty, r.ty].iter().all(|t| t.is_none_or(is_text));
            if !texts {
                return Err(Unbound::NotCore("|| of values that are not text".into()));
            }
            Ok(pair(core, l.expr, r.expr, Some(SqlType::Text)))
        }
        _ if comparable(l.ty, r.ty) => Ok(pair(core, l.expr, r.expr, Some(SqlType::Bool))),
        _ => Err(mixed(l.ty, r.ty)),
    }
}

fn arithmetic(op: BinaryOp, l: Bound, r: Bound) -> Result<Bound, Unbound> {
    let null = |b: &Bound| matches!(b.expr, Expr::Value(Value::Null));
    if ![&l, &r].iter().all(|b| b.ty.is_some_and(is_number) || null(b)) {
        return Err(Unbound::NotCore("arithmetic on values that are not numbers".into()));
    }
    let float = |t: Option<SqlType>| matches!(t, Some(SqlType::Real | SqlType::Double));
    let decimal = |t: Option<SqlType>| matches!(t, Some(SqlType::Decimal { .. }));
    let ty = if float(l.ty) || float(r.ty) {
        SqlType::Double
    } else if decimal(l.ty) || decimal(r.ty) {
        let scale = |t| if let Some(SqlType::Decimal { scale, .. }) = t { scale } else { 0 };
        SqlType::Decimal { precision: 38, scale: scale(l.ty).max(scale(r.ty)) }
    } else {
        SqlType::BigInt
    };
    Ok(pair(op, l.expr, r.expr, Some(ty)))
}

fn pair(op: BinaryOp, l: Expr, r: Expr, ty: Option<SqlType>) -> Bound {
    Bound { expr: Expr::Binary(op, Box::new(l), Box::new(r)), ty }
}

/// A text literal takes the type of the other side.
fn meet(l: Bound, r: Bound) -> Result<(Bound, Bound), Unbound> {
    match (l.ty, r.ty) {
        (None, Some(ty)) => Ok((typed(l, ty)?, r)),
        (Some(ty), None) => Ok((l, typed(r, ty)?)),
        _ => Ok((l, r)),
    }
}

fn typed(bound: Bound, ty: SqlType) -> Result<Bound, Unbound> {
    // Against CHAR(n) and VARCHAR(n) a longer text is merely different.
    let wanted = if is_text(ty) { SqlType::Text } else { ty };
    match bound.expr {
        Expr::Value(value @ Value::Text(_)) => {
            // `x = '1.5'` with a DECIMAL(4,0) must not round.
            let loose = if let SqlType::Decimal { .. } = wanted {
                SqlType::Decimal { precision: 38, scale: 10 }
            } else {
                wanted
            };
            Ok(Bound { expr: Expr::Value(coerce(value, loose).map_err(WireError::from)?), ty: Some(ty) })
        }
        other => Ok(Bound { expr: other, ty: bound.ty }),
    }
}

/// Whether core compares them as SQL does.
fn comparable(l: Option<SqlType>, r: Option<SqlType>) -> bool {
    match (l, r) {
        (None, _) | (_, None) => true,
        (Some(SqlType::Json | SqlType::Interval), _) | (_, Some(SqlType::Json | SqlType::Interval)) => false,
        (Some(a), Some(b)) => a == b || (is_number(a) && is_number(b)) || (is_text(a) && is_text(b)),
    }
}

fn mixed(l: Option<SqlType>, r: Option<SqlType>) -> Unbound {
    let name = |t: Option<SqlType>| t.map_or_else(|| "text".to_owned(), |t| t.to_string());
    Unbound::NotCore(format!("comparing {} with {}", name(l), name(r)))
}

fn is_null(bound: Bound) -> Bound {
    Bound { expr: Expr::IsNull(Box::new(bound.expr)), ty: Some(SqlType::Bool) }
}

fn not(bound: Bound) -> Bound {
    Bound { expr: Expr::Not(Box::new(bound.expr)), ty: Some(SqlType::Bool) }
}

/// `x IS TRUE` is `coalesce(x, false)`; `x IS FALSE` is `not coalesce(x, true)`.
fn truth(inner: &Ast, wanted: bool, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    let inner = bind_condition(inner, scope)?;
    let sure = Expr::Call(Function::Coalesce, vec![inner, Expr::Value(Value::Bool(!wanted))]);
    let sure = Bound { expr: sure, ty: Some(SqlType::Bool) };
    Ok(if wanted { sure } else { not(sure) })
}

fn in_list(expr: &Ast, list: &[Ast], negated: bool, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    let left = bind(expr, scope)?;
    if left.ty.is_none() {
        return Err(Unbound::NotCore("IN on a literal".into()));
    }
    let mut items = Vec::with_capacity(list.len());
    for item in list {
        let (_, item) = meet(left.clone(), bind(item, scope)?)?;
        if !comparable(left.ty, item.ty) {
            return Err(mixed(left.ty, item.ty));
        }
        items.push(item.expr);
    }
    let found = Bound { expr: Expr::In(Box::new(left.expr), items), ty: Some(SqlType::Bool) };
    Ok(if negated { not(found) } else { found })
}

fn between(expr: &Ast, negated: bool, low: &Ast, high: &Ast, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    let low = binary(expr, &BinaryOperator::GtEq, low, scope)?;
    let high = binary(expr, &BinaryOperator::LtEq, high, scope)?;
    let both = pair(BinaryOp::And, low.expr, high.expr, Some(SqlType::Bool));
    Ok(if negated { not(both) } else { both })
}

fn like(op: BinaryOp, negated: bool, expr: &Ast, pattern: &Ast, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    let (l, r) = (bind(expr, scope)?, bind(pattern, scope)?);
    if ![l.ty, r.ty].iter().all(|t| t.is_none_or(is_text)) {
        return Err(Unbound::NotCore("LIKE on values that are not text".into()));
    }
    let matched = pair(op, l.expr, r.expr, Some(SqlType::Bool));
    Ok(if negated { not(matched) } else { matched })
}

fn cast(inner: &Ast, to: &DataType, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    let ty = sql_type(to)?;
    let bound = bind(inner, scope)?;
    if let Expr::Value(value) = &bound.expr
        && !is_text(ty)
    {
        let value = coerce(value.clone(), ty).map_err(WireError::from)?;
        return Ok(Bound { expr: Expr::Value(value), ty: Some(ty) });
    }
    Ok(Bound { expr: Expr::Cast(Box::new(bound.expr), ty), ty: Some(ty) })
}

fn case(
    operand: Option<&Ast>,
    conditions: &[ast::CaseWhen],
    other: Option<&Ast>,
    scope: &Scope<'_>,
) -> Result<Bound, Unbound> {
    let mut arms = Vec::with_capacity(conditions.len());
    let mut ty = None;
    for when in conditions {
        let condition = match operand {
            Some(operand) => binary(operand, &BinaryOperator::Eq, &when.condition, scope)?.expr,
            None => bind_condition(&when.condition, scope)?,
        };
        let result = bind(&when.result, scope)?;
        ty = same_type(ty, &result)?;
        arms.push((condition, result.expr));
    }
    let other = match other {
        Some(expr) => bind(expr, scope)?,
        None => Bound { expr: Expr::Value(Value::Null), ty: None },
    };
    ty = same_type(ty, &other)?;
    Ok(Bound { expr: Expr::Case(arms, Box::new(other.expr)), ty })
}

/// The type of several alternatives: one family, the wider of two.
fn same_type(so_far: Option<SqlType>, next: &Bound) -> Result<Option<SqlType>, Unbound> {
    let next_ty = match &next.expr {
        Expr::Value(Value::Text(_)) => Some(SqlType::Text),
        _ => next.ty,
    };
    match (so_far, next_ty) {
        (None, ty) | (ty, None) => Ok(ty),
        (Some(a), Some(b)) if a == b => Ok(Some(a)),
        (Some(a), Some(b)) if is_text(a) && is_text(b) => Ok(Some(SqlType::Text)),
        (Some(a), Some(b)) if is_number(a) && is_number(b) => Ok(Some(wider(a, b))),
        (Some(a), Some(b)) => Err(mixed(Some(a), Some(b))),
    }
}

fn wider(a: SqlType, b: SqlType) -> SqlType {
    let rank = |t: SqlType| match t {
        SqlType::SmallInt => 0,
        SqlType::Int => 1,
        SqlType::BigInt => 2,
        SqlType::Decimal { .. } => 3,
        SqlType::Real => 4,
        _ => 5,
    };
    match (a, b) {
        (SqlType::Decimal { scale: x, .. }, SqlType::Decimal { scale: y, .. }) => {
            SqlType::Decimal { precision: 38, scale: x.max(y) }
        }
        _ if rank(a) >= rank(b) => a,
        _ => b,
    }
}

fn call(call: &ast::Function, scope: &Scope<'_>) -> Result<Bound, Unbound> {
    let name = call.name.to_string().to_lowercase();
    if let Some(value) = scope.now.and_then(|now| clock(&name, &call.args, now)) {
        return Ok(Bound { ty: type_of(&value), expr: Expr::Value(value) });
    }
    let plain = call.filter.is_none() && call.over.is_none() && call.within_group.is_empty() && !call.uses_odbc_syntax;
    let FunctionArguments::List(list) = &call.args else { return Err(Unbound::NotCore(format!("{name}()"))) };
    if !plain || list.duplicate_treatment.is_some() || !list.clauses.is_empty() {
        return Err(Unbound::NotCore(format!("{name}()")));
    }
    // MySQL's ON DUPLICATE KEY UPDATE x = VALUES(x).
    if let ("values", Some(_), Some(table), [FunctionArg::Unnamed(FunctionArgExpr::Expr(Ast::Identifier(column)))]) =
        (name.as_str(), scope.excluded, scope.table, list.args.as_slice())
    {
        return excluded(table, &column.value);
    }
    let core = match name.as_str() {
        "length" | "char_length" | "character_length" => Function::Length,
        "lower" | "lcase" => Function::Lower,
        "upper" | "ucase" => Function::Upper,
        "trim" | "btrim" => Function::Trim,
        "abs" => Function::Abs,
        "coalesce" | "ifnull" => Function::Coalesce,
        _ => return Err(Unbound::NotCore(format!("the function {name}()"))),
    };
    let mut args = Vec::with_capacity(list.args.len());
    for arg in &list.args {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)) = arg else {
            return Err(Unbound::NotCore(format!("such an argument of {name}()")));
        };
        args.push(bind(arg, scope)?);
    }
    function(core, &name, args)
}

/// The clock's functions, all of the same moment; `None` for any other function.
fn clock(name: &str, args: &FunctionArguments, now: i64) -> Option<Value> {
    const MICROS_PER_DAY: i64 = 86_400_000_000;
    // A precision such as `now(3)` is accepted: times are kept in microseconds anyway.
    if let FunctionArguments::List(list) = args
        && list.args.len() > 1
    {
        return None;
    }
    Some(match name {
        "now" | "current_timestamp" | "transaction_timestamp" | "statement_timestamp" | "clock_timestamp" => {
            Value::TimestampTz(now)
        }
        "localtimestamp" | "utc_timestamp" => Value::Timestamp(now),
        "current_date" | "curdate" | "utc_date" => Value::Date(i32::try_from(now.div_euclid(MICROS_PER_DAY)).ok()?),
        "current_time" | "localtime" | "curtime" | "utc_time" => Value::Time(now.rem_euclid(MICROS_PER_DAY)),
        _ => return None,
    })
}

fn function(core: Function, name: &str, args: Vec<Bound>) -> Result<Bound, Unbound> {
    let ty = match (core, args.as_slice()) {
        (Function::Coalesce, [_, ..]) => {
            let mut ty = None;
            for arg in &args {
                ty = same_type(ty, arg)?;
            }
            ty
        }
        (Function::Abs, [one]) if one.ty.is_some_and(is_number) => one.ty,
        (Function::Length, [one]) if one.ty.is_none_or(is_text) => Some(SqlType::Int),
        (Function::Lower | Function::Upper | Function::Trim, [one]) if one.ty.is_none_or(is_text) => {
            Some(SqlType::Text)
        }
        _ => return Err(Unbound::NotCore(format!("{name}() of such arguments"))),
    };
    Ok(Bound { expr: Expr::Call(core, args.into_iter().map(|b| b.expr).collect()), ty })
}

fn condition(bound: Bound, ast: &Ast) -> Result<Expr, Unbound> {
    match bound.ty {
        Some(SqlType::Bool) => Ok(bound.expr),
        None if matches!(bound.expr, Expr::Value(Value::Null)) => Ok(bound.expr),
        _ => Err(Unbound::NotCore(format!("the condition {ast}"))),
    }
}

fn not_core(expr: &Ast) -> Unbound {
    let text = expr.to_string();
    Unbound::NotCore(text.chars().take(60).collect())
}
