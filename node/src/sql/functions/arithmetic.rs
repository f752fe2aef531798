//! Integer `+`, `-` and `*` that fail instead of wrapping.
//!
//! A rule after type coercion replaces them by functions: so constants folded while planning are checked as well as
//! rows. Dates, intervals, floats and decimals keep the planner's operators.

use std::sync::Arc;

use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use quorate_shared::error::WireError;

use super::rewrite_expressions;
use crate::sql::errors::external;

/// One checked operator.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Arithmetic {
    name: &'static str,
    signature: Signature,
}

impl Arithmetic {
    fn new(name: &'static str) -> Self {
        Self { name, signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types.first().cloned().unwrap_or(DataType::Int64))
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = args.args.as_slice() else { return datafusion::common::internal_err!("two operands") };
        let scalars = matches!((left, right), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let kernel = match self.name {
            "+" => numeric::add,
            "-" => numeric::sub,
            _ => numeric::mul,
        };
        let result = match (left, right) {
            (ColumnarValue::Array(l), ColumnarValue::Array(r)) => kernel(l, r),
            (ColumnarValue::Array(l), ColumnarValue::Scalar(r)) => kernel(l, &r.to_scalar()?),
            (ColumnarValue::Scalar(l), ColumnarValue::Array(r)) => kernel(&l.to_scalar()?, r),
            (ColumnarValue::Scalar(l), ColumnarValue::Scalar(r)) => kernel(&l.to_array()?, &r.to_array()?),
        };
        let array = result.map_err(|_| {
            external(
                WireError::sql("22003", format!("the result of {} is out of range for its integer type", self.name))
                    .hint("cast one side to DECIMAL or DOUBLE PRECISION"),
            )
        })?;
        if scalars {
            ScalarValue::try_from_array(&array, 0).map(ColumnarValue::Scalar)
        } else {
            Ok(ColumnarValue::Array(array))
        }
    }
}

/// The rule.
#[derive(Debug)]
pub struct Checked {
    add: Arc<ScalarUDF>,
    sub: Arc<ScalarUDF>,
    mul: Arc<ScalarUDF>,
}

impl Default for Checked {
    fn default() -> Self {
        let make = |name| Arc::new(ScalarUDF::from(Arithmetic::new(name)));
        Self { add: make("+"), sub: make("-"), mul: make("*") }
    }
}

impl Checked {
    fn rewrite(&self, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let function = match op {
                    Operator::Plus => &self.add,
                    Operator::Minus => &self.sub,
                    Operator::Multiply => &self.mul,
                    _ => return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
                };
                let integer = |e: &Expr| e.get_type(schema).ok().filter(DataType::is_integer);
                match (integer(&left), integer(&right)) {
                    (Some(l), Some(r)) if l == r => {
                        let args = vec![*left, *right];
                        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: Arc::clone(function), args })))
                    }
                    _ => Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
                }
            }
            Expr::Negative(inner)
                if inner.get_type(schema).is_ok_and(|t| t.is_signed_integer())
                    && !matches!(*inner, Expr::Literal(..)) =>
            {
                let ty = inner.get_type(schema)?;
                let zero = Expr::Literal(ScalarValue::new_zero(&ty)?, None);
                let args = vec![zero, *inner];
                Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction { func: Arc::clone(&self.sub), args })))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

impl AnalyzerRule for Checked {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        rewrite_expressions(plan, |e, schema| self.rewrite(e, schema))
    }

    fn name(&self) -> &'static str {
        "checked_arithmetic"
    }
}
