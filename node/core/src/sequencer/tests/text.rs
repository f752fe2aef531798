//! The scripts' notation for tables, cells and expressions.

use quorate_shared::ids::{IndexId, SchemaVersion, TableId};
use quorate_shared::value::{Decimal, SqlType, Value};

use crate::expr::{BinaryOp, Expr};
use crate::table::{
    CheckDef, ColumnDef, ColumnPos, DefaultValue, FkAction, ForeignKeyDef, IndexDef, IndexState, TableDef,
};

pub fn ty(name: &str) -> SqlType {
    match name {
        "bool" => SqlType::Bool,
        "smallint" => SqlType::SmallInt,
        "int" => SqlType::Int,
        "bigint" => SqlType::BigInt,
        "double" => SqlType::Double,
        "decimal" => SqlType::Decimal { precision: 10, scale: 2 },
        "text" => SqlType::Text,
        "varchar5" => SqlType::Varchar(5),
        "date" => SqlType::Date,
        "timestamp" => SqlType::Timestamp,
        other => panic!("type {other}"),
    }
}

/// `name:type`, with `!` for NOT NULL, `+` for a sequence, `^` for hidden, `-` for dropped.
pub fn column(text: &str) -> ColumnDef {
    let (name, rest) = text.split_once(':').unwrap();
    let flag = |c| rest.contains(c);
    ColumnDef {
        name: name.into(),
        ty: ty(rest.trim_end_matches(['!', '+', '^', '-'])),
        not_null: flag('!'),
        default: if flag('+') { DefaultValue::Sequence } else { DefaultValue::None },
        added: Value::Null,
        hidden: flag('^'),
        dropped: flag('-'),
    }
}

pub fn position(def: &TableDef, name: &str) -> ColumnPos {
    def.columns.iter().position(|c| c.name == name).unwrap_or_else(|| panic!("column {name}")) as ColumnPos
}

pub fn columns(def: &TableDef, names: &str) -> Vec<ColumnPos> {
    names.split(',').map(|name| position(def, name)).collect()
}

pub fn table(id: u64, name: &str, version: u32) -> TableDef {
    TableDef {
        id: TableId::new(id),
        storage: TableId::new(100 + id),
        version: SchemaVersion::new(version),
        name: name.into(),
        columns: vec![],
        primary_key: vec![],
        primary_key_name: format!("{name}_pkey"),
        indexes: vec![],
        checks: vec![],
        foreign_keys: vec![],
        next_index: IndexId::new(1),
    }
}

/// `a,b`; a leading `~` says that it is being filled.
pub fn index(def: &mut TableDef, unique: bool, text: &str) {
    let names = text.trim_start_matches('~');
    let kind = if unique { "key" } else { "idx" };
    let state = if text.starts_with('~') { IndexState::Filling } else { IndexState::Public };
    let index = IndexDef {
        id: def.next_index,
        name: format!("{}_{}_{kind}", def.name, names.replace(',', "_")),
        columns: columns(def, names),
        unique,
        state,
        constraint: unique,
        primary: false,
    };
    def.next_index = def.next_index.next();
    def.indexes.push(index);
}

/// `a,b>parent(x,y)`, then `:delete=action`, `:update=action`.
pub fn foreign_key(def: &mut TableDef, text: &str, parent_of: impl Fn(&str) -> TableDef) {
    let mut parts = text.split(':');
    let (own, target) = parts.next().unwrap().split_once('>').unwrap();
    let (name, parent_columns) = target.trim_end_matches(')').split_once('(').unwrap();
    let parent = if name == def.name { def.clone() } else { parent_of(name) };
    let mut fk = ForeignKeyDef {
        name: format!("{}_{}_fkey", def.name, own.replace(',', "_")),
        columns: columns(def, own),
        parent: parent.id,
        parent_columns: columns(&parent, parent_columns),
        on_delete: FkAction::NoAction,
        on_update: FkAction::NoAction,
        validated: true,
    };
    for part in parts {
        let (event, action) = part.split_once('=').unwrap();
        let action = match action {
            "cascade" => FkAction::Cascade,
            "null" => FkAction::SetNull,
            "restrict" => FkAction::Restrict,
            other => panic!("action {other}"),
        };
        if event == "delete" { fk.on_delete = action } else { fk.on_update = action }
    }
    def.foreign_keys.push(fk);
}

pub fn check(def: &mut TableDef, text: &str) {
    let (name, sql) = text.split_once(':').unwrap();
    let expr = expr(def, sql);
    def.checks.push(CheckDef { name: name.into(), sql: sql.into(), expr });
}

/// A value of a column: `NULL`, or text of its type (left as text if it is not valid, for the errors).
pub fn value(text: &str, ty: SqlType) -> Value {
    match text.trim() {
        "NULL" => Value::Null,
        text => Value::parse(text, ty).unwrap_or_else(|_| Value::Text(text.into())),
    }
}

/// An expression over a table's columns: `n + 1 > excluded.n and name = 'x'`.
pub fn expr(def: &TableDef, text: &str) -> Expr {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let end = match c {
            '\'' => rest[1..].find('\'').unwrap() + 2,
            c if c.is_alphanumeric() || c == '_' => {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len())
            }
            _ if rest.starts_with("<>")
                || rest.starts_with("<=")
                || rest.starts_with(">=")
                || rest.starts_with("||") =>
            {
                2
            }
            _ => 1,
        };
        tokens.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    tokens.reverse();
    let e = binary(def, &mut tokens, 0);
    assert!(tokens.is_empty(), "left over: {tokens:?}");
    e
}

fn operator(token: &str) -> Option<(u8, BinaryOp)> {
    Some(match token {
        "or" => (1, BinaryOp::Or),
        "and" => (2, BinaryOp::And),
        "=" => (3, BinaryOp::Eq),
        "<>" => (3, BinaryOp::Ne),
        "<" => (3, BinaryOp::Lt),
        "<=" => (3, BinaryOp::Le),
        ">" => (3, BinaryOp::Gt),
        ">=" => (3, BinaryOp::Ge),
        "like" => (3, BinaryOp::Like),
        "||" => (4, BinaryOp::Concat),
        "+" => (4, BinaryOp::Add),
        "-" => (4, BinaryOp::Sub),
        "*" => (5, BinaryOp::Mul),
        "/" => (5, BinaryOp::Div),
        "%" => (5, BinaryOp::Mod),
        _ => return None,
    })
}

fn binary(def: &TableDef, tokens: &mut Vec<&str>, above: u8) -> Expr {
    let mut left = operand(def, tokens);
    while let Some((level, op)) = tokens.last().and_then(|t| operator(t)).filter(|(level, _)| *level > above) {
        tokens.pop();
        left = Expr::Binary(op, Box::new(left), Box::new(binary(def, tokens, level)));
    }
    left
}

fn operand(def: &TableDef, tokens: &mut Vec<&str>) -> Expr {
    match tokens.pop().unwrap() {
        "(" => {
            let inner = binary(def, tokens, 0);
            assert_eq!(tokens.pop(), Some(")"));
            inner
        }
        "-" => Expr::Negate(Box::new(operand(def, tokens))),
        "not" => Expr::Not(Box::new(operand(def, tokens))),
        "NULL" => Expr::Value(Value::Null),
        "true" => Expr::Value(Value::Bool(true)),
        t if t.starts_with('\'') => Expr::Value(Value::Text(t.trim_matches('\'').into())),
        t if t.contains('.') && t.starts_with(|c: char| c.is_ascii_digit()) => {
            Expr::Value(Value::Decimal(Decimal::parse(t).unwrap()))
        }
        t if t.starts_with(|c: char| c.is_ascii_digit()) => Expr::Value(Value::Int(t.parse().unwrap())),
        t => match t.strip_prefix("excluded.") {
            Some(name) => Expr::Excluded(position(def, name)),
            None => Expr::Column(position(def, t)),
        },
    }
}
