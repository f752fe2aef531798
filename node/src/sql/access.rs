//! From filters to key ranges: which index a scan of a table uses, and which filters it makes superfluous.
//!
//! Understood are `column = value`, `IN`, `IS NULL`, comparisons, `BETWEEN` and `LIKE 'prefix%'` over columns whose key
//! encoding orders as SQL does (floats are left to the filter above: -0 and NaN). Whatever is consumed here is answered
//! exactly by the ranges; everything else stays with the caller.
//!
//! Invariant: planning again with only the consumed filters gives the same access path.

use std::ops::Bound;

use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::{Between, BinaryExpr, InList, Like, ScalarFunction};
use datafusion::logical_expr::{Expr, Operator};
use quorate_core::engine::KeyRange;
use quorate_core::keys;
use quorate_core::table::{ColumnPos, IndexState, TableDef};
use quorate_shared::ids::IndexId;
use quorate_shared::value::{Decimal, SqlType, Value};

use super::convert;

/// Ranges of one scan at most; a longer `IN` list is left to the filter above the scan.
const RANGES_MAX: usize = 4096;

/// How a scan reaches its rows.
#[derive(Clone, PartialEq, Debug)]
pub struct Access {
    /// Over this index; 0 is the primary key.
    pub index: IndexId,
    /// In key order, not overlapping.
    pub ranges: Vec<KeyRange>,
    /// Which of the filters given the ranges answer exactly.
    pub consumed: Vec<usize>,
    /// For EXPLAIN: the conditions on the key, e.g. `id = 7`.
    pub conditions: Vec<String>,
    /// At most one row can be found.
    pub point: bool,
}

/// What is known of one column.
#[derive(Clone, Debug, Default)]
struct Known {
    equal: Option<(usize, Vec<Value>)>,
    lower: Option<(usize, Bound<Value>)>,
    upper: Option<(usize, Bound<Value>)>,
    /// `LIKE 'x%'` and BETWEEN give both bounds from one filter.
    both: Option<(usize, Bound<Value>, Bound<Value>)>,
}

/// The best access path for filters over a table; `column_of` finds the physical column of a name.
pub fn plan(def: &TableDef, filters: &[&Expr]) -> Access {
    let known = gather(def, filters);
    let mut best: Option<(u32, Access)> = None;
    let public = def.indexes.iter().filter(|i| i.state == IndexState::Public);
    let candidates = std::iter::once((IndexId::PRIMARY, &def.primary_key[..], true))
        .chain(public.map(|i| (i.id, &i.columns[..], i.unique)));
    for (index, columns, unique) in candidates {
        if let Some((score, access)) = through(def, index, columns, unique, &known, filters)
            && best.as_ref().is_none_or(|(s, _)| score > *s)
        {
            best = Some((score, access));
        }
    }
    best.map_or_else(|| full(def), |(_, access)| access)
}

/// Every row, in order of the primary key.
pub fn full(def: &TableDef) -> Access {
    Access {
        index: IndexId::PRIMARY,
        ranges: vec![keys::index_range(def.storage, IndexId::PRIMARY)],
        consumed: Vec::new(),
        conditions: Vec::new(),
        point: false,
    }
}

fn through(
    def: &TableDef,
    index: IndexId,
    columns: &[ColumnPos],
    unique: bool,
    known: &[Known],
    filters: &[&Expr],
) -> Option<(u32, Access)> {
    let mut prefixes: Vec<Vec<Value>> = vec![Vec::new()];
    let mut consumed = Vec::new();
    let mut equal_columns = 0u32;
    let mut bounds = None;
    for &column in columns {
        let facts = known.get(usize::from(column))?;
        if let Some((filter, values)) = &facts.equal
            && prefixes.len().saturating_mul(values.len().max(1)) <= RANGES_MAX
        {
            prefixes = prefixes
                .iter()
                .flat_map(|p| values.iter().map(move |v| [&p[..], std::slice::from_ref(v)].concat()))
                .collect();
            consumed.push(*filter);
            equal_columns += 1;
            continue;
        }
        if let Some((filter, lower, upper)) = &facts.both {
            consumed.push(*filter);
            bounds = Some((lower.clone(), upper.clone()));
        } else if facts.lower.is_some() || facts.upper.is_some() {
            let mut side = |b: &Option<(usize, Bound<Value>)>| {
                b.as_ref().map_or(Bound::Unbounded, |(filter, bound)| {
                    consumed.push(*filter);
                    bound.clone()
                })
            };
            bounds = Some((side(&facts.lower), side(&facts.upper)));
        }
        break;
    }
    if consumed.is_empty() {
        return None;
    }
    let (lower, upper) = bounds.clone().unwrap_or((Bound::Unbounded, Bound::Unbounded));
    let mut ranges = Vec::with_capacity(prefixes.len());
    for prefix in &prefixes {
        let range = keys::bounds_range(def, index, prefix, lower.as_ref(), upper.as_ref()).ok()?;
        if !range.is_empty() {
            ranges.push(range);
        }
    }
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    ranges.dedup();
    let whole = usize::try_from(equal_columns).is_ok_and(|n| n == columns.len());
    let point = whole && unique && ranges.len() <= 1 && !prefixes.iter().any(|p| p.iter().any(Value::is_null));
    // An exact key beats everything; then more equal columns; then a bound; the primary key needs no second lookup.
    let score = if whole && unique { 1_000 } else { 0 }
        + equal_columns * 20
        + if bounds.is_some() { 10 } else { 0 }
        + if index == IndexId::PRIMARY { 5 } else { 0 };
    consumed.sort_unstable();
    consumed.dedup();
    let conditions = consumed.iter().filter_map(|i| filters.get(*i)).map(|f| show(f)).collect();
    Some((score, Access { index, ranges, consumed, conditions, point }))
}

/// A filter as a user reads it.
pub fn show(filter: &Expr) -> String {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => format!("{} {op} {}", show(left), show(right)),
        Expr::Column(c) => c.name.clone(),
        Expr::Literal(value, _) => match value {
            ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)) => {
                format!("'{}'", s.replace('\'', "''"))
            }
            ScalarValue::Decimal128(Some(v), _, s) => {
                quorate_shared::value::Value::Decimal(Decimal { unscaled: *v, scale: u8::try_from(*s).unwrap_or(0) })
                    .to_string()
            }
            other => other.to_string(),
        },
        Expr::InList(InList { expr, list, negated }) => {
            let shown: Vec<String> = list.iter().take(8).map(show).collect();
            let more = if list.len() > 8 { format!(", … {} in all", list.len()) } else { String::new() };
            format!("{}{} IN ({}{more})", show(expr), if *negated { " NOT" } else { "" }, shown.join(", "))
        }
        Expr::Between(Between { expr, negated, low, high }) => {
            format!("{}{} BETWEEN {} AND {}", show(expr), if *negated { " NOT" } else { "" }, show(low), show(high))
        }
        Expr::IsNull(e) => format!("{} IS NULL", show(e)),
        Expr::IsNotNull(e) => format!("{} IS NOT NULL", show(e)),
        Expr::Not(e) => format!("NOT ({})", show(e)),
        Expr::Cast(c) => show(&c.expr),
        Expr::Like(Like { negated, expr, pattern, case_insensitive, .. }) => {
            format!(
                "{}{} {} {}",
                show(expr),
                if *negated { " NOT" } else { "" },
                if *case_insensitive { "ILIKE" } else { "LIKE" },
                show(pattern)
            )
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            let args: Vec<String> = args.iter().map(show).collect();
            match (func.name(), args.as_slice()) {
                (name @ ("+" | "-" | "*"), [a, b]) => format!("{a} {name} {b}"),
                (name, _) => format!("{name}({})", args.join(", ")),
            }
        }
        other => other.to_string(),
    }
}

fn gather(def: &TableDef, filters: &[&Expr]) -> Vec<Known> {
    let mut known = vec![Known::default(); def.columns.len()];
    for (i, filter) in filters.iter().enumerate() {
        let Some((column, fact)) = understand(def, filter) else { continue };
        let Some(facts) = known.get_mut(usize::from(column)) else { continue };
        // The first of a kind is used; later ones stay with the filter above.
        match fact {
            Fact::Equal(values) => _ = facts.equal.get_or_insert((i, values)),
            Fact::Lower(bound) => _ = facts.lower.get_or_insert((i, bound)),
            Fact::Upper(bound) => _ = facts.upper.get_or_insert((i, bound)),
            Fact::Both(lower, upper) => _ = facts.both.get_or_insert((i, lower, upper)),
        }
    }
    known
}

enum Fact {
    Equal(Vec<Value>),
    Lower(Bound<Value>),
    Upper(Bound<Value>),
    Both(Bound<Value>, Bound<Value>),
}

fn understand(def: &TableDef, filter: &Expr) -> Option<(ColumnPos, Fact)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (a, Fact::Equal(mut values)) = understand(def, left)? else { return None };
            let (b, Fact::Equal(more)) = understand(def, right)? else { return None };
            values.extend(more);
            (a == b).then_some((a, Fact::Equal(values)))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, literal) = match (left.as_ref(), right.as_ref()) {
                (Expr::Column(c), Expr::Literal(v, _)) => (c, *op, v),
                (Expr::Literal(v, _), Expr::Column(c)) => (c, op.swap()?, v),
                _ => return None,
            };
            let (position, value) = place(def, column, literal)?;
            if value.is_null() {
                return None;
            }
            let fact = match op {
                Operator::Eq => Fact::Equal(vec![value]),
                Operator::Gt => Fact::Lower(Bound::Excluded(value)),
                Operator::GtEq => Fact::Lower(Bound::Included(value)),
                Operator::Lt => Fact::Upper(Bound::Excluded(value)),
                Operator::LtEq => Fact::Upper(Bound::Included(value)),
                _ => return None,
            };
            Some((position, fact))
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let Expr::Column(column) = expr.as_ref() else { return None };
            let mut values = Vec::with_capacity(list.len());
            let mut position = None;
            for item in list {
                let Expr::Literal(literal, _) = item else { return None };
                let (p, value) = place(def, column, literal)?;
                position = Some(p);
                // `x IN (…, NULL)` is never true for NULL.
                if !value.is_null() {
                    values.push(value);
                }
            }
            Some((position?, Fact::Equal(values)))
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            let (Expr::Column(column), Expr::Literal(low, _), Expr::Literal(high, _)) =
                (expr.as_ref(), low.as_ref(), high.as_ref())
            else {
                return None;
            };
            let (position, low) = place(def, column, low)?;
            let (_, high) = place(def, column, high)?;
            (!low.is_null() && !high.is_null())
                .then_some((position, Fact::Both(Bound::Included(low), Bound::Included(high))))
        }
        Expr::IsNull(inner) => {
            let Expr::Column(column) = inner.as_ref() else { return None };
            let (position, _) = find(def, column)?;
            Some((position, Fact::Equal(vec![Value::Null])))
        }
        Expr::Like(Like { negated: false, expr, pattern, escape_char: None, case_insensitive: false }) => {
            let (Expr::Column(column), Expr::Literal(pattern, _)) = (expr.as_ref(), pattern.as_ref()) else {
                return None;
            };
            let prefix = pattern.try_as_str()??.strip_suffix('%')?;
            starts_with(def, column, prefix)
        }
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == "starts_with" => {
            let [Expr::Column(column), Expr::Literal(prefix, _)] = args.as_slice() else { return None };
            starts_with(def, column, prefix.try_as_str()??)
        }
        _ => None,
    }
}

fn starts_with(def: &TableDef, column: &Column, prefix: &str) -> Option<(ColumnPos, Fact)> {
    let (position, ty) = find(def, column)?;
    if !matches!(ty, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_))
        || prefix.is_empty()
        || prefix.contains(['%', '_', '\\'])
    {
        return None;
    }
    let end = after_prefix(prefix)?;
    Some((position, Fact::Both(Bound::Included(Value::Text(prefix.to_owned())), Bound::Excluded(Value::Text(end)))))
}

/// The least text above every text with this prefix: UTF-8 orders as code points do.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

fn find(def: &TableDef, column: &Column) -> Option<(ColumnPos, SqlType)> {
    def.columns
        .iter()
        .enumerate()
        .find(|(_, c)| !c.dropped && c.name.to_lowercase() == column.name)
        .and_then(|(i, c)| Some((ColumnPos::try_from(i).ok()?, c.ty)))
}

/// The column, and the literal as a value of its very type; `None` where that would change its meaning.
fn place(def: &TableDef, column: &Column, literal: &ScalarValue) -> Option<(ColumnPos, Value)> {
    let (position, ty) = find(def, column)?;
    if literal.is_null() {
        return Some((position, Value::Null));
    }
    let value = match (ty, literal) {
        (SqlType::Bool, ScalarValue::Boolean(Some(b))) => Value::Bool(*b),
        (SqlType::SmallInt | SqlType::Int | SqlType::BigInt, _) => Value::Int(integer(literal)?),
        (SqlType::Decimal { scale, .. }, ScalarValue::Decimal128(Some(v), _, s)) => {
            let from = u8::try_from(*s).ok()?;
            if from > scale {
                return None;
            }
            Value::Decimal(Decimal { unscaled: v.checked_mul(10i128.checked_pow(u32::from(scale - from))?)?, scale })
        }
        (SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_), _) => Value::Text(literal.try_as_str()??.to_owned()),
        (SqlType::Uuid, _) => {
            let text = literal.try_as_str()??;
            let bytes = convert::parse_uuid(text)?;
            // Compared as canonical text above the scan; another spelling must not find the row here only.
            if convert::uuid_text(&bytes) != text {
                return None;
            }
            Value::Uuid(bytes)
        }
        (
            SqlType::Bytes,
            ScalarValue::Binary(Some(b)) | ScalarValue::LargeBinary(Some(b)) | ScalarValue::BinaryView(Some(b)),
        ) => Value::Bytes(b.clone()),
        (SqlType::Date, ScalarValue::Date32(Some(d))) => Value::Date(*d),
        (SqlType::Time, ScalarValue::Time64Microsecond(Some(t))) => Value::Time(*t),
        (SqlType::Timestamp, ScalarValue::TimestampMicrosecond(Some(t), None)) => Value::Timestamp(*t),
        (SqlType::TimestampTz, ScalarValue::TimestampMicrosecond(Some(t), Some(_))) => Value::TimestampTz(*t),
        _ => return None,
    };
    // What cannot be a value of the column's type has no key.
    let fits = match (ty, &value) {
        (SqlType::SmallInt, Value::Int(i)) => i16::try_from(*i).is_ok(),
        (SqlType::Int, Value::Int(i)) => i32::try_from(*i).is_ok(),
        (SqlType::Varchar(n) | SqlType::Char(n), Value::Text(t)) => {
            u32::try_from(t.chars().count()).is_ok_and(|c| c <= n)
        }
        _ => true,
    };
    fits.then_some((position, value))
}

fn integer(literal: &ScalarValue) -> Option<i64> {
    match literal {
        ScalarValue::Int8(Some(v)) => Some((*v).into()),
        ScalarValue::Int16(Some(v)) => Some((*v).into()),
        ScalarValue::Int32(Some(v)) => Some((*v).into()),
        ScalarValue::Int64(Some(v)) => Some(*v),
        ScalarValue::UInt8(Some(v)) => Some((*v).into()),
        ScalarValue::UInt16(Some(v)) => Some((*v).into()),
        ScalarValue::UInt32(Some(v)) => Some((*v).into()),
        ScalarValue::UInt64(Some(v)) => i64::try_from(*v).ok(),
        _ => None,
    }
}
