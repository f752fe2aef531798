//! The planner's and the engine's errors in our words: a SQLSTATE, one readable sentence, and a hint.
//!
//! Nothing that names DataFusion, Arrow or their inner types may reach a user.

use datafusion::common::{DataFusionError, SchemaError};
use quorate_shared::error::{Code, WireError};

/// A [`WireError`] that travels through the planner as an external error and comes out unchanged.
pub fn external(error: WireError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Translates an error; `names` are tables, columns and functions that exist, for "did you mean".
pub fn translate(error: &DataFusionError) -> WireError {
    match error {
        DataFusionError::External(inner) => {
            if let Some(own) = inner.downcast_ref::<WireError>() {
                return own.clone();
            }
            if let Some(nested) = inner.downcast_ref::<DataFusionError>() {
                return translate(nested);
            }
            WireError::sql("XX000", clean(&inner.to_string()))
        }
        DataFusionError::ArrowError(inner, _) => {
            if let datafusion::arrow::error::ArrowError::ExternalError(e) = inner.as_ref() {
                if let Some(own) = e.downcast_ref::<WireError>() {
                    return own.clone();
                }
                if let Some(nested) = e.downcast_ref::<DataFusionError>() {
                    return translate(nested);
                }
            }
            from_text(&inner.to_string())
        }
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => translate(inner),
        DataFusionError::Shared(inner) => translate(inner),
        DataFusionError::Collection(errors) => {
            errors.first().map_or_else(|| WireError::sql("XX000", "the statement failed"), translate)
        }
        DataFusionError::SchemaError(schema, _) => from_schema(schema),
        DataFusionError::ResourcesExhausted(_) => {
            WireError::sql("53200", "the statement needs more memory than the node allows one")
                .hint("narrow it with WHERE, or join the smaller table on the other side")
        }
        DataFusionError::NotImplemented(text) => {
            WireError::sql("0A000", format!("this is not supported: {}", clean(text)))
        }
        DataFusionError::Plan(text) | DataFusionError::Execution(text) => from_text(text),
        other => from_text(&other.to_string()),
    }
}

fn from_schema(error: &SchemaError) -> WireError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let shown =
                field.relation.as_ref().map_or_else(|| field.name.clone(), |r| format!("{}.{}", r.table(), field.name));
            let error = WireError::sql("42703", format!("column \"{shown}\" does not exist"));
            let names: Vec<&str> = valid_fields.iter().map(|f| f.name.as_str()).collect();
            match nearest(&field.name, &names) {
                Some(name) => error.hint(format!("did you mean \"{name}\"?")),
                None => {
                    let mut listed: Vec<String> = valid_fields.iter().take(12).map(|f| f.name.clone()).collect();
                    listed.dedup();
                    if listed.is_empty() { error } else { error.hint(format!("there is {}", listed.join(", "))) }
                }
            }
        }
        SchemaError::AmbiguousReference { field } => {
            WireError::sql("42702", format!("column \"{}\" is ambiguous", field.name))
                .hint("say which table it is of, as in t.column")
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            WireError::sql("42701", format!("column \"{name}\" appears more than once"))
                .hint("give one of them another name with AS")
        }
    }
}

/// The nearest name, if it is near.
pub fn nearest<'a>(wanted: &str, names: &[&'a str]) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let limit = 1 + wanted.chars().count() / 4;
    names
        .iter()
        .map(|n| (strsim::damerau_levenshtein(&wanted, &n.to_lowercase()), *n))
        .filter(|(distance, name)| *distance <= limit && *distance < name.chars().count())
        .min()
        .map(|(_, name)| name)
}

fn from_text(text: &str) -> WireError {
    let lower = text.to_lowercase();
    let has = |needle: &str| lower.contains(needle);
    if has("divide by zero") || has("division by zero") {
        return WireError::sql("22012", "division by zero");
    }
    if has("overflow") || has("out of range") {
        return WireError::sql("22003", "a number is out of range")
            .detail(clean(text))
            .hint("cast one side to a wider type, such as DECIMAL");
    }
    if let Some(rest) = after(text, "Cannot cast string '") {
        let value = rest.split('\'').next().unwrap_or_default();
        let ty = after(rest, "to value of ").map_or("the type wanted", |t| type_word(t));
        return WireError::sql("22P02", format!("invalid input for {ty}: \"{value}\""));
    }
    if has("parser error") || has("error parsing") || has("cast error") {
        return WireError::sql("22P02", format!("invalid input: {}", clean(text)));
    }
    if let Some(rest) = after(text, "Invalid function '") {
        let name = rest.split('\'').next().unwrap_or_default();
        let error = WireError::sql("42883", format!("function {name}() does not exist"));
        let hint = after(rest, "Did you mean '").and_then(|h| h.split('\'').next()).map(str::to_owned);
        return match hint {
            Some(h) if nearest(name, &[h.as_str()]).is_some() => error.hint(format!("did you mean {h}()?")),
            _ => error,
        };
    }
    if has("must appear in the group by")
        || has("could not be resolved from available columns")
        || has("projection references non-aggregate values")
    {
        let column = between(text, "Expression ", " could not").or_else(|| between(text, "column \"", "\""));
        let what = column.map_or_else(|| "a column".to_owned(), |c| format!("\"{}\"", clean(&c)));
        return WireError::sql("42803", format!("{what} must appear in GROUP BY or be used in an aggregate function"));
    }
    if has("failed to coerce")
        || has("no function matches")
        || has("cannot coerce")
        || has("cannot infer common argument type")
        || has("is not compatible")
        || has("can't cast")
        || has("cannot be cast")
        || has("unsupported cast")
    {
        return WireError::sql("42804", coercion(text)).hint("CAST(x AS type) makes types agree");
    }
    if has("more than one row") || has("more than one element") || has("at most one row") {
        return WireError::sql("21000", "a subquery used as a value gave more than one row");
    }
    if has("resources exhausted") {
        return WireError::sql("53200", "the statement needs more memory than the node allows one")
            .hint("narrow it with WHERE");
    }
    if has("not implemented") || has("not supported") || has("unsupported") {
        return WireError::sql("0A000", format!("this is not supported: {}", clean(text)));
    }
    WireError::sql("42000", clean(text))
}

fn coercion(text: &str) -> String {
    if let Some(name) = between(text, "function: '", "'")
        .or_else(|| between(text, "Error during planning: Function '", "'"))
        .or_else(|| between(text, "Function '", "'"))
    {
        return format!("the function {}() does not take these arguments", clean(&name));
    }
    if let (Some(left), Some(right)) =
        (between(text, "Cannot infer common argument type for ", " "), between(text, "operation ", "."))
    {
        return format!("types do not agree ({left} {})", clean(&right));
    }
    format!("types do not agree: {}", clean(text))
}

fn after<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    text.split_once(marker).map(|(_, rest)| rest)
}

fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let rest = after(text, start)?;
    rest.split_once(end).map(|(inner, _)| inner.to_owned())
}

fn type_word(text: &str) -> &'static str {
    let word = text.trim();
    let starts = |p: &str| word.starts_with(p);
    if starts("Int16") || starts("Int8") {
        "SMALLINT"
    } else if starts("Int32") {
        "INT"
    } else if starts("Int64") || starts("UInt") {
        "BIGINT"
    } else if starts("Float32") {
        "REAL"
    } else if starts("Float64") {
        "DOUBLE PRECISION"
    } else if starts("Decimal") {
        "DECIMAL"
    } else if starts("Date") {
        "DATE"
    } else if starts("Timestamp") {
        "TIMESTAMP"
    } else if starts("Time") {
        "TIME"
    } else if starts("Boolean") {
        "BOOLEAN"
    } else if starts("Interval") {
        "INTERVAL"
    } else {
        "the type wanted"
    }
}

/// Takes the planner's wording out of a text.
fn clean(text: &str) -> String {
    let mut out = text.to_owned();
    if let Some(at) = out.find("\n\nbacktrace") {
        out.truncate(at);
    }
    if let Some(at) = out.find(".\nThis issue was likely caused by a bug") {
        out.truncate(at);
    }
    for (from, to) in [
        ("Error during planning: ", ""),
        ("Execution error: ", ""),
        ("Arrow error: ", ""),
        ("Optimizer rule 'simplify_expressions' failed", ""),
        ("Optimizer rule ", ""),
        ("Parser error: ", ""),
        ("Cast error: ", ""),
        ("Compute error: ", ""),
        ("Invalid argument error: ", ""),
        ("Internal error: ", ""),
        ("External error: ", ""),
        ("This feature is not implemented: ", ""),
        ("type_coercion\ncaused by\n", ""),
        ("\ncaused by\n", " "),
        ("DataFusion", "the planner"),
        ("Datafusion", "the planner"),
        ("datafusion", "the planner"),
        ("SQL planner", "planner"),
        ("Timestamp(Microsecond, Some(\"+00:00\"))", "TIMESTAMP WITH TIME ZONE"),
        ("Timestamp(Microsecond, None)", "TIMESTAMP"),
        ("Timestamp(Nanosecond, None)", "TIMESTAMP"),
        ("Timestamp(µs)", "TIMESTAMP"),
        ("Timestamp(ns)", "TIMESTAMP"),
        ("Time64(Microsecond)", "TIME"),
        ("Interval(MonthDayNano)", "INTERVAL"),
        ("LargeUtf8", "TEXT"),
        ("Utf8View", "TEXT"),
        ("Utf8", "TEXT"),
        ("Boolean", "BOOLEAN"),
        ("Decimal128", "DECIMAL"),
        ("Float64", "DOUBLE PRECISION"),
        ("Float32", "REAL"),
        ("UInt64", "BIGINT"),
        ("Int64", "BIGINT"),
        ("Int32", "INT"),
        ("Int16", "SMALLINT"),
        ("Date32", "DATE"),
        ("Binary", "BYTEA"),
    ] {
        out = out.replace(from, to);
    }
    let trimmed = out.trim().trim_end_matches('.');
    let mut chars = trimmed.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => trimmed.to_owned(),
    }
}

/// An error that is our bug: it names nothing internal to the user and goes to the log.
pub fn internal(doing: &str, cause: &dyn std::fmt::Display) -> WireError {
    tracing::error!(%cause, "{doing}");
    WireError { sqlstate: Some("XX000".to_owned()), ..WireError::new(Code::Internal, format!("{doing} failed")) }
}
