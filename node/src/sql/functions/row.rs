//! A Rust function over values as one the planner can call.

use std::hash::{Hash, Hasher};

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use quorate_shared::error::WireError;
use quorate_shared::value::{SqlType, Value};

use crate::sql::convert::{self, ColumnBuilder};
use crate::sql::errors::external;

/// The function itself.
pub type Call = fn(&[Value]) -> Result<Value, WireError>;

/// A function evaluated row by row.
#[derive(Debug)]
pub struct RowFunction {
    name: &'static str,
    aliases: Vec<String>,
    signature: Signature,
    returns: SqlType,
    null_in_null_out: bool,
    call: Call,
    /// Put in front of the arguments.
    fixed: Vec<Value>,
}

impl PartialEq for RowFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.fixed == other.fixed
    }
}
impl Eq for RowFunction {}
impl Hash for RowFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl RowFunction {
    /// A function of so many arguments of any type, NULL if any of them is NULL.
    pub fn new(name: &'static str, arguments: std::ops::RangeInclusive<usize>, returns: SqlType, call: Call) -> Self {
        let signatures =
            arguments.map(|n| if n == 0 { TypeSignature::Nullary } else { TypeSignature::Any(n) }).collect();
        let signature = Signature::one_of(signatures, Volatility::Immutable);
        Self { name, aliases: Vec::new(), signature, returns, null_in_null_out: true, call, fixed: Vec::new() }
    }

    /// Other names.
    pub fn alias(mut self, names: &[&str]) -> Self {
        self.aliases.extend(names.iter().map(|n| (*n).to_owned()));
        self
    }

    /// It sees NULLs itself.
    pub fn sees_null(mut self) -> Self {
        self.null_in_null_out = false;
        self
    }

    /// Another value for each row.
    pub fn volatile(mut self) -> Self {
        self.signature.volatility = Volatility::Volatile;
        self
    }

    /// Puts a value in front of the arguments.
    pub fn with(mut self, value: Value) -> Self {
        self.fixed.push(value);
        self
    }
}

impl ScalarUDFImpl for RowFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(convert::arrow_type(self.returns))
    }

    fn return_field_from_args(
        &self,
        _args: datafusion::logical_expr::ReturnFieldArgs,
    ) -> Result<datafusion::arrow::datatypes::FieldRef> {
        Ok(std::sync::Arc::new(convert::field(self.name, self.returns, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = !args.args.is_empty() && args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let count = if scalar { 1 } else { args.number_rows };
        let mut rows: Vec<Vec<Value>> = (0..count).map(|_| self.fixed.clone()).collect();
        for (value, field) in args.args.into_iter().zip(&args.arg_fields) {
            let array = value.into_array(count)?;
            convert::column_values(&array, convert::sql_type(field), &mut rows).map_err(external)?;
        }
        let mut builder = ColumnBuilder::new(self.returns, count);
        for row in &rows {
            let value = match self.null_in_null_out && row.iter().any(Value::is_null) {
                true => Value::Null,
                false => (self.call)(row).map_err(external)?,
            };
            builder.push(&value).map_err(external)?;
        }
        let array = builder.finish();
        if scalar {
            return ScalarValue::try_from_array(&array, 0).map(ColumnarValue::Scalar);
        }
        Ok(ColumnarValue::Array(array))
    }
}

/// An argument of the wrong kind.
pub fn wrong(function: &str, value: &Value) -> WireError {
    WireError::sql("42804", format!("{function}() does not take {value:?}", value = show(value)))
}

fn show(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain(['…']).collect() } else { text }
}

/// Text of a value.
pub fn text(value: &Value) -> String {
    value.to_string()
}

/// A whole number from a value.
///
/// # Errors
/// `42804`.
pub fn int(function: &str, value: &Value) -> Result<i64, WireError> {
    match value {
        Value::Int(i) => Ok(*i),
        Value::Text(t) => t.trim().parse().map_err(|_| wrong(function, value)),
        #[allow(clippy::cast_possible_truncation)] // rounded, and saturating
        Value::Float(f) => Ok(f.round() as i64),
        Value::Decimal(d) => {
            let factor = 10i128.checked_pow(u32::from(d.scale)).unwrap_or(1);
            i64::try_from(d.unscaled / factor).map_err(|_| wrong(function, value))
        }
        Value::Bool(b) => Ok(i64::from(*b)),
        _ => Err(wrong(function, value)),
    }
}

/// A float from a value.
///
/// # Errors
/// `42804`.
#[allow(clippy::cast_precision_loss)] // a float is asked for
pub fn float(function: &str, value: &Value) -> Result<f64, WireError> {
    match value {
        Value::Int(i) => Ok(*i as f64),
        Value::Float(f) => Ok(*f),
        Value::Decimal(d) => Ok(d.unscaled as f64 / 10f64.powi(i32::from(d.scale))),
        Value::Text(t) => t.trim().parse().map_err(|_| wrong(function, value)),
        _ => Err(wrong(function, value)),
    }
}
